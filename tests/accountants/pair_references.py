"""The tails of dominating pairs by high-precision arithmetic, from the definitions of their mechanisms."""

import dataclasses

import mpmath as mp
import numpy as np

from accountants import atomic_pairs, mixture_pairs, pairs, sampled_pairs


def exact_tails(pair):
    """(P[L > y], Q[L > y]) of a batch of one dominating pair as a function of y, from the definition of its mechanism."""
    number = lambda field: mp.mpf(float(field[0, 0]))
    inf = mp.inf
    match pair:
        case pairs.GaussianPair():
            mu = number(pair.mu)
            return lambda y: (mp.ncdf(mu / 2 - y / mu), mp.ncdf(-mu / 2 - y / mu))
        case pairs.LaplacePair():
            k = number(pair.kappa)

            def laplace(y):
                if y < -k:
                    return mp.mpf(1), mp.mpf(1)
                if y >= k:
                    return mp.mpf(0), mp.mpf(0)
                return 1 - mp.exp((y - k) / 2) / 2, mp.exp(-(y + k) / 2) / 2

            return laplace
        case pairs.BoundedRangePair():
            eta = number(pair.eta)

            def bounded_range(y):
                y = min(max(y, -eta), eta)
                # δ(ε) = (e^{η/2} − e^{ε/2})²/(e^η − 1) and Q[L > ε] = −dδ/dγ, γ = e^ε
                q = (mp.exp((eta - y) / 2) - 1) / mp.expm1(eta)
                return (mp.exp(eta / 2) - mp.exp(y / 2)) ** 2 / mp.expm1(eta) + mp.exp(y) * q, q

            return bounded_range
        case sampled_pairs.SampledRemovePair():
            base, r = exact_tails(pair.base), number(pair.rate)

            def remove(y):
                ratio = (mp.exp(y) - 1 + r) / r
                if ratio < 0:
                    return mp.mpf(1), mp.mpf(1)
                p, q = base(mp.log(ratio) if ratio > 0 else -inf)
                return (1 - r) * q + r * p, q

            return remove
        case sampled_pairs.SampledAddPair():
            base, r = exact_tails(pair.base), number(pair.rate)

            def add(y):
                ratio = (mp.exp(-y) - 1 + r) / r
                if ratio <= 0:
                    return mp.mpf(0), mp.mpf(0)
                p, q = base(-mp.log(ratio))
                return p, (1 - r) * p + r * q

            return add
        case sampled_pairs.ReplacePair():
            remove, add = exact_tails(pair.remove), exact_tails(pair.add)

            def replace(y):
                if y >= 0:
                    return remove(y)
                return add(y)  # what lies below y < 0 is `add`'s, and both sum to 1

            return replace
        case sampled_pairs.RevealedPair():
            parts = [exact_tails(row(pair.pairs, i)) for i in range(len(pair.weights))]
            weights = [mp.mpf(float(w)) for w in pair.weights]

            def revealed(y):
                both = [part(y) for part in parts]
                return tuple(mp.fsum(w * b[i] for w, b in zip(weights, both, strict=True)) for i in (0, 1))

            return revealed
        case mixture_pairs.MixturePair():
            means = [mp.mpf(float(m)) for m in pair.means]
            weights = [mp.mpf(float(w)) for w in pair.weights]

            def mixture(y):
                loss = y if pair.remove else -y
                if mp.isinf(loss):
                    x = loss
                else:
                    f = lambda x: (
                        mp.log(mp.fsum(w * mp.exp(m * x - m * m / 2) for w, m in zip(weights, means, strict=True))) - loss
                    )
                    low, high = mp.mpf(-2), mp.mpf(2)
                    floor = mp.fsum(w for w, m in zip(weights, means, strict=True) if m == 0)
                    if floor > 0 and loss <= mp.log(floor):
                        x = -inf
                    else:
                        while f(low) > 0:
                            low *= 2
                        while f(high) < 0:
                            high *= 2
                        for _ in range(4 * mp.mp.dps):
                            middle = (low + high) / 2
                            low, high = (middle, high) if f(middle) < 0 else (low, middle)
                        x = (low + high) / 2
                above = lambda m: mp.ncdf(m - x) if pair.remove else mp.ncdf(x - m)
                p, q = mp.fsum(w * above(m) for w, m in zip(weights, means, strict=True)), above(mp.mpf(0))
                return (p, q) if pair.remove else (q, p)

            return mixture
        case atomic_pairs.AtomicPair():
            losses = [mp.mpf(float(pair.first)) + i * mp.mpf(float(pair.gap)) for i in range(len(pair.mass))]
            masses = [mp.mpf(float(m)) for m in pair.mass]

            def atomic(y):
                kept = [(m, loss) for m, loss in zip(masses, losses, strict=True) if loss > y]
                return mp.fsum(m for m, _ in kept), mp.fsum(m * mp.exp(-loss) for m, loss in kept)

            return atomic
    raise NotImplementedError(type(pair))


def row(pair, i):
    """The i-th pair of a batch."""
    values = {}
    for field in dataclasses.fields(pair):
        value = getattr(pair, field.name)
        values[field.name] = value[i : i + 1] if isinstance(value, np.ndarray) and len(value) > 1 else value
        if dataclasses.is_dataclass(value):
            values[field.name] = row(value, i)
    return type(pair)(**values)
