"One strategy in five worlds: books that begin in the middle, a fair comparison, sources of every kind, refusals."
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.backtest.pipeline import Config
from makerlab.backtest.replay import ConstantLatency, Replay
from makerlab.core import DataError, ParameterError
from makerlab.data.events import ADD, CLEAR, DEPTH, FILL, MODIFY, SNAPSHOT, depth_of, make_events, read_events, read_hftbacktest, to_hftbacktest, write_events
from makerlab.data.source import Market, open_events
from makerlab.execution.order_flow import PRESETS, simulate_flow
from makerlab.models.quoting import QuoteParams
from makerlab.replay import TRUTH, WORLDS, Ladder, ladder, ladder_errors, resume_at, set_stage, split_profit
from makerlab.schema import strategy

QUICK = Config(calibration_s=600.0, max_inventory=500.0)
PARAMS = QuoteParams(half_spread=0.01, qty=100.0, max_inventory=500.0)
MADE = ("snapshot", "l2-replay", "l3-replay", "market")


@strategy
def silent_at_first(state, params):
    "Joins the touch from x0 seconds on."
    if state.t_s < params.x0 - 0.5 or not (state.bid > 0.0 and state.ask > 0.0):
        return 0, 0, 0.0, 0.0
    bid, ask = round(state.bid / params.tick), round(state.ask / params.tick)
    return bid, ask, params.qty if state.inventory < params.max_inventory else 0.0, params.qty if state.inventory > -params.max_inventory else 0.0


@strategy
def join(state, params):
    "The same from the start."
    bid, ask = round(state.bid / params.tick), round(state.ask / params.tick)
    return bid, ask, params.qty if state.inventory < params.max_inventory else 0.0, params.qty if state.inventory > -params.max_inventory else 0.0


@pytest.fixture(scope="module")
def record():
    return simulate_flow(PRESETS["large-tick"], seconds=420.0, seed=5).events


@pytest.fixture(scope="module")
def rungs() -> Ladder:
    return ladder("small-tick", config=QUICK, seconds=700.0, seed=3, one_level=True, queues=("risk-averse", "log-prob"))


# --- a book that begins in the middle

def late_part(events, queue, late):
    "Fills after 120 s: silent until then, from the beginning; or resumed there."
    start = int(events.exch_ns[0])
    made = dict(params=PARAMS.replace(x0=120.0), interval_ms=1000.0, feed_latency=ConstantLatency(0), order_latency=ConstantLatency(10_000_000, back_ns=0), queue=queue, signals=False)
    if not late:
        head = resume_at(events, start_ns=start + 1, head_ns=start - 10**9)
        return Replay(head, strategy=silent_at_first, **made).run(rng=np.random.default_rng(1))
    at = start + 120 * 10**9
    return Replay(resume_at(events, start_ns=at + 1, head_ns=at - 10**9), strategy=join, **made).run(rng=np.random.default_rng(1))


@pytest.mark.parametrize(("level", "queue"), [("l3", "fifo"), ("l2", "risk-averse"), ("l2", "power-prob:3")])
def test_resumed_replay_is_the_late_part_of_a_whole_one(record, level, queue):
    events = record if level == "l3" else depth_of(record)
    whole, late = (late_part(events, queue, x) for x in (False, True))
    columns = ["time", "side", "price", "qty"]
    assert len(late.fills) > 5
    pd.testing.assert_frame_equal(late.fills[columns].reset_index(drop=True), whole.fills[columns].reset_index(drop=True))
    pd.testing.assert_frame_equal(late.orders[columns], whole.orders[columns])


def test_a_late_feed_has_two_books_and_messages_on_the_way():
    events = depth_of(simulate_flow(PRESETS["small-tick"], seconds=200.0, seed=5).events)
    events = dataclasses.replace(events, local_ns=events.exch_ns + 2_500_000_000)  # more than two marks
    made = dict(interval_ms=1000.0, order_latency=ConstantLatency(10_000_000, back_ns=0), queue="risk-averse", signals=False)
    start, columns, fills = int(events.exch_ns[0]), ["time", "side", "price", "qty"], 0
    for wait in (60, 73, 86, 99, 112, 125):
        params = PARAMS.replace(x0=float(wait))
        whole = Replay(events, strategy=silent_at_first, params=params, **made).run(rng=np.random.default_rng(1))
        at = start + wait * 10**9  # its first mark is start + 1 s, its first decision `wait` seconds later
        resumed = Replay(resume_at(events, start_ns=at + 1, head_ns=at), strategy=join, params=params, **made).run(rng=np.random.default_rng(1))
        pd.testing.assert_frame_equal(resumed.orders[columns], whole.orders[columns])
        pd.testing.assert_frame_equal(resumed.fills[columns].reset_index(drop=True), whole.fills[columns].reset_index(drop=True))
        fills += len(resumed.fills)
    assert fills > 100


def made_events(rows, level):
    kind, side, tick, lots, name = (list(c) for c in zip(*rows, strict=True))
    t = list(range(1, len(rows) + 1))
    more = {"order_id": name} if level == "l3" else {}
    return make_events(kind=kind, side=side, exch_ns=t, local_ns=t, tick=tick, lots=lots, tick_size=1.0, lot_size=1.0, level=level, keep=("crossed", "orphans"), **more)


@pytest.mark.nojit
def test_levels_that_were_run_over_are_gone():
    rows = [(DEPTH, 1, 99, 5, 0), (DEPTH, -1, 101, 4, 0), (DEPTH, -1, 102, 3, 0), (DEPTH, 1, 101, 2, 0), (DEPTH, 1, 101, 0, 0), (DEPTH, 1, 98, 1, 0), (DEPTH, 1, 97, 7, 0)]
    head = resume_at(made_events(rows, "l2"), start_ns=7)
    assert list(zip(head.side.tolist(), head.tick.tolist(), head.lots.tolist(), strict=True)) == [(-1, 102, 3), (1, 98, 1), (1, 99, 5), (1, 97, 7)]
    assert (head.kind[:-1] == SNAPSHOT).all()


@pytest.mark.nojit
def test_orders_keep_their_priority():
    rows = [(ADD, 1, 99, 5, 1), (ADD, 1, 99, 4, 2), (ADD, 1, 99, 3, 3), (MODIFY, 1, 99, 6, 1), (MODIFY, 1, 99, 2, 2), (FILL, 1, 99, 2, 2), (ADD, -1, 101, 1, 4), (ADD, -1, 102, 1, 5)]
    head = resume_at(made_events(rows, "l3"), start_ns=8)
    assert head.order_id.tolist() == [3, 1, 4, 5] and head.lots.tolist() == [3, 6, 1, 1]


@pytest.mark.nojit
def test_clears_are_followed():
    rows = [(DEPTH, 1, 99, 5, 0), (DEPTH, 1, 98, 5, 0), (DEPTH, -1, 101, 4, 0), (CLEAR, 1, 99, 0, 0), (DEPTH, -1, 102, 3, 0)]
    head = resume_at(made_events(rows, "l2"), start_ns=5)
    assert list(zip(head.side.tolist(), head.tick.tolist(), strict=True))[:2] == [(-1, 101), (1, 98)]
    rows = [(DEPTH, 1, 99, 5, 0), (DEPTH, -1, 101, 4, 0), (CLEAR, 0, 0, 0, 0), (DEPTH, 1, 90, 3, 0), (DEPTH, -1, 91, 1, 0)]
    head = resume_at(made_events(rows, "l2"), start_ns=5)
    assert list(zip(head.side.tolist(), head.tick.tolist(), strict=True)) == [(1, 90), (-1, 91)]


def test_resume_refuses(record):
    with pytest.raises(DataError, match="no event from"):
        resume_at(record, start_ns=int(record.exch_ns[-1]) + 1)
    with pytest.raises(ParameterError, match="head_ns"):
        resume_at(record, start_ns=int(record.exch_ns[50]), head_ns=int(record.exch_ns[50]) + 1)


# --- a fair comparison

def test_every_world_sees_the_same_market_at_the_same_marks(rungs):
    base = rungs.runs["reduced-form"].path
    assert rungs.table["decisions"].nunique() == 1
    for name, run in rungs.runs.items():
        np.testing.assert_array_equal(run.path["time"], base["time"])
        if name != TRUTH:
            np.testing.assert_allclose(run.path["mid"], base["mid"], rtol=1e-12)
            for signal in ("sigma", "ofi"):
                known = run.path[signal].notna()
                np.testing.assert_allclose(run.path.loc[known, signal], base.loc[known, signal], atol=1e-9)
                assert int(run.path[signal].isna().sum()) - int(base[signal].isna().sum()) in (0, 1)


def test_conditions_are_shared(rungs):
    runs = list(rungs.runs.values())
    assert len({(r.params, r.info["latency_ns"], r.info["every_s"], r.info["horizon"], r.info["max_inventory"], r.info["overnight"], r.info["tick"]) for r in runs}) == 1
    assert all(abs(r.path["inventory"]).max() <= 500.0 for r in runs)


def test_profit_is_cash_and_the_position_at_the_mid(rungs):
    for r in rungs.runs.values():
        last = r.path.iloc[-1]
        assert r.attribution.total == pytest.approx(last["cash"] + last["inventory"] * last["mid"], abs=1e-6)
        assert abs(r.attribution.residual) < 1e-6


def test_fills_of_a_record_are_marked_at_its_mid_just_before(rungs):
    stage = set_stage("small-tick", config=QUICK, seconds=700.0, seed=3)
    for name in ("snapshot", "L2 replay, log-prob:1", "L3 replay, fifo"):
        fills = rungs.runs[name].fills
        row = np.searchsorted(stage.mids.index, pd.DatetimeIndex(fills["time"]), side="left") - 1
        np.testing.assert_allclose(fills["mid"], stage.mids.to_numpy()[row])


def test_the_truth_is_the_same_seed(rungs):
    table = rungs.table
    assert table.loc[TRUTH, "units_vs_market"] == 1 and table.loc[TRUTH, "net_vs_market"] == 0
    assert rungs.simulated and "the truth" in table.loc[TRUTH, "note"]
    stage = set_stage("small-tick", config=QUICK, seconds=700.0, seed=3)
    assert stage.seconds == 700.0 and stage.simulated
    early, late = stage.early.quotes, stage.late.quotes
    assert not early["bid"].iloc[:50].equals(late["bid"].iloc[:50])  # calibrated on another draw


def test_parts_add_up(rungs):
    parts = rungs.against("L3 replay, fifo")
    np.testing.assert_allclose(parts["count_part"] + parts["selection_part"], parts["difference"])
    assert parts.loc["L3 replay, fifo", "difference"] == 0
    assert math.isnan(split_profit([1.0], [1.0], base_units=0.0, base_net=0.0)["count_part"].iloc[0])


def test_gap_is_paired(rungs):
    gap = rungs.gap("L3 replay, fifo", "L2 replay, risk-averse")
    assert gap.lo < gap.estimate < gap.hi
    assert gap.estimate == pytest.approx(rungs.table.loc["L3 replay, fifo", "net"] - rungs.table.loc["L2 replay, risk-averse", "net"])
    wide = rungs.table.loc["L3 replay, fifo"]
    assert gap.hi - gap.lo < wide["net_hi"] - wide["net_lo"]


def test_same_call_same_digests(rungs):
    again = ladder("small-tick", config=QUICK, seconds=700.0, seed=3, one_level=True, queues=("risk-averse", "log-prob"))
    assert again.table["digest"].tolist() == rungs.table["digest"].tolist()
    other = ladder("small-tick", config=QUICK, seconds=700.0, seed=4, worlds=("snapshot",))
    assert other.table["digest"].iloc[0] != rungs.table.loc["snapshot", "digest"]


def test_own_strategy_goes_through_all_worlds():
    mine = ladder("large-tick", strategy=join, params=PARAMS.replace(A=1.0, k=100.0), config=QUICK, seconds=400.0, queues=("risk-averse",))
    assert set(mine.worlds.values()) == set(WORLDS) and len(mine.runs) == 5 and not any("not to be had" in n for n in mine.table["note"])
    assert (mine.table["fills"] > 0).all() and "join" in mine.conditions["strategy"]
    reference = ladder("large-tick", strategy="reference", params=PARAMS.replace(x0=0.6), config=QUICK, seconds=200.0, queues=("risk-averse",), worlds=MADE)
    assert (reference.table["fills"] > 0).all()


def test_fees_are_charged_alike():
    free, paid = (ladder("large-tick", strategy=join, params=PARAMS, config=Config(calibration_s=300.0, fee_per_unit=f), seconds=300.0, queues=("risk-averse",), worlds=MADE).table for f in (0.0, 0.001))
    np.testing.assert_allclose(paid["fees"], 0.001 * paid["units"])
    np.testing.assert_allclose(free["net"] - paid["net"], paid["fees"])


# --- sources

def test_record_in_memory_file_or_other_format_is_the_same(record, tmp_path):
    write_events(record, tmp_path / "record.parquet")
    level = depth_of(record)
    array = read_hftbacktest(to_hftbacktest(level), tick_size=level.tick_size, lot_size=level.lot_size)
    made = dict(strategy=join, params=PARAMS, config=QUICK, queues=("risk-averse",), worlds=("snapshot", "l2-replay", "l3-replay"))
    tables = {"memory": ladder(record, **made).table, "file": ladder(tmp_path / "record.parquet", **made).table, "levels": ladder(level, **made).table, "array": ladder(array, **made).table}
    assert read_events(tmp_path / "record.parquet").digest() == record.digest()
    for name in ("file", "levels", "array"):
        assert tables[name].loc["L2 replay, risk-averse", "digest"] == tables["memory"].loc["L2 replay, risk-averse", "digest"], name
        assert tables[name].loc["snapshot", "digest"] == tables["memory"].loc["snapshot", "digest"], name
    assert tables["file"].loc["L3 replay, fifo", "digest"] == tables["memory"].loc["L3 replay, fifo", "digest"]
    assert math.isnan(tables["levels"].loc["L3 replay, fifo", "fills"]) and "without order ids" in tables["levels"].loc["L3 replay, fifo", "note"]


def test_sample_says_what_is_missing():
    sample = ladder("sample", config=QUICK, queues=("risk-averse",), worlds=WORLDS[:4])
    assert list(sample.runs) == ["reduced-form", "snapshot", "L2 replay, risk-averse"] and not sample.simulated
    assert "one level" in sample.note("L2 replay, risk-averse") and "bias" in sample.note("L2 replay, risk-averse")
    assert "no order ids" in sample.table.loc["L3 replay, fifo", "note"]
    assert "net_vs_market" not in sample.table
    assert sample.plot() is not None


def test_market_without_sides_or_without_trades(record):
    quotes, trades = record.quotes(), record.trades()
    made = dict(strategy=join, params=PARAMS, config=QUICK, queues=("risk-averse",))
    unsigned = ladder(Market(quotes, trades.drop(columns="side"), "X", "UTC", "table", "memory", {}, [], None), worlds=("snapshot", "l2-replay"), **made)
    assert (unsigned.table["fills"] > 0).all()
    bare = ladder(Market(quotes, None, "X", "UTC", "table", "memory", {}, [], None), **made)
    assert "no trades" in bare.table.loc["snapshot", "note"] and "matched to trades" in bare.table.loc[TRUTH, "note"]
    assert bare.table["fills"].notna().sum() >= 1


def test_a_short_record_across_midnight_is_one_stretch(record):
    shift = pd.Timestamp("2026-03-02 23:57", tz="UTC").value - int(record.exch_ns[0])
    moved = dataclasses.replace(record, exch_ns=record.exch_ns + shift, local_ns=record.local_ns + shift)
    made = dict(strategy=join, params=PARAMS, config=QUICK, queues=("risk-averse",), worlds=("snapshot", "l2-replay", "l3-replay"))
    a, b = ladder(record, **made).table, ladder(moved, **made).table
    assert a["decisions"].tolist() == b["decisions"].tolist() and len(set(b["decisions"])) == 1
    pd.testing.assert_series_equal(a["net"], b["net"])


def test_small_lots(record):
    "Coins: sizes in thousandths."
    small = dataclasses.replace(record, lot_size=0.001)
    t = ladder(small, strategy=join, params=PARAMS.replace(qty=0.001, max_inventory=0.005), config=QUICK, queues=("risk-averse",)).table
    assert (t["fills"].drop("reduced-form") > 0).all() and (t["units"].drop("reduced-form") <= t["fills"].drop("reduced-form") * 0.001 * (1 + 1e-9)).all()


# --- refusals

@pytest.mark.parametrize(("made", "said"), [
    (dict(worlds=("l4",)), "worlds"), (dict(worlds=()), "worlds"), (dict(worlds="market"), "worlds"), (dict(queues=("quickest",)), "queue"), (dict(queues=("fifo",)), "own rung"),
    (dict(queues="risk-averse"), "queues"), (dict(queues=("risk-averse", "risk-averse")), "each once"), (dict(queues=()), "queues"), (dict(strategy="magic"), "strategy"),
    (dict(strategy="reference"), "not calibrated"), (dict(horizon_s=0.0), "horizon_s"), (dict(seconds=-1.0), "seconds"), (dict(params=PARAMS.replace(qty=150.0)), "whole number of lots"),
    (dict(params=PARAMS.replace(qty=1.0)), "whole number of lots"),
])
def test_bad_arguments(made, said):
    with pytest.raises(ParameterError, match=said):
        ladder("large-tick", **({"seconds": 120.0, "config": Config(calibration_s=120.0), "strategy": "naive"} | made))


def test_bad_sources():
    with pytest.raises(ParameterError, match="does not exist"):
        ladder("nowhere.parquet")
    with pytest.raises(ParameterError, match="must be a path"):
        ladder(3.5)
    rows = [(DEPTH, 1, 99, 5, 0), (DEPTH, -1, 101, 4, 0), (DEPTH, 1, 99, 6, 0)]
    with pytest.raises(DataError):
        ladder(made_events(rows, "l2"), strategy=join, params=PARAMS)


def test_base_must_have_been_climbed(rungs):
    with pytest.raises(ParameterError, match="base"):
        rungs.against("l3")
    with pytest.raises(ParameterError, match="rung"):
        rungs.gap("snapshot", "nothing")


def test_errors_over_draws(rungs):
    with pytest.raises(ParameterError, match="at least two"):
        ladder_errors([rungs])
    twice = ladder_errors([rungs, rungs])
    assert twice.loc["snapshot", "error_lo"] == pytest.approx(twice.loc["snapshot", "error_hi"]) and (twice["draws"] == 2).all()
    assert twice.loc["snapshot", "error"] == pytest.approx(rungs.table.loc["snapshot", "net_vs_market"] / rungs.table.loc["snapshot", "hours"])
    with pytest.raises(ParameterError, match="level"):
        ladder_errors([rungs, rungs], level=1.0)


def test_save_is_whole_or_nothing(rungs, tmp_path, monkeypatch):
    names = {p.name for p in rungs.save(tmp_path / "out")}
    assert names == {"ladder.csv", "ladder.md", "ladder.html"} == {p.name for p in (tmp_path / "out").iterdir()}
    page = (tmp_path / "out" / "ladder.html").read_text()
    assert "simulated market" in page and "10 ms" in page and page.count("<h2>") == 3
    assert len(pd.read_csv(tmp_path / "out" / "ladder.csv")) == len(rungs.table)
    monkeypatch.setattr("makerlab.replay.ladder_html", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rungs.save(tmp_path / "other")
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").iterdir())


@pytest.mark.nojit
def test_tiny_ladder_without_compiler():
    t = ladder("large-tick", strategy=join, params=PARAMS, config=Config(calibration_s=30.0, window_s=5.0, ofi_s=2.0), seconds=20.0, queues=("risk-averse",), worlds=MADE).table
    assert t["decisions"].tolist() == [21] * 4 and t["fills"].notna().all()


# --- real files

SHORT = dict(strategy="naive", queues=("risk-averse",), worlds=WORLDS[:4])
REAL = {
    "lobster": ("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip", Config(), ("reduced-form", "snapshot", "L2 replay, risk-averse", "L3 replay, fifo")),
    "databento": ("databento_es/esh4-glbx-mdp3-20231225.mbo.dbn.zst", Config(qty=1.0, max_inventory=10.0), ("reduced-form", "snapshot", "L2 replay, risk-averse", "L3 replay, fifo")),
    "binance": ("hftbacktest_binance/spot_btcusdt_20240808.gz", Config(qty=0.01, max_inventory=0.1), ("reduced-form", "snapshot", "L2 replay, risk-averse")),
    "bitstamp": ("obanalytics_bitstamp_l3/orders.csv.xz", Config(qty=0.1, max_inventory=1.0), ("reduced-form", "snapshot", "L2 replay, risk-averse", "L3 replay, fifo")),
}


@pytest.mark.realdata
@pytest.mark.parametrize("kind", list(REAL))
def test_real_sources(kind):
    path, config, climbed = REAL[kind]
    out = ladder(real(path), config=config, **SHORT)
    assert tuple(out.runs) == climbed
    assert out.table["decisions"].nunique() == 1 and (out.table.loc[list(climbed), "fills"] > 0).all()
    base = out.runs["snapshot"].path["mid"].to_numpy()
    for name in climbed[2:]:
        same = np.isclose(out.runs[name].path["mid"], base, rtol=1e-9)
        assert same.mean() > 0.999, (name, same.mean())
    for name in climbed:
        assert abs(out.runs[name].path["inventory"]).max() <= config.max_inventory * (1 + 1e-9)
    if kind == "binance":
        assert "left out" in out.note("L2 replay, risk-averse")


@pytest.mark.realdata
def test_events_are_read_once_for_both():
    path = real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip")
    made = dict(strategy="naive", worlds=("snapshot", "l3-replay"))
    assert ladder(path, **made).table["digest"].tolist() == ladder(open_events(path), **made).table["digest"].tolist()
