"""`repflow train`."""

import argparse
import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from repflow.cli.datasets import add_dataset, check_dataset, open_dataset
from repflow.cli.options import numbers_of
from repflow.lab.parameters import Parameter, UsageError, unknown

if TYPE_CHECKING:
    from repflow.training import Recipe, Trained

_log = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a system, such as repflow_2plus1d; a wrong name lists all")
    add("--out", required=True, type=Path, metavar="DIR", help="the run's folder; the same command goes on there")
    add_dataset(parser)
    add("--preset", metavar="NAME", help="motion, 2019 or modern (default: motion for synthetic, else modern)")
    add("--set", dest="settings", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="of the recipe or the model, such as steps=2000 rate=1e-3 backbone=resnet18_2d flip=false crop=none, "
        "area=0.5,1; a wrong name lists all")  # fmt: skip
    add("--init-from", type=Path, metavar="FILE", help="a checkpoint whose weights, but the classifier's, are taken")
    add("--workers", metavar="N", help="processes that read videos (default: 0)")
    add("--seed", metavar="N", help="of everything random (default: 0)")
    add("--devices", type=int, default=1, metavar="N", help="GPUs of a machine, or processes on a CPU (default: 1)")
    add("--nodes", type=int, default=1, metavar="N", help="machines, with torchrun or SLURM (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Train a system, or go on where the run in the folder was stopped. A part of the training videos is kept for
    validation, whose best step is in DIR/best.pt; test videos are not touched. Metrics are in DIR/metrics.csv."""
    check_dataset(arguments)
    from repflow.training import TrainingError

    try:
        trained = _train(arguments)
    except KeyboardInterrupt:
        _log.info("stopped; the same command goes on from the last checkpoint in %s", arguments.out)
        raise
    except TrainingError as error:
        sys.stderr.write(f"repflow: {error}\n")
        return 1
    if _speaks():
        if best := trained.best:
            top1, loss, step = (best[name] for name in ("top1", "loss", "step"))
            sys.stdout.write(f"best validation: top-1 {top1:.2f} %, loss {loss:.4f}, step {step}\n")
        sys.stdout.write(f"{arguments.out}\n")
    return 0


def _train(arguments: argparse.Namespace) -> "Trained":
    from repflow.training import split, train

    numbers_of(arguments, devices=1, nodes=1)
    recipe, options = settings_of(arguments)
    is_new = not any((arguments.out / "checkpoints").glob("step-*.pt"))
    check_model(arguments.model, options, arguments.init_from if is_new else None)
    source = open_dataset(arguments, "train")
    training, validation = split(source, recipe.validation, recipe.seed) if recipe.validation else (source, None)
    if validation and not validation.samples:  # one video of each class
        validation = None
    if _speaks():
        sys.stdout.write(
            f"{source.expected} videos of {len(source.classes)} classes, test videos apart: "
            f"{len(training.samples)} for training, {len(validation.samples) if validation else 0} for validation, "
            f"{len(source.missing)} missing, {len(source.quarantined)} quarantined\n"
            "the first steps take longest: videos are opened for the first time, and code is compiled\n"
        )
    recipe = _fitted(recipe, len(training.samples), arguments)
    group = {"group": arguments.group} if arguments.group else {}
    return train(
        arguments.model,
        recipe.clips(training, train=True, flow=arguments.flow, cache=arguments.cache),
        len(source.classes),
        recipe,
        folder=arguments.out,
        validation=validation and recipe.clips(validation, train=False, flow=arguments.flow, cache=arguments.cache),
        init_from=arguments.init_from,
        devices=arguments.devices,
        nodes=arguments.nodes,
        about={"set": arguments.data[0], "fold": arguments.fold} | group,
        **options,
    )


def check_model(name: str, options: Mapping[str, Any], init_from: Path | None = None) -> None:
    """Raise ValueError or OSError where `train` would for the model or what it begins with; takes no memory."""
    import torch

    from repflow.models import build_model
    from repflow.training.checkpoint import body_weights

    with torch.device("meta"):
        model = build_model(name, 2, **{**options, "weights": None})
    if init_from:
        body_weights(model, init_from)


def _fitted(recipe: "Recipe", videos: int, arguments: argparse.Namespace) -> "Recipe":
    """The recipe with a batch for so few videos, unless one was asked for."""
    parts = recipe.accumulate * arguments.devices * arguments.nodes
    batch = videos // parts * parts
    if batch >= recipe.batch or batch < 1 or any(text.startswith("batch=") for text in arguments.settings):
        return recipe
    if _speaks():
        _log.info("batch: %d instead of %d, for %d training videos", batch, recipe.batch, videos)
    return replace(recipe, batch=batch)


def settings_of(arguments: argparse.Namespace) -> tuple["Recipe", dict[str, Any]]:
    """The recipe, and the options of the model. Raises UsageError for an unknown name or a value of another type."""
    from repflow.models.systems import Options, build_model
    from repflow.training import Recipe

    recipes, models = get_type_hints(Recipe), get_type_hints(Options)
    models |= {name: get_type_hints(build_model)[name] for name in ("backbone", "weights")}
    texts = [text.partition("=")[::2] for text in arguments.settings]
    texts += [(name, getattr(arguments, name)) for name in ("workers", "seed") if getattr(arguments, name)]
    values = {name: _parse(name, text, recipes | models) for name, text in texts}
    changes = {name: value for name, value in values.items() if name in recipes}
    preset = arguments.preset or ("motion" if arguments.data[0] == "synthetic" else "modern")
    return Recipe.preset(preset, **changes), {name: value for name, value in values.items() if name in models}


def _parse(name: str, text: str, hints: Mapping[str, Any]) -> Any:
    if name not in hints:
        raise UsageError(f"--set: {unknown('setting', name, hints)} there are {', '.join(hints)}")
    parameter = Parameter.typed(name, hints[name])
    try:
        return parameter.parse(text)
    except UsageError:
        raise UsageError(f"--set {name}: expected {parameter.expected}, got {text!r}") from None


def _speaks() -> bool:
    """Whether this is the one of several processes that tells what happens."""
    from lightning_fabric.utilities import rank_zero_only

    return rank_zero_only.rank == 0
