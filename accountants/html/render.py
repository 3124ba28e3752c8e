"""From a template to a page in a file: what all pages have in common."""

import dataclasses
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accountants.errors import AccountingError
from accountants.html.charts import Chart, Table
from accountants.report import upper
from accountants.version import __version__

HOW_TO_GET = "pip install jinja2 matplotlib"
_HERE = Path(__file__).parent


class ReportExtraMissingError(AccountingError):
    """jinja2 or matplotlib is not installed. The message says how to get them."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A titled group of charts, perhaps with a table of its own."""

    title: str
    charts: Sequence[Chart]
    note: str = ""
    table: Table | None = None


def available() -> bool:
    """Whether the extra `report` is installed."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))


def check_available() -> None:
    """Before anything is drawn.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
    """
    if not available():
        raise ReportExtraMissingError(f"a page needs jinja2 and matplotlib: {HOW_TO_GET}")


def render(template: str, **values: Any) -> str:
    """The HTML of a template of this folder. Whatever comes from outside is escaped.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
    """
    check_available()
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(_HERE),
    )  # fmt: skip
    environment.filters["code"] = lambda text: markupsafe.Markup(
        re.sub(r"`([^`]*)`", r"<code>\1</code>", str(markupsafe.escape(text)))
    )
    environment.filters["upper"] = upper
    css = markupsafe.Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, version=__version__, **values)


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes a page to a file, whole or not at all.

    Raises:
      AccountingError: the file can't be written.
    """
    target = Path(path)
    try:
        fd, partial = tempfile.mkstemp(dir=target.parent, prefix=".report-")
        try:
            # A name may hold what is no character, such as half of one that a program cut in two.
            with open(fd, "w", encoding="utf-8", errors="replace") as stream:
                stream.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(partial, 0o666 & ~umask)
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        raise AccountingError(f"can't write {target}: {error.strerror or error}") from error
