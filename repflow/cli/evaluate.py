"""`repflow evaluate`."""

import argparse
import logging
import sys
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import TYPE_CHECKING, Any

from repflow.cli.datasets import KINDS, add_dataset, check_dataset, open_dataset
from repflow.cli.options import numbers_of
from repflow.lab.parameters import UsageError

if TYPE_CHECKING:
    from repflow.data.lists import Listed
    from repflow.evaluation import Predictions
    from repflow.training import Checkpoint


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help="weights: of a run of this package, or a .pt file (or its conversion) of the 2019 release")  # fmt: skip
    add("--key", metavar="NAME",
        help="what the weights in a file not of this package are called, such as state_dict_ema")  # fmt: skip
    add("--feed", choices=("demonstration", "training"),
        help="clips of the 2019 release's Kinetics network: as its demonstration cuts them (224 pixels, upright; the "
        "default), or its training (112 pixels, inverted)")  # fmt: skip
    add("--predictions", type=Path, nargs="+", metavar="FILE", help="instead: what earlier evaluations saved")
    add("--weights", type=float, nargs="+", metavar="W", help="fuse those predictions: a weight for each")
    add_dataset(parser)
    add("--frames", type=int, metavar="N", help="of a clip (default for this and the next three: as in training)")
    add("--stride", type=int, metavar="N", help="take every N-th frame")
    add("--resize", type=int, metavar="PX", help="the shorter side before cutting")
    add("--crop", type=int, metavar="PX", help="side of the square that is cut out")
    add("--clips", type=int, default=10, metavar="N", help="clips of a video (default: 10)")
    add("--crops", type=int, choices=(1, 3), default=1, help="crops of a clip (default: 1)")
    add("--batch", type=int, default=16, metavar="N", help="clips at once, a video's views too (default: 16)")
    add("--workers", type=int, default=0, metavar="N", help="processes that read videos (default: 0)")
    add("--out", type=Path, metavar="DIR", help="write predictions.npz, metrics.json, classes.csv, confusion.csv")
    add("--ours", type=Path, metavar="FILE",
        help="add a row to this table, such as results/ours.csv, which `repflow compare` reads")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Top-1 and top-5 accuracy on test videos, with 95 % intervals, and how many of the expected videos were evaluated.
    Clips are cut as in the checkpoint's training, and its classes taken in its order; a file that does not tell them
    needs --classes. With several --predictions: their weighted fusion, or without --weights the mean over folds.
    Several processes share the videos: torchrun --nproc-per-node 4 -m repflow evaluate ..., or srun repflow evaluate
    ..."""
    _check_usage(arguments)
    if arguments.predictions:
        _compare(arguments)
    else:
        _evaluate(arguments)
    return 0


def _compare(arguments: argparse.Namespace) -> None:
    """Fuse saved predictions where there are weights, else show each and the mean over folds."""
    from repflow.evaluation import Predictions, folds, fuse, measures, write_metrics

    parts = [Predictions.load(path) for path in arguments.predictions]
    if arguments.weights or len(parts) == 1:
        _told(fuse(parts, arguments.weights) if arguments.weights else parts[0], arguments)
        return
    for part in parts:
        _show(measures(part))
    mean = folds(parts)
    _show(mean)
    if arguments.out:
        write_metrics(arguments.out, mean | {"predictions": arguments.predictions})


def _told(predictions: "Predictions", arguments: argparse.Namespace) -> dict[str, float | int]:
    """Show what predictions are worth, write them to --out, and return it."""
    from repflow.evaluation import measures, write_evaluation

    asked = {name: str(value) for name, value in vars(arguments).items() if value and name != "command"}
    facts = asked if arguments.checkpoint else {}
    measured = write_evaluation(predictions, arguments.out, facts) if arguments.out else measures(predictions)
    _show(measured)
    return measured


def _check_usage(arguments: argparse.Namespace) -> None:
    if (arguments.checkpoint is None) == (arguments.predictions is None):
        raise UsageError("expected either --checkpoint or --predictions")
    numbers_of(arguments, batch=1)
    if arguments.checkpoint:
        if arguments.weights:
            raise UsageError("--weights: fusion takes --predictions of several models")
        check_dataset(arguments)
    elif arguments.ours:
        raise UsageError("--ours: a row of it is a --checkpoint on one data set and fold")


def _evaluate(arguments: argparse.Namespace) -> None:
    """Show what the checkpoint says of the test videos, and add it to the table --ours."""
    from repflow.data import Views
    from repflow.evaluation import evaluate
    from repflow.lab.results import add_result
    from repflow.processes import process_group
    from repflow.training import open_checkpoint

    started = perf_counter()
    with process_group() as first:
        if not first:
            logging.getLogger("repflow").setLevel(logging.WARNING)  # the first one speaks
        checkpoint = open_checkpoint(arguments.checkpoint, arguments.key, arguments.feed)
        _check_fold(arguments, checkpoint)
        row = _row(arguments, checkpoint) if arguments.ours else {}
        source = _source(arguments, checkpoint)
        cut = {name: getattr(arguments, name) for name in ("frames", "stride", "resize", "crop", "flow")}
        settings = checkpoint.clips | {name: value for name, value in cut.items() if value is not None}
        views = Views(source, clips=arguments.clips, crops=arguments.crops, cache=arguments.cache, **settings)
        predictions = evaluate(checkpoint.model, views, source, arguments.batch, arguments.workers)
    if not first:
        return
    measured = _told(predictions, arguments)
    if arguments.ours:
        row["seconds"] += perf_counter() - started
        add_result(arguments.ours, measured, **row)


def _source(arguments: argparse.Namespace, checkpoint: "Checkpoint") -> "Listed":
    """The test videos of the checkpoint's classes, in its order.

    Raises ValueError where --classes asks for others, and UsageError where neither tells the order.
    """
    from repflow.evaluation import check_classes

    known = checkpoint.classes
    if known is None and not arguments.classes:
        raise UsageError(
            f"--classes FILE: expected the classes of {arguments.checkpoint}, one a line in the order of its scores, "
            "because it does not tell them; in another order every accuracy is wrong"
        )
    source = open_dataset(arguments, "test", known)
    if known is not None:
        check_classes(known, source.classes, f"{arguments.checkpoint} and the data set")
    return source


def _check_fold(arguments: argparse.Namespace, checkpoint: "Checkpoint") -> None:
    """Raise UsageError for a network of ours that was trained on the fold's test videos, or may have been."""
    about = checkpoint.config["about"] if checkpoint.config else {}
    if arguments.data[0] == about.get("set") in ("hmdb51", "ucf101") and arguments.fold != about["fold"]:
        raise UsageError(
            f"--fold {arguments.fold}: {arguments.checkpoint} was trained on fold {about['fold']}, in which are test "
            f"videos of fold {arguments.fold}; take --fold {about['fold']}"
        )
    if arguments.data[0] == about.get("set") == "folder" and arguments.group != about.get("group"):
        theirs = f"--group {quote(about['group'])}" if about.get("group") else ""
        raise UsageError(
            f"{arguments.checkpoint} was trained {f'with {theirs}' if theirs else 'without --group'}, so its training "
            f"videos may be among these test videos; {f'add {theirs}' if theirs else 'leave --group out'} here, too"
        )


def _row(arguments: argparse.Namespace, checkpoint: "Checkpoint") -> dict[str, Any]:
    """What `add_result` needs besides the measures, with the seconds that training took."""
    from repflow.models.systems import SYSTEMS
    from repflow.training import read_checkpoint, seconds_of

    config = checkpoint.config
    if config is None:
        raise UsageError("--ours: expected a checkpoint of `repflow train`, which says how it was trained")
    kind = arguments.data[0]
    data_set = KINDS[kind].result
    if data_set is None:
        raise UsageError(f"--ours: the table of results has no column for {kind}; leave it out, or take --out")
    if kind == "hmdb51" and config["init_from"]:
        before = read_checkpoint(config["init_from"])["config"]["about"].get("set")
        data_set = "hmdb51_kinetics" if before == "kinetics" else data_set
    system, fold = config["model"], arguments.fold if kind == "hmdb51" else None
    backbone = config["options"].get("backbone") or SYSTEMS[system].backbones[0]
    row = {"system": system, "backbone": backbone, "data_set": data_set, "fold": fold}
    row |= {"clips": arguments.clips, "crops": arguments.crops}
    return row | {"seed": config["recipe"]["seed"], "seconds": seconds_of(arguments.checkpoint)}


def _show(measured: dict[str, float | int]) -> None:
    for name in ("top1", "top5"):
        line = f"{name[:3]}-{name[3:]}  {measured[name]:.1f} %"
        if f"{name}_low" in measured:
            line += f"  (95 %: {measured[f'{name}_low']:.1f} to {measured[f'{name}_high']:.1f})"
        sys.stdout.write(f"{line}\n")
    over = f", mean of {measured['folds']} folds" if "folds" in measured else ""
    sys.stdout.write(f"evaluated {measured['evaluated']} of {measured['expected']} videos{over}\n")
