"Storage: what was acknowledged is there after any death, old stores migrate or stay, and the three faces of a table agree."
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab import storage as S
from makerlab.core import DataError, ParameterError
from makerlab.schema import validate_trades
from makerlab.storage import (LAYOUT, TABLES, TRADES, Layout, Migration, MigrationError, RingBuffer, StoreError, StoreLockedError, StoreVersionError, open_store)

MEDIA = ("parquet", "sqlite")
T0 = pd.Timestamp("2026-03-02 14:30", tz="UTC")


def stamps(n, start=0):
    return pd.Series(pd.DatetimeIndex(T0 + pd.to_timedelta(np.arange(start, start + n), unit="ms")).as_unit("ns"))


def trades(n, start=0, **other):
    i = np.arange(start, start + n)
    rows = {"time": stamps(n, start), "sequence": i, "symbol": np.where(i % 3 == 0, "B", "A"), "event": "trade", "price": 25 + 0.01 * (i % 50), "size": 1.0 + i,
            "side": np.where(i % 2, 1, -1).astype("int8")}
    return pd.DataFrame(rows | other)


def sample_row(t):
    "One good row of a table, every column filled."
    words = {"time": T0, "integer": 3, "side": 1, "number": 1.5, "text": "x"}
    row = {c.name: (c.allowed[0] if c.kind == "text" and c.allowed else words[c.kind]) for c in t.columns}
    row |= {"expiry": T0 + pd.Timedelta("30D")} if "expiry" in row else {}
    frame = pd.DataFrame([row])
    for c in t.columns:
        frame[c.name] = frame[c.name].astype(S.KINDS[c.kind][0])
    return frame


@pytest.fixture(params=MEDIA)
def place(request, tmp_path):
    return tmp_path / ("store.db" if request.param == "sqlite" else "store")


# ---------------------------------------------------------------- tables

SEED = {"book_levels": "timestamp symbol side price size level", "trades": "timestamp price size side venue",
        "option_surface": "timestamp symbol expiry strike right bid ask mid implied_vol", "quote_instructions": "timestamp symbol side price size reason",
        "order_states": "order_id status filled_qty avg_price submit_time cancel_time"}
LACKED = {"book_levels": "time local_time sequence event order_id", "trades": "local_time sequence symbol event order_id client_id",
          "option_surface": "local_time sequence underlying rate dividend event", "quote_instructions": "sequence client_id event local_time",
          "order_states": "symbol side client_id sequence event local_time underlying"}


@pytest.mark.parametrize("name", SEED)
def test_the_seeds_columns_are_all_there_and_what_it_lacks(name):
    have = {c.name for c in TABLES[name].columns}
    assert {c.replace("timestamp", "time") for c in SEED[name].split()} <= have
    assert set(LACKED[name].split()) <= have
    assert all(c.unit or c.kind == "text" for c in TABLES[name].columns)


@pytest.mark.parametrize("t", TABLES.values(), ids=TABLES)
def test_a_full_row_comes_back_equal_from_both_media(t, tmp_path):
    row = t.check(sample_row(t))
    for path in (tmp_path / "a.db", tmp_path / "a"):
        with open_store(path) as store:
            assert store.append(t.name, sample_row(t)) == 1
            pd.testing.assert_frame_equal(store.read(t.name), row, check_flags=False)
        with open_store(path, mode="r") as store:
            pd.testing.assert_frame_equal(store.read(t.name), row)
            assert store.read(t.name).attrs["unit"] == {c.name: c.unit for c in t.columns}


@pytest.mark.parametrize("t", TABLES.values(), ids=TABLES)
def test_a_row_of_what_is_needed_alone_is_taken_by_both_media(t, tmp_path):
    row = sample_row(t)[[c.name for c in t.columns if not c.optional]]
    row = row.assign(**{k: v for k, v in {"price": 1.0, "side": np.int8(1), "exec_id": "e"}.items() if t.name != "trades"} if t.rules else {})
    row = row[[c for c in row.columns if c in {x.name for x in t.columns}]]
    for path in (tmp_path / "a.db", tmp_path / "a"):
        with open_store(path) as store:
            store.append(t.name, row)
            pd.testing.assert_frame_equal(store.read(t.name), t.check(row), check_flags=False)


def damages(c):
    "Values that the column must refuse, of the right dtype."
    if c.kind == "time":
        return [] if c.optional else [pd.NaT]
    if c.kind == "text":
        return ["no such word"] if c.allowed else [] if c.optional else [""]
    if c.kind == "side":
        return [v for v in (-1, 0, 1, 2) if v not in c.allowed]
    if c.kind == "integer":
        return [] if c.at_least is None else [int(c.at_least) - 1]
    out = [np.inf, -np.inf] + ([] if c.optional else [np.nan])
    return out + ([c.above, -1.0] if c.above is not None else []) + ([-1.0] if c.at_least is not None else [])


@pytest.mark.parametrize("t", TABLES.values(), ids=TABLES)
def test_pandas_pandera_and_sqlite_agree_on_every_damage(t):
    con, good, n = sqlite3.connect(":memory:"), t.check(sample_row(t)), 0
    con.execute(t.ddl)

    def sqlite_takes(frame):
        table = pa.Table.from_pandas(frame, schema=pa.schema([f.with_nullable(True) for f in t.arrow]), preserve_index=False)
        try:
            S._insert(con, t, table)
            return True
        except sqlite3.IntegrityError:
            return False

    assert sqlite_takes(good) and t.pandera.validate(good) is not None
    for c in t.columns:
        for value in damages(c):
            frame = good.copy()
            frame[c.name] = pd.Series([value], dtype=S.KINDS[c.kind][0])
            with pytest.raises(DataError, match=f"{c.name} is not .* in 1 row.*row 0"):
                t.check(frame)  # the plain tests found it, pandera named the row
            assert not sqlite_takes(frame), (c.name, value)
            n += 1
    assert n >= 8


RULES = [("book_levels", {"price": np.nan}, "only a clear has no price"), ("book_levels", {"side": np.int8(0)}, "only a clear has side 0"),
         ("option_surface", {"expiry": T0 - pd.Timedelta("1D")}, "after it expired"), ("quote_instructions", {"price": np.nan}, "only a cancel has no price"),
         ("order_states", {"cancel_time": T0 - pd.Timedelta("1s"), "submit_time": T0}, "before its order"),
         ("order_states", {"event": "fill", "exec_id": ""}, "a fill has an exec_id")]


@pytest.mark.parametrize(("name", "change", "words"), RULES, ids=[r[2] for r in RULES])
def test_rules_across_columns_hold_in_pandas_and_in_sqlite(name, change, words):
    t, con = TABLES[name], sqlite3.connect(":memory:")
    con.execute(t.ddl)
    frame = sample_row(t).assign(**change)
    with pytest.raises(DataError, match=words):
        t.check(frame)
    with pytest.raises(sqlite3.IntegrityError):
        S._insert(con, t, pa.Table.from_pandas(S._frame_of(t, frame), schema=t.arrow, preserve_index=False))


def test_every_rule_has_a_test():
    assert {(n, w) for n, _, w in RULES} == {(t.name, next(w for n, _, w in RULES if n == t.name and w in r.must)) for t in TABLES.values() for r in t.rules}
    assert len(RULES) == sum(len(t.rules) for t in TABLES.values())


@pytest.mark.parametrize(("change", "words"), [
    ({"size": [1.0, -5.0, 2.0]}, r"size is not a finite number > 0 in 1 row\(s\) \(row 1: -5.0\)"), ({"price": [np.nan, 1, 2]}, r"price .*row 0: nan"),
    ({"price": ["1", "2", "3"]}, r"price is str where float64 .*row 0: '1'"), ({"price": [True, False, True]}, "price is bool"),
    ({"time": stamps(3).dt.tz_localize(None)}, "time is datetime64.*tz_localize"), ({"time": [1, 2, 3]}, "time is int64"),
    ({"sequence": [1.0, 2.0, 3.0]}, "sequence is float64 where int64"), ({"sequence": [1, -2, 3]}, "sequence is not a whole number >= -1.*row 1: -2"),
    ({"side": [1, 300, -1]}, "side is not one of -1, 0, 1 .*row 1: 300"), ({"symbol": ["A", None, "B"]}, "symbol .*row 1: ''"),
    ({"symbol": ["A", 5, "B"]}, "symbol is not text .*row 1: 5"), ({"event": ["trade", "sale", "trade"]}, "event is not one of .*row 1: 'sale'"),
    ({"prize": 1.0}, "unknown column.*prize.*did you mean price"), ({"sequence": pd.array([1, None, 2], dtype="Int64")}, "sequence is Int64 where int64"),
    ({"sequence": np.array([1, 2**63, 2], np.uint64)}, "sequence is uint64"), ({"price": np.array([1, 2, 3j])}, "price is complex"),
])
def test_bad_rows_are_named_and_nothing_is_stored(change, words, place):
    with open_store(place) as store:
        with pytest.raises(DataError, match=words):
            store.append("trades", trades(3).assign(**change))
        assert store.count("trades") == 0 and not len(store.read("trades"))


def test_missing_and_doubled_columns_and_what_is_no_frame():
    with pytest.raises(DataError, match="missing column.*price, size"):
        TRADES.check(trades(3).drop(columns=["price", "size"]))
    with pytest.raises(DataError, match="price occur twice"):
        TRADES.check(pd.concat([trades(3), trades(3)[["price"]]], axis=1))
    with pytest.raises(DataError, match="DataFrame, got list"):
        TRADES.check([1, 2])


def test_what_loses_nothing_is_taken():
    rows = trades(3).assign(price=[1, 2, 3], symbol=pd.Categorical(["A", "B", "A"]), time=stamps(3).dt.tz_convert("America/New_York").dt.as_unit("us"))
    rows.index = [7, 7, 9]
    out = TRADES.check(rows)
    assert str(out["time"].dtype) == "datetime64[ns, UTC]" and out["price"].tolist() == [1.0, 2.0, 3.0] and out.index.tolist() == [0, 1, 2]
    assert (out["local_time"].isna().all(), out["venue"].tolist()) == (True, ["", "", ""])
    assert str(TRADES.check(trades(0)).dtypes.to_dict()) == str(out.dtypes.to_dict())


def test_units_are_in_the_files(tmp_path):
    with open_store(tmp_path / "a.db") as one, open_store(tmp_path / "a") as two:
        one.append("trades", trades(3)), two.append("trades", trades(3))
        units = dict(sqlite3.connect(tmp_path / "a.db").execute("SELECT name, unit FROM makerlab_columns WHERE tbl = 'trades'").fetchall())
    file = next((tmp_path / "a").glob("v2/trades/*.parquet"))
    assert units == {f.name: f.metadata[b"unit"].decode() for f in pq.read_schema(file)} == {c.name: c.unit for c in TRADES.columns}


# ---------------------------------------------------------------- reading

@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), seed=st.integers(0, 999), compact=st.booleans(), lo=st.integers(0, 30), span=st.integers(0, 30),
       symbols=st.sampled_from([None, "A", ["B"], ["A", "B"], ["C"]]))
def test_both_media_answer_as_pandas_does(tmp_path_factory, sizes, seed, compact, lo, span, symbols):
    rng, room = np.random.default_rng(seed), tmp_path_factory.mktemp("s")
    parts = [trades(n, time=pd.Series(T0 + pd.to_timedelta(rng.integers(0, 40, n), unit="ms"), dtype="datetime64[ns, UTC]"), size=rng.random(n) + 0.1) for n in sizes]
    whole = pd.concat([TRADES.check(p) for p in parts], ignore_index=True)
    start, end = T0 + pd.Timedelta(lo, "ms"), T0 + pd.Timedelta(lo + span, "ms")
    names = ["A", "B", "C"] if symbols is None else [symbols] if isinstance(symbols, str) else symbols
    want = whole.sort_values("time", kind="stable")
    want = want[(want["time"] >= start) & (want["time"] < end) & want["symbol"].isin(names)][["size", "time", "side"]].reset_index(drop=True)
    for path in (room / "a.db", room / "a"):
        with open_store(path) as store:
            for p in parts:
                total = store.append("trades", p)
            if compact:
                store.compact()
                store.append("trades", trades(0))
            assert total == len(whole) == store.count("trades") and store.symbols("trades") == sorted(set(whole["symbol"]))
            got = store.read("trades", start=start, end=end, symbols=symbols, columns=["size", "time", "side"])
            pd.testing.assert_frame_equal(got, want)
            pd.testing.assert_frame_equal(store.read("trades"), whole.sort_values("time", kind="stable", ignore_index=True))
    shutil.rmtree(room)


@pytest.mark.parametrize(("filters", "words"), [
    ({"start": "2026-03-02 14:30"}, "start = .* must be a stamp with a zone"), ({"end": pd.Timestamp("2026-03-02")}, "end = "), ({"start": "soon"}, "start = 'soon'"),
    ({"start": True}, "start = True"), ({"start": 5, "end": 4}, "start = 5 is after end = 4"), ({"symbols": []}, "symbols = "), ({"symbols": [1]}, "symbols = "),
    ({"columns": ["prize"]}, "columns = .*prize"), ({"columns": ["size", "size"]}, "each once"), ({"columns": []}, "columns = "), ({"start": pd.NaT}, "start = NaT")])
def test_filters_that_mean_nothing_are_refused(filters, words, place):
    with open_store(place) as store, pytest.raises(ParameterError, match=words):
        store.read("trades", **filters)


def test_time_filters_take_text_stamps_of_any_zone_and_ns(place):
    with open_store(place) as store:
        store.append("trades", trades(5))
        for start in ("2026-03-02 14:30:00.002Z", "2026-03-02T09:30:00.002-05:00", T0 + pd.Timedelta("2ms"), int(T0.value) + 2_000_000, np.int64(T0.value + 2_000_000)):
            assert store.read("trades", start=start)["sequence"].tolist() == [2, 3, 4]


def test_row_groups_end_where_a_symbol_ends_when_half_full():
    for sizes in ([10], [S.GROUP_ROWS, 5], [S.GROUP_ROWS + 9000, S.GROUP_ROWS], [3000] * 20, [1] * 40_000):
        symbols = np.repeat([f"{i:06d}" for i in range(len(sizes))], sizes)
        cuts = np.array(S._cuts(symbols))
        assert cuts[0] == 0 and cuts[-1] == len(symbols) and (np.diff(cuts) > 0).all() and (np.diff(cuts) <= S.GROUP_ROWS).all()
        assert (np.diff(cuts)[:-1] > S.GROUP_ROWS // 2).all()
    assert S._cuts(np.repeat(["a", "b"], [9000, 20_000])) == [0, 9000, 9000 + S.GROUP_ROWS, 29_000]


def test_a_range_touches_few_rows(tmp_path):
    rows = trades(100_000).assign(symbol="A")
    for path, most in ((tmp_path / "a.db", 100), (tmp_path / "a", S.GROUP_ROWS)):
        with open_store(path) as store:
            for k in range(0, 100_000, 25_000):
                store.append("trades", rows.iloc[k : k + 25_000])
            store.compact()
            assert len(store.read("trades", start=T0 + pd.Timedelta("50s"), end=T0 + pd.Timedelta("50.1s"), columns=["price"])) == 100 <= store.touched <= most
    plan = sqlite3.connect(tmp_path / "a.db").execute("EXPLAIN QUERY PLAN SELECT * FROM trades WHERE symbol = ? AND time >= ? AND time < ?", ("A", 0, 1)).fetchall()
    assert "SEARCH trades USING INDEX" in plan[0][3]


def test_what_is_stored_are_trades_as_the_library_knows_them(place):
    with open_store(place) as store:
        store.append("trades", trades(20))
        assert len(validate_trades(store.read("trades"))) == 20


def test_a_reader_sees_what_a_writer_appends_and_compacts(place):
    with open_store(place) as writer, open_store(place, mode="r") as reader:
        for k in range(4):
            assert writer.append("trades", trades(10, 10 * k)) == 10 * k + 10 == reader.count("trades")
            writer.compact()
            assert reader.read("trades")["sequence"].tolist() == list(range(10 * k + 10))
        with pytest.raises(ParameterError, match="mode='a'"):
            reader.append("trades", trades(1))


def test_closed_stores_and_unknown_tables_say_so(place):
    store = open_store(place)
    with pytest.raises(ParameterError, match="table = 'trade' must be one of"):
        store.read("trade")
    store.close()
    store.close()
    with pytest.raises(ParameterError, match="closed"):
        store.count("trades")


# ---------------------------------------------------------------- opening

def test_open_refuses_what_is_not_a_store(tmp_path):
    (tmp_path / "text.db").write_text("no database at all, " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.doc").write_text("mine")
    con = sqlite3.connect(tmp_path / "other.db")
    con.execute("CREATE TABLE mine (x)").connection.commit()
    for name, error, words in (("text.db", StoreError, "cannot be opened"), ("folder", StoreError, "thesis.doc"), ("other.db", StoreError, "not a makerlab store"),
                               ("a.csv", ParameterError, "ends in '.csv'")):
        with pytest.raises(error, match=words):
            open_store(tmp_path / name)
    for name in ("none.db", "none"):
        with pytest.raises(StoreError, match="does not exist"):
            open_store(tmp_path / name, mode="r")
    for bad in ({"mode": "w"}, {"durability": "always"}, {"medium": "csv"}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            open_store(tmp_path / "x", **bad)
    with pytest.raises(ParameterError, match="but .* is a file"):
        open_store(tmp_path / "text.db", medium="parquet")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir() if p.name != ".lock") == ["thesis.doc"]
    assert con.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


def test_one_writer_of_a_folder(tmp_path):
    first = open_store(tmp_path / "a")
    with pytest.raises(StoreLockedError, match="another writer"):
        open_store(tmp_path / "a")
    open_store(tmp_path / "a", mode="r").close()
    first.close()
    open_store(tmp_path / "a").close()


def test_two_writers_of_a_file_take_turns(tmp_path):
    with open_store(tmp_path / "a.db") as one, open_store(tmp_path / "a.db") as two:
        assert [s.append("trades", trades(5, 5 * k)) for k, s in enumerate((one, two, one))] == [5, 10, 15]


def test_a_missing_doubled_or_damaged_part_is_reported_with_its_rows(tmp_path):
    with open_store(tmp_path / "a") as store:
        for k in range(3):
            store.append("trades", trades(10, 10 * k))
    folder = tmp_path / "a" / "v2" / "trades"
    middle = folder / "000000000011-000000000020.parquet"
    body = middle.read_bytes()
    middle.write_bytes(body[: len(body) // 2])
    with open_store(tmp_path / "a", mode="r") as store, pytest.raises(DataError, match="rows 11 to 20 cannot be read"):
        store.read("trades")
    middle.unlink()
    with open_store(tmp_path / "a", mode="r") as store, pytest.raises(DataError, match="rows 11 to 20 are missing"):
        store.read("trades")
    middle.write_bytes(body)
    (folder / "000000000015-000000000025.parquet").write_bytes(body)
    with open_store(tmp_path / "a", mode="r") as store, pytest.raises(DataError, match="there twice"):
        store.read("trades")


def test_power_durability_flushes_before_it_answers(tmp_path, monkeypatch):
    seen, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda h: (seen.append(h), real(h)))
    with open_store(tmp_path / "a") as store:
        store.append("trades", trades(3))
    assert not seen
    with open_store(tmp_path / "b", durability="power") as store:
        before = len(seen)
        store.append("trades", trades(3))
        assert len(seen) == before + 2  # the file and its folder
    for durability, level in (("process", 1), ("power", 2)):
        with open_store(tmp_path / "c.db", durability=durability) as store:
            assert store._con.execute("PRAGMA synchronous").fetchone() == (level,)
            assert store._con.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# ---------------------------------------------------------------- death

LIVES = r"""
import json, os, random, resource, shutil, signal, sys, time
import numpy as np, pandas as pd
from makerlab import storage as S
from makerlab.storage import open_store
T0 = pd.Timestamp("2026-03-02 14:30", tz="UTC")
def batch(k, n=20):
    i = np.arange(n * k, n * k + n)
    return pd.DataFrame({"time": (T0 + pd.to_timedelta(i, unit="ms")).as_unit("ns"), "sequence": i, "symbol": np.where(i % 3 == 0, "B", "A"), "event": "trade",
                         "price": 25 + 0.01 * (i % 50), "size": 1.0 + i, "side": np.where(i % 2, 1, -1).astype("int8")})
def live(job, path, pipe, arm):
    if job["task"] != "compact":
        arm()
    store = open_store(path)
    if job["task"] == "compact":
        arm()
        store.compact()
    for k in range(6 if job["task"] == "append" else 0):
        os.write(pipe, store.append("trades", batch(k)).to_bytes(8, "little"))
    if job["task"] == "full":
        os.write(pipe, store.append("trades", batch(0)).to_bytes(8, "little"))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        try:
            store.append("trades", batch(1, 20_000))
        except S.StoreWriteError as e:
            if "20000 row(s) of trades were not stored" in str(e):
                os.write(pipe, store.count("trades").to_bytes(8, "little"))
    store.close()
def life(job, path, die, wait=0):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0
        def tick(frame, event, arg):
            nonlocal count
            count += 1
            if count == die:
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            live(job, path, w, lambda: sys.setprofile(tick) if die >= 0 else None)
        finally:
            sys.setprofile(None)
        os.write(w, (-count).to_bytes(8, "little", signed=True))
        os._exit(0)
    os.close(w)
    if wait:
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    told = [int.from_bytes(b, "little", signed=True) for b in iter(lambda: os.read(r, 8), b"")]
    os.close(r)
    return os.WIFSIGNALED(status), told
def run(job):
    def fresh(k):
        path = job["path"] % k
        if job.get("proto"):
            (shutil.copytree if os.path.isdir(job["proto"]) else shutil.copy)(job["proto"], path)
        return path
    if job["task"] == "full":
        return life(job, fresh("full"), -1)[1]
    rng, out, begin = random.Random(1), [], time.perf_counter()
    events = -life(job, fresh("whole"), 0)[1][-1]
    if job["task"] == "append":
        begin = time.perf_counter()
        life(job, fresh("timed"), -1)
        spent = time.perf_counter() - begin
    for k in range(12 if job["task"] == "append" else 8):
        at = events - rng.randrange(events if k % 4 < 2 else 60 if k % 4 < 3 else 12)  # half of them near the end, where the switch is
        by_clock = job["task"] == "append" and k % 2
        died, told = life(job, fresh(k), -1, rng.uniform(0.02, 1.1) * spent) if by_clock else life(job, fresh(k), at)
        out.append([died, max([x for x in told if x > 0], default=0), job["path"] % k])
    return out
print(json.dumps({name: run(job) for name, job in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    "All that dies in this file, in one child that forks: task and medium -> [died, acknowledged, path]."
    jobs, room = {}, tmp_path_factory.mktemp("deaths")
    with open_store(room / "compact-proto") as store:
        for k in range(6):
            store.append("trades", trades(20, 20 * k))
    for medium, end in zip(MEDIA, ("", ".db"), strict=True):
        write_v1(room / f"migrate-proto{end}")
        for task in ("append", "migrate", "full", *(["compact"] if medium == "parquet" else [])):
            proto = room / f"{task}-proto{end}"
            jobs[f"{task} {medium}"] = {"task": task, "path": str(room / f"{task}-%s{end}"), "proto": str(proto) if proto.exists() else ""}
    done = subprocess.run([sys.executable, "-c", LIVES, json.dumps(jobs)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout) | {"compact want": room / "compact-proto", "full paths": {m: Path(jobs[f"full {m}"]["path"] % "full") for m in MEDIA}}


@pytest.mark.parametrize("medium", MEDIA)
def test_acknowledged_rows_survive_kill_9_at_any_instant(medium, deaths):
    ends = deaths[f"append {medium}"]
    assert sum(died for died, _, _ in ends) >= 8 and len({acked for _, acked, _ in ends}) >= 3
    want = TRADES.check(trades(120))
    for _, acked, path in ends:
        with open_store(path) as store:  # recovery is part of opening
            got = store.read("trades")
            assert acked <= len(got) <= acked + 20 and len(got) % 20 == 0 and store.count("trades") == len(got)
            pd.testing.assert_frame_equal(got, want.iloc[: len(got)])
            assert store.append("trades", trades(5, len(got))) == len(got) + 5
        if medium == "parquet":
            assert not [p for p in Path(path).rglob(".*") if p.name != ".lock"]


def test_a_killed_compaction_neither_loses_nor_doubles(deaths):
    with open_store(deaths["compact want"], mode="r") as store:
        want = store.read("trades")
    files = set()
    for died, _, path in deaths["compact parquet"]:
        assert died and len(want) == 120
        files.add(len(list(Path(path).glob("v2/trades/*.parquet"))))
        for mode in ("r", "a"):
            with open_store(path, mode=mode) as store:
                pd.testing.assert_frame_equal(store.read("trades"), want)
    assert len(files) > 1  # some died before the switch and some after


@pytest.mark.parametrize("left", range(1, 7))
def test_pieces_beside_the_file_that_covers_them_are_not_read_and_go_at_the_next_opening(left, tmp_path):
    with open_store(tmp_path / "a") as store:
        for k in range(6):
            store.append("trades", trades(20, 20 * k))
        folder = tmp_path / "a" / "v2" / "trades"
        pieces = {p: p.read_bytes() for p in sorted(folder.glob("*.parquet"))}
        store.compact()
        want = store.read("trades")
    for path in list(pieces)[6 - left :]:
        path.write_bytes(pieces[path])
    with open_store(tmp_path / "a", mode="r") as store:
        pd.testing.assert_frame_equal(store.read("trades"), want)
    open_store(tmp_path / "a").close()
    assert [p.name for p in folder.glob("*.parquet")] == ["000000000001-000000000120.parquet"]


def test_a_part_gets_its_name_when_it_is_whole_and_not_before(tmp_path, monkeypatch):
    seen, real = [], os.replace

    def replace(old, new):
        if str(new).endswith(".parquet"):
            seen.append((os.path.exists(new), pq.ParquetFile(old).metadata.num_rows))
            if len(seen) == 2:
                raise OSError(28, "No space left on device")
        return real(old, new)

    with open_store(tmp_path / "a") as store:
        monkeypatch.setattr(os, "replace", replace)
        assert store.append("trades", trades(20)) == 20
        with pytest.raises(S.StoreWriteError, match="No space left"):
            store.append("trades", trades(30, 20))
        assert store.append("trades", trades(10, 20)) == 30
    assert seen == [(False, 20), (False, 30), (False, 10)]
    assert sorted(p.name for p in (tmp_path / "a" / "v2" / "trades").iterdir()) == ["000000000001-000000000020.parquet", "000000000021-000000000030.parquet"]


@pytest.mark.parametrize("medium", MEDIA)
def test_a_full_disk_refuses_the_rows_and_keeps_the_others(medium, deaths):
    assert [n for n in deaths[f"full {medium}"] if n > 0] == [20, 20]  # acknowledged, and counted after the refusal
    with open_store(deaths["full paths"][medium]) as store:
        assert len(store.read("trades")) == 20
        assert store.append("trades", trades(5, 20)) == 25


# ---------------------------------------------------------------- migrations

def seed_rows(name, n=5):
    "What version 1 held: the seed's columns, stamps as ns."
    t = [int(T0.value) + 10**9 * i for i in range(n)]
    return {"book_levels": {"timestamp": t, "symbol": ["A"] * n, "side": [1, -1] * 2 + [1], "price": [25.0 + i for i in range(n)], "size": [float(i) for i in range(n)],
                            "level": list(range(n))},
            "trades": {"timestamp": t, "price": [25.0 + i for i in range(n)], "size": [1.0 + i for i in range(n)], "side": [1, -1, 0, 1, -1], "venue": ["X"] * n},
            "option_surface": {"timestamp": t, "symbol": ["SPX"] * n, "expiry": [x + 10**15 for x in t], "strike": [100.0 + i for i in range(n)],
                               "right": ["call", "put"] * 2 + ["call"], "bid": [None, 1.0, 2.0, 3.0, 4.0], "ask": [1.0, 2.0, 3.0, 4.0, 5.0], "mid": [None] * n,
                               "implied_vol": [0.2] * n},
            "quote_instructions": {"timestamp": t, "symbol": ["A"] * n, "side": [1, -1] * 2 + [1], "price": [25.0] * n, "size": [1.0] * n, "reason": ["edge"] * n},
            "order_states": {"order_id": [f"o{i}" for i in range(n)], "status": ["WORKING", "FILLED", "CANCELLED", "REJECTED", "NEW"],
                             "filled_qty": [0.0, 5.0, 1.0, 0.0, 0.0], "avg_price": [None, 25.0, 25.5, None, None], "submit_time": t,
                             "cancel_time": [None, None, t[2] + 5, None, None]}}[name]


TYPES = {"price": "REAL", "size": "REAL", "strike": "REAL", "bid": "REAL", "ask": "REAL", "mid": "REAL", "implied_vol": "REAL", "filled_qty": "REAL", "avg_price": "REAL",
         "symbol": "TEXT", "venue": "TEXT", "right": "TEXT", "reason": "TEXT", "order_id": "TEXT", "status": "TEXT"}


def write_v1(path, change=lambda name, rows: rows):
    "A store as version 1 left it, made with nothing of makerlab."
    if path.suffix == ".db":
        con = sqlite3.connect(path)
        for name in SEED:
            rows = change(name, seed_rows(name))
            con.execute(f"CREATE TABLE {name} ({', '.join(f'{c} {TYPES.get(c, chr(73) + chr(78) + chr(84))}' for c in rows)})")
            con.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows))})", zip(*rows.values(), strict=True))
        con.execute("CREATE INDEX by_time ON trades (timestamp)")
        con.execute("PRAGMA user_version = 1")
        con.execute(f"PRAGMA application_id = {0x6D6B6C62}")
        con.commit()
        con.close()
    else:
        for name in SEED:
            folder = path / "v1" / name
            folder.mkdir(parents=True)
            rows = pa.table(change(name, seed_rows(name)))
            for c in ("timestamp", "expiry", "submit_time", "cancel_time"):
                if c in rows.column_names:
                    rows = rows.set_column(rows.column_names.index(c), c, rows[c].cast(pa.int64()).cast(pa.timestamp("ns", "UTC")))
            pq.write_table(rows.slice(0, 3), folder / "000000000001-000000000003.parquet")
            pq.write_table(rows.slice(3), folder / "000000000004-000000000005.parquet")
        (path / "store.json").write_text('{"version": 1, "folder": "v1"}')
    return path


def content(path):
    "Everything in a store's files that a reader could see, for 'it is as it was'."
    if path.is_file():
        con = sqlite3.connect(path)
        tables = [r[0] for r in con.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return con.execute("PRAGMA user_version").fetchone(), {t: con.execute(f"SELECT * FROM {t} ORDER BY rowid").fetchall() for t in tables}
    about = json.loads((path / "store.json").read_text())
    return about["version"], {str(p.relative_to(path)): p.read_bytes() for p in sorted((path / about["folder"]).rglob("*.parquet"))}


def check_migrated(path):
    with open_store(path, mode="r") as store:
        for name in SEED:
            old, new = seed_rows(name), store.read(name)
            assert len(new) == 5 and TABLES[name].check(new) is not None
            for c in set(old) - {"timestamp", "expiry", "submit_time", "cancel_time"} - ({"symbol"} if name == "option_surface" else set()):
                got = [None if pd.isna(x) else x for x in new[c].tolist()]
                assert got == old[c], (name, c)
            times = old.get("timestamp") or old["submit_time"]
            assert new["time"].astype("int64").tolist() == times
        assert store.read("trades")["symbol"].tolist() == ["UNKNOWN"] * 5
        assert store.read("option_surface")["underlying"].unique().tolist() == ["SPX"]
        assert store.read("option_surface")["expiry"].astype("int64").tolist() == seed_rows("option_surface")["expiry"]


def test_a_store_of_version_1_is_migrated_when_opened(place):
    write_v1(place)
    with pytest.raises(StoreVersionError, match="version 1.*mode='a'"):
        open_store(place, mode="r")
    with open_store(place) as store:
        assert store.count("trades") == 5 and store.append("trades", trades(2)) == 7
    with open_store(place) as store:
        assert store.read("trades").shape[0] == 7
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    open_store(write_v1(place)).close()
    check_migrated(place)


@pytest.mark.parametrize("how", ["bad row", "raises", "loses rows"])
def test_a_migration_that_fails_leaves_the_old_store_as_it_was(place, how):
    def spoil(name, rows):
        return rows | {"size": [-1.0] * 5} if name == "trades" and how == "bad row" else rows

    def convert(name, rows):
        if name == "trades" and how == "raises":
            raise KeyError("a bug")
        return LAYOUT.migrations[0].convert(name, rows.iloc[1:] if name == "trades" and how == "loses rows" else rows)

    before = content(write_v1(place, spoil))
    with pytest.raises(MigrationError, match="stays at version 1") as e:
        open_store(place, layout=Layout(2, TABLES, (Migration(2, "broken", convert),)))
    assert {"bad row": "row 0: -1.0", "raises": "KeyError", "loses rows": "rows became"}[how] in str(e.value)
    assert content(place) == before
    if how != "bad row":
        open_store(place).close()
        check_migrated(place)


@pytest.mark.parametrize("medium", MEDIA)
def test_a_killed_migration_leaves_one_whole_store(medium, deaths):
    versions = set()
    for died, _, path in deaths[f"migrate {medium}"]:
        assert died
        path = Path(path)
        versions.add(content(path)[0])
        open_store(path).close()
        check_migrated(path)
        assert path.is_file() or [p.name for p in sorted(path.glob("v*"))] == ["v2"]
    assert len(versions) == 2, "some should die before the switch and some after"


def test_a_newer_store_is_refused_and_not_touched(place):
    newer = Layout(3, TABLES, (*LAYOUT.migrations, Migration(3, "nothing", lambda name, rows: rows)))
    with open_store(place, layout=newer) as store:
        store.append("trades", trades(4))
    before = content(place)
    for mode in ("a", "r"):
        with pytest.raises(StoreVersionError, match="version 3.*up to 2"):
            open_store(place, mode=mode)
    assert content(place) == before


def test_migrations_run_in_order_one_by_one(place):
    seen = []

    def step(k):
        return Migration(k, f"to {k}", lambda name, rows: (seen.append((k, name)), rows if k > 2 else LAYOUT.migrations[0].convert(name, rows))[1])

    open_store(write_v1(place), layout=Layout(4, TABLES, (step(2), step(3), step(4)))).close()
    assert [k for k, name in seen if name == "trades"][:3] == [2, 3, 4]
    with pytest.raises(ParameterError, match="one for each version"):
        Layout(3, TABLES, LAYOUT.migrations)


def test_a_store_of_this_version_goes_on_to_the_next_with_every_dtype(place):
    wider = {n: S.Table(n, t.meaning, (*t.columns, S.Column("note", "text", "", "new", optional=True)), t.rules) for n, t in TABLES.items()}
    seen = {}

    def convert(name, rows):
        seen[name] = rows
        return rows

    with open_store(place) as store:
        for t in TABLES.values():
            store.append(t.name, sample_row(t))
            store.append(t.name, sample_row(t)[[c.name for c in t.columns]])
        store.append("trades", trades(30))
        store.compact()
        before = {n: store.read(n) for n in TABLES}
    with open_store(place, layout=Layout(3, wider, (*LAYOUT.migrations, Migration(3, "notes", convert)))) as store:
        for n in TABLES:
            pd.testing.assert_frame_equal(store.read(n).drop(columns="note"), before[n], check_flags=False)
            assert seen[n].dtypes.astype(str).tolist() == before[n].dtypes.astype(str).tolist()
        assert store.append("trades", trades(1).assign(note="late")) == 33 and store.read("trades")["note"].tolist().count("late") == 1


def test_foreign_tables_stop_a_migration(place):
    write_v1(place)
    if place.is_file():
        sqlite3.connect(place).execute("CREATE TABLE notes (x)")
    else:
        (place / "v1" / "notes").mkdir()
    with pytest.raises(MigrationError, match="notes"):
        open_store(place)


# ---------------------------------------------------------------- rings

@settings(max_examples=50, deadline=None)
@given(capacity=st.integers(1, 7), moves=st.lists(st.one_of(st.just(-1), st.integers(0, 12)), max_size=25), since=st.integers(0, 40))
def test_a_ring_is_a_deque_with_a_count(capacity, moves, since):
    ring, model, n = RingBuffer(TRADES, capacity, columns=["time", "price", "symbol"]), deque(maxlen=capacity), 0
    for m in moves:
        rows = [(n + j, float(n + j), f"s{n + j}") for j in range(1 if m < 0 else m)]
        if m < 0:
            ring.push(*rows[0])
        else:
            ring.extend(np.array(rows, dtype=ring.dtype))
        model.extend(rows)
        n += len(rows)
        assert (len(ring), ring.pushed, ring.overwritten) == (len(model), n, n - len(model))
        assert ring.array().tolist() == list(model)
    assert ring.array(since).tolist() == [r for r in model if r[0] >= since]
    assert ring.lost(since) == max(0, n - len(model) - since)


def test_rings_refuse_what_would_be_cut():
    ring = RingBuffer(TRADES, 3, columns=["time", "price", "symbol", "side"], width=4)
    ring.push(1, 2.0, "ABCD", 1)
    for row, words in (((1, 2.0, "ABCDE", 1), "5 characters"), ((1.5, 2.0, "A", 1), "time = 1.5"), ((1, 2.0, "A"), "does not fit"), ((1, "x", "A", 1), "does not fit"),
                       ((1, 2.0, "A", 300), "does not fit"), ((1, 2.0, "A", 1, 5), "does not fit"), ((2**70, 2.0, "A", 1), "does not fit")):
        with pytest.raises(ParameterError, match=words):
            ring.push(*row)
    with pytest.raises(ParameterError, match="dtype"):
        ring.extend(np.zeros(3))
    for bad in ({"capacity": 0}, {"capacity": 2.5}, {"capacity": True}, {"width": 0}, {"columns": ["prize"]}, {"fixed": {"prize": 1}}, {"columns": ["time"], "fixed": {"time": 1}}):
        with pytest.raises(ParameterError):
            RingBuffer(TRADES, **({"capacity": 3} | bad))
    assert len(ring) == 1


def test_a_ring_empties_into_a_store_without_gap_or_repeat(place):
    ring, n, total = RingBuffer(TRADES, 50, columns=["time", "sequence", "price", "size", "side"], fixed={"symbol": "A", "event": "trade"}), 0, 0
    rng = random.Random(3)
    with open_store(place) as store:
        while total < 300:
            for _ in range(rng.randint(1, 50)):
                ring.push(int(T0.value) + ring.pushed, ring.pushed, 25.0, 1.0, 1)
            assert ring.lost(n) == 0
            total, n = store.append("trades", ring.frame(since=n)), ring.pushed
        assert store.read("trades")["sequence"].tolist() == list(range(total))


@pytest.mark.parametrize("t", TABLES.values(), ids=TABLES)
def test_a_ring_of_whole_rows_gives_them_back(t):
    good = t.check(pd.concat([sample_row(t)] * 3, ignore_index=True))
    ring = RingBuffer(t, 2)
    for row in good.assign(**{c.name: good[c.name].astype("int64") for c in t.columns if c.kind == "time"}).itertuples(index=False, name=None):
        ring.push(*row)
    pd.testing.assert_frame_equal(t.check(ring.frame()), good.iloc[:2])
