"The intervals of ladder_errors: how often do eight draws hold what a pool of many draws says?"
import functools

import numpy as np
import pytest
from coverage_kit import measure

from makerlab.backtest.pipeline import Config
from makerlab.models.quoting import QuoteParams
from makerlab.replay import TRUTH, ladder, split_profit
from makerlab.replay import _ratio as ratio

pytestmark = pytest.mark.slow
POOL, DRAWS = 300, 8
NAMES = ("units_ratio", "error", "count_part", "selection_part")


@functools.cache
def pool() -> np.ndarray:
    "Units and profits of the L3 replay and of the market in many draws of five minutes of a small-tick market."
    made = dict(strategy="naive", params=QuoteParams(half_spread=0.04, qty=100.0, max_inventory=500.0), config=Config(calibration_s=120.0), seconds=300.0)
    tables = [ladder("small-tick", seed=1000 + i, worlds=("l3-replay", "market"), **made).table for i in range(POOL)]
    return np.array([[t.loc[name, c] for name in ("L3 replay, fifo", TRUTH) for c in ("units", "net")] for t in tables], dtype=float)


def columns(rows: np.ndarray) -> tuple[np.ndarray, ...]:
    "The x and y of each ratio."
    parts = np.array([split_profit([u], [p], base_units=bu, base_net=bp).to_numpy()[0] for u, p, bu, bp in rows])
    hours = np.full(len(rows), 1 / 12)
    return (rows[:, 0], rows[:, 2]), *((parts[:, j], hours) for j in range(3))


def test_errors_over_draws():
    rows = pool()
    assert (rows[:, 2] > 0).all()
    x = columns(rows)
    truth = [a.sum() / b.sum() for a, b in x]

    def one(rng):
        k = rng.choice(POOL, DRAWS, replace=False)
        return [(*ratio(a[k], b[k], 0.95)[1:], t) for (a, b), t in zip(x, truth, strict=True)]
    measure("ladder errors", one, n=400, names=list(NAMES))
