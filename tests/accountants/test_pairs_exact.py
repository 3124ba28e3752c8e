"""Dominating pairs against 40-digit arithmetic, and both lattice measures against the pair's own curve."""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest

from accountants import atomic_pairs
from accountants.lattice import Fineness, regrid, sandwich
from accountants.mixture_pairs import MixturePair
from accountants.pairs import BoundedRangePair, GaussianPair, LaplacePair
from accountants.sampled_pairs import ReplacePair, RevealedPair, SampledAddPair, SampledRemovePair
from tests.accountants.pair_references import exact_tails, row

pytestmark = pytest.mark.slow  # exhaustive: `make test-slow` runs it

ROUNDING = 2.0**-50
TINY = 1e-300
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
            return LaplacePair(batch(draw(rng, 1e-4, 300 if wild else 5)))
        case "bounded_range":
            return BoundedRangePair(batch(draw(rng, 1e-4, 300 if wild else 5)))
        case "pure":
            return atomic_pairs.pure(draw(rng, 1e-4, 300 if wild else 5))
        case "randomized_response":
            return atomic_pairs.randomized_response(draw(rng, 1e-12, 0.99), int(rng.integers(3, 40)))
        case "discrete_laplace":
            return atomic_pairs.discrete_laplace(draw(rng, 1e-3, 5), int(rng.integers(1, 9)))
        case "discrete_gaussian":
            return atomic_pairs.discrete_gaussian(draw(rng, 0.3, 3), int(rng.integers(1, 4)))
        case "mixture" | "mixture_reverse":
            means = np.concatenate(
                [[0.0], np.sort(rng.uniform(0, draw(rng, 0.01, 40 if wild else 4), int(rng.integers(1, 4))))]
            )
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
    tails = [np.array([[10.0 ** -rng.uniform(0.3, most)]]) for most in (25, 250, 25, 250)]
    low, high = (float(side[0, 0]) for side in pair.quantiles(tails[0], tails[1]))
    base_low, base_high = (float(side[0, 0]) for side in pair.base_quantiles(tails[2], tails[3]))
    low, high = min(low, base_low), max(high, base_high)
    width = max(high - low, 1e-9)
    edges = rng.uniform(low, high, count).tolist()
    edges += [x + width * 10.0 ** -rng.uniform(2, 8) for x in edges[:4]]
    edges += [low, high, low - width, high + width, 0.0, float(rng.normal()), 1e-9]
    edges = np.unique(np.array(edges))
    # An edge that is an atom itself belongs to either side, by rounding.
    atoms = pair.atoms()
    at = (
        atoms[0]
        if atoms is not None
        else np.array([low, high, 0.0] if pair.spacing() is not None or pair.atom_at_zero() else [])
    )
    if len(at):
        edges = edges[np.abs(edges[:, None] - at).min(axis=1) > 1e-9 * np.abs(at).max()]
    return edges[None]


def exact_cells(pair, edges):
    """(P, Q, excess) of each cell, and what rounding may take of each: of an edge, a tail probability, the reference."""
    curve = exact_tails(pair)
    inverted = isinstance(pair, MixturePair)  # where x is found by bisection, so good to some units of the loss over its slope
    ends = [(curve(-mp.inf), [mp.mpf(0), mp.mpf(0)], mp.mpf(0))]
    width = max(float(pair.quantiles(batch(1e-20), batch(1e-20))[1][0, 0]), 0.0)  # a loss is a difference of numbers so large
    for edge in map(mp.mpf, edges.tolist()):
        nudge = max(abs(edge), width) * mp.mpf(ROUNDING)
        before, after = curve(edge - nudge), curve(edge + nudge)
        ends.append((curve(edge), [abs(x - y) for x, y in zip(before, after, strict=True)], nudge))
    ends.append(((mp.mpf(0), mp.mpf(0)), [mp.mpf(0), mp.mpf(0)], mp.mpf(0)))
    cells = []
    for i, ((above0, moved0, nudge), (above1, moved1, _)) in enumerate(itertools.pairwise(ends)):
        p, q = (x - y for x, y in zip(above0, above1, strict=True))
        excess = p if i == 0 else p - mp.exp(mp.mpf(float(edges[i - 1]))) * q
        # Tail probabilities, of the nearer side, are good to some units in the last place.
        tails = [min(x, 1 - y) * (1e-12 if inverted else 1e-14) for x, y in zip(above0, above1, strict=True)]
        unknown = 1e-22 if above0[0] > 1e-3 else TINY  # of the lowest losses nobody needs to know the tiny masses exactly
        if pair.atoms() is not None:
            unknown = 1e-15  # masses of atoms sum to 1 but for rounding
        slack = [m0 + m1 + tail + unknown for m0, m1, tail in zip(moved0, moved1, tails, strict=True)]
        cells.append(((p, q, excess), (*slack, nudge * p + moved1[0] + unknown)))
    return cells


def faults(pair, edges):
    """What is wrong with the cells of a batch of one, in words."""
    cells = pair.cells(edges)
    for i, (exact, slack) in enumerate(exact_cells(pair, edges[0])):
        around = edges[0, max(i - 1, 0) : i + 1].tolist()
        error = float(cells.error[0, i])
        for name, value, spare, relative in zip(("p", "q", "excess"), exact, slack, (1e-12, 1e-12, 1e-13), strict=True):
            computed = float(getattr(cells, name)[0, i])
            allowed = relative * value + spare + (error if name == "excess" else 0)
            if not (abs(computed - value) <= allowed or (name == "q" and value > 1e300)):
                yield f"{name} {computed!r} ± {error:.1e}, exact {mp.nstr(value, 17)} at {around}"


@pytest.mark.parametrize("name", ALL)
def test_cells_are_exact(name):
    rng = np.random.default_rng(0)
    with mp.workdps(60 if "mixture" in name else 200):
        for _ in range(12):
            pair = make(name, rng)
            edges = random_edges(pair, rng)
            assert not list(faults(pair, edges)), pair


def curve(pair, epsilons):
    """δ(ε) at ascending `epsilons`, from the pair's own cells, and a bound of its error. Sums of positive terms."""
    cells = pair.cells(epsilons[None])
    delta, error, above = np.empty(len(epsilons)), np.empty(len(epsilons)), 0.0
    value = bound = 0.0
    for j in range(len(epsilons) - 1, -1, -1):
        gap = epsilons[j + 1] - epsilons[j] if j + 1 < len(epsilons) else 0.0
        value = float(cells.excess[0, j + 1]) - above * math.expm1(-gap) + math.exp(-gap) * value
        bound = float(cells.error[0, j + 1]) + math.exp(-gap) * bound
        above += float(cells.p[0, j + 1])
        delta[j], error[j] = value, bound + 1e-13 * value
    return delta, error


def atoms_curve(losses, mass, epsilons):
    """δ(ε) of finitely many losses, ascending, at ascending `epsilons`."""
    points = np.concatenate([losses, epsilons])
    order = np.argsort(points, kind="stable")
    masses = np.concatenate([mass, np.zeros(len(epsilons))])[order]
    delta, value, above = np.empty(len(points)), 0.0, 0.0
    points = points[order]
    for j in range(len(points) - 1, -1, -1):
        gap = points[j + 1] - points[j] if j + 1 < len(points) else 0.0
        value = -above * math.expm1(-gap) + math.exp(-gap) * value
        above += masses[j]
        delta[order[j]] = value
    return delta[len(losses) :]


def where_to_look(rng, losses, step, pair):
    low, high = losses[0], losses[-1]
    points = rng.choice(losses, 300)
    ends = [float(side[0, 0]) for side in pair.quantiles(batch(1e-12), batch(1e-12))]
    return np.unique(
        np.concatenate(
            [
                rng.uniform(low - 5 * step, high + 5 * step, 900),
                points + step * rng.uniform(-1, 1, 300),
                points,
                *[end + step * rng.normal(size=100) * 3 for end in ends],
                -np.geomspace(1e-9, 50, 100),
                np.geomspace(1e-9, 50, 100),
                [0.0],
            ]
        )
    )


def order_faults(pair, step, rng, rows=(), fine=False):
    """What is not `lower` ⪯ exact ⪯ `upper` in a batch, whose rows are `rows` one by one, in words."""
    rows = rows or [pair]
    count = 10 ** rng.uniform(0, 7)  # tails as the accountant chooses them, for this many compositions and some δ
    low_tail, high_tail = 1e-12 / count, 1e-7 * 10 ** -rng.uniform(1, 30) / count
    full = np.ones((len(rows), 1))
    fineness = None
    if fine:
        levels = np.array([[0.1, 1e-2, 1e-4, 1e-6]]) * full
        low, high = (np.broadcast_to(side, levels.shape) for side in pair.quantiles(levels, levels))
        fineness = Fineness(low.min(axis=0), high.max(axis=0), 0.5 / 10 ** rng.uniform(-2, 2))
    both = sandwich(pair, step, low_tail=low_tail * full, high_tail=high_tail * full, fineness=fineness)
    for i, single in enumerate(rows):
        losses, lower, upper = both.upper.losses[i], both.lower.mass[i], both.upper.mass[i]
        if not ((lower >= 0).all() and (upper >= 0).all()):
            yield f"negative mass: {lower.min()}, {upper.min()}"
        epsilons = where_to_look(rng, losses, both.upper.step, single)
        exact, error = curve(single, epsilons)
        slack = error + 2e-15 + 2e-16 * len(losses) * exact  # the last of the sums in `atoms_curve`
        infinite = float(both.upper.infinite[i])
        for name, off in (
            ("lower", atoms_curve(both.lower.losses[i], lower, epsilons) - exact - slack),
            ("upper", exact - atoms_curve(losses, upper, epsilons) - infinite - slack),
        ):
            if not off.max() <= 0:
                worst = int(np.argmax(off))
                where = f"ε = {epsilons[worst]!r}, δ = {exact[worst]!r}, tails {low_tail}, {high_tail}"
                yield f"row {i}: {name} off by {off[worst]:.3e} at {where}"


def steps_of(pair, rng):
    """From far too coarse to fine."""
    low, high = (float(side[0, 0]) for side in pair.quantiles(batch(1e-9), batch(1e-9)))
    step = min(max(high - low, 1e-6) * 10 ** -rng.uniform(-0.7, 3), 100.0)
    spacing = pair.spacing()
    if spacing is None:
        return step
    # Where there are atoms at both ends a step divides their distance.
    return float(spacing[0, 0]) / max(round(float(spacing[0, 0]) / step), 1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fine", [False, True])
def test_both_lattice_measures_are_on_their_side(name, fine):
    rng = np.random.default_rng(1)
    for _ in range(12):
        pair = make(name, rng, wild=False)
        step = steps_of(pair, rng)
        assert not list(order_faults(pair, step, rng, fine=fine)), (pair, step)


def random_batch(rng):
    """Sampled Gaussians of very different width on one lattice."""
    size = int(rng.integers(2, 6))
    base = GaussianPair(np.array([[draw(rng, 1e-3, 5)] for _ in range(size)]))
    rates = np.array([[draw(rng, 1e-7, 0.999)] for _ in range(size)])
    kind = (SampledRemovePair, SampledAddPair, GaussianPair)[int(rng.integers(3))]
    pair = base if kind is GaussianPair else kind(base, rates)
    return pair, [row(pair, i) for i in range(size)]


@pytest.mark.parametrize("fine", [False, True])
def test_batches_share_a_lattice(fine):
    rng = np.random.default_rng(2)
    for _ in range(12):
        pair, rows = random_batch(rng)
        step = steps_of(rows[int(rng.integers(len(rows)))], rng)
        ends = pair.quantiles(batch(1e-9), batch(1e-9))
        step = max(step, float(np.max(ends[1] - ends[0])) / 1e4)
        assert not list(order_faults(pair, step, rng, rows, fine)), (pair, step)


@pytest.mark.parametrize("sign", [-1, 1])
def test_regrid_is_on_its_side(sign):
    """Few and many atoms beside the cells, even ones and uneven ones, masses of all sizes."""
    rng = np.random.default_rng(3)
    for _ in range(150):
        size = int(10 ** rng.uniform(0.1, 3.3))
        width = 10 ** rng.uniform(-4, 2)
        losses = np.sort(rng.uniform(0, width, size)) if rng.random() < 0.5 else np.linspace(0, width, size)
        losses = losses + width * rng.normal()
        mass = rng.random(size) * 10 ** -(rng.uniform(0, 12) * rng.random(size))
        if rng.random() < 0.3:
            mass[rng.random(size) < 0.7] = 0
            mass[0] = 1e-9
        mass = mass / mass.sum()
        step = min(width / 10 ** rng.uniform(-0.5, 3.5), 20.0)
        origin, moved = regrid(losses, mass, step, sign=sign)
        assert (moved >= 0).all()
        lattice = origin + step * np.arange(len(moved))
        epsilons = np.unique(np.concatenate([rng.uniform(lattice[0] - step, lattice[-1] + step, 400), rng.choice(losses, 200)]))
        difference = sign * (atoms_curve(lattice, moved, epsilons) - atoms_curve(losses, mass, epsilons))
        assert difference.min() >= -3e-15 - 4e-16 * size, (size, width, step)


@pytest.mark.parametrize(
    "base", [GaussianPair(batch(1.3)), LaplacePair(batch(0.8)), BoundedRangePair(batch(0.5)), atomic_pairs.pure(0.7)]
)
@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5, 0.999])
def test_both_directions_are_one_another_reversed(base, rate):
    """δ of (Q, P) at ε is 1 − e^ε + e^ε δ of (P, Q) at −ε."""
    epsilons = np.unique(np.random.default_rng(4).normal(size=60) * 0.7)
    remove, _ = curve(SampledRemovePair(base, batch(rate)), epsilons)
    add, _ = curve(SampledAddPair(base, batch(rate)), -epsilons[::-1])
    np.testing.assert_allclose(add[::-1], -np.expm1(-epsilons) + np.exp(-epsilons) * remove, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("kind", "scale"), [(LaplacePair, 800.0), (LaplacePair, 1e4), (BoundedRangePair, 1e4)])
def test_losses_beyond_the_range_of_floats(kind, scale):
    """e^{loss} overflows; the masses do not."""
    pair = kind(batch(scale))
    edges = np.array([[0.0, scale / 2, scale - 3.0, scale - 1e-3]])
    with mp.workdps(60):
        assert not [fault for fault in faults(pair, edges) if not fault.startswith("q")]


def test_a_lower_bound_over_a_range_on_which_e_to_the_loss_underflows():
    """With nothing at the lowest loss, and Q-masses of all others 0 beside it, no atom may move up."""
    losses, mass = np.array([0.0, 2000.0, 2000.5]), np.array([0.0, 0.5, 0.5])
    origin, moved = regrid(losses, mass, 0.3, sign=-1)
    epsilons = np.linspace(1990, 2001, 200)
    difference = atoms_curve(origin + 0.3 * np.arange(len(moved)), moved, epsilons) - atoms_curve(losses, mass, epsilons)
    assert difference.max() <= 1e-14


@pytest.mark.parametrize("rate", [1e-8, 5e-6])
def test_an_edge_beside_the_lowest_loss(rate):
    """log(1 − q) is known to 1e-16 of itself, not of 1."""
    pair = SampledRemovePair(GaussianPair(batch(4.0)), batch(rate))
    edges = np.log1p(-rate) * (1 - np.array([[1e-7, 1e-9, 1e-11, 0.0, -1e-9]]))[:, ::-1]
    with mp.workdps(60):
        assert not list(faults(pair, np.sort(edges)))
