"""The privacy analysis of PATE's votes. Needs numpy and scipy alone; never imports JAX."""

from accountants.errors import NotPublishableError, VotesError
from accountants.pate.analysis import Analysis, Split, analyse
from accountants.pate.conditions import GnmaxBound
from accountants.pate.outcomes import log_answer, log_q_gnmax, log_q_lnmax
from accountants.pate.publish import Sanitised, gnss_rdp, published_gnss_rdp, sanitise
from accountants.pate.rdp import (
    data_dependent,
    gnmax,
    gnmax_independent,
    lnmax,
    lnmax_independent,
    threshold,
    threshold_independent,
)
from accountants.pate.smooth import gnmax_local_sensitivities, smooth_sensitivity, threshold_local_sensitivities
from accountants.pate.votes import Votes, read_votes

__all__ = [
    "Analysis",
    "GnmaxBound",
    "NotPublishableError",
    "Sanitised",
    "Split",
    "Votes",
    "VotesError",
    "analyse",
    "data_dependent",
    "gnmax",
    "gnmax_independent",
    "gnmax_local_sensitivities",
    "gnss_rdp",
    "lnmax",
    "lnmax_independent",
    "log_answer",
    "log_q_gnmax",
    "log_q_lnmax",
    "published_gnss_rdp",
    "read_votes",
    "sanitise",
    "smooth_sensitivity",
    "threshold",
    "threshold_independent",
    "threshold_local_sensitivities",
]
