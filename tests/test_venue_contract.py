"The contract of a venue, on the venues that there are."
import asyncio

import numpy as np
from venue_contract import Bench, VenueContract

from makerlab.backtest.harness import Faults, ReplayVenue
from makerlab.data.events import ADD, CANCEL, DEPTH, FILL, SNAPSHOT, TRADE, Events
from makerlab.execution.venue import Capabilities, Instrument

T0 = 1_700_000_000_000_000_000
MS = 1_000_000
START = ((1, 99, 5), (1, 98, 9), (-1, 101, 5), (-1, 102, 9))


def record(level):
    "Four levels, and for L3 two orders on each."
    rows = [(SNAPSHOT, s, p, n, 0) for s, p, n in START]
    if level == "l3":
        rows = [(ADD, s, p, k, 10 * i + j) for i, (s, p, n) in enumerate(START) for j, k in enumerate((2, n - 2), 1)]
    kind, side, tick, lots, key = (np.array(c) for c in zip(*rows))
    t = np.full(len(rows), T0)
    ids = dict(order_id=key.astype(np.int64)) if level == "l3" else {}
    return Events(kind=kind.astype(np.uint8), side=side.astype(np.int8), exch_ns=t, local_ns=t, tick=tick.astype(np.int32), lots=lots.astype(np.int64),
                  tick_size=0.01, level=level, **ids)


class ReplayBench(Bench):
    "A scripted market in a ReplayVenue."

    def __init__(self, level, **settings):
        faults = Faults(disconnects=((T0 + 10_000 * MS, T0 + 11_000 * MS),))
        super().__init__(ReplayVenue({"X": record(level)}, [Instrument("X", 0.01)], faults=faults, **settings))
        self.level = level
        self.shown = {(s, p): n for s, p, n in START}
        self.queues = {(s, p): [[10 * i + j, k] for j, k in enumerate((2, n - 2), 1)] for i, (s, p, n) in enumerate(START)}

    async def settle(self):
        self.venue.advance(self.venue.now_ns + 20 * MS)
        for _ in range(3):
            await asyncio.sleep(0)

    async def trade(self, side, tick, lots):
        v = self.venue
        v.inject("X", TRADE, side, tick, lots)
        queue = self.queues.get((-side, tick), [])
        for order in queue if self.level == "l3" else ():
            n = min(lots, order[1])
            if n:
                v.inject("X", FILL, -side, tick, n, order[0])
                order[1] -= n
                lots -= n
        if self.level == "l2" and (-side, tick) in self.shown:
            self.shown[-side, tick] = max(0, self.shown[-side, tick] - lots)
            v.inject("X", DEPTH, -side, tick, self.shown[-side, tick])
        best = max((r * p for (r, p), q in self.queues.items() if r == -side and sum(k for _, k in q)), default=-(10**9))
        if self.level == "l3" and lots and -side * tick > best:  # nobody recorded stands there: an order that comes and goes
            v.inject("X", ADD, side, tick, lots, 999)
            v.inject("X", CANCEL, side, tick, lots, 999)
        await self.settle()

    async def break_connection(self):
        for t in (10_500, 12_000):
            self.venue.advance(T0 + t * MS)
            await asyncio.sleep(0)


class TestReplayOnLevels(VenueContract):
    def make_venue(self):
        return ReplayBench("l2")


class TestReplayOrderByOrder(VenueContract):
    def make_venue(self):
        return ReplayBench("l3")


class TestAPoorVenue(VenueContract):
    "No native modify, nothing checked for us but post-only."

    def make_venue(self):
        return ReplayBench("l2", capabilities=Capabilities())
