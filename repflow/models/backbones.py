"""Backbones: what turns clips into feature maps, stage by stage."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(NamedTuple):
    """Stages, each (B, C, T, H, W) to (B, C', T', H', W'), and how many channels C' each gives."""

    stages: list[nn.Module]
    widths: tuple[int, ...]


class Residual2D(nn.Module):
    """Basic residual block on every frame of (B, C, T, H, W) alone (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        step = (1, stride, stride)
        self.conv1 = nn.Conv3d(channels_in, channels, (1, 3, 3), step, (0, 1, 1), bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.shortcut = nn.Sequential(nn.Conv3d(channels_in, channels, 1, step, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def tiny_2d() -> Backbone:
    """Three stages for clips of about 48x48 pixels that train in a minute on two cores: 24x24, 12x12, 6x6 maps.

    Sees each frame alone: motion is what a flow layer between its stages adds.
    """
    stem = nn.Sequential(nn.Conv3d(3, 12, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False), nn.BatchNorm3d(12), nn.ReLU())
    return Backbone([stem, Residual2D(12, 24, stride=2), Residual2D(24, 48, stride=2)], (12, 24, 48))
