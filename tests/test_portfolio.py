"makerlab.models.portfolio: the balance, the lattice, the simulation; reductions to one asset and to separate books."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

from makerlab.calibration.intensity import ExponentialIntensity, PowerIntensity
from makerlab.core import ParameterError, rng_streams
from makerlab.models import portfolio as pf
from makerlab.models.glft import glft_closed_form, stationary_glft
from makerlab.models.hamiltonian import closed_form_general, stationary_general

WORLD = dict(A=1.0, k=1.5, gamma=0.1)


def two(rho, s1=0.3, s2=0.3):
    return np.array([[s1 * s1, rho * s1 * s2], [rho * s1 * s2, s2 * s2]])


def random_book(seed, n):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n + 2))
    return root @ root.T / n, rng.uniform(0.1, 10.0, n), rng.uniform(0.5, 50.0, n), rng.uniform(0.1, 10.0, n), rng


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 50), st.sampled_from([1e-6, 0.01, 1.0]))
def test_balance_and_its_root(seed, n, gamma):
    cov, A, k, qty, rng = random_book(seed, n)
    book = pf.portfolio(cov=cov, A=A, k=k, gamma=gamma, qty=qty)
    scale = gamma * np.abs(cov).max()
    np.testing.assert_allclose(book.lean * book.flow @ book.lean, gamma * cov, atol=1e-10 * scale)
    assert np.linalg.eigvalsh(book.lean)[0] > -1e-12 * np.abs(book.lean).max()
    d = np.sqrt(book.flow)  # scipy's own matrix root
    np.testing.assert_allclose(book.lean, np.real(sqrtm(gamma * d[:, None] * cov * d)) / d[:, None] / d, rtol=1e-6, atol=1e-7 * np.abs(book.lean).max())
    q = rng.normal(size=(3, n))
    bid, ask = book.depths(q)
    np.testing.assert_allclose(ask[1], book.depths(-q[1]).bid, rtol=1e-12)
    np.testing.assert_allclose((bid - ask) / 2, q @ book.lean, rtol=1e-7, atol=1e-9 * np.abs(bid).max())


def test_finite_horizon_is_the_riccati_equation():
    cov, A, k, qty, _ = random_book(3, 6)
    flow = pf.portfolio(cov=cov, A=A, k=k, gamma=0.1, qty=qty).flow
    right = lambda _, m: (0.1 * cov - (m := m.reshape(6, 6)) * flow @ m).ravel()
    for tau in (0.01, 0.3, 4.0):
        want = solve_ivp(right, (0, tau), np.zeros(36), rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1].reshape(6, 6)
        np.testing.assert_allclose(pf.lean_matrix(cov, flow=flow, gamma=0.1, horizon_s=tau), want, atol=1e-8)
    np.testing.assert_allclose(pf.lean_matrix(cov, flow=flow, gamma=0.1, horizon_s=1e6), pf.lean_matrix(cov, flow=flow, gamma=0.1), atol=1e-12)
    assert not pf.lean_matrix(cov, flow=flow, gamma=0.0).any()


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 3.0), st.floats(0.1, 200.0), st.floats(0.3, 60.0), st.floats(1e-4, 2.0), st.floats(0.1, 5.0), st.floats(-0.1, 0.1))
def test_one_asset_is_glft(sigma, A, k, gamma, qty, drift):
    held = np.array([[-3.0], [0.0], [1.5]])
    got = pf.portfolio(cov=sigma**2, A=A, k=k, gamma=gamma, qty=qty, drift=drift).depths(held)
    want = glft_closed_form(held[:, 0], sigma=sigma, A=A, k=k, gamma=gamma, qty=qty, drift=drift)
    np.testing.assert_allclose([got.bid[:, 0], got.ask[:, 0]], want, rtol=1e-9, atol=1e-9)


def test_fifty_assets_of_any_laws():
    cov, A, k, qty, _ = random_book(5, 50)
    quick = pf.portfolio_quotes(np.arange(50.0), cov=cov, A=A, k=k, gamma=0.01, qty=qty)
    slow = pf.portfolio_of_laws([ExponentialIntensity(*x) for x in zip(A, k)], cov=cov, gamma=0.01, qty=qty).depths(np.arange(50.0))
    np.testing.assert_allclose(slow, quick, rtol=1e-6, atol=1e-6)
    power = PowerIntensity(2.0, 3.0, 1.0)
    book = pf.portfolio_of_laws([power, ExponentialIntensity(1.0, 1.5)], cov=two(0.0), gamma=0.1)
    want = closed_form_general(power, power, inventory=np.array([-1.0, 2.0]), sigma=0.3, gamma=0.1)
    np.testing.assert_allclose(book.depths([[-1.0, 5.0], [2.0, -9.0]]).bid[:, 0], want[0], atol=1e-8)


def test_lattice_of_one_or_separate_assets():
    alone = pf.solve_lattice(pf.portfolio(cov=0.09, **WORLD, qty=2.0), cov=0.09, gamma=0.1, q_max=6)
    known = stationary_glft(sigma=0.3, **WORLD, q_max=6, qty=2.0)
    np.testing.assert_allclose(alone.bid[:, 0], known.bid, atol=1e-9)
    assert alone.growth == pytest.approx(2.0 * known.info["growth"], rel=1e-9)
    power = PowerIntensity(2.0, 3.0, 1.0)
    got = pf.solve_lattice(pf.portfolio_of_laws([power, ExponentialIntensity(1.0, 1.5)], cov=two(0.0), gamma=0.1), cov=two(0.0), gamma=0.1, q_max=3)
    np.testing.assert_allclose(got.ask[:, 2, 0], stationary_general(power, power, sigma=0.3, gamma=0.1, q_max=3).ask, atol=1e-8)
    np.testing.assert_allclose(got.ask[4, :, 1], stationary_glft(sigma=0.3, **WORLD, q_max=3).ask, atol=1e-8)


def test_perfect_correlation_is_one_asset_with_twice_the_fills():
    "Far from the limits value depends on the sum alone, and the lean is that of one asset with rate 2A."
    book = pf.portfolio(cov=two(1.0), **WORLD)
    one = pf.portfolio(cov=0.09, A=2.0, k=1.5, gamma=0.1)
    np.testing.assert_allclose(book.lean, np.full((2, 2), one.lean[0, 0]), atol=1e-10)
    exact = pf.solve_lattice(book, cov=two(1.0), gamma=0.1, q_max=12)
    alone = stationary_glft(sigma=0.3, A=2.0, k=1.5, gamma=0.1, q_max=12)
    assert exact.bid[12, 12, 0] == pytest.approx(alone.at(0)[0], abs=3e-3)  # nothing pulls back a hedged pair, so the limits are felt everywhere
    assert exact.bid[9, 15, 0] == pytest.approx(exact.bid[12, 12, 0], abs=0.03)


def test_signs_and_mirrors():
    plus, minus = (pf.solve_lattice(pf.portfolio(cov=two(r), **WORLD), cov=two(r), gamma=0.1, q_max=4) for r in (0.7, -0.7))
    np.testing.assert_allclose(plus.value, minus.value[:, ::-1], atol=1e-10)
    np.testing.assert_allclose(plus.bid[..., 0], minus.bid[:, ::-1, 0], atol=1e-9)
    np.testing.assert_allclose(plus.bid[..., 0], plus.ask[::-1, ::-1, 0], atol=1e-9)
    assert plus.ask[6, 4, 1] < plus.ask[4, 4, 1] < plus.bid[6, 4, 1]  # long asset 1: asset 2's ask comes nearer


def _fixed_point(cov, A, k, gamma, Q, seconds):
    "Time stepping with a golden search at every state and side: an independent referee."
    axis, phi = np.arange(-Q, Q + 1), (np.sqrt(5) - 1) / 2
    q = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    risk, theta, depth = 0.5 * gamma * np.einsum("abi,ij,abj->ab", q, cov, q), np.zeros((2 * Q + 1,) * 2), {}
    for _ in range(seconds * 3):
        gain = -risk
        for i in (0, 1):
            for side in (1, -1):
                step = np.roll(theta, -side, axis=i) - theta
                f = lambda d: A[i] * np.exp(-k[i] * d) * -np.expm1(-gamma * (d + step)) / gamma
                a, b = np.full(step.shape, -4.0) - step * 0, np.full(step.shape, 8.0)
                a = np.maximum(a, -step)
                for _ in range(28):
                    c, d = b - phi * (b - a), a + phi * (b - a)
                    left = f(c) > f(d)
                    a, b = np.where(left, a, c), np.where(left, d, b)
                ok = side * q[..., i] < Q
                gain = gain + np.where(ok, f(0.5 * (a + b)), 0.0)
                depth[i, side] = np.where(ok, 0.5 * (a + b), np.nan)
        theta = theta + (gain - gain[Q, Q]) / 3
    return theta, depth, gain[Q, Q]


@pytest.mark.parametrize("rho", [-0.8, 0.4, 0.95])
def test_lattice_against_brute_force(rho):
    A, k, cov = np.array([1.0, 0.6]), np.array([1.5, 2.0]), two(rho, 0.4, 0.3)
    theta, depth, growth = _fixed_point(cov, A, k, 0.2, 2, 60)
    got = pf.solve_lattice(pf.portfolio(cov=cov, A=A, k=k, gamma=0.2), cov=cov, gamma=0.2, q_max=2)
    np.testing.assert_allclose(got.value, theta, atol=2e-8)
    assert got.growth == pytest.approx(growth, abs=1e-9)
    for (i, side), d in depth.items():
        np.testing.assert_allclose((got.bid if side > 0 else got.ask)[..., i], d, atol=3e-5)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_closed_form_nears_the_lattice_as_risk_vanishes(rho):
    gaps = []
    for gamma in (0.2, 0.02):
        book = pf.portfolio(cov=two(rho), A=1.0, k=1.5, gamma=gamma)
        exact = pf.solve_lattice(book, cov=two(rho), gamma=gamma, q_max=12 if gamma == 0.2 else 18)
        Q = exact.lots[-1]
        q = np.array([[0, 0], [1, 1], [2, -1]])
        gaps.append(np.abs(book.depths(q).bid - exact.bid[Q + q[:, 0], Q + q[:, 1]]).max())
    assert gaps[0] < 0.02 and gaps[1] < 0.35 * gaps[0]


def test_kernel_repeats_plain_python_and_respects_limits():
    cov, A, k, qty, _ = random_book(11, 3)
    book = pf.portfolio(cov=cov, A=A, k=k / 10, gamma=0.01, qty=qty)
    streams, fast, slow = rng_streams(3, rng=np.random.default_rng(1)), np.empty((3, 4)), np.empty((3, 4))
    args = book.lean, *book.depths(np.zeros(3)), A, k / 10, qty, cov, 5.0, 2.5 * qty
    pf._book_nb(streams, *args, fast)
    pf._book_nb.py_func(streams, *args, slow)
    np.testing.assert_allclose(fast, slow, rtol=1e-9)


def test_one_asset_simulation_meets_the_lattice():
    "With xi = 0 the lattice's growth is the best objective; the closed form may not beat it, nor fall far short."
    for cov in (np.array([[0.09]]), two(-0.5)):
        book = pf.portfolio(cov=cov, **WORLD, xi=0.0)
        top = pf.solve_lattice(book, cov=cov, gamma=0.1, q_max=8).growth
        sim = pf.simulate_book(book, cov=cov, **WORLD, horizon_s=1000.0, n_paths=400, rng=np.random.default_rng(8), q_max=8)
        se = sim.objective.std(ddof=1) / 20
        assert -0.01 * top - 4 * se < sim.objective.mean() - top < 4 * se + 0.001 * top
        z = sim.holding / np.sqrt(2 * sim.charge / 0.1)  # normal given the path of inventory
        assert abs(z.mean()) < 4 / 20 and abs(z.std() - 1) < 4 / np.sqrt(800)
    again = pf.simulate_book(book, cov=cov, **WORLD, horizon_s=1000.0, n_paths=400, rng=np.random.default_rng(8), q_max=8)
    assert (again.capture == sim.capture).all()


def test_refusals():
    book = pf.portfolio(cov=two(0.3), **WORLD)
    for bad, word in ((dict(cov=[[1.0, 2.0], [2.0, 1.0]]), "eigenvalue"), (dict(cov=np.ones((2, 3))), "square"), (dict(k=-1.0), "k = "), (dict(qty=0.0), "qty"),
                      (dict(gamma=-0.1), "gamma"), (dict(drift=0.1, horizon_s=1.0), "drift"), (dict(horizon_s=-1.0), "horizon_s"), (dict(cov=[[np.nan]]), "finite")):
        with pytest.raises(ParameterError, match=word):
            pf.portfolio(**{**dict(cov=two(0.3), **WORLD), **bad})
    with pytest.raises(ParameterError, match="agree"):
        pf.simulate_book(book, cov=np.eye(3), **WORLD, horizon_s=1.0, n_paths=2, rng=np.random.default_rng(0))
    with pytest.raises(ParameterError, match="paired"):
        a, b = (pf.simulate_book(book, cov=two(0.3), **WORLD, horizon_s=1.0, n_paths=n, rng=np.random.default_rng(0)) for n in (20, 30))
        pf.relative_loss(a, b)
    for bad in (dict(drift=0.01), dict(cov=two(0.3)[:1, :1])):
        with pytest.raises(ParameterError, match="as many assets and no drift"):
            pf.solve_lattice(pf.portfolio(cov=two(0.3), **WORLD, drift=bad.get("drift", 0.0)), cov=bad.get("cov", two(0.3)), gamma=0.1, q_max=2)
    for name, value in (("q_max", 0), ("q_max", 1.5), ("n_paths", 0)):
        with pytest.raises(ParameterError, match=f"{name} = "):
            pf.simulate_book(book, cov=two(0.3), **WORLD, **{**dict(horizon_s=1.0, n_paths=2, rng=np.random.default_rng(0)), name: value})
    with pytest.raises(ParameterError, match="level = 2"):
        pf.relative_loss(a, a, level=2)
    with pytest.raises(ParameterError, match="drift = .* has 3 numbers"):
        pf.portfolio(cov=two(0.3), **WORLD, drift=[0.1, 0.2, 0.3])
    for q in ([np.nan, 0.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ParameterError, match="inventory = "):
            book.value(q)
    with pytest.raises(ParameterError, match="laws"):
        pf.portfolio_of_laws([ExponentialIntensity(1.0, 1.0)], cov=two(0.3), gamma=0.1)
    with pytest.raises(ParameterError, match="holds no law"):
        pf.portfolio_of_laws([3.0, 4.0], cov=two(0.3), gamma=0.1)
