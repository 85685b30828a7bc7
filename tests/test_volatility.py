"Volatility pages: twins over random inputs, symmetries, the shape of each method, profiles without look-ahead, and real files."
import math

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, price_sigma
from makerlab.data.lob import load_lobster
from makerlab.features import robust_volatility as rv
from makerlab.features import volatility as v
from makerlab.features.microprice import mid

few = settings(max_examples=25, deadline=None)
METHODS = {"two_scale": rv.two_scale, "realised_kernel": rv.realised_kernel, "pre_averaging": rv.pre_averaging}


def prices(seed: int, n: int = 2000, *, noise: float = 0.004, sigma: float = 0.003) -> pd.Series:
    rng = np.random.default_rng(seed)
    x = 25 + sigma * np.r_[0, np.cumsum(rng.normal(size=n))] + noise * rng.normal(size=n + 1)
    return pd.Series(x, index=pd.date_range("2026-03-02 14:30", periods=n + 1, freq="s", tz="UTC"))


# ---- twins
@few
@given(st.integers(0, 10_000), st.integers(80, 400), st.integers(4, 19))
def test_fast_forms_agree_with_the_definitions(seed, n, scale):
    p = prices(seed, n)
    x = p.to_numpy()
    for f, slow in ((rv.two_scale, rv.two_scale_slow(x, K=scale)), (rv.pre_averaging, rv.pre_averaging_slow(x, k=scale)),
                    (rv.realised_kernel, rv.realised_kernel_slow(x, H=scale))):
        published = f(p, scale=scale).published
        assert published**2 * n == pytest.approx(slow, rel=1e-8, abs=1e-12) if slow >= 0 else math.isnan(published)


@few
@given(st.integers(0, 10_000), st.integers(1, 50))
def test_autocovariances_are_plain_sums(seed, lags):
    r = np.random.default_rng(seed).normal(size=60)
    slow = [r[h:] @ r[: len(r) - h] for h in range(lags + 1)]
    np.testing.assert_allclose(rv.autocovariances(r, lags=lags), slow, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dependence", [0, 1, 5])
def test_weights_are_flat_as_far_as_noise_remembers_and_fall_to_zero(method, dependence):
    w = rv.flat_top_weights(method, scale=30, dependence=dependence)
    assert (w[: dependence + 2] == 1).all() and w[dependence + 2] < 1 and (np.diff(w) <= 1e-12).all() and w[-1] < 0.01


def test_flat_top_triangle_is_two_scales_with_a_slower_fast_scale():
    "Ait-Sahalia, Mykland and Zhang 2011: the same as a flat-top triangle, up to the ends."
    x = prices(3, 20_000).to_numpy()
    gamma = rv.autocovariances(np.diff(x), lags=40)
    w = rv.flat_top_weights("two_scale", scale=40, dependence=4)
    assert rv._two_scale(x, 40, 5)[0] == pytest.approx(rv._apply(w, gamma), rel=0.02)


# ---- what the numbers mean
@pytest.mark.parametrize("method", METHODS)
def test_units_and_scaling(method):
    p, f = prices(1), METHODS[method]
    a, b, slow = f(p), f(25 + 10 * (p - 25)), f(pd.Series(p.to_numpy(), index=p.index[0] + 4 * (p.index - p.index[0])))
    assert b.scale == a.scale and b.sigma == pytest.approx(10 * a.sigma, rel=1e-6) and b.params["noise_var"] == pytest.approx(100 * a.params["noise_var"], rel=1e-6)
    assert slow.sigma == pytest.approx(a.sigma / 2, rel=1e-6) and slow.params["noise_var"] == pytest.approx(a.params["noise_var"], rel=1e-6)
    returns = f(p, kind="return")
    assert returns.sigma * 25 == pytest.approx(a.sigma, rel=0.02) and returns.units["sigma"] == "1/sqrt(s)" and a.units["sigma"] == "price/sqrt(s)"
    assert price_sigma(a.sigma) == a.sigma


@pytest.mark.parametrize("method", METHODS)
def test_standard_error_is_the_scatter(method):
    "The stated standard error against the scatter of 150 sessions, whose own relative error is 1 / sqrt(300)."
    fits = [METHODS[method](prices(seed, 1500)) for seed in range(150)]
    for name in ("sigma", "noise_var"):
        scatter = np.std([f.params[name] for f in fits], ddof=1)
        stated = np.sqrt(np.mean([f.bse[name] ** 2 for f in fits]))
        assert abs(stated / scatter - 1) < 4 / math.sqrt(300), (name, stated, scatter)


def test_standard_error_of_a_known_quadratic_form():
    "The sum of squares of n independent normal changes: variance 2 n s^2; with noise, of the direct covariance matrix."
    one = np.array([1.0, 0.0])
    assert rv._form_cov(one, one, 2.0, np.array([2.0, 0.0]), 100, 1.0, (0.0, 0.0)) == pytest.approx(2 * 100 * 4)
    n, s, om = 400, 0.5, 0.8
    w = rv.flat_top_weights("realised_kernel", scale=12)
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    C = np.where(lag == 0, s + 2 * om, np.where(lag == 1, -om, 0.0))
    W = np.where(lag < w.size, w[np.minimum(lag, w.size - 1)], 0.0)
    exact = 2 * np.trace(W @ C @ W @ C)
    assert rv._form_cov(w, w, s, np.array([s + 2 * om, -om]), n, 1.0, (0.0, 0.0)) == pytest.approx(exact, rel=0.05)


def test_bias_of_the_published_kernel_is_taken_out():
    "At a short bandwidth the published kernel is far too high, by 12 n omega^2 / H^2; ours is not."
    fits = [rv.realised_kernel(prices(s, 3000, noise=0.01), scale=12) for s in range(60)]
    ours, published = (np.mean([np.square(getattr(f, n)) for f in fits]) * 3000 for n in ("sigma", "published"))
    truth, bias = 9e-6 * 3000, 12 * 3000 * 1e-4 / 13**2
    se = np.std([f.sigma**2 * 3000 for f in fits]) / math.sqrt(60)
    assert abs(ours - truth) < 4 * se and published - truth == pytest.approx(bias, rel=0.15)


def test_a_variance_that_comes_out_negative_is_zero_with_an_upper_end():
    found = [f for f in (rv.two_scale(prices(s, 80, noise=0.1, sigma=1e-5), scale=4) for s in range(40)) if f.sigma == 0]
    assert found
    for f in found:
        assert f.conf_int().lower["sigma"] == 0 < f.conf_int().upper["sigma"] and math.isnan(f.bse["sigma"]) and math.isnan(f.published)


@pytest.mark.parametrize(("call", "error", "says"), [
    (lambda p: rv.two_scale(p[:30]), DataError, "at least 61"),
    (lambda p: rv.two_scale(p, scale=2), ParameterError, "scale = 2"),
    (lambda p: rv.pre_averaging(p, dependence=1000), ParameterError, "dependence"),
    (lambda p: rv.two_scale(p, dependence=0.5), ParameterError, "dependence"),
    (lambda p: rv.two_scale(p, kind="log"), ParameterError, "kind"),
    (lambda p: rv.two_scale(p - 25, kind="return"), DataError, "mid is"),
    (lambda p: rv.two_scale(p.reset_index(drop=True)), DataError, "time"),
    (lambda p: rv.flat_top_weights("other", scale=9), ParameterError, "method"),
    (lambda p: rv.two_scale(p).conf_int(2), ParameterError, "alpha"),
    (lambda p: rv.two_scale(p, dependence=math.nan), ParameterError, "dependence = nan"),
    (lambda p: rv.two_scale(p, scale=math.nan), ParameterError, "scale = nan"),
    (lambda p: rv.two_scale(p, scale=10.7), ParameterError, "scale = 10.7"),
    (lambda p: rv.flat_top_weights("two_scale", scale=9, dependence=1.5), ParameterError, "dependence = 1.5"),
    (lambda p: rv.two_scale(p.set_axis(p.index[[0] * len(p)])), DataError, "span 0 s"),
    (lambda p: rv.two_scale(p[::-1]), DataError, "unsorted"),
    (lambda p: rv.two_scale(p * 0 + 25), DataError, "a price that moves"),
    (lambda p: v.diurnal_profile(p), DataError, "at least 3"),
    (lambda p: v.diurnal_profile(p, tz="Mars"), ParameterError, "tz = 'Mars'"),
    (lambda p: v.diurnal_profile(p, bin_s=60, every_s=30), ParameterError, "bin_s"),
])
def test_bad_input_is_refused_in_words(call, error, says):
    with pytest.raises(error, match=says):
        call(prices(2, 300))


# ---- the hour of the day
def days(seed: int, count: int = 5, *, start: str = "2026-03-05") -> pd.Series:
    "Sessions across the change of New York's clocks (8 March 2026), rough in the first hour."
    rng = np.random.default_rng(seed)
    opens = pd.bdate_range(start, periods=count, tz="America/New_York") + pd.Timedelta("9h30min")
    index = pd.DatetimeIndex(np.concatenate([pd.date_range(o.tz_convert("UTC"), periods=781, freq="30s").to_numpy() for o in opens]), tz="UTC")
    step = np.where(np.arange(781) <= 120, 0.02, 0.01)
    return pd.Series(np.concatenate([25 + np.cumsum(step * rng.normal(size=781)) for _ in range(count)]), index=index)


def test_profile_follows_the_local_clock():
    f = v.diurnal_profile(days(1, 8))
    assert list(f.params.index[:2]) == ["09:30", "10:00"] and len(f.params) == 13 and f.days == 8
    assert (f.params**2).mean() == pytest.approx(1) and f.params.iloc[:2].min() > f.params.iloc[2:].max()
    later = f.factor(days(2, 2, start="2026-03-30").index)
    assert later.iloc[0] == f.params.iloc[0] and later.iloc[200] == f.params.iloc[3]
    assert f.factor(pd.DatetimeIndex(["2026-03-31 03:00Z"])).isna().all()


@pytest.mark.parametrize("pause", ["90min", "5h"])  # five hours part the day in two sessions
def test_a_pause_at_noon_belongs_to_the_day_and_has_no_factor(pause):
    m = days(1, 5)
    of_day = (m.index.tz_convert("America/New_York").tz_localize(None) - m.index.tz_convert("America/New_York").tz_localize(None).normalize()) / pd.Timedelta("1h")
    early, late = m[of_day <= 12], m[of_day >= 12.5]
    f = v.diurnal_profile(pd.concat([early, late.set_axis(late.index + pd.Timedelta(pause))]).sort_index())
    assert f.days == 5 and list(f.params.index[:5]) == ["09:30", "10:00", "10:30", "11:00", "11:30"]
    assert f.bse.notna().all() and (f.params > 0).all() and (f.params**2).mean() == pytest.approx(1)
    assert f.params.index[-1] == ("17:00" if pause == "90min" else "20:30")


def test_bins_of_seconds_have_names_of_their_own():
    assert v.diurnal_profile(days(1, 3), bin_s=450, every_s=30).params.index[:3].tolist() == ["09:30", "09:37:30", "09:45"]


def test_profile_refuses_its_own_past_and_short_days():
    m = days(1, 5)
    f = v.diurnal_profile(m)
    with pytest.raises(DataError, match="last day of the fit"):
        f.factor(m.index[-5:])
    assert f.factor(m.index[-5:], in_sample=True).notna().all()  # the closing stamp too
    assert f.factor(m.index[-5:] + pd.Timedelta(days=1)).notna().all()
    past = v.diurnal_profile(m[: 4 * 781])
    assert not past.params.equals(f.params) and past.last_day < f.last_day
    with pytest.raises(DataError, match="leave short days out"):
        v.diurnal_profile(m[:-300])


# ---- real files
@pytest.mark.realdata
@pytest.mark.parametrize(("symbol", "plain", "robust", "at_minute", "raw_mids"), [("AAPL", 0.0416, (0.0358, 0.0356, 0.0361), 0.0353, 0.0301),
                                                                                 ("AMZN", 0.0228, (0.0206, 0.0205, 0.0209), 0.0213, 0.0165)])
def test_real_trade_prices_know_what_the_mids_know(symbol, plain, robust, at_minute, raw_mids):
    "The numbers that the page robust_volatility quotes."
    tape = load_lobster(real(f"lobster_samples/LOBSTER_SampleFile_{symbol}_2012-06-21_1.zip"))
    trades, mids = tape.trades(), mid(tape.quotes())
    prints = pd.Series(trades.price.to_numpy(), index=pd.DatetimeIndex(trades.time))
    if symbol == "AAPL":
        assert len(prints) == 34_990 and rv.two_scale(prints).sigma == pytest.approx(0.0380, abs=0.0001)
        assert rv.two_scale(prints, dependence=10).conf_int().loc["sigma"].tolist() == pytest.approx([0.034, 0.038], abs=0.0006)
        assert rv.two_scale(mids, every_s=1).sigma == pytest.approx(0.036, abs=0.0005)
    table = rv.compare_volatility(prints, dependence=10)
    assert table.sigma.tolist() == pytest.approx([plain, *robust], abs=0.00011)
    assert v.signature(mids, lags_s=[60]).sigma[0] == pytest.approx(at_minute, abs=0.00011)
    assert rv.two_scale(mids).sigma == pytest.approx(raw_mids, abs=0.00011)
    assert (abs(table.sigma[1:] / at_minute - 1) < 0.05).all() and table.sigma["plain"] > 1.05 * at_minute
