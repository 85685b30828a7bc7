"Cartea–Jaimungal: solvers against each other and SciPy, the known wrong answer, limits, epsilon from markouts."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from makerlab.core import DataError, ParameterError
from makerlab.models.cartea_jaimungal import fit_epsilon, solve_cj, solve_cj_path, stationary_cj
from makerlab.models.glft import brute_force_hjb, solve_glft

WORLD = dict(rate_buy=1.0, rate_sell=1.0, kappa_ask=100.0, kappa_bid=100.0, phi=1e-4, alpha=1e-3, horizon_s=60.0, q_max=5)
worlds = st.fixed_dictionaries(dict(
    rate_buy=st.floats(0.1, 5), rate_sell=st.floats(0.1, 5), kappa_ask=st.floats(20, 200), kappa_bid=st.floats(20, 200), phi=st.floats(0, 1e-3),
    alpha=st.floats(0, 5e-3), q_max=st.integers(1, 8), eps_buy=st.floats(-0.005, 0.02), eps_sell=st.floats(-0.005, 0.02)))


def by_scipy(p, horizon):
    "h by an independent integrator, written as in the book."
    q = np.arange(-p["q_max"], p["q_max"] + 1)
    lp, lm, kp, km, ep, em = (p[n] for n in ("rate_buy", "rate_sell", "kappa_ask", "kappa_bid", "eps_buy", "eps_sell"))

    def flow(_, h):
        out = -p["phi"] * q**2 + q * (lp * ep - lm * em)
        out[1:] += lp / kp * np.exp(-1 - kp * ep - kp * (h[1:] - h[:-1]))
        out[:-1] += lm / km * np.exp(-1 - km * em - km * (h[:-1] - h[1:]))
        return out

    return solve_ivp(flow, (0, horizon), -p["alpha"] * q**2.0, method="LSODA", rtol=1e-11, atol=1e-13).y[:, -1]


@settings(max_examples=25, deadline=None)
@given(worlds, st.floats(0.1, 30))
def test_time_steps_against_scipy(p, horizon):
    h, got = by_scipy(p, horizon), solve_cj(**p, horizon_s=horizon, method="ode")
    np.testing.assert_allclose(got.value, h, atol=1e-8, rtol=1e-8)
    np.testing.assert_allclose(got.ask[1:], 1 / p["kappa_ask"] + p["eps_buy"] + np.diff(h), atol=1e-8)
    np.testing.assert_allclose(got.bid[:-1], 1 / p["kappa_bid"] + p["eps_sell"] - np.diff(h), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(worlds, st.floats(0.1, 60))
def test_matrix_exponential_against_time_steps(p, horizon):
    p = {**p, "kappa_bid": p["kappa_ask"]}
    a, b = (solve_cj(**p, horizon_s=horizon, method=m) for m in ("expm", "ode"))
    np.testing.assert_allclose(a.bid[:-1] * p["kappa_ask"], b.bid[:-1] * p["kappa_ask"], atol=1e-8)
    np.testing.assert_allclose(a.value, b.value, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_the_mirror(p):
    "Buy orders are sell orders seen from below."
    turned = p | {a + x: p[a + y] for a, x, y in (("rate_", "buy", "sell"), ("rate_", "sell", "buy"), ("kappa_", "ask", "bid"), ("kappa_", "bid", "ask"),
                                                  ("eps_", "buy", "sell"), ("eps_", "sell", "buy"))}
    a, b = solve_cj(**p, horizon_s=10.0), solve_cj(**turned, horizon_s=10.0)
    np.testing.assert_allclose(a.bid[:-1], b.ask[:0:-1], atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(worlds, st.sampled_from([10.0, 0.5]))
def test_a_lot_is_a_unit_with_its_penalties(p, qty):
    a = solve_cj(**p, horizon_s=10.0, qty=qty)
    b = solve_cj(**{**p, "phi": p["phi"] * qty, "alpha": p["alpha"] * qty}, horizon_s=10.0)
    np.testing.assert_allclose(a.bid[:-1], b.bid[:-1], rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(worlds)
def test_stationary_satisfies_its_equation(p):
    p.pop("alpha")
    s = stationary_cj(**p)
    lp, lm, kp, km, ep, em = (p[n] for n in ("rate_buy", "rate_sell", "kappa_ask", "kappa_bid", "eps_buy", "eps_sell"))
    fills_ask, fills_bid = np.nan_to_num(lp * np.exp(-kp * s.ask)), np.nan_to_num(lm * np.exp(-km * s.bid))
    left = s.q * (lp * ep - lm * em) - p["phi"] * s.q**2 + fills_ask / kp + fills_bid / km
    np.testing.assert_allclose(left, s.info["growth"], rtol=1e-7, atol=1e-9)


# ---- MATH section 15, item 5.1: what the package avellaneda-stoikov 0.1.0 gives, and what is right

@pytest.mark.parametrize(("rates", "q", "package", "exact"), [((1.0, 1.0), 3, (0.01565, 0.02627), (0.01298, 0.02969)),
                                                              ((2.0, 1.0), 0, (0.0242, 0.0173), (0.0576, -0.0157))])
def test_adverse_selection_is_in_the_equation(rates, q, package, exact):
    p = {**WORLD, "rate_buy": rates[0], "rate_sell": rates[1]}
    bid, ask = solve_cj(**p, eps_buy=0.01, eps_sell=0.01).at(q)
    plain_bid, plain_ask = solve_cj(**p).at(q)
    digits = 5e-6 if q else 5e-5
    assert (ask, bid) == pytest.approx(exact, abs=digits)
    assert (plain_ask + 0.01, plain_bid + 0.01) == pytest.approx(package, abs=digits)  # the mistake, rebuilt
    for method in ("expm", "ode"):
        got = solve_cj(**p, eps_buy=0.01, eps_sell=0.01, method=method).at(q)
        assert (got[1], got[0]) == pytest.approx(exact, abs=digits)
        assert abs(got[1] - package[0]) > 1e-3 and abs(got[0] - package[1]) > 1e-3, "this is the package's answer"


def test_without_epsilon_the_package_is_right():
    "Its scheme (explicit Euler), rebuilt: with eps removed the two agree to 5 digits, which isolates the cause."
    q, h, dt = np.arange(-5, 6), -1e-3 * np.arange(-5, 6) ** 2.0, 60 / 15_000
    for _ in range(15_000):
        up, down = np.r_[np.exp(100 * np.diff(h) - 1), 0], np.r_[0, np.exp(-100 * np.diff(h) - 1)]
        h = h + dt * (-1e-4 * q**2 + 0.01 * (up + down))
    bid, ask = solve_cj(**WORLD).at(3)
    assert ask == pytest.approx(0.01 + h[8] - h[7], abs=1e-5) and bid == pytest.approx(0.01 + h[8] - h[9], abs=1e-5)


# ---- limits

def test_limits():
    plain = solve_cj(**WORLD)
    for eps in (1e-3, 1e-5, 1e-7):
        near = solve_cj(**WORLD, eps_buy=eps, eps_sell=eps)
        assert np.nanmax(np.abs(near.bid - plain.bid)) < 3 * eps
    cj = solve_cj(rate_buy=0.9, rate_sell=0.9, kappa_ask=0.3, kappa_bid=0.3, phi=0.045, alpha=0.0, horizon_s=20.0, q_max=4)
    gaps = [np.nanmax(np.abs(solve_glft(sigma=math.sqrt(0.09 / g), A=0.9, k=0.3, gamma=g, horizon_s=20.0, q_max=4).bid - cj.bid)) for g in (1e-4, 1e-6, 1e-8)]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05) and gaps[2] < 1e-6  # linear in gamma
    drifting = solve_cj(rate_buy=0.9, rate_sell=0.9, kappa_ask=0.3, kappa_bid=0.3, phi=0.0, alpha=0.0, horizon_s=20.0, q_max=4, drift=0.01)
    neutral = solve_glft(sigma=1.0, A=0.9, k=0.3, gamma=0.0, horizon_s=20.0, q_max=4, drift=0.01)
    np.testing.assert_allclose(drifting.bid[:-1], neutral.bid[:-1], atol=1e-10)
    flat = [solve_cj(**{**WORLD, "q_max": Q, "alpha": 0.0}).at(0)[0] for Q in (5, 20, 80)]
    assert abs(flat[1] - flat[2]) < 1e-10 < abs(flat[0] - flat[2])
    end = solve_cj(**{**WORLD, "horizon_s": 0.0}, eps_buy=0.003)
    np.testing.assert_allclose(end.ask[1:], 0.013 - 1e-3 * (2 * np.arange(-4, 6) - 1), atol=1e-12)


@pytest.mark.parametrize("eps", [(0.0, 0.0), (0.01, 0.004), (0.0, 0.02)])
def test_brute_force(eps):
    p = dict(rate_buy=1.0, rate_sell=1.4, kappa_ask=100.0, kappa_bid=60.0, phi=3e-4, alpha=2e-3, horizon_s=10.0, q_max=3, eps_buy=eps[0], eps_sell=eps[1])
    slow = brute_force_hjb(rate_bid=lambda d: 1.4 * np.exp(-60 * d), rate_ask=lambda d: np.exp(-100 * d), horizon_s=10.0, q_max=3, depth_range=(-0.15, 0.3),
                           phi=3e-4, alpha=2e-3, market_buy=1.0, market_sell=1.4, eps_buy=eps[0], eps_sell=eps[1])
    fast = solve_cj(**p)
    np.testing.assert_allclose(fast.bid[:-1], slow.bid[:-1], atol=1e-8)
    np.testing.assert_allclose(fast.ask[1:], slow.ask[1:], atol=1e-8)
    np.testing.assert_allclose(fast.value, slow.value, atol=1e-8)


# ---- paths

def test_path_rows_are_solutions():
    p = {**WORLD, "kappa_bid": 60.0, "eps_buy": 0.004}
    for path in (solve_cj_path(**p, tau_s=[0.0, 0.5, 7.0, 60.0]), solve_cj_path(**p, n_tau=5), solve_cj_path(**p, n_steps=4000)):
        assert path.bid.shape == path.ask.shape == path.value.shape == (path.tau_s.size, 11)
        for j in (0, path.tau_s.size // 2, path.tau_s.size - 1):
            one = solve_cj(**{**p, "horizon_s": path.tau_s[j]}, method="ode")
            np.testing.assert_allclose(path.bid[j], one.bid, atol=1e-8)
            np.testing.assert_allclose(path.ask[j], one.ask, atol=1e-8)
    few = solve_cj_path(**p, tau_s=[0.0, 10.0])
    np.testing.assert_allclose(few.at(2.5).bid, 0.75 * few.bid[0] + 0.25 * few.bid[1])
    np.testing.assert_array_equal(few.at(99.0).ask, few.ask[1])
    assert few.at(0.0).at(0) == (few.bid[0, 5], few.ask[0, 5])
    alone = solve_cj_path(**p, tau_s=[5.0])
    np.testing.assert_array_equal(alone.at(1.0).bid, alone.bid[0])


def test_refusals():
    for bad in (dict(rate_buy=0.0), dict(rate_sell=-1.0), dict(kappa_ask=0.0), dict(phi=-1e-9), dict(alpha=math.inf), dict(eps_sell=math.nan),
                dict(horizon_s=-1.0), dict(q_max=0), dict(qty=0.0), dict(n_steps=0), dict(method="exact")):
        with pytest.raises(ParameterError, match=f"{next(iter(bad))} = "):
            solve_cj(**{**WORLD, **bad})
    with pytest.raises(ParameterError, match="equal decay"):
        solve_cj(**{**WORLD, "kappa_bid": 99.0}, method="expm")
    with pytest.raises(ParameterError, match="too few for explicit steps to be stable: give many more, or None"):
        solve_cj(**{**WORLD, "q_max": 50}, n_steps=200)
    with pytest.raises(ParameterError, match="give at least [1-9]"):
        solve_cj(**{**WORLD, "alpha": 1e-4, "horizon_s": 18.0}, n_steps=10)
    with pytest.raises(ParameterError, match="terminal penalty"):
        solve_cj(**{**WORLD, "q_max": 50, "alpha": 0.2}, method="ode")
    for taus in ([], [1.0, 0.5], [-1.0], [61.0], [math.nan]):
        with pytest.raises(ParameterError, match="tau_s"):
            solve_cj_path(**WORLD, tau_s=taus)


# ---- epsilon

def fills(n=400, *, eps=(0.004, 0.007), noise=0.01, rng=None, horizon=5.0):
    rng = rng or np.random.default_rng(7)
    side = rng.choice([-1, 1], n)
    against = np.where(side < 0, eps[0], eps[1]) + noise * rng.standard_normal(n)
    qty = rng.integers(1, 9, n) * 100.0
    time = pd.Timestamp("2026-03-02 14:30", tz="UTC") + pd.to_timedelta(np.arange(n) * 60, unit="s")
    return pd.DataFrame({"time": time, "step": np.arange(n) * 60, "horizon": horizon, "side": side, "qty": qty, "markout_pnl": -against * qty})


def test_epsilon_is_the_mean_move_against_us():
    table = fills()
    fit = fit_epsilon(table)
    against = -table["markout_pnl"] / table["qty"]
    assert fit.params.tolist() == pytest.approx([against[table["side"] < 0].mean(), against[table["side"] > 0].mean()])
    assert (np.abs(fit.params - [0.004, 0.007]) < 4 * fit.bse).all()
    naive = [against[m].std() / m.sum() ** 0.5 for m in (table["side"] < 0, table["side"] > 0)]
    assert fit.bse.tolist() == pytest.approx(naive, rel=0.35)  # fills far apart: blocks change nothing but noise (60 blocks: 9 %, 4 s.e.)
    assert fit.nobs == 400 and fit.censored == 0 and sum(fit.fills.values()) == 400 and fit.blocks == 60
    steps = fit_epsilon(table.drop(columns="time"))
    assert steps.params.equals(fit.params) and steps.covariance.equals(fit.covariance)
    shuffled = fit_epsilon(table.sample(frac=1, random_state=1))
    np.testing.assert_allclose(shuffled.covariance, fit.covariance, rtol=1e-9)


def test_other_orders_are_taken_out():
    lp, lm, ep, em, h = 0.5, 0.2, 0.004, 0.007, 10.0
    drift = lp * ep - lm * em
    table = fills(eps=(ep + h * drift, em - h * drift), noise=1e-12, horizon=h)
    assert fit_epsilon(table, rate_buy=lp, rate_sell=lm).params.tolist() == pytest.approx([ep, em], rel=1e-8)
    assert fit_epsilon(table).params["eps_buy"] == pytest.approx(ep + h * drift, rel=1e-8)


def test_epsilon_is_scale_equivariant_and_counts_what_is_missing():
    table = fills()
    scaled = table.assign(markout_pnl=table["markout_pnl"] * 100)
    a, b = fit_epsilon(table), fit_epsilon(scaled)
    np.testing.assert_allclose(b.params, 100 * a.params)
    np.testing.assert_allclose(b.bse, 100 * a.bse)
    holes = table.copy()
    holes.loc[holes.index[-7:], "markout_pnl"] = np.nan
    assert fit_epsilon(holes).censored == 7 and fit_epsilon(holes).nobs == 393
    assert (fit_epsilon(table).conf_int().lower < fit_epsilon(table).params).all()
    assert (fit_epsilon(table).conf_int(0.01).lower < fit_epsilon(table).conf_int(0.05).lower).all()
    few = fit_epsilon(table.iloc[:12].assign(time=pd.Timestamp("2026-03-02 14:30", tz="UTC")))
    assert few.bse.isna().all(), "one block has no spread to learn an error from"


def test_from_the_scoring_pages_tables():
    from makerlab.scoring.attribution import markouts, markouts_by_time
    mids = 100 + np.cumsum(np.r_[0, np.random.default_rng(3).choice([-0.01, 0.01], 999)])
    own = pd.DataFrame({"step": np.arange(10, 900, 10), "side": np.resize([1, -1], 89), "qty": 1.0, "fee": 0.0})
    own["price"] = mids[own["step"]] - 0.01 * own["side"]
    table = markouts(own, mids, horizons=[5, 20])
    fit = fit_epsilon(table, horizon=5)
    move = mids[own["step"] + 5] - mids[own["step"]]
    assert fit.params["eps_buy"] == pytest.approx(move[own["side"] < 0].mean()) and fit.params["eps_sell"] == pytest.approx(-move[own["side"] > 0].mean())
    stamps = pd.Timestamp("2026-03-02 14:30", tz="UTC") + pd.to_timedelta(np.arange(1000), unit="s")
    timed = markouts_by_time(own.assign(time=stamps[own["step"]], mid=mids[own["step"]]), pd.Series(mids, index=stamps), horizons_s=[5.0])
    np.testing.assert_allclose(fit_epsilon(timed).params, fit.params)
    np.testing.assert_allclose(fit_epsilon(timed).bse, fit.bse)


def test_epsilon_refusals():
    table = fills()
    with pytest.raises(DataError, match="missing column.* qty"):
        fit_epsilon(table.drop(columns="qty"))
    with pytest.raises(DataError, match="time or step"):
        fit_epsilon(table.drop(columns=["time", "step"]))
    with pytest.raises(ParameterError, match="have several"):
        fit_epsilon(pd.concat([table, table.assign(horizon=9.0)]))
    with pytest.raises(ParameterError, match=r"horizon = 4\.0 must be one of"):
        fit_epsilon(table, horizon=4.0)
    with pytest.raises(DataError, match="each side needs 2"):
        fit_epsilon(table[table["side"] > 0])
    with pytest.raises(ParameterError, match="alpha"):
        fit_epsilon(table).conf_int(2.0)
    for one in (dict(rate_buy=1.0), dict(rate_sell=1.0)):
        with pytest.raises(ParameterError, match="both or neither"):
            fit_epsilon(table, **one)
    for column, value in (("side", 0), ("qty", 0.0), ("qty", math.nan), ("markout_pnl", math.inf)):
        with pytest.raises(DataError, match=f"{column} = .* in row"):
            fit_epsilon(table.assign(**{column: value}))
    with pytest.raises(DataError, match="no rows"):
        fit_epsilon(table.iloc[:0])


def test_more_refusals_of_the_solvers():
    for n in (1, 0, -1, 2.5, True):
        with pytest.raises(ParameterError, match="n_tau = "):
            solve_cj_path(**WORLD, n_tau=n)
    with pytest.raises(ParameterError, match=r"tau_s = \[0.0, 99.0\]"):
        solve_cj_path(**WORLD, tau_s=[0.0, 99.0])
    for side in ("buy", "sell"):
        for eps in (-100.0, 100.0):
            with pytest.raises(ParameterError, match=f"eps_{side}.*nobody"):
                solve_cj(**WORLD, **{f"eps_{side}": eps})
