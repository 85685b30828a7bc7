"What other packages get wrong, as regression tests: makerlab gives the right answer and not theirs (MATH, section 15)."
import math

import numpy as np
import pandas as pd
import pytest

from makerlab.calibration.intensity import IntensityModel
from makerlab.core import PriceVol
from makerlab.models.avellaneda_stoikov import base_depth, half_spread, optimal_quotes, reservation_price
from makerlab.models.cartea_jaimungal import solve_cj
from makerlab.models.glft import glft_closed_form, solve_glft, stationary_glft
from makerlab.models.quoting import STRATEGIES, QuoteParams
from makerlab.schema import new_state

DEMO = dict(kappa_ask=100.0, kappa_bid=100.0, phi=1e-4, alpha=1e-3, horizon_s=60.0, q_max=5)  # the package's demo
EPS = 0.01


def feedback_only(q: int, **rates: float) -> tuple[float, float]:
    "The published mistake: adverse selection added to the depths of an equation that does not know it."
    bid, ask = solve_cj(**rates, **DEMO).at(q)
    return ask + EPS, bid + EPS


@pytest.mark.parametrize(("q", "rate_buy", "rate_sell", "exact", "wrong"), [(3, 1.0, 1.0, (0.01298, 0.02969), (0.01565, 0.02627)),
                                                                            (0, 2.0, 1.0, (0.0576, -0.0157), (0.0242, 0.0173))])
def test_adverse_selection_is_in_the_equation_not_only_in_the_feedback(q, rate_buy, rate_sell, exact, wrong):
    rates = dict(rate_buy=rate_buy, rate_sell=rate_sell)
    bid, ask = solve_cj(**rates, eps_buy=EPS, eps_sell=EPS, **DEMO).at(q)
    digits = 0.51e-5 if q else 0.51e-4  # as many as the reference is given with
    assert abs(ask - exact[0]) < digits and abs(bid - exact[1]) < digits
    shown = feedback_only(q, **rates)
    assert abs(shown[0] - wrong[0]) < digits and abs(shown[1] - wrong[1]) < digits, "the mistake is understood: it gives the package's numbers"
    assert abs(ask - shown[0]) > 100 * digits and abs(bid - shown[1]) > 100 * digits, "and ours are others"
    none = solve_cj(**rates, eps_buy=0.0, eps_sell=0.0, **DEMO)
    np.testing.assert_allclose(none.bid, solve_cj(**rates, **DEMO).bid, atol=1e-12)


def test_the_risk_term_has_sigma_squared():
    "hummingbot has sigma: doubling the volatility must quadruple the skew and the risk part of the spread."
    how = dict(gamma=0.1, tau_s=2.0)
    skew = [100.0 - reservation_price(100.0, inventory=3.0, sigma=PriceVol(s), **how) for s in (0.5, 1.0)]
    risk = [half_spread(sigma=PriceVol(s), k=1.5, **how) - base_depth(gamma=0.1, k=1.5) for s in (0.5, 1.0)]
    assert skew[1] == pytest.approx(4 * skew[0]) and risk[1] == pytest.approx(4 * risk[0])
    assert risk[1] == pytest.approx(0.5 * 0.1 * 1.0 * 2.0), "half of gamma sigma^2 tau on each side is the paper's; it needs no doubling"


def test_a_least_squares_line_through_log_rates_is_not_the_likelihood():
    "Log-rate regression drops the bins without counts and weighs the noisy ones like the others; over many tapes it is biased, the likelihood is not."
    rng = np.random.default_rng(20261121)
    delta, exposure, A, k = 0.01 * (np.arange(20) + 0.5), np.full(20, 120.0), 1.0, 30.0
    likelihood, line = [], []
    for _ in range(300):
        n = rng.poisson(exposure * A * np.exp(-k * delta)).astype(float)
        likelihood.append(IntensityModel(pd.DataFrame({"delta": delta, "count": n, "exposure": exposure})).fit().params["k"])
        seen = n > 0
        line.append(-np.polyfit(delta[seen], np.log(n[seen] / exposure[seen]), 1)[0])
    z = [(np.mean(v) - k) / (np.std(v) / math.sqrt(len(v))) for v in (likelihood, line)]
    assert abs(np.mean(likelihood) - k) < 0.02 * k
    assert z[1] < -8, "the line is too flat by many standard errors"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_long_position_never_buys_more_eagerly(name):
    "mmrl adds the skew: long 5, it bids higher. Every strategy of ours moves both prices down, or (naive) not at all."
    params = QuoteParams(gamma=1e-4, k=50.0, A=1.0, qty=100.0, max_inventory=1000.0, min_spread_bps=0.0, phi=1e-6, alpha=1e-5,
                         regime_sigma=(0.02,), regime_gamma=(1e-4, 1e-4), regime_kappa=(0.0, 0.0), regime_eta=(0.0, 0.0)).record(0.01)
    def quote(q: float) -> tuple:
        state = new_state(mid=100.0, bid=99.9, ask=100.1, bid_size=500.0, ask_size=500.0, inventory=q, sigma=0.05, ofi=0.0, t_s=0.0, tau_s=600.0)
        return STRATEGIES[name](state, params)
    flat, long = quote(0.0), quote(500.0)
    assert long[0] <= flat[0] and long[1] <= flat[1]
    if name != "naive":
        assert long[0] < flat[0] or long[1] < flat[1]


def test_a_horizon_of_one_is_not_the_stationary_limit():
    "fastmm calls tau = 1 the infinite horizon. The stationary quotes are those of a horizon that is long, and do not change when it doubles."
    how = dict(sigma=0.3, A=0.9, k=0.3, gamma=0.01)
    far = stationary_glft(q_max=20, **how)
    long, longer = (solve_glft(horizon_s=T, q_max=20, **how) for T in (3000.0, 6000.0))
    inside = np.abs(far.q) <= 10
    np.testing.assert_allclose(long.bid[inside], longer.bid[inside], rtol=1e-6)
    np.testing.assert_allclose(longer.bid[inside], far.bid[inside], rtol=1e-6)
    one = optimal_quotes(100.0, inventory=5.0, gamma=0.01, sigma=PriceVol(0.3), k=0.3, tau_s=1.0)
    assert abs((100.0 - one.bid) - far.at(5)[0]) > 0.1


def test_the_base_depth_is_not_the_other_logarithm():
    "(1/k) ln(1 + k/gamma), found in public code, is another number."
    for gamma, k in ((0.1, 1.5), (1e-3, 0.3), (50.0, 0.3)):
        right, wrong = base_depth(gamma=gamma, k=k), math.log1p(k / gamma) / k
        assert right == pytest.approx(math.log1p(gamma / k) / gamma, rel=1e-12) and not math.isclose(right, wrong, rel_tol=0.05)


def test_distances_are_prices_not_half_ticks():
    "The unit of k is one over the unit of delta: halving the unit halves k, and the half-spread in price is the same."
    delta = 0.5 * (np.arange(12) + 1)  # ticks
    n = np.round(400 * np.exp(-0.6 * delta))
    fits = {unit: IntensityModel(pd.DataFrame({"delta": delta * unit, "count": n, "exposure": 100.0})).fit() for unit in (1.0, 0.01, 2.0)}
    for unit, fit in fits.items():
        assert fit.params["k"] * unit == pytest.approx(fits[1.0].params["k"], rel=1e-9)
        assert base_depth(gamma=1e-9 / unit, k=fit.params["k"]) / unit == pytest.approx(base_depth(gamma=1e-9, k=fits[1.0].params["k"]), rel=1e-6)
    bid, ask = glft_closed_form(0.0, sigma=0.3, A=0.9, k=0.3, gamma=0.01)
    assert bid == pytest.approx(ask) and bid > base_depth(gamma=0.01, k=0.3)
