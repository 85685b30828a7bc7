"`mm-engine` as its users meet it: a few real processes, and every kind of bad input in process."
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from makerlab.cli import app
from makerlab.data.samples import load_sample

EXE = Path(sysconfig.get_path("scripts")) / "mm-engine"
REPORTS = {"backtest_timeseries.csv", "fills.csv", "backtest_summary.md", "report.html", "manifest.json"}
BINS = "delta,count,exposure\n" + "".join(f"{d},{n},600\n" for d, n in zip(
    (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10), (512, 431, 350, 291, 226, 195, 131, 84), strict=True))


def strict(text: str) -> dict:
    "One JSON object on one line, without NaN or infinity."
    assert text.endswith("\n") and text.count("\n") == 1
    out = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert isinstance(out, dict)
    return out


def shell(*args, cwd=None):
    "A real process: exit code, standard output, standard error."
    done = subprocess.run([str(EXE), *map(str, args)], capture_output=True, text=True, timeout=120, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def call(*args):
    "The same in process, which is faster; nothing may escape but an exit."
    r = CliRunner().invoke(app, [str(a) for a in args])
    assert r.exception is None or isinstance(r.exception, SystemExit), (args, r.exception)
    return r.exit_code, r.stdout, r.stderr


def refused(*args, says=""):
    "Exit code 2, nothing on standard output, one readable complaint."
    code, out, err = call(*args)
    assert code == 2, (args, code, err)
    assert out == "" and "Traceback" not in err and "Warning" not in err, (args, out, err)
    assert says in err, (args, err)
    assert "Usage:" in err or (err.startswith("mm-engine: ") and err.count("\n") == 1), (args, err)
    return err


@pytest.fixture(scope="module")
def tape():
    "Forty minutes of the sample, as text tables."
    quotes, trades = load_sample("BIGT", day="2026-03-02")
    end = quotes["time"].iloc[0] + pd.Timedelta("40min")
    return tuple(f[f["time"] < end].assign(time=lambda f: f["time"].astype(str)).reset_index(drop=True) for f in (quotes, trades))


@pytest.fixture
def put(tape, tmp_path):
    "Write quotes and trades, changed by functions; returns the path of the quotes."
    def write(change_quotes=None, change_trades=None, *, trades=True):
        q, t = tape[0].copy(), tape[1].copy()
        (q if change_quotes is None else change_quotes(q)).to_csv(tmp_path / "x.quotes.csv", index=False)
        if trades:
            (t if change_trades is None else change_trades(t)).to_csv(tmp_path / "x.trades.csv", index=False)
        return tmp_path / "x.quotes.csv"
    return write


def cell(column, value, row=100):
    "A change of one cell."
    def change(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame
    return change


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Reports that no --out sends elsewhere fall into the test's own folder."
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------- real processes

def test_demo_reports_and_their_redrawing(tmp_path):
    code, out, err = shell("demo", "--out", tmp_path / "demo", "--json")
    assert (code, err) == (0, "")
    answer = strict(out)
    assert {(r["symbol"], r["strategy"]) for r in answer["rows"]} == {(s, n) for s in ("BIGT", "SMLT") for n in ("naive", "as", "as-ofi")}
    for r in answer["rows"]:
        assert abs(r["spread_capture"] + r["inventory_pnl"] - r["fees"] - r["total"]) < 1e-6 * abs(r["spread_capture"]) and r["ci"][0] < r["ci"][1]
        assert r["ci"][0] < r["alone"][0] < r["alone"][1] < r["ci"][1] and r["deflated"] <= r["confidence"], "three were tried: raw beside deflated"
        assert {p.name for p in (tmp_path / "demo" / f"{r['symbol']}-{r['strategy']}").iterdir()} >= REPORTS | {"fit.csv", "mle_report.md"}
    page = (tmp_path / "demo" / "BIGT-as" / "report.html").read_text()
    for word in ("made data", "calibrated", "0.2 bps", "10 ms", "behind the displayed queue", "variants tried"):
        assert word in page, word
    assert page.index("Where the money came from") < page.index("What the fills were worth later") < page.index("Net P&amp;L")
    code, out, err = shell("report", tmp_path / "demo" / "BIGT-as", "--json")
    assert (code, err) == (0, "") and strict(out)["result"].startswith("Net P&L")


def test_seed_004_from_bins_to_reports(tmp_path):
    "The commands and the files of seed 004, in a folder of one's own, with the default folder reports/."
    (tmp_path / "bins.csv").write_text(BINS)
    pd.DataFrame({"mid": 100 + 0.02 * np.random.default_rng(4).standard_normal(7200).cumsum()}).to_csv(tmp_path / "mid.csv", index=False)
    code, out, err = shell("calibrate", "--input", "bins.csv", "--model", "exponential", "--json", cwd=tmp_path)
    fit = strict(out)
    assert (code, err) == (0, "") and {"A", "k", "se_A", "se_k", "llf", "aic", "bic", "status"} <= set(fit)
    assert fit["A"] == pytest.approx(1.05558945785, rel=1e-9) and fit["k"] == pytest.approx(19.9048506453, rel=1e-9) and fit["status"] == "ok"
    (tmp_path / "fit.csv").write_text((tmp_path / "reports" / "fit.csv").read_text())
    code, out, err = shell("backtest", "--mid", "mid.csv", "--fit", "fit.csv", "--json", cwd=tmp_path)
    run = strict(out)
    assert (code, err) == (0, "")
    assert {"total", "spread_capture", "inventory_pnl", "fees", "residual", "fills", "markouts", "ci"} <= set(run)
    assert run["spread_capture"] + run["inventory_pnl"] - run["fees"] + run["residual"] == pytest.approx(run["total"], abs=1e-9)
    assert abs(run["residual"]) <= 1e-9 * run["turnover"] and run["fills"] > 50
    assert {p.name for p in (tmp_path / "reports").iterdir()} >= REPORTS | {"fit.csv", "mle_report.md"}
    assert len(pd.read_csv(tmp_path / "reports" / "backtest_timeseries.csv")) == 7200
    assert pd.read_csv(tmp_path / "reports" / "fit.csv")["k"].iloc[0] == pytest.approx(19.9048506453)


def test_for_a_person_and_for_usage_errors():
    code, out, err = shell("inspect", "sample")
    assert (code, err) == (0, "") and "BIGT" in out and "Traceback" not in out
    code, out, err = shell("inspect", "/no/such/file.rda")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "does not exist" in err
    code, out, err = shell("backtest", "sample", "--gama", "1")
    assert (code, out) == (2, "") and "--gama" in err and "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("wait, command", [(0.4, ["backtest"]), ("reading", ["backtest", "--every-s", "0.01"]), ("reading", ["sweep", "--vary", "every_s=0.02,0.01,0.005"])])
def test_interrupt(tmp_path, wait, command):
    "During the imports, and during a long backtest or sweep into a folder that already holds a report."
    keep = tmp_path / "out" / "keep.txt"
    keep.parent.mkdir()
    keep.write_text("mine")
    command = [str(EXE), command[0], "sample", *command[1:], "--symbol", "BIGT", "--out", str(tmp_path / "out"), "--json"]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(wait if wait != "reading" else 3.0)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert (p.returncode, out) == (130, ""), err
    assert err == "mm-engine: interrupted; nothing was half written\n"
    assert [f.name for f in tmp_path.rglob("*")] == ["out", "keep.txt"]


LOST = """
import ctypes, signal, sys, time
import makerlab.cli as cli

@cli.guarded
def slow():
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()  # as in a compiler's callback: the interrupt is thrown away
    time.sleep(20)

def app(prog_name):
    try:
        slow()
    except cli.typer.Exit as e:
        sys.exit(e.exit_code)

cli.app = app
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_lost_in_a_callback_comes_again():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=18)
    assert (done.returncode, done.stderr) == (130, "mm-engine: interrupted; nothing was half written\n")


def test_no_tty_no_progress_and_closed_pipe():
    "`mm-engine ... | head -0` is not a failure."
    code = f"import subprocess, sys; p = subprocess.Popen([{str(EXE)!r}, 'data', 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); e = p.stderr.read(); p.wait(); sys.exit(b'Traceback' in e)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ---------------------------------------------------------------- every command, in process

@pytest.mark.parametrize("args, keys", [
    (["inspect", "sample"], {"kind", "symbols", "rows", "span", "zone", "crossed", "locked", "repairs", "problems"}),
    (["features", "sample", "--symbol", "SMLT", "--every", "10s"], {"ofi_r2", "ofi_r2_ci", "ofi_beta", "ofi_beta_ci", "sigma_median", "sigma_ci", "rows"}),
    (["calibrate", "sample", "--symbol", "BIGT", "--model", "power"], {"A", "k", "se_A", "se_k", "ci_A", "ci_k", "llf", "aic", "bic", "status"}),
    (["backtest", "sample", "--symbol", "SMLT", "--strategy", "as-ofi", "--start-date", "2026-03-03"], {"total", "spread_capture", "inventory_pnl", "fees", "residual", "fills", "markouts", "ci", "spread_capture_ci", "inventory_pnl_ci", "measured", "raw", "deflated"}),
    (["backtest", "sample", "--fills", "poisson", "--seed", "3", "--end-date", "2026-03-02"], {"total", "ci"}),
    (["data", "list"], {"samples"}), (["config"], {"gamma", "strategy"})])
def test_json_of_every_command(args, keys):
    code, out, err = call(*args, "--json")
    assert (code, err) == (0, "") and keys <= set(strict(out))
    assert args[0] in ("backtest", "calibrate") or call(*args)[0] == 0


def test_config_is_read_back(put, tmp_path):
    source = put()
    code, out, _ = call("config")
    assert code == 0
    (tmp_path / "c.yaml").write_text(out)
    plain, same = (strict(call("backtest", source, *more, "--json")[1]) for more in ([], ["--config", "c.yaml"]))
    assert plain == same
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(yaml.safe_load(out) | {"strategy": "naive", "fee_bps": 1.5}))
    run = strict(call("backtest", source, "--config", "c.yaml", "--json")[1])
    assert run["strategy"] == "naive" and run["fees"] > 0
    over = strict(call("backtest", source, "--config", "c.yaml", "--strategy", "as", "--json")[1])
    assert over["strategy"] == "as", "an option overrules the file"


@pytest.mark.parametrize("strategy, has", [("glft", "A"), ("cj", "phi"), ("as-adaptive", "regime_gamma")])
def test_model_strategies_end_to_end(put, tmp_path, strategy, has):
    source = put()
    code, out, err = call("backtest", source, "--strategy", strategy, "--fees", "example-maker-taker", "--out", tmp_path / "r", "--json")
    run = strict(out)
    assert (code, err, run["strategy"]) == (0, "", strategy) and run["params"][has] and "example-maker-taker" in run["fee_schedule"]
    assert run["spread_capture"] + run["inventory_pnl"] - run["fees"] + run["residual"] == pytest.approx(run["total"], abs=1e-9)
    assert "example-maker-taker" in (tmp_path / "r" / "backtest_summary.md").read_text()
    assert call("report", tmp_path / "r")[0] == 0


def test_every_measured_number_has_an_interval():
    run = strict(call("backtest", "sample", "--symbol", "BIGT", "--end-date", "2026-03-03", "--variants", "7", "--json")[1])
    assert set(run["measured"]) == {"A", "k", "sigma", "kappa", "eps_buy", "eps_sell"}
    for name, m in run["measured"].items():
        assert m["ci"][0] < m["value"] < m["ci"][1] and m["unit"], name
    assert run["luck"].startswith("7 variants were tried") and run["deflated"]["confidence"] < run["raw"]["confidence"]
    assert run["raw"]["lower end of the ratio"] < run["raw"]["Sharpe ratio of a minute"] < run["raw"]["upper end of the ratio"]


def test_sweep(put, tmp_path):
    source = put()
    code, out, err = call("sweep", source, "--vary", "strategy=as,glft,cj", "--vary", "skew=0.5,1,2", "--splits", "3", "--out", tmp_path / "s", "--json")
    found = strict(out)
    assert (code, err, found["variants"], len(found["table"])) == (0, "", 9, 9)
    assert found["result"].startswith("Best of 9 variants tried") and found["deflated"]["confidence"] < found["raw"]["confidence"]
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"comparison.csv", "comparison.md", "comparison.html", "trials.csv"}
    assert found["result"] in (tmp_path / "s" / "comparison.md").read_text() and len(found["walk_forward"]["splits"]) == 3
    assert found["walk_forward"]["ci"][0] <= found["walk_forward"]["total"] <= found["walk_forward"]["ci"][1]
    one = strict(call("backtest", source, "--strategy", "glft", "--json")[1])
    assert next(r for r in found["table"] if r["variant"] == "strategy=glft, skew=1")["total"] == pytest.approx(one["total"], abs=1e-9)
    assert len(pd.read_csv(tmp_path / "s" / "trials.csv").columns) == 9
    code, out, err = call("sweep", source, "--vary", "max-inventory=50,1000", "--vary", "strategy=cj", "--splits", "0")
    assert (code, err) == (0, "") and out.startswith("Best of 2 variants tried") and "refused, and counted" in out and "No walk-forward" in out
    (tmp_path / "c.yaml").write_text("variants: 11\nfee_bps: 0.1\n")
    assert strict(call("sweep", source, "--vary", "k=100,none", "--config", "c.yaml", "--json")[1])["variants"] == 12


@pytest.mark.parametrize("options, says", [([], "--vary"), (["--vary", "gama=1"], "gama cannot be varied: the settings that can are strategy"), (["--vary", "seed=1,2"], "seed cannot"), (["--vary", "skew=1,wide"], "skew = 'wide'"),
                                           (["--vary", "skew"], "write --vary"), (["--vary", "skew="], "write --vary"), (["--vary", "skew=1,,2"], "write --vary"), (["--vary", "=1"], "write --vary"), (["--vary", "skew=1,1.0"], "twice"),
                                           (["--vary", "skew=1", "--vary", "skew=2"], "there twice"), (["--vary", "strategy=as,clever"], "'as-ofi'"), (["--vary", "skew=nan"], "skew"), (["--vary", "skew=1", "--splits", "-1"], "splits"),
                                           (["--vary", "skew=1", "--splits", "9999"], "fewer splits"), (["--vary", "skew=1", "--splits", "x"], "splits"), (["--vary", "skew=1", "--config", "absent.yaml"], "No such file"),
                                           (["--vary", "strategy=cj", "--vary", "max_inventory=50"], "none of 1 variants"), (["--vary", "fees=nowhere,free"], "neither a preset")])
def test_bad_sweeps(put, tmp_path, options, says):
    refused("sweep", put(), *options, "--out", tmp_path / "r", "--json", says=says)
    assert not (tmp_path / "r").exists()


def test_sweeps_of_bad_sources_and_targets(put, tmp_path):
    source = put()
    for args in (["absent.rda"], ["sample", "--symbol", "NOPE"], ["sample", "--symbol", "BIGT", "--start-date", "soon"]):
        refused("sweep", *args, "--vary", "skew=1,2", "--out", tmp_path / "r", "--json")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        refused("sweep", source, "--vary", "skew=1,2", "--out", out, "--json")
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.rglob("*partial*")) and not (tmp_path / "r").exists()


def test_models_on_a_mid_path(tmp_path):
    pd.DataFrame({"mid": 100 + 0.02 * np.random.default_rng(4).standard_normal(3600).cumsum()}).to_csv(tmp_path / "mid.csv", index=False)
    for strategy in ("glft", "cj", "as-adaptive"):
        run = strict(call("backtest", "--mid", "mid.csv", "--A", "1", "--k", "20", "--strategy", strategy, "--fees", "example-inverted", "--qty", "10", "--max-inventory", "100", "--json")[1])
        assert run["fills"] > 50 and run["fees"] > 0 and abs(run["residual"]) <= 1e-9 * run["turnover"]


def test_fees_by_file_and_their_complaints(put, tmp_path):
    source = put()
    (tmp_path / "f.yaml").write_text("maker_per_unit: 0.001\ntaker_per_unit: 0.002\nmin_per_order: 0.2\n")
    run = strict(call("backtest", source, "--fees", "f.yaml", "--json")[1])
    (tmp_path / "c.yaml").write_text("strategy: as\nfees: {maker_per_unit: 0.001, taker_per_unit: 0.002, min_per_order: 0.2}\n")
    same = strict(call("backtest", source, "--config", "c.yaml", "--json")[1])
    assert run["fees"] == same["fees"] > 0 and "at least 0.2 an order" in run["fee_schedule"]
    for body, says in (("maker_bsp: 1\n", "maker_bsp is not a key"), ("tiers: 3\n", "tiers"), ("maker_bps: two\n", "maker_bps"), ("- 1\n", "name: value"), ("tiering: both\n", "tiering")):
        (tmp_path / "f.yaml").write_text(body)
        refused("backtest", source, "--fees", "f.yaml", "--json", says=says)
    refused("backtest", source, "--fees", "nowhere", says="neither a preset")
    refused("backtest", source, "--fees", "free", "--fee-bps", "1", says="two numbers")
    refused("backtest", source, "--strategy", "cj", "--qty", "1", says="lots")
    refused("backtest", source, "--strategy", "glft", "--phi", "-1", says="phi")


def test_features_are_written(put, tmp_path):
    source = put()
    tables = []
    for name, read in (("f.csv", pd.read_csv), ("deep/er/f.parquet", pd.read_parquet)):
        assert call("features", source, "--out", tmp_path / name, "--json")[0] == 0
        tables.append(read(tmp_path / name))
    assert len(tables[0]) == len(tables[1]) and list(tables[0]) == list(tables[1])


# ---------------------------------------------------------------- bad input: the source

COMMANDS = ("inspect", "features", "calibrate", "backtest")  # sweep reads its source as backtest does: see test_bad_sweeps


def bad_files(folder):
    "Paths that cannot be used, and a word of the complaint."
    sample = Path(__file__).resolve().parents[1] / "data" / "sample"
    made = {"empty.csv": b"", "blank.csv": b"\n\n", "latin.csv": "time,bid,ask,bid_size,ask_size\n14:30:00\xe9,1,2,3,4\n".encode("latin1"), "bytes.csv": bytes(range(256)) * 20,
            "half.rda": (sample / "2026-03-02.rda").read_bytes()[:5000], "half.parquet": (sample / "BIGT.quotes.parquet").read_bytes()[:5000],
            "ragged.csv": b"time,bid,ask,bid_size,ask_size\n1,2,3\n1,2,3,4,5,6,7,8\n", "x.json": b"{}"}
    for name, body in made.items():
        (folder / name).write_bytes(body)
    (folder / "void").mkdir()
    return [*made, "void", "absent.rda"]


def test_unusable_files(tmp_path):
    for name in bad_files(tmp_path):
        for command in COMMANDS:
            refused(command, name, "--json")
    refused("inspect", "absent.csv", "--format", "csv", says="does not exist")
    refused("inspect", "sample", "--format", "parquet", says="does not exist")
    refused("inspect", "x.json", "--format", "sample", says="format")
    (tmp_path / "new").mkdir()
    refused("inspect", "new", says="holds nothing")


@pytest.mark.parametrize("quotes, trades, says", [
    (lambda q: q.iloc[:0], None, "no rows"), (lambda q: q.drop(columns="ask"), None, "missing column(s) ask"), (lambda q: q.drop(columns="time"), None, "time"),
    (cell("time", "yesterday"), None, "row 100: 'yesterday'"), (lambda q: q.assign(bid=q["ask"] + 0.05), None, "Q2 "),
    (None, lambda t: t.iloc[:0], "no rows"), (None, lambda t: t.drop(columns="size"), "missing column(s) size"), (None, cell("price", np.nan, 50), "row 50: nan"),
    (None, cell("price", -1.0, 50), "row 50: -1.0"), (None, cell("size", 0.0, 50), "row 50: 0.0"), (None, cell("size", np.inf, 50), "row 50: inf"),
    (None, cell("price", "abc", 50), "row 50: abc"), (None, lambda t: t.iloc[::-1], "unsorted")])
def test_tables_that_no_command_can_use(put, quotes, trades, says):
    source = put(quotes, trades)
    for command in ("inspect", "backtest"):
        try:
            refused(command, source, "--json", says=says)
        except AssertionError:
            if trades is None:
                raise
            # a trades file may be repaired and counted instead
            code, out, _ = call(command, source, "--json")
            assert code == 0 and ("row" in json.dumps(strict(out)) or strict(out).get("repairs")), (command, out)


@pytest.mark.parametrize("quotes, trades, says", [
    (lambda q: q.iloc[:1], None, "cannot be split"), (lambda q: q.iloc[:9], None, "cannot be split"), (lambda q: q.assign(time=q["time"].iloc[0]), None, "cannot be split"),
    (lambda q: q.assign(bid=100.0, ask=100.01), None, "the mid never moved"), (lambda q: q.assign(bid=q["ask"]), None, "locked"),
    (lambda q: q.assign(bid=q["bid"] - 1e-3 * np.random.default_rng(1).random(len(q))), None, "not multiples of the smallest step"),
    (None, lambda t: t.assign(price=t["price"] * 10), "Give k"), (None, lambda t: t.assign(time=t["time"].str.replace("-02 ", "-05 ")), "no trades in the calibration window")])
def test_tables_that_cannot_be_traded(put, tmp_path, quotes, trades, says):
    refused("backtest", put(quotes, trades), "--out", tmp_path / "r", "--json", says=says)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("change, rule", [(cell("bid", np.nan), "missing"), (cell("bid", np.inf), "missing"), (cell("bid", "abc"), "missing"), (cell("ask", 0.0), "P2"),
                                          (cell("bid", -1.0), "P2"), (cell("bid", 500.0), "Q2"), (cell("bid_size", -5.0), "size"), (lambda q: q.iloc[::-1], "sorted")])
def test_damage_is_repaired_and_said(put, tmp_path, change, rule):
    source = put(change)
    assert strict(call("inspect", source, "--json")[1])["repairs"][rule] >= 1
    code, out, err = call("backtest", source, "--out", tmp_path / "r", "--json")
    assert (code, err) == (0, "") and f"by rule {rule}" in strict(out)["about_the_data"]
    assert f"by rule {rule}" in (tmp_path / "r" / "backtest_summary.md").read_text()


def test_duplicates_and_quotes_alone(put, tmp_path):
    source = put(lambda q: q.assign(time=np.repeat(q["time"].to_numpy()[::4], 4)[: len(q)]))
    code, out, err = call("backtest", source, "--out", tmp_path / "r", "--json")
    assert (code, err) == (0, "")
    (tmp_path / "x.trades.csv").unlink()
    source = put(trades=False)
    for command in COMMANDS:
        more = [] if command in ("inspect", "features") else ["--out", tmp_path / "q"]
        code, out, err = call(command, source, *more, "--json")
        assert (code, err) == (0, "") and "no trades" in json.dumps(strict(out)), command
    assert "no trades were recorded" in strict(out)["fill_model"]


def test_instruments_mixed_under_one_symbol(put, tmp_path):
    "Found with JPM's quotes of 2017: every tenth belonged to a preferred share."
    def mixed(q):
        q.loc[60::10, ["bid", "ask"]] = [7.10, 7.11]
        return q
    source = put(mixed)
    dirty, clean = (strict(call("features", source, *more, "--json")[1]) for more in ([], ["--clean"]))
    assert any("several instruments" in s for s in dirty["about_the_data"]) and not any("several instruments" in s for s in clean["about_the_data"])
    assert dirty["ofi_r2"] < 0.1 < clean["ofi_r2"]


# ---------------------------------------------------------------- bad input: the options

@pytest.mark.parametrize("options", [["--symbol", "NOPE"], ["--tz", "Mars/Olympus"], ["--tz", "UTC"], ["--trades", "nofile"], ["--exchange", "N"], ["--format", "xml"], ["--start-date", "soon"],
                                     ["--start-date", "2026-03-05"], ["--start-date", "2026-03-04", "--end-date", "2026-03-02"], ["--end-date", "2026-13-45"], ["--start-date", ""]])
def test_bad_options_of_the_source(options):
    for command in COMMANDS:
        if command != "features" or options[0] != "--trades":
            refused(command, "sample", *options, "--json")


@pytest.mark.parametrize("every", ["0s", "-1s", "nan", "inf", "NaT", "1e400", "", "soon", "1ns", "100d", "10h"])
def test_bad_durations(put, every):
    source = put()
    refused("features", source, "--every", every, says="every")
    if every not in ("1ns", "100d", "10h"):
        refused("features", source, "--window", every, says="window")


POSITIVE = ("gamma", "k", "A", "half-spread", "qty", "max-inventory", "every-s", "quote-lot", "calibration-s")
FINITE = {"latency-ms": ("nan", "inf", "-1", "1e300"), "fee-bps": ("nan", "inf", "1e300"), "fee-per-unit": ("nan", "-inf", "1e300"), "kappa": ("nan", "inf", "1e300"), "eta": ("nan", "-1", "inf"),
          "variants": ("0", "-1", "nan", "x"), "seed": ("-1", "nan", "1.5"), "strategy": ("clever", ""), "fills": ("x",), "queue": ("x",)}


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e300", "x"])
def test_settings_that_must_be_positive(name, value):
    err = refused("backtest", "sample", f"--{name}", value, "--json")
    assert name.replace("-", "_") in err or f"--{name}" in err
    assert "Usage" in err or "(" in err, "its unit stands in brackets"


@pytest.mark.parametrize("name", FINITE)
def test_other_settings(name):
    for value in FINITE[name]:
        refused("backtest", "sample", f"--{name}", value, "--json")


def test_bad_config_files(tmp_path):
    for name, body, says in (("a.yaml", b"gama: 1\n", "gama"), ("b.yaml", b"- 1\n- 2\n", "name: value"), ("c.yaml", b"gamma: [\n", "YAML"), ("d.yaml", bytes([0xFF, 0xFE, 0x80]), "YAML"),
                             ("e.yaml", b"gamma: .nan\n", "gamma"), ("f.yaml", b"strategy: 3\n", "strategy"), ("g.yaml", b"session_tz: Mars\n", "session_tz"), ("h.yaml", b"session_end: noon\n", "session_end"),
                             ("i.yaml", b"min_spread_bps: 50\nmax_spread_bps: 1\n", "spread_bps")):
        (tmp_path / name).write_bytes(body)
        refused("backtest", "sample", "--config", tmp_path / name, "--out", tmp_path / "r", says=says)
    refused("backtest", "sample", "--config", tmp_path / "absent.yaml", says="No such file")
    assert not (tmp_path / "r").exists()


def test_outputs_that_cannot_be_written(put, tmp_path):
    source = put()
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        refused("backtest", source, "--out", out, "--json")
        refused("calibrate", source, "--out", out, "--json")
    for out in (tmp_path / "x.txt", tmp_path / "file" / "x.csv", "/proc/x.csv", tmp_path):
        refused("features", source, "--out", out, "--json")
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.rglob("*partial*"))
    refused("report", tmp_path, says="holds no report")
    refused("data", "fetch", "no-such-sample")


# ---------------------------------------------------------------- bad input: seed 004's files

@pytest.mark.parametrize("body, says", [("", ""), ("delta,count\n0.1,3\n", "exposure"), ("delta,count,exposure\n", "0 row"), ("delta,count,exposure\n0.1,-1,10\n", "row 0: -1"), ("delta,count,exposure\n0.1,nan,10\n", "row 0"),
                                        ("delta,count,exposure\n0.1,x,10\n", "row 0: x"), ("delta,count,exposure\n0.1,2,inf\n0.2,1,10\n", "row 0: inf"), ("delta,count,exposure\n0.1,2,0\n0.2,1,10\n", "exposure is 0"),
                                        ("delta,count,exposure\nnan,2,5\n", "delta"), ("delta,count,exposure\n1,2,3,4,5\n1,2\n1,2,3,4,5,6,7\n", "")])
def test_bad_bins(tmp_path, body, says):
    (tmp_path / "bins.csv").write_text(body)
    refused("calibrate", "--input", tmp_path / "bins.csv", "--out", tmp_path / "r", "--json", says=says)
    assert not (tmp_path / "r").exists()


def test_bins_that_do_not_tell(tmp_path):
    for body in ("1,0,100\n2,0,100\n", "1,5,100\n", "1,25,100\n2,0,100\n3,0,100\n", "1,5,100\n2,9,100\n3,20,100\n", "1,5,0.0\n".replace("5", "0") + "2,3,10\n"):
        (tmp_path / "bins.csv").write_text("delta,count,exposure\n" + body)
        for model in ("exponential", "power"):
            code, out, err = call("calibrate", "--input", tmp_path / "bins.csv", "--model", model, *(["--delta0", "0.5"] if model == "power" else []), "--out", tmp_path / "r", "--json")
            answer = strict(out)
            assert (code, err) == (0, "") and answer["status"] != "ok" and answer["k"] is None and answer["message"], (body, model, answer)
            pd.DataFrame({"mid": [1.0, 2.0]}).to_csv(tmp_path / "mid.csv", index=False)
            refused("backtest", "--mid", tmp_path / "mid.csv", "--fit", tmp_path / "r" / "fit.csv", "--out", tmp_path / "b")


def test_bad_arguments_of_calibrate(tmp_path):
    (tmp_path / "bins.csv").write_text(BINS)
    (tmp_path / "latin.csv").write_bytes("delta,count,exposure\n1,2,3\xe9\n".encode("latin1"))
    for more in (["--model", "cubic"], ["--model", "power", "--delta0", "x"], ["--model", "power", "--delta0", "-1"], ["--model", "power", "--delta0", "nan"], ["--model", "power"]):
        refused("calibrate", "--input", tmp_path / "bins.csv", *more, "--out", tmp_path / "r")
    for path in ("absent.csv", "latin.csv", "."):
        refused("calibrate", "--input", tmp_path / path, "--out", tmp_path / "r")
    refused("calibrate", says="not both")
    refused("calibrate", "sample", "--input", tmp_path / "bins.csv", says="not both")
    code, out, _ = call("calibrate", "--input", tmp_path / "bins.csv", "--model", "power", "--delta0", "0.02", "--out", tmp_path / "r", "--json")
    assert code == 0 and strict(out)["delta0"] == 0.02


@pytest.mark.parametrize("body, says", [("mid\n", "0 row"), ("mid\n100\n", "1 row"), ("price\n1\n2\n", "missing column(s) mid"), ("mid\n100\nnan\n101\n", "row 1"), ("mid\n100\n-1\n101\n", "row 1: -1"),
                                        ("mid\n100\n0\n101\n", "row 1: 0"), ("mid\n100\ninf\n", "row 1: inf"), ("mid\n100\nabc\n", "row 1: abc"), ("mid\n" + "100\n" * 50, "volatility"),
                                        ("time,mid\n2026-03-02 14:30:00,100\n2026-03-02 14:30:00,101\n2026-03-02 14:30:02,100\n", ""), ("time,mid\nx,100\ny,101\n", "time"), ("", "")])
def test_bad_mids(tmp_path, body, says):
    (tmp_path / "mid.csv").write_text(body)
    refused("backtest", "--mid", tmp_path / "mid.csv", "--A", "1", "--k", "20", "--out", tmp_path / "r", says=says)
    assert not (tmp_path / "r").exists()


def test_bad_fits_and_arguments_of_a_mid_path(tmp_path):
    mid = tmp_path / "mid.csv"
    pd.DataFrame({"mid": 100 + 0.02 * np.random.default_rng(4).standard_normal(500).cumsum()}).to_csv(mid, index=False)
    for row in ("exponential,1,nan", "exponential,1,-3", "exponential,1,0", "exponential,1,inf", "exponential,nan,20", "exponential,-1,20", "exponential,1,x", "power,1,2"):
        (tmp_path / "fit.csv").write_text(f"model,A,k\n{row}\n")
        refused("backtest", "--mid", mid, "--fit", tmp_path / "fit.csv", "--out", tmp_path / "r")
    for body in (b"", b"model,A,k\n", b"a,b\n1,2\n", b"model,A,k\nexponential,1,\xe9\n"):
        (tmp_path / "fit.csv").write_bytes(body)
        refused("backtest", "--mid", mid, "--fit", tmp_path / "fit.csv", "--out", tmp_path / "r")
    refused("backtest", "--mid", mid, "--fit", tmp_path / "absent.csv", "--out", tmp_path / "r", says="does not exist")
    refused("backtest", "--mid", tmp_path / "absent.csv", "--A", "1", "--k", "20", says="there is no such file")
    refused("backtest", "--mid", mid, "--out", tmp_path / "r", says="--fit")
    refused("backtest", says="not both")
    for name, values in (("dt", ("0", "-1", "nan", "inf", "1e-12", "x")), ("sigma", ("0", "-1", "nan", "inf")), ("gamma", ("nan", "0"))):
        for value in values:
            refused("backtest", "--mid", mid, "--A", "1", "--k", "20", f"--{name}", value, "--out", tmp_path / "r", says=name)
    assert not (tmp_path / "r").exists()
    mid.write_bytes("mid\n100\xe9\n".encode("latin1"))
    refused("backtest", "--mid", mid, "--A", "1", "--k", "20", "--out", tmp_path / "r")


@pytest.fixture(scope="module")
def late_evening(tmp_path_factory):
    "Twenty minutes of made events around midnight UTC, in the evening of one New York date."
    import dataclasses

    from makerlab.data.events import write_events
    from makerlab.execution.order_flow import PRESETS, simulate_flow
    tape = simulate_flow(PRESETS["small-tick"], seconds=1200.0, seed=2).events
    shift = pd.Timestamp("2026-03-03 23:50", tz="UTC").value - int(tape.exch_ns[0])
    path = tmp_path_factory.mktemp("late") / "events.parquet"
    write_events(dataclasses.replace(tape, exch_ns=tape.exch_ns + shift, local_ns=tape.local_ns + shift), path)
    return path


def test_days_of_events_are_those_of_their_own_calendar(late_evening):
    code, out, _ = call("features", late_evening, "--every", "1s", "--json")
    found = strict(out)
    assert code == 0 and found["zone"] == "UTC" and list(found["ofi_r2_by_day"]) == ["2026-03-03", "2026-03-04"]


def test_a_sweep_over_worlds(late_evening, tmp_path):
    made = ("sweep", late_evening, "--vary", "half_spread=0.01,0.02", "--vary", "strategy=naive", "--worlds", "snapshot,l2-replay,l3-replay", "--queue", "log-prob", "--splits", 0, "--engine", "serial")
    code, out, err = call(*made, "--out", tmp_path / "s", "--json")
    found = strict(out)
    assert (code, err, found["missing"]) == (0, "", {}) and list(found["worlds"]) == ["snapshot", "l2-replay", "l3-replay"]
    assert "log-prob" in found["worlds"]["l2-replay"]["fill_model"] and all(len(w["table"]) == 2 for w in found["worlds"].values())
    assert (tmp_path / "s" / "l3-replay" / "trials.csv").is_file()
    code, out, _ = call("sweep", "sample", "--symbol", "BIGT", "--end-date", "2026-03-02", "--vary", "skew=1,2", "--worlds", "snapshot,l3-replay", "--splits", 0, "--engine", "serial")
    assert code == 0 and "== snapshot ==" in out and "not searched:" in out and "no order ids" in out
    refused("sweep", "sample", "--vary", "skew=1,2", "--worlds", "paradise", says="worlds")
    refused("sweep", "sample", "--vary", "queue=front,behind", "--worlds", "snapshot", says="cannot be varied over worlds")
