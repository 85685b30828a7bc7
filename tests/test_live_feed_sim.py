"The feed against the simulated venue: its strangers trade, its fault port breaks things, its book is the oracle."
import asyncio

import numpy as np
import pytest

from makerlab.live.feed import Feed, FeedPolicy
from makerlab.live.protocol import Hosts, decode
from makerlab.live.simulated import SimulatedVenue, VenueClock

POLICY = FeedPolicy(silence_s={}, ping_s=5.0, backoff_s=(0.01, 0.05), snapshot_backoff_s=(0.01, 0.05), snapshot_limit=1000, overlap_s=0.5)


class Stage:
    "A simulated venue whose clock a test moves by hand, a feed on it, and everything the feed said."

    def __init__(self, market, streams, policy=POLICY):
        self.venue, self.items = SimulatedVenue(market=market, seed=4, clock=VenueClock(manual=True)), []
        self.market, self.streams, self.policy, self.seen_ids = market, streams, policy, 0

    async def __aenter__(self):
        await self.venue.start()
        self.feed = Feed(["BTCUSDT"], hosts=Hosts.local(self.venue.url, market=self.market), rng=np.random.default_rng(1), streams=self.streams, policy=self.policy)
        await self.feed.start()
        self.task = asyncio.create_task(self._read())
        # a change that waited for the snapshot may be in it already, and would not be missed: a fault needs one that is newer
        await self.play(until=lambda: self.feed.synced and not any(b.fresh for b in self.feed.books.values()))
        return self

    async def __aexit__(self, *_):
        await self.feed.close()
        await self.task
        await self.venue.stop()

    async def _read(self):
        async for x in self.feed:
            self.items.append(x)

    async def play(self, until, step_s=0.1, most=600):
        "Let venue time pass until something is so."
        for _ in range(most):
            if until():
                return
            await self.venue.advance(step_s)
            await self.venue.flushed()
            await asyncio.sleep(0.005)
        raise AssertionError("it never happened")

    async def agrees(self):
        "At rest the book is the venue's, level by level of the best 100."
        await self.play(until=lambda: self.feed.synced)
        for _ in range(60):
            await self.venue.advance(0.1)
            await self.venue.flushed()
            for _ in range(40):
                await asyncio.sleep(0.005)
                true = decode(__import__("msgspec").json.encode(self.venue.snapshot("BTCUSDT", 5000)), market=self.market)
                book = self.feed.books["BTCUSDT"]
                mine = [[(k * 10**6, v) for k, v in side] for side in (list(reversed(book.bids.items()))[:100], list(book.asks.items())[:100])]
                if book.synced and mine == [true.bids[:100], true.asks[:100]]:
                    return True
        return False

    def states(self, since=0): return [(x.data.new == "SYNCED", x.data.reason) for x in self.items[since:] if x.kind == "state"]
    def alarms(self, word): return [x.data.text for x in self.items if x.kind == "alarm" and x.data.word == word]


def story(act, market="spot", streams=("depth", "trade", "aggTrade", "bookTicker"), policy=POLICY):
    async def go():
        async with Stage(market, streams, policy) as s:
            await act(s)
    asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_what_comes_out_is_what_the_venue_did(market):
    async def act(s):
        await s.play(until=lambda: s.feed.stats.messages > 400, step_s=0.2)
        assert await s.agrees()
        st = s.feed.stats
        assert (st.gaps, st.resyncs, st.missed_trades, st.reconnects, sum(st.refused.values())) == (0, 1, 0, 0, 0) and s.states() == [(True, "")]
        trades = [x.data for x in s.items if x.kind == "trade"]
        assert trades and all(t.side in (1, -1) and t.qty > 0 for t in trades)
        last = [x for x in s.items if x.kind == "ticker"][-1].data
        assert last.bid < last.ask
    story(act, market)


@pytest.mark.parametrize("market", ["spot", "usdm"])
@pytest.mark.parametrize("fault, args, reason", [
    ("drop", {}, "gap"), ("reorder", {}, "gap"), ("cut", {"kind": "market", "torn": True}, "disconnected"), ("cut", {"kind": "market"}, "disconnected"),
    ("corrupt", {"what": "nan"}, "nan"), ("corrupt", {"what": "negative"}, "negative"), ("corrupt", {"what": "crossed"}, "crossed"), ("corrupt", {"what": "offgrid"}, "off-grid"),
    ("corrupt", {"what": "huge"}, "number"), ("corrupt", {"what": "json"}, "json"), ("corrupt", {"what": "missing"}, "shape")])
def test_a_fault_takes_the_book_away_and_the_book_comes_back_right(market, fault, args, reason):
    async def act(s):
        since = len(s.items)
        more = {} if fault == "cut" else {"stream": "*@depth@100ms"}
        s.venue.fault(fault, **args, **more)
        await s.play(until=lambda: s.states(since))
        await s.play(until=lambda: len(s.states(since)) >= 2)
        assert s.states(since)[:2] == [(False, reason), (True, "")]
        s.venue.clear()
        assert await s.agrees()
    story(act, market, ("depth",))


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_repeats_and_old_snapshots_change_nothing(market):
    async def act(s):
        s.venue.fault("duplicate", stream="*", n=20)
        await s.play(until=lambda: s.feed.stats.duplicates >= 20)
        assert s.states() == [(True, "")] and await s.agrees()
        s.venue.fault("stale_snapshot", n=2)
        await s.venue.advance(0.5)
        s.venue.fault("drop", stream="*@depth@100ms")
        await s.play(until=lambda: len(s.states()) >= 3)
        s.venue.clear()
        assert await s.agrees() and s.feed.stats.resyncs >= 2
    story(act, market)


def test_silence_is_named():
    async def act(s):
        s.venue.fault("mute", stream="btcusdt@depth*")
        await s.play(until=lambda: s.alarms("silence"))
        assert "btcusdt@depth@100ms" in s.alarms("silence")[0] and not s.feed.synced
        s.venue.clear("mute")
        await s.play(until=lambda: s.feed.synced)
        assert await s.agrees() and s.alarms("silence-over")
    story(act, policy=FeedPolicy(silence_s={"depth": 1.0}, backoff_s=(0.01, 0.05), snapshot_backoff_s=(0.01, 0.05), snapshot_limit=1000, overlap_s=0.3))


def test_a_wrong_route_is_silence_not_an_error():
    async def go():
        async with SimulatedVenue(market="usdm", seed=4, speed=1.0) as venue:
            hosts = Hosts.local(venue.url, market="usdm")
            wrong = type(hosts)(hosts.market, hosts.rest, hosts.stream, routes={**hosts.routes, "depth": "/market"})
            async with Feed(["BTCUSDT"], hosts=wrong, rng=np.random.default_rng(1), streams=("depth",), policy=FeedPolicy(silence_s={"depth": 0.4})) as feed:
                async for x in feed:
                    if x.kind == "alarm":
                        break
                assert x.data.word == "silence" and "btcusdt@depth@100ms" in x.data.text and "wrong route" in x.data.text and not feed.synced
    asyncio.run(asyncio.wait_for(go(), 30))


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_a_shutdown_is_announced_and_nothing_is_lost(market):
    async def act(s):
        since, before = len(s.items), s.feed.stats.connects
        s.venue.fault("shutdown", grace_s=30.0)
        await s.play(until=lambda: s.feed.stats.handovers >= 1)
        assert await s.agrees()
        st = s.feed.stats
        assert (st.gaps, st.resyncs, st.reconnects) == (0, 1, 0) and st.connects == before + 1 and not s.states(since)
    story(act, market, ("depth",))
