"Throttles: in every window at most the limit, for any arrivals; cancels never starve; no refusal without need."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makerlab.core import ParameterError
from makerlab.execution.throttle import SlidingWindow, Throttle, VenueWindow

GAPS = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 7, 30, 100]), st.booleans()), max_size=120)
CONFIG = st.tuples(st.integers(1, 9), st.integers(1, 120), st.integers(0, 8)).filter(lambda c: c[2] < c[0])


def largest(times, window):
    "Most times in any half-open window: brute force over all starts that matter."
    return max((sum(u <= t < u + window for t in times) for u in times), default=0)


def run(limiter, gaps):
    "Times that passed: all, ordinary; and what was refused."
    now, kept, plain, refused = 0, [], [], []
    for gap, cancel in gaps:
        now += gap
        if limiter.allow(now, cancel=cancel):
            kept.append(now)
            if not cancel:
                plain.append(now)
        else:
            refused.append((now, cancel, list(kept), list(plain)))
    return kept, plain, refused


@given(CONFIG, GAPS)
@settings(max_examples=200, deadline=None)
def test_in_every_window(config, gaps):
    n, w, r = config
    kept, plain, refused = run(SlidingWindow(n, w, r), gaps)
    assert largest(kept, w) <= n and largest(plain, w) <= n - r
    for now, cancel, before, ordinary in refused:  # and none refused without need
        full = sum(t > now - w for t in before) >= n
        assert full or (not cancel and sum(t > now - w for t in ordinary) >= n - r)


@given(CONFIG, GAPS)
@settings(max_examples=100, deadline=None)
def test_cancels_never_starve(config, gaps):
    "Whatever was sent, in any window `reserve` cancels pass: a cancel is refused only when at least that many cancels passed in the last window."
    n, w, r = config
    limiter, now, cancels = SlidingWindow(n, w, r), 0, []
    for gap, cancel in gaps:
        now += gap
        if not cancel:
            limiter.allow(now)
        elif limiter.allow(now, cancel=True):
            cancels.append(now)
        else:
            assert sum(t > now - w for t in cancels) >= r if r else True
            assert limiter.next_ns(now, cancel=True) <= now + w  # and it passes within a window


@given(CONFIG, GAPS)
@settings(max_examples=100, deadline=None)
def test_next_is_the_first(config, gaps):
    n, w, r = config
    limiter, now = SlidingWindow(n, w, r), 0
    for gap, cancel in gaps:
        now += gap
        t = limiter.next_ns(now, cancel=cancel)
        assert t >= now and limiter.peek(t, cancel=cancel)
        assert t == now or not limiter.peek(t - 1, cancel=cancel)
        limiter.allow(now, cancel=cancel)


class Leaky(SlidingWindow):
    "The wrong limiter, in the shape of the right one: right on average."
    __slots__ = ("at", "level")

    def __init__(self, limit, window_ns, reserve=0):
        super().__init__(limit, window_ns, reserve)
        self.level, self.at = 0.0, 0

    def peek(self, now_ns, *, cancel=False):
        return max(0.0, self.level - (now_ns - self.at) * self.limit / self.window_ns) + 1 <= self.limit + 1e-9

    def count(self, now_ns, *, cancel=False):
        self.level, self.at = max(0.0, self.level - (now_ns - self.at) * self.limit / self.window_ns) + 1, now_ns


def test_the_guard_can_fail():
    "The window property refutes a leaky bucket, and a sliding window whose edge is off by one."
    gaps = [(0, False)] * 10 + [(1, False)] * 200
    assert largest(run(Leaky(10, 100), gaps)[0], 100) == 19

    class Off(SlidingWindow):
        __slots__ = ()
        def peek(self, now_ns, *, cancel=False): return SlidingWindow.peek(self, now_ns + 1, cancel=cancel)
    assert largest(run(Off(3, 10), [(1, False)] * 100)[0], 10) > 3


def test_reserve_can_fail():
    "Without the reserve a flood starves the cancel."
    for reserve, passed in ((0, False), (2, True)):
        limiter = SlidingWindow(5, 100, reserve)
        for t in range(50):
            limiter.allow(t)
        assert limiter.allow(50, cancel=True) is passed


@given(st.lists(CONFIG, min_size=1, max_size=3), GAPS)
@settings(max_examples=60, deadline=None)
def test_all_windows_or_none(configs, gaps):
    gate, now, kept = Throttle([SlidingWindow(*c) for c in configs]), 0, []
    for gap, cancel in gaps:
        now += gap
        if gate.allow(now, cancel=cancel):
            kept.append(now)
    for n, w, _ in configs:
        assert largest(kept, w) <= n
    assert gate.sent == len(kept) and gate.sent + gate.refused == len(gaps)


@given(CONFIG, GAPS)
@settings(max_examples=60, deadline=None)
def test_venue_window(config, gaps):
    n, w, r = config
    kept, plain, _ = run(VenueWindow(n, w, r), gaps)
    for times, most in ((kept, n), (plain, n - r)):
        assert max(np.bincount(np.asarray(times, dtype=int) // w), default=0) <= most


def test_clock_jumps():
    w = SlidingWindow(2, 100)
    assert w.allow(1000) and w.allow(1000)
    assert not w.allow(0) and not w.allow(500)  # backwards: stands still
    assert w.allow(1100)  # half-open: exactly one window later is outside
    m = VenueWindow(1, 100)
    assert m.allow(250) and not m.allow(150) and m.allow(300)  # an older window does not open again


def test_in_flight_cap():
    gate = Throttle([], in_flight_cap=2)
    assert gate.allow(0, in_flight=1) and not gate.allow(0, in_flight=2)
    assert gate.allow(0, in_flight=99, cancel=True)


@pytest.mark.parametrize("make", [lambda: SlidingWindow(0, 1), lambda: SlidingWindow(1, 0), lambda: SlidingWindow(2, 5, 2), lambda: SlidingWindow(2, 5, -1),
                                  lambda: SlidingWindow(float("nan"), 5), lambda: VenueWindow(0, 5), lambda: Throttle([], in_flight_cap=-1)])
def test_refused(make):
    with pytest.raises(ParameterError):
        make()
