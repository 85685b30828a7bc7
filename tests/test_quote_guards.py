"The quoting engine's guards, one at a time and without chance: each test fails when its guard is switched off (tools/mutants.py does that)."
import math
from types import SimpleNamespace

import pytest

from makerlab.execution.config import check_config
from makerlab.execution.orders import RequotePolicy
from makerlab.models.quote_engine import (Adverse, ConfigError, Edge, ExpectedValueMaker, Offsets, QuoteConfig, QuoteEngine, Refresh, Size, Skew,
                                          half_spread_ticks, size_lots, skew_ticks)

NAN, INF = math.nan, math.inf
BOOK = dict(bid_ticks=99, ask_ticks=101, bid_lots=5.0, ask_lots=5.0, inventory_lots=0.0, now_ns=0)


def engine(**more):
    return QuoteEngine(QuoteConfig(**more), tick_size=0.01)


def quotes(e, theo=None, **more):
    return [(o.side, o.price_ticks, o.qty_lots) for o in e.quotes(theo, **(BOOK | more))]


@pytest.mark.parametrize("config, theo, market, why", [
    ({}, None, dict(inventory_lots=NAN), "inventory missing"), ({}, None, dict(inventory_lots=INF), "inventory missing"),
    ({}, None, dict(bid_lots=-1.0), "negative size"), ({}, None, dict(ask_lots=-1.0), "negative size"),
    ({}, None, dict(bid_ticks=102), "crossed book"), ({}, None, dict(bid_ticks=101), "locked book"),
    (dict(theo="model"), 1.0, dict(bid_ticks=102), "crossed book"), (dict(theo="model"), 1.0, dict(bid_ticks=101), "locked book"),
    (dict(theo="model"), 1.0, dict(bid_ticks=None, ask_ticks=None), "no market"), (dict(theo="model"), 1.0, dict(bid_ticks=NAN, ask_ticks=0), "no market"),
    ({}, None, dict(ask_ticks=None), "one-sided book"), (dict(theo="model"), None, {}, "theo missing"), (dict(theo="model"), NAN, {}, "theo missing"),
    (dict(theo="model", max_theo_gap_ticks=5), 1.06, {}, "theo far from market"), (dict(theo="model"), INF, {}, "theo far from market"),
    (dict(theo="model"), 0.0, dict(bid_ticks=1, ask_ticks=2), "theo far from market"), (dict(theo="model"), -0.02, dict(bid_ticks=1, ask_ticks=2), "theo far from market"),
    (dict(offsets=Offsets(per_sigma=1)), None, dict(sigma=NAN), "sigma missing"), (dict(offsets=Offsets(per_sigma=1)), None, dict(sigma=-0.01), "sigma missing"),
    (dict(offsets=Offsets(per_sigma=1)), None, dict(sigma=INF), "sigma missing"),
    (dict(offsets=Offsets(imbalance_ticks=1)), None, dict(imbalance=NAN), "imbalance missing"), (dict(offsets=Offsets(imbalance_ticks=1)), None, dict(imbalance=1.5), "imbalance missing"),
    (dict(theo="microprice"), None, dict(bid_lots=0.0, ask_lots=0.0), "imbalance missing"),
    (dict(offsets=Offsets(vol_error=0.01)), None, {}, "greeks missing"),
    (dict(offsets=Offsets(vol_error=0.01)), None, dict(greeks=SimpleNamespace(delta=NAN, vega=1.0)), "greeks missing"),
    (dict(offsets=Offsets(thin_ticks=2)), None, dict(depth=(NAN, 5.0)), "depth missing"), (dict(offsets=Offsets(thin_ticks=2)), None, dict(depth=(5.0, -1.0)), "depth missing"),
    (dict(size=Size(by="volatility", risk=10.0)), None, dict(sigma=NAN), "sigma missing"), (dict(size=Size(by="volatility", risk=10.0)), None, dict(sigma=0.0), "size too small"),
])
def test_what_is_missing_or_cannot_be_is_declined_and_counted(config, theo, market, why):
    e = engine(**config)
    assert quotes(e, theo, **market) == [] and e.refused == {why: 1}


def test_what_is_not_used_may_be_missing():
    assert quotes(engine(), sigma=NAN, imbalance=NAN, depth=(NAN, NAN)) == [(1, 99, 1), (-1, 101, 1)]
    assert quotes(engine(theo="model"), 1.0, ask_ticks=None) == [(1, 99, 1), (-1, 101, 1)], "a model's price needs no second side"


def test_at_the_gap_is_near_enough():
    assert quotes(engine(theo="model", max_theo_gap_ticks=5), 1.05) and not quotes(engine(theo="model", max_theo_gap_ticks=5), 1.0501)


def test_levels_share_the_room_in_whole_increments_and_end_at_the_least_size():
    e = engine(style="layered", levels=3, level_size_factor=2, max_inventory_lots=11, size=Size(lots=3, increment_lots=2, min_lots=2))
    got = quotes(e)
    assert [q for s, _, q in got if s > 0] == [2, 4, 4] and e.refused == {}, "2, 4 and 8 wanted; 11 in all, in twos: the third has 5 left"
    e = engine(style="layered", levels=3, max_inventory_lots=7, size=Size(lots=3, min_lots=2))
    assert [q for s, _, q in quotes(e) if s > 0] == [3, 3] and e.refused == {"bid: no room": 1, "ask: no room": 1}
    e = engine(style="layered", levels=2, level_size_factor=3, max_inventory_lots=100, size=Size(lots=4, max_lots=5))
    assert [q for s, _, q in quotes(e) if s > 0] == [4, 5]
    e = engine(max_inventory_lots=10, size=Size(lots=5))
    assert quotes(e, inventory_lots=8.0) == [(1, 99, 2), (-1, 101, 5)] and quotes(e, inventory_lots=10.0) == [(-1, 101, 5)]


def test_no_level_at_a_price_of_nothing():
    e = engine(style="layered", levels=5, half_spread_ticks=1)
    assert [p for s, p, _ in quotes(e, bid_ticks=2, ask_ticks=4) if s > 0] == [2, 1] and e.refused == {"bid: price not above 0": 1}


def test_a_cash_account_sells_what_it_has():
    e = engine(short=False, size=Size(lots=5))
    assert [q for s, _, q in quotes(e, inventory_lots=3.0) if s < 0] == [3] and not [s for s, *_ in quotes(e) if s < 0]
    assert [q for s, _, q in quotes(engine(size=Size(lots=5))) if s < 0] == [5]


def test_a_side_that_cannot_earn_its_edge_is_left_out_and_the_other_is_pushed_out():
    for name, side in (("bid_ticks", 1), ("ask_ticks", -1)):
        e = engine(max_half_spread_ticks=6, edge=Edge(min_ticks=2, adverse=Adverse(**{name: 5.0})))
        got = quotes(e)
        assert [s for s, *_ in got] == [-side] and e.refused == {("bid: " if side > 0 else "ask: ") + "edge": 1}
        assert abs(got[0][1] - 100) == 3, "more than two ticks, on the grid"


def test_the_side_that_reduces_may_be_cheaper():
    e = engine(edge=Edge(min_ticks=2, min_reducing_ticks=0.5))
    assert [p for _, p, _ in quotes(e, inventory_lots=2.0)] == [97, 101] and [p for _, p, _ in quotes(e, inventory_lots=-2.0)] == [99, 103]


def test_quotes_stay_passive_though_the_belief_is_elsewhere():
    e = engine(theo="model")
    assert [p for _, p, _ in quotes(e, 1.10)] == [100, 111] and [p for _, p, _ in quotes(e, 0.90)] == [89, 100]


def test_widths_and_leans_have_limits():
    c = QuoteConfig(half_spread_ticks=2, min_half_spread_ticks=1, max_half_spread_ticks=5, offsets=Offsets(per_sigma=1.0, thin_ticks=9, full_lots=10))
    width = lambda **m: half_spread_ticks(c, **(dict(base=2.0, sigma_ticks=0.0, depth=10.0, unsure_ticks=0.0) | m))
    assert (width(), width(sigma_ticks=2.5), width(sigma_ticks=99.0), width(base=0.0), width(depth=0.0)) == (2.0, 4.5, 5.0, 1.0, 5.0)
    assert width(depth=99.0) == 2.0 and math.isnan(width(depth=NAN)) and math.isnan(width(depth=-1.0))
    for shape in ("linear", "tanh"):
        s = Skew(shape=shape, ticks=3)
        assert skew_ticks(99, skew=s, max_inventory_lots=10) == pytest.approx(-3) and skew_ticks(-99, skew=s, max_inventory_lots=10) == pytest.approx(3)


def test_the_adding_side_shrinks_and_the_reducing_side_does_not():
    e = engine(size=Size(lots=4, taper=0.5))
    assert [q for *_, q in quotes(e, inventory_lots=5.0)] == [3, 4] and [q for *_, q in quotes(e, inventory_lots=-5.0)] == [4, 3]


def test_a_size_that_lacks_its_number_is_none():
    for price, sigma in ((0.0, 1.0), (-1.0, 1.0), (NAN, 1.0)):
        assert size_lots(Size(by="capital", capital=10), price=price, sigma=sigma) == 0
    for sigma in (0.0, -1.0, NAN):
        assert size_lots(Size(by="volatility", risk=10), price=1.0, sigma=sigma) == 0
    assert size_lots(Size(by="capital", capital=10, max_lots=7), price=1.0) == 7


def test_quotes_are_not_thought_over_too_often():
    e = engine(refresh=Refresh(every_ms=1))
    quotes(e, now_ns=5)
    assert not e.due(5 + 999_999) and e.due(5 + 1_000_000)


@pytest.mark.parametrize("price, left, age, why", [(100, 10, 9, ""), (102, 10, 9, ""), (103, 10, 9, "price"), (97, 10, 9, "price"), (100, 6, 9, ""), (100, 5, 9, "size"),
                                                   (100, 15, 9, "size"), (100, 10, 50, "lifetime"), (102, 6, 49, "")])
def test_a_live_order_is_left_alone_within_the_tolerances(price, left, age, why):
    policy = RequotePolicy(tolerance_ticks=3, tolerance_size=0.5, max_life_ns=50)
    assert policy.why_move(gap_ticks=abs(price - 100), left_lots=left, want_lots=10, age_ns=age) == why


def test_worth_is_after_fees_and_the_adverse_move():
    ev = ExpectedValueMaker(Edge(fee_ticks=0.25, adverse=Adverse(bid_ticks=1.0, ask_ticks=0.5)))
    assert ev.value(1, 3.0) == pytest.approx(1.75) and ev.value(-1, 3.0) == pytest.approx(2.25)


def test_quoting_and_guard_lean_to_one_target():
    def data(target):
        return {"instruments": {"A": {"tick_size": 0.01}}, "quoting": {"style": "skewed", "max_inventory_lots": 5, "skew": {"shape": "linear", "ticks": 1.0, "target_lots": 2.0}},
                "risk": {"account": {"max_gross": 1e6, "max_loss": 100.0, "max_drawdown": 50.0},
                         "default": {"max_order_lots": 5, "max_order_value": 1e4, "max_position_lots": 10, "target_lots": target}}}

    assert check_config(data(2)).limits["A"].target_lots == 2 and check_config(data(0)).limits["A"].target_lots == 0
    with pytest.raises(ConfigError, match="the quotes would lean one way and the guard the other"):
        check_config(data(3))


def test_a_session_without_limits_on_the_account_is_told_so():
    with pytest.raises(ConfigError, match="a session cannot run without limits on the whole account"):
        check_config({"instruments": {"A": {"tick_size": 0.01}}, "quoting": {"levels": 1}, "risk": {"default": {"max_order_lots": 5, "max_order_value": 1e4, "max_position_lots": 10}}})
