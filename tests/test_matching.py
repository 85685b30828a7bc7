"The matching engine against its twin, over more than a million messages, and everything that a book must refuse."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.execution import matching as m
from makerlab.execution.matching import (
    BUY, SELL, FILL_COLUMNS, RESTED, LIMIT, MARKET, IOC, FOK, POST_ONLY, CANCEL, MODIFY, MESSAGE_DTYPE, SELF_TRADE, LimitOrderBook, Order, SlowBook, check_book,
    depth, grow_book, make_messages, new_book, orders, probe_queue, run_messages, run_slowly)

LOW, SPAN = 1808, 16384  # the window of make_messages
EVERY = {"limit": 0.38, "cancel": 0.34, "market": 0.06, "ioc": 0.05, "fok": 0.05, "post-only": 0.05, "modify": 0.07}


def stream(*rows):
    "Messages from tuples (kind, side, tick, lots, id[, owner])."
    out = np.zeros(len(rows), dtype=MESSAGE_DTYPE)
    for i, (kind, side, tick, lots, order_id, *owner) in enumerate(rows):
        out[i] = (kind, side, owner[0] if owner else 0, tick, lots, order_id)
    return out


def both(messages, *, low=LOW, span=SPAN, self_trade="none", n_orders=None):
    "Run fast and slow, hold them equal message by message and fill by fill, look at every link; returns the fast run."
    book = new_book(low_tick=low, n_ticks=span, n_orders=n_orders or messages.size, self_trade=self_trade)
    run = run_messages(messages, book=book, strict=False)
    slow = SlowBook(low_tick=low, n_ticks=span, self_trade=self_trade)
    fills, status = run_slowly(messages, book=slow)
    np.testing.assert_array_equal(run.status, np.array(status, dtype=np.int8))
    np.testing.assert_array_equal(run.fills[:, m.F_OWNER:], np.array(fills, dtype=np.int64).reshape(-1, 7))
    assert check_book(run.book) == []
    theirs = [(side, -side*key, lots, owner, order_id) for side in (BUY, SELL) for key, level in slow.sides[side].items()
              for order_id, (lots, owner) in level.items()]
    ours = orders(run.book)[["side", "tick", "lots", "owner", "order_id"]]
    assert [tuple(row) for row in ours.to_numpy().tolist()] == theirs  # the same queues in the same order
    return run


@pytest.mark.bounds
@pytest.mark.parametrize("seed, late, self_trade, owners, decay, market_lots", [
    (1, 0.0, "none", 0, 8.0, 20), (2, 0.2, "cancel-newest", 3, 8.0, 60), (3, 0.5, "cancel-oldest", 3, 2.0, 40), (4, 1.0, "none", 2, 30.0, 150), (5, 0.1, "cancel-oldest", 2, 1.0, 400)])
def test_twins_agree_over_a_million_messages(seed, late, self_trade, owners, decay, market_lots):
    messages = make_messages(220_000, rng=np.random.default_rng(seed), mix=EVERY, late=late, owners=owners, self_trade=self_trade, decay_ticks=decay, market_lots=market_lots)
    run = both(messages, self_trade=self_trade)
    assert len(run.fills) > 10_000


def noise(seed, n, *, span=24, ids=60):
    "Messages without any sense: every kind, dead ids, used ids, prices outside, no lots, no side."
    rng = np.random.default_rng(seed)
    out = np.zeros(n, dtype=MESSAGE_DTYPE)
    out["kind"], out["side"] = rng.integers(-1, 8, n), rng.choice([BUY, SELL, BUY, SELL, BUY, SELL, BUY, SELL, 0, 2, -3], n)
    out["tick"], out["lots"] = rng.integers(-3, span + 3, n), rng.integers(-1, 12, n)
    out["id"], out["owner"] = rng.integers(-2, ids, n), rng.integers(0, 3, n)
    out["lots"][rng.random(n) < 0.001] = m.MAX_LOTS + 1
    return out


@pytest.mark.bounds
@pytest.mark.parametrize("self_trade", SELF_TRADE)
@pytest.mark.parametrize("seed", range(6))
def test_noise_is_read_alike(seed, self_trade):
    run = both(noise(seed, 20_000), low=0, span=24, self_trade=self_trade)
    assert len(np.unique(run.status)) >= 13  # nearly every way to end


KIND = st.sampled_from([LIMIT, LIMIT, LIMIT, MARKET, IOC, FOK, POST_ONLY, CANCEL, MODIFY, MODIFY])
ROW = st.tuples(KIND, st.sampled_from([BUY, SELL]), st.integers(-1, 7), st.integers(0, 6), st.integers(0, 11), st.integers(0, 2))


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=60), self_trade=st.sampled_from(SELF_TRADE))
def test_twins_agree_on_short_streams_that_shrink(rows, self_trade):
    both(stream(*rows), low=0, span=7, self_trade=self_trade)
    history(stream(*rows), *one_by_one(stream(*rows), low=0, span=7, self_trade=self_trade))


def one_by_one(messages, *, low, span, self_trade):
    "The fills of each message, by a run of each alone."
    book, slots, parts = new_book(low_tick=low, n_ticks=span, n_orders=max(messages.size, 1), self_trade=self_trade), None, []
    for i in range(messages.size):
        run = run_messages(messages[i:i + 1], book=book, slots=slots, strict=False)
        slots = run.slots
        parts.append((int(run.status[0]), run.fills.tolist()))
    return parts, book


def history(messages, parts, book):
    "Hold a run to what needs no second book: prices within limits, first in first out, conservation by order, never crossed."
    left, joined, limit, serial = {}, {}, {}, 0
    for (kind, side, _, tick, lots, order_id), (status, fills) in zip(messages.tolist(), parts):
        if status < 0:
            assert not fills
            continue
        if kind == CANCEL:
            del left[order_id]
            continue
        if kind == MODIFY:
            side = limit[order_id][0]
            if limit[order_id][1] == tick and lots <= left[order_id]:
                left[order_id] = lots
                assert not fills and status == m.MODIFIED
                continue
            del left[order_id]
        for _, _, price, traded, remains, maker, taker, took in fills:
            waiting = [(limit[o][1]*side, joined[o], o) for o in left if limit[o][0] == -side]
            assert min(waiting)[2] == maker, "not the best price, or not the oldest there"
            assert price == limit[maker][1] and (kind == MARKET or side*(tick - price) >= 0) and taker == order_id and took == side
            assert left[maker] - traded == remains and traded <= lots
            lots -= traded
            left[maker] = 0 if traded == 0 else remains
            if left[maker] == 0:
                del left[maker]
        assert (lots == 0) == (status == m.FILLED)
        if status in (m.RESTED, m.MODIFIED):
            serial += 1
            left[order_id], joined[order_id], limit[order_id] = lots, serial, (side, tick)
        bids, asks = [limit[o][1] for o in left if limit[o][0] > 0], [limit[o][1] for o in left if limit[o][0] < 0]
        assert not bids or not asks or max(bids) < min(asks), "crossed at rest"
    resting = orders(book)
    assert dict(zip(resting["order_id"], resting["lots"])) == left


@pytest.mark.parametrize("seed", range(3))
def test_history_of_longer_streams(seed):
    messages = make_messages(2000, rng=np.random.default_rng(seed), mix=EVERY, owners=2, late=0.3, decay_ticks=2.0, market_lots=80, self_trade=SELF_TRADE[seed])
    history(messages, *one_by_one(messages, low=LOW, span=SPAN, self_trade=SELF_TRADE[seed]))


def test_the_history_check_can_fail():
    messages = stream((LIMIT, SELL, 3, 5, 0), (LIMIT, SELL, 3, 5, 1), (LIMIT, BUY, 3, 5, 2))
    parts, book = one_by_one(messages, low=0, span=7, self_trade="none")
    history(messages, parts, book)
    parts[2][1][0][m.F_MAKER] = 1
    with pytest.raises(AssertionError, match="not the oldest"):
        history(messages, parts, book)


@pytest.mark.nojit
def test_an_example_by_hand_for_every_kind():
    run = both(stream(
        (LIMIT, SELL, 5, 5, 0), (LIMIT, SELL, 5, 3, 1), (LIMIT, SELL, 6, 4, 2),   # A, B at 5, C at 6
        (POST_ONLY, BUY, 5, 1, 3), (FOK, BUY, 5, 9, 4), (FOK, BUY, 6, 9, 5),       # would cross; 8 are not 9; 5+3+1
        (IOC, BUY, 7, 9, 6), (MARKET, BUY, 0, 1, 7), (POST_ONLY, BUY, 5, 2, 8),    # takes 3 and goes; nothing left; waits
        (MODIFY, 0, 5, 1, 8), (MODIFY, 0, 5, 4, 8), (CANCEL, 0, 0, 0, 8), (CANCEL, 0, 0, 0, 8)), low=0, span=10)
    assert run.status.tolist() == [m.RESTED]*3 + [m.WOULD_CROSS, m.NOT_ENOUGH, m.FILLED, m.KILLED, m.KILLED, m.RESTED, m.MODIFIED, m.MODIFIED, m.CANCELLED, m.UNKNOWN_ORDER]
    assert run.fills[:, [m.F_MAKER, m.F_TICK, m.F_LOTS, m.F_LEFT]].tolist() == [[0, 5, 5, 0], [1, 5, 3, 0], [2, 6, 1, 3], [2, 6, 3, 0]]


@pytest.mark.nojit
def test_small_streams_without_a_compiler():
    for policy in SELF_TRADE:
        both(noise(9, 400), low=0, span=24, self_trade=policy)
    both(make_messages(300, rng=np.random.default_rng(1), mix=EVERY, owners=2, late=0.3), n_orders=300)


@pytest.mark.nojit
def test_self_trade_policies():
    rows = stream((LIMIT, SELL, 5, 2, 0, 1), (LIMIT, SELL, 5, 3, 1, 7), (LIMIT, SELL, 5, 4, 2, 2), (LIMIT, BUY, 5, 6, 3, 7))
    ends = {"none": (m.FILLED, [[0, 2], [1, 3], [2, 1]]), "cancel-newest": (m.SELF_KILLED, [[0, 2]]), "cancel-oldest": (m.FILLED, [[0, 2], [1, 0], [2, 4]])}
    for policy, (status, fills) in ends.items():
        run = both(rows, low=0, span=10, self_trade=policy)
        assert run.status[-1] == status and run.fills[:, [m.F_MAKER, m.F_LOTS]].tolist() == fills
    rows["owner"] = 0  # nobody in particular never meets itself
    assert both(rows, low=0, span=10, self_trade="cancel-newest").status[-1] == m.FILLED


def test_modify_size_down_keeps_the_place_and_all_else_loses_it():
    def queue(tick, lots):
        run = both(stream((LIMIT, BUY, 5, 4, 0), (LIMIT, BUY, 5, 4, 1), (MODIFY, 0, tick, lots, 0)), low=0, span=10)
        return orders(run.book)["order_id"].tolist()
    assert queue(5, 3) == queue(5, 4) == [0, 1]
    assert queue(5, 5) == [1, 0] == queue(4, 4) and queue(6, 4) == [0, 1]


@pytest.mark.bounds
def test_out_of_slots_and_out_of_the_window_refuse_and_change_nothing():
    full = make_messages(2000, rng=np.random.default_rng(3))
    book = new_book(low_tick=9990, n_ticks=21, n_orders=6)
    run = run_messages(full, book=book, strict=False)
    assert {m.NO_SLOT, m.OUT_OF_WINDOW} <= set(run.status.tolist()) and check_book(book) == []
    with pytest.raises(DataError, match=r"row \d+: (out of window|no slot)"):
        run_messages(full, book=new_book(low_tick=9990, n_ticks=21, n_orders=6))
    before = [a.copy() for a in book]
    fills = np.zeros((64, 8), dtype=np.int64)
    for message in ((BUY, 9989, 1, LIMIT), (SELL, 10011, 1, IOC), (BUY, 10**12, 1, FOK), (SELL, -10**12, 1, POST_ONLY), (BUY, 10000, -5, LIMIT), (BUY, 10000, 0, MARKET),
                    (BUY, 10000, m.MAX_LOTS + 1, LIMIT), (3, 10000, 1, LIMIT), (BUY, 10000, 1, 9), (BUY, 10000, 1, -1)):
        assert m._submit_nb(book, *message, 0, fills)[0] < 0
    for slot in (-1, 6, 10**9, -(10**9)):
        assert m._cancel_nb(book, slot) == 0 and m._ahead_nb(book, slot) == -1 and m._modify_nb(book, slot, 10000, 1, fills)[0] == m.UNKNOWN_ORDER
    book.state[m.SERIAL] = before[3][m.SERIAL]
    for now, then in zip(book, before):
        np.testing.assert_array_equal(now, then)


@pytest.mark.bounds
@pytest.mark.parametrize("seed", range(3))
def test_growing_in_full_run_changes_nothing(seed):
    messages = make_messages(20_000, rng=np.random.default_rng(seed), mix=EVERY)
    whole = both(messages)
    book, slots, fills, status = new_book(low_tick=LOW, n_ticks=SPAN, n_orders=messages.size), None, [], []
    for k, part in enumerate(np.array_split(messages, 7)):
        run = run_messages(part, book=book, slots=slots, strict=False)
        slots, fills, status = run.slots, fills + [run.fills], status + [run.status]
        assert check_book(run.book) == []
        book = grow_book(run.book, low_tick=LOW - 37*(k + 1), n_ticks=SPAN + 111*(k + 1), n_orders=messages.size + 13*k)
        assert check_book(book) == []
    np.testing.assert_array_equal(np.concatenate(status), whole.status)
    np.testing.assert_array_equal(np.concatenate(fills)[:, m.F_OWNER:], whole.fills[:, m.F_OWNER:])


def test_fills_without_room_are_refused_before_anything_trades():
    book, fills = new_book(low_tick=0, n_ticks=9, n_orders=9), np.full((3, 8), -7, dtype=np.int64)
    slots = [m._submit_nb(book, SELL, 5, 2, LIMIT, 0, fills)[1] for _ in range(4)]
    assert m._submit_nb(book, BUY, 5, 8, IOC, 0, fills) == (m.NO_ROOM, -1, 0) and m._level_nb(book, SELL, 5) == 8 and (fills == -7).all()
    assert m._submit_nb(book, BUY, 4, 8, LIMIT, 0, fills)[0] == RESTED and m._modify_nb(book, slots[0], 4, 8, fills)[0] == m.NO_ROOM
    assert m._level_nb(book, SELL, 5) == 8 and check_book(book) == []


def test_growing_a_full_book_gives_slots():
    fills = np.zeros((9, 8), dtype=np.int64)
    book = new_book(low_tick=0, n_ticks=4, n_orders=2)
    a, b = m._submit_nb(book, BUY, 1, 1, LIMIT, 0, fills)[1], m._submit_nb(book, BUY, 1, 2, LIMIT, 0, fills)[1]
    m._cancel_nb(book, a)
    c = m._submit_nb(book, SELL, 2, 3, LIMIT, 0, fills)[1]
    assert c == a and m._submit_nb(book, SELL, 2, 1, LIMIT, 0, fills)[0] == m.NO_SLOT
    book = grow_book(book, n_orders=4)
    slots = [m._submit_nb(book, SELL, 2, 1, LIMIT, 0, fills)[1] for _ in range(2)]
    assert sorted([b, c, *slots]) == [0, 1, 2, 3] and check_book(book) == [] and m._submit_nb(book, SELL, 2, 1, LIMIT, 0, fills)[0] == m.NO_SLOT


def test_the_check_finds_what_is_spoilt():
    run = run_messages(make_messages(5000, rng=np.random.default_rng(0)))
    slot = int(orders(run.book)["slot"].iloc[3])
    base = int(run.book.state[m.BASE])
    for spoil in (lambda b: b.nodes["lots"].__setitem__(slot, b.nodes["lots"][slot] + 1), lambda b: b.nodes["prev"].__setitem__(slot, slot),
                  lambda b: b.words.__setitem__(0, b.words[0] ^ 1), lambda b: b.state.__setitem__(m.BEST_BID, b.state[m.BEST_BID] - 1),
                  lambda b: b.state.__setitem__(m.LIVE, 3), lambda b: b.state.__setitem__(m.FREE, slot), lambda b: b.nodes["owner"].__setitem__(base, b.nodes["owner"][base] + 1)):
        book = m.Book(*(a.copy() for a in run.book))
        assert check_book(book) == []
        spoil(book)
        assert check_book(book) != []


@pytest.mark.parametrize("gap", [1, 2, 31, 32, 33, 1000, 1024, 1025, 40_000])
def test_the_next_price_is_found_however_far(gap):
    book, fills = new_book(low_tick=0, n_ticks=100_001, n_orders=4), np.zeros((4, 8), dtype=np.int64)
    near, far = (m._submit_nb(book, BUY, t, 1, LIMIT, 0, fills)[1] for t in (45_000, 45_000 - gap))
    above, top = (m._submit_nb(book, SELL, t, 1, LIMIT, 0, fills)[1] for t in (45_001, 45_001 + gap))
    m._cancel_nb(book, near)
    m._cancel_nb(book, above)
    assert m._best_nb(book) == (45_000 - gap, 45_001 + gap)
    m._cancel_nb(book, far)
    m._cancel_nb(book, top)
    assert m._best_nb(book) == (-1, 100_001) and check_book(book) == []


def test_streams_are_refused_by_row():
    good = make_messages(50, rng=np.random.default_rng(0))
    for field, value, word in (("lots", 0, "bad lots"), ("lots", -4, "bad lots"), ("side", 0, "bad side"), ("kind", 9, "bad kind"), ("id", -1, "bad id")):
        bad = good.copy()
        row = int(np.flatnonzero(bad["kind"] == LIMIT)[5])
        bad[field][row] = value
        with pytest.raises(DataError, match=f"row {row}: {word}"):
            run_messages(bad, book=new_book(low_tick=LOW, n_ticks=SPAN, n_orders=50))
    twice = stream((LIMIT, BUY, 5, 1, 3), (LIMIT, BUY, 5, 1, 3))
    with pytest.raises(DataError, match="row 1: duplicate id"):
        run_messages(twice)
    with pytest.raises(ParameterError, match="ids index an array"):
        run_messages(stream((LIMIT, BUY, 5, 1, 10**12)))
    with pytest.raises(ParameterError, match="do not fit in a window"):
        run_messages(stream((LIMIT, BUY, -2_000_000_000, 1, 0), (LIMIT, BUY, 2_000_000_000, 1, 1)))
    with pytest.raises(ParameterError, match="MESSAGE_DTYPE"):
        run_messages(np.zeros((3, 2)))
    assert run_messages(np.zeros(0, dtype=MESSAGE_DTYPE)).fills.shape == (0, len(FILL_COLUMNS))
    assert run_messages(stream((CANCEL, 0, 0, 0, 5), (MODIFY, 0, 0, 1, 5))).counts().to_dict() == {"unknown order": 2}


@pytest.mark.parametrize("call, word", [
    (lambda: new_book(low_tick=0, n_ticks=0, n_orders=5), "n_ticks = 0"), (lambda: new_book(low_tick=0, n_ticks=5, n_orders=m.MAX_ORDERS + 1), "n_orders"),
    (lambda: new_book(low_tick=0, n_ticks=5, n_orders=5, self_trade="never"), "self_trade"),
    (lambda: grow_book(new_book(low_tick=0, n_ticks=5, n_orders=5), low_tick=1), "must hold the old window"),
    (lambda: grow_book(new_book(low_tick=0, n_ticks=5, n_orders=5), n_orders=4), "n_orders = 4"),
    (lambda: make_messages(0, rng=np.random.default_rng(0)), "n = 0"), (lambda: make_messages(5, rng=np.random.default_rng(0), mix={"limit": 0.5}), "sum 1"),
    (lambda: make_messages(5, rng=np.random.default_rng(0), mix={"iceberg": 1.0}), "mix"), (lambda: make_messages(5, rng=np.random.default_rng(0), late=2.0), "late = 2"),
    (lambda: probe_queue(make_messages(5, rng=np.random.default_rng(0)), every=0), "every = 0"),
    (lambda: LimitOrderBook().submit_order(Order(side=0, lots=1, tick=1)), "side"), (lambda: LimitOrderBook().submit_order(Order(side=1, lots=0, tick=1)), "lots = 0"),
    (lambda: LimitOrderBook().submit_order(Order(side=1, lots=1.5, tick=1)), "lots = 1.5"), (lambda: LimitOrderBook().submit_order(Order(side=1, lots=1, tick=1.5)), "tick = 1.5"),
    (lambda: LimitOrderBook().submit_order(Order(side=1, lots=1, tick=1, kind="stop")), "kind"), (lambda: LimitOrderBook().submit_order(Order(side=1, lots=1, tick=1, kind="market")), "has no limit"),
    (lambda: LimitOrderBook().submit_order(Order(side=1, lots=1, tick=1, owner=-1)), "owner = -1"), (lambda: LimitOrderBook().submit_order(Order(side=1, lots=1, tick=1, order_id=-7)), "order_id = -7"),
    (lambda: LimitOrderBook().modify_order(5, lots=1), "order_id = 5"), (lambda: LimitOrderBook(self_trade="no"), "self_trade")])
def test_bad_arguments_are_named(call, word):
    with pytest.raises(ParameterError, match=word):
        call()


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from([LIMIT, LIMIT, MARKET, IOC, FOK, POST_ONLY, CANCEL, MODIFY]), st.sampled_from([BUY, SELL]), st.integers(-3000, 3000),
                               st.integers(1, 9), st.integers(0, 20)), max_size=80))
def test_the_face_says_what_the_twin_says(rows):
    face, slow = LimitOrderBook(tick_size=0.5), SlowBook(low_tick=-10**6, n_ticks=2*10**6)
    for i, (kind, side, tick, lots, target) in enumerate(rows):
        theirs: list[tuple] = []
        if kind == CANCEL:
            assert face.cancel_order(target) == (m._slow_cancel(slow, target) == m.CANCELLED)
            continue
        if kind == MODIFY:
            if target not in slow.where:
                with pytest.raises(ParameterError, match="does not wait"):
                    face.modify_order(target, lots=lots, tick=tick)
                continue
            ours = face.modify_order(target, lots=lots, tick=tick)
            status = m._slow_modify(slow, target, tick, lots, theirs)
        else:
            ours = face.submit_order(Order(side=side, lots=lots, tick=None if kind == MARKET else tick, kind=m.KINDS[kind], order_id=i))
            status = slow.submit(side, tick, lots, kind, 0, i, theirs)
        assert face.last_status == m.STATUS_NAMES[status]
        assert [(0, f.tick, f.lots, f.maker_left, f.maker_id, f.taker_id, f.side) for f in ours] == theirs
        assert set(face._slots) == set(slow.where)
        mid = [slow.sides[s].peekitem(0)[0]*-s for s in (BUY, SELL) if slow.sides[s]]
        assert face.get_midprice() == sum(mid)/2*0.5 if len(mid) == 2 else np.isnan(face.get_midprice())
        volume = {s: sum(lots for lots, _ in slow.sides[s].peekitem(0)[1].values()) if slow.sides[s] else 0 for s in (BUY, SELL)}
        total = volume[BUY] + volume[SELL]
        assert face.get_order_book_imbalance() == (volume[BUY] - volume[SELL])/total if total else np.isnan(face.get_order_book_imbalance())
    assert check_book(face.book) == []


def test_views():
    face = LimitOrderBook()
    for side, tick, lots in ((BUY, 10, 3), (BUY, 10, 4), (BUY, 8, 5), (SELL, 12, 6)):
        face.submit_order(Order(side=side, tick=tick, lots=lots))
    table = depth(face.book, 5)
    assert table["bid_tick"].tolist() == [10, 8] and table["bid_lots"].tolist() == [7, 5] and table["bid_orders"].tolist() == [2, 1]
    assert table["ask_tick"].iloc[0] == 12 and pd.isna(table["ask_tick"].iloc[1])
    assert orders(face.book)["ahead"].tolist() == [0, 3, 0, 0]
    assert face.queue_position(2) == 3 and face.queue_position(99) is None
    assert m._level_nb(face.book, BUY, 10) == 7 and m._level_nb(face.book, SELL, 10) == 0 == m._level_nb(face.book, BUY, 12) == m._level_nb(face.book, BUY, 10**9)


def test_messages_repeat_from_a_seed_and_keep_their_mix():
    a, b = (make_messages(100_000, rng=np.random.default_rng(5)) for _ in range(2))
    assert a.tobytes() == b.tobytes() != make_messages(100_000, rng=np.random.default_rng(6)).tobytes()
    share = np.bincount(a["kind"], minlength=7)/len(a)
    np.testing.assert_allclose(share[[LIMIT, CANCEL, MARKET]], [0.48, 0.45, 0.07], atol=4*0.5/np.sqrt(len(a)))
    run = run_messages(a)
    assert run.counts()["cancelled"] == (a["kind"] == CANCEL).sum()  # none too late
    blind = run_messages(make_messages(100_000, rng=np.random.default_rng(5), late=1.0))
    assert blind.counts()["unknown order"] > 10_000


def test_the_front_of_a_queue_trades_sooner():
    tried = probe_queue(make_messages(300_000, rng=np.random.default_rng(2), mix={"limit": 0.47, "cancel": 0.44, "market": 0.09}, decay_ticks=2.0, market_lots=40)).query("300 <= total < 600")
    front, back = (tried[(tried["ahead"]/tried["total"] < 0.2) == yes]["traded"] for yes in (True, False))
    assert front.mean() - back.mean() > 4*np.hypot(front.sem(), back.sem())
    assert (tried["worth"] == tried["gain"].fillna(0)).all()
