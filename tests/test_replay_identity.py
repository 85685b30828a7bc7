"Replay against hftbacktest: the position at every ring of the timer and every fill are the same, on generated feeds and on a real recording."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, peers_python, real

from makerlab.backtest.replay import ConstantLatency, EmpiricalLatency, Replay
from makerlab.core import to_ns
from makerlab.data.crypto import load_binance
from makerlab.data.events import Events, read_hftbacktest, to_hftbacktest
from makerlab.models.quoting import QuoteParams

pytestmark = pytest.mark.peer
SCRIPT = ROOT / "bench" / "peer_replay.py"


def peer(folder: Path, events: Events, **settings) -> dict:
    "Positions and fills of hftbacktest, run in its own environment; skips, and says so, where there is none."
    python = peers_python()
    np.save(folder / "rows.npy", to_hftbacktest(events))
    table = settings.pop("latency", None)
    if table is not None:
        np.save(folder / "latency.npy", table)
        settings["latency"] = str(folder / "latency.npy")
    base = dict(data=str(folder / "rows.npy"), tick=events.tick_size, lot=events.lot_size, depth="hash", send_ns=1_000_000, back_ns=1_000_000, marks=400_000, fills=400_000)
    (folder / "settings.json").write_text(json.dumps(base | settings))
    done = subprocess.run([python, str(SCRIPT), str(folder / "settings.json")], input=f"save {folder / 'out.npz'}\n", capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    out = np.load(folder / "out.npz")
    return json.loads(done.stdout.splitlines()[-1]) | {"positions": out["positions"], "at": out["fills"]}


def same(folder: Path, events: Events, *, queue: str, half: float, skew: float, qty: float, most: float, interval_ms: float, latency=None, send=1_000_000, back=1_000_000, **more) -> int:
    "Run both engines on one array; all positions and fills are compared. The number of fills."
    order = ConstantLatency(send, back) if latency is None else EmpiricalLatency(latency)
    res = Replay(events, params=QuoteParams(qty=qty, max_inventory=most, x0=half, x1=skew), queue=queue, interval_ms=interval_ms, order_latency=order).run(rng=np.random.default_rng(0))
    theirs = peer(folder, events, queue=queue, half_ticks=half, skew_ticks=skew, qty=qty, max_position=most, interval_ns=round(interval_ms * 1e6), send_ns=send, back_ns=back,
                  latency=latency, **more)
    lots = np.rint(theirs["positions"] / events.lot_size)
    assert len(lots) == len(res.positions)
    assert np.array_equal(lots, np.rint(res.positions / events.lot_size))
    f = res.fills
    mine = np.column_stack([to_ns(f["time"]), f["side"], np.rint(f["price"] / events.tick_size), np.rint(f["qty"] / events.lot_size), f["order_id"]])
    told = theirs["at"].copy()
    told[:, 3] = np.rint(told[:, 3] / events.lot_size)
    # a fill whose news was still under way at the end is ours alone
    assert np.array_equal(mine[np.argsort(mine[:, 4])][: len(told)], told[np.argsort(told[:, 4])]) and len(mine) - len(told) <= 4
    assert res.info["orders"] == theirs["orders"]
    return len(told)


@pytest.fixture(scope="module")
def feeds(tmp_path_factory):
    "Feeds of the generator that comes with the task, by seed."
    generator = ROOT.parent / "shared" / "bench" / "gen_feed.py"
    if not generator.exists():
        pytest.skip("PEER: ../shared/bench/gen_feed.py is not here")
    made: dict[int, Events] = {}

    def feed(seed: int, rows: int = 60_000) -> Events:
        if seed not in made:
            folder = tmp_path_factory.mktemp(f"feed{seed}")
            subprocess.run([sys.executable, str(generator), str(rows), str(seed)], env=os.environ | {"FEED_DIR": str(folder)}, check=True, capture_output=True)
            made[seed] = read_hftbacktest(folder / "feed_hbt.npy", tick_size=0.01, lot_size=1.0)
        return made[seed]

    return feed


GRID = [(7, "risk-averse", 1.0, 0.1, 100.0), (7, "power-prob:3", 1.0, 0.1, 100.0), (11, "risk-averse", 0.5, 0.05, 37.0), (11, "power-prob:3", 0.5, 0.0, 37.0),
        (12, "power-prob:1", 0.1, 0.3, 250.0), (13, "risk-averse", 1.5, 0.21, 20.0), (13, "power-prob:2", 0.25, 0.03, 100.0)]


@pytest.mark.parametrize("seed, queue, half, skew, interval_ms", GRID)
def test_the_same_as_hftbacktest_on_generated_feeds(tmp_path, feeds, seed, queue, half, skew, interval_ms):
    assert same(tmp_path, feeds(seed), queue=queue, half=half, skew=skew, qty=5.0, most=40.0, interval_ms=interval_ms) > 20


@pytest.mark.parametrize("send, back", [(0, 0), (3_000_000, 45_000_000), (180_000_000, 60_000_000)])
def test_the_same_at_other_latencies(tmp_path, feeds, send, back):
    assert same(tmp_path, feeds(7), queue="power-prob:3", half=0.5, skew=0.1, qty=3.0, most=12.0, interval_ms=100.0, send=send, back=back) > 20


def test_the_same_with_recorded_latencies(tmp_path, feeds):
    events, rng = feeds(11), np.random.default_rng(5)
    sent = np.arange(events.exch_ns[0] - 10**9, events.exch_ns[-1] + 10**9, 700_000_000, dtype=np.int64)
    exch = sent + rng.integers(300_000, 9_000_000, len(sent))
    table = np.column_stack([sent, exch, exch + rng.integers(300_000, 9_000_000, len(sent))])
    assert same(tmp_path, events, queue="risk-averse", half=0.5, skew=0.1, qty=3.0, most=12.0, interval_ms=100.0, latency=table) > 20


@pytest.mark.realdata
@pytest.mark.parametrize("name, half, skew, interval_ms", [("usdm_btcusdt_20240808.gz", 20.0, 400.0, 50.0), ("spot_btcusdt_20240808.gz", 100.0, 5000.0, 100.0)])
@pytest.mark.parametrize("queue", ["risk-averse", "power-prob:3"])
def test_the_same_on_a_binance_recording(tmp_path, name, half, skew, interval_ms, queue):
    events = load_binance(real(f"hftbacktest_binance/{name}"))
    assert same(tmp_path, events, queue=queue, half=half, skew=skew, qty=0.004, most=0.02, interval_ms=interval_ms) > 5
