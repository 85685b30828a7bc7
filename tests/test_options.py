"Options: identities over random inputs, the way back to volatility, refusals, and QuantLib where it is installed."
import math
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError
from makerlab.models import options as module
from makerlab.models.options import AboveMaximumError, BelowIntrinsicError, Greeks, american, black_scholes, escrowed_spot, forward_price, greeks, implied_vol

RIGHTS = st.sampled_from(["call", "put"])
OPTION = st.fixed_dictionaries({"S": st.floats(1.0, 500.0), "K": st.floats(1.0, 500.0), "T": st.floats(1e-3, 10.0), "r": st.floats(-0.05, 0.15),
                                "q": st.floats(-0.05, 0.1), "sigma": st.floats(0.01, 2.0)})
MILD = st.fixed_dictionaries({"S": st.floats(80.0, 120.0), "K": st.floats(80.0, 120.0), "T": st.floats(0.1, 2.0), "r": st.floats(-0.02, 0.1),
                              "q": st.floats(-0.02, 0.06), "sigma": st.floats(0.1, 0.8)})
STEPS = [("delta", "price", "S", 1), ("gamma", "delta", "S", 1), ("vega", "price", "sigma", 1), ("theta", "price", "T", -1), ("rho", "price", "r", 1),
         ("dividend_rho", "price", "q", 1), ("vanna", "delta", "sigma", 1), ("volga", "vega", "sigma", 1), ("charm", "delta", "T", -1), ("veta", "vega", "T", -1),
         ("speed", "gamma", "S", 1), ("zomma", "gamma", "sigma", 1), ("color", "gamma", "T", -1), ("dual_delta", "price", "K", 1)]
quick = settings(max_examples=150, deadline=None)


def present(o):
    return o["S"] * math.exp(-o["q"] * o["T"]), o["K"] * math.exp(-o["r"] * o["T"])


@quick
@given(OPTION)
def test_parity(o):
    forward, strike = present(o)
    assert abs(black_scholes(**o, right="call") - black_scholes(**o, right="put") - (forward - strike)) <= 4e-15 * (forward + strike)
    call, put = greeks(**o, right="call"), greeks(**o, right="put")
    for name in ("gamma", "vega", "vanna", "volga", "speed", "zomma", "color", "veta"):
        assert getattr(call, name) == getattr(put, name)
    assert abs(call.delta - put.delta - math.exp(-o["q"] * o["T"])) < 1e-14 * math.exp(abs(o["q"] * o["T"]))


@quick
@given(OPTION, RIGHTS)
def test_bounds(o, right):
    forward, strike = present(o)
    price = black_scholes(**o, right=right)
    low, high = (max(forward - strike, 0), forward) if right == "call" else (max(strike - forward, 0), strike)
    slack = 1e-15 * (forward + strike)
    assert low - slack <= price <= high + slack


@quick
@given(OPTION, RIGHTS, st.floats(1.01, 1.5))
def test_monotonic(o, right, factor):
    base = black_scholes(**o, right=right)
    slack = 1e-14 * (base + o["S"] + o["K"])
    assert black_scholes(**o | {"sigma": o["sigma"] * factor}, right=right) >= base - slack
    rise = black_scholes(**o | {"S": o["S"] * factor}, right=right) - base
    assert rise >= -slack if right == "call" else rise <= slack


def test_price_never_steps_where_its_formulas_meet():
    "The three forms of the normalised price meet within rounding."
    for a in (0.0, 0.3, 0.9, 2.0, 5.0, 12.0):
        for t in (0.5 + 0.1 * a, a):
            s = 2 * t
            if s:
                near = np.array([module._normalised_nb(a * s, s * (1 + e)) for e in (-1e-13, 0.0, 1e-13)])
                assert np.ptp(near) <= 4e-13 * near[1] * (1 + a * a + t * t)


@settings(max_examples=400, deadline=None)
@given(st.floats(-6, 1.2), st.floats(-3.5, 1.0), RIGHTS)
def test_round_trip(log_x, log_s, right):
    "Out of the money, over everything that floats hold: to a few ulps of price and volatility."
    x, s = 10**log_x, 10**log_s
    S, K = (100.0, 100.0 * math.exp(x)) if right == "call" else (100.0, 100.0 * math.exp(-x))
    g = greeks(S, K, 1.0, 0.0, 0.0, s, right)
    assume(g.price > 1e-280)
    maximum = S if right == "call" else K
    assume(g.vega > 1e-9 * maximum or g.price < 0.9 * maximum)  # else the price is the maximum, to rounding
    assume(g.price < maximum)
    allowed = max(np.spacing(s), (np.spacing(g.price) + 1e-16 * maximum * (g.price > 0.3 * maximum)) / g.vega)
    assert abs(implied_vol(g.price, S, K, 1.0, 0.0, 0.0, right) - s) <= 12 * allowed


@quick
@given(OPTION, RIGHTS)
def test_round_trip_of_any_option(o, right):
    "In the money too: sigma to what an ulp of the price says of it, or a refusal where the price holds no time value."
    g = greeks(**o, right=right)
    unit = (np.spacing(o["S"] * math.exp(-o["q"] * o["T"])) + np.spacing(o["K"] * math.exp(-o["r"] * o["T"])) + np.spacing(g.price))
    assume(g.vega > 0 and unit / g.vega < 1e-4 * o["sigma"])
    arguments = {n: v for n, v in o.items() if n != "sigma"}
    assert abs(implied_vol(g.price, **arguments, right=right) - o["sigma"]) <= 8 * unit / g.vega + 1e-13 * o["sigma"]


def test_steps_are_few_everywhere():
    worst = 0
    for x in [0.0, *10.0 ** np.linspace(-9, 2.8, 60)]:
        for price in np.concatenate([10.0 ** np.linspace(-300, -2, 40), np.linspace(0.02, 0.9999999, 40)]) * math.exp(-x / 2):
            if price > 1e-305:
                s, steps = module._total_vol_nb(price, math.exp(-x / 2) - price, x)
                assert math.isfinite(s) and s > 0
                assert math.isclose(module._normalised_nb(x, s), price, rel_tol=1e-12 * (1 + abs(math.log(price)))), (x, price)
                worst = max(worst, steps)
    assert worst <= 6


@settings(max_examples=60, deadline=None)
@given(MILD, RIGHTS)
def test_greeks_against_differences(o, right):
    g = greeks(**o, right=right)
    for name, of, by, sign in STEPS:
        h = 1e-4 * max(abs(o[by]), 0.1)
        up, down, up2, down2 = (getattr(greeks(**o | {by: o[by] + k * h}, right=right), of) for k in (1, -1, 2, -2))
        want = sign * (8 * (up - down) - (up2 - down2)) / (12 * h)
        assert math.isclose(getattr(g, name), want, rel_tol=1e-6, abs_tol=1e-6 * max(1.0, abs(getattr(g, of)))), name


def test_vectors_are_scalars_and_series_keep_their_index():
    rng = np.random.default_rng(1)
    n = 200
    columns = {"S": rng.uniform(50, 150, n), "K": rng.uniform(50, 150, n), "T": rng.uniform(0.01, 3, n), "r": rng.uniform(-0.02, 0.1, n), "q": rng.uniform(0, 0.05, n)}
    sigma, right = rng.uniform(0.1, 1, n), np.where(rng.random(n) < 0.5, "call", "put")
    price = black_scholes(**columns, sigma=sigma, right=right)
    g, vol = greeks(**columns, sigma=sigma, right=right), implied_vol(price, **columns, right=right, errors="nan")
    for i in range(n):
        row = {k: float(v[i]) for k, v in columns.items()}
        assert price[i] == black_scholes(**row, sigma=float(sigma[i]), right=str(right[i]))
        assert all(a[i] == b for a, b in zip(g, greeks(**row, sigma=float(sigma[i]), right=str(right[i])), strict=True))
        assert np.array_equal(vol[i], implied_vol(float(price[i]), **row, right=str(right[i]), errors="nan"), equal_nan=True)
    frame = pd.DataFrame(columns | {"sigma": sigma, "right": right}, index=pd.RangeIndex(1000, 1000 + n))
    series = black_scholes(**frame)
    assert series.index.equals(frame.index) and np.array_equal(series, price)
    assert greeks(**frame).table().index.equals(frame.index)
    grid = black_scholes(100, np.array([[90.0], [110.0]]), np.array([0.1, 0.2, 0.3]), 0, 0, 0.2, "C")
    assert grid.shape == (2, 3) and isinstance(black_scholes(100, 100, 1, 0, 0, 0.2, "P"), float)
    assert black_scholes([], 100, 1, 0, 0, 0.2, "call").shape == (0,)
    assert np.array_equal(black_scholes(100, 90, 1, 0, 0, 0.2, [1, -1]), black_scholes(100, 90, 1, 0, 0, 0.2, ["call", "put"]))
    with pytest.raises(ParameterError, match="one index"):
        black_scholes(frame.S, frame.K.iloc[::-1], 1, 0, 0, 0.2, "call")


def test_kernels_without_the_compiler():
    for row in ((100.0, 105.0, 0.5, 0.03, 0.01, 0.2, 1.0), (100.0, 60.0, 0.1, 0.0, 0.0, 0.35, -1.0), (100.0, 100.0, 0.0, 0.0, 0.0, 0.2, 1.0)):
        assert math.isclose(module._black_nb.py_func(*row), module._black_nb(*row), rel_tol=1e-14)
        assert math.isclose(module._black_nb(*row), float(module.black_scholes_slow(*row)) if row[2] else 0.0, rel_tol=1e-8, abs_tol=1e-13)


BAD = [("S", 0.0), ("S", -1.0), ("S", math.nan), ("S", math.inf), ("K", 0.0), ("K", -5.0), ("K", math.nan), ("T", -0.01), ("T", math.nan), ("r", math.nan), ("r", math.inf),
       ("q", math.nan), ("sigma", -0.2), ("sigma", math.nan), ("sigma", math.inf), ("right", "both"), ("right", "")]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_arguments_are_refused_by_name(name, value):
    fine = {"S": 100.0, "K": 100.0, "T": 1.0, "r": 0.0, "q": 0.0, "sigma": 0.2, "right": "call"}
    for function in (black_scholes, greeks):
        with pytest.raises(ParameterError, match=f"^{name} = "):
            function(**fine | {name: value})
        with pytest.raises(ParameterError, match=rf"^{name} = .*row 1; 1 of 3 rows.*\[1\]"):
            function(**fine | {name: [fine[name], value, fine[name]]})
        got = function(**fine | {name: [fine[name], value, fine[name]]}, errors="nan")
        got = got.price if isinstance(got, Greeks) else got
        assert np.isnan(got).tolist() == [False, True, False]
    if name != "sigma":
        given_price = {k: v for k, v in fine.items() if k != "sigma"}
        with pytest.raises(ParameterError, match=f"^{name} = "):
            implied_vol(5.0, **given_price | {name: value})
    with pytest.raises(ParameterError, match="errors"):
        black_scholes(**fine, errors="ignore")
    with pytest.raises(ParameterError, match="numbers"):
        black_scholes(**fine | {"S": "a hundred"})


def test_implied_vol_refuses_what_no_volatility_gives():
    with pytest.raises(BelowIntrinsicError, match="10.8955"):
        implied_vol(9.5, 100, 90, 0.5, 0.02, 0, "call")
    for price in (0.0, -1.0):
        with pytest.raises(BelowIntrinsicError):
            implied_vol(price, 100, 100, 1, 0, 0, "call")
    for price, right in ((100.0, "call"), (101.0, "call"), (120.0, "put"), (1e9, "put")):
        with pytest.raises(AboveMaximumError):
            implied_vol(price, 100, 120, 1, 0, 0, right)
    with pytest.raises(ParameterError, match="price = nan"):
        implied_vol(math.nan, 100, 100, 1, 0, 0, "call")
    with pytest.raises(ParameterError, match="at expiry"):
        implied_vol(5.0, 100, 100, 0, 0, 0, "call")
    with pytest.raises(AboveMaximumError, match=r"row 2; 1 of 4 rows refused, first \[2\]"):
        implied_vol([5.0, 6.0, 100.0, 7.0], 100, 100, 1, 0, 0, "call")
    got = implied_vol([5.0, 0.0, 100.0, math.nan, math.inf], 100, 100, [1, 1, 1, 1, 1], 0, 0, "call", errors="nan")
    assert np.isnan(got).tolist() == [False, True, True, True, True]
    assert math.isnan(implied_vol(5.0, 100, 100, 0, 0, 0, "call", errors="nan"))
    assert issubclass(BelowIntrinsicError, ParameterError) and issubclass(AboveMaximumError, ParameterError)


@pytest.mark.parametrize(("T", "sigma"), [(0.0, 0.2), (1.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("right", ["call", "put"])
def test_without_time_or_volatility(T, sigma, right):
    sign = 1 if right == "call" else -1
    for K in (80.0, 100.0, 130.0):
        g = greeks(100.0, K, T, 0.05, 0.01, sigma, right)
        gap = 100 * math.exp(-0.01 * T) - K * math.exp(-0.05 * T)
        assert math.isclose(g.price, max(sign * gap, 0), rel_tol=1e-14)
        if gap:
            assert g.delta == (sign * math.exp(-0.01 * T) if sign * gap > 0 else 0) and g.gamma == g.vega == 0 and not any(map(math.isnan, g))


def test_dividends():
    cash = [(0.25, 2.0), (0.75, 2.0)]
    assert math.isclose(escrowed_spot(100, 0.5, 0.04, cash), 100 - 2 * math.exp(-0.01), rel_tol=1e-15)
    assert math.isclose(forward_price(100, 1.0, 0.04, q=0.01, dividends=cash), (100 - 2 * math.exp(-0.01) - 2 * math.exp(-0.03)) * math.exp(0.03), rel_tol=1e-14)
    assert forward_price(100, 1.0, 0.0) == 100
    for bad in ([(0.1, 100.0)], [(0.1, 60.0), (0.2, 60.0)]):
        with pytest.raises(ParameterError, match="must be < S"):
            forward_price(100, 1.0, 0.0, dividends=bad)
    assert forward_price(100, 1.0, 0.0, dividends=[(1.5, 500.0)]) == 100  # paid after delivery
    for bad in ([(0.1, -1.0)], [(0.1, math.nan)], [(math.nan, 1.0)]):
        with pytest.raises(ParameterError, match="dividends"):
            forward_price(100, 1.0, 0.0, dividends=bad)
    with pytest.raises(ParameterError, match="^T = "):
        escrowed_spot(100, -1, 0.0, ())


def test_american_without_quantlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "QuantLib", None)
    module._kept.cache_clear()
    with pytest.raises(ImportError, match=r"makerlab\[options\]"):
        american(100, 100, 1, 0.05, 0.0, 0.2, "put")
    module._kept.cache_clear()


@pytest.fixture
def ql():
    return pytest.importorskip("QuantLib", reason="QuantLib is not installed (pip install 'makerlab[options]'): American prices and the peer's answers are NOT checked")


def test_american(ql):
    rng = np.random.default_rng(3)
    for _ in range(12):
        S, K, T, r, q, sigma = (float(rng.uniform(*e)) for e in ((80, 120), (80, 120), (0.05, 2), (0.01, 0.08), (0.005, 0.06), (0.15, 0.6)))
        for right in ("call", "put"):
            got = american(S, K, T, r, q, sigma, right)
            assert math.isclose(got, american(S, K, T, r, q, sigma, right, engine="binomial", steps=1001), rel_tol=2e-4, abs_tol=1e-3)
            assert math.isclose(got, american(S, K, T, r, q, sigma, right, engine="fd", steps=400), rel_tol=1e-3, abs_tol=5e-3)
            assert got >= black_scholes(S, K, T, r, q, sigma, right) and got >= (S - K if right == "call" else K - S)
    assert american(100, 90, 1, 0.05, 0.0, 0.2, "call") == black_scholes(100, 90, 1, 0.05, 0.0, 0.2, "call")
    assert american(100, 110, 1, 0.0, 0.02, 0.2, "put") == black_scholes(100, 110, 1, 0.0, 0.02, 0.2, "put")
    assert math.isclose(american(100, 90, 1, 0.05, 1e-12, 0.2, "call"), black_scholes(100, 90, 1, 0.05, 0, 0.2, "call"), rel_tol=1e-6)  # through the engine
    assert american(100, 130, 1, 0.05, 0.0, 0.0, "put") == 30 and american(100, 130, 0, 0.05, 0.0, 0.3, "put") == 30
    both = american(pd.Series([100.0, math.nan], index=[7, 9]), 100, 1, 0.05, 0.02, 0.2, "put", errors="nan")
    assert both.index.tolist() == [7, 9] and math.isnan(both[9]) and both[7] == american(100, 100, 1, 0.05, 0.02, 0.2, "put")
    with pytest.raises(ParameterError, match="engine"):
        american(100, 100, 1, 0.05, 0, 0.2, "put", engine="guess")
    with pytest.raises(ParameterError, match="^T = "):
        american(100, 100, -1, 0.05, 0, 0.2, "put")


def test_against_quantlib(ql):
    "Prices and volatilities of an independent implementation, over a wide grid."
    for right, kind in (("call", ql.Option.Call), ("put", ql.Option.Put)):
        for K in (60.0, 90.0, 100.0, 115.0, 180.0):
            for s in (0.03, 0.1, 0.4, 1.5):
                price = black_scholes(100, K, 1.0, 0.0, 0.0, s, right)
                if price > 1e-12:
                    assert math.isclose(price, ql.blackFormula(kind, K, 100.0, s), rel_tol=1e-9, abs_tol=1e-13)
                vega = greeks(100, K, 1.0, 0.0, 0.0, s, right).vega
                if vega > 1e-3:
                    vol = implied_vol(price, 100, K, 1.0, 0.0, 0.0, right)
                    assert math.isclose(vol, ql.blackFormulaImpliedStdDevLiRS(kind, K, 100.0, price), rel_tol=5e-6)  # it stops at 1e-6
                    assert math.isclose(ql.blackFormula(kind, K, 100.0, vol), price, rel_tol=1e-9, abs_tol=1e-12)
