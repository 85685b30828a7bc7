"Debian's redis-server on a free port, to be stopped, hung, filled, killed and started again by tests."
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile

import pytest

HAVE = shutil.which("redis-server")


def need_redis() -> None:
    "Skips the test, with a reason that is counted, where there is no server."
    if not HAVE:
        pytest.skip("LIVE: skipped for want of redis-server (tools/need_live.sh installs it)")


def free_port() -> int:
    "A port that nobody listens on now."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class RedisServer:
    "A real server with a folder of its own; a context manager that leaves nothing behind."

    def __init__(self, *options: str):
        need_redis()
        self.options, self.folder, self.process = options, tempfile.mkdtemp(prefix="redis-"), None
        for attempt in range(5):
            self.port = free_port()
            with contextlib.suppress(RuntimeError):  # somebody may take the port before the server does
                self.start()
                return
        raise RuntimeError("redis-server does not start")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        "Start on the same port and folder; returns when it takes connections."
        self.process = subprocess.Popen(
            [HAVE, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder, "--appendonly", "yes", "--appendfsync", "everysec",
             "--save", "", "--daemonize", "no", *self.options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return
        self.process.wait()
        self.process.stdout.close()
        raise RuntimeError("redis-server ended")

    def hang(self) -> None:
        "It keeps its connections and answers nothing."
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        "It is gone, like that."
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
