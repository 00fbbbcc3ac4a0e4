"""What the file's headers say and FFmpeg's libraries leave to the program, so that it is read here.

That is the part of each picture to show, Matroska's crop and the clean aperture of MP4 and MOV, of which PyAV does not
tell; and the size of a Matroska file.
"""

import io
import os
import struct
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

from repflow.video.opening import IN_MEMORY, Source

_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_VIDEO = _SEGMENT, b"\x16\x54\xae\x6b", b"\xae", b"\xe0"  # Segment, Tracks, TrackEntry, Video
_CROPS = b"\x54\xbb", b"\x54\xaa", b"\x54\xcc", b"\x54\xdd"  # top, bottom, left, right
_APERTURE = b"mdia", b"minf", b"stbl", b"stsd", b"clap"
_FIXED = {b"stsd": 8 + 86}  # bytes before the parts within: the list's own, and those of its first entry
_MOST = 10_000  # heads of parts to read; where the video track comes later, the file is damaged, or a trap


def shown_part(source: Source, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns to show of the pictures in the first video track, which have this size in pixels as stored.

    All of them where the headers say nothing, are damaged, or leave nothing. A clean aperture with fractions of a pixel
    is rounded as by FFmpeg's command line. Matroska: RFC 9559, PixelCropTop and its like; MP4: ISO/IEC 14496-12, clap.

        rows, columns = shown_part("cropped.mkv", 96, 160)  # slice(0, 80), slice(0, 160)
    """
    with io.BytesIO(source) if isinstance(source, IN_MEMORY) else open(source, "rb") as file:
        matroska = file.read(4) == _MATROSKA
        parts = _Parts(file, _element if matroska else _box, iter(range(_MOST)))
        whole = range(file.seek(0, os.SEEK_END))
        if matroska:
            video = next(parts.below(whole, *_VIDEO), range(0))
            top, bottom, left, right = (int.from_bytes(parts.content(video, kind)) for kind in _CROPS)
            bottom, right = height - bottom, width - right
        else:
            tracks = parts.below(whole, b"moov", b"trak")
            video = (track for track in tracks if parts.content(track, b"mdia", b"hdlr")[8:12] == b"vide")
            clap = parts.content(next(video, range(0)), *_APERTURE).ljust(32, b"\0")
            (top, bottom), (left, right) = _edges(clap, 8, height), _edges(clap, 0, width)
    if 0 <= top < bottom <= height and 0 <= left < right <= width:
        return slice(top, bottom), slice(left, right)
    return slice(0, height), slice(0, width)


def cut_short(source: Source) -> bool:
    """Whether a Matroska or WebM file is smaller than its own header says, which FFmpeg lets pass."""
    with io.BytesIO(source) if isinstance(source, IN_MEMORY) else open(source, "rb") as file:
        head, size = file.read(4096), file.seek(0, os.SEEK_END)
    at = head.find(_SEGMENT)
    if not head.startswith(_MATROSKA) or at < 0:
        return False
    _, _, end = _element(head[at:])
    return end < sys.maxsize and at + end > size


class _Parts(NamedTuple):
    """A file of nested parts, what tells (kind, begin and end of the content) from a part's head, and a countdown."""

    file: BinaryIO
    head: Callable[[bytes], tuple[bytes, int, int]]
    left: Iterator[int]

    def below(self, place: range, kind: bytes, *path: bytes) -> Iterator[range]:
        """The contents of the parts at the end of this path of kinds."""
        at = place.start
        while at < place.stop and next(self.left, None) is not None:
            self.file.seek(at)
            head = self.file.read(16)
            found, begin, end = self.head(head)
            if not begin <= min(end, len(head)):  # damage
                return
            content = range(at + begin + _FIXED.get(found, 0), min(at + end, place.stop))
            if found == kind:
                yield from self.below(content, *path) if path else [content]
            at = content.stop

    def content(self, place: range, *path: bytes) -> bytes:
        """Of the first of them, 32 bytes at most."""
        content = next(self.below(place, *path), range(0))
        self.file.seek(content.start)
        return self.file.read(min(len(content), 32))


def _element(head: bytes) -> tuple[bytes, int, int]:
    """EBML: leading zero bits tell how many bytes the kind has, and the size after it; all ones is an unknown size."""
    name = 9 - int.from_bytes(head[:1]).bit_length()
    begin = name + 9 - int.from_bytes(head[name : name + 1]).bit_length()
    unknown = (1 << 7 * (begin - name)) - 1
    size = int.from_bytes(head[name:begin]) & unknown
    return head[:name], begin, sys.maxsize if size == unknown else begin + size


def _box(head: bytes) -> tuple[bytes, int, int]:
    """MP4: the size counts the head; 1 stands for a long one after the kind, 0 for all that comes."""
    size = int.from_bytes(head[:4])
    begin, end = (16, int.from_bytes(head[8:])) if size == 1 else (8, size or sys.maxsize)
    return head[4:8], begin, end


def _edges(clap: bytes, at: int, size: int) -> tuple[int, int]:
    """The first row or column to show and the one after the last: a length around the middle plus an offset."""
    (length, of), (offset, by) = struct.unpack_from(">2i", clap, at), struct.unpack_from(">2i", clap, at + 16)
    if min(length, of, by) < 1 or length > size * of:
        return 0, 0
    first = (size - Fraction(length, of)) / 2 + Fraction(offset, by)
    return int(first), int(first + Fraction(length, of) - 1) + 1
