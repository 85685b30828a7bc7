"Almgren-Chriss schedules over random worlds: the optimum is the optimum, sums are kept, and the day's volume is not looked at."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, PriceVol
from makerlab.models.impact import almgren_chriss, efficient_frontier, schedule_cost, simulate_cost, twap, volume_profile, vwap, whole_lots

positive = st.floats(1e-3, 1e3)


@settings(max_examples=60, deadline=None)
@given(quantity=st.floats(-1e5, 1e5), horizon=positive, n=st.integers(1, 40), sigma=st.floats(1e-3, 10), temporary=positive, share=st.floats(0, 0.9),
       aversion=st.floats(0, 1e3))
@example(quantity=1.0, horizon=64.0, n=1, sigma=0.00390625, temporary=15.0, share=0.0, aversion=14.5)  # once began with 1.0000000000000002
def test_no_other_schedule_is_better(quantity, horizon, n, sigma, temporary, share, aversion):
    permanent = share * 2 * temporary * n / horizon  # keeps eta_tilde above zero
    costs = {"sigma": sigma, "temporary": temporary, "permanent": permanent}
    best = almgren_chriss(quantity, horizon=horizon, n_steps=n, risk_aversion=aversion, **costs)
    assert best.holdings[0] == quantity and best.holdings[-1] == 0 and math.isclose(best.trades.sum(), quantity, abs_tol=1e-6)
    value = best.expected_cost + aversion * best.variance
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = best.trades + rng.normal(0, abs(quantity) * 0.1 + 1e-9, n)
        other[-1] += quantity - other.sum()
        cost, var = schedule_cost(other, step=horizon / n, **costs)
        assert cost + aversion * var >= value - 1e-9 * abs(value) - 1e-9


def test_a_random_schedule_costs_what_its_moments_say():
    rng = np.random.default_rng(5)
    trades = rng.normal(10, 30, 12)
    costs = {"sigma": PriceVol(0.2), "temporary": 0.03, "permanent": 0.01, "fixed": 0.005}
    mean, var = schedule_cost(trades, step=0.5, **costs)
    drawn = simulate_cost(trades, step=0.5, n_paths=60_000, rng=rng, **costs)
    assert abs(drawn.mean() - mean) < 4 * math.sqrt(var / len(drawn))
    assert abs(drawn.var() / var - 1) < 4 * math.sqrt(2 / len(drawn))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30), st.sampled_from([1.0, 10.0, 100.0]))
def test_lots_keep_the_sum(trades, lot):
    got = whole_lots(np.array(trades), lot=lot)
    assert math.isclose(got.sum(), sum(trades), abs_tol=1e-6)
    assert np.allclose(got[:-1] / lot, np.round(got[:-1] / lot), atol=1e-9)
    one_way = min(trades) >= 0 or max(trades) <= 0
    assert np.abs(np.cumsum(got) - np.cumsum(trades)).max() <= (lot if one_way else lot / 2) + 1e-6


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=30), st.sampled_from([1.0, 10.0, 100.0]), st.sampled_from([1, -1]))
def test_lots_of_a_sale_never_buy_back(trades, lot, sign):
    assert (sign * whole_lots(sign * np.array(trades), lot=lot) >= -1e-9).all()
    assert whole_lots(np.array([60.0, 10.0]) * sign, lot=100.0).tolist() == [0.0, 70.0 * sign]


def test_frontier_rows_are_schedules():
    costs = {"horizon": 5.0, "n_steps": 5, "sigma": 0.95, "temporary": 2.5e-6}
    got = efficient_frontier(1e6, risk_aversions=[0.0, 1e-6], **costs)
    for row in got.itertuples():
        one = almgren_chriss(1e6, risk_aversion=row.risk_aversion, **costs)
        assert (row.expected_cost, row.standard_deviation, row.half_life) == (one.expected_cost, math.sqrt(one.variance), one.half_life)
    assert got["half_life"].iloc[0] == math.inf and got["expected_cost"].is_monotonic_increasing and got["standard_deviation"].is_monotonic_decreasing


def test_twap_is_the_limit_of_no_aversion_and_vwap_of_a_flat_profile():
    costs = {"sigma": 1.0, "temporary": 0.1}
    calm = almgren_chriss(500, horizon=10, n_steps=8, **costs)
    flat = vwap(500, profile=np.full(8, 3.0), horizon=10, costs=costs)
    even = twap(500, horizon=10, n_steps=8, costs=costs)
    for other in (flat, even):
        np.testing.assert_allclose(other.holdings, calm.holdings, atol=1e-9)
        assert math.isclose(other.expected_cost, calm.expected_cost, rel_tol=1e-12) and math.isclose(other.variance, calm.variance, rel_tol=1e-12)
    assert math.isnan(twap(500, horizon=10, n_steps=8).expected_cost), "a schedule that was not priced has no cost"


def tape(days: int, seconds: list[int], sizes: list[float]) -> pd.DataFrame:
    open_ = pd.Timestamp("2026-03-02 09:30", tz="America/New_York")
    rows = [(open_ + pd.Timedelta(days=d, seconds=s), v) for d in range(days) for s, v in zip(seconds, sizes, strict=True)]
    return pd.DataFrame(rows, columns=["time", "size"]).assign(time=lambda f: f["time"].dt.tz_convert("UTC"))


def test_volume_profile_counts_each_day_the_same():
    quiet, loud = tape(1, [0, 1799, 1800], [1, 1, 2]), tape(2, [0, 1800], [3000, 1000]).iloc[2:]
    got = volume_profile(pd.concat([quiet, loud]), every_s=1800, tz="America/New_York")
    assert len(got) == 13 and math.isclose(got.sum(), 1.0)
    assert got.iloc[:2].tolist() == [(0.5 + 0.75) / 2, (0.5 + 0.25) / 2]


def test_refusals_name_what_and_why():
    with pytest.raises(DataError, match="zone"):
        volume_profile(tape(1, [0], [1]), every_s=60, tz="Asia/Tokyo")
    with pytest.raises(ParameterError, match="lot"):
        whole_lots(np.ones(3), lot=0)
    with pytest.raises(ParameterError, match="temporary"):
        schedule_cost([1.0], step=1.0, sigma=1.0, temporary=0.0)
    for sizes in ([0.0], [math.nan], [-1.0]):
        with pytest.raises(DataError, match="size|volume"):
            volume_profile(tape(1, [0], sizes), every_s=60, tz="America/New_York")
    with pytest.raises(DataError, match="missing column size"):
        volume_profile(tape(1, [0], [1])[["time"]], every_s=60, tz="America/New_York")
    for n in (0, 2.5, math.inf, "5", True):
        for call in (twap, lambda q, **kw: almgren_chriss(q, sigma=1.0, temporary=0.1, **kw)):
            with pytest.raises(ParameterError, match="n_steps = "):
                call(100, horizon=1.0, n_steps=n)
    with pytest.raises(ParameterError, match="sigma = "):
        almgren_chriss(100, horizon=1.0, n_steps=2, temporary=0.1, sigma=pd.Series([0.1, 0.2]))
    for bad in (dict(step=-1.0), dict(n_paths=0)):
        with pytest.raises(ParameterError, match=f"{next(iter(bad))} = "):
            simulate_cost([1.0], **{**dict(step=1.0, n_paths=2, sigma=1.0, temporary=1.0, rng=np.random.default_rng(0)), **bad})
    for trades in ([], [1.0, math.nan], np.ones((2, 2))):
        with pytest.raises(DataError, match="trades = "):
            whole_lots(trades, lot=1.0)
    with pytest.raises(DataError, match="finite"):
        schedule_cost([1.0, math.nan], step=1.0, sigma=1.0, temporary=1.0)
