"RLlib beside Stable-Baselines3: the same update, the same training, the same folder; and RLlib's own loop in a Ray that ends."
import logging
import shutil

import numpy as np
import pytest

try:
    import torch

    from makerlab.learning.rllib import SameLearner, advantages_slow, as_episodes, copy_network, in_rllib_words, pairs, quiet, ray_config, train_ray
except ImportError as e:
    pytest.skip(f"RLLIB: {e.name} is not installed (pip install 'makerlab[rl,scale]'): the ray engine was not tested", allow_module_level=True)

import gymnasium
import ray
from stable_baselines3.common.logger import Logger

from makerlab.core import ParameterError
from makerlab.learning.env import ASEnv, Task
from makerlab.learning.rllib import Sessions
from makerlab.learning.training import Normaliser, PPOConfig, build, load_model, make_sessions, train

TASK = Task(steps=40, inventory_penalty=0.05, end_penalty=0.5, max_offset=10.0)
WHOLE = PPOConfig(sessions=4, batch_size=160, n_epochs=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet()
    yield
    torch.set_num_threads(threads)


def start(task=TASK, seed=3):
    "A fresh model with a rollout of its own, not yet trained on."
    env = Normaliser(make_sessions("as", task=task, sessions=WHOLE.sessions), gamma=1.0)
    model = build(WHOLE, env, seed=seed)
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(env, callback, model.rollout_buffer, task.steps)
    return model


def gap_after_update(learner=SameLearner, **changed):
    "Largest difference of a weight after both libraries' update, and the largest move."
    model = start()
    before = [p.detach().clone() for p in model.policy.parameters()]
    made = ray_config(WHOLE, Sessions, session=TASK.steps, steps=10**9, learner=learner, changed={"lr": 3e-4} | changed)
    learns = made.build_learner(env=gymnasium.vector.SyncVectorEnv([lambda: ASEnv(TASK)] * WHOLE.sessions))
    both = pairs(model.policy, learns.module["default_policy"].unwrapped())
    copy_network(both)
    episodes = as_episodes(model.rollout_buffer, model._last_obs, model._last_episode_starts, model.policy)
    learns.update(episodes=episodes, num_epochs=WHOLE.n_epochs, timesteps={"num_env_steps_sampled_lifetime": 0})
    model.train()
    moved = max(float((a.detach() - b).abs().max()) for a, b in zip(model.policy.parameters(), before, strict=True))
    return max(float((a - b).detach().abs().max()) for a, b in both), moved


def test_one_update_is_the_same_and_one_default_is_not():
    gap, moved = gap_after_update()
    assert gap < 2e-3 * moved and moved > 1e-4
    for changed in ({"lambda_": 1.0}, {"vf_clip_param": 0.5}, {"vf_loss_coeff": 1.0}, {"grad_clip": None}):
        assert gap_after_update(**changed)[0] > 20 * gap, changed

    class OldAdam(SameLearner):
        epsilon = 1e-8

    assert gap_after_update(OldAdam)[0] > 20 * gap


def test_the_numbers_are_the_seeds():
    words = in_rllib_words(PPOConfig(), session=200, steps=1_000_000)
    assert (words["use_kl_loss"], words["lambda_"], words["vf_clip_param"], words["clip_param"], words["entropy_coeff"], words["vf_loss_coeff"]) == (False, 0.95, float("inf"), 0.2, 0.01, 0.5)
    batch = words["train_batch_size_per_learner"]
    assert words["lr"] == [[0, pytest.approx(3e-4 * (1 - batch / 1e6))], [1_000_000 - batch, 0.0]]
    assert in_rllib_words(PPOConfig(), session=200, steps=batch, start=0)["lr"] == 0.0, "the last batch of all"
    half = in_rllib_words(PPOConfig(), session=200, steps=1_000_000, start=500_000)["lr"][0][1]
    assert half == pytest.approx(3e-4 * (0.5 - batch / 1e6))


@pytest.mark.parametrize("ended", [True, False])
def test_advantages_are_rllibs(ended):
    from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

    rng = np.random.default_rng(5)
    rewards, values = rng.normal(size=30), rng.normal(size=31)
    flag = np.append(np.zeros(29), [1.0, 0.0])
    theirs = compute_value_targets(values, np.append(rewards, 0.0), flag * ended, flag * (not ended), gamma=0.97, lambda_=0.9)[:30] - values[:30]
    assert np.allclose(advantages_slow(rewards.tolist(), values.tolist(), gamma=0.97, lambda_=0.9, ended=ended), theirs, atol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "The same short training by both engines."
    home, rows = tmp_path_factory.mktemp("runs"), {"sb3": [], "ray": []}
    train("as", steps=640, seed=7, out=home / "sb3", task=TASK, config=WHOLE, progress=rows["sb3"].append)
    train_ray("as", steps=640, seed=7, out=home / "ray", task=TASK, config=WHOLE, checkpoint_every=160, progress=rows["ray"].append)
    return home, rows


def test_a_training_is_the_same_in_both(runs):
    home, rows = runs
    a, b = load_model(home / "sb3"), load_model(home / "ray")
    assert [r["steps"] for r in rows["ray"]] == [160, 320, 480, 640] and b.manifest["engine"] == "ray"
    assert all(abs(x["reward"] - y["reward"]) < 0.05 for x, y in zip(rows["sb3"], rows["ray"], strict=True)), "the same sessions, the same noise"
    assert max(np.abs(a.policy[k] - b.policy[k]).max() for k in a.policy) < 1e-4
    assert all(np.allclose(a.normaliser[k], b.normaliser[k], rtol=1e-3, atol=1e-3) for k in a.normaliser)
    assert not ray.is_initialized()


def test_going_on_from_a_checkpoint_is_the_same_run(runs, tmp_path):
    home, _ = runs
    for stale in (home / "ray" / "checkpoints").iterdir():
        if stale.name == "0000000480":
            shutil.copytree(stale, tmp_path / "cut" / "checkpoints" / stale.name)
    train_ray("as", steps=640, seed=7, out=tmp_path / "cut", resume=tmp_path / "cut")
    a, b = load_model(home / "ray"), load_model(tmp_path / "cut")
    assert b.manifest["engine"] == "ray" and all(np.array_equal(a.policy[k], b.policy[k]) for k in a.policy)


def test_phases_reach_the_sessions(tmp_path):
    seen = []
    train_ray("as", steps=640, seed=1, out=tmp_path / "c", task=TASK, config=WHOLE, curriculum=True, progress=lambda r: seen.append(r["phase"]))
    assert seen == ["low", "medium", "high", "high"] or seen[0] == "low" and len(set(seen)) > 2, seen


def test_bad_input(tmp_path):
    for kwargs, says in ((dict(env_name="nyse"), "no registered world"), (dict(steps=0), "steps = 0"), (dict(seed=-1), "seed = -1")):
        with pytest.raises(ParameterError, match=says):
            train_ray(**{"env_name": "as", "steps": 160, "seed": 1, "out": tmp_path / "x"} | kwargs)
    assert not (tmp_path / "x").exists()


def test_rllibs_own_loop_gives_the_same_to_the_bit(runs, tmp_path, capfd):
    "The smoke test of RLlib's Algorithm: two rollouts in a Ray that is silent and gone afterwards."
    home, _ = runs
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        train_ray("as", steps=640, seed=7, out=tmp_path / "a", task=TASK, config=WHOLE, algorithm=True)
    except ParameterError as e:
        if "does not start on this machine" not in str(e):
            raise
        pytest.skip(f"RAY: {e}")
    a, b = load_model(home / "ray"), load_model(tmp_path / "a")
    assert all(np.array_equal(a.policy[k], b.policy[k]) for k in a.policy)
    assert not ray.is_initialized() and "WARNING" not in capfd.readouterr().err
