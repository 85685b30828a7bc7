"""The long runs of studies 17 and 18: PPO over seeds and worlds, reward terms switched off, baselines beside it.

    python tools/train_studies.py                 # everything, in order of importance; about two hours on one core
    python tools/train_studies.py --minutes 10    # stop beginning jobs after ten minutes; run again to go on
    python tools/train_studies.py --list          # the jobs and what is done
    python tools/train_studies.py --smoke         # all of it, tiny, to see that it runs (to another folder)

Each job has a folder under --work; a finished one is skipped, an interrupted training goes on from its newest checkpoint.
After each job the three tables are written again from what is there, so that a stopped run leaves whole files:
data/learning/curves.parquet, evaluations.parquet and surfaces.parquet, with runs.json (versions, configurations, digests).
"""
import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from makerlab.core import write_atomic
from makerlab.learning.baselines import (
    TRAINING_TASK,
    TRAINING_WORLD,
    QuotingRule,
    avellaneda_stoikov,
    cj_optimum,
    compare,
    evaluate,
    exact_optimum,
    fixed_spread,
    linear_quotes,
    oracle,
    random_policy,
    tune,
)
from makerlab.learning.env import ASK, BID, INVENTORY, MID, N_OUT, OBSERVATION, SIGMA, STEP, ASVectorEnv
from makerlab.learning.market_env import INFORMED_FLOW, LOB_TASK, LOBEnv
from makerlab.learning.training import Curriculum, PPOConfig, load_model, policy_of, read_manifest, train

ROOT = Path(__file__).resolve().parents[1]
# a calm world, and few lots: what is optimal does not depend on sigma, but the noise of an advantage does (page 82);
# in phase medium the two running penalties are together 0.05 q^2 dt: the problem of TRAINING_TASK, told in two terms
CALM_WORLD = replace(TRAINING_WORLD, sigma=0.2)
TASKS = {"as": replace(TRAINING_TASK, max_inventory=5, inventory_penalty=0.03, variance_penalty=0.5),
         "lob": replace(LOB_TASK, inventory_penalty=0.003, variance_penalty=0.003, end_penalty=0.05)}
VARIANTS = {"all terms": {},
            "no lambda_I": {"inventory_penalty": 0.0}, "no lambda_V": {"variance_penalty": 0.0}, "from scratch": {}}
CONFIGS = {"as": PPOConfig(log_std_init=-0.5, log_std_final=-2.0, size_init=2.0),
           "lob": PPOConfig(sessions=16, gae_lambda=0.8, log_std_init=-1.75, log_std_final=-2.75, size_reach=0.25)}
SCRATCH = PPOConfig(sessions=16, gae_lambda=0.8, log_std_init=-0.75, log_std_final=-2.0, offset_init=-1.0, size_init=0.3)
TEACHER = {"offset": 0.75, "skew": 0.2, "lean": 0.5}  # the leaning rule as baselines_of tunes it; training begins as its copy
VOLATILITY, IMBALANCE = OBSERVATION.index("sigma"), OBSERVATION.index("imbalance")
USUAL = {"as": "medium", "lob": "switching"}  # the phase that is trained in and scored
CONDITIONS = {"as": ("in distribution", "volatility doubled"), "lob": ("in distribution", "volatility doubled", "more toxic flow")}
TOXIC = replace(INFORMED_FLOW, informed_rate=2.0 * INFORMED_FLOW.informed_rate)


@dataclass(frozen=True)
class Scale:
    "How much of everything."

    steps: dict
    episodes: dict
    tuning: dict
    seeds: tuple = (1, 2, 3, 4, 5)


FULL = Scale({"as": 3_200_000, "lob": 500_000}, {"as": 2048, "lob": 500}, {"as": 1024, "lob": 100})
SMOKE = Scale({"as": 25_600, "lob": 6_400}, {"as": 64, "lob": 5}, {"as": 64, "lob": 2}, (1, 2))


def jobs(scale):
    "What there is to do, the most important first: (world, variant, seed), seed 0 for the baselines."
    first, *rest = scale.seeds
    out = [(w, "baselines", 0) for w in ("as", "lob")]
    out += [(w, "all terms", s) for s in (first, *rest) for w in ("as", "lob")]
    return out + [(w, v, first) for v in list(VARIANTS)[1:] for w in ("as", "lob") if (w, v) != ("as", "from scratch")]


def folder_of(work, job):
    return work / "_".join(str(part).replace(" ", "-") for part in job)


def world_of(world, split, condition):
    "An environment of the world in the condition; what is scored is always the task with all its terms."
    if world == "as":
        env = ASVectorEnv(256, TASKS["as"], world=CALM_WORLD, split=split)
    else:
        flow, mark = TOXIC if condition == "more toxic flow" else "informed", "value" if split == "validation" else "mid"
        env = LOBEnv(TASKS["lob"], flow=flow, split=split, mark=mark)
    env.set_phase("high" if condition == "volatility doubled" else USUAL[world])
    return env


def gated_quotes(task, *, above):
    "The teacher's rule, which asks only on the side that brings the position down where more than `above` (ticks per sqrt(s)) of volatility is seen."
    def rule(obs, outs):
        q, centre = outs[:, INVENTORY], TEACHER["lean"] * obs[:, IMBALANCE] - TEACHER["skew"] * outs[:, INVENTORY]
        calm = obs[:, VOLATILITY] < above
        return TEACHER["offset"] - centre, TEACHER["offset"] + centre, task.max_lots * (calm | (q < 0)), task.max_lots * (calm | (q > 0))
    return QuotingRule("gated", task, rule, {"above": above})


def baselines_of(world, scale):
    "Formulas tuned on validation sessions in distribution, and the reference that knows: policies by name, and their parameters."
    task, env, many = TASKS[world], world_of(world, "validation", "in distribution"), scale.tuning[world]
    if world == "as":
        grids = {"offset": np.arange(2.0, 8.1, 0.5)}, {"gamma": (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0), "k": (0.2, 0.25, 0.3, 0.4)}
        lines = {"offset": (3.0, 3.5, 4.0, 4.5), "skew": (0.3, 0.6, 0.9, 1.2, 1.5)}
    else:
        grids = {"offset": (0.5, 1.0, 2.0, 3.0, 4.0)}, {"gamma": (0.03, 0.1, 0.3), "k": (1.0, 2.0, 4.0)}
        lines = {"offset": (0.75, 1.0, 1.5, 2.5), "skew": (0.1, 0.3, 0.5)}
    makers = {"fixed spread": (fixed_spread, grids[0]), "A-S": (avellaneda_stoikov, grids[1]), "linear": (linear_quotes, lines)}
    if world == "lob":  # what no formula of the inventory alone can do: lean to where the book is heavy
        makers["leaning"] = (linear_quotes, {"offset": (0.5, 0.75, 1.0), "skew": (0.2, 0.4), "lean": (0.5, 0.75)})
        makers["gated"] = (gated_quotes, {"above": (0.4, 0.5, 0.6)})
    best = {name: tune(make, grid, env, episodes=many) for name, (make, grid) in makers.items()}
    policies = {name: found.policy for name, found in best.items()}
    policies["random"] = random_policy(task, rng=np.random.default_rng(0))
    if world == "as":
        policies["exact optimum"] = cj_optimum(task, CALM_WORLD)
    else:
        policies["oracle"] = tune(oracle, {"offset": (0.5, 1.0, 1.5), "skew": (0.0, 0.1)}, env, episodes=many).policy
    return policies, {name: {k: float(v) for k, v in found.params.items()} for name, found in best.items()}


def episodes_of(world, condition, scale):
    "Test sessions: all of them in distribution, two fifths elsewhere in the order book."
    return scale.episodes[world] if world == "as" or condition == "in distribution" else 2 * scale.episodes[world] // 5


def rows_of(world, condition, name, variant, seed, result, against, rng):
    "The metric table of an evaluation as rows, and the paired difference to the formulas."
    head = {"world": world, "condition": condition, "policy": name, "variant": variant, "seed": seed}
    rows = [{**head, "metric": r.Index, "value": r.value, "lo": r.lo, "hi": r.hi, "unit": r.unit} for r in result.table(rng=rng).itertuples()]
    for other, theirs in against.items():
        for column in ("reward", "pnl"):
            d = compare(result, theirs, rng=rng, column=column)
            rows.append({**head, "metric": f"{column} - {other}", "value": d.estimate, "lo": d.lo, "hi": d.hi, "unit": "tick*lots a session"})
    if "gap" in result.frame:
        d = result.shortfall(rng=rng)
        rows.append({**head, "metric": "shortfall", "value": d.estimate, "lo": d.lo, "hi": d.hi, "unit": "% of the optimum"})
    return rows


def optimum_of(world, condition):
    phase = "high" if condition == "volatility doubled" else "medium"
    return exact_optimum(TASKS["as"], CALM_WORLD, phase=phase) if world == "as" else None


def frames_of(work, world, condition):
    "Where the baselines' sessions lie, a file a policy."
    return work / "baseline_frames" / world / condition


def do_baselines(world, work, folder, scale):
    "Tune, evaluate in every condition, keep the sessions for the paired comparisons."
    policies, params = baselines_of(world, scale)
    rows = []
    for condition in CONDITIONS[world]:
        env = world_of(world, "test", condition)
        for name, policy in policies.items():
            result = evaluate(policy, env, episodes=episodes_of(world, condition, scale), optimum=optimum_of(world, condition))
            frames_of(work, world, condition).mkdir(parents=True, exist_ok=True)
            result.frame.to_parquet(frames_of(work, world, condition) / f"{name}.parquet")
            rows += rows_of(world, condition, name, "baseline", 0, result, {}, np.random.default_rng(1))
    finish(folder, rows, surface(world, policies, "baseline", 0), {"tuned": params})


def do_training(job, work, folder, scale):
    "Train (or go on), evaluate in every condition against the stored baselines."
    world, variant, seed = job
    run = folder / "run"
    try:
        read_manifest(run)
        resume = run
    except ValueError:
        resume = None
    arguments = {"steps": scale.steps[world], "seed": seed, "out": run, "task": replace(TASKS[world], **VARIANTS[variant]), "config": CONFIGS[world]}
    if world == "as":
        arguments["world"] = asdict(CALM_WORLD)
        env = world_of("as", "validation", "in distribution")
        best = optimum_of("as", "in distribution")
        arguments |= {"probe": lambda policy: float(evaluate(policy, env, episodes=256, optimum=best).frame["gap"].mean() / best.value * 100),
                      "probe_every": max(scale.steps["as"] // 20, 1)}
    else:
        env = world_of("lob", "validation", "in distribution")
        arguments |= {"world": {"mark": "value"}, "curriculum": Curriculum(((0, USUAL["lob"]),)),
                      "probe": lambda policy: float(evaluate(policy, env, episodes=120).frame["reward"].mean()),
                      "probe_every": max(scale.steps["lob"] // 8, 1)}
        if variant == "from scratch":
            arguments["config"] = SCRATCH
        else:
            arguments["teacher"] = linear_quotes(arguments["task"], **TEACHER)
    train(world, resume=resume, **arguments)
    policy, rows = policy_of(run), []
    for condition in CONDITIONS[world]:
        env, n = world_of(world, "test", condition), episodes_of(world, condition, scale)
        result = evaluate(policy, env, episodes=n, optimum=optimum_of(world, condition))
        against = {p.stem: replace(result, frame=pd.read_parquet(p)) for p in sorted(frames_of(work, world, condition).glob("*.parquet"))}
        rows += rows_of(world, condition, "ppo", variant, seed, result, against, np.random.default_rng(1))
    manifest = read_manifest(run)
    curve = pd.DataFrame(manifest["curve"]).assign(world=world, variant=variant, seed=seed)
    curve.to_parquet(folder / "curve.parquet")
    finish(folder, rows, surface(world, {"ppo": policy}, variant, seed, model=load_model(run)),
           {name: manifest[name] for name in ("config", "task", "world", "versions", "seconds", "steps", "files")})


def surface(world, policies, variant, seed, model=None):
    "Quotes over inventory, imbalance and volatility half-way through a session, everything else as it usually is."
    task, Q = TASKS[world], TASKS[world].max_inventory
    seen = (np.linspace(-0.9, 0.9, 13), (0.3, 0.6, 1.2)) if world == "lob" else ([0.0], [CALM_WORLD.sigma])
    q, x, sigma = (v.ravel() for v in np.meshgrid(np.arange(-Q, Q + 1), *seen, indexing="ij"))
    usual = np.array([0, 1, 0, 0, 0, 1, 1, 0, 0, 0.5]) if model is None else model.normaliser["obs_mean"]
    obs = np.tile(np.asarray(usual, np.float32), (q.size, 1))
    obs[:, 2], obs[:, 3], obs[:, 4], obs[:, 9] = q / Q, sigma, x, 0.5
    outs = np.zeros((q.size, N_OUT))
    for column, value in ((INVENTORY, q), (STEP, task.steps // 2), (MID, 10_000.0), (BID, 9_999.5), (ASK, 10_000.5), (SIGMA, sigma)):
        outs[:, column] = value
    rows = []
    for name, policy in policies.items():
        a = 0.5 * (policy(obs, outs).astype(float) + 1.0)
        wide = task.max_offset - task.min_offset
        rows.append(pd.DataFrame({"world": world, "variant": variant, "seed": seed, "policy": name, "inventory": q, "imbalance": x, "sigma": sigma,
                                  "bid_offset": task.min_offset + wide * a[:, 0], "ask_offset": task.min_offset + wide * a[:, 1],
                                  "bid_lots": np.floor(task.max_lots * a[:, 2] + 0.5), "ask_lots": np.floor(task.max_lots * a[:, 3] + 0.5)}))
    return pd.concat(rows, ignore_index=True)


def finish(folder, rows, quotes, about):
    "A job's tables, and last of all the mark that it is done."
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "evaluation.parquet")
    quotes.to_parquet(folder / "surface.parquet")
    write_atomic(folder / "done.json", json.dumps(about, indent=1, sort_keys=True))


def gather(work, out, scale):
    "The tables of the studies from the jobs that are done."
    done = [folder_of(work, job) for job in jobs(scale) if (folder_of(work, job) / "done.json").exists()]
    out.mkdir(parents=True, exist_ok=True)
    for name, stem in (("evaluations", "evaluation"), ("surfaces", "surface"), ("curves", "curve")):
        parts = [pd.read_parquet(f / f"{stem}.parquet") for f in done if (f / f"{stem}.parquet").exists()]
        if parts:
            table = pd.concat(parts, ignore_index=True)
            for column in table.select_dtypes("float64"):
                table[column] = table[column].astype("float32")
            beside = out / f".{name}.parquet"
            table.to_parquet(beside, index=False, compression="zstd")
            os.replace(beside, out / f"{name}.parquet")
    write_atomic(out / "runs.json", json.dumps({f.name: json.loads((f / "done.json").read_text()) for f in done}, indent=1, sort_keys=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "learning")
    parser.add_argument("--work", type=Path, default=ROOT / "reports" / "train_studies")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no job after this long")
    parser.add_argument("--only", choices=("as", "lob"), help="one world")
    parser.add_argument("--steps-as", type=int, help="steps of a run in the reduced form")
    parser.add_argument("--steps-lob", type=int, help="steps of a run in the order book")
    parser.add_argument("--smoke", action="store_true", help="tiny, to reports/train_studies_smoke")
    parser.add_argument("--list", action="store_true", help="only say what is done")
    args = parser.parse_args()
    scale = SMOKE if args.smoke else FULL
    steps = {"as": args.steps_as or scale.steps["as"], "lob": args.steps_lob or scale.steps["lob"]}
    scale = replace(scale, steps=steps)
    if args.smoke:
        args.work = args.out = ROOT / "reports" / "train_studies_smoke"
    began = time.monotonic()
    for job in jobs(scale):
        folder = folder_of(args.work, job)
        if args.only not in (None, job[0]) or args.list or (folder / "done.json").exists():
            print(f"{'done   ' if (folder / 'done.json').exists() else 'not yet'} {folder.name}", flush=True)
            continue
        if (time.monotonic() - began) / 60 > args.minutes:
            print(f"out of time before {folder.name}: run again to go on", flush=True)
            break
        start = time.monotonic()
        if job[1] == "baselines":
            do_baselines(job[0], args.work, folder, scale)
        else:
            do_training(job, args.work, folder, scale)
        gather(args.work, args.out, scale)
        print(f"finished {folder.name} in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
