"""The cost of PATE's answers whatever the votes: from public parameters and from what was answered. Publishable."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants.errors import LedgerError
from accountants.orders import DEFAULT_ORDERS
from accountants.pate import rdp
from accountants.pate.analysis import Split, cumulative_epsilon, exact_epsilon, split

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Independent:
    """Costs of N queries, in order of asking.

    Attributes:
      answered: (N,) of bool.
      total: ε and its parts, by the Rényi accountant.
      exact: ε by Gaussian DP, which is less; None for Laplace noise.
      check, plurality: Rényi divergence of one of each at `total.order`.
      cumulative: (N,) ε after each query, by the Rényi accountant.
    """

    answered: NDArray[np.bool_]
    total: Split
    exact: float | None
    check: float
    plurality: float
    cumulative: Array


def independent(answered: Sequence[bool], voting: Mapping[str, Any], delta: float) -> Independent:
    """The costs.

    Args:
      answered: by query, at least one.
      voting: as a ledger's header holds it.
      delta: of every ε.

    Raises:
      LedgerError: `voting` is not such an object.
    """
    alpha, flags = np.asarray(DEFAULT_ORDERS), np.asarray(answered, bool)
    try:
        sigma_votes, sigma_check = voting["sigma_votes"], voting["sigma_threshold"]
        laplace = voting["mechanism"] == "lnmax"
        checks = voting["threshold"] is not None and sigma_check is not None
        plurality = (rdp.lnmax_independent if laplace else rdp.gnmax_independent)(sigma_votes, alpha)
        check = rdp.threshold_independent(sigma_check, alpha) if checks else np.zeros(len(alpha))
    except (KeyError, TypeError) as error:
        raise LedgerError(f"the ledger's header does not describe the voting ({type(error).__name__}: {error})") from None
    total = split(alpha, len(flags) * check, flags.sum() * plurality, delta, "tight")
    at = int(np.argmin(np.abs(alpha - total.order)))
    return Independent(
        answered=flags,
        total=total,
        exact=None
        if laplace
        else exact_epsilon(len(flags), float(flags.sum()), sigma_check if checks else None, sigma_votes, delta),
        check=float(check[at]),
        plurality=float(plurality[at]),
        cumulative=cumulative_epsilon(alpha, lambda i: check + flags[i, None] * plurality, len(flags), delta, "tight"),
    )


def differing(figures: Mapping[str, Any], found: Independent) -> list[str]:
    """Names of figures in a privacy.json (see `replay.figures`) that don't follow from public facts, or from one another.

    What depends on the votes is only checked for adding up: `replay` derives it from the votes themselves.
    """
    near = lambda a, b: np.allclose(np.asarray(a, float), b, rtol=1e-6, atol=1e-12)  # noqa: E731
    total = found.total
    expected = {
        "order_independent": total.order,
        "epsilon_independent": total.epsilon,
        "threshold_total_independent": total.threshold,
        "argmax_total_independent": total.argmax,
        "conversion_independent": total.conversion,
        "cumulative_independent": found.cumulative,
        "threshold_total": sum(figures["threshold"]),
        "argmax_total": sum(figures["argmax"]),
        "epsilon": figures["threshold_total"] + figures["argmax_total"] + figures["conversion"],
    }
    wrong = [
        name for name, value in expected.items() if np.shape(figures[name]) != np.shape(value) or not near(figures[name], value)
    ]
    if found.exact is not None and not near(figures["epsilon_exact_independent"], found.exact):
        wrong.append("epsilon_exact_independent")
    if not near(figures["cumulative"][-1], figures["epsilon"]):
        wrong.append("cumulative")
    return wrong
