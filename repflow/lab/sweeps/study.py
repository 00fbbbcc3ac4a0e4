"""The paper's questions, asked of SyntheticMotion: one training and its test, as a point of a sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import repflow.layers
from repflow.data import Clips, SyntheticMotion, default_folder
from repflow.data.clips import Samples
from repflow.data.synthetic import CLASSES
from repflow.models import build_model

_RGB = {"2d": "rgb_2d", "2plus1d": "rgb_2plus1d"}  # by how a system's name ends
_OPTIONS = "flow_after", "bottleneck", "iterations", "init_scale", "flow_layers", "conv_between", "flow"


def synthetic_motion(
    *,
    system: str = "repflow_2d",
    backbone: str = "tiny_2d",
    flow_after: int | None = None,
    bottleneck: int | None = None,
    iterations: int | None = None,
    learn: str | None = None,
    init_scale: float | None = None,
    flow_layers: int | None = None,
    conv_between: bool | None = None,
    flow: str | None = None,
    scaling: Literal["clip", "batch"] = "clip",
    pictures: Literal["frames", "differences"] = "frames",
    order: Literal["kept", "shuffled"] = "kept",
    moving: Literal["frame", "object"] = "frame",
    noise: float = 0.0,
    rgb_share: float = 0.0,
    train_clips: int = 60,
    test_clips: int = 20,
    steps: int = 200,
    batch: int = 16,
    rate: float = 3e-3,
    size: int = 48,
    frames: int = 9,
    seed: int = 0,
    data: str | None = None,
) -> dict[str, float]:
    """Train a system on SyntheticMotion and return its `motion_accuracy` on test clips, in percent.

    system ... flow: see `build_model`; None is the system's own default. learn: names with commas between; "" for
        nothing.
    scaling: what the flow layer maps to 0..255: each clip, or the whole batch at once, as the 2019 layer does.
    pictures, order, noise: see `Altered`; the same for training and testing.
    moving: the whole frame, or an object in it.
    rgb_share: above 0, a stream of RGB alone is trained, too, and has this share in the mean of both probabilities.
    train_clips, test_clips: of each class. steps: of the optimiser. rate: its highest learning rate. size: pixels.
    data: folder for the generated clips; None: where repflow keeps data.
    """
    from repflow.training import Recipe, motion_accuracy, predict, train

    root = Path(data) if data else default_folder()
    name = f"synthetic_motion_{train_clips}_{test_clips}_{seed}_{size}_{frames}"
    root = root / (name if moving == "frame" else f"{name}_{moving}")
    SyntheticMotion.make(root, train=train_clips, test=test_clips, size=size, frames=frames, seed=seed, moving=moving)
    training, test = (SyntheticMotion(root, subset) for subset in ("train", "test"))
    altered = {"pictures": pictures, "order": order, "noise": noise, "seed": seed}
    options = _options(locals())
    recipe = Recipe(steps=steps, batch=batch, rate=rate, reference_batch=batch, frames=frames, seed=seed)

    def probabilities(name: str, **options: Any) -> np.ndarray:
        clips = Altered(training, frames, train=True, **altered)
        with scaled_by(scaling):
            model = train(name, clips, len(CLASSES), recipe, backbone=backbone, **options).model
            scores = predict(model, Altered(test, frames, train=False, **altered))
        return torch.from_numpy(scores).softmax(-1).numpy()

    fused = (1 - rgb_share) * probabilities(system, **options)
    if rgb_share > 0:
        fused += rgb_share * probabilities(_RGB[_kind(system)])
    return motion_accuracy(fused, [label for _, label in test.samples], test.classes)


def check(**values: Any) -> None:
    """Raise ValueError for what `synthetic_motion` cannot do: nothing is trained, one clip of noise is classified."""
    for name, least in (("train_clips", 1), ("test_clips", 1), ("steps", 1), ("batch", 1), ("size", 8), ("frames", 3)):
        if values[name] < least:
            raise ValueError(f"{name}: expected a whole number >= {least}, got {values[name]}")
    there = values["train_clips"] * len(CLASSES)
    if values["batch"] > there:
        raise ValueError(f"batch: expected at most the {there} clips there are, got {values['batch']}")
    if values["iterations"] is not None and values["iterations"] < 1:
        raise ValueError(f"iterations: expected a whole number >= 1, got {values['iterations']}")
    if values["noise"] < 0 or not 0 <= values["rgb_share"] < 1 or values["rate"] <= 0:
        raise ValueError("expected noise >= 0, rgb_share from 0 to below 1, rate > 0")
    if values["rgb_share"] and _kind(values["system"]) not in _RGB:
        raise ValueError(f"rgb_share: expected a system that ends in {' or '.join(_RGB)}, got {values['system']}")
    frames = values["frames"] - (values["pictures"] == "differences")
    options = tuple(_options(values).items())
    _try(values["system"], values["backbone"], options, (1, 3, frames, values["size"], values["size"]))


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


@contextmanager
def scaled_by(scaling: str) -> Iterator[None]:
    """Let flow layers scale the whole "batch" to 0..255 meanwhile, instead of each "clip".

    For this process alone, and not for users: what a clip's class is then depends on the others of its batch.
    """
    own = repflow.layers.scale_clips
    if scaling == "batch":
        repflow.layers.scale_clips = _scale_batch
    try:
        yield
    finally:
        repflow.layers.scale_clips = own


def _scale_batch(x: Tensor) -> Tensor:
    """As the 2019 layer, but for its offset of -255, which no flow depends on."""
    low, high = x.min(), x.max()
    return (x - low) * (255 / (high - low).clamp_min(torch.finfo(x.dtype).eps))


def _kind(system: str) -> str:
    return system.rpartition("_")[2]


def _options(values: dict[str, Any]) -> dict[str, Any]:
    """Of a study's values, what `build_model` is called with."""
    options = {name: values[name] for name in _OPTIONS if values[name] is not None}
    if values["learn"] is not None:
        options["learn"] = tuple(filter(None, values["learn"].split(",")))
    return options


@cache
def _try(system: str, backbone: str, options: tuple[tuple[str, Any], ...], shape: tuple[int, ...]) -> None:
    model = build_model(system, len(CLASSES), backbone=backbone, **dict(options)).eval()
    if model.inputs != ("clip",):
        raise ValueError(f"{system}: this study has no extracted flow; take flow: tvl1")
    with torch.inference_mode():
        model(torch.rand(shape) * 2 - 1)
