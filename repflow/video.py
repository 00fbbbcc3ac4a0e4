"""Video decoding, exact to the frame.

A frame's number is its place in a sequential decoding from the first frame on, whatever the time stamps say: where the
rate varies, frames are still just counted. Header counts are not trusted: AVI files with packed B-frames, common in
HMDB51, get them wrong. Seeking is used only where the packets prove that it comes to the same. Phones' videos are
turned upright. A video is a path, or the encoded bytes themselves.
"""

import io
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import dropwhile, pairwise
from typing import NamedTuple

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter

_IN_MEMORY = bytes, bytearray, memoryview
Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# Without these FFmpeg reads a playlist's addresses, a list's neighbour files, and plain text as a moving picture.
_OPTIONS = {
    "format_whitelist": "avi,mov,matroska,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,mxf,rm,ivf",
    "protocol_whitelist": "file",
}
# Formats that store display times, and codecs with one packet a picture (VP8 hides pictures, MPEG-4 skips some). The
# filter keeps what a decoder can start from for certain: flags mark mere recovery points, too.
_TIMED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_STARTS = {"h264": "filter_units=pass_types=5", "vp9": "null"}
_SEEK_FROM = 24  # frames; decoding fewer is faster than looking through the packets


class VideoError(OSError):
    """A video that cannot be read as asked. The message names the file and says what to do."""


class VideoInfo(NamedTuple):
    """Size in pixels as shown, rate in frames per second (nan where the file has none), and the number of frames."""

    width: int
    height: int
    fps: float
    frames: int


def probe(path: Source) -> VideoInfo:
    """Size, rate and exact length of a video. Costs a full decoding (no colour conversion): headers miscount.

    Raises VideoError as `read_clip` does.
    """
    return _survey(path)[0]


def frame_rate(path: Source) -> float:
    """Frames per second as the file's header has it, nan where it has none; decodes nothing. Raises VideoError."""
    with open_video(path) as stream:
        return float(stream.average_rate or math.nan)


def read_clip(path: Source, start: int = 0, frames: int | None = None, stride: int = 1) -> np.ndarray:
    """Frames start, start + stride, ... of a local video file or of encoded bytes: uint8 RGB of shape (T, H, W, 3).

    T is `frames`, or with None as many as the video has. Raises ValueError for start < 0, frames < 1 or stride < 1, and
    VideoError where the file is no readable video, is damaged where it had to be decoded, or is too short. Decoding
    starts at the first frame or, in H.264 and VP9 in MP4, MOV, MKV and WebM, at a key frame before the clip.
    Lost frames show only when reading to the video's end, and damage that still decodes without complaint not at all.
    """
    return np.stack(list(iter_frames(path, start, frames, stride)))


def iter_frames(path: Source, start: int = 0, frames: int | None = None, stride: int = 1) -> Iterator[np.ndarray]:
    """The frames of `read_clip` one by one, each uint8 RGB (H, W, 3), in constant memory; the same errors."""
    for name, value, least in (("start", start, 0), ("frames", frames, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    stop = sys.maxsize if frames is None else start + (frames - 1) * stride + 1
    yield from _pick(path, range(start, stop, stride), needed=start if frames is None else stop - 1)


def loadvid(
    encoded_video: bytes,
    *,
    should_random_seek: bool = True,
    width: int = 0,
    height: int = 0,
    num_frames: int = 32,
    backend: str = "pyav",
    rng: np.random.Generator | None = None,
) -> tuple[bytearray, int, int, float] | tuple[bytearray, float]:
    """lintel's function of that name: (RGB bytes in T, H, W, C order, width, height, seconds skipped).

    Width and height are left out where they were given; they must be the video's (ValueError otherwise). The clip's
    start is uniform over all that fit, drawn from `rng` or PyTorch's generator, or 0 without random seek; a video
    shorter than `num_frames` repeats from its first frame on. Other than in lintel, the clip without random seek starts
    at frame 0, not 1; seeds reach the start, so that workers differ; the seconds are start / rate; phones' videos are
    turned upright; unreadable, damaged (see `read_clip`) and mismatched videos raise VideoError or ValueError where
    lintel returns uninitialised memory or aborts; videos without time stamps are read right. `backend` "lintel" and
    "torchcodec" decode with those packages (ImportError where they are missing) after the bytes have been decoded
    once with PyAV, as neither is strict; they refuse turned videos and uneven time stamps.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    index = _index(encoded_video)
    length = len(index[0]) if index else probe(encoded_video).frames
    room = max(length - num_frames, 0) if should_random_seek else 0
    start = int(torch.randint(room + 1, ()) if rng is None else rng.integers(room + 1))
    numbers = [number % length for number in range(start, start + num_frames)]
    seconds = start / frame_rate(encoded_video) if start else 0.0
    return *_take(encoded_video, numbers, backend, width, height), seconds


def loadvid_frame_nums(
    encoded_video: bytes,
    *,
    frame_nums: Sequence[int],
    width: int = 0,
    height: int = 0,
    should_seek: bool = False,
    backend: str = "pyav",
) -> tuple[bytearray, int, int] | bytearray:
    """lintel's function of that name: the frames of these numbers (from 0), RGB bytes in T, H, W, C order.

    Returns (bytes, width, height), or the bytes alone where width and height were given. Other than in lintel, numbers
    may repeat and come in any order, are exact with `should_seek` or without (it changes nothing), and one beyond the
    video's end raises VideoError. For the rest see `loadvid`.
    """
    if not len(frame_nums) or min(frame_nums) < 0:
        raise ValueError(f"frame_nums must be one or more numbers from 0 on, got {list(frame_nums)}")
    taken = _take(encoded_video, frame_nums, backend, width, height)
    return taken[0] if width else taken


def decoders() -> list[tuple[str, bool, str]]:
    """What `backend` may be: (name, whether it decodes a small clip, what was found or how to mend it).

    A lintel built on FFmpeg 5 or newer may hang here.
    """
    clip, report = _test_clip(), []
    for name in _BACKENDS:
        try:
            loadvid(clip, should_random_seek=False, num_frames=2, backend=name)
        except Exception as error:  # whatever a foreign decoder raises
            report.append((name, False, str(error)))
        else:
            version = getattr(sys.modules.get(name, av), "__version__", "unknown")
            report.append((name, True, f"decodes; version {version}"))
    return report


@contextmanager
def open_video(source: Source) -> Iterator[av.VideoStream]:
    """The first video stream of a local file. Whatever FFmpeg raises while it is open becomes a VideoError."""
    name = _name(source)
    if isinstance(source, _IN_MEMORY):
        file = io.BytesIO(source)
    elif os.path.isfile(source):  # also keeps out FFmpeg's protocols, devices and named pipes
        file = f"file:{os.path.abspath(source)}"  # "file:" keeps a colon in the name from being read as a protocol
    else:
        raise VideoError(f"{name}: expected a video file, found {_what_is(source)}; check the path")
    try:
        # File tags may be in any encoding.
        with av.open(file, options=_OPTIONS, metadata_errors="replace") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                what = "no video stream" if stream is None else "a video codec this FFmpeg does not know"
                raise VideoError(f"{name}: expected a video, found {what}; convert the file or leave it out")
            stream.codec_context.thread_count = 1  # DataLoader workers are the parallelism
            stream.codec_context.options = {"err_detect": "explode"}  # fail; never paint over damage
            yield stream
    except av.FFmpegError as error:
        raise VideoError(
            f"{name}: expected a readable video, but FFmpeg says {error.strerror!r}; the file is damaged, cut short, "
            "not a video or not readable by you: fetch it again, check its permissions or leave it out"
        ) from error


def _decode(source: Source, begin: tuple[int, int] | None = None) -> Iterator[av.VideoFrame]:
    """Every frame in display order; VideoError at the first damaged one, or at the end if some are lost.

    With `begin`, the decoding and display time of a key frame, only from there on.
    """
    frame = None
    with open_video(source) as stream:
        packets, size = stream.container.demux(stream), (stream.width, stream.height)
        lost = len(stream.index_entries)  # taken now, as reading extends the index
        if begin:
            lost = 0
            with suppress(av.FFmpegError):  # without it the packet is just found later
                stream.container.seek(begin[0], stream=stream)
            packets = dropwhile(lambda packet: packet.pts not in (begin[1], None), packets)
        for packet in packets:
            if packet.is_corrupt:
                raise av.error.InvalidDataError(0, "packet cut short")
            lost -= packet.size > 0
            for frame in packet.decode():
                if frame.is_corrupt or (frame.width, frame.height) != size:
                    raise av.error.InvalidDataError(0, "damaged frame, or one of another size")
                yield frame
        if lost > 0 or _cut_short(source) or (frame is None and not begin):
            raise av.error.InvalidDataError(0, "no frames, or fewer than the file's own index or size tells")


def _cut_short(source: Source) -> bool:
    """Whether a Matroska or WebM file is smaller than its own header says, which FFmpeg lets pass."""
    with io.BytesIO(source) if isinstance(source, _IN_MEMORY) else open(source, "rb") as file:
        head, size = file.read(4096), file.seek(0, os.SEEK_END)
    found = re.match(rb"\x1a\x45\xdf\xa3.*?\x18\x53\x80\x67(.{8})", head, re.DOTALL)
    if not found:
        return False
    width = 9 - found[1][0].bit_length()  # leading zero bits tell how many bytes the length has
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(found[1][:width]) & unknown
    return length != unknown and found.start(1) + width + length > size


def _index(source: Source) -> tuple[list[int], dict[int, int]] | None:
    """Time stamps of all frames in display order, and of the key frames {number: decoding time}; decodes nothing.

    None where one packet may not be one frame, or times may not order them. A key frame counts only where everything
    before it is shown before it and everything after it after it: what follows such a one needs nothing before it.
    """
    packets = []
    try:
        with open_video(source) as stream:
            kind = stream.codec_context.codec.canonical_name
            if stream.container.format.name not in _TIMED or kind not in _STARTS:
                return None
            entries, starts = len(stream.index_entries), BitStreamFilterContext(_STARTS[kind], stream)
            for packet in stream.container.demux(stream):
                if packet.size:
                    if packet.is_corrupt or packet.is_discard or packet.pts is None:
                        return None
                    times = packet.pts, packet.pts if packet.dts is None else packet.dts
                    packets.append((*times, packet.is_keyframe and bool(starts.filter(packet))))
    except (VideoError, av.FFmpegError):
        return None  # decoding in sequence finds out how far the file is sound
    times = sorted(shown for shown, _, _ in packets)
    keys, latest = {}, -math.inf
    for number, (shown, decoded, key) in enumerate(packets):
        if key and latest < shown == times[number]:
            keys[number] = decoded
        latest = max(latest, shown)
    sound = len(packets) >= entries and len(set(times)) == len(times) and 0 in keys
    return (times, keys) if sound else None


def _numbered(source: Source, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) in display order, the first of them at or before `start`."""
    times, keys = (_index(source) if start >= _SEEK_FROM else None) or ([], {})
    done = max((number for number in keys if number <= start < len(times)), default=0)
    if done:
        for frame in _decode(source, begin=(keys[done], times[done])):
            if done == len(times) or frame.pts != times[done]:
                break
            yield done, frame
            done += 1
        else:
            if done == len(times):
                return
    for number, frame in enumerate(_decode(source)):  # where seeking can't be trusted or went wrong
        if number >= done:
            yield number, frame


def _pick(source: Source, numbers: Sequence[int], needed: int) -> Iterator[np.ndarray]:
    """The frames of these ascending numbers, RGB; VideoError where the video ends before frame `needed`."""
    reformatter = VideoReformatter()  # reused: a new one for every frame halves the speed
    length = 0
    for number, frame in _numbered(source, numbers[0]):
        length = number + 1
        if number in numbers:
            yield _to_rgb(frame, reformatter)
        if number == numbers[-1]:
            break
    if length <= needed:
        raise _too_short(source, needed, length)


def _survey(source: Source) -> tuple[VideoInfo, list[int | None], int]:
    """Decodes the whole video: its data, the time stamp of each frame, and its quarter turns."""
    times = []
    for frame in _decode(source):
        times.append(frame.pts)
    turns = _turns(frame)
    size = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    return VideoInfo(*size, frame_rate(source), len(times)), times, turns


def _take(
    encoded: bytes, numbers: Sequence[int], backend: str, width: int, height: int
) -> tuple[bytearray, int, int] | tuple[bytearray]:
    """What lintel returns for the frames of these numbers."""
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    wanted, places = np.unique(numbers, return_inverse=True)
    frames = _BACKENDS[backend](encoded, wanted.tolist())[places]
    size = frames.shape[2], frames.shape[1]
    if (width, height) not in (size, (0, 0)):
        raise ValueError(
            f"width and height must be the video's, {size}, or 0, got {(width, height)}; resize afterwards"
        )
    return (bytearray(frames),) if width else (bytearray(frames), *size)


def _pyav(encoded: bytes, numbers: list[int]) -> np.ndarray:
    return np.stack(list(_pick(encoded, numbers, needed=numbers[-1])))


def _lintel(encoded: bytes, numbers: list[int]) -> np.ndarray:
    try:
        import lintel
    except ImportError:
        lintel = None
    if not all(callable(getattr(lintel, name, None)) for name in ("loadvid", "loadvid_frame_nums")):
        raise ImportError(
            f"backend 'lintel' expected the video decoder, found {lintel or 'no such package'}; conda-forge has it for "
            "Python up to 3.9, PyPI's lintel is a docstring checker: never pip install that; or use backend='pyav'"
        )
    height, width = _vet(encoded, numbers)
    # Without should_seek it is off by one; its loadvid takes no seed, and skips frame 0 where nothing is random.
    pixels = lintel.loadvid_frame_nums(bytes(encoded), frame_nums=numbers, width=width, height=height, should_seek=True)
    return np.frombuffer(pixels, np.uint8).reshape(len(numbers), height, width, 3)


def _torchcodec(encoded: bytes, numbers: list[int]) -> np.ndarray:
    _vet(encoded, numbers)
    try:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(bytes(encoded), dimension_order="NHWC", num_ffmpeg_threads=1)
        return decoder.get_frames_at(numbers).data.numpy()
    except (ImportError, OSError, RuntimeError) as error:  # it may miss FFmpeg at the import or at the first use
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(
            f"backend 'torchcodec' does not work ({reason}); install it with pip install torchcodec, and FFmpeg's "
            "libraries with the system's package manager, or use backend='pyav'"
        ) from error


_BACKENDS = {"pyav": _pyav, "lintel": _lintel, "torchcodec": _torchcodec}


def _vet(encoded: bytes, numbers: list[int]) -> tuple[int, int]:
    """Height and width of a sound video that decoders which go by the time stamps read right; else VideoError."""
    info, times, turns = _survey(encoded)
    steps = [0, math.inf] if None in times else [after - before for before, after in pairwise(times)]
    if turns or np.ptp(steps or [0]) > 1:  # one tick of rounding
        raise VideoError(f"{_name(encoded)}: turned, or without even time stamps; use backend='pyav', which reads it")
    if numbers[-1] >= info.frames:
        raise _too_short(encoded, numbers[-1], info.frames)
    return info.height, info.width


def _test_clip() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode())
    return file.getvalue()


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns counterclockwise that set the frame upright."""
    return round(frame.rotation / 90) % 4


def _to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
    rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(rgb.height, rgb.planes[0].line_size)
    picture = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)  # lines are padded at the right
    return np.rot90(picture, _turns(frame)).copy()


def _name(source: Source) -> str:
    if isinstance(source, _IN_MEMORY):
        return f"video of {len(source)} bytes in memory"
    return repr(os.fspath(source))


def _too_short(source: Source, needed: int, length: int) -> VideoError:
    return VideoError(
        f"{_name(source)}: expected at least {needed + 1} frames, the video has {length}; ask for fewer, or for a "
        "smaller start or stride"
    )


def _what_is(path: str | os.PathLike[str]) -> str:
    if os.path.isdir(path):
        return "a folder"
    return "something that is no regular file" if os.path.exists(path) else "nothing there"
