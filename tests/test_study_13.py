"The claims of study 13 on real data, and the trap that it found: calibrating a queue model on one half and testing it on the other."
import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.backtest.queue_truth import cancel_places, make_queues, try_queues
from makerlab.data.events import depth_of
from makerlab.execution.queues import QueueModel, power_prob, queue_model, risk_averse

EXPONENTS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)


@queue_model
def place(front, before, after, traded, n):
    "The study's own model."
    change = before - after - traded
    if change <= 0.0 or before <= 0.0 or front <= 0.0:
        return min(front, after)
    ahead = max(change * (front / before) ** n, change - (before - front))
    return min(front - min(ahead, front), after)


def test_the_trap_of_a_broken_exponent():
    "First in the queue, by a fraction of a lot beyond: hftbacktest's formula with a broken exponent sends us to the back; ours and whole exponents leave us first."
    for n in (0.5, 1.5, 2.5, 3.4):
        assert power_prob(-0.3, 10.0, 8.0, 0.0, n) == -0.3
        assert place(-0.3, 10.0, 8.0, 0.0, n) == -0.3
    for n in (1.0, 2.0, 3.0):
        assert power_prob(-0.3, 10.0, 8.0, 0.0, n) < 0.0


def test_own_model_is_the_built_in_one_while_somebody_is_ahead():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        before = float(rng.integers(1, 200))
        front, after = before * rng.uniform(), before - float(rng.integers(0, int(before) + 1))
        traded, n = float(rng.integers(0, 3)), float(rng.choice([1.0, 1.5, 2.0, 3.0, 6.0]))
        assert place(front, before, after, traded, n) == pytest.approx(power_prob(front, before, after, traded, n), abs=1e-9)
    assert place(5.0, 12.0, 9.0, 0.0, 1e6) == risk_averse(5.0, 12.0, 9.0, 0.0, 1.0) == 5.0


@pytest.mark.nojit
def test_the_same_screen_with_other_truths():
    a, b = (make_queues(rng=np.random.default_rng(2), seconds=60.0, n_place=n) for n in (0.33, 3.0))
    assert depth_of(a).digest() == depth_of(b).digest() and a.digest() != b.digest()


def halves(events, start, middle, end, **more):
    "Exponent by places on the first half, the best of eleven candidates there, and the bias of both on the second."
    models = [QueueModel(f"place:{n:g}", place, n) for n in EXPONENTS] + ["risk-averse"]
    told = cancel_places(events.between(int(events.exch_ns[0]), middle.value))
    setting = dict(every_s=2.0, horizon_s=30.0, markout_s=5.0, **more)
    early = try_queues(events, models=models, span=(start, middle), **setting).table()
    late = try_queues(events, models=[*models, QueueModel("by place", place, told.n)], span=(middle, end), **setting).table()
    pick = early["fill bias"].abs().idxmin()
    rows = [tuple(late.loc[m, ["fill bias", "fill lo", "fill hi"]].astype(float).round(1)) for m in ("by place", pick)]
    return tuple(np.round([told.n, told.lo, told.hi], 1).tolist()), pick, rows


@pytest.mark.realdata
def test_es_halves():
    from makerlab.data.databento import load_dbn
    events = load_dbn(real("databento_es/esh4-glbx-mdp3-20231225.mbo.dbn.zst"))
    told, pick, rows = halves(events, *(pd.Timestamp(t, tz="UTC") for t in ("2023-12-25 23:00:30", "2023-12-25 23:30", "2023-12-26")))
    assert told == (3.1, 2.6, 3.7) and pick == "place:3" and rows == [(-0.2, -1.2, 0.7)] * 2


@pytest.mark.realdata
def test_amzn_halves():
    from makerlab.data.lob import load_lobster
    from makerlab.data.lob_events import lobster_events
    events = lobster_events(load_lobster(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip")))
    told, pick, rows = halves(events, *(pd.Timestamp(f"2012-06-21 {t}", tz="America/New_York") for t in ("09:35", "12:55", "15:55")), levels=5)
    assert told == (1.2, 1.1, 1.4) and pick == "risk-averse" and rows == [(0.7, 0.2, 1.1), (-0.1, -0.3, 0.0)]
