"The farm on a Ray cluster of three nodes (three raylets on this machine): the same answer, and no failure fatal."
import dataclasses
import functools
import os
from pathlib import Path

import pytest

try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    pytest.skip("RAY: not installed (pip install 'makerlab[scale]'): no engine but processes and serial was tested", allow_module_level=True)

from makerlab.backtest.farm import farm_sweep, random_walk, run_tasks, task_rng
from makerlab.backtest.sweep import grid
from makerlab.core import ParameterError
from makerlab.data.source import open_source

HERE = Path(__file__).parent
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    "Three nodes with a core each; all of it ends with the module, whatever happens."
    made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        for _ in range(2):
            made.add_node(**NODE)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def test_a_cluster_gives_what_one_process_gives(cluster, tmp_path, capfd):
    "A small sweep of two worlds: shared data by the object store, results in a store, resumed by another engine."
    whole = open_source("sample", symbol="BIGT", start_date="2026-03-04")
    market = dataclasses.replace(whole, quotes=whole.quotes[:12_000])
    sweep = functools.partial(farm_sweep, {"BIGT": market}, grid(k=[100.0, 200.0, 300.0]), worlds=["snapshot", "reduced-form"], base={"A": 0.3, "min_spread_bps": 0.0}, batch=1)
    here = sweep(engine="serial")
    there = sweep(engine="ray", address=cluster.address, store=tmp_path / "s")
    assert there.results.digest() == here.results.digest() and there.table().equals(here.table()) and there.results.ran == 6
    again = sweep(engine="serial", store=tmp_path / "s")
    assert (again.results.ran, again.results.digest()) == (0, here.results.digest())
    assert not ray.is_initialized(), "what we connect we also disconnect"
    assert capfd.readouterr() == ("", "")


def test_failures_and_deaths_on_a_cluster(cluster):
    words = ["a", "exit", "raise", "b", "sleep", "kill", "c"]
    got = run_tasks("farm_tasks:trouble", [{"do": w} for w in words], engine="ray", address=cluster.address, workers=3, timeout_s=1.0)
    assert sorted(got.table()["do"]) == ["a", "b", "c"] and list(got.failed()["number"]) == [1, 2, 4, 5]
    why = list(got.failed()["why"])
    assert "died" in why[0] and why[1].startswith("RuntimeError: by request (farm_tasks.py:") and "limit of 1 s" in why[2] and "died" in why[3]


def test_several_nodes_do_the_work_and_a_lost_one_is_no_loss(cluster, tmp_path):
    "A connection that was there before is used and left; a node that goes takes one try of its task with it."
    doomed = cluster.add_node(**NODE)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        def lose(done, total, failed):
            if done == 12:
                cluster.remove_node(doomed, allow_graceful=False)
        tasks = [{"n": i, "s": 0.15, "log": str(tmp_path / "log")} for i in range(40)]
        got = run_tasks("farm_tasks:nap", tasks, engine="ray", workers=4, retries=2, progress=lose)
        assert not got.failures and [r["x"] for r in got.by_task()] == [float(task_rng(t).standard_normal()) for t in tasks]
        assert len({line.split()[2] for line in (tmp_path / "log").read_text().splitlines()}) > 1, "several workers"
        assert ray.is_initialized(), "a connection that was there is left"
    finally:
        ray.shutdown()


def test_an_address_without_a_cluster():
    with pytest.raises(ParameterError, match="nobody answers there"):
        run_tasks(random_walk, [{"steps": 3}], engine="ray", address="127.0.0.1:1")
