"""Row B of PERF.md: the Avellaneda-Stoikov test, 100,000 paths of 200 steps, against vectorised NumPy in the same process.

The peer is what one writes first in NumPy: one array operation over all paths at each step, its own generator. NumPy uses one
thread, makerlab as many as there are cores; `one_thread` says what is left with one. Prints one JSON object.
"""
import json
import math
import platform
import statistics
import sys
import time

import numpy as np

from makerlab.core import rng_streams
from makerlab.models.avellaneda_stoikov import exact_moments, path_draws, quote_schedule, simulate

PATHS, STEPS, RUNS = 100_000, 200, 7
WORLD = dict(gamma=0.1, sigma=2.0, A=140.0, k=1.5, horizon=1.0, n_steps=STEPS)


def numpy_vectorised(n, half, skew, *, sigma, A, k, dt, rng=None, draws=None):
    "Profit and final inventory of n paths; draws = (ask, bid, up) replaces the generator for the check of equality."
    mid, cash, q = np.full(n, 100.0), np.zeros(n), np.zeros(n)
    move = sigma * math.sqrt(dt)
    for i in range(len(half)):
        ask_depth, bid_depth = half[i] - q * skew[i], half[i] + q * skew[i]
        ua, ub = (rng.random(n), rng.random(n)) if draws is None else (draws[0][:, i], draws[1][:, i])
        hit_ask = ua < A * dt * np.exp(-k * ask_depth)
        hit_bid = ub < A * dt * np.exp(-k * bid_depth)
        cash += hit_ask * (mid + ask_depth)
        cash -= hit_bid * (mid - bid_depth)
        q += hit_bid
        q -= hit_ask
        up = rng.random(n) < 0.5 if draws is None else draws[2][:, i]
        mid += np.where(up, move, -move)
    return cash + q * mid, q


def timed(f):
    "Seconds and result of one call."
    t = time.perf_counter()
    result = f()
    return time.perf_counter() - t, result


def figures(seconds):
    "The row's statistics of a list of run times."
    median = statistics.median(seconds)
    return {"median_s": median, "min_s": min(seconds), "max_s": max(seconds), "runs": len(seconds), "paths_steps_per_s": PATHS * STEPS / median}


def main():
    half, skew = quote_schedule(**{n: v for n, v in WORLD.items() if n != "A"})
    play = dict(sigma=2.0, A=140.0, k=1.5, dt=1.0 / STEPS)
    exact = exact_moments(**WORLD)

    draws = path_draws(rng_streams(2_000, rng=np.random.default_rng(1)), n_steps=STEPS)  # same random numbers: same paths?
    same = simulate(n_paths=2_000, **WORLD, rng=np.random.default_rng(1))
    peer_profit, peer_q = numpy_vectorised(2_000, half, skew, draws=draws, **play)
    equal = bool(np.allclose(same.profit, peer_profit, rtol=0, atol=1e-9) and np.array_equal(same.inventory, peer_q))

    rng = np.random.default_rng(20240501)
    ours, single, peers, means, peer_means = [], [], [], [], []
    for run in range(RUNS + 1):  # in turn; the first of each warms up
        t, s = timed(lambda: simulate(n_paths=PATHS, **WORLD, rng=rng))
        t1, _ = timed(lambda: simulate(n_paths=PATHS, **WORLD, rng=rng, workers=1))
        tp, (p, _) = timed(lambda: numpy_vectorised(PATHS, half, skew, rng=rng, **play))
        if run:
            ours.append(t), single.append(t1), peers.append(tp), means.append(s.profit.mean()), peer_means.append(p.mean())
    se = exact["profit_std"] / math.sqrt(PATHS)
    z = [(m - exact["profit_mean"]) / se for m in (means[-1], peer_means[-1])]
    print(json.dumps({
        "row": "B", "work": f"A-S Monte-Carlo, {PATHS:,} paths x {STEPS} steps, float64", "makerlab": figures(ours),
        "one_thread": figures(single), "peers": {"numpy": {**figures(peers), "version": np.__version__}},
        "ratio": statistics.median(peers) / statistics.median(ours), "ratio_one_thread": statistics.median(peers) / statistics.median(single),
        "target": 12, "answers_agree": equal and all(abs(x) < 4 for x in z), "equal_on_same_draws": equal,
        "mean": float(means[-1]), "peer_mean": float(peer_means[-1]), "exact": 64.892543, "z": z[0], "peer_z": z[1],
        "python": platform.python_version(), "argv": sys.argv[1:]}))


if __name__ == "__main__":
    main()
