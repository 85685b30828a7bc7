"Hedging: the band against LIVE.md's numbers, the hedger over random books, quotes over random markets, and every bad input."
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import NS_PER_S, ParameterError
from makerlab.models.hedging import (
    Band, Contract, Hedger, HedgeRule, Spread, _band_nb, butterfly, calendar, cheapest_lots, hedge_paths, hedge_slow, hedge_value, no_trade_band, option_quotes,
    quote_paths, risk_reversal, solve_vega, straddle, strangle, vega_curvature, vertical, whalley_wilmott_band,
)
from makerlab.models.options import greeks, implied_vol

DAY = 86_400 * NS_PER_S


def spots(n=4000, steps=500, seed=0, T=0.25):
    z = np.random.default_rng(seed).standard_normal((n, steps))
    walk = np.cumsum(0.2 * math.sqrt(T / steps) * z - 0.02 * T / steps, axis=1)
    return 100 * np.exp(np.hstack([np.zeros((n, 1)), walk]))


def certain(pnl, a=0.5):
    return -math.log(np.mean(np.exp(-a * np.asarray(pnl)))) / a


SOLD = dict(strike=100, T=0.25, sigma=0.2, cost=0.002)


# ---------------------------------------------------------------- the band

def test_the_numbers_measured_before():
    "LIVE.md section 7: ATM call, 20 % vol, a quarter, 500 steps, 20 bp, risk aversion 0.5, 4,000 paths."
    x = spots()
    run = {n: hedge_paths(x, rule=r, **SOLD) for n, r in {
        "ww": HedgeRule("band", risk_aversion=0.5), "each": HedgeRule("clock"), "wrong": HedgeRule("power", scale=(1.5 * 0.002) ** (1 / 3), power=-1 / 3)}.items()}
    fixed = max(certain(hedge_paths(x, rule=HedgeRule("power", scale=h), **SOLD).pnl) for h in (0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.15))
    assert certain(run["ww"].pnl) == pytest.approx(-0.385, abs=0.001)
    assert fixed == pytest.approx(-0.427, abs=0.001)
    assert certain(run["each"].pnl) == pytest.approx(-1.61, abs=0.005)
    assert certain(run["wrong"].pnl) == pytest.approx(-8.02, abs=0.01)
    assert (run["ww"].pnl.std(), run["wrong"].pnl.std()) == pytest.approx((0.69, 3.58), abs=0.005)


def test_the_formula_and_its_units():
    H = whalley_wilmott_band(100, 0.04, T=0.25, r=0.05, cost=0.002, risk_aversion=0.5)
    assert H == pytest.approx((1.5 * math.exp(-0.0125) * 0.002 * 100 * 0.04**2 / 0.5) ** (1 / 3), rel=1e-14)
    # in cents: S x100, gamma /100, risk aversion /100, shares as before
    assert whalley_wilmott_band(10_000, 0.0004, T=0.25, r=0.05, cost=0.002, risk_aversion=0.005) == pytest.approx(H, rel=1e-12)
    # in lots of ten shares: the book's gamma in lots is a tenth, a lot's price ten times
    assert whalley_wilmott_band(1_000, 0.0004, T=0.25, r=0.05, cost=0.002, risk_aversion=0.5) == pytest.approx(H / 10, rel=1e-12)
    assert whalley_wilmott_band(100, -0.08, T=0.25, r=0.05, cost=0.002, risk_aversion=0.5) / H == pytest.approx(2 ** (2 / 3), rel=1e-12)
    assert isinstance(H, float) and whalley_wilmott_band([90.0, 110.0], 0.04, T=0.25, cost=0.002, risk_aversion=0.5).shape == (2,)


@given(st.floats(-40, 4), st.floats(-6, 6))
def test_the_general_band_solves_its_equations(log_kappa, log_ratio):
    kappa = 10**log_kappa
    phi = kappa ** (4 / 3) * 10**log_ratio
    H, h = _band_nb(kappa, phi)
    assert H * h * (H + h) == pytest.approx(3 * kappa, rel=1e-8)
    assert (H + h) * (H - h) ** 3 == pytest.approx(12 * phi, rel=1e-6) or log_ratio < -4
    assert 0 <= h <= H


def test_the_band_has_its_limits():
    kw = dict(exposure_variance=9.0, price_variance=400.0, risk_aversion=0.5)
    assert no_trade_band(unit_cost=0.0, **kw) == Band(0.0, 0.0)
    only_fee = no_trade_band(unit_cost=0.0, fixed_cost=0.1, **kw)
    assert only_fee.target == 0 and only_fee.trigger == pytest.approx((12 * 0.1 * 9 / 400 / 0.5) ** 0.25)
    free, feed = no_trade_band(unit_cost=0.2, **kw), no_trade_band(unit_cost=0.2, fixed_cost=0.1, **kw)
    assert free.trigger == free.target and feed.trigger > free.trigger and feed.target < free.target
    soon = no_trade_band(unit_cost=0.2, T=1e-3, **kw)  # a deadline: cS / (risk aversion, variance, T)
    assert soon.trigger == soon.target == pytest.approx(0.2 / (0.5 * 400 * 1e-3))
    assert no_trade_band(unit_cost=0.2, T=10.0, **kw) == pytest.approx(free)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 5), st.floats(0, 0.01))
def test_fast_is_slow(seed, aversion, cost):
    x = spots(1, 60, seed)[0]
    slow = hedge_slow(x, strike=100, T=0.25, sigma=0.2, cost=cost, risk_aversion=aversion)
    fast = hedge_paths(x, strike=100, T=0.25, sigma=0.2, cost=cost, rule=HedgeRule("band", risk_aversion=aversion))
    pnl = slow.cash.iloc[-1] + slow.shares.iloc[-1] * x[-1] - max(x[-1] - 100, 0)
    assert fast.pnl[0] == pytest.approx(pnl, abs=1e-9)


def test_hedging_every_step_for_free_replicates():
    x = spots(500, 2000, 5)
    for right in ("call", "put"):
        for r in (0.0, 0.05):
            drifted = x * np.exp(r * np.linspace(0, 0.25, 2001))
            pnl = hedge_paths(drifted, strike=102, T=0.25, sigma=0.2, right=right, r=r, lots=3.0, cost=0.0, rule=HedgeRule("clock")).pnl
            assert abs(pnl.mean()) < 4 * pnl.std() / math.sqrt(500) and pnl.std() < 0.35
    half = hedge_paths(x[:, :1001], strike=100, T=0.25, horizon=0.125, sigma=0.2, cost=0.0, rule=HedgeRule("clock")).pnl
    assert abs(half.mean()) < 4 * half.std() / math.sqrt(500)


def test_the_deadline_pays_near_expiry():
    x = spots(1500, 500, 1, T=1 / 252)
    kw = dict(strike=100, T=1 / 252, sigma=0.2, cost=0.002)
    plain, timed = (certain(hedge_paths(x, rule=HedgeRule("band", risk_aversion=0.5, deadline=d), **kw).pnl) for d in (False, True))
    assert timed > plain + 0.03


def test_the_cost_to_go_is_smooth_and_never_above_hedging_at_once():
    D = np.linspace(-3, 3, 6001)
    C = hedge_value(D, trigger=1.0, unit_cost=0.2)
    slope = np.diff(C) / np.diff(D)
    assert (np.abs(slope) <= 0.2 + 1e-12).all() and (np.diff(slope) >= -1e-12).all() and (C <= 0.2 * np.abs(D)).all()
    assert hedge_value(-2.0, trigger=0.0, unit_cost=0.2) == pytest.approx(0.4)


# ---------------------------------------------------------------- the hedger

SHARE = Contract("XYZ", 0.01, max_lots=10**6)
CHAIN = [Contract(f"{right[0].upper()}{K}.{days}", 0.01, 100, right, K, days * DAY, half_spread_ticks=2 if days == 30 else 5, fee=0.65)
         for days in (30, 90) for K, right in ((95, "put"), (100, "call"), (100, "put"), (105, "call"))]
BY = {c.symbol: c for c in CHAIN}
VOLS = {c.symbol: 0.2 for c in CHAIN}
AT = dict(S=101.0, vols=VOLS, now_ns=0)


def hedger(**kw):
    return Hedger(**{"contracts": [SHARE, *CHAIN], "risk_aversion": 1e-4, **kw})


def test_net_adds_up():
    h = hedger(r=0.03, q=0.01)
    g = greeks(101.0, 100, 30 / 365, 0.03, 0.01, 0.2, "call")
    net = h.net({"C100.30": -3, "XYZ": 7}, **AT)
    assert net == pytest.approx((7 - 300 * g.delta, -300 * g.gamma, -300 * g.vega, -300 * g.theta))
    assert h.net({}, **AT) == (0, 0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([c.symbol for c in CHAIN]), st.integers(-40, 40)), st.integers(-4000, 4000), st.floats(85, 115), st.floats(0, 5))
def test_delta_comes_back_to_the_edge_and_no_further(book, shares, S, fee):
    h, at = hedger(fixed_cost=fee), {**AT, "S": S}
    plan = h.decide({**book, "XYZ": shares}, **at)
    outside = abs(plan.before.delta) > plan.band.trigger
    assert bool(plan.orders) == (outside and abs(plan.before.delta) > 0.5 and plan.after != plan.before)
    assert abs(plan.after.delta) <= max(plan.band.trigger, 0.5 + 1e-9)  # a share is a lot
    if plan.orders:
        (o,) = plan.orders
        assert o.symbol == "XYZ" and o.side * plan.before.delta < 0 and o.qty_lots > 0 and "beyond" in o.reason
        assert plan.cost == pytest.approx(o.qty_lots * 0.005 + fee)
        if plan.band.target > 0.5:
            assert plan.band.target - 1 - 1e-6 <= abs(plan.after.delta) <= plan.band.target + 1e-6
        again = h.decide({**book, "XYZ": shares}, on_the_way={"XYZ": o.side * o.qty_lots}, **at)
        assert again.orders == ()  # what is on its way is not sent twice
    assert h.decide({**book, "XYZ": shares}, **at) == plan  # no state


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=8, max_size=8), st.floats(50, 300), st.floats(5_000, 40_000))
def test_gamma_and_vega_come_back_within_their_limits(lots, max_gamma, max_vega):
    h = hedger(max_gamma=max_gamma, max_vega=max_vega, spreads=(straddle(BY["C100.30"], BY["P100.30"], discount=0.6), calendar(BY["C100.30"], BY["C100.90"])))
    plan = h.decide(dict(zip(BY, lots)), **AT)
    over = abs(plan.before.gamma) > max_gamma or abs(plan.before.vega) > max_vega
    assert over == any(o.symbol != "XYZ" for o in plan.orders) or (over and plan.note.startswith("left"))
    assert plan.note.startswith("left") or (abs(plan.after.gamma) <= max_gamma * (1 + 1e-6) and abs(plan.after.vega) <= max_vega * (1 + 1e-6))
    assert all(o.qty_lots > 0 and o.side in (1, -1) for o in plan.orders)


def test_a_package_at_a_discount_is_chosen_over_its_legs():
    book, limits = {"C100.30": -20, "P100.30": -20}, dict(max_gamma=150)
    legs = hedger(**limits).decide(book, **AT)
    pack = hedger(**limits, spreads=(straddle(BY["C100.30"], BY["P100.30"], discount=0.3),)).decide(book, **AT)
    assert pack.cost < legs.cost and {o.package for o in pack.orders if o.symbol != "XYZ"} == {"straddle C100.30 P100.30"}


def test_the_program_against_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        each, cost, x = rng.normal(size=(2, 3)), rng.uniform(0.5, 2, 3), rng.normal(scale=4, size=2)
        limits = rng.uniform(0.3, 1, 2)
        lots = cheapest_lots(x, each, limits=limits, cost=cost, min_lots=np.ones(3), max_lots=np.full(3, 7), gap=0.0)
        tries = np.array(np.meshgrid(*[np.arange(-7, 8)] * 3)).reshape(3, -1)
        size = np.maximum(limits, np.abs(each).max(1))
        excess = (np.maximum(np.abs(x[:, None] + each @ tries) - limits[:, None], 0) / size[:, None]).sum(0)
        bill = cost @ np.abs(tries)
        mine = (np.maximum(np.abs(x + each @ lots) - limits, 0) / size).sum()
        if excess.min() == 0:
            assert mine < 1e-6 and cost @ np.abs(lots) == pytest.approx(bill[excess == 0].min(), rel=1e-6)
        else:
            assert mine == pytest.approx(excess.min(), abs=1e-5)


def test_minimum_and_maximum_lots_are_kept():
    big = [dataclasses.replace(c, min_lots=10, max_lots=12) for c in CHAIN]
    plan = Hedger(contracts=[SHARE, *big], risk_aversion=1e-4, max_gamma=200).decide({"C100.30": -25}, **AT)
    assert plan.orders and all(10 <= o.qty_lots <= 12 for o in plan.orders if o.symbol != "XYZ")
    coarse = Hedger(contracts=[dataclasses.replace(SHARE, unit=100.0, min_lots=5)], risk_aversion=1e-4)
    assert coarse.decide({"XYZ": 2}, **AT).orders == () and coarse.decide({"XYZ": 2}, **AT).note.startswith("left")  # five lots would leave more than two
    capped = Hedger(contracts=[dataclasses.replace(SHARE, max_lots=30)], risk_aversion=1e-4).decide({"XYZ": 100}, **AT)
    assert [o.qty_lots for o in capped.orders] == [30]


def test_no_quote_no_hedge():
    h = hedger(max_gamma=100)
    none = dict.fromkeys((*BY, "XYZ"), math.nan)
    plan = h.decide({"C100.30": -20}, half_spreads=none, **AT)
    assert plan.orders == () and plan.note.startswith("left beyond")
    only = {**none, "XYZ": 0.01, "C105.90": 0.05}
    plan = h.decide({"C100.30": -20}, half_spreads=only, **AT)
    assert {o.symbol for o in plan.orders} <= {"XYZ", "C105.90"} and abs(plan.after.gamma) <= 100


def test_fills_widen_the_band_and_the_deadline_too():
    h = hedger()
    narrow = h.band(50.0, S=100)
    assert h.band(50.0, S=100, sigma=0.2, delta_variance=1e6).trigger > narrow.trigger
    assert h.band(50.0, S=100, sigma=0.2, T=1e-6).trigger > narrow.trigger
    assert hedger(max_delta=3.0).band(50.0, S=100) == Band(3.0, 3.0)
    with pytest.raises(ParameterError, match="sigma"):
        h.band(50.0, S=100, delta_variance=1.0)


def test_the_spreads_are_what_they_say():
    assert vertical(BY["C100.30"], BY["C105.30"]).position(2) == {"C100.30": 2, "C105.30": -2}
    assert strangle(BY["P95.30"], BY["C105.30"]).position() == {"P95.30": 1, "C105.30": 1}
    assert risk_reversal(BY["P95.30"], BY["C105.30"]).position() == {"P95.30": -1, "C105.30": 1}
    assert calendar(BY["C100.30"], BY["C100.90"]).position() == {"C100.30": -1, "C100.90": 1}
    mid = dataclasses.replace(BY["C100.30"], symbol="C102.30", strike=102.5)
    assert butterfly(BY["C100.30"], mid, BY["C105.30"]).position(-1) == {"C100.30": -1, "C102.30": 2, "C105.30": -1}
    h = hedger()
    up = h.net(vertical(BY["C100.30"], BY["C105.30"]).position(), **AT)
    far = h.net(calendar(BY["C100.30"], BY["C100.90"]).position(), **AT)
    assert up.delta > 0 and far.vega > 0 > far.gamma


def test_a_contract_reads_an_instrument():
    venue = pytest.importorskip("makerlab.execution.venue")
    i = venue.Instrument("C100", 0.01, 1.0, 100.0, kind="option", underlying="XYZ", strike=100.0, expiry_ns=30 * DAY, right="call")
    assert Contract.of(i, half_spread_ticks=3.0) == Contract("C100", 0.01, 100.0, "call", 100.0, 30 * DAY, 3.0)
    assert Contract.of(venue.Instrument("XYZ", 0.01)).right == ""


# ---------------------------------------------------------------- quotes

FLOW = dict(vega=np.array([15.0, 20.0, 15.0]), k=400 / np.array([15.0, 20.0, 15.0]), A_year=10_080.0, qty=10.0)
TASTE = dict(risk_aversion=0.05, vol_of_vol=0.16)
BOOK = dict(delta=np.array([-0.3, 0.5, 0.3]), **FLOW, **TASTE)


def test_one_option_of_unit_vega_is_glft():
    B = vega_curvature(1.0, k=0.3, A_year=0.9, qty=1.0, risk_aversion=1e-5, vol_of_vol=0.3)
    assert B == pytest.approx(math.sqrt(0.09 * 1e-5 / (2 * 0.3 * 0.9) * (1 + 1e-5 / 0.3) ** (1 + 0.3 / 1e-5)), rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.floats(-5000, 5000).filter(lambda v: v == 0 or abs(v) > 1e-3), st.floats(-40, 40))  # a vega of 1e-7 leans by less than the last digit of a price
def test_quotes_lean_against_the_book(net_vega, net_delta):
    q = option_quotes([1.0, 4.0, 1.0], net_vega=net_vega, net_delta=net_delta, trigger=10.0, unit_cost=0.05, **BOOK)
    mirror = option_quotes([1.0, 4.0, 1.0], net_vega=-net_vega, net_delta=-net_delta, trigger=10.0, unit_cost=0.05, **BOOK)
    assert np.allclose(q.bid_offset, mirror.ask_offset) and np.allclose(q.shift_vega, -mirror.shift_vega)
    assert (np.sign(q.shift_vega.round(12)) == -np.sign(round(net_vega, 6)) * np.sign(abs(q.shift_vega.round(12)))).all()
    assert (np.abs(q.shift_delta) <= 0.05 * np.abs(BOOK["delta"]) + 1e-12).all()  # never more than hedging it costs
    assert (q.shift_delta * np.sign(BOOK["delta"]) * np.sign(net_delta) <= 1e-12).all()
    assert (q.bid < q.ask).all()


def test_the_drift_of_volatility_moves_the_target():
    drift = 0.05 * 0.16**2 * 3000.0  # the best vega is 3,000
    q = option_quotes(4.0, net_vega=3000.0, vol_drift=drift, **{**BOOK, "delta": 0.0})
    assert np.allclose(q.shift_vega, 0) and np.allclose(q.bid_offset, q.ask_offset)


def test_ticks_and_limits():
    theo = pd.Series([1.003, 4.0, 1.0], index=list("abc"))
    q = option_quotes(theo, net_vega=0.0, tick_size=0.05, **BOOK)
    assert list(q.index) == list("abc") and np.allclose(q.bid / 0.05, (q.bid / 0.05).round()) and (q.bid <= theo - q.bid_offset + 1e-9).all() and (q.ask >= theo + q.ask_offset - 1e-9).all()
    full = option_quotes(theo, net_vega=950.0, max_vega=1000.0, **BOOK)
    assert full.bid.isna().all() and full.ask.notna().all()
    beyond = option_quotes(theo, net_vega=5000.0, max_vega=1000.0, **BOOK)
    assert beyond.bid.isna().all() and beyond.ask.notna().all()  # what brings it down is quoted even beyond the limit


def test_closed_form_against_the_numerical_solution():
    s = solve_vega(**FLOW, **TASTE, max_vega=6000.0, points=601)
    B, near = vega_curvature(**FLOW, **TASTE), np.abs(s.grid) < 2000
    closed = 1 / FLOW["k"][:, None] + B * FLOW["vega"][:, None] * (s.grid + 5 * FLOW["vega"][:, None])
    assert (np.abs(s.bid_offset - closed) * FLOW["k"][:, None])[:, near].max() < 0.02
    assert np.allclose(s.bid_offset, s.ask_offset[:, ::-1], equal_nan=True)
    ideal = 2 * (10 * 10_080 / math.e / FLOW["k"]).sum()
    assert 0.9 * ideal < s.income < ideal
    # the equation holds on the grid: what is left of it after putting the solution in
    j, h = 300 + np.arange(-100, 101), s.grid[1] - s.grid[0]
    right = -0.5 * 0.05 * 0.16**2 * s.grid[j] ** 2
    for i in range(3):
        for side in (1, -1):
            p = (s.value[j] - np.interp(s.grid[j] + side * 10 * FLOW["vega"][i], s.grid, s.value)) / 10
            right = right + 10 * 10_080 / (math.e * FLOW["k"][i]) * np.exp(-FLOW["k"][i] * p)
    assert h > 0 and np.allclose(right, s.income, rtol=1e-6)


def test_quoting_pays_what_it_says():
    world = dict(S=100.0, sigma=0.2, strikes=np.array([95.0, 100.0, 105.0]), rights=["put", "call", "call"], T=0.25, k=20.0, A_year=10_080.0, qty=10.0, **TASTE)
    calm = quote_paths(rule="blind", n_paths=300, rng=np.random.default_rng(1), days=1.0, steps=390, **world)
    assert calm.edge.mean() == pytest.approx(calm.fills.mean() * 10 / 20, rel=1e-9)  # 1/k a unit
    assert calm.fills.mean() == pytest.approx(2 * 3 * 40 / math.e, rel=0.05)
    assert abs((calm.pnl - calm.edge + calm.hedge_cost).mean()) < 4 * (calm.pnl - calm.edge).std() / math.sqrt(300)
    aware = quote_paths(rule="vega", n_paths=300, rng=np.random.default_rng(1), days=1.0, steps=390, **world)
    assert aware.rms_vega.mean() < 0.75 * calm.rms_vega.mean()
    again = quote_paths(rule="vega", n_paths=300, rng=np.random.default_rng(1), days=1.0, steps=390, **world)
    pd.testing.assert_frame_equal(aware, again)


# ---------------------------------------------------------------- bad input

WW = dict(T=0.1, cost=0.002, risk_aversion=0.5)
NTB = dict(unit_cost=0.1, exposure_variance=1.0, price_variance=1.0, risk_aversion=1.0)
BAD = {
    "nan gamma": (lambda: whalley_wilmott_band(100, math.nan, **WW), "gamma = nan"),
    "nan in a column": (lambda: whalley_wilmott_band(100, [0.1, math.nan], **WW), "gamma = nan"),
    "no spot": (lambda: whalley_wilmott_band(0, 0.1, **WW), "S = 0"),
    "negative risk aversion": (lambda: whalley_wilmott_band(100, 0.1, **{**WW, "risk_aversion": -1}), r"risk_aversion = -1 \(1/currency\) must be > 0"),
    "negative cost": (lambda: whalley_wilmott_band(100, 0.1, **{**WW, "cost": -0.1}), "cost = -0.1"),
    "expired band": (lambda: whalley_wilmott_band(100, 0.1, **{**WW, "T": -0.1}), "expired"),
    "no risk aversion": (lambda: no_trade_band(**{**NTB, "risk_aversion": 0}), "would never hedge"),
    "nan variance": (lambda: no_trade_band(**{**NTB, "exposure_variance": math.nan}), "exposure_variance"),
    "negative fee": (lambda: no_trade_band(**NTB, fixed_cost=-1.0), "fixed_cost"),
    "nan deadline": (lambda: no_trade_band(**NTB, T=math.nan), "T = nan"),
    "rule of another kind": (lambda: HedgeRule("weekly"), "kind"),
    "rule of no steps": (lambda: HedgeRule("clock", every=0), "every"),
    "rule beyond its edge": (lambda: HedgeRule("power", to=1.5), "to = 1.5"),
    "spots with a hole": (lambda: hedge_paths([100.0, math.nan], rule=HedgeRule("clock"), **SOLD), "spots"),
    "horizon past expiry": (lambda: hedge_paths([100.0, 101.0], horizon=1.0, rule=HedgeRule("clock"), **SOLD), "horizon"),
    "zero tick": (lambda: Contract("A", 0.0), r"tick_size = 0.0 \(currency\) must be > 0"),
    "negative lot": (lambda: Contract("A", 0.01, -100), "unit"),
    "negative size": (lambda: Contract("A", 0.01, min_lots=-1), "min_lots"),
    "half an option": (lambda: Contract("A", 0.01, right="call", strike=100.0), "expiry_ns"),
    "option without strike": (lambda: Contract("A", 0.01, right="call", expiry_ns=1), "strike"),
    "negative half-spread": (lambda: Contract("A", 0.01, half_spread_ticks=-1), "half_spread_ticks"),
    "two underlyings": (lambda: Hedger(contracts=[SHARE, Contract("B", 0.01)], risk_aversion=1.0), "one underlying"),
    "no underlying": (lambda: Hedger(contracts=CHAIN, risk_aversion=1.0), "one underlying"),
    "a contract twice": (lambda: Hedger(contracts=[SHARE, *CHAIN, CHAIN[0]], risk_aversion=1.0), "each once"),
    "hedger without fear": (lambda: hedger(risk_aversion=-1.0), "risk_aversion"),
    "nan limit": (lambda: hedger(max_vega=math.nan), "max_vega = nan"),
    "spread of strangers": (lambda: hedger(spreads=(Spread("x", (("Q", 1),)),)), "'Q'"),
    "held after expiry": (lambda: hedger().net({"C100.30": 1}, S=100, vols=VOLS, now_ns=31 * DAY), "settle it"),
    "no volatility": (lambda: hedger().net({"C100.30": 1}, S=100, vols={}, now_ns=0), r"vols\['C100.30'\]"),
    "nan volatility": (lambda: hedger().net({"C100.30": 1}, S=100, vols={"C100.30": math.nan}, now_ns=0), r"vols\['C100.30'\]"),
    "nan spot": (lambda: hedger().decide({}, S=math.nan, vols=VOLS, now_ns=0), "S = nan"),
    "nan lots": (lambda: hedger().decide({"XYZ": math.nan}, **AT), "whole number"),
    "half a lot": (lambda: hedger().decide({"XYZ": 0.5}, **AT), "whole number"),
    "unknown symbol": (lambda: hedger().decide({"ABC": 1}, **AT), "'ABC'"),
    "unknown on the way": (lambda: hedger().decide({}, on_the_way={"ABC": 1}, **AT), "on_the_way"),
    "negative spread of the book": (lambda: hedger().decide({}, half_spreads={"XYZ": -0.01}, **AT), "half_spreads"),
    "a put for a call": (lambda: straddle(BY["P100.30"], BY["C100.30"]), "rights"),
    "falling strikes": (lambda: vertical(BY["C105.30"], BY["C100.30"]), "must rise"),
    "two expiries": (lambda: straddle(BY["C100.30"], BY["P100.90"]), "expiry_ns"),
    "a share in a spread": (lambda: vertical(SHARE, BY["C100.30"]), "must be an option"),
    "a discount above one": (lambda: Spread("x", (), 2.0), "discount"),
    "nan theo": (lambda: option_quotes([1.0, math.nan, 1.0], net_vega=0.0, **BOOK), r"theo\[1\]"),
    "nan inventory": (lambda: option_quotes(1.0, net_vega=math.nan, **BOOK), "net_vega"),
    "negative fill size": (lambda: option_quotes(1.0, net_vega=0.0, **{**BOOK, "qty": -1.0}), r"qty\[0\] = -1.0 \(units\)"),
    "quotes without fear": (lambda: option_quotes(1.0, net_vega=0.0, **{**BOOK, "risk_aversion": -1.0}), "risk_aversion"),
    "quotes without a tick": (lambda: option_quotes(1.0, net_vega=0.0, tick_size=0.0, **BOOK), "tick_size"),
    "no decay": (lambda: option_quotes(1.0, net_vega=0.0, **{**BOOK, "k": 0.0}), r"k\[0\]"),
    "a sure gain": (lambda: option_quotes(1.0, net_vega=0.0, vol_drift=0.1, **{**BOOK, "vol_of_vol": 0.0}), "sure gain"),
    "negative trigger": (lambda: option_quotes(1.0, net_vega=0.0, trigger=-1.0, **BOOK), "trigger"),
    "expired week": (lambda: quote_paths(S=100.0, sigma=0.2, strikes=np.array([100.0]), rights="call", T=0.01, k=10.0, A_year=1.0, qty=1.0, rule="vega", n_paths=1,
                                         rng=np.random.default_rng(0), **TASTE), "beyond expiry"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_a_name(name):
    call, words = BAD[name]
    with pytest.raises(ParameterError, match=words):
        call()


# ---------------------------------------------------------------- a real chain

@pytest.mark.realdata
def test_a_real_chain_is_hedged_within_limits_and_cheaper_than_one_leg():
    frame = pd.read_csv(real("options_optopsy/SPX_2018.csv.gz"), skipinitialspace=True, encoding="utf-8-sig")
    day = frame[(frame.quotedate == "02/01/2018") & (frame.expiration == "02/28/2018") & (frame.bid > 0.5)]
    S, T = float(day.underlying_last.iloc[0]), 27 / 365
    day = day[(day.strike % 25 == 0) & (abs(day.strike / S - 1) < 0.08)]
    vol = implied_vol((day.bid + day.ask).to_numpy() / 2, S, day.strike.to_numpy(), T, 0.0, 0.0, day.type.to_numpy(), errors="nan")
    day = day.assign(vol=vol).dropna(subset=["vol"])
    otm = day[(day.type == "call") == (day.strike > S)]
    contracts = [Contract(s, 0.05, 100.0, t, float(k), 27 * DAY, max_lots=200) for s, t, k in zip(otm.optionroot, otm.type, otm.strike)]
    vols = dict(zip((c.symbol for c in contracts), otm.vol))
    half = {c.symbol: w for c, w in zip(contracts, (otm.ask - otm.bid) / 2)} | {"SPX": 0.1}
    h = Hedger(contracts=[Contract("SPX", 0.01, 1.0, max_lots=10**6), *contracts], risk_aversion=1e-6, max_vega=200_000, max_gamma=60)
    net = h.net({c.symbol: -10 for c in contracts}, S=S, vols=vols, now_ns=0)
    filed = -1000 * otm.delta.sum()  # the vendor's own deltas
    assert net.delta == pytest.approx(filed, abs=0.03 * 1000 * len(otm))
    plan = h.decide({c.symbol: -10 for c in contracts}, S=S, vols=vols, now_ns=0, half_spreads=half)
    assert not plan.note and abs(plan.after.vega) <= 200_000 * (1 + 1e-6) and abs(plan.after.gamma) <= 60 * (1 + 1e-6)
    alone = []
    for c in contracts:
        p = h.decide({x.symbol: -10 for x in contracts}, S=S, vols=vols, now_ns=0, half_spreads={**{x.symbol: math.nan for x in contracts}, c.symbol: half[c.symbol], "SPX": 0.1})
        alone += [p.cost] if not p.note else []
    assert alone and plan.cost <= min(alone) * 1.001
    print(f"{len(contracts)} options, net vega {plan.before.vega:.0f}: {plan.cost:.0f} against {min(alone):.0f} for the best single option")
