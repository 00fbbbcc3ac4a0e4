"""Every frame of many kinds of file, by three oracles: its number drawn into it, plain PyAV, and the uncut file."""

import contextlib
import io
import logging
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from repflow.video import VideoError, count_frames, iter_frames, loadvid_frame_nums, probe, read_clip
from repflow.video.write import schedule_kept, write_video

LENGTH = 26  # frames; above 8, where seeking begins, and three groups of pictures
BITS = 5


def drawn(number, size):
    """A picture with its number: black and white fields above, a moving ramp below, so that B-frames pay."""
    W, H = size
    picture = np.empty((H, W, 3), np.uint8)
    picture[:] = (np.add.outer(np.arange(H), np.arange(W) + 3 * number) % 96 + 80)[..., None]
    for bit in range(BITS):
        picture[: H // 2, W * bit // BITS : W * (bit + 1) // BITS] = 235 if number >> bit & 1 else 20
    return picture


def numbers_in(frames):
    """The numbers that `drawn` drew."""
    _, H, W, _ = frames.shape
    middles = [W * (2 * bit + 1) // (2 * BITS) for bit in range(BITS)]
    fields = np.stack([frames[:, H // 8 : H // 4, x - 2 : x + 2].mean((1, 2, 3)) for x in middles], 1)
    return ((fields > 128) @ (1 << np.arange(BITS))).tolist()


def make(path, codec, size=(96, 64), pix_fmt="yuv420p", length=LENGTH, container="", **options):
    """A file with `length` drawn frames; the test is skipped where this FFmpeg lacks the encoder."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    with schedule_kept(), av.open(str(path), "w", format=container or None) as file:
        stream = file.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for number in range(length):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(drawn(number, size), format="rgb24")))
        file.mux(stream.encode())
    return path


def plainly(path):
    """All frames by PyAV without any option of ours."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def check_everything_agrees(path, wanted):
    """Every way to read the file gives these frames, wherever it starts."""
    encoded = path.read_bytes()
    np.testing.assert_array_equal(read_clip(path), wanted)
    np.testing.assert_array_equal(np.stack(list(iter_frames(path))), wanted)
    assert count_frames(path) == probe(path).frames == len(wanted)
    assert probe(path)[:2] == wanted.shape[2:0:-1]
    for start in range(len(wanted)):
        np.testing.assert_array_equal(read_clip(encoded, start, 1)[0], wanted[start])
    picked = [len(wanted) - 1, 0, len(wanted) // 2]
    pixels, *_ = loadvid_frame_nums(encoded, frame_nums=picked)
    np.testing.assert_array_equal(np.frombuffer(pixels, np.uint8).reshape(-1, *wanted.shape[1:]), wanted[picked])
    with pytest.raises(VideoError, match=f"the video has {len(wanted)};"):
        read_clip(path, len(wanted))


X264 = {"codec": "libx264", "preset": "veryfast"}
OPEN = {"codec": "libx264", "x264-params": "open-gop=1:keyint=8:bframes=3:b-adapt=0:scenecut=0:repeat-headers=1"}
X265 = {"codec": "libx265", "preset": "ultrafast", "x265-params": "log-level=none:keyint=8:bframes=3:pools=none"}
VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8", "g": "8"}
SMALL = {"length": 4}
FILES = {
    "closed.mp4": X264 | {"g": "8", "bf": "3"},
    "closed.mov": X264 | {"g": "8", "bf": "0"},
    "closed.mkv": X264 | {"g": "8", "bf": "2"},
    "closed.ts": X264 | {"g": "8", "bf": "2"},
    "closed.flv": X264 | {"g": "8", "bf": "2"},
    "closed.avi": X264 | {"g": "8", "bf": "2"},
    "closed.h264": X264 | {"g": "8", "bf": "2"},
    "open.mp4": OPEN,
    "open.mkv": OPEN,
    "open.ts": OPEN,
    "refresh.mp4": {"codec": "libx264", "x264-params": "intra-refresh=1:keyint=8:bframes=0"},
    "odd.mp4": {"codec": "libx264", "pix_fmt": "yuv444p", "size": (97, 61), "g": "8"},
    "deep.mkv": {"codec": "libx264", "pix_fmt": "yuv420p10le", "g": "8"},
    "interlaced.ts": {"codec": "libx264", "x264-params": "tff=1:keyint=8:bframes=2"},
    "hevc.mp4": X265,
    "hevc.mkv": X265,
    "hevc.ts": X265,
    "bare.hevc": X265,
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "8", "bf": "2"},
    "mpeg2.vob": {"codec": "mpeg2video", "g": "8", "bf": "2"},
    "mpeg2.ts": {"codec": "mpeg2video", "g": "8", "bf": "2"},
    "mpeg2.m2v": {"codec": "mpeg2video", "g": "8"},
    "mpeg2.mxf": {"codec": "mpeg2video", "g": "8"},
    "mpeg1.mpg": {"codec": "mpeg1video", "g": "8", "bf": "2"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "8"},
    "b_frames.avi": {"codec": "mpeg4", "g": "8", "bf": "2"},
    "b_frames.mp4": {"codec": "mpeg4", "g": "8", "bf": "2"},
    "odd.avi": {"codec": "mpeg4", "size": (97, 61), "g": "8"},
    "quarter.m4v": {"codec": "mpeg4", "flags": "+qpel", "container": "m4v"},
    "sorenson.flv": {"codec": "flv", "g": "8"},
    "h263.3gp": {"codec": "h263", "size": (176, 144), "g": "8"},
    "h263.h263": {"codec": "h263", "size": (176, 144), "g": "8"},
    "windows.wmv": {"codec": "wmv2", "g": "8"},
    "divx3.asf": {"codec": "msmpeg4", "g": "8"},
    "vp8.webm": {"codec": "libvpx", "deadline": "realtime", "g": "8", "auto-alt-ref": "1", "lag-in-frames": "8"},
    "vp8.ogv": {"codec": "libvpx", "deadline": "realtime", "g": "8"},
    "vp9.webm": VP9,
    "vp9.mp4": VP9,
    "odd.webm": VP9 | {"size": (97, 61)},
    "av1.webm": {"codec": "libsvtav1", "preset": "12", "g": "8", "svtav1-params": "lp=1", "size": (128, 64)},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "lossless.mkv": {"codec": "ffv1"},
    "huffman.avi": {"codec": "huffyuv", "pix_fmt": "yuv422p"},
    "plain.avi": {"codec": "rawvideo", "pix_fmt": "bgr24"},
    "bare.y4m": {"codec": "wrapped_avframe", "length": 4},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "dnxhr.mov": SMALL | {"codec": "dnxhd", "profile": "dnxhr_lb", "pix_fmt": "yuv422p", "size": (256, 120)},
    "camera.dv": SMALL | {"codec": "dvvideo", "size": (720, 576)},
    "moving.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "mpeg4.nut": {"codec": "mpeg4", "g": "8", "bf": "2"},
}


@pytest.mark.parametrize("name", FILES)
def test_every_frame_wherever_reading_starts(tmp_path, name):
    path = make(tmp_path / name, **FILES[name])
    everything = plainly(path)
    assert numbers_in(everything) == list(range(len(everything)))
    assert len(everything) == FILES[name].get("length", LENGTH)
    check_everything_agrees(path, everything)


def packets_of(path):
    """Its packets in decoding order and the numbers of the key frames among them."""
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    return packets, [number for number, packet in enumerate(packets) if packet.is_keyframe]


def cut(path, out, first):
    """Copy the packets from number `first` on, without decoding: what "-c copy" does."""
    with av.open(str(path)) as source, av.open(str(out), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= first and packet.size:
                packet.stream = stream
                file.mux(packet)
    return out


def complaints(path):
    """FFmpeg's errors when it decodes a file, but those of references that a cut took away."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as lines, av.open(str(path)) as file, contextlib.suppress(av.FFmpegError):
            list(file.decode(video=0))
    finally:
        av.logging.set_level(None)
    return [text for level, _, text in lines if level <= av.logging.ERROR and "eference" not in text]


STREAMS = {
    "h264": OPEN,
    "flat": OPEN | {"x264-params": OPEN["x264-params"] + ":b-pyramid=0:ref=1"},
    "closed": X264 | {"g": "8", "bf": "3", "sc_threshold": "0"},
    "hevc": X265 | {"x265-params": X265["x265-params"] + ":open-gop=1:repeat-headers=1"},
    "mpeg2": {"codec": "mpeg2video", "g": "8", "bf": "3", "sc_threshold": "1000000000", "b_strategy": "0"},
    "mpeg4": {"codec": "mpeg4", "g": "8", "bf": "2", "sc_threshold": "1000000000"},
}


@pytest.mark.parametrize("before", [0, 3], ids=["at_a_key_frame", "in_the_middle"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("kind", ["h264", "flat", "hevc", "mpeg2", "mpeg4"])
def test_a_cut_without_encoding_begins_at_the_first_clean_frame(tmp_path, caplog, kind, container, before):
    """Open groups of pictures: frames after the second key frame refer to others before the cut."""
    whole = make(tmp_path / f"whole.{container}", **STREAMS[kind])
    packets, keys = packets_of(whole)
    assert len(keys) > 2
    times = sorted(packet.pts for packet in packets)
    clean = times.index(packets[keys[1]].pts)  # the number in display order
    path = cut(whole, tmp_path / f"cut.{container}", keys[1] - before)
    with caplog.at_level(logging.WARNING, "repflow.video"):
        check_everything_agrees(path, plainly(whole)[clean:])
    packets, (key, *_) = packets_of(path)
    assert key == before
    earlier = packets[:key] + [p for p in packets[key:] if p.pts is None or p.pts < packets[key].pts]
    left_out = sum(not packet.is_discard for packet in earlier)  # MP4's own list of edits hides some
    assert left_out or container == "mp4"
    assert [f"left out {left_out} pictures" in text for text in caplog.messages if str(path) in text] == [True] * (
        left_out > 0
    )  # once a file


@pytest.mark.parametrize("container", ["avi", "h264"])
def test_a_cut_file_without_display_times(tmp_path, container):
    whole = make(tmp_path / f"whole.{container}", **OPEN)
    everything = plainly(whole)
    path = cut(whole, tmp_path / f"cut.{container}", packets_of(whole)[1][1])
    clip = read_clip(path)
    assert numbers_in(clip) == list(range(numbers_in(clip)[0], LENGTH))
    np.testing.assert_array_equal(clip, everything[-len(clip) :])
    check_everything_agrees(path, clip)


def test_a_capture_during_a_gradual_refresh_begins_where_the_picture_is_whole(tmp_path):
    options = {"codec": "libx264", "x264-params": "intra-refresh=1:keyint=6:bframes=0:repeat-headers=1"}
    whole = make(tmp_path / "whole.ts", **options)
    path = cut(whole, tmp_path / "cut.ts", 3)
    wanted = plainly(whole)
    clip = read_clip(path)
    assert 0 < len(clip) < LENGTH - 3
    assert numbers_in(clip) == list(range(LENGTH - len(clip), LENGTH))
    np.testing.assert_array_equal(clip, wanted[-len(clip) :])


# Which packet is overwritten (the key frame, the next reference, one far behind), and from what share of it on.
@pytest.mark.parametrize(("damaged", "sound"), [(0, 0.5), (0, 0.1), (0, 0), (4, 0.5), (12, 0.5)])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("kind", ["h264", "flat", "closed"])
def test_damage_in_a_cut_file_is_still_refused(tmp_path, kind, container, damaged, sound):
    whole = make(tmp_path / f"whole.{container}", **STREAMS[kind])
    path = cut(whole, tmp_path / f"cut.{container}", packets_of(whole)[1][1] if kind != "closed" else 0)
    packet, encoded = bytes(packets_of(path)[0][damaged]), path.read_bytes()
    tail = packet[int(len(packet) * sound) :]
    assert encoded.count(tail) == 1
    rng = np.random.default_rng(0)
    while not complaints(path):  # x264 does not always write the same bytes, and with some a random tail decodes
        path.write_bytes(encoded.replace(tail, rng.bytes(len(tail))))
    for read in (read_clip, probe, lambda path: list(iter_frames(path))):
        with pytest.raises(VideoError, match="damaged"):
            read(path)


def test_a_cut_file_that_lost_its_headers_says_so(tmp_path):
    options = OPEN | {"x264-params": OPEN["x264-params"].replace(":repeat-headers=1", "")}
    whole = make(tmp_path / "whole.mp4", **options)
    path = cut(whole, tmp_path / "cut.ts", packets_of(whole)[1][1])
    for read in (read_clip, probe, count_frames):
        with pytest.raises(VideoError, match=r"without the headers that tell their size \(in H.264: SPS and PPS\)"):
            read(path)


def test_a_file_without_any_key_frame_is_refused(tmp_path):
    whole = make(tmp_path / "whole.ts", "mpeg2video", g="100")
    with pytest.raises(VideoError, match=r"cut\.ts"):
        read_clip(cut(whole, tmp_path / "cut.ts", 3))


def test_the_numbers_are_read_right():
    frames = np.stack([drawn(number, (96, 64)) for number in range(1 << BITS)])
    assert numbers_in(frames) == list(range(1 << BITS))
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames[::-1]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert numbers_in(read_clip(file.getvalue())) == list(range(1 << BITS))[::-1]


def test_writing_av1_leaves_the_process_its_schedule(tmp_path):
    """Where root runs it, the encoder raises the thread's priority above all others'; children would inherit it."""
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this FFmpeg cannot write libsvtav1")
    if not hasattr(os, "sched_getscheduler"):
        pytest.skip("this system tells no schedule")
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    write_video(tmp_path / "a.mkv", [drawn(number, (64, 64)) for number in range(3)], "libsvtav1", 25, preset="12")
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
