"The quoting environments: twins to the bit, splits that cannot leak, Gymnasium's rules, what a session adds up to, bad input."
import copy
import json
import math
import os
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError
from makerlab.learning import env as E
from makerlab.learning.env import OUT, PHASES, SPLITS, ASEnv, ASVectorEnv, ASWorld, Task, WorldError

HARD = Task(steps=60, dt_s=0.5, max_lots=3, max_inventory=7, inventory_penalty=0.02, variance_penalty=0.003, impact_penalty=0.1,
            end_penalty=0.5, fee_ticks=0.2)
WILD = ASWorld(sigma=3.0, A=2.0, k=0.1, drift=0.02)


def play(env, actions, episode=0, phase="medium"):
    "Rows of `out` and rewards of one session."
    env.set_phase(phase)
    env.reset(options={"episode": episode})
    rows = []
    for a in actions:
        _, _, terminated, truncated, _ = env.step(a)
        rows.append(env.out.copy())
        if terminated or truncated:
            break
    return np.array(rows)


def draw(task, n, seed=0):
    m = 4 if task.action == "offsets" else 2
    return np.random.default_rng(seed).uniform(-1, 1, (n, m)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), phase=st.sampled_from(list(PHASES)), kind=st.sampled_from(["offsets", "as"]), steps=st.integers(1, 80),
       lots=st.integers(1, 5), limit=st.integers(1, 9), sigma=st.floats(0.1, 20), A=st.floats(0.01, 5), k=st.floats(0.01, 3),
       drift=st.floats(-1, 1), loss=st.sampled_from([20.0, 1e6]), low=st.floats(-5, 5))
def test_kernel_equals_plain_python(seed, phase, kind, steps, lots, limit, sigma, A, k, drift, loss, low):
    task = Task(steps=steps, max_lots=lots, max_inventory=limit, max_loss=loss, min_offset=low, max_offset=low + 15, action=kind, dt_s=0.7,
                inventory_penalty=0.01, variance_penalty=0.02, impact_penalty=0.3, end_penalty=0.4, fee_ticks=-0.1)
    world = ASWorld(sigma=sigma, A=A, k=k, drift=drift)
    actions = draw(task, steps, seed)
    rows = play(ASEnv(task, world=world), actions, seed, phase)
    stream = E.episode_streams(E.episode_seed("train", seed))[0]
    now = E.begin_slow(world=world, phase=phase, stream=stream)
    for row, action in zip(rows, actions, strict=False):
        E.step_slow(now, action, task=task, world=world, phase=phase, stream=stream)
        assert row.tolist() == [float(now[x]) for x in OUT]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("task", [HARD, Task(steps=40, action="as", max_loss=60.0, time_left=False)])
@pytest.mark.parametrize("phase", ["medium", "switching"])
def test_many_equal_single_ones(task, threads, phase):
    n = 7
    many, alone = ASVectorEnv(n, task, world=WILD, threads=threads), [ASEnv(task, world=WILD) for _ in range(n)]
    for e in (many, *alone):
        e.set_phase(phase)
    seen, _ = many.reset(options={"episode": 100})
    for j, one in enumerate(alone):
        assert (one.reset(options={"episode": 100 + j})[0] == seen[j]).all()
    ended = 0
    for t in range(130):
        actions = draw(task, n, t)
        seen, rewards, terminated, truncated, info = many.step(actions)
        for j, one in enumerate(alone):
            obs, r, te, tr, mine = one.step(actions[j])
            assert (r, te, tr) == (rewards[j], terminated[j], truncated[j])
            if te or tr:
                ended += 1
                assert info["_final_obs"][j] and (info["final_obs"][j] == obs).all() and (many.final_outs[j] == one.out).all()
                assert {k: v[j] for k, v in info["final_info"]["episode_stats"].items()} == mine["episode_stats"]
                obs, _ = one.reset(options={"episode": one.episode + n})
            assert (obs == seen[j]).all() and (many.outs[j] == one.out).all()
    assert ended > n


def test_without_autoreset_an_ended_session_stands_still():
    many = ASVectorEnv(4, Task(steps=3), autoreset="off")
    assert many.metadata["autoreset_mode"] == AutoresetMode.DISABLED and ASVectorEnv(1).metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    many.reset(seed=1)
    for _ in range(3):
        _, _, _, truncated, _ = many.step(np.zeros((4, 4)))
    assert truncated.all()
    before = many.outs.copy()
    _, rewards, _, truncated, info = many.step(np.zeros((4, 4)))
    assert (rewards == 0).all() and truncated.all() and (many.outs == before).all() and info == {}
    many.reset(options={"reset_mask": np.array([True, False, True, False])})
    assert many.outs[:, E.STEP].tolist() == [0, 3, 0, 3]
    with pytest.raises(ParameterError, match="reset_mask"):
        many.reset(options={"reset_mask": [1, 0, 0, 0]})
    with pytest.raises(ParameterError, match="all of them true the first time"):
        ASVectorEnv(2).reset(options={"reset_mask": np.array([True, False])})


def test_the_answer_does_not_depend_on_threads_and_repeats():
    ways = []
    for threads in (1, 2, 5):
        many = ASVectorEnv(33, HARD, threads=threads)
        many.reset(seed=11)
        ways.append([many.step(draw(HARD, 33, t))[1] for t in range(150)])
        many.close()
    assert (np.array(ways[0]) == np.array(ways[1])).all() and (np.array(ways[0]) == np.array(ways[2])).all()


def test_seeds_through_reset():
    a, b, c = ASEnv(), ASEnv(), ASEnv()
    a.reset(seed=3), b.reset(seed=3), c.reset(seed=4)
    assert a.episode == b.episode != c.episode
    a.reset(), b.reset()
    assert a.episode == b.episode
    assert play(a, draw(HARD, 50), 5).tolist() == play(c, draw(HARD, 50), 5).tolist() != play(a, draw(HARD, 50), 6).tolist()


# --- splits ---------------------------------------------------------------------------------------------------------

def test_splits_are_disjoint_and_an_environment_stays_in_its_own():
    spans = sorted((s.start, s.stop) for s in SPLITS.values())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)) and len(SPLITS) == 3
    for split, span in SPLITS.items():
        seeds = []

        class Spy(ASEnv):
            def _begin(self, seed):
                seeds.append(seed)
                super()._begin(seed)

        env = Spy(split=split)
        env.reset(seed=0)
        for _ in range(200):
            env.reset()
        env.reset(options={"episode": E.SPLIT_SIZE - 1})
        assert len(set(seeds)) == len(seeds) and all(s in span for s in seeds)
        many = ASVectorEnv(50, Task(steps=2), split=split)
        many.reset(seed=1)
        first = np.uint64(span.start) + many.episodes.astype(np.uint64)
        assert (many.episodes >= 0).all() and (many.episodes < E.SPLIT_SIZE).all()
        assert (E._streams_of(many, many.episodes) == E.episode_streams(first)).all()
    for n in (-1, E.SPLIT_SIZE, 1.5, True, None):
        with pytest.raises(ParameterError, match="no more sessions"):
            E.episode_seed("test", n)
    for bad in (-1, E.SPLIT_SIZE):
        with pytest.raises(ParameterError, match="no more sessions"):
            ASEnv().reset(options={"episode": bad})
        with pytest.raises(ParameterError, match="no more sessions"):
            ASVectorEnv(2).reset(options={"episode": bad})
    for make in (lambda: ASEnv(split="all"), lambda: ASVectorEnv(1, split="all"), lambda: E.episode_seed("all", 0)):
        with pytest.raises(ParameterError, match="split"):
            make()


def test_the_same_number_is_another_session_in_another_split():
    rows = [play(ASEnv(split=s), draw(HARD, 60), 17) for s in SPLITS]
    assert len({r[:, E.MID].tobytes() for r in rows}) == 3
    many = [ASVectorEnv(4, split=s) for s in SPLITS]
    for e in many:
        e.reset(options={"episode": 0})
        for t in range(50):
            e.step(draw(HARD, 4, t))
    assert len({e.outs[:, E.MID].tobytes() for e in many}) == 3


# --- what a session adds up to --------------------------------------------------------------------------------------

@pytest.mark.parametrize("phase", list(PHASES))
def test_rewards_and_attribution_add_up(phase):
    env = ASEnv(HARD, world=WILD)
    for episode in range(20):
        rows = play(env, draw(HARD, 60, episode), episode, phase)
        q, mid = rows[:, E.INVENTORY], np.r_[WILD.mid, rows[:, E.MID]]
        assert math.isclose(rows[:, E.REWARD].sum() + rows[:, E.PENALTY].sum(), rows[-1, E.PNL], abs_tol=1e-7)
        whole = rows[:, E.CAPTURED].sum() + (q * np.diff(mid)).sum() - rows[:, E.FEES].sum()
        assert math.isclose(whole, rows[-1, E.PNL], abs_tol=1e-6)
        assert (np.diff(np.r_[0, q]) == rows[:, E.BOUGHT] - rows[:, E.SOLD]).all() and np.abs(q).max() <= HARD.max_inventory
        assert rows[-1, E.TRUNCATED] == 1 and (rows[:-1, E.TRUNCATED] == 0).all() and (rows[:, E.ASK] - rows[:, E.BID] == 1).all()
        sigma = np.r_[rows[0, E.SIGMA] if phase != "switching" else np.nan, rows[:-1, E.SIGMA]]
        penalty = (0.02 + 0.003 * sigma**2) * q**2 * 0.5 + 0.1 * (rows[:, E.BOUGHT]**2 + rows[:, E.SOLD]**2)
        penalty[-1] += 0.5 * q[-1]**2
        start = 1 if phase == "switching" else 0
        assert np.allclose(rows[start:, E.PENALTY], penalty[start:])


def test_limits_cut_sizes_and_silence_a_side():
    env = ASEnv(Task(max_lots=5, max_inventory=3, min_offset=-60.0, max_loss=1e9), world=ASWorld(A=1e6))  # all is filled
    env.reset(options={"episode": 0})
    env.step([-1, 1, 1, -1])
    assert env.out[E.BOUGHT] == 3 and env.out[E.POSTED] == 3 and np.isnan(env.quotes[1])
    env.step([-1, 1, 1, -1])
    assert env.out[E.BOUGHT] == 0 and env.out[E.POSTED] == 0 and np.isnan(env.quotes).all()
    env.step([1, -1, -1, 1])
    assert env.out[E.SOLD] == 5 and env.out[E.INVENTORY] == -2


def test_sizes_are_rounded_half_up_and_offsets_linear():
    task = Task(max_lots=4, min_offset=-2.0, max_offset=8.0)
    env = ASEnv(task)
    for a, lots in ((-1, 0), (-0.76, 0), (-0.75, 1), (-0.25, 2), (0.0, 2), (0.25, 3), (0.74, 3), (0.75, 4), (1, 4)):
        env.reset(options={"episode": 1})
        env.step([-0.5, 0.5, a, -1])
        assert env.out[E.POSTED] == lots == E.quotes_of_action([0, 0, a, -1], task=task, inventory=0, sigma=1, tau_s=1)[2]
        if lots:
            assert env.quotes[0] == 10_000 - 0.5
    env.step([0, 0.5, -1, 1])
    assert env.quotes[1] - (env.out[E.MID] + 5.5) in (-2.0, 2.0)  # the mid moved by sigma after the quote


@pytest.mark.parametrize("offset", [1.0, 4.0, 9.0])
def test_profit_of_a_fixed_spread_is_the_closed_form(offset):
    n, task, world = 4000, Task(max_inventory=10**6, max_loss=1e12, fee_ticks=0.3), ASWorld(sigma=1.0)
    env = ASVectorEnv(n, task, world=world, autoreset="off", split="validation")
    env.reset(options={"episode": 0})
    action = np.tile(np.array([offset / 10 - 1, offset / 10 - 1, 1, 1], np.float32), (n, 1))
    for _ in range(task.steps):
        env.step(action)
    w, p = env.outs[:, E.PNL], 1 - math.exp(-world.A * math.exp(-world.k * offset))
    var = 2 * 200 * p * (1 - p) * (offset - 0.3)**2 + 2 * p * (1 - p) * 200 * 201 / 2
    assert abs(w.mean() - 400 * p * (offset - 0.3)) < 4.5 * math.sqrt(var / n)
    assert abs(w.var() / var - 1) < 4.5 * math.sqrt(3 / n)


def test_observation_says_what_out_says():
    env = ASEnv(HARD, world=WILD)
    obs, info = env.reset(options={"episode": 2})
    assert obs.tolist() == [0, 1, 0, 3, 0, 1, 1, 0, 0, 1] and info["session"] == 2
    before = 0.0
    for a in draw(HARD, 60):
        obs, reward, _, _, info = env.step(a)
        o = env.out
        want = [1e4 * (o[E.MID] / 1e4 - 1), 1, o[E.INVENTORY] / 7, o[E.SIGMA], 0, 1, 1, o[E.PNL] - before, o[E.BOUGHT] + o[E.SOLD],
                1 - o[E.STEP] / 60]
        assert np.allclose(obs, want, rtol=1e-6, atol=1e-6) and env.observation_space.contains(obs)
        assert info["pnl"] == o[E.PNL] and info["inventory"] == o[E.INVENTORY] and reward == o[E.REWARD]
        before = o[E.PNL]
    assert set(info["episode_stats"]) == set(E.STATS)
    bare = ASEnv(Task(time_left=False))
    assert bare.reset(seed=1)[0].shape == (9,) == bare.step([0, 0, 0, 0])[0].shape


def test_observations_are_clipped_to_their_box():
    env = ASEnv(Task(max_loss=1e300, steps=30), world=ASWorld(sigma=1e5, spread=1e6))
    env.reset(options={"episode": 0})
    for a in draw(HARD, 30):
        assert env.observation_space.contains(env.step(a)[0])


def test_phases_act_from_the_next_session():
    env = ASEnv(Task(steps=5))
    env.reset(seed=1)
    env.set_phase("high")
    env.step([0, 0, 0, 0])
    assert env.out[E.SIGMA] == 2.0
    for phase, sigma in (("high", 4.0), ("low", 1.0), ("medium", 2.0)):
        env.set_phase(phase)
        env.reset()
        assert env.out[E.SIGMA] == sigma
    many = ASVectorEnv(6, Task(steps=3))
    many.reset(seed=1)
    many.set_phase("high")
    sigmas = [(many.step(np.zeros((6, 4))), many.outs[0, E.SIGMA])[1] for _ in range(3)]
    assert sigmas == [2.0, 2.0, 4.0]  # after the third step they have begun anew
    many.set_phase("switching")
    many.reset(options={"episode": 0})
    assert set(many.outs[:, E.SIGMA]) <= {1.0, 2.0, 4.0} and len(set(many.outs[:, E.SIGMA])) > 1


# --- Gymnasium's rules ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", [Task(), Task(action="as", time_left=False), HARD])
def test_both_checkers_pass(task):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ASEnv(task), skip_render_check=True)
        checker = pytest.importorskip("stable_baselines3.common.env_checker")
        checker.check_env(ASEnv(task))


def test_registered_names():
    assert {"makerlab/AS-v0", "makerlab/LOB-v0", "makerlab/Replay-v0"} <= set(gymnasium.registry)
    env = gymnasium.make("makerlab/AS-v0", task=HARD, split="test", disable_env_checker=True)
    assert type(env) is ASEnv and env.task is not None and env.split == "test" and env.spec.id == "makerlab/AS-v0"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked = gymnasium.make("makerlab.learning.env:makerlab/AS-v0", render_mode="rgb_array")
        check_env(checked.unwrapped)
    many = gymnasium.make_vec("makerlab/AS-v0", num_envs=3, vectorization_mode="vector_entry_point")
    assert type(many) is ASVectorEnv and many.reset(seed=1)[0].shape == (3, 10)
    each = gymnasium.make_vec("makerlab/AS-v0", num_envs=2, vectorization_mode="sync")
    each.reset(seed=1)
    assert each.step(np.zeros((2, 4), np.float32))[0].shape == (2, 10)
    E.register_worlds()  # twice does no harm


def test_render():
    import matplotlib.pyplot as plt
    open_before = len(plt.get_fignums())
    env = ASEnv(HARD, render_mode="rgb_array")
    env.reset(seed=1)
    empty = env.render()
    for a in draw(HARD, 40):
        env.step(a)
    image = env.render()
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.shape == empty.shape and (image != empty).any()
    assert ASEnv().render() is None and len(plt.get_fignums()) == open_before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        human = ASEnv(Task(steps=2), render_mode="human")
        human.reset(seed=1)
        human.step([0, 0, 0, 0])
        assert human.render() is None
    with pytest.raises(ParameterError, match="render_mode"):
        ASEnv(render_mode="ansi")


@pytest.mark.parametrize("how", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_goes_on_alone(how):
    env = ASEnv(HARD, world=WILD)
    env.reset(options={"episode": 3})
    for a in draw(HARD, 20):
        env.step(a)
    twin, rows = how(env), draw(HARD, 40, 1)
    kept = twin.out.copy()
    mine = [env.step(a)[:2] for a in rows]
    assert (twin.out == kept).all()
    theirs = [twin.step(a)[:2] for a in rows]
    assert all((a[0] == b[0]).all() and a[1] == b[1] for a, b in zip(mine, theirs, strict=True)) and (env.out == twin.out).all()


def test_a_long_session_outgrows_its_first_tape():
    env = ASEnv(Task(steps=2500, max_loss=1e9))
    rows = play(env, np.zeros((2500, 4), np.float32))
    assert len(rows) == 2500 and (env._tape[:2500, :E.N_OUT] == rows).all()


# --- bad input ------------------------------------------------------------------------------------------------------

BAD = [dict(steps=0), dict(steps=2.0), dict(steps=True), dict(dt_s=-1.0), dict(dt_s=math.inf), dict(max_lots=0), dict(max_inventory=0),
       dict(min_offset=math.nan), dict(max_offset=-1.0), dict(max_loss=0.0), dict(inventory_penalty=-0.1), dict(variance_penalty=math.nan),
       dict(impact_penalty=-1.0), dict(end_penalty=math.inf), dict(fee_ticks=math.nan), dict(action="both"), dict(gamma_range=(0.0, 1.0)),
       dict(k_range=(2.0, 1.0)), dict(gamma_range=0.1), dict(k_range=(1.0, 2.0, 3.0)), dict(time_left="no")]


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_nonsense_tasks(fields):
    with pytest.raises(ParameterError, match=next(iter(fields))):
        Task(**fields)


@pytest.mark.parametrize("fields", [dict(mid=0.0), dict(sigma=-1.0), dict(A=math.nan), dict(k=0.0), dict(spread=-1.0), dict(drift=math.inf)], ids=str)
def test_nonsense_worlds(fields):
    with pytest.raises(ParameterError, match=next(iter(fields))):
        ASWorld(**fields)


def test_wrong_kinds():
    for make in (lambda: ASEnv({"steps": 3}), lambda: ASEnv(world=3), lambda: ASVectorEnv(2, {"steps": 3}), lambda: ASVectorEnv(2, world=None)):
        with pytest.raises(ParameterError, match="must be a"):
            make()
    for n in (0, 2.0, True):
        with pytest.raises(ParameterError, match="num_envs"):
            ASVectorEnv(n)
    with pytest.raises(ParameterError, match="threads"):
        ASVectorEnv(2, threads=0)
    with pytest.raises(ParameterError, match="autoreset"):
        ASVectorEnv(2, autoreset="next")


@pytest.mark.parametrize("bad, says", [([0, 0, math.nan, 0], "diverged"), ([math.inf, 0, 0, 0], "not finite"), ([0, 0, 0, 1.001], "np.clip"),
                                       ([0, 0, 0], "shape"), ([[0, 0, 0, 0]], "shape"), (0.0, "shape"), (None, "shape")])
def test_bad_actions_are_refused_and_change_nothing(bad, says):
    env = ASEnv(HARD)
    env.reset(options={"episode": 0})
    env.step([0, 0, 1, 1])
    block = env._block[:E._DONE].copy()
    with pytest.raises(ParameterError, match=says):
        env.step(bad)
    assert np.array_equal(env._block[:E._DONE], block, equal_nan=True) and env._count == 1
    env.step([0, 0, 1, 1])
    many = ASVectorEnv(3, HARD)
    many.reset(seed=1)
    outs, streams = many.outs.copy(), many._streams.copy()
    with pytest.raises(ParameterError, match="shape" if says == "shape" else says):
        many.step([[0, 0, 0, 0], bad, [0, 0, 0, 0]] if np.shape(bad) == (4,) else np.zeros((3, 3)))
    assert (many.outs == outs).all() and (many._streams == streams).all()


def test_order_of_calls():
    env = ASEnv(Task(steps=2))
    for _ in range(2):
        with pytest.raises(ParameterError, match="call reset"):
            env.step([0, 0, 0, 0])
        env.reset(seed=1)
        env.step([0, 0, 0, 0])
        env.step([0, 0, 0, 0])
    with pytest.raises(ParameterError, match="call reset"):
        ASVectorEnv(2).step(np.zeros((2, 4)))
    with pytest.raises(ParameterError, match="episodes"):
        ASVectorEnv(2).reset(options={"episodes": 1})


@pytest.mark.parametrize("where", [E.MID, E.PNL, E.INVENTORY, E.SIGMA])
def test_a_broken_world_stops(where):
    env = ASEnv()
    env.reset(options={"episode": 0})
    env.step([0, 0, 1, 1])
    env.out[where] = math.nan
    with pytest.raises(WorldError, match="broken at step 2") as e:
        env.step([0, 0, 1, 1])
    assert isinstance(e.value, RuntimeError)
    with pytest.raises(ParameterError, match="call reset"):
        env.step([0, 0, 1, 1])
    env.reset(options={"episode": 0})
    env.step([0, 0, 1, 1])
    many = ASVectorEnv(3)
    many.reset(options={"episode": 0})
    many.outs[1, where] = math.nan
    with pytest.raises(WorldError, match="session 1 of split 'train'"):
        many.step(np.tile([0, 0, 1, 1], (3, 1)))


def test_a_blown_limit_terminates():
    env = ASEnv(Task(max_loss=30.0, end_penalty=2.0, steps=10_000), world=ASWorld(drift=-1.0))
    rows = play(env, np.tile(np.array([-1, 1, 1, -1], np.float32), (10_000, 1)))
    assert rows[-1, E.TERMINATED] == 1 and rows[-1, E.TRUNCATED] == 0 and rows[-1, E.PNL] < -30 <= rows[-2, E.PNL]
    assert rows[-1, E.PENALTY] == 2.0 * rows[-1, E.INVENTORY]**2


# --- what importing costs, and without the compiler -------------------------------------------------------------------

def test_no_torch_and_no_compiler_needed():
    code = """
import json, sys, warnings
warnings.simplefilter("error", RuntimeWarning)
import numpy as np
from makerlab.learning import env as E
heavy = sorted({"torch", "stable_baselines3", "ray", "sklearn"} & set(sys.modules))
one, many = E.ASEnv(E.Task(steps=30)), E.ASVectorEnv(2, E.Task(steps=30))
one.set_phase("switching"), many.set_phase("switching")
one.reset(options={"episode": 0}), many.reset(options={"episode": 0})
rng = np.random.default_rng(0)
for a in rng.uniform(-1, 1, (29, 4)).astype(np.float32):
    one.step(a), many.step(np.tile(a, (2, 1)))
print(json.dumps([heavy, one.out.tolist(), many.outs[0].tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    heavy, one, many = json.loads(done.stdout)
    env = ASEnv(Task(steps=30))
    rows = play(env, np.random.default_rng(0).uniform(-1, 1, (29, 4)).astype(np.float32), 0, "switching")
    assert heavy == [] and one == many == rows[-1].tolist()


class Toy(E.MarketMakingEnv):
    "A world in plain Python: what the base class asks of one."

    def _begin(self, seed):
        self.out[:], self._obs[:] = 0.0, 0.0

    def _play(self, action):
        self.out[E.STEP] += 1
        self.out[E.REWARD], self.out[E.TRUNCATED] = self.out[E.STEP], self.out[E.STEP] >= self.task.steps
        self._obs[0] = math.nan if action[0] > 0.9 else self.out[E.STEP]
        self.out[E.REWARD] = math.nan if action[1] > 0.9 else self.out[E.REWARD]
        return int(E.check_actions_nb(action[None])[0])


def test_a_world_needs_two_methods_only():
    with pytest.raises(TypeError, match="_begin"):
        E.MarketMakingEnv()
    toy = Toy(Task(steps=4))
    toy.reset(seed=1)
    assert toy.step([0, 0, 0, 0])[1] == 1.0
    for twin in (copy.deepcopy(toy), pickle.loads(pickle.dumps(toy))):
        assert twin.step([0, 0, 0, 0])[0][0] == 2.0 == twin._tape[1, E.STEP] and toy.out[E.STEP] == 1.0
    with pytest.raises(ParameterError, match="diverged"):
        toy.step([math.nan] * 4)
    for bad in ([1, 0, 0, 0], [0, 1, 0, 0]):  # an observation, a reward
        with pytest.raises(WorldError, match="broken"):
            toy.step(bad)
        toy.reset(seed=1)


def test_one_action_compiled_is_one_action():
    rng = np.random.default_rng(3)
    for action in ("offsets", "as"):
        task = Task(action=action, max_lots=3, min_offset=-2.0, max_offset=9.0)
        p = E.as_parameters(task, E.ASWorld())
        for _ in range(200):
            a = rng.uniform(-1, 1, 4 if action == "offsets" else 2).astype(np.float32)
            q, sigma, tau = float(rng.integers(-9, 10)), rng.uniform(0.1, 5.0), rng.uniform(0, 200)
            assert np.allclose(E.quotes_of_action_nb(p, a, q, sigma, tau)[:2], E.quotes_of_action(a, task=task, inventory=q, sigma=sigma, tau_s=tau)[:2], rtol=1e-12)
            assert E.check_action_nb(a) == E.FINE
    assert E.check_action_nb(np.array([0.0, np.nan])) == E.NOT_A_NUMBER and E.check_action_nb(np.array([0.0, 1.1])) == E.OFF_THE_BOX
