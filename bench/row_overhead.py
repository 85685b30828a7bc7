"""Python's overhead for one market event through quoting, risk and orders; asked: at most 50 microseconds in the median.

Prints one JSON object. A made book walks at random, 200 events a second: a tenth of the events move the price, all change the sizes. For each event the clock runs
through RiskGuard.on_market, QuoteEngine.quotes_top, RiskGuard.shape, OrderManager.requote (which asks RiskGuard.approve), RiskGuard.on_event for what happened,
RiskGuard.evaluate and OrderManager.poll. The venue answers between events: reports are timed apart. There is no peer: the ratio is to the 50 microseconds.
The answer is checked by the venue's own log: both runs send the same requests, no position beyond the limit, no window with more messages than allowed.
"""
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from clock import describe

from makerlab.execution.orders import OrderManager, RequotePolicy
from makerlab.execution.risk import AccountLimits, CancelAll, Flatten, Limits, MemoryLatch, RiskGuard
from makerlab.execution.throttle import SlidingWindow, Throttle
from makerlab.execution.venue import Capabilities, Instrument, ModifyOrder, NewOrder, Report, TopOfBook, instruments
from makerlab.models.quote_engine import Adverse, Edge, Offsets, QuoteConfig, QuoteEngine, Size, Skew

EVENTS, RUNS, ASKED_S, WARM = 20_000, 3, 50e-6, 500
S, MAX_LOTS, MESSAGES = 1_000_000_000, 40, 100


def tape(seed=5):
    "Tops of book on a random walk, and for each event which of our sides trades (0 = none)."
    rng = np.random.default_rng(seed)
    n = EVENTS + WARM
    now = S + np.cumsum(rng.exponential(S / 200, n).astype(np.int64) + 1)
    mid = 10_000 + np.cumsum(rng.choice([-1, 0, 1], n, p=[0.05, 0.9, 0.05]))
    half = np.where(np.cumsum(rng.random(n) < 0.02) % 4 == 3, 2, 1)  # wider for a while, a quarter of the time
    sizes = 1 + np.abs(np.cumsum(rng.integers(-3, 4, (n, 2)), axis=0) % 120 - 60)  # a walk between two walls
    hits = rng.choice([-1, 0, 1], n, p=[0.05, 0.9, 0.05])
    return [(TopOfBook("A", m - h, m + h, b, a, t - 200_000, t, 0.02), hit)
            for t, m, h, (b, a), hit in zip(now.tolist(), mid.tolist(), half.tolist(), sizes.tolist(), hits.tolist())]


class Venue:
    "Answers at once and keeps the log that judges us."

    def __init__(self):
        self.book, self.log, self.position, self.worst, self.execs, self.mine = {}, [], 0, 0, 0, 0

    def receive(self, r, t):
        self.log.append((t, type(r).__name__, r))
        k = r.client_id
        if isinstance(r, NewOrder):
            self.book[k] = [r.side, r.price_ticks, r.qty_lots, 0]
            return Report("accepted", k, "A", r.side, t, price_ticks=r.price_ticks, qty_lots=r.qty_lots, cum_lots=0)
        side, _, _, done = o = self.book[k]
        if isinstance(r, ModifyOrder) and r.qty_lots > done:
            o[1], o[2] = r.price_ticks, r.qty_lots
            return Report("replaced", k, "A", side, t, price_ticks=o[1], qty_lots=o[2], cum_lots=done)
        del self.book[k]
        return Report("cancelled", k, "A", side, t, cum_lots=done, definitive=True)

    def trade(self, side, t):
        "The best of our orders on a side executes a lot."
        mine = [(k, o) for k, o in self.book.items() if o[0] == side]
        if not mine:
            return []
        k, o = max(mine, key=lambda x: side * x[1][1])
        o[3] += 1
        self.execs, self.position = self.execs + 1, self.position + side
        self.worst = max(self.worst, abs(self.position))
        if o[3] == o[2]:
            del self.book[k]
        return [Report("fill", k, "A", side, t, f"e{self.execs}", o[1], 1, o[3], fee=0.01)]


def session():
    "The three machines, set up alike."
    table = instruments([Instrument("A", 0.01, lot_size=1.0)])
    config = QuoteConfig(theo="microprice", style="layered", levels=2, level_step_ticks=3, half_spread_ticks=2.5, max_inventory_lots=30, skew=Skew(shape="tanh", ticks=3), size=Size(lots=4, taper=0.5),
                         offsets=Offsets(per_sigma=0.2, imbalance_ticks=0.5), edge=Edge(min_ticks=0.1, min_reducing_ticks=-1.0, adverse=Adverse(bid_ticks=0.5, ask_ticks=0.5, per_imbalance=0.4)))
    guard = RiskGuard({"A": Limits(20, 1e5, MAX_LOTS, max_fills=10_000, jump_sigmas=50.0)}, account=AccountLimits(1e6, 1e5, 1e5, max_messages=MESSAGES), instruments=table, latch=MemoryLatch())
    orders = OrderManager(table, session="bench", capabilities=Capabilities(native_modify=True, modify_keeps_priority=True), policy=RequotePolicy(tolerance_ticks=2),
                          throttle=Throttle([SlidingWindow(MESSAGES, S, 10)], in_flight_cap=20), approve=guard.approve)
    return QuoteEngine(config, tick_size=0.01, symbol="A"), guard, orders


def decide(top, now, engine, guard, orders):
    "One market event: what to send."
    guard.on_market(top, now)
    exposure = orders.exposure("A")
    wanted = []
    for quote in engine.quotes_top(top, inventory_lots=exposure.position_lots, sigma=top.sigma, now_ns=now):
        quote = guard.shape(quote, exposure)
        if quote.qty_lots > 0:
            wanted.append(quote)
    orders.requote("A", wanted, now_ns=now)
    for event in orders.take_events():
        guard.on_event(event, now)
    for action in guard.evaluate(now, orders):
        if isinstance(action, CancelAll):
            orders.cancel_all(action.symbol, now_ns=now, reason=action.reason)
        elif isinstance(action, Flatten):
            raise RuntimeError(f"the made session should not end in a flattening: {action}")
    return orders.poll(now)


def run(rows):
    "Seconds of each event and of each report, whether the event sent something, and the venue's log."
    engine, guard, orders = session()
    venue, spent, busy, heard = Venue(), [], [], []
    guard.on_connection(True, 0)
    clock = time.perf_counter_ns
    for top, hit in rows:
        now = top.local_ns
        tic = clock()
        sent = decide(top, now, engine, guard, orders)
        spent.append((clock() - tic) * 1e-9)
        busy.append(bool(sent))
        reports = [venue.receive(r, now) for r in sent] + (venue.trade(hit, now) if hit else [])
        for report in reports:
            tic = clock()
            for event in orders.handle(report, now_ns=now):
                guard.on_event(event, now)
            orders.take_events()
            heard.append((clock() - tic) * 1e-9)
    held = orders.position("A") == venue.position and not guard.latch.tripped
    return spent[WARM:], busy[WARM:], heard, venue, held


def kept(venue):
    "Whether the venue's own log shows every limit kept."
    times = [t for t, _, _ in venue.log]
    return venue.worst <= MAX_LOTS and all(b - a >= S for a, b in zip(times, times[MESSAGES:]))


def main():
    rows = tape()
    runs = [run(rows) for _ in range(RUNS)]
    first = runs[0][3]
    spent, heard = (np.concatenate([r[i] for r in runs]) for i in (0, 2))
    busy = np.concatenate([r[1] for r in runs])
    median, median_busy = float(np.median(spent)), float(np.median(spent[busy]))
    agree = all(r[3].log == first.log and r[4] and kept(r[3]) for r in runs) and first.execs > 500 and len(first.log) > 2_000
    report = {
        "row": "OVERHEAD",
        "work": f"one market event through quoting, risk and orders, {EVENTS:,} events; asked: 50 µs, the ratio is to that",
        "makerlab": describe(spent.tolist(), note=f"median {median * 1e6:.1f} µs, 99th percentile {float(np.quantile(spent, 0.99)) * 1e6:.0f} µs; {busy.mean():.0%} of the events send something, "
                             f"{len(first.log):,} messages and {first.execs:,} executions a run; a report takes {float(np.median(heard)) * 1e6:.1f} µs"),
        "peers": {},
        "ratio": ASKED_S / median,
        "target": 1,
        "also": [{"work": f"only events that send something (median {median_busy * 1e6:.1f} µs)", "ratio": ASKED_S / median_busy}],
        "answers_agree": bool(agree),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
