"Desks from a file: what is refused, that nothing looks ahead, that the books add up, and the command line."
import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from makerlab.backtest.simulate_job import (EXAMPLES, SimulationSection, chain_at, chain_events, example_file, fitted_vols, load_simulation, make_desk, make_venue,
                                            prepare_day, run_simulation, trade_day)
from makerlab.cli import app
from makerlab.core import NS_PER_S, ParameterError, to_ns
from makerlab.data.events import DEPTH, TRADE
from makerlab.execution.orders import State
from makerlab.execution.risk import TradingState
from makerlab.models.quote_engine import ConfigError


def desk(tmp_path, name="low_cap_options.yaml", **changes):
    "An example with other values, as a file: keys are paths with double underscores."
    data = yaml.safe_load(EXAMPLES[name])
    for path, value in changes.items():
        here, *rest = data, *path.split("__")
        for part in rest[:-1]:
            here = here[part]
        here[rest[-1]] = value
    file = tmp_path / name
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_simulation(desk(tmp_path_factory.mktemp("desk"), simulation__to_s=2400))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_are_good_and_say_what_they_are(name):
    session, section, text = load_simulation(name)
    assert text == EXAMPLES[name] and text.startswith("# A ")
    assert {x.kind for x in session.instruments.values()} == {"spot", "option"} and section.source == "sample"


def test_a_file_is_taken_before_an_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example_file("low_cap_options.yaml").parent.name == "examples"
    (tmp_path / "low_cap_options.yaml").write_text("strategy: mine")
    assert example_file("low_cap_options.yaml").read_text() == "strategy: mine"


@pytest.mark.parametrize(("changes", "says"), [
    (dict(simulation__refit_every=3), "simulation.refit_every.*unknown key"),
    (dict(simulation__to_s=-1), "simulation.to_s"),
    (dict(simulation__from_s=600, simulation__to_s=300), "must lie after from_s"),
    (dict(simulation__day=7), "simulation.day"),
    (dict(simulation__rate=math.nan), "simulation.rate"),
    (dict(simulation__dividend=30), "simulation.dividend"),
    (dict(quoting__half_spread_ticks=-1), "half_spread_ticks"),
    (dict(quoting__colour="red"), "colour"),
    (dict(risk__default__max_order_lots=-5), "max_order_lots"),
    (dict(risk__account__max_gross=1), "max_gross"),
    (dict(instruments__BIGT__tick_size=0), "tick_size"),
    (dict(hedging__rule="hope"), "hedging.rule"),
])
def test_mistakes_are_named(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        load_simulation(desk(tmp_path, **changes))


def test_mistakes_of_both_parts_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as e:
        load_simulation(desk(tmp_path, simulation__day=9, quoting__levels=0))
    assert "simulation.day" in str(e.value) and "levels" in str(e.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "strategy: [", "strategy: a\nstrategy: b", "\x00"])
def test_what_is_no_configuration(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_simulation(tmp_path / "x.yaml")


@pytest.mark.parametrize(("changes", "says"), [
    (dict(strike=24.5), "strike = 24.5, the sample's is 24.0"), (dict(right="call"), "right"), (dict(tick_size=0.01), "tick_size"), (dict(multiplier=10), "multiplier"),
    (dict(expiry="2026-03-21T20:00:00Z"), "expiry")])
def test_a_contract_must_be_the_samples(tmp_path, changes, says):
    data = yaml.safe_load(EXAMPLES["low_cap_options.yaml"])
    data["instruments"]["BIGT-260320-P24"].update(changes)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ParameterError, match=says):
        prepare_day(*load_simulation(tmp_path / "x.yaml")[:2])


def test_a_symbol_that_the_sample_does_not_have(tmp_path):
    data = yaml.safe_load(EXAMPLES["low_cap_options.yaml"])
    data["instruments"]["TSLA"] = {"tick_size": 0.01}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ParameterError, match="TSLA: the sample has no such contract"):
        prepare_day(*load_simulation(tmp_path / "x.yaml")[:2])


# ---- events

def test_a_bid_that_goes_and_comes_is_a_level_that_goes_and_comes():
    q = pd.DataFrame({"time": pd.to_datetime([0, 1, 2, 3], unit="s", utc=True), "bid": [1.0, 0.0, 0.0, 1.05], "ask": [1.2, 1.2, 1.15, 1.15],
                      "bid_size": [5, 0, 0, 7], "ask_size": [4, 4, 4, 4]})
    t = pd.DataFrame({"time": pd.to_datetime([1.5], unit="s", utc=True), "price": [1.2], "size": [2.0], "side": [1]})
    e = chain_events(q, t, tick_size=0.05, symbol="X")
    rows = list(zip((e.exch_ns // NS_PER_S).tolist(), e.kind.tolist(), e.side.tolist(), e.tick.tolist(), e.lots.tolist()))
    assert rows == [(0, DEPTH, 1, 20, 5), (0, DEPTH, -1, 24, 4), (1, DEPTH, 1, 20, 0), (1, TRADE, 1, 24, 2), (2, DEPTH, -1, 24, 0), (2, DEPTH, -1, 23, 4), (3, DEPTH, 1, 21, 7)]


def test_no_volatility_knows_the_future(run):
    quotes, at = run.day.options.quotes, run.day.start_ns + 900 * NS_PER_S
    options = {s: x for s, x in run.session.instruments.items() if x.kind == "option"}
    changed = quotes.copy()
    changed.loc[to_ns(changed["time"]) > at, ["bid", "ask"]] *= 3
    spots = run.day.spots["BIGT"].copy()
    later = spots.copy()
    later[later.index > at] *= 2
    a, _ = fitted_vols(quotes, spots, [at], options)
    b, _ = fitted_vols(changed, later, [at], options)
    assert a == b and chain_at(quotes, at, 25.0).equals(chain_at(changed, at, 25.0))
    assert set(a[0][1]) == set(options) and all(0.2 < v < 2 for v in a[0][1].values())


# ---- the run

def test_the_books_add_up(run):
    table, s = run.by_symbol(), run.simulation
    assert table.loc["account", "total"] == pytest.approx(s.path.groupby("symbol").last()["equity"].sum(), abs=1e-6)
    assert run.minutes().sum() == pytest.approx(table.loc["account", "total"], abs=1e-6)
    for symbol in run.session.instruments:
        f = s.fills[s.fills["symbol"] == symbol]
        assert run.trader.orders.position(symbol) == s.venue.lots[symbol] == (f["side"] * f["qty"]).sum() == run.trader.guard.tracks[symbol].ledger.position
    assert len(s.fills) > 5 and run.trader.orders.cash == pytest.approx(s.venue.cash, abs=1e-6)


def test_no_limit_is_exceeded_in_the_venues_own_log(run):
    for symbol, (low, high) in run.simulation.venue.worst.items():
        limit = run.session.limits[symbol].max_position_lots
        assert -limit <= low and high <= limit


def test_the_same_file_gives_the_same_stream(run):
    again = trade_day(run.session, run.section, run.text)
    assert again.simulation.digest == run.simulation.digest and again.by_symbol().equals(run.by_symbol())


def test_deltas_are_hedged_and_exposure_is_what_positions_are(run):
    e = run.exposure()
    assert e["delta"].abs().max() < 600 and e["delta"].iloc[0] == 0.0
    assert (run.simulation.fills["symbol"] == "BIGT").any() and not run.simulation.fills.query("symbol == 'BIGT'")["maker"].any()


def test_a_stale_smile_silences_the_options(tmp_path):
    session, section, _ = load_simulation(desk(tmp_path, simulation__to_s=1200, simulation__refit_s=60))
    day = prepare_day(session, section)
    del day.tables[1:]
    venue = make_venue(session, section, day)
    trader = make_desk(session, section, day, capabilities=venue.capabilities)
    from makerlab.backtest.harness import simulate
    out = simulate(trader, venue, timer_ns=NS_PER_S, start_ns=day.start_ns, end_ns=day.end_ns, heartbeat_ns=NS_PER_S)
    new = out.orders[(out.orders["action"] == "new") & out.orders["symbol"].isin(session.quoting)]
    assert len(new) and to_ns(new["time"]).max() - day.start_ns < 240 * NS_PER_S
    assert not [o for o in trader.orders.live() if o.symbol in session.quoting and o.state in (State.WORKING, State.PARTIAL)]


def test_a_loss_limit_ends_the_day_flat(tmp_path):
    run = run_simulation(desk(tmp_path, simulation__to_s=1800, risk__account__max_loss=1.0, risk__account__max_drawdown=1.0))
    assert run.trader.guard.state is TradingState.HALTED
    assert all(v == 0 for v in run.simulation.venue.lots.values()), run.simulation.venue.lots
    assert "Halt" in set(run.acted().index)


def test_the_larger_desk_quotes_shares_in_layers_and_hedges_in_a_band(tmp_path):
    run = run_simulation(desk(tmp_path, "equity_options.yaml", simulation__to_s=300))
    last = [d for d in run.trader.decisions if d.symbol == "BIGT" and d.allowed][-1]
    assert sum(q.side > 0 for q in last.allowed) > 1
    assert set(run.simulation.fills["symbol"]) > {"BIGT"} and (run.by_symbol()["fills"] >= 0).all()


def test_reports_are_whole(run, tmp_path):
    written = {p.name for p in run.save(tmp_path / "r")}
    assert {"report.html", "simulation.md", "manifest.json", "fills.parquet", "simulation.yaml"} <= written
    page, manifest = (tmp_path / "r" / "report.html").read_text(), json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert "95 % interval" in page and run.total().lo <= run.total().estimate <= run.total().hi and manifest["orders_and_fills_sha256"] == run.simulation.digest and "<script" not in page
    assert (tmp_path / "r" / "simulation.yaml").read_text() == run.text
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="is a file"):
        run.save(tmp_path / "file")


# ---- the command line

def call(*args):
    out = CliRunner().invoke(app, list(map(str, args)))
    return out.exit_code, out.stdout, out.stderr


def test_simulate_from_the_command_line(tmp_path):
    file = desk(tmp_path, simulation__to_s=300)
    code, out, err = call("simulate", "--config", file, "--out", tmp_path / "r", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["ci"] == [None, None] and "no interval" in answer["method"] and len(answer["digest"]) == 64
    assert (tmp_path / "r" / "report.html").exists()


@pytest.mark.parametrize("args", [("config", "check"), ("simulate", "--config")])
def test_a_bad_file_is_one_sentence_and_code_2(tmp_path, args):
    code, out, err = call(*args, desk(tmp_path, quoting__half_spread_ticks=-1))
    assert code == 2 and out == "" and "quoting.half_spread_ticks" in err and "Traceback" not in err
    code, out, err = call(*args, tmp_path / "none.yaml")
    assert code == 2 and "cannot be read" in err


def test_config_check_and_example():
    code, out, _ = call("config", "check", "equity_options.yaml")
    assert code == 0 and "good" in out and "BIGT-260417-P26" in out
    code, out, _ = call("config", "example")
    assert code == 0 and yaml.safe_load(out)["strategy"] == "lowcap"
    assert json.loads(call("config", "check", "low_cap_options.yaml", "--json")[1])["strategy"] == "lowcap"
    assert call("config", "example", "nope")[0] == 2


def test_section_has_units():
    assert all((f.json_schema_extra or {}).get("unit") is not None for f in SimulationSection.model_fields.values())
    assert np.isfinite(SimulationSection().refit_s)
