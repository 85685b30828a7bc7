"The guardian: lease, watchdog, control port, kill; and the whole of it in processes on the simulated venue."
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import typing
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from makerlab.core import MakerlabError, ParameterError
from makerlab.execution.risk import FileLatch
from makerlab.live.engine import StartRefused, check_account, check_live, load_live
from makerlab.live.guardian import (SETTLE_S, Assembly, Control, Guardian, Lease, LeaseError, Pulse, _mind, _relieved, _session, _stirs, call, cancel_everything, guardian_command,
                                    hosts_of, key_name, keys_of, kill, listen, live, load_baseline, plain, run_kill, save_baseline, screen, stand_guard)
from makerlab.live.simulated import SimulatedVenue

ROOT = Path(__file__).resolve().parents[1]


def test_an_account_is_held_once_and_given_back_by_any_death(tmp_path):
    with Lease("me", folder=tmp_path), pytest.raises(LeaseError, match="held by process"):
        Lease("me", folder=tmp_path)
    Lease("me", folder=tmp_path).release()
    Lease("you", folder=tmp_path).release()
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nimport fcntl, os\nfd = os.open({str(next(tmp_path.glob('*.lock')))!r}, os.O_RDWR)\n" \
           "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    holders = [subprocess.Popen([sys.executable, "-c", code.replace(str(next(tmp_path.glob('*.lock'))), str(p))], stdout=subprocess.PIPE) for p in tmp_path.glob("*.lock")]
    try:
        for h in holders:
            h.stdout.readline()
        with pytest.raises(LeaseError):
            Lease("me", folder=tmp_path)
    finally:
        for h in holders:
            h.kill()
            h.wait()
            h.stdout.close()
    Lease("me", folder=tmp_path).release()


class Book:
    "A venue of which only cancels are asked."

    def __init__(self, orders=2, deaf=0, mute=0):
        self.orders, self.deaf, self.mute, self.asked = orders, deaf, mute, 0

    async def cancel_all(self, symbol):
        self.asked += 1
        if self.asked <= self.mute:
            raise OSError("no route")
        if self.asked > self.deaf:
            self.orders = 0

    async def open_orders(self):
        if self.asked <= self.mute:
            raise OSError("no route")
        return [type("O", (), {"symbol": "X"})] * self.orders


@pytest.mark.parametrize(("book", "left"), [(Book(), 0), (Book(deaf=2), 0), (Book(mute=2), 0), (Book(deaf=99), 2), (Book(mute=99), -1)])
def test_everything_is_cancelled_again_until_the_venue_says_so(book, left):
    said = []
    assert asyncio.run(cancel_everything(book, ["X"], patience_s=1.0, pause_s=0.01, say=said.append)) == left
    assert bool(said) == bool(book.mute)


def pipe():
    r, w = os.pipe()
    return r, w, Pulse(w, every_s=0)


def test_the_watchdog_tells_goodbye_from_death_and_silence():
    r, w, pulse = pipe()
    pulse.beat(1)
    pulse.goodbye()
    assert listen(r, silent_s=5) == "bye"
    r, w, pulse = pipe()
    pulse.beat(1)
    os.close(w)
    assert listen(r, silent_s=5) == "dead"
    r, w, pulse = pipe()
    pulse.beat(1)
    assert listen(r, silent_s=0.05) == "silent"


def test_a_dead_engines_orders_are_taken_back_and_a_living_ones_are_not():
    def end(script):
        r, w, pulse = pipe()
        calls = []
        t = threading.Thread(target=script, args=(w, pulse))
        t.start()
        code = stand_guard(r, lambda: calls.append(1) or 0, silent_s=1.0, say=lambda words: None)
        t.join()
        return code, len(calls)

    def dies(w, pulse):
        pulse.beat(1)
        os.close(w)

    def leaves(w, pulse):
        for i in range(6):
            pulse.beat(i + 1)
            time.sleep(0.25)
        pulse.goodbye()

    def sleeps_and_wakes(w, pulse):
        pulse.beat(1)
        time.sleep(2.5)
        pulse.beat(2)
        pulse.goodbye()

    def sleeps_and_dies(w, pulse):
        pulse.beat(1)
        time.sleep(2.5)
        os.close(w)

    assert end(dies) == (0, 1)
    assert end(leaves) == (0, 0)
    assert end(sleeps_and_wakes) == (0, 1)
    assert end(sleeps_and_dies) == (0, 2)


def dead_pipe():
    r, w, pulse = pipe()
    pulse.beat(1)
    os.close(w)
    return r


def test_a_dead_engines_orders_are_tried_until_they_are_gone_or_another_engine_has_the_account():
    "The venue may be away for longer than any patience."
    left, said = [-1, -1, 3, 0], []
    assert stand_guard(dead_pipe(), lambda: left.pop(0), silent_s=1, pause_s=0.001, say=said.append) == 0 and not left
    assert "unknown number" in said[0] and "3 orders are STILL OPEN" in said[2] and "verified, nothing is open" in said[3]
    tried = []
    assert stand_guard(dead_pipe(), lambda: tried.append(1) or 3, silent_s=1, pause_s=0.001, say=said.append, relieved=lambda: len(tried) >= 3) == 1 and len(tried) == 3


def test_a_silent_engines_orders_are_tried_again_while_it_sleeps():
    r, w, pulse = pipe()
    pulse.beat(1)
    tried = []

    def cancel():
        tried.append(1)
        if len(tried) == 5:
            os.close(w)
        return 0 if len(tried) == 6 else -1
    assert stand_guard(r, cancel, silent_s=0.1, pause_s=0.001, say=lambda words: None) == 0 and len(tried) == 6


def test_a_silent_engine_that_stirs_gets_its_orders_back():
    "The taking back of a silence ends with it; that of a death does not."
    r, w, pulse = pipe()
    assert not _stirs(r)
    pulse.beat(1)
    assert _stirs(r)
    tried = []

    def cancel():
        tried.append(1)
        pulse.beat(2)
        threading.Timer(0.2, pulse.goodbye).start()
        return 2  # the engine quotes again
    assert stand_guard(r, cancel, silent_s=1.5, pause_s=60.0, say=lambda words: None) == 0 and len(tried) == 1
    assert not _stirs(dead_pipe()), "its last beat is there, but nobody is"


def test_a_log_that_takes_no_line_and_a_cancel_that_fails_do_not_end_the_guardian():
    tried = []

    def full(words):
        raise OSError(28, "No space left on device")

    def cancel():
        tried.append(1)
        if len(tried) == 1:
            raise RuntimeError("no loop")
        return 0
    assert stand_guard(dead_pipe(), cancel, silent_s=1, pause_s=0.001, say=full) == 0 and len(tried) == 2
    book = Book(mute=2)
    assert asyncio.run(cancel_everything(book, ["X"], pause_s=0.01, say=full)) == 0


class Late(Book):
    "An order is still under way: the venue takes it after the first look."

    def __init__(self, after_s):
        super().__init__()
        self.begin, self.after_s, self.taken = time.monotonic(), after_s, False

    async def open_orders(self):
        if not self.taken and time.monotonic() > self.begin + self.after_s:
            self.taken, self.orders = True, 1
        return await super().open_orders()


def test_an_empty_list_is_not_believed_while_an_order_may_be_under_way():
    book = Late(0.3)
    assert asyncio.run(cancel_everything(book, ["X"], settle_s=0.6, pause_s=0.01, say=print)) == 0
    assert book.taken and book.orders == 0 and time.monotonic() - book.begin >= 0.6

    class Leaves(Book):
        async def open_orders(self):
            if self.asked > 1:
                raise OSError("no route")
            return []
    assert asyncio.run(cancel_everything(Leaves(), ["X"], settle_s=0.1, patience_s=0.1, pause_s=0.01, say=lambda w: None)) == -1, "an early look is no proof, and later nobody answered"
    assert SETTLE_S == 6.0, "recv_window_ms and a second"


def test_a_guardian_leaves_only_for_a_session_of_another_process(tmp_path):
    with Lease("me", folder=tmp_path) as held:
        assert not _relieved(held.path, os.getpid()) and not _relieved(held.path, 1), "held, but it has not begun"
        held.guarded()
        assert not _relieved(held.path, os.getpid()) and _relieved(held.path, 1)
        with pytest.raises(LeaseError, match="held by process"):
            Lease("me", folder=tmp_path)
    assert not _relieved(tmp_path / "none", 1)
    book = Book()
    assert asyncio.run(cancel_everything(book, ["X"], relieved=lambda: True)) == -1 and not book.asked


def test_the_first_beat_is_there_when_the_guardian_is_and_a_new_one_ends_the_old(tmp_path):
    code = "import os, sys, time; os.write(1, b'ready'); open(sys.argv[1], 'ab').write(os.read(0, 1)); time.sleep(60)"
    g = Guardian([sys.executable, "-c", code, str(tmp_path / "heard")], log=tmp_path / "g.log", every_s=0)
    heard = lambda: (tmp_path / "heard").exists() and (tmp_path / "heard").read_bytes()
    try:
        g.start()
        old = g.process
        asyncio.run(until(lambda: heard() == b"."))
        with pytest.raises(BlockingIOError):  # it does not read
            while True:
                os.write(g.pulse.fd, b"." * 4096)
        g.beat(1)
        assert g.pulse.broken and g.alive
        g.start()
        assert old.poll() is not None and g.alive and not g.pulse.broken
    finally:
        g.process.kill()
        g.process.wait()


class Watched:
    "A guardian that is none."

    def __init__(self, alive=True, error=None):
        self.alive, self.error, self.starts, self.pulse, self.every_s, self.beats, self.bye = alive, error, 1, None, 0.01, 0, 0

    def start(self):
        raise self.error

    def beat(self, now_ns):
        self.beats += 1

    def dismiss(self):
        self.bye += 1


class Minded:
    "An engine as the one who minds its guardian sees it."

    def __init__(self, phase="running", end=None):
        self.phase, self.end, self.stopped, self.noted, self.clock, self.venue, self.verified = phase, end, "", [], lambda: 1, None, False
        self.links = []
        self.trader = type("T", (), {"guard": type("G", (), {"on_connection": lambda _, up, now_ns, link: self.links.append((up, link))})()})()

    def note(self, kind, words):
        self.noted.append(words)

    def stop(self, why):
        self.stopped = why

    async def run(self):
        await asyncio.sleep(0.1)
        raise self.end


def test_a_guardian_that_cannot_be_started_again_ends_the_session_whatever_the_reason():
    for error in (OSError(12, "Cannot allocate memory"), MakerlabError("did not start")):
        engine = Minded()
        asyncio.run(asyncio.wait_for(_mind(engine, Watched(False, error)), 10))
        assert "cannot be started" in engine.stopped and engine.links == [(False, "guardian")]


def test_a_guardian_that_hangs_is_noticed_long_before_its_pipe_is_full():
    r, w, pulse = pipe()
    for now in range(1, 51):
        pulse.beat(now)
    assert not pulse.broken, "somebody who is slow"
    os.read(r, 50)
    for now in range(51, 101):
        pulse.beat(now)
    assert not pulse.broken, "somebody who reads"
    pulse.beat(101)
    assert pulse.broken, "51 beats lie there"
    os.close(r)
    pulse.goodbye()


@pytest.mark.parametrize("signal_sent", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_rests_in_the_market_without_a_guardian(tmp_path, leases, monkeypatch, signal_sent):
    monkeypatch.setattr("makerlab.live.guardian.UNREAD", 10)
    guardians, start = [], Guardian.start
    monkeypatch.setattr(Guardian, "start", lambda self: (start(self), guardians.append(self.process.pid)))

    async def main():
        async with SimulatedVenue() as venue:
            config = load_live(session_file(tmp_path, venue.url, silent_s=3.0))
            engines, said, gone = [], [], []
            task = asyncio.ensure_future(live(config, say=said.append, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or engines and len(resting(venue)) == 2, 60)
            starting = Guardian.start
            monkeypatch.setattr(Guardian, "start", lambda self: (gone.append(waited()), starting(self)))
            waited = lambda: next((None for _ in range(100) if time.sleep(0.1) or not resting(venue)), None) or (len(resting(venue)), set(engines[0].trader.guard.down))  # in a thread: the loop has the time to take the quotes back
            os.kill(guardians[0], signal_sent)
            await until(lambda: len(guardians) == 2, 60)
            assert gone == [(0, {"guardian"})] and any("connection: guardian down" in w for w in said), said
            await until(lambda: len(resting(venue)) == 2, 20)
            engines[0].stop()
            assert await asyncio.wait_for(task, 20) == 0 and not resting(venue)
            lawful(venue)
            assert sum("the guardian" in w for w in said if w.startswith("alert") or "alert" in w) == 1
    asyncio.run(asyncio.wait_for(main(), 150))


def test_a_start_is_beaten_for_and_a_refused_one_says_goodbye():
    for end, bye in ((StartRefused([]), 1), (OSError("no route"), 0)):
        watched = Watched()
        with pytest.raises(type(end)):
            asyncio.run(_session(type("P", (), {"guardian": watched})(), Minded("starting", end), None, False, False, None))
        assert watched.bye == bye and watched.beats >= 2, "a refused start leaves what it found alone; any other end is a death"


def test_a_file_that_was_changed_is_not_guarded(tmp_path, leases):
    config = load_live(session_file(tmp_path, "http://127.0.0.1:1"))
    config.path.write_text(config.text + "# another hand\n")
    with pytest.raises(MakerlabError, match="did not start"):
        Guardian(guardian_command(config), log=tmp_path / "g.log").start()
    assert "was changed since" in (tmp_path / "g.log").read_text()


def test_one_key_is_one_lease_whatever_the_file_calls_it(tmp_path, leases):
    a, b = (load_live(session_file(tmp_path, f"http://{host}:7777")) for host in ("127.0.0.1", "localhost"))
    other = load_live(session_file(tmp_path, "http://127.0.0.1:7778"))
    assert a.account != b.account and key_name(a, keys_of(a)) == key_name(b, keys_of(b)) != key_name(other, keys_of(other))
    assert keys_of(a).api_key not in key_name(a, keys_of(a))
    first, second = Assembly(a, print), Assembly(b, print)
    second.folder = tmp_path / "another"

    async def main():
        async with first.stack, second.stack:
            first.hold()
            with pytest.raises(LeaseError, match="API key"):
                second.hold()
    asyncio.run(main())


def test_a_stranger_on_the_old_port_does_not_stop_the_kill(tmp_path, leases):
    async def main():
        config = load_live(session_file(tmp_path, "http://127.0.0.1:1"))
        config.folder.mkdir()
        got, answers = [], iter([{"status": "ok"}, ["ok"], {"verified": "perhaps", "open_orders": 0, "seconds": 1}, {"verified": True}])

        async def other(request):
            got.append(request.headers["Authorization"])
            return web.json_response(next(answers))
        app = web.Application()
        app.router.add_post("/kill", other)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        gone = subprocess.Popen(["true"])
        gone.wait()
        for n, pid in enumerate([os.getpid()] * 4 + [gone.pid]):
            (config.folder / "control.json").write_text(json.dumps({"port": runner.addresses[0][1], "token": "x" * 20, "pid": pid}))
            book = Book()
            book.__class__ = type("BookHere", (Book,), {"__aenter__": enter, "__aexit__": leave})
            assert await kill(config, venue=lambda b=book: b, settle_s=0, say=lambda w: None) == 0 and book.asked == 1, n
        assert len(got) == 4, "nobody is shown the token of an engine that is dead"
        await runner.cleanup()

    async def enter(self):
        return self

    async def leave(self, *_):
        return None
    asyncio.run(main())


def test_kill_knows_in_which_mode_the_folder_has_sent_orders(tmp_path, leases, monkeypatch):
    path = session_file(tmp_path, "http://127.0.0.1:1", mode="dry-run")
    config, said, seen = load_live(path), [], []
    config.folder.mkdir()
    assert asyncio.run(kill(config, venue=lambda: 1 / 0, say=said.append)) == 0, "a folder that never sent"
    (config.folder / "account").write_text("spot local")
    assert asyncio.run(kill(config, venue=lambda: 1 / 0, say=said.append)) == 1 and "has sent orders" in said[-1]

    async def killed(config, **_):
        seen.append(config.mode)
        return 0
    monkeypatch.setattr("makerlab.live.guardian.kill", killed)
    run_kill(path)
    (config.folder / "mode").write_text("testnet")
    run_kill(path)
    run_kill(path, mode="paper")
    assert seen == ["dry-run", "testnet", "paper"]


def test_a_session_leaves_its_mode_in_the_folder_and_a_token_of_raw_bytes_is_refused(tmp_path, leases):
    async def main():
        async with SimulatedVenue() as venue:
            path, engines = session_file(tmp_path, venue.url, mode="dry-run"), []
            config = load_live(path, mode="testnet")
            task = asyncio.ensure_future(live(config, say=lambda w: None, watched=False, signals=False, started=lambda e, c: engines.append((e, c))))
            await until(lambda: task.done() or engines)
            engine, control = engines[0]
            assert (config.folder / "mode").read_text() == "testnet"
            r, w = await asyncio.open_connection("127.0.0.1", control.port)
            w.write(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1:1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
            assert b" 403 " in await r.readline() and control.refused == 1
            w.close()
            engine.stop()
            assert await asyncio.wait_for(task, 20) == 0
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_guardian_that_does_not_start_is_an_error(tmp_path):
    g = Guardian([sys.executable, "-c", "raise SystemExit(3)"], log=tmp_path / "g.log", ready_s=20)
    with pytest.raises(MakerlabError, match="did not start"):
        g.start()
    g = Guardian([sys.executable, "-c", "import os, sys; os.write(1, b'ready'); sys.stdin.buffer.read()"], log=tmp_path / "g.log", every_s=0)
    g.start()
    g.beat(1)
    assert g.alive
    g.dismiss()
    assert not g.alive


class FakeEngine:
    def __init__(self):
        self.stopped, self.killed = "", ""
        self.trader = type("T", (), {"guard": type("G", (), {"state": "ACTIVE"})()})()

    def status(self):
        return {"phase": "running", "nan": float("nan")}

    async def kill(self, reason):
        self.killed = reason
        return {"verified": True, "open_orders": 0, "seconds": 0.1}

    def stop(self, reason):
        self.stopped = reason

    def rearm(self, operator, reason):
        if not operator:
            raise ParameterError("operator = '' must be a person's name")


def test_the_control_port_wants_its_token_and_a_local_caller(tmp_path):
    async def main():
        engine = FakeEngine()
        control = Control(engine, token="t" * 24, folder=tmp_path)
        port = await control.start()
        assert (tmp_path / "control.json").stat().st_mode & 0o777 == 0o600
        assert (await call(tmp_path, "/status"))["nan"] is None
        assert (await call(tmp_path, "/kill", reason="why not"))["verified"] and engine.killed == "why not"
        with pytest.raises(MakerlabError, match="person"):
            await call(tmp_path, "/rearm")
        await call(tmp_path, "/stop")
        assert engine.stopped
        engine.stopped = ""
        async with aiohttp.ClientSession() as s:
            for headers in ({}, {"Authorization": "Bearer " + "x" * 24}, {"Authorization": "Bearer " + "t" * 24, "Origin": "http://evil"},
                            {"Authorization": "Bearer " + "t" * 24, "Host": "evil.example:80"}):
                async with s.post(f"http://127.0.0.1:{port}/stop", headers=headers) as r:
                    assert r.status == 403
        assert not engine.stopped and control.refused == 4
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(ParameterError, match="control_port"):
                await Control(engine, token="t" * 24, folder=tmp_path).start(other.getsockname()[1])
        await control.close()
        assert not (tmp_path / "control.json").exists()
        with pytest.raises(MakerlabError, match="no engine runs"):
            await call(tmp_path, "/status")
        with pytest.raises(ParameterError, match="16 characters"):
            Control(engine, token="short", folder=tmp_path)
    asyncio.run(main())


def test_the_baseline_is_kept(tmp_path):
    from decimal import Decimal

    from makerlab.live.binance import Baseline
    b = Baseline({"BTC": Decimal("1.00000001")}, 5, Decimal("0.1"))
    save_baseline(tmp_path / "b.json", b)
    assert load_baseline(tmp_path / "b.json") == b and load_baseline(tmp_path / "none.json") is None
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(MakerlabError, match="cannot be read"):
        load_baseline(tmp_path / "b.json")


def session_file(folder, url, **live_part):
    "ops/example.yaml at another address, in a folder of its own."
    data = yaml.safe_load((ROOT / "ops" / "example.yaml").read_text())
    data["live"] |= {"url": url, "metrics_port": -1, "warm": 1, "sample_s": 0.05, "timer_ms": 20, "snapshot_s": 1, "folder": "state"} | live_part
    path = folder / "session.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


async def until(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


def resting(venue):
    "Our orders as the truth has them."
    return [o for o in venue.exchange.truth_orders("alice") if o.live]


def lawful(venue):
    "No order and no position beyond the file's limits, at any time."
    held = worst = 0
    for e in venue.exchange.truth:
        if e.get("account") == "alice" and e["kind"] == "trade":
            held += e["side"] * e.get("last_lots", 0)
            worst = max(worst, abs(held))
        assert e.get("qty_lots", 0) <= 200 or e.get("account") != "alice"
    assert worst <= 800


@pytest.fixture
def leases(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKERLAB_LEASES", str(tmp_path / "leases"))


def test_a_session_quotes_is_killed_from_outside_and_starts_again_only_in_a_name(tmp_path, leases):
    async def main():
        async with SimulatedVenue() as venue:
            config = load_live(session_file(tmp_path, venue.url))
            engines = []
            go = lambda: asyncio.ensure_future(live(config, say=lambda w: None, watched=False, signals=False, started=lambda e, c: engines.append(e)))
            task = go()
            await until(lambda: task.done() or len(resting(venue)) == 2)
            with pytest.raises(LeaseError):
                await live(config, say=lambda w: None, watched=False, signals=False)
            said = []
            assert await kill(config, reason="enough", say=said.append) == 0 and any("verified" in w for w in said)
            assert not resting(venue) and str(engines[0].trader.guard.state) == "HALTED"
            engines[0].stop()
            assert await asyncio.wait_for(task, 20) == 0
            with pytest.raises(StartRefused, match="kill: enough.*mm-engine rearm"):
                await live(config, say=lambda w: None, watched=False, signals=False)
            FileLatch(config.folder / "latch.json").rearm("*", "anna", "looked", 1)
            task = go()
            await until(lambda: task.done() or len(resting(venue)) == 2)
            assert await kill(config, reason="again", say=said.append) == 0 and not resting(venue)
            assert "kill: again" in str(engines[1].status()["tripped"])
            assert screen(engines[1].status()).title
            assert json.dumps(plain(engines[1].status()))
            await call(config.folder, "/rearm", operator="anna")
            await until(lambda: len(resting(venue)) == 2)
            engines[1].stop()
            assert await asyncio.wait_for(task, 20) == 0 and not resting(venue)
            lawful(venue)
    asyncio.run(asyncio.wait_for(main(), 90))


def test_usdm_has_the_venues_own_switch_as_well(tmp_path, leases):
    async def main():
        async with SimulatedVenue(market="usdm") as venue:
            config = load_live(session_file(tmp_path, venue.url, market="usdm", countdown_s=4))
            engines = []
            task = asyncio.ensure_future(live(config, say=lambda w: None, watched=False, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or len(resting(venue)) == 2 and engines[0].counts["countdowns"] >= 2, 40)
            engine = engines[0]
            engine.stop()
            assert await asyncio.wait_for(task, 20) == 0 and not resting(venue)
    asyncio.run(asyncio.wait_for(main(), 90))


def listening():
    "Addresses on which this process listens, in /proc's writing: 0100007F is 127.0.0.1."
    mine = {os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.is_symlink() and f.exists()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {r[1].rpartition(":")[0] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in mine}


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_no_secret_is_in_anything_that_a_session_writes_says_or_shows(tmp_path, leases, monkeypatch, capfd, kind):
    "Journal, log, recording, guardian, status, metrics, standard output and error, through good days and bad ones."
    async def main():
        async with SimulatedVenue() as venue:
            key, secret = venue.key_of("bob", kind)
            (tmp_path / "keys").write_text(f"api_key = {key}\n" + (f"api_secret = {secret}\n" if kind == "hmac" else "private_key_file = pem\n"))
            (tmp_path / "pem").write_text(secret)
            for name in ("keys", "pem"):
                (tmp_path / name).chmod(0o600)
            monkeypatch.setenv("MAKERLAB_CONTROL", "operators-own-password-1")
            path = session_file(tmp_path, venue.url, keys_file="keys", metrics_port=0, record="state/recorded", mirror="redis://:redis-password-1@127.0.0.1:1/0")
            config, said, engines = load_live(path), [], []
            told = lambda words: (said.append(words), print(words))
            task = asyncio.ensure_future(live(config, say=told, watched=kind == "hmac", signals=False, started=lambda e, c: engines.append((e, c))))
            await until(lambda: task.done() or any(o.live for o in venue.exchange.truth_orders("bob")), 120)
            engine, control = engines[0]
            assert listening() == {"0100007F"} and config.folder.stat().st_mode & 0o777 == 0o700
            async with aiohttp.ClientSession() as s, s.post(f"http://127.0.0.1:{control.port}/kill") as r:
                assert r.status == 403
            venue.fault("request", op="place", how="504", n=2)
            venue.fault("request", op="place", how="garbage", n=2)
            venue.fault("permissions", account="bob")
            venue.fault("cut")
            await until(lambda: task.done() or engine.counts["venue errors"] or engine.trader.orders.unknown() or any("rejected" in w for w in said), 30)
            where = next(w for w in said if w.startswith("metrics: ")).split()[1]
            async with aiohttp.ClientSession() as s, s.get(where) as r:
                shown = await r.text()
            shown += json.dumps(plain(engine.status()))
            inside = repr(vars(engine)) + repr(engine.venue.keys) + repr(vars(engine.venue))  # what a traceback or a debugger would print
            assert where.startswith("http://127.0.0.1:") and json.loads((config.folder / "control.json").read_text())["token"] == "operators-own-password-1"
            assert (config.folder / "control.json").stat().st_mode & 0o777 == 0o600
            engine.stop()
            await asyncio.wait_for(task, 40)
            return config, said, shown, inside, key, secret
    config, said, shown, inside, key, secret = asyncio.run(asyncio.wait_for(main(), 200))
    out, err = capfd.readouterr()
    assert "metrics: " in out
    files = [p for p in config.folder.rglob("*") if p.is_file()]
    assert {"journal.db"} <= {p.name for p in files} and any("recorded" in p.parts for p in files)
    kept = "".join((*said, shown, out, err)).encode() + b"".join(p.read_bytes() for p in files)
    words = [secret] if kind == "hmac" else [x for x in secret.splitlines() if x and "-----" not in x]
    for word in (*words, key, "operators-own-password-1", "redis-password-1"):
        assert word and word.encode() not in kept, word[:8]
        assert word not in inside or word == "redis-password-1", word[:8]  # that one is a line of the file


def test_kill_without_an_engine_latches_and_cancels_at_the_venue(tmp_path, leases):
    from makerlab.execution.venue import NewOrder
    from makerlab.live.guardian import LiveVenue, hosts_of, keys_of, rest_only

    async def main():
        async with SimulatedVenue() as venue:
            config = load_live(session_file(tmp_path, venue.url))
            config.folder.mkdir()
            v = LiveVenue(config.session.instruments, market="spot", hosts=hosts_of(config), keys=keys_of(config))
            await v.connect()
            await v.submit(NewOrder("demo1", "BTCUSDT", 1, 5_900_000, 100))
            await until(lambda: len(resting(venue)) == 1)
            await v.close()
            assert await kill(config, settle_s=1.0, say=lambda w: None, venue=lambda: rest_only(config)) == 0
            assert not resting(venue) and FileLatch(config.folder / "latch.json").tripped["*"].startswith("kill")
    asyncio.run(asyncio.wait_for(main(), 60))


class TellsRights(SimulatedVenue):
    "As the true host: it also tells what a key may do."

    rights: typing.ClassVar[dict] = {}

    async def on_rest(self, request):
        if request.path == "/sapi/v1/account/apiRestrictions" and self.rights:
            return web.json_response(self.rights)
        return await super().on_rest(request)


GOOD = {"enableWithdrawals": False, "permitsUniversalTransfer": False, "enableInternalTransfer": False, "enableSpotAndMarginTrading": True, "ipRestrict": True}
REFUSED = {
    "other steps": (dict(instruments={"BTCUSDT": {"tick_size": 0.1, "lot_size": 0.00001}}), None, {}, "write instruments.BTCUSDT.tick_size: 0.01"),
    "wrong symbol": (dict(instruments={"ETHUSDT": {"tick_size": 0.01, "lot_size": 0.00001}}), None, {}, "does not know all of ETHUSDT.*named as the venue does"),
    "closed market": ({}, lambda v: v.fault("symbol_status", symbol="BTCUSDT", status="HALT"), {}, "is HALT, not TRADING: wait until the venue opens it"),
    "another account": (dict(account="999"), None, {}, "the file is for 999: use the keys of the account that the file names"),
    "clock": ({}, lambda v: v.fault("skew", ms=2000), {}, "allowed are 500 ms: set the clock"),
    "may not trade": ({}, lambda v: v.fault("permissions", account="alice", trade=False), {}, "the account may not trade: ask the venue why"),
    "may withdraw": ({}, None, GOOD | {"enableWithdrawals": True}, "the key may withdraw: make a key that may only read and trade"),
    "may transfer": ({}, None, GOOD | {"permitsUniversalTransfer": True}, "the key may transfer: make a key"),
    "key not for spot": ({}, None, GOOD | {"enableSpotAndMarginTrading": False}, "the key may not trade on spot: allow it"),
    "nobody there": (dict(url="http://127.0.0.1:1"), None, {}, "is the venue up, are hosts and keys right"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_session_that_does_not_fit_the_venue_is_refused_with_a_remedy(tmp_path, leases, name):
    change, spoil, rights, words = REFUSED[name]

    async def main():
        async with TellsRights(flow=None) as venue:
            venue.rights = rights
            path = session_file(tmp_path, **{"url": venue.url} | {k: v for k, v in change.items() if k != "instruments"})
            data = yaml.safe_load(path.read_text())
            data["instruments"] = change.get("instruments", data["instruments"])
            path.write_text(yaml.safe_dump(data))
            if spoil is not None:
                spoil(venue)
            with pytest.raises(StartRefused, match=words):
                await live(load_live(path), say=lambda w: None, watched=False, signals=False)
            assert not venue.exchange.truth_orders("alice") and not (tmp_path / "state" / "journal.db").exists()
    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_fits_is_not_refused(tmp_path, leases):
    "The same looks, all of them good: the refusals above are of what they name, and of nothing else."
    async def main():
        async with TellsRights(flow=None) as venue:
            venue.rights, config = GOOD, load_live(session_file(tmp_path, venue.url, account=str(venue.exchange.accounts["alice"].number)))
            said, engines = [], []
            task = asyncio.ensure_future(live(config, say=said.append, watched=False, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or engines and engines[0].phase == "running")
            assert {"symbol", "message limits", "clock", "account"} <= {w.partition(":")[0] for w in said}
            engines[0].stop()
            assert await asyncio.wait_for(task, 20) == 0
    asyncio.run(asyncio.wait_for(main(), 60))


def test_keys_that_others_can_read_or_that_are_not_there_are_refused(tmp_path, leases):
    async def main():
        async with SimulatedVenue(flow=None) as venue:
            key, secret = venue.key_of("alice", "hmac")
            (tmp_path / "keys").write_text(f"api_key = {key}\napi_secret = {secret}\n")
            (tmp_path / "keys").chmod(0o640)
            config = load_live(session_file(tmp_path, venue.url, keys_file="keys"))
            with pytest.raises(ParameterError, match="chmod 600"):
                await live(config, say=lambda w: None, watched=False, signals=False)
            (tmp_path / "keys").chmod(0o600)
            engines = []
            task = asyncio.ensure_future(live(config, say=lambda w: None, watched=False, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or engines and engines[0].phase == "running")
            engines[0].stop()
            assert await asyncio.wait_for(task, 20) == 0
            with pytest.raises(ParameterError, match="NOKEYS_"):
                await live(load_live(session_file(tmp_path, venue.url, keys_env="NOKEYS")), say=lambda w: None, watched=False, signals=False)
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_tick_size_that_changes_while_we_quote_ends_quoting_until_a_new_file(tmp_path, leases):
    async def main():
        async with SimulatedVenue() as venue:
            config, engines, said = load_live(session_file(tmp_path, venue.url, rules_s=1)), [], []
            task = asyncio.ensure_future(live(config, say=said.append, watched=False, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or len(resting(venue)) == 2)
            venue.fault("filters", symbol="BTCUSDT", changes={"tick": "0.02"})
            await until(lambda: task.done() or engines[0].closed and not resting(venue))
            assert engines[0].phase == "running" and any("write instruments.BTCUSDT.tick_size: 0.02" in w for w in said)
            venue.fault("filters", symbol="BTCUSDT", changes={"tick": "0.01"})
            await asyncio.sleep(1.5)
            assert not resting(venue), "other steps need a new start, not a good day"
            venue.fault("filters", symbol="BTCUSDT", changes={"tick": "0.02"})
            engines[0].stop()
            assert await asyncio.wait_for(task, 20) == 0
            with pytest.raises(StartRefused, match="tick_size: 0.02"):
                await live(config, say=lambda w: None, watched=False, signals=False)
    asyncio.run(asyncio.wait_for(main(), 60))


def test_only_real_money_needs_to_know_what_the_key_may_do():
    "No word about permissions: a test market has none to give, a host with real money that is silent is not believed."
    data = yaml.safe_load((ROOT / "ops" / "example.yaml").read_text())
    data["venue"], data["live"] = {"kind": "live", "name": "binance", "testnet": False}, data["live"] | {"preset": "spot", "account": "1"}
    wrong = lambda mode, key: [f.check for f in check_account(check_live(data, mode=mode), account={"uid": 1}, key=key) if not f.ok]
    assert wrong("testnet", None) == [] and wrong("live", None) == ["permissions"] and wrong("live", GOOD) == []
    assert not [f for f in check_account(check_live(data, mode="live"), account={"uid": 1}, key=GOOD | {"ipRestrict": False}) if not f.ok]


def test_keys_of_usdm_are_known_by_the_balances_alias_and_asked_of_the_spot_host(tmp_path):
    from makerlab.live.binance import Reply
    from makerlab.live.guardian import LiveVenue
    from makerlab.live.protocol import Hosts, Outcome
    asked = []

    class Asked(LiveVenue):
        async def _ask(self, op, params, *, patience_s=0.0):
            asked.append((self.calls[op].host or self.hosts.rest) + self.calls[op].path)
            return Reply(Outcome("ok", True), {"rights": GOOD, "account": {"canTrade": True}, "balance": [{"accountAlias": "SgsR"}]}[op], 0)

    async def main():
        config = load_live(session_file(tmp_path, "http://127.0.0.1:1"))
        venue = Asked(config.session.instruments, market="usdm", hosts=Hosts.preset("usdm"), keys=keys_of(config))
        assert (await venue.account())["uid"] == "SgsR" and await venue.key_permissions() == GOOD and venue.hosts == Hosts.preset("usdm")
        assert asked[-1].startswith(Hosts.preset("spot").rest + "/sapi/")
        await venue.close()
    asyncio.run(main())


def fork_engine():
    "The engine as a process of its own, forked before there is a loop: it waits for the path of its file, then runs, with a true guardian."
    r, w = os.pipe()
    pid = os.fork()
    if pid:
        os.close(r)
        return pid, w
    os.close(w)
    path = os.read(r, 4096).decode()
    Guardian.__init__.__kwdefaults__["ready_s"] = 500.0  # a machine that is busy with other tests
    try:
        with open(path + ".log", "w", encoding="utf8") as log:
            asyncio.run(live(load_live(path), say=lambda words: print(words, file=log, flush=True), signals=False))
    finally:
        os._exit(0)


def alive(pid):
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_kill_9_of_the_engine_and_the_orders_are_gone_and_a_restart_reconciles(tmp_path, leases):
    pid, tell = fork_engine()

    async def main():
        async with SimulatedVenue() as venue:
            path = session_file(tmp_path, venue.url)
            os.write(tell, str(path).encode())
            await until(lambda: not alive(pid) or len(resting(venue)) == 2, 500)
            assert len(resting(venue)) == 2, Path(f"{path}.log").read_text()
            dead = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not resting(venue))
            assert time.monotonic() - dead < 15
            os.waitpid(pid, 0)
            await until(lambda: "verified, nothing is open" in (tmp_path / "state" / "guardian.log").read_text(), 60)  # 6 s: an order may still be under way
            engines, config = [], load_live(path)
            task = asyncio.ensure_future(live(config, say=lambda w: None, watched=False, signals=False, started=lambda x, c: engines.append(x)))
            await until(lambda: task.done() or len(resting(venue)) == 2, 30)
            engine = engines[0]
            assert not engine.trader.orders.unknown() and "*" not in engine.trader.guard.latch.tripped
            engine.stop()
            assert await asyncio.wait_for(task, 20) == 0 and not resting(venue)
            held = engine.trader.orders.positions["BTCUSDT"]
            assert held == engine.trader.guard.tracks["BTCUSDT"].ledger.position
            assert held == venue.exchange.truth_position("alice").get("BTCUSDT", 0), "what we think we own is what the venue's truth says"
            lawful(venue)
    asyncio.run(asyncio.wait_for(main(), 600))


def said_to(venue):
    "Everything that the venue's truth has of alice and bob."
    return [e for e in venue.exchange.truth if e.get("account") in ("alice", "bob")]


def test_paper_trades_on_the_true_feed_and_the_venue_hears_nothing(tmp_path, leases):
    async def main():
        async with SimulatedVenue() as venue:
            config, engines = load_live(session_file(tmp_path, venue.url, metrics_port=0), mode="paper"), []
            before = len(said_to(venue))
            task = asyncio.ensure_future(live(config, say=lambda w: None, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or engines and len(engines[0].trader.orders.live()) == 2, 40)
            engine = engines[0]

            def sold():  # strangers sell until the market has traded through our bid
                for o in engine.trader.orders.live():
                    if o.side > 0:
                        venue.fault("trade", symbol="BTCUSDT", side=-1, tick=o.price_ticks - 1, lots=30_000)
                return engine.trader.orders.fills
            await until(lambda: task.done() or sold(), 40)
            assert engine.trader.orders.fills[0].side == 1 and len(said_to(venue)) == before
            engine.stop()
            assert await asyncio.wait_for(task, 20) == 0 and not await engine.venue.open_orders()
            assert len(said_to(venue)) == before and venue.exchange.truth_position("alice").get("BTCUSDT", 0) == 0
            assert engine.trader.orders.positions["BTCUSDT"] == (await engine.venue.positions()).get("BTCUSDT", 0)
            assert not list(config.folder.glob("journal.db")) and list(config.folder.glob("paper-*.db"))
    asyncio.run(asyncio.wait_for(main(), 150))


def test_a_dry_run_needs_no_keys_and_the_venue_hears_no_request_of_ours(tmp_path, leases):
    class Counting(SimulatedVenue):
        asked: typing.ClassVar[list] = []

        async def on_rest(self, request):
            self.asked.append((request.method, request.path, "X-MBX-APIKEY" in request.headers))
            return await super().on_rest(request)

    async def main():
        async with Counting() as venue:
            config, engines = load_live(session_file(tmp_path, venue.url, keys_env="NOT_THERE", rules_s=1, clock_s=1), mode="dry-run"), []
            before = len(said_to(venue))
            task = asyncio.ensure_future(live(config, say=lambda w: None, signals=False, started=lambda e, c: engines.append(e)))
            await until(lambda: task.done() or engines and engines[0].venue.sent >= 2, 40)
            engines[0].stop()
            assert await asyncio.wait_for(task, 20) == 0 and engines[0].counts["NewOrder"] >= 2
            assert len(said_to(venue)) == before and {(m, key) for m, _, key in venue.asked} == {("GET", False)}, "market data, rules and time, and no key is shown"
    asyncio.run(asyncio.wait_for(main(), 90))


def test_the_testnet_only_changes_hosts_and_wants_keys(tmp_path, leases, monkeypatch):
    from makerlab.live.protocol import Hosts
    data = yaml.safe_load((ROOT / "ops" / "example.yaml").read_text())
    data["live"] |= {"mode": "live", "preset": "spot", "account": "1", "keys_env": "DESK", "folder": "state", "metrics_port": -1}
    data["venue"] = {"kind": "live", "name": "binance", "testnet": False}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    real, test = load_live(tmp_path / "s.yaml"), load_live(tmp_path / "s.yaml", mode="testnet")
    assert test.session == real.session and test.live.model_copy(update={"mode": "live", "preset": "spot"}) == real.live
    assert hosts_of(real) == Hosts.preset("spot") and hosts_of(test) == Hosts.preset("spot-testnet") and "testnet" in hosts_of(test).rest
    monkeypatch.setattr(aiohttp.ClientSession, "_request", lambda *a, **k: pytest.fail("nobody is asked before the keys are there"))
    with pytest.raises(ParameterError, match="DESK_"):
        asyncio.run(live(test, say=lambda w: None, watched=False, signals=False))
