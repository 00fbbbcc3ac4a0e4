"""TV-L1 flow of whole videos, in constant memory."""

import os
from itertools import pairwise

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from repflow.tvl1 import grey, tvl1
from repflow.video import VideoError, iter_frames, probe


def video_flow(
    path: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    width: int | None = None,
) -> np.ndarray:
    """Flow between successive frames of a video, as a memory map at `file` (.npy): float32 (T-1, 2, H, W).

    Frames start, start + stride, ..., at most `frames` of them, reduced to `width` (`narrowed`). u to the right and v
    down, in pixels of the reduced frames per taken frame. Shows progress. Raises VideoError where the video cannot be
    read or has fewer than two such frames.
    """
    there = len(range(start, probe(path).frames, stride))
    count = there if frames is None else min(frames, there)
    if count < 2:
        raise VideoError(f"{os.fspath(path)!r}: flow needs 2 frames, got {count}; lower --start or --stride")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frames_taken = (narrowed(frame, width) for frame in iter_frames(path, start, count, stride))
    pictures = (torch.from_numpy(grey(frame)).to(device) for frame in frames_taken)
    flow = None
    for t, pair in enumerate(tqdm(pairwise(pictures), desc="flow", total=count - 1, unit="frame")):
        if flow is None:
            flow = np.lib.format.open_memmap(file, "w+", np.float32, (count - 1, 2, *pair[0].shape))
        flow[t] = tvl1(*pair).cpu()
    return flow


def narrowed(frame: np.ndarray, width: int | None) -> np.ndarray:
    """An RGB frame (H, W, 3) no wider than `width` px, its sides in proportion; as it is where it is, or with None."""
    H, W, _ = frame.shape
    if width is None or width >= W:
        return frame
    planes = torch.from_numpy(frame).permute(2, 0, 1)
    return resize(planes, [max(1, round(H * width / W)), width]).permute(1, 2, 0).numpy()
