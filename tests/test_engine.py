"The live engine: file, loop, journal before send, stop, kill, rules; venue and feed in memory."
import asyncio
import contextlib
import gc
import itertools
import math
import time
import weakref

import numpy as np
import pytest
import yaml

from makerlab.core import ParameterError
from makerlab.execution.fills import fill_probability
from makerlab.execution.risk import MemoryLatch
from makerlab.execution.venue import Capabilities, Execution, NewOrder, OpenOrder, QueryOrder, Report, TopOfBook
from makerlab.live.engine import (DryRun, Engine, FeatureSection, FeatureValuer, FillSection, FillStage, StartRefused, _account_task, check_account, check_live, check_rules, check_start, load_live, make_trader,
                                  restore, rule_changes, session_word, steady_clock)
from makerlab.live.feed import Alarm, Market, StateChange
from makerlab.live.journal import Journal as SqliteJournal
from makerlab.live.metrics import Metrics
from makerlab.models.quote_engine import ConfigError

S = "BTCUSDT"
BASE = {
    "strategy": "mm", "instruments": {S: {"tick_size": 0.01, "lot_size": 0.001}}, "quoting": {"max_inventory_lots": 10, "half_spread_ticks": 2.0, "size": {"lots": 2}},
    "orders": {"windows": [{"limit": 1000, "window_ms": 1000, "reserve": 200}], "patience": {"timeout_ms": 500, "query_grace_ms": 100, "query_first_ms": 50, "protect_ms": 0}},
    "risk": {"account": {"max_gross": 1e6, "max_loss": 100.0, "max_drawdown": 50.0}, "default": {"max_order_lots": 10, "max_order_value": 1e4, "max_position_lots": 20, "duplicate_ms": 0, "jump_ticks": 10000, "max_fills": 1000}},
    "live": {"mode": "testnet", "timer_ms": 5, "snapshot_s": 1, "stop_s": 2, "warm": 1, "sample_s": 0.000001, "metrics_port": -1, "confirm_ms": 20}}


def config(data=BASE, mode=None, **live):
    data = yaml.safe_load(yaml.safe_dump(data))
    data["live"].update(live)
    return check_live(data, mode=mode)


class Feed:
    "An in-memory feed: put tops, they come out."

    def __init__(self):
        self.queue = asyncio.Queue()

    def __aiter__(self):
        return self

    async def __anext__(self):
        x = await self.queue.get()
        if x is None:
            raise StopAsyncIteration
        return x


class Venue:
    "Answers at once, keeps orders, can be told to misbehave."

    capabilities = Capabilities()

    def __init__(self, clock):
        self.clock, self.book, self.log, self.out, self.execs, self.held = clock, {}, [], asyncio.Queue(), [], {}
        self.raises = self.deaf = False
        self.on_submit = lambda o: None

    def say(self, kind, k, side=0, **more):
        self.out.put_nowait(Report(kind, k, S, side, self.clock(), definitive=True, **more))

    async def connect(self):
        self.log.append("connect")

    async def submit(self, o):
        self.log.append(o)
        self.on_submit(o)
        if self.raises:
            raise OSError("socket closed")
        self.book[o.client_id] = OpenOrder(o.client_id, o.symbol, o.side, o.price_ticks, o.qty_lots)
        self.say("accepted", o.client_id, o.side, price_ticks=o.price_ticks, qty_lots=o.qty_lots, cum_lots=0)

    async def cancel(self, r):
        self.log.append(r)
        if not self.deaf:
            o = self.book.pop(r.client_id, None)
            if o is None:
                self.say("cancel-rejected", r.client_id, reason="unknown order")
            else:
                self.say("cancelled", r.client_id, o.side, cum_lots=0, left_lots=0)

    async def cancel_all(self, symbol=None):
        self.log.append("cancel all")
        for k, o in list(self.book.items()):
            del self.book[k]
            self.say("cancelled", k, o.side, cum_lots=0, left_lots=0)

    async def query(self, r):
        self.log.append(r)
        o = self.book.get(r.client_id)
        self.say("order-status", r.client_id, status="working" if o else "not-found", **(dict(price_ticks=o.price_ticks, qty_lots=o.qty_lots, cum_lots=0) if o else {}))

    def fill(self, k):
        o = self.book.pop(k)
        self.execs.append(Execution(f"e{len(self.execs)}", k, S, o.side, o.price_ticks, o.qty_lots, 0.0, True, self.clock()))
        self.held[S] = self.held.get(S, 0) + o.side * o.qty_lots
        self.say("fill", k, o.side, exec_id=self.execs[-1].exec_id, price_ticks=o.price_ticks, qty_lots=o.qty_lots, cum_lots=o.qty_lots, left_lots=0)

    async def open_orders(self, symbol=None):
        return list(self.book.values())

    async def order(self, k):
        return self.book.get(k)

    async def executions(self, since_ns=0):
        return [e for e in self.execs if e.time_ns >= since_ns]

    async def positions(self):
        return dict(self.held)

    async def events(self):
        while (r := await self.out.get()) is not None:
            yield r


class Journal:
    "Remembers in which order things were written; can fail."

    def __init__(self):
        self.rows, self.full = [], False

    def write(self, what, x):
        if self.full:
            raise OSError(28, "No space left on device")
        self.rows.append((what, x))

    def intents(self, rows, now_ns):
        for r in rows:
            self.write("intent", r)

    def report(self, r, now_ns):
        self.write("report", r)

    def event(self, x):
        self.write("event", x)

    def snapshot(self, x, now_ns):
        self.write("snapshot", x)

    def balance(self, manager, now_ns):
        self.write("balance", None)

    def note(self, kind, text):
        self.write("note", (kind, text))


class Desk:
    "An engine on a stub, running as a task."

    def __init__(self, cfg=None, **parts):
        self.clock = steady_clock()
        self.config, self.venue, self.feed, self.journal = cfg or config(), Venue(self.clock), Feed(), Journal()
        self.latch = MemoryLatch()
        self.trader = make_trader(self.config, session="s", latch=self.latch, capabilities=self.venue.capabilities)
        self.engine = Engine(self.config, venue=self.venue, feed=self.feed, trader=self.trader, journal=self.journal, clock=self.clock, **parts)

    async def __aenter__(self):
        self.task = asyncio.ensure_future(self.engine.run())
        return self

    async def __aexit__(self, *_):
        if not self.task.done():
            self.engine.stop()
            await asyncio.wait_for(self.task, 10)

    def top(self, bid=10_000, ask=None, **more):
        now, ask = self.clock(), ask or bid + 4
        self.feed.queue.put_nowait(TopOfBook(S, bid, ask, 5, 5, now, now, **more))

    async def until(self, what, seconds=5.0):
        for _ in range(int(seconds / 0.002)):
            if what():
                return
            await asyncio.sleep(0.002)
        raise AssertionError(f"not within {seconds} s; {self.engine.status()}")

    async def quoting(self):
        "Until two quotes stand."
        for i in itertools.count():
            self.top(10_000 + i % 2)
            await asyncio.sleep(0.002)
            if len(self.venue.book) == 2:
                return
            assert i < 1000, [self.engine.status()[k] for k in ('aside', 'denied', 'tripped', 'symbols', 'counts')]


def story(test):
    "A coroutine as a test."
    def run():
        asyncio.run(asyncio.wait_for(test(), 20))
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@story
async def test_it_quotes_and_stops_with_nothing_left():
    async with Desk() as d:
        await d.quoting()
        sides = sorted(o.side for o in d.venue.book.values())
        assert sides == [-1, 1] and d.engine.phase == "running"
        d.engine.stop("test")
        assert await asyncio.wait_for(d.task, 5) == 0
        assert not d.venue.book and d.engine.phase == "stopped"
        assert any("verified" in words for _, _, words in d.engine.log)


@story
async def test_every_order_is_in_the_journal_before_it_leaves():
    async with Desk() as d:
        d.venue.on_submit = lambda o: seen.append(("intent", o) in d.journal.rows)
        seen = []
        await d.quoting()
        assert seen and all(seen)


@story
async def test_a_journal_that_fails_halts_the_account_and_cancels_still_leave():
    async with Desk() as d:
        await d.quoting()
        d.journal.full = True
        await d.until(lambda: d.top(10_000 + len(d.venue.log) % 7) or not d.venue.book)
        n = sum(isinstance(x, NewOrder) for x in d.venue.log)
        for i in range(20):
            d.top(10_010 + 3 * i)
            await asyncio.sleep(0.005)
        assert sum(isinstance(x, NewOrder) for x in d.venue.log) == n, "no order leaves without its line in the journal"
        assert "journal" in d.latch.tripped["*"] and str(d.trader.guard.state) == "HALTED"
        assert d.engine.counts["journal errors"] >= 1


@story
async def test_an_order_that_the_journal_does_not_take_is_known_not_to_have_left():
    async with Desk() as d:
        def full(rows, now_ns):
            raise OSError(28, "No space left on device")
        d.journal.intents = full  # the first row that fails is that of an order
        await d.until(lambda: d.top(10_000) or d.engine.counts["order state"])
        await d.until(lambda: d.engine.counts["journal errors"] and not d.trader.orders.live() and not d.trader.orders.unknown())
        assert not any(isinstance(x, NewOrder) for x in d.venue.log)
        assert d.engine.counts["rejected: the journal does not take it"] >= 1, d.engine.counts


@story
async def test_a_decision_is_written_as_a_whole_and_questions_leave_without_a_row():
    async with Desk() as d:
        wrote = []
        d.journal.intents = lambda rows, now_ns: wrote.append(len(rows))
        await d.quoting()
        assert 2 in wrote, "both sides in one statement"
        n = len(wrote)
        d.engine.send([QueryOrder("x")], d.clock())
        await d.until(lambda: QueryOrder("x") in d.venue.log)
        assert len(wrote) == n


@story
async def test_orders_leave_before_the_paperwork():
    class Copy:
        def tick(self, top):
            order.append(("copy", top))

        def position(self, *args):
            pass
        orders = position

        def pnl(self, **money):
            pass
    order = []
    async with Desk(mirror=Copy()) as d:
        d.venue.on_submit = lambda o: order.append(("order", d.engine.tops[S]))
        await d.quoting()
        why = next(top for word, top in order if word == "order")
        await d.until(lambda: ("copy", why) in order)
        assert order.index(("order", why)) < order.index(("copy", why)) and order.count(("order", why)) == 2


@story
async def test_garbage_is_collected_between_decisions_only():
    async with Desk() as d:
        await d.until(lambda: d.engine.phase == "running" and not gc.isenabled())
        ring = type("Ring", (list,), {})()
        ring.append(ring)
        gone = weakref.ref(ring)
        del ring
        assert gone() is not None
        await d.until(lambda: gone() is None, 3)
    assert gc.isenabled() and gc.get_freeze_count() == 0


@story
async def test_kill_is_latched_and_verified():
    async with Desk() as d:
        await d.quoting()
        found = await d.engine.kill("somebody")
        assert found["verified"] and found["open_orders"] == 0 and not d.venue.book
        n = len(d.venue.log)
        for i in range(10):
            d.top(10_000 + 5 * i)
            await asyncio.sleep(0.005)
        assert not any(isinstance(x, NewOrder) for x in d.venue.log[n:]) and d.latch.tripped["*"].startswith("kill")
        d.engine.rearm("anna", "looked")
        await d.quoting()


@story
async def test_a_venue_that_does_not_hear_single_cancels_is_told_to_cancel_all():
    async with Desk(config(stop_s=3)) as d:
        await d.quoting()
        d.venue.deaf = True
        d.engine.stop()
        assert await asyncio.wait_for(d.task, 10) == 0
        assert "cancel all" in d.venue.log and not d.venue.book


@story
async def test_a_stop_that_stood_still_for_all_of_its_time_still_tells_the_venue_to_cancel_all():
    async with Desk(config(stop_s=0.4)) as d:
        await d.quoting()
        d.venue.deaf, pull = True, d.engine._pull

        def standing_still(reason):
            d.engine._pull = pull
            time.sleep(0.5)
            pull(reason)
        d.engine._pull = standing_still
        d.engine.stop()
        await asyncio.wait_for(d.task, 5)
        assert d.venue.log.count("cancel all") == 1 and not d.venue.book


@story
async def test_a_stop_that_cannot_be_verified_says_so():
    async with Desk(config(stop_s=0.3)) as d:
        await d.quoting()

        async def nobody(symbol=None):
            raise OSError("no route")
        d.venue.open_orders = nobody
        d.engine.stop()
        assert await asyncio.wait_for(d.task, 5) == 1
        assert any("NOT VERIFIED" in w for _, _, w in d.engine.log)


@story
async def test_orders_left_by_an_earlier_session_are_cancelled_at_the_start():
    d = Desk()
    d.venue.book["mmold1"] = OpenOrder("mmold1", S, 1, 9_990, 1)
    d.venue.book["x-77"] = OpenOrder("x-77", S, -1, 10_100, 1)
    async with d:
        await d.until(lambda: d.engine.phase == "running" and not {"mmold1", "x-77"} & set(d.venue.book))
        await d.quoting()
        d.venue.book["x-78"] = OpenOrder("x-78", S, -1, 10_100, 1)  # while the market is seen: nothing else would pull it
        await d.until(lambda: d.top(10_000) or "x-78" not in d.venue.book)
        assert len(d.venue.book) == 2


@story
async def test_orders_of_others_can_be_refused():
    d = Desk(config(found="refuse"))
    d.venue.book["x-77"] = OpenOrder("x-77", S, -1, 10_100, 1)
    async with d:
        with pytest.raises(StartRefused, match="not ours"):
            await asyncio.wait_for(d.task, 5)


@pytest.mark.parametrize("halted", [False, True])
def test_a_refused_start_touches_no_order_that_is_not_ours(halted):
    @story
    async def test():
        d = Desk(config(found="refuse"))
        if halted:
            d.latch.trip("*", "kill: x", 1)
        d.venue.book["x-77"] = OpenOrder("x-77", S, -1, 10_100, 1)
        d.venue.book["mmold1"] = OpenOrder("mmold1", S, 1, 9_990, 1)
        async with d:
            with pytest.raises(StartRefused):
                await asyncio.wait_for(d.task, 5)
        assert list(d.venue.book) == ["x-77"] and not any(getattr(x, "client_id", x) in ("x-77", "cancel all") for x in d.venue.log)
        assert d.engine.verified and d.engine.phase == "stopped"
    test()


def gone(words="", **more):
    raise OSError(28, "No space left on device")


@story
async def test_a_screen_that_is_gone_blocks_neither_kill_nor_stop():
    for way in ("kill", "stop", "journal"):
        async with Desk() as d:
            await d.quoting()
            d.engine.say = gone
            if way == "kill":
                assert (await d.engine.kill("somebody"))["verified"] and d.latch.tripped["*"].startswith("kill")
            elif way == "journal":
                d.journal.full = True
                await d.until(lambda: d.top(10_000 + len(d.venue.log) % 7) or not d.venue.book)
                assert "journal" in d.latch.tripped["*"]
            else:
                d.engine.stop("x")
                assert await asyncio.wait_for(d.task, 5) == 0
            assert not d.venue.book


@story
async def test_a_kill_comes_before_its_line_in_the_log():
    async with Desk() as d:
        await d.quoting()
        seen = []
        d.engine.say = lambda words: seen.append((words, dict(d.latch.tripped)))
        await d.engine.kill("somebody")
        d.engine.rearm("anna")
        await d.quoting()
        d.journal.full = True
        await d.until(lambda: d.top(10_000 + len(d.venue.log) % 7) or not d.venue.book)
        first = [next(trips for words, trips in seen if words.startswith(start)) for start in ("kill: somebody", "alert: journal")]
        assert all("*" in trips for trips in first)


@story
async def test_a_stop_is_bounded_and_tries_the_cancel_all_though_nobody_answers():
    async def never(symbol=None):
        asked.append(symbol)
        await asyncio.sleep(1e6)

    async def nobody(symbol=None):
        raise OSError("no route")
    for questions, cancels in ((nobody, None), (never, None), (None, never)):
        asked = []
        async with Desk(config(stop_s=0.6)) as d:
            await d.quoting()
            d.venue.deaf = True
            d.venue.open_orders = questions or d.venue.open_orders
            d.venue.cancel_all = cancels or d.venue.cancel_all
            begin = d.clock()
            found = await asyncio.wait_for(d.engine.kill("x"), 10)
            assert (d.clock() - begin) / 1e9 < 3 and not found["verified"], "0.6 s, the last question, and a loaded machine"
            assert S in asked if cancels else ("cancel all" in d.venue.log and not d.venue.book)
            assert found["open_orders"] == 2 if cancels else found["open_orders"] >= 0
            d.engine.stop()
            assert await asyncio.wait_for(d.task, 10) == 1


@story
async def test_a_pipeline_that_raises_keeps_no_cancel_all_back():
    async with Desk(config(stop_s=0.6)) as d:
        await d.quoting()
        d.trader.on_timer = gone
        d.engine.stop()
        await asyncio.wait_for(d.task, 10)
        assert "cancel all" in d.venue.log and not d.venue.book


@story
async def test_one_symbol_that_hangs_does_not_keep_the_cancel_all_from_the_others():
    data = yaml.safe_load(yaml.safe_dump(BASE))
    data["instruments"]["AAAUSDT"] = data["instruments"][S]
    async with Desk(config(data, stop_s=3)) as d:
        await d.quoting()
        d.venue.deaf, true = True, d.venue.cancel_all

        async def one(symbol=None):
            await (asyncio.sleep(1e6) if symbol != S else true(symbol))
        d.venue.cancel_all = one
        d.engine.stop()
        assert await asyncio.wait_for(d.task, 10) == 0 and not d.venue.book


@story
async def test_the_account_task_ends_when_it_is_cancelled_in_the_turn_it_is_wanted():
    d = Desk()
    task = asyncio.ensure_future(_account_task(d.engine))
    await asyncio.sleep(0.05)
    d.engine._want.set()
    await asyncio.sleep(0)
    task.cancel()
    assert (await asyncio.wait({task}, timeout=1.5))[0], "a stop would wait for it for ever"


@story
async def test_a_task_that_does_not_end_holds_no_stop_for_ever():
    async with Desk() as d:
        await d.quoting()

        async def stubborn():
            while not let.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let.wait()
        let = asyncio.Event()
        d.engine._tasks["stubborn"] = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0.05)
        d.engine.stop()
        try:
            assert await asyncio.wait_for(asyncio.shield(d.task), 12) == 0 and not d.venue.book
        finally:
            let.set()


@pytest.mark.parametrize("verified", [True, False])
def test_the_dead_mans_switch_stays_armed_unless_the_stop_is_verified(verified):
    @story
    async def test():
        calls = []

        async def countdown(symbol, ms):
            calls.append(ms)

        async def nobody(symbol=None):
            raise OSError("no route")
        d = Desk(config(market="usdm", stop_s=0.4))
        d.venue.countdown = countdown
        async with d:
            await d.quoting()
            d.venue.open_orders = d.venue.open_orders if verified else nobody
            d.engine.stop()
            assert await asyncio.wait_for(d.task, 8) == (0 if verified else 1)
        assert calls and (calls[-1] == 0) is verified
    test()


@story
async def test_a_part_that_fails_and_a_stop_that_is_not_verified_say_one():
    async def nobody(symbol=None):
        raise OSError("no route")
    async with Desk(config(stop_s=0.3)) as d:
        await d.quoting()
        d.venue.open_orders = nobody
        d.feed.queue.put_nowait(RuntimeError)
        d.engine.hear = None
        assert await asyncio.wait_for(d.task, 8) == 1, "2 promises that everything was cancelled"


@story
async def test_a_thousand_failed_snapshots_do_not_end_the_session():
    d, true = Desk(), asyncio.sleep

    async def nobody(symbol=None):
        raise OSError("no route")
    d.venue.open_orders, d.engine.note = nobody, lambda kind, words: None
    with pytest.MonkeyPatch.context() as m:
        m.setattr("makerlab.live.engine.asyncio.sleep", lambda s: true(0))
        task = asyncio.ensure_future(_account_task(d.engine))
        while not task.done() and d.engine.counts["snapshots failed"] < 1100:
            await true(0)
    assert not task.done(), task.exception()
    task.cancel()


@story
async def test_the_first_beat_comes_before_the_first_order():
    sent = []
    d = Desk(config(timer_ms=1000))
    d.engine.beats.append(lambda now: sent.append((d.engine.phase, d.engine.counts["NewOrder"])))
    async with d:
        await d.quoting()
        assert sent[0] == ("starting", 0)


@story
async def test_a_rearm_asks_the_journal_first():
    async with Desk() as d:
        await d.quoting()
        d.journal.full = True
        await d.until(lambda: d.top(10_000 + len(d.venue.log) % 7) or not d.venue.book)
        with pytest.raises(ParameterError, match="make room"):
            d.engine.rearm("anna", "looked")
        assert str(d.trader.guard.state) == "HALTED" and "*" in d.latch.tripped
        d.journal.full = False
        d.engine.rearm("anna", "made room")
        await d.quoting()
        assert not d.engine.journal_error and not any("journal" in k and "rejected" in k and n > 2 for k, n in d.engine.counts.items())


@story
async def test_a_venue_that_raises_leaves_an_unknown_order_that_is_asked_for():
    async with Desk() as d:
        await d.until(lambda: d.engine.phase == "running")
        d.venue.raises = True
        await d.until(lambda: d.top(10_000 + len(d.venue.log) % 3) or any(isinstance(x, QueryOrder) for x in d.venue.log))
        assert d.trader.orders.unknown() and d.engine.counts["venue errors"]
        d.venue.raises = False
        await d.until(lambda: not d.trader.orders.unknown())


@story
async def test_a_fill_is_booked_and_snapshots_agree():
    async with Desk() as d:
        await d.quoting()
        k = next(k for k, o in d.venue.book.items() if o.side == 1)
        d.venue.fill(k)
        await d.until(lambda: d.trader.orders.positions[S] == 2)
        n = d.engine.counts["snapshots"]
        await d.until(lambda: d.engine.counts["snapshots"] > n + 1)
        assert d.trader.orders.positions[S] == 2 and not d.trader.orders.wants_snapshot
        assert d.trader.guard.tracks[S].ledger.position == 2


@story
async def test_a_lost_connection_pulls_quotes_and_a_snapshot_brings_them_back():
    async with Desk() as d:
        await d.quoting()
        d.venue.say("disconnected", "")
        await d.until(lambda: not d.venue.book)
        n = d.engine.counts["snapshots"]
        d.venue.say("reconnected", "")
        await d.until(lambda: d.engine.counts["snapshots"] > n)
        await d.until(lambda: d.top(10_000 + len(d.venue.log) % 3) or len(d.venue.book) == 2)


@story
async def test_a_quiet_book_is_confirmed_only_while_the_feed_lives():
    async with Desk() as d:
        limits = d.config.session.limits[S]
        d.top()
        await d.until(lambda: S in d.engine.tops)
        first = d.engine.tops[S]
        for _ in range(30):
            d.feed.queue.put_nowait(Market("trade", S, 0, 0, None))
            await asyncio.sleep(0.005)
        sure = d.engine.tops[S]
        assert sure.local_ns > first.local_ns and (sure.bid_ticks, sure.ask_ticks) == (first.bid_ticks, first.ask_ticks)
        assert first.time_ns <= sure.time_ns <= max(first.time_ns, sure.local_ns - limits.max_lag_ns // 2)
        await asyncio.sleep(0.15)
        held = d.engine.tops[S].local_ns
        await asyncio.sleep(0.1)
        assert d.engine.tops[S].local_ns == held


@story
async def test_a_part_that_dies_ends_the_session_with_everything_cancelled():
    async with Desk() as d:
        await d.quoting()
        d.feed.queue.put_nowait(RuntimeError)
        d.engine.hear = None  # an item that cannot be heard
        assert await asyncio.wait_for(d.task, 5) == 2
        assert not d.venue.book and "feed" in d.engine.why


@story
async def test_a_dry_run_sends_nothing():
    cfg = config(mode="dry-run")
    clock = steady_clock()
    venue, feed = DryRun(cfg.session.instruments, clock=clock), Feed()
    trader = make_trader(cfg, session="s", latch=MemoryLatch())
    engine = Engine(cfg, venue=venue, feed=feed, trader=trader, clock=clock)
    task = asyncio.ensure_future(engine.run())
    for i in range(500):
        now = clock()
        feed.queue.put_nowait(TopOfBook(S, 10_000 + i % 2, 10_004, 5, 5, now, now))
        await asyncio.sleep(0.002)
        if len(venue.resting) == 2:
            break
    assert {o.side for o in venue.resting.values()} == {1, -1} and not cfg.sends
    engine.stop()
    assert await asyncio.wait_for(task, 5) == 0 and not venue.resting


def info(tick="0.01", lot="0.001", status="TRADING", **more):
    "An answer of exchangeInfo."
    return {"rateLimits": [{"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": more.pop("orders", 100)}], "symbols": [{
        "symbol": S, "status": status, "baseAsset": "BTC", "quoteAsset": "USDT", "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": more.pop("least", lot), "maxQty": more.pop("most", "100"), "stepSize": lot}]}]}


@story
async def test_a_symbol_that_closes_is_not_quoted_until_it_opens():
    async with Desk() as d:
        await d.quoting()
        table = d.config.session.instruments
        d.engine.obey(rule_changes(info(status="HALT"), table))
        await d.until(lambda: not d.venue.book)
        n = len(d.venue.log)
        for i in range(10):
            d.top(10_000 + i)
            await asyncio.sleep(0.003)
        assert not any(isinstance(x, NewOrder) for x in d.venue.log[n:]) and "HALT" in d.engine.status()["symbols"][S]["closed"]
        d.engine.obey(rule_changes(info(), table))
        await d.quoting()
        d.engine.obey(rule_changes(info(tick="0.1"), table))
        await d.until(lambda: not d.venue.book)
        d.engine.obey(rule_changes(info(), table))
        d.top(10_002)
        await asyncio.sleep(0.05)
        assert not d.venue.book, "other steps need a new start, not a good day"


@story
async def test_a_lost_book_pulls_the_quotes_at_once():
    async with Desk() as d:
        await d.quoting()
        now = d.clock()
        d.feed.queue.put_nowait(Market("state", S, now, now, StateChange("SYNCED", "INVALID", "gap")))
        d.feed.queue.put_nowait(Market("book", S, now, now, TopOfBook(S, 10_000, 10_004, 5, 5, now, now, synced=False)))
        d.feed.queue.put_nowait(Market("alarm", S, -1, now, Alarm("silence", "btcusdt@depth")))
        await d.until(lambda: not d.venue.book)
        assert d.engine.counts["alarm silence"] == 1 and any("INVALID gap" in w for _, _, w in d.engine.log)


@story
async def test_a_book_that_was_lost_is_no_market_gone_mad():
    "Neither the empty book of a gap nor a snapshot without a time opens a breaker: we are back with the book, not half a minute later."
    async with Desk() as d:
        await d.quoting()
        now = d.clock()
        d.feed.queue.put_nowait(Market("book", S, -1, now, TopOfBook(S, 0, 0, 0, 0, -1, now, synced=False)))
        await d.until(lambda: not d.venue.book)
        now = d.clock()
        d.feed.queue.put_nowait(Market("book", S, -1, now, TopOfBook(S, 10_000, 10_004, 5, 5, -1, now)))
        await d.until(lambda: len(d.venue.book) == 2, 2)
        assert not any("breaker" in words for _, _, words in d.engine.log)


@story
async def test_a_silent_feed_pulls_the_quotes():
    async with Desk(config(confirm_ms=10_000)) as d:
        await d.quoting()
        await d.until(lambda: not d.venue.book, 6)
        assert any("stale" in words for _, _, words in d.engine.log)


@pytest.mark.parametrize(("change", "words"), [
    (dict(mode="live"), "no real money"), (dict(preset="spot"), "is no test market"), (dict(preset="usdm-demo"), "does not have the market spot"),
    (dict(timer_ms=0), "live.timer_ms"), (dict(spelled="wrong"), "unknown key"), (dict(api_secret="x"), "does not belong"), (dict(fills={"min_probability": 0.1}), "without a rate"),
    (dict(features={"window_s": 1.0}), "two steps"), (dict(metrics_port=70000), "live.metrics_port"),
    (dict(timer_ms=20_000, silent_s=5), "live.silent_s: 5 s must be at least four times timer_ms"), (dict(timer_ms=100, silent_s=0.2), "live.silent_s"),
])
def test_mistakes_in_the_live_section_are_told_with_their_line(tmp_path, change, words):
    data = yaml.safe_load(yaml.safe_dump(BASE))
    data["live"].update(change)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=words) as e:
        load_live(tmp_path / "s.yaml")
    assert all("line" in p or p.startswith("live.") for p in e.value.problems)


def test_the_mode_by_hand_never_reaches_real_money_by_accident():
    real = yaml.safe_load(yaml.safe_dump(BASE))
    real["live"] |= {"preset": "spot", "mode": "live", "account": "1"}
    real["venue"] = {"kind": "live", "name": "binance", "testnet": False}
    assert check_live(real).sends
    assert check_live(real, mode="testnet").live.preset == "spot-testnet"
    assert not check_live(real, mode="dry-run").sends and not check_live(real, mode="paper").sends
    with pytest.raises(ConfigError, match="written down"):
        check_live(real | {"venue": {"kind": "live", "name": "binance"}})
    no_mode = yaml.safe_load(yaml.safe_dump(BASE))
    del no_mode["live"]
    assert check_live(no_mode).mode == "dry-run", "dry run unless told otherwise"
    with pytest.raises(ParameterError):
        check_live(BASE, mode="rocket")


def test_findings_name_the_remedy():
    c = config()
    assert all(f.ok for f in check_rules(c, info()))
    for told, word in ((info(tick="0.1"), "tick_size: 0.1"), (info(status="BREAK"), "opens"), (info(least="0.01"), "at least 10"), (info(most="0.005"), "at most 5"),
                       (info(orders=2), "fewer levels"), ({"symbols": []}, "as the venue does")):
        told.setdefault("rateLimits", [])
        assert [f for f in check_rules(c, told) if not f.ok and word in f.remedy], (word, check_rules(c, told))
    named = config(account="7")
    wrong = lambda **more: [f.check for f in check_account(named, **({"account": {"uid": 7}} | more)) if not f.ok]
    assert wrong() == [] and wrong(offset_ns=10**9) == ["clock"] and wrong(account={"uid": 8}) == ["account"] and wrong(account={}) == ["account"]
    assert wrong(account={"uid": 7, "canTrade": False}) == ["permissions"] and wrong(key={"enableWithdrawals": True}) == ["permissions"]
    assert wrong(key={"enableSpotAndMarginTrading": False}) == ["permissions"] and wrong(kept_for="another") == ["files"]
    latch = MemoryLatch()
    latch.trip("*", "kill: x", 1)
    assert wrong(latch=latch) == ["latch"] and any("mm-engine rearm" in f.remedy for f in check_account(named, latch=latch, account={"uid": 7}))
    latch.rearm("*", "ada", "", 2)
    latch.trip("BTCUSDT", "loss", 3)
    assert wrong(latch=latch) == []  # one symbol stands aside, the others may be quoted

    class Mute:
        async def exchange_info(self):
            raise OSError("no route")
    found = asyncio.run(check_start(c, Mute()))
    assert [f.check for f in found if not f.ok] == ["exchange info"]


def test_likely_quotes_are_smaller_and_unlikely_ones_left_out():
    class Fixed:
        due = None

        def quotes_top(self, top, theo, **more):
            return [make(1, 9_999), make(1, 9_990), make(-1, 10_001)]
    from makerlab.models.quote_engine import QuoteInstruction
    make = lambda side, price: QuoteInstruction(S, side, price, 10, "")
    stage = FillStage(Fixed(), FillSection(rate=1.0, decay=0.7, horizon_s=10.0, min_probability=0.05, expected_lots=4.0))
    out = stage.quotes_top(TopOfBook(S, 9_999, 10_001))
    assert [(q.price_ticks, q.qty_lots) for q in out] == [(9_999, 4), (10_001, 4)] and (stage.dropped, stage.cut) == (1, 2)
    for d in (0.0, 1.5, 7.0):
        assert math.isclose(stage.probability(d), fill_probability(math.exp(-0.7 * d), dt_s=10.0), rel_tol=1e-12)


def test_order_flow_moves_what_we_believe():
    table = config().session.instruments
    v = FeatureValuer(table, features=FeatureSection(every_s=1.0, window_s=5.0, ofi_ticks=1.0), sample_s=0.5, warm=2)
    rng, values = np.random.default_rng(1), []
    for i in range(400):
        b, a = rng.integers(1, 50, 2)
        mid = 10_000 + i % 2
        now = 10**18 + i * 100_000_000
        assert v.on_market(TopOfBook(S, mid - 1, mid + 1, int(b), int(a), now, now), now_ns=now) == (S,)
        values.append(v.value(S, now_ns=now))
    assert values[0] is None and values[-1].sigma > 0 and values[-1].theo != pytest.approx(v.features[S].mid)
    assert abs(values[-1].theo - v.features[S].mid) <= 3 * 0.01 + 1e-9
    rolling = FeatureValuer(table, features=FeatureSection(sigma="rolling", window_s=5.0))
    assert rolling.value(S, now_ns=0) is None


def test_a_session_word_is_never_used_twice():
    words = [session_word(10**18 + i * 10_000_000) for i in range(1000)]
    assert len(set(words)) == 1000 and all(len(w) <= 8 and w.isalnum() for w in words)


def test_a_restart_finds_orders_position_and_profit_in_the_journal(tmp_path):
    async def first():
        d = Desk()
        d.journal = SqliteJournal(tmp_path / "j.db", instruments=d.config.session.instruments, strategy="mm", clock=d.clock)
        d.trader = make_trader(d.config, session=d.journal.session, latch=MemoryLatch(), capabilities=d.venue.capabilities)
        d.engine = Engine(d.config, venue=d.venue, feed=d.feed, trader=d.trader, journal=d.journal, clock=d.clock)
        d.task = asyncio.ensure_future(d.engine.run())
        await d.quoting()
        d.venue.fill(next(k for k, o in d.venue.book.items() if o.side == 1))
        await d.until(lambda: d.trader.orders.positions[S] == 2)
        await d.until(lambda: len(d.venue.book) == 2)
        d.task.cancel()  # as sudden as a task can die
        for t in d.engine._tasks.values():
            t.cancel()
        await asyncio.gather(d.task, *d.engine._tasks.values(), return_exceptions=True)
        d.journal.close(publish=False)
        return d

    async def second(dead):
        d = Desk()
        d.venue = dead.venue
        d.venue.out = asyncio.Queue()
        journal = SqliteJournal(tmp_path / "j.db", instruments=d.config.session.instruments, strategy="mm", clock=d.clock)
        trader = make_trader(d.config, session=journal.session, latch=MemoryLatch(), capabilities=d.venue.capabilities)
        restore(trader, journal=journal, now_ns=d.clock())
        assert trader.orders.positions[S] == 2 == trader.guard.tracks[S].ledger.position
        assert len(trader.orders.unknown()) >= len(d.venue.book) and not trader.orders.synced
        d.engine = Engine(d.config, venue=d.venue, feed=d.feed, trader=trader, journal=journal, clock=d.clock, since_ns=journal.since_ns)
        d.trader = trader
        async with d:
            await d.quoting()
            assert trader.orders.positions[S] == 2 and not trader.orders.unknown() and trader.orders.session != dead.trader.orders.session
        journal.close(publish=False)

    async def main():
        await second(await first())
    asyncio.run(asyncio.wait_for(main(), 30))


@story
async def test_metrics_and_mirror_follow():
    class Mirror:
        def __init__(self):
            self.seen = {}

        def tick(self, top):
            self.seen["tick"] = top

        def position(self, symbol, lots):
            self.seen["position"] = lots

        def pnl(self, **money):
            self.seen["pnl"] = money

        def orders(self, symbol, orders):
            self.seen["orders"] = len(list(orders))
    metrics, mirror = Metrics(), Mirror()
    async with Desk(metrics=metrics, mirror=mirror) as d:
        await d.quoting()
        d.venue.fill(next(iter(d.venue.book)))
        await d.until(lambda: abs(mirror.seen.get("position", 0)) == 2 and mirror.seen.get("orders") == 2)
        from prometheus_client import generate_latest
        text = generate_latest(metrics.registry).decode()
        for name in ("quote_latency_seconds_count", "orders_total", "book_synced", "fills_total", "loop_lag_seconds", "position"):
            assert f"makerlab_{name}" in text


def told(metrics, name, **labels):
    "A sample as Prometheus would read it; 0 when there is none."
    return metrics.registry.get_sample_value(f"makerlab_{name}", labels) or 0.0


@story
async def test_the_feeds_news_and_differences_from_the_venue_are_counted():
    metrics = Metrics()
    async with Desk(metrics=metrics) as d:
        await d.quoting()
        now = d.clock()
        for old, new, why in (("EMPTY", "SYNCED", ""), ("SYNCED", "INVALID", "gap"), ("INVALID", "SYNCED", ""), ("SYNCED", "INVALID", "disconnected"), ("INVALID", "SYNCED", "")):
            d.feed.queue.put_nowait(Market("state", S, now, now, StateChange(old, new, why)))
        d.feed.queue.put_nowait(Market("book", S, now - 30_000_000, now, TopOfBook(S, 10_000, 10_004, 5, 5, now - 30_000_000, now)))
        await d.until(lambda: told(metrics, "msg_lag_seconds_count", stream="book") == 1)
        assert told(metrics, "msg_lag_seconds_sum", stream="book") == pytest.approx(0.03)
        assert told(metrics, "book_resyncs_total", reason="gap") == told(metrics, "book_resyncs_total", reason="reconnect") == told(metrics, "seq_gaps_total", symbol=S) == 1
        await d.until(lambda: told(metrics, "loop_lag_seconds_count"))
        assert not told(metrics, "reconcile_mismatch_total", kind="position")
        d.venue.held[S] = 3  # somebody else trades on this account
        await d.until(lambda: told(metrics, "reconcile_mismatch_total", kind="position") == 1)
        assert d.trader.orders.positions[S] == 3 and d.engine.counts["mismatch position"] == 1
        d.venue.book["x-9"] = OpenOrder("x-9", S, 1, 9_000, 1)
        await d.until(lambda: told(metrics, "reconcile_mismatch_total", kind="order") == 1 and "x-9" not in d.venue.book)


@story
async def test_what_a_lost_connection_missed_is_no_disagreement():
    metrics = Metrics()
    async with Desk(metrics=metrics) as d:
        await d.quoting()
        d.venue.say("disconnected", "")
        k = next(iter(d.venue.book))
        d.venue.fill(k)
        d.venue.out._queue.pop()  # nobody tells
        d.venue.say("reconnected", "")
        await d.until(lambda: abs(d.trader.orders.positions[S]) == 2)
        assert not told(metrics, "reconcile_mismatch_total", kind="fill") and not d.engine.counts["mismatch fill"]
