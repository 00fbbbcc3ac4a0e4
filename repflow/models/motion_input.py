"""What a stream can see in place of the pictures: their optical flow, or their differences."""

import torch
from torch import Tensor, nn

from repflow.tvl1 import LARGEST, LUMA, tvl1
from repflow.tvnet import TVNet


class Differences(nn.Module):
    """Half of each frame's change to the next: clips (B, C, T, H, W) in [-1, 1] -> (B, C, T-1, H, W) in [-1, 1].

    The simplest thing that sees motion, so the control for all that compute flow.
    """

    def forward(self, clip: Tensor) -> Tensor:
        return clip.diff(dim=2) / 2


class TVL1Flow(nn.Module):
    """TV-L1 between successive frames: clips (B, 3, T, H, W), RGB in [-1, 1] -> (B, 2, T-1, H, W) in [-1, 1].

    u and v in pixels per frame, clipped to 20 and divided by 20, as extracted flow is. No gradient.
    """

    def forward(self, clip: Tensor) -> Tensor:
        grey = sum(weight * channel for weight, channel in zip(LUMA, _levels(clip).float().unbind(1), strict=True))
        return _scaled(tvl1(grey[:, :-1], grey[:, 1:]).transpose(1, 2), clip)


class TVNetFlow(nn.Module):
    """The same of `TVNet`, with a gradient for its kernels, and none for the pictures."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.tvnet = TVNet(iterations=iterations)

    def forward(self, clip: Tensor) -> Tensor:
        frames = _levels(clip).transpose(1, 2)
        first, second = frames[:, :-1], frames[:, 1:]
        flow = self.tvnet(first.flatten(0, 1), second.flatten(0, 1))
        return _scaled(flow.unflatten(0, first.shape[:2]).transpose(1, 2), clip)


def _levels(clip: Tensor) -> Tensor:
    """RGB in [-1, 1] as the whole levels 0..255 that it came from, which both programs take."""
    return ((clip.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _scaled(flow: Tensor, clip: Tensor) -> Tensor:
    return (flow.clamp(-LARGEST, LARGEST) / LARGEST).to(clip.dtype)
