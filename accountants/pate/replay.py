"""The figures of a run of PATE, from its ledger and its stored votes: derived again they are the same, digit for digit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accountants.chain import LedgerContents, read_ledger
from accountants.errors import AccountingError, LedgerError, VotesError
from accountants.pate import record
from accountants.pate.analysis import Analysis, analyse
from accountants.pate.votes import Votes, read_votes

VOTES, SALT = "private/votes.npy", "private/salt"
"""Where a run's folder keeps them."""


def analyse_run(contents: LedgerContents, votes: Votes) -> Analysis | None:
    """The cost of what a ledger answered from `votes`, as it happened; None if it answered nothing.

    Args:
      contents: of the ledger; its header's public `voting` says how votes became answers, and `delta` at which δ.
      votes: of all public examples.

    Raises:
      LedgerError, VotesError: they don't fit one another.
    """
    answers = record.released(contents)
    if not answers:
        return None
    try:
        voting, delta = contents.public["voting"], contents.public["delta"]
        _check_charged_for(contents, voting)
        asked = Votes(votes.counts[[answer.query for answer in answers]], int(voting["teachers"]))
        interactive = voting["mechanism"] == "interactive_gnmax"
        return analyse(
            asked,
            sigma_votes=voting["sigma_votes"],
            threshold=voting["threshold"],
            sigma_threshold=voting["sigma_threshold"],
            noise="laplace" if voting["mechanism"] == "lnmax" else "gaussian",
            student=np.array([answer.student for answer in answers]) if interactive else None,
            answered=np.array([answer.answered for answer in answers]),
            delta=delta,
        )
    except AccountingError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise LedgerError(f"the ledger's header does not describe the voting ({type(error).__name__}: {error})") from None


def _check_charged_for(contents: LedgerContents, voting: Mapping[str, Any]) -> None:
    """Refuses a header that makes no sense, or describes other noise than was charged for."""
    checked = voting["mechanism"] in record.CHECKED
    if voting["mechanism"] not in record.MECHANISMS or any(
        (voting[name] is not None) != checked for name in ("threshold", "sigma_threshold")
    ):
        raise LedgerError("the ledger's header does not describe the voting (mechanism, threshold)")
    check, plurality = record.events(voting["mechanism"], voting["sigma_votes"], voting["sigma_threshold"])
    for charge in contents.charges:
        if charge.event != {record.CHECKS: check, record.PLURALITIES: plurality}.get(charge.path, charge.event):
            raise LedgerError(f"the ledger charges {charge.path} for other noise than its header describes")


def figures(analysis: Analysis) -> dict[str, Any]:
    """The analysis for `privacy.json`, with a value for each query in order of asking. JSON-ready.

    Private: it depends on the votes. What ends in `_independent` holds for any votes, but `threshold_independent` and
    `argmax_independent` are costs at the order that suits these votes, so that they stand beside what a query cost.
    """
    dependent, independent = analysis.data_dependent, analysis.data_independent
    queries = len(analysis.answer_weights)
    return {
        "private": "not to be published: depends on the votes; report --public leaves it out",
        "delta": analysis.delta,
        "order": dependent.order,
        "epsilon": dependent.epsilon,
        "threshold_total": dependent.threshold,
        "argmax_total": dependent.argmax,
        "conversion": dependent.conversion,
        "threshold": analysis.threshold_costs.tolist(),
        "argmax": analysis.argmax_costs.tolist(),
        "cumulative": analysis.cumulative_epsilon.tolist(),
        "answered": (analysis.answer_weights > 0).tolist(),
        "order_independent": independent.order,
        "epsilon_independent": independent.epsilon,
        "epsilon_exact_independent": analysis.epsilon_exact_data_independent,
        "threshold_total_independent": independent.threshold,
        "argmax_total_independent": independent.argmax,
        "conversion_independent": independent.conversion,
        "threshold_independent": [analysis.threshold_cost_independent] * queries,
        "argmax_independent": (analysis.argmax_cost_independent * analysis.answer_weights).tolist(),
        "cumulative_independent": analysis.cumulative_epsilon_independent.tolist(),
    }


def replay(run: Path) -> dict[str, Any]:
    """Derives the figures of the run in a folder again.

    Args:
      run: with ledger.jsonl and the private votes and salt, perhaps with the privacy.json to compare with.

    Returns:
      `figures`, once the votes are those that the ledger is bound to and privacy.json, if there is one, says the same.

    Raises:
      LedgerError: they aren't, or it doesn't.
      VotesError: the run has no votes or answers.
    """

    contents = read_ledger(run / "ledger.jsonl")
    votes = read_votes(run / VOTES)
    try:
        salt = (run / SALT).read_bytes()
    except OSError as error:
        raise VotesError(f"can't read {run / SALT}: {error.strerror or error}") from error
    record.check_bound(contents, votes, salt)
    analysis = analyse_run(contents, votes)
    if analysis is None:
        raise VotesError(f"{run} answered no query")
    derived = figures(analysis)
    written = run / "privacy.json"
    if written.exists():
        try:
            document = json.loads(written.read_bytes())
            given: Mapping[str, Any] = dict(document["pate"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerError(f"{written} holds no figures of PATE ({type(error).__name__})") from error
        differing = sorted(key for key in derived.keys() | given.keys() if derived.get(key) != given.get(key))
        if differing:
            raise LedgerError(f"{', '.join(differing)} in {written} can't be derived from the ledger and the votes")
    return derived
