"What the tests share: where real data is, and a summary that says aloud what could not be tested."
import contextlib
import os
import signal
from pathlib import Path

import pytest
from coverage_kit import RESULTS
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # no test is a race against the clock: a loaded machine is not a wrong result
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]
PLACES = [Path(p) for p in (os.environ.get("MAKERLAB_REAL_DATA"), ROOT.parent / "shared" / "data") if p]


def real(path: str) -> Path:
    "A real data file or folder by its path under the data folder; skips the test, with a reason that is counted, when it is absent."
    for place in PLACES:
        if (place / path).exists():
            return place / path
    pytest.skip(f"REAL DATA: {path} is not in {' or '.join(str(p.name) + '/' for p in PLACES)} (set MAKERLAB_REAL_DATA to its folder)")


def peers_python() -> str:
    "The python of the environment that holds the other engines; skips the test, with a reason that is counted, when there is none."
    for place in (os.environ.get("MAKERLAB_PEERS_PYTHON"), str(ROOT / ".venv-peers" / "bin" / "python")):
        if place and Path(place).is_file():
            return place
    pytest.skip("PEER: no .venv-peers here (make peers)")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too: the coverage of every interval")


def pytest_collection_modifyitems(config, items):
    "Slow tests are taken out of the run, not skipped: a skip would look like something missing."
    if not config.getoption("--slow"):
        out = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture
def real_data():
    "The function `real`, for tests that take it as a fixture."
    return real


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    def reports(kind: str) -> list:
        return terminalreporter.stats.get(kind, [])

    def reason(report) -> str:
        return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)

    skipped = [r for r in reports("skipped") if "REAL DATA" in reason(r)]
    ran = [r for kind in ("passed", "failed") for r in reports(kind) if "realdata" in getattr(r, "keywords", {})]
    later = sorted({reason(r).split("not yet: ")[1] for r in reports("skipped") if "not yet: " in reason(r)})
    context = [value for r in reports("passed") for key, value in r.user_properties if key == "context only"]
    terminalreporter.section("what this run did and did not test")
    terminalreporter.line(f"REAL DATA: {len(ran)} tests ran on real market data, {len(skipped)} were SKIPPED for want of it"
                          + (" <<<<<< set MAKERLAB_REAL_DATA" if skipped else ""))
    for report in skipped:
        terminalreporter.line(f"  skipped: {report.nodeid}")
    peers = [r for r in reports("skipped") if "PEER: " in reason(r) or "RAY: " in reason(r)]
    against = [r for kind in ("passed", "failed") for r in reports(kind) if "peer" in getattr(r, "keywords", {})]
    if against or peers:
        terminalreporter.line(f"PEERS: {len(against)} tests ran another engine beside ours, {len(peers)} were SKIPPED for want of it" + (" <<<<<< make peers" if peers else ""))
    servers = live_skips(terminalreporter)
    if servers:
        refused = "LIVE" in os.environ.get("MAKERLAB_REFUSE_SKIPS", "").split(",")
        terminalreporter.line(f"LIVE: {len(servers)} tests were SKIPPED for want of redis-server, prometheus or promtool <<<<<< tools/need_live.sh"
                              + (": this run fails" if refused else ""), red=True)
    if context:
        terminalreporter.line(f"ORACLES, context only (nothing to assert): {', '.join(context)}")
    for line in later:
        terminalreporter.line(f"ORACLES, not yet: {line}")
    for name, held, tapes, level in RESULTS:
        terminalreporter.line(f"COVERAGE: {name}: {held / tapes:.1%} of {tapes} tapes (nominal {level:.0%})")
    before = os.environ.get("MAKERLAB_CHECK_FAILED")
    if before:
        terminalreporter.line(f"FAILED BEFORE PYTEST: {before} (see above): this run fails", red=True)


def live_skips(reporter) -> list:
    "Tests of the live wing that had no server to run against: reasons that begin with LIVE:"
    return [r for r in reporter.stats.get("skipped", []) if "LIVE: " in (r.longrepr[2] if isinstance(r.longrepr, tuple) else str(r.longrepr))]


def dismiss_guardians(folder: Path) -> None:
    "Guardians of sessions that a test killed try for ever to reach a venue that is gone with the test: they end here."
    for told in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = told.read_bytes()
            if b"guardian_main" in words and str(folder).encode() in words:
                os.kill(int(told.parent.name), signal.SIGKILL)


def pytest_sessionfinish(session, exitstatus):
    dismiss_guardians(session.config._tmp_path_factory.getbasetemp())
    refused = "LIVE" in os.environ.get("MAKERLAB_REFUSE_SKIPS", "").split(",") and live_skips(session.config.pluginmanager.get_plugin("terminalreporter"))
    if (os.environ.get("MAKERLAB_CHECK_FAILED") or refused) and session.exitstatus == 0:
        session.exitstatus = 1
