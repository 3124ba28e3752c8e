"""A run's account: reserved once, drawn before it is charged, reconciled after a crash."""

import errno
import os
import shutil

import pytest

import accountants as acc
from accountants import LedgerError, SharedBudget
from accountants.account import Account, Purse
from tests.accountants.test_shared_budget import COHORTS, STEP, make

NAME = "ab" * 16
PLAN = [("train/gradients", STEP, 100)]


class Run:
    """A ledger, an account and the budget on both, as a trainer opens them."""

    def __init__(self, tmp_path, plan=PLAN, name=NAME, **purse):
        self.shared = SharedBudget(tmp_path / "budget.jsonl")
        self.ledger = acc.Ledger(tmp_path / f"{name}.jsonl")
        self.account = Account(self.shared, name, Purse(**{"release": "model"} | purse))
        charged = {path: self.ledger.contents.count(path) for path, _, _ in plan or PLAN}
        try:
            self.account.begin(plan, charged)
        except BaseException:
            self.__exit__()
            raise
        self.budget = acc.Budget(self.ledger, delta=1e-5, account=self.account)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ledger.close()
        self.shared.close()

    def both(self):
        drawn = [sum(r.drawn.values()) for r in self.shared.state.reservations.values() if r.id.startswith(self.account.name)]
        return sum(drawn), self.ledger.contents.count("train/gradients")


@pytest.fixture
def folder(tmp_path):
    make(tmp_path).close()
    return tmp_path


def test_a_run_is_reserved_once_and_drawn_as_it_charges(folder):
    with Run(folder) as run:
        assert run.budget.affordable(STEP, 1000, "train/gradients") == 100
        run.budget.charge("train/gradients", STEP, 30)
        assert run.both() == (30, 30)
    with Run(folder) as run:  # resumed
        assert run.budget.affordable(STEP, 1000, "train/gradients") == 70
        run.budget.charge("train/gradients", STEP, 70)
        with pytest.raises(acc.BudgetExceededError):
            run.budget.charge("train/gradients", STEP, 1)
        assert run.both() == (100, 100)
        run.account.commit()
    with Run(folder) as run:  # only reported again
        assert run.budget.affordable(STEP, 1000, "train/gradients") == 0
        assert len(run.shared.state.reservations) == 1


def test_a_crash_between_draw_and_charge_is_credited(folder, monkeypatch):
    with Run(folder) as run:
        run.budget.charge("train/gradients", STEP, 10)
        monkeypatch.setattr(run.ledger, "charge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.budget.charge("train/gradients", STEP, 10)
        assert run.both() == (20, 10)
    with Run(folder) as run:
        assert run.budget.affordable(STEP, 1000, "train/gradients") == 90
        run.budget.charge("train/gradients", STEP, 10)
        assert run.both() == (20, 20)
        run.budget.charge("train/gradients", STEP, 5)
        assert run.both() == (25, 25)


def test_a_full_disk_while_drawing_charges_nothing(folder, monkeypatch):
    with Run(folder) as run:
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(LedgerError, match="nothing was released"):
            run.budget.charge("train/gradients", STEP, 10)
        monkeypatch.undo()
        assert run.ledger.contents.count("train/gradients") == 0
    with Run(folder) as run:
        assert run.both() == (0, 0)


def test_a_budget_put_back_to_an_older_state_is_refused(folder):
    with Run(folder) as run:
        run.budget.charge("train/gradients", STEP, 10)
        shutil.copy(folder / "budget.jsonl", folder / "backup")
        run.budget.charge("train/gradients", STEP, 10)
    shutil.copy(folder / "backup", folder / "budget.jsonl")
    with pytest.raises(LedgerError, match="older state") as caught:
        Run(folder)
    assert caught.value.line is not None
    (folder / "budget.jsonl").unlink()
    make(folder).close()
    with pytest.raises(LedgerError, match="older state"):
        Run(folder)


def test_an_operator_may_end_the_reservation_of_a_dead_run_at_any_time(folder):
    with Run(folder) as run:
        run.budget.charge("train/gradients", STEP, 10)
        with SharedBudget(folder / "budget.jsonl") as operator:
            operator.commit(NAME)
        with pytest.raises(LedgerError, match="has ended"):
            run.budget.charge("train/gradients", STEP, 10)
        assert run.both() == (10, 10)  # not recorded, so not released


def test_another_plan_under_the_same_name_is_refused(folder):
    Run(folder).__exit__()
    with pytest.raises(LedgerError, match="another plan"):
        Run(folder, plan=[("train/gradients", STEP, 99)])
    Run(folder, label="moved").__exit__()


def test_without_a_plan_each_charge_is_reserved_as_it_comes(folder):
    with Run(folder, plan=[]) as run:
        n = run.budget.affordable(acc.GaussianDpEvent(8.0), 1000, "train/gradients")
        assert 0 < n < 1000
        run.budget.charge("train/gradients", acc.GaussianDpEvent(8.0), 2)
        run.budget.charge("train/gradients", acc.GaussianDpEvent(8.0), 3)
        assert run.both() == (5, 5)
    with Run(folder, plan=[]) as run:
        rest = run.budget.affordable(acc.GaussianDpEvent(8.0), 1000, "train/gradients")
        assert rest <= n - 5
        run.budget.charge("train/gradients", acc.GaussianDpEvent(8.0), rest)
        with pytest.raises(acc.BudgetExceededError):
            run.budget.charge("train/gradients", acc.GaussianDpEvent(8.0), 1)
        assert run.both() == (5 + rest, 5 + rest)
        run.account.commit()


def test_a_plan_that_does_not_fit_leaves_nothing(tmp_path):
    make(tmp_path, COHORTS).close()
    with pytest.raises(acc.BudgetExceededError):
        Run(tmp_path, plan=[("train/gradients", acc.GaussianDpEvent(2.5), 1)], cohort="others")
    Run(tmp_path, plan=[("train/gradients", acc.GaussianDpEvent(2.7), 1)], cohort="donors").__exit__()
