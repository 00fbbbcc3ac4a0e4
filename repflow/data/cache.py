"""Decoded videos, kept as files of small frames: decoding takes most of the time of a small network's training."""

import hashlib
import os
from pathlib import Path

import numpy as np

from repflow.data.flow import resize_frame
from repflow.files import beside
from repflow.video import VideoError, iter_frames


def cached_frames(path: str | os.PathLike[str], size: int | None, folder: str | os.PathLike[str]) -> np.ndarray:
    """All frames of a video, the shorter side `size` px (None: as they are): uint8 RGB (T, H, W, 3), read from a file.

    They are decoded at the first call and kept in `folder`, which is made where there is none, as an .npy file whose
    name has the video's size in bytes and time of change: a video that changes is decoded again. A file is there whole
    or not at all. A minute of 25 frames a second at 85×64 px takes 24 MB, also in memory while it is decoded; delete
    the folder to have the room back. Raises VideoError as `read_clip` does, and OSError where nothing can be written.

        >>> frames = cached_frames("lunges.mp4", 64, "cache")
        >>> clip = frames[10:26]  # only these are read
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise VideoError(f"{os.fspath(path)!r}: {error.strerror}; check the path") from None
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:24]
    file = Path(folder) / f"{name}-{size or 'full'}-{stat.st_size}-{stat.st_mtime_ns}.npy"
    if not file.exists():
        small = [resize_frame(frame, (size,)) if size else frame for frame in iter_frames(path)]
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside(file) as unfinished:
            np.save(unfinished / file.name, np.stack(small))
            (unfinished / file.name).replace(file)
    return np.load(file, mmap_mode="r", allow_pickle=False)
