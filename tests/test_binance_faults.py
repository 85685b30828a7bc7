"""The venue's side of the fault matrix (LIVE.md 6): rows 10 to 22, 28 and 30, injected by the simulated exchange.

Every row ends with the oracle: at rest the order manager's orders, position and cash are the exchange's own, and every order that the exchange
ever had was one that the manager sent. GUARDS switches the guarding code off, row by row, and the row must then fail."""
import asyncio
import contextlib
import time
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

import pytest

from makerlab.execution.orders import OrderManager, Patience, RequotePolicy, State
from makerlab.execution.venue import CancelOrder, ModifyOrder, NewOrder, QueryOrder
from makerlab.live import guardian
from makerlab.live.binance import Baseline, Settings, VenueError
from makerlab.live.simulated import SimulatedVenue

from test_binance_venue import LEVELS, RULES, venue_of

MS = 1_000_000
BID, ASK = 99, 101
FAST = Settings(timeout_s=0.5, ask_s=3.0, heartbeat_s=0.3, echo_s=5.0, backoff_s=(0.02, 0.1), order_wait_s=0.3)
PATIENCE = Patience(timeout_ns=1500 * MS, query_first_ns=40 * MS, query_max_ns=120 * MS, query_grace_ns=300 * MS, not_found_needed=3, protect_ns=150 * MS)
LIVE = ("spot", "usdm")


class Bot:
    "The order manager on a gateway, as the engine runs it: requests out, reports in, a snapshot when one is wanted."

    def __init__(self, venue, *, patience=PATIENCE, policy=RequotePolicy(), pairs=False, session="s1"):
        self.venue, self.pairs, self.reports, self.wanted = venue, pairs, [], None
        self.m = OrderManager(venue.instruments, session=session, capabilities=venue.capabilities, patience=patience, policy=policy)
        self.snapshots, self.on_lost = 0, lambda: None

    async def __aenter__(self):
        await self.venue.connect()
        self.reconcile(await self.venue.snapshot())
        self.tasks = [asyncio.ensure_future(x) for x in (self.listen(), self.tick(), self.account())]
        return self

    async def __aexit__(self, *_):
        for t in self.tasks:
            t.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.venue.close()

    def now(self):
        return self.venue.clock()

    def reconcile(self, snapshot):
        self.m.reconcile(snapshot, now_ns=self.now())
        self.snapshots += 1

    async def listen(self):
        async for r in self.venue.events():
            self.reports.append(r)
            self.m.handle(r, now_ns=self.now())
            if r.kind == "disconnected":
                self.on_lost()
            await self.send()

    async def tick(self):
        while True:
            if self.wanted is not None:
                self.m.requote("BTCUSDT", self.wanted, now_ns=self.now())
            await self.send()
            await asyncio.sleep(0.01)

    async def account(self):
        while True:
            await asyncio.sleep(0.03)
            if self.m.wants_snapshot or not self.m.synced:
                with contextlib.suppress(VenueError):
                    self.reconcile(await self.venue.snapshot())

    async def send(self):
        requests = self.m.poll(self.now())
        news = [r for r in requests if isinstance(r, NewOrder)]
        for r in requests:
            if self.pairs and isinstance(r, CancelOrder) and (new := next((n for n in news if n.side == self.m.orders[r.client_id].side), None)):
                news.remove(new)
                requests.remove(new)
                await self.venue.replace(r, new)
            else:
                await {NewOrder: self.venue.submit, CancelOrder: self.venue.cancel, ModifyOrder: self.venue.modify, QueryOrder: self.venue.query}[type(r)](r)

    def place(self, side, tick, lots, kind="post-only"):
        return self.m.place_quote("BTCUSDT", side, tick, lots, now_ns=self.now(), kind=kind)

    def cancel(self, o):
        self.m.cancel_quote(o.client_id, now_ns=self.now())

    def said(self, kind, client_id=None):
        return [r for r in self.reports if r.kind == kind and client_id in (None, r.client_id)]


PATIENT_S = 10.0  # nothing takes as long as this; the test of the guards is less patient


async def until(true, timeout_s=None):
    "Wait until something is so; fails when it does not become so."
    give_up = time.monotonic() + (timeout_s or PATIENT_S)
    while not true():
        assert time.monotonic() < give_up, "it did not happen"
        await asyncio.sleep(0.005)


class World(SimpleNamespace):
    "A simulated exchange, a gateway, a bot."

    def truth(self, *kinds, account="alice"):
        return [x for x in self.sim.exchange.truth if x["kind"] in kinds and x.get("account") == account]

    def fault(self, name, **args):
        return self.sim.fault(name, **args)

    async def rest(self, timeout_s=None):
        "Let everything come to rest, then hold the bot's account against the exchange's. Returns the seconds it took."
        start = time.monotonic()
        m, x = self.bot.m, self.sim.exchange

        def same():
            ours = {(o.client_id, o.side, o.price_ticks, o.qty_lots, o.filled_lots) for o in m.live()}
            there = {(o.client_id, o.side, o.tick, o.lots, o.done) for o in x.truth_orders("alice")}
            cash = x.truth_cash("alice") - (m.cash - m.opening_cash)
            return ours == there and m.position("BTCUSDT") == x.truth_position("alice").get("BTCUSDT", 0) and abs(cash) < 1e-9

        await until(lambda: m.quiet and m.synced and same(), timeout_s)
        await self.venue.drain()
        await self.sim.flushed()
        assert m.quiet and same(), "it was at rest, and then it was not"
        names = {o["client_id"] for o in self.truth("new")}
        assert names <= set(m.orders), "an order that nobody here knows"
        assert len(names) == len(self.truth("new")), "an order was sent twice"
        return time.monotonic() - start


@contextlib.asynccontextmanager
async def world(market="spot", *, settings=FAST, rules=RULES, balances=None, limits=None, venue=None, maker_bps=1.0, taker_bps=5.0, **bot):
    "Everything connected. Fees are charged, so that the cash of the oracle means something."
    sim = SimulatedVenue(symbols=[rules], flow=None, levels={"BTCUSDT": LEVELS}, market=market, balances=balances, limits=limits, maker_bps=maker_bps, taker_bps=taker_bps)
    async with sim:
        v = venue_of(sim, sim.url, market, settings=settings, **(venue or {}))
        async with Bot(v, **bot) as b:
            yield World(sim=sim, venue=v, bot=b, market=market)


def run(row, *args, **kwargs):
    "Run a row."
    asyncio.run(asyncio.wait_for(row(*args, **kwargs), 30))


@pytest.fixture(scope="module", autouse=True)
def warm():
    "The exchange's kernels are compiled before any clock is looked at."
    async def once():
        async with world(settings=replace(FAST, timeout_s=60.0)) as w:
            w.bot.place(1, BID, 1)
            w.bot.place(1, ASK, 1, "limit")
            await until(lambda: w.bot.m.position("BTCUSDT") == 1, 60)
            w.fault("trade", side=-1, tick=BID, lots=1)
    asyncio.run(once())


# ---------------------------------------------------------------- 10, 11: the user stream

async def row_10(market, how):
    async with world(market) as w:
        o, extra = w.bot.place(1, BID + 1, 6), w.bot.place(-1, ASK, 2)
        await w.rest()
        tried = []
        w.bot.on_lost = lambda: tried.append(w.bot.place(1, BID, 1).state)  # at that moment: the line may be back a millisecond later
        w.fault("blackhole", kind="user") if how == "blackhole" else w.fault("terminate_user_stream") if how == "terminated" else w.fault("cut", kind="user", torn=how == "torn")
        w.fault("trade", side=-1, tick=BID + 1, lots=2)  # while nobody listens
        await until(lambda: w.bot.said("disconnected"))
        assert set(tried) == {State.DENIED}, "new orders stop"
        if how == "blackhole":
            w.sim.clear("blackhole")
        await until(lambda: w.bot.said("reconnected"))
        w.fault("trade", side=-1, tick=BID + 1, lots=1)
        await w.rest()
        assert o.filled_lots == 3 and len(w.bot.m.fills) == 2 and extra.state is State.WORKING
        assert w.bot.place(1, BID - 1, 1).state is State.PENDING_NEW, "and resume"
        await w.rest()


@pytest.mark.parametrize("how", ["cut", "torn", "blackhole"])
@pytest.mark.parametrize("market", LIVE)
def test_10_user_stream_dies(market, how):
    run(row_10, market, how)


def test_10_event_stream_terminated():
    run(row_10, "spot", "terminated")


async def row_10_silent(market):
    async with world(market, settings=replace(FAST, echo_s=0.3, heartbeat_s=4.0)) as w:
        w.fault("mute", stream="user")
        w.bot.place(1, BID, 3)
        await until(lambda: w.bot.said("disconnected"))
        assert "silent" in w.bot.said("disconnected")[0].reason
        w.sim.clear("mute")
        await until(lambda: w.bot.said("reconnected"))
        await w.rest()


@pytest.mark.parametrize("market", LIVE)
def test_10_user_stream_says_nothing(market):
    run(row_10_silent, market)


async def row_10_renewed(market, how):
    async with world(market, settings=replace(FAST, heartbeat_s=4.0, session_s=0.5 if how == "age" else 9e4)) as w:
        o = w.bot.place(1, BID + 1, 60)
        await w.rest()
        if how == "shutdown":
            w.fault("shutdown", grace_s=1.5)
        start = time.monotonic()
        while time.monotonic() - start < 2.5:
            w.fault("trade", side=-1, tick=BID + 1, lots=1)
            await asyncio.sleep(0.05)
        assert w.venue.counts["renewed"] >= 1 and not w.bot.said("disconnected"), "made before it broke"
        await w.rest()
        assert o.filled_lots == len(w.bot.m.fills) == len(w.bot.said("fill")) > 15


@pytest.mark.parametrize("how", ["shutdown", "age"])
@pytest.mark.parametrize("market", LIVE)
def test_10_renewed_before_it_breaks(market, how):
    run(row_10_renewed, market, how)


async def row_11(how):
    async with world("usdm", settings=replace(FAST, keep_s=0.1)) as w:
        o = w.bot.place(1, BID + 1, 6)
        await w.rest()
        if how == "-1125":
            w.fault("mute", stream="user")  # not even the word that it has ended
        w.fault("expire_listen_key")
        w.fault("trade", side=-1, tick=BID + 1, lots=2)
        await until(lambda: w.bot.said("disconnected"))
        w.sim.clear("mute")
        await until(lambda: w.bot.said("reconnected"))
        await w.rest()
        assert o.filled_lots == 2 and len(w.bot.m.fills) == 1


@pytest.mark.parametrize("how", ["listenKeyExpired", "-1125"])
def test_11_listen_key_expired(how):
    run(row_11, how)


# ---------------------------------------------------------------- 12, 13: limits

def watch_requests(w):
    "Times of the requests that reach the exchange, and whether each was a cancel."
    seen, call_of = [], w.sim.call_of

    def noted(request):
        seen.append((time.monotonic(), request.method, request.path))
        return call_of(request)

    w.sim.call_of = noted
    return seen


async def row_12(market):
    async with world(market) as w:
        a, b = w.bot.place(1, BID, 3), w.bot.place(-1, ASK, 3)
        await w.rest()
        f = w.fault("throttle", seconds=3)
        w.bot.place(1, BID - 1, 1)
        await until(lambda: "throttled" in w.venue.budget.until)
        seen = watch_requests(w)
        w.bot.cancel(a)
        w.bot.cancel(b)
        late = [w.bot.place(1, BID - 1, 1), w.bot.place(-1, ASK + 1, 1)]
        await until(lambda: all(o.done for o in late))
        assert all(o.state is State.REJECTED and "not sent" in w.bot.said("rejected", o.client_id)[0].reason for o in late)
        while w.sim.clock.now_ns() < f.args["until"] - 100 * MS:
            assert len(seen) <= 1 and {s[1] for s in seen} <= {"DELETE"}, "one cancel may be tried, then there is silence"
            await asyncio.sleep(0.01)
        await until(lambda: a.done and b.done)
        await w.rest()
        assert f.hits <= 2 and not w.sim.limits.banned and a.state is b.state is State.CANCELLED


@pytest.mark.parametrize("market", LIVE)
def test_12_too_many_requests(market):
    run(row_12, market)


async def row_12_order_limit():
    async with world("spot") as w:
        o = w.bot.place(1, BID, 1)
        await w.rest()
        w.fault("order_limit", limit=1, seconds=10)
        states = []
        for _ in range(6):
            x = w.bot.place(1, BID - 1, 1)
            await until(lambda: x.state is not State.PENDING_NEW)
            states.append(x.state)
        w.bot.cancel(o)
        await until(lambda: o.done)
        assert o.state is State.CANCELLED, "cancels flow"
        assert states.count(State.REJECTED) >= 4 and 1 <= w.venue.counts["answer: order-limit"] <= 2, "told once, twice if the window ended meanwhile"
        await w.rest()


def test_12_too_many_orders():
    run(row_12_order_limit)


async def row_12_budget():
    "The gateway keeps within the exchange's windows by itself: with 20 orders in 10 s allowed, the exchange never has to refuse one."
    async with world("spot", limits={"orders": ((20, 10),)}) as w:
        await until(lambda: w.sim.clock.now_ns() // 1_000_000_000 % 10 < 4)  # windows begin at round times: all of it is in one
        for i in range(40):
            w.bot.place(1, BID - i % 9, 1)
            await asyncio.sleep(0.005)
        await w.rest()
        assert 10 <= len(w.truth("new")) <= 20 and not w.truth("refused") and not w.venue.counts["answer: order-limit"]
        assert w.venue.counts["held: orders"] >= 20


def test_12_windows_are_kept():
    run(row_12_budget)


async def row_13(market):
    async with world(market, settings=replace(FAST, ask_s=0.3)) as w:
        o = w.bot.place(1, BID, 3)
        await w.rest()
        w.fault("ban", seconds=2)
        w.bot.place(1, BID - 1, 1)
        await until(lambda: "banned" in w.venue.budget.until)
        await asyncio.sleep(0.3)  # what was under way
        seen, end = watch_requests(w), w.venue.budget.until["banned"]
        w.bot.cancel(o)
        w.bot.place(1, BID - 1, 1)
        with pytest.raises(VenueError, match="banned"):
            await w.venue.executions()
        while w.venue._now_ns() < end - 50 * MS:
            assert not seen, "no request at all until the ban ends"
            await asyncio.sleep(0.02)
        await until(lambda: o.done)
        await w.rest()


@pytest.mark.parametrize("market", LIVE)
def test_13_banned(market):
    run(row_13, market)


def test_13_cancels_do_not_pile_up_in_a_ban():
    async def main():
        async with world("spot") as w:
            o = w.bot.place(1, BID, 3)
            await w.rest()
            w.fault("ban", seconds=6)
            w.bot.place(1, BID - 1, 1)
            await until(lambda: "banned" in w.venue.budget.until)
            for _ in range(40):
                await w.venue.cancel(CancelOrder(o.client_id))
                await asyncio.sleep(0.01)
            assert len(w.venue._tasks) <= 3, "the one that waits, and perhaps a question or two"
            await until(lambda: o.done, 20)
            await w.rest()
            assert w.venue.counts["answer: no-order"] == w.venue.counts["answer: cancel-rejected"] == 0, "and it leaves once"
    asyncio.run(asyncio.wait_for(main(), 30))


# ---------------------------------------------------------------- 14 to 17: did it execute?

async def row_14(market, how):
    async with world(market) as w:
        w.fault("request", op="place", how=how, executed=True)
        o = w.bot.place(1, BID, 3)
        await until(lambda: w.bot.said("unknown", o.client_id))
        await w.rest()
        assert o.state is State.WORKING and len(w.truth("new")) == 1
        w.fault("request", op="place", how=how, executed=True)
        x = w.bot.place(1, ASK, 2, "limit")
        await w.rest()
        assert x.state is State.FILLED and len(w.truth("new")) == 2 and w.bot.m.position("BTCUSDT") == 2


@pytest.mark.parametrize("how", ["503", "504", "1006", "1007", "hang", "reset", "garbage"])
@pytest.mark.parametrize("market", LIVE)
def test_14_no_answer_but_executed(market, how):
    run(row_14, market, how)


async def row_15(market, how):
    async with world(market) as w:
        w.fault("request", op="place", how=how, executed=False)
        w.bot.wanted = [SimpleNamespace(side=1, price_ticks=BID, qty_lots=3, reason="")]
        await until(lambda: w.bot.said("unknown"))
        (o,) = w.bot.m.orders.values()
        await until(lambda: o.done)
        assert o.state is State.REJECTED and o.inferred and len(w.bot.said("order-status", o.client_id)) >= 3
        await until(lambda: len(w.truth("new")) == 1)
        await w.rest()
        assert len(w.bot.m.orders) == 2 and not [x for x in w.truth("new") if x["client_id"] == o.client_id], "quoted again, once, under another name"


@pytest.mark.parametrize("how", ["503", "hang", "reset"])
@pytest.mark.parametrize("market", LIVE)
def test_15_no_answer_and_not_executed(market, how):
    run(row_15, market, how)


async def row_15_proof(market, how):
    async with world(market) as w:
        w.fault("request", op="place", how=how)
        o = w.bot.place(1, BID, 3)
        await until(lambda: o.done)
        assert o.state is State.REJECTED and not o.inferred and not w.bot.said("unknown")
        await w.rest()


@pytest.mark.parametrize("market,how", [("usdm", "503-failed"), ("usdm", "1008"), ("spot", "1008")])
def test_15_these_are_proof(market, how):
    run(row_15_proof, market, how)


async def row_16(market):
    async with world(market) as w:
        w.fault("request", op="place", how="reset", late_ms=3000)
        o = w.bot.place(1, BID, 3)
        await until(lambda: o.done)
        assert o.state is State.REJECTED and o.inferred
        w.bot.wanted = []
        await until(lambda: w.truth("new"), 10)
        await until(lambda: o.done and o.state is State.CANCELLED)
        await w.rest()
        assert w.truth("canceled")[0]["client_id"] == o.client_id


@pytest.mark.parametrize("market", LIVE)
def test_16_executed_after_it_was_given_up(market):
    run(row_16, market)


async def row_17(market):
    async with world(market) as w:
        w.fault("request", op="place", how="slow", delay_ms=150)
        o = w.bot.place(1, ASK, 7, "limit")
        await until(lambda: o.filled_lots == 5)
        assert o.state is State.PARTIAL, "the stream was first"
        w.fault("rest", side=-1, tick=ASK, lots=1)
        await until(lambda: o.filled_lots == 6)
        await asyncio.sleep(0.2)
        assert o.state is State.PARTIAL and o.filled_lots == 6 and len(w.bot.said("accepted")) == 1, "the answer to the request changes nothing"
        await w.rest()


@pytest.mark.parametrize("market", LIVE)
def test_17_fill_before_the_answer(market):
    run(row_17, market)


# ---------------------------------------------------------------- 18: fills and cancels cross

async def row_18(market, how):
    async with world(market) as w:
        o = w.bot.place(1, BID + 1, 6)
        await w.rest()
        lots = 6 if how == "filled" else 2
        if how != "fill, then cancel":
            w.fault("delay", stream="user", ms=2000, n=1 if market == "spot" else 2)
        w.fault("trade", side=-1, tick=BID + 1, lots=lots)
        w.bot.cancel(o)
        await until(lambda: o.done or w.bot.said("cancel-rejected"))
        if how == "cancel, then late fill":
            assert o.state is State.CANCELLED and o.filled_lots == 0 and o.told_lots == 2, "the cancel tells of lots that nobody has reported yet"
            assert w.bot.m.exposure("BTCUSDT").buy_lots == 2, "they count"
        if how == "filled":
            assert o.state is not State.CANCELLED, "-2011 is no proof of a cancel"
        await w.rest()
        assert o.filled_lots == lots == w.bot.m.position("BTCUSDT") and o.state is (State.FILLED if how == "filled" else State.CANCELLED)
        if how == "filled":
            assert "-2011" in w.bot.said("cancel-rejected")[0].reason and not w.bot.said("cancel-rejected")[0].definitive


@pytest.mark.parametrize("how", ["fill, then cancel", "cancel, then late fill", "filled"])
@pytest.mark.parametrize("market", LIVE)
def test_18_fill_and_cancel(market, how):
    run(row_18, market, how)


async def row_18_names():
    "On a spot cancel the stream's c is the cancel's own name; the order's is in C."
    async with world("spot", settings=replace(FAST, timeout_s=2.0)) as w:
        o = w.bot.place(1, BID, 3)
        await w.rest()
        w.fault("request", op="cancel", how="hang", executed=True)  # only the stream tells
        w.bot.cancel(o)
        await until(lambda: o.done, 1.5)
        assert o.state is State.CANCELLED and w.bot.said("cancelled")[0].client_id == o.client_id and w.truth("canceled")[0]["cancel_id"] != o.client_id
        await w.rest()
        assert not [k for k in w.bot.m.orders if k != o.client_id]


def test_18_a_cancel_has_its_own_name():
    run(row_18_names)


@pytest.mark.parametrize("how", ["503", "hang", "reset", "garbage"])
@pytest.mark.parametrize("market", LIVE)
@pytest.mark.parametrize("executed", [True, False])
def test_18_cancel_without_an_answer(market, how, executed):
    async def row():
        async with world(market) as w:
            o = w.bot.place(1, BID, 3)
            await w.rest()
            w.fault("request", op="cancel", how=how, executed=executed)
            w.bot.cancel(o)
            await until(lambda: o.done)
            assert o.state is State.CANCELLED
            await w.rest()
    run(row)


# ---------------------------------------------------------------- 19: cancel-replace

def most_live(w, side):
    "The most orders that a side ever had in the exchange's own log."
    live, most = set(), 0
    for x in w.sim.exchange.truth:
        if x.get("side") == side and "client_id" in x and x["kind"] not in ("refused", "cancel-refused"):
            (live.add if x["left_lots"] else live.discard)(x["client_id"])
            most = max(most, len(live))
    return most


async def row_19(market, how):
    async with world(market, pairs=True, policy=RequotePolicy(overlap=True)) as w:
        a = w.bot.place(1, BID, 3)
        await w.rest()
        if how == "cancel fails":
            w.fault("delay", stream="user", ms=1500, n=1 if market == "spot" else 2)
            w.fault("trade", side=-1, tick=BID, lots=8)
        tick = {"both": BID - 1, "new fails": ASK, "cancel fails": BID - 1, "unknown": BID - 1, "unknown, not done": BID - 1}[how]
        if how.startswith("unknown"):
            w.fault("request", op="replace" if market == "spot" else "cancel", how="hang", executed=how == "unknown")
        w.bot.m.modify_quote(a.client_id, price_ticks=tick, qty_lots=3, now_ns=w.bot.now())
        await w.rest()
        assert most_live(w, 1) == 1, "never two quotes on a side"
        b = [o for k, o in w.bot.m.orders.items() if o is not a]
        assert a.state is (State.FILLED if how == "cancel fails" else State.CANCELLED)
        done = how in ("both", "unknown")  # in two steps the stream's word about the cancel is enough for the second
        assert (b[0].state is State.WORKING) is done, b[0].state


@pytest.mark.parametrize("how", ["both", "new fails", "cancel fails", "unknown", "unknown, not done"])
@pytest.mark.parametrize("market", LIVE)
def test_19_cancel_replace(market, how):
    run(row_19, market, how)


# ---------------------------------------------------------------- 20, 21: the stream lies about order; orders that are not ours

async def row_20(market, how):
    async with world(market) as w:
        w.fault(how, stream="user", n=-1) if how == "duplicate" else [w.fault("reorder", stream="user", n=40)]
        orders = [w.bot.place(1, BID + 1, 4), w.bot.place(-1, ASK, 3), w.bot.place(1, BID, 2)]
        await until(lambda: all(o.state is State.WORKING for o in orders))
        for lots in (1, 2, 1, 3):
            w.fault("trade", side=-1, tick=BID + 1, lots=lots)
            await asyncio.sleep(0.02)
        w.bot.cancel(orders[1])
        await asyncio.sleep(0.1)
        w.sim.clear(how)
        await w.rest()
        assert orders[0].filled_lots == 4 and len(w.bot.said("fill")) == len({r.exec_id for r in w.bot.said("fill")}) == 3
        assert orders[1].state is State.CANCELLED and orders[2].state is State.WORKING


@pytest.mark.parametrize("how", ["duplicate", "reorder"])
@pytest.mark.parametrize("market", LIVE)
def test_20_twice_and_out_of_order(market, how):
    run(row_20, market, how)


async def row_21(market):
    async with world(market) as w, contextlib.AsyncExitStack() as stack:
        mine = w.bot.place(1, BID, 3)
        await w.rest()
        other = venue_of(w.sim, w.sim.url, market, kind="hmac", settings=FAST)
        await other.connect()
        stack.push_async_callback(other.close)
        await other.submit(NewOrder("somebody-else", "BTCUSDT", 1, BID - 1, 4))
        await other.drain()
        await until(lambda: "somebody-else" in w.bot.m.orders)
        assert w.bot.m.orders["somebody-else"].external and w.bot.m.exposure("BTCUSDT").buy_lots == 7, "it counts"
        await until(lambda: w.bot.m.quiet and w.bot.m.synced)
        w.bot.m.cancel_all(now_ns=w.bot.now())
        await until(lambda: not w.sim.exchange.truth_orders("alice"))
        await until(lambda: w.bot.m.quiet and mine.state is State.CANCELLED)


@pytest.mark.parametrize("market", LIVE)
def test_21_an_order_that_is_not_ours(market):
    run(row_21, market)


# ---------------------------------------------------------------- 22: clocks

async def row_22(market, ms):
    async with world(market, settings=replace(FAST, recv_window_ms=1000)) as w:
        w.bot.place(1, BID, 3)
        await w.rest()
        w.fault("skew", ms=ms)
        o = w.bot.place(1, BID - 1, 2)
        await w.rest()
        assert o.state is State.WORKING and w.venue.counts["answer: clock"] == 1, "refused once, then with the right time"
        assert abs(w.venue.offset_ns / MS - ms) < 500 and len(w.truth("new")) == 2
        w.fault("cut", kind="user")  # the stream signs with the same clock
        await until(lambda: w.bot.said("reconnected"))
        w.fault("skew", ms=0)
        w.bot.place(1, BID - 2, 1)
        await w.rest()


@pytest.mark.parametrize("ms", [2500, -2500])
@pytest.mark.parametrize("market", LIVE)
def test_22_the_clock_steps(market, ms):
    run(row_22, market, ms)


async def row_22_limit():
    async with world("spot", settings=replace(FAST, max_offset_s=1.0)) as w:
        a = w.bot.place(1, BID, 3)
        await w.rest()
        w.fault("skew", ms=5500)
        w.bot.place(1, BID - 1, 1)
        await until(lambda: abs(w.venue.offset_ns) > 5e9)
        o = w.bot.place(1, BID - 1, 1)
        await until(lambda: o.done)
        assert "clock" in w.bot.said("rejected", o.client_id)[0].reason
        w.bot.cancel(a)
        await until(lambda: a.done)
        assert a.state is State.CANCELLED, "cancels go out all the same"


def test_22_too_far_from_the_venue():
    run(row_22_limit)


# ---------------------------------------------------------------- 28, 30: the rules change; refusals in a row

async def row_28(market, status):
    async with world(market) as w:
        a = w.bot.place(1, BID, 3)
        await w.rest()
        w.fault("symbol_status", status=status)
        w.bot.place(1, BID - 1, 1)
        await until(lambda: w.venue.filters["BTCUSDT"].status == status)
        refused = len(w.truth("refused"))
        for _ in range(5):
            o = w.bot.place(1, BID - 1, 1)
            await until(lambda: o.done)
        assert status in w.bot.said("rejected", o.client_id)[0].reason and len(w.truth("refused")) == refused, "nobody is bothered any more"
        w.bot.cancel(a)
        if status == "HALT":
            await asyncio.sleep(0.1)
            w.fault("symbol_status", status="TRADING")
            await w.venue.exchange_info()
        await until(lambda: a.done)
        assert a.state is State.CANCELLED
        if status != "HALT":
            w.fault("symbol_status", status="TRADING")
            await w.venue.exchange_info()
        w.bot.place(1, BID - 1, 1)
        await w.rest()
        assert len(w.sim.exchange.truth_orders("alice")) == 1


@pytest.mark.parametrize("status", ["HALT", "CANCEL_ONLY"])
@pytest.mark.parametrize("market", LIVE)
def test_28_closed(market, status):
    run(row_28, market, status)


async def row_28_tick(market):
    async with world(market) as w:
        w.fault("filters", changes={"tick": "0.05"})
        first = w.bot.place(1, 98, 1)  # 0.98 is no multiple of 0.05
        await until(lambda: first.done)
        assert first.state is State.REJECTED
        await until(lambda: w.venue.counts["rules changed"])
        buy, sell = w.bot.place(1, 93, 1), w.bot.place(-1, 108, 1)
        await until(lambda: buy.state is sell.state is State.WORKING)
        assert (buy.price_ticks, sell.price_ticks) == (90, 110), "a bid is rounded down, an ask up, and the order manager is told"
        assert {o.side: o.tick for o in w.sim.exchange.truth_orders("alice")} == {1: 90, -1: 110}
        await w.rest()


@pytest.mark.parametrize("market", LIVE)
def test_28_tick_size_changed(market):
    run(row_28_tick, market)


async def row_30(market, how):
    money = {"USDT": "1", "BTC": "1"} if how == "balance" else None
    async with world(market, balances=money) as w:
        start = time.monotonic()
        lots, tick = (50_000, BID) if how == "balance" else (1, ASK)
        w.bot.wanted = [SimpleNamespace(side=1, price_ticks=tick, qty_lots=lots, reason="")]
        await asyncio.sleep(1.5)
        await until(lambda: len(w.bot.m.orders) > 60)
        w.bot.wanted = None
        took = time.monotonic() - start
        tried, refused = len(w.bot.m.orders), len(w.truth("refused"))
        assert refused <= 6 + 5 * took, f"{refused} refusals in {took:.1f} s"
        assert tried > 3 * refused, "the loop above us never stopped asking"
        other = w.bot.place(-1, ASK, 1)
        await until(lambda: other.state is not State.PENDING_NEW)
        assert other.state is State.WORKING, "the other side is free"
        await w.rest()


@pytest.mark.parametrize("how", ["balance", "post-only storm"])
@pytest.mark.parametrize("market", LIVE)
def test_30_refused_again_and_again(market, how):
    run(row_30, market, how)


async def dead_man():
    async with world("usdm", settings=replace(FAST, dead_man_s=1.5)) as w:
        assert w.venue.capabilities.dead_man_switch
        w.bot.place(1, BID, 1)
        await w.rest()
        await asyncio.sleep(2.0)
        assert len(w.sim.exchange.truth_orders("alice")) == 1, "we are alive"
        await w.venue.close()  # without a word
        await until(lambda: not w.sim.exchange.truth_orders("alice"), 5.0)


def test_dead_man_switch():
    run(dead_man)


# ---------------------------------------------------------------- a restart, when fees are paid in what was bought

async def row_restart(path):
    "The baseline goes through the guardian's file, and every session reads the same executions again."
    async with SimulatedVenue(symbols=[RULES], flow=None, levels={"BTCUSDT": LEVELS}, market="spot", taker_bps=2000.0) as sim:
        sim.exchange.fee_asset = "received"
        seen = []
        for n in range(3):
            v = venue_of(sim, sim.url, "spot", settings=FAST, baseline=guardian.load_baseline(path))
            await v.connect()
            if n == 0:
                await v.submit(NewOrder("a", "BTCUSDT", 1, 101, 5, "limit"))
                assert await v.drain()
                await sim.flushed()
            for _ in range(2):
                snap = await v.snapshot()
                seen.append((snap.positions["BTCUSDT"], v.baseline.spent, snap.cash))
            guardian.save_baseline(path, v.baseline)
            await v.close()
    assert seen == [(5, Decimal("1.01"), seen[0][2])] * 6, "five were bought, one of them is the fee: told as money, once"


def test_restart_with_fees_in_base(tmp_path):
    asyncio.run(row_restart(tmp_path / "baseline.json"))


def test_a_baseline_of_an_older_file(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text('{"units": {"BTC": "1.5"}, "time_ns": 5, "spent": "0.1"}', encoding="utf8")
    assert guardian.load_baseline(path) == Baseline({"BTC": Decimal("1.5")}, 5, Decimal("0.1"))


def test_a_baseline_that_cannot_be_written_is_tried_again(tmp_path, monkeypatch):
    path, notes, tries, save = tmp_path / "baseline.json", [], [], guardian.save_baseline

    def full(path, b):
        tries.append(b)
        if len(tries) in (1, 2, 4):
            raise OSError(28, "No space left on device")
        save(path, b)

    async def go():
        venue = SimpleNamespace(baseline=Baseline({"BTC": Decimal(2)}, 5), _note=notes.append)
        task = asyncio.ensure_future(guardian._keep_baseline(venue, path))
        await until(path.exists)
        venue.baseline = charged = venue.baseline.charge("BTCUSDT", 1, "BTC", Decimal("0.1"), Decimal(100))
        await until(lambda: len(tries) >= 5)
        await asyncio.sleep(0.5)
        assert guardian.load_baseline(path) == charged and len(tries) == 5 and not task.done()
        task.cancel()

    monkeypatch.setattr(guardian, "save_baseline", full)
    asyncio.run(go())
    assert [n.split(":")[0] for n in notes] == ["baseline not on disk", "baseline on disk again"] * 2, "told once, not five times a second"
