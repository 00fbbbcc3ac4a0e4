"""What has to stand between two flow layers: one training, with a control in the place of the convolution."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.data import Clips, SyntheticMotion
from repflow.data.synthetic import PAIRS
from repflow.lab.sweeps import study
from repflow.layers import FlowOfFlow
from repflow.models import build_model

FOUR = [name for pair in PAIRS for name in pair]  # to the right and to the left, each faster and slower


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training of a tiny `flow_of_flow_2d` on four classes, and its test.

    between: "conv", the paper's 3 x 3 and 1 x 1 convolutions; "1x1", the latter alone; either of them "frozen" as it
        was drawn; "bare", u of each channel as it is; or "both flows", bare, and the first flow is handed on as well.
    padding: how all convolutions of the network continue their maps.
    iterations: of the solver. steps: of the optimiser. The clips are `study`'s, of these four classes.
    data: folder for them; None: where repflow keeps data.
    """

    between: Literal["conv", "1x1", "conv frozen", "1x1 frozen", "bare", "both flows"] = "conv"
    padding: Literal["zeros", "circular"] = "zeros"
    iterations: int = 10
    steps: int = 80
    train_clips: int = 60
    test_clips: int = 40
    seed: int = 0
    data: str | None = None

    def make_clips(self) -> tuple[Clips, Clips]:
        """Clips to train on and to test on."""
        generated = study.Setting(**study.fields(self, "train_clips", "test_clips", "seed", "data"))
        root, frames = generated.make_clips()[0].root, generated.frames
        training, test = (SyntheticMotion(root, subset, FOUR) for subset in ("train", "test"))
        return Clips(training, frames, train=True, seed=self.seed), Clips(test, frames, train=False)

    def build(self) -> nn.Module:
        """The network, fresh."""
        convolved = self.between.startswith("conv")
        options = {"backbone": "tiny_2d", "iterations": self.iterations, "conv_between": convolved}
        network = build_model("flow_of_flow_2d", len(FOUR), **options)
        layer = network.flow
        if self.between not in ("conv", "1x1"):
            layer.reduce2.requires_grad_(False)
        if self.between == "conv frozen":
            layer.conv.requires_grad_(False)
        if self.between in ("bare", "both flows"):
            weight = layer.reduce2.weight  # (8, 16, 1, 1, 1): of u and v of 8 channels
            weight.data[:, :, 0, 0, 0] = torch.eye(*weight.shape[:2])
        if self.between == "both flows":
            network.flow = BothFlows(layer)
        for part in network.modules():
            if isinstance(part, nn.Conv3d):
                part.padding_mode = self.padding
        return network


class BothFlows(nn.Module):
    """A flow of flow that hands on the first flow beside the second: (B, C, T, H, W) -> (B, C, T-2, H, W)."""

    def __init__(self, layer: FlowOfFlow) -> None:
        super().__init__()
        self.layer, (features, channels) = layer, layer.expand.weight.shape[:2]
        self.expand = nn.Conv3d(2 * channels, features, (1, 3, 3), padding=(0, 1, 1), bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        layer = self.layer
        first = torch.cat(layer.clip_flow(layer.reduce(maps)), 1)
        second = torch.cat(layer.clip_flow2(layer.reduce2(first)), 1)
        motion = layer.bn(self.expand(torch.cat([first[:, :, 1:], second], 1)))
        return F.relu(F.avg_pool3d(maps, (3, 1, 1), stride=1) + motion)


def trained(setting: Setting, clips: Clips) -> nn.Module:
    """The setting's network, trained on these clips: `repflow.training.train`'s loop without files."""
    from lightning_fabric import Fabric

    from repflow.training import Recipe
    from repflow.training.batches import StepBatches, load_batches
    from repflow.training.learner import Learner

    torch.manual_seed(setting.seed)
    recipe = Recipe(setting.steps, seed=setting.seed)
    learner = Learner(Fabric(devices=1), network := setting.build(), len(FOUR), recipe, setting.steps)
    for step, batch in enumerate(load_batches(clips, StepBatches(len(clips), recipe), 0)):
        learner.take_step(step, [batch])
    return network.cpu().eval()


def accuracies(network: nn.Module, clips: Clips) -> dict[str, float]:
    """Percent right: "direction", left or right, and "pairs", faster or slower with the direction given."""
    from repflow.training import motion_accuracy, predict

    scores, labels = predict(network, clips), [label for _, label in clips.samples]
    right = np.array(["right" in name for name in clips.classes])
    return {
        "direction": 100 * float((right[scores.argmax(1)] == right[labels]).mean()),
        "pairs": motion_accuracy(scores, labels, clips.classes)["pairs"],
    }


def between(**values: Any) -> dict[str, float]:
    """Train, and return the `accuracies` on test clips, in percent; chance is 50.

    The keywords and their defaults are the fields of `Setting`.

        >>> between(between="bare")["pairs"]
    """
    setting = Setting(**values)
    training, test = setting.make_clips()
    return accuracies(trained(setting, training), test)


between.__signature__ = inspect.signature(Setting)


def check(**values: Any) -> None:
    """Raise ValueError for what `between` cannot do; nothing is trained."""
    study.check_least(values, iterations=1, steps=1, train_clips=1, test_clips=1)
