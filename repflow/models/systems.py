"""The table of systems: which streams, of which backbone, with which flow layer."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict, Unpack

from torch import nn

from repflow.layers import FlowOfFlow, RepresentationFlow
from repflow.models.backbones import TINY, NonLocal, build_backbone
from repflow.models.streams import Differences, OFFStream, Stream, TVL1Flow, TVNetFlow, TwoStream


class Options(TypedDict, total=False):
    """What some systems take besides `build_model`'s own arguments.

    With a flow layer:
    flow_after: how many stages of the backbone stand before it; 0 is at the pictures, whose values below 0 its ReLU
        cuts off. Default 2, the paper's best: after ResNet's second stage of four, its "third residual block".
    bottleneck, iterations, learn: see `RepresentationFlow`. Default: its own; for tiny ones 8 channels, 10 iterations.
    init_scale, scaling, skip: see there too. Default 0 with weights, 1 without; "clip"; True.
    With flow of flow:
    flow_layers, conv_between: 1 to 3 layers, and whether a convolution stands between two. Default 2, True.
    With a stream of optical flow:
    flow: "given" to the model, or "tvl1": computed in it, which takes far longer than all else. Default "given".
    iterations: TVNet's. Default 50.
    With two streams:
    fusion: the flow stream's share of the mean of both streams' probabilities. Default 0.5.
    """

    flow_after: int
    bottleneck: int
    iterations: int
    learn: Collection[str]
    init_scale: float
    scaling: str
    skip: bool
    flow_layers: int
    conv_between: bool
    flow: str
    fusion: float


@dataclass(frozen=True)
class Common:
    """What every stream of a system is built with."""

    num_classes: int
    backbone: str
    weights: str | os.PathLike[str] | None
    dropout: float
    kind: type[Stream] = Stream

    def stream(self, channels: int = 3, source: nn.Module | None = None) -> Stream:
        backbone = build_backbone(self.backbone, channels, self.weights)
        return self.kind(backbone, self.num_classes, source=source, dropout=self.dropout)


def _differences(common: Common) -> Stream:
    return common.stream(source=Differences())


def _flow(common: Common, *, flow: str = "given") -> Stream:
    if flow not in ("given", "tvl1"):
        raise ValueError(f"flow: expected 'given' or 'tvl1', got {flow!r}")
    return common.stream(2, TVL1Flow() if flow == "tvl1" else None)


def _two_stream(common: Common, *, flow: str = "given", fusion: float = 0.5) -> TwoStream:
    return TwoStream(common.stream(), _flow(common, flow=flow), fusion)


def _tvnet(common: Common, *, iterations: int = 50, fusion: float = 0.5) -> TwoStream:
    return TwoStream(common.stream(), common.stream(2, TVNetFlow(iterations)), fusion)


def _off_rgb(common: Common) -> Stream:
    return replace(common, kind=OFFStream).stream()


def _off(common: Common, *, flow: str = "given") -> TwoStream:
    """The mean of three streams: pictures and their differences, then flow."""
    common = replace(common, kind=OFFStream)
    pictures = TwoStream(common.stream(), _differences(common), 1 / 2)
    return TwoStream(pictures, _flow(common, flow=flow), 1 / 3)


def _with_flow_layer(
    common: Common,
    *,
    non_local: bool = False,
    flow_layers: int = 2,
    conv_between: bool = True,
    flow_after: int = 2,
    init_scale: float | None = None,
    **layer: Any,
) -> Stream:
    """A stream of pictures with a flow layer in it, and a non-local block after that.

    Our choice: one block, where ResNet's third stage begins; Wang et al. have theirs in the second and third stage.
    """
    backbone = build_backbone(common.backbone, weights=common.weights)
    stages = len(backbone.stages)
    if flow_after not in range(stages + 1):
        raise ValueError(f"flow_after: expected 0 to {stages}, the stages of {common.backbone}, got {flow_after!r}")
    if flow_layers not in (1, 2, 3):
        raise ValueError(f"flow_layers: expected 1, 2 or 3, got {flow_layers!r}")
    if flow_layers == 1 and not conv_between:
        raise ValueError("conv_between: expected two or more flow layers, got flow_layers=1")
    if common.backbone in TINY:
        layer = {"bottleneck": 8, "iterations": 10} | layer
    layer["init_scale"] = float(common.weights is None) if init_scale is None else init_scale
    width = backbone.widths[flow_after]
    deep = partial(FlowOfFlow, depth=flow_layers, conv_between=conv_between)
    return Stream(
        backbone,
        common.num_classes,
        flow=(RepresentationFlow if flow_layers == 1 else deep)(width, **layer),
        flow_after=flow_after,
        frames_lost=flow_layers,
        non_local=NonLocal(width) if non_local else None,
        dropout=common.dropout,
    )


@dataclass(frozen=True)
class System:
    """paper: its row of the paper's table, or None. make: builds it. backbones: those it can have, its own first.

    takes: the names in `Options` that mean something for it. inputs: what its model is called with, in this order.
    """

    paper: str | None
    make: Callable[..., nn.Module]
    backbones: tuple[str, ...]
    takes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("clip",)


RESNET_2D = "resnet50_2d", "resnet34_2d", "resnet18_2d", "tiny_2d"
RESNET_2PLUS1D = "resnet50_2plus1d", "resnet34_2plus1d", "resnet18_2plus1d", "tiny_2plus1d"
RESNET_NONLOCAL = "resnet101_nonlocal", "resnet50_nonlocal", "tiny_nonlocal"
I3D, S3D, R2PLUS1D = ("i3d",), ("s3d",), ("r2plus1d_18",)
LAYER = "flow_after", "bottleneck", "iterations", "learn", "init_scale", "scaling", "skip"
DEPTH = *LAYER, "flow_layers", "conv_between"
FUSED = "flow", "fusion"
_repflow = partial(_with_flow_layer, flow_layers=1)
_non_local = partial(_with_flow_layer, non_local=True)

SYSTEMS = {
    "rgb_2d": System("2D RGB", Common.stream, RESNET_2D),
    "difference_2d": System(None, _differences, RESNET_2D),
    "flow_2d": System("2D Flow", _flow, RESNET_2D, ("flow",), ("flow",)),
    "two_stream_2d": System("2D Two-Stream", _two_stream, RESNET_2D, FUSED, ("clip", "flow")),
    "tvnet_2d": System("TVNet (+RGB)", _tvnet, RESNET_2D, ("iterations", "fusion")),
    "off_rgb_2d": System("OFF (RGB only)", _off_rgb, RESNET_2D),
    "off_2d": System("OFF (RGB + flow + RGB diff)", _off, RESNET_2D, ("flow",), ("clip", "flow")),
    "repflow_2d": System("2D + Rep-Flow", _repflow, RESNET_2D, LAYER),
    "flow_of_flow_2d": System("2D + flow-conv-flow", _with_flow_layer, RESNET_2D, DEPTH),
    "rgb_2plus1d": System("(2+1)D RGB", Common.stream, RESNET_2PLUS1D),
    "flow_2plus1d": System(None, _flow, RESNET_2PLUS1D, ("flow",), ("flow",)),
    "two_stream_2plus1d": System("(2+1)D Two-Stream", _two_stream, RESNET_2PLUS1D, FUSED, ("clip", "flow")),
    "repflow_2plus1d": System("(2+1)D + Rep-Flow", _repflow, RESNET_2PLUS1D, LAYER),
    "flow_of_flow_2plus1d": System("(2+1)D + Flow-of-flow", _with_flow_layer, RESNET_2PLUS1D, DEPTH),
    "flow_of_flow_nonlocal_2plus1d": System("(2+1)D + Flow-of-flow + Non-local", _non_local, RESNET_2PLUS1D, DEPTH),
    "rgb_i3d": System("I3D RGB", Common.stream, I3D),
    "flow_i3d": System("I3D Flow", _flow, I3D, ("flow",), ("flow",)),
    "two_stream_i3d": System("I3D Two-Stream", _two_stream, I3D, FUSED, ("clip", "flow")),
    "rgb_s3d": System("S3D RGB", Common.stream, S3D),
    "flow_s3d": System(None, _flow, S3D, ("flow",), ("flow",)),
    "two_stream_s3d": System("S3D Two-Stream", _two_stream, S3D, FUSED, ("clip", "flow")),
    "rgb_nonlocal": System("ResNet-101 + Non-local", Common.stream, RESNET_NONLOCAL),
    "rgb_r2plus1d_18": System(None, Common.stream, R2PLUS1D),
}


def build_model(
    name: str,
    num_classes: int,
    *,
    backbone: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    dropout: float = 0.0,
    **options: Unpack[Options],
) -> nn.Module:
    """A system of `list_models()`: clips (B, 3, T, H, W), RGB in [-1, 1] -> (B, num_classes) scores.

    Systems of pictures and flow take (clip, flow), those of flow alone take the flow: (B, 2, T-1 or T, H, W), u and v
    in 20 pixels a frame, so in [-1, 1]; with flow="tvl1" and in tvnet_2d both take the clip alone.

    backbone: a smaller one than the paper's; tiny_2d, tiny_2plus1d and tiny_nonlocal are for SyntheticMotion.
    weights: what the backbone starts from: None (fresh), "imagenet" or "kinetics400" (torchvision's, downloaded once),
        or a file with a state dict of the same network of torchvision. The classifier is taken along where it has
        num_classes classes. What the weights expect of their input becomes part of the model.
    dropout: share of the features that a classifier does not see in training (the released models: 0.5).
    options: see `Options`.
    Raises ValueError for an unknown name, or an option that this system does not take or cannot have; OSError for
    weights that are not there.
    """
    if name not in SYSTEMS:
        raise ValueError(f"model: expected one of {', '.join(SYSTEMS)}, got {name!r}")
    system = SYSTEMS[name]
    if unknown := sorted(set(options) - set(system.takes)):
        takes = ", ".join(("backbone", "weights", "dropout", *system.takes))
        raise ValueError(f"{name} takes the options {takes}; got {', '.join(unknown)}")
    backbone = backbone or system.backbones[0]
    if backbone not in system.backbones:
        raise ValueError(f"backbone: expected one of {', '.join(system.backbones)} for {name}, got {backbone!r}")
    return system.make(Common(num_classes, backbone, weights, dropout), **options)
