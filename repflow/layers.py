"""The representation flow layer and flow-of-flow (CVPR 2019, section 3), for any stack of feature maps."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.arguments import check_clips, whole_number
from repflow.solver import HALF, Kernels, classical_kernels, solve_clips

# What can be learned. The paper's best set leaves the image gradient fixed.
LEARNABLE = ("image_gradient", "flow_gradient", "divergence", "tau", "lam", "theta")
PAPER_SET = LEARNABLE[1:]
_KERNEL_GROUP = {"image": "image_gradient", "flow": "flow_gradient", "div": "divergence"}


def representation_flow(
    f1: Tensor,
    f2: Tensor,
    *,
    tau: float | Tensor = 0.25,
    lam: float | Tensor = 0.15,
    theta: float | Tensor = 0.3,
    iterations: int = 20,
    kernels: Kernels | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """TV-L1 flow between two feature maps, each channel by itself: one scale, no warping (algorithm 1).

    f1, f2: (N, C, H, W), meant for values in 0..255; never rescaled. tau, lam, theta and the kernels
    (`solver.Kernels`, classical where None) may be learned tensors; see `solver.solve`.
    Returns u (to the right) and v (down), (N, C, H, W) each, in pixels per frame. Differentiable, with finite
    gradients where maps are zero or equal. Raises ValueError for shapes or numbers that don't fit.
    """
    kinds = [(tuple(f.shape), str(f.dtype), str(f.device)) for f in (f1, f2)]
    if kinds[0] != kinds[1] or f1.ndim != 4 or not f1.is_floating_point():
        raise ValueError(
            "expected two maps (N, C, H, W) of one shape, floating-point type and device, got "
            + " and ".join(f"{shape} of {dtype} on {device}" for shape, dtype, device in kinds)
        )
    # Deviation from the 2019 layers: border gradients come from the same frame as the inner ones.
    numbers = {"theta": theta, "lam": lam, "tau": tau, "iterations": iterations}
    flow = solve_clips(torch.stack([f1, f2], 2), kernels=kernels, engine=engine, **numbers)
    return flow[:, 0, :, 0], flow[:, 1, :, 0]


def scale_clips(x: Tensor) -> Tensor:
    """Map each clip of (B, C, T, H, W) to 0..255 by its own minimum and maximum, gradient included.

    A constant clip maps to 0. Deviation from the 2019 layer, which takes minimum and maximum over the batch (so that a
    clip's result depends on its batch mates) and maps to -255..0.
    """
    low, high = x.amin((1, 2, 3, 4), keepdim=True), x.amax((1, 2, 3, 4), keepdim=True)
    span = high - low
    # A range within rounding of the values is noise: blown up to 0..255 it would give flow, and infinite gradients.
    info = torch.finfo(x.dtype)
    constant = span <= info.eps * torch.maximum(high.abs(), low.abs()) + info.tiny**0.5
    return (x - low) * (255 / torch.where(constant, 1.0, span)).masked_fill(constant, 0.0)


def scale_batch(x: Tensor) -> Tensor:
    """Map a whole batch (B, C, T, H, W) to 0..255 at once, as the 2019 layer does but for its offset of -255.

    For comparisons: the result of a clip depends on the other clips of its batch.
    """
    low, high = x.min(), x.max()
    return (x - low) * (255 / (high - low).clamp_min(torch.finfo(x.dtype).eps))


SCALINGS = {"clip": scale_clips, "batch": scale_batch}


class ClipFlow(nn.Module):
    """Flow between successive frames of scaled clips, with this module's own kernels and scalars.

    (B, C, T, H, W) -> u, v, (B, C, T-1, H, W) each. Parameters, or buffers where not in `learn`: `tau`, `lam`, `theta`
    (one number each) and the kernels `image_x` ... `div_y` (1, C, taps).
    """

    def __init__(
        self, channels: int, iterations: int, learn: Collection[str], engine: str, scaling: str = "clip"
    ) -> None:
        super().__init__()
        if scaling not in SCALINGS:
            raise ValueError(f"scaling: expected one of {', '.join(SCALINGS)}; got {scaling!r}")
        self.scale = SCALINGS[scaling]
        if unknown := sorted(set(learn) - set(LEARNABLE)):
            raise ValueError(f"learn: expected names among {', '.join(LEARNABLE)}; got {', '.join(unknown)}")
        self.iterations, self.engine = whole_number("iterations", iterations, 0), engine
        values = {"tau": torch.tensor(0.25), "lam": torch.tensor(0.15), "theta": torch.tensor(0.3)}
        for name, kernel in classical_kernels()._asdict().items():
            values[name] = kernel.repeat(1, channels, 1)
        for name, value in values.items():
            if _KERNEL_GROUP.get(name.split("_")[0], name) in learn:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scaled = self.scale(x.float() if x.dtype in HALF else x)  # as in `representation_flow`
        kernels = Kernels(*(getattr(self, name) for name in Kernels._fields))
        numbers = {"tau": self.tau, "lam": self.lam, "theta": self.theta, "iterations": self.iterations}
        flow = solve_clips(scaled, kernels=kernels, engine=self.engine, **numbers)
        u, v = flow.to(x.dtype).unbind(1)
        return u, v


class RepresentationFlow(nn.Module):
    """The representation flow layer: the motion of feature maps, added to them.

    (B, C, T, H, W) -> (B, C, T-1, H, W) = ReLU(x[:, :, :-1] + bn(expand([u; v]))), where u, v is the flow of x reduced
    to `bottleneck` channels, each clip scaled to 0..255 (`scale_clips`).

    iterations: steps of the solver (the paper's TensorFlow code: 20; its PyTorch release: 10).
    learn: what is learned, of image_gradient, flow_gradient, divergence, tau, lam, theta.
    init_scale: the batch norm's first scale. 1 suits training from scratch; 0 starts as ReLU(x[:, :, :-1]), which suits
        a pre-trained network (the released models).
    scaling: "clip" scales each clip to 0..255, "batch" the whole batch at once, as the 2019 layer does.
    skip: whether x is added, as above; without it and with init_scale 0, nothing would ever be learned.
    Raises ValueError for that, for fewer than two frames or another number of channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        bottleneck: int = 32,
        iterations: int = 20,
        learn: Collection[str] = PAPER_SET,
        init_scale: float = 1.0,
        engine: str = "auto",
        scaling: str = "clip",
        skip: bool = True,
    ) -> None:
        super().__init__()
        self.skip = _checked_skip(skip, init_scale)
        self.reduce = nn.Conv3d(channels, bottleneck, 1, bias=False)
        self.clip_flow = ClipFlow(bottleneck, iterations, learn, engine, scaling)
        self.expand = nn.Conv3d(2 * bottleneck, channels, 1, bias=False)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.constant_(self.bn.weight, init_scale)

    def flow(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The learned flow: u (to the right) and v (down), (B, bottleneck, T-1, H, W) each, pixels per frame."""
        check_clips(x, self.reduce.in_channels, 2)
        return self.clip_flow(self.reduce(x))

    def forward(self, x: Tensor) -> Tensor:
        motion = self.bn(self.expand(torch.cat(self.flow(x), 1)))
        return F.relu(x[:, :, :-1] + motion if self.skip else motion)


class FlowOfFlow(nn.Module):
    """Flow-conv-flow: the flow of a flow, which is sensitive to acceleration (section 3.3).

    (B, C, T, H, W) -> (B, C, T-depth, H, W) = ReLU(average of depth+1 frames + bn(conv([u; v]))). u, v is the flow of
    (reduced, scaled) features that a 1x3x3 convolution makes of the flow before. Wired as the released HMDB51 model.

    depth: how many flows, 2 or 3 in the paper's comparison. conv_between: whether the convolution stands between two.
    Other arguments as for `RepresentationFlow`. Raises ValueError for fewer than depth+1 frames or
    another number of channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int = 2,
        conv_between: bool = True,
        bottleneck: int = 32,
        iterations: int = 20,
        learn: Collection[str] = PAPER_SET,
        init_scale: float = 1.0,
        engine: str = "auto",
        scaling: str = "clip",
        skip: bool = True,
    ) -> None:
        super().__init__()
        self.skip = _checked_skip(skip, init_scale)
        self.depth, self.conv_between = whole_number("depth", depth, 1), conv_between
        features, flow_channels = channels, 2 * bottleneck
        for level in range(depth):
            number = _number(level)
            self.add_module(f"reduce{number}", nn.Conv3d(features, bottleneck, 1, bias=False))
            self.add_module(f"clip_flow{number}", ClipFlow(bottleneck, iterations, learn, engine, scaling))
            features = flow_channels
            if conv_between and level < depth - 1:
                self.add_module(f"conv{number}", _conv_in_frames(features, features))
        self.expand = _conv_in_frames(flow_channels, channels)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.constant_(self.bn.weight, init_scale)

    def flow(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last flow: u (to the right) and v (down), (B, bottleneck, T-depth, H, W) each, pixels per frame."""
        check_clips(x, self.reduce.in_channels, self.depth + 1)
        for level in range(self.depth):
            number = _number(level)
            if level and self.conv_between:
                x = getattr(self, f"conv{_number(level - 1)}")(x)
            flow = getattr(self, f"clip_flow{number}")(getattr(self, f"reduce{number}")(x))
            x = torch.cat(flow, 1)
        return flow

    def forward(self, x: Tensor) -> Tensor:
        motion = self.bn(self.expand(torch.cat(self.flow(x), 1)))
        return F.relu(F.avg_pool3d(x, (self.depth + 1, 1, 1), stride=1) + motion if self.skip else motion)


def _checked_skip(skip: bool, init_scale: float) -> bool:
    if not skip and init_scale == 0:
        raise ValueError("init_scale: 0 lets no gradient through without the skip connection; take another, such as 1")
    return skip


def _number(level: int) -> str:
    """How a level's modules end in checkpoints: reduce, clip_flow, conv, reduce2, clip_flow2, conv2, reduce3, ..."""
    return str(level + 1) if level else ""


def _conv_in_frames(channels: int, features: int) -> nn.Conv3d:
    return nn.Conv3d(channels, features, (1, 3, 3), padding=(0, 1, 1), bias=False)
