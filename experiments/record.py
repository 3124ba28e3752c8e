"""What a run shows of its record when it ends: heads, files, and how to check them. Perhaps it signs the ledger first."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from experiments import launch

if TYPE_CHECKING:
    from marauder_dp.run_directory import RunDirectory

SIGNING_KEY = flags.DEFINE_string(
    "signing_key", None, "A private key of `python -m accountants keygen`; signs the ledger when the run ends."
)


def check_signing_key() -> None:
    """Before hours of work.

    Raises:
      SignatureError: the key can't be read, or `cryptography` is missing.
    """
    if SIGNING_KEY.value is not None:
        from accountants.signing import check_private_key

        check_private_key(SIGNING_KEY.value)


def sign(ledger: Path) -> Path | None:
    """Signs a finished ledger, if a key was given; returns the path of the signature.

    Raises:
      SignatureError, LedgerError: it can't be.
    """
    if SIGNING_KEY.value is None:
        return None
    from accountants import signing
    from accountants.heads import hashes_of

    return signing.sign(ledger, SIGNING_KEY.value, hashes_of(ledger))


def show(directory: "RunDirectory", head: str | None, budget_head: str, *, commands: tuple[str, ...] = ()) -> None:
    """Signs and prints.

    Args:
      directory: of the run.
      head: of its ledger.
      budget_head: of the data set's budget; "" where it has none.
      commands: more that check it, each an argument list of `python -m accountants`; FOLDER stands for the run's folder.
    """
    folder, python = launch.short(directory.path), launch.short(Path(sys.executable))
    page = "report.html (not for publication: see its end), " if directory.report_html.exists() else ""
    signature = sign(directory.ledger)
    print(f"ledger head    {head}")
    if budget_head:
        print(f"budget head    {budget_head}")
    signed = f"{signature.name}, " if signature is not None else ""
    print(
        f"files          {folder}/: {page}privacy.md (the statement), privacy.json, ledger.jsonl, {signed}metrics.jsonl, "
        "checkpoints/"
    )
    checks = ["verify FOLDER/privacy.json", *commands]
    if signature is not None:
        checks.append(f"verify FOLDER/ledger.jsonl --key {SIGNING_KEY.value}.pub")
    for i, check in enumerate(checks):
        print(f"{'check it' if i == 0 else '':<15}{python} -m accountants {check.replace('FOLDER', folder)}")
