"Inference: the fast resampling against arch and its own twin, the width of intervals, Sharpe ratios against published numbers."
import math

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import CircularBlockBootstrap, MovingBlockBootstrap, StationaryBootstrap, optimal_block_length
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats

from makerlab.core import DataError, ParameterError, rng_streams
from makerlab.scoring.inference import (
    _block_sum_nb, _blocks_args, _next_block_nb, _resample_nb, block_bootstrap, optimal_block, paired_difference, pnl_interval,
    probabilistic_sharpe, resample_totals, sharpe_ratio, track_record,
)
from makerlab.scoring.metrics import long_run_se

PEERS = {"stationary": StationaryBootstrap, "circular": CircularBlockBootstrap, "moving": MovingBlockBootstrap}


def ar1(phi, n, rng):
    return signal.lfilter([1.0], [1.0, -phi], rng.normal(size=n + 200))[200:]


@pytest.mark.parametrize("kind", PEERS)
@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 80), block=st.floats(1, 100), seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 2))
def test_prefix_sums_are_the_sums_of_the_rows(kind, n, block, seed, columns):
    x = np.random.default_rng(seed).normal(1e3, 1, size=(n, columns))
    size = min(block, float(n))
    got = resample_totals(x, block=block, n=6, kind=kind, rng=np.random.default_rng(seed))
    for state, total in zip(rng_streams(6, rng=np.random.default_rng(seed)), got, strict=True):
        rows = np.empty(n, dtype=np.int64)
        _resample_nb(state, n, *_blocks_args(size, kind), rows)
        assert rows.min() >= 0 and rows.max() < n
        assert np.allclose(x[rows].sum(axis=0), total, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", PEERS)
def test_arch_rows_give_arch_totals(kind):
    "The rows that arch drew, cut into runs and summed by prefixes, give the total that arch gives."
    x = np.random.default_rng(1).normal(size=400)
    peer, prefix = PEERS[kind](9, x, seed=np.random.default_rng(2)), np.r_[0.0, np.cumsum(x)][:, None]
    for _ in range(50):
        rows = peer.update_indices()
        cut = np.flatnonzero(np.r_[True, np.diff(rows) != 1])
        total = sum(_block_sum_nb(prefix, rows[a], b - a, 0) for a, b in zip(cut, np.r_[cut[1:], rows.size], strict=True))
        assert total == pytest.approx(x[rows].sum(), abs=1e-10)


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("block", [1, 3, 25])
def test_totals_are_distributed_as_those_of_arch(kind, block):
    x = ar1(0.5, 300, np.random.default_rng(1)) ** 2  # skewed and dependent
    ours = resample_totals(x, block=block, n=4000, kind=kind, rng=np.random.default_rng(2))[:, 0]
    peer = PEERS[kind](block, x, seed=np.random.default_rng(3)).apply(np.sum, 2000)[:, 0]
    assert stats.ks_2samp(ours, peer).pvalue > 1e-4  # nine comparisons


def test_compiled_and_plain_agree():
    for kind in PEERS:
        args = _blocks_args(6.5, kind)
        a, b = rng_streams(1, rng=np.random.default_rng(4))[0], rng_streams(1, rng=np.random.default_rng(4))[0]
        with np.errstate(over="ignore"):
            assert [_next_block_nb(a, 50, *args) for _ in range(200)] == [tuple(map(int, _next_block_nb.py_func(b, 50, *args))) for _ in range(200)]


@pytest.mark.parametrize("size", [1.0, 1.0001, 1.5, 7.3, 400.0])
def test_table_of_lengths_is_the_logarithm(size):
    "Where the table answers it gives what the logarithm gives, and the lengths are geometric with the mean asked for."
    _, _, log_stay, cells = _blocks_args(size, "stationary")
    low = np.concatenate([np.random.default_rng(1).integers(0, 2**32, 20_000), np.arange(1024) * 2**22, np.arange(1, 1025) * 2**22 - 1])
    exact = 1 + np.floor(np.log((low + 0.5) * 2.0**-32) / log_stay)
    known = cells[low >> 22]
    assert np.array_equal(known[known > 0], exact[known > 0])
    draw = exact[:20_000]
    assert abs(draw.mean() - size) <= 4 * math.sqrt(size * (size - 1) / 20_000) + 1e-9


def test_same_result_for_any_number_of_threads():
    x = np.random.default_rng(1).normal(size=500)
    one, three = (resample_totals(x, block=4, n=301, workers=w, rng=np.random.default_rng(2)) for w in (1, 3))
    assert np.array_equal(one, three)


def test_automatic_block_is_that_of_arch():
    x = ar1(0.5, 800, np.random.default_rng(3))
    want = optimal_block_length(x).iloc[0]
    assert optimal_block(x) == want["stationary"] and optimal_block(x, kind="circular") == optimal_block(x, kind="moving") == want["circular"]


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5])
def test_cosine_error_against_the_long_run_variance(phi):
    "Mean square over 400 series: the bias of the 63 waves is below 2 %, the noise sqrt(2 / 63 / 400) = 0.9 %."
    rng = np.random.default_rng(4)
    square = np.mean([long_run_se(ar1(phi, 2000, rng))[0] ** 2 for _ in range(400)]) * 2000
    assert square * (1 - phi) ** 2 == pytest.approx(1, abs=0.02 + 4 * 0.009)


def test_cosine_error_against_plain_sums():
    x = np.random.default_rng(5).normal(size=37)
    t, nu = (np.arange(37) + 0.5) / 37, int(0.4 * 37 ** (2 / 3))
    waves = [math.sqrt(2 / 37) * (x * np.cos(math.pi * j * t)).sum() for j in range(1, nu + 1)]
    se, df = long_run_se(x)
    assert df == nu and se == pytest.approx(math.sqrt(np.mean(np.square(waves)) / 37), rel=1e-12)
    assert long_run_se(x + 1e6)[0] == pytest.approx(se, rel=1e-6)
    with pytest.raises(DataError, match="row 1"):
        long_run_se([1.0, math.nan, 2.0])


@pytest.mark.parametrize("kind", PEERS)
def test_scale_and_shift_carry_over(kind):
    x = ar1(0.3, 400, np.random.default_rng(6))
    a = block_bootstrap(x, "total", kind=kind, rng=np.random.default_rng(7))
    b = block_bootstrap(10 * x + 3, "total", kind=kind, rng=np.random.default_rng(7))
    for end in ("estimate", "lo", "hi"):
        assert getattr(b, end) == pytest.approx(10 * getattr(a, end) + 3 * 400, rel=1e-9)
    mean = block_bootstrap(x, "mean", kind=kind, rng=np.random.default_rng(7))
    assert (mean.lo, mean.hi) == pytest.approx((a.lo / 400, a.hi / 400))


def test_negative_denominator_keeps_the_ends_in_order():
    rng = np.random.default_rng(8)
    qty = rng.uniform(1, 2, 300)
    pairs = np.column_stack([3 * qty + rng.normal(size=300), qty])
    up, down = (block_bootstrap(p, "ratio", rng=np.random.default_rng(9)) for p in (pairs, -pairs))
    assert up.lo < 3 < up.hi and (down.lo, down.hi) == pytest.approx((up.lo, up.hi), rel=1e-9)


def test_a_function_goes_through_arch_and_is_expanded():
    x = np.random.default_rng(10).normal(size=200)
    r, plain = (block_bootstrap(x, lambda z: float(np.median(z)), block=10, width=w, rng=np.random.default_rng(1)) for w in ("student", "percentile"))
    assert r.lo < plain.lo < plain.hi < r.hi and "expanded" in r.method
    draws = StationaryBootstrap(10, x, seed=np.random.default_rng(1)).apply(lambda z: np.array([np.median(z)]), 999)[:, 0]
    assert (plain.lo, plain.hi) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_student_is_wider_than_percentiles_on_dependent_steps():
    rng = np.random.default_rng(11)
    ratio = []
    for _ in range(50):
        x = ar1(0.5, 390, rng)
        a, b = (block_bootstrap(x, width=w, n=299, rng=rng) for w in ("student", "percentile"))
        ratio.append((a.hi - a.lo) / (b.hi - b.lo))
    assert 1.05 < np.mean(ratio) < 1.35  # about 1.17


def test_a_claim_of_independence_is_taken_at_its_word():
    x = ar1(0.6, 2000, np.random.default_rng(12))
    r = block_bootstrap(x, block=1, n=4000, rng=np.random.default_rng(1))
    assert (r.hi - r.lo) / 2 == pytest.approx(1.96 * x.std(ddof=1) / math.sqrt(2000), rel=0.06)


def test_profit_over_days_is_about_the_t_interval():
    days = np.repeat(np.arange(8), 50)
    x = np.random.default_rng(13).normal(size=400)
    r = pnl_interval(x, days=days, n=4000, rng=np.random.default_rng(1))
    totals = np.bincount(days, weights=x)
    assert (r.hi - r.lo) / 2 == pytest.approx(stats.t.ppf(0.975, 7) * totals.std(ddof=1) * math.sqrt(8), rel=0.1)
    assert "8 days" in r.method and r.contains(totals.sum())


def test_paired_difference_takes_steps_or_days():
    rng = np.random.default_rng(14)
    a, b = rng.normal(size=(2, 600))
    r = paired_difference(pd.Series(a), pd.Series(b), days=np.repeat(np.arange(6), 100), rng=rng)
    assert "6 days" in r.method and r.estimate == pytest.approx(a.sum() - b.sum())


def test_published_probabilistic_and_shortest_record():
    "Moments of Bailey & Lopez de Prado: 1,250 days, annual Sharpe ratio 2.5, skewness -3, kurtosis 10, benchmark 0.1132 a day: 0.9004."
    S, n = 2.5 / math.sqrt(250), 1250
    by_hand = stats.norm.cdf((S - 0.1132) * math.sqrt(n - 1) / math.sqrt(1 + 3 * S + 9 / 4 * S**2))
    assert by_hand == pytest.approx(0.9004, abs=5e-4)
    x = -np.random.default_rng(15).gamma(0.6, size=n)
    x = x - x.mean() + 0.1 * x.std()
    r = sharpe_ratio(x, errors="iid")
    se = math.sqrt((1 - stats.skew(x) * r.value + (stats.kurtosis(x, fisher=False) - 1) / 4 * r.value**2) / (n - 1))
    assert r.se == pytest.approx(se, rel=1e-12)
    assert probabilistic_sharpe(x, benchmark=0.02) == pytest.approx(stats.norm.cdf((r.value - 0.02) / se), rel=1e-12)
    need = track_record(x, benchmark=0.02)
    assert (r.value - 0.02) / (se * math.sqrt((n - 1) / (need - 1))) == pytest.approx(stats.norm.ppf(0.95), rel=1e-9)
    assert track_record(-x) == math.inf


def test_mertens_error_is_the_error_of_psi():
    "For independent periods both forms of the error agree: 400 samples of skewed steps."
    rng = np.random.default_rng(16)
    pairs = np.array([[sharpe_ratio(1 - rng.exponential(size=1000) + 0.1, errors=e).se ** 2 for e in ("iid", "robust")] for _ in range(400)])
    assert pairs[:, 1].mean() / pairs[:, 0].mean() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("call, error, words", [
    (lambda g: resample_totals(np.ones((5, 3)), block=2, rng=g), ParameterError, "3 columns"),
    (lambda g: resample_totals(np.arange(5.0), block=0, rng=g), ParameterError, "block"),
    (lambda g: resample_totals(np.arange(5.0), block=2, n=0, rng=g), ParameterError, "resamples"),
    (lambda g: resample_totals(np.arange(5.0), block=2, kind="wild", rng=g), ParameterError, "kind"),
    (lambda g: block_bootstrap(np.arange(9.0), width="normal", rng=g), ParameterError, "width"),
    (lambda g: sharpe_ratio(np.full(9, 3.3)), DataError, "does not vary"),
    (lambda g: sharpe_ratio(np.arange(9.0), errors="hac"), ParameterError, "errors"),
    (lambda g: probabilistic_sharpe(np.arange(9.0), benchmark=math.nan), ParameterError, "benchmark"),
])
def test_meaningless_requests_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(np.random.default_rng(0))


def test_two_columns_are_not_one_sum():
    "The mean of a table of two columns was taken over both, its width from the first."
    two, g = np.random.default_rng(0).normal(size=(60, 2)), np.random.default_rng
    for call in (lambda: block_bootstrap(two, "mean", rng=g(1)), lambda: block_bootstrap(two, "total", rng=g(1)), lambda: pnl_interval(two, rng=g(1))):
        with pytest.raises(ParameterError, match="one column|2 columns"):
            call()
    assert block_bootstrap(two[:, :1], "mean", rng=g(1)) == block_bootstrap(two[:, 0], "mean", rng=g(1))
    with pytest.raises(ParameterError, match="2 numbers"):
        block_bootstrap(two, lambda v: v.mean(axis=0), rng=g(1))


@pytest.mark.parametrize("how, words", [
    (dict(n=math.nan), "n = nan .resamples."), (dict(n="many"), "n = 'many'"), (dict(n=math.inf), "n = inf"), (dict(level="95"), "level = '95'"), (dict(level=math.nan), "level"),
])
def test_arguments_that_are_no_numbers_are_named(how, words):
    with pytest.raises(ParameterError, match=words):
        block_bootstrap(np.arange(9.0), rng=np.random.default_rng(0), **how)


def test_messages_name_the_argument_of_the_caller():
    with pytest.raises(DataError, match="^pnl: 1 row"):
        pnl_interval([1.0, math.nan, 2.0], rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="^b: 1 row"):
        paired_difference(pd.Series([1.0, 2.0]), pd.Series([1.0, math.nan]), rng=np.random.default_rng(0))
    with pytest.raises(ParameterError, match="variants = inf"):
        pnl_interval([1.0, 2.0], variants=math.inf, rng=np.random.default_rng(0))
