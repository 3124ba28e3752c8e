"""The privacy statement: what a reviewer needs to know, in plain language, from one privacy.json.

The items follow Ponomareva et al. 2023 ("How to DP-fy ML", section 5.3) and NIST SP 800-226. An item that
the accountant knows is filled from the figures; the others come from the program that ran, under `facts`,
and one that it left out is said to be missing rather than left away.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from accountants.report import caveats, lower, upper
from accountants.version import __version__

ITEMS = {
    "setting": "Setting, and who is trusted",
    "released": "What is released, and to whom",
    "unit": "Unit of privacy",
    "neighbouring_relation": "Neighbouring relation",
    "public": "What counts as public",
    "covered": "Accesses to private data that are covered",
    "not_covered": "What is not covered",
    "mechanism": "Mechanism and its parameters",
    "sampling": "Sampling, as it ran and as it is accounted",
    "accounting": "Accounting",
    "guarantee": "Guarantee",
    "data_dependence": "Does the cost depend on the data?",
    "randomness": "Randomness",
    "user_level": "User-level guarantee",
    "verify": "How to verify",
    "utility": "Collection, access and utility",
}

_RELATIONS = {
    "add_or_remove_one": "Neighbouring data sets differ in the presence of one unit: it is added or removed. Under "
    "`replace_one`, "
    "which is one removal and one addition, the same mechanism has a larger ε: at most twice as large, at a δ of (1 + e^ε) "
    "times "
    "this one.",
    "replace_one": "Neighbouring data sets have the same size; one unit is replaced by another, which moves a clipped sum "
    "by up "
    "to 2C. Under `add_or_remove_one` the same clipped sum has a smaller ε.",
    "zero_out": "Neighbouring data sets have the same size; one unit's contribution is replaced by zero, which moves a "
    "clipped sum "
    "by up to C.",
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One item: its place among `ITEMS` (from 1), its title, and what is stated, a paragraph each; perhaps nothing."""

    number: int
    title: str
    paragraphs: tuple[str, ...]


def items(document: Mapping[str, Any]) -> list[Item]:
    """All items of the statement, in order; inline code stands in backticks.

    Args:
      document: as `report.privacy_document` makes it.
    """
    facts = {**document["facts"], **_from_figures(document)}
    return [Item(number, title, tuple(_as_list(facts.get(key)))) for number, (key, title) in enumerate(ITEMS.items(), start=1)]


def statement(document: Mapping[str, Any]) -> str:
    """The statement in Markdown.

    Args:
      document: as `report.privacy_document` makes it.
    """
    lines = ["# Privacy statement", ""]
    for text in (*caveats(document["ledger"]["public"]), headline(document)):
        lines += [f"**{text}**", ""]
    stated = items(document)
    for item in stated:
        said = item.paragraphs
        if said:
            lines += [f"## {item.number}. {item.title}", "", *(said if len(said) == 1 else [f"- {text}" for text in said]), ""]
    missing = [f"- {item.number}. {item.title}" for item in stated if not item.paragraphs]
    if missing:
        lines += ["## Not stated by the program that made this", "", *missing, ""]
    lines += ["## Spend by component", "", *_component_rows(document), ""]
    return "\n".join(lines)


def headline(document: Mapping[str, Any]) -> str:
    """The guarantee in one sentence."""
    if document["epsilon"] == "inf":
        return "No privacy guarantee: something was released without noise (ε is infinite)."
    if caveats(document["ledger"]["public"]):
        return f"Only for those who don't know the seed: ε ≤ {upper(document['epsilon'])} at δ = {document['delta']:g}."
    return (
        f"({upper(document['epsilon'])}, {document['delta']:g})-differential privacy for one {document['unit']}, "
        f"under {document['neighbouring_relation']}."
    )


def _from_figures(document: Mapping[str, Any]) -> dict[str, Any]:
    relation = document["neighbouring_relation"]
    return {
        "neighbouring_relation": (
            f"`{relation}`. {_RELATIONS[relation]} An ε under this relation must not be compared with one under another."
        ),
        "accounting": _accounting(document),
        "guarantee": _guarantee(document),
        "verify": [*_how_to_verify(document), *_as_list(document["facts"].get("verify"))],
    }


def _how_to_verify(document: Mapping[str, Any]) -> list[str]:
    public = document["ledger"]["public"]
    if public.get("record") == "history":
        return [
            "What was released is another library's record, which nothing guards against edits. `python -m accountants report` "
            "derives the figures from it again."
        ]
    if public.get("merged"):
        return [
            "`python -m accountants merge` derives the figures from the ledgers again. `python -m accountants verify LEDGER "
            f"--head HASH` checks each: {', '.join(each['name'] + ' ' + each['head'] for each in public['merged'])}."
        ]
    return [
        "`python -m accountants verify privacy.json` re-derives the figures of the guarantee from the recorded events "
        "(`pip install ./accountants` in the project's sources; neither the data nor JAX is needed). The rest of this "
        "text is the word of the program that wrote it.",
        f"`python -m accountants verify ledger.jsonl --head {document['ledger']['head']}` checks the record itself.",
    ]


def _accounting(document: Mapping[str, Any]) -> str:
    if document["epsilon"] == "inf":
        return "Nothing to account: ε is infinite."
    between = f"{lower(document['lower'], 6)} and {upper(document['epsilon'], 6)}"
    how = {
        "pld": "the composition of privacy loss distributions, numerically and with every error bounded"
        + ("" if _promised(document) else f"; the exact ε lies between {between}"),
        "rdp": "Rényi differential privacy, converted to (ε, δ) at the best order (Asoodeh et al. 2021)",
    }[document["accountant"]]
    return (
        f"Accountant `{document['accountant']}` of the package `accountants` {__version__}: {how}. ε is an upper bound; "
        "numerical error is rounded up. Shares are of the Rényi divergence at order "
        f"{document['order']:g}, which adds up over components."
    )


def _guarantee(document: Mapping[str, Any]) -> list[str]:
    unit = document["unit"]
    if document["epsilon"] == "inf":
        return [f"None. Someone who sees what was released may learn anything about any one {unit}."]
    epsilon, delta = document["epsilon"], document["delta"]
    size = document["ledger"]["public"].get("num_examples")
    lines = [f"ε ≤ {upper(epsilon)} at δ = {delta:g}."]
    if _promised(document):
        lines.append(
            "That was fixed beforehand, and everything here follows from it. What was charged adds up to ε = "
            f"{upper(document['spent'])}, a reading and no guarantee: what was charged depended on what had been released."
        )
    if isinstance(size, int) and size > 0:
        verdict = "well below 1, as it should be" if delta * size <= 0.1 else "TOO LARGE, whole examples could be published"
        lines.append(f"δ × n = {upper(delta * size, 2)} for the declared n = {size:,}: {verdict}.")
    tpr = upper(100 * document["worst_case_tpr_at_fpr_1_percent"], 3)
    mu = document["gdp"]["mu"]
    if mu != "inf":
        lines.append(
            f"Gaussian DP: μ ≤ {upper(mu)} but for δ = {document['gdp']['floor']:g}; the whole profile: "
            + ", ".join(f"δ({point['epsilon']:.3g}) ≤ {upper(point['delta'], 2)}" for point in document["profile"][::3])
            + "."
        )
    return [
        *lines,
        f"In words: whatever is released would have been about as likely without any one {unit}: at most e^ε = "
        f"{_factor(epsilon)} times as likely with it as without, but for a probability of δ.",
        f"What an attacker gains: a test for the presence of one {unit}, by someone who knows everything else and errs on 1 % "
        f"of those absent, finds at most {tpr} % of those present. Guessing finds 1 %.",
    ]


def _promised(document: Mapping[str, Any]) -> bool:
    return document["ledger"]["public"].get("promise") is not None


def _factor(epsilon: float) -> str:
    return upper(math.exp(epsilon), 3) if epsilon < 700 else f"e^{upper(epsilon)}"


def _component_rows(document: Mapping[str, Any]) -> list[str]:
    rows = ["| component | events | ε alone | ε if removed | share |", "|---|---:|---:|---:|---:|"]
    for c in document["components"]:
        rows.append(
            f"| `{c['path']}` | {c['events']:,} | {upper(c['epsilon_alone'])} | "
            f"{upper(c['epsilon_if_removed'])} | {c['share']:.1%} |"
        )
    return rows


def _as_list(fact: Any) -> list[str]:
    if not fact:
        return []
    return [str(item) for item in fact] if isinstance(fact, list | tuple) else [str(fact)]
