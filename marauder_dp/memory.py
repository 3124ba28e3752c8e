"""How much memory a run may take."""

import os
import re

import jax

from marauder_dp.errors import PlanError

_SHARE = 0.8  # of a device's memory
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
