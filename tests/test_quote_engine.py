"The quoting engine: legal on any input, monotone in inventory, within room, never raising for the market; its file refused with key and line."
import dataclasses
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from makerlab.core import DataError, ParameterError
from makerlab.models.cartea_jaimungal import fit_epsilon
from makerlab.models.quote_engine import (Adverse, ConfigError, Edge, ExpectedValueMaker, Offsets, QuoteConfig, QuoteEngine, QuoteInstruction, Refresh,
                                          Size, Skew, adverse_from_epsilon, adverse_ticks, build, describe_config, fit_adverse, load_config, read_yaml,
                                          size_lots, skew_ticks)

finite = lambda lo, hi: st.floats(lo, hi, allow_nan=False)
maybe = lambda lo, hi: st.one_of(st.just(math.nan), finite(lo, hi))


@st.composite
def configs(draw):
    "Any configuration that passes its own checks."
    style = draw(st.sampled_from(["single", "skewed", "layered", "edge"]))
    shapes = {"single": ["none"], "skewed": ["linear", "tanh", "table"]}.get(style, ["none", "linear", "tanh", "table"])
    shape = draw(st.sampled_from(shapes))
    skew = {"none": {}, "linear": dict(ticks=draw(finite(0.01, 20))), "tanh": dict(ticks=draw(finite(0.01, 20)), steepness=draw(finite(0.1, 10))),
            "table": dict(table=((-1.0, draw(finite(1, 9))), (-0.2, 1.0), (0.3, draw(finite(-3, 1))), (1.0, draw(finite(-9, -3)))))}[shape]
    inc, low = draw(st.sampled_from([1, 1, 2, 5])), draw(finite(0.5, 3))
    half = low + draw(finite(0, 5))
    adverse = Adverse(bid_ticks=draw(finite(-1, 3)), ask_ticks=draw(finite(-1, 3)), per_sigma=draw(st.sampled_from([0.0, 0.3])), per_imbalance=draw(st.sampled_from([0.0, 0.8])),
                      per_distance=draw(st.sampled_from([0.0, 0.4])))
    least = draw(st.one_of(st.none(), finite(-2, 3)))
    edge = dict(min_ticks=least, min_reducing_ticks=None if least is None else draw(st.one_of(st.none(), st.just(least - 1.0))), fee_ticks=draw(finite(-0.5, 0.5)), adverse=adverse)
    if style == "edge":
        edge |= dict(target_ticks=(0.0 if least is None else least) + draw(finite(0.1, 4)))
    return QuoteConfig(theo=draw(st.sampled_from(["mid", "microprice", "model"])), style=style, half_spread_ticks=half, min_half_spread_ticks=low,
                       max_half_spread_ticks=half + draw(finite(8, 40)), levels=draw(st.integers(2, 5)) if style == "layered" else 1, level_step_ticks=inc * draw(st.integers(1, 3)),
                       level_size_factor=draw(finite(0.5, 2)), price_increment_ticks=inc, max_inventory_lots=draw(finite(5, 30)), short=draw(st.booleans()),
                       skew=Skew(shape=shape, **skew), edge=Edge(**edge),
                       offsets=Offsets(per_sigma=draw(st.sampled_from([0.0, 0.5])), thin_ticks=draw(st.sampled_from([0.0, 2.0])), full_lots=10, imbalance_ticks=draw(finite(-2, 2))),
                       size=Size(lots=draw(st.integers(2, 9)), increment_lots=draw(st.sampled_from([1, 2])), taper=draw(finite(0, 1))))


@st.composite
def markets(draw):
    bid = draw(st.integers(20, 100_000))
    return dict(bid_ticks=bid, ask_ticks=bid + draw(st.integers(1, 30)), bid_lots=draw(finite(0, 50)), ask_lots=draw(finite(0.1, 50)), sigma=draw(maybe(0, 0.2)),
                depth=draw(st.one_of(st.none(), st.tuples(finite(0, 30), finite(0, 30)))), now_ns=7), bid * 0.01 + draw(finite(-0.3, 0.6))


def sides(orders):
    return [o for o in orders if o.side > 0], [o for o in orders if o.side < 0]


@settings(max_examples=150, deadline=None)
@given(configs(), markets(), finite(-40, 40))
def test_quotes_are_legal_on_the_grid_and_within_room(c, market, q):
    m, theo = market
    e = QuoteEngine(c, tick_size=0.01, lot_size=100, symbol="X")
    bids, asks = sides(e.quotes(theo, inventory_lots=q, **m))
    assert len(bids) <= c.levels and len(asks) <= c.levels
    for o in bids + asks:
        assert isinstance(o.price_ticks, int) and isinstance(o.qty_lots, int) and o.price_ticks > 0
        assert o.price_ticks % c.price_increment_ticks == 0 and o.qty_lots % c.size.increment_lots == 0 and c.size.min_lots <= o.qty_lots
        assert o.symbol == "X" and o.time_ns == 7 and o.reason
    assert all(o.price_ticks < m["ask_ticks"] for o in bids) and all(o.price_ticks > m["bid_ticks"] for o in asks)
    assert [o.price_ticks for o in bids] == sorted((o.price_ticks for o in bids), reverse=True) and [o.price_ticks for o in asks] == sorted(o.price_ticks for o in asks)
    if bids and asks:
        assert bids[0].price_ticks < asks[0].price_ticks
    if bids:
        assert q + sum(o.qty_lots for o in bids) <= c.max_inventory_lots + 1e-9
    if asks:
        assert q - sum(o.qty_lots for o in asks) >= (-c.max_inventory_lots if c.short else 0.0) - 1e-9
    for side, mine in ((1, bids), (-1, asks)):
        reduces = side * (q - c.skew.target_lots) < 0
        least = c.edge.min_reducing_ticks if reduces and c.edge.min_reducing_ticks is not None else c.edge.min_ticks
        if least is not None:
            assert all(o.edge > least for o in mine)


@settings(max_examples=120, deadline=None)
@given(configs(), markets(), finite(-40, 40), finite(0, 20))
def test_more_inventory_never_improves_the_side_that_adds(c, market, q, more):
    m, theo = market
    e = QuoteEngine(c, tick_size=0.01)
    (bids, asks), (bids2, asks2) = sides(e.quotes(theo, inventory_lots=q, **m)), sides(e.quotes(theo, inventory_lots=q + more, **m))
    best = lambda mine, none: mine[0].price_ticks if mine else none
    if not (e.refused and sum(e.refused.values()) and not (bids or asks or bids2 or asks2)):
        assert best(bids2, -math.inf) <= best(bids, -math.inf) if q >= c.skew.target_lots else True  # the bid adds
        assert best(asks, math.inf) >= best(asks2, math.inf) if q + more <= c.skew.target_lots else True  # the ask adds
    if bids and bids2:
        assert bids2[0].price_ticks <= bids[0].price_ticks  # monotone on either side
    if asks and asks2:
        assert asks2[0].price_ticks <= asks[0].price_ticks
    if q >= c.skew.target_lots:
        assert sum(o.qty_lots for o in bids2) <= sum(o.qty_lots for o in bids)


odd = st.sampled_from([None, math.nan, math.inf, -math.inf, 0, -5, 1e300, 7, 10.0])


@settings(max_examples=150, deadline=None)
@given(configs(), odd, odd, odd, odd, odd, odd.filter(lambda x: x is not None), odd.filter(lambda x: x is not None), odd)
def test_no_market_makes_it_raise(c, theo, bid, ask, bid_lots, ask_lots, q, sigma, imbalance):
    e = QuoteEngine(c, tick_size=0.01)
    lots = [0.0 if x is None else x for x in (bid_lots, ask_lots)]
    orders = e.quotes(theo, bid_ticks=bid, ask_ticks=ask, bid_lots=lots[0], ask_lots=lots[1], inventory_lots=q, sigma=sigma, imbalance=imbalance, now_ns=0)
    if len(sides(orders)[0]) == 0 or len(sides(orders)[1]) == 0:
        assert e.refused  # whatever is not quoted has a reason
    if not math.isfinite(q) or min(lots) < 0:
        assert not orders


@given(finite(-30, 30), finite(-30, 30), st.sampled_from(["linear", "tanh"]), finite(0.1, 9), finite(0.1, 40))
def test_lean_falls_and_is_bounded(a, b, shape, ticks, steep):
    s = Skew(shape=shape, ticks=ticks, steepness=steep)
    ya, yb = (skew_ticks(q, skew=s, max_inventory_lots=10) for q in (a, b))
    assert (ya - yb) * (a - b) <= 1e-9 and abs(ya) <= ticks * (1 + 1e-12)


@given(st.sampled_from([1, -1]), finite(-1, 5), maybe(0, 5).filter(lambda x: x == x), finite(0, 1), finite(0, 0.9))
def test_distance_is_the_inverse_of_value(side, wanted, sigma, share, slope):
    ev = ExpectedValueMaker(Edge(fee_ticks=0.1, adverse=Adverse(bid_ticks=0.4, ask_ticks=0.2, per_sigma=0.3, per_imbalance=0.6, per_distance=slope)))
    state = dict(sigma_ticks=sigma, imbalance=share)
    assert ev.value(side, ev.distance(side, wanted, **state), **state) == pytest.approx(wanted, abs=1e-9)


def test_edge_falls_as_the_heavier_queue_stands_against_us():
    a = Adverse(per_imbalance=1.0)
    assert adverse_ticks(a, 1, imbalance=0.9) < 0 < adverse_ticks(a, 1, imbalance=0.1) and adverse_ticks(a, -1, imbalance=0.9) > 0


def test_numbers_of_a_quote_by_hand():
    c = QuoteConfig(style="skewed", half_spread_ticks=2, skew=Skew(shape="linear", ticks=2), max_inventory_lots=10, size=Size(lots=4, taper=0.5),
                    edge=Edge(adverse=Adverse(bid_ticks=0.5, ask_ticks=0.25), fee_ticks=0.1))
    got = QuoteEngine(c, tick_size=0.01).quotes(bid_ticks=9_998, ask_ticks=10_002, inventory_lots=5, now_ns=1)
    assert [(o.side, o.price_ticks, o.qty_lots) for o in got] == [(1, 9_997, 3), (-1, 10_001, 4)]  # shift -1; 4 * (1 - 0.5 * 5/10) = 3
    assert [o.edge for o in got] == pytest.approx([3 - 0.5 - 0.1, 1 - 0.25 - 0.1]) and got[0].theo == pytest.approx(100.0)
    assert dict(got[0].meta)["shift_ticks"] == -1.0


def test_offsets_widen_the_right_side():
    c = QuoteConfig(half_spread_ticks=1, offsets=Offsets(thin_ticks=4, full_lots=10, per_sigma=1))
    got = QuoteEngine(c, tick_size=0.01).quotes(bid_ticks=9_998, ask_ticks=10_002, bid_lots=10, ask_lots=5, sigma=0.02, inventory_lots=0, now_ns=0)
    assert [o.price_ticks for o in got] == [10_000 - 3, 10_000 + 5]


def test_reason_says_what_moved_the_price():
    e = QuoteEngine(QuoteConfig(theo="model", half_spread_ticks=1, edge=Edge(min_ticks=2)), tick_size=0.01)
    assert {o.reason for o in e.quotes(100.0, bid_ticks=9_999, ask_ticks=10_001, inventory_lots=0, now_ns=0)} == {"single pushed out by edge"}
    bid = e.quotes(100.2, bid_ticks=9_999, ask_ticks=10_001, inventory_lots=0, now_ns=0)[0]
    assert bid.price_ticks == 10_000 and "kept passive" in bid.reason


def test_sizes_by_money():
    assert size_lots(Size(by="capital", capital=1000), price=math.nan) == 0 and size_lots(Size(by="capital", capital=1000, max_lots=3), price=1.0) == 3
    assert size_lots(Size(by="volatility", risk=10, horizon_s=4, increment_lots=5), price=1, sigma=0.5) == 10 and size_lots(Size(by="capital", capital=1), price=2.0) == 0


def test_drafted_instructions_are_instructions():
    got = QuoteEngine(QuoteConfig(), tick_size=0.01, symbol="X").quotes(bid_ticks=99, ask_ticks=101, bid_lots=1, ask_lots=2, sigma=0.1, inventory_lots=0, now_ns=3)[0]
    again = QuoteInstruction(**{f.name: getattr(got, f.name) for f in dataclasses.fields(got)})
    assert type(got) is QuoteInstruction and got == again and hash(got) == hash(again) and repr(got) == repr(again) and pickle.loads(pickle.dumps(got)) == got
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.side = -1


def test_a_strike_without_a_bid_and_an_option_without_a_value():
    c = QuoteConfig(theo="option", offsets=Offsets(vol_error=0.01))
    quote = lambda theo, **more: (e := QuoteEngine(c, tick_size=0.05)).quotes(theo, **({"bid_ticks": None, "ask_ticks": 20, "inventory_lots": 0, "now_ns": 0, "greeks": SimpleNamespace(delta=0.3, vega=2.0)} | more)) or list(e.refused)
    assert [(o.side, o.price_ticks) for o in quote(0.7)] == [(1, 12), (-1, 16)]  # 14 -/+ 1.4 ticks, rounded away
    assert quote(math.nan) == quote(None) == ["theo missing"] and quote(0.0) == quote(-0.1) == ["theo far from market"]  # worthless: nothing to quote
    assert quote(0.7, greeks=None) == quote(0.7, greeks=SimpleNamespace(delta=0.3, vega=math.nan)) == ["greeks missing"]
    assert quote(0.7, ask_ticks=None) == ["no market"] and quote(0.7, ask_lots=-3) == ["negative size"] and quote(0.7, bid_ticks=21) == ["crossed book"]
    only_ask = quote(0.04)  # the bid would stand at zero
    assert [o.side for o in only_ask] == [-1]


def test_an_expired_option_is_not_quoted():
    e = QuoteEngine(QuoteConfig(), tick_size=0.01, expiry_ns=100)
    assert len(e.quotes(bid_ticks=99, ask_ticks=101, inventory_lots=0, now_ns=99)) == 2
    assert e.quotes(bid_ticks=99, ask_ticks=101, inventory_lots=0, now_ns=100) == [] and e.refused == {"expired": 1}


def test_from_a_top_of_book():
    top = SimpleNamespace(bid_ticks=99, ask_ticks=101, bid_lots=1.0, ask_lots=1.0)
    e = QuoteEngine(QuoteConfig(), tick_size=0.01)
    assert e.quotes_top(top, inventory_lots=0, now_ns=0) == e.quotes(bid_ticks=99, ask_ticks=101, bid_lots=1, ask_lots=1, inventory_lots=0, now_ns=0)


def test_due_follows_the_refresh_rate():
    e = QuoteEngine(QuoteConfig(refresh=Refresh(every_ms=1)), tick_size=0.01)
    assert e.due(0)
    e.quotes(bid_ticks=99, ask_ticks=101, inventory_lots=0, now_ns=5)
    assert not e.due(5 + 999_999) and e.due(5 + 1_000_000)


def test_instructions_do_not_change():
    o = QuoteInstruction("X", 1, 100, 1, "r")
    with pytest.raises(dataclasses.FrozenInstanceError):
        o.price_ticks = 2
    assert not hasattr(o, "__dict__") and dataclasses.replace(o, qty_lots=3).qty_lots == 3


# ---- the file

def said(tmp_path, text):
    path = tmp_path / "q.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_config(path)
    return str(e.value)


@pytest.mark.parametrize("text, words", [
    ("half_spread: 2", "half_spread, line 1: unknown key: did you mean half_spread_ticks?"),
    ("zzz: 2", "zzz, line 1: unknown key: there are theo"),
    ("\n\nskew:\n  shape: cubic", "skew.shape, line 4: 'cubic' must be 'none', 'linear', 'tanh' or 'table'"),
    ("half_spread_ticks: .nan", "half_spread_ticks, line 1: nan (ticks) must be a finite number"),
    ("size: {lots: -1}", "size.lots, line 1: -1 (lots) must be greater than or equal to 1"),
    ("max_inventory_lots: 0", "max_inventory_lots, line 1: 0 (lots) must be greater than 0"),
    ("size: {by: capital, capital: 1e6}", "write a power of ten as 1.0e+6"),
    ("levels: true", "levels, line 1: True must be a valid integer"),
    ("levels: 2\nstyle: layered\nlevels: 3", "levels, line 3: stands twice, first in line 1"),
    ("edge: {min_ticks: 3}\nmax_half_spread_ticks: 3", "edge.min_ticks, line 1: 3.0 ticks can never be earned"),
    ("edge: {min_ticks: 3}\nstyle: edge", "edge.target_ticks, line 1: None with style edge: style edge needs target_ticks"),
    ("style: edge\nedge: {target_ticks: 1, decay_per_tick: 1}", "edge.target_ticks, line 2: and decay_per_tick both set"),
    ("style: edge\nedge: {target_ticks: 1, min_ticks: 1}", "edge.min_ticks, line 2: 1 ticks is not below the target"),
    ("edge: {min_reducing_ticks: 1}", "edge.min_reducing_ticks, line 1"),
    ("half_spread_ticks: 1\nmin_half_spread_ticks: 2", "half_spread_ticks, line 1: 1 ticks must lie between"),
    ("style: skewed", "skew.shape: none with style skewed"),
    ("style: skewed\nskew: {shape: linear}", "skew.ticks, line 2: 0 ticks with shape linear"),
    ("style: skewed\nskew: {shape: table, table: [[-1, 0], [1, 2]]}", "the shift never rise"),
    ("style: skewed\nskew: {shape: table, table: [[0, 0]]}", "at least two points"),
    ("skew: {table: [[0, 1], [1, 0]]}", "is not used by shape none"),
    ("skew: {target_lots: 99}", "skew.target_lots, line 1: 99 lots lies beyond max_inventory_lots"),
    ("size: {by: volatility}", "size.risk, line 1: 0 with by volatility"),
    ("size: {lots: 3, increment_lots: 5}", "size.min_lots, line 1: 1 lots can never be shown"),
    ("max_inventory_lots: 2\nsize: {min_lots: 3, lots: 3}", "leaves no room"),
    ("manual_theo: 3", "manual_theo, line 1: is not used by theo mid"),
    ("microprice_ticks: [1, 2]", "is not used by theo mid"),
    ("refresh: {every_ms: 10, lifetime_ms: 5}", "refresh.lifetime_ms, line 1: 5 ms is not longer"),
    ("style: layered\nlevels: 2\nprice_increment_ticks: 5\nlevel_step_ticks: 3", "level_step_ticks, line 4: 3 ticks must be a multiple"),
    ("skew: 3", "skew, line 1: 3 must be a mapping"),
    ("quoting:\n  levels: 0", "quoting.levels, line 2: 0 must be greater than or equal to 1"),
    ("quoting: 3", "quoting, line 1: must be a mapping"),
    ("a: [1", "line 1: not YAML"), ("- 1", "must be a mapping"), ("a: 1\n---\nb: 2", "not YAML"), ("a: &x\n  b: *x", "unknown key"), ("a: !!python/object:os.system {}", "not YAML"),
    ("1: 2", "unknown key"), ("? [1, 2]\n: 3", "not YAML"),
])
def test_mistakes_are_told_by_key_and_line(tmp_path, text, words):
    assert words in said(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path):
    assert said(tmp_path, "theo: x\nlevels: 0\nnope: 1").count("\n") == 2


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "b.yaml")


def test_good_files(tmp_path):
    (tmp_path / "e.yaml").write_text("")
    assert load_config(tmp_path / "e.yaml") == QuoteConfig()
    (tmp_path / "q.yaml").write_text("risk: {a: 1}\nquoting:\n  style: layered\n  levels: 3\n  skew: {shape: table, table: [[-1, 2], [1, -2]]}\n  half_spread_ticks: 2\n")
    c = load_config(tmp_path / "q.yaml")
    assert (c.levels, c.skew.table, c.half_spread_ticks) == (3, ((-1.0, 2.0), (1.0, -2.0)), 2.0)
    assert read_yaml(tmp_path / "q.yaml")[1][("quoting", "skew", "shape")] == 5


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_config_or_a_config_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "x.yaml"
    path.write_text(text, encoding="utf8", errors="replace")
    try:
        load_config(path)
    except ConfigError as e:
        assert e.problems


def test_config_is_frozen_and_every_key_is_documented():
    with pytest.raises(ValidationError):
        QuoteConfig().levels = 3
    table = describe_config()
    assert (table["meaning"].str.len() > 5).all() and "edge.adverse.per_distance" in table.index and table.loc["half_spread_ticks", "unit"] == "ticks"
    assert isinstance(build(Size, {"lots": 2}), Size) and issubclass(ConfigError, ParameterError)


@pytest.mark.parametrize("bad", [dict(tick_size=0.0), dict(tick_size=-1.0), dict(tick_size=math.nan), dict(tick_size=0.01, lot_size=0.0), dict(tick_size=0.01, multiplier=-1)])
def test_instrument_numbers_are_checked(bad):
    with pytest.raises(ParameterError, match="must be"):
        QuoteEngine(QuoteConfig(), **bad)


# ---- the adverse move

def made(rng, n=400):
    side = rng.choice([1, -1], n)
    return pd.DataFrame({"step": np.sort(rng.integers(0, 9_000, n)), "horizon": 5, "side": side, "price": 100 - side * rng.uniform(0.01, 0.04, n), "mark": 100.0, "qty": 2.0,
                         "markout_pnl": -2 * 0.01 * (np.where(side > 0, 0.5, 1.5) + rng.normal(size=n))})


def test_fit_adverse_and_epsilon_agree(rng=np.random.default_rng(5)):
    table = made(rng)
    fit = fit_adverse(table, tick_size=0.01)
    assert abs(fit.params["bid_ticks"] + 0.0 - 0.5) < 4 * fit.bse["bid_ticks"] and fit.adverse().per_distance >= 0 and "per_sigma" not in fit.params
    flat = adverse_from_epsilon(fit_epsilon(table), tick_size=0.01)
    bought, sold = (table[table["side"] == s]["markout_pnl"].mean() / -0.02 for s in (1, -1))
    assert (flat.bid_ticks, flat.ask_ticks) == pytest.approx((bought, sold))


def test_fit_adverse_refuses(rng=np.random.default_rng(6)):
    table = made(rng)
    for bad, words in ((table.drop(columns="mark"), "missing column"), (table[table["side"] > 0], "both sides"), (table.head(10), "30 of both sides")):
        with pytest.raises(DataError, match=words):
            fit_adverse(bad, tick_size=0.01)
    with pytest.raises(ParameterError):
        fit_adverse(table, tick_size=0.0)
