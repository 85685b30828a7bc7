"The real figures that study 11 quotes: one strategy on AMZN of 2012-06-21 (LOBSTER, five levels), in every world that the file allows."
import re
from pathlib import Path

import pytest
from conftest import real

from makerlab.backtest.pipeline import Config
from makerlab.data.source import open_events
from makerlab.replay import TRUTH, ladder

STUDY = Path(__file__).resolve().parents[1] / "mm_nbs" / "11_do_fill_models_agree.ipynb"
FILE = "lobster_samples/LOBSTER_SampleFile_AMZN_2012-06-21_5.zip"
SETTINGS = Config(qty=100.0, max_inventory=500.0)
BASE = "L3 replay, fifo"
SHOWN = ("reduced-form", "snapshot", "L2 replay, risk-averse, one level", "L2 replay, risk-averse", "L2 replay, power-prob:3", "L2 replay, log-prob:1", BASE, TRUTH)


def figures(strategy: str, events) -> dict[str, str]:
    "A row a rung, as the study prints it."
    found, out = ladder(events, strategy=strategy, config=SETTINGS, one_level=True), {}
    against, table = found.against(BASE), found.table
    assert list(found.runs) and table["decisions"].nunique() == 1
    for name in SHOWN:
        t = table.loc[name]
        row = [f"{t['fills']:,.0f}", f"{t['units']:,.0f}", f"{100 * t['captured_per_unit']:.2f}", f"{100 * t['adverse_10s_per_unit']:.2f} [{100 * t['adverse_lo']:.2f}, {100 * t['adverse_hi']:.2f}]",
               f"{t['net']:,.0f} [{t['net_lo']:,.0f}, {t['net_hi']:,.0f}]"]
        if name in (BASE, TRUTH):
            row += [" ", " ", " "]
        else:
            gap, part = found.gap(name, BASE), against.loc[name]
            row += [f"{gap.estimate:,.0f} [{gap.lo:,.0f}, {gap.hi:,.0f}]", f"{part['count_part']:,.0f}", f"{part['selection_part']:,.0f}"]
        out[name] = "| " + " | ".join([name, *row]) + " |"
    return out


def quoted(strategy: str) -> dict[str, str]:
    "The rows that the study's text holds."
    text = STUDY.read_text().replace("\\n", "\n")
    part = text[text.index(f"AMZN, `{strategy}`") :]
    rows: dict[str, str] = {}
    for line in part.split("\n")[:40]:
        text = re.sub(r'",?$', "", line.strip().removeprefix('"'))
        if text.startswith("|"):
            rows.setdefault(text.split("|")[1].strip(), text)
    return {name: rows[name] for name in SHOWN}


@pytest.mark.realdata
@pytest.mark.parametrize("strategy", ["as", "naive"])
def test_study_11_amzn(strategy):
    events = open_events(real(FILE))
    found, said = figures(strategy, events), quoted(strategy)
    for name in SHOWN:
        assert found[name] == said[name]
    net = {name: float(row.split("|")[6].split("[")[0].replace(",", "")) for name, row in found.items()}
    assert net["reduced-form"] > 10 * max(abs(v) for k, v in net.items() if k not in ("reduced-form", TRUTH))


if __name__ == "__main__":
    for kind in ("as", "naive"):
        print("\n".join(figures(kind, open_events(real(FILE))).values()), "\n")
