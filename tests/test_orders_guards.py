"The order manager's guards, one at a time: each test fails when its guard is switched off (tools/mutants.py does that)."
import math
from collections import namedtuple

import pytest

from makerlab.core import ParameterError
from makerlab.execution.orders import OrderManager, Patience, RequotePolicy, State
from makerlab.execution.throttle import SlidingWindow, Throttle, VenueWindow
from makerlab.execution.venue import CancelOrder, Capabilities, Execution, Instrument, ModifyOrder, NewOrder, OpenOrder, QueryOrder, Report, VenueSnapshot, instruments

S = 1_000_000_000
TABLE = instruments([Instrument("A", 0.01, venue="X"), Instrument("B", 0.05, venue="Y"),
                     Instrument("B-C", 0.05, multiplier=100, kind="option", underlying="B", strike=25.0, expiry_ns=10**18, right="call", venue="Y")])
Want = namedtuple("Want", "side price_ticks qty_lots reason", defaults=("quote",))
Level = namedtuple("Level", "side price_ticks qty_lots reason level")
NATIVE = Capabilities(native_modify=True, modify_keeps_priority=True)
PATIENCE = Patience(timeout_ns=5 * S, query_first_ns=S, query_max_ns=4 * S, query_grace_ns=10 * S, not_found_needed=3, protect_ns=2 * S)


def manager(**more):
    return OrderManager(TABLE, **(dict(session="s1", patience=PATIENCE) | more))


def say(m, kind, k, at=0, *, now=0, **more):
    o = m.orders[k]
    return m.handle(Report(kind, k, o.symbol, o.side, at, **more), now_ns=now)


def sent(symbol="A", side=1, price=100, qty=10, at=0, **more):
    "A manager and the id of an order that has left."
    m = manager(**more)
    k = m.place_quote(symbol, side, price, qty, now_ns=at).client_id
    m.poll(at)
    return m, k


def working(qty=10, **more):
    m, k = sent(qty=qty, **more)
    say(m, "accepted", k, 1, price_ticks=100, qty_lots=qty)
    assert m.orders[k].state is State.WORKING
    return m, k


def fill(m, k, exec_id="e1", qty=1, cum=-1, price=100, at=2, now=0, **more):
    return say(m, "fill", k, at, now=now, exec_id=exec_id, qty_lots=qty, cum_lots=cum, price_ticks=price, **more)


def doubtful(qty=10, **more):
    m, k = working(qty, **more)
    m.handle(Report("unknown", k), now_ns=0)
    assert m.orders[k].state is State.UNKNOWN
    return m, k


def snap(orders=(), executions=(), positions=None, cash=math.nan, at=50):
    return VenueSnapshot(at, tuple(orders), tuple(executions), positions or {}, cash)


def kinds(requests):
    return [type(r).__name__ for r in requests]


# ---- what may leave

def test_no_order_to_a_lost_venue_nor_out_of_the_queue():
    m = manager()
    waiting = m.place_quote("A", 1, 100, 1, now_ns=0)
    m.handle(Report("disconnected", venue_id="X"), now_ns=0)
    assert m.place_quote("A", 1, 100, 1, now_ns=0).reason.startswith("not synced") and not m.synced
    assert m.place_quote("B", 1, 100, 1, now_ns=0).state is State.PENDING_NEW, "the other venue is there"
    assert [r.symbol for r in m.poll(0)] == ["B"], "what waited stays"
    m.reconcile(snap(), now_ns=0, venue="Y")
    assert not m.synced and m.poll(0) == [], "the other venue's account proves nothing"
    m.reconcile(snap(), now_ns=0, venue="X")
    assert m.synced and [r.client_id for r in m.poll(0)] == [waiting.client_id]


def test_a_connection_without_a_name_is_every_venue_and_back_is_not_synced():
    m = manager()
    m.handle(Report("disconnected"), now_ns=0)
    assert all(m.place_quote(s, 1, 100, 1, now_ns=0).state is State.DENIED for s in "AB")
    m.reconcile(snap(), now_ns=0)
    m.wants_snapshot = False
    m.handle(Report("disconnected"), now_ns=0)
    m.handle(Report("reconnected"), now_ns=0)
    assert m.wants_snapshot and not m.synced


def test_requote_places_nothing_at_a_lost_venue_and_nothing_on_a_side_in_doubt():
    m = manager()
    m.handle(Report("disconnected", venue_id="X"), now_ns=0)
    out = m.requote("A", [Want(1, 99, 1), Want(-1, 101, 1)], now_ns=0)
    assert not out.placed and not m.orders and out.blocked == 2, "not even a denied order"
    m, k = doubtful()
    m.orders[k].external = True  # so that it does not stand for the wanted one
    before = len(m.orders)
    out = m.requote("A", [Want(1, 99, 1), Want(-1, 101, 1)], now_ns=0)
    assert len(out.placed) == 1 and len(m.orders) == before + 1


@pytest.mark.parametrize("bad", [dict(price_ticks=float("nan")), dict(price_ticks=1.5), dict(qty_lots=0), dict(side=0), dict(kind="magic"), dict(symbol="NOPE")])
def test_malformed_orders_are_denied(bad):
    m = manager()
    o = m.place_quote(**(dict(symbol="A", side=1, price_ticks=100, qty_lots=1, now_ns=0) | bad))
    assert o.state is State.DENIED and o.reason.split(":")[0] in ("malformed", "unknown symbol 'NOPE'") and m.poll(0) == []


def test_expired_contracts_are_denied_at_their_hour():
    m = manager()
    assert m.place_quote("B-C", 1, 100, 1, now_ns=10**18 - 1).state is State.PENDING_NEW
    assert m.place_quote("B-C", 1, 100, 1, now_ns=10**18).reason.startswith("expired")


def test_a_side_in_doubt_takes_no_new_order_and_no_larger_one():
    m, k = doubtful(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True))
    assert m.place_quote("A", 1, 99, 1, now_ns=0).reason == f"unknown: {k} on this side is not resolved"
    assert m.place_quote("A", -1, 101, 1, now_ns=0).state is State.PENDING_NEW
    m, first = working(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True))
    second, third = (m.place_quote("A", 1, 98, 5, now_ns=0).client_id for _ in range(2))
    m.poll(0)
    say(m, "accepted", second, 2)
    m.modify_quote(second, price_ticks=98, qty_lots=9, now_ns=0)
    fourth = m.place_quote("A", 1, 97, 5, now_ns=0).client_id
    m.handle(Report("unknown", first), now_ns=0)
    assert [r for r in m.poll(0) if not isinstance(r, QueryOrder)] == [], "neither the larger size nor the order that waited"
    assert m.orders[fourth].submit_ns < 0 <= m.orders[third].submit_ns


def test_the_risk_hook_is_asked_and_what_it_cannot_say_is_no():
    for hook, word in ((lambda *a: "position: 5 > 4 lots", "position: 5"), (lambda *a: 1 / 0, "risk hook failed: ZeroDivisionError"), (lambda *a: None, "risk hook said None"),
                       (lambda *a: True, "risk hook said True")):
        m = manager(approve=hook)
        o = m.place_quote("A", 1, 100, 1, now_ns=0)
        assert o.state is State.DENIED and o.reason.startswith(word) and m.poll(0) == []


def test_a_change_asks_the_risk_hook_and_a_denied_one_becomes_cancel_and_new():
    asked = []
    m, k = working(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True), approve=lambda o, *a: asked.append(o) or ("no" if o.qty_lots > 10 else ""))
    m.modify_quote(k, price_ticks=100, qty_lots=12, now_ns=0)
    assert asked[-1].qty_lots == 12 and m.orders[k].state is State.PENDING_CANCEL and kinds(m.poll(0)) == ["CancelOrder"]
    say(m, "cancelled", k, 3, definitive=True)
    assert [o.state for o in m.orders.values()] == [State.CANCELLED, State.DENIED]


def test_less_of_the_same_needs_no_permission():
    m, k = working(capabilities=NATIVE)
    m.approve = lambda *a: "no"
    m.modify_quote(k, price_ticks=100, qty_lots=4, now_ns=0)
    assert m.poll(0) == [ModifyOrder(k, 100, 4)]


@pytest.mark.parametrize("price, qty", [(101, 4), (100, 12)])
def test_without_leave_to_move_only_less_of_the_same_is_a_change(price, qty):
    m, k = working(capabilities=NATIVE)
    m.modify_quote(k, price_ticks=price, qty_lots=qty, now_ns=0)
    assert kinds(m.poll(0)) == ["CancelOrder"]
    m, k = working()
    m.modify_quote(k, price_ticks=100, qty_lots=4, now_ns=0)
    assert kinds(m.poll(0)) == ["CancelOrder"], "a venue without native changes"


def test_a_total_that_is_filled_already_is_a_cancel():
    m, k = working(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True))
    fill(m, k, qty=4, cum=4)
    m.modify_quote(k, price_ticks=101, qty_lots=4, now_ns=0)
    assert kinds(m.poll(0)) == ["CancelOrder"]
    say(m, "cancelled", k, 3, cum_lots=4)
    assert m.live() == [] and m.poll(0) == []


def test_only_an_order_at_rest_is_changed():
    m, k = doubtful(capabilities=NATIVE)
    m.modify_quote(k, price_ticks=100, qty_lots=4, now_ns=0)
    assert m.orders[k].state is State.UNKNOWN and m.counts["anomaly"] == 1 and not any(isinstance(r, ModifyOrder | CancelOrder) for r in m.poll(0))


def test_the_successor_is_smaller_by_what_was_executed_or_said_to_be():
    for told in (False, True):
        m, k = working()
        m.modify_quote(k, price_ticks=101, qty_lots=10, now_ns=0)
        m.poll(0)
        if not told:
            fill(m, k, qty=4)
        say(m, "cancelled", k, 3, cum_lots=4, definitive=True)
        (new,) = m.poll(0)
        assert (new.price_ticks, new.qty_lots) == (101, 6)


# ---- throttles

def test_a_full_window_holds_orders_and_the_reserve_lets_cancels_go():
    gate = Throttle([SlidingWindow(4, S, 2)])
    m, k = working(throttle=gate)
    for i in range(5):
        m.place_quote("A", 1, 90 + i, 1, now_ns=0)
    assert kinds(m.poll(0)) == ["NewOrder"], "two of four, one was used"
    m.cancel_quote(k, now_ns=0)
    assert kinds(m.poll(0)) == ["CancelOrder"] and m.poll(0) == []
    assert kinds(m.poll(S)) == ["NewOrder"] * 2, "a window later"


def test_cancels_leave_before_orders():
    gate = Throttle([SlidingWindow(2, S)])
    m, k = working(throttle=gate)
    m.place_quote("A", -1, 105, 1, now_ns=0)
    m.cancel_quote(k, now_ns=0)
    assert kinds(m.poll(0)) == ["CancelOrder"]


def test_requests_without_an_answer_are_capped():
    m = manager(throttle=Throttle([], in_flight_cap=2))
    ids = [m.place_quote("A", 1, 90 + i, 1, now_ns=0).client_id for i in range(4)]
    assert len(m.poll(0)) == 2 and m.poll(0) == []
    say(m, "accepted", ids[0], 1)
    assert [r.client_id for r in m.poll(0)] == [ids[2]]
    m.cancel_quote(ids[0], now_ns=0)
    assert kinds(m.poll(0)) == ["CancelOrder"], "cancels pass the cap"


def test_a_full_venue_does_not_hold_up_another():
    m = manager(throttle={"X": Throttle([SlidingWindow(1, S)]), "Y": Throttle([SlidingWindow(1, S)])})
    for s in "AAB":
        m.place_quote(s, 1, 100, 1, now_ns=0)
    assert [r.symbol for r in m.poll(0)] == ["A", "B"]


def test_queries_are_throttled_too_and_come_less_often():
    m, k = sent()
    times = [t for t in range(0, 40) if any(isinstance(r, QueryOrder) for r in m.poll(t * S))]
    assert times[:6] == [5, 6, 8, 12, 16, 20], "after the timeout, then 1, 2, 4, 4, 4 seconds apart"
    m, k = doubtful(throttle=Throttle([SlidingWindow(1, 100 * S)]))
    assert m.poll(S) == []


def test_where_nothing_can_be_asked_a_snapshot_is_wanted():
    m, k = doubtful(capabilities=Capabilities(query=False))
    m.wants_snapshot = False
    assert m.poll(S) == [] and m.wants_snapshot
    for now in (2 * S, 8 * S, 20 * S):  # the list is all there is
        assert m.orders[k].state is State.UNKNOWN
        m.reconcile(snap(), now_ns=now)
    assert m.orders[k].done and m.orders[k].inferred


def test_a_clock_that_steps_back_stands_still():
    w = SlidingWindow(2, 100)
    assert w.allow(850) and w.allow(1000) and w.allow(500), "for the window it is still 1000"
    assert not w.allow(500) and not w.allow(1099) and w.allow(1100)


def test_every_window_must_agree_and_each_counts_what_passed():
    gate = Throttle([SlidingWindow(3, 10), SlidingWindow(4, 100)])
    assert [gate.allow(0) for _ in range(4)] == [True, True, True, False]
    assert [gate.allow(10) for _ in range(2)] == [True, False], "the short window has room again, the long one is full"
    assert not gate.allow(99) and gate.allow(100)


def test_the_venues_count_corrects_ours_upwards_only():
    w = VenueWindow(5, 100, 2)
    w.correct(2, now_ns=10)
    assert [w.allow(10) for _ in range(2)] == [True, False], "three of five are for orders"
    w.correct(1, now_ns=20)
    assert not w.allow(20) and [w.allow(20, cancel=True) for _ in range(3)] == [True, True, False]
    w.correct(5, now_ns=110)
    assert not w.allow(110, cancel=True) and w.allow(200)


# ---- what counts

def test_every_state_that_may_execute_counts():
    m, k = sent()
    assert m.exposure("A") == (0, 10, 0), "sent and not answered"
    say(m, "accepted", k, 1)
    assert m.exposure("A").buy_lots == 10
    m.cancel_quote(k, now_ns=0)
    assert m.exposure("A").buy_lots == 10, "a cancel under way"
    m.handle(Report("unknown", k), now_ns=0)
    assert m.exposure("A").buy_lots == 10 and [o.client_id for o in m.live("A")] == [k], "in doubt"
    sell = m.place_quote("A", -1, 105, 3, now_ns=0)
    assert m.exposure("A") == (0, 10, 3) and m.exposure("A").worst_short_lots == -3, "not even sent"
    m.cancel_quote(sell.client_id, now_ns=0)
    assert m.exposure("A").sell_lots == 0 and sell.state is State.CANCELLED, "it never left"


def test_a_change_under_way_counts_with_the_larger_size():
    for qty in (4, 15):
        m, k = working(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True))
        m.modify_quote(k, price_ticks=100, qty_lots=qty, now_ns=0)
        assert m.orders[k].state is State.PENDING_REPLACE and m.exposure("A").buy_lots == max(10, qty)


def test_a_change_that_never_left_is_forgotten():
    m, k = working(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True))
    m.modify_quote(k, price_ticks=100, qty_lots=15, now_ns=0)
    m.handle(Report("unknown", k), now_ns=0)
    assert m.orders[k].live_lots == 10 and not any(isinstance(r, ModifyOrder) for r in m.poll(0))


def test_what_was_said_to_be_executed_counts_until_it_is_booked():
    m, k = working()
    say(m, "cancelled", k, 3, cum_lots=4, definitive=True)
    assert m.orders[k].state is State.CANCELLED and m.exposure("A") == (0, 4, 0)
    m.wants_snapshot = False
    m.poll(5 * S - 1)
    assert not m.wants_snapshot
    m.poll(5 * S)
    assert m.wants_snapshot, "its executions are missing for too long"
    fill(m, k, qty=4, cum=4)
    assert m.exposure("A") == (4, 0, 0) and m.quiet


def test_what_was_said_never_falls():
    m, k = working()
    for cum in (7, 3):
        say(m, "order-status", k, 3, status="partial", cum_lots=cum)
        assert m.orders[k].told_lots == 7
    say(m, "cancelled", k, 4, cum_lots=3)
    assert m.exposure("A").buy_lots == 7


# ---- executions

def test_an_execution_is_booked_once_by_its_id_and_symbol():
    m, k = working()
    for _ in range(3):
        e = fill(m, k, "e1", 4, 4)
    assert m.position("A") == 4 and m.cash == pytest.approx(-4.0) and [x.kind for x in e] == ["duplicate"]
    m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10, 4)], [Execution("e1", k, "A", 1, 100, 4)]), now_ns=9 * S)
    assert m.position("A") == 4
    other = m.place_quote("B", 1, 100, 4, now_ns=0).client_id
    m.poll(0)
    fill(m, other, "e1", 4, 4)
    assert m.position("B") == 4, "ids are unique by symbol only"


def test_an_execution_without_an_id_is_known_by_its_count_or_not_booked():
    m, k = working()
    for _ in range(2):
        fill(m, k, "", 4, 4)
    assert m.position("A") == 4
    m.wants_snapshot = False
    e = fill(m, k, "", 3, -1)
    assert m.position("A") == 4 and e[0].kind == "anomaly" and m.wants_snapshot


@pytest.mark.parametrize("bad", [dict(qty_lots=0), dict(qty_lots=-3), dict(client_id="ghost", symbol="NONE"), dict(client_id="ghost", side=0)], ids=repr)
def test_executions_that_cannot_be_are_told_and_not_booked(bad):
    m, k = working()
    m.wants_snapshot = False
    e = m.handle(Report(**(dict(kind="fill", client_id=k, symbol="A", side=1, time_ns=2, exec_id="x", price_ticks=100, qty_lots=3) | bad)), now_ns=0)
    assert [x.kind for x in e] == ["anomaly"] and "execution with" in e[0].reason and m.wants_snapshot and not m.fills and m.position("A") == 0


def test_an_execution_of_an_order_that_nobody_knows_is_booked_and_told():
    m, _ = working()
    m.wants_snapshot = False
    e = m.handle(Report("fill", "ghost", "A", -1, 2, "x", 100, 3), now_ns=0)
    assert m.position("A") == -3 and m.fills[-1].flag == "external" and e[0].kind == "anomaly" and m.wants_snapshot


def test_a_fee_that_is_no_number_is_told_and_the_position_is_booked():
    m, k = working()
    e = fill(m, k, qty=3, fee=math.nan)
    assert m.position("A") == 3 and m.cash == pytest.approx(-3.0) and e[0].kind == "anomaly"


def test_an_overfill_is_booked_and_told():
    m, k = working()
    m.wants_snapshot = False
    fill(m, k, "e1", 10, 10)
    assert m.orders[k].state is State.FILLED and not m.wants_snapshot
    e = fill(m, k, "e2", 2)
    assert m.position("A") == 12 and e[0].flag == "overfill" and m.counts["anomaly"] == 1 and m.wants_snapshot


def test_a_late_fill_is_booked_and_flagged():
    m, k = working()
    say(m, "cancelled", k, 3, definitive=True)
    e = fill(m, k, qty=4)
    assert m.position("A") == 4 and e[0].flag == "late" and m.orders[k].state is State.CANCELLED
    e = fill(m, k, "e2", 6)
    assert m.position("A") == 10 and m.orders[k].state is State.FILLED


def test_a_fill_before_the_answer_is_an_answer():
    m, k = sent()
    e = fill(m, k, qty=4, cum=4)
    assert e[0].flag == "early" and m.orders[k].state is State.PARTIAL and m.orders[k].live_lots == 6
    assert [x.kind for x in say(m, "accepted", k, 1, price_ticks=100, qty_lots=10)] == ["duplicate"] and m.orders[k].state is State.PARTIAL
    assert m.poll(6 * S) == [], "nothing is waited for"


def test_an_execution_of_the_other_side_is_told():
    m, k = working()
    m.wants_snapshot = False
    e = m.handle(Report("fill", k, "A", -1, 2, "x", 100, 3), now_ns=0)
    assert e[0].kind == "anomaly" and m.wants_snapshot and m.position("A") == 3


# ---- answers

def test_silence_is_doubt():
    m, k = sent()
    m.poll(5 * S - 1)
    assert m.orders[k].state is State.PENDING_NEW
    out = m.poll(5 * S)
    assert m.orders[k].state is State.UNKNOWN and out == [QueryOrder(k)] and m.exposure("A").buy_lots == 10


def test_rejected_only_on_proof():
    m, k = sent()
    say(m, "rejected", k, 1, reason="503")
    assert m.orders[k].state is State.UNKNOWN and m.exposure("A").buy_lots == 10
    say(m, "rejected", k, 2, definitive=True)
    assert m.orders[k].state is State.REJECTED and m.exposure("A").buy_lots == 0


def test_a_rejection_after_executions_is_no_proof():
    m, k = sent()
    fill(m, k, qty=4, cum=4)
    say(m, "rejected", k, 3, definitive=True)
    assert m.orders[k].state is State.UNKNOWN and m.counts["anomaly"] == 1 and m.exposure("A") == (4, 6, 0)


def test_a_refused_cancel_proves_nothing():
    m, k = working()
    m.cancel_quote(k, now_ns=0)
    m.poll(0)
    say(m, "cancel-rejected", k, 3, reason="Unknown order sent.")
    assert m.orders[k].state is State.UNKNOWN and m.exposure("A").buy_lots == 10
    m, k = working()
    m.cancel_quote(k, now_ns=0)
    m.poll(0)
    say(m, "cancel-rejected", k, 3, definitive=True)
    assert m.orders[k].state is State.WORKING and m.poll(6 * S) == [], "with proof it is where it was"
    say(m, "cancel-rejected", k, 3)
    assert m.orders[k].state is State.WORKING, "told already"


def test_a_refused_change_proves_something_only_with_proof():
    for proof, state in ((False, State.UNKNOWN), (True, State.WORKING)):
        m, k = working(capabilities=NATIVE, policy=RequotePolicy(modify_moves=True))
        m.modify_quote(k, price_ticks=100, qty_lots=15, now_ns=0)
        m.poll(0)
        say(m, "replace-rejected", k, 3, definitive=proof)
        assert m.orders[k].state is state and m.exposure("A").buy_lots == (10 if proof else 15)


def test_a_cancel_is_owed_until_the_order_is_gone():
    m, k = working()
    m.cancel_quote(k, now_ns=0)
    m.poll(0)  # and it is lost
    m.poll(5 * S)
    assert m.orders[k].state is State.UNKNOWN
    say(m, "order-status", k, 4, status="working", price_ticks=100, qty_lots=10, now=5 * S)
    assert kinds(m.poll(5 * S)) == ["CancelOrder"]


def test_one_cancel_at_a_time_into_the_fog():
    m, k = doubtful()
    m.cancel_quote(k, now_ns=0)
    assert kinds(m.poll(0))[0] == "CancelOrder"
    m.cancel_quote(k, now_ns=1)
    assert not any(isinstance(r, CancelOrder) for r in m.poll(1))


def test_what_ends_completely_executed_is_filled():
    m, k = working()
    say(m, "cancelled", k, 3, cum_lots=10)
    assert m.orders[k].state is State.FILLED


def test_accepted_as_something_else_is_taken_over_and_told():
    m, k = sent()
    say(m, "accepted", k, 1, price_ticks=99, qty_lots=12)
    assert m.counts["anomaly"] == 1 and (m.orders[k].price_ticks, m.exposure("A").buy_lots) == (99, 12)


def test_changed_without_being_asked_is_taken_over_and_told():
    m, k = working()
    say(m, "replaced", k, 3, price_ticks=99, qty_lots=12)
    assert m.counts["anomaly"] == 1 and (m.orders[k].price_ticks, m.exposure("A").buy_lots) == (99, 12)
    assert [e.kind for e in say(m, "replaced", k, 3, price_ticks=99, qty_lots=12)] == ["duplicate"]


def test_not_found_needs_time_and_repetition():
    def ask(times, age):
        m, k = doubtful()
        for i in range(times):
            m.handle(Report("order-status", k, time_ns=100 + i, status="not-found"), now_ns=age if i == times - 1 else 0)
        return m, m.orders[k]

    assert ask(3, 10 * S - 1)[1].state is State.UNKNOWN and ask(2, 10 * S)[1].state is State.UNKNOWN
    m, o = ask(3, 10 * S)
    assert o.state is State.CANCELLED and o.inferred and m.wants_snapshot, "it had been there: cancelled, not rejected"
    m, k = sent()
    m.poll(5 * S)
    for _ in range(3):
        m.handle(Report("order-status", k, status="not-found"), now_ns=20 * S)
    assert m.orders[k].state is State.REJECTED and m.orders[k].inferred


def given_up():
    m, k = sent()
    m.poll(5 * S)
    for _ in range(3):
        m.handle(Report("order-status", k, status="not-found"), now_ns=20 * S)
    assert m.orders[k].done and m.exposure("A").buy_lots == 0
    return m, k


def test_what_was_given_up_and_lives_is_adopted():
    m, k = given_up()
    fill(m, k, qty=3, now=21 * S)
    assert m.orders[k].state is State.UNKNOWN and m.exposure("A") == (3, 7, 0)
    m, k = given_up()
    say(m, "accepted", k, 9, now=21 * S)
    assert m.orders[k].live_lots == 10
    m, k = given_up()
    say(m, "order-status", k, 9, status="working", price_ticks=100, qty_lots=10, now=21 * S)
    assert m.orders[k].state is State.UNKNOWN and m.counts["anomaly"] == 1
    m, k = given_up()
    say(m, "cancelled", k, 9, now=21 * S)
    assert m.orders[k].state is State.CANCELLED and not m.orders[k].inferred, "now it is proved"


def test_a_terminal_order_that_is_found_alive_is_in_doubt_again():
    m, k = working()
    say(m, "cancelled", k, 3, definitive=True)
    say(m, "order-status", k, 2, status="working", price_ticks=100, qty_lots=10)
    assert m.orders[k].state is State.CANCELLED, "an older word"
    say(m, "order-status", k, 4, status="working", price_ticks=100, qty_lots=10)
    assert m.orders[k].state is State.UNKNOWN and m.exposure("A").buy_lots == 10


def test_words_about_orders_that_never_left_or_that_nobody_knows():
    m = manager()
    o = m.place_quote("A", 1, 100, 10, now_ns=0)
    say(m, "cancelled", o.client_id, 1)
    assert o.state is State.PENDING_NEW and m.counts["anomaly"] == 1 and kinds(m.poll(0)) == ["NewOrder"]
    m.wants_snapshot = False
    m.handle(Report("accepted", "ghost", "A"), now_ns=0)
    assert m.counts["anomaly"] == 2 and m.wants_snapshot
    say(m, "nonsense", o.client_id, 1)
    assert m.counts["anomaly"] == 3


def test_illegal_moves_are_told_and_not_made():
    m, k = working()
    fill(m, k, qty=10, cum=10)
    assert not m._move(m.orders[k], State.WORKING, "x") and m.orders[k].state is State.FILLED and m.counts["anomaly"] == 1


@pytest.mark.parametrize("report", [None, 7, Report("fill", "k", "A", 1, 1, "x", None, 3), Report("order-status", "k", cum_lots=None)], ids=repr)
def test_nothing_that_a_venue_says_raises(report):
    m, k = working()
    if isinstance(report, Report):
        object.__setattr__(report, "client_id", k)
    m.wants_snapshot = False
    assert m.handle(report, now_ns=0)[-1].kind == "anomaly" and m.wants_snapshot


def test_the_fill_branch_takes_fills_only():
    m, k = working()
    with pytest.raises(ParameterError, match="must be 'fill'"):
        m.handle_fill_event(Report("cancelled", k, "A", 1, 3), now_ns=0)
    assert m.orders[k].state is State.WORKING


# ---- reconciliation

def test_executions_that_we_missed_are_booked_and_those_before_the_start_are_not():
    m, k = working()
    out = m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10, 4)], [Execution("e7", k, "A", 1, 100, 4, 0.5)], {"A": 4}), now_ns=9 * S)
    assert out.booked == 1 and m.position("A") == 4 and m.cash == pytest.approx(-4.5) and out.position_gaps == {}
    m = manager()
    m.reconcile(snap((), [Execution("e1", "old", "A", 1, 100, 5)], {"A": 5}, 100.0), now_ns=0)
    m.handle(Report("fill", "old", "A", 1, 9, "e1", 100, 5), now_ns=0)
    assert m.position("A") == 5 and m.cash == 100.0, "the opening takes over, history is not booked again"


def test_open_there_and_unknown_here_counts_and_is_cancelled_with_the_others():
    m, k = working()
    theirs = OpenOrder("stranger", "A", -1, 103, 7, 2)
    out = m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10), theirs]), now_ns=9 * S)
    assert out.missing_here == ("stranger",) and m.exposure("A") == (0, 10, 5) and m.orders["stranger"].external
    m.requote("A", [Want(1, 100, 10)], now_ns=9 * S)
    assert m.orders["stranger"].state is State.PARTIAL, "requote leaves it alone"
    assert {o.client_id for o in m.cancel_all(now_ns=9 * S)} == {k, "stranger"}


def test_an_external_order_that_is_no_longer_listed_is_over():
    m, k = working()
    m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10), OpenOrder("stranger", "A", -1, 103, 7)]), now_ns=9 * S)
    m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10)]), now_ns=20 * S)
    assert m.orders["stranger"].done and m.exposure("A").sell_lots == 0


def test_not_listed_is_doubt_and_not_an_end_and_a_young_order_is_not_judged():
    m, k = working()
    m.reconcile(snap(), now_ns=2 * S - 1)
    assert m.orders[k].state is State.WORKING, "its last change may not show yet"
    out = m.reconcile(snap(), now_ns=2 * S)
    assert out.missing_there == (k,) and m.orders[k].state is State.UNKNOWN and m.exposure("A").buy_lots == 10
    m, k = working()
    m.reconcile(snap(), now_ns=9 * S, venue="Y")
    assert m.orders[k].state is State.WORKING, "the other venue's list"


def test_another_price_or_size_there_is_taken_over_and_told():
    m, k = working()
    for now, price in ((2 * S - 1, 100), (2 * S, 98)):
        out = m.reconcile(snap([OpenOrder(k, "A", 1, 98, 12)]), now_ns=now)
        assert m.orders[k].price_ticks == price and bool(out.changed) is (price == 98)
    assert m.exposure("A").buy_lots == 12 and m.counts["anomaly"] == 1


def test_an_order_in_doubt_that_is_listed_is_alive():
    m, k = doubtful()
    m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10)]), now_ns=9 * S)
    assert m.orders[k].state is State.WORKING


def test_counted_and_never_reported_is_booked_after_a_while_and_gives_way_to_the_truth():
    m, k = working()
    listed = snap([OpenOrder(k, "A", 1, 100, 10, 4)], positions={"A": 4})
    m.reconcile(listed, now_ns=S)
    assert m.position("A") == 0 and m.wants_snapshot, "the report may still come"
    out = m.reconcile(listed, now_ns=3 * S)
    assert out.synthetic == 1 and m.position("A") == 4 and m.fills[-1].flag == "synthetic" and out.position_gaps == {}
    fill(m, k, "e1", 4, 4, price=98, fee=1.0, now=4 * S)
    assert m.position("A") == 4 and m.orders[k].filled_lots == 4 and m.cash == pytest.approx(-4 * 0.98 - 1.0)


def test_a_gap_in_the_position_needs_two_looks_and_is_told():
    m, k = working()
    listed = [OpenOrder(k, "A", 1, 100, 10)]
    out = m.reconcile(snap(listed, positions={"A": 3}), now_ns=9 * S)
    assert out.position_gaps == {"A": 3} and m.position("A") == 0 and m.wants_snapshot
    out = m.reconcile(snap(listed, positions={"A": 2}), now_ns=10 * S)
    assert out.adopted == {} and m.position("A") == 0, "another gap: looks again"
    out = m.reconcile(snap(listed, positions={"A": 2}), now_ns=11 * S)
    assert out.adopted == {"A": 2} and m.position("A") == 2 and m.counts["anomaly"] == 1 and not m.wants_snapshot


def test_fills_after_the_snapshot_are_no_gap():
    m, k = working()
    fill(m, k, qty=4, at=60)
    for now in (9 * S, 12 * S):
        assert m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10)], positions={"A": 0}, at=50), now_ns=now).position_gaps == {}
    assert m.position("A") == 4


def test_symbols_that_nobody_knows_are_told():
    m, k = working()
    m.reconcile(snap([OpenOrder(k, "A", 1, 100, 10), OpenOrder("z", "Z", 1, 1, 1)], positions={"Z": 5, "A": 0}), now_ns=9 * S)
    assert m.counts["anomaly"] == 2 and "Z" not in m.positions


# ---- requote

def test_tolerance_and_youth_keep_a_quote_and_age_renews_it():
    policy = RequotePolicy(tolerance_ticks=2, tolerance_size=0.25, min_life_ns=S, max_life_ns=10 * S)
    for price, qty, now, does in ((101, 10, 2 * S, "kept"), (102, 10, 2 * S, "moved"), (102, 10, S - 1, "kept"), (100, 13, 2 * S, "kept"), (100, 14, 2 * S, "moved"),
                                  (100, 9, 2 * S, "moved"), (100, 10, 10 * S - 1, "kept"), (100, 10, 10 * S, "moved")):
        m, k = working(policy=policy)
        out = m.requote("A", [Want(1, price, qty)], now_ns=now)
        assert getattr(out, does) == [k], (price, qty, now, does)


def test_a_partly_executed_quote_stays_while_it_has_its_share():
    for filled, does in ((4, "kept"), (5, "moved")):
        m, k = working()
        fill(m, k, qty=filled)
        assert getattr(m.requote("A", [Want(1, 100, 10)], now_ns=0), does) == [k]


def test_what_has_not_left_is_taken_back_and_what_is_not_wanted_is_cancelled():
    m = manager()
    m.requote("A", [Want(1, 100, 5)], now_ns=0)
    m.requote("A", [Want(1, 99, 5)], now_ns=0)
    assert [r.price_ticks for r in m.poll(0)] == [99]
    m, k = working()
    assert m.requote("A", [], now_ns=0).cancelled == [k] and kinds(m.poll(0)) == ["CancelOrder"]


def test_malformed_quotes_are_told_and_not_placed():
    m = manager()
    out = m.requote("A", [Want(1, float("nan"), 3), Want(1, 100, -2), Want(0, 100, 2), Want(1, 100, 1.5)], now_ns=0)
    assert out.blocked == 4 and not m.orders and m.counts["anomaly"] == 4


def test_a_hanging_order_hangs_while_it_is_near_and_something_is_wanted():
    m = manager(policy=RequotePolicy(hanging_ticks=3))
    m.requote("A", [Want(1, 99, 5), Want(-1, 101, 5)], now_ns=0)
    bid, ask = (r.client_id for r in m.poll(0))
    for k in (bid, ask):
        say(m, "accepted", k, 1)
    fill(m, bid, qty=5, cum=5)
    m.requote("A", [Want(-1, 98, 5)], now_ns=0)
    assert m.orders[ask].hanging and m.orders[ask].state is State.WORKING
    m.requote("A", [Want(-1, 97, 5)], now_ns=0)
    assert not m.orders[ask].hanging


def pairs(levels=1, **policy):
    "A manager with a bid and an ask a level, all working; their ids by side and level."
    m = manager(policy=RequotePolicy(**policy))
    m.requote("A", [Level(side, 100 - side * (1 + i), 5, "quote", i) for side in (1, -1) for i in range(levels)], now_ns=0)
    ids = {}
    for r in m.poll(0):
        say(m, "accepted", r.client_id, 1)
        ids[r.side, abs(r.price_ticks - 100) - 1] = r.client_id
    return m, ids


def test_only_the_other_half_of_an_executed_pair_hangs():
    m, ids = pairs(hanging_ticks=3)
    assert set(m.requote("A", [Want(1, 98, 5), Want(-1, 102, 5)], now_ns=0).moved) == set(ids.values()), "nothing was executed"
    m, ids = pairs(levels=2, hanging_ticks=3)
    fill(m, ids[1, 0], qty=5, cum=5, price=99)
    assert [k for k, i in ids.items() if m.orders[i].hanging] == [(-1, 0)]
    m, ids = pairs()
    fill(m, ids[1, 0], qty=5, cum=5, price=99)
    assert not m.orders[ids[-1, 0]].hanging, "the policy knows no hanging"


def test_a_hanging_order_does_not_stand_for_a_wanted_one():
    m, ids = pairs(hanging_ticks=3)
    fill(m, ids[1, 0], qty=5, cum=5, price=99)
    out = m.requote("A", [Want(-1, 101, 5)], now_ns=0)
    assert out.kept == [] and len(out.placed) == 1 and m.orders[ids[-1, 0]].state is State.WORKING


def test_what_does_not_rest_and_what_rests_on_the_other_side_does_not_stand():
    m, k = working()
    m.cancel_quote(k, now_ns=0)
    assert m.requote("A", [Want(1, 100, 10)], now_ns=0).moved == [k] and m.orders[k].successor is not None
    m, k = working()
    out = m.requote("A", [Want(-1, 100, 10)], now_ns=0)
    assert out.cancelled == [k] and len(out.placed) == 1


def test_without_tolerance_what_stands_right_stays():
    m, k = working(policy=RequotePolicy(tolerance_ticks=0, tolerance_size=0))
    assert m.requote("A", [Want(1, 100, 10)], now_ns=0).kept == [k]


# ---- memory and settings

def test_closed_orders_are_forgotten_but_not_what_is_missing():
    m = manager(keep_closed=5)
    first = m.place_quote("A", 1, 100, 10, now_ns=0).client_id
    m.poll(0)
    say(m, "accepted", first, 1)
    say(m, "cancelled", first, 2, cum_lots=4)  # its executions are still to come
    for i in range(20):
        m.cancel_quote(m.place_quote("A", -1, 105, 1, now_ns=i).client_id, now_ns=i)
    assert first in m.orders and m.exposure("A").buy_lots == 4
    fill(m, first, qty=4, cum=4)
    m.cancel_quote(m.place_quote("A", -1, 105, 1, now_ns=0).client_id, now_ns=0)
    assert len(m.orders) <= 6


def test_events_that_nobody_takes_do_not_grow_without_end():
    m, k = working()
    for i in range(30_000):
        m.handle(Report("accepted", k, "A", 1, 1), now_ns=i)
    assert len(m.take_events()) <= 20_001


@pytest.mark.parametrize("bad", [dict(session=""), dict(session="a-b"), dict(session="123456789"), dict(strategy=""), dict(strategy="a b")], ids=repr)
def test_words_of_the_client_id(bad):
    with pytest.raises(ParameterError, match="letters and digits"):
        manager(**bad)


@pytest.mark.parametrize("make", [lambda: RequotePolicy(tolerance_ticks=-1), lambda: RequotePolicy(tolerance_size=-1), lambda: RequotePolicy(hanging_ticks=math.inf), lambda: RequotePolicy(min_life_ns=5, max_life_ns=5),
                                  lambda: Patience(timeout_ns=0), lambda: Patience(not_found_needed=0), lambda: Patience(query_grace_ns=-1), lambda: Patience(timeout_ns=math.nan)])
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(ParameterError):
        make()


def test_new_orders_are_frozen_in_the_words_of_the_caller():
    m = manager()
    o = m.place_quote("A", 1, 100, 10, now_ns=0, reduce_only=True, kind="ioc", reason="close")
    assert m.poll(0) == [NewOrder(o.client_id, "A", 1, 100, 10, "ioc", True, "close")]


def test_requote_leaves_orders_that_take_alone():
    m = manager()
    taken = m.place_quote("A", 1, 105, 3, now_ns=0, kind="ioc")
    out = m.requote("A", [], now_ns=0)
    assert out.cancelled == [] and taken.state is State.PENDING_NEW and [r.client_id for r in m.poll(0)] == [taken.client_id]



def test_a_strangers_order_is_no_quote_of_ours():
    m = manager()
    m.reconcile(VenueSnapshot(10, (OpenOrder("stranger", "A", 1, 100, 10),), (), {}), now_ns=10)
    out = m.requote("A", [Want(1, 100, 10)], now_ns=10)
    assert out.kept == [] and len(out.placed) == 1
    assert m.requote("A", [], now_ns=10).cancelled == out.placed and not m.orders["stranger"].want_cancel
