"""The paper's questions, asked of SyntheticMotion: one training and its test, as a point of a sweep."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from repflow.data import Clips, SyntheticMotion, default_folder
from repflow.data.clips import Samples
from repflow.data.synthetic import CLASSES
from repflow.models import build_model

_RGB = {"2d": "rgb_2d", "2plus1d": "rgb_2plus1d"}  # by the last part of a system's name
_MODEL = "flow_after", "bottleneck", "iterations", "init_scale", "flow_layers", "conv_between", "flow"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training on SyntheticMotion and its test.

    system ... flow: see `build_model`; None is the system's own default. learn: names with commas between; "" for
        nothing.
    scaling: what the flow layer maps to 0..255: each clip, or the whole batch at once, as the 2019 layer does.
    pictures, order, noise: see `Altered`; the same for training and testing.
    moving: the whole frame, or an object in it.
    rgb_share: above 0, a stream of RGB alone is trained, too, and has this share in the mean of both probabilities.
    train_clips, test_clips: of each class. steps: of the optimiser. rate: its highest learning rate. size: pixels.
    data: folder for the generated clips; None: where repflow keeps data.
    """

    system: str = "repflow_2d"
    backbone: str = "tiny_2d"
    flow_after: int | None = None
    bottleneck: int | None = None
    iterations: int | None = None
    learn: str | None = None
    init_scale: float | None = None
    flow_layers: int | None = None
    conv_between: bool | None = None
    flow: str | None = None
    scaling: Literal["clip", "batch"] = "clip"
    pictures: Literal["frames", "differences"] = "frames"
    order: Literal["kept", "shuffled"] = "kept"
    moving: Literal["frame", "object"] = "frame"
    noise: float = 0.0
    rgb_share: float = 0.0
    train_clips: int = 60
    test_clips: int = 20
    steps: int = 200
    batch: int = 16
    rate: float = 3e-3
    size: int = 48
    frames: int = 9
    seed: int = 0
    data: str | None = None

    def model_options(self) -> dict[str, Any]:
        """Return the keywords of `build_model` that this setting names."""
        options = {name: value for name, value in fields(self, *_MODEL).items() if value is not None}
        if self.learn is not None:
            options["learn"] = tuple(filter(None, self.learn.split(",")))
        return options if self.scaling == "clip" else options | {"scaling": self.scaling}

    def rgb_system(self) -> str | None:
        """Return the system that sees RGB with the same kind of network; None where there is none."""
        return _RGB.get(self.system.rpartition("_")[2])

    def make_clips(self) -> tuple[SyntheticMotion, SyntheticMotion]:
        """Generate the clips, if they are not there yet, and return those for training and those for testing."""
        name = f"synthetic_motion_{self.train_clips}_{self.test_clips}_{self.seed}_{self.size}_{self.frames}"
        folder = name if self.moving == "frame" else f"{name}_{self.moving}"
        root = (Path(self.data) if self.data else default_folder()) / folder
        sizes = fields(self, "size", "frames", "seed", "moving")
        SyntheticMotion.make(root, train=self.train_clips, test=self.test_clips, **sizes)
        return SyntheticMotion(root, "train"), SyntheticMotion(root, "test")


def fields(setting: object, *names: str) -> dict[str, Any]:
    """Some fields of a setting, as keywords."""
    return {name: getattr(setting, name) for name in names}


def check_least(values: Mapping[str, Any], **least: int) -> None:
    """Raise ValueError for a number that is smaller than it may be; None is none."""
    for name, smallest in least.items():
        if values[name] is not None and values[name] < smallest:
            raise ValueError(f"{name}: expected a whole number >= {smallest}, got {values[name]}")


def synthetic_motion(**values: Any) -> dict[str, float]:
    """Train a system on SyntheticMotion and return its `motion_accuracy` on test clips, in percent.

    The keywords and their defaults are the fields of `Setting`.

        >>> accuracies = synthetic_motion(system="flow_of_flow_2d", steps=300)
        >>> accuracies["pairs"]  # in percent; chance is 50
    """
    from repflow.training import Recipe, motion_accuracy, predict, train

    setting = Setting(**values)
    training, test = setting.make_clips()
    names = "steps", "batch", "rate", "frames", "seed"
    recipe = Recipe(reference_batch=setting.batch, **fields(setting, *names))
    controls = fields(setting, "frames", "seed", "pictures", "order", "noise")

    def probabilities(system: str, **options: Any) -> np.ndarray:
        clips = Altered(training, train=True, **controls)
        model = train(system, clips, len(CLASSES), recipe, backbone=setting.backbone, **options).model
        scores = predict(model, Altered(test, train=False, **controls))
        return torch.from_numpy(scores).softmax(-1).numpy()

    fused = (1 - setting.rgb_share) * probabilities(setting.system, **setting.model_options())
    if setting.rgb_share > 0:
        fused += setting.rgb_share * probabilities(setting.rgb_system())
    return motion_accuracy(fused, [label for _, label in test.samples], test.classes)


synthetic_motion.__signature__ = inspect.signature(Setting)


def check(**values: Any) -> None:
    """Raise ValueError for what `synthetic_motion` cannot do: nothing is trained, one clip of noise is classified."""
    setting = Setting(**values)
    check_least(values, train_clips=1, test_clips=1, steps=1, batch=1, size=8, frames=3, iterations=1)
    clips = setting.train_clips * len(CLASSES)
    if setting.batch > clips:
        raise ValueError(f"batch: expected at most the {clips} clips there are, got {setting.batch}")
    if setting.noise < 0 or not 0 <= setting.rgb_share < 1 or setting.rate <= 0:
        raise ValueError("expected noise >= 0, rgb_share from 0 to below 1, rate > 0")
    if setting.rgb_share and not setting.rgb_system():
        raise ValueError(f"rgb_share: expected a system that ends in {' or '.join(_RGB)}, got {setting.system}")
    frames = setting.frames - (setting.pictures == "differences")
    options = tuple(setting.model_options().items())
    _try_model(setting.system, setting.backbone, options, (1, 3, frames, setting.size, setting.size))


@cache
def _try_model(system: str, backbone: str, options: tuple[tuple[str, Any], ...], shape: tuple[int, ...]) -> None:
    model = build_model(system, len(CLASSES), backbone=backbone, **dict(options)).eval()
    if model.inputs != ("clip",):
        raise ValueError(f"{system}: this study has no extracted flow; take flow: tvl1")
    with torch.inference_mode():
        model(torch.rand(shape) * 2 - 1)


class Altered(Clips):
    """Clips with something taken away, as controls: ((3, T, H, W), label), values in about [-1, 1].

    order: "shuffled" puts the frames in random order: what is left is what a set of single frames tells.
    noise: standard deviation in grey levels of what is added to each value.
    pictures: "differences" of successive frames in their place, halved, T-1 of them.
    All of it depends on (seed, epoch, index) alone.
    """

    def __init__(
        self, source: Samples, frames: int, *, train: bool, pictures: str, order: str, noise: float, seed: int
    ) -> None:
        super().__init__(source, frames, train=train, seed=seed)
        self.pictures, self.order, self.noise = pictures, order, noise

    def draw(self, epoch: int, index: int) -> tuple[Tensor, int]:
        clip, label = super().draw(epoch, index)
        rng = np.random.default_rng((self.seed, epoch, index, self.train))
        if self.order == "shuffled":
            clip = clip[:, rng.permutation(clip.shape[1])]
        if self.noise:
            clip = clip + self.noise / 127.5 * torch.from_numpy(rng.standard_normal(clip.shape, np.float32))
        if self.pictures == "differences":
            clip = clip.diff(dim=1) / 2
        return clip, label
