"""Sweeps: what is run, what is charged, and what may be released."""

import csv
import json
import math
import stat
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import accountants as acc
from accountants import report
from accountants.selection import draw_count
from benchmarks import kills
from experiments import trials
from marauder_dp.datasets import load_dataset
from tests.experiments.conftest import ROOT

POLICY = kills.POLICY.format(fingerprint=load_dataset("digits").fingerprint())


def swept(*arguments):
    """(exit code, stdout, stderr) of a sweep: a process, as its flags have names that the experiments' have."""
    command = [sys.executable, "-m", "experiments.sweep", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_grids():
    assert trials.grid(["a=1,2", "b=x"]) == [(("a", "1"), ("b", "x")), (("a", "2"), ("b", "x"))]
    for bad in (["a"], ["a="], ["a=1,,2"], ["=1"], ["a b=1"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="--grid"):
            trials.grid(bad)
    some = trials.drawn(trials.grid(["a=1,2,3", "b=1,2,3"]), 4, seed=0)
    assert len(set(some)) == 4
    assert some == trials.drawn(trials.grid(["a=1,2,3", "b=1,2,3"]), 4, seed=0)


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.5, 1.0, 2.0, math.inf])
@pytest.mark.parametrize("mean", [1.0, 1.7, 20.0])
def test_the_number_of_trials_has_the_distribution_that_is_charged(shape, mean):
    """Mean of 2,000 draws within 5 standard errors (seeded), and for the geometric distribution each probability."""
    draws = np.array([draw_count(mean, shape, u) for u in np.random.default_rng(0).random(2_000)])
    assert draws.min() >= (0 if shape == math.inf else 1)
    assert abs(draws.mean() - mean) <= 5 * draws.std() / math.sqrt(len(draws)) + 1e-9
    if shape == 1.0 and mean > 1:
        gamma = 1 / mean
        for k in (1, 2, 3):
            expected = gamma * (1 - gamma) ** (k - 1)
            assert abs((draws == k).mean() - expected) < 5 * math.sqrt(expected / len(draws))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--grid"),
        (("--grid=learning_rate",), "--grid"),
        (("--grid=workdir=a,b",), "--workdir"),
        (("--grid=learning_rate=1", "--mean_trials=2"), "--selection"),
        (("--grid=learning_rate=1", "--selection=geometric", "--random=2"), "--random"),
        (("--grid=batch_size=1,2", "--selection=geometric"), "equal cost"),
        (("--grid=learning_rate=1", "--selection=geometric", "--experiment=pate"), "experiments.dpsgd"),
        (("--grid=learning_rate=1", "--selection=square"), "selection"),
        (
            ("--grid=learning_rate=1,-1", "--selection=geometric", "--mean_trials=0.5", "--flags=--dataset=no"),
            "can't be planned",
        ),
    ],
)
def test_bad_sweeps_are_one_line(tmp_path, arguments, message):
    code, _, err = swept(f"--workdir={tmp_path}/sweep", *arguments)
    assert code == 2
    assert message in err
    assert len([line for line in err.splitlines() if line]) == 1
    assert not (tmp_path / "sweep" / "ledger.jsonl").exists()


def test_a_sweep_under_a_policy_adds_up_and_stops_at_the_ceiling(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY)
    acc.SharedBudget.create(tmp_path / "budget.jsonl", acc.read_policy(tmp_path / "policy.toml")).close()
    arguments = ("--grid=learning_rate=0.1,0.5,0.2", f"--flags=--steps=20 --epsilon=1.8 --policy={tmp_path}")
    code, out, _ = swept(f"--workdir={tmp_path}/sweep", "--jobs=2", *arguments)
    assert code == 3, out  # the third does not fit
    table = list(csv.DictReader((tmp_path / "sweep" / "summary.csv").open()))
    assert sorted(row["exit_code"] for row in table) == ["0", "0", "3"]
    assert float(table[0]["accuracy"]) >= float(table[1]["accuracy"])
    document = json.loads((tmp_path / "sweep" / "privacy.json").read_text())
    assert 1.5 < document["epsilon"] < 3.0
    assert report.verify(tmp_path / "sweep" / "privacy.json")["ok"]
    assert "plain composition" in (tmp_path / "sweep" / "privacy.md").read_text()
    assert "trials/001/report.html" in (tmp_path / "sweep" / "summary.html").read_text()
    assert (tmp_path / "sweep" / "report.html").exists()
    paths = {charge.path for charge in acc.read_ledger(tmp_path / "sweep" / "ledger.jsonl").charges}
    assert len(paths) == 2
    with acc.SharedBudget(tmp_path / "budget.jsonl") as budget:
        assert len(budget.state.reservations) == 2
    assert "--grid" in swept(f"--workdir={tmp_path}/sweep", "--grid=learning_rate=0.3")[2]


def test_private_selection_releases_the_best_alone(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY)
    acc.SharedBudget.create(tmp_path / "budget.jsonl", acc.read_policy(tmp_path / "policy.toml")).close()
    arguments = ("--grid=learning_rate=0.1,0.5", "--selection=geometric", "--mean_trials=1.2")
    arguments += (f"--flags=--steps=20 --epsilon=0.5 --policy={tmp_path}", f"--workdir={tmp_path}/sweep")
    code, out, err = swept(*arguments)
    assert code == 0, err
    sweep_folder = tmp_path / "sweep"
    ledger = acc.read_ledger(sweep_folder / "ledger.jsonl")
    (charge,) = ledger.charges
    assert isinstance(charge.event, acc.RepeatAndSelectDpEvent)
    assert (charge.path, charge.event.mean, charge.event.shape, charge.count) == ("sweep/best", 1.2, 1.0, 1)
    document = json.loads((sweep_folder / "privacy.json").read_text())
    assert 0.5 < document["epsilon"] < 3
    assert "private selection, not by composition" in (sweep_folder / "privacy.md").read_text()
    assert len(list(csv.DictReader((sweep_folder / "summary.csv").open()))) == 1
    assert "private selection" in (sweep_folder / "summary.html").read_text().lower()
    _check_that_it_was_saved_anew(sweep_folder, ledger.head)
    assert stat.S_IMODE((sweep_folder / "private").stat().st_mode) == 0o700
    assert stat.S_IMODE((sweep_folder / "private" / "sweep.json").stat().st_mode) == 0o600
    with acc.SharedBudget(tmp_path / "budget.jsonl") as budget:
        (reservation,) = budget.state.reservations.values()
        assert reservation.committed
        assert reservation.drawn == {"sweep/best": 1}
    assert "trials" not in out  # how many there were is a secret
    assert "done before" in swept(*arguments)[1]


def _check_that_it_was_saved_anew(folder, head):
    """The best trial's parameters, and nothing of when that trial ran."""
    published, state = _newest(folder / "best")
    assert published["head"] == head
    assert state["params"]
    trials = [_newest(path) for path in (folder / "private" / "trials").iterdir() if path.is_dir()]
    assert any(_same(kept, state) for _, kept in trials)
    text = b"".join(path.read_bytes() for path in (folder / "best").rglob("*") if path.is_file())
    notes = [json.loads(path.read_text()) for path in (folder / "private" / "trials").rglob("_CHECKPOINT_METADATA")]
    times = {str(value).encode() for note in notes for name, value in note.items() if name.endswith("_nsecs") and value}
    assert times
    assert not any(time in text for time in times)
    assert not any(trial["head"].encode() in text for trial, _ in trials)


def _newest(run):
    step = max((path for path in (run / "checkpoints").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    return json.loads((step / "ledger" / "metadata").read_text()), ocp.StandardCheckpointer().restore(step.absolute() / "state")


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
