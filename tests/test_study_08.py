"The real days that mm_nbs/08_when_calibration_ages quotes: its own cells, run on them."
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import real

from makerlab.calibration.intensity import IntensityModel, to_reach
from makerlab.calibration.rates import rate_data
from makerlab.core import to_ns
from makerlab.data.lob import load_lobster
from makerlab.execution.fills import TradeFills
from makerlab.models.quoting import gamma_for_glft
from makerlab.scoring.attribution import adverse_selection
from makerlab.scoring.inference import paired_difference

STUDY = Path(__file__).resolve().parents[1] / "mm_nbs" / "08_when_calibration_ages.ipynb"
WINDOW, AGES = 3, (1, 2, 6, 12, 24)


@pytest.fixture(scope="module")
def study():
    "The study's definitions, without its worlds: each cell up to the first line that runs something."
    names: dict = {"__name__": "study"}
    starts = ("import math", "@dataclass", "def lose", "def sigma_losses", "@strategy", "def quotes_by", "def tables", "def run(")
    for cell in json.loads(STUDY.read_text(encoding="utf8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.startswith(starts):
            for stop in ("\naged = ", "\naged_sigma = ", "\nfit = ", "\ntraded = ", "\ndone = "):
                text = text.split(stop)[0]
            exec(text, names)
    return SimpleNamespace(**names)


@functools.cache
def load(symbol):
    "Quotes, trades, counts and exposures by slot, distances, squared ten-second moves by slot."
    day = load_lobster(real(f"lobster_samples/LOBSTER_SampleFile_{symbol}_2012-06-21_1.zip"))
    quotes, trades = day.quotes(), day.trades(hidden=False)
    data = rate_data(trades, quotes, tick=0.01, max_ticks=30, every_s=300.0)
    n, e, at = data.grid()
    t, mid = to_ns(quotes["time"]), (0.5 * (quotes["bid"] + quotes["ask"])).to_numpy()
    mark = data.slots["start_ns"].to_numpy()[:, None] + np.arange(31) * 10**10
    return quotes, trades, n, e, at, (np.diff(mid[np.maximum(np.searchsorted(t, mark, side="right") - 1, 0)], axis=1) ** 2).sum(axis=1)


def told(n, e, at, rv):
    "A, k and sigma known when each slot begins, from the quarter of an hour before."
    out = np.full((len(n), 3), np.nan)
    for s in range(WINDOW, len(n)):
        part = slice(s - WINDOW, s)
        bins = pd.DataFrame({"delta": at, "count": n[part].sum(axis=0), "exposure": e[part].sum(axis=0)})
        f = to_reach(IntensityModel(bins[bins["exposure"] > 0]).fit(), width=0.01)
        out[s] = f.params["A"], f.params["k"], math.sqrt(rv[part].mean() / 300)
    return out


def money(study, symbol):
    "By age in slots: result per share, capture and 60 s markout per share; paired gain over the fresh maker with its interval."
    quotes, trades, n, e, at, rv = load(symbol)
    known = told(n, e, at, rv)
    A, k, sigma = known[WINDOW:15].mean(axis=0)
    gamma = gamma_for_glft(1 / k, inventory=study.cfg.full, sigma=sigma, A=A, k=k, qty=study.cfg.qty)
    b, rows, fresh = study.backtest(quotes, trades, tick=0.01, fills=TradeFills(), latency_ns=5_000_000), {}, None
    for age in (0, 3, 6, 12):
        now = study.older(known, age) if age else known.copy()
        now[:15] = np.nan
        r = study.run(b, now, gamma)
        cost, total = adverse_selection(r.markouts).loc[60.0], study.score(r)
        bars = r.bars(300.0)["total"]
        fresh = bars if fresh is None else fresh
        d = paired_difference(bars, fresh, rng=np.random.default_rng(1), variants=3) if age else None
        rows[age] = (total["total"], total["total"] / total["shares"], cost["effective_per_unit"], cost["cost_per_unit"], *((d.estimate, d.lo, d.hi) if d else (0, 0, 0)))
    return rows


def shuffled(study, n, e, at, m=200):
    "How often a shuffled day loses as much as the day did, by age."
    table = lambda o: study.lose(n[o], e[o], AGES, WINDOW, at).table["loss"].to_numpy()  # noqa: E731
    rng, seen = np.random.default_rng(8), table(np.arange(len(n)))
    return np.mean([table(rng.permutation(len(n))) >= seen for _ in range(m)], axis=0)


def test_the_strategy_is_glft(study):
    "Told the formula's half-spread and lean, the study's maker asks for what the library's glft asks for."
    from makerlab.models.quoting import STRATEGIES, QuoteParams
    from makerlab.schema import new_state

    A, k, sigma, gamma = 0.25, 25.0, 0.018, 0.002
    base = QuoteParams(gamma=gamma, k=k, A=A, qty=100.0, max_inventory=2000.0, min_spread_bps=0.0, max_spread_bps=math.inf, x0=300.0)
    record = study.Told(base, study.quotes_by([(A, k, sigma)] * 3, gamma)).record(0.001)
    for q in (-700.0, 0.0, 300.0, 2000.0):
        state = new_state(t_s=400.0, tau_s=1.0, mid=500.0, bid=499.995, ask=500.005, bid_size=100.0, ask_size=100.0, inventory=q, sigma=sigma, ofi=0.0)
        assert study.scheduled(state, record) == STRATEGIES["glft"](state, base.record(0.001))


def test_no_look_ahead(study):
    "A slot's calibration does not know that slot, nor later ones."
    rng = np.random.default_rng(3)
    w = {"counts": rng.poisson(5.0 * np.exp(-0.25 * np.arange(study.cfg.bins)), (30, study.cfg.bins)).astype(float), "rv": rng.random(30)}
    other = {"counts": w["counts"].copy(), "rv": w["rv"].copy()}
    other["counts"][20:], other["rv"][20:] = other["counts"][20:] * 3, 9.0
    a, b = study.calibrate(w, 6), study.calibrate(other, 6)
    assert np.array_equal(a[:21], b[:21], equal_nan=True) and not np.allclose(a[21], b[21])
    assert np.array_equal(study.older(a, 4)[4:], a[:-4], equal_nan=True) and np.isnan(study.older(a, 4)[:4]).all()


@pytest.mark.realdata
def test_aapl_and_amzn_in_likelihood(study):
    "Figures of the section on real days."
    _, _, n, e, at, _ = load("AAPL")
    t, p = study.lose(n, e, AGES, WINDOW, at).table, shuffled(study, n, e, at)
    assert t[["loss", "lo", "hi"]].to_numpy()[:2].ravel() == pytest.approx([0.0451, 0.0226, 0.0901, 0.0748, 0.0358, 0.1561], abs=2e-4)
    assert t[["level", "shape"]].iloc[0].to_numpy() == pytest.approx([0.0354, 0.0097], abs=1e-4)
    assert t["loss"].iloc[-1] == pytest.approx(0.2361, abs=2e-4) and math.isnan(t["lo"].iloc[-1]) and p[-1] <= 1 / 200
    R, v = n.sum() / 23_400, 2 * t["shape"].iloc[0] / 300
    assert pytest.approx(0.770, abs=1e-3) == R and math.sqrt(3 / (R * v)) / 60 == pytest.approx(4.1, abs=0.05)
    _, _, n, e, at, _ = load("AMZN")
    t, p = study.lose(n, e, AGES, WINDOW, at).table, shuffled(study, n, e, at)
    assert t[["loss", "lo", "hi"]].iloc[0].to_numpy() == pytest.approx([-0.0041, -0.0664, 0.0581], abs=2e-4)
    assert t["loss"].iloc[3] == pytest.approx(0.2456, abs=2e-4) and p[3] == 0 and p[0] > 0.4


@pytest.mark.realdata
@pytest.mark.parametrize(("symbol", "share", "captured", "cost", "gain"), [("AAPL", -0.0332, 0.0149, 0.0560, (-1593, -6023, 2008)),
                                                                          ("AMZN", -0.0379, 0.0152, 0.0644, (450, -1600, 3027))])
def test_aapl_and_amzn_in_money(study, symbol, share, captured, cost, gain):
    "One day cannot tell fresh from old; the maker loses either way."
    rows = money(study, symbol)
    assert rows[0][1:4] == pytest.approx((share, captured, cost), abs=1e-4)
    assert rows[6][4:] == pytest.approx(gain, abs=1)
    for age in (3, 6, 12):
        assert rows[age][5] < 0 < rows[age][6] and rows[age][0] < 0
