"Hawkes processes: oracles, twins, gradients, simulation, statuses, ties, several kinds, and the real trades that the page quotes."
import functools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.calibration import hawkes as H
from makerlab.calibration.hawkes import (STATUS, HawkesModel, compensator, event_seconds, hawkes_intensity, hawkes_loglik, hawkes_loglik_gradient,
                                         hawkes_loglik_slow, simulate_hawkes, untie)
from makerlab.core import DataError, ParameterError

ORACLES = Path(__file__).parent / "oracles"
CASES = [c for c in json.loads((ORACLES / "oracles.json").read_text(encoding="utf8"))["cases"] if c["area"] == "hawkes"]
TRUTH = dict(mu=.8, alpha=.9, beta=1.8)
TWO = dict(mu=[.5, .3], alpha=[[.5, .2], [.1, .6]], beta=[2., 1.5])


@functools.cache
def tape(T=1500., seed=7):
    return simulate_hawkes(T=T, **TRUTH, rng=np.random.default_rng(seed))


def slow_of_kinds(rows, T, mu, alpha, beta):
    "The double sum over pairs of events, kind by kind; ties as the merged order has them."
    kind = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    t = np.concatenate(rows)
    order = np.argsort(t, kind="stable")
    t, kind = t[order], kind[order]
    total = 0.0
    for i, (when, k) in enumerate(zip(t, kind)):
        total += math.log(mu[k] + sum(alpha[k][kind[j]] * math.exp(-beta[k][kind[j]] * (when - t[j])) for j in range(i)))
    for k in range(len(rows)):
        total -= mu[k] * T + sum(alpha[k][kind[j]] / beta[k][kind[j]] * (1 - math.exp(-beta[k][kind[j]] * (T - t[j]))) for j in range(len(t)))
    return total


# ---------------------------------------------------------------- oracles

@pytest.mark.parametrize("case", [c for c in CASES if "events" in c["inputs"]], ids=lambda c: c["id"])
def test_oracle(case):
    i, want = case["inputs"], case["expected"]
    t, T, p = np.array(i["events"], float), float(i["T"]), {n: float(i[n]) for n in ("mu", "alpha", "beta")}
    assert hawkes_loglik(t, T=T, **p) == pytest.approx(float(want["log_likelihood"]), rel=1e-12)
    assert hawkes_loglik([t], T=T, **p) == pytest.approx(float(want["log_likelihood"]), rel=1e-12)
    assert hawkes_loglik_slow(t, T=T, **p) == pytest.approx(float(want["log_likelihood"]), rel=1e-12)
    assert hawkes_intensity(t, **p) == pytest.approx(np.array(want["intensity_at_events_left_limit"], float), rel=1e-12)
    assert compensator(t, T=T, **p) == pytest.approx(float(want["compensator_T"]), rel=1e-12)
    other = {**p, "alpha": p["alpha"] * p["beta"]}  # the other convention, alpha beta exp(-beta u), is another number
    if p["alpha"] > 0:
        assert abs(hawkes_loglik(t, T=T, **other) - float(want["log_likelihood"])) > .1


def test_recovery_file():
    case = next(c for c in CASES if "file" in c["inputs"])
    want = case["expected"]
    t = np.loadtxt(ORACLES / case["inputs"]["file"], skiprows=1)  # committed beside the oracles
    fit = HawkesModel(t, T=case["inputs"]["T"]).fit()
    assert fit.status == "ok" and fit.nobs == want["n_events"] == len(t)
    for name, value in want["mle"].items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6)  # the oracle allows 1e-3
    assert fit.llf == pytest.approx(want["max_log_likelihood"], abs=1e-8)  # and 1e-4
    assert np.sqrt(np.diag(fit.log_cov)) == pytest.approx(want["se_log_params"], rel=1e-6)
    assert fit.residuals().ks_pvalue == pytest.approx(want["residual_KS_p"], abs=2e-3)
    assert hawkes_loglik(t, T=1500., **want["true"]) == pytest.approx(want["log_likelihood_at_truth"], abs=1e-8)
    lo, hi = fit.branching_interval()
    assert lo < .5 < hi and fit.branching_ratio == pytest.approx(.50174, abs=1e-4)


# ---------------------------------------------------------------- twins

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(.05, 5), st.floats(0, 5), st.floats(-7, 7), st.booleans())
def test_fast_is_slow_and_the_gradient_is_its_slope(seed, mu, alpha, log_beta, tied):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.random(rng.integers(0, 60)) * 10)
    t = np.floor(t * 4) / 4 if tied else t
    p = np.array([mu, alpha, math.exp(log_beta)])
    value = lambda q: hawkes_loglik_slow(t, T=10., mu=q[0], alpha=q[1], beta=q[2])  # noqa: E731
    llf, grad = hawkes_loglik_gradient(t, T=10., mu=p[0], alpha=p[1], beta=p[2])
    assert llf == pytest.approx(value(p), rel=1e-10, abs=1e-9)
    assert hawkes_loglik([t], T=10., mu=p[0], alpha=p[1], beta=p[2]) == pytest.approx(llf, rel=1e-11, abs=1e-10)
    for j in range(3):
        h = 1e-5 * max(p[j], 1e-3)
        up, down = p.copy(), p.copy()
        up[j], down[j] = p[j] + h, max(p[j] - h, 0)
        slope = (value(up) - value(down)) / (up[j] - down[j])
        assert grad[j] == pytest.approx(slope, rel=2e-3 if p[1] < h else 2e-5, abs=1e-4 * (1 + abs(grad[j])))
    assert H._loglik_nb.py_func(t, np.array([0, len(t)]), np.array([10.]), p[:1], p[1], p[2], np.empty(3)) == pytest.approx(llf, rel=1e-11, abs=1e-10)


def tail_exactly(x):
    "(1 - exp(-x)) / x and two derivatives from its power series, in exact fractions."
    x, out = Fraction(x), []
    for order in range(3):
        total, term = Fraction(0), Fraction((-1)**order, math.factorial(order + 1)) * math.factorial(order)
        for m in range(order, order + 60 + int(4 * x)):
            total += term
            term *= -x * Fraction(m + 1, (m + 2) * (m + 1 - order))
        out.append(float(total))
    return out


@pytest.mark.parametrize("beta", [1e-9, 1e-4, .99, 1.01, 50.])
def test_tail_without_cancellation(beta):
    x = np.array([3., 1., .5, .1])
    assert list(H._tail_nb(beta * .7)) == pytest.approx(tail_exactly(beta * .7), rel=1e-12)
    sums = (float(((-x)**m * np.exp(-beta * x)).sum()) for m in range(3))  # R(T) and its derivatives
    c, c1, c2 = H._spent_nb(3 - x, np.zeros(4, dtype=np.int64), 0, 3., beta, 4, *sums)
    want = np.array([tail_exactly(beta * v) for v in x])
    assert [c, c1, c2] == pytest.approx([float((x**(m + 1) * want[:, m]).sum()) for m in range(3)], rel=1e-11)


def test_several_kinds_against_the_double_sum_and_row_hessian():
    rng = np.random.default_rng(5)
    rows = [np.sort(np.floor(rng.random(n) * 200) / 10) for n in (25, 18, 9)]  # with ties within and between kinds
    mu, alpha, beta = rng.random(3) + .1, rng.random((3, 3)), rng.random((3, 3)) * 3 + .05
    assert hawkes_loglik(rows, T=20., mu=mu, alpha=alpha, beta=beta) == pytest.approx(slow_of_kinds(rows, 20., mu, alpha, beta), rel=1e-11)
    lam = hawkes_intensity({"a": rows[0], "b": rows[1], "c": rows[2]}, mu=mu, alpha=alpha, beta=beta)
    total = compensator(rows, T=20., mu=mu, alpha=alpha, beta=beta)
    assert sum(np.log(v).sum() for v in lam) - total.sum() == pytest.approx(hawkes_loglik(rows, T=20., mu=mu, alpha=alpha, beta=beta), rel=1e-12)
    tp = H._tape(rows, 20., [0., 3., 11., 20.])

    def at(v):
        grad, hess = np.empty(9), np.empty((9, 9))
        return H._row_nb(tp.t, tp.kind, 1, tp.starts, tp.width, v[:3], v[3:6], v[6:], grad, hess), grad, hess

    v = np.concatenate([[.5, .2, .9], alpha[1], beta[1]])
    _, grad, hess = at(v)
    for j, h in enumerate(1e-6 * np.eye(9)):
        up, down = at(v + h), at(v - h)
        assert grad[j] == pytest.approx((up[0] - down[0]) / 2e-6, rel=1e-5, abs=1e-5)
        assert hess[j] == pytest.approx((up[1] - down[1]) / 2e-6, rel=1e-4, abs=1e-4)


def test_fast_baseline_is_the_row_kernel():
    tp = H._tape(tape(), 1500., np.linspace(0, 1500, 6))
    mu, grad, more, hess = np.array([.7, .9, .8, .6, 1.]), np.empty(7), np.empty(7), np.empty((7, 7))
    assert H._row_nb(tp.t, tp.kind, 0, tp.starts, tp.width, mu, np.array([.9]), np.array([1.8]), more, np.empty((0, 0))) < 0
    without = more.copy()
    fast = H._loglik_nb(tp.t, tp.starts, tp.width, mu, .9, 1.8, grad)
    assert fast == pytest.approx(H._row_nb(tp.t, tp.kind, 0, tp.starts, tp.width, mu, np.array([.9]), np.array([1.8]), more, hess), rel=1e-12)
    assert grad == pytest.approx(more, rel=1e-9) and without.tolist() == more.tolist()


def test_intensity_at_other_times_looks_only_back():
    t = tape()[:200]
    at = np.linspace(0, t[-1], 57)
    direct = [.8 + .9 * np.exp(-1.8 * (x - t[t < x])).sum() for x in at]
    assert hawkes_intensity(t, **TRUTH, at=at) == pytest.approx(np.array(direct), rel=1e-11)
    assert hawkes_intensity(t, **TRUTH, at=t) == pytest.approx(hawkes_intensity(t, **TRUTH), rel=1e-11)
    cut = 100
    assert hawkes_intensity(t[:cut], **TRUTH).tolist() == hawkes_intensity(t, **TRUTH)[:cut].tolist()  # the future does not matter


# ---------------------------------------------------------------- simulation

def test_simulation_repeats_to_the_bit_and_has_the_right_moments():
    a, b = (simulate_hawkes(T=300., **TRUTH, rng=np.random.default_rng(11)) for _ in range(2))
    assert a.tobytes() == b.tobytes()
    state = H.rng_streams(1, rng=np.random.default_rng(11))[0]
    out, kinds = np.empty(2000), np.empty(2000, dtype=np.int64)
    with np.errstate(over="ignore"):
        n = H._thin_nb.py_func(state, np.array([0., 300.]), np.array([[.8]]), np.array([[.9]]), np.array([[1.8]]), out, kinds)
    assert out[:n] == pytest.approx(a, rel=1e-12)
    rng = np.random.default_rng(1)
    counts = np.array([len(simulate_hawkes(T=200., **TRUTH, rng=rng)) for _ in range(800)])
    start = .5 / (.9 * (1 - .5))  # events lost to the empty past: mean rate n / ((beta - alpha)(1 - n)) mu
    mean = 200 * 1.6 - .8 * start
    assert abs(counts.mean() - mean) < 4 * counts.std() / math.sqrt(800)
    assert counts.var() / counts.mean() == pytest.approx(4, abs=4 * 4 * math.sqrt(2 / 800) + .1)  # 1 / (1 - n)^2


def test_simulation_of_kinds_and_baselines():
    rows = simulate_hawkes(T=20_000., **TWO, rng=np.random.default_rng(2))
    G = np.array(TWO["alpha"]) / np.array(TWO["beta"])[:, None]
    rate = np.linalg.solve(np.eye(2) - G, TWO["mu"])
    spread = np.linalg.inv(np.eye(2) - G) @ np.diag(rate) @ np.linalg.inv(np.eye(2) - G).T / 20_000
    assert (np.abs([len(r) / 20_000 for r in rows] - rate) < 4 * np.sqrt(np.diag(spread))).all()
    t = simulate_hawkes(T=1000., mu=[0., 2., 0.], alpha=0., beta=1., edges=[0., 400., 900., 1000.], rng=np.random.default_rng(3))
    assert t.min() >= 400 and t.max() <= 900 and abs(len(t) - 1000) < 4 * math.sqrt(1000)
    assert len(simulate_hawkes(T=10., mu=0., alpha=.5, beta=1., rng=np.random.default_rng(3))) == 0
    with pytest.raises(ParameterError, match="explosive"):
        simulate_hawkes(T=1e4, mu=1., alpha=3., beta=2., rng=np.random.default_rng(3), n_max=50_000)


# ---------------------------------------------------------------- the fit

def test_recovers_parameters_and_units():
    t = tape()
    fit = HawkesModel(t, T=1500.).fit()
    assert (np.abs(np.log(fit.params / pd.Series(TRUTH))) < 4 * np.sqrt(np.diag(fit.log_cov))).all()
    hours = HawkesModel(t / 3600, T=1500 / 3600).fit()  # another clock, the same answer
    assert hours.params.to_numpy() / 3600 == pytest.approx(fit.params.to_numpy(), rel=1e-6)
    assert hours.branching_interval() == pytest.approx(fit.branching_interval(), rel=1e-4)
    assert fit.mean_rate == pytest.approx(len(t) / 1500, rel=.01)
    assert np.abs(hawkes_loglik_gradient(t, T=1500., **fit.params)[1] * fit.params.to_numpy()).max() < 1e-4
    table = fit.summary()
    assert list(table.index) == ["mu", "alpha", "beta", "branching_ratio", "mean_rate"] and set(table["unit"]) == {"1/s", ""}
    assert "stationary" in repr(fit) and "| branching_ratio |" in fit._repr_markdown_()
    assert fit.residuals().passes and fit.residuals().increments.sum() < len(t)
    with pytest.raises(ParameterError, match="alpha"):
        fit.branching_interval(1.5)


def test_likelihood_interval_ends_where_the_profile_has_fallen():
    fit = HawkesModel(tape(), T=1500.).fit()
    p, z, _free = fit.rows[0]
    for end in fit.branching_interval():
        others = np.array([True, False, True])
        start = z.copy()
        start[1] = math.log(end)
        assert 2 * (fit.llf + H._polish(p, start, others)[1]) == pytest.approx(3.841459, abs=1e-3)


def test_one_kind_in_a_list_is_one_kind():
    a, b = HawkesModel(tape(), T=1500.).fit(), HawkesModel([tape()], T=1500.).fit()
    assert a.params.tolist() == b.params.tolist()


@pytest.mark.parametrize("decay", ["row", "pair"])
def test_two_kinds(decay):
    rows = simulate_hawkes(T=2500., **TWO, rng=np.random.default_rng(9))
    fit = HawkesModel({"buy": rows[0], "sell": rows[1]}, T=2500., decay=decay).fit()
    assert fit.status == "ok" and list(fit.branching_matrix.columns) == ["buy", "sell"]
    beta = TWO["beta"] if decay == "row" else np.repeat(TWO["beta"], 2)
    want = np.concatenate([TWO["mu"], np.ravel(TWO["alpha"]), beta])
    assert (np.abs(np.log(fit.params / want)) < 4 * np.sqrt(np.diag(fit.log_cov))).all()
    lo, hi = fit.branching_interval()
    assert lo < np.abs(np.linalg.eigvals(np.array(TWO["alpha"]) / np.array(TWO["beta"])[:, None])).max() < hi
    assert fit.residuals("sell").passes and fit.mean_rate["buy"] == pytest.approx(len(rows[0]) / 2500, rel=.02)
    assert fit.llf == pytest.approx(hawkes_loglik(rows, T=2500., mu=fit.mu[:, 0], alpha=fit.alpha, beta=fit.beta), rel=1e-10)


def test_a_kind_that_does_not_excite():
    rows = simulate_hawkes(T=1500., mu=[.5, .3], alpha=[[.5, 0.], [.2, .6]], beta=[2., 1.5], rng=np.random.default_rng(4))
    fit = HawkesModel(rows, T=1500.).fit()
    assert fit.status in ("ok", "alpha_at_zero")
    if fit.status == "ok":
        assert fit.conf_int().loc["alpha[0<-1]", "lower"] == 0
    assert fit.conf_int().loc["alpha[1<-0]", "lower"] > 0 and fit.branching_interval()[0] > 0


# ---------------------------------------------------------------- verdicts

def test_statuses():
    rng = np.random.default_rng(6)
    even = np.arange(400) + .5  # more regular than Poisson: excitation never helps
    flat = HawkesModel(even, T=400.).fit()
    assert flat.status == "alpha_at_zero" and flat.params["alpha"] == 0 and math.isnan(flat.params["beta"]) and flat.branching_ratio == 0
    assert flat.llf == pytest.approx(-400) and flat.params["mu"] == pytest.approx(1) and flat.branching_interval()[0] == 0
    tied = HawkesModel(np.floor(tape()), T=1500.).fit()
    assert tied.status == "ties" and tied.params.isna().all() and math.isnan(tied.branching_ratio) and not tied.stationary and "untie" in tied.message
    assert HawkesModel(tape()[:4], T=1500.).fit().status == "too_few_events"
    assert math.isnan(HawkesModel(tape()[:4], T=1500.).fit().branching_interval()[0])
    boom = HawkesModel(simulate_hawkes(T=14., mu=1., alpha=2.5, beta=2., rng=np.random.default_rng(4)), T=14.).fit()
    assert boom.status == "supercritical" and boom.branching_ratio > 1 and not boom.stationary and math.isnan(boom.mean_rate)
    assert boom.branching_interval()[0] < 1.25 < boom.branching_interval()[1]
    seen = [HawkesModel(np.sort(rng.random(500)) * 300, T=300.).fit() for _ in range(12)]
    assert all(f.branching_interval()[0] == 0 for f in seen if f.status in ("weak", "alpha_at_zero"))
    assert sum(f.status in ("weak", "alpha_at_zero", "beta_at_zero") for f in seen) >= 9
    weak = next(f for f in seen if f.status == "weak")
    assert weak.bse.isna().all() and weak.conf_int().isna().all(axis=None)
    half = np.sort(np.concatenate([rng.random(300) * 100]))
    hole = HawkesModel(half, T=200., baseline=2).fit()
    assert hole.params["mu_2"] == 0 or hole.params["mu_2"] < 1e-3
    assert set(STATUS) >= {f.status for f in [*seen, flat, tied, boom, hole]}


def test_ties_make_the_likelihood_unbounded():
    t = np.floor(tape() * 10) / 10
    grow = [hawkes_loglik(t, T=1500., mu=.8, alpha=.5 * b, beta=b) for b in 10.0**np.arange(3, 12)]
    assert (np.diff(grow) > 100).all()
    assert hawkes_intensity(np.array([1., 1., 1.]), mu=.5, alpha=2., beta=3.).tolist() == [.5, 2.5, 4.5]  # file order


def test_untie_and_seconds():
    t = np.array([0., 1., 1., 1., 4.])
    assert untie(t, how="merge").tolist() == [0., 1., 4.]
    spread = untie(t, how="spread", step_s=1., rng=np.random.default_rng(1))
    assert len(spread) == 5 and (np.floor(spread) == t).all() and (np.diff(spread) > 0).all()
    stamps = pd.to_datetime(["2018-01-02 14:30:00.000000001", "2018-01-02 14:30:01.5"]).tz_localize("UTC")
    assert event_seconds(stamps, start=pd.Timestamp("2018-01-02 09:30", tz="America/New_York")).tolist() == [1e-9, 1.5]
    with pytest.raises(DataError, match="zone"):
        event_seconds(stamps.tz_localize(None), start=stamps[0])
    with pytest.raises(ParameterError, match="step_s"):
        untie(t, how="spread")


def test_merging_hides_and_a_constant_baseline_invents():
    t = tape(4000., 21)
    coarse = np.floor(t)
    merged, spread = (HawkesModel(untie(coarse, how=how, step_s=1., rng=np.random.default_rng(1)), T=4001.).fit() for how in ("merge", "spread"))
    assert merged.branching_interval()[1] < .45 and spread.branching_interval()[0] < .5 < spread.branching_interval()[1]
    edges = np.linspace(0, 23_400, 79)
    shape = .5 + 3 * ((edges[:-1] + edges[1:]) / 23_400 - 1)**2
    u = simulate_hawkes(T=23_400., mu=.25 * shape / shape.mean(), alpha=0., beta=1., edges=edges, rng=np.random.default_rng(3))
    one, many = HawkesModel(u, T=23_400.).fit(), HawkesModel(u, T=23_400., baseline=26).fit()
    assert one.branching_interval()[0] > .8 and one.residuals().passes and many.branching_ratio < .2 and many.aic < one.aic - 50


def test_refusals():
    for times, T, match in (([.3, .2], 1, "goes back"), ([.3, 1.2], 1, "within 0 and T"), ([math.nan], 1, "finite"), ([-.1, .2], 1, "within 0 and T")):
        with pytest.raises(DataError, match=match):
            HawkesModel(np.array(times), T=T).fit()
    for more in (dict(T=0), dict(T=1, baseline=0), dict(T=1, baseline=[0., .5]), dict(T=1, decay="no")):
        with pytest.raises(ParameterError):
            HawkesModel(np.array([.1, .2, .3, .4, .5, .6]), **more).fit()
    for bad in (dict(mu=0, alpha=1, beta=1), dict(mu=1, alpha=-1, beta=1), dict(mu=1, alpha=1, beta=0), dict(mu=1, alpha=math.nan, beta=1)):
        with pytest.raises(ParameterError):
            hawkes_loglik([.1, .2], T=1, **bad)
    with pytest.raises(ParameterError, match="do not fit"):
        hawkes_loglik([np.array([.1]), np.array([.2])], T=1, mu=[1., 1., 1.], alpha=1., beta=1.)
    with pytest.raises(DataError, match="buy"):
        HawkesModel({"buy": np.array([.2, .1]), "sell": np.array([.1])}, T=1.).fit()


# ---------------------------------------------------------------- real trades: the figures that the page quotes

@functools.cache
def executions(symbol):
    from makerlab.data.lob import load_lobster
    trades = load_lobster(real(f"lobster_samples/LOBSTER_SampleFile_{symbol}_2012-06-21_1.zip")).trades()
    return untie(event_seconds(trades["time"], start=pd.Timestamp("2012-06-21 09:30", tz="America/New_York")), how="merge")


def quoted(fit, n, lo, hi):
    assert fit.status == "ok" and fit.stationary
    assert [fit.branching_ratio, *fit.branching_interval()] == pytest.approx([n, lo, hi], abs=6e-4)


@pytest.mark.realdata
@pytest.mark.parametrize(("symbol", "stamps", "want", "memory_ms", "by_five_minutes"), [
    ("AAPL", 24_861, (.4655, .4568, .4743), 2.2, .458), ("AMZN", 8_183, (.4760, .4607, .4915), 4.6, .464)])
def test_lobster_executions(symbol, stamps, want, memory_ms, by_five_minutes):
    t = executions(symbol)
    one, many = HawkesModel(t, T=23_400.).fit(), HawkesModel(t, T=23_400., baseline=78).fit()
    assert len(t) == stamps
    quoted(one, *want)
    assert 1000 / one.params["beta"] == pytest.approx(memory_ms, abs=.06)
    assert many.branching_ratio == pytest.approx(by_five_minutes, abs=6e-4) and many.branching_ratio < one.branching_ratio
    assert many.aic < one.aic - 2000 and (symbol != "AAPL" or many.aic < one.aic - 5000)
    for fit in (one, many):
        assert not fit.residuals().passes and .05 < fit.residuals().ks < .105  # one exponential is not enough


@pytest.mark.realdata
@pytest.mark.parametrize(("date", "want", "memory_ms", "by_five_minutes"), [
    ("2018-01-02", (.2052, .1899, .2213), 35, .189), ("2018-01-03", (.1842, .1693, .2000), 28, .172)])
def test_highfrequency_trades(date, want, memory_ms, by_five_minutes):
    from makerlab.data.taq import load_trades
    trades = load_trades(real("highfrequency_rda/data/sampleTData.rda"), tz="UTC")
    when = trades["time"][trades["time"].dt.tz_convert("America/New_York").dt.strftime("%Y-%m-%d") == date]
    t = untie(event_seconds(when, start=pd.Timestamp(f"{date} 09:30", tz="America/New_York")), how="merge")
    one, many = HawkesModel(t, T=23_400.).fit(), HawkesModel(t, T=23_400., baseline=78).fit()
    quoted(one, *want)
    assert 1000 / one.params["beta"] == pytest.approx(memory_ms, abs=.6) and many.branching_ratio == pytest.approx(by_five_minutes, abs=1e-3)
    assert not one.residuals().passes and not many.residuals().passes and .04 < many.residuals().ks


@pytest.mark.realdata
def test_a_coarser_clock_gives_another_ratio():
    t, n = executions("AAPL"), {}
    stamps = untie(np.floor(t), how="spread", step_s=1., rng=np.random.default_rng(1))
    for pieces in (1, 78):
        fit = HawkesModel(stamps, T=23_401., baseline=pieces).fit()
        n[pieces] = fit.branching_ratio
        assert 1 / fit.params["beta"] == pytest.approx(.31, abs=.03)
    assert [n[1], n[78]] == pytest.approx([.72, .67], abs=.008)


def test_slips_are_named():
    "Unsorted times to look at used to give a wrong intensity without a word."
    t, p = [0.3, 0.9, 1.0], dict(mu=0.5, alpha=0.8, beta=2.0)
    for call, error, words in ((lambda: hawkes_intensity(t, **p, at=[3.0, 1.0]), DataError, "at: time goes back"),
                               (lambda: hawkes_intensity(t, **p, at=[math.nan]), DataError, "at: event times"),
                               (lambda: H.untie([1.0, math.nan], how="merge"), DataError, "finite"),
                               (lambda: hawkes_loglik(t, T=2, mu=1.0, alpha="a", beta=1.0), ParameterError, "alpha = 'a'"),
                               (lambda: hawkes_loglik(["a"], T=2, **p), DataError, "event_seconds"),
                               (lambda: HawkesModel(t, T=2, baseline=math.nan).fit(), ParameterError, "baseline = nan"),
                               (lambda: HawkesModel(t, T=2).fit().residuals("buy"), ParameterError, "kind = 'buy'")):
        with pytest.raises(error, match=words):
            call()
