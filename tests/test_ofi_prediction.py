"OFI prediction: twins, no look-ahead anywhere, splits that cannot leak, bad input, and the real day that study 18a quotes."
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import real
from scipy import stats

from makerlab.backtest.snapshot import OFI, Backtest
from makerlab.core import DataError, ParameterError, to_ns
from makerlab.data.events import CLEAR, DEPTH, Events
from makerlab.data.lob import load_lobster
from makerlab.execution.order_flow import PRESETS, simulate_flow
from makerlab.features.ofi import multilevel_ofi
from makerlab.learning import ofi_prediction
from makerlab.learning.ofi_prediction import (
    KINDS, OFIPredictor, book_table, diebold_mariano, forecast_value, foresight, foresight_params, forward_moves, ofi_features, walk_forward, with_forecast,
)
from makerlab.models.quoting import QuoteParams

STUDY = Path(__file__).parents[1] / "mm_nbs" / "18a_does_prediction_pay.ipynb"
TICK = 0.01


@pytest.fixture(scope="module")
def market():
    return simulate_flow(PRESETS["large-tick"], seconds=600.0, seed=5)


@pytest.fixture(scope="module")
def data(market):
    books = book_table(market.events, levels=3)
    x = ofi_features(books, levels=3, windows_s=(1, 5), queues=True)
    return books, x, forward_moves(books, times=x.index, horizon_s=5.0)


def made(n=400, seed=1, horizon_s=0.0):
    rng = np.random.default_rng(seed)
    t = pd.date_range("2026-03-02 14:30", periods=n, freq="s", tz="UTC", name="time")
    x = pd.DataFrame(rng.normal(size=(n, 3)), columns=list("abc"), index=t)
    y = (0.5 * x["a"] + rng.normal(size=n)).rename("move")
    y.attrs["horizon_s"] = horizon_s
    return x, y


def rng():
    return np.random.default_rng(3)


# ---------------------------------------------------------------- books and features

@pytest.mark.parametrize("seed", [1, 2, 3])
def test_books_are_the_sorted_levels(seed):
    "Random level changes with ties of stamps and emptied levels, against a dictionary."
    r = np.random.default_rng(seed)
    n = 300
    side = r.choice([-1, 1], n)
    tick = np.where(side > 0, 100 - r.integers(0, 8, n), 101 + r.integers(0, 8, n))
    ns = np.cumsum(r.integers(0, 3, n)) + 10**18
    events = Events(kind=np.full(n, DEPTH, np.uint8), side=side.astype(np.int8), exch_ns=ns, local_ns=ns.copy(), tick=tick.astype(np.int32), lots=r.integers(0, 4, n) * 5, tick_size=0.5, lot_size=10.0)
    table = book_table(events, levels=3)
    book, rows = {1: {}, -1: {}}, []
    for i in range(n):
        book[side[i]][tick[i]] = events.lots[i]
        if i + 1 == n or ns[i + 1] != ns[i]:
            best = [sorted(((p, q) for p, q in book[s].items() if q > 0), reverse=s > 0)[:3] for s in (1, -1)]
            best = [b + [(np.nan, 0)] * (3 - len(b)) for b in best]
            rows.append([v for b, a in zip(*best, strict=True) for v in (b[0] * 0.5, b[1] * 10.0, a[0] * 0.5, a[1] * 10.0)])
    np.testing.assert_allclose(table.drop(columns="time").to_numpy(), rows)
    assert (to_ns(table["time"]) == np.unique(ns)).all()


def test_windows_by_hand_and_the_queue(data):
    books, x, _ = data
    flow = multilevel_ofi(books.drop(columns="time"), levels=3).set_axis(pd.DatetimeIndex(books["time"]))
    for at in x.index[[0, 77, 333]]:
        for w in (1, 5):
            inside = (flow.index > at - pd.Timedelta(w, "s")) & (flow.index <= at)
            np.testing.assert_allclose(flow[inside].sum(), x.loc[at, [f"ofi_{m}_{w}s" for m in (1, 2, 3)]].astype(float), atol=1e-6)
        row = books[books["time"] <= at].iloc[-1]
        b, a = (sum(row[f"{s}_size_{m}"] for m in (1, 2)) for s in ("bid", "ask"))
        assert x.loc[at, "queue_2"] == pytest.approx((b - a) / (b + a))
    assert x.index[0] - books["time"].iloc[0] >= pd.Timedelta(4, "s") and x.attrs["memory_s"] == 5.0


def test_windows_do_not_reach_over_a_night(data):
    books, x, _ = data
    two = pd.concat([books, books.assign(time=books["time"] + pd.Timedelta(days=1))], ignore_index=True)
    both = ofi_features(two, levels=3, windows_s=(1, 5), queues=True)
    np.testing.assert_array_equal(both.to_numpy(), np.vstack([x, x]))
    y = forward_moves(two, times=both.index, horizon_s=5.0)
    assert y.iloc[len(x) - 4 : len(x)].isna().all()


def test_moves_start_after_the_mark(data):
    books, x, y = data
    mid = pd.Series((0.5 * (books["bid_1"] + books["ask_1"])).to_numpy(), index=books["time"])
    for at in x.index[[3, 200]]:
        assert y[at] == pytest.approx(mid[:at + pd.Timedelta(5, "s")].iloc[-1] - mid[:at].iloc[-1])
    late = forward_moves(books, times=x.index, horizon_s=5.0, delay_s=2.0)
    at = x.index[50]
    assert late[at] == pytest.approx(mid[:at + pd.Timedelta(7, "s")].iloc[-1] - mid[:at + pd.Timedelta(2, "s")].iloc[-1]) and late.attrs["delay_s"] == 2.0
    from_quotes = forward_moves(simulate_flow(PRESETS["large-tick"], seconds=600.0, seed=5).quotes(), times=x.index, horizon_s=5.0)
    np.testing.assert_allclose(from_quotes[:-10], y[:-10], atol=1e-9)


# ---------------------------------------------------------------- no look-ahead

def test_scrambled_future_leaves_features_alone(data):
    books, x, _ = data
    cut = len(books) // 2
    mixed = books.copy()
    mixed.iloc[cut:, 1:] = books.iloc[cut:, 1:].to_numpy()[rng().permutation(len(books) - cut)]
    before = x.index < books["time"][cut]
    again = ofi_features(mixed, levels=3, windows_s=(1, 5), queues=True)
    pd.testing.assert_frame_equal(again[before], x[before])
    assert not again[~before].equals(x[~before])


@pytest.mark.parametrize("kind", KINDS)
def test_scrambled_future_leaves_forecasts_alone(kind):
    "Labels that reach into the third test, and features after it, are redrawn: all forecasts up to its end are the same, to the bit."
    x, y = made(horizon_s=2.0)
    whole = walk_forward(x, y, models=(kind,), folds=5, rng=rng())
    third = whole.fold.index[whole.fold == 3]
    x2, y2, after, late = x.copy(), y.copy(), x.index > third[-1], x.index >= third[0] - pd.Timedelta(2, "s")
    x2[after], y2[late] = 7 * rng().normal(size=(after.sum(), 3)), 9 + rng().normal(size=late.sum())
    again = walk_forward(x2, y2, models=(kind,), folds=5, rng=rng())
    pd.testing.assert_frame_equal(again.forecasts[whole.fold <= 3], whole.forecasts[whole.fold <= 3])
    assert not again.forecasts[whole.fold > 3].equals(whole.forecasts[whole.fold > 3])


def test_standardised_on_the_training_rows_only():
    x, y = made()
    fit = OFIPredictor().fit(x.iloc[:200], y.iloc[:200])
    np.testing.assert_allclose(fit.centre, x.iloc[:200].mean()), np.testing.assert_allclose(fit.scale, x.iloc[:200].std(ddof=0))
    assert fit.target[1] == pytest.approx(y.iloc[:200].std(ddof=0)) and fit.nobs == 200
    wild = x.copy()
    wild.iloc[200:] *= 1000
    w = walk_forward(wild, y, models=("linear",), folds=1, rng=rng(), purge_s=0.0)
    clipped = fit.predict(wild.iloc[200:])
    np.testing.assert_allclose(w.forecasts["linear"], clipped, rtol=0.05)
    assert w.mean.iloc[0] == pytest.approx(y.iloc[:200].mean())


def leaks(folds, t, gap_s):
    "Training rows whose label, or memory, reaches the test."
    return sum(int((t[train] + round(gap_s * 1e9) >= t[test[0]]).sum()) for train, test in folds)


def test_gap_by_time_not_by_rows():
    "A clock with holes: the gap is in seconds. The guard can fail: with a shorter gap it finds leaks."
    t = np.sort(rng().choice(np.arange(4000), 900, replace=False)).astype(np.int64) * 10**9
    folds = ofi_prediction._folds(t, 5, 7.0, 20.0)
    assert leaks(folds, t, 27.0) == 0 < leaks(ofi_prediction._folds(t, 5, 7.0, 0.0), t, 27.0)
    tested = np.concatenate([test for _, test in folds])
    assert (np.diff(tested) == 1).all() and tested[-1] == 899
    for train, test in folds:
        assert train[-1] < test[0] and t[train[-1] + 1] + 27 * 10**9 >= t[test[0]], "no row more than needed is left out"


def test_gaps_come_from_the_tables(data):
    _, x, y = data
    w = walk_forward(x, y, models=("linear",), folds=3, rng=rng())
    assert (w.purge_s, w.embargo_s) == (5.0, 5.0)


# ---------------------------------------------------------------- learners and scores

def test_r2_and_errors_by_hand():
    x, y = made()
    w = walk_forward(x, y, models=("linear", "boosting"), folds=3, rng=rng(), purge_s=1.0)
    e = w.target - w.forecasts["linear"]
    assert w.r2["linear"] == pytest.approx(1 - (e**2).sum() / ((w.target - w.mean) ** 2).sum())
    s = w.summary()
    assert s.loc["linear", "r2"] == pytest.approx(w.r2["linear"]) and s.loc["linear", "lo"] < w.r2["linear"] < s.loc["linear", "hi"]
    assert s.loc["linear", "worst_fold"] <= w.r2["linear"] and s.loc["linear", "nobs"] == w.nobs == 300
    c = w.compare()
    assert c.loc["boosting", "gain"] == pytest.approx(w.r2["boosting"] - w.r2["linear"])
    wide = walk_forward(x, y, models=("linear", "boosting"), folds=3, rng=rng(), purge_s=1.0, variants=50)
    assert wide.interval("linear").hi - wide.interval("linear").lo > 1.2 * (s.loc["linear", "hi"] - s.loc["linear", "lo"]), "many looks, a wider interval"


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_forecast_and_offsets_do_not_matter(kind):
    x, y = made()
    a, b = (OFIPredictor(kind=kind, seed=4).fit(x.iloc[:300], y.iloc[:300]).predict(x.iloc[300:]) for _ in range(2))
    pd.testing.assert_series_equal(a, b)
    moved = OFIPredictor(kind=kind, seed=4).fit(1000 * x.iloc[:300] + 5, 0.01 * y.iloc[:300] + 2).predict(1000 * x.iloc[300:] + 5)
    np.testing.assert_allclose(moved, 0.01 * a + 2, atol=2e-4)


def test_a_column_that_never_varies_says_nothing():
    x, y = made()
    a = OFIPredictor().fit(x, y).predict(x)
    b = OFIPredictor().fit(x.assign(still=3.0), y).predict(x.assign(still=3.0))
    np.testing.assert_allclose(a, b)


def test_one_block_trade_does_not_rule_the_forecast():
    x, y = made()
    fit = OFIPredictor().fit(x, y)
    assert fit.predict(x.iloc[:1].assign(a=1e9)).iloc[0] == pytest.approx(fit.predict(x.iloc[:1].assign(a=fit.centre[0] + 5 * fit.scale[0])).iloc[0])


def test_nothing_is_found_where_nothing_is():
    "Forty worlds of noise: an interval above zero at the rate of chance, never more than in five."
    found = 0
    for seed in range(40):
        x, _ = made(300, seed)
        y = pd.Series(np.random.default_rng(seed + 1000).normal(size=300), index=x.index)
        found += walk_forward(x, y, models=("linear",), folds=3, rng=rng(), purge_s=1.0).interval("linear").lo > 0
    assert found <= 5


def test_diebold_mariano_is_antisymmetric_and_sees_a_difference():
    r = rng()
    a, b = r.normal(size=800), 1.2 * r.normal(size=800)
    one, two = diebold_mariano(a, b), diebold_mariano(b, a)
    assert one.gain == -two.gain and one.p == two.p < 0.01 and one.lo > 0
    assert one.gain == pytest.approx((b**2 - a**2).mean()) and one.p == pytest.approx(2 * stats.t.sf(one.statistic, one.df))
    same = diebold_mariano(a, a)
    assert (same.gain, same.p) == (0.0, 1.0)


@pytest.mark.parametrize("sd, edge", [(0.3, 0.0), (0.3, 0.1), (0.05, -0.4), (0.1, 3.0)])
def test_worth_of_a_forecast(sd, edge):
    f = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000) * sd
    gain, share = forecast_value(sd=sd, edge=edge)
    assert gain == pytest.approx((np.maximum(edge + f, 0) - edge).mean(), abs=1e-5 * sd) and share == pytest.approx((edge + f > 0).mean(), abs=1e-5)


# ---------------------------------------------------------------- into the quotes

@pytest.fixture(scope="module")
def maker(market):
    prints = market.trades()[["time", "price", "size", "side"]]
    told = QuoteParams(gamma=2e-5, k=400.0, qty=100.0, max_inventory=1000.0, min_spread_bps=0.0)
    return Backtest(market.quotes(), trades=prints, strategy="as", params=told, horizon_s=600.0, tick=TICK)


def fills(b):
    return b.run(rng=np.random.default_rng(1)).fills


def test_no_view_no_change(maker, data):
    _, x, _ = data
    for nothing in (pd.Series(0.0, index=x.index), pd.Series(np.nan, index=x.index), pd.Series(0.5, index=x.index + pd.Timedelta(days=1))):
        pd.testing.assert_frame_equal(fills(with_forecast(maker, nothing)), fills(maker))
    up = pd.Series(0.003, index=x.index)
    held = with_forecast(maker, up).run(rng=np.random.default_rng(1)).path["inventory"].mean()
    assert held > maker.run(rng=np.random.default_rng(1)).path["inventory"].mean() > with_forecast(maker, up, weight=-1.0).run(rng=np.random.default_rng(1)).path["inventory"].mean()
    assert maker.strategy == "as" and not (maker.days[0].steps[100:, OFI] == 0.003).any(), "the plain maker is untouched"


def test_a_forecast_is_used_from_its_time_on_and_not_for_long(maker):
    t = maker.days[0].t_ns
    at = pd.DatetimeIndex(pd.to_datetime([t[100], t[200] + 1], utc=True))
    seen = with_forecast(maker, pd.Series([1.0, 2.0], index=at), max_age_s=3.0).days[0].steps[:, OFI]
    assert seen[99] == 0 and (seen[100:104] == 1).all() and (seen[104:201] == 0).all() and (seen[201:204] == 2).all() and (seen[204:] == 0).all()


def test_live_line_is_the_fitted_line():
    from makerlab.schema import new_state
    x, y = made()
    x = x[["a", "b"]].rename(columns={"a": "imbalance", "b": "ofi_norm"}) * 0.2 + 0.5
    fit = OFIPredictor().fit(x, y * 0.002)
    told = foresight_params(fit, QuoteParams(gamma=2e-5, k=400.0, min_spread_bps=0.0))
    assert told.kappa == 1.0 and told.eta == 0.0
    for bid_size, ofi in ((300.0, 0.4), (900.0, 0.8), (500.0, math.nan)):
        state = new_state(t_s=0.0, tau_s=600.0, mid=30.005, bid=30.0, ask=30.01, bid_size=bid_size, ask_size=1000.0 - bid_size, inventory=0.0, sigma=0.003, ofi=ofi)
        got = foresight(state, told.record(TICK))
        said = 0.0 if math.isnan(ofi) else float(fit.predict(pd.DataFrame({"imbalance": [bid_size / 1000], "ofi_norm": [ofi]})).iloc[0])
        half = 0.5 * 2e-5 * 0.003**2 * 600 + math.log1p(2e-5 / 400) / 2e-5
        assert got[0] == min(math.floor((30.005 + said - half) / TICK + 1e-7), 3000) and got[1] == max(math.ceil((30.005 + said + half) / TICK - 1e-7), 3001)


# ---------------------------------------------------------------- bad input

@pytest.mark.parametrize("call, error, says", [
    (lambda x, y: walk_forward(x.assign(a=x["a"].where(x.index != x.index[7])), y, rng=rng()), DataError, "column a at row 7"),
    (lambda x, y: walk_forward(x, 0 * y + 3, rng=rng()), DataError, "nothing to predict"),
    (lambda x, y: walk_forward(x.iloc[:4], y.iloc[:4], folds=5, rng=rng()), ParameterError, "fewer folds"),
    (lambda x, y: walk_forward(x, y, purge_s=70.0, rng=rng()), ParameterError, "not shorter than a fold"),
    (lambda x, y: walk_forward(x.iloc[::-1], y.iloc[::-1], rng=rng()), DataError, "sort by time"),
    (lambda x, y: walk_forward(x.iloc[[0, 0, 1]], y.iloc[[0, 0, 1]], rng=rng()), DataError, "row 1"),
    (lambda x, y: walk_forward(x, y.iloc[1:], rng=rng()), DataError, "times differ"),
    (lambda x, y: walk_forward(x.reset_index(drop=True), y.reset_index(drop=True), rng=rng()), DataError, "zone-aware"),
    (lambda x, y: walk_forward(x, y, folds=0, rng=rng()), ParameterError, "folds = 0"),
    (lambda x, y: walk_forward(x, y, models=(), rng=rng()), ParameterError, "at least one"),
    (lambda x, y: walk_forward(x, y, variants=2, rng=rng()), ParameterError, "count all"),
    (lambda x, y: walk_forward(x, y, embargo_s=-1.0, rng=rng()), ParameterError, "embargo_s"),
    (lambda x, y: OFIPredictor(kind="oracle"), ParameterError, "kind = 'oracle'"),
    (lambda x, y: OFIPredictor(trees=0), ParameterError, "trees = 0"),
    (lambda x, y: OFIPredictor(ridge=-1.0), ParameterError, "ridge"),
    (lambda x, y: OFIPredictor().fit(x.iloc[:3], y.iloc[:3]), DataError, "3 row(s)"),
    (lambda x, y: OFIPredictor().fit(x, y.where(y.index != y.index[5])), DataError, "row 5"),
    (lambda x, y: OFIPredictor(columns=("d",)).fit(x, y), DataError, "missing column d"),
    (lambda x, y: OFIPredictor(kind="boosting").fit(x, y).weights, ParameterError, "no weights"),
    (lambda x, y: foresight_params(OFIPredictor().fit(x, y), QuoteParams()), DataError, "imbalance and ofi_norm"),
    (lambda x, y: diebold_mariano(y, y.iloc[1:]), DataError, "same 10 rows"),
    (lambda x, y: forecast_value(sd=0.0, edge=1.0), ParameterError, "sd"),
])
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(").replace(")", r"\)")):
        call(*made())


def test_purge_must_cover_the_label():
    x, y = made(horizon_s=5.0)
    with pytest.raises(ParameterError, match="shorter than the 5 s"):
        walk_forward(x, y, purge_s=4.0, rng=rng())


def test_bad_books(data, maker):
    books, x, _ = data
    for bad, says in ((lambda: ofi_features(books.drop(columns="time")), "missing column time"), (lambda: ofi_features(books, levels=4), "levels >= 4"), (lambda: ofi_features(books, levels=1, windows_s=()), "whole multiples"),
                      (lambda: ofi_features(books, levels=1, windows_s=(1.5,)), "whole multiples"), (lambda: ofi_features(books, levels=1, windows_s=(1e4,)), "no whole window"),
                      (lambda: ofi_features(books.iloc[::-1], levels=1), "unsorted"), (lambda: forward_moves(books.drop(columns="bid_1"), times=x.index, horizon_s=1.0), "bid_1"),
                      (lambda: forward_moves(books, times=x.index, horizon_s=0.0), "horizon_s"), (lambda: with_forecast(maker, pd.Series([1.0, 2.0], index=x.index[[1, 0]])), "increase"),
                      (lambda: with_forecast(maker, x["ofi_1_1s"].to_numpy()), "Series"), (lambda: with_forecast(maker, pd.Series(np.inf, index=x.index)), "finite")):
        with pytest.raises(ValueError, match=says):
            bad()
    one = np.ones(2, np.int64)
    for kind, problem in (([DEPTH, CLEAR], "clears"), ([], "0 rows")):
        n = len(kind)
        with pytest.raises(DataError, match=problem):
            book_table(Events(kind=np.array(kind, np.uint8), side=one[:n].astype(np.int8), exch_ns=one[:n], local_ns=one[:n], tick=one[:n].astype(np.int32), lots=one[:n]))
    with pytest.raises(ParameterError, match="levels = 0"):
        book_table(simulate_flow(PRESETS["zero-intelligence"], seconds=2.0, seed=1).events, levels=0)


# ---------------------------------------------------------------- study 18a on a real day

@pytest.fixture(scope="module")
def study():
    "The study's own functions and its text."
    cells = json.loads(STUDY.read_text(encoding="utf8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    names = {}
    for source in [code[0], *[c for c in code if c.startswith("# method")]]:
        exec(compile(source, STUDY.name, "exec"), names)
    return names | {"text": "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")}


@pytest.mark.realdata
def test_what_the_study_says_of_a_real_day(study):
    day = load_lobster(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip"))
    books = day.book.assign(time=day.messages["time"])
    walk, runs = study["real_day"](books, day.quotes(), day.trades())
    gains = study["over_plain"](runs)

    def said(v, d):
        return f"{v:,.{d}f}".replace("-", "−")

    for name, r in runs.items():
        m = study["minutes"](r)
        r2, gain = "", ""
        if name in walk.forecasts:
            i = walk.interval(name)
            r2 = f"{said(100 * i.estimate, 1)} [{said(100 * i.lo, 1)}, {said(100 * i.hi, 1)}]"
        if name != "plain":
            i = gains[name]
            gain = f"{said(i.estimate, 0)} [{said(i.lo, 0)}, {said(i.hi, 0)}]"
            assert i.lo < 0 < i.hi and "Bonferroni over 7" in i.method
            assert abs(study["over_plain"](runs, fee=0.002)[name].estimate - i.estimate) < 8
        row = f"| {name} | {r2} | {said(m['shares'].sum(), 0)} | {said(m['earned'].sum(), 0)} | {gain} |"
        assert row in study["text"], row
    assert walk.forecasts.index[0].tz_convert("America/New_York").strftime("%H:%M") == "10:35"
    assert walk.r2.max() < 0.0075 and walk.r2[["boosting", "network"]].max() < 0 < walk.interval("one queue").lo
    assert 0.004 < walk.forecasts["linear"].std() < 0.007 and runs["plain"].params.k == pytest.approx(1 / 0.085)
    near = study["told_by"](books, horizon_s=1.0, kinds={"linear": study["kinds"]["linear"]}).interval("linear")
    assert [round(100 * v, 1) for v in (near.estimate, near.lo, near.hi)] == [0.9, 0.2, 1.6]
