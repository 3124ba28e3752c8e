"""TOML read strictly: every value is taken out by name and kind, and what is left over is refused, with its line."""

import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any, NoReturn

from accountants.errors import PolicyError
from accountants.toml_lines import MAX_LINES, line_of

MAX_BYTES = 256 * 1024

_NAME = re.compile(r"[a-z0-9_]{1,64}")


def parse_toml(raw: bytes) -> "TomlTable":
    """The outermost table.

    Raises:
      PolicyError: too long, not UTF-8, or not TOML; names the line.
    """
    if len(raw) > MAX_BYTES:
        raise PolicyError(f"a policy has at most {MAX_BYTES:,} bytes", line=1)
    try:
        text = raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError(f"line {line}: not UTF-8", line) from None
    if text.count("\n") >= MAX_LINES:
        raise PolicyError(f"a policy has at most {MAX_LINES:,} lines", line=MAX_LINES + 1)
    try:
        return TomlTable(text, (), tomllib.loads(text))
    except ValueError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.rstrip().count("\n") + 1
        raise PolicyError(f"line {line}: not TOML: {str(error).split(' (at')[0]:.120}", line) from None
    except RecursionError:
        raise PolicyError("line 1: nested too deep", 1) from None


class TomlTable:
    """One table of the text: takes out values of the right kind, and refuses the rest with its line."""

    def __init__(self, text: str, keys: tuple[str, ...], table: Mapping[str, Any]):
        self.keys, self._text, self._table = keys, text, dict(table)

    def refuse(self, why: str, *keys: str) -> NoReturn:
        """Raises a `PolicyError` for this table, or what stands at `keys` in it."""
        path = (*self.keys, *keys)
        line = line_of(self._text, path)
        where = ".".join(key if _NAME.fullmatch(key) else f"{key!r:.60}" for key in path)
        raise PolicyError(f"line {line}: {where + ': ' if where else ''}{why}", line)

    def take(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
        """Removes and returns a value that has to be there."""
        if key not in self._table:
            self.refuse(f"{key} is missing; it must be {what}")
        value = self._table.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.refuse(f"must be {what}; got {_shown(value)}", key)
        return value

    def text(self, key: str, what: str = "a text") -> str:
        """Takes a text that isn't blank."""
        value = str(self.take(key, str, what))
        if not value.strip() or len(value) > 1000 or not value.isprintable():
            self.refuse(f"must be {what}, of 1 to 1,000 printable characters; got {_shown(value)}", key)
        return value

    def texts(self, key: str, what: str) -> tuple[str, ...]:
        """Takes a list of texts, possibly empty."""
        value = self.take(key, list, f"a list of texts: {what}")
        if not all(isinstance(item, str) and item.strip() and item.isprintable() for item in value):
            self.refuse(f"must be a list of texts: {what}; got {_shown(value)}", key)
        return tuple(value)

    def table(self, key: str, what: str) -> "TomlTable":
        """Takes a table."""
        return TomlTable(self._text, (*self.keys, key), self.take(key, dict, what))

    def has(self, key: str) -> bool:
        """Whether `key` is there and not taken yet."""
        return key in self._table

    def names(self) -> list[str]:
        """Keys that are left, if all are names."""
        for name in self._table:
            if not _NAME.fullmatch(name):
                self.refuse("a name is made of a-z, 0-9 and _, 64 at most", name)
        return list(self._table)

    def end(self, known: str) -> None:
        """Refuses what was not taken."""
        for key in self._table:
            self.refuse(f"unknown; what may stand here: {known}", key)

    def positive(self, key: str, below: float = math.inf) -> float:
        """Takes a finite number > 0."""
        what = f"a finite number greater than 0{'' if math.isinf(below) else f' and below {below:g}'}"
        value = self.take(key, (int, float), what)
        if not (0 < value < below and value < 1e300):  # a whole number may be too large for a float
            self.refuse(f"must be {what}; got {_shown(value)}", key)
        return float(value)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # a whole number of thousands of digits
        return "a very large number"
