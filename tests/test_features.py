"Features: kernels against plain Python, no look-ahead, symmetries, and the facts that real files must reproduce."
import math
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, UnitError
from makerlab.features import ofi as o
from makerlab.features import volatility as v
from makerlab.features.microprice import imbalance, mid, spread, weighted_mid

OPEN = pd.Timestamp("2026-03-02 09:30", tz="America/New_York").tz_convert("UTC")
few = settings(max_examples=25, deadline=None)


def tape(seed: int, n: int, *, gap_s: float = 0.4, whole: bool = False) -> pd.DataFrame:
    "A random legal tape with ties in time, price and size."
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.exponential(gap_s, n) * (rng.random(n) < 0.9))
    t = np.floor(t) if whole else t
    bid = 1000 + np.cumsum(rng.integers(-1, 2, n))
    return pd.DataFrame({"time": OPEN + pd.to_timedelta((t * 1e9).astype(np.int64), unit="ns"), "bid": bid * 0.01, "ask": (bid + rng.integers(1, 4, n)) * 0.01,
                         "bid_size": rng.integers(1, 6, n) * 100.0, "ask_size": rng.integers(1, 6, n) * 100.0})


seeds = st.integers(0, 10_000)
sizes = st.integers(2, 120)


# ---- weighted mid
@few
@given(seeds, sizes)
def test_weighted_mid_stays_inside_and_mirrors(seed, n):
    q = tape(seed, n)
    w = weighted_mid(q)
    assert (w >= q.bid.to_numpy()).all() and (w <= q.ask.to_numpy()).all() and (spread(q) > 0).all()
    m = pd.DataFrame({"bid": -q.ask, "ask": -q.bid, "bid_size": q.ask_size, "ask_size": q.bid_size})
    np.testing.assert_allclose(weighted_mid(m), -w.to_numpy(), rtol=1e-13)
    np.testing.assert_allclose(imbalance(m), 1 - imbalance(q).to_numpy(), rtol=1e-13)


def test_sizes_of_zero():
    q = tape(1, 3)
    q.loc[0, ["bid_size", "ask_size"]], q.loc[1, "bid_size"] = 0.0, 0.0
    assert math.isnan(weighted_mid(q).iloc[0]) and weighted_mid(q).iloc[1] == q.bid[1]
    assert math.isnan(v.event_features(q).weighted_mid[0])


# ---- OFI
def slow(q: pd.DataFrame, convention: str) -> np.ndarray:
    r = q[["bid", "bid_size", "ask", "ask_size"]].to_numpy()
    return np.array([math.nan] + [o.queue_flow(*b[:2], *a[:2], side=1, convention=convention) - o.queue_flow(*b[2:], *a[2:], side=-1, convention=convention)
                                  for a, b in zip(r[:-1], r[1:])])


@few
@given(seeds, sizes, st.sampled_from(o.CONVENTIONS))
def test_ofi_kernel_is_the_slow_rule_and_mirrors(seed, n, convention):
    q = tape(seed, n)
    e = o.ofi_events(q, convention=convention).to_numpy()
    np.testing.assert_array_equal(e, slow(q, convention))
    args = [q[c].to_numpy() for c in ("bid", "bid_size", "ask", "ask_size")]
    np.testing.assert_array_equal(getattr(o._events_nb, "py_func", o._events_nb)(*args, convention == "ccz"), e)
    m = pd.DataFrame({"bid": -q.ask, "ask": -q.bid, "bid_size": q.ask_size, "ask_size": q.bid_size})
    np.testing.assert_array_equal(o.ofi_events(m, convention=convention), -e)
    np.testing.assert_array_equal(o.OFICalculator(convention=convention).compute_ofi(q.bid, q.ask, q.bid_size, q.ask_size), e)


@few
@given(seeds, sizes, st.sampled_from([0.5, 1.0, 7.0]))
def test_buckets_are_right_closed_and_lose_nothing(seed, n, every_s):
    q = tape(seed, n, whole=True)
    b = o.ofi_buckets(q, every_s=every_s)
    e, t = o.ofi_events(q).to_numpy(), q.time
    for row in b.itertuples():
        inside = (t > row.time - pd.Timedelta(seconds=every_s)) & (t <= row.time)
        assert row.ofi == np.nansum(e[inside])
        assert row.mid == mid(q).to_numpy()[t <= row.time][-1]
    first = (t <= b.time[0] - pd.Timedelta(seconds=every_s)).to_numpy()
    assert b.ofi.sum() + np.nansum(e[first]) == np.nansum(e)


def test_session_break_starts_anew():
    one = tape(3, 200)
    next_day = one.assign(time=one.time + pd.Timedelta(days=1), bid=one.bid + 5, ask=one.ask + 5)
    both = o.ofi_buckets(pd.concat([one, next_day], ignore_index=True), every_s=5)
    assert both.ofi.tolist() == o.ofi_buckets(one, every_s=5).ofi.tolist() * 2
    assert both.dmid.abs().max() < 1
    f = v.features(pd.concat([one, next_day], ignore_index=True), window_s=10)
    assert f.sigma.isna().sum() == 2 * v.features(one, window_s=10).sigma.isna().sum()


def scrambled(q: pd.DataFrame, cut: int, seed: int) -> pd.DataFrame:
    "The same up to row cut, other quotes and other times after it."
    rng = np.random.default_rng(seed)
    other = q.copy()
    n = len(q) - cut
    bid = rng.integers(500, 1500, n)
    other.loc[cut:, "bid"], other.loc[cut:, "ask"] = bid * 0.01, (bid + rng.integers(1, 9, n)) * 0.01
    for c in ("bid_size", "ask_size"):
        other.loc[cut:, c] = rng.integers(1, 99, n) * 100.0
    return other


@few
@given(seeds, st.integers(60, 200), st.sampled_from(o.CONVENTIONS))
def test_scrambling_the_future_changes_nothing_before(seed, n, convention):
    q = tape(seed, n)
    cut = n // 2
    other, t = scrambled(q, cut, seed + 1), q.time[cut]
    for f in (lambda x: v.features(x, every_s=1, window_s=8, convention=convention), lambda x: o.ofi_buckets(x, every_s=3, convention=convention),
              lambda x: v.event_features(x, window_s=8, convention=convention)):
        a, b = f(q), f(other)
        pd.testing.assert_frame_equal(a[a.time < t], b[b.time < t])
    assert not v.event_features(q).equals(v.event_features(other))
    x, y = (o.OFICalculator(window_s=5).normalize(o.ofi_events(z)) for z in (q, other))
    pd.testing.assert_series_equal(x[x.index < t], y[y.index < t])


def test_a_feature_at_a_mark_ignores_what_comes_a_nanosecond_later():
    q = tape(5, 100)
    mark = q.time[50].ceil("s")
    late = q[q.time <= mark]
    extra = late.iloc[[-1]].assign(time=mark + pd.Timedelta(1, "ns"), bid=1.0, ask=2.0, bid_size=9e5)
    a = v.features(late, window_s=5, end=mark, start=OPEN)
    b = v.features(pd.concat([late, extra], ignore_index=True), window_s=5, end=mark, start=OPEN)
    pd.testing.assert_frame_equal(a, b)


def test_multilevel_first_level_is_ofi_and_lobster_columns_work():
    q = tape(7, 80)
    book = pd.DataFrame({"ask1": q.ask, "asksize1": q.ask_size, "bid1": q.bid, "bidsize1": q.bid_size,
                         "ask2": q.ask + 0.01, "asksize2": 300.0, "bid2": q.bid - 0.01, "bidsize2": 200.0})
    np.testing.assert_array_equal(o.multilevel_ofi(book)["ofi_1"], o.ofi_events(q))
    b = o.scaled_ofi_buckets(book, q.time, every_s=5)
    one = o.scaled_ofi_buckets(book, q.time, every_s=5, levels=1)
    np.testing.assert_allclose(np.sign(b.ofi_1), np.sign(o.ofi_buckets(q, every_s=5).ofi))
    assert list(one.columns) == ["time", "ofi_1", "mid", "dmid"]
    with pytest.raises(DataError, match="bid1"):
        o.book_array(q)
    with pytest.raises(DataError, match="levels >= 3"):
        o.multilevel_ofi(book, levels=3)


# ---- volatility
@few
@given(seeds, sizes, st.sampled_from([2.0, 5.0, 20.0]))
def test_rolling_kernel_is_its_plain_python_and_pandas(seed, n, window_s):
    q = tape(seed, n)
    t, x = q.time.array.asi8, o.ofi_events(q).to_numpy()
    got = o._rolling_sd_nb(t, x, int(window_s * 1e9))
    for a, b in zip(got, getattr(o._rolling_sd_nb, "py_func", o._rolling_sd_nb)(t, x, int(window_s * 1e9)), strict=True):
        np.testing.assert_array_equal(a, b)
    # a tie in time: pandas gives each row its own past, as we do
    np.testing.assert_allclose(got[0], pd.Series(x, index=q.time).rolling(f"{window_s}s").std(), rtol=1e-9, atol=1e-9 * 500)


@few
@given(seeds, sizes)
def test_rolling_vol_is_the_definition(seed, n):
    q = tape(seed, n)
    t_s = (q.time.array.asi8 - q.time.array.asi8[0]) * 1e-9
    np.testing.assert_allclose(v.rolling_vol(mid(q), window_s=6.0), v.sigma_slow(t_s, mid(q).to_numpy(), window_s=6.0), rtol=1e-8, atol=1e-12)


@few
@given(seeds, st.integers(2, 60), st.sampled_from(o.CONVENTIONS), st.booleans())
def test_fused_pass_is_its_parts_and_its_plain_python(seed, n, convention, second):
    q = tape(seed, n)
    f = v.event_features(q, window_s=4.0, convention=convention, per="second" if second else "event")
    np.testing.assert_array_equal(f.ofi, o.ofi_events(q, convention=convention))
    np.testing.assert_allclose(f.weighted_mid, weighted_mid(q), rtol=1e-14)
    if second:
        np.testing.assert_allclose(f.sigma, v.rolling_vol(mid(q), window_s=4.0), rtol=1e-8, atol=1e-12)
    else:
        peer = mid(q).diff().rolling("4s").std().to_numpy()
        keep = np.isfinite(peer)
        np.testing.assert_allclose(f.sigma[keep], peer[keep], rtol=1e-8, atol=1e-11)
    out = [np.empty(n) for _ in range(3)]
    args = [q[c].to_numpy() for c in ("bid", "bid_size", "ask", "ask_size")]
    plain = getattr(v._event_features_nb, "py_func", v._event_features_nb)
    assert plain(q.time.array.asi8, *args, 4 * 10**9, second, 10**15, *out) == -1
    np.testing.assert_array_equal(out[1], f.sigma)


def test_rolling_sum_does_not_drift():
    "A wild minute, then a dead one: the s.d. must be exactly zero, not rounding dust."
    n = 400
    x = np.r_[np.random.default_rng(1).normal(size=200) * 1e6, np.zeros(200)]
    sd = o._rolling_sd_nb(np.arange(n, dtype=np.int64) * 10**9, x, 60 * 10**9)[0]
    assert (sd[261:] == 0).all() and sd[250] > 0


def test_scale_and_units():
    m = pd.Series([100.0, 101, 99, 102, 100, 103], index=pd.date_range("2026-03-02", periods=6, freq="2s", tz="UTC"))
    a = v.rolling_vol(m, window_s=6)
    b = v.rolling_vol(m * 3, window_s=6)
    np.testing.assert_allclose(b, 3 * a)
    np.testing.assert_allclose(a.iloc[-1], m.diff().iloc[-3:].std() / math.sqrt(2))
    assert a.isna().tolist() == [True, True, True, False, False, False]
    assert a.attrs["unit"] == "price/sqrt(s)" and v.rolling_vol(m, window_s=6, kind="return").attrs["unit"] == "1/sqrt(s)"
    assert v.to_price_sigma(v.rolling_vol(m, window_s=6, kind="return"), mid=m).attrs["unit"] == "price/sqrt(s)"
    with pytest.raises(UnitError, match="price/sqrt"):
        v.to_price_sigma(a, mid=m)
    pd.testing.assert_series_equal(v.VolatilityEstimator(window_seconds=6).estimate(m.to_numpy(), m.index), a, check_freq=False, check_index_type=False)
    np.testing.assert_allclose(v.realized_vol(m), math.sqrt((m.diff() ** 2).sum() / 10))
    np.testing.assert_allclose(v.realized_vol(m, every_s=4), math.sqrt(((99 - 100) ** 2 + (100 - 99) ** 2) / 8))


@pytest.mark.parametrize("call, error, says", [
    (lambda q: v.features(q.drop(columns="ask")), DataError, "ask"),
    (lambda q: v.features(q.iloc[:0]), DataError, "0 row"),
    (lambda q: v.features(q.iloc[::-1]), DataError, "unsorted"),
    (lambda q: v.features(q.assign(time=q.time.dt.tz_localize(None))), DataError, "zone"),
    (lambda q: v.features(q.assign(bid=q.ask + 1)), DataError, "crossed"),
    (lambda q: v.features(q, every_s=0), ParameterError, "every_s"),
    (lambda q: v.features(q, window_s=-1), ParameterError, "window_s"),
    (lambda q: v.features(q, floor=0), ParameterError, "floor"),
    (lambda q: v.features(q, convention="other"), ParameterError, "convention"),
    (lambda q: v.features(q, end=OPEN - pd.Timedelta(days=1)), ParameterError, "bucket"),
    (lambda q: o.ofi_buckets(q, every_s=1e-9), ParameterError, "bucket"),
    (lambda q: v.event_features(q.iloc[::-1]), DataError, "unsorted"),
    (lambda q: v.event_features(q, per="day"), ParameterError, "per"),
    (lambda q: v.rolling_vol(mid(q), window_s=math.nan), ParameterError, "window_s"),
    (lambda q: v.rolling_vol(-mid(q), window_s=5, kind="return"), DataError, "row 0"),
    (lambda q: v.signature(mid(q), lags_s=[1e6]), ParameterError, "lags_s"),
    (lambda q: o.OFICalculator().normalize(pd.Series([1.0])), DataError, "indexed by time"),
    (lambda q: o.integrated_ofi_weights([[1.0, math.nan], [1.0, 2.0]]), DataError, "finite"),
    (lambda q: o.ofi_regression(o.ofi_buckets(q, every_s=5), hac_lags=10**6), ParameterError, "hac_lags"),
])
def test_bad_input_is_refused_in_words(call, error, says):
    with pytest.raises(error, match=says):
        call(tape(2, 100))


def test_one_quote_is_little_but_legal():
    f = v.features(tape(2, 1))
    assert len(f) == 1 and f.ofi[0] == 0 and math.isnan(f.sigma[0])
    assert len(v.event_features(tape(2, 1))) == 1


# ---- real files
def lobster(symbol: str) -> pd.DataFrame:
    "LOBSTER's best level as quotes, read without makerlab."
    with zipfile.ZipFile(real(f"lobster_samples/LOBSTER_SampleFile_{symbol}_2012-06-21_1.zip")) as z:
        part = {k: pd.read_csv(z.open(next(n for n in z.namelist() if k in n)), header=None, usecols=range(4) if k == "orderbook" else [0],
                               dtype=None if k == "orderbook" else str) for k in ("message", "orderbook")}
    b = part["orderbook"]
    whole, _, fraction = zip(*part["message"][0].str.partition(".").to_numpy())
    ns = np.array([int(w) * 10**9 + int(f[:9].ljust(9, "0")) for w, f in zip(whole, fraction)])
    day = pd.Timestamp("2012-06-21", tz="America/New_York").tz_convert("UTC")
    return pd.DataFrame({"time": day + pd.to_timedelta(ns, unit="ns"), "bid": b[2] / 1e4, "ask": b[0] / 1e4, "bid_size": b[3] * 1.0, "ask_size": b[1] * 1.0})


def highfrequency(name: str, day: str) -> pd.DataFrame:
    "One day of the R package's quotes (naive UTC), its own venue only."
    pyreadr = pytest.importorskip("pyreadr")
    q = next(iter(pyreadr.read_r(real(f"highfrequency_rda/data/{name}.rda")).values()))
    q = q[(q.DT.dt.strftime("%Y-%m-%d") == day) & (q.EX == "N")] if "Raw" in name else q[q.DT.dt.strftime("%Y-%m-%d") == day]
    return pd.DataFrame({"time": q.DT.astype("datetime64[ns]").dt.tz_localize("UTC"), "bid": q.BID, "ask": q.OFR,
                         "bid_size": q.BIDSIZ.astype(float), "ask_size": q.OFRSIZ.astype(float)}).reset_index(drop=True)


def session(q: pd.DataFrame) -> dict:
    day = q.time.iloc[len(q) // 2].tz_convert("America/New_York").normalize()
    return dict(start=day + pd.Timedelta(hours=9.5), end=day + pd.Timedelta(hours=16))


FACTS = [(lobster, ("AAPL",), 0.412), (lobster, ("AMZN",), 0.316), (highfrequency, ("sampleQData", "2018-01-02"), 0.409),
         (highfrequency, ("sampleQData", "2018-01-03"), 0.523), (highfrequency, ("sampleQDataRaw", "2018-01-02"), 0.572),
         (highfrequency, ("sampleQDataRaw", "2018-01-03"), 0.698)]


@pytest.mark.realdata
@pytest.mark.parametrize("load, args, r2", FACTS, ids=lambda x: str(x) if not callable(x) else x.__name__)
def test_facts_of_ten_second_ofi(load, args, r2):
    q = load(*args)
    fit = o.ofi_regression(o.ofi_buckets(q, every_s=10, **session(q)))
    assert fit.r2 == pytest.approx(r2, abs=0.001) and fit.nobs == 2339


@pytest.mark.realdata
def test_facts_of_merged_stamps_and_conventions():
    "Merging equal stamps divides beta by four; the other convention explains less."
    raw, clean = highfrequency("sampleQDataRaw", "2018-01-02"), highfrequency("sampleQData", "2018-01-02")
    beta = [o.ofi_regression(o.ofi_buckets(q, every_s=10, **session(q))).beta for q in (raw, clean)]
    assert 4 < beta[0] / beta[1] < 5
    q = lobster("AAPL")
    assert o.ofi_regression(o.ofi_buckets(q, every_s=10, convention="ccz", **session(q))).r2 < 0.412


@pytest.mark.realdata
@pytest.mark.parametrize("load, args, low, high", [(lobster, ("AAPL",), 0.42, 0.54), (lobster, ("AMZN",), 0.33, 0.62),
                                                   (highfrequency, ("sampleQDataRaw", "2018-01-02"), 0.40, 0.65)], ids=["AAPL", "AMZN", "NYSE"])
def test_imbalance_says_less_than_the_weighted_mid_believes(load, args, low, high):
    q = load(*args)
    m, share = mid(q).to_numpy(), imbalance(q).to_numpy()
    change = np.flatnonzero(np.diff(m) != 0) + 1
    after = np.searchsorted(change, np.arange(len(m)), side="right")
    known = after < len(change)
    up = m[change[np.minimum(after, len(change) - 1)]] > m
    group = np.clip((np.nan_to_num(share, nan=0.5) * 10).astype(int), 0, 9)
    got = [up[known & (group == g)].mean() for g in (0, 9)]
    assert got == pytest.approx([low, high], abs=0.006)


@pytest.mark.realdata
@pytest.mark.parametrize("symbol, sigma", [("AAPL", [0.0353, 0.0362, 0.0342]), ("AMZN", [0.0199, 0.0208, 0.0212])])
def test_signature_of_real_mids_is_flat(symbol, sigma):
    s = v.signature(mid(lobster(symbol)), lags_s=(1, 10, 120))
    assert s.sigma.tolist() == pytest.approx(sigma, abs=0.0002) and (s.lower < s.sigma).all() and (s.sigma < s.upper).all()


@pytest.mark.realdata
def test_predictive_ofi_on_real_data(capsys):
    "The numbers that the study 02_does_ofi_predict quotes: 10 s OFI on the NEXT 10 s, out of sample (second half of the day)."
    got = {}
    for name, q in {"AAPL": lobster("AAPL"), "AMZN": lobster("AMZN"), "NYSE": highfrequency("sampleQDataRaw", "2018-01-02")}.items():
        b = o.ofi_buckets(q, every_s=10, **session(q)).dropna(ignore_index=True)
        b["next"] = b.dmid.shift(-1)
        half = len(b) // 2
        fit = o.ofi_regression(b[:half], y="next")
        test = b[half:].dropna()
        error = test.next - fit.params["const"] - fit.beta * test.ofi
        got[name] = 1 - (error**2).sum() / ((test.next - b.next[:half].mean()) ** 2).sum()
    print(got)
    assert got == pytest.approx({"AAPL": -0.001, "AMZN": -0.018, "NYSE": -0.003}, abs=0.001), got
