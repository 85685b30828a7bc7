"LOBSTER as events: the facts of the real days, and queues on days that we make ourselves, where the truth is known."
import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.core import DataError, ParameterError, from_ns, to_ns
from makerlab.data.events import ADD, CANCEL, DEPTH, FILL, MODIFY, TRADE, Events, check_events, depth_of, make_events, take, touch
from makerlab.data.lob import Lobster, load_lobster
from makerlab.data.lob_events import displayed_before, fifo_facts, fifo_hits, lobster_events, simulate_day

ZIP = "lobster_samples/LOBSTER_SampleFile_{}.zip"
DAYS = ("AMZN_2012-06-21_5", "AMZN_2012-06-21_1", "AAPL_2012-06-21_1")


@functools.cache
def file(name: str) -> Lobster:
    return load_lobster(real(ZIP.format(name)))


@functools.cache
def events(name: str, **how) -> Events:
    return lobster_events(file(name), **how)


def shown(day: Lobster, levels: int) -> dict:
    "What the orderbook file shows after the last line of each stamp: stamps and an array (rows, side, level, (price, size))."
    last = (day.messages["time"] != day.messages["time"].shift(-1)).to_numpy()
    book = np.stack([np.stack([day.book[[f"{s}_{i}", f"{s}_size_{i}"]].to_numpy()[last] for i in range(1, levels + 1)], 1) for s in ("bid", "ask")], 1)
    return dict(t=to_ns(day.messages["time"])[last], book=book)


def assert_shows(e, day, tick):
    "Every level that the file shows after every stamp, the events show too; nothing else lies between them."
    want, level = shown(day, day.levels), {1: {}, -1: {}}
    d = depth_of(e)
    ends = np.append(np.flatnonzero(np.diff(d.exch_ns)), len(d) - 1)
    start = 0
    for end in ends:
        for i in range(start, end + 1):
            if d.kind[i] == DEPTH:
                level[int(d.side[i])][int(d.tick[i])] = int(d.lots[i])
        start = end + 1
        j = np.searchsorted(want["t"], d.exch_ns[end])
        for s, side in ((0, 1), (1, -1)):
            rows = want["book"][j, s]
            want_now = [(int(round(p / tick)), int(q)) for p, q in rows if np.isfinite(p)]
            worst = want_now[-1][0] if len(want_now) == day.levels else -side * 10**9
            mine = sorted(((p, q) for p, q in level[side].items() if q and (p - worst) * side >= 0), reverse=side > 0)
            assert mine == want_now, (end, side)


# --- real days

@pytest.mark.realdata
@pytest.mark.parametrize("name", DAYS)
def test_executions_hit_the_head_of_a_known_queue(name):
    day = file(name)
    raw = lobster_events(day, queues="messages")
    facts = {q: fifo_facts(events(name, queues=q)) for q in ("hindsight", "forget")}
    facts["messages"] = fifo_facts(raw, displayed=displayed_before(day, raw))
    executions = int((day.messages["type"] == 4).sum())
    assert facts["messages"]["executions"] == executions and facts["messages"]["head_share"] < 0.2
    assert executions <= facts["hindsight"]["executions"] <= executions + 5
    for queues, known in (("hindsight", 0.99), ("forget", 0.45)):
        f = facts[queues]
        assert 0.995 <= f["known_head_share"] < 1 and f["known_executions"] > known * executions, (queues, f)
    assert facts["hindsight"]["head_share"] >= 0.995 and facts["forget"]["head_share"] < 0.82


@pytest.mark.realdata
@pytest.mark.parametrize("name", DAYS)
def test_trades_are_where_they_should_be(name):
    e = events(name, queues="hindsight")
    fill = np.append(e.kind[1:] == FILL, False) & (e.kind == TRADE)
    d = depth_of(e)
    book, at = touch(d), np.flatnonzero(d.kind == TRADE)
    before = book.iloc[np.maximum(at - 1, 0)]
    seen = fill[e.kind == TRADE]
    price = d.tick[at]
    at_touch = np.where(d.side[at] > 0, price == before["ask_tick"], price == before["bid_tick"])
    inside = (price >= before["bid_tick"]) & (price <= before["ask_tick"])
    assert at_touch[seen][1:].mean() >= 0.9999 and inside.to_numpy()[~seen][1:].mean() >= 0.9996
    wrong = np.where(d.side[at] < 0, price == before["ask_tick"], price == before["bid_tick"])
    assert wrong[seen].mean() < 0.01


@pytest.mark.realdata
def test_the_display_of_a_real_day_is_kept_line_by_line():
    day = file("AMZN_2012-06-21_5")
    day = replace(day, messages=day.messages[:6000], book=day.book[:6000])
    for e in (lobster_events(day), lobster_events(day, queues="forget"), lobster_events(day, level="l2")):
        assert_shows(e, day, 0.01)


@pytest.mark.realdata
@pytest.mark.parametrize("name", DAYS)
def test_touch_equals_the_file_after_every_stamp(name):
    want = shown(file(name), 1)
    for e in (events(name, queues="hindsight"), events(name, level="l2")):
        assert check_events(replace(e, notes=[])) == [] or all(x.startswith(("early-trades", "duplicates")) for x in check_events(e))
        d = depth_of(e)
        last = np.append(np.diff(d.exch_ns) > 0, True)
        mine = touch(d).to_numpy()[last]
        j = np.searchsorted(want["t"], d.exch_ns[last])
        assert (mine[:, :2] == np.rint(want["book"][j, :, 0, 0] * 100)).all() and (mine[:, 2:] == want["book"][j, :, 0, 1]).all()


# --- days made here

@pytest.mark.bounds
@pytest.mark.parametrize("seed, levels", [(1, 1), (2, 2), (3, 5)])
def test_a_made_day_shows_what_its_file_shows(seed, levels):
    made = simulate_day(1500, levels=levels, rng=np.random.default_rng(seed))
    for e in (lobster_events(made.day, tick_size=0.01), lobster_events(made.day, queues="forget", tick_size=0.01), lobster_events(made.day, level="l2", tick_size=0.01)):
        assert_shows(e, made.day, 0.01)


@pytest.mark.parametrize("seed", [4, 5])
def test_hindsight_recovers_the_true_queue(seed):
    made = simulate_day(6000, levels=2, rng=np.random.default_rng(seed))
    assert fifo_facts(made.truth) == pytest.approx(dict(executions=(made.truth.kind == FILL).sum(), head_share=1, known_executions=(made.truth.kind == FILL).sum(), known_head_share=1))
    shares = {q: fifo_facts(lobster_events(made.day, queues=q, tick_size=0.01)) for q in ("hindsight", "forget", "messages")}
    assert shares["hindsight"]["head_share"] > 0.97 and shares["hindsight"]["known_head_share"] > 0.98
    assert shares["messages"]["head_share"] < 0.8 * shares["hindsight"]["head_share"]


@pytest.mark.nojit
def test_a_small_made_day_without_a_compiler():
    made = simulate_day(120, levels=2, rng=np.random.default_rng(6))
    assert_shows(lobster_events(made.day, tick_size=0.01), made.day, 0.01)


def day_of(lines, book, levels=1) -> Lobster:
    "A day by hand: (type, id, size, ticks, direction) and rows of (ask, size, bid, size, ...) in ticks."
    m = pd.DataFrame(lines, columns=["type", "order_id", "size", "price", "direction"])
    m.insert(0, "time", from_ns(np.arange(len(m)) * 1000 + 10**18))
    m["price"] = m["price"] / 100
    names = [f"{w}_{i}" for i in range(1, levels + 1) for w in ("ask", "ask_size", "bid", "bid_size")]
    b = pd.DataFrame(book, columns=names).astype(float)
    for i in range(1, levels + 1):
        for s in ("ask", "bid"):
            b[f"{s}_{i}"] /= 100
    return Lobster(m, b, "HAND", "2026-01-02", levels, "by hand")


LINES = [(1, 10, 5, 100, 1), (4, 3, 2, 100, 1), (3, 4, 1, 100, 1), (4, 10, 5, 100, 1)]
BOOK = [(102, 9, 100, 8), (102, 9, 100, 6), (102, 9, 100, 5), (102, 9, 98, 4)]


@pytest.mark.nojit
def test_orders_of_before_the_file_stand_first():
    e = lobster_events(day_of(LINES, BOOK))
    assert e.kind[:4].tolist() == [ADD] * 4 and e.order_id[:4].tolist() == [3, 4, -1, 10]  # by age; -1 stands for the ask that no message explains
    assert fifo_facts(e) == dict(executions=2, head_share=1.0, known_executions=2, known_head_share=1.0)
    assert e.repairs["orders without an add entered"] == 2
    lost = fifo_facts(lobster_events(day_of(LINES, BOOK), queues="messages"))
    assert lost["head_share"] == 0.5 and lost["executions"] == 2


@pytest.mark.nojit
def test_lots_without_a_name_make_a_queue_unknown_and_prove_nothing():
    f = fifo_facts(lobster_events(day_of(LINES, BOOK), queues="forget"))  # 3 lots from before the file, then order 10
    assert f == dict(executions=2, head_share=0.5, known_executions=1, known_head_share=1.0)


@pytest.mark.nojit
def test_a_ghost_goes_when_its_level_comes_back():
    lines = [(1, 20, 5, 100, 1), (1, 21, 3, 101, 1), (3, 21, 3, 101, 1), (1, 22, 4, 100, 1), (4, 22, 4, 100, 1)]
    book = [(105, 9, 100, 5), (105, 9, 101, 3), (105, 9, 100, 2), (105, 9, 100, 6), (105, 9, 100, 2)]  # 3 of order 20 went while 101 hid it
    e = lobster_events(day_of(lines, book))
    assert e.repairs["ghosts removed"] == 1
    gone = np.flatnonzero((e.kind == CANCEL) & (e.order_id == 20))
    assert e.lots[gone].tolist() == [3] and e.exch_ns[gone[0]] == 10**18 + 2000
    assert_shows(e, day_of(lines, book), 0.01)


@pytest.mark.nojit
def test_crosses_halts_and_hidden_trades():
    lines = [(1, 1, 5, 100, 1), (6, -1, 500, 101, -1), (5, 0, 1, 101, 1), (7, 0, 0, -100, -1), (5, 0, 2, 100.5, -1)]
    book = [(102, 9, 100, 5)] * 5
    e = lobster_events(day_of(lines, book), tick_size=0.01)
    assert e.repairs["cross trades left out"] == 1 and e.repairs["halts left out"] == 1 and e.repairs["hidden trades between two ticks left out"] == 1
    trades = e.trades()
    assert trades[["price", "size", "side"]].to_numpy().tolist() == [[1.01, 1, -1]] and not (e.kind == FILL).any()
    fine = lobster_events(day_of(lines, book), tick_size=0.005)
    assert len(fine.trades()) == 2 and fine.trades()["price"].tolist() == pytest.approx([1.01, 1.005])


def bent(rows, line, column, value):
    rows = [list(r) for r in rows]
    rows[line][column] = value
    return [tuple(r) for r in rows]


DAMAGE = {"negative size of a message": (bent(LINES, 1, 2, -2), BOOK, "message has a size.* at line 1"), "zero size of a message": (bent(LINES, 2, 2, 0), BOOK, "message has a size.* at line 2"),
          "negative size of a level": (LINES, bent(BOOK, 2, 3, -5), "shows a size.* at line 2"), "crossed": (LINES, bent(BOOK, 2, 0, 99), "crossed or locked at line 2"),
          "locked": (LINES, bent(BOOK, 3, 2, 102), "crossed or locked at line 3")}


@pytest.mark.bounds
@pytest.mark.nojit
@pytest.mark.parametrize("what", DAMAGE)
def test_a_display_that_no_book_can_show_is_refused_by_its_line(what):
    lines, book, says = DAMAGE[what]
    for level in ("l3", "l2"):
        with pytest.raises(DataError, match=says):
            lobster_events(day_of(lines, book), level=level)


@pytest.mark.bounds
@pytest.mark.nojit
@pytest.mark.parametrize("row", [(102, 9, 100, 5, 103, 1, 100, 2), (102, 9, 98, 5, 103, 1, 99, 2), (104, 9, 100, 5, 103, 1, 99, 2), (102, 9, np.nan, 0, 103, 1, 99, 2)])
def test_levels_must_fall_away_from_the_touch(row):
    book = [(102, 9, 100, 5, 103, 1, 99, 2)] * 3
    lines = [(1, 1, 5, 100, 1)] * 3
    lobster_events(day_of(lines, book, levels=2))
    for level in ("l3", "l2"):
        with pytest.raises(DataError, match="do not fall away.* at line 1"):
            lobster_events(day_of(lines, [book[0], row, book[2]], levels=2), level=level)


def test_bad_arguments_and_prices():
    day = day_of(LINES, BOOK)
    for change, says in ((dict(level="l4"), "level"), (dict(queues="guess"), "queues"), (dict(tick_size=-1.0), "tick_size")):
        with pytest.raises(ParameterError, match=says):
            lobster_events(day, **change)
    with pytest.raises(DataError, match="line 0 of the orderbook.*tick_size"):
        lobster_events(day, tick_size=0.03)
    with pytest.raises(ParameterError, match="l3"):
        fifo_facts(lobster_events(day, level="l2"))
    with pytest.raises(DataError, match="no FILL"):
        fifo_facts(take(lobster_events(day), slice(0, 3)))


@pytest.mark.nojit
def test_a_queue_by_hand_with_modify():
    e = make_events(kind=[ADD, ADD, ADD, MODIFY, TRADE, FILL, MODIFY, TRADE, FILL], side=[1, 1, -1, 1, -1, 1, 1, -1, 1], exch_ns=np.arange(9), tick=[9, 9, 11, 9, 9, 9, 9, 9, 9],
                    lots=[5, 5, 5, 3, 1, 1, 4, 1, 1], order_id=[1, 2, 3, 1, 0, 1, 1, 0, 1], tick_size=1.0, lot_size=1.0)
    hit, full = fifo_hits(e)
    assert hit.tolist() == [-1] * 5 + [1, -1, -1, 0] and full[5] and full[8]  # smaller keeps its place, larger goes to the end
    assert fifo_facts(e)["head_share"] == 0.5
