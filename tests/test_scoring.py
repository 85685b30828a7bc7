"Scoring: what random input, edge cases and the exact oracles say of metrics, attribution and inference."
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.scoring.attribution import adverse_selection, attribute, attribute_slow, carve_out, censored, markouts, markouts_by_time
from makerlab.scoring.inference import block_bootstrap, bonferroni_level, expanded_level, optimal_block, paired_difference, pnl_interval
from makerlab.scoring.metrics import bar_pnl, equity, fill_ratio, inventory_stats, max_drawdown, profit_factor, sharpe, summarise, tape_sessions

CASES = [c for c in json.loads((Path(__file__).parent / "oracles" / "oracles.json").read_text())["cases"] if c["area"] == "pnl_attribution"]
number = st.floats(-5, 5, allow_nan=False)


@st.composite
def runs(draw):
    "A mid path, fills with their own marks and fees, an opening position and cash."
    n = draw(st.integers(1, 20))
    mids = np.array([100 + draw(number) for _ in range(n)])
    rows = sorted(draw(st.lists(st.tuples(st.integers(0, n - 1), st.sampled_from([-1, 1]), number, st.floats(0.01, 50), number, number), max_size=25)),
                  key=lambda r: r[0])
    fills = pd.DataFrame(rows, columns=["step", "side", "price", "qty", "mid", "fee"]).astype({"step": "int64", "side": "int64"})
    return fills.assign(price=fills.price + 100, mid=fills.mid + 100), mids, draw(st.floats(-100, 100)), draw(st.floats(-1e4, 1e4))


@settings(max_examples=150, deadline=None)
@given(runs())
def test_identity_and_twin(run):
    fills, mids, q0, cash0 = run
    a = attribute(fills, mids, q0=q0, cash0=cash0)
    scale = a.turnover + abs(q0) * 105 + abs(cash0) + 1
    assert abs(a.residual) <= 1e-9 * scale
    assert abs(a.steps.pnl.sum() - a.total) <= 1e-9 * scale
    slow = attribute_slow(list(fills[["step", "side", "price", "qty", "mid", "fee"]].itertuples(index=False)), mids.tolist(), q0=q0, cash0=cash0)
    for name in ("total", "spread_capture", "inventory_pnl", "fees"):
        assert abs(getattr(a, name) - slow[name]) <= 1e-10 * scale
    assert np.allclose(a.steps.q, [r["q"] for r in slow["steps"]]) and np.allclose(a.steps.mtm, [r["mtm"] for r in slow["steps"]], atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(runs())
def test_exact_in_fractions(run):
    fills, mids, q0, cash0 = run
    exact = attribute_slow([(r.step, r.side, *map(Fraction, (r.price, r.qty, r.mid, r.fee))) for r in fills.itertuples()],
                           [Fraction(m) for m in mids], q0=Fraction(q0), cash0=Fraction(cash0))
    assert exact["residual"] == 0


@settings(max_examples=60, deadline=None)
@given(runs(), st.integers(1, 5))
def test_adverse_selection_is_inside_inventory_pnl(run, h):
    fills, mids, q0, cash0 = run
    a, parts = attribute(fills, mids, q0=q0, cash0=cash0), carve_out(fills, mids, horizons=[h], q0=q0)
    if len(fills):
        assert abs(parts.inventory_pnl.iloc[0] - a.inventory_pnl) <= 1e-9 * (a.turnover + abs(q0) * 105 + 1)
        table = markouts(fills, mids, horizons=[h])
        assert adverse_selection(table).cost.iloc[0] == pytest.approx(-table.markout_pnl.sum(), abs=1e-9)
        assert np.allclose(table.realized_spread, table.spread_capture + table.markout_pnl, equal_nan=True)
        assert censored(table).iloc[0] == (fills.step + h >= len(mids)).sum()


@settings(max_examples=40, deadline=None)
@given(runs(), st.integers(0, 19), st.integers(0, 2**32 - 1))
def test_steps_do_not_look_ahead(run, cut, seed):
    "Scramble every mid after a step: what was booked before it stays."
    fills, mids, q0, cash0 = run
    cut = min(cut, len(mids) - 1)
    other = mids.copy()
    other[cut + 1:] = np.random.default_rng(seed).normal(100, 5, len(mids) - cut - 1)
    a, b = (attribute(fills, m, q0=q0, cash0=cash0).steps for m in (mids, other))
    pd.testing.assert_frame_equal(a[["t", "mid", "q", "cash", "mtm", "spread_capture", "fees"]][:cut + 1],
                                  b[["t", "mid", "q", "cash", "mtm", "spread_capture", "fees"]][:cut + 1])
    assert np.array_equal(a.inventory_pnl[:cut], b.inventory_pnl[:cut])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_oracles(case):
    i, want = case["inputs"], case["expected"]
    f = lambda s: float(Fraction(s))
    fills = pd.DataFrame([(int(t), 1 if side == "buy" else -1, f(p), f(v), f(v) * f(i["fee_per_unit"]))
                          for t, rows in i["fills"].items() for side, p, v in rows], columns=["step", "side", "price", "qty", "fee"])
    mids = [f(m) for m in i["mids"]]
    a = attribute(fills, np.array(mids), q0=f(i["q0"]), cash0=f(i["cash0"]))
    for key, got in (("final_cash", a.final_cash), ("final_q", a.final_q), ("total_pnl", a.total), ("spread_capture", a.spread_capture),
                     ("inventory_pnl", a.inventory_pnl), ("fees", a.fees), ("identity_residual", a.residual)):
        assert got == pytest.approx(f(want[key]), abs=1e-9), key
    for row, got in zip(want["steps"], a.steps.itertuples(), strict=True):
        for key, name in (("mid", "mid"), ("q", "q"), ("cash", "cash"), ("mtm", "mtm"), ("spread_capture_t", "spread_capture"), ("inventory_pnl_t_to_t1", "inventory_pnl")):
            assert getattr(got, name) == pytest.approx(f(row[key]), abs=1e-9)
    table = markouts(fills, mids, horizons=[1, 2])
    for h in (1, 2):
        part = table[table.horizon == h]
        for row, got in zip(want["markouts"][str(h)], part.itertuples(), strict=True):
            for key in ("markout_pnl", "realized_spread"):
                value = getattr(got, key)
                assert math.isnan(value) if row[key] is None else value == pytest.approx(f(row[key]), abs=1e-9)
        assert adverse_selection(table).cost[h] == pytest.approx(f(want["adverse_selection_cost"][str(h)]), abs=1e-9)
        assert censored(table)[h] == want["censored_fills"][str(h)]


def quiet_path(days=1, n=100, every="60s", start="2026-03-02 14:30"):
    time = pd.DatetimeIndex(np.concatenate([pd.date_range(pd.Timestamp(start, tz="UTC") + pd.Timedelta(d, "D"), periods=n, freq=every) for d in range(days)]))
    path = pd.DataFrame({"time": time, "step": np.arange(days * n), "mid": 100.0, "quote_bid": 99.0, "quote_ask": 101.0, "inventory": 0.0, "cash": 0.0})
    return path.assign(time=path.time.dt.tz_convert("UTC") if path.time.dt.tz else path.time.dt.tz_localize("UTC"))


NO_FILLS = pd.DataFrame({"step": np.array([], dtype="int64"), "side": np.array([], dtype="int64"), "price": [], "qty": [], "mid": [], "fee": []})


def test_one_row_path_is_scored():
    path = quiet_path(n=1)
    table = summarise(path, NO_FILLS)
    assert table.value["net_pnl"] == 0 and table.note["sharpe"].startswith("n/a") and inventory_stats(path)["max_abs"] == 0


@pytest.mark.parametrize("days", [1, 2])
def test_sharpe_only_from_two_days(days):
    path = quiet_path(days=days)
    path["cash"] = np.random.default_rng(1).normal(size=len(path)).cumsum()
    s = sharpe(path)
    assert math.isnan(s.value) == (days < 2) and s.bars == len(path) and (("n/a" in s.note) == (days < 2))
    if days == 2:
        x = bar_pnl(path)
        assert s.value == pytest.approx(x.mean() / x.std(ddof=1) * math.sqrt(100 * 252))


def test_overnight_position_does_not_count_in_inventory_mean():
    path = quiet_path(days=2, n=2)
    path["inventory"] = [0.0, 100.0, 100.0, 0.0]  # 100 held through the night and for the last minute
    assert inventory_stats(path)["mean"] == 50


@settings(max_examples=60, deadline=None)
@given(st.lists(number, min_size=1, max_size=60))
def test_drawdown_against_brute_force(cash):
    path = quiet_path(n=len(cash)).assign(cash=cash)
    x = [0.0, *cash]
    brute = max(max(x[:j + 1]) - x[j] for j in range(len(x)))
    got = max_drawdown(path)
    assert got.value == pytest.approx(brute, abs=1e-12) and got.peak <= got.trough


def test_opening_wealth_is_not_profit():
    path = quiet_path(n=3).assign(inventory=5.0, cash=70.0)
    assert equity(path, q0=5, cash0=70).abs().max() == 0 and profit_factor(path, q0=5, cash0=70) != profit_factor(path, q0=5, cash0=70)


def test_fill_ratio_counts_quoted_sides():
    path = quiet_path(n=4)
    path.loc[0, "quote_bid"] = np.nan
    fills = pd.DataFrame({"step": [1, 1, 2], "side": [1, 1, -1]})
    assert fill_ratio(path, fills) == pytest.approx(2 / 7)


def test_mark_of_a_trade_is_strictly_before_it():
    time = pd.date_range("2026-03-02 14:30", periods=3, freq="s", tz="UTC")
    mid = pd.Series([100.0, 90.0, 90.0], index=time)  # the trade at 1 s pushed the mid to 90 in the same instant
    fill = pd.DataFrame({"time": [time[1]], "side": [1], "price": [99.0], "qty": [1.0]})
    row = markouts_by_time(fill, mid, horizons_s=[1]).iloc[0]
    assert (row["mark"], row.spread_capture, row.markout_pnl) == (100, 1, -10)
    with pytest.raises(DataError, match="row 0"):
        markouts_by_time(fill.assign(time=time[0]), mid, horizons_s=[1])


def test_markouts_by_time_take_the_last_mid_not_a_later_one():
    time = pd.to_datetime(["2026-03-02 14:30:00", "2026-03-02 14:30:02", "2026-03-02 14:30:09"], utc=True)
    mid = pd.Series([100.0, 101.0, 200.0], index=time)
    fill = pd.DataFrame({"time": [time[0]], "side": [1], "price": [99.0], "qty": [1.0], "mid": [100.0]})
    assert markouts_by_time(fill, mid, horizons_s=[1, 2, 8.9, 9, 9.1]).markout_pnl.tolist()[:4] == [0, 1, 1, 100]
    assert censored(markouts_by_time(fill, mid, horizons_s=[9, 9.1])).tolist() == [0, 1]


@pytest.mark.parametrize("change, message", [
    (dict(side=[2, 1]), "side"), (dict(price=[np.nan, 1]), "row 0"), (dict(qty=[1, 0]), "row 1"), (dict(qty=[1, np.inf]), "row 1"),
    (dict(fee=[0, np.nan]), "fee"), (dict(step=[0, 5]), "0 to 1"), (dict(step=[1, 0]), "sort"), (dict(step=[0, 0.5]), "whole"), (dict(step=[-1, 0]), "row 0")])
def test_bad_fills_are_named(change, message):
    good = pd.DataFrame({"step": [0, 1], "side": [1, -1], "price": [1.0, 1.0], "qty": [1.0, 1.0], "fee": [0.0, 0.0]})
    attribute(good, [1.0, 2.0])
    with pytest.raises(DataError, match=message):
        attribute(good.assign(**change), [1.0, 2.0])


def test_bad_mids_and_horizons():
    fills = pd.DataFrame({"step": [0], "side": [1], "price": [1.0], "qty": [1.0]})
    for mids in ([], [1.0, np.nan], [1.0, np.inf]):
        with pytest.raises(DataError):
            attribute(fills, mids)
    for horizons in ([], [0], [-1], [1, 1]):
        with pytest.raises(ParameterError, match="horizons"):
            markouts(fills, [1.0, 2.0], horizons=horizons)
    with pytest.raises(ParameterError, match="level"):
        adverse_selection(markouts(fills, [1.0, 2.0], horizons=[1]), level=95)


def test_single_step_bootstrap_is_the_textbook_error():
    x = np.random.default_rng(3).normal(size=1000)
    r = block_bootstrap(x, block=1, n=2000, rng=np.random.default_rng(4))
    assert (r.hi - r.lo) / 3.92 == pytest.approx(x.std() / math.sqrt(1000), rel=0.1)  # 2000 resamples: 1.6 % noise, 4 of them and a rest


def test_circular_and_stationary_agree():
    x = np.convolve(np.random.default_rng(5).normal(size=2010), np.ones(11))[5:2005]
    a, b = (block_bootstrap(x, block=60, n=1500, kind=k, rng=np.random.default_rng(6)) for k in ("stationary", "circular"))
    assert (a.hi - a.lo) == pytest.approx(b.hi - b.lo, rel=0.15) and b.block == 60


def test_constant_series_has_a_point_interval():
    r = pnl_interval(np.full(50, 2.0), rng=np.random.default_rng(0))
    assert (r.estimate, r.lo, r.hi, r.block) == (100, 100, 100, 1) and optimal_block(np.zeros(50)) == 1


def test_days_become_blocks_at_five():
    x, rng = np.random.default_rng(1).normal(size=600), np.random.default_rng(2)
    assert "days resampled" in pnl_interval(x, days=np.repeat(np.arange(6), 100), rng=rng).method
    few = pnl_interval(x, days=np.repeat(np.arange(3), 200), rng=rng)
    assert "3 days are too few" in few.method and few.n == 600
    with pytest.raises(ParameterError, match="days"):
        pnl_interval(x, days=np.arange(5), rng=rng)


def test_variants_widen_and_mean_scales():
    x = np.random.default_rng(1).normal(size=800)
    one, many = (pnl_interval(x, variants=v, n=2000, rng=np.random.default_rng(2)) for v in (1, 50))
    assert many.hi - many.lo > 1.3 * (one.hi - one.lo) and "50 variants" in many.method and many.n_boot >= 6000
    mean = pnl_interval(x, stat="mean", rng=np.random.default_rng(2))
    assert mean.estimate == pytest.approx(x.mean()) and bonferroni_level(0.95, 5) == pytest.approx(0.99)


def test_difference_with_itself_is_zero():
    x = pd.Series(np.random.default_rng(1).normal(size=100))
    r = paired_difference(x, x, rng=np.random.default_rng(2))
    assert (r.estimate, r.lo, r.hi) == (0, 0, 0)


def test_few_days_get_student_wide_intervals():
    "Five days: the expanded interval covers about 90 %, and more than the plain percentile one."
    rng = np.random.default_rng(8)
    days = np.arange(5)
    hits = np.mean([[pnl_interval(x, days=days, n=99, rng=rng).contains(0), block_bootstrap(x, "total", block=1, n=999, width="percentile", rng=rng).contains(0)]
                    for x in rng.normal(size=(80, 5))], axis=0)
    assert hits[0] > 0.78 and hits[0] > hits[1]  # measured 0.90 over 300 sets; less four binomial standard errors of 80
    assert expanded_level(0.95, 10_000) == pytest.approx(0.95, abs=1e-3)


def test_a_marked_fill_before_the_tape_borrows_no_mid():
    mid = pd.Series([100.0, 101.0, 102.0], index=pd.date_range("2026-03-02 14:30", periods=3, freq="10s", tz="UTC"))
    early = pd.DataFrame({"time": [mid.index[0] - pd.Timedelta("60s")], "side": 1, "price": 99.0, "qty": 1.0, "mid": 100.0})
    table = markouts_by_time(early, mid, horizons_s=[5, 65])
    assert np.isnan(table.markout_pnl[0]) and table.markout_pnl[1] == 0.0


def test_nights_are_not_drawn():
    import matplotlib.pyplot as plt
    times = pd.DatetimeIndex([t for d in ("2026-03-02", "2026-03-03", "2026-03-04") for t in pd.date_range(f"{d} 14:30", periods=7000, freq="s", tz="UTC")])
    fig, ax = plt.subplots()
    y = np.asarray(tape_sessions(ax, pd.Series(np.arange(21_000.0), index=times)).lines[-1].get_ydata())
    assert np.isnan(y).sum() == 2
    for i, first in zip(np.flatnonzero(np.isnan(y)), (7000, 14_000), strict=True):
        assert first - 30 < y[i - 1] < first <= y[i + 1] < first + 30  # thinning may drop a session's last rows
    y = np.asarray(tape_sessions(ax, pd.Series(np.arange(7000.0), index=times[:7000])).lines[-1].get_ydata())
    assert not np.isnan(y).any()
    plt.close(fig)


def test_paths_with_bad_rows_are_refused():
    time = pd.date_range("2026-03-02 14:30", periods=3, freq="s", tz="UTC")
    path = pd.DataFrame({"time": time, "mid": 100.0, "inventory": 1.0, "cash": 0.0})
    with pytest.raises(DataError, match="path.mid.*row 1: inf"):
        equity(path.assign(mid=[100.0, np.inf, 100.0]))
    with pytest.raises(DataError, match="backwards|sort the rows"):
        bar_pnl(path.iloc[[1, 0, 2]])
    assert bar_pnl(path.assign(cash=-100.0), bar_s=1e-12).tolist() == [0.0, 0.0, 0.0]  # bars of a nanosecond at least


@pytest.mark.parametrize("call, error, words", [
    (lambda g: pnl_interval(np.arange(9.0), level=1.0, rng=g), ParameterError, "level = 1.0"),
    (lambda g: pnl_interval(np.arange(9.0), variants=math.nan, rng=g), ParameterError, "variants"),
    (lambda g: pnl_interval(np.arange(9.0), days=[1, 2, 3, 4, 5, 6, 7, 8, math.nan], rng=g), DataError, "row 8"),
    (lambda g: block_bootstrap(np.zeros((9, 2)), "ratio", rng=g), DataError, "sums to 0"),
    (lambda g: block_bootstrap(np.eye(50)[:, [0, 0]], "ratio", rng=g), DataError, "not finite in"),
    (lambda g: block_bootstrap(["a", "b"], rng=g), DataError, "not a table of numbers"),
    (lambda g: expanded_level(0.95, 1), ParameterError, "m = 1"),
])
def test_meaningless_intervals_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(np.random.default_rng(0))


def test_an_interval_says_when_its_tails_are_too_thin():
    x = np.random.default_rng(0).normal(size=60)
    assert "TOO FEW" in pnl_interval(x, variants=10_000, rng=np.random.default_rng(1)).method
    assert "TOO FEW" not in pnl_interval(x, variants=100, rng=np.random.default_rng(1)).method
