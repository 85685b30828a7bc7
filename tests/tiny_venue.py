"A venue for tests of the feed alone: a server on a free port that says exactly what a test tells it to say, and keeps the true book."
import asyncio
import json

from aiohttp import WSMsgType, web

from makerlab.live.book import book_digest
from makerlab.live.protocol import Hosts


class TinyVenue:
    "One symbol, BTCUSDT, tick 0.01, lot 0.00001; update ids as spot counts them, or with pu and holes as USD-M does."

    def __init__(self, market="spot", symbol="BTCUSDT"):
        self.market, self.symbol, self.id, self.trade_id = market, symbol, 1000, 50
        self.bids, self.asks = {10_000 - i: 5 + i for i in range(5)}, {10_002 + i: 5 + i for i in range(5)}
        self.sockets, self.connects, self.depth_requests, self.mute = [], [], 0, set()
        self.snapshot_answers, self.depth_gate = [], asyncio.Event()  # scripted answers first; the gate holds requests back
        self.depth_gate.set()
        self.connected = asyncio.Condition()
        self.refuse_connects, self.blackhole, self.pings = 0, False, 0
        self.info_answers, self.keep = [], 10**9  # scripted answers of exchangeInfo; of the connections only so many are kept, the others closed at once

    async def __aenter__(self):
        api = "/fapi/v1" if self.market == "usdm" else "/api/v3"
        app = web.Application()
        app.add_routes([web.get(f"{api}/depth", self._depth), web.get(f"{api}/exchangeInfo", self._info)])
        for route in ("", "/public", "/market"):
            app.router.add_get(f"{route}/stream", self._stream)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.hosts = Hosts.local(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", market=self.market)
        return self

    async def __aexit__(self, *_):
        for ws, _ in list(self.sockets):
            ws._req.transport and ws._req.transport.abort()
        await self.runner.cleanup()

    async def _info(self, request):
        if self.info_answers:
            return self.info_answers.pop(0)
        return web.json_response({"rateLimits": [], "symbols": [{"symbol": self.symbol, "status": "TRADING", "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001"}]}]})

    def text(self, n, places): return f"{n / 10**places:.8f}"
    def rows(self, book): return [[self.text(k, 2), self.text(v, 5)] for k, v in book.items()]

    def snapshot(self):
        return {"lastUpdateId": self.id, "bids": self.rows(dict(sorted(self.bids.items(), reverse=True))), "asks": self.rows(dict(sorted(self.asks.items())))}

    async def _depth(self, request):
        self.depth_requests += 1
        await self.depth_gate.wait()
        if self.snapshot_answers:
            answer = self.snapshot_answers.pop(0)
            return answer if isinstance(answer, web.Response) else web.json_response(answer)
        return web.json_response(self.snapshot())

    async def _stream(self, request):
        self.connects.append(request.path_qs)
        if self.refuse_connects:
            self.refuse_connects -= 1
            return web.Response(status=503)
        ws = web.WebSocketResponse(autoping=False)
        await ws.prepare(request)
        if len(self.connects) > self.keep:
            await ws.close()
            return ws
        entry = (ws, set(request.query.get("streams", "").split("/")))
        async with self.connected:
            self.sockets.append(entry)
            self.connected.notify_all()
        async for m in ws:
            if m.type is WSMsgType.TEXT:
                body = json.loads(m.data)
                entry[1].update(body["params"])
                await ws.send_json({"result": None, "id": body["id"]})
            elif m.type is WSMsgType.PING:
                self.pings += 1
                if not self.blackhole:
                    await ws.pong(m.data)
        self.sockets.remove(entry)
        return ws

    async def wait_sockets(self, n):
        async with self.connected:
            await asyncio.wait_for(self.connected.wait_for(lambda: len(self.sockets) >= n), 5)

    async def send(self, name, data, only=None):
        "A stream's message to whoever subscribed to it."
        if name in self.mute:
            return
        text = data if isinstance(data, str) else json.dumps({"stream": name, "data": data})
        for i, (ws, names) in enumerate(list(self.sockets)):
            if name in names and (only is None or i == only):
                await ws.send_str(text)

    def change(self, bids=(), asks=(), at=1_700_000_000_000):
        "Change the true book; returns the message that tells of it."
        for book, rows in ((self.bids, bids), (self.asks, asks)):
            for k, v in rows:
                book.pop(k, None) if v == 0 else book.__setitem__(k, v)
        before, self.id = self.id, self.id + (7 if self.market == "usdm" else 2)
        m = {"e": "depthUpdate", "E": at, "s": self.symbol, "U": before + (3 if self.market == "usdm" else 1), "u": self.id, "b": self.rows(dict(bids)), "a": self.rows(dict(asks))}
        return m | ({"pu": before, "T": at} if self.market == "usdm" else {})

    def cut(self, mid_message=False):
        "Drop every connection, perhaps inside a frame."
        for ws, _ in list(self.sockets):
            if mid_message:
                ws._req.transport.write(b'\x81\x7e\x10\x00{"stream":"btcusdt@de')
            ws._req.transport.abort()

    async def diff(self, bids=(), asks=(), **kw):
        await self.send(f"{self.symbol.lower()}@depth@100ms", self.change(bids, asks), **kw)

    async def trade(self, price=10_001, qty=1, maker_buys=False, **kw):
        self.trade_id += 1
        await self.send(f"{self.symbol.lower()}@trade", {"e": "trade", "E": 1_700_000_000_000, "s": self.symbol, "t": self.trade_id, "p": self.text(price, 2), "q": self.text(qty, 5),
                                                         "T": 1_700_000_000_000, "m": maker_buys, "M": True}, **kw)

    def digest(self):
        unit = lambda book, reverse: [(k * 10**6, v * 10**3) for k, v in sorted(book.items(), reverse=reverse)]
        return book_digest(self.id, unit(self.bids, True), unit(self.asks, False))
