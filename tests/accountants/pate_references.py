"""PATE by definition: exact output distributions by quadrature, and neighbours by enumeration."""

import itertools

import numpy as np
from scipy.special import log_ndtr, logsumexp


def log_winners(histogram, sigma, points=2001):
    """log P[noisy plurality = j] under Gaussian noise. The trapezoidal rule converges exponentially here."""
    counts = np.asarray(histogram, float)
    x = np.linspace(counts.min() - 14 * sigma, counts.max() + 14 * sigma, points)
    z = (x[:, None] - counts) / sigma
    below = log_ndtr(z)
    log_p = logsumexp(-(z**2) / 2 + below.sum(axis=1, keepdims=True) - below, axis=0)
    return log_p - logsumexp(log_p)


def log_winners_laplace(histogram, scale, points=40001):
    """The same under Laplace noise; kinks of the density lie on nodes, as counts are whole."""
    counts = np.asarray(histogram, float)
    per_vote = max(int(points / (counts.max() - counts.min() + 80 * scale)), 20)
    low, high = np.floor(counts.min() - 40 * scale), np.ceil(counts.max() + 40 * scale)
    x = np.linspace(low, high, int(high - low) * per_vote + 1)
    z = (x[:, None] - counts) / scale
    below = np.where(z < 0, z - np.log(2), np.log1p(-np.exp(-np.abs(z)) / 2))
    log_p = logsumexp(-np.abs(z) + below.sum(axis=1, keepdims=True) - below, axis=0)
    return log_p - logsumexp(log_p)


def log_answers(value, threshold, sigma):
    z = (value - threshold) / sigma
    return np.array([log_ndtr(z), log_ndtr(-z)])


def divergence(log_p, log_q, orders):
    """Rényi divergences; what rounding can't tell from 0 is 0."""
    result = np.array([logsumexp(a * log_p + (1 - a) * log_q) / (a - 1) for a in orders])
    return np.where(result > 1e-11, result, 0.0)


def neighbours(histogram):
    """All histograms with one vote moved."""
    for i, j in itertools.permutations(range(len(histogram)), 2):
        if histogram[i] > 0:
            other = np.array(histogram)
            other[i] -= 1
            other[j] += 1
            yield other


def within(histogram, distance):
    """All histograms within `distance` moved votes, each once: {sorted tuple: least distance}."""
    seen = {tuple(sorted(histogram, reverse=True)): 0}
    edge = list(seen)
    for d in range(1, distance + 1):
        new = {tuple(sorted(map(int, n), reverse=True)) for h in edge for n in neighbours(h)} - set(seen)
        seen.update(dict.fromkeys(new, d))
        edge = list(new)
    return seen


def random_histogram(rng, most_classes=4, most_teachers=40):
    classes, teachers = rng.integers(2, most_classes + 1), rng.integers(2, most_teachers + 1)
    shares = rng.dirichlet(np.full(classes, rng.choice([0.1, 0.3, 1.0])))
    return np.sort(rng.multinomial(teachers, shares))[::-1]
