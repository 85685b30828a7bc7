"The order-book world: its twin, the backtest's engine, phases, limits, refusals."
import dataclasses

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

import makerlab.learning.market_env as m  # noqa: E402
from makerlab.core import ParameterError  # noqa: E402
from makerlab.execution import order_flow  # noqa: E402
from makerlab.execution.order_flow import PRESETS  # noqa: E402
from makerlab.learning.env import ASK, BID, BOUGHT, CAPTURED, FEES, INVENTORY, MID, PENALTY, PNL, REWARD, SIGMA, SIGNAL, SOLD, STEP, Task, WorldError, episode_seed  # noqa: E402
from makerlab.learning.market_env import INFORMED_FLOW, LOBEnv, phased, session_slow  # noqa: E402
from makerlab.models.quoting import STRATEGIES, QuoteParams  # noqa: E402
from makerlab.schema import new_state, strategy  # noqa: E402

TASK = Task(steps=15, max_lots=3, max_inventory=4, max_offset=2.0)
JOIN = np.array([-0.75, -0.75, 1.0, 1.0], np.float32)


def played(env, actions, episode):
    rows = [(env.reset(options={"episode": episode})[0], env.out.copy())]
    return rows + [(env.step(a)[0], env.out.copy()) for a in actions]


@pytest.mark.parametrize(("seed", "feed", "order"), [(1, 0, 0), (2, 300_000_000, 900_000_000), (3, 1_400_000_000, 0), (4, 0, 2_500_000_000)])
def test_the_kernel_is_its_twin(seed, feed, order):
    env = LOBEnv(TASK, window_s=3.0, split="test", feed_latency_ns=feed, order_latency_ns=order)
    actions = np.random.default_rng(seed).uniform(-1, 1, (15, 4)).astype(np.float32)
    rows = played(env, actions, seed)
    fast = np.array([(o[MID], s[1], o[INVENTORY], *s[4:7], o[PNL], o[SIGNAL]) for s, o in rows])
    slow = session_slow(env.backtest(episode_seed("test", seed)), TASK, actions)
    np.testing.assert_allclose([o[SIGMA] for _, o in rows], slow[:, 3], rtol=1e-9)
    slow = np.delete(slow, 3, axis=1)
    slow[:, 3:6] = slow[:, 3:6].astype(np.float32)
    np.testing.assert_array_equal(fast, slow)


def same_path(outs, path, tick, lot):
    "Position and P&L at every decision: a row of the path has the mid at its mark, and inventory and cash after the fills until the next."
    q, cash, mid = (path[c].to_numpy() for c in ("inventory", "cash", "mid"))
    np.testing.assert_allclose(outs[:, MID], mid / tick, atol=1e-6)
    np.testing.assert_array_equal(outs[1:, INVENTORY], (q / lot).round()[:-1])
    np.testing.assert_allclose(outs[1:, PNL], (cash[:-1] + q[:-1] * mid[1:]) / (tick * lot), atol=1e-6)


@strategy
def late_joiner(state, params):
    "Silent until second x0, then at the touch."
    bid, ask = int(round(state.bid / params.tick)), int(round(state.ask / params.tick))
    size = params.qty if state.t_s >= params.x0 - 1e-9 else 0.0
    return bid, ask, size, size


@pytest.mark.parametrize(("feed", "order"), [(0, 0), (0, 50_000_000), (20_000_000, 50_000_000), (1_300_000_000, 1_200_000_000)])
def test_a_strategy_earns_the_same_as_in_the_backtest(feed, order):
    task = Task(steps=100, max_lots=2, max_inventory=5, max_offset=8.0)
    env = LOBEnv(task, split="test", feed_latency_ns=feed, order_latency_ns=order)
    start = m._first_decision(env)
    run = env.backtest(episode_seed("test", 7))
    lot, tick = run.made_of.lot_size, run.made_of.tick_size
    run = run.variant(strategy=late_joiner, params=QuoteParams(qty=2 * lot, max_inventory=5 * lot, x0=float(start)))
    r = run.run()
    env.reset(options={"episode": 7})
    bought = sold = 0.0
    outs = [env.out.copy()]
    while env.running:
        o = env.out
        half = (o[ASK] - o[BID]) / 2
        env.step(np.array([half / 4 - 1, half / 4 - 1, 1, 1], np.float32))
        outs.append(env.out.copy())
    outs = np.array(outs)
    bought, sold = outs[1:, BOUGHT].sum(), outs[1:, SOLD].sum()
    f = r.fills[r.fills["maker"]]
    assert len(f) > 10 and bought > 0 and sold > 0
    assert bought == f.loc[f["side"] > 0, "qty"].sum() / lot and sold == f.loc[f["side"] < 0, "qty"].sum() / lot
    last = r.path.iloc[-1]
    worth = (last["cash"] + last["inventory"] * last["mid"]) / (tick * lot)
    assert outs[-1, INVENTORY] == round(last["inventory"] / lot)
    assert outs[-1, PNL] == pytest.approx(worth, abs=1e-6)
    if feed == 0:
        same_path(outs, r.path.iloc[start:], tick, lot)


def test_the_formula_earns_the_same_as_in_the_backtest():
    env = LOBEnv(Task(steps=100, max_offset=30.0, min_offset=-30.0, max_lots=1, max_inventory=9), split="test")
    params = QuoteParams(gamma=2e-3, k=600.0, qty=100, max_inventory=900, min_spread_bps=0.0)
    run = env.backtest(episode_seed("test", 2)).variant(strategy="as", params=params)
    path, record = run.run().path.iloc[m._first_decision(env):], params.record(0.01)
    env.reset(options={"episode": 2})
    outs = [env.out.copy()]
    while env.running:
        o = env.out
        state = new_state(tau_s=100 - o[STEP], mid=o[MID] * 0.01, bid=o[BID] * 0.01, ask=o[ASK] * 0.01, inventory=o[INVENTORY] * 100, sigma=o[SIGMA] * 0.01)
        bid, ask, nb, na = STRATEGIES["as"](state, record)
        env.step(np.array([(o[MID] - bid) / 30, (ask - o[MID]) / 30, nb / 50 - 1, na / 50 - 1], np.float32))
        outs.append(env.out.copy())
    outs = np.array(outs)
    assert outs[:, BOUGHT].sum() + outs[:, SOLD].sum() > 5
    same_path(outs, path, 0.01, 100.0)


def test_sums_of_a_session():
    task = Task(steps=60, max_lots=2, max_offset=4.0, fee_ticks=0.25, inventory_penalty=0.01, variance_penalty=0.02, impact_penalty=0.03, end_penalty=0.5)
    env = LOBEnv(task)
    outs = np.array([o for _, o in played(env, np.tile(JOIN, (60, 1)), 5)][1:])
    q, lots = outs[:, INVENTORY], outs[:, BOUGHT] + outs[:, SOLD]
    assert lots.sum() > 5 and np.array_equal(np.cumsum(outs[:, BOUGHT] - outs[:, SOLD]), q)
    np.testing.assert_allclose(outs[:, FEES], 0.25 * lots)
    expected = (0.01 + 0.02 * outs[:, SIGMA] ** 2) * q * q + 0.03 * (outs[:, BOUGHT] ** 2 + outs[:, SOLD] ** 2)
    expected[-1] += 0.5 * q[-1] ** 2
    np.testing.assert_allclose(outs[:, PENALTY], expected)
    assert outs[:, REWARD].sum() == pytest.approx(outs[-1, PNL] - outs[:, PENALTY].sum())
    moves = np.diff(outs[:, MID]) @ q[:-1]
    assert abs(outs[-1, PNL] - (outs[:, CAPTURED] - outs[:, FEES]).sum() - moves) < 60  # the rest is what mids did between decision and fill


def test_the_limit_on_the_position_holds():
    env = LOBEnv(Task(steps=150, max_lots=5, max_inventory=2, max_offset=4.0), order_latency_ns=700_000_000)
    outs = np.array([o for _, o in played(env, np.tile(JOIN, (150, 1)), 3)])
    assert np.abs(outs[:, INVENTORY]).max() == 2


def test_an_order_left_alone_advances_in_its_queue():
    env = LOBEnv(Task(steps=120, max_offset=8.0))
    env.reset(options={"episode": 1})
    shares, tick = [], env.out[BID] - 3
    while env.running:
        obs, *_ = env.step(np.array([(env.out[MID] - tick) / 4 - 1, 0, 1, -1], np.float32))
        shares.append(float(obs[5]))
        assert obs[6] == 1.0
    assert min(shares) < 0.5 and 0.0 <= min(shares)


@pytest.mark.parametrize("phase", ("low", "medium", "high"))
def test_phases_change_the_volatility(phase):
    env = LOBEnv(Task(steps=50))
    env.set_phase(phase)
    env.reset(options={"episode": 0})
    assert env.backtest(1).made_of.regimes[0].vol == {"low": 0.5, "medium": 1.0, "high": 2.0}[phase]
    assert env._flow.fx[m.V_NOW] > 0


def test_switching_begins_anywhere_and_moves():
    names = {phased(INFORMED_FLOW, "switching", seed=s).regimes[0].name for s in range(6)}
    assert names == {"low", "medium", "high"}
    env = LOBEnv()
    env.set_phase("switching")
    env.reset(options={"episode": 0})
    while env.running:
        env.step(JOIN)
    with pytest.raises(ParameterError, match="regimes of its own"):
        phased(PRESETS["regimes"], "switching")


def test_a_session_is_its_seed():
    a, b = LOBEnv(), LOBEnv()
    a.reset(seed=5), b.reset(seed=5)
    for _ in range(20):
        x, y = a.step(JOIN), b.step(JOIN)
        np.testing.assert_array_equal(x[0], y[0])
    assert a.episode == b.episode
    c = LOBEnv(split="validation")
    c.reset(seed=5)
    assert c.episode == a.episode and not np.array_equal(c.out, a.out)


def test_a_price_that_leaves_the_window_goes_on(monkeypatch):
    "With jumps out of a narrow book, in silence and in the middle of a step, a session is the one that a wide book gives."
    jumpy = dataclasses.replace(INFORMED_FLOW, jump_rate=0.2, jump_ticks=200.0, price=200.0)
    env, widen, widened = LOBEnv(Task(steps=60, max_loss=1e9), flow=jumpy), m._widen, []
    monkeypatch.setattr(m, "_widen", lambda flow: widened.append(env.running) or widen(flow))

    def session(n):
        env.running = False
        rows = [env.reset(options={"episode": n})[0]]
        while env.running:
            rows += [env.step(JOIN)[0], env.out.copy()]
        return np.concatenate(rows)

    wide = [session(n) for n in (0, 3, 5)]
    assert not widened
    half = int(jumpy.place_most) + 26
    monkeypatch.setattr(order_flow, "_window", lambda params: (20_000 - half, 2 * half))
    for n, expected in zip((0, 3, 5), wide, strict=True):
        np.testing.assert_array_equal(session(n), expected)
    assert True in widened and False in widened and np.isfinite(expected).all()


def test_a_broken_market_stops():
    env = LOBEnv(Task(steps=20))
    for where in (PNL, SIGMA):
        env.reset(options={"episode": 0})
        env.step(JOIN)
        assert env.out[STEP] == 1
        env._own[0] = np.nan if where == PNL else 0.0  # the cash
        if where == SIGMA:
            env._own[1] = np.nan  # the first mid: only the observation breaks
        with pytest.raises(WorldError, match="broken at step 2"):
            env.step(JOIN)
        with pytest.raises(ParameterError, match="call reset"):
            env.step(JOIN)


def test_a_full_tape_changes_nothing(monkeypatch):
    big = np.array([o for _, o in played(LOBEnv(), np.tile(JOIN, (40, 1)), 2)])
    made = m._new_desk
    monkeypatch.setattr(m, "_new_desk", lambda run, flow, rows: made(run, flow, 8))
    np.testing.assert_array_equal(big, np.array([o for _, o in played(LOBEnv(), np.tile(JOIN, (40, 1)), 2)]))


def test_terminated_truncated_and_refusals():
    env = LOBEnv(Task(max_offset=4.0, max_loss=2.0), split="validation")
    ends = set()
    for n in range(6):
        env.reset(options={"episode": n})
        while env.running:
            _, _, terminated, truncated, info = env.step(JOIN)
        assert terminated == (info["pnl"] < -2.0) and terminated != truncated and "episode_stats" in info
        ends.add(terminated)
    assert True in ends
    with pytest.raises(ParameterError, match="reset"):
        env.step(JOIN)
    env.reset(seed=1)
    for bad, what in ((JOIN * np.nan, "not finite"), (JOIN * 3, "leaves the box"), (JOIN[:2], r"of shape \(4,\)")):
        with pytest.raises(ParameterError, match=what):
            env.step(bad)
    for more, what in (({"flow": "nowhere"}, "flow = 'nowhere'"), ({"feed_latency_ns": -1}, "feed_latency_ns"), ({"window_s": 1.0}, "window_s = 1.0")):
        with pytest.raises(ParameterError, match=what):
            LOBEnv(**more)


def test_the_formula_as_an_action():
    env = gymnasium.make("makerlab/LOB-v0", task=Task(action="as", max_offset=6.0, steps=40), disable_env_checker=True)
    env.reset(seed=1)
    for _ in range(40):
        obs, *_ = env.step(np.array([0.0, 0.5], np.float32))
    assert env.observation_space.contains(obs)


@pytest.mark.parametrize("max_loss", [1e4, 1.0])
def test_paid_at_the_value_each_step_is_the_formula_and_the_sum_differs_by_a_martingale(max_loss):
    task = Task(steps=40, max_lots=3, max_inventory=6, max_offset=2.0, max_loss=max_loss, inventory_penalty=0.01, end_penalty=0.3, fee_ticks=0.1)
    env, plain = (LOBEnv(task, split="test", mark=k) for k in ("value", "mid"))
    rng, gaps, luck = np.random.default_rng(3), [], []
    for episode in range(3):
        for e in (env, plain):
            e.reset(options={"episode": episode})
        cash = 0.0
        while env.running:
            q, v, a = env.out[INVENTORY], env.out[MID] + env.out[SIGNAL], rng.uniform(-1, 1, 4).astype(np.float32)
            paid, other = env.step(a)[1], plain.step(a)[1]
            o = env.out
            np.testing.assert_array_equal(np.delete(o, REWARD), np.delete(plain.out, REWARD))
            now = o[PNL] - o[INVENTORY] * o[MID]
            wanted = now - cash + (o[INVENTORY] - q) * (o[MID] + o[SIGNAL]) - o[PENALTY] - (0.0 if env.running else o[INVENTORY] * o[SIGNAL])
            assert paid == pytest.approx(wanted, abs=1e-8)
            cash = now
            gaps.append(other - paid)
            luck.append(q * (o[MID] + o[SIGNAL] - v))
        assert sum(gaps) == pytest.approx(sum(luck), abs=1e-7)
    assert np.abs(luck).sum() > 1.0


def test_another_mark_is_refused():
    with pytest.raises(ParameterError, match="mark"):
        LOBEnv(mark="touch")
