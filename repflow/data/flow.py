"""TV-L1 flow of whole videos, in constant memory, and flow in files."""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from repflow.files import beside
from repflow.tvl1 import grey, tvl1
from repflow.video import VideoError, frame_rate, iter_frames, probe

_MAGIC = 202021.25  # what a .flo file begins with
_AT_ONCE = {"cpu": 0, "cuda": 2**21}  # pixels in a batch: a GPU is slow at small ones, a core is not


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
    pairs = pairwise(_grey_frames(path, start, count, stride, width))
    flow = None
    for t, motion in enumerate(tqdm(_between(pairs, device), desc="flow", total=count - 1, unit="frame")):
        if flow is None:
            flow = np.lib.format.open_memmap(file, "w+", np.float32, (count - 1, *motion.shape))
        flow[t] = motion
    return flow


def iter_flow(
    path: str | os.PathLike[str],
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    *,
    width: int | None = None,
    device: str = "cpu",
) -> Iterator[np.ndarray]:
    """Flow from frame t to frame t + 1 for t = start, start + stride, ...: each float32 (2, H, W), in constant memory.

    `frames` of them, or with None as many as the video has, which may be none at all. The frames are reduced to
    `width` (`narrowed`), u is to the right and v down, in pixels of the reduced frames. Unlike `video_flow`'s, it is
    always between neighbours, whatever the stride. Raises as `repflow.video.iter_frames` does.
    """
    read = None if frames is None else (frames - 1) * stride + 2
    pairs = pairwise(_grey_frames(path, start, read, 1, width))
    yield from _between(islice(pairs, 0, None, stride), device)


def write_flow_flo(video: Path, out: Path, **options: int | None) -> None:
    """Write the first flow of `video_flow` (with its options) as a .flo file, whole or not at all."""
    frames = min(2, options["frames"] or 2)
    with beside(out) as folder:
        write_flo(out, video_flow(video, folder / "flow.npy", **options | {"frames": frames})[0])


def write_flo(path: str | os.PathLike[str], flow: np.ndarray) -> None:
    """Write flow (2, H, W) in pixels in Middlebury's .flo format, float32, whole or not at all.

    Raises ValueError for another shape.
    """
    if flow.ndim != 3 or len(flow) != 2:
        raise ValueError(f"flow: expected shape (2, H, W), got {flow.shape}; a .flo file holds one flow")
    _, H, W = flow.shape
    with beside(path) as folder:
        header = struct.pack("<fii", _MAGIC, W, H)
        (folder / "whole").write_bytes(header + flow.transpose(1, 2, 0).astype("<f4").tobytes())
        (folder / "whole").replace(path)


def read_flo(path: str | os.PathLike[str]) -> np.ndarray:
    """The flow of a .flo file, float32 (2, H, W) in pixels; Middlebury's have numbers above 1e9 where it is not known.

    Raises OSError, naming the file, where it is missing, of another format or cut short.
    """
    data = Path(path).read_bytes()
    magic, W, H = struct.unpack_from("<fii", data) if len(data) >= 12 else (0, 0, 0)
    if magic != _MAGIC or min(W, H) < 1 or len(data) != 12 + 8 * W * H:
        raise OSError(
            f"{os.fspath(path)!r}: expected a .flo file, which begins with {_MAGIC}, width and height and has 8 bytes "
            f"for each pixel; it has {len(data)} bytes and begins with {data[:12]!r}; fetch or write it again"
        )
    return np.array(np.frombuffer(data, "<f4", offset=12).reshape(H, W, 2).transpose(2, 0, 1), np.float32, order="C")


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


def resize(frames: Tensor, size: Sequence[int]) -> Tensor:
    """Frames (..., C, H, W) at the size (height, width), bilinear with antialiasing; (s,) sets the shorter side.

    Equals torchvision's `resize` to the last bit; importing torchvision takes longer than reading many clips.
    """
    H, W = frames.shape[-2:]
    if len(size) == 1:
        size = (size[0], int(size[0] * W / H)) if H <= W else (int(size[0] * H / W), size[0])
    if tuple(size) == (H, W):
        return frames
    pictures = frames.reshape(-1, *frames.shape[-3:])
    return interpolate(pictures, tuple(size), mode="bilinear", antialias=True).reshape(*frames.shape[:-2], *size)


def narrowed(frame: np.ndarray, width: int | None) -> np.ndarray:
    """An RGB frame (H, W, 3) no wider than `width` px, its sides in proportion; as it is where it is, or with None."""
    H, W, _ = frame.shape
    if width is None or width >= W:
        return frame
    planes = torch.from_numpy(frame).permute(2, 0, 1)
    return resize(planes, (max(1, round(H * width / W)), width)).permute(1, 2, 0).numpy()


def _grey_frames(
    path: str | os.PathLike[str], start: int, frames: int | None, stride: int, width: int | None
) -> Iterator[Tensor]:
    for frame in iter_frames(path, start, frames, stride):
        yield torch.from_numpy(grey(narrowed(frame, width)))


def _between(pairs: Iterable[tuple[Tensor, Tensor]], device: str) -> Iterator[np.ndarray]:
    """TV-L1 flow (2, H, W) of each pair of grey frames (H, W)."""
    pairs, count = iter(pairs), 1
    while taken := list(islice(pairs, count)):
        first, second = (torch.stack(frames).to(device) for frames in zip(*taken, strict=True))
        yield from tvl1(first, second).cpu().numpy()
        count = 1 + _AT_ONCE[device] // first[0].numel()
