"Fees: the kernel is the month's bill, a schedule is read or refused by its key, backtests charge each fill by its own rule, and a fee moves the best quote by itself."
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.backtest.snapshot import Backtest, charge_all, run_midpath
from makerlab.core import ParameterError
from makerlab.data.samples import load_sample
from makerlab.execution.costs import (PRESETS, FeeMeter, FeeSchedule, FeeTier, _charge_nb, effective_rate, new_plan, new_tally, read_fees, simple_fees)
from makerlab.execution.fills import PoissonFills, TradeFills
from makerlab.models.glft import stationary_glft
from makerlab.models.quoting import QuoteParams

rates = st.floats(-5, 5)


@st.composite
def schedules(draw):
    n = draw(st.integers(1, 8))
    cuts = [0.0, *np.cumsum(draw(st.lists(st.floats(1, 3000), min_size=n - 1, max_size=n - 1)))]
    tiers = tuple(FeeTier(from_volume=float(v), maker_bps=draw(rates), taker_bps=draw(rates), maker_per_unit=draw(rates) / 1000, taker_per_unit=draw(rates) / 1000) for v in cuts)
    retro = draw(st.booleans())
    bounds = {} if retro else draw(st.sampled_from([{}, dict(min_per_order=0.2), dict(max_per_order=0.5), dict(max_order_bps=20.0), dict(min_per_order=0.0, max_per_order=1.0, max_order_bps=100.0)]))
    return FeeSchedule(tiers=tiers, tiering="retroactive" if retro else "marginal", volume=draw(st.sampled_from(["units", "notional"])), start_volume=draw(st.floats(0, 2000)), **bounds)


fill = st.tuples(st.floats(0.1, 500), st.floats(0.01, 800), st.booleans(), st.integers(0, 3))


@settings(max_examples=80, deadline=None)
@given(schedules(), st.lists(fill, min_size=1, max_size=30))
def test_the_kernel_is_the_bill_recomputed(schedule, fills):
    meter, plan, tally, bills = FeeMeter(schedule), new_plan(schedule), new_tally(schedule), np.zeros((4, 3))
    for price, qty, maker, order in fills:
        turnover = sum(p * q for p, q, *_ in meter.fills) + price * qty
        assert _charge_nb(plan, tally, bills, order, int(not maker), price, qty) == pytest.approx(meter.fill(price, qty, maker=maker, order=order), abs=1e-10 * turnover + 1e-12)
    volume = sum(q * (p if schedule.volume == "notional" else 1.0) for p, q, *_ in fills)
    assert tally[0] == pytest.approx(schedule.start_volume + volume)


@settings(max_examples=30, deadline=None)
@given(schedules(), fill, st.integers(2, 6))
def test_splitting_a_fill_changes_no_bill_of_one_order(schedule, one, parts):
    "An order filled in pieces owes what it owes filled at once, up to the tiers it crosses on the way, which are the same."
    price, qty, maker, _ = one
    whole, pieces = FeeMeter(schedule), [FeeMeter(schedule)]
    whole.fill(price, qty, maker=maker, order=1)
    for _ in range(parts):
        pieces[0].fill(price, qty / parts, maker=maker, order=1)
    assert whole.bill() == pytest.approx(pieces[0].bill(), abs=1e-9 * price * qty)


def test_crossing_a_retroactive_tier_by_hand():
    s = FeeSchedule(tiers=(FeeTier(maker_per_unit=0.0015), FeeTier(from_volume=500_000, maker_per_unit=0.001)), tiering="retroactive")
    m = FeeMeter(s)
    assert [round(m.fill(20.0, q), 6) for q in (300_000, 199_999, 1, 100)] == [450.0, 299.9985, round(0.001 - 0.0005 * 499_999, 6), 0.1]
    assert FeeMeter(s.replace(start_volume=5e5)).fill(20.0, 100) == pytest.approx(0.1)  # the first month starts in its tier


BAD = [({"maker_bsp": 1}, "maker_bsp"), ({"tiers": [{"from": 1}]}, "from is not a key"), ({"tiers": 3}, "tiers"), ({"tiers": []}, "tiers"), ({"maker_bps": 1, "tiers": [{}]}, "maker_bps beside tiers"),
       ({"maker_bps": "two"}, "maker_bps"), ({"maker_bps": math.nan}, "maker_bps"), ({"taker_per_unit": math.inf}, "taker_per_unit"), ({"taker_bps": 1e5}, "taker_bps"), ({"min_per_order": -1}, "min_per_order"),
       ({"min_per_order": 2, "max_per_order": 1}, "min_per_order"), ({"tiering": "both"}, "tiering"), ({"volume": "shares"}, "volume"), ({"start_volume": -1}, "start_volume"),
       ({"tiers": [{"from_volume": 5}]}, "from_volume"), ({"tiers": [{}, {"from_volume": 5}, {"from_volume": 5}]}, "from_volume"), ({"tiers": [{"from_volume": -1}]}, "from_volume"),
       ({"tiers": [{"from_volume": float(i)} for i in range(9)]}, "tiers"), ({"tiering": "retroactive", "max_order_bps": 5}, "retroactive"), ({"maker_bps": True}, "maker_bps"), ({1: 2}, "1 is not a key")]


@pytest.mark.parametrize("given, says", BAD, ids=str)
def test_bad_schedules_name_the_key(given, says, tmp_path):
    with pytest.raises(ParameterError, match=says) as e:
        read_fees(given)
    assert "\n" not in str(e.value)
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ParameterError, match=says):
        read_fees(tmp_path / "f.yaml")


@pytest.mark.parametrize("body", [b"- 1\n", b"[", b"\xff\xfe\x00", b"", b"just words"])
def test_bad_files(body, tmp_path):
    (tmp_path / "f.yaml").write_bytes(body)
    for source in (tmp_path / "f.yaml", tmp_path / "absent.yaml", tmp_path, "nowhere", 7):
        with pytest.raises(ParameterError, match="fees"):
            read_fees(source)


def test_presets_read_back_and_describe_themselves(tmp_path):
    for name, s in PRESETS.items():
        assert read_fees(name) is s and name in s.describe()
        body = {"name": s.name, "tiers": [t.__dict__ for t in s.tiers], "tiering": s.tiering, "volume": s.volume, "min_per_order": s.min_per_order, "max_order_bps": s.max_order_bps}
        (tmp_path / "f.yaml").write_text(yaml.safe_dump(body))
        assert read_fees(str(tmp_path / "f.yaml")) == s
        assert s.maker_fee(20.0) == pytest.approx(new_plan(s)["fee_rate"][0, 0] * 20 + new_plan(s)["fee_unit"][0, 0])
    assert read_fees(None) is None and read_fees(PRESETS["free"]) is PRESETS["free"]


# ---------------------------------------------------------------- in a backtest

@pytest.fixture(scope="module")
def base():
    q, t = load_sample("BIGT", day=0)
    end = q["time"].iloc[0] + pd.Timedelta("40min")
    q, t = q[q["time"] < end].reset_index(drop=True), t[t["time"] < end].reset_index(drop=True)
    return Backtest(q, trades=t, strategy="naive", params=QuoteParams(half_spread=0.005), tick=0.01, fills=TradeFills(crossing=True))


def run(b, **changes):
    return b.variant(**changes).run(rng=np.random.default_rng(3))


def test_two_numbers_are_the_simplest_schedule(base):
    for fee_bps, fee_per_unit in ((0.3, 0.0), (0.0, -0.002), (1.5, 0.001)):
        two, one = run(base, fee_bps=fee_bps, fee_per_unit=fee_per_unit), run(base, fees=simple_fees(fee_bps, fee_per_unit))
        pd.testing.assert_frame_equal(two.fills, one.fills, check_exact=True)
        pd.testing.assert_frame_equal(two.path, one.path, check_exact=True)
    assert "simple" in one.info["fee_schedule"] and two.info["fee_schedule"] == "" and "simple" in one.manifest["fees"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_fill_pays_its_own_rule(base, name):
    free, paid = run(base), run(base, fees=name)
    pd.testing.assert_frame_equal(free.fills.drop(columns="fee"), paid.fills.drop(columns="fee"))  # the bill changes nothing else
    meter, half = FeeMeter(PRESETS[name]), free.fills.loc[~free.fills["maker"], "fee"]
    if not PRESETS[name].bounded:
        want = [meter.fill(f.price if f.maker else f.mid, f.qty, maker=f.maker) for f in paid.fills.itertuples()]
        want = np.array(want) + np.where(paid.fills["maker"], 0.0, half.sum())
        np.testing.assert_allclose(paid.fills["fee"], want, atol=1e-9)
    a = paid.attribution
    assert abs(a.residual) <= 1e-9 * a.turnover and a.fees == pytest.approx(paid.path["fees"].iloc[-1]) and a.final_cash == pytest.approx(paid.path["cash"].iloc[-1], abs=1e-6)
    assert free.attribution.total - paid.attribution.total == pytest.approx(a.fees - free.attribution.fees, abs=1e-9)


def test_the_minimum_counts_once_an_order(base):
    "A minimum of a dollar and nothing else: the bill counts orders with a fill, which the loop's serial numbers tell apart."
    big = QuoteParams(half_spread=0.005, qty=5000.0, max_inventory=1e5)  # orders that fill in parts
    r = run(base, fees=FeeSchedule(min_per_order=1.0), params=big, every_s=30.0)
    makers = r.fills[r.fills["maker"]]
    assert set(makers["fee"].round(12)) <= {0.0, 1.0} and 1.0 in set(makers["fee"]) and 0.0 in set(makers["fee"].round(12))
    assert makers["fee"].iloc[0] == 1.0
    again = makers["fee"].round(12) == 0.0  # a part of an order that paid already: same side and price as its first part
    for i in makers.index[again]:
        before = makers.loc[: i - 1]
        same = before[before["side"] == makers.loc[i, "side"]].iloc[-1]
        assert same["price"] == makers.loc[i, "price"]


def test_the_month_runs_on_over_days_and_starts_anew():
    q, t = load_sample("BIGT")
    first = q["time"].dt.strftime("%Y-%m-%d")
    keep = q["time"].dt.hour < 15
    q, t = q[keep].reset_index(drop=True), t[t["time"].dt.hour < 15].reset_index(drop=True)
    tiers = FeeSchedule(tiers=(FeeTier(maker_per_unit=0.01, taker_per_unit=0.01), FeeTier(from_volume=10_000, maker_per_unit=0.0, taker_per_unit=0.0)))
    b = Backtest(q, trades=t, strategy="naive", params=QuoteParams(half_spread=0.005), tick=0.01, fees=tiers, close_cost_bps=0.0)
    r = run(b)
    assert first.nunique() == 3 and r.attribution.fees == pytest.approx(100.0)  # 10,000 units at a cent, once
    shift = pd.Timedelta(days=28)  # 2, 3 and 4 March become 30, 31 March and 1 April
    late = run(b.variant(quotes=q.assign(time=q["time"] + shift), trades=t.assign(time=t["time"] + shift)))
    assert late.attribution.fees == pytest.approx(200.0)


def test_marking_out_pays_the_taker_rate(base):
    q = run(base, overnight="carry").path["inventory"].iloc[-1]
    assert q != 0
    r = run(base, fees=FeeSchedule(tiers=(FeeTier(taker_per_unit=0.003),)), close_cost_bps=0.0)
    assert r.fills.loc[~r.fills["maker"], "fee"].tolist() == [pytest.approx(0.003 * abs(q))] and r.attribution.fees == pytest.approx(0.003 * abs(q))


def test_poisson_world_midpath_and_refusals(base):
    r = run(base, fills=PoissonFills(A=0.3, k=180.0), fees="example-tiered-shares")
    assert r.attribution.fees < 0 or len(r.fills) == 0
    mids = 100 + 0.01 * np.cumsum(np.random.default_rng(1).normal(size=2000))
    told = dict(A=1.0, k=100.0, params=QuoteParams(qty=1.0, max_inventory=10.0), dt_s=1.0)
    two, one = (run_midpath(mids, rng=np.random.default_rng(5), **told, **kw) for kw in (dict(fee_per_unit=-0.002), dict(fees=simple_fees(0.0, -0.002))))
    assert two.attribution.total == one.attribution.total
    for kw in (dict(fees="example-inverted", fee_bps=1.0), dict(fees="nowhere"), dict(fees=3)):
        with pytest.raises(ParameterError, match="fees"):
            base.variant(**kw)
        with pytest.raises(ParameterError, match="fees"):
            run_midpath(mids, rng=np.random.default_rng(5), **told, **kw)


def test_charging_moves_the_tally(base):
    day, tally = base.days[0], np.zeros(5)
    from makerlab.backtest.snapshot import _run_kernel
    from makerlab.core import rng_streams
    out = charge_all(_run_kernel(base, day, 0.0, rng_streams(2, rng=np.random.default_rng(0)), 0.01), PRESETS["example-coins"], tally)
    assert tally[1] == pytest.approx(out[3][:, 1].sum()) and tally[0] == tally[2] == pytest.approx((out[3][:, 0] * out[3][:, 1]).sum()) and tally[3] == 0


# ---------------------------------------------------------------- what a fee does to the best quote

def test_a_fee_moves_the_stationary_quotes_by_itself():
    "Against brute force: the maker's equation with the fee inside, stepped until its depths stand still."
    A, k, gamma, sigma, Q, fee = 0.8, 60.0, 8.0, 0.01, 3, -0.004
    q, theta, depths = np.arange(-Q, Q + 1), np.zeros(2 * Q + 1), np.linspace(-0.03, 0.08, 2201)
    gain = lambda step: A * np.exp(-k * depths)[:, None] * -np.expm1(-gamma * (depths[:, None] - fee + step[None, :])) / gamma  # noqa: E731
    for _ in range(1500):
        up, down = gain(np.diff(theta)).max(0), gain(-np.diff(theta)).max(0)
        theta = theta + 0.2 * (np.r_[up, 0] + np.r_[0, down] - gamma * sigma**2 * q**2 / 2)
        theta -= theta[Q]
    brute = depths[gain(np.diff(theta)).argmax(0)]
    ours = fee + stationary_glft(sigma=sigma, A=effective_rate(A, k=k, fee=fee), k=k, gamma=gamma, q_max=Q).bid[:-1]
    assert np.abs(brute - ours).max() < 1.5 * 0.11 / 2200
    wrong = fee + stationary_glft(sigma=sigma, A=A, k=k, gamma=gamma, q_max=Q).bid[:-1]
    assert np.abs(brute - wrong).max() > 4 * 0.11 / 2200  # shifting alone, without the other A, is not it


def test_fee_aware_quotes_earn_more_in_the_reduced_world():
    "A quarter million steps, one seed a pair: glft told the fee against glft that is not, fee 0.8/k; the theory says 1 - (1-kf) exp(kf) = 55 % lost."
    mids = 100 + 0.001 * np.cumsum(np.random.default_rng(2).normal(size=30_000))
    told = QuoteParams(gamma=1e-3, A=0.5, k=100.0, qty=1.0, max_inventory=20.0, min_spread_bps=0.0)
    got = {f: [run_midpath(mids, A=0.5, k=100.0, sigma=0.001, params=told.replace(fee=f), strategy="glft", fees=simple_fees(0.0, 0.008), dt_s=1.0,
                           rng=np.random.default_rng(s)).attribution.total for s in range(3)] for f in (0.0, 0.008)}
    ratio = np.array(got[0.0]) / np.array(got[0.008])
    assert ratio.max() < 0.65 and ratio.min() > 0.25  # 0.445 in theory, less than one fill a step


@pytest.mark.parametrize("call, words", [
    (lambda: FeeMeter(PRESETS["example-coins"]).fill(0.0, 5), "price = 0.0"),
    (lambda: FeeMeter(PRESETS["free"]).fill(20.0, -5), "qty = -5 .units."),
    (lambda: FeeMeter(PRESETS["free"]).fill(math.nan, 5), "price = nan"),
    (lambda: FeeSchedule(tiers=FeeTier()), "tuple of FeeTier"),
    (lambda: FeeSchedule(tiers=[FeeTier()]), "tuple of FeeTier"),
    (lambda: FeeTier(maker_bps="two"), "maker_bps = 'two'"),
    (lambda: effective_rate(1.0, k=1e6, fee=-1.0), "check the units"),
])
def test_slips_are_named(call, words):
    with pytest.raises(ParameterError, match=words):
        call()


def test_an_empty_name_in_a_file_is_the_file_s(tmp_path):
    (tmp_path / "mine.yaml").write_text("name:\nmaker_bps: 1\n")
    assert read_fees(tmp_path / "mine.yaml").name == "mine" and read_fees({"name": 3}).name == "3"
