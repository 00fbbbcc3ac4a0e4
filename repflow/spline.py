"""Cubic B-spline interpolation of images: values and gradients between the pixels (Unser, "Splines", 1999).

Why not PyTorch's `grid_sample`: its bicubic kernel (a = -0.75) shifts a ramp by up to 0.05 px, which then is the flow's
error, and its bilinear one blurs what lies between pixels.
"""

import torch
from torch import Tensor

POLE = 3**0.5 - 2  # of the filter that turns pixels into spline coefficients
REACH = 12  # |POLE| ** 12 < 2e-7: farther pixels don't count in float32


class CubicSpline:
    """The smooth surface through an image (N, 1, H, W), mirrored at its border."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        for dim in (-1, -2):
            n = image.shape[dim]
            around = _mirror(torch.arange(-REACH, n + REACH, device=image.device), n)
            padded = image.index_select(dim, around)
            # Tap by tap: a convolution routine may round differently for an image alone and in a batch.
            image = sum(3**0.5 * POLE ** abs(k) * padded.narrow(dim, REACH + k, n) for k in range(-REACH, REACH + 1))
        self.coefficients = image

    def warp(self, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at x + flow, for flow (2, N, 1, H, W) in pixels: what the image is like when that motion is undone.

        Returns values (N, 1, H, W), the gradient (2, N, 1, H, W) per pixel, and (N, 1, H, W): 1 where x + flow lies
        inside the image, else 0; outside, values and gradient are those of the nearest border.
        """
        N, _, H, W = self.image.shape
        u, v = flow
        y = torch.arange(H, device=flow.device)[:, None] + v
        x = torch.arange(W, device=flow.device) + u
        inside = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
        columns, rows = _taps(x, W), _taps(y, H)
        flat = self.coefficients.flatten(1)
        values, d_x, d_y = torch.zeros(3, *self.image.shape, dtype=flow.dtype, device=flow.device)
        for i, weight_y, slope_y in rows:
            along, d_along = torch.zeros(2, *self.image.shape, dtype=flow.dtype, device=flow.device)
            for j, weight_x, slope_x in columns:
                c = flat.gather(1, torch.add(j, i, alpha=W).flatten(1)).view(N, 1, H, W)
                along.addcmul_(weight_x, c)
                d_along.addcmul_(slope_x, c)
            values.addcmul_(weight_y, along)
            d_x.addcmul_(weight_y, d_along)
            d_y.addcmul_(slope_y, along)
        # The sum rounds off; what does not move must stay itself, or equal frames would show a flow.
        values = torch.where((u == 0) & (v == 0), self.image, values)
        return values, torch.stack([d_x, d_y]), inside.to(values)


def _taps(x: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For coordinates x, the four neighbours that count: index, weight, and derivative of the weight."""
    x = x.clamp(0, size - 1)
    left = x.floor()
    t = x - left
    s = 1 - t
    weights = s**3 / 6, 2 / 3 - t**2 * (1 + s) / 2, 2 / 3 - s**2 * (1 + t) / 2, t**3 / 6
    slopes = -(s**2) / 2, t * (3 * t - 4) / 2, -s * (3 * s - 4) / 2, t**2 / 2
    indices = (_mirror(left.long() + k, size) for k in range(-1, 3))
    return list(zip(indices, weights, slopes, strict=True))


def _mirror(index: Tensor, size: int) -> Tensor:
    """Indices reflected into 0..size-1 about the centres of the border pixels."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index)
