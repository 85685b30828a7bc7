"mm-engine train and evaluate: the functions behind them, and the commands as their users meet them."
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from makerlab.cli import app

for needed in ("gymnasium", "torch", "stable_baselines3"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"RL: {needed} is not installed (pip install 'makerlab[rl]'): train and evaluate were not tested", allow_module_level=True)

from makerlab.learning import job  # noqa: E402
from makerlab.learning.training import load_model  # noqa: E402


def call(*args):
    "A command in process: nothing may escape but an exit."
    r = CliRunner().invoke(app, [str(a) for a in args])
    assert r.exception is None or isinstance(r.exception, SystemExit), (args, r.exception)
    return r.exit_code, r.stdout, r.stderr


def refused(*args, says):
    "Exit code 2 and one readable complaint."
    code, out, err = call(*args)
    assert code == 2 and out == "" and "Traceback" not in err and says in err, (args, code, out, err)
    assert err.startswith("mm-engine: ") and err.count("\n") == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A run of 1,600 steps by the command."
    home = tmp_path_factory.mktemp("models") / "as"
    code, out, err = call("train", "--env", "AS-v0", "--steps", 1600, "--seed", 3, "--out", home, "--json")
    assert (code, err) == (0, ""), err
    answer = json.loads(out)
    assert (answer["steps"], answer["seed"], answer["engine"], answer["world"]) == (1600, 3, "sb3", "makerlab/AS-v0") and answer["next"] == f"mm-engine evaluate {home}"
    return home


def test_evaluate_writes_a_report_and_prints_one_table(model, tmp_path):
    code, out, err = call("evaluate", model, "--episodes", 40, "--out", tmp_path / "r")
    assert (code, err) == (0, "")
    for word in ("ppo", "fixed spread", "A-S", "CJ", "exact optimum", "total_pnl", "sharpe", "profit_factor", "max_drawdown", "var_95", "cvar_95", "inventory_sd",
                 "spread_per_lot", "fill_ratio", "adverse_per_lot", "saw none of them", "below the exact optimum", "Report: "):
        assert word in out, word
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert names == {"report.html", "evaluation.md", "metrics.csv", "versus.csv", "episodes.parquet", "quotes.csv", "manifest.json"}
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("<img") == 4 and "http" not in page.replace("http-equiv", "")
    kept = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert kept["model"]["files"].keys() == {"policy.npz", "optimiser.npz", "normaliser.npz"} and kept["optimum"] == pytest.approx(194.848, abs=1e-3)
    episodes = pd.read_parquet(tmp_path / "r" / "episodes.parquet")
    assert len(episodes) == 40 * 5 and episodes.groupby("policy")["reward"].mean()["ppo"] < 150


def test_forms_of_the_answer(model, tmp_path):
    code, out, err = call("evaluate", model, "--episodes", 10, "--out", tmp_path / "r", "--format", "json")
    answer = json.loads(out)
    assert (code, err) == (0, "") and answer["versus"][0]["rival"] == "ppo" and answer["versus"][0]["policy less it"] is None
    code, out, _ = call("evaluate", model, "--episodes", 10, "--out", tmp_path / "r", "--format", "markdown", "--split", "validation")
    assert code == 0 and out.startswith("# Evaluation") and "not held back" in out
    code, out, _ = call("evaluate", model, "--episodes", 10, "--out", tmp_path / "r", "--format", "csv")
    assert code == 0 and out.startswith("metric,value,lo,hi,unit,note,policy")
    refused("evaluate", model, "--format", "pdf", "--out", tmp_path / "r", says="format")


def test_a_verdict_is_the_same_twice_and_its_differences_are_paired(model):
    one, two = (job.evaluate_job(model, episodes=30) for _ in range(2))
    assert one.metrics.equals(two.metrics) and one.versus.equals(two.versus)
    by = {e.name: e.frame["reward"] for e in one.evaluations}
    assert one.versus.loc["CJ", "policy less it"] == pytest.approx((by["ppo"] - by["CJ"]).mean())
    assert abs(one.versus.loc["exact optimum", "below optimum %"]) < 1e-6
    assert job.evaluate_job(model, episodes=30, split="validation").evaluations[0].frame["pnl"].tolist() != one.evaluations[0].frame["pnl"].tolist()


def test_bad_usage(model, tmp_path):
    refused("train", "--env", "NYSE-v0", says="env = 'NYSE-v0' is no world: take AS-v0, LOB-v0, Replay-v0")
    refused("train", "--steps", 0, "--out", tmp_path / "x", says="steps = 0 must be a whole number >= 1")
    refused("train", "--engine", "jax", says="engine = 'jax' must be one of 'sb3', 'ray'")
    refused("train", "--seed", -1, "--steps", 100, "--out", tmp_path / "x", says="seed = -1")
    refused("train", "--steps", 100, "--out", model, says="holds a run already")
    refused("train", "--resume", tmp_path, says="holds no model")
    refused("train", "--resume", model, "--steps", 99, says="a resumed run goes on as it began")
    refused("train", "--resume", model, "--env", "lob", says="a resumed run goes on as it began")
    refused("evaluate", tmp_path, says="holds no model")
    refused("evaluate", model, "--episodes", 0, says="episodes = 0 (sessions) must be a whole number >= 10")
    refused("evaluate", model, "--split", "holdout", says="split = 'holdout' must be one of")
    assert not (tmp_path / "x").exists()
    code, out, err = call("train", "--steps", "many")
    assert code == 2 and "Usage:" in err


def test_a_model_that_was_touched_is_refused(model, tmp_path):
    newest = sorted((model / "checkpoints").iterdir())[-1]
    shutil.copytree(newest, tmp_path / "m")
    body = bytearray((tmp_path / "m" / "policy.npz").read_bytes())
    body[-200] ^= 1
    (tmp_path / "m" / "policy.npz").write_bytes(body)
    refused("evaluate", tmp_path / "m", says="has digest")
    text = json.loads((newest / "manifest.json").read_text())
    (tmp_path / "m" / "manifest.json").write_text(json.dumps(text | {"versions": text["versions"] | {"makerlab": "99.0"}}))
    refused("evaluate", tmp_path / "m", says="was written by makerlab 99.0")
    (tmp_path / "m.zip").write_bytes(b"PK\x03\x04 a pickle may hide here")
    refused("evaluate", tmp_path / "m.zip", says="may run any code in it")


@pytest.mark.parametrize(("missing", "engine", "extra"), [("torch", "sb3", "rl"), ("stable_baselines3", "ray", "rl"), ("ray", "ray", "scale")])
def test_a_missing_extra_is_named(monkeypatch, tmp_path, missing, engine, extra):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == missing else real(name, *a))
    refused("train", "--steps", 100, "--engine", engine, "--out", tmp_path / "x", says=f"needs {missing}, which is not installed: pip install 'makerlab[{extra}]'")


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = "import sys, makerlab.cli, makerlab.learning.job; print([m for m in ('torch', 'stable_baselines3', 'gymnasium', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_interrupt_leaves_a_run_that_goes_on(monkeypatch, tmp_path):
    "Ctrl-C in the third rollout: code 130, a sentence with the command, and the resumed run equals an undisturbed one."
    import makerlab.learning.training as training

    real, calls = training._check_weights, []

    def check(m):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(m)

    monkeypatch.setattr(training, "_check_weights", check)
    code, out, err = call("train", "--steps", 4000, "--out", tmp_path / "m")
    assert (code, out) == (130, "") and err == f"mm-engine: interrupted; 1,600 of 4,000 steps are kept; go on with: mm-engine train --resume {tmp_path / 'm'}\n", err
    monkeypatch.setattr(training, "_check_weights", real)
    code, out, err = call("train", "--resume", tmp_path / "m", "--json")
    assert (code, err) == (0, "") and json.loads(out)["steps"] == 4000
    code, out, err = call("train", "--steps", 4000, "--out", tmp_path / "whole", "--json")
    a, b = load_model(tmp_path / "m"), load_model(tmp_path / "whole")
    assert all(np.array_equal(a.policy[k], b.policy[k]) for k in a.policy)


def test_an_interrupt_before_the_first_checkpoint_says_so(monkeypatch, tmp_path):
    import makerlab.learning.training as training

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_check_weights", stop)
    code, out, err = call("train", "--steps", 1600, "--out", tmp_path / "m")
    assert (code, out, err) == (130, "", "mm-engine: interrupted before the first checkpoint; nothing was kept\n")


def test_help_reads_well():
    code, out, _ = call("train", "--help")
    for word in ("--env", "--steps", "--curriculum", "--seed", "--resume", "--engine", "--out", "makerlab[rl]", "its optimum is known"):
        assert word in " ".join(out.split()), word
    code, out, _ = call("evaluate", "--help")
    for word in ("MODEL", "--episodes", "--split", "--out", "--format"):
        assert word in out, word
