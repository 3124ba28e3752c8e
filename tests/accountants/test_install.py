"""`accountants` alone: installs with numpy and scipy only, and never imports JAX."""

import ast
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


EXTRAS = {"cryptography"}
"""Packages of extras: imported where they are needed, and nowhere else."""


def test_imports_only_numpy_scipy_and_the_standard_library():
    """Pages use jinja2 and matplotlib too, which test_report_page.py shows to be imported late."""
    for path in (ROOT / "accountants").rglob("*.py"):
        allowed = set(sys.stdlib_module_names) | {"numpy", "scipy", "accountants"}
        if path.parent.name == "html":
            allowed |= {"jinja2", "markupsafe", "matplotlib"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top, lazy = name.split(".")[0], getattr(node, "col_offset", 0) > 0
                assert top in allowed or (lazy and top in EXTRAS), f"{path.name} imports {name}"


def test_arrows_point_one_way():
    """experiments → marauder_dp → accountants."""
    for package, forbidden in {"accountants": ("marauder_dp", "experiments"), "marauder_dp": ("experiments",)}.items():
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(name.split(".")[0] in forbidden for name in names), path


def test_installs_and_runs_alone_in_a_clean_environment(tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    shutil.copytree(ROOT / "accountants", tmp_path / "accountants")  # building leaves files beside the sources
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", tmp_path / "accountants"]
    done = subprocess.run(install, env=clean, capture_output=True, text=True, check=False)
    if done.returncode and ("No matching distribution" in done.stderr or "connection" in done.stderr.lower()):
        pytest.skip(f"no package registry in reach: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    program = (
        "import sys, accountants; from importlib.metadata import distributions\n"
        "assert not any(m.split('.')[0] in ('jax', 'flax', 'marauder_dp', 'scipy') for m in sys.modules)\n"
        "print(accountants.__file__, *sorted(d.name.lower() for d in distributions()))"
    )

    def run(*arguments):
        done = subprocess.run([python, *arguments], env=clean, cwd=tmp_path / "env", capture_output=True, text=True, check=True)
        return done.stdout

    out = run("-c", program).split()
    assert out[0].startswith(str(tmp_path / "env"))
    assert set(out[1:]) <= {"marauder-accountants", "numpy", "scipy", "pip", "setuptools"}
    sampled = ["--noise_multiplier", "1.1", "--sampling_probability", "0.01", "--steps", "100", "--delta", "1e-5"]
    assert run("-m", "accountants", "epsilon", *sampled).startswith("ε ≤ ")
    assert run("-c", "from accountants.pate import Votes; print(len(Votes([[3, 1]])))") == "1\n"
