"""`python -m accountants`: the accountant on the command line. No JAX needed.

Exit codes: 0 done, 2 usage error or a request that has no answer, 3 a budget would be exceeded, 4 integrity failure.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from accountants import budget_command, calibration, report, signing
from accountants.accountant import ACCOUNTANTS, Accountant, make_accountant
from accountants.breakdown import finite_or_text
from accountants.domains import positive, whole
from accountants.errors import AccountingError, BudgetExceededError, InvalidEventError, LedgerError
from accountants.events import NeighbouringRelation, dpsgd_event
from accountants.heads import hashes_of, is_budget, verify_budget
from accountants.merge import merged
from accountants.pate import command as votes_command
from accountants.pld import DEFAULT_RTOL
from accountants.profile import bayes_risk, gdp, profile
from accountants.rdp import RdpAccountant
from accountants.runs import DOCUMENT, LEDGER, Run, read_run
from accountants.statement import statement
from accountants.version import __version__

USAGE_ERROR = 2
BUDGET_EXCEEDED = 3
INTEGRITY_FAILURE = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser().parse_args(argv)
    except _UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        if "--json" in argv:
            print(json.dumps({"error": str(error)}))
        return USAGE_ERROR
    try:
        return int(args.run(args))
    except AccountingError as error:
        print(f"error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"error": str(error)}))
        if isinstance(error, BudgetExceededError):
            return BUDGET_EXCEEDED
        return INTEGRITY_FAILURE if isinstance(error, LedgerError) and error.line is not None else USAGE_ERROR
    except BrokenPipeError:
        sys.stderr.close()
        return 0


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    """Errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see {self.prog} --help")


def _composed(args: argparse.Namespace) -> Accountant:
    """An accountant with the run that the flags describe."""
    event = dpsgd_event(args.noise_multiplier, args.sampling_probability, args.steps)
    if getattr(args, "conversion", "tight") == "classic":
        if args.accountant == "pld":
            raise InvalidEventError("--conversion is the Rényi accountant's: use --accountant rdp")
        return RdpAccountant(neighbouring_relation=args.neighbouring_relation, conversion="classic").compose(event)
    made = make_accountant(args.accountant, neighbouring_relation=args.neighbouring_relation, rtol=args.rtol)
    return made.compose(event)


def _common(args: argparse.Namespace, accountant: Accountant) -> dict[str, Any]:
    return {"accountant": accountant.name, "neighbouring_relation": args.neighbouring_relation}


def _epsilon(args: argparse.Namespace) -> int:
    accountant = _composed(args)
    interval = accountant.epsilon_interval(args.delta)
    result = {
        "epsilon": finite_or_text(interval.upper),
        "lower": finite_or_text(interval.lower),
        "delta": args.delta,
        **_common(args, accountant),
    }
    exact = f", exact ≥ {report.lower(interval.lower, 6)}" if 0 < interval.lower < math.inf else ""
    how = f"under {args.neighbouring_relation} ({accountant.name} accountant{exact})"
    text = f"ε ≤ {report.upper(interval.upper, 6)} at δ = {args.delta:g} {how}"
    if 0 < interval.lower < math.inf and interval.relative_width > 2 * args.rtol:
        text += f"\nwider than --rtol {args.rtol:g} asks for, and as narrow as this accountant gets"
    elif accountant.name == "pld" and interval.lower == 0 < interval.upper < math.inf:
        text += "\nan upper bound alone: how far above the exact value is not known"
    return _show(args, result, text)


def _calibrate(args: argparse.Namespace) -> int:
    """Whichever of σ, q and T is not given is found."""
    given = {name: getattr(args, name) for name in ("noise_multiplier", "sampling_probability", "steps")}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        what = f"missing: {', '.join(missing)}" if missing else "all are given, so there is nothing to find"
        raise InvalidEventError(f"give all but one of --noise_multiplier, --sampling_probability, --steps; {what}")
    (name,) = missing
    if args.steps is not None:
        whole(args.steps, "--steps", at_least=1)
    if args.sampling_probability is not None:
        positive(args.sampling_probability, "--sampling_probability")
    how = {"neighbouring_relation": args.neighbouring_relation, "rtol": args.rtol}
    target = _target(args)
    bounds: tuple[float, float] = (0.0, math.inf)
    if name == "steps":
        if "epsilon" not in target:
            raise InvalidEventError("steps are calibrated to --epsilon and --delta alone")
        event = dpsgd_event(args.noise_multiplier, args.sampling_probability, 1)
        args.steps = calibration.calibrate_steps(
            event, **target, neighbouring_relation=args.neighbouring_relation, accountant=args.accountant
        )
    else:
        bounds = calibration.NOISE_RANGE if name == "noise_multiplier" else (1e-12, 1.0)
        value = calibration.calibrate(
            lambda x: dpsgd_event(**{**given, name: x}),
            **target,
            bounds=bounds,
            rising=name == "sampling_probability",
            make_accountant=lambda: make_accountant(args.accountant, **how),
        )
        setattr(args, name, value)
    accountant = _composed(args)
    found = getattr(args, name)
    result: dict[str, Any] = {name: found, **target, **_common(args, accountant)}
    if "epsilon" in target:
        cost = accountant.get_epsilon(args.delta)
        result["epsilon"] = cost
        meets = f"ε ≤ {report.upper(cost, 6)} at δ = {args.delta:g}"
    elif "advantage" in target:
        result["advantage"] = accountant.get_delta(0.0)
        meets = f"advantage ≤ {report.upper(result['advantage'], 6)}"
    else:
        result["tpr"] = profile(accountant).max_tpr(args.fpr)
        meets = f"TPR ≤ {report.upper(result['tpr'], 6)} at FPR = {args.fpr:g}"
    text = f"{name.replace('_', ' ')} {found!r} gives {meets} ({accountant.name} accountant)"
    if found in bounds:
        text += "\nthat is the end of the range in which it is looked for: the target allows more"
    return _show(args, result, text)


def _target(args: argparse.Namespace) -> dict[str, float]:
    target = {n: getattr(args, n) for n in ("epsilon", "delta", "advantage", "tpr", "fpr") if getattr(args, n) is not None}
    if set(target) not in ({"epsilon", "delta"}, {"advantage"}, {"tpr", "fpr"}):
        raise InvalidEventError("give one target: --epsilon with --delta, --advantage, or --tpr with --fpr")
    return target


def _profile(args: argparse.Namespace) -> int:
    accountant = _composed(args)
    whole(args.points, "--points", at_least=2)
    curve = profile(accountant, args.epsilon or None, points=args.points)
    mu = gdp(accountant)
    result = {
        "profile": [
            {"epsilon": e, "delta": u, "lower": low}
            for e, u, low in zip(curve.epsilons.tolist(), curve.upper.tolist(), curve.lower.tolist(), strict=True)
        ],
        "advantage": accountant.get_delta(0.0),
        "gdp": {"mu": finite_or_text(mu.mu), "fit_error": mu.fit_error, "floor": mu.floor},
        **_common(args, accountant),
    }
    rows = [f"{e:>12.6g}  {report.upper(u, 6):>14}" for e, u in zip(curve.epsilons, curve.upper, strict=True)]
    text = "\n".join(
        [
            f"{'ε':>12}  {'δ at most':>14}",
            *rows,
            f"advantage (TPR − FPR) of any attack: at most {report.upper(result['advantage'])}",
            f"μ-GDP: μ ≤ {report.upper(mu.mu)} but for δ = {mu.floor:g} (up to {report.upper(mu.fit_error, 2)} too much δ)",
        ]
    )
    return _show(args, result, text)


def _tradeoff(args: argparse.Namespace) -> int:
    accountant = _composed(args)
    curve = profile(accountant)
    rates = args.fpr or [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5]
    missed = [float(1 - curve.max_tpr(rate)) for rate in rates]
    risk = bayes_risk(accountant, args.prior)
    result = {
        "tradeoff": [{"fpr": rate, "fnr": miss, "tpr": 1 - miss} for rate, miss in zip(rates, missed, strict=True)],
        "bayes_risk": risk,
        "prior": args.prior,
        **_common(args, accountant),
    }
    rows = [f"{rate:>8.4g}  {report.upper(1 - miss):>12}" for rate, miss in zip(rates, missed, strict=True)]
    risk_text = f"with a prior of {args.prior:g} the best guess errs at least {report.lower(risk)} of the time"
    return _show(args, result, "\n".join([f"{'FPR':>8}  {'TPR at most':>12}", *rows, risk_text]))


def _report(args: argparse.Namespace) -> int:
    return _show_runs(args, [_read(path, args) for path in args.ledgers])


def _merge(args: argparse.Namespace) -> int:
    return _show_runs(args, [merged([_read(path, args) for path in args.ledgers], args.delta, args.accountant)])


def _read(path: str, args: argparse.Namespace) -> Run:
    if Path(path).name == "privacy.json":
        raise LedgerError(f"{path} is not a ledger: `report` takes ledger.jsonl or a run's folder, `verify` takes either")
    run = read_run(path, args.delta, args.accountant)
    if run.contents.torn:
        print(
            f"warning: line {len(run.contents.hashes) + 1} is torn (a crash in mid-write, before its release) and left out",
            file=sys.stderr,
        )
    return run.public() if args.public else run


def _show_runs(args: argparse.Namespace, runs: list[Run]) -> int:
    documents = [dict(run.document) for run in runs]
    if args.statement:
        texts = [statement(document) for document in documents]
    else:
        texts = ["\n".join([*report.caveats(run.contents.public), report.text_table(run.breakdown)]) for run in runs]
        if len(runs) > 1:
            texts = [f"{run.name}\n\n{text}" for run, text in zip(runs, texts, strict=True)]
    if args.html is not None:
        from accountants.html.page import write_page

        write_page(args.html, runs, public=args.public)
        texts.append(f"page: {args.html}")
    result = documents[0] if len(runs) == 1 else {"runs": [{"name": run.name, **run.document} for run in runs]}
    return _show(args, result, "\n\n".join(texts))


def _verify(args: argparse.Namespace) -> int:
    if Path(args.file).is_dir():
        args.file = str(next((p for name in (DOCUMENT, LEDGER) if (p := Path(args.file) / name).is_file()), args.file))
    if not Path(args.file).is_file():
        raise LedgerError(f"there is no file {args.file}")
    if args.head is not None and not re.fullmatch("[0-9a-f]{64}", args.head):
        raise LedgerError(f"--head must be a SHA-256 hash, 64 hexadecimal digits; got {args.head!r:.80}")
    result = verify_budget(args.file, args.head) if is_budget(args.file) else report.verify(args.file, args.head)
    if result["ok"] and args.key is not None:
        try:
            signing.check(args.file, args.key, hashes_of(args.file))
            result["checked"] += "; signed by the key given"
        except LedgerError as error:
            result = {"ok": False, "error": str(error), "line": error.line}
    if result["ok"]:
        text = f"ok: {result['events']:,} events, head {result['head']}\n    {result['checked']}"
    else:
        text = f"FAILED: {result['error']}"
    _show(args, result, text)
    return 0 if result["ok"] else INTEGRITY_FAILURE


def _keygen(args: argparse.Namespace) -> int:
    public = signing.make_key(args.file)
    return _show(args, {"key": public}, f"private key {args.file}: keep it\npublic key  {args.file}.pub: {public}")


def _sign(args: argparse.Namespace) -> int:
    hashes = hashes_of(args.file)
    target = signing.sign(args.file, args.key, hashes)
    return _show(args, {"signature": str(target), "head": hashes[-1]}, f"signed in {target}: head {hashes[-1]}")


def _votes(args: argparse.Namespace) -> int:
    return _show(args, *votes_command.run(args))


def _budget(args: argparse.Namespace) -> int:
    return _show(args, *budget_command.run(args))


def _replay(args: argparse.Namespace) -> int:
    from accountants.pate.replay import replay

    try:
        derived = replay(Path(args.folder))
    except LedgerError as error:
        _show(args, {"ok": False, "error": str(error), "line": error.line}, f"FAILED: {error}")
        return INTEGRITY_FAILURE
    text = (
        f"ok: the votes are those the ledger is bound to; {len(derived['answered']):,} queries, {sum(derived['answered']):,} "
        f"answered\n    data-dependent ε = {report.upper(derived['epsilon'])} at δ = {derived['delta']:g} (PRIVATE), "
        f"for any votes {report.upper(derived['epsilon_independent'])}"
    )
    return _show(args, {"ok": True, **derived}, text)


def _show(args: argparse.Namespace, result: dict[str, Any], text: str) -> int:
    print(json.dumps(result) if args.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m accountants", description="Account for differential privacy: what was released, what it cost."
    )
    parser.add_argument("--version", action="version", version=f"accountants {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=run)
        return sub

    def accounted(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--accountant", choices=ACCOUNTANTS, default="auto", help="auto is the tightest that has a bound")

    def sampled(sub: argparse.ArgumentParser, required: bool = True) -> None:
        sub.add_argument("--noise_multiplier", type=float, required=required, metavar="S", help="noise / clip norm")
        sub.add_argument("--sampling_probability", type=float, required=required, metavar="Q", help="of each unit at each step")
        sub.add_argument("--steps", type=int, required=required, metavar="T")
        sub.add_argument(
            "--neighbouring_relation",
            choices=[str(relation) for relation in NeighbouringRelation],
            default=str(NeighbouringRelation.ADD_OR_REMOVE_ONE),
        )
        sub.add_argument("--rtol", type=float, default=DEFAULT_RTOL, metavar="R", help="relative width of the certain interval")
        accounted(sub)

    epsilon = command("epsilon", _epsilon, "The ε of a Poisson-sampled Gaussian mechanism (DP-SGD).")
    sampled(epsilon)
    epsilon.add_argument("--delta", type=float, required=True, metavar="D")
    epsilon.add_argument("--conversion", choices=["tight", "classic"], default="tight", help="of the Rényi accountant")

    calibrate = command(
        "calibrate", _calibrate, "Find the noise multiplier (or the sampling probability, or the steps) for a target."
    )
    calibrate.add_argument("--epsilon", type=float, metavar="E", help="target, with --delta")
    calibrate.add_argument("--delta", type=float, metavar="D")
    calibrate.add_argument("--advantage", type=float, metavar="A", help="target: TPR − FPR of any attack")
    calibrate.add_argument("--tpr", type=float, metavar="P", help="target: true-positive rate of any attack, with --fpr")
    calibrate.add_argument("--fpr", type=float, metavar="P")
    sampled(calibrate, required=False)

    curve = command("profile", _profile, "The privacy profile δ(ε), an attacker's advantage and a μ-GDP bound.")
    curve.add_argument("--epsilon", type=float, nargs="*", metavar="E", help="where; default: from 0 to the ε at δ = 1e-12")
    curve.add_argument("--points", type=int, default=21, metavar="N", help="how many by default")
    sampled(curve)

    tradeoff = command("tradeoff", _tradeoff, "What any membership attack can reach: true positives against false positives.")
    tradeoff.add_argument("--fpr", type=float, nargs="*", metavar="P", help="false-positive rates")
    tradeoff.add_argument("--prior", type=float, default=0.5, metavar="P", help="probability of presence, for the Bayes risk")
    sampled(tradeoff)

    def shown(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "ledgers", metavar="LEDGER", nargs="+", help="ledger.jsonl, a run's folder, or another library's history"
        )
        sub.add_argument("--delta", type=float, metavar="D", help="default: the one the ledger declares")
        accounted(sub)
        sub.add_argument("--html", metavar="FILE", help="write a self-contained page too (needs jinja2 and matplotlib)")
        sub.add_argument("--public", action="store_true", help="leave out what was computed from private data without noise")
        sub.add_argument(
            "--statement",
            action="store_true",
            help="print the privacy statement (Markdown); a ledger alone lacks what a run's own privacy.md adds",
        )

    shown(command("report", _report, "Spend by component of a ledger; several are shown beside each other."))
    shown(command("merge", _merge, "Several ledgers of one data set as one: what all of them cost together."))

    verify = command("verify", _verify, "Check a ledger's hash chain, or re-derive the figures of a privacy.json.")
    verify.add_argument("file", metavar="RUN", help="a run's folder, its privacy.json or its ledger.jsonl")
    verify.add_argument("--head", metavar="HASH", help="what the last hash must be: detects truncation")
    verify.add_argument("--key", metavar="PUBLIC", help="that FILE.sig must be made with: 64 digits, or a file with them")

    signed = command("sign", _sign, "Sign the head of a ledger or budget with an Ed25519 key, into FILE.sig.")
    signed.add_argument("file", metavar="LEDGER_OR_BUDGET")
    signed.add_argument("--key", required=True, metavar="PRIVATE", help="as keygen made it")
    keygen = command("keygen", _keygen, "Make a pair of keys to sign with.")
    keygen.add_argument("file", metavar="FILE", help="of the private key; the public one gets .pub")

    votes_command.add_arguments(command("votes", _votes, "The cost of PATE's recorded votes, by component."))
    budget_command.add_arguments(command("budget", _budget, "The budget that all runs on one data set share."))
    again = command("replay", _replay, "Derive the figures of a PATE run again from its ledger and its stored votes.")
    again.add_argument("folder", metavar="RUN", help="the folder of the run, with its private part")
    return parser


if __name__ == "__main__":
    sys.exit(main())
