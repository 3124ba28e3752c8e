"""`python -m experiments.pate`: what people see, what is left behind, and what bad input says."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from accountants import read_ledger, report
from accountants.__main__ import main as accountants_main
from accountants.pate import record, replay
from accountants.pate.record import CHECKS, PLURALITIES
from marauder_dp.checkpoints import Checkpoints
from marauder_dp.models import make_model
from marauder_dp.pate.session import _Student as Student
from tests.experiments.conftest import ROOT, start

TINY = (
    "--teachers=20", "--teacher_epochs=2", "--teacher_learning_rate=0.05", "--student_steps=20", "--student_model=logistic",
    "--student_unlabelled=0", "--public=60", "--cpu_devices=1",
)  # fmt: skip
QUICK = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by the runs of this module."""
    return f"--compilation_cache={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def pate(cache):
    """pate(*arguments) → (exit code, stdout, stderr), as `python -m experiments.pate` in a process of its own."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.experiments.pate_worker"],
        cwd=ROOT, env=QUICK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def call(*arguments, page=False):
        worker.stdin.write(json.dumps([page, [cache, *TINY[-1:], *arguments]]) + "\n")
        worker.stdin.flush()
        code, out, err = json.loads(worker.stdout.readline())
        assert "Traceback" not in err
        return code, out, err

    yield call
    worker.stdin.close()
    worker.wait(timeout=60)


def released(workdir):
    return record.released(read_ledger(workdir / "ledger.jsonl"))


def student(workdir):
    """Parameters of the logistic student in a run's checkpoint."""
    model = make_model("logistic", (8, 8, 1), 10)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"])
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(Student(np.asarray(0), params)).state.params


def outcome(workdir):
    """Answers, charges, figures, and the student to the last bit."""
    contents = read_ledger(workdir / "ledger.jsonl")
    charges = contents.count(CHECKS), contents.count(PLURALITIES)
    figures = json.loads((workdir / "privacy.json").read_text())["pate"]
    return record.released(contents), charges, figures, [leaf.tolist() for leaf in jax.tree.leaves(student(workdir))]


@pytest.fixture(scope="module")
def whole(pate, tmp_path_factory):
    """(folder, stdout) of a tiny run with reproducible noise."""
    path = tmp_path_factory.mktemp("whole") / "run"
    code, out, _ = pate(f"--workdir={path}", *TINY, "--reproducible_noise", page=True)
    assert code == 0
    return path, out


def test_a_run_and_everything_it_leaves_behind(whole, capsys):
    path, out = whole
    for word in ("20 of ", "confident_gnmax", "N(0, ", "ε ≤ 6", "δ = 1e-05", "power of ten", "updates", "compiled once"):
        assert word in out, word
    assert out.index("Plan:") < out.index("component")
    assert "student/labels/threshold_check" in out
    assert "student/labels/argmax" in out
    assert "Do not publish the column of these votes" in out
    assert {p.name for p in path.iterdir()} >= {
        "config.json", "ledger.jsonl", "metrics.jsonl", "privacy.json", "privacy.md", "report.html", "checkpoints", "private",
    }  # fmt: skip
    answers = released(path)
    assert len(answers) > 5
    contents = read_ledger(path / "ledger.jsonl")
    assert contents.count(CHECKS) == len(answers)
    assert contents.count(PLURALITIES) == sum(answer.answered for answer in answers)
    head = re.search(r"ledger head\s+(\w+)", out)[1]
    assert report.verify(path / "ledger.jsonl", head)["ok"]
    assert accountants_main(["verify", f"{path}/privacy.json"]) == 0
    assert accountants_main(["replay", str(path)]) == 0
    document = json.loads((path / "privacy.json").read_text())
    assert document["epsilon"] <= 6
    capsys.readouterr()


def test_private_figures_stay_out_of_what_is_published(whole, tmp_path, capsys):
    """Neither the statement nor a public report has a figure that depends on the votes."""
    path, _ = whole
    figures = json.loads((path / "privacy.json").read_text())["pate"]
    independent = {key for key in figures if key.endswith("_independent")} | {"private", "delta", "answered"}
    public = {str(figures[key]) for key in independent if not isinstance(figures[key], list)}
    private = {str(v) for k, v in figures.items() if k not in independent and isinstance(v, float)} - public
    private = {figure for figure in private if len(figure) > 8}  # not an order such as 4.6
    assert private
    assert accountants_main(["report", f"{path}/ledger.jsonl", "--public", "--json"]) == 0
    published = capsys.readouterr().out
    assert accountants_main(["report", f"{path}/ledger.jsonl", "--public", "--html", f"{tmp_path}/page.html"]) == 0
    published += capsys.readouterr().out + (tmp_path / "page.html").read_text()
    published += (path / "privacy.md").read_text() + (path / "ledger.jsonl").read_text()
    assert not any(figure in published for figure in private)
    assert "plurality_accuracy" not in published


def test_reproducible_noise_is_and_heads_every_report(pate, whole, tmp_path):
    assert "GUARANTEE VOID" in whole[1]
    assert "GUARANTEE VOID" in (whole[0] / "privacy.md").read_text().split("## 1.")[0]
    for _ in range(2):  # anew, and once more where it ended
        assert pate(f"--workdir={tmp_path}/again", *TINY, "--reproducible_noise")[0] == 0
        assert outcome(tmp_path / "again") == outcome(whole[0])


@pytest.mark.parametrize(
    ("changed", "named"),
    [("--seed=1", "--seed=0 (now 1)"), ("--epsilon=5", "--epsilon=6.0 (now 5.0)"), ("--teachers=21", "--teachers=20 (now 21)")],
)
def test_a_changed_flag_on_resumption_is_named(pate, whole, tmp_path, changed, named):
    shutil.copytree(whole[0], tmp_path / "run")
    before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    code, _, err = pate(f"--workdir={tmp_path}/run", *TINY, "--reproducible_noise", changed)
    assert code == 2
    assert named in err
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before


def test_dry_run_prints_the_plan_and_leaves_nothing(pate, tmp_path):
    code, out, _ = pate("--dry_run", f"--workdir={tmp_path}/run", *TINY)
    assert code == 0
    assert "ε ≤ 6" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mechanism", ["gnmax", "lnmax", "interactive_gnmax"])
def test_mechanisms_and_choices(pate, tmp_path, mechanism):
    """Also: --queries instead of a ceiling, given queries, and rounds by the student's uncertainty."""
    np.save(tmp_path / "given.npy", np.arange(30)[::-1])
    how = {
        "gnmax": ("--epsilon=4", f"--given_queries={tmp_path}/given.npy"),
        "lnmax": ("--queries=12", "--choice=clusters", "--sigma_votes=6"),
        "interactive_gnmax": ("--choice=uncertainty", "--queries=12", "--round=6", "--epsilon=8"),
    }[mechanism]
    code, out, _ = pate(f"--workdir={tmp_path}/run", *TINY, f"--mechanism={mechanism}", *how)
    assert code == 0
    answers = released(tmp_path / "run")
    assert 1 <= len(answers) <= 30 if mechanism == "gnmax" else len(answers) <= 12
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").count(CHECKS) == (mechanism == "interactive_gnmax") * len(answers)
    if mechanism == "gnmax":
        assert [answer.query for answer in answers] == list(range(30))[::-1][: len(answers)]
        assert json.loads((tmp_path / "run" / "privacy.json").read_text())["epsilon"] <= 4
    if mechanism == "lnmax":
        assert len(answers) == 12
        assert "fixed beforehand, whatever is answered" in out
        assert "ceiling" not in read_ledger(tmp_path / "run" / "ledger.jsonl").public
    if mechanism == "interactive_gnmax":
        assert all(len(answer.student) == 10 for answer in answers)
    assert accountants_main(["verify", f"{tmp_path}/run/privacy.json"]) == 0
    assert accountants_main(["replay", f"{tmp_path}/run"]) == 0


def test_units(pate, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(1437) // 7)
    code, out, _ = pate(f"--workdir={tmp_path}/run", *TINY, f"--unit={tmp_path}/ids.npy", "--queries=3")
    assert code == 0
    ledger = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert ledger.public["num_examples"] == 206
    assert "sizes private" in out
    (commitment,) = [c.content for c in ledger.commitments if c.path == "teachers/partitions"]
    assert set(commitment) == {"teachers", "digests"}  # how many examples a teacher has is private here
    assert "One unit of privacy" in (tmp_path / "run" / "privacy.md").read_text()


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    """Twelve owners of digits."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("owners")
    x, y = load_digits(return_X_y=True)
    for i in range(12):
        (folder / f"owner{i:02}").mkdir()
        own = slice(60 * i, 60 * i + 60)
        np.save(folder / f"owner{i:02}" / "x.npy", (x[own] / 16).reshape(-1, 8, 8, 1).astype(np.float32))
        np.save(folder / f"owner{i:02}" / "y.npy", y[own])
        np.save(folder / f"owner{i:02}" / "ids.npy", np.arange(60 * i, 60 * i + 60))
    return folder


def owned(*arguments):
    return (*TINY[1:], *arguments)


def test_owners(pate, owners, tmp_path):
    code, out, _ = pate(f"--workdir={tmp_path}/run", *owned(f"--owners={owners}", "--queries=3"))
    assert code == 0, out
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").public["num_examples"] == 720
    assert "12 of sizes private" in out


def shared_content(folder):
    x = np.load(folder / "owner05" / "x.npy")
    y = np.load(folder / "owner05" / "y.npy")
    x[3], y[3] = np.load(folder / "owner01" / "x.npy")[0], np.load(folder / "owner01" / "y.npy")[0]
    np.save(folder / "owner05" / "x.npy", x)
    np.save(folder / "owner05" / "y.npy", y)


def no_threes(folder):
    for path in folder.glob("*/y.npy"):
        y = np.load(path)
        np.save(path, np.where(y == 3, 8, y))


OWNERS = [
    (lambda f: np.save(f / "owner05" / "ids.npy", np.arange(60)), "owners 0 and 5 hold an example with the same id"),
    (shared_content, "owners 1 and 5 hold an example with the same content"),
    (no_threes, "no training example has class 3"),
    (lambda f: (f / "owner05" / "y.npy").write_bytes(b"12"), "owner05/y.npy is not a NumPy .npy file"),
    (lambda f: shutil.rmtree(f), "can't read the folder of owners"),
]


@pytest.mark.parametrize(("damage", "message"), OWNERS, ids=range(len(OWNERS)))
def test_bad_owners(pate, owners, tmp_path, damage, message):
    shutil.copytree(owners, tmp_path / "owners")
    damage(tmp_path / "owners")
    code, _, err = pate(f"--workdir={tmp_path}/run", *owned(f"--owners={tmp_path}/owners"))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


BAD = [
    (("--teachers=1438",), "more than there are ids (1437)"),
    (("--teachers=1400",), "would have no example"),
    (("--teachers=0",), "teachers"),
    (("--teacher_epochs=0",), "--teacher_epochs"),
    (("--teacher_batch_size=0",), "--teacher_batch_size"),
    (("--teacher_learning_rate=0",), "--teacher_learning_rate"),
    (("--teacher_learning_rate=nan",), "--teacher_learning_rate"),
    (("--teacher_model=vit",), "logistic, mlp, cnn"),
    (("--chunk=0",), "chunk"),
    (("--cpu_devices=0",), "cpu_devices"),
    (("--mechanism=vote",), "confident_gnmax, interactive_gnmax, gnmax, lnmax"),
    (("--mechanism=gnmax", "--threshold=10"), "has no check"),
    (("--threshold=21",), "between 0 and the number of teachers, 20"),
    (("--threshold=-1",), "between 0 and the number of teachers, 20"),
    (("--threshold=nan",), "between 0 and the number of teachers, 20"),
    (("--sigma_votes=0",), "sigma_votes"),
    (("--sigma_votes=1e200",), "sigma_votes"),
    (("--sigma_votes=nan",), "sigma_votes"),
    (("--sigma_threshold=-2",), "sigma_threshold"),
    (("--epsilon=0",), "--epsilon"),
    (("--epsilon=nan",), "--epsilon"),
    (("--epsilon=inf",), "--epsilon"),
    (("--epsilon=1e-9",), "not even one query fits below --epsilon=1e-09"),
    (("--queries=0",), "--queries"),
    (("--queries=-4",), "--queries"),
    (("--delta=0",), "delta"),
    (("--delta=1",), "delta"),
    (("--delta=nan",), "delta"),
    (("--round=0",), "round"),
    (("--round=-1",), "round"),
    (("--public=0",), "--public must be from 1 to 359"),
    (("--public=360",), "--public must be from 1 to 359"),
    (("--choice=best",), "random, clusters, uncertainty, given"),
    (("--choice=given",), "--given_queries"),
    (("--choice=random", "--given_queries=FOLDER/far.npy"), "--given_queries"),
    (("--given_queries=FOLDER/none.npy",), "can't read"),
    (("--given_queries=FOLDER/archive.npz",), "--given_queries"),
    (("--given_queries=FOLDER/far.npy",), "from 0 to 59"),
    (("--given_queries=FOLDER/negative.npy",), "from 0 to 59"),
    (("--given_queries=FOLDER/halves.npy",), "whole numbers"),
    (("--given_queries=FOLDER/nothing.npy",), "whole numbers"),
    (("--given_queries=FOLDER/damaged.npy",), "--given_queries"),
    (("--unit=FOLDER/none.npy",), "unit id for each training example"),
    (("--unit=FOLDER/damaged.npy",), "unit id for each training example"),
    (("--unit=FOLDER/far.npy",), "--unit has 2 ids for 1,437"),
    (("--unit=FOLDER/one.npy",), "more than there are ids (1)"),
    (("--owners=FOLDER",), "drop --teachers"),
    (("--student_steps=0",), "steps of the student"),
    (("--student_batch_size=0",), "batch_size of the student"),
    (("--student_unlabelled=-1",), "unlabelled of the student"),
    (("--student_learning_rate=inf",), "learning rate"),
    (("--student_penalty=-1",), "penalty"),
    (("--student_model=vit",), "logistic, mlp, cnn"),
    (("--dataset=adult", "--data_dir=/nowhere"), "/nowhere"),
    (("--seed=-1",), "seed"),
    (("--workdir=/dev/null/run",), "--workdir"),
    (("stray",), "stray"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    np.save(path / "far.npy", np.array([3, 60]))
    np.save(path / "negative.npy", np.array([3, -1]))
    np.save(path / "halves.npy", np.array([0.5]))
    np.save(path / "nothing.npy", np.array([], int))
    np.save(path / "one.npy", np.zeros(1437, int))
    np.savez(path / "archive.npz", a=np.arange(3))
    (path / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00\x06\x00{'a((\n")
    return path


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line_that_names_the_fix(pate, folder, tmp_path, arguments, message):
    arguments = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    code, _, err = pate(f"--workdir={tmp_path}/run", *TINY, *arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob("ledger.jsonl"))


def edit_votes(path):
    votes = np.load(path / replay.VOTES)
    votes[3] = votes[3][::-1]
    np.save(path / replay.VOTES, votes)


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (edit_votes, 2, "not the votes, or the salt"),
        (lambda p: (p / replay.VOTES).write_bytes(b""), 4, "stored votes are damaged"),
        (lambda p: shutil.rmtree(p / "private"), 4, "lacks the run's secrets"),
        (lambda p: (p / "ledger.jsonl").write_bytes((p / "ledger.jsonl").read_bytes()[:-1] + b" "), 4, "line"),
        (lambda p: (p / "config.json").write_text("{"), 4, "config.json is damaged"),
    ],
    ids=range(5),
)
def test_damaged_runs(pate, whole, tmp_path, damage, code, message):
    shutil.copytree(whole[0], tmp_path / "run")
    damage(tmp_path / "run")
    before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    found, _, err = pate(f"--workdir={tmp_path}/run", *TINY, "--reproducible_noise")
    assert found == code, err
    assert message in err
    assert err.count("\n") == 1
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before


def interrupted(workdir, cache, number, line, times=1):
    """Starts a run as a process, and sends `number` to it when it has said `line` so often."""
    command = [sys.executable, "-m", "experiments.pate"]
    process = start(command, f"--workdir={workdir}", *TINY, "--reproducible_noise", cache, env=QUICK)
    seen = []
    for said in process.stdout:
        seen.append(said)
        times -= said.startswith(line)
        if times <= 0:
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=300)
    return process.returncode, "".join(seen) + rest


def test_killed_and_taken_up_it_ends_the_same(pate, whole, cache, tmp_path):
    code, out = interrupted(tmp_path / "run", cache, signal.SIGKILL, "asked")
    assert code == -signal.SIGKILL, out
    contents = read_ledger(tmp_path / "run" / "ledger.jsonl")
    assert 0 < len(record.released(contents)) <= len(released(whole[0]))
    assert pate(f"--workdir={tmp_path}/run", *TINY, "--reproducible_noise")[0] == 0
    assert outcome(tmp_path / "run") == outcome(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(
    ("line", "times"), [("Plan:", 1), ("teachers 20/20", 1), ("teachers are", 1), ("asked", 2), ("asked", 5), ("student 20", 1)]
)
def test_interrupted_in_each_phase_it_ends_the_same(pate, whole, cache, tmp_path, number, line, times):
    code, out = interrupted(tmp_path / "run", cache, number, line, times)
    assert code in (0, -number, 128 + number), out
    assert pate(f"--workdir={tmp_path}/run", *TINY, "--reproducible_noise")[0] == 0
    assert outcome(tmp_path / "run") == outcome(whole[0])


def test_two_runs_in_one_folder(pate, whole, tmp_path):
    from accountants.ledger import Ledger

    shutil.copytree(whole[0], tmp_path / "run")
    with Ledger(tmp_path / "run" / "ledger.jsonl"):
        code, _, err = pate(f"--workdir={tmp_path}/run", *TINY, "--reproducible_noise")
    assert code == 2
    assert "in use by another process" in err
