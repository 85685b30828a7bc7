"The measure of coverage can fail, and says what it measured."
import math

import pytest
from coverage_kit import RESULTS, measure


def interval(width: float):
    "The mean of 25 normals, plus or minus `width` standard errors."
    def one(rng):
        x = rng.normal(3.0, 2.0, 25)
        half = width * 2.0 / 5.0
        return x.mean() - half, x.mean() + half, 3.0
    return one


@pytest.fixture(autouse=True)
def forget():
    "What is measured here is no interval of the library's."
    before = list(RESULTS)
    yield
    RESULTS[:] = before


def test_an_honest_interval_passes():
    measure("kit: honest", interval(1.96))


@pytest.mark.parametrize("width", [1.3, 3.5])
def test_a_wrong_width_is_caught(width):
    with pytest.raises(AssertionError, match="nominal 0.95"):
        measure("kit: wrong", interval(width))


def test_a_missing_end_holds_nothing():
    with pytest.raises(AssertionError, match="first 0.000"):
        measure("kit: missing", lambda rng: [(math.nan, math.nan, 0.0), (-1.0, 1.0, 0.0)], names=["first", "second"])


def test_few_tapes_are_refused():
    with pytest.raises(AssertionError, match="300"):
        measure("kit: few", interval(1.96), n=100)
