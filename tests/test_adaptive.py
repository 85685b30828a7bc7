"Volatility regimes: fixed on training days, blind to the future, recovered when they are there, and traded by the strategy that names them."
import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.backtest.pipeline import Config, calibrate_market, quote_params, run_backtest, split_market
from makerlab.core import DataError, ParameterError
from makerlab.data.source import open_source
from makerlab.models.adaptive import Regimes, fit_regimes, label_regimes, regime_slopes
from makerlab.models.quoting import QuoteParams, gamma_for_skew

CLOCK = pd.date_range("2026-03-02 14:30", periods=12_000, freq="s", tz="UTC")


def tape(rng, *, slopes=(0.001, 0.004), sigmas=(0.005, 0.02), spreads=(0.02, 0.05)):
    "A clock table whose regime changes every ten minutes; ofi_norm foretells the next second's move."
    wild = (np.arange(CLOCK.size) // 600) % 2
    z = rng.normal(size=CLOCK.size)
    moves = np.take(slopes, wild) * z + np.take(sigmas, wild) * 0.3 * rng.normal(size=CLOCK.size)
    return wild, pd.DataFrame({"time": CLOCK, "mid": 100 + np.r_[0, np.cumsum(moves)[:-1]], "spread": np.take(spreads, wild),
                               "sigma": np.take(sigmas, wild) * np.exp(0.05 * rng.normal(size=CLOCK.size)), "ofi_norm": z})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.just(float("nan")), st.floats(1e-6, 10)), min_size=1, max_size=50), st.lists(st.floats(1e-5, 9), max_size=3, unique=True))
def test_labels_count_the_edges_at_or_below(sigma, edges):
    edges = tuple(sorted(edges))
    assert label_regimes(np.array(sigma), edges=edges).tolist() == [-1 if s != s else sum(e <= s for e in edges) for s in sigma]


@pytest.mark.parametrize("seed", range(3))
def test_two_regimes_are_recovered(seed):
    wild, table = tape(np.random.default_rng(seed))
    rule = fit_regimes(table, n=2, horizon_s=1.0)
    assert (rule.label(table["sigma"]) == wild).mean() > 0.99
    t = rule.table
    assert (abs(t["slope"] - [0.001, 0.004]) < 4 * t["kappa_se"]).all() and t["kappa"].iloc[1] > 0
    np.testing.assert_allclose(t["half_spread"], [0.01, 0.025], rtol=0.01)
    want = [gamma_for_skew(h, inventory=1000.0, sigma=s, tau_s=11_700.0) for h, s in zip(t["half_spread"], t["sigma"], strict=True)]
    np.testing.assert_allclose(t["gamma"], want)
    assert abs(t["share"].sum() - 1) < 1e-12 and (t["eta"] == t["kappa"].abs()).all()


def test_slopes_are_those_of_separate_regressions():
    "With one lag and no overlap the joint regression's slopes are each regime's own least squares."
    wild, table = tape(np.random.default_rng(9))
    slope, se = regime_slopes(table, wild, n=2, horizon_s=1.0)
    y, z = np.diff(table["mid"]), table["ofi_norm"].to_numpy()[:-1]
    for r in (0, 1):
        here = wild[:-1] == r
        assert slope[r] == pytest.approx(np.polyfit(z[here], y[here], 1)[0], rel=1e-9)
    few, none = regime_slopes(table.iloc[:700], wild[:700] * 0 + np.r_[np.zeros(690, int), np.ones(10, int)], n=2, horizon_s=1.0)
    assert few[1] == 0 and np.isinf(none[1])


def test_no_slope_no_lean():
    _, table = tape(np.random.default_rng(4), slopes=(0.0, 0.0))
    t = fit_regimes(table, n=2, horizon_s=1.0).table
    assert (t["slope"].abs() < 4 * t["kappa_se"]).all() and (t.loc[t["slope"].abs() < 2 * t["kappa_se"], "kappa"] == 0).all()


def test_a_rule_of_the_past_never_sees_the_day_it_trades():
    rng = np.random.default_rng(5)
    _, table = tape(rng)
    rule, cut = fit_regimes(table.iloc[:6000], n=3), 9000
    other = table.copy()
    other.loc[cut:, ["mid", "sigma", "ofi_norm", "spread"]] = rng.permutation(other.loc[cut:, ["mid", "sigma", "ofi_norm", "spread"]])
    pd.testing.assert_frame_equal(fit_regimes(other.iloc[:6000], n=3).table, rule.table)
    assert (rule.label(table["sigma"])[:cut] == rule.label(other["sigma"])[:cut]).all() and (rule.label(table["sigma"]) != rule.label(other["sigma"])).any()
    assert not fit_regimes(other, n=3).table.equals(fit_regimes(table, n=3).table)  # the scramble was one


def test_what_is_refused():
    _, table = tape(np.random.default_rng(6))
    for n in (0, 5, 1.5):
        with pytest.raises(ParameterError, match="n ="):
            fit_regimes(table, n=n)
    with pytest.raises(DataError, match="longer days"):
        fit_regimes(table.assign(sigma=np.nan))
    with pytest.raises(DataError, match="locked"):
        fit_regimes(table.assign(spread=0.0))
    assert fit_regimes(table.assign(sigma=0.01), n=3).edges == ()  # equal quantiles merge, and none is left
    with pytest.raises(ParameterError, match="edges"):
        label_regimes(table["sigma"], edges=(0.0, 1.0))


@pytest.fixture(scope="module")
def market():
    "Two hours of one sample day."
    m = open_source("sample", symbol="SMLT", end_date="2026-03-02")
    end = m.quotes["time"].iloc[0] + pd.Timedelta("2h")
    return dataclasses.replace(m, quotes=m.quotes[m.quotes["time"] < end].reset_index(drop=True), trades=m.trades[m.trades["time"] < end].reset_index(drop=True))


def test_from_calibration_to_trading(market):
    config = Config(strategy="as-adaptive", regimes=2)
    job = run_backtest(market, config)
    rule = job.calibration.regimes
    assert isinstance(rule, Regimes) and job.results.params.regime_gamma == tuple(rule.table["gamma"]) and "2 volatility regimes" in job.results.info["calibration"]
    one = run_backtest(market, Config(strategy="as-adaptive", regimes=1))
    p = one.results.params
    same = run_backtest(market, Config(strategy="as-ofi", gamma=p.regime_gamma[0], kappa=p.regime_kappa[0], eta=p.regime_eta[0]))
    pd.testing.assert_frame_equal(one.results.path, same.results.path)  # a single regime is the fixed rule
    early, _ = split_market(market)
    with pytest.raises(ParameterError, match="regimes were not measured"):
        quote_params(calibrate_market(early), config=config)


def test_apply_keeps_the_rest():
    _, table = tape(np.random.default_rng(7))
    p = QuoteParams(A=2.0, qty=7.0)
    q = fit_regimes(table, n=4).apply(p)
    assert (q.A, q.qty, q.gamma) == (2.0, 7.0, p.gamma) and len(q.regime_gamma) == 4 and len(q.regime_sigma) == 3


def small(**columns):
    g, n = np.random.default_rng(6), 1000
    base = {"time": pd.date_range("2026-03-02 14:30", periods=n, freq="s", tz="UTC"), "mid": 100 + np.cumsum(0.01 * g.normal(size=n)), "spread": 0.02,
            "sigma": g.uniform(0.01, 0.03, n), "ofi_norm": g.normal(size=n)}
    return pd.DataFrame(base | columns)


def test_an_empty_band_is_no_regime():
    "The quantile between the last 0.01 and the first 0.02 made a band that holds nothing."
    sigma = np.where(np.arange(1000) <= 333, 0.01, 0.02)
    assert np.quantile(sigma, 1 / 3) == 0.01 and len(fit_regimes(small(sigma=sigma)).edges) == 1
    sigma = np.where(np.arange(1000) < 333.5, 0.01, 0.02)[1:].tolist() + [0.02]
    assert 0.01 < np.quantile(sigma, 1 / 3) <= 0.02 and np.isfinite(fit_regimes(small(sigma=sigma)).table["sigma"]).all()


@pytest.mark.parametrize("columns, words", [(dict(spread=np.nan), "every spread is missing"), (dict(spread=0.0), "locked")])
def test_why_a_spread_is_refused(columns, words):
    with pytest.raises(DataError, match=words):
        fit_regimes(small(**columns))


def test_missing_values_are_skipped_and_missing_columns_named():
    assert fit_regimes(small(spread=np.r_[np.nan, np.full(999, 0.02)])).table["half_spread"].to_numpy() == pytest.approx(0.01)
    with pytest.raises(DataError, match="table lacks ofi_norm"):
        fit_regimes(small().drop(columns="ofi_norm"))
    with pytest.raises(ParameterError, match="n = nan"):
        fit_regimes(small(), n=float("nan"))
    with pytest.raises(ParameterError, match="one label a row"):
        regime_slopes(small(), np.zeros(5, dtype=int), n=1, horizon_s=1.0)
