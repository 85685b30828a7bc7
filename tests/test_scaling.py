"The arithmetic of a large sweep, against a count by hand."
import math
from dataclasses import replace

import pytest

from makerlab.backtest.farm import run_tasks
from makerlab.backtest.scaling import Workload, peak_bytes, plan_sweep
from makerlab.core import ParameterError

W = Workload(symbols=5, days=4, variants=7, prepare_s=2.0, variant_s=0.5, hand_out_s=0.01, day_bytes=1e6, result_bytes=1e3, worker_bytes=2e8, workers=3)


def test_the_count_by_hand():
    for batch, tasks in ((0, 20), (7, 20), (3, 60), (1, 140)):
        w = replace(W, batch=batch)
        p = plan_sweep(w)["value"]
        assert (w.tasks, p["tasks"], p["backtests"]) == (tasks, tasks, 140)
        assert p["core hours of work"] * 3600 == pytest.approx(70) and p["core hours of preparing"] * 3600 == pytest.approx(2 * tasks)
        assert p["driver hours"] * 3600 == pytest.approx(0.01 * tasks) and p["read from storage"] * 1e6 == pytest.approx(tasks) and p["results"] * 1e12 == pytest.approx(140e3)
        assert p["workers that one driver keeps busy"] == pytest.approx((2 + w.inside * 0.5) / 0.01) and p["hours on 3 workers"] * 3600 == pytest.approx((70 + 2 * tasks) / 3)
    slow = replace(W, hand_out_s=5.5)  # the driver keeps one worker busy
    assert plan_sweep(slow)["value"]["hours on 3 workers"] * 3600 == pytest.approx((70 + 40) / 1)


@pytest.mark.parametrize("bad", [{"symbols": 0}, {"batch": 8}, {"batch": -1}, {"variant_s": 0.0}, {"workers": -2}, {"day_bytes": float("nan")}])
def test_refusals(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        replace(W, **bad)


def test_a_worker_knows_its_size():
    got = run_tasks(peak_bytes, [{"n": 1}], engine="serial").by_task()[0]
    assert 3e7 < got["bytes"] < 1e11 or math.isnan(got["bytes"])
