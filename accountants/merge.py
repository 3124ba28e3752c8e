"""Several runs on one data set as one: what all of their releases cost together.

Everything in every ledger is composed, each component under the name of its run. Nothing is assumed about which units a run
really saw: that is right for runs on the same data, and too much for runs on parts of it.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence

from accountants.chain import LedgerContents
from accountants.errors import LedgerError
from accountants.event_json import to_dict
from accountants.events import ComposedDpEvent, DpEvent, SelfComposedDpEvent
from accountants.runs import Run, run_of


def merged(runs: Sequence[Run], delta: float | None = None, accountant: str = "auto") -> Run:
    """One run made of several.

    Its head is the SHA-256 of theirs, one a line; each stands in `public`.

    Args:
      runs: of one data set.
      delta: in (0, 1); by default the one that all declare.
      accountant: "auto", "pld" or "rdp".

    Raises:
      LedgerError: they protect different units, are meant under different relations or δ, or one is there twice.
    """
    for what, values in {
        "neighbouring relations": [str(run.contents.neighbouring_relation) for run in runs],
        "units of privacy": [run.contents.unit for run in runs],
        "delta": [] if delta is not None else [f"{run.document['delta']:g}" for run in runs],
    }.items():
        if len(set(values)) > 1:
            fix = "; give one with --delta" if what == "delta" else ": their epsilons can't be added up"
            raise LedgerError(f"the ledgers have different {what} ({', '.join(dict.fromkeys(values))}){fix}")
    names = _names(runs)
    for i, run in enumerate(runs):
        for j, other in enumerate(runs):
            # Equal histories of other libraries may be of different runs; ledgers name the time they began.
            if (
                run.is_ledger
                and i != j
                and run.contents.head in other.contents.hashes
                and (i < j or run.contents.head != other.contents.head)
            ):
                raise LedgerError(f"ledger {i + 1} ({run.name}) is contained in ledger {j + 1} ({other.name}): leave it out")
    sizes = {run.contents.public.get("num_examples") for run in runs}
    public = {
        "delta": runs[0].document["delta"] if delta is None else delta,
        "reproducible_noise": any(bool(run.contents.public.get("reproducible_noise")) for run in runs),
        "merged": [{"name": name, "head": run.contents.head} for name, run in zip(names, runs, strict=True)],
    }
    if len(sizes) == 1 and None not in sizes:
        public["num_examples"] = sizes.pop()
    if any(run.contents.promise is not None for run in runs):
        public["promise"] = to_dict(ComposedDpEvent(tuple(run.contents.promise or _composed(run) for run in runs)))
    charges = tuple(
        dataclasses.replace(charge, path=f"{name}/{charge.path}")
        for name, run in zip(names, runs, strict=True)
        for charge in run.contents.charges
    )
    head = hashlib.sha256("\n".join(run.contents.head for run in runs).encode()).hexdigest()
    contents = LedgerContents(runs[0].contents.neighbouring_relation, runs[0].contents.unit, public, charges, (head,))
    facts = {
        "covered": f"Everything in {len(runs)} ledgers: {', '.join(names)}.",
        "not_covered": [
            "Releases from the same data that are in none of these ledgers.",
            "Choosing among these runs by their results on this data.",
        ],
    }
    return run_of(contents, " + ".join(names), delta, accountant, facts)


def _composed(run: Run) -> DpEvent:
    return ComposedDpEvent(tuple(SelfComposedDpEvent(charge.event, charge.count) for charge in run.spent.charges))


def _names(runs: Sequence[Run]) -> list[str]:
    """Fit for a component's path, and different."""
    names: list[str] = []
    for run in runs:
        name = stem = re.sub(r"[^a-z0-9_]+", "_", run.name.lower()).strip("_") or "run"
        number = 1
        while name in names:
            number += 1
            name = f"{stem}_{number}"
        names.append(name)
    return names
