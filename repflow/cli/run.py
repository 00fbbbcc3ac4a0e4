"""`repflow run`."""

import argparse
import sys
from pathlib import Path

from repflow.lab import jobs
from repflow.lab.parameters import PROFILES


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="number, name or .ipynb file (default: all, in order)")
    add("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter's value, for each notebook that has it; may be repeated")  # fmt: skip
    add("--profile", choices=PROFILES, default="tiny", help="the size of the experiment (default: tiny)")
    add("--out", type=Path, default=Path("runs"), help="where the folder with the results goes (default: runs)")


def run(arguments: argparse.Namespace) -> int:
    """Execute notebooks and write a folder with their pages, figures and metrics; its index page is the last line."""
    planned = jobs.plan(arguments.notebooks, arguments.parameters, arguments.profile)
    from repflow.lab import runner

    index, good = runner.run(planned, arguments.out, arguments.profile)
    sys.stdout.write(f"{index}\n")
    return 0 if good else 1
