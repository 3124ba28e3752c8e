"""Any optax optimizer by name. Whatever it does to noisy gradients is post-processing: it costs no privacy."""

import ast
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from marauder_dp.errors import PlanError

SCHEDULES = ("constant", "cosine")


def make_optimizer(
    name: str, learning_rate: float, schedule: str, steps: int, arguments: str = ""
) -> optax.GradientTransformation:
    """Builds `optax.<name>(learning_rate, **arguments)`.

    Args:
      name: of an optax constructor that takes a learning rate: sgd, adam, lamb, …
      learning_rate: > 0, at its peak.
      schedule: "constant", or "cosine" (down to zero over `steps`).
      steps: of the whole run.
      arguments: keyword arguments as "momentum=0.9,nesterov=True"; values are Python literals.

    Raises:
      PlanError: no such optimizer or argument.
    """
    constructor = getattr(optax, name, None)
    if not callable(constructor) or "learning_rate" not in _parameters(constructor):
        raise PlanError(
            f"optimizer {name!r} is not an optax optimizer with a learning rate; for example sgd, adam, adamw, lamb"
        )
    if not 0 < learning_rate < float("inf"):
        raise PlanError(f"learning_rate must be a finite number greater than 0; got {learning_rate!r}")
    if schedule not in SCHEDULES:
        raise PlanError(f"learning_rate_schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    rate = optax.cosine_decay_schedule(learning_rate, steps) if schedule == "cosine" else learning_rate
    keywords = parse_arguments(arguments)
    unknown = sorted(set(keywords) - set(_parameters(constructor)))
    if unknown:
        known = ", ".join(parameter for parameter in _parameters(constructor) if parameter != "learning_rate")
        raise PlanError(f"optax.{name} has no argument {unknown[0]!r}; it has {known}")
    try:
        optimizer = optax.with_extra_args_support(constructor(learning_rate=rate, **keywords))
        jax.eval_shape(lambda: _one_update(optimizer))
    except Exception as error:  # whatever optax or JAX make of wrong arguments
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PlanError(f"optax.{name}({arguments}) can't be used here: {reason:.200}") from error
    return optimizer


def _one_update(optimizer: optax.GradientTransformationExtraArgs) -> Any:
    """What training will do with it, on one number: it may not need the loss or its value, which are private."""
    params = {"w": jnp.ones(())}
    return optimizer.update(params, optimizer.init(params), params, noise_key=jax.random.key(0))


def parse_arguments(text: str) -> dict[str, Any]:
    """'momentum=0.9,nesterov=True' → {'momentum': 0.9, 'nesterov': True}; literals only, nothing is evaluated.

    Raises:
      PlanError: not of that form.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError(text)
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise PlanError(f"optimizer_args must look like 'momentum=0.9,nesterov=True'; got {text!r:.80}") from None


def _parameters(constructor: Any) -> list[str]:
    try:
        return list(inspect.signature(constructor).parameters)
    except (TypeError, ValueError):
        return []
