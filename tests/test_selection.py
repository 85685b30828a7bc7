"Selection: published numbers, exact integrals, brute-force twins, and splits that cannot leak."
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import SPA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from makerlab.core import DataError, ParameterError
from makerlab.scoring.inference import probabilistic_sharpe
from makerlab.scoring.selection import (
    PurgedWalkForward, Trials, deflate, deflated_sharpe, effective_trials, expected_max_sharpe, pbo, purged_walk_forward, reality_check, summary, trials_count,
)


def test_published_deflated_sharpe():
    "Bailey & Lopez de Prado (2014): 100 trials, variance 1/2 a year, best 2.5 over 1,250 days, skewness -3, kurtosis 10."
    assert expected_max_sharpe(100, variance=0.5 / 250) == pytest.approx(0.1132, abs=5e-5)
    S = 2.5 / math.sqrt(250)
    se = math.sqrt((1 + 3 * S + 9 / 4 * S * S) / 1249)
    r = deflated_sharpe(S, n_trials=100, trials_var=0.5 / 250, se=se)
    assert r.deflated == pytest.approx(0.9004, abs=1e-4) and r.excess == pytest.approx(S - r.benchmark)


@pytest.mark.parametrize("n, want", [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))])
def test_expected_maximum_exact(n, want):
    assert expected_max_sharpe(n, method="exact") == pytest.approx(want, abs=1e-9)
    assert expected_max_sharpe(n, method="exact", variance=4.0) == pytest.approx(2 * want, abs=1e-9)


def test_paper_formula_is_near_the_integral_and_rises():
    both = np.array([[expected_max_sharpe(n, method=m) for m in ("paper", "exact")] for n in (5, 10, 100, 1e4, 1e6)])
    assert np.allclose(both[:, 0], both[:, 1], rtol=0.03) and (np.diff(both, axis=0) > 0).all()


def test_one_trial_is_the_probabilistic_ratio():
    x = np.random.default_rng(1).normal(0.1, 1, 300)
    r = deflated_sharpe(x, n_trials=1)
    assert r.deflated == r.confidence == pytest.approx(probabilistic_sharpe(x)) and r.benchmark == 0
    assert deflated_sharpe(x, n_trials=50).deflated < r.deflated and deflated_sharpe(x, n_trials=50).trials_var == 1 / 300


def test_effective_number():
    rng = np.random.default_rng(2)
    base = rng.normal(size=(2000, 8))
    assert effective_trials(base) == pytest.approx(8, abs=0.4)
    assert effective_trials(np.repeat(base, 6, axis=1)) == pytest.approx(9.3, abs=0.5)  # copies add little: they make the spread look smaller
    assert effective_trials(base + 3 * rng.normal(size=(2000, 1))) == pytest.approx(8, abs=0.4)  # a common move selects none
    assert effective_trials(np.column_stack([base[:, 0], base[:, 0]])) == 1.0
    assert effective_trials(base) == effective_trials(base)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99])
def test_max_of_dependent_variants_is_what_the_effective_number_says(share):
    "Ten clusters of five: the mean largest of fifty dependent normals against the integral; 0.5 % noise in each, 2 % allowed."
    rng = np.random.default_rng(3)
    noise = lambda size: np.repeat(rng.normal(size=(size, 10)), 5, axis=1) * math.sqrt(share) + rng.normal(size=(size, 50)) * math.sqrt(1 - share)
    n, z = effective_trials(noise(4000)), noise(8000)
    assert expected_max_sharpe(n, variance=z.var(axis=1, ddof=1).mean(), method="exact") == pytest.approx(z.max(axis=1).mean(), rel=0.02)


def slow_pbo(x, blocks, metric):
    "Loop over halves, with resampled rows, in plain Python."
    cuts, losses = np.array_split(np.arange(len(x)), blocks), []
    score = lambda rows: x[rows].mean(axis=0) / (x[rows].std(axis=0) if metric == "sharpe" else 1.0)
    for half in itertools.combinations(range(blocks), blocks // 2):
        inside = np.concatenate([cuts[i] for i in half])
        outside = np.concatenate([cuts[i] for i in range(blocks) if i not in half])
        rank = stats.rankdata(score(outside))[score(inside).argmax()] / (x.shape[1] + 1)
        losses.append(math.log(rank / (1 - rank)))
    return np.array(losses)


@pytest.mark.parametrize("metric", ["sharpe", "mean"])
@pytest.mark.parametrize("shape, blocks", [((50, 4), 6), ((97, 7), 8), ((40, 2), 4)])
def test_pbo_against_plain_loops(metric, shape, blocks):
    x = np.random.default_rng(4).normal(size=shape)
    got, want = pbo(x, n_blocks=blocks, metric=metric), slow_pbo(x, blocks, metric)
    assert np.allclose(got.logits, want) and got.pbo == np.mean(want <= 0) and got.n_splits == math.comb(blocks, blocks // 2)


def test_pbo_of_nothing_and_of_something():
    rng = np.random.default_rng(5)
    null = [pbo(rng.normal(size=(160, 11)), n_blocks=8).pbo for _ in range(120)]
    assert abs(np.mean(null) - 0.5) < 4 * np.std(null) / math.sqrt(120) + 0.03
    x = rng.normal(size=(400, 20))
    x[:, 3] += 0.5
    assert pbo(x).pbo < 0.02


def test_white_is_that_of_arch():
    x = np.random.default_rng(6).normal(size=(120, 6)) + np.linspace(0, 0.1, 6)
    got = reality_check(x, rng=np.random.default_rng(7), block=4, n=2000)
    peer = SPA(np.zeros(120), -x, block_size=4, reps=2000, bootstrap="stationary", studentize=False, seed=np.random.default_rng(8))
    peer.compute()
    assert got.p_white == pytest.approx(peer.pvalues["upper"], abs=4 * math.sqrt(0.5 / 2000))
    assert got.p_lower <= got.p_spa <= got.p_upper and got.best == x.mean(axis=0).argmax()


def test_spa_does_not_depend_on_the_scale_of_a_variant():
    "Studentised: a worthless variant in larger units must not hide a good one (it does in White's check)."
    rng = np.random.default_rng(9)
    x = rng.normal(size=(400, 5))
    x[:, 1] += 0.25
    loud = x.copy()
    loud[:, 0] *= 200
    a, b = (reality_check(y, rng=np.random.default_rng(1), block=2, n=499) for y in (x, loud))
    assert a.p_spa < 0.01 and b.p_spa < 0.01 and b.p_white > 0.05


def test_reality_check_holds_its_size():
    rng = np.random.default_rng(10)
    p = np.array([[r.p_white, r.p_spa] for r in (reality_check(rng.normal(size=(120, 8)), rng=rng, block=1, n=99) for _ in range(150))])
    assert ((p <= 0.05).mean(axis=0) < 0.05 + 4 * 0.018).all()


@settings(max_examples=150, deadline=None)
@given(n=st.integers(5, 300), splits=st.integers(1, 6), purge=st.integers(0, 40), embargo=st.integers(0, 20), seed=st.integers(0, 2**32 - 1), rolling=st.booleans())
def test_no_training_label_reaches_the_test(n, splits, purge, embargo, seed, rolling):
    "For every split: what any training label has seen ends, with the embargo, before the test begins; and tests tile the end of the rows."
    ends = np.arange(n) + np.random.default_rng(seed).integers(0, 30, n)
    splitter = PurgedWalkForward(n_splits=splits, purge=purge, embargo=embargo, max_train=25 if rolling else None)
    try:
        parts = list(splitter.split(np.zeros(n), ends=ends))
    except ParameterError:
        return
    for train, test in parts:
        assert (ends[train] + embargo < test[0]).all() and (train + purge + embargo < test[0]).all()
        assert train.size and (np.diff(train) > 0).all() and not np.intersect1d(train, test).size
        if not rolling:  # nothing that may be used is thrown away
            assert set(train) == {i for i in range(n) if max(ends[i], i + purge) + embargo < test[0]}
    tests = np.concatenate([test for _, test in parts])
    assert np.array_equal(tests, np.arange(tests[0], n)) and splitter.get_n_splits() == len(parts) == splits


def test_scrambling_the_gap_changes_no_training_data():
    "No look-ahead: whatever happens from the purge on, the training labels are the same."
    rng, h = np.random.default_rng(11), 15
    steps = rng.normal(size=300 + h)
    for train, test in purged_walk_forward(300, n_splits=4, purge=h):
        other = steps.copy()
        other[test[0]:] = 1e9  # rows of the test and after
        a, b = (np.array([s[i + 1 : i + 1 + h].sum() for i in train]) for s in (steps, other))
        assert np.array_equal(a, b)
        leaky = np.arange(test[0])  # without the purge the same check fails: the guard can fail
        assert max(s for s in other[leaky[-1] + 1 : leaky[-1] + 1 + h]) == 1e9


def book(n=12, t=160, seed=1):
    out, x = Trials(period="day"), np.random.default_rng(seed).normal(size=(t, n))
    for i in range(n):
        out.add(f"v{i}", x[:, i], params={"gamma": 0.1 * i})
    return out, x


def test_the_record_counts_everything():
    r, x = book()
    assert len(r) == 12 and r.best() == f"v{(x.mean(0) / x.std(0)).argmax()}"
    r.unrecorded = 30
    r.add("idle", np.zeros(160))
    assert len(r) == 43 and trials_count(r) == pytest.approx(effective_trials(x) + 31)
    assert np.isnan(r.table().sharpe["idle"]) and r.table().gamma["v3"] == pytest.approx(0.3)
    few, many = deflate(r), deflate(r, effective=False)
    assert many.n_trials == 43 and many.deflated <= few.deflated + 1e-12 and few.deflated < few.confidence


def test_more_trials_deflate_more():
    r, _ = book()
    seen = []
    for extra in (0, 10, 100, 1000):
        r.unrecorded = extra
        seen.append(deflate(r).deflated)
    assert (np.diff(seen) < 0).all()


def test_the_summary_has_raw_beside_deflated():
    r, x = book()
    t = summary(r, rng=np.random.default_rng(2), n=199)
    assert list(t.columns) == ["raw", "deflated", "note"]
    for row in ("confidence", "total P&L", "Sharpe ratio per day", "lower end of the total"):
        assert t.deflated[row] < t.raw[row]
    assert t.raw["total P&L"] == pytest.approx(x[:, int(r.best()[1:])].sum())
    alone = Trials()
    alone.add("only", x[:, 0])
    assert "p-value" not in summary(alone, rng=np.random.default_rng(2), n=199).index


def test_a_summary_with_days_resamples_days():
    r, _ = book()
    r.days = np.repeat(np.arange(8), 20)
    t = summary(r, rng=np.random.default_rng(3), n=199)
    assert "8 days" in t.note["upper end of the total"]


@pytest.mark.parametrize("call, error, words", [
    (lambda: expected_max_sharpe(0), ParameterError, "count everything"),
    (lambda: expected_max_sharpe(5, variance=-1), ParameterError, "variance"),
    (lambda: deflated_sharpe(0.1, n_trials=3), ParameterError, "se = None"),
    (lambda: effective_trials(np.ones(5)), DataError, "one column a variant"),
    (lambda: pbo(np.column_stack([np.zeros(40), np.arange(40.0)])), DataError, "column 0 does not vary"),
    (lambda: pbo(np.random.default_rng(0).normal(size=(10, 3))), ParameterError, "n_blocks"),
    (lambda: reality_check(np.eye(9), rng=np.random.default_rng(0), benchmark=math.nan), DataError, "benchmark"),
    (lambda: purged_walk_forward(20, n_splits=5, embargo=30), ParameterError, "0 training rows"),
    (lambda: purged_walk_forward(20, purge=-1), ParameterError, "purge"),
    (lambda: list(PurgedWalkForward().split(range(60), ends=np.arange(5))), ParameterError, "ends"),
    (lambda: Trials().best(), DataError, "varies"),
    (lambda: deflate(book()[0], name="v99"), ParameterError, "v99"),
])
def test_meaningless_requests_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_record_refuses_what_would_hide_a_trial():
    r, x = book()
    with pytest.raises(DataError, match="already"):
        r.add("v1", x[:, 0])
    with pytest.raises(DataError, match="same periods"):
        r.add("short", x[:9, 0])
    with pytest.raises(DataError, match="same periods"):
        r.add("shifted", pd.Series(x[:, 0], index=np.arange(1, 161)))


def test_the_paper_formula_never_inflates():
    "Near one trial the extreme-value formula is negative: the benchmark must rise from 0 with the trials."
    n = np.array([1, 1.0001, 1.05, 1.3, 1.7, 1.999])
    got = np.array([expected_max_sharpe(k) for k in n])
    assert got[0] == 0 and (np.diff(got) > 0).all() and (np.array([expected_max_sharpe(k) for k in (2, 3, 10, 1e9, 1e18)]) > 0.5).all()
    assert math.isfinite(expected_max_sharpe(1e18))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_worthless_pbo_by_number_of_variants(n):
    "One half for an even number, (N + 1) / 2N for an odd one; 200 records, four standard errors and the pull of mirrored halves."
    rng = np.random.default_rng(n)
    got = np.array([pbo(rng.normal(size=(80, n)), n_blocks=8).pbo for _ in range(200)])
    assert abs(got.mean() - (n + n % 2) / (2 * n)) < 4 * got.std(ddof=1) / 200**0.5 + 0.03


@pytest.mark.parametrize("how, words", [
    (dict(max_train=0), "max_train = 0"), (dict(max_train=-3), "max_train = -3"), (dict(test_size=0), "test_size = 0"), (dict(n_splits=2.5), "n_splits = 2.5"),
    (dict(purge=math.nan), "purge = nan"), (dict(purge=0.5), "purge = 0.5"),
])
def test_a_splitter_refuses_what_it_cannot_mean(how, words):
    "max_train = 0 used to keep every row, -3 to drop the first three."
    with pytest.raises(ParameterError, match=words):
        PurgedWalkForward(**how)


@pytest.mark.parametrize("call, error, words", [
    (lambda x: reality_check(x, rng=np.random.default_rng(0), block=31), ParameterError, "at most half of the 60"),
    (lambda x: reality_check(x, rng=np.random.default_rng(0), n=0), ParameterError, "n = 0 .resamples."),
    (lambda x: reality_check(x, rng=np.random.default_rng(0), benchmark=np.ones(7)), DataError, "benchmark has shape"),
    (lambda x: pbo(x, n_blocks=math.nan), ParameterError, "n_blocks = nan"),
    (lambda x: deflated_sharpe(x[:, 0], n_trials=3, se=0.1), ParameterError, "leave it out"),
    (lambda x: deflated_sharpe(0.1, n_trials=3, se=math.inf), ParameterError, "se = inf"),
    (lambda x: Trials().add("a", x), DataError, "pnl of 'a' has 3 columns"),
    (lambda x: Trials(unrecorded=-1), ParameterError, "unrecorded = -1"),
])
def test_no_p_value_out_of_nothing(call, error, words):
    with pytest.raises(error, match=words):
        call(np.random.default_rng(5).normal(size=(60, 3)))
