"Coverage of every interval of the signals page, on planted signals with known truth and on signals that know nothing."
import math

import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure
from scipy import stats
from scipy.signal import lfilter

from makerlab.features.signals import evaluate, information_coefficient

pytestmark = pytest.mark.slow

SIGMA, H = 0.003, [1, 2, 5, 10, 20, 40]
CLOCK = pd.date_range("2026-03-02 14:30", periods=23_400, freq="s", tz="UTC")


def plant(rng: np.random.Generator, *, seconds: int, half_life: float, strength: float) -> tuple[pd.Series, pd.Series]:
    keep = 0.5 ** (1 / half_life)
    x = lfilter([math.sqrt(1 - keep**2)], [1, -keep], rng.normal(size=seconds), zi=[keep * rng.normal()])[0]
    m = 25 + SIGMA * np.r_[0, np.cumsum(strength * x[:-1] + rng.normal(size=seconds - 1))]
    return pd.Series(x, index=CLOCK[:seconds]), pd.Series(m, index=CLOCK[:seconds])


def truth(half_life: float, strength: float) -> tuple[np.ndarray, np.ndarray]:
    "Slope and IC by horizon, by summing the covariances of the drift."
    a = 0.5 ** (1 / half_life)
    slope = np.array([SIGMA * strength * sum(a**j for j in range(h)) for h in H])
    var = np.array([h + strength**2 * sum(a ** abs(i - j) for i in range(h) for j in range(h)) for h in H])
    return slope, slope / (SIGMA * np.sqrt(var))


def together(lower: np.ndarray, upper: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    "All intervals at once as one: the errors that all of them allow."
    return float(np.max(lower - true)), float(np.min(upper - true)), 0.0


@pytest.mark.parametrize(("half_life", "strength", "n"), [(10.0, 0.08, 600), (60.0, 0.05, 300)])
def test_planted_signal(half_life, strength, n):
    slope, ic = truth(half_life, strength)
    rank = 6 / np.pi * np.arcsin(ic / 2)  # of two normal variables
    pdf = stats.norm.pdf(np.r_[-np.inf, stats.norm.ppf(np.arange(1, 10) / 10), np.inf])
    tenth = 10 * (pdf[:-1] - pdf[1:])
    gain = SIGMA * strength / (1 - 0.5 ** (1 / half_life))

    def one(rng):
        r = evaluate(*plant(rng, seconds=9000, half_life=half_life, strength=strength), horizons_s=H, rng=rng, reps=299, turns=19)
        d, worth = r.decay, r.markouts[r.markouts.when == "half the difference"]
        rows = [*zip(r.ic.lower, r.ic.upper, ic), together(r.ic.lower_all, r.ic.upper_all, ic), *zip(r.rank_ic.lower, r.rank_ic.upper, rank),
                *zip(r.decile.lower, r.decile.upper, tenth * slope[3]), together(r.decile.lower_all, r.decile.upper_all, tenth * slope[3]),
                *zip(worth.lower, worth.upper, tenth[-1] * slope), *zip(d.table.lower, d.table.upper, slope),
                together(d.table.slice_lower_all, d.table.slice_upper_all, np.diff(slope, prepend=0))]
        return rows + ([(*d.gain_interval, gain), (*d.half_life_interval, half_life)] if half_life == 10 else [])

    names = ([f"IC {h} s" for h in H] + ["all ICs at once"] + [f"rank IC {h} s" for h in H] + [f"decile {g}" for g in range(1, 11)] + ["all deciles at once"]
             + [f"markout {h} s" for h in H] + [f"slope {h} s" for h in H] + ["all slices at once"] + (["gain", "half-life"] if half_life == 10 else []))
    measure(f"signal of half-life {half_life:g} s", one, n=n, names=names)


def test_signal_that_knows_nothing():
    zero = np.zeros(len(H))

    def one(rng):
        x, m = plant(rng, seconds=6000, half_life=30.0, strength=0.0)
        p, r = (information_coefficient(x, m, horizons_s=H, rng=rng, method=method, reps=399) for method in ("pearson", "rank"))
        return [together(p.lower_all, p.upper_all, zero), together(r.lower_all, r.upper_all, zero), (float(p.lower[5]), float(p.upper[5]), 0.0)]

    measure("signal that knows nothing", one, n=600, names=["all ICs at once", "all rank ICs at once", "IC 40 s"])
