"The replay venue and its loop: against the engine, against hand-made stories, and against itself."
import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_replay import T0, events_of, feed_l2, feed_l3

from makerlab.backtest.harness import (NEVER, Faults, Levels, ReplayVenue, TimerTrader, simulate)
from makerlab.backtest.replay import ConstantLatency, Replay, SlowBook
from makerlab.core import DataError, ParameterError
from makerlab.data.events import ADD, CANCEL, CLEAR, DEPTH, FILL, SNAPSHOT, TRADE
from makerlab.execution.costs import PRESETS, FeeMeter
from makerlab.execution.venue import Instrument, ModifyOrder, NewOrder, QueryOrder, Report, VenueSnapshot
from makerlab.models.quoting import QuoteParams
from makerlab.schema import validate_fills

X = Instrument("S", 0.01)
PARAMS = QuoteParams(qty=1.0, max_inventory=9.0, x0=1.0, x1=0.1)


def engine(events, params=PARAMS, *, ns=97, order=ConstantLatency(30), feed=None, queue="risk-averse"):
    return Replay(events, strategy="reference", params=params, queue=queue, interval_ms=ns * 1e-6, order_latency=order, feed_latency=feed, signals=False,
                  horizons_s=(1e-6,)).run(rng=np.random.default_rng(1))


def harness(events, params=PARAMS, *, ns=97, there=30, back=30, feed=None, queue="risk-averse", rules=True, trader=None, **more):
    venue = ReplayVenue({"S": events}, [X], order_latency_ns=there, report_latency_ns=back, feed_latency_ns=feed, queue=queue, engine_rules=rules, **more)
    return simulate(trader or TimerTrader(X, params), venue, timer_ns=ns)


CASES = [dict(), dict(order=ConstantLatency(0), there=0, back=0), dict(order=ConstantLatency(200, 150), there=200, back=150), dict(ns=3),
         dict(engine_feed=ConstantLatency(25), feed=25), dict(engine_feed=ConstantLatency(700), feed=700, order=ConstantLatency(500), there=500, back=500)]


@pytest.mark.parametrize("qty", [1.0, 2.0])
@pytest.mark.parametrize("level, queue", [("l2", "risk-averse"), ("l2", "power-prob:3"), ("l2", "log-prob"), ("l3", "fifo"), ("l3", "risk-averse")])
def test_the_order_stream_is_the_engines(level, queue, qty):
    filled = 0
    for i, case in enumerate(CASES):
        case = dict(case)
        ns, order, engine_feed = case.pop("ns", 97), case.pop("order", ConstantLatency(30)), case.pop("engine_feed", None)
        rng = np.random.default_rng(100 * i + int(qty))
        rows = (feed_l2 if level == "l2" else feed_l3)(rng, 500, gap=(40, 3, 400)[i % 3])
        events, params = events_of(rows, level=level), dataclasses.replace(PARAMS, qty=qty)
        a = engine(events, params, ns=ns, order=order, feed=engine_feed, queue=queue)
        b = harness(events, params, ns=ns, queue=queue, **case)
        assert a.digest == b.digest
        known = b.path["position"].to_numpy()
        assert np.array_equal(known[: len(a.positions)], a.positions[: len(known)]) and abs(len(known) - len(a.positions)) <= 1
        for c in ("time", "side", "price", "qty", "maker", "order_id"):
            assert (a.fills[c].to_numpy() == b.fills[c].to_numpy()).all()
        if len(a.fills):
            assert (a.fills["mid"].to_numpy() == b.fills["mid"].to_numpy()).mean() > 0.9
        filled += len(a.fills)
    assert filled > 20


def test_one_lot_is_never_filled_in_parts():
    for seed in range(4):
        events = events_of(feed_l2(np.random.default_rng(seed), 600))
        assert harness(events, rules=True).digest == harness(events, rules=False).digest


def test_the_same_seed_is_the_same_run():
    events = events_of(feed_l2(np.random.default_rng(3), 600))
    bad = lambda seed: Faults(rng=np.random.default_rng(seed), drop=0.05, duplicate=0.05, reorder=0.1, delay=0.1, drop_request=0.05, delay_ns=300)
    a, b, c = (harness(events, faults=bad(seed)) for seed in (1, 1, 2))
    assert a.digest == b.digest != c.digest
    for name in ("path", "fills", "orders", "alerts", "denials"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name))


def test_tables_speak_the_conventions_of_the_scoring_floor():
    sim = harness(events_of(feed_l2(np.random.default_rng(3), 600)), fees=(1.0, 2.0))
    path, fills = sim.of("S")
    validate_fills(fills)
    assert list(path["step"]) == list(range(len(path))) and (fills["step"].between(-1, len(path) - 1)).all()
    assert path["inventory"].iloc[-1] == sim.venue.lots["S"] and path["cash"].iloc[-1] == pytest.approx(sim.venue.cash)
    assert path["fees"].iloc[-1] == pytest.approx(sim.venue.fees_paid) and sim.account()["equity"].iloc[-1] == pytest.approx(path["equity"].iloc[-1])
    assert fills["fee"].to_numpy() == pytest.approx(1e-4 * (fills["price"] * fills["qty"]).to_numpy())
    assert sim.venue.cash == pytest.approx(-(fills["side"] * fills["price"] * fills["qty"]).sum() - fills["fee"].sum())
    assert sim.trader.orders.cash == pytest.approx(sim.venue.cash)


def test_levels_are_the_twins():
    rng, a, b = np.random.default_rng(5), Levels(), SlowBook()
    for _ in range(3000):
        side, tick, lots = int(rng.choice((-1, 1))), int(rng.integers(0, 60)), int(rng.integers(0, 4))
        assert a.put(side, tick, lots) == b.put(side, tick, lots)
        assert a.lots == b.lots and a.best == b.best


# hand-made stories

def l2(rows):
    return events_of([(T0 + t, T0 + t + 5, k, s, p, n, 0, 3) for t, k, s, p, n in rows])


def l3(rows):
    return events_of([(T0 + t, T0 + t + 5, k, s, p, n, key, 3) for t, k, s, p, n, key in rows], level="l3")


BOOK2 = [(0, SNAPSHOT, 1, 99, 5), (0, SNAPSHOT, 1, 98, 5), (0, SNAPSHOT, -1, 101, 5)]
BOOK3 = [(0, ADD, 1, 99, 2, 1), (0, ADD, 1, 99, 3, 2), (0, ADD, 1, 98, 5, 3), (0, ADD, -1, 101, 5, 4)]


def placed(events, *orders, at=10, **more):
    "A venue with orders sent at a time; no latency."
    v = ReplayVenue({"S": events}, [X], order_latency_ns=0, report_latency_ns=0, **more)
    v.advance(T0 + at)
    for o in orders:
        v.send(o)
    v.advance(T0 + at)
    return v


def fills_of(v, until=10**6):
    v.advance(T0 + until)
    return [(e.time_ns - T0, e.client_id, e.price_ticks, e.qty_lots, e.maker) for e in v.fills]


def test_a_trade_serves_the_lots_ahead_first():
    v = placed(l2(BOOK2 + [(20, TRADE, -1, 99, 4), (30, TRADE, -1, 99, 3), (40, TRADE, -1, 99, 9)]), NewOrder("a", "S", 1, 99, 4))
    assert v.ahead("a") == 5
    assert fills_of(v) == [(30, "a", 99, 2, True), (40, "a", 99, 2, True)] and v.ahead("a") is None


def test_two_orders_at_one_price_share_a_trade():
    v = placed(l2(BOOK2 + [(20, TRADE, -1, 99, 8)]), NewOrder("a", "S", 1, 99, 2), NewOrder("b", "S", 1, 99, 2))
    assert fills_of(v) == [(20, "a", 99, 2, True), (20, "b", 99, 1, True)]


def test_the_better_price_comes_first_and_a_trade_is_spent_once():
    v = placed(l2(BOOK2 + [(20, TRADE, -1, 98, 3)]), NewOrder("a", "S", 1, 99, 2), NewOrder("b", "S", 1, 100, 2))
    assert fills_of(v) == [(20, "b", 100, 2, True), (20, "a", 99, 1, True)]


def test_a_book_that_comes_to_us():
    v = placed(l2(BOOK2 + [(20, DEPTH, -1, 100, 3)]), NewOrder("a", "S", 1, 100, 5))
    assert fills_of(v) == [(20, "a", 100, 3, True)]


def test_what_we_took_is_not_offered_again_until_the_level_is_told_anew():
    v = placed(l2(BOOK2 + [(50, DEPTH, -1, 101, 5)]), NewOrder("a", "S", 1, 101, 4, "ioc"), NewOrder("b", "S", 1, 101, 4, "ioc"))
    assert [f[1:] for f in fills_of(v, 20)] == [("a", 101, 4, False), ("b", 101, 1, False)]
    v.advance(T0 + 60)
    v.send(NewOrder("c", "S", 1, 101, 4, "ioc"))
    assert fills_of(v)[-1] == (60, "c", 101, 4, False)


def test_order_by_order_the_place_is_true():
    rows = BOOK3 + [(20, CANCEL, 1, 99, 2, 1), (30, ADD, 1, 99, 4, 5), (40, TRADE, -1, 99, 3, 0), (40, FILL, 1, 99, 3, 2), (50, TRADE, -1, 99, 3, 0), (50, FILL, 1, 99, 3, 5)]
    v = placed(l3(rows), NewOrder("a", "S", 1, 99, 2))
    v.advance(T0 + 25)
    assert v.ahead("a") == 3
    assert fills_of(v) == [(50, "a", 99, 2, True)]


def test_a_recorded_order_that_crosses_ours_meets_it():
    v = placed(l3(BOOK3 + [(20, ADD, -1, 100, 7, 9), (30, CANCEL, -1, 100, 7, 9)]), NewOrder("a", "S", 1, 100, 3))
    assert fills_of(v) == [(20, "a", 100, 3, True)]
    assert 9 not in v._matchers["S"].left


def test_one_aggressor_is_not_spent_twice():
    rows = BOOK3 + [(15, ADD, 1, 99, 4, 6), (20, TRADE, -1, 99, 4, 0), (20, FILL, 1, 99, 2, 1), (20, FILL, 1, 99, 2, 2), (30, TRADE, -1, 99, 3, 0), (30, FILL, 1, 99, 1, 2), (30, FILL, 1, 99, 2, 6)]
    v = placed(l3(rows), NewOrder("a", "S", 1, 100, 2), NewOrder("b", "S", 1, 99, 5))
    assert fills_of(v) == [(20, "a", 100, 2, True), (30, "b", 99, 2, True)]


def test_a_cleared_book_ends_our_places_order_by_order():
    v = placed(l3(BOOK3 + [(20, CLEAR, 0, 0, 0, 0)]), NewOrder("a", "S", 1, 99, 2))
    v.advance(T0 + 30)
    assert [r.kind for r in v.take_reports(T0 + 30)] == ["accepted", "expired"] and not v._alive()


@pytest.mark.parametrize("events", [l2(BOOK2), l3(BOOK3)], ids=["l2", "l3"])
def test_modify_down_keeps_the_place_and_anything_else_loses_it(events):
    v = placed(events, NewOrder("a", "S", 1, 99, 4), NewOrder("b", "S", 1, 99, 4))
    for change, ahead in ((ModifyOrder("a", 99, 3), 5), (ModifyOrder("a", 99, 6), None), (ModifyOrder("a", 98, 6), 5)):
        v.send(change)
        v.advance(v.now_ns + 1)
        if ahead is not None:
            assert v.ahead("a") == ahead
    assert [r.kind for r in v.take_reports(v.now_ns)] == ["accepted"] * 2 + ["replaced"] * 3
    assert v._buys["S"] == 10 == sum(o.left for o in v._alive())


def test_open_lots_of_the_log_are_the_books():
    for level in ("l2", "l3"):
        events = events_of((feed_l2 if level == "l2" else feed_l3)(np.random.default_rng(2), 900), level=level)
        sim = harness(events, dataclasses.replace(PARAMS, qty=3.0), rules=False, queue=None)
        v = sim.venue
        assert v._buys["S"] == sum(o.left for o in v._alive() if o.side > 0) and v._sells["S"] == sum(o.left for o in v._alive() if o.side < 0)
        assert v.log[-1].position_lots == v.lots["S"] == sum(e.side * e.qty_lots for e in v.fills) and len(v.fills) > 20
        assert min(r.open_buy_lots for r in v.log) >= 0 and min(r.open_sell_lots for r in v.log) >= 0


# the wires

def test_latencies_add_up_and_nothing_is_heard_early():
    v = ReplayVenue({"S": l2(BOOK2 + [(1000, DEPTH, 1, 99, 6)])}, [X], order_latency_ns=30, report_latency_ns=70)
    v.advance(T0 + 10)
    v.send(NewOrder("a", "S", 1, 99, 1))
    assert v.take_reports(T0 + 109) == []
    (r,) = v.take_reports(T0 + 110)
    assert (r.kind, r.time_ns) == ("accepted", T0 + 40)


def test_the_market_moves_no_further_than_the_next_word():
    v = ReplayVenue({"S": l2(BOOK2 + [(100, DEPTH, 1, 99, 6), (101, TRADE, -1, 99, 9)])}, [X], order_latency_ns=0, report_latency_ns=0)
    words = [v.next_word(NEVER - 1) for _ in range(2)]
    assert [(t - T0, w.bid_lots) for t, w in words] == [(5, 5), (105, 6)] and v.now_ns == T0 + 105


def test_a_lost_connection_swallows_both_ways():
    faults = Faults(disconnects=((T0 + 100, T0 + 200),))
    v = placed(l2(BOOK2 + [(120, TRADE, -1, 99, 9)]), NewOrder("a", "S", 1, 99, 1), faults=faults)
    v.advance(T0 + 150)
    v.send(NewOrder("b", "S", 1, 98, 1))
    kinds = [(r.kind, r.client_id) for r in v.take_reports(T0 + 300)]
    assert kinds == [("accepted", "a"), ("disconnected", ""), ("reconnected", "")]
    assert v.lots["S"] == 1 and v.lost == {"requests into a lost connection": 1, "reports into a lost connection": 1}


def test_a_gap_of_the_feed_is_told():
    v = ReplayVenue({"S": l2(BOOK2 + [(t, DEPTH, 1, 99, t) for t in (50, 60, 70)])}, [X], faults=Faults(feed_gaps=((T0 + 52, T0 + 68),)))
    tops = []
    while (word := v.next_word(T0 + 200)) is not None:
        tops.append((word[0] - T0, word[1].bid_lots, word[1].synced))
    assert tops == [(5, 5, True), (55, 50, False), (75, 70, True)]


def test_shares_of_faults_are_what_was_asked():
    v = placed(l2(BOOK2), faults=Faults(rng=np.random.default_rng(1), drop=0.2, duplicate=0.1, drop_request=0.25, delay_ns=10))
    for i in range(4000):
        v.send(QueryOrder(f"q{i}"))
    n = len(v.take_reports(T0 + 10**6))
    assert v.lost["requests dropped"] == pytest.approx(1000, abs=110) and n == pytest.approx(3000 * 0.9, abs=120)


def test_restarts_hand_the_wires_to_a_new_trader():
    events = events_of(feed_l2(np.random.default_rng(6), 1500))
    made = []

    def again(now_ns):
        made.append(TimerTrader(X, PARAMS, session=f"r{len(made)}"))
        made[-1].orders.handle(Report("disconnected", reason="a new process knows nothing"), now_ns=now_ns)
        return made[-1]

    venue = ReplayVenue({"S": events}, [X], order_latency_ns=30, report_latency_ns=30)
    sim = simulate(TimerTrader(X, PARAMS), venue, timer_ns=97, restarts=[(T0 + 8_000, again), (T0 + 16_000, again)])
    assert len(made) == 2 and sim.trader is made[-1] and sim.trader.orders.synced
    assert sim.trader.orders.position("S") == venue.lots["S"] and sim.trader.orders.cash == pytest.approx(venue.cash)


def test_a_heartbeat_keeps_a_quiet_book_fresh():
    class Ear:
        def __init__(self):
            self.orders, self.tops = TimerTrader(X, PARAMS).orders, []

        def on_market(self, top, *, now_ns):
            self.tops.append((now_ns - T0, top.local_ns - T0))
            return ()

        def on_timer(self, *, now_ns):
            return ()

    ear = Ear()
    simulate(ear, ReplayVenue({"S": l2(BOOK2 + [(1000, DEPTH, 1, 90, 1)])}, [X]), timer_ns=100, heartbeat_ns=250, end_ns=T0 + 1000)
    assert ear.tops == [(5, 5), (300, 300), (600, 600), (900, 900)]


def test_several_symbols_share_clock_and_cash():
    a, b = (events_of(feed_l2(np.random.default_rng(k), 400)) for k in (1, 2))
    y = Instrument("Y", 0.01, 1.0, multiplier=100.0)
    v = ReplayVenue({"S": a, "Y": b}, [X, y], order_latency_ns=0, report_latency_ns=0, fees=(1.0, 2.0))
    last = 0
    for s in ("S", "Y"):
        v.send(NewOrder(s, s, 1, 5000, 1, "limit"))
    while (word := v.next_word(NEVER - 1)) is not None:
        assert word[0] >= last
        last = word[0]
    e = {x.symbol: x for x in v.fills}
    assert v.rows == 800 and v.cash == pytest.approx(-sum((X, y)[s == "Y"].value(f.price_ticks, 1) * (1 + 1e-4 * (1 if f.maker else 2)) for s, f in e.items()))


@pytest.mark.parametrize("preset", ["example-maker-taker", "example-broker", "example-coins"])
def test_fee_schedules_charge_what_their_meter_says(preset):
    v = placed(l2(BOOK2 + [(20 + t, TRADE, -1, 98, 2) for t in range(5)]), NewOrder("a", "S", 1, 100, 9), NewOrder("b", "S", 1, 101, 2, "ioc"), fees=preset)
    v.advance(T0 + 100)
    meter = FeeMeter(PRESETS[preset])
    for e in v.fills:
        assert e.fee == pytest.approx(meter.fill(e.price_ticks * 0.01, e.qty_lots, maker=e.maker, order=e.client_id))
    assert len(v.fills) == 6 and v.fees_paid == pytest.approx(meter.total)


def test_expired_instruments_take_no_orders():
    x = Instrument("S", 0.01, kind="future", expiry_ns=T0 + 50)
    v = ReplayVenue({"S": l2(BOOK2)}, [x], order_latency_ns=0, report_latency_ns=0)
    v.advance(T0 + 50)
    v.send(NewOrder("a", "S", 1, 99, 1))
    (r,) = v.take_reports(T0 + 60)
    assert r.kind == "rejected" and r.definitive and "expired" in r.reason


def test_snapshots_travel_and_hold_everything():
    v = placed(l2(BOOK2 + [(20, TRADE, -1, 99, 9)]), NewOrder("a", "S", 1, 99, 1), NewOrder("b", "S", 1, 98, 2), cash=100.0)
    v.advance(T0 + 30)
    v.request_snapshot()
    words = []
    while (word := v.next_word(T0 + 40)) is not None:
        words.append(word[1])
    (snap,) = [w for w in words if isinstance(w, VenueSnapshot)]
    assert [o.client_id for o in snap.orders] == ["b"] and len(snap.executions) == 1 and snap.positions == {"S": 1} and snap.cash == pytest.approx(99.01)
    assert v.snapshot(v.now_ns).executions == ()


def test_bad_input_is_named():
    events = l2(BOOK2)
    for settings, words in (({"queue": "nearest"}, "queue = 'nearest'"), ({"fees": (1.0,)}, "fees = "), ({"report_latency_ns": -1}, "report_latency_ns"),
                            ({"queue": "fifo"}, "order by order")):
        with pytest.raises(ParameterError, match=words):
            ReplayVenue({"S": events}, [X], **settings)
    with pytest.raises(ParameterError, match="is missing"):
        ReplayVenue({"S": events}, [Instrument("T", 0.01)])
    with pytest.raises(DataError, match="no rows"):
        ReplayVenue({"S": events_of([(T0, T0, 1, 1, 1, 1, 0, 3)]).between(0, 1)}, [X])
    with pytest.raises(DataError, match="sort the events"):
        list(ReplayVenue({"S": l2(BOOK2[::-1] + [(50, DEPTH, 1, 99, 1), (40, DEPTH, 1, 99, 1)])}, [X])._seen)
    with pytest.raises(ParameterError, match="disconnects"):
        Faults(disconnects=((5, 3),))
    with pytest.raises(ParameterError, match="add up"):
        Faults(rng=np.random.default_rng(1), drop=0.6, delay=0.6)
