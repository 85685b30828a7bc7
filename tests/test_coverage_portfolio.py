"The one interval that models.portfolio prints: the share of the objective that a worse policy gives away. Truth by the chain's own equations."
import numpy as np
import pytest
from coverage_kit import measure
from scipy.sparse import coo_matrix, diags, hstack, vstack
from scipy.sparse.linalg import expm_multiply

from makerlab.models import portfolio as pf

pytestmark = pytest.mark.slow
COV, WORLD, Q, T = np.array([[0.25, 0.2], [0.2, 0.25]]), dict(A=[1.0, 1.5], k=[1.5, 2.0], gamma=0.2), 5, 60.0


def expected(book: pf.Portfolio) -> float:
    "Mean objective over T from flat: u' = L u + reward, by a matrix exponential."
    axis = np.arange(-Q, Q + 1)
    q = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    reward, n = -0.5 * WORLD["gamma"] * np.einsum("si,ij,sj->s", q, COV, q), len(q)
    rows, cols, rates = [], [], []
    bid, ask = book.depths(q.astype(float))
    for i, stride in ((0, 2 * Q + 1), (1, 1)):
        for side, depth in ((1, bid), (-1, ask)):
            here = np.flatnonzero(side * q[:, i] < Q)
            rate = WORLD["A"][i] * np.exp(-WORLD["k"][i] * depth[here, i])
            reward[here] += rate * depth[here, i]
            rows, cols, rates = rows + [here], cols + [here + side * stride], rates + [rate]
    L = coo_matrix((np.concatenate(rates), (np.concatenate(rows), np.concatenate(cols))), shape=(n, n)).tocsr()
    L = L - diags(np.asarray(L.sum(axis=1)).ravel())
    whole = vstack([hstack([L, coo_matrix(reward[:, None])]), coo_matrix((1, n + 1))]).tocsr()
    return float(expm_multiply(whole * T, np.r_[np.zeros(n), 1.0])[n // 2]) / T


def test_share_lost_by_ignoring_correlation():
    full, alone = (pf.portfolio(cov=c, xi=0.0, **WORLD) for c in (COV, np.diag(np.diag(COV))))
    truth = 1.0 - expected(alone) / expected(full)
    assert 0.0 < truth < 0.2

    def one(rng):
        seed = int(rng.integers(2**62))
        runs = (pf.simulate_book(p, cov=COV, **WORLD, horizon_s=T, n_paths=40, rng=np.random.default_rng(seed), q_max=Q) for p in (full, alone))
        loss = pf.relative_loss(*runs)
        return loss.lo, loss.hi, truth

    measure("portfolio: share lost by ignoring correlation", one, n=1000)
