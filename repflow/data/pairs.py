"""Pairs of generated frames whose flow is known exactly."""

import numpy as np

from repflow.data.synthetic import motion, render
from repflow.tvl1 import grey


def moving_pair(kind: str, speed: float, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two grey frames (size, size) in 0..255 that move as a class of SyntheticMotion, and their flow (2, size, size).

    speed: mean motion over the square, in pixels per frame.

    >>> frame1, frame2, flow = moving_pair("right", 1.5, 64)
    >>> flow[:, 0, 0]
    array([1.5, 0. ])
    """
    frame1, frame2 = grey(render(kind, np.random.default_rng(seed), size, 2, speed))
    right, down, turn, growth = motion(kind, speed, size, 2)[1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    c, s = np.exp(growth) * np.array([np.cos(turn), np.sin(turn)])
    return frame1, frame2, np.stack([c * x - s * y + right - x, s * x + c * y + down - y])
