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


def pure_power_delta(epsilon0, count, epsilon):
    """δ(ε) of `count` runs of randomised response with parameter ε₀: the largest terms of a binomial sum."""
    e0, e = mp.mpf(epsilon0), mp.mpf(epsilon)
    least = int(mp.floor((e / e0 + count) / 2)) + 1  # so many losses of +ε₀ at least
    least = max(least, 0)
    if least > count:
        return mp.mpf(0)
    high, ratio = 1 / (1 + mp.exp(-e0)), mp.exp(e0)

    def term(k):
        return mp.exp(
            mp.loggamma(count + 1)
            - mp.loggamma(k + 1)
            - mp.loggamma(count - k + 1)
            + k * mp.log(high)
            + (count - k) * mp.log(1 - high)
        )

    mode = min(max(least, int(count * high)), count)
    total = mp.mpf(0)
    for start, direction in ((mode, 1), (mode - 1, -1)):
        k, value = start, term(start) if least <= start <= count else mp.mpf(0)
        while least <= k <= count:
            total += value * -mp.expm1(e - (2 * k - count) * e0)
            if value < total * mp.mpf(10) ** -30 and direction * (k - mode) > 3:
                break
            value *= ratio * (count - k) / (k + 1) if direction > 0 else k / (ratio * (count - k + 1))
            k += direction
    return total


def laplace_power_delta(kappa, count, epsilon):
    """δ(ε) of `count` Laplace mechanisms: losses of κ, of −κ, and between them e^{y/2} times a sum of uniform ones."""
    k, e, total = mp.mpf(kappa), mp.mpf(epsilon), mp.mpf(0)
    for low in range(count + 1):
        for inside in range(count - low + 1):
            high = count - low - inside
            ways = mp.factorial(count) / (mp.factorial(low) * mp.factorial(inside) * mp.factorial(high))
            weight = ways * (mp.exp(-k) / 2) ** low * mp.mpf(0.5) ** high
            shift = (high - low) * k
            if inside == 0:
                total += weight * max(-mp.expm1(e - shift), 0)
                continue
            # Density of one: ¼ e^{(y − κ)/2} on (−κ, κ); of m: (½ κ e^{−κ/2})^m e^{y/2} times that of m uniform ones.
            scale = (k / 2 * mp.exp(-k / 2)) ** inside

            def density(y, m=inside):
                x = (y / k + m) / 2
                spline = sum((-1) ** j * mp.binomial(m, j) * max(x - j, 0) ** (m - 1) for j in range(int(mp.floor(x)) + 1))
                return mp.exp(y / 2) * spline / mp.factorial(m - 1) / (2 * k)

            knots = [-inside * k + 2 * k * j for j in range(inside + 1)]
            begin = min(max(e - shift, knots[0]), knots[-1])
            knots = [begin, *[x for x in knots if x > begin]]
            if len(knots) > 1:
                total += weight * scale * mp.quad(lambda y: density(y) * -mp.expm1(e - shift - y), knots)
    return total


def atoms_power(losses, mass, count):
    """Losses and masses of `count` runs on an even lattice, by direct convolution: all terms positive, good to 1e-13."""
    gap = (losses[-1] - losses[0]) / (len(losses) - 1)
    result, square, n = np.ones(1), np.asarray(mass, dtype=float), count
    while n:
        if n & 1:
            result = np.convolve(result, square)
        square = np.convolve(square, square) if n > 1 else square
        n >>= 1
    return count * losses[0] + gap * np.arange(len(result)), result


def strongly_sampled_gaussian_delta(q, sigma, count, epsilon):
    """Removing, with so little noise that each loss is either log(1 − q) or log q + N(μ²/2, μ²), but for e^{−μ²/2}."""
    q, mu, e, total = mp.mpf(q), 1 / mp.mpf(sigma), mp.mpf(epsilon), mp.mpf(0)
    for j in range(count + 1):
        weight = mp.binomial(count, j) * q**j * (1 - q) ** (count - j)
        fixed = j * mp.log(q) + (count - j) * mp.log(1 - q)
        if j == 0:
            total += weight * max(-mp.expm1(e - fixed), 0)
            continue
        mean, deviation = fixed + j * mu**2 / 2, mu * mp.sqrt(j)
        at = (mean - e) / deviation
        total += weight * (mp.ncdf(at) - mp.exp(e - mean + deviation**2 / 2) * mp.ncdf(at - deviation))
    return total
