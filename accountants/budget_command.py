"""`python -m accountants budget`: the budget of a data set, for people whose programs are not ours.

init POLICY [BUDGET]         start the budget beside the policy
show BUDGET                  what is spent of each ceiling, and by whom
reserve BUDGET …             before a release: counts as spent from now on; prints a name
commit BUDGET NAME...        after it, or when a run of ours will not be resumed: what it did not draw is given back
seal BUDGET                  no more charges, ever
"""

import argparse
from pathlib import Path
from typing import Any

from accountants import policy, shared_budget, strict_json
from accountants.breakdown import finite_or_text
from accountants.budget_state import BudgetState
from accountants.errors import InvalidEventError
from accountants.event_json import from_dict, from_stored
from accountants.events import DpEvent, GaussianDpEvent, LaplaceDpEvent, PoissonSampledDpEvent
from accountants.policy import ALL, Policy
from accountants.report import upper
from accountants.shared_budget import SharedBudget

Answer = tuple[dict[str, Any], str]


def run(args: argparse.Namespace) -> Answer:
    """What `args.action` answers, for programs and for people.

    Raises:
      AccountingError: as the action does.
    """
    answer: Answer = args.action(args)
    return answer


def _init(args: argparse.Namespace) -> Answer:
    made_for = policy.read_policy(args.policy)
    path = Path(args.budget) if args.budget else Path(args.policy).parent / shared_budget.FILE
    with SharedBudget.create(path, made_for) as budget:
        return {"budget": str(path), "head": budget.head}, f"the budget of {made_for.name} is {path}\nhead {budget.head}"


def _show(args: argparse.Namespace) -> Answer:
    with SharedBudget(_path(args), _policy(args), read_only=True) as budget:
        state, head = budget.state, budget.head
    rows = [
        {
            "scope": scope.name,
            "epsilon": scope.ceiling.epsilon,
            "delta": scope.ceiling.delta,
            "spent": finite_or_text(state.spent(scope)),
        }
        for scope in state.terms.scopes()
    ]
    reservations = [
        {
            "name": r.id,
            "run": r.run,
            "cohort": r.cohort,
            "purpose": r.purpose,
            "release": r.release,
            "committed": r.committed,
            "charges": [{"path": c.path, "reserved": c.count, "drawn": r.drawn[c.path]} for c in r.charges],
        }
        for r in state.reservations.values()
    ]
    result = {
        "data": state.policy["name"],
        "neighbouring_relation": str(state.terms.neighbouring_relation),
        "unit": state.terms.unit,
        "scopes": rows,
        "reservations": reservations,
        "sealed": state.sealed,
        "head": head,
    }
    text = _text(state, head)
    if args.html is not None:
        from accountants.html.budget import write_budget_page

        write_budget_page(args.html, state)
        text += f"\n\npage: {args.html}"
    return result, text


def _text(state: BudgetState, head: str) -> str:
    terms = state.terms
    lines = [f"{state.policy['name']}, {terms.neighbouring_relation}, unit: one {terms.unit}{', SEALED' * state.sealed}", ""]
    table: list[tuple[str, ...]] = [("scope", "spent ε", "ceiling ε", "at δ")]
    table += [
        (scope.name, upper(state.spent(scope)), f"{scope.ceiling.epsilon:g}", f"{scope.ceiling.delta:g}")
        for scope in terms.scopes()
    ]
    lines += [*_aligned(table), ""]
    table = [("reservation", "run", "cohort", "purpose", "charges", "drawn", "state")]
    for r in state.reservations.values():
        reserved, drawn = sum(c.count for c in r.charges), sum(r.drawn.values())
        ended = "ended" if r.committed else "open: counts in full"
        table.append((r.id, r.run or "-", r.cohort, r.purpose or "-", f"{reserved:,}", f"{drawn:,}", ended))
    return "\n".join([*lines, *(_aligned(table) if len(table) > 1 else ["nothing is reserved"]), "", f"head {head}"])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _reserve(args: argparse.Namespace) -> Answer:
    where = {"release": args.release, "cohort": args.cohort, "purpose": args.purpose, "run": args.label}
    with SharedBudget(_path(args), _policy(args)) as budget:
        made = budget.reserve([(args.path, _event(args), args.count)], **where, draw=True)
        return {"name": made.id, "head": budget.head}, f"reserved: {made.id}\nrelease now, then commit it\nhead {budget.head}"


def _event(args: argparse.Namespace) -> DpEvent:
    given = [name for name in ("gaussian", "laplace", "event") if getattr(args, name) is not None]
    if len(given) != 1:
        raise InvalidEventError("say what is released with one of --gaussian, --laplace and --event")
    if args.event is not None:
        try:
            data = strict_json.loads(args.event)
        except ValueError as error:
            raise InvalidEventError(f"--event is not JSON ({error}): {args.event!r:.80}") from None
        return from_stored(data) if isinstance(data, dict) and "schema" in data else from_dict(data)
    event: DpEvent = GaussianDpEvent(args.gaussian) if args.gaussian is not None else LaplaceDpEvent(args.laplace)
    return event if args.sampling_probability is None else PoissonSampledDpEvent(args.sampling_probability, event)


def _commit(args: argparse.Namespace) -> Answer:
    with SharedBudget(_path(args)) as budget:
        budget.commit(*args.name)
        return {"committed": args.name, "head": budget.head}, f"ended: {', '.join(args.name)}\nhead {budget.head}"


def _seal(args: argparse.Namespace) -> Answer:
    with SharedBudget(_path(args)) as budget:
        budget.seal()
        return {"sealed": True, "head": budget.head}, f"sealed\nhead {budget.head}"


def _path(args: argparse.Namespace) -> Path:
    """Of the budget: the file given, or the one in the folder given."""
    path = Path(args.budget)
    return path / shared_budget.FILE if path.is_dir() else path


def _policy(args: argparse.Namespace) -> Policy | None:
    """The one beside the budget, which must be as it was when the budget was made."""
    path = _path(args).parent / policy.FILE
    return policy.read_policy(path) if path.exists() else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
        sub.set_defaults(action=run)
        return sub

    init = action("init", _init, "Start the budget of a policy; it stays beside the data.")
    init.add_argument("policy", metavar="POLICY")
    init.add_argument("budget", nargs="?", metavar="BUDGET", help="default: budget.jsonl beside the policy")
    show = action("show", _show, "What is spent of each ceiling, and by whom.")
    show.add_argument("--html", metavar="FILE", help="also as a page (needs jinja2 and matplotlib)")
    reserve = action("reserve", _reserve, "Before a release: it counts as spent from now on.")
    commit = action("commit", _commit, "After a release, or for a run that will not be resumed: gives back what was not drawn.")
    seal = action("seal", _seal, "Take no more charges, ever.")
    for sub in (show, reserve, commit, seal):
        sub.add_argument("budget", metavar="BUDGET", help="the file, or the folder that it lies in")
    commit.add_argument("name", nargs="+", metavar="NAME", help="as reserve printed it")
    reserve.add_argument("--path", required=True, metavar="PATH", help="component, such as statistics/mean")
    reserve.add_argument("--release", required=True, metavar="KIND", help="of the policy's [release]")
    reserve.add_argument("--cohort", default=ALL, metavar="NAME", help="whose data; default: all")
    reserve.add_argument("--purpose", default="", metavar="NAME")
    reserve.add_argument("--label", default="", metavar="TEXT", help="for people")
    reserve.add_argument("--count", type=int, default=1, metavar="N", help="how many releases")
    reserve.add_argument("--gaussian", type=float, metavar="S", help="Gaussian noise: standard deviation over sensitivity")
    reserve.add_argument("--laplace", type=float, metavar="B", help="Laplace noise: scale over sensitivity")
    reserve.add_argument("--sampling_probability", type=float, metavar="Q", help="of a Poisson sample")
    reserve.add_argument("--event", metavar="JSON", help="any event, as to_json or to_dict write it")
