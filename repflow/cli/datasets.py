"""The arguments that name a data set and how clips are taken from it, for the commands that read one."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from repflow.lab.parameters import UsageError

if TYPE_CHECKING:
    from repflow.data.lists import Listed


class Kind(NamedTuple):
    """How the commands open a data set.

    name: of its class in `repflow.data`, called with root, subset, classes and quarantine; given: its parameters that
    arguments give, by the argument's name; fixed: others; test: the subset that is tested on; result: what the table of
    results calls it, if it has it.
    """

    name: str
    given: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}
    test: str = "test"
    result: str | None = None


KINDS = {
    "hmdb51": Kind("HMDB51", {"fold": "fold", "list": "split_file"}, {"missing_ok": True}, result="hmdb51"),
    "kinetics": Kind("Kinetics", {"list": "csv", "numbers": "numbers"}, test="val", result="kinetics400"),
    "kinetics600": Kind("Kinetics", {"list": "csv"}, {"edition": 600}, test="val"),
    "kinetics700": Kind("Kinetics", {"list": "csv"}, {"edition": 700}, test="val"),
    "ucf101": Kind("UCF101", {"fold": "fold", "list": "lists"}, {"missing_ok": True}),
    "ssv2": Kind("SomethingSomething", test="val"),
    "synthetic": Kind("SyntheticMotion", result="synthetic_motion"),
    "folder": Kind("VideoFolder", {"group": "group"}),
    "list": Kind("VideoList", {"list": "lists"}),
}


def add_dataset(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", nargs=2, metavar=("SET", "ROOT"), help=f"a data set ({', '.join(KINDS)}) and its folder")
    add("--fold", type=int, choices=(1, 2, 3), default=1, help="of HMDB51 or UCF101 (default: 1)")
    add("--classes", type=Path, metavar="FILE", help="only these classes, one a line, labels in this order")
    add("--list", type=Path, metavar="FILE", help="Kinetics: an official CSV file, or JSON with --numbers; HMDB51: "
        "lines 'video class'; UCF101: the folder of its lists; list: a list, or the folder of train.txt and test.txt "
        "(default: ROOT)")  # fmt: skip
    add("--numbers", type=Path, metavar="FILE", help="kinetics: the class names of a JSON list's numbers, JSON too")
    add("--group", metavar="REGEX", help="folder: what it finds in a file's name is the source, whose clips stay "
        "together, such as _g[0-9]+")  # fmt: skip
    add("--flow", metavar="DIR", help="the folder that extract-flow wrote, or tvl1 to compute flow while reading")
    add("--cache", metavar="DIR", help="keep the decoded, reduced frames of all videos in this folder, for speed")
    add_quarantine(parser)


def add_quarantine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quarantine", type=Path, metavar="FILE", help="leave out the videos of this list, or of the "
        "folder that data check --out wrote into (default: ROOT/quarantine.txt, if there)")  # fmt: skip


def check_dataset(arguments: argparse.Namespace) -> None:
    """Raise UsageError for arguments of a data set that don't go together."""
    if arguments.data is None:
        raise UsageError(f"--data SET ROOT: expected one of {', '.join(KINDS)} and its folder")
    kind, _ = arguments.data
    if kind not in KINDS:
        raise UsageError(f"--data {kind}: expected one of {', '.join(KINDS)}, and then the folder")
    for name in ("list", "numbers", "group"):
        if getattr(arguments, name) and name not in KINDS[kind].given:
            takers = ", ".join(other for other in KINDS if name in KINDS[other].given)
            raise UsageError(f"--{name}: it belongs to {takers}, not to {kind}; leave it out")


def open_dataset(arguments: argparse.Namespace, subset: str, classes: Sequence[str] | None = None) -> "Listed":
    """The data set that the arguments name. `subset` is "train" or "test", which some data sets call "val".

    classes: those to take where the arguments name none. Raises ValueError and OSError as the data set does.
    """
    import repflow.data

    name, root = arguments.data
    kind = KINDS[name]
    options = {parameter: getattr(arguments, argument) for argument, parameter in kind.given.items()} | dict(kind.fixed)
    options |= {"classes": arguments.classes or classes, "quarantine": arguments.quarantine}
    return getattr(repflow.data, kind.name)(root, subset=kind.test if subset == "test" else subset, **options)
