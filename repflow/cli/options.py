"""What several commands share: subcommands and checks of options."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from repflow.lab.parameters import UsageError

Adder = Callable[[argparse.ArgumentParser], None]
Command = Callable[[argparse.Namespace], int]


def add_subcommands(
    parser: argparse.ArgumentParser, metavar: str, *entries: tuple[str, Adder | None, Command | None, str]
) -> list[argparse.ArgumentParser]:
    """Add commands below a command: name, what adds its options, what runs it (if it has none below), and its help."""
    commands, added = parser.add_subparsers(metavar=metavar, required=True), []
    for name, add, run, text in entries:
        command = commands.add_parser(name, help=text, description=run and run.__doc__, allow_abbrev=False)
        command.set_defaults(command=run)
        if add:
            add(command)
        added.append(command)
    return added


def numbers_of(arguments: argparse.Namespace, **least: int) -> dict[str, int | None]:
    """The named options' values. Raises UsageError for one that is smaller than it may be."""
    values = {name: getattr(arguments, name) for name in least}
    for name, value in values.items():
        if value is not None and value < least[name]:
            raise UsageError(f"--{name}: expected a whole number >= {least[name]}, got {value}")
    return values


def check_out(out: Path | None, *endings: str) -> None:
    """Raise UsageError for a name with another ending, OSError where no file can be written; None is no file."""
    if out is None:
        return
    if endings and out.suffix.lower() not in endings:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(endings)}")
    if out.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise OSError(f"{out} cannot be written; name a file in a folder that exists and is writable")
