"The snapshot backtest: kernel = plain Python, no look-ahead, limits and bounds held, days joined, bad input refused."
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import real
from makerlab.backtest import snapshot as S
from makerlab.backtest.snapshot import Backtest, new_settings, past_sigma, poisson_slow, replay_slow, run_midpath
from makerlab.core import NS_PER_S, DataError, MakerlabError, ParameterError, from_ns, rng_streams
from makerlab.execution.fills import PoissonFills, RelativeFills, TradeFills
from makerlab.models.quoting import STRATEGIES, QuoteParams, params_from_market
from makerlab.schema import PATH_COLUMNS, new_state, strategy, validate_fills

PARAMS = QuoteParams(gamma=1e-3, max_inventory=300.0, kappa=0.01, eta=0.005, A=0.5, phi=1e-8, alpha=1e-4, regime_sigma=(0.01,), regime_gamma=(1e-3, 3e-3),
                     regime_kappa=(0.01, 0.002), regime_eta=(0.005, 0.02))
seeds = st.integers(0, 2**32 - 1)


def market(rng, *, days=1, seconds=400, start="2026-03-02 09:30", trades_a_s=0.5):
    "Quotes and trades on a penny grid, ties and repeated stamps included."
    q, t = [], []
    for d in range(days):
        t0 = (pd.Timestamp(start, tz="America/New_York") + pd.Timedelta(days=d)).as_unit("ns").value
        n, m = 2 * seconds, int(trades_a_s * seconds)
        at = np.sort(np.r_[0, rng.integers(0, seconds * 10, n - 1)]) * (NS_PER_S // 10) + t0
        bid = 10_000 + np.cumsum(rng.integers(-1, 2, n) * (rng.random(n) < 0.2))
        ask = bid + rng.integers(1, 4, n)
        q.append(pd.DataFrame({"time": from_ns(at), "bid": bid / 100, "ask": ask / 100, "bid_size": rng.integers(1, 5, n) * 100.0, "ask_size": rng.integers(1, 5, n) * 100.0}))
        when = np.sort(rng.integers(1, seconds * 10, m)) * (NS_PER_S // 10) + t0
        k = np.searchsorted(at, when, side="left") - 1
        side = rng.choice([-1, 0, 1], m, p=[0.45, 0.1, 0.45])
        price = np.where(side > 0, ask[k], bid[k]) + rng.integers(-1, 2, m) * (rng.random(m) < 0.3)
        t.append(pd.DataFrame({"time": from_ns(when), "price": price / 100, "size": rng.integers(1, 6, m) * 50.0, "side": side.astype(np.int8)}))
    return pd.concat(q, ignore_index=True), pd.concat(t, ignore_index=True)


def experiment(seed, model=None, **kw):
    rng = np.random.default_rng(seed)
    q, t = market(rng, days=kw.pop("days", 1), seconds=kw.pop("seconds", 200))
    return Backtest(q, trades=t, params=kw.pop("params", PARAMS), fills=model or TradeFills(), tick=0.01, window_s=10.0, session_end=None, **kw)


MODELS = st.sampled_from([TradeFills(queue="through"), TradeFills(), TradeFills(crossing=True), TradeFills(cancels_help=True), TradeFills(queue="front")])
LAGS = st.sampled_from([0, 1, 250_000_000, NS_PER_S, 2_700_000_000])


@settings(max_examples=15, deadline=None)
@given(seeds, MODELS, LAGS, st.sampled_from(sorted(STRATEGIES)))
def test_trade_kernel_equals_the_event_queue(seed, model, lag, name):
    b = experiment(seed, model, seconds=60)
    day, rec = b.days[0], PARAMS.record(0.01)
    steps = S._steps_of(b, day, lag)
    setup = new_settings(model, latency_ns=lag, fee_bps=0.3, fee_per_unit=-0.002, cap=300.0, q0=50.0)
    ticks, path, fi, fn, rejected = S._replay_nb(STRATEGIES[name], rec, new_state(), day.t_ns, steps, day.trade_ns, day.trades, setup)
    prints = [(int(t), float(p[0]) * 0.01, float(p[1]), int(p[2]), float(p[3])) for t, p in zip(day.trade_ns, day.trades)]
    venue, rows = replay_slow(STRATEGIES[name], rec, day.t_ns, steps, prints, setup)
    assert np.hstack([ticks, path]).tolist() == [list(map(float, r)) for r in rows]
    assert [(*a, *c) for a, c in zip(fi.tolist(), fn.tolist())] == venue.fills and rejected == (venue.rejected, venue.refused)


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([PoissonFills(A=1.5, k=60.0), PoissonFills(A=1.5, k=60.0, multi=True, trade_qty=30.0), RelativeFills(lambda0=0.8, alpha=2000.0)]), LAGS)
def test_poisson_kernel_equals_its_twin(seed, model, lag):
    b = experiment(seed, model, seconds=60)
    day, rec = b.days[0], PARAMS.record(0.01)
    steps, setup = S._steps_of(b, day, lag), new_settings(model, latency_ns=lag, fee_bps=0.3, cap=300.0)
    streams = rng_streams(2, rng=np.random.default_rng(seed))
    ticks, path, fi, fn, _ = S._poisson_nb(STRATEGIES["as"], rec, new_state(), day.t_ns, steps, streams.copy(), setup)
    venue, rows = poisson_slow(STRATEGIES["as"], rec, day.t_ns, steps, streams.copy(), setup)
    assert np.hstack([ticks, path]).tolist() == [list(map(float, r)) for r in rows]
    assert [(*a, *c) for a, c in zip(fi.tolist(), fn.tolist())] == venue.fills


def scrambled(q, t, cut, rng):
    "The same stamps, another future."
    q, t = q.copy(), t.copy()
    a, b = (q["time"] > cut).to_numpy(), (t["time"] > cut).to_numpy()
    jump = rng.integers(-30, 30, a.sum()) / 100
    for c in ("bid", "ask"):
        q.loc[a, c] = (q.loc[a, c] + jump).round(2)
    q.loc[a, "bid_size"] = rng.permutation(q.loc[a, "bid_size"])
    t.loc[b, "side"] = -t.loc[b, "side"]
    t.loc[b, "price"] = (t.loc[b, "price"] + rng.integers(-5, 6, b.sum()) / 100).round(2)
    t.loc[b, "size"] = rng.permutation(t.loc[b, "size"])
    return q, t


@settings(max_examples=12, deadline=None)
@given(seeds, st.floats(0.2, 0.9), LAGS, st.sampled_from([TradeFills(), TradeFills(cancels_help=True), TradeFills(crossing=True), PoissonFills(A=1.0, k=80.0), RelativeFills(lambda0=0.5)]), st.sampled_from(sorted(STRATEGIES)))
def test_no_look_ahead(seed, where, lag, model, name):
    b = experiment(seed, model, strategy=name, latency_ns=lag)
    t = b.quotes["time"]
    cut = t.iloc[0] + where * (t.iloc[-1] - t.iloc[0])
    q2, t2 = scrambled(b.quotes, b.trades, cut, np.random.default_rng(seed + 1))
    x, y = (e.run(rng=np.random.default_rng(3)) for e in (b, b.variant(quotes=q2, trades=t2)))
    seen, ended = x.path["time"] <= cut, x.path["time"].shift(-1) <= cut
    decided = ["time", "mid", "bid", "ask", "quote_bid", "quote_ask", "bid_qty", "ask_qty", "sigma", "ofi"]
    pd.testing.assert_frame_equal(x.path.loc[seen, decided], y.path.loc[seen, decided], check_exact=True)
    after = ["inventory", "cash", "fees"]
    pd.testing.assert_frame_equal(x.path.loc[ended, after], y.path.loc[ended, after], check_exact=True)
    early = lambda f: f[f["time"] <= cut].reset_index(drop=True)
    pd.testing.assert_frame_equal(early(x.fills), early(y.fills), check_exact=True)
    assert not x.path["mid"].equals(y.path["mid"])


def test_the_look_ahead_test_can_fail():
    b = experiment(7)
    day = b.days[0]
    day.steps[:-10, S.SIGMA] = day.steps[10:, S.MID] * 1e-4  # a leak: sigma knows the mid ten steps on
    x = b.run(rng=np.random.default_rng(3))
    t = b.quotes["time"]
    cut = t.iloc[0] + 0.5 * (t.iloc[-1] - t.iloc[0])
    c = b.variant(**dict(zip(("quotes", "trades"), scrambled(b.quotes, b.trades, cut, np.random.default_rng(8)))))
    c.days[0].steps[:-10, S.SIGMA] = c.days[0].steps[10:, S.MID] * 1e-4
    y = c.run(rng=np.random.default_rng(3))
    seen = x.path["time"] <= cut
    assert not x.path.loc[seen, "sigma"].equals(y.path.loc[seen, "sigma"])


@settings(max_examples=12, deadline=None)
@given(seeds, LAGS, st.floats(20, 500), st.sampled_from([TradeFills(queue="front"), PoissonFills(A=3.0, k=10.0), PoissonFills(A=3.0, k=10.0, multi=True, trade_qty=70.0)]))
def test_limits_bounds_and_identity(seed, lag, cap, model):
    r = experiment(seed, model, latency_ns=lag, max_inventory=cap, days=2, seconds=100, fee_bps=0.5, fee_per_unit=-0.001, overnight="carry").run(rng=np.random.default_rng(seed))
    assert r.path["inventory"].abs().max() <= cap * (1 + 1e-12)
    inside = r.fills[r.fills["maker"]]
    if len(inside):
        q = (inside["side"] * inside["qty"]).cumsum()
        assert q.abs().max() <= cap + 1e-6 and q.iloc[-1] == pytest.approx(r.path["inventory"].iloc[-1])
    assert abs(r.attribution.residual) <= 1e-9 * max(r.attribution.turnover, 1.0)
    assert r.attribution.final_cash == pytest.approx(r.path["cash"].iloc[-1], abs=1e-6)
    assert r.attribution.fees == pytest.approx(r.path["fees"].iloc[-1], abs=1e-9)
    assert list(r.path.columns) == list(PATH_COLUMNS)
    validate_fills(r.fills)
    both = r.path.dropna(subset=["quote_bid", "quote_ask"])
    assert (both["quote_bid"] < both["quote_ask"]).all() and (both["quote_bid"] < both["ask"]).all() and (both["quote_ask"] > both["bid"]).all()


@settings(max_examples=15, deadline=None)
@given(seeds, LAGS)
def test_fills_never_exceed_prints_and_come_after_the_decision(seed, lag):
    b = experiment(seed, TradeFills(queue="front"), latency_ns=lag, overnight="carry")
    r, t = b.run(rng=np.random.default_rng(0)), b.trades
    for side in (1, -1):
        assert r.fills.loc[r.fills["side"] == side, "qty"].sum() <= t.loc[t["side"] == -side, "size"].sum()
    step_time = r.path["time"].to_numpy()[r.fills["step"]]
    assert (r.fills["time"].to_numpy() > step_time).all()
    first = r.path.loc[r.path["bid_qty"] + r.path["ask_qty"] > 0, "time"]
    if len(first) and len(r.fills):
        assert r.fills["time"].iloc[0] > first.iloc[0] + pd.Timedelta(lag, unit="ns")


def test_queue_rules_are_ordered_on_a_day():
    b = experiment(5, strategy="naive", seconds=400, params=PARAMS.replace(max_inventory=1e9, half_spread=0.005), overnight="carry")
    traded = [b.variant(fills=TradeFills(queue=q)).run(rng=np.random.default_rng(0)).fills["qty"].sum() for q in ("through", "behind", "front")]
    assert 0 < traded[0] < traded[1] < traded[2]


def test_days_flat_and_carried():
    flat, carry = (experiment(11, days=3, overnight=o, strategy="naive", params=PARAMS.replace(max_inventory=5000.0)).run(rng=np.random.default_rng(0)) for o in ("flat", "carry"))
    day = flat.path["time"].dt.tz_convert("America/New_York").dt.date
    ends = flat.path.groupby(day).tail(1)
    assert len(ends) == 3 and (ends["inventory"] == 0).all() and flat.info["days"] == ["2026-03-02", "2026-03-03", "2026-03-04"]
    closing = flat.fills[~flat.fills["maker"]]
    assert 1 <= len(closing) <= 3 and (closing["price"] == closing["mid"]).all() and (closing["fee"] > 0).all()
    assert carry.fills["maker"].all() and carry.path["inventory"].iloc[-1] != 0
    assert (flat.path["step"] == np.arange(len(flat.path))).all()
    free = experiment(11, days=3, strategy="naive", params=PARAMS.replace(max_inventory=5000.0), close_cost_bps=0.0).run(rng=np.random.default_rng(0))
    assert free.attribution.total == pytest.approx(flat.attribution.total + closing["fee"].sum())
    assert len(flat.markouts) == 4 * flat.fills["maker"].sum()


def test_fees_and_rebates():
    kw = dict(strategy="naive", overnight="carry")
    none, paid = experiment(3, **kw).run(rng=np.random.default_rng(0)), experiment(3, fee_bps=1.0, fee_per_unit=-0.003, **kw).run(rng=np.random.default_rng(0))
    assert none.path["fees"].iloc[-1] == 0 and len(none.fills) == len(paid.fills)
    want = (paid.fills["price"] * 1e-4 - 0.003) * paid.fills["qty"]
    assert np.allclose(paid.fills["fee"], want, atol=1e-12) and none.attribution.total - paid.attribution.total == pytest.approx(want.sum())


def test_same_seed_same_run_and_variant_shares_days():
    b = experiment(2, PoissonFills(A=1.0, k=50.0))
    x, y, z = (b.run(rng=np.random.default_rng(s)) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(x.path, y.path)
    assert not x.path.equals(z.path) and x.intervals == y.intervals
    assert b.variant(strategy="naive").days is b.days and b.variant(every_s=2.0).days is not b.days


def test_latency_delays_a_fill():
    t0 = pd.Timestamp("2026-03-02 10:00", tz="America/New_York")
    q = pd.DataFrame({"time": pd.date_range(t0, periods=5, freq="s").tz_convert("UTC"), "bid": 99.99, "ask": 100.01, "bid_size": 100.0, "ask_size": 100.0})
    t = pd.DataFrame({"time": [q["time"][2] + pd.Timedelta("400ms")], "price": [99.95], "size": [30.0], "side": np.array([-1], dtype=np.int8)})
    run = lambda lag: Backtest(q, trades=t, strategy="naive", tick=0.01, window_s=10.0, latency_ns=lag).run(rng=np.random.default_rng(0)).fills
    assert run(1_399_999_999)["qty"].iloc[0] == 30.0  # the first mark is one second in, the print 1.4 s after it
    assert not run(1_400_000_000)["maker"].any()  # live strictly after, not at


def test_trades_without_side_are_signed_by_lee_ready():
    b = experiment(4, strategy="naive")
    unsigned = b.trades[b.trades["side"] != 0].drop(columns="side").reset_index(drop=True)
    r = b.variant(trades=unsigned).run(rng=np.random.default_rng(0))
    assert len(r.fills) > 0 and r.info["trades_without_side"] <= 5


def test_no_quote_while_burning_in():
    r = experiment(6, strategy="as").run(rng=np.random.default_rng(0))
    assert r.path.loc[r.path["sigma"].isna(), ["quote_bid", "quote_ask"]].isna().all().all() and r.path["sigma"].isna().any()


def test_midpath():
    rng = np.random.default_rng(0)
    mid = pd.DataFrame({"mid": 100 + 0.05 * np.cumsum(rng.normal(size=2000))})
    p = QuoteParams(gamma=0.01, k=2.0, qty=1.0, max_inventory=5.0, max_spread_bps=math.inf, min_spread_bps=0.0)
    r = run_midpath(mid, A=1.0, k=2.0, sigma=0.05, params=p, dt_s=1.0, rng=rng)
    assert r.path["inventory"].abs().max() <= 5 and len(r.fills) > 20 and abs(r.attribution.residual) < 1e-9 * r.attribution.turnover
    assert {"spread_capture", "inventory_pnl", "fees", "total", "residual"} <= set(r.summary().index)
    guess = run_midpath(mid, A=1.0, k=2.0, params=p, dt_s=1.0, rng=np.random.default_rng(1))
    assert guess.path["quote_bid"].iloc[:30].isna().all() and guess.path["quote_bid"].iloc[30:60].notna().any()
    timed = run_midpath(mid.assign(time=pd.date_range("2026-03-02", periods=len(mid), freq="2s", tz="UTC")), A=1.0, k=2.0, sigma=0.05, params=p, rng=np.random.default_rng(1))
    assert timed.info["every_s"] == 2.0
    more = run_midpath(mid, A=1.0, k=2.0, sigma=0.05, params=p, dt_s=1.0, multi=True, rng=np.random.default_rng(1))
    assert more.fills["qty"].max() <= 1.0


def test_past_sigma_does_not_look_ahead():
    rng = np.random.default_rng(1)
    mid = np.cumsum(rng.normal(size=300)) + 100
    full, part = past_sigma(mid, np.ones(299)), past_sigma(mid[:150], np.ones(149))
    assert np.array_equal(full[:150], part, equal_nan=True) and np.isnan(full[:30]).all() and full[-1] == pytest.approx(1.0, rel=0.2)


def test_save_writes_whole_reports(tmp_path):
    files = experiment(1, days=2).run(rng=np.random.default_rng(0)).save(tmp_path / "r")
    names = {f.name for f in files}
    assert {"backtest_timeseries.csv", "fills.csv", "backtest_summary.md", "report.html", "manifest.json"} <= names


def bad(q, t):
    time = q["time"]
    yield DataError, "at least 1", lambda: Backtest(q.iloc[:0], trades=t, tick=0.01)
    yield DataError, "at least 2", lambda: Backtest(q.iloc[:1], trades=t, tick=0.01)
    yield DataError, "bid_size", lambda: Backtest(q.drop(columns="bid_size"), trades=t, tick=0.01)
    yield DataError, "bid is not", lambda: Backtest(q.assign(bid=q["bid"].where(q.index != 3)), trades=t, tick=0.01)
    yield DataError, "bid is not", lambda: Backtest(q.assign(bid=-1.0), trades=t, tick=0.01)
    yield DataError, "crossed", lambda: Backtest(q.assign(bid=q["ask"] + 1), trades=t, tick=0.01)
    yield DataError, "unsorted", lambda: Backtest(q.iloc[::-1].reset_index(drop=True), trades=t, tick=0.01)
    yield DataError, "zone", lambda: Backtest(q.assign(time=time.dt.tz_localize(None)), trades=t, tick=0.01)
    yield DataError, "price", lambda: Backtest(q, trades=t.assign(price=math.inf), tick=0.01)
    yield DataError, "size", lambda: Backtest(q, trades=t.assign(size=0.0), tick=0.01)
    yield ParameterError, "trades = None", lambda: Backtest(q)
    yield ParameterError, "trades = None", lambda: Backtest(q, trades=t.iloc[:0])
    yield ParameterError, "every_s = 0", lambda: Backtest(q, trades=t, every_s=0)
    yield ParameterError, "every_s = -1", lambda: Backtest(q, trades=t, every_s=-1)
    yield ParameterError, "horizon_s = 0", lambda: Backtest(q, trades=t, horizon_s=0)
    yield ParameterError, "max_inventory = nan", lambda: Backtest(q, trades=t, max_inventory=math.nan)
    yield ParameterError, "latency_ns", lambda: Backtest(q, trades=t, latency_ns=-5)
    yield ParameterError, "strategy", lambda: Backtest(q, trades=t, strategy="lucky")
    yield ParameterError, "strategy", lambda: Backtest(q, trades=t, strategy=7)
    yield ParameterError, "overnight", lambda: Backtest(q, trades=t, overnight="maybe")
    yield ParameterError, "variants", lambda: Backtest(q, trades=t, variants=0)
    yield ParameterError, "session_end", lambda: Backtest(q, trades=t, tick=0.01, session_end="09:00")
    p = QuoteParams(qty=1.0)
    for kw, what in ((dict(A=0.0, k=1.0), "A = 0"), (dict(A=1.0, k=math.nan), "k = nan"), (dict(A=1.0, k=1.0, sigma=-1.0), "sigma = -1"), (dict(A=1.0, k=1.0, dt_s=0.0), "dt_s = 0"), (dict(A=1.0, k=1.0, strategy="as-ofi"), "strategy")):
        yield ParameterError, what, lambda kw=kw: run_midpath(np.full(50, 100.0), params=p, rng=np.random.default_rng(0), **({"dt_s": 1.0} | kw))
    yield DataError, "at least 2", lambda: run_midpath(np.array([100.0]), A=1.0, k=1.0, params=p, dt_s=1.0, rng=np.random.default_rng(0))
    yield DataError, "increase", lambda: run_midpath(pd.DataFrame({"mid": [1.0, 1.0], "time": [time[0], time[0]]}), A=1.0, k=1.0, params=p, rng=np.random.default_rng(0))


def test_bad_input_is_refused_in_words():
    q, t = market(np.random.default_rng(0), seconds=60)
    for error, words, make in bad(q, t):
        with pytest.raises(MakerlabError) as e:
            b = make()
            b.run(rng=np.random.default_rng(0))
        assert isinstance(e.value, error) and words in str(e.value), f"wanted {words!r} in: {e.value}"


# ---- careless strategies, odd markets, the queue, quotes that cross

def loop(decide, model, prints, *, n=6, steps=None, lag=0, cap=300.0, params=None):
    "A toy market 99.95 at 100.05 through kernel and twin, which must agree; returns both."
    t = (np.arange(n) * NS_PER_S).astype(np.int64)
    if steps is None:
        steps = np.full((n, 12), 500.0)
        steps[:, [S.BID, S.V_BID]], steps[:, [S.ASK, S.V_ASK]], steps[:, S.MID], steps[:, S.SIGMA], steps[:, S.OFI] = 99.95, 100.05, 100.0, 0.01, 0.0
    setup, rec = new_settings(model, latency_ns=lag, cap=cap), (params or PARAMS).record(0.01)
    arrays = np.array([p[0] for p in prints], np.int64), np.array([[p[1] / 0.01, p[2], p[3], p[4]] for p in prints], np.float64).reshape(-1, 4)
    out = S._replay_nb(decide, rec, new_state(), t, steps, *arrays, setup)
    venue, rows = replay_slow(decide, rec, t, steps, prints, setup)
    assert np.hstack([out[0], out[1]]).tolist() == [list(map(float, r)) for r in rows] and out[4] == (venue.rejected, venue.refused)
    assert [(*a, *c) for a, c in zip(out[2].tolist(), out[3].tolist())] == venue.fills
    return out, venue


@strategy
def from_params(state, params):
    "Whatever x0 to x3 say."
    return int(params.x0), int(params.x1), params.x2, params.x3


PRINTS = [(int((i + 0.5) * NS_PER_S), p, 70.0, a, 100.0) for i in range(5) for p, a in ((99.90, -1), (100.10, 1))]


@pytest.mark.parametrize(("x", "refused", "sides"), [((9999, 10001, 100.0, 100.0), 0, {1, -1}), ((10001, 9999, 100.0, 100.0), 6, set()), ((10000, 10000, 100.0, 100.0), 6, set()),
                                                     ((9999, 10001, math.nan, 100.0), 6, {-1}), ((9999, 10001, -5.0, 100.0), 6, {-1}), ((9999, 10001, math.inf, 100.0), 6, {-1}),
                                                     ((9999, 10001, math.nan, math.nan), 6, set()), ((10001, 9999, 100.0, 0.0), 0, {1})])
def test_careless_strategies_are_refused_and_counted(x, refused, sides):
    p = PARAMS.replace(**dict(zip(("x0", "x1", "x2", "x3"), x)))
    out, _ = loop(from_params, TradeFills(queue="front"), PRINTS, params=p)
    assert out[4] == (0, refused) and set(out[2][:, 2]) == sides and np.isfinite(out[1]).all() and (out[1][:, :2] >= 0).all()


def test_the_refusal_can_fail(monkeypatch):
    "Without the guard the twin trades with itself at a loss on every pair of prints."
    monkeypatch.setattr(S.SlowVenue, "wish", lambda self, *quote: quote)
    t, steps = (np.arange(6) * NS_PER_S).astype(np.int64), np.full((6, 12), 500.0)
    steps[:, [S.BID, S.V_BID]], steps[:, [S.ASK, S.V_ASK]], steps[:, S.MID] = 99.95, 100.05, 100.0
    rec = PARAMS.replace(x0=10001, x1=9999, x2=100.0, x3=100.0).record(0.01)
    venue, _ = replay_slow(from_params, rec, t, steps, PRINTS, new_settings(TradeFills(queue="front"), cap=300.0))
    assert len(venue.fills) == 10 and venue.cash < 0


@pytest.mark.parametrize("model", [TradeFills(queue="front"), TradeFills(queue="front", crossing=True), PoissonFills(A=50.0, k=1.0), PoissonFills(A=50.0, k=1.0, multi=True, trade_qty=70.0)])
def test_the_loop_holds_the_cap_whatever_is_asked(model):
    greedy = PARAMS.replace(x0=0.0, x1=20_000.0, x2=1e6, x3=0.0)  # a huge bid, deep; then at the touch
    b = experiment(3, model, strategy=from_params, params=greedy.replace(x0=9_990.0), max_inventory=130.0, overnight="carry")
    r = b.run(rng=np.random.default_rng(0))
    assert r.path["inventory"].abs().max() <= 130.0
    free = b.variant(max_inventory=1e9).run(rng=np.random.default_rng(0))
    if not isinstance(model, TradeFills):
        assert free.path["inventory"].abs().max() > 130.0  # the cap did bind


def test_a_crossing_order_is_rejected_on_arrival_and_counted():
    out, _ = loop(from_params, TradeFills(queue="front"), PRINTS, params=PARAMS.replace(x0=10_005.0, x1=10_006.0, x2=100.0, x3=0.0))
    assert out[4] == (5, 0) and len(out[2]) == 0
    fine, _ = loop(from_params, TradeFills(queue="front"), PRINTS, params=PARAMS.replace(x0=10_004.0, x1=10_006.0, x2=100.0, x3=0.0))
    assert fine[4] == (0, 0) and len(fine[2]) == 5


def moving(best_bids, sizes):
    "Steps whose best bid moves in ticks; the ask stays far away."
    s = np.full((len(best_bids), 12), 500.0)
    b = np.array(best_bids) * 0.01
    s[:, S.BID] = s[:, S.V_BID] = b
    s[:, S.ASK] = s[:, S.V_ASK] = 100.50
    s[:, S.MID], s[:, S.SIGMA], s[:, S.OFI], s[:, S.V_BID_SIZE] = 100.2, 0.01, 0.0, sizes
    return s


at_touch = PARAMS.replace(x0=10_000.0, x1=10_040.0, x2=100.0, x3=0.0)


def sells(*sizes):
    return [(int((i + 0.5) * NS_PER_S), 100.0, float(v), -1, 100.2) for i, v in enumerate(sizes) if v]


def test_queue_when_the_touch_leaves_and_returns():
    away, shown = [10_000, 10_003, 10_000, 9_998, 10_000, 10_000], [500.0, 900.0, 200.0, 300.0, 700.0, 700.0]
    got = lambda model: loop(from_params, model, sells(100, 0, 0, 0, 450), n=6, steps=moving(away, shown), params=at_touch)[0][3][:, 1].tolist()
    assert got(TradeFills()) == [50.0]  # 500 ahead, 100 + 450 printed: neither improvement nor retreat of the touch helps or hurts us
    assert got(TradeFills(cancels_help=True)) == [100.0]  # alone once the touch was behind us
    assert got(TradeFills(queue="through")) == [] and got(TradeFills(queue="front")) == [100.0, 100.0]


def test_partly_filled_and_asked_for_again_joins_the_back():
    steps = moving([10_000] * 6, [100.0, 100.0, 250.0, 250.0, 250.0, 250.0])
    out, _ = loop(from_params, TradeFills(), sells(140, 100, 240, 20, 10), n=6, steps=steps, params=at_touch)
    # 40 of 100 fill in step 0; 100 shares again stand behind 100; step 1 takes those; the order is kept whole, so its turn has come
    assert out[2][:, 0].tolist() == [0, 2] and out[3][:, 1].tolist() == [40.0, 100.0]
    shrunk, _ = loop(from_params, TradeFills(), sells(140, 100, 240, 20, 10), n=6, steps=steps, params=at_touch.replace(x2=60.0))
    assert shrunk[3][0, 1] == 40.0


def test_old_orders_are_live_during_latency():
    s = moving([10_000] * 6, [0.0] * 6)
    fills = lambda lag: loop(naive_at_mid, TradeFills(), [(int(2.2 * NS_PER_S), 99.0, 30.0, -1, 100.2)], n=6, steps=s, lag=lag)[0]
    s[2:, S.MID] += 0.01
    early, late = fills(100_000_000), fills(300_000_000)
    assert early[3][0, 0] == pytest.approx(100.01) and late[3][0, 0] == pytest.approx(100.00)  # after the effect: the new price; before it: the old one


@strategy
def naive_at_mid(state, params):
    "A bid 20 ticks under the mid."
    return round(state.mid / params.tick) - 20, 20_000, 100.0, 0.0


def test_crossing_quotes_fill_and_look_ahead_at_nothing():
    b = experiment(5, strategy="naive", seconds=300, params=PARAMS.replace(max_inventory=1e9, half_spread=0.005), overnight="carry", latency_ns=250_000_000)
    plain, more = b.run(rng=np.random.default_rng(0)), b.variant(fills=TradeFills(crossing=True)).run(rng=np.random.default_rng(0))
    assert more.fills["qty"].sum() > plain.fills["qty"].sum() and "cross" in more.info["fills"] and "cross" not in plain.info["fills"]
    t = b.quotes["time"]
    cut = t.iloc[len(t) // 2]
    q2, t2 = scrambled(b.quotes, b.trades, cut, np.random.default_rng(1))
    y = b.variant(quotes=q2, trades=t2, fills=TradeFills(crossing=True)).run(rng=np.random.default_rng(0))
    early = lambda f: f[f["time"] <= cut].reset_index(drop=True)
    pd.testing.assert_frame_equal(early(more.fills), early(y.fills), check_exact=True)


def quiet(start, *, rows=5, freq="s", tz="America/New_York"):
    "A market that does not move."
    at = pd.date_range(pd.Timestamp(start, tz=tz), periods=rows, freq=freq).tz_convert("UTC")
    return pd.DataFrame({"time": at, "bid": 99.99, "ask": 100.01, "bid_size": 0.0, "ask_size": 0.0})


def one_sell(at, price=99.99, size=30.0):
    return pd.DataFrame({"time": [at], "price": [price], "size": [size], "side": np.array([-1], dtype=np.int8)})


def test_zero_displayed_size_means_nobody_ahead_and_early_prints_meet_nobody():
    q = quiet("2026-03-02 10:00")
    run = lambda t: Backtest(q, trades=t, strategy="naive", tick=0.01, window_s=10.0, overnight="carry").run(rng=np.random.default_rng(0)).fills
    assert run(one_sell(q["time"][2] + pd.Timedelta("400ms")))["qty"].tolist() == [30.0]
    assert len(run(one_sell(q["time"][0] - pd.Timedelta("1s")))) == 0 and len(run(one_sell(q["time"][0]))) == 0


def test_daylight_saving_half_sessions_and_a_coarse_clock():
    days = [quiet(f"2026-03-0{d} 15:59:50", rows=10) for d in (6, 9)]  # the clocks change on the 8th
    q = pd.concat(days, ignore_index=True)
    t = one_sell(q["time"][3] + pd.Timedelta("400ms"))
    r = Backtest(q, trades=t, tick=0.01, window_s=3.0)
    for day in r.days:
        steps = S._steps_of(r, day, 0)
        assert steps[0, S.TAU] == pytest.approx(10.0 - (day.t_ns[0] - day.book_ns[0]) / NS_PER_S)
    with pytest.raises(ParameterError, match="13:00"):
        r.variant(session_end="13:00").run(rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="at least 2"):
        r.variant(every_s=1e5, window_s=1e6).run(rng=np.random.default_rng(0))


def test_quotes_off_the_grid_do_not_cross():
    b = experiment(8, strategy="naive", params=PARAMS.replace(half_spread=0.001, min_spread_bps=0.0))
    r = b.variant(tick=0.05).run(rng=np.random.default_rng(0))
    both = r.path.dropna(subset=["quote_bid", "quote_ask"])
    assert len(both) and (both["quote_bid"] < both["ask"]).all() and (both["quote_ask"] > both["bid"]).all()


def test_a_latency_beyond_the_clock_is_refused_and_a_long_one_never_fills():
    for lag in (10**18, 8 * 10**18):
        with pytest.raises(ParameterError, match="latency_ns"):
            TradeFills(latency_ns=lag)
        with pytest.raises(ParameterError, match="latency_ns"):
            experiment(1, latency_ns=lag)
    for model in (TradeFills(queue="front"), PoissonFills(A=5.0, k=1.0)):
        assert len(experiment(1, model, latency_ns=10**16, strategy="naive").run(rng=np.random.default_rng(0)).fills) == 0


@pytest.mark.realdata
def test_a_real_day_costs_more_than_it_captures():
    "AAPL, 21 June 2012: a maker at the usual half-spread is run over; Poisson fills would never say so."
    from makerlab.data.lob import load_lobster

    book = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    quotes, trades = book.quotes(), book.trades()
    half = float((quotes["ask"] - quotes["bid"]).median() / 2)
    r = Backtest(quotes, trades=trades, params=params_from_market(half_spread=half, sigma=0.02, tau_s=11_700), latency_ns=5_000_000).run(rng=np.random.default_rng(0))
    table = r.summary()
    assert len(r.fills) > 1000 and abs(r.attribution.residual) <= 1e-9 * r.attribution.turnover
    assert table.loc["spread_capture", "lo"] > 0 and table.loc["adverse_selection_10s", "lo"] > 0.03 and table.loc["total", "hi"] < 0
