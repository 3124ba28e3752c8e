"""report.html at the end of a run, if what draws it is installed."""

from collections.abc import Callable

from accountants.html import page, render
from accountants.runs import read_run
from marauder_dp.run_directory import RunDirectory


def write_page(directory: RunDirectory, say: Callable[[str], None]) -> None:
    """Writes the page, private section included, or says why it could not. The record of the run is complete without it."""
    again = f"python -m accountants report {directory.path} --html {directory.report_html}"
    if not render.available():
        say(f"no report.html: {render.HOW_TO_GET}, then {again}")
        return
    try:
        page.write_page(directory.report_html, [read_run(directory.path)])
    except Exception as error:  # whatever it is, the run is done and must end well
        say(f"no report.html ({type(error).__name__}: {error!s:.200}); {again}")
