"Signals: twins over random inputs, arch and scipy as oracles, symmetries, no look-ahead, honesty over horizons, and real files."
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import IIDBootstrap
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from makerlab.core import DataError, ParameterError
from makerlab.data.lob import load_lobster
from makerlab.features import signals as s
from makerlab.features.volatility import features

few = settings(max_examples=25, deadline=None)
OPEN = pd.Timestamp("2026-03-02 14:30", tz="UTC")
GAP = s.SESSION_GAP_S


def stamps(t) -> pd.DatetimeIndex:
    return OPEN + pd.to_timedelta(np.round(np.asarray(t, dtype=float) * 1e9).astype(np.int64), unit="ns")


def plant(seed: int, n: int = 4000, strength: float = 0.1) -> tuple[pd.Series, pd.Series]:
    rng = np.random.default_rng(seed)
    x = pd.Series(rng.normal(size=n)).ewm(halflife=10, adjust=False).mean().to_numpy()
    x = (x - x.mean()) / x.std()
    m = 25 + 0.003 * np.r_[0, np.cumsum(strength * x[:-1] + rng.normal(size=n - 1))]
    return pd.Series(x, index=stamps(np.arange(n)), name="x"), pd.Series(m, index=stamps(np.arange(n)))


# ---- forward moves
@few
@given(st.integers(0, 10_000), st.floats(0.5, 20))
def test_forward_moves_agree_with_their_definition(seed, horizon):
    rng = np.random.default_rng(seed)
    t = np.round(np.cumsum(rng.exponential(1, 80) * (rng.random(80) < 0.8)), 3)
    m, at, horizon = 10 + rng.normal(size=80), np.round(np.sort(rng.uniform(-5, t[-1] + 5, 60)), 3), round(horizon, 3)
    fast = s.forward_returns(pd.Series(m, index=stamps(t)), times=stamps(at), horizons_s=[horizon])[horizon]
    ns = lambda a: np.round(np.asarray(a) * 1e9)  # exact clocks on both sides
    np.testing.assert_allclose(fast, s.forward_slow(ns(t), m, ns(at), horizon_s=float(ns(horizon))), rtol=1e-12)


def test_no_move_leads_over_a_night_and_a_delay_shifts_the_start():
    day = np.arange(100.0)
    m = pd.Series(np.r_[np.arange(100.0), 1000 + np.arange(100.0)], index=stamps(np.r_[day, 86_400 + day]))
    f = s.forward_returns(m, times=m.index, horizons_s=[10])[10]
    assert f[:90].eq(10).all() and f[90:100].isna().all() and f[100:190].eq(10).all() and f[190:].isna().all()
    assert s.forward_returns(m, times=stamps([100.0, 86_390.0]), horizons_s=[10])[10].isna().all()
    late = s.forward_returns(m**2, times=stamps([5.0]), horizons_s=[10], delay_s=3.0)
    assert late.iloc[0, 0] == 18**2 - 8**2


@pytest.mark.parametrize("h", [1, 20])
def test_moves_see_only_what_lies_between_their_ends(h):
    "Nonsense strictly before t, or strictly after t + h, changes nothing; nonsense within changes the move."
    x, m = plant(1, 500)
    at = 200
    base = s.forward_returns(m, times=x.index[at : at + 1], horizons_s=[h]).iloc[0, 0]
    for rows, same in ((slice(0, at), True), (slice(at + h + 1, None), True), (slice(at, at + 1), False), (slice(at + h, at + h + 1), False)):
        other = m.copy()
        other.iloc[rows] += 7.0
        assert bool(s.forward_returns(other, times=x.index[at : at + 1], horizons_s=[h]).iloc[0, 0] == base) is same


# ---- statistics on block sums against libraries
@few
@given(st.integers(0, 10_000))
def test_statistics_of_block_sums_are_those_of_the_rows(seed):
    x, m = plant(seed, 1500)
    p = s._pair(x, m, [1, 7, 30], 0.0, None, GAP)
    S = s._sums(p.x, p.y, p.block, p.blocks)
    for j, y in enumerate(p.y.T):
        ok = np.isfinite(y)
        assert s._correlation(S)[0][j] == pytest.approx(stats.pearsonr(p.x[ok], y[ok])[0], abs=1e-10)
        assert s._slope(S)[0][j] == pytest.approx(stats.linregress(p.x[ok], y[ok]).slope, rel=1e-8, abs=1e-14)
    rx, ry = s._ranked(p)
    rank = s._correlation(s._sums(rx, ry, p.block, p.blocks))[0]
    ok = np.isfinite(p.y[:, 2])
    assert rank[2] == pytest.approx(stats.spearmanr(p.x[ok], p.y[ok, 2])[0], abs=1e-10)
    for stat in (s._correlation, s._slope, s._slices):
        assert np.abs(stat(S)[1].sum(axis=0)).max() < 1e-9  # the pulls of all blocks cancel


def test_bootstrap_t_is_archs_studentized_bootstrap():
    "The equal-tailed interval of the same replicates, computed by arch, row by row."
    x, m = plant(5)
    p = s._pair(x, m, [5, 20], 0.0, None, GAP)
    S = s._sums(p.x, p.y, p.block, p.blocks)
    ours = s._boot(S, s._correlation, s._draw(p.blocks, 400, np.random.default_rng(8), 0.05), 0.0)
    theirs = IIDBootstrap(S, seed=np.random.default_rng(8)).conf_int(
        lambda sums: s._correlation(sums)[0], 400, method="studentized", size=0.95, std_err_func=lambda params, sums: s._se(s._correlation(sums)[1]))
    ends = np.quantile(ours.t, [0.975, 0.025], axis=0)
    np.testing.assert_allclose(ours.value - ends * ours.se, theirs, rtol=0.02, atol=2e-3)


def test_group_means_and_their_errors():
    x, m = plant(6)
    d = s.deciles(x, m, horizon_s=10, rng=np.random.default_rng(1), reps=99)
    y = s.forward_returns(m, times=x.index, horizons_s=[10])[10]
    ok = y.notna()
    plain = y[ok].groupby(pd.qcut(x[ok], 10, labels=False)).mean()
    np.testing.assert_allclose(d.move, plain, atol=3e-5)
    assert d.signal.is_monotonic_increasing and d.n.sum() == ok.sum() and d.attrs["horizon_s"] == 10


def test_few_values_make_few_groups():
    _, m = plant(7)
    sign = pd.Series(np.sign(np.random.default_rng(1).normal(size=4000)), index=m.index)
    assert len(s.deciles(sign, m, horizon_s=5, rng=np.random.default_rng(1), reps=49)) == 2
    with pytest.raises(DataError, match="one value"):
        s.conditional_markouts((sign > 5).astype(float).where(np.arange(4000) > 10, 1.0), m, horizons_s=[5], rng=np.random.default_rng(1))


# ---- symmetries of the facade
def test_scale_and_sign_of_the_signal():
    x, m = plant(2)
    a, b, c = (s.evaluate(z, m, horizons_s=[1, 5, 20], rng=np.random.default_rng(3), reps=199, turns=50) for z in (x, 1000 * x + 7, -x))
    pd.testing.assert_frame_equal(a.ic, b.ic)
    np.testing.assert_allclose(a.ic.ic, -c.ic.ic)
    np.testing.assert_allclose(a.ic.lower_all, -c.ic.upper_all)
    assert a.decay.half_life_s == pytest.approx(c.decay.half_life_s) and a.decay.gain == pytest.approx(-c.decay.gain)
    assert a.predicts and "half-life" in a.verdict and a.looked == 3
    assert list(a.summary().columns[:2]) == ["horizon_s", "ic"] and len(a.summary()) == 3


def test_same_seed_same_answer_and_quotes_frames_are_mids():
    x, m = plant(2)
    quotes = pd.DataFrame({"time": m.index, "bid": m.to_numpy() - 0.01, "ask": m.to_numpy() + 0.01})
    frame = pd.DataFrame({"time": x.index, "x": x.to_numpy()})
    tables = [s.information_coefficient(a, b, horizons_s=[1, 5], rng=np.random.default_rng(3), reps=99) for a, b in ((x, m), (frame, quotes), (x, m.rename("mid").rename_axis("time").reset_index()))]
    for t in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], t)


def test_simultaneous_intervals_are_wider_and_p_values_larger():
    x, m = plant(4, strength=0.02)
    ic = s.information_coefficient(x, m, horizons_s=[1, 2, 5, 10, 20, 40], rng=np.random.default_rng(1))
    assert (ic.lower_all <= ic.lower).all() and (ic.upper_all >= ic.upper).all() and (ic.p_all >= ic.p - 1e-12).all()
    assert ic.attrs["looked"] == 6 and (ic.lower < ic.ic).all() and (ic.ic < ic.upper).all()


def test_only_what_is_known_enters():
    "Rows of the signal after the last mid, and NaN in it, change nothing."
    x, m = plant(3)
    longer = pd.concat([x, pd.Series(99.0, index=stamps(5000 + np.arange(50)))])
    holed = x.copy()
    holed.iloc[::7] = np.nan
    kw = dict(horizons_s=[1, 5], reps=99)
    pd.testing.assert_frame_equal(s.information_coefficient(longer, m, rng=np.random.default_rng(1), **kw), s.information_coefficient(x, m, rng=np.random.default_rng(1), **kw), rtol=1e-9)
    pd.testing.assert_frame_equal(s.information_coefficient(holed, m, rng=np.random.default_rng(1), **kw), s.information_coefficient(x[holed.notna()], m, rng=np.random.default_rng(1), **kw))


def test_scrambled_signal_has_nothing_left():
    "A signal turned by a quarter of the day must not predict; the real one must."
    x, m = plant(9)
    kw = dict(horizons_s=[1, 5, 20], rng=np.random.default_rng(2))
    turned = pd.Series(np.roll(x, 1000), index=x.index)
    assert s.scramble_test(x, m, **kw).p_all.min() < 0.02 and s.scramble_test(turned, m, **kw).p_all.min() > 0.05


@pytest.mark.parametrize("true_life", [3.0, 10.0, 30.0])
def test_decay_fit_is_exact_on_exact_slopes(true_life):
    h = np.array([1, 2, 5, 10, 20, 40.0])
    slices = np.diff(0.004 * (1 - 0.5 ** (h / true_life)), prepend=0.0)
    (gain,), (life,) = s._fit_decay(slices, np.ones(6), h)
    assert life == pytest.approx(true_life, rel=0.01) and gain == pytest.approx(0.004, rel=0.01)


def test_a_half_life_beyond_the_data_is_said_to_be_infinite_or_zero():
    h = np.array([1, 2, 5, 10.0])
    assert s._fit_decay(np.diff(h, prepend=0.0), np.ones(4), h)[1][0] == math.inf
    assert s._fit_decay(np.array([1.0, 0, 0, 0]), np.ones(4), h)[1][0] == 0
    x, m = plant(1, strength=0.0)
    d = s.decay(pd.Series(np.random.default_rng(5).normal(size=4000), index=x.index), m, horizons_s=[1, 5, 20], rng=np.random.default_rng(1))
    assert math.isnan(d.half_life_s) and d.until_s == 0 and not d.fits and np.isnan(d.curve([1.0])).all()


@pytest.mark.parametrize(("change", "error", "says"), [
    ({"horizons_s": [0, 1]}, ParameterError, "above zero"),
    ({"horizons_s": []}, ParameterError, "horizons_s"),
    ({"horizons_s": [1000]}, ParameterError, "block"),
    ({"horizons_s": [10], "block_s": 5}, ParameterError, "twice the longest"),
    ({"delay_s": -1}, ParameterError, "delay_s"),
    ({"signal": pd.DataFrame({"a": [1.0]})}, DataError, "named time"),
    ({"mid": pd.DataFrame({"time": stamps([0.0]), "a": [1.0], "b": [2.0]})}, DataError, "value columns"),
    ({"method": "kendall"}, ParameterError, "method"),
    ({"signal": np.zeros(200)}, DataError, "signal .ndarray."),
    ({"mid": plant(1)[1] * 0 + 25}, DataError, "nothing to predict"),
    ({"alpha": 1.5}, ParameterError, "alpha = 1.5"),
    ({"reps": 0}, ParameterError, "reps = 0 must be a whole number >= 19"),
    ({"rng": None}, ParameterError, "rng = None"),
])
def test_bad_input_is_refused_in_words(change, error, says):
    x, m = plant(1)
    kw = {"signal": x, "mid": m, "horizons_s": [1, 5], "rng": np.random.default_rng(1)} | change
    with pytest.raises(error, match=says):
        s.information_coefficient(kw.pop("signal"), kw.pop("mid"), **kw)


def test_evaluate_checks_share_and_turns_and_speaks_when_no_slice_stands_out():
    x, m = plant(1)
    kw = {"horizons_s": [1, 5], "rng": np.random.default_rng(1), "reps": 99}
    for change, says in (({"share": 0.0}, "share = 0.0"), ({"turns": 0}, "turns of the signal: 0"), ({"turns": 1}, ">= 19")):
        with pytest.raises(ParameterError, match=says):
            s.evaluate(x, m, **kw, **change)
    r = s.evaluate(x, m, **kw)
    assert r.predicts and "adds until" in r.verdict
    none = dataclasses.replace(r, decay=dataclasses.replace(r.decay, until_s=0.0))
    assert "no slice stands out alone" in none.verdict


def test_holes_and_unsorted_clocks_are_refused():
    x, m = plant(1)
    with pytest.raises(DataError, match="row 10"):
        s.information_coefficient(x, m.where(np.arange(4000) != 10), horizons_s=[1], rng=np.random.default_rng(1))
    with pytest.raises(DataError, match="sort by time"):
        s.information_coefficient(x[::-1], m, horizons_s=[1], rng=np.random.default_rng(1))


# ---- real files
@pytest.mark.realdata
@pytest.mark.parametrize(("symbol", "ic_1s", "until", "half_spread"), [("AAPL", 0.038, (1, 2), 0.07), ("AMZN", 0.043, (2, 5), 0.06)])
def test_real_imbalance_and_flow_predict_for_seconds(symbol, ic_1s, until, half_spread):
    "The numbers that the page signals quotes."
    quotes = load_lobster(real(f"lobster_samples/LOBSTER_SampleFile_{symbol}_2012-06-21_1.zip")).quotes()
    table = features(quotes, ofi_s=10.0).set_index("time")
    queue, flow = (s.evaluate(table[c].dropna(), quotes, horizons_s=[1, 2, 5, 10, 20, 30, 60], rng=np.random.default_rng(1)) for c in ("imbalance", "ofi_norm"))
    assert queue.predicts and flow.predicts and queue.ic.ic[0] == pytest.approx(ic_1s, abs=0.001)
    assert (queue.decay.until_s, flow.decay.until_s) == until and (queue.ic.p_all[3:] > 0.05).all() and (flow.ic.p_all[4:] > 0.05).all()
    assert queue.decay.table.slope.max() == pytest.approx({"AAPL": 0.0023, "AMZN": 0.0018}[symbol], abs=6e-5)
    assert (queue.decay.half_life_s, *queue.decay.half_life_interval) == pytest.approx({"AAPL": (0.7, 0, 1.7), "AMZN": (1.1, 0.6, 2.3)}[symbol], abs=0.06)
    assert table.spread.median() / 2 == pytest.approx(half_spread, abs=0.01) and queue.decay.table.slope.max() < 0.1 * half_spread
