"Queue models of page 52b: hand values, an independent reading of hftbacktest's formulas, twins, and what may not be passed."
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError, njit
from makerlab.execution import queues as q

SPECS = ("risk-averse", "optimistic", "proportional", "power-prob:3", "power-prob:0.5", "power-prob-1:3", "power-prob-1:0.7", "power-prob-2:2",
         "power-prob-2:1.5", "log-prob", "log-prob:0.001", "log-prob-2")
LOTS = st.integers(0, 400)


def power(x, n):
    "C's pow; not a number where there is none, but for a front below zero and a broken exponent, which counts as zero (page 52b says why)."
    if x < 0 and n != int(n) and np.isfinite(x):
        return np.float64(0.0)
    try:
        return np.float64(math.pow(x, n))
    except ValueError:
        return np.float64(np.nan)


def peer(name, front, before, after, traded, n):
    "What hftbacktest 2.4.4 documents, in IEEE arithmetic that never raises: 0/0 is not a number, and min(nan, x) is x."
    if name == "risk-averse":
        return min(front, after)
    with np.errstate(all="ignore"):
        f, b, n = np.float64(front), np.float64(before) - np.float64(front), np.float64(n)
        change = np.float64(before) - after - traded
        if change < 0:
            return min(front, after)
        g = (lambda x: np.log(1 + n * x)) if name.startswith("log") else (lambda x: power(x, n))
        if name in ("power-prob", "proportional"):
            p = 1 - power(f / (f + b), n)
        elif name in ("power-prob-1", "log-prob"):
            p = g(b) / (g(b) + g(f))
        else:
            p = g(b) / g(b + f)
        p = 1.0 if np.isinf(p) else p
        return float(np.fmin(f - (1 - p) * change + np.minimum(b - p * change, 0.0) if not np.isnan(p) else np.nan, after))


@settings(max_examples=400, deadline=None)
@given(before=LOTS, after=LOTS, traded=st.integers(0, 50), part=st.floats(0, 1), spec=st.sampled_from([s for s in SPECS if s != "optimistic"]))
def test_hftbacktest_formulas(before, after, traded, part, spec):
    model = q.parse_queue(spec)
    front = part * before
    got, want = model.fn(front, float(before), float(after), float(traded), model.n), peer(spec.partition(":")[0], front, before, after, traded, model.n)
    assert got == pytest.approx(want, abs=1e-9 * max(before, 1))


@pytest.mark.nojit
@pytest.mark.parametrize("spec", SPECS)
def test_corners(spec):
    "Empty levels, exact exhaustion, a front that trades took below zero, and never a number that is none."
    model = q.parse_queue(spec)
    for front, before, after, traded in itertools.product((-0.4, 0.0, 0.3, 1.0, 7.0), (0.0, 1.0, 7.0, 10.0), (0.0, 3.0, 10.0), (0.0, 1.0, 7.0)):
        if front <= before:
            got = model.fn(front, before, after, traded, model.n)
            assert np.isfinite(got) and got <= after, (front, before, after, traded)
            if spec not in ("optimistic",):
                assert got == pytest.approx(peer(spec.partition(":")[0], front, before, after, traded, model.n), abs=1e-12), (front, before, after, traded)


@pytest.mark.nojit
@pytest.mark.parametrize("spec", ["power-prob:0.5", "power-prob:1.5", "power-prob:3.4", "power-prob-1:0.7"])
@pytest.mark.parametrize("front", [-0.49, -0.3, -1e-12])
def test_who_is_first_stays_first_with_a_broken_exponent(spec, front):
    "A front just below zero is no negative base: the formula as written says not a number there, and sent the first order to the back."
    model = q.parse_queue(spec)
    for before, after in ((10.0, 8.0), (7.0, 1.0), (3.0, 2.0)):
        assert model.fn(front, before, after, 0.0, model.n) == pytest.approx(front, abs=0.5)
        assert model.fn(front, before, after, 0.0, model.n) < 0.5  # and not `after`
    near = [q.parse_queue(f"power-prob:{n}") for n in (2, 1.999999, 3, 2.999999)]
    a, b, c, d = (m.fn(front, 10.0, 8.0, 0.0, m.n) for m in near)
    assert a == pytest.approx(b, abs=0.01) and c == pytest.approx(d, abs=0.01)  # no cliff beside a whole exponent


@pytest.mark.parametrize("spec", SPECS)
def test_twin(spec):
    "The plain functions give what the compiled ones give."
    model, rng = q.parse_queue(spec), np.random.default_rng(5)
    for _ in range(200):
        before = float(rng.integers(1, 100))
        args = (before * rng.uniform(), before, float(rng.integers(0, 100)), float(rng.integers(0, 5)), model.n)
        assert model.fn(*args) == pytest.approx(model.fn.py_func(*args), abs=1e-12)


@pytest.mark.nojit
def test_bracket_and_trades():
    "Risk-averse and optimistic bracket the safe ones; what was traded is not a cancellation."
    rng = np.random.default_rng(1)
    for _ in range(300):
        before = float(rng.integers(2, 200))
        front, after = before * rng.uniform(), float(rng.integers(0, int(before)))
        ends = [q.parse_queue(s) for s in ("optimistic", "risk-averse")]
        low, high = (m.fn(front, before, after, 0.0, 1.0) for m in ends)
        for spec in ("proportional", "power-prob:3", "power-prob:10", "log-prob-2"):
            m = q.parse_queue(spec)
            assert low - 1e-9 <= m.fn(front, before, after, 0.0, m.n) <= high + 1e-9
            assert m.fn(front, before, after, before - after, m.n) == min(front, after)
    assert q.power_prob(10.0, 16.0, 12.0, 0.0, 3.0) == 9.0234375


def test_own_model_runs_in_a_compiled_loop():
    "A function written here, called through the pointer by a loop that was compiled for QUEUE_TYPE before it existed."
    @njit(signature=q.types.float64(q.QUEUE_TYPE, q.types.int64))
    def loop(fn, n):
        front = 1000.0
        for _ in range(n):
            front = fn(front, 1000.0, 999.0, 0.0, 1.0)
        return front

    @q.queue_model
    def first_come(front, before, after, traded, n):
        return front - 0.25 * (before - after - traded)
    assert loop(q.parse_queue(first_come).fn, 100) == 975.0
    assert loop(q.parse_queue("risk-averse").fn, 100) == 999.0


@pytest.mark.parametrize(("spec", "words"), [("", "risk-averse"), ("powerprob", "power-prob-2"), ("fifo:1", "no parameter"), ("power-prob:", "number"),
                                             ("power-prob:nan", "finite"), ("log-prob:0", "> 0"), (3, "@queue_model"), (lambda f: f, "@queue_model")])
def test_refusals(spec, words):
    with pytest.raises(ParameterError, match=words):
        q.parse_queue(spec)
    with pytest.raises(ParameterError, match=words):
        q.queue_bias(spec)


def test_names_round_trip():
    for name in q.QUEUE_MODELS:
        model = q.parse_queue(name)
        assert q.parse_queue(model.name) == model and q.parse_queue(model) is model
        assert q.queue_bias(model).startswith(model.name)
    with pytest.raises(ParameterError, match="decorated"):
        q.QueueModel("x", 3)


def test_every_named_model_has_its_bias():
    for name in q.QUEUE_MODELS:
        text = q.queue_bias(name)
        assert "truth" in text and "not measured" not in text, text
    assert set(q.BIAS_MEASURED_ON) == {key for rows in q.QUEUE_BIAS.values() for key in rows}
    assert all(set(rows) == set(q.BIAS_MEASURED_ON) and all(lo <= x <= hi for x, lo, hi, *_ in rows.values()) for rows in q.QUEUE_BIAS.values())
    assert "not measured" in q.queue_bias("power-prob:7") and "power-prob:3" in q.queue_bias("power-prob:7")
