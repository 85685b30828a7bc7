"The journal: nothing is sent that is not written, and what is written makes the same orders, positions and cash again."
import json
import math
import os
import random
import sqlite3
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_kit import T0, XYZ, context, file_limit, trade_for_ever

from makerlab.core import ParameterError
from makerlab.execution.orders import OrderEvent, OrderManager, State
from makerlab.execution.venue import CancelOrder, Execution, Instrument, ModifyOrder, NewOrder, OpenOrder, QueryOrder, Report, VenueSnapshot
from makerlab.live import journal as J
from makerlab.live.journal import Journal, JournalError, rebuild_orders
from makerlab.storage import StoreError, open_store

S = 10**9
BOTH = {"XYZ": XYZ, "ABC": Instrument("ABC", 0.5, 2.0, venue="other")}
FIELDS = ("client_id", "symbol", "side", "price_ticks", "qty_lots", "kind", "state", "filled_lots", "notional_ticks", "told_lots", "want_cancel", "acked", "done",
          "pending_qty_lots", "pending_price_ticks")


def session(path, **other):
    j = Journal(path, **{"instruments": BOTH, **other})
    return j, OrderManager(j.instruments, session=j.session)


class Venue:
    "A venue in memory: it answers when it likes, and remembers everything."

    def __init__(self, rng):
        self.rng, self.open, self.done, self.says, self.execs, self.flow, self.lots, self.n = rng, {}, {}, [], [], 0.0, {"XYZ": 0, "ABC": 0}, 0
        self.placed = []

    def take(self, request, now):
        k = request.client_id
        if isinstance(request, NewOrder):
            assert k not in self.placed, "sent twice"
            self.placed.append(k)
            self.open[k] = [request, 0]
            self.says.append(Report("accepted", k, request.symbol, request.side, now))
        elif isinstance(request, CancelOrder):
            if k in self.open:
                o, filled = self.open.pop(k)
                self.done[k] = Report("order-status", k, o.symbol, o.side, now, cum_lots=filled, status="cancelled")
                self.says.append(Report("cancelled", k, o.symbol, o.side, now, cum_lots=filled, left_lots=0, definitive=True))
            else:
                self.says.append(Report("cancel-rejected", k, time_ns=now, reason="unknown order"))
        elif isinstance(request, QueryOrder):
            self.says.append(self.status(k, now))

    def status(self, k, now):
        if k in self.open:
            o, filled = self.open[k]
            return Report("order-status", k, o.symbol, o.side, now, price_ticks=o.price_ticks, qty_lots=o.qty_lots, cum_lots=filled, status="partial" if filled else "working")
        return J.replace(self.done[k], time_ns=now) if k in self.done else Report("order-status", k, time_ns=now, status="not-found")

    def trade(self, now):
        "Somebody trades with one of our orders."
        if not self.open:
            return
        k = self.rng.choice(sorted(self.open))
        o, filled = self.open[k]
        lots = self.rng.randint(1, o.qty_lots - filled)
        self.n += 1
        x, fee = BOTH[o.symbol], 0.01 * lots
        self.open[k][1] += lots
        self.execs.append(Execution(f"e{self.n}", k, o.symbol, o.side, o.price_ticks, lots, fee, True, now))
        self.lots[o.symbol] += o.side * lots
        self.flow -= o.side * x.value(o.price_ticks, lots) + fee
        self.says.append(Report("fill", k, o.symbol, o.side, now, f"e{self.n}", o.price_ticks, lots, filled + lots, o.qty_lots - filled - lots, fee))
        if filled + lots == o.qty_lots:
            self.open.pop(k)
            self.done[k] = Report("order-status", k, o.symbol, o.side, now, cum_lots=o.qty_lots, status="filled")

    def snapshot(self, now, since=0):
        orders = tuple(OpenOrder(k, o.symbol, o.side, o.price_ticks, o.qty_lots, f) for k, (o, f) in self.open.items())
        return VenueSnapshot(now, orders, tuple(e for e in self.execs if e.time_ns >= since), dict(self.lots), self.flow)


def play(j, m, venue, rng, steps, now, *, dies=False):
    "An engine's loop: journal, send, hear, journal, handle. Dies at a random place when told to; returns the time."
    at = rng.randrange(steps) if dies else -1
    for i in range(steps):
        now += rng.randint(1, 300) * 10**6
        live = [o for o in m.live() if o.state in (State.WORKING, State.PARTIAL)]
        if live and rng.random() < 0.3:
            m.cancel_quote(rng.choice(live).client_id, now_ns=now)
        elif len(live) < 8:
            m.place_quote(rng.choice(("XYZ", "ABC")), rng.choice((1, -1)), rng.randint(90, 110), rng.randint(1, 9), now_ns=now)
        for request in m.poll(now):
            j.intent(request, now)
            if i == at and rng.random() < 0.5:
                return now  # between the journal and the wire
            venue.take(request, now)
            if i == at:
                return now  # between the wire and the answer
            j.sent(request, now)
        for e in m.take_events():
            if e.kind == "state":
                j.event(e)
        if rng.random() < 0.5:
            venue.trade(now)
        for r in (venue.says if rng.random() < 0.7 else []):
            j.report(r, now)
            m.handle(r, now_ns=now)
        venue.says = [] if rng.random() < 0.9 else venue.says  # sometimes told twice, sometimes never
        if i == at:
            return now
        if rng.random() < 0.05:
            shot = venue.snapshot(now)
            j.snapshot(shot, now)
            m.reconcile(shot, now_ns=now)
    return now


def settle(j, m, venue, now):
    "Ask until everything is known."
    for _ in range(60):
        if m.quiet and not m.wants_snapshot:
            return now
        now += S
        for request in m.poll(now):
            j.intent(request, now)
            venue.take(request, now)
        for r in venue.says:
            j.report(r, now)
            m.handle(r, now_ns=now)
        venue.says = []
        shot = venue.snapshot(now)
        j.snapshot(shot, now)
        m.reconcile(shot, now_ns=now)
    raise AssertionError("not quiet")


def same(m, state):
    "The replayed state is the manager's."
    sent = {k: o for k, o in m.orders.items() if o.submit_ns >= 0}
    assert set(state.orders) == set(sent)
    for k, o in sent.items():
        assert {f: getattr(state.orders[k], f) for f in FIELDS} == {f: getattr(o, f) for f in FIELDS}, k
    assert state.positions == m.positions and [f.exec_id for f in state.fills] == [f.exec_id for f in m.fills]
    assert math.isclose(state.cash, m.cash, abs_tol=1e-9) and math.isclose(state.fees, m.fees, abs_tol=1e-12)


def equals_truth(m, venue):
    "At rest our orders, position and cash are the venue's."
    assert {o.client_id: (o.price_ticks, o.qty_lots, o.filled_lots) for o in m.live()} == {k: (o.price_ticks, o.qty_lots, f) for k, (o, f) in venue.open.items()}
    assert m.positions == venue.lots and math.isclose(m.cash, venue.flow, abs_tol=1e-9)


# ---------------------------------------------------------------- the same state again

@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_replay_is_the_manager(tmp_path_factory, seed):
    rng = random.Random(seed)
    j, m = session(tmp_path_factory.mktemp("j") / "j.db")
    play(j, m, Venue(rng), rng, 40, T0)
    for e in m.take_events():
        j.event(e)
    queued = set(m._news) | set(m._cancels)
    state = j.replay()
    if not queued:
        same(m, state)
    assert state.positions == m.positions and state.cash == m.cash
    j.close(publish=False)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_after_any_death_orders_position_and_cash_are_the_venues(tmp_path_factory, seed):
    "Four lives on one journal and one venue; trading goes on while we are dead."
    rng = random.Random(seed)
    path, venue, now = tmp_path_factory.mktemp("j") / "j.db", Venue(rng), T0
    for life in range(4):
        j, m = session(path, clock=lambda t=now: t)
        if life == 0:
            j.snapshot(venue.snapshot(now), now)
            m.reconcile(venue.snapshot(now), now_ns=now)
        else:
            for _ in range(rng.randint(0, 3)):
                venue.trade(now)
            venue.says = []
            now += rng.randint(1, 5000) * 10**6
            rebuild_orders(j, venue.snapshot(now, j.since_ns), manager=m, now_ns=now)
            now = settle(j, m, venue, now)
            equals_truth(m, venue)
        now = play(j, m, venue, rng, 20, now, dies=True)
        j._con.close()
        os.close(j._lock)


def test_an_order_that_was_written_but_not_sent_blocks_its_side_until_it_is_known(tmp_path):
    j, m = session(tmp_path / "j.db")
    m.reconcile(VenueSnapshot(T0), now_ns=T0)
    j.snapshot(VenueSnapshot(T0), T0)
    o = m.place_quote("XYZ", 1, 100, 5, now_ns=T0)
    (request,) = m.poll(T0)
    j.intent(request, T0)
    j.close(publish=False)  # never sent
    j, m = session(tmp_path / "j.db")
    rebuild_orders(j, VenueSnapshot(T0 + S), manager=m, now_ns=T0 + S)
    assert m.orders[o.client_id].state is State.UNKNOWN and m.exposure("XYZ").buy_lots == 5
    assert m.place_quote("XYZ", 1, 99, 1, now_ns=T0 + S).state is State.DENIED and m.place_quote("XYZ", -1, 101, 1, now_ns=T0 + S).state is State.PENDING_NEW
    now = T0 + S
    while m.orders[o.client_id].state is State.UNKNOWN:
        now += S
        assert not any(isinstance(r, NewOrder) and r.client_id == o.client_id for r in m.poll(now)), "resent"
        m.handle(Report("order-status", o.client_id, time_ns=now, status="not-found"), now_ns=now)
    assert m.orders[o.client_id].state is State.REJECTED and m.exposure("XYZ").buy_lots == 0 and now - T0 >= 10 * S
    j.close(publish=False)


def test_an_order_that_was_sent_but_not_answered_is_adopted(tmp_path):
    j, m = session(tmp_path / "j.db")
    o = m.place_quote("XYZ", 1, 100, 5, now_ns=T0)
    j.intent(m.poll(T0)[0], T0)
    j.close(publish=False)
    j, m = session(tmp_path / "j.db")
    done = rebuild_orders(j, VenueSnapshot(T0 + S, (OpenOrder(o.client_id, "XYZ", 1, 100, 5, 2),), (Execution("e1", o.client_id, "XYZ", 1, 100, 2, 0.1, True, T0 + 1),), {"XYZ": 2}),
                          manager=m, now_ns=T0 + S)
    assert done.booked == 1 and not done.position_gaps and m.orders[o.client_id].state is State.PARTIAL
    assert m.positions["XYZ"] == 2 and m.cash == pytest.approx(-2 * 100 * 0.01 * 0.001 - 0.1) and m.synced
    j.close(publish=False)


def test_without_the_doubt_an_order_that_died_with_us_would_stay_open(tmp_path, monkeypatch):
    "The guard switched off: the test above it fails, the side is not blocked."
    j, m = session(tmp_path / "j.db")
    o = m.place_quote("XYZ", 1, 100, 5, now_ns=T0)
    j.intent(m.poll(T0)[0], T0)
    j.close(publish=False)
    j, m = session(tmp_path / "j.db")
    monkeypatch.setattr(OrderManager, "_doubt", lambda *_: None)
    rebuild_orders(j, VenueSnapshot(T0 + S), manager=m, now_ns=T0 + S)
    assert m.orders[o.client_id].state is not State.UNKNOWN
    j.close(publish=False)


def test_no_client_id_is_ever_used_twice(tmp_path):
    seen, clock = set(), iter([T0, T0, T0 - 10**12, T0 - 10**12, T0, T0])  # the clock is set back
    for _ in range(3):
        j = Journal(tmp_path / "j.db", instruments=BOTH, clock=lambda: next(clock))
        assert j.session not in seen and len(j.session) == 8 and (not seen or j.session > max(seen))
        seen.add(j.session)
        j.close(publish=False)


def test_sequence_numbers_survive_a_death(tmp_path):
    j, _ = session(tmp_path / "j.db")
    first = [j.next_sequence() for _ in range(5)]
    j._con.close()
    os.close(j._lock)
    j, _ = session(tmp_path / "j.db")
    assert first == [1, 2, 3, 4, 5] and j.next_sequence() > 5 and j.replay().sequence == j._sequence
    j.close(publish=False)


def test_a_balance_shortens_the_reading_and_changes_nothing(tmp_path):
    rng = random.Random(1)
    venue = Venue(rng)
    j, m = session(tmp_path / "j.db")
    now = settle(j, m, venue, play(j, m, venue, rng, 60, T0))
    assert not j.balance(m, now)  # something is open
    m.cancel_all(now_ns=now)
    now = settle(j, m, venue, now)
    assert j.balance(m, now)
    state = j.replay()
    assert state.rows == 1 and state.positions == m.positions == venue.lots and state.cash == pytest.approx(venue.flow)
    j.close()
    j, m = session(tmp_path / "j.db")
    venue.open["x"] = [NewOrder("x", "XYZ", 1, 100, 5), 0]
    venue.trade(now)  # somebody's order under our account: an execution that we never saw
    done = rebuild_orders(j, venue.snapshot(now + S), manager=m, now_ns=now + S)
    assert done.booked == 1 and m.positions == venue.lots  # the old executions are not booked again
    j.close()


# ---------------------------------------------------------------- real deaths

def test_kill_9_at_fifty_random_points(tmp_path):
    "A process trades through a pipe and is killed; every request that came through the pipe was in the journal before."
    path, rng, ctx, sent = tmp_path / "j.db", random.Random(3), context(), []
    for run in range(50):
        mine, theirs = ctx.Pipe()
        p = ctx.Process(target=trade_for_ever, args=(str(path), theirs, run), daemon=True)
        p.start()
        theirs.close()
        for _ in range(rng.randint(2, 25)):
            kind, what = mine.recv()
            if kind == "request":
                sent.append(what)
                if isinstance(what, NewOrder) and rng.random() < 0.8:
                    mine.send(Report("accepted", what.client_id, "XYZ", what.side, T0))
        time.sleep(rng.random() * 0.002)
        p.kill()
        p.join()
        try:
            while mine.poll():
                kind, what = mine.recv()
                sent += [what] if kind == "request" else []
        except (EOFError, OSError):
            pass
    j = Journal(path)
    written = {(word, k) for _, _, word, k, _ in j.rows()}
    assert len(sent) > 200 and all((J._INTENTS[type(r)], r.client_id) in written for r in sent)
    new = [r.client_id for r in sent if isinstance(r, NewOrder)]
    assert len(set(new)) == len(new) and len(J._sessions(j)) == 51
    assert j._con.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    state = j.replay()
    assert set(new) <= set(state.orders)
    j.close()


def test_without_writing_first_the_killed_lose_orders(tmp_path, monkeypatch):
    "The guard switched off, in one process: an intent that is written after the send is missing when death comes between."
    j, m = session(tmp_path / "j.db")
    m.place_quote("XYZ", 1, 100, 5, now_ns=T0)
    sent = m.poll(T0)
    j._con.close()
    os.close(j._lock)  # dead after the send, before the row
    j = Journal(tmp_path / "j.db")
    assert sent[0].client_id not in j.replay().orders
    j.close(publish=False)


# ---------------------------------------------------------------- full, locked, damaged

def test_a_full_disk_refuses_the_row_and_keeps_the_rest(tmp_path):
    j, m = session(tmp_path / "j.db")
    with file_limit(200_000), pytest.raises(JournalError, match="send nothing but cancels"):
        for n in range(10_000):
            j.intent(NewOrder(f"k{n}", "XYZ", 1, 100, 1), T0)
    kept = j.number
    assert 10 < kept < 10_000 and "was not written" in j.failed
    assert j.note("operator", "made room") == kept + 1  # and it goes on when there is room
    assert [r[0] for r in j.rows()] == list(range(1, kept + 2))
    j.close()


def test_the_words_of_sqlite_for_a_full_disk(tmp_path):
    j, _ = session(tmp_path / "j.db")
    pages = j._con.execute("PRAGMA page_count").fetchone()[0]
    j._con.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="full"):
        for n in range(10_000):
            j.note("x", "y" * 500)
    j.close()


def test_a_journal_that_cannot_be_made(tmp_path):
    (tmp_path / "d.db").mkdir()
    with pytest.raises((JournalError, StoreError, ParameterError)):
        Journal(tmp_path / "d.db", instruments=BOTH)
    con = sqlite3.connect(tmp_path / "other.db")
    con.execute("CREATE TABLE recipes (x)")
    con.commit()
    con.close()
    with pytest.raises(StoreError, match="not a makerlab store"):
        Journal(tmp_path / "other.db", instruments=BOTH)
    with pytest.raises(ParameterError, match="durability"):
        Journal(tmp_path / "j.db", instruments=BOTH, durability="hope")
    j = Journal(tmp_path / "j.db", instruments=BOTH)  # the lock was let go
    j.close()


def test_one_engine_a_journal(tmp_path):
    j, _ = session(tmp_path / "j.db")
    with pytest.raises(JournalError, match="another engine"):
        Journal(tmp_path / "j.db")
    j.close()
    j.close()
    session(tmp_path / "j.db")[0].close()


def test_another_tick_size_is_refused(tmp_path):
    session(tmp_path / "j.db")[0].close()
    with pytest.raises(ParameterError, match=r"tick_size = 0\.1 of XYZ was 0\.01"):
        Journal(tmp_path / "j.db", instruments={"XYZ": Instrument("XYZ", 0.1, 0.001, venue="sim")})
    j = Journal(tmp_path / "j.db")
    other = OrderManager({"XYZ": Instrument("XYZ", 0.1, 0.001, venue="sim")}, session=j.session)
    with pytest.raises(ParameterError, match="begin a new journal"):
        rebuild_orders(j, None, manager=other, now_ns=T0)
    j.close()


def test_a_manager_that_does_not_fit(tmp_path):
    j, m = session(tmp_path / "j.db")
    j.intent(NewOrder("k1", "ABC", 1, 100, 1), T0)
    with pytest.raises(ParameterError, match="session"):
        rebuild_orders(j, None, manager=OrderManager(BOTH, session="other"), now_ns=T0)
    with pytest.raises(ParameterError, match=r"lack \['ABC'\]"):
        rebuild_orders(j, None, manager=OrderManager({"XYZ": XYZ}, session=j.session), now_ns=T0)
    assert rebuild_orders(j, None, manager=m, now_ns=T0) is None and not m.synced and m.orders["k1"].state is State.UNKNOWN
    j.close()


def test_a_damaged_row_is_named(tmp_path):
    j, m = session(tmp_path / "j.db")
    j.intent(NewOrder("k1", "XYZ", 1, 100, 1), T0)
    j._con.execute("UPDATE makerlab_journal SET body = '{' WHERE word = 'new'")
    for read in (j.replay, lambda: rebuild_orders(j, None, manager=m, now_ns=T0)):
        with pytest.raises(JournalError, match=r"row 2 \(new\) cannot be read"):
            read()
    j.close()


def spoil(path, what):
    "Damage a closed journal's file."
    data = bytearray(path.read_bytes())
    if what == "rows":  # every page but those that say what tables there are
        first = 4096 * 40
        data[first:] = b"\xa5" * (len(data) - first)
    elif what == "all":
        data[:] = b"\xa5" * len(data)
    else:  # a row of a start that is no JSON
        con = sqlite3.connect(path)
        con.execute("UPDATE makerlab_journal SET body = '{' WHERE word = 'session'")
        con.commit()
        con.close()
        return
    path.write_bytes(bytes(data))


def long_journal(path):
    "A closed journal with some hundred pages."
    j, _ = session(path)
    for n in range(1500):
        j.note("x", f"{n} " + "y" * 300)
    j.close(publish=False)


@pytest.mark.parametrize("what", ["all", "session"])
def test_a_damaged_file_cannot_be_opened_and_says_so(tmp_path, what):
    path = tmp_path / "j.db"
    long_journal(path)
    spoil(path, what)
    for _ in range(2):  # and the lock is let go
        with pytest.raises(JournalError, match=r"j\.db.*restore the file"):
            Journal(path, instruments=BOTH)


def test_pages_that_are_gone_are_one_kind_of_error(tmp_path):
    "Each question that reads rows of a file with damaged pages raises JournalError, nothing else."
    path = tmp_path / "j.db"
    long_journal(path)
    j, m = session(path)
    j.maintain()
    spoil(path, "rows")
    reader = sqlite3.connect(path, isolation_level=None)  # a connection without old pages in its memory
    j._con.close()
    j._con = reader
    for ask in (j.replay, lambda: list(j.rows()), lambda: J.order_lines(j), lambda: j.since_ns, j.publish,
                lambda: rebuild_orders(j, None, manager=m, now_ns=T0)):
        with pytest.raises(JournalError, match=r"j\.db"):
            ask()
    j._let_go()
    with pytest.raises(JournalError, match=r"j\.db"):
        Journal(path, instruments=BOTH)
    with pytest.raises(JournalError, match=r"j\.db"):
        Journal(path, instruments=BOTH)


def test_a_balance_of_many_fills_is_quick():
    "20,000 executions: a set is made once, not for each of them (8 s, and growing with the square)."
    m = OrderManager(BOTH, session="s")
    m._seen = {("XYZ", f"e{i}") for i in range(20_000)}
    m.fills.extend(OrderEvent("fill", T0, "k", "XYZ", 1, exec_id=f"e{i}") for i in range(10_000, 20_000))
    begun = time.perf_counter()
    body = J._balance_of(m)
    assert time.perf_counter() - begun < 5.0 and len(body["seen"]) == 20_000  # some 20 ms on a quiet machine
    assert len({tuple(x) for x in body["seen"]}) == 20_000


@pytest.mark.parametrize("report", [Report("fill", "k1", "XYZ", 1, T0, "e1", 100, 1, 1, 0, math.nan), Report("fill", "k1", "XYZ", 1, T0, "e1", np.int64(100), 1.0, "x", 0, "fee"),
                                    Report("riddle", "k1"), Report("fill", None, None, None, None, None, None, None), Report("accepted", "k1", reason="\udcff \x00 é")])
def test_rubbish_is_written_and_read_as_the_manager_heard_it(tmp_path, report):
    j, m = session(tmp_path / "j.db")
    m.place_quote("XYZ", 1, 100, 5, now_ns=T0)
    request = m.poll(T0)[0]
    j.intent(request, T0)
    report = J.replace(report, client_id=request.client_id) if report.client_id == "k1" else report
    j.report(report, T0 + 1)
    m.handle(report, now_ns=T0 + 1)
    same(m, j.replay())
    j.close()


# ---------------------------------------------------------------- for people

def test_order_states_for_open_store(tmp_path):
    rng = random.Random(2)
    j, m = session(tmp_path / "j.db")
    venue = Venue(rng)
    play(j, m, venue, rng, 40, T0)
    j.note("limits", "max position 5 -> 9 by anna")
    j.close()
    with open_store(tmp_path / "j.db", mode="r") as store:
        rows = store.read("order_states")
    fills = rows[rows["event"] == "fill"].drop_duplicates(["symbol", "exec_id"])
    assert len(fills) == len(m.fills) > 3 and {"intent", "sent", "accepted"} <= set(rows["event"])
    for s, x in BOTH.items():
        mine = fills[fills["symbol"] == s]
        assert np.isclose((mine["side"] * mine["last_qty"]).sum(), x.qty(1) * m.positions[s])
    intents = rows[rows["event"] == "intent"].sort_values("sequence").groupby("client_id")["sequence"].first()
    others = rows[rows["event"] != "intent"].groupby("client_id")["sequence"].min()
    assert (intents.loc[others.index] < others).all()
    j, m = session(tmp_path / "j.db")
    assert j.publish() == 0 and ("note", "max position") in [(r[2], json.loads(r[4]).get("text", "")[:12]) for r in j.rows() if r[2] == "note"]
    assert j.replay().worth({"XYZ": 1.0, "ABC": 50.0}) == pytest.approx(j.replay().cash + 0.001 * j.replay().positions["XYZ"] * 1.0 + 2.0 * j.replay().positions["ABC"] * 50.0)
    with pytest.raises(ParameterError, match="no price"):
        j.replay().worth({"XYZ": math.nan, "ABC": 50.0})
    j.close()


def fills_of(lines):
    "Symbol, number, side and lots of the executions in lines of order_states."
    if not len(lines):
        return []
    rows = lines[lines["event"] == "fill"]
    return [(s, e, int(side), round(q / BOTH[s].lot_size)) for s, e, side, q in zip(rows["symbol"], rows["exec_id"], rows["side"], rows["last_qty"], strict=True)]


def booked(m):
    return [(f.symbol, f.exec_id, f.side, f.qty_lots) for f in m.fills]


def test_an_execution_has_a_line_when_it_is_booked(tmp_path):
    "Told twice: one line. Told by a snapshot only, or of nobody's order: one line. Assumed and taken back: two sides."
    j, m = session(tmp_path / "j.db")
    now = T0

    def hear(r):
        j.report(r, now)
        m.handle(r, now_ns=now)

    def see(shot):
        j.snapshot(shot, now)
        m.reconcile(shot, now_ns=now)

    see(VenueSnapshot(T0))
    names = []
    for price in (100, 99, 98):
        names.append(m.place_quote("XYZ", 1, price, 5, now_ns=now).client_id)
        j.intents(m.poll(now), now)
        hear(Report("accepted", names[-1], "XYZ", 1, now))
    one, two, three = names
    for _ in range(2):
        hear(Report("fill", one, "XYZ", 1, now, "e1", 100, 2, 2, 3, 0.25))
    now += 10 * S
    rest = (OpenOrder(one, "XYZ", 1, 100, 5, 2), OpenOrder(two, "XYZ", 1, 99, 5, 4))
    see(VenueSnapshot(now, (*rest, OpenOrder(three, "XYZ", 1, 98, 5, 3)), (Execution("e2", two, "XYZ", 1, 99, 4, 0.5, True, now - 1),), {"XYZ": 9}))
    now += 10 * S
    see(VenueSnapshot(now, (*rest, OpenOrder(three, "XYZ", 1, 98, 5, 3)), (), {"XYZ": 9}))
    assert [f.flag for f in m.fills] == ["", "reconciled", "synthetic"]  # three lots of the third are nobody's word
    hear(Report("fill", three, "XYZ", 1, now, "e3", 98, 3, 3, 2, 0.1))
    hear(Report("fill", "somebody", "XYZ", -1, now, "e4", 97, 1, 1, 0, 0.1))
    assert m.fills[3].flag == "reversal" and m.fills[-1].flag == "external" and m.positions["XYZ"] == 8
    lines = J.order_lines(j)
    assert fills_of(lines) == booked(m) and sum(side * lots for _, _, side, lots in fills_of(lines)) == 8
    rows = lines[lines["event"] == "fill"].set_index("exec_id")
    assert rows.loc["e1", "fee"] == 0.25 and rows.loc["e2", "filled_qty"] == pytest.approx(0.004) and rows.loc["e2", "client_id"] == two
    assert rows.loc["e4", "client_id"] == "somebody" and rows.loc["e4", "status"] == "UNKNOWN" and np.isnan(rows.loc["e4", "price"])
    assert len(J.order_lines(j, since=j.number)) == 0
    j.close()
    with open_store(tmp_path / "j.db", mode="r") as store:
        assert sorted(fills_of(store.read("order_states"))) == sorted(booked(m))


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_lines_of_executions_are_the_managers_after_any_lives(tmp_path_factory, seed):
    rng = random.Random(seed)
    path, venue, now = tmp_path_factory.mktemp("j") / "j.db", Venue(rng), T0
    for life in range(3):
        j, m = session(path, clock=lambda t=now: t)
        if life:
            venue.trade(now)
            now += rng.randint(1, 5000) * 10**6
            rebuild_orders(j, venue.snapshot(now, j.since_ns), manager=m, now_ns=now)
            now = settle(j, m, venue, now)
        now = play(j, m, venue, rng, 30, now, dies=life < 2)
        lines = fills_of(J.order_lines(j))
        assert lines == booked(m) and all(sum(side * lots for x, _, side, lots in lines if x == s) == m.positions[s] for s in BOTH)
        j.close(publish=life == 2)


def test_a_modify_is_replayed(tmp_path):
    j, m = session(tmp_path / "j.db")
    j.intent(NewOrder("k1", "XYZ", 1, 100, 5), T0)
    j.report(Report("accepted", "k1", "XYZ", 1, T0), T0 + 1)
    j.intent(ModifyOrder("k1", 99, 3), T0 + 2)
    o = j.replay().orders["k1"]
    assert o.state is State.PENDING_REPLACE and (o.pending_price_ticks, o.pending_qty_lots) == (99, 3) and o.live_lots == 5
    j.report(Report("replaced", "k1", "XYZ", 1, T0 + 3, price_ticks=99, qty_lots=3), T0 + 3)
    o = j.replay().orders["k1"]
    assert o.state is State.WORKING and (o.price_ticks, o.qty_lots) == (99, 3)
    j.intent(QueryOrder("k1"), T0 + 4)
    j.event(OrderEvent("state", T0 + 5, "k1", "XYZ", 1, State.WORKING, State.UNKNOWN, reason="no answer for 5 s"))
    assert j.replay().orders["k1"].state is State.UNKNOWN
    j.close()


def test_an_insert_is_quick_and_housekeeping_is_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(J, "_HOUSEKEEPING", 2000)
    j, _ = session(tmp_path / "j.db")
    r, took = Report("accepted", "k1", "XYZ", 1, T0), []
    for _ in range(5000):
        begun = time.perf_counter_ns()
        j.report(r, T0)
        took.append(time.perf_counter_ns() - begun)
    assert np.median(took) < 200_000  # 8 microseconds on a quiet machine
    assert j._con.execute("PRAGMA wal_autocheckpoint").fetchone()[0] == 0 and j._tidy < 2000
    j.close()


def test_a_reader_beside_the_writer(tmp_path):
    j, _ = session(tmp_path / "j.db")
    reader = sqlite3.connect(f"file:{tmp_path / 'j.db'}?mode=ro", uri=True)
    for n in range(1, 200):
        j.note("x", str(n))
        if n % 20 == 0:
            assert reader.execute("SELECT count(*) FROM makerlab_journal WHERE word = 'note'").fetchone()[0] == n
    reader.close()
    j.close()
