"""What may be stated of answers whose number depends on the votes."""

import math

from accountants import DpEvent, SelfComposedDpEvent, epsilon, gaussian_ceiling
from marauder_dp.pate.voting import VotingPlan


def promise(voting: VotingPlan, queries: int, *, epsilon_ceiling: float, delta: float) -> DpEvent | None:
    """What a run amounts to at most, known before its first query.

    Which queries pass the check depends on the votes, so what was charged in the end is a reading, not a guarantee. Two things
    are fixed beforehand: no more than all queries are answered, and the ceiling, which as all events are Gaussian is one
    Gaussian mechanism (`accountants.gaussian_ceiling`). It is the cheaper of these.

    Args:
      voting: the plan.
      queries: the most that are asked.
      epsilon_ceiling: infinite where there is none.
      delta: at which it is meant.

    Returns:
      An event; None where there is no check: then every query costs the same, and what was charged is what was certain to be.
    """
    if not voting.checks:
        return None
    every = SelfComposedDpEvent(voting.query_event, queries)
    if math.isinf(epsilon_ceiling) or epsilon(every, delta).epsilon <= epsilon_ceiling:
        return every
    return gaussian_ceiling(epsilon_ceiling, delta)
