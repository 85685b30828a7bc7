"Reports: whole or not at all, readable back, honest about what is missing."
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from makerlab.core import DataError, ParameterError
from makerlab.scoring import report
from makerlab.scoring.attribution import attribute, markouts, markouts_by_time
from makerlab.scoring.inference import pnl_interval
from makerlab.scoring.metrics import summarise

HTML_NEEDS = ("What was run", "fees", "latency", "fill model", "sample", "variants tried", "95 %")


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(7)
    n, k = 1200, 120
    mid = 100 + 0.01 * rng.normal(size=n).cumsum()
    time = pd.date_range("2026-03-02 14:30", periods=n, freq="s", tz="UTC")
    step = np.sort(rng.integers(0, n, k))
    side = rng.choice([-1, 1], k)
    fills = pd.DataFrame({"step": step, "time": time[step], "side": side.astype("int8"), "price": mid[step] - 0.01 * side, "qty": 100.0, "mid": mid[step], "fee": 0.02})
    a = attribute(fills, mid)
    path = pd.DataFrame({"step": np.arange(n), "time": time, "mid": mid, "quote_bid": mid - 0.01, "quote_ask": mid + 0.01,
                         "inventory": a.steps.q, "cash": a.steps.cash, "fees": a.steps.fees.cumsum()})
    path.attrs["odd"] = object()  # attributes that no file can hold must not stop a report
    manifest = report.run_manifest(strategy="as", sample="made, 1200 s", fees="0.02 a fill", latency="0 ns", fill_model="random", variants=3, seed=7,
                                   params={"gamma": np.float64(0.1), "cap": np.nan}, data={"path": path})
    return SimpleNamespace(path=path, fills=fills, attribution=a, markouts=markouts_by_time(fills, path, horizons_s=[1, 5]),
                           metrics=summarise(path, fills), intervals={"total": pnl_interval(a.steps.pnl, variants=3, n=99, rng=rng)}, manifest=manifest)


FIT = {"model": "exponential", "A": 0.9, "k": 1.5, "se_A": 0.1, "se_k": 0.1, "llf": -1.0, "aic": 6.0, "bic": 7.0, "n": 9, "status": "ok"}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_files_and_back(results, tmp_path):
    files = report.write_reports(results, tmp_path / "a" / "reports", fit=FIT)
    names = {p.name for p in files}
    assert names == {p.name for p in (tmp_path / "a" / "reports").iterdir()} and not [p for p in (tmp_path / "a").iterdir() if p.name != "reports"]
    assert {"fit.csv", "mle_report.md", "backtest_timeseries.csv", "backtest_timeseries.parquet", "fills.csv", "fills.parquet", "backtest_summary.md",
            "report.html", "manifest.json"} <= names
    back = report.read_report(tmp_path / "a" / "reports")
    pd.testing.assert_frame_equal(back["path"], results.path, check_names=False)
    pd.testing.assert_frame_equal(back["fills"], results.fills)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "reports" / "fills.csv", parse_dates=["time"]), results.fills, check_dtype=False)
    assert back["intervals"] == results.intervals and back["parts"]["total"] == results.attribution.total
    assert back["manifest"]["params"] == {"gamma": 0.1, "cap": None} and back["manifest"]["variants"] == 3
    assert report.read_fit(tmp_path / "a" / "reports" / "fit.csv")["k"] == 1.5


def test_html_is_alone_and_in_order(results, tmp_path):
    report.write_reports(results, tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    for bad in ("http:", "https:", "//cdn", "<script", "<link", "url(", "@import", "<iframe"):
        assert bad not in page, bad
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 4
    order = [page.index(x) for x in ("<h2>What was run", "<h2>Where the money came from", "<h2>What the fills were worth later", "<h2>Net P&amp;L")]
    assert order == sorted(order) and all(word in page for word in HTML_NEEDS)
    assert "Net P&amp;L" not in page[:order[-1]] and "net_pnl" not in page


@pytest.mark.parametrize("fail_at", range(1, 11))
def test_a_failure_at_any_replacement_leaves_the_old_files(results, tmp_path, monkeypatch, fail_at):
    folder = tmp_path / "r"
    report.write_together(folder, {f"f{i}": b"old%d" % i for i in range(4)})
    (folder / "mine.txt").write_text("keep")
    before, replace, calls = snapshot(folder), os.replace, 0

    def failing(a, b):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError("no space left on device")
        return replace(a, b)

    monkeypatch.setattr(report.os, "replace", failing)
    files = {f"f{i}": b"new%d" % i for i in range(8)}
    if fail_at <= len(files):
        with pytest.raises(OSError, match="no space"):
            report.write_together(folder, files)
        assert snapshot(folder) == before
    else:
        report.write_together(folder, files)
        assert snapshot(folder) == files | {"mine.txt": b"keep"}


@pytest.mark.parametrize("broken", ["html_page", "summary_markdown", "_manifest_bytes", "_parquet"])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_failure_in_rendering_touches_nothing(results, tmp_path, monkeypatch, broken, fresh):
    folder = tmp_path / "r"
    if not fresh:
        report.write_together(folder, {"report.html": b"old", "manifest.json": b"{}"})
    before = snapshot(tmp_path)

    def boom(*args):
        raise RuntimeError("simulated")

    monkeypatch.setattr(report, broken, boom)
    with pytest.raises(RuntimeError, match="simulated"):
        report.write_reports(results, folder)
    assert snapshot(tmp_path) == before and folder.exists() != fresh


def test_a_failure_while_staging_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(report.os, "rename", lambda a, b: (_ for _ in ()).throw(OSError("simulated")))
    with pytest.raises(OSError, match="simulated"):
        report.write_together(tmp_path / "r", {"a": b"1"})
    assert list(tmp_path.iterdir()) == []


def test_render_again_from_the_files(results, tmp_path):
    report.write_reports(results, tmp_path / "r", fit=FIT)
    page = (tmp_path / "r" / "report.html").read_bytes()
    (tmp_path / "r" / "report.html").unlink()
    assert report.render_html(tmp_path / "r").read_bytes() == page
    files = json.loads((tmp_path / "r" / "manifest.json").read_text())["report"]["files"]
    assert files["report.html"]["bytes"] == len(page)


def test_edited_or_missing_files_are_noticed(results, tmp_path):
    report.write_reports(results, tmp_path / "r")
    with (tmp_path / "r" / "backtest_timeseries.parquet").open("ab") as f:
        f.write(b"x")
    with pytest.raises(DataError, match="backtest_timeseries"):
        report.render_html(tmp_path / "r")
    with pytest.raises(DataError, match="no report"):
        report.read_report(tmp_path / "nowhere")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="no report"):
        report.read_report(tmp_path / "x")


def test_nothing_unsaid(results):
    bare = SimpleNamespace(path=results.path, fills=results.fills, attribution=results.attribution, markouts=markouts(results.fills, results.path.mid, horizons=[1]))
    text = report.summary_markdown(report.collect(bare))
    assert text.count("not stated") >= 6 and "no interval was computed" in text
    with pytest.raises(ParameterError, match="markouts"):
        report.collect(SimpleNamespace(path=1, fills=2, attribution=3))


def test_bad_targets(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ParameterError, match="is a file"):
        report.write_together(tmp_path / "file", {"a": b"1"})
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("row", [{"model": "exponential", "A": -1, "k": 1}, {"model": "exponential", "A": 1}, {"model": "exponential", "A": "x", "k": 1}])
def test_bad_fit_files(tmp_path, row):
    pd.DataFrame([row]).to_csv(tmp_path / "fit.csv", index=False)
    with pytest.raises(DataError, match=r"fit\.csv: [Ak] = "):
        report.read_fit(tmp_path / "fit.csv")


def test_digest_of_tables_and_files(tmp_path):
    a = pd.DataFrame({"x": [1.0, 2.0]})
    assert report.digest(a) == report.digest(a.copy()) != report.digest(a.rename(columns={"x": "y"}))
    assert report.digest(a) != report.digest(a.assign(x=[1.0, 3.0]))
    (tmp_path / "f").write_bytes(b"abc")
    assert report.digest(tmp_path / "f").startswith("ba7816bf")
    with pytest.raises(DataError, match="not a file"):
        report.digest(tmp_path / "g")


def test_profits_wait_for_the_interval(results):
    text = report.summary_markdown(report.collect(results))
    at = text.index("## Net P&L")
    for name in ("sharpe", "profit_factor", "pnl_per_fill", "pnl_per_turnover"):
        assert text.index(f"| {name} |") > at
    assert text.index("| fill_ratio |") < at


def test_an_edited_fit_is_not_taken_for_the_runs(results, tmp_path):
    fit = {"model": "exponential", "A": 1.0, "k": 2.0, "status": "ok"}
    report.write_reports(results, tmp_path / "r", fit=fit)
    assert report.read_report(tmp_path / "r")["fit"]["k"][0] == 2.0
    (tmp_path / "r" / "fit.csv").unlink()
    with pytest.raises(DataError, match="fit.csv"):
        report.read_report(tmp_path / "r")


def test_a_stranger_repository_lends_no_commit(tmp_path, monkeypatch):
    import subprocess
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    inside = tmp_path / "site-packages" / "makerlab"
    inside.mkdir(parents=True)
    monkeypatch.setattr(report, "__file__", str(inside / "report.py"))
    assert report._git_commit() is None


def test_raw_stands_beside_deflated(results, tmp_path):
    "Three variants were tried: both intervals and both confidences, in text, page and manifest."
    data = report.collect(results)
    t = data.luck
    assert t.loc["lower end of the net", "deflated"] < t.loc["lower end of the net", "raw"] and t.loc["upper end of the net", "deflated"] > t.loc["upper end of the net", "raw"]
    assert t.loc["confidence", "deflated"] < t.loc["confidence", "raw"] and t.loc["Sharpe ratio of a minute", "deflated"] < t.loc["Sharpe ratio of a minute", "raw"]
    said = report.luck_phrase(data)
    assert said.startswith("3 variants were tried") and "alone" in said and "with all of them counted" in said and "raw" in said and "deflated" in said
    report.write_reports(results, tmp_path / "r")
    for name in ("report.html", "backtest_summary.md"):
        text = (tmp_path / "r" / name).read_text()
        assert "3 variants were tried" in text and "lower end of the net" in text and text.index("Net P&") < text.index("3 variants were tried")
    kept = {r["quantity"]: r for r in json.loads((tmp_path / "r" / "manifest.json").read_text())["report"]["luck"]}
    assert kept["confidence"]["deflated"] == pytest.approx(t.loc["confidence", "deflated"])


def test_the_counted_interval_is_the_runs_own_when_it_counted(results):
    minutes = report._minutes(report.collect(results))
    mine = pnl_interval(minutes.to_numpy(), variants=3, n=99, rng=np.random.default_rng(1))
    own = SimpleNamespace(**(vars(results) | {"intervals": {"total": mine}}))
    t = report.collect(own).luck
    assert (t.loc["lower end of the net", "deflated"], t.loc["upper end of the net", "deflated"]) == (mine.lo, mine.hi)
    careless = SimpleNamespace(**(vars(results) | {"intervals": {"total": pnl_interval(minutes.to_numpy(), n=99, rng=np.random.default_rng(1))}}))
    t = report.collect(careless).luck
    assert t.loc["lower end of the net", "deflated"] < t.loc["lower end of the net", "raw"], "an interval that counted one of three is not taken for three"


@pytest.mark.parametrize("variants, says", [(1, "One variant was tried, so there is nothing to deflate"), (None, "is not stated")])
def test_one_variant_has_nothing_to_deflate(results, variants, says):
    data = report.collect(SimpleNamespace(**(vars(results) | {"manifest": results.manifest | {"variants": variants}, "intervals": {}})))
    assert says in report.luck_phrase(data) and says in report.profit_sentence(data) and data.luck["raw"].equals(data.luck["deflated"])


def test_luck_needs_ten_minutes_and_a_profit_that_varies(results):
    path = results.path.iloc[:300]
    short = SimpleNamespace(**(vars(results) | {"path": path, "attribution": attribute(results.fills[results.fills["step"] < 300], path["mid"])}))
    assert report.collect(short).luck.empty and "cannot be said" in report.luck_phrase(report.collect(short))


def test_headline_numbers_carry_intervals(results):
    data = report.collect(results)
    parts, profits = report.decomposition(data), report._split_metrics(data)[1]
    assert parts.loc["total", "95 % from"] < parts.loc["total", "quote currency"] < parts.loc["total", "95 % to"]
    for name in ("pnl_per_fill", "pnl_per_turnover"):
        assert profits.loc[name, "95 % from"] < profits.loc[name, "value"] < profits.loc[name, "95 % to"]
