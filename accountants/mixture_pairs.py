r"""Dominating pairs of mixtures of Gaussians: P = Σ wᵢ N(μᵢ, 1) with μᵢ ≥ 0 against Q = N(0, 1), in both directions.

The loss L(x) = log Σ wᵢ e^{μᵢx − μᵢ²/2} increases in x, so intervals of losses are intervals of x.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from accountants import special
from accountants.pairs import ROUND, SQRT_HALF, Alone, Cells, normal_masses

Array = NDArray[np.float64]

_FAR = 1e3  # standard deviations: further than any mass


@dataclasses.dataclass(frozen=True, eq=False)
class MixturePair(Alone):
    """A batch of one.

    Attributes:
      means: (m,), ≥ 0, in standard deviations.
      weights: (m,), > 0; they sum to 1.
      remove: (P, Q) if true, (Q, P) if false.
    """

    means: Array
    weights: Array
    remove: bool

    def cells(self, edges: Array) -> Cells:
        loss = edges[0] if self.remove else -edges[0, ::-1]
        x = self._inverse(loss)[None]
        parts = [normal_masses(x - mean) for mean in self.means]
        mixed = self.weights @ np.concatenate([mass for mass, _ in parts])
        error = self.weights @ np.concatenate([error for _, error in parts])
        base, base_error = (part[0] for part in normal_masses(x))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if self.remove:
                # eᵃ Q[x > x_a] is the mixture's density times the normal Mills ratio, which doesn't overflow.
                z = x[0]
                density = self.weights @ np.exp(-0.5 * (z - self.means[:, None]) ** 2)
                scaled = density * 0.5 * special.erfcx(np.maximum(z, 0.0) * SQRT_HALF)
                above = scaled - np.append(scaled[1:] * np.exp(-np.diff(loss)), 0.0)
                below = np.exp(np.minimum(loss, 700.0)) * base[1:]
                weighted = np.where(z > 0, above, below)
                spread = ROUND * (8 + z * z) * np.where(z > 0, scaled, 0.0)
                p, q = mixed, base
            else:
                p, q, error = base[::-1], mixed[::-1], base_error[::-1]
                weighted = np.exp(np.minimum(edges[0], 700.0)) * q[1:]
                # Beyond 700 the product is not known: the whole mass is its error.
                spread = np.where(edges[0] > 700.0, p[1:], 8 * ROUND * np.exp(np.minimum(edges[0], 0.0)))
            excess = np.concatenate([p[:1], np.clip(p[1:] - weighted, 0.0, p[1:])])
            error = error + np.concatenate([[0.0], spread])
        return Cells(p[None], q[None], excess[None], error[None])

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        smallest, largest = self.means.min(), self.means.max()
        if self.remove:
            return self._loss(special.ndtri(low) + smallest), self._loss(largest - special.ndtri(high))
        return -self._loss(-special.ndtri(low)), -self._loss(special.ndtri(high))

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        smallest, largest = self.means.min(), self.means.max()
        if self.remove:
            return self._loss(special.ndtri(low)), self._loss(-special.ndtri(high))
        return -self._loss(largest - special.ndtri(low)), -self._loss(special.ndtri(high) + smallest)

    def _loss(self, x: Array) -> Array:
        mu = self.means.reshape(-1, *([1] * np.ndim(x)))
        weights = self.weights.reshape(mu.shape)
        return np.asarray(special.logsumexp(mu * x - mu**2 / 2, axis=0, b=weights))

    def _inverse(self, loss: Array) -> Array:
        """x with L(x) = loss, (n,), by bisection; far outside where there is none within 45 of the means."""
        low = np.full_like(loss, -45.0)
        high = np.full_like(loss, 45.0 + self.means.max())
        below, above = self._loss(low) >= loss, self._loss(high) <= loss
        for _ in range(64):
            middle = 0.5 * (low + high)
            left = self._loss(middle) < loss
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        return np.where(below, -_FAR, np.where(above, _FAR, 0.5 * (low + high)))
