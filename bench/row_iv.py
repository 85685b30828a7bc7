"""Implied volatilities, a million of a wide grid, beside QuantLib and vollib.

Prints one JSON object. The grid: both rights, out of the money, log-moneyness to 1, volatility 5 % to 165 %, a week to two years; prices of at least 1e-8 of the spot,
where every peer gives an answer. makerlab is timed through its public function on arrays, checks included, on one thread; QuantLib by
blackFormulaImpliedStdDev (its accuracy set to 1e-12) and vollib by implied_volatility, option by option, on a part of the grid, scaled. A peer that is not installed is left out, and said so.
"""
import json
import math
import os
import time
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from clock import describe

from makerlab.models.options import black_scholes, implied_vol

N, PART, RUNS, SPOT, RATE, YIELD = 1_000_000, 20_000, 7, 100.0, 0.03, 0.01


def grid():
    "Strikes, times, volatilities, sides and prices, the last of at least 1e-8 of the spot."
    rng = np.random.default_rng(5)
    n = 2 * N
    T, sigma = np.exp(rng.uniform(math.log(1 / 52), math.log(2), n)), np.exp(rng.uniform(-3, 0.5, n))
    K = SPOT * np.exp(rng.uniform(-1, 1, n))
    sign = np.where(K > SPOT * np.exp((RATE - YIELD) * T), 1.0, -1.0)
    price = black_scholes(SPOT, K, T, RATE, YIELD, sigma, sign)
    keep = np.flatnonzero(price > 1e-8 * SPOT)[:N]
    return tuple(v[keep] for v in (price, K, T, sigma, sign))


def seconds(work):
    tic = time.perf_counter()
    out = work()
    return time.perf_counter() - tic, out


def quantlib(price, K, T, sign):
    "A function that gives the volatilities of the part, and the version."
    import QuantLib as ql
    forward, discount = SPOT * np.exp((RATE - YIELD) * T), np.exp(-RATE * T)
    rows = [(ql.Option.Call if g > 0 else ql.Option.Put, k, f, p, d) for g, k, f, p, d in zip(sign.tolist(), K.tolist(), forward.tolist(), price.tolist(), discount.tolist())]
    find, root, guess = ql.blackFormulaImpliedStdDev, np.sqrt(T), ql.nullDouble()
    return lambda: np.array([find(o, k, f, p, d, 0.0, guess, 1e-12, 200) for o, k, f, p, d in rows]) / root


def vollib(price, K, T, sign):
    from vollib.black_scholes_merton.implied_volatility import implied_volatility
    rows = [(p, SPOT, k, t, RATE, YIELD, "c" if g > 0 else "p") for p, k, t, g in zip(price.tolist(), K.tolist(), T.tolist(), sign.tolist())]
    return lambda: np.array([implied_volatility(*row) for row in rows])


def main():
    price, K, T, sigma, sign = grid()
    n = price.size
    implied_vol(price[:10], SPOT, K[:10], T[:10], RATE, YIELD, sign[:10])
    ours, theirs, agree, missing = [], {}, [], []
    workers = {}
    for name, make in (("QuantLib", quantlib), ("vollib", vollib)):
        size = PART if name == "QuantLib" else PART // 10
        try:
            workers[name] = (make(price[:size], K[:size], T[:size], sign[:size]), size, version(name))
        except (ImportError, PackageNotFoundError):
            missing.append(name)
    for _ in range(RUNS):
        time_, vol = seconds(lambda: implied_vol(price, SPOT, K, T, RATE, YIELD, sign))
        ours.append(time_)
        for name, (work, size, _) in workers.items():
            time_, peer = seconds(work)
            theirs.setdefault(name, []).append(time_ * n / size)
            agree.append(float(np.max(np.abs(peer / vol[:size] - 1))))
    error = float(np.max(np.abs(vol / sigma - 1)))
    median = float(np.median(ours))
    report = {
        "row": "IV",
        "work": f"{n:,} implied volatilities of a wide grid, one thread; asked: 1.5 M/s, the ratio is to that",
        "makerlab": describe(ours, note=f"{n / median / 1e6:.2f} M/s through the public function; largest relative error {error:.0e}"),
        "peers": {name: describe(rows, version=workers[name][2], note=f"{n / float(np.median(rows)) / 1e6:.3g} M/s, {workers[name][1]} options from Python, scaled; makerlab {float(np.median(rows)) / median:.1f}x")
                  for name, rows in theirs.items()},
        "ratio": n / median / 1.5e6,
        "ratio_to_peers": {name: float(np.median(rows)) / median for name, rows in theirs.items()},
        "target": 1,
        "missing": missing,
        "largest_difference": max(agree, default=None),
        "answers_agree": error < 1e-9 and max(agree, default=1.0) < 1e-7,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
