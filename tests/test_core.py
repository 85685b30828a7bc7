"Units, the tick grid and the plumbing, over random and over awkward input; each guard is made to fail."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import (DataError, ParameterError, PriceVol, ReturnVol, TickGrid, UnitError, check_choice, check_finite, check_nonnegative, check_positive, from_ns,
                           infer_tick, next_normal, next_poisson, next_u64, next_uniform, price_sigma, rng_streams, to_ns, write_atomic)

TICKS = st.sampled_from([1e-8, 1e-4, 0.005, 0.01, 0.05, 0.1, 0.125, 1 / 64, 0.25, 0.5, 1.0, 5.0])


@given(tick=TICKS, n=st.integers(-10**9, 10**9), noise=st.floats(-1e-9, 1e-9))
def test_a_price_on_the_grid_stays_where_it_is(tick, n, noise):
    grid = TickGrid(tick)
    price = n * tick * (1 + 1e-16) + noise * tick
    assert grid.floor(price) == grid.ceil(price) == grid.to_ticks(price) == n
    assert grid.price(n) == pytest.approx(n * tick)


@given(tick=TICKS, x=st.floats(-1e6, 1e6))
def test_floor_and_ceil_enclose(tick, x):
    grid, price = TickGrid(tick), x * tick
    low, high = int(grid.floor(price)), int(grid.ceil(price))
    assert low <= x + 1e-5 and x - 1e-5 <= high and high - low in (0, 1)
    if abs(x - round(x)) > 1e-3:
        assert high - low == 1
        with pytest.raises(DataError, match="not a multiple"):
            grid.to_ticks(price)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("how", ["floor", "ceil", "to_ticks"])
def test_prices_that_have_no_place(bad, how):
    with pytest.raises(DataError, match="row 1 "):
        getattr(TickGrid(0.01), how)([1.0, bad])


@settings(max_examples=60)
@given(tick=TICKS, first=st.integers(100, 10**6), gaps=st.lists(st.integers(1, 30), min_size=5, max_size=60))
def test_the_tick_is_found(tick, first, gaps):
    n = np.cumsum([first, *gaps, 1])  # two of them are neighbours
    assert infer_tick(n * tick) == pytest.approx(tick, rel=1e-9)


@pytest.mark.parametrize("prices", [[10.0], [], [10.0, 10.0], [np.nan, 10.0], [10.0, 10.01, 10.0177, 10.0231], 10 + np.random.default_rng(1).random(50)])
def test_prices_without_a_tick(prices):
    with pytest.raises(DataError, match="give tick explicitly"):
        infer_tick(prices)


def test_few_prices_and_tiny_ones():
    assert infer_tick([10.01, 10.03, 10.06]) == 0.01 and infer_tick([2e-8, 3e-8, 5e-8]) == 1e-8


@pytest.mark.parametrize("check, good, bad", [(check_positive, (1, 1e-300), (0, -1, np.nan, np.inf, "x", None)), (check_nonnegative, (0, 2), (-1e-9, np.nan, np.inf)), (check_finite, (-1, 0), (np.nan, -np.inf, "x"))])
def test_argument_checks(check, good, bad):
    for value in good:
        assert check("gamma", value) == value
    for value in bad:
        with pytest.raises(ParameterError, match=r"gamma = .* \(1/s\) must be .*: do this"):
            check("gamma", value, unit="1/s", remedy="do this")


def test_choices():
    assert check_choice("law", "a", ("a", "b")) == "a"
    with pytest.raises(ParameterError, match="law = 'c' must be one of 'a', 'b'"):
        check_choice("law", "c", ("a", "b"))


def test_a_return_volatility_never_passes_for_a_price_volatility():
    assert price_sigma(0.1) == price_sigma(PriceVol(0.1)) == 0.1 == price_sigma(ReturnVol(0.001).to_price(100))
    named = pd.Series([0.1])
    named.attrs["unit"] = "1/sqrt(s)"
    for wrong in (ReturnVol(0.001), named):
        with pytest.raises(UnitError):
            price_sigma(wrong)
    named.attrs["unit"] = "price/sqrt(s)"
    assert price_sigma(named) is named
    for bad in (0.0, -1.0, np.nan, np.inf, PriceVol(-1.0)):
        with pytest.raises(ParameterError, match="sigma"):
            price_sigma(bad)


@given(st.lists(st.integers(0, 4 * 10**18), min_size=1, max_size=20))
def test_nanoseconds_survive(ns):
    assert to_ns(from_ns(ns)).tolist() == ns
    assert to_ns(from_ns(ns).tz_convert("Asia/Tokyo")).tolist() == ns
    with pytest.raises(DataError, match="no zone"):
        to_ns(from_ns(ns).tz_localize(None))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.txt"
    assert write_atomic(path, "old").read_text() == "old"
    assert write_atomic(path, b"new").read_text() == "new"

    def fail(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("makerlab.core.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "half")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_random_streams():
    a, b = (rng_streams(3, rng=np.random.default_rng(7)) for _ in range(2))
    assert (a == b).all() and a.shape == (3, 4) and len({tuple(r) for r in a}) == 3
    u = np.array([next_uniform(a[0]) for _ in range(4000)])
    z = np.array([next_normal(a[1]) for _ in range(4000)])
    n = np.array([next_poisson(a[2], 45.0) for _ in range(2000)])
    assert 0 < u.min() and u.max() < 1
    for x, mean, sd in ((u, 0.5, 12**-0.5), (z, 0.0, 1.0), (n, 45.0, 45**0.5)):
        assert abs(x.mean() - mean) < 5 * sd / len(x) ** 0.5
    assert next_poisson(a[2], 0.0) == 0
    with pytest.raises(ParameterError):
        rng_streams(0, rng=np.random.default_rng(1))


def test_compiled_stream_equals_plain_python():
    a = rng_streams(1, rng=np.random.default_rng(3))[0]
    b = a.copy()
    plain = [int(next_u64.py_func(b)) for _ in range(50)]
    assert [int(next_u64(a)) for _ in range(50)] == plain
