"""Video decoding, exact to the frame.

A frame's number is its place in a sequential decoding from the first frame on. Time stamps, header counts and seeking
are not trusted: AVI files with packed B-frames, common in HMDB51, get them wrong.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from math import nan
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# Without these FFmpeg reads a playlist's addresses, a list's neighbour files, and plain text as a moving picture.
_OPTIONS = {
    "format_whitelist": "avi,mov,matroska,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,mxf,rm,ivf",
    "protocol_whitelist": "file",
}


class VideoError(OSError):
    """A video that cannot be read as asked. The message names the file and says what to do."""


class VideoInfo(NamedTuple):
    """Size in pixels, rate in frames per second (nan where the file has none), and the number of frames."""

    width: int
    height: int
    fps: float
    frames: int


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate and exact length of a video. Costs a full decoding (no colour conversion): headers miscount.

    Raises VideoError as `read_clip` does.
    """
    with _open(path) as stream:
        frames = sum(1 for _ in _decode(stream))
        return VideoInfo(stream.width, stream.height, _rate(stream), frames)


def frame_rate(path: str | os.PathLike[str]) -> float:
    """Frames per second as the file's header has it, nan where it has none; decodes nothing. Raises VideoError."""
    with _open(path) as stream:
        return _rate(stream)


def read_clip(path: str | os.PathLike[str], start: int = 0, frames: int | None = None, stride: int = 1) -> np.ndarray:
    """Frames start, start + stride, ... of a local video file: uint8 RGB of shape (T, H, W, 3).

    T is `frames`, or with None as many as the video has. Raises ValueError for start < 0, frames < 1 or stride < 1, and
    VideoError where the file is no readable video, is damaged before the clip's end, or is too short. Lost frames show
    only when reading to the video's end, and damage that still decodes without complaint not at all.
    """
    return np.stack(list(iter_frames(path, start, frames, stride)))


def iter_frames(
    path: str | os.PathLike[str], start: int = 0, frames: int | None = None, stride: int = 1
) -> Iterator[np.ndarray]:
    """The frames of `read_clip` one by one, each uint8 RGB (H, W, 3), in constant memory; the same errors."""
    for name, value, least in (("start", start, 0), ("frames", frames, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    stop = None if frames is None else start + (frames - 1) * stride + 1
    reformatter = VideoReformatter()  # reused: a new one for every frame halves the speed
    decoded = yielded = 0
    with _open(path) as stream:
        for number, frame in enumerate(islice(_decode(stream), stop)):
            decoded += 1
            if number >= start and (number - start) % stride == 0:
                yielded += 1
                yield _to_rgb(frame, reformatter)
    if yielded < (frames or 1):
        raise VideoError(
            f"{os.fspath(path)!r}: start={start}, frames={frames}, stride={stride} need at least "
            f"{stop or start + 1} frames, the video has {decoded}; ask for fewer, or for a smaller start or stride"
        )


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[av.VideoStream]:
    """The first video stream of a local file. Whatever FFmpeg raises while it is open becomes a VideoError."""
    path = os.fspath(path)
    if not os.path.isfile(path):  # also keeps out FFmpeg's protocols, devices and named pipes
        raise VideoError(f"{path!r}: expected a video file, found {_what_is(path)}; check the path")
    try:
        # "file:" keeps a colon in the name from being read as a protocol. File tags may be in any encoding.
        with av.open(f"file:{os.path.abspath(path)}", options=_OPTIONS, metadata_errors="replace") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                what = "no video stream" if stream is None else "a video codec this FFmpeg does not know"
                raise VideoError(f"{path!r}: expected a video, found {what}; convert the file or leave it out")
            stream.codec_context.thread_count = 1  # DataLoader workers are the parallelism
            stream.codec_context.options = {"err_detect": "explode"}  # fail; never paint over damage
            yield stream
    except av.FFmpegError as error:
        raise VideoError(
            f"{path!r}: expected a readable video, but FFmpeg says {error.strerror!r}; the file is damaged, cut short, "
            "not a video or not readable by you: fetch it again, check its permissions or leave it out"
        ) from error


def _decode(stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame in display order; av.InvalidDataError at the first damaged one, or at the end if some are lost."""
    size = stream.width, stream.height
    lost = len(stream.index_entries)  # taken now, as reading extends the index
    frame = None
    for packet in stream.container.demux(stream):
        if packet.is_corrupt:
            raise av.error.InvalidDataError(0, "packet cut short")
        lost -= packet.size > 0
        for frame in packet.decode():
            if frame.is_corrupt or (frame.width, frame.height) != size:
                raise av.error.InvalidDataError(0, "damaged frame, or one of another size")
            yield frame
    if lost > 0 or frame is None:
        raise av.error.InvalidDataError(0, f"{lost} frames of the index are not there" if frame else "no frame in it")


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate) if stream.average_rate else nan


def _to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
    rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(rgb.height, rgb.planes[0].line_size)
    return rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3).copy()  # lines are padded at the right


def _what_is(path: str) -> str:
    if os.path.isdir(path):
        return "a folder"
    return "something that is no regular file" if os.path.exists(path) else "nothing there"
