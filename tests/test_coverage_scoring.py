"Coverage of every interval that scoring prints, nominal 95 %: means, totals, ratios, profits, differences, markouts, Sharpe ratios, VaR and CVaR."
import numpy as np
import pandas as pd
import pytest
from coverage_kit import measure
from scipy import signal, stats

from makerlab.data.synth import make_tape
from makerlab.scoring.attribution import adverse_selection, markouts, markouts_by_time
from makerlab.scoring.inference import block_bootstrap, paired_difference, pnl_interval, sharpe_ratio
from makerlab.scoring.metrics import long_run_se, sharpe
from makerlab.scoring.tail_risk import cvar_interval, var_interval

pytestmark = pytest.mark.slow
N = 299  # resamples of each interval: their noise only blurs the ends


def ar1(phi, n, rng, shocks=None):
    "A stationary AR(1) with mean zero."
    return signal.lfilter([1.0], [1.0, -phi], rng.normal(size=n + 200) if shocks is None else shocks(n + 200))[200:]


def ends(r, truth):
    return r.lo, r.hi, truth


@pytest.mark.parametrize("kind", ["stationary", "circular", "moving"])
@pytest.mark.parametrize("phi, n", [(0.0, 1000), (0.3, 1000)])
def test_mean(kind, phi, n):
    measure(f"inference: mean, {kind} bootstrap, AR(1) {phi}, n {n}",
            lambda rng: ends(block_bootstrap(ar1(phi, n, rng), kind=kind, n=N, rng=rng), 0.0), n=800)


@pytest.mark.parametrize("phi, n", [(-0.5, 390), (0.0, 30), (0.0, 390), (0.5, 390), (0.7, 390), (0.3, 100)])
def test_total(phi, n):
    measure(f"inference: total, AR(1) {phi}, n {n}", lambda rng: ends(block_bootstrap(ar1(phi, n, rng) + 0.2, "total", n=N, rng=rng), 0.2 * n), n=800)


def test_mean_of_skewed_and_of_heavy_steps():
    measure("inference: mean, exponential shocks with AR(1) 0.3, n 1000",
            lambda rng: ends(block_bootstrap(ar1(0.3, 1000, rng, lambda m: rng.exponential(size=m) - 1), n=N, rng=rng), 0.0), n=800)
    measure("inference: mean, Student t3 shocks with AR(1) 0.3, n 390",
            lambda rng: ends(block_bootstrap(ar1(0.3, 390, rng, lambda m: rng.standard_t(3, size=m)), n=N, rng=rng), 0.0), n=800)


def test_ratio():
    def one(rng):
        qty = 100.0 * rng.poisson(np.exp(0.5 * ar1(0.5, 600, rng)))
        gain = 0.004 * qty + ar1(0.3, 600, rng) * np.sqrt(qty + 1) * 0.05
        return ends(block_bootstrap(np.column_stack([gain, qty]), "ratio", n=N, rng=rng), 0.004)
    measure("inference: ratio, dependent numerator and denominator, n 600", one, n=800)


def test_function_of_the_rows():
    measure("inference: median by arch, expanded percentiles, AR(1) 0.3, n 400",
            lambda rng: ends(block_bootstrap(ar1(0.3, 400, rng), lambda z: float(np.median(z)), n=199, rng=rng), 0.0), n=400)


@pytest.mark.parametrize("days", [5, 10, 20])
def test_profit_over_days(days):
    def one(rng):
        day = np.repeat(np.arange(days), 60)
        x = ar1(0.3, day.size, rng) + 0.5 * rng.normal(size=days)[day] + 0.1
        return ends(pnl_interval(x, days=day, n=N, rng=rng), 0.1 * day.size)
    measure(f"inference: profit, {days} whole days with a day effect", one, n=800)


@pytest.mark.parametrize("variants", [1, 10])
def test_profit_in_a_day_and_of_the_best(variants):
    "Of the best variant, counted: the share that holds is at least the level, and 0.975 on its upper side at most."
    def one(rng):
        x = np.array([ar1(0.3, 390, rng) for _ in range(variants)])
        return ends(pnl_interval(x[x.sum(axis=1).argmax()], variants=variants, n=N, rng=rng), 0.0)
    measure(f"inference: profit of the best of {variants} in a day of minutes", one, n=500)


@pytest.mark.parametrize("days", [None, 8])
def test_paired_difference(days):
    def one(rng):
        shared = 5 * ar1(0.5, 480, rng)
        a, b = pd.Series(shared + ar1(0.3, 480, rng) + 0.1), pd.Series(shared + ar1(0.0, 480, rng))
        return ends(paired_difference(a, b, days=None if days is None else np.repeat(np.arange(days), 60), n=N, rng=rng), 48.0)
    measure(f"inference: paired difference, {'one day' if days is None else f'{days} days'}", one, n=600)


def maker_bars(rng, n=390, every=60):
    "Minutes of a maker with a position that reverts: spread earned, carry of the position, an honest dependent path."
    steps = n * every // 10
    q, mid = np.empty(steps), np.cumsum(0.03 * rng.normal(size=steps))
    hit, now = rng.random((steps, 2)), 0.0
    for t in range(steps):
        side = (hit[t, 0] < 0.15 * np.exp(-now / 300)) * 1.0 - (hit[t, 1] < 0.15 * np.exp(now / 300))
        now += 100 * side
        q[t] = now
    spread = 0.01 * np.abs(np.diff(q, prepend=0.0))
    total = spread + np.r_[q[:-1] * np.diff(mid), 0.0]
    return total.reshape(n, -1).sum(axis=1), spread.reshape(n, -1).sum(axis=1)


def test_minutes_of_a_maker():
    "Carry has mean zero by construction; what the spread earns is known from a very long run."
    truth = 390 * np.mean([maker_bars(np.random.default_rng(seed))[1].mean() for seed in range(300)])
    def one(rng):
        total, spread = maker_bars(rng)
        return [ends(pnl_interval(total, n=N, rng=rng), truth), ends(pnl_interval(spread, n=N, rng=rng), truth)]
    measure("inference: a maker's day of minutes", one, n=400, names=["total", "spread captured"])


@pytest.mark.parametrize("phi, n", [(0.0, 390), (0.3, 1000), (-0.3, 390)])
def test_sharpe_robust(phi, n):
    S = 0.1
    def one(rng):
        return ends(sharpe_ratio(ar1(phi, n, rng) * np.sqrt(1 - phi**2) + S), S)
    measure(f"inference: Sharpe ratio, robust, AR(1) {phi}, n {n}", one, n=1000)


def test_sharpe_of_a_seller_of_insurance():
    def one(rng):
        x = rng.normal(size=1000) - ((rng.random(1000) < 0.02) * 8.0 - 0.16)
        x = x / np.sqrt(1 + 64 * 0.02 * 0.98) + 0.1
        return [ends(sharpe_ratio(x, errors=e), 0.1) for e in ("robust", "iid")]
    measure("inference: Sharpe ratio, skewness -2", one, n=1000, names=["robust", "iid (Mertens)"])


def test_sharpe_of_a_path():
    "The error that metrics prints beside the annualised ratio: two days of minutes."
    time = pd.DatetimeIndex([t for d in ("2026-03-02", "2026-03-03") for t in pd.date_range(f"{d} 14:30", periods=390, freq="min", tz="UTC")])
    base = pd.DataFrame({"time": time, "mid": 100.0, "inventory": 0.0})
    def one(rng):
        s = sharpe(base.assign(cash=np.cumsum(ar1(0.2, 780, rng) * np.sqrt(1 - 0.04) + 0.05)))
        return *s.interval(), 0.05 * s.annualisation
    measure("metrics: annualised Sharpe ratio of two days", one, n=500)


def test_cosine_error():
    def one(rng):
        x = ar1(0.5, 200, rng)
        se, df = long_run_se(x)
        half = stats.t.ppf(0.975, df) * se
        return x.mean() - half, x.mean() + half, 0.0
    measure("metrics: mean by the cosine error, AR(1) 0.5, n 200", one, n=1000)


TAPE = dict(sigma=0.01, A=0.5, k=100.0, informed=0.3)
HORIZONS = [1.0, 10.0, 60.0, 300.0]


def passive_side(rng, seconds, *, one_sided=False, days=1):
    "Markouts of the anonymous maker behind every trade of a synthetic tape."
    tape = make_tape(rng=rng, seconds=seconds, days=days, **TAPE)
    q, t = tape.quotes, tape.trades
    mid = pd.Series(((q["bid"] + q["ask"]) / 2).to_numpy(), index=pd.DatetimeIndex(q["time"]))
    fills = pd.DataFrame({"time": t["time"], "side": -t["side"].astype(int), "price": t["price"], "qty": t["size"]})
    return markouts_by_time(fills[fills["side"] > 0].reset_index(drop=True) if one_sided else fills, mid, horizons_s=HORIZONS)


@pytest.mark.parametrize("one_sided", [False, True])
def test_adverse_selection_on_synthetic_tapes(one_sided):
    "The truth is that of 20 whole days (the tape itself promises 0.3 ticks once its next move has come)."
    truth = adverse_selection(passive_side(np.random.default_rng(99), 23_400.0, days=20, one_sided=one_sided))
    if not one_sided:
        assert abs(truth.cost_per_unit[60.0] - 0.003) < 4 * truth.se[60.0]
    # one-sided fills at long horizons: the drift of a 20-day path is noise, its expectation is the two-sided one
    known = truth.cost_per_unit.to_numpy() if not one_sided else adverse_selection(passive_side(np.random.default_rng(99), 23_400.0, days=20)).cost_per_unit.to_numpy()
    def one(rng):
        c = adverse_selection(passive_side(rng, 7200.0, one_sided=one_sided))
        return list(zip(c["lo"], c["hi"], known, strict=True))
    name = "attribution: adverse selection" + (", fills on one side only" if one_sided else "")
    measure(name, one, n=400, names=[f"{h:g} s" for h in HORIZONS])


def test_adverse_selection_by_steps():
    "Fills that come in bursts of one side, with a known cost of 0.6 cents, from the page's toy day."
    def one(rng, n=5401, over=5, impact=0.006):
        busy = ar1(0.98, n, rng)
        step = np.flatnonzero(rng.random(n) < 0.04 * np.exp(0.3 * busy))
        side = np.where(rng.random(step.size) < 1 / (1 + np.exp(-busy[step] / 5)), 1, -1)
        push = np.zeros(n + over)
        for j in range(1, over + 1):
            np.add.at(push, step + j, -side * impact / over)
        # what a fill costs: its own push, and the pushes of others that fall in its window, which are part of the truth
        mid = 100 + np.cumsum(0.01 * rng.normal(size=n) + push[:n])
        fills = pd.DataFrame({"step": step, "side": side, "price": mid[step] - 0.01 * side, "qty": 100.0})
        out = []
        for h in (5, 30):
            keep = step + h < n
            path = np.cumsum(push[:n])
            moved = -side[keep] * (path[step[keep] + h] - path[step[keep]])
            row = adverse_selection(markouts(fills, mid, horizons=[h])).iloc[0]
            out.append((row["lo"], row["hi"], moved.mean()))
        return out
    measure("attribution: markouts by step, bursts", one, n=500, names=["5 steps", "30 steps"])


def t_truth(level, nu):
    q = stats.t.ppf(level, nu)
    return q, stats.t.pdf(q, nu) / (1 - level) * (nu + q * q) / (nu - 1)


@pytest.mark.parametrize("n, level", [(250, 0.95), (500, 0.95), (1000, 0.99)])
def test_var_and_cvar(n, level):
    q, z = t_truth(level, 5), stats.norm.ppf(level)
    normal = (z, stats.norm.pdf(z) / (1 - level))
    def one(rng):
        out = []
        for x, (var, cvar) in ((rng.standard_t(5, size=n), q), (rng.normal(size=n), normal)):
            out += [ends(var_interval(x, level=level), var), ends(cvar_interval(x, level=level, n=N, rng=rng), cvar)]
        return out
    measure(f"tail_risk: {level:g} of {n}", one, n=600, names=["VaR, t5", "CVaR, t5", "VaR, normal", "CVaR, normal"])


def test_var_and_cvar_in_clusters():
    "Bad periods come together: AR(1) 0.5, marginal normal with deviation 1.155."
    sd, z = 1 / np.sqrt(0.75), stats.norm.ppf(0.95)
    def one(rng):
        x = ar1(0.5, 1000, rng)
        return [ends(var_interval(x, level=0.95, dependent=True), sd * z),
                ends(cvar_interval(x, level=0.95, dependent=True, n=N, rng=rng), sd * stats.norm.pdf(z) / 0.05)]
    measure("tail_risk: 95 % of 1000 dependent", one, n=600, names=["VaR", "CVaR"])
