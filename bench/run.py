"Run makerlab beside its peers, one row of the table after another, and write bench/RESULTS.md. `make bench` calls it."
import datetime as dt
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWS = {
    "A": ("row_a.py", "L2 replay with queue position and latency, 4.0 M rows"),
    "B": ("row_b.py", "Avellaneda–Stoikov Monte-Carlo"),
    "C": ("row_c.py", "matching engine, 1 M messages"),
    "D": ("row_d.py", "OFI, rolling 60 s σ and weighted mid"),
    "E": ("row_e.py", "Poisson maximum likelihood, bootstrap refits"),
    "F": ("row_f.py", "environment steps, one session and many"),
    "H": ("row_h.py", "Cartea–Jaimungal HJB, q_max 50 × 2,000 steps"),
    "I": ("row_i.py", "Hawkes log-likelihood and gradient"),
    "J": ("row_j.py", "block bootstrap of a day's P&L, 10,000 replicates"),
    "K": ("row_k.py", "a grid of backtests on two workers, and on a local Ray cluster"),
    "IV": ("row_iv.py", "implied volatilities of a wide grid"),
    "LIVE": ("row_live.py", "a live session from a book event to its order, and messages a second"),
    "OVERHEAD": ("row_overhead.py", "Python's overhead for one market event through quoting, risk and orders"),
}


def run_row(script: str) -> dict:
    "One row in a process of its own; its last line on stdout is its JSON object."
    done = subprocess.run([sys.executable, str(HERE / script)], capture_output=True, text=True, cwd=HERE.parent)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{script} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def machine() -> str:
    "What this was measured on, without naming anyone's machine."
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "") \
        if Path("/proc/cpuinfo").exists() else platform.processor()
    return f"{cpu or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def seconds(value: float) -> str:
    "A duration in the unit that suits it."
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def versions() -> str:
    from importlib.metadata import version
    return ", ".join(f"{name} {version(name)}" for name in ("makerlab", "numpy", "numba", "scipy", "pandas", "statsmodels", "polars"))  # peers in .venv-peers say their own


def table(rows: dict[str, dict]) -> list[str]:
    out = ["| row | who | median | min | max | runs | version | note |", "|---|---|---|---|---|---|---|---|"]
    for name, row in rows.items():
        for who, m in [("**makerlab**", row["makerlab"]), *row["peers"].items()]:
            cells = [seconds(m[k]) for k in ("median_s", "min_s", "max_s")]
            out.append(f"| {name} | {who} | {' | '.join(cells)} | {m['runs']} | {m.get('version', '')} | {m.get('note', '')} |")
    return out


def verdicts(rows: dict[str, dict]) -> list[str]:
    out = ["| row | work | ratio | target | met | answers agree |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        met = "yes" if row["ratio"] >= row["target"] else "**no**"
        agree = "yes" if row["answers_agree"] else "**no**"
        out.append(f"| {name} | {row['work']} | {row['ratio']:.4g}× | ≥ {row['target']:g}× | {met} | {agree} |")
        for more in row.get("also", []):  # a row may have more than one target, or figures without any
            asked = ("≥ {:g}×".format(more["target"]), "yes" if more["ratio"] >= more["target"] else "**no**") if more.get("target") else ("none set", "")
            out.append(f"| {name} | {more['work']} | {more['ratio']:.4g}× | {asked[0]} | {asked[1]} | {agree} |")
    return out


def good(row: dict) -> bool:
    "Whether every target of a row was met and the answers agree."
    return bool(row["answers_agree"] and all(r["ratio"] >= r["target"] for r in [row, *row.get("also", [])] if r.get("target")))


def main() -> int:
    names = [n.upper() for n in sys.argv[1:]] or list(ROWS)
    rows = {}
    for name in names:
        script, what = ROWS[name]
        print(f"row {name}: {what} ...", flush=True)
        rows[name] = run_row(script)
        print(f"row {name}: {rows[name]['ratio']:.4g}x (target {rows[name]['target']:g}x), answers agree: {rows[name]['answers_agree']}", flush=True)
    if set(names) == set(ROWS):
        text = ["# makerlab beside its peers", "",
                "Ratios within one run on one machine: peers and makerlab in turn, on the same input, answers compared. Written by `make bench`; "
                "absolute times drift, ratios less so. No speed is a timed test in CI.", "",
                f"Measured {dt.date.today().isoformat()} on {machine()}. {versions()}.", "", *verdicts(rows), "", "## Times", "", *table(rows), ""]
        (HERE / "RESULTS.md").write_text("\n".join(text), encoding="utf8")
        print("wrote bench/RESULTS.md")
    return 0 if all(good(r) for r in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
