"""TV-L1 optical flow of images: pyramid, warping and median filter around `solver.solve`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repflow.arguments import warn, whole_number
from repflow.solver import chosen_engine, solve
from repflow.spline import CubicSpline

if TYPE_CHECKING:
    from repflow.warp import CompiledWarp

LUMA = 0.299, 0.587, 0.114  # weights of red, green and blue (ITU-R BT.601)
LARGEST = 20.0  # px/frame; to flow streams what is faster is as fast (Carreira and Zisserman, CVPR 2017)
COARSEST = 16  # pixels: a pyramid level with a shorter side says nothing more


@torch.no_grad()
def tvl1(
    frame1: Tensor | np.ndarray,
    frame2: Tensor | np.ndarray,
    *,
    tau: float = 0.25,
    lam: float = 0.15,
    theta: float = 0.3,
    scales: int = 5,
    zoom: float = 0.5,
    warps: int = 5,
    iterations: int = 30,
    epsilon: float = 0.01,
    median: int = 3,
    engine: str = "auto",
) -> Tensor:
    """Dual TV-L1 optical flow from frame1 to frame2 (Zach 2007; Sanchez, Meinhardt-Llopis and Facciolo, IPOL 2013).

    frame1, frame2: (..., H, W), grey, 0..255, any real dtype; never rescaled. lam belongs to that range: 0.15 here is
        38.25 on frames in 0..1.
    tau: step of the dual field. Beyond 0.25 it may not converge.
    lam: weight of the data term. Smaller is smoother.
    theta: how tightly data and smoothness are coupled. Smaller is tighter and slower.
    scales, zoom: levels of the pyramid (no more than give a side of 16 pixels) and the size of each against the
        one below it. More find larger motion.
    warps: linearisations per level.
    iterations, epsilon: most iterations per warp; an image stops sooner once its flow changes by less than
        epsilon (root mean square, pixels). 0 never stops sooner.
    median: side of the median filter that follows each warp, odd; 1 is none. It removes outliers (Wedel 2009).

    Returns float32 (..., 2, H, W): u (to the right) and v (down), pixels per frame, on the frames' device. Where the
    flow points out of frame 2 there is no data term. Not differentiable; `representation_flow` is.
    Raises ValueError for frames that differ in size, hold NaN or infinity, or for numbers out of range.
    """
    scales, warps, median = (
        whole_number(name, value, 1) for name, value in (("scales", scales), ("warps", warps), ("median", median))
    )
    if not 0 < zoom < 1:
        raise ValueError(f"zoom: expected a number between 0 and 1, got {zoom!r}")
    if median % 2 == 0:
        raise ValueError(f"median: expected an odd number, 1 for no filter, got {median}")
    frame1, frame2 = _frames(frame1, "frame1"), _frames(frame2, "frame2")
    if frame1.shape != frame2.shape or frame1.device != frame2.device:
        raise ValueError(
            "expected two frames of one size on one device, got "
            f"{tuple(frame1.shape)} on {frame1.device} and {tuple(frame2.shape)} on {frame2.device}"
        )
    *batch, H, W = frame1.shape
    pair = frame1.reshape(-1, 1, H, W), frame2.reshape(-1, 1, H, W)
    engine = chosen_engine(engine, frame1)
    flow = pair[0].new_zeros(2, *pair[0].shape)
    sizes = [size for size in pyramid(H, W, scales, zoom) if size == (H, W) or min(size) >= COARSEST]
    for size in sizes:
        first, second = (_resize(frame, size) for frame in pair)
        flow = _enlarge(flow, size)
        warp = _warp(first, second, engine)
        dual = None  # kept over the warps of a level, as in the IPOL program
        for _ in range(warps):
            rho_c, grad = warp.linearise(flow)
            flow, dual = solve(
                rho_c,
                grad,
                theta=theta,
                lam=lam,
                tau=tau,
                iterations=iterations,
                flow=flow,
                dual=dual,
                epsilon=epsilon,
                engine=engine,
            )
            flow = _median_filter(flow, median, engine)
    return flow.movedim(0, 2).reshape(*batch, 2, H, W)


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma of RGB frames: uint8 (..., H, W, 3) -> float32 (..., H, W) in 0..255."""
    return frames @ np.array(LUMA, np.float32)


def _frames(frame: Tensor | np.ndarray, name: str) -> Tensor:
    if not isinstance(frame, Tensor):  # a copy, since PyTorch takes no negative strides and no read-only memory
        frame = torch.from_numpy(np.array(frame, order="C"))
    if frame.is_complex() or frame.ndim < 2 or 0 in frame.shape[-2:]:
        raise ValueError(
            f"{name}: expected real grey values of shape (..., H, W), got {frame.dtype} {tuple(frame.shape)}"
        )
    floating, frame = frame.is_floating_point(), frame.float()
    if not frame.isfinite().all():
        raise ValueError(f"{name}: holds NaN or infinity; replace those pixels first")
    if floating and frame.numel():
        low, high = frame.aminmax()
        if -1 <= low < high <= 1:
            found, factor = ("0..1", 255) if low >= 0 else ("-1..1", 127.5)
            warn(f"{name} stays within {found}; lam means grey levels in 0..255: multiply the frames by {factor}")
    return frame


def pyramid(H: int, W: int, scales: int, zoom: float, whole: Callable[[float], int] = round) -> list[tuple[int, int]]:
    """(H, W) of each of `scales` levels in pixels, the coarsest first; `whole` makes a side a whole number.

    Deviation from both programs: a side of 0, which a long and narrow frame would come to, is 1.
    """
    zooms = [zoom**s for s in reversed(range(scales))]
    return [(max(whole(H * z), 1), max(whole(W * z), 1)) for z in zooms]


def _resize(frame: Tensor, size: tuple[int, int]) -> Tensor:
    if frame.shape[-2:] == size:
        return frame
    return F.interpolate(frame, size, mode="bicubic", antialias=True)


def _enlarge(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow (2, N, 1, H, W) at another size, its vectors scaled along."""
    (H, W), (h, w) = size, flow.shape[-2:]
    if (h, w) == (H, W):
        return flow
    u, v = flow
    u, v = (F.interpolate(f, size, mode="bilinear") for f in (u * (W / w), v * (H / h)))
    return torch.stack([u, v])


class Warp:
    """Frame 2 of pairs (N, 1, H, W) as a smooth surface, and frame 1 with its gradient beside it."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.spline = first, CubicSpline(second)
        _, self.slopes, _ = CubicSpline(first).warp(first.new_zeros(2, *first.shape))

    def linearise(self, flow: Tensor) -> tuple[Tensor, Tensor]:
        """rho_c (N, 1, H, W) and grad (2, N, 1, H, W) of `solve`, around a flow (2, N, 1, H, W); 0 outside frame 2.

        Deviation from both programs: they take frame 2's gradient at the flow, which is right where the step begins.
        The mean with frame 1's, which is that where a right step ends, follows the frame in between to second order,
        as the trapezoidal rule does (Wedel et al., 2009, blend the two as well).
        """
        warped, grad, inside = self.spline.warp(flow)
        grad = (grad + self.slopes) * (inside / 2)
        return (warped - self.first) * inside - (grad * flow).sum(0), grad


def _warp(first: Tensor, second: Tensor, engine: str) -> "Warp | CompiledWarp":
    if engine != "cpu":
        return Warp(first, second)
    from repflow.warp import CompiledWarp  # Numba takes a second to load

    return CompiledWarp(first, second)


def _median_filter(flow: Tensor, size: int, engine: str) -> Tensor:
    """Median over size x size windows of each component of (2, N, 1, H, W); the border is repeated."""
    if size == 1:
        return flow
    if size == 3 and engine == "cpu":
        from repflow.warp import median3

        return median3(flow)
    H, W = flow.shape[-2:]
    padded = F.pad(flow.flatten(0, 1), [size // 2] * 4, mode="replicate")
    if size == 3:  # far faster than sorting windows: neighbours share their sorted columns
        low, middle, high = _sort3(*(padded[..., i : i + H, :] for i in range(3)))
        low, middle, high = (_sort3(*(x[..., j : j + W] for j in range(3))) for x in (low, middle, high))
        return _sort3(low[2], middle[1], high[0])[1].reshape(flow.shape)
    windows = [padded[..., i : i + H, j : j + W] for i in range(size) for j in range(size)]
    return torch.stack(windows).median(0).values.reshape(flow.shape)


def _sort3(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors sorted pixel by pixel: smallest, middle, largest."""
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    b, c = torch.minimum(b, c), torch.maximum(b, c)
    return torch.minimum(a, b), torch.maximum(a, b), c
