"The schemas: sound tables pass unchanged, and each guard names the column, the row and the value."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.schema import (PARAMS_FIELDS, STATE_FIELDS, new_params, new_state, validate_bins, validate_fills, validate_mids, validate_quotes, validate_trades)

T = pd.date_range("2026-03-02 14:30", periods=6, freq="s", tz="UTC").as_unit("ns")
SOUND = {
    validate_quotes: pd.DataFrame({"time": T, "bid": 10.0, "ask": 10.01, "bid_size": 5.0, "ask_size": 0.0}),
    validate_trades: pd.DataFrame({"time": T, "price": 10.0, "size": 5.0, "side": np.array([1, -1, 0, 1, 1, -1], dtype=np.int8)}),
    validate_fills: pd.DataFrame({"step": range(6), "side": np.array([1, -1] * 3, dtype=np.int8), "price": 10.0, "qty": 1.0, "mid": 10.0, "fee": -0.1}),
    validate_bins: pd.DataFrame({"delta": np.arange(6.0), "count": 3.0, "exposure": 9.0}),
    validate_mids: pd.DataFrame({"time": T, "mid": 10.0}),
}
NUMBER = (np.nan, np.inf, -np.inf)
BAD = [(validate_quotes, "bid", (*NUMBER, 0.0, -1.0)), (validate_quotes, "ask", (*NUMBER, 0.0)), (validate_quotes, "bid_size", (*NUMBER, -1.0)), (validate_quotes, "ask_size", (*NUMBER, -1.0)),
       (validate_quotes, "time", (pd.NaT,)), (validate_trades, "price", (*NUMBER, 0.0, -1.0)), (validate_trades, "size", (*NUMBER, 0.0, -1.0)), (validate_trades, "side", (2, -3)),
       (validate_fills, "side", (0, 2)), (validate_fills, "qty", (*NUMBER, 0.0)), (validate_fills, "price", (*NUMBER, 0.0)), (validate_fills, "mid", (*NUMBER,)), (validate_fills, "fee", NUMBER),
       (validate_bins, "delta", NUMBER), (validate_bins, "count", (*NUMBER, -1.0)), (validate_bins, "exposure", (*NUMBER, -1.0, 0.0)), (validate_mids, "mid", (*NUMBER, 0.0, -1.0))]


@pytest.mark.parametrize("check", SOUND, ids=lambda f: f.__name__)
def test_sound_tables_pass(check):
    table = SOUND[check].copy()
    table.attrs["symbol"] = "X"
    before = table.copy()
    out = check(table)
    assert out is not table and out.attrs["symbol"] == "X" and table.equals(before)
    pd.testing.assert_frame_equal(out[before.columns], before)
    again = check(out)
    pd.testing.assert_frame_equal(again, out)


@pytest.mark.parametrize("check, column, values", BAD, ids=lambda x: getattr(x, "__name__", None) or (x if isinstance(x, str) else ""))
def test_each_guard_names_the_row(check, column, values):
    for value in values:
        for row in (0, 4):
            table = SOUND[check].copy()
            table.loc[row, column] = value
            with pytest.raises(DataError, match=rf"{column} .*row {row}: "):
                check(table)


@pytest.mark.parametrize("check", SOUND, ids=lambda f: f.__name__)
def test_missing_columns_text_and_other_things(check):
    table = SOUND[check]
    for column in table.columns.drop(["side", "time"], errors="ignore"):
        with pytest.raises(DataError, match=f"missing column\\(s\\) {column}"):
            check(table.drop(columns=column))
        with pytest.raises(DataError, match=rf"{column} is not a number.*row 2: abc"):
            check(table.assign(**{column: [1, 1, "abc", 1, 1, 1]}))
    with pytest.raises(DataError, match="DataFrame"):
        check([1, 2])
    if check is not validate_fills:
        with pytest.raises(DataError, match="0 row"):
            check(table.iloc[:0])
    else:
        assert len(check(table.iloc[:0])) == 0


@pytest.mark.parametrize("check", [validate_quotes, validate_trades, validate_mids], ids=lambda f: f.__name__)
def test_clocks(check):
    table = SOUND[check]
    with pytest.raises(DataError, match="no zone"):
        check(table.assign(time=T.tz_localize(None)))
    with pytest.raises(DataError, match="no zone"):
        check(table.assign(time=range(6)))
    with pytest.raises(DataError, match=r"unsorted.*row 3"):
        check(table.assign(time=T[[0, 1, 2, 1, 4, 5]]))
    assert str(check(table.assign(time=T.tz_convert("Asia/Tokyo")))["time"].dt.tz) == "UTC"
    assert len(check(table.assign(time=T[[0, 0, 0, 1, 1, 1]]))) == 6  # equal stamps are lawful
    if check is not validate_mids:
        with pytest.raises(DataError, match="time"):
            check(table.drop(columns="time"))


def test_crossed_locked_and_small():
    q = SOUND[validate_quotes]
    crossed = q.assign(bid=[10, 10, 10.02, 10, 10, 10])
    with pytest.raises(DataError, match=r"crossed.*row 2"):
        validate_quotes(crossed)
    assert len(validate_quotes(crossed, allow_crossed=True)) == 6 and len(validate_quotes(q.assign(ask=q["bid"]))) == 6
    with pytest.raises(DataError, match="1 row"):
        validate_mids(SOUND[validate_mids].iloc[:1])


@given(st.lists(st.tuples(st.floats(-5, 50), st.floats(0, 5), st.floats(-2, 9)), min_size=1, max_size=15))
def test_quotes_pass_exactly_when_sound(rows):
    bid, width, size = (np.array(c) for c in zip(*rows, strict=True))
    table = pd.DataFrame({"time": pd.date_range("2026-03-02", periods=len(rows), freq="s", tz="UTC"), "bid": bid, "ask": bid + width, "bid_size": size, "ask_size": 1.0})
    sound = (bid > 0).all() and (bid + width > 0).all() and (size >= 0).all()
    if sound:
        validate_quotes(table)
    else:
        with pytest.raises(DataError, match="row"):
            validate_quotes(table)


def test_records():
    for make, fields in ((new_state, STATE_FIELDS), (new_params, PARAMS_FIELDS)):
        record = make(**{fields[3]: 7.0})
        assert record[fields[3]] == 7.0 and all(np.isnan(record[f]) for f in fields if f != fields[3])
        with pytest.raises(ParameterError, match="nonsense"):
            make(nonsense=1.0)
