"""Shared by all tests: where real data is."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> str:
    """Folder of real data files; tests that need it skip without it."""
    folder = os.environ.get("MARAUDER_DATA_DIR") or str(Path(__file__).parents[2] / "shared" / "data")
    if not Path(folder).is_dir():
        pytest.skip("no real data: set MARAUDER_DATA_DIR to a folder with mnist_idx/ and adult/")
    return folder
