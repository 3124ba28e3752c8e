"""A run under a policy: is it allowed, on which rows, and what it charges to the data set's budget.

The policy lies beside the data (`policy.toml`), and so does the budget (`budget.jsonl`). Data that have a policy beside them
are under it whether or not a program was told of it.
"""

import dataclasses
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from accountants import policy as policies
from accountants import shared_budget
from accountants.account import Account, Purse
from accountants.chain import read_ledger
from accountants.errors import LedgerError
from accountants.events import NeighbouringRelation, RepeatAndSelectDpEvent, SelfComposedDpEvent
from accountants.policy import ALL, NUM_EXAMPLES, Policy, read_policy
from accountants.report import upper
from accountants.shared_budget import SharedBudget
from marauder_dp.datasets.base import DATA_DIR_VARIABLE, Dataset
from marauder_dp.errors import IntegrityError, PlanError


def find_policy(given: str | None, data_dir: str | None, dataset: str) -> Path | None:
    """The policy of a data set: the file given, else one beside the data, else None.

    Args:
      given: path of a policy, or of the folder that it lies in.
      data_dir: of the data files; default: $MARAUDER_DATA_DIR.
      dataset: its name, which is also that of its folder, if it has one there.

    Raises:
      PlanError: the data have a policy beside them and another one was given.
    """
    base = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    places = [Path(base).expanduser() / dataset, Path(base).expanduser()] if base else []
    beside = next((place / policies.FILE for place in places if (place / policies.FILE).is_file()), None)
    if given is None:
        return beside
    path = Path(given).expanduser()
    path = path / policies.FILE if path.is_dir() else path
    if beside is not None and not (path.exists() and path.samefile(beside)):
        raise PlanError(f"these data have a policy beside them, {beside}; leave --policy={given} out")
    return path


@dataclasses.dataclass(frozen=True)
class Permit:
    """What a policy allows one run.

    Attributes:
      policy: as read.
      path: of its file.
      purse: under what the run charges.
      within: name of the reservation of a private selection that the run is a trial of, and that has paid for it; or "".
    """

    policy: Policy
    path: Path
    purse: Purse
    within: str = ""

    @classmethod
    def of(cls, path: Path, *, release: str, cohort: str | None, purpose: str | None, within: str = "") -> "Permit":
        """Reads a policy and checks what doesn't depend on the data.

        Raises:
          PolicyError: the policy is not as it has to be.
          PlanError: it does not allow this.
        """
        policy = read_policy(path)
        if cohort is None and policy.cohorts:
            raise PlanError(f"{path} has cohorts: say whose data with --cohort={'|'.join([*policy.cohorts, ALL])}")
        if purpose is None and policy.purposes:
            raise PlanError(f"{path} has purposes: say what for with --purpose={'|'.join(policy.purposes)}")
        cohort, purpose = cohort or ALL, purpose or ""
        if cohort != ALL and cohort not in policy.cohorts:
            raise PlanError(f"{path} has no cohort {cohort!r}; it has {', '.join([ALL, *policy.cohorts])}")
        if purpose and purpose not in policy.purposes:
            raise PlanError(f"{path} has no purpose {purpose!r}; it has {', '.join(policy.purposes) or 'none'}")
        allowed = policy.purposes[purpose].release if purpose else tuple(policy.release)
        if release not in allowed:
            what = f" for {purpose}" if purpose else ""
            raise PlanError(f"{path} does not allow a {release} to be released{what}; it allows {', '.join(allowed)}")
        if NUM_EXAMPLES not in policy.public:
            raise PlanError(
                f'{path} does not list "{NUM_EXAMPLES}" under public, but the sampling probability and δ follow from the '
                "number of units"
            )
        return cls(policy, path, Purse(release, cohort, purpose), within)

    @property
    def delta(self) -> float:
        """The least δ of the ceilings that the run comes under."""
        policy, purse = self.policy, self.purse
        ceilings = [c.ceiling for name, c in policy.cohorts.items() if purse.cohort in (ALL, name)]
        ceilings += [policy.purposes[purse.purpose].ceiling] if purse.purpose else []
        return min(ceiling.delta for ceiling in (policy.ceiling, *ceilings))

    def select(self, dataset: Dataset) -> tuple[Dataset, NDArray[np.int64]]:
        """The cohort's part of the data, and its row numbers.

        Raises:
          IntegrityError: the data are not those of the policy.
        """
        policy = self.policy
        if policy.fingerprint and dataset.fingerprint() != policy.fingerprint:
            raise IntegrityError(f"the data are not those of {self.path} (another fingerprint); nothing was released")
        every = np.arange(dataset.num_examples)
        last = max((end for cohort in policy.cohorts.values() for _, end in cohort.rows), default=0)
        if last > len(every):
            raise IntegrityError(f"{self.path} has cohorts up to row {last - 1:,}, but there are {len(every):,} examples")
        if self.purse.cohort == ALL:
            return dataset, every
        rows = np.concatenate([every[start:end] for start, end in policy.cohorts[self.purse.cohort].rows])
        chosen = dataset.rows(rows)
        return dataclasses.replace(chosen, name=f"{dataset.name} ({self.purse.cohort})"), rows

    def units(self, ids: NDArray[Any], rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """The ids of the cohort's part of the data.

        Args:
          ids: whose each example is, of all data.
          rows: numbers of that part; None for all.

        Raises:
          PlanError: units have examples in several cohorts: what they pay would be counted in one alone.
        """
        classes = np.zeros(len(ids), np.int64)
        for number, cohort in enumerate(self.policy.cohorts.values(), start=1):
            for start, end in cohort.rows:
                classes[start:end] = number
        _, of_unit = np.unique(ids, return_inverse=True)
        low = np.full(int(of_unit.max(initial=-1)) + 1, len(self.policy.cohorts) + 1)
        high = np.zeros_like(low)
        np.minimum.at(low, of_unit, classes)
        np.maximum.at(high, of_unit, classes)
        if (low < high).any():
            raise PlanError(f"{int((low < high).sum()):,} units have examples in several cohorts of {self.path}")
        return ids if rows is None or rows.max(initial=-1) >= len(ids) else ids[rows]

    def check_terms(self, relation: NeighbouringRelation, unit: str) -> None:
        """Refuses a run whose guarantee means something else than the policy's ceilings.

        Raises:
          PlanError: it does.
        """
        for name, mine, theirs in (
            ("neighbouring_relation", str(relation), str(self.policy.neighbouring_relation)),
            ("unit", unit, self.policy.unit),
        ):
            if mine != theirs:
                raise PlanError(f"{self.path} is about {name} = {theirs!r}, this run about {mine!r}")

    def outlook(self) -> str:
        """What is spent of the ceilings that this run comes under, in one line.

        Raises:
          LedgerError: as `open`.
        """
        with SharedBudget(self.path.parent / shared_budget.FILE, self.policy, read_only=True) as budget:
            state = budget.state
            parts = [
                f"{scope.name} {upper(state.spent(scope))} of ε = {scope.ceiling.epsilon:g} at δ = {scope.ceiling.delta:g}"
                for scope in state.terms.scopes(self.purse.cohort, self.purse.purpose)
            ]
        return f"of {self.policy.name}; spent so far: {'; '.join(parts)}"

    def open(self, ledger: Path, label: str) -> "RunAccount":
        """The run's account in the budget beside the policy.

        Args:
          ledger: of the run; if it was begun, it says under which name.
          label: for people.

        Raises:
          LedgerError: there is no budget, or it is damaged or of another policy.
        """
        budget = SharedBudget(self.path.parent / shared_budget.FILE, self.policy)
        try:
            kind = TrialAccount if self.within else RunAccount
            return kind(self, budget, _name(ledger), label)
        except BaseException:
            budget.close()
            raise


class RunAccount(Account):
    """The account of a run of ours; closes the budget at its end."""

    def __init__(self, permit: Permit, budget: SharedBudget, name: str, label: str):
        super().__init__(budget, name, dataclasses.replace(permit.purse, label=label))
        self._permit = permit

    @property
    def public(self) -> dict[str, Any]:
        """For the header of the run's ledger: which budget, and under which name."""
        purse = dataclasses.asdict(self.purse)
        purse.pop("label")
        return {"budget": {"id": self._budget.state.hashes[0], "run": self.name, **purse}}

    def check_head(self, head: str) -> None:
        """Refuses a budget that lacks the line a checkpoint was saved after.

        Raises:
          IntegrityError: it was put back to an older state.
        """
        if head and head not in self._budget.state.hashes:
            raise IntegrityError(
                f"the checkpoint was saved when the budget {self._budget.path} had the head {head}, which it does not contain: "
                "it was put back to an older state or exchanged. Restore the newest one; nothing was released"
            )

    def facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of a privacy statement, with what the policy adds."""
        policy, purse = self._permit.policy, self.purse
        state = self._budget.refresh()
        ceilings = [
            f"ε = {scope.ceiling.epsilon:g} at δ = {scope.ceiling.delta:g} for {scope.name}"
            for scope in state.terms.scopes(purse.cohort, purse.purpose)
        ]
        covered = (
            f"This run was reserved in the budget of {policy.name}, which all runs on these data share, before it began. The "
            f"budget keeps to {'; '.join(ceilings)}. Its head after this run: {self.head}."
        )
        return {
            **facts,
            "released": [
                *_as_list(facts["released"]),
                f"The policy allows a {purse.release} to go to: {policy.release[purse.release]}",
            ],
            "public": [*_as_list(facts["public"]), *(f"By the policy: {item}" for item in policy.public)],
            "covered": [*_as_list(facts["covered"]), covered],
            "budget": {**self.public["budget"], "head": self.head},
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._budget.close()


class TrialAccount(RunAccount):
    """The account of a trial of a private selection, which was paid for as a whole before the first trial began.

    Nothing of a trial may be released but by the selection.
    """

    @property
    def public(self) -> dict[str, Any]:
        """For the header of the run's ledger."""
        begun = super().public["budget"]
        return {"budget": begun | {"within": self._permit.within}}

    def begin(self, plan: Sequence[tuple[str, Any, int]], charged: Mapping[str, int]) -> None:
        """Refuses a plan that the selection hasn't paid for."""
        del charged
        ((path, event, count),) = plan
        reservation = self._budget.refresh().reservations.get(self._permit.within)
        paid = reservation.charges[0].event if reservation is not None else None
        if (
            reservation is None
            or reservation.committed
            or not isinstance(paid, RepeatAndSelectDpEvent)
            or paid.event != SelfComposedDpEvent(event, count)
            or Purse(reservation.release, reservation.cohort, reservation.purpose) != dataclasses.replace(self.purse, label="")
            or not any(reservation.drawn.values())
        ):
            raise IntegrityError(f"no selection {self._permit.within!r:.80} that is going on has paid for {count:,} of {path}")

    def affordable(self, path: str, event: Any, at_most: int) -> int:
        """All of the plan is paid for."""
        del path, event
        return at_most

    def draw(self, path: str, event: Any, count: int) -> None:
        """Nothing: it was drawn before."""

    def commit(self) -> None:
        """Nothing: the selection ends it."""


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _name(ledger: Path) -> str:
    """The name under which a run was begun, or a new one."""
    try:
        begun = read_ledger(ledger).public.get("budget")
    except LedgerError:  # there is none yet; damage is told by whoever opens it for writing
        begun = None
    return str(begun["run"]) if isinstance(begun, dict) and "run" in begun else secrets.token_hex(16)
