"""OFF, the optical flow guided feature (Sun et al., CVPR 2018): motion as derivatives of a backbone's feature maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.models.backbones import Backbone, Residual
from repflow.models.streams import Stream


class OFFUnit(nn.Module):
    """Derivatives of maps in x, y and time: (B, C, T, H, W) -> (B, 2 gradients + differences, T-1, H, W).

    If features keep their values as they move, their derivatives (f_x, f_y, f_t) are orthogonal to (u, v, 1), the flow:
    they tell of motion without a solver. x and y by Sobel's kernels, of `gradients` channels, a channel's x before its
    y, in the first frame of each pair; time as the next frame minus this one, of `differences` channels. 1x1
    convolutions reduce the maps to those channels.

        >>> OFFUnit(512, gradients=32, differences=128)(torch.rand(1, 512, 4, 28, 28)).shape
        torch.Size([1, 192, 3, 28, 28])

    Deviations from the released networks: their convolutions have biases, and their gradients a dropout of 0.8.
    """

    def __init__(self, channels: int, gradients: int, differences: int) -> None:
        super().__init__()
        self.reduce_space = nn.Conv3d(channels, gradients, 1, bias=False)
        self.reduce_time = nn.Conv3d(channels, differences, 1, bias=False)
        x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        kernels = torch.stack([x, x.T]).repeat(gradients, 1, 1)[:, None, None]
        self.register_buffer("sobel", kernels, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        space = self.reduce_space(maps[:, :, :-1])
        space = F.conv3d(space, self.sobel, padding=(0, 1, 1), groups=space.shape[1])
        return torch.cat([space, F.relu(self.reduce_time(maps)).diff(dim=2)], 1)


class OFFStream(Stream):
    """A stream and the OFF sub-network on its maps: the mean of both scores. It needs two frames.

    Arguments as for `Stream`, without those of a flow layer; the backbone is one that sees each frame alone.

    An OFF unit takes the maps of each stage but the first (28x28, 14x14 and 7x7 of ResNets at 224x224). A residual
    block takes the unit's output and that of the scale before, and halves height and width for the next scale. The
    last block's maps have a classifier of their own.

    Deviations from the released networks: those are BN-Inceptions, with a unit after most of their modules. A scale
    there has a convolution and a bottleneck without batch norm, here a basic block. There the loss of each classifier
    is its own; here it is that of the mean.
    """

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, frames_lost=1, **options)
        scales = backbone.widths[2:]
        width = min(256, scales[-1] // 2)  # half of it for tiny networks
        gradients, differences = width // 8, width // 2  # the released networks': 32 and 128
        self.units = nn.ModuleList(OFFUnit(channels, gradients, differences) for channels in scales)
        self.blocks = nn.ModuleList()
        for scale in range(len(scales)):
            channels = 2 * gradients + differences + (width if scale > 0 else 0)
            stride = 1 if scale == len(scales) - 1 else 2
            self.blocks.append(Residual(channels, width, stride, temporal=False))
        self.classify_motion = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](self.below(x))
        motion: list[Tensor] = []
        for stage, unit, block in zip(self.stages[1:], self.units, self.blocks, strict=True):
            x = stage(x)
            motion = [block(torch.cat([unit(x), *motion], 1))]
        return (self.scores(x, self.classify) + self.scores(motion[0], self.classify_motion)) / 2
