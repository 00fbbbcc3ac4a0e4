"""Networks of clips: one stream, or two of them; flow layers and OFF units in it; what it sees in place of pictures."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.arguments import check_clips
from repflow.models.backbones import Backbone, Residual
from repflow.tvl1 import LARGEST, LUMA, tvl1
from repflow.tvnet import TVNet


class Stream(nn.Module):
    """Stages, a flow layer after one of them, and a classifier of every step in time whose scores are averaged.

    (B, C, T, H, W) in [-1, 1] -> (B, num_classes) scores. C is 3 for pictures (RGB), 2 for flow in 20 pixels a frame;
    with a `source`, pictures come in and their flow is computed by it.

    flow, flow_after: the layer, and how many stages stand before it. frames_lost: how many steps in time it takes away.
    non_local: a block behind the flow layer.
    dropout: share of the features that the classifier does not see in training.
    Raises ValueError for clips with too few frames or pixels, or another number of channels.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        flow: nn.Module | None = None,
        flow_after: int = 0,
        frames_lost: int = 0,
        non_local: nn.Module | None = None,
        source: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.source, self.flow, self.non_local = source, flow, non_local
        self.stages, self.flow_after = nn.Sequential(*backbone.stages), flow_after
        self.window = backbone.window
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(backbone.widths[-1], num_classes)
        if backbone.head and len(backbone.head[1]) == num_classes:
            self.classify.weight, self.classify.bias = (nn.Parameter(part) for part in backbone.head)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(backbone, name)).view(-1, 1, 1, 1))
        frames, self.least_side = backbone.least
        if frames_lost:
            frames = frames_lost + frames if flow_after == 0 else frames_lost * backbone.time_stride + 1
        self.least_frames = frames + (source is not None)  # each source makes one of two frames

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the model is called with: "clip" or "flow"."""
        return ("clip",) if len(self.mean) == 3 or self.source is not None else ("flow",)

    def below(self, x: Tensor) -> Tensor:
        """What the flow layer sees: the maps of the stages before it, (B, C', T', H', W')."""
        if self.source is not None:
            check_clips(x, 3, self.least_frames, self.least_side)
            x = self.source(x)
        channels, frames = len(self.mean), self.least_frames - (self.source is not None)
        check_clips(x, channels, frames, self.least_side, "clips" if channels == 3 else "flow")
        # To what the weights were trained on; exactly as it was where mean and std are 0.5.
        x = (x + (1 - 2 * self.mean)) / (2 * self.std)
        return self.stages[: self.flow_after](x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.below(x)
        for module in (self.flow, self.non_local):
            if module is not None:
                x = module(x)
        return self.scores(self.stages[self.flow_after :](x), self.classify)

    def scores(self, maps: Tensor, classify: nn.Module) -> Tensor:
        """The mean over time of what `classify` says of each step of maps (B, C, T, H, W): (B, num_classes)."""
        x = maps.mean((3, 4))
        if self.window > 1:
            x = F.avg_pool1d(x, min(self.window, x.shape[2]), 1)
        return classify(self.dropout(x.transpose(1, 2))).mean(1)


class OFFUnit(nn.Module):
    """Derivatives of maps in x, y and time: (B, C, T, H, W) -> (B, 2 gradients + differences, T-1, H, W).

    OFF, the optical flow guided feature (Sun et al., CVPR 2018): if features keep their values as they move, their
    derivatives (f_x, f_y, f_t) are orthogonal to (u, v, 1), the flow, and tell of motion without a solver. x and y by
    Sobel's kernels, of `gradients` channels, a channel's x before its y, in the first frame of each pair; time as the
    next frame minus this one, of `differences` channels. 1x1 convolutions reduce the maps to those channels.

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


class TwoStream(nn.Module):
    """Late fusion of pictures and flow (Simonyan and Zisserman, NIPS 2014): the weighted mean of their probabilities.

    clip (B, 3, T, H, W) and flow (B, 2, T', H, W), or the clip alone where the flow stream has a source, each as for
    `Stream` -> (B, num_classes) scores: logarithms of the mean of the softmax, so that their softmax is that mean.

    rgb: the stream of pictures, or two of them, fused.
    fusion: the flow stream's share, between 0 and 1.
    """

    def __init__(self, rgb: "Stream | TwoStream", flow: Stream, fusion: float) -> None:
        super().__init__()
        if not 0 < fusion < 1:
            raise ValueError(f"fusion: expected the flow stream's share, between 0 and 1, got {fusion!r}")
        self.rgb, self.flow = rgb, flow
        self.fusion = fusion

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the model is called with: "clip", or "clip" and "flow"."""
        return tuple(dict.fromkeys((*self.rgb.inputs, *self.flow.inputs)))

    def forward(self, clip: Tensor, flow: Tensor | None = None) -> Tensor:
        if (flow is None) != (self.flow.source is not None):
            raise ValueError(
                "expected a clip and its flow: pass it, or build the model with flow='tvl1'"
                if flow is None
                else "expected a clip alone, since this model computes flow itself: build it with flow='given'"
            )
        rgb, flow = self.rgb(clip), self.flow(clip if flow is None else flow)
        shares = math.log(1 - self.fusion), math.log(self.fusion)
        return torch.logaddexp(rgb.log_softmax(-1) + shares[0], flow.log_softmax(-1) + shares[1])


def inputs_of(model: nn.Module, item: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Of a clip, or a clip and its flow, what `model` is called with. Raises ValueError where its flow is missing."""
    there = {"clip": item} if isinstance(item, Tensor) else dict(zip(("clip", "flow"), item, strict=True))
    wanted = getattr(model, "inputs", ("clip",))  # the released networks see clips alone
    if "flow" in wanted and "flow" not in there:
        raise ValueError("this model needs flow beside the clips: take Clips(..., flow=...), or --flow of the command")
    return [there[name] for name in wanted]


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
