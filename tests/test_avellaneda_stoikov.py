"makerlab.models.avellaneda_stoikov: twins over random inputs, limits, refusals; what isn't worth a lesson."
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError, PriceVol, ReturnVol, UnitError, rng_streams
from makerlab.models import avellaneda_stoikov as av

PAPER = dict(gamma=0.1, sigma=2.0, A=140.0, k=1.5)
TABLE = dict(**PAPER, horizon=1.0, n_steps=200)
WORLDS = st.fixed_dictionaries(dict(gamma=st.floats(1e-6, 5.0), sigma=st.floats(0.05, 5.0), A=st.floats(1.0, 300.0),
                                    k=st.floats(0.2, 10.0), horizon=st.floats(0.01, 2.0), n_steps=st.integers(1, 25)))
FILLS, POLICIES = st.sampled_from(["linear", "poisson"]), st.sampled_from(["inventory", "symmetric"])


@settings(max_examples=40, deadline=None)
@given(WORLDS, FILLS, POLICIES, st.integers(0, 2**32), st.sampled_from([1, 3, 257]))
def test_kernel_repeats_plain_python(world, fill, policy, seed, n_paths):
    got = av.simulate(n_paths=n_paths, **world, fill=fill, policy=policy, rng=np.random.default_rng(seed))
    ask, bid, up = av.path_draws(rng_streams(n_paths, rng=np.random.default_rng(seed)), n_steps=world["n_steps"])
    half, skew = av.quote_schedule(policy=policy, **{n: v for n, v in world.items() if n != "A"})
    for i in range(0, n_paths, 64):
        profit, q, captured = av.simulate_path(ask[i], bid[i], up[i], half=half, skew=skew, sigma=world["sigma"], A=world["A"],
                                               k=world["k"], dt=world["horizon"] / world["n_steps"], fill=fill)
        assert got.inventory[i] == q
        np.testing.assert_allclose([got.profit[i], got.spread_capture[i]], [profit, captured], rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(WORLDS, FILLS, POLICIES)
def test_moment_kernel_is_its_python(world, fill, policy):
    half, skew = av.quote_schedule(policy=policy, **{n: v for n, v in world.items() if n != "A"})
    args = half, skew, world["A"], world["k"], world["horizon"] / world["n_steps"], fill == "poisson"
    np.testing.assert_allclose(av._moments_nb(*args), av._moments_nb.py_func(*args), rtol=1e-12, atol=1e-12)


@settings(max_examples=8, deadline=None)
@given(WORLDS, FILLS, POLICIES)
def test_simulation_meets_exact_moments(world, fill, policy):
    s = av.simulate(n_paths=20_000, **world, fill=fill, policy=policy, rng=np.random.default_rng(11)).summary()
    e = av.exact_moments(**world, fill=fill, policy=policy)
    for name in ("profit_mean", "final_q_mean", "mean_fills"):
        assert abs(s.estimate[name] - e[name]) <= 5 * s.se[name] + 5e-4


def test_extreme_lean_goes_through_the_plain_kernel():
    wild = dict(gamma=50.0, sigma=5.0, A=140.0, k=10.0, horizon=1.0, n_steps=50)  # exp(k skew) would overflow
    s = av.simulate(n_paths=20_000, **wild, rng=np.random.default_rng(3)).summary()
    e = av.exact_moments(**wild)
    assert abs(s.estimate["profit_mean"] - e["profit_mean"]) < 4 * s.se["profit_mean"] + 1e-9
    assert abs(s.estimate["mean_fills"] - e["mean_fills"]) < 4 * s.se["mean_fills"] + 1e-9


@pytest.mark.parametrize("fill", ["linear", "poisson"])
def test_threads_do_not_change_the_answer(fill):
    runs = [av.simulate(n_paths=1000, **TABLE, fill=fill, rng=np.random.default_rng(5), workers=w) for w in (1, 2, 3, 99)]
    for other in runs[1:]:
        for field in ("profit", "inventory", "spread_capture", "holding_pnl", "fills"):
            np.testing.assert_array_equal(getattr(runs[0], field), getattr(other, field))
    assert (runs[0].profit != av.simulate(n_paths=1000, **TABLE, fill=fill, rng=np.random.default_rng(6)).profit).any()


def test_simulation_adds_up_and_repeats_its_name():
    s = av.simulate(n_paths=500, **TABLE, rng=np.random.default_rng(1))
    np.testing.assert_allclose(s.profit, s.spread_capture + s.holding_pnl, atol=1e-12)
    assert "500 paths" in repr(s) and s._repr_markdown_().count("|") > 20
    assert list(s.summary().columns) == ["estimate", "se", "unit"]
    assert abs(s.avg_spread - 1.4917704227514235) < 1e-12


def test_mean_of_the_benchmark_run():
    s = av.simulate(n_paths=100_000, **TABLE, rng=np.random.default_rng(2024)).summary()
    assert abs(s.estimate["profit_mean"] - 64.89254308561922) < 4 * s.se["profit_mean"]


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-300, 1e3), st.floats(1.001, 50.0), st.floats(1e-6, 1e3), st.floats(-0.999, 100.0))
def test_power_law_depth_solves_its_condition(gamma, k, delta0, share):
    far = share * delta0 if share < 0 else share
    d = av.optimal_depth_power(gamma=gamma, k=k, delta0=delta0, reservation_distance=far)
    x = d + delta0
    rhs = far + (x / k) * float(av._log1p_ratio(gamma * x / k))
    assert x > 0 and abs(d - rhs) <= 1e-9 * (abs(d) + x + abs(far))
    assert x <= (far + delta0) * k / (k - 1) * (1 + 1e-9) + 1e-15 * (abs(far) + delta0)


def test_power_law_tends_to_the_exponential():
    "(delta + d0)^-(k d0) tends to exp(-k delta) as d0 grows."
    d = av.optimal_depth_power(gamma=0.1, k=1.5e8, delta0=1e8)
    assert abs(d - av.base_depth(gamma=0.1, k=1.5)) < 1e-6


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-300, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1e4), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_quotes_never_cross_and_lean_against_inventory(gamma, k, tau, sigma, q):
    Q = av.optimal_quotes(0.0, inventory=q, gamma=gamma, sigma=sigma, k=k, tau_s=tau)
    assert Q.bid <= Q.ask and Q.half_spread > 0 and Q.reservation * q <= 0
    assert 0 < av.base_depth(gamma=gamma, k=k) <= 1 / k * (1 + 1e-12)


@pytest.mark.parametrize("gamma", [1e-300, 1e-200, 1e-20, 1e-12, 1e-8])
def test_risk_neutral_limits(gamma):
    assert math.isclose(av.base_depth(gamma=gamma, k=1.5), 1 / 1.5, rel_tol=1e-7)
    assert math.isclose(av.half_spread(gamma=gamma, sigma=2.0, k=1.5, tau_s=1.0), 1 / 1.5, rel_tol=1e-7)
    assert math.isclose(av.optimal_depth_power(gamma=gamma, k=3, delta0=0.5, reservation_distance=0.1), 0.4, rel_tol=1e-7)
    assert math.isfinite(av.exact_moments(**{**TABLE, "gamma": gamma})["profit_std"])


def test_arrays_and_series_go_through():
    q = np.array([-2, 0, 3])
    Q = av.optimal_quotes(100.0, inventory=q, gamma=0.1, sigma=PriceVol(2.0), k=1.5, tau_s=np.array([1.0, 0.5, 0.0]))
    for i in range(3):
        one = av.optimal_quotes(100.0, inventory=int(q[i]), gamma=0.1, sigma=2.0, k=1.5, tau_s=[1.0, 0.5, 0.0][i])
        assert (Q.bid[i], Q.ask[i]) == (one.bid, one.ask)
    sigma = pd.Series([1.0, np.nan, 2.0])
    assert np.isnan(av.half_spread(gamma=0.1, sigma=sigma, k=1.5, tau_s=1.0)[1])  # missing stays missing
    mid = pd.Series([100.0, 101.0], index=[5, 6])
    assert av.reservation_price(mid, inventory=1, gamma=0.1, sigma=2.0, tau_s=1.0).index.tolist() == [5, 6]


def test_a_return_volatility_is_refused_everywhere():
    bad = ReturnVol(0.02)
    labelled = pd.Series([0.01])
    labelled.attrs["unit"] = "1/sqrt(s)"
    calls = [lambda s: av.inventory_skew(1, gamma=0.1, sigma=s, tau_s=1.0), lambda s: av.half_spread(gamma=0.1, sigma=s, k=1.5, tau_s=1.0),
             lambda s: av.exact_moments(**{**TABLE, "sigma": s}), lambda s: av.saturation_time(**{**PAPER, "sigma": s}),
             lambda s: av.hjb_residual(0, **{**PAPER, "sigma": s}, tau_s=1.0),
             lambda s: av.simulate(n_paths=1, **{**TABLE, "sigma": s}, rng=np.random.default_rng(0))]
    for call in calls:
        for sigma in (bad, labelled):
            with pytest.raises(UnitError, match="price"):
                call(sigma)


@pytest.mark.parametrize("name", ["gamma", "sigma", "A", "k"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None, "x"])
def test_bad_parameters_name_themselves(name, value):
    world = {**PAPER, name: value}
    calls = [lambda: av.exact_moments(**world, horizon=1.0, n_steps=5), lambda: av.saturation_time(**world),
             lambda: av.simulate(n_paths=2, **world, horizon=1.0, n_steps=5, rng=np.random.default_rng(0)),
             lambda: av.hjb_residual(1, **world, tau_s=1.0), lambda: av.expanded_value(1, **world, tau_s=1.0)]
    if name != "A":
        calls.append(lambda: av.optimal_quotes(100.0, inventory=0, tau_s=1.0, **{n: v for n, v in world.items() if n != "A"}))
    for call in calls:
        with pytest.raises(ParameterError, match=rf"\b{name}\b"):
            call()


@pytest.mark.parametrize("change, word", [(dict(n_paths=0), "n_paths"), (dict(n_paths=1.5), "n_paths"), (dict(n_steps=0), "n_steps"),
                                          (dict(n_steps=2.0), "n_steps"), (dict(horizon=-1.0), "horizon"), (dict(fill="x"), "fill"),
                                          (dict(policy="x"), "policy"), (dict(workers=0), "workers")])
def test_bad_runs_name_their_argument(change, word):
    with pytest.raises(ParameterError, match=word):
        av.simulate(**{**TABLE, "n_paths": 4, "rng": np.random.default_rng(0), **change})


def test_other_refusals():
    with pytest.raises(ParameterError, match="tau_s"):
        av.half_spread(gamma=0.1, sigma=2.0, k=1.5, tau_s=[1.0, -1.0])
    with pytest.raises(ParameterError, match="mid"):
        av.reservation_price(float("nan"), inventory=0, gamma=0.1, sigma=2.0, tau_s=1.0)
    with pytest.raises(ParameterError, match="sigma"):
        av.half_spread(gamma=0.1, sigma=pd.Series([1.0, 0.0]), k=1.5, tau_s=1.0)
    with pytest.raises(ParameterError, match="k = "):
        av.optimal_depth_power(gamma=0.1, k=1.0, delta0=0.5)
    with pytest.raises(ParameterError, match="reservation_distance"):
        av.optimal_depth_power(gamma=0.1, k=3.0, delta0=0.5, reservation_distance=-0.5)
    with pytest.raises(ParameterError, match="shapes"):
        av.moments_of_quotes(np.ones(3), np.ones(2), sigma=2.0, A=1.0, k=1.0, horizon=1.0)


def test_without_compilation():
    code = ("import numpy as np; from makerlab.models import avellaneda_stoikov as av; p = dict(gamma=.1, sigma=2., A=140., k=1.5);"
            "s = av.simulate(n_paths=3, **p, horizon=1., n_steps=20, rng=np.random.default_rng(4), workers=1);"
            "print(repr(s.profit.tolist()), av.exact_moments(**p, horizon=1., n_steps=4)['profit_mean'])")
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONWARNINGS": "ignore"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    s = av.simulate(n_paths=3, **PAPER, horizon=1.0, n_steps=20, rng=np.random.default_rng(4))
    profit, mean = out.rsplit(" ", 1)
    np.testing.assert_allclose(eval(profit), s.profit, rtol=1e-12)
    assert math.isclose(float(mean), av.exact_moments(**PAPER, horizon=1.0, n_steps=4)["profit_mean"], rel_tol=1e-12)
