"""Binance, word for word: what each answer of a scripted server makes the gateway say and do.

The coroutines row_... are run once more by test_binance_guards.py, each with its guard switched off."""
import asyncio
import logging
import math
import traceback
import warnings
from dataclasses import replace
from decimal import Decimal

import pytest
from aiohttp import web
from binance_stub import QUICK, Stub, X, session, symbol_row, until

from makerlab.core import ParameterError
from makerlab.execution.venue import CancelOrder, ModifyOrder, NewOrder, QueryOrder
from makerlab.live.binance import CALLS, Baseline, BinanceVenue, Brake, FullBudget, Settings, VenueError
from makerlab.live.metrics import Metrics
from makerlab.live.protocol import HmacSigner, Hosts, Keys, RateLimit

BOTH = pytest.mark.parametrize("market", ["spot", "usdm"])
TICK, LOTS = {"spot": 10_000, "usdm": 1_000}, {"spot": 1_000, "usdm": 10}


def order(market, name="a", side=1, kind="post-only", **more):
    return NewOrder(name, "BTCUSDT", side, TICK[market], LOTS[market], kind, **more)


async def one(market, answer, request="submit", *, path=("POST", "order"), settings=QUICK):
    "The reports that one answer to a new order makes."
    async with session(market, settings=settings) as (s, v, said):
        s.script[path].append(answer)
        await v.submit(order(market))
        await v.drain()
        await until(lambda: said)
        return [(r.kind, r.definitive, r.reason) for r in said], v, s


ANSWERS = [
    ((400, {"code": -1013, "msg": "Filter failure: LOT_SIZE"}), "rejected", True), ((400, {"code": -1111, "msg": "Precision"}), "rejected", True),
    ((400, {"code": -2010, "msg": "Order would immediately match and take."}), "rejected", True),
    ((400, {"code": -2010, "msg": "Account has insufficient balance for requested action."}), "rejected", True),
    ((400, {"code": -2010, "msg": "Duplicate order sent."}), "rejected", False), ((400, {"code": -4116, "msg": "ClientOrderId is duplicated."}), "rejected", False),
    ((400, {"code": -5022, "msg": "GTX"}), "rejected", True), ((400, {"code": -2022, "msg": "ReduceOnly Order is rejected."}), "rejected", True),
    ((401, {"code": -2015, "msg": "Invalid API-key"}), "rejected", True), ((400, {"code": -1022, "msg": "Signature"}), "rejected", True),
    ((429, {"code": -1003, "msg": "Too many"}, {"Retry-After": "7"}), "rejected", True), ((429, {"code": -1015, "msg": "Too many new orders"}), "rejected", True),
    ((418, {"code": -1003, "msg": "banned until 9999999999999"}, {"Retry-After": "120"}), "rejected", True),
    ((503, {"code": -1007, "msg": "Timeout"}), "unknown", False), ((500, {"code": -1006, "msg": "Unexpected"}), "unknown", False),
    ((503, {"code": -1000, "msg": "Unknown error, please check your request or try again later."}), "unknown", False),
    ((503, {"code": -1000, "msg": "Service Unavailable."}), "rejected", True), ((503, {"code": -1008, "msg": "Overloaded"}), "rejected", True),
    ((200, []), "unknown", False), ((200, {"orderId": 1}), "unknown", False), ((200, {"orderId": 1, "price": "x", "origQty": "1", "executedQty": "NaN"}), "unknown", False),
    ((500, {"code": "what"}), "unknown", False), ("garbage", "unknown", False), ("reset", "unknown", False), ("hang", "unknown", False)]


def test_twelve_of_twentyfive_answers_prove_nothing():
    assert (len(ANSWERS), sum(not proof for _, _, proof in ANSWERS)) == (25, 12), "page 93 says so"


@pytest.mark.parametrize("answer,kind,proof", ANSWERS, ids=lambda x: str(x)[:50])
def test_answers_to_a_new_order(answer, kind, proof):
    said, _, _ = asyncio.run(one("usdm" if "-4116" in str(answer) or "-5022" in str(answer) else "spot", answer))
    assert [x[:2] for x in said] == [(kind, proof)] and said[0][2]


async def row_keys():
    async with session() as (s, v, said):
        s.script["POST", "order"].append((401, {"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}))
        await v.submit(order("spot"))
        await until(lambda: said)
        n = len(s.asked)
        await v.submit(order("spot", "b"))
        await v.query(QueryOrder("a"))
        await until(lambda: len(said) > 1)
        assert "halted" in said[1].reason and said[1].definitive and len(s.asked) == n, "never tried again"
        with pytest.raises(VenueError, match="halted"):
            await v.positions()
        await v.cancel(CancelOrder("a"))
        await v.drain()
        assert s.paths()[-1][0] == "DELETE", "a cancel may always be tried"


def test_wrong_keys_halt():
    asyncio.run(row_keys())


async def row_clock():
    async with session(settings=replace(QUICK, clock_s=2.0)) as (s, v, said):
        s.skew_ms = 3000
        s.script["POST", "order"].append((400, {"code": -1021, "msg": "Timestamp for this request was 1000ms ahead of the server's time."}))
        await v.submit(order("spot"))
        await v.drain()
        assert [r.kind for r in said] == ["accepted"] or not said
        posts = [q for m, q in s.paths() if m == "POST"]
        assert len(posts) == 2 and abs(int(posts[1]["timestamp"]) - int(posts[0]["timestamp"]) - 3000) < 1500 and posts[0]["signature"] != posts[1]["signature"]
        for _ in range(6):
            s.script["POST", "order"].append((400, {"code": -1021, "msg": "Timestamp"}))
        await v.submit(order("spot", "b"))
        await v.submit(order("spot", "c", -1))
        await v.drain()
        n = len(s.paths())
        await v.submit(order("spot", "d"))
        await v.drain()
        await until(lambda: len(said) == 4)
        assert len(s.paths()) == n and "clock" in said[-1].reason, "three in a row and nothing new is sent"
        s.script["POST", "order"].clear()
        await until(lambda: v.strikes < 3, 10.0)
        await v.submit(order("spot", "e"))
        await v.drain()
        await until(lambda: len(said) == 5)
        assert said[-1].kind == "accepted" and v.strikes == 0, "the clock was read again meanwhile, so one may try"


def test_the_clock_is_asked_once_and_the_order_sent_once_more():
    asyncio.run(row_clock())


@BOTH
def test_what_is_sent(market):
    async def go():
        async with session(market) as (s, v, said):
            kinds = ("post-only", "limit", "ioc", "fok", "market")
            for k in kinds:
                await v.submit(order(market, k, kind=k, reduce_only=k == "ioc"))
            await v.drain()
            sent = {q["newClientOrderId"]: q for _, q in s.paths()}
            spot = market == "spot"
            assert [(sent[k]["type"], sent[k].get("timeInForce"), sent[k].get("price")) for k in kinds] == [
                ("LIMIT_MAKER" if spot else "LIMIT", None if spot else "GTX", "100.00" if spot else "100.0"), ("LIMIT", "GTC", "100.00" if spot else "100.0"),
                ("LIMIT", "IOC", "100.00" if spot else "100.0"), ("LIMIT", "FOK", "100.00" if spot else "100.0"), ("MARKET", None, None)]
            assert {q["quantity"] for q in sent.values()} == {"0.01000" if spot else "0.010"} and {q["selfTradePreventionMode"] for q in sent.values()} == {"EXPIRE_MAKER"}
            assert [k for k in kinds if "reduceOnly" in sent[k]] == ([] if spot else ["ioc"])
    asyncio.run(go())


async def row_name():
    async with session() as (s, v, said):
        s.script["POST", "order"].append("reset")
        for _ in range(3):
            await v.submit(order("spot"))
            await v.drain()
        await until(lambda: len(said) == 3)
        assert len(s.paths()) == 1 and [r.kind for r in said] == ["unknown", "rejected", "rejected"] and not any(r.definitive for r in said)


def test_an_order_name_is_sent_once_whatever_happens():
    asyncio.run(row_name())


def test_an_answer_in_full_and_the_stream_tell_each_thing_once():
    async def go():
        async with session() as (s, v, said):
            fills = [{"price": "99.99", "qty": "0.004", "commission": "0.0004", "commissionAsset": "USDT", "tradeId": 70},
                     {"price": "100.00", "qty": "0.006", "commission": "0.0006", "commissionAsset": "USDT", "tradeId": 71}]
            s.script["POST", "order"].append(lambda q: (200, s.ack(q, "FILLED", "0.010", fills=fills)))
            await v.submit(order("spot", kind="limit"))
            await v.drain()
            await s.push(s.report("a"))
            for t, n, p in ((70, "0.004", "99.99"), (71, "0.006", "100.00")):
                await s.push(s.report("a", "TRADE", "FILLED", done="0.01", last=n, at=p, trade=t, maker=False))
            await s.push(s.report("b", order=2))
            await until(lambda: said[-1].client_id == "b")
            assert [(r.kind, r.exec_id, r.price_ticks, r.qty_lots, r.cum_lots, r.fee) for r in said[:-1]] == [
                ("accepted", "", 10_000, 1000, -1, 0.0), ("fill", "70", 9_999, 400, 400, 0.0004), ("fill", "71", 10_000, 600, 1000, 0.0006)]
    asyncio.run(go())


async def row_fees():
    async with session(fee_prices={"BNB": 600.0}) as (s, v, said):
        await s.push(s.report("a", "TRADE", "FILLED", done="0.01", last="0.01", at="100", trade=1, fee="0.00001", asset="BTC"))
        await s.push(s.report("b", "TRADE", "FILLED", done="0.01", last="0.01", at="100", trade=2, fee="0.0001", asset="BNB", order=2))
        await s.push(s.report("c", "TRADE", "FILLED", done="0.01", last="0.01", at="100", trade=3, fee="1", asset="DOGE", order=3))
        await until(lambda: len([r for r in said if r.kind == "fill"]) == 3)
        fees = [r.fee for r in said if r.kind == "fill"]
        assert fees[:2] == pytest.approx([0.001, 0.06]) and math.isnan(fees[2])
        trades = [{"symbol": "BTCUSDT", "id": 1, "orderId": 1001, "price": "100", "qty": "0.01", "commission": "0.00001", "commissionAsset": "BTC", "time": s.ms(), "isBuyer": True, "isMaker": True}]
        s.script["GET", "myTrades"].append((200, trades))
        (e,) = await v.executions()
        assert e.fee == 0.001 and e.client_id == "a"
        s.script["GET", "account"].append((200, {"balances": [{"asset": "BTC", "free": "2.50999", "locked": "0.02"}, {"asset": "USDT", "free": "99997", "locked": "0"}]}))
        snap = await v.snapshot()
        assert snap.positions == {"BTCUSDT": 3000} and snap.cash == pytest.approx(99997 - 0.001), "three hundredths were bought; the fee of one was sold for money"


def test_fees_in_base_count_as_money_and_not_as_position_too():
    asyncio.run(row_fees())


def test_a_baseline_outlives_a_session():
    async def go():
        async with session(baseline=Baseline({"BTC": Decimal("2.48")}, 5)) as (s, v, said):
            assert (await v.positions()) == {"BTCUSDT": 2000} and v.baseline.time_ns == 5
        async with session() as (s, v, said):
            assert (await v.positions()) == {"BTCUSDT": 0} and v.baseline.units["BTC"] == Decimal("2.5")
    asyncio.run(go())


def test_a_fee_is_taken_off_once_whatever_is_read_again():
    b, fee = Baseline({"BTC": Decimal(1)}, 5), (Decimal("0.001"), Decimal(100))
    for trade in (7, 3, 7, 3):
        b = b.charge("BTCUSDT", trade, "BTC", *fee)
    assert b == Baseline({"BTC": Decimal("0.998")}, 5, Decimal("0.2"), {"BTCUSDT": (3, 7)})
    b = b.charge("ETHUSDT", 7, "ETH", *fee)
    assert b.units["ETH"] == Decimal("-0.001") and b.charged == {"BTCUSDT": (3, 7), "ETHUSDT": (7,)}


def test_the_trades_whose_fee_was_taken_off_are_bounded():
    b = Baseline({}, 5).charge("ETHUSDT", 1, "ETH", Decimal(1), Decimal(1))
    for trade in range(5000):
        b = b.charge("BTCUSDT", trade, "BTC", Decimal(1), Decimal(1))
    assert b.charged == {"ETHUSDT": (1,), "BTCUSDT": tuple(range(3000, 5000))} and b.units["BTC"] == -5000
    assert b.charge("BTCUSDT", 10, "BTC", Decimal(1), Decimal(1)) is b, "older than all that are kept: its fee was taken off"
    assert b.charge("ETHUSDT", 1, "ETH", Decimal(1), Decimal(1)) is b, "another symbol's trades do not push it out"


def test_fees_in_base_are_taken_off_once_over_restarts():
    async def go():
        row = {"symbol": "BTCUSDT", "id": 1, "orderId": 1001, "price": "100", "qty": "0.01", "commission": "0.00001", "commissionAsset": "BTC", "isBuyer": True, "isMaker": True}
        async with session() as (s, v, said):
            row["time"] = s.ms()
            await s.push(s.report("a", "TRADE", "FILLED", done="0.01", last="0.01", at="100", trade=1, fee="0.00001", asset="BTC"))
            await until(lambda: said)
            kept = v.baseline
        assert kept.charged == {"BTCUSDT": (1,)} and kept.spent == Decimal("0.001")
        for _ in range(2):
            async with session(baseline=kept) as (s, v, said):
                v.names["BTCUSDT", "1001"] = "a"
                s.script["GET", "myTrades"].append((200, [row]))
                (e,) = await v.executions()
                assert e.fee == 0.001 and v.baseline == kept
                kept = v.baseline
    asyncio.run(go())


class Shut(Stub):
    "Gives a listen key and takes no connection."

    async def _socket(self, request):
        return web.Response(status=403)


async def row_listen_key():
    with pytest.raises(VenueError, match="no user stream: WSServerHandshakeError 403") as e:
        s = Shut("usdm")
        s.script["POST", "listenKey"].extend([(200, {"listenKey": "SECRET"})] * 3)
        async with session("usdm", stub=s):
            pass
    assert "SECRET" not in "".join(traceback.format_exception(e.value)), "whoever has it reads the account's stream"


def test_the_listen_key_is_in_no_words():
    asyncio.run(row_listen_key())


async def row_cancel_all(how):
    s = Stub()
    async with session(stub=s, settings=replace(QUICK, timeout_s=20.0)) as (s, v, said):
        await v.submit(order("spot"))
        await v.drain()
        if how == "banned":
            v.budget.hold("banned", v._now_ns() + 60 * 10**9)
        else:
            s.script["DELETE", "openOrders"].append("hang")
        sockets, start = len(v.http.connector._acquired), asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0 if how == "at once" else 0.2):
                await v.cancel_all()
        assert asyncio.get_running_loop().time() - start < 3.0, "patience of 7 days, bounded from outside"
        await until(lambda: not v._tasks and not v._last and len(v.http.connector._acquired) == sockets)  # nothing is left behind
        v.budget.until.clear()
        s.script["DELETE", "openOrders"].clear()
        s.script["DELETE", "openOrders"].append(lambda q: (200, [s.ack({"side": "BUY", "quantity": "0.01", "price": "100", **q}, status="CANCELED", origClientOrderId="a", clientOrderId="x")]))
        await asyncio.wait_for(v.cancel_all(), 3.0)
        await until(lambda: said[-1].kind == "cancelled")


@pytest.mark.parametrize("how", ["banned", "no answer", "at once"])
def test_a_cancel_all_can_be_given_up(how):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(row_cancel_all(how))


@pytest.mark.parametrize("c,n,legs", [
    ("SUCCESS", "SUCCESS", {"old": ["cancelled"], "new": ["accepted"]}), ("SUCCESS", "FAILURE", {"old": ["cancelled"], "new": ["rejected"]}),
    ("FAILURE", "NOT_ATTEMPTED", {"old": ["cancel-rejected"], "new": ["rejected"]}), ("FAILURE", "SUCCESS", {"old": ["cancel-rejected"], "new": ["accepted"]})])
def test_cancel_replace_by_legs(c, n, legs):
    async def go():
        async with session() as (s, v, said):
            await v.submit(order("spot", "old"))
            await v.drain()

            def answer(q):
                assert (q["cancelOrigClientOrderId"], q["newClientOrderId"], q["cancelReplaceMode"], q.get("cancelRestrictions")) == ("old", "new", "STOP_ON_FAILURE", "ONLY_NEW")
                done = s.ack({"symbol": "BTCUSDT", "side": "BUY", "quantity": "0.01", "price": "100"}, "CANCELED", origClientOrderId="old", clientOrderId="x")
                body = {"cancelResult": c, "newOrderResult": n, "cancelResponse": done if c == "SUCCESS" else {"code": -2011, "msg": "Unknown order sent."},
                        "newOrderResponse": s.ack(q) if n == "SUCCESS" else {"code": -2010, "msg": "Order would immediately match and take."} if n == "FAILURE" else None}
                ok = (c, n) == ("SUCCESS", "SUCCESS")
                return (200, body) if ok else (409 if "SUCCESS" in (c, n) else 400, {"code": -2021 if "SUCCESS" in (c, n) else -2022, "msg": "partial", "data": body})

            s.script["POST", "order/cancelReplace"].append(answer)
            await v.replace(CancelOrder("old"), order("spot", "new"), only_new=True)
            await v.drain()
            await until(lambda: len(said) == 3)
            assert {k: [r.kind for r in said[1:] if r.client_id == k] for k in ("old", "new")} == legs
            assert all(r.definitive for r in said if r.kind == "rejected") and not any(r.definitive for r in said if r.kind == "cancel-rejected")
    asyncio.run(go())


@pytest.mark.parametrize("answer", ["reset", (503, {"code": -1007, "msg": "Timeout"}), (429, {"code": -1015, "msg": "Too many new orders"}, {"Retry-After": "1"})], ids=str)
def test_cancel_replace_without_legs(answer):
    async def go():
        async with session() as (s, v, said):
            await v.submit(order("spot", "old"))
            await v.drain()
            s.script["POST", "order/cancelReplace"].append(answer)
            await v.replace(CancelOrder("old"), order("spot", "new"))
            await v.drain()
            await until(lambda: len(said) == 3)
            words = {r.client_id: r.kind for r in said[1:]}
            assert words == ({"old": "unknown", "new": "unknown"} if answer == "reset" or answer[0] == 503 else {"new": "rejected", "old": "cancelled"}), "refused whole: the old order goes all the same"
    asyncio.run(go())


async def row_list():
    async with session(settings=replace(QUICK, timeout_s=1.0, ask_s=2.0)) as (s, v, said):
        s.script["GET", "openOrders"].extend([(503, {"code": -1007, "msg": "Timeout"})] * 500)
        with pytest.raises(VenueError, match="openOrders|open"):
            await v.open_orders()
        s.script["GET", "openOrders"].clear()
        s.script["GET", "openOrders"].extend(["reset", "garbage", (200, [])])
        assert await v.open_orders() == [], "but it is asked more than once"
        s.script["GET", "openOrders"].append((200, [{"symbol": "BTCUSDT"}]))
        with pytest.raises(VenueError, match="cannot be read"):
            await v.open_orders()


def test_a_question_without_an_answer_is_no_empty_list():
    asyncio.run(row_list())


async def row_snapshot():
    async with session() as (s, v, said):
        trade = lambda i: {"symbol": "BTCUSDT", "id": i, "orderId": 5, "price": "100", "qty": "0.01", "commission": "0", "commissionAsset": "USDT", "time": s.ms(), "isBuyer": True, "isMaker": True}
        s.script["GET", "order"].append((200, {"symbol": "BTCUSDT", "orderId": 5, "clientOrderId": "old", "side": "BUY", "price": "100", "origQty": "1", "executedQty": "0.01", "status": "NEW"}))
        rows = [trade(1)]
        s.script["GET", "myTrades"].extend([(200, []), (200, rows), (200, rows)])  # it traded while the balances were read
        snap = await v.snapshot()
        assert [e.exec_id for e in snap.executions] == ["1"] and snap.executions[0].client_id == "old" and v.counts["snapshots taken again"] == 1


def test_a_snapshot_is_of_one_instant():
    asyncio.run(row_snapshot())


def test_pages_of_trades():
    async def go():
        async with session() as (s, v, said):
            v.names["BTCUSDT", "5"] = "x"
            page = lambda a, b: (200, [{"symbol": "BTCUSDT", "id": i, "orderId": 5, "price": "100", "qty": "0.01", "time": 1_700_000_000_000 + i, "isBuyer": False, "isMaker": True} for i in range(a, b)])
            s.script["GET", "myTrades"].extend([page(0, 1000), page(1000, 2000), page(2000, 2500)])
            rows = await v.executions(1_700_000_000_000_000_000 + 10**6)
            assert len(rows) == 2499 and [q.get("fromId") for _, q in s.paths("myTrades")] == [None, "1000", "2000"] and rows[0].side == -1
    asyncio.run(go())


async def row_late():
    async with session() as (s, v, said):
        await v.submit(order("spot"))
        await v.drain()
        v.orders["a"].told_ns = v._now_ns() + 10**12
        s.script["GET", "order"].append(lambda q: (200, s.ack({"symbol": "BTCUSDT", "side": "BUY", "quantity": "0.01", "price": "100"})))
        s.script["GET", "order"].append((400, {"code": -2013, "msg": "Order does not exist."}))
        await v.query(QueryOrder("a"))
        await v.query(QueryOrder("a"))
        await v.drain()
        assert not [r for r in said if r.kind == "order-status"] and v.counts["answers too late"] == 2


def test_a_late_answer_about_an_order_is_dropped():
    asyncio.run(row_late())


async def row_follow():
    async with session() as (s, v, said):
        async def slow(q):
            await asyncio.sleep(0.05)
            return 200, s.ack(q)

        s.script["POST", "order"].append(slow)
        await v.submit(order("spot"))
        await v.cancel(CancelOrder("a"))
        await v.drain()
        assert [m for m, _ in s.paths()] == ["POST", "DELETE"] and [r.kind for r in said] == ["accepted", "cancelled"]


def test_requests_of_one_order_follow_each_other():
    asyncio.run(row_follow())


def test_native_modify_on_spot_is_less_at_the_same_price():
    async def go():
        async with session() as (s, v, said):
            await v.submit(order("spot"))
            await v.drain()
            s.script["PUT", "order/amend/keepPriority"].append(lambda q: (200, {"transactTime": s.ms(), "amendedOrder": {
                "symbol": "BTCUSDT", "orderId": 1001, "price": "100.00", "qty": q["newQty"], "executedQty": "0", "status": "NEW", "clientOrderId": q["newClientOrderId"]}}))
            await v.modify(ModifyOrder("a", 10_000, 600))
            await v.modify(ModifyOrder("a", 10_001, 500))
            await v.modify(ModifyOrder("a", 10_000, 900))
            await v.drain()
            await s.push(s.report("x", "REPLACED", qty="0.006", C="a"))
            await s.push(s.report("b", order=9))
            await until(lambda: said[-1].client_id == "b")
            assert [(r.kind, r.qty_lots, r.definitive) for r in said[1:-1]] == [("replaced", 600, False), ("replace-rejected", 0, True), ("replace-rejected", 0, True)]
            assert [q["newClientOrderId"] for m, q in s.paths("order/amend/keepPriority")] == ["a"], "the name is kept"
    asyncio.run(go())


async def row_overload():
    "-1008: an overloaded venue still takes what can only make a position smaller."
    async with session("usdm") as (s, v, said):
        s.script["POST", "order"].append((503, {"code": -1008, "msg": "Server is currently overloaded with other requests."}))
        for name, reduce_only in (("a", False), ("b", False), ("c", True)):
            await v.submit(order("usdm", name, -1, reduce_only=reduce_only))
            await v.drain()
        await until(lambda: len(said) == 3)
        assert [(r.client_id, r.kind, r.definitive) for r in said] == [("a", "rejected", True), ("b", "rejected", True), ("c", "accepted", False)]
        assert "not sent: overloaded" in said[1].reason and [q["newClientOrderId"] for _, q in s.paths()] == ["a", "c"]


def test_an_overloaded_venue_is_spared_but_for_reduce_only():
    asyncio.run(row_overload())


async def row_forget():
    "What is over is forgotten when there is too much of it; what lives is not."
    async with session(settings=replace(QUICK, keep_orders=5)) as (s, v, said):
        await v.submit(order("spot", "live"))
        for i in range(20):
            await v.submit(order("spot", f"o{i}"))
            await v.cancel(CancelOrder(f"o{i}"))
            await v.drain()
        assert "live" in v.orders and "o19" in v.orders and len(v.orders) <= 6 and len(v.names) <= 6 and len(v._row) == len(v.orders)


def test_orders_that_are_over_are_forgotten():
    asyncio.run(row_forget())


async def row_once(method="PUT"):
    "The HTTP client below us would send PUT and DELETE a second time over a fresh connection when one breaks."
    async with session("usdm") as (s, v, said):
        await v.submit(order("usdm"))
        await v.drain()
        s.script[method, "order"].append("reset")
        await (v.modify(ModifyOrder("a", 1_001, 10)) if method == "PUT" else v.cancel(CancelOrder("a")))
        await v.drain()
        await until(lambda: len(said) == 2)
        assert said[-1].kind == "unknown" and [m for m, _ in s.paths()] == ["POST", method]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_nothing_is_sent_twice_by_those_below_us(method):
    asyncio.run(row_once(method))


async def row_filters():
    "What the venue's filters would refuse is refused here, and no message is spent."
    async with session() as (s, v, said):
        for i, (tick, lots) in enumerate(((0, 100), (200_000_000, 100), (10_000, 10_000_001))):
            await v.submit(NewOrder(f"o{i}", "BTCUSDT", 1, tick, lots))
        await v.submit(NewOrder("elsewhere", "ETHUSDT", 1, 10, 10))
        await v.submit(order("spot", "a name with spaces"))
        await v.drain()
        await until(lambda: len(said) == 5)
        assert [r.reason.split(":")[0] for r in said[:3]] == ["PRICE_FILTER", "PRICE_FILTER", "LOT_SIZE"]
        assert "unknown symbol" in said[3].reason and "client id" in said[4].reason and all(r.kind == "rejected" and r.definitive for r in said) and not s.paths()


def test_what_the_venue_would_refuse_does_not_leave():
    asyncio.run(row_filters())


async def row_key_on_the_line():
    "A key that the stream was refused with is not tried again."
    async with session() as (s, v, said):
        s.script["WS", "userDataStream.subscribe.signature"].append((401, {"code": -2015, "msg": "Invalid API-key"}))
        await s.sockets[-1].close()
        await until(lambda: v.counts["connections failed"] >= 4)
        assert v.halted and len(s.words) == 2, "once at the start, once for the loss"


def test_a_refused_key_is_not_tried_again_on_the_stream():
    asyncio.run(row_key_on_the_line())


@BOTH
def test_legs_that_cannot_be_read_put_both_orders_in_doubt(market):
    async def go():
        async with session(market) as (s, v, said):
            await v.submit(order(market, "old"))
            await v.drain()
            s.script["POST", "order/cancelReplace"].append((200, {"cancelResult": "SUCCESS", "newOrderResult": "SUCCESS", "cancelResponse": {}, "newOrderResponse": {"orderId": "what"}}))
            s.script["DELETE", "order"].append((200, {"what": 1}))
            await v.replace(CancelOrder("old"), order(market, "new"))
            await v.drain()
            await until(lambda: len(said) == 3)
            assert {r.client_id: r.kind for r in said[1:]} == {"old": "unknown", "new": "unknown"} and not v._last
    asyncio.run(go())


# ---------------------------------------------------------------- before the start

RIGHTS = ("GET", "/sapi/v1/account/apiRestrictions")


def test_what_the_account_and_the_key_may_do_is_told():
    async def go():
        async with session() as (s, v, said):
            s.script["GET", "account"].append((200, {"uid": 354937868, "canTrade": True, "canWithdraw": True, "balances": []}))
            assert (await v.account())["uid"] == 354937868
            assert await v.key_permissions() is None, "a test host has no such page"
            told = {"ipRestrict": False, "enableReading": True, "enableWithdrawals": True, "enableSpotAndMarginTrading": True}
            s.script[RIGHTS].append((200, told))
            assert await v.key_permissions() == told
            for answer in ("reset", (200, [])):
                s.script[RIGHTS].append(answer)
                with pytest.raises(VenueError, match="rights"):
                    await v.key_permissions()
            v.hosts = replace(v.hosts, practice=False)
            with pytest.raises(VenueError, match="not known"):
                await v.key_permissions()
        async with session("usdm") as (s, v, said):
            s.script["GET", "/fapi/v2/account"].append((200, {"canTrade": True, "canWithdraw": True}))
            assert (await v.account())["canWithdraw"]
            n = len(s.asked)
            assert await v.key_permissions() is None and len(s.asked) == n
            v.hosts, v.calls = replace(v.hosts, practice=False), {**v.calls, "rights": replace(v.calls["rights"], host=s.url)}
            s.script[RIGHTS].append((200, {"enableWithdrawals": False, "enableFutures": True}))
            assert (await v.key_permissions())["enableFutures"]
    asyncio.run(go())
    assert CALLS["usdm"]["rights"].host == Hosts.preset("spot").rest, "futures' keys are the spot host's"


@pytest.mark.parametrize("row,words", [(dict(symbol="ETHUSDT"), "BTCUSDT"), (dict(filters=[{"filterType": "PRICE_FILTER", "tickSize": "0.05", "minPrice": "0.05", "maxPrice": "9999"},
                                                                          {"filterType": "LOT_SIZE", "minQty": "1", "maxQty": "9", "stepSize": "1"}]), "tick 0.01")])
def test_wrong_symbol_and_wrong_steps_refuse_to_start(row, words):
    async def go():
        stub = Stub()
        stub.row = symbol_row("spot", **row)
        with pytest.raises(ParameterError, match=words):
            async with session(stub=stub):
                pass
    asyncio.run(go())


def test_a_venue_that_does_not_let_us_in():
    async def go():
        for path, answer, words in ((("GET", "account"), (401, {"code": -2015, "msg": "Invalid API-key"}), "-2015"), (("GET", "time"), "reset", "cannot be reached"),
                                    (("GET", "exchangeInfo"), (400, {"code": -1121, "msg": "Invalid symbol."}), "BTCUSDT")):
            stub = Stub()
            stub.script[path].extend([answer] * 99)
            with pytest.raises((VenueError, ParameterError), match=words):
                async with session(stub=stub, settings=replace(QUICK, ask_s=0.2)):
                    pass
        stub = Stub()
        stub.script["WS", "userDataStream.subscribe.signature"].extend([(401, {"code": -2015, "msg": "Invalid API-key"})] * 9)
        with pytest.raises(VenueError, match="-2015"):
            async with session(stub=stub):
                pass
    asyncio.run(go())


def test_an_account_in_hedge_mode_is_refused():
    async def go():
        stub = Stub("usdm")
        rows = [{"symbol": "BTCUSDT", "positionSide": side, "positionAmt": "0", "entryPrice": "0"} for side in ("LONG", "SHORT")]
        stub.script["GET", "/fapi/v2/positionRisk"].append((200, rows))
        with pytest.raises(VenueError, match="one-way mode"):
            async with session("usdm", stub=stub):
                pass
    asyncio.run(go())


def test_arguments():
    keys = Keys("k", HmacSigner("s"))
    make = lambda **more: BinanceVenue(**(dict(instruments=[X["spot"]], market="spot", hosts=Hosts.preset("spot-testnet"), keys=keys) | more))
    for more, words in ((dict(market="options"), "market"), (dict(market="usdm"), "hosts"), (dict(instruments=[]), "instruments")):
        with pytest.raises(ParameterError, match=words):
            make(**more)
    for bad in (dict(timeout_s=0), dict(clock_s=math.nan), dict(stp="DECREMENT"), dict(recv_window_ms=60_001), dict(recv_window_ms=0), dict(reserve=1.0), dict(reserve=-0.1)):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            Settings(**bad)
    for preset in ("spot", "spot-testnet", "spot-demo"):
        make(hosts=Hosts.preset(preset))
    for preset in ("usdm", "usdm-demo"):
        make(hosts=Hosts.preset(preset), market="usdm", instruments=[X["usdm"]])


def test_secrets_are_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    secret, api = "S3CRETS3CRETS3CRET", "APIKEYAPIKEYAPIKEY"

    notes = []

    class Journal:
        def note(self, kind, text):
            notes.append((kind, text))

    async def go():
        async with Stub() as s:
            v = BinanceVenue([X["spot"]], market="spot", hosts=Hosts.local(s.url), keys=Keys(api, HmacSigner(secret)), settings=QUICK, journal=Journal(), metrics=Metrics())
            await v.connect()
            for i, answer in enumerate(("reset", "hang", "garbage", (401, {"code": -2015, "msg": "no"}))):
                s.script["POST", "order"].append(answer)
                await v.submit(order("spot", f"o{i}"))
                await v.drain()
            try:
                await v.positions()
            except VenueError as e:
                text = f"{e!r}"
            await v.close()
            text += " ".join(f"{r!r}" for r in iter(v._out.get_nowait, None)) + caplog.text + repr(v.keys) + repr(v) + repr(v.__dict__["counts"]) + repr(notes)
            signatures = [q["signature"] for _, _, q, _ in s.asked if "signature" in q]
            assert len(signatures) > 4 and notes
            assert not any(x in text for x in (secret, api, *signatures))
    asyncio.run(go())


# ---------------------------------------------------------------- budget and brake

def test_budget_by_weight_orders_and_silence():
    s, ms = 10**9, 10**6
    b = FullBudget([RateLimit("REQUEST_WEIGHT", 60 * s, 100), RateLimit("ORDERS", 10 * s, 5), RateLimit("RAW_REQUESTS", 300 * s, 1000)], reserve=0.2)
    new, cancel, ask = (CALLS["spot"][k] for k in ("new", "cancel", "account"))
    for _ in range(4):
        assert b.refusal(new, 0)[0] == ""
        b.spend(new, 0)
    assert b.refusal(new, 0) == ("orders", 10 * s) and b.refusal(cancel, 0)[0] == "" and b.refusal(new, 10 * s)[0] == "", "one of five is kept back; the window is the clock's"
    for _ in range(3):
        b.spend(ask, 0)
    assert b.refusal(ask, 0) == ("request-weight", 60 * s) and b.refusal(cancel, 0)[0] == "", "cancels use the reserve"
    assert b.heard({"x-mbx-used-weight-1m": "100", "x-mbx-order-count-10s": "1"}, 0) == [(RateLimit("REQUEST_WEIGHT", 60 * s, 100), 100), (RateLimit("ORDERS", 10 * s, 5), 1)]
    assert b.refusal(cancel, 0)[0] == "request-weight", "the venue's count is above ours"
    b = FullBudget()
    b.hold("throttled", s)
    assert b.refusal(ask, 0) == ("throttled", s) and b.refusal(cancel, 0)[0] == ""
    b.spend(cancel, 0)
    b.hold("throttled", s)
    assert b.refusal(cancel, 0)[0] == "throttled" and b.refusal(cancel, s)[0] == "", "one is tried, once"
    b.hold("order-limit", 5 * s)
    assert [b.refusal(x, 2 * s)[0] for x in (new, cancel, ask)] == ["order-limit", "", ""]
    b.hold("banned", 9 * s)
    assert [b.refusal(x, 6 * s)[0] for x in (new, cancel, ask)] == ["banned"] * 3 and b.refusal(new, 9 * s + ms)[0] == ""


def test_brake():
    b, key, t = Brake(free=3, first_s=0.1, most_s=0.4), ("X", 1), 10**9
    for _ in range(3):
        assert not b.holds(key, t)
        b.refused(key, t)
    assert b.holds(key, t) == 3 and not b.holds(("X", -1), t) and not b.holds(key, t + 10**8)
    for k in range(4):
        b.refused(key, t)
    assert b.holds(key, t + 399_000_000) and not b.holds(key, t + 400_000_000)
    b.accepted(key)
    assert not b.holds(key, t)


def test_throttle_for_the_order_manager_follows_the_headers():
    async def go():
        async with session(metrics=Metrics()) as (s, v, said):
            now = v._now_ns()
            assert v.throttle.peek(now)
            s.script["POST", "order"].append(lambda q: (200, s.ack(q), {"X-MBX-ORDER-COUNT-10S": "95", "X-MBX-USED-WEIGHT-1M": "1234"}))
            await v.submit(order("spot"))
            await v.drain()
            assert not v.throttle.peek(v._now_ns()) or v._now_ns() // 10**10 > now // 10**10
            assert next(w for x, w in v.budget.windows if x.kind == "REQUEST_WEIGHT").used(v._now_ns()) >= 1234
            m = v.metrics
            told = [x.labels(w).x for x, w in ((m.used_weight, "1m"), (m.weight_limit, "1m"), (m.order_count, "10s"), (m.order_count_limit, "10s"))]
            assert told == [1234, 6000, 95, 100], "what the dashboards and the alert on weight look at"
    asyncio.run(go())


@BOTH
def test_how_the_stream_says_that_an_order_ended(market):
    async def go():
        async with session(market) as (s, v, said):
            ends = (("TRADE_PREVENTION", "EXPIRED_IN_MATCH", "expired"), ("EXPIRED", "EXPIRED", "expired"), ("CANCELED", "CANCELED", "cancelled"), ("REJECTED", "REJECTED", "rejected"))
            for i, (x, X, _) in enumerate(ends):
                await s.push(s.report(f"o{i}", x, X, order=50 + i, done="0.004"))
            await until(lambda: len(said) == 4)
            assert [(r.kind, r.definitive) for r in said] == [(kind, True) for _, _, kind in ends] and [r.cum_lots for r in said[:3]] == [LOTS[market] * 4 // 10] * 3
    asyncio.run(go())


@BOTH
def test_rubbish_on_the_user_stream(market):
    async def go():
        async with session(market) as (s, v, said):
            for raw in ("", "{", "[]", "null", '{"e":"executionReport"}', '{"e":"ORDER_TRADE_UPDATE","o":{}}', '{"subscriptionId":0,"event":{"e":"x"}}', "\x00", '{"a":' * 500):
                await s.sockets[-1].send_str(raw)
            await s.sockets[-1].send_bytes(b"\xff\xfe")
            bad = s.report("a", "TRADE", "FILLED", done="1e400", last="NaN", at="-1", trade=5)
            await s.push(bad)
            await s.push(s.report("other") | ({"s": "ETHUSDT"} if market == "spot" else {"o": s.report("other")["o"] | {"s": "ETHUSDT"}}))
            await s.push(s.report("good"))
            await until(lambda: said)
            assert [(r.kind, r.client_id) for r in said] == [("accepted", "good")] and v.counts["other symbols"] == 1
            assert sum(n for k, n in v.counts.items() if k.startswith("refused:")) >= 9
    asyncio.run(go())
