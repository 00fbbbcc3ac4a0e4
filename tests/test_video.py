import contextlib
import faulthandler
import io
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import types
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_files import clean_aperture

from repflow.video import (
    VideoError,
    count_frames,
    decoders,
    frame_rate,
    iter_frames,
    loadvid,
    loadvid_frame_nums,
    probe,
    read_clip,
    reading,
)
from repflow.video.headers import shown_part

LENGTH = 30


def write_video(path, codec="mpeg4", size=(50, 38), length=LENGTH, times=None, container_options=None, **options):
    """A noisy picture that drifts, so no two frames are alike and B-frames pay."""
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for shift in range(length):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[shift], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def written(path, codec="mpeg4", **options):
    """`write_video`, or the test is skipped where this FFmpeg lacks the encoder."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    return write_video(path, codec, **options)


def decode_all(source):
    """The reference: every frame, one after the other."""
    with av.open(source if isinstance(source, io.BytesIO) else str(source)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


VIDEOS = {
    "mpeg4.avi": {"codec": "mpeg4"},
    "odd.avi": {"codec": "mpeg4", "size": (37, 29)},  # lines are padded
    "b_frames.avi": {"codec": "mpeg4", "bf": "2"},
    "h264.mp4": {"codec": "libx264", "g": "12", "bf": "3"},
}


@pytest.fixture(scope="module", params=VIDEOS)
def video(request, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("video") / request.param, **VIDEOS[request.param])
    return path, decode_all(path)


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 35), frames=st.none() | st.integers(1, 12), stride=st.integers(1, 7))
def test_read_clip_equals_sequential_decoding(video, start, frames, stride):
    path, everything = video
    wanted = everything[start::stride][:frames]
    if len(wanted) < (frames or 1):
        with pytest.raises(VideoError, match=f"{path.name}.*the video has {LENGTH}; ask for fewer"):
            read_clip(path, start, frames, stride)
    else:
        clip = read_clip(path, start, frames, stride)
        assert clip.dtype == np.uint8
        np.testing.assert_array_equal(clip, wanted)


def test_iter_frames_and_probe_agree_with_read_clip(video):
    path, everything = video
    frames = list(iter_frames(str(path)))
    np.testing.assert_array_equal(np.stack(frames), everything)
    assert frames[0].flags.c_contiguous
    assert frames[0].flags.writeable
    assert probe(path) == (everything.shape[2], everything.shape[1], 25.0, LENGTH)


def scanned(path, stop=sys.maxsize):
    with reading.open_video(path) as stream:
        return reading.scan_packets(stream, stop)


# Each file's options, and the key frames that decoding may begin at; None where it has to begin at the first frame.
SEEKABLE = {
    "long.mp4": ({"codec": "libx264", "g": "250", "bf": "3"}, [0]),
    "short.mp4": ({"codec": "libx264", "g": "12", "bf": "3", "sc_threshold": "0"}, [0, 12, 24, 36]),
    "short.mov": ({"codec": "libx264", "g": "12", "bf": "0", "sc_threshold": "0"}, [0, 12, 24, 36]),
    "short.mkv": ({"codec": "libx264", "g": "12", "bf": "2", "sc_threshold": "0"}, [0, 12, 24, 36]),
    "uneven.mp4": (
        {"codec": "libx264", "g": "12", "sc_threshold": "0", "times": [n * n for n in range(40)]},
        [0, 12, 24, 36],
    ),
    "open.mp4": ({"codec": "libx264", "x264-params": "keyint=10:open-gop=1:bframes=3:scenecut=0"}, [0]),
    "refresh.mkv": ({"codec": "libx264", "x264-params": "keyint=10:intra-refresh=1:bframes=0"}, [0]),
    "vp9.webm": ({"codec": "libvpx-vp9", "g": "10", "cpu-used": "8"}, [0, 10, 20, 30]),
    "vp8.webm": ({"codec": "libvpx", "g": "10", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}, None),
    "mpeg4.avi": ({"codec": "mpeg4", "sc_threshold": "1000000000", "qmax": "2"}, [0, 12, 24, 36]),
    "mpeg4.mp4": ({"codec": "mpeg4", "sc_threshold": "1000000000", "qmax": "2"}, [0, 12, 24, 36]),
    "mpeg4.mkv": ({"codec": "mpeg4", "g": "7", "sc_threshold": "1000000000", "qmax": "2"}, [0, 7, 14, 21, 28, 35]),
    "b_frames.avi": ({"codec": "mpeg4", "bf": "2"}, None),
    "b_frames.mp4": ({"codec": "mpeg4", "bf": "2"}, None),
    "fragments.mp4": (
        {"codec": "libx264", "g": "12", "sc_threshold": "0", "container_options": {"movflags": "frag_keyframe"}},
        [0, 12, 24, 36],
    ),
    "h264.avi": ({"codec": "libx264", "g": "12", "bf": "3"}, None),
    "h264.ts": ({"codec": "libx264", "g": "12", "bf": "3"}, None),
    "bare.h264": ({"codec": "libx264", "g": "12", "bf": "3"}, None),
}


@pytest.mark.parametrize("name", SEEKABLE)
def test_any_start_equals_sequential_decoding(tmp_path, monkeypatch, name):
    options, keys = SEEKABLE[name]
    path = written(tmp_path / name, size=(48, 32), length=40, **options)
    everything = decode_all(path)
    if keys is None:
        assert scanned(path) is None
    else:
        assert sorted({scanned(path, stop)[1][-1].number for stop in range(len(everything))}) == keys
        assert scanned(path)[0] == len(everything)
    apart = [1, 2, 13, 25, 38]
    monkeypatch.setattr(reading, "GAP", 8)
    np.testing.assert_array_equal(list(reading.choose_frames(path, apart)), everything[apart])
    monkeypatch.setattr(reading, "SEEK_FROM", 1)
    encoded = path.read_bytes()
    assert probe(path) == probe(encoded) == (48, 32, frame_rate(encoded), len(everything))
    assert count_frames(path) == count_frames(encoded) == len(everything)
    for start, stride in itertools.product(range(len(everything)), (1, 4, 13)):
        wanted = everything[start::stride][:3]
        np.testing.assert_array_equal(read_clip(path, start, len(wanted), stride), wanted)
    for start in (1, 15, 30):
        np.testing.assert_array_equal(read_clip(encoded, start), everything[start:])
    with pytest.raises(VideoError, match=f"video of {len(encoded)} bytes in memory.*the video has {len(everything)};"):
        read_clip(encoded, len(everything))


def stored_packets(path):
    with av.open(str(path)) as source:
        return [bytes(packet) for packet in source.demux(video=0) if packet.size]


def store_packets(path, like, chunks):
    """An AVI file of these packets, with the stream's data of another one."""
    with av.open(str(like)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = number == 0 or b"\0\0\1\xb3" in chunk  # an I picture follows
            container.mux(packet)


def write_packed(path):
    """B-frames as DivX and Xvid store them in AVI: each in one packet with the frame after it, then a blank packet."""
    plain = write_video(path.with_suffix(".plain.avi"), length=31, bf="1", b_strategy="0")
    first, *rest = stored_packets(plain)
    pairs = ([*pair, b"\0\0\1\xb6\x50\x4f"] for pair in zip(rest[::2], rest[1::2], strict=True))
    chunks = [b"\0\0\1\xb2DivX503b1393p" + first, *(c for a, b, blank in pairs for c in (a + b, blank))]
    store_packets(path, plain, chunks)
    return plain


def test_packed_b_frames_come_in_order(tmp_path, monkeypatch):
    path = tmp_path / "packed.avi"
    everything = decode_all(write_packed(path))
    monkeypatch.setattr(reading, "SEEK_FROM", 1)
    assert probe(path).frames == len(everything)
    for start in range(len(everything)):
        np.testing.assert_array_equal(read_clip(path, start, stride=3), everything[start::3])


def test_where_seeking_goes_wrong_decoding_begins_anew(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mp4", "libx264", g="5", sc_threshold="0")
    everything = decode_all(path)
    packets, keys = scanned(path, 20)
    truth = keys[-1]
    for lie in (
        (packets, [*keys[:-1], truth._replace(place=(truth.place[0] + 1, truth.place[1]))]),  # a packet not there
        (packets, [*keys[:-1], truth._replace(time=truth.time + 5 * 512)]),  # beyond the key frame
        (packets, [*keys[:-1], truth._replace(time=-(10**9))]),  # before the file's begin
        scanned(path, 3),
        None,
    ):
        monkeypatch.setattr(reading, "scan_packets", lambda stream, stop, lie=lie: lie)
        monkeypatch.setattr(reading, "SEEK_FROM", 1)
        np.testing.assert_array_equal(read_clip(path, 20), everything[20:])


def test_the_frames_between_views_far_apart_are_not_decoded(tmp_path, monkeypatch):
    """Views of a long file: each is decoded from the key frame before it on, and no frame twice."""
    path = written(tmp_path / "long.mp4", "libx264", length=1000, g="10", bf="2", sc_threshold="0")
    decoded, frames_of = [], reading.frames_of
    monkeypatch.setattr(
        reading, "frames_of", lambda packet: (decoded.append(frame.pts) or frame for frame in frames_of(packet))
    )
    numbers = [number for first in (3, 333, 360, 700, 990) for number in range(first, first + 10, 2)]
    frames = list(reading.choose_frames(path, numbers))
    assert len(set(decoded)) == len(decoded) < 100
    np.testing.assert_array_equal(frames, decode_all(path)[numbers])


def test_a_view_that_seeking_cannot_find_is_found_by_decoding(tmp_path, monkeypatch):
    path = written(tmp_path / "long.mp4", "libx264", length=300, g="10", sc_threshold="0")
    packets, keys = scanned(path, 250)
    keys[-1] = keys[-1]._replace(place=(0, 0))
    monkeypatch.setattr(reading, "scan_packets", lambda stream, stop: (packets, keys))
    np.testing.assert_array_equal(list(reading.choose_frames(path, [0, 9, 250])), decode_all(path)[[0, 9, 250]])


def test_frames_that_do_not_come_as_promised_are_counted_anew(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mp4", "libx264", g="5", sc_threshold="0")
    everything, sound = decode_all(path), reading.frames_of
    monkeypatch.setattr(reading, "SEEK_FROM", 1)
    calls = itertools.count()

    def one_lost(packet):
        frames = list(sound(packet))
        return frames[1:] if frames and next(calls) == 7 else frames

    monkeypatch.setattr(reading, "frames_of", one_lost)
    np.testing.assert_array_equal(read_clip(path, 10), everything[10:])
    assert next(calls) > len(everything)  # from a key frame, then from the first frame on


def test_mpeg4_packets_that_are_no_pictures_are_not_counted(tmp_path, monkeypatch):
    """Pictures left out, headers that change on the way, and two pictures in one packet."""
    monkeypatch.setattr(reading, "SEEK_FROM", 1)
    plain = write_video(tmp_path / "plain.avi", sc_threshold="1000000000", qmax="2")
    other = write_video(tmp_path / "other.avi", sc_threshold="1000000000", qmax="2", flags="+qpel", vtag="FMP4")
    packets, others = stored_packets(plain), stored_packets(other)
    blank = b"\0\0\1\xb6\x50\x4f"
    for name, chunks in (
        ("blank", [*packets[:9], blank, *packets[9:]]),
        ("switch", [*packets[:12], *others[12:]]),
    ):
        path = tmp_path / f"{name}.avi"
        store_packets(path, plain, chunks)
        everything = decode_all(path)
        assert scanned(path) is None
        assert count_frames(path) == len(everything)
        for start in range(0, len(everything), 3):
            np.testing.assert_array_equal(read_clip(path, start), everything[start:])


def test_an_edit_list_that_hides_frames(tmp_path):
    path = written(tmp_path / "a.mp4", "libx264", g="5", bf="0", sc_threshold="0")
    encoded = path.read_bytes()
    at = encoded.index(b"elst") + 12  # length, then the time in the media where the edit begins
    (begin,) = struct.unpack(">i", encoded[at + 4 : at + 8])
    cut = encoded[: at + 4] + struct.pack(">i", begin + 7 * 512) + encoded[at + 8 :]
    path.write_bytes(cut)
    everything = decode_all(path)
    assert len(everything) < LENGTH
    assert scanned(path) is None
    np.testing.assert_array_equal(read_clip(cut), everything)


def with_display_matrix(encoded, matrix):
    """The bytes of an MP4 whose header asks for this 2x2 matrix a, b, c, d: pixel (x, y) to (ax + cy, bx + dy)."""
    a, b, c, d = (value << 16 for value in matrix)
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = encoded.index(straight, encoded.index(b"tkhd"))
    return encoded[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + encoded[at + len(straight) :]


def shown(frames, matrix):
    """Frames (T, H, W, 3) as a display matrix shows them: every pixel moved by itself."""
    a, b, c, d = matrix
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    picture = np.zeros((len(frames), to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    picture[:, to_y, to_x] = frames
    return picture


ORIENTATIONS = [m for m in itertools.product((-1, 0, 1), repeat=4) if abs(np.linalg.det(np.reshape(m, (2, 2)))) == 1]
ORIENTATIONS = [m for m in ORIENTATIONS if m.count(0) == 2]


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_turned_and_mirrored_videos_are_set_upright(tmp_path, matrix):
    assert len(ORIENTATIONS) == 8
    path = write_video(tmp_path / "phone.mp4", length=3)
    upright = shown(decode_all(path), matrix)
    turned = with_display_matrix(path.read_bytes(), matrix)
    clip = read_clip(turned)
    np.testing.assert_array_equal(clip, upright)
    assert clip.flags.c_contiguous
    np.testing.assert_array_equal(np.stack(list(iter_frames(turned))), upright)
    assert probe(turned)[:2] == clip.shape[2:0:-1]
    pixels, *size, _ = loadvid(turned, num_frames=3)
    assert tuple(size) == clip.shape[2:0:-1]
    np.testing.assert_array_equal(as_clip(pixels, clip), upright)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg command")
@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_the_ffmpeg_command_sets_them_upright_alike(tmp_path, matrix):
    path = tmp_path / "phone.mp4"
    path.write_bytes(with_display_matrix(write_video(path, length=2).read_bytes(), matrix))
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    clip = read_clip(path)
    # Chroma differs in versions of FFmpeg, and where it is turned before it is made RGB.
    difference = np.frombuffer(raw, np.uint8).reshape(clip.shape).mean(-1) - clip.mean(-1)
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("backend", ["lintel", "torchcodec"])
def test_other_decoders_never_see_mirrored_or_cropped_videos(tmp_path, monkeypatch, torchcodec, backend):
    lintel = decoder_named_lintel()
    monkeypatch.setitem(sys.modules, "lintel", lintel)
    path = write_video(tmp_path / "a.mp4", length=3)
    mirrored = with_display_matrix(path.read_bytes(), (-1, 0, 0, 1))
    clean_aperture(40, 1, 38, 1, 0, 1, 0, 1)(path)
    for encoded in (mirrored, path.read_bytes()):
        with pytest.raises(VideoError, match=r"mirrored, cropped .*backend='pyav' reads it"):
            loadvid(encoded, num_frames=2, backend=backend)
    assert lintel.calls == 0


def check_shown(path, wanted):
    """Every way to read a video gives these frames."""
    clip = read_clip(path)
    np.testing.assert_array_equal(clip, wanted)
    assert clip.flags.c_contiguous
    np.testing.assert_array_equal(np.stack(list(iter_frames(path, 1))), wanted[1:])
    assert probe(path)[:2] == wanted.shape[2:0:-1]
    pixels, *size = loadvid_frame_nums(path.read_bytes(), frame_nums=[len(wanted) - 1])
    assert tuple(size) == wanted.shape[2:0:-1]
    np.testing.assert_array_equal(as_clip(pixels, wanted[-1:]), wanted[-1:])


# Of 50 x 38 px: width, height, their offsets from the middle, and the edges that FFmpeg 9.0's command line shows.
APERTURES = [
    ((40, 1, 20, 1, 0, 1, 0, 1), (9, 29, 5, 45)),
    ((40, 1, 20, 1, 2, 1, -3, 1), (6, 26, 7, 47)),
    ((41, 1, 21, 1, -1, 2, 1, 2), (9, 30, 4, 45)),  # odd: chroma has every second pixel
    ((41, 1, 21, 1, 0, 1, 0, 1), (8, 29, 4, 45)),  # 8.5 rows are left out above, 4.5 columns at the left
    ((81, 2, 43, 2, 1, 2, -1, 2), (7, 29, 5, 45)),
    ((1, 2, 1, 1, 0, 1, 1, 2), (19, 20, 24, 25)),
    *(
        (wrong, (0, 38, 0, 50))
        for wrong in [
            (50, 1, 38, 1, 0, 1, 0, 1),
            (51, 1, 20, 1, 0, 1, 0, 1),
            (40, 1, 20, 1, 20, 1, 0, 1),
            (40, 0, 20, 1, 0, 1, 0, 1),
            (0, 1, 20, 1, 0, 1, 0, 1),
            (40, 1, 20, 1, 0, 1, 0, 0),
            (-40, -1, 20, 1, 0, 1, 0, 1),
        ]
    ),
]


@pytest.mark.parametrize(("numbers", "edges"), APERTURES)
def test_a_clean_aperture_is_all_that_is_shown(tmp_path, numbers, edges):
    path = write_video(tmp_path / "a.mov", length=3)
    top, bottom, left, right = edges
    wanted = decode_all(path)[:, top:bottom, left:right]
    clean_aperture(*numbers)(path)
    check_shown(path, wanted)


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_pictures_are_cropped_before_they_are_turned(tmp_path, matrix):
    path = write_video(tmp_path / "a.mp4", length=3)
    wanted = shown(decode_all(path)[:, 3:24, 7:48], matrix)
    clean_aperture(41, 1, 21, 1, 5, 2, -11, 2)(path)
    path.write_bytes(with_display_matrix(path.read_bytes(), matrix))
    check_shown(path, wanted)


def element(kind, *content):
    """A part of a Matroska file, with its size in eight bytes."""
    content = b"".join(content)
    return bytes.fromhex(kind) + b"\x01" + len(content).to_bytes(7) + content


def write_matroska(path, crops, size=(50, 38)):
    """Sound without a packet, then MPEG-4, to be cropped by (top, bottom, left, right) pixels; returns all pixels."""
    video = write_video(path.with_suffix(".avi"), size=size, length=3)
    blocks = (
        element("a3", b"\x81", (40 * number).to_bytes(2), b"\x80" if number == 0 else b"\0", packet)
        for number, packet in enumerate(stored_packets(video))
    )
    sides = zip(("54bb", "54aa", "54cc", "54dd"), crops, strict=True)
    crop = [element(kind, side.to_bytes(2)) for kind, side in sides if side is not None]
    width, height = (number.to_bytes(2) for number in size)
    picture = element("e0", element("b0", width), element("ba", height), *crop)
    sound = element("e1", element("b5", struct.pack(">f", 8000)))
    path.write_bytes(
        element("1a45dfa3", element("4282", b"matroska"))
        + bytes.fromhex("18538067 01ffffffffffffff")  # of unknown size, as in a stream
        + element("ec", bytes(5))
        + element(
            "1654ae6b",
            element("ae", element("d7", b"\2"), element("83", b"\2"), element("86", b"A_PCM/INT/LIT"), sound),
            element("ae", element("d7", b"\1"), element("83", b"\1"), element("86", b"V_MPEG4/ISO/ASP"), picture),
        )
        + element("1f43b675", element("e7", b"\0"), *blocks)
    )
    return decode_all(video)


@pytest.mark.parametrize("crops", [(0, 16, 0, 0), (3, 1, 5, 7), (None, 9, None, None), (0, 37, 49, 0), (None,) * 4])
def test_matroska_s_crop_is_not_shown(tmp_path, crops):
    everything = write_matroska(tmp_path / "a.mkv", crops)
    top, bottom, left, right = (side or 0 for side in crops)
    check_shown(tmp_path / "a.mkv", everything[:, top : 38 - bottom, left : 50 - right])


def test_a_crop_that_would_leave_nothing_leaves_all(tmp_path):
    write_matroska(tmp_path / "a.mkv", (3, 1, 5, 7))
    assert shown_part(tmp_path / "a.mkv", 5, 13) == (slice(3, 4), slice(5, 6))
    assert shown_part(tmp_path / "a.mkv", 4, 50) == (slice(0, 4), slice(0, 50))
    assert shown_part(tmp_path / "a.mkv", 38, 6) == (slice(0, 38), slice(0, 6))


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """A Matroska file and an MP4 of 50 x 38 px, which show rows 3 to 36 and columns 5 to 42; headers first and last."""
    folder = tmp_path_factory.mktemp("headers")
    write_matroska(folder / "a.mkv", (3, 1, 5, 7))
    clean_aperture(38, 1, 34, 1, -1, 1, 1, 1)(write_video(folder / "a.mp4", length=2))
    return [(folder / name).read_bytes() for name in ("a.mkv", "a.mp4")]


@pytest.mark.parametrize("kind", [0, 1], ids=["mkv", "mp4"])
def test_headers_cut_anywhere_crop_as_they_say_or_not_at_all(headers, kind):
    found = {str(shown_part(headers[kind][:length], 38, 50)) for length in range(len(headers[kind]) + 1)}
    assert {str((slice(0, 38), slice(0, 50))), str((slice(3, 37), slice(5, 43)))} <= found
    assert len(found) < 6  # Matroska's come one by one


@settings(max_examples=100, deadline=None)
@given(at=st.integers(1, 700), junk=st.binary(min_size=1, max_size=9), kind=st.integers(0, 1))
def test_damaged_headers_raise_nothing_else(headers, at, junk, kind):
    encoded = bytearray(headers[kind])
    at = at if kind == 0 else len(encoded) - at
    encoded[at : at + len(junk)] = junk
    with contextlib.suppress(VideoError):
        assert read_clip(encoded).shape[1:] == (*probe(encoded)[1::-1], 3)


@pytest.mark.parametrize("part", [struct.pack(">i4s", 8, b"moov"), b"\xae\x80"])
@pytest.mark.usefixtures("time_limit")
def test_a_trap_of_endless_parts_is_left(part):
    start = b"" if b"moov" in part else element("1a45dfa3") + bytes.fromhex("18538067 ff 1654ae6b ff")
    assert shown_part(start + part * 5_000_000, 38, 50) == (slice(0, 38), slice(0, 50))


@pytest.mark.parametrize(("name", "value"), [("start", -1), ("frames", 0), ("stride", 0)])
def test_impossible_arguments_are_named(video, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        read_clip(video[0], **{name: value})


@pytest.mark.parametrize("name", ["a: b %03d é.avi", "-o.avi", "~.avi", "file:x.avi", "http:x.avi"])
def test_odd_names_are_plain_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.avi", length=2).rename(name)
    assert read_clip(name).shape == (2, 38, 50, 3)


def test_tags_in_another_encoding_do_no_harm(tmp_path):
    path = tmp_path / "tagged.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQ"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    written = path.read_bytes()
    assert b"QQQQ" in written
    path.write_bytes(written.replace(b"QQQQ", b"\xff\xe9\xfe\xe8"))
    assert len(read_clip(path)) == 1


def test_gaps_in_the_time_stamps_are_no_frames(tmp_path):
    path = tmp_path / "gaps.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for pts in (0, 1, 4, 5, 9):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * pts, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert probe(path).frames == 5
    np.testing.assert_allclose(read_clip(path).mean((1, 2, 3)), [0, 20, 80, 100, 180], atol=3)


def _audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _two_sizes(path):
    parts = [write_video(path.with_suffix(f".{w}.h264"), "libx264", (w, 32), length=3) for w in (32, 48)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def _overwritten(path, codec, junk):
    written = bytearray(write_video(path, codec, size=(160, 120)).read_bytes())
    half = len(written) // 2
    written[half : half + len(junk)] = junk
    path.write_bytes(written)


def _changed(path, change):
    path.write_bytes(change(write_video(path).read_bytes()))


def _cut(quarters, front=False, **options):
    def make(path):
        flags = {"movflags": "faststart"} if front else {}
        data = write_video(path, size=(160, 120), container_options=flags, **options).read_bytes()
        path.write_bytes(data[: len(data) * quarters // 4])

    return make


def _too_many(data):
    """An MP4 whose table of samples has more of them than there are: the count, and a size for all."""
    at = data.index(b"stsz") + 8
    return data[:at] + struct.pack(">2i", 500, 500 * LENGTH) + data[at + 8 :]


def _listed(path, text):
    write_video(path.with_name("other.avi"), length=3)
    path.write_text(text)


BAD = {
    "missing.avi": lambda path: None,
    "folder.avi": lambda path: path.mkdir(),
    "pipe.avi": os.mkfifo,
    "empty.avi": lambda path: path.touch(),
    "text.avi": lambda path: path.write_text("not a video\n" * 500),
    "text.txt": lambda path: path.write_text("FFmpeg would draw these letters\n" * 500),
    "zeros.avi": lambda path: path.write_bytes(bytes(50_000)),
    "noise.mp4": lambda path: path.write_bytes(np.random.default_rng(0).bytes(50_000)),
    "playlist.avi": lambda path: _listed(path, "#EXTM3U\n#EXTINF:1,\nother.avi\n#EXT-X-ENDLIST\n"),
    "playlist.m3u8": lambda path: _listed(path, "#EXTM3U\n#EXTINF:1,\nother.avi\n#EXT-X-ENDLIST\n"),
    "concat.avi": lambda path: _listed(path, "ffconcat version 1.0\nfile other.avi\n"),
    "audio.avi": _audio_only,
    "two_sizes.h264": _two_sizes,
    "unknown_codec.avi": lambda path: _changed(path, lambda data: data.replace(b"FMP4", b"ZZZZ")),
    "header_only.avi": lambda path: _changed(path, lambda data: data[: data.index(b"movi") + 4]),
    "cut_short.avi": lambda path: _changed(path, lambda data: data[: len(data) * 6 // 10]),
    "junk.avi": lambda path: _overwritten(path, "mpeg4", np.random.default_rng(0).bytes(3000)),
    "blank.avi": lambda path: _overwritten(path, "mpeg4", bytes(3000)),  # whole frames are lost, the rest decodes
    "junk.mp4": lambda path: _overwritten(path, "libx264", np.random.default_rng(0).bytes(3000)),
    "junk.mkv": lambda path: _overwritten(path, "libx264", np.random.default_rng(0).bytes(3000)),
    "loop.avi": lambda path: path.symlink_to(path),
    "dangling.avi": lambda path: path.symlink_to("nowhere"),
    "device.avi": lambda path: path.symlink_to("/dev/zero"),
    "many_samples.mp4": lambda path: _changed(path, _too_many),
    **{f"front_{n}.mp4": _cut(n, front=True) for n in (1, 2, 3)},
    **{f"behind_{n}.mp4": _cut(n) for n in (1, 2, 3)},
    **{f"cut_{n}.avi": _cut(n) for n in (1, 2, 3)},
    **{f"cut_{n}.mkv": _cut(n) for n in (1, 2, 3)},
    **{f"cut_{n}.webm": _cut(n, codec="libvpx-vp9") for n in (1, 2, 3)},
    "new\nline.avi": _cut(2),
}


@pytest.fixture
def time_limit():
    """Ends the run, with a traceback, where FFmpeg hangs: a signal's handler would wait for it."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("time_limit")
def test_bad_files_raise_an_error_that_names_them(tmp_path, name, capfd):
    path = tmp_path / name
    try:
        BAD[name](path)
    except av.error.EncoderNotFoundError as error:
        pytest.skip(str(error))
    for read in (read_clip, probe):
        with pytest.raises(VideoError, match=f"{re.escape(repr(name)[1:-1])}.*;"):
            read(path)
    if path.is_file():
        for read in (read_clip, probe):
            with pytest.raises(VideoError, match=r"^video of \d+ bytes in memory.*;"):
                read(path.read_bytes())
    assert capfd.readouterr() == ("", "")  # FFmpeg does not talk to the terminal


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_video(tmp_path / "locked.avi", length=2)
    path.chmod(0)
    with pytest.raises(VideoError, match=r"locked.avi.*permission"):
        read_clip(path)


@pytest.mark.parametrize(("first", "second"), [((32, 32), (48, 32)), ((48, 32), (32, 32))])
def test_a_recording_that_changes_its_size_is_not_called_damaged(tmp_path, first, second):
    parts = [written(tmp_path / f"{n}.h264", "libx264", size=size, length=3) for n, size in enumerate((first, second))]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    sizes = rf"{first[0]}x{first[1]} px in frame 0 and {second[0]}x{second[1]} px in frame 3; cut the recording where"
    with pytest.raises(VideoError, match=sizes):
        read_clip(path)
    np.testing.assert_array_equal(read_clip(path, frames=3), decode_all(parts[0]))


def test_another_format_is_not_called_damaged(tmp_path):
    path = write_video(tmp_path / "a.swf", "flv")
    with pytest.raises(VideoError, match=r"a.swf.*common format, found another one; convert it"):
        read_clip(path)


def test_frames_before_the_damage_are_read(tmp_path):
    path = write_video(tmp_path / "cut.avi", size=(160, 120))
    before = decode_all(path)[:5]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    with pytest.raises(VideoError, match="cut short"):
        read_clip(path)
    np.testing.assert_array_equal(read_clip(path, frames=5), before)


@pytest.mark.parametrize("address", ["http://localhost:9/a.avi", "concat:a.avi|b.avi", "/dev/null", ""])
def test_addresses_and_devices_are_no_videos(address):
    with pytest.raises(VideoError, match="expected a video file, found"):
        read_clip(address)


@pytest.mark.parametrize("name", ["test.avi", "test.mp4", "arm_wrestling.mp4"])
def test_videos_from_elsewhere(shared, name):
    path = shared / "videos" / name
    everything = decode_all(path)
    assert probe(path).frames == len(everything)
    np.testing.assert_array_equal(read_clip(path, 90, 8, 9), everything[90 : 90 + 8 * 9 : 9])


@pytest.fixture
def ten(tmp_path):
    path = write_video(tmp_path / "ten.mp4", size=(36, 22), length=10)
    return path.read_bytes(), decode_all(path)


def as_clip(pixels, like):
    assert isinstance(pixels, bytearray)
    return np.frombuffer(pixels, np.uint8).reshape(-1, *like.shape[1:])


def test_loadvid_keeps_lintels_contract(ten):
    encoded, everything = ten
    pixels, width, height, seconds = loadvid(encoded, should_random_seek=False, num_frames=4)
    assert (width, height, seconds) == (36, 22, 0.0)
    np.testing.assert_array_equal(as_clip(pixels, everything), everything[:4])
    pixels, seconds = loadvid(encoded, width=36, height=22, num_frames=9, rng=np.random.default_rng(1))
    start = round(seconds * 25)
    np.testing.assert_array_equal(as_clip(pixels, everything), everything[start : start + 9])
    pixels, *_ = loadvid(encoded, num_frames=24)
    np.testing.assert_array_equal(as_clip(pixels, everything), everything[np.arange(24) % 10])


def starts(encoded, draws, **options):
    return [round(loadvid(encoded, num_frames=8, **options)[-1] * 25) for _ in range(draws)]


def test_starts_are_uniform_and_take_a_seed(ten):
    encoded, _ = ten
    drawn = starts(encoded, 300, rng=np.random.default_rng(0))
    assert drawn == starts(encoded, 300, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3), [100, 100, 100], atol=30)
    torch.manual_seed(3)
    drawn = starts(encoded, 20)
    torch.manual_seed(3)
    assert drawn == starts(encoded, 20)
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize("should_seek", [False, True])
def test_loadvid_frame_nums_takes_any_frames(ten, should_seek):
    encoded, everything = ten
    numbers = [7, 0, 3, 3, 9]
    pixels, width, height = loadvid_frame_nums(encoded, frame_nums=numbers, should_seek=should_seek)
    assert (width, height) == (36, 22)
    np.testing.assert_array_equal(as_clip(pixels, everything), everything[numbers])
    assert loadvid_frame_nums(encoded, frame_nums=np.array(numbers), width=36, height=22) == pixels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"width": 36}, r"must be the video's, \(36, 22\), or 0, got \(36, 0\)"),
        ({"width": 112, "height": 112}, r"must be the video's, \(36, 22\), or 0, got \(112, 112\)"),
        ({"backend": "opencv"}, "backend must be one of pyav, lintel, torchcodec, got 'opencv'"),
    ],
)
def test_impossible_requests_are_named(ten, options, message):
    with pytest.raises(ValueError, match=message):
        loadvid(ten[0], **options)


def test_frame_numbers_out_of_range(ten):
    for numbers in ([], [-1, 2]):
        with pytest.raises(ValueError, match="one or more numbers from 0 on"):
            loadvid_frame_nums(ten[0], frame_nums=numbers)
    with pytest.raises(VideoError, match="at least 11 frames, the video has 10"):
        loadvid_frame_nums(ten[0], frame_nums=[0, 10])


def decoder_named_lintel():
    """A stand-in with lintel's faults: off by one without should_seek, and no check of anything."""
    lintel = types.ModuleType("lintel")
    lintel.calls = 0

    def loadvid_frame_nums(encoded_video, *, frame_nums, width=0, height=0, should_seek=False):
        lintel.calls += 1
        frames = decode_all(io.BytesIO(encoded_video))
        assert frames.shape[1:3] == (height, width)  # lintel aborts
        return bytearray(frames[np.array(frame_nums) + (0 if should_seek else 1)])

    lintel.loadvid_frame_nums, lintel.loadvid = loadvid_frame_nums, lambda encoded_video, **options: None
    return lintel


def test_lintel_reads_the_same_frames(ten, monkeypatch):
    encoded, everything = ten
    monkeypatch.setitem(sys.modules, "lintel", decoder_named_lintel())
    for options in ({"num_frames": 24}, {"num_frames": 4, "should_random_seek": False}, {"num_frames": 6}):
        with_lintel, with_pyav = (
            loadvid(encoded, backend=backend, rng=np.random.default_rng(2), **options) for backend in ("lintel", "pyav")
        )
        assert with_lintel == with_pyav
    pixels = loadvid_frame_nums(encoded, frame_nums=[5, 2], width=36, height=22, backend="lintel")
    np.testing.assert_array_equal(as_clip(pixels, everything), everything[[5, 2]])


def test_lintel_never_sees_what_it_gets_wrong(ten, tmp_path, monkeypatch):
    lintel = decoder_named_lintel()
    monkeypatch.setitem(sys.modules, "lintel", lintel)
    cut = write_video(tmp_path / "cut.avi", size=(160, 120)).read_bytes()[:-5000]
    write_packed(tmp_path / "packed.avi")
    packed = (tmp_path / "packed.avi").read_bytes()
    uneven = write_video(tmp_path / "uneven.mp4", times=[n * n for n in range(LENGTH)]).read_bytes()
    for encoded, message in (
        (b"", "readable video"),
        (b"text" * 999, "readable video"),
        (cut, "readable video"),
        (packed, "without even time stamps"),
        (uneven, "without even time stamps"),
    ):
        with pytest.raises(VideoError, match=message):
            loadvid_frame_nums(encoded, frame_nums=[1], backend="lintel")
    with pytest.raises(VideoError, match="the video has 10"):
        loadvid_frame_nums(ten[0], frame_nums=[10], backend="lintel")
    assert lintel.calls == 0


def test_the_wrong_lintel_or_none_is_refused(ten, monkeypatch):
    for module in (types.ModuleType("lintel"), None):
        monkeypatch.setitem(sys.modules, "lintel", module)
        with pytest.raises(ImportError, match=r"conda-forge has it .* PyPI's lintel is a docstring"):
            loadvid(ten[0], backend="lintel")


class StandInForTorchcodec:
    """torchcodec's interface. `late` is by how many frames it is wrong, as it is in some AVI and MPEG-TS files."""

    late = 0

    def __init__(self, source, *, dimension_order, num_ffmpeg_threads):
        assert (dimension_order, num_ffmpeg_threads) == ("NHWC", 1)
        self.frames = torch.from_numpy(decode_all(io.BytesIO(source)))

    def get_frames_at(self, indices):
        wanted = torch.tensor(indices) + self.late
        if max(wanted) >= len(self.frames):
            raise RuntimeError("Requested next frame while there are no more frames left to decode.")
        return types.SimpleNamespace(data=self.frames[wanted], pts_seconds=wanted / torch.tensor(25.0).double())


@pytest.fixture
def torchcodec(monkeypatch):
    module = types.ModuleType("torchcodec.decoders")
    module.VideoDecoder = StandInForTorchcodec
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    return module


def test_torchcodec_by_its_interface(ten, torchcodec, monkeypatch):
    encoded, everything = ten
    pixels, *_ = loadvid_frame_nums(encoded, frame_nums=[8, 2], backend="torchcodec")
    np.testing.assert_array_equal(as_clip(pixels, everything), everything[[8, 2]])
    monkeypatch.setattr(StandInForTorchcodec, "late", 1)
    with pytest.raises(VideoError, match=r"frame 2, at 0\.08 s, torchcodec gives the one at 0\.12 s; use"):
        loadvid_frame_nums(encoded, frame_nums=[8, 2], backend="torchcodec")
    with pytest.raises(VideoError, match=r"torchcodec fails \(Requested next .* to decode.\); use backend='pyav'"):
        loadvid_frame_nums(encoded, frame_nums=[9], backend="torchcodec")

    def no_ffmpeg(*args, **options):
        raise RuntimeError("Could not load libtorchcodec.\nLikely causes: ...")

    torchcodec.VideoDecoder = no_ffmpeg
    with pytest.raises(ImportError, match=r"\(Could not load libtorchcodec.\); .*install FFmpeg's libraries"):
        loadvid(encoded, backend="torchcodec")


@pytest.mark.parametrize("name", ["a.mp4", "open.mp4", "a.mkv", "b_frames.avi", "a.avi", "a.ts", "a.mpg"])
def test_torchcodec_gives_the_right_frames_or_says_so(tmp_path, name):
    """The genuine one, where it is installed."""
    pytest.importorskip("torchcodec")
    codec, options = {
        "a.mp4": ("libx264", {"g": "5", "sc_threshold": "0"}),
        "open.mp4": ("libx264", {"x264-params": "keyint=10:open-gop=1:bframes=3:scenecut=0"}),
        "a.mkv": ("libx264", {"g": "12"}),
        "b_frames.avi": ("mpeg4", {"bf": "2"}),
        "a.avi": ("libx264", {"g": "12"}),
        "a.ts": ("libx264", {"g": "12", "bf": "2"}),
        "a.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    }[name]
    path = written(tmp_path / name, codec, size=(48, 32), **options)
    everything, encoded, right = decode_all(path), path.read_bytes(), 0
    for number in range(LENGTH):
        with contextlib.suppress(VideoError):
            pixels, *_ = loadvid_frame_nums(encoded, frame_nums=[number], backend="torchcodec")
            # Another FFmpeg converts colours otherwise.
            np.testing.assert_allclose(as_clip(pixels, everything)[0].astype(int), everything[number], atol=8)
            right += 1
    assert right or not name.endswith((".mp4", ".mkv"))


def test_decoders_are_tried(monkeypatch):
    monkeypatch.setitem(sys.modules, "lintel", decoder_named_lintel())
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    pyav, lintel, torchcodec = decoders()
    assert pyav == ("pyav", True, f"decodes; version {av.__version__}")
    assert lintel == ("lintel", True, "decodes; version unknown")
    assert torchcodec[:2] == ("torchcodec", False)
    assert "pip install torchcodec" in torchcodec[2]


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mov"])
@pytest.mark.parametrize("lie", [(0, 0), (4000, 3000), (-5, 7)])
def test_a_wrong_size_in_the_header_changes_nothing(tmp_path, name, lie):
    path = write_video(tmp_path / name, size=(48, 32), length=6)
    form = "<2i" if name == "a.avi" else ">2h"
    honest, lying = (struct.pack(form, *size) for size in ((48, 32), lie))
    encoded = path.read_bytes()
    assert honest in encoded
    np.testing.assert_array_equal(read_clip(encoded.replace(honest, lying)), decode_all(path))


def test_a_wrong_number_of_frames_in_the_header_changes_nothing(tmp_path):
    encoded = write_video(tmp_path / "a.avi").read_bytes()
    at = encoded.index(b"avih") + 8 + 16
    assert struct.unpack("<i", encoded[at : at + 4]) == (LENGTH,)
    assert probe(encoded[:at] + struct.pack("<i", 7) + encoded[at + 4 :]).frames == LENGTH
