"The table of guards in tools/mutants.py holds: every text stands once, every named test exists. `make mutants` runs it."
import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)


def names(path):
    "Tests of a file: functions, and classes with what they hold or inherit."
    tree = ast.parse((ROOT / path).read_text(encoding="utf8"))
    found = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return found | {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}


@pytest.mark.parametrize("module", list(mutants.FILES))
def test_every_guard_has_its_text_once_and_its_tests(module):
    path, _ = mutants.FILES[module]
    source, tests, wrong = (ROOT / path).read_text(encoding="utf8"), {}, []
    mine = [m for m in mutants.MUTANTS if m.module == module]
    for m in mine:
        try:
            m.text(source)
        except ValueError as e:
            wrong.append(f"{m.what}: {e}")
        for t in m.tests:
            file, name = t.split("::", 1)
            if file not in tests:
                tests[file] = names(file) if (ROOT / file).is_file() else set()
            if name.split("::")[0].split("[")[0] not in tests[file]:
                wrong.append(f"{m.what}: there is no {t}")
        if m.new == m.old or not m.tests:
            wrong.append(f"{m.what}: switches nothing off, or names no test")
    assert mine and not wrong, f"tools/mutants.py, {module}:\n  " + "\n  ".join(wrong)


def test_names_are_told_apart():
    keys = [(m.module, m.what) for m in mutants.MUTANTS]
    assert len(set(keys)) == len(keys)
    assert {m.module for m in mutants.MUTANTS} == set(mutants.FILES)


def test_a_text_that_is_gone_or_stands_twice_is_refused():
    m = mutants.Mutant("risk", "x", "if a:", "if False:", ("t",))
    assert m.text("if a: pass") == "if False: pass"
    for source in ("", "if a: pass\nif a: pass"):
        with pytest.raises(ValueError, match="times in makerlab/execution/risk.py"):
            m.text(source)


def test_a_survivor_is_told(capfd):
    "The machinery itself: one guard whose loss a test sees, and one substitution that no test can see."
    old = '"The Greeks that nobody changed"'
    source = (ROOT / "makerlab/execution/throttle.py").read_text(encoding="utf8")
    line = next(x for x in source.splitlines() if "messages in a window" in x)
    assert source.count(line) == 1 and old not in source
    ok = next(m for m in mutants.MUTANTS if m.module == "throttle" and m.what == "requests without an answer are capped")
    some = [mutants.Mutant("throttle", "seen", ok.old, ok.new, ok.tests), mutants.Mutant("throttle", "not seen", line, line + " indeed", ok.tests),
            mutants.Mutant("throttle", "gone", old, "", ok.tests)]
    verdicts = mutants.run_apart(some)
    assert [v.split()[0].rstrip(":") for v in verdicts] == ["killed", "SURVIVED", "BROKEN"]
