"World 5: the twin, the counterfactual, what the strategy sees, refusals."
import dataclasses

import numpy as np
import numba
import pandas as pd
import pytest

import makerlab.backtest.market as m
from makerlab.backtest.market import MarketRun, _play, cluster_mean, impact_around_fills, market_slow, recorded, selection_against_truth, without_you
from makerlab.core import NS_PER_S, DataError, ParameterError, to_ns
from makerlab.data.events import CANCEL, FILL, MODIFY, TRADE, check_events
from makerlab.execution.matching import TICKS
from makerlab.execution.order_flow import N_FILLS, OURS, PRESETS, START_NS, new_flow
from makerlab.features.volatility import features
from makerlab.models.quoting import QuoteParams
from makerlab.schema import strategy

LARGE = PRESETS["large-tick"]
SMALL = dataclasses.replace(LARGE, max_orders=512, warmup_s=10, seed_orders=15)
TINY = dataclasses.replace(LARGE, max_orders=256, warmup_s=2, seed_orders=8)


@strategy
def silent(state, params):
    return 0, 0, 0.0, 0.0


@strategy
def late(state, params):
    tick = int(round(state.bid / params.tick))
    return tick, tick + 1, (params.qty if state.t_s >= 60.0 else 0.0), 0.0


@strategy
def breathing(state, params):
    "Sizes that shrink and grow at the same price, now and then a cross."
    bid, ask = int(round(state.bid / params.tick)), int(round(state.ask / params.tick))
    beat = int(state.t_s * 2) % 7
    size = params.qty * (1.0 + (5 - beat if beat < 5 else 4.0))
    return (ask if beat == 6 else bid), ask, size, (0.0 if beat in (3, 6) else size)


def joiner(lots=1, *, flow="large-tick", seed=1, seconds=120.0, **more):
    p = PRESETS.get(flow, LARGE) if isinstance(flow, str) else flow
    params = QuoteParams(half_spread=0.5 * p.tick_size, qty=lots * p.lot_size, max_inventory=5 * lots * p.lot_size, min_spread_bps=0.0)
    return MarketRun(**{"flow": flow, "strategy": "naive", "params": params, "seed": seed, "seconds": seconds} | more)


def same_as_slow(run):
    slow, (_, desk, tape) = market_slow(run), _play(run)
    fast = [tuple(int(x) for x in r) for r in desk.log[: desk.x[m.N_LOG], [0, 1, 5, 4]] if r[1] != m.REFUSED]
    assert fast == [tuple(int(x) for x in r) for r in slow.log]
    np.testing.assert_array_equal(slow.flow.our_fills[: slow.flow.st[N_FILLS]], tape["fills"])
    np.testing.assert_array_equal(slow.mids, tape["mids"])
    tick, lot = run.made_of.tick_size, run.made_of.lot_size
    np.testing.assert_array_equal(np.array(slow.path)[:, :4], np.round(desk.steps[:, [m.BID, m.ASK, m.BID_SIZE, m.ASK_SIZE]] / [tick, tick, lot, lot]))
    look = np.array(slow.signals)
    np.testing.assert_allclose(desk.steps[look[:, 0].astype(int)][:, [m.SIGMA, m.OFI]], look[:, 1:], rtol=1e-9, atol=1e-12)
    return slow, desk, tape


@pytest.mark.parametrize("seed", range(1, 7))
def test_the_kernel_is_its_twin(seed):
    rng = np.random.default_rng(seed)
    run = MarketRun(flow=SMALL, strategy=[breathing, "as-ofi", "naive"][seed % 3], params=QuoteParams(gamma=2e-5, k=150, kappa=0.003, half_spread=0.005, qty=300, max_inventory=4000, min_spread_bps=0.0),
                    seconds=40, seed=seed, every_s=0.5, feed_latency_ns=int(rng.integers(0, 900_000_000)), order_latency_ns=int(rng.integers(0, 900_000_000)), window_s=6, record=False)
    slow, _, tape = same_as_slow(run)
    assert len(slow.log) > 8 and (len(tape["fills"]) > 0 or seed == 1)


@pytest.mark.parametrize("seed", (1, 2))
def test_the_twin_at_the_limit(seed):
    params = QuoteParams(half_spread=0.005, qty=300, max_inventory=300, min_spread_bps=0.0)
    slow, _, tape = same_as_slow(joiner(3, flow=SMALL, params=params, seed=seed, seconds=60.0, every_s=0.5, window_s=6, record=False, order_latency_ns=400_000_000, feed_latency_ns=300_000_000))
    assert len(tape["fills"]) > 3 and max(np.abs(np.cumsum(tape["fills"][:, 1] * tape["fills"][:, 3]))) == 3


def test_sizes_shrink_in_place_and_grow_at_the_end():
    run = MarketRun(flow=SMALL, strategy=breathing, params=QuoteParams(qty=200, max_inventory=1e5), seconds=90, seed=3, every_s=0.5)
    r = run.run()
    assert {"new", "modify", "cancel", "reject"} <= set(r.orders["action"])
    rows = r.market.tape["rows"]
    less = rows[rows[:, 0] == MODIFY]
    assert len(less) and (less[:, 6] == OURS).all()
    assert check_events(r.market.events) == []


def _worst_case(run):
    "The largest position that the market could have forced on us at any moment, lots: position, orders that rest, and orders under way, by side."
    r = run.variant(record=True).run()
    lot, delay = r.run.made_of.lot_size, r.run.order_latency_ns
    steps = []  # arrival (ns), order of ties, side, lots added to what may be filled, lots added to the position
    for row in r.orders.itertuples():
        at = int(row.time.value)
        if row.action == "new":
            steps.append((at, 2, row.side, row.qty / lot, 0.0))  # from the moment it is sent
        elif row.action == "reject":
            steps.append((at, 0, row.side, -row.qty / lot, 0.0))
    tape = r.market.tape["rows"]
    for kind, side, ns, _, lots, number, agent in tape[tape[:, 6] == OURS]:
        if kind == CANCEL:
            steps.append((START_NS + int(ns), 0, side, -float(lots), 0.0))
        elif kind == FILL:
            steps.append((START_NS + int(ns), 0, side, -float(lots), side * float(lots)))
        elif kind == MODIFY:
            raise AssertionError("this run should not change sizes in place")
    assert delay >= 0
    position, may, worst = 0.0, {1: 0.0, -1: 0.0}, 0.0
    for _, _, side, more, filled in sorted(steps):
        may[side] += more
        position += filled
        worst = max(worst, max(s * position + may[s] for s in (1, -1)))
    return worst, r.fills.loc[r.fills["maker"]]


@pytest.mark.parametrize(("lots", "cap", "order_ms", "feed_ms"), [(5, 1, 500, 500), (5, 1, 900, 600), (20, 1, 50, 0), (5, 2, 700, 0), (3, 1, 0, 400)])
def test_the_limit_holds_though_everything_of_ours_is_filled(lots, cap, order_ms, feed_ms):
    for seed in (1, 2, 3):
        run = joiner(lots, seed=seed, seconds=300.0, order_latency_ns=order_ms * 1_000_000, feed_latency_ns=feed_ms * 1_000_000, max_inventory=100.0 * lots * cap, overnight="carry")
        worst, fills = _worst_case(run)
        position = np.cumsum(fills["side"] * fills["qty"]) / 100
        assert np.abs(position).max() <= lots * cap and len(fills) > 20
        assert worst <= lots * cap + 1e-9, (seed, worst)


@pytest.mark.nojit
@pytest.mark.bounds
def test_twin_on_a_tiny_market():
    slow, _, _ = same_as_slow(MarketRun(flow=TINY, strategy="naive", params=QuoteParams(half_spread=0.005, qty=300, max_inventory=3000, min_spread_bps=0.0), seconds=12, seed=2, every_s=0.5,
                                        order_latency_ns=20_000_000, window_s=3, record=False))
    assert len(slow.log) > 2


@pytest.mark.bounds
def test_small_buffers_change_nothing():
    run = joiner(3, seconds=60.0, flow=SMALL)
    _, desk, tape = _play(run)
    _, desk2, tape2 = _play(run, rows=40)
    for name in tape:
        np.testing.assert_array_equal(tape[name], tape2[name])
    np.testing.assert_array_equal(desk.steps, desk2.steps)


def test_the_declared_types_are_those_of_the_arrays():
    flow = new_flow(TINY, seed=1)
    run = joiner(1, flow=TINY, seconds=5.0)
    assert numba.typeof(flow) == m.FLOW_TYPE
    assert numba.typeof(m._new_desk(run, flow, 16)) == m.DESK_TYPE


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_silent_strategy_changes_nothing(name):
    p = PRESETS[name]
    r = MarketRun(flow=name, strategy=silent, params=QuoteParams(qty=p.lot_size), seconds=60, seed=11).run()
    assert r.market.events.digest() == recorded(p, seconds=60, seed=11).digest()
    assert not len(r.fills) and not len(r.orders)
    assert not r.without().difference(0.1).any()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_difference_before_our_first_order(seed):
    run = MarketRun(flow="large-tick", strategy=late, params=QuoteParams(qty=3000, max_inventory=30000), seconds=120, seed=seed, order_latency_ns=5_000_000)
    case = run.run().without()
    assert case.first_order_ns == START_NS + 60 * NS_PER_S + 5_000_000
    theirs, ours = case.market.tape["rows"], case.results.market.tape["rows"]
    n = np.searchsorted(theirs[:, 2], case.first_order_ns - START_NS)
    np.testing.assert_array_equal(theirs[:n], ours[:n])
    assert not np.array_equal(theirs[n : n + 2000], ours[n : n + 2000])  # and then there is one
    assert (ours[n:, 6] == OURS).any()


def test_no_look_ahead():
    "A longer run with the same seed begins as the shorter one did."
    short, long = joiner(2, seconds=60.0, horizon_s=60.0, overnight="carry").run(), joiner(2, seconds=90.0, horizon_s=60.0, overnight="carry").run()
    n = len(short.path) - 1
    pd.testing.assert_frame_equal(short.path.iloc[:n], long.path.iloc[:n])
    k = int((long.fills["time"] <= short.path["time"].iloc[-1]).sum())
    pd.testing.assert_frame_equal(short.fills, long.fills.iloc[:k])


def test_what_the_strategy_sees_is_without_us():
    r = joiner(20, seconds=300.0).run()
    seen, public = r.quotes(), r.market.quotes()
    assert (seen["bid"] < seen["ask"]).all()
    grid = pd.DatetimeIndex(r.path["time"])
    at = lambda q, c: q[c].to_numpy()[np.searchsorted(to_ns(q["time"]), to_ns(grid), side="right") - 1]
    assert (at(public, "bid") >= at(seen, "bid")).all() and (at(public, "ask") <= at(seen, "ask")).all()
    assert (at(public, "bid_size") > at(seen, "bid_size"))[at(public, "bid") == at(seen, "bid")].any()
    np.testing.assert_allclose(r.path["bid"], at(seen, "bid"))


def test_signals_are_those_of_features():
    for every, feed in ((1.0, 0), (0.5, 200_000_000)):
        r = joiner(2, seconds=180.0, every_s=every, feed_latency_ns=feed, window_s=20.0, ofi_s=2.0).run()
        late_quotes = r.quotes().assign(time=lambda q: q["time"] + pd.Timedelta(feed, "ns"))
        f = features(late_quotes, every_s=every, window_s=20.0, ofi_s=2.0).set_index("time").reindex(pd.DatetimeIndex(r.path["time"]))
        for ours, theirs in (("sigma", "sigma"), ("ofi", "ofi_norm")):
            a, b = r.path[ours].to_numpy()[1:-1], f[theirs].to_numpy()[1:-1]
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_only_the_sum_of_the_delays_counts_for_fills():
    "Looking 40 ms ago and arriving at once is looking now, 40 ms earlier on the clock, and arriving 40 ms later."
    a = joiner(2, seconds=60.0, feed_latency_ns=40_000_000, overnight="carry").run()
    b = joiner(2, seconds=60.0, feed_latency_ns=39_000_000, order_latency_ns=1_000_000, overnight="carry").run()
    assert abs(len(a.fills) - len(b.fills)) <= 0.2 * len(a.fills) + 5
    assert (to_ns(a.fills["time"]) >= START_NS + NS_PER_S).all()  # nothing can be decided before something was seen


def test_the_accounts():
    r = joiner(5, seconds=300.0, fee_bps=-0.2).run()
    f, lots = r.fills, r.fills["qty"] / 100
    maker = f[f["maker"]]
    np.testing.assert_allclose(lots, lots.round())
    assert r.path["inventory"].iloc[-1] == 0 and abs(r.attribution.residual) < 1e-8
    np.testing.assert_allclose(maker["fee"], -0.2e-4 * maker["price"] * maker["qty"])
    assert (maker["counterparty"] != "").all() and set(maker["counterparty"]) <= {"noise", "informed", "value", "momentum"}
    assert (maker["informed"] == (maker["counterparty"] == "informed")).all()
    assert (f.groupby("order_id")["qty"].sum().loc[lambda s: s.index >= 0] <= 500 + 1e-9).all()
    assert (r.path["inventory"].abs() <= 2500).all()
    tape = r.market.tape["trades"]  # the venue's record agrees
    assert tape[tape[:, 7] == OURS, 3].sum() * 100 == pytest.approx(maker["qty"].sum())
    again = r.run.run()
    assert again.digest == r.digest
    assert r.run.variant(seed=2).run().digest != r.digest


def test_events_with_us_hold_our_orders_and_replay():
    r = joiner(5, seconds=120.0).run()
    e = r.market.events
    assert check_events(e) == []
    assert int((e.kind == TRADE).sum()) == int((e.kind == FILL).sum()) == len(r.market.tape["trades"])


def test_partial_fills_keep_the_rest_in_its_place():
    r = joiner(20, seconds=300.0).run()
    per = r.fills[r.fills["maker"]].groupby("order_id")["qty"].agg(["size", "sum"])
    assert (per["size"] > 1).sum() > 5
    reused = r.orders[(r.orders["action"] == "new")]
    assert reused["order_id"].is_unique


def test_the_informed_cost_us_and_noise_pays():
    runs = [joiner(1, seconds=600.0, seed=s).run() for s in range(1, 9)]
    f = pd.concat([r.fills[r.fills["maker"]] for r in runs])
    earned = (f["side"] * (f["value"] - f["price"])).groupby(f["counterparty"]).mean() * 100
    assert earned["informed"] < 0 < earned["noise"]
    t = selection_against_truth(runs, horizons_s=(0.1, 10))
    assert t.loc[0.1, "error_hi"] < 0  # short markouts miss adverse selection
    assert t.loc[10, "error_lo"] < 0.02


def test_impact_table():
    cases = [joiner(5, seconds=300.0, seed=s).run().without() for s in range(1, 6)]
    t = impact_around_fills(cases, horizons_s=(-1e-9, 0, 60))
    assert t.loc[-1e-9, "lo"] > 0
    assert (t["fills"] > 100).all() and t.loc[60, "fills"] < t.loc[0, "fills"]
    s = cases[0].summary()
    assert s.loc["lots given by others", "difference"] < 0 < s.loc["lots at the touch", "difference"]
    assert s.loc["lots traded", "with_us"] == cases[0].results.market.tape["trades"][:, 3].sum()


def test_cluster_mean():
    rng = np.random.default_rng(3)
    values = [rng.normal(size=5) + rng.normal() for _ in range(12)]
    mean, lo, hi, n = cluster_mean(values)
    means = np.array([v.mean() for v in values])  # equal sizes: the ratio estimator is the mean of means
    assert n == 60 and mean == pytest.approx(means.mean())
    assert (hi - lo) / 2 == pytest.approx(3.1058065155392 * means.std(ddof=1) / np.sqrt(12), rel=1e-9)
    assert cluster_mean([*values, np.array([np.nan])])[3] == 60
    with pytest.raises(ParameterError, match="at least two"):
        cluster_mean([np.ones(4), np.array([np.nan])])


def test_wide_moves_grow_the_book():
    wild = dataclasses.replace(SMALL, sigma=12.0, place_most=20.0)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("makerlab.execution.order_flow._window", lambda p: (round(p.price / p.tick_size) - 120, 240))
    try:
        narrow = joiner(1, flow=wild, seconds=120.0).run()
        assert narrow.market.state.book.state[TICKS] > 240
    finally:
        monkey.undo()
    assert narrow.digest == joiner(1, flow=wild, seconds=120.0).run().digest


@pytest.mark.parametrize(("change", "words"), [
    ({"flow": "no such"}, "flow = 'no such' must be one of"), ({"seconds": 0.0}, "seconds = 0.0"), ({"every_s": -1.0}, "every_s = -1.0"), ({"every_s": 40.0}, "window_s = 60.0"),
    ({"order_latency_ns": -5}, "order_latency_ns = -5"), ({"strategy": "no such"}, "strategy = 'no such' must be one of"), ({"strategy": lambda s, p: None}, "under the decorator"),
    ({"params": QuoteParams(qty=10)}, "less than a lot"), ({"overnight": "hold"}, "overnight = 'hold'"), ({"fee_bps": float("nan")}, "fee_bps"), ({"max_inventory": 0.0}, "max_inventory"),
    ({"strategy": "glft"}, "needs the rate")])
def test_refusals(change, words):
    with pytest.raises(ParameterError, match=words):
        joiner(**change)


def test_a_run_without_its_record_has_no_counterfactual():
    with pytest.raises(ParameterError, match="record = False"):
        without_you(joiner(record=False, seconds=20.0).run())
    assert issubclass(DataError, ValueError)
