"Draw the house: floors, modules and what each imports, read from the exported package, so that the picture cannot go stale."
import ast
import html
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"0": "Ground", "1": "Data", "2": "Features", "3": "Models", "4": "Calibration", "5": "Execution", "6": "Scoring",
          "7": "Backtest", "8": "Learning", "9": "Live and CLI"}
HEADER = re.compile(r"File to edit: (?:\.\./)+nbs/((\d)\d[a-z]?)_(.+)\.ipynb")


def modules(package: Path) -> dict[str, dict]:
    "Exported modules by dotted name (without the package): number, floor, one-line docstring, page, and the modules imported."
    found: dict[str, dict] = {}
    for py in sorted(package.rglob("*.py")):
        text = py.read_text(encoding="utf8")
        head = HEADER.search(text)
        if head is None:
            continue
        name = ".".join(py.relative_to(package).with_suffix("").parts)
        tree = ast.parse(text)
        here = [package.name, *name.split(".")]
        names: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = here[:-node.level] if node.level else []
                full = ".".join(base + ([node.module] if node.module else []))
                names |= {full} | {f"{full}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                names |= {a.name for a in node.names}
        doc = (ast.get_docstring(tree) or "").strip().splitlines()
        found[name] = {"number": head[1], "floor": head[2], "doc": doc[0] if doc else "", "page": f"nbs/{head[3]}.html", "names": names}
    for info in found.values():
        names = info.pop("names")
        info["imports"] = sorted((m for m in found if f"{package.name}.{m}" in names), key=lambda m: found[m]["number"])
    return dict(sorted(found.items(), key=lambda item: item[1]["number"]))


def svg(mods: dict[str, dict]) -> str:
    "The house as an SVG: one storey a floor, the ground at the bottom, one linked room a module."
    floors = sorted({m["floor"] for m in mods.values()}, reverse=True)
    wide, high, left, gap = 860, 58, 150, 8
    parts = [f'<svg viewBox="0 0 {wide} {high * len(floors) + 46}" width="100%" role="img" xmlns="http://www.w3.org/2000/svg" '
             'font-family="system-ui, sans-serif" font-size="12.5" aria-label="The floors of makerlab and the modules on each">',
             f'<path d="M 4 40 L {wide / 2} 4 L {wide - 4} 40 Z" fill="#2a6f97" opacity="0.9"/>']
    for row, floor in enumerate(floors):
        y = 42 + row * high
        rooms = [(name, m) for name, m in mods.items() if m["floor"] == floor]
        parts.append(f'<rect x="4" y="{y}" width="{wide - 8}" height="{high - 3}" fill="{"#eef4f8" if row % 2 else "#f7fafc"}" stroke="#b9cddb"/>')
        parts.append(f'<text x="16" y="{y + 32}" font-weight="600" fill="#1b4a66">{floor} · {FLOORS[floor]}</text>')
        room = (wide - left - 16 - gap * (len(rooms) - 1)) / len(rooms)
        room = min(room, 190)
        for i, (name, m) in enumerate(rooms):
            x = left + i * (room + gap)
            short = name.split(".")[-1].replace("avellaneda_stoikov", "avellaneda–stoikov")
            size = 12.5 if len(short) * 7.2 < room - 10 else 10.5
            parts.append(f'<a href="{m["page"]}"><title>{html.escape(m["doc"])}</title>'
                         f'<rect x="{x:.0f}" y="{y + 9}" width="{room:.0f}" height="{high - 21}" rx="4" fill="#ffffff" stroke="#2a6f97"/>'
                         f'<text x="{x + room / 2:.0f}" y="{y + 32}" text-anchor="middle" fill="#123" font-size="{size}">'
                         f'{m["number"]} {html.escape(short)}</text></a>')
    return "\n".join([*parts, "</svg>"])


def page(package: Path = ROOT / "makerlab") -> str:
    "The page `house.qmd`: the picture, then one table a floor."
    mods = modules(package)
    out = ["---", "title: The house", "---", "",
           "makerlab is one book in reading order. Each module is exported from one notebook, the tens digit of the notebook's number is its "
           "floor, and **a module imports only from lower-numbered notebooks**, so there are no circles. A test holds that; this page is "
           "drawn from the imports when the site is built.", "", "```{=html}", svg(mods), "```", ""]
    for floor in sorted({m["floor"] for m in mods.values()}):
        out += [f"## {floor} · {FLOORS[floor]}", "", "| module | the question it answers | stands on |", "|---|---|---|"]
        for name, m in mods.items():
            if m["floor"] == floor:
                stands = ", ".join(f"[{i}]({mods[i]['page']})" for i in m["imports"]) or "numpy and numba alone"
                out.append(f"| [{m['number']} {name}]({m['page']}) | {m['doc'].replace('|', '&#124;')} | {stands} |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    print(page())
