"""`repflow evaluate` and `repflow convert`."""

import argparse
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from repflow.cli.datasets import RESIZE, add_clips, add_dataset, clip_settings, open_dataset
from repflow.experiments import UsageError

if TYPE_CHECKING:
    from torch import nn

    from repflow.evaluation import Predictions


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of `repflow evaluate`."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE",
        help="weights: of a run of this package, or a .pt file (or its conversion) of the 2019 release")  # fmt: skip
    add("--predictions", type=Path, nargs="+", metavar="FILE", help="instead: what earlier evaluations saved")
    add("--weights", type=float, nargs="+", metavar="W", help="fuse those predictions: a weight for each")
    add_dataset(parser)
    add_clips(parser)
    add("--clips", type=int, default=10, metavar="N", help="clips of a video (default: 10)")
    add("--crops", type=int, choices=(1, 3), default=1, help="crops of a clip (default: 1)")
    add("--batch", type=int, default=16, metavar="N", help="clips at once (default: 16)")
    add("--workers", type=int, default=0, metavar="N", help="processes that read videos (default: 0)")
    add("--out", type=Path, metavar="DIR", help="write predictions.npz, metrics.json, classes.csv, confusion.csv")
    add("--ours", type=Path, metavar="FILE",
        help="add a row to this table, such as results/ours.csv, which `repflow compare` reads")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Top-1 and top-5 accuracy on test videos, with 95 % intervals, and how many of the expected videos were evaluated.
    With several --predictions: their weighted fusion, or without --weights the mean over folds. Several processes share
    the videos: torchrun --nproc-per-node 4 -m repflow evaluate ..."""
    from repflow.evaluation import folds, measures, process_group, write_evaluation

    if (arguments.checkpoint is None) == (arguments.predictions is None):
        raise UsageError("expected either --checkpoint or --predictions")
    if arguments.ours and not arguments.checkpoint:
        raise UsageError("--ours: a row of it is a --checkpoint on one data set and fold")
    facts: dict[str, object] = {}
    started = perf_counter()
    if arguments.checkpoint:
        with process_group() as first:
            part, config = _evaluated(arguments)
            parts, facts = [part], {name: str(v) for name, v in vars(arguments).items() if v}
        if not first:
            return 0
        facts.pop("command")
    else:
        parts = _loaded(arguments)
    if len(parts) > 1:
        for part in parts:
            _show(measures(part))
        _show(folds(parts))
        return 0
    found = write_evaluation(parts[0], arguments.out, facts) if arguments.out else measures(parts[0])
    _show(found)
    if arguments.ours:
        _record(arguments, config, found, perf_counter() - started)
    return 0


def add_convert(parser: argparse.ArgumentParser) -> None:
    """The arguments of `repflow convert`."""
    parser.set_defaults(command=run_convert)
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="a .pt file of the 2019 release")
    parser.add_argument("out", type=Path, metavar="DIR", help="gets model.safetensors and model.json")


def run_convert(arguments: argparse.Namespace) -> int:
    """Rewrite a checkpoint of the 2019 release, Kinetics or HMDB51 flow-of-flow, as weights that no program is in."""
    from repflow.official import convert, kind_of

    convert(arguments.checkpoint, kind_of(arguments.checkpoint), arguments.out)
    sys.stdout.write(f"{arguments.out}\n")
    return 0


def _evaluated(arguments: argparse.Namespace) -> "tuple[Predictions, dict[str, Any] | None]":
    """What the checkpoint says of the test videos, and how it was trained: see `read_model`."""
    from repflow.data import Views
    from repflow.evaluation import evaluate

    if arguments.weights:
        raise UsageError("--weights: fusion takes --predictions of several models")
    source = open_dataset(arguments, "test")
    model, defaults, config = read_model(arguments.checkpoint)
    _check_fold(arguments, config)
    settings = clip_settings(arguments, defaults)
    views = Views(source, clips=arguments.clips, crops=arguments.crops, **settings)
    return evaluate(model, views, source, arguments.batch, arguments.workers), config


def _check_fold(arguments: argparse.Namespace, config: "dict[str, Any] | None") -> None:
    """Raise UsageError for a network of ours that was trained on the fold's test videos, and for --ours without one."""
    from repflow.training import seconds_of

    if config is None:
        if arguments.ours:
            raise UsageError("--ours: expected a checkpoint of `repflow train`, which says how it was trained")
        return
    if arguments.ours:
        seconds_of(arguments.checkpoint)  # raises before the long work, not after it
    about = config["about"]
    if arguments.data[0] == about.get("set") == "hmdb51" and arguments.fold != about["fold"]:
        raise UsageError(
            f"--fold {arguments.fold}: {arguments.checkpoint} was trained on fold {about['fold']}, in which are test "
            f"videos of fold {arguments.fold}; take --fold {about['fold']}"
        )


def _trained_on(checkpoint: str) -> str | None:
    from repflow.training import read_checkpoint

    return read_checkpoint(checkpoint)["config"]["about"].get("set")


def _record(
    arguments: argparse.Namespace, config: "dict[str, Any]", found: dict[str, float | int], seconds: float
) -> None:
    """Add what was found to the table --ours, with the time that training took, too."""
    from repflow.experiments.compare import add_result
    from repflow.models.systems import SYSTEMS
    from repflow.training import seconds_of

    kind = arguments.data[0]
    data_set = {"kinetics": "kinetics400", "synthetic": "synthetic_motion"}.get(kind, kind)
    if kind == "hmdb51" and config["init_from"] and _trained_on(config["init_from"]) == "kinetics":
        data_set = "hmdb51_kinetics"
    add_result(
        arguments.ours,
        found,
        system=config["model"],
        backbone=config["options"].get("backbone") or SYSTEMS[config["model"]].backbones[0],
        data_set=data_set,
        fold=arguments.fold if kind == "hmdb51" else None,
        clips=arguments.clips,
        crops=arguments.crops,
        seed=config["recipe"]["seed"],
        seconds=seconds + seconds_of(arguments.checkpoint),
    )


def read_model(checkpoint: Path) -> "tuple[nn.Module, dict[str, Any], dict[str, Any] | None]":
    """A model in eval mode, of this package or of the 2019 release; the settings of clips as it was trained on; and how
    it was trained, as its run's config.json has it, None for the 2019 release's."""
    from repflow.data import PRESETS
    from repflow.official import CheckpointError, kind_of, load
    from repflow.training import load_model, read_checkpoint

    try:
        return load(checkpoint, kind_of(checkpoint)), PRESETS["2019"] | {"resize": RESIZE}, None
    except CheckpointError as error:
        try:
            config = read_checkpoint(checkpoint)["config"]
        except (ValueError, OSError):
            raise error from None
        settings = {name: config["recipe"][name] for name in ("frames", "stride", "resize", "crop")}
        return load_model(checkpoint), settings, config


def _loaded(arguments: argparse.Namespace) -> "list[Predictions]":
    from repflow.evaluation import Predictions, fuse

    parts = [Predictions.load(path) for path in arguments.predictions]
    return [fuse(parts, arguments.weights)] if arguments.weights else parts


def _show(found: dict[str, float | int]) -> None:
    for k in (1, 5):
        top = f"top-{k}  {found[f'top{k}']:.1f} %"
        interval = (
            f"  (95 %: {found[f'top{k}_low']:.1f} to {found[f'top{k}_high']:.1f})" if f"top{k}_low" in found else ""
        )
        sys.stdout.write(top + interval + "\n")
    over = f", mean of {found['folds']} folds" if "folds" in found else ""
    sys.stdout.write(f"evaluated {found['evaluated']} of {found['expected']} videos{over}\n")
