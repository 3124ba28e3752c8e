"""Checkpoints: plain pytrees saved by orbax, each with the head of the ledger it belongs to.

A checkpoint holds only what has been paid for: step, parameters, optimizer state. No key is in it.
"""

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accountants.chain import LedgerContents
from marauder_dp.errors import IntegrityError, MarauderError

_KEEP = 2


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
      state: as it was saved, of the type of what it was compared with.
      ledger_head: of the ledger when it was saved.
      budget_head: of the data set's budget then; "" if it has none.
      damaged: steps of newer checkpoints that could not be read, and were removed.
    """

    state: Any
    ledger_head: str
    budget_head: str = ""
    damaged: tuple[int, ...] = ()


class Checkpoints:
    """The checkpoints of one run; the newest two are kept."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # slow to import, and --dry_run and --help don't need it

        self._ocp = ocp
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEEP, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder, options=options)

    def save(self, state: Any, ledger_head: str, budget_head: str = "", *, anew: bool = False) -> None:
        """Saves `state`, a named tuple with a `step`, unless that step is saved already; on disk when it returns.

        Args:
          state: what is saved.
          ledger_head: of the ledger that paid for it.
          budget_head: of the data set's budget; "" if it has none.
          anew: put it in the place of what is saved of that step.

        Raises:
          MarauderError: it could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            if not anew:
                return
            self._manager.delete(step)
        self._write(step, state._asdict(), {"head": ledger_head, "budget": budget_head})

    def save_copy(self, other: "Checkpoints", ledger_head: str) -> None:
        """Saves the newest state of `other`, under another ledger's head. Nothing in it tells when the original was saved.

        Raises:
          MarauderError: it could not be written.
          IntegrityError: `other` has none that can be read.
        """
        step = max(other._manager.all_steps(), default=None)
        if step is None:
            raise IntegrityError(f"there is no checkpoint in {other._folder}")
        try:
            saved = other._read(step, None)
        except Exception as error:  # orbax raises whatever its storage layers raise
            raise IntegrityError(f"the checkpoint of step {step} in {other._folder} can't be read: {error!s:.200}") from error
        self._write(step, saved["state"], {"head": ledger_head, "budget": ""})

    def _write(self, step: int, state: dict[str, Any], heads: dict[str, str]) -> None:
        args = self._ocp.args
        try:
            self._manager.save(step, args=args.Composite(state=args.StandardSave(state), ledger=args.JsonSave(heads)))
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise MarauderError(f"can't write a checkpoint to {self._folder}: {error}") from error

    def restore(self, like: Any) -> Restored | None:
        """The newest checkpoint that can be read, or None if there is none at all.

        Going back to an older one loses time only: the updates since are repeated as they were.

        Args:
          like: a state of the same shapes and types.

        Raises:
          IntegrityError: there are some, but none can be read or fits `like`.
        """
        damaged: list[int] = []
        reason = ""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = self._read(step, like)
            except Exception as error:  # orbax raises whatever its storage layers raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                damaged.append(step)
                continue
            for other in damaged:
                self._manager.delete(other)
            heads = saved["ledger"]
            return Restored(type(like)(**saved["state"]), str(heads["head"]), str(heads.get("budget", "")), tuple(damaged))
        if damaged:
            raise IntegrityError(f"no checkpoint in {self._folder} can be read (steps {damaged}): {reason:.200}")
        return None

    def _read(self, step: int, like: Any) -> Any:
        args = self._ocp.args
        state = args.StandardRestore(None if like is None else like._asdict())
        composite = args.Composite(state=state, ledger=args.JsonRestore())
        return self._manager.restore(step, args=composite)

    def close(self) -> None:
        """Ends orbax's threads."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_belongs(restored: Restored, ledger: LedgerContents, paid: int) -> None:
    """Refuses a checkpoint that this ledger did not pay for.

    Args:
      restored: the checkpoint.
      ledger: that should have paid.
      paid: updates that it did pay for.

    Raises:
      IntegrityError: the ledger was cut short or exchanged.
    """
    step = int(restored.state.step)
    if restored.ledger_head not in ledger.hashes:
        raise IntegrityError(
            f"the checkpoint of step {step} belongs to a ledger with head {restored.ledger_head}, which this ledger does "
            "not contain: it was cut short or exchanged. Restore the ledger; nothing was released"
        )
    if paid < step:
        raise IntegrityError(f"the ledger charges {paid} updates but the checkpoint holds {step}")
