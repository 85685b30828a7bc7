"""Preview the staged site offline: a stand-in for Quarto where none can be installed. Never call the result a Quarto render.

smalldocs reads `_quarto.yml` and draws the pages. What it lacks is added here: page names as nbdev links them, numbered
equations and figures with their cross-references, and mathematics that needs no network (KaTeX run at build time when node
and the npm package `katex` are there, else MathML by latex2mathml)."""
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
KATEX = ROOT / "node_modules" / "katex"
FENCE = re.compile(r"(^```.*?^```[^\S\n]*$|`[^`\n]+`)", re.S | re.M)
EQUATION = re.compile(r"\$\$(.+?)\$\$[ \t]*\{#(eq-[\w-]+)\}", re.S)
CROSSREF = re.compile(r"(?<![\w\[])@((eq|fig|tbl|sec)-[\w-]*\w)")
LABEL = re.compile(r"^#\|\s*label:\s*((?:fig|tbl)-[\w-]+)\s*$", re.M)
CAPTION = re.compile(r"^(#\|\s*(?:fig|tbl)-cap:\s*)(.+)$", re.M)
MATH = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
CDN = re.compile(r'<(?:link|script)[^>]*https://cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?')
NAMES = {"eq": "Equation", "fig": "Figure", "tbl": "Table", "sec": "Section"}
STYLE = """<style>:root{--sd-body-width:860px} main pre:not(.cell-output pre) code{white-space:pre-wrap}
.cell-output-display{overflow-x:auto} .math.display{display:block;overflow-x:auto;overflow-y:hidden}
figcaption{font-size:.9em;color:#555} table.dataframe{border:0;font-size:.9em;margin-bottom:1rem}
table.dataframe th,table.dataframe td{border:0;border-bottom:1px solid #dee2e6;padding:.2rem .7rem;text-align:right}
</style>"""
NODE = """
const katex = require(process.argv[1]); const jobs = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(JSON.stringify(jobs.map(([tex, display]) => {
  try { return [katex.renderToString(tex, {displayMode: display, throwOnError: true, strict: 'ignore'}), null]; }
  catch (e) { return [null, String(e.message)]; }})));
"""


def text_of(cell: dict) -> str:
    "A cell's source as one string."
    source = cell.get("source", "")
    return "".join(source) if isinstance(source, list) else source


def prose(text: str, change) -> str:
    "Apply `change` to the parts of a markdown text that are not code."
    return "".join(part if i % 2 else change(part) for i, part in enumerate(FENCE.split(text)))


def number(cells: list[dict]) -> dict[str, str]:
    "Labels of a page in reading order: 'eq-x' -> '1', 'fig-y' -> '1', ..."
    labels: dict[str, str] = {}
    counts = dict.fromkeys(NAMES, 0)
    for cell in cells:
        pattern = EQUATION if cell["cell_type"] == "markdown" else LABEL
        for match in pattern.finditer(text_of(cell)):
            name = match[2] if pattern is EQUATION else match[1]
            kind = name.split("-")[0]
            counts[kind] += 1
            labels[name] = str(counts[kind])
    return labels


def adapt(cells: list[dict]) -> list[str]:
    "Resolve labels and cross-references in place, as Quarto would; returns the references that lead nowhere."
    labels = number(cells)
    lost: list[str] = []

    def refer(match: re.Match) -> str:
        name, kind = match[1], match[2]
        if name not in labels:
            lost.append(f"@{name} has no label on its page")
            return match[0]
        shown = f"({labels[name]})" if kind == "eq" else f"&nbsp;{labels[name]}"
        return f"[{NAMES[kind]}{'&nbsp;' if kind == 'eq' else ''}{shown}](#{name})"

    def change(part: str) -> str:
        part = EQUATION.sub(lambda m: f'[]{{#{m[2]}}}\n\n$${m[1].rstrip()} \\tag{{{labels[m[2]]}}}$$', part)
        return CROSSREF.sub(refer, part)

    for cell in cells:
        text = text_of(cell)
        if cell["cell_type"] == "markdown":
            cell["source"] = prose(text, change)
        for out in cell.get("outputs", []):  # docstrings cite equations too
            if "text/markdown" in out.get("data", {}):
                shown = out["data"]["text/markdown"]
                out["data"]["text/markdown"] = prose("".join(shown), lambda part: CROSSREF.sub(refer, part))
        if cell["cell_type"] == "code" and (match := LABEL.search(text)):
            kind, n = match[1].split("-")[0], labels[match[1]]
            head = f"{NAMES[kind]} {n}: "
            cell["source"] = CAPTION.sub(lambda m, head=head: m[1] + json.dumps(head + str(yaml.safe_load(m[2])), ensure_ascii=False), text, count=1)
    return lost


def rename(proc: Path) -> dict[str, str]:
    "Give each staged notebook the name that its page must have (nbdev's `output-file`); returns old path -> new path."
    moved = {}
    for path in sorted(proc.rglob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf8"))
        front = text_of(nb["cells"][0]) if nb["cells"] and nb["cells"][0]["cell_type"] == "raw" else ""
        match = re.search(r"^output-file:\s*(.+)\.html\s*$", front, re.M)
        if match and match[1] != path.stem:
            new = path.with_name(match[1] + ".ipynb")
            path.rename(new)
            moved[path.relative_to(proc).as_posix()] = new.relative_to(proc).as_posix()
    return moved


def relink(text: str, moved: dict[str, str]) -> str:
    "Point links at renamed notebooks."
    for old, new in moved.items():
        text = re.sub(r"(?<![\w.])" + re.escape(Path(old).name), Path(new).name, text)
    return text


def prune(items: list, proc: Path, lost: list[str]) -> list:
    "Sidebar entries whose page exists; the others are noted in `lost`."
    kept = []
    for item in items:
        if isinstance(item, str):
            if (proc / item).is_file():
                kept.append(item)
            else:
                lost.append(item)
        elif "contents" in item:
            inner = prune(item["contents"], proc, lost)
            if inner:
                kept.append({**item, "contents": inner})
        elif "href" not in item or (proc / item["href"]).is_file():
            kept.append(item)
        else:
            lost.append(item["href"])
    return kept


def prepare(proc: Path, skip_missing: bool) -> list[str]:
    "Make the staged tree one that smalldocs draws as Quarto would; returns problems."
    problems: list[str] = []
    moved = rename(proc)
    for path in sorted(proc.rglob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf8"))
        problems += [f"{path.relative_to(proc)}: {lost}" for lost in adapt(nb["cells"])]
        for cell in nb["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink(text_of(cell), moved)
        path.write_text(json.dumps(nb, ensure_ascii=False), encoding="utf8")
    for path in [*proc.glob("*.qmd"), *proc.glob("*.md")]:
        path.write_text(relink(path.read_text(encoding="utf8"), moved), encoding="utf8")
    config = yaml.safe_load((proc / "_quarto.yml").read_text(encoding="utf8"))
    config = yaml.safe_load(relink(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), moved))
    lost: list[str] = []
    for part in (config["website"]["sidebar"]["contents"], config["website"]["navbar"]["left"]):
        part[:] = prune(part, proc, lost)
    problems += [] if skip_missing else [f"_quarto.yml names {name}, which is not there" for name in sorted(set(lost))]
    (proc / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf8")
    return problems


def with_katex(jobs: list[tuple[str, bool]]) -> list[tuple[str | None, str | None]]:
    "Every formula to HTML in one run of node."
    done = subprocess.run(["node", "-e", NODE, str(KATEX)], input=json.dumps(jobs), capture_output=True, text=True, check=True)
    return [(out, error) for out, error in json.loads(done.stdout)]


def with_mathml(jobs: list[tuple[str, bool]]) -> list[tuple[str | None, str | None]]:
    "Every formula to MathML, in Python alone."
    from latex2mathml.converter import convert

    out: list[tuple[str | None, str | None]] = []
    for tex, display in jobs:
        tag = re.search(r"\\tag\{(\w+)\}", tex)
        try:
            ml = convert(re.sub(r"\\tag\{\w+\}", "", tex), display="block" if display else "inline")
            out.append((f'<span style="float:right">({tag[1]})</span>{ml}' if tag else ml, None))
        except Exception as error:  # the converter raises many kinds; each is a broken formula
            out.append((None, f"{type(error).__name__}: {error}"))
    return out


def captions(page: str) -> str:
    "Mathematics and code in figure captions, which smalldocs writes as plain text."
    def fix(match: re.Match) -> str:
        text = re.sub(r"\$([^$\n]+)\$", r'<span class="math inline">\\(\1\\)</span>', match[2])
        return match[1] + re.sub(r"`([^`\n]+)`", r"<code>\1</code>", text) + "</figcaption>"
    return re.sub(r"(<figcaption[^>]*>)(.*?)</figcaption>", fix, page, flags=re.S)


def contents(page: str) -> str:
    "Headings with mathematics, which smalldocs lists as plain TeX in the table of contents: as they stand on the page."
    def fix(match: re.Match) -> str:
        heading = re.search(rf'data-anchor-id="{re.escape(match[2])}"[^>]*>(.*?)</h\d>', page, re.S)
        return match[1] + re.sub(r"</?a\b[^>]*>", "", heading[1]) + "</a>" if heading and 'class="math' in heading[1] else match[0]
    return re.sub(r'(<a href="#([^"]+)" id="toc-[^>]*>)[^<]*</a>', fix, page)


def finish(docs: Path) -> list[str]:
    "Draw the mathematics of the built pages at build time, with nothing loaded from elsewhere; returns broken formulas."
    use_katex = KATEX.is_dir() and shutil.which("node") is not None
    pages = {path: contents(captions(path.read_text(encoding="utf8"))) for path in sorted(docs.rglob("*.html"))}
    jobs = [(html.unescape(m[2]), m[1] == "display") for text in pages.values() for m in MATH.finditer(text)]
    done = iter((with_katex if use_katex else with_mathml)(jobs))
    problems = []
    for path, text in pages.items():
        def draw(match: re.Match, path: Path = path) -> str:
            drawn, error = next(done)
            if drawn is None:
                problems.append(f"{path.relative_to(docs)}: formula {html.unescape(match[2])[:80]!r}: {error}")
                return match[0]
            return f'<span class="math {match[1]}">{drawn}</span>'

        text = CDN.sub("", MATH.sub(draw, text))
        up = "../" * (len(path.relative_to(docs).parts) - 1)
        head = f'<link rel="stylesheet" href="{up}site_libs/katex/katex.min.css">' if use_katex else ""
        path.write_text(text.replace("</head>", head + STYLE + "</head>", 1), encoding="utf8")
    if use_katex:
        target = docs / "site_libs" / "katex"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(KATEX / "dist" / "katex.min.css", target)
        shutil.copytree(KATEX / "dist" / "fonts", target / "fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"), dirs_exist_ok=True)
    print(f"{len(jobs)} formulas drawn with {'KaTeX' if use_katex else 'latex2mathml (no node or no npm package katex here)'}")
    return problems


def render(proc: Path, *, skip_missing: bool = False) -> tuple[int, list[str]]:
    "Render the staged tree `proc` into `proc/_docs`; returns the number of pages and the problems found."
    problems = prepare(proc, skip_missing)
    done = subprocess.run([sys.executable, "-m", "smalldocs.cli", "render", "."], cwd=proc, capture_output=True, text=True)
    if done.returncode:
        return 0, [*problems, "smalldocs failed: " + (done.stderr or done.stdout)[-2000:]]
    problems += finish(proc / "_docs")
    return len(list((proc / "_docs").rglob("*.html"))), problems
