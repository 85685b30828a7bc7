"The main job: it trades what it has not seen, repeats itself, and says what it assumed."
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import real
from makerlab.backtest.pipeline import (Config, about_the_data, calibrate_market, clean_market, exponential_fit, fit_market, make_config, median_interval, order_jumps, params_for_mid,
                                        quote_params, quote_prints, r2_interval, run_backtest, split_market, sweep_market, told_jumps, without_stubs)
from makerlab.core import DataError, ParameterError
from makerlab.data.source import open_source
from makerlab.execution.costs import PRESETS
from makerlab.models.glft import glft_coefficients

S = pd.Timedelta(1, "s")


def head(market, start, end):
    "A part of a market by seconds from its start."
    t0 = market.quotes["time"].iloc[0]
    cut = lambda f: None if f is None else f[(f["time"] >= t0 + start * S) & (f["time"] < t0 + end * S)].reset_index(drop=True)  # noqa: E731
    return dataclasses.replace(market, quotes=cut(market.quotes), trades=cut(market.trades))


@pytest.fixture(scope="module")
def market():
    "Two hours of one day: half an hour to calibrate on, ninety minutes to trade."
    return head(open_source("sample", symbol="BIGT", end_date="2026-03-02"), 0, 7200)


@pytest.fixture(scope="module")
def days():
    return open_source("sample", symbol="BIGT")


def scramble(market, after, seed):
    "The same market up to a moment; after it other prices, sizes, sides and order."
    rng = np.random.default_rng(seed)
    t0 = market.quotes["time"].iloc[0] + after * S
    q, t = market.quotes.copy(), market.trades.copy()
    qi, ti = q["time"] > t0, t["time"] > t0
    move = rng.integers(-30, 31, qi.sum()) * 0.01
    q.loc[qi, "bid"], q.loc[qi, "ask"] = q.loc[qi, "bid"] + move, q.loc[qi, "ask"] + move + 0.01 * rng.integers(0, 4, qi.sum())
    q.loc[qi, ["bid_size", "ask_size"]] = rng.integers(1, 5000, (qi.sum(), 2)).astype(float)
    t.loc[ti, "price"] = t.loc[ti, "price"] + rng.integers(-30, 31, ti.sum()) * 0.01
    t.loc[ti, "side"] = rng.choice([-1, 1], ti.sum()).astype(np.int8)
    t.loc[ti, "size"] = rng.integers(1, 900, ti.sum()).astype(float)
    return dataclasses.replace(market, quotes=q, trades=t)


@pytest.mark.parametrize("strategy", ["naive", "as", "as-ofi", "as-adaptive", "glft", "cj"])
@pytest.mark.parametrize("after", [1900, 4000])
def test_the_future_changes_nothing_before(market, strategy, after):
    config = Config(strategy=strategy, kappa=0.002, eta=0.001)
    a, b = run_backtest(market, config), run_backtest(scramble(market, after, seed=after), config)
    now = market.quotes["time"].iloc[0] + after * S
    assert a.results.params == b.results.params
    for name in ("sigma", "half_spread", "kappa", "kappa_se", "tick", "events", "window", "sigma_ends", "price"):
        assert getattr(a.calibration, name) == getattr(b.calibration, name), name
    assert a.calibration.fit.params.equals(b.calibration.fit.params) and a.calibration.jumps.params.equals(b.calibration.jumps.params)
    seen = [j.results.fills[j.results.fills["time"] <= now].drop(columns="step") for j in (a, b)]
    pd.testing.assert_frame_equal(*seen)
    path = [j.results.path[j.results.path["time"] < now - S] for j in (a, b)]
    pd.testing.assert_frame_equal(path[0], path[1])
    assert len(path[0]) and a.results.attribution.total != b.results.attribution.total  # the scramble was one


def test_the_future_is_scrambled_at_all(market):
    "The guard above can fail: scrambling inside the calibration window does change the parameters."
    assert run_backtest(market).results.params != run_backtest(scramble(market, 600, seed=1)).results.params


def test_split_rules(market, days):
    early, late = split_market(market)
    t0 = market.quotes["time"].iloc[0]
    assert (late.quotes["time"].iloc[0] - t0) / S == pytest.approx(1800, abs=30)  # a quarter, since two hours are short
    assert early.quotes["time"].iloc[-1] < late.quotes["time"].iloc[0] and early.trades["time"].iloc[-1] < late.quotes["time"].iloc[0]
    assert len(early.trades) + len(late.trades) == len(market.trades) and len(early.quotes) + len(late.quotes) == len(market.quotes)
    assert (split_market(market, calibration_s=600)[1].quotes["time"].iloc[0] - t0) / S == pytest.approx(600, abs=30)
    early, late = split_market(days)
    assert early.quotes["time"].dt.date.nunique() == 1 and late.quotes["time"].dt.date.nunique() == 2
    for few in (market.quotes.iloc[:1], market.quotes.iloc[:3], market.quotes.iloc[:50].assign(time=t0)):
        with pytest.raises(DataError, match="longer sample"):
            split_market(dataclasses.replace(market, quotes=few))


def test_a_night_in_tokyo_is_another_day(market):
    "The calendar is the venue's: the same two hours straddle midnight elsewhere."
    early, late = split_market(market, session_tz="Pacific/Honolulu")
    assert len(early.quotes) and len(late.quotes)
    shifted = dataclasses.replace(market, quotes=market.quotes.assign(time=market.quotes["time"] + pd.Timedelta("13h")), trades=None)
    early, late = split_market(shifted)  # 22:30 to 00:30 in New York, +1
    assert early.quotes["time"].dt.tz_convert("America/New_York").dt.date.nunique() == 1


def stub_after(market, n=1):
    "The market at a venue that never closes, and n quotes, a second apart, on the day after."
    last = market.quotes.tail(1)
    wait = pd.Timestamp("2026-03-03 00:00:00.5", tz="UTC") - last["time"].iloc[0]
    more = [last.assign(time=last["time"] + wait + i * S) for i in range(n)]
    return dataclasses.replace(market, quotes=pd.concat([market.quotes, *more], ignore_index=True).astype({"time": "datetime64[ns, UTC]"}), session=None, tz="UTC")


def test_a_day_too_short_to_trade_is_left_out_and_told(market):
    whole = run_backtest(dataclasses.replace(market, session=None, tz="UTC"), Config(strategy="naive"))
    got = run_backtest(stub_after(market), Config(strategy="naive"))
    assert got.results.digest == whole.results.digest and got.results.attribution.total == whole.results.attribution.total
    said = got.results.info["about_the_data"]
    assert "1 row(s) by rule short day" in said and "2026-03-03 left out: 1 mark(s) every 1 s, at least 61 are needed" in said
    assert "short day" not in whole.results.info["about_the_data"]
    search = sweep_market(stub_after(market, 3), {"half_spread": [0.01, 0.02]}, config=Config(strategy="naive"), splits=0)
    assert search.days == ("2026-03-02",) and any("left out" in a for a in search.about)
    longer = without_stubs(stub_after(market, 100))
    assert len(longer.quotes) == len(market.quotes) + 100 and not longer.repairs.get("short day")


def test_no_day_left_is_refused_and_venues_with_hours_are_not_touched(market):
    few = dataclasses.replace(market, quotes=market.quotes.head(3), trades=None)
    with pytest.raises(DataError, match="none of its 2 days has the 61 marks"):
        run_backtest(stub_after(few), Config(strategy="naive"))
    hours = dataclasses.replace(stub_after(market), session=("09:30", "16:00"))
    assert without_stubs(hours) is hours


@pytest.mark.realdata
@pytest.mark.parametrize("file", ["spot", "usdm"])
def test_a_capture_that_ends_after_midnight_is_traded(file):
    market = open_source(real(f"hftbacktest_binance/{file}_btcusdt_20240808.gz"))
    job = run_backtest(market, Config(strategy="naive", qty=0.01, max_inventory=0.1))
    assert job.results.path["time"].max() <= pd.Timestamp("2024-08-09", tz="UTC") and len(job.results.path) > 200
    assert "2024-08-09 left out" in job.results.info["about_the_data"]


def test_identity_repeatability_and_words(market):
    for config in (Config(), Config(strategy="naive", fee_bps=0.3, latency_ms=500), Config(fills="poisson", seed=4, fee_per_unit=-0.002)):
        a, b = run_backtest(market, config), run_backtest(market, config)
        r = a.results.attribution
        assert abs(r.residual) <= 1e-9 * r.turnover and r.spread_capture + r.inventory_pnl - r.fees + r.residual == pytest.approx(r.total, abs=1e-9)
        pd.testing.assert_frame_equal(a.results.path, b.results.path)
        pd.testing.assert_frame_equal(a.results.fills, b.results.fills)
        assert a.results.intervals["total"] == b.results.intervals["total"]
        assert "made data" in a.results.info["about_the_data"] and "ok" in a.results.info["calibration"]
    other = run_backtest(market, Config(fills="poisson", seed=5, fee_per_unit=-0.002))
    assert not other.results.fills.equals(a.results.fills)


def test_quotes_only(market):
    blind = dataclasses.replace(market, trades=None)
    job = run_backtest(blind)
    assert job.calibration.events == "quote moves" and "no trades were recorded" in job.results.info["fills"] and len(job.results.fills)
    makers = job.results.fills[job.results.fills["maker"]]
    prints = quote_prints(split_market(blind)[1].quotes)
    assert set(makers["time"]) <= set(prints["time"])
    assert (prints["size"] > 0).all() and set(prints["side"]) == {-1, 1} and prints["time"].is_monotonic_increasing


def test_trades_elsewhere_and_an_unidentified_law(market):
    far = dataclasses.replace(market, trades=market.trades.assign(price=market.trades["price"] * 2))
    with pytest.raises(DataError, match="Give k"):
        run_backtest(far)
    assert run_backtest(far, Config(k=150.0)).results.params.k == 150.0
    with pytest.raises(ParameterError, match="needs A"):
        run_backtest(far, Config(k=150.0, fills="poisson"))
    with pytest.raises(DataError, match="no trades in the calibration window"):
        fit_market(dataclasses.replace(market, trades=market.trades.iloc[:0]))
    with pytest.raises(DataError, match="locked"):
        calibrate_market(dataclasses.replace(market, quotes=market.quotes.assign(bid=market.quotes["ask"])))
    with pytest.raises(DataError, match="never moved"):
        calibrate_market(dataclasses.replace(market, quotes=market.quotes.assign(bid=10.0, ask=10.01)))


BAD = [("gamma", np.nan), ("gamma", 0), ("gamma", -1), ("gamma", np.inf), ("gamma", "x"), ("k", np.nan), ("k", 0), ("A", np.inf), ("A", -1), ("kappa", np.nan), ("eta", -1), ("eta", np.inf),
       ("half_spread", 0), ("skew", np.nan), ("qty", 0), ("max_inventory", np.inf), ("latency_ms", np.inf), ("latency_ms", -1), ("fee_bps", np.nan), ("fee_per_unit", np.inf), ("every_s", 0),
       ("window_s", np.nan), ("calibration_s", np.inf), ("ofi_horizon_s", 0), ("variants", 0), ("seed", -1), ("strategy", "clever"), ("fills", ""), ("queue", "x"), ("session_tz", "Mars"),
       ("session_end", "noon"), ("gama", 1.0), ("phi", -1), ("phi", np.nan), ("alpha", np.inf), ("eps_buy", np.nan), ("eps_s", 0), ("regimes", 0), ("regimes", 5), ("fees", "nowhere"), ("fees", 3),
       ("fees", {"maker_bsp": 1}), ("fees", {"tiers": [{"from": 1}]}), ("fee_aware", "perhaps")]


@pytest.mark.parametrize("name, value", BAD, ids=str)
def test_settings_are_checked_and_named(name, value):
    with pytest.raises(ParameterError, match=name) as e:
        make_config({name: value})
    assert "\n" not in str(e.value) and "pydantic" not in str(e.value)


def test_settings_that_stand(market):
    assert make_config({}) == Config() and make_config({"kappa": -0.5}).kappa == -0.5
    with pytest.raises(ParameterError) as two:
        make_config({"gamma": -1, "qty": 0})
    assert "gamma" in str(two.value) and "qty" in str(two.value)
    with pytest.raises(ParameterError):
        quote_params(calibrate_market(market), config=Config(min_spread_bps=50, max_spread_bps=10))


def test_mid_path_parameters():
    mids = pd.DataFrame({"mid": 100 + 0.01 * np.arange(101.0)})
    assert params_for_mid(mids, k=10.0, A=1.0).half_spread == pytest.approx(0.1)
    for more in (dict(k=0.0, A=1.0), dict(k=np.nan, A=1.0), dict(k=1.0, A=1.0, dt_s=0.0), dict(k=1.0, A=1.0, dt_s=np.nan), dict(k=1.0, A=1.0, sigma=-1.0), dict(k=1.0, A=-1.0)):
        with pytest.raises(ParameterError):
            params_for_mid(mids, **more)
    with pytest.raises(DataError, match="volatility"):
        params_for_mid(mids.assign(mid=100.0), k=1.0, A=1.0)


def test_cleaning_sees_only_the_past(market):
    q = market.quotes.copy()
    q.loc[60::10, ["bid", "ask"]] = [7.10, 7.11]
    dirty = dataclasses.replace(market, quotes=q)
    assert any("several instruments" in s for s in about_the_data(dirty)) and not any("several instruments" in s for s in about_the_data(clean_market(dirty)))
    cut = 900
    whole, part = clean_market(dirty).quotes, clean_market(dataclasses.replace(dirty, quotes=q.iloc[:cut].reset_index(drop=True))).quotes
    pd.testing.assert_frame_equal(whole.iloc[: len(part)], part)
    pd.testing.assert_frame_equal(clean_market(market).quotes, market.quotes)


PLAIN = """
import warnings; warnings.simplefilter("error")
import dataclasses, pandas as pd
from makerlab.data.source import open_source
from makerlab.backtest.pipeline import Config, run_backtest
m = open_source("sample", symbol="BIGT", end_date="2026-03-02")
t1 = m.quotes["time"].iloc[0] + pd.Timedelta(minutes=16)
cut = lambda f: f[f["time"] < t1].reset_index(drop=True)
m = dataclasses.replace(m, quotes=cut(m.quotes), trades=cut(m.trades))
for c in (Config(every_s=2.0), Config(every_s=2.0, fills="poisson")):
    a = run_backtest(m, c).results.attribution
    print(repr((round(a.total, 6), round(a.spread_capture, 6), round(a.turnover, 4))))
"""


def test_compiled_and_plain_python_agree():
    "The whole job with numba switched off, warnings being errors."
    out = [subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, timeout=300, env=os.environ | {"NUMBA_DISABLE_JIT": off}) for off in ("0", "1")]
    for run in out:
        assert run.returncode == 0, run.stderr[-1500:]
    assert out[0].stdout == out[1].stdout != ""


@pytest.mark.parametrize("strategy", ["glft", "cj"])
def test_models_are_told_what_was_measured(market, strategy):
    early, _ = split_market(market)
    c = calibrate_market(early)
    p = quote_params(c, config=Config(strategy=strategy))
    slope = glft_coefficients(sigma=c.sigma, A=p.A, k=p.k, gamma=p.gamma, qty=p.qty).slope
    assert slope * p.max_inventory / p.qty == pytest.approx(c.half_spread, rel=1e-9)  # a full inventory moves the quotes by a half-spread
    assert p.A == c.fit.params["A"] and p.k == c.fit.params["k"] and p.fee == 0.0
    if strategy == "cj":
        assert p.phi == pytest.approx(p.gamma * c.sigma**2 / 2) and p.alpha == pytest.approx(c.half_spread / p.max_inventory) and p.eps_buy == p.eps_sell
        q = quote_params(c, config=Config(strategy="cj", phi=1e-8, alpha=0.0, eps_buy=0.001, eps_sell=0.0, gamma=1e-4))
        assert (q.phi, q.alpha, q.eps_buy, q.eps_sell, q.gamma) == (1e-8, 0.0, 0.001, 0.0, 1e-4)
    aware = quote_params(c, config=Config(strategy=strategy, fees="example-maker-taker", fee_aware=True))
    assert aware.fee == -0.002 and quote_params(c, config=Config(strategy=strategy, fees="example-maker-taker")).fee == 0.0
    assert quote_params(c, config=Config(strategy=strategy, fees="example-coins", fee_aware=True)).fee == pytest.approx(2e-4 * c.price)
    far = dataclasses.replace(early, trades=early.trades.assign(price=early.trades["price"] * 2))
    with pytest.raises(ParameterError, match="calibrate"):  # k given, A unknown
        quote_params(calibrate_market(far), config=Config(strategy=strategy, k=150.0))


def orders_tape(rng, *, n=3000, rates=(0.3, 0.2), jumps=(0.03, 0.01)):
    "Buys and sells as two Poisson processes; each moves the mid a tenth of a second later by its own jump."
    gap = rng.exponential(1 / sum(rates), n) + 0.2  # apart, so that each quote follows its order
    at = pd.Timestamp("2026-03-02 14:30", tz="UTC") + pd.to_timedelta(np.cumsum(gap), unit="s")
    side = np.where(rng.random(n) < rates[0] / sum(rates), 1, -1)
    mid = 100 + np.r_[0.0, np.cumsum(np.where(side > 0, jumps[0], -jumps[1]))]
    quotes = pd.DataFrame({"time": [at[0] - S, *(at + 0.1 * S)], "bid": mid - 0.005, "ask": mid + 0.005, "bid_size": 1.0, "ask_size": 1.0})
    trades = pd.DataFrame({"time": at, "price": mid[:-1] + 0.005 * side, "size": 5.0, "side": side.astype(np.int8)})
    return dataclasses.replace(open_source("sample", symbol="BIGT"), quotes=quotes, trades=trades)


def test_the_jump_of_one_order_is_told_from_those_that_follow():
    m = orders_tape(np.random.default_rng(3))
    twice = pd.concat([m.trades, m.trades]).sort_values("time", kind="stable").reset_index(drop=True)  # two prints of one order count once
    for table in (m.trades, twice):
        found = order_jumps(dataclasses.replace(m, trades=table), horizon_s=5.0)
        assert (np.abs(found.params - [0.03, 0.01]) < 4 * found.bse).all() and found.bse.max() < 0.003
        assert sum(found.fills.values()) + found.censored == len(m.trades)
    assert told_jumps(found) == tuple(found.params)  # far apart: a side each
    assert order_jumps(dataclasses.replace(m, trades=None), horizon_s=5.0) is None
    assert order_jumps(dataclasses.replace(m, trades=m.trades.iloc[:1]), horizon_s=5.0) is None
    assert order_jumps(m, horizon_s=1e6) is None  # no markout ends within the tape


def test_sides_are_pooled_unless_they_differ():
    found = order_jumps(orders_tape(np.random.default_rng(3)), horizon_s=5.0)
    def told(e, se, rho=0.0):
        cov = pd.DataFrame([[se[0] ** 2, rho * se[0] * se[1]], [rho * se[0] * se[1], se[1] ** 2]], index=found.params.index, columns=found.params.index)
        return told_jumps(dataclasses.replace(found, params=pd.Series(e, index=found.params.index), covariance=cov))
    assert told((0.010, 0.012), (0.001, 0.001)) == pytest.approx((0.011, 0.011))
    assert told((0.010, 0.012), (0.001, 0.002)) == pytest.approx((0.0104, 0.0104))  # weighted by precision
    assert told((0.010, 0.012), (0.001, 0.001), rho=0.9) == pytest.approx((0.010, 0.012))  # 4.5 errors of the difference
    assert told((0.010, 0.001), (0.001, 0.001)) == pytest.approx((0.010, 0.0))  # apart, and the second not told from zero
    assert told((0.001, 0.001), (0.001, 0.001)) == (0.0, 0.0)
    assert told((np.nan, 0.01), (np.nan, 0.001)) == (0.0, 0.0) == told_jumps(None)


def test_measured_numbers_carry_intervals(market):
    c = calibrate_market(split_market(market)[0])
    t = c.measured()
    assert list(t.index) == ["A", "k", "sigma", "kappa", "eps_buy", "eps_sell"] and (t["lo"] <= t["value"]).all() and (t["value"] <= t["hi"]).all() and t["unit"].str.len().min() > 2
    blind = calibrate_market(dataclasses.replace(market, trades=None)).measured()
    assert "eps_buy" not in blind.index
    with pytest.raises(DataError):
        median_interval([np.nan])
    assert np.isnan(median_interval([1.0, 2.0, 3.0])[1:]).all() and np.isnan(r2_interval(np.ones(50), np.arange(50.0))).all()
    x = np.random.default_rng(1).normal(size=300)
    assert r2_interval(x, 2 * x + 1)[0] > 0.999999 and r2_interval(x, -x)[0] > 0.999999


def test_a_sweep_runs_the_main_job_for_each_variant(market):
    found = sweep_market(market, {"strategy": ["as", "glft"], "every_s": ["1", "2.0"], "fills": ["trades", "poisson"]}, splits=3)
    assert len(found.results.trials) == 8 and found.days == ("2026-03-02",) and "made data" in " ".join(found.about)
    for name, row in found.results.table.iterrows():
        alone = run_backtest(market, Config(strategy=row["strategy"], every_s=row["every_s"], fills=row["fill_rule"])).results
        assert row["total"] == pytest.approx(alone.attribution.total, abs=1e-9), name
    assert found.sentence().startswith("Best of 8 variants tried") and "raw" in found.sentence() and "deflated" in found.sentence()
    assert f"{found.ahead.interval.lo:,.4g}" in found.ahead_sentence() and sweep_market(market, {"skew": [1.0]}, splits=0).ahead is None
    before = sweep_market(market, {"skew": [0.5, 1.0]}, config=Config(variants=40))
    assert len(before.results.trials) == 41  # 39 tried before this sweep


def test_adaptive_variants_are_measured_for_themselves(market):
    found = sweep_market(market, {"strategy": ["as-adaptive"], "regimes": [1, 2], "skew": [1.0, 2.0]}, splits=0)
    for _, row in found.results.table.iterrows():
        alone = run_backtest(market, Config(strategy="as-adaptive", regimes=int(row["regimes"]), skew=row["skew"])).results
        assert row["total"] == pytest.approx(alone.attribution.total, abs=1e-9)


@pytest.mark.parametrize("choices, says", [({"gama": [1]}, "gama cannot be varied: the settings that can are strategy, gamma"), ({"seed": [1, 2]}, "seed"), ({"variants": [2]}, "variants"), ({"quote_lot": [100]}, "quote_lot"),
                                           ({"calibration_s": [60]}, "calibration_s"), ({"skew": [1.0, -1.0]}, "skew = -1.0"), ({"strategy": ["as", "clever"]}, "clever"), ({"skew": []}, "skew has no value"),
                                           ({}, "no value"), ({"skew": ["1", 1.0]}, "twice")])
def test_bad_choices_of_a_sweep(market, choices, says):
    with pytest.raises(ParameterError, match=says):
        sweep_market(market, choices)


def test_a_variant_that_cannot_run_counts(market):
    found = sweep_market(market, {"strategy": ["as", "cj"], "max_inventory": [50.0, 1000.0]}, splits=0)
    assert len(found.results.trials) == 4 and found.results.failed, "cj with half a lot is refused"
    with pytest.raises(ParameterError, match="splits"):
        sweep_market(market, {"skew": [1.0]}, splits=-1)


def test_a_power_law_is_never_fed_to_the_formulas(market):
    early, late = split_market(market)
    plain = calibrate_market(early)
    power = dataclasses.replace(plain, fit=fit_market(early, law="power", tick=plain.tick))
    assert power.fit.law_name == "power" and power.fit.params["k"] < 20 < plain.fit.params["k"]
    again = exponential_fit(power.fit, tick=plain.tick)
    assert again.law_name == "exponential" and again.params["k"] == pytest.approx(plain.fit.params["k"]) and again.params["A"] == pytest.approx(plain.fit.params["A"])
    assert exponential_fit(plain.fit, tick=plain.tick) is plain.fit
    for strategy in ("as", "glft", "cj"):
        a, b = (quote_params(c, config=Config(strategy=strategy)) for c in (plain, power))
        assert a.k == pytest.approx(b.k) and a.gamma == pytest.approx(b.gamma)
    job = run_backtest(late, Config(strategy="glft"), calibration=power)
    assert "power law was fitted" in job.results.info["calibration"] and "AIC" in job.results.info["calibration"]


def test_fees_reach_the_fills(market):
    with_preset, by_keys = (run_backtest(market, Config(strategy="naive", fees=f)).results for f in ("example-maker-taker", {"maker_per_unit": -0.002, "taker_per_unit": 0.003}))
    pd.testing.assert_frame_equal(with_preset.fills, by_keys.fills)
    makers = with_preset.fills[with_preset.fills["maker"]]
    assert np.allclose(makers["fee"], -0.002 * makers["qty"]) and PRESETS["example-maker-taker"].describe() == with_preset.info["fee_schedule"]
    with pytest.raises(ParameterError, match="two numbers"):
        run_backtest(market, Config(fees="free", fee_bps=1.0))


@pytest.mark.realdata
@pytest.mark.parametrize("strategy", ["glft", "cj"])
def test_models_trade_a_real_day(strategy):
    "An hour of calibration, the rest of the day: quotes, fills, an exact account, and no more than the limit."
    m = open_source(str(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip")))
    end = m.quotes["time"].iloc[0] + pd.Timedelta("2h")
    m = dataclasses.replace(m, quotes=m.quotes[m.quotes["time"] < end].reset_index(drop=True), trades=m.trades[m.trades["time"] < end].reset_index(drop=True))
    job = run_backtest(m, Config(strategy=strategy, fees="example-maker-taker", fee_aware=True))
    r = job.results
    assert len(r.fills) > 50 and abs(r.attribution.residual) <= 1e-9 * r.attribution.turnover and r.path["inventory"].abs().max() <= 1000
    assert r.path["quote_bid"].notna().mean() > 0.5 and r.params.fee == -0.002
    if strategy == "cj":
        assert r.params.eps_buy > 0  # orders tell something on a real tape
