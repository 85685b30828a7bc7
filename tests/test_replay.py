"Replay: the kernel against its plain-Python twin on random feeds, bad input, state that survives chunks, bounded memory, signals."
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from makerlab.backtest import replay as engine
from makerlab.backtest.replay import ConstantLatency, EmpiricalLatency, Replay, SlowVenue, replay_slow
from makerlab.core import DataError, ParameterError, next_uniform, rng_streams
from makerlab.data.events import Events
from makerlab.execution.queues import parse_queue, queue_model
from makerlab.features.volatility import features
from makerlab.models.quoting import QuoteParams
from makerlab.schema import new_state, strategy

T0 = 1_700_000_000_000_000_000
NAMES = ("kind", "side", "exch_ns", "local_ns", "tick", "lots", "order_id", "seen")
DTYPES = (np.uint8, np.int8, np.int64, np.int64, np.int32, np.int64, np.int64, np.uint8)


def events_of(rows, *, level="l2", **more):
    "Rows (exch, local, kind, side, tick, lots, id, seen) as Events."
    exch, local, kind, side, tick, lots, key, seen = (np.array(c) for c in zip(*rows, strict=True))
    columns = dict(zip(NAMES, (c.astype(d) for c, d in zip((kind, side, exch, local, tick, lots, key, seen), DTYPES, strict=True)), strict=True))
    if level == "l2":
        del columns["order_id"]
    if (seen == 3).all():
        del columns["seen"]
    return Events(**columns, level=level, **({"tick_size": 0.01, "lot_size": 1.0} | more))


def clocks(rng, n, *, gap, latency):
    "Stamps that often tie, and when we hear of them."
    exch = T0 + np.cumsum(rng.integers(0, gap, n))
    return exch, np.maximum.accumulate(exch + rng.integers(0, latency + 1, n))


def feed_l2(rng, n=400, *, gap=40, latency=30, wild=0.0):
    "Levels and trades near 1000, with ties, empty sides and (wild) crossings."
    exch, local = clocks(rng, n, gap=gap, latency=latency)
    rows, mid = [], 1000
    for i in range(n):
        mid += int(rng.integers(-1, 2)) if rng.random() < 0.05 else 0
        side = int(rng.choice([-1, 1]))
        kind = int(rng.choice([1, 2, 3, 4], p=[0.72, 0.24, 0.005, 0.035]))
        away = 1 + int(rng.geometric(0.5)) - 1 if rng.random() >= wild else -int(rng.integers(0, 3))
        tick = mid - side * away if kind != 2 else mid + side * int(rng.integers(0, 3))
        lots = int(rng.integers(1, 9)) if kind == 2 else int(rng.integers(0, 15)) * (rng.random() < 0.8)
        if kind == 3 and rng.random() < 0.5:
            side = 0
        rows.append((int(exch[i]), int(local[i]), kind, side, tick, int(lots), 0, 3))
    return rows


def feed_l3(rng, n=400, *, gap=40, latency=30):
    "Orders near 1000: added, cut, moved and executed from the front of their queues, some of ids never seen, and now and then a clear."
    exch, local = clocks(rng, n, gap=gap, latency=latency)
    book, rows, keys = {}, [], itertools.count(1)
    for i in range(n):
        at, u = (int(exch[i]), int(local[i])), rng.random()
        if u < 0.45 or not book:
            side = int(rng.choice([-1, 1]))
            key, tick, lots = next(keys) * 7919, 1000 - side * int(rng.integers(1, 5)), int(rng.integers(1, 9))
            book[key] = [side, tick, lots]
            rows.append((*at, 10, side, tick, lots, key, 3))
        elif u < 0.47:
            rows.append((*at, int(rng.choice([11, 12, 13])), 1, 998, 3, 5 + int(rng.integers(0, 99)), 3))  # never seen
        elif u < 0.475:
            side = int(rng.choice([-1, 0, 1]))
            book = {k: v for k, v in book.items() if side and (v[0] != side or side * v[1] < side * 998)}
            rows.append((*at, 3, side, 998, 0, 0, 3))
        elif u < 0.75:
            side = int(rng.choice([v[0] for v in book.values()]))
            best = max(v[0] * v[1] for v in book.values() if v[0] == side) * side
            key = next(k for k, v in book.items() if v[:2] == [side, best])
            lots = int(rng.integers(1, book[key][2] + 1))
            rows += [(*at, 2, -side, best, lots, 0, 3), (*at, 13, side, best, lots, key, 3)]
            book[key][2] -= lots
        else:
            key = int(rng.choice(list(book)))
            side, tick, lots = book[key]
            if u < 0.9:
                cut = int(rng.integers(1, lots + 1))
                rows.append((*at, 11, side, tick, cut, key, 3))
                book[key][2] -= cut
            else:
                tick, lots = (tick if rng.random() < 0.6 else 1000 - side * int(rng.integers(1, 5))), int(rng.integers(1, 9))
                rows.append((*at, 12, side, tick, lots, key, 3))
                if not (tick == book[key][1] and lots <= book[key][2]):
                    del book[key]  # to the back of its queue
                book[key] = [side, tick, lots]
        book = {k: v for k, v in book.items() if v[2] > 0}
    return rows


def doubled(rows, rng):
    "The same feed with every row seen by one clock at a time, in two orders that disagree."
    late = sorted((r[:1] + (r[1] + int(rng.integers(0, 60)),) + r[2:7] + (2,) for r in rows), key=lambda r: r[1])
    out, i = [], 0
    for r in rows:
        while i < len(late) and late[i][1] <= r[0]:
            out.append(late[i])
            i += 1
        out.append(r[:7] + (1,))
    return out + late[i:]


@strategy
def restless(state, params):
    "Quotes that change side, price and size often, from the state alone."
    if not (state.bid > 0.0 and state.ask > 0.0):
        return np.int64(0), np.int64(0), 0.0, 0.0
    bid, ask = np.int64(round(state.bid / params.tick)), np.int64(round(state.ask / params.tick))
    turn = np.int64(state.t_s * 1e8) // 37 + np.int64(state.inventory)
    bid_qty, ask_qty = 1.0 + turn % 3, 1.0 + turn % 2
    if turn % 5 == 0:
        bid_qty = 0.0
    if turn % 7 == 0:
        ask_qty = 0.0
    return min(bid - turn % 4 + 1, ask + params.x0), max(ask + turn % 3 - 1, bid - params.x0), bid_qty, ask_qty


def wishes_of(function, record):
    "What the twin asks, by the same strategy, under the kernel's rules for what makes no sense."
    def decide(t, bid, ask, bid_lots, ask_lots, position):
        s = new_state(t_s=(t - decide.first) * 1e-9, tau_s=60.0, inventory=float(position), bid=np.nan if bid is None else bid * 0.01,
                      ask=np.nan if ask is None else ask * 0.01, bid_size=float(bid_lots), ask_size=float(ask_lots))
        s.mid = np.nan if bid is None or ask is None else 0.5 * (bid + ask) * 0.01
        b, a, bq, aq = function(s, record)
        if bq > 0 and aq > 0 and b >= a:
            bq = aq = 0.0
        return (int(b), round(bq)), (int(a), round(aq))
    return decide


def both(rows, *, level="l2", queue="risk-averse", strategy=restless, interval_ns=97, order=ConstantLatency(30), feed=None, kind="post-only", params=None, seed=3):
    "Positions, fills and order log of kernel and twin."
    params = params or QuoteParams(qty=2.0, max_inventory=9.0, x0=1.0, x1=0.1)
    r = Replay(events_of(rows, level=level), strategy=strategy, params=params, queue=queue, interval_ms=interval_ns * 1e-6, order_latency=order, feed_latency=feed,
               order_type=kind, signals=False)
    rng = np.random.default_rng(seed)
    run = engine._perform(r, rng)
    path, fills, log = (run.outputs.table(part) for part in (engine.PATH, engine.FILLS, engine.LOG))
    q = parse_queue(queue)
    streams = rng_streams(2, rng=np.random.default_rng(seed))
    function = engine.REPLAY_STRATEGIES[strategy] if isinstance(strategy, str) else strategy

    def delay(back, t):
        d = order.ns if not back or order.back_ns is None else order.back_ns
        return d + (int(-round(order.jitter_ns) * np.log(next_uniform(streams[back]))) if order.jitter_ns else 0)

    if feed is not None:
        rows = [(x[0], x[0] + feed.ns, *x[2:7], 3) for x in rows if x[7] & 1]
    venue, decide = SlowVenue(q.fn, q.n, q.fifo, kind), wishes_of(function, params.record(0.01))
    decide.first = min([x[0] for x in rows if x[7] & 1][:1] + [x[1] for x in rows if x[7] & 2][:1]) + interval_ns
    positions, slow_log = replay_slow(rows, decide, venue, interval_ns=interval_ns, delay=delay)
    names = ["new", "cancel", "reject", "expire"]
    mine = ([(int(a), int(b)) for a, b in path[:, [0, 8]]], [(int(t), int(s), int(k), int(p), int(n), bool(m)) for _, t, s, k, p, n, _, m in fills],
            sorted((int(t), names[w], int(s), int(p), int(n), int(k)) for t, w, s, p, n, k in log))
    return mine, (positions, venue.fills, sorted(slow_log)), run


CASES = [dict(), dict(order=ConstantLatency(0)), dict(order=ConstantLatency(0, 0), feed=ConstantLatency(0)), dict(order=ConstantLatency(200, 150)),
         dict(order=ConstantLatency(20, jitter_ns=60.0)), dict(feed=ConstantLatency(25)), dict(feed=ConstantLatency(97)), dict(feed=ConstantLatency(98)),
         dict(feed=ConstantLatency(700), order=ConstantLatency(500)), dict(kind="limit"), dict(kind="ioc", order=ConstantLatency(7)), dict(kind="market"),
         dict(strategy="reference"), dict(strategy="reference", interval_ns=3)]


@pytest.mark.bounds
@pytest.mark.parametrize("queue", ["risk-averse", "power-prob:3", "log-prob"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_kernel_equals_its_twin_on_levels(case, queue):
    filled = 0
    for seed in range(6):
        rng = np.random.default_rng(1000 * case + seed)
        rows = feed_l2(rng, wild=0.1 * (seed % 2), gap=(40, 3, 400)[seed % 3])
        mine, slow, run = both(rows, queue=queue, **CASES[case])
        for a, b in zip(mine, slow, strict=True):
            assert a == b
        filled += len(mine[1])
    assert filled > 0


@pytest.mark.bounds
@pytest.mark.parametrize("queue", ["fifo", "risk-averse", "power-prob:2"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_kernel_equals_its_twin_on_orders(case, queue):
    filled = 0
    for seed in range(6):
        rng = np.random.default_rng(5000 + 1000 * case + seed)
        mine, slow, run = both(feed_l3(rng, gap=(40, 3, 400)[seed % 3]), level="l3", queue=queue, **CASES[case])
        for a, b in zip(mine, slow, strict=True):
            assert a == b
        filled += len(mine[1])
        assert run.x[engine.UNKNOWN] > 0
    assert filled > 0 or CASES[case].get("kind") == "ioc"  # nothing crosses there


@pytest.mark.parametrize("level", ["l2", "l3"])
def test_rows_seen_by_one_clock_each(level):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = doubled((feed_l2 if level == "l2" else feed_l3)(rng, 250), rng)
        mine, slow, run = both(rows, level=level, queue="power-prob:3")
        assert run.x[engine.ONE] == 0
        for a, b in zip(mine, slow, strict=True):
            assert a == b


def plain(rows, **settings):
    "Everything that a replay of rows returns."
    level = settings.pop("level", "l2")
    more = dict(params=QuoteParams(qty=2.0, max_inventory=9.0, x0=0.5, x1=0.1), interval_ms=97e-6, order_latency=ConstantLatency(30), signals=False, horizons_s=(1e-6,))
    return Replay(events_of(rows, level=level) if isinstance(rows, list) else rows, **(more | settings)).run(rng=np.random.default_rng(1))


def same_tables(a, b):
    for name in ("path", "fills", "orders"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name))
    assert a.digest == b.digest and np.array_equal(a.positions, b.positions)


@pytest.mark.bounds
@pytest.mark.parametrize("settings", [dict(), dict(feed_latency=ConstantLatency(25)), dict(feed_latency=ConstantLatency(700)), dict(order_latency=ConstantLatency(20, jitter_ns=60.0)),
                                      dict(feed_latency=ConstantLatency(20, jitter_ns=40.0)), dict(signals=True, window_s=2e-6)])
@pytest.mark.parametrize("level", ["l2", "l3"])
def test_chunks_do_not_matter(level, settings):
    rng = np.random.default_rng(8)
    rows = (feed_l2 if level == "l2" else feed_l3)(rng, 900)
    whole = plain(rows, level=level, strategy=restless, **settings)
    assert len(whole.fills) > 10
    for size in (1, 7, 64, 450):
        chunks = (events_of(rows[a : a + size], level=level) for a in range(0, len(rows), size))
        same_tables(whole, plain(chunks, strategy=restless, **settings))


@pytest.mark.parametrize("kind", ["doubled", "plain"])
def test_rows_seen_by_one_clock_survive_chunks(kind):
    rng = np.random.default_rng(9)
    rows = feed_l2(rng, 500)
    rows = doubled(rows, rng) if kind == "doubled" else rows
    whole = plain(rows, strategy=restless)
    same_tables(whole, plain((events_of(rows[a : a + 33]) for a in range(0, len(rows), 33)), strategy=restless))


@pytest.mark.bounds
def test_one_book_gives_what_two_books_give(monkeypatch):
    rows = feed_l2(np.random.default_rng(3), 900, wild=0.05)
    one = plain(rows, strategy=restless)
    monkeypatch.setattr(engine, "_within_nb", lambda *a: False)
    two = plain(rows, strategy=restless)
    assert (one.info["books"], two.info["books"]) == (1, 2) and len(one.fills) > 10
    same_tables(one, two)


@pytest.mark.bounds
def test_small_buffers_and_small_books_only_cost_time(monkeypatch):
    rows = feed_l3(np.random.default_rng(4), 900)
    want = plain(rows, level="l3", queue="fifo", strategy=restless)
    start = engine._begin

    def cramped(*args):
        x, f = start(*args)
        head = x[: engine.TAIL].copy()
        n = 3
        head[[engine.PATH_CAP, engine.FILLS_CAP, engine.LOG_CAP, engine.IDS, engine.N]] = 5, engine.SLOTS + 1, 2 * engine.SLOTS + 9, 2, n
        head[[engine.LOW, engine.HIGH]] = 1000, 1002
        head[engine.LOWEST : engine.LOWEST + 4] = n
        y = engine._lay_out(head)
        return y, f

    monkeypatch.setattr(engine, "_begin", cramped)
    same_tables(want, plain(rows, level="l3", queue="fifo", strategy=restless))


def test_a_scramble_of_the_future_changes_nothing_before_it():
    rng = np.random.default_rng(6)
    rows = feed_l2(rng, 900)
    cut = rows[600][0]
    early = [r for r in rows if r[1] <= cut]
    late = [(r[0] + 50, r[1] + 90, *feed_l2(rng, 1)[0][2:]) for r in rows if r[1] > cut]
    for feed in (None, ConstantLatency(40), ConstantLatency(400)):
        a, b = plain(rows, strategy=restless, feed_latency=feed, signals=True, window_s=2e-6), plain(early + late, strategy=restless, feed_latency=feed, signals=True, window_s=2e-6)
        n = int((a.path["time"].astype("int64") <= cut).sum()) - 8
        assert n > 40
        columns = ["time", "quote_bid", "quote_ask", "bid_qty", "ask_qty", "sigma", "ofi", "position"]
        pd.testing.assert_frame_equal(a.path[columns].iloc[:n], b.path[columns].iloc[:n])
        past = lambda t: t[t["time"].astype("int64") < cut - 1000].reset_index(drop=True)  # noqa: E731, B023
        pd.testing.assert_frame_equal(past(a.fills).drop(columns="fee"), past(b.fills).drop(columns="fee"))
        assert not a.path.equals(b.path)


def test_signals_are_those_of_features():
    rng = np.random.default_rng(12)
    n, step = 60_000, 50_000_000
    exch = T0 + np.cumsum(rng.integers(1, 4_000_000, n))
    local = np.maximum.accumulate(exch + rng.integers(100_000, 3_000_000, n))
    rows, mid = [], 1000
    for i in range(n):
        if i < 40:
            rows.append((int(exch[0]), int(local[0]), 1, 1 - 2 * (i % 2), 1000 - (1 - 2 * (i % 2)) * (1 + i // 2), 5, 0, 3))
            continue
        side = 1 - 2 * int(rng.integers(0, 2))
        bid = 999 + (mid - 1000)
        tick = (bid if side > 0 else bid + 2) - side * int(rng.geometric(0.6) - 1)
        lots = int(rng.integers(0, 30))
        if rng.random() < 0.01:  # the whole book moves by a tick
            move = int(rng.choice([-1, 1]))
            gone, new = (1, -1) if move < 0 else (-1, 1)
            rows.append((int(exch[i]), int(local[i]), 1, gone, bid if gone > 0 else bid + 2, 0, 0, 3))
            rows.append((int(exch[i]), int(local[i]), 1, new, (bid + 2 if new < 0 else bid) + move, 7, 0, 3))
            mid += move
            continue
        if lots == 0 and tick in (bid, bid + 2):
            lots = 3
        rows.append((int(exch[i]), int(local[i]), 1, side, tick, lots, 0, 3))
    events = events_of(rows, lot_size=0.1)
    for ofi_s in (None, 0.5):
        res = Replay(events, params=QuoteParams(qty=1.0), interval_ms=step * 1e-6, signals=True, window_s=4.0, ofi_s=ofi_s, ofi_floor=0.3).run(rng=np.random.default_rng(1))
        want = features(events.quotes("local"), every_s=step * 1e-9, window_s=4.0, ofi_s=ofi_s, floor=0.3, start=res.path["time"].iloc[0], end=res.path["time"].iloc[-1])
        mine = res.path.iloc[1:].reset_index(drop=True)
        assert (mine["time"] == want["time"]).all() and mine["sigma"].notna().sum() > 1000
        np.testing.assert_allclose(mine["sigma"], want["sigma"], rtol=1e-9)
        np.testing.assert_allclose(mine["ofi"], want["ofi_norm"], rtol=1e-9, atol=1e-12)


@queue_model
def halfway(front, before, after, traded, n):
    "A user's own model: half of what is cancelled stood ahead."
    change = before - after - traded
    return min(front if change < 0.0 else front - 0.5 * change, after)


def test_a_queue_model_of_your_own():
    for seed in range(3):
        mine, slow, _ = both(feed_l2(np.random.default_rng(seed), 900, gap=9), queue=halfway)
        for a, b in zip(mine, slow, strict=True):
            assert a == b
    t, book = T0 + 1000, snapshot()  # we join 6 lots at 999; 24 join behind, 10 leave, and 4 trade
    rows = book + [(t, t + 10, 1, 1, 999, 30, 0, 3), (t + 100, t + 110, 1, 1, 999, 20, 0, 3), (t + 200, t + 210, 2, -1, 999, 4, 0, 3), (t + 900, t + 910, 1, 1, 990, 1, 0, 3)]
    fills = {name: len(plain(rows, queue=q).fills) for name, q in (("mine", halfway), ("careful", "risk-averse"))}
    assert fills == {"mine": 1, "careful": 0}
    assert plain(rows, queue=halfway).info["queue"] == "halfway"


@pytest.mark.nojit
def test_small_replay_without_the_compiler():
    for level, queue in (("l2", "power-prob:3"), ("l3", "fifo"), ("l3", "risk-averse")):
        rng = np.random.default_rng(2)
        rows = (feed_l2 if level == "l2" else feed_l3)(rng, 200)
        mine, slow, _ = both(rows, level=level, queue=queue, order=ConstantLatency(20, jitter_ns=60.0))
        for a, b in zip(mine, slow, strict=True):
            assert a == b
        assert len(mine[1]) > 0
        plain(rows, level=level, queue=queue, signals=True, window_s=2e-6)
    rows = doubled(feed_l2(np.random.default_rng(5), 150), np.random.default_rng(5))
    mine, slow, _ = both(rows)
    assert mine[0] == slow[0] and mine[1] == slow[1]


def snapshot(levels=4, t=T0):
    "A first book around 1000."
    return [(t, t + 10, 4, side, 1000 - side * (1 + d), 6, 0, 3) for d in range(levels) for side in (1, -1)]


def test_trades_before_the_first_book_fill_nobody():
    rows = [(T0 + i, T0 + i + 5, 2, 1, 1000, 3, 0, 3) for i in range(400)]
    with pytest.raises(DataError, match="at none of the .* marks every .* had the book both sides"):
        plain(rows)
    res = plain(rows + [(r[0] + 500, r[1] + 500, *r[2:]) for r in snapshot()] + [(T0 + 9000, T0 + 9010, 1, 1, 990, 1, 0, 3)])
    assert len(res.fills) == 0 and res.path["mid"].notna().all() and res.path["time"].iloc[0] >= pd.Timestamp(T0 + 500, tz="UTC")
    assert len(res.positions) > len(res.path)


def test_unsorted_rows_are_refused_by_number():
    rows = snapshot() + [(T0 + 700, T0 + 720, 1, 1, 998, 5, 0, 3), (T0 + 650, T0 + 730, 1, 1, 998, 6, 0, 3), (T0 + 900, T0 + 910, 1, 1, 998, 6, 0, 3)]
    with pytest.raises(DataError, match="exchange stamp of row 9 is 50 ns before"):
        plain(rows)
    rows = snapshot() + [(T0 + 600, T0 + 720, 1, 1, 998, 5, 0, 3), (T0 + 650, T0 + 700, 1, 1, 998, 6, 0, 3), (T0 + 900, T0 + 910, 1, 1, 998, 6, 0, 3)]
    with pytest.raises(DataError, match="local stamp of row 9 is 20 ns before"):
        plain(rows, interval_ms=20e-6)
    with pytest.raises(DataError, match="exchange stamp of row 9"):  # the number counts from the start of the stream
        bad = snapshot() + [(T0 + 700, T0 + 720, 1, 1, 998, 5, 0, 3), (T0 + 650, T0 + 730, 1, 1, 998, 6, 0, 3)]
        plain(iter([events_of(bad[:5]), events_of(bad[5:9]), events_of(bad[9:])]))


@pytest.mark.parametrize("kind, lots, what", [(1, -1, "row 8 has kind 1 and -1 lots"), (7, 3, "row 8 has kind 7"), (10, 3, "row 8 has kind 10")])
def test_rows_that_make_no_sense_are_refused_by_number(kind, lots, what):
    with pytest.raises(DataError, match=what):
        plain(snapshot() + [(T0 + 700, T0 + 720, kind, 1, 998, lots, 0, 3)])


@pytest.mark.bounds
def test_a_book_grows_up_to_its_limit_and_not_beyond():
    walk = snapshot()
    for i, tick in enumerate(range(1000, 3000, 7)):  # the market walks far away
        t = T0 + 1000 + 200 * i
        walk += [(t, t + 10, 1, -1, tick, 5, 0, 3), (t, t + 10, 1, 1, tick - 1, 5, 0, 3), (t, t + 10, 1, -1, tick, 0, 0, 3), (t, t + 10, 1, -1, tick + 8, 5, 0, 3)]
    a, b = plain(walk, max_ticks=1 << 14), plain(walk)
    same_tables(a, b)
    assert a.path["bid"].iloc[-1] > 29.0
    with pytest.raises(DataError, match="quotes tick .* through the market and outside the book"):
        plain(walk, max_ticks=600)
    stub = snapshot() + [(T0 + 500, T0 + 510, 1, 1, 1, 5, 0, 3), (T0 + 500, T0 + 510, 1, -1, 2_000_000, 5, 0, 3), (T0 + 5000, T0 + 5010, 1, 1, 998, 9, 0, 3)]
    res = plain(stub, max_ticks=4096)  # far behind the market: left out and counted
    assert res.info["far_rows"] == 1 and res.path["ask"].iloc[-1] == pytest.approx(10.01)


@strategy
def absurd(state, params):
    "One order that no book reaches."
    return np.int64(5), np.int64(9_000_000_000), params.qty, params.qty


def test_orders_that_no_book_reaches_are_rejected_and_counted():
    res = plain(snapshot() + [(T0 + 3000, T0 + 3010, 1, 1, 998, 9, 0, 3)], strategy=absurd, max_ticks=4096)
    assert res.info["rejected_orders"] > 5 and (res.orders["action"] == "reject").sum() == res.info["rejected_orders"] and set(res.orders["side"][res.orders["action"] == "reject"]) == {-1}


def test_too_many_orders_for_the_slots_are_rejected_and_counted():
    rows = feed_l2(np.random.default_rng(7), 900)
    few, many = (plain(rows, strategy=restless, slots=n, order_latency=ConstantLatency(90)) for n in (1, 15))
    assert few.info["no_slot"] > 0 == many.info["no_slot"]
    assert (few.orders["action"] == "reject").sum() == few.info["rejected_orders"] == few.info["no_slot"]
    assert set(few.fills["order_id"]) <= set(few.orders["order_id"][few.orders["action"] == "new"])


def test_requests_that_the_exchange_refused_come_back():
    t = np.arange(T0 - 1000, T0 + 10_000, 50, dtype=np.int64)
    table = np.column_stack([t, t + 20, t + 45])
    table[60:80, 1] = 0
    res = plain(feed_l2(np.random.default_rng(3), 600), order_latency=EmpiricalLatency(table), strategy=restless)
    assert res.info["rejected_orders"] > 3 and res.info["cancels"] > 3
    cancels = res.orders[res.orders["action"] == "cancel"]
    assert (cancels.groupby("order_id").size() > 1).any()  # a lost cancel was sent again
    assert res.fills["order_id"].is_unique and abs(res.path["position"].iloc[-1] - res.path["inventory"].iloc[-1]) <= 6.0


@pytest.mark.parametrize("changes, what", [
    (dict(queue="fifo"), "needs events order by order"), (dict(queue="wishful"), "queue"), (dict(interval_ms=0.0), "interval_ms"), (dict(slots=99), "slots"),
    (dict(strategy="greedy"), "strategy"), (dict(strategy=lambda s, p: None), "strategy"), (dict(order_type="stop"), "order_type"), (dict(order_latency=None), "order_latency"),
    (dict(feed_latency=EmpiricalLatency(np.array([[1, 2, 3], [4, 5, 6]]))), "feed_latency"), (dict(signals=True, window_s=1e-9), "window_s"), (dict(params=None), "params")])
def test_settings_that_make_no_sense_are_refused(changes, what):
    with pytest.raises(ParameterError, match=what):
        plain(snapshot(), **changes)


@pytest.mark.parametrize("changes, what", [(dict(qty=9.0), r"qty = 9.0 \(units\) is 0.9 lots of 10 units.*give 10 units"),
                                           (dict(qty=10.0, max_inventory=4.0), r"max_inventory = 4.0 \(units\) is 0.4 lots of 10 units")])
def test_a_size_or_a_limit_below_a_lot_is_refused(changes, what, tmp_path):
    "It would never be quoted; at once with events in memory, with the first chunk when they come one by one."
    events, params = events_of(feed_l2(np.random.default_rng(3), 60), lot_size=10.0), QuoteParams(**changes)
    with pytest.raises(ParameterError, match=what):
        Replay(events, params=params)
    with pytest.raises(ParameterError, match=what):
        Replay(iter([events]), params=params, interval_ms=97e-6).run(rng=np.random.default_rng(1))
    Replay(events, params=QuoteParams(qty=10.0, max_inventory=10.0), interval_ms=97e-6).run(rng=np.random.default_rng(1))  # a lot is enough


def test_the_report_card_says_that_nobody_reacts():
    from makerlab.scoring.report import _card
    card = _card({"info": plain(feed_l2(np.random.default_rng(31), 900), strategy=restless).info})
    assert card.loc["market impact", "value"].startswith("none: nobody reacts")


@pytest.mark.parametrize("pairs", [np.zeros((3, 2)), np.array([[5, 4], [6, 7]]), np.array([[5, 6], [4, 7]]), np.array([[5, 6, 7]]), np.array([[1, 0, 3], [4, 5, 6]])])
def test_records_of_latency_that_make_no_sense_are_refused(pairs):
    with pytest.raises(ParameterError, match="pairs"):
        EmpiricalLatency(pairs)


@pytest.mark.parametrize("values", [dict(ns=-1), dict(ns=1.5), dict(back_ns=-2), dict(jitter_ns=-1.0)])
def test_delays_that_make_no_sense_are_refused(values):
    with pytest.raises(ParameterError):
        ConstantLatency(**values)


def test_nothing_to_replay():
    with pytest.raises(DataError, match="there are none"):
        plain(iter([]))
    a, b = events_of(snapshot()), events_of(snapshot(), tick_size=0.02)
    with pytest.raises(DataError, match="one stream has one grid"):
        plain(iter([a, b]))


def test_accounts_close():
    rows = feed_l2(np.random.default_rng(31), 3000)
    for kind in ("post-only", "limit"):
        res = plain(rows, strategy=restless, order_type=kind, fee_bps=1.0, record_every=3)
        assert len(res.fills) > 50 and abs(res.attribution.residual) < 1e-9
        assert res.path["inventory"].iloc[-1] == pytest.approx((res.fills["side"] * res.fills["qty"]).sum())
        assert res.path["fees"].iloc[-1] == pytest.approx(res.fills["fee"].sum()) and res.path["fees"].iloc[-1] > 0
        assert res.fills["maker"].all() == (kind == "post-only")
        steps = res.path["time"].to_numpy()[res.fills["step"]]
        assert (res.fills["time"].to_numpy() > steps).all()
    assert "no impact" in res.info["fills"] and res.info["market_impact"].startswith("none")


FEEDER = '''
import json, resource, sys, time
import numpy as np
from makerlab.backtest.replay import ConstantLatency, Replay
from makerlab.data.events import Events, write_events
from makerlab.models.quoting import QuoteParams

def chunks(rows, size):
    "A market whose price swings slowly: levels that change, and trades that eat into the best one."
    rng, t = np.random.default_rng(5), 1_700_000_000_000_000_000
    for start in range(0, rows, size):
        n = min(size, rows - start)
        at = start + np.arange(n)
        mid = 1000 + np.round(20 * np.sin(at / 50_000)).astype(np.int64)
        side = rng.integers(0, 2, n) * 2 - 1
        kind = np.where(rng.random(n) < 0.1, 2, 1)
        away = np.minimum(rng.geometric(0.4, n), 12)
        tick = np.where(kind == 2, mid + side, mid - side * away)
        lots = np.where(kind == 2, rng.integers(1, 9, n), rng.integers(0, 40, n))
        exch = t + np.cumsum(rng.integers(1, 2_000_000, n))
        t = int(exch[-1])
        yield Events(kind=kind.astype(np.uint8), side=side.astype(np.int8), exch_ns=exch, local_ns=exch + 500_000, tick=tick.astype(np.int32), lots=lots, tick_size=0.01, lot_size=1.0)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

job, rows, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if job == "write":
    write_events(chunks(rows, 1_000_000), path)
else:
    before, tic = peak(), time.perf_counter()
    res = Replay(path, params=QuoteParams(qty=3.0, max_inventory=30.0, x0=1.0, x1=0.05), interval_ms=rows / float(sys.argv[4]), chunk_rows=int(sys.argv[5])).run(rng=np.random.default_rng(1))
    print(json.dumps({"before_mb": before, "peak_mb": peak(), "marks": res.info["marks"], "rows": res.info["rows"], "fills": len(res.fills), "seconds": time.perf_counter() - tic}))
'''


def fed(job, rows, path, marks=2000, chunk=250_000):
    "A job of the feeder in a process of its own, so that its peak memory is its own."
    import json

    done = subprocess.run([sys.executable, "-c", FEEDER, job, str(rows), str(path), str(marks), str(chunk)], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]) if job == "run" else None


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    peaks = {}
    for rows in (1_000_000, 4_000_000):
        fed("write", rows, tmp_path / "feed.parquet")
        told = fed("run", rows, tmp_path / "feed.parquet")
        assert told["rows"] == rows and told["fills"] > 500
        peaks[rows] = told["peak_mb"]
    assert peaks[4_000_000] - peaks[1_000_000] < 25  # the columns of three million rows are 90 MB


@pytest.mark.slow
def test_two_hundred_million_rows_in_bounded_memory(tmp_path, record_property):
    fed("write", 200_000_000, tmp_path / "feed.parquet")
    told = fed("run", 200_000_000, tmp_path / "feed.parquet", marks=200_000, chunk=1_000_000)
    record_property("two hundred million rows", told)
    print(told)
    assert told["rows"] == 200_000_000 and told["peak_mb"] < 1500
