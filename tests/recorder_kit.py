"Processes that the tests of the recorder and the journal kill: imported once by the fork server, so that each costs milliseconds."
import multiprocessing
import random
import resource
from contextlib import contextmanager

from makerlab.execution.orders import OrderManager
from makerlab.execution.venue import Instrument, Report
from makerlab.live.journal import Journal
from makerlab.live.recorder import Recorder, RecorderOptions

T0 = 1_772_452_800_000_000_000
ALERTS = []


def body(n: int) -> bytes:
    "The n-th message: a change of one bid and one ask."
    return b'{"e":"depthUpdate","E":%d,"s":"BTCUSDT","U":%d,"u":%d,"b":[["%d.00","1.5"]],"a":[["%d.00","2.5"]]}' % (T0 // 10**6 + n, n, n, 100 + n % 7, 200 + n % 7)


def feed_one(recorder: Recorder, n: int) -> None:
    "The n-th message into a recorder."
    recorder.raw("btcusdt@depth@100ms", body(n), T0 + n * 10**6, T0 + n * 10**6 + 5, n * 10**6)


def record_for_ever(folder: str, acks, seed: int) -> None:
    "Record until killed; say what is safe."
    rng = random.Random(seed)
    recorder = Recorder(folder, options=RecorderOptions(batch_ms=0.0, segment_rows=30, sealer="thread", min_free_mb=0.0))
    n = recorder.stats.acknowledged
    acks.send(n)
    while True:
        for _ in range(rng.randint(1, 12)):
            n += 1
            feed_one(recorder, n)
        acks.send(recorder.flush())


XYZ = Instrument("XYZ", 0.01, 0.001, venue="sim")


def trade_for_ever(path: str, wire, seed: int) -> None:
    "Ask a venue at the other end of a pipe for orders until killed: journal first, then send; reports into the journal, then handled."
    rng, now = random.Random(seed), T0
    j = Journal(path, instruments={"XYZ": XYZ})
    m = OrderManager({"XYZ": XYZ}, session=j.session)
    wire.send(("session", j.session))
    while True:
        now += 10**6
        live = [o for o in m.live() if o.state.value in ("WORKING", "PARTIAL")]
        if live and rng.random() < 0.4:
            m.cancel_quote(rng.choice(live).client_id, now_ns=now)
        else:
            m.place_quote("XYZ", rng.choice((1, -1)), rng.randint(90, 110), rng.randint(1, 9), now_ns=now)
        for request in m.poll(now):
            j.intent(request, now)
            wire.send(("request", request))
            j.sent(request, now)
        while wire.poll(0.0):
            report: Report = wire.recv()
            j.report(report, now)
            m.handle(report, now_ns=now)


def context():
    "Where processes come from that have the library already."
    c = multiprocessing.get_context("forkserver")
    c.set_forkserver_preload(["makerlab.live.recorder", "makerlab.live.journal"])
    return c


@contextmanager
def file_limit(size: int):
    "No file may grow beyond this: the write that would is refused, as on a full disk."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
