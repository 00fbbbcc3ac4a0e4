"""Checkpoints: of this package's runs and of the 2019 release, with all that their use needs."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

# Not from the package: its ImportError names the doctor, which the command names once more.
import repflow.official as official
from repflow.data import PRESETS
from repflow.data.lists import official_classes
from repflow.models import build_model

# How the release's Kinetics network is fed: by its demonstration, a whole sample video of 79 frames; by its training
# loader, where the size before the crop is our choice, because the release does not say its own.
FEEDS: dict[str, dict[str, Any]] = {
    "demonstration": {"frames": 79, "stride": 1, "resize": 256, "crop": 224, "inverted": False},
    "training": PRESETS["2019"] | {"resize": 128},
}
# HMDB51's frames have 240 lines, so `resize` leaves those alone that are not narrower; it makes other videos fit.
_HMDB: dict[str, Any] = PRESETS["2019"] | {"resize": 240, "halved": True}
_CLASSIFIER = re.compile(r"(?:^|\.)classify\.")
_CUT = "frames", "stride", "resize", "halved", "crop", "inverted"
_PARTS = {"step", "config", "model", "optimizer", "schedule", "precision", "losses", "best"}


class Checkpoint(NamedTuple):
    """A trained model and how it was trained.

    model: on the CPU, in eval mode; clips: the arguments of `Clips` and `Views` that cut clips as its training did;
    config: the run's, as in config.json, None for the 2019 release's; classes: names in the order of the scores, None
    where nothing tells it.
    """

    model: nn.Module
    clips: dict[str, Any]
    config: dict[str, Any] | None = None
    classes: list[str] | None = None


def open_checkpoint(path: str | Path, key: str | None = None, feed: str | None = None) -> Checkpoint:
    """Read a checkpoint of `train`, or weights of the 2019 release in any form that `official.load` takes, with `key`.

    Small networks that were trained on SyntheticMotion come with the package: "repflow_2d", "flow_of_flow_2d",
    "repflow_2plus1d" and "flow_of_flow_2plus1d" instead of a path; results/weights/README.md tells of them.

    feed: see `released`, for the release's weights alone. Flow that was read from a folder is not in `clips`, since
    that folder may have moved. Raises CheckpointError (a ValueError) for anything else.

        >>> checkpoint = open_checkpoint("runs/motion/best.pt")
        >>> views = Views(source, clips=10, **checkpoint.clips)
    """
    content = official.read(path)
    if not official.of_training(content):
        return released(official.build(content, path, key=key), feed)
    for name, value in (("key", key), ("feed", feed)):
        if value:
            raise official.CheckpointError(
                f"{path}: a checkpoint of `repflow train` has one model, and is fed as in its training; leave out "
                f"{name} {value!r}"
            )
    config = content["config"]
    trained_on = config["training"]
    clips = {name: trained_on[name] for name in _CUT if name in trained_on}
    if trained_on["flow"] == "tvl1":
        clips["flow"] = "tvl1"
    return Checkpoint(_model(content), clips, config, config["about"].get("classes"))


def released(network: nn.Module, feed: str | None = None) -> Checkpoint:
    """A network of `repflow.official` with the clips and the classes of the release's own.

    The release feeds its Kinetics network in two ways. Its demonstration, the default because it is what was published
    to show these weights at work: upright pixels, 2x/255 - 1, every frame, 224 pixels. Its training loader, with feed
    "training": 1 - 2x/255, every second of 32 frames, 112 pixels. The HMDB51 network has its loader alone: 1 - 2x/255,
    every second frame, 32 of them with 34 layers and 16 with 50, every second pixel of every second row, 112 pixels.

    400 classes of Kinetics are in alphabetical order, as the demonstration names them; 51 of HMDB51, with 34 layers, in
    that of `official.HMDB_CLASSES`. Any other network was trained by somebody else: its order is not known. Raises
    ValueError for another feed.

        >>> released(official.load("kinetics.pt")).clips["crop"]
        224
    """
    if isinstance(network, official.KineticsModel):
        if feed not in (*FEEDS, None):
            raise ValueError(f"feed: expected one of {', '.join(FEEDS)}, got {feed!r}")
        classes = official_classes("kinetics400") if network.classify.out_channels == 400 else None
        return Checkpoint(network.eval(), dict(FEEDS[feed or "demonstration"]), None, classes)
    if feed:
        raise ValueError(f"feed: only the Kinetics network has two, this one is HMDB51's; leave out {feed!r}")
    basic = network.layers == 34
    classes = list(official.HMDB_CLASSES) if basic and network.fc.out_features == 51 else None
    return Checkpoint(network.eval(), _HMDB | {"frames": 32 if basic else 16}, None, classes)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of `train` as a dictionary, on the CPU.

    step: steps done; config: the run's, as in config.json; model, optimizer, schedule and precision: state dicts;
    losses: of every step; best: of the best validation, or None. best.pt has no more than step, config, model and
    best. Raises FileNotFoundError, and ValueError for a file that is no such checkpoint.

        >>> read_checkpoint("runs/motion/best.pt")["best"]["top1"]
        87.5
    """
    if not official.locate(path).exists():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found no file; check the path")
    try:
        state = official.read(path)
    except official.CheckpointError as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({error}); take another one") from error
    if not isinstance(state, dict) or not {"step", "config", "model"} <= set(state) <= _PARTS:
        raise ValueError(f"{path}: expected a checkpoint of `repflow train`, got something else; take another file")
    return state


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The model of a checkpoint of `train`, on the CPU, in eval mode. Raises as `read_checkpoint`.

    >>> model = load_model("runs/motion/best.pt")
    """
    return _model(read_checkpoint(path))


def _model(state: Mapping[str, Any]) -> nn.Module:
    config = state["config"]
    options = {name: value for name, value in config["options"].items() if name != "weights"}  # they are replaced
    model = build_model(config["model"], config["num_classes"], **options)
    model.load_state_dict(state["model"])
    return model.eval()


def body_weights(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a checkpoint of `train` but the classifier's, in names and shapes those of `model`.

    Raises ValueError for a checkpoint of another model.
    """
    state = read_checkpoint(path)
    body = {name: value for name, value in state["model"].items() if not _CLASSIFIER.search(name)}
    old = {name: str(tuple(value.shape)) for name, value in body.items()}
    new = {name: str(tuple(value.shape)) for name, value in model.state_dict().items() if not _CLASSIFIER.search(name)}
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    mismatches = [f"{name} {old.get(name, 'missing')} there, {new.get(name, 'missing')} here" for name in names]
    if mismatches:
        raise ValueError(
            f"{path}: is of {state['config']['model']} with {state['config']['options'] or 'no options'}, which does "
            f"not fit this model: {'; '.join(mismatches)}. Take that model with those options, or another checkpoint"
        )
    return body
