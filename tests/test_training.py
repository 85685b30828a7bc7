"PPO: the network, the checkpoints, the resume after a kill, and everything that is refused."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv

from makerlab.core import ParameterError
from makerlab.learning import env as E
from makerlab.learning import training
from makerlab.learning.baselines import fixed_spread
from makerlab.learning.env import ASEnv, ASVectorEnv, Task
from makerlab.learning.training import (
    Curriculum, LearnedPolicy, ModelError, Normaliser, PPOConfig, SB3Vec, SessionEnd, SharedTrunk, TrainingError, build, config_for,
    count_parameters, imitate, learning_curve, load_model, make_sessions, newest, policy_of, read_manifest, train, world_name)

TASK = Task(steps=20, max_offset=10.0, inventory_penalty=0.05, end_penalty=0.5)
SMALL = PPOConfig(sessions=8, batch_size=80, n_epochs=2)


class Toy(VectorEnv):
    "Many sessions of a world that pays for an action near the first observation; NaN from step `broken` on, a reward of NaN in step `unpaid`."

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, n=4, width=10, actions=4, broken=None, unpaid=None, time_left=True):
        self.num_envs, self.task, self.broken, self.unpaid, self.rng = n, replace(TASK, time_left=time_left), broken, unpaid, np.random.default_rng(0)
        self.single_observation_space = spaces.Box(-1e4, 1e4, (width,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (actions,), np.float32)
        self.observation_space, self.action_space = batch_space(self.single_observation_space, n), batch_space(self.single_action_space, n)
        self.phase, self.t, self.steps = "medium", 0, 0

    def set_phase(self, phase):
        self.phase = phase

    def _see(self):
        self.obs = self.rng.uniform(-1, 1, (self.num_envs, self.single_observation_space.shape[0])).astype(np.float32)
        if self.broken is not None and self.steps >= self.broken:
            self.obs[2, 3] = np.nan
        return self.obs.copy()

    def reset(self, *, seed=None, options=None):
        self.rng, self.t = np.random.default_rng(seed), 0
        return self._see(), {}

    def step(self, actions):
        rewards = -((actions - self.obs[:, :1]) ** 2).sum(axis=1).astype(np.float64)
        self.t, self.steps = self.t + 1, self.steps + 1
        rewards[1] = np.nan if self.steps == self.unpaid else rewards[1]
        over = np.full(self.num_envs, self.t >= self.task.steps)
        final = self._see()
        self.t = 0 if over.all() else self.t
        info = {"final_obs": final, "_final_obs": over} if over.any() else {}
        return (self._see() if over.any() else final), rewards, np.zeros(self.num_envs, bool), over, info


def agent(width=10, **kw):
    return build(SMALL, Normaliser(SB3Vec(Toy(width=width, **kw)), gamma=1.0), seed=0)


def run(out, **kw):
    return train("as", **{"steps": 960, "seed": 3, "out": out, "task": TASK, "config": SMALL, "checkpoint_every": 160, **kw})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ppo") / "run")


def same(a, b):
    parts = ("policy", "optimiser", "normaliser")
    return all(set(getattr(a, p)) == set(getattr(b, p)) and all(np.array_equal(v, getattr(b, p)[k]) for k, v in getattr(a, p).items()) for p in parts)


# ---- the network
@pytest.mark.parametrize(("width", "expected"), [(9, 101_897), (10, 102_153)])
def test_parameters_are_the_seeds(width, expected):
    policy = agent(width).policy
    assert count_parameters(policy) == expected
    assert isinstance(policy.features_extractor, SharedTrunk) and policy.pi_features_extractor is policy.vf_features_extractor
    assert policy.action_net.in_features == policy.value_net.in_features == 128


@pytest.mark.parametrize("loss", ["policy", "value"])
def test_each_loss_reaches_every_layer_of_the_trunk(loss):
    policy = agent().policy
    obs, actions = torch.randn(32, 10), torch.zeros(32, 4)
    with torch.no_grad():
        policy.action_net.weight.mul_(100)  # its start is nearly zero
    values, log_prob, _ = policy.evaluate_actions(obs, actions)
    (-log_prob.mean() if loss == "policy" else ((values - 1) ** 2).mean()).backward()
    for name, p in policy.features_extractor.named_parameters():
        assert p.grad is not None and float(p.grad.abs().sum()) > 0, name


def test_the_trap_of_net_arch_is_real():
    from stable_baselines3 import PPO
    two = PPO("MlpPolicy", SB3Vec(Toy(width=9)), policy_kwargs={"net_arch": [256, 256, 128]}, n_steps=20, batch_size=40, device="cpu")
    assert count_parameters(two.policy) == 203_145


def test_config_is_the_seeds():
    c = PPOConfig()
    assert (c.learning_rate, c.clip_range, c.gae_lambda, c.ent_coef, c.vf_coef, c.hidden, c.gamma, c.threads) == (3e-4, 0.2, 0.95, 0.01, 0.5, (256, 256, 128), 1.0, 1)
    model = agent()
    assert model.lr_schedule(1.0) == 3e-4 and model.lr_schedule(0.5) == 1.5e-4 and model.lr_schedule(0.0) == 0.0
    assert model.n_steps == TASK.steps and model.gae_lambda == 0.95 and model.clip_range(0.3) == 0.2


@pytest.mark.parametrize("bad", [{"sessions": 0}, {"batch_size": 1}, {"n_epochs": 2.5}, {"learning_rate": 0.0}, {"clip_range": -0.2}, {"gamma": 0.0}, {"gae_lambda": 1.1},
                                 {"ent_coef": -1.0}, {"log_std_init": float("nan")}, {"log_std_final": 0.0}, {"size_init": float("inf")}, {"offset_init": float("nan")}, {"size_reach": 0.0}, {"hidden": ()}, {"hidden": (0,)}, {"threads": True}])
def test_config_refuses(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        PPOConfig(**bad)


def test_config_for_small_and_large_runs():
    assert config_for(20_000).sessions == 4 and config_for(1_000_000).sessions == 64


# ---- adapters
def test_adapter_equals_the_vector_env_and_marks_ends():
    vec, twin = SB3Vec(ASVectorEnv(3, TASK)), ASVectorEnv(3, TASK)
    vec.seed(5)
    assert np.array_equal(vec.reset(), twin.reset(seed=5)[0])
    total = np.zeros(3)
    for _ in range(TASK.steps):
        a = np.full((3, 4), 0.3, np.float32)
        obs, rewards, dones, infos = vec.step(a)
        other = twin.step(a)
        total += other[1]
        assert np.array_equal(obs, other[0]) and np.allclose(rewards, other[1])
    assert dones.all() and [i["episode"]["l"] for i in infos] == [TASK.steps] * 3
    assert np.allclose([i["episode"]["r"] for i in infos], total) and not any(i["TimeLimit.truncated"] for i in infos)
    assert np.array_equal(infos[1]["terminal_observation"], other[4]["final_obs"][1])


def test_a_session_without_time_to_go_is_bootstrapped():
    vec = SB3Vec(ASVectorEnv(2, replace(TASK, time_left=False)))
    vec.reset()
    for _ in range(TASK.steps):
        *_, infos = vec.step(np.zeros((2, 4), np.float32))
    assert all(i["TimeLimit.truncated"] for i in infos)


@pytest.mark.parametrize(("seen", "ended"), [(True, (True, False)), (False, (False, True))])
def test_single_sessions_end_likewise(seen, ended):
    env = SessionEnd(ASEnv(replace(TASK, time_left=seen)))
    env.reset(seed=0)
    for _ in range(TASK.steps):
        _, _, *got, info = env.step(np.zeros(4, np.float32))
    assert tuple(got) == ended and info["episode"]["l"] == TASK.steps


def test_adapter_refuses_other_restarts():
    with pytest.raises(ParameterError, match="SAME_STEP"):
        SB3Vec(ASVectorEnv(2, TASK, autoreset="off"))


def test_silent_observations_stay_unheard():
    env = Normaliser(SB3Vec(Toy()), gamma=1.0)
    env.reset()
    env.obs_rms.mean, env.obs_rms.var = np.full(10, 2.0), np.array([1e-9] + [4.0] * 9)
    out = env.normalize_obs(np.full((1, 10), 6.0, np.float32))
    assert out[0, 0] == 0.0 and np.allclose(out[0, 1:], 2.0)


def test_worlds_by_name():
    assert world_name("as") == world_name("makerlab/AS-v0") == "makerlab/AS-v0"
    with pytest.raises(ParameterError, match="no registered world"):
        world_name("moon")
    assert isinstance(make_sessions("as", task=TASK, sessions=2), VecEnv)


# ---- curriculum
def test_curriculum_is_the_seeds_and_scales():
    c = Curriculum.scaled(1_250_000)
    assert [c.phase(s) for s in (0, 249_999, 250_000, 500_000, 999_999, 1_000_000, 9_999_999)] == ["low", "low", "medium", "high", "high", "switching", "switching"]
    assert Curriculum.scaled(1000).stages == ((0, "low"), (200, "medium"), (400, "high"), (800, "switching"))
    for bad in ((), ((5, "low"),), ((0, "low"), (0, "high")), ((0, "boiling"),)):
        with pytest.raises(ParameterError):
            Curriculum(bad)


def test_curriculum_reaches_the_world(tmp_path):
    run(tmp_path / "a", curriculum=True)
    phases = list(learning_curve(tmp_path / "a")["phase"])
    assert phases == ["low", "low", "medium", "high", "high", "switching"]


# ---- splits
def test_training_sees_the_sessions_of_train_and_no_others(tmp_path, monkeypatch):
    seen, drawn = [], E.episode_streams
    monkeypatch.setattr(E, "episode_streams", lambda seeds: seen.append(np.array(seeds, dtype=np.uint64).ravel()) or drawn(seeds))
    run(tmp_path / "a", steps=320)
    for one in make_sessions("as", task=TASK, sessions=2), training.make_world("as", task=TASK, sessions=2, split="validation"), training.make_world("as", task=TASK, split="test"):
        one.reset()
    seeds = [{name for s in batch.tolist() for name, span in E.SPLITS.items() if s in span} for batch in seen]
    assert len(seen) > 5 and all(s == {"train"} for s in seeds[:-3]), "training, and two begun by hand"
    assert "train" in seeds[-4] and {"validation"} in seeds and seeds[-1] == {"test"}


# ---- checkpoints and resume
def test_same_seed_same_weights_other_seed_others(trained, tmp_path):
    assert same(load_model(trained), load_model(run(tmp_path / "again")))
    assert not same(load_model(trained), load_model(run(tmp_path / "other", seed=4)))


def test_resume_equals_uninterrupted(trained, tmp_path):
    older = sorted((trained / "checkpoints").iterdir())[0]
    assert read_manifest(older)["steps"] < 960
    again = run(tmp_path / "resumed", resume=older)
    assert same(load_model(trained), load_model(again)) and read_manifest(again)["steps"] == 960
    a, b = learning_curve(trained), learning_curve(again)
    assert a.drop(columns="seconds").equals(b.drop(columns="seconds"))


def test_the_ceiling_on_the_noise_falls(trained):
    std = learning_curve(trained)["std"].to_numpy()
    ceiling = np.exp(-1.0 - 0.75 * np.arange(6) / 6.0)
    assert (std <= ceiling * 1.02).all() and std[-1] < 0.6 * std[0]


def test_kill_9_and_resume(trained, tmp_path):
    out = tmp_path / "killed"
    code = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_training as t
t.run({str(out)!r}, progress=lambda row: time.sleep(0.3))
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(6000):
        if list((out / "checkpoints").glob("0*")) or child.poll() is not None:
            break
        time.sleep(0.05)
    assert child.poll() is None, child.stderr.read().decode()[-800:]
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stderr.close()
    steps = read_manifest(out)["steps"]
    assert 0 < steps < 960
    run(out, resume=out)
    assert read_manifest(out)["steps"] == 960 and same(load_model(trained), load_model(out))


def test_a_half_written_checkpoint_is_no_checkpoint(trained, tmp_path):
    out = run(tmp_path / "a", steps=320)
    beside = out / "checkpoints" / ".0000000999.77"
    beside.mkdir()
    (beside / "policy.npz").write_bytes(b"half")
    assert newest(out).name == "0000000320"


def test_resume_refuses_another_run(trained, tmp_path):
    for bad in ({"seed": 4}, {"steps": 2000}, {"task": replace(TASK, fee_ticks=1.0)}, {"config": replace(SMALL, n_epochs=3)}, {"curriculum": True}, {"world": {"sigma": 1.0}}):
        with pytest.raises(ParameterError, match="goes on as it began"):
            run(tmp_path / "x", resume=trained, **bad)
    with pytest.raises(ParameterError, match="holds a run already"):
        run(trained)
    with pytest.raises(ModelError, match="no model"):
        run(tmp_path / "x", resume=tmp_path)


def test_a_finished_run_is_left_alone(trained):
    before = load_model(trained)
    run(trained, resume=trained)
    assert same(before, load_model(trained))


def test_two_checkpoints_are_kept(trained):
    assert [p.name for p in sorted((trained / "checkpoints").iterdir())] == ["0000000800", "0000000960"]


# ---- what is refused
def copy_of(model, folder, change=None, files=None):
    manifest = {k: v for k, v in model.manifest.items() if k not in ("files", "format")} | (change or {})
    return training.write_model(folder, files or {"policy": model.policy, "optimiser": model.optimiser, "normaliser": model.normaliser}, manifest)


def test_a_changed_byte_is_refused(trained, tmp_path):
    path = copy_of(load_model(trained), tmp_path / "m")
    assert same(load_model(path), load_model(trained))
    data = bytearray((path / "policy.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "policy.npz").write_bytes(bytes(data))
    with pytest.raises(ModelError, match="digest"):
        load_model(path)


def test_another_format_or_version_is_refused(trained, tmp_path):
    path = copy_of(load_model(trained), tmp_path / "m")
    text = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(text | {"format": 99}))
    with pytest.raises(ModelError, match="format 99"):
        load_model(path)
    (path / "manifest.json").write_text(json.dumps(text | {"versions": text["versions"] | {"makerlab": "99.0"}}))
    with pytest.raises(ModelError, match=r"makerlab 99\.0"):
        load_model(path)
    (path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="no manifest"):
        load_model(path)


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


def test_pickles_are_refused_before_they_run(trained, tmp_path, monkeypatch):
    import pickle
    monkeypatch.setenv("EVIL", str(tmp_path / "owned"))
    model = load_model(trained)
    monkeypatch.setattr(training, "_pack", lambda arrays: _pickled(arrays))
    path = copy_of(model, tmp_path / "m", files={"policy": {"x": np.array([Evil()], dtype=object)}, "optimiser": {}, "normaliser": {}})
    with pytest.raises(ModelError, match="plain arrays"):
        load_model(path)  # its digest is right
    for name in ("model.zip", "vecnormalize.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ModelError, match="may run any code in it"):
            load_model(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def _pickled(arrays):
    import io
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_strange_files_and_paths_are_refused(trained, tmp_path):
    path = copy_of(load_model(trained), tmp_path / "m")
    (path / "extra.pkl").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"extra\.pkl"):
        load_model(path)
    (path / "extra.pkl").unlink()
    (path / "optimiser.npz").unlink()
    with pytest.raises(ModelError, match="not whole"):
        load_model(path)
    text = json.loads((path / "manifest.json").read_text())
    text["files"]["../policy.npz"] = text["files"]["policy.npz"]
    (path / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="own folder"):
        load_model(path)


def test_a_model_of_another_shape_is_refused(trained, tmp_path):
    path = copy_of(load_model(trained), tmp_path / "m", change={"task": load_model(trained).manifest["task"] | {"time_left": False}})
    with pytest.raises(ModelError, match="does not fit"):
        train("as", steps=960, seed=3, out=tmp_path / "x", resume=copy_of(load_model(path), tmp_path / "n", change={"steps": 160}))


# ---- numbers that are none
def test_nan_observation_stops_training():
    model = build(SMALL, Normaliser(SB3Vec(Toy(broken=7)), gamma=1.0), seed=0)
    with pytest.raises(TrainingError, match=r"observation 'sigma' = nan in session 2, step 7"):
        model.learn(100)


def test_nan_reward_stops_training():
    model = build(SMALL, Normaliser(SB3Vec(Toy(unpaid=5)), gamma=1.0), seed=0)
    with pytest.raises(TrainingError, match=r"reward = nan in session 1, step 5"):
        model.learn(100)


def test_broken_world_stops_training(tmp_path):
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=r"is broken|not finite|nan|inf"):
        run(tmp_path / "x", world={"sigma": 1e308})


def test_nan_weights_stop_training(tmp_path, monkeypatch):
    kept = training._set_off
    def spoil(model, *a):
        kept(model, *a)
        if model.num_timesteps >= 320:
            with torch.no_grad():
                model.policy.value_net.bias.fill_(float("nan"))
    monkeypatch.setattr(training, "_set_off", spoil)
    with pytest.raises(TrainingError, match="no number"):
        run(tmp_path / "x")
    assert read_manifest(tmp_path / "x")["steps"] == 320 and np.isfinite(load_model(tmp_path / "x").policy["value_net.bias"]).all()


# ---- the policy
def test_policy_equals_torchs(trained):
    saved = load_model(trained)
    env = Normaliser(make_sessions("as", task=TASK, sessions=8), gamma=1.0)
    model = build(SMALL, env, seed=0)
    training._restore(model, saved)
    obs = np.random.default_rng(0).uniform(-1, 1, (64, 10)).astype(np.float32) * 3
    want = model.predict(env.normalize_obs(obs), deterministic=True)[0]
    policy = policy_of(trained)
    assert isinstance(policy, LearnedPolicy) and policy.task == TASK and policy.name == "ppo"
    assert np.allclose(policy(obs, None), want, atol=1e-5) and policy(obs, None).dtype == np.float32
    with torch.no_grad():
        value = model.policy.predict_values(torch.as_tensor(env.normalize_obs(obs))).numpy()[:, 0]
    assert np.allclose(saved.value(obs), value * np.sqrt(env.ret_rms.var), rtol=1e-4, atol=1e-4)


def test_manifest_says_what_made_it(trained):
    m = read_manifest(trained)
    assert m["env"] == "makerlab/AS-v0" and m["seed"] == 3 and m["task"]["steps"] == 20 and m["config"]["sessions"] == 8
    assert set(m["files"]) == {"policy.npz", "optimiser.npz", "normaliser.npz"} and all(len(f["sha256"]) == 64 for f in m["files"].values())
    assert {"makerlab", "torch", "stable-baselines3", "numpy", "gymnasium", "python"} <= set(m["versions"])


def test_probe_and_tensorboard(tmp_path):
    seen = []
    run(tmp_path / "a", probe=lambda policy: seen.append(policy) or float(len(seen)), probe_every=480, tensorboard=tmp_path / "tb")
    assert learning_curve(tmp_path / "a")["probe"].dropna().tolist() == [1.0, 2.0] and list((tmp_path / "tb").iterdir())


def test_threads_are_put_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    run(tmp_path / "a", steps=160)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_the_environments_do_not_import_torch():
    code = "import sys, makerlab.learning.env; sys.exit('torch' in sys.modules or 'stable_baselines3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    told = iter([1.0, 3.0, 2.0])
    run(tmp_path / "a", probe=lambda policy: next(told), probe_every=320, keep_best=True)
    curve = learning_curve(tmp_path / "a").dropna(subset="probe")
    assert curve["probe"].tolist() == [1.0, 3.0, 2.0]
    assert read_manifest(tmp_path / "a" / "best")["steps"] == curve["steps"].tolist()[1] < read_manifest(tmp_path / "a")["steps"]
    assert policy_of(tmp_path / "a" / "best").name and not (tmp_path / "b").exists()
    run(tmp_path / "b", probe=lambda policy: 1.0, probe_every=320)
    assert not (tmp_path / "b" / "best").exists()


@pytest.mark.parametrize("reach", [1.0, 0.25])
def test_a_teacher_is_copied_and_its_sizes_only_so_far(reach):
    teacher = fixed_spread(TASK, offset=3.0)
    model = build(SMALL, Normaliser(make_sessions("as", task=TASK, sessions=8), gamma=1.0), seed=1)
    error = imitate(model, teacher, sessions=64, reach=reach, seed=1)
    env = model.get_env()
    obs = torch.as_tensor(env.normalize_obs(env.venv.reset()).astype(np.float32))
    mean = model.policy.get_distribution(obs).distribution.mean.detach().numpy()
    assert error < 0.1
    np.testing.assert_allclose(mean, np.tile([-0.4, -0.4, reach, reach], (8, 1)), atol=0.15)


def test_where_offsets_and_sizes_begin():
    config = replace(SMALL, offset_init=-1.0, size_init=0.5)
    model = build(config, Normaliser(make_sessions("as", task=TASK, sessions=8), gamma=1.0), seed=1)
    assert model.policy.action_net.bias.tolist() == [-1.0, -1.0, 0.5, 0.5]
