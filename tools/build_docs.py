"Build the site: stage notebooks with nbdev's processors into _proc/, then render with Quarto, or with the offline previewer."
import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import house_map  # noqa: E402
import preview  # noqa: E402

KEEP_FOLDERS = ("nbs", "mm_nbs")
SKIP_FOLDERS = r"^[_.]|^(?!(nbs|mm_nbs)$)"
SKIP_FILES = r"^[_.]|^[^.]+$|\.(?!(ipynb|qmd|md|png|svg|jpg)$)[^.]*$|^README\.md$"
GENERATED = {"house.qmd"}  # pages of _quarto.yml that this script writes


def lenient(job: tuple) -> None:
    "Stage one file of an unfinished tree: a notebook that cannot be staged yet is named and left out."
    try:
        strict(job)
    except Exception as error:  # whatever stops a half-written notebook
        print(f"left out: {job[0]}: {str(error).splitlines()[0]}", file=sys.stderr)


def stage(unfinished: bool = False) -> Path:
    "nbdev's staging of every page into _proc/: exported cells shown as documented signatures, names in backticks linked."
    global strict
    import nbdev.serve_drv
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.serve import proc_nbs

    _build_modidx()
    if unfinished:
        strict, nbdev.serve_drv.main = nbdev.serve_drv.main, lenient
    proc = proc_nbs(".", n_workers=0 if unfinished else 2, force=True, skip_folder_re=SKIP_FOLDERS, skip_file_re=SKIP_FILES)
    cfg = get_config()
    (proc / "house.qmd").write_text(house_map.page(), encoding="utf8")
    base = f"{cfg.doc_host}{cfg.doc_baseurl}".rstrip("/")
    books = {path: json.loads(path.read_text(encoding="utf8")) for path in sorted(proc.rglob("*.ipynb"))}
    for nb in books.values():
        nb["cells"] = source_order(nb["cells"])
    known = set().union(*map(documented, books.values()))
    for path, nb in books.items():
        nb["cells"] = local_links(nb["cells"], base, "" if path.parent.name == "nbs" else "../nbs/", known)
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False), encoding="utf8")
    return Path(proc)


def source_order(cells: list[dict]) -> list[dict]:
    "nbdev shows the names that one cell exports last one first: put each run of them in the order of the source."
    def line(cell: dict) -> int:
        text = "".join("".join(out.get("data", {}).get("text/markdown", "")) for out in cell.get("outputs", []))
        match = re.search(r"\.py#L(\d+)\)", text) if cell.get("has_sd") else None
        return int(match[1]) if match else 0

    out: list[dict] = []
    for shown, run in itertools.groupby(cells, key=lambda cell: line(cell) > 0):
        out += sorted(run, key=line) if shown else run
    return out


def documented(nb: dict) -> set[str]:
    "The addresses `page.html#name` at which a staged notebook documents a name."
    page = re.search(r"^output-file:\s*(\S+)", "".join(nb["cells"][0]["source"]), re.M)
    shown = ["".join(out["data"].get("text/markdown", "")) for cell in nb["cells"] for out in cell.get("outputs", []) if "data" in out]
    return {f"{page[1]}#{name.lower()}" for text in shown for name in re.findall(r"^#+ ([\w.]+)\s*$", text, re.M)} if page else set()


def local_links(value, base: str, prefix: str, known: set[str]):
    """nbdev writes links to our own pages with the published address: make them relative, so that they work from any host.
    A name that its page does not document by itself (a method, a private name) leads to its class, or to the page."""
    def local(match: re.Match) -> str:
        page, name = match[1], match[2] or ""
        if name and f"{page}#{name}" not in known:
            name = name.split(".")[0]
        return prefix + page + (f"#{name}" if name and f"{page}#{name}" in known else "")

    if isinstance(value, str):
        return re.sub(re.escape(base) + r"/([\w.]+\.html)(?:#([\w.]+))?", local, value)
    if isinstance(value, list):
        return [local_links(v, base, prefix, known) for v in value]
    if isinstance(value, dict):
        return {k: v if k.startswith("image/") else local_links(v, base, prefix, known) for k, v in value.items()}
    return value


def missing_pages(proc: Path) -> list[str]:
    "Notebooks of the repository that the staging did not produce."
    want = [p for folder in KEEP_FOLDERS for p in (ROOT / folder).glob("[!.]*.ipynb")]
    return [str(p.relative_to(ROOT)) for p in want if not (proc / p.relative_to(ROOT)).is_file()]


def publish(built: Path) -> Path:
    "Put the built site in _docs/, replacing the last one."
    docs = ROOT / "_docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(built, docs)
    return docs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preview", action="store_true", help="render offline, without Quarto")
    parser.add_argument("--skip-missing", action="store_true",
                        help="preview an unfinished tree: name and leave out what is not there yet or cannot be staged yet")
    args = parser.parse_args()
    os.chdir(ROOT)
    start = time.perf_counter()
    proc = stage(args.skip_missing)
    lost = missing_pages(proc)
    if lost and not args.skip_missing:
        print("not staged: " + ", ".join(lost), file=sys.stderr)
        return 1
    print(f"staged {len(list(proc.rglob('*.ipynb')))} notebooks in {time.perf_counter() - start:.1f} s")
    if args.preview:
        pages, problems = preview.render(proc, skip_missing=args.skip_missing)
        docs = publish(proc / "_docs")
        for problem in problems:
            print("preview: " + problem, file=sys.stderr)
        print(f"previewed {pages} pages in {docs.relative_to(ROOT)}/ ({time.perf_counter() - start:.1f} s; a preview, not a Quarto render)")
        return 1 if problems else 0
    quarto = shutil.which("quarto")
    if quarto is None:
        print("quarto is not on PATH: see `make docs`, or look at the site offline with `make docs-preview`", file=sys.stderr)
        return 1
    subprocess.run([quarto, "render", ".", "--no-execute"], cwd=proc, check=True)
    print(f"rendered into {publish(proc / '_docs').relative_to(ROOT)}/ ({time.perf_counter() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
