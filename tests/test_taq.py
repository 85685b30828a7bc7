"Quotes and trades from R files: the real files and their facts, every R layout (written by R itself), and no look-ahead."
import shutil
import subprocess

import numpy as np
import pandas as pd
import pyreadr
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, to_ns
from makerlab.data import taq
from makerlab.data.taq import (BNHLS_QUOTES, CleaningOptions, clean_quotes, clean_trades, day_file, lee_ready, lee_ready_slow, load_nbbo_data,
                               load_quotes, load_trade_data, load_trades, match_trades, match_trades_slow, quote_before, read_rda, to_clock)

NY = "America/New_York"
HF = "highfrequency_rda/"


# ---------------------------------------------------------------- real files

@pytest.fixture(scope="module")
def cleaned():
    return load_quotes(real(HF + "data/sampleQData.rda"), tz="UTC"), load_trades(real(HF + "data/sampleTData.rda"), tz="UTC")


@pytest.mark.realdata
def test_cleaned_quotes_and_trades(cleaned):
    q, t = cleaned
    assert (len(q), len(t)) == (46_564, 7_168)
    assert (q.bid > q.ask).sum() == 0
    assert list(q.columns) == ["time", "bid", "ask", "bid_size", "ask_size"] and list(t.columns) == ["time", "price", "size"]
    assert str(q.time.dt.tz) == "UTC" and str(q.time[0].tz_convert(NY))[:19] == "2018-01-02 09:30:00"
    assert q.time[0].microsecond == 115_000, "sub-seconds are kept"
    assert q.attrs["symbol"] == "XXX" and q.attrs["tz"] == "UTC" and not any(q.attrs["repairs"].values())
    assert any("round lots" in note for note in q.attrs["notes"])


@pytest.mark.realdata
def test_trades_inside_the_quote_strictly_before(cleaned):
    q, t = cleaned
    m = match_trades(t, q)
    same = match_trades(t, q.assign(time=q.time - pd.Timedelta(1, "ns")))
    inside = [((x.price >= x.bid) & (x.price <= x.ask)).mean() for x in (m, same)]
    assert inside == [pytest.approx(0.908, abs=5e-4), pytest.approx(0.9975, abs=5e-4)]
    assert (lee_ready(m) != lee_ready(same)).mean() == pytest.approx(0.163, abs=1e-3)
    assert (m.quote_time < m.time).all()


@pytest.mark.realdata
def test_named_rules_reproduce_the_packages_cleaning(cleaned):
    q, t = cleaned
    raw = load_quotes(real(HF + "data/sampleQDataRaw.rda"), tz="UTC", exchange="N")
    assert raw.attrs["repairs"] == {"P3": 36_979, "missing": 0, "P1": 2, "sorted": 0, "size": 0, "P2": 0, "Q2": 0}
    ours, report = clean_quotes(raw, rules=BNHLS_QUOTES)
    assert report.counts["Q1"] == 47_856 and sum(report.counts.values()) == 47_856
    pd.testing.assert_frame_equal(ours[["time", "bid", "ask"]], q[["time", "bid", "ask"]], check_exact=True)
    assert (ours.bid_size == q.bid_size).mean() == pytest.approx(0.63, abs=0.01)
    trades = load_trades(real(HF + "data/sampleTDataRaw.rda"), tz="UTC", exchange="N", rules=("missing", "sorted", "size", "P2", "T1", "T2", "T3"))
    assert {k: v for k, v in trades.attrs["repairs"].items() if v} == {"P3": 66_072, "P1": 4, "T2": 2, "T3": 4_017}
    assert (trades.time == t.time).all() and np.allclose(trades.price, t.price, rtol=0, atol=1e-12)
    every = load_trades(real(HF + "data/sampleTDataRaw.rda"), tz="UTC", exchange="N")
    m = match_trades(every, raw)
    assert len(m) == 11_187 and ((m.price >= m.bid) & (m.price <= m.ask)).mean() == pytest.approx(0.871, abs=1e-3)


@pytest.mark.realdata
def test_several_venues_are_said(cleaned):
    q = load_quotes(real(HF + "data/sampleQDataRaw.rda"), tz="auto")
    assert q.attrs["tz"] == "UTC" and q.attrs["repairs"]["P1"] == 783 and q.attrs["repairs"]["P2"] == 89
    assert any("12 venues" in note and "exchange='N'" in note for note in q.attrs["notes"])
    with pytest.raises(ParameterError, match="exchange = 'W' has no rows.*'N': 94422"):
        load_quotes(real(HF + "data/sampleQDataRaw.rda"), tz="auto", exchange="W")


@pytest.mark.realdata
@pytest.mark.parametrize("tz", [None, NY])
def test_wrong_or_absent_zone_is_refused_with_the_fix(tz):
    with pytest.raises(ParameterError, match=r"America/New_York the stamps span 14:30-20:59 \(30 %.*tz='UTC' puts them at 09:30-15:59"):
        load_quotes(real(HF + "data/sampleQData.rda"), tz=tz)


@pytest.mark.realdata
def test_zone_inside_the_session_but_wrong():
    with pytest.raises(ParameterError, match="tz='UTC' puts them at 09:30-11:00"):
        load_nbbo_data("2017-01-03", data_dir=real("nbbo_rda_2017"), symbol="SPY", tz=NY)


@pytest.mark.realdata
def test_nbbo_2017_has_eight_symbols_and_the_spread_rule_fits_each():
    folder, names = real("nbbo_rda_2017"), "AAPL AMD AMZN JPM MSFT NVDA SPY TSLA".split()
    with pytest.raises(ParameterError, match="holds 8: pass symbol= one of " + ", ".join(names)):
        load_nbbo_data("2017-01-03", data_dir=folder, tz="auto")
    with pytest.raises(ParameterError, match="symbol = 'IBM' is not in 2017-01-03.rda: pass symbol= one of AAPL"):
        load_nbbo_data("2017-01-03", data_dir=folder, tz="auto", symbol="IBM")
    with pytest.raises(ParameterError, match="days there: 2017-01-03"):
        load_nbbo_data("2017-01-04", data_dir=folder, tz="auto", symbol="SPY")
    with pytest.raises(DataError, match="no table of trades: missing column.s. price, size; it holds nbbo: 43208 rows"):
        load_trade_data("2017-01-03", data_dir=folder, tz="auto", symbol="SPY")
    removed = {}
    for s in names:
        q = load_nbbo_data("2017-01-03", data_dir=folder, tz="auto", symbol=s)
        assert len(q) == 5_401 and q.attrs["tz"] == "UTC" and q.attrs["symbol"] == s
        out, report = clean_quotes(q)
        removed[s] = report.counts["spread"]
        if s == "JPM":
            assert (q.ask - q.bid).max() == pytest.approx(12.16) and (out.ask - out.bid).max() == pytest.approx(0.84)
            assert [clean_quotes(q, rules=(r,))[1].counts[r] for r in ("Q3", "Q4")] == [18, 203]
    assert removed == dict.fromkeys(names, 0) | {"JPM": 11}


@pytest.mark.realdata
@pytest.mark.parametrize("name, kind, rows", [("sampleQData", load_quotes, 7_706), ("sampleTData", load_trades, 8_340)])
def test_character_xts_keeps_its_time_index(name, kind, rows):
    out = kind(real(HF + f"data-raw/{name}.rda"), tz="auto")
    assert len(out) == rows and out.attrs["tz"] == NY and out.attrs["symbol"] == "XXX"
    local = out.time.dt.tz_convert(NY)
    assert str(local.min().date()) == "2008-01-04" and local.min().hour == 9 and (local.dt.nanosecond == 0).all()


@pytest.mark.realdata
def test_other_real_layouts():
    with pytest.raises(ParameterError, match="AAA, BBB, ETF"):
        load_trades(real(HF + "data/sampleMultiTradeData.rda"), tz="auto")
    etf = load_trades(real(HF + "data/sampleMultiTradeData.rda"), tz="auto", symbol="ETF")
    assert len(etf) == 16_193 and etf.attrs["tz"] == NY
    with pytest.raises(ParameterError, match="no single zone settles it"):
        load_trades(real(HF + "data/sampleTDataEurope.rda"), tz="auto")
    europe = load_trades(real(HF + "data/sampleTDataEurope.rda"), tz="Europe/Paris", session=("09:00", "17:30"), session_tz="Europe/Paris")
    assert len(europe) == 33_488 and str(europe.time[0])[:19] == "2013-06-08 07:00:01"
    assert len(load_trades(real(HF + "data/sampleTDataEurope.rda"), tz="UTC", session=None)) == 33_488
    with pytest.raises(DataError, match="missing column.s. bid, ask.*sampleOneMinuteData: 8602 rows of DT, STOCK, MARKET"):
        load_quotes(real(HF + "data/sampleOneMinuteData.rda"), tz="UTC")


@pytest.mark.realdata
def test_r_list_of_an_order_book_is_named():
    inside = r"lob.data\$events: 50393 rows.*lob.data\$trades: 482 rows.*depth.summary"
    with pytest.raises(DataError, match="no table of trades: missing.*" + inside):
        load_trades(real("obanalytics_bitstamp_l3/lob.data.RData"), tz="UTC")


# ---------------------------------------------------------------- layouts, written by R

R_CODE = r"""
options(digits.secs = 6)
suppressMessages({library(xts); library(data.table)})
setClass("Tape", representation(quotes = "data.frame", note = "character"))
ny <- "America/New_York"
at <- as.POSIXct("2018-01-02 09:30:00", tz = ny) + c(0.25, 0.25, 1, 5.5)
q <- data.frame(sym_root = factor("AA"), best_bid = c(10, 10, 10.01, 10.02), best_ask = c(10.02, 10.03, 10.03, 10.04),
                best_bidsiz = c(1L, 2L, NA_integer_, 4L), best_asksiz = c(1L, 2L, 3L, 4L))
tod <- as.numeric(c(34200.25, 34200.25, 34201, 34205.5))
text <- c("09:30:00.25", "09:30:00.250", "9:30:01", "09:30:05.500000000")
out <- function(x, file, ...) { nbbo <- x; save(nbbo, file = file, ...) }
out(cbind(q, time_m = at), "posixct_tzone.rda")
ipx <- cbind(q, time_m = .POSIXct(c(1514903400L, 1514903400L, 1514903401L, 1514903405L), tz = "UTC")); out(ipx, "posixct_integer.rda")
lt <- q; lt$time_m <- as.POSIXlt(at); out(lt, "posixlt.rda")
out(cbind(q, date = as.Date("2018-01-02"), time_m = tod), "seconds_date.rda")
out(cbind(q, date = "20180102", time_m = text), "text_date.rda")
out(cbind(q, DATE = 20180102L, TIME_M = text), "text_upper.rda")
out(cbind(q, time = as.character(format(as.POSIXct(at, tz = ny), "%Y-%m-%d %H:%M:%OS6"))), "text_full.rda")
mins <- q; mins$date <- as.Date("2018-01-02"); mins$time_m <- structure(tod / 60, class = "difftime", units = "mins"); out(mins, "difftime_mins.rda")
out(cbind(q, seconds = tod), "2018-01-02_seconds.rda")
dt <- as.data.table(q); dt[, date := as.IDate("2018-01-02")]; dt[, time_m := tod]; out(dt, "datatable_idate.rda")
it <- as.data.table(q); it[, date := as.IDate("2018-01-02")]; it[, time_m := as.ITime(c("09:30:00", "09:30:00", "09:30:01", "09:30:05"))]; out(it, "datatable_itime.rda")
hf <- data.table(DT = at, SYMBOL = "AA", BID = q$best_bid, OFR = q$best_ask, BIDSIZ = q$best_bidsiz, OFRSIZ = q$best_asksiz, EX = "N"); out(hf, "datatable_hf.rda")
out(cbind(q, time_m = at), "ascii.rda", ascii = TRUE)
for (z in c("xz", "bzip2")) out(cbind(q, time_m = at), paste0(z, ".rda"), compress = z)
out(cbind(q, time_m = at), "plain_v2.rda", compress = FALSE, version = 2)
saveRDS(cbind(q, time_m = at), "single.rds")
m <- as.matrix(q[, -1]); colnames(m) <- c("BID", "OFR", "BIDSIZ", "OFRSIZ"); out(xts(m, order.by = at), "xts_number.rda")
out(zoo(m, at), "zoo_number.rda")
ch <- cbind(SYMBOL = "AA", apply(m, 2, function(v) formatC(v, width = 9))); out(xts(ch, order.by = at), "xts_text.rda")
out(list(quotes = cbind(q, time_m = at), other = 1:3, deep = list(text = "x")), "list.rda")
one <- cbind(q[, -1], time_m = at); out(list(AA = one, BB = one), "list_by_symbol.rda")
out(new("Tape", quotes = cbind(q, time_m = at), note = "s4"), "s4.rda")
small <- data.frame(x = 1:3); tape <- list(quotes = cbind(q, time_m = at)); save(small, tape, file = "mixed.rda")
out(cbind(q, time_m = at)[0, ], "empty.rda")
out(function(x) x, "function.rda"); out(c(1, 2), "vector.rda")
"""
GOOD = ["posixct_tzone", "posixlt", "seconds_date", "text_date", "text_upper", "text_full", "difftime_mins", "2018-01-02_seconds", "datatable_idate",
        "datatable_hf", "ascii", "xz", "bzip2", "plain_v2", "xts_number", "zoo_number", "xts_text", "list", "s4", "mixed"]
WHOLE_SECONDS = ["posixct_integer", "datatable_itime"]


@pytest.fixture(scope="module")
def r_files(tmp_path_factory):
    if shutil.which("Rscript") is None:
        pytest.skip("R LAYOUTS not tested: no Rscript (apt-get install -y --no-install-recommends r-base-core r-cran-xts r-cran-data.table)")
    folder = tmp_path_factory.mktemp("r")
    (folder / "make.R").write_text(R_CODE)
    done = subprocess.run(["Rscript", "make.R"], cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode and "there is no package" in done.stderr:
        pytest.skip("R LAYOUTS not tested: R lacks xts or data.table (apt-get install -y r-cran-xts r-cran-data.table)")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", GOOD)
def test_every_layout_gives_the_same_quotes(r_files, name):
    q = load_quotes(r_files / f"{name}.rda", tz="auto")
    assert q.attrs["repairs"]["missing"] == 1, "the NA integer is missing, not zero"
    want = pd.to_datetime(["2018-01-02 14:30:00.25", "2018-01-02 14:30:00.25", "2018-01-02 14:30:05.5"], utc=True, format="ISO8601")
    assert np.abs(to_ns(q.time) - to_ns(want)).max() == 0
    assert q.bid.tolist() == [10, 10, 10.02] and q.ask_size.tolist() == [1, 2, 4]
    assert q.attrs["symbol"] in ("AA", "")


@pytest.mark.parametrize("name", WHOLE_SECONDS)
def test_integer_times(r_files, name):
    q = load_quotes(r_files / f"{name}.rda", tz="auto")
    assert [str(t)[:19] for t in q.time] == ["2018-01-02 14:30:00", "2018-01-02 14:30:00", "2018-01-02 14:30:05"]


def test_lists_and_strange_objects(r_files):
    assert set(read_rda(r_files / "list_by_symbol.rda")) == {"nbbo$AA", "nbbo$BB"}
    assert len(load_quotes(r_files / "single.rds", tz="auto")) == 3
    with pytest.raises(ParameterError, match="pass symbol= one of AA, BB"):
        load_quotes(r_files / "list_by_symbol.rda", tz="auto")
    assert len(load_quotes(r_files / "list_by_symbol.rda", tz="auto", symbol="BB")) == 3
    with pytest.raises(DataError, match="0 row"):
        load_quotes(r_files / "empty.rda", tz="auto")
    for name in ("function", "vector"):
        with pytest.raises(DataError, match=f"{name}.rda"):
            load_quotes(r_files / f"{name}.rda", tz="auto")


def test_pyreadr_alone_would_lose_the_time(r_files):
    "The reason for the second reader; if pyreadr learns it, this fails and the page should say so."
    assert "time" not in pyreadr.read_r(str(r_files / "xts_number.rda"))["nbbo"].columns
    assert not pyreadr.read_r(str(r_files / "datatable_idate.rda"))["nbbo"]["date"].astype(str).eq("2018-01-02").any()


# ---------------------------------------------------------------- made tables

def table(n=60, **columns):
    "A table of NBBO rows, one a second from the New York open."
    base = {"date": "2018-01-02", "time_m": 34_200.0 + np.arange(n), "sym_root": "AA", "best_bid": 10.0 + 0.01 * np.arange(n),
            "best_ask": 10.02 + 0.01 * np.arange(n), "best_bidsiz": 100.0, "best_asksiz": 200.0}
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize("column, value, rule", [("best_bid", np.nan, "missing"), ("best_ask", np.inf, "missing"), ("best_bid", 0.0, "P2"), ("best_bid", -1.0, "P2"),
                                                 ("best_bid", 99.0, "Q2"), ("best_bidsiz", -1.0, "size"), ("best_asksiz", np.nan, "missing"), ("time_m", np.nan, "missing")])
def test_unsound_rows_are_counted_or_refused(column, value, rule):
    bad = table()
    bad.loc[17, column] = value
    q = load_quotes(bad, tz=NY)
    assert q.attrs["repairs"][rule] == 1 and sum(q.attrs["repairs"].values()) == 1 and len(q) == 59
    with pytest.raises(DataError, match="row 17"):
        load_quotes(bad, tz=NY, rules=(), session=None)


def test_unsorted_duplicates_locked_one_row():
    q = table()
    shuffled = q.iloc[[0, 2, 1, *range(3, 60)]]
    assert load_quotes(shuffled, tz=NY).attrs["repairs"]["sorted"] == 1
    with pytest.raises(DataError, match="unsorted.*row 2"):
        load_quotes(shuffled, tz=NY, rules=())
    twice = pd.concat([q, q.tail(1).assign(best_ask=11.0)])
    assert len(load_quotes(twice, tz=NY)) == 61, "duplicates are kept by default"
    last = load_quotes(twice, tz=NY, rules=("Q1_last",))
    assert len(last) == 60 and last.ask.iloc[-1] == 11.0
    median = load_quotes(twice, tz=NY, rules=("Q1",))
    assert median.ask.iloc[-1] == pytest.approx((11.0 + 10.61) / 2)
    locked = load_quotes(table(best_ask=10.0 + 0.01 * np.arange(60)), tz=NY)
    assert len(locked) == 60 and "60 locked" in " ".join(locked.attrs["notes"])
    with pytest.raises(DataError, match="removed by locked 60"):
        clean_quotes(locked, rules=("locked",))
    assert len(load_quotes(table(1), tz=NY)) == 1


def test_bad_arguments_name_themselves(tmp_path):
    q = table()
    for kwargs, text in [(dict(tz="Mars/Base"), "tz = 'Mars/Base' is not a zone"), (dict(tz=NY, date="2018-01-05"), "there are 2018-01-02"),
                         (dict(tz=NY, date="soon"), "is not a date"), (dict(tz=NY, rules=("Q9",)), "rules: 'Q9' must be one of"), (dict(tz=NY, rules=("T1",)), "rules: 'T1'"),
                         (dict(tz=NY, session=("16:00", "09:30")), "must open before it closes"), (dict(tz=NY, session=("a", "b")), "must be two times"),
                         (dict(tz=None, session=None), "name the zone"), (dict(tz=NY, lot=0), "lot = 0"), (dict(tz=NY, exchange="N"), "needs a column 'exchange'")]:
        with pytest.raises(ParameterError, match=text.replace("(", r"\(")):
            load_quotes(q, **kwargs)
    with pytest.raises(ParameterError, match="is not a file"):
        load_quotes(tmp_path / "none.rda", tz=NY)
    with pytest.raises(ParameterError, match="is not a folder"):
        load_nbbo_data("2018-01-02", data_dir=tmp_path / "none", tz=NY)
    (tmp_path / "junk.rda").write_bytes(b"not an R file")
    with pytest.raises(DataError, match="cannot be read as an R data file"):
        load_quotes(tmp_path / "junk.rda", tz=NY)
    with pytest.raises(DataError, match="missing column.s. ask, ask_size"):
        load_quotes(q.drop(columns=["best_ask", "best_asksiz"]), tz=NY)
    with pytest.raises(ParameterError, match="date is not given"):
        load_quotes(q.drop(columns="date"), tz=NY)
    with pytest.raises(DataError, match="neither seconds after midnight"):
        load_quotes(q.assign(time_m=q.time_m * 1000), tz=NY)
    with pytest.raises(DataError, match="not times .row 3"):
        load_quotes(q.assign(time_m=["09:30:00"] * 3 + ["later"] + ["09:31:00"] * 56), tz=NY)


def test_zone_carried_by_the_text_wins():
    q = table(2, time_m=["2018-01-02T14:30:00Z", "2018-01-02T14:30:01.5Z"])
    assert str(load_quotes(q, tz="UTC").time[1]) == "2018-01-02 14:30:01.500000+00:00"
    with pytest.raises(ParameterError, match="carry their own zone"):
        load_quotes(q, tz=NY)


def test_hour_that_the_clock_repeats():
    q = table(2, date="2018-11-04", time_m=[5_400.0, 5_401.0])
    with pytest.raises(DataError, match="skips or repeats"):
        load_quotes(q, tz=NY, session=None)


def test_suffixes_are_symbols_of_their_own():
    q = pd.concat([table(sym_suffix="A"), table(sym_suffix="B")])
    with pytest.raises(ParameterError, match="AA.A, AA.B"):
        load_quotes(q, tz=NY)
    assert len(load_quotes(q, tz=NY, symbol="AA.B")) == 60


def test_files_of_a_day(tmp_path):
    for name in ("2018-01-02.rda", "2018-01-02.trades.rda", "nbbo_20180103.RData", "taq_trade_20180103.rda", "AA_2018-01-04.rda", "BB_2018-01-04.rda"):
        (tmp_path / name).touch()
    assert day_file(tmp_path, "2018-01-02").name == "2018-01-02.rda"
    assert day_file(tmp_path, "2018-01-02", kind="trades").name == "2018-01-02.trades.rda"
    assert day_file(tmp_path, "20180103").name == "nbbo_20180103.RData"
    assert day_file(tmp_path, pd.Timestamp("2018-01-03"), kind="trades").name == "taq_trade_20180103.rda"
    assert day_file(tmp_path, "2018-01-04", symbol="BB").name == "BB_2018-01-04.rda"
    with pytest.raises(ParameterError, match="several files fit .AA_2018-01-04.rda, BB_2018-01-04.rda"):
        day_file(tmp_path, "2018-01-04")
    with pytest.raises(ParameterError, match="days there: 2018-01-02, 2018-01-03, 2018-01-04"):
        day_file(tmp_path, "2018-01-05")


def test_trade_rules():
    t = pd.DataFrame({"time": pd.date_range("2018-01-02 14:30", periods=30, freq="s", tz="UTC"), "price": 10.0, "size": 100.0, "corr": 0, "cond": "@ F"})
    t.loc[28, "price"], t.loc[3, "corr"], t.loc[4, "cond"], t.loc[5, "size"] = 15.0, 8, "Z", 0.0
    out, report = clean_trades(t, rules=("size", "T1", "T2", "price"))
    assert report.counts == {"size": 1, "T1": 1, "T2": 1, "price": 1} and len(out) == 26
    with pytest.raises(ParameterError, match="T4 compares trades with quotes"):
        clean_trades(t, rules=("T4",))
    q = pd.DataFrame({"time": t.time - pd.Timedelta(1, "ms"), "bid": 9.99, "ask": 10.01, "bid_size": 1.0, "ask_size": 1.0})
    out, report = clean_trades(t, rules=("size", "T4"), quotes=q)
    assert report.counts == {"size": 1, "T4": 1} and "bid" not in out
    with pytest.raises(ParameterError, match="T2 needs a column 'cond'"):
        clean_trades(t.drop(columns="cond"), rules=("T2",))
    assert list(report.summary().columns) == ["what", "rows", "affected", "share", "unit"]


def test_centred_rule_equals_its_definition():
    rng = np.random.default_rng(3)
    m = 10 + 0.01 * np.cumsum(rng.integers(-1, 2, 300))
    m[120] += 1.0
    q = pd.DataFrame({"time": pd.date_range("2018-01-02 15:00", periods=300, freq="s", tz="UTC"), "bid": m - 0.01, "ask": m + 0.01, "bid_size": 1.0, "ask_size": 1.0})
    keep = taq._centred_mid(q, CleaningOptions())
    mids = ((q.bid + q.ask) / 2).to_numpy()
    for i in range(25, 275):
        around = np.delete(mids[i - 25 : i + 26], 25)
        centre = np.median(around)
        assert keep[i] == (abs(mids[i] - centre) <= 10 * np.abs(around - centre).mean())
    assert not keep[120] and keep.sum() >= 298


def test_match_is_bounded_in_age_and_refuses_unsorted():
    q = pd.DataFrame({"time": pd.to_datetime(["2018-01-02 20:59", "2018-01-03 14:30:01"], utc=True, format="ISO8601"), "bid": [1.0, 2.0], "ask": [2.0, 3.0], "bid_size": 1.0, "ask_size": 1.0})
    t = pd.DataFrame({"time": pd.to_datetime(["2018-01-02 20:59", "2018-01-03 14:30:00", "2018-01-03 14:30:02"], utc=True, format="ISO8601"), "price": 2.0, "size": 1.0})
    assert np.array_equal(match_trades(t, q).bid, [np.nan, np.nan, 2.0], equal_nan=True)
    assert np.array_equal(match_trades(t, q, max_age_s=np.inf).bid, [np.nan, 1.0, 2.0], equal_nan=True)
    assert match_trades(t, q.head(0)).bid.isna().all() and len(match_trades(t.head(0), q)) == 0
    assert len(lee_ready(match_trades(t.head(0), q))) == 0
    with pytest.raises(DataError, match="at row 1"):
        match_trades(t, q.iloc[::-1])
    with pytest.raises(ParameterError, match="max_age_s = -1"):
        match_trades(t, q, max_age_s=-1)
    with pytest.raises(DataError, match="use match_trades"):
        lee_ready(t)


def test_clock_edges():
    q = pd.DataFrame({"time": pd.to_datetime(["2018-01-02 14:30:00.5", "2018-01-02 14:30:03"], utc=True, format="ISO8601"), "bid": [1.0, 2.0], "ask": [2.0, 3.0], "bid_size": 1.0, "ask_size": 1.0})
    g = to_clock(q, every_s=1.0, start=pd.Timestamp("2018-01-02 09:30", tz=NY), end=pd.Timestamp("2018-01-02 09:30:04", tz=NY))
    assert np.array_equal(g.bid, [np.nan, 1, 1, 2, 2], equal_nan=True)
    for value in (0, -1.0, np.nan):
        with pytest.raises(ParameterError, match="every_s"):
            to_clock(q, every_s=value)
    with pytest.raises(ParameterError, match="start = .* has no time zone"):
        to_clock(q, every_s=1.0, start="2018-01-02 14:30")
    with pytest.raises(DataError, match="0 row"):
        to_clock(q.head(0), every_s=1.0)


# ---------------------------------------------------------------- properties

stamps = st.lists(st.integers(0, 40), min_size=1, max_size=40)


@given(stamps, stamps)
@settings(max_examples=60, deadline=None)
def test_fast_match_equals_slow(trades, quotes):
    assert np.array_equal(quote_before(np.array(trades), np.sort(quotes)), match_trades_slow(np.array(trades), np.sort(quotes)))


@given(st.lists(st.tuples(st.integers(-3, 3), st.one_of(st.none(), st.integers(-3, 3))), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_fast_signs_equal_slow(rows):
    price = np.array([10 + 0.01 * a for a, _ in rows])
    bid = np.array([np.nan if b is None else 10 + 0.01 * b - 0.01 for _, b in rows])
    ask = np.array([np.nan if b is None else 10 + 0.01 * b + 0.01 for _, b in rows])
    fast = lee_ready(pd.DataFrame({"price": price, "bid": bid, "ask": ask}))
    assert fast.dtype == np.int8 and np.array_equal(fast, lee_ready_slow(price, (bid + ask) / 2))


@given(st.integers(0, 2**32 - 1), st.integers(5, 195))
@settings(max_examples=25, deadline=None)
def test_nothing_sees_the_future(seed, cut):
    rng = np.random.default_rng(seed)
    origin = pd.Timestamp("2018-01-02 14:30", tz="UTC").value
    when = origin + np.sort(rng.integers(0, 300, 200)) * 10**9
    bid = 10 + 0.01 * np.cumsum(rng.integers(-1, 2, 200))
    q = pd.DataFrame({"time": pd.to_datetime(when, utc=True), "bid": bid, "ask": bid + 0.01 * rng.integers(1, 4, 200), "bid_size": 1.0, "ask_size": 1.0})
    t = pd.DataFrame({"time": pd.to_datetime(origin + np.sort(rng.integers(0, 300, 80)) * 10**9, utc=True), "price": 10 + 0.01 * rng.integers(-9, 10, 80), "size": 1.0})
    moment = q.time[cut]
    q2, t2 = q.copy(), t.copy()
    later, t_later = q.time > moment, t.time > moment
    q2.loc[later, ["bid", "ask"]] = q.loc[later, ["bid", "ask"]].to_numpy()[::-1] * rng.uniform(0.5, 2)
    t2.loc[t_later, "price"] = rng.uniform(1, 20, t_later.sum())
    m, m2 = match_trades(t, q), match_trades(t2, q2)
    pd.testing.assert_frame_equal(m[~t_later], m2[~t_later])
    assert np.array_equal(lee_ready(m)[~t_later], lee_ready(m2)[~t_later])
    g, g2 = to_clock(q, every_s=1.0), to_clock(q2, every_s=1.0)
    pd.testing.assert_frame_equal(g[g.time <= moment], g2[g2.time <= moment])
    for rule, fn in (("spread", clean_quotes),):
        a, b = (fn(x, rules=(rule,))[0] for x in (q, q2))
        pd.testing.assert_frame_equal(a[a.time <= moment], b[b.time <= moment])
    a, b = (clean_trades(x, rules=("price",))[0] for x in (t, t2))
    pd.testing.assert_frame_equal(a[a.time <= moment], b[b.time <= moment])


def test_a_stamp_in_the_skipped_hour_of_another_zone_does_no_harm():
    session = pd.date_range("2018-03-09 14:30", "2018-03-09 20:59", freq="min")
    clock = session.append(pd.DatetimeIndex(["2018-03-11 02:30"]))  # no such time in New York, a fine one in UTC
    q = pd.DataFrame({"time": clock, "bid": 1.0, "ask": 2.0, "bid_size": 1.0, "ask_size": 1.0})
    assert len(load_quotes(q, tz="UTC")) == len(session)
    with pytest.raises(DataError, match="skips or repeats"):
        load_quotes(q, tz=NY, session=None)
