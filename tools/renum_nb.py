"After nbdev_clean: number the run cells 1..n, so that nbval accepts them and diffs stay stable."
import json
import pathlib
import sys


def renumber(path: pathlib.Path) -> None:
    "Rewrite `path` with its code cells counted in reading order; sources and outputs are untouched."
    nb = json.loads(path.read_text(encoding="utf8"))
    n = 0
    for cell in nb["cells"]:
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        n += 1
        cell["execution_count"] = n
        for out in cell["outputs"]:
            if out["output_type"] == "execute_result":
                out["execution_count"] = n
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        renumber(pathlib.Path(name))
