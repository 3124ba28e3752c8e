"""What a run leaves behind: names of the files, and ways to write them that survive a crash."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from marauder_dp.errors import IntegrityError, MarauderError
from marauder_dp.files import write_atomically
from marauder_dp.version import __version__


class RunDirectory:
    """One run's folder. Every whole-file write is atomic; `metrics.jsonl` is appended to."""

    def __init__(self, path: str | os.PathLike[str]):
        """Creates the folder if need be.

        Raises:
          MarauderError: it can't be created or written to.
        """
        self.path = Path(path).expanduser().absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise MarauderError(f"can't write to --workdir={self.path}: {error.strerror}") from error

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def private(self) -> Path:
        """Secrets of the run, readable by their owner alone."""
        return self.path / "private"

    @property
    def privacy_json(self) -> Path:
        return self.path / "privacy.json"

    @property
    def privacy_md(self) -> Path:
        return self.path / "privacy.md"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_settings(self) -> dict[str, Any] | None:
        """The settings this run began with, or None if it never began.

        Raises:
          IntegrityError: config.json is damaged.
        """
        try:
            return dict(json.loads((self.path / "config.json").read_bytes())["settings"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self.path / 'config.json'} is damaged ({type(error).__name__}); use another --workdir"
            ) from error

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes config.json: the resolved settings and where the run began. A resumption leaves it as it is."""
        if self.read_settings() is None:
            self.write_json(self.path / "config.json", {"settings": dict(settings), **environment()})

    def write_json(self, path: Path, document: Mapping[str, Any]) -> None:
        """Replaces `path` by `document`, whole or not at all."""
        self.write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Replaces `path` by `text`, whole or not at all."""
        write_atomically(path, text.encode())

    def drop_torn_metrics(self) -> None:
        """Removes a last line of metrics.jsonl that a crash cut short."""
        try:
            with open(self.metrics, "r+b") as stream:
                stream.truncate(stream.read().rfind(b"\n") + 1)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise MarauderError(f"can't write {self.metrics}: {error.strerror}") from error

    def log_metric(self, step: int, split: str, name: str, value: float, *, private: bool) -> None:
        """Appends one line to metrics.jsonl. `private`: computed from private data without noise, do not publish."""
        row = {"step": step, "split": split, "name": name, "value": value, "private": private}
        try:
            with open(self.metrics, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            raise MarauderError(f"can't write {self.metrics}: {error.strerror}") from error


def environment() -> dict[str, Any]:
    """Versions, platform and commit, for config.json."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn")
    return {
        "versions": {"marauder_dp": __version__, "python": sys.version.split()[0]} | {p: _version(p) for p in packages},
        "platform": {"machine": platform.platform(), "backend": jax.default_backend(), "devices": len(jax.devices())},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with '+' if it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
