"The intervals of page 71a: bias of the fill rate, of the waiting time, of the position, P&L error and its two parts; and the place of cancels."
import functools

import numpy as np
import pytest
from coverage_kit import measure

from makerlab.backtest.queue_truth import cancel_places, make_queues, try_queues

pytestmark = pytest.mark.slow
MODELS = ("risk-averse", "proportional", "optimistic")
TABLE, PNL = ("fill bias", "wait bias s", "position bias lots"), ("error", "count", "adverse")


def one_trial(rng, seconds=1800.0):
    return try_queues(make_queues(rng=rng, seconds=seconds), models=MODELS, every_s=2.0, horizon_s=30.0, markout_s=5.0)


@functools.cache
def truth() -> tuple[np.ndarray, np.ndarray]:
    "The biases over 100 hours, 60 times what one interval sees and more."
    trials = [one_trial(rng, 18000.0) for rng in np.random.default_rng(71).spawn(20)]
    mean = lambda name, columns: np.mean([getattr(t, name)().loc[list(MODELS), list(columns)].to_numpy() for t in trials], axis=0)  # noqa: E731
    return mean("table", TABLE), mean("pnl_error", PNL)


def test_biases():
    expected = truth()[0]

    def one(rng):
        table = one_trial(rng).table()
        ends = [(table.loc[m, lo], table.loc[m, hi], expected[i, j]) for i, m in enumerate(MODELS)
                for j, (lo, hi) in enumerate((("fill lo", "fill hi"), ("wait lo", "wait hi"), ("position lo", "position hi")))]
        return ends
    measure("queue models", one, n=400, names=[f"{c} of {m}" for m in MODELS for c in TABLE])


def test_pnl_error():
    expected = truth()[1]

    def one(rng):
        table = one_trial(rng).pnl_error()
        return [(table.loc[m, f"{c} lo"], table.loc[m, f"{c} hi"], expected[i, j]) for i, m in enumerate(MODELS) for j, c in enumerate(PNL)]
    measure("queue models' P&L", one, n=400, names=[f"{c} of {m}" for m in MODELS for c in PNL])


def test_proportional_is_unbiased():
    "Where every lot is as likely to be cancelled, the position of the proportional model errs by 0 on average: no long run needed."
    def one(rng):
        row = one_trial(rng).table().loc["proportional"]
        return row["position lo"], row["position hi"], 0.0
    measure("position bias of proportional against zero", one, n=400)


@pytest.mark.parametrize("n_place", (1.0, 3.0))
def test_place_of_cancels(n_place):
    def one(rng):
        fit = cancel_places(make_queues(rng=rng, seconds=1800.0, n_place=n_place))
        return fit.lo, fit.hi, n_place
    measure(f"exponent of the place of cancels, {n_place:g}", one, n=400)
