"""Errors of Marauder DP. Every message is one line that names the cause and the fix."""


class MarauderError(ValueError):
    """Base class: something the user can put right. Programs end with exit code 2."""


class DatasetError(MarauderError):
    """A data set is unknown, missing or damaged."""


class PlanError(MarauderError):
    """A training plan makes no sense or can't be met."""


class ModelError(MarauderError):
    """A model or loss can't be trained with per-example gradients."""


class IntegrityError(MarauderError):
    """State on disk contradicts itself or the request. Programs end with exit code 4."""
