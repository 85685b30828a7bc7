"The claims of study 12 that its page cannot run: a real Binance capture, and how often the intervals over markets hold the truth."
import numpy as np
import pandas as pd
import pytest
from conftest import real
from coverage_kit import measure
from scipy import stats

from makerlab.backtest.replay import ConstantLatency, EmpiricalLatency, Replay
from makerlab.data.events import Events
from makerlab.execution.order_flow import PRESETS, simulate_flow
from makerlab.models.quoting import QuoteParams
from makerlab.scoring.inference import Interval, pnl_interval

ORDER_MS = (0.0, 10.0, 20.0, 50.0, 100.0, 200.0)
INVERTED = 0.002  # $ a share


def over_markets(x: np.ndarray) -> tuple[float, float, float]:
    "The study's interval over independent markets."
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return x.mean(), x.mean() - half, x.mean() + half


def each(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    "The study's ratio of two sums."
    ratio = x.sum() / y.sum()
    _, lo, hi = over_markets((x - ratio * y) / y.mean())
    return ratio, ratio + lo, ratio + hi


def zero(x: tuple, y: list) -> float:
    "The study's first crossing."
    down = [i for i in range(len(y) - 1) if y[i] > 0 >= y[i + 1]]
    if not down:
        return np.inf if y[0] > 0 else 0.0
    i = down[0]
    return x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1])


def ends(net: np.ndarray) -> list[float]:
    "Break-even latency of the mean, of the lower band and of the upper one."
    v = np.array([over_markets(column) for column in net.T])
    return [zero(ORDER_MS, list(v[:, i])) for i in range(3)]


def test_zero():
    assert zero((0, 10, 20), [2.0, 1.0, -1.0]) == 15.0 and zero((0, 10), [2.0, 1.0]) == np.inf and zero((0, 10), [-1.0, -2.0]) == 0.0


@pytest.mark.slow
def test_intervals_over_markets_hold_the_truth():
    "240 markets are the population; of 16 drawn at random: the price of 100 ms, the break-even fee at 100 ms, and the break-even latency under an inverted fee."
    profit, shares = np.zeros((240, len(ORDER_MS))), np.zeros((240, len(ORDER_MS)))
    for m in range(240):
        events = simulate_flow(PRESETS["large-tick"], seconds=1800.0, seed=5000 + m).events
        for j, ms in enumerate(ORDER_MS):
            r = Replay(events, params=QuoteParams(qty=100.0, max_inventory=500.0, x0=0.5, x1=0.001), queue="fifo", interval_ms=20.0, record_every=50,
                       order_latency=ConstantLatency(round(ms * 1e6))).run(rng=np.random.default_rng(12))
            last = r.path.iloc[-1]
            profit[m, j] = r.attribution.total - abs(last["inventory"]) * (last["ask"] - last["bid"]) / 2
            shares[m, j] = r.fills["qty"].sum()
    net = profit - INVERTED * shares
    truth = [(profit[:, 4] - profit[:, 0]).mean(), profit[:, 4].sum() / shares[:, 4].sum(), ends(net)[0]]
    assert np.round(2 * profit.mean(axis=0)).tolist() == [118, 115, 111, 98, 79, 54] and round(-2 * truth[0]) == 39 and truth[2] == 0.0  # what the study says of them

    def one(rng: np.random.Generator) -> list[tuple[float, float, float]]:
        pick = rng.choice(240, size=16, replace=False)
        _, *a = over_markets((profit[:, 4] - profit[:, 0])[pick])
        _, *b = each(profit[pick, 4], shares[pick, 4])
        _, *c = ends(net[pick])
        return [(*a, truth[0]), (*b, truth[1]), (*c, truth[2])]

    measure("study 12", one, n=1000, names=["price of 100 ms", "break-even fee at 100 ms", "break-even latency, inverted"])


def capture() -> Events:
    "The futures capture, with the feed latency that was recorded."
    from makerlab.data.crypto import load_binance
    return load_binance(real("hftbacktest_binance/usdm_btcusdt_20240808.gz"))


def replayed(events: Events, latency: ConstantLatency | EmpiricalLatency) -> tuple[int, Interval]:
    "Fills, and profit a unit before fees in bps of the price: the break-even fee, with its interval from bars of 10 s."
    r = Replay(events, params=QuoteParams(qty=0.01, max_inventory=0.05, x0=0.5, x1=0.0), queue="power-prob:3", interval_ms=20.0, record_every=5, max_ticks=1 << 24,
               order_latency=latency).run(rng=np.random.default_rng(12))
    bar = (np.arange(len(r.path)) * 5 * 20 // 10_000).astype(int)
    pnl = np.bincount(bar, weights=r.attribution.steps["pnl"].to_numpy())
    units = np.bincount(bar[r.fills["step"].to_numpy()], weights=r.fills["qty"].to_numpy(), minlength=len(pnl))
    each = pnl.sum() / units.sum()
    z = (pnl - each * units) / units.sum() + each / len(pnl)
    bps = z / r.path["mid"].mean() * 1e4
    return len(r.fills), pnl_interval(pd.Series(bps), rng=np.random.default_rng(12))


@pytest.mark.realdata
def test_binance():
    events = capture()
    def is_(n: int, i: Interval, fills: int, *want: float) -> None:
        assert n == fills and tuple(round(v, 2) for v in (i.estimate, i.lo, i.hi)) == want, (n, i)

    wants = {0: (638, -1.02, -1.60, -0.51), 10: (534, -0.96, -1.43, -0.55), 100: (258, -0.77, -1.51, -0.06), 1000: (82, -1.24, -3.67, 0.78)}
    for ms, want in wants.items():
        is_(*replayed(events, ConstantLatency(round(ms * 1e6))), *want)
    wait = np.maximum(events.local_ns - events.exch_ns, 0)  # the way of the news, taken for the way of orders
    sent, first = np.unique(events.local_ns, return_index=True)
    there = np.maximum.accumulate(sent + wait[first])
    pairs = np.column_stack([sent, there, there + wait[first]])
    delay = pairs[:, 1] - pairs[:, 0]
    assert round(delay.mean() / 1e6, 1) == 7.8 and round(np.quantile(delay, 0.99) / 1e6) == 45
    is_(*replayed(events, EmpiricalLatency(pairs)), 562, -0.99, -1.48, -0.55)
    is_(*replayed(events, ConstantLatency(int(delay.mean()))), 560, -1.02, -1.62, -0.48)
