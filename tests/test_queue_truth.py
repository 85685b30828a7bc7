"Page 71a: the kernel against plain Python, no look-ahead, where each model must be exact, the committed bias table, and real L3 data."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.backtest import queue_truth as qt
from makerlab.core import DataError, ParameterError
from makerlab.data.events import ADD, CANCEL, CLEAR, FILL, MODIFY, TRADE, Events, check_events, depth_of, take
from makerlab.execution.queues import QUEUE_BIAS, parse_queue

NAMES = ("fifo", "risk-averse", "power-prob:3", "proportional", "log-prob:1", "power-prob-1:2", "power-prob-2:2", "log-prob-2:1", "optimistic")
MEASURED = dict(models=list(QUEUE_BIAS), every_s=2.0, horizon_s=30.0, markout_s=5.0)


def rough(seed: int, n: int = 700) -> Events:
    "L3 rows with sizes, partial cancels, orders moved, grown and shrunk, sweeps and hidden prints."
    rng, live, rows, t, ids = np.random.default_rng(seed), {}, [], 0, 0
    for _ in range(n):
        t += int(rng.exponential(1e8))
        bids, asks = ([o[1] for o in live.values() if o[0] == s] for s in (1, -1))
        bid = max(bids) if bids else 99
        ask = min(asks) if asks else bid + 2
        u = rng.uniform()
        near = lambda s, bid=bid, ask=ask: ask - 1 - int(rng.integers(4)) if s > 0 else bid + 1 + int(rng.integers(4))  # noqa: E731
        if u < 0.5 or min(len(bids), len(asks)) < 4:
            s = 1 if len(bids) < 4 or (rng.uniform() < 0.5 and len(asks) >= 4) else -1
            ids += 1
            live[ids] = [s, near(s), int(rng.integers(1, 9))]
            rows.append((ADD, *live[ids], ids, t))
        elif u < 0.75:
            o = int(rng.choice(list(live)))
            s, p, had = live[o]
            gone = had if rng.uniform() < 0.7 else int(rng.integers(1, had + 1))
            rows.append((CANCEL, s, p, gone, o, t))
            live[o][2] -= gone
        elif u < 0.85:
            o = int(rng.choice(list(live)))
            s, p, had = live.pop(o)
            moved = [s, p if rng.uniform() < 0.6 else near(s), int(rng.integers(1, 9))]
            rows.append((MODIFY, *moved, o, t))
            live = {**live, o: moved} if moved[1] != p or moved[2] > had else dict(sorted({**live, o: moved}.items()))
        elif u < 0.97:
            s = 1 if rng.uniform() < 0.5 else -1
            for _ in range(int(rng.integers(1, 5))):
                here = [(o, v) for o, v in live.items() if v[0] == s and v[2] > 0]
                if len(here) < 3:
                    break
                best = (max if s > 0 else min)(v[1] for _, v in here)
                o, v = next((o, v) for o, v in here if v[1] == best)
                lots = int(rng.integers(1, v[2] + 1))
                rows += [(TRADE, -s, best, lots, 0, t), (FILL, s, best, lots, o, t)]
                v[2] -= lots
        else:
            s = 1 if rng.uniform() < 0.5 else -1
            rows.append((TRADE, -s, bid if s > 0 else ask, 2, 0, t))
        live = {o: v for o, v in live.items() if v[2] > 0}
    k = np.array(rows)
    return Events(kind=k[:, 0].astype(np.uint8), side=k[:, 1].astype(np.int8), exch_ns=k[:, 5], local_ns=k[:, 5], tick=k[:, 2].astype(np.int32),
                  lots=k[:, 3], order_id=k[:, 4], level="l3")


def compare(events: Events, *, every: int, names=NAMES, depths=(0, 1, 3), horizon_s=15.0) -> int:
    steps = qt._steps_of(events, depths)
    joins = qt._joins(steps, every_s=2.0, n_orders=None, depth_ticks=depths, span=(0, int(events.exch_ns[-1] - 20e9)), rng=None)
    count = 0
    for name in names:
        fast = qt._follow(steps, joins, parse_queue(name), horizon_s=horizon_s)
        for v in range(count % every, len(joins), every):
            at = joins.loc[v]
            wait, front = qt.follow_slowly(events, row=int(steps.row[at["at"]]), side=int(at["side"]), tick=int(at["tick"]), queue=name, horizon_s=horizon_s)
            wait += (steps.t_ns[at["at"]] - at["join_ns"]) / 1e9
            wait = np.nan if wait > horizon_s else wait
            assert np.isclose(fast["wait_s"][v], wait, equal_nan=True), (name, v, fast["wait_s"][v], wait)
            assert np.isclose(fast["front"][v], front, equal_nan=True), (name, v, fast["front"][v], front)
            count += 1
    return count


@pytest.mark.bounds
@pytest.mark.parametrize("seed", range(4))
def test_kernel_against_plain_python(seed):
    events = rough(seed)
    assert not check_events(events)
    assert compare(events, every=9) > 100


@pytest.mark.nojit
def test_kernel_without_jit():
    assert compare(rough(9, 300), every=3, names=("fifo", "power-prob:3", "log-prob:1")) > 10


@pytest.mark.bounds
@pytest.mark.nojit
def test_steps_show_what_depth_of_shows():
    "The level quantities that models see are those of depth_of, row by row."
    events = rough(3, 400)
    steps, view = qt._steps_of(events, ()), depth_of(events)
    moved = np.isin(steps.op, (qt._GONE, qt._SERVED, qt._JOINED)) & (steps.before != steps.after)
    tick = steps.grid[np.where(steps.s == 0, steps.r, steps.grid.size - 1 - steps.r)]
    mine = np.column_stack([steps.t_ns, 1 - 2 * steps.s, tick, steps.after])[moved]
    theirs = np.column_stack([view.exch_ns, view.side, view.tick, view.lots])[view.kind == 1]
    change = np.ones(len(theirs), bool)  # depth_of tells a modify that changes nothing; it is no step of ours
    seen: dict[tuple[int, int], int] = {}
    for i, (_, s, p, lots) in enumerate(theirs):
        change[i] = seen.get((s, p), 0) != lots
        seen[s, p] = lots
    assert np.array_equal(mine, theirs[change])


@pytest.mark.nojit
def test_exact_where_the_assumption_holds():
    for n_place, name in ((0.0, "optimistic"), (np.inf, "risk-averse")):
        trial = qt.try_queues(qt.make_queues(rng=np.random.default_rng(3), seconds=120.0, n_place=n_place), models=[name], every_s=4.0, horizon_s=20.0)
        assert len(trial.fill_times) > 30
        pd.testing.assert_series_equal(trial.fill_times[name], trial.fill_times["fifo"], check_names=False)
        pd.testing.assert_series_equal(trial.fronts[name], trial.fronts["fifo"], check_names=False)


def test_bracket_on_made_data():
    for n_place in (0.5, 1.0, 3.0):
        fills = qt.try_queues(qt.make_queues(rng=np.random.default_rng(8), seconds=900.0, n_place=n_place), every_s=1.0, horizon_s=30.0).fill_times.fillna(99.0)
        assert (fills["optimistic"] <= fills["fifo"]).all() and (fills["fifo"] <= fills["risk-averse"]).all()


def test_no_look_ahead():
    "What comes after an instant changes no fill before it."
    events = qt.make_queues(rng=np.random.default_rng(4), seconds=300.0)
    cut = len(events) // 2
    later = np.arange(len(events))
    later[cut:] = np.random.default_rng(1).permutation(later[cut:])
    mixed = take(events, later)
    mixed = replace(mixed, exch_ns=events.exch_ns, local_ns=events.local_ns)
    a, b = (qt.try_queues(e, every_s=2.0, horizon_s=20.0).fill_times for e in (events, mixed))
    known = (a["time"].astype("int64") + (a["fifo"].fillna(21.0) * 1e9).astype("int64")) < events.exch_ns[cut - 1]
    assert 30 < known.sum() < len(a)
    joined = a["time"].astype("int64") < events.exch_ns[cut - 1]
    pd.testing.assert_frame_equal(a.loc[joined, ["side", "tick", "queue"]], b.loc[joined, ["side", "tick", "queue"]])
    pd.testing.assert_series_equal(a.loc[known, "fifo"], b.loc[known, "fifo"])
    assert not a.loc[~joined, "tick"].equals(b.loc[~joined, "tick"])


def test_virtual_orders_stand_where_real_ones_do():
    events = qt.make_queues(rng=np.random.default_rng(5), seconds=600.0)
    audit = qt.try_queues(events, n_orders=800, depth_ticks=(3,), horizon_s=30.0, rng=np.random.default_rng(0)).audit()["value"]
    assert audit["real orders beside them that were filled"] > 100 and audit["of these at the virtual order's instant"] == 100.0
    assert audit["of these out of turn"] == 0.0


def test_out_of_turn_is_counted():
    "An execution of someone behind, with lots ahead left, is a fill out of turn; of one instant, in any order, it is not."
    def tape(order, gap):
        rows = [(ADD, 1, 100, 1, 1, 0), (ADD, -1, 101, 1, 9, 0), (ADD, 1, 99, 5, 8, 1), (ADD, 1, 100, 1, 2, 2_000_000_000), (ADD, -1, 102, 1, 7, 2_000_000_001)]
        for i, o in enumerate(order):
            rows += [(TRADE, -1, 100, 1, 0, 3_000_000_000 + i * gap), (FILL, 1, 100, 1, o, 3_000_000_000 + i * gap)]
        k = np.array([*rows, (ADD, 1, 98, 1, 50, 60_000_000_000)])
        return Events(kind=k[:, 0].astype(np.uint8), side=k[:, 1].astype(np.int8), exch_ns=k[:, 5], local_ns=k[:, 5], tick=k[:, 2].astype(np.int32),
                      lots=k[:, 3], order_id=k[:, 4], level="l3")
    for order, gap, how in (((1, 2), 0, "queue"), ((2, 1), 0, "queue"), ((2, 1), 10, "out of turn"), ((1, 2), 10, "queue")):
        times = qt.try_queues(tape(order, gap), every_s=1.0, horizon_s=5.0).fill_times
        assert times.loc[times["side"] > 0, "how"].iloc[0] == how, (order, gap)


def test_view_clear_and_dark_orders():
    events = rough(2)
    near = qt.try_queues(events, every_s=1.0, depth_ticks=(2,), horizon_s=15.0, levels=1)
    assert near.audit().loc["ended out of view", "value"] > 50
    assert qt.try_queues(events, every_s=1.0, depth_ticks=(2,), horizon_s=15.0, levels=50).audit().loc["ended out of view", "value"] == 0
    dark = qt.try_queues(replace(events, order_id=np.where(events.order_id % 3 == 1, -events.order_id, events.order_id)), every_s=1.0, horizon_s=15.0)
    assert "nobody announced" in dark.notes[-1] and 0 < len(dark.fill_times) < len(qt.try_queues(events, every_s=1.0, horizon_s=15.0).fill_times)
    kind, side = events.kind.copy(), events.side.copy()
    kind[350], side[350] = CLEAR, 0
    assert "cleared" in qt.try_queues(replace(events, kind=kind, side=side), every_s=1.0, horizon_s=15.0).notes[-1]


def test_statistics():
    trial = qt.try_queues(qt.make_queues(rng=np.random.default_rng(6), seconds=900.0), every_s=2.0, horizon_s=30.0)
    table, cost, rates = trial.table(), trial.pnl_error(), trial.rates(horizons_s=(10, 30))
    hit, was = trial.fill_times["risk-averse"].notna(), trial.fill_times["fifo"].notna()
    assert table.loc["risk-averse", "fill bias"] == pytest.approx(100 * (hit.mean() - was.mean()))
    assert table.loc["risk-averse", "fill bias"] == pytest.approx(table.loc["risk-averse", "false %"] - table.loc["risk-averse", "missed %"])
    assert np.allclose(cost["count"] + cost["adverse"], cost["error"], atol=1e-12) and np.allclose(cost["model ticks"] - cost["true ticks"], cost["error"])
    assert rates.query("`within s` == 30")["bias"].to_numpy() == pytest.approx(table["fill bias"].to_numpy())
    assert (table["fill lo"] <= table["fill bias"]).all() and (table["fill bias"] <= table["fill hi"]).all()
    wide = trial.table(level=0.99)
    assert (wide["wait hi"] - wide["wait lo"] >= table["wait hi"] - table["wait lo"]).all()
    short = qt.try_queues(qt.make_queues(rng=np.random.default_rng(6), seconds=200.0), every_s=2.0, horizon_s=30.0).table()
    assert short["fill lo"].isna().all()  # too few blocks: no interval rather than a wrong one


@pytest.mark.parametrize(("change", "words"), [(dict(), "clock"), (dict(every_s=1.0, n_orders=5), "clock"), (dict(n_orders=5), "rng"), (dict(every_s=0.0), "every_s"),
                                               (dict(every_s=1.0, horizon_s=-1.0), "horizon_s"), (dict(every_s=1.0, depth_ticks=(-1,)), "depth_ticks"),
                                               (dict(every_s=1.0, models=[]), "models"), (dict(every_s=1.0, models=["fifo"]), "truth"),
                                               (dict(every_s=1.0, models=["log-prob", "log-prob:1"]), "each once"), (dict(every_s=1.0, block_s=0.0), "block_s")])
def test_refusals(change, words):
    with pytest.raises(ParameterError, match=words):
        qt.try_queues(rough(0), **change)


def test_bad_data():
    events = rough(0)
    with pytest.raises(DataError, match="l3"):
        qt.try_queues(depth_of(events), every_s=1.0)
    with pytest.raises(DataError, match="go back at row"):
        qt.try_queues(replace(events, exch_ns=events.exch_ns[::-1].copy()), every_s=1.0)
    with pytest.raises(DataError, match="virtual orders fit"):
        qt.try_queues(events, every_s=1.0, horizon_s=1e6)
    with pytest.raises(DataError, match="nothing to fit"):
        qt.cancel_places(take(events, np.flatnonzero(events.kind == ADD)))
    orphans = take(events, np.arange(60, len(events)))
    trial = qt.try_queues(orphans, every_s=1.0, horizon_s=15.0)
    assert any("do not rest" in note for note in trial.notes)


def test_cancel_places():
    for n in (0.5, 1.0, 4.0):
        fit = qt.cancel_places(qt.make_queues(rng=np.random.default_rng(11), seconds=600.0, n_place=n))
        assert fit.lo < fit.n < fit.hi and abs(fit.n / n - 1) < 0.1
    fit = qt.cancel_places(rough(1))
    assert 0 < fit.share.min() and fit.share.max() < 1


def holds(trial: qt.QueueTrial, key: str) -> None:
    "The committed entries are these numbers, rounded."
    table, cost = trial.table(), trial.pnl_error()
    for name, rows in QUEUE_BIAS.items():
        assert rows[key][:3] == pytest.approx(table.loc[name, ["fill bias", "fill lo", "fill hi"]].to_list(), abs=0.0501), (name, key)
        assert rows[key][3:] == pytest.approx(cost.loc[name, ["error", "error lo", "error hi"]].to_list(), abs=0.000501), (name, key)


def test_bias_table_made():
    trial = qt.try_queues(qt.make_queues(rng=np.random.default_rng(20240501), seconds=3600.0), **MEASURED)
    assert len(trial.fill_times) == 3564
    holds(trial, "made")


@pytest.mark.realdata
def test_bias_table_es():
    from makerlab.data.databento import load_dbn
    events = load_dbn(real("databento_es/esh4-glbx-mdp3-20231225.mbo.dbn.zst"))
    span = (pd.Timestamp("2023-12-25 23:00:30", tz="UTC"), pd.Timestamp("2023-12-26", tz="UTC"))
    trial = qt.try_queues(events, span=span, **MEASURED)
    assert len(trial.fill_times) == 3534
    holds(trial, "ES")
    beside = qt.try_queues(events, n_orders=5000, span=span, horizon_s=30.0, rng=np.random.default_rng(1)).audit()["value"]
    assert beside["of these out of turn"] == 0.0 and beside["of these at the virtual order's instant"] == 100.0
    assert beside["real orders beside them that were filled"] > 1000
    fit = qt.cancel_places(events)
    assert (round(fit.n, 1), round(fit.lo, 1), round(fit.hi, 1)) == (3.4, 2.9, 3.9)


@pytest.mark.realdata
def test_bias_table_amzn():
    from makerlab.data.lob import load_lobster
    from makerlab.data.lob_events import lobster_events
    events = lobster_events(load_lobster(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip")))
    span = tuple(pd.Timestamp(t, tz="America/New_York") for t in ("2012-06-21 09:35", "2012-06-21 15:55"))
    trial = qt.try_queues(events, span=span, levels=5, **MEASURED)
    assert len(trial.fill_times) == 22672
    holds(trial, "AMZN")
    beside = qt.try_queues(events, n_orders=8000, span=span, levels=5, horizon_s=30.0, rng=np.random.default_rng(1)).audit()["value"]
    assert beside["of these out of turn"] < 0.3 and beside["of these at the virtual order's instant"] > 97
    fit = qt.cancel_places(events)
    assert (round(fit.n, 1), round(fit.lo, 1), round(fit.hi, 1)) == (1.1, 1.0, 1.2)
