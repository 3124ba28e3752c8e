"""Differentially private training in JAX: per-example clipping, Poisson sampling, noise, and a ledger of it all."""

from marauder_dp.clipping import ClippedGrad, ClippedGradFn, clipped_grad, explain, per_layer
from marauder_dp.datasets import Dataset, load_dataset
from marauder_dp.dpsgd import DpSgd, Keys, TrainState
from marauder_dp.errors import DatasetError, IntegrityError, MarauderError, ModelError, PlanError
from marauder_dp.noise import gaussian_noise, standard_normal
from marauder_dp.plan import DpSgdPlan, default_delta, non_private_plan, plan_dpsgd
from marauder_dp.sampling import PoissonSampler
from marauder_dp.units import Units, group_by_unit, loss_of_unit
from marauder_dp.version import __version__

__all__ = [
    "ClippedGrad",
    "ClippedGradFn",
    "Dataset",
    "DatasetError",
    "DpSgd",
    "DpSgdPlan",
    "IntegrityError",
    "Keys",
    "MarauderError",
    "ModelError",
    "PlanError",
    "PoissonSampler",
    "TrainState",
    "Units",
    "__version__",
    "clipped_grad",
    "default_delta",
    "explain",
    "gaussian_noise",
    "group_by_unit",
    "load_dataset",
    "loss_of_unit",
    "non_private_plan",
    "per_layer",
    "plan_dpsgd",
    "standard_normal",
]
