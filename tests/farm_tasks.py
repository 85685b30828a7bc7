"Tasks for the tests of the farm: workers import them from here by name."
import os
import signal
import time

import numpy as np


def square(task):
    return {"square": task["n"] ** 2}


def nap(task, rng):
    "Takes a moment, and leaves a line in a file when it starts and when it ends."
    with open(task["log"], "a") as f:
        f.write(f"start {task['n']} {os.getpid()}\n")
    time.sleep(task["s"])
    with open(task["log"], "a") as f:
        f.write(f"end {task['n']} {os.getpid()}\n")
    return {"n": task["n"], "x": float(rng.standard_normal())}


def trouble(task):
    if task["do"] == "exit":
        os._exit(3)
    if task["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task["do"] == "raise":
        raise RuntimeError("by request")
    if task["do"] == "sys.exit":
        raise SystemExit("by request")
    if task["do"] == "sleep":
        time.sleep(60)
    if task["do"] == "odd":
        return {"f": open}
    if task["do"] == "print":
        print("a task that talks")
    return {"do": task["do"]}


def once(task):
    "Dies the first time."
    if not os.path.exists(task["mark"]):
        open(task["mark"], "w").close()
        os._exit(9)
    return {"ok": True}


def needs_a_flag(task):
    "Raises while a file is not there."
    os.stat(task["wait"])
    return {"ok": True}


def threads(task):
    import numba
    return {"omp": os.environ.get("OMP_NUM_THREADS"), "numba": numba.config.NUMBA_NUM_THREADS, "pid": os.getpid()}


def look(task, shared):
    shared.memo["seen"] = shared.memo.get("seen", 0) + 1
    return {"sum": float(shared["x"].sum()) + task["n"]}


def cache_hits(task, shared):
    "How often the replay's kernel was compiled in this process, after a run of it."
    from makerlab.backtest.snapshot import Backtest, _replay_nb
    market = shared["market"]
    Backtest(market.quotes, trades=market.trades).run(rng=np.random.default_rng(1))
    stats = _replay_nb.stats
    return {"compiled": sum(stats.cache_misses.values()), "loaded": sum(stats.cache_hits.values())}


def broken_world(market):
    "A world whose variants end their process."
    def run(settings, rng):
        os._exit(4)
    return run
