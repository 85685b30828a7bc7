"Write README.md from nbs/index.ipynb: its prose, its code, and its text outputs. `--check` only compares."
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "nbs" / "index.ipynb"
DIRECTIVE = re.compile(r"^\s*#\s*\|.*$")


def joined(value) -> str:
    "Text that a notebook may store as a list of lines."
    return "".join(value) if isinstance(value, list) else str(value)


def shown(output: dict) -> str:
    "One output as Markdown: Markdown as it is, plain text and streams in a block; pictures are left to the site."
    data = output.get("data", {})
    if "text/markdown" in data:
        return joined(data["text/markdown"]).strip()
    if any(kind.startswith("image/") for kind in data):
        return ""
    text = joined(output.get("text") or data.get("text/plain", "")).rstrip()
    return f"```text\n{text}\n```" if text else ""


def relink(text: str) -> str:
    "Links written on the page nbs/index.ipynb, as seen from the repository's root."
    text = re.sub(r"\]\((?!https?:|#|/|mailto:|\.\./)([^)\s]+\.(?:ipynb|html|png|svg|md)(?:#[^)]*)?)\)", r"](nbs/\1)", text)
    return text.replace("](../", "](")


def readme(notebook: dict) -> str:
    "The whole README as text."
    parts = ["<!-- Made from nbs/index.ipynb by tools/make_readme.py: change the notebook, not this file. -->"]
    for cell in notebook["cells"]:
        source = joined(cell["source"])
        directives = [line for line in source.splitlines() if DIRECTIVE.match(line)]
        flags = " ".join(directives)
        if cell["cell_type"] == "markdown":
            parts.append(relink(source.strip()))
        elif cell["cell_type"] == "code" and not re.search(r"\|\s*(hide|default_exp|include:\s*false)\b", flags):
            code = "\n".join(line for line in source.splitlines() if not DIRECTIVE.match(line)).strip()
            if code and not re.search(r"echo:\s*false", flags):
                parts.append(f"```python\n{code}\n```")
            parts += [text for text in map(shown, cell["outputs"]) if text]
    return "\n\n".join(p for p in parts if p) + "\n"


def main() -> int:
    text = readme(json.loads(SOURCE.read_text(encoding="utf8")))
    target = ROOT / "README.md"
    if "--check" in sys.argv[1:]:
        same = target.is_file() and target.read_text(encoding="utf8") == text
        print("README.md is current" if same else "README.md differs from nbs/index.ipynb: run `make readme`")
        return 0 if same else 1
    target.write_text(text, encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
