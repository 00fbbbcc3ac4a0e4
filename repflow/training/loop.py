"""One training, from the first step or from the one where it was stopped, to the last."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn

from repflow.data import Clips
from repflow.evaluation import check_classes, hits
from repflow.models import build_model
from repflow.training.batches import Batch, StepBatches, load_batches
from repflow.training.checkpoint import load_weights
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
    init_from: a checkpoint of the same system; all its weights but the classifier's are taken.
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
    seed_all(recipe.seed)
    model = build_model(name, num_classes, **({"dropout": recipe.dropout} | model_options))
    if "flow" in model.inputs and clips.flow is None:
        raise ValueError(f"{name} needs optical flow: expected clips with flow, got none; pass flow to Clips")
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(devices=devices, num_nodes=nodes, strategy=strategy, precision=recipe.precision)
    batches = StepBatches(len(clips), recipe, 0, fabric.global_rank, fabric.world_size)
    run_folder, state = None, None
    if folder:
        config = _config(name, clips, num_classes, recipe, validation, init_from, about, model_options)
        run_folder = RunFolder(folder, config, fabric.is_global_zero)
        state = run_folder.newest()
    if state:
        model.load_state_dict(state["model"])
    elif init_from:
        load_weights(model, init_from)
    progress = Progress(state["step"], state["losses"].tolist(), state["best"]) if state else Progress()
    batches.first = progress.step
    with logged(run_folder, fabric.is_global_zero), explained(clips, recipe, fabric.world_size):
        _log.info("from step %d of %d", progress.step, batches.steps)
        rates = recipe.rate, recipe.reference_batch, recipe.batch, recipe.scaled_rate
        _log.info("learning rate %g of batch %d, for a batch of %d: %g", *rates)
        if progress.step < batches.steps:
            with _launched(fabric, progress.step):
                learner = Learner(fabric, model, recipe, batches.steps, state)
                Run(learner, validation, run_folder, progress).go(clips, batches)
    return Trained(model.cpu().eval(), progress.losses, progress.best)


@dataclass
class Progress:
    """How far a run is: the steps done, the loss of each, and the best validation so far."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: Best | None = None


class Run:
    """The steps of a training, and what is due after each: its row of metrics, a validation, a checkpoint."""

    def __init__(
        self, learner: Learner, validation: Clips | None, folder: RunFolder | None, progress: Progress
    ) -> None:
        self.learner, self.recipe, self.fabric = learner, learner.recipe, learner.fabric
        self.validation, self.folder, self.progress = validation, folder, progress

    def go(self, clips: Clips, batches: StepBatches) -> None:
        """Take the steps that are left."""
        step, is_first = self.progress.step, self.fabric.is_global_zero
        self.record = Record(self.folder, step, batches.steps, batches.per_epoch, is_first)
        parts = self.record.watch.waiting_for(load_batches(clips, batches, self.recipe.workers))
        with closing(self.record), closing(parts):
            while self.progress.step < batches.steps:
                self._step(parts, batches)
            self.record.summarise()

    def _step(self, parts: Iterator[Batch], batches: StepBatches) -> None:
        """Take one step, and do what is due after it.

        That is a row of metrics, a validation with its row, best.pt, and the checkpoint last: whatever a resumed run
        finds after its checkpoint it computes again, and finds the same.
        """
        recipe, progress, rate = self.recipe, self.progress, self.learner.rate
        with self.record.watch.running():
            self.learner.step(progress.step, islice(parts, recipe.accumulate))
        progress.step += 1
        self.record.advance()

        def is_due(every: int) -> bool:
            return progress.step % every == 0 or progress.step == batches.steps

        logs = is_due(recipe.log_every)
        validates = self.validation is not None and is_due(recipe.validate_every or batches.per_epoch)
        saves = self.folder is not None and (validates or is_due(recipe.save_every))
        if logs or validates or saves:
            self._read_losses()
        if (validates or saves) and not self.learner.has_finite_weights():
            raise self._failure(progress.step, "a weight is not finite")  # the loss of the next step would be
        if logs:
            count = progress.step % recipe.log_every or recipe.log_every
            self.record.add_steps(progress.step, math.fsum(progress.losses[-count:]) / count, rate)
        is_best = validates and self._validate()
        if saves and self.fabric.is_global_zero:
            self._save(is_best)

    def _read_losses(self) -> None:
        """Add the losses that were not read yet to the progress. Raises TrainingError for one that is not finite."""
        with self.record.watch.running():  # here the program waits for a GPU
            losses = self.learner.read_losses()
        for step, loss in enumerate(losses, start=len(self.progress.losses) + 1):
            if not math.isfinite(loss):
                raise self._failure(step, f"the loss is {loss}")
        self.progress.losses += losses

    def _failure(self, step: int, reason: str) -> TrainingError:
        safe = f"; {self.folder.safe()}" if self.folder else ""
        return TrainingError(
            f"step {step}: {reason}{safe}. Nothing was saved since. Take a lower rate, a smaller clip_norm or "
            "precision 32-true, in a new folder"
        )

    def _validate(self) -> bool:
        """Loss and top-1 of the validation clips, each clip once. Returns whether they are the best so far."""
        begin = perf_counter()
        scores = self.learner.scores(self.validation)
        readable = scores.isfinite().all(1)
        scores, labels = scores[readable], torch.tensor([label for _, label in self.validation.samples])[readable]
        loss, top1 = F.cross_entropy(scores, labels).item(), 100 * float(hits(scores.numpy(), labels.numpy()).mean())
        if self.recipe.schedule == "plateau":
            self.learner.schedule.step(loss)
        self.record.add_validation(self.progress.step, perf_counter() - begin, loss, top1)
        best = self.progress.best
        is_best = best is None or (-top1, loss) < (-best["top1"], best["loss"])
        if is_best:
            self.progress.best = {"step": self.progress.step, "loss": loss, "top1": top1}
        return is_best

    def _save(self, is_best: bool) -> None:
        self.record.sync()
        best = {
            "step": self.progress.step,
            "config": self.folder.config,
            "model": self.learner.model.state_dict(),
            "best": self.progress.best,
        }
        if is_best:
            self.folder.save_best(best)
        losses = torch.tensor(self.progress.losses, dtype=torch.float64)
        self.folder.save(best | self.learner.state_dict() | {"losses": losses})


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


def _config(
    name: str,
    clips: Clips,
    num_classes: int,
    recipe: Recipe,
    validation: Clips | None,
    init_from: str | os.PathLike[str] | None,
    about: Mapping[str, Any] | None,
    model_options: Mapping[str, Any],
) -> dict[str, Any]:
    """What config.json says of a run: all that decides about its weights."""
    return {
        "model": name,
        "num_classes": num_classes,
        "options": model_options,
        "recipe": {key: value for key, value in asdict(recipe).items() if key != "workers"},
        "init_from": init_from and os.path.abspath(init_from),
        "about": {"classes": clips.classes} | dict(about or {}),
        "training": describe_clips(clips),
        "validation": validation and describe_clips(validation),
    }
