"What an engine tells: the same words as prometheus_client's own counters, cheap to say, safe to ask for at any time."
import asyncio
import math
import socket
import threading
import time
import urllib.error
import urllib.request

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from makerlab.core import ParameterError
from makerlab.execution.orders import OrderEvent, OrderManager, State
from makerlab.execution.risk import CHECKS, AccountLimits, Limits, MemoryLatch, RiskGuard
from makerlab.execution.venue import Instrument, Report, TopOfBook
from makerlab.live.metrics import (RESYNC_REASONS, Age, Buckets, Count, Family, Level, LoopLag, Metrics, Shelf, count_events, geometric, reason_word, show_guard,
                                   show_mirror, show_orders)
from makerlab.live.protocol import REASONS


def text(shelf_or_metrics):
    registry = getattr(shelf_or_metrics, "registry", None)
    if registry is None:
        registry = CollectorRegistry()
        registry.register(shelf_or_metrics)
    return generate_latest(registry).decode()


def samples(metrics):
    "All samples of a scrape by name and labels."
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in text_string_to_metric_families(text(metrics)) for s in f.samples}


LABELS = st.text(max_size=6)
SIZES = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


@settings(max_examples=40)
@given(st.lists(st.tuples(LABELS, st.floats(0, 1e9))), st.lists(st.tuples(LABELS, SIZES)), st.lists(st.tuples(LABELS, SIZES)))
def test_a_scrape_reads_like_prometheus_clients_own(counted, levels, observed):
    "Any labels, any values, in any order: the same text as the reference."
    shelf, theirs = Shelf(prefix=""), CollectorRegistry()
    bounds = geometric(1e-3, 10.0)
    ours_c, ours_g, ours_h = shelf.add("c_total", "c", Count, ["x"]), shelf.add("g", "g", Level, ["x"]), shelf.add("h", "h", lambda: Buckets(bounds), ["x"])
    c, g, h = Counter("c_total", "c", ["x"], registry=theirs), Gauge("g", "g", ["x"], registry=theirs), Histogram("h", "h", ["x"], registry=theirs, buckets=bounds)
    for x, v in counted:
        ours_c.labels(x).inc(v)
        c.labels(x).inc(v)
    for x, v in levels:
        ours_g.labels(x).set(v)
        g.labels(x).set(v)
    for x, v in observed:
        ours_h.labels(x).observe(v)
        h.labels(x).observe(v)

    def rows(t):
        return {line for line in t.split("\n") if "_created{" not in line and not line.startswith("#")}
    assert rows(text(shelf)) == rows(generate_latest(theirs).decode())


def test_a_size_at_a_bound_is_inside_it_and_nan_is_beyond_all():
    b = Buckets((1.0, 2.0))
    for x in (1.0, 1.5, 2.0, 2.1, math.nan, math.inf, -1.0):
        b.observe(x)
    assert b.counts == [2, 2, 3]
    b = Buckets((1.0,))
    b.observe(math.nan)
    assert (b.counts, b.total) == ([0, 1], 0.0)


def test_an_age_is_worked_out_when_somebody_looks():
    "A gauge that is set when a book arrives would say 0 for ever once books stop."
    now = [10_000_000_000]
    m = Metrics(clock=lambda: now[0])
    assert not any("book_age" in k[0] for k in samples(m))
    m.book_age_seconds.labels("X").touch()
    now[0] += 7_500_000_000
    assert samples(m)["makerlab_book_age_seconds", (("symbol", "X"),)] == 7.5
    m.book_age_seconds.labels("X").touch(now[0] - 250_000_000)
    assert samples(m)["makerlab_book_age_seconds", (("symbol", "X"),)] == 0.25


def test_what_was_not_set_is_not_shown_and_known_counters_start_at_zero():
    got = samples(Metrics(CollectorRegistry()))
    assert ("makerlab_redis_up", ()) not in got and ("makerlab_position", ()) not in got and ("makerlab_kill_switch", ()) not in got
    assert all(got["makerlab_risk_denied_total", (("rule", name),)] == 0 for name in CHECKS)
    assert got["makerlab_orders_total", (("event", "REJECTED"), ("reason", ""))] == 0 and got["makerlab_journal_errors_total", ()] == 0
    m = Metrics(CollectorRegistry())
    m.symbols(["X", "Y"])
    assert samples(m)["makerlab_fills_total", (("side", "buy"), ("symbol", "Y"))] == 0
    assert samples(m)["makerlab_book_synced", (("symbol", "Y"),)] == 0 and samples(m)["makerlab_book_age_seconds", (("symbol", "Y"),)] >= 0, "a book that never comes can be alarmed"


def test_every_reason_of_the_feed_exists_before_the_first():
    "The feed counts these, and the engine resyncs for them: each must begin at 0, so that the first is an increase."
    got = samples(Metrics(CollectorRegistry()))
    for r in (*REASONS, "symbol"):
        assert got["makerlab_messages_refused_total", (("reason", r),)] == 0
    for r in (*RESYNC_REASONS, *REASONS):
        assert got["makerlab_book_resyncs_total", (("reason", r),)] == 0


def test_what_was_shed_is_said_for_books_and_for_trades():
    (words,) = [r for r in text(Metrics(CollectorRegistry())).splitlines() if r.startswith("# HELP makerlab_messages_shed_total")]
    assert "books replaced" in words and "trades dropped" in words


def test_labels_are_few_whatever_is_said():
    "Ten thousand reasons make 256 series and one called other."
    f = Family("x", "", Count, ["reason"])
    for i in range(10_000):
        f.labels(str(i)).inc()
    assert len(f.children) == 257 and f.labels("other").n == 10_000 - 256
    assert sum(c.n for c in f.children.values()) == 10_000


@pytest.mark.parametrize("said, word", [
    ("", ""), ("price collar: 101 ticks", "price collar"), ("-2010: no balance", "-2010"), ("-2010 Account has insufficient balance", "-2010"), ("1013", "1013"),
    ("unknown symbol 'X7'", "other"), ("unknown: s0001 on this side is not resolved", "unknown"), ("not synced: reconcile first", "not synced"),
    ("123456789", "other"), ("٣٤", "other"), ("-", "other"), ("   ", "")])
def test_reasons_become_words(said, word):
    assert reason_word(said) == word


@given(st.text())
def test_no_text_breaks_the_words(said):
    assert len(reason_word(said)) <= 20


def test_a_label_is_never_guessed():
    f = Family("x", "", Count, ["a", "b"])
    assert f.labels("1", "2") is f.labels(a="1", b="2") is f.labels(b="2", a="1")
    for wrong in (lambda: f.labels("1"), lambda: f.labels(a="1"), lambda: f.labels("1", b="2"), lambda: f.labels(a="1", b="2", c="3"), lambda: f.labels()):
        with pytest.raises(ParameterError, match="labels of x"):
            wrong()


def test_counters_never_fall():
    c = Count()
    c.inc(3)
    for wrong in (-1, math.nan):
        with pytest.raises(ParameterError, match="never falls"):
            c.inc(wrong)
    c.reach(5)
    c.reach(4)
    c.reach(math.nan)
    assert c.n == 5


def test_a_name_is_taken_once_and_bounds_must_exist():
    shelf = Shelf()
    shelf.add("x", "", Count)
    with pytest.raises(ParameterError, match="'x' is taken"):
        shelf.add("x", "", Count)
    with pytest.raises(ParameterError, match="high"):
        geometric(1.0, 0.5)
    with pytest.raises(ParameterError, match="low"):
        geometric(0.0, 0.5)
    assert geometric(1e-3, 0.02) == (0.001, 0.002, 0.005, 0.01, 0.02)


def test_a_follower_that_fails_spoils_only_itself():
    m = Metrics(CollectorRegistry())
    m.redis_up.follow(lambda: 1 / 0)
    m.redis_dropped_total.follow(lambda: {}["nothing"])
    m.recorder_lag_rows.set(3)
    got = samples(m)
    assert math.isnan(got["makerlab_redis_up", ()]) and got["makerlab_redis_dropped_total", ()] == 0 and got["makerlab_recorder_lag_rows", ()] == 3


def test_scrapes_while_everything_changes():
    "New labels and new counts in one thread, scrapes in another: no scrape fails, no histogram contradicts itself."
    m, stop, wrong = Metrics(CollectorRegistry()), threading.Event(), []

    def write():
        i = 0
        while not stop.is_set():
            i += 1
            m.messages_total.labels(f"s{i % 60}").inc()
            m.msg_lag_seconds.labels(f"s{i % 40}").observe(i % 17 / 10)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            got = samples(m)
            for (name, labels), v in got.items():
                if name == "makerlab_msg_lag_seconds_count":
                    inf = got["makerlab_msg_lag_seconds_bucket", tuple(sorted((*labels, ("le", "+Inf"))))]
                    if v != inf:
                        wrong.append((labels, v, inf))
    finally:
        stop.set()
        writer.join()
    assert not wrong


def test_telling_is_cheap():
    "Ten times what it takes on a quiet machine; prometheus_client's own histogram is asked the same, and loses."
    b, h = Metrics(CollectorRegistry()).quote_latency_seconds, Histogram("h", "h", registry=CollectorRegistry(), buckets=geometric(5e-6, 0.1))

    def best(f):
        out = []
        for _ in range(7):
            t = time.perf_counter()
            for _ in range(5000):
                f(3e-5)
            out.append((time.perf_counter() - t) / 5000)
        return min(out)
    ours, theirs = best(b.observe), best(h.observe)
    assert ours < 2e-6 and ours < theirs, (ours, theirs)


def test_served_on_loopback_and_a_taken_port_is_told():
    m = Metrics()
    web = m.serve(0)
    try:
        assert web.url == f"http://127.0.0.1:{web.port}/metrics" and web._httpd.server_address[0] == "127.0.0.1"
        got = urllib.request.urlopen(web.url, timeout=5).read().decode()
        assert "makerlab_loop_lag_seconds_count" in got and "process_resident_memory_bytes" in got
        with pytest.raises(ParameterError, match=f"port = {web.port} .TCP. on addr = '127.0.0.1'"):
            Metrics(CollectorRegistry()).serve(web.port)
    finally:
        web.close()
    with pytest.raises((ConnectionError, urllib.error.URLError)):
        urllib.request.urlopen(web.url, timeout=5)
    for wrong in (-1, 70_000):
        with pytest.raises(ParameterError, match="port"):
            m.serve(wrong)


def test_a_client_that_says_nothing_holds_up_nobody():
    m = Metrics(CollectorRegistry())
    web = m.serve(0)
    with socket.create_connection(("127.0.0.1", web.port)) as mute:
        mute.sendall(b"GET /metr")
        assert b"makerlab_loop_lag" in urllib.request.urlopen(web.url, timeout=5).read()
    web.close()


def test_the_default_port_is_the_seeds():
    import inspect
    assert {k: p.default for k, p in inspect.signature(Metrics.serve).parameters.items() if k != "self"} == {"port": 8000, "addr": "127.0.0.1"}


def test_a_loop_that_stands_still_is_seen_while_it_stands_and_afterwards():
    m = Metrics(CollectorRegistry())
    seen = {}

    async def engine():
        lag = LoopLag(m, every_s=0.01)
        task = lag.start()
        await asyncio.sleep(0.05)
        done = threading.Event()

        def look():
            time.sleep(0.25)  # the loop is blocked below: nothing else could tell us that this much has passed
            seen["during"] = samples(m)["makerlab_loop_beat_age_seconds", ()]
            done.set()
        threading.Thread(target=look).start()
        time.sleep(0.3)  # what must never happen in a loop
        done.wait()
        await asyncio.sleep(0.03)
        task.cancel()
        seen["worst"] = lag.worst_s
    asyncio.run(engine())
    assert seen["during"] > 0.2 and seen["worst"] > 0.2
    late = samples(m)
    assert late["makerlab_loop_lag_seconds_count", ()] - late["makerlab_loop_lag_seconds_bucket", (("le", "0.2"),)] >= 1
    with pytest.raises(ParameterError, match="every_s"):
        LoopLag(m, every_s=0)


def test_the_guards_and_the_orders_numbers_are_shown():
    m, now = Metrics(CollectorRegistry()), 10**18
    x = {"X": Instrument("X", 0.5, 0.1), "Y": Instrument("Y", 1.0)}
    guard = RiskGuard({"X": Limits(10, 1e6, 20), "Y": Limits(1, 1e6, 1)}, account=AccountLimits(1e6, 1e3, 500.0), instruments=x, latch=MemoryLatch())
    orders = OrderManager(x, session="s", approve=guard.approve)
    guard.on_market(TopOfBook("X", 100, 102, 5, 5, now, now), now)
    bid = orders.place_quote("X", 1, 100, 5, now_ns=now)
    orders.place_quote("X", 1, 99, 5, now_ns=now)
    ask = orders.place_quote("X", -1, 104, 5, now_ns=now)
    orders.place_quote("X", -1, 103, 11, now_ns=now)
    orders.poll(now)
    for o in (bid, ask):
        orders.handle(Report("accepted", o.client_id, "X", o.side, now), now_ns=now)
    orders.handle(Report("fill", bid.client_id, "X", 1, now, "e", 100, 2, 2, fee=0.25), now_ns=now)
    events = orders.take_events()
    for e in events:
        guard.on_event(e, now)
    guard.evaluate(now, orders)
    count_events(m, events)
    show_guard(m, guard)
    show_orders(m, orders)
    got = samples(m)
    X = (("symbol", "X"),)
    assert got["makerlab_position", X] == pytest.approx(0.2) and got["makerlab_position_limit", X] == 2.0
    assert got["makerlab_pnl_fees", X] == 0.25 and got["makerlab_pnl_unrealized", X] == 0.0 and got["makerlab_mid_price", X] == 50.5
    assert got["makerlab_exposure", X] == pytest.approx((2 + 3 + 5) * 0.05 * 101)
    assert got["makerlab_live_orders", X] == 3 and got["makerlab_inflight_orders", ()] == 1 and got["makerlab_unknown_orders", ()] == 0
    assert got["makerlab_quote_price", (("side", "bid"), ("symbol", "X"))] == 50.0 and got["makerlab_quote_price", (("side", "ask"), ("symbol", "X"))] == 52.0
    assert math.isnan(got["makerlab_quote_price", (("side", "bid"), ("symbol", "Y"))]) and got["makerlab_live_orders", (("symbol", "Y"),)] == 0
    assert got["makerlab_orders_total", (("event", "DENIED"), ("reason", "order quantity"))] == 1 == got["makerlab_risk_denied_total", (("rule", "order quantity"),)]
    assert got["makerlab_fills_total", (("side", "buy"), ("symbol", "X"))] == 1 == got["makerlab_orders_total", (("event", "fill"), ("reason", ""))]
    assert got["makerlab_kill_switch", ()] == 0 and got["makerlab_trading_state", (("state", "ACTIVE"),)] == 1 and got["makerlab_drawdown_limit", ()] == 500
    guard.kill("test", now)
    show_guard(m, guard)
    got = samples(m)
    assert got["makerlab_kill_switch", ()] == 1 and got["makerlab_trading_state", (("state", "ACTIVE"),)] == 0 and got["makerlab_trading_state", (("state", "HALTED"),)] == 1


def test_the_best_quote_is_the_one_nearest_the_market():
    m, now = Metrics(CollectorRegistry()), 10**18
    orders = OrderManager({"X": Instrument("X", 1.0)}, session="s")
    for side, ticks in ((1, 95), (1, 99), (1, 97), (-1, 105), (-1, 101), (-1, 103)):
        orders.place_quote("X", side, ticks, 1, now_ns=now)
    show_orders(m, orders)
    got = samples(m)
    assert [got["makerlab_quote_price", (("side", s), ("symbol", "X"))] for s in ("bid", "ask")] == [99, 101]


def test_an_event_of_any_kind_is_counted():
    m = Metrics(CollectorRegistry())
    count_events(m, [OrderEvent("state", 0, "a", "X", 1, State.NEW, s) for s in State] + [OrderEvent(k, 0, "a", "X", 1) for k in ("fill", "duplicate", "anomaly", "connection")])
    n = sum(c.n for c in m.orders_total.children.values())
    assert n == len(State) + 4 and m.fills_total.labels("X", "buy").n == 1


def test_redis_up_follows_a_mirror():
    class Fake:
        real, up, dropped = True, True, 3
    m, fake = Metrics(CollectorRegistry()), Fake()
    show_mirror(m, fake)
    assert (samples(m)["makerlab_redis_up", ()], samples(m)["makerlab_redis_dropped_total", ()]) == (1, 3)
    fake.up, fake.dropped = False, 9
    assert (samples(m)["makerlab_redis_up", ()], samples(m)["makerlab_redis_dropped_total", ()]) == (0, 9)


def test_prometheus_clients_global_registry_is_left_alone():
    before = {f.name for f in prometheus_client.REGISTRY.collect()}
    Metrics()
    Metrics()
    assert {f.name for f in prometheus_client.REGISTRY.collect()} == before
    assert Age(lambda: 5).last_ns == -1
