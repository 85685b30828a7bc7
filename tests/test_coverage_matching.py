"How often the intervals of a place in the queue, as page 50 prints them, hold the truth of a run forty times as long."
import functools

import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure

from makerlab.execution.matching import make_messages, probe_queue

pytestmark = pytest.mark.slow
QUEUE = {"mix": {"limit": 0.47, "cancel": 0.44, "market": 0.09}, "decay_ticks": 2.0, "market_lots": 40}
PLACES = ["front fifth", "second", "third", "the rest"]


def places(rng, n=2_000_000):
    "Means and standard errors of `traded` and `worth` by place, in queues of 300 to 600 lots."
    tried = probe_queue(make_messages(n, rng=rng, **QUEUE)).query("300 <= total < 600")
    groups = tried[["traded", "worth"]].groupby(pd.cut(tried["ahead"]/tried["total"], [-0.01, 0.2, 0.4, 0.6, 1.0], labels=PLACES), observed=True)
    return groups.mean(), groups.sem(), groups.size()


@functools.cache
def truth():
    "Forty runs of another seed, weighted by their orders."
    rng = np.random.default_rng(99)
    runs = [places(rng) for _ in range(40)]
    weight = sum(size for *_, size in runs)
    return sum(mean.mul(size, axis=0) for mean, _, size in runs).div(weight, axis=0)


def test_places_in_the_queue():
    def one(rng):
        mean, error, _ = places(rng)
        return [(mean[what][p] - 1.96*error[what][p], mean[what][p] + 1.96*error[what][p], truth()[what][p]) for what in ("traded", "worth") for p in PLACES]
    measure("matching: place in the queue", one, n=400, names=[f"{what}, {p}" for what in ("share traded", "worth") for p in PLACES])
