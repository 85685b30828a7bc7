"How often do the intervals that the main job prints hold the truth? (Those of A, k, eps and the totals are measured on their own pages' files.)"
import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure
from scipy.signal import lfilter

from makerlab.backtest.pipeline import _flow_slope, median_interval, r2_interval
from makerlab.core import from_ns

pytestmark = pytest.mark.slow


def ar(rng, n, rho):
    "A stationary autoregression of variance one."
    e = rng.standard_normal(n + 200) * np.sqrt(1 - rho * rho)
    return lfilter([1.0], [1.0, -rho], e)[200:]


@pytest.mark.parametrize("rho, r2", [(0.0, 0.5), (0.3, 0.4), (0.6, 0.1), (0.0, 0.9)])
def test_r2_of_flow(rho, r2):
    "Buckets of a day; flow and noise each depend on their past, so that neighbours' products do, too."
    def one(rng):
        x, e = ar(rng, 2340, rho), ar(rng, 2340, rho)
        lo, hi = r2_interval(x, np.sqrt(r2) * x + np.sqrt(1 - r2) * e)
        return lo, hi, r2
    measure(f"pipeline: R2 of flow {r2}, dependence {rho}", one, n=600)


@pytest.mark.parametrize("spread, hours", [(0.0, 6.5), (0.3, 6.5), (0.0, 1.0)])
def test_median_volatility(spread, hours):
    "Rolling volatility of a minute; the level is constant, or moves with a memory of twenty minutes. The truth: the median over a very long tape."
    n, window, rng0 = int(3600 * hours), 60, np.random.default_rng(20261121)

    def rolling(rng, n):
        level = np.exp(spread * np.repeat(ar(rng, n // window + 2, 0.95), window))[: n + window]
        squares = (0.003 * level * rng.standard_normal(n + window)) ** 2
        total = np.concatenate([[0.0], np.cumsum(squares)])
        return np.sqrt((total[window:] - total[:-window])[1:] / window)

    truth = float(np.median(rolling(rng0, 2_000_000)))

    def one(rng):
        _, lo, hi = median_interval(rolling(rng, n), every=window)
        return lo, hi, truth
    measure(f"pipeline: median volatility, {hours:g} h, spread of its logarithm {spread:g}", one, n=600)


def test_the_slope_on_order_flow():
    "kappa of a day of seconds: the flow of the last ten seconds moves the mid in the next ten, windows overlapping."
    def one(rng):
        u, n = rng.standard_normal(6000), 6000
        flow = pd.Series(u).rolling(10).sum().to_numpy() / np.sqrt(10)
        moves = 0.01 * rng.standard_normal(n)
        moves[10:] += 0.001 * u[:-10]  # each unit of flow works ten seconds later
        start = pd.Timestamp("2026-03-02 14:30", tz="UTC").as_unit("ns").value
        table = pd.DataFrame({"time": from_ns(start + np.arange(n) * 1_000_000_000), "mid": 100 + np.cumsum(moves), "ofi_norm": flow})
        slope, se = _flow_slope(table, every_s=1.0, horizon_s=10.0)
        return slope - 1.96 * se, slope + 1.96 * se, 0.001 * np.sqrt(10)
    measure("slope on order flow (kappa)", one, n=500)
