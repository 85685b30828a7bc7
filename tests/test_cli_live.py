"The live commands as their users meet them: two terminals, real processes, a simulated venue between them."
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXE = str(Path(sysconfig.get_path("scripts")) / "mm-engine")


def mm(*args, timeout=120):
    "A command that ends by itself: exit code, standard output, standard error."
    done = subprocess.run([EXE, *map(str, args)], capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def until(what, timeout_s=60.0, every_s=0.1):
    "Wait until something is so; what it then is."
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if found := what():
                return found
        time.sleep(every_s)
    raise AssertionError("it never happened")


class Terminal:
    "A command that runs until it is stopped, what it says going into a file."

    def __init__(self, folder, *args):
        self.log = folder / f"{args[0]}-{time.monotonic_ns()}.log"
        with self.log.open("w") as f:
            self.process = subprocess.Popen([EXE, *map(str, args)], stdout=f, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)

    def __enter__(self): return self
    def __exit__(self, *_):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.end(signal.SIGINT)  # by its own wish first: a guardian would mourn it
        self.end(signal.SIGKILL)

    def said(self): return self.log.read_text()

    def end(self, how):
        "Send a signal; the exit code."
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=60)


class Stage:
    "A venue in a terminal of its own, and a copy of the example's file that points to it."

    def __init__(self, folder, *args):
        self.folder, self.venue = folder, Terminal(folder, "venue", "--port", 0, *args)
        head = until(lambda: re.search(r"venue at (\S+) [\s\S]*fault port token (\S+)", self.venue.said()))
        self.url, self.token = head[1], head[2]
        text = (ROOT / "ops" / "example.yaml").read_text().replace("http://127.0.0.1:8787", self.url).replace("metrics_port: 8000", "metrics_port: 0")
        assert self.url in text and "metrics_port: 0" in text
        self.config = folder / "session.yaml"
        self.config.write_text(text)
        self.run = folder / "example-live"

    def __enter__(self): return self
    def __exit__(self, *_): self.venue.end(signal.SIGKILL)

    def told(self, what):
        "What the venue's log of the truth says."
        request = urllib.request.Request(f"{self.url}/_ctl/{what}", headers={"X-Control-Token": self.token})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def open_orders(self):
        "All orders at rest of all accounts, strangers apart."
        return [o for account in self.told("state")["accounts"].values() for o in account["orders"]]

    def quoting(self):
        "Both sides stand."
        return {o["side"] for o in self.open_orders()} >= {1, -1}

    def live(self, *args): return Terminal(self.folder, "live", "--config", self.config, *args)


@pytest.fixture
def stage(tmp_path):
    with Stage(tmp_path) as s:
        yield s


def test_a_newcomer_in_two_terminals(stage):
    with stage.live() as live:
        until(stage.quoting)
        code, out, err = mm("live", "--config", stage.config)  # a second engine on the account
        assert code == 2 and out == "" and "Traceback" not in err, err
        live.end(signal.SIGKILL)
        dead = time.monotonic()
        until(lambda: not stage.open_orders(), timeout_s=20)
        gone_s = time.monotonic() - dead
    assert gone_s < 10  # the guardian notices the closed pipe at once; the rest is REST on a loaded machine
    until(lambda: "verified, nothing is open" in (stage.run / "guardian.log").read_text())
    assert time.monotonic() - dead < 30  # 6 s, for an order may still be under way; the rest is a loaded machine
    with stage.live() as live:  # from journal and venue, as if nothing had been
        until(stage.quoting)
        assert live.end(signal.SIGINT) == 0 and not stage.open_orders(), live.said()
        assert "Traceback" not in live.said()


def test_kill_stops_and_stays_stopped_until_a_person_says(stage):
    with stage.live() as live:
        until(stage.quoting)
        code, out, err = mm("kill", "--config", stage.config, "--reason", "a drill")
        assert code == 0 and not stage.open_orders(), (out, err)
        live.end(signal.SIGINT)
    code, out, err = mm("live", "--config", stage.config)
    assert code != 0 and "rearm" in err + out, (out, err)
    assert mm("rearm", "--config", stage.config, "--operator", "Ada", "--reason", "drill over")[0] == 0
    with stage.live():
        until(stage.quoting)


def test_dry_run_and_paper_send_nothing(stage):
    for mode in ("--dry-run", "--paper"):
        with stage.live(mode) as live:
            until(lambda: "SYNCED" in live.said())
            time.sleep(3)
            assert live.end(signal.SIGINT) == 0, live.said()
        assert not [x for x in stage.told("truth") if x.get("client_id", "")]


def test_record_inspect_replay(stage, tmp_path):
    folder = tmp_path / "heard"
    with Terminal(tmp_path, "record", "--symbol", "BTCUSDT", "--out", folder, "--hosts", stage.url, "--json") as record:
        until(lambda: sum(p.stat().st_size for p in (folder / "segments").iterdir()) > 20_000)
        assert record.end(signal.SIGINT) == 0, record.said()  # Ctrl-C is the usual end
        heard = json.loads(record.said())
    assert heard["messages"] > 20 and heard["symbols"] == ["BTCUSDT"]
    assert heard["acknowledged"] == heard["messages"] and (heard["lost"], heard["stopped"]) == (0, "")  # the counts survive Ctrl-C
    code, out, err = mm("inspect", folder, "--json")
    assert (code, err) == (0, "") and json.loads(out)["symbols"] == ["BTCUSDT"]
    code, out, err = mm("replay", folder, "--half-ticks", 2, "--order-qty", 0.001, "--max-position", 0.01, "--json")
    assert (code, err) == (0, "") and json.loads(out)["book"] == heard["book"]["BTCUSDT"]


def test_a_venue_that_does_not_answer_is_one_sentence(tmp_path):
    for args, says in ((("record", "--symbol", "BTCUSDT", "--out", tmp_path / "x", "--hosts", "http://127.0.0.1:1"), "no venue answers at http://127.0.0.1:1"),
                       (("inspect", tmp_path / "x"), "nothing was recorded here yet")):
        code, out, err = mm(*args)
        assert code == 2 and out == "" and err.startswith("mm-engine: ") and err.count("\n") == 1 and says in err, (code, out, err)


def test_secrets_are_in_no_file(stage):
    from makerlab.live.calls import make_key
    secret = re.search(r"API secret (\S+)", stage.venue.said())[1]
    pem = "".join(make_key("alice", seed=0)[1].split("\n")[1:-2])
    with stage.live() as live:
        until(stage.quoting)
        live.end(signal.SIGINT)
    files = [p for p in stage.folder.rglob("*") if p.is_file() and p != stage.venue.log]
    assert len(files) > 4 and any(p.name == "journal.db" for p in files)
    for p in files:
        body = p.read_bytes()
        assert secret.encode() not in body and pem.encode() not in body, p


@pytest.mark.parametrize("args, says", [
    (("venue", "--market", "futures"), "market"), (("venue", "--port", "1", "--host", "203.0.113.9"), "cannot be opened"), (("venue", "--speed", "0"), "speed"),
    (("record", "--symbol", "BTCUSDT", "--out", "x", "--hosts", "nowhere"), "hosts"), (("record", "--symbol", "BTCUSDT", "--out", "x", "--seconds", "soon"), "seconds"),
    (("live", "--config", "none.yaml"), "none.yaml"), (("live", "--config", "ops/example.yaml", "--paper", "--dry-run"), "one of them"),
    (("kill", "--config", "none.yaml"), "none.yaml"), (("rearm", "--config", "ops/example.yaml", "--operator", " "), "operator")])
def test_bad_usage_is_one_sentence(args, says, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "ops", tmp_path / "ops")
    monkeypatch.chdir(tmp_path)
    code, out, err = mm(*args)
    assert code == 2 and out == "" and err.startswith("mm-engine: ") and err.count("\n") == 1 and says in err, (code, out, err)
    assert os.listdir(tmp_path) == ["ops"] or args[0] == "rearm"
