"How often the micro-price's bands and the intervals of its skill hold the truth."
import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure

from makerlab.features.microprice import MicropriceModel, microprice_adjustment, price_skill, simulate_chain, weighted_mid
from test_microprice import world

pytestmark = pytest.mark.slow
LEAN = (np.arange(5) - 2) / 2
STATES = [0, 1]  # the other two are their mirror images, the middle one is zero


def chain() -> dict:
    return world(np.random.default_rng(0), n=2)[1]


TRUE = microprice_adjustment(**chain()).G_star


def bands(rng, n_boot: int | None):
    q, _ = world(rng, n=10_000)
    fit = MicropriceModel(q, n_imbalance=5, tick=0.01, block_s=250).fit(rng=None if n_boot is None else rng, n_boot=n_boot or 20)
    ends = fit.conf_int().to_numpy()
    return [(*ends[i], TRUE[i]) for i in STATES]


def test_bootstrap_bands():
    measure("micro-price: block-bootstrap band of G", lambda rng: bands(rng, 400), n=600, names=["heavy ask", "light ask"])


def test_sandwich_bands():
    measure("micro-price: block-sandwich band of G", lambda rng: bands(rng, None), n=600, names=["heavy ask", "light ask"])


def expected_skill(horizon: int, price: np.ndarray) -> tuple[float, float]:
    "Mean loss difference to the mid and skill, exactly: the joint law of state and mid after so many steps, by recursion on the moves."
    c = chain()
    S = len(price)
    share = c["R1"] / c["R1"].sum(axis=1, keepdims=True)
    P = c["Q"] + c["T"]
    r1 = c["R1"] @ c["K"]
    r2 = c["R1"] @ c["K"] ** 2
    step1 = (share @ c["K"])[:, None] * c["T"]  # E[move; next]: size and landing are independent given a move
    m1, m2 = np.zeros(S), np.zeros(S)  # E[sum of moves], E[square] after h steps, by state
    for _ in range(horizon):
        m1, m2 = r1 + P @ m1, r2 + 2 * step1 @ m1 + P @ m2
    pi = np.linalg.matrix_power(P, 10_000)[0]
    mid_loss, own = pi @ m2, pi @ (m2 - 2 * price * m1 + price**2)
    return mid_loss - own, 1 - own / mid_loss


def test_skill():
    lean = (np.arange(5) + 0.5) / 5 - 0.5
    gain, skill = expected_skill(10, 0.01 * lean)

    def one(rng):
        q, _ = world(rng, n=8000)
        row = price_skill(q, {"w": weighted_mid(q)}, horizons_s=[5], every_s=1, rng=rng).iloc[0]
        return [(row.lower, row.upper, gain), (row.skill_lower, row.skill_upper, skill)]
    measure("price skill", one, n=600, names=["loss difference", "skill"])


def test_the_exact_skill_is_the_simulated_one():
    states, moves = simulate_chain(**chain(), n=400_000, rng=np.random.default_rng(1), start=2)
    m = np.r_[0, np.cumsum(moves)]
    price = 0.01 * ((states + 0.5) / 5 - 0.5)
    change = m[10:] - m[:-10]
    gain = pd.Series(change**2 - (change - price[:-10]) ** 2)
    want, _ = expected_skill(10, 0.01 * ((np.arange(5) + 0.5) / 5 - 0.5))
    se = gain.groupby(np.arange(len(gain)) // 1000).mean().std() / np.sqrt(len(gain) / 1000)
    assert abs(gain.mean() - want) < 4 * se
