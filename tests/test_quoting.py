"Quotes stay legal on any input: never cross, bid <= ask, on the grid, caps never exceeded; units cannot be mixed up."
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError, ReturnVol, TickGrid, UnitError
from makerlab.models.cartea_jaimungal import solve_cj
from makerlab.models.glft import glft_closed_form, glft_coefficients
from makerlab.models.quoting import (STRATEGIES, QuoteParams, check_strategy, clip_spread, gamma_for_glft, gamma_for_half_life, gamma_for_skew, half_spread_with_ofi,
                                     params_from_market, post_only, reservation_with_ofi, round_to_ticks)
from makerlab.schema import new_state

ORACLES = json.loads((Path(__file__).parent / "oracles" / "oracles.json").read_text())["cases"] if (Path(__file__).parent / "oracles" / "oracles.json").exists() else []
maybe = lambda lo, hi: st.one_of(st.just(math.nan), st.floats(lo, hi))


REGIMES_OR_NONE = st.sampled_from([{}, dict(regime_sigma=(0.01, 1.0), regime_gamma=(1e-6, 1e-5, 1e-4), regime_kappa=(0.1, 0.0, -0.1), regime_eta=(0.0, 0.01, 0.5))])
TABLE_OR_NONE = st.sampled_from([{}, dict(k=50.0, phi=1e-9, alpha=1e-6, qty=100.0, max_inventory=700.0), dict(k=200.0, phi=1e-7, qty=50.0, max_inventory=60.0, eps_buy=0.003, A_sell=2.0)])


@st.composite
def markets(draw):
    tick = draw(st.sampled_from([0.0001, 0.01, 0.05, 0.25]))
    bid = draw(st.integers(1, 100_000))
    ask = bid + draw(st.integers(0, 40))  # locked markets included
    state = dict(t_s=0.0, tau_s=draw(st.floats(0, 1e5)), mid=0.5 * (bid + ask) * tick, bid=bid * tick, ask=ask * tick, bid_size=100.0, ask_size=100.0,
                 inventory=draw(st.floats(-1500, 1500)), sigma=draw(maybe(1e-6, 10.0)), ofi=draw(maybe(-50, 50)))
    low = draw(st.floats(0, 100))
    params = dict(gamma=10 ** draw(st.floats(-12, 1)), k=10 ** draw(st.floats(-3, 4)), kappa=draw(st.floats(-1, 1)), eta=draw(st.floats(0, 1)),
                         half_spread=10 ** draw(st.floats(-5, 1)), min_spread_bps=low, max_spread_bps=low + draw(st.one_of(st.floats(0, 1000), st.just(math.inf))),
                         qty=draw(st.floats(1, 500)), max_inventory=draw(st.floats(1, 1000)), A=10 ** draw(st.floats(-3, 2)), fee=draw(st.sampled_from([0.0, -0.002, 0.01])))
    params = QuoteParams(**(params | draw(REGIMES_OR_NONE) | draw(TABLE_OR_NONE)))
    return tick, bid, ask, state, params


@settings(max_examples=300, deadline=None)
@given(markets(), st.sampled_from(sorted(STRATEGIES)))
def test_quotes_are_legal(market, name):
    tick, bid, ask, state, params = market
    b, a, qb, qa = STRATEGIES[name](new_state(**state), params.record(tick))
    assert 0 <= qb <= params.qty and 0 <= qa <= params.qty
    if qb > 0:
        assert 0 < b <= ask - 1 and state["inventory"] + qb <= params.max_inventory * (1 + 1e-12)
    if qa > 0:
        assert a >= bid + 1 and state["inventory"] - qa >= -params.max_inventory * (1 + 1e-12)
    if qb > 0 and qa > 0:
        assert b < a
    if name not in ("naive", "cj") and math.isnan(state["sigma"]):
        assert qb == qa == 0
    if (name == "cj" and math.isnan(params.phi)) or (name == "as-adaptive" and not params.regime_gamma):
        assert qb == qa == 0
    if name == "as-ofi" and math.isnan(state["ofi"]) and (params.kappa or params.eta):
        assert qb == qa == 0


@settings(max_examples=100, deadline=None)
@given(markets())
def test_zero_kappa_and_eta_is_plain(market):
    tick, *_, state, params = market
    rec = params.replace(kappa=0.0, eta=0.0).record(tick)
    assert tuple(STRATEGIES["as-ofi"](new_state(**state), rec)) == tuple(STRATEGIES["as"](new_state(**state), rec))


@settings(max_examples=100, deadline=None)
@given(markets())
def test_more_inventory_never_raises_a_quote(market):
    tick, *_, state, params = market
    rec = params.replace(max_inventory=1e9).record(tick)
    low, high = (STRATEGIES["as"](new_state(**(state | {"inventory": q})), rec) for q in (state["inventory"], state["inventory"] + 200))
    if low[2] and high[2]:
        assert high[0] <= low[0]
    if low[3] and high[3]:
        assert high[1] <= low[1]


def test_market_clip_rule_oracle():
    case = next((c for c in ORACLES if c["id"] == "seed_checks.market_clip_rule"), None)
    x = {k: float(v) for k, v in case["inputs"].items()} if case else dict(market_bid=100.0, market_ask=100.02, tick=0.01, desired_bid=100.012, desired_ask=100.03)
    bid, ask = post_only(x["desired_bid"], x["desired_ask"], best_bid=x["market_bid"], best_ask=x["market_ask"], tick=x["tick"])
    assert bid == pytest.approx(100.01, abs=1e-12) and bid != x["market_bid"] and ask == pytest.approx(100.03, abs=1e-12)


def test_spread_is_clipped_about_the_centre():
    rec = QuoteParams(half_spread=0.001, min_spread_bps=10.0).record(0.01)
    b, a, *_ = STRATEGIES["naive"](new_state(mid=100.0, bid=99.0, ask=101.0, inventory=0.0), rec)
    assert (b, a) == (9995, 10005)  # 10 bps of 100 = 0.10, five ticks each side: never the ask alone
    assert clip_spread(1.906, mid=100.0, min_spread_bps=1, max_spread_bps=50) == pytest.approx(0.5)


@given(st.floats(0.01, 1e4), st.floats(0, 10), st.sampled_from([0.01, 0.05, 0.001]))
@settings(max_examples=100, deadline=None)
def test_rounding_is_outward_and_idempotent(price, gap, tick):
    b, a = round_to_ticks(price, price + gap, tick=tick)
    grid = TickGrid(tick)
    assert b <= a and grid.price(b) <= price + 2e-6 * tick and grid.price(a) >= price + gap - 2e-6 * tick
    assert round_to_ticks(float(grid.price(b)), float(grid.price(a)), tick=tick) == (b, a)


@pytest.mark.parametrize("bad", [dict(gamma=0.0), dict(gamma=math.nan), dict(k=-1.0), dict(qty=0.0), dict(max_inventory=-5.0), dict(half_spread=math.inf),
                                 dict(eta=-0.1), dict(kappa=math.nan), dict(min_spread_bps=-1.0), dict(min_spread_bps=10.0, max_spread_bps=5.0)])
def test_bad_params_name_the_argument(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        QuoteParams(**bad)


def test_return_volatility_is_refused():
    series = pd.Series([1e-4])
    series.attrs["unit"] = "1/sqrt(s)"
    for sigma in (ReturnVol(1e-4), series):
        with pytest.raises(UnitError, match="price"):
            reservation_with_ofi(100.0, inventory=1, gamma=0.1, sigma=sigma, tau_s=1)
        with pytest.raises(UnitError):
            half_spread_with_ofi(gamma=0.1, sigma=sigma, k=1.0, tau_s=1)
        with pytest.raises(UnitError):
            gamma_for_skew(0.01, inventory=10, sigma=sigma, tau_s=1)
    price = ReturnVol(1e-4).to_price(100.0)
    assert reservation_with_ofi(100.0, inventory=1, gamma=0.1, sigma=price, tau_s=1) == pytest.approx(100 - 0.1 * 1e-4)


def test_gamma_helpers_scale():
    g = gamma_for_skew(0.01, inventory=1000, sigma=0.01, tau_s=3600)
    assert 100 - reservation_with_ofi(100.0, inventory=1000, gamma=g, sigma=0.01, tau_s=3600) == pytest.approx(0.01)
    h = dict(A=1.0, k=100.0, half_spread=0.01, sigma=0.01, tau_s=3600, qty=100)
    assert gamma_for_half_life(30, **h) == pytest.approx(2 * gamma_for_half_life(60, **h))
    p = params_from_market(half_spread=0.02, sigma=0.01, tau_s=3600)
    assert p.k == 50 and np.isfinite(p.gamma)


@settings(max_examples=100, deadline=None)
@given(markets())
def test_one_regime_or_equal_regimes_is_plain(market):
    tick, *_, state, params = market
    same = params.replace(regime_sigma=(0.01, 0.5), regime_gamma=(params.gamma,) * 3, regime_kappa=(params.kappa,) * 3, regime_eta=(params.eta,) * 3)
    one = params.replace(regime_sigma=(), regime_gamma=(params.gamma,), regime_kappa=(params.kappa,), regime_eta=(params.eta,))
    want = tuple(STRATEGIES["as-ofi"](new_state(**state), params.record(tick)))
    assert all(tuple(STRATEGIES["as-adaptive"](new_state(**state), p.record(tick))) == want for p in (same, one))


@pytest.mark.parametrize("sigma, i", [(0.005, 0), (0.01, 1), (0.0199, 1), (0.02, 2), (5.0, 2)])
def test_the_regime_of_a_volatility(sigma, i):
    "An edge belongs to the upper regime, as in numpy.searchsorted(side='right')."
    p = QuoteParams(regime_sigma=(0.01, 0.02), regime_gamma=(1e-6, 1e-5, 3e-5), regime_kappa=(0.0, 0.01, 0.02), regime_eta=(0.0,) * 3)
    state = dict(tau_s=1000.0, mid=100.0, bid=99.0, ask=101.0, inventory=500.0, sigma=sigma, ofi=1.0)
    plain = p.replace(gamma=p.regime_gamma[i], kappa=p.regime_kappa[i], eta=p.regime_eta[i])
    assert tuple(STRATEGIES["as-adaptive"](new_state(**state), p.record(0.01))) == tuple(STRATEGIES["as-ofi"](new_state(**state), plain.record(0.01)))
    assert np.searchsorted(p.regime_sigma, sigma, side="right") == i


@settings(max_examples=60, deadline=None)
@given(st.floats(-6, -1), st.floats(-1, 1), st.floats(20, 300), st.floats(-3, -1), st.integers(-1000, 1000), st.sampled_from([0.0, -0.003, 0.004]))
def test_glft_quotes_the_closed_form(log_gamma, log_A, k, log_sigma, inventory, fee):
    "On a grid so fine that rounding is invisible; the fee by the identity of page costs."
    gamma, A, sigma, tick = 10**log_gamma, 10**log_A, 10**log_sigma, 1e-7
    p = QuoteParams(gamma=gamma, A=A, k=k, qty=100.0, max_inventory=1e5, fee=fee, min_spread_bps=0.0, max_spread_bps=math.inf)
    bid, ask = (d + fee for d in glft_closed_form(float(inventory), sigma=sigma, A=A * math.exp(-k * fee), k=k, gamma=gamma, qty=100.0))
    b, a, *_ = STRATEGIES["glft"](new_state(mid=1000.0, bid=0.5, ask=2000.0, inventory=float(inventory), sigma=sigma), p.record(tick))
    if bid + ask > 0 and 1000 - bid < 2000 and 1000 + ask > 0.5:
        assert b * tick == pytest.approx(1000 - bid, abs=2.1 * tick) and a * tick == pytest.approx(1000 + ask, abs=2.1 * tick)


@pytest.mark.parametrize("fee, sides", [(0.0, {}), (-0.002, {}), (0.0, dict(A_buy=0.6, A_sell=0.2, eps_buy=0.001, eps_sell=0.003))])
def test_cj_quotes_the_solution(fee, sides):
    p = QuoteParams(A=0.3, k=80.0, phi=4e-9, alpha=2e-5, qty=100.0, max_inventory=400.0, fee=fee, min_spread_bps=0.0, max_spread_bps=math.inf, **sides)
    scale, tick = math.exp(-80 * fee), 1e-7
    for tau in (0.0, 50.0, 5000.0, 1e6):
        exact = solve_cj(rate_buy=sides.get("A_buy", 0.3) * scale, rate_sell=sides.get("A_sell", 0.3) * scale, kappa_ask=80.0, kappa_bid=80.0, phi=4e-9, alpha=2e-5,
                         horizon_s=min(tau, 23_400.0), q_max=4, eps_buy=sides.get("eps_buy", 0.0), eps_sell=sides.get("eps_sell", 0.0), qty=100.0)
        for lots in range(-4, 5):
            b, a, qb, qa = STRATEGIES["cj"](new_state(mid=1000.0, bid=999.0, ask=1001.0, inventory=100.0 * lots, tau_s=tau), p.record(tick))
            bid, ask = exact.at(lots)
            assert (qb > 0) == (not math.isnan(bid)) and (qa > 0) == (not math.isnan(ask))
            near = 2e-4 if tau == 50.0 else 3 * tick  # between two rows of the table a straight line
            assert math.isnan(bid) or b * tick == pytest.approx(1000 - bid - fee, abs=near)
            assert math.isnan(ask) or a * tick == pytest.approx(1000 + ask + fee, abs=near)


def test_cj_between_lots_is_a_straight_line_and_its_edges_hold():
    p = QuoteParams(A=0.3, k=80.0, phi=4e-9, qty=100.0, max_inventory=250.0, min_spread_bps=0.0, max_spread_bps=math.inf).record(1e-7)  # two lots and a half
    quote = lambda q, tau=500.0: STRATEGIES["cj"](new_state(mid=1000.0, bid=999.0, ask=1001.0, inventory=q, tau_s=tau), p)  # noqa: E731
    for side in (0, 1):
        left, middle, right = (quote(q)[side] for q in (-100.0, -30.0, 0.0))
        assert middle == pytest.approx(0.3 * left + 0.7 * right, abs=2)
    assert quote(200.0)[:2] == pytest.approx(quote(240.0)[:2], abs=1) and quote(240.0)[2] == pytest.approx(10.0)
    assert quote(0.0, math.nan)[2:] == quote(0.0, -1.0)[2:] == (0.0, 0.0)


@settings(max_examples=50, deadline=None)
@given(st.floats(-4, 0), st.floats(1, 200), st.floats(-4, 0), st.floats(-2, 1), st.floats(1, 300))
def test_gamma_for_glft_does_what_it_says(log_skew, lots, log_sigma, log_A, k):
    sigma, A, qty = 10**log_sigma, 10**log_A, 50.0
    gamma = gamma_for_glft(10**log_skew, inventory=lots * qty, sigma=sigma, A=A, k=k, qty=qty)
    assert lots * glft_coefficients(sigma=sigma, A=A, k=k, gamma=gamma, qty=qty).slope == pytest.approx(10**log_skew, rel=1e-9)


@pytest.mark.parametrize("name, params, says", [
    ("glft", {}, "calibrate"), ("cj", {}, "calibrate"), ("cj", dict(A=1.0), "phi"), ("cj", dict(A_buy=1.0, phi=1e-9), "calibrate"), ("cj", dict(A=1.0, phi=1e-9, qty=1.0), "lots"),
    ("as-adaptive", {}, "fit_regimes"), ("lucky", {}, "one of")])
def test_a_strategy_says_what_it_lacks(name, params, says):
    with pytest.raises(ParameterError, match=says):
        check_strategy(name, QuoteParams(**params))


@pytest.mark.parametrize("bad", [dict(A=0.0), dict(A_buy=-1.0), dict(phi=-1e-9), dict(phi=math.inf), dict(alpha=-1.0), dict(fee=math.nan), dict(eps_buy=math.inf), dict(horizon_s=0.0),
                                 dict(regime_gamma=(1e-5, 2e-5), regime_kappa=(0.0, 0.0), regime_eta=(0.0, 0.0)), dict(regime_sigma=(0.1,)),
                                 dict(regime_gamma=(1e-5, -2e-5), regime_kappa=(0.0, 0.0), regime_eta=(0.0, 0.0), regime_sigma=(0.1,)),
                                 dict(regime_gamma=(1e-5,) * 3, regime_kappa=(0.0,) * 3, regime_eta=(0.0,) * 3, regime_sigma=(0.2, 0.1))])
def test_bad_new_params_name_the_argument(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        QuoteParams(**bad)
