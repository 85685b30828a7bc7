"Transient impact over random worlds: the optimum is the optimum, no round trip earns where none may, kernels equal their slow twins, estimates find the truth, bad input is named."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, PriceVol, ReturnVol, UnitError
from makerlab.models import transient_impact as ti
from makerlab.models.transient_impact import (
    MetaorderModel, PropagatorModel, TransientBook, almgren_2005, best_round_trip, bouchaud_kernel, daily_sigma, decayed_slow, exponential_kernel,
    fill_impact, obizhaeva_wang, optimal_schedule, power_kernel, propagate, propagate_slow, seed_cost, seed_decay, seed_permanent, seed_square_root,
    seed_temporary, simulate_metaorders, simulate_propagator, split_order_signs, square_root_impact, transient_cost, transient_cost_slow)

books = st.builds(TransientBook, permanent=st.floats(0, 2), transient=st.floats(1e-3, 2), resilience=st.floats(1e-3, 5), half_spread=st.floats(0, 3))
BOOK = TransientBook(permanent=0.005, transient=0.02, resilience=0.05, half_spread=0.5)


def grids(seed, n):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(1.0, n) + 1e-3), rng.normal(0, 10, n)


@settings(max_examples=60, deadline=None)
@given(book=books, seed=st.integers(0, 10**6), n=st.integers(1, 12))
def test_the_quadratic_form_is_the_walk_through_the_book(book, seed, n):
    times, trades = grids(seed, n)
    slow = transient_cost_slow(trades, times=times, book=book)
    assert math.isclose(slow, transient_cost(trades, times=times, kernel=book.kernel, half_spread=book.half_spread), rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=40, deadline=None)
@given(book=books, seed=st.integers(0, 10**6), n=st.integers(2, 12), quantity=st.floats(-100, 100))
def test_no_other_schedule_is_cheaper(book, seed, n, quantity):
    times, other = grids(seed, n)
    best = optimal_schedule(quantity, times=times, kernel=book.kernel)
    assert math.isclose(best.sum(), quantity, abs_tol=1e-7)
    cost = transient_cost(best, times=times, kernel=book.kernel)
    for scale in (1e-2, 1.0):
        moved = best + scale * (other - other.mean())
        assert transient_cost(moved, times=times, kernel=book.kernel) >= cost - 1e-8 * (1 + abs(cost))
    assert (np.sign(quantity) * best >= -1e-7 * (1 + abs(quantity))).all()  # a convex kernel never trades against itself


@settings(max_examples=40, deadline=None)
@given(book=books, quantity=st.floats(1, 1000), horizon=st.floats(0.1, 100))
def test_published_optimum_is_the_limit_of_the_numerical_one(book, quantity, horizon):
    plan = obizhaeva_wang(quantity, horizon=horizon, book=book)
    assert math.isclose(2 * plan.block + plan.rate * horizon, quantity, rel_tol=1e-12)
    times = np.linspace(0, horizon, 200)
    grid = optimal_schedule(quantity, times=times, kernel=book.kernel)
    numeric = transient_cost(grid, times=times, kernel=book.kernel, half_spread=book.half_spread)
    a = math.exp(-book.resilience * horizon / 199)
    assert math.isclose(grid[0], quantity / (2 + 198 * (1 - a)), rel_tol=1e-6)
    assert plan.cost <= numeric * (1 + 1e-9)  # continuous trading contains the grid
    spread = book.half_spread * quantity + 0.5 * book.permanent * quantity**2
    assert math.isclose(numeric - spread, quantity**2 * book.transient / (2 + 198 * (1 - a)) * (1 + a) / 2, rel_tol=1e-5, abs_tol=1e-9 * numeric)
    walked, traded = plan.trades(2000)
    own = transient_cost_slow(traded, times=walked, book=book)
    assert math.isclose(own, plan.cost, rel_tol=0.02)
    assert math.isclose(obizhaeva_wang(-quantity, horizon=horizon, book=book).cost, plan.cost)


@settings(max_examples=60, deadline=None)
@given(book=books, lots=st.floats(-100, 100), displaced=st.floats(-5, 5))
def test_a_round_trip_at_once_costs_two_half_spreads(book, lots, displaced):
    there = fill_impact(lots, book=book, displaced=displaced)
    back = fill_impact(-lots, book=book, displaced=there.displaced)
    cash = there.cost + back.cost - lots * there.permanent  # the second is measured from a steady price that moved
    assert math.isclose(cash, 2 * abs(lots) * book.half_spread, rel_tol=1e-9, abs_tol=1e-6 * (1 + lots**2))
    assert math.isclose(back.displaced, displaced, abs_tol=1e-9 * (1 + abs(lots))) and math.isclose(back.permanent, -there.permanent)


def test_a_maker_is_paid_and_moved_against():
    hit = fill_impact(20, book=BOOK, taker=False)
    assert hit.cost == -10.0 and hit.permanent == -0.1 and hit.displaced == pytest.approx(-0.4) and hit.moved == pytest.approx(-0.5)
    sold = fill_impact(-20, book=BOOK, taker=False)
    assert sold.cost == -10.0 and sold.permanent == 0.1
    assert math.isnan(fill_impact(0, book=BOOK).average) and fill_impact(0, book=BOOK).cost == 0


@settings(max_examples=30, deadline=None)
@given(lots=st.floats(-50, 50), taker=st.booleans(), seed=st.integers(0, 10**6))
def test_kernels_equal_their_twins(lots, taker, seed):
    args = (lots, taker, 0.1, 0.2, 0.5, -0.3)
    assert ti._fill_nb(*args) == getattr(ti._fill_nb, "py_func", ti._fill_nb)(*args)
    rng = np.random.default_rng(seed)
    flow, gaps = rng.normal(size=30), rng.exponential(1.0, 30)
    assert np.allclose(ti._decayed_nb(flow, gaps, 0.7), decayed_slow(flow, gaps, 0.7), atol=1e-12)
    assert np.allclose(ti._decayed_nb(flow, gaps, 0.7), getattr(ti._decayed_nb, "py_func", ti._decayed_nb)(flow, gaps, 0.7), atol=1e-12)
    kernel = lambda lag: power_kernel(lag, scale=1.0, exponent=0.4)
    assert np.allclose(propagate(flow, kernel=kernel), propagate_slow(flow, kernel), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 20), exponent=st.floats(0.05, 3), offset=st.floats(0.1, 10))
def test_convex_kernels_pay_for_no_round_trip(seed, n, exponent, offset):
    times, _ = grids(seed, n)
    for kernel in (lambda lag: power_kernel(lag, scale=1.0, exponent=exponent, offset=offset), lambda lag: exponential_kernel(lag, transient=1.0, resilience=exponent),
                   lambda lag: bouchaud_kernel(lag, scale=1.0, exponent=exponent, offset=offset)):  # flat at zero, yet positive definite
        trip = best_round_trip(times, kernel=kernel)
        assert not trip.manipulation and abs(trip.trades.sum()) < 1e-9


def test_a_manipulable_kernel_is_found_and_refused():
    box = lambda lag: np.where(lag < 1.5, 1.0, 0.0)
    trip = best_round_trip(np.arange(6.0), kernel=box)
    assert trip.manipulation and trip.cost == pytest.approx(transient_cost(trip.trades, times=np.arange(6.0), kernel=box)) and trip.cost < -0.3
    with pytest.raises(ParameterError, match="no schedule is cheapest"):
        optimal_schedule(1.0, times=np.arange(6.0), kernel=box)


@pytest.mark.parametrize("kernel, says", [(lambda lag: 1 + lag, "must not increase"), (lambda lag: 1 - lag, ">= 0"), (lambda lag: np.nan * lag, "finite"), (lambda lag: 1.0, "finite number for each lag")])
def test_kernels_that_are_none(kernel, says):
    for call in (lambda: optimal_schedule(1.0, times=[0.0, 1.0, 2.0], kernel=kernel), lambda: transient_cost([1.0, 0.0, 1.0], times=[0.0, 1.0, 2.0], kernel=kernel),
                 lambda: best_round_trip([0.0, 1.0, 2.0], kernel=kernel)):
        with pytest.raises(ParameterError, match=says):
            call()


def test_size_law_scales_and_keeps_its_sign():
    q = np.array([-400.0, 0.0, 100.0])
    assert np.allclose(square_root_impact(q, sigma=0.02, volume=1e4, Y=0.5), [-0.002, 0.0, 0.001])
    assert seed_square_root(100, beta=0.5, sigma=0.02, volume=1e4) == pytest.approx(0.001)
    assert square_root_impact(100, sigma=0.02, volume=1e4, exponent=1.0) == pytest.approx(0.0002)


def test_scaled_impact_by_hand():
    got = almgren_2005(-0.6561e6, sigma=157.0, volume=6.561e6, outstanding=1728e6, duration=0.2)
    assert got.permanent == pytest.approx(-157 * 0.314 * 0.1 * (1728 / 6.561) ** 0.25) and got.temporary == pytest.approx(-157 * 0.142 * 0.5**0.6)
    assert got.cost == pytest.approx(abs(got.permanent) / 2 + abs(got.temporary)) and round(got.cost) == 25
    whole, halves = almgren_2005(100.0, sigma=1.0, volume=1e3, outstanding=1e5, duration=1.0), almgren_2005(50.0, sigma=1.0, volume=1e3, outstanding=1e5, duration=1.0)
    assert whole.permanent == pytest.approx(2 * halves.permanent)  # linear: cutting an order changes nothing that stays


def test_seed_forms_are_as_written():
    assert seed_temporary(-100, eta=0.1, sigma=2.0, horizon=4.0) == pytest.approx(0.1 * 100 / 2 * 2)
    assert seed_permanent(-100, gamma=0.1, sigma=PriceVol(2.0)) == pytest.approx(-20)
    assert seed_decay(2.0, initial=3.0, rate=0.5) == pytest.approx(3 * math.exp(-1))
    assert seed_cost(10, temporary=2.0, permanent=3.0) == 35.0
    t = np.array([0.0, 4.0])
    assert np.allclose(seed_decay(t, initial=BOOK.transient, rate=BOOK.resilience) + BOOK.permanent, BOOK.kernel(t))


@pytest.mark.parametrize("call, error, says", [
    (lambda: square_root_impact(1, sigma=0.02, volume=-1), ParameterError, "volume = -1"),
    (lambda: square_root_impact(1, sigma=0.0, volume=1), ParameterError, "sigma = 0.0"),
    (lambda: square_root_impact(1, sigma=0.1, volume=1, Y=-1), ParameterError, "Y = -1"),
    (lambda: square_root_impact(np.nan, sigma=0.1, volume=1), DataError, "quantity"),
    (lambda: square_root_impact(1, sigma=ReturnVol(0.1), volume=1), UnitError, "daily_sigma"),
    (lambda: square_root_impact(1, sigma=PriceVol(0.1), volume=1), UnitError, "daily_sigma"),
    (lambda: almgren_2005(1, sigma=ReturnVol(0.1), volume=1, outstanding=1, duration=1), UnitError, "daily_sigma"),
    (lambda: almgren_2005(1, sigma=0.1, volume=1, outstanding=1, duration=0), ParameterError, "duration = 0"),
    (lambda: daily_sigma(0.1), UnitError, "say its unit"),
    (lambda: daily_sigma(PriceVol(-0.1)), ParameterError, "sigma = -0.1"),
    (lambda: seed_temporary(1, eta=1, sigma=ReturnVol(1.0), horizon=1), UnitError, "return volatility"),
    (lambda: seed_temporary(1, eta=1, sigma=1.0, horizon=0), ParameterError, "horizon = 0"),
    (lambda: seed_permanent(1, gamma=-1, sigma=1.0), ParameterError, "gamma = -1"),
    (lambda: seed_decay(-1, initial=1, rate=1), ParameterError, "lag = -1"),
    (lambda: seed_decay(1, initial=1, rate=0), ParameterError, "rate = 0"),
    (lambda: seed_cost(-1, temporary=1, permanent=1), ParameterError, "volume = -1"),
    (lambda: TransientBook(permanent=0, transient=0, resilience=1), ParameterError, "transient = 0"),
    (lambda: TransientBook(permanent=-1, transient=1, resilience=1), ParameterError, "permanent = -1"),
    (lambda: TransientBook(permanent=0, transient=1, resilience=-2), ParameterError, "resilience = -2"),
    (lambda: fill_impact(math.inf, book=BOOK), ParameterError, "lots = inf"),
    (lambda: obizhaeva_wang(1, horizon=0, book=BOOK), ParameterError, "horizon = 0"),
    (lambda: optimal_schedule(1, times=[1.0, 1.0], kernel=BOOK.kernel), DataError, "increasing"),
    (lambda: transient_cost([1.0], times=[0.0, 1.0], kernel=BOOK.kernel), DataError, "one number each"),
    (lambda: best_round_trip([0.0], kernel=BOOK.kernel), DataError, "two ends"),
    (lambda: power_kernel([-1.0], scale=1, exponent=1), ParameterError, "lag"),
    (lambda: split_order_signs(10, tail=1.0, rng=np.random.default_rng(0)), ParameterError, "tail = 1.0"),
    (lambda: simulate_metaorders(10, largest=1e-5, rng=np.random.default_rng(0)), ParameterError, "largest"),
    (lambda: simulate_propagator([1.0], kernel=BOOK.kernel, noise=-1, rng=np.random.default_rng(0)), ParameterError, "noise = -1"),
    (lambda: propagate([], kernel=BOOK.kernel), DataError, "flow"),
])
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


ORDERS = simulate_metaorders(400, rng=np.random.default_rng(1))


@pytest.mark.parametrize("change, says", [
    (lambda o: o.drop(columns="move"), "missing column move"), (lambda o: o.assign(volume=-o["volume"]), "volume must be > 0"), (lambda o: o.assign(sigma=0.0), "sigma must be > 0"),
    (lambda o: o.assign(quantity=0.0), "quantity must be"), (lambda o: o.assign(move=np.nan), "move must be finite"), (lambda o: o.iloc[:5], "5 rows are too few"),
    (lambda o: o.assign(quantity=1.0, volume=10.0), "all of one size")])
def test_bad_orders_are_named(change, says):
    with pytest.raises(DataError, match=says):
        MetaorderModel(change(ORDERS)).fit()


FLOW = split_order_signs(400, rng=np.random.default_rng(2))


@pytest.mark.parametrize("make, error, says", [
    (lambda: PropagatorModel(FLOW, FLOW[1:]), DataError, "one number for each trade"), (lambda: PropagatorModel(0 * FLOW, FLOW), DataError, "not all zero"),
    (lambda: PropagatorModel(FLOW, FLOW, kernel="gauss"), ParameterError, "kernel = 'gauss'"), (lambda: PropagatorModel(FLOW, np.full(400, np.nan)), DataError, "moves"),
    (lambda: PropagatorModel(FLOW, FLOW, times=np.arange(401.0)), ParameterError, "times are for"), (lambda: PropagatorModel(FLOW, FLOW, n_lags=300), ParameterError, "n_lags"),
    (lambda: PropagatorModel(FLOW, FLOW, kernel="exponential", times=np.arange(400.0)), DataError, "times must be 401"),
    (lambda: PropagatorModel(FLOW, FLOW, kernel="exponential", times=-np.arange(401.0)), DataError, "do not decrease"),
    (lambda: PropagatorModel(FLOW, FLOW, kernel="power", offset=0.0), ParameterError, "offset = 0.0"), (lambda: PropagatorModel(FLOW, FLOW, hac_lags=-1), ParameterError, "hac_lags")])
def test_bad_propagator_input_is_named(make, error, says):
    with pytest.raises(error, match=says):
        make().fit()


def test_fits_without_noise_are_exact():
    clean = ORDERS.assign(move=square_root_impact(ORDERS["quantity"] / ORDERS["volume"], sigma=1.0, volume=1.0, Y=0.7, exponent=0.6) * ORDERS["sigma"])
    fit = MetaorderModel(clean).fit()
    assert fit.params["Y"] == pytest.approx(0.7, rel=1e-4) and fit.params["exponent"] == pytest.approx(0.6, rel=1e-4) and fit.converged
    assert fit.predict(0.01) == pytest.approx(0.7 * 0.01**0.6, rel=1e-4)
    kernel = lambda lag: bouchaud_kernel(lag, scale=0.3, exponent=0.4, offset=3.0)
    moves = np.diff(propagate(FLOW, kernel=kernel))
    power = PropagatorModel(FLOW, moves, kernel="power", offset=3.0).fit()
    assert np.allclose(power.params, [0.3, 0.4], rtol=1e-4) and power.r2 > 1 - 1e-6
    times = np.r_[0.0, np.cumsum(np.random.default_rng(3).exponential(2.0, 400))]
    pure = ti._exponential_basis(FLOW, np.diff(times), 0.3) @ [0.2, 0.5]
    book = PropagatorModel(FLOW, pure, kernel="exponential", times=times).fit()
    assert np.allclose(book.params, [0.2, 0.5, 0.3], rtol=1e-3) and book.units["resilience"] == "1/s"


def test_a_free_kernel_finds_a_short_memory():
    "Impact that is constant from the third trade on leaves nothing out; scale the flow and G scales back."
    g = np.array([1.0, 0.7, 0.5])
    rng = np.random.default_rng(4)
    x = rng.normal(size=4000)
    kernel = lambda lag: g[np.minimum(np.asarray(lag, dtype=int), 3) - 1]
    moves = simulate_propagator(x, kernel=kernel, noise=0.2, rng=rng)
    fit, scaled = PropagatorModel(x, moves, n_lags=5).fit(), PropagatorModel(10 * x, moves, n_lags=5).fit()
    assert (np.abs(fit.params.to_numpy() - [1.0, 0.7, 0.5, 0.5, 0.5]) < 4 * fit.bse.to_numpy()).all()
    assert np.allclose(scaled.params * 10, fit.params) and np.allclose(scaled.bse * 10, fit.bse)
    assert np.allclose(fit.table([1, 2]).to_numpy()[:, 1], fit.bse.iloc[:2], rtol=1e-5)
    with pytest.raises(ParameterError, match="whole numbers from 1 to 5"):
        fit.values([6])


@pytest.mark.parametrize("lags", [0, 5])
def test_errors_cover_under_unequal_noise(lags):
    "The sandwich: noise that grows with the flow breaks classical errors, not these."
    held, n = 0, 120
    for seed in range(n):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=400)
        fit = PropagatorModel(x, x + np.abs(x) * rng.standard_normal(400), n_lags=1, hac_lags=lags).fit()
        low, high = fit.conf_int().loc["G1"]
        held += low <= 1.0 <= high
    assert held / n > 0.88


def test_an_edge_is_reported():
    rng = np.random.default_rng(5)
    fit = PropagatorModel(FLOW, FLOW + 0.1 * rng.standard_normal(400), kernel="power").fit()
    assert not fit.converged and fit.bse.isna().all()
    flat = MetaorderModel(ORDERS.assign(move=np.sign(ORDERS["quantity"]) * ORDERS["sigma"])).fit()  # every size moves the same
    assert not flat.converged and flat.bse.isna().all()


def test_the_exponent_can_be_given():
    fit = MetaorderModel(ORDERS, exponent=0.5).fit()
    assert list(fit.params.index) == ["Y"] and fit.exponent == 0.5 and fit.bse["Y"] < MetaorderModel(ORDERS).fit().bse["Y"]
    assert fit.binned(4)["n"].sum() == 400
    undated = MetaorderModel(ORDERS.drop(columns="duration"), exponent=0.5).fit()
    assert undated.params["Y"] != fit.params["Y"]


def test_signs_remember():
    signs = split_order_signs(100_000, rng=np.random.default_rng(6))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    c = [np.mean(signs[k:] * signs[:-k]) for k in (10, 100)]
    assert c[0] > c[1] > 0.0 and 0.2 < c[1] / c[0] < 0.6  # lag^-0.5 would be 0.32
    short = split_order_signs(100_000, tail=20.0, rng=np.random.default_rng(6))
    assert abs(np.mean(short[100:] * short[:-100])) < 0.008 < c[1]


def test_plots_draw():
    import matplotlib.pyplot as plt
    assert MetaorderModel(ORDERS).fit().plot().get_xscale() == "log"
    for kernel in ("free", "power", "exponential"):
        assert PropagatorModel(FLOW, FLOW + np.random.default_rng(7).standard_normal(400), kernel=kernel).fit().plot().get_ylabel().startswith("G")
    plt.close("all")
    assert isinstance(MetaorderModel(ORDERS).fit().summary(), pd.DataFrame)
