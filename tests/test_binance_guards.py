"Each guard of the gateway, switched off: its row of the fault matrix must then fail. A row that passes without its guard tests nothing."
import asyncio
import json
from pathlib import Path
from dataclasses import replace

import msgspec
import pytest
import test_binance_faults as rows
import test_binance_words as words
from venue_contract import VenueContract
from test_binance_faults import warm  # noqa: F401  the exchange is compiled first

from makerlab.live import binance
from makerlab.live.binance import BinanceVenue, Brake, FullBudget, Line, VenueError, WeightWindow
from makerlab.live.protocol import Outcome

V = BinanceVenue


def silently(self, reason):
    self._line, self._down = None, True


class Deaf(Line):
    "A connection that does not hear that it will be closed."

    leaving = property(lambda self: False, lambda self, x: None)


async def dial(self, url):
    return await self.http.ws_connect(url)


def every_unknown_is_a_refusal(self, k, reply, old=V._judge_new):
    old(self, k, reply._replace(outcome=Outcome("rejected", True, message="no answer")) if reply.outcome.kind == "unknown" else reply)


async def again(self, op, params, *, patience_s=0.0, old=V._ask):
    reply = await old(self, op, params, patience_s=patience_s)
    return await old(self, op, params, patience_s=patience_s) if reply.outcome.kind == "unknown" and op == "new" else reply


def accept_always(self, k, time_ns, cum=-1):
    k.accepted = True
    self._tell("accepted", k, time_ns, price_ticks=k.tick, qty_lots=k.qty, cum_lots=cum)


def book_always(self, k, trade, *a, old=V._booking, **more):
    self.booked.clear()
    old(self, k, trade, *a, **more)


def refused_means_cancelled(self, client_id, reply):
    self._end(self.orders[client_id], "cancelled", reply.asked_ns, cum=-1)


def end_without_count(self, k, word, time_ns, *, cum, reason="", old=V._end):
    k.cum = -1
    old(self, k, word, time_ns, cum=-1, reason=reason)


async def both_at_once(self, cancel, order, *, only_new=False):
    await self.submit(order)
    await self.cancel(cancel)


def only_ours(self, e, old=V._on_order):
    if e.client_id in self.orders:
        old(self, e)


def not_found_is_proof(self, kind, *a, old=V._say, **more):
    old(self, kind, *a, **more | (dict(status="rejected", definitive=True) if more.get("status") == "not-found" else {}))


def only_what_is_expected(self, e, old=V._on_order):
    if not (e.client_id in self.orders and self.counts["order-status"]):
        old(self, e)


def many_times(self, o, old=V._admit):
    self.orders.pop(o.client_id, None)
    return old(self, o)


async def no_answer_is_empty(self, op, params, *, missing=False, old=V._question):
    try:
        return await old(self, op, params, missing=missing)
    except VenueError:
        return []


async def open_anyway(self, old=V._open_line):
    self.halted = ""
    return await old(self)


async def as_it_comes(self, since_ns=0):
    executions = await self.executions(since_ns)
    lots, cash = await self._account()
    return binance.VenueSnapshot(self._asked_ns(), tuple(await self.open_orders()), tuple(executions), lots, cash)


async def at_once(self, work, names, before):
    await work


async def retries(v, old=binance._connect):
    v.http._retry_connection = True
    await old(v)


async def as_of_now(self, call, params, old=V._once):
    reply = await old(self, call, params)
    return reply._replace(asked_ns=2**62)


def never_halted(self, o, old=V._learn):
    old(self, o)
    self.halted = ""


def believe_the_clock(self, o, old=V._why_not):
    self.strikes = 0
    return old(self, o)


async def nothing(*a, **k):
    return False


GUARDS = {
    "10 the loss of the stream is told": (rows.row_10, ("spot", "cut"), V, "_lost", silently),
    "10 ping": (rows.row_10, ("usdm", "blackhole"), V, "_dial", dial),
    "10 a stream that says nothing": (rows.row_10_silent, ("spot",), V, "_silent", lambda self: ""),
    "10 make before break": (rows.row_10_renewed, ("spot", "shutdown"), binance, "Line", Deaf),
    "11 listen key kept": (rows.row_11, ("-1125",), V, "_keep_key", nothing),
    "12 Retry-After": (rows.row_12, ("spot",), FullBudget, "hold", lambda self, rule, until_ns: self.until.setdefault(rule, 0)),
    "12 order limit": (rows.row_12_order_limit, (), FullBudget, "refusal", lambda self, call, now_ns: ("", now_ns)),
    "12 windows": (rows.row_12_budget, (), WeightWindow, "fits", lambda self, n, now_ns, cancel=False: True),
    "13 ban": (rows.row_13, ("spot",), FullBudget, "_silences", lambda self, rule, call: False),
    "14 no answer is no refusal": (rows.row_14, ("spot", "hang"), V, "_judge_new", every_unknown_is_a_refusal),
    "14 never sent again": (rows.row_14, ("usdm", "reset"), V, "_ask", again),
    "15 not found is no proof": (rows.row_15, ("spot", "hang"), V, "_say", not_found_is_proof),
    "16 what comes late is heard": (rows.row_16, ("usdm",), V, "_on_order", only_what_is_expected),
    "17 accepted once": (rows.row_17, ("spot",), V, "_accept", accept_always),
    "18 the name of a cancel": (rows.row_18_names, (), V, "_on_order", lambda self, e, old=V._on_order: old(self, msgspec.structs.replace(e, client_id=e.request_id))),
    "18 the count of a cancel": (rows.row_18, ("spot", "cancel, then late fill"), V, "_end", end_without_count),
    "18 -2011 is no cancel": (rows.row_18, ("usdm", "filled"), V, "_judge_cancel", refused_means_cancelled),
    "19 the second leg waits": (rows.row_19, ("spot", "both"), V, "replace", both_at_once),
    "20 trades are told once": (rows.row_20, ("spot", "duplicate"), V, "_booking", book_always),
    "21 orders that are not ours": (rows.row_21, ("spot",), V, "_on_order", only_ours),
    "22 the clock is read again": (rows.row_22, ("spot", -2500), V, "_sync_clock", nothing),
    "22 too far away": (rows.row_22_limit, (), V, "_why_not", lambda self, o: ""),
    "28 rules are obeyed": (rows.row_28, ("usdm", "CANCEL_ONLY"), V, "_why_not", lambda self, o: ""),
    "28 rounded to the new tick": (rows.row_28_tick, ("spot",), V, "_rounded", lambda self, o: (o.price_ticks, o.qty_lots)),
    "30 brake": (rows.row_30, ("usdm", "post-only storm"), Brake, "holds", lambda self, key, now_ns: 0),
    "-1008 spares reduce-only": (words.row_overload, (), FullBudget, "_silences", lambda self, rule, call, old=FullBudget._silences: old(self, rule, replace(call, closes=False))),
    "14 not by aiohttp either": (words.row_once, (), binance, "_connect", retries),
    "-1021 three in a row": (words.row_clock, (), V, "_why_not", believe_the_clock),
    "-2015 halts": (words.row_keys, (), V, "_learn", never_halted),
    "-2015 on the stream": (words.row_key_on_the_line, (), V, "_open_line", open_anyway),
    "a name once": (words.row_name, (), V, "_admit", many_times),
    "a list or an error": (words.row_list, (), V, "_question", no_answer_is_empty),
    "a snapshot of one instant": (words.row_snapshot, (), V, "snapshot", as_it_comes),
    "old answers are dropped": (words.row_late, (), V, "_once", as_of_now),
    "one order, one request at a time": (words.row_follow, (), V, "_run", at_once),
    "a fee in base is money": (words.row_fees, (), V, "_fee", lambda self, symbol, trade, paid, asset, price, time_ns: float(paid * price)),
    "memory has an end": (words.row_forget, (), V, "_remember", lambda self, k: self.orders.setdefault(k.client_id, k)),
    "filters": (words.row_filters, (), V, "_unfit", lambda self, o: ""),
    "dead man": (rows.dead_man, (), V, "_pulse", nothing),
}


@pytest.mark.parametrize("name", GUARDS)
def test_without_its_guard_the_row_fails(monkeypatch, name):
    row, args, where, what, instead = GUARDS[name]
    monkeypatch.setattr(rows, "PATIENT_S", 1.2)
    connect = V.connect

    async def then_switched_off(self):
        await connect(self)
        monkeypatch.setattr(where, what, instead)

    if name.startswith(("22 the clock", "28 rounded")):  # these are needed to connect
        monkeypatch.setattr(V, "connect", then_switched_off)
    else:
        monkeypatch.setattr(where, what, instead)
    with pytest.raises((AssertionError, TimeoutError, ValueError, pytest.fail.Exception)):
        asyncio.run(asyncio.wait_for(row(*args), 6))


def test_page_93_counts_them():
    page = json.loads((Path(__file__).resolve().parents[1] / "nbs" / "93_live.binance.ipynb").read_text(encoding="utf8"))
    text = "".join("".join(c["source"]) for c in page["cells"] if c["cell_type"] == "markdown")
    stories = [name for name in dir(VenueContract) if name.startswith("test_")]
    assert f"Of {len(GUARDS)} guards" in text and f"the {len(stories)} stories of the venue contract" in text
    numbers = {int(name.split()[0]) for name in GUARDS if name.split()[0].isdigit()}
    assert numbers == {*range(10, 23), 28, 30}, "rows of the fault matrix"
