"""Everything that CI checks, in order; each step prints its name and its seconds. pytest comes last, so that its line closes.

Steps may be named to run only those: `python tools/check.py lint types`."""
import filecmp
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PYTHON = sys.executable
DERIVED = ("makerlab", "nbs", "mm_nbs", "README.md")


def run(*command: str, **extra) -> bool:
    "Run one command in the repository, its output shown; True when it succeeded."
    return subprocess.run(command, **{"cwd": ROOT, "env": ENV} | extra).returncode == 0


def lint() -> bool:
    return run(str(BIN / "ruff"), "check", "--quiet", ".")


def types() -> bool:
    return run(str(BIN / "mypy"), "--no-error-summary", "makerlab")


def tree(folder: Path) -> set[str]:
    "The files that count, by their path in the tree."
    files = [p for top in DERIVED for p in ([folder / top] if (folder / top).is_file() else (folder / top).rglob("*"))]
    return {str(p.relative_to(folder)) for p in files if p.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}


def derived() -> bool:
    "Export, clean and renumber a copy: it must come out as it went in. The working tree is never touched."
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "makerlab"
        skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        copy.mkdir()
        for top in (*DERIVED, "settings.ini", "setup.py", "tools"):
            here = ROOT / top
            if here.is_dir():
                shutil.copytree(here, copy / top, ignore=skip)
            elif here.is_file():
                shutil.copy(here, copy / top)
        if not run(PYTHON, str(copy / "tools" / "tidy.py"), str(copy)):
            return False
        before, after = tree(ROOT), tree(copy)
        wrong = sorted(before ^ after) + sorted(f for f in before & after if not filecmp.cmp(ROOT / f, copy / f, shallow=False))
    for file in wrong:
        print(f"  {file}: differs from what its notebook gives, or is unclean: run `make notebooks`")
    return not wrong


def one_notebook(path: Path) -> tuple[str, bool, float]:
    "A notebook from top to bottom as nbdev runs it: its name, whether it held, and its seconds."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    good, seconds = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    return path.name, good, seconds


def notebooks() -> bool:
    "Every library notebook in a process of its own (numba takes two named tuples of one name for one type); the timings show drift."
    import nbdev.test  # noqa: F401  # once, before the processes part

    os.environ.update(ENV)
    files = sorted((ROOT / "nbs").glob("[!_.]*.ipynb"))
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        ran = pool.map(one_notebook, files, chunksize=1)
    for name, good, seconds in sorted(ran, key=lambda r: (r[1], -r[2]))[:20]:
        print(f"{name}: {seconds:.0f} s{'' if good else ', FAILED'}")
    return all(good for _, good, _ in ran)


def site() -> bool:
    return run(PYTHON, "tools/build_docs.py", "--preview")


def links() -> bool:
    return run(PYTHON, "tools/check_links.py", "_docs")


def nojit() -> bool:
    "The small cases again as plain Python: what the compiler makes of a kernel is what is written there."
    return run(PYTHON, "-m", "pytest", "-q", "-m", "nojit", "tests", env=ENV | {"NUMBA_DISABLE_JIT": "1"})


def bounds() -> bool:
    "The hardest-driven kernels again with every index checked, compiled into a cache of their own."
    with tempfile.TemporaryDirectory() as cache:
        return run(PYTHON, "-m", "pytest", "-q", "-m", "bounds", "tests", env=ENV | {"NUMBA_BOUNDSCHECK": "1", "MAKERLAB_CACHE_DIR": cache})


def live_tests() -> list[str]:
    "The test files of the live wing: sockets, servers, processes that are killed. They wait more than they compute."
    return sorted(str(p.relative_to(ROOT)) for name in LIVE for p in (ROOT / "tests").glob(f"test_{name}*.py"))


def start_live() -> Future:
    "The tests of the live wing in a thread, beside the steps that need one processor only; what they say waits."
    command = [PYTHON, "-m", "pytest", "-q", "--durations=10", *live_tests()]
    beside = ThreadPoolExecutor(1)
    return beside.submit(subprocess.run, command, cwd=ROOT, env=ENV, capture_output=True, text=True)


def live(running: Future | None = None) -> bool:
    "Wait for the tests of the live wing, and say what they said."
    done = (running or start_live()).result()
    print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


def tests(failed: list[str]) -> int:
    "pytest over the rest of tests/ and, with nbval, over the studies. Its summary names the steps that failed before it."
    command = [PYTHON, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg",
               "--durations=10", *(f"--ignore={file}" for file in live_tests()), "tests", "mm_nbs"]
    return subprocess.run(command, cwd=ROOT, env={**ENV, "MAKERLAB_CHECK_FAILED": ", ".join(failed)}).returncode


STEPS = {"lint": lint, "types": types, "derived": derived, "notebooks": notebooks, "site": site, "links": links,
         "nojit": nojit, "bounds": bounds, "live": live}
LIVE = ("live_", "simulated", "binance_", "recorder", "journal", "mirror", "metrics", "ibkr", "paper", "engine", "guardian", "reconcile",
        "monitor", "fault_matrix", "soak", "cli_live")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
ENV.pop("MPLBACKEND", None)  # nbval needs the notebooks' own inline figures


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - {*STEPS, "tests"})
    if unknown:
        print(f"no step {', '.join(unknown)}: there are {', '.join([*STEPS, 'tests'])}")
        return 2
    failed, beside = [], None
    for name, step in STEPS.items():
        if names and name not in names:
            continue
        if name == "site" and not names:  # from here on a processor is free
            beside = start_live()
        start = time.perf_counter()
        good = live(beside) if name == "live" else step()
        print(f"== {name}: {'ok' if good else 'FAILED'} ({time.perf_counter() - start:.1f} s)", flush=True)
        failed += [] if good else [name]
    if names and "tests" not in names:
        return 1 if failed else 0
    code = tests(failed)
    return code or (1 if failed else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
