"Coverage of every interval of the two volatility pages, on synthetic sessions with known truth."
import math

import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure

from makerlab.data.synth import make_tape
from makerlab.features import robust_volatility as rv
from makerlab.features import volatility as v
from makerlab.features.microprice import mid

pytestmark = pytest.mark.slow

SIGMA, OMEGA, TICK, N = 0.003, 0.004, 0.01, 4000
CLOCK = pd.date_range("2026-03-02 14:30", periods=23_401, freq="s", tz="UTC")
METHODS = (rv.two_scale, rv.realised_kernel, rv.pre_averaging)
U = np.sqrt(0.5 + 1.5 * np.linspace(-1, 1, N) ** 2)
U /= np.sqrt(np.mean(U**2))


def efficient(rng: np.random.Generator, shape: np.ndarray | float = 1.0) -> np.ndarray:
    return 25 + SIGMA * np.r_[0, np.cumsum(shape * rng.normal(size=N))]


def ends(fit: rv.RobustVol, name: str) -> tuple[float, float]:
    row = fit.conf_int().loc[name]
    return float(row.lower), float(row.upper)


def robust(x: np.ndarray, noise_var: float | None, **options) -> list[tuple[float, float, float]]:
    "Intervals of sigma, and of the noise variance where its truth is known, of the three methods."
    out = []
    for f in METHODS:
        fit = f(pd.Series(x, index=CLOCK[: len(x)]), **options)
        out.append((*ends(fit, "sigma"), SIGMA))
        if noise_var is not None:
            out.append((*ends(fit, "noise_var"), noise_var))
    return out


BOTH = [f"{f.__name__} {p}" for f in METHODS for p in ("sigma", "noise")]
ONE = [f"{f.__name__} sigma" for f in METHODS]


@pytest.mark.parametrize("kind", ["no noise", "gaussian noise, U-shaped day", "laplace noise", "two-point noise", "gaussian noise and rounding"])
def test_robust_volatility(kind):
    def one(rng):
        if kind == "no noise":
            return robust(efficient(rng), 0.0)
        if kind.startswith("gaussian noise, U"):
            return robust(efficient(rng, U) + OMEGA * rng.normal(size=N + 1), OMEGA**2)
        if kind.startswith("laplace"):
            return robust(efficient(rng) + rng.laplace(0, OMEGA / math.sqrt(2), N + 1), OMEGA**2)
        if kind.startswith("two-point"):
            return robust(efficient(rng) + OMEGA * rng.choice([-1.0, 1.0], N + 1), OMEGA**2)
        return robust(np.round((efficient(rng) + OMEGA * rng.normal(size=N + 1)) / TICK) * TICK, OMEGA**2 + TICK**2 / 12)

    measure(f"robust volatility, {kind}", one, n=400, names=BOTH)


def test_robust_volatility_of_rounded_prices_with_memory():
    measure("robust volatility, rounding alone, dependence 30",
            lambda rng: robust(np.round(efficient(rng) / TICK) * TICK, None, dependence=30), n=400, names=ONE)


def test_robust_volatility_of_a_tick_by_tick_mid():
    def one(rng):
        tape = make_tape(rng=rng, seconds=N, mid0=25.0, sigma=SIGMA, A=0.3, k=180.0, ofi_drift=0.0, informed=0.0, spread_ticks={1: 1.0}, size_rate=0.05)
        return [(*ends(f(mid(tape.quotes), every_s=2.0), "sigma"), SIGMA) for f in METHODS]

    measure("robust volatility, mid of a tick tape", one, n=400, names=ONE)


def test_signature():
    lags = (1, 10, 60, 300)

    def one(rng):
        s = v.signature(pd.Series(25 + SIGMA * np.cumsum(rng.normal(size=23_401)), index=CLOCK), lags_s=lags)
        return [(row.lower, row.upper, SIGMA) for row in s.itertuples()]

    measure("signature plot", one, n=400, names=[f"{lag} s" for lag in lags])


def test_time_of_day_profile():
    days, step, every = 10, 13 * 60, 30.0
    opens = pd.bdate_range("2026-03-02", periods=days, tz="America/New_York") + pd.Timedelta("9h30min")
    index = pd.DatetimeIndex(np.concatenate([pd.date_range(o.tz_convert("UTC"), periods=step + 1, freq="30s").to_numpy() for o in opens]), tz="UTC")
    shape = np.sqrt(0.5 + 1.5 * np.linspace(-1, 1, 13) ** 2)
    shape /= np.sqrt(np.mean(shape**2))

    def one(rng):
        level = SIGMA * np.exp(0.3 * rng.normal(size=days))
        parts = [np.r_[25.0, 25 + np.cumsum(s * math.sqrt(every) * np.repeat(shape, 60) * rng.normal(size=step))] for s in level]
        ci = v.diurnal_profile(pd.Series(np.concatenate(parts), index=index), every_s=every).conf_int()
        return [(a, b, f) for a, b, f in zip(ci.lower, ci.upper, shape, strict=True)]

    measure("time-of-day factor", one, n=400, names=[f"bin {b}" for b in range(13)])
