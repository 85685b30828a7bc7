"A live run beside its replay: nothing different is the same to the nanosecond, what was planted is found, the identity holds, and a real session ends where the venue's truth does."
import asyncio
import functools
import json
import math
import os
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from makerlab.backtest.harness import Faults
from makerlab.core import DataError, MakerlabError, ParameterError
from makerlab.data.events import DEPTH, SEEN_EXCHANGE, SEEN_LOCAL, SNAPSHOT, TRADE, take
from makerlab.data.recording import read_messages
from makerlab.execution.order_flow import SMALL
from makerlab.execution.orders import OrderManager
from makerlab.execution.venue import NewOrder, Report
from makerlab.live import reconcile, recorder
from makerlab.live.engine import load_live
from makerlab.live.exchange import SymbolRules
from makerlab.live.guardian import live
from makerlab.live.journal import Journal
from makerlab.live.recorder import Recorder, RecorderOptions, generate_test_data
from makerlab.live.reconcile import REASONS, HeardVenue, live_side, load_run, match_orders, own_orders, reconcile_run, rehearse, run_reconcile, travel_times, without_own
from makerlab.live.simulated import SimulatedVenue
from makerlab.models.quote_engine import ConfigError

FILE = {
    "strategy": "demo", "instruments": {"BTCUSDT": {"tick_size": 0.01, "lot_size": 0.01, "venue": "binance"}},
    "quoting": {"style": "skewed", "half_spread_ticks": 1.5, "max_inventory_lots": 2000, "skew": {"shape": "linear", "ticks": 4.0}, "size": {"lots": 200},
                "refresh": {"every_ms": 150, "tolerance_ticks": 1}},
    "orders": {"windows": [{"limit": 50, "window_ms": 1000, "reserve": 10}]},
    "risk": {"account": {"max_gross": 100_000, "max_loss": 1000, "max_drawdown": 1000, "max_messages": 40},
             "default": {"max_order_lots": 400, "max_order_value": 1000, "max_position_lots": 4000, "collar": 0.05, "max_fills": 1000}},
    "venue": {"kind": "paper", "name": "binance"}, "live": {"mode": "paper", "record": "recording", "warm": 5}}
MS, S = 10**6, 10**9


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    "A made market of 25 s."
    home = tmp_path_factory.mktemp("reconcile")
    generate_test_data(home / "recording", rng=np.random.default_rng(7), seconds=25.0, mid=100.0, lot=0.01, levels=8)
    return home


def perform(market, name, change=None, **how):
    "A rehearsal in a folder of its own."
    data = FILE | (change or {})
    data = data | {"live": data["live"] | {"folder": name}}
    path = market / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    shutil.rmtree(market / name, ignore_errors=True)
    return rehearse(path, **how)


@pytest.fixture(scope="module")
def plain(market):
    return reconcile_run(perform(market, "plain"))


def accounted(r):
    "The identity, by hand: executions, reasons, cash and positions tell the same three numbers."
    live, replay = r.booked
    parts = r.pnl.drop("sum")
    assert r.whole
    assert math.isclose(parts["live"].sum(), live, abs_tol=1e-6) and math.isclose(parts["replay"].sum(), replay, abs_tol=1e-6)
    assert math.isclose(parts["difference"].sum(), live - replay, abs_tol=1e-6)
    assert math.isclose(r.fills["live_pnl"].sum() - r.fills["replay_pnl"].sum(), r.difference, abs_tol=1e-9)
    assert set(r.orders["reason"]) | set(r.fills["reason"]) <= set(REASONS)
    n = r.orders["status"].value_counts()
    assert n.get("matched", 0) + n.get("only live", 0) == sum(x[2] in ("new", "modify") for x in r.run.rows)
    sent = r.replay.orders["action"].isin(["new", "modify"]).sum()
    assert n.get("matched", 0) + n.get("only replay", 0) == sent
    return parts


def test_nothing_different_is_the_same_to_the_nanosecond(plain):
    accounted(plain)
    assert set(plain.orders["status"]) == {"matched"} and set(plain.fills["reason"]) == {"same"}
    assert len(plain.orders) > 100 and len(plain.fills) > 30
    assert plain.orders["lag_ms"].abs().max() == plain.fills["late_ms"].abs().max() == plain.difference == 0


def test_a_replay_twice_is_the_same_twice(plain, market):
    again = reconcile_run(market / "plain")
    pd.testing.assert_frame_equal(plain.orders, again.orders)
    pd.testing.assert_frame_equal(plain.fills, again.fills)


class Refusing(HeardVenue):
    asked, word, every = 0, "post-only: would cross", 10

    def _refusal(self, o, qty):
        self.asked += 1
        return self.word if self.asked % self.every == 0 else super()._refusal(o, qty)


class Throttling(Refusing):
    word = "throttled: -1015 too many new orders"


class First(HeardVenue):
    def _on_new(self, r):
        super()._on_new(r)
        self.orders[r.client_id].front = 0.0


class Better(HeardVenue):
    "A venue that gives a better price than the limit: never seen, but the difference must have a name."
    def _hit(self, o, tick, lots, maker):
        super()._hit(o, tick - o.side, lots, maker)


@pytest.mark.parametrize(("name", "how", "words"), [
    ("refused", dict(venue=Refusing), "refused"), ("throttled", dict(venue=Throttling), "throttled"), ("first", dict(venue=First), "queue"),
    ("fees", dict(fees=(0.5, 1.0)), "fees"), ("better", dict(venue=Better), "price")])
def test_a_planted_cause_is_named(market, name, how, words):
    r = reconcile_run(perform(market, name, **how))
    parts = accounted(r)
    assert parts.loc[words, "executions"] > 0 and abs(parts.loc[words, "difference"]) > 0
    assert not (r.orders["reason"] == "unexplained").any()
    if words in ("refused", "throttled"):
        assert words in set(r.orders[r.orders["status"] != "matched"]["reason"])
    if words in ("fees", "price"):
        assert set(r.fills["reason"]) <= {words, "position", "latency", "queue", "moment"}
    if words == "fees":
        assert r.difference == pytest.approx(-0.5e-4 * (r.fills["qty"] * r.fills["live_price"]).sum(), abs=1e-6)


def test_a_latency_that_is_not_told_and_the_same_taken_from_the_journal(market):
    folder = perform(market, "slow", order_latency_ns=30 * MS, report_latency_ns=20 * MS)
    wrong, right = reconcile_run(folder, latency_ms=2.0), reconcile_run(folder)
    accounted(wrong)
    accounted(right)
    assert "latency" in set(wrong.orders["reason"]) | set(wrong.fills["reason"])
    assert (wrong.orders["status"] != "matched").mean() > 0.3
    assert (right.orders["status"] == "matched").all() and right.difference == 0
    there, back = travel_times(right.run)
    assert there(right.run.start_ns + 10 * S) == 30 * MS and back(right.run.start_ns + 10 * S) == 20 * MS


def test_what_was_on_its_way_at_the_stop_is_no_part_of_either_run(market):
    r = reconcile_run(perform(market, "far", report_latency_ns=1500 * MS))
    accounted(r)
    assert set(r.fills["reason"]) <= {"same"} and len(r.replay.venue.fills) > len(r.fills)


def test_the_replay_hears_a_book_with_every_message(plain):
    e, heard = plain.run.events["BTCUSDT"], []
    venue = HeardVenue(plain.run.events, plain.run.config.session.instruments)
    while (word := venue.next_word(venue.end_ns + S)) is not None:
        heard.append(word[0])
    assert heard == sorted(set(e.local_ns[e.kind != TRADE].tolist()))


def test_after_the_kill_the_replay_goes_on_and_is_told_so(market, plain):
    at = plain.run.start_ns + 12 * S

    def press(trader, journal, now):
        if now >= at and not trader.guard.latch.tripped:
            journal.note("kill", "operator", now)
            return trader.kill("operator", now_ns=now)

    r = reconcile_run(perform(market, "killed", script=press))
    parts = accounted(r)
    apart = r.orders[r.orders["status"] != "matched"]
    assert set(apart["status"]) == {"only replay"} and set(apart["reason"]) == {"halted"} and len(apart) > 30
    assert apart["time"].astype("int64").min() > at - 250 * MS and "halted" in parts.index


def test_a_gap_of_the_live_feed_is_a_gap(market, plain):
    a = plain.run.start_ns + 8 * S
    windows = ((a, a + 4 * S),)
    told = set()

    def script(trader, journal, now):
        for k, (t, words) in enumerate(((windows[0][0], "BTCUSDT SYNCED -> INVALID gap"), (windows[0][1], "BTCUSDT INVALID -> SYNCED"))):
            if now >= t and k not in told:
                told.add(k)
                journal.note("book", words, now)

    r = reconcile_run(perform(market, "gap", faults=Faults(feed_gaps=windows), script=script))
    accounted(r)
    gap = r.orders[r.orders["reason"] == "gap"]
    assert len(gap) > 5 and (gap["status"] == "only replay").mean() > 0.9
    inside = r.orders[(r.orders["time"].astype("int64") > a + S) & (r.orders["time"].astype("int64") < a + 3 * S)]
    assert set(inside["reason"]) == {"gap"} and not (r.orders["reason"] == "unexplained").any()


def test_executions_after_the_stop_and_of_strangers_have_their_names(market):
    folder = perform(market, "late")
    path = next(folder.glob("*.db"))
    journal = Journal(path)
    rows = list(journal.rows())
    stop, last = next((t, k) for n, t, w, k, b in reversed(rows) if w == "note"), [json.loads(b) | {"k": k} for n, t, w, k, b in rows if w == "new"][-1]
    con = journal._con
    base = max(n for n, *_ in rows)
    con.execute("DELETE FROM makerlab_journal WHERE number > ?", (base - 1,))  # the session row of this opening
    fill = {"kind": "fill", "client_id": last["k"], "symbol": "BTCUSDT", "side": last["side"], "time_ns": stop[0] + 5 * MS, "exec_id": "late-1",
            "price_ticks": last["price_ticks"], "qty_lots": 7, "cum_lots": 7, "left_lots": 193, "fee": 0.0, "maker": True, "reason": "", "definitive": False,
            "venue_id": "", "status": ""}
    theirs = {"client_id": "web_1", "symbol": "BTCUSDT", "side": 1, "price_ticks": 10000, "qty_lots": 3}
    snapshot = {"venue": None, "time_ns": stop[0] - S, "orders": [theirs], "positions": {}, "cash": math.nan, "executions": []}
    odd = fill | theirs | {"exec_id": "odd-1", "cum_lots": 3, "left_lots": 0, "time_ns": stop[0] - S // 2}
    for k, (t, word, client, body) in enumerate(((stop[0] + 6 * MS, "report", last["k"], fill), (stop[0] - S, "snapshot", "", snapshot),
                                                  (stop[0] - S // 2, "report", "web_1", odd))):
        con.execute("INSERT INTO makerlab_journal VALUES (?, ?, ?, ?, ?)", (base + k, t, word, client, json.dumps(body)))
    journal._let_go()
    r = reconcile_run(folder)
    assert {"after stop", "not ours"} <= set(r.fills["reason"])
    odd = r.fills[r.fills["reason"] == "not ours"].iloc[0]
    assert (odd["qty"], odd["live_price"], odd["status"]) == (0.03, 100.0, "only live")
    assert math.isclose(r.pnl.drop("sum")["difference"].sum(), r.fills["live_pnl"].sum() - r.fills["replay_pnl"].sum(), abs_tol=1e-9)


def test_a_journal_that_lost_an_execution_does_not_account_for_its_books(market):
    r = reconcile_run(perform(market, "lost"))
    assert r.whole
    short = replace(r, run=replace(r.run, earned=r.run.earned + 0.01))
    assert not short.whole and "NO" in short.summary()["value"].tolist()


def table(*rows):
    out = pd.DataFrame(rows, columns=["time_ns", "symbol", "action", "side", "tick"])
    return out


def test_twins_are_the_nearest_and_nobody_has_two():
    a = table((0, "X", "new", 1, 100), (50, "X", "new", 1, 100), (100, "X", "new", -1, 101), (300, "X", "new", 1, 99))
    b = table((40, "X", "new", 1, 100), (100, "X", "modify", -1, 101), (110, "Y", "new", -1, 101), (401, "X", "new", 1, 99))
    assert match_orders(a, b, window_ns=100) == [(1, 0)]
    assert match_orders(a, b, window_ns=101) == [(1, 0), (3, 3)]
    assert match_orders(a, a, window_ns=0) == [(i, i) for i in range(4)]
    assert match_orders(a[:0], b, window_ns=9) == match_orders(a, b[:0], window_ns=9) == []


# a handmade session that sends: its own order is in the recorded book

DAY = 1_772_452_800 * S


def send(recorder, stream, body, at_ms, late_ms=3):
    now = DAY + at_ms * MS
    recorder.raw(f"btcusdt@{stream}", json.dumps(body).encode(), now if "E" in body else -1, now + late_ms * MS, at_ms * MS)


def handmade(home, lots_seen=(5, 15, 15, 9, 5), mode="testnet"):
    "Bids at 100.00: 5 lots of others, ours of 10 between 150 and 450 ms, hit for 6 at 350; a taking order of ours at 550."
    with Recorder(home / "recording", options=RecorderOptions(batch_ms=0.0, sealer="none")) as rec:
        q = lambda n: f"{n / 100:.2f}"
        send(rec, "snapshot", {"lastUpdateId": 1, "bids": [["100.00", q(5)], ["99.99", q(50)]], "asks": [["100.02", q(40)], ["100.03", q(40)]]}, 0)
        for k, n in enumerate(lots_seen):
            ms = 100 * (k + 1)
            send(rec, "depth@100ms", {"e": "depthUpdate", "E": (DAY // MS) + ms, "s": "BTCUSDT", "U": k + 2, "u": k + 2, "b": [["100.00", q(n)]], "a": [["100.03", q(40 + k)]]}, ms)
            for at, trade, side, price, lots in ((350, 11, -1, "100.00", 6), (550, 12, 1, "100.02", 8)):
                if ms < at < ms + 100:
                    send(rec, "trade", {"e": "trade", "E": (DAY // MS) + at, "s": "BTCUSDT", "t": trade, "p": price, "q": q(lots), "T": (DAY // MS) + at, "m": side < 0}, at)
        rec.flush()
    config = FILE | {"venue": {"kind": "simulated"}, "live": FILE["live"] | {"mode": mode, "folder": "state", "preset": "local"}}
    (home / "session.yaml").write_text(yaml.safe_dump(config))
    at = lambda ms: DAY + ms * MS
    x = load_live(home / "session.yaml").session.instruments
    journal = Journal(home / "state" / "journal.db", instruments=x, strategy="demo", clock=lambda: at(1))
    journal.note("start", "", at(10))
    journal.note("book", "BTCUSDT EMPTY -> SYNCED", at(20))
    say = lambda kind, k, ms, **more: journal.report(Report(kind, k, "BTCUSDT", 1, at(ms), **more), at(ms + 2))
    journal.intent(NewOrder("demo1", "BTCUSDT", 1, 10_000, 10, "post-only"), at(148))
    say("accepted", "demo1", 150, price_ticks=10_000, qty_lots=10)
    say("fill", "demo1", 350, exec_id="11", price_ticks=10_000, qty_lots=6, cum_lots=6, maker=True)
    say("cancelled", "demo1", 450, cum_lots=6, left_lots=0, definitive=True)
    journal.intent(NewOrder("demo2", "BTCUSDT", 1, 10_002, 8, "ioc"), at(548))
    say("accepted", "demo2", 550, price_ticks=10_002, qty_lots=8)
    say("fill", "demo2", 550, exec_id="12", price_ticks=10_002, qty_lots=8, cum_lots=8, left_lots=0, maker=False)
    journal.note("stop", "", at(590))
    journal.close(publish=False)
    return home


def test_our_shadow_is_taken_off_the_venues_book_and_left_in_what_was_heard(tmp_path):
    run = load_run(handmade(tmp_path) / "state", config=tmp_path / "session.yaml")
    assert own_orders(run, "BTCUSDT") == {(1, 10_000): ([DAY + 150 * MS, DAY + 350 * MS, DAY + 450 * MS], [10, 4, 0]),
                                          (1, 10_002): ([DAY + 550 * MS] * 2, [8, 0])}
    both, done = without_own(run, "BTCUSDT")
    sees, hears = (take(both, (both.seen & bit) > 0) for bit in (SEEN_EXCHANGE, SEEN_LOCAL))
    at = lambda e: e.lots[np.isin(e.kind, (DEPTH, SNAPSHOT)) & (e.side == 1) & (e.tick == 10_000)].tolist()
    assert at(hears) == [5, 5, 15, 15, 9, 5] and at(sees) == [5, 5, 5, 5, 5, 5]
    trades = lambda e: e.lots[e.kind == TRADE].tolist()
    assert trades(hears) == [6, 8] and trades(sees) == [6]  # who hit us stays, what we took goes
    assert done == {"levels made smaller": 3, "levels smaller than ours": 0, "prints of our own taking left out": 1}


def test_a_level_smaller_than_what_we_had_there_is_counted_and_never_below_zero(tmp_path):
    run = load_run(handmade(tmp_path, lots_seen=(5, 15, 7, 2, 5)) / "state", config=tmp_path / "session.yaml")
    both, done = without_own(run, "BTCUSDT")
    assert both.lots.min() >= 0 and done["levels smaller than ours"] == 2


def test_a_paper_session_has_no_shadow(tmp_path):
    home = handmade(tmp_path, mode="testnet")
    (home / "session.yaml").write_text((home / "session.yaml").read_text().replace("mode: testnet", "mode: paper"))
    (home / "state" / "journal.db").rename(home / "state" / "paper-1.db")
    r = reconcile_run(home / "state", config=home / "session.yaml")
    assert r.recorded == {}


def untold(home, end):
    "The handmade session in which nobody reported the end of our order: a query, a snapshot, or nothing at all told of it."
    handmade(home)
    con = sqlite3.connect(home / "state" / "journal.db")
    rows = con.execute("SELECT number, time_ns, body FROM makerlab_journal WHERE word = 'report' AND client_id = 'demo1' ORDER BY number").fetchall()
    (_, _, fill), (number, _, gone) = rows[1], rows[2]
    told = json.loads(gone) | {"kind": "order-status", "status": "cancelled", "cum_lots": 6}
    execution = {k: json.loads(fill)[k] for k in ("exec_id", "client_id", "symbol", "side", "price_ticks", "qty_lots", "fee", "maker", "time_ns")}
    rest = execution | {"exec_id": "13", "qty_lots": 4, "time_ns": DAY + 440 * MS}
    photo = {"venue": None, "time_ns": DAY + 445 * MS, "orders": [], "positions": {}, "cash": math.nan, "executions": [execution, rest]}
    given_up = {"kind": "state", "before": "PARTIAL", "after": "CANCELLED", "reason": "given up"}
    word, body = {"query": ("report", told), "snapshot": ("snapshot", photo), "nobody": ("event", given_up), "twice": ("report", json.loads(fill))}[end]
    con.execute("UPDATE makerlab_journal SET word = ?, body = ? WHERE number = ?", (word, json.dumps(body), number))
    con.commit()
    con.close()
    return load_run(home / "state", config=home / "session.yaml")


@pytest.mark.parametrize(("end", "at_ms", "steps"), [("query", 450, (10, 4, 0)), ("snapshot", 440, (10, 4, 0)), ("nobody", 452, (10, 4, 0)), ("twice", None, (10, 4))])
def test_an_order_whose_end_no_report_told_does_not_haunt_the_book(tmp_path, end, at_ms, steps):
    run = untold(tmp_path, end)
    times, held = own_orders(run, "BTCUSDT")[1, 10_000]
    assert tuple(held) == steps and times[:2] == [DAY + 150 * MS, DAY + 350 * MS]
    gone = live_side(run).orders.set_index("id")["gone_ns"]
    if at_ms is None:
        assert gone["demo1"] > DAY + 3600 * S, "it is still there"
    else:
        assert times[2] == gone["demo1"] == DAY + at_ms * MS and run.manager.orders["demo1"].done
    assert gone["demo2"] == DAY + 550 * MS


def test_what_a_query_tells_of_an_order_counts_like_its_reports(tmp_path):
    "The acceptance got lost; a query found the order at work, a change moved it, a second query knows of an execution that was never reported."
    run, at = untold(tmp_path, "query"), lambda ms: DAY + ms * MS
    said = lambda ms, kind, **more: (0, at(ms), "report", "demo1", {"kind": kind, "status": "", "time_ns": at(ms), "exec_id": "", "price_ticks": 0, "qty_lots": 0, "cum_lots": -1, **more})
    rows = [r for r in run.rows if r[2] == "new"] + [
        said(200, "order-status", status="working", price_ticks=10_000, qty_lots=10, cum_lots=0), said(200, "accepted"), (0, at(240), "modify", "demo1", {"price_ticks": 9_999, "qty_lots": 12}),
        said(250, "replaced"), said(300, "order-status", status="partial", price_ticks=9_999, qty_lots=12, cum_lots=5), said(310, "fill", exec_id="9", qty_lots=5, price_ticks=9_999, cum_lots=5),
        said(320, "order-status", status="working", price_ticks=9_999, qty_lots=12, cum_lots=0), said(400, "cancelled")]
    own = own_orders(replace(run, rows=rows), "BTCUSDT")
    assert own[1, 10_000] == ([at(200), at(250)], [10, 0]) and own[1, 9_999] == ([at(250), at(300), at(400)], [12, 7, 0])


def test_a_session_with_more_orders_than_a_manager_remembers(market, monkeypatch):
    folder = perform(market, "many")
    monkeypatch.setattr(reconcile, "OrderManager", functools.partial(OrderManager, keep_closed=20))  # what 10,000 are to a longer day
    r = reconcile_run(folder)
    accounted(r)
    assert set(r.orders["status"]) == {"matched"} and set(r.fills["reason"]) == {"same"} and len(r.orders) > 100


class Counted(list):
    "A journal that counts how often it is read."
    read = 0

    def __iter__(self):
        Counted.read += 1
        return super().__iter__()


def test_the_work_does_not_grow_with_the_square_of_the_executions(plain, monkeypatch):
    monkeypatch.setattr(Counted, "read", 0)
    side = live_side(replace(plain.run, rows=Counted(plain.run.rows)))
    assert len(side.fills) > 30 and Counted.read <= 10, "the journal is read a few times, not once for every execution"
    tables, rows_of = [], reconcile._rows_of
    monkeypatch.setattr(reconcile, "_rows_of", lambda table: tables.append(len(table)) or rows_of(table))
    nothing = replace(reconcile.replay_side(plain.run, plain.replay), fills=side.fills[:0])
    pieces = reconcile._pieces(reconcile._Case(plain.run, {"live": side, "replay": nothing}, 250 * MS, {}), plain.orders)
    assert len(pieces) == len(side.fills) and {why for *_, why in pieces} == {"queue"}
    assert len(tables) <= 6, "each table is gone through once, not once for every piece"


def test_aggregates_are_the_prints_of_the_futures_market(tmp_path, monkeypatch):
    "A live session on USD-M records aggTrade and nothing else of the trades."
    prints = recorder._Scene.prints

    def summed(scene):
        m = prints(scene)
        return {"e": "aggTrade", **{k: m[k] for k in "EspqTm"}, "a": m["t"], "f": m["t"], "l": m["t"]}

    monkeypatch.setattr(recorder._Scene, "prints", summed)
    generate_test_data(tmp_path / "recording", rng=np.random.default_rng(7), seconds=25.0, mid=100.0, lot=0.01, levels=8, market="usdm")
    said = sum('"aggTrade"' in m for m in read_messages(tmp_path / "recording")["message"])
    r = reconcile_run(perform(tmp_path, "futures", {"live": FILE["live"] | {"market": "usdm"}}))
    accounted(r)
    heard = r.run.events["BTCUSDT"]
    assert len(heard.trades()) + heard.repairs["trades before the first book"] == said > 50
    assert set(r.orders["status"]) == {"matched"} and set(r.fills["reason"]) == {"same"} and len(r.fills) > 30


MADE = dict(mid=100.0, lot=0.01, levels=8)
HOUR = DAY + 3600 * S


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    "Two recordings in one folder, an hour apart, of a venue that counted from the beginning in between; and the second one alone."
    home = tmp_path_factory.mktemp("restarted")
    generate_test_data(home / "both", rng=np.random.default_rng(3), seconds=40.0, **MADE)
    for folder in ("both", "recording"):
        generate_test_data(home / folder, rng=np.random.default_rng(7), seconds=15.0, start_ns=HOUR, **MADE)
    return home


def test_a_session_in_a_folder_of_many_is_replayed_from_its_own_messages(restarted):
    folder = perform(restarted, "second")
    alone, among = reconcile_run(folder), reconcile_run(folder, recording=restarted / "both")
    accounted(among)
    assert set(among.orders["status"]) == {"matched"} and len(among.orders) > 40
    a, b = (r.run.events["BTCUSDT"] for r in (alone, among))
    assert b.local_ns[0] > HOUR and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("kind", "side", "tick", "lots", "exch_ns", "local_ns"))


def test_sessions_close_together_share_their_margin_and_the_new_book_is_found(tmp_path):
    "The venue came back after 20 s: the messages before the session are another venue's."
    for start, seed, seconds in ((HOUR - 35 * S, 3, 15.0), (HOUR, 7, 15.0)):
        generate_test_data(tmp_path / "both", rng=np.random.default_rng(seed), seconds=seconds, start_ns=start, **MADE)
    generate_test_data(tmp_path / "recording", rng=np.random.default_rng(7), seconds=15.0, start_ns=HOUR, **MADE)
    r = reconcile_run(perform(tmp_path, "soon"), recording=tmp_path / "both")
    accounted(r)
    assert set(r.orders["status"]) == {"matched"} and r.run.events["BTCUSDT"].local_ns[0] < HOUR - 30 * S


def test_a_recorder_that_ran_long_before_the_session_gives_it_its_book(tmp_path):
    "Its snapshot is two minutes old when the session begins."
    generate_test_data(tmp_path / "recording", rng=np.random.default_rng(7), seconds=250.0, **MADE)
    r = reconcile_run(perform(tmp_path, "late", trim_s=120.0))
    accounted(r)
    assert r.run.start_ns > DAY + 119 * S and r.run.events["BTCUSDT"].local_ns[0] < DAY + S
    assert set(r.orders["status"]) == {"matched"} and len(r.orders) > 20


def test_the_file_of_a_session_may_have_been_edited_since(market):
    folder = perform(market, "edited")
    path = market / "edited.yaml"
    before = reconcile_run(folder)
    path.write_text(path.read_text().replace("warm: 5", "warm: 7").replace("half_spread_ticks: 1.5", "half_spread_ticks: 3.0"))
    assert load_live(path).live.warm == 7
    after = reconcile_run(path)
    assert after.run.config.live.warm == 5 and after.run.journal == before.run.journal
    pd.testing.assert_frame_equal(before.orders, after.orders)
    with pytest.raises(ParameterError, match="leave config out"):
        reconcile_run(path, config=path)


def test_the_last_session_of_a_folder_is_taken_wherever_it_is_written(tmp_path):
    home = handmade(tmp_path)
    old = home / "state" / "journal.db"
    paper = Journal(home / "state" / "paper-x.db", instruments=load_live(home / "session.yaml").session.instruments, strategy="demo", clock=lambda: DAY + 90_000 * MS)
    refused = paper.session
    paper.close(publish=False)
    first = load_run(home / "session.yaml")
    assert first.journal == old, "a start that was refused is no session"
    paper = Journal(home / "state" / "paper-y.db", instruments=load_live(home / "session.yaml").session.instruments, strategy="demo", clock=lambda: DAY + 50 * MS)
    paper.note("start", "", DAY + 100 * MS)
    paper.note("stop", "", DAY + 400 * MS)
    paper.close(publish=False)
    os.utime(old)  # what the disk says of times does not count
    last = load_run(home / "session.yaml")
    assert last.journal.name == "paper-y.db" and last.session == paper.session != refused
    assert load_run(home / "session.yaml", session=first.session).journal == old
    sqlite3.connect(home / "state" / "other.db").execute("CREATE TABLE no_journal (x)").connection.close()
    assert load_run(home / "session.yaml").journal.name == "paper-y.db"
    (home / "state" / "torn.db").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match="torn.db cannot be read as a journal"):
        load_run(home / "session.yaml")
    assert load_run(home / "session.yaml", session=first.session).journal == old


def test_what_cannot_be_compared_is_refused_with_the_remedy(market, plain, tmp_path):
    with pytest.raises(ParameterError, match="does not exist: name the folder"):
        reconcile_run(tmp_path / "none")
    with pytest.raises(ParameterError, match="holds no journal"):
        reconcile_run(tmp_path)
    (tmp_path / "journal.db").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match="cannot be read as a journal"):
        reconcile_run(tmp_path)
    with pytest.raises(ParameterError, match="is no recording: give its folder"):
        reconcile_run(market / "plain", recording=tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(FILE | {"quoting": FILE["quoting"] | {"half_spread_ticks": 3.0}}))
    with pytest.raises(ParameterError, match="is not what the session ran with"):
        reconcile_run(market / "plain", config=other)
    other.write_text("strategy: demo\n")
    with pytest.raises(ConfigError):
        reconcile_run(market / "plain", config=other)
    with pytest.raises(ParameterError, match="window_s"):
        reconcile_run(market / "plain", window_s=0.0)
    with pytest.raises(ParameterError, match="own = 'hide'"):
        reconcile_run(market / "plain", own="hide")
    with pytest.raises(ParameterError, match="latency_ms"):
        reconcile_run(market / "plain", latency_ms=-1.0)
    with pytest.raises(ParameterError, match="none that traded"):
        reconcile_run(market / "plain", session="nosuch")
    generate_test_data(tmp_path / "yesterday", rng=np.random.default_rng(8), seconds=3.0, mid=100.0, lot=0.01, start_ns=1_772_366_400 * S)
    with pytest.raises(DataError, match="another time"):
        reconcile_run(market / "plain", recording=tmp_path / "yesterday")
    generate_test_data(tmp_path / "eth", rng=np.random.default_rng(8), seconds=3.0, mid=100.0, lot=0.01, symbol="ETHUSDT")
    with pytest.raises(ParameterError, match="is not in"):
        reconcile_run(market / "plain", recording=tmp_path / "eth")
    with pytest.raises(ParameterError, match="a rehearsal sends nothing"):
        rehearse(handmade(tmp_path / "hand") / "session.yaml")


def test_without_a_noted_configuration_the_file_is_asked_for_and_has_to_fit(tmp_path):
    home = handmade(tmp_path)
    with pytest.raises(ParameterError, match="give the file, config="):
        reconcile_run(home / "state")
    for change, words in ((dict(strategy="other"), "of strategy 'other'"), (dict(instruments={"BTCUSDT": {"tick_size": 0.1, "lot_size": 0.01}}), "in steps of 0.1")):
        path = tmp_path / "wrong.yaml"
        data = yaml.safe_load((home / "session.yaml").read_text()) | change
        path.write_text(yaml.safe_dump(data))
        with pytest.raises(ParameterError, match=words):
            reconcile_run(home / "state", config=path)
    assert reconcile_run(home / "session.yaml").run.session == reconcile_run(home / "state" / "journal.db", config=home / "session.yaml").run.session


def test_a_session_that_recorded_nothing_says_what_to_do(tmp_path):
    home = handmade(tmp_path)
    (home / "session.yaml").write_text((home / "session.yaml").read_text().replace("record: recording", "record: ''"))
    with pytest.raises(ParameterError, match="write live.record into the file"):
        reconcile_run(home / "state", config=home / "session.yaml")
    with pytest.raises(ParameterError, match="write live.record into the file"):
        run_reconcile(home / "state", config=home / "session.yaml")
    assert len(reconcile_run(home / "state", config=home / "session.yaml", recording=home / "recording").orders) >= 2


def test_a_damaged_row_is_named(tmp_path):
    home = handmade(tmp_path)
    con = sqlite3.connect(home / "state" / "journal.db")
    con.execute("UPDATE makerlab_journal SET body = '{}' WHERE word = 'new'")
    con.commit()
    con.close()
    with pytest.raises(DataError, match=r"row \d+ \(new\) of the journal cannot be read"):
        reconcile_run(home / "state", config=home / "session.yaml")


def test_the_command_prints_tables_and_leaves_them(market, plain, tmp_path):
    said = []
    assert run_reconcile(market / "plain", out=tmp_path / "tables", say=said.append) == 0
    text = "\n".join(said)
    assert "decisions in both" in text and "profit and loss by reason" in text
    assert len(pd.read_csv(tmp_path / "tables" / "orders.csv")) == len(plain.orders)
    assert list(pd.read_csv(tmp_path / "tables" / "pnl.csv")["reason"])[-1] == "sum"
    assert "Profit and loss by reason" in plain._repr_html_() and "<script" not in plain._repr_html_()
    with pytest.raises(MakerlabError, match="does not exist"):
        run_reconcile(tmp_path / "none")


def test_a_real_session_against_the_venues_truth(tmp_path, monkeypatch):
    "The engine on the simulated venue, by the clock on the wall: executions, identity, shadow and truth agree whatever happens in it."
    monkeypatch.setenv("MAKERLAB_LEASES", str(tmp_path / "leases"))

    async def session():
        rules = SymbolRules(symbol="AXUSDT", base="AX", lot="0.01", min_qty="0.01")
        async with SimulatedVenue(symbols=[rules], flow=SMALL, seed=100, price="100", maker_bps=0.2, taker_bps=1.0) as venue:
            key, secret = venue.key_of("alice", "hmac")
            monkeypatch.setenv("RCL_API_KEY", key)
            monkeypatch.setenv("RCL_API_SECRET", secret)
            data = FILE | {"instruments": {"AXUSDT": {"tick_size": 0.01, "lot_size": 0.01, "venue": "binance"}}, "venue": {"kind": "simulated", "maker_fee_bps": 0.2, "taker_fee_bps": 1.0},
                           "quoting": FILE["quoting"] | {"half_spread_ticks": 0.5},
                           "live": {"mode": "testnet", "preset": "local", "url": venue.url, "keys_env": "RCL", "folder": "state", "record": "recording", "warm": 1, "sample_s": 0.2, "metrics_port": -1,
                                    "mirror": ""}}
            path = tmp_path / "session.yaml"
            path.write_text(yaml.safe_dump(data))
            engines = []
            task = asyncio.ensure_future(live(load_live(path), say=lambda words: None, watched=False, signals=False, started=lambda e, c: engines.append(e)))
            for _ in range(600):
                await asyncio.sleep(0.1)
                if task.done() or (engines and engines[0].counts["order fill"] >= 2 and engines[0].counts["NewOrder"] >= 12):
                    break
            engines[0].stop("enough")
            assert await asyncio.wait_for(task, 30) == 0
            return [r for r in venue.exchange.truth if r.get("account") == "alice"], venue.exchange.truth_cash("alice"), venue.exchange.truth_position("alice")

    truth, cash, position = asyncio.run(asyncio.wait_for(session(), 120))
    r = reconcile_run(tmp_path / "state")  # configuration and recording as the session noted them
    accounted(r)
    trades = [x for x in truth if x["kind"] == "trade"]
    live_fills = r.fills[r.fills["status"] != "only replay"]
    assert len(trades) >= 1 and round(live_fills["qty"].sum() * 100) == sum(x["last_lots"] for x in trades)
    assert r.booked[0] == pytest.approx(cash + position.get("AXUSDT", 0) * 0.01 * r.marks["AXUSDT"], abs=1e-6), "P&L of the session is the truth's"
    placed = {x["client_id"] for x in truth if x["kind"] == "new"} | {x["client_id"] for x in truth if x["kind"] == "rejected"}
    assert placed <= set(r.orders["live_id"]) and r.recorded.get("levels smaller than ours", 0) == 0
    assert r.run.config.path == tmp_path / "session.yaml" and not os.path.exists(tmp_path / "tables")
