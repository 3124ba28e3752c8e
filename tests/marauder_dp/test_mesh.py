"""The engine on several devices."""

import os
import subprocess
import sys


def test_one_device_and_a_mesh_of_four_give_the_same():
    """Batch sharded, parameters replicated or sharded; in its own process, which alone has four devices."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.marauder_dp.on_a_mesh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"
