"""The process that executes one notebook: `worker.py SOURCE TARGET OUTCOME PARAMETERS`, the last as JSON.

What goes wrong is written to the file OUTCOME in one line. It is run as a file, apart from the package, so that it
starts without PyTorch.
"""

import json
import logging
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError


def execute(source: str, target: str, parameters: dict[str, Any]) -> None:
    """Execute the notebook `source` into `target`; a kernel that fails to start is started once more.

    Raises PapermillExecutionError for a failed cell, DeadKernelError or RuntimeError for a kernel that died.
    """
    # Its own inspection of the parameters cell misses Literal types and warns; ours has checked them.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # papermill takes braces in a path for placeholders.
    paths = [path.replace("{", "{{").replace("}", "}}") for path in (source, target)]
    options = {
        "kernel_name": "python3",
        "language": "python",  # a notebook without metadata does not say so
        "progress_bar": {"desc": Path(source).stem, "leave": False, "disable": None},  # None: only on a terminal
        # The kernel warns of its unencrypted sockets, which never leave this machine.
        "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],
    }
    for again in (True, False):
        try:
            papermill.execute_notebook(*paths, parameters, **options)
            return
        except DeadKernelError:
            raise
        except RuntimeError:  # no kernel yet: kernels that start together can race for their ports
            if not again:
                raise


def _failing_line(traceback: list[str]) -> str:
    """The line of code that a traceback of IPython's points at: for an error without a message, all there is to say."""
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(traceback))
    return ["", *re.findall(r"(?m)^-+> *\d+ +(.*)$", text)][-1]


def main() -> None:
    """Execute the notebook that the command line names."""
    source, target, outcome, parameters = sys.argv[1:]
    try:
        execute(source, target, json.loads(parameters))
    except papermill.PapermillExecutionError as error:
        problem = f"{error.ename}: {error.evalue or _failing_line(error.traceback)} (In [{error.exec_count}])"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        return
    Path(outcome).write_text(textwrap.shorten(problem, 400), encoding="utf-8")


if __name__ == "__main__":
    main()
