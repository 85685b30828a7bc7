"""Row K: a sweep of symbol-days on one worker process and on two, and on one node and two of a Ray cluster (raylets on this machine): the gain, and the same digest.

Prints one JSON object. Times are of a whole run, workers' start included; `rate` leaves the start out: tasks a second after every worker has done one.
Wants two idle cores: on a busy machine the ratios say how busy it was. Ray is left out, and said so, when it is not installed. Takes about a minute.
"""

import json
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

from clock import describe

from makerlab.backtest.farm import run_symbol_day, run_tasks, sweep_tasks
from makerlab.backtest.sweep import grid
from makerlab.data.source import open_source

RUNS = 2
MARKETS = {s: open_source("sample", symbol=s) for s in ("BIGT", "SMLT")}
VARIANTS = grid(gamma=[1e-5, 3e-5, 1e-4], k=[50.0, 100.0, 200.0, 400.0], qty=[50.0, 100.0])
TASKS = sweep_tasks(MARKETS, VARIANTS, base={"min_spread_bps": 0.0}, batch=3)


def once(**how):
    "Seconds of a run, tasks a second once every worker works, the digest."
    marks, tic = [], time.perf_counter()
    got = run_tasks(run_symbol_day, TASKS, shared={"markets": MARKETS}, shared_in_keys=False, progress=lambda done, total, failed: marks.append(time.perf_counter()), **how)
    total, many = time.perf_counter() - tic, how.get("workers", 1)
    assert not got.failures, got.failures
    done = marks[1:]
    return total, (len(done) - many) / (done[-1] - done[many - 1]), got.digest()


def in_turn(ones, twos, **how):
    "RUNS runs with one worker and with two, in turn, so that both meet the same weather."
    for _ in range(RUNS):
        ones.append(once(workers=1, **how))
        twos.append(once(workers=2, **how))


def on_ray():
    "The same on a cluster of two nodes with a core each, of which one or both work; ends it."
    import ray
    from ray.cluster_utils import Cluster
    node, ones, twos = {"num_cpus": 1, "object_store_memory": 200_000_000}, [], []
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        in_turn(ones, twos, engine="ray", address=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {"Ray, one node": ones, "Ray, two nodes": twos}


def main():
    before, one, two = os.getloadavg()[0], [], []
    serial = once(engine="serial")  # compiles, and fills the cache that the workers read
    in_turn(one, two)
    runs = {"one process": one, "two processes": two}
    try:
        runs |= on_ray()
        from importlib.metadata import version
        ray_version = version("ray")
    except ImportError:
        ray_version = "not installed"
    rate = {n: statistics.median(r[1] for r in rows) for n, rows in runs.items()}
    time_of = lambda rows: describe([r[0] for r in rows])
    peers = {n: time_of(rows) | {"version": ray_version if n.startswith("Ray") else "", "note": f"{rate[n]:.3g} tasks/s once started"} for n, rows in runs.items() if n != "two processes"}
    ray_ratio = rate["Ray, two nodes"] / rate["Ray, one node"] if "Ray, two nodes" in rate else None
    report = {
        "row": "K",
        "work": f"{len(TASKS)} tasks, 2 symbols x 3 made days x {len(VARIANTS)} variants, 3 a task: tasks a second on two worker processes over one"
                + (f" (Ray, two nodes over one: {ray_ratio:.3g}x; whole runs, start included: {statistics.median(r[0] for r in one) / statistics.median(r[0] for r in two):.3g}x)" if ray_ratio else ""),
        "makerlab": time_of(two) | {"note": f"two processes, {rate['two processes']:.3g} tasks/s once started"},
        "peers": {"in this process": describe([serial[0]])} | peers,
        "ratio": rate["two processes"] / rate["one process"],
        "ratio_ray_nodes": ray_ratio,
        "load_before_and_after": [before, os.getloadavg()[0]],
        "target": 1.6,
        "answers_agree": len({serial[2], *(r[2] for rows in runs.values() for r in rows)}) == 1,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
