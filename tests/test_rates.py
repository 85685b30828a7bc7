"Rates by side, hour and volatility, and how calibrations age: oracles, identities, no look-ahead, recovery."
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import real

from makerlab.calibration.intensity import IntensityModel, quotable_counts
from makerlab.calibration.rates import (FORMULAS, RateModel, compare_rates, cosine_se, effective_df, jackknife_cov, rate_data, staleness,
                                        staleness_counts)
from makerlab.core import DataError, ParameterError, to_ns
from makerlab.data.synth import make_tape


@pytest.fixture(scope="module")
def tape():
    return make_tape(rng=np.random.default_rng(3), days=2, seconds=7200.0, A=1.0, k=60.0, tick=0.01, sigma=0.01, spread_ticks={1: 0.4, 2: 0.4, 3: 0.2})


@pytest.fixture(scope="module")
def data(tape):
    return rate_data(tape.trades, tape.quotes, tick=0.01, max_ticks=12)


def test_slots_add_up_to_the_whole(tape, data):
    n, e, delta = data.grid()
    days = tape.quotes.time.dt.date
    whole = [quotable_counts(tape.trades[tape.trades.time.dt.date == d], tape.quotes[days == d].reset_index(drop=True), tick=0.01, max_ticks=12) for d in days.unique()]
    counts, seconds = (sum(w[c].to_numpy() for w in whole) for c in ("count", "exposure"))
    at = np.rint(delta / 0.005).astype(int) - 1
    assert n.sum(axis=0) == pytest.approx(counts[at]) and e.sum(axis=0) == pytest.approx(seconds[at], abs=0.05)
    assert sum(data.grid(s)[0].sum() for s in ("buy", "sell")) == n.sum() == data.notes["counted"]
    assert data.path["lasts_s"].sum() == pytest.approx(2 * 7200, abs=10)


def test_constant_is_intensity_and_glm(data):
    n, e, delta = data.grid()
    f, one = RateModel(data, formula="constant").fit(), IntensityModel(pd.DataFrame({"delta": delta, "count": n.sum(axis=0), "exposure": e.sum(axis=0)})).fit()
    assert [math.exp(f.params["Intercept"]), -f.params["delta"]] == pytest.approx(one.params.to_numpy(), rel=1e-6)
    assert np.sqrt(np.diag(f.poisson_cov))[1] == pytest.approx(one.bse["k"], rel=1e-5)
    r = f.rows
    glm = sm.GLM(r["count"], np.column_stack([np.ones(len(r)), r["delta"]]), family=sm.families.Poisson(), offset=np.log(r["exposure"]))
    robust = glm.fit(cov_type="cluster", cov_kwds={"groups": r["block"].to_numpy()})
    assert f.bse.to_numpy() == pytest.approx(np.asarray(robust.bse), rel=0.25)  # 16 blocks; the jackknife is the larger
    assert f.llf == pytest.approx(robust.llf) and effective_df(np.eye(2), f.pieces).max() <= f.n_blocks
    p = f.predict(pd.DataFrame({"delta": [0.01, 0.02]}), reach=True)
    k = -f.params["delta"]
    assert p["rate"].iloc[0] / p["rate"].iloc[1] == pytest.approx(math.exp(0.01 * k))
    assert p["rate"].to_numpy() == pytest.approx(math.exp(f.params["Intercept"]) * np.exp(-k * np.array([0.01, 0.02])) / -math.expm1(-k * 0.01))
    assert (np.abs(np.log(p["rate"] / np.exp([-0.6, -1.2]))) < 2 * np.log(p["hi"] / p["rate"])).all()  # 4 s.e.


def test_jackknife_is_leave_one_out():
    rng = np.random.default_rng(1)
    X, block = np.column_stack([np.ones(400), rng.standard_normal(400)]), np.repeat(np.arange(40), 10)
    y = rng.poisson(np.exp(X @ [1.0, 0.3]) * rng.gamma(10, 0.1, 40)[block])
    fit = sm.GLM(y, X, family=sm.families.Poisson()).fit()
    loo = np.array([sm.GLM(y[block != b], X[block != b], family=sm.families.Poisson()).fit().params for b in range(40)]) - fit.params
    assert np.diag(jackknife_cov(X, y, fit.mu, block)[0]) == pytest.approx(np.diag(loo.T @ loo) * 39 / 40, rel=0.02)


def test_no_look_ahead_in_volatility(tape):
    cut = tape.quotes.time.iloc[0] + pd.Timedelta(3600, "s")
    wild = tape.quotes.assign(**{c: tape.quotes[c].where(tape.quotes.time <= cut, (tape.quotes[c] + 0.01 * np.random.default_rng(0).integers(0, 50, len(tape.quotes))).round(2)) for c in ("bid",)})
    wild["ask"] = wild["bid"] + (tape.quotes["ask"] - tape.quotes["bid"]).round(2)
    a, b = (rate_data(tape.trades, q, tick=0.01, max_ticks=80).slots for q in (tape.quotes, wild))
    early = a["start_ns"] <= to_ns(pd.DatetimeIndex([cut]))[0]
    gap = (a["log_sigma"].fillna(0) - b["log_sigma"].fillna(0)).abs()
    assert gap[early].max() < 1e-9 and gap[~early].max() > 0.1
    assert a["log_sigma"].isna().sum() == 2  # the first slot of each day has no past


def test_formulas_are_nested(data):
    t = compare_rates(data, ("constant", "side", "side, hour"))
    assert (t["llf"].diff().dropna() >= 0).all() and (t["p_blocks"].dropna() > 1e-4).all() and list(FORMULAS)[:3] == list(t.index)
    r = RateModel(data, formula="side").fit()
    for side in (None, "buy", "sell"):
        assert r.residuals(side=side).ks_pvalue > 1e-3
    again = r.residuals(data)  # as if unseen: the same increments
    assert again.increments == pytest.approx(r.residuals().increments) and not again.fitted_scale


def test_cosines():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(4000)
    assert cosine_se(x, 200) == pytest.approx(1 / math.sqrt(4000), rel=0.25)  # 5 s.e. of an sd with 200 degrees
    y = np.repeat(rng.standard_normal(400), 10)
    assert cosine_se(y, 40) == pytest.approx(1 / 20, rel=0.5) and y.std() / math.sqrt(4000) < 0.5 * cosine_se(y, 40)


def score_slowly(n, e, delta, train, slot):
    f = IntensityModel(pd.DataFrame({"delta": delta, "count": n[train].sum(axis=0), "exposure": e[train].sum(axis=0)})).fit()
    mean = f.params["A"] * np.exp(-f.params["k"] * delta) * e[slot]
    return float((n[slot] * np.log(mean) - mean).sum())


def test_staleness_against_the_slow_way():
    rng, delta = np.random.default_rng(2), 0.01 * np.arange(1, 5)
    n, e = rng.poisson(40 * np.exp(-50 * delta), (30, 4)).astype(float), np.full((30, 4), 300.0)
    start = 300.0 * np.arange(30)
    start[15:] += 10_000 * 300.0  # a night
    r = staleness_counts(n, e, delta=delta, start_s=start, every_s=300.0, train_s=900.0, ages_s=(600.0, 1500.0))
    for age, lag in ((600.0, 2), (1500.0, 5)):
        slots = [s for first in (0, 15) for s in range(first + 3 + lag, first + 16) if s < first + 15]
        want = [score_slowly(n, e, delta, slice(s - 3, s), s) - score_slowly(n, e, delta, slice(s - 3 - lag, s - lag), s) for s in slots]
        got = r.losses[age]
        assert got["slot"].tolist() == slots and (got["level"] + got["shape"]).to_numpy() == pytest.approx(want, abs=1e-7)
        assert r.table.loc[age, "loss"] == pytest.approx(sum(want) / n[slots].sum())


def test_staleness_recovers_the_drift():
    rng, days, delta = np.random.default_rng(6), 60, 0.01 * np.arange(1, 7)
    walk = np.cumsum(rng.normal(0, math.sqrt(0.04 / 3600 * 30), (days, 780)), axis=1).reshape(days * 78, 10)
    rate = 0.5 * np.exp(walk).mean(axis=1)[:, None] * np.exp(-60 * delta) * 300
    start = (86_400 * np.arange(days)[:, None] + 300.0 * np.arange(78)).ravel()
    t = staleness_counts(rng.poisson(rate), np.full(rate.shape, 300.0), delta=delta, start_s=start, every_s=300.0, ages_s=(600.0, 3600.0)).table
    assert ((t["drift_lo"] < 0.046) & (t["drift_hi"] > 0.035)).all() and (t["shape"].abs() < 0.05 * t["level"]).all()


def test_refusals(tape, data):
    with pytest.raises(DataError, match=r"block\(s\)"):
        RateModel(rate_data(tape.trades, tape.quotes, tick=0.01, max_ticks=12, block_s=7200.0)).fit()
    with pytest.raises(ParameterError, match="not independent"):
        RateModel(data, formula="delta + I(3 * delta)").fit()
    with pytest.raises(ParameterError, match="cannot be built"):
        RateModel(data, formula="delta + nothing").fit()
    with pytest.raises(DataError, match="side"):
        RateModel(data, formula="side").fit().predict(pd.DataFrame({"delta": [0.01]}))
    with pytest.raises(ParameterError, match="multiples"):
        staleness(data, ages_s=(450.0,))
    with pytest.raises(DataError, match="too short"):
        staleness(data, ages_s=(36_000.0,))
    with pytest.raises(DataError, match="no quote precedes"):
        rate_data(tape.trades, tape.quotes.assign(time=tape.quotes.time + pd.Timedelta(5, "D")), tick=0.01)
    with pytest.raises(ParameterError, match="every_s"):
        rate_data(tape.trades, tape.quotes, tick=0.01, every_s=-1.0)


def test_tables_of_slots_that_cannot_be_right(tape, data):
    n, e, delta, at = np.full((40, 3), 5.0), np.full((40, 3), 300.0), np.array([0.01, 0.02, 0.03]), 300.0 * np.arange(40)
    call = lambda n=n, e=e, delta=delta, at=at, **k: staleness_counts(n, e, delta=delta, start_s=at, every_s=300.0, **{"ages_s": (300.0,), **k})
    assert call().table["loss"].iloc[0] == pytest.approx(0.0, abs=1e-9)  # the same counts for ever
    for bad, word in ((dict(n=np.where(np.arange(120).reshape(40, 3) == 30, np.nan, n)), "finite"), (dict(at=at[::-1]), "sort the slots"),
                      (dict(delta=delta[::-1]), "increasing"), (dict(n=n[:, :1], e=e[:, :1], delta=delta[:1]), "at least two"), (dict(e=e[:20]), "one row")):
        with pytest.raises(DataError, match=word):
            call(**bad)
    for bad in (dict(ages_s=()), dict(ages_s=(100.0,)), dict(train_s=0.0)):
        with pytest.raises(ParameterError, match="ages_s"):
            call(**bad)
    with pytest.raises(ParameterError, match="contains the last"):
        compare_rates(data, {"a": "side", "b": "delta + hour + I(hour**2)"})
    with pytest.raises(ParameterError, match="cannot be built"):
        RateModel(data, formula="not a formula").fit()
    with pytest.raises(ParameterError, match="tz"):
        rate_data(tape.trades, tape.quotes, tick=0.01, tz="Mars")
    with pytest.raises(ParameterError, match="df"):
        cosine_se(np.ones(5), 0)
    with pytest.raises(ParameterError, match="n = 1"):
        RateModel(data, formula="constant").fit().bootstrap(n=1, rng=np.random.default_rng(1))


@pytest.mark.realdata
def test_a_lobster_day():
    "AAPL 2012-06-21: the numbers told in nbs/40c."
    from makerlab.data.lob import load_lobster

    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    d = rate_data(day.trades(hidden=False), day.quotes(), tick=0.01, max_ticks=30)
    t = compare_rates(d, ("constant", "side", "side, hour", "side, hour, volatility"))
    assert t["dispersion"].to_numpy() == pytest.approx([61.86, 62.07, 27.38, 27.37], rel=2e-3)
    assert t["llf"].diff().to_numpy()[2:] == pytest.approx([1664.4, 86.2], abs=0.2)
    assert t["p_blocks"]["side, hour"] < 1e-3 and t["p_blocks"]["side"] > 0.2 and t["p_blocks"]["side, hour, volatility"] > 0.5 > 1e-8 > t["p_poisson"]["side"]
    r = RateModel(d, formula="side, hour, volatility").fit().residuals()
    assert r.ks == pytest.approx(0.4995, abs=1e-3) and r.summary().loc["lag-1 correlation", "value"] == pytest.approx(0.199, abs=2e-3)
    s = staleness(d, train_s=900.0, ages_s=(300.0, 600.0, 1800.0)).table
    assert s[["loss", "lo", "hi"]].to_numpy()[:2].ravel() == pytest.approx([0.0451, 0.0226, 0.0901, 0.0748, 0.0358, 0.1561], abs=2e-4)
    assert math.isnan(s["lo"].iloc[2]) and s["loss"].iloc[2] == pytest.approx(0.1604, abs=2e-4)
    assert (s["level"] / s["loss"]).to_numpy() == pytest.approx(0.784, abs=5e-3)
    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip"))
    d = rate_data(day.trades(hidden=False), day.quotes(), tick=0.01, max_ticks=30)
    r = RateModel(d, formula="side, hour, volatility").fit().residuals()
    assert [r.ks, r.summary().loc["spread", "value"]] == pytest.approx([0.4952, 2.5736], abs=1e-3)
