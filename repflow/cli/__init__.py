"""The command `repflow`: a module for each subcommand, which imports heavy modules after it has checked the usage."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from repflow import __version__
from repflow.cli import bench, classify, compare, convert, data, doctor, evaluate, flow, run, sweep, train
from repflow.cli.options import add_subcommands
from repflow.interrupts import lasting_interrupts
from repflow.lab.parameters import UsageError

COMMANDS = {
    "run": (run, "execute notebooks"),
    "flow": (flow, "TV-L1 flow of a video"),
    "bench": (bench, "measure time and memory"),
    "train": (train, "train a system on a data set; goes on where it was stopped"),
    "evaluate": (evaluate, "accuracy on test videos"),
    "classify": (classify, "the likeliest classes of any video"),
    "sweep": (sweep, "a grid of experiments; goes on where it was stopped"),
    "compare": (compare, "the paper's accuracies beside ours"),
    "convert": (convert, "checkpoints of the 2019 release as safetensors"),
    "doctor": (doctor, "what works here, and what mends the rest"),
    "data": (data, "prepare and check data sets"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's) and return its exit code.

    0: done; 1: something failed; 2: wrong usage, nothing was started; 130: stopped by ctrl-C or a signal.
    """
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("repflow").setLevel(logging.INFO)
    with suppress(AttributeError):  # a stand-in for the output has none
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in any encoding
    with suppress(ValueError):  # not in a thread, where no handler can be set
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: what is unfinished is cleaned up
    try:
        with lasting_interrupts():
            code = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has gone; the rest of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        sys.stderr.write(f"repflow: {error}; `repflow doctor` tells what mends it\n")
        return 1
    except (UsageError, OSError, ValueError) as error:  # ours say what was expected, what came and what to do
        logging.getLogger(__name__).debug("", exc_info=True)
        sys.stderr.write(f"repflow: {error}\n")
        return 2 if isinstance(error, UsageError) else 1


class _Parser(argparse.ArgumentParser):
    """Its subcommands, which are parsers of this class, tell of unknown arguments with their own usage."""

    def parse_known_args(self, *arguments: Any, **options: Any) -> tuple[argparse.Namespace, list[str]]:
        namespace, unknown = super().parse_known_args(*arguments, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, each from the module of its name."""
    parser = _Parser(prog="repflow", description="Understand, run and measure representation flow.")
    parser.add_argument("--version", action="version", version=f"repflow {__version__}")
    entries = ((name, module.add, getattr(module, "run", None), text) for name, (module, text) in COMMANDS.items())
    add_subcommands(parser, "COMMAND", *entries)
    parser.set_defaults(parse=parser.parse_args)
    return parser
