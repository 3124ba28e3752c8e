"""`python -m accountants`: the accountant on the command line. No JAX needed.

Exit codes: 0 done, 2 usage error or a request that has no answer, 4 integrity failure.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accountants import report
from accountants.breakdown import finite_or_text
from accountants.calibration import calibrate_noise_multiplier
from accountants.chain import read_ledger
from accountants.errors import AccountingError, LedgerError
from accountants.events import NeighbouringRelation, dpsgd_event
from accountants.rdp import RdpAccountant
from accountants.statement import statement

USAGE_ERROR = 2
INTEGRITY_FAILURE = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except LedgerError as error:
        print(f"error: {error}", file=sys.stderr)
        return INTEGRITY_FAILURE if error.line is not None else USAGE_ERROR
    except AccountingError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _epsilon(args: argparse.Namespace) -> int:
    event = dpsgd_event(args.noise_multiplier, args.sampling_probability, args.steps)
    accountant = RdpAccountant(neighbouring_relation=args.neighbouring_relation, conversion=args.conversion)
    epsilon, order = accountant.compose(event).get_epsilon_and_optimal_order(args.delta)
    result = {
        "epsilon": finite_or_text(epsilon),
        "lower": None,  # the Rényi accountant bounds ε from above only
        "delta": args.delta,
        "accountant": accountant.name,
        "conversion": accountant.conversion,
        "order": order,
        "neighbouring_relation": args.neighbouring_relation,
    }
    how = f"under {args.neighbouring_relation} ({accountant.name}, order {order:g})"
    return _show(args, result, f"ε ≤ {report.upper(epsilon, 6)} at δ = {args.delta:g} {how}")


def _calibrate(args: argparse.Namespace) -> int:
    noise_multiplier = calibrate_noise_multiplier(
        epsilon=args.epsilon,
        delta=args.delta,
        sampling_probability=args.sampling_probability,
        steps=args.steps,
        neighbouring_relation=args.neighbouring_relation,
    )
    event = dpsgd_event(noise_multiplier, args.sampling_probability, args.steps)
    accountant = RdpAccountant(neighbouring_relation=args.neighbouring_relation).compose(event)
    epsilon = accountant.get_epsilon(args.delta)
    result = {
        "noise_multiplier": noise_multiplier,
        "epsilon": epsilon,
        "delta": args.delta,
        "accountant": accountant.name,
        "neighbouring_relation": args.neighbouring_relation,
    }
    meets = f"ε ≤ {report.upper(epsilon, 6)} at δ = {args.delta:g} ({accountant.name})"
    return _show(args, result, f"noise multiplier {noise_multiplier!r} gives {meets}")


def _report(args: argparse.Namespace) -> int:
    if args.ledger.endswith(".json"):
        raise LedgerError(f"{args.ledger} is not a ledger: `report` takes ledger.jsonl, `verify` takes either")
    contents = read_ledger(args.ledger)
    if contents.torn:
        print(
            f"warning: line {len(contents.hashes) + 1} is torn (a crash in mid-write, before its release) and left out",
            file=sys.stderr,
        )
    document = report.privacy_document(contents, args.delta)
    if args.statement:
        return _show(args, document, statement(document))
    table = report.text_table(report.breakdown_of(contents, args.delta))
    return _show(args, document, "\n".join([*report.caveats(contents.public), table]))


def _verify(args: argparse.Namespace) -> int:
    if not Path(args.file).is_file():
        raise LedgerError(f"there is no file {args.file}")
    if args.head is not None and not re.fullmatch("[0-9a-f]{64}", args.head):
        raise LedgerError(f"--head must be a SHA-256 hash, 64 hexadecimal digits; got {args.head!r:.80}")
    result = report.verify(args.file, args.head)
    if result["ok"]:
        text = f"ok: {result['events']:,} events, head {result['head']}\n    {result['checked']}"
    else:
        text = f"FAILED: {result['error']}"
    _show(args, result, text)
    return 0 if result["ok"] else INTEGRITY_FAILURE


def _show(args: argparse.Namespace, result: dict[str, Any], text: str) -> int:
    print(json.dumps(result) if args.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m accountants", description="Account for differential privacy: what was released, what it cost."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=run)
        return sub

    def sampled(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--sampling_probability", type=float, required=True, metavar="Q", help="of each unit at each step")
        sub.add_argument("--steps", type=int, required=True, metavar="T")
        sub.add_argument("--delta", type=float, required=True, metavar="D")
        sub.add_argument(
            "--neighbouring_relation",
            choices=[str(relation) for relation in NeighbouringRelation],
            default=str(NeighbouringRelation.ADD_OR_REMOVE_ONE),
        )
        sub.add_argument("--accountant", choices=["auto", "rdp"], default="auto", help="auto is the tightest there is: rdp")

    epsilon = command("epsilon", _epsilon, "The ε of a Poisson-sampled Gaussian mechanism (DP-SGD).")
    epsilon.add_argument("--noise_multiplier", type=float, required=True, metavar="S", help="noise / clip norm")
    sampled(epsilon)
    epsilon.add_argument("--conversion", choices=["tight", "classic"], default="tight", help="from Rényi DP to (ε, δ)")

    calibrate = command("calibrate", _calibrate, "The noise multiplier that meets a target ε.")
    calibrate.add_argument("--epsilon", type=float, required=True, metavar="E")
    sampled(calibrate)

    show = command("report", _report, "Spend by component of a ledger.")
    show.add_argument("ledger", metavar="LEDGER")
    show.add_argument("--delta", type=float, metavar="D", help="default: the one the ledger declares")
    show.add_argument(
        "--statement",
        action="store_true",
        help="print the privacy statement (Markdown); a ledger alone lacks what a run's own privacy.md adds",
    )

    verify = command("verify", _verify, "Check a ledger's hash chain, or re-derive the figures of a privacy.json.")
    verify.add_argument("file", metavar="LEDGER_OR_PRIVACY_JSON")
    verify.add_argument("--head", metavar="HASH", help="what the last hash must be: detects truncation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
