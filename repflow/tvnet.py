"""TVNet: TV-L1 flow of images as a network, whose every iteration learns its own difference kernels.

Fan, Huang, Gan, Ermon, Gong and Huang, "End-to-end learning of motion representation for video understanding"
(CVPR 2018). Computed as its authors' program does, quirks included; what that leaves open is marked as our choice.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repflow.arguments import warn, whole_number
from repflow.layers import scale_clips
from repflow.solver import classical_kernels, image_gradient, solve
from repflow.solver.reference import TINY
from repflow.tvl1 import pyramid

ZOOM = 0.5  # size of a pyramid level against the one below it
LEARNED = "flow_x", "flow_y", "div_x", "div_y"
# Gaussian of width 0.8 by the distance from its centre, |y| and |x| in 0..2: the digits of the authors' program.
GAUSSIAN = (0.219833, 0.110656, 0.01386), (0.110656, 0.0557, 0.006976), (0.01386, 0.006976, 0.000874)


class TVNet(nn.Module):
    """Flow between two frames: grey, scaled and smoothed, then TV-L1 over a pyramid of images.

    frame1, frame2: RGB, (B, 3, H, W) each, values in 0..255, any real dtype. Each pair is scaled to 0..255
    by itself, so no pair's flow depends on its batch mates; a constant pair has zero flow.
    Returns (B, 2, H, W): u (to the right) and v (down), pixels per frame, in the frames' floating-point type (half
    precision is computed in float32). Grey levels are whole numbers, rounded down; frames that need a gradient get
    it as if they were not (straight-through: our choice).

    scales: most levels of the pyramid; never more than 1 + log2(diagonal / 4).
    warps: linearisations per level.
    iterations: steps of the solver per warp, each with its own kernels.
    tau, lam, theta: dual step, data weight and coupling, as in `tvl1`; fixed.
    size: (H, W) of the frames. With it, the flow to start from at the coarsest level is learned (zero at first), and
        frames of another size are refused; without it, any size will do and the start is zero.

    Parameters: `flow_x`, `flow_y`, `div_x`, `div_y` (iterations, 1, 2), classical at first, and with `size` the
    `initial_flow` (2, h, w), in pixels of the coarsest level. Our choice: all levels and warps share the kernels, so
    that the same weights serve any number of them, and the image gradient, outside the iterations, keeps its own
    fixed. One scale, one warp and no training is the setting whose flow the authors published.
    Raises ValueError for frames or numbers that don't fit.
    """

    def __init__(
        self,
        *,
        scales: int = 1,
        warps: int = 1,
        iterations: int = 50,
        tau: float = 0.25,
        lam: float = 0.15,
        theta: float = 0.3,
        size: tuple[int, int] | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        self.scales, self.warps = whole_number("scales", scales, 1), whole_number("warps", warps, 1)
        self.iterations = whole_number("iterations", iterations, 1)
        self.tau, self.lam, self.theta = tau, lam, theta
        self.size = None if size is None else tuple(whole_number("size", side, 1) for side in size)
        self.engine = engine
        for name in LEARNED:
            kernel = getattr(classical_kernels(), name)
            self.register_parameter(name, nn.Parameter(kernel.repeat(self.iterations, 1, 1)))
        start = nn.Parameter(torch.zeros(2, *_levels(*self.size, self.scales)[0])) if self.size else None
        self.register_parameter("initial_flow", start)
        self._range_known = False

    def forward(self, frame1: Tensor, frame2: Tensor) -> Tensor:
        self._check(frame1, frame2)
        first, second = _prepare(frame1, frame2)
        *_, H, W = first.shape
        levels = _levels(H, W, self.scales)
        flow = first.new_zeros(2, *first.shape[:2], *levels[0])
        if self.initial_flow is not None:
            flow = flow + self.initial_flow.to(flow)[:, None, None]
        for size in levels:
            if flow.shape[-2:] != size:
                flow = _resize(flow, size) / ZOOM
            flow = self._refine(_resize(first, size), _resize(second, size), flow)
        flow = flow[:, :, 0].transpose(0, 1)
        return flow.to(frame1.dtype) if frame1.is_floating_point() else flow

    def loss(self, frame1: Tensor, frame2: Tensor, flow: Tensor) -> Tensor:
        """What its authors train it with, no true flow needed:  lam mean |F2(x + flow) - F1| + mean |grad flow|.

        Frames as for the network; flow (B, 2, H, W) in pixels. F1 and F2 are the frames as the solver sees them at full
        size: grey, 0..255, smoothed. |grad flow| is |du/dx| + |du/dy| + |dv/dx| + |dv/dy|, by forward differences.
        Returns one number, a mean over pixels and batch. Raises ValueError for shapes that don't fit.
        """
        self._check(frame1, frame2)
        B, _, H, W = frame1.shape
        if flow.shape != (B, 2, H, W):
            raise ValueError(f"flow: expected the shape {(B, 2, H, W)}, got {tuple(flow.shape)}")
        first, second = _prepare(frame1, frame2)
        flow = flow.to(first).transpose(0, 1)[:, :, None]
        # The classical kernels: learned ones could call any flow smooth.
        slopes = classical_kernels(flow.device).to(flow).at(0).gradient(flow)
        return self.lam * (_sample(second, flow) - first).abs().mean() + slopes.abs().sum((0, 1)).mean()

    def _refine(self, first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
        """One level: its flow (2, B, 1, H, W), from frames (B, 1, H, W) and the flow to start from."""
        kernels = classical_kernels(flow.device)._replace(**{name: getattr(self, name) for name in LEARNED})
        kernels = kernels.to(second)
        # Border gradients are half the one-sided differences of frame 2 itself; the 2019 layers take frame 1's.
        grad = image_gradient(second, kernels.image_x[0], kernels.image_y[0], border_frame=second)
        fields = torch.cat([second[None], grad])
        numbers = {"theta": self.theta, "lam": self.lam, "tau": self.tau, "iterations": self.iterations}
        dual = None  # kept over the warps of a level
        for _ in range(self.warps):
            warped, grad = _sample(fields, flow).split([1, 2])
            rho_c = warped[0] - (grad * flow).sum(0) - first + TINY  # the program adds it to rho in every iteration
            flow, dual = solve(rho_c, grad, kernels=kernels, flow=flow, dual=dual, engine=self.engine, **numbers)
        return flow

    def _check(self, frame1: Tensor, frame2: Tensor) -> None:
        kinds = [(tuple(f.shape), str(f.dtype), str(f.device)) for f in (frame1, frame2)]
        if kinds[0] != kinds[1] or frame1.ndim != 4 or frame1.shape[1] != 3 or 0 in frame1.shape[2:]:
            raise ValueError(
                "expected two RGB frames (B, 3, H, W) of one shape, type and device, got "
                + " and ".join(f"{shape} of {dtype} on {device}" for shape, dtype, device in kinds)
            )
        if frame1.is_complex():
            raise ValueError(f"expected real frames, got {frame1.dtype}; convert them first")
        if self.size and frame1.shape[2:] != self.size:
            raise ValueError(f"expected frames of the size {self.size} that was given, got {tuple(frame1.shape[2:])}")
        # Only the first frames, since a look at values makes a GPU wait. Compiled code doesn't look.
        if not (self._range_known or torch.compiler.is_compiling() or frame1.numel() == 0):
            self._range_known = True
            # Detached, since a checkpoint counts what is kept for gradients, in both of its passes.
            low, high = torch.stack([frame1.detach(), frame2.detach()]).aminmax()
            if frame1.is_floating_point() and 0 <= low < high <= 1:
                warn("the frames stay within 0..1, where grey levels are rounded down to 0: multiply them by 255")


def _prepare(frame1: Tensor, frame2: Tensor) -> tuple[Tensor, Tensor]:
    """The two frames (B, 3, H, W) as the solver sees them, (B, 1, H, W) each: grey, scaled to 0..255, smoothed."""
    dtype = torch.float64 if frame1.dtype == torch.float64 else torch.float32
    pairs = torch.stack([frame1, frame2], 2).to(dtype)
    first, second = _smooth(scale_clips(_grey(pairs))).unbind(2)
    return first, second


def _grey(rgb: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of (B, 3, ...), rounded down: (B, 1, ...).

    Whole weights, divided after the sum, give the exact result for whole levels in any precision. The authors' float32
    sum .114 B + .587 G + .299 R does so too, but for 238 of the 256**3 colours, which come out one level lower.
    """
    red, green, blue = rgb.split(1, 1)
    luma = (114 * blue + 587 * green + 299 * red) / 1000
    return luma.floor() + (luma - luma.detach())


def _smooth(frames: Tensor) -> Tensor:
    """5x5 Gaussian of width 0.8 over (..., H, W), with zeros around."""
    H, W = frames.shape[-2:]
    padded = F.pad(frames, [2] * 4)
    # Tap by tap: a convolution routine may round differently for a pair alone and in a batch, and in autocast.
    return sum(GAUSSIAN[abs(i - 2)][abs(j - 2)] * padded[..., i : i + H, j : j + W] for i in range(5) for j in range(5))


def _levels(H: int, W: int, scales: int) -> list[tuple[int, int]]:
    """(H, W) of each level, the coarsest first; sides are rounded as the authors' program does."""
    most = int(1 + math.log2(math.hypot(H, W) / 4))
    return pyramid(H, W, max(min(scales, most), 1), ZOOM, lambda side: int(side + 0.5))


def _resize(fields: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., C, H, W) at another size, bilinearly, the centres of the corner pixels staying where they are."""
    if fields.shape[-2:] == size:
        return fields
    resized = F.interpolate(fields.flatten(0, -4), size, mode="bilinear", align_corners=True)
    return resized.unflatten(0, fields.shape[:-3])


def _sample(fields: Tensor, flow: Tensor) -> Tensor:
    """Fields (..., B, 1, H, W) between the pixels, at x + u (W-1)/W and y + v (H-1)/H, for flow (2, B, 1, H, W).

    Left of the image and above it they are 0; right of it and below they are continued linearly.
    """
    *_, H, W = flow.shape
    u, v = flow
    columns = _neighbours(torch.arange(W, device=flow.device) + u * ((W - 1) / W), W)
    rows = _neighbours(torch.arange(H, device=flow.device)[:, None] + v * ((H - 1) / H), H)
    flat = fields.flatten(-2)
    values = torch.zeros_like(fields)
    for i, weight_y in rows:
        for j, weight_x in columns:
            index = torch.add(j, i, alpha=W).flatten(-2).expand_as(flat)
            values = values + weight_y * weight_x * flat.gather(-1, index).view_as(fields)
    return values


def _neighbours(x: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels that count at coordinates x, and their weights."""
    left = x.detach().floor().long()
    # Clamped as whole numbers, which NaN has become too: no index is ever outside. One pixel's weights cancel out.
    x0, x1 = left.clamp(0, max(size - 2, 0)), (left + 1).clamp(0, size - 1)
    return [(x0, x1 - x), (x1, x - x0)]
