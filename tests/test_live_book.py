"The live book under anything a stream can do to it, and the running features against the batch ones, to the bit."
import math
from collections import deque

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from conftest import real
from makerlab.core import ParameterError
from makerlab.data.crypto import read_binance, sync_book
from makerlab.features import microprice as mp
from makerlab.features.volatility import event_features, features
from makerlab.live import book as module
from makerlab.live.book import STATES, VERDICTS, LiveBook, LiveFeatures, RollingSd, book_digest
from makerlab.live.protocol import DepthDiff, Grid, Snapshot

GRID = Grid("0.01", "0.001")
TICK, LOT = GRID.tick_units, GRID.lot_units


class Exchange:
    "The true book, and the messages that tell of it. Bids live below tick 1000, asks above."

    def __init__(self, market):
        self.market, self.id, self.told = market, 100, 90
        self.books = {1: {995: 3, 996: 4}, -1: {1004: 2, 1006: 9}}
        self.past = deque(maxlen=30)

    def rows(self, side): return [(k * TICK, v * LOT) for k, v in self.books[side].items()]
    def snapshot(self): return Snapshot("S", self.id, self.rows(1), self.rows(-1), self.id)

    def change(self, bids, asks, hole):
        "Levels move; on USD-M ids have holes between changes."
        self.past.append(self.snapshot())
        first = self.id + 1 + (hole if self.market == "usdm" else 0)
        previous, self.id = self.told, first + max(0, len(bids) + len(asks) - 1)
        self.told = self.id
        for side, rows in ((1, bids), (-1, asks)):
            for k, v in rows.items():
                self.books[side].pop(k, None) if v == 0 else self.books[side].__setitem__(k, v)
        tell = lambda rows: [(k * TICK, v * LOT) for k, v in rows.items()]
        return DepthDiff("S", first, self.id, previous if self.market == "usdm" else -1, tell(bids), tell(asks), self.id, self.id)

    def digest(self): return book_digest(self.id, sorted(self.rows(1), reverse=True), sorted(self.rows(-1)))


levels = lambda low, high: st.dictionaries(st.integers(low, high), st.integers(0, 9), max_size=4)


class BookMachine(RuleBasedStateMachine):
    "A stream that drops, repeats, swaps and lags; a book that is either right or says that it is not."

    market = "spot"
    rule_of = None  # the book's market; None = the right one

    def __init__(self):
        super().__init__()
        self.exchange = Exchange(self.market)
        self.book = LiveBook("S", GRID, market=self.rule_of or self.market)
        self.history = {self.exchange.id: self.exchange.digest()}
        self.sent, self.held = deque(maxlen=10), None

    def news(self, bids, asks, hole):
        d = self.exchange.change(bids, asks, hole)
        self.history[self.exchange.id] = self.exchange.digest()
        self.sent.append(d)
        return d

    def hear(self, d):
        what = self.book.on_diff(d, d.final)
        assert what in VERDICTS
        return what

    @rule(bids=levels(990, 999), asks=levels(1001, 1010), hole=st.integers(0, 3))
    def change(self, bids, asks, hole):
        d = self.news(bids, asks, hole)
        if self.held is not None and self.held is not d:
            late, self.held = self.held, None
            self.hear(d)
            self.hear(late)
        else:
            self.hear(d)

    @rule(bids=levels(990, 999), asks=levels(1001, 1010), hole=st.integers(0, 3))
    def drop(self, bids, asks, hole): self.news(bids, asks, hole)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data): self.hear(data.draw(st.sampled_from(list(self.sent))))

    @precondition(lambda self: self.held is None)
    @rule(bids=levels(990, 999), asks=levels(1001, 1010), hole=st.integers(0, 3))
    def hold_back(self, bids, asks, hole): self.held = self.news(bids, asks, hole)

    @rule()
    def snapshot(self): assert self.book.on_snapshot(self.exchange.snapshot(), self.exchange.id) in VERDICTS

    @precondition(lambda self: self.exchange.past)
    @rule(data=st.data())
    def old_snapshot(self, data): assert self.book.on_snapshot(data.draw(st.sampled_from(list(self.exchange.past))), 0) in VERDICTS

    @rule()
    def disconnect(self): self.book.lose("disconnected")

    @invariant()
    def right_or_says_so(self):
        book = self.book
        assert book.state in STATES and (book.final >= 0) is book.synced is book.top().synced
        if book.synced:
            assert book.final in self.history, "the book stands at an id at which the venue never told a change"
            assert book.digest() == self.history[book.final], "the book is not the one that the venue held at this id"
        else:
            assert not book.bids and not book.asks and book.top().bid_ticks == 0

    def teardown(self):
        "Whatever happened: two changes that arrive and a snapshot make the book right."
        if self.held is not None:
            self.hear(self.held)
        self.hear(self.news({991: 1}, {}, 1))
        if not self.book.synced:
            self.book.on_snapshot(self.exchange.snapshot(), 0)
        self.hear(self.news({991: 2}, {1009: 1}, 2))
        assert self.book.synced and self.book.digest() == self.exchange.digest(), f"not healed: {self.book.state}, {self.book.reason}"


def machine(market, rule_of=None):
    return type(f"Machine_{market}_{rule_of}", (BookMachine,), {"market": market, "rule_of": rule_of})


SETTINGS = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None, phases=[Phase.generate])
HUNT = settings(SETTINGS, max_examples=300)  # ends at the first failure


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_the_book_is_right_or_says_that_it_is_not(market):
    run_state_machine_as_test(machine(market), settings=SETTINGS)


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_the_other_markets_rule_is_caught(market):
    "The same machine, the other market's rule: endless gaps on USD-M, gaps unseen on spot; the oracle sees both."
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(machine(market, "usdm" if market == "spot" else "spot"), settings=HUNT)


PLANTED = {
    "off by one": lambda market, *, book_id, first, final, previous=-1, fresh=False: "stale" if final <= book_id else "apply" if first <= book_id + 2 else "gap",
    "gaps not looked for": lambda market, *, book_id, first, final, previous=-1, fresh=False: "stale" if final <= book_id else "apply",
    "repeats applied": lambda market, *, book_id, first, final, previous=-1, fresh=False: "apply" if first <= book_id + 1 else "gap",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_in_the_rule_is_caught(fault, monkeypatch):
    monkeypatch.setattr(module, "sync_rule", PLANTED[fault])
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        run_state_machine_as_test(machine("spot"), settings=HUNT)


def test_the_futures_rule_on_spot_never_sees_a_snapshot_join_and_the_spot_rule_on_futures_sees_gaps_everywhere():
    ex = Exchange("usdm")
    wrong = LiveBook("S", GRID, market="spot")
    right = LiveBook("S", GRID, market="usdm")
    for book in (wrong, right):
        book.on_diff(ex.change({995: 5}, {}, 2), 0) if book is wrong else book.on_diff(ex.change({995: 6}, {}, 2), 0)
        book.on_snapshot(ex.snapshot(), 0)
    for i in range(50):
        d = ex.change({995: 1 + i % 5}, {}, 2)
        for book in (wrong, right):
            if book.on_diff(d, 0) == "gap":
                book.on_snapshot(ex.snapshot(), 0)
    assert wrong.counts["gap"] >= 48 and right.counts["gap"] == 0 and right.digest() == ex.digest()


def test_a_usdm_snapshot_in_a_pause_of_the_ids_joins():
    "The documented rule wants U <= lastUpdateId <= u of the first change; where a snapshot falls between two changes, pu tells that nothing is missing."
    ex = Exchange("usdm")
    book = LiveBook("S", GRID, market="usdm")
    book.on_diff(ex.change({995: 5}, {}, 0), 0)
    snap = Snapshot("S", ex.id + 2, ex.rows(1), ex.rows(-1))
    assert book.on_snapshot(snap, 0) == "used"
    assert book.on_diff(ex.change({995: 7}, {}, 5), 0) == "apply" and book.digest() == ex.digest()
    book = LiveBook("S", GRID, market="usdm")
    book.on_diff(ex.change({995: 5}, {}, 0), 0)
    book.on_snapshot(Snapshot("S", ex.id + 2, ex.rows(1), ex.rows(-1)), 0)
    ex.change({996: 1}, {}, 3)  # dropped
    assert book.on_diff(ex.change({995: 7}, {}, 5), 0) == "gap"


def test_crossed_locked_and_off_grid_changes_end_the_book():
    for bids, asks, reason in (([(1004 * TICK, LOT)], [], "crossed"), ([], [(990 * TICK, LOT)], "crossed"), ([(990 * TICK + 1, LOT)], [], "off-grid")):
        ex = Exchange("spot")
        book = LiveBook("S", GRID)
        assert book.on_snapshot(ex.snapshot(), 0) == "used"
        assert book.on_diff(DepthDiff("S", ex.id + 1, ex.id + 1, -1, bids, asks, 0, 0), 0) == reason
        assert book.state == "INVALID" and book.reason == reason and not book.wants_snapshot and book.top().bid_ticks == 0
        assert book.on_diff(DepthDiff("S", ex.id + 2, ex.id + 2, -1, [], [], 0, 0), 0) == "buffered" and book.state == "BUFFERING" and book.wants_snapshot


def test_quantities_off_the_lot_are_kept_exactly_and_shown_in_whole_lots():
    "The real spot recording has three such levels: orders from the days of a smaller lot."
    ex = Exchange("spot")
    book = LiveBook("S", GRID)
    book.on_snapshot(ex.snapshot(), 0)
    assert book.on_diff(DepthDiff("S", ex.id + 1, ex.id + 1, -1, [(999 * TICK, LOT + LOT // 3)], [(1001 * TICK, LOT // 2)], 0, 0), 0) == "apply"
    assert book.levels(1, 1) == [(999, 1)] and book.top().ask_lots == 0 and book.bids[999] == LOT + LOT // 3


def test_a_buffer_that_overflows_keeps_the_newest_and_a_newer_snapshot_heals_it():
    ex = Exchange("spot")
    book = LiveBook("S", GRID, keep=3)
    for i in range(10):
        book.on_diff(ex.change({995: 1 + i % 4}, {}, 0), 0)
    assert len(book.buffer) == 3 and book.on_snapshot(ex.past[1], 0) == "too-old" and book.on_snapshot(ex.snapshot(), 0) == "used" and book.digest() == ex.digest()


def test_levels_are_best_first_and_top_is_their_head():
    ex = Exchange("spot")
    book = LiveBook("S", GRID)
    assert book.levels(1) == book.levels(-1, 3) == []
    book.on_snapshot(ex.snapshot(), 7)
    assert book.levels(1) == [(996, 4), (995, 3)] and book.levels(1, 1) == [(996, 4)] and book.levels(-1, 5) == [(1004, 2), (1006, 9)] and book.levels(-1, 1) == [(1004, 2)] and book.levels(1, 0) == []
    top = book.top()
    assert (top.bid_ticks, top.bid_lots, top.ask_ticks, top.ask_lots, top.local_ns, top.synced) == (996, 4, 1004, 2, 7, True)
    with pytest.raises(ParameterError):
        LiveBook("S", GRID, market="margin")


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["spot", "usdm"])
def test_on_a_real_recording_the_live_book_does_what_the_reader_of_recordings_does(name):
    cap = read_binance(real(f"hftbacktest_binance/{name}_btcusdt_20240808.gz"))
    book = LiveBook("BTCUSDT", Grid("0.1" if name == "usdm" else "0.01", "0.001" if name == "usdm" else "0.00001"), market=cap.market)
    pairs = lambda a, n: [(int(p), int(q)) for p, q in zip(cap.prices[a:a + n], cap.sizes[a:a + n])]
    arrivals = sorted([(r.line, 0, i) for i, r in enumerate(cap.diffs.itertuples())] + [(r.line, 1, i) for i, r in enumerate(cap.snapshots.itertuples())])
    for _, photo, i in arrivals[:4000]:
        r = (cap.snapshots if photo else cap.diffs).iloc[i]
        a, nb, na = int(r["start"]), int(r["bids"]), int(r["asks"])
        if photo:
            book.on_snapshot(Snapshot("BTCUSDT", int(r["final"]), pairs(a, nb), pairs(a + nb, na)), int(r["local_ns"]))
        else:
            book.on_diff(DepthDiff("BTCUSDT", int(r["first"]), int(r["final"]), int(r["previous"]), pairs(a, nb), pairs(a + nb, na), int(r["exch_ns"]), int(r["exch_ns"])), int(r["local_ns"]))
    sync = sync_book(cap, )
    if len(arrivals) <= 4000:
        assert book.counts["apply"] == sync.counts["applied"] and book.counts["stale"] == sync.counts["stale"]
    assert book.synced and book.counts["gap"] == len(sync.gaps) == 0 and book.counts["apply"] > 500
    assert book.top().two_sided


def tape(rng, n):
    t = 1_700_000_000_000_000_000 + np.cumsum(rng.choice([0, 1_000_000, 50_000_000, 300_000_000, 2_500_000_000, 5 * 3600 * 10**9], n, p=[.1, .5, .3, .08, .019, .001]))
    m = np.cumsum(rng.choice([-1, 0, 0, 0, 1], n)) + 6_000_000
    price = lambda x: np.round(x * 0.01, 10)
    size = lambda: np.round(rng.integers(1, 500, n) * 1e-5, 10)
    return pd.DataFrame({"time": pd.to_datetime(t, utc=True), "bid": price(m - rng.integers(0, 3, n)), "ask": price(m + 1 + rng.integers(0, 3, n)), "bid_size": size(), "ask_size": size()})


def same(a, b): return bool(((a == b) | (np.isnan(a) & np.isnan(b))).all()) and len(a) == len(b)


@pytest.mark.parametrize("convention", ["cks", "ccz"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_running_features_equal_the_batch_ones_to_the_bit(convention, seed):
    q = tape(np.random.default_rng(seed), 6000)
    f = LiveFeatures(every_s=1.0, window_s=60.0, floor=0.001, convention=convention, keep=10**7)
    rows = []
    for t, b, a, qb, qa in zip(q["time"].astype("int64"), q["bid"], q["ask"], q["bid_size"], q["ask_size"]):
        f.on_quote(t, b, qb, a, qa)
        rows.append((f.mid, f.imbalance, f.weighted_mid, f.ofi, f.sigma))
    got, ev = np.array(rows), event_features(q, window_s=60.0, convention=convention)
    for k, want in enumerate((mp.mid(q), mp.imbalance(q), mp.weighted_mid(q), ev["ofi"], ev["sigma"])):
        assert same(got[:, k], want.to_numpy()), k
    batch = features(q, every_s=1.0, window_s=60.0, floor=0.001, convention=convention)
    f.advance(int(batch["time"].iloc[-1].value))
    live = pd.DataFrame(f.marks)
    assert (live["time_ns"].to_numpy() == batch["time"].astype("int64").to_numpy()).all()
    for name in ("mid", "spread", "imbalance", "weighted_mid", "ofi", "ofi_norm", "sigma"):
        assert same(live[name].to_numpy(), batch[name].to_numpy()), name
    assert np.isfinite(batch["sigma"]).sum() > 100 and np.isfinite(ev["sigma"]).sum() > 100


def test_windows_with_more_quotes_than_the_rings_hold():
    rng = np.random.default_rng(5)
    n = 20_000
    q = tape(rng, n).assign(time=pd.to_datetime(1_700_000_000_000_000_000 + np.arange(n) * 4_000_000, utc=True))
    f = LiveFeatures(window_s=60.0)
    sigma = np.empty(n)
    for i, (t, b, a, qb, qa) in enumerate(zip(q["time"].astype("int64"), q["bid"], q["ask"], q["bid_size"], q["ask_size"])):
        f.on_quote(t, b, qb, a, qa)
        sigma[i] = f.sigma
    assert same(sigma, event_features(q, window_s=60.0)["sigma"].to_numpy()) and f._events.t.size >= 16384


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 40), st.one_of(st.floats(-1e3, 1e3), st.just(math.nan))), min_size=1, max_size=200), st.integers(1, 60))
def test_the_running_sd_equals_its_kernel_to_the_bit(rows, window):
    from makerlab.features.ofi import _rolling_sd_nb
    t, x = np.cumsum([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=float)
    sd, count, first = _rolling_sd_nb(t.astype(np.int64), x, window)
    r = RollingSd(window)
    got = []
    for i in range(len(t)):
        got.append(r.add(int(t[i]), float(x[i])))
        assert r.k == count[i] and r.first_ns == t[max(first[i] - 1, 0)]
    assert same(np.array(got), sd)


def test_the_running_sd_forgets_what_no_window_reaches():
    from makerlab.features.ofi import _rolling_sd_nb
    rng = np.random.default_rng(0)
    t, x = np.cumsum(rng.integers(0, 3, 20_000)), rng.normal(size=20_000)
    r = RollingSd(50)
    got = np.array([r.add(int(a), float(b)) for a, b in zip(t, x)])
    assert same(got, _rolling_sd_nb(t.astype(np.int64), x, 50)[0]) and len(r.t) < 3000


def test_features_refuse_what_means_nothing_and_take_a_clock_that_runs_backwards_as_standing_still():
    for kw in (dict(every_s=0), dict(window_s=1.0), dict(floor=0), dict(convention="x"), dict(gap_s=-1)):
        with pytest.raises(ParameterError):
            LiveFeatures(**kw)
    f = LiveFeatures(window_s=2.0)
    assert f.advance(5) == []
    for t in (10**9, 5 * 10**8, 3 * 10**9):
        f.on_quote(t, 99.0, 1.0, 101.0, 1.0)
    assert f.time_ns == 3 * 10**9


@pytest.mark.parametrize("jump_s", [7 * 10**9, 3600, 61], ids=["two centuries", "an hour", "just over a window"])
@pytest.mark.parametrize("convention", ["cks", "ccz"])
def test_a_stamp_far_ahead_or_a_clock_set_back_begins_a_session_and_does_not_stop_the_clock(convention, jump_s):
    start = 1_700_000_000 * 10**9
    f = LiveFeatures(every_s=1.0, window_s=60.0, floor=0.001, convention=convention, keep=10**6)
    price = lambda i: 6_000_000 + i * 7 % 11
    for i in range(50):
        f.on_quote(start + jump_s * 10**9 - (50 - i) * 10**8, price(i), 1.0, price(i) + 1, 1.0)
    far = len(f.marks)
    n = 9000
    q = pd.DataFrame({"time": pd.to_datetime(start + np.arange(n) * 20_000_000, utc=True), "bid": [float(price(i)) for i in range(n)], "bid_size": 1.0 + np.arange(n) % 5,
                      "ask": [price(i) + 1.0 for i in range(n)], "ask_size": 1.0 + np.arange(n) % 3})
    sigma = []
    for t, b, a, qb, qa in zip(q["time"].astype("int64"), q["bid"], q["ask"], q["bid_size"], q["ask_size"]):
        f.on_quote(t, b, qb, a, qa)
        sigma.append(f.sigma)
    assert f.time_ns == start + (n - 1) * 20_000_000 and f._events.t.size == 4096, "the clock runs, the rings hold a window"
    assert same(np.array(sigma), event_features(q, window_s=60.0, convention=convention)["sigma"].to_numpy()) and math.isfinite(sigma[-1])
    batch = features(q, every_s=1.0, window_s=60.0, floor=0.001, convention=convention)
    f.advance(int(batch["time"].iloc[-1].value))
    live = pd.DataFrame(list(f.marks)[far:])
    assert (live["time_ns"].to_numpy() == batch["time"].astype("int64").to_numpy()).all() and np.isfinite(batch["ofi_norm"]).any()
    for name in ("mid", "spread", "imbalance", "weighted_mid", "ofi", "ofi_norm", "sigma"):
        assert same(live[name].to_numpy(), batch[name].to_numpy()), name
