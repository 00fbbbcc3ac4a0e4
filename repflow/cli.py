"""The command `repflow`: one function for each subcommand, which imports what is heavy itself."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from repflow import __version__
from repflow.experiments import UsageError
from repflow.experiments.parameters import PROFILES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's) and return its exit code.

    0: done; 1: something failed; 2: wrong usage, nothing was started; 130: stopped by ctrl-C or a signal.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("repflow").setLevel(logging.INFO)
    with suppress(ValueError):  # not in a thread, where no handler can be set
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: what is unfinished is cleaned up
    try:
        code = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read our output has gone; what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (UsageError, OSError) as error:
        sys.stderr.write(f"repflow: {error}\n")
        return 2 if isinstance(error, UsageError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="repflow", description="Understand, run and measure representation flow.")
    parser.add_argument("--version", action="version", version=f"repflow {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help="execute notebooks", description=_run.__doc__, allow_abbrev=False))
    _add_flow(commands.add_parser("flow", help="TV-L1 flow of a video", description=_flow.__doc__, allow_abbrev=False))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_run)
    add = parser.add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="number, name or .ipynb file (default: all, in order)")
    add("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter's value, for each notebook that has it; may be repeated")  # fmt: skip
    add("--profile", choices=PROFILES, default="tiny", help="the size of the experiment (default: tiny)")
    add("--out", type=Path, default=Path("runs"), help="where the folder with the results goes (default: runs)")


def _run(arguments: argparse.Namespace) -> int:
    """Execute notebooks and write a folder with their pages, figures and metrics; its index page is the last line."""
    from repflow import experiments

    jobs = experiments.plan(arguments.notebooks, arguments.parameters, arguments.profile)
    index, good = experiments.run(jobs, arguments.out, arguments.profile)
    sys.stdout.write(f"{index}\n")
    return 0 if good else 1


def _add_flow(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_flow)
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="any video file")
    add("--out", type=Path, required=True, metavar="FILE", help="a .gif to look at, or an .npz with the numbers")
    add("--start", type=int, default=0, metavar="N", help="first frame (default: 0)")
    add("--frames", type=int, metavar="N", help="at most so many frames (default: all)")
    add("--stride", type=int, default=1, metavar="N", help="take every N-th frame (default: 1)")
    add("--width", type=int, metavar="PX", help="reduce wider frames first (default: 320 for a .gif, else not)")


def _flow(arguments: argparse.Namespace) -> int:
    """Compute TV-L1 flow between successive frames, and write it as a GIF (frames beside flow colours) or as arrays:
    `flow` (T-1, 2, H, W) in pixels per frame taken, u to the right and v down, and `fps`."""
    from repflow.data.flow import write_flow_npz
    from repflow.figures import write_flow_gif

    options = {name: getattr(arguments, name) for name in ("start", "frames", "stride", "width")}
    for name, least in (("start", 0), ("frames", 1), ("stride", 1), ("width", 1)):
        if options[name] is not None and options[name] < least:
            raise UsageError(f"--{name}: expected a whole number >= {least}, got {options[name]}")
    write = {".gif": write_flow_gif, ".npz": write_flow_npz}.get(arguments.out.suffix.lower())
    if write is None:
        raise UsageError(f"--out {arguments.out}: expected a name that ends in .gif or .npz")
    if arguments.out.is_dir() or not os.access(arguments.out.absolute().parent, os.W_OK):
        raise OSError(f"{arguments.out} cannot be written; name a file in a folder that exists and is writable")
    write(arguments.video, arguments.out, **options)
    sys.stdout.write(f"{arguments.out}\n")
    return 0
