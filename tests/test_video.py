import os
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repflow.video import VideoError, iter_frames, probe, read_clip

LENGTH = 30


def write_video(path, codec="mpeg4", size=(50, 38), length=LENGTH, **options):
    """A noisy picture that drifts, so no two frames are alike and B-frames pay."""
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for shift in range(length):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


VIDEOS = {
    "mpeg4.avi": {"codec": "mpeg4"},
    "odd.avi": {"codec": "mpeg4", "size": (37, 29)},  # lines are padded
    "b_frames.avi": {"codec": "mpeg4", "bf": "2"},
    "h264.mp4": {"codec": "libx264", "g": "12", "bf": "3"},
}


@pytest.fixture(scope="module", params=VIDEOS)
def video(request, tmp_path_factory):
    if VIDEOS[request.param]["codec"] not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {VIDEOS[request.param]['codec']}")
    path = write_video(tmp_path_factory.mktemp("video") / request.param, **VIDEOS[request.param])
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
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_raise_an_error_that_names_them(tmp_path, name, capfd):
    path = tmp_path / name
    try:
        BAD[name](path)
    except av.error.EncoderNotFoundError as error:
        pytest.skip(str(error))
    for read in (read_clip, probe):
        with pytest.raises(VideoError, match=f"{name}.*;"):
            read(path)
    assert capfd.readouterr() == ("", "")  # FFmpeg does not talk to the terminal


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_video(tmp_path / "locked.avi", length=2)
    path.chmod(0)
    with pytest.raises(VideoError, match=r"locked.avi.*permission"):
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
