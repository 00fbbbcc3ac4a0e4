"""The paper's claim, asked of people who move: one training on five classes of UCF101 and its test."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from repflow.data import UCF101, Clips, Views, default_folder
from repflow.data.clips import Inputs, Samples
from repflow.lab.sweeps.study import check_least, fields
from repflow.models import build_model
from repflow.models.systems import SYSTEMS

if TYPE_CHECKING:
    from repflow.training import Part

CLASSES = "BrushingTeeth", "CuttingInKitchen", "JumpingJack", "Lunges", "WallPushups"
ACTIONS = CLASSES[2:]  # of the whole body; the first two show in one frame


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training on five classes of UCF101 and its test.

    system, iterations: see `build_model`; its backbone is the tiny one.
    fold: of the official lists. held_out: test on a quarter of the fold's training groups, which are not trained on,
        instead of on its test videos: for choosing settings.
    train_clips: of each class, drawn by the seed; 0 for all. order: "shuffled" puts the frames of each clip in random
        order, in training and in testing: what is left is what a set of single frames tells.
    steps ... flip: see `Recipe`. views: clips of each test video.
    data: the folder of UCF101; None: ucf101 where repflow keeps data. With a stream of flow there is extracted flow in
        the folder of that name with -flow behind it. The decoded frames are kept in the one with -cache behind it.
    """

    system: str = "repflow_2plus1d"
    iterations: int | None = None
    fold: int = 1
    held_out: bool = False
    train_clips: int = 0
    order: Literal["kept", "shuffled"] = "kept"
    steps: int = 300
    batch: int = 16
    rate: float = 3e-3
    weight_decay: float = 0.01
    dropout: float = 0.0
    frames: int = 9
    stride: int = 5
    resize: int = 64
    crop: int = 56
    flip: bool = True
    views: int = 3
    seed: int = 0
    data: str | None = None

    @property
    def root(self) -> Path:
        """The folder of UCF101."""
        return Path(self.data) if self.data else default_folder() / "ucf101"

    def clip_options(self) -> dict[str, Any]:
        """How clips are cut and read."""
        flow = f"{self.root}-flow" if "flow" in SYSTEMS[self.system].inputs else None
        return fields(self, "frames", "stride", "resize", "crop") | {"flow": flow, "cache": f"{self.root}-cache"}

    def model_options(self) -> dict[str, Any]:
        """The keywords of `build_model`."""
        options = {"backbone": "tiny_2plus1d" if self.system.endswith("2plus1d") else "tiny_2d"}
        return options if self.iterations is None else options | {"iterations": self.iterations}

    def videos(self) -> "tuple[Part, Samples]":
        """The videos to train on, and those to test on."""
        from repflow.training import Part, split

        training: Samples = UCF101(self.root, self.fold, "train", CLASSES)
        test: Samples = UCF101(self.root, self.fold, "test", CLASSES)
        if self.held_out:
            training, test = split(training, 0.25, seed=0)
        samples = chosen(training.samples, self.train_clips, self.seed)
        return Part(training.root, samples, False, list(CLASSES)), test


class Shuffled(Clips):
    """Clips whose frames are in random order, by (seed, epoch, index), the flow's as the pictures'."""

    def draw(self, epoch: int, index: int) -> tuple[Inputs, int]:
        inputs, label = super().draw(epoch, index)
        order = np.random.default_rng((self.seed, epoch, index, self.train)).permutation(self.frames)
        if isinstance(inputs, Tensor):
            return inputs[..., order, :, :], label
        return tuple(part[..., order, :, :] for part in inputs), label


class ShuffledViews(Shuffled, Views):
    """Several views of each video, their frames in random order."""


def real_video(**values: Any) -> dict[str, float]:
    """Train a system on five classes of UCF101 and return its accuracy on test videos, in percent.

    top1: on all videos; actions: the same five-way decision, on the videos of the three body actions; loss_10 ...
    loss_100: the mean training loss of each tenth of the steps; clips: how many were trained on; step_ms: milliseconds
    of a training step, reading included, which say something only if the machine does nothing else.
    The keywords and their defaults are the fields of `Setting`.

        >>> accuracy = real_video(system="repflow_2d", steps=300)["top1"]
    """
    from repflow.evaluation import hits
    from repflow.training import Recipe, predict, train

    setting = Setting(**values)
    part, test = setting.videos()
    batch = min(setting.batch, len(part.samples))
    named = fields(setting, "steps", "rate", "weight_decay", "dropout", "seed")
    recipe = Recipe(batch=batch, reference_batch=batch, **named)
    clips, views = (Clips, Views) if setting.order == "kept" else (Shuffled, ShuffledViews)
    started = perf_counter()
    training = clips(part, train=True, flip=setting.flip, seed=setting.seed, **setting.clip_options())
    trained = train(setting.system, training, len(CLASSES), recipe, **setting.model_options())
    seconds = perf_counter() - started
    scores = predict(trained.model, views(test, clips=setting.views, **setting.clip_options()), setting.batch)
    labels = np.array([label for _, label in test.samples])
    right, moving = hits(scores, labels), np.isin(np.array(CLASSES)[labels], ACTIONS)
    losses = np.array_split(np.array(trained.losses), 10)
    return {
        "top1": 100 * float(right.mean()),
        "actions": 100 * float(right[moving].mean()),
        **{f"loss_{tenth}0": float(part.mean()) for tenth, part in enumerate(losses, start=1)},
        "clips": len(part.samples),
        "step_ms": 1000 * seconds / setting.steps,
    }


real_video.__signature__ = inspect.signature(Setting)


def check(**values: Any) -> None:
    """Raise ValueError or OSError for what `real_video` cannot do: nothing is trained, no video is read.

    Whether UCF101 is where repflow keeps data is left to the first point: the measured table can be read without it.
    """
    setting = Setting(**values)
    check_least(values, steps=1, batch=1, stride=1, views=1)
    with torch.device("meta"):
        build_model(setting.system, len(CLASSES), **setting.model_options())
    flow = setting.clip_options()["flow"]
    if setting.data:
        UCF101(setting.root, setting.fold, "test", CLASSES)
        if flow and not Path(flow).is_dir():
            raise ValueError(
                f"{setting.system}: expected extracted flow in {flow!r}: repflow data extract-flow {setting.root}"
            )


def chosen(samples: Sequence[tuple[Any, int]], count: int, seed: int) -> list[tuple[Any, int]]:
    """So many samples of each class, drawn by the seed, in their order; all for 0."""
    if not count:
        return list(samples)
    labels = np.array([label for _, label in samples])
    places = {label: np.flatnonzero(labels == label) for label in set(labels)}
    drawn = [np.random.default_rng((seed, label)).permutation(own)[:count] for label, own in places.items()]
    return [samples[index] for index in sorted(np.concatenate(drawn).tolist())]
