"""Runs under a policy: whose data, what for, and what the data set's budget says of it."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from accountants import SharedBudget, read_ledger, read_policy, report
from accountants.__main__ import main as accountants_main
from benchmarks import kills
from marauder_dp.datasets import load_dataset
from marauder_dp.plan import GRADIENTS
from tests.experiments.conftest import ROOT

QUICK = ("--steps=30", "--batch_size=64")
POLICY = "\n" + kills.POLICY.format(fingerprint=load_dataset("digits").fingerprint()) + 'labels = "nobody yet"\n'
COHORTS = """
[cohort.early]
rows = [[0, 700]]
epsilon = 3.0
delta = 1e-5
[cohort.late]
rows = [[700, 1000]]
epsilon = 1.0
delta = 1e-5
"""
PURPOSES = """
[purpose.research]
release = ["model"]
epsilon = 2.0
delta = 1e-6
[purpose.labelling]
release = ["labels"]
epsilon = 1.0
delta = 1e-6
"""


@pytest.fixture
def begin(tmp_path, capsys):
    """begin(*tables) → path of a policy of these tables whose budget was started."""

    def call(*more):
        path = tmp_path / "data" / "policy.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(POLICY + "".join(more))
        assert accountants_main(["budget", "init", str(path)]) == 0
        capsys.readouterr()
        return path

    return call


def budget_of(policy):
    with SharedBudget(policy.parent / "budget.jsonl", read_policy(policy)) as budget:
        return budget.state


def test_a_run_charges_the_budget_and_says_so(cli, begin, tmp_path):
    policy = begin()
    code, out, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=3", *QUICK)
    assert code == 0, err
    assert "spent so far: all 0 of ε = 3 at δ = 1e-05" in out
    state = budget_of(policy)
    (reservation,) = state.reservations.values()
    assert reservation.committed
    assert reservation.drawn == {GRADIENTS: 30}
    head = re.search(r"budget head\s+(\w+)", out)[1]
    assert head == state.head
    document = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert document["facts"]["budget"]["head"] == head
    assert document["ledger"]["public"]["budget"]["id"] == state.hashes[0]
    assert report.verify(tmp_path / "run" / "privacy.json")["ok"]
    statement = (tmp_path / "run" / "privacy.md").read_text()
    assert "The policy allows a model to go to: anyone" in statement
    assert head in statement
    # Whoever knows all but one example could tell by the fingerprint which one is there.
    fingerprint = load_dataset("digits").fingerprint().removeprefix("sha256:").encode()
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.parent.name != "private":
            assert fingerprint not in path.read_bytes(), path
    # Exactly calibrated to the whole ceiling: nothing more fits, and the run is only reported again.
    assert cli(f"--policy={policy}", f"--workdir={tmp_path}/other", "--epsilon=0.1", *QUICK)[0] == 3
    assert cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=3", *QUICK)[0] == 0
    assert len(budget_of(policy).reservations) == 1


def test_a_run_that_does_not_fit_releases_nothing(cli, begin, tmp_path):
    policy = begin()
    code, _, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=3.5", *QUICK)
    assert code == 3
    assert "ceiling of all, ε = 3" in err
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").count(GRADIENTS) == 0
    assert not budget_of(policy).reservations
    assert cli(f"--policy={policy}", f"--workdir={tmp_path}/bare", "--private=false", *QUICK)[0] == 3


def test_cohorts_train_on_their_rows_alone(cli, begin, tmp_path):
    policy = begin(COHORTS)
    for cohort, epsilon, n in (("early", 3, 700), ("late", 1, 300)):
        code, out, _ = cli(
            f"--policy={policy}", f"--workdir={tmp_path}/{cohort}", f"--cohort={cohort}", f"--epsilon={epsilon}", *QUICK
        )
        assert code == 0
        assert f"{n} training examples" in out
    assert cli(f"--policy={policy}", f"--workdir={tmp_path}/all", "--cohort=all", "--epsilon=0.5", *QUICK)[0] == 3
    spent = [budget_of(policy).spent(scope) for scope in budget_of(policy).terms.scopes()]
    assert spent[2] == 0
    assert spent[0] == pytest.approx(3, rel=0.01)
    assert spent[1] == pytest.approx(1, rel=0.01)


def test_purposes(cli, begin, tmp_path):
    policy = begin(PURPOSES)
    assert cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--purpose=research", "--epsilon=1.5", *QUICK)[0] == 0
    code, _, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/two", "--purpose=research", "--epsilon=1.5", *QUICK)
    assert (code, "all/research" in err) == (3, True)


@pytest.mark.parametrize(
    ("more", "arguments", "code", "message"),
    [
        (COHORTS, (), 2, "--cohort=early|late|all"),
        (COHORTS, ("--cohort=x",), 2, "all, early, late"),
        (PURPOSES, (), 2, "--purpose=research|labelling"),
        (PURPOSES, ("--purpose=labelling",), 2, "does not allow a model to be released for labelling"),
        ("", ("--purpose=research",), 2, "no purpose 'research'"),
        ("", ("--dataset=digits", "--neighbouring_relation=zero_out"), 2, "neighbouring_relation = 'add_or_remove_one'"),
        ("[cohort.big]\nrows = [[0, 2000]]\nepsilon = 1.0\ndelta = 1e-5", ("--cohort=big",), 4, "up to row 1,999"),
        ("[cohort.a]\nrows = [[0, 9]]\nepsilon = 9.0\ndelta = 1e-5", (), 2, "line 16: cohort.a.epsilon"),
        (COHORTS, ("--cohort=early", "--unit={ids}", "--examples_per_unit=4"), 2, "units have examples in several cohorts"),
        ("", ("--unit={ids}", "--examples_per_unit=4", "--batch_size=8"), 2, "is about unit = 'example'"),
    ],
)
def test_what_a_policy_refuses_is_one_line(cli, begin, tmp_path, more, arguments, code, message):
    policy = begin(more) if "epsilon = 9" not in more else tmp_path / "policy.toml"
    if not policy.exists():
        policy.write_text(POLICY + more)
    np.save(tmp_path / "ids.npy", np.arange(1437) // 8)
    arguments = [argument.format(ids=tmp_path / "ids.npy") for argument in arguments]
    found, _, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--steps=30", *arguments)
    assert found == code, err
    assert message in err
    assert len([line for line in err.splitlines() if line]) == 1
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_other_data_and_changed_policies_are_integrity_failures(cli, begin, tmp_path):
    policy = begin()
    text = policy.read_text()
    for changed in (text.replace("epsilon = 3.0", "epsilon = 30.0"), text.replace("anyone", "everyone")):
        policy.write_text(changed)
        code, _, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=3", *QUICK)
        assert code == 4
        assert "a policy stays as it was" in err
    policy.write_text(re.sub("sha256:.", "sha256:0", text))
    code, _, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=3", *QUICK)
    assert (code, "not those of" in err) == (4, True)
    policy.write_text(text)
    policy.with_name("budget.jsonl").unlink()
    code, _, err = cli(f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=3", *QUICK)
    assert (code, "budget init" in err) == (2, True)


def test_a_policy_beside_the_data_needs_no_flag(cli, begin, tmp_path):
    policy = begin()
    where = f"--data_dir={policy.parent}"
    assert cli(where, f"--workdir={tmp_path}/run", "--epsilon=1", *QUICK)[0] == 0
    assert len(budget_of(policy).reservations) == 1
    shutil.copytree(policy.parent, tmp_path / "copy")
    code, _, err = cli(where, f"--policy={tmp_path}/copy", f"--workdir={tmp_path}/other", "--epsilon=1", *QUICK)
    assert (code, "beside them" in err) == (2, True)
    code, _, err = cli("--cohort=early", f"--workdir={tmp_path}/other", *QUICK)
    assert (code, "give --policy" in err) == (2, True)


def test_an_older_budget_is_noticed_by_the_run_that_charged_it(cli, begin, tmp_path):
    policy = begin()
    budget = policy.with_name("budget.jsonl")
    shutil.copy(budget, tmp_path / "backup")
    arguments = (f"--policy={policy}", f"--workdir={tmp_path}/run", "--epsilon=1", *QUICK)
    assert cli(*arguments)[0] == 0
    shutil.copy(tmp_path / "backup", budget)
    code, _, err = cli(*arguments)
    assert (code, "older state" in err) == (4, True)


def test_pate_reserves_each_chunk_of_answers_as_it_is_asked(begin, tmp_path):
    policy = begin()
    small = ("--teachers=30", "--public=150", "--teacher_model=logistic", "--teacher_epochs=2", "--student_model=logistic")
    where = (f"--policy={policy}", f"--workdir={tmp_path}/run", "--delta=1e-5")
    command = [sys.executable, "-m", "experiments.pate", *where, *small, "--student_steps=20", "--epsilon=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ledger, state = read_ledger(tmp_path / "run" / "ledger.jsonl"), budget_of(policy)
    drawn = Counter()
    for reservation in state.reservations.values():
        assert reservation.committed
        drawn.update(reservation.drawn)
    assert drawn == Counter({path: ledger.count(path) for path in drawn})
    assert sum(drawn.values()) == sum(charge.count for charge in ledger.charges)
    assert state.head in (tmp_path / "run" / "privacy.md").read_text()
