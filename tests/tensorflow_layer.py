"""The flow of the authors' later layer, in NumPy: the one of 2020 in TensorFlow's models, assemblenet (Apache-2.0).

Written from what it computes, for comparison: the whole batch scaled to 0..255 by minimum and maximum, not where
they are equal; kernels [-.5, 0, .5] and [-1, 1] for each channel by itself, in both directions; 20 iterations; zeros
around every map, the flow's last column included; 1e-12 beside |grad|^2, rho, theta and inside the square root.
"""

import numpy as np


def tensorflow_flow(x, iterations=20, theta=0.3, lam=0.15, tau=0.25):
    """Flow (2, B, C, T, H, W) of maps (B, C, T, H, W): u, v from each frame to the next, the last one repeated."""
    span, theta = x.max() - x.min(), abs(theta) + 1e-12
    x = 255 * (x - x.min()) / span if span else x
    first, second = x[:, :, :-1], x[:, :, 1:]
    slope = np.stack([(_at(second, 1, axis) - _at(second, -1, axis)) / 2 for axis in (-1, -2)])
    steepness = (slope**2).sum(0) + 1e-12
    flow, dual = np.zeros_like(slope), np.zeros((2, *slope.shape))  # dual: of u and v, its two parts
    for _ in range(iterations):
        rho = second - first + (slope * flow).sum(0) + 1e-12
        flow = flow + np.clip(-rho / steepness, -lam * theta, lam * theta) * slope
        flow = flow + theta * np.stack([_divergence(p) for p in dual])
        rise = np.stack([[_at(f, 1, axis) - f for axis in (-1, -2)] for f in flow])
        dual = (dual + tau / theta * rise) / (1 + tau / theta * np.sqrt((rise**2).sum(1, keepdims=True) + 1e-12))
    return np.concatenate([flow, flow[:, :, :, -1:]], axis=3)


def _divergence(dual):
    total = 0
    for part, axis in zip(dual, (-1, -2), strict=True):
        part = part.copy()
        np.moveaxis(part, axis, -1)[..., -1] = 0
        total = total + part - _at(part, -1, axis)
    return total


def _at(maps, step, axis):
    """The value `step` places further along the axis, 0 outside."""
    moved = np.zeros_like(maps)
    to, of = np.moveaxis(moved, axis, -1), np.moveaxis(maps, axis, -1)
    to[..., max(-step, 0) : maps.shape[axis] - max(step, 0)] = of[..., max(step, 0) : maps.shape[axis] - max(-step, 0)]
    return moved
