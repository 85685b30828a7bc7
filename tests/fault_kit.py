"""A day on the simulated venue: the whole of `mm-engine live` in this process (or in one that may be killed), a crowd that trades, a fault
port, and the truth. Nothing of the engine is replaced: only its waits are short, so that a test can see the end of them."""
import asyncio
import contextlib
import json
import os
import random
import select
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import yaml

from makerlab.execution.orders import State
from makerlab.live import guardian
from makerlab.live.binance import Settings
from makerlab.live.engine import load_live
from makerlab.live.feed import FeedPolicy
from makerlab.live.simulated import SimulatedVenue, SymbolRules

S, MS, NS = "BTCUSDT", 1_000_000, 1_000_000_000
MID, DEPTH = 10_000, 60  # ticks: where the crowd begins, and how far it has orders
RULES = SymbolRules(symbol=S, tick="0.01", lot="0.001", min_qty="0.001", max_qty="1000", min_notional="0", percent="0")
LEVELS = tuple((side, MID - side * (2 + k), 5) for side in (1, -1) for k in range(DEPTH))
FAST = Settings(timeout_s=0.6, ask_s=3.0, heartbeat_s=0.4, echo_s=5.0, backoff_s=(0.02, 0.1), order_wait_s=0.3)
POLICY = FeedPolicy(silence_s={"depth": 1.0}, ping_s=0.4, backoff_s=(0.02, 0.1), snapshot_backoff_s=(0.02, 0.1), snapshot_limit=1000, overlap_s=1.0)
CALM = {"settings": replace(FAST, heartbeat_s=4.0), "policy": replace(POLICY, ping_s=4.0, silence_s={"depth": 4.0})}  # where no connection may be given up, though the machine be busy
SESSION = {
    "strategy": "mm", "instruments": {S: {"tick_size": 0.01, "lot_size": 0.001, "venue": "binance"}},
    "quoting": {"style": "skewed", "max_inventory_lots": 10, "half_spread_ticks": 3.0, "skew": {"shape": "linear", "ticks": 2.0}, "size": {"lots": 2}, "refresh": {"every_ms": 20, "tolerance_ticks": 1}},
    "orders": {"windows": [{"limit": 90, "window_ms": 1000, "reserve": 20}],
               "patience": {"timeout_ms": 1500, "query_grace_ms": 300, "query_first_ms": 40, "query_max_ms": 150, "not_found_needed": 3, "protect_ms": 150}},
    "risk": {"account": {"max_gross": 5000, "max_loss": 100.0, "max_drawdown": 100.0, "max_messages": 60, "reconnect_ms": 100},
             "default": {"max_order_lots": 10, "max_order_value": 500, "max_position_lots": 20, "collar": 0.05, "max_fills": 1000, "duplicate_ms": 0, "jump_ticks": 10_000,
                         "spread_factor": 1000.0, "max_age_ms": 1000}},
    "live": {"mode": "testnet", "preset": "local", "keys_env": "", "folder": "state", "metrics_port": 0, "timer_ms": 10, "snapshot_s": 1.0, "clock_s": 1.0, "rules_s": 1.0, "stop_s": 8,
             "warm": 1, "sample_s": 0.01, "confirm_ms": 100, "countdown_s": 5, "silent_s": 3}}


def quick(settings=FAST, policy=POLICY):
    "Make the session's waits short, in this process; returns what undoes it."
    venue, waits = guardian.LiveVenue, guardian.FeedPolicy

    class Quick(venue):
        def __init__(self, *args, **more):
            super().__init__(*args, **more | {"settings": settings})

    guardian.LiveVenue, guardian.FeedPolicy = Quick, lambda: policy

    def undo():
        guardian.LiveVenue, guardian.FeedPolicy = venue, waits
    return undo


def merged(base, over):
    "A mapping with exceptions."
    out = dict(base)
    for k, x in over.items():
        out[k] = merged(out[k], x) if isinstance(x, dict) and isinstance(out.get(k), dict) else x
    return out


def session_file(folder: Path, url: str, **over) -> Path:
    "The session of a day."
    path = folder / "session.yaml"
    path.write_text(yaml.safe_dump(merged(merged(SESSION, over), {"live": {"url": url}})), encoding="utf8")
    return path


class Crowd:
    "Everybody else: a price that wanders, by the seed, and now and then somebody who trades through our quotes."

    def __init__(self, sim, seed=1):
        self.sim, self.rng, self.mid, self.on, self.moves = sim, random.Random(seed), MID, True, 0

    def do(self, side, tick, lots, kind):
        self.sim.exchange.stranger(S, side, tick, lots, kind)

    def move(self, to):
        "Everything between the two prices is traded away, and the book is built again around the new one."
        d = 1 if to > self.mid else -1
        if to == self.mid:
            return
        self.sim.step()
        self.do(d, to + d, 10_000, "ioc")
        for tick in range(self.mid - d, to - 2 * d + d, d):
            self.do(d, tick, 5, "limit")
        self.mid = to
        self.moves += 1
        self.sim.step()

    def through(self, side, tick):
        "The price goes through an order of that side, wherever it stands."
        self.move(min(tick, self.mid - 1) if side > 0 else max(tick, self.mid + 1))

    def act(self):
        "One of the crowd's doings."
        u = self.rng.random()
        if u < 0.5:
            step = self.rng.choice((1, 1, 1, 1, 2, 3)) * self.rng.choice((1, -1))
            self.move(max(MID - 12, min(MID + 12, self.mid + step)))
        else:  # a small trade at the touch, and somebody who fills the gap
            side = self.rng.choice((1, -1))
            self.sim.step()
            self.do(side, self.mid + 2 * side, 2, "ioc")
            self.do(-side, self.mid + 2 * side, 2, "limit")
            self.sim.step()

    async def run(self, every_s=0.03):
        while True:
            if self.on:
                self.act()
            await asyncio.sleep(every_s)


PATIENT_S = 20.0  # nothing takes as long as this; the tests of the guards are less patient


async def until(true, timeout_s=None, what="it"):
    "Wait until something is so; returns the seconds it took. Fails when it does not become so."
    begin = time.monotonic()
    give_up = begin + min(timeout_s or PATIENT_S, PATIENT_S)
    while not true():
        assert time.monotonic() < give_up, f"{what() if callable(what) else what} did not happen"
        await asyncio.sleep(0.005)
    return time.monotonic() - begin


class Truth:
    "What the venue's own log says of us."

    sim: SimulatedVenue
    account = "alice"

    def truth(self, *kinds):
        return [x for x in self.sim.exchange.truth if x["kind"] in kinds and x.get("account") == self.account]

    def resting(self):
        return self.sim.exchange.truth_orders(self.account)

    def held(self):
        return self.sim.exchange.truth_position(self.account).get(S, 0)

    def lawful(self, config):
        "(b) No order, position, worst case or rate of messages beyond the limits, at any time of the log; not two orders with one name."
        x, account = config.session.limits[S], config.session.account
        unit, live, held = 0.01 * 0.001, {}, 0
        names = [o["client_id"] for o in self.truth("new")]
        assert len(names) == len(set(names)), "an order was sent twice"
        for r in self.sim.exchange.truth:
            if r.get("account") != self.account or "left_lots" not in r:
                continue
            if r["kind"] == "trade":
                held += r["side"] * r["last_lots"]
            live[r["client_id"]] = r["side"] * r["left_lots"]
            if r["kind"] == "new":
                assert r["qty_lots"] <= x.max_order_lots and r["qty_lots"] * r["price_ticks"] * unit <= x.max_order_value, r
            worst = max(held + sum(n for n in live.values() if n > 0), -held - sum(n for n in live.values() if n < 0))
            live = {k: n for k, n in live.items() if n}
            assert worst <= x.max_position_lots, f"{worst} lots in the worst case at row {r['seq']} of the truth, {x.max_position_lots} are allowed"
            assert worst * r["price_ticks"] * unit <= account.max_gross
        assert held == self.held()


class Day(Truth):
    "One session in this process: `async with Day(folder) as d`."

    started = staticmethod(lambda d: None)  # called when it quotes: here the tests of the guards switch them off

    def __init__(self, folder, market="spot", *, settings=FAST, policy=POLICY, crowd=True, seed=1, sim=None, balances=None, limits=None, fees=(1.0, 5.0), quoting=True, speed=1.0, **session):
        self.folder, self.market, self.settings, self.policy, self.quoting = Path(folder), market, settings, policy, quoting
        self.shared = sim is not None
        self.sim = sim or SimulatedVenue(symbols=[RULES], flow=None, levels={S: LEVELS}, market=market, balances=balances, limits=limits or {"orders": ((5000, 10),)}, maker_bps=fees[0], taker_bps=fees[1], speed=speed)
        self.crowd, self.crowd_on, self.session, self.said, self.engines = Crowd(self.sim, seed), crowd, session, [], []
        self.watched = []

    async def __aenter__(self):
        self.undo = quick(self.settings, self.policy)
        try:
            if not self.shared:
                await self.sim.start()
            more = merged({"live": {"market": self.market}}, {"instruments": {S: {"kind": "future"}}} if self.market == "usdm" else {})
            self.config = load_live(session_file(self.folder, self.sim.url, **merged(more, self.session)))
            self.begin()
            self.crowding = asyncio.ensure_future(self.crowd.run())
            self.crowd.on = self.crowd_on
            await until(lambda: self.task.done() or (self.engines and self.engine.phase == "running" and (not self.quoting or self.quotes())), what=self.why)
            assert not self.task.done(), self.why()
            Day.started(self)
        except BaseException:
            await self.end()
            raise
        return self

    def begin(self):
        "Start the session."
        self.engines.clear()
        self.task = asyncio.ensure_future(guardian.live(self.config, say=self.say, watched=False, signals=False, started=lambda e, c: self.engines.append(e)))

    def say(self, line):
        "A line of the session's log; whoever watches for its words looks at once."
        self.said.append(line)
        for words, look, seen in self.watched:
            if words in line:
                seen.append(look())

    def at(self, words, look):
        "What look() gives at each line with these words: the moment itself, which a test that asks every 5 ms can miss."
        seen = []
        self.watched.append((words, look, seen))
        return seen

    async def stop(self):
        "A graceful end; its exit status."
        self.engine.stop("test")
        return await asyncio.wait_for(self.task, 20)

    async def end(self):
        self.undo()
        for t in (getattr(self, "task", None), getattr(self, "crowding", None)):
            if t is not None:
                t.cancel()
                await asyncio.gather(t, return_exceptions=True)
        if not self.shared:
            await self.sim.stop()

    async def __aexit__(self, *_):
        await self.end()

    @property
    def engine(self):
        return self.engines[-1]

    @property
    def m(self):
        return self.engine.trader.orders

    def why(self):
        done = getattr(self, "task", None) is not None and self.task.done()
        state = {k: self.engine.status()[k] for k in ("phase", "why", "state", "tripped", "aside", "denied", "counts")} if self.engines else {}
        return f"{self.task.exception() if done and not self.task.cancelled() else ''} {state} {self.said[-8:]} truth {[(o.client_id, o.side, o.tick) for o in self.resting()]}: what was waited for"

    def quotes(self):
        "Two quotes stand, one a side."
        return sorted(o.side for o in self.resting()) == [-1, 1]

    def fault(self, name, **args):
        return self.sim.fault(name, **args)

    def metric(self, name, **labels):
        "As Prometheus would read it; 0 when it is not shown."
        return self.engine.metrics.registry.get_sample_value(f"makerlab_{name}", labels) or 0.0

    def heard(self, *words):
        "A line of the log with these words."
        return any(all(w in line for w in words) for line in self.said)

    async def pulled(self, timeout_s=None):
        "Seconds until nothing of ours rests, and nothing is on its way there."
        return await until(lambda: not self.resting() and not self.m.live(), timeout_s, self.why)

    def wrote_since(self, time_ns):
        "New orders that the session wrote down after that time of its clock: what it wanted, whenever it arrives."
        return [k for _, t, word, k, _ in self.engine.journal.rows() if word == "new" and t > time_ns]

    async def quoting_again(self, timeout_s=None, after=None):
        "Seconds until two quotes stand that were sent after that row of the truth, with a book that can be believed."
        since = len(self.sim.exchange.truth) if after is None else after
        def back():
            top = self.engine.tops.get(S)
            return top is not None and top.synced and self.quotes() and any(x["kind"] == "new" and x.get("account") == "alice" for x in self.sim.exchange.truth[since:])
        return await until(back, timeout_s, self.why)

    def same(self):
        "(a) Orders, position and cash are the venue's."
        ours = {(o.client_id, o.side, o.price_ticks, o.qty_lots, o.filled_lots) for o in self.m.live()}
        there = {(o.client_id, o.side, o.tick, o.lots, o.done) for o in self.resting()}
        cash = self.sim.exchange.truth_cash("alice") - (self.m.cash - self.m.opening_cash)
        return ours == there and self.m.position(S) == self.held() == self.engine.trader.guard.tracks[S].ledger.position and abs(cash) < 1e-6

    async def rest(self, timeout_s=None):
        "The crowd goes home; then (a) the oracle and (b) the limits."
        self.crowd.on = False
        await until(lambda: self.m.quiet and self.m.synced and self.same(), timeout_s, lambda: f"{self.differ()} {self.why()}")
        await self.sim.flushed()
        await asyncio.sleep(0.05)
        await until(lambda: self.m.quiet and self.same(), timeout_s, lambda: f"it was at rest, and then it was not: {self.differ()}")
        own = {k for k in (o["client_id"] for o in self.truth("new")) if k.startswith(self.config.session.strategy)}
        assert own <= set(self.m.orders) | self.known_before(), "an order that nobody here knows"
        self.lawful(self.config)

    def known_before(self):
        "Orders of the journal's earlier sessions."
        rows = self.engine.journal._con.execute("SELECT DISTINCT client_id FROM makerlab_journal WHERE word = 'new'")
        return {k for (k,) in rows}

    def differ(self):
        ours = sorted((o.client_id, o.side, o.price_ticks, o.qty_lots, o.filled_lots, str(o.state)) for o in self.m.live())
        there = sorted((o.client_id, o.side, o.tick, o.lots, o.done) for o in self.resting())
        return f"orders {ours} here, {there} at the venue; position {self.m.position(S)}, {self.held()}; cash {self.m.cash - self.m.opening_cash}, {self.sim.exchange.truth_cash('alice')}; quiet {self.m.quiet}, synced {self.m.synced}"


def believed(d):
    "Nothing was sent for a book that could not be believed, nor while a connection was known to be lost: as the journal has it, in its order."
    lost, down = True, False
    for n, _, word, _, body in d.engine.journal.rows():
        if word == "note":
            x = json.loads(body)
            if x["kind"] == "book":
                lost = not x["text"].startswith(f"{S} ") or " -> SYNCED" not in x["text"]
            elif x["kind"] == "connection":
                down = x["text"].startswith("disconnected")
            elif x["kind"] == "start":
                lost, down = True, False
        elif word == "new":
            assert not lost and not down, f"row {n} of the journal: an order while the {'book' if lost else 'connection'} was lost"


# ---------------------------------------------------------------- engines that can be killed

def _child(order):
    "A session in a process of its own; order says which file, and where it is to die by its own hand."
    path, crash, at = order["path"], order.get("crash", ""), order.get("at", 1)
    quick()
    from makerlab.live import engine as e
    n = 0

    async def submit(venue, r):
        nonlocal n
        n += 1
        if n == at and crash == "before send":
            os.kill(os.getpid(), signal.SIGKILL)
        if n == at and crash == "after send":
            asyncio.get_running_loop().call_later(order.get("later_s", 0.1), os.kill, os.getpid(), signal.SIGKILL)
        await venue.submit(r)
    if crash:
        e._METHODS[e.NewOrder] = submit
    if order.get("unkept"):  # it dies before anybody came by to keep the baseline
        guardian._keep_baseline = lambda venue, path: asyncio.sleep(1e6)
    with open(path + ".log", "a", encoding="utf8") as log:
        try:
            asyncio.run(guardian.live(load_live(path), say=lambda w: print(w, file=log, flush=True), watched=False, signals=False))
        except BaseException as x:
            print(f"{type(x).__name__}: {x}", file=log, flush=True)


class Zygote:
    "A process with the library in memory that makes engines on demand, in milliseconds. Made before there is a loop."

    def __enter__(self):
        self.here, there = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.here.close()
            self.serve(there)
            os._exit(0)
        there.close()
        self.born = []
        return self

    def __exit__(self, *_):
        for pid in self.born:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.here.close()
        os.waitpid(self.pid, 0)

    @staticmethod
    def serve(wire):
        "Fork what is asked for; wait for the dead when asked."
        while True:
            while not select.select([wire], [], [], 0.05)[0]:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
            line = wire.recv(65536)
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                wire.close()
                try:
                    _child(json.loads(line))
                finally:
                    os._exit(0)
            wire.send(str(pid).encode())

    def engine(self, path, **order):
        "A new one; its process id."
        self.here.send(json.dumps({"path": str(path), **order}).encode())
        pid = int(self.here.recv(64))
        self.born.append(pid)
        return pid

    def kill(self, pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def alive(pid):
    "Does a process run that is not ours to wait for?"
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1  # its threads hold its files
    except OSError:
        return False


WORKING = (State.WORKING, State.PARTIAL)
