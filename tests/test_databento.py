"Databento files: the kernel against its slow twin, bytes against the vendor's own decoder, cut files; the ES files' facts."
import databento_dbn as dbn
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from collections import Counter, OrderedDict
from conftest import real

from makerlab.core import DataError, ParameterError
from makerlab.data.databento import _mbo_rows_nb, _mbp_rows_nb, load_dbn, mbo_rows, read_dbn
from makerlab.data.events import ADD, CANCEL, CLEAR, DEPTH, FILL, MODIFY, TRADE, depth_of, touch

T0 = 1_703_545_200_000_000_000
SIDE = {1: "B", -1: "A", 0: "N"}
ES = "databento_es/esh4-glbx-mdp3-202312{}.mbo.dbn.zst"


def header(schema=dbn.Schema.MBO, names=None):
    from types import SimpleNamespace
    day = pd.Timestamp(T0).date()
    maps = [SimpleNamespace(raw_symbol=n, intervals=[SimpleNamespace(start_date=day, end_date=day, symbol=str(i))]) for i, n in (names or {7: "ESH4"}).items()]
    return dbn.Metadata(dataset="GLBX.MDP3", start=T0, stype_in=dbn.SType.RAW_SYMBOL, stype_out=dbn.SType.INSTRUMENT_ID, schema=schema, symbols=["ESH4"], mappings=maps).encode()


def mbo(i, a, s, o, p, q, *, flags=128, instrument=7, late=80_000):
    return bytes(dbn.MBOMsg(publisher_id=1, instrument_id=instrument, ts_event=T0 + i, order_id=o, price=p, size=q, channel_id=0, action=dbn.Action(a), side=dbn.Side(SIDE[s]),
                            ts_recv=T0 + i + late, flags=flags, ts_in_delta=0, sequence=i))


def save(path, records, *, schema=dbn.Schema.MBO, names=None):
    data = header(schema, names) + b"".join(records)
    if path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as f:
            f.write(data)
        data = sink.getvalue().to_pybytes()
    path.write_bytes(data)
    return path


def random_messages(n, rng, orders=12):
    "Any messages at all, sensible or not."
    return pd.DataFrame({"action": rng.choice(list("AAACCMMFFFTRN"), n, p=np.array([4, 4, 4, 3, 3, 2, 2, 3, 3, 3, 3, 0.1, 0.5]) / 34.6),
                         "side": rng.choice([1, -1, 0], n, p=[0.48, 0.48, 0.04]), "order_id": rng.integers(0, orders, n), "price": rng.integers(1, 6, n),
                         "size": rng.integers(0, 5, n), "snapshot": rng.random(n) < 0.01})


def by_kernel(m):
    index, ids = pd.factorize(m["order_id"])
    out = [np.full(2 * len(m) + 2, -99, np.int64) for _ in range(6)]
    odd = np.zeros(6, np.int64)
    n = _mbo_rows_nb(np.array([ord(a) for a in m["action"]], np.uint8), m["side"].to_numpy(np.int64), index.astype(np.int64), m["price"].to_numpy(np.int64), m["size"].to_numpy(np.int64),
                     m["snapshot"].to_numpy(), len(ids), *out, odd)
    rows = [tuple(int(c[i]) for c in out) for i in range(n)]
    return [(*r[:5], int(ids[r[5]]) if r[5] >= 0 else 0) for r in rows], odd


@pytest.mark.bounds
@pytest.mark.parametrize("seed", range(20))
def test_the_twins_agree(seed):
    m = random_messages(400, np.random.default_rng(seed))
    assert by_kernel(m)[0] == mbo_rows(m)


@pytest.mark.nojit
def test_the_twins_agree_without_jit():
    m = random_messages(60, np.random.default_rng(99))
    assert by_kernel(m)[0] == mbo_rows(m)


def test_a_row_for_each_rule():
    m = pd.DataFrame([("A", -1, 1, 100, 5, False), ("T", 1, 0, 100, 2, False), ("F", -1, 1, 100, 2, False), ("M", -1, 1, 100, 3, False),  # confirms: no row
                      ("M", -1, 1, 101, 3, False), ("C", -1, 1, 101, 1, False), ("T", 1, 0, 101, 4, False), ("F", -1, 1, 101, 2, False), ("C", -1, 1, 101, 2, False),
                      ("A", 1, 2, 90, 1, False), ("R", 0, 0, 0, 0, False), ("C", 1, 2, 90, 1, False)], columns=["action", "side", "order_id", "price", "size", "snapshot"])
    rows, odd = by_kernel(m)
    assert [r[1] for r in rows] == [ADD, TRADE, FILL, MODIFY, CANCEL, TRADE, FILL, TRADE, ADD, CLEAR]
    assert rows[7] == (6, TRADE, 1, 101, 2, 0), "what no fill explains is told once"
    assert odd.tolist() == [1, 0, 0, 0, 0, 0], "the last cancel speaks of an order that the clear took"


@pytest.mark.nojit
@pytest.mark.parametrize("stays", [False, True])
def test_an_order_amended_into_the_market_is_no_fill(stays):
    "The feed tells a fill of the aggressor itself: it leaves its queue, trades once, and what is left of it rests at its new price."
    after = ("M", 1, 7, 101, 2, False) if stays else ("C", 1, 7, 100, 3, False)
    m = pd.DataFrame([("A", 1, 7, 100, 5 if stays else 3, False), ("A", 1, 9, 100, 1, False), ("A", -1, 8, 101, 3, False), ("T", 1, 7, 101, 3, False), ("F", 1, 7, 101, 3, False),
                      ("F", -1, 8, 101, 3, False), ("C", -1, 8, 101, 3, False), after], columns=["action", "side", "order_id", "price", "size", "snapshot"])
    rows, odd = by_kernel(m)
    assert rows == mbo_rows(m)
    assert [r[1:] for r in rows[3:]] == [(CANCEL, 1, 100, 3, 7), (TRADE, 1, 101, 3, 0), (FILL, -1, 101, 3, 8), *([(MODIFY, 1, 101, 2, 7)] if stays else [])]
    assert odd.tolist() == [0, 0, 0, 0, 0, 1]


def test_an_auction_tells_its_volume_once():
    m = pd.DataFrame([("A", -1, 1, 100, 3, False), ("A", 1, 2, 101, 3, False), ("T", 0, 0, 100, 3, False), ("F", 0, 1, 100, 3, False), ("F", 0, 2, 100, 3, False)],
                     columns=["action", "side", "order_id", "price", "size", "snapshot"])
    rows, _ = by_kernel(m)
    assert [(r[1], r[2], r[4]) for r in rows[2:]] == [(TRADE, 0, 3), (FILL, -1, 3), (FILL, 1, 3)]


def test_a_snapshot_begins_the_book_anew(tmp_path):
    photo = [mbo(i, "A", 1 - 2 * (i % 2), 10 + i, (99 + 2 * (i % 2)) * 10**9, 2, flags=160 if i == 3 else 32) for i in range(4)]
    one, two = save(tmp_path / "a.dbn", photo), save(tmp_path / "b.dbn", [*photo, mbo(9, "C", 1, 10, 99 * 10**9, 2)])
    events = load_dbn([one, two])
    assert (events.kind == CLEAR).sum() == 1 and len(events) == 4 + 1 + 4 + 1
    assert events.repairs == {"ts_event raised to the one before": 3, "ts_recv raised to the one before": 3}, "the snapshot's own stamps are older than what it follows"
    assert events.quotes()["bid_size"].tolist()[-1] == 2.0


# ---------------------------------------------------------------- files

def test_bytes_agree_with_the_vendors_decoder(tmp_path):
    rng = np.random.default_rng(5)
    records = [mbo(i, "A", int(rng.choice([1, -1])), i + 1, int(rng.integers(1, 9)) * 10**9, 1 + i % 4) for i in range(50)]
    path = save(tmp_path / "a.dbn.zst", records)
    decoder = dbn.DBNDecoder()
    decoder.write(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd").read())
    theirs = [r for r in decoder.decode() if isinstance(r, dbn.MBOMsg)]
    meta, ours, other = read_dbn(path)
    assert len(theirs) == len(ours) == 50 and other == 0 and meta.dataset == "GLBX.MDP3"
    for name in ("ts_event", "order_id", "price", "size", "ts_recv", "sequence"):
        assert [getattr(r, name) for r in theirs] == ours[name].tolist()


def test_other_records_between_are_counted(tmp_path):
    status = bytes(dbn.SystemMsg(T0, "heartbeat"))
    path = save(tmp_path / "a.dbn", [status, mbo(0, "A", 1, 1, 10**9, 1), status, mbo(1, "A", -1, 2, 2 * 10**9, 1)])
    events = load_dbn(path)
    assert len(events) == 2 and events.repairs["records of other kinds left out"] == 2


@pytest.mark.parametrize("cut, says", [(-1, "bytes are left"), (-56 - 30, "bytes are left"), (6, "DBN|header"), (30, "header")])
def test_a_cut_file_is_refused(tmp_path, cut, says):
    path = save(tmp_path / "a.dbn", [mbo(i, "A", 1, i, 10**9, 1) for i in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=says):
        load_dbn(path)


def test_a_cut_zstd_stream_is_refused(tmp_path):
    path = save(tmp_path / "a.dbn.zst", [mbo(i, "A", 1, i, 10**9, 1) for i in range(300)])
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 2, 6):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cut off|no DBN"):
            load_dbn(path)
    (tmp_path / "x.zst").write_bytes(b"\x28\xb5\x2f\xfdgarbage that is no frame")
    with pytest.raises(DataError, match=r"x\.zst"):
        load_dbn(tmp_path / "x.zst")


def test_instruments_are_chosen(tmp_path):
    path = save(tmp_path / "a.dbn", [mbo(i, "A", 1 if i < 4 else -1, i + 1, (5 + (i >= 4)) * 10**9, 1, instrument=7 + i % 2) for i in range(8)], names={7: "ESH4", 8: "NQH4"})
    for bad in ({}, dict(symbol="CLH4"), dict(instrument_id=9)):
        with pytest.raises(ParameterError, match="NQH4"):
            load_dbn(path, **bad)
    assert load_dbn(path, symbol="NQH4").digest() == load_dbn(path, instrument_id=8).digest() and len(load_dbn(path, symbol="ESH4")) == 4


def test_the_tick_is_a_divisor(tmp_path):
    path = save(tmp_path / "a.dbn", [mbo(0, "A", 1, 1, 250_000_000 * 3, 1), mbo(1, "A", -1, 2, 250_000_000 * 7, 1)])
    assert load_dbn(path).tick_size == 0.25 and load_dbn(path, tick_size=0.05).quotes()["bid"].tolist() == pytest.approx([0.75])
    with pytest.raises(DataError, match="grid"):
        load_dbn(path, tick_size=0.1)
    for bad in (0.0, -0.25, 1e-10):
        with pytest.raises(ParameterError, match="tick_size"):
            load_dbn(path, tick_size=bad)


def test_bad_messages_are_named_or_counted(tmp_path):
    E9 = 10**9
    first = [mbo(0, "A", 1, 1, 99 * E9, 5), mbo(1, "A", -1, 2, 101 * E9, 5), mbo(2, "A", 1, 3, 98 * E9, 5)]

    def load(*more, **options):
        return load_dbn(save(tmp_path / "a.dbn", [*first, *more]), **options)
    assert load(mbo(3, "A", 1, 3, 98 * E9, 5)).repairs == {"orders added twice": 1}
    assert load(mbo(3, "C", 1, 3, 98 * E9, 5), mbo(4, "C", 1, 3, 98 * E9, 5)).repairs == {"messages about unknown orders": 1}
    assert load(mbo(3, "A", 1, 9, 97 * E9, 0)).repairs == {"messages without a side or size": 1}
    back = load_dbn(save(tmp_path / "b.dbn", [first[0], first[2], first[1]]))
    assert back.repairs == {"ts_event raised to the one before": 1, "ts_recv raised to the one before": 1} and (np.diff(back.exch_ns) >= 0).all()
    crossed = load(mbo(4, "A", 1, 9, 102 * E9, 1))
    assert any(n.startswith("crossed: 1 rows kept as they are") and "row 3" in n for n in crossed.notes)
    with pytest.raises(DataError, match="row 3"):
        load(mbo(4, "A", 1, 9, 102 * E9, 1), keep=())
    with pytest.raises(DataError, match="message 3 places an order without a price"):
        load(mbo(4, "A", 1, 9, dbn.UNDEF_PRICE, 1))
    with pytest.raises(DataError, match=r"price 97\.5 of message 3 is not on the grid"):
        load(mbo(4, "A", 1, 9, 97 * E9 + E9 // 2, 1), tick_size=1.0)
    with pytest.raises(DataError, match="window"):
        load(mbo(4, "A", 1, 9, 9 * 10**18, 1), tick_size=0.01)
    early = [mbo(0, "A", 1, 1, 99 * E9, 5), mbo(1, "T", -1, 0, 99 * E9, 2), mbo(1, "F", 1, 1, 99 * E9, 2), mbo(1, "M", 1, 1, 99 * E9, 3), mbo(2, "A", -1, 2, 101 * E9, 5)]
    assert any(n.startswith("early-trades: 1 rows kept") for n in load_dbn(save(tmp_path / "c.dbn", early)).notes)
    assert load_dbn(tmp_path / "c.dbn", repair=("early-trades",)).kind.tolist() == [ADD, CANCEL, ADD]


@pytest.mark.bounds
@pytest.mark.nojit
def test_one_level_follows_its_records():
    rng = np.random.default_rng(3)
    n = 80
    bid, ask = rng.integers(1, 4, n), rng.integers(5, 8, n)
    bid_size, ask_size = rng.integers(0, 3, n), rng.integers(0, 3, n)
    out = [np.empty(5 * n, np.int64) for _ in range(5)]
    m = _mbp_rows_nb(np.zeros(n, bool), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64), bid, bid_size, ask, ask_size, *out)
    book, k = {}, 0
    for i in range(n):
        while k < m and out[0][k] == i:
            assert out[1][k] == DEPTH
            book[int(out[2][k]), int(out[3][k])] = int(out[4][k])
            k += 1
        live = {key: q for key, q in book.items() if q}
        assert live == {key: q for key, q in (((1, int(bid[i])), int(bid_size[i])), ((-1, int(ask[i])), int(ask_size[i]))) if q}


# ---------------------------------------------------------------- the real files

@pytest.fixture(scope="module")
def es():
    return load_dbn([real(ES.format(24)), real(ES.format(25))])


def heads(messages, *, subtract, takers=False):
    "Fills whose order stands at the head of its queue, and all fills of known orders (takers: with those of the aggressor itself): from the raw messages, apart from the loader."
    book, where, told, hit, n, taker = {}, {}, {}, 0, 0, b"N"
    for a, s, o, p, q in zip(*(messages[c].tolist() for c in ("action", "side", "order_id", "price", "size"))):
        a = a.decode()
        if a in "AM":
            told.pop(o, None)
            queue = book.setdefault((s, p), OrderedDict())
            if o in where and where[o] == (s, p) and o in queue and a == "M" and q <= queue[o]:
                queue[o] = q
                continue
            if o in where:
                book[where[o]].pop(o, None)
            queue[o], where[o] = q, (s, p)
        elif a == "C" and o in where and o in book[where[o]]:
            queue = book[where[o]]
            queue[o] += told.pop(o, 0) - q
            if queue[o] <= 0:
                del queue[o]
        elif a == "T":
            taker = s
        elif a == "F" and s == taker and s != b"N" and not takers:  # the aggressor itself, amended into the market: leaves
            queue = book[where[o]]
            queue[o], told[o] = queue[o] - q, told.get(o, 0) + q
            if queue[o] <= 0:
                del queue[o]
        elif a == "F" and o in where:
            queue = book[where[o]]
            n += 1
            hit += next(iter(queue), None) == o
            if subtract and o in queue:
                queue[o], told[o] = queue[o] - q, told.get(o, 0) + q
                if queue[o] <= 0:
                    del queue[o]
    return hit, n


@pytest.mark.realdata
def test_the_queue_head_needs_the_fill(es):
    _, messages, _ = read_dbn(real(ES.format(25)))
    right, n = heads(messages, subtract=True)
    naive, _ = heads(messages, subtract=False)
    told, every = heads(messages, subtract=True, takers=True)
    assert every == 6364 and told / every == pytest.approx(0.90, abs=0.015), "DATA.md: 89 % and 46 %, of all F messages about known orders"
    assert (n, right, naive) == (6257, 5728, 2860), "without the 107 F messages of aggressors: 91.5 % and 45.7 %"
    from makerlab.data.lob_events import fifo_facts
    facts = fifo_facts(es)
    assert facts["executions"] == n and facts["head_share"] == pytest.approx(right / n, abs=0.002)


@pytest.mark.realdata
def test_es_rows_follow_from_the_messages(es):
    _, r, _ = read_dbn(real(ES.format(25)))
    assert Counter(r["action"].tolist()) == {b"A": 29216, b"C": 17999, b"M": 12233, b"F": 6371, b"T": 2973}
    alone = load_dbn(real(ES.format(25)))
    assert es.symbol == "ESH4" and es.tick_size == 0.25 and len(es) == len(alone) + 8725 + 1, "the second day begins with all orders again: a clear"
    assert alone.repairs == {"messages about unknown orders": 7, "fills beyond the displayed size (icebergs)": 27,
                             "fills told of the aggressor itself (left its queue, no fill of a resting order)": 107}
    slow = pd.DataFrame({"action": [a.decode() for a in r["action"].tolist()], "side": [{b"B": 1, b"A": -1}.get(s, 0) for s in r["side"].tolist()], "order_id": r["order_id"].astype(np.int64),
                         "price": r["price"], "size": r["size"].astype(np.int64), "snapshot": np.arange(len(r)) == 0})
    rows = np.array(mbo_rows(slow))
    for column, want in ((alone.kind, rows[:, 1]), (alone.side, rows[:, 2]), (alone.tick, rows[:, 3] // 250_000_000), (alone.lots, rows[:, 4]), (alone.order_id, rows[:, 5])):
        assert (column == want).all()
    fills = np.flatnonzero(alone.kind == FILL)
    auction = alone.exch_ns[fills] == T0
    volume = int(r["size"][r["action"] == b"T"].sum())
    assert alone.lots[alone.kind == TRADE].sum() == volume, "every lot is told once: no print of an aggressor's own fill"
    assert (alone.tick[fills] == alone.tick[fills - 1])[~auction].all(), "an order is filled at the price where it stands"
    assert (alone.kind[fills[~auction] - 1] == TRADE).all() and (alone.side[fills[~auction] - 1] == -alone.side[fills[~auction]]).all()
    assert alone.lots[(alone.kind == TRADE) & (alone.exch_ns == T0) & (alone.side == 0)].sum() == 44


@pytest.mark.realdata
def test_es_book_is_never_crossed_at_an_events_end(es):
    view = depth_of(es)
    book = touch(view)
    last = np.append(view.exch_ns[1:] != view.exch_ns[:-1], True)
    crossed = last & (book["bid_lots"] > 0) & (book["ask_lots"] > 0) & (book["bid_tick"] >= book["ask_tick"])
    assert crossed.sum() == 891 and view.exch_ns[crossed].max() < T0, "orders gather before the auction at 23:00 and cross; afterwards never"
    assert (depth_of(es).kind == DEPTH).sum() > 50_000


@pytest.mark.realdata
def test_mbp1_quotes_are_the_records():
    path = real("databento_es/futures_mbp-1_2024-07-01T23-58_2024-07-02T00-02.dbn.zst")
    _, r, _ = read_dbn(path)
    events = load_dbn(path)
    quotes = events.quotes()
    last = np.append(r["ts_event"][1:] != r["ts_event"][:-1], True)
    at = pd.Series(np.arange(len(r))[last], index=pd.to_datetime(r["ts_event"][last], utc=True))
    rows = at.reindex(quotes["time"]).to_numpy()
    assert events.level == "l2" and not np.isnan(rows).any()
    rows = rows.astype(int)
    assert (quotes["bid"] * 1e9 == r["bid_px_00"][rows]).all() and (quotes["ask"] * 1e9 == r["ask_px_00"][rows]).all() and (quotes["bid_size"] == r["bid_sz_00"][rows]).all()
    assert len(events.trades()) == 119 and events.repairs == {"early-trades": 1}
    assert CANCEL not in events.kind
