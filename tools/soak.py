"""A day of faults: the whole live session on the simulated venue, its time compressed, with faults at random from every row that the fault port can
play; at the end the oracle. `python tools/soak.py` runs 30 minutes of market time and writes data/live/soak.json and soak_faults.csv;
tests/test_soak.py runs the short form.

The faults, the crowd and their order follow from the seed; how the machine's threads and sockets meet them does not, so two runs differ in detail
and must agree in what counts: nothing lost, no limit exceeded, everything recovered."""
import argparse
import asyncio
import csv
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import fault_kit as kit  # noqa: E402
from fault_kit import FAST, POLICY, Day, S, until  # noqa: E402

NS = 1_000_000_000


def slow_session(speed):
    "What is measured in market time, made so long that the machine has as much of its own as in the tests."
    wait = lambda ms: ms * speed
    patience = {"timeout_ms": wait(1500), "query_grace_ms": wait(300), "query_first_ms": wait(40), "query_max_ms": wait(150), "protect_ms": wait(150)}
    account = {"max_clock_offset_ms": 1000, "reconnect_ms": wait(100)}
    symbol = {"max_age_ms": wait(1000), "max_lag_ms": 10_000, "cooldown_ms": wait(200)}
    live = {"confirm_ms": wait(100), "stop_s": wait(8), "warm": 1}
    return {"orders": {"patience": patience}, "risk": {"account": account, "default": symbol}, "live": live}


EXECUTED = ("503", "504", "1006", "1007", "hang", "reset", "garbage")
RUBBISH = ("nan", "infinite", "negative", "zero", "huge", "long", "offgrid", "json", "utf8", "missing", "crossed")


class Faults:
    "The rows of the matrix as doings: each injects, waits as long as it lasts, and lifts it."

    def __init__(self, d, rng, speed):
        self.d, self.rng, self.speed = d, rng, speed
        self.kinds = {name[2:]: getattr(self, name) for name in dir(self) if name.startswith("f_")}

    def ms(self, seconds):
        "Machine time as the venue's clock counts it."
        return int(1000 * seconds * self.speed)

    async def hits(self, f, n, most=2.0):
        end = time.monotonic() + most
        while f.hits < n and time.monotonic() < end:
            await asyncio.sleep(0.005)

    async def f_01_cut(self):
        self.d.fault("cut", kind="market", torn=self.rng.random() < 0.5)

    async def f_02_blackhole(self):
        self.d.fault("blackhole", kind="market")
        await asyncio.sleep(0.9)

    async def f_03_drop(self):
        await self.hits(self.d.fault("drop", stream="*@depth@100ms"), 1)

    async def f_04_duplicate(self):
        await self.hits(self.d.fault("duplicate", stream="*usdt@*", n=40), 40)

    async def f_05_reorder(self):
        await self.hits(self.d.fault("reorder", stream="*@depth@100ms"), 1)
        await asyncio.sleep(0.1)

    async def f_06_stale_snapshot(self):
        self.d.fault("stale_snapshot", n=self.rng.randint(1, 3))
        await asyncio.sleep(0.2)
        await self.hits(self.d.fault("drop", stream="*@depth@100ms"), 1)

    async def f_07_late_stream(self):
        self.d.fault("delay", stream="*@depth@100ms", ms=self.ms(0.2), n=-1)
        self.d.fault("cut", kind="market")
        await asyncio.sleep(0.6)

    async def f_08_mute(self):
        self.d.fault("mute", stream="*@depth*")
        await asyncio.sleep(1.4)

    async def f_09_shutdown(self):
        self.d.fault("shutdown", grace_s=0.5 * self.speed)
        await asyncio.sleep(0.6)

    async def f_10_user_stream(self):
        how = self.rng.choice(("cut", "terminate_user_stream", "blackhole"))
        self.d.fault(how, **({"kind": "user"} if how != "terminate_user_stream" else {}))
        await asyncio.sleep(0.9 if how == "blackhole" else 0)

    async def f_12_throttle(self):
        self.d.fault("throttle", seconds=self.speed)
        await asyncio.sleep(1.0)

    async def f_13_ban(self):
        self.d.fault("ban", seconds=self.speed)
        await asyncio.sleep(1.0)

    async def f_14_executed(self):
        await self.hits(self.d.fault("request", op="place", how=self.rng.choice(EXECUTED), executed=True, n=2), 2)

    async def f_15_not_executed(self):
        await self.hits(self.d.fault("request", op="place", how=self.rng.choice(("503", "hang", "reset")), executed=False, n=2), 2)

    async def f_16_late(self):
        await self.hits(self.d.fault("request", op="place", how="reset", late_ms=self.ms(1.2)), 1)
        await asyncio.sleep(1.3)

    async def f_17_slow_answer(self):
        await self.hits(self.d.fault("request", op="place", how="slow", delay_ms=self.ms(0.3), n=3), 3)

    async def f_18_crossing(self):
        self.d.fault("delay", stream="user", ms=self.ms(0.2), n=-1)
        await asyncio.sleep(0.8)

    async def f_18_lost_cancel(self):
        await self.hits(self.d.fault("request", op="cancel", how=self.rng.choice(("503", "hang", "reset")), executed=self.rng.random() < 0.5, n=2), 2)

    async def f_20_reports(self):
        how = self.rng.choice(("duplicate", "reorder"))
        await self.hits(self.d.fault(how, stream="user", n=20), 20)

    async def f_21_not_ours(self):
        from makerlab.execution.venue import NewOrder
        from makerlab.live.protocol import HmacSigner, Hosts, Keys
        key, secret = self.d.sim.key_of("alice", "hmac")
        other = kit.guardian.BinanceVenue(self.d.config.session.instruments, market="spot", hosts=Hosts.local(self.d.sim.url, market="spot"),
                                          settings=FAST, keys=Keys(key, HmacSigner(secret)), clock=kit.guardian.steady_clock())
        await other.connect()
        await other.submit(NewOrder(f"stranger-{self.rng.randrange(10**9)}", S, 1, kit.MID - 45, 2))
        await other.drain()
        await other.close()
        await until(lambda: not any(o.client_id.startswith("stranger") for o in self.d.resting()), 8)

    async def f_22_clock(self):
        self.d.fault("skew", ms=self.rng.choice((-4000, 4000)))
        await asyncio.sleep(1.5)

    async def f_27_rubbish(self):
        what = self.rng.choice(RUBBISH)
        f = [self.d.fault("corrupt", stream=stream, what=what, n=2) for stream in ("*@depth*", "*@trade", "*@bookTicker")]
        await self.hits(f[0], 2)

    async def f_28_closed(self):
        self.d.fault("symbol_status", status=self.rng.choice(("CANCEL_ONLY", "HALT")))
        await asyncio.sleep(1.5)
        self.d.fault("symbol_status", status="TRADING")

    async def f_29_stall(self):
        time.sleep(self.rng.uniform(0.2, 0.5))

    async def f_31_kill(self):
        if self.rng.random() < 0.5:
            self.d.fault("request", op="cancel", how="hang", executed=False, n=2)
        done = await asyncio.wait_for(self.d.engine.kill("soak"), 60)
        assert done["verified"] and not self.d.resting(), done
        self.d.engine.rearm("soak", "row 31")

    async def lift(self):
        "The fault is over."
        self.d.sim.clear()
        self.d.fault("skew", ms=0)


def quoted(truth, begin_ns, end_ns):
    "Market seconds between two times: with both sides quoted, with none."
    live, side, both, none, last = {}, {}, 0, 0, None
    ours = [r for r in truth if r.get("account") == "alice" and "left_lots" in r]
    for x in [*ours, {"time_ns": end_ns, "client_id": "", "left_lots": 0, "side": 0}]:
        t = min(x["time_ns"], end_ns)
        if last is not None and t > begin_ns:
            dt = t - max(last, begin_ns)
            sides = {side[k] for k, n in live.items() if n}
            both, none = both + dt * ({1, -1} <= sides), none + dt * (not sides)
        last = t
        live[x["client_id"]], side[x["client_id"]] = x["left_lots"], x["side"]
        if not x["left_lots"]:
            live.pop(x["client_id"])
    return both / 1e9, none / 1e9


def in_order(d):
    "Does it quote, with nothing in doubt?"
    e = d.engine
    return d.quotes() and e.tops[S].synced and not d.m.unknown() and not e.trader.guard.down and not e.closed


FELT = ("01 cut", "03 drop", "05 reorder", "06 stale_snapshot", "10 user_stream")  # they are over before anybody has noticed


def marks(d):
    "Books and connections that were lost so far."
    return d.engine.counts["book INVALID"], d.engine.venue.counts["disconnected"]


async def one(d, faults, kind, begin):
    "One fault from its injection until everything is in order again: a row of the table."
    truth, now = d.sim.exchange.truth, d.engine.clock
    since, t0, pnl, fills = len(truth), now(), d.engine.trader.guard.known, len(d.truth("trade"))
    felt = marks(d)
    await faults.kinds[kind]()
    await faults.lift()
    lifted = time.monotonic()
    if kind.replace("_", " ", 1) in FELT:
        await until(lambda: marks(d) != felt, 5, lambda: f"{kind} was not felt: {d.why()}")
    await until(lambda: d.task.done() or in_order(d), 20, lambda: f"{kind}: {d.why()}")
    assert not d.task.done(), f"{kind}: {d.why()}"
    took, t1 = time.monotonic() - lifted, now()
    both, none = quoted(truth[max(0, since - 400):], t0, t1)
    placed = sum(x["kind"] == "new" and x.get("account") == "alice" for x in truth[since:])
    return {"row": int(kind[:2]), "kind": kind[3:], "at_s": round((t0 - begin) / 1e9, 3), "lasted_s": round((t1 - t0) / 1e9, 3),
            "recover_s": round(took, 3), "quoted_s": round(both, 3), "unquoted_s": round(none, 3), "orders": placed,
            "fills": len(d.truth("trade")) - fills, "pnl": round(d.engine.trader.guard.known - pnl, 6)}


def lost(d):
    "What the venue has of ours and we do not: orders, executions, lots."
    rows = [(w, json.loads(b)) for _, _, w, _, b in d.engine.journal.rows() if w in ("report", "snapshot")]
    booked = {x["exec_id"] for w, x in rows if w == "report" and x["kind"] == "fill"}
    booked |= {e["exec_id"] for w, x in rows if w == "snapshot" for e in x["executions"]}
    orders = {x["client_id"] for x in d.truth("new") if not x["client_id"].startswith("stranger")} - d.known_before()
    fills = {str(x["trade_id"]) for x in d.truth("trade")} - booked
    return {"orders": len(orders), "fills": len(fills), "lots": abs(d.m.position(S) - d.held())}


def summary(d, rows, begin, end):
    "The counts of a run."
    st, v, e = d.engine.feed.stats, d.engine.venue, d.engine
    both, none = quoted(d.sim.exchange.truth, begin, end)
    kinds = Counter(f"{r['row']:02d} {r['kind']}" for r in rows)
    return {"market_minutes": round((end - begin) / 60e9, 2), "messages": st.messages, "reports": e.counts["reports"],
            "orders": len(d.truth("new")), "cancels": len(d.truth("canceled")), "fills": len(d.truth("trade")), "faults": len(rows),
            "faults_by_kind": dict(sorted(kinds.items())),
            "reconnects": st.reconnects + v.counts["disconnected"], "handovers": st.handovers + v.counts["renewed"],
            "resyncs": st.resyncs, "gaps": st.gaps,
            "refused_messages": sum(st.refused.values()), "duplicates": st.duplicates + v.counts["told already"],
            "unknown_orders": int(d.metric("orders_total", event="UNKNOWN", reason="")), "queries": e.counts["QueryOrder"],
            "snapshots": e.counts["snapshots"],
            "lost": sum(lost(d).values()), "seconds_quoted_both_sides": round(both, 1), "seconds_without_quotes": round(none, 1),
            "longest_recovery_s": max(r["recover_s"] for r in rows), "pnl": round(e.trader.guard.known, 6), "fees": round(d.m.fees, 6),
            "position_lots": d.held()}


def fast_clock(speed):
    "Wall time at first, then so many seconds in a second."
    start, origin = time.time_ns(), time.perf_counter_ns()
    return lambda: start + int(speed * (time.perf_counter_ns() - origin))


async def soak(folder, minutes=30.0, seed=7, speed=4.0):
    "Run it; the summary and a row a fault. Raises AssertionError when anything is lost, exceeded or not recovered."
    from makerlab.live.simulated import SimulatedVenue, VenueClock
    clocks, warm = kit.guardian.steady_clock, Path(folder) / "warm"
    warm.mkdir()
    async with Day(warm) as d:  # kernels are compiled, modules read, before time runs fast
        await d.stop()
    now, clock = fast_clock(speed), VenueClock()
    kit.guardian.steady_clock, clock.now_ns = lambda: now, now  # engine and venue live in the same fast time
    sim = SimulatedVenue(symbols=[kit.RULES], flow=None, levels={S: kit.LEVELS}, maker_bps=1.0, taker_bps=5.0, clock=clock,
                         limits={"orders": ((10**6, 10),), "weight": (10**9, 60)})
    rng, rows, wall = random.Random(seed), [], time.monotonic()
    try:
        often = replace(POLICY, snapshot_limit=100_000, connect_limit=100_000)
        async with sim, Day(folder, sim=sim, seed=seed, policy=often, **slow_session(speed)) as d:
            d.engine.venue._dials.limit = 10**9  # 300 connections in five minutes are a true limit; here minutes are short
            faults, begin, names = Faults(d, rng, speed), now(), []
            while now() - begin < minutes * 60 * NS:
                if not names:
                    names = sorted(faults.kinds)
                    rng.shuffle(names)
                await asyncio.sleep(rng.expovariate(1.0) * 0.4)
                rows.append(await one(d, faults, names.pop(), begin))
            end = now()
            await d.rest(20)
            kit.believed(d)
            out = {"seed": seed, "speed": speed, **summary(d, rows, begin, end), "machine_seconds": round(time.monotonic() - wall, 1)}
            assert out["lost"] == 0, lost(d)
            assert await d.stop() == 0 and not d.resting()
            d.lawful(d.config)
    finally:
        kit.guardian.steady_clock = clocks
    return out, rows


# ---------------------------------------------------------------- the same fault with its guard and without

async def trend(d, seconds, watch, step=4, every_s=0.6):
    "The crowd goes one way in steps that trade through our quotes, and somebody keeps the time of what goes wrong meanwhile."
    end, due, last = time.monotonic() + seconds, 0.0, time.monotonic()
    while (now := time.monotonic()) < end:
        if now >= due:
            d.crowd.move(d.crowd.mid + step)
            due = now + every_s
        watch(d, now - last)
        last = now
        await asyncio.sleep(0.01)


class Damage(Counter):
    "What one trial did, in seconds and lots."

    def __call__(self, d, dt):
        top, live = d.engine.tops.get(S), {o.client_id for o in d.m.live()}
        there = d.resting()
        believed = (top.bid_ticks + top.ask_ticks) / 2 if top is not None and top.synced else None
        self["blind_s"] += dt * bool(there and believed is not None and abs(believed - d.crowd.mid) >= 3)
        self["wrong_position_s"] += dt * (d.m.position(S) != d.held())
        self["lots_nobody_knows"] = max(self["lots_nobody_knows"], sum(o.lots - o.done for o in there if o.client_id not in live))


SCENARIOS = {  # name: (row, the fault, seconds, what is switched off)
    "silence": (8, lambda d: d.fault("mute", stream="*@depth*"), 3.0, "the watchdog of silence"),
    "gap": (3, lambda d: d.fault("drop", stream="*@depth@100ms", n=3), 3.0, "the rule of gaps"),
    "user stream": (10, lambda d: d.fault("blackhole", kind="user"), 3.0, "the loss of the user stream is told"),
    "no answer": (14, lambda d: [d.fault("mute", stream="user", match="NEW", n=2), d.fault("request", op="place", how="hang", executed=True, n=2)],
                  3.0, "no answer is no refusal"),
    "Retry-After": (12, lambda d: d.fault("throttle", seconds=3), 3.0, "Retry-After")}


def switch_off(name, matrix):
    "Take one guard away; returns what puts it back."
    from makerlab.live.binance import BinanceVenue, FullBudget
    from makerlab.live.book import LiveBook
    table = {"gap": (LiveBook, "_verdict", matrix.believe_gaps), "user stream": (BinanceVenue, "_lost", matrix.silently),
             "no answer": (BinanceVenue, "_judge_new", matrix.every_unknown_is_a_refusal),
             "Retry-After": (FullBudget, "hold", matrix.CAREFREE["hold"])}
    if name not in table:
        return lambda: None
    where, what, instead = table[name]
    had, before = what in vars(where), getattr(where, what)
    setattr(where, what, instead)
    return lambda: setattr(where, what, before) if had else delattr(where, what)


async def trial(folder, name, guarded, n, matrix):
    "One fault in a rising market: a row of the table."
    row, inject, seconds, _ = SCENARIOS[name]
    policy = replace(POLICY, silence_s={}) if name == "silence" and not guarded else POLICY
    back, damage = (lambda: None), Damage()
    async with Day(folder, policy=policy, seed=100 + n) as d:
        try:
            if not guarded:
                back = switch_off(name, matrix)
            d.crowd.on = False
            truth, mid0 = d.sim.exchange, d.crowd.mid
            worth = lambda: truth.truth_cash("alice") + d.held() * 0.001 * d.crowd.mid * 0.01
            since, was, fills = len(truth.truth), worth(), len(d.truth("trade"))
            received = d.sim.received
            d.crowd.move(mid0 - 1)
            faults = inject(d)
            await trend(d, seconds, damage)
            refused = sum(f.hits for f in d.sim.faults if f.name == "throttle")
            both, none = quoted(truth.truth, truth.truth[since - 1]["time_ns"], truth.now_ns)
            assert faults is not None and d.sim.received >= received
            return {"scenario": name, "row": row, "guard": "on" if guarded else "off", "trial": n, "blind_s": round(damage["blind_s"], 3),
                    "wrong_position_s": round(damage["wrong_position_s"], 3), "lots_nobody_knows": damage["lots_nobody_knows"],
                    "requests_refused": refused,
                    "unquoted_s": round(none, 3), "quoted_s": round(both, 3), "fills": len(d.truth("trade")) - fills, "pnl": round(worth() - was, 6)}
        finally:
            back()
            d.sim.clear()


def guards(folder, trials):
    "All scenarios with and without their guards, one trial of each after the other."
    import test_fault_matrix as matrix
    rows = []
    for n in range(trials):
        for name in SCENARIOS:
            for guarded in (True, False):
                place = Path(folder) / f"{name.replace(' ', '-')}-{n}-{guarded}"
                place.mkdir()
                rows.append(asyncio.run(trial(place, name, guarded, n, matrix)))
    return rows


def write_table(path, rows):
    "As CSV; its digest."
    with open(path, "w", newline="", encoding="utf8") as f:
        w = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        w.writeheader()
        w.writerows(rows)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_digest():
    "Of the modules that ran."
    h = hashlib.sha256()
    for p in sorted(x for wing in ("live", "execution") for x in (ROOT / "makerlab" / wing).glob("*.py")):
        h.update(p.name.encode() + p.read_bytes())
    return h.hexdigest()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--minutes", type=float, default=30.0, help="of market time")
    p.add_argument("--speed", type=float, default=4.0, help="market seconds in a second")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--guards", type=int, default=0, help="instead: so many trials of some faults with and without their guards")
    p.add_argument("--out", type=Path, default=ROOT / "data" / "live", help="folder of the tables")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    name = "guards" if a.guards else "soak"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAKERLAB_LEASES"] = f"{folder}/leases"
        if a.guards:
            rows = guards(folder, a.guards)
            out = {"trials": a.guards, "switched_off": {k: x[3] for k, x in SCENARIOS.items()}}
        else:
            out, rows = asyncio.run(soak(folder, a.minutes, a.seed, a.speed))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    table = a.out / f"{name}_{'trials' if a.guards else 'faults'}.csv"
    out |= {"python": platform.python_version(), "code_sha256": code_digest(), "commit": commit, "rows_sha256": write_table(table, rows)}
    text = json.dumps(out, indent=1)
    (a.out / f"{name}.json").write_text(text + "\n", encoding="utf8")
    print(text)


if __name__ == "__main__":
    main()
