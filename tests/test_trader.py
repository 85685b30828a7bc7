"The decision pipeline and what feeds it: what it refuses, what it cancels, hedges and flattens, and that it is a function of what it heard."
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import NS_PER_S, ParameterError
from makerlab.execution.orders import OrderManager, State
from makerlab.execution.risk import AccountLimits, GreekLimits, Halt, Hedge, Limits, MemoryLatch, RiskGuard, TradingState
from makerlab.execution.throttle import SlidingWindow, Throttle
from makerlab.execution.trader import RequestDigest, Trader, standing_aside
from makerlab.execution.valuation import EwVolatility, OptionValuer, SpotValuer, Value, ValuerTeam
from makerlab.execution.venue import CancelOrder, Instrument, NewOrder, OpenOrder, QueryOrder, Report, TopOfBook, VenueSnapshot, instruments
from makerlab.models.quote_engine import QuoteConfig, QuoteEngine

S = NS_PER_S
NOON = 1_714_752_000 * S
CALL = Instrument("X-C100", 0.05, multiplier=100, kind="option", underlying="X", strike=100.0, expiry_ns=NOON + 30 * 86_400 * S, right="call")
SHARE = Instrument("X", 0.01)


class Fixed:
    "A valuer that says what it was told to say."

    def __init__(self, **values):
        self.values = values

    def on_market(self, top, *, now_ns):
        return (top.symbol,)

    def value(self, symbol, *, now_ns):
        return self.values.get(symbol)


def desk(items=(SHARE,), *, valuer=None, limits=None, account=None, quote=None, quoted=("X",), **parts):
    table = instruments(items)
    limits = {s: Limits(max_order_lots=50, max_order_value=1e6, max_position_lots=100, max_fills=1000, **(limits or {})) for s in table}
    guard = RiskGuard(limits, account=AccountLimits(**{"max_gross": 1e7, "max_loss": 1e4, "max_drawdown": 1e4, **(account or {})}), instruments=table, latch=MemoryLatch())
    orders = OrderManager(table, session="t", throttle=Throttle([SlidingWindow(50, S, 10)]), approve=guard.approve)
    config = QuoteConfig(**(quote or dict(half_spread_ticks=1.0, max_inventory_lots=100, size={"lots": 4})))
    engines = {s: QuoteEngine(config, tick_size=table[s].tick_size, symbol=s, multiplier=table[s].multiplier) for s in quoted}
    return Trader(engines=engines, orders=orders, guard=guard, valuer=valuer or Fixed(X=Value(sigma=0.01)), **parts)


def top(bid, ask, now, symbol="X", **more):
    return TopOfBook(symbol, bid, ask, 10, 10, now, now, **more)


def accept(trader, requests, now):
    "A venue that takes everything; returns what the trader sends because of it."
    out = []
    for r in requests:
        if isinstance(r, NewOrder):
            out += trader.on_report(Report("accepted", r.client_id, r.symbol, r.side, now, price_ticks=r.price_ticks, qty_lots=r.qty_lots), now_ns=now)
        elif isinstance(r, CancelOrder):
            out += trader.on_report(Report("cancelled", r.client_id, time_ns=now, definitive=True), now_ns=now)
    return out


def fill(trader, order, lots, now, exec_id, left=0):
    return trader.on_report(Report("fill", order.client_id, order.symbol, order.side, now, exec_id, order.price_ticks, lots, order.qty_lots - left, left), now_ns=now)


def test_refuses_parts_that_do_not_belong_together():
    t = desk()
    stranger = OrderManager(t.orders.instruments, session="z")
    with pytest.raises(ParameterError, match="not this guard's"):
        Trader(engines=t.engines, orders=stranger, guard=t.guard, valuer=t.valuer)
    with pytest.raises(ParameterError, match="without limits"):
        Trader(engines={"Y": t.engines["X"]}, orders=t.orders, guard=t.guard, valuer=t.valuer)
    with pytest.raises(ParameterError, match="slippage_ticks"):
        Trader(engines=t.engines, orders=t.orders, guard=t.guard, valuer=t.valuer, slippage_ticks=-1)


def test_a_market_makes_two_quotes_and_a_lost_value_withdraws_them():
    t = desk()
    sent = t.on_market(top(10_000, 10_002, 0), now_ns=0)
    assert sorted((r.side, r.price_ticks) for r in sent) == [(-1, 10_002), (1, 10_000)]
    accept(t, sent, 0)
    t.valuer.values.clear()
    gone = t.on_market(top(10_000, 10_002, S), now_ns=S)
    assert {r.client_id for r in gone if isinstance(r, CancelOrder)} == {r.client_id for r in sent}
    assert t.aside == {"no value": 1} and t.decisions[-1].why == "no value"


@pytest.mark.parametrize(("breakage", "why"), [
    (lambda t: t.guard.on_connection(False, 0), "connection"),
    (lambda t: t.guard.kill("x", 0), "halted"),
    (lambda t: t.guard.latch.trip("X", "x", 0), "disabled"),
    (lambda t: setattr(t.guard, "until_ns", 10 * S), "breaker"),
    (lambda t: setattr(t.guard.tracks["X"], "until_ns", 10 * S), "breaker"),
    (lambda t: t.tops.update(X=top(10_000, 10_002, 0, synced=False)), "no book"),
    (lambda t: t.tops.clear(), "no book"),
    (lambda t: t.tops.update(X=top(10_000, 10_002, -100 * S)), "stale"),
])
def test_why_it_stands_aside(breakage, why):
    t = desk()
    t.on_market(top(10_000, 10_002, 0), now_ns=0)
    assert standing_aside(t.guard, t.tops["X"], "X", 0) == ""
    breakage(t)
    assert standing_aside(t.guard, t.tops.get("X"), "X", 0) == why
    denied = sum(t.guard.denied.values())
    t.on_timer(now_ns=1)
    assert sum(t.guard.denied.values()) == denied, "it asked for what could only be denied"


def states():
    "Requests and reports that bring the two quotes of a desk into each state in which an order may still execute."
    yield "PENDING_NEW", lambda t, sent: None
    yield "WORKING", lambda t, sent: accept(t, sent, 1)
    yield "PARTIAL", lambda t, sent: (accept(t, sent, 1), fill(t, sent[0], 1, 1, "e1", left=3))
    yield "UNKNOWN", lambda t, sent: [t.on_report(Report("unknown", r.client_id), now_ns=1) for r in sent]


@pytest.mark.parametrize(("name", "arrange"), list(states()), ids=lambda x: x if isinstance(x, str) else "")
def test_kill_cancels_whatever_may_execute(name, arrange):
    t = desk()
    sent = t.on_market(top(10_000, 10_002, 0), now_ns=0)
    arrange(t, sent)
    assert any(o.state.value.upper() == name for o in t.orders.live()), [o.state for o in t.orders.live()]
    out = t.kill("test", now_ns=2)
    now, heard = 2, {r.client_id for r in out if isinstance(r, CancelOrder)}
    for _ in range(40):  # the throttle's windows pass, doubts are asked about
        now += S // 2
        more = t.on_timer(now_ns=now)
        assert not any(isinstance(r, NewOrder) for r in more)
        heard |= {r.client_id for r in more if isinstance(r, CancelOrder | QueryOrder)}
    assert heard >= {o.client_id for o in t.orders.live()}
    assert t.guard.state is TradingState.HALTED
    assert any(isinstance(a, Halt) for a in t.take_alerts()) and t.take_alerts() == []
    with pytest.raises(ParameterError, match="operator"):
        t.rearm("", now_ns=now)
    for o in list(t.orders.live()):
        t.on_report(Report("cancelled", o.client_id, time_ns=now, definitive=True), now_ns=now)
    assert t.on_market(top(10_000, 10_002, now), now_ns=now) == []
    assert any(isinstance(r, NewOrder) for r in t.rearm("someone", now_ns=now + 1))


def option_desk(**parts):
    valuer = ValuerTeam(OptionValuer(instruments([SHARE, CALL]), underlying="X", rate=0.0), Fixed(X=Value(sigma=0.01)))
    valuer.members[0].set_vols({"X-C100": 0.2}, now_ns=NOON)
    return desk((SHARE, CALL), valuer=valuer, account={"greeks": {"X": GreekLimits(max_delta=5000.0, hedge_band=100.0)}}, limits={"one_sided": True, "collar_ticks": 5},
                quoted=parts.pop("quoted", ("X-C100",)), quote=dict(theo="option", half_spread_ticks=1.0, max_inventory_lots=100, size={"lots": 2}) if parts.pop("option", True) else None, **parts)


def test_an_option_fill_is_hedged_once_with_the_underlying():
    t = option_desk()
    t.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    sent = t.on_market(top(40, 60, NOON, "X-C100"), now_ns=NOON)
    ask = next(r for r in sent if r.side < 0)
    accept(t, sent, NOON)
    delta = t.valuer.value("X-C100", now_ns=NOON).delta
    hedge = [r for r in fill(t, ask, 2, NOON + 1, "e1") if isinstance(r, NewOrder) and r.symbol == "X"]
    assert [(r.side, r.kind, r.qty_lots) for r in hedge] == [(1, "ioc", 50)], "one order of at most max_order_lots"
    assert hedge[0].price_ticks == 10_001 + t.slippage_ticks and not hedge[0].reduce_only
    assert not [r for r in t.on_timer(now_ns=NOON + 2) if isinstance(r, NewOrder) and r.symbol == "X"], "the first is on its way"
    fill(t, hedge[0], 50, NOON + 3, "h1")
    later = NOON + S
    t.on_market(top(9_999, 10_001, later), now_ns=later)
    rest = [r for r in t.on_market(top(40, 60, later, "X-C100"), now_ns=later) if isinstance(r, NewOrder) and r.symbol == "X"]
    bought = 50 + sum(r.qty_lots for r in rest)
    assert abs(bought - 200 * delta) <= 100 or bought == 100


def test_an_own_quote_in_the_way_of_a_hedge_goes_first():
    t = option_desk(quoted=("X",), option=False)
    sent = t.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    accept(t, sent, NOON)
    t.orders.positions["X-C100"] = -4
    t.guard.tracks["X-C100"].ledger.position = -4
    t.on_market(top(40, 60, NOON, "X-C100"), now_ns=NOON)
    out = t.on_timer(now_ns=NOON + S)
    ours = next(r for r in sent if r.side < 0)
    assert CancelOrder(ours.client_id, out[0].reason) == out[0] and "in the way" in out[0].reason
    assert not [r for r in out if isinstance(r, NewOrder) and r.kind == "ioc"]
    after = t.on_report(Report("cancelled", ours.client_id, time_ns=NOON, definitive=True), now_ns=NOON + S + 1)
    assert [(r.symbol, r.side) for r in after if isinstance(r, NewOrder) and r.kind == "ioc"] == [("X", 1)]


def test_a_loss_is_flattened_with_reduce_only_orders_and_then_halted():
    t = desk(account={"max_loss": 1.0, "max_drawdown": 1.0})
    sent = t.on_market(top(10_000, 10_002, 0), now_ns=0)
    accept(t, sent, 0)
    bid = next(r for r in sent if r.side > 0)
    now = S
    fill(t, bid, 4, now, "e1")
    assert t.orders.position("X") == 4
    out = []
    for i in range(60):  # the market falls a tick at a time, so that no breaker opens: 4 lots lose 0.04 a tick
        now += S
        out += t.on_market(top(10_000 - i, 10_002 - i, now), now_ns=now)
        for r in [r for r in out if isinstance(r, CancelOrder)]:
            out += t.on_report(Report("cancelled", r.client_id, time_ns=now, definitive=True), now_ns=now)
        if any(isinstance(r, NewOrder) and r.reduce_only for r in out):
            break
    flat = next(r for r in out if isinstance(r, NewOrder) and r.reduce_only)
    assert (flat.side, flat.qty_lots, flat.kind) == (-1, t.orders.position("X"), "ioc")
    fill(t, flat, flat.qty_lots, now, "f1")
    t.on_timer(now_ns=now + 1)
    assert t.orders.position("X") == 0 and t.guard.state is TradingState.HALTED
    assert any(isinstance(a, Halt) for a in t.take_alerts())


def test_without_a_price_no_order_takes():
    t = option_desk(quoted=("X",), option=False)
    t.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    t.orders.positions["X-C100"] = -4
    t.on_market(top(9_999, 0, NOON + 1), now_ns=NOON + 1)
    out = t.on_timer(now_ns=NOON + S)
    assert not [r for r in out if isinstance(r, NewOrder)]


def test_a_reconnection_waits_for_a_snapshot_and_adopts_the_position():
    t = desk()
    accept(t, t.on_market(top(10_000, 10_002, 0), now_ns=0), 0)
    t.on_report(Report("disconnected", reason="v"), now_ns=S)
    t.on_report(Report("reconnected", reason="v"), now_ns=2 * S)
    assert t.wants_snapshot and not t.orders.synced
    t.on_market(top(10_000, 10_002, 20 * S), now_ns=20 * S)
    for now in (20 * S, 30 * S):  # two snapshots that agree
        t.on_snapshot(VenueSnapshot(now, (), (), {"X": 7}), now_ns=now)
    assert t.orders.position("X") == 7 == t.guard.tracks["X"].ledger.position
    assert t.guard.tracks["X"].ledger.cost_ticks == 10_001


def test_adopted_lots_leave_the_cost_of_those_held_and_wait_for_a_price():
    t = desk()
    for now in (0, 10 * S):
        t.on_snapshot(VenueSnapshot(now, (), (), {"X": 5}), now_ns=now)
    assert t.orders.position("X") == 5 and t.guard.tracks["X"].ledger.position == 0, "no market yet, no price"
    t.on_market(top(10_000, 10_002, 11 * S), now_ns=11 * S)
    ledger = t.guard.tracks["X"].ledger
    assert (ledger.position, ledger.cost_ticks) == (5, 10_001)
    t.on_market(top(10_100, 10_102, 40 * S), now_ns=40 * S)
    for now in (41 * S, 60 * S):
        t.on_snapshot(VenueSnapshot(now, (), (), {"X": 10}), now_ns=now)
    assert (ledger.position, ledger.cost_ticks) == (10, 10_051), "half at the old price, half at the new"


def test_a_link_is_back_whatever_words_the_venue_finds():
    t = desk()
    t.on_report(Report("disconnected", reason="reset by peer"), now_ns=S)
    assert t.guard.down
    t.on_report(Report("reconnected", reason="welcome"), now_ns=2 * S)
    assert not t.guard.down


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.tuples(st.sampled_from("mmmmtfxu"), st.integers(-3, 3), st.integers(0, 2)), max_size=60))
def test_same_history_same_requests_and_limits_hold(steps):
    def run():
        t, digest, now, live, n, mid = desk(), RequestDigest(), 0, [], 0, 10_000
        for kind, step, pick in steps:
            now += S // 3
            mid += step
            if kind == "m":
                out = t.on_market(top(mid - 1, mid + 1, now), now_ns=now)
            elif kind == "t":
                out = t.on_timer(now_ns=now)
            elif live:
                r = live[pick % len(live)]
                n += 1
                out = fill(t, r, 1, now, f"e{n}", left=1) if kind == "f" else t.on_report(Report("unknown" if kind == "u" else "cancelled", r.client_id, time_ns=now, definitive=True), now_ns=now)
            else:
                continue
            digest.add(out, now)
            live += [r for r in out if isinstance(r, NewOrder)]
            e = t.orders.exposure("X")
            assert e.worst_long_lots <= 100 and e.worst_short_lots >= -100
            assert t.guard.tracks["X"].ledger.position == t.orders.position("X")
        return str(digest), [e.kind for e in t.take_events()]
    assert run() == run()


# ---- valuation

@settings(deadline=None, max_examples=80)
@given(gaps=st.lists(st.integers(1, 5 * 10**9), min_size=2, max_size=80), seed=st.integers(0, 2**32 - 1), half=st.floats(1.0, 1e4), sample=st.floats(0.001, 5.0))
def test_ew_volatility_is_its_slow_twin(gaps, seed, half, sample):
    t, m = np.cumsum(gaps), 100 + np.cumsum(np.random.default_rng(seed).standard_normal(len(gaps)))
    v, kept = EwVolatility(half, sample_s=sample, warm=1), [0]
    for i in range(len(gaps)):
        v.add(float(m[i]), int(t[i]))
        if i and t[i] - t[kept[-1]] >= sample * NS_PER_S:
            kept.append(i)
    if len(kept) < 2:
        assert math.isnan(v.sigma)
        return
    w = 2.0 ** (-(t[kept][-1] - t[kept][1:]) / (half * NS_PER_S))
    want = math.sqrt((w * np.diff(m[kept]) ** 2).sum() / (w * np.diff(t[kept]) / NS_PER_S).sum())
    assert v.sigma == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("bad", [dict(half_life_s=0.0), dict(half_life_s=math.nan), dict(sample_s=-1.0), dict(warm=-1)])
def test_ew_volatility_refuses(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        EwVolatility(**bad)


def test_a_nan_or_an_old_price_changes_nothing():
    v = EwVolatility(60.0, warm=1)
    for i, m in enumerate((1.0, 2.0)):
        v.add(m, i * S)
    before = v.sigma
    v.add(math.nan, 2 * S)
    v.add(math.inf, 3 * S)
    v.add(9.0, 0)
    assert v.sigma == before == 1.0


def test_spot_valuer_is_silent_until_warm_and_for_strangers():
    v = SpotValuer(instruments([SHARE]), warm=2)
    assert v.on_market(top(1, 2, 0, "Z"), now_ns=0) == () and v.value("Z", now_ns=0) is None
    for i in range(3):
        assert v.value("X", now_ns=i * S) is None
        v.on_market(top(100 + i, 102 + i, i * S), now_ns=i * S)
    assert v.value("X", now_ns=3 * S).sigma == pytest.approx(0.01)
    v.on_market(top(500, 400, 4 * S), now_ns=4 * S)
    assert v.value("X", now_ns=4 * S).sigma == pytest.approx(0.01), "a crossed book is no price"


def test_option_valuer_knows_when_to_be_silent_and_what_moved():
    table = instruments([SHARE, CALL])
    v = OptionValuer(table, underlying="X", move_ticks=1.0, max_vol_age_s=60.0, lean=lambda symbol, g: 0.25)
    assert v.value("X-C100", now_ns=NOON) is None
    v.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    v.set_vols({"X-C100": 0.2}, now_ns=NOON)
    plain = OptionValuer(table, underlying="X")
    plain.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    plain.set_vols({"X-C100": 0.2}, now_ns=NOON)
    assert v.value("X-C100", now_ns=NOON).theo == plain.value("X-C100", now_ns=NOON).theo + 0.25
    assert v.on_market(top(10_000, 10_002, NOON), now_ns=NOON) == (), "half a cent moves no option by a tick"
    assert v.on_market(top(10_019, 10_021, NOON), now_ns=NOON) == ("X-C100",)
    assert v.value("X-C100", now_ns=NOON + 61 * S) is None, "the volatility is old"
    v.set_vols({"X-C100": 0.2}, now_ns=CALL.expiry_ns)
    assert v.value("X-C100", now_ns=CALL.expiry_ns) is None, "expired"
    with pytest.raises(ParameterError, match="vols"):
        v.set_vols({"X-C100": 0.0}, now_ns=NOON)
    assert v.value("Y", now_ns=NOON) is None


def test_states_are_spelled_as_here():
    assert {"PENDING_NEW", "WORKING", "PARTIAL", "UNKNOWN"} <= {s.value.upper() for s in State}


# ---- guards, one at a time (tools/mutants.py switches each of them off)

def short_calls(calls=4, **parts):
    "A desk without quotes that owes calls: the guard asks for a hedge once it has looked, at NOON + S // 10."
    t = option_desk(quoted=(), option=False, **parts)
    t.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    t.orders.positions["X-C100"] = t.guard.tracks["X-C100"].ledger.position = -calls
    t.on_market(top(40, 60, NOON, "X-C100"), now_ns=NOON)
    return t


def test_a_hedge_that_ended_at_once_waits_for_the_pause():
    t = short_calls(take_pause_ns=S // 2)
    first = NOON + S // 10
    hedge, = t.on_timer(now_ns=first)
    assert hedge.kind == "ioc"
    assert t.on_report(Report("cancelled", hedge.client_id, time_ns=NOON, definitive=True), now_ns=first + S // 10) == []
    assert t.on_timer(now_ns=first + S // 2 - 1) == []
    assert [(r.symbol, r.side, r.kind) for r in t.on_timer(now_ns=first + S // 2)] == [("X", 1, "ioc")]


def test_a_taking_order_never_has_a_price_of_nothing():
    t = desk(quoted=(), slippage_ticks=5, hedger=lambda trader, now: [Hedge("X", -1, 1, "by hand")], limits={"collar_ticks": 10})
    sent = t.on_market(top(2, 4, 0), now_ns=0)
    assert [(r.side, r.price_ticks, r.kind) for r in sent] == [(-1, 1, "ioc")]


def test_nothing_takes_from_a_side_that_is_not_there():
    t = desk(quoted=(), hedger=lambda trader, now: [Hedge("X", 1, 1, "by hand")], hedge_every_ns=1, limits={"one_sided": True})
    assert t.on_timer(now_ns=0) == []
    assert t.on_market(top(9_999, 0, 1), now_ns=1) == [] and not t.orders.orders, "it asked for what could only be denied"
    assert [(r.side, r.price_ticks) for r in t.on_market(top(9_999, 10_001, 2), now_ns=2)] == [(1, 10_001 + t.slippage_ticks)]


def test_a_kill_cancels_orders_that_others_placed():
    t = desk()
    t.on_market(top(10_000, 10_002, 0), now_ns=0)
    assert t.on_snapshot(VenueSnapshot(0, (OpenOrder("stranger", "X", -1, 10_050, 7),), (), {}), now_ns=1) == [], "left alone while we trade"
    assert "stranger" in {r.client_id for r in t.kill("x", now_ns=2) if isinstance(r, CancelOrder)}


def test_a_timer_thinks_over_what_no_market_mentions():
    t = desk()
    t.on_market(top(10_000, 10_002, 0), now_ns=0)
    t.on_timer(now_ns=20 * S)
    assert [d.why for d in t.decisions] == ["", "stale"]


def test_the_hedger_is_asked_now_and_then_and_only_while_we_trade():
    asked = []
    t = desk(hedger=lambda trader, now: asked.append(now) or [], hedge_every_ns=S)
    t.on_market(top(10_000, 10_002, 0), now_ns=0)
    for now in (S - 1, S, S + 1):
        t.on_timer(now_ns=now)
    assert asked == [0, S]
    t.kill("x", now_ns=3 * S)
    t.on_timer(now_ns=5 * S)
    assert asked == [0, S]
    t.rearm("someone", now_ns=6 * S)
    assert asked == [0, S, 6 * S]


def test_quotes_shrink_with_the_guards_soft_limit():
    t = desk(limits={"soft_position_lots": 10})
    t.orders.positions["X"] = t.guard.tracks["X"].ledger.position = 90
    sent = t.on_market(top(10_000, 10_002, 0), now_ns=0)
    d = t.decisions[-1]
    assert {w.side: w.qty_lots for w in d.wanted} == {1: 4, -1: 4}
    assert {r.side: r.qty_lots for r in sent} == {w.side: w.qty_lots for w in d.allowed} and d.allowed != d.wanted
    assert sum(r.qty_lots for r in sent if r.side > 0) < 4


def test_a_withdrawal_does_not_wait_for_the_next_thought():
    t = desk(quote=dict(half_spread_ticks=1.0, max_inventory_lots=100, size={"lots": 4}, refresh={"every_ms": 1000.0}))
    accept(t, t.on_market(top(10_000, 10_002, 0), now_ns=0), 0)
    assert t.on_market(top(10_003, 10_005, 1), now_ns=1) == [] and len(t.decisions) == 1 and t.due == {"X": None}
    t.on_market(top(10_003, 10_005, 2, synced=False), now_ns=2)
    assert t.decisions[-1].why == "no book" and not [o for o in t.orders.live() if o.state is not State.PENDING_CANCEL]


def test_an_execution_is_reason_to_think():
    t = desk()
    sent = t.on_market(top(10_000, 10_002, 0), now_ns=0)
    accept(t, sent, 0)
    n = len(t.decisions)
    fill(t, sent[0], 4, S, "e1")
    assert len(t.decisions) == n + 1 and t.decisions[-1].position_lots == 4 * sent[0].side
    assert [e.kind for e in t.take_events()].count("fill") == 1 and t.take_events() == []


def test_adopted_lots_of_two_snapshots_add_up_while_there_is_no_price():
    t = desk((SHARE, Instrument("Y", 0.01)))
    for now, lots in ((0, 5), (10 * S, 8), (20 * S, 8)):
        t.on_snapshot(VenueSnapshot(now, (), (), {"X": lots}), now_ns=now)
    ledger = t.guard.tracks["X"].ledger
    assert t.orders.position("X") == 8 and ledger.position == 0
    t.on_market(top(100, 102, 21 * S, "Y"), now_ns=21 * S)
    assert ledger.position == 0, "another symbol's market is no price"
    t.on_market(top(10_000, 10_002, 22 * S), now_ns=22 * S)
    assert (ledger.position, ledger.cost_ticks) == (8, 10_001)


def test_an_option_without_its_underlying_has_no_value():
    v = OptionValuer(instruments([SHARE, CALL]), underlying="X", move_ticks=1.0)
    v.set_vols({"X-C100": 0.2}, now_ns=NOON)
    assert v.value("X-C100", now_ns=NOON) is None, "no market yet"
    good = top(9_999, 10_001, NOON)
    for bad in (top(9_999, 10_001, NOON, synced=False), top(9_999, 0, NOON), top(0, 10_001, NOON)):
        assert v.on_market(good, now_ns=NOON) == ("X-C100",), "it has come back"
        assert v.value("X-C100", now_ns=NOON) is not None and v.on_market(good, now_ns=NOON) == ()
        assert v.on_market(bad, now_ns=NOON) == ("X-C100",), "its quotes must go"
        assert v.value("X-C100", now_ns=NOON) is None


def test_new_volatilities_replace_the_old_ones_and_are_thought_over():
    v = OptionValuer(instruments([SHARE, CALL]), underlying="X", move_ticks=1.0)
    v.set_vols({"X-C100": 0.2}, now_ns=NOON)
    v.on_market(top(9_999, 10_001, NOON), now_ns=NOON)
    v.value("X-C100", now_ns=NOON)
    assert v.on_market(top(9_999, 10_001, NOON), now_ns=NOON) == ()
    v.set_vols({"X-C100": 0.3}, now_ns=NOON)
    assert v.on_market(top(9_999, 10_001, NOON), now_ns=NOON) == ("X-C100",)
    v.set_vols({}, now_ns=NOON)
    assert v.value("X-C100", now_ns=NOON) is None, "left out is forgotten"


@pytest.mark.parametrize("bad", [dict(underlying="Q"), dict(rate=math.nan), dict(rate=1.5), dict(dividend=math.inf), dict(max_vol_age_s=0.0), dict(max_vol_age_s=math.nan),
                                 dict(move_ticks=-1.0), dict(move_ticks=math.nan)], ids=repr)
def test_option_valuer_refuses(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        OptionValuer(instruments([SHARE, CALL]), **(dict(underlying="X") | bad))


def test_a_team_says_the_first_value_and_each_symbol_once():
    team = ValuerTeam(Fixed(), Fixed(X=Value(theo=1.0)), Fixed(X=Value(theo=2.0), Y=Value(theo=3.0)))
    assert team.on_market(top(1, 2, 0), now_ns=0) == ("X",)
    assert team.value("X", now_ns=0).theo == 1.0 and team.value("Y", now_ns=0).theo == 3.0 and team.value("Z", now_ns=0) is None


def test_a_jump_is_measured_by_the_valuers_volatility():
    t = desk(valuer=SpotValuer(instruments([SHARE]), warm=5))
    for i in range(40):
        t.on_market(top(10_000 + i % 2, 10_002 + i % 2, i * S), now_ns=i * S)
    assert t.tops["X"].sigma == pytest.approx(0.01, rel=0.1)
    t.on_market(top(9_960, 9_962, 40 * S), now_ns=40 * S)
    assert standing_aside(t.guard, t.tops["X"], "X", 40 * S) == "breaker" and t.guard.log[-1][1:3] == ("breaker", "X") or t.guard.open
