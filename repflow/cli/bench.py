"""`repflow bench`."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from repflow.cli.options import add_subcommands, check_out, numbers_of
from repflow.files import Row, text_table, write_csv
from repflow.lab.parameters import PROFILES, UsageError
from repflow.records import circumstances

if TYPE_CHECKING:
    from repflow.lab.bench.solver import Problem


def add(parser: argparse.ArgumentParser) -> None:
    for command in add_subcommands(
        parser,
        "WHAT",
        ("solver", _add_solver, _solver, "the solver's engines and the layers"),
        ("tvl1", _add_tvl1, _tvl1, "optical flow of images, by several programs"),
        ("video", _add_video, _video, "random clips of videos, by several decoders"),
        ("scaling", _add_solver, _scaling, "the layers against frames, pixels, channels, iterations, batch"),
        ("systems", _add_systems, _systems, "a clip in every system of the table, stage by stage"),
    ):
        command.add_argument("--out", type=Path, metavar="FILE", help="write a CSV file, too, which names the machine")


def _add_solver(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--channels", type=int, default=32, metavar="N", help="of the feature maps (default: 32)")
    add("--pairs", type=int, default=15, metavar="N", help="of maps; a clip has one more (default: 15)")
    add("--size", type=int, default=28, metavar="PX", help="height and width of the maps (default: 28)")
    add("--iterations", type=int, default=20, metavar="N", help="of the solver (default: 20)")
    add("--repeats", type=int, default=7, metavar="N", help="rounds (default: 7)")
    _add_device(parser)


def _solver(arguments: argparse.Namespace) -> int:
    """Time the flow of feature maps and the whole layer, forward and backward, by every engine that can run and by the
    official layer of June 2019, in random order; and measure their memory."""
    problem, repeats = _problem(arguments, channels=1, pairs=1, size=2, iterations=1)
    from repflow.lab.bench.solver import time_solver

    rows = time_solver(problem, repeats)
    return _tell(rows, asdict(problem) | {"repeats": repeats} | circumstances("numba", "triton"), arguments.out)


def _scaling(arguments: argparse.Namespace) -> int:
    """Time the layer, forward and backward, by every engine and as released in June 2019, while its frames, pixels,
    channels, iterations and batch grow, each for itself; and fit the powers that time and memory grow with."""
    problem, repeats = _problem(arguments, channels=2, pairs=2, size=8, iterations=2)
    from repflow.lab.bench.scaling import exponents, time_scaling

    rows = time_scaling(problem, repeats)
    _tell(rows, asdict(problem) | {"repeats": repeats} | circumstances("numba", "triton"), arguments.out)
    sys.stdout.write(f"\npowers\n\n{text_table(exponents(rows))}\n")
    return 0


def _problem(arguments: argparse.Namespace, **least: int) -> "tuple[Problem, int]":
    """The problem that the options describe, and how often it is timed, after a check of all options."""
    options = numbers_of(arguments, **least, repeats=1)
    repeats = options.pop("repeats")
    from repflow.lab.bench.solver import Problem

    problem = Problem(**options, device=_device_of(arguments))
    check_out(arguments.out)
    return problem, repeats


def _add_tvl1(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pairs", type=Path, metavar="DIR",
        help="subfolders with frame10.png, frame11.png, flow10.flo (default: a made pair, 480x640)")  # fmt: skip
    add("--repeats", type=int, default=5, metavar="N", help="rounds for each pair (default: 5)")
    _add_device(parser)


def _tvl1(arguments: argparse.Namespace) -> int:
    """Time optical flow by TV-L1 (this package's engines, OpenCV, scikit-image) and DIS (OpenCV), each with its own
    defaults, in random order; and measure their error against the true flow."""
    numbers = numbers_of(arguments, repeats=1)
    from repflow.lab.bench.flow import made_pair, read_pairs, time_tvl1

    device = _device_of(arguments)
    check_out(arguments.out)
    pairs = read_pairs(arguments.pairs) if arguments.pairs else [made_pair()]
    if not pairs:
        raise UsageError(f"--pairs {arguments.pairs}: expected subfolders with frame10.png, frame11.png, flow10.flo")
    rows = time_tvl1(pairs, device, **numbers)
    facts = {"device": device} | numbers | circumstances("numba", "triton", "cv2", "skimage")
    return _tell(rows, facts, arguments.out, any(row["note"] for row in rows))


def _add_video(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="*", type=Path, metavar="VIDEO", help="files of 32 frames or more (default: two made ones)")
    add("--clips", type=int, default=24, metavar="N", help="in a round (default: 24)")
    add("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")


def _video(arguments: argparse.Namespace) -> int:
    """Time reading random clips of 32 frames, resized to 112x112, with one and with two workers: by this package, by
    plain PyAV, torchcodec and OpenCV, in random order."""
    numbers = numbers_of(arguments, clips=1, repeats=1)
    check_out(arguments.out)
    from repflow.lab.bench.video import make_videos, time_readers

    with TemporaryDirectory() as folder:
        videos = {path.name: path for path in arguments.videos} or make_videos(Path(folder))
        rows = time_readers(videos, **numbers)
    facts = numbers | circumstances("av", "torchcodec", "cv2")
    return _tell(rows, facts, arguments.out, any(row["note"] for row in rows))


def _add_systems(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--profile", choices=PROFILES, default="paper", help="tiny: 9 frames of 64x64; small: 16 of 112x112; paper: 32 "
        "of 224x224 (default)")  # fmt: skip
    add("--frames", type=int, metavar="N", help="of a clip, instead of the profile's")
    add("--size", type=int, metavar="PX", help="its height and width, instead of the profile's")
    add("--batch", type=int, default=1, metavar="N", help="clips at a time (default: 1)")
    add("--best", action="store_true", help="also find each network's batch with most clips a second")
    add("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    _add_device(parser)


def _systems(arguments: argparse.Namespace) -> int:
    """Time a clip in every system of the authors' table: decoding, TV-L1 by several programs, network forward and
    training step, in random order; then the paper's milliseconds and ratios beside these."""
    numbers = numbers_of(arguments, frames=9, size=64, batch=1, repeats=1)
    repeats = numbers.pop("repeats")
    asked = {name: value for name, value in numbers.items() if value is not None}
    from repflow.lab.bench import systems

    setting = systems.Setting(**systems.PROFILES[arguments.profile] | asked, device=_device_of(arguments))
    check_out(arguments.out)
    rows = systems.time_systems(setting, repeats)
    if arguments.best:
        rows += filter(None, (systems.best_batch(name, setting) for name in systems.TABLE))
    facts = asdict(setting) | {"repeats": repeats} | circumstances("av", "cv2", "numba", "triton")
    facts.pop("batch")  # a column of its own
    programs = systems.programs(rows)
    _tell(rows, facts, arguments.out, "OpenCV" not in programs)
    for program in programs:
        lines, ratios = systems.table(rows, program), systems.ratios(rows, program)
        sys.stdout.write(f"\nTV-L1 by {program}\n\n{text_table(lines)}\n\n{text_table(ratios)}\n")
    return 0


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")


def _device_of(arguments: argparse.Namespace) -> str:
    """The device that was asked for, or by default the GPU where there is one. Raises UsageError for a missing GPU."""
    import torch

    available = torch.cuda.is_available()
    if arguments.device == "cuda" and not available:
        raise UsageError("--device cuda: PyTorch finds no GPU here; take --device cpu")
    return arguments.device or ("cuda" if available else "cpu")


def _tell(rows: list[Row], facts: Row, out: Path | None, incomplete: bool = False) -> int:
    """Print a table of `rows`, and under it what is the same for all of them; write both where a file is named.

    incomplete: whether something was not timed because it is not installed.
    """
    if out is not None:
        write_csv(out, [row | facts for row in rows])
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    sys.stdout.write(f"{text_table(rows)}\n\n{known}\n")
    if incomplete:
        sys.stderr.write("repflow: the extra `bench` brings what is not installed: pip install -e '.[bench]'\n")
    return 0
