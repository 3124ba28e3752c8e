"""Shared by all tests: where real data is, and programs compiled once for the tests of a process and what they start."""

import os
import tempfile
from pathlib import Path

import pytest

# One folder for each worker: JAX does not write its files atomically.
_COMPILED = tempfile.TemporaryDirectory(prefix="marauder-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


@pytest.fixture(scope="session")
def data_dir() -> str:
    """Folder of real data files; tests that need it skip without it."""
    folder = os.environ.get("MARAUDER_DATA_DIR") or str(Path(__file__).parents[2] / "shared" / "data")
    if not Path(folder).is_dir():
        pytest.skip("no real data: set MARAUDER_DATA_DIR to a folder with mnist_idx/ and adult/")
    return folder
