"Tapes: twins, repeatability, invariants over random parameters, and recovery that does not fit a page."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, rng_streams, to_ns
from makerlab.data.synth import _kernel_args, _Spec, _tape_nb, make_tape, poisson_bins
from makerlab.schema import validate_bins, validate_quotes, validate_trades


def run(kernel, spec, seed):
    Q, T = np.zeros((3000, 5), dtype=np.int64), np.zeros((3000, 7), dtype=np.int64)
    with np.errstate(over="ignore"):  # streams wrap around; plain Python remarks on it
        out = kernel(rng_streams(1, rng=np.random.default_rng(seed))[0], *_kernel_args(spec, 10_000, 0.0, 0.0), Q, T)
    return out, Q, T


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 4, {1: 0.5, 2: 0.5}]), st.integers(1, 4), st.floats(0, 1), st.floats(-1e-5, 1e-5))
def test_kernel_is_its_plain_python(seed, spread, move, informed, drift):
    spec = _Spec(25.0, 100.0, 0.01, 0.02, 1.0, 60.0, spread, move, informed, drift, 10.0, 60.0, 1.0, 0.5, 500.0, 200.0, 100.0)
    fast, slow = run(_tape_nb, spec, seed), run(getattr(_tape_nb, "py_func", _tape_nb), spec, seed)
    assert fast[0] == slow[0] and (fast[1] == slow[1]).all() and (fast[2] == slow[2]).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, {1: 0.9, 2: 0.1}, {5: 0.5, 8: 0.5}]), st.integers(1, 6), st.floats(0, 1))
def test_tapes_are_legal(seed, spread, move, informed):
    tape = make_tape(rng=np.random.default_rng(seed), seconds=600, days=2, spread_ticks=spread, move_ticks=move, informed=informed, sigma=0.01)
    q, t = validate_quotes(tape.quotes), validate_trades(tape.trades)
    width = np.rint((q["ask"] - q["bid"]) / 0.01).astype(int)
    assert set(width) <= set([spread] if isinstance(spread, int) else spread)
    stamps = np.sort(np.concatenate([to_ns(q["time"]), to_ns(t["time"])]))
    assert (np.diff(stamps) > 0).all()  # no ties, so "strictly before" is never in doubt
    at = np.searchsorted(to_ns(q["time"]), to_ns(t["time"]), side="left") - 1
    beyond = np.where(t["side"] == 1, t["price"] - q["ask"].to_numpy()[at], q["bid"].to_numpy()[at] - t["price"])
    assert (np.rint(beyond / 0.01).astype(int) == tape.marks["swept"]).all() and set(t["side"]) <= {1, -1}
    assert len(tape.marks) == len(t)


def test_bit_repeatable_and_injected():
    one, two, three = (make_tape(rng=np.random.default_rng(s), seconds=600, informed=0.3) for s in (1, 1, 2))
    assert one.quotes.equals(two.quotes) and one.trades.equals(two.trades) and not one.quotes.equals(three.quotes)


def test_informed_orders_know_the_next_move_and_others_do_not():
    tape = make_tape(rng=np.random.default_rng(3), informed=0.4)
    mid, t = ((tape.quotes["bid"] + tape.quotes["ask"]) / 2).to_numpy(), to_ns(tape.quotes["time"])
    at = np.searchsorted(t, to_ns(tape.trades["time"])) - 1
    moves = np.flatnonzero(np.diff(mid)) + 1
    after = np.searchsorted(moves, at, side="right")
    known = after < len(moves)
    right = (np.sign(mid[moves[after[known]]] - mid[at[known]]) == tape.trades["side"].to_numpy()[known])
    informed = tape.marks["informed"].to_numpy()[known]
    assert right[informed].all()
    assert abs(right[~informed].mean() - 0.5) < 4 * 0.5 / np.sqrt((~informed).sum())
    assert abs(informed.mean() - 0.4) < 4 * np.sqrt(0.24 / len(informed))


def test_flow_is_poisson_whatever_is_informed():
    counts = [len(make_tape(rng=np.random.default_rng([5, i]), seconds=300, informed=1.0).trades) for i in range(300)]
    mean = 2 * np.exp(-0.5) * 300
    assert abs(np.mean(counts) - mean) < 4 * np.sqrt(mean / 300)
    assert abs(np.var(counts) / np.mean(counts) - 1) < 4 * np.sqrt(2 / 300)


def test_grows_when_the_room_is_too_small(monkeypatch):
    import makerlab.data.synth as synth
    tape = make_tape(rng=np.random.default_rng(9), seconds=300)
    monkeypatch.setattr(synth, "_truth", lambda spec, days, real=synth._truth: {**real(spec, days), "trade_rate": 0.0})
    assert make_tape(rng=np.random.default_rng(9), seconds=300).trades.equals(tape.trades)


@pytest.mark.parametrize("bad", [dict(sigma=0), dict(sigma=float("nan")), dict(A=-1), dict(k=0), dict(tick=0), dict(seconds=0), dict(informed=-0.1),
                                 dict(days=0), dict(spread_ticks=0), dict(spread_ticks={1: 0.5}), dict(spread_ticks={1.5: 1.0}), dict(spread_ticks={}),
                                 dict(ofi_drift=float("inf")), dict(size_rate=-1), dict(move_ticks=0)])
def test_bad_arguments(bad):
    with pytest.raises(ParameterError):
        make_tape(rng=np.random.default_rng(0), **bad)


def test_price_may_not_fall_to_zero():
    with pytest.raises(DataError, match="raise mid0"):
        make_tape(rng=np.random.default_rng(0), mid0=0.05, seconds=5000)


def test_poisson_bins():
    bins = validate_bins(poisson_bins(delta=np.array([0.0, 0.01]), exposure_s=np.array([100.0, 0.0]), A=2.0, k=50.0, rng=np.random.default_rng(0)))
    assert bins["count"].iloc[1] == 0 and abs(bins["count"].iloc[0] - 200) < 4 * np.sqrt(200)
    for bad in (dict(A=0), dict(k=-1), dict(delta=[-1.0]), dict(exposure_s=-1.0)):
        with pytest.raises(ParameterError):
            poisson_bins(**{**dict(delta=[0.0], exposure_s=1.0, A=1.0, k=1.0, rng=np.random.default_rng(0)), **bad})
