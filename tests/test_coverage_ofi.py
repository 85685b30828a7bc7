"How often the intervals of the impact slope and of the depth law hold the truth."
import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure
from scipy.signal import lfilter

from makerlab.features.ofi import ofi_buckets, ofi_regression, stylised_book
from makerlab.features.price_impact import depth_law, impact_by_window

pytestmark = pytest.mark.slow


def flow(rng, n: int, rho: float) -> pd.DataFrame:
    "A day of buckets: busier at both ends, heavy-tailed, flow and error autocorrelated, the error larger where the flow is."
    busy = 1 + 1.5 * (2 * np.arange(n) / n - 1) ** 2
    x, e = lfilter([1], [1, -rho], rng.standard_t(5, (2, n)), axis=1)
    return pd.DataFrame({"ofi": x * busy, "dmid": 0.5 * x * busy + e * busy * np.sqrt(0.5 + 0.5 * np.minimum(x**2 / 2, 2))})


@pytest.mark.parametrize("n, rho", [(180, 0.2), (390, 0.2), (2340, 0.2), (2340, 0.4)])
def test_hac_slope(n, rho):
    def one(rng):
        return (*ofi_regression(flow(rng, n, rho)).conf_int().loc["beta"], 0.5)
    measure(f"OFI impact slope (HAC), {n} buckets, autocorrelation {rho}", one, n=1000)


def test_strong_autocorrelation_in_a_short_day_is_the_limit():
    "Page 21 says that the interval falls to about 91 % here."
    rng = np.random.default_rng(20240501)
    ends = [ofi_regression(flow(rng, 180, 0.5)).conf_int().loc["beta"] for _ in range(1500)]
    assert abs(np.mean([low <= 0.5 <= high for low, high in ends]) - 0.91) < 0.03  # four standard errors of 0.0074


def test_slope_of_the_stylised_book():
    def one(rng):
        return (*ofi_regression(ofi_buckets(stylised_book(5, n=24_000, tick=0.01, rng=rng), every_s=10)).conf_int().loc["beta"], 0.001)
    measure("OFI impact slope (HAC), stylised book of depth 5", one, n=400)


@pytest.mark.parametrize("n", [13, 40])
def test_depth_law(n):
    "Windows of unequal noise: the errors are larger where depth is larger, as in a book."
    def one(rng):
        depth = np.exp(rng.uniform(5, 7, n))
        beta = 0.45 / depth**0.98 * np.exp(0.15 * (depth / depth.mean()) ** 0.5 * rng.standard_t(6, n))
        fit = depth_law(pd.DataFrame({"depth": depth, "beta": beta}))
        ends = fit.conf_int()
        return [(*ends.loc["lambda"], 0.98), (*ends.loc["c"], 0.45)]
    measure(f"depth law, {n} windows", one, n=2000, names=["lambda", "c"])


def test_depth_law_from_quotes():
    "The whole way: a day of thirteen stylised half hours, quotes, buckets, windows, law; lambda in the true depth is 1 and c is one half."
    depths = np.rint(np.geomspace(3, 12, 13)).astype(int)

    def one(rng):
        days = pd.bdate_range("2026-03-02 14:30", periods=len(depths), tz="UTC")
        q = pd.concat([stylised_book(int(d), n=6000, tick=0.01, rng=rng, start=s, every_s=0.1) for d, s in zip(depths, days, strict=True)], ignore_index=True)
        fit = depth_law(impact_by_window(q, window_s=600, every_s=10, tick=0.01).assign(depth=depths))
        ends = fit.conf_int()
        return [(*ends.loc["lambda"], 1.0), (*ends.loc["c"], 0.5)]
    measure("depth law from a day of the stylised book", one, n=400, names=["lambda", "c"])
