"Stylised facts: estimators on series of known answer, on hand-made books, and the real day that the page quotes."
import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.core import NS_PER_S, DataError, ParameterError
from makerlab.data.events import ADD, CANCEL, FILL, TRADE, Events
from makerlab.execution import stylised_facts as sf
from makerlab.execution.order_flow import PRESETS, simulate_flow
from makerlab.execution.stylised_facts import (AMZN_20120621, FACTS, autocorrelation, decay_exponent, depth_profile, hill, imbalance_curve, market_orders,
                                               measure_facts, order_lives, sampled_mid, signature_plot, stylised_facts)


def _events(rows) -> Events:
    "Events from (kind, side, seconds, tick, lots, order_id)."
    r = np.array(rows, dtype=np.int64)
    return Events(kind=r[:, 0].astype(np.uint8), side=r[:, 1].astype(np.int8), exch_ns=r[:, 2] * NS_PER_S, local_ns=r[:, 2] * NS_PER_S, tick=r[:, 3].astype(np.int32),
                  lots=r[:, 4], order_id=r[:, 5], level="l3")


HAND = _events([(ADD, 1, 0, 100, 5, 1), (ADD, -1, 0, 103, 4, 2), (ADD, 1, 1, 98, 2, 3), (ADD, -1, 2, 101, 3, 4), (TRADE, 1, 3, 101, 3, 9), (FILL, -1, 3, 101, 3, 4),
                (TRADE, 1, 3, 103, 1, 9), (FILL, -1, 3, 103, 1, 2), (CANCEL, 1, 4, 98, 2, 3), (ADD, 1, 9, 102, 1, 5)])


@pytest.mark.nojit
@pytest.mark.bounds
def test_a_hand_made_book_is_read_right():
    lives = order_lives(HAND)
    assert lives["behind"].tolist() == [0, 0, 2, -2, -2] and lives["spread"].tolist() == [0, 0, 3, 3, 3]
    assert lives["end"].tolist() == ["resting", "resting", "cancelled", "filled", "resting"] and lives["filled"].tolist() == [0, 1, 0, 3, 0]
    assert lives["life_s"].tolist()[2:4] == [3.0, 1.0]
    orders = market_orders(HAND)
    assert orders["lots"].tolist() == [4] and orders["side"].tolist() == [1]
    profile = depth_profile(HAND, ticks=4, every_s=1.0)
    # looks at 1, 2, .. 8 s, each with that second's events: touch (5+4)/2, then (5+3)/2; two ticks behind it (2+0)/2, (2+4)/2, (2+0)/2, then nothing
    assert profile.tolist() == [pytest.approx((4.5 + 7 * 4.0) / 8), 0.0, pytest.approx(5.0 / 8), 0.0]


def test_estimators_find_what_was_put_in():
    rng = np.random.default_rng(1)
    for alpha in (1.5, 3.0, 4.0):
        got, se = hill(rng.pareto(alpha, 200_000) + 1.0)
        assert abs(got - alpha) < 4 * se
    x = rng.standard_normal(100_000)
    y = np.convolve(x, [1.0, 0.5])[: len(x)]
    assert abs(autocorrelation(y, lags=[1])[0] - 0.4) < 0.02 and abs(autocorrelation(y, lags=[3])[0]) < 0.02 and autocorrelation(y, lags=[0])[0] == 1.0
    assert decay_exponent(np.array([1.0, 2.0**-0.5, 4.0**-0.5]), [1, 2, 4]) == pytest.approx(0.5) and np.isnan(decay_exponent(np.array([1.0, -1, -1]), [1, 2, 3]))
    assert (autocorrelation(np.ones(10), lags=[1, 2]) == 0).all() and np.isnan(hill(np.ones(100))[0]) and np.isnan(hill(np.array([1.0, 2.0]))[0])


def test_a_random_walk_has_a_flat_signature():
    rng = np.random.default_rng(2)
    time = pd.to_datetime(np.arange(200_000) * NS_PER_S, utc=True)
    mid = 100 + 0.01 * rng.standard_normal(200_000).cumsum()
    quotes = pd.DataFrame({"time": time, "bid": mid - 0.005, "ask": mid + 0.005, "bid_size": 1.0, "ask_size": 1.0})
    sig = signature_plot(quotes, lags_s=[1.0, 10.0, 100.0])
    assert (np.abs(sig["sigma"] - 0.01) < 4 * sig["se"]).all()
    assert sampled_mid(quotes, every_s=1.0)[[0, 7]] == pytest.approx(mid[[0, 7]])


def test_imbalance_that_decides_is_seen():
    rng = np.random.default_rng(3)
    up = rng.random(5000) < 0.5
    mid = 100 + np.where(up, 0.01, -0.01).cumsum()
    shown = np.append(up[1:], True)  # the queues know the next move
    q = pd.DataFrame({"time": pd.to_datetime(np.arange(5000) * NS_PER_S, utc=True), "bid": mid - 0.005, "ask": mid + 0.005,
                      "bid_size": np.where(shown, 9.0, 1.0), "ask_size": np.where(shown, 1.0, 9.0)})
    curve = imbalance_curve(q, bins=4)
    assert curve["up"].iloc[0] < 0.02 and curve["up"].iloc[-1] > 0.98


def test_zero_intelligence_fails_where_it_must():
    m = measure_facts(simulate_flow(PRESETS["zero-intelligence"], seconds=10_000, seed=3).events)
    assert list(m.index) == [f.name for f in FACTS] and m.notna().sum() >= 13
    assert abs(m["dispersion of waiting times"] - 1) < 0.05 and not m["sign memory exponent"] > 0.3
    assert m["exponent of market order sizes"] > 2


def test_verdicts_follow_the_ranges(monkeypatch):
    days = iter([dict.fromkeys((f.name for f in FACTS), v) for v in (0.30, 0.32)])
    monkeypatch.setattr(sf, "measure_facts", lambda events: pd.Series(next(days)))
    monkeypatch.setattr(sf, "simulate_flow", lambda *a, **k: type("F", (), {"events": None})())
    t = stylised_facts("small-tick", seeds=[1, 2])
    assert t.loc["R2 on order flow imbalance, 10 s", "verdict"] == "borderline" and t.loc["sign memory exponent", "verdict"] == "FAILS"
    assert t.loc["memory of |1 min returns|", "verdict"] == "holds" and t.loc["next move follows the queues", "verdict"] == "n/a"


def test_nonsense_is_refused():
    l2 = Events(kind=HAND.kind, side=HAND.side, exch_ns=HAND.exch_ns, local_ns=HAND.local_ns, tick=HAND.tick, lots=HAND.lots)
    for call, error in ((lambda: order_lives(l2), DataError), (lambda: depth_profile(l2), DataError), (lambda: depth_profile(HAND, every_s=0), ParameterError),
                        (lambda: stylised_facts("x", seeds=[1, 2]), ParameterError), (lambda: stylised_facts("large-tick", seeds=[1]), ParameterError),
                        (lambda: hill(np.ones(3), share=0), ParameterError), (lambda: autocorrelation(np.ones(3), lags=[5]), ParameterError)):
        with pytest.raises(error):
            call()


@pytest.mark.realdata
def test_the_real_day_that_the_page_quotes():
    from makerlab.data.lob import load_lobster
    from makerlab.data.lob_events import lobster_events

    m = measure_facts(lobster_events(load_lobster(real("lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip"))))
    for name, value in AMZN_20120621.items():
        assert m[name] == pytest.approx(value, rel=0.02, abs=0.01), name
