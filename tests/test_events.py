"Events: round trips, every rule of the check refused, mended and kept, files cut short, streams, and hftbacktest's own doubling."
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, peers_python
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, MakerlabError, ParameterError, to_ns
from makerlab.data import events as ev
from makerlab.data.events import (ADD, CANCEL, CLEAR, COLUMNS, DEPTH, FILL, HFTBACKTEST_DTYPE, MODIFY, RULES, SNAPSHOT, TRADE, Events, check_events,
                                  concat_events, depth_of, digest_events, events_from_quotes, make_events, merge_clocks, read_events, read_hftbacktest,
                                  seen_of, stream_events, take, to_hftbacktest, touch, write_events)

GOOD = dict(kind=[1, 1, 1, 2, 1, 1], side=[1, -1, 1, 1, -1, 1], exch_ns=[10, 10, 20, 30, 30, 40], local_ns=[15, 15, 26, 36, 36, 44],
            tick=[100, 102, 99, 102, 102, 101], lots=[5, 5, 7, 2, 3, 1], tick_size=0.5, lot_size=2.0)
ORDERS = dict(kind=[10, 10, 10, 2, 13, 12, 11], side=[1, -1, 1, -1, 1, 1, -1], exch_ns=[1, 2, 3, 4, 4, 5, 6], tick=[100, 102, 100, 100, 100, 99, 102],
              lots=[5, 5, 7, 2, 2, 6, 5], order_id=[1, 2, 3, 0, 1, 3, 2], tick_size=0.5, lot_size=2.0)


def same(a: Events, b: Events) -> bool:
    return a.digest() == b.digest() and len(a) == len(b) and (a.tick_size, a.lot_size, a.level) == (b.tick_size, b.lot_size, b.level)


def feed(n: int, seed: int, *, disorder: int = 0) -> Events:
    "A random L2 feed whose book is never crossed; with disorder, a latency that lets later rows overtake."
    rng = np.random.default_rng(seed)
    kind = np.where(rng.random(n) < 0.2, TRADE, DEPTH)
    side = rng.choice([-1, 1], n)
    kind[:2], side[:2] = DEPTH, (1, -1)
    tick = np.where(side > 0, 100 - rng.integers(0, 8, n), 101 + rng.integers(0, 8, n))
    lots = np.where(kind == TRADE, rng.integers(1, 9, n), rng.integers(0, 9, n))
    lots[:2] = 5
    exch = np.cumsum(rng.integers(0, 4, n))
    delay = 100 + (rng.integers(0, disorder, n) if disorder else 0)
    return make_events(kind=kind, side=side, exch_ns=exch, local_ns=exch + delay, tick=tick, lots=lots, tick_size=0.01, lot_size=0.001,
                       keep=("early-trades", "duplicates"), repair=("order",) if disorder else (), symbol="X")


def flow(n: int, seed: int) -> Events:
    "A random, coherent L3 stream."
    rng, alive, rows, made = np.random.default_rng(seed), {}, [], 0
    for i in range(n):
        u = rng.random()
        o = rng.choice(list(alive)) if alive else 0
        if u < 0.5 or not alive:
            made += 1
            s = int(rng.choice([-1, 1]))
            t, q = (100 - int(rng.integers(0, 5)) if s > 0 else 101 + int(rng.integers(0, 5))), int(rng.integers(1, 9))
            alive[made] = [s, t, q]
            rows.append((ADD, s, i, t, q, made))
        elif u < 0.65:
            s, t, _ = alive[o]
            t, q = (100 - int(rng.integers(0, 5)) if s > 0 else 101 + int(rng.integers(0, 5))), int(rng.integers(1, 9))
            alive[o] = [s, t, q]
            rows.append((MODIFY, s, i, t, q, o))
        else:
            s, t, rest = alive[o]
            q = int(rng.integers(1, rest + 1))
            if u > 0.85:
                rows.append((TRADE, -s, i, t, q, 0))
            rows.append((FILL if u > 0.85 else CANCEL, s, i, t, q, o))
            alive[o][2] -= q
            if not alive[o][2]:
                del alive[o]
    c = [np.array(x) for x in zip(*rows)]
    return make_events(kind=c[0], side=c[1], exch_ns=c[2], tick=c[3], lots=c[4], order_id=c[5], tick_size=0.01, lot_size=1.0, keep=("early-trades",))


# --- the columns

@pytest.mark.nojit
@pytest.mark.bounds
def test_columns_and_views():
    e = make_events(**GOOD)
    assert (e.kind.dtype, e.side.dtype, e.tick.dtype, e.lots.dtype, e.exch_ns.dtype) == (np.uint8, np.int8, np.int32, np.int64, np.int64)
    assert e.level == "l2" and not len(e.order_id) and not len(e.seen) and check_events(e) == []
    q = e.quotes()
    assert q[["bid", "ask", "bid_size", "ask_size"]].to_numpy().tolist() == [[50, 51, 10, 10], [50, 51, 10, 6], [50.5, 51, 2, 6]]
    assert to_ns(q["time"]).tolist() == [10, 30, 40] and to_ns(e.quotes("local")["time"]).tolist() == [15, 36, 44]
    assert e.trades()[["price", "size", "side"]].to_numpy().tolist() == [[51, 4, 1]]
    assert len(e.between(20, 40)) == 3 and len(e.frame()) == 6 and "rows" in e.summary().index
    with pytest.raises(ParameterError, match="clock"):
        e.quotes("wall")


def slow_touch(e: Events) -> np.ndarray:
    "The twin of touch on two dicts."
    book, out = {1: {}, -1: {}}, []
    for k, s, t, q in zip(e.kind, e.side, e.tick, e.lots):
        if k in (DEPTH, SNAPSHOT):
            book[s][t] = q
            if q == 0:
                del book[s][t]
        elif k == CLEAR:
            for side in ((1, -1) if s == 0 else (s,)):
                book[side] = {p: v for p, v in book[side].items() if s and (p < t if side > 0 else p > t)}
        b, a = max(book[1], default=None), min(book[-1], default=None)
        out.append((b if b is not None else -1, a if a is not None else -1, book[1].get(b, 0), book[-1].get(a, 0)))
    return np.array(out)


@pytest.mark.bounds
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32))
def test_touch_equals_two_dicts(n, seed):
    rng = np.random.default_rng(seed)
    e = Events(kind=rng.choice([1, 1, 1, 2, 3, 4], n).astype(np.uint8), side=rng.choice([-1, 1], n).astype(np.int8), exch_ns=np.arange(n), local_ns=np.arange(n),
               tick=rng.integers(-5, 6, n).astype(np.int32) * 10**8, lots=rng.integers(0, 3, n))  # a range too wide for a plain array
    e = replace(e, side=np.where((e.kind == CLEAR) & (rng.random(n) < 0.3), 0, e.side).astype(np.int8))
    mine, twin = touch(e), slow_touch(e)
    assert (mine[["bid_lots", "ask_lots"]].to_numpy() == twin[:, 2:]).all()
    for side in (0, 1):
        there = twin[:, 2 + side] > 0
        assert (mine.to_numpy()[there, side] == twin[there, side]).all()


@pytest.mark.bounds
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 80), st.integers(0, 2**32))
def test_depth_of_equals_a_sum_over_orders(n, seed):
    e = flow(n, seed)
    assert check_events(replace(e, notes=[])) == [] or all("early-trades" in x for x in check_events(e))
    d = depth_of(e)
    assert d.level == "l2" and (d.kind == TRADE).sum() == (e.kind == TRADE).sum() and not any("depth_of" in x for x in d.notes)
    orders: dict = {}
    for i in range(len(e)):
        k, o = e.kind[i], int(e.order_id[i])
        if k in (ADD, MODIFY):
            orders[o] = [e.side[i], e.tick[i], e.lots[i]]
        elif k in (CANCEL, FILL):
            orders[o][2] -= e.lots[i]
        if i + 1 < len(e) and e.exch_ns[i + 1] == e.exch_ns[i]:
            continue
        want: dict = {}
        for s, t, q in orders.values():
            want[s, t] = want.get((s, t), 0) + q
        upto, have = d.exch_ns <= e.exch_ns[i], {}
        for k2, s, t, q in zip(d.kind[upto], d.side[upto], d.tick[upto], d.lots[upto]):
            if k2 == DEPTH:
                have[s, t] = q
        assert {k: v for k, v in have.items() if v} == {k: v for k, v in want.items() if v}


# --- the rules: refused by row, mended, kept

def bad(base: dict, **change) -> dict:
    out = {k: (list(v) if isinstance(v, list) else v) for k, v in base.items()}
    for name, (row, value) in change.items():
        if name not in out:
            out[name] = [0] * len(out["kind"])
        out[name][row] = value
    return out


CASES = [
    ("kinds", bad(GOOD, kind=(2, 77)), "row 2: 77", 5),
    ("kinds", bad(GOOD, kind=(2, 10)), "row 2", None),
    ("sides", bad(GOOD, side=(4, 0)), "row 4: 0", 5),
    ("sides", bad(GOOD, side=(3, 5)), "row 3: 5", 5),
    ("window", bad(GOOD, tick=(2, 0)), "row 2: 0", 5),
    ("window", bad(GOOD, tick=(2, 2**40)), "row 2: 1099511627776", 5),
    ("negative", bad(GOOD, lots=(4, -3)), "row 4: -3", 5),
    ("zeros", bad(GOOD, lots=(3, 0)), "row 3: 0", 5),
    ("duplicates", bad(GOOD, exch_ns=(5, 30), local_ns=(5, 36), tick=(5, 102), side=(5, -1), lots=(5, 3)), "row 5", 5),
    ("order", bad(GOOD, exch_ns=(2, 5)), "row 2: -5 ns", None),
    ("clock", bad(GOOD, local_ns=(0, 3)), "row 0: -7 ns", None),
    ("early-trades", bad(GOOD, kind=(1, 2)), "row 1", None),
    ("crossed", bad(GOOD, tick=(5, 102)), "row 5: bid 102 at or above ask 102 ticks", 7),
    ("orphans", bad(ORDERS, order_id=(4, 9)), "row 4: id 9: the order does not rest", 6),
    ("orphans", bad(ORDERS, order_id=(2, 1)), "row 2: id 1: the order rests already", None),
    ("orphans", bad(ORDERS, lots=(6, 9)), "row 6: id 2: more than rests", 6),
]


@pytest.mark.nojit
@pytest.mark.parametrize("rule, columns, says, left", CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_every_rule_refuses_mends_and_keeps(rule, columns, says, left):
    if rule == "kinds" and left is None:
        columns = columns | dict(level="l2")
    with pytest.raises(DataError) as e:
        make_events(**columns, source="the file")
    assert "the file" in str(e.value) and says in str(e.value) and f"repair=({rule!r},)" in str(e.value) and RULES[rule] in str(e.value)
    mended = make_events(**columns, repair=tuple(RULES))
    assert mended.repairs[rule] >= 1 and check_events(mended) == []
    if left is not None:
        assert len(mended) == left
    if rule not in ("kinds", "sides", "window", "negative"):
        kept = make_events(**columns, keep=tuple(RULES))
        assert not kept.repairs and any(n.startswith(rule) for n in kept.notes) and len(kept) == len(columns["kind"])


@pytest.mark.nojit
def test_early_trades_of_single_orders_leave_no_fill_without_its_trade():
    early = dict(kind=[10, 2, 13, 10, 2, 13], side=[1, -1, 1, -1, -1, 1], exch_ns=[1, 2, 2, 3, 4, 4], tick=[100, 100, 100, 102, 100, 100], lots=[5, 2, 2, 4, 1, 1], order_id=[1, 0, 1, 2, 0, 1],
                 tick_size=0.5, lot_size=2.0)
    with pytest.raises(DataError, match="row 1.*early-trades"):
        make_events(**early)
    mended = make_events(**early, repair="early-trades")
    assert mended.kind.tolist() == [ADD, CANCEL, ADD, TRADE, FILL] and mended.repairs == {"early-trades": 1} and check_events(mended) == []
    assert (mended.kind[np.flatnonzero(mended.kind == FILL) - 1] == TRADE).all()
    assert touch(depth_of(mended))["bid_lots"].iloc[-1] == 2  # 5, less 2 in the dark, less 1


BROKEN = {"unordered exchange stamps": ("exch_ts", 200, -5, "row 200"), "unordered local stamps": ("local_ts", 200, -5, "row 200"), "negative": ("qty", 200, -0.003, "row 200: -3"),
          "off the grid": ("px", 200, 1.0049, "row 200: 1.0049"), "no price": ("px", 200, np.nan, "row 200: nan"), "window": ("px", 200, 1e12, "row 200"), "kind": ("ev", 200, 0xF0000063, "row 200: 99")}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_rows_of_hftbacktest_are_named(tmp_path, damage):
    name, row, value, says = BROKEN[damage]
    array = to_hftbacktest(feed(400, 3))
    read_hftbacktest(array, tick_size=0.01, lot_size=0.001)
    array[name][row] = value
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=rf"a\.npy.*{says}"):
        read_hftbacktest(tmp_path / "a.npy", tick_size=0.01, lot_size=0.001)


def test_crossed_early_and_repeated_rows_of_hftbacktest_are_kept_and_counted():
    array = to_hftbacktest(make_events(**GOOD))
    for change, rule, rows in (({"px": (5, 51.0)}, "crossed", 1), ({"ev": (1, 0xE0000002)}, "early-trades", 2)):  # without row 1 the trade of row 3 is early too
        bent = array.copy()
        for name, (row, value) in change.items():
            bent[name][row] = value
        assert any(n.startswith(f"{rule}: {rows} rows kept") for n in read_hftbacktest(bent, tick_size=0.5, lot_size=2.0).notes), rule
        assert read_hftbacktest(bent, tick_size=0.5, lot_size=2.0, repair=(rule,)).repairs == {rule: rows}
    twice = np.concatenate([array, array[-1:]])
    assert any(n.startswith("duplicates: 1 rows kept") for n in read_hftbacktest(twice, tick_size=0.5, lot_size=2.0).notes)


def test_a_tick_that_one_row_forces_is_said():
    price = np.where(np.arange(4000) % 2, 10.02, 9.98) + np.where(np.arange(4000) % 8 > 5, 0.01, 0.0)
    columns = dict(kind=np.ones(4000, int), side=np.where(np.arange(4000) % 2, -1, 1), exch_ns=np.arange(4000), qty=np.full(4000, 1.0) + np.arange(4000) % 3, keep=("duplicates",), lot_size=1.0)
    whole = make_events(**columns | dict(price=price, keep=("duplicates", "crossed")))
    assert whole.tick_size == pytest.approx(0.01) and not any("but for" in n for n in whole.notes)
    price[1000] = 9.981
    bent = make_events(**columns | dict(price=price, keep=("duplicates", "crossed")))
    assert bent.tick_size == pytest.approx(0.001) and any("but for 1 of them (first: row 1000, 9.981) it would be 0.01" in n for n in bent.notes)


def test_prices_and_quantities_off_the_grid():
    columns = dict(kind=[1, 1, 1], side=[1, -1, 1], exch_ns=[1, 2, 3], price=[10.0, 10.02, 9.995], qty=[1.0, 2.0, 3.0], tick_size=0.01, lot_size=1.0)
    with pytest.raises(DataError, match=r"row 2: 9\.995.*grid"):
        make_events(**columns)
    assert make_events(**columns, repair="grid").repairs == {"grid": 1}
    with pytest.raises(DataError, match=r"a qty that is no multiple of lot_size = 2.*row 0: 1\.0"):
        make_events(**columns | dict(lot_size=2.0, tick_size=0.005))
    e = make_events(**columns | dict(tick_size=None, lot_size=None))
    assert e.tick_size == 0.005 and e.lot_size == 1.0 and sum("inferred" in n for n in e.notes) == 2
    with pytest.raises(DataError, match="tick_size is not given and cannot be inferred"):
        make_events(**columns | dict(price=[10.0] * 3, tick_size=None))
    with pytest.raises(DataError, match="row 1"):
        make_events(**columns | dict(price=[10.0, np.nan, 9.99]))


@pytest.mark.nojit
def test_an_absurd_price_is_outside_the_window():
    columns = bad(GOOD, tick=(2, 9))
    assert len(make_events(**columns)) == 6
    with pytest.raises(DataError, match=r"row 2: 9\b.*window"):
        make_events(**columns, price_window=(40, 60))
    assert make_events(**columns, price_window=(40, 60), repair="window").repairs == {"window": 1}
    assert make_events(**bad(GOOD, tick=(2, -9)), price_window=(-10, 60)).tick.min() == -9  # a spread contract may trade below zero


@pytest.mark.nojit
def test_sequence_numbers():
    s = dict(GOOD, sequence=[1, 1, 2, 3, 3, 4])
    assert len(make_events(**s)) == 6 and make_events(**s).digest() == make_events(**GOOD).digest()
    gap = dict(GOOD, sequence=[1, 1, 2, 5, 5, 6])
    with pytest.raises(DataError, match=r"row 3: 2 missing between 2 and 5"):
        make_events(**gap)
    mended = make_events(**gap, repair="gaps", keep="early-trades")
    assert mended.repairs == {"gaps": 1} and mended.kind.tolist() == [1, 1, 1, 3, 2, 1, 1] and mended.side[3] == 0
    again = {k: ([*v[:3], *v[1:3], *v[3:]] if isinstance(v, list) else v) for k, v in s.items()}
    with pytest.raises(DataError, match=r"row 3: 1"):
        make_events(**again)
    assert same(make_events(**again, repair="duplicates"), make_events(**GOOD))
    swapped = {k: ([*v[:2], *v[3:5], v[2], v[5]] if isinstance(v, list) else v) for k, v in s.items()}
    with pytest.raises(DataError, match="sequence number below"):
        make_events(**swapped)
    assert same(make_events(**swapped, repair="order"), make_events(**GOOD))


def test_clock_offset_is_estimated_removed_and_said():
    e = feed(500, 1)
    columns = {c: getattr(e, c) for c in COLUMNS[:6]} | dict(tick_size=0.01, lot_size=0.001, keep=("early-trades", "duplicates"))
    shifted = columns | dict(local_ns=columns["local_ns"] - 1_270_000_000)
    with pytest.raises(DataError, match="-1269999900 ns"):
        make_events(**shifted)
    mended = make_events(**shifted, repair="clock")
    assert mended.clock_offset_ns == 1_269_999_900 and (mended.local_ns - mended.exch_ns).min() == 0 and "1.270 s" in " ".join(mended.notes)
    wild = columns["local_ns"].copy()
    wild[250] -= 3_600_000_000_000
    with pytest.raises(DataError, match="row 250 .* wrong stamp"):
        make_events(**columns | dict(local_ns=wild), repair="clock")


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 60), st.integers(0, 2**32))
def test_a_mended_book_is_never_crossed(n, seed):
    rng = np.random.default_rng(seed)
    columns = dict(kind=rng.choice([1, 1, 1, 3], n), side=rng.choice([-1, 1], n), exch_ns=np.sort(rng.integers(0, n, n)), tick=rng.integers(1, 9, n), lots=rng.integers(0, 4, n),
                   tick_size=1.0, lot_size=1.0)
    e = make_events(**columns, repair=("crossed", "duplicates"))
    assert check_events(e) == []
    newest = make_events(**columns, keep=("crossed", "duplicates"))
    last = {(s, t): q for k, s, t, q in zip(newest.kind, newest.side, newest.tick, newest.lots) if k == DEPTH}
    for i in np.flatnonzero(e.kind == DEPTH)[-1:]:
        assert e.lots[i] == 0 or last[e.side[i], e.tick[i]] == e.lots[i]


@pytest.mark.nojit
@pytest.mark.parametrize("newer, left", [(1, [[103, 5], [102, 1]]), (-1, [[99, 3], [98, 2]])])
def test_the_newer_side_of_a_crossed_book_is_believed(newer, left):
    columns = dict(kind=[1] * 5, side=[1, 1, -1, -1, newer], exch_ns=[1, 2, 3, 4, 5], tick=[98, 100, 101, 103, 102 if newer > 0 else 99], lots=[2, 4, 3, 5, 1 if newer > 0 else 3],
                   tick_size=1.0, lot_size=1.0)
    e = make_events(**columns, repair=("crossed",))
    best = touch(e).iloc[-1]
    assert [[best["ask_tick"], best["ask_lots"]], [best["bid_tick"], best["bid_lots"]]] == left
    assert e.repairs == {"crossed": 1} and (e.exch_ns[5:] == 5).all()


@pytest.mark.nojit
def test_a_level_set_twice_in_one_stamp_is_no_repeat():
    columns = bad(GOOD, exch_ns=(5, 30), local_ns=(5, 36), tick=(5, 102), side=(5, -1), lots=(5, 4))  # 3, then 4
    assert len(make_events(**columns, repair=("duplicates",))) == 6 and make_events(**columns).lots[-1] == 4


@pytest.mark.nojit
def test_wrong_arguments_are_named():
    for change, says in ((dict(tick=None), "tick"), (dict(price=[1.0] * 6), "both"), (dict(tick_size=None), "tick_size"), (dict(tick_size=-1.0), "tick_size"),
                         (dict(level="l4"), "level"), (dict(repair="magic"), "magic"), (dict(lot_size=float("nan")), "lot_size")):
        with pytest.raises(ParameterError, match=says):
            make_events(**GOOD | change)
    for change, says in ((dict(side=[1, 2]), "side has the shape"), (dict(exch_ns=[1.5] * 6), "exch_ns"), (dict(kind=["a"] * 6), "kind"), (dict(level="l3"), "order_id")):
        with pytest.raises(DataError, match=says):
            make_events(**GOOD | change)
    with pytest.raises(ParameterError, match="crossed"):
        make_events(**bad(ORDERS, tick=(1, 100)), repair=("crossed",))


def test_no_look_ahead_in_quotes():
    e = feed(400, 3)
    t = int(e.exch_ns[200])
    scrambled = replace(e, tick=np.where(e.exch_ns > t, np.roll(e.tick, 7), e.tick).astype(np.int32), lots=np.where(e.exch_ns > t, 1, e.lots))
    a, b = e.quotes(), scrambled.quotes()
    assert a[to_ns(a["time"]) <= t].equals(b[to_ns(b["time"]) <= t])


# --- hftbacktest

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 80), st.integers(0, 2**32), st.sampled_from([0, 30]))
def test_round_trip_through_hftbacktest_is_exact(n, seed, disorder):
    for e in (feed(n, seed, disorder=disorder), flow(n, seed)):
        a = to_hftbacktest(e)
        assert a.dtype.itemsize == 64 and a.dtype.names == HFTBACKTEST_DTYPE.names
        back = read_hftbacktest(a, tick_size=e.tick_size, lot_size=e.lot_size)
        assert same(back, e) and not back.repairs and to_hftbacktest(back).tobytes() == a.tobytes()


@pytest.mark.nojit
def test_clear_of_a_whole_side_and_of_part_of_it():
    a = np.zeros(5, HFTBACKTEST_DTYPE)
    a["ev"] = np.array([1, 1, 3, 1, 3], np.uint64) | np.uint64(3 << 30) | np.array([1 << 29, 1 << 28, 1 << 29, 1 << 29, 0], np.uint64)
    a["exch_ts"] = a["local_ts"] = np.arange(5)
    a["px"], a["qty"] = [10.0, 10.5, np.nan, 9.5, np.nan], [1, 1, 0, 2, 0]
    e = read_hftbacktest(a, tick_size=0.5, lot_size=1.0)
    assert touch(e)[["bid_lots", "ask_lots"]].to_numpy().tolist() == [[1, 0], [1, 1], [0, 1], [2, 1], [0, 0]]
    assert to_hftbacktest(e).tobytes() == a.tobytes()


@pytest.mark.parametrize("name", ["feed.npy", "feed.npz"])
def test_files_of_hftbacktest_and_files_cut_short(tmp_path, name):
    e = feed(300, 5)
    path = tmp_path / name
    np.save(path, to_hftbacktest(e)) if name.endswith("y") else np.savez_compressed(path, data=to_hftbacktest(e))
    assert same(read_hftbacktest(path, tick_size=0.01, lot_size=0.001), e)
    whole = path.read_bytes()
    for cut in (0, 3, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cut short"):
            read_hftbacktest(path)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        read_hftbacktest(path)
    np.savez(tmp_path / "other.npz", prices=np.arange(3))
    with pytest.raises(DataError, match="no array 'data'"):
        read_hftbacktest(tmp_path / "other.npz")
    with pytest.raises(DataError, match="not rows of ev"):
        read_hftbacktest(np.arange(5))
    odd = to_hftbacktest(e)
    odd["ev"][7] = (int(odd["ev"][7]) & ~0xFF) | 5
    with pytest.raises(DataError, match="row 7: 5"):
        read_hftbacktest(odd, tick_size=0.01, lot_size=0.001)
    odd = to_hftbacktest(e)
    odd["ev"][7] = int(odd["ev"][7]) & 0xFFFFFFF
    with pytest.raises(DataError, match="neither clock"):
        read_hftbacktest(odd, tick_size=0.01, lot_size=0.001)


PEER = """
import sys, numpy as np
from hftbacktest.data import correct_event_order
from hftbacktest.types import event_dtype
a = np.load(sys.argv[1]).astype(event_dtype)
out = correct_event_order(a, np.argsort(a["exch_ts"], kind="mergesort"), np.argsort(a["local_ts"], kind="mergesort"))
np.save(sys.argv[2], out)
"""


@pytest.mark.peer
def test_doubling_is_hftbacktest_s_own(tmp_path):
    python = peers_python()
    parts = []
    rng = np.random.default_rng(11)
    for n in (60, 400, 3000):
        e = feed(n, n)
        parts.append(replace(e, local_ns=e.exch_ns + rng.integers(1, 40, n)))
    for i, e in enumerate(parts):
        a = to_hftbacktest(e)
        a["ev"] &= np.uint64(0x3FFFFFFF)
        np.save(tmp_path / "in.npy", a)
        run = subprocess.run([python, "-c", PEER, str(tmp_path / "in.npy"), str(tmp_path / "out.npy")], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-500:]
        theirs, mine = np.load(tmp_path / "out.npy"), to_hftbacktest(merge_clocks(e))
        assert len(theirs) > len(e) and mine.tobytes() == theirs.astype(HFTBACKTEST_DTYPE).tobytes(), i


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**32))
def test_each_clock_sees_every_event_once_and_in_order(n, seed):
    rng = np.random.default_rng(seed)
    exch = rng.integers(0, n, n)
    raw = Events(kind=np.ones(n, np.uint8), side=np.ones(n, np.int8), exch_ns=exch, local_ns=exch + rng.integers(0, 9, n), tick=np.arange(n, dtype=np.int32), lots=np.arange(n))
    e = merge_clocks(raw)
    for bit, clock in ((1, "exch_ns"), (2, "local_ns")):
        rows = take(e, (seen_of(e) & bit) > 0)
        assert (rows.tick == np.argsort(getattr(raw, clock), kind="stable")).all()


# --- Parquet

@pytest.mark.parametrize("rows", [1, 7, 100, 101, 10**6])
def test_chunks_never_change_a_result(tmp_path, rows):
    e = feed(301, 9, disorder=20)
    path = write_events((take(e, slice(i, i + 37)) for i in range(0, len(e), 37)), tmp_path / "e.parquet", row_group=50)
    chunks = list(stream_events(path, rows=rows))
    assert [len(c) for c in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert digest_events(chunks) == e.digest() and same(read_events(path), e) and same(concat_events(chunks), e)
    assert read_events(path).symbol == "X"


def test_several_files_are_one_stream(tmp_path):
    e = feed(200, 2)
    a, b = write_events(take(e, slice(0, 90)), tmp_path / "a.parquet"), write_events(take(e, slice(90, None)), tmp_path / "b.parquet")
    assert same(read_events([a, b]), e) and [len(c) for c in stream_events([a, b], rows=80)] == [80, 80, 40]
    with pytest.raises(DataError, match="go back at row 110"):
        read_events([b, a])
    other = write_events(replace(e, tick_size=0.5), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="one stream has one grid"):
        read_events([a, other])
    with pytest.raises(DataError, match="go back at row 50"):
        write_events([take(e, slice(50, 100)), take(e, slice(0, 50))], tmp_path / "d.parquet")
    assert not (tmp_path / "d.parquet").exists() and not list(tmp_path.glob(".d*"))
    with pytest.raises(DataError, match="no events"):
        write_events([], tmp_path / "d.parquet")


def test_parquet_of_orders_keeps_everything(tmp_path):
    e = replace(flow(100, 3), repairs={"zeros": 2}, notes=["a note"], clock_offset_ns=7, source="s")
    back = read_events(write_events(e, tmp_path / "o.parquet"))
    assert same(back, e) and back.repairs == e.repairs and back.notes == e.notes and back.clock_offset_ns == 7 and back.source == "s"


def test_parquet_cut_short_or_of_another_kind(tmp_path):
    path = write_events(feed(2000, 1), tmp_path / "e.parquet", row_group=100)
    whole = path.read_bytes()
    for cut in (0, 3, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"e\.parquet"):
            list(stream_events(path))
    broken = bytearray(whole)
    broken[len(whole) // 3: len(whole) // 3 + 300] = bytes(300)
    path.write_bytes(bytes(broken))
    try:
        read_events(path)
    except MakerlabError as e:
        assert "e.parquet" in str(e)
    table = pa.table({"kind": np.ones(2, np.uint8)})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"missing column\(s\) side"):
        read_events(tmp_path / "x.parquet")
    e = feed(20, 1)
    pq.write_table(pa.table({c: getattr(e, c) for c in COLUMNS[:6]}), tmp_path / "y.parquet")
    with pytest.raises(ParameterError, match="tick_size"):
        read_events(tmp_path / "y.parquet")
    assert same(read_events(tmp_path / "y.parquet", tick_size=0.01, lot_size=0.001), e)
    with pytest.raises(ParameterError, match="rows = 0"):
        list(stream_events(tmp_path / "y.parquet", rows=0))


FOREIGN = [("negative", "lots", 300, -3, "row 300 of the stream: -3"), ("kind", "kind", 300, 77, "row 300 of the stream: 77"), ("order without ids", "kind", 300, ADD, "row 300 of the stream: 10"),
           ("side", "side", 300, 3, "row 300 of the stream: 3"), ("no side", "side", 0, 0, "row 0 of the stream: 0"), ("unordered", "exch_ns", 300, -5, "row 300 of the stream")]


@pytest.mark.parametrize("what, column, row, value, says", FOREIGN, ids=[f[0] for f in FOREIGN])
def test_damaged_rows_of_a_foreign_parquet_are_named(tmp_path, what, column, row, value, says):
    e = feed(400, 3)
    table = {c: getattr(e, c).copy() for c in COLUMNS[:6]}
    pq.write_table(pa.table(table), tmp_path / "good.parquet")
    assert same(read_events(tmp_path / "good.parquet", tick_size=0.01, lot_size=0.001), e)
    table[column][row] = value
    pq.write_table(pa.table(table), tmp_path / "bad.parquet")
    for rows in (1_000_000, 150):  # the number counts from the start of the stream
        with pytest.raises(DataError, match=rf"bad\.parquet.*{says}"):
            list(stream_events(tmp_path / "bad.parquet", rows=rows, tick_size=0.01, lot_size=0.001))
    if column != "exch_ns":
        with pytest.raises(DataError, match=says):
            write_events(replace(e, **{column: table[column]}), tmp_path / "ours.parquet")
        assert not list(tmp_path.glob("*ours*"))


MEMORY = """
import json, resource, sys
import numpy as np
from makerlab.data.events import Events, stream_events, write_events
chunk, path = 250_000, sys.argv[1]
def parts(n):
    rng = np.random.default_rng(1)
    for start in range(0, n, chunk):
        t = np.arange(start, start + chunk) * 1_000
        side = rng.choice([-1, 1], chunk).astype(np.int8)
        yield Events(kind=np.ones(chunk, np.uint8), side=side, exch_ns=t, local_ns=t + rng.integers(500, 900, chunk),
                     tick=(10_000 - side * rng.integers(1, 50, chunk)).astype(np.int32), lots=rng.integers(0, 99, chunk), tick_size=0.01, lot_size=1.0)
for n in map(int, sys.argv[2:]):
    write_events(parts(n), path)
    rows = sum(len(c) for c in stream_events(path, rows=250_000))
    print(json.dumps([rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def peaks_mb(path: Path, *sizes: int) -> list[float]:
    out = subprocess.run([sys.executable, "-c", MEMORY, str(path), *map(str, sizes)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT)
    assert out.returncode == 0, out.stderr[-800:]
    rows, mb = zip(*map(json.loads, out.stdout.splitlines()))
    assert rows == sizes
    return list(mb)


def test_writing_and_streaming_take_bounded_memory(tmp_path):
    small, large = peaks_mb(tmp_path / "e.parquet", 500_000, 3_000_000)
    assert large < 1.2 * small, (small, large)  # six times the rows


def test_what_was_read_is_let_go(tmp_path):
    n, rng, path = 100_000, np.random.default_rng(2), tmp_path / "e.parquet"
    write_events((Events(kind=np.ones(n, np.uint8), side=rng.choice([-1, 1], n).astype(np.int8), exch_ns=np.sort(rng.integers(0, 10**15, n)) + i * 10**15,
                         local_ns=np.sort(rng.integers(0, 10**15, n)) + (i + 1) * 10**15, tick=rng.integers(1, 10**6, n).astype(np.int32), lots=rng.integers(0, 10**6, n),
                         tick_size=0.01, lot_size=1.0) for i in range(24)), path)
    before, most = pa.total_allocated_bytes(), 0
    for _ in ev.stream_events(path, rows=n):
        most = max(most, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 35e6 and most < 15e6, f"{most / 1e6:.0f} MB held while {path.stat().st_size / 1e6:.0f} MB were read"


@pytest.mark.slow
def test_two_hundred_million_rows_stream_in_bounded_memory(tmp_path):
    assert peaks_mb(tmp_path / "e.parquet", 200_000_000)[0] < 1_500


# --- quotes as events

def test_quotes_become_events_and_quotes_again():
    rng = np.random.default_rng(4)
    n = 200
    bid = 100 + np.cumsum(rng.integers(-1, 2, n)) * 0.01
    q = pd.DataFrame({"time": pd.to_datetime(np.arange(n) * 10**9, utc=True), "bid": bid.round(2), "ask": (bid + 0.01 * rng.integers(1, 4, n)).round(2),
                      "bid_size": rng.integers(1, 9, n) * 100.0, "ask_size": rng.integers(1, 9, n) * 100.0})
    t = pd.DataFrame({"time": q["time"][10:20].to_numpy(), "price": q["ask"][10:20].to_numpy(), "size": 100.0, "side": 1})
    t["time"] = t["time"].dt.tz_localize("UTC") if t["time"].dt.tz is None else t["time"]
    e = events_from_quotes(q, t, tick_size=0.01, lot_size=100.0, latency_ns=5)
    back = e.quotes()
    at = np.searchsorted(to_ns(back["time"]), to_ns(q["time"]), side="right") - 1
    for c in ("bid", "ask", "bid_size", "ask_size"):
        assert np.allclose(back[c].to_numpy()[at], q[c])
    assert len(e.trades()) == 10 and (e.local_ns - e.exch_ns == 5).all() and check_events(e) == []
    first = np.flatnonzero(e.kind == TRADE)[0]
    assert (e.exch_ns[first + 1:first + 3] >= e.exch_ns[first]).all() and e.exch_ns[first - 1] < e.exch_ns[first]
    t.loc[3, "price"] += 0.005
    with pytest.raises(DataError, match="grid"):
        events_from_quotes(q, t, tick_size=0.01, lot_size=100.0)
    assert events_from_quotes(q, t, tick_size=0.01, lot_size=100.0, repair=("grid",)).repairs == {"grid": 1}


def test_the_face_says_what_is_in_it():
    e = make_events(**GOOD, symbol="ABC")
    assert "ABC" in repr(e) and "6 rows" in repr(e) and list(e.summary().columns) == ["value", "unit"]
    with pytest.raises(DataError, match="no trades"):
        take(e, e.kind == DEPTH).trades()
    with pytest.raises(DataError, match="no book"):
        take(e, slice(0, 1)).quotes()
    assert e.digest() != take(e, slice(0, 5)).digest() and ev.KIND_NAMES[DEPTH] == "depth"


# ---------------------------------------------------------------- decimals, and repeats about a clear

@pytest.mark.parametrize("tick, lot", [("0.1", "0.001"), ("0.01", "1"), ("0.25", "0.00001"), ("5", "100"), ("1e-8", "0.5"), ("0.05", "1e-3")])
def test_quotes_and_trades_are_the_decimals_that_were_meant(tick, lot):
    from decimal import Decimal

    from makerlab.data.events import on_grid
    steps = np.random.default_rng(3).integers(-10**6, 10**7, 2000)
    for size in (tick, lot):
        assert on_grid(steps, float(size)).tolist() == [float(int(s) * Decimal(size)) for s in steps], "the nearest double of each product"
    assert (on_grid(steps, 1 / 3) == steps * (1 / 3)).all()
    e = make_events(kind=[DEPTH, DEPTH, TRADE], side=[1, -1, 1], exch_ns=[1, 1, 2], tick=[1003, 1007, 1007], lots=[7, 3, 3], tick_size=float(tick), lot_size=float(lot))
    q, t = e.quotes(), e.trades()
    assert q["bid"].iloc[0] == float(1003 * Decimal(tick)) and q["ask_size"].iloc[0] == float(3 * Decimal(lot)) and t["price"].iloc[0] == float(1007 * Decimal(tick))


@pytest.mark.nojit
def test_a_row_after_a_clear_is_no_repeat():
    "The same level again after the book was cleared at the same stamp is news; without the clear it is a repeat."
    rows = dict(side=[1, -1, 1, 0, 1], exch_ns=[1] * 5, tick=[10, 12, 10, 0, 10], lots=[5] * 3 + [0, 5], tick_size=1.0, lot_size=1.0)
    kept = make_events(kind=[DEPTH, DEPTH, DEPTH, CLEAR, DEPTH], repair=("duplicates",), **rows)
    assert kept.kind.tolist() == [DEPTH, DEPTH, CLEAR, DEPTH] and kept.repairs == {"duplicates": 1}
