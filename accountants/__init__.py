"""What was released from private data, and what it cost. Needs numpy and scipy alone; never imports JAX."""

from accountants.breakdown import Breakdown, Component, break_down
from accountants.budget import Budget
from accountants.calibration import calibrate, calibrate_noise_multiplier
from accountants.chain import LedgerContents, read_ledger
from accountants.errors import (
    AccountingError,
    BudgetExceededError,
    CalibrationError,
    InvalidEventError,
    LedgerError,
    UnsupportedEventError,
)
from accountants.event_json import from_dict, from_json, to_dict, to_json
from accountants.events import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighbouringRelation,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    as_event,
    dpsgd_event,
)
from accountants.ledger import Ledger
from accountants.rdp import DEFAULT_ORDERS, RdpAccountant, event_rdp
from accountants.version import __version__

__all__ = [
    "DEFAULT_ORDERS",
    "AccountingError",
    "Breakdown",
    "Budget",
    "BudgetExceededError",
    "CalibrationError",
    "Component",
    "ComposedDpEvent",
    "DpEvent",
    "GaussianDpEvent",
    "InvalidEventError",
    "LaplaceDpEvent",
    "Ledger",
    "LedgerContents",
    "LedgerError",
    "NeighbouringRelation",
    "NoOpDpEvent",
    "NonPrivateDpEvent",
    "PoissonSampledDpEvent",
    "RdpAccountant",
    "SelfComposedDpEvent",
    "UnsupportedEventError",
    "__version__",
    "as_event",
    "break_down",
    "calibrate",
    "calibrate_noise_multiplier",
    "dpsgd_event",
    "event_rdp",
    "from_dict",
    "read_ledger",
    "to_dict",
]
