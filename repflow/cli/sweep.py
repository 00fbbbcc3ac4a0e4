"""`repflow sweep`."""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from repflow.cli import train
from repflow.cli.options import numbers_of
from repflow.files import text_table
from repflow.lab.parameters import PROFILES, UsageError, naming
from repflow.lab.sweeps.grid import Sweep, read_sweep

if TYPE_CHECKING:
    from repflow.lab.sweeps.run import Executor

_log = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a sweep (.toml), such as those in notebooks/sweeps")
    add("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="the value of a parameter that does not vary; may be repeated")  # fmt: skip
    add("--profile", choices=PROFILES, default="tiny", help="the size of the experiment (default: tiny)")
    add("--out", type=Path, metavar="DIR", help="where results go (default: runs/NAME_PROFILE)")
    add("--jobs", type=int, metavar="N", help="points at a time (default: one a GPU, or one)")
    add("--slurm", nargs="*", metavar="NAME=VALUE",
        help="run points as SLURM jobs; submitit's options, such as timeout_min=600 gpus_per_node=1")  # fmt: skip
    add("--dry-run", action="store_true", help="check the whole grid, show what each point would run, and stop")


def run(arguments: argparse.Namespace) -> int:
    """Run every point of a grid of parameters, and write a table (CSV) and a figure (PNG). All is checked before the
    first one starts. What is finished is kept: a sweep that was stopped goes on where it was."""
    numbers_of(arguments, jobs=1)
    from repflow.lab.sweeps.figure import summary, write_outcome
    from repflow.lab.sweeps.run import read_result, run_sweep

    sweep = read_sweep(arguments.file, arguments.profile, dict(arguments.parameters))
    check_commands(sweep, arguments.parse)
    if arguments.dry_run:
        for point in sweep.points:
            sys.stdout.write(f"{point.name}\n")
            sys.stdout.writelines(f"    {' '.join(command)}\n" for command in point.commands)
        return 0
    out = arguments.out or Path("runs") / f"{sweep.name}_{arguments.profile}"
    try:
        failed = run_sweep(sweep, out, _executor(arguments, out))
    except KeyboardInterrupt:
        done = sum(read_result(out, point) is not None for point in sweep.points)
        _log.info("stopped: %d of %d points are done; the same command goes on", done, len(sweep.points))
        raise
    rows = write_outcome(sweep, out)
    if rows and sweep.metrics:
        sys.stdout.write(f"{sweep.question}\nHypothesis: {sweep.hypothesis}\n\n")
        sys.stdout.write(f"{text_table(summary(sweep, rows))}\n\n")
    sys.stdout.writelines(f"failed: {out / name / 'log.txt'}: {reason}\n" for name, reason in failed.items())
    sys.stdout.write(f"{out}\n")
    return 1 if failed else 0


def _executor(arguments: argparse.Namespace, out: Path) -> "Executor":
    from repflow.lab.sweeps.run import Processes, slurm

    if arguments.slurm is None:
        return Processes(arguments.jobs)
    pairs = [option.partition("=") for option in arguments.slurm]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise UsageError(f"--slurm {wrong[0]}: expected NAME=VALUE")
    return slurm(out / "slurm", {name: int(value) if value.isdecimal() else value for name, _, value in pairs})


def check_commands(sweep: Sweep, parse: Callable[[list[str]], argparse.Namespace]) -> None:
    """Let the parser see every command line of this program, and build every model that one trains without memory.

    Raises UsageError for a line or a model that would be refused later, when its turn comes.
    """
    models = []
    for command in (command for point in sweep.points for command in point.commands if command[0] == "repflow"):
        message = io.StringIO()
        with naming(f"{' '.join(command)}: "):
            try:
                with contextlib.redirect_stderr(message):
                    arguments = parse(command[1:])
            except SystemExit:
                raise UsageError(message.getvalue().strip().splitlines()[-1]) from None
            if arguments.command is train.run:
                model = (arguments.model, train.settings_of(arguments)[1])
                if model not in models:
                    models.append(model)
                    train.check_model(*model)
