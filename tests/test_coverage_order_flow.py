"How often do the intervals of the simulated market's truth hold it? The truth is the mean over a thousand other markets."
from dataclasses import replace

import numpy as np
import pytest
from coverage_kit import measure

from makerlab.execution.order_flow import LARGE, adverse_selection, flow_markouts, simulate_flow

CALM = replace(LARGE, jump_rate=0.0)
WHO = ("noise", "informed", "all")


def _truth(params, seconds: float, n: int) -> dict[str, float]:
    "Mean loss a fill, all fills of n markets that no interval sees."
    total = {w: [0.0, 0] for w in WHO}
    for seed in range(n):
        t = adverse_selection(simulate_flow(params, seconds=seconds, seed=10_000_000 + seed))
        for w in WHO:
            total[w][0] += t.loc[w, "loss_ticks"] * t.loc[w, "fills"]
            total[w][1] += t.loc[w, "fills"]
    return {w: a / b for w, (a, b) in total.items()}


@pytest.mark.slow
def test_loss_intervals_hold_the_truth():
    truth = _truth(CALM, 1800, 1000)

    def one(rng):
        t = adverse_selection(simulate_flow(CALM, seconds=1800, seed=int(rng.integers(2**31))))
        return [(t.loc[w, "lo"], t.loc[w, "hi"], truth[w]) for w in WHO]

    measure("adverse_selection", one, names=list(WHO), within=0.035)


@pytest.mark.slow
def test_markout_intervals_hold_the_truth():
    truth = _truth(CALM, 1800, 1000)

    def one(rng):
        m = flow_markouts(simulate_flow(CALM, seconds=1800, seed=int(rng.integers(2**31))), horizons_s=[30.0]).iloc[0]
        return m["lo"], m["hi"], -truth["all"]

    measure("flow_markouts", one, within=0.04)


@pytest.mark.slow
def test_with_cubic_jumps_the_informed_row_covers_less_as_the_page_says():
    truth = _truth(LARGE, 3600, 1000)
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        t = adverse_selection(simulate_flow(LARGE, seconds=3600, seed=int(rng.integers(2**31))))
        held += t.loc["informed", "lo"] <= truth["informed"] <= t.loc["informed", "hi"]
    assert 0.78 < held / 300 < 0.94
