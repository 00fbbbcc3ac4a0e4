"""Opening videos: from files or from memory, with errors that name the video and say what to do."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import av

IN_MEMORY = bytes, bytearray, memoryview
Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# Without these FFmpeg reads a playlist's addresses, a list's neighbour files, and plain text as a moving picture.
_OPTIONS = {
    "format_whitelist": "avi,mov,matroska,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,mxf,rm,ivf,dv,"
    "yuv4mpegpipe,nut,obu,h261,h263,vc1,wtv",
    "protocol_whitelist": "file",
}
# File tags may be in any encoding; from version 19 on PyAV takes any by itself.
_TAGS = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


class VideoError(OSError):
    """A video that cannot be read as asked. The message names the file and says what to do."""


@contextmanager
def open_video(source: Source) -> Iterator[av.VideoStream]:
    """The first video stream of a local file or of encoded bytes, open within a `with` statement.

    Whatever FFmpeg raises while it is open becomes a VideoError.

        with open_video("a.avi") as stream:
            sizes = [packet.size for packet in stream.container.demux(stream)]
    """
    name = name_of(source)
    if isinstance(source, IN_MEMORY):
        file = io.BytesIO(source)
    elif os.path.isfile(source):  # also keeps out FFmpeg's protocols, devices and named pipes
        file = f"file:{os.path.abspath(source)}"  # "file:" keeps a colon in the name from being read as a protocol
    else:
        other = "something that is no regular file" if os.path.exists(source) else "nothing there"
        found = "a folder" if os.path.isdir(source) else other
        raise VideoError(f"{name}: expected a video file, found {found}; check the path")
    stream = None
    try:
        with av.open(file, options=_OPTIONS, **_TAGS) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                what = "no video stream" if stream is None else "a video codec this FFmpeg does not know"
                raise VideoError(f"{name}: expected a video, found {what}; convert the file or leave it out")
            stream.codec_context.thread_count = 1  # DataLoader workers are the parallelism
            stream.codec_context.options = {"err_detect": "explode"}  # fail; never paint over damage
            yield stream
    except av.FFmpegError as error:
        raise VideoError(f"{name}: {_complaint(error, stream)}") from error


def _complaint(error: av.FFmpegError, stream: av.VideoStream | None) -> str:
    if stream is None and isinstance(error, av.ArgumentError):  # so FFmpeg answers for formats that are not listed
        return "expected a video in a common format, found another one; convert it (ffmpeg -i OLD NEW.mkv)"
    if stream is not None and not stream.width:
        return (
            "expected a video, found pictures without the headers that tell their size (in H.264: SPS and PPS); it was "
            "cut behind them: cut it at a key frame that has them"
        )
    return (
        f"expected a readable video, but FFmpeg says {error.strerror!r}; the file is damaged, cut short, not a video "
        "or not readable by you: fetch it again, check its permissions or leave it out"
    )


def name_of(source: Source) -> str:
    """The video as errors name it."""
    if isinstance(source, IN_MEMORY):
        return f"video of {len(source)} bytes in memory"
    return repr(os.fspath(source))


def too_short(source: Source, needed: int, length: int) -> VideoError:
    """The error for a video of `length` frames that has no frame number `needed`."""
    return VideoError(
        f"{name_of(source)}: expected at least {needed + 1} frames, the video has {length}; ask for fewer, or for a "
        "smaller start or stride"
    )
