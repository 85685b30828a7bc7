"Almgren-Chriss schedules over random worlds: the optimum is the optimum, sums are kept, and the day's volume is not looked at."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, PriceVol
from makerlab.models.impact import almgren_chriss, schedule_cost, simulate_cost, twap, volume_profile, vwap, whole_lots

positive = st.floats(1e-3, 1e3)


@settings(max_examples=60, deadline=None)
@given(quantity=st.floats(-1e5, 1e5), horizon=positive, n=st.integers(1, 40), sigma=st.floats(1e-3, 10), temporary=positive, share=st.floats(0, 0.9),
       aversion=st.floats(0, 1e3))
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
    assert np.abs(np.cumsum(got) - np.cumsum(trades)).max() <= lot / 2 + 1e-6


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
    with pytest.raises(DataError, match="finite"):
        schedule_cost([1.0, math.nan], step=1.0, sigma=1.0, temporary=1.0)
