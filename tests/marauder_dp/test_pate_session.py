"""A run in its folder: whatever moment it is cut off at, taken up it ends the same, and no release goes uncharged."""

import dataclasses
import itertools
import json
import math
import os
import shutil
import stat

import flax.linen as nn
import jax
import numpy as np
import pytest

from accountants import report
from accountants.chain import read_ledger
from accountants.errors import LedgerError
from accountants.ledger import Ledger
from accountants.pate import record, replay
from accountants.pate.record import CHECKS, PLURALITIES
from marauder_dp import files, secrets
from marauder_dp.errors import IntegrityError, ModelError, PlanError
from marauder_dp.models import accuracy
from marauder_dp.pate import ballots, session
from marauder_dp.pate.partitions import partition
from marauder_dp.pate.queries import Choice
from marauder_dp.pate.session import Job, PublicExamples
from marauder_dp.pate.student import StudentTraining
from marauder_dp.pate.teachers import compile_ensemble
from marauder_dp.pate.voting import VotingPlan
from marauder_dp.run_directory import RunDirectory
from tests.marauder_dp.pate_problem import CLASSES, TEACHERS, apply, examples, training

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUIET = lambda line: None


@pytest.fixture(scope="module")
def usual(quick_compilation):
    """13 teachers in 5 waves, 40 public examples, a ceiling that ends it."""
    data, (x, y) = examples(400), examples(60, seed=8)
    ensemble = compile_ensemble(training(), partition(np.arange(400), TEACHERS, seed=1), data, chunk=3, waves=5)
    return Job(
        settings={"seed": 0},
        name="blobs",
        note="",
        data=data,
        public=PublicExamples(x[:40], x[40:], y[40:], y[:40]),
        ensemble=ensemble,
        apply=apply,
        voting=VotingPlan(TEACHERS, CLASSES, 4.0, 7.0, 6.0),
        choice=Choice("random", 40, 40),
        student=StudentTraining(nn.Dense(CLASSES), steps=20, unlabelled=0),
        epsilon_ceiling=6.0,
        delta=1e-5,
        units=400,
        reproducible_seed=0,
    )


@pytest.fixture(autouse=True)
def quick_student(monkeypatch):
    """A student that is the mean of what it was shown, in no time; `test_pate_student` has the real one."""

    def learn(how, x, queries, labels, *, after_steps):
        after_steps(1)
        shown = np.zeros((x.shape[1], CLASSES), np.float32)
        for query, label in zip(queries, labels, strict=True):
            shown[:, label] += x[query] / len(labels)
        return {"kernel": shown, "bias": np.zeros(CLASSES, np.float32)}

    monkeypatch.setattr(session, "train_student", learn)
    monkeypatch.setattr(session, "write_page", lambda directory, say: None)  # what people see is tested with the experiment


@pytest.fixture(scope="module")
def votes_once():
    """Votes are compiled for once: the program depends on shapes alone."""
    original, compiled = ballots.compile_votes, {}

    def once(apply, params, x):
        key = len(jax.tree.leaves(params)[0]), np.asarray(x).tobytes()
        return compiled.setdefault(key, original(apply, params, x))

    return once


@pytest.fixture(autouse=True)
def quick_votes(monkeypatch, votes_once):
    monkeypatch.setattr(ballots, "compile_votes", votes_once)


def go(job, path, **how):
    return session.run(job, RunDirectory(path), say=QUIET, **how)


def outcome(path, result):
    """All that must be the same however often it was cut off."""
    contents = read_ledger(path / "ledger.jsonl")
    student = [leaf.tobytes() for leaf in jax.tree.leaves(student_of(path))]
    charges = contents.count(CHECKS), contents.count(PLURALITIES)
    return result.answers, result.exhausted, result.test_accuracy, charges, np.load(path / replay.VOTES).tolist(), student


def student_of(path):
    from marauder_dp.checkpoints import Checkpoints

    like = session._Student(np.asarray(0), {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)})
    with Checkpoints(path / "checkpoints") as checkpoints:
        return checkpoints.restore(like).state.params


@pytest.fixture(scope="module")
def whole(usual, tmp_path_factory, votes_once):
    """(folder, result, outcome) of an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        quick_student.__wrapped__(patch)
        patch.setattr(ballots, "compile_votes", votes_once)
        result = go(usual, path)
    return path, result, outcome(path, result)


def test_what_a_run_leaves_behind(usual, whole):
    path, result, _ = whole
    assert result.finished
    assert result.exhausted
    assert 3 < len(result.answers) < 40
    assert result.breakdown.epsilon <= 6
    assert report.verify(path / "privacy.json")["ok"]
    assert report.verify(path / "ledger.jsonl", result.head)["ok"]
    assert replay.replay(path) == json.loads((path / "privacy.json").read_text())["pate"]
    for name in ("private", "private/teachers"):
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o700
    secret = [p for p in (path / "private").rglob("*") if p.is_file()]
    assert len(secret) == 3 + usual.ensemble.waves
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in secret)
    rows = [json.loads(row) for row in (path / "metrics.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows if row["private"]} == {"teacher_accuracy", "plurality_accuracy"}


def test_no_secret_is_in_a_public_file(whole):
    path, _, _ = whole
    salt = (path / "private" / "salt").read_bytes()
    words = json.loads((path / "private" / "run.json").read_text())["keys"]["noise"]
    for name in ("ledger.jsonl", "privacy.json", "privacy.md", "config.json", "metrics.jsonl"):
        text = (path / name).read_text()
        assert salt.hex() not in text
        assert not any(str(word) in text for word in words)


def test_the_same_command_again_asks_and_charges_nothing(usual, whole, tmp_path):
    path, result, before = whole
    shutil.copytree(path, tmp_path / "run")
    again = go(usual, tmp_path / "run")
    assert outcome(tmp_path / "run", again) == before
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == (path / "ledger.jsonl").read_bytes()
    documents = [json.loads((p / "privacy.json").read_text()) for p in (path, tmp_path / "run")]
    assert documents[0] == documents[1]
    assert again.head == result.head


class Crash(BaseException):
    """As sudden as a power cut."""


def crash_at(monkeypatch, number, *, after):
    """What is written durably, the ledger's lines and whole files, fails the `number`-th time. Returns what counts them."""
    counter = itertools.count()

    def guarded(original):
        def write(*args, **kwargs):
            here = next(counter) == number
            if here and not after:
                raise Crash
            result = original(*args, **kwargs)
            if here:
                raise Crash
            return result

        return write

    monkeypatch.setattr(Ledger, "_append", guarded(Ledger._append))
    atomically = guarded(files.write_atomically)
    for module in (secrets, session, ballots):
        monkeypatch.setattr(module, "write_atomically", atomically)
    monkeypatch.setattr("marauder_dp.run_directory.write_atomically", atomically)
    return counter


def check_history(path):
    """At each moment what was answered was charged, under the ceiling."""
    if (path / "ledger.jsonl").exists() and (path / "ledger.jsonl").stat().st_size:
        contents = read_ledger(path / "ledger.jsonl")
        record.released(contents)
        assert not contents.charges or report.breakdown_of(contents).epsilon <= 6


@pytest.mark.parametrize("after", [False, True])
def test_cut_off_at_any_write(usual, whole, tmp_path, monkeypatch, after):
    """Every fourth of the writes, and others before than after; taken up, all ends as without."""
    with monkeypatch.context() as patch:
        counter = crash_at(patch, -1, after=after)
        go(usual, tmp_path / "count")
        writes = next(counter)
    assert writes > 15
    for number in range(after, writes, 4):
        path = tmp_path / str(number)
        with monkeypatch.context() as patch:
            crash_at(patch, number, after=after)
            with pytest.raises(Crash):
                go(usual, path)
        check_history(path)
        assert outcome(path, go(usual, path)) == whole[2], number
        shutil.rmtree(path)


def test_stopped_at_any_moment_and_only_what_is_missing_is_trained(usual, whole, tmp_path, monkeypatch):
    trained = []
    original = type(usual.ensemble).train

    def train(self, data, *, start=0):
        for numbers, params in original(self, data, start=start):
            trained.extend(numbers)
            yield numbers, params

    monkeypatch.setattr(type(usual.ensemble), "train", train)
    stops = 0
    for number in itertools.count(1):
        calls = itertools.count(1)
        result = go(usual, tmp_path / "run", should_stop=lambda number=number, calls=calls: next(calls) > number)
        if result.finished:
            break
        stops += 1
        check_history(tmp_path / "run")
        assert stops < 100
    result = go(usual, tmp_path / "run")
    assert outcome(tmp_path / "run", result) == whole[2]
    assert trained == list(range(TEACHERS))
    assert stops > 3


@pytest.mark.parametrize(
    "mechanism",
    ["interactive_gnmax", pytest.param("gnmax", marks=pytest.mark.slow), pytest.param("lnmax", marks=pytest.mark.slow)],
)
def test_rounds_cut_off_at_any_charge(usual, tmp_path, monkeypatch, mechanism):
    """Queries that depend on students, checks that do: a few writes in the middle."""
    checks = (4.0, 6.0) if mechanism == "interactive_gnmax" else (None, None)
    job = dataclasses.replace(
        usual, voting=VotingPlan(TEACHERS, CLASSES, 4.0, *checks, mechanism), choice=Choice("uncertainty", 20, 4)
    )
    with monkeypatch.context() as patch:
        counter = crash_at(patch, -1, after=False)
        expected = outcome(tmp_path / "whole", go(job, tmp_path / "whole"))
        writes = next(counter)
    assert replay.replay(tmp_path / "whole")
    charges = [*range(writes - 14, writes - 2, 6)]
    for number in charges:
        path = tmp_path / str(number)
        with monkeypatch.context() as patch:
            crash_at(patch, number, after=True)
            with pytest.raises(Crash):
                go(job, path)
        check_history(path)
        assert outcome(path, go(job, path)) == expected


def test_a_torn_line_of_the_ledger_is_dropped(usual, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    with open(tmp_path / "run" / "ledger.jsonl", "r+b") as stream:
        stream.truncate(os.path.getsize(tmp_path / "run" / "ledger.jsonl") - 9)
    assert outcome(tmp_path / "run", go(usual, tmp_path / "run"))[:3] == whole[2][:3]


def resumed(usual, whole, tmp_path, damage, **changes):
    shutil.copytree(whole[0], tmp_path / "run")
    damage(tmp_path / "run")
    before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    try:
        return go(dataclasses.replace(usual, **changes), tmp_path / "run")
    finally:
        assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before  # nothing was charged


def edit_votes(path):
    votes = np.load(path / replay.VOTES)
    votes[3] = votes[3][::-1]
    np.save(path / replay.VOTES, votes)


DAMAGES = [
    (edit_votes, LedgerError, "not the votes, or the salt"),
    (lambda p: (p / replay.VOTES).write_bytes(b"1"), IntegrityError, "stored votes are damaged"),
    (lambda p: np.save(p / replay.VOTES, np.zeros((40, 3))), IntegrityError, "stored votes are damaged"),
    (lambda p: (p / replay.SALT).write_bytes(b"f" * 32), IntegrityError, "bound to other partitions"),
    (lambda p: (p / replay.SALT).unlink(), IntegrityError, "lacks the run's secrets"),
    (lambda p: (p / "private/run.json").unlink(), IntegrityError, "lacks the run's secrets"),
    (lambda p: (p / "private/run.json").write_text("{}"), IntegrityError, "damaged"),
    (lambda p: shutil.rmtree(p / "private"), IntegrityError, "lacks the run's secrets"),
    (lambda p: (p / "config.json").write_text("{"), IntegrityError, "config.json is damaged"),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_damage_is_noticed_before_anything_is_charged(usual, whole, tmp_path, damage, error, message):
    with pytest.raises(error, match=message) as caught:
        resumed(usual, whole, tmp_path, damage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"settings": {"seed": 1}}, PlanError, r"--seed=0 \(now 1\)"),
        ({"data": examples(400, seed=3)}, IntegrityError, "the data are not what the run"),
        ({"public": PublicExamples(*([np.ones((40, 4), np.float32)] * 2), np.ones(40, np.int32))}, IntegrityError, "public"),
        ({"delta": 1e-6}, LedgerError, "started with"),
        ({"epsilon_ceiling": 7.0}, LedgerError, "started with"),
        ({"voting": VotingPlan(TEACHERS, CLASSES, 5.0, 7.0, 6.0)}, LedgerError, "started with voting"),
        ({"reproducible_seed": None}, LedgerError, "reproducible_noise"),
    ],
    ids=range(7),
)
def test_another_run_is_refused(usual, whole, tmp_path, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        resumed(usual, whole, tmp_path, lambda p: None, **changes)
    assert "\n" not in str(caught.value)


def test_damaged_teachers_are_named(usual, tmp_path):
    calls = itertools.count(1)
    assert not go(usual, tmp_path, should_stop=lambda: next(calls) > 2).finished
    wave = tmp_path / "private/teachers/wave-00001.npz"
    good = wave.read_bytes()
    for bad in (good[:-40], b"", good.replace(b"arr_0", b"arr_9")):
        wave.write_bytes(bad)
        with pytest.raises(IntegrityError, match=r"wave-00001.npz is damaged; remove it") as caught:
            go(usual, tmp_path)
        assert "\n" not in str(caught.value)
    np.savez(wave, *[np.zeros((2, 2))] * 3)
    with pytest.raises(IntegrityError, match="holds other teachers"):
        go(usual, tmp_path)
    wave.unlink()
    assert go(usual, tmp_path).finished
    assert not read_ledger(tmp_path / "ledger.jsonl").torn


def test_noise_is_never_used_for_a_second_ledger(usual, tmp_path):
    """Someone takes the ledger away and leaves the secrets: the next run has another key, and so does each fresh run."""
    job, keys = dataclasses.replace(usual, reproducible_seed=None), []
    for _ in range(2):
        go(job, tmp_path / "run")
        keys.append(json.loads((tmp_path / "run/private/run.json").read_text())["keys"]["noise"])
        (tmp_path / "run" / "ledger.jsonl").unlink()
    go(job, tmp_path / "other")
    keys.append(json.loads((tmp_path / "other/private/run.json").read_text())["keys"]["noise"])
    assert len(set(map(tuple, keys))) == 3


def test_the_student_kept_is_the_one_of_this_ledger(usual, tmp_path):
    """A folder in which an earlier run left its student."""
    job = dataclasses.replace(usual, reproducible_seed=None)
    go(job, tmp_path / "run")
    old = student_of(tmp_path / "run")
    for name in ("ledger.jsonl", "privacy.json", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run/private")
    result = go(job, tmp_path / "run")
    kept = student_of(tmp_path / "run")
    assert accuracy(job.student.model, kept, job.public.test_x, job.public.test_y) == result.test_accuracy
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(kept), strict=True))


def test_the_seed_says_nothing_about_secret_noise(usual, tmp_path):
    job = dataclasses.replace(usual, reproducible_seed=None)
    a, b = (go(job, tmp_path / name) for name in "ab")
    assert [x.label for x in a.answers] != [x.label for x in b.answers]


def test_no_query_is_answered(usual, tmp_path):
    """All refused: no student, and a report all the same."""
    job = dataclasses.replace(usual, voting=VotingPlan(TEACHERS, CLASSES, 4.0, 13.0, 0.5), choice=Choice("random", 2, 2))
    never = dataclasses.replace(job, public=dataclasses.replace(job.public, x=np.zeros_like(job.public.x)))
    never = dataclasses.replace(never, epsilon_ceiling=1000.0, apply=lambda p, x: x[:, :3] + p["b"] + p["v"].sum(axis=0))
    result = go(never, tmp_path)
    assert result.finished
    assert [a.answered for a in result.answers] == [False, False]
    assert result.test_accuracy is None
    assert "No query was answered" in (tmp_path / "privacy.md").read_text()
    assert report.verify(tmp_path / "privacy.json")["ok"]
    assert replay.replay(tmp_path)["argmax_total"] == 0


def test_nothing_fits_below_the_ceiling(usual, tmp_path):
    result = go(dataclasses.replace(usual, epsilon_ceiling=1e-3), tmp_path)
    assert result.finished
    assert result.exhausted
    assert result.answers == ()
    assert result.analysis is None
    assert report.verify(tmp_path / "privacy.json")["ok"]


@pytest.mark.parametrize(
    ("mechanism", "sigma"), [("gnmax", 1e-6), ("confident_gnmax", 1e-6), ("confident_gnmax", 1e9), ("lnmax", 1e9)]
)
def test_hardly_any_noise_and_nothing_but_noise_have_figures(usual, tmp_path, sigma, mechanism):
    check = (7.0, sigma) if mechanism == "confident_gnmax" else (None, None)
    voting = VotingPlan(TEACHERS, CLASSES, sigma, *check, mechanism)
    job = dataclasses.replace(usual, voting=voting, epsilon_ceiling=math.inf)
    job = dataclasses.replace(job, choice=Choice("random", 3, 3))
    result = go(job, tmp_path)
    assert result.finished
    assert len(result.answers) == 3
    epsilon = float(json.loads((tmp_path / "privacy.json").read_text())["epsilon"])
    assert epsilon > 1e5 if sigma < 1 else 0 <= epsilon < 1e-3
    assert report.verify(tmp_path / "privacy.json")["ok"]
    replay.replay(tmp_path)


def test_a_diverged_teacher_ends_it_before_anything_is_asked(usual, tmp_path):
    x = usual.data[0].copy()
    x[5] = np.inf
    with pytest.raises(ModelError, match="diverged"):
        go(dataclasses.replace(usual, data=(x, usual.data[1])), tmp_path)
    assert not read_ledger(tmp_path / "ledger.jsonl").charges


def test_logits_that_are_not_finite_end_it_before_anything_is_asked(usual, tmp_path, monkeypatch):
    monkeypatch.undo()
    bad = dataclasses.replace(usual, apply=lambda p, x: apply(p, x) / (x[:, :1] > -1e9) / 0.0)
    with pytest.raises(ModelError, match="teacher 0 gives logits that aren't finite"):
        go(bad, tmp_path)
    assert not read_ledger(tmp_path / "ledger.jsonl").charges
