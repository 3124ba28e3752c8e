"""Teachers of a run and their votes, kept in the run's private folder: what was trained before is not trained again."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from accountants.errors import VotesError
from accountants.pate import replay
from accountants.pate.votes import Votes, read_votes
from marauder_dp.errors import IntegrityError
from marauder_dp.files import write_atomically
from marauder_dp.pate.predictions import compile_votes, histograms
from marauder_dp.run_directory import RunDirectory

if TYPE_CHECKING:
    from marauder_dp.pate.session import Job

PyTree = Any


def cast_votes(job: "Job", directory: RunDirectory, may_stop: Callable[[], None], say: Callable[[str], None]) -> Votes:
    """Trains the teachers that are missing, and counts their votes for all public examples. All of it is private.

    Args:
      job: of the run.
      directory: of the run; teachers are stored wave by wave, then the votes.
      may_stop: called between waves; may raise to stop.
      say: told of progress.

    Raises:
      IntegrityError: what is stored is damaged, or of another run.
      ModelError: a teacher's parameters or logits aren't finite.
    """
    path = directory.path / replay.VOTES
    teachers, classes = job.voting.teachers, job.voting.classes
    if path.exists():
        try:
            votes = read_votes(path)
        except VotesError as error:
            raise IntegrityError(f"the stored votes are damaged: {error}") from error
        return votes
    folder = directory.private / "teachers"
    folder.mkdir(mode=0o700, exist_ok=True)
    done = 0
    while done < job.ensemble.waves and _wave_file(folder, done).exists():
        done += 1
    if done:
        say(f"{min(done * job.ensemble.wave, teachers):,} of {teachers:,} teachers were trained before")
    for number, (numbers, params) in enumerate(job.ensemble.train(job.data, start=done), start=done):
        _store(_wave_file(folder, number), params)
        say(f"teachers {numbers.stop:,}/{teachers:,} trained")
        may_stop()
    like = jax.eval_shape(job.ensemble.training.init, jax.random.key(0))
    voting, cast = None, []
    for number in range(job.ensemble.waves):
        numbers = job.ensemble.teachers_of(number)
        params = _load(_wave_file(folder, number), like, len(numbers))
        voting = voting or compile_votes(job.apply, params, job.public.x)
        cast.append(voting(numbers, params))
        may_stop()
    counts = histograms(np.concatenate(cast), classes)
    if job.public.y is not None:
        right = np.mean([(votes == job.public.y).mean() for votes in cast])
        plural = (counts.argmax(axis=1) == job.public.y).mean()
        for name, value in (("teacher_accuracy", right), ("plurality_accuracy", plural)):
            directory.log_metric(0, "public", name, float(value), private=True)
        say(f"teachers are right about {right:.1%} of public examples on average, their plurality about {plural:.1%} (private)")
    stream = io.BytesIO()
    np.save(stream, counts)
    write_atomically(path, stream.getvalue(), mode=0o600)
    return read_votes(path)


def _wave_file(folder: Path, number: int) -> Path:
    return folder / f"wave-{number:05}.npz"


def _store(path: Path, params: PyTree) -> None:
    stream = io.BytesIO()
    np.savez(stream, *jax.tree.leaves(params))
    write_atomically(path, stream.getvalue(), mode=0o600)


def _load(path: Path, like: PyTree, teachers: int) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[f"arr_{i}"] for i in range(len(leaves))]
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise almost anything
        raise IntegrityError(f"{path} is damaged; remove it and its wave is trained again") from error
    if [array.shape for array in arrays] != [(teachers, *leaf.shape) for leaf in leaves]:
        raise IntegrityError(f"{path} holds other teachers than this run's; use another --workdir")
    return jax.tree.unflatten(treedef, arrays)
