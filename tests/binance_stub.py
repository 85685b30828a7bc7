"A scripted Binance: answers what a test told it to, in that order, and remembers every request. Not an exchange; see makerlab.live.simulated for one."
import asyncio
import contextlib
import json
import time
from collections import defaultdict, deque
from decimal import Decimal

import aiohttp
from aiohttp import web

from makerlab.execution.venue import Instrument
from makerlab.live.binance import BinanceVenue, Settings
from makerlab.live.protocol import HmacSigner, Hosts, Keys

X = {"spot": Instrument("BTCUSDT", 0.01, 0.00001, venue="binance"), "usdm": Instrument("BTCUSDT", 0.1, 0.001, kind="future", venue="binance-usdm")}
API = {"spot": "/api/v3", "usdm": "/fapi/v1"}
QUICK = Settings(timeout_s=1.0, ask_s=1.0, heartbeat_s=5.0, echo_s=60.0, backoff_s=(0.01, 0.1), order_wait_s=0.3)


def symbol_row(market, **more):
    "One symbol of exchangeInfo."
    x = X[market]
    tick, lot = f"{Decimal(repr(x.tick_size)):f}", f"{Decimal(repr(x.lot_size)):f}"
    row = {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
        {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "100", "stepSize": lot}]}
    return row | ({"contractType": "PERPETUAL"} if market == "usdm" else {}) | more


class Stub:
    "The server. `script[method, path]` is a queue of answers: (status, body[, headers]), a function of the query (async or not), 'hang', 'reset', or 'garbage'."

    def __init__(self, market="spot"):
        self.market, self.script, self.asked = market, defaultdict(deque), []
        self.limits = [dict(rateLimitType="REQUEST_WEIGHT", interval="MINUTE", intervalNum=1, limit=6000),
                       dict(rateLimitType="ORDERS", interval="SECOND", intervalNum=10, limit=100)]
        self.row, self.skew_ms, self.sockets, self.words, self.orders = symbol_row(market), 0, [], [], 0
        self.listen_keys = 0

    def paths(self, word="order"):
        "The requests to an endpoint."
        return [(m, q) for m, p, q, _ in self.asked if p == f"{API[self.market]}/{word}"]

    async def __aenter__(self):
        app = web.Application()
        app.router.add_get("/ws-api/v3", self._socket)
        app.router.add_get("/private/ws/{key}", self._socket)
        app.router.add_route("*", "/{tail:.*}", self._rest)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_):
        for ws in self.sockets:
            ws._req.transport and ws._req.transport.abort()
        await self.runner.cleanup()

    def ms(self):
        return int(time.time() * 1000) + self.skew_ms

    async def _rest(self, request):
        q = dict(request.query)
        self.asked.append((request.method, request.path, q, time.monotonic()))
        queue = self.script.get((request.method, request.path.removeprefix(API[self.market] + "/")))
        answer = queue.popleft() if queue else self._usual(request, q)
        if callable(answer):
            answer = answer(q)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer == "hang":
            await asyncio.sleep(30)
        if answer == "reset":
            request.transport.abort()
            return web.Response()
        if answer == "garbage":
            return web.Response(text="<html>", content_type="text/html")
        status, body, headers = (*answer, {})[:3]
        return web.json_response(body, status=status, headers=headers)

    def _usual(self, request, q):
        "What the venue says on a good day."
        word = request.path.removeprefix(API[self.market] + "/")
        spot = self.market == "spot"
        if word == "time":
            return 200, {"serverTime": self.ms()}
        if word == "exchangeInfo":
            return 200, {"rateLimits": self.limits, "symbols": [self.row]}
        if word == "account":
            return 200, {"balances": [{"asset": "BTC", "free": "2.0", "locked": "0.5"}, {"asset": "USDT", "free": "100000", "locked": "0"}]}
        if word == "listenKey":
            self.listen_keys += request.method == "POST"
            return 200, {"listenKey": f"k{self.listen_keys}"}
        if word == "order" and request.method == "POST":
            return 200, self.ack(q)
        if word == "order" and request.method == "DELETE":
            return 200, self.ack({"side": "BUY", "quantity": "0.01", "price": "100", **q}, status="CANCELED", clientOrderId="cancel-1" if spot else q["origClientOrderId"], origClientOrderId=q["origClientOrderId"])
        if word in ("openOrders", "myTrades", "userTrades") or "positionRisk" in word or "balance" in word:
            return 200, []
        return 404, {"code": -1, "msg": f"nothing at {request.path}"}

    def ack(self, q, status="NEW", done="0", **more):
        "The answer to a new order."
        self.orders += 1
        t = {"transactTime": self.ms(), "fills": []} if self.market == "spot" else {"updateTime": self.ms()}
        return {"symbol": q["symbol"], "orderId": 1000 + self.orders, "clientOrderId": q.get("newClientOrderId", ""), "price": q.get("price", "0"), "origQty": q["quantity"],
                "executedQty": done, "status": status, "side": q["side"]} | t | more

    async def _socket(self, request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.sockets.append(ws)
        async for m in ws:
            if m.type is aiohttp.WSMsgType.TEXT:
                x = json.loads(m.data)
                self.words.append(x)
                queue = self.script.get(("WS", x["method"]))
                answer = queue.popleft() if queue else (200, {"subscriptionId": 0})
                body = {"result": answer[1]} if answer[0] == 200 else {"error": answer[1]}
                await ws.send_json({"id": x["id"], "status": answer[0], "rateLimits": []} | body)
        return ws

    async def push(self, event, which=-1):
        "An event on the user stream."
        await self.sockets[which].send_json({"subscriptionId": 0, "event": event} if self.market == "spot" else event)

    def report(self, client_id, x="NEW", X="NEW", *, side="BUY", price="100", qty="0.01", done="0", last="0", at="0", trade=-1, order=1001, C="", fee="0", asset="USDT", maker=True, T=None, **more):
        "An executionReport, or an ORDER_TRADE_UPDATE."
        t = T or self.ms()
        e = {"s": "BTCUSDT", "c": client_id, "S": side, "o": "LIMIT", "f": "GTC", "q": qty, "p": price, "x": x, "X": X, "i": order, "l": last, "z": done, "L": at, "n": fee, "N": asset,
             "T": t, "t": trade, "m": maker} | more
        if self.market == "usdm":
            return {"e": "ORDER_TRADE_UPDATE", "E": t, "T": t, "o": e | {"t": max(trade, 0), "ap": "0", "R": False, "rp": "0"}}
        return e | {"e": "executionReport", "E": t, "C": C, "I": t, "Z": "0", "r": "NONE"}


@contextlib.asynccontextmanager
async def session(market="spot", stub=None, settings=QUICK, **more):
    "A stub, a connected venue, and the list that its reports go to."
    async with stub or Stub(market) as s:
        v = BinanceVenue([X[market]], market=market, hosts=Hosts.local(s.url, market=market), keys=Keys("api", HmacSigner("secret")), settings=settings, **more)
        said = []
        await v.connect()

        async def listen():
            async for r in v.events():
                said.append(r)

        task = asyncio.ensure_future(listen())
        try:
            yield s, v, said
        finally:
            await v.close()
            await asyncio.wait_for(task, 2)


async def until(true, timeout_s=3.0):
    "Wait until something is so; fails when it does not become so."
    give_up = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < give_up, "it did not happen"
        await asyncio.sleep(0.005)
