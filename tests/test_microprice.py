"The micro-price: oracles, twins, symmetry, no look-ahead, odd chains, and real quotes out of sample."
import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import CircularBlockBootstrap
from conftest import real  # noqa: F401  (through test_features)
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.features import microprice as mp
from test_features import highfrequency, lobster, session, tape

few = settings(max_examples=25, deadline=None)
CASES = [c for c in json.loads((Path(__file__).parent / "oracles" / "oracles.json").read_text(encoding="utf8"))["cases"] if c["area"] == "microprice"]


def matrix(rows) -> np.ndarray:
    return np.array([[float(Fraction(str(v))) for v in row] for row in rows])


def vector(values) -> np.ndarray:
    return matrix([values])[0]


# ---- oracles
@pytest.mark.parametrize("case", [c for c in CASES if "Q" in c["inputs"]], ids=lambda c: c["id"])
def test_oracle_matrices(case):
    Q, R1, T = (matrix(case["inputs"][n]) for n in ("Q", "R1", "T"))
    K, want = vector(case["inputs"]["K"]), case["expected"]
    got = mp.microprice_adjustment(Q, R1, K, T)
    np.testing.assert_allclose(got.G1, vector(want["G1"]), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got.G_star, vector(want["G_star"]), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(mp.microprice_adjustment(Q, R1, K, T, terms=6).G_star, vector(want["G_after_6_terms"]), rtol=1e-10, atol=1e-14)
    e = mp.embedded_chain(Q, T)
    np.testing.assert_allclose(e.B.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(e.limit @ got.G1, 0, atol=1e-16)
    np.testing.assert_allclose(got.G_star, -got.G_star[mp._mirror(case["inputs"]["n_imb"], case["inputs"]["n_spread"])], atol=1e-15)
    assert e.closed == 1 and e.visited.all()


def test_oracle_tape():
    case = next(c for c in CASES if "tape" in c["inputs"])
    rows, want = np.array(case["inputs"]["tape"]), case["expected"]
    t = mp.transitions(rows[:, 0], np.diff(rows[:, 1]), n_imb=3)
    for x, counts in want["counts"].items():
        named = {f"dM={t.moves[j]:.0f},next={y}": int(t.counts[int(x), j, y]) for j, y in np.argwhere(t.counts[int(x)])}
        assert named == counts
    chain = mp.microprice_matrices(rows[:, 0], np.diff(rows[:, 1]), n_imb=3)
    for name in ("Q", "R1", "T"):
        np.testing.assert_allclose(getattr(chain, name), matrix(want[name]), rtol=1e-12)
    G1, G = mp.microprice_adjustment(*chain)
    np.testing.assert_allclose(G1, want["G1_halfticks"], atol=1e-12)
    np.testing.assert_allclose(G, want["G_star_halfticks"], atol=1e-12)
    np.testing.assert_allclose(mp.microprice_adjustment(*chain, terms=6).G_star, want["G_after_6_terms"], atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if "bid" in c["inputs"]], ids=lambda c: c["id"])
def test_oracle_weighted_mid(case):
    q = pd.DataFrame({k: [float(v)] for k, v in case["inputs"].items()})
    for name in ("imbalance", "mid", "weighted_mid"):
        assert getattr(mp, name)(q)[0] == pytest.approx(float(case["expected"][name]), rel=1e-14)
    assert math.isnan(mp.weighted_mid(q.assign(bid_size=0.0, ask_size=0.0))[0])


# ---- counting
@few
@given(st.integers(0, 10_000), st.integers(2, 200), st.sampled_from([(2, 1), (3, 2), (5, 3)]), st.booleans())
def test_counting_kernel_is_the_dictionary_and_its_plain_python(seed, n, shape, symmetrise):
    rng = np.random.default_rng(seed)
    n_imb, n_spread = shape
    x, d, b = rng.integers(-1, n_imb * n_spread, n), rng.integers(-2, 3, n - 1) * 0.5, rng.integers(-1, 3, n - 1)
    t = mp.transitions(x, d, n_imb=n_imb, n_spread=n_spread, symmetrise=symmetrise, blocks=b)
    mirror, want = mp._mirror(n_imb, n_spread), Counter()
    for i in range(n - 1):
        if x[i] >= 0 and x[i + 1] >= 0 and b[i] >= 0:
            want[x[i], d[i], x[i + 1]] += 1
            if symmetrise:
                want[mirror[x[i]], -d[i], mirror[x[i + 1]]] += 1
    assert {(i, t.moves[j], k): int(t.counts[i, j, k]) for i, j, k in np.argwhere(t.counts)} == dict(want)
    kept = (x[:-1] >= 0) & (x[1:] >= 0) & (b >= 0)
    assert t.steps.sum() == kept.sum() and t.moved.sum() == pytest.approx(d[kept].sum())
    args = x, np.where(kept, np.searchsorted(t.moves, np.where(kept, d, 0.0)), 0), t.moves, np.where(kept, b, -1), n_imb * n_spread, max(int(b.max()), 0) + 1
    for got, plain in zip(mp._tally_nb(*args), getattr(mp._tally_nb, "py_func", mp._tally_nb)(*args), strict=True):
        np.testing.assert_array_equal(got, plain)


def random_chain(rng, n_imb, n_spread):
    "A chain that is its own mirror image."
    S, m = n_imb * n_spread, mp._mirror(n_imb, n_spread)
    joint = rng.random((S, 5, S)) ** 3
    joint = joint + joint[m][:, ::-1][:, :, m]
    joint /= joint.sum(axis=(1, 2))[:, None, None]
    moving = np.delete(joint, 2, axis=1)
    return dict(Q=joint[:, 2], R1=moving.sum(axis=2), K=np.array([-2.0, -1, 1, 2]), T=moving.sum(axis=1))


@few
@given(st.integers(0, 10_000), st.sampled_from([(3, 1), (4, 2), (9, 3)]))
def test_the_limit_is_the_long_sum_and_the_equation_without_an_inverse(seed, shape):
    c = random_chain(np.random.default_rng(seed), *shape)
    G1, G = mp.microprice_adjustment(**c)
    np.testing.assert_allclose(mp.microprice_adjustment(**c, terms=400).G_star, G, atol=1e-10)
    np.testing.assert_allclose((np.eye(len(G)) - c["Q"] - c["T"]) @ G, c["R1"] @ c["K"], atol=1e-10)
    np.testing.assert_allclose(mp.embedded_chain(c["Q"], c["T"]).limit @ G, 0, atol=1e-10)


def test_reducible_transient_and_unvisited_states():
    c = random_chain(np.random.default_rng(3), 3, 1)
    G = mp.microprice_adjustment(**c).G_star
    # two classes, then a third part that leaks into both: it inherits by where it ends
    two = {n: np.kron(np.eye(2), c[n]) for n in ("Q", "T")}
    Q, T, R1 = (np.zeros((9, 9)), np.zeros((9, 9)), np.vstack([c["R1"]] * 3))
    Q[:6, :6], T[:6, :6], Q[6:, 6:] = two["Q"], two["T"], c["Q"]
    T[6:, :3], T[6:, 3:6] = 0.3 * c["T"], 0.7 * c["T"]
    e = mp.embedded_chain(Q, T)
    assert e.closed == 2
    np.testing.assert_allclose(e.limit.sum(axis=1), 1)
    power = np.linalg.matrix_power(e.B, 400)
    np.testing.assert_allclose(e.limit, power, atol=1e-9)
    np.testing.assert_allclose(mp.microprice_adjustment(Q, R1, c["K"], T).G_star[:6], np.r_[G, G], atol=1e-10)
    # an unvisited state is NaN and changes nothing
    pad = {n: np.pad(c[n], ((0, 1), (0, 1))) for n in ("Q", "T")} | {"R1": np.pad(c["R1"], ((0, 1), (0, 0)))}
    got = mp.microprice_adjustment(pad["Q"], pad["R1"], c["K"], pad["T"]).G_star
    np.testing.assert_allclose(got[:3], G, atol=1e-12)
    assert math.isnan(got[3])


def test_a_last_row_has_no_successor_and_is_dropped():
    x, d = np.array([0, 1, 2, 1, 0, 1, 2, 3]), np.array([1, 0, -1, 0, 1, -1, 0.0])
    chain = mp.microprice_matrices(x, d, n_imb=2, n_spread=2)  # state 3 and its mirror 2: 2 is left again in the data, 3 only in the mirror
    assert (np.abs((chain.Q + chain.T).sum(axis=1) - 1) < 1e-12).all()
    one = mp.microprice_matrices(np.array([0, 0, 1, 1, 0, 3]), np.array([1, 0, -1, 0, 0.0]), n_imb=2, n_spread=2)
    assert ((one.Q + one.T).sum(axis=1)[2:] == 0).all() and ((one.Q + one.T)[:2, 2:] == 0).all()
    assert np.isnan(mp.microprice_adjustment(*one).G_star[2:]).all()


def test_drift_is_refused_not_printed():
    c = random_chain(np.random.default_rng(5), 3, 1)
    tilted = c["R1"] @ np.diag([1.2, 1.2, 0.8, 0.8])
    tilted *= (c["R1"].sum(axis=1) / tilted.sum(axis=1))[:, None]
    with pytest.raises(DataError, match="drifts"):
        mp.microprice_adjustment(c["Q"], tilted, c["K"], c["T"])


# ---- the model
def world(rng, *, n=20_000, days=1):
    "A two-spread chain's tape cannot lie on a grid, so one spread: quotes that follow a known chain, and its G."
    lean = (np.arange(5) - 2) / 2
    move = 0.05 + 0.1 * np.abs(lean)
    up = move * (0.5 + 0.3 * lean)
    land = np.arange(1, 6) / 15
    near = np.exp(-np.abs(np.subtract.outer(lean, lean)) * 2)
    c = dict(Q=(1 - move)[:, None] * near / near.sum(axis=1, keepdims=True), R1=np.column_stack([move - up, up]), K=np.array([-0.01, 0.01]),
             T=np.outer(up, land) + np.outer(move - up, land[::-1]))
    frames, price = [], 500.0
    for day in pd.bdate_range("2026-03-02 14:30", periods=days, tz="UTC"):
        x, d = mp.simulate_chain(**c, n=n, rng=rng, start=2)
        bid = np.round(price + np.r_[0, np.cumsum(d)], 2)
        price = bid[-1]
        frames.append(pd.DataFrame({"time": day + pd.to_timedelta(np.arange(n + 1) * 0.5, unit="s"), "bid": bid, "ask": np.round(bid + 0.01, 2),
                                    "bid_size": 100.0 * (2 * x + 1), "ask_size": 100.0 * (9 - 2 * x)}))
    return pd.concat(frames, ignore_index=True), c


def test_model_is_the_pure_functions_and_the_two_errors_agree():
    rng = np.random.default_rng(1)
    q, c = world(rng, n=40_000)
    fit = mp.MicropriceModel(q, n_imbalance=5, block_s=500).fit()
    x = mp.microprice_states(q, n_imb=5, edges=fit.edges, tick=0.01)
    chain = mp.microprice_matrices(x, np.round(np.diff(mp.mid(q)), 9), n_imb=5)
    np.testing.assert_allclose(fit.G.to_numpy().ravel(), mp.microprice_adjustment(*chain).G_star, atol=1e-12)
    boot = mp.MicropriceModel(q, n_imbalance=5, block_s=500).fit(rng=rng, n_boot=2000)
    ratio = (boot.bse / fit.bse).iloc[[0, 1, 3, 4]]
    assert ratio.between(0.85, 1.15).all()  # 2,000 draws: 1.6 %, the rest is second order
    true = mp.microprice_adjustment(**c).G_star
    assert (np.abs(fit.params.to_numpy() - true) <= 4 * fit.bse.to_numpy() + 1e-12).all()
    # the chain is Markov, so the martingale differences give the same s.e. without any block
    one = mp.MicropriceModel(q, n_imbalance=5, block_s=math.inf).fit()
    assert one.n_blocks == 1 and one.bse.isna().all()


def test_mirrored_quotes_give_the_mirrored_price():
    q = tape(3, 3000)
    m = q.assign(bid=20 - q.ask, ask=20 - q.bid, bid_size=q.ask_size, ask_size=q.bid_size)
    for n_imb in (5, 7):
        a, b = (mp.MicropriceModel(z, n_imbalance=n_imb, tick=0.01).fit() for z in (q, m))
        np.testing.assert_allclose(a.G, b.G, atol=1e-12)
        np.testing.assert_allclose(a.G.to_numpy(), -a.G.to_numpy()[:, ::-1], atol=1e-15)
        np.testing.assert_allclose(a.predict(q) + b.predict(m), 20, atol=1e-9)


@few
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_states_mirror_at_every_edge(seed, n_imb):
    rng = np.random.default_rng(seed)
    q = pd.DataFrame({"bid": 10.0, "ask": 10.0 + 0.01 * rng.integers(0, 9, 80), "bid_size": rng.integers(0, 13, 80) * 1.0, "ask_size": rng.integers(0, 13, 80) * 1.0})
    x = mp.microprice_states(q, n_imb=n_imb, edges=np.array([1, 3]), tick=0.01)
    y = mp.microprice_states(q.assign(bid_size=q.ask_size, ask_size=q.bid_size), n_imb=n_imb, edges=np.array([1, 3]), tick=0.01)
    known = (x >= 0) & ~((q.bid_size == q.ask_size) & (n_imb % 2 == 0)).to_numpy()
    np.testing.assert_array_equal(mp._mirror(n_imb, 3)[x[known]], y[known])
    assert ((x < 0) == ((q.bid_size + q.ask_size) == 0)).all()


def test_nights_are_no_steps_and_blocks_stay_in_sessions():
    rng = np.random.default_rng(2)
    q, _ = world(rng, n=4000, days=3)
    fit = mp.MicropriceModel(q, n_imbalance=5, block_s=500).fit()
    assert fit.nobs == 12_000 and fit.n_blocks == 12
    assert mp.MicropriceModel(q, n_imbalance=5, block_s=math.inf).fit().n_blocks == 3
    apart = q.copy()
    apart.loc[4001:, ["bid", "ask"]] += 7.0  # a jump overnight
    np.testing.assert_allclose(mp.MicropriceModel(apart, n_imbalance=5).fit().G, fit.G, atol=1e-12)


def test_the_future_changes_nothing():
    rng = np.random.default_rng(4)
    q, _ = world(rng, n=6000)
    cut = 3000
    other = q.copy()
    other.loc[cut:, ["bid_size", "ask_size"]] = rng.permutation(other.loc[cut:, ["bid_size", "ask_size"]])
    other.loc[cut:, ["bid", "ask"]] += 0.05
    a, b = (mp.MicropriceModel(z[:cut], n_imbalance=5).fit() for z in (q, other))
    assert a.G.equals(b.G)
    pd.testing.assert_series_equal(a.predict(q)[:cut], a.predict(other)[:cut])
    assert not a.predict(q).equals(a.predict(other))


def test_skill_is_its_definition_and_its_bootstrap_is_arch():
    rng = np.random.default_rng(6)
    q, _ = world(rng, n=9000, days=2)
    w = mp.weighted_mid(q)
    table = mp.price_skill(q, {"w": w, "mid": mp.mid(q)}, horizons_s=[3], every_s=1.5, rng=rng, n_boot=2000)
    m, p = mp.mid(q).to_numpy(), w.to_numpy()
    at = np.concatenate([np.arange(0, 9001 - 6, 3) + s for s in (0, 9001)])
    loss = (m[at + 6] - p[at]) ** 2
    base = (m[at + 6] - m[at]) ** 2
    row = table.iloc[0]
    assert row.n == len(at) and row.rmse == pytest.approx(math.sqrt(loss.mean())) and row.skill == pytest.approx(1 - loss.mean() / base.mean())
    assert table.iloc[1].gain == 0 and table.iloc[1].skill == 0
    both = np.column_stack([base - loss, base])
    ours = mp._ratio_sd(both, 4000, rng, 25)
    theirs = CircularBlockBootstrap(25, both, seed=rng).apply(lambda v: np.array([v[:, 0].mean(), v[:, 0].mean() / v[:, 1].mean()]), 4000).std(axis=0)
    np.testing.assert_allclose(ours, theirs, rtol=0.08)  # two s.d. of 4,000 draws: 1.1 % each


@pytest.mark.parametrize("call, error, says", [
    (lambda q: mp.transitions(np.array([0, 9]), np.array([0.0]), n_imb=3), DataError, "outside 0..2"),
    (lambda q: mp.transitions(np.array([0, 1]), np.array([0.0, 1.0]), n_imb=3), DataError, "one row less"),
    (lambda q: mp.transitions(np.array([0, 1]), np.array([0.0]), n_imb=3, blocks=np.array([0, 0])), DataError, "blocks"),
    (lambda q: mp.microprice_matrices(np.array([0, 1, 0]), np.array([0.0, 0.0]), n_imb=3), DataError, "longer tape"),
    (lambda q: mp.embedded_chain(np.eye(2), np.zeros((2, 2))), DataError, "never moves"),
    (lambda q: mp.embedded_chain(np.eye(2) / 2, np.zeros((2, 2))), DataError, "must be 1"),
    (lambda q: mp.microprice_adjustment(np.eye(1) / 2, np.array([[0.25, 0.25]]), np.array([-1, 1]), np.eye(1) / 2, terms=0), ParameterError, "terms"),
    (lambda q: mp.MicropriceModel(q.drop(columns="time")).fit(), DataError, "time"),
    (lambda q: mp.MicropriceModel(q.drop(columns="ask_size")).fit(), DataError, "ask_size"),
    (lambda q: mp.MicropriceModel(q, tick=-1.0).fit(), ParameterError, "tick"),
    (lambda q: mp.MicropriceModel(q, block_s=0).fit(), ParameterError, "block_s"),
    (lambda q: mp.MicropriceModel(q, n_imbalance=10).fit(), ParameterError, "odd"),
    (lambda q: mp.MicropriceModel(q).fit(n_boot=1), ParameterError, "n_boot"),
    (lambda q: mp.price_skill(q, {"p": mp.mid(q)[:5]}, horizons_s=[1], every_s=1, rng=np.random.default_rng(1)), DataError, "one for each quote"),
    (lambda q: mp.price_skill(q, {"p": mp.mid(q)}, horizons_s=[100], every_s=1, rng=np.random.default_rng(1)), DataError, "20 at least"),
    (lambda q: mp.spread_buckets(np.array([math.nan]), n_spread=2), DataError, "spread"),
    (lambda q: mp.spread_buckets(np.array([1.0]), n_spread=0), ParameterError, "n_spread = 0"),
    (lambda q: mp.transitions(np.array([0, 0]), np.array([0.0]), n_imb=0), ParameterError, "n_imb = 0"),
    (lambda q: mp.embedded_chain(np.full((1, 1), math.nan), np.ones((1, 1))), DataError, "finite"),
    (lambda q: mp.embedded_chain(np.ones((2, 1)), np.ones((2, 1))), DataError, "square"),
    (lambda q: mp.microprice_adjustment(np.eye(2) / 2, np.full((2, 2), 0.25), np.ones(3), np.eye(2) / 2), DataError, "3 moves in K"),
    (lambda q: mp.microprice_adjustment(np.eye(1) / 2, np.array([[0.25, 0.25]]), np.array([-1, 1]), np.eye(1) / 2, terms=1.5), ParameterError, "terms = 1.5"),
    (lambda q: mp.microprice_states(q, n_imb=3, edges=np.array([1]), tick=0), ParameterError, "tick"),
    (lambda q: mp.simulate_chain(np.eye(2) / 2, np.full((2, 2), 0.25), np.array([-1, 1]), np.eye(2) / 2, n=3, rng=np.random.default_rng(1), start=2), ParameterError, "start = 2"),
    (lambda q: mp.MicropriceModel(q.head(1)).fit(), DataError, "1 row"),
    (lambda q: mp.MicropriceModel(q.head(0)).fit(), DataError, "0 row"),
    (lambda q: mp.MicropriceModel(q.assign(bid_size=-1.0)).fit(), DataError, "below 0"),
    (lambda q: mp.MicropriceModel(q.assign(bid=math.nan)).fit(), DataError, "spread"),
    (lambda q: mp.MicropriceModel(q[::-1]).fit(), DataError, "unsorted"),
    (lambda q: mp.MicropriceModel(q, n_imbalance=4.5).fit(), ParameterError, "n_imbalance = 4.5"),
    (lambda q: mp.MicropriceModel(q).fit(rng=3), ParameterError, "default_rng"),
    (lambda q: mp.price_skill(q, {"p": mp.mid(q)}, horizons_s=[1], every_s=1, rng=np.random.default_rng(1), level=95), ParameterError, "level = 95"),
    (lambda q: mp.price_skill(q, {"p": mp.mid(q)}, horizons_s=[1], every_s=1, rng=np.random.default_rng(1), n_boot=0), ParameterError, "n_boot = 0"),
])
def test_bad_input_is_refused_in_words(call, error, says):
    with pytest.raises(error, match=says):
        call(tape(2, 100))


def test_a_locked_market_and_one_hole_are_fitted_and_whole_numbers_may_be_floats():
    q = tape(2, 3000)
    assert mp.MicropriceModel(q.assign(ask=q.bid), n_imbalance=3.0, tick=0.01).fit().G.shape == (1, 3)
    hole = q.assign(bid=q.bid.where(q.index != 50))
    assert mp.MicropriceModel(hole, n_imbalance=3, tick=0.01).fit().nobs == len(q) - 3  # the steps into and out of it


# ---- real files
def halves(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    "What to learn from and what to predict: morning and afternoon, or two days."
    if name == "NYSE":
        days = [highfrequency("sampleQDataRaw", d) for d in ("2018-01-02", "2018-01-03")]
    else:
        days = [lobster(name)]
    days = [q[q.time.between(*session(q).values())].reset_index(drop=True) for q in days]
    if len(days) == 1:
        q = days[0]
        noon = q.time.iloc[0] + (q.time.iloc[-1] - q.time.iloc[0]) / 2
        return q[q.time < noon].reset_index(drop=True), q[q.time >= noon].reset_index(drop=True)
    return days[0], days[1]


@pytest.mark.realdata
@pytest.mark.parametrize("name, lean, micro, weighted", [("AAPL", 0.791, [-1.0, 0.2, 0.0], [-30, -6.4]), ("AMZN", 0.819, [-6.3, 0.1, -0.1], [-79, -12.9]),
                                                         ("NYSE", 0.611, [-5.2, -0.2, -0.1], [-7.2, -1.5])])
def test_real_out_of_sample_skill(name, lean, micro, weighted):
    "The table of page 20: the lean is there, it does not beat the mid, and the weighted mid loses to both."
    train, test = halves(name)
    fit = mp.MicropriceModel(train, tick=0.01).fit()
    assert fit.G.iloc[0, -1] / 0.01 == pytest.approx(lean, abs=0.001) and fit.bands().lower.iloc[8] > 0
    assert fit.closed == 1 and not fit.unvisited
    e = mp.embedded_chain(fit.chain.Q, fit.chain.T)
    assert np.sort(np.abs(np.linalg.eigvals(e.B)))[-2] < 0.81
    six = mp.microprice_adjustment(*fit.chain, terms=6).G_star
    assert np.nanmax(np.abs(six - fit.params)) < 0.015 * np.nanmax(np.abs(fit.params))
    s = mp.price_skill(test, {"micro": fit.predict(test), "weighted": mp.weighted_mid(test)}, horizons_s=(1, 5, 30), every_s=1, rng=np.random.default_rng(1))
    by = {n: part.set_index("horizon_s") for n, part in s.groupby("price")}
    assert (100 * by["micro"].skill).tolist() == pytest.approx(micro, abs=0.06)
    assert (100 * by["weighted"].skill[[5, 30]]).tolist() == pytest.approx(weighted, abs=0.5)
    assert ((by["micro"].skill_lower < 0) & (by["micro"].skill_upper > 0))[[5, 30]].all()  # not to be told from the mid
    assert (by["micro"].skill > by["weighted"].skill).all() and by["weighted"].skill_upper[5] < 0
