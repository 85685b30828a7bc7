"""PERF.md row J: 10,000 block-bootstrap replicates of a day's P&L (23,400 steps), makerlab's prefix sums against arch.

Prints one JSON object. The peer needs arch (in makerlab's own environment). Takes about half a minute.
"""

import json
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import arch
import numpy as np
from arch.bootstrap import StationaryBootstrap
from clock import describe, timed
from scipy import signal, stats

from makerlab.scoring.inference import _block_sum_nb, optimal_block, resample_totals

STEPS, DRAWS, RUNS, BATCH = 23_400, 10_000, 7, 500  # arch is timed on RUNS batches of BATCH replicates and scaled to DRAWS


def same_rows(x, block, rng):
    "Largest difference between arch's own totals and prefix sums over the runs of the very rows that arch drew."
    prefix = np.r_[0.0, np.cumsum(x - x.mean())][:, None]
    peer, worst = StationaryBootstrap(block, x, seed=rng), 0.0
    for _ in range(20):
        rows = peer.update_indices()
        cut = np.flatnonzero(np.r_[True, np.diff(rows) != 1])
        total = sum(_block_sum_nb(prefix, rows[a], b - a, 0) for a, b in zip(cut, np.r_[cut[1:], rows.size], strict=True))
        worst = max(worst, abs(total + x.size * x.mean() - x[rows].sum()))
    return worst


def main():
    rng = np.random.default_rng(20240501)
    x = signal.lfilter([1.0], [1.0, -0.3], rng.normal(size=STEPS)) + 0.01  # a day's P&L, autocorrelation 0.3
    block = optimal_block(x)
    resample_totals(x, block=block, n=10, rng=rng)  # compiles
    ours, theirs, single = [], [], []
    for _ in range(RUNS):  # in turn, so that both meet the same weather
        ours += timed(lambda: resample_totals(x, block=block, n=DRAWS, rng=rng), 3)
        single += timed(lambda: resample_totals(x, block=1, n=DRAWS, rng=rng), 1)
        theirs += [t * DRAWS / BATCH for t in timed(lambda: StationaryBootstrap(block, x, seed=rng).apply(np.sum, BATCH), 1)]

    mine = resample_totals(x, block=block, n=4000, rng=rng)[:, 0]
    peer = StationaryBootstrap(block, x, seed=rng).apply(np.sum, 4000)[:, 0]
    alike, worst = float(stats.ks_2samp(mine, peer).pvalue), same_rows(x, block, rng)
    report = {
        "row": "J",
        "work": f"stationary bootstrap, {DRAWS} replicates of the total of {STEPS} steps, mean block {block:.1f} (Politis & White)",
        "makerlab": describe(ours, single_step_blocks_s=statistics.median(single)),
        "peers": {"arch": describe(theirs, version=arch.__version__, note=f"batches of {BATCH} replicates, scaled to {DRAWS}")},
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "target": 10,
        "under_a_second": bool(statistics.median(ours) < 1.0),
        "answers_agree": bool(worst < 1e-6 and alike > 1e-3 and statistics.median(ours) < 1.0),
        "same_rows_max_diff": worst,
        "ks_pvalue": alike,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
