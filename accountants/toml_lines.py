"""On which line of a TOML text a key stands, which tomllib doesn't tell.

No second parser: a prefix of the text is read with tomllib itself, one line longer each time, until the key is there.
"""

import tomllib
from collections.abc import Sequence

MAX_LINES = 2000
"""Of texts that are looked through; reading all prefixes takes quadratic time."""


def line_of(text: str, keys: Sequence[str]) -> int:
    """The line, from 1, on which the value or table at `keys` begins.

    Args:
      text: valid TOML of at most `MAX_LINES` lines.
      keys: from the outermost table inwards. Where the text lacks the last ones, the line of the deepest table that it
        has; its last line where it has none of them.
    """
    lines = text.split("\n")
    for depth in range(len(keys), 0, -1):
        begin = 0  # of the statement that is being read
        for end in range(1, len(lines) + 1):
            try:
                table = tomllib.loads("\n".join(lines[:end]) + "\n")
            except (ValueError, RecursionError):
                continue
            if _has(table, keys[:depth]):
                while begin < end - 1 and lines[begin].lstrip()[:1] in ("", "#"):
                    begin += 1
                return begin + 1
            begin = end
    return max(1, len(text.rstrip().split("\n")))


def _has(table: object, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True
