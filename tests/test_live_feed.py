"The feed against a server that says what the test tells it to say: rows 1 to 9, 27 and 29 of the fault matrix, on the feed's side."
import asyncio
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from makerlab.core import DataError, ParameterError
from makerlab.live import feed as module
from makerlab.live.feed import Alarm, Backoff, Feed, FeedPolicy, FeedStats, Market, Outbox, StateChange, take, urgent
from makerlab.live.protocol import Grid
from tiny_venue import TinyVenue

GRID = Grid("0.01", "0.00001")
QUICK = FeedPolicy(silence_s={}, ping_s=5.0, backoff_s=(0.01, 0.05), snapshot_backoff_s=(0.01, 0.05), snapshot_limit=1000, overlap_s=1.0)


def run(coroutine): return asyncio.run(asyncio.wait_for(coroutine, 20))


def feed_of(venue, policy=QUICK, streams=("depth", "trade"), **kw):
    return Feed({venue.symbol: GRID}, hosts=venue.hosts, rng=np.random.default_rng(1), streams=streams, policy=policy, **kw)


class Reader:
    "Collects what a feed says, and waits for something in it."

    def __init__(self, feed):
        self.feed, self.items, self.new = feed, [], asyncio.Condition()

    async def __aenter__(self):
        await self.feed.start()
        self.task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        await self.feed.close()
        await self.task

    async def _read(self):
        async for item in self.feed:
            async with self.new:
                self.items.append(item)
                self.new.notify_all()

    async def until(self, wanted, since=0):
        "The first item from `since` on for which wanted(item)."
        async with self.new:
            await asyncio.wait_for(self.new.wait_for(lambda: any(map(wanted, self.items[since:]))), 8)
            return next(x for x in self.items[since:] if wanted(x))

    def alarms(self, word): return [x.data.text for x in self.items if x.kind == "alarm" and x.data.word == word]
    def states(self): return [(x.data.new, x.data.reason) for x in self.items if x.kind == "state"]


async def synced(venue, reader):
    "Wait for connection, first change, snapshot."
    await venue.wait_sockets(len({venue.hosts.socket(k) for k in reader.feed.streams}))
    await venue.diff([(9_999, 7)])
    await reader.until(lambda x: x.kind == "state" and x.data.new == "SYNCED")


async def caught_up(venue, reader):
    "Wait until the feed has heard the last change."
    book = reader.feed.books[venue.symbol]
    while book.final != venue.id:
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_the_book_is_the_venues(market):
    async def go():
        async with TinyVenue(market) as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            for i in range(30):
                await venue.diff([(9_990 + i % 7, i % 4)], [(10_003 + i % 5, (i + 1) % 3)])
                await venue.trade()
            await caught_up(venue, r)
            assert r.feed.books["BTCUSDT"].digest() == venue.digest()
            await r.until(lambda x: x.kind == "trade" and x.data.id == venue.trade_id)
            st = r.feed.stats
            assert (st.gaps, st.resyncs, st.missed_trades, sum(st.refused.values())) == (0, 1, 0, 0) and st.messages == st.decoded == 61
            assert [x.data.id for x in r.items if x.kind == "trade"] == list(range(51, 81))
            books = [x for x in r.items if x.kind == "book"]
            assert books[-1].data.synced and books[-1].data.bid_ticks == max(venue.bids) and len(books) + st.conflated == 31
    run(go())


def pulled(reader, since):
    "Since then the loop was told that the book cannot be believed, and told of no believable book before the next SYNCED."
    told = [x for x in reader.items[since:] if x.kind in ("state", "book")]
    first = next(i for i, x in enumerate(told) if x.kind == "state" and x.data.new != "SYNCED")
    after = told[first + 1:]
    again = next((i for i, x in enumerate(after) if x.kind == "state" and x.data.new == "SYNCED"), len(after))
    assert any(x.kind == "book" and not x.data.synced for x in after[:again]) and not any(x.kind == "book" and x.data.synced for x in after[:again])
    return told[first].data.reason


async def broken_and_back(venue, r, since, changes=True):
    "The book is lost after `since`, and is the venue's again after some more changes; returns why it was lost."
    lost = await r.until(lambda x: x.kind == "state" and x.data.new != "SYNCED", since)
    at = r.items.index(lost)
    while not any(x.kind == "state" and x.data.new == "SYNCED" for x in r.items[at:]):
        if changes and venue.sockets:
            await venue.diff([(9_998, 3 + venue.id % 5)])
        await asyncio.sleep(0.01)
    await venue.diff([(9_997, 9)])
    await caught_up(venue, r)
    assert r.feed.books["BTCUSDT"].digest() == venue.digest()
    return pulled(r, since)


@pytest.mark.parametrize("market", ["spot", "usdm"])
@pytest.mark.parametrize("mid_message", [False, True])
def test_row_1_a_dropped_connection_takes_the_book_away_at_once_and_comes_back(market, mid_message):
    async def go():
        async with TinyVenue(market) as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            since = len(r.items)
            venue.cut(mid_message)
            assert await broken_and_back(venue, r, since) == "disconnected"
            assert r.feed.stats.reconnects >= 1 and r.feed.stats.resyncs == 2 and r.alarms("disconnected")
    run(go())


def test_row_2_a_black_hole_is_found_by_pings():
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue, replace(QUICK, ping_s=1.0))) as r:
            await synced(venue, r)
            since, venue.blackhole, start = len(r.items), True, asyncio.get_running_loop().time()
            await r.until(lambda x: x.kind == "state" and x.data.new != "SYNCED", since)
            assert asyncio.get_running_loop().time() - start < 5.0 and venue.pings >= 1
            venue.blackhole = False
            assert await broken_and_back(venue, r, since) == "disconnected"
    run(go())


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_row_3_a_gap_discards_the_book(market):
    async def go():
        async with TinyVenue(market) as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            since = len(r.items)
            venue.change([(9_995, 40)])  # nobody hears of it
            await venue.diff([(9_994, 41)])
            assert await broken_and_back(venue, r, since) == "gap"
            assert (r.feed.stats.gaps, r.feed.stats.resyncs, r.feed.stats.reconnects) == (1, 2, 0)
    run(go())


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_row_4_what_is_told_twice_changes_nothing(market):
    async def go():
        async with TinyVenue(market) as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            for _ in range(5):
                m = venue.change([(9_996, venue.id % 7 + 1)], [(10_004, 0)])
                await venue.send("btcusdt@depth@100ms", m)
                await venue.send("btcusdt@depth@100ms", m)
                await venue.trade()
                venue.trade_id -= 1
                await venue.trade()
            await r.until(lambda x: x.kind == "trade" and x.data.id == 55)
            await caught_up(venue, r)
            assert r.feed.books["BTCUSDT"].digest() == venue.digest() and r.feed.stats.gaps == 0
            assert [x.data.id for x in r.items if x.kind == "trade"] == [51, 52, 53, 54, 55] and r.feed.stats.duplicates == 10
    run(go())


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_row_5_swapped_changes_are_a_gap_and_end_right(market):
    async def go():
        async with TinyVenue(market) as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            since = len(r.items)
            one, two = venue.change([(9_995, 40)]), venue.change([(9_995, 0)])
            for m in (two, one):
                await venue.send("btcusdt@depth@100ms", m)
            assert await broken_and_back(venue, r, since) == "gap"
    run(go())


def test_row_6_a_snapshot_that_is_too_old_is_fetched_again_and_paid_for():
    async def go():
        async with TinyVenue() as venue:
            venue.snapshot_answers = [venue.snapshot(), venue.snapshot()]
            venue.change([(9_993, 30)])  # before the stream begins
            async with Reader(feed_of(venue)) as r:
                await synced(venue, r)
                assert dict(r.feed.stats.snapshots) == {"too-old": 2, "used": 1} and r.feed.stats.snapshot_weight == 750
                assert r.feed.books["BTCUSDT"].digest() == venue.digest()
    run(go())


def test_row_6_snapshots_that_never_fit_raise_an_alarm():
    async def go():
        async with TinyVenue() as venue:
            venue.snapshot_answers = [venue.snapshot()] * 50
            venue.change([(9_993, 30)])
            async with Reader(feed_of(venue, replace(QUICK, snapshot_tries=4))) as r:
                await venue.wait_sockets(1)
                await venue.diff([(9_999, 7)])
                await r.until(lambda x: x.kind == "alarm" and x.data.word == "resync")
                assert not r.feed.synced and "4 snapshots" in r.alarms("resync")[0]
    run(go())


def test_row_7_a_snapshot_newer_than_all_that_waits():
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue)) as r:
            venue.depth_gate.clear()
            await venue.wait_sockets(1)
            await venue.diff([(9_999, 7)])
            await venue.diff([(9_999, 8)])
            while not venue.depth_requests:
                await asyncio.sleep(0.005)
            venue.change([(9_992, 77)])  # the snapshot knows it, the stream never says it
            venue.depth_gate.set()
            await r.until(lambda x: x.kind == "state" and x.data.new == "SYNCED")
            assert r.feed.books["BTCUSDT"].digest() == venue.digest()
            await venue.diff([(9_991, 5)])
            await caught_up(venue, r)
            assert r.feed.books["BTCUSDT"].digest() == venue.digest() and r.feed.stats.gaps == 0
    run(go())


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_row_8_a_silent_stream_is_named_and_its_book_taken_away(market):
    async def go():
        policy = replace(QUICK, silence_s={"depth": 1.0, "trade": 1.5})
        async with TinyVenue(market) as venue, Reader(feed_of(venue, policy)) as r:
            await synced(venue, r)
            since, venue.mute = len(r.items), {"btcusdt@depth@100ms"}
            await venue.trade()
            await r.until(lambda x: x.kind == "alarm" and x.data.word == "silence", since)
            assert any(t.startswith("btcusdt@depth@100ms: no message for") for t in r.alarms("silence"))
            venue.mute = set()
            assert await broken_and_back(venue, r, since) == "silent"
            await r.until(lambda x: x.kind == "alarm" and x.data.word == "silence-over", since)
            while not any(x.kind == "alarm" and x.data.text.startswith("btcusdt@trade") for x in r.items[since:]):
                await venue.diff([(9_997, 3 + venue.id % 5)])
                await asyncio.sleep(0.01)
            assert r.feed.books["BTCUSDT"].synced  # silent trades raise the alarm and leave the book
    run(go())


def test_row_8_after_a_long_silence_another_connection_is_tried():
    async def go():
        policy = replace(QUICK, silence_s={"depth": 0.1}, overlap_s=0.1)
        async with TinyVenue() as venue, Reader(feed_of(venue, policy)) as r:
            venue.mute = {"btcusdt@depth@100ms"}
            await venue.wait_sockets(1)
            while len(venue.connects) < 2:
                await asyncio.sleep(0.01)
            await r.until(lambda x: x.kind == "alarm" and x.data.word == "connected")
            assert r.feed.stats.handovers >= 1 and r.feed.stats.reconnects == 0
    run(go())


@pytest.mark.parametrize("market", ["spot", "usdm"])
@pytest.mark.parametrize("why", ["serverShutdown", "age"])
def test_row_9_make_before_break(market, why):
    async def go():
        policy = replace(QUICK, max_age_s=0.5) if why == "age" else QUICK
        async with TinyVenue(market) as venue, Reader(feed_of(venue, policy, streams=("depth",))) as r:
            await synced(venue, r)
            since = len(r.items)
            if why == "serverShutdown":
                await venue.send("btcusdt@depth@100ms", '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1700000000000}}')
            while r.feed.stats.handovers == 0:
                await venue.diff([(9_996, venue.id % 7 + 1)], [(10_004, venue.id % 3)])
                await asyncio.sleep(0.005)
            for _ in range(10):
                await venue.diff([(9_996, venue.id % 7 + 1)])
            await caught_up(venue, r)
            st = r.feed.stats
            assert r.feed.books["BTCUSDT"].digest() == venue.digest()
            assert not [x for x in r.items[since:] if x.kind == "state"], "the book was believable all the time"
            assert (st.gaps, st.reconnects, st.resyncs) == (0, 0, 1) and st.handovers >= 1
            ids = [x.time_ns for x in r.items[since:] if x.kind == "book"]
            assert ids and all(x.data.synced for x in r.items[since:] if x.kind == "book")
    run(go())


NAN = {"stream": "btcusdt@depth@100ms", "data": {"e": "depthUpdate", "E": 1, "s": "BTCUSDT", "U": 1, "u": 2, "b": [], "a": []}}
BAD = {
    "nan": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[["NaN","1"]],"a":[]}}',
    "negative": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[["-1","1"]],"a":[]}}',
    "number": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[["1e400","1"]],"a":[]}}',
    "zero": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[["0","1"]],"a":[]}}',
    "range": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[["99999999999999999999","1"]],"a":[]}}',
    "shape": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"b":[],"a":[]}}',
    "json": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTC',
    "order": '{"stream":"btcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":5,"u":2,"b":[],"a":[]}}',
}


@pytest.mark.parametrize("reason", BAD)
def test_row_27_what_cannot_be_believed_is_counted_and_takes_the_book_away(reason):
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            since = len(r.items)
            await venue.send("btcusdt@depth@100ms", BAD[reason])
            assert await broken_and_back(venue, r, since) == reason
            assert r.feed.stats.refused[reason] == 1 and r.alarms("refused")
    run(go())


@pytest.mark.parametrize("levels, reason", [({"bids": [(10_050, 5)]}, "crossed"), ({"bids": [(10_002, 5)]}, "crossed"), ({"raw": "100.005"}, "off-grid")])
def test_row_27_crossed_locked_and_off_grid_changes(levels, reason):
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            since = len(r.items)
            m = venue.change()
            m["b"] = [[levels["raw"], "1"]] if "raw" in levels else venue.rows(dict(levels["bids"]))
            await venue.send("btcusdt@depth@100ms", m)
            assert await broken_and_back(venue, r, since) == reason and r.feed.stats.refused[reason] == 1
    run(go())


def test_row_27_bad_trades_and_strange_frames_leave_the_book_alone():
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue)) as r:
            await synced(venue, r)
            for text in ('{"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":1,"p":"NaN","q":"1","T":1,"m":true}}',
                         '{"stream":"btcusdt@trade","data":{"e":"trade","E":1,"s":"BTCUSDT","t":1,"p":"0","q":"0","T":1,"m":true}}',
                         '{"e":"somethingNew","E":1}', '{"e":"trade","E":1,"s":"ETHUSDT","t":1,"p":"1","q":"1","T":1,"m":true}'):
                await venue.send("btcusdt@depth@100ms", text)
            await venue.diff([(9_990, 3)])
            await caught_up(venue, r)
            assert dict(r.feed.stats.refused) == {"nan": 1, "zero": 1, "kind": 1, "symbol": 1} and r.states() == [("SYNCED", "")]
            assert not [x for x in r.items if x.kind == "trade"]
    run(go())


def test_row_29_a_slow_loop_gets_the_newest_book_and_a_bounded_number_of_trades():
    async def go():
        async with TinyVenue() as venue:
            feed = feed_of(venue, replace(QUICK, trades_bound=20))
            async with feed:
                await venue.wait_sockets(1)
                await venue.diff([(9_999, 7)])
                while not feed.synced:
                    await asyncio.sleep(0.005)
                for i in range(300):
                    await venue.diff([(9_990, 1 + i)])
                    await venue.trade()
                await caught_up(venue, type("R", (), {"feed": feed}))
                while feed.stats.decoded < 601:
                    await asyncio.sleep(0.005)
                items = feed.drain()
                books, trades = [x for x in items if x.kind == "book"], [x for x in items if x.kind == "trade"]
                assert len(books) == 1 and feed.books["BTCUSDT"].digest() == venue.digest() and books[0].data.bid_lots == feed.books["BTCUSDT"].top().bid_lots
                assert [x.data.id for x in trades] == list(range(331, 351)) and feed.stats.shed == 280 and feed.stats.conflated >= 299
    run(go())


def test_throttled_snapshots_wait_for_as_long_as_they_were_told():
    async def go():
        async with TinyVenue() as venue:
            venue.snapshot_answers = [web.json_response({"code": -1003, "msg": "Too much request weight used"}, status=429, headers={"Retry-After": "0.4"})]
            async with Reader(feed_of(venue)) as r:
                start = asyncio.get_running_loop().time()
                await synced(venue, r)
                assert asyncio.get_running_loop().time() - start >= 0.4 and venue.depth_requests == 2 and r.alarms("throttled")
    run(go())


@pytest.mark.parametrize("answer", ['{"lastUpdateId":1,"bids":[["NaN","1"]],"asks":[]}', "[]", "not json", '{"lastUpdateId":5,"bids":[["3","1"]],"asks":[["2","1"]]}'])
def test_a_snapshot_that_cannot_be_believed_is_fetched_again(answer):
    async def go():
        async with TinyVenue() as venue:
            venue.snapshot_answers = [web.Response(text=answer)]
            async with Reader(feed_of(venue)) as r:
                await synced(venue, r)
                assert r.feed.stats.snapshots["refused"] == 1 and sum(r.feed.stats.refused.values()) == 1 and r.feed.books["BTCUSDT"].digest() == venue.digest()
    run(go())


def test_connecting_is_tried_with_growing_waits_and_never_too_often():
    async def go():
        async with TinyVenue() as venue:
            venue.refuse_connects = 3
            async with Reader(feed_of(venue)) as r:
                await synced(venue, r)
                assert r.feed.stats.connects == 4 and len(r.alarms("disconnected")) == 3
        async with TinyVenue() as venue:
            venue.refuse_connects = 1000
            async with Reader(feed_of(venue, replace(QUICK, connect_limit=3))) as r:
                await r.until(lambda x: x.kind == "alarm" and x.data.word == "throttled")
                await asyncio.sleep(0.3)
                assert len(venue.connects) == 3
    run(go())


def test_backoff_doubles_up_to_its_cap_with_jitter():
    back = Backoff(base_s=1.0, cap_s=8.0, rng=np.random.default_rng(3))
    waits = [back.next_s() for _ in range(2000)]
    for w, full in zip(waits, [1, 2, 4] + [8] * 1997):
        assert full / 2 <= w <= full
    assert np.std(waits[3:]) > 1.0  # 8 * 0.5 / sqrt(12) = 1.15
    back.reset()
    assert back.next_s() <= 1.0


def test_every_frame_is_recorded_and_a_broken_recorder_does_not_stop_the_market():
    async def go():
        seen = []

        def record(stream, raw, exch, wall, mono):
            seen.append((stream, raw, exch))
            if len(seen) == 6:
                raise OSError(28, "No space left on device")
        async with TinyVenue() as venue, Reader(feed_of(venue, on_raw=record)) as r:
            await synced(venue, r)
            await venue.send("btcusdt@trade", BAD["nan"].replace("@depth@100ms", "@trade"))
            for _ in range(5):
                await venue.trade()
            await r.until(lambda x: x.kind == "trade" and x.data.id == 55)
            assert [s for s, *_ in seen] == ["btcusdt@depth@100ms", "btcusdt@snapshot", "btcusdt@trade", "btcusdt@trade", "btcusdt@trade", "btcusdt@trade"]
            assert b"NaN" in seen[2][1] and seen[2][2] == -1 and seen[0][2] == 1_700_000_000_000_000_000 and r.alarms("recorder")
    run(go())


def test_grids_are_learned_and_wrong_arguments_refused():
    async def go():
        async with TinyVenue() as venue:
            async with Reader(Feed(["btcusdt"], hosts=venue.hosts, rng=np.random.default_rng(1), streams=("depth",), policy=QUICK)) as r:
                await synced(venue, r)
                assert r.feed.books["BTCUSDT"].grid == GRID and r.feed.filters["BTCUSDT"].status == "TRADING"
            feed = Feed(["BTCUSD"], hosts=venue.hosts, rng=np.random.default_rng(1), policy=QUICK)
            with pytest.raises(ParameterError, match="there are BTCUSDT"):
                await feed.start()
            await feed.close()
            for kw in (dict(streams=("klines",)), dict(market="usdm"), dict(streams=())):
                with pytest.raises(ParameterError):
                    Feed(["BTCUSDT"], hosts=venue.hosts, rng=np.random.default_rng(1), **kw)
    run(go())
    for kw in (dict(ping_s=0), dict(silence_s={"depth": -1}), dict(silence_s={"x": 1}), dict(backoff_s=(2, 1))):
        with pytest.raises(ParameterError):
            FeedPolicy(**kw)


def test_many_streams_are_subscribed_in_chunks():
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue, replace(QUICK, chunk=1))) as r:
            await synced(venue, r)
            while venue.sockets[0][1] != {"btcusdt@depth@100ms", "btcusdt@trade"}:
                await asyncio.sleep(0.01)
            await venue.trade()
            await r.until(lambda x: x.kind == "trade")
    run(go())


def test_a_quiet_book_of_a_live_connection_is_confirmed_and_that_of_a_dead_one_is_not():
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue, replace(QUICK, confirm_s=0.1))) as r:
            await synced(venue, r)
            since = len(r.items)
            for _ in range(10):
                await venue.trade()
                await asyncio.sleep(0.04)
            again = [x for x in r.items[since:] if x.kind == "book"]
            assert again and all(x.data.synced and x.data.local_ns == x.local_ns for x in again)
            await asyncio.sleep(0.2)
            since = len(r.items)
            await asyncio.sleep(0.3)
            assert not r.items[since:]
    run(go())


def test_the_outbox_keeps_order_and_lets_bad_news_overtake():
    async def go():
        stats = FeedStats()
        box = Outbox(stats, bound=3, hurry=2)
        item = lambda kind, n: Market(kind, "S", n, n, n)
        for kind, n in (("trade", 1), ("book", 2), ("trade", 3), ("book", 4), ("alarm", 5), ("ticker", 6)):
            box.put(item(kind, n))
        out = [take(box).data for _ in range(5)]
        assert out == [5, 1, 4, 3, 6] and take(box) is None and stats.conflated == 1 and not box.ready.is_set()
        box.put(item("book", 1))
        urgent(box, item("book", 2))
        assert [take(box).data, take(box)] == [2, None]
        for n in range(5):
            box.put(item("trade", n))
        box.put(item("book", 9))
        assert len(box) == 4 and stats.shed == 2 and [take(box).data for _ in range(4)] == [9, 2, 3, 4]  # in a hurry the book goes first
    run(go())


def test_what_a_task_of_the_feed_dies_of_reaches_the_reader():
    async def go():
        async with TinyVenue() as venue:
            feed = feed_of(venue)
            await feed.start()
            feed.clock = lambda: 1 / 0
            await venue.wait_sockets(1)
            await venue.diff([(9_999, 7)])
            with pytest.raises(ZeroDivisionError):
                async for _ in feed:
                    pass
            await feed.close()
    run(go())


async def holds(so, why, seconds=4.0):
    "Wait until something is so; says what never was."
    end = asyncio.get_running_loop().time() + seconds
    while not so():
        assert asyncio.get_running_loop().time() < end, why
        await asyncio.sleep(0.01)


def test_new_connections_that_die_at_once_are_tried_after_waits_and_never_pile_up():
    async def go():
        policy = replace(QUICK, silence_s={"trade": 0.02}, backoff_s=(0.2, 0.2))
        async with TinyVenue() as venue:
            venue.keep = 1
            async with Reader(feed_of(venue, policy)) as r:
                await venue.wait_sockets(1)
                start = asyncio.get_running_loop().time()
                await holds(lambda: len(venue.connects) >= 7, "another connection is tried again and again", 15)
                assert asyncio.get_running_loop().time() - start > 5 * 0.1, "a wait of at least 0.1 s after each"
                frame, names = r.feed._tasks[0].get_coro(), []
                while hasattr(frame, "cr_await"):
                    names, frame = [*names, frame.__name__], frame.cr_await
                assert names.count("_watch_link") == 1, names
                assert r.feed._failure is None and r.feed.stats.handovers == 0 and len(venue.sockets) == 1
                venue.keep = 10**9
                await holds(lambda: r.feed.stats.handovers >= 1, "one that lives takes over")
    run(go())


IDS = [10, 11, 2**62, 12, 13, 13, 11, 14, 17]


@pytest.mark.parametrize("kind", ["trade", "aggTrade", "bookTicker"])
def test_one_absurd_id_or_a_venue_that_begins_anew_silences_nothing(kind):
    async def go():
        at = {"E": 1_700_000_000_000, "T": 1_700_000_000_000, "p": "100", "q": "1", "m": True}
        message = {"trade": lambda i: {"e": "trade", "s": "BTCUSDT", "t": i, **at}, "aggTrade": lambda i: {"e": "aggTrade", "s": "BTCUSDT", "a": i, "f": i, "l": i, **at},
                   "bookTicker": lambda i: {"u": i, "s": "BTCUSDT", "b": "99", "B": "1", "a": "101", "A": "1"}}[kind]
        id_of = lambda m: m.update if kind == "bookTicker" else m.id
        async with TinyVenue() as venue, Reader(feed_of(venue, streams=(kind,))) as r:
            told = lambda: [id_of(x.data) for x in r.items if x.kind in ("trade", "ticker")]
            async def say(i):
                n = r.feed.stats.messages
                await venue.send(f"btcusdt@{kind}", message(i))
                await holds(lambda: r.feed.stats.messages == n + 1 and not len(r.feed._box), "the message arrives")
            await venue.wait_sockets(1)
            for i in IDS:
                await say(i)
            assert told() == [10, 11, 2**62, 12, 13, 14, 17] and r.feed.stats.duplicates == 2, "a repeat and an id a little behind are refused as ever"
            assert r.feed.stats.missed_trades == (0 if kind == "bookTicker" else 2), "15 and 16"
            assert len(r.alarms("ids")) == (1 if kind == "bookTicker" else 2)
            venue.cut()
            await holds(lambda: r.feed.stats.reconnects == 1 and venue.sockets, "connected again")
            for i in (3, 3, 4):  # a venue that was set back, by less than a million
                await say(i)
            assert told()[7:] == [3, 4] and r.feed.stats.duplicates == 3 and r.feed.stats.missed_trades == (0 if kind == "bookTicker" else 2)
            venue.cut()
            await holds(lambda: r.feed.stats.reconnects == 2 and venue.sockets, "connected again")
            await say(8)
            assert told()[9:] == [8] and r.feed.stats.missed_trades == (0 if kind == "bookTicker" else 5), "what was missed while nobody listened still counts"
    run(go())


def test_alarms_and_states_that_nobody_takes_are_bounded():
    async def go():
        stats = FeedStats()
        box = Outbox(stats, bound=10)
        for n in range(20_000):
            box.put(Market("alarm", "", -1, n, Alarm("refused", str(n))))
        assert len(box) == 1000 and stats.shed == 19_000
        for n in range(2000):
            for symbol in "AB":
                box.put(Market("state", symbol, -1, n, StateChange("SYNCED", "INVALID", "gap")))
                urgent(box, Market("book", symbol, -1, n, n))
                box.put(Market("state", symbol, -1, n, StateChange("INVALID", "SYNCED", "")))
        assert len(box) <= 2000, "of each symbol the newest of each state and the newest empty book are kept, and the rest while there is room"
        items = [take(box) for _ in range(len(box))]
        assert [x.data.text for x in items[:1000]] == [str(n) for n in range(19_000, 20_000)] and take(box) is None
        assert [(x.kind, x.symbol, x.local_ns) for x in items[-6:]] == [(k, s, 1999) for s in "AB" for k in ("state", "book", "state")] and items[-1].data.new == "SYNCED"
        assert stats.conflated == 12_000 - len(items) + 1000 and [x.local_ns for x in items[1000:]] == sorted(x.local_ns for x in items[1000:])
        box.put(Market("state", "A", -1, 0, StateChange("SYNCED", "INVALID", "gap")))
        box.put(Market("alarm", "", -1, 1, Alarm("x", "")))
        assert [take(box).kind for _ in range(2)] == ["state", "alarm"] and take(box) is None and not len(box)
    run(go())


@pytest.mark.parametrize("body, status", [("<html>Bad Gateway</html>", 502), ("no json", 200), ("[]", 200), ("[" * 100_000, 200), ('{"code":-1003,"msg":"slow"}', 429)])
def test_an_exchange_info_that_cannot_be_had_is_a_data_error_and_leaves_no_session_open(body, status):
    async def go():
        async with TinyVenue() as venue:
            venue.info_answers.append(web.Response(text=body, status=status, content_type="text/html"))
            feed = Feed(["BTCUSDT"], hosts=venue.hosts, rng=np.random.default_rng(1), streams=("depth",), policy=QUICK)
            with pytest.raises(DataError, match="exchangeInfo"):
                await feed.start()
            assert feed._session is None and not feed._tasks
            async with Reader(feed) as r:  # another try works
                await synced(venue, r)
    run(go())


def test_an_error_in_fetching_a_snapshot_reaches_the_reader():
    async def go():
        async with TinyVenue() as venue:
            feed = feed_of(venue)
            await feed.start()
            feed._snapshots = None
            await venue.wait_sockets(1)
            await venue.diff([(9_999, 7)])
            async def read():
                async for _ in feed:
                    pass
            with pytest.raises(AttributeError):
                await asyncio.wait_for(read(), 3)
            await feed.close()
    run(go())


def test_a_connection_whose_subscription_fails_is_closed(monkeypatch):
    async def go():
        real, calls = module.subscribe, []
        def subscribe(*a):
            calls.append(a)
            if len(calls) <= 3:
                raise OSError("cut")
            return real(*a)
        monkeypatch.setattr(module, "subscribe", subscribe)
        async with TinyVenue() as venue, Reader(feed_of(venue, replace(QUICK, chunk=1))):
            await holds(lambda: len(venue.connects) == 4 and len(venue.sockets) == 1 and len(venue.sockets[0][1]) == 2, "one socket is open, the three others were closed")
    run(go())


def test_closing_in_the_middle_of_a_hand_over_leaves_no_socket_of_a_session_that_is_not_ours():
    async def go():
        async with TinyVenue() as venue, aiohttp.ClientSession() as session:
            async with Reader(feed_of(venue, replace(QUICK, max_age_s=0.1, overlap_s=30.0), session=session)):
                await venue.wait_sockets(2)
                await asyncio.sleep(0.05)  # both run: nothing was said on either
            await holds(lambda: not venue.sockets, "both sockets are closed")
    run(go())


def test_a_connection_that_dies_during_a_hand_over_was_lost_and_not_replaced_alive():
    async def go():
        async with TinyVenue() as venue, Reader(feed_of(venue, replace(QUICK, max_age_s=0.3, overlap_s=30.0))) as r:
            await venue.wait_sockets(2)
            venue.sockets[0][0]._req.transport.abort()
            await r.until(lambda x: x.kind == "alarm" and x.data.word == "connected")
            assert (r.feed.stats.handovers, r.feed.stats.reconnects) == (0, 1)
    run(go())


def test_alarms_are_typed():
    assert Alarm("silence", "x").word == "silence"
