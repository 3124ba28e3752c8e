"""Speed of PATE's smooth sensitivity. `python -m benchmarks.pate_accounting [VOTES.npy]`.

Beside ours runs a plain loop: the paper's algorithm as it is written, one query and one order at a time, one vote moved at a
time, in Python with scalar special functions. Without a file of votes 8,500 histograms of 250 teachers are synthetic; so are
those of 5,000 teachers and 150 classes, always. The loop runs on a random sample of queries and its time is scaled up.
"""

import argparse
import math
import os
import platform
import time

import numpy as np
import scipy
from scipy.special import log_ndtr, ndtri_exp

import accountants
from accountants import pate

DELTA = 1e-5


def loop_log_q(votes: list[int], sigma: float) -> float:
    """log q̃ of one histogram, the plurality first."""
    terms = [float(log_ndtr((v - votes[0]) / (math.sqrt(2) * sigma))) for v in votes[1:]]
    top = max(terms)
    return min(top + math.log(sum(math.exp(t - top) for t in terms)), math.log(1 - 1 / len(votes)))


def loop_beta(log_q: float, log_q0: float, sigma: float, order: float) -> float:
    """Theorem 6 with Proposition 10 below q₀, the data-independent bound from there on."""
    if log_q >= log_q0:
        return order / sigma**2
    mu_2 = sigma * math.sqrt(-log_q)
    mu_1 = mu_2 + 1
    log_rest = math.log1p(-math.exp(log_q))
    log_a = log_rest - math.log1p(-math.exp((log_q + mu_2 / sigma**2) * (1 - 1 / mu_2)))
    log_b = mu_1 / sigma**2 - log_q / (mu_1 - 1)
    x, y = log_rest + (order - 1) * log_a, log_q + (order - 1) * log_b
    return (max(x, y) + math.log1p(math.exp(-abs(x - y)))) / (order - 1)


def loop_local_sensitivity(log_q: float, bound: pate.GnmaxBound) -> float:
    """Algorithm 3 for one q̃."""
    if bound.log_q1 <= log_q <= bound.log_q0:
        log_q = bound.log_q1
    share = math.log(bound.classes - 1)
    z = -float(ndtri_exp(min(log_q - share, -1e-300)))
    here, up, down = (
        loop_beta(q, bound.log_q0, bound.sigma, bound.order)
        for q in (
            log_q,
            min(share + float(log_ndtr(-(z - math.sqrt(2) / bound.sigma))), 0.0),
            share + float(log_ndtr(-(z + math.sqrt(2) / bound.sigma))),
        )
    )
    return max(up - here, here - down)


def loop_local_sensitivities(histogram: list[int], bound: pate.GnmaxBound, teachers: int) -> list[float]:
    """Algorithms 4 and 5 for one histogram, in descending order: LS_d for d = 0 … K."""
    votes = list(histogram)
    log_q = loop_log_q(votes, bound.sigma)
    plateau = loop_local_sensitivity(bound.log_q1, bound)
    result = [plateau if bound.log_q1 <= log_q <= bound.log_q0 else loop_local_sensitivity(log_q, bound)]
    below = log_q < bound.log_q1
    while len(result) <= teachers:
        if bound.log_q1 <= log_q <= bound.log_q0:
            result.append(plateau)
            continue
        if below:
            votes[0] -= 1
            votes[1] += 1
        elif votes[1] > 0:
            votes[0] += 1
            votes[1] -= 1
            votes[1:] = sorted(votes[1:], reverse=True)
        else:
            result.append(result[-1])
            continue
        log_q = loop_log_q(votes, bound.sigma)
        inside = bound.log_q1 <= log_q <= bound.log_q0
        result.append(plateau if inside else loop_local_sensitivity(log_q, bound))
    return result


def loop_smooth_sensitivity(histograms: list[list[int]], bound: pate.GnmaxBound, teachers: int, beta: float) -> float:
    total = [0.0] * (teachers + 1)
    for histogram in histograms:
        for d, value in enumerate(loop_local_sensitivities(histogram, bound, teachers)):
            total[d] += value
    return max(math.exp(-beta * d) * value for d, value in enumerate(total))


def our_smooth_sensitivity(votes: pate.Votes, bound: pate.GnmaxBound, beta: float) -> float:
    curve = pate.gnmax_local_sensitivities(votes.distinct, bound)
    sums = (float(votes.multiplicity @ values) for values in curve)
    return pate.smooth_sensitivity(sums, bound.plateau * len(votes), beta, votes.teachers)[0]


def synthetic(queries: int, teachers: int, classes: int, seed: int = 0) -> pate.Votes:
    """Teachers who agree to a varying degree: the plurality's share is uniform in [0.3, 1], the rest a Dirichlet draw."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes - 1, 0.1), queries)
    top = rng.uniform(0.3, 1.0, queries)[:, None]
    return pate.Votes(rng.multinomial(teachers, np.concatenate([top, (1 - top) * shares], axis=1)))


def row(name: str, votes: pate.Votes, sigma: float, order: float, sample: int) -> str:
    bound = pate.GnmaxBound.of(sigma, order, votes.classes)
    beta = 0.4 / order
    times, value = [], 0.0
    for _ in range(3):
        start = time.process_time()
        value = our_smooth_sensitivity(votes, bound, beta)
        times.append(time.process_time() - start)
    ours = sorted(times)[1]
    chosen = np.random.default_rng(0).choice(len(votes), min(sample, len(votes)), replace=False)
    part = pate.Votes(votes.counts[chosen], votes.teachers)
    start = time.process_time()
    reference = loop_smooth_sensitivity(
        [votes.distinct[votes.inverse[i]].tolist() for i in chosen], bound, votes.teachers, beta
    )
    loop = (time.process_time() - start) / len(chosen) * len(votes)
    difference = abs(our_smooth_sensitivity(part, bound, beta) / reference - 1)
    return (
        f"| {name} | {len(votes):,} ({len(votes.distinct):,} distinct) | {sigma:g} | {order:g} | {ours:.3g} | {loop:.4g} "
        f"({len(chosen):,} run) | {loop / ours:.0f} | {difference:.1e} | {value:.6g} |"
    )


def figure(votes: pate.Votes, threshold: float, sigma_threshold: float, sigma_votes: float) -> str:
    """Seconds of the whole component figure: analysis, cumulative ε, conditions, sanitised ε."""
    answered = np.random.default_rng(1).random(len(votes)) < 0.5
    run = {"threshold": threshold, "sigma_threshold": sigma_threshold, "sigma_votes": sigma_votes, "delta": DELTA}
    start = time.process_time()
    result = pate.analyse(votes, **run, answered=answered)
    middle = time.process_time()
    sanitised = pate.sanitise(votes, **run, answered=answered)
    end = time.process_time()
    return (
        f"{len(votes):,} queries, {votes.teachers:,} teachers, {votes.classes} classes: analysis {middle - start:.3g} s "
        f"(ε {result.data_dependent.epsilon:.4g}, data-independent {result.data_independent.epsilon:.4g}), "
        f"sanitised ε {end - middle:.3g} s (order {sanitised.order:g})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("votes", nargs="?", metavar="VOTES.npy", help="of which the first 8,500 queries are taken")
    args = parser.parse_args()
    small = pate.read_votes(args.votes).first(8500) if args.votes else synthetic(8500, 250, 10)
    large = synthetic(8500, 5000, 150)
    load = os.getloadavg()[0]
    print("# `python -m benchmarks.pate_accounting" + (" mnist_250_teachers.npy" if args.votes else "") + "`\n")
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {load:.1f} at the start; Python {platform.python_version()};")
    print(f"accountants {accountants.__version__}, numpy {np.__version__}, scipy {scipy.__version__}. Processor seconds.\n")
    print("Smooth sensitivity of GNMax, one order, β = 0.4/α:\n")
    print("| votes | queries | σ | α | ours, s | loop, s | ratio | loop and ours differ by | SS |")
    print("|---|---|---|---|---|---|---|---|---|")
    name = "recorded, 250 teachers" if args.votes else "synthetic, 250 teachers"
    for order in (8.0, 14.0, 20.0):
        print(row(name, small, 40.0, order, 400))
    print(row("synthetic, 5,000 teachers, 150 classes", large, 100.0, 20.0, 8))
    print("\nThe whole figure (divergences at all orders, ε after each query, sanitised ε):\n")
    print("* " + figure(small, 200, 150, 40))
    print("* " + figure(large, 3500, 1500, 100))


if __name__ == "__main__":
    main()
