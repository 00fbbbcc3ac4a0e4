"""Video decoding, exact to the frame.

A frame's number is its place in a sequential decoding from the first frame on, whatever the time stamps say: where the
rate varies, frames are still just counted. Header counts are not trusted: AVI files with packed B-frames, common in
HMDB51, get them wrong. Seeking is used only where the packets prove that it comes to the same. Phones' videos are
turned and mirrored upright. A video is a path, or the encoded bytes themselves.

Frame 0 is the first clean one: a video that was cut without encoding it again may begin with pictures that need others
from before the cut. They are left out, as players do, and a warning in the log counts them.
"""

import io
import logging
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from heapq import heappop, heappush
from itertools import dropwhile
from typing import NamedTuple

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.sidedata.sidedata import Type
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

_log = logging.getLogger(__name__)

_IN_MEMORY = bytes, bytearray, memoryview
Source = str | os.PathLike[str] | bytes | bytearray | memoryview

# Without these FFmpeg reads a playlist's addresses, a list's neighbour files, and plain text as a moving picture.
_OPTIONS = {
    "format_whitelist": "avi,mov,matroska,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,mxf,rm,ivf,dv,"
    "yuv4mpegpipe,nut,obu,h261,h263,vc1,wtv",
    "protocol_whitelist": "file",
}
# File tags may be in any encoding; from version 19 on PyAV takes any by itself.
_TAGS = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
# Codecs with one packet a picture (VP8 hides pictures), in formats that store display times; MPEG-4 without B-frames
# can do without.
_TIMED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_EXACT = {"h264": _TIMED, "vp9": _TIMED, "mpeg4": (*_TIMED, "avi")}
_STARTS = {"h264": "filter_units=pass_types=5"}  # H.264's flags mark mere recovery points, too
_SEEK_FROM = 8  # frames; decoding fewer is faster than looking through the packets
_unprovable: set[int] = set()  # what `_mark` gives for files whose packets prove no frame's number


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
    return survey(path)[0]


def count_frames(path: Source) -> int:
    """Exact length of a video: from its packets where they prove it (see `read_clip`), else by a full decoding.

    Raises VideoError as `read_clip` does, but damage inside packets shows only where it decodes.
    """
    with open_video(path) as stream:
        promised = len(stream.index_entries)  # before reading adds to it
        try:
            scan = _scan(stream)
        except av.FFmpegError:
            scan = None  # decoding finds out how far the file is sound
    if scan and scan.packets >= promised and not _cut_short(path):
        return scan.packets
    if scan is None:
        _unprovable.add(_mark(path))
    with open_video(path) as stream:
        return sum(1 for _ in _decode(stream, path))


def frame_rate(path: Source) -> float:
    """Frames per second as the file's header has it, nan where it has none; decodes nothing. Raises VideoError."""
    with open_video(path) as stream:
        return _rate(stream)


def read_clip(path: Source, start: int = 0, frames: int | None = None, stride: int = 1) -> np.ndarray:
    """Frames start, start + stride, ... of a local video file or of encoded bytes: uint8 RGB of shape (T, H, W, 3).

    T is `frames`, or with None as many as the video has. Raises ValueError for start < 0, frames < 1 or stride < 1, and
    VideoError where the file is no readable video, is damaged or changes its size where it had to be decoded, or is too
    short. Decoding starts at the first frame or at a key frame before the clip, where the packets before it prove the
    frame's number: in H.264, VP9 and MPEG-4 without B-frames, in MP4, MOV, MKV and WebM, the last in AVI, too.
    Lost frames show only when reading to the video's end, and damage that still decodes without complaint not at all.
    """
    return np.ascontiguousarray(np.stack(list(_taken(path, start, frames, stride))))  # turned ones stack otherwise


def iter_frames(path: Source, start: int = 0, frames: int | None = None, stride: int = 1) -> Iterator[np.ndarray]:
    """The frames of `read_clip` one by one, each uint8 RGB (H, W, 3), in constant memory; the same errors."""
    for picture in _taken(path, start, frames, stride):
        yield picture.copy()


@contextmanager
def open_video(source: Source) -> Iterator[av.VideoStream]:
    """The first video stream of a local file. Whatever FFmpeg raises while it is open becomes a VideoError."""
    name = name_of(source)
    if isinstance(source, _IN_MEMORY):
        file = io.BytesIO(source)
    elif os.path.isfile(source):  # also keeps out FFmpeg's protocols, devices and named pipes
        file = f"file:{os.path.abspath(source)}"  # "file:" keeps a colon in the name from being read as a protocol
    else:
        raise VideoError(f"{name}: expected a video file, found {_what_is(source)}; check the path")
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


def _rate(stream: av.VideoStream) -> float:
    average = stream.average_rate
    return float(average if average and average < 1000 else stream.guessed_rate or math.nan)  # of .dv it is 60000


def _decode(stream: av.VideoStream, source: Source) -> Iterator[av.VideoFrame]:
    """Every frame of a stream just opened, from the first clean one on, in display order.

    An error at the first damaged frame, or at the end if some are lost.
    """
    length, size, begun, early, before = 0, None, False, [], 0
    lost = len(stream.index_entries)  # before reading adds to it
    decode = _unseen(stream)
    for packet in stream.container.demux(stream):
        if packet.size:
            lost -= 1
        if packet.is_keyframe and not begun:
            begun, decode, before = True, _decoder(packet, stream), len(early)
        if not length and packet.size and not packet.is_discard:
            early.append(packet.pts)
        for frame in decode(packet):
            if not length:
                size = frame.width, frame.height
                hidden = sum(_is_before(pts, frame.pts, stream) for pts in early[before:])
                _tell(name_of(source), before + hidden)
            if (frame.width, frame.height) != size:
                raise VideoError(
                    f"{name_of(source)}: expected frames of one size, found {size[0]}x{size[1]} px in frame 0 and "
                    f"{frame.width}x{frame.height} px in frame {length}; cut the recording where its size changes"
                )
            yield frame
            length += 1
    if lost > 0 or _cut_short(source) or not length:
        raise av.error.InvalidDataError(0, "no key frame, or fewer frames than the file's own index or size tells")


def _is_before(pts: int | None, first: int | None, stream: av.VideoStream) -> bool:
    """Whether a picture's time lies before the first one's; Matroska has no times below 0."""
    if pts is None:
        return "matroska" in stream.container.format.name and first is not None
    return first is not None and pts < first


@cache  # once a file, not at each of its clips
def _tell(name: str, left_out: int) -> None:
    if left_out:
        _log.warning("%s: left out %d pictures before the first clean one; the file was cut there", name, left_out)


def _frames(packet: av.Packet) -> Iterator[av.VideoFrame]:
    """The frames that the decoder gives for a packet; an FFmpeg error where something is damaged."""
    if packet.is_corrupt:
        raise av.error.InvalidDataError(0, "packet cut short")
    for frame in packet.decode():
        if frame.is_corrupt:
            raise av.error.InvalidDataError(0, "damaged frame")
        yield frame


def _unseen(stream: av.VideoStream) -> Callable[[av.Packet], Iterator[av.VideoFrame]]:
    """Takes packets before the first key frame and gives nothing; an FFmpeg error if one is no picture at all.

    It may be a key frame so damaged that nobody sees what it was. A capture's first packet may be incomplete; files
    with an index have whole ones.
    """
    decoder = _another(stream.codec_context) if len(stream.index_entries) else None

    def nothing(packet: av.Packet) -> Iterator[av.VideoFrame]:
        if decoder and packet.size:
            decoder.decode(packet)
        return iter(())

    return nothing


def _decoder(key: av.Packet, stream: av.VideoStream) -> Callable[[av.Packet], Iterator[av.VideoFrame]]:
    """Decodes packets like `_frames`, from this first key frame on; an FFmpeg error if that is damaged.

    FFmpeg shows no picture whose references lie before it. But in H.264 it takes them for damage, even where a sound
    picture just names them. A stream that begins in the middle is thus decoded twice without complaint, once without
    painting over damage: both agree where nothing is damaged.
    """
    context, copy = stream.codec_context, av.Packet(bytes(key))
    # Slices of type 1 make a key frame that does not cut off what came before. The filter takes the packet's content.
    if context.name != "h264" or not BitStreamFilterContext("filter_units=pass_types=1", stream).filter(copy):
        return _frames
    _another(context, err_detect="explode").decode(av.Packet(bytes(key)))
    witness = _another(context, ec="0")
    context.options = {}

    def agreed(packet: av.Packet) -> Iterator[av.VideoFrame]:
        frames, others = list(_frames(packet)), witness.decode(packet)
        if [_pixels(frame) for frame in frames] != [_pixels(frame) for frame in others]:
            raise av.error.InvalidDataError(0, "damaged frame")
        yield from frames

    return agreed


def _another(context: av.VideoCodecContext, **options: str) -> av.VideoCodecContext:
    """A decoder for the same stream."""
    decoder = av.CodecContext.create(context.codec, "r")
    decoder.extradata, decoder.options, decoder.thread_count = context.extradata, options, 1
    return decoder


def _pixels(frame: av.VideoFrame) -> list[bytes]:
    """The planes without the padding of their lines."""
    size = (frame.format.components[0].bits + 7) // 8  # bytes a sample
    rows = ((p, np.frombuffer(p, np.uint8).reshape(-1, p.line_size)) for p in frame.planes)
    return [all_rows[: p.height, : p.width * size].tobytes() for p, all_rows in rows]


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


class _Scan(NamedTuple):
    """What packets tell without decoding: how many there are, and the last one to start from (number, place, time)."""

    packets: int
    number: int
    place: tuple[int, int]
    time: int


def _scan(stream: av.VideoStream, stop: int = sys.maxsize) -> _Scan | None:
    """Looks through the packets up to number `stop`; None where one of them may not be one frame.

    A decoder started at such a key frame needs nothing before it, and what comes before is shown before.
    """
    kind = stream.codec_context.codec.canonical_name
    if stream.container.format.name not in _EXACT.get(kind, ()):
        return None
    clean = BitStreamFilterContext(_STARTS[kind], stream) if kind in _STARTS else None
    header = stream.codec_context.extradata or b""
    number, start, times = 0, None, set()
    for packet in stream.container.demux(stream):
        if not packet.size and packet.dts is None:  # the end
            break
        if not packet.size or packet.is_corrupt or packet.is_discard or packet.pts is None or packet.pts in times:
            return None
        if kind == "mpeg4" and not _is_one_picture(bytes(packet), header):
            return None
        times.add(packet.pts)
        here = number, (packet.pos, packet.pts), packet.pts if packet.dts is None else packet.dts
        if packet.is_keyframe and (clean is None or clean.filter(packet)):  # the filter takes the packet's content
            start = here
        elif not number:
            return None
        if number == stop:
            break
        number += 1
    return _Scan(number, *start) if start else None


def _is_one_picture(packet: bytes, header: bytes) -> bool:
    """Whether an MPEG-4 packet is just one picture, not a B-frame, that needs no other header than the stream's.

    Encoders also store two pictures in one packet, and packets of a few bytes that stand for no picture.
    """
    head, *pictures = packet.split(b"\0\0\1\xb6")
    times = re.sub(b"\0\0\1\xb3...", b"", head, flags=re.DOTALL)
    return len(pictures) == 1 and len(packet) >= 20 and pictures[0][0] >> 6 != 2 and times in header


def _from_key(source: Source, start: int) -> Generator[tuple[int, av.VideoFrame], None, int | None]:
    """(number, frame) from the last key frame before `start` on, as long as they come as the packets promise.

    Returns the number to go on from in another way, or None at the video's end.
    """
    with open_video(source) as stream:
        promised, size = len(stream.index_entries), (stream.width, stream.height)
        try:
            scan = _scan(stream, start)
            if scan is None:
                _unprovable.add(_mark(source))
            if not scan or not scan.number:
                return 0
            stream.container.seek(scan.time, stream=stream)
        except av.FFmpegError:
            return 0  # decoding in sequence finds out how far the file is sound
        packets = stream.container.demux(stream)
        number, waiting = scan.number, []
        for packet in dropwhile(lambda packet: (packet.pos, packet.pts) != scan.place, packets):
            if packet.size:
                if packet.pts is None:
                    return number
                heappush(waiting, packet.pts)
            for frame in _frames(packet):
                if (frame.width, frame.height) != size or not waiting or frame.pts != heappop(waiting):
                    return number
                yield number, frame
                number += 1
        return None if not waiting and number >= max(promised, scan.number + 1) and not _cut_short(source) else number


def _mark(source: Source) -> int:
    """A number for the file as it is now, another one once it changes; always the same for bytes in memory."""
    if isinstance(source, _IN_MEMORY) or not os.path.isfile(source):
        return 0
    stat = os.stat(source)
    return hash((os.path.abspath(source), stat.st_size, stat.st_mtime_ns))


def _numbered(source: Source, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) in display order, the first of them at or before `start`."""
    may_seek = start >= _SEEK_FROM and (isinstance(source, _IN_MEMORY) or _mark(source) not in _unprovable)
    begin = (yield from _from_key(source, start)) if may_seek else 0
    if begin is None:
        return
    with open_video(source) as stream:
        for number, frame in enumerate(_decode(stream, source)):
            if number >= begin:
                yield number, frame


def _taken(path: Source, start: int, frames: int | None, stride: int) -> Iterator[np.ndarray]:
    for name, value, least in (("start", start, 0), ("frames", frames, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    stop = sys.maxsize if frames is None else start + (frames - 1) * stride + 1
    return pick(path, range(start, stop, stride), needed=start if frames is None else stop - 1)


def pick(source: Source, numbers: Sequence[int], needed: int) -> Iterator[np.ndarray]:
    """The frames of these ascending numbers, RGB; VideoError where the video ends before frame `needed`.

    Views of memory that the decoder may own.
    """
    reformatter = VideoReformatter()  # reused: a new one for every frame halves the speed
    length = 0
    for number, frame in _numbered(source, numbers[0]):
        length = number + 1
        if number in numbers:
            yield _to_rgb(frame, reformatter)
        if number == numbers[-1]:
            break
    if length <= needed:
        raise too_short(source, needed, length)


def survey(source: Source) -> tuple[VideoInfo, list[Fraction | None], bool]:
    """Decodes the whole video: its data, the time of each frame in seconds, and whether it has to be set upright.

    None for times that tell nothing: AVI counts packets, which are frames only in MPEG-4 without B-frames.
    """
    times = []
    with open_video(source) as stream:
        in_avi, mpeg4 = stream.container.format.name == "avi", stream.codec_context.name == "mpeg4"
        for frame in _decode(stream, source):
            told = frame.pts is not None and not (in_avi and (not mpeg4 or frame.pict_type == PictureType.B.value))
            times.append(frame.pts * frame.time_base if told else None)
        rate = _rate(stream)
    swapped, *mirrored = _orientation(frame)
    size = (frame.height, frame.width) if swapped else (frame.width, frame.height)
    return VideoInfo(*size, rate, len(times)), times, swapped or any(mirrored)


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How to set the frame upright: exchange its sides, then mirror it left to right, then top to bottom.

    Its display matrix begins with a, b, _, c, d: it shows pixel (x, y) at (ax + cy, bx + dy). Angles between are taken
    to the next quarter turn.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # `frame.rotation` does not tell what is mirrored
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def _to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
    rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(rgb.height, rgb.planes[0].line_size)
    picture = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)  # lines are padded at the right
    swapped, leftright, updown = _orientation(frame)
    if swapped:
        picture = picture.swapaxes(0, 1)
    return picture[:: -1 if updown else 1, :: -1 if leftright else 1]


def name_of(source: Source) -> str:
    if isinstance(source, _IN_MEMORY):
        return f"video of {len(source)} bytes in memory"
    return repr(os.fspath(source))


def too_short(source: Source, needed: int, length: int) -> VideoError:
    return VideoError(
        f"{name_of(source)}: expected at least {needed + 1} frames, the video has {length}; ask for fewer, or for a "
        "smaller start or stride"
    )


def _what_is(path: str | os.PathLike[str]) -> str:
    if os.path.isdir(path):
        return "a folder"
    return "something that is no regular file" if os.path.exists(path) else "nothing there"
