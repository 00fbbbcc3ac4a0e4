"""One training, from the first step or from where it was stopped to the last."""

import hashlib
import logging
import math
import os
import random
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from repflow.data import Clips
from repflow.evaluation import check_classes, hits, name_the_video, predict
from repflow.models import build_model
from repflow.training.batches import StepBatches, TrainingClips
from repflow.training.folder import Metrics, RunFolder, TrainingError, load_weights
from repflow.training.module import Classification, quiet_trainer, undisturbed
from repflow.training.recipe import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, on the CPU, and the training loss of every step.

    best: step, loss and top1 (percent) of the best validation; None where there was none.
    """

    model: nn.Module
    losses: list[float]
    best: dict[str, float] | None = None


class Run(L.Callback):
    """What happens around the steps: logging, validation, checkpoints.

    The order matters. After a step come its row, then its validation and that one's row, then best.pt, and the
    checkpoint last: whatever a resumed run finds after its checkpoint it computes again, and finds the same.
    """

    def __init__(
        self,
        recipe: Recipe,
        batches: StepBatches,
        validation: Clips | None,
        folder: RunFolder | None,
        state: Mapping[str, Any],
    ) -> None:
        self.recipe, self.validation, self.folder, self.state = recipe, validation, folder, state
        self.steps, self.per_epoch = batches.steps, batches.per_epoch
        self.step: int = state.get("step", 0)
        self.losses: list[float] = state["losses"].tolist() if state else []
        self.best: dict[str, float] | None = state.get("best")
        self.metrics: Metrics | None = None
        self.plateau: ReduceLROnPlateau | None = None
        self.bar = tqdm(disable=True)
        self.rate = math.nan
        self.clock, self.waited, self.worked, self.timed = perf_counter(), 0.0, 0.0, 0  # since the last row
        self.waited_in_all, self.seconds_in_all = 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, module: Classification) -> None:
        if trainer.strategy.broadcast(self.step) != self.step:
            raise TrainingError(
                f"this process found the checkpoint of step {self.step}, another one that of another step; "
                "put the run's folder where all machines see the same files"
            )
        if self.recipe.schedule == "plateau":
            self.plateau = ReduceLROnPlateau(trainer.optimizers[0], patience=self.recipe.patience)
        if self.state:
            trainer.optimizers[0].load_state_dict(self.state["optimizer"])
            self._schedule(trainer).load_state_dict(self.state["schedule"])
            trainer.precision_plugin.load_state_dict(self.state["precision"])
        if trainer.is_global_zero:
            self.bar = tqdm(total=self.steps, initial=self.step, desc="training", unit="step", leave=False)
            if self.folder:
                with self.folder.telling("metrics.csv"):
                    self.metrics = Metrics(self.folder.path, self.step)
        self.clock = perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: Classification, batch: object, batch_idx: int) -> None:
        now = perf_counter()
        self.waited += now - self.clock
        self.clock = now
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]
        _seed(self.recipe.seed, self.step, batch_idx % self.recipe.accumulate, trainer.global_rank)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Classification, outputs: object, batch: object, batch_idx: int
    ) -> None:
        now = perf_counter()
        self.worked += now - self.clock
        self.clock = now
        if (batch_idx + 1) % self.recipe.accumulate:
            return
        self.step += 1
        self.timed += 1
        self.bar.update()
        validates = self.validation is not None and self._due(self.recipe.validate_every or self.per_epoch)
        saves = self.folder is not None and (validates or self._due(self.recipe.save_every))
        if validates or saves or self._due(self.recipe.log_every):
            self._read_losses(trainer, module)
        if validates or saves:
            self._check_weights(module)
        if self._due(self.recipe.log_every):
            self._log_steps()
        is_best = validates and self._validate(trainer, module)
        if saves:
            self._save(trainer, module, is_best)
        self.clock = perf_counter()

    def on_train_end(self, *_: object) -> None:
        self.on_exception()
        waiting = self.waited_in_all / self.seconds_in_all
        _log.info("%.0f %% of the time spent waiting for data; peak memory %d MiB", 100 * waiting, _peak_mib())

    def on_exception(self, *_: object) -> None:
        self.bar.close()
        if self.metrics:
            self.metrics.close()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _read_losses(self, trainer: L.Trainer, module: Classification) -> None:
        """Losses of the steps since the last time, as the mean over all processes. Raises TrainingError for NaN."""
        if not module.losses:
            return
        begin = perf_counter()
        losses = torch.stack(module.losses).float().unflatten(0, (-1, self.recipe.accumulate)).mean(1)
        module.losses.clear()
        new = trainer.strategy.reduce(losses, reduce_op="mean").tolist()
        self.worked += perf_counter() - begin  # of a GPU: this is where the program waits for it
        for i, loss in enumerate(new, start=len(self.losses) + 1):
            if not math.isfinite(loss):
                self._stop_at(i, f"the loss is {loss}")
        self.losses += new

    def _check_weights(self, module: Classification) -> None:
        """Raise TrainingError where a weight is not finite: the loss shows that one step too late for a checkpoint."""
        values = [value for value in module.model.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            self._stop_at(self.step, "a weight is not finite")

    def _stop_at(self, step: int, what: str) -> None:
        safe = f"; {self.folder.safe()}" if self.folder else ""
        raise TrainingError(
            f"step {step}: {what}{safe}. Nothing was saved since. Take a lower rate, a smaller clip_norm or precision "
            "32-true, in a new folder"
        )

    def _log_steps(self) -> None:
        count = self.step % self.recipe.log_every or self.recipe.log_every
        seconds = self.waited + self.worked
        row = {
            "loss": math.fsum(self.losses[-count:]) / count,
            "rate": self.rate,
            "seconds": round(seconds / self.timed, 4),
            "waiting": round(self.waited / seconds, 4),
            "peak_mib": _peak_mib(),
        }
        self.waited_in_all += self.waited
        self.seconds_in_all += seconds
        self.waited = self.worked = self.timed = 0
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", waiting=f"{row['waiting']:.0%}", MiB=row["peak_mib"])
        self._write(row)

    def _write(self, row: Mapping[str, float]) -> None:
        if self.metrics:
            with self.folder.telling("metrics.csv"):
                self.metrics.add({"step": self.step, "epoch": (self.step - 1) // self.per_epoch} | row)

    def _validate(self, trainer: L.Trainer, module: Classification) -> bool:
        """Compute loss and accuracy on the validation part, each clip once; return whether they are the best so far."""
        begin = perf_counter()
        part = self.recipe.batch // (self.recipe.accumulate * trainer.world_size)
        with trainer.precision_plugin.val_step_context():
            scores = torch.from_numpy(predict(module.model, self.validation, part, self.recipe.workers))
        module.train()
        there = scores.isfinite().all(1)  # videos that could be read
        scores, truth = scores[there], torch.tensor([label for _, label in self.validation.samples])[there]
        loss, top1 = F.cross_entropy(scores, truth).item(), 100 * float(hits(scores.numpy(), truth.numpy()).mean())
        if self.plateau:
            self.plateau.step(loss)
        self._write({"seconds": round(perf_counter() - begin, 4), "val_loss": loss, "val_top1": top1})
        _log.info("step %d: validation loss %.4f, top-1 %.2f %%", self.step, loss, top1)
        is_best = self.best is None or (-top1, loss) < (-self.best["top1"], self.best["loss"])
        if is_best:
            self.best = {"step": self.step, "loss": loss, "top1": top1}
        return is_best

    def _save(self, trainer: L.Trainer, module: Classification, is_best: bool) -> None:
        if not trainer.is_global_zero:
            return
        with self.folder.telling("metrics.csv"):
            self.metrics.sync()
        common = {
            "step": self.step,
            "config": self.folder.config,
            "model": module.model.state_dict(),
            "best": self.best,
        }
        if is_best:
            self.folder.save_best(common)
        self.folder.save(
            common
            | {
                "optimizer": trainer.optimizers[0].state_dict(),
                "schedule": self._schedule(trainer).state_dict(),
                "precision": trainer.precision_plugin.state_dict(),
                "losses": torch.tensor(self.losses, dtype=torch.float64),
            }
        )

    def _schedule(self, trainer: L.Trainer) -> Any:
        return self.plateau or trainer.lr_scheduler_configs[0].scheduler


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

    folder: the run is kept there, and the same call goes on where it was stopped; see `repflow.training`.
    validation: clips to choose the best step with, of videos that are in neither `clips` nor the test fold.
    init_from: a checkpoint of the same system, of which all but the classifier is taken.
    devices, nodes: GPUs (processes, on a CPU) of a machine, and machines.
    about: what config.json says of the data besides. The names of the classes, where the clips' data set has them, are
        kept with it, and come with every checkpoint.

    Reproducible on a CPU: the same arguments give the same weights, however often the run was stopped, with any number
    of workers. Shows a progress bar; may be interrupted. Leaves random states, warning filters and loggers as they
    were. Raises VideoError where more than 1 % of the videos cannot be read, or where one ends the process that reads
    it; ValueError for settings that don't fit, clips of several sizes, or a folder with another run; OSError where the
    folder cannot be written; TrainingError for a loss that is not finite, or too little memory.
    """
    if recipe.schedule == "plateau" and validation is None:
        raise ValueError("schedule: plateau needs clips for validation, got none")
    if clips.classes and len(clips.classes) != num_classes:
        raise ValueError(f"num_classes: expected {len(clips.classes)}, as the clips' data set has, got {num_classes}")
    if validation and clips.classes and validation.classes:
        check_classes(clips.classes, validation.classes, "clips for training and for validation")
    _seed_all(recipe.seed)
    model = build_model(name, num_classes, **({"dropout": recipe.dropout} | model_options))
    if "flow" in model.inputs and clips.flow is None:
        raise ValueError(f"{name} needs optical flow: expected clips with flow, got none; pass flow to Clips")
    batches = StepBatches(len(clips), recipe, processes=devices * nodes)
    trainer = _trainer(recipe, devices, nodes)
    run_folder, state = None, {}
    if folder:
        config = {
            "model": name,
            "num_classes": num_classes,
            "options": model_options,
            "recipe": {key: value for key, value in asdict(recipe).items() if key != "workers"},
            "init_from": init_from and os.path.abspath(init_from),
            "about": {"classes": clips.classes} | dict(about or {}),
            "training": _describe(clips),
            "validation": validation and _describe(validation),
        }
        run_folder = RunFolder(folder, config, trainer.is_global_zero)
        state = run_folder.newest() or {}
    if state:
        model.load_state_dict(state["model"])
    elif init_from:
        load_weights(model, init_from)
    if recipe.channels_last:
        _channels_last(model)
    if recipe.compile:
        model.compile()
    run = Run(recipe, batches, validation, run_folder, state)
    trainer.callbacks.append(run)
    with _logged(run_folder, trainer.is_global_zero):
        _log.info("from step %d of %d", run.step, run.steps)
        rates = recipe.rate, recipe.reference_batch, recipe.batch, recipe.scaled_rate
        _log.info("learning rate %g of batch %d, for a batch of %d: %g", *rates)
        if run.step < run.steps:
            module, data = Classification(model, recipe, run.steps), TrainingClips(clips, recipe, run.step)
            with _explained(clips, recipe, trainer.world_size):
                trainer.fit(module, datamodule=data)
    return Trained(model.cpu().eval(), run.losses, run.best)


def _trainer(recipe: Recipe, devices: int, nodes: int) -> L.Trainer:
    return quiet_trainer(
        max_epochs=1,  # to Lightning; the batches go through all of ours
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        # Lightning would requeue the job with a checkpoint of its own, and take that one after the restart.
        plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [],
        sync_batchnorm=torch.cuda.is_available(),  # on a CPU it raises
        use_distributed_sampler=False,
        precision=recipe.precision,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip_norm,
    )


@contextmanager
def _logged(folder: RunFolder | None, tells: bool) -> Iterator[None]:
    """What the package has to say goes to log.txt, too; of several processes one speaks, unless something is wrong."""
    logger = logging.getLogger("repflow")
    level, handler = logger.level, logging.NullHandler()
    if not tells:
        logger.setLevel(logging.WARNING)
    elif folder:
        handler = logging.FileHandler(folder.path / "log.txt", encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextmanager
def _explained(clips: Clips, recipe: Recipe, processes: int) -> Iterator[None]:
    """Errors that name their cause and what to do about it."""
    try:
        yield
    except RuntimeError as error:
        name_the_video(error, clips)
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
            size = f"{clips.crop}×{clips.crop}" if clips.crop else "whole frames"
            part = recipe.batch // (recipe.accumulate * processes)
            raise TrainingError(
                f"out of memory with {part} clips at once of {clips.frames} frames, {size} ({error}). Cut the batch of "
                f"{recipe.batch} into more parts (accumulate={2 * recipe.accumulate}), take precision bf16-mixed, more "
                "devices, fewer frames or a smaller crop, in a new folder"
            ) from error
        raise
    except SystemExit:  # what Lightning makes of ctrl-C; a notebook's kernel would end
        raise KeyboardInterrupt from None


def _describe(clips: Clips) -> dict[str, Any]:
    """Which videos, in which order, and how clips are cut out of them."""
    digest = hashlib.sha256()
    for path, label in clips.samples:
        place = os.path.relpath(path, clips.root) if clips.root else os.path.basename(path)
        digest.update(f"{place} {label}\n".encode(errors="surrogateescape"))
    names = "frames", "stride", "resize", "crop", "area", "flip", "inverted", "seed"
    settings = {name: getattr(clips, name) for name in names}
    flow = clips.flow if clips.flow in (None, "tvl1") else "given"
    return {"videos": len(clips), "digest": digest.hexdigest()[:16], "flow": flow} | settings


def _channels_last(model: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])


def _seed(*numbers: int) -> None:
    """All that the step draws (dropout) depends on these alone, so that no random state has to be kept."""
    _seed_all(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of the GPUs, too


def _peak_mib() -> int:
    """Most memory so far: of the GPU, without one of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
