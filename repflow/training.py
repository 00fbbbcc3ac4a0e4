"""Training with Lightning, and accuracies."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from repflow.data import Clips
from repflow.data.clips import Inputs
from repflow.data.synthetic import BASIC, PAIRS
from repflow.models import build_model
from repflow.video import VideoError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a system is trained: AdamW with one cycle of the learning rate (Smith and Topin 2019).

    The defaults suit SyntheticMotion. steps: optimiser steps; batch: clips a step; rate: highest learning rate;
    clip_norm: the gradient's longest norm (the solver's gradients are heavy-tailed); workers: processes that read
    videos, 0 for none; seed: everything random.
    """

    steps: int
    batch: int = 16
    rate: float = 3e-3
    clip_norm: float = 5.0
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Trained:
    """A trained model in eval mode, on the CPU, and the training loss of every step."""

    model: nn.Module
    losses: list[float]


class Classification(L.LightningModule):
    """Cross-entropy on (clips, labels), or on ((clips, flow), labels)."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.losses: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor | list[Tensor], Tensor]) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self.model(*_listed(inputs)), labels)
        self.losses.append(loss.detach())  # read at the end: reading now would stall a GPU
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor | list[Tensor]] | None) -> tuple[Tensor, Tensor] | None:
        """Indices and scores; of several views the mean of their softmax."""
        if batch is None:  # none of its videos could be read
            return None
        indices, inputs = batch
        inputs = _listed(inputs)
        if inputs[0].ndim == 5:
            return indices, self.model(*inputs)
        scores = self.model(*(views.flatten(0, 1) for views in inputs)).softmax(-1)
        return indices, scores.unflatten(0, inputs[0].shape[:2]).mean(1)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), self.recipe.rate)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.recipe.rate, total_steps=self.recipe.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class TrainingClips(L.LightningDataModule):
    """Batches of clips, shuffled by (seed, epoch) alone: neither workers nor an earlier epoch change them."""

    def __init__(self, clips: Clips, recipe: Recipe) -> None:
        super().__init__()
        if len(clips) < recipe.batch:
            raise ValueError(f"batch: expected at most the {len(clips)} clips there are, got {recipe.batch}")
        self.clips, self.recipe = clips, recipe

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch
        self.clips.set_epoch(epoch)
        order = torch.Generator()
        order.manual_seed(int(np.random.SeedSequence((self.recipe.seed, epoch)).generate_state(1)[0]))
        options = {"drop_last": True, "generator": order, "num_workers": self.recipe.workers}
        return DataLoader(self.clips, self.recipe.batch, shuffle=True, **options)


class Readable(Dataset[tuple[int, Inputs] | None]):
    """Test clips beside their indices; None for a video that cannot be read, which the log names."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, Inputs] | None:
        try:
            return index, self.clips[index][0]
        except VideoError as error:
            _log.warning("not evaluated: %s", error)
            return None

    @staticmethod
    def collate(items: list[tuple[int, Inputs] | None]) -> list | None:
        return default_collate(there) if (there := [item for item in items if item is not None]) else None


class Progress(L.Callback):
    """One bar over all steps. Lightning's own is one an epoch, and in a notebook it always looks full."""

    def __init__(self, what: str, steps: int) -> None:
        self.what, self.steps, self.bar = what, steps, tqdm(disable=True)

    def _open(self, *_: object) -> None:
        self.bar = tqdm(total=self.steps, desc=self.what, leave=False)

    def _step(self, *_: object) -> None:
        self.bar.update()

    def _close(self, *_: object) -> None:
        self.bar.close()

    on_train_start = on_predict_start = _open
    on_train_batch_end = on_predict_batch_end = _step
    on_train_end = on_predict_end = on_exception = _close


def train(name: str, clips: Clips, num_classes: int, recipe: Recipe, **model_options: object) -> Trained:
    """Build the system `name` (with `build_model`'s options) and train it on `clips` for `recipe.steps` steps.

    Reproducible on a CPU: the same arguments give the same weights. Shows a progress bar; may be interrupted. Raises
    VideoError where more than 1 % of the videos cannot be read, or where one ends the process that reads it.
    """
    L.seed_everything(recipe.seed, verbose=False)
    module = Classification(build_model(name, num_classes, **model_options), recipe)
    trainer = _trainer(
        Progress(f"training {name}", recipe.steps),
        max_steps=recipe.steps,
        gradient_clip_val=recipe.clip_norm,
        reload_dataloaders_every_n_epochs=1,
    )
    try:
        trainer.fit(module, datamodule=TrainingClips(clips, recipe))
    except RuntimeError as error:
        _name_the_video(error, clips)
        raise
    except SystemExit:  # what Lightning makes of ctrl-C; a notebook's kernel would end
        raise KeyboardInterrupt from None
    return Trained(module.model.cpu().eval(), torch.stack(module.losses).tolist())


def predict(model: nn.Module, clips: Clips, batch: int = 32, workers: int = 0) -> np.ndarray:
    """Scores (videos, num_classes), float32, in the data set's order: of `Clips` as the model has them, of `Views` the
    mean of their softmax. Nothing replaces a video that cannot be read: its scores are NaN.
    """
    options = {"num_workers": workers, "collate_fn": Readable.collate}
    loader = DataLoader(Readable(clips), max(1, batch // clips.views), **options)
    trainer = _trainer(Progress("predicting", len(loader)))
    try:
        results = [result for result in trainer.predict(Classification(model, Recipe(steps=1)), loader) if result]
    except RuntimeError as error:
        _name_the_video(error, clips)
        raise
    if not results:
        raise VideoError(f"none of {len(clips)} videos can be read; check them")
    indices, values = (torch.cat(part).cpu() for part in zip(*results, strict=True))
    scores = torch.full((len(clips), values.shape[1]), torch.nan)
    scores[indices] = values.float()
    return scores.numpy()


def _listed(inputs: Tensor | list[Tensor]) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def _name_the_video(error: RuntimeError, clips: Clips) -> None:
    if names := clips.being_read(error):
        raise VideoError(
            f"the process that read {' or '.join(map(repr, names))} died; leave the file out, or read it by itself"
        ) from error


def motion_accuracy(scores: np.ndarray, labels: Sequence[int], classes: Sequence[str]) -> dict[str, float]:
    """Accuracies on SyntheticMotion in percent, from scores (clips, classes).

    top1: all twelve classes. basic: the same twelve-way decision, on clips of the eight classes of constant speed.
    pairs: on accelerating and decelerating clips, the two-way decision between a motion and the same one backwards in
    time; chance is 50. Left out where `classes` holds no such class. Clips without scores (NaN) do not count.
    """
    there = np.isfinite(scores).all(1)
    scores, labels = scores[there], np.asarray(labels)[there]
    right = scores.argmax(1) == labels
    names = np.asarray(classes)[labels]
    rival = {a: classes.index(b) for pair in PAIRS for a, b in (pair, pair[::-1]) if b in classes}
    paired = np.flatnonzero(np.isin(names, list(rival)))
    ahead = scores[paired, labels[paired]] > scores[paired, [rival[name] for name in names[paired]]]
    hits = {"top1": right, "basic": right[np.isin(names, BASIC)], "pairs": ahead}
    return {key: 100 * float(hit.mean()) for key, hit in hits.items() if len(hit)}


def _trainer(progress: Progress, **options: object) -> L.Trainer:
    # Lightning tells of every device it does not use, and that workers might be faster: they are not, for small files.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*treespec, LeafSpec", "predict returned None"):
        warnings.filterwarnings("ignore", message)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return L.Trainer(callbacks=[progress], devices=1, **quiet, **options)
