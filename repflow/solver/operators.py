"""Differences of images and flow fields, with kernels that can be learned.

A kernel is a tensor of shape (L, C, taps). L is 1, or the number of iterations when every iteration has its own kernel
(TVNet); C is 1, or the number of channels. `taps` is 3 for the image gradient, and 2 for the gradient of the
flow and for the divergence.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

X, Y = -1, -2  # the axes of (..., H, W)


class Kernels(NamedTuple):
    """The solver's difference kernels, each of shape (L, C, taps); see the module's docstring."""

    image_x: Tensor
    image_y: Tensor
    flow_x: Tensor
    flow_y: Tensor
    div_x: Tensor
    div_y: Tensor

    def to(self, like: Tensor) -> "Kernels":
        """The kernels in the dtype and on the device of `like`."""
        return Kernels(*(kernel.to(like) for kernel in self))

    def at(self, iteration: int) -> "Kernels":
        """The kernels of one iteration, each (C, taps)."""
        return Kernels(*(kernel[min(iteration, len(kernel) - 1)] for kernel in self))

    def gradient(self, flow: Tensor) -> Tensor:
        """(d/dx, d/dy) of (..., C, H, W), stacked in front; for the kernels of one iteration."""
        return torch.stack([forward_difference(flow, self.flow_x, X), forward_difference(flow, self.flow_y, Y)])

    def divergence(self, dual: Tensor) -> Tensor:
        """Divergence of (2, ..., C, H, W), the first axis being x and y; for the kernels of one iteration."""
        return backward_difference(dual[0], self.div_x, X) + backward_difference(dual[1], self.div_y, Y)


def classical_kernels(device: torch.device | None = None) -> Kernels:
    """Central differences of the image, forward ones of the flow, backward ones for the divergence (Zach 2007)."""
    # Made on the device: a copy would make a GPU wait.
    centred = torch.arange(-0.5, 1.0, 0.5, device=device).view(1, 1, 3)
    one_sided = torch.arange(-1.0, 2.0, 2.0, device=device).view(1, 1, 2)
    return Kernels(centred, centred, one_sided, one_sided, one_sided, one_sided)


def image_gradient(frame: Tensor, kernel_x: Tensor, kernel_y: Tensor, border_frame: Tensor | None = None) -> Tensor:
    """Spatial gradient of `frame` (N, C, H, W), as (2, N, C, H, W): d/dx, d/dy in grey levels per pixel.

    Kernels are (C, 3). At the border the frame is continued linearly, so that the classical kernel gives the
    frame's one-sided difference there. With `border_frame`, border values are half the one-sided difference of
    *that* frame instead, whatever the kernel: what the 2019 layers compute, with frame 1.
    """
    return torch.stack([_centred_difference(frame, k, dim, border_frame) for k, dim in ((kernel_x, X), (kernel_y, Y))])


def replace_border(difference: Tensor, frame: Tensor, dim: int) -> Tensor:
    """`difference` with its two ends along `dim` replaced by half the one-sided differences of `frame`."""
    n = frame.shape[dim]
    one_sided = frame.diff(dim=dim) / 2
    ends = one_sided.narrow(dim, 0, 1), one_sided.narrow(dim, n - 2, 1)
    return torch.cat([ends[0], difference.narrow(dim, 1, n - 2), ends[1]], dim)


def forward_difference(flow: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """k0 f[i] + k1 f[i+1] along `dim` of (..., C, H, W), and 0 at the last place. `kernel` is (C, 2)."""
    n = flow.shape[dim] - 1
    k0, k1 = _taps(kernel)
    return _pad(k0 * flow.narrow(dim, 0, n) + k1 * flow.narrow(dim, 1, n), dim, 0, 1)


def backward_difference(dual: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """k0 p[i-1] + k1 p[i] along `dim` of (..., C, H, W), where p is 0 before the first and at the last place.

    With the classical kernel this is the negative adjoint of `forward_difference`: one axis of the divergence.
    """
    inner = dual.narrow(dim, 0, dual.shape[dim] - 1)
    k0, k1 = _taps(kernel)
    return _pad(k0 * inner, dim, 1, 0) + _pad(k1 * inner, dim, 0, 1)


def _centred_difference(frame: Tensor, kernel: Tensor, dim: int, border_frame: Tensor | None) -> Tensor:
    n = frame.shape[dim]
    if n < 2:  # a line one pixel wide has no difference across
        return torch.zeros_like(frame)
    first, last = frame.narrow(dim, 0, 1), frame.narrow(dim, n - 1, 1)
    before, after = 2 * first - frame.narrow(dim, 1, 1), 2 * last - frame.narrow(dim, n - 2, 1)
    padded = torch.cat([before, frame, after], dim)
    k0, k1, k2 = _taps(kernel)
    left, centre, right = (padded.narrow(dim, i, n) for i in range(3))
    difference = torch.addcmul(torch.addcmul(k0 * left, k1, centre), k2, right)
    return difference if border_frame is None else replace_border(difference, border_frame, dim)


def _taps(kernel: Tensor) -> tuple[Tensor, ...]:
    """The taps of a (C, taps) kernel, each shaped to multiply (..., C, H, W)."""
    return kernel[..., None, None].unbind(-3)


def _pad(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    return F.pad(x, (before, after) if dim == X else (0, 0, before, after))
