"""TV-L1 flow of a whole data set, extracted once, for two-stream training: for each video one lossless video of flow.

The format of these files is that of `repflow.data.flow`.
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from repflow.data.flow import (
    flow_file,
    flow_of_clip,
    flow_rate,
    flow_title,
    from_bytes,
    has_title,
    iter_flow,
    read_flow,
    to_bytes,
    write_flow,
)
from repflow.data.lists import PathLike, find_videos, quarantine_test
from repflow.processes import end_with_parent, fresh_processes
from repflow.video import VideoError

__all__ = ["Extraction", "extract_flow", "flow_file", "flow_of_clip", "from_bytes", "read_flow", "to_bytes"]

_log = logging.getLogger(__name__)

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
    it all there, unless told more. Shows progress; ctrl-C lets the videos in work finish. Raises ValueError for workers
    or width below 1, OSError where one folder contains the other, there is no video, or a process died.

        extract_flow("data/hmdb51", workers=8)  # to data/hmdb51-flow
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
    with closing(outcomes):  # at once, not when a traceback that holds it is gone: no process is left after ctrl-C
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


def _folders(root: PathLike, out: PathLike | None) -> tuple[Path, Path]:
    root = Path(os.path.abspath(root))
    out = Path(os.path.abspath(out or f"{root}-flow"))
    flow, videos = out.resolve(), root.resolve()
    if flow.is_relative_to(videos) or videos.is_relative_to(flow):  # flow would be taken for a video, or replace one
        raise OSError(f"out: expected a folder apart from {str(root)!r}, got {str(out)!r}; choose another")
    return root, out


def _in_processes(jobs: list[Job], workers: int) -> Iterator[tuple[Path, str | None]]:
    """Each job's video and what `_extract` returns, as they come. Closing it waits for the videos in work."""
    with ProcessPoolExecutor(workers, fresh_processes("__main__", __name__), _start_worker) as pool:
        try:
            videos = {pool.submit(_extract, *job): job[0] for job in jobs}
            for future in as_completed(videos):
                yield videos[future], future.result()
        except KeyboardInterrupt:
            _log.info("stopping: the videos in work, one in each process, are finished first")
            raise
        except BrokenProcessPool as error:
            raise OSError(
                "a process that extracts flow died, perhaps for want of memory; take fewer workers and start again: "
                "finished files are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _extract(video: Path, file: Path, width: int | None, device: str) -> str | None:
    """Write a video's flow, whole or not at all; returns what went wrong."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_flow(file, _flow(video, width, device), flow_rate(video, 1), width)
    except Exception as error:  # whatever it is, it must not cost the other videos a night's work
        return str(error) if isinstance(error, VideoError) else f"{str(video)!r}: {type(error).__name__}: {error}"
    return None


def _flow(video: Path, width: int | None, device: str) -> Iterator[np.ndarray]:
    """The flow of each frame. Raises VideoError where there is none."""
    flow = None
    for flow in iter_flow(video, width=width, device=device):
        yield flow
    if flow is None:
        raise VideoError(f"{str(video)!r}: flow needs two frames, the video has one; leave it out")


def _is_done(video: Path, file: Path, width: int | None) -> bool:
    try:
        return has_title(file, flow_title(width)) and file.stat().st_mtime > video.stat().st_mtime
    except OSError:  # VideoError is one; or the video is a link to nothing, which the attempt to read it will tell
        return False
