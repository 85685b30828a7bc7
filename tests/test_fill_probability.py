"Following hypothetical orders, and the two models of what became of them."
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.calibration.fill_probability import (AGES_S, FEATURES, FillHazard, LogisticFill, _follow_nb, calibration_curve, cluster_mean, compare, edge_after,
                                                   edge_given_fill, fit_edge, follow_orders, losses, person_periods, place_orders, simulate_orders,
                                                   time_blocks, within)
from makerlab.core import DataError, ParameterError, to_ns
from makerlab.data.lob import load_lobster
from makerlab.data.samples import load_sample
from makerlab.execution.fills import rest_order

TICK = 0.01


@pytest.fixture(scope="module")
def sample():
    quotes, trades = load_sample("BIGT", day="2026-03-02")
    return quotes, trades


@pytest.fixture(scope="module")
def lives(sample):
    quotes, trades = sample
    return follow_orders(place_orders(quotes, tick=TICK, every_s=60.0), trades=trades, quotes=quotes)


def follow_slow(side, price, ahead, start, end, trades, quotes):
    "One order, event by event, on plain rows: prints before quotes of the same stamp."
    events = [(t, 0, row) for t, *row in trades if start < t <= end] + [(t, 1, row) for t, *row in quotes if start < t <= end]
    for t, kind, row in sorted(events, key=lambda e: (e[0], e[1])):
        if kind == 0:
            p, size, aggressor = row
            if aggressor != -side:
                continue
            if side * (price - p) > 1e-9 * price:
                return t
            if abs(price - p) <= 1e-9 * price:
                if size > ahead:
                    return t
                ahead -= size
        else:
            own, own_size, opposite = row
            if side * (opposite - price) <= 1e-9 * price:
                return t
            if side * (price - own) > 1e-9 * price:
                ahead = 0.0
            elif abs(price - own) <= 1e-9 * price and math.isinf(ahead):
                ahead = own_size
    return -1


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_kernel_is_the_plain_walk(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 25, 2)
    trades = np.column_stack([np.sort(rng.integers(0, 60, n)), rng.integers(98, 103, n), rng.integers(1, 6, n), rng.choice([-1, 0, 1], n)])
    bid = rng.integers(97, 101, m)
    ask = bid + rng.integers(1, 4, m)
    quotes = np.column_stack([np.sort(rng.integers(0, 60, m)), bid, ask, rng.integers(1, 9, (m, 2))])
    side = np.array([1, -1])
    price, ahead = np.array([99.0, 101.0]), np.array([float(rng.integers(0, 7)), math.inf])
    start, end = rng.integers(0, 20, 2), rng.integers(20, 60, 2)
    book = quotes.astype(float).T
    got = _follow_nb(side, price, ahead, start, end, trades[:, 0], trades[:, 1].astype(float), trades[:, 2].astype(float), trades[:, 3], quotes[:, 0],
                     book[1:3].copy(), book[3:5].copy(), book[[2, 1]].copy())
    for i, s in enumerate(side):
        own, size, other = (1, 3, 2) if s > 0 else (2, 4, 1)
        want = follow_slow(s, price[i], ahead[i], start[i], end[i], trades.tolist(), quotes[:, [0, own, size, other]].tolist())
        assert got[i] == want


def test_the_queue_rule_is_that_of_the_fill_models(sample, lives):
    "With a book that stands still, the first fill is by the print that page fills says."
    quotes, trades = sample
    filled = 0
    for i in lives.index[lives["distance_ticks"] == 0][::10]:
        order = lives.loc[[i]]
        row = lives.loc[i]
        far = row["price"] + row["side"] * 10.0
        still = quotes.iloc[[0, -1]].assign(bid=min(row["price"], far), ask=max(row["price"], far), bid_size=row["ahead"], ask_size=row["ahead"])
        got = follow_orders(order, trades=trades, quotes=still).iloc[0]
        prints = rest_order(trades, side=row["side"], price=row["price"], qty=1e9, ahead=row["ahead"], start=row["time"],
                            end=row["time"] + pd.Timedelta(seconds=60))
        first = prints.loc[prints["filled"] > 0, "time"]
        assert got["filled"] == bool(len(first))
        if len(first):
            assert abs((first.iloc[0] - row["time"]).total_seconds() - got["duration_s"]) < 1e-6
            filled += 1
    assert filled >= 10


def test_what_is_known_at_placement_does_not_see_the_future(sample):
    quotes, _ = sample
    cut = quotes["time"].iloc[len(quotes) // 2]
    scrambled = quotes.copy()
    after = scrambled["time"] > cut
    scrambled.loc[after, ["bid", "ask"]] += 0.37
    scrambled.loc[after, ["bid_size", "ask_size"]] = 100.0
    a, b = (place_orders(q, tick=TICK, every_s=60.0) for q in (quotes, scrambled))
    pd.testing.assert_frame_equal(a[a["time"] <= cut], b[b["time"] <= cut])
    assert not a[a["time"] > cut].equals(b[b["time"] > cut]), "the scramble must matter later"


def test_an_outcome_uses_only_what_comes_after(sample):
    quotes, trades = sample
    orders = place_orders(quotes, tick=TICK, every_s=600.0)
    at = orders["time"].iloc[0]
    extra = pd.DataFrame({"time": [at], "price": [1.0], "size": [1e9], "side": [-1]})  # at the very stamp, through everything
    with_extra = pd.concat([trades, extra]).sort_values("time", kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(follow_orders(orders, trades=trades, quotes=quotes), follow_orders(orders, trades=with_extra, quotes=quotes))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 50), st.floats(0.5, 200))
def test_survivals_multiply(first, second):
    orders = simulate_orders(400, log_rates=(-4.0, -3.5), beta={"imbalance": 0.4}, ages_s=(0.0, 5.0), rng=np.random.default_rng(1))
    fit = FillHazard(orders, features=("imbalance",), ages_s=(0.0, 5.0)).fit()
    p = [fit.predict(orders, horizon_s=h) for h in (first, first + second)]
    assert (p[1] >= p[0]).all() and (p[1] <= 1).all()
    rate = fit.hazard(orders)
    late = max(first + second - 5.0, 0.0) - max(first - 5.0, 0.0)
    early = min(first + second, 5.0) - min(first, 5.0)
    np.testing.assert_allclose(1 - p[1], (1 - p[0]) * np.exp(-rate[:, 0] * early - rate[:, 1] * late), rtol=1e-9, atol=1e-15)


def test_one_span_and_no_features_is_the_share_filled():
    orders = simulate_orders(3000, log_rates=(-3.0,), beta={"imbalance": 0.0}, ages_s=(0.0,), rng=np.random.default_rng(3), lifetime_s=20.0)
    flat = orders.assign(imbalance=1.0)
    fit = FillHazard(flat, features=("imbalance",), ages_s=(0.0,)).fit()
    assert fit.dropped == ("imbalance",) and len(fit.params) == 1
    share = orders["filled"].mean()
    assert math.isclose(fit.predict(flat, horizon_s=20.0)[0], share, rel_tol=1e-8)


def test_logistic_is_statsmodels_logit():
    orders = simulate_orders(1500, log_rates=(-4.0,) * 5, beta={"imbalance": 0.5, "log_queue": -0.4}, rng=np.random.default_rng(4))
    fit = LogisticFill(orders, 10.0, features=("imbalance", "log_queue")).fit()
    known, hit = within(orders, horizon_s=10.0)
    want = sm.Logit(hit[known].astype(float), sm.add_constant(orders.loc[known, ["imbalance", "log_queue"]])).fit(disp=0)
    np.testing.assert_allclose(fit.params, want.params, rtol=1e-6)
    assert math.isclose(fit.llf, want.llf, rel_tol=1e-9)
    with pytest.raises(TypeError):
        fit.predict(orders, horizon_s=30.0)  # it has no other horizon


def test_person_periods_add_up():
    orders = simulate_orders(500, log_rates=(-3.0,) * 5, beta={"imbalance": 0.1}, rng=np.random.default_rng(5))
    rows = person_periods(orders)
    assert rows["filled"].sum() == orders["filled"].sum()
    unfilled = orders.index[~orders["filled"]]
    assert np.allclose(rows[rows["order"].isin(unfilled)].groupby("order")["seconds"].sum(), 60.0)
    assert (rows.groupby("order")["filled"].sum() <= 1).all()
    spans = np.diff([*AGES_S, 60.0])
    assert (rows["seconds"].to_numpy() <= spans[rows["span"]] + 1e-12).all()


def test_scores_are_proper_and_refuse_nonsense():
    rng = np.random.default_rng(6)
    p = rng.uniform(0.05, 0.95, 40_000)
    y = rng.uniform(size=p.size) < p
    true, off = losses(p, y).mean(), losses(np.clip(p + 0.1, 0, 1), y).mean()
    assert (true < off).all()
    groups = np.arange(p.size) // 50
    table = compare({"off": np.clip(p + 0.1, 0, 1), "true": p}, y, groups=groups)
    assert table.loc["true", "brier_gain_lo"] > 0 and table.loc["off", "brier_gain"] == 0
    curve = calibration_curve(p, y, groups=groups)
    assert ((curve["lo"] <= curve["predicted"]) & (curve["predicted"] <= curve["hi"])).sum() >= 8
    with pytest.raises(ParameterError, match="0 to 1"):
        losses([1.5], [1])
    with pytest.raises(ParameterError, match="bins"):
        calibration_curve(p, y, groups=groups, bins=1)


def test_edges_are_those_of_the_mid_later(sample, lives):
    quotes, _ = sample
    edge = edge_after(lives, quotes=quotes, after_s=10.0)
    assert edge[~lives["filled"]].isna().all()
    mids = ((quotes["bid"] + quotes["ask"]) / 2).to_numpy()
    stamps = to_ns(quotes["time"])
    for i in lives.index[lives["filled"]][::97]:
        row = lives.loc[i]
        at = row["time"].value + round((row["duration_s"] + 10.0) * 1e9)
        j = np.searchsorted(stamps, at, side="right") - 1
        assert math.isnan(edge[i]) or math.isclose(edge[i], row["side"] * (mids[j] - row["price"]), abs_tol=1e-9)


def test_refusals(sample, lives):
    quotes, trades = sample
    with pytest.raises(DataError, match="tick"):
        place_orders(quotes, tick=0.007)
    with pytest.raises(DataError, match="lee_ready"):
        follow_orders(lives, trades=trades.drop(columns="side"), quotes=quotes)
    with pytest.raises(DataError, match="log_sigma is not a number in row 3"):
        FillHazard(lives.assign(log_sigma=lives["log_sigma"].where(lives.index != 3))).fit()
    with pytest.raises(DataError, match="too few"):
        fit_edge(lives.iloc[:3], quotes=quotes)
    with pytest.raises(ParameterError, match="ages_s"):
        person_periods(lives, ages_s=(1.0, 2.0))
    assert math.isnan(cluster_mean([1.0, 2.0], [0, 1])[1]), "two groups make no interval"


@pytest.mark.realdata
def test_apple_morning_to_afternoon():
    "What page 42 says of LOBSTER's day: the hazard gains on the base rate out of sample, and being filled costs edge at every distance."
    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"))
    quotes, trades = day.quotes(), day.trades(hidden=False)
    keep = quotes["ask"] > quotes["bid"]
    quotes = quotes[keep].reset_index(drop=True)
    lives = follow_orders(place_orders(quotes, tick=TICK, distances=(0, 2, 5)), trades=trades, quotes=quotes)
    noon = lives["time"].dt.tz_convert("America/New_York").dt.hour < 12
    train, later = lives[noon].reset_index(drop=True), lives[~noon].reset_index(drop=True)
    fit = FillHazard(train).fit()
    ok, hit = within(later, horizon_s=10.0)
    base_ok, base = within(train, horizon_s=10.0)
    table = compare({"base": np.full(ok.sum(), base[base_ok].mean()), "hazard": fit.predict(later[ok], horizon_s=10.0)}, hit[ok],
                    groups=time_blocks(later["time"])[ok])
    assert table.loc["hazard", "brier_gain_lo"] > 0
    worth = edge_given_fill(lives, quotes=quotes)
    assert (worth["earned_hi"] < worth["promised"]).all()


def test_features_are_the_documented_ones(lives):
    assert set(FEATURES) <= set(lives.columns)


def test_an_order_is_known_by_its_plan_and_not_by_its_fate():
    "Lives cut at random: to keep the fills of short lives and drop their failures overstates the share."
    rng = np.random.default_rng(8)
    whole = simulate_orders(20_000, log_rates=(-3.5,), beta={"imbalance": 0.0}, ages_s=(0.0,), rng=rng)
    cut = rng.uniform(2, 60, len(whole))
    short = whole.assign(filled=whole["filled"] & (whole["duration_s"] <= cut), duration_s=np.minimum(whole["duration_s"], cut), life_s=cut)
    truth = -math.expm1(-30 * math.exp(-3.5))
    known, hit = within(short, horizon_s=30.0)
    error = math.sqrt(truth * (1 - truth) / known.sum())
    assert abs(hit[known].mean() - truth) < 4 * error
    by_fate = hit | ((short["filled"] & (short["duration_s"] <= 30)) | (short["duration_s"] >= 30)).to_numpy()
    assert (short["filled"] & (short["duration_s"] <= 30)).to_numpy()[by_fate].mean() > truth + 10 * error, "the wrong answer is far away"
    logit = LogisticFill(short, 30.0, features=("imbalance",)).fit()
    assert abs(logit.predict(short).mean() - truth) < 4 * error


def test_edges_are_judged_by_plan(sample, lives):
    "An order whose life and later mid don't fit into the session is left out whether or not it was filled."
    quotes, _ = sample
    table = edge_given_fill(lives, quotes=quotes, after_s=10.0)
    last = quotes["time"].iloc[-1]
    fits = lives["time"] + pd.to_timedelta(lives["life_s"], unit="s") + pd.Timedelta(10, "s") <= last
    assert table["orders"].sum() == fits.sum() < len(lives)
    assert table["share_filled"].to_numpy() == pytest.approx(lives[fits].groupby("distance_ticks")["filled"].mean().to_numpy())
    with pytest.raises(DataError, match="not a column"):
        edge_given_fill(lives, quotes=quotes, by="no such")


def test_cluster_mean_and_the_ratio_of_page_61():
    "Equal sizes and blocks that are no neighbours: the standard error of attribution is ours."
    from scipy import stats

    from makerlab.scoring.attribution import _cluster_se

    rng = np.random.default_rng(9)
    group = np.sort(rng.integers(0, 40, 500))
    v = rng.standard_normal(500) + rng.standard_normal(40)[group]
    mean, lo, hi = cluster_mean(v, group)
    se, g = _cluster_se(v, np.ones(500), 2 * group)
    assert mean == pytest.approx(v.mean()) and (hi - lo) / 2 == pytest.approx(stats.t.ppf(0.975, g - 1) * se)
    with pytest.raises(ParameterError, match="one group a row"):
        cluster_mean(v, group[:-1])


def test_refusals_of_tables_that_cannot_be_right(sample, lives):
    quotes, trades = sample
    for bad, word in ((lives.iloc[:0], "empty"), (lives.assign(filled=False), "whole planned life"), (lives.assign(duration_s=math.nan), "row 0"),
                      (lives.assign(duration_s=lives["life_s"] + 1), "at most that")):
        with pytest.raises(DataError, match=word):
            FillHazard(bad).fit()
    with pytest.raises(DataError, match="block"):
        FillHazard(lives, block_s=1e6).fit()
    with pytest.raises(DataError, match="fewer ages_s"):
        FillHazard(lives, ages_s=(0.0, 1e-6, 1.0)).fit()
    for distances in ((), (0.5,)):
        with pytest.raises(ParameterError, match="distances"):
            place_orders(quotes, tick=TICK, distances=distances)
    with pytest.raises(DataError, match="price"):
        follow_orders(lives.drop(columns="price"), trades=trades, quotes=quotes)
    with pytest.raises(ParameterError, match="probs is empty"):
        compare({}, np.ones(1), groups=np.ones(1))
    with pytest.raises(ParameterError, match="one probability an order"):
        losses([0.5, 0.5], [1.0])
    with pytest.raises(ParameterError, match="row 1"):
        calibration_curve([0.1, math.nan, 0.3], [0, 1, 1], groups=np.arange(3), bins=2)
