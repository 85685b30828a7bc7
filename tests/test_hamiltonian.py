"makerlab.models.hamiltonian: any law against closed forms, a search without formulas, the oracles, and fits from the intensity page."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from conftest import real
from makerlab.calibration.intensity import ExponentialIntensity, IntensityModel, PowerIntensity, quotable_counts, to_reach
from makerlab.core import DataError, ParameterError, ReturnVol, UnitError
from makerlab.data.lob import load_lobster
from makerlab.models import hamiltonian as hm
from makerlab.models.avellaneda_stoikov import base_depth, optimal_depth_power
from makerlab.models.glft import brute_force_hjb, solve_glft, stationary_glft

GAMMA = st.sampled_from([0.0, 1e-300, 1e-12, 1e-4, 0.1, 2.0])
P = st.floats(-2.0, 5.0)


@settings(max_examples=60, deadline=None)
@given(GAMMA, st.floats(0.01, 100.0), st.floats(1e-3, 1e3), P)
def test_exponential_is_its_formula(gamma, k, A, p):
    base = base_depth(gamma=gamma, k=k) if gamma > 0 else 1 / k
    got = hm.optimal_depth(ExponentialIntensity(A, k), p, gamma=gamma)
    assert got == pytest.approx(p + base, rel=1e-9, abs=1e-9 / k)
    side = hm.Hamiltonian(ExponentialIntensity(A, k), gamma)
    assert side.log_value(p)[0] == pytest.approx(math.log(A / (k + gamma)) - k * (p + base), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1e-8, 1e-3, 0.1, 2.0]), st.floats(1.1, 9.0), st.floats(1e-3, 50.0), st.floats(0.0, 3.0))
def test_power_is_its_own_root(gamma, k, delta0, p):
    want = optimal_depth_power(gamma=gamma, k=k, delta0=delta0, reservation_distance=p)
    got = hm.optimal_depth(PowerIntensity(1.0, k, delta0), p, gamma=gamma)
    assert got == pytest.approx(want, rel=1e-8, abs=1e-9 * delta0)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([0.01, 0.3]), st.floats(0.5, 5.0), st.floats(-1.0, 1.0), st.floats(-1.0, 2.0))
def test_logistic_against_a_search(gamma, k, centre, p):
    law = hm.LogisticIntensity(3.0, k, centre)
    loss = lambda d: -float(law.rate(d)) * -math.expm1(-gamma * (d - p)) / gamma
    want = minimize_scalar(loss, bounds=(p, max(p, centre) + 15 / k), method="bounded", options={"xatol": 1e-11})
    got = hm.optimal_depth(law, p, gamma=gamma)
    assert -loss(got) >= -want.fun * (1 - 1e-13) and got == pytest.approx(want.x, abs=1e-5)


@pytest.mark.parametrize("gamma,k,delta0,p,right,wrong", [
    ("0.1", "3", "1", "0", None, "0.327898228229908705159276329355"),
    ("0.1", "3", "0.5", "0", "0.245444578164744620886243859654", "0.327898228229908705159276329355"),
    ("0.5", "2.2", "0.05", "0.3", "0.559438639968476158202543450862", "0.709588825292026441413120022689"),
    ("1e-8", "3", "0.5", "0", "0.249999999531250001367187495178", "0.333333332777777779012345675926")])
def test_f14_a_power_law_is_never_quoted_by_the_exponential_formula(gamma, k, delta0, p, right, wrong):
    gamma, k, delta0, p, wrong = map(float, (gamma, k, delta0, p, wrong))
    law = PowerIntensity(2.0, k, delta0)
    got = hm.optimal_depth(law, p, gamma=gamma)
    assert abs(got - wrong) > 0.05
    assert got == pytest.approx(float(right), rel=1e-9) if right else round(got, 3) == 0.482
    with pytest.raises(ParameterError, match="only for exponential laws"):
        hm.exponential_depth(law, p, gamma=gamma)
    flat = hm.quotes_for(law, sigma=1e-9, gamma=max(gamma, 1e-6))
    assert flat.formula.startswith("general") and abs(flat.bid - hm.optimal_depth(law, 0.0, gamma=max(gamma, 1e-6))) < 1e-6


def test_a_fit_goes_through_the_front_door_as_it_is():
    delta = np.arange(0.05, 2.0, 0.1)
    for law, truth in (("power", PowerIntensity(20.0, 3.0, 0.5)), ("exponential", ExponentialIntensity(5.0, 1.5))):
        bins = pd.DataFrame({"delta": delta, "count": np.round(truth.rate(delta) * 500.0), "exposure": 500.0})
        fit = IntensityModel(bins, law=law, delta0=0.5 if law == "power" else None).fit()
        for what in (fit, fit.law):
            got = hm.quotes_for(what, sigma=0.3, gamma=0.1, q_max=8, inventory=np.array([-8.0, 0.0, 3.0]))
            assert got.formula.startswith("general" if law == "power" else "exponential")
            assert np.isnan(got.ask[0])
        want = (hm.stationary_general(fit.law, fit.law, sigma=0.3, gamma=0.1, q_max=8) if law == "power"
                else stationary_glft(A=fit.params["A"], k=fit.params["k"], sigma=0.3, gamma=0.1, q_max=8))
        np.testing.assert_allclose(got.bid, [want.at(q)[0] for q in (-8, 0, 3)], atol=1e-8)
    empty = IntensityModel(bins.assign(count=0.0)).fit()
    with pytest.raises(ParameterError, match="holds no law"):
        hm.quotes_for(empty, sigma=0.3, gamma=0.1)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-4, 1e4), st.floats(0.5, 20.0))
def test_exponentials_are_told_by_their_behaviour(A, k, exponent):
    found = hm.exponential_parameters(ExponentialIntensity(A, k))
    assert found == pytest.approx((A, k), rel=1e-8)
    assert hm.exponential_parameters(PowerIntensity(A, exponent, 1.0 / k)) is None
    assert hm.exponential_parameters(hm.LogisticIntensity(A, k, 0.0)) is None


WORLDS = st.fixed_dictionaries(dict(sigma=st.floats(0.05, 2.0), gamma=st.sampled_from([1e-6, 0.05, 0.5]), horizon_s=st.floats(0.1, 20.0), q_max=st.integers(1, 8),
                                    drift=st.floats(-0.2, 0.2), impact=st.floats(0.0, 0.2), qty=st.sampled_from([0.5, 1.0, 3.0])))


@settings(max_examples=12, deadline=None)
@given(WORLDS, st.floats(0.3, 10.0), st.floats(0.5, 3.0))
def test_exponential_world_is_glft(world, A, k):
    law = ExponentialIntensity(A, k)
    got, want = hm.solve_general(law, law, **world), solve_glft(A=A, k=k, **world)
    for side in ("bid", "ask", "value"):
        np.testing.assert_allclose(getattr(got, side), getattr(want, side), rtol=1e-7, atol=1e-7)


CJ = {"eps": (dict(kp=100, km=100, lp=1, lm=1, phi=2e-4, alpha=1e-4, horizon_s=30.0, q_max=3, eps=0.002), [0.00355510304032, 0.00752108032942, 0.0105450424425, 0.0134549575575]),
      "kappa": (dict(kp=100, km=60, lp=1, lm=1.2, phi=3e-4, alpha=1e-3, horizon_s=15.0, q_max=4, eps=0.0), [0.0052495238676, 0.0094958180397, 0.0129767515535, 0.0163021293948])}


@pytest.mark.parametrize("case", CJ)
def test_cartea_jaimungal_is_the_risk_neutral_case(case):
    c, bids = CJ[case]
    got = hm.solve_general(ExponentialIntensity(c["lm"], c["km"]), ExponentialIntensity(c["lp"], c["kp"]), sigma=1.0, gamma=0.0,
                           **{n: c[n] for n in ("phi", "alpha", "horizon_s", "q_max")}, eps_buy=c["eps"], eps_sell=c["eps"])
    np.testing.assert_allclose(got.bid[:4], bids, atol=1e-10)


@pytest.mark.parametrize("rates,q,bid_is", [((1.0, 1.0), 3, 1), ((2.0, 1.0), 0, -1)])
def test_math15_eps_is_not_added_after_solving(rates, q, bid_is):
    "The package avellaneda-stoikov 0.1.0 solves without eps and adds it to the depths: MATH sec. 15.1."
    buys, sells = (ExponentialIntensity(r, 100.0) for r in rates)
    world = dict(sigma=1.0, gamma=0.0, phi=2e-4, alpha=1e-4, horizon_s=30.0, q_max=10)
    right = np.array(hm.solve_general(sells, buys, **world, eps_buy=0.01, eps_sell=0.01).at(q))
    wrong = np.array(hm.solve_general(sells, buys, **world).at(q)) + 0.01
    assert (np.abs(right - wrong) > 2e-3).all() and (np.sign(right - wrong) == [bid_is, -bid_is]).all()


LAWS = {"power": PowerIntensity(12.0, 3.5, 1.0), "logistic": hm.LogisticIntensity(6.0, 2.0, 0.3),
        "spline": hm.SplineIntensity((0.0,) * 4 + (1.0, 2.0) + (3.0,) * 4, (1.5, 1.0, 0.2, -0.9, -2.2, -3.0))}


@pytest.mark.parametrize("bid,ask", [("power", "logistic"), ("spline", "power"), ("logistic", "spline")])
def test_against_a_search_that_knows_no_formula(bid, ask):
    world = dict(sigma=0.8, gamma=0.2, horizon_s=0.4, q_max=2, eps_buy=0.06, eps_sell=0.03, drift=-0.1, impact=0.02, phi=0.01, alpha=0.02)
    got = hm.solve_general(LAWS[bid], LAWS[ask], **world, rate_buy=9.0, rate_sell=7.0, min_depth=-0.9)
    want = brute_force_hjb(rate_bid=LAWS[bid].rate, rate_ask=LAWS[ask].rate, **world, market_buy=9.0, market_sell=7.0, depth_range=(-0.9, 9.0))
    for side in ("bid", "ask", "value"):
        np.testing.assert_allclose(getattr(got, side), getattr(want, side), atol=2e-7)


@pytest.mark.parametrize("name", LAWS)
def test_long_horizon_is_stationary_and_symmetric(name):
    law, world = LAWS[name], dict(sigma=0.5, gamma=0.1, q_max=4)
    late, still = hm.solve_general(law, law, **world, horizon_s=200.0), hm.stationary_general(law, law, **world)
    np.testing.assert_allclose(late.bid, still.bid, atol=1e-7)
    np.testing.assert_allclose(still.bid[:-1], still.ask[:0:-1], atol=1e-9)
    earlier = hm.solve_general(law, law, **world, horizon_s=190.0)
    assert (late.value[4] - earlier.value[4]) / 10.0 == pytest.approx(still.info["growth"], rel=1e-7)


@pytest.mark.parametrize("name", LAWS)
def test_limits(name):
    law = LAWS[name]
    neutral = hm.stationary_general(law, law, sigma=0.5, gamma=0.0, q_max=3)
    for small in (1e-9, 1e-12):
        np.testing.assert_allclose(hm.stationary_general(law, law, sigma=0.5, gamma=small, q_max=3).bid, neutral.bid, atol=50 * small + 2e-9)
        np.testing.assert_allclose(hm.stationary_general(law, law, sigma=0.5, gamma=0.0, q_max=3, eps_buy=small, eps_sell=small).bid, neutral.bid, atol=50 * small + 2e-9)
    free = hm.optimal_depth(law, 0.0, gamma=0.0)
    gaps = [hm.stationary_general(law, law, sigma=0.5, gamma=0.0, q_max=Q).at(0)[0] - free for Q in (4, 16, 64)]
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < 0.1 * gaps[0]


def test_closed_form_nears_the_exact_depths_as_risk_vanishes():
    law = LAWS["power"]
    errors = []
    for gamma in (0.1, 0.01, 0.001):
        exact = hm.stationary_general(law, law, sigma=0.3, gamma=gamma, q_max=40)
        rough = hm.closed_form_general(law, law, inventory=np.array([-2.0, 0.0, 2.0]), sigma=0.3, gamma=gamma)[0]
        errors.append(np.abs(rough - exact.bid[[38, 40, 42]]).max())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_a_spline_of_an_exponential_is_one_and_a_kink_is_followed():
    rng = np.random.default_rng(7)
    d = np.arange(0.05, 3.0, 0.1)
    truth = ExponentialIntensity(20.0, 1.5)
    fit = hm.fit_spline(pd.DataFrame({"delta": d, "count": rng.poisson(truth.rate(d) * 100), "exposure": 100.0}))
    se = np.sqrt(1 / (truth.rate(d) * 100))
    assert (np.abs(np.log(fit.rate(d) / truth.rate(d))) < 4 * se).all() and fit.df < 5
    assert (np.diff(fit.rate(np.linspace(-2, 8, 500))) < 0).all()
    stiff = hm.fit_spline(pd.DataFrame({"delta": d, "count": truth.rate(d) * 100, "exposure": 100.0}))
    np.testing.assert_allclose(stiff.rate(np.array([-1.0, 1.0, 6.0])), truth.rate(np.array([-1.0, 1.0, 6.0])), rtol=1e-4)
    with pytest.raises(DataError):
        hm.fit_spline(pd.DataFrame({"delta": d, "count": -1.0, "exposure": 1.0}))


def test_refusals():
    law = ExponentialIntensity(1.0, 1.0)
    for bad in (dict(gamma=-1.0), dict(q_max=0), dict(qty=0.0), dict(phi=-1.0), dict(eps_buy=math.nan), dict(horizon_s=-1.0), dict(xi=-0.1)):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            hm.solve_general(law, law, **{**dict(sigma=1.0, gamma=0.1, horizon_s=1.0, q_max=2), **bad})
    with pytest.raises(UnitError):
        hm.quotes_for(law, sigma=ReturnVol(0.1), gamma=0.1)
    with pytest.raises(ParameterError, match="needs q_max"):
        hm.quotes_for(law, sigma=1.0, gamma=0.1, horizon_s=1.0)
    with pytest.raises(ParameterError, match="must fall"):
        hm.SplineIntensity((0.0,) * 4 + (1.0,) * 4, (1.0, 2.0, 0.0, -1.0))
    with pytest.raises(ParameterError, match="holds no law"):
        hm.as_law(3.0)
    for call in (lambda: hm.solve_general(3.0, law, sigma=1.0, gamma=0.1, horizon_s=1.0, q_max=2), lambda: hm.optimal_depth(None, 0.0, gamma=0.1)):
        with pytest.raises(ParameterError, match="holds no law"):
            call()
    for bad in (dict(qty=0.0), dict(q_max=2.5), dict(q_max="5"), dict(inventory=math.nan), dict(inventory=math.inf)):
        with pytest.raises(ParameterError, match=f"{next(iter(bad))} = "):
            hm.quotes_for(law, **{**dict(sigma=1.0, gamma=0.1, q_max=3), **bad})
    for bad in (dict(qty=-1.0), dict(gamma=-1.0)):
        with pytest.raises(ParameterError, match=f"{next(iter(bad))} = "):
            hm.exponential_depth(law, 0.0, **{**dict(gamma=0.1), **bad})
    bins = pd.DataFrame({"delta": [0.1, 0.2, 0.3, 0.4, 0.5], "count": [10, 8, 6, 3, 1], "exposure": 1.0})
    for n in (1, 2.5, "8"):
        with pytest.raises(ParameterError, match="n_knots = "):
            hm.fit_spline(bins, n_knots=n)


@pytest.mark.realdata
def test_a_real_power_law_is_quoted_by_its_hamiltonian():
    "AAPL 2012-06-21 by the clock from half a cent: the power law fits far better (nbs/40), and its quotes differ from the exponential's."
    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    bins = quotable_counts(day.trades(hidden=False), day.quotes(), tick=0.01)  # orders whose deepest reachable distance is delta
    power, plain = (to_reach(IntensityModel(bins, law=law, delta0="estimate" if law == "power" else None).fit(), width=0.01) for law in ("power", "exponential"))
    got = {name: hm.quotes_for(law, sigma=0.02, gamma=0.01, q_max=5, inventory=np.array([-3.0, 0.0, 3.0])) for name, law in (("power", power), ("exponential", plain))}
    assert got["power"].formula.startswith("general") and got["exponential"].formula.startswith("exponential")
    with pytest.raises(ParameterError, match="only for exponential"):
        hm.exponential_depth(power, 0.0, gamma=0.01)
    print({n: np.round(q.bid, 4) for n, q in got.items()}, power.params.to_dict(), power.delta0, plain.params.to_dict())
    wrong = base_depth(gamma=0.01, k=float(power.params["k"]))  # its exponent as a decay: 15 cents
    assert wrong > 0.14 and 0.005 < got["power"].bid[1] < 0.03 and abs(got["power"].bid[1] - wrong) > 0.1
