"""PERF.md row C: a price-time priority matching engine, 1 M messages (48 % limit, 45 % cancel, 7 % market).

Peers: the plain-Python twin on sortedcontainers (SlowBook, tuples made beforehand), and the C++ book of orderly-chaos, driven through its C interface from
a numba loop in the environment of peers (MAKERLAB_PEERS_PYTHON or .venv-peers). The same two arrays of messages for all, fills compared one by one:

- "blind": a cancel names any earlier id, dead or alive, so two thirds of them come too late and the book grows to some 300,000 orders (the stream of PERF.md's
  figures). orderly-chaos throws and catches a C++ exception for each cancel that finds nobody, and most of its time goes there; "asking" is the same with a look
  before each cancel, which a caller who expects late cancels could write.
- "live": every cancel names an order that waits; the book holds some thousands.

Ratios against both are given for both streams. Prints one JSON object. Takes about a minute.
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
import sortedcontainers
from clock import describe, timed

from makerlab.execution.matching import (
    F_LEFT,
    F_LOTS,
    F_MAKER,
    F_OWNER,
    F_TAKER,
    F_TICK,
    SlowBook,
    _run_messages_nb,
    make_messages,
    new_book,
    run_messages,
    run_slowly,
)

N, RUNS, SEED = 1_000_000, 7, 20240501
LOW, SPAN = 1808, 16384  # the window of make_messages
HERE = Path(__file__).resolve().parent
PYTHON = os.environ.get("MAKERLAB_PEERS_PYTHON") or str(HERE.parent / ".venv-peers" / "bin" / "python")


class Peer:
    "orderly-chaos in its own process; one word in, one JSON line out."

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen([PYTHON, str(HERE / "peer_orderly_chaos.py"), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = json.loads(self.process.stdout.readline())["version"]

    def ask(self, word: str) -> dict:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def kernel(messages: np.ndarray, fills: np.ndarray) -> float:
    "Seconds of the message loop alone, on an empty book and prepared arrays; what the C++ loop is timed on too."
    book, slots, status = new_book(low_tick=LOW, n_ticks=SPAN, n_orders=N), np.full(N, -1, dtype=np.int32), np.zeros(N, dtype=np.int8)
    tic = time.perf_counter()
    _run_messages_nb(book, messages, slots, fills, status)
    return time.perf_counter() - tic


def one_stream(late: float, folder: Path) -> dict:
    "Times of all three on one stream, in turn, and whether their fills are the same."
    messages = make_messages(N, rng=np.random.default_rng(SEED), late=late)
    np.save(folder / "messages.npy", messages)
    fills, rows = np.zeros((N + 1, 8), dtype=np.int64), messages.tolist()
    run = run_messages(messages)
    kernel(messages, fills)
    slow_fills, slow_status = run_slowly(rows, book=SlowBook(low_tick=LOW, n_ticks=SPAN))
    agree = np.array_equal(run.fills[:, F_OWNER:], np.array(slow_fills)) and np.array_equal(run.status, np.array(slow_status))
    peer = Peer(folder / "messages.npy")
    ours, whole, slow, quick, full, asking = [], [], [], [], [], []
    for _ in range(RUNS):
        ours += [kernel(messages, fills) for _ in range(3)]
        whole += timed(lambda: run_messages(messages), 1)
        reply = peer.ask("run")
        quick.append(reply["seconds"])
        full.append(reply["seconds_recording"])
        asking.append(reply["seconds_asking"])
        slow += timed(lambda: run_slowly(rows, book=SlowBook(low_tick=LOW, n_ticks=SPAN)), 1)
    peer.ask(f"save {folder / 'fills.npy'}")
    peer.close()
    agree = agree and np.array_equal(run.fills[:, [F_TAKER, F_MAKER, F_TICK, F_LOTS, F_LEFT]], np.load(folder / "fills.npy"))
    return {"ours": ours, "whole": whole, "slow": slow, "quick": quick, "full": full, "asking": asking, "agree": bool(agree), "fills": len(run.fills), "version": peer.version,
            "refused": int((run.status < 0).sum()), "waiting": int((run.book.nodes["lots"][:run.book.state[6]] > 0).sum())}


def main() -> int:
    if not Path(PYTHON).is_file():
        print("PEER: no .venv-peers here (make peers)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        out = {name: one_stream(late, Path(folder)) for name, late in (("blind", 1.0), ("live", 0.0))}
    middle = {name: {key: statistics.median(row[key]) for key in ("ours", "whole", "slow", "quick", "full", "asking")} for name, row in out.items()}
    blind, live = out["blind"], out["live"]
    ratio = {name: {"python": row["slow"] / row["ours"], "cpp": row["quick"] / row["ours"], "cpp_recording": row["full"] / row["ours"], "cpp_asking": row["asking"] / row["ours"]} for name, row in middle.items()}
    note = {name: f"{name}: {row['refused']} of the cancels too late, {row['fills']} fills, {row['waiting']} orders left" for name, row in out.items()}
    report = {
        "row": "C",
        "work": "matching engine, 1 M messages (48 % limit, 45 % cancel, 7 % market), against pure Python",
        "makerlab": describe(live["ours"], note=f"{note['live']}; {N / middle['live']['ours'] / 1e6:.1f} M messages/s, run_messages whole {N / middle['live']['whole'] / 1e6:.1f} M/s"),
        "peers": {
            "makerlab, blind": describe(blind["ours"], note=f"{note['blind']}; {N / middle['blind']['ours'] / 1e6:.1f} M messages/s"),
            "SlowBook, live": describe(live["slow"], version=f"sortedcontainers {sortedcontainers.__version__}", note="plain Python, tuples made beforehand"),
            "SlowBook, blind": describe(blind["slow"], version=f"sortedcontainers {sortedcontainers.__version__}"),
            "orderly-chaos, live": describe(live["quick"], version=live["version"], note=f"C++, fills counted only; ratio {ratio['live']['cpp']:.2f}"),
            "orderly-chaos, blind": describe(blind["quick"], version=blind["version"], note=f"C++, an exception for each late cancel; ratio {ratio['blind']['cpp']:.2f} (target 12)"),
            "orderly-chaos, blind, asking": describe(blind["asking"], version=blind["version"], note=f"C++, asks before each cancel; ratio {ratio['blind']['cpp_asking']:.2f}"),
        },
        "ratio": min(ratio["live"]["python"], ratio["blind"]["python"]),
        "also": [
            {"work": "the same against orderly-chaos (C++); cancels name any earlier order, two thirds come too late", "ratio": ratio["blind"]["cpp"], "target": 12},
            {"work": "... which throws an exception for each late cancel; the same when it is asked first whether the order is there", "ratio": ratio["blind"]["cpp_asking"]},
            {"work": "... and on a stream in which every cancel finds its order", "ratio": ratio["live"]["cpp"]},
        ],
        "ratios": ratio,
        "target": 40,
        "answers_agree": blind["agree"] and live["agree"],
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
