"""PERF.md row A: a replay of levels with queue position and latency, 4.0 M rows, beside hftbacktest.

Prints one JSON object. The feed is made by ../shared/bench/gen_feed.py (or MAKERLAB_FEED_GENERATOR), the peer runs in its own environment
(MAKERLAB_PEERS_PYTHON, or .venv-peers). Timed on both sides: the loop over the events with the reference strategy, from the first
row to the last, on arrays in memory. Not timed: reading the feed, and on our side the tables made afterwards (told as `with all tables`).
Memory is the peak of a process that does this work from the feed's file: hftbacktest reads the array whole, makerlab streams Parquet.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from clock import describe

HERE = Path(__file__).resolve().parent
PYTHON = os.environ.get("MAKERLAB_PEERS_PYTHON") or str(HERE.parent / ".venv-peers" / "bin" / "python")
GENERATOR = Path(os.environ.get("MAKERLAB_FEED_GENERATOR") or HERE.parent.parent / "shared" / "bench" / "gen_feed.py")
ROWS, RUNS, SEED = 4_000_000, 7, 7
HALF, SKEW, QTY, MOST, INTERVAL_MS, SEND_NS = 0.5, 0.05, 5.0, 40.0, 100.0, 1_000_000
QUEUES = ("risk-averse", "power-prob:3")


class Talker:
    "A process that answers each word with a JSON line."

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = json.loads(self.process.stdout.readline())

    def ask(self, word: str) -> dict:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(folder: str, queue: str) -> None:
    "Our side, in a process of its own, so that its memory can be told."
    import resource

    tic = time.perf_counter()
    from makerlab.backtest import replay as engine
    from makerlab.data.events import Events, write_events
    from makerlab.models.quoting import QuoteParams

    imported = time.perf_counter() - tic
    if queue.startswith("stream "):  # from a file, in chunks: what a replay of a long recording needs
        replay = engine.Replay(Path(folder) / "feed.parquet", params=QuoteParams(qty=QTY, max_inventory=MOST, x0=HALF, x1=SKEW), queue=queue[7:], interval_ms=INTERVAL_MS,
                               order_latency=engine.ConstantLatency(SEND_NS))
        run = engine._perform(replay, np.random.default_rng(0))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of the work that is timed; the tables come after it
        res = engine._results_of(replay, run, 0)
        print(json.dumps({"fills": len(res.fills), "digest": res.digest, "rss_mb": peak}), flush=True)
        return
    with np.load(Path(folder) / "feed_cols.npz") as z:
        events = Events(kind=z["kind"], side=z["side"], exch_ns=z["ets"], local_ns=z["lts"], tick=z["tick"], lots=z["qty"].astype(np.int64), tick_size=0.01, lot_size=1.0)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    replay = engine.Replay(events, params=QuoteParams(qty=QTY, max_inventory=MOST, x0=HALF, x1=SKEW), queue=queue, interval_ms=INTERVAL_MS,
                           order_latency=engine.ConstantLatency(SEND_NS))
    tic = time.perf_counter()
    engine._perform(replay, np.random.default_rng(0))
    first = time.perf_counter() - tic
    print(json.dumps({"import_seconds": imported, "first_seconds": first, "loaded_mb": loaded}), flush=True)
    for line in sys.stdin:
        word = line.split()
        tic = time.perf_counter()
        if word[0] == "run":
            run = engine._perform(replay, np.random.default_rng(0))
            out = {"seconds": time.perf_counter() - tic, "fills": sum(map(len, run.outputs.parts[engine.FILLS])), "books": 1 if run.x[engine.ONE] else 2,
                   "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        else:
            res = replay.run(rng=np.random.default_rng(0))
            out = {"seconds": time.perf_counter() - tic, "marks": res.info["marks"], "orders": res.info["orders"], "fills": len(res.fills)}
            f = res.fills
            at = np.column_stack([f["time"].astype("int64"), f["side"], np.rint(f["price"] / 0.01), f["qty"], f["order_id"]])
            np.savez(word[1], positions=res.positions, fills=at)
            write_events(events, Path(folder) / "feed.parquet")
            out["digest"] = res.digest
        print(json.dumps(out), flush=True)


def one_queue(folder: Path, queue: str) -> dict:
    "Both engines in turn on one queue model."
    settings = dict(data=str(folder / "feed_hbt.npy"), tick=0.01, lot=1.0, depth="roi", low=50.0, high=150.0, queue=queue, half_ticks=HALF, skew_ticks=SKEW, qty=QTY,
                    max_position=MOST, interval_ns=round(INTERVAL_MS * 1e6), send_ns=SEND_NS, back_ns=SEND_NS, marks=400_000, fills=400_000)
    (folder / "settings.json").write_text(json.dumps(settings))
    peer, ours = Talker(PYTHON, str(HERE / "peer_replay.py"), str(folder / "settings.json")), Talker(sys.executable, __file__, "serve", str(folder), queue)
    told = {"peer": [], "ours": []}
    for _ in range(RUNS):
        for name, talker in (("peer", peer), ("ours", ours)):
            told[name].append(talker.ask("run"))
    theirs, whole = peer.ask(f"save {folder / 'theirs.npz'}"), ours.ask(f"save {folder / 'ours.npz'}")
    peer.close()
    ours.close()
    stream = Talker(sys.executable, __file__, "serve", str(folder), f"stream {queue}")
    stream.close()
    a, b = np.load(folder / "theirs.npz"), np.load(folder / "ours.npz")
    fills = [x["fills"][np.argsort(x["fills"][:, 4])] for x in (a, b)]
    n = len(fills[0])  # news of a last fill may still be under way to the peer's strategy
    same = np.array_equal(a["positions"], b["positions"]) and np.array_equal(fills[0], fills[1][:n]) and theirs["orders"] == whole["orders"] and len(fills[1]) - n <= 2
    same = same and stream.hello["digest"] == whole["digest"]
    return {"peer": [t["seconds"] for t in told["peer"]], "ours": [t["seconds"] for t in told["ours"]], "whole": whole["seconds"], "same": bool(same),
            "marks": whole["marks"], "orders": whole["orders"], "fills": whole["fills"], "version": peer.hello["version"], "import_seconds": ours.hello["import_seconds"],
            "first_seconds": ours.hello["first_seconds"], "mb": told["ours"][-1]["rss_mb"], "stream_mb": stream.hello["rss_mb"], "peer_mb": told["peer"][-1]["rss_mb"], "peer_first_seconds": peer.hello["first_seconds"],
            "books": told["ours"][-1]["books"]}


def main() -> int:
    if not Path(PYTHON).is_file() or not GENERATOR.exists():
        print("PEER: no .venv-peers here (make peers)" if GENERATOR.exists() else f"PEER: no {GENERATOR.name} here", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, str(GENERATOR), str(ROWS), str(SEED)], env=os.environ | {"FEED_DIR": name}, check=True, capture_output=True)
        n = len(np.load(folder / "feed_hbt.npy", mmap_mode="r"))
        out = {queue: one_queue(folder, queue) for queue in QUEUES}
    ratios = {q: statistics.median(o["peer"]) / statistics.median(o["ours"]) for q, o in out.items()}
    risk, power = (out[q] for q in QUEUES)
    mb, peer_mb = max(risk["stream_mb"], power["stream_mb"]), min(risk["peer_mb"], power["peer_mb"])
    speed = {q: n / statistics.median(o["ours"]) / 1e6 for q, o in out.items()}
    report = {
        "row": "A",
        "work": f"replay of {n:,} rows with queue position and latency, {risk['marks']:,} decisions, {risk['orders']:,} orders, {risk['fills']:,} fills (risk-averse) and {power['fills']:,} (power-prob:3)",
        "makerlab": describe(risk["ours"], note=f"risk-averse {speed[QUEUES[0]]:.1f} M rows/s, power-prob:3 {speed[QUEUES[1]]:.1f}; with all tables {risk['whole']:.2f} s; "
                             f"start: import {risk['import_seconds']:.2f} s, first run {risk['first_seconds']:.2f} s; peak memory {mb:.0f} MB from a file, {max(risk['mb'], power['mb']):.0f} MB with all rows held"),
        "peers": {"hftbacktest, RiskAdverse": describe(risk["peer"], version=risk["version"], note=f"ROIVector, NoPartialFill; {ratios[QUEUES[0]]:.2f}x; peak memory {risk['peer_mb']:.0f} MB"),
                  "hftbacktest, PowerProb3": describe(power["peer"], version=power["version"], note=f"makerlab {statistics.median(power['ours']):.3f} s, {ratios[QUEUES[1]]:.2f}x; peak memory {power['peer_mb']:.0f} MB")},
        "ratio": min(ratios.values()),
        "ratio_by_queue": ratios,
        "target": 3,
        "answers_agree": risk["same"] and power["same"] and mb < peer_mb,
        "same_positions_and_fills": {q: o["same"] for q, o in out.items()},
        "import_seconds": risk["import_seconds"], "first_run_seconds": risk["first_seconds"], "peak_mb": mb, "peak_mb_rows_held": max(risk["mb"], power["mb"]), "peer_peak_mb": peer_mb,
        "books": risk["books"],
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1:2] == ["serve"] else sys.exit(main())
