"Debian's Prometheus on a free port with makerlab's own rules, to scrape a real metrics server in tests."
import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from redis_server import free_port

from makerlab.live.monitor import alert_rules, prometheus_config

HAVE, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")


def need_prometheus() -> None:
    "Skips the test, with a reason that is counted, where there is no Prometheus."
    if not (HAVE and PROMTOOL):
        pytest.skip("LIVE: skipped for want of prometheus (tools/need_live.sh installs it)")


def promtool(*arguments: str, text: str | None = None) -> str:
    "What promtool says; fails the test when it is not content."
    need_prometheus()
    ran = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


class PrometheusServer:
    "A real Prometheus that scrapes some targets; a context manager that leaves nothing behind."

    def __init__(self, targets, *, every_s=0.25, hurry=60.0, options=()):
        need_prometheus()
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus_config(list(targets), every_s=every_s)))
        (self.folder / "alerts.yml").write_text(yaml.safe_dump(alert_rules(hurry=hurry)))
        for attempt in range(5):
            self.port = free_port()
            with contextlib.suppress(RuntimeError):  # somebody may take the port before it does
                self._start()
                return
        raise RuntimeError("prometheus does not start: " + "".join(self.said[-5:]))

    def _start(self):
        self.process = subprocess.Popen(
            [HAVE, "--config.file", str(self.folder / "prometheus.yml"), "--storage.tsdb.path", str(self.folder / "data"),
             "--web.listen-address", f"127.0.0.1:{self.port}", *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if "Server is ready to receive web requests" in line:
                self.reader = threading.Thread(target=self.process.stderr.read, daemon=True)  # an unread pipe would stop it
                self.reader.start()
                return
        self.process.wait()
        self.process.stderr.close()
        raise RuntimeError("prometheus ended")

    def get(self, path, **params):
        "Data of an API answer."
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(params)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expr):
        "Values by labels, now."
        return {tuple(sorted(r["metric"].items())): float(r["value"][1]) for r in self.get("query", query=expr)["result"]}

    def alerts(self, state="firing"):
        "Names of alerts in a state."
        return {a["labels"]["alertname"] for a in self.get("alerts")["alerts"] if a["state"] == state}

    def until(self, there, timeout=20.0, what="it"):
        "What the function returns once it is true; asked ten times a second, since Prometheus tells nobody."
        end = time.monotonic() + timeout
        while not (got := there()):
            assert time.monotonic() < end, f"Prometheus never saw {what}"
            threading.Event().wait(0.1)
        return got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()
        shutil.rmtree(self.folder, ignore_errors=True)
