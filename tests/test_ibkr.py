"Interactive Brokers: the true ib_async client against a fake TWS on a socket."
import asyncio
import contextlib
import logging
import math
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_tws import FakeTws, Stock
from venue_contract import Bench, VenueContract

ib_async = pytest.importorskip("ib_async")

import makerlab.live.ibkr as ibkr  # noqa: E402
from makerlab.core import MakerlabError, ParameterError  # noqa: E402
from makerlab.execution.venue import CancelOrder, Instrument, ModifyOrder, NewOrder  # noqa: E402
from makerlab.live.ibkr import DomBook, IBKRVenue, LinkError, chain_contracts, classify_error, exec_key, read_dom, whose_account  # noqa: E402

logging.getLogger("ib_async").setLevel(logging.CRITICAL)


class Garbled(logging.Handler):
    "What the client could not read."

    def __init__(self):
        super().__init__()
        self.rows = []

    def emit(self, record):
        self.rows.append(record.getMessage())


GARBLED = Garbled()
logging.getLogger("ib_async.Decoder").addHandler(GARBLED)
logging.getLogger("ib_async.Decoder").setLevel(logging.ERROR)
logging.getLogger("ib_async.Decoder").propagate = False
X = Instrument("X", 0.01)


def a_venue(tws, **settings):
    settings = dict(port=tws.port, redial_s=(0.01, 0.05), heartbeat_s=60.0, timeout_s=2.0, rng=random.Random(1), rate=(1000, 10)) | settings
    ib = ib_async.IB()
    ib.client.MaxRequests = 0  # its own brake waits a second
    contracts = settings.pop("contracts", [(X, ib_async.Stock("X", "SMART", "USD"))])
    return IBKRVenue(ib, contracts, **settings)


class IbkrBench(Bench):
    "A venue and the TWS that it speaks to."

    def __init__(self, fault=None, seed=True, **settings):
        self.tws, self.settings, self.fault, self.seed = FakeTws(Stock(101, "X")), settings, fault or {}, seed

    async def __aenter__(self):
        await self.tws.start()
        self.tws.replenish = True  # the contract's market shows what it showed
        if self.seed:
            self.tws.seed(101, [(99, 5), (98, 9)], [(101, 5), (102, 9)])
        for name, value in self.fault.items():
            setattr(self.tws.fault, name, value)
        super().__init__(a_venue(self.tws, **self.settings))
        return await super().__aenter__()

    async def __aexit__(self, *_):
        self.venue.close()
        await super().__aexit__()
        await self.tws.stop()
        rows, GARBLED.rows = GARBLED.rows, []
        assert not rows, rows[:2]

    async def settle(self):
        for _ in range(2):
            if self.venue.up:
                with contextlib.suppress(LinkError):
                    await self.venue.ping()
            while self.venue._asking:
                await asyncio.sleep(0)
            for _ in range(4):
                await asyncio.sleep(0)

    async def trade(self, side, tick, lots):
        self.tws.trade(side, tick, lots)
        await self.settle()

    async def until(self, what, seconds=5.0):
        async def wait():
            while not what():
                await asyncio.sleep(0.002)
        await asyncio.wait_for(wait(), seconds)

    async def break_connection(self):
        await self.settle()
        n = len(self.of_all("reconnected"))
        self.tws.cut()
        await self.until(lambda: not self.venue.up)
        await self.until(lambda: self.venue.up and self.venue.served and len(self.of_all("reconnected")) > n and self.connection()[-1] == "reconnected")

    def connection(self):
        return [r.kind for r in self.reports if r.kind in ("disconnected", "reconnected")]

    def books_agree(self):
        "The oracle: orders, executions and position are the server's."
        v, t = self.venue, self.tws
        lost = [r.client_id for r in v.orders.values() if r.status == "unknown" and all(x.ref != r.client_id for x in t.tickets)]
        mine = {r.client_id: (r.side, round(r.tick * 0.01, 10), r.qty, r.filled) for r in v.orders.values() if r.alive and r.client_id not in lost}
        assert mine == t.truth_orders()
        assert sorted((e.exec_id, e.side * e.qty_lots, e.price_ticks) for e in v.fills.values()) == sorted(
            (e["exec_id"], (1 if e["side"] == "BOT" else -1) * e["shares"], e["tick"]) for e in t.executions)
        assert sum(r.side * r.qty_lots for r in self.of_all("fill")) == t.truth_position()


class TestIbkr(VenueContract):
    def make_venue(self):
        return IbkrBench()


class TestIbkrThatRepeatsItself(VenueContract):
    "Every orderStatus and every execution twice, executions before the first status."

    def make_venue(self):
        return IbkrBench(dict(double_status=True, double_exec=True, exec_first=True))


class TestIbkrWithoutErrors(VenueContract):
    "Cancels without their error 202, statuses after a change that keep their count."

    def make_venue(self):
        return IbkrBench(dict(say_202=False, reset_filled=False))


def told(test):
    "A coroutine on a fresh bench, run; at the end orders, executions and position must be the server's."
    def run():
        async def main():
            async with IbkrBench(**getattr(test, "settings", {})) as b:
                await test(b)
                await b.settle()
                b.books_agree()
        asyncio.run(main())
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def patient(seconds):
    "Fills wait so long for their commission."
    def of(test):
        def run(monkeypatch):
            monkeypatch.setattr(ibkr, "_COMMISSION_S", seconds)
            test()
        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run
    return of


def words(b, *names):
    return {n: b.kinds(n) for n in names} if len(names) > 1 else b.kinds(names[0])


# orders

@told
async def test_a_fill_overtakes_a_cancel(b):
    await b.place("part", 1, 100, 6)
    await b.place("whole", 1, 100, 2)
    b.tws.fault.hold = True
    for name in ("part", "whole"):
        await b.venue.cancel(CancelOrder(name))
    await b.settle()
    await b.trade(-1, 100, 7)
    b.tws.release()
    await b.settle()
    assert words(b, "part") == ["accepted", "fill", "cancel-rejected"], "all six were gone"
    assert words(b, "whole") == ["accepted", "fill", "cancelled"] and b.of("whole")[-1].cum_lots == 1
    assert not b.of("part", "cancel-rejected")[0].definitive


@told
async def test_a_late_execution_after_the_cancel_is_booked(b):
    await b.place("a", 1, 100, 6)
    t = b.tws.tickets[0]
    b.tws.books[101].remove(t)
    b.tws.end(t, "Cancelled")
    await b.settle()
    b.tws.fill(t, 100, 2, maker=True)
    t.status = "Cancelled"
    await b.settle()
    assert words(b, "a") == ["accepted", "cancelled", "fill"] and b.venue.orders["a"].filled == 2


@told
async def test_a_status_never_counts_fills(b):
    await b.place("a", 1, 100, 6)
    await b.trade(-1, 100, 4)
    await b.venue.modify(ModifyOrder("a", 100, 8))
    await b.settle()
    trade = next(t for t in b.venue.ib.trades() if t.order.orderRef == "a")
    assert trade.orderStatus.filled == 0, "what the status says after a change"
    assert b.of("a", "replaced")[0].cum_lots == 4 and (await b.venue.order("a")).filled_lots == 4
    await b.trade(-1, 100, 9)
    assert b.traded("a") == [(100, 8)]


@told
async def test_a_lost_execution_is_fetched(b):
    await b.place("a", 1, 100, 3)
    b.tws.fault.drop_exec = 1
    await b.trade(-1, 100, 3)
    assert b.traded("a") == [(100, 3)] and len(b.of("a", "fill")) == 1
    b.tws.fault.drop_exec = 1
    await b.place("b", 1, 100, 3)
    await b.trade(-1, 100, 2)
    assert b.traded("b") == [(100, 2)]


@told
async def test_a_lost_execution_of_an_order_that_then_goes_is_fetched(b):
    await b.place("a", 1, 100, 3)
    b.tws.fault.drop_exec, b.tws.fault.drop_status = 1, 1
    await b.trade(-1, 100, 2)
    await b.venue.cancel(CancelOrder("a"))
    await b.settle()
    assert sorted(words(b, "a")) == ["accepted", "cancelled", "fill"] and b.of("a", "cancelled")[0].cum_lots == 2


@told
async def test_a_lost_first_status_is_made_good_by_whatever_comes_next(b):
    b.tws.fault.drop_status = 1
    assert await b.place("a", 1, 100, 3) == []
    await b.trade(-1, 100, 1)
    assert words(b, "a") == ["accepted", "fill"]
    b.tws.fault.drop_status = 1
    await b.place("b", 1, 99, 3)
    await b.query("b")
    await b.settle()
    assert words(b, "b") == ["accepted", "order-status"] and b.of("b")[-1].status == "working"


@told
async def test_a_lost_end_is_found_among_the_completed(b):
    await b.place("a", 1, 99, 3)
    b.tws.fault.drop_status, b.tws.fault.say_202 = 1, False
    await b.venue.cancel(CancelOrder("a"))
    await b.settle()
    assert words(b, "a") == ["accepted"]
    await b.query("a")
    await b.settle()
    assert words(b, "a") == ["accepted", "cancelled", "order-status"] and b.of("a")[-1].status == "cancelled"


@told
async def test_a_cancel_whose_status_is_lost_ends_by_its_error_202(b):
    await b.place("a", 1, 99, 3)
    b.tws.fault.drop_status = 1
    await b.venue.cancel(CancelOrder("a"))
    await b.settle()
    assert words(b, "a") == ["accepted", "cancelled"]


@told
async def test_news_of_the_old_order_are_no_proof_of_its_change(b):
    await b.place("a", 1, 100, 6)
    b.tws.fault.hold = True
    await b.venue.modify(ModifyOrder("a", 99, 8))
    assert b.venue.orders["a"].order.lmtPrice == 1.0, "not before the server holds it"
    await b.trade(-1, 100, 2)
    assert words(b, "a") == ["accepted", "fill"], "the order as it was has come with the fill"
    b.tws.held.clear()
    b.tws.fault.hold = False
    b.tws.error(b.tws.lines[0], b.venue.orders["a"].order_id, 201, "Order rejected - reason:not now")
    await b.settle()
    assert words(b, "a") == ["accepted", "fill", "replace-rejected"] and b.venue.orders["a"].tick == 100


@told
async def test_a_lost_answer_to_a_change_is_found_among_the_open(b):
    await b.place("a", 1, 99, 3)
    b.tws.fault.drop_open = 1
    await b.venue.modify(ModifyOrder("a", 98, 4))
    await b.settle()
    assert words(b, "a") == ["accepted"]
    await b.query("a")
    await b.settle()
    r = b.of("a", "replaced")[0]
    assert (r.price_ticks, r.qty_lots) == (98, 4) and b.of("a")[-1].status == "working"


@told
async def test_a_refused_change_leaves_the_order_alive(b):
    "ib_async takes the error for the end of the order, and would refuse to change it ever after."
    await b.place("a", 1, 99, 3)
    b.tws.fault.refuse = (201, "Order rejected - reason:not now")
    await b.venue.modify(ModifyOrder("a", 98, 3))
    await b.settle()
    assert words(b, "a") == ["accepted", "replace-rejected"] and b.of("a")[-1].definitive
    await b.venue.modify(ModifyOrder("a", 97, 3))
    await b.settle()
    assert words(b, "a")[-1] == "replaced" and b.tws.truth_orders()["a"][1] == 0.97


@told
async def test_a_refused_cancel_leaves_the_order_alive(b):
    await b.place("a", 1, 99, 3)
    line = b.tws.lines[0]
    b.tws.fault.hold = True
    await b.venue.cancel(CancelOrder("a"))
    await b.settle()
    b.tws.held.clear()
    b.tws.fault.hold = False
    b.tws.error(line, b.venue.orders["a"].order_id, 10148, "OrderId that needs to be cancelled can not be cancelled, state: PendingSubmit.")
    await b.settle()
    assert words(b, "a") == ["accepted", "cancel-rejected"] and (await b.venue.order("a")).qty_lots == 3
    await b.venue.cancel(CancelOrder("a"))
    await b.settle()
    assert words(b, "a")[-1] == "cancelled"


@told
async def test_refusals_are_proof_only_of_orders_that_never_lived(b):
    b.tws.fault.refuse = (201, "Order rejected - reason:margin")
    (r,) = await b.place("a", 1, 99, 3)
    assert r.kind == "rejected" and r.definitive and r.reason.startswith("201")
    await b.place("b", 1, 99, 3)
    b.tws.error(b.tws.lines[0], b.venue.orders["b"].order_id, 201, "Order rejected - reason:something later")
    await b.settle()
    assert words(b, "b")[:2] == ["accepted", "unknown"] and b.venue.orders["b"].alive


@told
async def test_a_used_order_number_is_refused_and_the_next_ones_are_new(b):
    b.tws.used[1] = 500
    (r,) = await b.place("a", 1, 99, 1)
    assert r.kind == "rejected" and r.reason.startswith("103") and r.definitive
    await b.place("b", 1, 99, 1)
    assert words(b, "b") == ["accepted"] and b.venue.orders["b"].order_id > 500


@told
async def test_inactive_is_a_doubt_that_a_question_ends(b):
    await b.place("a", 1, 99, 1)
    t = b.tws.tickets[0]
    b.tws.books[101].remove(t)
    t.status = "Inactive"
    b.tws.status(t)
    await b.settle()
    assert words(b, "a") == ["accepted", "unknown", "order-status"] and b.of("a")[-1].status == "rejected"


@told
async def test_an_order_that_nobody_answers_is_not_found(b):
    b.tws.fault.mute_orders = 1
    assert await b.place("a", 1, 99, 1) == []
    await b.query("a")
    await b.settle()
    assert [(r.kind, r.status) for r in b.of("a")] == [("order-status", "not-found")]
    b.venue.orders["a"].status = "unknown"


def a_doubtful_bench():
    "A bench and its clock, which stands still."
    now = [10**18]
    return IbkrBench(clock=lambda: now[0]), now


def test_an_order_that_is_in_neither_list_is_unknown_and_then_in_nobodys_way():
    "A DAY order, and the line away over the change of days."
    async def main():
        bench, now = a_doubtful_bench()
        async with bench as b:
            await b.place("a", 1, 99, 1)
            b.tws.books[101].remove(b.tws.tickets[0])
            b.tws.tickets.clear()
            await b.query("a")
            await b.settle()
            assert words(b, "a") == ["accepted", "order-status"] and b.of("a")[-1].status == "working", "once may be a moment"
            await b.query("a")
            await b.settle()
            assert words(b, "a")[2:] == ["unknown", "order-status"] and b.of("a")[-1].status == "not-found" and b.venue.orders["a"].alive
            now[0] += 29 * 10**9
            await b.query("a")
            assert b.venue.orders["a"].alive
            now[0] += 10**9
            await b.query("a")
            await b.settle()
            r = b.venue.orders["a"]
            assert (r.status, r.inferred) == ("cancelled", True) and b.of("a")[-1].status == "not-found", "inferred is not known"
            b.books_agree()
    asyncio.run(main())


@told
async def test_an_order_that_is_found_now_and_then_is_not_missed(b):
    await b.place("a", 1, 99, 1)
    t = b.tws.tickets[:]
    for _ in range(3):
        b.tws.tickets.clear()
        await b.venue.reconcile()
        assert b.venue.orders["a"].missed == 1
        b.tws.tickets[:] = t
        await b.venue.reconcile()
    await b.settle()
    assert words(b, "a") == ["accepted"] and b.venue.orders["a"].missed == 0


@told
async def test_what_is_found_filled_and_not_told_of_ends(b):
    await b.place("a", 1, 99, 3)
    t = b.tws.tickets[0]
    b.tws.books[101].remove(t)
    t.status, t.filled = "Filled", 3
    for _ in range(2):
        await b.query("a")
        await b.settle()
    assert b.of("a")[1].status == "working" and (b.of("a")[-1].status, b.of("a")[-1].cum_lots) == ("filled", 3)
    assert b.venue.orders["a"].status == "filled" and "0 of 3" in b.venue.alarms[-1]


def test_an_order_that_never_arrived_blocks_the_other_side_for_a_while():
    async def main():
        bench, now = a_doubtful_bench()
        async with bench as b:
            b.tws.fault.mute_orders = 1
            await b.venue.submit(NewOrder("a", "X", 1, 100, 1))
            await b.break_connection()
            assert words(b, "a") == ["unknown"]
            for i in range(2):
                (r,) = await b.place(f"s{i}", -1, 100, 1)
                assert "our own a" in r.reason
                now[0] += 15 * 10**9
                await b.query("a")
            await b.settle()
            assert {r.status for r in b.of("a", "order-status")} == {"not-found"} and b.venue.orders["a"].status == "rejected"
            await b.place("s", -1, 100, 1)
            assert words(b, "s") == ["accepted"] and "held for rejected" in b.venue.alarms[-1]
            b.books_agree()
    asyncio.run(main())


@pytest.mark.parametrize("sign", ["it rests", "it trades in part", "it trades", "it is refused", "it is asked about"])
def test_an_order_that_was_given_up_and_arrives_after_all_is_ours(sign):
    async def main():
        bench, now = a_doubtful_bench()
        async with bench as b:
            b.tws.fault.hold = True
            await b.venue.submit(NewOrder("a", "X", 1, 101 if "trades" in sign else 97, 9 if "part" in sign else 2, "limit"))
            await b.break_connection()
            for _ in range(3):
                now[0] += 40 * 10**9
                await b.query("a")
            row = b.venue.orders["a"]
            assert row.inferred and not row.alive
            now[0] += 5 * 86_400 * 10**9
            await b.place("another", 1, 0, 1)
            now[0] += 86_400 * 10**9
            await b.place("and another", 1, 0, 1)
            assert b.venue.orders["a"] is row, "an end that nobody has seen is never forgotten"
            if sign == "it is asked about":
                b.tws.fault.drop_open = b.tws.fault.drop_status = 9
            if sign == "it is refused":
                b.tws.held.clear()
                b.tws.error(b.tws.lines[0], row.order_id, 201, "Order rejected - reason:margin")
            b.tws.release()
            b.tws.fault.drop_open = b.tws.fault.drop_status = 0
            if sign == "it is asked about":
                await b.query("a")
            await b.settle()
            assert not row.inferred
            if sign == "it trades":
                assert words(b, "a")[-2:] == ["accepted", "fill"] and row.status == "filled" and b.traded("a") == [(101, 2)]
            elif sign == "it is refused":
                assert b.of("a")[-1].kind == "rejected" and b.of("a")[-1].definitive
            else:
                assert row.status == "working" and "open there" in b.venue.alarms[-1]
                await b.venue.cancel(CancelOrder("a"))
                await b.settle()
                assert words(b, "a")[-1] == "cancelled"
            b.books_agree()
    asyncio.run(main())


@pytest.mark.parametrize("arrived", [True, False])
def test_cancel_all_of_a_symbol_takes_orders_that_were_given_up(arrived):
    async def main():
        bench, now = a_doubtful_bench()
        async with bench as b:
            b.tws.fault.hold = True
            await b.venue.submit(NewOrder("a", "X", 1, 97, 2, "limit"))
            await b.break_connection()
            for _ in range(3):
                now[0] += 40 * 10**9
                await b.query("a")
            assert b.venue.orders["a"].inferred
            b.tws.fault.drop_open = b.tws.fault.drop_status = 9
            if arrived:
                b.tws.release()
            b.tws.fault.drop_open = b.tws.fault.drop_status = 0
            await b.settle()
            assert len(b.tws.truth_orders()) == arrived and b.venue.orders["a"].inferred, "it rests there, and nobody has told us"
            asked = len(b.tws.asked(4))
            await b.venue.cancel_all("X")
            await b.settle()
            assert not b.tws.truth_orders() and words(b, "a")[-1] == ("cancelled" if arrived else "order-status") and len(b.tws.asked(4)) == asked + 1
    asyncio.run(main())


def test_the_heart_settles_what_is_in_doubt():
    async def main():
        now = [10**18]
        async with IbkrBench(clock=lambda: now[0], heartbeat_s=0.01) as b:
            b.tws.fault.mute_orders = 1
            await b.venue.submit(NewOrder("a", "X", 1, 100, 1))
            await b.break_connection()
            now[0] += 10**9
            await b.until(lambda: b.venue.orders["a"].missed > 3)
            now[0] += 60 * 10**9
            await b.until(lambda: b.venue.orders["a"].inferred)
    asyncio.run(main())


class Unread(dict):
    "Orders that may be looked up by their name alone."

    def values(self):
        raise AssertionError("every order that was ever sent was looked at")

    items = __iter__ = values


@told
async def test_an_order_costs_the_same_at_the_end_of_the_day(b):
    for i in range(5):
        await b.place(f"o{i}", 1, 98, 1, "fok")
        await b.place(f"r{i}", 1, 90 + i, 1)
    kept, b.venue.orders = b.venue.orders, Unread(b.venue.orders)
    await b.venue.submit(NewOrder("x", "X", 1, 95, 1))
    await b.venue.modify(ModifyOrder("r0", 89, 1))
    await b.venue.cancel(CancelOrder("r1"))
    b.venue.orders = kept | {"x": b.venue.orders["x"]}
    await b.settle()
    assert {r.client_id for r in b.venue._living("X", 1)} == {"r0", "r2", "r3", "r4", "x"} == set(b.venue._sides["X", 1])


def test_orders_that_have_been_over_for_a_day_are_let_go():
    async def main():
        bench, now = a_doubtful_bench()
        async with bench as b:
            v = b.venue
            await b.place("rests", 1, 90, 1)
            await b.place("over", 1, 91, 1)
            await v.cancel(CancelOrder("over"))
            await b.settle()
            for i in range(4):
                now[0] += 86_400 * 10**9
                await b.place(f"o{i}", 1, 0, 1)
            assert set(v.orders) >= {"rests", "o3"} and not {"over", "o0"} & set(v.orders)
            assert len(v._ids) == len(v._perms) == 1 and len(v._kept) == len(v.orders)
            await v.cancel(CancelOrder("rests"))
            await b.settle()
            assert words(b, "rests")[-1] == "cancelled" and words(b, "over") == ["accepted", "cancelled"]
    asyncio.run(main())


@told
async def test_a_foreign_hand_is_seen(b):
    other = ib_async.IB()
    await other.connectAsync("127.0.0.1", b.tws.port, 7, fetchFields=ib_async.StartupFetchNONE)
    c = b.venue.contracts["X"]
    other.placeOrder(c, ib_async.LimitOrder("SELL", 4, 1.02))
    await other.reqCurrentTimeAsync()
    (o,) = await b.venue.open_orders()
    assert (o.client_id, o.side, o.price_ticks, o.qty_lots) == ("", -1, 102, 4) and o.venue_id
    await b.venue.cancel_all()
    await b.settle()
    assert await b.venue.open_orders() == [], "reqGlobalCancel takes everybody's"
    other.disconnect()


@told
async def test_a_change_made_by_hand_is_told(b):
    await b.place("a", 1, 99, 3)
    b.tws.change(b.tws.lines[0], b.tws.tickets[0], 5, 0.98)
    await b.settle()
    await b.query("a")
    await b.settle()
    r = b.of("a", "replaced")[0]
    assert (r.price_ticks, r.qty_lots) == (98, 5) and b.venue.alarms


@told
async def test_an_order_that_was_held_for_dead_is_taken_back(b):
    await b.place("a", 1, 99, 3)
    b.tws.error(b.tws.lines[0], b.venue.orders["a"].order_id, 202, "Order Canceled - reason:not true")
    await b.settle()
    assert words(b, "a") == ["accepted", "cancelled"]
    await b.venue.reconcile()
    await b.settle()
    assert words(b, "a")[-1] == "order-status" and b.of("a")[-1].status == "working" and "open there" in b.venue.alarms[-1]


@told
async def test_prices_and_quantities_that_are_no_whole_numbers_do_not_leave(b):
    for i, (tick, lots) in enumerate(((99.5, 1), (99, 1.5), (0, 1), (1 << 31, 1), (True, 1))):
        (r,) = await b.place(f"o{i}", 1, tick, lots, "limit")
        assert r.kind == "rejected" and r.definitive and "out of range" in r.reason
    assert not b.tws.asked(3)


# executions

@patient(30.0)
@told
async def test_a_fill_waits_for_its_commission_and_the_rest_behind_it(b):
    "Whoever books a fill remembers its id, and never hears of a fee again."
    await b.place("a", 1, 101, 1, "ioc")
    assert b.of("a", "fill")[0].fee == 0.35
    b.tws.fault.late_commission = True
    await b.place("b", 1, 101, 9, "ioc")
    await b.place("c", 1, 90, 1)
    assert words(b, "b") == ["accepted"] and b.venue.orders["b"].filled == 5 and words(b, "c") == []
    b.tws.send_commissions()
    await b.settle()
    assert words(b, "b") == ["accepted", "fill", "expired"] and b.of("b", "fill")[0].fee == 0.35 and words(b, "c") == ["accepted"]
    assert [r.time_ns for r in b.reports] == sorted(r.time_ns for r in b.reports)


@patient(30.0)
@told
async def test_a_snapshot_waits_for_commissions(b):
    b.tws.fault.late_commission = True
    await b.place("a", 1, 101, 2, "ioc")
    task = asyncio.ensure_future(b.venue.snapshot())
    for _ in range(10):
        await b.settle()
    assert not task.done() and not b.of("a", "fill")
    b.tws.send_commissions()
    snap = await task
    assert [e.fee for e in snap.executions] == [0.35] == [r.fee for r in b.of("a", "fill")]


@patient(0.05)
@told
async def test_a_fill_whose_commission_does_not_come_is_told_without(b):
    b.tws.fault.late_commission = True
    await b.place("a", 1, 101, 9, "ioc")
    await b.until(lambda: b.of("a", "expired"))
    assert words(b, "a") == ["accepted", "fill", "expired"] and b.of("a", "fill")[0].fee == 0.0
    assert b.venue.stats["fills without their commission"] == 1
    b.tws.send_commissions()
    await b.settle()
    assert [e.fee for e in await b.venue.executions()] == [0.35], "known here at least"


@patient(30.0)
@told
async def test_a_cut_line_frees_what_waits_for_a_commission(b):
    b.tws.fault.late_commission = True
    await b.place("a", 1, 101, 2, "ioc")
    await b.trade(1, 101, 1)
    assert words(b, "a") == ["accepted"]
    await b.tws.close_port()
    await b.until(lambda: b.of_all("disconnected"))
    kinds = [r.kind for r in b.reports]
    assert b.traded("a") == [(101, 2)] and kinds.index("fill") < kinds.index("disconnected")
    b.tws.fault.late_commission = False
    await b.tws.open_port()
    await b.until(lambda: b.of_all("reconnected"))
    assert len(b.of("a", "fill")) == 1 and [e.fee for e in await b.venue.executions()] == [0.35]


@patient(30.0)
@told
async def test_a_fill_that_waits_is_told_when_the_session_ends(b):
    b.tws.fault.late_commission = True
    await b.place("a", 1, 101, 2, "ioc")
    assert not b.of("a", "fill")
    b.venue.close()
    await asyncio.wait_for(b._task, 5.0)
    assert b.traded("a") == [(101, 2)]


@patient(30.0)
@told
async def test_a_commission_that_the_client_hears_and_does_not_tell(b):
    "It tells an event only of orders that it knows."
    b.tws.fault.late_commission = True
    other = ib_async.IB()
    await other.connectAsync("127.0.0.1", b.tws.port, 7, fetchFields=ib_async.StartupFetchNONE)
    other.placeOrder(b.venue.contracts["X"], ib_async.LimitOrder("BUY", 1, 1.01, orderRef="theirs", account="DU1234567"))
    await other.reqCurrentTimeAsync()
    await b.venue.executions()
    b.tws.commission(b.tws.executions[0], b.tws.line_of(1))
    await b.settle()
    b.venue._flush()
    await b.settle()
    assert [r.fee for r in b.of("theirs", "fill")] == [0.35]
    other.disconnect()


def test_other_accounts_of_the_login_are_not_ours():
    async def main():
        async with FakeTws(Stock(101, "X"), account="DU1,DU2") as tws:
            tws.seed(101, [(99, 5)], [(101, 5)])
            v = a_venue(tws, account="DU1")
            await v.connect()
            await v.submit(NewOrder("mine", "X", 1, 101, 2, "limit"))
            other = ib_async.IB()
            await other.connectAsync("127.0.0.1", tws.port, 7, fetchFields=ib_async.StartupFetchNONE)
            for account, ref, price in (("DU2", "theirs", 1.01), ("DU2", "", 0.90), ("DU1", "by another hand", 0.91)):
                other.placeOrder(v.contracts["X"], ib_async.LimitOrder("BUY", 7, price, orderRef=ref, account=account))
            await other.reqCurrentTimeAsync()
            snap = await v.snapshot()
            assert [(e.client_id, e.qty_lots) for e in snap.executions] == [("mine", 2)] and snap.positions == {"X": 2}
            assert [o.price_ticks for o in snap.orders] == [91] and "theirs" not in v.orders
            assert v.stats["executions of other accounts"] >= 1 and tws.truth_position() == 5
            other.disconnect()
            v.close()
    asyncio.run(main())


@told
async def test_a_correction_is_no_second_execution(b):
    await b.place("a", 1, 101, 2, "ioc")
    e = b.tws.executions[0]
    b.tws.execution(e | dict(exec_id=e["exec_id"][:-2] + "02", price=1.0, tick=100))
    b.tws.execution(e)
    await b.settle()
    assert len(b.of("a", "fill")) == 1 and (await b.venue.executions())[0].price_ticks == 100 and b.venue.alarms
    e["tick"] = 100


@told
async def test_a_correction_of_the_quantity_counts_in_the_order(b):
    await b.place("a", 1, 100, 6)
    await b.trade(-1, 100, 4)
    e, t = b.tws.executions[0], b.tws.tickets[0]
    corrected = e | dict(exec_id=e["exec_id"][:-2] + "02", shares=3)
    b.tws.execution(corrected)
    b.tws.commission(corrected)
    b.tws.execution(corrected)
    await b.settle()
    (x,) = await b.venue.executions()
    assert (x.exec_id, x.qty_lots, x.fee) == (e["exec_id"], 3, 0.35) and b.venue.orders["a"].filled == 3
    assert len(b.of("a", "fill")) == 1 and b.venue.stats["executions corrected"] == 1 and "compare positions" in b.venue.alarms[-1]
    e["shares"] = t.filled = 3
    b.reports = [r if r.kind != "fill" else replace(r, qty_lots=3) for r in b.reports]  # the report that went out cannot be called back


def test_a_session_that_hears_only_the_correction_knows_the_execution():
    "Else the order manager, which remembers ids, would book it a second time."
    async def main():
        async with IbkrBench() as b:
            await b.place("a", 1, 101, 2, "ioc")
            first = b.of("a", "fill")[0].exec_id
            b.venue.close()
            e = b.tws.executions[0]
            e |= dict(exec_id=e["exec_id"][:-2] + "03", price=1.0, tick=100)
            v = a_venue(b.tws)
            await v.connect()
            (x,) = await v.executions()
            assert (x.exec_id, x.price_ticks, x.fee) == (first, 100, 0.35)
            b.tws.execution(e | dict(exec_id=first, price=1.01, tick=101), line=b.tws.lines[-1])
            await v.ping()
            assert (await v.executions())[0].price_ticks == 100, "an older version, heard later"
            v.close()
    asyncio.run(main())


@told
async def test_executions_of_other_contracts_are_not_ours(b):
    await b.place("a", 1, 101, 1, "ioc")
    b.tws.stocks[102] = Stock(102, "Z")
    b.tws.execution(b.tws.executions[0] | dict(con_id=102, exec_id="0000e0d5.000000ff.01.01"))
    await b.settle()
    assert len(b.of_all("fill")) == 1 and b.venue.stats["executions of other contracts"] == 1 and await b.venue.positions() == {"X": 1}


@told
async def test_a_commission_of_an_older_version_does_not_come_back(b):
    await b.place("a", 1, 101, 1, "ioc")
    e = b.tws.executions[0]
    newer = e | dict(exec_id=e["exec_id"][:-2] + "02")
    b.tws.execution(newer)
    b.tws.fault.commission = 0.5
    b.tws.commission(newer)
    b.tws.fault.commission = 0.35
    b.tws.commission(e)
    await b.settle()
    assert [x.fee for x in b.venue.fills.values()] == [0.5]


@pytest.mark.parametrize("exec_id, key", [("0000e0d5.5f3a.01.01", ("0000e0d5.5f3a.01.01", 1)), ("0000e0d5.5f3a.01.12", ("0000e0d5.5f3a.01.01", 12)), ("x.1", ("x.1", 1)), ("x.2", ("x.1", 2)),
                                          ("plain", ("plain", 0)), (".01", (".01", 0)), ("a.b", ("a.b", 0)), ("a.\u0661", ("a.\u0661", 0)), ("", ("", 0))])
def test_ids_of_executions(exec_id, key):
    assert exec_key(exec_id) == key


def test_whose_account():
    assert whose_account(["DU1", "DU2"], want="DU2", live=False) == "DU2" and whose_account(["U1"], want="", live=True) == "U1"
    for accounts, want, live, word in ((["DU1"], "DU9", False, "not one of this login"), (["DU1", "DU2"], "", False, "name one"), ([], "", True, "0 accounts"),
                                       (["U1"], "U1", False, "real money")):
        with pytest.raises(LinkError, match=word):
            whose_account(accounts, want=want, live=live)


def test_executions_between_ticks_and_of_half_lots_are_booked_and_told():
    v = IBKRVenue(ib_async.IB(), [(X, None)])
    v.symbols[101] = "X"
    assert v._tick("X", 1.005) in (100, 101) and v._tick("X", math.nan) == 0 and len(v.alarms) == 2
    assert v._lots("X", 2.5) == 2 and v._lots("X", math.inf) == 0 and len(v.alarms) == 3


# the line

@told
async def test_the_server_behind_tws_goes_and_comes(b):
    for code, subscriptions in ((1102, 1), (1101, 2)):
        b.tws.connectivity(1100)
        await b.settle()
        assert not b.venue.top("X").synced
        (r,) = await b.place(f"during {code}", 1, 99, 1)
        assert r.kind == "rejected" and r.definitive and "nothing was sent" in r.reason
        b.tws.connectivity(1100)
        b.tws.connectivity(code)
        await b.until(lambda: b.reports[-1].kind == "reconnected")
        await b.settle()
        assert b.venue.top("X").synced and len(b.tws.asked(10)) == subscriptions
    assert [r.kind for r in b.reports if "connected" in r.kind] == ["disconnected", "reconnected"] * 2


@told
async def test_what_happened_behind_a_lost_server_is_found(b):
    await b.place("a", 1, 100, 3)
    b.tws.connectivity(1100)
    b.tws.fault.drop_exec = b.tws.fault.drop_status = b.tws.fault.drop_open = 9
    b.tws.trade(-1, 100, 2)
    await b.settle()
    b.tws.fault.drop_exec = b.tws.fault.drop_status = b.tws.fault.drop_open = 0
    assert not b.of("a", "fill")
    b.tws.connectivity(1102)
    await b.until(lambda: b.reports[-1].kind == "reconnected")
    assert b.traded("a") == [(100, 2)]


@told
async def test_an_order_that_is_executed_while_the_line_is_cut_is_found(b):
    b.tws.fault.hold = True
    assert await b.place("a", 1, 101, 2, "limit") == []
    await b.tws.close_port()
    await b.until(lambda: not b.venue.up)
    b.tws.release()
    await b.settle()
    assert words(b, "a") == ["unknown"]
    (r,) = await b.place("b", 1, 99, 1)
    assert r.kind == "rejected" and r.definitive
    await b.tws.open_port()
    await b.until(lambda: b.reports[-1].kind == "reconnected")
    await b.settle()
    assert words(b, "a") == ["unknown", "accepted", "fill"] and b.venue.top("X").synced


@told
async def test_a_black_hole_is_noticed(b):
    await b.place("a", 1, 99, 1)
    b.venue.timeout_s = 0.05
    b.tws.fault.deaf = True
    with pytest.raises(LinkError, match="did not answer"):
        await b.venue.ping()
    await b.until(lambda: b.of_all("disconnected"))
    b.tws.fault.deaf = False
    b.venue.timeout_s = 2.0
    await b.until(lambda: b.of_all("reconnected"))
    await b.place("b", 1, 98, 1)
    assert words(b, "b") == ["accepted"], "the unanswered question has not swallowed what came after"


@pytest.mark.parametrize("fault", [dict(cut_open=1), dict(cut_open=3), dict(mute_open=2)])
def test_a_line_that_is_lost_again_at_once_is_dialled_by_one_task(fault):
    "Two of them would end each other's line for ever."
    async def main():
        async with IbkrBench() as b:
            await b.place("a", 1, 99, 1)
            for name, n in fault.items():
                setattr(b.tws.fault, name, n)
            b.venue.timeout_s = 0.5
            b.tws.cut()
            await b.until(lambda: not (b.tws.fault.cut_open or b.tws.fault.mute_open), 30.0)
            b.venue.timeout_s = 5.0
            await b.until(lambda: b.of_all("reconnected"), 30.0)
            n = len(b.tws.asked(71))
            await asyncio.sleep(0.3)
            assert len(b.tws.asked(71)) == n and not b.venue._redialling and b.connection() == ["disconnected", "reconnected"]
            await b.break_connection()
            b.books_agree()
    asyncio.run(main())


@told
async def test_without_a_line_nothing_is_not_the_answer(b):
    "A guardian asks until nothing is open."
    await b.place("a", 1, 99, 1)
    await b.tws.close_port()
    await b.until(lambda: not b.venue.up)
    for ask in (b.venue.open_orders, b.venue.positions, b.venue.snapshot):
        with pytest.raises(LinkError, match="not connected"):
            await ask()
    await b.tws.open_port()
    await b.until(lambda: b.of_all("reconnected"))
    assert [o.client_id for o in await b.venue.open_orders()] == ["a"]


@told
async def test_questions_go_one_at_a_time(b):
    under_way = []

    async def ask():
        under_way.append(1)
        assert len(under_way) == 1, "ib_async keeps one place for an answer"
        await asyncio.sleep(0)
        under_way.clear()

    await asyncio.gather(*(b.venue._question(ask) for _ in range(3)))


@told
async def test_a_change_that_was_lost_with_the_line_is_refused(b):
    await b.place("a", 1, 99, 3)
    b.tws.fault.hold = True
    await b.venue.modify(ModifyOrder("a", 98, 3))
    await b.settle()
    b.tws.cut()
    b.tws.held.clear()
    b.tws.fault.hold = False
    await b.until(lambda: b.of_all("reconnected"))
    assert words(b, "a") == ["accepted", "replace-rejected"] and "lost with the connection" in b.of("a")[-1].reason
    await b.venue.modify(ModifyOrder("a", 98, 3))
    await b.settle()
    assert words(b, "a")[-1] == "replaced"


def test_the_heart_beats_while_the_server_behind_tws_is_away():
    async def main():
        async with IbkrBench(heartbeat_s=0.01, timeout_s=1.0) as b:
            b.tws.connectivity(1100)
            await b.until(lambda: not b.venue.served)
            b.tws.fault.deaf = True
            await b.until(lambda: not b.venue.up)
            b.tws.fault.deaf = False
            await b.until(lambda: b.of_all("reconnected"))
            assert b.venue.up and b.venue.served and b.connection() == ["disconnected", "reconnected"]
    asyncio.run(main())


def test_the_heart_beats_by_itself():
    async def main():
        async with IbkrBench(heartbeat_s=0.01, timeout_s=1.0) as b:
            b.tws.fault.deaf = True
            await b.until(lambda: b.of_all("disconnected"))
            b.tws.fault.deaf = False
            await b.until(lambda: b.of_all("reconnected"))
            b.books_agree()
    asyncio.run(main())


def test_a_heartbeat_asks_for_the_executions_of_late_and_a_reconnection_for_all():
    "A day of thousands would stop the loop with every beat."
    async def main():
        async with IbkrBench(heartbeat_s=0.01) as b:
            async def beats():
                n = len(b.tws.asked(7))
                await b.until(lambda: len(b.tws.asked(7)) > n + 3)
                await b.settle()
            await b.place("old", 1, 101, 1, "ioc")
            b.tws.executions[0]["time_ns"] -= 3600 * 10**9
            await beats()
            again = b.venue.stats.get("executions told again", 0)
            await beats()
            assert b.venue.stats.get("executions told again", 0) == again
            b.tws.fault.drop_exec = b.tws.fault.drop_status = b.tws.fault.drop_open = 9
            await b.place("lost", 1, 101, 1, "ioc")
            await b.until(lambda: b.of("lost", "fill"))
            b.tws.fault.drop_exec = b.tws.fault.drop_status = b.tws.fault.drop_open = 0
            await b.break_connection()
            assert b.venue.stats["executions told again"] > again and b.traded("old") == b.traded("lost") == [(101, 1)]
    asyncio.run(main())


def test_a_session_that_comes_back_finds_its_orders():
    async def main():
        async with IbkrBench() as b:
            await b.place("mine", 1, 100, 4)
            await b.trade(-1, 100, 1)
            b.venue.close()
            for number, word in ((2, "cancel-rejected"), (1, "cancelled")):
                v = a_venue(b.tws, client_id=number)
                await v.connect()
                (o,) = await v.open_orders()
                assert (o.client_id, o.price_ticks, o.qty_lots, o.filled_lots) == ("mine", 100, 4, 1)
                assert [e.client_id for e in await v.executions()] == ["mine"] and await v.positions() == {"X": 1}
                await v.modify(ModifyOrder("mine", 99, 4)) if number == 2 else None
                await v.cancel(CancelOrder("mine"))
                await v.ping()
                said = []
                while v._queue.qsize():
                    said.append(v._queue.get_nowait().kind)
                assert word in said and ("replace-rejected" in said) is (number == 2), (number, said)
                await v.submit(NewOrder("mine", "X", 1, 90, 1))
                v._flush()
                assert v._queue.get_nowait().reason == "duplicate client id"
                v.close()
    asyncio.run(main())


# refusals before anything starts

@pytest.mark.parametrize("settings, error, word", [
    (dict(account="DU9"), LinkError, "is not one of this login"), (dict(port=1), LinkError, "no TWS or IB Gateway"),
    (dict(contracts=[(Instrument("Y", 0.01), ("Y", "SMART", "USD"))]), ParameterError, "matches 0 contracts"),
    (dict(contracts=[(Instrument("X", 0.001), ("X", "SMART", "USD"))]), ParameterError, "finer than IBKR's 0.01")])
def test_it_refuses_to_start(settings, error, word):
    async def main():
        async with FakeTws(Stock(101, "X")) as tws:
            s = dict(settings)
            if "contracts" in s:
                s["contracts"] = [(x, ib_async.Stock(*c)) for x, c in s["contracts"]]
            v = a_venue(tws, **s)
            with pytest.raises(error, match=word):
                await v.connect()
            assert not v.up
            v.close()
    asyncio.run(main())


def test_an_account_of_real_money_must_be_meant():
    async def main():
        async with FakeTws(Stock(101, "X"), account="U7654321") as tws:
            with pytest.raises(LinkError, match="real money"):
                await a_venue(tws).connect()
            v = a_venue(tws, live_account=True)
            await v.connect()
            assert v.account == "U7654321"
            w = a_venue(tws, live_account=True, timeout_s=0.5)
            with pytest.raises(LinkError, match="client 1"):
                await w.connect()
            v.close()
            w.close()
    asyncio.run(main())


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(ibkr, "ib_async", None)
    with pytest.raises(MakerlabError, match=r"pip install makerlab\[ibkr\]"):
        IBKRVenue(None, [])


def test_it_imports_without_the_extra():
    "In a process of its own, where ib_async cannot be found."
    code = "import sys; sys.modules['ib_async'] = None; import makerlab.live.ibkr as m; print(m.ib_async); m.IBKRVenue(None, [])"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert r.stdout.strip() == "None" and r.returncode and "pip install makerlab[ibkr]" in r.stderr.splitlines()[-1]


def test_bad_settings():
    for bad in (dict(timeout_s=0.0), dict(heartbeat_s=math.nan), dict(redial_s=(0.0, 1.0))):
        with pytest.raises(ParameterError):
            IBKRVenue(ib_async.IB(), [], **bad)
    with pytest.raises(ParameterError, match="twice"):
        IBKRVenue(ib_async.IB(), [(X, None), (X, None)])


def test_an_instrument_that_has_expired_is_not_traded():
    async def main():
        now = [10**18]
        contracts = [(Instrument("X", 0.01, expiry_ns=10**18 + 10**9), ib_async.Stock("X", "SMART", "USD"))]
        async with IbkrBench(contracts=contracts, clock=lambda: now[0]) as b:
            await b.place("a", 1, 99, 1)
            now[0] += 10**9
            await b.place("b", 1, 98, 1)
            assert words(b, "a", "b") == {"a": ["accepted"], "b": ["rejected"]} and "expired" in b.of("b")[0].reason
    asyncio.run(main())


# limits

def test_cancels_pass_when_orders_do_not():
    async def main():
        now = [10**18]
        async with IbkrBench(rate=(6, 3), clock=lambda: now[0]) as b:
            for i in range(5):
                await b.place(f"o{i}", 1, 90 + i, 1)
            assert [b.kinds(f"o{i}")[-1] for i in range(5)] == ["accepted"] * 3 + ["rejected"] * 2 and "a second" in b.of("o4")[0].reason
            for i in range(3):
                await b.venue.cancel(CancelOrder(f"o{i}"))
            await b.settle()
            assert not b.tws.truth_orders() and all(b.kinds(f"o{i}")[-1] == "cancelled" for i in range(3))
            now[0] += 2 * 10**9
            await b.place("later", 1, 90, 1)
            assert b.kinds("later") == ["accepted"]
    asyncio.run(main())


def test_twenty_orders_of_a_side():
    async def main():
        async with IbkrBench() as b:
            for i in range(22):
                await b.place(f"o{i}", 1, 60 + i, 1)
            await b.place("other side", -1, 110, 1)
            assert len(b.tws.truth_orders()) == 21 and "20 active" in b.of("o20")[0].reason
    asyncio.run(main())


# depth

def dom(*rows):
    return {i: SimpleNamespace(price=p, size=n) for i, (p, n) in enumerate(rows)}


@pytest.mark.parametrize("rows, side, levels, why", [
    (dom((1.0, 5), (0.99, 3)), 1, [(100, 5), (99, 3)], ""), (dom((1.0, 5), (1.0, 2), (1.01, 1)), -1, [(100, 7), (101, 1)], ""),
    (dom((1.0, 5), (1.01, 3)), 1, [], "order"), ({0: SimpleNamespace(price=1.0, size=1), 2: SimpleNamespace(price=0.9, size=1)}, 1, [], "gap"),
    (dom((math.nan, 5)), 1, [], "price"), (dom((-1.0, 5)), 1, [], "price"), (dom((1.0, math.inf)), 1, [], "size"), (dom((1.005, 1)), 1, [], "grid"),
    (dom((1.0, 0), (0.99, 2)), 1, [(99, 2)], ""), ({}, 1, [], "")])
def test_rows_of_depth(rows, side, levels, why):
    assert read_dom(rows, side=side, instrument=X) == (levels, why)


def test_a_crossed_book_is_none():
    book = DomBook(X)
    assert book.read(dom((1.0, 1)), dom((1.01, 1)), 7) and book.top().two_sided and book.top().time_ns == 7
    assert not book.read(dom((1.02, 1)), dom((1.01, 1)), 8) and not book.top().synced and book.wrong == {"crossed": 1}


@told
async def test_depth_follows_the_book(b):
    for _ in range(3):
        await b.place("a" + str(len(b.reports)), 1, 100, 2)
        await b.trade(-1, 100, 1)
        assert [b.venue.depth("X", s) for s in (1, -1)] == [b.tws.books[101].levels(s, 5) for s in (1, -1)]
    b.tws.trade(1, 103, 100)
    await b.settle()
    top = b.venue.top("X")
    assert top.synced and top.ask_ticks == 0 and top.bid_ticks == 100
    b.tws.seed(101, [], [(103, 1)])
    b.tws.reset_depth()
    await b.settle()
    assert b.venue.depth("X", -1) == [(103, 1)] and b.venue.stats["depth started anew"] == 1


@told
async def test_senseless_depth_is_no_book_and_is_asked_for_again(b):
    for bad in ((7, 1, 1, 0.5, 3), (0, 1, 1, 1.05, 3), (0, 1, 1, math.nan, 3)):
        b.tws.bad_rows(bad)
        await b.settle()
        assert not b.venue.top("X").synced or len(b.tws.asked(10)) > 1
    await b.settle()
    assert len(b.tws.asked(10)) == 2 and b.venue.top("X").synced and sum(b.venue.books["X"].wrong.values()) == 3


@told
async def test_no_post_only_without_a_book(b):
    b.venue.books["X"].lose("test")
    (r,) = await b.place("a", 1, 90, 1)
    assert r.kind == "rejected" and r.definitive and "no book" in r.reason
    b.tws.error(b.tws.lines[0], -1, 2103, "Market data farm connection is broken:usfarm")
    await b.settle()
    assert not b.venue.top("X").synced
    b.tws.error(b.tws.lines[0], -1, 2104, "Market data farm connection is OK:usfarm")
    await b.settle()
    assert b.venue.top("X").synced
    request = int(b.tws.asked(10)[-1][2])
    b.tws.error(b.tws.lines[0], request, 354, "Requested market data is not subscribed.")
    await b.settle()
    assert not b.venue.top("X").synced and "354" in b.venue.books["X"].reason


@told
async def test_tops_come_as_they_change_and_only_the_newest(b):
    it = b.venue.tops().__aiter__()
    first = await it.__anext__()
    assert first.synced and (first.bid_ticks, first.ask_ticks) == (99, 101)
    for lots in (1, 1, 1):
        b.tws.trade(-1, 99, lots)
        await b.settle()
    assert (await it.__anext__()).bid_lots == 2


# options, words

@told
async def test_an_option_chain_becomes_instruments(b):
    with pytest.raises(MakerlabError, match="NOWHERE"):
        await b.venue.option_chain("X", exchange="NOWHERE")
    (chain,) = await b.venue.option_chain("X")
    pairs = chain_contracts(chain, underlying=X, tick_size=0.05, strikes=(100.0, 110.0), expirations=["20261218"])
    assert [x.symbol for x, _ in pairs] == ["X 20261218 100 call", "X 20261218 100 put", "X 20261218 105 call", "X 20261218 105 put"]
    x, c = pairs[1]
    assert (x.kind, x.multiplier, x.strike, x.right, x.underlying, x.expiry_ns) == ("option", 100.0, 100.0, "put", "X", 1_797_627_600 * 10**9)
    assert (c.secType, c.right, c.strike, c.lastTradeDateOrContractMonth, c.multiplier) == ("OPT", "P", 100.0, "20261218", "100")
    with pytest.raises(ParameterError, match="not in the chain"):
        chain_contracts(chain, underlying=X, tick_size=0.05, expirations=["20250101"])


def test_error_codes():
    assert [classify_error(c) for c in (1100, 2110, 1101, 1102, 201, 202, 10148, 2106, 317, 99999)] == [
        "down", "down", "back-empty", "back", "order", "cancelled", "cancel-refused", "note", "depth-reset", "order"]


# everything at once

@pytest.mark.parametrize("seed", range(6))
def test_a_storm_loses_nothing(seed):
    async def main():
        rng = random.Random(seed)
        async with IbkrBench() as b:
            f, v = b.tws.fault, b.venue
            for n in range(120):
                f.double_status, f.double_exec, f.exec_first, f.say_202, f.reset_filled = (rng.random() < 0.5 for _ in range(5))
                f.drop_status, f.drop_exec, f.drop_open = (int(rng.random() < 0.15) for _ in range(3))
                alive = [r.client_id for r in v.orders.values() if r.alive]
                what = rng.random()
                if what < 0.4:
                    side = rng.choice((1, -1))
                    await v.submit(NewOrder(f"o{n}", "X", side, 100 - side * rng.randrange(-1, 4), rng.randrange(1, 5), rng.choice(("post-only", "limit", "ioc"))))
                elif what < 0.5 and alive:
                    await v.modify(ModifyOrder(rng.choice(alive), rng.randrange(96, 105), rng.randrange(1, 7)))
                elif what < 0.58 and alive:
                    await v.cancel(CancelOrder(rng.choice(alive)))
                elif what < 0.95:
                    side = rng.choice((1, -1))
                    b.tws.trade(side, 100 + 2 * side, rng.randrange(1, 6))
                    for s in (1, -1):
                        if not b.tws.books[101].queues[s].get(100 - 2 * s) and not b.tws.books[101].within(s, 100 - 2 * s):
                            b.tws.seed(101, *([[(98, 5)], []] if s > 0 else [[], [(102, 5)]]))
                elif what < 0.97:
                    await b.break_connection()
                else:
                    b.tws.connectivity(1100)
                    b.tws.connectivity(rng.choice((1101, 1102)))
                if rng.random() < 0.5:
                    await b.settle()
            f.drop_status = f.drop_exec = f.drop_open = 0
            await b.settle()
            await v.reconcile()
            await b.settle()
            b.books_agree()
            assert len(v.fills) > 10 and max(len([1 for r in b.of_all("fill") if r.exec_id == e]) for e in v.fills) == 1
            await v.cancel_all()
            await b.settle()
            await v.reconcile()
            await b.settle()
            assert not b.tws.truth_orders()
            b.books_agree()
    asyncio.run(main())
