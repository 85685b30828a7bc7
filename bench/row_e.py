"""PERF.md row E: Poisson maximum likelihood of (A, k) over 20 bins, one fit against scipy, 10,000 bootstrap refits against statsmodels.

Prints one JSON object. The peers need scipy and statsmodels (both in makerlab's own environment). Takes about half a minute.
"""

import json
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import scipy
import statsmodels
import statsmodels.api as sm
from clock import describe, timed
from scipy import optimize, special

from makerlab.calibration.intensity import IntensityModel, _fit_row_nb, bootstrap, fit_many
from makerlab.core import njit

DRAWS, RUNS, BATCH = 10_000, 9, 400  # statsmodels is timed on RUNS batches of BATCH refits and scaled to DRAWS
DELTA = 0.01 * (np.arange(20) + 0.5)
EXPOSURE = np.full(20, 3600.0)


@njit
def _repeat(z, zr, e, counts, out):
    "A cold fit of each row, from k = 0 and with all checks."
    for r in range(counts.shape[0]):
        _, out[r], _, _, _ = _fit_row_nb(z, zr, e, counts[r], 0.0, 1e-8)


def statsmodels_fit(counts):
    "(ln A, k) by the GLM: Poisson, log link, offset ln E."
    return sm.GLM(counts, DESIGN, family=sm.families.Poisson(), offset=OFFSET).fit().params


def scipy_fit(counts):
    "(ln A, k) by BFGS on the negative log-likelihood, with its gradient."
    def objective(p):
        mean = EXPOSURE * np.exp(p[0] - p[1] * DELTA)
        return float((mean - counts * np.log(mean) + special.gammaln(counts + 1)).sum()), np.array([(mean - counts).sum(), ((counts - mean) * DELTA).sum()])
    return optimize.minimize(objective, np.array([np.log(counts.sum() / EXPOSURE.sum()), 0.0]), jac=True, method="BFGS", options={"gtol": 1e-6}).x


DESIGN, OFFSET = np.column_stack([np.ones(20), -DELTA]), np.log(EXPOSURE)


def main():
    rng = np.random.default_rng(20240501)
    counts = rng.poisson(EXPOSURE * 1.0 * np.exp(-20.0 * DELTA)).astype(float)
    fit = IntensityModel(pd.DataFrame({"delta": DELTA, "count": counts, "exposure": EXPOSURE})).fit()
    mean = fit.bins["expected"].to_numpy()

    boot = bootstrap(fit, n=DRAWS, rng=rng)  # compiles
    ours, theirs = [], []
    def peer():
        for row in rng.poisson(mean, (BATCH, 20)):
            statsmodels_fit(row)
    for _ in range(RUNS):  # in turn, so that both meet the same weather
        ours += timed(lambda: bootstrap(fit, n=DRAWS, rng=rng), 3)
        theirs += [t * DRAWS / BATCH for t in timed(peer, 1)]

    rows = rng.poisson(mean, (BATCH, 20)).astype(float)
    many = fit_many(rows, delta=DELTA, exposure=EXPOSURE)
    peers = np.array([statsmodels_fit(row) for row in rows])
    diff = max(np.abs(peers[:, 1] / many.k - 1).max(), np.abs(np.exp(peers[:, 0] - many.log_A) - 1).max())
    spread = np.abs(boot.bse / fit.bse - 1).max()

    z, out = (DELTA - DELTA[0]) / np.ptp(DELTA), np.empty(DRAWS)
    tile = rng.poisson(mean, (DRAWS, 20)).astype(float)
    _repeat(z, 1 - z, EXPOSURE, tile[:2], out)
    single = [t / DRAWS for t in timed(lambda: _repeat(z, 1 - z, EXPOSURE, tile, out), RUNS)]
    slow = [t / 50 for t in timed(lambda: [scipy_fit(row) for row in tile[:50]], RUNS)]
    scipy_diff = np.abs(scipy_fit(counts)[1] / fit.params["k"] - 1)

    report = {
        "row": "E",
        "work": f"Poisson MLE of (A, k), 20 bins, {counts.sum():.0f} events: {DRAWS} parametric-bootstrap draws and refits; one cold fit",
        "makerlab": describe(ours, fit_us=statistics.median(single) * 1e6),
        "peers": {"statsmodels": describe(theirs, version=statsmodels.__version__, note=f"batches of {BATCH} refits, scaled to {DRAWS}"),
                  "scipy": describe(slow, version=scipy.__version__, note="seconds a fit, BFGS with gradient; means over 50 fits")},
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "ratio_fit_vs_scipy": statistics.median(slow) / statistics.median(single),
        "target": 1000,
        "answers_agree": bool(diff < 1e-6 and scipy_diff < 1e-4 and spread < 0.05),
        "max_rel_diff": float(diff),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
