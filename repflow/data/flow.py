"""TV-L1 flow of whole videos, in constant memory."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize
from tqdm.auto import tqdm

from repflow.files import beside
from repflow.tvl1 import grey, tvl1
from repflow.video import VideoError, frame_rate, iter_frames, probe


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
    there = probe(path).frames
    count = len(range(start, there, stride))
    if frames is not None:
        count = min(frames, count)
    if count < 2:
        raise VideoError(
            f"{os.fspath(path)!r}: flow needs two frames, start={start}, frames={frames}, stride={stride} give {count} "
            f"of the video's {there}; take an earlier start, a smaller stride or more frames"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    taken = (narrowed(frame, width) for frame in iter_frames(path, start, count, stride))
    pictures = (torch.from_numpy(grey(frame)).to(device) for frame in taken)
    flow = None
    for t, pair in enumerate(tqdm(pairwise(pictures), desc="flow", total=count - 1, unit="frame")):
        if flow is None:
            flow = np.lib.format.open_memmap(file, "w+", np.float32, (count - 1, 2, *pair[0].shape))
        flow[t] = tvl1(*pair).cpu()
    return flow


def write_flow_npz(video: Path, out: Path, **options: int | None) -> None:
    """Write `video_flow` (with its options) to an .npz, whole or not at all: arrays `flow` and `fps`."""
    with beside(out) as folder:
        flow = video_flow(video, folder / "flow.npy", **options)
        with open(folder / "whole", "wb") as file:
            np.savez(file, flow=flow, fps=flow_rate(video, options["stride"]))
        (folder / "whole").replace(out)


def flow_rate(video: str | os.PathLike[str], stride: int) -> float:
    """Taken frames per second, 25 a second where the video does not say."""
    rate = frame_rate(video)
    return (25.0 if np.isnan(rate) else rate) / stride


def narrowed(frame: np.ndarray, width: int | None) -> np.ndarray:
    """An RGB frame (H, W, 3) no wider than `width` px, its sides in proportion; as it is where it is, or with None."""
    H, W, _ = frame.shape
    if width is None or width >= W:
        return frame
    planes = torch.from_numpy(frame).permute(2, 0, 1)
    return resize(planes, [max(1, round(H * width / W)), width]).permute(1, 2, 0).numpy()
