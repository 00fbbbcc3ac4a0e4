"""Writing videos: pictures in, a file out, whole or not at all."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from repflow.files import beside

# The same bytes for the same pictures: no version in the file, no slices that depend on the number of cores.
BITEXACT = {"fflags": "+bitexact"}
BITEXACT_CODEC = {"flags": "+bitexact", "threads": "1"}

# Encoders of write_mp4, the better first, with a quality that shows no artefacts; 354 is quantiser 3, in 1/118.
_MP4_CODECS = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": "354"}}


def write_video(
    path: str | os.PathLike[str],
    pictures: Iterable[np.ndarray],
    codec: str,
    fps: float | Fraction,
    *,
    pixels: str = "yuv420p",
    title: str | None = None,
    container: Mapping[str, str] | None = None,
    **options: str,
) -> None:
    """Encode pictures of one size to a file whose format its ending tells; the file appears whole or not at all.

    pictures: uint8, RGB (H, W, 3) or grey (H, W), each used before the next is asked for. pixels: the pixel format that
    is coded. container, options: FFmpeg's options of the format and of the codec. Raises ValueError where there is no
    picture.

        write_video("noise.avi", rng.integers(0, 256, (9, 48, 64, 3), dtype=np.uint8), "mpeg4", 25, qmax="2")
    """
    path, pictures = Path(path), iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"{str(path)!r}: expected pictures to write, got none")
    reformatter = VideoReformatter()
    with beside(path) as folder, schedule_kept():
        with av.open(str(folder / path.name), "w", options=dict(container or {})) as file:
            if title is not None:
                file.metadata["title"] = title
            stream = file.add_stream(codec, rate=exact_rate(fps), options=options)
            stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixels
            for picture in chain([first], pictures):
                kind = "gray" if picture.ndim == 2 else "rgb24"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=kind)
                file.mux(stream.encode(reformatter.reformat(frame, format=pixels, threads=1)))
            file.mux(stream.encode())
        (folder / path.name).replace(path)


def write_mp4(path: str | os.PathLike[str], pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 (H, W, 3) pictures as an .mp4 that browsers play, whole or not at all.

    H.264, or MPEG-4 where FFmpeg was built without it. Odd sides grow by a repeated row or column.
    """
    codec = next(name for name in _MP4_CODECS if name in av.codecs_available)
    write_video(path, map(_even, pictures), codec, fps, container={"movflags": "faststart"}, **_MP4_CODECS[codec])


@contextmanager
def schedule_kept() -> Iterator[None]:
    """Takes back what SVT-AV1 does where root runs it: it makes the calling thread a real-time one of the highest
    priority. Processes that this one starts later would inherit that, and starve all others."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if (os.sched_getscheduler(0), os.sched_getparam(0)) != before:
            os.sched_setscheduler(0, *before)


def exact_rate(fps: float | Fraction) -> Fraction:
    """The fraction that a rate stands for: 29.97003 is 30000/1001, and one frame an hour 1/3600."""
    rate = Fraction(fps) if isinstance(fps, Fraction) else Fraction(float(fps))
    return 1 / exact_rate(1 / rate) if rate < 1 else rate.limit_denominator(1001)


def _even(picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
