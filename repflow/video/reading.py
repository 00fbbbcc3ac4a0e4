"""Video decoding, exact to the frame.

A frame's number is its place in a sequential decoding from the first frame on, whatever the time stamps say: where the
rate varies, frames are still just counted. Header counts are not trusted: AVI files with packed B-frames, common in
HMDB51, get them wrong. Seeking is used only where the packets prove that it comes to the same. Videos are cropped,
turned and mirrored as their files say. A video is a path, or the encoded bytes themselves.

Frame 0 is the first clean one: a video that was cut without encoding it again may begin with pictures that need others
from before the cut. They are left out, as players do, and a warning in the log counts them.
"""

import logging
import math
import os
import struct
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from heapq import heappop, heappush
from itertools import dropwhile, pairwise
from typing import NamedTuple

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.sidedata.sidedata import Type
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from repflow.video.headers import cut_short, shown_part
from repflow.video.opening import IN_MEMORY, Source, VideoError, name_of, open_video, too_short
from repflow.video.packets import GAP, Key, legs, scan_packets

_log = logging.getLogger(__name__)

HELD = 2**29  # bytes of decoded frames that wait for a video's length: 3 minutes of 320 x 240 px
SEEK_FROM = 8  # frames; decoding fewer is faster than looking through the packets
_unprovable: dict[int, int] = {}  # by `_stamp` of a file: its packets prove no number of a frame from this one on


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
    length = _length_by_packets(path)
    if length is None:
        with open_video(path) as stream:
            length = sum(1 for _ in _decode(stream, path))
    return length


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
    return np.ascontiguousarray(np.stack(list(_pictures(path, start, frames, stride))))  # turned ones stack otherwise


def iter_frames(path: Source, start: int = 0, frames: int | None = None, stride: int = 1) -> Iterator[np.ndarray]:
    """The frames of `read_clip` one by one, each uint8 RGB (H, W, 3), in constant memory; the same errors."""
    for picture in _pictures(path, start, frames, stride):
        yield picture.copy()


def measure(path: Source) -> tuple[int, list[av.VideoFrame]]:
    """A video's exact length, and where only decoding tells it, the decoded frames (not yet RGB) for `choose_frames`.

    None of them where they take more than HELD bytes. Raises as `count_frames` does.
    """
    length = _length_by_packets(path)
    if length is not None:
        return length, []
    length, held, size = 0, [], 0
    with open_video(path) as stream:
        for frame in _decode(stream, path):
            length += 1
            size += sum(plane.buffer_size for plane in frame.planes)
            if size <= HELD:
                held.append(frame)
            else:
                held.clear()
    return length, held


def choose_frames(path: Source, numbers: Sequence[int], held: Sequence[av.VideoFrame] = ()) -> Iterator[np.ndarray]:
    """The frames of these ascending numbers, each uint8 RGB (H, W, 3), from `held` where `measure` holds them.

    No frame is decoded twice. A long gap between two numbers is decoded only from its last key frame on, where the
    packets prove that one's number: damage before it is not seen, which `repflow data check` looks for. Gives views of
    memory that the decoder may own. Raises as `read_clip` does.

        length, held = measure("a.avi")
        middle = list(choose_frames("a.avi", range(length // 2, length // 2 + 8), held))
    """
    frames = (held[number] for number in numbers) if held else _wanted(path, numbers, needed=numbers[-1])
    return _to_rgb(path, frames)


def _length_by_packets(path: Source) -> int | None:
    with open_video(path) as stream:
        promised = len(stream.index_entries)  # before reading adds to it
        length, _ = _scan(path, stream) or (-1, [])
    return length if length >= promised and not cut_short(path) else None


def _rate(stream: av.VideoStream) -> float:
    average = stream.average_rate
    return float(average if average and average < 1000 else stream.guessed_rate or math.nan)  # of .dv it is 60000


def _decode(stream: av.VideoStream, source: Source) -> Iterator[av.VideoFrame]:
    """Every frame of a stream just opened, from the first clean one on, in display order.

    An error at the first damaged frame, or at the end if some are lost.
    """
    length, size = 0, None
    key_seen, early_times, before_key = False, [], 0
    lost = len(stream.index_entries)  # before reading adds to it
    decode = _unseen(stream)
    for packet in stream.container.demux(stream):
        if packet.size:
            lost -= 1
        if packet.is_keyframe and not key_seen:
            key_seen, before_key = True, len(early_times)
            decode = _decoder(packet, stream)
        if not length and packet.size and not packet.is_discard:
            early_times.append(packet.pts)
        for frame in decode(packet):
            if not length:
                size = frame.width, frame.height
                hidden = sum(_is_before(pts, frame.pts, stream) for pts in early_times[before_key:])
                _warn_of_cut(name_of(source), before_key + hidden)
            if (frame.width, frame.height) != size:
                raise VideoError(
                    f"{name_of(source)}: expected frames of one size, found {size[0]}x{size[1]} px in frame 0 and "
                    f"{frame.width}x{frame.height} px in frame {length}; cut the recording where its size changes"
                )
            yield frame
            length += 1
    if lost > 0 or cut_short(source) or not length:
        raise av.error.InvalidDataError(0, "no key frame, or fewer frames than the file's own index or size tells")


def _is_before(pts: int | None, first: int | None, stream: av.VideoStream) -> bool:
    """Whether a picture's time lies before the first one's; Matroska has no times below 0."""
    if pts is None:
        return "matroska" in stream.container.format.name and first is not None
    return first is not None and pts < first


@cache  # once a file, not at each of its clips
def _warn_of_cut(name: str, left_out: int) -> None:
    if left_out:
        _log.warning("%s: left out %d pictures before the first clean one; the file was cut there", name, left_out)


def frames_of(packet: av.Packet) -> Iterator[av.VideoFrame]:
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
    decoder = _new_decoder(stream.codec_context) if len(stream.index_entries) else None

    def nothing(packet: av.Packet) -> Iterator[av.VideoFrame]:
        if decoder and packet.size:
            decoder.decode(packet)
        return iter(())

    return nothing


def _decoder(key: av.Packet, stream: av.VideoStream) -> Callable[[av.Packet], Iterator[av.VideoFrame]]:
    """Decodes packets like `frames_of`, from this first key frame on; an FFmpeg error if that is damaged.

    FFmpeg shows no picture whose references lie before it. But in H.264 it takes them for damage, even where a sound
    picture just names them. A stream that begins in the middle is thus decoded twice without complaint, once without
    painting over damage: both agree where nothing is damaged.
    """
    context, copy = stream.codec_context, av.Packet(bytes(key))
    # Slices of type 1 make a key frame that does not cut off what came before. The filter takes the packet's content.
    if context.name != "h264" or not BitStreamFilterContext("filter_units=pass_types=1", stream).filter(copy):
        return frames_of
    _new_decoder(context, err_detect="explode").decode(av.Packet(bytes(key)))
    witness = _new_decoder(context, ec="0")
    context.options = {}

    def agreed(packet: av.Packet) -> Iterator[av.VideoFrame]:
        frames, others = list(frames_of(packet)), witness.decode(packet)
        if [_pixels(frame) for frame in frames] != [_pixels(frame) for frame in others]:
            raise av.error.InvalidDataError(0, "damaged frame")
        yield from frames

    return agreed


def _new_decoder(context: av.VideoCodecContext, **options: str) -> av.VideoCodecContext:
    """A decoder for the same stream."""
    decoder = av.CodecContext.create(context.codec, "r")
    decoder.extradata, decoder.options, decoder.thread_count = context.extradata, options, 1
    return decoder


def _pixels(frame: av.VideoFrame) -> list[bytes]:
    """The planes without the padding of their lines."""
    size = (frame.format.components[0].bits + 7) // 8  # bytes a sample
    rows = ((p, np.frombuffer(p, np.uint8).reshape(-1, p.line_size)) for p in frame.planes)
    return [all_rows[: p.height, : p.width * size].tobytes() for p, all_rows in rows]


def _from_keys(
    source: Source, gaps: list[tuple[float, int]], last: int
) -> Generator[tuple[int, av.VideoFrame], None, int | None]:
    """(number, frame) from key frames before the gaps' ends on, as long as they come as the packets promise.

    Returns the number to go on from in another way, or None after frame `last` or at the video's end.
    """
    with open_video(source) as stream:
        promised, size = len(stream.index_entries), (stream.width, stream.height)
        scan = _scan(source, stream, gaps[-1][1])
        way = legs(gaps, scan[1], last) if scan else []
        if not way or not way[0][0].number:
            return 0  # nothing is proved, or there is nothing to leave out
        while way:
            key, last = way.pop()
            number, waiting = key.number, []
            try:
                stream.container.seek(key.time, stream=stream)
            except av.FFmpegError:
                return number
            packets = stream.container.demux(stream)
            for packet in dropwhile(lambda packet, place=key.place: (packet.pos, packet.pts) != place, packets):
                if packet.size:
                    if packet.pts is None:
                        return number
                    heappush(waiting, packet.pts)
                for frame in frames_of(packet):
                    if (frame.width, frame.height) != size or not waiting or frame.pts != heappop(waiting):
                        return number
                    yield number, frame
                    number += 1
                if number > last:
                    break
            else:
                complete = not waiting and number >= max(promised, key.number + 1) and not cut_short(source)
                return None if complete else number


def _scan(source: Source, stream: av.VideoStream, stop: int = sys.maxsize) -> tuple[int, list[Key]] | None:
    """`scan_packets`; where it fails, it is remembered, to spare the next clips of this file a look at its packets."""
    try:
        scan = scan_packets(stream, stop)
    except av.FFmpegError:
        scan = None  # decoding finds out how far the file is sound
    stamp = _stamp(source)
    if scan is None and stamp is not None:
        _unprovable[stamp] = 0 if stop == sys.maxsize else min(stop, _unprovable.get(stamp, stop))
    return scan


def _stamp(source: Source) -> int | None:
    """A number that tells this file, as it is now, from others; None for bytes in memory."""
    if isinstance(source, IN_MEMORY) or not os.path.isfile(source):
        return None
    stat = os.stat(source)
    return hash((os.path.abspath(source), stat.st_size, stat.st_mtime_ns))


def _numbered(source: Source, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) in display order, those of these numbers among them, as far as the video has them."""
    gaps = [(-math.inf, numbers[0])]  # the wanted frames before and after them
    if not isinstance(numbers, range):  # which has none longer than its stride, and may have no end
        gaps += (pair for pair in pairwise(numbers) if pair[1] - pair[0] > GAP)
    may_seek = SEEK_FROM <= gaps[-1][1] < _unprovable.get(_stamp(source), sys.maxsize)
    begin = (yield from _from_keys(source, gaps, numbers[-1])) if may_seek else 0
    if begin is None:
        return
    with open_video(source) as stream:
        for number, frame in enumerate(_decode(stream, source)):
            if number >= begin:
                yield number, frame


def _pictures(path: Source, start: int, frames: int | None, stride: int) -> Iterator[np.ndarray]:
    for name, value, least in (("start", start, 0), ("frames", frames, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    stop = sys.maxsize if frames is None else start + (frames - 1) * stride + 1
    wanted = _wanted(path, range(start, stop, stride), needed=start if frames is None else stop - 1)
    return _to_rgb(path, wanted)


def _wanted(source: Source, numbers: Sequence[int], needed: int) -> Iterator[av.VideoFrame]:
    """The frames of these ascending numbers; VideoError where the video ends before frame `needed`."""
    length = 0
    for number, frame in _numbered(source, numbers):
        length = number + 1
        if number in numbers:
            yield frame
        if number == numbers[-1]:
            break
    if length <= needed:
        raise too_short(source, needed, length)


def survey(source: Source) -> tuple[VideoInfo, list[Fraction | None], bool]:
    """Decodes the whole video: its data, each frame's time in seconds, and whether it is turned, mirrored or cropped.

    None for times that tell nothing: AVI counts packets, which are frames only in MPEG-4 without B-frames.
    """
    times = []
    with open_video(source) as stream:
        in_avi, mpeg4 = stream.container.format.name == "avi", stream.codec_context.name == "mpeg4"
        for frame in _decode(stream, source):
            counted = in_avi and (not mpeg4 or frame.pict_type == PictureType.B.value)
            times.append(None if counted or frame.pts is None else frame.pts * frame.time_base)
        rate = _rate(stream)
    shown = [part.stop - part.start for part in shown_part(source, frame.height, frame.width)]
    how = _orientation(frame)
    height, width = shown[::-1] if how[0] else shown
    return VideoInfo(width, height, rate, len(times)), times, any(how) or shown != [frame.height, frame.width]


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


def _to_rgb(source: Source, frames: Iterable[av.VideoFrame]) -> Iterator[np.ndarray]:
    """RGB (H, W, 3) of each, as shown: views of memory that the decoder may own."""
    reformatter, part = VideoReformatter(), None  # reused: a new one for every frame halves the speed
    for frame in frames:
        part = part or shown_part(source, frame.height, frame.width)
        rgb = reformatter.reformat(frame, format="rgb24", threads=1)
        rows = np.frombuffer(rgb.planes[0], np.uint8).reshape(rgb.height, rgb.planes[0].line_size)
        picture = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)[part]  # lines are padded at the right
        swapped, leftright, updown = _orientation(frame)
        if swapped:
            picture = picture.swapaxes(0, 1)
        yield picture[:: -1 if updown else 1, :: -1 if leftright else 1]
