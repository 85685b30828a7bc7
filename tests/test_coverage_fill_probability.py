"The intervals of page 42: hazard and logistic coefficients, the share filled, the gain in Brier score, the edge given a fill."
import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure

from makerlab.calibration.fill_probability import FillHazard, LogisticFill, cluster_mean, fit_edge, simulate_orders
from makerlab.core import from_ns, to_ns

pytestmark = pytest.mark.slow
AGES, RATES, BETA = (0.0, 3.0, 15.0), (-4.0, -3.5, -3.2), {"distance_ticks": -0.8, "imbalance": 0.3}


def test_hazard():
    names = [*(f"log rate {i}" for i in range(3)), *BETA]

    def one(rng):
        fit = FillHazard(simulate_orders(1500, log_rates=RATES, beta=BETA, ages_s=AGES, rng=rng), features=tuple(BETA), by_age=(), ages_s=AGES).fit()
        return list(zip(fit.conf_int()["lower"], fit.conf_int()["upper"], [*RATES, *BETA.values()], strict=True))
    measure("fill hazard", one, n=500, names=names)


def test_logistic():
    def one(rng):
        x = rng.standard_normal(1500)
        hit = rng.uniform(size=x.size) < 1 / (1 + np.exp(0.5 - 0.7 * x))
        start = pd.Timestamp("2026-03-02 14:30", tz="UTC").as_unit("ns").value + (np.arange(x.size) * 20e9).astype(np.int64)
        orders = pd.DataFrame({"time": from_ns(start), "imbalance": x, "filled": hit, "duration_s": np.where(hit, 5.0, 10.0), "life_s": 10.0})
        ci = LogisticFill(orders, 10.0, features=("imbalance",)).fit().conf_int()
        return list(zip(ci["lower"], ci["upper"], (-0.5, 0.7), strict=True))
    measure("fill logistic", one, n=400, names=["log odds", "imbalance"])


def test_clustered_mean():
    def one(rng):
        groups = np.repeat(np.arange(78), 15)
        values = 0.3 + rng.standard_normal(78)[groups] * 0.4 + rng.standard_normal(groups.size)
        _, lo, hi = cluster_mean(values, groups)
        return lo, hi, 0.3
    measure("mean by blocks of time (share filled, Brier gain, edge given fill)", one, n=1000)


def test_edge_coefficients():
    def one(rng):
        n = 1200
        start = pd.Timestamp("2026-03-02 14:30", tz="UTC").as_unit("ns").value + (np.arange(n) * 20e9).astype(np.int64)
        x = rng.standard_normal(n)
        shock = rng.standard_normal(n // 15 + 1)[np.arange(n) // 15]
        edge = 0.01 + 0.004 * x + 0.01 * shock + 0.02 * rng.standard_normal(n)
        orders = pd.DataFrame({"time": from_ns(start), "side": 1, "price": 100.0, "filled": True, "duration_s": 1.0, "life_s": 10.0, "imbalance": x})
        stamps = np.sort(np.concatenate([to_ns(orders["time"]), to_ns(orders["time"]) + 5_000_000_000]))
        mids = np.repeat(100.0 + edge, 2)
        quotes = pd.DataFrame({"time": from_ns(np.append(stamps, stamps[-1] + 60_000_000_000)), "bid": np.append(mids, mids[-1]), "ask": np.append(mids, mids[-1]),
                               "bid_size": 1.0, "ask_size": 1.0})
        ci = fit_edge(orders, quotes=quotes, after_s=6.0, features=("imbalance",)).conf_int()
        return list(zip(ci["lower"], ci["upper"], (0.01, 0.004), strict=True))
    measure("edge given fill, regression", one, n=400, names=["edge", "imbalance"])
