"Study 09 on real days: every figure that it quotes of them, and that its yardstick cannot call less trading a gain."
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import real

from makerlab.backtest.pipeline import Config
from makerlab.data.source import open_source
from makerlab.scoring.attribution import adverse_selection

STUDY = Path(__file__).parents[1] / "mm_nbs" / "09_the_published_63_percent.ipynb"
LOBSTER = "lobster_samples/LOBSTER_SampleFile_{}_2012-06-21_1.zip"
HF = "highfrequency_rda/data/"


@pytest.fixture(scope="module")
def study():
    "The study's own functions, its text, and fifteen comparisons in place of ten."
    cells = json.loads(STUDY.read_text(encoding="utf8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    method = [c for c in code if c.startswith("# method")]
    names = {}
    for source in [code[0], *method]:
        exec(compile(source, STUDY.name, "exec"), names)
    assert {"Design", "lab", "design", "yardsticks", "minutes", "share_of", "above", "compare"} <= set(names)
    names["cfg"] = dataclasses.replace(names["cfg"], comparisons=15)
    return names | {"text": "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")}


def market(name):
    "A real day, displayed sizes in shares."
    if name != "NYSE 2018":
        return open_source(real(LOBSTER.format(name)))
    m = open_source(real(HF + "sampleQData.rda"), trades=real(HF + "sampleTData.rda"), tz="UTC")
    return dataclasses.replace(m, quotes=m.quotes.assign(bid_size=100 * m.quotes["bid_size"], ask_size=100 * m.quotes["ask_size"]))


@pytest.fixture(scope="module")
def tried(study):
    "By sample: the four makers, their minutes, the five comparisons."
    done = {}

    def get(name):
        if name not in done:
            known, base = study["lab"](market(name), Config())
            runs = study["design"](base, known)
            sticks = study["yardsticks"](base, known)
            gains = study["compare"](runs, *sticks)
            done[name] = runs, {k: study["minutes"](r) for k, r in runs.items()}, {p: (i, kept(study, runs, sticks, *p)) for p, i in gains.items()}
        return done[name]
    return get


def kept(study, runs, sticks, a, b):
    "What a share had earned after ten seconds beyond the yardstick at equal shares, cents."
    m, stick = study["minutes"](runs[a], 10.0), sticks[("fixed", "A-S").index(b)]
    i, scale = study["above"](m, [study["minutes"](r, 10.0) for r in stick.values()], variants=30), 100 / m["shares"].sum()
    return dataclasses.replace(i, estimate=i.estimate * scale, lo=i.lo * scale, hi=i.hi * scale)


def said(i, digits=0):
    "An interval as the study writes it."
    return f"{i.estimate:,.{digits}f} [{i.lo:,.{digits}f}, {i.hi:,.{digits}f}]".replace("-", "−")


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["NYSE 2018", "AAPL", "AMZN"])
def test_what_the_study_says_of_real_days(study, tried, name):
    runs, by, gains = tried(name)
    for k, m in by.items():
        c = 100 * adverse_selection(runs[k].markouts).loc[10.0]
        cost = f"{c['effective_per_unit']:.2f} | {c['cost_per_unit']:.2f} [{c['lo']:.2f}, {c['hi']:.2f}]"
        row = f"| {name} | {k} | {m['shares'].sum():,.0f} | {said(study['total'](m))} | {said(study['per_share'](m), 2)} | {cost} |"
        assert row in study["text"], row
        assert c["lo"] > 0, "those who trade with us know something"
    for (a, b), (i, later) in gains.items():
        row = f"| {name} | {a} over {b} | {said(i)} | {said(later, 2)} |"
        assert row in study["text"], row
        assert i.lo < 0 < i.hi and later.lo < 0 < later.hi
        assert "Bonferroni over 15" in i.method and "Bonferroni over 30" in later.method


@pytest.mark.realdata
def test_fewer_shares_are_no_skill_on_real_days(tried):
    "What the study's sentences say of these tables."
    _, nyse, _ = tried("NYSE 2018")
    fixed, wide = nyse["fixed"], nyse["OFI skew + widen"]
    assert all(m["pnl"].sum() < 0 for m in nyse.values()), "every maker loses, as published"
    assert round(100 * wide["shares"].sum() / fixed["shares"].sum()) == 84 and wide["pnl"].sum() < fixed["pnl"].sum(), "fewer shares, a larger loss"
    assert tried("AAPL")[0]["fixed"].params.half_spread == pytest.approx(0.095)
    dear = {(n, k): c["lo"] > c["effective_per_unit"] for n in ("NYSE 2018", "AAPL", "AMZN") for k, r in tried(n)[0].items()
            for c in [adverse_selection(r.markouts).loc[10.0]]}
    assert {k for k, v in dear.items() if v and k[0] != "NYSE 2018"} == {("AMZN", "A-S"), ("AMZN", "OFI skew")}
    assert all(v for k, v in dear.items() if k[0] == "NYSE 2018"), "a fill costs more than it captured"
    for name, shares, change in (("AAPL", 48, -79), ("AMZN", 46, -52)):
        _, by, _ = tried(name)
        a, b = by["OFI skew + widen"], by["fixed"]
        assert (round(100 * a["shares"].sum() / b["shares"].sum()), round(100 * (a["pnl"].sum() / b["pnl"].sum() - 1))) == (shares, change)


# ---------------------------------------------------------------- the yardstick itself

def minutes(rng, *, shares, each, n=400):
    "A made table: so many shares a minute, each earning `each` and noise."
    import pandas as pd
    s = rng.poisson(shares, n).astype(float)
    at = pd.date_range("2026-03-03 14:30", periods=n, freq="60s", tz="UTC")
    return pd.DataFrame({"day": at.strftime("%Y-%m-%d"), "pnl": each * s + rng.normal(0, 1, n), "fills": s, "shares": s}, index=at)


def test_less_of_the_same_is_no_gain(study):
    "A maker scaled down lies on the line from nothing to itself: loss halved, gain zero, per share the same."
    m = minutes(np.random.default_rng(1), shares=50, each=-0.02)
    half = m.assign(pnl=m["pnl"] / 2, shares=m["shares"] / 2)
    gain = study["above"](half, [m])
    assert gain.estimate == pytest.approx(0, abs=1e-9) and gain.hi - gain.lo < 1e-9
    same = study["per_share_gain"](half, m)
    assert same.estimate == pytest.approx(0, abs=1e-12)
    nothing = m.assign(pnl=0.0, shares=0.0)
    assert study["above"](nothing, [m]).estimate == pytest.approx(0, abs=1e-9)


def test_a_better_share_is_a_gain(study):
    "The guard must be able to see skill: a cent a share more is found, in dollars, between two widths of the yardstick."
    rng = np.random.default_rng(2)
    near, far, mine = (minutes(rng, shares=s, each=e) for s, e in ((80, -0.02), (20, 0.01), (50, 0.04)))
    gain = study["above"](mine, [near, far])
    u = (mine["shares"].sum() - far["shares"].sum()) / (near["shares"].sum() - far["shares"].sum())
    assert gain.estimate == pytest.approx(mine["pnl"].sum() - (1 - u) * far["pnl"].sum() - u * near["pnl"].sum(), rel=1e-9)
    assert gain.lo > 0
    with pytest.raises(ValueError, match="add a narrower width"):
        study["above"](near, [far])


def test_per_share_adds_up(study):
    m = minutes(np.random.default_rng(3), shares=50, each=-0.02)
    assert study["share_of"](m).sum() == pytest.approx(100 * m["pnl"].sum() / m["shares"].sum(), rel=1e-12)
    cut = study["per_share"](m)
    assert cut.lo < -2 < cut.hi, "cents"
