"Fill rules: monotone intensities with the right sign, bounded fills, queue rules ordered, twins equal."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import NS_PER_S, DataError, ParameterError, from_ns, rng_streams
from makerlab.execution import fills as F
from makerlab.execution.fills import PoissonFills, RelativeFills, TradeFills, fill_probability, relative_intensity, rest_order, sign_trades

T0 = pd.Timestamp("2026-03-02 15:00", tz="UTC")


@settings(max_examples=200, deadline=None)
@given(st.floats(50, 200), st.floats(-0.5, 5), st.floats(0, 5), st.sampled_from([1, -1]), st.floats(0.01, 500))
def test_intensity_falls_as_the_quote_worsens(touch, behind, further, side, alpha):
    rate = lambda d: relative_intensity(touch - side * d, market_price=touch, mid=touch + side * 0.01, side=side, lambda0=1.0, alpha=alpha)
    assert rate(behind + further) <= rate(behind) * (1 + 1e-12)


@pytest.mark.parametrize(("price", "right", "wrong"), [(99.0, 0.367916227276223574742915561191, 2.71801004104453797379135189037),
                                                       (99.99, 0.990050823700501644967128229776, 1.01004915713550081451618599921),
                                                       (100.005, 1.00501201840351183658848754033, 0.995012976649300612008067392792)])
def test_seed0_sign(price, right, wrong):
    got = relative_intensity(price, market_price=100.0, mid=100.01, side=1, lambda0=1.0, alpha=100.0)
    assert got == pytest.approx(right, rel=1e-12) and abs(got - wrong) > 1e-3
    mirrored = relative_intensity(200.0 - price, market_price=100.0, mid=100.01, side=-1, lambda0=1.0, alpha=100.0)
    assert mirrored == pytest.approx(right, rel=1e-12)


order = st.tuples(st.sampled_from([1.0, -1.0]), st.integers(-3, 3).map(float), st.floats(0, 1000), st.one_of(st.floats(0, 1000), st.just(math.inf)),
                  st.integers(-6, 6).map(lambda n: n / 2), st.floats(0.5, 500))


@settings(max_examples=300, deadline=None)
@given(order)
def test_match_is_bounded_ordered_and_equal_to_its_twin(o):
    got = {q: F._match_nb(*o, code) for q, code in F.QUEUES.items()}
    twin = getattr(F._match_nb, "py_func", F._match_nb)
    for q, code in F.QUEUES.items():
        assert tuple(twin(*o, code)) == tuple(got[q])
        assert 0 <= got[q][0] <= min(o[2], o[5]) and 0 <= got[q][1] <= o[3]
    assert got["through"][0] <= got["behind"][0] <= got["front"][0]


@st.composite
def tapes(draw):
    n = draw(st.integers(0, 25))
    price = [100 + 0.01 * draw(st.integers(-3, 3)) for _ in range(n)]
    size = [float(draw(st.integers(1, 9)) * 50) for _ in range(n)]
    side = [draw(st.sampled_from([-1, 0, 1])) for _ in range(n)]
    t = np.cumsum([draw(st.integers(0, 3)) for _ in range(n)]).astype(np.int64) * NS_PER_S
    return pd.DataFrame({"time": from_ns(T0.as_unit("ns").value + t), "price": np.array(price, dtype=float), "size": np.array(size, dtype=float), "side": np.array(side, dtype=np.int8)})


@settings(max_examples=100, deadline=None)
@given(tapes(), st.sampled_from([1, -1]), st.floats(0, 800), st.floats(1, 400))
def test_rest_order_bounds(tape, side, ahead, qty):
    args = dict(side=side, price=100.0, qty=qty, start=T0 - pd.Timedelta("1s"), end=T0 + pd.Timedelta("200s"))
    total = {q: rest_order(tape, ahead=ahead, queue=q, **args)["filled"].sum() for q in F.QUEUES}
    could = tape.loc[(tape["side"] == -side) & (side * (tape["price"] - 100.0) < 1e-9), "size"].sum()
    assert total["through"] <= total["behind"] + 1e-9 <= total["front"] + 2e-9
    assert total["front"] <= min(qty, could) + 1e-9
    assert rest_order(tape, ahead=ahead + 100, **args)["filled"].sum() <= total["behind"] + 1e-9  # a longer queue never helps


def test_deeper_order_waits_for_the_touch():
    assert F._queue_on_arrival_nb(1.0, 9999, 10000.0, 500.0) == math.inf
    assert F._queue_while_resting_nb(math.inf, 1.0, 9999, 9999.0, 500.0, False) == 500.0
    assert F._queue_while_resting_nb(math.inf, 1.0, 9999, 9998.0, 500.0, False) == 0.0
    assert F._queue_while_resting_nb(400.0, 1.0, 9999, 9999.0, 100.0, False) == 400.0
    assert F._queue_while_resting_nb(400.0, 1.0, 9999, 9999.0, 100.0, True) == 100.0


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 50), st.floats(0.001, 10), st.floats(0, 300), st.booleans(), st.integers(0, 2**32 - 1))
def test_poisson_fill_is_bounded_and_equal_to_its_twin(rate, dt, room, multi, seed):
    a = rng_streams(1, rng=np.random.default_rng(seed))[0]
    b = a.copy()
    got = F._poisson_fill_nb(a, rate, dt, room, multi, 7.0)
    twin = getattr(F._poisson_fill_nb, "py_func", F._poisson_fill_nb)
    assert 0 <= got <= room and twin(b, rate, dt, room, multi, 7.0) == got and (a == b).all()


def test_fill_probability():
    assert fill_probability(0.7, dt_s=1.0) == pytest.approx(1 - math.exp(-0.7), rel=1e-14)
    assert fill_probability(1e-15, dt_s=1.0) == pytest.approx(1e-15, rel=1e-12)
    for bad in (dict(rate=1.0, dt_s=0.0), dict(rate=1.0, dt_s=-1.0), dict(rate=-1.0, dt_s=1.0), dict(rate=math.nan, dt_s=1.0)):
        with pytest.raises(ParameterError):
            fill_probability(bad["rate"], dt_s=bad["dt_s"])


@pytest.mark.parametrize("make", [lambda: PoissonFills(A=0.0, k=1.0), lambda: PoissonFills(A=1.0, k=math.nan), lambda: RelativeFills(alpha=-100.0),
                                  lambda: TradeFills(queue="best"), lambda: TradeFills(latency_ns=-1), lambda: TradeFills(latency_ns=1.5),
                                  lambda: PoissonFills(A=1.0, k=1.0, multi=True, trade_qty=0.0)])
def test_bad_models(make):
    with pytest.raises(ParameterError):
        make()


def test_sign_trades_keeps_a_recorded_side_and_infers_a_missing_one():
    quotes = pd.DataFrame({"time": pd.date_range(T0, periods=3, freq="s"), "bid": 99.99, "ask": 100.01, "bid_size": 1.0, "ask_size": 1.0})
    trades = pd.DataFrame({"time": pd.date_range(T0 + pd.Timedelta("500ms"), periods=2, freq="s"), "price": [100.01, 99.99], "size": 10.0})
    assert sign_trades(trades, quotes=quotes)["side"].tolist() == [1, -1]
    assert sign_trades(trades.assign(side=np.int8(0)), quotes=quotes)["side"].tolist() == [0, 0]
    with pytest.raises(DataError):
        sign_trades(trades.assign(size=0.0), quotes=quotes)
