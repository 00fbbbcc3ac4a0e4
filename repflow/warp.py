"""What TV-L1 does between two calls of the solver, compiled for the CPU: each in one pass over the rows.

Equals in float32 what `tvl1` does for other devices and for the reference engine.
"""

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor

from repflow.solver.threads import compiled, inlined, shared
from repflow.spline import POLE, REACH

TAPS = (3**0.5 * POLE ** np.arange(REACH + 1)).astype(np.float32)  # the filter's middle and one of its equal sides
ZERO, HALF, ONE, THREE, FOUR, SIX = (np.float32(value) for value in (0, 0.5, 1, 3, 4, 6))
TWO_THIRDS = np.float32(2 / 3)


class CompiledWarp:
    """Frame 2 of pairs (N, 1, H, W) as a smooth surface, and frame 1 with its gradient beside it."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.shape = first.shape
        N, _, H, W = first.shape
        self.first, self.second = (frame.contiguous().numpy().reshape(N, H, W) for frame in (first, second))
        self.slopes = np.empty((2, N, H, W), np.float32)
        shared(_gradient, N * H, _coefficients(self.first), self.slopes)
        self.coefficients = _coefficients(self.second)

    def linearise(self, flow: Tensor) -> tuple[Tensor, Tensor]:
        """`repflow.tvl1.Warp.linearise`."""
        N, _, H, W = self.shape
        rho_c, grad = torch.empty(self.shape), torch.empty(2, *self.shape)
        arrays = (t.contiguous().numpy().reshape(2, N, H, W) for t in (flow, grad))
        images = self.first, self.second, self.coefficients, self.slopes
        shared(_linearise, N * H, *images, *arrays, rho_c.numpy().reshape(N, H, W))
        return rho_c, grad


def median3(flow: Tensor) -> Tensor:
    """Median over 3 x 3 windows of (..., H, W); the border is repeated."""
    result = torch.empty_like(flow, memory_format=torch.contiguous_format)
    *_, H, W = flow.shape
    fields = (field.numpy().reshape(-1, H, W) for field in (flow.contiguous(), result))
    shared(_median3, flow.numel() // W, *fields)
    return result


def _coefficients(images: Array) -> Array:
    """Of the cubic splines through images (N, H, W)."""
    N, H, W = images.shape
    along, coefficients = np.empty_like(images), np.empty_like(images)
    shared(_filter_along, N * H, images.reshape(-1, W), along.reshape(-1, W), TAPS)
    shared(_filter_down, N * H, along, coefficients, TAPS)
    return coefficients


@inlined
def _mirrored(index: int, size: int) -> int:
    """An index reflected into 0..size-1 about the centres of the border pixels."""
    period = max(2 * (size - 1), 1)
    index %= period
    return min(index, period - index)


@compiled
def _filter_along(first: int, last: int, image: Array, out: Array, taps: Array) -> None:
    """Rows first..last-1 of (rows, W), filtered along x."""
    W, reach = image.shape[1], taps.size - 1
    padded = np.empty(W + 2 * reach, np.float32)
    for row in range(first, last):
        for i in range(padded.size):
            padded[i] = image[row, _mirrored(i - reach, W)]
        target, middle = out[row], padded[reach : reach + W]
        for x in range(W):
            target[x] = taps[0] * middle[x]
        for k in range(1, taps.size):
            left, right = padded[reach - k : reach - k + W], padded[reach + k : reach + k + W]
            for x in range(W):
                target[x] += taps[k] * (left[x] + right[x])


@compiled
def _filter_down(first: int, last: int, image: Array, out: Array, taps: Array) -> None:
    """Rows first..last-1 of all those of (planes, H, W), filtered along y."""
    H, W = image.shape[1:]
    for row in range(first, last):
        plane, y = image[row // H], row % H
        target, middle = out[row // H, y], plane[y]
        for x in range(W):
            target[x] = taps[0] * middle[x]
        for k in range(1, taps.size):
            above, below = plane[_mirrored(y - k, H)], plane[_mirrored(y + k, H)]
            for x in range(W):
                target[x] += taps[k] * (above[x] + below[x])


@compiled
def _gradient(first: int, last: int, coefficients: Array, grad: Array) -> None:
    """At the pixels of rows first..last-1 of all those of (planes, H, W): (2, planes, H, W), x first."""
    H, W = coefficients.shape[1:]
    smooth, rise = np.empty(W + 2, np.float32), np.empty(W + 2, np.float32)
    ends = _mirrored(-1, W) + 1, _mirrored(W, W) + 1
    for row in range(first, last):
        p, y = row // H, row % H
        above, here, below = (
            coefficients[p, _mirrored(y - 1, H)],
            coefficients[p, y],
            coefficients[p, _mirrored(y + 1, H)],
        )
        for x in range(W):
            smooth[x + 1] = (above[x] + FOUR * here[x] + below[x]) / SIX
            rise[x + 1] = HALF * (below[x] - above[x])
        for line in (smooth, rise):
            line[0], line[W + 1] = line[ends[0]], line[ends[1]]
        for x in range(W):
            grad[0, p, y, x] = HALF * (smooth[x + 2] - smooth[x])
            grad[1, p, y, x] = (rise[x] + FOUR * rise[x + 1] + rise[x + 2]) / SIX


@inlined
def _weights(t: float) -> tuple[float, float, float, float]:
    """Of the four neighbours along an axis, t behind the second of them."""
    s = ONE - t
    return (
        s * s * s / SIX,
        TWO_THIRDS - t * t * (ONE + s) * HALF,
        TWO_THIRDS - s * s * (ONE + t) * HALF,
        t * t * t / SIX,
    )


@inlined
def _slopes(t: float) -> tuple[float, float, float, float]:
    """Derivatives of the weights."""
    s = ONE - t
    return -s * s * HALF, t * (THREE * t - FOUR) * HALF, -s * (THREE * s - FOUR) * HALF, t * t * HALF


@inlined
def _neighbours(left: int, size: int) -> tuple[int, int, int, int]:
    if 1 <= left < size - 2:
        return left - 1, left, left + 1, left + 2
    return _mirrored(left - 1, size), left, _mirrored(left + 1, size), _mirrored(left + 2, size)


@inlined
def _sum4(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]


@compiled
def _linearise(
    first: int, last: int, image1: Array, image2: Array, coefficients: Array, rise1: Array, flow: Array, grad: Array,
    rho_c: Array,
) -> None:  # fmt: skip
    """Rows first..last-1 of all those of (planes, H, W): see `CompiledWarp.linearise`."""
    H, W = image1.shape[1:]
    right, bottom = np.float32(W - 1), np.float32(H - 1)
    for row in range(first, last):
        p, i = row // H, row % H
        plane = coefficients[p]
        for j in range(W):
            u, v = flow[0, p, i, j], flow[1, p, i, j]
            x, y = np.float32(j) + u, np.float32(i) + v
            if not (ZERO <= x <= right and ZERO <= y <= bottom):
                rho_c[p, i, j] = grad[0, p, i, j] = grad[1, p, i, j] = ZERO
                continue
            left, top = int(x), int(y)
            t_x, t_y = x - np.float32(left), y - np.float32(top)
            weights, slopes, weights_y = _weights(t_x), _slopes(t_x), _weights(t_y)
            a, b, c, d = _neighbours(left, W)
            e, f, g, h = _neighbours(top, H)
            row0 = plane[e, a], plane[e, b], plane[e, c], plane[e, d]
            row1 = plane[f, a], plane[f, b], plane[f, c], plane[f, d]
            row2 = plane[g, a], plane[g, b], plane[g, c], plane[g, d]
            row3 = plane[h, a], plane[h, b], plane[h, c], plane[h, d]
            values = _sum4(weights, row0), _sum4(weights, row1), _sum4(weights, row2), _sum4(weights, row3)
            d_x = _sum4(weights_y, (_sum4(slopes, row0), _sum4(slopes, row1), _sum4(slopes, row2), _sum4(slopes, row3)))
            d_y = _sum4(_slopes(t_y), values)
            d_x, d_y = HALF * (d_x + rise1[0, p, i, j]), HALF * (d_y + rise1[1, p, i, j])
            # The sum rounds off; what does not move must stay itself, or equal frames would show a flow.
            value = image2[p, i, j] if u == ZERO and v == ZERO else _sum4(weights_y, values)
            grad[0, p, i, j], grad[1, p, i, j] = d_x, d_y
            rho_c[p, i, j] = value - image1[p, i, j] - (d_x * u + d_y * v)


@inlined
def _sorted3(a: float, b: float, c: float) -> tuple[float, float, float]:
    a, b = min(a, b), max(a, b)
    b, c = min(b, c), max(b, c)
    return min(a, b), max(a, b), c


@compiled
def _median3(first: int, last: int, field: Array, out: Array) -> None:
    """Rows first..last-1 of all those of (planes, H, W). Neighbours share their sorted columns."""
    H, W = field.shape[1:]
    low, middle, high = np.empty(W + 2, np.float32), np.empty(W + 2, np.float32), np.empty(W + 2, np.float32)
    for row in range(first, last):
        plane, y = field[row // H], row % H
        above, here, below, target = plane[max(y - 1, 0)], plane[y], plane[min(y + 1, H - 1)], out[row // H, y]
        for x in range(W):
            low[x + 1], middle[x + 1], high[x + 1] = _sorted3(above[x], here[x], below[x])
        for column in (low, middle, high):
            column[0], column[W + 1] = column[1], column[W]
        for x in range(W):
            a = max(low[x], low[x + 1], low[x + 2])
            b = _sorted3(middle[x], middle[x + 1], middle[x + 2])[1]
            c = min(high[x], high[x + 1], high[x + 2])
            target[x] = _sorted3(a, b, c)[1]
