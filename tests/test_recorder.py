"The recorder: what was acknowledged is there after any death, readers see whole things only, and a recording makes the same book again."
import asyncio
import gzip
import json
import os
import random
import shutil
import subprocess
import threading
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_kit import T0, XYZ, body, context, feed_one, file_limit, record_for_ever

from makerlab.core import DataError, ParameterError
from makerlab.data import recording as R
from makerlab.data.crypto import load_binance
from makerlab.data.recording import (RECORDING, encode_batch, inspect_recording, is_recording, load_recording, lock_recording, read_messages,
                                     read_recording, read_segment, recover, seal, segments)
from makerlab.data.source import detect, inspect_source, open_events, open_source
from makerlab.live.protocol import Grid, Hosts
from makerlab.live.recorder import TROUBLE, Recorder, RecorderError, RecorderOptions, generate_test_data, rebuild, record, replay_book
from makerlab.storage import StoreError, StoreLockedError, open_store

GRID = Grid(Decimal("0.01"), Decimal("0.00001"))
BY_HAND = RecorderOptions(batch_ms=0.0, sealer="none", min_free_mb=0.0)


def write(folder, n, *, first=1, batch=5, options=BY_HAND):
    "A recorder that was not closed, with n messages."
    r = Recorder(folder, options=options)
    for i in range(first, first + n):
        feed_one(r, i)
        if (i - first) % batch == batch - 1:
            r.flush()
    r.flush()
    return r


def drop(r):
    "What a kill leaves of a recorder: locks are gone, nothing else happens."
    os.close(r._segment._file) if r._segment else None
    r._held.close()


def check_messages(folder, least):
    "All messages are there, once, in order, with their bytes."
    rows = read_messages(folder)
    assert len(rows) >= least
    assert rows["sequence"].tolist() == list(range(1, len(rows) + 1))
    assert [x.encode("latin-1") for x in rows["message"]] == [body(n) for n in range(1, len(rows) + 1)]
    return len(rows)


def stored(folder):
    "What lies in the store's tables."
    with open_store(folder, mode="r", layout=RECORDING) as s:
        return {name: s.read(name) for name in ("raw", "book_levels", "trades")}


# ---------------------------------------------------------------- killed

@pytest.mark.parametrize("part", range(6))
def test_kill_9_at_random_points_loses_nothing_that_was_acknowledged(tmp_path, part):
    "Ten deaths a part, sixty in all. Each run continues the folder of the last dead one; in every third a reader looks while it writes."
    folder, rng, ctx, safe, seen = tmp_path / "r", random.Random(part), context(), 0, 0
    for run in range(10):
        mine, theirs = ctx.Pipe(duplex=False)
        p = ctx.Process(target=record_for_ever, args=(str(folder), theirs, 100 * part + run), daemon=True)
        p.start()
        theirs.close()
        for _ in range(rng.randint(1, 20)):
            safe = max(safe, mine.recv())
        if run % 3 == 0:
            check_messages(folder, safe)
        time.sleep(rng.random() * 0.004)
        p.kill()
        p.join()
        try:
            while mine.poll():
                safe = max(safe, mine.recv())
        except (EOFError, OSError):
            pass
        seen = check_messages(folder, max(safe, seen))  # before anybody put anything in order
        if run == 4:
            assert recover(folder) == seen and not segments(folder)
    recover(folder)
    tables = stored(folder)
    assert check_messages(folder, safe) == len(tables["raw"]) == seen > 50
    assert sorted(tables["book_levels"]["message"]) == sorted(2 * list(range(1, seen + 1)))


# ---------------------------------------------------------------- what a venue should not send

DIFF = b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":%b,"b":[["1.0","1"]],"a":[]}'
TRADE = b'{"e":"trade","E":1,"s":"BTCUSDT","t":%b,"p":"1","q":"1","T":1,"m":true}'
DAMAGED = {"u null": DIFF % b"null", "u 2**70": DIFF % b"1180591620717411303424", "u negative": DIFF % b"-1", "u true": DIFF % b"true",
           "t 2**70": TRADE % b"1180591620717411303424", "t 1e400": TRADE % b"1e400", "t NaN": TRADE % b"NaN", "deep": b'{"a":' + b"[" * 200_000,
           "lastUpdateId text": b'{"lastUpdateId":"abc","bids":[["1.0","1"]],"asks":[]}'}


def between_two_good_ones(folder, message, **other):
    "A closed recording of three messages; the normalised rows by message."
    r = Recorder(folder, options=BY_HAND)
    feed_one(r, 1)
    r.raw("btcusdt@trade", message, other.get("exch_ns", -1), T0 + 5, 5)
    feed_one(r, 3)
    assert r.flush() == 3 and r.close().acknowledged == 3 and not r.alarms and not segments(folder)
    return r, sorted(stored(folder)["book_levels"]["message"])


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_message_is_kept_counted_and_stops_nobody(tmp_path, name):
    _, levels = between_two_good_ones(tmp_path / "r", DAMAGED[name])
    assert levels == [1, 1, 3, 3] and not len(stored(tmp_path / "r")["trades"])
    assert inspect_recording(tmp_path / "r")["no_good"] == 1 and len(read_recording(tmp_path / "r").diffs) == 2
    assert read_messages(tmp_path / "r")["message"][1].encode("latin-1") == DAMAGED[name]
    with Recorder(tmp_path / "r", options=BY_HAND) as again:
        assert again.stats.acknowledged == 3 == recover_later(again)


def recover_later(r):
    "What a recorder counts after one more that is good."
    feed_one(r, 4)
    return r.flush() - 1


NONSENSE = st.one_of(st.none(), st.booleans(), st.integers(-2**80, 2**80), st.floats(), st.text(max_size=5), st.lists(st.none(), max_size=2),
                     st.sampled_from(["1e400", "nan", "1", "-1", "1e-400", [["1", "1"]], [[1, 2**70]], [["1"]], {}]))


@given(st.lists(st.tuples(st.integers(0, 3), st.text("eEsUubatpqTmx", max_size=1), NONSENSE), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_whatever_a_message_holds_it_can_be_sealed(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("f") / "r"
    r = Recorder(folder, options=BY_HAND)
    for kind, name, value in damage:
        m = json.loads([DIFF % b"1", TRADE % b"1", b'{"lastUpdateId":1,"bids":[["1.0","1"]],"asks":[]}', TRADE % b"1"][kind])
        m[{"u": "lastUpdateId", "b": "bids", "a": "asks"}.get(name, name) if kind == 2 else name] = value
        r.raw("btcusdt@x", json.dumps(m), -1, T0, 1)
    assert r.close().acknowledged == len(damage) and not r.alarms and not segments(folder)
    load = inspect_recording(folder)
    assert load["messages"] == len(damage)


@pytest.mark.parametrize("exch_ns", [2**70, 2**63 - 1, -2**70])
def test_a_time_of_the_exchange_that_is_none_is_told_as_none(tmp_path, exch_ns):
    _, levels = between_two_good_ones(tmp_path / "r", body(2), exch_ns=exch_ns)
    assert levels == [1, 1, 2, 2, 3, 3] and read_messages(tmp_path / "r")["exch_time"].isna().tolist() == [False, True, False]


def test_a_sealer_that_fails_in_an_unforeseen_way_is_an_alarm_and_the_folder_is_let_go(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("unforeseen")

    r = write(tmp_path / "r", 10)
    with monkeypatch.context() as patch:
        patch.setattr("makerlab.live.recorder.seal", broken)
        assert r.close().acknowledged == 10
    assert len(r.alarms) == 1 and "unforeseen" in r.alarms[0]
    with Recorder(tmp_path / "r", options=BY_HAND) as again:
        assert again.stats.acknowledged == 10


def test_a_sealer_in_another_process_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("makerlab.live.recorder._SEAL", "import sys; sys.exit('DataError: it cannot be')")
    told = []
    r = Recorder(tmp_path / "r", options=RecorderOptions(batch_ms=0.0, segment_rows=2, sealer="process", min_free_mb=0.0), on_alarm=told.append)
    for n in range(1, 7):
        feed_one(r, n)
        if n % 2 == 0:
            r.flush()
            r._sealer.wait()
    assert len(told) == 1 and "ended with 1: DataError: it cannot be" in told[0] and "stay as they are" in told[0] and not r.stopped
    assert r.close().acknowledged == 6 == check_messages(tmp_path / "r", 6) and not segments(tmp_path / "r")  # closing files them itself


def test_a_sealer_that_cannot_be_started_is_an_alarm_and_recording_goes_on(tmp_path, monkeypatch):
    def no_more(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess.Popen, "__init__", no_more)
    r = write(tmp_path / "r", 10, options=RecorderOptions(batch_ms=0.0, segment_rows=5, sealer="process", min_free_mb=0.0))
    assert not r.stopped and len(r.alarms) == 1 and "no more processes" in r.alarms[0]
    assert r.close().acknowledged == 10 == check_messages(tmp_path / "r", 10)


def test_a_segment_renamed_between_listing_and_reading_is_looked_for_again(tmp_path, monkeypatch):
    r, listing = write(tmp_path / "r", 10), R.segments

    def then_renamed(folder):
        found = listing(folder)
        for path in found:
            if path.suffix == ".open":
                os.replace(path, path.with_suffix(""))
        return found

    monkeypatch.setattr(R, "segments", then_renamed)
    assert check_messages(tmp_path / "r", 10) == 10
    drop(r)


def test_what_cannot_be_opened_is_no_segment_that_went(tmp_path):
    (tmp_path / "x.arrows").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_segment(tmp_path / "x.arrows")
    with pytest.raises(FileNotFoundError):
        read_segment(tmp_path / "y.arrows")


class Death(BaseException):
    "The process ends here."


def kill_at(monkeypatch, n):
    "The n-th change of a name in the file system does not happen any more."
    count = iter(range(1, 10_000))
    for owner, name in ((os, "replace"), (Path, "unlink")):
        old = getattr(owner, name)

        def dying(*args, _old=old, **kw):
            if next(count) >= n:
                raise Death
            return _old(*args, **kw)

        monkeypatch.setattr(owner, name, dying)


def broken_folder(tmp_path, trouble=()):
    folder = tmp_path / "whole"
    generate_test_data(folder, rng=np.random.default_rng(3), seconds=5, trouble=trouble)
    rows = read_messages(folder)
    other = tmp_path / "left"
    r = Recorder(other, options=BY_HAND)
    for s, m, w, mono in zip(rows["stream"], rows["message"], R.to_ns(rows["time"]), rows["mono_ns"], strict=True):
        r.raw(s, m.encode("latin-1"), -1, int(w), int(mono))
    r.flush()
    r._finish()
    drop(r)
    return other


def die_while_sealing(tmp_path, monkeypatch):
    "Seal with a death at each step in turn, then again; the tables of each."
    start, out = broken_folder(tmp_path), []
    for n in range(1, 5):  # three files that get their names, one segment that goes
        folder = tmp_path / f"n{n}"
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch, pytest.raises(Death):
            kill_at(patch, n)
            seal(folder)
        assert len(read_messages(folder)) == len(read_messages(start))
        seal(folder)
        assert not segments(folder)
        out.append(stored(folder))
    seal(start)
    return stored(start), out


def test_a_death_at_every_step_of_sealing_leaves_each_row_once(tmp_path, monkeypatch):
    truth, others = die_while_sealing(tmp_path, monkeypatch)
    assert len(truth["book_levels"]) > 100 and len(truth["trades"]) > 5
    for tables in others:
        for name, rows in tables.items():
            pd.testing.assert_frame_equal(rows, truth[name])


def test_without_the_guard_a_death_doubles_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(R, "_is_there", lambda *_: False)
    truth, others = die_while_sealing(tmp_path, monkeypatch)
    assert any(len(t["book_levels"]) > len(truth["book_levels"]) for t in others)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_a_torn_segment_gives_its_whole_batches(tmp_path_factory, sizes, data):
    path, n, blocks = tmp_path_factory.mktemp("t") / "x.arrows", 0, [R.SEGMENT.serialize().to_pybytes()]
    for size in sizes:
        blocks.append(encode_batch([(n + i, 1, 2, -1, "A", "v", "a@trade", bytes([i])) for i in range(size)]))
        n += size
    cut = data.draw(st.integers(0, sum(map(len, blocks))))
    path.write_bytes(b"".join(blocks)[:cut])
    ends = np.cumsum([len(b) for b in blocks])
    assert read_segment(path).num_rows == sum(s for s, end in zip(sizes, ends[1:], strict=True) if end <= cut)


# ---------------------------------------------------------------- full

@pytest.fixture(params=["limit", "tmpfs"])
def small_disk(request, tmp_path):
    "A place that is full after a few hundred kB, and a way to make room."
    if request.param == "limit":
        with file_limit(150_000):
            yield tmp_path
        return
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here (not root): RLIMIT_FSIZE did the same")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_recording_cleanly_and_says_so(small_disk):
    told = []
    r = Recorder(small_disk / "r", options=BY_HAND, on_alarm=told.append)
    for n in range(1, 4001):
        feed_one(r, n)
        if n % 20 == 0:
            r.flush()
    assert "recording stopped" in r.stopped and "refused" in r.stopped and told == [r.stopped] == r.alarms
    safe = r.stats.acknowledged
    assert 100 < safe < 3000 and r.stats.lost == 4000 - safe
    assert check_messages(small_disk / "r", safe) == safe
    assert r.flush() == safe
    stats = r.close()
    assert stats.acknowledged == safe == check_messages(small_disk / "r", safe)
    assert all("free space" in text or "stay as they are" in text for text in told)


def test_room_made_the_next_recorder_goes_on(tmp_path):
    with file_limit(40_000):
        r = write(tmp_path / "r", 1000, batch=10)
        safe = r.stats.acknowledged
        r.close()
    assert r.stopped and 0 < safe < 1000
    r = write(tmp_path / "r", 100, first=safe + 1)
    assert r.close().acknowledged == safe + 100 == check_messages(tmp_path / "r", safe + 100)


def test_it_stops_before_the_disk_is_full(tmp_path):
    r = Recorder(tmp_path / "r", options=RecorderOptions(batch_ms=0.0, min_free_mb=1e12))
    feed_one(r, 1)
    assert r.flush() == 0 and "MB are left" in r.stopped and r.stats.lost == 1
    r.close()


def test_a_listener_that_fails_and_a_message_that_is_none_stop_nothing_else(tmp_path):
    def listener(text):
        raise RuntimeError("deaf")

    r = Recorder(tmp_path / "r", options=BY_HAND, on_alarm=listener)
    feed_one(r, 1)
    r.flush()
    r.raw("btcusdt@trade", 3.5, -1, T0, 1)  # not bytes
    r.raw("btcusdt@trade", b"{}", -1, T0, 1)
    assert r.flush() == 1 and "message is none" in r.stopped
    assert r.close().acknowledged == 1 == check_messages(tmp_path / "r", 1)


def test_a_disk_that_is_too_slow_costs_messages_not_memory(tmp_path):
    r = Recorder(tmp_path / "r", options=RecorderOptions(batch_ms=0.0, max_waiting=10, min_free_mb=0.0))
    for n in range(1, 26):
        feed_one(r, n)
    assert len(r._rows) == 10 and r.stats.lost == 15
    r.flush()
    assert "too slow" in r.stopped
    r.close()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises((RecorderError, ParameterError, StoreError)):
        Recorder(tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match=r"thesis\.txt"):
        Recorder(tmp_path / "foreign")
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["thesis.txt"]


# ---------------------------------------------------------------- many hands

def test_one_recorder_a_folder(tmp_path):
    r = write(tmp_path / "r", 10)
    with pytest.raises(StoreLockedError, match="stop it first"):
        Recorder(tmp_path / "r")
    with pytest.raises(StoreLockedError):
        recover(tmp_path / "r")
    drop(r)
    with lock_recording(tmp_path / "r"):
        pass
    assert recover(tmp_path / "r") == 10


def test_sealed_by_a_thread_while_it_writes_and_by_another_process(tmp_path):
    for how in ("thread", "process"):
        r = write(tmp_path / how, 500, batch=10, options=RecorderOptions(batch_ms=0.0, segment_rows=100, sealer=how, min_free_mb=0.0))
        assert r.stats.finished == 5
        r._sealer.wait()
        with open_store(tmp_path / how, mode="r", layout=RECORDING) as s:
            assert s.count("raw") >= 100
        assert check_messages(tmp_path / how, 500) == 500
        r.close()
        assert not segments(tmp_path / how) and len(stored(tmp_path / how)["raw"]) == 500 and not r.alarms


def test_the_thread_acknowledges_by_itself(tmp_path):
    with Recorder(tmp_path / "r", options=RecorderOptions(batch_ms=5.0, min_free_mb=0.0)) as r:
        for n in range(1, 101):
            feed_one(r, n)
        end = time.monotonic() + 10
        while r.stats.acknowledged < 100 and time.monotonic() < end:
            time.sleep(0.002)
        assert r.stats.acknowledged == 100 == check_messages(tmp_path / "r", 100)


def test_many_small_segments_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(R, "PARTS", 4)
    r = write(tmp_path / "r", 60, options=RecorderOptions(batch_ms=0.0, segment_rows=10, sealer="none", min_free_mb=0.0))
    r.close()
    assert len(list((tmp_path / "r" / "v2" / "raw").glob("*.parquet"))) == 1 and check_messages(tmp_path / "r", 60) == 60


def test_what_was_removed_by_hand_is_named(tmp_path):
    r = write(tmp_path / "r", 30, options=RecorderOptions(batch_ms=0.0, segment_rows=10, sealer="none", min_free_mb=0.0))
    drop(r)
    segments(tmp_path / "r")[0].unlink()
    with pytest.raises(DataError, match="message 1 is missing"):
        read_messages(tmp_path / "r")
    with pytest.raises(DataError, match="messages 1 to 10 are missing"):
        recover(tmp_path / "r")


# ---------------------------------------------------------------- the same book

@pytest.mark.parametrize("market", ["spot", "usdm"])
@pytest.mark.parametrize("trouble", [(), TROUBLE, *((t,) for t in TROUBLE)], ids=lambda t: "+".join(t) or "none")
def test_test_data_makes_the_book_that_it_says(tmp_path, market, trouble):
    truth = generate_test_data(tmp_path / "r", rng=np.random.default_rng(5), seconds=20, market=market, trouble=trouble)
    assert truth == rebuild(tmp_path / "r") == replay_book(tmp_path / "r", grid=GRID).digest()
    found = inspect_recording(tmp_path / "r")
    assert found["no_good"] == (4 if "garbage" in trouble else 0) and found["venues"] == [f"binance-{market}"] and not found["clock_steps"]


def test_one_other_quantity_is_another_book(tmp_path):
    generate_test_data(tmp_path / "r", rng=np.random.default_rng(5), seconds=3)
    final, bids, asks = R.final_book(read_recording(tmp_path / "r"))
    price = next(iter(bids))
    assert R.digest_book(final, bids, asks) != R.digest_book(final, {**bids, price: bids[price] + 1}, asks) != R.digest_book(final + 1, bids, asks)
    assert R.digest_book(final, {**bids, 7: 0}, asks) == R.digest_book(final, bids, asks)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["spot", "usdm"])
def test_a_real_capture_recorded_is_the_capture(tmp_path, name):
    lines = gzip.decompress(real(f"hftbacktest_binance/{name}_btcusdt_20240808.gz").read_bytes()).split(b"\n")[:20_000]
    r = Recorder(tmp_path / "r", options=BY_HAND)
    for i, line in enumerate(lines):
        stamp, _, message = line.partition(b" ")
        r.raw("btcusdt@any", message, -1, int(stamp), i)
        if i % 500 == 499:
            r.flush()
    r.close()
    part = tmp_path / "part.txt"
    part.write_bytes(b"\n".join(lines) + b"\n")
    scratch = name == "spot"  # it has no snapshot
    assert load_recording(tmp_path / "r", from_scratch=scratch).digest() == load_binance(part, from_scratch=scratch).digest()


def test_normalised_rows_are_the_messages(tmp_path):
    generate_test_data(tmp_path / "r", rng=np.random.default_rng(5), seconds=5)
    tables, capture = stored(tmp_path / "r"), read_recording(tmp_path / "r")
    assert len(tables["book_levels"]) == len(capture.prices) and len(tables["trades"]) == len(capture.trades)
    assert np.array_equal(np.rint(tables["trades"]["price"] * 1e8).astype(np.int64), capture.trades["price"])
    one = tables["raw"].set_index("sequence").loc[tables["trades"]["message"].iloc[0]]
    assert json.loads(one["message"])["t"] == tables["trades"]["sequence"].iloc[0] and one["mono_ns"] == tables["trades"]["mono_ns"].iloc[0]
    with open_store(tmp_path / "r", mode="r") as plain:  # anybody who knows the store's five tables
        assert plain.count("trades") == len(tables["trades"]) and "message" not in plain.read("trades")


def test_sources_read_a_recording(tmp_path):
    generate_test_data(tmp_path / "r", rng=np.random.default_rng(5), seconds=10)
    assert detect(tmp_path / "r") == "binance" and is_recording(tmp_path / "r") and not is_recording(tmp_path)
    assert open_events(tmp_path / "r").digest() == load_recording(tmp_path / "r").digest()
    market, about = open_source(tmp_path / "r"), inspect_source(tmp_path / "r")
    assert market.symbol == "BTCUSDT" and about["rows"]["quotes"] == len(market.quotes) > 50 and about["crossed"] == 0


def test_two_symbols_in_one_recording(tmp_path):
    for i, symbol in enumerate(("AAAUSDT", "BBBUSDT")):
        generate_test_data(tmp_path / symbol, rng=np.random.default_rng(i), seconds=4, symbol=symbol)
    rows = pd.concat([read_messages(tmp_path / s) for s in ("AAAUSDT", "BBBUSDT")]).sort_values("time", kind="stable")
    with Recorder(tmp_path / "both", options=BY_HAND) as r:
        for s, m, w, mono in zip(rows["stream"], rows["message"], R.to_ns(rows["time"]), rows["mono_ns"], strict=True):
            r.raw(s, m, -1, int(w), int(mono))
        r.raw("!serverShutdown", b'{"e":"serverShutdown","E":1}', -1, T0 + 10**12, 10**12)
    with pytest.raises(ParameterError, match=r"symbol = None.*AAAUSDT.*BBBUSDT"):
        rebuild(tmp_path / "both")
    with pytest.raises(ParameterError, match="CCCUSDT"):
        rebuild(tmp_path / "both", symbol="CCCUSDT")
    for s in ("AAAUSDT", "BBBUSDT"):
        assert rebuild(tmp_path / "both", symbol=s.lower()) == rebuild(tmp_path / s)


def test_clock_steps_are_seen(tmp_path):
    with Recorder(tmp_path / "r", options=BY_HAND) as r:
        for n, (wall, mono) in enumerate([(0, 0), (10, 10), (2020, 20), (2030, 30), (1030, 40)]):
            r.raw("btcusdt@trade", body(n), -1, T0 + wall * 10**6, mono * 10**6)
    assert inspect_recording(tmp_path / "r")["clock_steps"] == [{"message": 3, "ms": 2000.0}, {"message": 5, "ms": -1010.0}]


@pytest.mark.parametrize("wrong", [dict(batch_ms=-1.0), dict(segment_s=0.0), dict(durability="hope"), dict(sealer="nobody"), dict(max_waiting=0), dict(min_free_mb=float("nan"))])
def test_options_that_mean_nothing(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        RecorderOptions(**wrong)


@pytest.mark.parametrize("wrong", [dict(trouble=("gremlins",)), dict(market="moon"), dict(mid=0.5), dict(tick=1e-12), dict(seconds=-1.0)])
def test_test_data_that_means_nothing(tmp_path, wrong):
    with pytest.raises(ParameterError):
        generate_test_data(tmp_path / "r", rng=np.random.default_rng(0), **wrong)


def test_durability_power_writes_the_same(tmp_path):
    r = write(tmp_path / "r", 30, options=RecorderOptions(batch_ms=0.0, durability="power", sealer="none", min_free_mb=0.0))
    drop(r)
    assert recover(tmp_path / "r") == 30 == check_messages(tmp_path / "r", 30)


# ---------------------------------------------------------------- a feed

class TinyFeed:
    "Says what it is told to, through the hook."

    def __init__(self, n, *, fail=False):
        self.n, self.fail, self.on_raw, self.closed = n, fail, None, False

    async def __aiter__(self):
        for i in range(1, self.n + 1):
            if self.on_raw is not None:
                self.on_raw("btcusdt@depth@100ms", body(i), T0 + i, T0 + i, i)
            yield i
            await asyncio.sleep(0)
        if self.fail:
            raise ConnectionError("cut")


def test_record_ends_with_its_feed(tmp_path):
    stats = asyncio.run(record(TinyFeed(200), tmp_path / "r", options=BY_HAND))
    assert stats.acknowledged == 200 == check_messages(tmp_path / "r", 200)


def test_record_keeps_what_came_before_the_feed_failed(tmp_path):
    with pytest.raises(ConnectionError):
        asyncio.run(record(TinyFeed(50, fail=True), tmp_path / "r", options=BY_HAND))
    assert check_messages(tmp_path / "r", 50) == 50


def test_record_ends_when_the_disk_refuses(tmp_path):
    told = []
    with file_limit(20_000):
        stats = asyncio.run(record(TinyFeed(10**7), tmp_path / "r", options=RecorderOptions(batch_ms=1.0, min_free_mb=0.0), on_alarm=told.append))
    assert stats.stopped == told[0] and len(told) >= 1 and "recording stopped" in told[0] and check_messages(tmp_path / "r", stats.acknowledged) == stats.acknowledged


class PatientFeed:
    "Talks until an alarm was told, and then some more."

    def __init__(self, told):
        self.told, self.n, self.on_raw, self.finished = told, 0, None, False

    async def __aiter__(self):
        end, more = time.monotonic() + 60, 50
        while more and time.monotonic() < end:
            self.n, more = self.n + 1, more - bool(self.told)
            self.on_raw("btcusdt@depth@100ms", body(self.n), T0 + self.n, T0 + self.n, self.n)
            yield self.n
            await asyncio.sleep(0.001)
        self.finished = True


def test_an_alarm_of_the_sealer_does_not_end_record(tmp_path, monkeypatch):
    "Only a recorder that stopped is the end; segments that stay as they are cost nothing."
    import makerlab.live.recorder as L

    calls, told = [], []

    def once_broken(*args, **kw):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(12, "Cannot allocate memory")
        return seal(*args, **kw)

    monkeypatch.setattr(L, "seal", once_broken)
    feed = PatientFeed(told)
    options = RecorderOptions(batch_ms=1.0, segment_rows=5, sealer="thread", min_free_mb=0.0)
    stats = asyncio.run(record(feed, tmp_path / "r", options=options, on_alarm=told.append))
    assert feed.finished and stats.acknowledged == feed.n == check_messages(tmp_path / "r", feed.n) and stats.stopped == ""
    assert len(told) == 1 and "Cannot allocate memory" in told[0] and "the next recorder of the folder takes them in" in told[0] and "recover" not in told[0]


def test_record_ends_by_the_clock_and_by_cancelling(tmp_path):
    assert asyncio.run(record(TinyFeed(10**7), tmp_path / "a", options=BY_HAND, seconds=0.5)).acknowledged > 0

    async def cancelled():
        feed = TinyFeed(10**7)
        task = asyncio.ensure_future(record(feed, tmp_path / "b", options=BY_HAND))
        while feed.on_raw is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert check_messages(tmp_path / "b", 1) > 0 and recover(tmp_path / "b")


@pytest.fixture
def venue_beside():
    "A simulated venue in a thread of its own; its address."
    from makerlab.live.simulated import SimulatedVenue

    loop, ready, over, found = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), []

    async def live():
        venue = SimulatedVenue(seed=3, speed=5.0)
        found.append(await venue.start())
        ready.set()
        await over.wait()
        await venue.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    assert ready.wait(120)  # the first one compiles
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()


def test_nothing_is_said_before_the_recorder_is_ready(tmp_path, monkeypatch, venue_beside):
    "A folder that takes long to be put in order: the snapshot is in the recording all the same."
    import makerlab.live.recorder as L

    class Slow(Recorder):
        def __init__(self, *args, **kw):
            time.sleep(0.8)  # as one that files what a dead one left
            super().__init__(*args, **kw)

    monkeypatch.setattr(L, "Recorder", Slow)
    found = L.run_record(["BTCUSDT"], tmp_path / "r", hosts=venue_beside, seconds=2.0, options=RecorderOptions(batch_ms=20.0, min_free_mb=0.0))
    assert found["streams"]["btcusdt@snapshot"] >= 1 and found["messages"] == found["acknowledged"] > 5
    assert replay_book(tmp_path / "r", grid=GRID).synced


def trades(n):
    "What a venue says that has no depth."
    return [("btcusdt@trade", TRADE % b"%d" % i) for i in range(1, n + 1)]


@pytest.fixture
def talk(monkeypatch):
    "Put a feed that says these messages and ends in the place of the true one."
    from makerlab.live import feed

    def use(messages):
        class Saying(TinyFeed):
            def __init__(self, *_, **__):
                super().__init__(0)

            async def __aiter__(self):
                for i, (stream, message) in enumerate(messages):
                    self.on_raw(stream, message, T0 + i, T0 + i, i)
                    yield i

            async def close(self):
                self.closed = True

        monkeypatch.setattr(feed, "Feed", Saying)

    return use


def test_a_recording_without_a_book_says_why_in_its_place(tmp_path, talk):
    import makerlab.live.recorder as L

    talk(trades(30))
    found = L.run_record(["BTCUSDT"], tmp_path / "r", options=BY_HAND)
    assert found["messages"] == found["acknowledged"] == 30 and found["stopped"] == "" and list(found["book"]) == ["BTCUSDT"]
    assert "no depth changes" in found["book"]["BTCUSDT"] and "without it there is no book" in found["book"]["BTCUSDT"]


def test_a_long_recording_is_not_read_at_its_end(tmp_path, talk, monkeypatch):
    import makerlab.live.recorder as L

    def expensive(*_, **__):
        raise AssertionError("it was read")

    talk(trades(30))
    monkeypatch.setattr(L, "_MUCH", 59)
    assert L.run_record(["BTCUSDT"], tmp_path / "r", options=BY_HAND)["messages"] == 30  # read: it is short
    for name in ("inspect_recording", "rebuild"):
        monkeypatch.setattr(L, name, expensive)
    found = L.run_record(["btcusdt"], tmp_path / "r", options=BY_HAND)  # 60 with the first session's
    assert found["acknowledged"] == found["messages"] == 60 and found["lost"] == 0 and found["segments"] == []
    assert found["book"] == {"BTCUSDT": f"not rebuilt from 60 messages: mm-engine replay {tmp_path / 'r'} --symbol BTCUSDT --json tells it"}


def test_a_recording_that_stopped_early_ends_the_command_with_1(tmp_path, talk, monkeypatch):
    from types import SimpleNamespace

    from typer.testing import CliRunner

    from makerlab.cli import app

    talk(trades(30))
    said = {}
    for name, free in (("room", 1e15), ("full", 1e6)):
        monkeypatch.setattr("makerlab.live.recorder.shutil", SimpleNamespace(disk_usage=lambda _, free=free: SimpleNamespace(free=free)))
        said[name] = CliRunner().invoke(app, ["record", "--symbol", "BTCUSDT", "--out", str(tmp_path / name), "--json"])
    room, full = (json.loads(x.stdout) for x in said.values())
    assert said["room"].exit_code == 0 and room["acknowledged"] == 30 and (room["stopped"], room["lost"]) == ("", 0)
    assert said["full"].exit_code == 1 and full["acknowledged"] == 0 and full["lost"] == 30 and "MB are left" in full["stopped"]


def test_one_venue_a_folder(tmp_path):
    "Spot and USD-M name their symbols alike; sealed or not, compacted or not, a folder of the one is refused by the other."
    usdm = RecorderOptions(venue="binance-usdm", batch_ms=0.0, sealer="none", min_free_mb=0.0)
    r = write(tmp_path / "r", 10)
    drop(r)
    for _ in range(2):  # and the folder is let go
        with pytest.raises(ParameterError, match="venue = 'binance-usdm': .*binance-spot.*a folder of its own"):
            Recorder(tmp_path / "r", options=usdm)
    with open_store(tmp_path / "r", layout=RECORDING) as s:
        s.compact()
    with pytest.raises(ParameterError, match="a folder of its own"):
        Recorder(tmp_path / "r", options=usdm)
    assert write(tmp_path / "r", 10, first=11).close().acknowledged == 20 == check_messages(tmp_path / "r", 20)


def test_a_folder_of_two_venues_makes_no_book(tmp_path, monkeypatch):
    "As it was recorded before a recorder looked."
    for market in ("spot", "usdm"):
        with monkeypatch.context() as patch:
            patch.setattr(R, "_venues", lambda _: set())
            generate_test_data(tmp_path / "r", rng=np.random.default_rng(1), seconds=2, market=market)
    assert inspect_recording(tmp_path / "r")["venues"] == ["binance-spot", "binance-usdm"]
    for read in (load_recording, rebuild, lambda folder: replay_book(folder, grid=GRID)):
        with pytest.raises(ParameterError, match="BTCUSDT of .*binance-spot.*binance-usdm.*cannot be told apart"):
            read(tmp_path / "r")


def test_a_venue_that_cannot_be_reached_is_said_at_once(tmp_path):
    import makerlab.live.recorder as L

    with pytest.raises(RecorderError, match=r"no venue answers at http://127\.0\.0\.1:1 .*mm-engine venue"):
        L.run_record(["BTCUSDT"], tmp_path / "r", hosts="http://127.0.0.1:1", seconds=30.0, options=BY_HAND)
    with lock_recording(tmp_path / "r"):  # and the folder was let go
        pass
    for symbol in (None, "BTCUSDT"):
        with pytest.raises(ParameterError, match="nothing was recorded here yet"):
            read_recording(tmp_path / "r", symbol=symbol)


@pytest.mark.parametrize(("preset", "market", "label"), [
    ("spot", "spot", "binance-spot"), ("usdm", "usdm", "binance-usdm"), ("spot-testnet", "spot", "binance-spot-testnet"), ("usdm-demo", "usdm", "binance-usdm-demo"),
    ("local", "spot", "simulated-spot"), ("local", "usdm", "simulated-usdm")])
def test_a_live_session_labels_its_recording_and_seals_it_in_a_process(tmp_path, monkeypatch, preset, market, label):
    from contextlib import ExitStack
    from types import SimpleNamespace

    from makerlab.live import guardian

    live = SimpleNamespace(market=market, record="recorded", metrics_port=-1, mirror="", preset=preset, url="http://127.0.0.1:1")
    config = SimpleNamespace(live=live, sends=True, mode="paper", path=tmp_path / "live.toml", session=SimpleNamespace(instruments={"XYZ": XYZ}, strategy="mm"))
    monkeypatch.setattr(guardian, "_session_text", lambda c: "none")
    with ExitStack() as stack:
        parts = SimpleNamespace(config=config, clock=lambda: T0, folder=tmp_path, stack=stack, say=print, metrics=None)
        guardian._Records.records(parts)
        assert (parts.recorder.options.venue, parts.recorder.options.sealer) == (label, "process")


@pytest.mark.parametrize("market", ["spot", "usdm"])
def test_the_simulated_venue_recorded_makes_the_book_that_the_feed_had(tmp_path, market):
    from makerlab.live.feed import Feed
    from makerlab.live.simulated import SimulatedVenue

    async def session():
        venue = SimulatedVenue(market=market, seed=3, speed=5.0)
        url = await venue.start()
        feed = Feed(["BTCUSDT"], hosts=Hosts.local(url, market=market), rng=np.random.default_rng(1))
        task = asyncio.ensure_future(record(feed, tmp_path / "r", options=RecorderOptions(venue=f"binance-{market}", batch_ms=20.0, min_free_mb=0.0)))
        end = time.monotonic() + 20
        while time.monotonic() < end and not (feed.synced and feed.books["BTCUSDT"].counts["apply"] >= 15):
            await asyncio.sleep(0.05)
        await feed.close()
        stats = await task
        await venue.stop()
        return feed, stats

    feed, stats = asyncio.run(session())
    book = feed.books["BTCUSDT"]
    assert stats.lost == 0 and stats.acknowledged == len(read_messages(tmp_path / "r")) > 20 and book.counts["apply"] >= 15
    assert replay_book(tmp_path / "r", grid=book.grid).digest() == book.digest() == rebuild(tmp_path / "r")
    assert len(open_events(tmp_path / "r")) > 20
