"""What callers hand over: whole numbers of any kind, clips, and warnings that point at the caller's line."""

import operator
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

OURS = tuple(f"{Path(file).parent}/" for file in (__file__, torch.__file__))


def whole_number(name: str, value: Any, least: int) -> int:
    """The argument `name` as an int, be it Python's, NumPy's or another's; no bool. Raises ValueError below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return number


def check_clips(x: torch.Tensor, channels: int, frames: int, side: int = 1, kind: str = "clips") -> None:
    """Raise ValueError unless `x` is (B, channels, T, H, W) with so many frames, and pixels on each side, or more."""
    if x.ndim != 5 or x.shape[1] != channels or x.shape[2] < frames or min(x.shape[3:]) < side:
        raise ValueError(
            f"expected {kind} (B, {channels}, T, H, W) with T >= {frames}, H and W >= {side}, "
            f"got a tensor of shape {tuple(x.shape)}"
        )


def warn(message: str) -> None:
    """Warn at the innermost line that is neither this package's nor PyTorch's, through whatever wrappers it came."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
