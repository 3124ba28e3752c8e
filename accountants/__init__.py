"""What was released from private data, and what it cost. Needs numpy and scipy alone; never imports JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from accountants.accountant import Accountant, AutoAccountant, EpsilonBound, epsilon, make_accountant
from accountants.breakdown import Breakdown, Component, break_down
from accountants.budget import Budget
from accountants.calibration import (
    calibrate,
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from accountants.chain import LedgerContents, read_ledger
from accountants.errors import (
    AccountingError,
    BudgetExceededError,
    CalibrationError,
    InvalidEventError,
    LedgerError,
    PolicyError,
    UnsupportedEventError,
)
from accountants.event_json import from_dict, from_json, to_dict, to_json
from accountants.events import (
    AboveThresholdDpEvent,
    ComposedDpEvent,
    DiscreteGaussianDpEvent,
    DiscreteLaplaceDpEvent,
    DpEvent,
    EpsilonDeltaDpEvent,
    ExponentialMechanismDpEvent,
    FixedOrderDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    MixtureOfGaussiansDpEvent,
    NeighbouringRelation,
    NonPrivateDpEvent,
    NoOpDpEvent,
    ParallelDpEvent,
    PoissonSampledDpEvent,
    RandomizedResponseDpEvent,
    RepeatAndSelectDpEvent,
    ReportNoisyMaxDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
    SingleEpochTreeAggregationDpEvent,
    TruncatedSubsampledGaussianDpEvent,
    ZCDpEvent,
    as_event,
    dpsgd_event,
)
from accountants.filters import Filter, Odometer, gaussian_ceiling
from accountants.histories import from_opacus_history
from accountants.interval import Interval
from accountants.ledger import Ledger
from accountants.pld import PldAccountant
from accountants.profile import GdpBound, Profile, bayes_risk, gdp, profile
from accountants.rdp import DEFAULT_ORDERS, RdpAccountant, event_rdp
from accountants.version import __version__
from accountants.zcdp import zcdp

if TYPE_CHECKING:
    from accountants.policy import Policy, parse_policy, read_policy
    from accountants.shared_budget import SharedBudget

_LATE = {
    "Policy": "accountants.policy",
    "SharedBudget": "accountants.shared_budget",
    "parse_policy": "accountants.policy",
    "read_policy": "accountants.policy",
}
"""Names whose modules are imported when they are asked for: most programs have no shared budget."""


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DEFAULT_ORDERS",
    "AboveThresholdDpEvent",
    "Accountant",
    "AccountingError",
    "AutoAccountant",
    "Breakdown",
    "Budget",
    "BudgetExceededError",
    "CalibrationError",
    "Component",
    "ComposedDpEvent",
    "DiscreteGaussianDpEvent",
    "DiscreteLaplaceDpEvent",
    "DpEvent",
    "EpsilonBound",
    "EpsilonDeltaDpEvent",
    "ExponentialMechanismDpEvent",
    "Filter",
    "FixedOrderDpEvent",
    "GaussianDpEvent",
    "GdpBound",
    "Interval",
    "InvalidEventError",
    "LaplaceDpEvent",
    "Ledger",
    "LedgerContents",
    "LedgerError",
    "MixtureOfGaussiansDpEvent",
    "NeighbouringRelation",
    "NoOpDpEvent",
    "NonPrivateDpEvent",
    "Odometer",
    "ParallelDpEvent",
    "PldAccountant",
    "PoissonSampledDpEvent",
    "Policy",
    "PolicyError",
    "Profile",
    "RandomizedResponseDpEvent",
    "RdpAccountant",
    "RepeatAndSelectDpEvent",
    "ReportNoisyMaxDpEvent",
    "SampledWithoutReplacementDpEvent",
    "SelfComposedDpEvent",
    "SharedBudget",
    "SingleEpochTreeAggregationDpEvent",
    "TruncatedSubsampledGaussianDpEvent",
    "UnsupportedEventError",
    "ZCDpEvent",
    "__version__",
    "as_event",
    "bayes_risk",
    "break_down",
    "calibrate",
    "calibrate_noise_multiplier",
    "calibrate_sampling_probability",
    "calibrate_steps",
    "dpsgd_event",
    "epsilon",
    "event_rdp",
    "from_dict",
    "from_json",
    "from_opacus_history",
    "gaussian_ceiling",
    "gdp",
    "make_accountant",
    "parse_policy",
    "profile",
    "read_ledger",
    "read_policy",
    "to_dict",
    "to_json",
    "zcdp",
]
