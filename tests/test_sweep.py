"A sweep remembers every variant, runs all on the same tape and random numbers, and prints raw beside deflated."
import json
import math

import numpy as np
import pandas as pd
import pytest

from makerlab.backtest.snapshot import Backtest
from makerlab.backtest.sweep import comparison_html, comparison_markdown, grid, label, runner, sweep, walk_forward
from makerlab.core import DataError, ParameterError
from makerlab.data.samples import load_sample
from makerlab.execution.fills import PoissonFills, TradeFills
from makerlab.models.quoting import QuoteParams
from makerlab.scoring.selection import Trials


@pytest.fixture(scope="module")
def base():
    quotes, trades = load_sample("BIGT", day="2026-03-03")
    keep = quotes["time"] < quotes["time"].iloc[0] + pd.Timedelta(hours=1)
    quotes = quotes[keep].reset_index(drop=True)
    return Backtest(quotes, trades=trades[trades["time"] <= quotes["time"].iloc[-1]].reset_index(drop=True), session_end=None,
                    params=QuoteParams(gamma=5e-5, k=150.0, A=0.3, min_spread_bps=0.0))


@pytest.fixture(scope="module")
def result(base):
    return sweep(runner(base), grid(k=[80.0, 150.0, 300.0], qty=[100.0, 200.0]))


def test_grid_is_the_product_in_order():
    assert grid(a=[1, 2], b=["x", "y"]) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert label({"a": 1.50, "b": "x"}) == "a=1.5, b=x"


def test_every_variant_is_in_the_record_with_its_own_profit(base, result):
    assert len(result.trials) == len(result.table) == 6
    for name, row in result.table.iterrows():
        alone = base.variant(params=base.params.replace(k=row["k"], qty=row["qty"])).run(rng=np.random.default_rng(1))
        assert math.isclose(row["total"], alone.attribution.total, abs_tol=1e-9)
        assert math.isclose(row["total"], result.trials.series[name].sum(), abs_tol=1e-9)
        assert math.isclose(row["total"], row["spread_capture"] + row["inventory_pnl"] - row["fees"], abs_tol=1e-9)


def test_counting_widens_and_deflates(result):
    t = result.table
    assert (t["lo_all"] < t["lo"]).all() and (t["hi_all"] > t["hi"]).all() and (t["deflated"] <= t["confidence"]).all()
    assert ((t["lo"] <= t["total"]) & (t["total"] <= t["hi"])).all()


def test_variants_share_their_random_numbers(base):
    poisson = base.variant(fills=PoissonFills(A=0.3, k=180.0))
    got = sweep(runner(poisson, seed=5), grid(kappa=[0.0, 0.001]))  # `as` does not read kappa: the two must be one
    a, b = got.trials.series.values()
    assert a.equals(b) and a.abs().sum() > 0


def test_a_refused_variant_counts_and_is_listed(base):
    got = sweep(runner(base), grid(k=[100.0, -1.0, 200.0]), unrecorded=7)
    assert list(got.failed) == ["k=-1"] and len(got.trials) == 3 + 7
    assert "k=-1" in comparison_markdown(got) and "k=-1" in comparison_html(got)
    fewer = sweep(runner(base), grid(k=[100.0, 200.0]))
    assert got.table.loc["k=100", "lo_all"] < fewer.table.loc["k=100", "lo_all"], "the refused and the unrecorded widen the interval"


def test_a_variant_that_never_trades_is_kept(base):
    got = sweep(runner(base), grid(k=[100.0, 300.0, 0.1]))  # 1/k of ten: the quote stands at the widest that is allowed, far away
    assert len(got.table) == 3 and math.isnan(got.table["deflated"].iloc[2]) and got.best != got.table.index[2]


def test_names_are_checked(base):
    with pytest.raises(ParameterError, match="no such setting"):
        runner(base)({"gama": 1.0})
    with pytest.raises(ParameterError, match="twice"):
        sweep(runner(base), [{"k": 100.0}, {"k": 100.0}])
    with pytest.raises(DataError, match="none of 1"):
        sweep(runner(base), [{"k": 0.0}])
    for lone in ("as", 5.0):
        with pytest.raises(ParameterError, match="give a list"):
            grid(k=lone)
    with pytest.raises(ParameterError, match="no value"):
        grid(k=[])


def record(pnl: np.ndarray) -> Trials:
    out = Trials(period="bar")
    for i in range(pnl.shape[1]):
        out.add(f"v{i}", pnl[:, i])
    return out


def test_walk_forward_does_not_see_what_it_collects():
    rng = np.random.default_rng(3)
    pnl = rng.normal(0, 1, (240, 5))
    walk = walk_forward(record(pnl), rng=np.random.default_rng(1), n_splits=4, purge=2)
    changed = pnl.copy()
    changed[-48:] = rng.normal(5, 1, (48, 5)) * [[1, -1, 2, -2, 0.5]]
    again = walk_forward(record(changed), rng=np.random.default_rng(1), n_splits=4, purge=2)
    assert walk.splits["chosen"].tolist() == again.splits["chosen"].tolist(), "the last stretch is chosen on before it is seen"
    assert not np.array_equal(walk.pnl[-48:], again.pnl[-48:])
    np.testing.assert_array_equal(walk.pnl[:-48], again.pnl[:-48])


def test_walk_forward_of_a_known_winner_is_the_winner():
    rng = np.random.default_rng(4)
    pnl = rng.normal(0, 1, (600, 6))
    pnl[:, 2] += 0.5
    walk = walk_forward(record(pnl), rng=rng, n_splits=5)
    assert (walk.splits["chosen"] == "v2").all() and 0.7 < walk.shrinkage < 1.3
    assert walk.interval.lo > 0 and math.isclose(walk.interval.estimate, pnl[100:, 2].sum(), rel_tol=1e-9)


def test_report_prints_the_deflated_figure_beside_the_raw_one(result, tmp_path):
    files = {p.name: p.read_text(encoding="utf8") for p in result.save(tmp_path / "out")}
    assert set(files) == {"comparison.csv", "trials.csv", "comparison.md", "comparison.html"}
    for name in ("comparison.md", "comparison.html"):
        for words in ("6 variants tried", "raw", "deflated", "with all variants counted"):
            assert words in files[name], f"{name} does not say {words!r}"
    back = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert {"lo", "hi", "lo_all", "hi_all", "confidence", "deflated", "adverse_per_unit"} <= set(back.columns)
    json.dumps(result.table.to_dict("records"))  # plain numbers and words


def test_a_setting_may_be_called_like_a_figure(base):
    "`fills` and `fees` are settings of an experiment and figures of its result: the table has both."
    models = [TradeFills(queue=q) for q in ("front", "through")]
    got = sweep(runner(base), grid(fills=models))
    assert list(got.table["fills (setting)"]) == models and got.table["fills"].iloc[0] > got.table["fills"].iloc[1]
