"""A short run of the harness in `benchmarks/kills.py`, in a process of its own: it forks, which a process with JAX must not."""

import subprocess
import sys

from tests.experiments.conftest import ROOT


def test_killed_runs_under_one_policy_resume_and_never_charge_too_little(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kills", "--kills=5", "--seed=3", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 5" in done.stdout
