"The claims of study 10 that need more sessions than its page can run: the rule for volatility regimes over 360 later ones."
import dataclasses

import numpy as np
import pandas as pd
import pytest

from makerlab.backtest.pipeline import Config, calibrate_market, quote_params
from makerlab.backtest.snapshot import Backtest
from makerlab.data.samples import SAMPLE_SPECS
from makerlab.data.source import Market
from makerlab.data.synth import make_tape
from makerlab.execution.fills import TradeFills
from makerlab.features.volatility import features
from makerlab.models.adaptive import fit_regimes
from makerlab.scoring.inference import Interval, block_bootstrap, paired_difference

pytestmark = pytest.mark.slow

TRAIN, LATER, STRETCH_S, STRETCHES = 8, 120, 720, 6
SEEDS = (78, 79, 80)
SMLT = SAMPLE_SPECS["SMLT"]
WILD = dict(sigma=0.026, A=0.40, ofi_drift=1.2e-5, spread_ticks={8: 0.30, 9: 0.25, 10: 0.20, 12: 0.12, 14: 0.08, 15: 0.05})
WEATHERS = {"one": [dict(sigma=0.02)] * STRETCHES, "two": [dict(sigma=0.010), WILD] * (STRETCHES // 2)}


def made(name: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Quotes and trades of sessions of 72 minutes in which stretches of a weather follow one another in random order."
    rng, mid, tapes = np.random.default_rng(seed), SMLT["mid0"], []
    for date in pd.bdate_range("2026-03-02", periods=TRAIN + LATER).strftime("%Y-%m-%d"):
        for i, w in enumerate(rng.permutation(STRETCHES)):
            clock = (pd.Timestamp("09:30") + pd.Timedelta(seconds=i * STRETCH_S)).strftime("%H:%M:%S")
            tapes.append(make_tape(rng=rng, seconds=STRETCH_S, date=date, open_time=clock, **(SMLT | WEATHERS[name][w] | dict(mid0=mid))))
            mid = float(tapes[-1].quotes[["bid", "ask"]].iloc[-1].mean())
    return pd.concat([t.quotes for t in tapes], ignore_index=True), pd.concat([t.trades for t in tapes], ignore_index=True)


def later_bars(name: str, seed: int) -> list[pd.DataFrame]:
    "Bars of three regimes and of one, both fixed on eight sessions, skew one, over the later ones."
    quotes, trades = made(name, seed)
    day = [t["time"].dt.tz_convert("America/New_York").dt.normalize() for t in (quotes, trades)]
    first = sorted(set(day[0]))[TRAIN]
    early = Market(quotes[day[0] < first].reset_index(drop=True), trades[day[1] < first].reset_index(drop=True), "MADE", "America/New_York", "sample", "made", {}, [])
    params = quote_params(calibrate_market(early), config=Config(strategy="as"))
    table = features(early.quotes, every_s=1.0, window_s=60.0, ofi_s=10.0)
    base = Backtest(quotes[day[0] >= first].reset_index(drop=True), trades=trades[day[1] >= first].reset_index(drop=True), fee_per_unit=-0.001, tick=0.01, ofi_s=10.0,
                    fills=TradeFills(queue="behind", crossing=True, latency_ns=5_000_000), horizon_s=11_700.0)
    base.days
    bars = [base.variant(strategy="as-adaptive", params=fit_regimes(table, n=n).apply(params)).run(rng=np.random.default_rng(1)).bars(180.0) for n in (3, 1)]
    return [b.assign(day=f"{seed} " + b["day"]) for b in bars]


def gains(name: str) -> tuple[Interval, Interval, float]:
    "Of three regimes over one: dollars a session, Sharpe ratio a bar; and what one regime earns a session."
    three, one = (pd.concat(b, ignore_index=True) for b in zip(*(later_bars(name, seed) for seed in SEEDS), strict=True))
    days, rng = one["day"].to_numpy(), np.random.default_rng(SEEDS[0])
    n = len(set(days))
    d = paired_difference(three["total"], one["total"], days=days, rng=rng)
    ratio = lambda v: float(np.subtract(*(v.mean(axis=0) / v.std(axis=0))))
    s = block_bootstrap(np.column_stack([three["total"], one["total"]]), ratio, block=len(days) / n, n=499, rng=rng)
    d = dataclasses.replace(d, estimate=d.estimate / n, lo=d.lo / n, hi=d.hi / n)
    print(f"\n{name} weather(s), {n} sessions: {d.estimate:.1f} [{d.lo:.1f}, {d.hi:.1f}] dollars of {one['total'].sum() / n:.0f}; Sharpe ratio {s.estimate:.3f} [{s.lo:.3f}, {s.hi:.3f}]")
    return d, s, float(one["total"].sum() / n)


def test_in_one_weather_the_default_rule_gains_nothing():
    dollars, sharpe, earned = gains("one")
    assert dollars.lo < 0 < dollars.hi and dollars.hi < 0.015 * earned
    assert abs(sharpe.estimate) < 0.03


def test_in_two_weathers_the_default_rule_gains_little():
    dollars, sharpe, earned = gains("two")
    assert 0 < dollars.lo and dollars.hi < 0.08 * earned
