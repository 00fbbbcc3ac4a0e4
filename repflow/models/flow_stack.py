"""Flow of flow of any depth: what the paper's comparison of depths needs beyond `repflow.layers`."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.layers import PAPER_SET, ClipFlow


class ReducedFlow(nn.Module):
    """(B, C, T, H, W) -> [u; v] of the maps reduced to `bottleneck` channels, (B, 2 bottleneck, T-1, H, W)."""

    def __init__(self, channels: int, bottleneck: int, iterations: int, learn: Collection[str]) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, bottleneck, 1, bias=False)
        self.clip_flow = ClipFlow(bottleneck, iterations, learn, "auto")

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.clip_flow(self.reduce(x)), 1)


class FlowStack(nn.Module):
    """`depth` flow layers, each computing the flow of the one before, wired as `FlowOfFlow` is.

    (B, C, T, H, W) -> (B, C, T-depth, H, W) = ReLU(average of depth+1 frames + bn(conv([u; v]))).

    conv_between: whether a 1x3x3 convolution stands between two flows; `FlowOfFlow` is depth 2 with it.
    Other arguments as for `RepresentationFlow`.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int,
        conv_between: bool,
        bottleneck: int = 32,
        iterations: int = 20,
        learn: Collection[str] = PAPER_SET,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.depth = depth
        both = 2 * bottleneck
        flows: list[nn.Module] = [ReducedFlow(channels, bottleneck, iterations, learn)]
        for _ in range(depth - 1):
            if conv_between:
                flows.append(nn.Conv3d(both, both, (1, 3, 3), padding=(0, 1, 1), bias=False))
            flows.append(ReducedFlow(both, bottleneck, iterations, learn))
        self.flows = nn.Sequential(*flows)
        self.expand = nn.Conv3d(both, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.constant_(self.bn.weight, init_scale)

    def flow(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last flow: u (to the right) and v (down), (B, bottleneck, T-depth, H, W) each, pixels per frame."""
        u, v = self.flows(x).chunk(2, 1)
        return u, v

    def forward(self, x: Tensor) -> Tensor:
        motion = self.bn(self.expand(self.flows(x)))
        return F.relu(F.avg_pool3d(x, (self.depth + 1, 1, 1), stride=1) + motion)
