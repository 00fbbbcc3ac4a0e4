"""What several commands share: checks of options, tables, the device."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from repflow.lab.parameters import UsageError

if TYPE_CHECKING:
    from repflow.files import Row

Adder = Callable[[argparse.ArgumentParser], None]
Command = Callable[[argparse.Namespace], int]


def add_subcommands(
    parser: argparse.ArgumentParser, *entries: tuple[str, Adder | None, Command, str]
) -> Iterator[argparse.ArgumentParser]:
    """Add commands below a command: name, what adds its options, what runs it, and its line of help."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    for name, add, run, text in entries:
        command = commands.add_parser(name, help=text, description=run.__doc__, allow_abbrev=False)
        command.set_defaults(command=run)
        if add:
            add(command)
        yield command


def numbers_of(arguments: argparse.Namespace, **least: int) -> dict[str, int | None]:
    """The named options' values. Raises UsageError for one that is smaller than it may be."""
    values = {name: getattr(arguments, name) for name in least}
    for name, value in values.items():
        if value is not None and value < least[name]:
            raise UsageError(f"--{name}: expected a whole number >= {least[name]}, got {value}")
    return values


def check_writable(out: Path | None) -> None:
    """Raise OSError for a file that cannot be written; None is no file."""
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise OSError(f"{out} cannot be written; name a file in a folder that exists and is writable")


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")


def device_of(wanted: str | None) -> str:
    """The device that was asked for, or by default the GPU where there is one. Raises UsageError for a missing GPU."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("--device cuda: PyTorch finds no GPU here; take --device cpu")
    return wanted or ("cuda" if available else "cpu")


def show_table(rows: "list[Row]", facts: "Row", out: Path | None) -> None:
    """Print a table of `rows`, and under it what is the same for all of them; write both where a file is named."""
    from repflow.files import text_table, write_csv

    if out is not None:
        write_csv(out, [row | facts for row in rows])
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    sys.stdout.write(f"{text_table(rows)}\n\n{known}\n")
