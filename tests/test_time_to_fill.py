"Waits with censoring: twins, oracles, no look-ahead, the trap of nested counts, and a real day."
import math

import numpy as np
import pandas as pd
import pytest
from conftest import real
from scipy.stats import kstest
from statsmodels.duration.survfunc import SurvfuncRight

from makerlab.calibration.intensity import IntensityModel
from makerlab.calibration.time_to_fill import FillTimeModel, age_test, block_draws, block_fit, place_quotes, plot_survival, survival_curve
from makerlab.core import DataError, ParameterError, to_ns
from makerlab.data.synth import make_tape

DEPTHS = 0.005 * np.arange(1, 9)


@pytest.fixture(scope="module")
def tape():
    return make_tape(rng=np.random.default_rng(3), seconds=3600.0, A=1.0, k=60.0, tick=0.01, sigma=0.01, spread_ticks={1: 0.4, 2: 0.4, 3: 0.2})


def wait_slowly(tape, placed_ns, side, d, kind, life_ns):
    "One quote, followed row by row."
    q, t = tape.quotes, tape.trades
    qn, tn = to_ns(q["time"]), to_ns(t["time"])
    state = lambda ns, strict: q.iloc[(np.searchsorted(qn, ns, side="left" if strict else "right")) - 1]
    can = lambda row: d >= (row.ask - row.bid) / 2 - 1e-9 and abs((d - (row.ask - row.bid) / 2) / 0.01 - round((d - (row.ask - row.bid) / 2) / 0.01)) < 1e-4
    here = state(placed_ns, False)
    if not can(here):
        return None
    limit, end = (here.bid + here.ask) / 2 + side * d, min(placed_ns + life_ns, max(qn[-1], tn[-1]))
    moments = sorted({*qn[(qn > placed_ns) & (qn <= end)], *tn[(tn > placed_ns) & (tn <= end)]})
    for ns in moments:
        before = state(ns, True)
        for row in t[(tn == ns) & (t["side"] == side)].itertuples():
            far = side * (row.price - (before.bid + before.ask) / 2) >= d - 1e-7 if kind == "pegged" else side * (row.price - limit) >= -1e-7
            if far:
                return (ns - placed_ns) / 1e9, True
        after = state(ns, False)
        if kind == "pegged" and not can(after):
            return (ns - placed_ns) / 1e9, False
        if kind == "resting" and side * ((after.bid if side > 0 else after.ask) - limit) >= -1e-7:
            return (ns - placed_ns) / 1e9, True
    return (end - placed_ns) / 1e9, False


@pytest.mark.parametrize("kind", ["pegged", "resting"])
def test_against_following_row_by_row(tape, kind):
    f = place_quotes(tape.trades, tape.quotes, depths=DEPTHS, tick=0.01, kind=kind, every_s=10.0, lifetime_s=25.0)
    pick = f.rows.sample(60, random_state=1)
    for row in pick.itertuples():
        seconds, filled = wait_slowly(tape, row.placed.value, row.side, row.delta, kind, 25 * 10**9)
        assert (row.duration_s, row.filled) == (pytest.approx(seconds, abs=1e-8), filled)
    assert f.notes["placed"] + f.notes["could_not_stand"] == 2 * len(DEPTHS) * 359


def test_no_look_ahead(tape):
    "What happens later changes neither which quotes were placed before nor how the finished ones ended."
    cut = tape.quotes.time.iloc[0] + pd.Timedelta(1800, "s")
    full = place_quotes(tape.trades, tape.quotes, depths=DEPTHS, tick=0.01, kind="resting")
    other = make_tape(rng=np.random.default_rng(99), seconds=3600.0, A=2.0, k=30.0, tick=0.01, sigma=0.03, spread_ticks={1: 0.2, 2: 0.8})
    mixed = [pd.concat([a[a.time < cut], b[b.time >= cut]], ignore_index=True) for a, b in ((tape.trades, other.trades), (tape.quotes, other.quotes))]
    scrambled = place_quotes(*mixed, depths=DEPTHS, tick=0.01, kind="resting")
    for f, g in ((full, scrambled),):
        early = lambda r: r[r.placed < cut].sort_values(["side", "delta", "placed"]).reset_index(drop=True)
        a, b = early(f.rows), early(g.rows)
        pd.testing.assert_frame_equal(a[["placed", "side", "delta", "block"]], b[["placed", "side", "delta", "block"]])
        done = a.placed + pd.to_timedelta(a.duration_s, unit="s") < cut
        pd.testing.assert_frame_equal(a[done], b[done])


def test_the_same_estimate_as_counts_with_exposure(tape):
    f = place_quotes(tape.trades, tape.quotes, depths=DEPTHS, tick=0.01, block_s=120.0)
    r, other = FillTimeModel(f).fit(), IntensityModel(f.bins).fit()
    assert r.params.to_numpy() == pytest.approx(other.params.to_numpy(), rel=1e-9)
    assert np.sqrt(np.diag(r.naive)) == pytest.approx(other.bse.to_numpy(), rel=1e-6)
    assert np.abs(r.params - [1.0, 60.0]).lt(4 * r.bse).all()
    sides = FillTimeModel(f, per_side=True).fit()
    alone = [block_fit(*f.sums(s), delta=f.delta) for s in (1, -1)]
    assert sides.params.to_numpy() == pytest.approx(np.concatenate([[math.exp(a[1][0]), a[1][1]] for a in alone]), rel=1e-9)
    assert sides.covariance.loc["k_buy", "k_buy"] == pytest.approx(alone[0][2][1, 1], rel=1e-9)
    assert r.law.rate(0.0) == pytest.approx(r.params["A"])


def test_nested_counts_are_not_taken_for_independent():
    "MATH F15: A = 140, k = 1.5, one minute. The known wrong answer is a standard error of 0.0067 where 0.022 is true."
    rng, edges = np.random.default_rng(15), np.append(0.05 + 0.1 * np.arange(40), np.inf)
    orders = rng.poisson(140 * -np.diff(np.exp(-1.5 * edges)), (600, 60, 40)).astype(float)
    fits = [block_fit(o[:, ::-1].cumsum(axis=1)[:, ::-1], np.ones((60, 40)), delta=edges[:40]) for o in orders]
    k = np.array([f[1][1] for f in fits])
    ours, naive = (np.mean([math.sqrt(f[i][1, 1]) for f in fits]) for i in (2, 3))
    assert naive == pytest.approx(0.0067, abs=1e-4)
    assert abs(ours / k.std(ddof=1) - 1) < 4 / math.sqrt(2 * 600) and ours > 3 * naive  # 4 s.e. of an sd
    assert abs(k.mean() - 1.5) < 4 * k.std() / math.sqrt(600) + 0.002
    lam = 140 * 60 * np.exp(-1.5 * edges[:40])  # and the exact answer: nested counts have covariance min
    X = np.column_stack([np.ones(40), -edges[:40]])
    H = np.linalg.inv((X * lam[:, None]).T @ X)
    exact = math.sqrt((H @ X.T @ np.minimum.outer(lam, lam) @ X @ H)[1, 1])
    assert ours == pytest.approx(exact, rel=0.03)


def test_bootstrap_kernel_and_its_plain_twin():
    rng = np.random.default_rng(5)
    n, e = rng.poisson(20, (15, 4)).cumsum(axis=1)[:, ::-1].astype(float), rng.uniform(50, 60, (15, 4))
    d = np.array([0.01, 0.02, 0.04, 0.05])
    got = block_draws(n, e, delta=d, n=20, rng=np.random.default_rng(1))
    picks = np.random.default_rng(1).integers(0, 15, size=(20, 15))
    want = np.array([block_fit(n[p], e[p], delta=d)[1] for p in picks])
    assert got == pytest.approx(want, rel=1e-8)
    with pytest.raises(ParameterError, match="n = 0"):
        block_draws(n, e, delta=d, n=0, rng=rng)


@pytest.mark.parametrize("seed", range(5))
def test_kaplan_meier_against_statsmodels(seed):
    rng = np.random.default_rng(seed)
    t, d = np.round(rng.exponential(3.0, 400), 1) + 0.1, rng.random(400) < 0.6  # with ties
    oracle = SurvfuncRight(t, d)
    mine = survival_curve(t, d, at=oracle.surv_times)
    assert mine["survival"].to_numpy() == pytest.approx(oracle.surv_prob, abs=1e-12)
    risky = mine["at_risk"] > 40  # Greenwood's variance, up to n / (n - 1) and the ties' second order
    assert mine["se"][risky].to_numpy() == pytest.approx(oracle.surv_prob_se[risky], rel=0.02)
    twice = survival_curve(np.r_[t, t], np.r_[d, d], blocks=np.r_[np.arange(400), np.arange(400)], at=oracle.surv_times)
    assert twice["se"][risky].to_numpy() == pytest.approx(mine["se"][risky].to_numpy(), rel=1e-3)  # a copy of every wait is no news
    naive = survival_curve(np.r_[t, t], np.r_[d, d], at=oracle.surv_times)
    assert (naive["se"][risky] < 0.75 * mine["se"][risky]).all()


def test_resting_quotes_are_not_exponential():
    tape = make_tape(rng=np.random.default_rng(8), seconds=23_400.0, mid0=180.0, A=0.25, k=25.0, tick=0.01, sigma=0.018, spread_ticks={5: 0.5, 7: 0.5}, move_ticks=5)
    depths = 0.01 * np.array([3.5, 4.5, 6.5, 8.5])
    late = {kind: age_test(FillTimeModel(place_quotes(tape.trades, tape.quotes, depths=depths, tick=0.01, every_s=30.0, lifetime_s=30.0, kind=kind)).fit())
            for kind in ("pegged", "resting")}
    assert late["pegged"]["p"] > 1e-3 and late["resting"]["upper"] < 0.95


def test_refusals(tape):
    t, q = tape.trades, tape.quotes
    for arguments, error, word in (({"depths": [0.03]}, ParameterError, "at least two"), ({"depths": DEPTHS, "lifetime_s": 600.0}, ParameterError, "block_s"),
                                   ({"depths": [0.0132, 0.02], "tick": 0.01}, ParameterError, "half a tick"), ({"depths": DEPTHS, "kind": "?"}, ParameterError, "kind"),
                                   ({"depths": DEPTHS, "tick": 0.03}, DataError, "tick"), ({"depths": DEPTHS, "every_s": 0.0}, ParameterError, "every_s")):
        with pytest.raises(error, match=word):
            place_quotes(t, q, **arguments)
    with pytest.raises(DataError, match="no quote precedes"):
        place_quotes(t, q.assign(time=q.time + pd.Timedelta(1, "D")), depths=DEPTHS)
    with pytest.raises(DataError, match="at least 8"):
        FillTimeModel(place_quotes(t, q, depths=DEPTHS, block_s=900.0)).fit()
    f = FillTimeModel(place_quotes(t, q, depths=DEPTHS, block_s=120.0), per_side=True).fit()
    for call in (lambda: f.law, lambda: f.conf_int(2.0)):
        with pytest.raises(ParameterError):
            call()
    with pytest.raises(DataError, match="one verdict each"):
        survival_curve(np.array([1.0, np.nan]), np.array([True, False]))


class Counted:
    "Sums by block of two equal sides, without a tape."

    rows, delta, lifetime_s, kind = range(0), DEPTHS, 10.0, "pegged"

    def __init__(self, rng):
        mean = 60 * 0.5 * -np.diff(np.append(np.exp(-60 * DEPTHS), 0.0))
        self.counts = {s: rng.poisson(mean, (60, 8))[:, ::-1].cumsum(axis=1)[:, ::-1].astype(float) for s in (1, -1)}

    def sums(self, side):
        return self.counts[side], np.full((60, 8), 60.0)


def test_equal_sides_are_found_equal():
    "Size of the test of equal sides: 60 blocks of nested counts, 1,000 times."
    rng = np.random.default_rng(20)
    p = np.array([FillTimeModel(Counted(rng), per_side=True).fit().side_test()["p"] for _ in range(1000)])
    assert abs((p < 0.05).mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 1000) and kstest(p, "uniform").pvalue > 1e-3


def test_nothing_stands_and_nothing_fills(tape):
    t, q = tape.trades, tape.quotes
    with pytest.raises(DataError, match="no quote could stand"):
        place_quotes(t, q, depths=[0.0001, 0.0002])
    far = place_quotes(t, q, depths=[2.0, 3.0], block_s=120.0)
    both, apart = FillTimeModel(far).fit(), FillTimeModel(far, per_side=True).fit()
    assert both.status == ("no_counts",) and both.params["A"] == 0 and both.bse.isna().all() and both.conf_int().isna().all().all()
    for call, word in ((apart.side_test, "status"), (lambda: both.bootstrap(n=5, rng=np.random.default_rng(1)), "no estimate"), (lambda: age_test(both), "status"),
                       (lambda: apart.bootstrap(n=5, rng=np.random.default_rng(1)), "per_side")):
        with pytest.raises(ParameterError, match=word):
            call()
    with pytest.raises(DataError, match=r"1 block\(s\)"):
        block_fit(np.array([[3.0, 1.0]]), np.array([[9.0, 9.0]]), delta=np.array([1.0, 2.0]))
    with pytest.raises(ParameterError, match="never watched"):
        block_draws(np.ones((9, 2)), np.array([[1.0, 0.0]] * 9), delta=np.array([1.0, 2.0]), n=3, rng=np.random.default_rng(1))
    idle = survival_curve(np.repeat([1.0, 2.0, 3.0], 20), np.zeros(60, dtype=bool))
    assert (idle["survival"] == 1).all() and idle["lo"].isna().all()
    with pytest.raises(DataError, match="one entry for each"):
        survival_curve(np.ones(5), np.ones(5, dtype=bool), blocks=np.arange(3))


def test_plot_survival_draws_two_lines_a_depth(tape):
    r = FillTimeModel(place_quotes(tape.trades, tape.quotes, depths=DEPTHS, tick=0.01, block_s=120.0)).fit()
    assert len(plot_survival(r, depths=[0.01, 0.02]).lines) == 4
    with pytest.raises(ParameterError, match="alpha"):
        age_test(r, alpha=2.0)


@pytest.mark.realdata
def test_a_lobster_day():
    "AAPL 2012-06-21: the numbers told in nbs/40a."
    from makerlab.data.lob import load_lobster

    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    f = place_quotes(day.trades(hidden=False), day.quotes(), depths=0.005 * np.arange(11, 41), tick=0.01, block_s=600.0)
    r = FillTimeModel(f).fit()
    assert f.notes["filled"] == 441 and f.notes["placed"] == 59_562
    assert [*r.params, *r.bse, *np.sqrt(np.diag(r.naive))] == pytest.approx([1.289, 59.386, 0.4482, 5.434, 0.2443, 2.419], rel=2e-3)
    assert age_test(r).to_numpy()[:3] == pytest.approx([0.5842, 0.3798, 0.8986], rel=2e-3)
    assert FillTimeModel(f, per_side=True).fit().side_test()["F"] == pytest.approx(2.5717, rel=2e-3)
