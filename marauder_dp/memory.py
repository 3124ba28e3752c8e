"""How much memory a run may take, and how much of it is fast."""

import math
import os
import re
from typing import Any

import jax

from marauder_dp.convolutions import has_convolutions
from marauder_dp.cuts.jaxprs import inner_jaxprs
from marauder_dp.errors import PlanError

_SHARE = 0.8  # of a device's memory
_CACHE = 48 * 2**20  # bytes of intermediate values that a CPU handles at full speed; measured (BUILD_NOTES.md, section 4)
_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def memory_limit(text: str | None = None) -> int:
    """Bytes, from "2GiB", "500 MB" or a number of bytes; by default four fifths of the device's memory.

    Raises:
      PlanError: it is none of these.
    """
    if text is None:
        return int(_SHARE * _device_memory())
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or not (size := int(float(match[1]) * _UNITS[match[2].upper()])):
        raise PlanError(f"a memory limit is a size such as 2GiB or 500MB, or a number of bytes; got {text!r}")
    return size


def _device_memory() -> int:
    """Of the accelerator, or of the machine."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and (limit := statistics.get("bytes_limit")):
        return int(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def examples_in_cache(loss: Any, params: Any) -> float:
    """How many examples at a time are fastest; infinite where more are never slower.

    On a CPU, intermediate values that don't fit into its caches cost more than adding up a few sums of gradients. Not so where
    parameters are most of what is moved, nor on accelerators, nor with native convolutions, which are slow in a loop.

    Args:
      loss: jaxpr of the loss of one example.
      params: arrays or their shapes and types.
    """
    if jax.default_backend() != "cpu" or has_convolutions(loss):
        return math.inf
    sums = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return max(_CACHE, 8 * sums) / max(1, _written(loss))


def in_equal_groups(size: int, most: float) -> int:
    """A group's size when `size` examples are divided into as few groups of at most `most` as do, all but the last equal."""
    return math.ceil(size / max(1, math.ceil(size / max(1, most))))


def _written(jaxpr: Any) -> int:
    """Bytes of all values that the equations compute, as if none were fused."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [_written(each) for each in inner_jaxprs(eqn)]
        own = sum(math.prod(out.aval.shape) * out.aval.dtype.itemsize for out in eqn.outvars)
        total += eqn.params.get("length", 1) * sum(inner) if inner else own
    return total
