"The exact optimum is that of ASEnv; rules are scored exactly; sessions are counted right; bad input is refused."
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.learning import baselines as B
from makerlab.learning.env import (BOUGHT, CAPTURED, FEES, INVENTORY, MID, N_OUT, PENALTY, PNL, POSTED, REWARD, SIGNAL, SOLD, STEP, TERMINATED, ASEnv,
                                   ASVectorEnv, ASWorld, Task)
from makerlab.models.cartea_jaimungal import solve_cj

TASK, WORLD = B.TRAINING_TASK, B.TRAINING_WORLD
ODD = Task(steps=20, dt_s=2.0, max_lots=2, max_inventory=4, max_offset=12.0, inventory_penalty=0.05, variance_penalty=0.02, impact_penalty=0.1,
           end_penalty=0.7, fee_ticks=0.3)
ODD_WORLD = ASWorld(sigma=1.5, A=0.6, k=0.35, drift=0.1)


def rng(): return np.random.default_rng(20240501)

# --- the optimum ---------------------------------------------------------------------------------------------------

@settings(max_examples=8, deadline=None)
@given(A=st.floats(0.05, 4.0), k=st.floats(0.1, 1.5), lam=st.floats(0, 1.0), fee=st.floats(-0.5, 1.0), end=st.floats(0, 2.0), drift=st.floats(-0.5, 0.5),
       low=st.floats(-2.0, 1.0), lots=st.integers(1, 2), impact=st.floats(0, 1.0))
def test_the_optimum_is_the_grid_s_or_a_little_better(A, k, lam, fee, end, drift, low, lots, impact):
    t = Task(steps=2, dt_s=1.3, max_lots=lots, max_inventory=2, min_offset=low, max_offset=low + 12, inventory_penalty=lam, fee_ticks=fee, end_penalty=end,
             impact_penalty=impact, variance_penalty=0.03)
    w = ASWorld(A=A, k=k, drift=drift, sigma=1.2)
    over = B.exact_optimum(t, w).values - B.optimum_by_hand(t, w, n_grid=21)
    assert over.min() > -1e-9 and over.max() < 0.5  # spacing 0.6

def test_no_table_beats_the_optimum():
    best = B.exact_optimum(ODD, ODD_WORLD)
    own = np.stack([np.where(np.isnan(best.bid_offset), 5.0, best.bid_offset), np.where(np.isnan(best.ask_offset), 5.0, best.ask_offset),
                    best.bid_lots.astype(float), best.ask_lots.astype(float)], axis=-1)
    assert B.exact_value(own, task=ODD, world=ODD_WORLD).value == pytest.approx(best.value, abs=1e-10)
    r = rng()
    for scale in (1e-3, 0.1, 1.0):
        other = own.copy()
        other[..., :2] = np.clip(other[..., :2] + r.normal(0, scale, other[..., :2].shape), ODD.min_offset, ODD.max_offset)
        assert B.exact_value(other, task=ODD, world=ODD_WORLD).value < best.value
    fewer = own.copy(); fewer[..., 2] = np.minimum(fewer[..., 2], 1)
    assert B.exact_value(fewer, task=ODD, world=ODD_WORLD).value < best.value

def test_two_hundred_thousand_sessions_earn_the_optimal_value():
    best = B.exact_optimum(ODD, ODD_WORLD)
    env = ASVectorEnv(2000, ODD, world=ODD_WORLD, split="test", autoreset="off")
    e = B.evaluate(B.cj_optimum(ODD, ODD_WORLD), env, episodes=200_000, optimum=best)
    x = e.frame["reward"]
    assert abs(x.mean() - best.value) < 3 * x.std() / math.sqrt(len(x)) and x.std() / math.sqrt(len(x)) < 0.01 * best.value
    assert e.frame["gap"].abs().max() < 1e-6  # single precision of actions is of no account

def test_the_optimum_tends_to_cartea_and_jaimungal():
    limit = solve_cj(rate_buy=0.5, rate_sell=0.5, kappa_ask=0.3, kappa_bid=0.3, phi=0.02, alpha=0.1, horizon_s=20.0, q_max=4)
    v = [B.exact_optimum(Task(steps=n, dt_s=20.0 / n, max_inventory=4, min_offset=-9.0, max_offset=40.0, inventory_penalty=0.02, end_penalty=0.1), ASWorld())
         for n in (100, 200, 400)]
    errors = [abs(o.value - limit.value[4]) for o in v]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1) and errors[1] / errors[2] == pytest.approx(2, abs=0.05)
    assert (8 * v[2].value - 6 * v[1].value + v[0].value) / 3 == pytest.approx(limit.value[4], abs=1e-3)
    assert np.nanmax(np.abs(v[2].bid_offset[0] - limit.bid)) < 0.1 and np.isnan(v[2].bid_offset[:, -1]).all()

def test_symmetry_and_phases():
    best = B.exact_optimum(TASK, WORLD)
    np.testing.assert_allclose(best.bid_offset, best.ask_offset[:, ::-1], atol=1e-9)
    assert B.exact_optimum(TASK, WORLD, phase="high").value == best.value  # risk is charged by inventory alone
    risky = replace(TASK, variance_penalty=0.0125, inventory_penalty=0.0)  # 0.0125 * 2^2 = 0.05
    assert B.exact_optimum(risky, WORLD).value == pytest.approx(best.value, abs=1e-9)
    assert B.exact_optimum(risky, WORLD, phase="high").value < best.value - 1

def test_a_fee_is_a_shift_of_the_offset():
    t = Task(steps=30, inventory_penalty=0.05, min_offset=-40.0, max_offset=40.0)
    shifted = B.exact_optimum(t, replace(WORLD, A=WORLD.A * math.exp(-0.3 * 0.7)))
    fee = B.exact_optimum(replace(t, fee_ticks=0.7), WORLD)
    assert fee.value == pytest.approx(shifted.value, abs=1e-9)
    np.testing.assert_allclose(fee.bid_offset, shifted.bid_offset + 0.7, atol=1e-8)

def test_the_kernels_in_plain_python():
    args = (1, -0.7, 0.5, 0.3, 0.0, 20.0)
    assert B._best_offset_nb.py_func(*args) == pytest.approx(B._best_offset_nb(*args), abs=1e-12)
    for gain, reach in ((-3.0, 2.0), (8.0, 0.1), (-60.0, 50.0), (0.0, 1e-12), (5.0, 1e4)):
        d = np.linspace(0, 20, 200_001)
        f = (2 * d + gain) * -np.expm1(-reach * np.exp(-0.3 * d))
        got = B._best_offset_nb(2, gain, reach, 0.3, 0.0, 20.0)
        assert (2 * got + gain) * -math.expm1(-reach * math.exp(-0.3 * got)) >= f.max() - 1e-12

# --- exact values of rules -----------------------------------------------------------------------------------------

def _rules(t, w):
    return [B.fixed_spread(t, offset=3.0), B.linear_quotes(t, offset=3.0, skew=0.8), B.avellaneda_stoikov(t, gamma=0.02, k=w.k),
            B.avellaneda_stoikov(t, gamma=0.02, k=w.k, sigma=3.0), B.cj_formula(t, A=w.A, k=w.k, phi=0.1)]

def test_rules_earn_their_exact_value_and_their_gap():
    best = B.exact_optimum(ODD, ODD_WORLD)
    env = ASVectorEnv(4000, ODD, world=ODD_WORLD, split="validation")  # autoreset on: the last row must still be the session's own
    for rule in _rules(ODD, ODD_WORLD):
        exact = B.exact_value(rule, task=ODD, world=ODD_WORLD)
        e = B.evaluate(rule, env, episodes=12_000, optimum=best)
        x, g = e.frame["reward"], e.frame["gap"]
        assert abs(x.mean() - exact.value) < 4 * x.std() / math.sqrt(len(x)), rule
        assert abs(best.value - g.mean() - exact.value) < 4 * g.std() / math.sqrt(len(g)) + 1e-6 and g.min() > -1e-6, rule
        assert g.std() < x.std()
        assert exact.parts.sum() == pytest.approx(exact.value, abs=1e-9) and exact.occupancy[-1].sum() == pytest.approx(1)
        for name, column in (("captured", e.frame["captured"]), ("fees", -e.frame["fees"])):
            assert abs(column.mean() - exact.parts[name]) < 4 * column.std() / math.sqrt(len(x)), (rule, name)

def test_actions_are_decoded_as_the_world_does():
    sure = ASWorld(A=1e9, sigma=1.0)  # every quote is executed: captured and sizes tell the quotes
    for t in (Task(max_lots=3, max_inventory=4, min_offset=1.0, max_offset=9.0), Task(action="as", max_offset=30.0, max_lots=2, max_inventory=3)):
        env, r = ASVectorEnv(500, t, world=sure, split="train", autoreset="off"), rng()
        env.reset(options={"episode": 0})
        for _ in range(4):
            before = env.outs.copy()
            a = r.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            env.step(a)
            q = B.quotes_of_actions(t, a, before)
            np.testing.assert_array_equal(env.outs[:, [BOUGHT, SOLD]], q[:, 2:])
            np.testing.assert_allclose(env.outs[:, CAPTURED], (q[:, :2] * q[:, 2:]).sum(axis=1), atol=1e-7)

@settings(max_examples=30, deadline=None)
@given(bid=st.floats(0.5, 9.0), ask=st.floats(0.5, 9.0), nb=st.integers(0, 3), na=st.integers(0, 3))
def test_quotes_to_actions_and_back(bid, ask, nb, na):
    t = Task(max_lots=3, min_offset=0.5, max_offset=9.0)
    back = B.quotes_of_actions(t, B.actions_of_quotes(t, [bid], [ask], [nb], [na]), np.zeros((1, N_OUT)))[0]
    assert back == pytest.approx([bid, ask, nb, na], abs=1e-5)

def test_the_formula_as_action_quotes_the_formula():
    t = Task(action="as", max_offset=60.0, gamma_range=(1e-3, 1.0))
    plain = replace(t, action="offsets")
    a = B.quote_table(B.avellaneda_stoikov(t, gamma=0.02, k=0.3), task=t, world=WORLD)
    b = B.quote_table(B.avellaneda_stoikov(plain, gamma=0.02, k=0.3), task=plain, world=WORLD)
    np.testing.assert_allclose(a[:, 1:-1], b[:, 1:-1], atol=2e-4)
    with pytest.raises(ParameterError, match="gamma_range"): B.avellaneda_stoikov(t, gamma=1e-6, k=0.3)

def test_the_oracle_follows_the_signal_and_needs_one():
    outs, obs = np.zeros((2, N_OUT)), np.zeros((2, 10), np.float32)
    outs[:, SIGNAL], outs[:, INVENTORY] = [2.0, -2.0], [0, 1]
    q = B.quotes_of_actions(TASK, B.oracle(TASK, offset=4.0, skew=0.5)(obs, outs), outs)
    np.testing.assert_allclose(q[:, :2], [[2.0, 6.0], [6.5, 1.5]], atol=1e-5)
    outs[1, SIGNAL] = np.nan
    with pytest.raises(ParameterError, match="SIGNAL is NaN"): B.oracle(TASK, offset=4.0)(obs, outs)

def test_linear_quotes_lean_with_the_imbalance():
    outs, obs = np.zeros((1, N_OUT)), np.zeros((1, 10), np.float32)
    obs[0, 4] = 0.5
    q = B.quotes_of_actions(TASK, B.linear_quotes(TASK, offset=4.0, lean=2.0)(obs, outs), outs)
    np.testing.assert_allclose(q[0, :2], [3.0, 5.0], atol=1e-5)

# --- sessions ------------------------------------------------------------------------------------------------------

def _by_hand(rule, env, n, horizon):
    "One session counted in plain Python."
    obs, _ = env.reset(options={"episode": n})
    tape, mids = [], [env.out[MID]]
    while True:
        obs, _, a, b, _ = env.step(rule(obs[None], env.out[None])[0])
        tape.append(env.out.copy()); mids.append(env.out[MID])
        if a or b: break
    t, q, pnl = np.array(tape), np.array(tape)[:, INVENTORY], np.array(tape)[:, PNL]
    adverse = lots = 0.0
    for j in range(len(t) - horizon + 1):
        adverse -= (t[j, BOUGHT] - t[j, SOLD]) * (mids[j + horizon] - mids[j])
        lots += t[j, BOUGHT] + t[j, SOLD]
    peak = np.maximum(np.maximum.accumulate(pnl), 0)
    return dict(reward=t[:, REWARD].sum(), pnl=pnl[-1], captured=t[:, CAPTURED].sum(), fees=t[:, FEES].sum(), penalty=t[:, PENALTY].sum(),
                lots=t[:, BOUGHT].sum() + t[:, SOLD].sum(), posted=t[:, POSTED].sum(), inventory_mean=q.mean(), inventory_sd=q.std(),
                max_inventory=np.abs(q).max(), end_inventory=q[-1], drawdown=(peak - pnl).max(), adverse=adverse, adverse_lots=lots, steps=len(t),
                terminated=bool(t[-1, TERMINATED]))

@pytest.mark.parametrize("horizon", [1, 7, 20])
def test_every_way_of_playing_counts_the_same(horizon):
    t = replace(ODD, max_loss=6.0)  # some sessions are cut short
    rule = B.linear_quotes(t, offset=2.0, skew=0.2)
    singles = [ASEnv(t, world=ODD_WORLD, split="test") for _ in range(5)]
    hand = pd.DataFrame([_by_hand(rule, singles[0], n, horizon) for n in range(3, 33)], index=pd.RangeIndex(3, 33, name="episode"))
    assert 0 < hand["terminated"].sum() < 30
    ways = [singles[0], singles, gymnasium.vector.SyncVectorEnv([lambda: ASEnv(t, world=ODD_WORLD, split="test")] * 2),
            ASVectorEnv(7, t, world=ODD_WORLD, split="test"), ASVectorEnv(8, t, world=ODD_WORLD, split="test", autoreset="off"),
            gymnasium.make("makerlab/AS-v0", task=t, world=ODD_WORLD, split="test")]
    for env in ways:
        got = B.evaluate(rule, env, episodes=30, first=3, horizon=horizon).frame
        pd.testing.assert_frame_equal(got[hand.columns], hand, check_dtype=False, atol=1e-9)
    np.testing.assert_allclose(got["holding"], got["pnl"] - got["captured"] + got["fees"])

def test_the_phase_of_a_single_env_is_kept():
    env = ASEnv(TASK, split="test"); env.set_phase("high")
    calm = B.evaluate(B.fixed_spread(TASK, offset=3.0), ASEnv(TASK, split="test"), episodes=50)
    wild = B.evaluate(B.fixed_spread(TASK, offset=3.0), env, episodes=50)
    np.testing.assert_allclose(wild.frame["holding"], 2 * calm.frame["holding"], atol=1e-6)

def test_the_table_has_the_seed_s_list_with_units_and_intervals():
    e = B.evaluate(B.fixed_spread(ODD, offset=3.0), ASVectorEnv(400, ODD, world=ODD_WORLD, split="test"), episodes=400)
    t = e.table(rng=rng(), n=199)
    need = {"total_pnl", "sharpe", "profit_factor", "max_drawdown", "var_95", "cvar_95", "inventory_sd", "spread_per_lot", "fill_ratio", "adverse_per_lot"}
    assert need <= set(t.index) and (t["unit"] != "").all() and np.isfinite(t[["value", "lo", "hi"]].to_numpy(float)).all()
    assert (t["lo"] <= t["value"] + 1e-9).all() and (t["value"] <= t["hi"] + 1e-9).all()
    f = e.frame
    assert t.loc["total_pnl", "value"] == pytest.approx(f["pnl"].sum()) and t.loc["spread_per_lot", "value"] == pytest.approx(3.0)
    assert t.loc["fees_per_lot", "value"] == pytest.approx(0.3) and t.loc["fill_ratio", "value"] == pytest.approx(f["lots"].sum() / f["posted"].sum())
    assert t.loc["profit_factor", "value"] == pytest.approx(-f["pnl"].clip(lower=0).sum() / f["pnl"].clip(upper=0).sum())
    assert list(B.side_by_side([e, replace(e, name="again")], rng=rng(), n=49).columns) == ["fixed spread", "again", "unit"]

def test_nothing_quoted_is_not_zero():
    none = B.QuotingRule("nobody", ODD, lambda obs, outs: (1.0, 1.0, 0, 0))
    t = B.evaluate(none, ASVectorEnv(5, ODD, world=ODD_WORLD, split="test"), episodes=5).table(rng=rng(), n=49)
    assert t.loc[["spread_per_lot", "fill_ratio", "adverse_per_lot", "sharpe", "profit_factor"], "value"].isna().all()
    assert t.loc["fill_ratio", "note"] == "n/a: nothing was posted"

def test_comparison_is_paired():
    env = ASVectorEnv(500, TASK, world=WORLD, split="test", autoreset="off")
    a, b = (B.evaluate(B.linear_quotes(TASK, offset=4.0, skew=s), env, episodes=500) for s in (1.0, 0.2))
    d = B.compare(a, b, rng=rng())
    assert d.lo > 0 and d.estimate == pytest.approx((a.frame["reward"] - b.frame["reward"]).mean())
    same = B.compare(a, a, rng=rng())
    assert same.lo == same.estimate == same.hi == 0.0
    with pytest.raises(DataError, match="needs the same ones"): B.compare(a, B.evaluate(b_rule := B.fixed_spread(TASK, offset=4.0), env, episodes=500, first=1), rng=rng())
    other = ASVectorEnv(500, TASK, world=WORLD, split="validation", autoreset="off")
    with pytest.raises(DataError, match="of validation"): B.compare(a, B.evaluate(b_rule, other, episodes=500), rng=rng())

def test_tuning_looks_at_validation_only_and_finds_the_best():
    env = ASVectorEnv(300, TASK, world=WORLD, split="validation", autoreset="off")
    t = B.tune(B.linear_quotes, {"offset": [2.0, 4.0], "skew": [0.0, 1.0]}, env, episodes=300)
    assert t.params == {"offset": 4.0, "skew": 1.0} and len(t.table) == 4 and t.policy.params["skew"] == 1.0
    assert t.table["mean"].max() == pytest.approx(B.evaluate(t.policy, env, episodes=300).frame["reward"].mean())
    for split in ("train", "test"):
        with pytest.raises(ParameterError, match="tune on split='validation'"):
            B.tune(B.fixed_spread, {"offset": [3.0]}, ASEnv(TASK, split=split), episodes=10)
    for grid in ({}, {"offset": []}):
        with pytest.raises(ParameterError, match="is empty"): B.tune(B.fixed_spread, grid, env, episodes=10)

# --- bad input -----------------------------------------------------------------------------------------------------

class _Answers:
    name = "answers"
    def __init__(self, value, at=0): self.value, self.at = value, at
    def __call__(self, obs, outs):
        a = np.zeros((len(outs), 4), np.float32)
        if outs[0, STEP] >= self.at: a[-1, 2] = self.value
        return a

@pytest.mark.parametrize("value, says", [(np.nan, "is not finite"), (np.inf, "is not finite"), (1.5, "leaves the box")])
@pytest.mark.parametrize("env", [ASEnv(ODD), [ASEnv(ODD), ASEnv(ODD)]])
def test_a_policy_that_gives_no_action_is_named(value, says, env):
    with pytest.raises(ParameterError, match=f"policy 'answers': action .* at step 3 {says}"):
        B.evaluate(_Answers(value, at=3), env, episodes=4)
    with pytest.raises(ParameterError, match="is not finite|leaves the box"): B.quote_table(_Answers(value), task=ODD, world=ODD_WORLD)

def test_a_policy_of_the_wrong_shape_is_named():
    with pytest.raises(ParameterError, match=r"policy 'function' gave actions of shape \(\d, 2\)"): B.evaluate(lambda obs, outs: np.zeros((len(outs), 2)), ASEnv(ODD), episodes=3)

@pytest.mark.parametrize("change", [dict(steps=19), dict(dt_s=1.0), dict(max_lots=1), dict(max_inventory=3), dict(max_offset=11.0), dict(min_offset=0.1)])
def test_a_policy_for_another_task_is_refused(change):
    rule = B.cj_optimum(replace(ODD, **change), ODD_WORLD)
    with pytest.raises(ParameterError, match=f"made for another task, with {next(iter(change))}"): B.evaluate(rule, ASEnv(ODD, world=ODD_WORLD), episodes=2)
    with pytest.raises(ParameterError, match="made for another task"): B.exact_value(rule, task=ODD, world=ODD_WORLD)
    B.evaluate(B.cj_optimum(replace(ODD, inventory_penalty=0.5), ODD_WORLD), ASEnv(ODD, world=ODD_WORLD), episodes=2)  # another aim is no other task

def test_the_optimum_of_another_problem_is_refused():
    best, rule = B.exact_optimum(ODD, ODD_WORLD), B.fixed_spread(ODD, offset=3.0)
    for env in (ASEnv(replace(ODD, inventory_penalty=0.06), world=ODD_WORLD), ASEnv(ODD, world=replace(ODD_WORLD, A=0.7))):
        with pytest.raises(ParameterError, match="the optimum is of"): B.evaluate(rule, env, episodes=2, optimum=best)
    loud = ASEnv(ODD, world=ODD_WORLD); loud.set_phase("high")
    with pytest.raises(ParameterError, match="phase 'high'"): B.evaluate(rule, loud, episodes=2, optimum=best)
    with pytest.raises(ParameterError, match="only the reduced form"): B.evaluate(rule, [ASEnv(ODD, world=ODD_WORLD)] * 2, episodes=2, optimum=best)
    with pytest.raises(ParameterError, match="no optimum was given"): B.evaluate(rule, loud, episodes=2).shortfall(rng=rng())

@pytest.mark.parametrize("bad, says", [
    (lambda: B.exact_optimum(replace(ODD, action="as"), ODD_WORLD), "action='offsets'"), (lambda: B.exact_optimum(ODD, "LOB"), "other worlds"),
    (lambda: B.exact_optimum(replace(ODD, max_loss=50.0), ODD_WORLD), "max_loss"), (lambda: B.exact_optimum(ODD, ODD_WORLD, phase="switching"), "switching"),
    (lambda: B.exact_optimum(ODD, ODD_WORLD, phase="loud"), "phase"), (lambda: B.exact_value(np.zeros((3, 3, 4)), task=ODD, world=ODD_WORLD), "table of quotes"),
    (lambda: B.fixed_spread(ODD, offset=13.0), "offset = 13.0"), (lambda: B.fixed_spread(ODD, offset=math.nan), "offset"),
    (lambda: B.linear_quotes(ODD, offset=3.0, skew=math.inf), "skew"), (lambda: B.avellaneda_stoikov(ODD, gamma=0.0, k=0.3), "gamma"),
    (lambda: B.cj_formula(ODD, A=-1.0, k=0.3), "A"), (lambda: B.table_policy(ODD, np.zeros((2, 2)), np.zeros((2, 2))), "tables have shapes"),
    (lambda: B.evaluate(_Answers(0.0), ASEnv(ODD), episodes=0), "episodes = 0"), (lambda: B.evaluate(_Answers(0.0), ASEnv(ODD), episodes=2.5), "episodes = 2.5"),
    (lambda: B.evaluate(_Answers(0.0), ASEnv(ODD), episodes=2, first=-1), "first = -1"), (lambda: B.evaluate(_Answers(0.0), ASEnv(ODD), episodes=2, horizon=21), "longer than a session"),
    (lambda: B.evaluate(_Answers(0.0), gymnasium.make("CartPole-v1"), episodes=2), "must be a MarketMakingEnv"), (lambda: B.evaluate(_Answers(0.0), [], episodes=2), "must be a MarketMakingEnv"),
    (lambda: B.side_by_side([], rng=rng()), "is empty"), (lambda: B.Optimum.short_by(B.exact_optimum(replace(ODD, min_offset=11.9, fee_ticks=12.0), ASWorld()), 0.0), "percentages of nothing")])
def test_bad_arguments_are_refused_with_the_reason(bad, says):
    with pytest.raises(ParameterError, match=says): bad()

def test_the_proposed_problem():
    best = B.exact_optimum(TASK, WORLD)
    assert best.value == pytest.approx(194.848, abs=1e-3)
    short = [best.short_by(B.exact_value(r, task=TASK, world=WORLD).value) for r in
             (B.fixed_spread(TASK, offset=8.2), B.avellaneda_stoikov(TASK, gamma=0.0032, k=0.3), B.cj_formula(TASK, A=0.5, k=0.3), B.linear_quotes(TASK, offset=4.03, skew=1.05))]
    assert short == pytest.approx([74.55, 4.35, 0.182, 0.004], abs=0.01)

def test_importing_baselines_imports_no_torch():
    import subprocess, sys
    code = "import sys, makerlab.learning.baselines; sys.exit(any(m in sys.modules for m in ('torch', 'stable_baselines3', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
