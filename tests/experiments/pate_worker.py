"""Runs command lines of `experiments.pate` one after another in one process, as its flags and those of dpsgd can't share one.

Reads [whether to write report.html, list of arguments] as JSON from each line of standard input and writes [exit code, stdout,
stderr] for it.
"""

import contextlib
import io
import json
import sys
import traceback

from absl.testing import flagsaver

from experiments import launch, pate
from marauder_dp.pate import session

write_page = session.write_page


def call(arguments):
    """(exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    saved = flagsaver.save_flag_values()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            launch._parse(["pate", *arguments])
            code = launch._guarded(pate.main)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            flagsaver.restore_flag_values(saved)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    for line in sys.stdin:
        page, given = json.loads(line)
        session.write_page = write_page if page else lambda directory, say: None
        print(json.dumps(call(given)), flush=True)
