"The simulated market: repeatable, the same compiled and plain, its books add up, its dice keep apart, its truths are true."
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from makerlab.core import NS_PER_S, ParameterError
from makerlab.data.events import ADD, CANCEL, FILL, TRADE, check_events
from makerlab.execution import order_flow as of
from makerlab.execution.matching import IOC, LIMIT, LOW, NO_ROOM, POST_ONLY, RESTED, SELF_KILLED, TICKS, WOULD_CROSS, check_book
from makerlab.execution.order_flow import (BACKSTOP, DONE, FULL, INFORMED, LARGE, LOST, N_FILLS, NOISE, OURS, PATIENT, PRESETS, SMALL, ZERO, Regime, adverse_selection,
                                           advance, drain, flow_like, flow_markouts, flow_moments, new_flow, simulate_flow)

TINY = replace(PRESETS["regimes"], name="tiny", warmup_s=1.0, seed_orders=10.0, max_orders=256.0, place_most=20.0, news_rate=2.0, sigma=1.0,
               regimes=(Regime("calm", 0.5), Regime("wild", 0.5, 3.0, 2.0, 1.5)))


def test_the_same_seed_the_same_market_also_in_another_process():
    code = ("from makerlab.execution.order_flow import *; print(simulate_flow(PRESETS['regimes'], seconds=30, seed=7).events.digest())")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = simulate_flow(PRESETS["regimes"], seconds=30, seed=7)
    assert here.events.digest() == there
    assert here.events.digest() != simulate_flow(PRESETS["regimes"], seconds=30, seed=8).events.digest()


def _tiny_digest() -> str:
    "A short market with everything in it, and orders of ours, as text."
    flow = new_flow(TINY, seed=3, n_rows=1, n_ours=300)
    out = []
    for k in range(8):
        flow, why = advance(flow, int((k + 1) * 0.25 * NS_PER_S))
        side = 1 if k % 2 else -1
        touch = int(flow.st[of.TOP_BID if side > 0 else of.TOP_ASK])
        _, handle = of._our_submit_nb(flow, side, touch - side, 2, POST_ONLY)
        of._our_submit_nb(flow, side, touch + 3 * side, 1, IOC)
        if k == 5:
            of._our_cancel_nb(flow, handle)
        out.append((why, handle, of._our_ahead_nb(flow, handle)))
    tape = drain(flow)
    own = flow.our_fills[: flow.st[N_FILLS]]
    return repr([tuple(int(x) for x in row) for row in out]) + repr([float(tape[name].astype(float).sum()) for name in tape]) + repr([float(x) for x in own.sum(axis=0)])


@pytest.mark.nojit
def test_compiled_and_plain_python_are_the_same():
    plain = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("0", "")
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1" if plain else "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys; sys.path.insert(0, 'tests'); from test_order_flow import _tiny_digest; print(_tiny_digest())"
    other = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True, env=env, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert other.returncode == 0, other.stderr[-2000:]
    assert other.stdout.strip() == _tiny_digest()


@settings(max_examples=10, deadline=None)
@given(cuts=hs.lists(hs.floats(0.01, 19.9), max_size=6), seed=hs.integers(0, 1000))
def test_where_the_market_is_stopped_on_its_way_does_not_matter(cuts, seed):
    whole, parts = new_flow(LARGE, seed=seed), new_flow(LARGE, seed=seed)
    advance(whole, 20 * NS_PER_S)
    for cut in [*sorted(cuts), 20.0]:
        parts, why = advance(parts, int(cut * NS_PER_S))
        assert why == DONE
    for a, b in zip(drain(whole).values(), drain(parts).values(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_window_too_narrow_refuses_nobody(seed, monkeypatch):
    "Those who hear of a jump price their orders by the value, before the touch has followed: the window must have grown by then."
    params = replace(LARGE, jump_rate=0.05, jump_ticks=60.0, jump_tail=2.5)
    whole = simulate_flow(params, seconds=300, seed=seed)
    monkeypatch.setattr(of, "_window", lambda p: (round(p.price / p.tick_size) - 140, 280))
    narrow = simulate_flow(params, seconds=300, seed=seed)
    assert narrow.events.digest() == whole.events.digest() and np.array_equal(narrow.counts, whole.counts)
    assert 280 < narrow.state.book.state[TICKS]


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_day_of_each_preset_neither_empties_nor_explodes(name):
    _one_day(name, 101)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", list(PRESETS))
def test_days_over_many_seeds(name, seed):
    _one_day(name, seed)


def _one_day(name: str, seed: int) -> None:
    flow = simulate_flow(PRESETS[name], seconds=23_400, seed=seed)
    tops, path, st = flow.tape["tops"], flow.tape["path"], flow.state.st
    spread = tops[:, 2] - tops[:, 1]
    held = np.diff(np.append(tops[:, 0], 23_400 * NS_PER_S))
    assert tops[:, 3:].min() > 0, "a side was empty"
    assert spread.min() >= 1 and spread.max() <= 4 * PRESETS[name].place_most and np.average(spread, weights=held) < 12
    assert st[LOST] == 0 and flow.backstop < 1e-3 * flow.n_events and check_book(flow.state.book) == []
    assert flow.n_events > 200_000
    if name not in ("zero-intelligence", "state-dependent"):  # the mid stays near the value, and moves as much
        marks = np.arange(0, 23_400, 60) * NS_PER_S
        mid = 0.5 * (tops[:, 1] + tops[:, 2])[np.searchsorted(tops[:, 0], marks, side="right") - 1]
        value = path[np.searchsorted(path[:, 0], marks, side="right") - 1, 1]
        assert np.abs(mid - value).mean() < (1.5 if name != "small-tick" else 6)
        assert 0.7 < np.diff(mid).std() / np.diff(value).std() < 1.3


@pytest.mark.bounds
@pytest.mark.parametrize("name", list(PRESETS))
def test_events_say_what_the_market_says(name):
    flow = simulate_flow(PRESETS[name], seconds=300, seed=5)
    events = flow.events
    assert check_events(events) == []
    mine, theirs = flow.quotes(), events.quotes()
    assert len(mine) == len(theirs) and (mine["time"] == theirs["time"]).all()
    assert np.abs(mine[["bid", "ask", "bid_size", "ask_size"]].to_numpy() - theirs[["bid", "ask", "bid_size", "ask_size"]].to_numpy()).max() < 1e-9
    trades = flow.trades()
    assert len(trades) == len(events.trades()) and np.allclose(trades["price"], events.trades()["price"])
    live = {}
    for kind, lots, order in zip(events.kind, events.lots, events.order_id, strict=True):
        if kind == ADD:
            live[order] = lots
        elif kind in (CANCEL, FILL):
            live[order] -= lots
            assert live[order] >= 0
    st = flow.state.st
    assert sum(live.values()) == st[of.BID_LOTS] + st[of.ASK_LOTS] and sum(v > 0 for v in live.values()) == st[of.BIDS] + st[of.ASKS] == flow.state.book.state[of.LIVE]
    assert flow.counts[:, 2].sum() == flow.counts[:, 3].sum() == events.lots[events.kind == TRADE].sum()  # what one takes another gives


@pytest.mark.bounds
def test_our_orders_have_places_fills_and_ends():
    flow, rng = new_flow(LARGE, seed=1, n_rows=2**16), np.random.default_rng(0)
    live = []
    for k in range(600):
        flow, why = advance(flow, int((k + 1) * 0.5 * NS_PER_S))
        if why == FULL:
            drain(flow)
        side = int(rng.choice([-1, 1]))
        touch = int(flow.st[of.TOP_BID if side > 0 else of.TOP_ASK])
        status, handle = of._our_submit_nb(flow, side, touch, int(rng.integers(1, 5)), LIMIT)
        assert status == RESTED and of._our_ahead_nb(flow, handle) >= 0
        live.append(handle)
        if len(live) > 4:
            gone = live.pop(0)
            left = int(flow.our_orders[gone, 5])
            assert of._our_cancel_nb(flow, gone) == left and of._our_cancel_nb(flow, gone) == 0
    fills = flow.our_fills[: flow.st[N_FILLS]]
    assert len(fills) > 50
    maker = fills[:, 7] == 1
    assert maker.all() and (fills[:, 3] > 0).all()
    assert (np.abs(fills[:, 2] - fills[:, 4]) < 10).all() and ((fills[:, 4] - fills[:, 2]) * fills[:, 1] > -1e-9).mean() > 0.95  # a passive fill is on our side of the mid before
    position = (fills[:, 1] * fills[:, 3]).sum()
    done = flow.our_orders[: flow.st[of.N_ORDERS]]
    assert position == (done[:, 2] * (done[:, 4] - done[:, 5])).sum()
    counts = flow.st[of.COUNTS : of.COUNTS + 40].reshape(8, 5)
    assert counts[OURS, 3] == fills[:, 3].sum()
    assert set(np.unique(fills[:, 6])) <= {float(x) for x in range(2, 8)} and (fills[:, 6] == INFORMED).any()
    assert check_book(flow.book) == []


def test_our_taking_order_is_a_fill_of_ours_and_self_trades_are_prevented():
    flow = new_flow(LARGE, seed=1, record=False)
    ask, lots = int(flow.st[of.TOP_ASK]), int(flow.st[of.TOP_ASK_LOTS])
    value = float(flow.fx[of.V_NOW])
    of._our_submit_nb(flow, 1, ask, lots, IOC)
    fills = flow.our_fills[: flow.st[N_FILLS]]
    assert fills[:, 3].sum() == lots and (fills[:, 7] == 0).all() and (fills[:, 1] == 1).all() and np.allclose(fills[:, 5], value)
    ask = int(flow.st[of.TOP_ASK])
    status, _ = of._our_submit_nb(flow, -1, ask - 1, 3, LIMIT)  # we are the best ask now
    assert status == RESTED
    before = flow.st[N_FILLS]
    assert of._our_submit_nb(flow, 1, ask - 1, 2, IOC)[0] == SELF_KILLED and flow.st[N_FILLS] == before
    assert of._our_submit_nb(flow, 1, ask - 1, 2, POST_ONLY)[0] == WOULD_CROSS


def test_strange_handles_and_full_arrays_are_refused():
    flow = new_flow(LARGE, seed=1, record=False, n_ours=int(LARGE.max_orders) + 2)
    assert of._our_cancel_nb(flow, -1) == 0 and of._our_cancel_nb(flow, 5) == 0 and of._our_ahead_nb(flow, 5) == -1
    small = new_flow(LARGE, seed=1, record=False, n_ours=4)
    assert of._our_submit_nb(small, 1, 100, 1, LIMIT)[0] == NO_ROOM
    assert of._our_submit_nb(flow, 1, -5, 1, LIMIT)[1] == -1


def test_the_same_seed_without_us_has_the_same_people():
    a, b = new_flow(PRESETS["regimes"], seed=9), new_flow(PRESETS["regimes"], seed=9)
    advance(a, 30 * NS_PER_S), advance(b, 30 * NS_PER_S)
    of._our_submit_nb(a, 1, int(a.st[of.TOP_ASK]) + 10, 2000, IOC)
    advance(a, 90 * NS_PER_S), advance(b, 90 * NS_PER_S)
    ta, tb = drain(a), drain(b)
    assert np.array_equal(ta["path"], tb["path"]) and np.array_equal(a.streams, b.streams) and np.array_equal(a.st[of.CLOCK : of.SEEN], b.st[of.CLOCK : of.SEEN])
    early_a, early_b = (t["rows"][t["rows"][:, 2] < 30 * NS_PER_S] for t in (ta, tb))
    assert np.array_equal(early_a, early_b) and not np.array_equal(ta["rows"][: len(tb["rows"])], tb["rows"][: len(ta["rows"])])


def test_latency_is_exactly_as_long_as_said():
    now = replace(ZERO, polite=0.0, sweep_ticks=500.0)  # so that every order trades
    later = replace(now, noise_latency_ms=250.0)
    when = [np.unique(f.tape["trades"][:, 0]) for f in (simulate_flow(p, seconds=60, seed=4) for p in (now, later))]
    shifted = when[0][when[0] + 250_000_001 <= 60 * NS_PER_S] + 250_000_001
    assert np.array_equal(shifted, when[1][when[1] >= 250_000_001]) and len(shifted) > 30


def test_noise_arrives_at_the_promised_rate_and_in_clusters():
    n = 0.6
    p = replace(ZERO, branching=n, noise_rate=2.0, noise_lots=1.0, limit_lots=20.0)
    counts = []
    for seed in range(4):
        tr = simulate_flow(p, seconds=20_000, seed=seed).tape["trades"]
        t = tr[np.append(True, np.diff(tr[:, 8]) != 0), 0]
        counts.append(np.histogram(t, np.arange(0, 20_001, 200) * NS_PER_S)[0])
    c = np.concatenate(counts)
    se = c.std() / np.sqrt(c.size)
    assert abs(c.mean() - 400) < 4 * se
    ratio = c.var() / c.mean()
    assert abs(ratio / (1 / (1 - n) ** 2) - 1) < 4 * np.sqrt(2 / c.size) + 0.1  # Hawkes: the variance of long counts is 1/(1-n)^2 times Poisson's


def test_regimes_last_as_long_as_they_should_and_do_what_they_say():
    p = replace(LARGE, sigma=1.0, jump_rate=0.0, regimes=(Regime("a", 20.0), Regime("b", 60.0, 4.0, 1.0, 1.0)))
    f = simulate_flow(p, seconds=23_400, seed=2)
    r = f.regimes()
    spans = r["time"].diff().shift(-1).dt.total_seconds()
    for name, mean in (("a", 20.0), ("b", 60.0)):
        x = spans[r["regime"] == name].dropna()
        assert abs(x.mean() - mean) < 4 * mean / np.sqrt(len(x))
    path = f.tape["path"]
    steps, mood = np.diff(path[:, 1]), path[:-1, 2]
    moved = np.diff(path[:, 0]) > 0
    assert abs(steps[moved & (mood == 1)].std() / steps[moved & (mood == 0)].std() - 4) < 0.2


def test_the_value_is_a_martingale_with_the_promised_volatility():
    z = []
    for seed in range(12):
        path = simulate_flow(replace(LARGE, jump_rate=0.0), seconds=2000, seed=seed).tape["path"]
        v = path[np.searchsorted(path[:, 0], np.arange(0, 2000, 10) * NS_PER_S, side="right") - 1, 1]
        z.append(np.diff(v))
    z = np.concatenate(z)
    assert abs(z.mean()) < 4 * z.std() / np.sqrt(z.size) and abs(z.var() / (10 * LARGE.sigma**2) - 1) < 4 * np.sqrt(2 / z.size) + 0.05


def test_signs_remember_with_the_exponent_of_the_split_orders():
    p = replace(ZERO, parents=4.0, parent_tail=1.5, hurry=0.0, noise_lots=1.0, limit_lots=20.0, noise_rate=5.0)
    c = []
    for seed in range(6):
        tr = simulate_flow(p, seconds=20_000, seed=seed).tape["trades"]
        s = tr[np.append(True, np.diff(tr[:, 8]) != 0), 1]
        s = s - s.mean()
        c.append([(s[:-k] * s[k:]).mean() / s.var() for k in (8, 16, 32, 64, 128)])
    slope = np.polyfit(np.log([8, 16, 32, 64, 128]), np.log(np.mean(c, axis=0)), 1)[0]
    assert -0.75 < slope < -0.3  # alpha - 1 = 0.5 (Lillo, Mike & Farmer 2005)


def test_without_informed_flow_nobody_is_selected_against():
    none = adverse_selection(simulate_flow(replace(LARGE, informed_rate=0.0, value_rate=0.0, momentum_rate=0.0, hurry=0.0), seconds=7200, seed=1))
    assert "informed" not in none.index and none.loc["noise", "hi"] < -0.3
    some = adverse_selection(simulate_flow(LARGE, seconds=7200, seed=1))
    assert some.loc["informed", "lo"] > 0.3 and abs((some["adverse_ticks"] - some["half_spread_ticks"] - some["loss_ticks"]).to_numpy()).max() < 1e-9


def test_markouts_converge_to_the_known_truth():
    f = simulate_flow(replace(LARGE, jump_rate=0.0), seconds=23_400, seed=3)
    truth = adverse_selection(f)
    for who in ("noise", "informed", "all"):
        m = flow_markouts(f, horizons_s=[0.0, 30.0], taker=who)
        assert abs(m.loc[1, "markout_ticks"] + truth.loc[who, "loss_ticks"]) < 4 * np.hypot(m.loc[1, "se"], truth.loc[who, "se"])
    assert flow_markouts(f, horizons_s=[0.1], taker="informed").loc[0, "markout_ticks"] > 0  # short horizons flatter


def test_a_wider_window_changes_nothing():
    market, other = new_flow(LARGE, seed=4), new_flow(LARGE, seed=4)
    low, size = int(market.book.state[LOW]), int(market.book.state[TICKS])
    grown = market._replace(book=of.grow_book(market.book, low_tick=low - 500, n_ticks=size + 1500))
    advance(grown, 60 * NS_PER_S), advance(other, 60 * NS_PER_S)
    assert np.array_equal(drain(grown)["rows"], drain(other)["rows"])


@pytest.mark.bounds
def test_the_price_window_is_left_and_found_again(monkeypatch):
    p = replace(LARGE, price=3000.0, sigma=4.0, jump_rate=0.0, place_most=30.0)
    wide = simulate_flow(p, seconds=1200, seed=2)
    monkeypatch.setattr(of, "_window", lambda params: (300_000 - 150, 300))
    narrow = simulate_flow(p, seconds=1200, seed=2)
    assert narrow.state.book.state[TICKS] > 300 and check_book(narrow.state.book) == []
    assert np.array_equal(narrow.tape["trades"][:, :8], wide.tape["trades"][:, :8]) and narrow.events.digest() == wide.events.digest()
    market = new_flow(p, seed=2)
    why = DONE
    for k in range(200):
        why = of._advance_nb(market, (k + 1) * 6 * NS_PER_S)
        if why != DONE:
            break
    assert why in (of.EDGE, FULL)  # the kernel stops by itself, and says why


def test_flow_like_finds_the_moments_of_its_source():
    source = simulate_flow(replace(LARGE, noise_rate=2.0, maker_lots=20.0, jump_rate=0.0), seconds=1800, seed=1)
    like = flow_like(source.quotes(), source.trades(), tick_size=0.01, lot_size=100.0)
    check = simulate_flow(like, seconds=1800, seed=50)
    want, got = (flow_moments(f.quotes(), f.trades(), tick_size=0.01, lot_size=100.0) for f in (source, check))
    assert ((got / want).between(0.7, 1.4)).all(), (want, got)


@pytest.mark.parametrize(("field", "value", "word"), [("branching", 1.0, "explodes"), ("sigma", -1.0, "sigma"), ("limit_tail", 1.0, "mean does not exist"), ("polite", 1.5, "share"),
                                                      ("price", 0.0, "price"), ("maker_delay_s", 5000.0, "longest delay"), ("regimes", (), "at least one"),
                                                      ("noise_rate", float("nan"), "noise_rate")])
def test_impossible_markets_are_refused_by_name(field, value, word):
    with pytest.raises(ParameterError, match=word):
        new_flow(replace(LARGE, **{field: value}), seed=1)


def test_nonsense_questions_are_refused():
    f = simulate_flow(LARGE, seconds=5, seed=1)
    for call in (lambda: simulate_flow(LARGE, seconds=0, seed=1), lambda: adverse_selection(f, level=1.0), lambda: adverse_selection(f, block_s=0),
                 lambda: flow_markouts(f, horizons_s=[1], taker="nobody"), lambda: flow_markouts(f, horizons_s=[1], level=0.0),
                 lambda: simulate_flow(replace(LARGE, price=0.5, sigma=20.0), seconds=3600, seed=1)):
        with pytest.raises(ParameterError):
            call()


def test_the_reserve_holds_against_the_markets_own_takers():
    p = replace(ZERO, limit_rate=2.0, noise_rate=20.0, noise_lots=50.0, polite=0.0, sweep_ticks=50.0)
    f = simulate_flow(p, seconds=600, seed=1)
    assert f.tape["tops"][:, 3:].min() > 0 and f.backstop > 100 and f.state.st[BACKSTOP] == f.backstop


def test_speed_counts_are_events():
    f = simulate_flow(SMALL, seconds=60, seed=1)
    rows = f.tape["rows"]
    after = rows[rows[:, 2] > 0]
    orders_taking = len(np.unique(after[after[:, 0] == TRADE][:, 5]))
    adds, cancels = (after[:, 0] == ADD).sum(), (after[:, 0] == CANCEL).sum()
    assert f.n_events <= adds + cancels + orders_taking + 5 and f.n_events >= adds + cancels
    assert (f.counts[PATIENT, 0] > 0) and (f.counts[NOISE, 2] > 0)
