"Intensity calibration: oracles, twins, the GLM, edge cases, depth counts and a real day."

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from makerlab.calibration import intensity as I
from makerlab.calibration.intensity import (STATUS, ExponentialIntensity, IntensityModel, PowerIntensity, bootstrap, depth_counts,
                                            fit_many, fit_slow, quotable_counts, to_reach)
from makerlab.core import DataError, ParameterError

CASES = [c for c in json.loads((Path(__file__).parent / "oracles" / "oracles.json").read_text())["cases"] if c["area"] == "intensity_mle"]


def table(delta, count, exposure):
    return pd.DataFrame({"delta": np.asarray(delta, float), "count": np.asarray(count, float), "exposure": np.asarray(exposure, float)})


def fit_case(c, **more):
    i = c["inputs"]
    law = "power" if i["model"].startswith("power") else "exponential"
    delta0 = float(i["delta0"]) if "delta0" in i else "estimate" if law == "power" else None
    return IntensityModel(table(i["delta"], i["count"], i["exposure"]), law=law, delta0=delta0, **more).fit()


def check_numbers(f, want):
    got = {"A": f.params["A"], "k": f.params["k"], "se_logA": f.se_log_A, "se_A": f.bse["A"], "se_k": f.bse["k"], "corr_logA_k": f.corr_log_A_k}
    for name, value in got.items():
        if name in want:
            assert value == pytest.approx(float(want[name]), rel=1e-8), name
    logs = {"log_likelihood": f.llf, "AIC": f.aic, "BIC_n_bins": f.bic, "BIC_n_events": f.bic_events, "deviance": f.deviance, "pearson_chi2": f.pearson_chi2}
    for name, value in logs.items():
        if name in want:
            assert value == pytest.approx(float(want[name]), abs=1e-8), name
    if "expected_counts" in want:
        assert f.bins["expected"].to_numpy() == pytest.approx(np.array(want["expected_counts"], float), rel=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_oracle(case):
    f, want = fit_case(case), case["expected"]
    if want.get("interior_mle") is False:
        assert f.status == "delta0_at_infinity" and math.isnan(f.params["A"]) and f.bse.isna().all()
        assert f.llf == pytest.approx(float(want["sup_log_likelihood"]), abs=1e-8)
        assert isinstance(f.law, ExponentialIntensity)
    elif "delta0" in want:
        assert f.status == "ok" and f.aic == pytest.approx(float(want["AIC_p3"]), abs=1e-6)
        assert [f.delta0, f.params["A"], f.params["k"]] == pytest.approx([float(want[n]) for n in ("delta0", "A", "k")], rel=1e-4)
        assert f.llf == pytest.approx(float(want["log_likelihood"]), abs=1e-6) and f.bse.notna().all()
    elif "unconstrained" in want:
        check_numbers(f, want["unconstrained"])
        g = fit_case(case, k_nonnegative=True)
        assert f.status == "k_not_positive" and f.law is None and g.status == "k_at_zero" and g.bse.isna().all()
        check_numbers(g, want["constrained_k_ge_0"])
    elif "fit_two_bins" in want:
        assert f.dropped == (2,) and "row(s) 2" in f.message
        check_numbers(f, want["fit_two_bins"])
    elif want["k"] in ("+inf", "-inf"):
        assert f.params["k"] == float(want["k"]) and f.bse.isna().all() and not f.converged
        assert f.status == ("k_at_plus_infinity" if want["k"] == "+inf" else "k_at_minus_infinity")
        assert f.llf == pytest.approx(float(want["sup_log_likelihood"]), abs=1e-8)
    elif want["k"] == "any":
        assert math.isnan(f.params["k"]) and f.llf == pytest.approx(float(want["log_likelihood"]), abs=1e-8)
        assert f.status == ("no_counts" if "A" in want else "k_not_identified")
        assert (f.params["A"] == 0) if "A" in want else f.predict(1.0)[0] == pytest.approx(0.25)
    else:
        assert f.status == "ok" and f.converged
        check_numbers(f, want)


bins = st.integers(3, 12).flatmap(lambda m: st.tuples(
    st.lists(st.floats(0.0, 10.0), min_size=m, max_size=m), st.lists(st.integers(0, 400), min_size=m, max_size=m),
    st.lists(st.floats(1.0, 1e4), min_size=m, max_size=m)))


@settings(max_examples=60, deadline=None)
@given(bins)
def test_score_is_zero_and_twin_agrees(case):
    "At a finite maximum both scores vanish, the plain-Python kernel gives the same, and the rate is monotone."
    delta, count, exposure = map(np.array, case)
    f = IntensityModel(table(delta, count, exposure)).fit()
    assert f.status in STATUS
    z = (delta - delta.min()) / (np.ptp(delta) or 1.0)
    args = (z, 1.0 - z, exposure, count.astype(float), 0.0, 1e-12)
    assert I._fit_row_nb(*args) == pytest.approx(I._fit_row_nb.py_func(*args), rel=1e-9, abs=1e-12, nan_ok=True)
    if f.status in ("ok", "k_not_positive"):
        rest = count - f.bins["expected"].to_numpy()
        assert abs(rest.sum()) < 1e-8 * count.sum() and abs(rest @ z) < 1e-8 * count.sum()
        assert f.llf >= I.profile_llf(f.params["k"] * 1.01 + 1e-3, x=delta, count=count, exposure=exposure) - 1e-9
    if f.law is not None:
        rate = f.law.rate(np.sort(delta))
        assert (np.diff(rate) <= 1e-12 * rate[:-1]).all()


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 5), st.floats(0.2, 3), st.integers(0, 2**32 - 1), st.sampled_from([None, 0.3]))
def test_glm_identity(A, k, seed, delta0):
    delta, rng = np.linspace(0.25, 4.0, 9), np.random.default_rng(seed)
    exposure = rng.uniform(100, 900, 9)
    count = rng.poisson(A * np.exp(-k * delta) * exposure).astype(float) + (delta < 1)
    x = delta if delta0 is None else np.log(delta + delta0)
    f = IntensityModel(table(delta, count, exposure), law="exponential" if delta0 is None else "power", delta0=delta0).fit()
    if f.status != "ok":
        return
    glm = sm.GLM(count, np.column_stack([np.ones(9), -x]), offset=np.log(exposure), family=sm.families.Poisson()).fit(tol=1e-12, maxiter=200)
    assert [f.log_A, f.params["k"], f.llf] == pytest.approx([*glm.params, glm.llf], rel=1e-6, abs=1e-7)
    assert [f.se_log_A, f.bse["k"]] == pytest.approx(np.sqrt(np.diag(glm.cov_params())), rel=1e-5)
    A2, k2 = fit_slow(x=x, count=count, exposure=exposure, k_range=(-50, 50))
    assert [f.params["A"], f.params["k"]] == pytest.approx([A2, k2], rel=1e-8)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 4), st.floats(0.3, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_free_delta0_beats_every_given_one(k, delta0, seed, exponential):
    "The reported supremum is at least the best over a wide range of delta0, and equals it at an interior maximum."
    delta, rng = np.array([0.1, 0.3, 0.5, 1, 1.5, 2, 3, 4, 6.0]), np.random.default_rng(seed)
    mean = 400 * (np.exp(-k * delta / 2) if exponential else (delta / delta0 + 1) ** -k)
    b = table(delta, rng.poisson(mean), np.full(9, 100.0))
    f = IntensityModel(b, law="power", delta0="estimate").fit()
    if not f.status.startswith(("ok", "delta0")):
        return
    others = [IntensityModel(b, law="power", delta0=d).fit().llf for d in np.logspace(-4, 4, 33)]
    assert f.llf >= max(others) - 1e-7
    if f.status == "ok":
        near = optimize.minimize_scalar(lambda u: -IntensityModel(b, law="power", delta0=math.exp(u)).fit().llf,
                                        bounds=(math.log(f.delta0) - 1, math.log(f.delta0) + 1), method="bounded", options={"xatol": 1e-10})
        assert -near.fun <= f.llf + 1e-8 and abs(math.exp(near.x) / f.delta0 - 1) < 1e-2
    else:
        assert f.bse.isna().all() and math.isnan(f.params["A"]) and f.status in ("delta0_at_infinity", "delta0_at_zero")


def test_free_delta0_covariance_is_the_numerical_hessian():
    b = table([0.5, 1, 1.5, 2, 3, 4, 6], [900, 420, 240, 170, 80, 50, 20], [100.0] * 7)
    f = IntensityModel(b, law="power", delta0="estimate").fit()
    assert f.status == "ok"
    d, n, e = (b[c].to_numpy() for c in ("delta", "count", "exposure"))
    def nll(p):
        mean = e * np.exp(p[0] - p[1] * np.log(d + p[2]))
        return (mean - n * np.log(mean)).sum()
    p, h, H = np.array([f.log_A, f.params["k"], f.delta0]), 1e-4, np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            ei, ej = h * np.eye(3)[i], h * np.eye(3)[j]
            H[i, j] = (nll(p + ei + ej) - nll(p + ei - ej) - nll(p - ei + ej) + nll(p - ei - ej)) / (4 * h * h)
    want = np.sqrt(np.diag(np.linalg.inv(H)))
    assert [f.se_log_A, f.bse["k"], f.bse["delta0"]] == pytest.approx(want, rel=1e-3)


def test_free_delta0_that_cannot_be():
    two = IntensityModel(table([1, 2], [9, 4], [10, 10]), law="power", delta0="estimate").fit()
    assert two.status == "delta0_not_identified"
    for count, status in (([9, 0, 0, 0], "k_at_plus_infinity"), ([0, 0, 0, 9], "k_at_minus_infinity"), ([0] * 4, "no_counts")):
        assert IntensityModel(table([1, 2, 3, 4], count, [10] * 4), law="power", delta0="estimate").fit().status == status
    steep = IntensityModel(table([0.01, 0.1, 1, 10], [100000, 1000, 10, 1], [10] * 4), law="power", delta0="estimate").fit()
    assert steep.status in ("delta0_at_zero", "ok") and math.isfinite(steep.llf)


def test_duplicate_distances_are_one_bin():
    one = IntensityModel(table([1, 2, 3], [30, 12, 5], [100, 100, 100])).fit()
    split = IntensityModel(table([1, 1, 2, 3, 3], [10, 20, 12, 1, 4], [40, 60, 100, 70, 30])).fit()
    assert split.params.to_numpy() == pytest.approx(one.params.to_numpy(), rel=1e-12)
    assert split.bse.to_numpy() == pytest.approx(one.bse.to_numpy(), rel=1e-10)
    edge = IntensityModel(table([1, 1, 2], [10, 20, 0], [40, 60, 100])).fit()
    assert edge.status == "k_at_plus_infinity" and edge.predict(1.0)[0] == pytest.approx(0.3)


def test_scale_equivariance_and_counts_that_are_not_whole():
    b = table(np.arange(1, 9) * 0.01, [51.2, 43.1, 35.0, 29.1, 22.6, 19.5, 13.1, 8.4], [600.0] * 8)
    a, c = IntensityModel(b).fit(), IntensityModel(b.assign(delta=b.delta * 100)).fit()
    assert a.params["k"] == pytest.approx(c.params["k"] * 100, rel=1e-10) and a.llf == pytest.approx(c.llf, rel=1e-12)
    slow = IntensityModel(b.assign(exposure=b.exposure * 60)).fit()
    assert slow.params["A"] * 60 == pytest.approx(a.params["A"], rel=1e-10) and slow.params["k"] == pytest.approx(a.params["k"], rel=1e-10)


@pytest.mark.parametrize("k", [1e-6, 0.3, 40.0, 3000.0])
def test_extreme_decays(k):
    delta = np.linspace(0, 10, 15)
    mean = 1e6 * np.exp(-k * delta)
    f = IntensityModel(table(delta, mean, np.ones(15))).fit()
    assert f.status in ("ok", "k_at_plus_infinity")
    if f.status == "ok":
        assert f.params["k"] == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("bad, match", [
    (dict(delta=[1, 2], count=[1, 2], exposure=[10, 0]), "row 1"), (dict(delta=[1, 2], count=[1, -2], exposure=[10, 10]), "row 1"),
    (dict(delta=[1, np.nan], count=[1, 2], exposure=[10, 10]), "row 1"), (dict(delta=[1, 2], count=[1, np.inf], exposure=[10, 10]), "row 1"),
    (dict(delta=[1, -2], count=[1, 2], exposure=[10, 10]), "negative"), (dict(delta=[1, 2], count=[0, 0], exposure=[0, 0]), "exposure"),
    (dict(delta=[], count=[], exposure=[]), "0 row")])
def test_bad_bins(bad, match):
    with pytest.raises(DataError, match=match):
        IntensityModel(table(**bad)).fit()


@pytest.mark.parametrize("arguments, match", [
    (dict(law="gauss"), "law"), (dict(law="power"), "delta0"), (dict(law="power", delta0=0.0), "delta0"), (dict(law="power", delta0="guess"), "delta0"),
    (dict(delta0=1.0), "exponential"), (dict(law="power", delta0=float("nan")), "delta0")])
def test_bad_arguments(arguments, match):
    with pytest.raises(ParameterError, match=match):
        IntensityModel(table([1, 2], [3, 1], [10, 10]), **arguments).fit()
    with pytest.raises(DataError, match="missing"):
        IntensityModel(pd.DataFrame({"delta": [1.0]})).fit()


def test_laws_refuse_nonsense():
    for law in (lambda: ExponentialIntensity(0, 1), lambda: ExponentialIntensity(1, -1), lambda: PowerIntensity(1, 2, -1), lambda: ExponentialIntensity(1, math.nan)):
        with pytest.raises(ParameterError):
            law()
    p = ExponentialIntensity(2.0, 1.0).fill_probability(np.array([0.0, 1.0]), 0.5)
    assert p == pytest.approx(1 - np.exp(-2 * np.exp(-np.array([0, 1.0])) * 0.5))


def test_many_rows_are_single_fits():
    rng = np.random.default_rng(7)
    delta, exposure = np.arange(1, 9) * 0.5, np.full(8, 50.0)
    counts = rng.poisson(50 * 0.2 * np.exp(-0.9 * delta), (200, 8))
    many = fit_many(counts, delta=delta, exposure=exposure).frame()
    for r in range(0, 200, 10):
        f = IntensityModel(table(delta, counts[r], exposure)).fit()
        assert many.status[r] == f.status
        assert many.loc[r, ["A", "k", "se_A", "se_k"]].astype(float).to_numpy() == pytest.approx([*f.params, *f.bse], rel=1e-8, nan_ok=True)
    with pytest.raises(DataError, match="row 0"):
        fit_many(-counts, delta=delta, exposure=exposure)
    with pytest.raises(ParameterError, match="exposure"):
        fit_many(counts, delta=delta, exposure=0.0)


def test_bootstrap_draws_are_poisson_and_reproducible():
    mean = np.array([0.4, 9.0, 700.0])
    cdf, guide, offset, first = I._poisson_tables(mean)
    u = np.random.default_rng(3).uniform(size=4000)
    for i, m in enumerate(mean):
        got = first[i] + np.array([I._draw_poisson_nb.py_func(v, cdf, guide, offset[i], offset[i + 1]) for v in u[:1000]])
        assert (got == stats.poisson.ppf(u[:1000], m)).all()
    f = IntensityModel(table([1, 2, 3, 4], [400, 150, 60, 20], [100] * 4)).fit()
    a, b = (bootstrap(f, n=3000, rng=np.random.default_rng(5)) for _ in range(2))
    assert (a.fits.k == b.fits.k).all() and a.unidentified == 0
    assert a.bse.to_numpy() == pytest.approx(f.bse.to_numpy(), rel=0.08)
    with pytest.raises(ParameterError, match="k_at_plus_infinity"):
        bootstrap(IntensityModel(table([1, 2], [4, 0], [1, 1])).fit(), rng=np.random.default_rng(5))


def test_power_bootstrap_and_reach():
    f = IntensityModel(table(np.arange(1, 9) * 0.5, [500, 260, 160, 110, 80, 60, 47, 38], [100] * 8), law="power", delta0=0.7).fit()
    assert bootstrap(f, n=2000, rng=np.random.default_rng(1)).bse["k"] == pytest.approx(f.bse["k"], rel=0.1)
    with pytest.raises(ParameterError, match="width"):
        to_reach(f, width=-1.0)
    width, law = 0.02, PowerIntensity(3.0, 2.5, 1.0)
    edges = np.arange(0, 8, width)
    exact = table(edges[:-1], 1e5 * -np.diff(law.rate(edges)), np.full(len(edges) - 1, 1e5))
    back = to_reach(IntensityModel(exact, law="power", delta0=1.0 + width / 2).fit(), width=width)
    assert [back.params["A"], back.params["k"], back.delta0] == pytest.approx([3.0, 2.5, 1.0], rel=2e-3)


def tables(mid=100.0, half=0.005):
    t = lambda s: pd.to_datetime((np.asarray(s) * 1e9).astype("int64"), utc=True).as_unit("ns")
    quotes = pd.DataFrame({"time": t([0, 10, 20, 100]), "bid": mid - half + np.array([0, .01, .02, .02]), "ask": mid + half + np.array([0, .01, .02, .02]),
                           "bid_size": 1.0, "ask_size": 1.0})
    trades = pd.DataFrame({"time": t([5, 10, 15, 15, 15, 30]), "price": [100.005, 100.005, 100.015, 100.025, 100.045, 100.015], "size": 1.0,
                           "side": np.array([1, 1, 1, 1, 1, -1], dtype="int8")})
    return quotes, trades


EDGES = 0.01 * (np.arange(6) + 0.5)


def test_depth_counts_definition():
    quotes, trades = tables()
    b = depth_counts(trades, quotes, edges=EDGES)
    assert b["count"].tolist() == [3, 0, 0, 1, 0] and (b.exposure == 200).all()  # the trade at 10 s meets the quote of 0 s; the sweep counts once at 3.5 ticks
    assert b.attrs["notes"]["merged_into_sweeps"] == 2 and b.attrs["notes"]["counted"] == 4
    assert depth_counts(trades, quotes, edges=EDGES, merge_sweeps=False)["count"].tolist() == [4, 1, 0, 1, 0]
    buy, sell = (depth_counts(trades, quotes, edges=EDGES, side=s) for s in ("buy", "sell"))
    assert (buy["count"] + sell["count"]).tolist() == b["count"].tolist() and (buy.exposure == 100).all()
    unsigned = depth_counts(trades.drop(columns="side"), quotes, edges=EDGES)
    assert unsigned["count"].tolist() == b["count"].tolist()


def test_depth_counts_never_look_ahead():
    quotes, trades = tables()
    shifted = quotes.copy()
    shifted.loc[3, ["bid", "ask"]] += 5.0  # after the last trade
    assert depth_counts(trades, shifted, edges=EDGES)["count"].tolist() == depth_counts(trades, quotes, edges=EDGES)["count"].tolist()
    shifted.loc[2, ["bid", "ask"]] += 0.01  # before the last trade: it must matter, or the test could not fail
    assert depth_counts(trades, shifted, edges=EDGES)["count"].tolist() != depth_counts(trades, quotes, edges=EDGES)["count"].tolist()


def test_reachable_exposure_counts_open_time():
    quotes, trades = tables()
    quotes.loc[1, ["bid", "ask"]] = [99.99, 100.03]  # half-spread 2 ticks from 10 s to 20 s
    b = depth_counts(trades, quotes, edges=EDGES, exposure="reachable")
    assert b.exposure.tolist() == [180, 180, 200, 200, 200]
    assert b.attrs["notes"]["in_a_bin_cut_by_the_spread"] == 0
    prints = depth_counts(trades, quotes, edges=EDGES, exposure="reachable", merge_sweeps=False)
    assert prints.attrs["notes"]["in_a_bin_cut_by_the_spread"] == 2  # 0.5 and 1.5 ticks, inside a half-spread of 2


def test_quotable_counts_by_hand():
    quotes, trades = tables(mid=100.005)
    trades = trades.assign(price=trades.price + 0.005)
    quotes.loc[1, ["bid", "ask"]] = [100.0, 100.02]  # two ticks wide from 10 s to 20 s: quotes stand at 1, 2, ... ticks; mid 100.01, so the sweep's 100.05 is 4 ticks deep
    b = quotable_counts(trades, quotes, tick=0.01, max_ticks=4)
    assert b.delta.tolist() == pytest.approx([0.005 * i for i in range(1, 9)]) and (b.width == 0.01).all()
    assert b.exposure.tolist() == [180, 20, 180, 20, 180, 20, 180, 20]
    # 5 s and 10 s at half a tick, the sweep of 15 s at 4 ticks, 30 s at half a tick
    assert b["count"].tolist() == [3, 0, 0, 0, 0, 0, 0, 1]
    between = trades.assign(price=trades.price.where(trades.index != 4, 100.045))  # a print at 3.5 ticks reaches a quote at 3, not at 4
    assert quotable_counts(between, quotes, tick=0.01, max_ticks=4)["count"].tolist() == [3, 0, 0, 0, 0, 1, 0, 0]
    assert quotable_counts(trades, quotes, tick=0.01, max_ticks=2).attrs["notes"]["deeper_than_max"] == 1
    with pytest.raises(DataError, match="tick"):
        quotable_counts(trades, quotes.assign(ask=quotes.ask + 0.003), tick=0.01)
    with pytest.raises(ParameterError, match="tick"):
        quotable_counts(trades, quotes, tick=0.0)


def test_depth_counts_refuses():
    quotes, trades = tables()
    for edges in ([1.0], [0.2, 0.1], [-1.0, 1.0], [0.0, np.nan]):
        with pytest.raises(ParameterError, match="edges"):
            depth_counts(trades, quotes, edges=edges)
    with pytest.raises(ParameterError, match="side"):
        depth_counts(trades, quotes, edges=EDGES, side="up")
    with pytest.raises(DataError, match="no quote precedes"):
        depth_counts(trades.assign(time=trades.time - pd.Timedelta("1D")), quotes, edges=EDGES)
    with pytest.raises(DataError):
        depth_counts(trades.iloc[:0], quotes, edges=EDGES)


def test_coverage_over_2000_tapes():
    "Binomial s.e. 0.0049, so 93-97 % is four of them; a nominal 90 % or 99 % interval would fail."
    cut = 0.01 * (np.arange(13) + 0.5)
    mean = 1000 * -np.diff(np.exp(-60 * cut))
    f = fit_many(np.random.default_rng(11).poisson(mean, (2000, 12)), delta=cut[:-1], exposure=1000.0).to_reach(width=0.01)
    assert f.covers(A=1.0, k=60.0).mean().between(0.93, 0.97).all()


def test_kernels_run_without_numba():
    code = ("import numpy as np, pandas as pd\nfrom makerlab.calibration.intensity import IntensityModel, bootstrap\n"
            "f = IntensityModel(pd.DataFrame({'delta': [1., 2, 3], 'count': [30, 12, 5], 'exposure': 100.})).fit()\n"
            "b = bootstrap(f, n=3, rng=np.random.default_rng(1))\nprint(f.params['k'], *b.fits.k)")
    run = lambda flag: subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True,
                                      env=os.environ | {"NUMBA_DISABLE_JIT": flag}).stdout.split()
    assert np.array(run("1"), float) == pytest.approx(np.array(run("0"), float), rel=1e-10)


@pytest.mark.realdata
def test_a_lobster_day():
    "AAPL 2012-06-21, visible executions: the numbers told in nbs/40."
    from makerlab.data.lob import load_lobster

    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    quotes, trades = day.quotes(), day.trades(hidden=False)
    whole = IntensityModel(depth_counts(trades, quotes, edges=0.01 * (np.arange(41) + 0.5))).fit()
    assert whole.pearson_chi2 == pytest.approx(4117, abs=1) and whole.df_resid == 38
    edges, got = 0.05 + 0.01 * (np.arange(31) + 0.5), {}
    for how in ("clock", "reachable"):
        b = depth_counts(trades, quotes, edges=edges, exposure=how)
        assert b.attrs["notes"]["behind_mid"] == 0 and b.attrs["notes"]["before_first_quote"] == 0
        r = to_reach(IntensityModel(b).fit(), width=0.01)
        got[how] = [r.params["A"], r.bse["A"], r.params["k"], r.bse["k"], r.pearson_chi2]
    assert got["clock"] == pytest.approx([1.174, 0.0296, 35.70, 0.409, 246.2], rel=2e-3)
    b = quotable_counts(trades, quotes, tick=0.01)
    assert b.attrs["notes"]["counted"] + b.attrs["notes"]["deeper_than_max"] == 18016 and b.attrs["notes"]["inside_the_spread"] == 0
    assert IntensityModel(b).fit().pearson_chi2 == pytest.approx(1785.8, abs=0.5)
    power = IntensityModel(b, law="power", delta0="estimate").fit()
    assert [power.delta0, power.bse["delta0"], power.params["k"], power.aic] == pytest.approx([0.0734, 0.00369, 7.683, 634.78], rel=2e-3)
    r = to_reach(IntensityModel(b[b.delta > 0.0549]).fit(), width=0.01)
    assert [r.params["A"], r.bse["A"], r.params["k"], r.bse["k"], r.pearson_chi2] == pytest.approx([4.967, 0.1661, 48.52, 0.4913, 83.2], rel=2e-3)
    assert got["reachable"] == pytest.approx([2.792, 0.1145, 47.87, 0.604, 67.6], rel=2e-3)


def test_flat_counts_and_boundaries():
    flat = table([1, 2, 3], [5, 5, 5], [100] * 3)
    assert [IntensityModel(flat, k_nonnegative=b).fit().status for b in (False, True)] == ["k_not_positive", "k_at_zero"]
    assert IntensityModel(table([1, 2, 3], [3, 4, 5], [100] * 3), law="power", delta0="estimate").fit().status == "k_not_positive"
    with pytest.raises(ParameterError, match="k_nonnegative"):
        IntensityModel(flat, law="power", delta0="estimate", k_nonnegative=True).fit()


@pytest.mark.filterwarnings("error")
def test_no_warning_where_there_is_no_reach():
    reach = fit_many([[1, 2, 3.0], [0, 0, 0], [5, 0, 0], [9, 5, 2]], delta=[1, 2, 3.0], exposure=1.0).to_reach(width=1.0)
    assert np.isnan(reach.A[:3]).all() and reach.A[3] > 0
    assert PowerIntensity(1.0, 2.0, 0.0).rate(0.0) == math.inf
    repr(IntensityModel(table([1000, 1001, 1002], [300, 12, 5], [100] * 3)).fit())


def test_levels_of_intervals_are_checked():
    f = IntensityModel(table([1, 2, 3], [90, 50, 20], [10] * 3)).fit()
    for call in (lambda: f.profile_interval(1.5), lambda: bootstrap(f, n=50, rng=np.random.default_rng(0)).conf_int(2.0)):
        with pytest.raises(ParameterError, match="alpha"):
            call()
    with pytest.raises(ParameterError, match="n = 10.5"):
        bootstrap(f, n=10.5, rng=np.random.default_rng(0))


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0.05, 80.0), st.floats(0.01, 2.0), st.floats(0.0, 3.0))
def test_decay_is_the_slope_of_the_log_rate(A, k, delta0, delta):
    "Exact, against a central difference; page 31b's Hamiltonian takes it as it is."
    from makerlab.models.hamiltonian import decay

    h = 1e-4 * (delta + delta0)
    for law in (ExponentialIntensity(A, k), PowerIntensity(A, k, delta0)):
        slope = (math.log(law.rate(delta - h)) - math.log(law.rate(delta + h))) / (2 * h) if law.rate(delta + h) > 1e-300 else law.decay(delta)
        assert law.decay(delta) == pytest.approx(slope, rel=1e-5) == float(decay(law, delta))
        many = np.array([[delta, delta + 1.0], [delta + 2.0, delta + 3.0]])
        assert law.decay(many).shape == (2, 2) and law.decay(many)[1, 0] == pytest.approx(law.decay(delta + 2.0))
    assert np.isscalar(PowerIntensity(A, k, delta0).decay(delta)) and PowerIntensity(A, k, 0.0).decay(0.0) == math.inf
