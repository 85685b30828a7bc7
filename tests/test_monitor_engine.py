"A real Prometheus scrapes a real engine that trades on the simulated venue: every panel of every dashboard and every alert has its series, and what a panel shows is what the engine knows."
import asyncio
import math
import re
import threading
import time
from pathlib import Path

import pytest
import yaml
from prometheus_server import PrometheusServer, need_prometheus
from redis_server import RedisServer

from makerlab.live.engine import load_live
from makerlab.live.guardian import live
from makerlab.live.mirror import read_copy
from makerlab.live.monitor import BOARDS, RULES, board_query, runnable
from makerlab.live.simulated import SimulatedVenue

OPS = Path(__file__).resolve().parents[1] / "ops"
QUERIES = [(f"{b.uid}/{p.title}/{i}", expr) for b in BOARDS for _, panels in b.rows for p in panels for i, (expr, _) in enumerate(p.queries)]
SELECTOR = re.compile(r"\b(?:makerlab_\w+|process_\w+|up)\{[^}]*\}")  # a series that a rule looks at, without what it is compared with


class Session(threading.Thread):
    "The session of ops/example.yaml on a venue of its own, in a thread with a loop of its own."

    def __init__(self, folder, redis_url):
        super().__init__(daemon=True)
        self.folder, self.redis_url, self.port, self.up, self.said, self.failed, self.engine = folder, redis_url, 0, threading.Event(), [], None, None

    def run(self):
        try:
            asyncio.run(self.session())
        except BaseException as e:
            self.failed = e
        self.up.set()

    async def session(self):
        async with SimulatedVenue(market="spot", price="60000") as venue:
            tree = yaml.safe_load((OPS / "example.yaml").read_text())
            tree["live"] |= {"url": venue.url, "folder": str(self.folder / "live"), "metrics_port": 0, "mirror": self.redis_url, "record": str(self.folder / "recorded")}
            path = self.folder / "live.yaml"
            path.write_text(yaml.safe_dump(tree))
            self.loop = asyncio.get_running_loop()
            await live(load_live(path), say=self.said.append, watched=False, signals=False, started=self.started)

    def started(self, engine, control):
        self.engine = engine
        self.port = int(next(re.search(r":(\d+)/", line)[1] for line in self.said if line.startswith("metrics: ")))
        self.up.set()

    def stop(self):
        if self.engine is not None and self.is_alive():
            self.loop.call_soon_threadsafe(self.engine.stop, "the test is over")
        self.join(30)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    need_prometheus()
    with RedisServer() as redis:
        session = Session(tmp_path_factory.mktemp("session"), redis.url)
        session.start()
        assert session.up.wait(60) and session.failed is None, (session.failed, session.said)
        with PrometheusServer([f"127.0.0.1:{session.port}"]) as prometheus:
            prometheus.until(lambda: sum(prometheus.query('count_over_time(up{job="makerlab"}[1m])').values()) >= 12, timeout=60)
            prometheus.until(lambda: sum(prometheus.query('makerlab_orders_total{event="WORKING"}').values()) >= 2, timeout=60)
            yield prometheus, session, redis
        session.stop()


def test_every_panel_has_data(world):
    prometheus, session, _ = world
    empty = lambda: sorted(name for name, expr in QUERIES if not any(math.isfinite(v) for v in prometheus.query(runnable(board_query(expr))).values()))
    end = time.monotonic() + 30  # a rate wants two samples, a quantile something that happened between them
    while (missing := empty()) and time.monotonic() < end:
        threading.Event().wait(0.5)
    assert len(QUERIES) > 40 and not missing, missing


def test_every_alert_has_its_series(world):
    "A rule that looks at nothing is silent for ever, and looks well."
    prometheus, _, _ = world
    for rule in RULES:
        looked = SELECTOR.findall(rule.query)
        assert looked, rule.name
        for series in looked:
            prometheus.until(lambda: prometheus.query(series), what=f"{rule.name}: {series}")  # noqa: B023
    assert not prometheus.query(SELECTOR.findall(RULES[0].query)[0].replace("{", "s{")), "a metric that is not there is seen"


def test_what_is_shown_is_what_the_engine_knows(world):
    prometheus, session, redis = world
    shown = {dict(k)["symbol"]: v for k, v in prometheus.until(lambda: prometheus.query("makerlab_position_limit")).items()}
    assert shown == {"BTCUSDT": session.engine.trader.orders.instruments["BTCUSDT"].qty(session.engine.trader.guard.limits["BTCUSDT"].max_position_lots)}
    prometheus.until(lambda: list(prometheus.query('makerlab_trading_state{state="ACTIVE"}').values()) == [1])
    assert list(read_copy(redis.url).positions) == ["BTCUSDT"]


def test_no_rule_that_means_something_is_wrong_rings_at_once(world):
    "On a loaded machine latencies may ring; a disagreement, an unknown order or a broken journal may not."
    prometheus, _, _ = world
    never = {"ReconcileMismatch", "JournalFailing", "RecorderStopped", "KillSwitch", "EngineDown", "RedisDown", "OrderAnomaly"}
    assert never <= {r.name for r in RULES} and not prometheus.alerts() & (never - {"EngineDown", "RedisDown"}), prometheus.alerts()
    prometheus.until(lambda: not prometheus.alerts() & never)  # one late scrape is an engine that is down for a moment
