"""`repflow data`."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from repflow.cli.datasets import add_quarantine
from repflow.cli.options import add_subcommands, numbers_of


def add(parser: argparse.ArgumentParser) -> None:
    for command in add_subcommands(
        parser,
        "WHAT",
        ("make", _add_make, _make, "generated videos of twelve motions"),
        ("unpack", None, _unpack, "HMDB51's official archives"),
        ("check", _add_check, _check, "decode every video, list the bad ones"),
        ("extract-flow", _add_extract, _extract, "TV-L1 flow of every video"),
    ):
        command.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder")


def _add_make(parser: argparse.ArgumentParser) -> None:
    for name, default, what in (
        ("train", 60, "training clips a class"), ("test", 20, "test clips a class"), ("size", 48, "pixels a side"),
        ("frames", 9, "frames a clip"), ("seed", 0, "of everything random"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--moving", choices=("frame", "object"), default="frame", help="what moves (default: frame)")


def _make(arguments: argparse.Namespace) -> int:
    """Make SyntheticMotion: small videos in HMDB51's layout whose class is told by motion alone."""
    numbers = numbers_of(arguments, train=1, test=0, size=8, frames=3, seed=0)
    from repflow.data import SyntheticMotion

    SyntheticMotion.make(arguments.root, **numbers, moving=arguments.moving)
    sys.stdout.write(f"{arguments.root}\n")
    return 0


def _unpack(arguments: argparse.Namespace) -> int:
    """Unpack HMDB51's .rar files that lie in ROOT into its class folders; nothing that is there is replaced."""
    from repflow.data.unpack import unpack_hmdb51

    sys.stdout.writelines(f"{name}\n" for name in unpack_hmdb51(arguments.root))
    return 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a core)")
    add("--seconds", type=int, default=30, metavar="N", help="longest time for a video (default: 30)")
    add("--shortest", type=int, default=2, metavar="N", help="fewest frames of a good video (default: 2)")
    add("--out", type=Path, metavar="DIR", help="where check.csv and quarantine.txt go (default: ROOT)")


def _check(arguments: argparse.Namespace) -> int:
    """Decode every video; report, and list the bad ones in ROOT/quarantine.txt, or in DIR, which the loaders leave
    out. No video is changed. A check that was stopped goes on where it was."""
    numbers = numbers_of(arguments, workers=1, seconds=1, shortest=1)
    from repflow.data.check import check

    report = check(arguments.root, out=arguments.out, **numbers)
    sys.stdout.write(f"{report.text()}\n")
    if arguments.out and report.bad:
        sys.stdout.write(
            f"\nto leave out the bad ones: --quarantine {shlex.quote(str(arguments.out))} with train, evaluate and "
            "data extract-flow, quarantine= in Python\n"
        )
    return 1 if report.bad else 0


def _add_extract(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="where the flow goes (default: ROOT's name with -flow behind it)")
    add("--workers", type=int, metavar="N", help="processes (default: one a core, or one on a GPU)")
    add("--width", type=int, metavar="PX", help="reduce wider frames first (default: not)")
    add_quarantine(parser)


def _extract(arguments: argparse.Namespace) -> int:
    """Compute TV-L1 flow of every video for two-stream training: u and v within 20 px as bytes, a file a video. What
    is finished is kept: a run that was stopped goes on where it was."""
    numbers = numbers_of(arguments, workers=1, width=1)
    from repflow.data.extract import extract_flow

    result = extract_flow(arguments.root, arguments.out, **numbers, quarantine=arguments.quarantine)
    sys.stdout.write(f"{len(result.done)} done, {len(result.skipped)} there already, {len(result.failed)} failed\n")
    sys.stdout.writelines(f"{problem}\n" for problem in result.failed.values())
    return 1 if result.failed else 0
