"The farm: the same answer on every engine and in every order, nothing lost or repeated after kill -9, no failure fatal, nobody left behind."
import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from makerlab.backtest import farm
from makerlab.backtest.farm import (WORLDS, FarmResults, ResultStore, farm_sweep, find_function, gather_cells, name_of, random_walk, run_symbol_day, run_tasks,
                                    source_digest, sweep_tasks, task_key, task_rng)
from makerlab.backtest.snapshot import Backtest
from makerlab.backtest.sweep import grid, runner, sweep
from makerlab.core import DataError, MakerlabError, ParameterError
from makerlab.data.source import Market, open_source

HERE = Path(__file__).parent
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
WALKS = [{"steps": 1000, "walk": i} for i in range(12)]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@functools.cache
def markets() -> dict:
    "Two symbols, half an hour of each of two days."
    out = {}
    for symbol in ("BIGT", "SMLT"):
        m = open_source("sample", symbol=symbol, start_date="2026-03-03")
        minute = m.quotes["time"].dt.tz_convert("America/New_York").dt.strftime("%H:%M")
        quotes = m.quotes[minute < "10:00"].reset_index(drop=True)
        minute = m.trades["time"].dt.tz_convert("America/New_York").dt.strftime("%H:%M")
        out[symbol] = Market(quotes, m.trades[minute < "10:00"].reset_index(drop=True), symbol, m.tz, m.kind, m.source, {}, [])
    return out


BASE = {"session_end": None, "min_spread_bps": 0.0, "gamma": 5e-5}
SETTINGS = grid(k=[100.0, 200.0], qty=[100.0, 200.0])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True


def gone(pids, within=10.0) -> bool:
    end = time.monotonic() + within
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


# ---------------------------------------------------------------- names

@dataclass(frozen=True)
class Dot:
    x: int
    y: float = 0.5


def test_keys_follow_what_makes_a_result(monkeypatch):
    key = functools.partial(task_key, random_walk)
    base = key({"a": 1, "b": [1.0, None, "x"]})
    assert base == key({"b": (1.0, None, "x"), "a": np.int64(1)}) and len(base) == 32
    others = [key({"a": 2, "b": [1.0, None, "x"]}), key({"a": 1.5}), key({"a": "1"}), key({"a": 1}), key({"a": True}), key(Dot(1)), key(Dot(2)), key({"x": 1, "y": 0.5}),
              key({"a": 1}, shared={"t": pd.DataFrame({"x": [1.0]})}), key({"a": 1}, shared={"t": pd.DataFrame({"x": [2.0]})}), key({"a": 1}, shared={"t": pd.DataFrame({"x": [1]})}),
              key({"a": np.zeros(2)}), key({"a": np.zeros((2, 1))}), key({"a": np.zeros(2, dtype=np.float32)}), task_key("farm_tasks:square", {"a": 1}), key({"a": random_walk})]
    assert len({base, *others}) == 1 + len(others)
    for name, value in (("sources_digest", lambda: "other"), ("_versions", lambda: {"numpy": "9"})):
        with monkeypatch.context() as m:
            m.setattr(farm, name, value)
            assert key({"a": 1, "b": [1.0, None, "x"]}) != base, f"{name} is in the key"


def test_random_numbers_follow_the_task_and_nothing_else(monkeypatch):
    a = task_rng(WALKS[0]).integers(2**62, size=4)
    assert (a == task_rng(dict(reversed(WALKS[0].items()))).integers(2**62, size=4)).all() and (a != task_rng(WALKS[1]).integers(2**62, size=4)).all()
    monkeypatch.setattr(farm, "_versions", lambda: {"numpy": "9"})
    assert (a == task_rng(WALKS[0]).integers(2**62, size=4)).all(), "a new version draws no other sample"


def test_the_code_of_a_function_is_in_its_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_code.py").write_text("def f(task):\n    return {'x': 1}\n")
    before = task_key("own_code:f", {})
    (tmp_path / "own_code.py").write_text("def f(task):\n    return {'x': 2}\n")
    assert task_key("own_code:f", {}) != before


def test_refusals_name_the_remedy(tmp_path):
    for call, says in ((lambda: name_of(lambda t: t), "top of a module"), (lambda: name_of("math.sqrt"), "module:function"), (lambda: find_function("no_such:f"), "cannot be imported"),
                       (lambda: task_key(random_walk, {"f": {1}}), "tasks are made of"), (lambda: run_tasks(random_walk, WALKS, engine="threads"), "one of"),
                       (lambda: run_tasks(random_walk, WALKS, workers=0), "workers = 0"), (lambda: run_tasks(random_walk, WALKS, retries=-1), "retries"),
                       (lambda: run_tasks(random_walk, WALKS, timeout_s=0.0), "timeout_s"), (lambda: run_tasks(random_walk, WALKS, timeout_s=1.0, engine="serial"), "cannot be ended"),
                       (lambda: run_tasks("__main__:f", WALKS), "put it into a module"), (lambda: sweep_tasks(markets(), SETTINGS, worlds=["no"]), "one of"),
                       (lambda: sweep_tasks({"BIGT": "sample"}, SETTINGS), "list the days"), (lambda: sweep_tasks(markets(), [{"k": 1.0}, {"k": 1.0}]), "twice")):
        with pytest.raises(ParameterError, match=says):
            call()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ParameterError, match="is a file"):
        run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "file")


# ---------------------------------------------------------------- the store

def test_the_store_keeps_values_and_types(tmp_path):
    rows = [{"a": 1, "b": 0.1 + 0.2, "c": "x", "d": None, "e": np.array([1.0, np.nan, -0.0]), "f": True}, {"n": [], "m": [1, 2]}]
    results = FarmResults((0, 1), ("k0", "k1"), {}, 2, 0, ResultStore(tmp_path / "s"))
    for i, row in enumerate(rows):
        results.store.add(f"k{i}", farm._body_of(f"k{i}", i, row, 0.1))
    got = results.rows(0).iloc[0]
    assert (got["a"], got["b"], got["c"], got["d"], bool(got["f"])) == (1, 0.1 + 0.2, "x", None, True)
    assert got["e"].tobytes() == rows[0]["e"].tobytes(), "bit for bit, minus zero and all"
    before = results.digest()
    assert results.store.compact() == 2 and len(list((tmp_path / "s").glob("many-*"))) == 2, "two kinds, two files"
    assert not [p for p in (tmp_path / "s").iterdir() if not p.name.startswith("many-")]
    again = ResultStore(tmp_path / "s")
    assert again.keys() == {"k0", "k1"} and FarmResults((0, 1), ("k0", "k1"), {}, 2, 0, again).digest() == before


def test_compaction_by_the_way_and_twice(tmp_path):
    done = run_tasks(random_walk, WALKS, engine="serial", store=ResultStore(tmp_path / "s", loose=5))
    assert len(list((tmp_path / "s").glob("many-*"))) == 2 and len(list((tmp_path / "s").glob("*.parquet"))) == 4
    assert done.digest() == run_tasks(random_walk, WALKS, engine="serial").digest()
    again = run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "s")
    assert (again.ran, again.kept, again.digest()) == (0, 12, done.digest())
    whole = pd.read_parquet(tmp_path / "s")  # any reader of Parquet sees one table
    assert len(whole) == 12 and sorted(json.loads(t)["walk"] for t in whole["_task"]) == list(range(12)) and (whole["_seconds"] >= 0).all()


def test_a_crash_during_compaction_loses_nothing(tmp_path, monkeypatch):
    done = run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "s")
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            done.store.compact()
    store = ResultStore(tmp_path / "s")  # every result twice
    assert len(list((tmp_path / "s").glob("*.parquet"))) == 13 and len(store.keys()) == 12
    again = run_tasks(random_walk, WALKS, engine="serial", store=store)
    assert (again.ran, again.digest()) == (0, done.digest()) and len(again.table()) == 12
    store.compact()
    assert len(list((tmp_path / "s").glob("*.parquet"))) == 1 and run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "s").digest() == done.digest()


def test_a_file_that_is_not_whole_is_done_again(tmp_path):
    done = run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "s")
    victim = tmp_path / "s" / f"{done.keys[4]}.parquet"
    victim.write_bytes(victim.read_bytes()[:-20])
    again = run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "s")
    assert (again.ran, again.kept, again.digest()) == (1, 11, done.digest())
    body = bytearray(victim.read_bytes())
    body[10:200] = b"\0" * 190
    body[-30:-8] = b"\xff" * 22
    victim.write_bytes(bytes(body))
    with pytest.raises(DataError, match="delete it"):
        run_tasks(random_walk, WALKS, engine="serial", store=tmp_path / "s").digest()


def test_results_that_are_no_tables_are_failures():
    got = run_tasks("farm_tasks:trouble", [{"do": "odd"}, {"do": "fine"}], engine="serial")
    assert len(got.failures) == 1 and list(got.table()["do"]) == ["fine"]
    with pytest.raises(DataError, match="no result"):
        got.rows(0)


# ---------------------------------------------------------------- engines

def test_serial_and_processes_agree_in_any_order_and_number():
    one = run_tasks(random_walk, WALKS, engine="serial")
    for workers, engine, tasks in ((2, "processes", WALKS[5:] + WALKS[:5]), (None, "serial", WALKS[::-1])):
        other = run_tasks(random_walk, tasks, workers=workers, engine=engine)
        assert other.digest() == one.digest() and other.table().equals(one.table())
        assert other.by_task() == [one.by_task()[WALKS.index(t)] for t in tasks]
    assert run_tasks(random_walk, WALKS + WALKS[:3], engine="serial").ran == 12, "a task that is there twice is done once"
    assert run_tasks(random_walk, [], workers=2).table().empty


def test_workers_have_one_thread_the_shared_data_and_our_path(capfd):
    told = []
    got = run_tasks("farm_tasks:threads", [{"n": i} for i in range(3)], workers=2, progress=lambda *a: told.append(a))
    assert {(r["omp"], r["numba"]) for r in got.by_task()} == {("1", 1)} and os.getpid() not in {r["pid"] for r in got.by_task()}
    assert told == [(0, 3, 0), (1, 3, 0), (2, 3, 0), (3, 3, 0)]
    x = np.arange(5.0)
    looked = [run_tasks("farm_tasks:look", [{"n": i} for i in range(4)], engine=e, workers=1, shared={"x": x}) for e in ("serial", "processes")]
    assert [r["sum"] for r in looked[1].by_task()] == [10.0, 11.0, 12.0, 13.0] and looked[0].digest() == looked[1].digest()
    assert capfd.readouterr() == ("", "")


def test_workers_load_compiled_code_instead_of_compiling():
    market = markets()["BIGT"]
    Backtest(market.quotes, trades=market.trades, session_end=None).run(rng=np.random.default_rng(1))  # compiled here, if it ever was not
    got = run_tasks("farm_tasks:cache_hits", [{"n": 0}], workers=1, shared={"market": market})
    assert not got.failures and got.by_task()[0]["compiled"] == 0 and got.by_task()[0]["loaded"] > 0


def test_failures_are_reported_and_not_fatal(capfd):
    words = ["a", "exit", "raise", "kill", "b", "sleep", "sys.exit", "c", "print"]
    got = run_tasks("farm_tasks:trouble", [{"do": w} for w in words], workers=2, timeout_s=0.5)
    why = dict(zip([json.loads(t)["do"] for t in got.failed()["task"]], got.failed()["why"], strict=True))
    assert sorted(got.table()["do"]) == ["a", "b", "c", "print"] and list(got.failed()["number"]) == [1, 2, 3, 5, 6]
    assert why["exit"] == "its worker ended with exit code 3" and "SIGKILL" in why["kill"] and "limit of 0.5 s" in why["sleep"]
    assert why["raise"].startswith("RuntimeError: by request (farm_tasks.py:") and why["sys.exit"].startswith("SystemExit")
    out, err = capfd.readouterr()
    assert out == "" and err == "a task that talks\n", "what a task prints does not get among the answers"


def test_failed_tasks_are_tried_again_by_the_next_run(tmp_path):
    task = [{"mark": str(tmp_path / "mark")}]
    assert run_tasks("farm_tasks:once", task, workers=1, retries=1).failures == {}, "a worker's death may be the machine's fault"
    shy = [{"wait": str(tmp_path / "flag")}]
    first = run_tasks("farm_tasks:needs_a_flag", shy, engine="serial", store=tmp_path / "s")
    assert "FileNotFoundError" in next(iter(first.failures.values())) and not list((tmp_path / "s").iterdir())
    (tmp_path / "flag").touch()
    second = run_tasks("farm_tasks:needs_a_flag", shy, engine="serial", store=tmp_path / "s")
    assert second.failures == {} and second.ran == 1


def test_workers_with_other_sources_are_refused(monkeypatch):
    monkeypatch.setattr(farm, "sources_digest", lambda: "0" * 16)
    with pytest.raises(MakerlabError, match="other makerlab sources"):
        run_tasks(random_walk, WALKS, workers=1)


def test_workers_that_cannot_start_end_the_run(monkeypatch):
    monkeypatch.setattr(farm, "_START", "import os; os._exit(5)")
    with pytest.raises(MakerlabError, match="do not start: its worker ended with exit code 5"):
        run_tasks(random_walk, WALKS, workers=1)


# ---------------------------------------------------------------- death of the driver

DRIVER = """
import sys
sys.path.insert(0, {here!r})
from makerlab.backtest.farm import ResultStore, run_tasks
try:
    run_tasks("farm_tasks:nap", [dict(n=i, s={s}, log={log!r}) for i in range({n})], workers=2, store=ResultStore({store!r}, loose={loose}))
except KeyboardInterrupt:
    sys.exit(130)
"""


def drive(tmp_path, *, n=12, s=0.05, loose=1000):
    code = DRIVER.format(here=str(HERE), s=s, n=n, log=str(tmp_path / "log"), store=str(tmp_path / "s"), loose=loose)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def lines(tmp_path, kind="end"):
    log = tmp_path / "log"
    return [line.split() for line in log.read_text().splitlines() if line.startswith(kind)] if log.exists() else []


def wait_for(condition, driver, within=60.0):
    end = time.monotonic() + within
    while not condition():
        assert driver.poll() is None, driver.stderr.read().decode()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@posix
@pytest.mark.parametrize("finished, loose", [(0, 1000), (3, 1000), (7, 2), *(pytest.param(n, loose, marks=pytest.mark.slow) for n in (1, 5, 9, 11) for loose in (2, 3, 1000))])
def test_kill_9_loses_at_most_the_running_tasks_and_repeats_none(tmp_path, finished, loose):
    "Killed before the first result, in the middle, and with compaction going on at every second one."
    driver = drive(tmp_path, loose=loose)
    wait_for(lambda: len(lines(tmp_path, "start")) > 0 and len(lines(tmp_path)) >= finished, driver)
    driver.kill()
    driver.wait()
    for pipe in (driver.stdout, driver.stderr):
        pipe.close()
    workers = {int(pid) for *_, pid in lines(tmp_path, "start")}
    assert gone(workers), "workers end with their driver"
    ended, stored = {int(n) for _, n, _ in lines(tmp_path)}, len(ResultStore(tmp_path / "s").keys())
    assert len(ended) - 2 <= stored <= len(ended), "at most one finished result a worker was not yet written"
    tasks = [dict(n=i, s=0.05, log=str(tmp_path / "log")) for i in range(12)]
    before = len(lines(tmp_path, "start"))
    again = run_tasks("farm_tasks:nap", tasks, engine="serial", store=tmp_path / "s")
    assert (again.kept, again.ran, again.failures) == (stored, 12 - stored, {})
    assert len(lines(tmp_path, "start")) - before == 12 - stored, "none is repeated"
    assert sorted(again.table()["n"]) == list(range(12))
    third = run_tasks("farm_tasks:nap", tasks, engine="serial", store=tmp_path / "s")
    assert (third.ran, third.digest()) == (0, again.digest())
    assert [r["x"] for r in again.by_task()] == [float(task_rng(t).standard_normal()) for t in tasks], "as if nothing had happened"


@posix
def test_an_interrupt_leaves_whole_files_and_no_workers(tmp_path):
    driver = drive(tmp_path, s=0.2)
    wait_for(lambda: len(lines(tmp_path)) >= 2, driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    out, err = driver.communicate(timeout=20)
    assert (driver.returncode, out, err) == (130, b"", b"")
    assert gone({int(pid) for *_, pid in lines(tmp_path, "start")})
    files = list((tmp_path / "s").iterdir())
    assert files and all(pq.ParquetFile(p).read().num_rows == 1 for p in files), "no part of a file is left"


# ---------------------------------------------------------------- sweeps

def test_one_cell_is_the_sweep_of_before():
    "The farm's table of one symbol-day is what `sweep` gives on it, to the last digit."
    m = farm._day_of(markets()["BIGT"], "2026-03-03", "America/New_York")
    got = farm_sweep({"BIGT": markets()["BIGT"]}, SETTINGS, days=["2026-03-03"], base=BASE, engine="serial")
    base = Backtest(m.quotes, trades=m.trades, session_end=None, params=Backtest(m.quotes, trades=m.trades).params.replace(min_spread_bps=0.0, gamma=5e-5))
    run = runner(base)
    want = sweep(lambda v: run(v), SETTINGS)
    pd.testing.assert_frame_equal(got.worlds["snapshot"].table, want.table, check_exact=True)
    assert got.worlds["snapshot"].trials.pnl().equals(want.trials.pnl())


REDUCED = {"A": 0.3, "min_spread_bps": 0.0, "gamma": 5e-5}


def both(**more):
    return farm_sweep(markets(), SETTINGS, worlds=["snapshot", "reduced-form"], base=REDUCED, own={"BIGT": {"strategy": "as"}}, **more)


def test_symbols_days_worlds_and_batches_make_one_answer(tmp_path):
    got = both(engine="serial")
    assert len(got.results.tasks) == 2 * 2 * 2 and len(got.cells) == 32 and not got.missing and list(got.worlds) == ["snapshot", "reduced-form"]
    for world, found in got.worlds.items():
        sums = got.cells[got.cells["world"] == world].groupby("variant")["total"].sum()
        np.testing.assert_allclose(found.table["total"], sums[found.table.index], rtol=1e-12)
        assert set(found.trials.days) == {"2026-03-03", "2026-03-04"}
        walk = got.walk_forward(world, rng=np.random.default_rng(1))
        assert len(walk.splits) == 1 and (found.trials.days == "2026-03-04").sum() == walk.splits["bars"].iloc[0]
    cut = both(workers=2, batch=3, store=tmp_path / "s")
    assert len(cut.results.tasks) == 16 and cut.table().equals(got.table()) and cut.cells.equals(got.cells)
    again = both(engine="serial", batch=3, store=tmp_path / "s")
    assert (again.results.ran, again.results.digest()) == (0, cut.results.digest())


def test_a_new_day_renames_nothing(tmp_path):
    day = lambda days: farm_sweep(markets(), SETTINGS[:1], days=days, base=REDUCED, engine="serial", store=tmp_path / "s").results  # noqa: E731
    one, two = day(["2026-03-03"]), day(["2026-03-03", "2026-03-04"])
    assert (one.ran, two.ran, two.kept) == (2, 2, 2)
    m = markets()["BIGT"]
    touched = Market(m.quotes.assign(ask=m.quotes["ask"] + 0.01), m.trades, m.symbol, m.tz, m.kind, m.source, {}, [])
    other = farm_sweep({"BIGT": touched}, SETTINGS[:1], days=["2026-03-03"], base=REDUCED, engine="serial", store=tmp_path / "s").results
    assert (other.ran, other.kept) == (1, 0), "another quote is another result"


def test_variants_and_worlds_share_the_random_numbers_of_their_cell():
    tasks = sweep_tasks(markets(), SETTINGS, worlds=["snapshot", "reduced-form"], base=REDUCED)
    first = {(t.symbol, t.day): t.rng().integers(2**62) for t in tasks if t.world == "snapshot"}
    assert len(set(first.values())) == 4 and all(t.rng().integers(2**62) == first[t.symbol, t.day] for t in tasks)
    same = farm_sweep({"BIGT": markets()["BIGT"]}, grid(kappa=[0.0, 0.001]), worlds=["reduced-form"], base=REDUCED, engine="serial")
    a, b = same.worlds["reduced-form"].trials.series.values()
    assert a.equals(b) and a.abs().sum() > 0, "`as` does not read kappa: the two must be one"


def test_a_refused_variant_counts_and_a_lost_cell_is_left_out_for_all(monkeypatch):
    got = farm_sweep(markets(), grid(k=[100.0, -1.0, 200.0]), base=REDUCED, engine="serial", unrecorded=5)
    found = got.worlds["snapshot"]
    assert list(found.failed) == ["k=-1"] and "BIGT, 2026-03-03" in found.failed["k=-1"] and len(found.trials) == 3 + 5 and not got.missing
    tasks = sweep_tasks(markets(), SETTINGS, base=REDUCED)
    whole = run_tasks(run_symbol_day, tasks, engine="serial", shared={"markets": markets()}, shared_in_keys=False)
    lost = FarmResults(whole.tasks, whole.keys, {whole.keys[0]: "its worker died"}, 4, 0, whole.store)
    part, without = gather_cells(lost, SETTINGS), gather_cells(FarmResults(whole.tasks[1:], whole.keys[1:], {}, 3, 0, whole.store), SETTINGS)
    assert part.missing == {"snapshot, BIGT, 2026-03-03": "its worker died"} and part.table().equals(without.table())
    monkeypatch.setitem(WORLDS, "broken", "farm_tasks:broken_world")
    with pytest.raises(DataError, match="no cell has a result; the first said: its worker ended with exit code 4"):
        farm_sweep({"BIGT": markets()["BIGT"]}, SETTINGS, worlds=["broken"], days=["2026-03-03"], workers=1)


TOLD = {"strategy": "naive", "half_spread": 0.02, "max_inventory": 1000.0, "horizon_s": 300.0, "min_spread_bps": 0.0}


@functools.cache
def tape():
    "Five minutes of a market that knows its orders."
    from makerlab.execution.order_flow import PRESETS, simulate_flow
    return simulate_flow(PRESETS["small-tick"], seconds=300.0, seed=4).events


def test_the_farm_knows_the_worlds_of_the_ladder():
    from makerlab import replay
    assert set(WORLDS) == set(replay.WORLDS)
    for fn in WORLDS.values():
        assert callable(find_function(fn))


def test_worlds_of_events_agree_on_processes_and_in_one_and_go_on(tmp_path):
    made = dict(worlds=["snapshot", "l2-replay", "l3-replay", "market"], base=TOLD, tz="UTC", store=tmp_path)
    here = farm_sweep({"MADE": tape()}, grid(qty=[100.0, 200.0]), engine="serial", **made | {"store": None})
    away = farm_sweep({"MADE": tape()}, grid(qty=[100.0, 200.0]), workers=2, **made)
    assert away.results.digest() == here.results.digest() and not here.missing and list(here.worlds) == made["worlds"]
    assert (here.cells["fills"] > 0).all() and here.cells.groupby("world")["total"].nunique().min() == 2
    assert here.cells.loc[here.cells["world"] == "l2-replay", "note"].str.contains("risk-averse").all()
    lost = sorted(tmp_path.glob("*.parquet"))
    if len(lost) > 1:  # one result is lost: that one is done again
        lost[0].unlink()
        again = farm_sweep({"MADE": tape()}, grid(qty=[100.0, 200.0]), engine="serial", **made)
        assert (again.results.ran, again.results.kept) == (1, 3) and again.results.digest() == here.results.digest()


def test_a_world_that_a_source_cannot_give_is_one_reported_failure():
    from makerlab.data.events import depth_of
    got = farm_sweep({"MADE": depth_of(tape())}, grid(qty=[100.0, 200.0]), worlds=["l2-replay", "l3-replay"], base=TOLD, tz="UTC", engine="serial")
    assert list(got.worlds) == ["l2-replay"] and len(got.results.failures) == 1 and len(got.missing) == 1
    assert next(iter(got.missing)).startswith("l3-replay, MADE") and "the source has levels, without order ids" in next(iter(got.missing.values()))
    with pytest.raises(DataError, match="no cell has a result.*order ids"):
        farm_sweep({"BIGT": markets()["BIGT"]}, SETTINGS, worlds=["l3-replay"], days=["2026-03-03"], engine="serial")


def test_the_queue_model_is_a_setting_of_one_world():
    got = farm_sweep({"MADE": tape()}, grid(queue=["risk-averse", "log-prob"]), worlds=["l2-replay", "l3-replay"], base=TOLD | {"qty": 100.0}, tz="UTC", engine="serial")
    fills = got.worlds["l2-replay"].table["fills"]
    assert fills["queue=log-prob"] > fills["queue=risk-averse"] > 0
    assert list(got.worlds) == ["l2-replay"] and "queue: no such setting" in got.missing["l3-replay, every symbol, every day"]


def test_a_replay_in_the_farm_is_the_ladder_s():
    from makerlab.backtest.pipeline import Config
    from makerlab.models.quoting import QuoteParams
    from makerlab.replay import _common, climb, stage_of
    day = farm.days_of(farm.market_of(tape()), tz="UTC")[0]
    whole = farm._day_of(farm.market_of(tape()), day, "UTC")
    got = farm_sweep({"MADE": tape()}, grid(qty=[100.0]), days=[day], worlds=["l3-replay"], base=TOLD, tz="UTC", engine="serial")
    params = QuoteParams(**{n: v for n, v in TOLD.items() if n not in ("strategy", "horizon_s")}, qty=100.0)
    want = climb(stage_of(whole, whole, tape()), _common("naive", params, Config(), 300.0), world="l3-replay")
    assert got.cells["total"].sum() == pytest.approx(want.attribution.total, rel=1e-9) and got.cells["fills"].sum() == want.fills["maker"].sum()


def test_a_search_over_worlds_is_the_same_on_every_engine(tmp_path):
    from makerlab.backtest.pipeline import Config
    from makerlab.backtest.replay_job import sweep_worlds
    made = dict(worlds=["snapshot", "l3-replay"], config=Config(strategy="naive", calibration_s=75.0, max_inventory=500.0), splits=0)
    here, away = (sweep_worlds(tape(), {"half_spread": [0.01, 0.02]}, **made, **how) for how in ({"engine": "serial"}, {"workers": 2, "resume": tmp_path}))
    for world in made["worlds"]:
        assert here.searches[world].results.table.to_csv() == away.searches[world].results.table.to_csv()
    assert {p.parent.name for p in here.save(tmp_path / "out")} == set(made["worlds"])


def test_files_are_read_by_the_workers_and_named_by_their_bytes(tmp_path):
    m = markets()["BIGT"]
    for day in ("2026-03-03", "2026-03-04"):
        farm._day_of(m, day, "America/New_York").quotes.to_parquet(tmp_path / f"{day}.quotes.parquet")
    digests = {d: source_digest(tmp_path, day=d) for d in ("2026-03-03", "2026-03-04", "2026-03-05")}
    assert len(set(digests.values())) == 3
    (tmp_path / "2026-03-06.quotes.parquet").write_bytes(b"more")
    assert source_digest(tmp_path, day="2026-03-03") == digests["2026-03-03"] and source_digest(tmp_path, day="2026-03-05") != digests["2026-03-05"]
    (tmp_path / "2026-03-06.quotes.parquet").unlink()
    from makerlab.execution.fills import PoissonFills
    poisson = REDUCED | {"fills": PoissonFills(A=0.3, k=100.0), "session_end": None}
    a = farm_sweep({"BIGT": tmp_path / "2026-03-03.quotes.parquet"}, SETTINGS[:2], days=["2026-03-03"], base=poisson, engine="serial")
    b = farm_sweep({"BIGT": Market(m.quotes, None, "BIGT", m.tz, "parquet", "", {}, [])}, SETTINGS[:2], days=["2026-03-03"], base=poisson, engine="serial")
    assert a.table().equals(b.table())


def test_summary_and_table_of_a_sweep_have_one_interval():
    found = farm_sweep({"BIGT": markets()["BIGT"]}, SETTINGS, base=REDUCED, engine="serial").worlds["snapshot"]
    s, row = found.summary(), found.table.loc[found.best]
    assert tuple(s.loc["lower end of the total", ["raw", "deflated"]]) == (row["lo"], row["lo_all"])
    assert tuple(s.loc["upper end of the total", ["raw", "deflated"]]) == (row["hi"], row["hi_all"])
    assert f"[{row['lo']:,.4g}, {row['hi']:,.4g}]" in s.loc["lower end of the total", "note"]


def test_the_command_says_the_same_on_every_engine_and_goes_on_where_it_was(tmp_path):
    from typer.testing import CliRunner

    from makerlab.cli import app

    def call(*more):
        done = CliRunner().invoke(app, ["sweep", "sample", "--symbol", "BIGT", "--end-date", "2026-03-02", "--vary", "skew=0.5,1", "--vary", "strategy=as,cj", "--vary", "max_inventory=50,1000",
                                        "--splits", "2", "--json", *map(str, more)])
        assert (done.exit_code, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)
    plain = call()
    assert plain["variants"] == 8 and plain["failed"]
    assert call("--workers", 2, "--resume", tmp_path / "kept") == plain
    first = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kept").iterdir()}
    assert len(first) == 8, "a refusal is kept too"
    assert call("--engine", "serial", "--resume", tmp_path / "kept") == plain and {p.name: p.stat().st_mtime_ns for p in (tmp_path / "kept").iterdir()} == first
    for wrong, says in ((("--engine", "threads"), "one of 'processes', 'ray', 'serial'"), (("--workers", "0"), "workers = 0")):
        done = CliRunner().invoke(app, ["sweep", "sample", "--symbol", "BIGT", "--end-date", "2026-03-02", "--vary", "skew=1,2", *wrong])
        assert done.exit_code == 2 and says in done.stderr
