"""The fault matrix of LIVE.md 6: every row on the whole live session (feed, book, trader, risk, orders, journal, gateway, metrics) against the
simulated venue, whose own log is the truth.

Every row asserts (a) at rest orders, position and cash are the venue's, (b) no limit was exceeded in the venue's log at any time, (c) a bound on
the time to recover, (d) a metric or an alert. GUARDS switches the guarding code off, row by row, and the row must then fail.
FLOORS names the tests that hold a row in more ways, nearer to where it happens.

Bounds of time: what a row waits for (pings of 0.4 s, silence of 1 s, a throttle of 1.5 s ...) is written beside it; the rest is what a machine of two
cores that is busy with other tests may add, and that is seconds, not minutes. Quick, a row ends in a tenth of its bound."""
import asyncio
import contextlib
import json
import os
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import fault_kit as kit
import pytest
from fault_kit import FAST, MID, MS, POLICY, S, Day, Zygote, alive, believed, until
from recorder_kit import file_limit

from makerlab.execution import risk
from makerlab.execution.orders import OrderManager, State
from makerlab.execution.risk import RiskGuard
from makerlab.live import binance, engine, feed, guardian, mirror
from makerlab.live.binance import FullBudget
from makerlab.live.book import LiveBook
from makerlab.live.engine import Engine
from makerlab.live.journal import Journal
from makerlab.live.protocol import Notice, Outcome

ROOT = Path(__file__).resolve().parents[1]
TIMES: dict[str, float] = {}  # row: seconds to recover, of this run


@pytest.fixture(autouse=True)
def leases(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKERLAB_LEASES", str(tmp_path / "leases"))


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    "Kernels are compiled before any clock is looked at."
    async def once():
        async with Day(tmp_path_factory.mktemp("warm")) as d:
            await asyncio.sleep(0.3)
            await d.rest()
    os.environ["MAKERLAB_LEASES"] = str(tmp_path_factory.mktemp("leases"))
    kit.PATIENT_S, before = 120.0, kit.PATIENT_S
    asyncio.run(once())
    kit.PATIENT_S = before


FLOORS = {
    1: "test_live_feed.py::test_row_1_a_dropped_connection_takes_the_book_away_at_once_and_comes_back", 2: "test_live_feed.py::test_row_2_a_black_hole_is_found_by_pings",
    3: "test_live_book.py::test_the_book_is_right_or_says_that_it_is_not", 4: "test_live_feed.py::test_row_4_what_is_told_twice_changes_nothing",
    5: "test_live_feed.py::test_row_5_swapped_changes_are_a_gap_and_end_right", 6: "test_live_feed.py::test_row_6_snapshots_that_never_fit_raise_an_alarm",
    7: "test_live_feed.py::test_row_7_a_snapshot_newer_than_all_that_waits", 8: "test_live_feed.py::test_row_8_a_silent_stream_is_named_and_its_book_taken_away",
    9: "test_live_feed.py::test_row_9_make_before_break", 10: "test_binance_faults.py::test_10_user_stream_dies", 11: "test_binance_faults.py::test_11_listen_key_expired",
    12: "test_binance_faults.py::test_12_too_many_requests", 13: "test_binance_faults.py::test_13_banned", 14: "test_binance_faults.py::test_14_no_answer_but_executed",
    15: "test_binance_faults.py::test_15_no_answer_and_not_executed", 16: "test_binance_faults.py::test_16_executed_after_it_was_given_up",
    17: "test_binance_faults.py::test_17_fill_before_the_answer", 18: "test_binance_faults.py::test_18_fill_and_cancel", 19: "test_binance_faults.py::test_19_cancel_replace",
    20: "test_binance_faults.py::test_20_twice_and_out_of_order", 21: "test_binance_faults.py::test_21_an_order_that_is_not_ours", 22: "test_binance_faults.py::test_22_the_clock_steps",
    23: "test_mirror.py::test_a_hung_server_delays_nothing_and_is_noticed", 24: "test_recorder.py::test_a_full_disk_stops_recording_cleanly_and_says_so",
    25: "test_recorder.py::test_kill_9_at_random_points_loses_nothing_that_was_acknowledged", 26: "test_journal.py::test_kill_9_at_fifty_random_points",
    27: "test_live_protocol.py::test_fuzz_anything", 28: "test_binance_faults.py::test_28_tick_size_changed", 29: "test_live_feed.py::test_row_29_a_slow_loop_gets_the_newest_book_and_a_bounded_number_of_trades",
    30: "test_binance_faults.py::test_30_refused_again_and_again", 31: "test_guardian.py::test_kill_without_an_engine_latches_and_cancels_at_the_venue",
    32: "test_guardian.py::test_an_account_is_held_once_and_given_back_by_any_death"}


def test_every_row_is_here_and_its_floor_exists():
    assert sorted(FLOORS) == list(range(1, 33))
    here = (Path(__file__)).read_text(encoding="utf8")
    for n, where in FLOORS.items():
        file, name = where.split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf8"), where
        assert f"def test_{n:02d}_" in here, n
    assert {int(k.split()[0]) for k in GUARDS} == set(range(1, 33)), sorted(set(range(1, 33)) - {int(k.split()[0]) for k in GUARDS})


def run(row, *args, bound_s=None, limit_s=90, **kwargs):
    "Run a row; (c) it recovers within its bound."
    took = asyncio.run(asyncio.wait_for(row(*args, **kwargs), limit_s))
    TIMES[row.__name__ + str(args[1:])] = took
    assert bound_s is None or took <= bound_s, f"{took:.2f} s to recover, {bound_s} are allowed"


async def at_rest(d):
    "The end of every row: (a) and (b), a book that is the venue's, nothing sent in the dark, and a graceful end."
    await d.rest()
    believed(d)
    book, true = d.engine.feed.books[S], d.sim.exchange.markets[S]
    if book.synced:
        lot = book.grid.lot_units
        await until(lambda: [[(k, v // lot) for k, v in reversed(book.bids.items())][:40], [(k, v // lot) for k, v in book.asks.items()][:40]]
                    == [true.depth(1, 40), true.depth(-1, 40)], 5, "the book is the venue's")
    assert await d.stop() == 0 and not d.resting()
    d.lawful(d.config)


def now_row(d):
    return len(d.sim.exchange.truth)


def old_quotes_go(d, since):
    "Everything that rested at that row of the truth has ended."
    rested = {}
    for x in d.sim.exchange.truth[:since]:
        if x.get("account") == "alice" and "left_lots" in x:
            rested[x["client_id"]] = x["left_lots"]
    ended = {x["client_id"] for x in d.sim.exchange.truth[since:] if x.get("account") == "alice" and x.get("left_lots") == 0}
    return {k for k, n in rested.items() if n} <= ended


# ---------------------------------------------------------------- 1 to 9, 27, 29: what the market's side can do

async def row_01(folder, market="spot", torn=True):
    async with Day(folder, market, **kit.CALM) as d:
        since = now_row(d)
        d.fault("cut", kind="market", torn=torn)
        await until(lambda: d.heard("book", "SYNCED -> INVALID disconnected"), what=d.why)
        await until(lambda: old_quotes_go(d, since), what=d.why)
        took = await d.quoting_again(after=since)
        await at_rest(d)
        assert d.metric("ws_reconnects_total", link="market") >= 1 and d.heard("feed: disconnected") and d.engine.feed.stats.resyncs == 2
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_01_market_stream_cut_inside_a_frame(tmp_path, market):
    run(row_01, tmp_path, market, bound_s=6)  # backoff 0.1 s, snapshot, one diff of 0.1 s


async def row_02(folder, policy=POLICY):
    async with Day(folder, policy=policy) as d:
        since, begin = now_row(d), time.monotonic()
        d.fault("blackhole", kind="market")
        found = await until(lambda: d.heard("book", "INVALID disconnected"), 4, d.why)  # pings of 0.4 s, half of it for the answer
        await d.pulled()
        d.sim.clear("blackhole")
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert found < 4 and d.metric("ws_reconnects_total", link="market") >= 1
        return took


def test_02_market_stream_swallowed(tmp_path):
    run(row_02, tmp_path, bound_s=10)


async def row_03(folder, market="spot"):
    async with Day(folder, market) as d:
        since = now_row(d)
        d.fault("drop", stream="*@depth@100ms", n=1)
        await until(lambda: d.heard("book", "SYNCED -> INVALID gap"), 5, d.why)
        await until(lambda: old_quotes_go(d, since), what=d.why)
        took = await d.quoting_again(after=since)
        await at_rest(d)
        assert d.metric("seq_gaps_total", symbol="all") + d.metric("seq_gaps_total", symbol=S) >= 1
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_03_a_change_is_missing(tmp_path, market):
    run(row_03, tmp_path, market, bound_s=6)


async def row_04(folder, market="spot"):
    async with Day(folder, market, **kit.CALM) as d:
        f = d.fault("duplicate", stream="*usdt@*", n=60)
        took = await until(lambda: f.hits >= 60 and d.engine.feed.stats.duplicates >= 60, what=d.why)
        await at_rest(d)
        assert d.engine.counts["book INVALID"] == 0 and d.engine.feed.stats.gaps == 0 and d.engine.feed.stats.resyncs == 1, "repeats change nothing"
        assert d.metric("messages_total", stream="all") > 60
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_04_everything_twice(tmp_path, market):
    run(row_04, tmp_path, market, bound_s=10)  # 60 messages take a second


async def row_05(folder, market="spot"):
    async with Day(folder, market) as d:
        since = now_row(d)
        d.fault("reorder", stream="*@depth@100ms", n=1)
        await until(lambda: d.heard("book", "INVALID gap"), 5, d.why)
        took = await d.quoting_again(after=since)
        await at_rest(d)
        assert d.engine.feed.stats.gaps >= 1 and d.engine.feed.stats.resyncs >= 2
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_05_two_changes_swapped(tmp_path, market):
    run(row_05, tmp_path, market, bound_s=6)


async def row_06(folder):
    async with Day(folder, **kit.CALM) as d:
        d.fault("stale_snapshot", n=3)
        await asyncio.sleep(0.4)
        since, weight = now_row(d), d.engine.feed.stats.snapshot_weight
        d.fault("drop", stream="*@depth@100ms", n=1)
        await until(lambda: d.heard("book", "INVALID gap"), 5, d.why)
        took = await d.quoting_again(after=since)
        await at_rest(d)
        st = d.engine.feed.stats
        assert st.snapshots["too-old"] == 3 and st.snapshot_weight - weight == 4 * 250, "fetched again, and paid for"
        return took


def test_06_snapshots_older_than_the_stream(tmp_path):
    run(row_06, tmp_path, bound_s=6)  # three waits of at most 0.1 s


async def row_07(folder):
    async with Day(folder) as d:
        d.fault("delay", stream="*@depth@100ms", ms=300, n=-1)
        await asyncio.sleep(0.5)
        since = now_row(d)
        d.fault("cut", kind="market")
        await until(lambda: d.heard("book", "INVALID disconnected"), 5, d.why)
        took = await d.quoting_again(after=since)
        stale = d.engine.feed.books[S].counts["stale"]
        d.sim.clear("delay")
        await asyncio.sleep(0.6)  # what was late is overtaken: a gap, and another snapshot
        await d.quoting_again()
        await at_rest(d)
        assert stale >= 1, "what waited was older than the snapshot, and dropped"
        return took


def test_07_a_snapshot_newer_than_everything_that_waits(tmp_path):
    run(row_07, tmp_path, bound_s=6)


async def row_08(folder, policy=POLICY):
    async with Day(folder, policy=policy) as d:
        since, begin = now_row(d), time.monotonic()
        d.fault("mute", stream="*@depth*")
        await until(lambda: d.heard("feed: silence", "btcusdt@depth@100ms"), 8, d.why)  # silence of 1 s
        await d.pulled()
        assert d.engine.counts["alarm silence"] == 1
        d.sim.clear("mute")
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        assert d.engine.feed.stats.silences == 1
        await at_rest(d)
        assert d.heard("silence-over")
        return took


def test_08_subscribed_and_silent(tmp_path):
    run(row_08, tmp_path, bound_s=10)


async def row_08_route(folder):
    "The wrong route of 2026: the subscription is taken, and nothing ever comes."
    true = kit.guardian.hosts_of

    def wrong(config):
        h = true(config)
        return type(h)(h.market, h.rest, h.stream, h.ws_api, routes={**h.routes, "depth": "/market"}) if hasattr(h, "ws_api") else h
    kit.guardian.hosts_of = wrong
    try:
        async with Day(folder, "usdm", quoting=False) as d:
            took = await until(lambda: d.heard("feed: silence", "btcusdt@depth@100ms", "wrong route"), 8, d.why)
            await asyncio.sleep(0.3)
            assert not d.truth("new"), "no book, no order"
            d.m.cancel_all(now_ns=d.engine.clock())
            d.lawful(d.config)
            assert await d.stop() == 0
            return took
    finally:
        kit.guardian.hosts_of = true


def test_08_a_wrong_route_is_named(tmp_path):
    run(row_08_route, tmp_path, bound_s=8)


def longest_without(d, since):
    "The longest time in which nothing of ours rested, s, by the venue's log."
    live, empty, worst, t0 = {}, None, 0, None
    for x in d.sim.exchange.truth:
        if x.get("account") == "alice" and "left_lots" in x:
            live[x["client_id"]] = x["left_lots"]
            some = any(live.values())
            if x["seq"] >= since and some and empty is not None:
                worst = max(worst, x["time_ns"] - max(empty, t0))
            empty = None if some else empty if empty is not None else x["time_ns"]
        if x["seq"] == since:
            t0 = x["time_ns"]
    return worst / 1e9


async def row_09(folder, market="spot"):
    async with Day(folder, market, **kit.CALM) as d:
        since, begin = now_row(d), time.monotonic()
        d.fault("shutdown", grace_s=2.0)
        await until(lambda: d.engine.feed.stats.handovers >= len(d.engine.feed._links) and d.engine.venue.counts["renewed"] >= 1, 6, d.why)
        took = time.monotonic() - begin
        await asyncio.sleep(2.4)  # the old ones are cut now
        await d.quoting_again()
        gap = longest_without(d, since)
        await at_rest(d)
        assert d.engine.counts["book INVALID"] == 0 and not d.heard("connection: disconnected") and d.engine.feed.stats.resyncs == 1, "made before it broke"
        assert gap < 1.0, f"nothing was quoted for {gap:.2f} s"
        assert d.heard("feed: notice: serverShutdown")
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_09_the_venue_closes_its_connections(tmp_path, market):
    run(row_09, tmp_path, market, bound_s=6)


# ---------------------------------------------------------------- 10, 11: the user stream

async def row_10(folder, market="spot", how="cut"):
    async with Day(folder, market) as d:
        await until(d.quotes, 5, d.why)
        ours = next(o for o in d.resting() if o.side < 0)
        since, begin, fills = now_row(d), time.monotonic(), len(d.truth("trade"))
        down = d.at("connection: disconnected", lambda: set(d.engine.trader.guard.down))
        if how == "blackhole":
            d.fault("blackhole", kind="user")
        elif how == "terminated":
            d.fault("terminate_user_stream")
        else:
            d.fault("cut", kind="user", torn=True)
        d.crowd.through(ours.side, ours.tick)  # while nobody listens
        await until(lambda: d.heard("connection: disconnected"), 5, d.why)
        assert down and all(down) and len(d.truth("trade")) > fills  # a line may be back a millisecond later
        d.sim.clear("blackhole")
        await until(lambda: d.heard("connection: reconnected"), 5, d.why)
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert d.metric("ws_reconnects_total", link="user") >= 1 and d.heard("alert: connection")
        return took


@pytest.mark.parametrize(("market", "how"), [("spot", "cut"), ("spot", "blackhole"), ("spot", "terminated"), ("usdm", "cut"), ("usdm", "blackhole")])
def test_10_the_user_stream_dies_alone(tmp_path, market, how):
    run(row_10, tmp_path, market, how, bound_s=8)  # pings of 0.4 s, 0.1 s without orders after a reconnection


async def row_11(folder):
    async with Day(folder, "usdm") as d:
        since, begin = now_row(d), time.monotonic()
        d.fault("expire_listen_key")
        d.crowd.move(d.crowd.mid + 5)
        await until(lambda: d.heard("connection: disconnected listenKeyExpired"), 4, d.why)
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert d.metric("ws_reconnects_total", link="user") >= 1 and d.heard("alert: connection")
        return took


def test_11_the_listen_key_expires(tmp_path):
    run(row_11, tmp_path, bound_s=6)


# ---------------------------------------------------------------- 12, 13: limits

def watch_requests(d):
    "Times of the signed requests that reach the venue."
    seen, call_of = [], d.sim.call_of

    def noted(request):
        if "depth" not in request.path:
            seen.append((time.monotonic(), request.method, request.path))
        return call_of(request)
    d.sim.call_of = noted
    return seen


async def row_12(folder, market="spot"):
    async with Day(folder, market) as d:
        since, begin = now_row(d), time.monotonic()
        f = d.fault("throttle", seconds=3)
        await until(lambda: f.hits, 5, d.why)
        await asyncio.sleep(0.5)  # what was under way
        seen, until_ns = watch_requests(d), f.args["until"]
        while d.sim.clock.now_ns() < until_ns - 100 * MS:
            assert sum(m != "DELETE" for _, m, _ in seen) == 0 and len(seen) <= 1, f"{seen} inside the window"
            await asyncio.sleep(0.01)
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert f.hits <= 10 and not d.sim.limits.banned, f"{f.hits} requests were refused"
        assert d.metric("throttle_denied_total", rule="throttled") >= 1 and d.heard("rejected:", "throttled")
        assert any(w == "note" and json.loads(b)["kind"] == "binance" and "throttled" in json.loads(b)["text"] for _, _, w, _, b in d_rows(folder)), "an incident is in the journal"
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_12_too_many_requests(tmp_path, market):
    run(row_12, tmp_path, market, bound_s=10)  # 3 s of silence asked for, in whole seconds


async def row_13(folder):
    async with Day(folder, settings=replace(FAST, ask_s=0.5)) as d:
        since, begin = now_row(d), time.monotonic()
        d.fault("ban", seconds=3)
        await until(lambda: "banned" in d.engine.venue.budget.until, 5, d.why)
        await asyncio.sleep(0.5)  # what was under way
        seen, end = watch_requests(d), d.engine.venue.budget.until["banned"]
        while d.engine.venue._now_ns() < end - 100 * MS:
            assert not seen, f"no request at all until the ban ends: {seen}"
            await asyncio.sleep(0.01)
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert d.metric("throttle_denied_total", rule="banned") >= 1 and d.heard("alert", "banned")
        return took


def test_13_banned(tmp_path):
    run(row_13, tmp_path, bound_s=10)  # 3 s of ban


# ---------------------------------------------------------------- 14 to 17: did it execute?

def most_live(d):
    "The most orders that a side ever had in the venue's own log."
    live, most = {}, 0
    for x in d.sim.exchange.truth:
        if x.get("account") == "alice" and "left_lots" in x:
            live[x["client_id"]] = x["side"] if x["left_lots"] else 0
            most = max(most, *(sum(s == side for s in live.values()) for side in (1, -1)))
    return most


async def row_14(folder, market="spot", how="hang"):
    async with Day(folder, market, live={"snapshot_s": 30.0}) as d:  # a snapshot in the middle would tell as well
        since, begin = now_row(d), time.monotonic()
        if how == "hang":
            d.fault("mute", stream="user", match="NEW", n=-1)  # else the stream tells in time what REST does not
        f = d.fault("request", op="place", how=how, executed=True, n=1)
        await until(lambda: f.hits == 1, 5, d.why)
        d.crowd.on = False  # so that what nobody knows of stays there to be seen
        await until(lambda: d.metric("orders_total", event="UNKNOWN", reason="") >= 1, 5, d.why)
        d.sim.clear("mute")
        await until(lambda: not d.m.unknown(), 8, d.why)
        d.crowd.on = True
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert d.engine.counts["QueryOrder"] >= 1 and most_live(d) == 1, "while nobody knows, nothing else is sent on that side"
        return took


@pytest.mark.parametrize(("market", "how"), [("spot", "hang"), ("spot", "503"), ("spot", "reset"), ("usdm", "hang"), ("usdm", "503"), ("usdm", "garbage")])
def test_14_no_answer_but_executed(tmp_path, market, how):
    run(row_14, tmp_path, market, how, bound_s=8)  # timeout 0.6 s, first question after 0.04 s


async def row_15(folder, market="spot", how="reset"):
    async with Day(folder, market) as d:
        sent = set(d.m.orders)
        begin, f = time.monotonic(), d.fault("request", op="place", how=how, executed=False, n=2)
        await until(lambda: f.hits == 2, 5, d.why)
        await until(lambda: d.metric("orders_total", event="UNKNOWN", reason="") >= 1, 5, d.why)
        await until(lambda: not d.m.unknown(), 8, d.why)
        after = now_row(d)
        await d.quoting_again(after=max(0, after - 2))
        took = time.monotonic() - begin
        lost = [o for k, o in d.m.orders.items() if k not in sent and o.inferred]
        await at_rest(d)
        assert lost and all(str(o.state) == "REJECTED" for o in lost) and not {o.client_id for o in lost} & {x["client_id"] for x in d.truth("new")}
        rows = [json.loads(b) for _, _, w, k, b in d_rows(folder) if w == "report" and k == lost[0].client_id]
        assert sum(r["kind"] == "order-status" and r["status"] == "not-found" for r in rows) >= 3, "asked again and again before it is given up"
        return took


def d_rows(folder):
    "Rows of a closed journal."
    import sqlite3
    with contextlib.closing(sqlite3.connect(Path(folder) / "state" / "journal.db")) as con:
        return con.execute("SELECT * FROM makerlab_journal ORDER BY number").fetchall()


@pytest.mark.parametrize(("market", "how"), [("spot", "reset"), ("spot", "hang"), ("usdm", "503")])
def test_15_no_answer_and_not_executed(tmp_path, market, how):
    run(row_15, tmp_path, market, how, bound_s=8)  # timeout 0.6 s, grace 0.3 s, three answers


async def row_16(folder, market="spot"):
    async with Day(folder, market) as d:
        begin, sent = time.monotonic(), set(d.m.orders)
        f = d.fault("request", op="place", how="reset", late_ms=3000, n=1)
        await until(lambda: f.hits == 1, 5, d.why)
        d.crowd.on = False  # so that the late order finds the market that it was meant for
        await until(lambda: [o for k, o in d.m.orders.items() if k not in sent and o.inferred], 5, d.why)
        (late,) = [o for k, o in d.m.orders.items() if k not in sent and o.inferred]
        assert str(late.state) == "REJECTED"
        await until(lambda: any(x["client_id"] == late.client_id for x in d.truth("new")), 5, d.why)
        await until(lambda: any(x["client_id"] == late.client_id and x["left_lots"] == 0 for x in d.truth("canceled", "trade")), 5, d.why)
        d.crowd.on = True
        await d.quoting_again(after=0)
        took = time.monotonic() - begin
        await at_rest(d)
        assert d.metric("orders_total", event="UNKNOWN", reason="") >= 2, "in doubt when nobody answered, and again when it came to life"
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_16_executed_after_it_was_given_up(tmp_path, market):
    run(row_16, tmp_path, market, bound_s=11)  # 3 s late


async def row_17(folder, market="spot"):
    async with Day(folder, market, **kit.CALM | {"settings": replace(FAST, timeout_s=5.0)}) as d:
        d.crowd.on = False
        await until(lambda: d.quotes() and d.m.quiet, 5, d.why)
        since, begin = now_row(d), time.monotonic()
        d.fault("request", op="place", how="slow", delay_ms=2000, n=2)
        d.crowd.move(d.crowd.mid + 2)  # the quotes are moved, and the answers are slow
        fresh = lambda: [x for x in d.truth("new") if x["seq"] >= since and x["left_lots"]]
        await until(fresh, 5, d.why)
        o = d.m.orders[fresh()[0]["client_id"]]
        d.crowd.through(o.side, o.price_ticks)
        took = await until(lambda: o.filled_lots, 5, d.why)
        assert o.client_id in d.engine.venue._last, "nobody has answered the request yet"
        state, filled = o.state, o.filled_lots
        await until(lambda: o.client_id not in d.engine.venue._last, 5, d.why)
        assert (o.state is state or o.done) and o.filled_lots >= filled, "and the answer changes nothing"
        d.crowd.on = True
        await d.quoting_again()
        await at_rest(d)
        rows = [json.loads(b) for _, _, w, k, b in d_rows(folder) if w == "report" and k == o.client_id]
        assert sum(r["kind"] == "accepted" for r in rows) == 1 and d.metric("fills_total", symbol=S, side="buy") + d.metric("fills_total", symbol=S, side="sell") >= 1
        assert d.engine.counts["order anomaly"] == 0 and time.monotonic() - begin < 20
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_17_the_fill_comes_before_the_answer(tmp_path, market):
    run(row_17, tmp_path, market, bound_s=2)  # the answer takes 2 s


# ---------------------------------------------------------------- 18 to 21: orders and executions cross

async def row_18(folder, market="spot", how="late fill"):
    async with Day(folder, market, seed=3) as d:
        begin, trades = time.monotonic(), len(d.truth("trade"))
        if how == "late fill":  # every event of the account comes 200 ms late: cancels are answered before the fills are told
            d.fault("delay", stream="user", ms=200, n=-1)
        else:  # -2011: the order that is to be cancelled has been filled
            d.fault("delay", stream="user", match="TRADE", ms=250, n=-1)
        for _ in range(12):
            d.crowd.move(d.crowd.mid + d.crowd.rng.choice((-1, 1)) * 3)
            await asyncio.sleep(0.08)
        d.sim.clear("delay")
        took = time.monotonic() - begin
        begin = time.monotonic()
        await asyncio.sleep(0.35)
        await d.quoting_again()
        took = time.monotonic() - begin
        await at_rest(d)
        assert len(d.truth("trade")) > trades + 2
        fills = [json.loads(b)["exec_id"] for _, _, w, _, b in d_rows(folder) if w == "report" and json.loads(b)["kind"] == "fill"]
        assert len(fills) == len(set(fills)) == len(d.truth("trade")), "position = the sum of trade ids"
        assert d.metric("fills_total", symbol=S, side="buy") + d.metric("fills_total", symbol=S, side="sell") == len(fills)
        return took


@pytest.mark.parametrize("how", ["late fill", "-2011"])
@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_18_fills_and_cancels_cross(tmp_path, market, how):
    run(row_18, tmp_path, market, how, bound_s=6)


async def row_19(folder, market="spot", how="new fails"):
    "The engine sends the two legs apart; cancel-replace is the gateway's, so the row runs there, with its order manager."
    import test_binance_faults as gate
    from makerlab.execution.orders import RequotePolicy
    from makerlab.live.metrics import Metrics
    metrics = Metrics()
    async with gate.world(market, pairs=True, policy=RequotePolicy(overlap=True), venue={"metrics": metrics}) as w:
        a = w.bot.place(1, gate.BID, 3)
        await w.rest()
        if how == "cancel fails":
            w.fault("delay", stream="user", ms=1500, n=1 if market == "spot" else 2)
            w.fault("trade", side=-1, tick=gate.BID, lots=8)
        begin = time.monotonic()
        w.bot.m.modify_quote(a.client_id, price_ticks=gate.ASK if how == "new fails" else gate.BID - 1, qty_lots=3, now_ns=w.bot.now())
        await w.rest()
        took = time.monotonic() - begin
        assert gate.most_live(w, 1) == 1, "never two quotes on a side"
        b = [o for k, o in w.bot.m.orders.items() if o is not a]
        assert str(a.state) == ("FILLED" if how == "cancel fails" else "CANCELLED") and str(b[0].state) == "REJECTED"
        ops = {"replace", "cancel"}
        assert sum(metrics.registry.get_sample_value("makerlab_order_rtt_seconds_count", {"op": x}) or 0 for x in ops) >= 1
        return took


@pytest.mark.parametrize("how", ["new fails", "cancel fails"])
def test_19_one_leg_of_a_cancel_replace_fails(tmp_path, how):
    run(row_19, tmp_path, "spot", how, bound_s=6)


async def row_20(folder, market="spot", how="duplicate"):
    async with Day(folder, market, seed=5) as d:
        begin = time.monotonic()
        f = d.fault(how, stream="user", n=-1 if how == "duplicate" else 25)
        await until(lambda: f.hits >= 25 and len(d.truth("trade")) >= 5, what=d.why)
        d.sim.clear(how)
        await d.quoting_again()
        took = time.monotonic() - begin
        await at_rest(d)
        fills = [json.loads(b)["exec_id"] for _, _, w, _, b in d_rows(folder) if w == "report" and json.loads(b)["kind"] == "fill"]
        assert len(fills) == len(set(fills)) == len(d.truth("trade"))
        if how == "duplicate":
            assert d.engine.venue.counts["told already"] >= 5
        assert d.metric("fills_total", symbol=S, side="buy") + d.metric("fills_total", symbol=S, side="sell") == len(fills)
        return took


@pytest.mark.parametrize("how", ["duplicate", "reorder"])
@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_20_reports_twice_and_out_of_order(tmp_path, market, how):
    run(row_20, tmp_path, market, how, bound_s=12)  # 25 reports of a crowd that acts every 0.03 s


async def row_21(folder, market="spot", found="cancel"):
    from makerlab.execution.venue import NewOrder
    from makerlab.live.protocol import HmacSigner, Hosts, Keys
    async with Day(folder, market, live={"found": found}) as d:
        other = kit.guardian.BinanceVenue(d.config.session.instruments, market=market, hosts=Hosts.local(d.sim.url, market=market), settings=FAST,
                                          keys=Keys(d.sim.key_of("alice", "hmac")[0], HmacSigner(d.sim.key_of("alice", "hmac")[1])))
        await other.connect()
        begin = time.monotonic()
        await other.submit(NewOrder("somebody-else", S, 1, MID - 40, 4))
        await other.drain()
        await until(lambda: "somebody-else" in d.m.orders, 5, d.why)
        assert d.m.orders["somebody-else"].external
        await until(lambda: any(x["client_id"] == "somebody-else" for x in d.truth("canceled")), 5, d.why)
        took = time.monotonic() - begin
        await other.close()
        if found == "cancel":
            assert d.heard("alert", "somebody-else", "not of this session")
            await d.quoting_again()
        else:
            await until(lambda: "not of this session" in d.engine.trader.guard.latch.tripped.get("*", ""), 5, d.why)
            await d.pulled()
            await until(lambda: d.metric("kill_switch") == 1, 5, d.why)  # told at the next reading, some tenths later
        await at_rest(d)
        return took


@pytest.mark.parametrize(("market", "found"), [("spot", "cancel"), ("usdm", "cancel"), ("spot", "refuse")])
def test_21_an_order_that_is_not_ours(tmp_path, market, found):
    run(row_21, tmp_path, market, found, bound_s=6)  # a snapshot at least every second


# ---------------------------------------------------------------- 22: clocks

SOON = {"risk": {"default": {"cooldown_ms": 300}}}  # a clock that is set back makes the book's time step back, which is an anomaly: 30 s aside, here less


async def row_22(folder, market="spot", ms=2500):
    async with Day(folder, market, **SOON) as d:
        begin = time.monotonic()
        d.fault("skew", ms=ms)
        await until(lambda: d.heard("alert: clock"), 8, d.why)  # measured every second
        await d.pulled()
        await until(lambda: abs(d.engine.offset_ns + ms * MS) < 400 * MS, 5, lambda: f"{d.engine.offset_ns} ns")  # a measurement may have stood still for as long
        halted = time.monotonic() - begin
        since = now_row(d)
        await asyncio.sleep(0.5)
        assert not [x for x in d.truth("new") if x["seq"] >= since], "nothing is sent by a clock that cannot be believed"
        assert abs(d.metric("clock_offset_seconds")) > 1
        d.fault("skew", ms=0)
        took = halted + await d.quoting_again(after=since)
        await at_rest(d)
        return took


@pytest.mark.parametrize(("market", "ms"), [("spot", 2500), ("spot", -2500), ("usdm", 2500)])
def test_22_the_venues_clock_steps(tmp_path, market, ms):
    run(row_22, tmp_path, market, ms, bound_s=12)  # two measurements, each within a second


async def row_22_small(folder):
    "A step that the gateway can follow: refused once (-1021), measured, sent again."
    async with Day(folder, settings=replace(FAST, recv_window_ms=1000), risk={"account": {"max_clock_offset_ms": 5000}} | SOON["risk"], live={"clock_s": 60.0}) as d:
        since = now_row(d)
        d.fault("skew", ms=-1500)
        await until(lambda: d.engine.venue.counts["answer: clock"] >= 1, 5, d.why)
        took = await d.quoting_again(after=since)
        d.fault("skew", ms=0)
        await asyncio.sleep(1.2)
        await d.quoting_again()
        await at_rest(d)
        return took


def test_22_refused_once_for_the_clock(tmp_path):
    run(row_22_small, tmp_path, bound_s=6)


# ---------------------------------------------------------------- 23: redis

def stopwatch(d):
    "What every book and every timer costs from here on, us."
    took, market, ring = [], d.engine.on_market, d.engine.ring

    def timed(what):
        def run(x):
            t = time.perf_counter()
            what(x)
            took.append(1e6 * (time.perf_counter() - t))
        return run
    d.engine.on_market, d.engine.ring = timed(market), timed(ring)
    return took


def middle(took):
    "The median and the mean: who waits 50 ms for a copy now and then shows in the second."
    return statistics.median(took), statistics.fmean(took)


async def row_23(folder, how="hang"):
    from redis_server import RedisServer
    import redis
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        async with Day(folder, live={"mirror": server.url}) as d:
            await until(lambda: d.metric("redis_up") == 1, 8, lambda: "redis_up = 1")
            took = stopwatch(d)
            await asyncio.sleep(0.8)
            before = middle(took)
            took.clear()
            if how == "hang":
                server.hang()
            elif how == "kill":
                server.kill()
            else:
                with contextlib.closing(redis.Redis.from_url(server.url)) as c:
                    c.config_set("maxmemory", 1)
            await until(lambda: d.metric("redis_up") == 0, 8, lambda: "redis_up = 0")
            await asyncio.sleep(0.8)
            during = middle(took)
            assert len(took) > 20 and (await d.quoting_again(after=0)) < 5, "it quotes on"
            assert during[0] < before[0] + 1000 and during[1] < before[1] + 2000, f"us: {before} before, {during} while redis is gone"
            begin = time.monotonic()
            if how == "hang":
                server.wake()
            elif how == "kill":
                server.start()
            else:
                with contextlib.closing(redis.Redis.from_url(server.url)) as c:
                    c.config_set("maxmemory", 0)
            took = await until(lambda: d.metric("redis_up") == 1, 10, lambda: "redis_up = 1 again")
            await d.rest()
            from makerlab.live.mirror import read_copy
            for _ in range(200):  # the copy comes after
                await asyncio.sleep(0.02)
                copy = await asyncio.to_thread(read_copy, server.url)
                if copy.positions.get(S, 0) == d.held() and set(copy.orders.get(S, {})) == {o.client_id for o in d.resting()}:
                    break
            assert copy.positions.get(S, 0) == d.held(), "the copy is whole again"
            assert time.monotonic() - begin < 20
            await at_rest(d)
            return took


@pytest.mark.parametrize("how", ["hang", "kill", "full"])
def test_23_redis(tmp_path, how):
    from redis_server import need_redis
    need_redis()
    run(row_23, tmp_path, how, bound_s=10)  # the breaker's longest pause


# ---------------------------------------------------------------- 24: the disk is full

async def row_24(folder):
    async with Day(folder) as d:
        wal = Path(folder) / "state" / "journal.db-wal"
        begin = time.monotonic()
        with file_limit(wal.stat().st_size + 20_000):
            await until(lambda: d.engine.journal_error, 10, lambda: "the journal fails")
            begin = time.monotonic()
            await d.pulled()
            took = time.monotonic() - begin
            since = now_row(d)
            await asyncio.sleep(0.4)
            assert not [x for x in d.truth("new") if x["seq"] > since], "what cannot be written down is not done"
        assert "journal" in d.engine.trader.guard.latch.tripped["*"] and d.heard("alert: journal")
        assert d.metric("journal_errors_total") >= 1 and d.metric("kill_switch") == 1
        d.crowd.on = False
        await until(lambda: d.m.quiet and d.same(), 5, d.why)
        d.lawful(d.config)
        assert await d.stop() == 0 and not d.resting()
    from makerlab.live.journal import Journal
    j = Journal(Path(folder) / "state" / "journal.db")  # there is room again: what was acknowledged is there
    position = j.replay().positions.get(S, 0)
    fills = sum(json.loads(b)["kind"] == "fill" for _, _, w, _, b in j.rows() if w == "report")
    j.close(publish=False)
    assert fills <= len(d.truth("trade")) and isinstance(position, int)
    return took


def test_24_the_journals_disk_is_full(tmp_path):
    run(row_24, tmp_path, bound_s=4)


def small_place(folder):
    "A disk of its own, a little larger than what the recorder leaves free (64 MB), or None where nothing may be mounted."
    import subprocess
    place = Path(folder) / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(place)], capture_output=True, check=False)
    return None if done.returncode else place


async def row_24_recorder(folder, place):
    async with Day(folder, live={"record": str(place / "tape")}) as d:
        ballast = place / "ballast"
        await asyncio.sleep(0.8)
        with open(ballast, "wb", buffering=0) as f, contextlib.suppress(OSError):
            while f.write(b"x" * 2**20):
                pass
        begin = time.monotonic()
        await until(lambda: d.heard("recording stopped"), 10, lambda: f"the recorder stops: {d.said[-3:]}")
        since = now_row(d)
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        assert d.metric("recorder_up") == 0
    ballast.unlink()
    readable(place / "tape")
    return took


def test_24_the_recorders_disk_is_full(tmp_path):
    import subprocess
    place = small_place(tmp_path)
    if place is None:
        pytest.skip("DISK: a small disk cannot be mounted here (needs root, and a kernel that lets it); tests/test_recorder.py does it with RLIMIT_FSIZE")
    try:
        run(row_24_recorder, tmp_path, place, bound_s=8)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


# ---------------------------------------------------------------- 25, 26: kill -9

async def life_and_death(folder, zygote, runs, seed, orders=()):
    "Engines that are killed, one after the other, on one account, while the crowd trades on; then one that lives. Returns times from its birth to two quotes."
    from makerlab.live.simulated import SimulatedVenue
    rng, sim, took = random.Random(seed), SimulatedVenue(symbols=[kit.RULES], flow=None, levels={S: kit.LEVELS}, maker_bps=1.0, taker_bps=5.0, limits={"orders": ((5000, 10),), "weight": (10**9, 60)}), []
    mine = lambda *kinds: [x for x in sim.exchange.truth if x["kind"] in kinds and x.get("account") == "alice"]
    async with sim:
        crowd = kit.Crowd(sim, seed)
        crowding = asyncio.ensure_future(crowd.run())
        path = kit.session_file(Path(folder), sim.url, live={"record": "tape", "metrics_port": -1})
        try:
            for i in range(runs):
                order, born, n = (orders[i % len(orders)] if orders else {}), time.monotonic(), len(mine("new"))
                if order.get("crash") == "after send":
                    sim.fault("request", op="place", how="slow", delay_ms=400, n=order["at"])  # the answer is on its way when it dies
                pid = zygote.engine(path, **order)
                if order:
                    await until(lambda: not alive(pid), 20, lambda: f"it dies by its own hand: {Path(f'{path}.log').read_text()[-2000:]}")
                    sim.clear("request")
                else:
                    await until(lambda: len(mine("new")) >= n + 2 or not alive(pid), 20, lambda: f"it quotes: {Path(f'{path}.log').read_text()[-2000:]}")
                    assert alive(pid), Path(f"{path}.log").read_text()[-2000:]
                    took.append(time.monotonic() - born)
                    await asyncio.sleep(rng.random() * 0.5)
                    zygote.kill(pid)
                    await until(lambda: not alive(pid), 5)
                await asyncio.sleep(rng.random() * 0.1)
            held = sim.exchange.truth_position("alice").get(S, 0)
            async with Day(folder, sim=sim, live={"record": "tape"}, seed=seed + 1) as d:
                crowding.cancel()
                d.crowd.mid = crowd.mid
                took.append(0.0)
                names = [x["client_id"] for x in mine("new")]
                assert len(names) == len(set(names)), "no name twice"
                wrote = {k for _, _, w, k, _ in d.engine.journal.rows() if w == "new"}
                assert set(names) <= wrote, "every order was written before it was sent"
                await d.rest()
                assert abs(held) <= 20
                d.lawful(d.config)
                believed(d)
                assert d.engine.phase == "running" and not d.m.unknown()
                assert d.metric("reconcile_mismatch_total", kind="position") == 0
                assert await d.stop() == 0 and not d.resting()
        finally:
            crowding.cancel()
            await asyncio.gather(crowding, return_exceptions=True)
    readable(Path(folder) / "tape")
    return took


def readable(folder):
    "Every part of a recording can be read."
    import pyarrow.parquet as pq
    from makerlab.live.recorder import recover
    recover(folder)
    parts = sorted(folder.rglob("*.parquet"))
    assert parts and all(pq.read_table(p).num_rows for p in parts)


async def row_25(folder, zygote, runs=5, seed=1):
    return max(await life_and_death(folder, zygote, runs, seed))


@pytest.mark.parametrize(("runs", "seed"), [(6, 1), pytest.param(50, 2, marks=pytest.mark.slow)])
def test_25_kill_9_at_random_points(tmp_path, runs, seed):
    with Zygote() as zygote:
        run(row_25, tmp_path, zygote, runs, seed, bound_s=15, limit_s=30 + 12 * runs)  # a start is 0.4 s of work when nobody else wants the processor


POINTS = [{"crash": "before send", "at": n} for n in (1, 2, 3, 7)] + [{"crash": "after send", "at": n, "later_s": s} for n, s in ((1, 0.05), (2, 0.02), (3, 0.1), (8, 0.05))]


async def row_26(folder, zygote, runs=8, seed=3):
    return max(await life_and_death(folder, zygote, runs, seed, POINTS))


@pytest.mark.parametrize(("runs", "seed"), [(8, 3), pytest.param(48, 4, marks=pytest.mark.slow)])
def test_26_kill_9_between_journal_and_send_and_between_send_and_answer(tmp_path, runs, seed):
    with Zygote() as zygote:
        run(row_26, tmp_path, zygote, runs, seed, limit_s=30 + 12 * runs)


def test_25_a_latch_outlives_kill_9(tmp_path):
    "What an operator has stopped stays stopped, whoever dies."
    from makerlab.execution.risk import FileLatch
    from makerlab.live.simulated import SimulatedVenue

    async def row():
        async with SimulatedVenue(symbols=[kit.RULES], flow=None, levels={S: kit.LEVELS}) as sim:
            crowd = kit.Crowd(sim, 1)
            crowding = asyncio.ensure_future(crowd.run())
            path = kit.session_file(tmp_path, sim.url, live={"metrics_port": -1})
            pid = zygote.engine(path)
            await until(lambda: len(sim.exchange.truth_orders("alice")) == 2, 20)
            FileLatch(tmp_path / "state" / "latch.json").trip("*", "kill: a hand on the switch", time.time_ns())
            await until(lambda: not sim.exchange.truth_orders("alice"), 10)
            zygote.kill(pid)
            await until(lambda: not alive(pid), 5)
            n = len([x for x in sim.exchange.truth if x["kind"] == "new"])
            pid = zygote.engine(path)
            await until(lambda: not alive(pid), 20)
            log = Path(f"{path}.log").read_text()
            assert log.count("start: testnet") == 1 and "StartRefused" in log and "a hand on the switch" in log, log[-1000:]
            assert len([x for x in sim.exchange.truth if x["kind"] == "new"]) == n and not sim.exchange.truth_orders("alice")
            crowding.cancel()
            zygote.kill(pid)
            return 0.0
    with Zygote() as zygote:
        asyncio.run(asyncio.wait_for(row(), 60))


async def row_26_first(folder, zygote):
    "The very first session dies just after its first orders, and they are executed while nobody is there."
    from makerlab.live.simulated import SimulatedVenue
    async with SimulatedVenue(symbols=[kit.RULES], flow=None, levels={S: kit.LEVELS}, maker_bps=1.0, limits={"orders": ((5000, 10),)}) as sim:
        crowd = kit.Crowd(sim, 1)
        crowding = asyncio.ensure_future(crowd.run())
        path = kit.session_file(Path(folder), sim.url, live={"metrics_port": -1})
        pid = zygote.engine(path, crash="after send", at=2, later_s=0.3, unkept=True)
        await until(lambda: sim.exchange.truth_orders("alice") or not alive(pid), 20, lambda: Path(f"{path}.log").read_text()[-2000:])
        crowd.on = False  # no reason to take them back
        await until(lambda: not alive(pid), 20, lambda: Path(f"{path}.log").read_text()[-2000:])
        crowding.cancel()
        left = sim.exchange.truth_orders("alice")
        crowd.through(left[0].side, left[0].tick)
        assert sim.exchange.truth_position("alice"), "executed"
        begin = time.monotonic()
        async with Day(folder, sim=sim) as d:
            took = time.monotonic() - begin
            d.crowd.mid = crowd.mid
            await d.rest()
            believed(d)
            assert await d.stop() == 0 and not d.resting()
            return took


def test_26_the_first_session_dies_young(tmp_path):
    with Zygote() as zygote:
        run(row_26_first, tmp_path, zygote, bound_s=8)


# ---------------------------------------------------------------- 27: what cannot be believed

RUBBISH = ("nan", "infinite", "negative", "zero", "huge", "long", "offgrid", "json", "utf8", "missing", "crossed")


async def row_27(folder, market="spot", rubbish=RUBBISH):
    async with Day(folder, market) as d:
        begin, refused = time.monotonic(), 0
        for what in rubbish:
            for stream in ("*@depth*", "*@trade", "*@aggTrade", "*@bookTicker", "user"):
                d.fault("corrupt", stream=stream, what=what, n=2)
            await asyncio.sleep(0.2)
        await until(lambda: sum(d.engine.feed.stats.refused.values()) >= 2 * len(rubbish), what=d.why)
        d.sim.clear("corrupt")
        since = now_row(d)
        begin = time.monotonic()
        d.fault("cut", kind="user")  # what was told in rubbish is asked for
        await until(lambda: d.heard("connection: reconnected"), 5, d.why)
        await d.quoting_again(after=since)
        took = time.monotonic() - begin
        await at_rest(d)
        refused = sum(d.metric("messages_refused_total", reason=r) for r in d.engine.feed.stats.refused)
        assert refused >= 2 * len(rubbish) and len(d.engine.feed.stats.refused) >= min(len(rubbish), 5), d.engine.feed.stats.refused
        assert all(abs(x["price_ticks"] - MID) <= 30 for x in d.truth("new")), "no quote from a price that nobody had"
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_27_rubbish_on_every_stream(tmp_path, market):
    run(row_27, tmp_path, market, bound_s=6)


# ---------------------------------------------------------------- 28: the rules change

async def row_28(folder, market="spot", status="CANCEL_ONLY"):
    async with Day(folder, market) as d:
        begin = time.monotonic()
        d.fault("symbol_status", status=status)
        await until(lambda: d.engine.closed.get(S), 6, d.why)
        closed, since_ns = time.monotonic() - begin, d.engine.clock()
        if status != "HALT":  # a halted market takes no cancels either
            await d.pulled()
        since = now_row(d)
        await asyncio.sleep(0.5)
        assert not d.wrote_since(since_ns) and not [x for x in d.truth("new") if x["seq"] >= since]
        assert status in d.engine.status()["symbols"][S]["closed"] and d.heard(f"is {status}")
        d.fault("symbol_status", status="TRADING")
        took = closed + await d.quoting_again(after=since)
        await at_rest(d)
        return took


@pytest.mark.parametrize(("market", "status"), [("spot", "CANCEL_ONLY"), ("spot", "HALT"), ("usdm", "CANCEL_ONLY")])
def test_28_the_market_closes_and_opens(tmp_path, market, status):
    run(row_28, tmp_path, market, status, bound_s=10)  # the rules are read every second, the gateway after its first refusal


async def row_28_tick(folder):
    async with Day(folder) as d:
        begin = time.monotonic()
        d.fault("filters", changes={"tick": "0.05"})
        await until(lambda: d.engine.closed.get(S), 6, d.why)
        await d.pulled()
        took = time.monotonic() - begin
        since = now_row(d)
        await asyncio.sleep(0.5)
        assert not [x for x in d.truth("new") if x["seq"] >= since] and d.heard("steps are 0.05", "restart")
        d.fault("filters", changes={"tick": "0.01"})
        await asyncio.sleep(1.5)
        assert not [x for x in d.truth("new") if x["seq"] >= since], "other steps need a new start, not a good day"
        await at_rest(d)
        return took


def test_28_the_tick_changes(tmp_path):
    run(row_28_tick, tmp_path, bound_s=6)


# ---------------------------------------------------------------- 29: we are too slow

async def row_29(folder):
    async with Day(folder, risk={"default": {"max_age_ms": 400}}) as d:
        since, lag, begin, hear = now_row(d), d.metric("loop_lag_seconds_sum"), time.monotonic(), d.engine.hear

        def standing_still(item):
            if item.kind == "book" and item.data.synced:  # heard, and not yet thought over: it is as old as the pause
                d.engine.hear = hear
                time.sleep(0.7)
            hear(item)
        d.engine.hear = standing_still
        await until(lambda: d.heard("alert: stale data"), 3, d.why)
        took = await d.quoting_again(after=since)
        await until(lambda: d.metric("loop_lag_seconds_sum") - lag > 0.5, 3, "the lag of the loop")
        st = d.engine.feed.stats
        before, shed = st.messages, st.conflated

        def slowly(item):
            time.sleep(0.004)
            hear(item)
        d.engine.hear = slowly
        for _ in range(100):
            d.crowd.act()
        await until(lambda: st.messages > before + 100, 10, d.why)
        waiting = len(d.engine.feed._box)
        d.engine.hear = hear
        assert st.conflated > shed, "a newer book takes the place of an older one"
        assert len(d.engine.feed._box._fresh) <= 2 and waiting < 10_000
        await d.quoting_again()
        await at_rest(d)
        assert d.metric("messages_shed_total") > 0
        assert time.monotonic() - begin < 40
        return took


def test_29_the_loop_stands_still(tmp_path):
    run(row_29, tmp_path, bound_s=5)


# ---------------------------------------------------------------- 30, 31

async def row_30(folder, market="spot"):
    "No money for the bids. The other side quotes on, and the venue is not bothered."
    async with Day(folder, market, balances={"USDT": "0.05", "BTC": "1"} if market == "spot" else {"USDT": "0.001"}, quoting=False) as d:
        begin = time.monotonic()
        await until(lambda: len(d.truth("refused")) >= 3, 8, d.why)
        await asyncio.sleep(2.0)
        took, refused = time.monotonic() - begin, len(d.truth("refused"))
        assert refused <= 12 + 12 * took, f"{refused} refusals in {took:.1f} s"
        assert d.heard("rejected: -20") and d.engine.venue.counts["rejected"] > refused, "the brake holds what the loop asks for"
        if market == "spot":
            assert [x for x in d.truth("new") if x["side"] < 0], "the other side is free"
        d.sim.exchange.accounts["alice"].balances["USDT"] += 10**12
        begin = time.monotonic()
        await d.quoting_again(after=0)
        took = time.monotonic() - begin
        await at_rest(d)
        assert any(d.metric("orders_total", event="REJECTED", reason=r) >= 1 for r in ("-2010", "-2019", "other"))
        return took


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_30_no_money(tmp_path, market):
    run(row_30, tmp_path, market, bound_s=10)  # the longest pause of the brake is 5 s


async def row_31(folder, how="throttled", market="spot"):
    async with Day(folder, market) as d:
        if how == "throttled":
            d.fault("throttle", seconds=2)
            await until(lambda: "throttled" in d.engine.venue.budget.until, 5, d.why)
        elif how == "unknown":
            d.fault("mute", stream="user", match="NEW", n=2)
            f = d.fault("request", op="place", how="hang", executed=True, n=2)
            await until(lambda: f.hits == 2, 5, d.why)
        elif how == "cancels hang":
            d.fault("request", op="cancel", how="hang", executed=False, n=3)
        else:  # fills and cancels cross
            d.fault("delay", stream="user", ms=300, n=-1)
            d.crowd.move(d.crowd.mid + 3)
            d.crowd.move(d.crowd.mid - 3)
        killed = []

        async def kill():
            killed.append(d.engine.clock())
            return await d.engine.kill("row 31")
        done = await asyncio.wait_for(kill(), 20)
        assert done["verified"] and done["open_orders"] == 0 and not d.resting(), done
        since = now_row(d)
        await asyncio.sleep(0.7)
        d.sim.clear()
        await d.sim.flushed()
        assert not d.resting() and not [x for x in d.truth("new") if x["seq"] >= since], "nothing after the kill"
        assert not d.wrote_since(killed[0]), "no order was even thought of after it"
        assert d.metric("kill_switch") == 1 and d.heard("kill: verified") and "kill: row 31" in d.engine.trader.guard.latch.tripped["*"]
        await at_rest(d)
        return done["seconds"]


@pytest.mark.parametrize(("how", "market"), [("throttled", "spot"), ("unknown", "spot"), ("cancels hang", "spot"), ("crossing", "spot"), ("throttled", "usdm"), ("unknown", "usdm")])
def test_31_kill_in_the_middle_of_trouble(tmp_path, how, market):
    run(row_31, tmp_path, how, market, bound_s=8)  # 2 s of silence asked for; timeouts of 0.6 s


# ---------------------------------------------------------------- 32: two engines

async def row_32(folder, zygote):
    from makerlab.live.guardian import LeaseError, live
    from makerlab.live.simulated import SimulatedVenue
    async with SimulatedVenue(symbols=[kit.RULES], flow=None, levels={S: kit.LEVELS}, limits={"orders": ((5000, 10),)}) as sim:
        crowd = kit.Crowd(sim, 1)
        crowding = asyncio.ensure_future(crowd.run())
        undo = kit.quick()
        try:
            path = kit.session_file(Path(folder), sim.url, live={"metrics_port": -1})
            pid = zygote.engine(path)
            await until(lambda: len(sim.exchange.truth_orders("alice")) == 2, 20, lambda: Path(f"{path}.log").read_text()[-1500:])
            other = Path(folder) / "other"
            other.mkdir()
            elsewhere = kit.session_file(other, sim.url, live={"metrics_port": -1})  # another folder, the same account
            for p in (elsewhere, path):
                with pytest.raises(LeaseError, match=f"held by process {pid}"):
                    await asyncio.wait_for(live(kit.load_live(p), say=lambda w: None, watched=False, signals=False), 5)
            names = {x["client_id"] for x in sim.exchange.truth if x["kind"] == "new" and x.get("account") == "alice"}
            zygote.kill(pid)
            undo()
            begin = time.monotonic()
            await until(lambda: not alive(pid), 5)
            async with Day(folder, sim=sim) as d:
                took = time.monotonic() - begin
                d.crowd.mid = crowd.mid
                crowding.cancel()
                assert names <= d.known_before()
                await d.rest()
                believed(d)
                assert await d.stop() == 0 and not d.resting()
                return took
        finally:
            undo()
            crowding.cancel()


def test_32_two_engines_on_one_account(tmp_path):
    with Zygote() as zygote:
        run(row_32, tmp_path, zygote, bound_s=10)


# ---------------------------------------------------------------- each guard switched off once

def silently(self, reason):
    self._line, self._down = None, True


def deaf(self, raw, old=binance.BinanceVenue._hear):
    said = old(self, raw)
    return None if isinstance(said, Notice) else said


def believe_gaps(self, d, old=LiveBook._verdict):
    return old(self, d).replace("gap", "apply")


def apply_repeats(self, d, old=LiveBook._verdict):
    return old(self, d).replace("stale", "apply")


def stale_is_a_gap(self, d, old=LiveBook._verdict):
    return old(self, d).replace("stale", "gap") if self.fresh else old(self, d)


def take_any_snapshot(self, snapshot, now_ns, old=LiveBook.on_snapshot):
    self.buffer.clear()
    return old(self, snapshot, now_ns)


def every_unknown_is_a_refusal(self, k, reply, old=binance.BinanceVenue._judge_new):
    old(self, k, reply._replace(outcome=Outcome("rejected", True, message="no answer")) if reply.outcome.kind == "unknown" else reply)


def once_is_enough(self, o, r):
    if o.state is State.UNKNOWN:
        self._move(o, State.REJECTED, "not found")
        o.inferred = True


def dead_is_dead(self, o, r, old=OrderManager._on_accepted):
    return self._duplicate(o, r) if o.done else old(self, o, r)


def dead_stays_dead(self, w, out, old=OrderManager._audit_order):
    o = self.orders.get(w.client_id)
    return "" if o is not None and o.done else old(self, w, out)


def accept_always(self, k, time_ns, cum=-1):
    k.accepted = True
    self._tell("accepted", k, time_ns, price_ticks=k.tick, qty_lots=k.qty, cum_lots=cum)


def no_late_fills(self, r, flag="", old=OrderManager._fill):
    o = self.orders.get(r.client_id)
    return None if o is not None and o.done else old(self, r, flag)


def book_always(self, k, trade, *a, old=binance.BinanceVenue._booking, **more):
    self.booked.clear()
    old(self, k, trade, *a, **more)


async def both_at_once(self, cancel, order, *, only_new=False):
    await self.submit(order)
    await self.cancel(cancel)


def blocking_tick(self, top, old=mirror.Mirror.tick):
    old(self, top)
    with contextlib.suppress(Exception):
        mirror.connect(self.url if hasattr(self, "url") else self._url).xadd("ticks", {"bid": top.bid_ticks})


def shrug(e, method, *args, old=engine._journal):
    with contextlib.suppress(Exception):
        getattr(e.journal, method)(*args)
    return True


def raise_anything(raw, *, market, old=feed.decode):
    try:
        return old(raw, market=market)
    except feed.FeedError as x:
        raise ValueError(str(x)) from None


async def surely(self, reason):
    self._pull(reason)
    return True


def no_lease(self, account, *, folder=None):
    self.account, self._file = account, -1


V, nothing = binance.BinanceVenue, lambda *a, **k: None
CAREFREE = {"hold": lambda self, rule, until_ns: self.until.setdefault(rule, 0)}
GUARDS = {  # the guard: (row, arguments, what is put in its place: where, name, instead; early = before the start)
    "01 a lost connection takes the book away": (row_01, (), [(feed, "_lost", nothing)]),
    "02 pings": (row_02, (replace(POLICY, ping_s=60.0),), []),
    "03 gaps, spot": (row_03, ("spot",), [(LiveBook, "_verdict", believe_gaps)]),
    "03 gaps, futures": (row_03, ("usdm",), [(LiveBook, "_verdict", believe_gaps)]),
    "04 repeats": (row_04, (), [(LiveBook, "_verdict", apply_repeats)]),
    "05 out of order": (row_05, ("usdm",), [(LiveBook, "_verdict", believe_gaps)]),
    "06 old snapshots": (row_06, (), [(LiveBook, "on_snapshot", take_any_snapshot)]),
    "07 what waits and is older than the snapshot": (row_07, (), [(LiveBook, "_verdict", stale_is_a_gap)]),
    "08 the watchdog of silence": (row_08, (replace(POLICY, silence_s={}),), []),
    "09 make before break": (row_09, (), [(feed, "_other", nothing)]),
    "10 the loss of the user stream is told": (row_10, (), [(V, "_lost", silently)]),
    "10 orders stop while it is lost": (row_10, ("spot", "blackhole"), [(guardian.LiveVenue, "_say", lambda self, kind, *a, old=V._say, **k: None if kind == "disconnected" else old(self, kind, *a, **k))]),
    "11 the end of a listen key is heard": (row_11, (), [(V, "_hear", deaf)]),
    "12 Retry-After": (row_12, (), [(FullBudget, "hold", CAREFREE["hold"])]),
    "13 the end of a ban is waited for": (row_13, (), [(FullBudget, "hold", lambda self, rule, until_ns: self.until.setdefault(rule, until_ns) and self.until.pop(rule))]),
    "14 no answer is no refusal": (row_14, (), [(V, "_judge_new", every_unknown_is_a_refusal)]),
    "14 what is unknown is asked for": (row_14, (), [(OrderManager, "_query", nothing)]),
    "15 not found, often enough, is an end": (row_15, (), [(OrderManager, "_on_not_found", nothing)]),
    "15 one answer of not-found is not enough": (row_15, (), [(OrderManager, "_on_not_found", once_is_enough)]),
    "16 what comes to life late is adopted": (row_16, (), [(OrderManager, "_on_accepted", dead_is_dead), (OrderManager, "_audit_order", dead_stays_dead)]),
    "17 accepted once": (row_17, (), [(V, "_accept", accept_always)]),
    "18 late executions are booked": (row_18, (), [(OrderManager, "_fill", no_late_fills)]),
    "19 the second leg waits": (row_19, ("spot", "cancel fails"), [(V, "replace", both_at_once, "early")]),
    "20 trades are told once": (row_20, (), [(V, "_booking", book_always)]),
    "21 orders that are not ours": (row_21, (), [(engine, "_strangers", nothing)]),
    "22 the clock's offset": (row_22, (), [(RiskGuard, "on_clock_offset", nothing)]),
    "22 the clock is read again": (row_22_small, (), [(V, "_sync_clock", lambda self: asyncio.sleep(0, False))]),
    "23 the mirror does not block": (row_23, ("hang",), [(mirror.Mirror, "tick", blocking_tick)]),
    "24 a journal that fails halts": (row_24, (), [(engine, "_journal", shrug)]),
    "25 the journal is read at the start": (row_25, ("zygote", 2, 1), [(guardian, "restore", nothing, "early")]),
    "26 written before it is sent": (row_26, ("zygote", 2, 3), [(Journal, "intents", nothing, "early"), (Journal, "intent", nothing, "early")]),
    "27 rubbish is refused, not raised": (row_27, (), [(feed, "decode", raise_anything)]),
    "28 the rules are obeyed": (row_28, (), [(Engine, "obey", nothing)]),
    "28 a new tick closes": (row_28_tick, (), [(Engine, "obey", nothing)]),
    "29 stale data": (row_29, (), [(risk, "unseen", lambda *a: "")]),
    "30 the brake": (row_30, (), [(binance.Brake, "holds", lambda self, key, now_ns: 0)]),
    "31 a kill is verified": (row_31, ("throttled",), [(Engine, "withdraw", surely)]),
    "32 the lease": (row_32, ("zygote",), [(guardian.Lease, "__init__", no_lease, "early")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GUARDS)
def test_without_its_guard_the_row_fails(monkeypatch, tmp_path, name):
    row, args, patches = GUARDS[name]
    if name.startswith("23"):
        from redis_server import need_redis
        need_redis()
    monkeypatch.setattr(kit, "PATIENT_S", 4.0)

    def off(early):
        for where, what, instead, *when in patches:
            if bool(when) is early:
                monkeypatch.setattr(where, what, instead)
    monkeypatch.setattr(Day, "started", staticmethod(lambda d: off(False)))
    off(True)
    with contextlib.ExitStack() as stack:
        args = [stack.enter_context(Zygote()) if a == "zygote" else a for a in args]
        with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)) as e:
            run(row, tmp_path, *args, limit_s=45)
    print(f"{name}: {' '.join(str(e.value).split())[:160]}")
