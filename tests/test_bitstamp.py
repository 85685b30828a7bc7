"Orders by number: matched halves of trades against the package's own pairs and the exchange's published trades."
import json
import lzma
from collections import Counter

import numpy as np
import pytest
from conftest import real

from makerlab.core import DataError, ParameterError
from makerlab.data.bitstamp import _raw_csv, _tidy, _with_fills, load_bitstamp, load_orderbook_csv, match_fills
from makerlab.data.events import ADD, CANCEL, FILL, MODIFY, TRADE
from makerlab.data.taq import read_rda

CSV, RDATA, LOG = (f"obanalytics_bitstamp_l3/{n}" for n in ("orders.csv.xz", "lob.data.RData", "2015-05-01.log.xz"))
T0 = 1_430_438_404_000


def save(path, rows):
    head = "id,timestamp,exchange.timestamp,price,volume,action,direction\n"
    path.write_text(head + "".join(f"{i},{T0 + t},{T0},{p},{v},{a},{d}\n" for i, t, p, v, a, d in rows))
    return path


BOOK = [(1, 0, "99.00", 500, "created", "bid"), (2, 1, "101.00", 300, "created", "ask")]


def kinds(events):
    return list(zip(events.kind.tolist(), events.side.tolist(), events.lots.tolist(), events.order_id.tolist()))


def test_a_taker_is_held_back_until_it_has_traded(tmp_path):
    rows = [*BOOK, (3, 10, "101.00", 450, "created", "bid"), (3, 12, "101.00", 150, "changed", "bid"), (2, 14, "101.00", 0, "deleted", "ask"), (3, 50, "101.00", 150, "deleted", "bid")]
    events = load_bitstamp(save(tmp_path / "a.csv", rows))
    assert kinds(events)[2:] == [(TRADE, 1, 300, 0), (FILL, -1, 300, 2), (ADD, 1, 150, 3), (CANCEL, 1, 150, 3)] and events.repairs == {}
    assert (events.quotes()["bid"] < events.quotes()["ask"]).all()


def test_an_order_moved_to_trade(tmp_path):
    rows = [*BOOK, (3, 5, "98.00", 200, "created", "bid"), (3, 10, "98.50", 200, "changed", "bid"), (3, 20, "101.00", 200, "changed", "bid"), (3, 22, "101.00", 0, "deleted", "bid"),
            (2, 22, "101.00", 100, "changed", "ask")]
    events = load_bitstamp(save(tmp_path / "a.csv", rows))
    assert kinds(events)[2:] == [(ADD, 1, 200, 3), (MODIFY, 1, 200, 3), (CANCEL, 1, 200, 3), (TRADE, 1, 200, 0), (FILL, -1, 200, 2)]


def test_losses_without_a_partner_are_cancels(tmp_path):
    events = load_bitstamp(save(tmp_path / "a.csv", [*BOOK, (1, 5, "99.00", 400, "changed", "bid")]))
    assert kinds(events)[2:] == [(CANCEL, 1, 100, 1)] and events.repairs["losses of volume without a partner, taken as cancels"] == 1


def test_halves_must_cross_and_be_near(tmp_path):
    def pairs(ask_price, late, **options):
        rows = [(1, 0, "99.00", 500, "created", "bid"), (2, 1, ask_price, 500, "created", "ask"), (1, 10, "99.00", 200, "changed", "bid"), (2, 10 + late, ask_price, 199, "changed", "ask")]
        return match_fills(_with_fills(_tidy(_raw_csv(save(tmp_path / "a.csv", rows)), {}, "a")), **options)
    assert len(pairs("99.00", 5)) == 1 and not pairs("99.01", 5) and not pairs("99.00", 5, rounding=0) and not pairs("99.00", 5001) and pairs("99.00", 5001, window_ms=6000)
    with pytest.raises(ParameterError, match="window_ms"):
        pairs("99.00", 5, window_ms=-1)


def test_impossible_lives_are_counted(tmp_path):
    rows = [*BOOK, (9, 5, "99.00", 7, "deleted", "bid"), (8, 6, "98.00", 7, "deleted", "bid"), (8, 7, "98.00", 7, "created", "bid"), (1, 8, "99.00", 500, "deleted", "bid"),
            (1, 9, "99.00", 500, "deleted", "bid"), (1, 9, "99.00", 500, "deleted", "bid")]
    events = load_bitstamp(save(tmp_path / "a.csv", rows))
    assert kinds(events)[2:] == [(CANCEL, 1, 500, 1)]
    assert events.repairs == {"rows told twice": 1, "orders from before the recording": 1, "orders deleted before they were created": 2, "rows of orders already deleted": 1}


@pytest.mark.parametrize("row, says", [((3, 5, "99.005", 5, "created", "bid"), "grid"), ((3, 5, "x", 5, "created", "bid"), "'x'"), ((3, 5, "99.00", -5, "created", "bid"), "row 2"),
                                       ((3, 5, "99.00", 5, "moved", "bid"), "row 2"), ((3, 5, "99.00", 5, "created", "both"), "row 2")])
def test_damage_is_refused(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        load_bitstamp(save(tmp_path / "a.csv", [*BOOK, row]))


def test_odd_rows_are_counted_and_short_ones_named(tmp_path):
    assert load_bitstamp(save(tmp_path / "a.csv", [*BOOK, (3, -50, "98.00", 5, "created", "bid")])).repairs == {"rows out of order": 1}
    assert load_bitstamp(save(tmp_path / "a.csv", [*BOOK, (1, 5, "99.00", 900, "changed", "bid")])).repairs == {"volumes that grew, not followed": 1}
    crossed = load_bitstamp(save(tmp_path / "a.csv", [*BOOK, (3, 5, "102.00", 5, "created", "bid")]))
    assert any(n.startswith("crossed: 1 rows kept as they are") and "row 2" in n for n in crossed.notes)
    with pytest.raises(DataError, match="beyond 9e10"):
        load_bitstamp(save(tmp_path / "a.csv", [*BOOK, (3, 5, "99999999999.00", 5, "created", "bid")]))
    text = save(tmp_path / "a.csv", [*BOOK, (3, 5, "98.00", 5, "created", "bid")]).read_text()
    for cut in (-2, -14, -20):  # in the middle of its last line
        (tmp_path / "cut.csv").write_text(text[:cut])
        with pytest.raises(DataError, match=r"cut\.csv row 2"):
            load_bitstamp(tmp_path / "cut.csv")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,timestamp\n1,2\n")
    with pytest.raises(DataError, match="orders.csv"):
        load_bitstamp(tmp_path / "a.csv")
    packed = lzma.compress(save(tmp_path / "b.csv", BOOK).read_bytes() * 50)
    (tmp_path / "cut.csv.xz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match="cannot be read to its end.*cut off"):
        load_bitstamp(tmp_path / "cut.csv.xz")
    with pytest.raises(ParameterError, match="does not exist"):
        load_bitstamp(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="no book"):
        load_bitstamp(save(tmp_path / "c.csv", [(9, 5, "99.00", 7, "deleted", "bid")]))


# ---------------------------------------------------------------- the ragged csv

RAGGED = "type,time,id,price,size,type\nA,30134030,7,11.48,400,BID\nA,30134031,8,11.50,300,ASK\n"


def ragged(tmp_path, text, **options):
    (tmp_path / "r.txt").write_text(RAGGED + text)
    return load_orderbook_csv(tmp_path / "r.txt", **(dict(date="2010-06-08") | options))


def test_trades_belong_to_the_removal_before_them(tmp_path):
    events = ragged(tmp_path, "R,30134100,7,100\nT,30134100,7,11.48,300\nC,30134200,8\nT,30134250,99,11.49,50\nC,30134300,7\nT,30134300,7,11.47,100\n")
    assert kinds(events)[2:] == [(TRADE, -1, 300, 0), (FILL, 1, 300, 7), (CANCEL, -1, 300, 8), (TRADE, 0, 50, 0), (TRADE, -1, 100, 0), (FILL, 1, 100, 7)]
    assert events.tz == "America/New_York" and str(events.frame()["time"][0])[:19] == "2010-06-08 12:22:14"
    assert sum(events.repairs.values()) == 1


def test_odd_lines_of_the_ragged_csv(tmp_path):
    events = ragged(tmp_path, "A,30134040,9,0.0001,100,BID\nC,30134041,9\nC,30134042,77\nR,30134043,7,900\nT,30134044,5,11.485,10\n")
    assert len(events) == 2 and sum(events.repairs.values()) == 4
    for bad, says in (("X,1,2\n", "line 4"), ("A,1,2\n", "line 4"), ("A,1,2,3,4,BUY\n", "line 4"), ("A,1,2,x,4,BID\n", "'x'")):
        with pytest.raises(DataError, match=says):
            ragged(tmp_path, bad)
    with pytest.raises(ParameterError, match="date"):
        ragged(tmp_path, "", date=None)
    (tmp_path / "o.txt").write_text("a,b\n")
    with pytest.raises(DataError, match="no file of the R package"):
        load_orderbook_csv(tmp_path / "o.txt", date="2010-06-08")


# ---------------------------------------------------------------- the real files

@pytest.fixture(scope="module")
def filled():
    return _with_fills(_tidy(_raw_csv(real(CSV)), {}, "orders"))


@pytest.mark.realdata
def test_pairs_agree_with_the_packages_own(filled):
    own = read_rda(real(RDATA))["lob.data$trades"]
    truth = {(int(k), int(m), int(v)) if d == "buy" else (int(m), int(k), int(v)) for d, v, m, k in zip(own["direction"].astype(str), own["volume"], own["maker"], own["taker"])}
    assert (own["taker"] > own["maker"]).all(), "the younger order came"
    ids, fill = filled["id"], filled["fill"]
    exact = {(int(ids[b]), int(ids[a]), int(fill[b])) for b, a in match_fills(filled, rounding=0)}
    assert len(truth) == 482 and len(exact) == 478 and exact <= truth
    rounded = {(int(ids[b]), int(ids[a]), int(fill[b])) for b, a in match_fills(filled)}
    assert len(rounded) == 541 and len(rounded & truth) >= 476


@pytest.mark.realdata
def test_trades_agree_with_what_the_exchange_published():
    with lzma.open(real(LOG), "rt") as f:
        told = [json.loads(line.split(" ", 2)[2]) for line in f if " trade " in line]
    published = Counter((round(t["price"] * 100), round(t["amount"] * 1e8)) for t in told)
    events = load_bitstamp(real(CSV))
    trades = events.kind == TRADE
    ours = list(zip(events.tick[trades].tolist(), events.lots[trades].tolist()))
    found = 0
    for price, volume in ours:
        key = next(((price, volume + d) for d in (0, 1, -1) if published[(price, volume + d)]), None)
        if key:
            published[key] -= 1
            found += 1
    assert len(told) == 575 and len(ours) == 541 and found >= 0.97 * len(ours), f"{found} of {len(ours)}: price, volume and thus the maker are right"


@pytest.mark.realdata
def test_the_real_book():
    by_csv, by_r = load_bitstamp(real(CSV)), load_bitstamp(real(RDATA))
    assert by_csv.level == by_r.level == "l3" and by_csv.lot_size == 1e-8
    assert by_csv.repairs["orders from before the recording"] == by_r.repairs["orders from before the recording"] == 186
    left_out = [e.quotes().attrs["repairs"]["crossed book left out"] for e in (by_csv, by_r)]
    assert left_out[0] <= 5 < left_out[1], "the pairs with rounding leave fewer crossed books behind"
    for events in (by_csv, by_r):
        fills = np.flatnonzero(events.kind == FILL)
        assert (events.kind[fills - 1] == TRADE).all() and (events.lots[fills - 1] == events.lots[fills]).all()


@pytest.mark.realdata
@pytest.mark.parametrize("name, rows, fills", [("sample", 10_481, 775), ("tradersample", 9_959, 746)])
def test_the_ragged_files(name, rows, fills):
    events = load_orderbook_csv(real(f"orderbook_cran_l3/{name}.txt"), date="2010-06-08")
    assert len(events) == rows and (events.kind == FILL).sum() == fills
    assert "cancels of unknown orders" not in events.repairs and not events.quotes().attrs["repairs"].get("crossed book left out")
