"""Calling an experiment as the command line does."""

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import dpsgd, launch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cli(capsys):
    """cli(*arguments) → (exit code, stdout, stderr), in this process; the code path of `python -m experiments.dpsgd`."""

    def call(*arguments):
        saved = flagsaver.save_flag_values()
        try:
            launch._parse(["dpsgd", "--compilation_cache=", *arguments])
            code = launch._guarded(dpsgd.main)
        except SystemExit as stop:
            code = stop.code
        finally:
            flagsaver.restore_flag_values(saved)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])
    return call


@pytest.fixture
def command():
    """The real command line, as a list to which flags are added."""
    return [sys.executable, "-m", "experiments.dpsgd", "--compilation_cache="]


def start(command, *arguments, **kwargs):
    """A real process of the experiment."""
    return subprocess.Popen(
        [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )
