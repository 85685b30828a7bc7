"""PERF.md row F: environment steps, one session through the whole Gymnasium interface and many in one call.

Prints one JSON object. The peers are twins in the same run, with answers compared: the plain-Python step, and the vectorised NumPy that
mbt_gym is written in. mbt_gym itself is on no index; PERF.md measured 10.4 k steps/s alone and 6.3 M/s vectorised. Takes about half a minute.
"""

import json
import math
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
from clock import describe, timed

from makerlab.learning.env import (
    MID,
    OUT,
    PNL,
    ASEnv,
    ASVectorEnv,
    ASWorld,
    Task,
    begin_slow,
    episode_seed,
    episode_streams,
    step_slow,
)
from makerlab.models.avellaneda_stoikov import path_draws

RUNS, ALONE, CROWD, STEPS, SLOW = 7, 60_000, 16_384, 100, 4_000
TASK, WORLD = Task(inventory_penalty=0.01), ASWorld()


class NumpyWorld:
    "The reduced form in vectorised NumPy, a step of all sessions at a time, with the same observation and reward."

    def __init__(self, n, rng, draws=None):
        self.n, self.rng, self.draws = n, rng, draws
        self.reset()

    def reset(self):
        self.t, self.mid = 0, np.full(self.n, WORLD.mid)
        self.q, self.cash, self.pnl = np.zeros(self.n), np.zeros(self.n), np.zeros(self.n)

    def uniforms(self):
        if self.draws is not None:
            return tuple(x[:, self.t] for x in self.draws)
        return self.rng.random(self.n), self.rng.random(self.n), self.rng.random(self.n) < 0.5

    def step(self, actions):
        share, dt = 0.5 * (actions.astype(np.float64) + 1.0), TASK.dt_s
        offsets = TASK.min_offset + (TASK.max_offset - TASK.min_offset) * share[:, :2]
        lots = np.floor(TASK.max_lots * share[:, 2:] + 0.5)
        nb, na = np.minimum(lots[:, 0], TASK.max_inventory - self.q), np.minimum(lots[:, 1], TASK.max_inventory + self.q)
        chance = 1.0 - np.exp(-WORLD.A * np.exp(-WORLD.k * offsets) * dt)
        u_ask, u_bid, up = self.uniforms()
        bought, sold = nb * (u_bid < chance[:, 0]), na * (u_ask < chance[:, 1])
        self.cash += sold * (self.mid + offsets[:, 1]) - bought * (self.mid - offsets[:, 0])
        self.q += bought - sold
        self.mid += WORLD.sigma * math.sqrt(dt) * np.where(up, 1.0, -1.0)
        wealth = self.cash + self.q * self.mid
        gain, self.pnl, self.t = wealth - self.pnl, wealth, self.t + 1
        reward = gain - TASK.inventory_penalty * self.q**2 * dt
        one = np.ones(self.n)
        seen = np.stack([1e4 * (self.mid / WORLD.mid - 1), WORLD.spread * one, self.q / TASK.max_inventory, WORLD.sigma * one, 0 * one, one,
                         one, gain, bought + sold, (1 - self.t / TASK.steps) * one], axis=1).astype(np.float32)
        over = np.full(self.n, self.t >= TASK.steps)
        if self.t >= TASK.steps:
            self.final = self.pnl, self.mid
            self.reset()
        return seen, reward, wealth < -TASK.max_loss, over, {}


def play_alone(env, actions):
    "ALONE steps with resets, as a training loop takes them."
    env.reset(seed=1)
    for i in range(ALONE):
        _seen, _reward, terminated, truncated, _info = env.step(actions[i & 1023])
        if terminated or truncated:
            env.reset()


def play_crowd(env, actions):
    for _ in range(STEPS):
        env.step(actions)


def play_slow(actions, steps, episode=0):
    "The plain-Python step, for `steps` steps; the last state."
    stream = episode_streams(episode_seed("train", episode))[0]
    now = begin_slow(world=WORLD, stream=stream)
    for i in range(steps):
        if now["truncated"]:
            now = begin_slow(world=WORLD, stream=stream)
        step_slow(now, actions[i & 1023], task=TASK, world=WORLD, stream=stream)
    return now


def answers(actions):
    "Whether the three worlds agree on the same sessions: alone to the bit with plain Python, many with alone, NumPy within rounding."
    slow, one = play_slow(actions, TASK.steps), ASEnv(TASK)
    one.reset(options={"episode": 0})
    for i in range(TASK.steps):
        one.step(actions[i & 1023])
    bits = one.out.tolist() == [float(slow[name]) for name in OUT]
    n = 256
    many = ASVectorEnv(n, TASK, threads=2)
    many.reset(options={"episode": 0})
    peer = NumpyWorld(n, None, path_draws(episode_streams(np.arange(n)), n_steps=TASK.steps))
    worst = 0.0
    for i in range(TASK.steps):
        a = np.tile(actions[i & 1023], (n, 1))
        ours, theirs = many.step(a), peer.step(a)
        if i < TASK.steps - 1:
            worst = max(worst, float(np.abs(ours[0] - theirs[0]).max()), float(np.abs(ours[1] - theirs[1]).max()))
    worst = max(worst, float(np.abs(many.final_outs[:, PNL] - peer.final[0]).max()), float(np.abs(many.final_outs[:, MID] - peer.final[1]).max()))
    return bool(bits and (many.final_outs[0] == one.out).all() and worst < 1e-6), worst


def main():
    rng = np.random.default_rng(20240501)
    actions = rng.uniform(-1, 1, (1024, 4)).astype(np.float32)
    together = rng.uniform(-1, 1, (CROWD, 4)).astype(np.float32)
    same, worst = answers(actions)
    bare, made = ASEnv(TASK), gymnasium.make("makerlab/AS-v0", task=TASK, disable_env_checker=True)
    crowd, single = ASVectorEnv(CROWD, TASK, threads=2), ASVectorEnv(CROWD, TASK)
    peer = NumpyWorld(CROWD, rng)
    for env in (crowd, single):
        env.reset(seed=1)
        env.step(together)
    seconds = {name: [] for name in ("bare", "made", "crowd", "single", "numpy", "python")}
    for _ in range(RUNS):  # in turn, so that all meet the same weather
        seconds["bare"] += timed(lambda: play_alone(bare, actions), 1)
        seconds["made"] += timed(lambda: play_alone(made, actions), 1)
        seconds["python"] += [t * ALONE / SLOW for t in timed(lambda: play_slow(actions, SLOW), 1)]
        seconds["crowd"] += timed(lambda: play_crowd(crowd, together), 3)
        seconds["single"] += timed(lambda: play_crowd(single, together), 1)
        seconds["numpy"] += [t * STEPS / 5 for t in timed(lambda: [peer.step(together) for _ in range(5)], 1)]
    rate = {name: (ALONE if name in ("bare", "made", "python") else CROWD * STEPS) / statistics.median(t) for name, t in seconds.items()}
    best = {name: (ALONE if name in ("bare", "made", "python") else CROWD * STEPS) / min(t) for name, t in seconds.items()}
    report = {
        "row": "F",
        "work": f"environment steps, {CROWD:,} sessions together, two threads; asked: 20 M/s, the ratio is to that; "
                f"against vectorised NumPy {rate['crowd'] / rate['numpy']:.0f}x",
        "makerlab": describe(seconds["crowd"], note=f"{STEPS} steps of {CROWD:,}: {rate['crowd'] / 1e6:.1f} M steps/s, at best {best['crowd'] / 1e6:.1f}"),
        "peers": {
            "makerlab, one thread": describe(seconds["single"], note=f"{rate['single'] / 1e6:.1f} M steps/s, at best {best['single'] / 1e6:.1f}"),
            "NumPy, vectorised": describe(seconds["numpy"], version=np.__version__, note=f"{rate['numpy'] / 1e6:.2f} M steps/s; one thread, 5 steps a run, scaled; mbt_gym: 6.3 M/s (PERF.md)"),
            "makerlab, one session": describe(seconds["bare"], note=f"{ALONE:,} steps: {rate['bare'] / 1e3:.0f} k steps/s, at best {best['bare'] / 1e3:.0f}"),
            "makerlab, gymnasium.make": describe(seconds["made"], version=gymnasium.__version__, note=f"{rate['made'] / 1e3:.0f} k steps/s, at best {best['made'] / 1e3:.0f}; disable_env_checker=True"),
            "plain Python": describe(seconds["python"], note=f"{rate['python'] / 1e3:.0f} k steps/s, without observation and interface; {SLOW:,} steps a run, scaled; mbt_gym: 10.4 k/s (PERF.md)"),
        },
        "ratio": rate["crowd"] / 20e6,
        "target": 1,
        "also": [
            {"work": "one session through reset, step and info; asked: 300 k/s, the ratio is to that", "ratio": rate["bare"] / 300e3, "target": 1},
            {"work": "the same through gymnasium.make; asked: 300 k/s", "ratio": rate["made"] / 300e3, "target": 1},
            {"work": "many together, two threads, against vectorised NumPy", "ratio": rate["crowd"] / rate["numpy"]},
        ],
        "answers_agree": same,
        "max_diff": worst,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
