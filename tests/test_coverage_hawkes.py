"Coverage of every interval that a Hawkes fit prints."
import numpy as np
import pytest
from coverage_kit import measure

from makerlab.calibration.hawkes import HawkesModel, simulate_hawkes

pytestmark = pytest.mark.slow
TWO = dict(mu=[.5, .3], alpha=[[.5, .2], [.1, .6]], beta=[2., 1.5])


def test_one_kind():
    truth = np.array([.8, .9, 1.8])

    def one(rng):
        fit = HawkesModel(simulate_hawkes(T=1000., mu=.8, alpha=.9, beta=1.8, rng=rng), T=1000.).fit()
        ends = [*fit.conf_int().itertuples(index=False), fit.branching_interval(), fit.mean_rate_interval()]
        return [(lo, hi, value) for (lo, hi), value in zip(ends, [*truth, .5, 1.6])]

    measure("hawkes, ratio 0.5", one, n=400, names=["mu", "alpha", "beta", "branching ratio", "mean rate"])


@pytest.mark.parametrize(("ratio", "T"), [(.9, 800.), (.3, 800.), (.1, 800.), (0., 400.)])
def test_branching_ratio_from_strong_to_none(ratio, T):
    def one(rng):
        mu = 1.5 * (1 - ratio)
        return (*HawkesModel(simulate_hawkes(T=T, mu=mu, alpha=1.8 * ratio, beta=1.8, rng=rng), T=T).fit().branching_interval(), ratio)

    measure(f"hawkes: branching ratio {ratio}", one, n=300)


def test_with_a_baseline_in_pieces():
    def one(rng):
        t = simulate_hawkes(T=1200., mu=[1.2, .5, 1.], alpha=.9, beta=1.8, rng=rng, edges=[0., 400., 800., 1200.])
        fit = HawkesModel(t, T=1200., baseline=3).fit()
        ends = [*fit.conf_int().itertuples(index=False), fit.branching_interval(), fit.mean_rate_interval()]
        return [(lo, hi, value) for (lo, hi), value in zip(ends, [1.2, .5, 1., .9, 1.8, .5, .9 / .5])]

    measure("hawkes, three baselines", one, n=300, names=["mu_1", "mu_2", "mu_3", "alpha", "beta", "branching ratio", "mean rate"])


def test_two_kinds():
    G = np.array(TWO["alpha"]) / np.array(TWO["beta"])[:, None]
    truth = [*TWO["mu"], *np.ravel(TWO["alpha"]), *TWO["beta"], np.abs(np.linalg.eigvals(G)).max(), *np.linalg.solve(np.eye(2) - G, TWO["mu"])]
    names = ["mu a", "mu b", "alpha aa", "alpha ab", "alpha ba", "alpha bb", "beta a", "beta b", "spectral radius", "mean rate a", "mean rate b"]

    def one(rng):
        fit = HawkesModel(simulate_hawkes(T=1500., **TWO, rng=rng), T=1500.).fit()
        ends = [*fit.conf_int().itertuples(index=False), fit.branching_interval(), *fit.mean_rate_interval().itertuples(index=False)]
        return [(lo, hi, value) for (lo, hi), value in zip(ends, truth)]

    measure("hawkes, two kinds", one, n=1000, names=names)
