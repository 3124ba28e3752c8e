r"""How likely each mechanism is to answer anything but its likely outcome, in natural logarithms.

The first of a histogram is the plurality's count, n*; Δ_j = n* − n_j ≥ 0.

* GNMax, noise N(0, σ²) on each count: P[j beats the plurality] = Φc(Δ_j/(√2 σ)), since the difference of two noises has the
  standard deviation √2 σ. The union bound q̃ = Σ_j Φc(Δ_j/(√2 σ)), at most 1 − 1/m (Papernot et al. 2018, Proposition 7).
* LNMax, Laplace noise of scale b on each count: P[j beats the plurality] = (2 + Δ_j/b) e^{−Δ_j/b}/4 (Papernot et al. 2017,
  Lemma 4), and the same union bound.
* Threshold, noise N(0, σ₁²) on one number v: answered with probability Φ((v − T)/σ₁). Both tails are computed on their own, as
  the complement of a tail that rounds to 1 is lost.

`worst=True` gives the largest of the same over all neighbours, one vote moved. All terms above are convex in the gap Δ ≥ 0,
so where Δ₂ ≥ 2 the worst move is from the plurality to its strongest rival, which has to come second; where Δ₂ < 2 a tie is
in reach and the cap is taken.

Logarithms, because q̃ is e^{−Δ²/4σ²} or so, which underflows for well-trained ensembles.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import special

Array = NDArray[np.float64]


def log_q_gnmax(histograms: Any, sigma: float, *, worst: bool = False) -> Array:
    """log q̃ of GNMax. `histograms` (…, m), the plurality first; `sigma` > 0 in votes. Returns (…)."""
    gaps, tie = _gaps(histograms, worst)
    return _capped_union(special.log_ndtr(-gaps / (math.sqrt(2) * sigma)), tie)


def log_q_lnmax(histograms: Any, scale: float, *, worst: bool = False) -> Array:
    """log q̃ of LNMax. `histograms` (…, m), the plurality first; `scale` > 0 in votes. Returns (…)."""
    gaps, tie = _gaps(histograms, worst)
    gaps = gaps / scale
    return _capped_union(np.log((2 + gaps) / 4) - gaps, tie)


def log_answer(value: Any, threshold: float, sigma: float) -> tuple[Array, Array]:
    """Logarithms of the probabilities that value + N(0, σ²) reaches the threshold, and that it doesn't. Shapes of `value`."""
    z = (np.asarray(value, np.float64) - threshold) / sigma
    return special.log_ndtr(z), special.log_ndtr(-z)


def log_unlikely(value: Any, threshold: float, sigma: float, *, worst: bool = False) -> Array:
    """log q of the threshold check, the less likely of its two outcomes. Shape of `value`."""
    distance = np.abs(np.asarray(value, np.float64) - threshold)
    return special.log_ndtr(-np.maximum(distance - worst, 0.0) / sigma)


def _gaps(histograms: Any, worst: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Δ₂, …, Δ_m, here or at the worst neighbour, (…, m − 1) float64; and where a tie is in reach of that, (…)."""
    counts = np.asarray(histograms, np.float64)
    gaps = counts[..., :1] - counts[..., 1:]
    if not worst:
        return gaps, np.zeros(gaps.shape[:-1], np.bool_)
    tie = gaps[..., 0] < 2
    gaps = gaps - 1
    gaps[..., 0] -= 1
    return np.maximum(gaps, 0.0), tie


def _capped_union(log_terms: Array, tie: NDArray[np.bool_]) -> Array:
    top = log_terms.max(axis=-1)
    total = top + np.log(np.exp(log_terms - top[..., None]).sum(axis=-1))
    cap = -math.log1p(1 / log_terms.shape[-1])  # log(1 − 1/m), m − 1 terms
    return np.where(tie, cap, np.minimum(total, cap))
