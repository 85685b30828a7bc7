"LOBSTER: the facts of the real days, the parser against exact arithmetic, and what must be refused."
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, to_ns
from makerlab.data.lob import _parse_column, load_lobster, parse_seconds

ZIP = "lobster_samples/LOBSTER_SampleFile_{}.zip"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 86_399), st.integers(0, 10**12 - 1), st.integers(0, 12))
def test_time_is_exact(whole, fraction, digits):
    text = f"{whole}.{fraction:012d}"[: len(str(whole)) + 1 + digits].rstrip(".")
    exact = Fraction(text) * 10**9
    assert parse_seconds(text) == int(exact + Fraction(1, 2))  # floor of x + 1/2: nearest, halves up
    assert _parse_column(pa.chunked_array([[text]]), "t")[0] == parse_seconds(text)


@pytest.mark.parametrize("text", ["", "a", "-1.5", "1.2.3", "1e5", "34200.0000000000001", "34200.1x"])
def test_bad_time_is_refused(text):
    with pytest.raises(DataError):
        parse_seconds(text)
    with pytest.raises(DataError):
        _parse_column(pa.chunked_array([["34200.5", text]]), "t")


@pytest.mark.realdata
@pytest.mark.parametrize("name, rows, visible", [("AAPL_2012-06-21_1", 118_497, 23_658), ("AMZN_2012-06-21_1", 57_515, 8_974),
                                                 ("AMZN_2012-06-21_5", 155_935, 8_974)])
def test_executions_are_at_the_previous_touch(name, rows, visible):
    day = load_lobster(real(ZIP.format(name)))
    assert len(day.messages) == rows and (day.symbol, day.date) == (name[:4], "2012-06-21")
    m, before = day.messages.iloc[1:], day.book.shift(1).iloc[1:]
    seen, hidden = (m["type"] == 4).to_numpy(), (m["type"] == 5).to_numpy()
    touch = np.where(m["direction"] == 1, before["bid_1"], before["ask_1"])
    assert seen.sum() == visible and (m["price"].to_numpy() == touch)[seen].mean() >= 0.9999
    inside = (m["price"] >= before["bid_1"]) & (m["price"] <= before["ask_1"])
    assert inside.to_numpy()[hidden].mean() >= 0.9996
    wrong = np.where(m["direction"] == -1, before["bid_1"], before["ask_1"])
    assert (m["price"].to_numpy() == wrong)[seen].mean() < 0.01  # the direction turned round would show


@pytest.mark.realdata
@pytest.mark.parametrize("name, r2", [("AAPL", 0.412), ("AMZN", 0.312)])
def test_quotes_give_the_published_ofi_regression(name, r2):
    q = load_lobster(real(ZIP.format(f"{name}_2012-06-21_1"))).quotes()
    b, a, qb, qa = (q[c].to_numpy() for c in ("bid", "ask", "bid_size", "ask_size"))
    e = qb[1:] * (b[1:] >= b[:-1]) - qb[:-1] * (b[1:] <= b[:-1]) - qa[1:] * (a[1:] <= a[:-1]) + qa[:-1] * (a[1:] >= a[:-1])
    total, t = np.concatenate([[0.0], np.cumsum(e)]), to_ns(q["time"])
    marks = pd.Timestamp("2012-06-21 13:30", tz="UTC").value + np.arange(0, 23_401, 10) * 10**9
    at = np.maximum(np.searchsorted(t, marks, side="right") - 1, 0)
    found = np.corrcoef(np.diff(total[at]), np.diff(((a + b) / 2)[at]))[0, 1] ** 2
    assert abs(found - r2) < 0.001


@pytest.mark.realdata
def test_first_stamp_and_units():
    day = load_lobster(real(ZIP.format("AAPL_2012-06-21_1")))
    first = day.messages.iloc[0]
    assert str(first["time"]) == "2012-06-21 13:30:00.004241176+00:00" and first["price"] == 585.33 and first["direction"] == 1
    trades = day.trades()
    assert len(trades) == 23_658 + 11_332 and len(day.trades(hidden=False)) == 23_658
    assert set(trades["side"]) == {1, -1} and day.quotes().attrs["symbol"] == "AAPL"


@pytest.mark.realdata
def test_folder_of_ten_levels_without_last_newline():
    folder = real("lobster_aapl_l10_head")
    day = load_lobster(folder)
    assert len(day.messages) == 999 and day.levels == 10 and day.book.shape == (999, 40)
    two = load_lobster(folder, levels=2)
    assert list(two.book.columns) == list(day.book.columns[:8]) and two.book.equals(day.book.iloc[:, :8])
    one = load_lobster(next(folder.glob("*message*")))
    assert one.messages.equals(day.messages)
    assert (day.book["ask_1"] < day.book["ask_2"]).all() and (day.book["bid_1"] > day.book["bid_2"]).all()


@pytest.mark.realdata
def test_two_depths_in_one_folder_need_a_choice(tmp_path):
    import zipfile
    for depth in (1, 5):
        with zipfile.ZipFile(real(ZIP.format(f"AMZN_2012-06-21_{depth}"))) as z:
            z.extractall(tmp_path)
    with pytest.raises(DataError, match="give date or levels"):
        load_lobster(tmp_path)
    assert load_lobster(tmp_path, levels=5).levels == 5
    with pytest.raises(DataError, match="partner"):
        next(tmp_path.glob("*orderbook_5.csv")).unlink()
        load_lobster(tmp_path, levels=5) if len(list(tmp_path.glob("*message_1.csv"))) == 0 else load_lobster(next(tmp_path.glob("*message_5.csv")))


def test_missing_and_broken_sources(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_lobster(tmp_path / "absent.zip")
    bad = tmp_path / "bad.zip"
    bad.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="not a readable zip"):
        load_lobster(bad)
    with pytest.raises(DataError, match="no file is named like"):
        (tmp_path / "x").mkdir()
        load_lobster(tmp_path / "x")
