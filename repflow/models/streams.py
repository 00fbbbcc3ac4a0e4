"""Networks of clips: one stream, with or without a flow layer in it, and two of them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.models.backbones import Backbone


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
            _check(x, 3, self.least_frames, self.least_side)
            x = self.source(x)
        _check(x, len(self.mean), self.least_frames - (self.source is not None), self.least_side)
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
        raise ValueError(
            "this model needs flow beside the clips: take Clips(..., flow=...), or --flow on the command line"
        )
    return [there[name] for name in wanted]


def _check(x: Tensor, channels: int, frames: int, side: int) -> None:
    if x.ndim != 5 or x.shape[1] != channels or x.shape[2] < frames or min(x.shape[3:]) < side:
        kind = "clips" if channels == 3 else "flow"
        raise ValueError(
            f"expected {kind} (B, {channels}, T, H, W) with T >= {frames}, H and W >= {side}, "
            f"got a tensor of shape {tuple(x.shape)}"
        )
