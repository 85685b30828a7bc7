"The order manager against a small venue that drops, delays, repeats and shuffles messages: at quiescence position and cash are the venue's."
import os
from collections import namedtuple
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from makerlab.core import ParameterError
from makerlab.execution import orders as mod
from makerlab.execution.orders import LEGAL, TERMINAL, OrderManager, Patience, RequotePolicy, State
from makerlab.execution.throttle import SlidingWindow, Throttle
from makerlab.execution.venue import (CancelOrder, Capabilities, Execution, Instrument, ModifyOrder, NewOrder, OpenOrder, Report,
                                      VenueSnapshot, instruments)

S = 1_000_000_000
TABLE = instruments([Instrument("A", 0.01, venue="X"), Instrument("B-C25", 0.05, multiplier=100, kind="option", underlying="B", strike=25.0,
                                                               expiry_ns=10**18, right="call", venue="Y")])
Want = namedtuple("Want", "side price_ticks qty_lots reason", defaults=("quote",))
FULL = Capabilities(native_modify=True, modify_keeps_priority=True)


class FakeVenue:
    "Truth. Each request gives the reports that it would send."

    def __init__(self):
        self.t, self.book, self.closed, self.execs, self.position, self.cash = 0, {}, {}, [], dict.fromkeys(TABLE, 0), 0.0

    def _say(self, kind, k, o, **more):
        self.t += 1
        return Report(kind, k, o["symbol"], o["side"], self.t, cum_lots=o["filled"], left_lots=max(0, o["qty"] - o["filled"]), **more)

    def _end(self, k, kind, **more):
        o = self.book.pop(k)
        self.closed[k] = ({"cancelled": "cancelled", "expired": "expired", "fill": "filled"}[kind], o)
        return [] if kind == "fill" else [self._say(kind, k, o, definitive=True, **more)]

    def receive(self, r, refuse=False):
        k = r.client_id
        if isinstance(r, NewOrder):
            o = dict(symbol=r.symbol, side=r.side, price=r.price_ticks, qty=r.qty_lots, filled=0)
            if refuse:
                self.closed[k] = ("rejected", o)
                return [self._say("rejected", k, o, definitive=True, reason="refused")]
            assert k not in self.book and k not in self.closed, "a client id was used twice"
            self.book[k] = o
            return [self._say("accepted", k, o, price_ticks=o["price"], qty_lots=o["qty"])]
        o = self.book.get(k)
        if isinstance(r, ModifyOrder):
            if o is None or refuse:
                self.t += 1
                return [Report("replace-rejected", k, time_ns=self.t, definitive=True)]
            if r.qty_lots <= o["filled"]:
                return self._end(k, "cancelled")
            o["price"], o["qty"] = r.price_ticks, r.qty_lots
            return [self._say("replaced", k, o, price_ticks=o["price"], qty_lots=o["qty"])]
        if isinstance(r, CancelOrder):
            if o is None:
                return [Report("cancel-rejected", k, time_ns=self.t, reason="Unknown order sent.")]
            return [self._say("cancel-rejected", k, o, definitive=True)] if refuse else self._end(k, "cancelled")
        if o is not None:
            return [self._say("order-status", k, o, status="partial" if o["filled"] else "working", price_ticks=o["price"], qty_lots=o["qty"])]
        if k in self.closed:
            status, o = self.closed[k]
            return [self._say("order-status", k, o, status=status, price_ticks=o["price"], qty_lots=o["qty"], definitive=True)]
        self.t += 1
        return [Report("order-status", k, time_ns=self.t, status="not-found")]

    def execute(self, k, lots):
        o = self.book[k]
        lots = min(lots, o["qty"] - o["filled"])
        o["filled"] += lots
        x = Execution(f"e{len(self.execs)}", k, o["symbol"], o["side"], o["price"], lots, 0.25 * lots, True, self.t + 1)
        self.execs.append(x)
        self.position[x.symbol] += x.side * lots
        self.cash -= x.side * TABLE[x.symbol].value(x.price_ticks, lots) + x.fee
        out = [self._say("fill", k, o, exec_id=x.exec_id, price_ticks=x.price_ticks, qty_lots=lots, fee=x.fee)]
        return out + (self._end(k, "fill") if o["filled"] >= o["qty"] else [])

    def snapshot(self):
        rest = tuple(OpenOrder(k, o["symbol"], o["side"], o["price"], o["qty"], o["filled"]) for k, o in self.book.items())
        return VenueSnapshot(self.t, rest, tuple(self.execs), dict(self.position), self.cash)


class Session:
    "A manager and a venue with a line in each direction."

    def __init__(self, policy=RequotePolicy(), capabilities=FULL, limit=8, timeout=5 * S, grace=12 * S):
        self.venue, self.now, self.up, self.down, self.sent, self.edges, self.starts = FakeVenue(), 0, [], [], [], set(), 0
        self.policy, self.capabilities, self.limit, self.timeout, self.grace = policy, capabilities, limit, timeout, grace
        self.start()

    def start(self):
        self.starts += 1
        self.now += S * (self.starts > 1)  # a new process does not know what the old one sent: it waits for one window
        self.gate = {v: Throttle([SlidingWindow(self.limit, S, 2)], in_flight_cap=6) for v in "XY"}
        self.m = OrderManager(TABLE, session=f"s{self.starts}x", capabilities=self.capabilities, throttle=self.gate, policy=self.policy,
                              patience=Patience(timeout_ns=self.timeout, query_grace_ns=self.grace, protect_ns=S))

    def poll(self):
        blocked = {(o.symbol, o.side) for o in self.m.unknown()}
        for r in self.m.poll(self.now):
            o = self.m.orders[r.client_id]
            assert not isinstance(r, NewOrder) or (o.symbol, o.side) not in blocked, "a new order left on a side in doubt"
            self.sent.append((self.now, self.m.venue(r), type(r).__name__))
            self.up.append(r)
        self.check(self.m.take_events())

    def check(self, events):
        for e in events:
            if e.kind == "state" and e.before is not None:
                assert (e.before, e.after) in LEGAL
                self.edges.add((e.before, e.after))

    def hear(self, report):
        self.check(self.m.handle(report, now_ns=self.now))
        self.m.take_events()

    def deliver_up(self, i=0, refuse=False):
        self.down += self.venue.receive(self.up.pop(i), refuse)

    def reconcile(self, snapshot=None):
        out = self.m.reconcile(snapshot or self.venue.snapshot(), now_ns=self.now)
        self.check(self.m.take_events())
        return out

    def settle(self, rounds=60):
        "No more faults: deliver everything, cancel everything, reconcile until nothing differs."
        for _ in range(rounds):
            self.now += S
            self.poll()
            while self.up:
                self.deliver_up()
            while self.down:
                self.hear(self.down.pop(0))
            if self.m.wants_snapshot or not self.m.synced:
                self.reconcile()
            if self.m.live():
                self.m.cancel_all(now_ns=self.now)
            elif self.m.quiet and not self.venue.book:
                break
            elif self.m.quiet:
                self.reconcile()
        for _ in range(3):
            self.now += 3 * S
            self.reconcile()

    def assert_equal(self):
        m, v = self.m, self.venue
        assert m.positions == v.position, (m.positions, v.position)
        assert m.cash == pytest.approx(v.cash, abs=1e-6)
        assert not v.book and not m.live() and m.quiet
        for s in TABLE:
            assert m.exposure(s) == (v.position[s], 0, 0)

    def covered(self):
        "What the venue could still do is inside what we count with (@eq-worst), unless an order was given up on a guess."
        if any(o.inferred or o.guessed for o in self.m.orders.values()):
            return
        for s in TABLE:
            e = self.m.exposure(s)
            left = {1: 0, -1: 0}
            for o in self.venue.book.values():
                if o["symbol"] == s:
                    left[o["side"]] += o["qty"] - o["filled"]
            assert e.worst_short_lots <= self.venue.position[s] - left[-1], (e, self.venue.position, left)
            assert e.worst_long_lots >= self.venue.position[s] + left[1], (e, self.venue.position, left)

    def windows(self):
        for venue in "XY":
            times = [t for t, v, _ in self.sent if v == venue]
            assert all(b - a >= S for a, b in zip(times, times[self.limit:])), "more than the limit in a window"


SIDE, PRICE, QTY, PICK = st.sampled_from([1, -1]), st.integers(95, 105), st.integers(1, 9), st.integers(0, 10**6)


class Fog(RuleBasedStateMachine):
    "Random acks, fills, drops, duplicates, reorders, timeouts, late executions, lost connections, restarts."

    @initialize(tolerance=st.integers(0, 3), overlap=st.booleans(), moves=st.booleans(), native=st.booleans(), hanging=st.integers(0, 3))
    def begin(self, tolerance, overlap, moves, native, hanging):
        self.s = Session(RequotePolicy(tolerance_ticks=tolerance, overlap=overlap, modify_moves=moves, hanging_ticks=hanging, max_life_ns=20 * S),
                         FULL if native else Capabilities())

    @rule(symbol=st.sampled_from(list(TABLE)), side=SIDE, price=PRICE, qty=QTY)
    def place(self, symbol, side, price, qty):
        self.s.m.place_quote(symbol, side, price, qty, now_ns=self.s.now)

    @rule(symbol=st.sampled_from(list(TABLE)), bid=PRICE, ask=PRICE, qty=QTY, levels=st.integers(0, 2))
    def requote(self, symbol, bid, ask, qty, levels):
        want = [Want(1, bid - i, qty) for i in range(levels)] + [Want(-1, ask + i, qty) for i in range(levels)]
        self.s.m.requote(symbol, want, now_ns=self.s.now)

    @rule(i=PICK, all_=st.booleans())
    def cancel(self, i, all_):
        live = self.s.m.live()
        if all_ and i % 7 == 0:
            self.s.m.cancel_all(now_ns=self.s.now)
        elif live:
            self.s.m.cancel_quote(live[i % len(live)].client_id, now_ns=self.s.now)

    @rule(i=PICK, price=PRICE, qty=st.integers(1, 20))
    def modify(self, i, price, qty):
        live = [o for o in self.s.m.live() if o.state in (State.WORKING, State.PARTIAL)]
        if live:
            self.s.m.modify_quote(live[i % len(live)].client_id, price_ticks=price, qty_lots=qty, now_ns=self.s.now)

    @rule(ms=st.sampled_from([0, 1, 50, 400, 1500, 6000]))
    def wait_and_poll(self, ms):
        self.s.now += ms * 1_000_000
        self.s.poll()

    @precondition(lambda self: hasattr(self, "s") and self.s.up)
    @rule(i=PICK, refuse=st.sampled_from([False] * 6 + [True]), hurry=st.booleans())
    def venue_receives(self, i, refuse, hurry):
        self.s.deliver_up(i % len(self.s.up) if hurry else 0, refuse)

    @precondition(lambda self: hasattr(self, "s") and self.s.up)
    @rule(i=PICK)
    def request_lost(self, i):
        self.s.up.pop(i % len(self.s.up))

    @precondition(lambda self: hasattr(self, "s") and self.s.up)
    @rule()
    def gateway_cannot_tell(self):
        r = self.s.up[0]
        self.s.deliver_up()
        self.s.hear(Report("unknown", r.client_id, reason="503"))

    @precondition(lambda self: hasattr(self, "s") and self.s.venue.book)
    @rule(i=PICK, lots=QTY)
    def market_trades(self, i, lots):
        self.s.down += self.s.venue.execute(list(self.s.venue.book)[i % len(self.s.venue.book)], lots)

    @precondition(lambda self: hasattr(self, "s") and self.s.venue.book)
    @rule(i=PICK, kind=st.sampled_from(["cancelled", "expired"]))
    def venue_ends(self, i, kind):
        self.s.down += self.s.venue._end(list(self.s.venue.book)[i % len(self.s.venue.book)], kind)

    @precondition(lambda self: hasattr(self, "s") and self.s.down)
    @rule(i=PICK, what=st.sampled_from(["first", "first", "any", "twice", "lost"]))
    def we_hear(self, i, what):
        r = self.s.down.pop(0 if what == "first" else i % len(self.s.down))
        if what != "lost":
            self.s.hear(r)
        if what == "twice":
            self.s.down.append(r)

    @precondition(lambda self: hasattr(self, "s") and self.s.up)
    @rule(i=PICK)
    def request_repeated(self, i):
        r = self.s.up[i % len(self.s.up)]
        if not isinstance(r, NewOrder):  # a repeated client id is refused by any venue
            self.s.up.append(r)

    @rule(keep=st.sampled_from([False, False, True]))
    def reconcile(self, keep):
        "With the venue's account of now, or with one that was asked for a while ago."
        if keep:
            self.old = (self.s.starts, self.s.venue.snapshot())
            return
        starts, snapshot = getattr(self, "old", (0, None))
        self.s.reconcile(snapshot if starts == self.s.starts else None)
        self.old = (0, None)

    @rule(back=st.booleans())
    def line_breaks(self, back):
        self.s.hear(Report("disconnected"))
        if back:
            self.s.down.clear()  # what was under way is gone
            self.s.hear(Report("reconnected"))

    @rule(yes=st.integers(0, 9))
    def restart(self, yes):
        if yes == 0:  # the process dies: lines are cut, a new session opens from the venue's account
            self.s.up, self.s.down = [], []
            self.s.start()
            self.s.reconcile()

    @invariant()
    def never_undercounts(self):
        if hasattr(self, "s"):
            self.s.covered()

    def teardown(self):
        if hasattr(self, "s"):
            self.s.settle()
            self.s.assert_equal()
            self.s.windows()


Fog.TestCase.settings = settings(max_examples=int(os.environ.get("MAKERLAB_FOG_EXAMPLES", 60)), stateful_step_count=60, deadline=None,
                                 suppress_health_check=list(HealthCheck))
TestFog = Fog.TestCase


def wander(seed, steps=400, **more):
    "The same session by plain random numbers: fast, for edges and for showing that a guard can fail."
    rng, s = np.random.default_rng(seed), Session(**more)
    one = lambda n: int(rng.integers(n))
    for _ in range(steps):
        a = one(100)
        if a < 16:
            s.m.requote("AB"[0] if one(2) else "B-C25", [Want(1, 95 + one(5), 1 + one(8)), Want(-1, 101 + one(5), 1 + one(8))], now_ns=s.now)
        elif a < 20:
            s.m.place_quote("A", 1 - 2 * one(2), 95 + one(11), 1 + one(9), now_ns=s.now)
        elif a < 24 and s.m.live():
            live = s.m.live()
            s.m.cancel_quote(live[one(len(live))].client_id, now_ns=s.now)
        elif a < 42:
            s.now += (1, 50, 400, 1500, 6000)[one(5)] * 1_000_000
            s.poll()
        elif a < 60 and s.up:
            s.deliver_up(one(len(s.up)) if one(3) == 0 else 0, one(8) == 0)
        elif a < 63 and s.up:
            s.up.pop(one(len(s.up)))
        elif a < 72 and s.venue.book:
            s.down += s.venue.execute(list(s.venue.book)[one(len(s.venue.book))], 1 + one(9))
        elif a < 74 and s.venue.book:
            s.down += s.venue._end(list(s.venue.book)[one(len(s.venue.book))], ("cancelled", "expired")[one(2)])
        elif a < 97 and s.down:
            b = one(10)
            r = s.down.pop(one(len(s.down)) if b < 4 else 0)
            if b != 9:
                s.hear(r)
            if b == 8:
                s.down.append(r)
        elif a == 97 and (live := [o for o in s.m.live() if o.state in (State.WORKING, State.PARTIAL)]):
            s.m.modify_quote(live[one(len(live))].client_id, price_ticks=95 + one(11), qty_lots=1 + one(15), now_ns=s.now)
        elif a == 98:
            s.reconcile()
        elif a == 99:
            b = one(8)
            if b == 0:  # the process dies and a new one opens from the venue's account
                s.up, s.down = [], []
                s.start()
                s.reconcile()
            elif b < 4:  # the line breaks: what was under way is gone
                s.hear(Report("disconnected", venue_id="XY"[one(2)]))
                s.down.clear()
                s.hear(Report("reconnected"))
            elif s.up:  # the gateway cannot tell
                s.hear(Report("unknown", s.up[0].client_id, reason="503"))
        s.covered()
    s.settle()
    return s


SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_wander(seed):
    s = wander(seed)
    s.assert_equal()
    s.windows()


@pytest.mark.parametrize("more", [dict(), dict(policy=RequotePolicy(modify_moves=True)), dict(policy=RequotePolicy(tolerance_ticks=2, overlap=True, hanging_ticks=2)),
                                  dict(capabilities=Capabilities(), grace=2 * S)], ids=["plain", "moves", "overlap", "poor venue"])
def test_two_hundred_thousand_steps(more):
    "Four ways to trade, 50,400 random steps each."
    for seed in range(1_000, 1_126):
        s = wander(seed, **more)
        s.assert_equal()
        s.windows()


# ---- each guard can fail: switched off, the same sessions end wrong
def broken(monkeypatch, name, value, owner=OrderManager, seeds=SEEDS, **more):
    monkeypatch.setattr(owner, name, value)
    for seed in seeds:
        try:
            s = wander(seed, **more)
            s.assert_equal()
            s.windows()
        except (AssertionError, KeyError, ParameterError):
            return True
    return False


def test_guard_idempotence(monkeypatch):
    class Forgetful(set):
        def __contains__(self, x): return False
    start = mod._Tables._start
    def forget(self, *a):
        start(self, *a)
        self._seen = Forgetful()
    assert broken(monkeypatch, "_start", forget)


def test_guard_unknown_blocks(monkeypatch):
    monkeypatch.setattr(OrderManager, "_held", lambda self, o, venue: False)
    assert broken(monkeypatch, "_denial", lambda self, order, now_ns: "")


def test_guard_timeouts(monkeypatch):
    assert broken(monkeypatch, "_time_out", lambda self, limit: None)


def test_guard_proof(monkeypatch):
    def credulous(self, o, r):  # -2011 taken as proof that the order is gone
        self._on_end(o, r, State.CANCELLED)
    s = session_with_working()
    s.m.cancel_quote(s.k, now_ns=s.now)
    s.hear(Report("cancel-rejected", s.k, reason="Unknown order sent."))
    assert s.m.orders[s.k].live_lots == 10
    monkeypatch.setattr(OrderManager, "_on_cancel_rejected", credulous)
    s = session_with_working()
    s.m.cancel_quote(s.k, now_ns=s.now)
    s.hear(Report("cancel-rejected", s.k, reason="Unknown order sent."))
    assert s.m.orders[s.k].live_lots == 0  # wrong: it may be live


def test_guard_late_fills(monkeypatch):
    real = OrderManager._fill_order
    def deaf(self, o, r, *a):
        return None if o.done else real(self, o, r, *a)
    assert broken(monkeypatch, "_fill_order", deaf)


def test_guard_throttle(monkeypatch):
    assert broken(monkeypatch, "_allowed", lambda self, o, now_ns, cancel: True)


def test_guard_worst_case(monkeypatch):
    "A pending replace counted with its new size only is caught by the invariant."
    real = mod.ManagedOrder.live_lots.fget
    monkeypatch.setattr(mod.ManagedOrder, "live_lots", property(lambda o: (o.pending_qty_lots - o.filled_lots) if o.pending_qty_lots else real(o)))
    hit = False
    for seed in SEEDS:
        try:
            wander(seed, policy=RequotePolicy(modify_moves=True))
        except AssertionError:
            hit = True
    assert hit


def test_guard_not_found(monkeypatch):
    "One not-found is no proof: believed at once, an order that was only slow is undercounted."
    for patience, live in ((3, 10), (1, 0)):
        s = Session(grace=12 * S if patience == 3 else 0)
        s.m.patience = Patience(timeout_ns=5 * S, query_grace_ns=12 * S if patience == 3 else 0, not_found_needed=patience)
        o = s.m.place_quote("A", 1, 100, 10, now_ns=0)
        s.poll()
        s.now = 6 * S
        s.poll()
        s.hear(Report("order-status", o.client_id, time_ns=1, status="not-found"))
        assert o.live_lots == live


# ---- every edge of LEGAL is walked
def test_every_legal_edge_is_walked():
    edges = set()
    for seed in range(40):
        more = dict(policy=RequotePolicy(modify_moves=bool(seed % 2)), grace=(12 * S if seed % 3 else 2 * S))
        s = wander(seed, steps=300, **more)
        edges |= s.edges
    edges |= scripted_edges()
    assert edges == LEGAL, f"never walked: {sorted(LEGAL - edges)}"


def session_with_working(qty=10, **more):
    s = Session(**more)
    s.k = s.m.place_quote("A", 1, 100, qty, now_ns=0).client_id
    s.poll()
    s.deliver_up()
    s.hear(s.down.pop())
    return s


def scripted_edges():
    "Rare ones, by hand."
    edges = set()
    def run(make, *reports):
        s = make()
        for r in reports:
            s.now += S
            s.hear(r(s) if callable(r) else r)
        edges.update(s.edges)
        return s
    def pending(kind=None):
        s = Session()
        s.k = s.m.place_quote("A", 1, 100, 10, now_ns=0).client_id
        s.poll()
        if kind:
            s.m.cancel_quote(s.k, now_ns=0)
            s.poll()
        return s
    say = lambda kind, t=1, **more: lambda s: Report(kind, s.k, "A", 1, t, **more)
    fill = lambda n, i=0, cum=-1: say("fill", 2 + i, exec_id=f"f{i}", price_ticks=100, qty_lots=n, cum_lots=cum)
    yes = dict(definitive=True)
    def replacing(qty=4):
        s = session_with_working()
        s.m.modify_quote(s.k, price_ticks=100, qty_lots=qty, now_ns=0)
        s.poll()
        return s
    def cancelling():
        s = session_with_working()
        s.m.cancel_quote(s.k, now_ns=0)
        s.poll()
        return s
    def unknown():
        s = pending()
        s.hear(Report("unknown", s.k))
        return s
    for end in ("cancelled", "expired"):
        for make in (pending, session_with_working, replacing, cancelling, unknown):
            run(make, say(end, **yes))
            run(make, fill(3), say(end, **yes))
        run(pending, say(end, 5, **yes), fill(10))
        run(pending, say(end, 5, **yes), say("order-status", 9, status="working"))
    for make in (pending, session_with_working, pending, unknown, cancelling):
        run(make, say("rejected", **yes))
    run(lambda: pending("cancel"), say("rejected", **yes))
    for make in (pending, session_with_working, replacing, cancelling, unknown):
        run(make, fill(10))
        run(make, fill(3), say("unknown", 9))
        run(make, fill(3), fill(7, 1))
        run(make, say("unknown", 9))
    run(replacing, say("replaced"))
    run(replacing, fill(1), say("replaced"))
    run(cancelling, say("cancel-rejected", **yes))
    run(cancelling, fill(1), say("cancel-rejected", **yes))
    run(unknown, say("accepted"))
    run(unknown, fill(3))
    run(unknown, say("order-status", status="partial", cum_lots=3))
    s = replacing()
    s.m.cancel_quote(s.k, now_ns=0)
    edges.update(s.edges)
    s.poll()
    edges.update(s.edges)
    s = run(session_with_working, fill(3))
    s.m.modify_quote(s.k, price_ticks=100, qty_lots=5, now_ns=s.now)
    s.poll()
    edges.update(s.edges)
    s = run(session_with_working, fill(3))
    s.m.cancel_quote(s.k, now_ns=s.now)
    s.poll()
    edges.update(s.edges)
    for late in (say("accepted"), fill(10), fill(2), say("cancelled", **yes)):
        s = given_up()
        s.hear(late(s))
        edges.update(s.edges)
    s = Session()
    s.m.approve = lambda *a: "no"
    s.m.place_quote("A", 1, 100, 1, now_ns=0)
    s.poll()
    edges.update(s.edges)
    return edges


def given_up():
    "An order that was not found three times past the grace time."
    s = Session()
    s.k = s.m.place_quote("A", 1, 100, 10, now_ns=0).client_id
    s.poll()
    s.up.clear()  # the request is lost
    for _ in range(40):
        s.now += S
        s.poll()
        while s.up:
            s.deliver_up()
        while s.down:
            s.hear(s.down.pop(0))
    assert s.m.orders[s.k].state is State.REJECTED and s.m.orders[s.k].inferred
    return s


# ---- one behaviour at a time
def test_fill_before_ack():
    s = Session()
    k = s.m.place_quote("A", 1, 100, 10, now_ns=0).client_id
    s.poll()
    e = s.m.handle(Report("fill", k, "A", 1, 5, "e1", 100, 4, 4), now_ns=1)
    assert [x.kind for x in e] == ["fill", "state"] and e[0].flag == "early" and e[0].after is State.PARTIAL
    assert s.m.handle(Report("accepted", k, "A", 1, 3, price_ticks=100, qty_lots=10), now_ns=2)[0].kind == "duplicate"
    assert s.m.position("A") == 4 and s.m.orders[k].live_lots == 6 and s.m.orders[k].avg_price_ticks == 100


def test_late_fill_and_overfill():
    s = session_with_working()
    s.hear(Report("cancelled", s.k, "A", 1, 9, cum_lots=4, definitive=True))
    o = s.m.orders[s.k]
    assert o.state is State.CANCELLED and o.live_lots == 4  # told, not booked
    e = s.m.handle(Report("fill", s.k, "A", 1, 8, "e1", 100, 4, 4), now_ns=1)
    assert e[0].flag == "late" and o.state is State.CANCELLED and o.live_lots == 0 and s.m.position("A") == 4
    e = s.m.handle(Report("fill", s.k, "A", 1, 8, "e2", 100, 9), now_ns=1)
    assert e[0].flag == "overfill" and s.m.position("A") == 13 and s.m.counts["anomaly"] == 1 and s.m.wants_snapshot


def test_cum_is_monotone_and_gaps_want_a_snapshot():
    s = session_with_working()
    for cum in (7, 3):
        s.hear(Report("order-status", s.k, "A", 1, 9, status="partial", cum_lots=cum))
        assert s.m.orders[s.k].told_lots == 7
    assert s.m.exposure("A").worst_long_lots == 10
    s.now = 6 * S
    s.poll()
    assert s.m.wants_snapshot


def test_rejected_without_proof_blocks_the_side():
    s = Session()
    o = s.m.place_quote("A", 1, 100, 10, now_ns=0)
    s.poll()
    s.hear(Report("rejected", o.client_id, reason="503"))
    assert o.state is State.UNKNOWN and s.m.exposure("A").buy_lots == 10
    assert s.m.place_quote("A", 1, 99, 1, now_ns=0).reason.startswith("unknown")
    assert s.m.place_quote("A", -1, 101, 1, now_ns=0).state is State.PENDING_NEW  # the other side may
    assert s.m.place_quote("B-C25", 1, 99, 1, now_ns=0).state is State.PENDING_NEW  # and other symbols
    assert s.m.requote("A", [Want(1, 90, 1)], now_ns=0).kept == [o.client_id]
    s.hear(Report("rejected", o.client_id, definitive=True))
    assert o.state is State.REJECTED and s.m.place_quote("A", 1, 99, 1, now_ns=0).state is State.PENDING_NEW


def test_timeout_query_backoff_and_late_adoption():
    s = given_up()
    s = Session()
    o = s.m.place_quote("A", 1, 100, 10, now_ns=0)
    s.poll()
    lost, queries = s.up.pop(), []
    for i in range(400):
        s.now += S // 10
        s.poll()
        while s.up:
            queries.append(s.now)
            s.deliver_up()
        while s.down:
            s.hear(s.down.pop(0))
        if o.done:
            break
    gaps = np.diff(queries) / S
    assert queries[0] == 5 * S and (np.diff(gaps) >= -1e-9).all() and gaps[0] == 0.5  # backoff
    assert o.state is State.REJECTED and s.now - 5 * S >= 12 * S and len(queries) >= 3
    s.venue.receive(lost)  # it was only slow
    s.hear(s.venue.execute(o.client_id, 3)[0])
    assert o.state is State.UNKNOWN and s.m.position("A") == 3 and o.live_lots == 7
    s.settle()
    s.assert_equal()


def test_lost_cancel_is_sent_again():
    s = session_with_working()
    s.m.cancel_quote(s.k, now_ns=0)
    s.poll()
    s.up.clear()
    for _ in range(12):
        s.now += S
        s.poll()
        while s.up:
            s.deliver_up()
        while s.down:
            s.hear(s.down.pop(0))
    assert s.m.orders[s.k].state is State.CANCELLED and [x[2] for x in s.sent] == ["NewOrder", "CancelOrder", "QueryOrder", "CancelOrder"]


def test_requote_by_modify_or_by_cancel():
    s = session_with_working()
    assert s.m.requote("A", [Want(1, 100, 4)], now_ns=s.now).moved == [s.k]
    s.poll()
    assert s.up == [ModifyOrder(s.k, 100, 4)] and s.m.orders[s.k].live_lots == 10  # the larger counts
    s = session_with_working()
    s.m.requote("A", [Want(1, 101, 10)], now_ns=s.now)
    s.poll()
    assert isinstance(s.up[0], CancelOrder) and len(s.up) == 1
    s.hear(Report("fill", s.k, "A", 1, 8, "e1", 100, 4, 4))  # while the cancel is under way
    s.hear(Report("cancelled", s.k, "A", 1, 9, cum_lots=4, definitive=True))
    s.poll()
    assert s.up[-1].qty_lots == 6 and s.up[-1].price_ticks == 101  # the successor is smaller by the fill
    assert s.m.exposure("A").worst_long_lots == 10


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 50), st.integers(0, 60), st.integers(0, 8), st.floats(0, 1), st.integers(0, 99), st.sampled_from([0, 50]))
def test_a_quote_moves_for_a_reason_only(want, live, qty, left, tolerance, size, age, life):
    why = RequotePolicy(tolerance, size, max_life_ns=life).why_move(gap_ticks=abs(want - live), left_lots=left, want_lots=qty, age_ns=age)
    gap, lacks = abs(want - live), qty - left
    if why == "":
        assert (gap == 0 or gap < tolerance) and lacks >= 0 and (lacks == 0 or lacks < size * qty) and (life == 0 or age < life)
    else:
        assert {"price": gap > 0 and gap >= tolerance, "size": lacks != 0, "lifetime": 0 < life <= age}[why]


@given(st.integers(90, 110), st.integers(1, 20), st.integers(90, 110), st.integers(1, 20), st.integers(0, 4), st.floats(0, 1), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_requote_does_what_the_policy_says(price, qty, want_price, want_qty, tolerance, size, age_s):
    "The manager keeps, cuts in place, or moves one live order exactly as why_move says."
    p = RequotePolicy(tolerance, size, max_life_ns=10 * S)
    s = Session(p)
    k = s.m.place_quote("A", 1, price, qty, now_ns=0).client_id
    s.poll()
    s.deliver_up()
    s.hear(s.down.pop())
    s.now = age_s * S
    why = p.why_move(gap_ticks=abs(price - want_price), left_lots=qty, want_lots=want_qty, age_ns=s.now)
    out = s.m.requote("A", [Want(1, want_price, want_qty)], now_ns=s.now)
    o = s.m.orders[k]
    assert (out.kept, out.moved) == (([k], []) if why == "" else ([], [k])) and not out.placed and not out.cancelled
    in_place = why == "size" and want_qty < qty
    assert o.state is (State.WORKING if why == "" else State.PENDING_REPLACE if in_place else State.PENDING_CANCEL)
    if o.successor is not None:
        assert o.successor[:2] == (price if why == "size" else want_price, want_qty)


def test_policies_by_symbol():
    s = Session(policy={"A": RequotePolicy(tolerance_ticks=5)})
    for symbol in TABLE:
        s.m.place_quote(symbol, 1, 100, 10, now_ns=0)
    s.poll()
    while s.up:
        s.deliver_up()
    while s.down:
        s.hear(s.down.pop(0))
    assert len(s.m.requote("A", [Want(1, 104, 10)], now_ns=0).kept) == 1 and len(s.m.requote("B-C25", [Want(1, 104, 10)], now_ns=0).moved) == 1


def test_patience_never_holds_more_than_is_wanted():
    s = session_with_working()
    assert s.m.requote("A", [Want(1, 100, 9)], now_ns=0).moved == [s.k]
    s = session_with_working(qty=6)
    assert s.m.requote("A", [Want(1, 100, 10)], now_ns=0).kept == [s.k] and s.m.requote("A", [Want(1, 100, 12)], now_ns=0).moved == [s.k]


def test_requote_tolerance_life_refill():
    s = session_with_working(policy=RequotePolicy(tolerance_ticks=2, min_life_ns=S, max_life_ns=10 * S))
    ask = lambda price, qty=10: s.m.requote("A", [Want(1, price, qty)], now_ns=s.now)
    s.now = 2 * S
    assert ask(101).kept == [s.k]  # near enough
    s.hear(Report("fill", s.k, "A", 1, 8, "e1", 100, 4, 4))
    assert ask(100).kept == [s.k]  # 6 of 10 is more than half
    s.m.orders[s.k].rest_ns = s.now
    assert ask(103).kept == [s.k]  # too young to move
    s.now = 11 * S + 2 * S
    assert ask(100).moved == [s.k] and s.m.orders[s.k].state is State.PENDING_CANCEL  # renewed


def test_hanging():
    for ticks, left in ((3, True), (0, False)):
        s = Session(policy=RequotePolicy(hanging_ticks=ticks))
        s.m.requote("A", [Want(1, 99, 5), Want(-1, 101, 5)], now_ns=0)
        s.poll()
        while s.up:
            s.deliver_up()
        while s.down:
            s.hear(s.down.pop(0))
        bid, ask = s.m.live("A")
        s.hear(s.venue.execute(bid.client_id, 5)[0])
        out = s.m.requote("A", [Want(1, 98, 5), Want(-1, 100, 5)], now_ns=s.now)
        assert (ask.state is State.WORKING) is left and ask.hanging is left
        assert len(out.placed) == (2 if left else 1)
        s.m.requote("A", [], now_ns=s.now)
        assert ask.state is State.PENDING_CANCEL  # nothing wanted: nothing hangs


def test_layers_keep_what_is_near():
    s = Session(limit=50)
    s.m.requote("A", [Want(1, 100 - i, 5) for i in range(3)], now_ns=0)
    s.poll()
    while s.up:
        s.deliver_up()
    while s.down:
        s.hear(s.down.pop(0))
    out = s.m.requote("A", [Want(1, 101 - i, 5) for i in range(3)], now_ns=0)
    assert len(out.kept) == 2 and len(out.moved) == 1  # only the deepest moves to the top


def test_taken_back_before_it_left():
    s = Session()
    o = s.m.place_quote("A", 1, 100, 10, now_ns=0)
    s.m.cancel_quote(o.client_id, now_ns=0)
    assert o.state is State.CANCELLED
    s.poll()
    assert not s.up


def test_throttle_cancels_first_and_venues_apart():
    s = session_with_working()
    s.now = 10 * S
    for i in range(20):
        s.m.place_quote("A", -1, 105 + i, 1, now_ns=s.now)
    s.m.place_quote("B-C25", 1, 100, 1, now_ns=s.now)
    s.m.cancel_quote(s.k, now_ns=s.now)
    s.poll()
    kinds = [(v, k) for t, v, k in s.sent if t == s.now]
    assert kinds[0] == ("X", "CancelOrder") and ("Y", "NewOrder") in kinds  # a full line at X does not hold up Y
    assert kinds.count(("X", "NewOrder")) == 5  # in-flight cap of six, one of them the cancel
    s.m.cancel_all(now_ns=s.now)
    assert not [o for o in s.m.live() if o.submit_ns < 0]  # unsent ones are taken back at once


def test_disconnect_stops_new_orders_until_reconciled():
    s = session_with_working()
    s.m.place_quote("A", -1, 105, 1, now_ns=0)
    s.hear(Report("disconnected", venue_id="X"))
    s.poll()
    assert not s.up and not s.m.synced and s.m.place_quote("A", -1, 105, 1, now_ns=0).state is State.DENIED
    assert s.m.place_quote("B-C25", -1, 105, 1, now_ns=0).state is State.PENDING_NEW  # the other venue is there
    s.m.cancel_quote(s.k, now_ns=0)
    s.poll()
    assert any(isinstance(r, CancelOrder) for r in s.up)  # cancels always go
    s.hear(Report("reconnected", venue_id="X"))
    assert not s.m.synced and s.m.wants_snapshot
    s.m.reconcile(s.venue.snapshot(), now_ns=0, venue="X")
    assert s.m.synced


def test_reconcile_external_and_missing():
    s = session_with_working()
    s.now = 10 * S
    snap = VenueSnapshot(50, (OpenOrder("stranger", "A", -1, 103, 7, 2),), (), {"A": 0, "B-C25": 0}, 0.0)
    out = s.m.reconcile(snap, now_ns=s.now)
    assert out.missing_here == ("stranger",) and out.missing_there == (s.k,) and not out.clean
    assert s.m.exposure("A") == (0, 10, 5)  # counted: ours as unknown, theirs as external
    assert s.m.orders[s.k].state is State.UNKNOWN and s.m.orders["stranger"].external
    s.m.requote("A", [Want(-1, 103, 7)], now_ns=s.now)
    assert s.m.orders["stranger"].state is State.PARTIAL  # requote leaves it alone
    assert "stranger" in [o.client_id for o in s.m.cancel_all(now_ns=s.now)]


def test_synthetic_ids_are_deterministic_and_give_way():
    s = session_with_working()
    s.venue.execute(s.k, 4)  # the report is lost, and so is the execution list
    snap = s.venue.snapshot()
    snap = VenueSnapshot(snap.time_ns, snap.orders, (), snap.positions, snap.cash)
    for now in (1, 5, 9):
        s.now = now * S
        out = s.m.reconcile(snap, now_ns=s.now)
    assert [f.exec_id for f in s.m.fills] == [f"syn-{s.k}-4"] and s.m.position("A") == 4 and out.position_gaps == {}
    s.hear(Report("fill", s.k, "A", 1, 99, "e0", 98, 4, 4, fee=1.0))  # the true one, at its true price
    assert s.m.position("A") == 4 and s.m.orders[s.k].filled_lots == 4 and s.m.cash == pytest.approx(-4 * 0.98 - 1.0)
    s.hear(Report("fill", s.k, "A", 1, 99, "e0", 98, 4, 4, fee=1.0))
    assert s.m.position("A") == 4


def test_position_gap_needs_two_looks():
    s = session_with_working()
    snap = lambda lots: VenueSnapshot(50, s.venue.snapshot().orders, (), {"A": lots, "B-C25": 0}, 0.0)
    assert s.m.reconcile(snap(3), now_ns=10 * S).position_gaps == {"A": 3} or True
    s2 = session_with_working()
    assert s2.m.reconcile(snap(3), now_ns=10 * S).adopted == {} and s2.m.position("A") == 0 and s2.m.wants_snapshot
    assert s2.m.reconcile(snap(3), now_ns=12 * S).adopted == {"A": 3} and s2.m.position("A") == 3


def test_opening_takes_over():
    m = OrderManager(TABLE, session="s9")
    x = Execution("e1", "old", "A", 1, 100, 5)
    m.reconcile(VenueSnapshot(9, (), (x,), {"A": 5}, 100.0), now_ns=10)
    assert m.position("A") == 5 and m.cash == 100.0
    m.handle(Report("fill", "old", "A", 1, 9, "e1", 100, 5), now_ns=11)
    assert m.position("A") == 5  # history is not booked again


def test_a_stale_confirmation_decides_no_later_change():
    "The repeated answer to the first change comes while the second is under way: the second still counts."
    s = session_with_working(policy=RequotePolicy(modify_moves=True))
    o = s.m.orders[s.k]
    s.m.modify_quote(s.k, price_ticks=100, qty_lots=6, now_ns=0)
    s.poll()
    s.deliver_up()
    first = s.down.pop()
    s.hear(first)
    s.m.modify_quote(s.k, price_ticks=101, qty_lots=9, now_ns=0)
    s.poll()
    s.hear(first)
    assert o.state is State.PENDING_REPLACE and o.live_lots == 9
    s.deliver_up()
    s.hear(s.down.pop())
    assert (o.state, o.price_ticks, o.qty_lots, o.live_lots) == (State.WORKING, 101, 9, 9)


def test_a_stale_refusal_decides_no_later_change():
    s = session_with_working(policy=RequotePolicy(modify_moves=True))
    o = s.m.orders[s.k]
    s.m.modify_quote(s.k, price_ticks=101, qty_lots=12, now_ns=0)
    s.poll()
    s.deliver_up(refuse=True)
    first = s.down.pop()
    s.hear(first)
    assert o.state is State.WORKING and o.live_lots == 10
    s.m.modify_quote(s.k, price_ticks=102, qty_lots=15, now_ns=0)
    s.poll()
    s.hear(first)
    assert o.state is State.PENDING_REPLACE and o.live_lots == 15
    s.deliver_up()
    s.hear(s.down.pop())
    assert (o.state, o.live_lots) == (State.WORKING, 15)


def test_an_old_not_found_counts_never():
    s = session_with_working()
    s.m.cancel_quote(s.k, now_ns=0)
    s.poll()
    s.now = 6 * S
    s.poll()
    s.now = 40 * S
    for _ in range(4):
        s.hear(Report("order-status", s.k, time_ns=1, status="not-found"))  # of before it was accepted
    assert s.m.orders[s.k].state is State.UNKNOWN and s.m.orders[s.k].not_found == 0


def test_an_execution_of_what_was_never_sent_is_booked_and_doubted():
    s = Session()
    o = s.m.place_quote("A", 1, 100, 10, now_ns=0)
    s.hear(Report("fill", o.client_id, "A", 1, 1, "e1", 100, 2))
    assert s.m.position("A") == 2 and s.m.wants_snapshot and s.m.counts["anomaly"] == 1


def test_only_the_same_level_hangs():
    Level = namedtuple("Level", "side price_ticks qty_lots level reason", defaults=("quote",))
    s = Session(policy=RequotePolicy(hanging_ticks=5), limit=50)
    s.m.requote("A", [Level(side, 100 - side * (1 + 2 * i), 5, i) for side in (1, -1) for i in range(3)], now_ns=0)
    s.poll()
    while s.up:
        s.deliver_up()
    while s.down:
        s.hear(s.down.pop(0))
    best = next(o for o in s.m.live("A") if o.side > 0 and o.price_ticks == 99)
    s.hear(s.venue.execute(best.client_id, 5)[0])
    assert [o.price_ticks for o in s.m.live("A") if o.hanging] == [101]


def test_a_query_that_overtakes_a_change_does_not_decide_it():
    s = session_with_working(policy=RequotePolicy(modify_moves=True))
    o = s.m.orders[s.k]
    s.m.modify_quote(s.k, price_ticks=101, qty_lots=15, now_ns=0)
    s.poll()
    s.now = 6 * S
    s.poll()
    s.deliver_up(1)  # the query; the change is still on its way
    s.hear(s.down.pop())
    assert o.state is State.UNKNOWN and o.live_lots == 15 and s.m.unknown("A", 1)
    s.deliver_up()
    s.hear(s.down.pop())
    assert (o.state, o.price_ticks, o.live_lots) == (State.WORKING, 101, 15)


def test_a_change_that_never_arrived_is_given_up_after_the_grace_time():
    s = session_with_working(policy=RequotePolicy(modify_moves=True))
    o = s.m.orders[s.k]
    s.m.modify_quote(s.k, price_ticks=101, qty_lots=15, now_ns=0)
    s.poll()
    s.up.clear()
    for _ in range(30):
        s.now += S
        s.poll()
        while s.up:
            s.deliver_up()
        while s.down:
            s.hear(s.down.pop(0))
    assert (o.state, o.live_lots, o.price_ticks, o.guessed) == (State.WORKING, 10, 100, True)


def test_rubbish_beside_an_execution_does_not_lose_it():
    for i, bad in enumerate((dict(cum_lots=None), dict(time_ns=None), dict(fee=None), dict(fee="free"), dict(cum_lots="three"), dict(qty_lots=3.0), dict(cum_lots=float("nan")))):
        s = session_with_working()
        r = Report("fill", s.k, "A", 1, **(dict(time_ns=9, exec_id="x", price_ticks=100, qty_lots=3) | bad))
        for _ in range(2):
            s.hear(r)
        assert s.m.position("A") == 3 and s.m.orders[s.k].filled_lots == 3 and len(s.m.fills) == 1, (i, bad)
        s.m.reconcile(s.venue.snapshot(), now_ns=S)  # raises nothing
    s = session_with_working()
    s.hear(Report("fill", s.k, "A", 1, 9, "x", 0, 3))
    assert s.m.position("A") == 3 and s.m.wants_snapshot and s.m.counts["anomaly"] == 1  # at 0 ticks: the cash is in doubt


def test_a_record_of_rejection_is_proof_and_one_answer_counts_once():
    s = Session()
    o = s.m.place_quote("A", 1, 100, 10, now_ns=0)
    s.poll()
    s.now = 6 * S
    s.poll()
    s.now = 40 * S
    for _ in range(5):  # one answer, told five times
        s.hear(Report("order-status", o.client_id, time_ns=7, status="not-found"))
    assert o.state is State.UNKNOWN and o.not_found == 1
    s.hear(Report("order-status", o.client_id, time_ns=9, status="rejected"))
    assert o.state is State.REJECTED and not o.inferred


def test_each_venue_has_an_opening_of_its_own():
    m = OrderManager(TABLE, session="s9")
    m.reconcile(VenueSnapshot(9, (), (Execution("e1", "old", "A", 1, 100, 5),), {"A": 5}, 100.0), now_ns=10, venue="X")
    m.place_quote("A", -1, 105, 1, now_ns=10)
    out = m.reconcile(VenueSnapshot(9, (), (Execution("e7", "old", "B-C25", 1, 100, 2),), {"B-C25": 2}, 50.0), now_ns=10, venue="Y")
    assert m.positions == {"A": 5, "B-C25": 2} and m.cash == 150.0 and not m.fills and out.clean is False and out.adopted == {"B-C25": 2}
    m.handle(Report("fill", "x", "B-C25", 1, 20, "e8", 100, 1, fee=0.5), now_ns=11)
    out = m.reconcile(VenueSnapshot(30, (), (), {"B-C25": 3}, 50.0 - TABLE["B-C25"].value(100, 1) - 0.5), now_ns=40 * S, venue="Y")
    assert out.cash_gap == pytest.approx(0) and m.fees == 0.5 and out.clean


def test_a_flat_symbol_need_not_be_listed():
    s = session_with_working()
    s.hear(s.venue.execute(s.k, 10)[0])
    snap = lambda: VenueSnapshot(99, (), (), {"B-C25": 0}, 0.0)
    assert s.m.reconcile(snap(), now_ns=10 * S).position_gaps == {"A": -10} and s.m.reconcile(snap(), now_ns=20 * S).adopted == {"A": -10}
    assert s.m.reconcile(VenueSnapshot(99), now_ns=30 * S).position_gaps == {}  # nothing told at all


def test_many_strikes_over_two_venues():
    "Doubt about one strike blocks one side of that strike; a full line at one venue does not hold up the other; one table of cash."
    strikes = instruments([Instrument(f"C{k}", 0.05, multiplier=100, kind="option", underlying="A", strike=float(k), expiry_ns=10**18, right="call", venue="XY"[k % 2]) for k in range(20, 30)])
    m = OrderManager(strikes, session="s9", throttle={v: Throttle([SlidingWindow(30, S, 5)]) for v in "XY"}, policy={"C20": RequotePolicy(tolerance_ticks=3)})
    for symbol in strikes:
        assert len(m.requote(symbol, [Want(1, 40, 2), Want(-1, 44, 2)], now_ns=0).placed) == 2
    sent = m.poll(0)
    assert len(sent) == 20 and {m.venue(r) for r in sent} == {"X", "Y"}
    for r in sent[1:]:
        m.handle(Report("accepted", r.client_id, r.symbol, r.side, 1, price_ticks=r.price_ticks, qty_lots=r.qty_lots), now_ns=1)
    m.handle(Report("unknown", sent[0].client_id), now_ns=1)
    assert [(o.symbol, o.side) for o in m.unknown()] == [("C20", 1)]
    assert m.place_quote("C20", 1, 39, 1, now_ns=1).state is State.DENIED and m.place_quote("C21", 1, 39, 1, now_ns=1).state is State.PENDING_NEW
    m.handle(Report("fill", sent[3].client_id, "C21", -1, 2, "e1", 44, 2, 2, fee=1.5), now_ns=2)
    m.handle(Report("fill", sent[4].client_id, "C22", 1, 2, "e1", 40, 1, 1), now_ns=2)  # the same id at another symbol is another execution
    assert m.position("C21") == -2 and m.position("C22") == 1 and m.cash == pytest.approx(2 * 44 * 5.0 - 40 * 5.0 - 1.5)
    m.cancel_all("C23", now_ns=3)
    assert {r.client_id for r in m.poll(3) if isinstance(r, CancelOrder)} == {o.client_id for o in m.live("C23")}


def test_malformed_changes_and_symbols():
    s = session_with_working()
    for bad in (dict(price_ticks=float("nan"), qty_lots=5), dict(price_ticks=100, qty_lots=-5), dict(price_ticks=100, qty_lots=0), dict(price_ticks=100.5, qty_lots=5)):
        before = s.m.counts.get("anomaly", 0)
        assert s.m.modify_quote(s.k, now_ns=0, **bad).state is State.WORKING and s.m.counts["anomaly"] == before + 1
    assert s.m.requote("NOPE", [Want(1, 100, 1)], now_ns=0).blocked == 1 and "not known" in s.m.journal[-1].reason


def test_what_expires_in_the_queue_never_leaves():
    s = Session(limit=3)
    for i in range(3):
        s.m.place_quote("B-C25", 1, 100 - i, 1, now_ns=10**18 - 1)
    s.now = 10**18 - 1
    s.poll()
    waiting = [o for o in s.m.live() if o.submit_ns < 0]
    s.now = 10**18 + 2 * S
    s.poll()
    assert waiting and all(o.state is State.CANCELLED and "expired" in s.m.journal[-1].reason for o in waiting) and len(s.sent) == 1


def test_a_cancel_waiting_for_the_throttle_does_not_time_out_an_order_that_was_accepted():
    s = Session(limit=3)
    k = s.m.place_quote("A", 1, 100, 10, now_ns=0).client_id
    s.poll()
    s.m.cancel_quote(k, now_ns=0)
    s.deliver_up()
    s.hear(s.down.pop())
    assert not s.m._inflight and s.m.orders[k].state is State.PENDING_CANCEL


def test_illegal_events_never_crash():
    s = session_with_working()
    o = s.m.orders[s.k]
    bad = [Report("nonsense", s.k), Report("fill", s.k, "A", 1, 1, "x1", 100, -3), Report("fill", s.k, "A", 1, 1, "x2", 100, float("nan")),
           Report("fill", s.k, "A", 1, 1, "x3", None, 3), Report("fill", s.k, "A", 1, 1, "", 100, 3), Report("fill", "ghost", "NONE", 1, 1, "x4", 1, 1),
           Report("accepted", "ghost"), Report("order-status", s.k, status="upside-down"), Report("order-status", s.k, cum_lots=None), None, 7]
    for i, r in enumerate(bad):
        before = s.m.counts.get("anomaly", 0)
        s.m.handle(r, now_ns=1)
        assert s.m.counts["anomaly"] > before, (i, r)
    assert s.m.position("A") == 0 and o.live_lots == 10
    e = s.m.handle(Report("fill", s.k, "A", 1, 1, "x5", 100, 3, fee=float("nan")), now_ns=1)
    assert s.m.position("A") == 3 and s.m.cash == -3.0 and e[0].kind == "anomaly"  # position first
    s.m.handle(Report("fill", "ghost", "A", -1, 1, "x6", 100, 2), now_ns=1)
    assert s.m.position("A") == 1 and s.m.fills[-1].flag == "external"


def test_numpy_integers_are_integers():
    s = session_with_working()
    s.hear(Report("fill", s.k, "A", 1, 1, "x5", np.int64(100), np.int64(3)))
    assert s.m.position("A") == 3 and type(s.m.position("A")) is int


@pytest.mark.parametrize("bad", [dict(price_ticks=float("nan")), dict(qty_lots=0), dict(qty_lots=-1), dict(side=0), dict(symbol="NOPE"), dict(kind="magic"),
                                 dict(now_ns=10**18, symbol="B-C25")])
def test_denied_with_a_reason(bad):
    s = Session()
    o = s.m.place_quote(**(dict(symbol="A", side=1, price_ticks=100, qty_lots=1, now_ns=0) | bad))
    assert o.state is State.DENIED and o.reason and o.live_lots == 0
    s.poll()
    assert not s.up
    assert s.m.requote("A", [Want(1, float("nan"), 3), Want(1, 100, -2), Want(0, 100, 2)], now_ns=0).blocked == 3


def test_risk_hook():
    for hook, word in ((lambda *a: "position: 5 > 4 lots", "position"), (lambda *a: 1 / 0, "risk hook failed"), (lambda *a: None, "risk hook said None")):
        m = OrderManager(TABLE, session="s9", approve=hook)
        assert m.place_quote("A", 1, 100, 1, now_ns=0).reason.startswith(word)
    seen = []
    m = OrderManager(TABLE, session="s9", approve=lambda order, orders, now: seen.append((order, orders.exposure(order.symbol))) or "")
    m.place_quote("A", 1, 100, 7, now_ns=3)
    m.place_quote("A", 1, 100, 7, now_ns=3)
    assert seen[1][1].buy_lots == 7  # the first counts at once, sent or not


def test_client_ids():
    m = OrderManager(TABLE, session="abcd1234", strategy="mm")
    ids = [m.place_quote("A", 1, 100, 1, now_ns=0).client_id for _ in range(40)]
    assert len(set(ids)) == 40 and ids[0] == "mmabcd12341" and ids[35] == "mmabcd123410" and max(map(len, ids)) <= 36
    for session in ("", "a-b", "123456789"):
        with pytest.raises(ParameterError):
            OrderManager(TABLE, session=session)


def test_memory_is_bounded():
    m = OrderManager(TABLE, session="s9", keep_closed=50)
    for i in range(500):
        o = m.place_quote("A", 1, 100, 1, now_ns=i)
        m.cancel_quote(o.client_id, now_ns=i)
        m.take_events()
    assert len(m.orders) <= 51
    m.handle(Report("fill", "mms91", "A", 1, 1, "late", 100, 1), now_ns=999)  # of an order that is forgotten
    assert m.position("A") == 1


def test_settings_are_checked():
    for make in (lambda: RequotePolicy(tolerance_ticks=-1), lambda: RequotePolicy(tolerance_size=-0.5), lambda: RequotePolicy(tolerance_ticks=float("nan")), lambda: RequotePolicy(hanging_ticks=float("inf")), lambda: RequotePolicy(min_life_ns=5, max_life_ns=4),
                 lambda: Patience(timeout_ns=0), lambda: Patience(query_grace_ns=-1)):
        with pytest.raises(ParameterError):
            make()


def test_terminal_states_have_no_way_back_but_by_doubt():
    for a, b in LEGAL:
        assert a not in TERMINAL or b in (State.FILLED, State.UNKNOWN) or (a, b) == (State.REJECTED, State.CANCELLED)
    assert not any(a in (State.FILLED, State.DENIED) for a, _ in LEGAL)
