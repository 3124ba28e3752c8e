"""Masses of loss intervals against high-precision arithmetic, and lattice measures on the right side of the exact curve."""

import itertools

import mpmath as mp
import numpy as np
import pytest

from accountants import atomic_pairs
from accountants.lattice import Fineness, regrid, sandwich
from accountants.mixture_pairs import MixturePair
from accountants.pairs import BoundedRangePair, GaussianPair, LaplacePair
from accountants.sampled_pairs import ReplacePair, RevealedPair, SampledAddPair, SampledRemovePair


def one(value):
    return np.array([[float(value)]])


def sampled(base, q):
    return SampledRemovePair(base, one(q)), SampledAddPair(base, one(q))


MIXTURE = (np.array([0.0, 0.5, 1.5]), np.array([0.7, 0.2, 0.1]))
PAIRS = {
    "gaussian": GaussianPair(one(0.5)),
    "gaussian, little noise": GaussianPair(one(30.0)),
    "gaussian, much noise": GaussianPair(one(1e-4)),
    "laplace": LaplacePair(one(0.7)),
    "bounded range": BoundedRangePair(one(1.3)),
    "sampled gaussian, remove": sampled(GaussianPair(one(1.0)), 0.01)[0],
    "sampled gaussian, add": sampled(GaussianPair(one(1.0)), 0.01)[1],
    "rarely sampled": sampled(GaussianPair(one(0.2)), 1e-7)[0],
    "often sampled": sampled(GaussianPair(one(3.0)), 0.95)[1],
    "sampled laplace, remove": sampled(LaplacePair(one(1.0)), 0.2)[0],
    "sampled laplace, add": sampled(LaplacePair(one(1.0)), 0.2)[1],
    "sampled bounded range": sampled(BoundedRangePair(one(1.0)), 0.2)[0],
    "replaced": ReplacePair(*sampled(GaussianPair(one(2.0)), 0.1)),
    "revealed": RevealedPair(
        SampledRemovePair(GaussianPair(np.array([[1.0], [2.0]])), np.array([[0.1], [0.05]])), np.array([0.8, 0.2])
    ),
    "mixture, remove": MixturePair(*MIXTURE, True),
    "mixture, add": MixturePair(*MIXTURE, False),
    "randomised response": atomic_pairs.randomized_response(0.4, 5),
    "discrete laplace": atomic_pairs.discrete_laplace(0.3, 4),
    "discrete gaussian": atomic_pairs.discrete_gaussian(2.0, 1),
    "sampled discrete gaussian": sampled(atomic_pairs.discrete_gaussian(2.0, 1), 0.1)[0],
    "replaced discrete laplace": ReplacePair(*sampled(atomic_pairs.discrete_laplace(0.5, 2), 0.1)),
}


def exact_gaussian(mu, q, remove, a, b):
    """P-mass, Q-mass and excess of the losses in (a, b] of a sampled Gaussian, with 40 digits."""
    with mp.workdps(40):
        mu, q = mp.mpf(mu), mp.mpf(q)

        def at(y):
            """Where the loss of removing crosses y."""
            if y in (mp.inf, -mp.inf):
                return y
            ratio = (mp.exp(mp.mpf(y)) - 1 + q) / q
            return mp.log(ratio) / mu + mu / 2 if ratio > 0 else -mp.inf

        low, high = (at(a), at(b)) if remove else (at(-b), at(-a))
        base = mp.ncdf(high) - mp.ncdf(low) if high < 0 else mp.ncdf(-low) - mp.ncdf(-high)
        shifted = mp.ncdf(high - mu) - mp.ncdf(low - mu) if high < mu else mp.ncdf(mu - low) - mp.ncdf(mu - high)
        mixed = (1 - q) * base + q * shifted
        p, other = (mixed, base) if remove else (base, mixed)
        return p, other, p - mp.exp(mp.mpf(a)) * other if a != -mp.inf else p


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize(("mu", "q"), [(1.0, 0.01), (0.1, 1e-6), (3.0, 0.5), (0.01, 0.9)])
def test_sampled_gaussian_masses(mu, q, remove):
    pair = sampled(GaussianPair(one(mu)), q)[0 if remove else 1]
    rng = np.random.default_rng(0)
    low, high = (float(edge[0, 0]) for edge in pair.quantiles(one(1e-9), one(1e-20)))
    edges = np.sort(np.concatenate([rng.uniform(low, high, 8), low + (high - low) * 10 ** rng.uniform(-5, 0, 8)]))
    cells = pair.cells(edges[None])
    bounds = [-mp.inf, *edges.tolist(), mp.inf]
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        p, other, excess = exact_gaussian(mu, q, remove, a, b)
        assert abs(cells.p[0, i] - p) <= 1e-11 * p + 1e-16 * q + 1e-300
        assert abs(cells.q[0, i] - other) <= 1e-11 * other + 1e-16 + 1e-300
        assert (
            abs(cells.excess[0, i] - excess) <= 1.5 * cells.error[0, i] + 1e-12 * abs(excess) + 2e-16 * p
        )  # the edges themselves are rounded


@pytest.mark.parametrize("name", PAIRS)
class TestEveryPair:
    def edges(self, pair):
        low, high = (float(edge[0, 0]) for edge in pair.quantiles(one(1e-12), one(1e-12)))
        return low, high, np.linspace(low - 0.1, high + 0.1, 401)

    def test_masses_and_excess_belong_together(self, name):
        pair = PAIRS[name]
        _, _, edges = self.edges(pair)
        cells = pair.cells(edges[None])
        assert cells.p.sum() == pytest.approx(1, abs=1e-9)
        assert cells.q.sum() == pytest.approx(1, abs=1e-9)
        with np.errstate(over="ignore"):
            direct = cells.p[0, 1:] - np.exp(edges) * cells.q[0, 1:]
        np.testing.assert_allclose(cells.excess[0, 1:], direct, atol=1e-10)
        assert (cells.excess >= 0).all()
        assert (cells.excess <= cells.p * (1 + 1e-12)).all()

    def test_splitting_intervals_changes_nothing(self, name):
        pair = PAIRS[name]
        _, _, edges = self.edges(pair)
        fine, coarse = pair.cells(edges[None]), pair.cells(edges[None, ::4])
        inner = fine.p[0, 1:-1].reshape(-1, 4).sum(axis=1)
        np.testing.assert_allclose(inner, coarse.p[0, 1:-1], rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("cells", [7, 60, 700])
    @pytest.mark.parametrize("thin", [False, True])
    def test_lattice_measures_lie_on_the_right_side(self, name, cells, thin):
        """δ_lower ≤ δ ≤ δ_upper at every ε, negative ones too."""
        pair = PAIRS[name]
        low, high, _ = self.edges(pair)
        step = (high - low) / cells
        if (spacing := pair.spacing()) is not None:
            step = float(spacing[0, 0]) / max(round(float(spacing[0, 0]) / step), 1)
        middle = (high + low) / 2
        fineness = Fineness(np.array([middle, low / 2 + middle / 2]), np.array([middle, high / 2 + middle / 2]), 1.0)
        both = sandwich(pair, step, low_tail=one(1e-12), high_tail=one(1e-12), fineness=fineness if thin else None)
        at = np.linspace(low - 1, high + 1, 41 if name.startswith("mixture") else 401)
        exact = np.array([float(pair.cells(one(e)).excess[0, 1]) for e in at])
        for lattice, side in ((both.lower, -1), (both.upper, 1)):
            assert (lattice.mass >= 0).all()
            gaps = np.minimum(at[:, None] - lattice.losses[0], 0)
            delta = float(lattice.infinite[0]) + (-np.expm1(gaps)) @ lattice.mass[0]
            assert (side * (delta - exact) >= -1e-11).all(), (side * (delta - exact)).min()


def test_a_step_that_atoms_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="has to divide"):
        sandwich(PAIRS["laplace"], 0.3, low_tail=one(1e-12), high_tail=one(1e-12))


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("step", [2e-4, 1e-3, 3e-3])
def test_steps_as_long_as_the_deviation_are_a_close_lower_bound(step, remove):
    """Much and little noise on one lattice: a loss of σ = 11 spreads over a step or two, and still is no first-order bound."""
    sigma = np.array([[1.0], [3.0], [5.0], [8.0], [11.0]])
    base = GaussianPair(1 / sigma)
    pair = (SampledRemovePair if remove else SampledAddPair)(base, np.full_like(sigma, 0.01))
    tail = np.full_like(sigma, 1e-15)
    both = sandwich(pair, step, low_tail=tail, high_tail=tail)
    at = np.linspace(-0.02, 0.05, 300)
    for row in range(len(sigma)):
        one_pair = type(pair)(GaussianPair(1 / sigma[row : row + 1]), one(0.01))
        exact = np.array([float(one_pair.cells(one(e)).excess[0, 1]) for e in at])
        gaps = np.minimum(at[:, None] - both.lower.losses[row], 0)
        delta = -np.expm1(gaps) @ both.lower.mass[row]
        assert (delta <= exact + 1e-15).all()
        variances = [m.mass[row] @ m.losses[row] ** 2 - (m.mass[row] @ m.losses[row]) ** 2 for m in (both.lower, both.upper)]
        assert variances[1] - variances[0] <= step**2


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("atoms", "step"), [(5, 0.01), (40, 0.3), (4000, 0.02), (20_000, 0.013)])
def test_regridding_keeps_the_side(atoms, step, sign):
    rng = np.random.default_rng(atoms)
    losses = np.sort(rng.uniform(-1, 3, atoms))
    mass = rng.dirichlet(np.ones(atoms))
    origin, moved = regrid(losses, mass, step, sign=sign)
    assert (moved >= 0).all()
    points = origin + step * np.arange(len(moved))
    at = np.linspace(-2, 4, 500)
    exact = -np.expm1(np.minimum(at[:, None] - losses, 0)) @ mass
    found = -np.expm1(np.minimum(at[:, None] - points, 0)) @ moved
    assert (sign * (found - exact) >= -1e-12).all()
    assert np.abs(found - exact).max() <= 2 * step


def test_regridding_from_below_where_q_masses_underflow():
    losses, mass = np.array([0.0, 2000.0, 2000.5]), np.array([0.0, 0.5, 0.5])
    origin, moved = regrid(losses, mass, 0.3, sign=-1)
    points = origin + 0.3 * np.arange(len(moved))
    at = np.linspace(1995, 2001, 61)
    exact, found = (-np.expm1(np.minimum(at[:, None] - y, 0)) @ m for y, m in ((losses, mass), (points, moved)))
    assert (found <= exact + 1e-12).all()
