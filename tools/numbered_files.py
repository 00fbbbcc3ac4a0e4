"""Valid videos of many kinds, every frame of which carries its number: `FILES` says what they are, `make` writes one.

The pictures are converted to YUV here, by the formula of the standard that the file names, so that no reader's own
conversion is taken for the truth.
"""

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numbered import UPRIGHT, drawn, turned

from repflow.video.write import schedule_kept

LENGTH = 41  # frames; odd, for a first frame and pairs after it
H264 = {"codec": "libx264", "g": "10", "bf": "2", "x264-params": "b-adapt=0:scenecut=0"}
LUMA = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}  # weights of red and blue; green has the rest


class File(NamedTuple):
    """How a file is written, and what its frames are in truth."""

    what: str
    options: dict[str, str]  # with "codec", and the container's among them
    size: tuple[int, int] = (160, 96)
    pixels: str = "yuv420p"
    matrix: str = "BT.601"
    full: bool = False
    tags: tuple[int, int] | None = None  # colour space and range, FFmpeg's numbers
    times: Callable[[int], int] = lambda number: 40 * number  # milliseconds
    coded: tuple[bool, bool, bool] = UPRIGHT  # how the pictures are turned before they are coded
    change: Callable[[Path], None] = lambda path: None  # what is done to the file once it is written
    first: int = 0  # the number of the first frame that is shown
    cropped: int = 0  # rows at the bottom that the file says not to show


def yuv_frame(picture: np.ndarray, kind: File) -> av.VideoFrame:
    """The picture as FFmpeg's encoders take it."""
    red, blue = LUMA[kind.matrix]
    r, g, b = np.moveaxis(picture / 255, 2, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)]
    frame = av.VideoFrame(picture.shape[1], picture.shape[0], kind.pixels)
    depth = frame.format.components[0].bits
    low, y_span, c_span = (0, 255, 255) if kind.full else (16, 219, 224)
    for plane, values in zip(frame.planes, [low + y_span * y, *(128 + c_span * c for c in chroma)], strict=True):
        step = -(-picture.shape[1] // plane.width)
        samples = np.rint(values[::step, ::step] * 2 ** (depth - 8))
        lines = np.zeros((plane.height, plane.line_size // (2 if depth > 8 else 1)), "u1" if depth == 8 else "<u2")
        lines[:, : plane.width] = samples
        plane.update(lines)
    if kind.tags:
        frame.colorspace, frame.color_range = kind.tags
    return frame


def make(name: str, folder: Path) -> Path:
    """Write the file of this name."""
    kind, path = FILES[name], folder / name
    options = dict(kind.options)
    container = {key: options.pop(key) for key in ("movflags",) if key in options}
    with schedule_kept(), av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(options.pop("codec"), rate=Fraction(25), options=options)
        pictures = [turned(drawn(number, *kind.size), kind.coded) for number in range(LENGTH)]
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], kind.pixels
        stream.codec_context.thread_count = 1
        if kind.tags:
            stream.codec_context.colorspace, stream.codec_context.color_range = kind.tags
        for number, picture in enumerate(pictures):
            frame = yuv_frame(picture, kind)
            frame.pts, frame.time_base = kind.times(number), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    kind.change(path)
    return path


def truth(name: str) -> tuple[list[int], list[int]]:
    """The numbers of a file's frames in the order in which they are shown, and their height and width."""
    kind = FILES[name]
    return list(range(kind.first, LENGTH)), [kind.size[1] - kind.cropped, kind.size[0]]


def _packets(path: Path) -> Iterator[av.Packet]:
    with av.open(str(path)) as source:
        yield from (packet for packet in source.demux(video=0) if packet.size)


def _rewritten(path: Path, packets: list[av.Packet]) -> None:
    """Copies packets into a file of the same kind, without coding them again."""
    old = path.with_name(f"old_{path.name}")
    path.rename(old)
    with av.open(str(old)) as source, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in packets:
            packet.stream = stream
            file.mux(packet)
    old.unlink()


def pack(path: Path) -> None:
    """B-frames as DivX and Xvid store them: each in one packet with the frame before it, then a packet of no frame."""
    first, *rest = map(bytes, _packets(path))
    pairs = ((a + b, b"\0\0\1\xb6\x50\x4f") for a, b in zip(rest[::2], rest[1::2], strict=True))
    packets = []
    for number, content in enumerate([b"\0\0\1\xb2DivX503b1393p" + first, *(part for pair in pairs for part in pair)]):
        packet = av.Packet(content)
        packet.pts = packet.dts = number
        packet.time_base = Fraction(1, 25)
        packet.is_keyframe = number == 0 or b"\0\0\1\xb3" in content
        packets.append(packet)
    _rewritten(path, packets)


def trim(path: Path) -> None:
    """Begins at frame 7, without coding again: the frames before it stay in the file, and an edit list hides them."""
    packets = list(_packets(path))
    begin = sorted(packet.pts for packet in packets)[7]
    for packet in packets:
        packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
    _rewritten(path, packets)


def matrix(a: int, b: int, c: int, d: int) -> Callable[[Path], None]:
    """Asks for this display matrix: pixel (x, y) is shown at (ax + cy, bx + dy)."""

    def change(path: Path) -> None:
        encoded = path.read_bytes()
        wanted, straight = (
            struct.pack(">9i", m[0] << 16, m[1] << 16, 0, m[2] << 16, m[3] << 16, 0, 0, 0, 1 << 30)
            for m in ((a, b, c, d), (1, 0, 0, 1))
        )
        at = encoded.index(straight, encoded.index(b"tkhd"))
        path.write_bytes(encoded[:at] + wanted + encoded[at + len(wanted) :])

    return change


def crop(path: Path) -> None:
    """Matroska's PixelCropBottom of 16 rows, in place of an element of the same length that says nothing."""
    path.write_bytes(path.read_bytes().replace(b"\x54\xb2\x81\x04", b"\x54\xaa\x81\x10"))


def clean_aperture(*numbers: int) -> Callable[[Path], None]:
    """MP4's clap: width, height, and their offsets from the middle, each as a fraction."""

    def change(path: Path) -> None:
        encoded = bytearray(path.read_bytes())  # FFmpeg writes moov last, so no address in the file changes
        listed, end = encoded.index(b"stsd"), encoded.index(b"stts") - 4
        around = [
            encoded.rindex(kind, 0, listed + 4) for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
        ]
        for at in (*around, listed + 16):  # the last is the list's only entry
            encoded[at - 4 : at] = struct.pack(">i", int.from_bytes(encoded[at - 4 : at]) + 40)
        encoded[end:end] = struct.pack(">i4s8i", 40, b"clap", *numbers)
        path.write_bytes(encoded)

    return change


XVID = {"codec": "mpeg4", "g": "10", "bf": "2", "sc_threshold": "1000000000", "qmax": "2"}
HD = {"size": (1280, 720)}
FILES = {
    "plain.mp4": File("H.264 with B-frames, a key frame every 10", H264),
    "b_frames.avi": File("MPEG-4 with B-frames", XVID),
    "packed.avi": File("MPEG-4 with B-frames packed as by DivX and Xvid", XVID | {"bf": "1"}, change=pack),
    "h264.ts": File("H.264 in an MPEG transport stream", H264),
    "mpeg2.mpg": File("MPEG-2 in an MPEG program stream", {"codec": "mpeg2video", "g": "10", "bf": "2", "qmax": "2"}),
    "trimmed.mp4": File("trimmed without coding again: an edit list hides 7 frames", H264, change=trim, first=7),
    "vfr.mp4": File("frames at uneven times", H264, times=lambda number: 40 * number + 200 * (number // 5)),
    "fragmented.mp4": File("in fragments", H264 | {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "interlaced.mp4": File("interlaced H.264", H264 | {"x264-params": "b-adapt=0:scenecut=0:tff=1"}),
    "deep.mp4": File("10 bits a sample", H264, pixels="yuv420p10le"),
    "av1.mp4": File("AV1", {"codec": "libsvtav1", "preset": "10", "g": "10", "crf": "10", "svtav1-params": "lp=1"}),
    "odd.webm": File("odd sides, VP9", {"codec": "libvpx-vp9", "g": "10", "crf": "4", "b": "0"}, size=(161, 97)),
    "mirrored.mp4": File("to be mirrored left to right", H264, coded=(False, True, False), change=matrix(-1, 0, 0, 1)),
    "flipped.mp4": File("to be mirrored top to bottom", H264, coded=(False, False, True), change=matrix(1, 0, 0, -1)),
    "rotated.mp4": File("to be turned by 90°", H264, coded=(True, False, True), change=matrix(0, 1, -1, 0)),
    "cropped.mkv": File("to be cropped: Matroska's PixelCropBottom", H264, change=crop, cropped=16),
    "cropped.mp4": File(
        "to be cropped: MP4's clean aperture (`clap`)",
        H264,
        change=clean_aperture(160, 1, 80, 1, 0, 1, -8, 1),
        cropped=16,
    ),
    "full.mp4": File("full range, tagged so", H264, full=True, tags=(6, 2)),
    "hd_709.mp4": File("1280 × 720, BT.709, tagged so", H264, **HD, matrix="BT.709", tags=(1, 1)),
    "hd_untagged.mp4": File("1280 × 720 without a tag, BT.601 as FFmpeg makes it of RGB", H264, **HD),
}
