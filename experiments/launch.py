"""From `main` to an exit code: 0 done, 2 usage error, 3 budget would be exceeded, 4 integrity failure."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

DONE, USAGE_ERROR, BUDGET_EXCEEDED, INTEGRITY_FAILURE = 0, 2, 3, 4


def run(main: Callable[[], int]) -> None:
    """Parses flags, runs `main`, and exits. Errors a user can put right become one line, not a traceback."""
    app.run(lambda _: sys.exit(_guarded(main)), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h", "-?"} & set(argv):
        print(sys.modules["__main__"].__doc__ or "", flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(DONE)
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        _fail(str(error).replace("\n", " "), USAGE_ERROR)
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: flags look like --name=value", USAGE_ERROR)
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # JAX and orbax narrate every step otherwise
    return rest


def _guarded(main: Callable[[], int]) -> int:
    from accountants.errors import AccountingError, BudgetExceededError, LedgerError
    from marauder_dp.errors import IntegrityError, MarauderError

    try:
        return main()
    except BudgetExceededError as error:
        _fail(str(error), BUDGET_EXCEEDED)
    except LedgerError as error:
        _fail(str(error), USAGE_ERROR if error.line is None else INTEGRITY_FAILURE)
    except IntegrityError as error:
        _fail(str(error), INTEGRITY_FAILURE)
    except (MarauderError, AccountingError) as error:
        _fail(str(error), USAGE_ERROR)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return DONE


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a request to stop soon; a second one stops at once.

    Attributes:
      received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
        print("\nstopping as soon as what is running is done; again to stop at once", file=sys.stderr)


def use_compilation_cache(path: str) -> None:
    """Keeps compiled programs on disk; they hold no secrets (keys are arguments). An empty path keeps none."""
    import jax

    if path:
        folder = Path(path).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # only slower
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def short(path: Path) -> str:
    """Relative to where the user is, where that is shorter."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
