"""One training, from the first step or from the one where it was stopped, to the last."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from shutil import which
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from repflow.data import Clips
from repflow.evaluation import check_classes, hits, predict
from repflow.models import build_model
from repflow.official import locate
from repflow.training.batches import StepBatches, load_batches
from repflow.training.checkpoint import body_weights
from repflow.training.folder import RunFolder, TrainingError, describe_clips
from repflow.training.learner import Learner
from repflow.training.recipe import Recipe
from repflow.training.record import Record
from repflow.training.surroundings import explained, logged, seed_all, undisturbed

Best = dict[str, float]  # step, loss, top1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, on the CPU, and the training loss of every step.

    best: step, loss and top1 (percent) of the best validation; None without validation.
    """

    model: nn.Module
    losses: list[float]
    best: Best | None = None


@undisturbed()
def train(
    name: str,
    clips: Clips,
    num_classes: int,
    recipe: Recipe,
    *,
    folder: str | os.PathLike[str] | None = None,
    validation: Clips | None = None,
    init_from: str | os.PathLike[str] | None = None,
    devices: int = 1,
    nodes: int = 1,
    about: Mapping[str, Any] | None = None,
    **model_options: Any,
) -> Trained:
    """Build the system `name` (with `build_model`'s options) and train it on `clips` as `recipe` says.

    folder: keeps the run, and the same call goes on where it was stopped; see `repflow.training`.
    validation: clips that choose the best step, of videos that are neither in `clips` nor in the test fold.
    init_from: a checkpoint of the same system, or the name of one that comes along (`open_checkpoint`); all its weights
        but the classifier's are taken.
    devices, nodes: GPUs of a machine (processes, on a CPU), and machines.
    about: more about the data for config.json. The names of the classes are kept with it, if the clips' data set has
        them, and come with every checkpoint.

    Reproducible on a CPU: the same arguments give the same weights, however often the run was stopped, with any number
    of workers. Shows a progress bar; may be interrupted. Leaves random states, warning filters and loggers as they
    were. Raises VideoError if more than 1 % of the videos cannot be read, or if one ends the process that reads it;
    ValueError for settings that do not fit, clips of several sizes, or a folder with another run; OSError if the
    folder cannot be written; TrainingError for a loss that is not finite, or too little memory.

        >>> clips = Clips(SyntheticMotion("motion"), 9, train=True)
        >>> trained = train("repflow_2d", clips, 12, Recipe(steps=200), folder="runs/motion", backbone="tiny_2d")
    """
    _check(clips, num_classes, recipe, validation)
    if recipe.tensorboard and folder is None:
        raise ValueError("tensorboard: expected a folder for the run, got none")
    seed_all(recipe.seed)
    model = build_model(name, num_classes, **({"dropout": recipe.dropout} | model_options))
    if "flow" in model.inputs and clips.flow is None:
        raise ValueError(f"{name} needs optical flow: expected clips with flow, got none; pass flow to Clips")
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(devices=devices, num_nodes=nodes, strategy=strategy, precision=recipe.precision)
    compiler = os.environ.get("CXX", "g++")  # as torch.compile looks for it
    if recipe.compile and fabric.device.type == "cpu" and sys.platform == "linux" and not which(compiler):
        raise TrainingError(
            f"compile: expected a C++ compiler for torch.compile, found no {compiler}; install g++, name another in "
            "$CXX, or train without: compile=False, --set compile=false"
        )
    batches = StepBatches(len(clips), recipe, 0, fabric.global_rank, fabric.world_size)
    config = {
        "model": name,
        "num_classes": num_classes,
        "options": model_options,
        "recipe": {key: value for key, value in asdict(recipe).items() if key not in ("workers", "tensorboard")},
        "init_from": init_from and os.path.abspath(locate(init_from)),
        "about": {"classes": clips.classes} | dict(about or {}),
        "training": describe_clips(clips),
        "validation": validation and describe_clips(validation),
    }
    run_folder = RunFolder(folder, config, fabric.is_global_zero) if folder else None
    with logged(run_folder, fabric.is_global_zero), explained(clips, recipe, fabric.world_size):
        if run_folder and validation is None:
            _log.info("no clips for validation: metrics.csv has empty val_loss and val_top1, and there is no best.pt")
        state = _begin(model, batches, run_folder, init_from)
        if batches.first == batches.steps:
            return Trained(model.eval(), state["losses"].tolist(), state["best"])
        with _launched(fabric, batches.first):
            learner = Learner(fabric, model, num_classes, recipe, batches.steps, state)
            run = Run(learner, clips, batches, validation, run_folder, state and state["best"])
            run.finish()
    return Trained(model.cpu().eval(), learner.losses, run.best)


def _begin(
    model: nn.Module, batches: StepBatches, folder: RunFolder | None, init_from: str | os.PathLike[str] | None
) -> dict[str, Any] | None:
    """Give the model its first weights, and the batches their first step. Returns the newest checkpoint, or None."""
    state = folder.newest() if folder else None
    if state:
        model.load_state_dict(state["model"])
        batches.first = state["step"]
    elif init_from:
        model.load_state_dict(model.state_dict() | body_weights(model, init_from))
    _log.info("from step %d of %d", batches.first, batches.steps)
    recipe = batches.recipe
    rates = recipe.rate, recipe.reference_batch, recipe.batch, recipe.scaled_rate
    _log.info("learning rate %g of batch %d, for a batch of %d: %g", *rates)
    return state


@dataclass
class Run:
    """The steps of a training, and what is due after each: its row of metrics, a validation, a checkpoint."""

    learner: Learner
    clips: Clips
    batches: StepBatches
    validation: Clips | None
    folder: RunFolder | None
    best: Best | None

    def __post_init__(self) -> None:
        self.recipe, self.fabric = self.learner.recipe, self.learner.fabric
        self.record = Record(self.folder, self.batches, self.fabric.is_global_zero)

    def finish(self) -> None:
        """Take all steps that are left."""
        parts = self.record.waiting_for(load_batches(self.clips, self.batches, self.recipe.workers))
        with closing(self.record), closing(parts):
            for step in range(self.batches.first, self.batches.steps):
                rate = self.learner.optimizer.param_groups[0]["lr"]
                with self.record.running():
                    self.learner.take_step(step, islice(parts, self.recipe.accumulate))
                self.record.advance()
                self._do_what_is_due(step + 1, rate)

    def _do_what_is_due(self, step: int, rate: float) -> None:
        """After `step` steps: a row of metrics, a validation with its row, best.pt, and the checkpoint, in this order.

        Whatever a resumed run finds after its checkpoint it computes again, and finds the same.
        """

        def is_due(every: int) -> bool:
            return step % every == 0 or step == self.batches.steps

        logs = is_due(self.recipe.log_every)
        validates = self.validation is not None and is_due(self.recipe.validate_every or self.batches.per_epoch)
        saves = self.folder is not None and (validates or is_due(self.recipe.save_every))
        if logs or validates or saves:
            with self.record.running():  # here the program waits for a GPU
                new_losses = self.learner.read_losses()
            self._check_finite(step, new_losses, weights=validates or saves)
        if logs:
            count = step % self.recipe.log_every or self.recipe.log_every
            self.record.add_steps(step, math.fsum(self.learner.losses[-count:]) / count, rate)
        is_best = validates and self._validate(step)
        if saves and self.fabric.is_global_zero:
            self._save(step, is_best)

    def _check_finite(self, step: int, losses: list[float], weights: bool) -> None:
        """Raise TrainingError if one of the losses up to `step`, or a weight, is not finite."""
        first = step - len(losses) + 1
        faults = [(i, f"the loss is {loss}") for i, loss in enumerate(losses, first) if not math.isfinite(loss)]
        if weights:  # the next loss would show it too late
            values = [value for value in self.learner.model.state_dict().values() if value.is_floating_point()]
            if not torch.stack([value.isfinite().all() for value in values]).all():
                faults.append((step, "a weight is not finite"))
        if faults:
            at, fault = faults[0]
            safe = f"; {self.folder.safe()}" if self.folder else ""
            raise TrainingError(
                f"step {at}: {fault}{safe}. Nothing was saved since. Take a lower rate, a smaller clip_norm or "
                "precision 32-true, in a new folder"
            )

    def _validate(self, step: int) -> bool:
        """Loss and top-1 of the validation clips, each clip once. Returns whether they are the best so far."""
        begin = perf_counter()
        with self.fabric.autocast():
            part = self.recipe.batch // (self.recipe.accumulate * self.fabric.world_size)
            scores = torch.from_numpy(predict(self.learner.model, self.validation, part, self.recipe.workers))
        self.learner.train()
        readable = scores.isfinite().all(1)
        scores, labels = scores[readable], torch.tensor([label for _, label in self.validation.samples])[readable]
        loss, top1 = F.cross_entropy(scores, labels).item(), 100 * float(hits(scores.numpy(), labels.numpy()).mean())
        if self.recipe.schedule == "plateau":
            self.learner.schedule.step(loss)
        self.record.add_validation(step, perf_counter() - begin, loss, top1)
        _log.info("step %d: validation loss %.4f, top-1 %.2f %%", step, loss, top1)
        is_best = self.best is None or (-top1, loss) < (-self.best["top1"], self.best["loss"])
        if is_best:
            self.best = {"step": step, "loss": loss, "top1": top1}
        return is_best

    def _save(self, step: int, is_best: bool) -> None:
        """Write the checkpoint, and best.pt before it if this step's weights are the best."""
        self.record.sync()
        weights = {"step": step, "config": self.folder.config, "model": self.learner.model.state_dict()}
        if is_best:
            self.folder.save_best(weights | {"best": self.best})
        self.folder.save(weights | {"best": self.best} | self.learner.state_dict())


def _check(clips: Clips, num_classes: int, recipe: Recipe, validation: Clips | None) -> None:
    """Raise ValueError for arguments of `train` that do not fit each other."""
    if recipe.schedule == "plateau" and validation is None:
        raise ValueError("schedule: plateau needs clips for validation, got none")
    if clips.classes and len(clips.classes) != num_classes:
        raise ValueError(f"num_classes: expected {len(clips.classes)}, as the clips' data set has, got {num_classes}")
    if validation and clips.classes and validation.classes:
        check_classes(clips.classes, validation.classes, "clips for training and for validation")


@contextmanager
def _launched(fabric: Fabric, step: int) -> Iterator[None]:
    """Start the other processes of this machine, unless torchrun or SLURM did. If this one fails, they end, too.

    Raises TrainingError if they found another step to go on from.
    """
    try:
        fabric.launch()
        if fabric.broadcast(step) != step:
            raise TrainingError(
                f"this process found the checkpoint of step {step}, another one that of another step; put the run's "
                "folder where all machines see the same files"
            )
        yield
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        raise
