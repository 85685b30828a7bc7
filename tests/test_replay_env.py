"Sessions in recordings: the engine's own fills, no leak between parts, errors that say what is needed."
import dataclasses

import gymnasium
import numpy as np
import pandas as pd
import pytest
from conftest import real
from gymnasium.utils.env_checker import check_env

from makerlab.backtest import replay as engine
from makerlab.backtest.replay import ConstantLatency, Replay
from makerlab.core import DataError, ParameterError
from makerlab.data.events import Events, concat_events, take
from makerlab.data.source import open_events
from makerlab.execution.order_flow import LARGE, simulate_flow
from makerlab.learning import env as worlds
from makerlab.learning import replay_env as learning
from makerlab.learning.replay_env import ReplayEnv, Tape, cut_tape, sample_days, share_days
from makerlab.models.quoting import QuoteParams
from makerlab.schema import strategy

FREE = dict(max_inventory=10**6, max_loss=1e9, max_lots=10)


@strategy
def wander(state, params):
    "Prices and sizes that change every eighth mark, from mark x0 on: 0 to 2 ticks behind the best, 0 to 4 lots."
    k = np.int64(round(state.t_s / params.x1))
    if k < np.int64(round(params.x0)) or not (state.bid > 0.0 and state.ask > 0.0):
        return np.int64(0), np.int64(0), 0.0, 0.0
    n = k // 8
    bid, ask = np.int64(round(state.bid / params.tick)), np.int64(round(state.ask / params.tick))
    return bid - (n * 7919) % 4 // 2, ask + (n * 104729) % 5 // 2, params.qty * (n * 31 % 9 // 2), params.qty * (n * 17 % 9 // 2)


def told_by_hand(env, n):
    "The same wishes as an action, at the mark n of the recording."
    h, n = env.heard(), n // 8
    return env.action_for(h.bid - (n * 7919) % 4 // 2, h.ask + (n * 104729) % 5 // 2, n * 31 % 9 // 2, n * 17 % 9 // 2)


def play(env, policy, episode=0):
    "Play a session; rows of out, positions known at each mark."
    env.reset(options={"episode": episode})
    outs, known, over = [], [], False
    while not over:
        known.append(env.heard().position)
        *_, te, tr, _ = env.step(policy(env))
        outs.append(env.out.copy())
        over = te or tr
    return np.array(outs), np.array(known)


def both(events, *, steps=300, queue="risk-averse", dt_s=1.0, ns=1_000_000, feed=None, max_offset=20.0, episode=0, split="train", order=None):
    "A session through the environment, and the same wishes through backtest.replay from the first row of the recording."
    task = worlds.Task(steps=steps, dt_s=dt_s, max_offset=max_offset, **FREE)
    env = ReplayEnv(events, task=task, split=split, queue=queue, order_latency_ns=ns if order is None else order, feed_latency_ns=feed, purge_s=10.0)
    outs, known = play(env, lambda e: told_by_hand(e, e.mark + int(e.out[worlds.STEP])), episode)
    lot = events.lot_size
    params = QuoteParams(qty=lot, max_inventory=1e6 * lot, x0=float(env.mark), x1=dt_s)
    run = Replay(events, strategy=wander, params=params, queue=queue, interval_ms=1e3 * dt_s, feed_latency=None if feed is None else ConstantLatency(feed),
                 order_latency=ConstantLatency(ns) if order is None else order, signals=False).run(rng=np.random.default_rng(0))
    return env, outs, known, run


def agree(env, outs, known, run):
    "Fills, known positions and wealth, all of them."
    end = env.tape.time_ns(env.mark + env.task.steps)
    mine, theirs = env.fills(), run.fills[run.fills["time"].astype("int64") <= end].reset_index(drop=True)
    columns = ["time", "side", "price", "qty", "mid", "maker", "order_id"]
    pd.testing.assert_frame_equal(mine[columns], theirs[columns])
    tick, lot = env.tape.events.tick_size, env.tape.events.lot_size
    np.testing.assert_array_equal(known * lot, run.positions[env.mark : env.mark + env.task.steps])
    row = len(run.positions) - len(run.path) # rows before the book had two sides
    last = env.mark + env.task.steps - 1 - row
    wealth = run.path["cash"].iloc[last] + run.path["inventory"].iloc[last] * run.path["mid"].iloc[last + 1]
    np.testing.assert_allclose(outs[-1, worlds.PNL] * tick * lot, wealth, atol=1e-6)
    return len(mine)


@pytest.fixture(scope="module")
def hour():
    "An hour of a simulated market, order by order."
    return simulate_flow(LARGE, seconds=3600, seed=7).events


def test_it_is_the_engine_on_the_sample():
    events = sample_days()[1]
    for queue, split, episode in (("risk-averse", "train", 0), ("power-prob:3", "test", 3)):
        assert agree(*both(events, queue=queue, split=split, episode=episode)) > 5


def test_it_is_the_engine_order_by_order(hour):
    assert agree(*both(hour, queue="fifo", steps=2000, dt_s=0.25, ns=7_000_000, feed=3_000_000)) > 20
    assert agree(*both(hour, queue="optimistic", steps=600, dt_s=0.5, ns=400_000_000, feed=100_000_000, split="validation")) > 20


def test_it_is_the_engine_with_recorded_delays():
    rng = np.random.default_rng(5)
    sent = np.arange(0, 23_400 * 10**9, 10**9) + sample_days()[0].exch_ns[0]
    there = sent + rng.integers(1, 300, sent.size) * 10**6
    order = engine.EmpiricalLatency(np.column_stack([sent, there, there + rng.integers(1, 900, sent.size) * 10**6]))
    assert agree(*both(sample_days()[0], order=order, steps=600)) > 10


def best(env, lots=1):
    "Join both best prices."
    h = env.heard()
    return env.action_for(h.bid, h.ask, lots, lots)


TASK = worlds.Task(steps=200, max_offset=10.0, inventory_penalty=0.01, variance_penalty=0.02, impact_penalty=0.3, end_penalty=0.7, fee_ticks=0.25)


def test_what_a_step_pays(hour):
    env = ReplayEnv(hour, task=TASK)
    outs, _ = play(env, best, 2)
    q, mid, traded = outs[:, worlds.INVENTORY], outs[:, worlds.MID], outs[:, worlds.BOUGHT] + outs[:, worlds.SOLD]
    assert traded.sum() > 10
    gain = np.diff(np.r_[0.0, outs[:, worlds.PNL]])
    np.testing.assert_allclose(gain[1:], (outs[:, worlds.CAPTURED] - outs[:, worlds.FEES])[1:] + q[1:] * np.diff(mid), atol=1e-9)
    np.testing.assert_allclose(outs[:, worlds.FEES], 0.25 * traded)
    sigma = np.r_[env._sigma[0], outs[:-1, worlds.SIGMA]]
    penalty = (0.01 + 0.02 * sigma**2) * q**2 + 0.3 * (outs[:, worlds.BOUGHT] ** 2 + outs[:, worlds.SOLD] ** 2)
    penalty[-1] += 0.7 * q[-1] ** 2
    np.testing.assert_allclose(outs[:, worlds.PENALTY], penalty, atol=1e-9)
    np.testing.assert_allclose(outs[:, worlds.REWARD], gain - penalty, atol=1e-9)
    assert np.isnan(outs[:, worlds.SIGNAL]).all() and outs[-1, worlds.TRUNCATED] == 1.0


def test_without_delay_what_is_known_is_what_happened(hour):
    env = ReplayEnv(hour, task=worlds.Task(max_offset=10.0), order_latency_ns=0, feed_latency_ns=0)
    env.reset(options={"episode": 2})
    pnl, fills, over = 0.0, 0.0, False
    while not over:
        obs, _, te, tr, _ = env.step(best(env))
        over, pnl, fills = te or tr, pnl + obs[7], fills + obs[8]
        assert obs[2] == np.float32(env.out[worlds.INVENTORY] / 10) and obs[8] == env.out[worlds.BOUGHT] + env.out[worlds.SOLD]
        assert pnl == pytest.approx(env.out[worlds.PNL], abs=1e-3)
        assert 0.0 <= obs[5] <= 1.0 and 0.0 <= obs[6] <= 1.0 and -1.0 <= obs[4] <= 1.0
    assert fills > 10


def test_news_come_late(hour):
    env = ReplayEnv(hour, task=worlds.Task(steps=400, dt_s=0.5, max_offset=10.0), order_latency_ns=ConstantLatency(0, back_ns=3_000_000_000))
    outs, known = play(env, best, 2)
    true = np.r_[0.0, outs[:-1, worlds.INVENTORY]]
    assert (known != true).any()
    np.testing.assert_array_equal(known[6:], true[:-6])  # six marks of half a second


@pytest.mark.parametrize("ns", [0, 1_000_000, 1_700_000_000])
def test_no_fill_carries_beyond_the_limit(hour, ns):
    task = worlds.Task(steps=400, dt_s=0.5, max_lots=2, max_inventory=3, max_offset=10.0)
    env, rng, most = ReplayEnv(hour, task=task, order_latency_ns=ns), np.random.default_rng(1), 0.0
    for episode in range(3):
        env.reset(options={"episode": episode})
        over = False
        while not over:
            *_, te, tr, _ = env.step(np.array([rng.uniform(-1, -0.8), rng.uniform(-1, -0.8), rng.uniform(-1, 1), 1.0 - 2.0 * (episode == 0)], np.float32))
            over, most = te or tr, max(most, abs(env.out[worlds.INVENTORY]))
    assert most == 3.0


def test_a_blown_limit_ends_it(hour):
    env = ReplayEnv(hour, task=worlds.Task(max_offset=10.0, max_loss=0.25))
    ends = []
    for episode in range(6):
        outs, _ = play(env, best, episode)
        ends.append(outs[-1, worlds.TERMINATED])
        assert outs[-1, worlds.TERMINATED] == float(outs[-1, worlds.PNL] < -0.25) and not (outs[:-1, worlds.PNL] < -0.25).any()
    assert 1.0 in ends
    with pytest.raises(ParameterError, match="reset"):
        env.step(np.zeros(4, np.float32))


def scrambled(events, since, until):
    "The same recording with nonsense between two moments."
    rng, rows = np.random.default_rng(3), (events.exch_ns >= since) & (events.exch_ns <= until)
    lots, side = events.lots * np.where(rows, rng.integers(1, 9, len(events)), 1), np.where(rows & (events.kind == engine.TRADE), -events.side, events.side)
    return dataclasses.replace(events, side=side, lots=lots)


def sessions(env, n=4):
    "All that some sessions show."
    out = []
    for episode in range(n):
        obs, _ = env.reset(options={"episode": episode})
        out.append(obs)
        for _ in range(60):
            out.append(env.step(best(env))[0])
            out.append(env.out.copy())
    return np.concatenate(out)


def test_the_parts_do_not_leak():
    day, task = sample_days()[0], worlds.Task(steps=100, max_offset=10.0)
    make = lambda events, split: ReplayEnv(events, task=task, split=split, purge_s=120.0)
    tape = make(day, "train").tapes[0]
    spans = make(day, "train").spans
    a, b, c = ((tape.time_ns(s.first), tape.time_ns(s.last)) for s in spans)
    assert b[0] - a[1] > 120 * 10**9 and c[0] - b[1] > 120 * 10**9
    plain = {split: sessions(make(day, split)) for split in ("train", "validation")}
    for where in (c, (a[1] + 1, c[1])):
        np.testing.assert_array_equal(plain["train"], sessions(make(scrambled(day, *where), "train")))
    np.testing.assert_array_equal(plain["validation"], sessions(make(scrambled(day, *c), "validation")))
    assert not np.array_equal(plain["train"], sessions(make(scrambled(day, *a), "train")), equal_nan=True)  # the check can fail
    for split, span in zip(("train", "validation", "test"), spans, strict=True):
        env = make(day, split)
        for n in range(50):
            env.reset(options={"episode": n})
            assert span.first <= env.mark and env.mark + task.steps <= span.last


def test_days_do_not_leak():
    days, task = sample_days(), worlds.Task(steps=100, max_offset=10.0)
    plain = sessions(ReplayEnv(task=task))
    np.testing.assert_array_equal(plain, sessions(ReplayEnv(days=[days[0], scrambled(days[1], 0, 2**62), scrambled(days[2], 0, 2**62)], task=task)))
    np.testing.assert_array_equal(plain, sessions(ReplayEnv(days=[days[2], days[0], days[1]], task=task)))  # in the order of time
    other = ReplayEnv(days={"train": [days[0]], "validation": [days[2]], "test": [days[1]]}, task=task, split="test")
    other.reset(options={"episode": 0})
    assert other.window()[0].day == 3


def test_a_session_depends_on_its_seed_alone(hour):
    jitter = ConstantLatency(1_000_000, jitter_ns=5e8)
    make = lambda: ReplayEnv(hour, task=worlds.Task(max_offset=10.0), order_latency_ns=jitter)
    fresh, used = make(), make()
    play(used, best, 9)
    np.testing.assert_array_equal(play(fresh, best, 3)[0], play(used, best, 3)[0])
    a, b = make(), make()
    np.testing.assert_array_equal(a.reset(seed=7)[0], b.reset(seed=7)[0])
    assert a.mark == b.mark and a.episode == b.episode
    assert len({make().reset(options={"episode": n})[1]["session"] for n in range(3)}) == 3


def test_phases_choose():
    env = ReplayEnv(task=worlds.Task(steps=100))
    variance = {}
    for phase in ("low", "medium", "high", "switching"):
        env.set_phase(phase)
        rows = env.windows[phase]
        table = {tuple(r): v for r, v in zip(env.windows["medium"], env.variance, strict=True)}
        variance[phase] = np.array([table[tuple(r)] for r in rows[:: max(len(rows) // 500, 1)]])
    assert variance["low"].max() <= variance["high"].min() and variance["low"].mean() < variance["medium"].mean() < variance["high"].mean()
    assert len(env.windows["switching"]) == len(env.windows["medium"]) > 2 * len(env.windows["low"])
    with pytest.raises(ParameterError):
        env.set_phase("wild")


def test_gymnasium_accepts_it():
    env = gymnasium.make("makerlab/Replay-v0", task=worlds.Task(steps=20))
    check_env(env.unwrapped, skip_render_check=True)
    formula = ReplayEnv(task=worlds.Task(steps=50, action="as", time_left=False), render_mode="rgb_array")
    obs, _ = formula.reset(seed=1)
    assert obs.shape == (9,) and formula.action_space.shape == (2,)
    for _ in range(50):
        obs, *_, info = formula.step(np.array([0.2, 0.5], np.float32))
    assert info["episode_stats"]["posted"] > 0 and formula.render().ndim == 3


def test_stable_baselines_accepts_it():
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(ReplayEnv(task=worlds.Task(steps=20)))


def test_cutting():
    assert cut_tape(1000, shares=(0.6, 0.2, 0.2), gap=50) == [(0, 539), (590, 769), (820, 999)]
    assert all(b < a for a, b in cut_tape(60, shares=(0.6, 0.2, 0.2), gap=50))
    assert share_days(3, shares=(0.6, 0.2, 0.2)) == ["train", "validation", "test"]
    assert [share_days(10, shares=(0.6, 0.2, 0.2)).count(p) for p in ("train", "validation", "test")] == [6, 2, 2]
    assert [share_days(4, shares=(0.1, 0.1, 5.0)).count(p) for p in ("train", "validation", "test")] == [1, 1, 2]


def test_what_is_refused(hour):
    day = sample_days()[0]
    brief = day.between(int(day.exch_ns[0]), int(day.exch_ns[0]) + 300 * 10**9)
    with pytest.raises(DataError, match=r"needs 200 s .* give a recording of 11\d\d s at least"):
        ReplayEnv(brief)
    ReplayEnv(day.between(int(day.exch_ns[0]), int(day.exch_ns[0]) + 1200 * 10**9))  # and that is enough
    ReplayEnv(brief, task=worlds.Task(steps=20))
    one_sided = take(day, (day.side > 0) | (day.kind == engine.TRADE))
    for bad, error, match in [
        (lambda: ReplayEnv(one_sided), DataError, "both sides"),
        (lambda: ReplayEnv(take(day, slice(0, 0))), DataError, "rows"),
        (lambda: ReplayEnv(days=[day, day, day]), DataError, "may not overlap"),
        (lambda: ReplayEnv(days=[day, day]), DataError, "may not overlap"),
        (lambda: ReplayEnv(days={"train": [day], "validation": [day], "test": [sample_days()[1]]}), DataError, "may not overlap"),
        (lambda: ReplayEnv(days={"train": [day]}), ParameterError, "needs train, validation and test"),
        (lambda: ReplayEnv(days=[]), ParameterError, "list of recordings"),
        (lambda: ReplayEnv(days=day), ParameterError, "events="),
        (lambda: ReplayEnv(day, days=[day]), ParameterError, "one recording"),
        (lambda: ReplayEnv(days=[hour, day, sample_days()[1]], symbol="BIGT", split="mine"), ParameterError, "split"),
        (lambda: ReplayEnv(days=[sample_days("SMLT")[0], sample_days()[1], dataclasses.replace(sample_days()[2], tick_size=0.05)]), ParameterError, "one grid"),
        (lambda: ReplayEnv(42), ParameterError, "Events or a path"),
        (lambda: ReplayEnv("nowhere.parquet"), ParameterError, "nowhere"),
        (lambda: ReplayEnv(symbol="XXXX"), ParameterError, "symbol"),
        (lambda: ReplayEnv(queue="fifo"), ParameterError, "order by order"),
        (lambda: ReplayEnv(queue="psychic"), ParameterError, "queue"),
        (lambda: ReplayEnv(order_latency_ns=-1), ParameterError, "ns"),
        (lambda: ReplayEnv(order_latency_ns=None), ParameterError, "order_latency"),
        (lambda: ReplayEnv(feed_latency_ns=-1), ParameterError, "ns"),
        (lambda: ReplayEnv(shares=(0.5, 0.5)), ParameterError, "three positive"),
        (lambda: ReplayEnv(purge_s=-1.0), ParameterError, "purge_s"),
        (lambda: ReplayEnv(window_s=1.0), ParameterError, "window_s"),
        (lambda: ReplayEnv(task=7), ParameterError, "Task"),
    ]:
        with pytest.raises(error, match=match):
            bad()
    env = ReplayEnv()
    with pytest.raises(ParameterError, match="reset"):
        env.step(np.zeros(4, np.float32))
    env.reset(seed=1)
    for action, match in ((np.full(4, np.nan), "not finite"), (np.full(4, 1.5), "leaves the box"), (np.zeros(3), r"of shape \(4,\)")):
        with pytest.raises(ParameterError, match=match):
            env.step(action.astype(np.float32))
    with pytest.raises(ParameterError, match="offsets reach"):
        env.action_for(1, 2, 1, 1)
    assert env.step(np.zeros(4, np.float32))[1] == env.out[worlds.REWARD]  # a refused action leaves the session as it was


def test_unsorted_rows_are_named():
    day = sample_days()[0]
    stamps = day.exch_ns.copy()
    stamps[5000] -= 10**12
    with pytest.raises(DataError, match="row 5000"):
        ReplayEnv(dataclasses.replace(day, exch_ns=stamps, local_ns=stamps))


def test_the_columns_are_not_copied():
    day = sample_days()[0]
    tape = Tape(day)
    assert np.shares_memory(tape.rows.lots, day.lots) and np.shares_memory(tape.rows.exch, day.exch_ns)


def test_a_book_that_must_grow():
    jump = sample_days()[0]
    late = jump.exch_ns > jump.exch_ns[0] + 4 * 3600 * 10**9
    drift = dataclasses.replace(jump, tick=np.where(late, jump.tick + 4000, jump.tick).astype(np.int32), side=jump.side)
    env = ReplayEnv(drift, task=worlds.Task(steps=50, max_offset=4000.0), split="train")
    env.reset(options={"episode": 0})
    for _ in range(50):
        *_, te, tr, _ = env.step(np.array([0.9, 0.9, 1.0, 1.0], np.float32))
    assert tr and isinstance(concat_events([jump]), Events)


@pytest.mark.realdata
def test_a_capture_of_binance():
    events = open_events(real("hftbacktest_binance/spot_btcusdt_20240808.gz"))
    assert agree(*both(events, steps=500, dt_s=0.1, queue="power-prob:3", order=ConstantLatency(10_000_000), max_offset=20_000.0)) > 5


@pytest.mark.realdata
def test_a_day_of_lobster_order_by_order():
    events = open_events(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip"))
    env, outs, known, run = both(events, steps=600, queue="fifo", max_offset=400.0)
    assert agree(env, outs, known, run) > 5 and events.level == "l3"


@pytest.mark.parametrize("action", ["offsets", "as"])
def test_actions_mean_what_they_mean_elsewhere(action):
    task = worlds.Task(max_lots=7, action=action, min_offset=0.5)
    w, rng = learning._numbers_of(task), np.random.default_rng(2)
    for _ in range(50):
        a = rng.uniform(-1, 1, 4 if action == "offsets" else 2).astype(np.float32)
        q, sigma, tau = float(rng.integers(-7, 8)), rng.uniform(0, 3), rng.uniform(0, 200)
        theirs = worlds.quotes_of_action(a, task=task, inventory=q, sigma=sigma, tau_s=tau)
        np.testing.assert_allclose(learning._asked_nb(w, a[None], q, sigma, tau), tuple(theirs), rtol=1e-12)
