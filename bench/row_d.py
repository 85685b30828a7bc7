"""Row D of the speed table: OFI + rolling 60 s standard deviation of mid changes + weighted mid, on 5 M quotes.

Every contender gets the same day of quotes in its own table type (pandas for makerlab and pandas, polars for polars), already in
memory and validated, and hands back its own table of three columns. makerlab runs on one thread; polars uses its whole pool.
Prints one JSON object. `python bench/row_d.py [rows]`.
"""
import json
import platform
import statistics
import sys
import time

import numpy as np
import pandas as pd

from makerlab.features.volatility import event_features

RUNS = 7


def make_quotes(n: int, seed: int = 20240501) -> pd.DataFrame:
    "One trading day of n quotes with irregular stamps, ties in price, and whole-tick moves."
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.exponential(23_400e9 / n, n)).astype(np.int64) + pd.Timestamp("2026-03-02 14:30", tz="UTC").as_unit("ns").value
    bid = 100_000 + np.cumsum(rng.integers(-1, 2, n) * (rng.random(n) < 0.2))
    ask = bid + rng.integers(1, 4, n)
    return pd.DataFrame({"time": pd.DatetimeIndex(t.view("M8[ns]"), tz="UTC"), "bid": np.round(bid * 0.01, 2), "ask": np.round(ask * 0.01, 2),
                         "bid_size": rng.integers(1, 50, n) * 100.0, "ask_size": rng.integers(1, 50, n) * 100.0})


def by_pandas(q: pd.DataFrame) -> pd.DataFrame:
    "The same three columns, in pandas' own operations."
    b, a, qb, qa = q["bid"], q["ask"], q["bid_size"], q["ask_size"]
    b0, a0, qb0, qa0 = b.shift(), a.shift(), qb.shift(), qa.shift()
    ofi = qb.where(b >= b0, 0.0) - qb0.where(b <= b0, 0.0) - qa.where(a <= a0, 0.0) + qa0.where(a >= a0, 0.0)
    d = ((b + a) * 0.5).diff()
    d.index = pd.DatetimeIndex(q["time"])
    ofi.iloc[0] = np.nan
    return pd.DataFrame({"ofi": ofi, "sigma": d.rolling("60s").std().to_numpy(), "weighted_mid": (b * qa + a * qb) / (qb + qa)})


def polars_query(pl):
    "A lazy query that polars may optimise and spread over its threads."
    c, before = pl.col, lambda name: pl.col(name).shift()
    zero = pl.lit(0.0)
    ofi = (pl.when(c("bid") >= before("bid")).then(c("bid_size")).otherwise(zero) - pl.when(c("bid") <= before("bid")).then(before("bid_size")).otherwise(zero)
           - pl.when(c("ask") <= before("ask")).then(c("ask_size")).otherwise(zero) + pl.when(c("ask") >= before("ask")).then(before("ask_size")).otherwise(zero))
    d = ((c("bid") + c("ask")) * 0.5).diff()
    return dict(ofi=ofi, sigma=d.rolling_std_by("time", window_size="60s", closed="right"),
                weighted_mid=(c("bid") * c("ask_size") + c("ask") * c("bid_size")) / (c("bid_size") + c("ask_size")))


def race(contenders: dict, runs: int) -> tuple[dict, dict]:
    "Answers of a warm-up round, then seconds of the rounds that count; all take turns, so that a noisy neighbour hits everyone."
    answers, seconds = {name: f() for name, f in contenders.items()}, {name: [] for name in contenders}
    for _ in range(runs):
        for name, f in contenders.items():
            began = time.perf_counter()
            f()
            seconds[name].append(time.perf_counter() - began)
    return answers, {name: {"median_s": statistics.median(x), "min_s": min(x), "max_s": max(x), "runs": runs} for name, x in seconds.items()}


def main(n: int) -> dict:
    "All contenders in turn on one input, compared."
    quotes = make_quotes(n)
    contenders = {"makerlab": lambda: event_features(quotes, window_s=60.0, per="event"), "pandas": lambda: by_pandas(quotes)}
    versions = {"pandas": {"version": pd.__version__}}
    try:
        import polars as pl
    except ImportError:
        print("polars is not installed: `pip install polars`; the ratio is left out", file=sys.stderr)
    else:
        frame, query = pl.from_pandas(quotes), polars_query(pl)
        contenders["polars"] = lambda: frame.lazy().select(**query).collect()
        versions["polars"] = {"version": pl.__version__, "threads": pl.thread_pool_size()}
    answers, peers = race(contenders, RUNS)
    ours, mine = answers.pop("makerlab"), peers.pop("makerlab")
    peers = {name: t | versions[name] for name, t in peers.items()}
    worst, agree = 0.0, True
    for theirs in answers.values():
        for column in ("ofi", "sigma", "weighted_mid"):
            x, y = ours[column].to_numpy()[2:], theirs[column].to_numpy()[2:].astype(float)  # the first sd needs two changes
            diff = float(np.nanmax(np.abs(x - y)))
            worst, agree = max(worst, diff), agree and diff <= 1e-9 and bool((np.isnan(x) == np.isnan(y)).all())
    ratio = peers["polars"]["median_s"] / mine["median_s"] if "polars" in peers else None
    return {"row": "D", "work": f"OFI + rolling 60 s sd of mid changes + weighted mid, {n:,} quotes", "unit": "rows/s", "rows": n,
            "makerlab": mine | {"threads": 1, "rows_per_s": n / mine["median_s"]}, "peers": peers, "ratio": ratio, "target": 2,
            "answers_agree": agree, "max_abs_diff": worst, "python": platform.python_version()}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000)))
