"""What a stream's packets prove of its frames, with none of them decoded."""

import re
import sys
from bisect import bisect
from operator import itemgetter
from typing import NamedTuple

import av
from av.bitstream import BitStreamFilterContext

# Codecs with one packet a picture (VP8 hides pictures), in formats that store display times; MPEG-4 without B-frames
# can do without.
_TIMED = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
_EXACT = {"h264": _TIMED, "vp9": _TIMED, "mpeg4": (*_TIMED, "avi")}
_STARTS = {"h264": "filter_units=pass_types=5"}  # H.264's flags mark mere recovery points, too
GAP = 64  # frames between two wanted ones; decoding fewer is as fast as a seek, and no decoder holds back as many


class Key(NamedTuple):
    """A key frame: its number, where its packet is, and the time to seek to. Decoding from it needs nothing before it,
    and what comes before is shown before."""

    number: int
    place: tuple[int, int]
    time: int


def scan_packets(stream: av.VideoStream, stop: int = sys.maxsize) -> tuple[int, list[Key]] | None:
    """How many packets come before number `stop`, and the key frames up to it, the first one number 0.

    None where one of the packets may not be one frame.
    """
    kind = stream.codec_context.codec.canonical_name
    if stream.container.format.name not in _EXACT.get(kind, ()):
        return None
    clean = BitStreamFilterContext(_STARTS[kind], stream) if kind in _STARTS else None
    header = stream.codec_context.extradata or b""
    keys, times = [], set()
    for packet in stream.container.demux(stream):
        if not packet.size and packet.dts is None:  # the end
            break
        if not packet.size or packet.is_corrupt or packet.is_discard or packet.pts is None or packet.pts in times:
            return None
        if kind == "mpeg4" and not _is_one_picture(bytes(packet), header):
            return None
        number, time = len(times), packet.pts if packet.dts is None else packet.dts
        key = Key(number, (packet.pos, packet.pts), time)
        if packet.is_keyframe and (clean is None or clean.filter(packet)):  # the filter takes the packet's content
            keys.append(key)
        elif not number:
            return None
        if number == stop:
            break
        times.add(key.place[1])
    return (len(times), keys) if keys else None


def legs(gaps: list[tuple[float, int]], keys: list[Key], last: int) -> list[tuple[Key, int]]:
    """The key frames to decode from, each with the number up to which, from the last to the first one.

    In a gap decoding goes over to the last key frame before the gap's end, if that one is far from the gap's begin.
    """
    way = []
    for before, after in reversed(gaps):
        key = keys[bisect(keys, after, key=itemgetter(0)) - 1]
        if key.number - before > GAP:
            way.append((key, last))
            last = before
    return way


def _is_one_picture(packet: bytes, header: bytes) -> bool:
    """Whether an MPEG-4 packet is just one picture, not a B-frame, that needs no other header than the stream's.

    Encoders also store two pictures in one packet, and packets of a few bytes that stand for no picture.
    """
    head, *pictures = packet.split(b"\0\0\1\xb6")
    times = re.sub(b"\0\0\1\xb3...", b"", head, flags=re.DOTALL)
    return len(pictures) == 1 and len(packet) >= 20 and pictures[0][0] >> 6 != 2 and times in header
