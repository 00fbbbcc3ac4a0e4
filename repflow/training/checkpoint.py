"""A checkpoint with all that its use needs, of this package or of the 2019 release."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from repflow import official
from repflow.data import PRESETS
from repflow.training.folder import model_of

# The size before the crop is our choice, since the release's is not known.
RELEASED: dict[str, Any] = PRESETS["2019"] | {"resize": 128}


class Checkpoint(NamedTuple):
    """A trained model and how it was trained.

    model: on the CPU, in eval mode; clips: the arguments of `Clips` and `Views` that give it clips as in its training;
    config: the run's, as in config.json; classes: names in the order of the scores. The last two are None where the
    checkpoint does not know them, as the 2019 release's don't.
    """

    model: nn.Module
    clips: dict[str, Any]
    config: dict[str, Any] | None = None
    classes: list[str] | None = None


def open_checkpoint(path: str | Path, key: str | None = None) -> Checkpoint:
    """Read a checkpoint of `train`, or weights of the 2019 release in any form that `official.load` takes, with `key`.

    Flow that was read from a folder is not in `clips`: the folder may be another one by now. Raises CheckpointError (a
    ValueError) for anything else.
    """
    content = official.read(path)
    if not official.of_training(content):
        return Checkpoint(official.load(path, None, key), dict(RELEASED))
    if key:
        raise official.CheckpointError(f"{path}: a checkpoint of `repflow train` has one model, leave out key {key!r}")
    config = content["config"]
    trained_on = config["training"]
    clips = {name: trained_on[name] for name in ("frames", "stride", "resize", "crop", "inverted")}
    if trained_on["flow"] == "tvl1":
        clips["flow"] = "tvl1"
    return Checkpoint(model_of(content), clips, config, config["about"].get("classes"))
