"""`python -m accountants votes`: what recorded votes cost."""

import argparse
import dataclasses
from typing import Any

from accountants.breakdown import finite_or_text
from accountants.errors import VotesError
from accountants.pate.analysis import NOISES, Analysis, analyse
from accountants.pate.votes import Votes, read_npy, read_votes
from accountants.report import upper


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("votes", metavar="VOTES.npy", help="(queries, classes) whole numbers, each row sums to the teachers")
    parser.add_argument("--sigma_votes", type=float, required=True, metavar="S2", help="noise on each count, in votes")
    parser.add_argument("--delta", type=float, required=True, metavar="D")
    parser.add_argument("--threshold", type=float, metavar="T", help="in votes; without it every query is answered")
    parser.add_argument("--sigma_threshold", type=float, metavar="S1", help="noise of the threshold check, in votes")
    parser.add_argument("--queries", type=int, metavar="N", help="look at the first N alone")
    parser.add_argument("--answered", metavar="FILE.npy", help="(queries,) of bool, what was answered; default: in expectation")
    parser.add_argument("--noise", choices=NOISES, default="gaussian", help="on the counts; S2 is the scale if it is laplace")
    parser.add_argument("--conversion", choices=["tight", "classic"], default="tight")
    parser.add_argument(
        "--both_directions",
        action="store_true",
        help="bound the divergence from a neighbour's votes to these too (see the guide)",
    )


def run(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The command's JSON object and its text.

    Raises:
      AccountingError: the votes or a flag are not what they have to be.
    """
    votes = read_votes(args.votes)
    answered = None if args.answered is None else read_npy(args.answered)
    if args.queries is not None:
        votes = votes.first(args.queries)
        if answered is not None and answered.ndim == 1 and len(answered) >= args.queries:
            answered = answered[: args.queries]
    if answered is not None and answered.dtype.kind in "iu" and ((answered == 0) | (answered == 1)).all():
        answered = answered.astype(bool)
    if args.threshold is None and args.answered is not None:
        raise VotesError("--answered needs --threshold and --sigma_threshold: without a check every query is answered")
    result = analyse(
        votes,
        threshold=args.threshold,
        sigma_threshold=args.sigma_threshold,
        sigma_votes=args.sigma_votes,
        delta=args.delta,
        answered=answered,
        noise=args.noise,
        conversion=args.conversion,
        both_directions=args.both_directions,
    )
    return _json(votes, result, args), _text(votes, result)


def _json(votes: Votes, result: Analysis, args: argparse.Namespace) -> dict[str, Any]:
    dependent, independent = result.data_dependent, result.data_independent
    return {
        "epsilon_data_dependent": finite_or_text(dependent.epsilon),
        "epsilon_data_independent": finite_or_text(independent.epsilon),
        "threshold": dependent.threshold,
        "argmax": dependent.argmax,
        "conversion": finite_or_text(dependent.conversion),
        "order": dependent.order,
        "answered_expected": result.answered,
        "expected": result.expected,
        "epsilon_exact_data_independent": result.epsilon_exact_data_independent,
        "data_independent": dataclasses.asdict(independent),
        "delta": result.delta,
        "conversion_name": args.conversion,
        "both_directions": result.both_directions,
        "neighbouring_relation": "one_vote_moves",
        "queries": len(votes),
        "teachers": votes.teachers,
        "classes": votes.classes,
        "private": [
            "epsilon_data_dependent",
            "threshold",
            "argmax",
            "conversion",
            "order",
            *(
                ["answered_expected", "epsilon_data_independent", "epsilon_exact_data_independent", "data_independent"]
                if result.expected
                else []
            ),
        ],
    }


def _text(votes: Votes, result: Analysis) -> str:
    answers = f"{result.answered:,.1f} answered in expectation" if result.expected else f"{result.answered:,.0f} answered"
    head = f"{len(votes):,} queries to {votes.teachers:,} teachers, {votes.classes} classes; {answers}; δ = {result.delta:g}"
    return f"{head}\n{analysis_text(result)}"


def analysis_text(result: Analysis) -> str:
    """The components of an analysis as a table of plain text."""
    dependent, independent = result.data_dependent, result.data_independent
    rows = [
        ("", "these votes (PRIVATE)", "any votes"),
        ("threshold checks", *(f"{s.threshold:.4f}" for s in (dependent, independent))),
        ("pluralities", *(f"{s.argmax:.4f}" for s in (dependent, independent))),
        ("conversion", *(f"{s.conversion:.4f}" for s in (dependent, independent))),
        ("ε", *(upper(s.epsilon) for s in (dependent, independent))),
        ("Rényi order", *(f"{s.order:g}" for s in (dependent, independent))),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        *("  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2])]) for row in rows),
    ]
    if result.epsilon_exact_data_independent is not None:
        lines.append(
            f"exactly, for so many answers from any votes: ε ≤ {upper(result.epsilon_exact_data_independent)} (Gaussian DP)"
        )
    lines.append(
        "Do not publish the column of these votes: it depends on private data. One training example moves one vote a query."
    )
    if not result.both_directions:
        lines.append("It bounds the divergence of these votes' answers from a neighbour's; --both_directions also the reverse.")
    if result.expected:
        lines.append(
            "Costs are in expectation over answers, so both columns depend on the votes; --answered charges what happened."
        )
    return "\n".join(lines)
