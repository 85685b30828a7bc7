"Tail risk: the oracles, exact small cases, brute-force twins, published conventions and the known wrong answers."
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from makerlab.core import DataError, ParameterError, PriceVol, ReturnVol, UnitError
from makerlab.scoring.tail_risk import (
    _binomial_rank, _cf_moments, _cf_powers, _transition_lr, christoffersen, cornish_fisher_valid, cornish_fisher_var, cvar_interval,
    gaussian_var_cvar, historical_var_cvar, kupiec, price_var_cvar, var_backtest, var_hits, var_interval,
)

CASES = [c for c in json.loads((Path(__file__).parent / "oracles" / "oracles.json").read_text())["cases"] if c["area"] == "risk"]


@pytest.mark.parametrize("case", [c for c in CASES if "gauss" in c["id"]], ids=lambda c: c["id"])
def test_oracles_normal(case):
    i, want = case["inputs"], case["expected"]
    q, price, sigma, time, level = (float(i[k]) for k in ("q", "S", "sigma_return", "T", "alpha"))
    r = gaussian_var_cvar(q, price=price, sigma_return=sigma, horizon=time, level=level, mean_return=float(i["mean_return_per_T_unit"]))
    assert r.var == pytest.approx(float(want["VaR"]), rel=1e-12) and r.cvar == pytest.approx(float(want["CVaR"]), rel=1e-12)
    if q < 0:
        assert r.var != pytest.approx(float(want["seed1_formula_VaR"]))  # a short's VaR is not negative
    same = price_var_cvar(q, sigma=ReturnVol(sigma).to_price(price), horizon=time, level=level)
    assert (same.var, same.cvar) == pytest.approx((r.var, r.cvar), rel=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if "historical" in c["id"]], ids=lambda c: c["id"])
def test_oracles_historical(case):
    r, want = historical_var_cvar(case["inputs"]["pnl"], level=float(case["inputs"]["alpha"])), case["expected"]
    assert r.var == float(want["VaR_lower_quantile"]) and r.cvar == float(Fraction(want["CVaR_rockafellar_uryasev"]))
    assert r.cvar != float(want["seed1_E_loss_given_loss_gt_VaR"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=60), st.integers(1, 99))
def test_historical_in_fractions(pnl, percent):
    "Exact arithmetic: VaR the lower quantile, CVaR the minimum of Rockafellar and Uryasev's function over all losses."
    level, n, losses = Fraction(percent, 100), len(pnl), sorted(Fraction(-x) for x in pnl)
    var = losses[max(math.ceil(level * n), 1) - 1]
    cvar = min(c + sum(max(x - c, Fraction(0)) for x in losses) / n / (1 - level) for c in losses)
    r = historical_var_cvar(pnl, level=percent / 100)
    assert r.var == float(var) and r.cvar == pytest.approx(float(cvar), abs=1e-9) and r.cvar >= r.var - 1e-12


@pytest.mark.parametrize("n", [100, 1000, 12345, 1_000_000])
def test_whole_ranks_survive_floating_point(n):
    losses = np.arange(1.0, n + 1)
    for percent in (5, 29, 55, 57, 58, 95, 99):
        assert historical_var_cvar(-losses, level=percent / 100).var == -(-percent * n // 100)


def test_mean_return_lowers_a_long_and_raises_a_short():
    a, b = (gaussian_var_cvar(q, price=10, sigma_return=0.1, horizon=4, level=0.95, mean_return=0.01) for q in (5, -5))
    z = stats.norm.ppf(0.95)
    assert (a.var, b.var) == pytest.approx((5 * 10 * 0.1 * 2 * z - 2, 5 * 10 * 0.1 * 2 * z + 2))
    tail = integrate.quad(lambda p: stats.norm.ppf(p, -2, 10), 0.95, 1)[0] / 0.05
    assert a.cvar == pytest.approx(tail, rel=1e-6)


def test_units_are_refused_not_converted():
    with pytest.raises(UnitError, match="price_var_cvar"):
        gaussian_var_cvar(1, price=10, sigma_return=PriceVol(0.1), horizon=1, level=0.9)
    with pytest.raises(UnitError, match="to_price"):
        price_var_cvar(1, sigma=ReturnVol(0.1), horizon=1, level=0.9)
    assert gaussian_var_cvar(1, price=10, sigma_return=ReturnVol(0.1), horizon=1, level=0.9) == gaussian_var_cvar(1, price=10, sigma_return=0.1, horizon=1, level=0.9)


@settings(max_examples=200, deadline=None)
@given(st.floats(-3, 3), st.floats(-2, 9))
def test_domain_is_where_the_expansion_rises(skew, excess):
    z = np.linspace(-60, 60, 48_001)
    slope = np.polynomial.polynomial.polyval(z, np.polynomial.polynomial.polyder(_cf_powers(skew, excess)))
    if slope.min() < -1e-4:
        assert not cornish_fisher_valid(skew=skew, excess=excess)
    if cornish_fisher_valid(skew=skew, excess=excess):
        assert slope.min() > -1e-9


@settings(max_examples=200, deadline=None)
@given(st.floats(-3, 3), st.floats(-2, 9))
def test_domain_within_six(skew, excess):
    z = np.linspace(-6, 6, 2401)
    slope = np.polynomial.polynomial.polyval(z, np.polynomial.polynomial.polyder(_cf_powers(skew, excess)))
    if abs(slope.min()) > 1e-3:
        assert cornish_fisher_valid(skew=skew, excess=excess, within=6) == (slope.min() > 0)


def test_cornish_fisher_textbook_form_and_its_tail_mean():
    s, k, z = 0.4, 1.2, stats.norm.ppf(0.99)
    w = z + (z**2 - 1) * s / 6 + (z**3 - 3 * z) * k / 24 - (2 * z**3 - 5 * z) * s**2 / 36
    assert np.polynomial.polynomial.polyval(z, _cf_powers(s, k)) == pytest.approx(w)
    x = -stats.johnsonsu(-0.8, 2.5).ppf((np.arange(20_000) + 0.5) / 20_000)
    r, loss = cornish_fisher_var(x, level=0.97), -x
    powers = _cf_powers(stats.skew(loss), stats.kurtosis(loss))
    quantile = lambda p: loss.mean() + loss.std() * np.polynomial.polynomial.polyval(special.ndtri(p), powers)
    assert r.var == pytest.approx(quantile(0.97), rel=1e-12)
    assert r.cvar == pytest.approx(integrate.quad(quantile, 0.97, 1, limit=200)[0] / 0.03, rel=1e-6)


def test_matched_moments_come_out():
    x = np.random.default_rng(1).standard_t(9, size=4000)
    assert _cf_moments(0, 0) == pytest.approx((1, 0, 0), abs=1e-12)
    assert _cf_moments(0.3, 1.0)[2] > 1.0  # parameters are not moments
    plain, matched = (cornish_fisher_var(x, level=0.99, match=m) for m in (False, True))
    assert plain.var != matched.var and matched.cvar > matched.var
    normal = cornish_fisher_var(special.ndtri((np.arange(9999) + 0.5) / 9999), level=0.99)
    assert normal.var == pytest.approx(stats.norm.ppf(0.99), rel=2e-3)


def test_rank_of_an_interval_is_the_binomial_one():
    "A whole rank r: the loss at rank r is below the true quantile when at least r losses are: a binomial tail."
    for n, level in ((40, 0.9), (500, 0.95)):
        for p in (0.025, 0.975):
            r = _binomial_rank(n, level, p)
            tail = lambda k: stats.binom.sf(k - 1, n, level)  # P(at least k below)
            assert tail(math.ceil(r)) <= p + 1e-9 and tail(math.floor(r)) >= p - 1e-9
    assert _binomial_rank(250, 0.99, 0.025) > 250 and _binomial_rank(100, 0.01, 0.975) < 1


def test_intervals_open_where_the_sample_ends():
    x = np.random.default_rng(2).normal(size=250)
    assert var_interval(x, level=0.99).hi == math.inf and var_interval(x, level=0.95).hi < math.inf
    thin = cvar_interval(x, level=0.99, rng=np.random.default_rng(3))
    assert thin.hi == math.inf and "under ten" in thin.method
    flat = cvar_interval(np.r_[np.zeros(500), np.full(50, -1.0)], level=0.95, rng=np.random.default_rng(3))
    assert (flat.lo, flat.hi) == (1, 1)


def test_studentised_is_longer_upwards():
    x = np.random.default_rng(4).standard_t(4, size=600)
    r = cvar_interval(x, level=0.95, rng=np.random.default_rng(5))
    assert r.lo < r.estimate < r.hi and r.hi - r.estimate > 1.2 * (r.estimate - r.lo)
    assert r.estimate == historical_var_cvar(x, level=0.95).cvar and r == cvar_interval(x, level=0.95, rng=np.random.default_rng(5))


@pytest.mark.parametrize("n, level", [(30, 0.9), (60, 0.95)])
def test_kupiec_exact_against_enumeration(n, level):
    p = 1 - level
    ratios, weights = [], []
    for x in range(n + 1):
        free = (x * math.log(x / n) if x else 0) + ((n - x) * math.log(1 - x / n) if x < n else 0)
        ratios.append(2 * (free - x * math.log(p) - (n - x) * math.log(1 - p)))
        weights.append(math.comb(n, x) * p**x * (1 - p) ** (n - x))
    for x in (0, 1, 3, 7, n):
        r = kupiec(np.arange(n) < x, level=level)
        assert r.statistic == pytest.approx(ratios[x], abs=1e-9)
        assert r.p_value == pytest.approx(sum(w for w, v in zip(weights, ratios, strict=True) if v >= ratios[x] - 1e-9), abs=1e-12)
        assert r.p_asymptotic == pytest.approx(stats.chi2.sf(max(ratios[x], 0), 1)) and r.expected == pytest.approx(n * p)


def slow_christoffersen(h, p):
    "The two ratios by counting transitions one by one."
    count = {(i, j): 0 for i in (0, 1) for j in (0, 1)}
    for a, b in zip(h[:-1], h[1:], strict=True):
        count[int(a), int(b)] += 1
    term = lambda k, x: k * math.log(x) if k else 0.0
    free = sum(term(count[i, j], count[i, j] / (count[i, 0] + count[i, 1])) for i in (0, 1) for j in (0, 1) if count[i, j])
    ones, zeros = count[0, 1] + count[1, 1], count[0, 0] + count[1, 0]
    pool = term(ones, ones / (ones + zeros)) + term(zeros, zeros / (ones + zeros))
    return 2 * (free - pool), 2 * (free - term(ones, p) - term(zeros, 1 - p))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.sampled_from([0.9, 0.95, 0.99]))
def test_christoffersen_against_counting(h, level):
    ind, cc = christoffersen(h, level=level)
    want = slow_christoffersen(h, 1 - level)
    assert (ind.statistic, cc.statistic) == pytest.approx(want, abs=1e-9)
    assert cc.statistic >= ind.statistic - 1e-9 and (ind.df, cc.df) == (1, 2)
    many = _transition_lr(np.array([h, h[::-1]], dtype=np.int64), 1 - level)
    assert many[0][0] == pytest.approx(want[0], abs=1e-9)


def test_simulated_p_values_approach_the_chi_square():
    h = np.random.default_rng(6).random(5000) < 0.1
    h[::7] |= h[1::7][: len(h[::7])]  # a touch of clustering
    for t in christoffersen(h, level=0.9, rng=np.random.default_rng(7), n=999):
        assert t.p_value == pytest.approx(t.p_asymptotic, abs=4 * 0.016 + 0.02)


def test_simulated_tests_hold_their_size():
    rng = np.random.default_rng(8)
    p = np.array([[t.p_value for t in christoffersen(rng.random(100) < 0.05, level=0.95, rng=rng, n=99)] for _ in range(400)])
    assert ((p <= 0.05).mean(axis=0) < 0.05 + 4 * 0.011).all()


def test_the_table_sees_clusters_and_wrong_counts():
    rng = np.random.default_rng(9)
    regime = np.where(np.arange(1000) % 100 < 90, 0.8, 3.0)
    x = regime * rng.normal(size=1000)
    blind = var_backtest(x, float(np.quantile(-x, 0.95)), level=0.95, rng=rng)
    assert blind.p_value["independence"] < 0.01 < 0.5 < blind.p_value["proportion of failures"]
    assert var_backtest(x, regime, level=0.95, rng=rng).p_value["proportion of failures"] < 0.01


@pytest.mark.parametrize("call, error, words", [
    (lambda: gaussian_var_cvar(1, price=0, sigma_return=0.1, horizon=1, level=0.9), ParameterError, "price"),
    (lambda: gaussian_var_cvar(math.nan, price=1, sigma_return=0.1, horizon=1, level=0.9), ParameterError, "q"),
    (lambda: price_var_cvar(1, sigma=0.1, horizon=-1, level=0.9), ParameterError, "horizon"),
    (lambda: historical_var_cvar([1.0, 2.0], level=1.0), ParameterError, "level = 1.0"),
    (lambda: historical_var_cvar(np.ones((3, 2)), level=0.9), ParameterError, "2 columns"),
    (lambda: cornish_fisher_var(np.random.default_rng(1).exponential(size=300) ** 3, level=0.9), ParameterError, "outside the domain"),
    (lambda: kupiec([0, 1, 3], level=0.9), ParameterError, "true/false"),
    (lambda: kupiec([0, 1], level=0.9, p_value="exactly"), ParameterError, "p_value"),
    (lambda: var_hits([1.0, 2.0], [1.0, math.nan]), DataError, "row 1"),
    (lambda: var_interval([1.0], level=0.9), DataError, "at least 2"),
])
def test_meaningless_requests_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_ends_beyond_the_sample_are_the_sample_s():
    "Twenty losses say of a 99.9 % VaR: at least the worst of them, with no upper end; the interval used to be [inf, inf]."
    x = np.random.default_rng(3).normal(size=20)
    for dependent in (False, True):
        r = var_interval(x, level=0.999, dependent=dependent)
        assert r.lo == -x.min() and r.hi == math.inf
    low = var_interval(x, level=0.001)
    assert low.lo == -math.inf and low.hi == -x.max()
    r = historical_var_cvar(x, level=1 - 1e-13)
    assert r.var == r.cvar == -x.min()


def test_the_width_of_clustered_cvar_follows_its_confidence():
    "Student's factor was that of 95 % whatever was asked."
    from makerlab.scoring.metrics import long_run_se

    x = np.random.default_rng(4).standard_t(5, size=400)
    cut = {d: cvar_interval(x, level=0.9, confidence=0.5, dependent=d, rng=np.random.default_rng(1)) for d in (False, True)}
    var = historical_var_cvar(x, level=0.9).var
    excess = np.maximum(-x - var, 0) * 10
    se, df = long_run_se(excess)
    want = se / (excess.std() / 20) * stats.t.ppf(0.75, df) / stats.norm.ppf(0.75)
    assert (cut[True].hi - cut[True].lo) / (cut[False].hi - cut[False].lo) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("call, error, words", [
    (lambda x: var_hits(x, x[1:]), DataError, "one forecast for each period"),
    (lambda x: var_hits(pd.Series(x), pd.Series(x, index=np.arange(1, 31))), DataError, "index differs"),
    (lambda x: var_hits(x, math.nan), ParameterError, "var = nan"),
    (lambda x: var_interval(x, level=0.9, confidence=95), ParameterError, "confidence = 95"),
    (lambda x: cvar_interval(x, level=0.5, n=0, rng=np.random.default_rng(0)), ParameterError, "n = 0 .resamples."),
    (lambda x: christoffersen(x > 0, level=0.9, n=0, rng=np.random.default_rng(0)), ParameterError, "n = 0 .simulations."),
])
def test_slips_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(np.random.default_rng(0).normal(size=30))


def test_a_flat_profit_has_no_cornish_fisher_tail():
    r = cornish_fisher_var(np.full(9, 0.1), level=0.99, match=True)
    assert r.var == pytest.approx(-0.1) and r.cvar == pytest.approx(-0.1)
