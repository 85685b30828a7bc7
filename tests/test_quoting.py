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
from makerlab.models.quoting import (STRATEGIES, QuoteParams, clip_spread, gamma_for_half_life, gamma_for_skew, half_spread_with_ofi,
                                     params_from_market, post_only, reservation_with_ofi, round_to_ticks)
from makerlab.schema import new_state

ORACLES = json.loads((Path(__file__).parent / "oracles" / "oracles.json").read_text())["cases"] if (Path(__file__).parent / "oracles" / "oracles.json").exists() else []
maybe = lambda lo, hi: st.one_of(st.just(math.nan), st.floats(lo, hi))


@st.composite
def markets(draw):
    tick = draw(st.sampled_from([0.0001, 0.01, 0.05, 0.25]))
    bid = draw(st.integers(1, 100_000))
    ask = bid + draw(st.integers(0, 40))  # locked markets included
    state = dict(t_s=0.0, tau_s=draw(st.floats(0, 1e5)), mid=0.5 * (bid + ask) * tick, bid=bid * tick, ask=ask * tick, bid_size=100.0, ask_size=100.0,
                 inventory=draw(st.floats(-1500, 1500)), sigma=draw(maybe(1e-6, 10.0)), ofi=draw(maybe(-50, 50)))
    low = draw(st.floats(0, 100))
    params = QuoteParams(gamma=10 ** draw(st.floats(-12, 1)), k=10 ** draw(st.floats(-3, 4)), kappa=draw(st.floats(-1, 1)), eta=draw(st.floats(0, 1)),
                         half_spread=10 ** draw(st.floats(-5, 1)), min_spread_bps=low, max_spread_bps=low + draw(st.one_of(st.floats(0, 1000), st.just(math.inf))),
                         qty=draw(st.floats(1, 500)), max_inventory=draw(st.floats(1, 1000)))
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
    if name != "naive" and math.isnan(state["sigma"]):
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
