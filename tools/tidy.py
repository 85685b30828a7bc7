"Bring what is derived from the notebooks up to date in the tree given: export, clean, number the studies, write README.md."
import os
import subprocess
import sys
from pathlib import Path

import renum_nb


def tidy(root: Path) -> None:
    "Run nbdev's export and clean over `root`; nbdev acts on nbs/ alone, so the studies are named."
    here = Path(sys.executable).parent
    env = {**os.environ, "PYTHONPATH": str(root)}
    for command in (["nbdev_export"], ["nbdev_clean"], ["nbdev_clean", "--fname", "mm_nbs"]):
        subprocess.run([str(here / command[0]), *command[1:]], cwd=root, env=env, check=True)
    for path in sorted((root / "mm_nbs").glob("*.ipynb")):
        renum_nb.renumber(path)
    subprocess.run([sys.executable, str(root / "tools" / "make_readme.py")], cwd=root, env=env, check=True)


if __name__ == "__main__":
    tidy(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
