"""TV-L1 flow of whole videos, in constant memory, and flow in files.

A file of extracted flow belongs to one video. Its flow from frame t to frame t + 1 is one grey picture, u above v
(2H x W), clipped to 20 pixels a frame: bytes 1 to 255, 128 for no motion. It is coded as FFV1, each picture on its own,
in Matroska, about 100 KB for a second of 320 x 240.
"""

import os
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from repflow.data.lists import PathLike
from repflow.files import beside
from repflow.tvl1 import LARGEST, grey, tvl1
from repflow.video import VideoError, frame_rate, iter_frames, open_video, probe
from repflow.video.reading import choose_frames
from repflow.video.write import BITEXACT, BITEXACT_CODEC, write_video

_MAGIC = 202021.25  # what a .flo file begins with
AT_ONCE = {"cpu": 2**16, "cuda": 2**21}  # pixels in a batch: small pictures cost more to call for than to compute


def video_flow(
    path: PathLike,
    file: PathLike,
    *,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    width: int | None = None,
) -> np.ndarray:
    """Flow between successive frames of a video, as a memory map at `file` (.npy): float32 (T-1, 2, H, W).

    Frames start, start + stride, ..., at most `frames` of them, reduced to `width` (`narrowed`). u to the right and v
    down, in pixels of the reduced frames per chosen frame. Shows progress. Raises VideoError where the video cannot be
    read or has fewer than two such frames.

        flow = video_flow("a.mp4", "flow.npy", width=320)  # (T-1, 2, H, W)
    """
    length = probe(path).frames
    count = len(range(start, length, stride)[:frames])
    if count < 2:
        raise VideoError(
            f"{os.fspath(path)!r}: flow needs two frames, start={start}, frames={frames}, stride={stride} give {count} "
            f"of the video's {length}; take an earlier start, a smaller stride or more frames"
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
    path: PathLike,
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


def write_flo(path: PathLike, flow: np.ndarray) -> None:
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


def read_flo(path: PathLike) -> np.ndarray:
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


def flow_file(video: PathLike, root: PathLike, folder: PathLike) -> Path:
    """The file with the flow of a video under `root`: at the same place under `folder`, .mkv behind its whole name.

    Raises ValueError for a video that does not lie under `root`.
    """
    relative = Path(os.path.abspath(video)).relative_to(os.path.abspath(root))
    return Path(folder, f"{relative}.mkv")


def flow_title(width: int | None = None) -> str:
    """The title of a file of extracted flow, which says how to read it; frames were reduced to `width` first."""
    title = f"flow, u above v: (value - 128) * {LARGEST:g} / 127 px/frame"
    return title if width is None else f"{title}; frames at most {width} px wide"


def has_title(path: PathLike, title: str) -> bool:
    """Whether a video has just this title. Raises VideoError where it cannot be read."""
    with open_video(path) as stream:
        return _title(stream) == title


def write_flow(path: PathLike, flow: Iterable[np.ndarray], fps: float, width: int | None = None) -> None:
    """Write the flow from each frame to the next, (2, H, W) in pixels, as a file that `read_flow` reads.

    The same flow gives the same bytes: FFV1, each picture on its own. `width` goes into the file's title.
    """
    pictures = (to_bytes(motion).reshape(-1, motion.shape[-1]) for motion in flow)
    coding = {"level": "3", "g": "1", **BITEXACT_CODEC}
    write_video(path, pictures, "ffv1", fps, pixels="gray", title=flow_title(width), container=BITEXACT, **coding)


def read_flow(path: PathLike, start: int = 0, frames: int | None = None, stride: int = 1) -> np.ndarray:
    """Flow start, start + stride, ... of a file that `extract_flow` wrote: float32 (T, 2, H, W), in pixels a frame.

    T is `frames`, or with None as many as there are. Each is the flow from a frame to the very next one, whatever the
    stride. Raises ValueError for start < 0, frames < 1 or stride < 1, and VideoError where the file is missing,
    damaged, of another kind or too short.
    """
    if start < 0 or stride < 1 or (frames is not None and frames < 1):
        raise ValueError(f"expected start >= 0, frames >= 1, stride >= 1, got {start=}, {frames=}, {stride=}")
    numbers = range(start, sys.maxsize if frames is None else start + frames * stride, stride)
    return from_bytes(np.stack(list(_stored(path, numbers, needed=frames or 1))))


def flow_of_clip(
    video: PathLike, start: int, frames: int, stride: int, folder: PathLike | None = None, root: PathLike | None = None
) -> np.ndarray:
    """Flow at the frames t = start, start + stride, ... of a video, from t to t + 1: float32 (frames, 2, H, W), pixels.

    Not the motion from one taken frame to the next, which a sum of this flow would not give either: two-stream
    networks are trained on flow between neighbours. The video needs a frame after the last one that is taken.

    Read or computed as by `flow_at`, which raises as well.
    """
    return np.stack(list(flow_at(video, range(start, start + frames * stride, stride), folder, root)))


def flow_at(
    video: PathLike, numbers: Sequence[int], folder: PathLike | None = None, root: PathLike | None = None
) -> Iterator[np.ndarray]:
    """Flow from each frame of these ascending numbers to the very next one: each float32 (2, H, W), in pixels.

    Read from `folder`, where `extract_flow` wrote the flow of the videos under `root`; computed by TV-L1 on the CPU
    where `folder` is None. No picture is decoded twice. Extracted flow is rounded to 20/127 px, clipped to 20 px, and
    of the size it was extracted at. Raises VideoError and ValueError as `read_flow` and `read_clip` do.

        first, second = flow_at("a.avi", [0, 7])  # from frame 0 to 1, and from 7 to 8
    """
    if (folder is None) != (root is None):
        raise ValueError(f"expected folder and root, or none of them, got {folder=}, {root=}")
    if not len(numbers) or numbers[0] < 0:
        raise ValueError(f"expected ascending numbers of frames, the first >= 0, got {numbers}")
    if folder is not None:
        yield from map(from_bytes, _stored(flow_file(video, root, folder), numbers, needed=len(numbers)))
        return
    wanted = np.union1d(numbers, np.add(numbers, 1)).tolist()
    frames = (torch.from_numpy(grey(frame)) for frame in choose_frames(video, wanted))
    pairs = pairwise(zip(wanted, frames, strict=True))
    chosen = set(numbers)
    yield from _between(((first, second) for (t, first), (_, second) in pairs if t in chosen), "cpu")


def to_bytes(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels, any shape, as uint8: round(flow * 127 / 20) + 128 after clipping to -20..20, so 1 to 255."""
    return (np.rint(np.clip(flow, -LARGEST, LARGEST) * (127 / LARGEST)) + 128).astype(np.uint8)


def from_bytes(values: np.ndarray) -> np.ndarray:
    """Float32 flow in pixels from `to_bytes`'s values; within 10/127 px of what it was, where it was not clipped."""
    return (values.astype(np.float32) - 128) * np.float32(LARGEST / 127)


def flow_rate(video: PathLike, stride: int) -> float:
    """Chosen frames per second: the video's rate over `stride`, where the video names none 25 over `stride`."""
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


def resize_frame(frame: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """`resize` for one RGB frame (H, W, 3)."""
    planes = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)  # mirrored ones have negative strides
    return resize(planes, size).permute(1, 2, 0).numpy()


def narrowed(frame: np.ndarray, width: int | None) -> np.ndarray:
    """An RGB frame (H, W, 3) no wider than `width` px, its sides in proportion; as it is where it is, or with None."""
    H, W, _ = frame.shape
    if width is None or width >= W:
        return frame
    return resize_frame(frame, (max(1, round(H * width / W)), width))


def _grey_frames(path: PathLike, start: int, frames: int | None, stride: int, width: int | None) -> Iterator[Tensor]:
    for frame in iter_frames(path, start, frames, stride):
        yield torch.from_numpy(grey(narrowed(frame, width)))


def _between(pairs: Iterable[tuple[Tensor, Tensor]], device: str) -> Iterator[np.ndarray]:
    """TV-L1 flow (2, H, W) of each pair of grey frames (H, W)."""
    pairs, count = iter(pairs), 1
    while batch := list(islice(pairs, count)):
        first, second = (torch.stack(frames).to(device) for frames in zip(*batch, strict=True))
        yield from tvl1(first, second).cpu().numpy()
        count = 1 + AT_ONCE[device] // first[0].numel()


def _stored(path: PathLike, numbers: Sequence[int], needed: int) -> Iterator[np.ndarray]:
    """Pictures of these ascending numbers, bytes (2, H, W), of a file that `extract_flow` wrote.

    Raises VideoError where that has fewer than `needed` of them.
    """
    path, found = os.fspath(path), 0
    with open_video(path) as stream:
        if not _title(stream).startswith(flow_title()):
            raise VideoError(f"{path!r}: expected a file that `extract_flow` wrote, found another video; extract again")
        # Every packet is a picture of its own, so the others need not be decoded; time stamps are not trusted.
        packets = (packet for packet in stream.container.demux(stream) if packet.size)
        for number, packet in enumerate(packets):
            if number in numbers:
                for frame in packet.decode():
                    yield frame.to_ndarray(format="gray").reshape(2, -1, frame.width)
                    found += 1
            if number >= numbers[-1]:
                break
    if found < needed:
        raise VideoError(
            f"{path!r}: expected {needed} pictures of flow, from number {numbers[0]} on, there are {found}; ask for "
            "fewer, for a smaller start or stride, or extract again"
        )


def _title(stream: av.VideoStream) -> str:
    return stream.container.metadata.get("title", "")
