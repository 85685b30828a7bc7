"The simulated venue: what it holds true, what it refuses, what it can make go wrong."
import asyncio
import base64
import hashlib
import hmac
import json
from collections import Counter
from urllib.parse import urlencode

import aiohttp
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError
from makerlab.data.crypto import sync_rule
from makerlab.execution.matching import check_book
from makerlab.live.exchange import UNIT, Exchange, Refusal, SymbolRules, read8, text8
from makerlab.live.simulated import FAULTS, ApiKey, Limits, SimulatedVenue, VenueClock, contract_venue, signature_ok, word_of

T0 = 1_760_000_000_000_000_000
X = SymbolRules(symbol="XUSDT", base="X", tick="0.01", lot="1", min_qty="1", max_qty="100000", min_notional="0", percent="0")
BOOK = [(1, 99, 5), (1, 98, 9), (-1, 101, 5), (-1, 102, 9)]


def floor(market="spot", rules=X, money="1000000", maker_bps=0.0, taker_bps=0.0):
    x = Exchange([rules], market=market, levels={rules.symbol: BOOK}, start_ns=T0)
    a, b = (x.open_account(n, balances={"USDT": money, "X": "1000"} if market == "spot" else {"USDT": money}, maker_bps=maker_bps, taker_bps=taker_bps) for n in "ab")
    return x, a, b


def order(side, price, qty, cid="", type="LIMIT", **more):
    p = {"symbol": "XUSDT", "side": "BUY" if side > 0 else "SELL", "type": type, "quantity": str(qty), "newClientOrderId": cid}
    if type != "MARKET":
        p["price"] = price
    if type == "LIMIT":
        p["timeInForce"] = more.pop("tif", "GTC")
    return p | more


def refused(f, *a, **k):
    with pytest.raises(Refusal) as e:
        f(*a, **k)
    return e.value.code, e.value.words


def consistent(x):
    "The ledger, the book and the orders tell one story."
    for a in x.accounts.values():
        live = a.open_orders()
        if x.market == "spot":
            for asset in a.balances:
                assert a.locked.get(asset, 0) == sum(o.locked for o in live if asset == ("USDT" if o.side > 0 else "X")) >= 0
            assert a.balances["X"] - a.start["X"] == UNIT * a.lots.get("XUSDT", 0)
            assert abs((a.balances["USDT"] - a.start["USDT"]) / UNIT - x.truth_cash(a.name)) < 1e-9
        for o in live:
            assert o.done + o.held == o.lots or o.reduce_only
            node = x.markets["XUSDT"].flow.book.nodes[o.slot]
            assert int(node["lots"]) == o.held and int(node["id"]) == o.serial
    assert not check_book(x.markets["XUSDT"].flow.book)
    ids = Counter((r["account"], r["trade_id"]) for r in x.truth if r["kind"] == "trade")
    for name, a in x.accounts.items():
        assert a.lots.get("XUSDT", 0) == sum(r["side"] * r["last_lots"] for r in x.truth if r["kind"] == "trade" and r["account"] == name)
    assert all(n <= 2 for n in ids.values())


# --- the floor


def test_numbers_have_no_exponent_and_nothing_is_rounded():
    assert text8(1) == "0.00000001" and text8(-150_000_000, 2) == "-1.50" and text8(100_000_000, 0) == "1"
    assert read8("0.1") == 10_000_000 and all(read8(x) is None for x in ("1e5", "NaN", "inf", "", "0.123456789", "--1", "0x1", "１"))


@pytest.mark.parametrize("bad, code", [
    (dict(side="HOLD"), -1117), (dict(type="STOP"), -1116), (dict(timeInForce="GTD"), -1115), (dict(quantity="NaN"), -1100), (dict(quantity="1e3"), -1100),
    (dict(quantity="-5"), -1100), (dict(quantity="1.5"), -1013), (dict(quantity="0"), -1013), (dict(price="1.005"), -1013), (dict(price="1.000000001"), -1111),
    (dict(price=""), -1102), (dict(quantity=None), -1102), (dict(symbol="NOPE"), -1121), (dict(symbol=None), -1102), (dict(newClientOrderId="a b"), -1100),
    (dict(newClientOrderId="a" * 37), -1100), (dict(quantity="100001"), -1013), (dict(quantity="9" * 25), -1100), (dict(price="5000000"), -1013),
    (dict(selfTradePreventionMode="MAYBE"), -1130), (dict(type="LIMIT_MAKER", price="1.01"), -1106), (dict(quoteOrderQty="5"), -1106)])
def test_bad_orders_change_nothing(bad, code):
    x, a, _ = floor()
    before = x.markets["XUSDT"].depth(1, 9), dict(a.balances), dict(a.locked)
    got, _words = refused(x.place, a, {k: v for k, v in (order(1, "0.99", 3, "q") | bad).items() if v is not None})
    assert got == code
    assert before == (x.markets["XUSDT"].depth(1, 9), a.balances, a.locked) and not a.orders and x.truth[-1]["kind"] == "refused"


def test_post_only_duplicate_balance_status():
    x, a, _ = floor(money="10")
    assert refused(x.place, a, order(1, "1.01", 1, "z", "LIMIT_MAKER")) == (-2010, "Order would immediately match and take.")
    x.place(a, order(1, "0.99", 5, "one"))
    assert refused(x.place, a, order(1, "0.98", 1, "one"))[1] == "Duplicate order sent."
    assert refused(x.place, a, order(1, "0.98", 6, "two"))[1] == "Account has insufficient balance for requested action."
    x.cancel(a, {"symbol": "XUSDT", "origClientOrderId": "one"})
    x.place(a, order(1, "0.98", 1, "one"))  # an id is free again when its order is gone
    for status in ("HALT", "BREAK", "CANCEL_ONLY"):
        x.rules["XUSDT"] = SymbolRules(**{f: getattr(X, f) for f in X.__dataclass_fields__} | {"status": status})
        assert "Market is closed." in refused(x.place, a, order(1, "0.98", 1, "h"))[1] or status == "CANCEL_ONLY"
    x.cancel(a, {"symbol": "XUSDT", "origClientOrderId": "one"})
    assert refused(x.cancel, a, {"symbol": "XUSDT", "origClientOrderId": "one"}) == (-2011, "Unknown order sent.")
    assert refused(x.find, a, {"symbol": "XUSDT", "origClientOrderId": "never"})[0] == -2013
    consistent(x)


@pytest.mark.parametrize("mode, maker, taker, traded", [("NONE", "FILLED", "FILLED", 3), ("EXPIRE_TAKER", "NEW", "EXPIRED_IN_MATCH", 0),
                                                         ("EXPIRE_MAKER", "EXPIRED_IN_MATCH", "NEW", 0), ("EXPIRE_BOTH", "EXPIRED_IN_MATCH", "EXPIRED_IN_MATCH", 0)])
def test_self_trade_prevention(mode, maker, taker, traded):
    x, a, _ = floor()
    first = x.place(a, order(1, "1.00", 3, "m"))
    second = x.place(a, order(-1, "1.00", 3, "t", selfTradePreventionMode=mode))
    assert (first.status, second.status, first.done) == (maker, taker, traded)
    consistent(x)


def test_prevention_takes_only_ones_own_out_of_the_way():
    x, a, b = floor()
    x.place(a, order(1, "1.00", 2, "own"))
    x.place(b, order(1, "1.00", 2, "other"))
    t = x.place(a, order(-1, "0.99", 9, "t"))
    assert a.by_client["own"].status == "EXPIRED_IN_MATCH" and b.by_client["other"].status == "FILLED" and (t.done, t.held) == (7, 2)
    consistent(x)


def test_fok_ioc_market():
    x, a, _ = floor()
    assert x.place(a, order(1, "1.01", 6, "f", tif="FOK")).status == "EXPIRED"
    o = x.place(a, order(1, "1.01", 6, "i", tif="IOC"))
    assert (o.status, o.done, o.expiry) == ("EXPIRED", 5, "INSUFFICIENT_LIQUIDITY")
    o = x.place(a, order(-1, "", 8, "m", "MARKET"))
    assert o.status == "FILLED" and [(f["tick"], f["lots"]) for f in o.fills] == [(99, 5), (98, 3)]
    o = x.place(a, order(-1, "", 50, "m2", "MARKET"))
    assert (o.status, o.done) == ("EXPIRED", 6)
    assert refused(x.place, a, order(-1, "", 5, "m3", "MARKET"))[0] == -2010
    consistent(x)


def test_fees_and_a_rebate():
    x, a, _ = floor(maker_bps=-1.0, taker_bps=10.0)
    x.place(a, order(1, "1.01", 5, "t", tif="IOC"))
    x.place(a, order(1, "1.00", 4, "m"))
    x.stranger("XUSDT", -1, 100, 4, "ioc")
    assert a.trades[0]["commission"] == "0.00505000" and a.trades[1]["commission"] == "-0.00040000"
    assert x.truth_cash("a") == pytest.approx(-5.05 - 0.00505 - 4 + 0.0004)
    consistent(x)


def test_amend_keeps_the_place_in_the_queue():
    x, a, b = floor()
    x.place(a, order(1, "1.00", 6, "a"))
    x.place(b, order(1, "1.00", 6, "b"))
    o = x.amend(a, {"symbol": "XUSDT", "origClientOrderId": "a", "newQty": "2"})
    assert o.lots == 2 and refused(x.amend, a, {"symbol": "XUSDT", "origClientOrderId": "a", "newQty": "2"})[0] == -2038
    x.stranger("XUSDT", -1, 100, 3, "ioc")
    assert a.by_client["a"].status == "FILLED" and b.by_client["b"].done == 1
    consistent(x)


def test_a_futures_order_that_is_modified_goes_to_the_end():
    x, a, b = floor("usdm")
    x.place(a, order(1, "1.00", 6, "a", tif="GTX"))
    x.place(b, order(1, "1.00", 6, "b"))
    o = x.modify(a, {"symbol": "XUSDT", "origClientOrderId": "a", "price": "1.00", "quantity": "5"})
    x.stranger("XUSDT", -1, 100, 8, "ioc")
    assert b.by_client["b"].status == "FILLED" and (o.done, o.lots) == (2, 5)
    assert refused(x.modify, a, {"symbol": "XUSDT", "origClientOrderId": "a", "price": "1.01", "quantity": "5"})[0] == -5022 and o.live
    assert x.modify(a, {"symbol": "XUSDT", "origClientOrderId": "a", "price": "1.00", "quantity": "2"}).status == "CANCELED"
    consistent(x)


def test_reduce_only_never_opens():
    x, a, _ = floor("usdm")
    assert refused(x.place, a, order(-1, "1.01", 1, "r", reduceOnly="true"))[0] == -2022
    x.place(a, order(1, "1.01", 3, "o", tif="IOC"))
    r = x.place(a, order(-1, "1.02", 3, "r", reduceOnly="true"))
    x.place(a, order(-1, "", 2, "m", "MARKET", reduceOnly="true"))
    assert x.truth_position("a") == {"XUSDT": 1} and r.held == 1
    x.stranger("XUSDT", 1, 103, 30, "ioc")
    assert x.truth_position("a") == {} and (r.done, r.status) == (1, "EXPIRED")
    consistent(x)


def test_futures_money_is_realised_profit():
    x, a, _ = floor("usdm", money="1000", taker_bps=5.0)
    x.place(a, order(1, "1.01", 5, "1", tif="IOC"))
    x.place(a, order(-1, "0.98", 9, "2", tif="IOC"))
    assert x.truth_position("a") == {"XUSDT": -4}
    realised = 5 * 0.99 - 5 * 1.01  # five of the nine lots at 0.99
    fees = 5e-4 * (5 * 1.01 + 5 * 0.99 + 4 * 0.98)
    assert a.balances["USDT"] / UNIT == pytest.approx(1000 + realised - fees, abs=1e-7) and a.entry["XUSDT"] == -392_000_000
    assert refused(x.place, a, order(-1, "1.05", 50_000, "3"))[0] == -2019
    consistent(x)


def test_the_tick_can_change_under_way():
    x, a, _ = floor()
    resting = x.place(a, order(1, "0.99", 1, "old"))
    x.rules["XUSDT"] = SymbolRules(**{f: getattr(X, f) for f in X.__dataclass_fields__} | {"tick_now": "0.05"})
    assert refused(x.place, a, order(1, "0.99", 1, "n")) == (-1013, "Filter failure: PRICE_FILTER") and resting.live
    assert x.place(a, order(1, "0.95", 1, "n")).status == "NEW"


moves = st.lists(st.tuples(st.sampled_from(["new", "new", "new", "cancel", "amend", "stranger", "market"]), st.sampled_from(["a", "b"]), st.sampled_from([1, -1]),
                           st.integers(96, 104), st.integers(1, 12), st.sampled_from(["GTC", "IOC", "FOK"]), st.sampled_from(["NONE", "EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH"])),
                 min_size=5, max_size=60)


@pytest.mark.parametrize("market", ["spot", "usdm"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], database=None)
@given(moves=moves)
def test_whatever_happens_the_ledger_agrees(market, moves):
    x, *_ = floor(market, taker_bps=3.0)
    for i, (what, who, side, tick, lots, tif, stp) in enumerate(moves):
        a = x.accounts[who]
        live = a.open_orders()
        x.advance(x.now_ns + 1_000_000)
        try:
            if what == "new":
                x.place(a, order(side, f"{tick / 100:.2f}", lots, f"c{i}", tif=tif, selfTradePreventionMode=stp))
            elif what == "market":
                x.place(a, order(side, "", lots, f"c{i}", "MARKET"))
            elif what == "stranger":
                x.stranger("XUSDT", side, tick, lots, "ioc" if tif == "IOC" else "limit")
            elif live and what == "cancel":
                x.cancel(a, {"symbol": "XUSDT", "orderId": str(live[0].order_id)})
            elif live and market == "spot":
                x.amend(a, {"symbol": "XUSDT", "orderId": str(live[-1].order_id), "newQty": str(lots)})
            elif live:
                x.modify(a, {"symbol": "XUSDT", "orderId": str(live[-1].order_id), "quantity": str(lots), "price": f"{tick / 100:.2f}"})
        except Refusal:
            pass
        consistent(x)


# --- signatures, clocks, limits


def test_the_documented_signature():
    key = ApiKey("x", "k", "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j")
    payload = "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559"
    good = "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"
    assert signature_ok(payload, good, key) and signature_ok(payload, good.upper(), key)
    assert not signature_ok(payload + " ", good, key) and not signature_ok(payload, "", key)
    assert "NhqP" not in repr(key)


def test_the_clock_never_goes_back():
    now = [100]
    c = VenueClock(lambda: now[0], speed=10.0, start_ns=1000)
    now[0] = 105
    assert c.now_ns() == 1050
    c.freeze()
    now[0] = 500
    assert c.now_ns() == 1050
    c.push(7)
    c.freeze(False)
    assert c.now_ns() == 1057
    now[0] = 400
    assert c.now_ns() == 1057, "its source went back, it did not"
    with pytest.raises(ParameterError, match="speed"):
        VenueClock(speed=0.0)
    with pytest.raises(ParameterError, match="ns"):
        c.push(-50)
    assert c.now_ns() == 1057, "nor is it pushed back"


def test_429_then_418_then_grace():
    limits = Limits("spot", weight=(10, 60))
    s = 10**9
    t = 600 * s + 50 * s
    limits.charge("ip", 10, t)
    for _ in range(limits.strikes_allowed):
        with pytest.raises(Refusal) as e:
            limits.charge("ip", 1, t)
        assert e.value.status == 429 and e.value.headers == {"Retry-After": "10"}
    limits.charge("other", 1, t)
    with pytest.raises(Refusal):
        limits.charge("ip", 1, t)
    with pytest.raises(Refusal) as e:
        limits.charge("ip", 1, t + 60 * s)
    assert e.value.status == 418 and int(e.value.headers["Retry-After"]) == 60
    limits.charge("ip", 1, t + 121 * s)


def test_order_windows_give_back_what_is_filled():
    limits = Limits("spot", orders=((3, 10),))
    for _ in range(3):
        limits.count_order("a", T0)
    with pytest.raises(Refusal, match="-1015"):
        limits.count_order("a", T0)
    limits.give_back("a", T0)
    limits.count_order("a", T0)
    with pytest.raises(Refusal):
        limits.count_order("a", T0)
    limits.count_order("a", T0 + 10 * 10**9)


# --- over the wire


class Client:
    "A small client that signs, and lets the tests see everything."

    def __init__(self, v, session, who="alice"):
        self.v, self.c, self.ids = v, session, 0
        self.key, self.secret = v.key_of(who, "hmac")
        self.key2, pem = v.key_of(who)
        self.private = serialization.load_pem_private_key(pem.encode(), None)
        self.root = "/api/v3/" if v.exchange.market == "spot" else "/fapi/v1/"

    def now(self):
        return (self.v.clock.now_ns() + self.v.exchange.skew_ns) // 1_000_000

    async def call(self, method, path, *, sign="hmac", timeout=5.0, body=False, tamper="", **p):
        headers = {"X-MBX-APIKEY": self.key if sign != "ed" else self.key2}
        if sign:
            p.setdefault("timestamp", self.now())
        text = urlencode(p)
        if sign == "hmac":
            text += "&signature=" + hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        if sign == "ed":
            text += "&" + urlencode({"signature": base64.b64encode(self.private.sign(text.encode())).decode()})
        text += tamper
        url = self.v.url + (path if path.startswith("/") else self.root + path)
        kw = {"data": text} if body else {}
        async with self.c.request(method, url if body or not text else url + "?" + text, headers=headers | ({"Content-Type": "application/x-www-form-urlencoded"} if body else {}),
                                  timeout=aiohttp.ClientTimeout(timeout), **kw) as r:
            self.headers = r.headers
            return r.status, json.loads(await r.text()) if "json" in r.content_type else await r.text()

    async def order(self, side, price, qty, cid, type="LIMIT", **more):
        return await self.call("POST", "order", **{k: v for k, v in (order(side, price, qty, cid, type) | more).items() if v != ""})

    async def stream(self, path):
        return await self.c.ws_connect(self.v.url + path, autoping=True)

    async def user(self):
        if self.v.exchange.market == "usdm":
            key = (await self.call("POST", "listenKey", sign=""))[1]["listenKey"]
            return await self.stream(f"/private/ws/{key}")
        ws = await self.stream("/ws-api/v3")
        assert (await self.api(ws, "userDataStream.subscribe.signature", sign=True))["result"] == {"subscriptionId": 0}
        return ws

    async def api(self, ws, method, sign=False, **p):
        self.ids += 1
        if sign:
            p |= {"apiKey": self.key2, "timestamp": self.now()}
            p["signature"] = base64.b64encode(self.private.sign("&".join(f"{k}={p[k]}" for k in sorted(p)).encode())).decode()
        await ws.send_json({"id": self.ids, "method": method, "params": p})
        while True:
            m = await ws.receive_json(timeout=5)
            if m.get("id") == self.ids:
                return m


async def heard(ws, timeout=0.3):
    "What is waiting on a socket, until two looks in a row find nothing."
    out, quiet = [], 0
    while True:
        try:
            m = await ws.receive(timeout=timeout if not out else 0.05)
        except TimeoutError:
            quiet += 1
            if quiet == 2:
                return out
            continue
        quiet = 0
        if m.type is not aiohttp.WSMsgType.TEXT:
            out.append(m.type.name)
            return out
        out.append(json.loads(m.data) if m.data.strip().endswith(("}", "]")) and "NaN" not in m.data[:0] else m.data)


def story(fn, market="spot", **more):
    async def main():
        v = contract_venue(market) if not more else SimulatedVenue(market=market, **more)
        async with v, aiohttp.ClientSession() as session:
            await asyncio.wait_for(fn(v, Client(v, session)), 30)
    asyncio.run(main())


def test_who_asks_is_checked():
    async def go(v, c):
        assert (await c.call("GET", "account"))[0] == 200 and (await c.call("GET", "account", sign="ed"))[0] == 200
        assert (await c.call("POST", "order", body=True, **order(1, "0.99", 1, "b")))[0] == 200, "a body is signed as well"
        wrong = {"no signature": (await c.call("GET", "account", sign="", timestamp=c.now()))[1]["code"], "tampered": (await c.call("GET", "account", tamper="&recvWindow=9"))[1]["code"]}
        assert wrong == {"no signature": -1102, "tampered": -1022}
        c.key, key = "unknown", c.key
        assert (await c.call("GET", "account"))[1]["code"] == -2015
        c.key = ""
        assert (await c.call("GET", "account"))[1]["code"] == -2014
        c.key = key
        assert (await c.call("GET", "account", timestamp=c.now() + 1000))[1] == {"code": -1021, "msg": "Timestamp for this request was 1000ms ahead of the server's time."}
        assert (await c.call("GET", "account", timestamp=c.now() + 999))[0] == 200
        assert (await c.call("GET", "account", timestamp=c.now() - 5000))[0] == 200 and (await c.call("GET", "account", timestamp=c.now() - 5001))[1]["code"] == -1021
        assert (await c.call("GET", "account", timestamp=c.now() - 5001, recvWindow="5001.5"))[0] == 200
        assert (await c.call("GET", "account", recvWindow=60001))[1]["code"] == -1131 and (await c.call("GET", "account", timestamp="x"))[1]["code"] == -1100
        v.keys[c.key] = ApiKey("alice", c.key, c.secret, trade=False)
        assert (await c.order(1, "0.99", 1, "no"))[1]["code"] == -2015 and (await c.call("GET", "openOrders"))[0] == 200
        assert (await c.call("POST", "/api/v3/userDataStream", sign=""))[0] == 410, "the listen keys of spot are gone"
    story(go)


def test_weights_and_headers():
    async def go(v, c):
        for path, params, weight in (("ping", {}, 1), ("depth", {"symbol": "XUSDT", "limit": 5000}, 250), ("depth", {"symbol": "XUSDT", "limit": 100}, 5), ("exchangeInfo", {}, 20)):
            before = v.limits.weight("127.0.0.1")[0].used
            await c.call("GET", path, sign="", **params)
            assert int(c.headers["X-MBX-USED-WEIGHT-1M"]) - before == weight
        await c.order(1, "0.98", 1, "a")
        assert c.headers["X-MBX-ORDER-COUNT-10S"] == "1"
        v.fault("weight_limit", limit=280)
        status, _ = await c.call("GET", "openOrders")
        assert status == 429 and 1 <= int(c.headers["Retry-After"]) <= 60
        for _ in range(5):
            await c.call("GET", "openOrders")
        assert (await c.call("GET", "openOrders"))[0] == 418
        await v.advance(0.01)
        v.fault("advance", ms=121_000)
        assert (await c.call("GET", "openOrders"))[0] == 200
    story(go)


def test_every_way_an_answer_gets_lost():
    async def go(v, c):
        for i, (how, status) in enumerate((("503", 503), ("1007", 408), ("1006", 500), ("504", 504), ("garbage", 502))):
            for executed in (True, False):
                v.fault("request", op="place", how=how, executed=executed)
                name = f"n{i}{executed}"
                assert (await c.order(1, "0.98", 1, name))[0] == status
                assert (await c.call("GET", "order", symbol="XUSDT", origClientOrderId=name))[0] == (200 if executed else 400)
        for how in ("reset", "hang"):
            v.fault("request", op="place", how=how)
            with pytest.raises((aiohttp.ClientError, TimeoutError)):
                await c.call("POST", "order", timeout=1.0, **order(1, "0.98", 1, how))
            assert v.exchange.accounts["alice"].by_client[how].live, "it was executed"
        v.fault("request", op="cancel", how="503-failed")
        assert (await c.call("DELETE", "order", symbol="XUSDT", origClientOrderId="hang"))[0] == 503 and v.exchange.accounts["alice"].by_client["hang"].live
        v.fault("request", op="place", how="refuse", code=-2010, words="Account has insufficient balance for requested action.")
        assert (await c.order(1, "0.98", 1, "r"))[1]["code"] == -2010
        v.fault("request", op="place", how="503", late_ms=3000)
        assert (await c.order(1, "0.98", 1, "late"))[0] == 503
        assert (await c.call("GET", "order", symbol="XUSDT", origClientOrderId="late"))[1]["code"] == -2013
        await v.advance(3.1)
        assert (await c.call("GET", "order", symbol="XUSDT", origClientOrderId="late"))[1]["status"] == "NEW", "it came after all"
    story(go)


def test_the_fill_can_come_before_the_answer():
    async def go(v, c):
        ws = await c.user()
        v.fault("request", op="place", how="slow", delay_ms=200)
        sent = asyncio.ensure_future(c.order(1, "1.01", 2, "early"))
        words = []
        while "TRADE" not in words:
            words.append(word_of((await ws.receive_json(timeout=2))["event"]))
        assert not sent.done()
        await v.advance(0.25)
        assert (await sent)[1]["status"] == "FILLED"
    story(go)


def test_a_cancels_event_has_the_orders_id_in_C():
    async def go(v, c):
        ws = await c.user()
        await c.order(1, "0.98", 1, "mine")
        await c.call("DELETE", "order", symbol="XUSDT", origClientOrderId="mine", newClientOrderId="the-cancel")
        events = [m["event"] for m in await heard(ws) if m["event"]["e"] == "executionReport"]
        assert [(e["x"], e["c"], e["C"]) for e in events] == [("NEW", "mine", ""), ("CANCELED", "the-cancel", "mine")]
    story(go)


def test_cancel_replace_in_all_its_endings():
    async def go(v, c):
        async def replace(old, new, price="0.98", mode="STOP_ON_FAILURE", **more):
            s, b = await c.call("POST", "order/cancelReplace", **order(1, price, 1, new), cancelOrigClientOrderId=old, cancelReplaceMode=mode, **more)
            d = b.get("data", b)
            return s, b.get("code"), d["cancelResult"], d["newOrderResult"]
        await c.order(1, "0.98", 1, "a")
        assert await replace("a", "b") == (200, None, "SUCCESS", "SUCCESS")
        assert await replace("a", "c") == (400, -2022, "FAILURE", "NOT_ATTEMPTED")
        assert await replace("a", "c", mode="ALLOW_FAILURE") == (409, -2021, "FAILURE", "SUCCESS")
        assert await replace("b", "d", price="-1") == (409, -2021, "SUCCESS", "FAILURE")
        assert await replace("b", "d", price="-1", mode="ALLOW_FAILURE") == (400, -2022, "FAILURE", "FAILURE")
        await c.order(1, "1.00", 4, "part")
        v.fault("trade", side=-1, tick=100, lots=1)
        assert (await replace("part", "e", cancelRestrictions="ONLY_NEW"))[:3] == (400, -2022, "FAILURE"), "partly filled: the cancel fails"
        assert v.exchange.accounts["alice"].by_client["part"].live
    story(go)


def book_after(snapshot, events, market):
    "A local book by the documented rule (makerlab.data.crypto.sync_rule)."
    sides = {n: dict(snapshot[n]) for n in ("bids", "asks")}
    at, fresh, words = snapshot["lastUpdateId"], True, []
    for e in events:
        word = sync_rule(market, book_id=at, first=e["U"], final=e["u"], previous=e.get("pu", -1), fresh=fresh)
        words.append(word)
        if word == "apply":
            at, fresh = e["u"], False
            for name, key in (("bids", "b"), ("asks", "a")):
                for p, q in e[key]:
                    sides[name][p] = q
                    if float(q) == 0:
                        del sides[name][p]
    return at, sides, words


@pytest.mark.parametrize("market, path", [("spot", "/ws/btcusdt@depth@100ms"), ("usdm", "/public/ws/btcusdt@depth@100ms")])
def test_differences_rebuild_the_book(market, path):
    async def go(v, c):
        ws = await c.stream(path)
        await v.advance(1.03)
        snapshot = (await c.call("GET", "depth", sign="", symbol="BTCUSDT", limit=1000))[1]
        await v.advance(5.97)
        events = await heard(ws)
        at, sides, words = book_after(snapshot, events, market)
        assert "gap" not in words and words.count("apply") > 30
        true = v.snapshot("BTCUSDT", 5000)
        assert at == true["lastUpdateId"] == events[-1]["u"]
        for name in ("bids", "asks"):
            inner = true[name][:200]
            assert dict(inner) == {p: sides[name][p] for p, _ in inner}
        if market == "usdm":
            assert all(b["pu"] == a["u"] for a, b in zip(events, events[1:])) and all(b["U"] > a["u"] + 1 for a, b in zip(events, events[1:])), "the spot rule would see gaps"
            assert "gap" in book_after(snapshot, [{k: x for k, x in e.items() if k != "pu"} for e in events], "spot")[2]
    story(go, market, clock=VenueClock(manual=True, start_ns=T0), seed=4)


@pytest.mark.parametrize("fault, seen", [("drop", "gap"), ("duplicate", "stale"), ("reorder", "gap")])
def test_streams_can_lie(fault, seen):
    async def go(v, c):
        ws = await c.stream("/ws/btcusdt@depth@100ms")
        snapshot = v.snapshot("BTCUSDT", 1000)
        await v.advance(0.5)
        f = v.fault(fault, stream="*@depth@100ms")
        await v.advance(1.0)
        events = await heard(ws)
        assert seen in book_after(snapshot, events, "spot")[2] and f.hits == 1
    story(go, clock=VenueClock(manual=True), seed=4)


def test_a_stream_goes_silent_and_another_does_not():
    async def go(v, c):
        ws = await c.stream("/stream?streams=btcusdt@depth@100ms/btcusdt@bookTicker")
        v.fault("mute", stream="*@depth*")
        await v.advance(2.0)
        assert {m["stream"] for m in await heard(ws)} == {"btcusdt@bookTicker"}
        v.clear("mute")
        await v.advance(1.0)
        assert "btcusdt@depth@100ms" in {m["stream"] for m in await heard(ws)}
    story(go, clock=VenueClock(manual=True), seed=4)


def test_wrong_routes_accept_and_never_send():
    async def go(v, c):
        for path in ("/market/ws", "/ws", "/public/ws"):
            ws = await c.stream(path)
            await ws.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@depth@100ms"], "id": 1})
            assert await ws.receive_json(timeout=2) == {"result": None, "id": 1}
            await v.advance(1.0)
            assert bool(await heard(ws)) == (path == "/public/ws")
    story(go, "usdm", clock=VenueClock(manual=True), seed=4)


def test_sockets_break_in_every_way():
    async def go(v, c):
        a, b, d = await c.stream("/ws/xusdt@bookTicker"), await c.user(), await c.stream("/stream?streams=xusdt@trade")
        v.fault("shutdown", grace_s=0.5)
        assert (await heard(a))[0]["e"] == "serverShutdown" and (await heard(d))[0]["stream"] == "!serverShutdown" and (await heard(b))[0]["event"]["e"] == "serverShutdown"
        await v.advance(0.6)
        for ws in (a, b, d):
            assert (await heard(ws))[-1] in ("CLOSED", "ERROR", "CLOSE", "CLOSING")
        torn, whole = await c.stream("/ws/xusdt@trade"), await c.user()
        v.fault("cut", kind="market", torn=True)
        assert (await heard(torn))[-1] in ("CLOSED", "ERROR", "CLOSE", "CLOSING")
        assert (await c.api(whole, "ping"))["status"] == 200, "only market sockets were cut"
        v.fault("terminate_user_stream")
        assert (await heard(whole))[-1]["event"]["e"] == "eventStreamTerminated"
        black = await c.c.ws_connect(v.url + "/ws/xusdt@bookTicker", heartbeat=0.1)
        v.fault("blackhole", kind="market")
        await c.order(1, "1.00", 1, "top")
        assert (await heard(black, 1.0))[-1] in ("CLOSED", "ERROR", "CLOSE", "CLOSING"), "only a ping finds it out"
        v.fault("blackhole", on=False)
        v.max_age_s = 10.0
        old = await c.stream("/ws/xusdt@trade")
        v.fault("advance", ms=11_000)
        assert (await heard(old))[-1] in ("CLOSED", "ERROR", "CLOSE", "CLOSING")
    story(go)


def test_five_messages_a_second_and_no_more():
    async def go(v, c):
        ws = await c.stream("/ws")
        for i in range(6):
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": i})
        got = await heard(ws)
        assert [m["id"] for m in got[:-1]] == list(range(5)) and isinstance(got[-1], str)
        ws = await c.stream("/ws")
        await ws.send_str("{nonsense")
        assert (await ws.receive_json(timeout=1))["error"]["code"] == 3
    story(go)


@pytest.mark.parametrize("what", ["nan", "infinite", "negative", "zero", "huge", "long", "offgrid", "crossed", "json", "utf8", "missing"])
def test_messages_that_nobody_should_believe(what):
    async def go(v, c):
        ws = await c.stream("/ws/xusdt@depth@100ms")
        v.fault("corrupt", stream="*@depth*", what=what)
        await c.order(1, "1.00", 1, "o")
        await v.advance(0.2)
        m = await ws.receive(timeout=2)
        if what == "utf8":
            assert m.type is aiohttp.WSMsgType.ERROR or "xusdt" not in str(m.data)
        elif what == "json":
            with pytest.raises(json.JSONDecodeError):
                json.loads(m.data)
        else:
            assert json.loads(m.data) != {} and (what == "missing") == ("u" not in json.loads(m.data))
    story(go)


def test_snapshots_can_be_old():
    async def go(v, c):
        v.fault("stale_snapshot", n=2)
        await c.order(1, "1.00", 1, "o")
        ids = [(await c.call("GET", "depth", sign="", symbol="XUSDT"))[1]["lastUpdateId"] for _ in range(3)]
        assert ids[0] == ids[1] < ids[2]
    story(go)


def test_clocks_symbols_permissions():
    async def go(v, c):
        v.fault("skew", ms=2500)
        server = (await c.call("GET", "time", sign=""))[1]["serverTime"]
        assert server - v.clock.now_ns() // 10**6 == 2500
        assert (await c.call("GET", "account", timestamp=v.clock.now_ns() // 10**6 - 3000))[1]["code"] == -1021
        v.fault("symbol_status", status="CANCEL_ONLY")
        assert (await c.call("GET", "exchangeInfo", sign=""))[1]["symbols"][0]["status"] == "CANCEL_ONLY"
        assert (await c.order(1, "0.98", 1, "o"))[1]["code"] == -2010
        v.fault("symbol_status", status="TRADING")
        v.fault("filters", changes={"tick": "0.02"})
        assert (await c.order(1, "0.97", 1, "o"))[1]["msg"] == "Filter failure: PRICE_FILTER" and (await c.order(1, "0.98", 1, "o"))[0] == 200
        v.fault("permissions", account="alice")
        assert (await c.order(1, "0.98", 1, "p"))[1]["code"] == -2010 and not (await c.call("GET", "account"))[1]["canTrade"]
        v.fault("order_limit", limit=1, seconds=10)
        v.fault("permissions", account="alice", trade=True)
        await c.order(1, "0.96", 1, "q")
        assert (await c.order(1, "0.96", 1, "r"))[:1] == (429,)
    story(go)


def test_futures_user_stream_lives_an_hour():
    async def go(v, c):
        ws = await c.user()
        await c.order(1, "0.98", 1, "a", timeInForce="GTX")
        assert [m["e"] for m in await heard(ws)] == ["ORDER_TRADE_UPDATE"]
        v.fault("advance", ms=1_800_000)
        await c.call("PUT", "listenKey", sign="")
        v.fault("advance", ms=1_900_000)
        await c.order(1, "0.97", 1, "b")
        assert [m["e"] for m in await heard(ws)] == ["ORDER_TRADE_UPDATE"]
        v.fault("advance", ms=3_700_000)
        assert (await heard(ws))[-1]["e"] == "listenKeyExpired"
        assert (await c.call("PUT", "listenKey", sign=""))[1]["code"] == -1125
        await c.order(1, "0.96", 1, "c")
        assert not await heard(ws, 0.05)
    story(go, "usdm")


def test_the_dead_mans_switch():
    async def go(v, c):
        await c.order(1, "0.98", 1, "a")
        await c.call("POST", "countdownCancelAll", symbol="XUSDT", countdownTime=1000)
        await v.advance(0.8)
        await c.call("POST", "countdownCancelAll", symbol="XUSDT", countdownTime=1000)
        await v.advance(0.8)
        assert v.exchange.truth_orders("alice")
        await v.advance(0.4)
        assert not v.exchange.truth_orders("alice")
        await c.order(1, "0.98", 1, "b")
        await c.call("POST", "countdownCancelAll", symbol="XUSDT", countdownTime=0)
        await v.advance(2.0)
        assert v.exchange.truth_orders("alice")
    story(go, "usdm")


def test_the_websocket_api():
    async def go(v, c):
        ws = await c.stream("/ws-api/v3")
        assert (await c.api(ws, "order.status", sign=False, symbol="XUSDT"))["error"]["code"] == -2014
        assert (await c.api(ws, "session.logon", sign=True))["result"]["apiKey"] == c.key2
        assert (await c.api(ws, "userDataStream.subscribe"))["result"] == {"subscriptionId": 0}
        assert (await c.api(ws, "userDataStream.subscribe"))["error"]["code"] == -2035
        made = await c.api(ws, "order.place", timestamp=c.now(), **order(1, "0.98", 1, "w"))
        assert made["status"] == 200 and made["result"]["clientOrderId"] == "w" and {r["rateLimitType"] for r in made["rateLimits"]} == {"REQUEST_WEIGHT", "ORDERS"}
        bad = await c.api(ws, "order.cancelReplace", timestamp=c.now(), cancelReplaceMode="ALLOW_FAILURE", cancelOrigClientOrderId="zz", **order(1, "0.97", 1, "w2"))
        assert bad["status"] == 409 and bad["error"]["data"]["newOrderResult"] == "SUCCESS"
        assert (await c.api(ws, "userDataStream.start", sign=True))["status"] == 404
        assert (await c.api(ws, "no.such"))["status"] == 400
        v.fault("request", op="cancel", how="hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(c.api(ws, "order.cancel", timestamp=c.now(), symbol="XUSDT", origClientOrderId="w"), 1.0)
        assert not v.exchange.accounts["alice"].by_client["w"].live
    story(go)


def test_the_fault_port_needs_its_token():
    async def go(v, c):
        async def ctl(method, what, token=None, **body):
            async with c.c.request(method, f"{v.url}/_ctl/{what}", headers={} if token is None else {"X-Control-Token": token}, json=body or None) as r:
                return r.status, await r.json()
        assert (await ctl("POST", "fault", name="ban"))[0] == 403 and (await ctl("GET", "truth", "guess"))[0] == 403
        assert (await ctl("POST", "fault", v.token, name="trade", side=1, tick=101, lots=2))[0] == 200
        for bad in (dict(name="nothing"), dict(name="drop", colour="red"), dict(name="request", how="twice"), dict(name="trade", symbol="NOPE")):
            assert (await ctl("POST", "fault", v.token, **bad))[0] == 400
        state = (await ctl("GET", "state", v.token))[1]
        assert state["accounts"]["alice"] == {"orders": [], "position": {}, "cash": 0.0}
        assert (await ctl("GET", "truth", v.token))[1][0]["kind"] == "fault"
        assert (await ctl("GET", "elsewhere", v.token))[0] == 404 and (await ctl("POST", "clear", v.token))[0] == 200
    story(go)


def test_a_fault_must_exist():
    v = contract_venue()
    with pytest.raises(ParameterError, match="name"):
        v.fault("earthquake")
    with pytest.raises(ParameterError, match="no argument"):
        v.fault("drop", speed=3)
    assert set(FAULTS) >= {"drop", "duplicate", "reorder", "delay", "mute", "corrupt", "request", "cut", "blackhole", "shutdown", "stale_snapshot", "freeze", "advance", "skew"}


@pytest.mark.parametrize("name, args, word", [
    ("corrupt", dict(what="colour"), "what"), ("delay", dict(ms="x"), "ms"), ("delay", dict(ms=float("nan")), "ms"), ("delay", dict(ms=True), "ms"), ("drop", dict(n="3"), "n"),
    ("drop", dict(n=1.5), "n"), ("drop", dict(stream=7), "stream"), ("cut", dict(kind="colour"), "kind"), ("cut", dict(torn="yes"), "torn"), ("freeze", dict(on=1), "on"),
    ("request", dict(executed="no"), "executed"), ("ban", dict(seconds=None), "seconds"), ("permissions", dict(), "account"), ("expire_listen_key", dict(account="nobody"), "account"),
    ("filters", dict(changes=["tick"]), "changes"), ("trade", dict(tick="5"), "tick"), ("trade", dict(side=0), "side"), ("advance", dict(ms=-50), "ms"), ("order_limit", dict(limit=-1.5), "limit")])
def test_a_fault_with_a_wrong_value_is_refused_and_time_goes_on(name, args, word):
    v = contract_venue()
    before = v.clock.now_ns()
    with pytest.raises(ParameterError, match=word):
        v.fault(name, **args)
    v.step()
    assert not v.faults and v.clock.now_ns() == before


def test_a_venue_whose_time_stops_says_so():
    async def go(v, c):
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))

        def bad():
            raise ValueError("a mistake in the agenda")
        v.later(v.clock.now_ns(), bad)
        while not v._pulse.done():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)
        assert "a mistake in the agenda" in v.failure and v.state()["failure"] == v.failure and [str(e) for e in told] == ["a mistake in the agenda"]
    story(go)


def test_requests_that_nobody_should_send_are_refused():
    "A client reads 5xx as unknown, and silence as worse."
    async def go(v, c):
        stamp = c.now()
        assert (await c.call("GET", f"/api/v3/account?timestamp={stamp}&signature=%C3%A9", sign=""))[1]["code"] == -1022
        assert (await c.call("GET", "account", sign="", body=True, tamper=f"timestamp={stamp}&signature=%FF"))[1]["code"] == -1022
        for bad in ("x", "5", "[[1]]", "[1]", "null", '{"a":1}', '["\\ud800"]'):
            s, b = await c.call("GET", "exchangeInfo", sign="", symbols=bad)
            assert (s, b["code"]) == (400, -1100), bad
        assert (await c.call("GET", "exchangeInfo", sign="", symbols='["NOPE"]'))[1]["code"] == -1121
        for name in ("orderId", "startTime"):
            assert (await c.call("GET", "myTrades", symbol="XUSDT", **{name: "9" * 5000}))[1]["code"] == -1100
        assert (await c.order(1, "9" * 5000, 1, "long"))[0] == 400
        async with c.c.post(f"{v.url}/api/v3/order", data=b"\xff\xfe", headers={"Content-Type": "text/plain; charset=nonsense", "X-MBX-APIKEY": c.key}) as r:
            assert r.status == 400
        for headers, path, status in (({"X-Control-Token": "\u00e9"}, "state", 403), ({"X-Control-Token": v.token}, "truth?since=" + "9" * 5000, 200)):
            async with c.c.get(f"{v.url}/_ctl/{path}", headers=headers) as r:
                assert r.status == status
        ws = await c.stream("/ws-api/v3")
        for i, m in enumerate([{"method": "account.status", "params": {"apiKey": c.key, "timestamp": c.now(), "signature": "\u00e9"}}, {"method": 5}, {"method": ["a"], "params": [1]},
                               {"method": "exchangeInfo", "params": {"symbols": 5}}, {"method": "depth", "params": {"symbol": {"a": 1}}}]):
            await ws.send_json({"id": i} | m)
            got = await ws.receive_json(timeout=5)
            assert got["id"] == i and got["status"] == 400, got
        await ws.send_str("[]")
        assert (await ws.receive_json(timeout=5))["status"] == 400
    story(go)


def test_a_mistake_of_the_venue_is_an_answer():
    async def go(v, c):
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))

        def bad(*a):
            raise RuntimeError("a mistake of ours")
        v.exchange.find = bad
        ws = await c.stream("/ws-api/v3")
        got = await c.api(ws, "order.status", sign=True, symbol="XUSDT", orderId=1)
        assert got["status"] == 500 and got["error"]["code"] == -1000 and got["rateLimits"]
        assert [str(e) for e in told] == ["a mistake of ours"] and "a mistake of ours" in v.failure
    story(go)


def test_only_an_ed25519_key_logs_on():
    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()

    async def go(v, c):
        v.keys["rsa"] = ApiKey("alice", "rsa", public)
        ws = await c.stream("/ws-api/v3")
        p = {"apiKey": "rsa", "timestamp": c.now()}
        p["signature"] = base64.b64encode(private.sign("&".join(f"{k}={p[k]}" for k in sorted(p)).encode(), padding.PKCS1v15(), hashes.SHA256())).decode()
        assert (await c.api(ws, "account.status", **p))["status"] == 200, "a signed request may be RSA's"
        assert (await c.api(ws, "session.logon", **p))["error"]["code"] == -4056
    story(go)


def test_the_control_token_comes_from_the_systems_random_numbers(monkeypatch):
    asked = []

    def token_hex(n):
        asked.append(n)
        return "ab" * n
    monkeypatch.setattr("secrets.token_hex", token_hex)
    v = contract_venue()
    assert asked and min(asked) >= 12 and v.token == "ab" * asked[-1]
    assert contract_venue().key_of("alice") == contract_venue().key_of("alice"), "the practice key stays as it is"


def test_finished_orders_are_not_walked_over_again():
    x, a, _ = floor()
    for i in range(300):
        o = x.place(a, order(1, "0.98", 1, f"o{i}"))
        x.cancel(a, {"symbol": "XUSDT", "origClientOrderId": f"o{i}"})
    keep = x.place(a, order(1, "0.97", 2, "keep"))
    assert a.open_orders() == [keep] == a.open_orders("XUSDT") and not a.open_orders("Y") and len(a.orders) == 301
    looked = []

    class Watched(dict):
        def values(self):
            looked.append("values")
            return super().values()

        def items(self):
            looked.append("items")
            return super().items()
    a.orders = Watched(a.orders)
    assert a.open_orders() == [keep] and not looked, "only what rests is looked at"
    x.cancel(a, {"symbol": "XUSDT", "origClientOrderId": "keep"})
    assert a.open_orders() == [] and o.status == "CANCELED"


def test_another_client_of_the_same_account():
    "Row 21 of the fault matrix: an order that the bot did not send."
    async def go(v, c):
        ws = await c.user()
        stranger = Client(v, c.c)
        await stranger.order(-1, "1.05", 2, "by-hand")
        assert [m["event"]["c"] for m in await heard(ws) if m["event"]["e"] == "executionReport"] == ["by-hand"]
        bob = Client(v, c.c, "bob")
        assert (await bob.call("GET", "order", symbol="XUSDT", origClientOrderId="by-hand"))[1]["code"] == -2013, "it is not bob's"
    story(go)
