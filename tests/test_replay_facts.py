"The L3 replay of a LOBSTER day and of the ES future holds DATA.md's facts: its book is the file's, and it fills us when the order-by-order truth does."
import functools

import numpy as np
import pandas as pd
import pytest
from conftest import real
from test_databento import ES, heads

from makerlab.backtest import queue_truth as qt
from makerlab.backtest.replay import Replay, ReplayResults
from makerlab.core import to_ns
from makerlab.data.databento import read_dbn
from makerlab.data.events import FILL, TRADE, Events, depth_of, touch
from makerlab.data.lob import load_lobster
from makerlab.data.lob_events import fifo_facts
from makerlab.data.source import open_events
from makerlab.execution.queues import parse_queue
from makerlab.models.quoting import QuoteParams

pytestmark = pytest.mark.realdata
FILES = {"AMZN": "lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip", "ES": ES.format(25)}
OPEN = {"AMZN": 0, "ES": 1_703_545_200_000_000_000 + 30_000_000_000}  # ES: half a minute after the auction at 23:00, before which the book may cross
SEND = 1_000_000  # ns from us to the exchange


@functools.cache
def events(name: str) -> Events:
    return open_events(real(FILES[name]))


def quoted(e: Events, interval_ms: float = 100.0, qty: float = 1.0) -> ReplayResults:
    "The reference strategy, half a tick from the mid (the touch, or inside a wide one), whatever it holds."
    params = QuoteParams(qty=qty, max_inventory=1e9, x0=0.5, x1=0.0)
    return Replay(e, strategy="reference", params=params, queue="fifo", interval_ms=interval_ms).run(rng=np.random.default_rng(1))


@functools.cache
def replayed(name: str) -> ReplayResults:
    return quoted(events(name))


def in_ticks(prices: pd.Series, e: Events) -> np.ndarray:
    return np.rint(prices.to_numpy() / e.tick_size).astype(np.int64)


def test_amzn_book_is_the_orderbook_file_at_every_mark():
    day, path = load_lobster(real(FILES["AMZN"])), replayed("AMZN").path
    t, marks = to_ns(day.messages["time"]), to_ns(path["time"])
    at = np.searchsorted(t, marks, side="right") - 1
    assert len(marks) > 230_000 and (at >= 0).all()
    for mine, theirs in (("bid", "bid_1"), ("ask", "ask_1")):
        assert (in_ticks(path[mine], events("AMZN")) == np.rint(day.book[theirs].to_numpy()[at] * 100)).all(), mine


def test_es_book_is_the_exchanges_and_the_quotes_follow_what_we_heard():
    "The path's touch is the market's at the mark; our quotes come from the touch of the messages that had reached us, so a message under way moves the first and not the second."
    e, path = events("ES"), replayed("ES").path
    d, marks = depth_of(e), to_ns(path["time"])
    book, use = touch(d)[["bid_tick", "ask_tick"]].to_numpy(), to_ns(path["time"]) >= OPEN["ES"]
    there, heard = (book[np.searchsorted(stamps, marks[use], side="right") - 1] for stamps in (d.exch_ns, d.local_ns))
    assert (np.diff(d.local_ns) >= 0).all() and use.sum() == 35_695
    assert (there != heard).any(axis=1).sum() == 4, "marks with a message under way that moves the touch: the two clocks can be told apart"
    assert (np.stack([in_ticks(path[c][use], e) for c in ("bid", "ask")], 1) == there).all()
    centre = heard.sum(axis=1) / 2
    want = np.stack([np.minimum(np.floor(centre - 0.5), heard[:, 1] - 1), np.maximum(np.ceil(centre + 0.5), heard[:, 0] + 1)], 1)
    assert (np.stack([in_ticks(path[c][use], e) for c in ("quote_bid", "quote_ask")], 1) == want).all()


def test_amzn_executions_are_at_the_replays_touch():
    "With a mark every ms, trades before which nothing happened since the last mark: the replay's touch is the one they met."
    e = events("AMZN")
    e = e.between(int(e.exch_ns[0]), int(e.exch_ns[0]) + 1800 * 10**9)
    path = quoted(e, interval_ms=1.0).path
    marks, trade = to_ns(path["time"]), e.kind == TRADE
    seen = np.append(e.kind[1:] == FILL, False)[trade]
    t, price, side = e.exch_ns[trade], e.tick[trade], e.side[trade]
    mark = np.searchsorted(marks, t, side="left") - 1
    first = np.searchsorted(e.exch_ns, t, side="left") == np.flatnonzero(trade)  # nothing else of its stamp before it
    alone = (mark >= 0) & first & (np.searchsorted(e.exch_ns, marks[np.maximum(mark, 0)], side="right") == np.flatnonzero(trade))
    bid, ask = (in_ticks(path[c], e)[np.maximum(mark, 0)] for c in ("bid", "ask"))
    met = np.where(side > 0, price == ask, price == bid)
    inside = (price >= bid) & (price <= ask)
    shown, hidden = alone & seen, alone & ~seen
    assert shown.sum() > 300 and hidden.sum() > 100
    assert met[shown].mean() >= 0.9999 and inside[hidden].mean() >= 0.9996
    assert np.where(side < 0, price == ask, price == bid)[shown].mean() < 0.01, "the other side's touch is the wrong one"


def test_the_head_of_the_queue():
    known = fifo_facts(events("AMZN"))
    assert 0.995 <= known["known_head_share"] <= 0.999 and known["known_executions"] > 8_900
    facts = fifo_facts(events("ES"))
    assert facts["executions"] == 6257 and facts["head_share"] == pytest.approx(0.9155, abs=0.001)
    _, messages, _ = read_dbn(real(FILES["ES"]))
    (right, n), (naive, _) = (heads(messages, subtract=s, takers=True) for s in (True, False))
    assert n == 6364 and 0.89 <= right / n <= 0.905 and 0.45 <= naive / n <= 0.46, "DATA.md's count takes the 107 fills of aggressors in"


def fates(name: str) -> pd.DataFrame:
    "Our accepted orders: when the replay filled them and when the order-by-order truth of page 71a does (-1: not while they stood), and whether a hidden trade did it."
    e, r = events(name), replayed(name)
    steps, log = qt._steps_of(e, (0,)), r.orders.assign(ns=to_ns(r.orders["time"]))
    by = {a: log[log["action"] == a].set_index("order_id")["ns"] for a in ("new", "cancel", "expire")}
    new = log[(log["action"] == "new") & ~log["order_id"].isin(by["expire"].index)]
    join = new["ns"].to_numpy() + SEND
    joins = pd.DataFrame({"at": np.searchsorted(steps.t_ns, join, side="right"), "join_ns": join, "side": new["side"].to_numpy(np.int64), "tick": in_ticks(new["price"], e)})
    fine = (join >= OPEN[name]) & np.isin(joins["tick"], steps.grid) & (joins["at"] < len(steps.t_ns)).to_numpy()
    assert fine.sum() > 0.99 * (join >= OPEN[name]).sum()
    joins, ids = joins[fine].reset_index(drop=True), new["order_id"].to_numpy()[fine]
    true = qt._follow(steps, joins, parse_queue("fifo"), horizon_s=1e5)["fill_ns"].to_numpy()
    died = by["cancel"].reindex(ids, fill_value=2**62).to_numpy(np.int64) + SEND
    mine = pd.Series(to_ns(r.fills["time"]), index=r.fills["order_id"].to_numpy()).reindex(ids, fill_value=-1).to_numpy(np.int64)
    hidden = steps.t_ns[steps.op == qt._HIDDEN]
    return pd.DataFrame({"mine": mine, "true": np.where((true >= 0) & (true <= died), true, -1), "dark": np.isin(true, hidden)}, index=ids)


@pytest.mark.parametrize("name, orders, fills", [("AMZN", 19_000, 4_000), ("ES", 500, 300)])
def test_we_are_filled_when_the_truth_is(name, orders, fills):
    f = fates(name)
    filled = f["mine"] >= 0
    assert len(f) > orders and filled.sum() > fills
    assert (f.loc[filled, "true"] >= 0).all(), "no fill before the queue ahead was consumed"
    assert (f.loc[filled, "mine"] >= f.loc[filled, "true"]).all(), "and none earlier"
    other = f["mine"] != f["true"]
    assert f.loc[other, "dark"].all(), "only a hidden trade at our price, which the truth gives to us first and the replay does not, may differ"
    assert other.mean() < 0.01
