"Integrated OFI from the past alone, impact with HAC intervals, depth: twins, scrambles, library oracles, real files."
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.data.lob import load_lobster
from makerlab.features import ofi as o
from makerlab.features import price_impact as pi
from test_features import highfrequency, lobster, session, tape

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10_000)


def levels(seed: int, n: int, m: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)) * rng.uniform(0.2, 1, m) + 0.3 * rng.normal(size=(n, m)) + rng.normal(size=m)


# ---- integrated OFI
@few
@given(seeds, st.integers(70, 150), st.integers(1, 5), st.sampled_from([None, 30, 60]))
def test_rolling_weights_are_the_plain_ones_of_the_past(seed, n, m, window):
    X = levels(seed, n, m)
    got = o.rolling_integrated_ofi(X, window=window, burn_in=20)
    assert got[:20].isna().all().all() and list(got.columns) == ["integrated", "explained", *(f"weight_{i + 1}" for i in range(m))]
    for k in range(20, n, 7):
        past = o.integrated_ofi_weights(X[0 if window is None else max(k - window, 0):k])
        want = [o.integrated_ofi(X[k], weights=past), past.explained, *past.weights]
        np.testing.assert_allclose(got.loc[k], want, atol=1e-8)


@few
@given(seeds, st.integers(80, 200), st.sampled_from([None, 40]))
def test_scrambling_the_future_changes_no_earlier_weight(seed, n, window):
    X = levels(seed, n, 3)
    cut = n // 2
    rng = np.random.default_rng(seed + 1)
    other = X.copy()
    other[cut:] = rng.normal(size=(n - cut, 3)) * 50
    a, b = (o.rolling_integrated_ofi(z, window=window, burn_in=20) for z in (X, other))
    pd.testing.assert_frame_equal(a[:cut], b[:cut])
    np.testing.assert_allclose(a.loc[cut].filter(like="weight"), b.loc[cut].filter(like="weight"), rtol=0, atol=0)  # the row's own flow is no part of its weights
    assert not a[cut:].equals(b[cut:])


def test_a_fit_on_the_whole_window_looks_ahead():
    "The guard can fail: weights fitted on all rows do change with the future."
    X = levels(1, 100, 3)
    other = X.copy()
    other[50:] = other[50:, ::-1] * [1, 2, 9]
    assert not np.allclose(o.integrated_ofi_weights(X).weights, o.integrated_ofi_weights(other).weights)


def test_flow_that_never_varies_has_no_weights():
    got = o.rolling_integrated_ofi(np.zeros((50, 2)), burn_in=10)
    assert got.integrated.isna().all()


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e6, 3e7)])
def test_a_window_without_movement_has_no_weights_whatever_came_before(scale, shift):
    "Differences of running sums leave rounding, which is no direction."
    x = levels(1, 300, 3) * scale + shift
    x[100:200] = x[100]
    got = o.rolling_integrated_ofi(x, window=60)
    assert got.isna().all(axis=1).to_numpy()[160:201].all() and got[205:].notna().all(axis=None) and got[60:101].notna().all(axis=None)
    assert (got.explained.dropna() <= 1 + 1e-9).all()


# ---- impact
@few
@given(seeds, st.integers(30, 300), st.integers(1, 4))
def test_regression_is_statsmodels(seed, n, m):
    rng = np.random.default_rng(seed)
    X = levels(seed, n, m)
    names = [f"ofi_{i}" for i in range(m)]
    table = pd.DataFrame(X, columns=names).assign(dmid=X.sum(axis=1) + rng.normal(size=n))
    fit = o.ofi_regression(table, x=names[0] if m == 1 else names)
    peer = sm.OLS(table.dmid.to_numpy(), sm.add_constant(X)).fit(cov_type="HAC", cov_kwds={"maxlags": fit.hac_lags})
    np.testing.assert_allclose(fit.params, peer.params, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fit.bse, peer.bse, rtol=1e-7)
    assert fit.r2 == pytest.approx(peer.rsquared) and fit.llf == pytest.approx(peer.llf)
    np.testing.assert_allclose(fit.predict(table), peer.predict(), rtol=1e-7, atol=1e-9)
    half = (fit.conf_int()["upper"] - fit.params) / fit.bse
    assert (half > 1.96).all() and half.max() < 3.5


def test_critical_values_are_those_of_the_table():
    "Kiefer & Vogelsang (2005, table 1), Bartlett: the polynomial at b for 90, 95, 99 % intervals, and the normal at b = 0."
    for alpha, a in ((0.10, (1.6449, 2.1859, 0.3142, -0.3427)), (0.05, (1.9600, 2.9694, 0.4160, -0.5324)), (0.01, (2.5758, 4.1618, 0.5368, -0.9060))):
        assert o._critical(alpha, 9, 100) == pytest.approx(sum(c * 0.1**i for i, c in enumerate(a)), abs=2e-4)
        assert o._critical(alpha, 0, 10**9) == pytest.approx(a[0], abs=2e-4)


def levels_frame() -> pd.DataFrame:
    return pd.DataFrame(levels(1, 50, 2), columns=["a", "b"]).assign(dmid=lambda t: t.a + 0.1 * t.b)


def test_bad_regressions_are_refused():
    X = pd.DataFrame(levels(1, 50, 2), columns=["a", "b"]).assign(dmid=1.0, c=0.0, d=lambda t: 2 * t.a)
    for x in ("c", ["a", "d"], ["a", "c"]):
        with pytest.raises(DataError, match="usable bucket"):
            o.ofi_regression(X, x=x)
    with pytest.raises(DataError, match="finite in row 1"):
        o.rolling_integrated_ofi([[1.0, 2.0], [1.0, math.nan]])
    with pytest.raises(DataError, match="row a bucket"):
        o.rolling_integrated_ofi([1.0, 2.0])
    for x in ("nope", ["a", "nope"], []):
        with pytest.raises(DataError, match="missing column"):
            o.ofi_regression(X, x=x)
    with pytest.raises(DataError, match="missing column a"):
        o.ofi_regression(levels_frame(), x="a").predict(X.drop(columns="a"))
    for depth, n in ((0, 5), (2.5, 5), (2, 0)):
        with pytest.raises(ParameterError, match="whole numbers >= 1"):
            o.stylised_book(depth, n=n, tick=0.01, rng=np.random.default_rng(1))
    with pytest.raises(DataError, match="missing column depth"):
        pi.depth_law(pd.DataFrame({"beta": [1.0, 2.0, 3.0, 4.0]}))
    with pytest.raises(ParameterError, match="burn_in"):
        o.rolling_integrated_ofi(levels(1, 90, 2), window=5)


def test_stylised_book_is_its_plain_python_and_its_identity():
    rng = np.random.default_rng(3)
    u = rng.random((3000, 2))
    np.testing.assert_array_equal(o._stylised_nb(u, 7), getattr(o._stylised_nb, "py_func", o._stylised_nb)(u, 7))
    q = o.stylised_book(7, n=3000, tick=0.01, rng=rng)
    assert (q.bid < q.ask).all() and (q[["bid_size", "ask_size"]] >= 1).all().all() and (q[["bid_size", "ask_size"]] <= 7).all().all()
    moved = (q.bid + q.ask).diff() / 0.02  # ticks of the mid
    assert np.abs(moved.cumsum().to_numpy() - o.ofi_events(q).cumsum().to_numpy() / 14)[1:].max() <= 1 + 1e-9  # dM = OFI / 2D, but for rounding


# ---- depth
def test_depth_is_the_average_over_events():
    q = tape(4, 900, whole=True)
    b = pi.depth_buckets(q, every_s=7, tick=0.01)
    for row in b[b.events > 0].iloc[::5].itertuples():
        inside = q[(q.time > row.time - pd.Timedelta(seconds=7)) & (q.time <= row.time)]
        assert row.events == len(inside) and row.size_sum == ((inside.bid_size + inside.ask_size) / 2).sum()
    np.testing.assert_array_equal(b.ofi, o.ofi_buckets(q, every_s=7).ofi)


def test_flow_over_depth_looks_back_only():
    q = tape(5, 3000)
    cut = 1500
    other = q.copy()
    other.loc[cut:, ["bid_size", "ask_size"]] *= 9
    a, b = (pi.ofi_by_depth(z, every_s=5, window_s=50, tick=0.01) for z in (q, other))
    early = a.time < q.time[cut]
    pd.testing.assert_frame_equal(a[early], b[early])
    assert not a.equals(b)
    raw = pi.depth_buckets(q, every_s=5, tick=0.01)
    k = 40
    assert a.depth[k] == pytest.approx(raw.size_sum[k - 9:k + 1].sum() / raw.events[k - 9:k + 1].sum())
    assert a.ofi_ticks[k] == pytest.approx(a.ofi[k] / (2 * a.depth[k])) and a.depth[:9].isna().all()
    two = pd.concat([q, q.assign(time=q.time + pd.Timedelta(days=1))], ignore_index=True)
    assert pi.ofi_by_depth(two, every_s=5, window_s=50, tick=0.01).depth.isna().sum() == 18  # every morning anew


def test_windows_are_regressions_of_their_buckets():
    q = tape(6, 6000)
    w = pi.impact_by_window(q, window_s=600, every_s=10, tick=0.01)
    b = pi.depth_buckets(q, every_s=10, tick=0.01)[60:120]
    fit = o.ofi_regression(b, y="dmid_ticks")
    assert w.beta[1] == pytest.approx(fit.beta) and w.se[1] == pytest.approx(fit.bse["beta"]) and w.time[1] == b.time.iloc[-1]
    assert w.depth[1] == pytest.approx(b.size_sum.sum() / b.events.sum())


@few
@given(seeds, st.integers(5, 60))
def test_depth_law_is_statsmodels(seed, n):
    rng = np.random.default_rng(seed)
    t = pd.DataFrame({"depth": np.exp(rng.uniform(2, 6, n))})
    t["beta"] = 0.4 / t.depth**0.9 * np.exp(0.3 * rng.normal(size=n))
    fit = pi.depth_law(t)
    peer = sm.OLS(np.log(t.beta.to_numpy()), np.column_stack([np.ones(n), -np.log(t.depth)])).fit(cov_type="HC3", use_t=True)
    np.testing.assert_allclose(fit.params, peer.params, rtol=1e-8)
    np.testing.assert_allclose(fit.bse, peer.bse, rtol=1e-7)
    np.testing.assert_allclose(fit.conf_int().loc[["log_c", "lambda"]], peer.conf_int(), rtol=1e-6, atol=1e-8)
    assert fit.r2 == pytest.approx(peer.rsquared) and fit.predict(1.0) == pytest.approx(fit.c)
    scaled = pi.depth_law(t.assign(depth=t.depth * 100))  # another unit of size: lambda stays
    assert scaled.params["lambda"] == pytest.approx(fit.params["lambda"])


# ---- real files
def clip(q: pd.DataFrame) -> pd.DataFrame:
    return q[q.time.between(*session(q).values())].reset_index(drop=True)


@pytest.mark.realdata
def test_real_integrated_ofi_out_of_sample():
    "AMZN, five levels: the figures of page 21."
    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip"))
    open_ = pd.Timestamp("2012-06-21", tz="America/New_York")
    b = o.scaled_ofi_buckets(day.book, day.messages.time, every_s=10, start=open_ + pd.Timedelta(hours=9.5), end=open_ + pd.Timedelta(hours=16)).dropna(ignore_index=True)
    names = [f"ofi_{m}" for m in range(1, 6)]
    b["integrated"] = o.rolling_integrated_ofi(b[names]).integrated
    b = b.dropna(ignore_index=True)
    half = len(b) // 2
    test = b[half:]
    got = {}
    for key, x in {"best": "ofi_1", "integrated": "integrated", "five": names}.items():
        fit = o.ofi_regression(b[:half], x=x)
        lost = ((test.dmid - fit.predict(test)) ** 2).sum() / ((test.dmid - b.dmid[:half].mean()) ** 2).sum()
        got[key] = (round(o.ofi_regression(b, x=x).r2, 2), round(1 - lost, 2))
    assert got == {"best": (0.56, 0.32), "integrated": (0.82, 0.82), "five": (0.83, 0.80)}


@pytest.mark.realdata
@pytest.mark.parametrize("name, lam, slope, r2", [("AAPL", [0.96, 0.59, 1.33], [1.64, 1.32, 1.97], [0.50, 0.48]),
                                                  ("AMZN", [1.06, -1.25, 3.37], [1.08, 0.65, 1.50], [0.415, 0.34]),
                                                  ("NYSE", [1.92, 1.25, 2.59], [0.99, 0.92, 1.06], [0.76, 0.71])])
def test_real_impact_and_depth(name, lam, slope, r2):
    "The table of page 21a."
    q = clip(lobster(name)) if name != "NYSE" else pd.concat([clip(highfrequency("sampleQDataRaw", d)) for d in ("2018-01-02", "2018-01-03")], ignore_index=True)
    law = pi.depth_law(pi.impact_by_window(q, tick=0.01))
    assert [law.params["lambda"], *law.conf_int().loc["lambda"]] == pytest.approx(lam, abs=0.01) and law.dropped == 0
    b = pi.ofi_by_depth(q, tick=0.01).dropna()
    fit, raw = o.ofi_regression(b, x="ofi_ticks", y="dmid_ticks"), o.ofi_regression(b, y="dmid_ticks")
    assert [fit.beta, *fit.conf_int().loc["beta"]] == pytest.approx(slope, abs=0.01)
    assert [fit.r2, raw.r2] == pytest.approx(r2, abs=0.006)
