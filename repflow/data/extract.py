"""TV-L1 flow of a whole data set, extracted once, for two-stream training: for each video one lossless video of flow.

The flow from frame t to frame t + 1 is one grey picture, u above v (2H x W), clipped to 20 pixels a frame: bytes 1 to
255, 128 for no motion. It is coded as FFV1, each picture on its own, in Matroska, about 100 KB for a second of 320x240.
"""

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import av
import numpy as np
import torch
from tqdm.auto import tqdm

from repflow.data.flow import flow_rate, iter_flow
from repflow.data.lists import PathLike, find_videos, quarantine_test
from repflow.tvl1 import LARGEST
from repflow.video import VideoError, open_video
from repflow.video.write import BITEXACT, BITEXACT_CODEC, write_video

_log = logging.getLogger(__name__)
_RULE = f"flow, u above v: (value - 128) * {LARGEST:g} / 127 px/frame"
_stop: Event | None = None  # in a worker: set once the parent wants it to end

Job = tuple[Path, Path, int | None, str]  # video, file for its flow, width, device


class Extraction(NamedTuple):
    """The videos whose flow was extracted, those whose flow was there, and what was wrong with the others."""

    done: list[Path]
    skipped: list[Path]
    failed: dict[Path, str]


def extract_flow(
    root: PathLike,
    out: PathLike | None = None,
    *,
    workers: int | None = None,
    width: int | None = None,
    quarantine: PathLike | None = None,
) -> Extraction:
    """Extract the flow of every video under `root` to `flow_file` under `out` (default: root's name with -flow).

    Each file appears whole or not at all. One that is newer than its video, and of the same `width` (wider frames are
    reduced first), is kept: a run that was stopped goes on where it was. A video that cannot be read is in `failed`,
    and the others go on. Those that `quarantine` names (as in the loaders) are left out; the log tells how many.
    `workers` processes share the videos, by default one for each of PyTorch's threads; where there is a GPU, one does
    it all there, unless told more. Shows progress. Raises ValueError for workers or width below 1, OSError where one
    folder contains the other, there is no video, or a process died.
    """
    if not all(number is None or number >= 1 for number in (workers, width)):
        raise ValueError(f"expected workers >= 1 and width >= 1, got {workers=}, {width=}")
    root, out = _folders(root, out)
    device = "cuda" if torch.cuda.is_available() and workers in (None, 1) else "cpu"
    result, jobs = Extraction([], [], {}), []
    for video in _videos(root, quarantine):
        file = flow_file(video, root, out)
        if _is_done(video, file, width):
            result.skipped.append(video)
        else:
            jobs.append((video, file, width, device))
    workers = min(len(jobs), workers or (1 if device == "cuda" else torch.get_num_threads()))
    outcomes = _in_processes(jobs, workers) if workers > 1 else ((job[0], _extract(*job)) for job in jobs)
    with closing(outcomes):  # at once, not when a traceback that holds it is gone: ctrl-C ends the processes
        for video, problem in tqdm(outcomes, desc="flow", total=len(jobs), unit="video"):
            if problem is None:
                result.done.append(video)
            else:
                result.failed[video] = problem
    return result


def _videos(root: Path, quarantine: PathLike | None) -> list[Path]:
    """The videos under `root` that are not in the quarantine. Raises FileNotFoundError where there is none."""
    is_bad = quarantine_test(root, quarantine)
    videos = [root / name for name in find_videos(root)]
    good = [video for video in videos if not is_bad(video)]
    if not good:
        raise FileNotFoundError(f"{str(root)!r}: all of its {len(videos)} videos are in the quarantine; mend that list")
    if len(good) < len(videos):
        _log.info("%r: %d videos are in the quarantine: left out", str(root), len(videos) - len(good))
    return good


def flow_file(video: str | os.PathLike[str], root: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Where the flow of a video under `root` lies: under `folder`, at the same place, with .mkv behind its whole name.

    Raises ValueError for a video that does not lie under `root`.
    """
    place = Path(os.path.abspath(video)).relative_to(os.path.abspath(root))
    return Path(folder, f"{place}.mkv")


def read_flow(path: str | os.PathLike[str], start: int = 0, frames: int | None = None, stride: int = 1) -> np.ndarray:
    """Flow start, start + stride, ... of a file that `extract_flow` wrote: float32 (T, 2, H, W), in pixels a frame.

    T is `frames`, or with None as many as there are. Each is the flow from a frame to the very next one, whatever the
    stride. Raises ValueError for start < 0, frames < 1 or stride < 1, and VideoError where the file is missing,
    damaged, of another kind or too short.
    """
    if start < 0 or stride < 1 or (frames is not None and frames < 1):
        raise ValueError(f"expected start >= 0, frames >= 1, stride >= 1, got {start=}, {frames=}, {stride=}")
    path = os.fspath(path)
    stop = None if frames is None else start + (frames - 1) * stride + 1
    with open_video(path) as stream:
        if not _title(stream).startswith(_RULE):
            raise VideoError(f"{path!r}: expected a file that `extract_flow` wrote, found another video; extract again")
        # Every packet is a picture of its own, so those before it need not be decoded; time stamps are not trusted.
        packets = islice((packet for packet in stream.container.demux(stream) if packet.size), start, stop, stride)
        pictures = [frame.to_ndarray(format="gray") for packet in packets for frame in packet.decode()]
    if len(pictures) < (frames or 1):
        raise VideoError(
            f"{path!r}: {start=}, {frames=}, {stride=} need at least {stop or start + 1} pictures of flow, there are "
            "fewer; ask for fewer, for a smaller start or stride, or extract again"
        )
    bytes_ = np.stack(pictures)
    return from_bytes(bytes_.reshape(len(bytes_), 2, -1, bytes_.shape[-1]))


def flow_of_clip(
    video: str | os.PathLike[str],
    start: int,
    frames: int,
    stride: int,
    folder: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Flow at the frames t = start, start + stride, ... of a video, from t to t + 1: float32 (frames, 2, H, W), pixels.

    Not the motion from one taken frame to the next, which a sum of this flow would not give either: two-stream
    networks are trained on flow between neighbours. The video needs a frame after the last one that is taken.

    Read from `folder`, where `extract_flow` wrote the flow of the videos under `root`; computed by TV-L1 on the CPU
    where `folder` is None. Extracted flow is rounded to 20/127 px, clipped to 20 px, and of the size it was extracted
    at. Raises VideoError and ValueError as `read_flow` and `repflow.video.read_clip` do.
    """
    if (folder is None) != (root is None):
        raise ValueError(f"expected folder and root, or none of them, got {folder=}, {root=}")
    if folder is None:
        return np.stack(list(iter_flow(video, start, frames, stride)))
    return read_flow(flow_file(video, root, folder), start, frames, stride)


def to_bytes(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels, any shape, as uint8: round(flow * 127 / 20) + 128 after clipping to -20..20, so 1 to 255."""
    return (np.rint(np.clip(flow, -LARGEST, LARGEST) * (127 / LARGEST)) + 128).astype(np.uint8)


def from_bytes(values: np.ndarray) -> np.ndarray:
    """Float32 flow in pixels from `to_bytes`'s values; within 10/127 px of what it was, where it was not clipped."""
    return (values.astype(np.float32) - 128) * np.float32(LARGEST / 127)


def _folders(root: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    root = Path(os.path.abspath(root))
    out = Path(os.path.abspath(out or f"{root}-flow"))
    flow, videos = out.resolve(), root.resolve()
    if flow.is_relative_to(videos) or videos.is_relative_to(flow):  # flow would be taken for a video, or replace one
        raise OSError(f"out: expected a folder apart from {str(root)!r}, got {str(out)!r}; choose another")
    return root, out


def _in_processes(jobs: list[Job], workers: int) -> Iterator[tuple[Path, str | None]]:
    """Each job's video and what `_extract` returns, as they come. Closing it ends the processes, in a frame's time."""
    context = get_context("spawn")  # a forked process would have PyTorch's locks, but not its threads
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (stop,)) as pool:
        try:
            videos = {pool.submit(_extract, *job): job[0] for job in jobs}
            for future in as_completed(videos):
                yield videos[future], future.result()
        except BrokenProcessPool as error:
            raise OSError(
                "a process that extracts flow died, perhaps for want of memory; take fewer workers and start again: "
                "finished files are kept"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches every process; the parent tells the others
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # nobody is left to wait for


def _extract(video: Path, file: Path, width: int | None, device: str) -> str | None:
    """Write a video's flow, whole or not at all; returns what went wrong."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(
            file, _pictures(video, width, device), "ffv1", flow_rate(video, 1),
            pixels="gray", title=_rule(width), container=BITEXACT, level="3", g="1", **BITEXACT_CODEC,
        )  # fmt: skip
    except Exception as error:  # whatever it is, it must not cost the other videos a night's work
        return str(error) if isinstance(error, VideoError) else f"{str(video)!r}: {type(error).__name__}: {error}"
    return None


def _pictures(video: Path, width: int | None, device: str) -> Iterator[np.ndarray]:
    """Each frame's flow as uint8 (2H, W). Raises VideoError where there is none."""
    flow = None
    for flow in iter_flow(video, width=width, device=device):
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt
        yield to_bytes(flow).reshape(-1, flow.shape[-1])
    if flow is None:
        raise VideoError(f"{str(video)!r}: flow needs two frames, the video has one; leave it out")


def _is_done(video: Path, file: Path, width: int | None) -> bool:
    try:
        with open_video(file) as stream:
            return _title(stream) == _rule(width) and file.stat().st_mtime > video.stat().st_mtime
    except OSError:  # VideoError is one; or the video is a link to nothing, which the attempt to read it will tell
        return False


def _rule(width: int | None) -> str:
    """The title of a file, all that is needed to read it; `width` tells a file that must be made again."""
    return _RULE if width is None else f"{_RULE}; frames at most {width} px wide"


def _title(stream: av.VideoStream) -> str:
    return stream.container.metadata.get("title", "")
