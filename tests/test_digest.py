"The digest of a run: golden for fixed settings, the same again and again, different as soon as one order differs."
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from makerlab.backtest.snapshot import Backtest, quotes_as_orders
from makerlab.core import DataError
from makerlab.data.source import open_source
from makerlab.execution.fills import TradeFills
from makerlab.models.quoting import QuoteParams
from makerlab.scoring.report import stream_digest

PARAMS = QuoteParams(gamma=2e-5, k=150.0, A=0.5, kappa=0.001, eta=0.001, half_spread=0.01, qty=100.0, max_inventory=1000.0)
GOLDEN = {  # sample BIGT, first two hours of its first day, prints behind the queue
    "naive": "1bfececc5fa2ccf34218f157b3412ffbe3a407bfbdd84b26ca205254aaab23ed",
    "as": "cd37a7d9518b16d31c6ec379f282211a73e3dc80d873ef9d42a6915bf6ae73d6",
    "glft": "5db94dffa9cada08f227bf3da90206f51818c88e6734bbeb463f97c823a0ece7",
}


@pytest.fixture(scope="module")
def market():
    m = open_source("sample", symbol="BIGT")
    end = m.quotes["time"].iloc[0] + pd.Timedelta(hours=2)
    return m.quotes[m.quotes["time"] < end], m.trades[m.trades["time"] < end]


def run(market, strategy, **changes):
    quotes, trades = market
    return Backtest(quotes, trades=trades, strategy=strategy, params=PARAMS, fills=TradeFills(), **changes).run(rng=np.random.default_rng(1))


@pytest.mark.parametrize("strategy", GOLDEN)
def test_golden(market, strategy):
    assert run(market, strategy).digest == GOLDEN[strategy]


def test_one_millisecond_of_latency_is_another_run(market):
    assert run(market, "as", latency_ns=500_000_000).digest != run(market, "as").digest


def test_what_is_measured_afterwards_is_no_part_of_it(market):
    assert run(market, "as", horizons_s=(5.0,)).digest == run(market, "as").digest


def test_every_column_counts(market):
    r = run(market, "as")
    orders = quotes_as_orders(r.path)
    base = stream_digest(orders, r.fills)
    assert base == r.digest and len(r.fills) > 3
    for name, other in (("time", pd.Timedelta(1, "ns")), ("side", 0), ("price", 0.01), ("qty", 1.0), ("order_id", 1)):
        changed = orders.copy()
        changed[name] = -changed[name] if name == "side" else changed[name] + other
        assert stream_digest(changed, r.fills) != base, name
    assert stream_digest(orders.iloc[:-1], r.fills) != base and stream_digest(orders, r.fills.iloc[:-1]) != base
    assert stream_digest(orders.assign(action="new"), r.fills) != base
    with pytest.raises(DataError, match="row 0"):
        stream_digest(orders.assign(action="buy"), r.fills)


def test_reports_print_it(market, tmp_path):
    r = run(market, "as")
    r.save(tmp_path / "r")
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["order_stream"] == r.digest
    for name in ("backtest_summary.md", "report.html"):
        assert r.digest in (tmp_path / "r" / name).read_text(), name


@pytest.mark.slow
def test_another_process_says_the_same():
    code = ("import numpy as np, sys; sys.path.insert(0, 'tests'); import test_digest as t; from makerlab.data.source import open_source; import pandas as pd;"
            "m = open_source('sample', symbol='BIGT'); end = m.quotes['time'].iloc[0] + pd.Timedelta(hours=2);"
            "print(t.run((m.quotes[m.quotes['time'] < end], m.trades[m.trades['time'] < end]), 'as').digest)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == GOLDEN["as"], out.stderr
