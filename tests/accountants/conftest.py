"""Reference values by high-precision arithmetic, and recorded votes."""

from pathlib import Path

import mpmath as mp
import pytest

from accountants.pate import Votes, read_votes


def exact_sampled_gaussian(order: float, sigma: float, q: float) -> mp.mpf:
    """D_α of the Poisson-sampled Gaussian by 40-digit quadrature of its definition, split at every peak."""
    with mp.workdps(40):
        a, s, q = mp.mpf(order), mp.mpf(sigma), mp.mpf(q)

        def integrand(t: mp.mpf) -> mp.mpf:
            u = q * mp.expm1((t - 1 / (2 * s)) / s)
            return mp.npdf(t) * ((1 + u) ** a - 1 - a * u)

        peak = a / s
        cuts = sorted({mp.mpf(d) for d in (-30, -10, -3, 0, 3, 10)} | {peak + d for d in (-10, -3, 0, 3, 10, 30)})
        return mp.log1p(mp.quad(integrand, cuts, maxdegree=10)) / (a - 1)


def exact_laplace(order: float, scale: float, q: float = 1.0) -> mp.mpf:
    """The larger D_α of the Poisson-sampled Laplace mechanism, by quadrature of its definition."""
    with mp.workdps(40):
        a, b, q = mp.mpf(order), mp.mpf(scale), mp.mpf(q)
        base = lambda x: mp.exp(-abs(x) / b) / (2 * b)
        mixture = lambda x: (1 - q) * base(x) + q * base(x - 1)
        cuts = [mp.mpf(-90) * b, 0, mp.mpf(1) / 4, mp.mpf(1) / 2, 1, 1 + 90 * b]
        both = [
            mp.quad(lambda x: p(x) ** a * r(x) ** (1 - a), cuts, maxdegree=9) for p, r in ((mixture, base), (base, mixture))
        ]
        return mp.log(max(both)) / (a - 1)


@pytest.fixture(scope="session")
def mnist_votes_file(data_dir: str) -> Path:
    """Recorded votes of 250 MNIST teachers, 9,000 queries."""
    path = Path(data_dir) / "pate" / "mnist_250_teachers.npy"
    if not path.is_file():
        pytest.skip(f"no recorded votes: {path} is missing")
    return path


@pytest.fixture(scope="session")
def mnist_votes(mnist_votes_file: Path) -> Votes:
    return read_votes(mnist_votes_file)
