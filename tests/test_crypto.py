"Binance recordings: the two sync rules in both directions, exact decimals, gaps, clocks; the real files against their own best quotes."
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.data.crypto import (Capture, check_tickers, clock_offset, latencies, load_binance, parse_decimal, parse_decimals, read_binance, sync_book,
                                  sync_rule)
from makerlab.data.events import CLEAR, SNAPSHOT, TRADE, check_events

FILES = {"usdm": "hftbacktest_binance/usdm_btcusdt_20240808.gz", "spot": "hftbacktest_binance/spot_btcusdt_20240808.gz"}
T0 = 1_723_161_255_000


def diff(first, final, *, bids=(), asks=(), stamp=0, pu=None):
    return dict(e="depthUpdate", E=T0 + stamp, s="BTCUSDT", U=first, u=final, b=list(bids), a=list(asks), **({} if pu is None else dict(pu=pu, T=T0 + stamp)))


def photo(final, bids=(("100.0", "1"),), asks=(("100.5", "1"),)):
    return dict(lastUpdateId=final, bids=list(bids), asks=list(asks))


def trade(i, price="100.0", stamp=0, m=True, q="1"):
    return dict(e="trade", E=T0 + stamp, T=T0 + stamp, s="BTCUSDT", t=i, p=price, q=q, m=m)


def save(path, messages, *, gap_ms=10, behind_ms=0):
    text = "".join(f"{(T0 + 1 + gap_ms * i - behind_ms) * 10**6} {json.dumps(m)}\n" for i, m in enumerate(messages))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def verdicts(market, snapshot, chain):
    "The steps of a snapshot and changes (U, u, pu), by the rule alone."
    book, fresh, out = snapshot, True, []
    for first, final, previous in chain:
        out.append(sync_rule(market, book_id=book, first=first, final=final, previous=previous, fresh=fresh))
        if out[-1] == "apply":
            book, fresh = final, False
    return out


# ---------------------------------------------------------------- the rules, at their edges

def test_spot_start_and_continuity():
    assert verdicts("spot", 10, [(5, 9, -1), (8, 10, -1)]) == ["stale", "stale"], "u <= S is dropped, S itself too"
    assert verdicts("spot", 10, [(9, 12, -1)]) == ["apply"] and verdicts("spot", 10, [(11, 12, -1)]) == ["apply"], "U <= S + 1 <= u"
    assert verdicts("spot", 10, [(12, 13, -1)]) == ["gap"]
    assert verdicts("spot", 10, [(11, 12, -1), (13, 13, -1), (15, 16, -1)]) == ["apply", "apply", "gap"]


def test_futures_start_and_continuity():
    assert verdicts("usdm", 10, [(5, 9, 4)]) == ["stale"] and verdicts("usdm", 10, [(5, 10, 4)]) == ["apply"], "u < S is dropped, u = S is used"
    assert verdicts("usdm", 10, [(10, 12, 9)]) == ["apply"] and verdicts("usdm", 10, [(11, 12, 9)]) == ["gap"], "U <= S <= u"
    assert verdicts("usdm", 10, [(9, 12, 8), (30, 40, 12), (41, 50, 39)]) == ["apply", "apply", "gap"], "holes in U are no gap, a wrong pu is"


def test_the_rules_cannot_be_exchanged():
    futures = [(9, 12, 8), (20, 25, 12), (31, 33, 25)]
    assert verdicts("usdm", 10, futures) == ["apply"] * 3 and "gap" in verdicts("spot", 10, futures), "spot's rule on futures: false gaps"
    spot_with_a_hole = [(9, 12, -1), (16, 20, -1)]
    assert verdicts("spot", 10, spot_with_a_hole) == ["apply", "gap"]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 200), st.sampled_from(["spot", "usdm"]), st.sets(st.integers(0, 39)))
@settings(max_examples=200, deadline=None)
def test_any_loss_is_seen_and_no_other(widths, start, market, lost):
    "After the first applied change, a step is a gap exactly when something between was lost."
    chain, u = [], 100
    for w in widths:
        jump = 3 if market == "usdm" else 0
        chain.append((u + 1 + jump, u + jump + w, u if market == "usdm" else -1))
        u += jump + w
    kept = [c for i, c in enumerate(chain) if i not in lost]
    whole = [i for i in range(len(chain)) if i not in lost]
    book, state = None, []
    for i, (first, final, previous) in zip(whole, kept, strict=True):
        if book is None:
            book = final
            continue
        got = sync_rule(market, book_id=book, first=first, final=final, previous=previous)
        state.append((got == "gap") == (i - 1 in lost))
        book = final
    assert all(state)


# ---------------------------------------------------------------- decimals

@given(st.integers(-(2**62), 2**62))
def test_decimals_are_exact(units):
    text = f"{'-' if units < 0 else ''}{abs(units) // 10**8}.{abs(units) % 10**8:08d}"
    assert parse_decimal(text) == units == parse_decimals([text])[0]
    short = text.rstrip("0").rstrip(".")
    assert parse_decimals([short or "0"])[0] == units


@pytest.mark.parametrize("bad", ["NaN", "inf", "", "1,5", "0.123456789", "1e12", " ", "0x1", None])
def test_what_is_no_decimal(bad):
    with pytest.raises(DataError, match="number 1"):
        parse_decimals(["1.5", bad])


# ---------------------------------------------------------------- whole recordings

def test_buffered_changes_wait_for_the_snapshot(tmp_path):
    path = save(tmp_path / "a.gz", [diff(1, 5), diff(6, 10, bids=[["99.0", "2"]]), diff(11, 12, bids=[["99.5", "3"]]), trade(1), photo(8), diff(13, 13, asks=[["100.4", "2"]], stamp=40)])
    sync = sync_book(read_binance(path))
    assert sync.steps["what"].tolist() == ["snapshot", "diff", "diff", "diff"] and sync.counts["stale"] == 1 and not len(sync.gaps)
    events = load_binance(path)
    assert events.repairs["trades before the first book"] == 1
    assert set(events.local_ns[:4]) == {(T0 + 41) * 10**6}, "what waited is known when the snapshot comes, not when it came"
    assert events.quotes()["ask"].iloc[-1] == pytest.approx(100.4)


def test_a_gap_clears_the_book_until_the_next_snapshot(tmp_path):
    messages = [photo(10), diff(11, 12, stamp=5), diff(20, 21, bids=[["99.7", "2"]], stamp=15), diff(22, 23, bids=[["99.8", "2"]], stamp=25), trade(1, stamp=30),
                photo(21, bids=[["99.7", "2"]]), diff(24, 24, stamp=55)]
    path = save(tmp_path / "a.txt", messages)
    sync = sync_book(read_binance(path))
    assert sync.steps["what"].tolist() == ["snapshot", "diff", "clear", "snapshot", "diff", "diff"]
    assert sync.gaps[["line", "book_id", "first"]].values.tolist() == [[3, 12, 20]]
    events = load_binance(path)
    local = events.kind[(events.seen & 2) > 0] if len(events.seen) else events.kind
    after = local[int(np.flatnonzero(local == CLEAR)[0]) + 1:]
    assert (local == CLEAR).sum() == 1 and after[0] == TRADE and after[1] == SNAPSHOT, "only the trade stands between the gap and the new book"
    assert any("1 gap(s)" in n for n in events.notes)


def test_a_snapshot_that_is_too_old_is_not_used(tmp_path):
    sync = sync_book(read_binance(save(tmp_path / "a.txt", [diff(20, 21), photo(10), diff(22, 22), photo(21), diff(23, 23), photo(23)])))
    assert (sync.counts["too old"], sync.counts["used"], sync.counts["unused"]) == (1, 1, 1) and not len(sync.gaps)
    with pytest.raises(DataError, match="none of which the changes continue"):
        sync_book(read_binance(save(tmp_path / "b.txt", [diff(20, 21), photo(10), diff(22, 22)])))


def test_a_repeated_change_is_no_gap(tmp_path):
    for pu in (False, True):
        one = diff(11, 12, pu=9 if pu else None)
        sync = sync_book(read_binance(save(tmp_path / "a.txt", [photo(11 if pu else 10), one, one, diff(13, 14, pu=12 if pu else None)])))
        assert not len(sync.gaps) and sync.counts["stale"] == 1 and sync.counts["applied"] == 2


def aggregate(i, price="100.0", stamp=0, m=True, q="1"):
    return dict(e="aggTrade", E=T0 + stamp, T=T0 + stamp, s="BTCUSDT", a=i, f=i, l=i, p=price, q=q, m=m)


def test_aggregates_stand_in_for_trades_and_never_beside_them(tmp_path):
    book = [diff(1, 2, pu=0), photo(2), diff(3, 3, pu=2, stamp=5)]
    alone = read_binance(save(tmp_path / "a.txt", [*book, aggregate(7, stamp=6, q="2"), aggregate(8, price="100.5", stamp=7, m=False)]))
    assert alone.trades[["id", "price", "size", "side"]].values.tolist() == [[7, 100 * 10**8, 2 * 10**8, -1], [8, 10_050_000_000, 10**8, 1]]
    assert (load_binance(tmp_path / "a.txt").kind == TRADE).sum() == 2 and not alone.repairs
    both = read_binance(save(tmp_path / "b.txt", [*book, aggregate(7, stamp=6, q="2"), trade(11, stamp=6), trade(12, stamp=6)]))
    assert both.trades["id"].tolist() == [11, 12] and both.trades.columns.tolist() == alone.trades.columns.tolist()
    assert both.repairs == {"messages of other kinds left out": 1}


def from_the_beginning(usdm, order, torn):
    "A venue that stands at id 5,000, and after a restart begins with 1; the second book is 90.0 by 91.0."
    p = lambda i: dict(pu=i - 1) if usdm else {}
    old = [photo(4990), *(diff(i, i, stamp=i - 4900, **p(i)) for i in range(4990 + (not usdm), 5001))] + [trade(i, stamp=90 + i) for i in (1, 2, 3)]
    old += [diff(5003, 5004, stamp=105, **p(5003)), diff(5005, 5005, stamp=106, **p(5005))] if torn else []
    new = [diff(i, i, stamp=1000 + i, bids=[["90.0", str(i)]], **p(i)) for i in range(1, 9)] + [trade(i, price="90.0", stamp=1000 + i) for i in (1, 2, 3, 4)]
    new.insert(order, photo(4, bids=[("90.0", "4")], asks=[("91.0", "1")]))
    return [*old, *new]


@pytest.mark.parametrize("usdm", [False, True])
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("order", [0, 2, 4, 6, 8])
def test_a_venue_that_counts_from_the_beginning_has_a_new_book(tmp_path, usdm, torn, order):
    path = save(tmp_path / "a.txt", from_the_beginning(usdm, order, torn))
    sync, events = sync_book(read_binance(path)), load_binance(path)
    first = 4 if usdm else 5
    assert sync.counts["used"] == 2 and sync.counts["unused"] == sync.counts["too old"] == 0 and len(sync.anew) == 1
    applied = [int(read_binance(path).diffs["final"].iat[row]) for what, row in zip(sync.steps["what"], sync.steps["row"], strict=True) if what == "diff"]
    assert applied[-(9 - first):] == list(range(first, 9)) and (sync.steps["what"] == "clear").sum() == len(sync.gaps) == 1
    assert sum(sync.counts[k] for k in ("applied", "stale", "waiting")) == len(read_binance(path).diffs)
    last = events.quotes(clock="local").iloc[-1]
    assert (last["bid"], last["ask"], last["bid_size"]) == (90.0, 91.0, 8.0), "nothing of the old book is left"
    assert len(events.trades()) == 7 and "trades told twice" not in events.repairs and not any("missing" in n for n in events.notes)
    assert any("the ids began again 1 time(s)" in n for n in events.notes)


def test_the_witness_hears_both_books(tmp_path):
    messages = []
    for start, price in ((5000, "100.0"), (1, "90.0")):
        messages.append(photo(start, bids=[(price, "1")]))
        for i in range(start + 1, start + 6):
            messages += [diff(i, i, stamp=1000 * (start < 5000) + i % 5000, bids=[[price, str(i)]]),
                         dict(u=i, s="BTCUSDT", b=price, B=str(i), a="100.5", A="1")]
    events = load_binance(save(tmp_path / "a.txt", messages))
    assert events.notes[-1] == "the rebuilt best quotes equal bookTicker after 9 of 9 changes"


def test_repeats_and_late_snapshots_begin_nothing(tmp_path):
    "Ids that fall are a restart only when the exchange's clock rises."
    told = [photo(10), *(diff(i, i, stamp=i) for i in range(11, 21)), photo(15, bids=[("99.0", "5")]), *(diff(i, i, stamp=i) for i in range(14, 24)), photo(22)]
    sync = sync_book(read_binance(save(tmp_path / "a.txt", told)))
    assert sync.counts == {"applied": 13, "stale": 7, "waiting": 0, "used": 1, "too old": 0, "unused": 2} and not sync.anew and not len(sync.gaps)
    astray = [photo(10), *(diff(i, i, stamp=i) for i in range(11, 21)), diff(15, 15, stamp=50), *(diff(i, i, stamp=40 + i) for i in range(21, 24)), photo(15)]
    sync = sync_book(read_binance(save(tmp_path / "b.txt", astray)))
    assert sync.counts["applied"] == 13 and not sync.anew and not len(sync.gaps), "one that is astray does not cost the book"


def test_without_a_snapshot(tmp_path):
    path = save(tmp_path / "a.txt", [diff(1, 2, bids=[["99.0", "1"]], asks=[["101.0", "1"]]), diff(3, 4, bids=[["99.5", "1"]], stamp=10), diff(9, 9, bids=[["98.0", "1"]], asks=[["102.0", "1"]], stamp=20)])
    with pytest.raises(DataError, match="from_scratch=True"):
        load_binance(path)
    events = load_binance(path, from_scratch=True)
    assert any("started from scratch" in n for n in events.notes) and (events.kind == CLEAR).sum() == 1
    assert events.quotes()["bid"].tolist() == [99.0, 99.5, 98.0]


def test_the_clock_is_moved_by_the_least(tmp_path):
    messages = [photo(10), *[diff(11 + i, 11 + i, stamp=10 * i) for i in range(20)]]
    slow, right = load_binance(save(tmp_path / "a.txt", messages, behind_ms=1270)), load_binance(save(tmp_path / "b.txt", messages))
    assert right.clock_offset_ns == 0 and slow.clock_offset_ns == 1_259_000_000 and (slow.local_ns >= slow.exch_ns).all()
    assert any("clock is behind" in n for n in slow.notes) and not any("clock is behind" in n for n in right.notes)
    based = load_binance(tmp_path / "a.txt", base_latency_ns=5_000_000)
    assert (based.local_ns - slow.local_ns == 5_000_000).all()
    with pytest.raises(ParameterError, match="base_latency_ns"):
        clock_offset(np.array([1]), np.array([0]), base_latency_ns=-1)


def test_trades_are_signed_by_m_and_counted(tmp_path):
    messages = [photo(10), diff(11, 11, stamp=1), *(trade(i, m=m, q=q, stamp=5) for i, m, q in ((1, True, "1"), (2, False, "1"), (2, False, "1"), (7, True, "0")))]
    events = load_binance(save(tmp_path / "a.txt", messages))
    assert events.trades()["side"].tolist() == [-1, 1]
    assert events.repairs["trades told twice"] == 1 and events.repairs["trades without price or size"] == 1 and any("4 trade ids are missing" in n for n in events.notes)


@pytest.mark.parametrize("damage, says", [
    (lambda m: [photo(10), dict(diff(11, 11), b=[["x", "1"]])], "'x'"), (lambda m: [photo(10), dict(diff(11, 11), b=[[100.5, "1"]])], "100.5"),
    (lambda m: [photo(10), {k: v for k, v in diff(11, 11).items() if k != "u"}], "line 2"), (lambda m: [trade(1)], "no depth changes"),
    (lambda m: [photo(10), diff(11, 11, bids=[["99.0", "-1"]])], "negative"), (lambda m: [photo(10), diff(11, 11, bids=[["100.9", "1"]])], "crossed")])
def test_damage_is_refused(tmp_path, damage, says):
    with pytest.raises(DataError, match=says):
        load_binance(save(tmp_path / "a.txt", damage(None)))


def test_files_cut_off_or_torn(tmp_path):
    path = save(tmp_path / "a.gz", [photo(10), diff(11, 11, stamp=1), diff(12, 12, stamp=2)])
    text = gzip.decompress(path.read_bytes())
    (tmp_path / "cut.gz").write_bytes(path.read_bytes()[:-20])
    (tmp_path / "torn.txt").write_bytes(text[:-40])
    (tmp_path / "middle.txt").write_bytes(text[:-90] + b"\n" + text.split(b"\n")[-2] + b"\n")
    (tmp_path / "crlf.txt").write_bytes(text.replace(b"\n", b"\r\n"))
    with pytest.raises(DataError, match="cut off"):
        load_binance(tmp_path / "cut.gz")
    assert load_binance(tmp_path / "torn.txt").repairs["torn last line left out"] == 1
    with pytest.raises(DataError, match="line 3"):
        load_binance(tmp_path / "middle.txt")
    assert load_binance(tmp_path / "crlf.txt").digest() == load_binance(path).digest()


def test_stamps_that_go_back_are_raised_or_sorted_and_counted(tmp_path):
    back = load_binance(save(tmp_path / "a.txt", [photo(10), diff(11, 11, stamp=50), diff(12, 12, stamp=20), trade(1, stamp=55)]))
    assert back.repairs["exchange stamps of the book raised"] == 1 and (np.diff(back.exch_ns) >= 0).all()
    path = save(tmp_path / "b.txt", [photo(10), diff(11, 11, stamp=5), trade(1, stamp=3), trade(2, stamp=9)])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with_order = load_binance(path)
    for bit, stamps in ((1, with_order.exch_ns), (2, with_order.local_ns)):
        seen = with_order.seen & bit > 0 if len(with_order.seen) else slice(None)
        assert (np.diff(stamps[seen]) >= 0).all()
    with pytest.raises(DataError, match="beyond 9e10"):
        load_binance(save(tmp_path / "c.txt", [photo(10), diff(11, 11, bids=[["99999999999", "1"]])]))


def test_market_symbol_and_grid(tmp_path):
    path = save(tmp_path / "a.txt", [photo(10), diff(11, 11, stamp=1)])
    for bad, says in ((dict(market="usdm"), "has no pu"), (dict(market="margin"), "market"), (dict(symbol="ETHUSDT"), "BTCUSDT"), (dict(tick_size=-1.0), "tick_size"), (dict(lot_size=1e-9), "lot_size")):
        with pytest.raises(ParameterError, match=says):
            load_binance(path, **bad)
    with pytest.raises(DataError, match="line 1.*grid of 0.3"):
        load_binance(path, tick_size=0.3)
    assert load_binance(path, tick_size=0.25).quotes().equals(load_binance(path).quotes())
    two = save(tmp_path / "b.txt", [photo(10), diff(11, 11), dict(diff(11, 11), s="ETHUSDT")])
    with pytest.raises(ParameterError, match="split the file"):
        load_binance(two)


def test_wrapped_and_raw_messages_are_the_same(tmp_path):
    raw = [photo(10), diff(11, 11, bids=[["99.0", "1"]], stamp=1), trade(1, stamp=2)]
    wrapped = [m if "lastUpdateId" in m else dict(stream="btcusdt@x", data=m) for m in raw]
    assert load_binance(save(tmp_path / "a.txt", raw)).digest() == load_binance(save(tmp_path / "b.txt", wrapped)).digest()


@pytest.mark.nojit
def test_small_file_without_jit(tmp_path):
    events = load_binance(save(tmp_path / "a.txt", [photo(10), diff(11, 11, bids=[["100.2", "2"]], stamp=5), trade(1, price="100.2", stamp=6)]))
    assert events.quotes()["bid"].tolist() == pytest.approx([100.0, 100.2]) and len(events.trades()) == 1


# ---------------------------------------------------------------- the real files

@pytest.fixture(scope="module")
def captures():
    return {market: read_binance(real(path)) for market, path in FILES.items()}


@pytest.mark.realdata
@pytest.mark.parametrize("market, compared", [("usdm", 6544), ("spot", 3449)])
def test_the_book_equals_the_exchanges_best_quotes(captures, market, compared):
    capture, events = captures[market], load_binance(real(FILES[market]))
    sync = sync_book(capture)
    checks = check_tickers(capture, sync, events)
    assert not len(sync.gaps) and sync.counts["used"] == 1 and capture.market == market
    assert len(checks) == compared and checks["agree"].all()
    assert any(f"{compared} of {compared}" in n for n in events.notes)
    assert 1.26e9 < events.clock_offset_ns < 1.28e9 and 0 <= (events.local_ns - events.exch_ns).min() < 1e6
    assert [p for p in check_events(events) if not p.startswith("clock")] == []
    assert len(events.trades()) == len(capture.trades) - events.repairs["trades before the first book"]
    assert (latencies(capture)["delay_ns"] < 0).all()


@pytest.mark.realdata
@pytest.mark.parametrize("market", ["usdm", "spot"])
def test_the_witness_can_disagree(captures, market):
    "One best level of one change spoilt, or one change skipped: the comparison sees it."
    capture = captures[market]
    told = capture.tickers
    spoilt = replace_sizes(capture)
    from makerlab.data import crypto
    original = crypto.read_binance
    crypto.read_binance = lambda *a, **k: spoilt
    try:
        events = crypto.load_binance(capture.source, repair=("crossed",))
    finally:
        crypto.read_binance = original
    checks = check_tickers(spoilt, sync_book(spoilt), events)
    assert len(told) and not checks["agree"].all() and any("FIRST DIFFERENCE" in n for n in events.notes)


def replace_sizes(capture: Capture) -> Capture:
    "The same recording with every level of one change made larger."
    sizes = capture.sizes.copy()
    for row in capture.diffs.iloc[200:400].itertuples():
        at = slice(row.start, row.start + row.bids + row.asks)
        sizes[at] += 100_000 * (sizes[at] > 0)
    return replace(capture, sizes=sizes)


@pytest.mark.realdata
def test_each_markets_rule_on_the_other(captures):
    ids = captures["usdm"].diffs[["first", "final", "previous"]].to_numpy().tolist()
    by_spot = sum(sync_rule("spot", book_id=a[1], first=b[0], final=b[1]) == "gap" for a, b in zip(ids, ids[1:], strict=False))
    by_own = sum(sync_rule("usdm", book_id=a[1], first=b[0], final=b[1], previous=b[2]) == "gap" for a, b in zip(ids, ids[1:], strict=False))
    assert (by_own, by_spot, len(ids) - 1) == (0, 6391, 6550), "spot's rule on futures: false gaps"
    spot = captures["spot"].diffs
    assert (spot["previous"] == -1).all(), "futures' rule on spot has nothing to look at"
    whole = sync_book(captures["spot"])
    cut = replace(captures["spot"], diffs=spot.drop(index=1000).reset_index(drop=True))
    assert not len(whole.gaps)
    sync = sync_book(cut)
    assert len(sync.gaps) == 1 and sync.gaps["first"].iat[0] == spot["first"].iat[1001] and (sync.steps["what"] == "clear").sum() == 1
    assert sync.steps["what"].iat[-1] == "clear", "no second snapshot: nothing is known after the gap"
    futures = captures["usdm"].diffs
    sync = sync_book(replace(captures["usdm"], diffs=futures.drop(index=1000).reset_index(drop=True)))
    assert len(sync.gaps) == 1


@pytest.mark.realdata
def test_spot_without_its_snapshot_heals_at_the_touch(captures):
    capture = replace(captures["spot"], snapshots=captures["spot"].snapshots.iloc[:0])
    with pytest.raises(DataError, match="has no snapshot"):
        sync_book(capture)
    sync = sync_book(capture, from_scratch=True)
    assert sync.counts["applied"] == len(capture.diffs) and sync.counts["used"] == 0
