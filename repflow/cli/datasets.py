"""The arguments that name a data set and how clips are taken from it, for the commands that read one."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repflow.lab.parameters import UsageError

if TYPE_CHECKING:
    from repflow.data.lists import Listed

KINDS = "hmdb51", "kinetics", "ucf101", "synthetic"


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """--data, --fold, --classes, --list, --cache, --quarantine."""
    add = parser.add_argument
    add("--data", nargs=2, metavar=("SET", "ROOT"), help=f"a data set ({', '.join(KINDS)}) and its folder")
    add("--fold", type=int, choices=(1, 2, 3), default=1, help="of HMDB51 or UCF101 (default: 1)")
    add("--classes", type=Path, metavar="FILE", help="only these classes, one a line, labels in this order")
    add("--list", type=Path, metavar="FILE",
        help="Kinetics: an official CSV file; HMDB51: lines 'video class'; "
        "UCF101: the folder of its lists")  # fmt: skip
    add("--cache", metavar="DIR", help="keep the decoded, reduced frames of all videos in this folder, for speed")
    add_quarantine(parser)


def add_quarantine(parser: argparse.ArgumentParser) -> None:
    """--quarantine."""
    parser.add_argument("--quarantine", type=Path, metavar="FILE", help="leave out the videos of this list, or of the "
        "folder that data check --out wrote into (default: ROOT/quarantine.txt, if there)")  # fmt: skip


def check_dataset(arguments: argparse.Namespace) -> None:
    """Raise UsageError for arguments of a data set that don't go together."""
    if arguments.data is None:
        raise UsageError(f"--data SET ROOT: expected one of {', '.join(KINDS)} and its folder")
    kind, _ = arguments.data
    if kind not in KINDS:
        raise UsageError(f"--data {kind}: expected one of {', '.join(KINDS)}, and then the folder")
    if kind == "synthetic" and arguments.list:
        raise UsageError("--list: SyntheticMotion has its own lists")


def open_dataset(arguments: argparse.Namespace, subset: str, classes: Sequence[str] | None = None) -> "Listed":
    """The data set that the arguments name. `subset` is "train" or "test"; Kinetics tests on its "val".

    classes: those to take where the arguments name none. Raises ValueError and OSError as the data set does.
    """
    from repflow.data import HMDB51, UCF101, Kinetics, SyntheticMotion

    kind, root = arguments.data
    bad = arguments.quarantine
    classes = arguments.classes or classes
    if kind == "kinetics":
        subset = "val" if subset == "test" else subset
        return Kinetics(root, subset, csv=arguments.list, classes=classes, quarantine=bad)
    if kind == "hmdb51":
        return HMDB51(root, arguments.fold, subset, classes, split_file=arguments.list, missing_ok=True, quarantine=bad)
    if kind == "ucf101":
        return UCF101(root, arguments.fold, subset, classes, lists=arguments.list, missing_ok=True, quarantine=bad)
    return SyntheticMotion(root, subset, classes, quarantine=bad)


def add_clips(parser: argparse.ArgumentParser) -> None:
    """--frames, --stride, --resize, --crop, --flow: without them clips are as in the checkpoint's training."""
    add = parser.add_argument
    add("--frames", type=int, metavar="N", help="of a clip (default for this and the next three: as in training)")
    add("--stride", type=int, metavar="N", help="take every N-th frame")
    add("--resize", type=int, metavar="PX", help="the shorter side before cutting")
    add("--crop", type=int, metavar="PX", help="side of the square that is cut out")
    add("--flow", metavar="DIR", help="the folder that extract-flow wrote, or tvl1 to compute flow while reading")


def clip_settings(arguments: argparse.Namespace, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for `Clips` and `Views`: the defaults, over them what was asked for."""
    names = ("frames", "stride", "resize", "crop", "flow")
    asked = {name: getattr(arguments, name) for name in names}
    return {**defaults, **{name: value for name, value in asked.items() if value is not None}}
