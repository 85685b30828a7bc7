"Guéant–Lehalle–Fernandez-Tapia: two ways of solving against each other, SciPy, limits, the referee, and what must be refused."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import eigh_tridiagonal, expm

from makerlab.core import ParameterError, ReturnVol, UnitError
from makerlab.models import glft
from makerlab.models.avellaneda_stoikov import base_depth, half_spread
from makerlab.models.glft import brute_force_hjb, glft_closed_form, glft_coefficients, solve_glft, stationary_glft

AS = dict(sigma=2.0, A=140.0, k=1.5, gamma=0.1)
PAPER = dict(sigma=0.3, A=0.9, k=0.3, gamma=0.01)
worlds = st.fixed_dictionaries(dict(
    sigma=st.floats(0.05, 3), A=st.floats(0.1, 100), k=st.floats(0.2, 20), gamma=st.sampled_from([0.0, 1e-300, 1e-9]) | st.floats(1e-4, 1),
    drift=st.floats(-0.05, 0.05), impact=st.floats(0, 0.2), q_max=st.integers(1, 10), qty=st.sampled_from([1.0, 10.0])))


def gap(a, b, k):
    "Largest difference of the depths, in units of 1/k."
    return k * max(np.nanmax(np.abs(a.bid - b.bid)), np.nanmax(np.abs(a.ask - b.ask)))


def test_the_base_depth_is_right_down_to_no_risk_aversion():
    assert base_depth(gamma=0.0, k=0.3) == 1 / 0.3 == base_depth(gamma=5e-324, k=0.3)
    assert base_depth(gamma=1e-300, k=0.3) == pytest.approx(10 / 3, rel=1e-15)
    for k in (0.3, 1.5, 400.0):
        depths = [base_depth(gamma=g, k=k) for g in (0.0, 1e-20, 1e-14, 1e-12, 1e-10, 1e-6, 1e-3, 1.0, 1e3)]
        assert depths == sorted(depths, reverse=True), "more fear, less margin"
        assert not math.isclose(depths[5], math.log1p(k / 1e-6) / k, rel_tol=0.1), "the wrong variant (1/k) ln(1 + k/gamma)"
    with pytest.raises(ParameterError, match="gamma = -1"):
        base_depth(gamma=-1.0, k=1.0)
    with pytest.raises(ParameterError, match="risk-neutral"):
        half_spread(gamma=0.0, sigma=1.0, k=1.0, tau_s=1.0)


@settings(max_examples=20, deadline=None)
@given(worlds, st.floats(0.0, 10.0))
def test_two_ways_agree(world, horizon):
    a, b = (solve_glft(**world, horizon_s=horizon, method=m) for m in ("auto", "ode"))
    assert gap(a, b, world["k"]) < 1e-8  # measured: below 1e-10
    assert np.isnan(a.bid[-1]) and np.isnan(a.ask[0]) and np.isfinite(a.bid[:-1]).all()


@settings(max_examples=30, deadline=None)
@given(worlds)
def test_the_mirror(world):
    "Short is long with the drift turned round."
    a = solve_glft(**world, horizon_s=3.0)
    b = solve_glft(**{**world, "drift": -world["drift"]}, horizon_s=3.0)
    np.testing.assert_allclose(a.bid[:-1], b.ask[:0:-1], rtol=1e-9, atol=1e-9 / world["k"])


@settings(max_examples=30, deadline=None)
@given(worlds)
def test_stationary_satisfies_its_equation_and_scipy(world):
    s = stationary_glft(**world)
    k, q = world["k"], s.q.astype(float)
    c = glft_coefficients(**{n: world[n] for n in ("sigma", "A", "k", "gamma", "impact", "qty")})
    eta = c.eta * math.exp(-0.5 * k * world["impact"])
    eigenvalue, v = eigh_tridiagonal(c.alpha * q**2 - k * world["drift"] * q, np.full(q.size - 1, -eta), select="i", select_range=(0, 0))
    assert s.info["smallest_eigenvalue"] == pytest.approx(eigenvalue[0], rel=1e-9, abs=1e-9 * (eta + np.ptp(c.alpha * q**2)))
    v = np.abs(v[:, 0])
    safe = np.minimum(v[:-1], v[1:]) > 1e-6  # an eigenvector's small entries are noise
    want = c.base + 0.5 * world["impact"] - np.diff(np.log(v)) / k
    np.testing.assert_allclose(s.bid[:-1][safe] * k, want[safe] * k, atol=1e-7)


def test_a_long_day_is_the_stationary_one():
    for world in (AS | dict(q_max=12), PAPER | dict(q_max=10, drift=0.002), PAPER | dict(q_max=8, impact=0.5, gamma=0.0)):
        long = solve_glft(**world, horizon_s=20_000.0)
        assert gap(long, stationary_glft(**world), world["k"]) < 1e-8
    assert solve_glft(**PAPER, horizon_s=0.0, q_max=4).at(2) == pytest.approx([base_depth(gamma=0.01, k=0.3)] * 2)


def test_limits():
    for gamma in (1e-4, 1e-6, 1e-8):
        near = stationary_glft(**{**PAPER, "gamma": gamma}, q_max=5)
        assert gap(near, stationary_glft(**{**PAPER, "gamma": 0.0}, q_max=5), 0.3) < 30 * gamma
    q = np.arange(-5, 5)
    cosine = (1 + np.log(np.cos(np.pi * q / 12) / np.cos(np.pi * (q + 1) / 12))) / 0.3
    np.testing.assert_allclose(stationary_glft(**{**PAPER, "gamma": 0.0}, q_max=5).bid[:-1], cosine, rtol=1e-12)
    assert abs(stationary_glft(**{**PAPER, "gamma": 0.0}, q_max=1000).at(0)[0] * 0.3 - 1) < 1e-5  # no limit, no fear: 1/k
    flat = [solve_glft(**AS, horizon_s=1.0, q_max=Q).at(0)[0] for Q in (10, 40, 200, 600)]
    assert abs(flat[1] - flat[3]) < 1e-9 and abs(flat[2] - flat[3]) < 1e-9 and abs(flat[0] - flat[3]) > 1e-6


def test_large_limits_take_time_steps_and_stay_right():
    wide = solve_glft(**PAPER, horizon_s=600.0, q_max=300)
    assert wide.info["method"] == "ode"
    assert wide.at(5) == pytest.approx(solve_glft(**PAPER, horizon_s=600.0, q_max=60, method="expm").at(5), abs=1e-9)
    bid, _ = glft_closed_form(np.arange(-50, 51), **PAPER)
    assert np.abs(stationary_glft(**PAPER, q_max=300).bid[250:351] - bid).max() * 0.3 < 0.05  # the closed form drops q^4 terms


def test_closed_form_is_the_eigenvector_far_from_a_wide_limit():
    "The continuous approximation: error of second order in sqrt(alpha/eta)."
    for gamma in (1e-3, 1e-4, 1e-5):
        world = {**PAPER, "gamma": gamma}
        c = glft_coefficients(**world)
        exact = stationary_glft(**world, q_max=200).bid[198:203]
        assert np.abs(glft_closed_form(np.arange(-2, 3), **world)[0] - exact).max() * 0.3 < 2 * c.alpha / c.eta
    series = pd.Series([-1.0, 0.0, 2.0], index=list("abc"))
    bid, ask = glft_closed_form(series, **PAPER, qty=2.0)
    assert list(bid.index) == list("abc") and bid["c"] > bid["b"] > bid["a"] and ask["c"] < ask["a"]
    assert bid["b"] == glft_closed_form(0, **PAPER, qty=2.0)[0]


def test_the_paper_in_scipy():
    c, n = glft_coefficients(**PAPER), 61
    q = np.arange(-30, 31)
    v = expm(600.0 * (np.diag(-c.alpha * q**2.0) + c.eta * (np.eye(n, k=1) + np.eye(n, k=-1)))) @ np.ones(n)
    np.testing.assert_allclose(solve_glft(**PAPER, horizon_s=600.0, q_max=30).bid[:-1], c.base - np.diff(np.log(v)) / 0.3, rtol=1e-11)
    assert solve_glft(**AS, horizon_s=1.0, q_max=10).at(0)[0] == pytest.approx(0.671643578283, abs=1e-11)
    assert half_spread(sigma=2.0, k=1.5, gamma=0.1, tau_s=1.0) > 1.25 * 0.6717


@pytest.mark.parametrize("change", [{}, {"drift": 2.0}, {"impact": 0.3}, {"gamma": 0.0}, {"gamma": 1.5, "drift": -1.0, "impact": 0.1}])
def test_brute_force(change):
    p = AS | dict(drift=0.0, impact=0.0) | change
    fast = solve_glft(**p, horizon_s=0.2, q_max=3)
    slow = brute_force_hjb(rate_bid=lambda d: 140 * np.exp(-1.5 * d), rate_ask=lambda d: 140 * np.exp(-1.5 * d), horizon_s=0.2, q_max=3,
                           depth_range=(-3.0, 6.0), rtol=1e-8, **{n: p[n] for n in ("gamma", "sigma", "drift", "impact")})
    np.testing.assert_allclose(fast.bid[:-1], slow.bid[:-1], atol=2e-7)  # golden sections: sqrt of rounding
    np.testing.assert_allclose(fast.ask[1:], slow.ask[1:], atol=2e-7)
    np.testing.assert_allclose(fast.value, slow.value, atol=1e-7)


def test_kernels_against_their_python_and_scipy():
    x = np.r_[np.linspace(-700, 700, 20_001), 0.0, 1e-300]
    twin = np.vectorize(glft._exp_nb.py_func if hasattr(glft._exp_nb, "py_func") else glft._exp_nb)
    np.testing.assert_allclose(twin(x), np.exp(x), rtol=1e-15)
    q = np.arange(-6, 7.0)
    args = (-1e-3 * q**2, -1e-4 * q**2 + 1e-4 * q, 0.004, 90.0, 0.003, 70.0)

    def flow(_, h):
        return args[1] + args[2] * np.r_[np.exp(90 * np.diff(h)), 0] + args[4] * np.r_[0, np.exp(-70 * np.diff(h))]

    want = solve_ivp(flow, (0, 30), args[0], method="DOP853", rtol=1e-12, atol=1e-14, t_eval=[3.0, 30.0]).y.T
    path, stiff = glft._hjb_nb(*args, 30.0, 4000)
    np.testing.assert_allclose(path[[400, 4000]], want, atol=1e-11)
    assert 0 < stiff * 30 / 4000 < 2.78
    rows = np.empty((2, 13))
    assert glft._march_nb(*args, np.array([3.0, 30.0]), 2e-11, 10_000, rows) > 0
    np.testing.assert_allclose(rows, want, atol=1e-10)
    assert glft._march_nb(*args, np.array([3.0, 30.0]), 2e-11, 3, rows) < 0  # a limit on steps is told, not hidden


def test_explicit_steps_are_of_fourth_order():
    q = np.arange(-4, 5.0)
    args = (-1e-4 * q**2, -1e-4 * q**2, 0.004, 90.0, 0.004, 90.0, 20.0)
    exact = glft._hjb_nb(*args, 4096)[0][-1]
    errors = [np.abs(glft._hjb_nb(*args, n)[0][-1] - exact).max() for n in (32, 64, 128)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 3.6).all() and (orders < 4.6).all()


def test_refusals():
    ok = AS | dict(horizon_s=1.0, q_max=5)
    for bad in (dict(q_max=0), dict(q_max=True), dict(q_max=1.5), dict(horizon_s=-1.0), dict(horizon_s=math.nan), dict(A=0.0), dict(k=-1.0),
                dict(gamma=-1e-9), dict(gamma=math.inf), dict(drift=math.nan), dict(impact=-0.1), dict(qty=0.0), dict(method="euler"), dict(sigma=0.0)):
        with pytest.raises(ParameterError, match=f"{next(iter(bad))} = "):
            solve_glft(**{**ok, **bad})
    with pytest.raises(UnitError):
        stationary_glft(**{**AS, "sigma": ReturnVol(0.02)}, q_max=5)
    with pytest.raises(ParameterError, match="underflows"):
        solve_glft(**AS, horizon_s=1.0, q_max=200, method="expm")
    with pytest.raises(ParameterError, match="without a limit"):
        glft_closed_form(1, **{**PAPER, "gamma": 0.0}, drift=0.1)
    d = solve_glft(**ok)
    with pytest.raises(ParameterError, match="whole number"):
        d.at(6)
    with pytest.raises(AttributeError):
        d.bid = None
    assert list(d.table().columns) == ["bid", "ask", "value"] and d.table().index.tolist() == list(range(-5, 6))
    with pytest.raises(ParameterError, match="cuts off"):
        brute_force_hjb(rate_bid=lambda d: np.exp(-d), rate_ask=lambda d: np.exp(-d), horizon_s=0.1, q_max=1, depth_range=(0.0, 0.5))
    for bad in (dict(impact=1e4), dict(impact=1e300)):
        with pytest.raises(ParameterError, match=r"impact = .*check its unit"):
            glft_closed_form(0, **PAPER, **bad)


def test_the_referee_refuses_nonsense():
    ok = dict(rate_bid=lambda d: np.exp(-d), rate_ask=lambda d: np.exp(-d), horizon_s=0.1, q_max=1, depth_range=(-2.0, 5.0))
    assert brute_force_hjb(**ok).at(0)[0] == pytest.approx(brute_force_hjb(**ok, gamma=0.1).at(0)[0], rel=0.1)  # sigma = 0 is a world without risk
    for bad in (dict(gamma=-1.0), dict(horizon_s=-1.0), dict(phi=math.nan), dict(alpha=-1.0), dict(q_max=0), dict(sigma=-1.0), dict(eps_buy=math.inf)):
        with pytest.raises(ParameterError, match=f"{next(iter(bad))} = "):
            brute_force_hjb(**{**ok, **bad})
    with pytest.raises(UnitError):
        brute_force_hjb(**ok, gamma=0.1, sigma=ReturnVol(0.02))
    for side in ("buy", "sell"):
        with pytest.raises(ParameterError, match=f"market_{side} = 0.0"):
            brute_force_hjb(**ok, **{f"eps_{side}": 0.1})
