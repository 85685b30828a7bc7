"How often do the intervals of `fit_epsilon` hold the truth?"
import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure

from makerlab.models.cartea_jaimungal import fit_epsilon

pytestmark = pytest.mark.slow
START = pd.Timestamp("2026-03-02 14:30", tz="UTC")


def tape(rng, *, rates, eps, horizon, sigma=0.01, seconds=7200.0, share=0.5):
    "Markouts of the model's own market: Poisson orders that move the mid, Brownian noise, half of the orders meet us."
    n = rng.poisson(sum(rates) * seconds)
    t, buy = np.sort(rng.uniform(0, seconds, n)), rng.random(n) < rates[0] / sum(rates)
    jumps = np.r_[0.0, np.cumsum(np.where(buy, eps[0], -eps[1]))]
    noise = np.r_[0.0, np.cumsum(rng.standard_normal(int(seconds / 0.05) + 2000) * sigma * 0.05**0.5)]
    mine = np.flatnonzero((rng.random(n) < share) & (t < seconds - horizon))
    later = t[mine] + horizon
    move = jumps[np.searchsorted(t, later, side="right")] - jumps[mine] + noise[(later / 0.05).astype(int)] - noise[(t[mine] / 0.05).astype(int)]
    side = np.where(buy[mine], -1, 1)
    return pd.DataFrame({"time": START + pd.to_timedelta((t[mine] * 1e9).astype("int64"), unit="ns"), "horizon": horizon, "side": side,
                         "qty": 100.0, "markout_pnl": side * move * 100.0})


@pytest.mark.parametrize(("label", "rates", "eps", "horizon"), [
    ("short horizon", (0.4, 0.4), (0.004, 0.004), 1.0),
    ("unbalanced, 5 s", (0.5, 0.3), (0.004, 0.006), 5.0),
    ("long horizon, 30 s", (0.3, 0.2), (0.003, 0.003), 30.0)])
def test_coverage(label, rates, eps, horizon):
    def one(rng):
        fit = fit_epsilon(tape(rng, rates=rates, eps=eps, horizon=horizon), rate_buy=rates[0], rate_sell=rates[1])
        return [(*row, truth) for row, truth in zip(fit.conf_int().to_numpy(), eps, strict=True)]

    measure(f"epsilon: {label}", one, n=600, names=["eps_buy", "eps_sell"])


def test_coverage_without_rates():
    "Balanced flow: no correction is needed."
    def one(rng):
        fit = fit_epsilon(tape(rng, rates=(0.4, 0.4), eps=(0.004, 0.004), horizon=3.0))
        return [(*row, 0.004) for row in fit.conf_int().to_numpy()]

    measure("epsilon: no rates given", one, n=600, names=["eps_buy", "eps_sell"])
