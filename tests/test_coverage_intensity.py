"Coverage of every interval that the calibration pages 40, 40a, 40b and 40c print: nominal 95 % must hold the truth in 92-98 %."
import math

import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure

from makerlab.calibration.intensity import IntensityModel, bootstrap, quotable_counts, to_reach
from makerlab.calibration.rates import RateData, RateModel, staleness_counts
from makerlab.calibration.residuals import piecewise_increments, time_rescaling
from makerlab.calibration.time_to_fill import (FillTimeModel, age_test, block_fit, place_quotes, survival_curve,
                                               _t_interval)
from makerlab.data.synth import make_tape

pytestmark = pytest.mark.slow

EDGES = 0.01 * (np.arange(13) + 0.5)
PER_S = -np.diff(np.exp(-60 * EDGES))


def binned(rng, seconds):
    return IntensityModel(pd.DataFrame({"delta": EDGES[:-1], "count": rng.poisson(seconds * PER_S).astype(float), "exposure": seconds})).fit()


@pytest.mark.parametrize("events", [15, 300])
def test_wald_and_profile_of_binned_counts(events):
    A, seconds = -math.expm1(-0.6), events / PER_S.sum()

    def one(rng):
        f = binned(rng, seconds)
        if f.status != "ok":
            return [(math.nan, math.nan, A), (math.nan, math.nan, 60.0), (*f.profile_interval(), 60.0)]
        ci = f.conf_int()
        return [(*ci.loc["A"], A), (*ci.loc["k"], 60.0), (*f.profile_interval(), 60.0)]

    measure(f"intensity, {events} events", one, n=1000, names=["A (Wald on ln A)", "k (Wald)", "k (profile)"])


def test_bootstrap_of_binned_counts():
    A = -math.expm1(-0.6)

    def one(rng):
        ci = bootstrap(binned(rng, 300 / PER_S.sum()), n=1000, rng=rng).conf_int()
        return [(*ci.loc["A"], A), (*ci.loc["k"], 60.0)]

    measure("intensity, parametric bootstrap, 300 events", one, n=1000, names=["A", "k"])


def test_power_law_with_delta0_given():
    delta = 0.01 * np.arange(1, 11)
    rate = 0.002 * (delta + 0.02) ** -1.8

    def one(rng):
        ci = IntensityModel(pd.DataFrame({"delta": delta, "count": rng.poisson(rate * 600).astype(float), "exposure": 600.0}), law="power", delta0=0.02).fit().conf_int()
        return [(*ci.loc["A"], 0.002), (*ci.loc["k"], 1.8)]

    measure("intensity, power law", one, n=1000, names=["A", "k"])


def an_hour(rng):
    return make_tape(rng=rng, seconds=3600.0, A=1.0, k=60.0, tick=0.01, sigma=0.01, spread_ticks={1: 0.4, 2: 0.4, 3: 0.2})


def test_quotable_counts_on_a_tape():
    def one(rng):
        tape = an_hour(rng)
        ci = to_reach(IntensityModel(quotable_counts(tape.trades, tape.quotes, tick=0.01, max_ticks=12)).fit(), width=0.01).conf_int()
        return [(*ci.loc["A"], 1.0), (*ci.loc["k"], 60.0)]

    measure("intensity, quotable counts of a tape", one, n=400, names=["A", "k"])


def test_time_to_fill_on_a_tape():
    def one(rng):
        tape = an_hour(rng)
        f = place_quotes(tape.trades, tape.quotes, depths=0.005 * np.arange(1, 9), tick=0.01, block_s=60.0)
        both, sides = FillTimeModel(f).fit(), FillTimeModel(f, per_side=True).fit()
        ci, cs, cb, age = both.conf_int(), sides.conf_int(), both.bootstrap(n=200, rng=rng), age_test(both)
        return [(*ci.loc["A"], 1.0), (*ci.loc["k"], 60.0), (*cs.loc["A_buy"], 1.0), (*cs.loc["k_sell"], 60.0),
                (*cb.loc["A", ["lower", "upper"]], 1.0), (*cb.loc["k", ["lower", "upper"]], 60.0), (age["lower"], age["upper"], 1.0)]

    measure("time to fill", one, n=300, names=["A", "k", "A of buys", "k of sells", "A, block bootstrap", "k, block bootstrap", "late over early hazard"])


def test_survival_curve_with_waits_that_share_orders():
    true = np.exp(-math.exp(-1.5) * np.array([2.0, 6.0]))

    def one(rng):
        tape = make_tape(rng=rng, seconds=3600.0, A=1.0, k=60.0, tick=0.01, sigma=0.01, spread_ticks=1)
        r = place_quotes(tape.trades, tape.quotes, depths=[0.025, 0.035], tick=0.01, every_s=5.0, block_s=60.0).rows
        r = r[r["delta"] < 0.03]
        s = survival_curve(r["duration_s"].to_numpy(), r["filled"].to_numpy(), blocks=r["block"].to_numpy(), at=np.array([2.0, 6.0]))
        return [(s["lo"][i], s["hi"][i], true[i]) for i in range(2)]

    measure("survival of overlapping waits", one, n=300, names=["at 2 s", "at 6 s"])


def test_nested_counts_by_blocks():
    "F15: A = 140, k = 1.5, one minute; nested counts with errors by blocks of a second, and in waves of activity by few blocks."
    edges = np.append(0.05 + 0.1 * np.arange(40), np.inf)
    mean = 140 * -np.diff(np.exp(-1.5 * edges))

    def fit(orders):
        _, th, V, _ = block_fit(orders[:, ::-1].cumsum(axis=1)[:, ::-1], np.ones(orders.shape), delta=edges[:40])
        value = pd.Series([math.exp(th[0]), th[1]], index=["A", "k"])
        ci = _t_interval(value, pd.Series(np.sqrt(np.diag(V)) * [value["A"], 1.0], index=value.index), len(orders) - 1, 0.05)
        return [(*ci.loc["A"], 140.0), (*ci.loc["k"], 1.5)]

    measure("nested counts, 60 blocks", lambda rng: fit(rng.poisson(mean, (60, 40)).astype(float)), n=1000, names=["A", "k"])
    measure("nested counts in waves, 30 blocks", lambda rng: fit(rng.poisson(mean * rng.gamma(4.0, 0.25, (30, 1)), (30, 40)).astype(float)), n=1000, names=["A", "k"])


def test_bands_of_time_rescaling():
    knots = np.linspace(0, 23_400, 391)
    rate = 0.01 + 0.03 * (2 * (knots[:-1] + 30) / 23_400 - 1) ** 2
    mean = rate * 60

    def day(rng):
        n = rng.poisson(mean)
        return piecewise_increments(np.sort(np.repeat(knots[:-1], n) + 60 * rng.random(n.sum())), knots=knots, rates=rate)

    def one(rng):
        r = time_rescaling(day(rng))
        s, q = r.summary(), r.qq()
        i = [r.n // 10, r.n // 2, int(0.95 * r.n)]
        return [*[(row.lo, row.hi, row.value) for row in s.itertuples()], *[(q["lo"][j], q["hi"][j], q["observed"][j]) for j in i],
                (0.0, 1.0, float(((q["observed"] >= q["ks_lo"] - 1e-12) & (q["observed"] <= q["ks_hi"] + 1e-12)).all() * 0.5 + (not ((q["observed"] >= q["ks_lo"] - 1e-12) & (q["observed"] <= q["ks_hi"] + 1e-12)).all()) * 2.0))]

    measure("time rescaling", one, n=1000, names=["mean", "spread", "KS gap", "lag-1 correlation", "Ljung-Box", "QQ, 10 %", "QQ, median", "QQ, 95 %",
                                                  "QQ, all points in the KS band"])

    def fitted(rng):
        x = rng.exponential(size=300)
        s = time_rescaling(x / x.mean(), fitted_scale=True).summary().loc["KS gap"]
        return s["lo"], s["hi"], s["value"]

    measure("time rescaling, fitted scale: KS gap", fitted, n=2000)


SLOTS = pd.DataFrame([(s, s, 9.5 + (s + 0.5) / 6, side, d) for s in range(39) for side in ("buy", "sell") for d in 0.01 * np.arange(1, 5)],
                     columns=["slot", "block", "hour", "side", "delta"]).assign(log_sigma=0.0, exposure=600.0)


def u_shape(hour):
    return np.exp(-1.1 * (1 - (2 * (np.asarray(hour) - 9.5) / 6.5 - 1) ** 2))


@pytest.mark.parametrize("waves", [False, True], ids=["Poisson", "waves"])
def test_rates_by_hour(waves):
    mean = 0.5 * np.exp(-60 * SLOTS["delta"]) * u_shape(SLOTS["hour"]) * np.where(SLOTS["side"] == "buy", 1.0, 0.8) * 600
    spots = pd.DataFrame({"hour": [9.6, 11.0, 12.75, 15.9], "side": "buy", "delta": 0.02})
    true = 0.5 * math.exp(-1.2) * u_shape(spots["hour"]) / -math.expm1(-0.6)

    def one(rng):
        count = rng.poisson(mean * (rng.gamma(1 / 0.09, 0.09, 39)[SLOTS["block"]] if waves else 1.0)).astype(float)
        f = RateModel(RateData(SLOTS.assign(count=count), *[pd.DataFrame()] * 3, 600.0, 0.01, {})).fit()
        ci, p = f.conf_int(), f.predict(spots, reach=True)
        b = f.bootstrap(n=50, rng=rng).loc["delta"]
        return [(*ci.loc["delta"], -60.0), (*ci.loc["side[T.sell]"], math.log(0.8)), (b["lower"], b["upper"], -60.0),
                *[(p["lo"][i], p["hi"][i], true[i]) for i in range(4)]]

    measure(f"rates, {'waves' if waves else 'Poisson'}", one, n=300,
            names=["k", "side", "k, block bootstrap", *[f"rate of reaching at {h} h" for h in spots["hour"]]])


@pytest.mark.parametrize("v", [0.04, 0.0])
def test_staleness(v):
    delta, days, every = 0.01 * np.arange(1, 7), 40, 300.0
    start = (86_400 * np.arange(days)[:, None] + every * np.arange(78)).ravel()
    ages = (600.0, 1800.0, 3600.0, 7200.0)

    def one(rng):
        walk = np.cumsum(rng.normal(0, math.sqrt(v / 3600 * every / 10), (days, 780)), axis=1).reshape(days * 78, 10)
        rate = 0.5 * np.exp(walk).mean(axis=1)[:, None] * np.exp(-60 * delta) * every
        r = staleness_counts(rng.poisson(rate).astype(float), np.full(rate.shape, every), delta=delta, start_s=start, every_s=every, ages_s=ages).table
        return [(row.drift_lo, row.drift_hi, v) for row in r.itertuples()]

    measure(f"staleness, drift {v} an hour", one, n=300, names=[f"age {a:.0f} s" for a in ages])


