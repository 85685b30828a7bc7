"What any venue must do, whatever stands behind it: subclass VenueContract, give it `make_venue`, and pytest runs the rest."
import asyncio
import contextlib
from collections import Counter

from makerlab.execution.venue import (KINDS, CancelOrder, Capabilities, Execution, ModifyOrder, NewOrder, OpenOrder, QueryOrder, Report, Venue,
                                      VenueSnapshot)


class Bench:
    """A venue on a test bench. A subclass provides the market: one symbol with the bid at BID (5 lots) and 9 lots one tick behind,
    the ask at ASK (5 lots) and 9 lots one tick behind, nothing else, and no time passing but in `settle`."""

    symbol = "X"
    BID, ASK = 99, 101

    def __init__(self, venue):
        self.venue, self.reports, self._task = venue, [], None

    async def __aenter__(self):
        await self.venue.connect()
        self._task = asyncio.ensure_future(self._listen())
        await self.settle()
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _listen(self):
        async for r in self.venue.events():
            self.reports.append(r)

    async def settle(self):
        "Let every message under way arrive."
        raise NotImplementedError

    async def trade(self, side, tick, lots):
        "Somebody else buys (+1) or sells (-1) so many lots at a price."
        raise NotImplementedError

    async def break_connection(self):
        "Cut the session for a while and bring it back; returns when it is back."
        raise NotImplementedError

    async def query(self, client_id):
        "Ask what became of an order, as the session does it; the answer comes as a report."
        await self.venue.query(QueryOrder(client_id))

    async def snapshot(self):
        "What the venue holds of ours."
        v = self.venue
        return VenueSnapshot(0, tuple(await v.open_orders()), tuple(await v.executions()), await v.positions())

    async def place(self, client_id, side, tick, lots, kind="post-only", **more):
        "Send an order and wait for what comes of it."
        await self.venue.submit(NewOrder(client_id, self.symbol, side, tick, lots, kind, **more))
        await self.settle()
        return self.of(client_id)

    def of(self, client_id, kind=None):
        "Reports of an order, or those of one kind."
        return [r for r in self.reports if r.client_id == client_id and kind in (None, r.kind)]

    def of_all(self, kind):
        "Reports of one kind."
        return [r for r in self.reports if r.kind == kind]

    def kinds(self, client_id):
        "The words about an order, in order; fills that follow each other as one."
        words = [r.kind for r in self.of(client_id)]
        return [w for i, w in enumerate(words) if w != "fill" or i == 0 or words[i - 1] != "fill"]

    def traded(self, client_id):
        "Lots of an order executed at each price, in order."
        lots = {}
        for r in self.of(client_id, "fill"):
            lots[r.price_ticks] = lots.get(r.price_ticks, 0) + r.qty_lots
        return list(lots.items())


def story(test):
    "A test written as a coroutine on a fresh bench."
    def run(self):
        async def main():
            async with self.make_venue() as bench:
                await test(self, bench)
                await self.check_everything(bench)
        asyncio.run(main())
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class VenueContract:
    "The contract. `make_venue` returns a Bench (an async context manager)."

    def make_venue(self, **settings):
        raise NotImplementedError

    async def check_everything(self, b):
        "What must hold at the end of every story."
        v = b.venue
        assert all(isinstance(r, Report) and r.kind in KINDS for r in b.reports)
        times = [r.time_ns for r in b.reports]
        assert times == sorted(times), "reports come in the order of the venue's clock"
        fills = [r for r in b.reports if r.kind == "fill"]
        executions = await v.executions()
        assert [(e.exec_id, e.client_id, e.symbol, e.side, e.price_ticks, e.qty_lots) for e in executions] == [
            (r.exec_id, r.client_id, r.symbol, r.side, r.price_ticks, r.qty_lots) for r in fills]
        assert max(Counter(e.exec_id for e in executions).values(), default=1) == 1, "an execution id occurs once"
        held = Counter()
        for e in executions:
            assert isinstance(e, Execution) and e.exec_id and e.qty_lots > 0 and e.side in (1, -1)
            held[e.symbol] += e.side * e.qty_lots
        positions = await v.positions()
        assert {s: n for s, n in positions.items() if n} == {s: n for s, n in held.items() if n}
        done = Counter()
        for r in fills:
            done[r.client_id] += r.qty_lots
            assert r.cum_lots in (-1, done[r.client_id]), "the cumulative count is the sum of the fills"
        for o in await v.open_orders():
            assert isinstance(o, OpenOrder) and o.filled_lots == done[o.client_id] < o.qty_lots
            assert b.of(o.client_id, "accepted") and not {"cancelled", "expired"} & set(b.kinds(o.client_id))
        open_ids = {o.client_id for o in await v.open_orders()}
        for client_id in {r.client_id for r in b.of_all("accepted")} - open_ids:
            total = next(r.qty_lots for r in reversed(b.of(client_id)) if r.kind in ("accepted", "replaced"))
            assert done[client_id] == total or {"cancelled", "expired"} & set(b.kinds(client_id)), f"{client_id} left the book without a word"
        snap = await b.snapshot()
        assert {o.client_id for o in snap.orders} == open_ids and len(snap.executions) == len(executions) and dict(snap.positions) == positions

    @story
    async def test_it_is_a_venue(self, b):
        assert isinstance(b.venue, Venue) and isinstance(b.venue.capabilities, Capabilities)
        assert await b.venue.open_orders() == [] and await b.venue.executions() == []
        assert not any((await b.venue.positions()).values())

    @story
    async def test_an_order_is_accepted_and_rests(self, b):
        (r,) = await b.place("a", 1, b.BID, 3)
        assert (r.kind, r.symbol, r.side, r.price_ticks, r.qty_lots) == ("accepted", b.symbol, 1, b.BID, 3) and r.venue_id
        (o,) = await b.venue.open_orders(b.symbol)
        assert (o.client_id, o.side, o.price_ticks, o.qty_lots, o.filled_lots) == ("a", 1, b.BID, 3, 0)
        assert await b.venue.order("a") == o and await b.venue.order("nobody") is None

    @story
    async def test_a_client_id_is_used_once(self, b):
        await b.place("a", 1, b.BID, 3)
        await b.place("a", 1, b.BID - 1, 2)
        assert len(await b.venue.open_orders()) == 1
        assert b.kinds("a") == ["accepted", "rejected"] and not b.of("a", "rejected")[0].definitive, "it is no proof about the first"
        assert (await b.venue.order("a")).price_ticks == b.BID

    @story
    async def test_post_only_that_would_cross_is_refused_for_certain(self, b):
        for name, side, tick in (("a", 1, b.ASK), ("b", -1, b.BID), ("c", 1, b.ASK + 5)):
            (r,) = await b.place(name, side, tick, 1)
            assert r.kind == "rejected" and r.definitive and r.reason
        assert await b.venue.open_orders() == [] and not await b.venue.executions()

    @story
    async def test_limit_takes_then_rests(self, b):
        await b.place("a", 1, b.ASK, 7, "limit")
        assert b.kinds("a") == ["accepted", "fill"] and not b.of("a", "fill")[0].maker
        (o,) = await b.venue.open_orders()
        assert (o.price_ticks, o.filled_lots, o.qty_lots) == (b.ASK, 5, 7)

    @story
    async def test_ioc_fok_and_market_never_rest(self, b):
        await b.place("a", 1, b.ASK, 7, "ioc")
        assert b.kinds("a") == ["accepted", "fill", "expired"] and b.of("a")[-1].cum_lots == 5
        await b.place("b", -1, b.BID, 6, "fok")
        assert not b.of("b", "fill") and b.kinds("b")[-1] in ("expired", "rejected")
        await b.place("c", -1, 0, 8, "market")
        assert b.traded("c") == [(b.BID, 5), (b.BID - 1, 3)]
        assert await b.venue.open_orders() == [] and (await b.venue.positions())[b.symbol] == -3

    @story
    async def test_partial_fills_add_up(self, b):
        await b.place("a", 1, b.BID + 1, 6)
        await b.trade(-1, b.BID + 1, 2)
        await b.trade(-1, b.BID + 1, 3)
        assert [(r.qty_lots, r.cum_lots, r.left_lots, r.maker) for r in b.of("a", "fill")] == [(2, 2, 4, True), (3, 5, 1, True)]
        assert (await b.venue.order("a")).filled_lots == 5 and (await b.venue.positions())[b.symbol] == 5
        await b.trade(-1, b.BID + 1, 4)
        assert b.of("a")[-1].cum_lots == 6 and await b.venue.open_orders() == []

    @story
    async def test_who_came_first_is_served_first(self, b):
        await b.place("a", 1, b.BID, 2)
        await b.trade(-1, b.BID, 4)
        assert not b.of("a", "fill"), "five lots were there before us"
        await b.trade(-1, b.BID, 3)
        assert sum(r.qty_lots for r in b.of("a", "fill")) == 2

    @story
    async def test_cancel(self, b):
        await b.place("a", 1, b.BID, 3)
        await b.venue.cancel(CancelOrder("a", "enough"))
        await b.settle()
        assert b.kinds("a") == ["accepted", "cancelled"] and b.of("a")[-1].cum_lots in (-1, 0)
        assert await b.venue.open_orders() == []

    @story
    async def test_cancel_of_what_is_not_there_is_refused(self, b):
        await b.venue.cancel(CancelOrder("nobody"))
        await b.place("a", 1, b.ASK, 1, "ioc")
        await b.venue.cancel(CancelOrder("a"))
        await b.settle()
        assert b.kinds("nobody") == ["cancel-rejected"] and b.kinds("a") == ["accepted", "fill", "cancel-rejected"]
        assert not b.of("nobody")[0].definitive, "that there is no such order now says nothing about what became of it"

    @story
    async def test_a_partly_filled_order_can_be_cancelled(self, b):
        await b.place("a", 1, b.BID + 1, 6)
        await b.trade(-1, b.BID + 1, 2)
        await b.venue.cancel(CancelOrder("a"))
        await b.settle()
        assert b.kinds("a") == ["accepted", "fill", "cancelled"] and b.of("a")[-1].cum_lots in (-1, 2)
        await b.trade(-1, b.BID + 1, 2)
        assert (await b.venue.positions())[b.symbol] == 2

    @story
    async def test_modify_means_the_new_total(self, b):
        await b.place("a", 1, b.BID + 1, 6)
        await b.trade(-1, b.BID + 1, 2)
        await b.venue.modify(ModifyOrder("a", b.BID + 1, 5))
        await b.settle()
        if not b.venue.capabilities.native_modify:
            assert b.kinds("a")[-1] == "replace-rejected"
            return
        r = b.of("a", "replaced")[-1]
        assert (r.price_ticks, r.qty_lots) == (b.BID + 1, 5) and r.cum_lots in (-1, 2)
        await b.trade(-1, b.BID + 1, 9)
        assert sum(r.qty_lots for r in b.of("a", "fill")) == 5, "fills included: three more, not five"

    @story
    async def test_modify_to_what_is_filled_ends_the_order(self, b):
        await b.place("a", 1, b.BID + 1, 6)
        await b.trade(-1, b.BID + 1, 2)
        await b.venue.modify(ModifyOrder("a", b.BID + 1, 2))
        await b.settle()
        if b.venue.capabilities.native_modify:
            assert b.kinds("a")[-1] == "cancelled" and await b.venue.open_orders() == []

    @story
    async def test_modify_keeps_the_place_only_when_it_says_so(self, b):
        await b.place("a", 1, b.BID + 1, 4)
        await b.place("b", 1, b.BID + 1, 4)
        await b.venue.modify(ModifyOrder("a", b.BID + 1, 3))
        await b.settle()
        await b.trade(-1, b.BID + 1, 3)
        first = b.of_all("fill")[0].client_id
        caps = b.venue.capabilities
        assert first == ("a" if not caps.native_modify or caps.modify_keeps_priority else "b")

    @story
    async def test_modify_of_what_is_not_there_or_would_cross_is_refused(self, b):
        await b.venue.modify(ModifyOrder("nobody", b.BID, 1))
        await b.place("a", 1, b.BID, 2)
        await b.venue.modify(ModifyOrder("a", b.ASK, 2))
        await b.settle()
        assert b.kinds("nobody") == ["replace-rejected"] and b.kinds("a") == ["accepted", "replace-rejected"]
        assert b.of("a")[-1].definitive and (await b.venue.order("a")).price_ticks == b.BID

    @story
    async def test_cancel_all(self, b):
        for i in range(4):
            await b.place(f"o{i}", 1 if i % 2 else -1, b.BID - i if i % 2 else b.ASK + i, 1)
        await b.venue.cancel_all(b.symbol)
        await b.settle()
        assert await b.venue.open_orders() == [] and all(b.kinds(f"o{i}")[-1] == "cancelled" for i in range(4))
        await b.venue.cancel_all()
        await b.settle()

    @story
    async def test_queries_tell_the_truth(self, b):
        if not b.venue.capabilities.query:
            return
        await b.place("alive", 1, b.BID, 2)
        await b.place("part", 1, b.BID + 1, 4)
        await b.trade(-1, b.BID + 1, 1)
        await b.place("gone", 1, b.ASK, 30, "ioc")
        await b.place("bad", 1, b.ASK + 1, 1)  # the ask itself is gone where our own taking shows
        await b.place("out", -1, b.ASK, 1)
        await b.venue.cancel(CancelOrder("out"))
        for name in ("alive", "part", "gone", "bad", "out", "nobody"):
            await b.query(name)
        await b.settle()
        said = {r.client_id: (r.status, r.cum_lots) for r in b.of_all("order-status")}
        assert said["nobody"][0] == "not-found" and said["alive"] == ("working", 0) and said["part"] == ("partial", 1)
        assert said["bad"][0] == "rejected" and said["out"][0] == "cancelled" and said["gone"] in (("expired", 5), ("cancelled", 5))

    @story
    async def test_reduce_only_never_opens(self, b):
        if not b.venue.capabilities.reduce_only:
            return
        (r,) = await b.place("a", -1, b.ASK, 1, reduce_only=True)
        assert r.kind == "rejected" and r.definitive
        await b.place("b", 1, b.ASK, 3, "ioc")
        await b.place("c", -1, b.ASK + 1, 3, reduce_only=True)
        await b.place("d", -1, 0, 2, "market", reduce_only=True)
        assert (await b.venue.positions())[b.symbol] == 1
        await b.trade(1, b.ASK + 2, 20)
        assert (await b.venue.positions())[b.symbol] == 0, "what was overtaken takes no more than is left"

    @story
    async def test_executions_since(self, b):
        await b.place("a", 1, b.ASK, 1, "ioc")
        first = (await b.venue.executions())[-1]
        await b.settle()
        await b.place("b", 1, b.ASK, 1, "ioc")
        last = (await b.venue.executions())[-1]
        assert last.time_ns > first.time_ns and await b.venue.executions(first.time_ns + 1) == [last]
        assert len(await b.venue.executions(first.time_ns)) == 2 and await b.venue.executions(last.time_ns + 1) == []

    @story
    async def test_outcomes_are_never_raised(self, b):
        await b.place("a", 1, b.BID, 1)
        await b.venue.submit(NewOrder("x", "NO SUCH SYMBOL", 1, b.BID, 1))
        await b.venue.submit(NewOrder("y", b.symbol, 1, -5, 1))
        await b.venue.modify(ModifyOrder("a", b.BID, 0))
        await b.venue.cancel(CancelOrder("a"))
        await b.venue.cancel(CancelOrder("a"))
        await b.settle()
        assert b.kinds("x") == b.kinds("y") == ["rejected"] and b.of("x")[0].definitive

    @story
    async def test_our_two_sides_do_not_trade_with_each_other(self, b):
        await b.place("a", 1, b.BID + 1, 2)
        await b.place("b", -1, b.BID + 1, 2, "limit")
        assert not await b.venue.executions()

    @story
    async def test_a_broken_connection_is_told_and_loses_no_truth(self, b):
        await b.place("a", 1, b.BID + 1, 3)
        await b.break_connection()
        await b.settle()
        words = [r.kind for r in b.reports if r.kind in ("disconnected", "reconnected")]
        assert words == ["disconnected", "reconnected"]
        assert [o.client_id for o in await b.venue.open_orders()] == (["a"] if not b.venue.capabilities.dead_man_switch else [])
        await b.place("b", 1, b.BID, 1)
        assert "accepted" in b.kinds("b")
