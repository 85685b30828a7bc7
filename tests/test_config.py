"The whole configuration file: sections made from their classes, exceptions by symbol, agreements between sections, and never any exception but ConfigError."
import dataclasses
import datetime as dt
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError
from makerlab.execution.config import (EngineConfig, HedgingSection, InstrumentSection, VenueSection, check_config, config_report, construct, dataclass_section, load_config, merge)
from makerlab.execution.orders import OrderManager, Patience, RequotePolicy
from makerlab.execution.risk import AccountLimits, GreekLimits, Limits
from makerlab.models.quote_engine import ConfigError, build, describe_config

BASE = {"instruments": {"A": {"tick_size": 0.01}, "B": {"tick_size": 0.05, "lot_size": 10.0}}, "quoting": {"max_inventory_lots": 5},
        "risk": {"account": {"max_gross": 1e6, "max_loss": 100.0, "max_drawdown": 50.0}, "default": {"max_order_lots": 5, "max_order_value": 1e4, "max_position_lots": 10}}}


def over(**change):
    "The base with dotted keys changed; None removes."
    data = yaml.safe_load(yaml.safe_dump(BASE))
    for path, value in change.items():
        *parents, last = path.split("__")
        here = data
        for p in parents:
            here = here.setdefault(p, {})
        here[last] = value
    return data


def said(data):
    with pytest.raises(ConfigError) as e:
        check_config(data)
    return str(e.value)


def test_a_small_file_is_a_session(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(BASE))
    c = load_config(path)
    assert isinstance(c, EngineConfig) and set(c.quoting) == {"A", "B"} and c.strategy == "mm" and c.venue.kind == "replay" and c.venue.testnet
    assert c.engine("B").tick_size == 0.05 and c.throttle().windows[0].limit == 50
    assert c.engine("A") is not c.engine("A")
    ok, text = config_report(path)
    assert ok and "good" in text and "REAL ORDERS" not in text
    with pytest.raises(ParameterError):
        c.engine("C")
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.strategy = "x"


def test_quoted_names_what_is_quoted():
    c = check_config(over(quoted=["B"]))
    assert set(c.quoting) == {"B"} and set(c.limits) == {"A", "B"} and c.summary().loc["A", "style"] == "not quoted"


def test_exceptions_lie_over_the_general():
    c = check_config(over(quoting_for={"B": {"half_spread_ticks": 3, "size": {"lots": 2}}}, quoting__size={"lots": 1, "taper": 0.5}, risk__symbols={"A": {"max_order_lots": 2}}))
    assert (c.quoting["A"].half_spread_ticks, c.quoting["B"].half_spread_ticks) == (1.0, 3.0)
    assert c.quoting["B"].size.taper == 0.5 and c.quoting["B"].size.lots == 2 and (c.limits["A"].max_order_lots, c.limits["B"].max_order_lots) == (2, 5)


def test_an_option_is_quoted_until_it_expires():
    c = check_config(over(instruments__A={"tick_size": 0.01, "kind": "option", "strike": 1.0, "right": "put", "expiry": "1970-01-01T00:00:05Z"}, quoted=["A"]))
    quote = lambda now: len(c.engine("A").quotes(bid_ticks=99, ask_ticks=101, inventory_lots=0, now_ns=now))
    assert (quote(4_999_999_999), quote(5_000_000_000)) == (2, 0)


def test_requote_policy_follows_the_refresh_section():
    c = check_config(over(quoting__refresh={"every_ms": 50, "lifetime_ms": 900, "tolerance_ticks": 3, "tolerance_size": 0.25, "hanging": True, "hanging_ticks": 7},
                          quoting_for={"A": {"refresh": {"tolerance_ticks": 5, "hanging": False}}}, orders={"modify_moves": True}))
    assert c.requote == {"A": RequotePolicy(5, 0.25, 50_000_000, 900_000_000, 0, True), "B": RequotePolicy(3, 0.25, 50_000_000, 900_000_000, 7, True)}
    m = OrderManager(c.instruments, session="s1", policy=c.requote, patience=c.patience, throttle=c.throttle())
    assert m.policies == c.requote


def test_merge_keeps_lines_of_both():
    out, lines = merge({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}}, lines={("q",): 1, ("q", "a"): 2, ("q", "b", "d"): 4, ("f", "X"): 8, ("f", "X", "b", "c"): 9}, base_path=("q",), over_path=("f", "X"))
    assert out == {"a": 1, "b": {"c": 4, "d": 3}} and (lines["f", "X", "a"], lines["f", "X", "b", "d"], lines["f", "X", "b", "c"]) == (2, 4, 9)
    with pytest.raises(ConfigError, match="must be a mapping"):
        merge({}, 3, lines={}, base_path=("q",), over_path=("f", "X"))


@pytest.mark.parametrize("change, words", [
    (dict(strategy="too long a name"), "strategy: 'too long a name' must be 1 to 8 letters"), (dict(strategy=3), "strategy: 3 must be"),
    (dict(instruments={}), "instruments: is missing"), (dict(nonsense=1), "nonsense: unknown section"), (dict(instruments=[1]), "instruments: must be a mapping"),
    (dict(instruments__A=3), "instruments.A: must be a mapping"), (dict(instruments__A={}), "instruments.A.tick_size"), (dict(instruments__A__tick_size=0), "instruments.A.tick_size: 0 (price) must be greater than 0"),
    (dict(instruments__A__tick_size="0.01"), "must be a valid number"), (dict(instruments__A__right="call"), "instruments.A.right"),
    (dict(instruments__A={"tick_size": 0.01, "kind": "option", "right": "call", "expiry": "2026-06-19T20:00Z"}), "instruments.A.strike: is missing"),
    (dict(instruments__A={"tick_size": 0.01, "kind": "option", "strike": 1.0, "expiry": "2026-06-19T20:00Z"}), "instruments.A.right"),
    (dict(instruments__A={"tick_size": 0.01, "kind": "option", "strike": 1.0, "right": "put"}), "instruments.A.expiry"),
    (dict(instruments__A__expiry=dt.date(2026, 6, 19)), "must be a date with time and zone"), (dict(instruments__A__expiry=dt.datetime(2026, 6, 19)), "must have a time zone"),
    (dict(quoted=["Z"]), "'Z' is no instrument"), (dict(quoted="A"), "must be a list of symbols"), (dict(quoting_for={"Z": {}}), "quoting_for.Z"), (dict(risk__symbols={"Z": {}}), "risk.symbols.Z"),
    (dict(risk__extra=1), "risk.extra: unknown key"), (dict(risk__account=None), "risk.account"), (dict(risk__account__max_loss=-1), "max_loss = -1"), (dict(risk__default__max_age_ms=-1), "risk.default.max_age_ms"),
    (dict(risk__default__soft_position_lots=99), "risk.default.soft_position_lots"), (dict(orders={"windows": []}, quoting__levels=0), "quoting.levels"),
    (dict(orders={"windows": [{"limit": 5, "reserve": 5}]}), "orders.windows.0.reserve"), (dict(orders={"windows": 3}), "orders.windows"), (dict(orders={"in_flight_cap": -1}), "orders.in_flight_cap"),
    (dict(orders={"patience": {"timeout_ms": 0}}), "orders.patience.timeout_ms"), (dict(orders={"patience": {"timeout": 1}}), "did you mean timeout_ms?"),
    (dict(orders={"windows": [{"limit": 3, "reserve": 2}]}), "quoting.levels: 1 levels are 2 orders"),
    (dict(quoting__max_inventory_lots=11), "exceeds risk's max_position_lots = 10"), (dict(quoting__size={"lots": 6}, quoting__max_inventory_lots=8), "more than risk's max_order_lots = 5"),
    (dict(quoting__style="layered", quoting__levels=3, quoting__level_size_factor=3, quoting__max_inventory_lots=10), "the largest level shows 9 lots"),
    (dict(quoting__refresh={"every_ms": 9999}), "too old"), (dict(quoting__theo="option"), "option, but A is a spot"),
    (dict(risk__default__max_order_value=2e6), "risk.account.max_gross"), (dict(risk__default__target_lots=-2, quoting__short=False), "quoting.short"),
    (dict(quoting__refresh={"every_ms": 100, "lifetime_ms": 100}), "quoting.refresh.lifetime_ms: 100 ms is not longer"),
    (dict(risk__default__max_age_ms=1.8e302), "risk.default.max_age_ms: 1.8e+302 (ms) must be less than or equal to 9"),
    (dict(quoting__refresh={"every_ms": 1e300}), "quoting.refresh.every_ms: 1e+300 (ms) must be less"), (dict(quoting__refresh={"lifetime_ms": 1e303}), "quoting.refresh.lifetime_ms: 1e+303 (ms)"),
    (dict(orders={"windows": [{"limit": 5, "window_ms": 1e305}]}), "orders.windows.0.window_ms: 1e+305 (ms)"), (dict(orders={"patience": {"timeout_ms": 1e303}}), "orders.patience.timeout_ms: 1e+303 (ms)"),
    (dict(hedging={"every_ms": 1e303}), "hedging.every_ms: 1e+303 (ms)"), (dict(venue={"latency_ms": 1e303}), "venue.latency_ms: 1e+303 (ms)"),
    (dict(hedging={"rule": "band"}), "hedging.underlyings"), (dict(hedging={"rule": "band", "underlyings": {"A": {"max_delta": 5}}}), "hedging.underlyings.A.hedge_band: is missing"),
    (dict(hedging={"underlyings": {"A": {"max_delta": 5, "hedge_band": 2}}}), "is not used by rule none"), (dict(hedging={"rule": "band", "cost": 0.1, "underlyings": {"A": {}}}), "hedging.cost"),
    (dict(hedging={"rule": "whalley-wilmott", "underlyings": {"A": {"max_delta": 5}}}), "hedging.risk_aversion"), (dict(hedging={"underlyings": {"Z": {"max_delta": 5}}}), "neither an instrument nor the underlying"),
    (dict(hedging={"rule": "band", "underlyings": {"A": {"max_delta": 5, "hedge_band": 2, "hedge_symbol": "Q"}}}), "'Q' is no instrument"), (dict(hedging={"underlyings": {"A": 3}}), "must be a mapping"),
    (dict(venue={"kind": "live"}), "venue.name"), (dict(venue={"maker_fee_bps": math.nan}), "venue.maker_fee_bps"), (dict(venue=7), "venue: must be a mapping"),
])
def test_mistakes(change, words):
    assert words in said(over(**change))


@pytest.mark.parametrize("key", ["api_key", "apikey", "secret", "venue_password", "passphrase", "private_key", "token"])
def test_no_secrets_in_the_file(tmp_path, key):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(over(venue={key: "hunter2"})))
    ok, text = config_report(path)
    assert not ok and "a secret does not belong" in text


def test_a_live_session_says_so(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(over(venue={"kind": "live", "name": "somewhere", "testnet": False})))
    assert "WITH REAL ORDERS" in config_report(path)[1]


def test_all_sections_are_told_at_once():
    text = said(over(instruments__A__tick_size=-1, quoting__levels=0, risk__account__max_loss="x", venue={"kind": "z"}, orders={"in_flight_cap": 1.5}))
    assert all(w in text for w in ("instruments.A.tick_size", "quoting.levels", "risk.account.max_loss", "venue.kind", "orders.in_flight_cap"))


@pytest.mark.parametrize("cls", [Limits, GreekLimits, Patience, AccountLimits])
def test_sections_follow_their_classes(cls):
    section = dataclass_section(cls, skip=("greeks",))
    want = {f.name[:-3] + "_ms" if f.name.endswith("_ns") else f.name for f in dataclasses.fields(cls)} - {"greeks"}
    assert set(section.model_fields) == want and (describe_config(section)["meaning"].str.len() > 0).all()


@given(st.floats(0.001, 1e6))
def test_times_in_ms_become_ns(ms):
    made = construct(Limits, {"max_order_lots": 1, "max_order_value": 1.0, "max_position_lots": 1, "max_age_ms": ms}, lines={}, path=("risk",))
    assert made.max_age_ns == round(ms * 1e6) and made.max_lag_ns == Limits(1, 1.0, 1).max_lag_ns


def test_own_sections():
    assert build(InstrumentSection, {"tick_size": 0.01, "expiry": dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC)}).expiry_ns == 10**9
    assert build(InstrumentSection, {"tick_size": 0.01, "expiry": "1970-01-01T01:00:01+01:00"}).expiry_ns == 10**9
    assert build(HedgingSection, {}).rule == "none" and build(VenueSection, {}).testnet


leaf = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
paths = ["strategy", "instruments", "instruments__A", "instruments__A__tick_size", "instruments__A__kind", "instruments__A__expiry", "quoted", "quoting", "quoting__size", "quoting__skew", "quoting__edge",
         "quoting_for", "orders", "risk", "risk__account", "risk__default", "risk__default__max_age_ms", "risk__symbols", "hedging", "hedging__every_ms", "venue", "venue__latency_ms", "quoting__refresh__every_ms", "quoting__refresh__lifetime_ms", "quoting__refresh__tolerance_ticks",
         "quoting__max_inventory_lots", "quoting__size__lots", "orders__patience__timeout_ms", "orders__in_flight_cap"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(paths), leaf, min_size=1, max_size=3))
def test_any_content_is_a_session_or_a_config_error(change):
    try:
        data = over(**change)
    except (AttributeError, TypeError):
        return  # a parent was replaced by a leaf
    try:
        assert isinstance(check_config(data), EngineConfig)
    except ConfigError as e:
        assert e.problems and all(isinstance(p, str) for p in e.problems)
