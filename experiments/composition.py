"""A sweep whose trials may all be released: their costs add up."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accountants import report
from accountants.chain import LedgerContents, read_ledger
from accountants.errors import LedgerError
from accountants.ledger import Ledger
from accountants.statement import statement
from experiments import launch, trials
from experiments.summary import write_summary
from marauder_dp.errors import IntegrityError
from marauder_dp.report_page import write_page
from marauder_dp.run_directory import RunDirectory


def run(
    experiment: str, choices: Sequence[trials.Choice], flags: Sequence[str], directory: RunDirectory, *, jobs: int, metric: str
) -> int:
    """Runs all choices and writes the table, a ledger of all trials, and the statement; returns the exit code.

    Each trial charges its own ledger, and the data set's budget if there is a policy, before it releases anything.
    """
    folder = directory.path / "trials"
    planned = [trials.Trial(i, choice, folder / f"{i:03d}") for i, choice in enumerate(choices)]
    outcomes = trials.run(experiment, planned, flags, jobs=jobs, metric=metric)
    table = trials.rows(outcomes, metric)
    directory.write_text(directory.path / "summary.csv", trials.as_csv(table))
    print(trials.as_text(table))
    ledgers = {trial.number: contents for trial in planned if (contents := _ledger(trial.folder)) is not None}
    if ledgers:
        document = _conclude(directory, ledgers, len(planned))
        write_summary(directory.path / "summary.html", document, outcomes, metric, document["facts"]["mechanism"])
        write_page(directory, print)
    failed = [outcome for outcome in outcomes if outcome.code != 0]
    if failed:
        refused = sum(outcome.code == launch.BUDGET_EXCEEDED for outcome in failed)
        print(f"{len(failed)} trials did not complete, {refused} of them for the budget; see {folder}/NNN.log")
        return max(outcome.code for outcome in failed) if not refused else launch.BUDGET_EXCEEDED
    return launch.DONE


def write_report(directory: RunDirectory, contents: LedgerContents, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes privacy.json and privacy.md of a sweep's ledger; returns the first."""
    document = report.privacy_document(contents, None, facts)
    directory.write_json(directory.privacy_json, document)
    directory.write_text(directory.privacy_md, statement(document))
    print("", report.text_table(report.breakdown_of(contents)), "", f"ledger head    {contents.head}", sep="\n")
    return document


def _ledger(folder: Path) -> LedgerContents | None:
    try:
        return read_ledger(folder / "ledger.jsonl")
    except LedgerError as error:
        if error.line is not None and (folder / "ledger.jsonl").stat().st_size:
            raise IntegrityError(f"{folder}: {error}") from error
        return None  # refused before it began


def _conclude(directory: RunDirectory, ledgers: Mapping[int, LedgerContents], number: int) -> dict[str, Any]:
    """One ledger of all trials, made anew from theirs."""
    first = next(iter(ledgers.values()))
    terms = (first.neighbouring_relation, first.unit)
    if any((contents.neighbouring_relation, contents.unit) != terms for contents in ledgers.values()):
        raise IntegrityError("trials differ in neighbouring relation or unit, so their costs can't be added up")
    delta = min(float(contents.public["delta"]) for contents in ledgers.values())
    void = any(contents.public.get("reproducible_noise") for contents in ledgers.values())
    heads = {f"{i:03d}": contents.head for i, contents in ledgers.items()}
    public = {"delta": delta, "reproducible_noise": void, "trials": heads}
    partial = directory.path / ".ledger.partial"
    partial.unlink(missing_ok=True)
    with Ledger(partial, neighbouring_relation=terms[0], unit=terms[1], public=public) as ledger:
        for i, contents in ledgers.items():
            ledger.charge_all((f"trials/{i:03d}/{charge.path}", charge.event, charge.count) for charge in contents.charges)
        result = ledger.contents
    os.replace(partial, directory.ledger)
    facts = {
        "released": f"The models of all {number} trials, and which of them did best on held-out examples.",
        "covered": "Every release of every trial; each has a ledger and a statement of its own in trials/.",
        "not_covered": ["The held-out examples: the scores are exact and say something about them."],
        "mechanism": (
            f"A sweep of {number} trials. Choosing among them is charged by plain composition: the costs of all trials add up, "
            "so any or all of them may be released. What each trial does is in its own statement."
        ),
        "data_dependence": "No: ε follows from public parameters alone.",
    }
    return write_report(directory, result, facts)
