"`mm-engine` on the real files, and the facts of DATA.md that no other test holds."
import json
from pathlib import Path

import pytest
from conftest import real
from typer.testing import CliRunner

from makerlab.cli import app

HF, LOB = "highfrequency_rda/data/", "lobster_samples/LOBSTER_SampleFile_{}_2012-06-21_{}.zip"
PAIR = lambda: [real(HF + "sampleQData.rda"), "--trades", real(HF + "sampleTData.rda"), "--tz", "UTC"]  # noqa: E731
NBBO = "nbbo_rda_2017/2017-01-03.rda"
pytestmark = pytest.mark.realdata


def call(*args):
    r = CliRunner().invoke(app, [str(a) for a in (*args, "--json")])
    assert r.exception is None or isinstance(r.exception, SystemExit), r.exception
    return r.exit_code, r.stdout, r.stderr


def ask(*args):
    "The answer of a command that must succeed, silently."
    code, out, err = call(*args)
    assert (code, err) == (0, ""), err
    return json.loads(out, parse_constant=pytest.fail)


def books_balance(run):
    assert abs(run["residual"]) <= 1e-9 * run["turnover"]
    assert run["spread_capture"] + run["inventory_pnl"] - run["fees"] + run["residual"] == pytest.approx(run["total"], abs=1e-6)
    assert run["ci"][0] < run["total"] < run["ci"][1] or run["ci"][0] <= run["total"] <= run["ci"][1]


# ---------------------------------------------------------------- the .rda pair

def test_rda_pair(tmp_path):
    found = ask("inspect", *PAIR())
    assert found["rows"] == {"quotes": 46_564, "trades": 7_168} and (found["crossed"], found["zone"], found["symbols"]) == (0, "UTC", ["XXX"])
    quotes = [a for a in PAIR() if "TData" not in str(a) and a != "--trades"]
    flow = ask("features", *quotes)
    assert [round(r, 2) for r in flow["ofi_r2_by_day"].values()] == [0.41, 0.52] and flow["ofi_beta_ci"][0] > 0
    fit = ask("calibrate", *PAIR(), "--out", tmp_path / "fit")
    assert fit["status"] == "ok" and fit["events"] == "trades" and 50 < fit["k"] < 100 and fit["se_k"] < 3
    run = ask("backtest", *PAIR(), "--quote-lot", 100, "--out", tmp_path / "run")
    books_balance(run)
    assert run["days"] == ["2018-01-03"] and "2018-01-02" in run["calibration"] and run["fills"] > 100
    assert run["markouts"]["60"]["lo"] > 0, "those who hit us knew something"
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")  # what it tells of this day is this run
    told = (f"captured {run['spread_capture']:,.0f} dollars of spread and lost {-run['inventory_pnl']:,.0f} on inventory: "
            f"net −{-run['total']:,.0f}, with a 95 % interval from −{-run['ci'][0]:,.0f} to −{-run['ci'][1]:,.0f}")
    assert told in readme, told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "round lots" in page and "2018-01-02" in page
    code, out, err = call("inspect", quotes[0], "--tz", "America/New_York")
    assert (code, out) == (2, "") and "tz='UTC'" in err


def test_raw_quotes_of_one_venue():
    flow = ask("features", real(HF + "sampleQDataRaw.rda"), "--tz", "UTC", "--exchange", "N")
    assert [round(r, 2) for r in flow["ofi_r2_by_day"].values()] == pytest.approx([0.57, 0.70], abs=0.011)
    everyone = ask("inspect", real(HF + "sampleQDataRaw.rda"), "--tz", "UTC")
    assert any("venues" in p for p in everyone["problems"])


# ---------------------------------------------------------------- many symbols, quotes only

@pytest.mark.parametrize("command", ["features", "calibrate", "backtest"])
def test_symbols_are_listed_when_none_is_chosen(command):
    code, out, err = call(command, real(NBBO))
    assert (code, out) == (2, "") and "AAPL, AMD, AMZN, JPM, MSFT, NVDA, SPY, TSLA" in err


def test_nbbo_without_trades(tmp_path):
    found = ask("inspect", real(NBBO))
    assert len(found["symbols"]) == 8 and found["rows"]["trades"] == 0 and found["zone"] == "UTC"
    fit = ask("calibrate", real(NBBO), "--symbol", "AAPL", "--out", tmp_path)
    assert fit["status"] == "ok" and "quote moves" in fit["events"]
    run = ask("backtest", real(NBBO), "--symbol", "AAPL", "--out", tmp_path)
    books_balance(run)
    assert "no trades were recorded" in run["fill_model"] and run["markouts"]["10"]["lo"] > 0  # only the bad fills are certain
    assert run["total"] < run["spread_capture"]


def test_jpm_is_two_instruments(tmp_path):
    "A tenth of JPM's quotes belong to a preferred share at 25 dollars; said, and cleaned when asked."
    dirty, clean = (ask("features", real(NBBO), "--symbol", "JPM", *more) for more in ([], ["--clean"]))
    assert any("several instruments" in s for s in dirty["about_the_data"]) and dirty["ofi_r2"] < 0.05
    assert "518 row(s) by rule mid" in clean["about_the_data"] and clean["ofi_r2"] == pytest.approx(0.44, abs=0.02)
    assert dirty["sigma_median"] > 100 * clean["sigma_median"]
    run = ask("backtest", real(NBBO), "--symbol", "JPM", "--clean", "--out", tmp_path)
    books_balance(run)
    assert abs(run["total"]) < 5_000


# ---------------------------------------------------------------- LOBSTER

@pytest.mark.parametrize("symbol, levels, rows, r2", [("AAPL", 1, 118_497, 0.412), ("AMZN", 1, 57_515, 0.316), ("AMZN", 5, 155_935, 0.316)])
def test_lobster(tmp_path, symbol, levels, rows, r2):
    path = real(LOB.format(symbol, levels))
    found = ask("inspect", path)
    assert (found["kind"], found["symbols"], found["rows"]["quotes"], found["crossed"]) == ("lobster", [symbol], rows, 0)
    assert ask("features", path)["ofi_r2"] == pytest.approx(r2, abs=0.002)
    if levels == 5:
        return  # the touch is the same: see the one-level file
    fit = ask("calibrate", path, "--out", tmp_path)
    assert fit["status"] == "ok" and fit["n_events"] > 5_000 and fit["se_k"] < 0.02 * fit["k"]
    run = ask("backtest", path, "--out", tmp_path)
    books_balance(run)
    assert run["fills"] > 1_000 and "14:29:5" in run["calibration"], "calibrated on the first hour only"
    assert run["markouts"]["10"]["lo"] > run["spread_capture"] / run["turnover"], "adverse selection is seen"


# ---------------------------------------------------------------- what cannot be used

@pytest.mark.parametrize("path, says", [("mlfinpy_es_trades/tick_data.csv.gz", "trades only"), ("orderbook_cran_l3/sample.txt", "give date="),
                                        ("options_optopsy/SPX_2018.csv.gz", "option quotes")])
@pytest.mark.parametrize("command", ["inspect", "features", "calibrate", "backtest"])
def test_refusals(tmp_path, command, path, says):
    more = [] if command in ("inspect", "features") else ["--out", tmp_path / "r"]
    code, out, err = call(command, real(path), *more)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1 and err.startswith("mm-engine: "), err
    assert not (tmp_path / "r").exists()
