"""The live sessions of studies 19 (and 20): the engine on the simulated venue, by the clock on the wall, and what a replay makes of each.

    python tools/live_studies.py --study 19                # all sessions, about half an hour; run it twice in parallel with --part 1/2 and 2/2
    python tools/live_studies.py --study 19 --minutes 10   # begin no session after ten minutes; run again to go on
    python tools/live_studies.py --study 19 --list         # the sessions and what is done
    python tools/live_studies.py --study 19 --smoke        # one session of ten seconds, to see that it runs (to another folder)

A session is not repeatable to the nanosecond: it runs on this machine's clock. Its tables are therefore kept, with versions, seeds and digests of
configuration and truth log: data/live/19_*.parquet and data/live/19_runs.json. A finished session is skipped; the tables are written after each.
Another study adds an entry to STUDIES: its sessions, what one does, and which tables it leaves.
"""
import argparse
import asyncio
import hashlib
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import yaml

from makerlab.core import write_atomic
from makerlab.execution.order_flow import SMALL
from makerlab.live.engine import load_live
from makerlab.live.exchange import SymbolRules
from makerlab.live.guardian import live
from makerlab.live.reconcile import reconcile_run
from makerlab.live.simulated import SimulatedVenue

ROOT = Path(__file__).resolve().parents[1]
SYMBOLS = ("AXUSDT", "BXUSDT", "CXUSDT", "DXUSDT")  # four markets that know nothing of each other
MAKER_BPS, TAKER_BPS, LATENCY_MS = 0.2, 1.0, 5.0
CONFIG = {
    "strategy": "study",
    "instruments": {s: {"tick_size": 0.01, "lot_size": 0.01, "venue": "binance"} for s in SYMBOLS},
    "quoting": {"style": "skewed", "half_spread_ticks": 1.0, "max_inventory_lots": 1000,
                "skew": {"shape": "linear", "ticks": 3.0}, "size": {"lots": 200},
                "refresh": {"every_ms": 150, "tolerance_ticks": 1}},
    "orders": {"windows": [{"limit": 40, "window_ms": 1000, "reserve": 10}, {"limit": 160, "window_ms": 10000, "reserve": 40}]},
    "risk": {"account": {"max_gross": 100000, "max_loss": 1000, "max_drawdown": 1000, "max_messages": 40},
             "default": {"max_order_lots": 400, "max_order_value": 1000, "max_position_lots": 2000, "collar": 0.01, "max_fills": 500}},
    "venue": {"kind": "simulated", "maker_fee_bps": MAKER_BPS, "taker_fee_bps": TAKER_BPS},
    "live": {"preset": "local", "keys_env": "LIVE_STUDY", "folder": "state", "record": "recording", "warm": 5, "metrics_port": -1, "snapshot_s": 10}}
# arguments of reconcile_run
VARIANTS = {"replay": {}, "our shadow kept": {"own": "keep"}, "no latency": {"latency_ms": 0.0}, "queue shared": {"queue": "power-prob:3"}}


@dataclass(frozen=True)
class Scale:
    "How much."

    seeds: tuple = (100, 200, 300, 400, 500, 600)
    seconds: float = 120.0


FULL, SMOKE = Scale(), Scale((100,), 12.0)


async def session(folder, seed, mode, seconds):
    "A session against a venue of its own; what the venue knows is left beside what the engine knows."
    rules = [SymbolRules(symbol=s, base=s[:-4], lot="0.01", min_qty="0.01") for s in SYMBOLS]
    os.environ["MAKERLAB_LEASES"] = str(folder / "leases")
    async with SimulatedVenue(symbols=rules, flow=SMALL, seed=seed, price="100", maker_bps=MAKER_BPS, taker_bps=TAKER_BPS,
                              latency_ms=LATENCY_MS) as venue:
        os.environ["LIVE_STUDY_API_KEY"], os.environ["LIVE_STUDY_API_SECRET"] = venue.key_of("alice", "hmac")
        config = CONFIG | {"live": CONFIG["live"] | {"url": venue.url, "mode": mode}}
        (folder / "session.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        engines, mids = [], []
        task = asyncio.ensure_future(live(load_live(folder / "session.yaml"), say=lambda words: None, watched=False, signals=False,
                                          started=lambda engine, control: engines.append(engine)))
        while not engines and not task.done():
            await asyncio.sleep(0.01)
        begin, opened = time.monotonic(), venue.exchange.start_ns
        while not task.done() and time.monotonic() - begin < seconds:
            await asyncio.sleep(0.1)
            for s in SYMBOLS:
                bid, ask = (venue.exchange.markets[s].depth(side, 1) for side in (1, -1))
                if bid and ask:
                    mids.append((s, venue.exchange.now_ns, (bid[0][0] + ask[0][0]) / 2))
        if engines:
            engines[0].stop("the session is over")
        code = await task
        truth = [r for r in venue.exchange.truth if r.get("account") == "alice"]
        (folder / "truth.json").write_text(json.dumps(truth))
        pd.DataFrame(mids, columns=["symbol", "time_ns", "mid_ticks"]).to_parquet(folder / "mids.parquet")
        return {"exit": code, "opened_ns": opened, "counts": dict(engines[0].counts) if engines else {}, "cash": venue.exchange.truth_cash("alice"),
                "position": venue.exchange.truth_position("alice")}


def truth_of(folder, marks):
    "P&L, fees, executions and units of every symbol, from the venue's truth log alone."
    out = {s: [0.0, 0.0, 0, 0.0] for s in SYMBOLS}
    for r in json.loads((folder / "truth.json").read_text()):
        if r["kind"] == "trade":
            price, units = r["last_tick"] * 0.01, r["last_lots"] * 0.01
            fee = r["fee"] / 1e8  # this venue charges in money
            x = out[r["symbol"]]
            out[r["symbol"]] = [x[0] + r["side"] * units * (marks[r["symbol"]] - price) - fee, x[1] + fee, x[2] + 1, x[3] + units]
    return out


def told_by(name, fills, side):
    "The same, from the tables of a reconciliation."
    mine = fills[fills["status"].isin(["matched", f"only {side}"])]
    for s, f in mine.groupby("symbol"):
        yield s, name, [f[f"{side}_pnl"].sum(), f[f"{side}_fee"].sum(), f[f"{side}_id"].nunique(), f["qty"].sum()]


def examine(folder, seed):
    "The tables of one session: results, reasons, twins, and the orders of its first symbol."
    runs = {name: reconcile_run(folder / "live" / "state", **args) for name, args in VARIANTS.items()}
    dry, base = reconcile_run(folder / "dry" / "state"), runs["replay"]
    rows = [(s, "truth", x) for s, x in truth_of(folder / "live", base.marks).items()] + list(told_by("journal", base.fills, "live"))
    for name, r in runs.items():
        rows += told_by(name, r.fills, "replay")
    rows += told_by("market without us", dry.fills, "replay")
    have = {(s, name) for s, name, _ in rows}
    rows += [(s, name, [0.0, 0.0, 0, 0.0]) for s in SYMBOLS for name in ("journal", *VARIANTS, "market without us") if (s, name) not in have]
    columns = ["seed", "symbol", "told_by", "pnl", "fees", "orders_filled", "units"]
    results = pd.DataFrame([(seed, s, name, *x) for s, name, x in rows], columns=columns)
    reasons = []
    for name, r in runs.items():
        for (s, status, why), g in r.orders.groupby(["symbol", "status", "reason"]):
            reasons.append((seed, s, name, "decisions", status, why, len(g), 0.0))
        for (s, status, why), g in r.fills.groupby(["symbol", "status", "reason"]):
            reasons.append((seed, s, name, "executions", status, why, len(g), (g["live_pnl"] - g["replay_pnl"]).sum()))
    reasons = pd.DataFrame(reasons, columns=["seed", "symbol", "variant", "table", "status", "reason", "count", "difference"])
    lags = base.orders[base.orders["status"] == "matched"][["symbol", "side", "lag_ms"]].assign(seed=seed)
    about = {"whole": all(r.whole for r in runs.values()), "seconds": (base.run.stop_ns - base.run.start_ns) / 1e9, "recorded": base.recorded,
             "unexplained": int((base.orders["reason"] == "unexplained").sum()), "decisions": base.orders["status"].value_counts().to_dict()}
    return {"results": results, "reasons": reasons, "lags": lags, "twins": twins(folder, seed), "path": path_of(base, seed)}, about


def path_of(r, seed):
    "P&L over time at the mid that was heard, live and replay, all symbols together: a row a second."
    at = np.arange(r.run.start_ns, r.run.stop_ns, 1_000_000_000)
    out = pd.DataFrame({"seed": seed, "t_s": (at - at[0]) / 1e9, "live": 0.0, "replay": 0.0})
    for s, e in r.run.events.items():
        q = e.quotes("local")
        rows = np.clip(np.searchsorted(q["time"].astype("int64"), at, side="right") - 1, 0, None)
        mid = ((q["bid"] + q["ask"]) / 2).to_numpy()[rows]
        for side in ("live", "replay"):
            f = r.fills[(r.fills["symbol"] == s) & r.fills["status"].isin(["matched", f"only {side}"])]
            t, units = f["time"].astype("int64").to_numpy(), (f["side"] * f["qty"]).to_numpy()
            paid = units * f[f"{side}_price"].to_numpy() + f[f"{side}_fee"].to_numpy()
            done = t[None, :] <= at[:, None]
            out[side] += done @ units * mid - done @ paid if len(f) else 0.0
    return out


def twins(folder, seed):
    "The mid of each market with us and without us, by seconds since it opened; when our first order came."
    parts = []
    first = {}
    for r in json.loads((folder / "live" / "truth.json").read_text()):
        if r["kind"] == "new":
            first.setdefault(r["symbol"], r["time_ns"])
    for kind in ("live", "dry"):
        opened = json.loads((folder / kind / "about.json").read_text())["opened_ns"]
        m = pd.read_parquet(folder / kind / "mids.parquet")
        m["t_s"] = ((m["time_ns"] - opened) / 1e9).round(1)
        parts.append(m.groupby(["symbol", "t_s"])["mid_ticks"].last().rename(kind))
        first |= {s: t if kind == "dry" else (t - opened) / 1e9 for s, t in first.items()}
    out = pd.concat(parts, axis=1).sort_index()
    out[["live", "dry"]] = out[["live", "dry"]].groupby("symbol").ffill(limit=9)
    out = out.dropna().reset_index()
    return out[(out["t_s"] * 10).round().astype(int) % 10 == 0].assign(seed=seed, first_s=lambda x: x["symbol"].map(first))


async def both(folder, seed, kinds, seconds):
    "Two sessions side by side, each on a venue of its own, opened with the same seed."
    told = await asyncio.gather(*(session(folder / kind, seed, mode, seconds) for kind, mode in kinds.items()))
    for kind, about in zip(kinds, told):
        write_atomic(folder / kind / "about.json", json.dumps(about, indent=1))


def warm_up(work, seed):
    "Everything is compiled before a clock runs."
    folder = work / f"warm-up-{time.time_ns()}"
    for kind in ("live", "dry"):
        (folder / kind).mkdir(parents=True)
    asyncio.run(both(folder, seed, {"live": "testnet", "dry": "dry-run"}, 3.0))
    shutil.rmtree(folder)


def do_19(folder, seed, scale):
    "A session that sends, and its twin that does not; then the tables."
    kinds = {"live": "testnet", "dry": "dry-run"}
    if not all((folder / kind / "about.json").exists() for kind in kinds):
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}-interrupted-{time.time_ns()}"))
        for kind in kinds:
            (folder / kind).mkdir(parents=True)
        asyncio.run(both(folder, seed, kinds, scale.seconds))
    tables, about = examine(folder, seed)
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    told = json.loads((folder / "live" / "about.json").read_text())
    about |= {"seed": seed, "exit": told["exit"], "counts": told["counts"], "truth": digest(folder / "live" / "truth.json"),
              "config": hashlib.sha256(json.dumps(CONFIG, sort_keys=True).encode()).hexdigest(), "python": platform.python_version(),
              "versions": {name: version(name) for name in ("numpy", "pandas", "numba", "aiohttp", "makerlab")}}
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    write_atomic(folder / "done.json", json.dumps(about, indent=1, sort_keys=True))


def gather(study, folders, out):
    "The tables of a study from the sessions that are done."
    done = [f for f in folders if (f / "done.json").exists()]
    out.mkdir(parents=True, exist_ok=True)
    for name in STUDIES[study]["tables"]:
        parts = [pd.read_parquet(f / f"{name}.parquet") for f in done]
        if parts:
            beside = out / f".{study}_{name}.parquet"
            pd.concat(parts, ignore_index=True).to_parquet(beside, index=False, compression="zstd")
            os.replace(beside, out / f"{study}_{name}.parquet")
    write_atomic(out / f"{study}_runs.json", json.dumps({f.name: json.loads((f / "done.json").read_text()) for f in done}, indent=1, sort_keys=True))


STUDIES = {"19": {"do": do_19, "tables": ("results", "reasons", "lags", "twins", "path")}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=tuple(STUDIES), default="19")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "live")
    parser.add_argument("--work", type=Path, default=ROOT / "reports" / "live_studies")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no session after this long")
    parser.add_argument("--part", default="1/1", help="every n-th session only, such as 1/2")
    parser.add_argument("--smoke", action="store_true", help="tiny, to reports/live_studies_smoke")
    parser.add_argument("--list", action="store_true", help="only say what is done")
    parser.add_argument("--again", action="store_true", help="make the tables of finished sessions again, from what they left")
    args = parser.parse_args()
    scale = SMOKE if args.smoke else FULL
    if args.smoke:
        args.work = args.out = ROOT / "reports" / "live_studies_smoke"
    part, parts = (int(x) for x in args.part.split("/"))
    folders = [args.work / args.study / f"seed-{seed}" for seed in scale.seeds]
    began, warm = time.monotonic(), False
    for k, (seed, folder) in enumerate(zip(scale.seeds, folders)):
        done = (folder / "done.json").exists()
        if args.list or (done and not args.again) or k % parts != part - 1:
            print(f"{'done   ' if done else 'not yet'} {folder.name}", flush=True)
            continue
        if (time.monotonic() - began) / 60 > args.minutes:
            print(f"out of time before {folder.name}: run again to go on", flush=True)
            break
        if not warm and not done:
            warm_up(args.work, 1)
            warm = True
        start = time.monotonic()
        STUDIES[args.study]["do"](folder, seed, scale)
        gather(args.study, folders, args.out)
        print(f"finished {folder.name} in {time.monotonic() - start:.0f} s", flush=True)
    if not args.list:
        gather(args.study, folders, args.out)


if __name__ == "__main__":
    main()
