"""`repflow compare`."""

import argparse
import sys
from pathlib import Path

from repflow.files import read_csv
from repflow.records import results_folder


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ours", type=Path, metavar="FILE", help="our table (default: results/ours.csv)")


def run(arguments: argparse.Namespace) -> int:
    """The paper's top-1 accuracies beside ours, with the difference in points, as a Markdown table; `not run` where we
    have none."""
    from repflow.lab.results import compare, markdown

    default = results_folder() / "ours.csv"
    file = arguments.ours or default
    ours = read_csv(file) if arguments.ours or default.is_file() else []  # before the first run there is none
    sys.stdout.write(f"{markdown(compare(ours))}\n")
    return 0
