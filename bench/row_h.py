"""Row H: the Hamilton-Jacobi-Bellman equation of Cartea and Jaimungal, q_max 50, 2,000 time steps, against the PyPI package avellaneda-stoikov.

Prints one JSON object. The peer is used where it is installed (pip install avellaneda-stoikov==0.1.0, in an environment of its own that also has
makerlab, or on PYTHONPATH); without it the peer is scipy's solve_ivp with 2,000 outputs, at the accuracy of the package. Answers are compared
where epsilon = 0: with epsilon the package leaves it out of the equation. Takes a few seconds.
"""

import importlib.metadata
import json
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
from clock import describe, timed
from scipy.integrate import solve_ivp

from makerlab.models.cartea_jaimungal import solve_cj

Q, STEPS, OURS, THEIRS, LIMIT = 50, 2000, 60, 7, 0.005  # LIMIT in seconds
WORLD = dict(rate_buy=1.0, rate_sell=1.0, kappa_ask=100.0, kappa_bid=100.0, phi=2e-5, alpha=1e-4, horizon_s=60.0, q_max=Q)


def package():
    "A function without arguments that gives h[2001, 101] from t = 0 to T, and the version; None where the package is not installed."
    try:
        from avellaneda_stoikov import ASParams, solve_value_function
    except ImportError:
        return None
    p = ASParams(sigma=1.0, lam_plus=1.0, lam_minus=1.0, kappa_plus=100.0, kappa_minus=100.0, phi=WORLD["phi"], alpha=WORLD["alpha"], q_max=Q,
                 T=WORLD["horizon_s"], n_steps=STEPS)
    return (lambda: solve_value_function(p)[1]), importlib.metadata.version("avellaneda-stoikov")


def scipy_peer():
    "h[2001, 101] from t = 0 to T by LSODA on the vectorised equation."
    q = np.arange(-Q, Q + 1)
    cost, end, grid = -WORLD["phi"] * q**2, -WORLD["alpha"] * q**2.0, np.linspace(0, WORLD["horizon_s"], STEPS + 1)

    def flow(_, h):
        up = np.exp(100.0 * np.diff(h) - 1.0) / 100.0
        out = cost.copy()
        out[:-1] += up
        out[1:] += np.exp(-2.0) / 1e4 / up
        return out

    return solve_ivp(flow, (0, grid[-1]), end, method="LSODA", t_eval=grid, rtol=1e-6, atol=1e-9).y.T[::-1]


def main():
    found = package()
    name, peer, version = ("avellaneda-stoikov", *found) if found else ("scipy", scipy_peer, scipy.__version__)

    def run():
        return solve_cj(**WORLD, n_steps=STEPS)

    path, ours, theirs = run(), [], []
    theirs_h = peer()
    for _ in range(THEIRS):  # in turn, so that both meet the same weather
        ours += timed(run, OURS // THEIRS)
        theirs += timed(peer, 1)
    exact = solve_cj(**WORLD)  # matrix exponential
    error = float(np.nanmax(np.abs(path.bid - exact.bid)))
    step = np.diff(theirs_h[0])  # their depth at t = 0, less 1/kappa
    peer_error = float(np.abs(0.01 - step - exact.bid[:-1]).max())
    report = {
        "row": "H",
        "work": f"HJB of Cartea and Jaimungal, q_max {Q} x {STEPS} steps (makerlab: 4th-order steps; the package: 1st-order); asked: under {LIMIT * 1e3:.0f} ms, "
                f"the ratio is to that; against the peer {statistics.median(theirs) / statistics.median(ours):.0f}x",
        "makerlab": describe(ours, note=f"largest error of a depth {error:.1e}, in units of 1/kappa {100 * error:.1e}"),
        "peers": {name: describe(theirs, version=version, note=f"largest error of a depth {peer_error:.1e}")},
        "ratio": LIMIT / statistics.median(ours),
        "ratio_vs_best_peer": statistics.median(theirs) / statistics.median(ours),
        "target": 1,
        "answers_agree": bool(error < 1e-10 and peer_error < 1e-4),
        "max_rel_diff": peer_error * 100.0,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
