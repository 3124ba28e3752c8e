"""PATE's bounds where double precision can't follow the exact divergence, and smooth sensitivity of random runs by brute force.

Of two classes all outcomes are known in closed form, so exact divergences are computed with hundreds of digits: for two to
5,000 teachers, noise from 1 to 10,000 votes, orders up to 512.
"""

import itertools
import math

import mpmath
import numpy as np
import pytest

from accountants import pate
from tests.accountants.pate_references import neighbours, within

ORDERS = [1.1, 2.0, 8.0, 64.0, 512.0]


def tail(x):
    """Φc(x)."""
    return mpmath.erfc(x / mpmath.sqrt(2)) / 2


def gaussian_winners(gap, sigma):
    lost = tail(mpmath.mpf(gap) / (mpmath.sqrt(2) * sigma))
    return 1 - lost, lost


def laplace_winners(gap, scale):
    x = mpmath.mpf(abs(gap)) / scale
    lost = (2 + x) * mpmath.exp(-x) / 4
    return (1 - lost, lost) if gap >= 0 else (lost, 1 - lost)


def checked(value, limit, sigma):
    lost = tail((mpmath.mpf(value) - limit) / sigma)
    return 1 - lost, lost


def divergences(p, q):
    """D_α(p ‖ q) at ORDERS."""
    return np.array(
        [
            float(mpmath.log(sum(a**o * b ** (1 - o) for a, b in zip(p, q, strict=True))) / (o - 1))
            for o in map(mpmath.mpf, ORDERS)
        ]
    )


def digits(gap, distance, sigma):
    """That 1 minus the smallest probability needs."""
    exponents = (gap / (2 * sigma)) ** 2, gap / sigma, distance**2 / (2 * sigma**2)
    return int(50 + max(exponents) / 2.0)


def never_below_exact(count, seed):
    rng, done = np.random.default_rng(seed), 0
    while done < count:
        teachers, sigma = int(math.exp(rng.uniform(math.log(2), math.log(5000)))), math.exp(rng.uniform(0, math.log(1e4)))
        top, limit = int(rng.integers((teachers + 1) // 2, teachers + 1)), float(rng.uniform(0, teachers))
        gap = 2 * top - teachers
        if (precision := digits(gap + 2, abs(top - limit) + 1, sigma)) > 600:
            continue
        done += 1
        votes = np.array([[top, teachers - top]])
        mechanisms = [
            (gaussian_winners, gap, (gap - 2, gap + 2), (sigma,), lambda both: pate.gnmax(votes, sigma, ORDERS, both=both)),
            (laplace_winners, gap, (gap - 2, gap + 2), (sigma,), lambda both: pate.lnmax(votes, sigma, ORDERS, both=both)),
            (
                checked,
                top,
                (top - 1, top - 0.5, top + 1),
                (limit, sigma),
                lambda both: pate.threshold([top], limit, sigma, ORDERS, both=both),
            ),
        ]
        with mpmath.workdps(precision):
            for outcomes, here, others, noise, bound in mechanisms:
                one_way, both = bound(False)[0], bound(True)[0]
                p = outcomes(here, *noise)
                for other in others:
                    if outcomes is not checked and abs(other) > teachers:
                        continue
                    q = outcomes(other, *noise)
                    case = outcomes.__name__, teachers, top, sigma, other
                    assert (divergences(p, q) <= one_way * (1 + 1e-9)).all(), case
                    assert (divergences(q, p) <= both * (1 + 1e-9)).all(), case


def test_never_below_the_exact_divergence_of_two_classes():
    never_below_exact(25, 0)


@pytest.mark.slow
def test_never_below_the_exact_divergence_of_two_classes_hundreds():
    never_below_exact(600, 1)


def smooth_sensitivity_by_definition(queries, answered, cost, beta, teachers):
    """max over all runs d moved votes away, each query on its own, of e^{−βd} times what one more move changes at most."""
    near = [within(query, teachers) for query in queries]
    change = {
        (h, a): max(abs(cost(other, a) - cost(h, a)) for other in neighbours(h))
        for h in near[0]
        for a in set(answered.tolist())
    }
    reach = lambda i, d: max(change[h, bool(answered[i])] for h, at in near[i].items() if at <= d)
    return max(math.exp(-beta * d) * sum(reach(i, d) for i in range(len(queries))) for d in range(teachers + 1))


def never_below_brute_force(count, seed):
    rng, done = np.random.default_rng(seed), 0
    while done < count:
        classes = int(rng.integers(2, 5))
        teachers = int(rng.integers(2, {2: 20, 3: 11, 4: 8}[classes]))
        sigma, order = math.exp(rng.uniform(math.log(0.7), math.log(6))), float(rng.choice([1.5, 2, 3, 5, 8, 12]))
        bound = pate.GnmaxBound.of(sigma, order, classes)
        if not all(bound.conditions(teachers)):
            continue
        done += 1
        limit, spread, beta = rng.uniform(0, teachers), sigma * rng.uniform(0.7, 3), rng.uniform(0.05, 0.45) / order
        votes = list(within([teachers] + [0] * (classes - 1), teachers))
        queries, answered = [votes[rng.integers(len(votes))] for _ in range(3)], rng.random(3) < 0.6

        def cost(h, answered, sigma=sigma, limit=limit, spread=spread, order=order, bound=bound):
            check = float(pate.threshold([max(h)], limit, spread, [order])[0, 0])
            return check + answered * float(bound.beta(pate.log_q_gnmax(np.sort(h)[::-1], sigma)))

        ours = pate.sanitise(
            pate.Votes(np.array(queries)), sigma_votes=sigma, delta=1e-5, threshold=limit, sigma_threshold=spread,
            answered=answered, order=order, beta=beta, sigma_ss=3.0,
        )  # fmt: skip
        assert ours.divergence == pytest.approx(sum(map(cost, queries, answered.tolist())), rel=1e-9)
        exact = smooth_sensitivity_by_definition(queries, answered, cost, beta, teachers)
        assert ours.smooth_sensitivity >= exact * (1 - 1e-9), (queries, answered, sigma, order, beta)


def test_smooth_sensitivity_of_a_run_is_never_below_brute_force():
    never_below_brute_force(12, 0)


@pytest.mark.slow
def test_smooth_sensitivity_of_a_run_is_never_below_brute_force_hundreds():
    never_below_brute_force(400, 1)


def test_bounds_of_many_classes_do_not_depend_on_empty_ones_much():
    """150 classes of which 148 have no vote cost hardly more than two: the union bound's terms vanish."""
    two, many = np.array([[4000, 1000]]), np.array([[4000, 1000] + [0] * 148])
    for sigma, order in itertools.product([50.0, 500.0], [2.0, 32.0]):
        few, all_ = (pate.gnmax(v, sigma, [order])[0, 0] for v in (two, many))
        assert few <= all_ * (1 + 1e-12)
    assert pate.gnmax(many, 50.0, [2.0])[0, 0] == pytest.approx(pate.gnmax(two, 50.0, [2.0])[0, 0], rel=1e-6)
