"""Dominating pairs against 40-digit arithmetic, and both lattice measures against the pair's own curve."""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest

from accountants import atomic_pairs
from accountants.lattice import regrid, sandwich
from accountants.mixture_pairs import MixturePair
from accountants.pairs import BoundedRangePair, GaussianPair, LaplacePair
from accountants.sampled_pairs import ReplacePair, RevealedPair, SampledAddPair, SampledRemovePair
from tests.accountants.references import exact_tails

ROUNDING = 2.0**-50
FAMILIES = [
    "gaussian",
    "laplace",
    "bounded_range",
    "pure",
    "randomized_response",
    "discrete_laplace",
    "discrete_gaussian",
    "mixture",
    "mixture_reverse",
    "revealed",
]
SAMPLED = ["gaussian", "laplace", "bounded_range", "pure", "discrete_laplace"]


def batch(value):
    return np.array([[float(value)]])


def draw(rng, low, high):
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def make(name, rng, *, wild=True):
    """A random pair of a family, over the whole range of parameters that is promised."""
    match name:
        case "gaussian":
            return GaussianPair(batch(draw(rng, 1e-4, 140 if wild else 5)))
        case "laplace":
            return LaplacePair(batch(draw(rng, 1e-4, 1e4 if wild else 5)))
        case "bounded_range":
            return BoundedRangePair(batch(draw(rng, 1e-4, 1e4 if wild else 5)))
        case "pure":
            return atomic_pairs.pure(draw(rng, 1e-4, 1e4 if wild else 5))
        case "randomized_response":
            return atomic_pairs.randomized_response(draw(rng, 1e-12, 0.99), int(rng.integers(3, 40)))
        case "discrete_laplace":
            return atomic_pairs.discrete_laplace(draw(rng, 1e-3, 5), int(rng.integers(1, 9)))
        case "discrete_gaussian":
            return atomic_pairs.discrete_gaussian(draw(rng, 0.3, 3), int(rng.integers(1, 4)))
        case "mixture" | "mixture_reverse":
            means = np.concatenate([[0.0], np.sort(rng.uniform(0, draw(rng, 0.01, 40 if wild else 4), int(rng.integers(1, 4))))])
            means = means if rng.random() < 0.7 else means[1:]
            return MixturePair(means, rng.dirichlet(np.ones(len(means))), name == "mixture")
        case "revealed":
            size = int(rng.integers(2, 5))
            mus, rates = (np.array([[draw(rng, a, b)] for _ in range(size)]) for a, b in ((0.05, 5), (1e-4, 1 - 1e-9)))
            kind = SampledRemovePair if rng.random() < 0.5 else SampledAddPair
            return RevealedPair(kind(GaussianPair(mus), rates), rng.dirichlet(np.ones(size)))
        case "sampled_remove" | "sampled_add" | "replace":
            base = make(str(rng.choice(SAMPLED)), rng, wild=wild)
            rate = batch(draw(rng, 1e-8, 1 - 1e-9))
            remove, add = SampledRemovePair(base, rate), SampledAddPair(base, rate)
            return {"sampled_remove": remove, "sampled_add": add, "replace": ReplacePair(remove, add)}[name]
    raise ValueError(name)


ALL = [*FAMILIES, "sampled_remove", "sampled_add", "replace"]


def random_edges(pair, rng, count=9):
    """Edges all over the range, outside of it, at its ends, and as close together as a hundred-millionth of it."""
    tails = [np.array([[10.0 ** -rng.uniform(0.3, 250)]]) for _ in range(4)]
    low, high = (float(side[0, 0]) for side in pair.quantiles(tails[0], tails[1]))
    base_low, base_high = (float(side[0, 0]) for side in pair.base_quantiles(tails[2], tails[3]))
    low, high = min(low, base_low), max(high, base_high)
    width = max(high - low, 1e-9)
    edges = rng.uniform(low, high, count).tolist()
    edges += [x + width * 10.0 ** -rng.uniform(2, 8) for x in edges[:4]]
    edges += [low, high, low - width, high + width, 0.0, float(rng.normal()), 1e-9]
    return np.unique(np.array(edges))[None]


def exact_cells(pair, edges):
    tails = [exact_tails(pair)(mp.mpf(float(e))) for e in edges]
    total_p, total_q = exact_tails(pair)(-mp.inf)
    tails = [(total_p, total_q), *tails, (mp.mpf(0), mp.mpf(0))]
    rows = []
    for i, ((p0, q0), (p1, q1)) in enumerate(itertools.pairwise(tails)):
        p, q = p0 - p1, q0 - q1
        rows.append((p, q, p if i == 0 else p - mp.exp(mp.mpf(float(edges[i - 1]))) * q))
    return rows


@pytest.mark.parametrize("name", ALL)
def test_cells_are_exact(name):
    rng = np.random.default_rng(0)
    with mp.workdps(60):
        for _ in range(12):
            pair = make(name, rng)
            edges = random_edges(pair, rng)
            cells = pair.cells(edges)
            for i, (p, q, excess) in enumerate(exact_cells(pair, edges[0])):
                computed = [float(part[0, i]) for part in cells]
                where = f"{pair} cell {i} of {edges[0].tolist()}: {computed}, exact {float(p)}, {float(q)}, {float(excess)}"
                assert computed[3] >= 0, where
                # An edge is itself known to rounding only; so is what lies on either side of it.
                around = [float(e) for e in edges[0, max(i - 1, 0) : i + 1]]
                slack = mp.mpf(ROUNDING) * max(map(abs, around)) * (p + 1e-3)
                assert abs(computed[2] - excess) <= computed[3] + mp.mpf(1e-13) * excess + slack + mp.mpf(1e-300), where
                assert abs(computed[0] - p) <= 1e-12 * p + computed[3] + slack + mp.mpf(1e-300), where
