"One door: every real folder opens or is refused with what it is; damaged files are repaired by count or refused."
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.core import DataError, MakerlabError, ParameterError
from makerlab.data.events import FILL, events_from_quotes, to_hftbacktest, write_events
from makerlab.data.samples import load_sample, sample_dir
from makerlab.data.source import EVENT_KINDS, KINDS, detect, inspect_source, open_events, open_source

HF = "highfrequency_rda/data/"


@pytest.fixture(scope="module")
def day():
    return tuple(f.iloc[:2000].reset_index(drop=True) for f in load_sample("BIGT", day=0))


@pytest.mark.realdata
def test_highfrequency_pair():
    m = open_source(real(HF + "sampleQData.rda"), trades=real(HF + "sampleTData.rda"))
    assert (len(m.quotes), len(m.trades), m.tz, m.kind) == (46_564, 7_168, "UTC", "rda")
    one = open_source(real(HF + "sampleQData.rda"), tz="UTC", start_date="2018-01-03")
    assert one.trades is None and any("no trades" in p for p in one.problems)
    assert str(one.quotes["time"].iloc[0])[:16] == "2018-01-03 14:30" and 0 < len(one.quotes) < 46_564
    with pytest.raises(ParameterError, match="tz='UTC'"):
        open_source(real(HF + "sampleQData.rda"), tz="America/New_York")


@pytest.mark.realdata
def test_one_venue_of_a_raw_file():
    report = inspect_source(real(HF + "sampleQDataRaw.rda"), exchange="N")
    assert report["rows"]["quotes"] < 131_401 and report["crossed"] == 0


@pytest.mark.realdata
def test_nbbo_folder_and_its_symbols():
    report = inspect_source(real("nbbo_rda_2017"))
    assert report["symbols"] == ["AAPL", "AMD", "AMZN", "JPM", "MSFT", "NVDA", "SPY", "TSLA"] and report["rows"]["quotes"] == 43_208
    json.dumps(report)
    m = open_source(real("nbbo_rda_2017/2017-01-03.rda"), symbol="JPM")
    assert m.symbol == "JPM" and (m.quotes["ask"] - m.quotes["bid"]).max() > 10  # the spikes are kept: they are data
    with pytest.raises(ParameterError, match="TSLA"):
        open_source(real("nbbo_rda_2017"))
    with pytest.raises(ParameterError, match="AAPL"):
        open_source(real("nbbo_rda_2017"), symbol="IBM")


@pytest.mark.realdata
def test_lobster():
    m = open_source(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip"))
    assert (m.kind, m.symbol, len(m.quotes), len(m.trades)) == ("lobster", "AMZN", 57_515, 8_974 + 2_445) and m.problems == []
    with pytest.raises(ParameterError, match="AMZN"):
        open_source(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip"), symbol="AAPL")
    with pytest.raises(ParameterError, match="New York"):
        open_source(real("lobster_aapl_l10_head"), tz="UTC")
    with pytest.raises(DataError, match="2012-06-21"):
        open_source(real("lobster_aapl_l10_head"), start_date="2013-01-01", end_date="2013-01-02")


@pytest.mark.realdata
@pytest.mark.parametrize("path, says", [
    ("mlfinpy_es_trades/tick_data.csv.gz", "trades only"), ("orderbook_cran_l3/sample.txt", "date"), ("obanalytics_bitstamp_l3/2015-05-01.log.xz", "raw log"), ("options_optopsy/SPX_2018.csv.gz", "option quotes"), (HF + "sampleTData.rda", "trades="),
    ("databento_es", "point at one data file"), (HF + "SPYRM.rda", "no table of quotes")])
def test_what_cannot_be_used_is_named(path, says):
    with pytest.raises(MakerlabError, match=says):
        inspect_source(real(path))


def test_missing_empty_and_unreadable(tmp_path):
    with pytest.raises(ParameterError, match="does not exist"):
        open_source(tmp_path / "absent.rda")
    for name in ("empty.rda", "empty.csv", "empty.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match="empty"):
            open_source(tmp_path / name)
    for name, data in (("a.rda", b"RDX3\nX\n\0\0\0garbage"), ("b.parquet", b"PAR1garbagePAR1"), ("c.gz", b"\x1f\x8b\x08garbage"), ("d.zip", b"PK\3\4garbage"),
                       ("e.bin", bytes(range(256))), ("f.csv", b"time,bid\n1,2,3\n4,5,6,7,8\n"), ("g.json", b'{"a": 1}')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError):
            open_source(tmp_path / name)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds nothing"):
        open_source(tmp_path / "void")


def test_format_overrules_and_is_checked(tmp_path):
    assert detect(sample_dir(), format="parquet") == "parquet"
    with pytest.raises(ParameterError, match="format"):
        detect("sample", format="excel")


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_tables_come_back_whole(tmp_path, day, suffix):
    quotes, trades = day
    for kind, frame in (("quotes", quotes), ("trades", trades)):
        path = tmp_path / f"X.{kind}.{suffix}"
        frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    for path in (tmp_path / f"X.quotes.{suffix}", tmp_path):
        m = open_source(path, trades=tmp_path / f"X.trades.{suffix}")
        pd.testing.assert_frame_equal(m.quotes, quotes, check_exact=True)
        assert m.trades["time"].equals(trades["time"]) and (m.trades["side"] == trades["side"]).all()


def test_seed_columns_in_csv_with_date_in_the_name(tmp_path, day):
    local = day[0]["time"].dt.tz_convert("America/New_York")
    frame = pd.DataFrame({"time_m": (local - local.dt.normalize()).dt.total_seconds(), "sym_root": "BIGT", "best_bid": day[0]["bid"],
                          "best_bidsiz": day[0]["bid_size"], "best_ask": day[0]["ask"], "best_asksiz": day[0]["ask_size"]})
    frame.to_csv(tmp_path / "2026-03-02.csv", index=False)
    m = open_source(tmp_path / "2026-03-02.csv")
    pd.testing.assert_frame_equal(m.quotes, day[0], check_exact=True)
    assert m.symbol == "BIGT" and m.tz == "America/New_York" and any("tz was not given" in p for p in m.problems)


@pytest.mark.parametrize("damage, rule", [(dict(bid=26.0), "Q2"), (dict(bid=np.nan), "missing"), (dict(ask=np.inf), "missing"),
                                          (dict(bid_size=-5.0), "size"), (dict(bid=-1.0), "P2"), (dict(bid=0.0), "P2")])
def test_damage_is_repaired_and_counted(tmp_path, day, damage, rule):
    frame = day[0].copy()
    for column, value in damage.items():
        frame.loc[7, column] = value
    frame.to_csv(tmp_path / "x.csv", index=False)
    m = open_source(tmp_path / "x.csv")
    assert m.repairs.get(rule) == 1 and len(m.quotes) == len(frame) - 1
    report = inspect_source(tmp_path / "x.csv")
    assert report["crossed"] == (rule == "Q2") and report["repairs"] == m.repairs


def test_locked_are_kept_and_counted(tmp_path, day):
    frame = day[0].copy()
    frame.loc[5, "ask"] = frame.loc[5, "bid"]
    frame.to_parquet(tmp_path / "x.parquet")
    assert inspect_source(tmp_path / "x.parquet")["locked"] == 1


def test_small_tables(tmp_path, day):
    day[0].iloc[:1].to_parquet(tmp_path / "one.parquet")
    assert "one quote only" in " ".join(open_source(tmp_path / "one.parquet").problems)
    day[0].iloc[:0].to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(MakerlabError, match="no rows"):
        open_source(tmp_path / "none.csv")
    day[0].drop(columns="ask").to_csv(tmp_path / "half.csv", index=False)
    with pytest.raises(DataError, match="ask"):
        open_source(tmp_path / "half.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="neither quotes nor trades"):
        open_source(tmp_path / "other.csv")


def test_dates_and_sample():
    m = open_source("sample", start_date="2026-03-03", end_date="2026-03-03")
    assert m.kind == "sample" and m.symbol == "BIGT" and m.quotes.equals(load_sample("BIGT", day=1)[0])
    folder = open_source(sample_dir(), symbol="BIGT", start_date="2026-03-03", end_date="2026-03-03")
    pd.testing.assert_frame_equal(folder.quotes, m.quotes, check_exact=True)
    assert len(folder.trades) == len(m.trades)
    for bad in (dict(start_date="x"), dict(start_date="2026-03-04", end_date="2026-03-03"), dict(symbol="AAPL")):
        with pytest.raises(ParameterError):
            open_source("sample", **bad)
    with pytest.raises(DataError, match="2026-03-04"):
        open_source("sample", start_date="2027-01-01")


def test_a_lying_suffix(tmp_path):
    (tmp_path / "x.csv").write_bytes((sample_dir() / "2026-03-02.rda").read_bytes())
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"time,bid\n"))
    assert detect(tmp_path / "x.csv") == "rda" and detect(tmp_path / "y.gz") == "csv"


def test_trades_with_a_side_are_sorted_and_of_one_symbol(tmp_path, day):
    quotes, trades = day
    both = pd.concat([trades.assign(symbol="A"), trades.head(100).assign(symbol="B")]).iloc[::-1]
    quotes.assign(symbol="A").to_parquet(tmp_path / "x.quotes.parquet")
    both.to_parquet(tmp_path / "x.trades.parquet")
    m = open_source(tmp_path / "x.quotes.parquet", symbol="A")
    assert m.trades[["time", "price", "size", "side"]].equals(trades[["time", "price", "size", "side"]]) and m.repairs["sorted"] > 0


def test_stamps_with_a_zone_are_not_said_to_have_none(tmp_path, day):
    day[0].to_csv(tmp_path / "x.csv", index=False)
    assert not any("tz was not given" in p for p in open_source(tmp_path / "x.csv").problems)


# ---------------------------------------------------------------- sources of events

REAL_EVENTS = [("hftbacktest_binance/usdm_btcusdt_20240808.gz", "binance", "l2", "BTCUSDT", 21_308), ("hftbacktest_binance/spot_btcusdt_20240808.gz", "binance", "l2", "BTCUSDT", 9_756),
               ("databento_es/esh4-glbx-mdp3-20231225.mbo.dbn.zst", "databento", "l3", "ESH4", None),
               ("databento_es/futures_mbp-1_2024-07-01T23-58_2024-07-02T00-02.dbn.zst", "databento", "l2", "ESU4", 119),
               ("obanalytics_bitstamp_l3/orders.csv.xz", "bitstamp", "l3", "BTCUSD", 541), ("obanalytics_bitstamp_l3/lob.data.RData", "bitstamp", "l3", "BTCUSD", 480)]


@pytest.mark.realdata
@pytest.mark.parametrize("path, kind, level, symbol, trades", REAL_EVENTS)
def test_vendors_open_both_ways(path, kind, level, symbol, trades):
    path = real(path)
    assert detect(path) == kind
    m = open_source(path)
    assert (m.kind, m.symbol, m.tz, m.session) == (kind, symbol, "UTC", None) and any("no session is assumed" in p for p in m.problems)
    assert trades is None or len(m.trades) == trades
    assert (m.quotes["bid"] <= m.quotes["ask"]).all() and m.trades["side"].isin([-1, 0, 1]).all()
    assert (m.quotes[["bid", "ask"]].round(9) == m.quotes[["bid", "ask"]]).all(axis=None), "prices are the decimals that were meant"
    if "usdm" in path.name or path.suffix == ".RData":
        return  # large: test_crypto and test_bitstamp look closer
    report = inspect_source(path)
    json.dumps(report)
    assert report["symbols"] == [symbol] and report["rows"]["quotes"] == len(m.quotes)
    events = open_events(path)
    assert events.level == level and events.symbol == symbol and (level == "l2" or (events.kind == FILL).any())


@pytest.mark.realdata
def test_a_closed_market_is_left_out_of_the_quotes():
    m = open_source(real("databento_es/esh4-glbx-mdp3-20231225.mbo.dbn.zst"))
    assert m.repairs["quotes of a closed market left out"] == 1 and str(m.quotes["time"].iloc[0])[:13] == "2023-12-25 23"
    day = open_source(real("databento_es/esh4-glbx-mdp3-20231225.mbo.dbn.zst"), start_date="2023-12-25", end_date="2023-12-25")
    assert len(day.quotes) == len(m.quotes), "dates are UTC's here"


@pytest.mark.realdata
def test_lobster_as_events():
    events = open_events(real("lobster_aapl_l10_head"))
    assert events.level == "l3" and events.symbol == "AAPL" and (events.kind == FILL).any()


@pytest.mark.realdata
def test_the_ragged_csv_needs_its_day():
    path = real("orderbook_cran_l3/sample.txt")
    m = open_source(path, start_date="2010-06-08", end_date="2010-06-08")
    assert m.kind == "orderbook" and m.tz == "America/New_York" and len(m.trades) == 830
    assert len(open_events(path, date="2010-06-08", symbol="X")) == 10_481 and open_events(path, date="2010-06-08", symbol="X").symbol == "X"


def test_events_come_back_from_every_store(tmp_path, day):
    quotes, trades = day
    for name, frame in (("quotes", quotes), ("trades", trades)):
        frame.to_parquet(tmp_path / f"X.{name}.parquet")
    events = open_events(tmp_path / "X.quotes.parquet", lot_size=1.0)
    assert events.level == "l2" and any("one level" in n for n in events.notes) and len(events.trades()) > 0
    write_events(events, tmp_path / "e.parquet")
    np.save(tmp_path / "e.npy", to_hftbacktest(events))
    np.savez_compressed(tmp_path / "e.npz", data=to_hftbacktest(events))
    for name, kind in (("e.parquet", "events"), ("e.npy", "hftbacktest"), ("e.npz", "hftbacktest")):
        assert detect(tmp_path / name) == kind
        back = open_events(tmp_path / name, tick_size=0.01, lot_size=1.0)
        assert back.digest() == events.digest()
        m = open_source(tmp_path / name)
        assert m.kind == kind and len(m.trades) == len(events.trades())
    assert set(EVENT_KINDS) < set(KINDS)


def test_events_of_the_sample():
    events = open_events("sample", symbol="SMLT", date="2026-03-03")
    quotes = load_sample("SMLT", day=1)[0]
    assert events.symbol == "SMLT" and events.tz == "America/New_York" and np.allclose(events.quotes()["bid"].iloc[-1], quotes["bid"].iloc[-1])


@pytest.mark.parametrize("options, says", [(dict(tz="America/New_York"), "is UTC"), (dict(exchange="N"), "one venue"), (dict(trades="x.csv"), "its own trades"), (dict(symbol="ETHUSDT"), "BTCUSDT"),
                                           (dict(start_date="2030-01-01"), "2024-08-08")])
def test_arguments_that_a_vendor_cannot_use(tmp_path, options, says):
    change = {"e": "depthUpdate", "E": 1_723_161_255_100, "s": "BTCUSDT", "U": 8, "u": 8, "b": [["100.1", "3"]], "a": []}
    photo = {"lastUpdateId": 7, "bids": [["100.0", "1"]], "asks": [["100.2", "2"]]}
    path = tmp_path / "capture.gz"
    path.write_bytes(gzip.compress("".join(f"{1_723_161_255_050_000_000 + 10**8 * i} {json.dumps(m)}\n" for i, m in enumerate((photo, change))).encode()))
    assert detect(path) == "binance" and open_source(path).symbol == "BTCUSDT"
    with pytest.raises(MakerlabError, match=says):
        open_source(path, **options)
    for bad in (dict(date="2024-08-08"), dict(format="bitstamp", tick_size=0.01), dict(format="events", repair=("crossed",)), dict(format="databento", from_scratch=True)):
        with pytest.raises(ParameterError, match="has its own"):
            open_events(path, **bad)


def test_zstd_that_is_no_dbn_and_zip_of_something_else(tmp_path):
    import zipfile

    import pyarrow as pa
    with pa.CompressedOutputStream(str(tmp_path / "x.zst"), "zstd") as f:
        f.write(bytes(range(256)))
    (tmp_path / "broken.zst").write_bytes(b"\x28\xb5\x2f\xfdgarbage")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.writestr("readme.md", "hello")
    for name in ("x.zst", "broken.zst", "x.zip"):
        with pytest.raises(DataError, match=name):
            open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["feed.npy", "feed.npz", "feed.parquet"])
def test_files_cut_off_are_said_to_be(tmp_path, name):
    path, e = tmp_path / name, events_from_quotes(load_sample("BIGT", day=0)[0].head(500), tick_size=0.01, lot_size=100.0)
    {"feed.npy": lambda: np.save(path, to_hftbacktest(e)), "feed.npz": lambda: np.savez_compressed(path, data=to_hftbacktest(e)), "feed.parquet": lambda: write_events(e, path)}[name]()
    assert len(open_events(path, tick_size=None if name.endswith("t") else 0.01, lot_size=None if name.endswith("t") else 100.0)) == len(e)
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) * 6 // 10])
    for call in (open_events, open_source, inspect_source):
        with pytest.raises(DataError, match=rf"{name}.*cut (off|short)"):
            call(path)


def test_half_an_r_file_is_refused(tmp_path):
    (tmp_path / "half.rda").write_bytes((sample_dir() / "2026-03-02.rda").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"half\.rda"):
        inspect_source(tmp_path / "half.rda")
