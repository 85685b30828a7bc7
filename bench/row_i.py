"""Hawkes log-likelihood and gradient, one pass over a long tape: events per second beside published packages and a plain loop.

Prints one JSON object. The peers hawkesbook and HawkesPyLib are compiled with numba too; a peer that is not installed is left out, the
plain Python recursion on a numpy array is always there. Takes about half a minute."""

import importlib.metadata
import json
import math
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from makerlab.calibration.hawkes import _loglik_nb, hawkes_loglik_gradient, simulate_hawkes

RUNS, EVENTS, PLAIN = 9, 1_000_000, 20_000
MU, ALPHA, BETA = 0.8, 0.9, 1.8
TARGET = 15e6  # events a second


def plain(t, T, mu, alpha, beta):
    "The recursion in plain Python on a numpy array: value and gradient."
    r = s = llf = by_mu = by_alpha = by_beta = 0.0
    for i in range(len(t)):
        if i:
            dt = t[i] - t[i - 1]
            e = math.exp(-beta * dt)
            s, r = e * (s - dt * (1 + r)), e * (1 + r)
        rate = mu + alpha * r
        llf += math.log(rate)
        by_mu, by_alpha, by_beta = by_mu + 1 / rate, by_alpha + r / rate, by_beta + s / rate
    x = T - t
    tail = np.exp(-beta * x)
    c, d = (1 - tail).sum() / beta, (x * tail).sum() / beta - (1 - tail).sum() / beta**2
    return llf - mu * T - alpha * c, np.array([by_mu - T, by_alpha - c, alpha * (by_beta - d)])


def hawkesbook(t, T):
    "Value and gradient by the package hawkesbook, in our parameters."
    import hawkesbook as hb
    theta = np.array([MU, ALPHA, BETA])
    return hb.exp_log_likelihood(t, T, theta), hb.deriv_exp_log_likelihood(t, T, theta)


def hawkespylib(t, T):
    "Value and gradient by HawkesPyLib, which minimises over (mu, branching ratio, memory)."
    from HawkesPyLib.core.logll import uvhp_expo_logL, uvhp_expo_logL_grad
    p = np.array([MU, ALPHA / BETA, 1 / BETA])
    return -uvhp_expo_logL(p, t, T), -uvhp_expo_logL_grad(p, t, T)


def timed(run):
    tic = time.perf_counter()
    run()
    return time.perf_counter() - tic


def describe(seconds, events, **more):
    "Seconds for the whole tape, scaled where a peer had only its first events."
    full = [s * EVENTS / events for s in seconds]
    return {"median_s": statistics.median(full), "min_s": min(full), "max_s": max(full), "runs": len(full),
            "events_per_s": EVENTS / statistics.median(full), **more}


def main():
    t = simulate_hawkes(T=1.2 * EVENTS * (1 - ALPHA / BETA) / MU, mu=MU, alpha=ALPHA, beta=BETA, rng=np.random.default_rng(20240501))[:EVENTS]
    T = float(t[-1]) + 1.0
    assert len(t) == EVENTS
    starts, width, mu, grad = np.array([0, EVENTS]), np.array([T]), np.array([MU]), np.empty(3)
    ours = lambda: _loglik_nb(t, starts, width, mu, ALPHA, BETA, grad)
    short = np.ascontiguousarray(t[:PLAIN])
    T_short = float(short[-1]) + 1.0
    value, slope = hawkes_loglik_gradient(t, T=T, mu=MU, alpha=ALPHA, beta=BETA)
    checks = []

    def agree(got, want):
        checks.append(max(abs(got[0] / want[0] - 1), float(np.max(np.abs(got[1] - want[1]) / (1 + np.abs(want[1]))))))

    agree(hawkes_loglik_gradient(short, T=T_short, mu=MU, alpha=ALPHA, beta=BETA), plain(short, T_short, MU, ALPHA, BETA))
    packages = {}
    for name, run in (("hawkesbook", hawkesbook), ("HawkesPyLib", hawkespylib)):
        try:
            got = run(t, T)
            packages[name] = (run, importlib.metadata.version(name))
        except ImportError:
            continue
        if name == "HawkesPyLib":  # its derivative by the memory is not the slope of its own value (an end term), so that one is left out
            agree((got[0], got[1][:2]), (value, slope[:2] * [1, BETA]))
        else:
            agree(got, (value, slope))

    ours()
    times = {name: [] for name in ("makerlab", "plain Python", *packages)}
    for _ in range(RUNS):  # in turn, so that all meet the same weather
        times["makerlab"].append(timed(ours))
        times["plain Python"].append(timed(lambda: plain(short, T_short, MU, ALPHA, BETA)))
        for name, (run, _version) in packages.items():
            times[name].append(timed(lambda run=run: run(t, T)))

    mine = describe(times["makerlab"], EVENTS)
    peers = {name: describe(times[name], EVENTS, version=version, note="two calls: value, then gradient") for name, (_, version) in packages.items()}
    peers["plain Python"] = describe(times["plain Python"], PLAIN, version=np.__version__, note=f"O(n) loop over a numpy array, {PLAIN} events, scaled")
    report = {
        "row": "I",
        "work": f"Hawkes log-likelihood and gradient, {EVENTS:,} events, one pass; asked: {TARGET / 1e6:.0f} M events/s, the ratio is to that; "
                f"against the best peer {min(p['median_s'] for p in peers.values()) / mine['median_s']:.1f}x",
        "makerlab": {**mine, "note": f"{mine['events_per_s'] / 1e6:.0f} M events/s"},
        "peers": peers,
        "ratio": mine["events_per_s"] / TARGET,
        "ratio_vs_best_peer": min(p["median_s"] for p in peers.values()) / mine["median_s"],
        "target": 1,
        "answers_agree": bool(max(checks) < 1e-6),
        "max_rel_diff": max(checks),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
