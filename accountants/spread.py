r"""A lower bound from an upper one, where finitely many losses lie on no lattice.

Let a measure's atoms be split between the lattice points next to them so that P- and Q-mass are kept. Given an outcome of the
T-fold composition, with likelihood ratio L, the composed lattice measure has the ratio LZ, where Z = η₁ ⋯ η_T is independent
noise: E_Q[η] = 1, and log η lies in an interval as long as the step. So for γ = e^ε

    δ_lattice(ε) = E_Q[(LZ − γ)₊] = δ(ε) + E_P[v(ε − log L)],   v(x) = E[(Z − e^x)₊] − (1 − e^x)₊ ≥ 0,

the time value of an option. Each η is the likelihood ratio of two distributions of bounded range, hence ρ-zCDP with
ρ = step²/8 (Dong, Durfee, Rogers 2020; Cesar, Rogers 2021): E[Z^α] ≤ e^{α(α − 1)ρ} for α outside of (0, 1), with ρ summed up.
From it, with the call at x ≥ 0 and, as E[Z] = 1, the put at x < 0,

* v(x) ≤ ½(√(s² + d²) − d), s² = e^{2ρ} − 1 ≥ Var Z, d = 1 − e^{−|x|} (Scarf 1958);
* v(x) ≤ e^{(α − 1)(αρ − |x|)} (1 − 1/α)^{α − 1}/α for α > 1 (zCDP to (ε, δ); Canonne, Kamath, Steinke 2020, Proposition 7).

Both fall with |x|: V(|x|), the smaller. It is the composed lattice measure that is known, log L is not. But log LZ is further
than `reach` from log L with a probability of at most κ under P, whatever the outcome, by Chernoff's bound. So

    E_P[V(|ε − log L|)] ≤ E_lattice[V((|ε − log LZ| − reach)₊)]/(1 − κ).

That is of the order of ρ = T · step²/8: second order, where a measure on the lattice that lies below each atom is off by the
step itself.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

KAPPA = 0.1
"""κ, see above: any is valid; this one makes the bound about as narrow as it gets."""

_WORTHLESS = 1.0  # ρ
_NOTHING = 700.0  # e to the minus of it


def reach(rho: float) -> float:
    """How far log Z is from 0, but for a probability of κ."""
    return rho + math.sqrt(4 * rho * math.log(2 / KAPPA))


def extent(rho: float) -> float:
    """How far from ε losses matter at all."""
    return reach(rho) + math.sqrt(4 * rho * _NOTHING) + rho


def worthless(rho: float) -> bool:
    """Whether no bound is to be had."""
    return not rho < _WORTHLESS


def time_value(distance: Array, rho: float) -> Array:
    """V: at least the time value where log L and ε are `distance` ≥ 0 apart."""
    d, variance = -np.expm1(-distance), math.expm1(2 * rho)
    scarf = 0.5 * variance / (np.sqrt(variance + d * d) + d)
    order = np.maximum(0.5 + distance / (2 * rho), 1 + 1e-9)
    with np.errstate(under="ignore"):
        exponent = (order - 1) * (order * rho - distance + np.log1p(-1 / order)) - np.log(order)
        return np.minimum(scarf, np.exp(exponent)) * (1 + 1e-12)


def lost(offsets: Array, rho: float) -> Array:
    """What a lattice point counts for in the bound of E_P[V], by how far from ε it lies, on either side."""
    return time_value(np.maximum(np.abs(offsets) - reach(rho), 0.0), rho) / (1 - KAPPA)
