"""Flow of whole data sets, and flow in files."""

import os
import signal
import struct
import subprocess
import sys
from fractions import Fraction
from glob import glob
from itertools import islice, pairwise
from pathlib import Path
from textwrap import dedent

import av
import numpy as np
import psutil
import pytest
import torch
from conftest import PATIENCE, wait_for

from repflow import figures, tvl1
from repflow.data import SyntheticMotion, extract
from repflow.data.extract import extract_flow, flow_file, flow_of_clip, from_bytes, read_flow, to_bytes
from repflow.data.flow import AT_ONCE, iter_flow, read_flo, video_flow, write_flo, write_flow_flo
from repflow.data.lists import find_videos
from repflow.figures import write_flow_mp4
from repflow.tvl1 import grey
from repflow.video import VideoError, frame_rate, probe, read_clip
from repflow.video.write import exact_rate, write_mp4, write_video

STEP = 20 / 127  # px between two bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve videos, and the flow of three of them."""
    folder = tmp_path_factory.mktemp("extract")
    SyntheticMotion.make(folder / "all", train=1, test=0, unused=0, size=48, frames=6)
    root = folder / "set"
    for name in ("right", "up", "zoom-in"):
        place(next((folder / "all" / name).glob("*.avi")), root / name / "clip.avi")
    with pytest.MonkeyPatch.context() as patch:  # on the CPU, as what it is compared with
        patch.setattr(torch.cuda, "is_available", lambda: False)
        result = extract_flow(root, workers=1)
    assert [len(videos) for videos in result] == [3, 0, 0]
    return root, folder / "set-flow"


def place(video, target):
    """A copy that is older than any flow of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(video.read_bytes())
    os.utime(target, (1e9, 1e9))
    return target


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def true_flow(video):
    frames = torch.from_numpy(grey(read_clip(video)))
    return np.stack([tvl1(*pair).numpy() for pair in pairwise(frames)])


def test_bytes_are_within_half_a_step():
    flow = np.linspace(-25, 25, 4001, dtype=np.float32)
    values = to_bytes(flow)
    assert (values.dtype, values.min(), values.max(), to_bytes(np.zeros(1))[0]) == (np.uint8, 1, 255, 128)
    assert np.abs(from_bytes(values) - flow.clip(-20, 20)).max() <= STEP / 2 + 1e-5
    every = np.arange(1, 256, dtype=np.uint8)
    np.testing.assert_array_equal(to_bytes(from_bytes(every)), every)
    np.testing.assert_array_equal(from_bytes(every), -from_bytes(every)[::-1])


def test_a_file_holds_exactly_the_rounded_flow(made):
    root, out = made
    assert files(out) == ["right/clip.avi.mkv", "up/clip.avi.mkv", "zoom-in/clip.avi.mkv"]
    for video in [root / name for name in find_videos(root)]:
        flow = read_flow(flow_file(video, root, out))
        assert (flow.shape, flow.dtype) == ((5, 2, 48, 48), np.float32)
        np.testing.assert_array_equal(flow, from_bytes(to_bytes(true_flow(video))))
    assert np.median(read_flow(out / "right" / "clip.avi.mkv")[:, 0]) > 0.8


def test_a_file_tells_what_it_is(made):
    with av.open(str(made[1] / "up" / "clip.avi.mkv")) as container:
        (stream,) = container.streams
        assert container.metadata["title"] == "flow, u above v: (value - 128) * 20 / 127 px/frame"
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("ffv1", "gray", 25)
        assert (stream.width, stream.height) == (48, 96)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.is_keyframe for packet in packets] == [True] * 5


@pytest.mark.parametrize(("start", "frames", "stride"), [(0, 1, 1), (2, 3, 1), (4, 1, 3), (1, 2, 3), (1, None, 2)])
def test_any_part_is_what_reading_from_the_start_gives(made, start, frames, stride):
    file = made[1] / "right" / "clip.avi.mkv"
    part = read_flow(file, start, frames, stride)
    whole = read_flow(file)[start::stride]
    np.testing.assert_array_equal(part, whole[:frames])


def test_what_is_no_such_file_is_an_error(made, tmp_path):
    root, out = made
    (tmp_path / "text.mkv").write_text("no video\n" * 99)
    good = out / "up" / "clip.avi.mkv"
    (tmp_path / "cut.mkv").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    for path in (tmp_path / "missing.mkv", tmp_path / "text.mkv", root / "up" / "clip.avi"):
        with pytest.raises(VideoError, match=path.name):
            read_flow(path)
    for path, start, frames in ((tmp_path / "cut.mkv", 0, 5), (good, 3, 3), (good, 5, None)):
        with pytest.raises(VideoError, match="fewer"):
            read_flow(path, start, frames)
    for start, frames, stride in ((-1, 1, 1), (0, 0, 1), (0, 1, 0)):
        with pytest.raises(ValueError, match="expected start"):
            read_flow(good, start, frames, stride)


@pytest.mark.parametrize(("start", "frames", "stride"), [(0, 5, 1), (1, 2, 3), (0, 3, 2)])
def test_flow_on_the_fly_is_the_extracted_flow(made, start, frames, stride):
    root, out = made
    video = root / "right" / "clip.avi"
    computed = flow_of_clip(video, start, frames, stride)
    extracted = flow_of_clip(video, start, frames, stride, out, root)
    assert computed.shape == extracted.shape == (frames, 2, 48, 48)
    assert np.abs(computed - extracted).max() <= STEP / 2 + 1e-4
    np.testing.assert_allclose(computed, true_flow(video)[start::stride][:frames], atol=1e-4)


def test_batches_change_nothing(made, monkeypatch):
    video = made[0] / "zoom-in" / "clip.avi"
    one_by_one = list(iter_flow(video))
    monkeypatch.setitem(AT_ONCE, "cpu", 2 * 48 * 48)  # one, then three, then what is left, as a GPU would
    np.testing.assert_allclose(list(iter_flow(video)), one_by_one, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_extracts_the_same_flow(made, tmp_path):
    root, out = made
    assert len(extract_flow(root, tmp_path / "flow").done) == 3
    for name in files(out):
        difference = np.abs(read_flow(tmp_path / "flow" / name) - read_flow(out / name))
        assert difference.mean() < STEP / 10


def test_a_clip_needs_a_frame_after_its_last(made):
    root, out = made
    for folders in ((), (out, root)):
        with pytest.raises(VideoError, match="clip"):
            flow_of_clip(root / "up" / "clip.avi", 1, 3, 2, *folders)
    with pytest.raises(ValueError, match="folder and root"):
        flow_of_clip(root / "up" / "clip.avi", 0, 1, 1, out)


def test_bad_videos_are_named_and_finished_ones_kept(made, tmp_path):
    root = tmp_path / "set"
    good = made[0] / "up" / "clip.avi"
    first, last = place(good, root / "a" / "good.avi"), place(good, root / "good.AVI")
    cut = place(good, root / "b" / "cut.avi")
    cut.write_bytes(good.read_bytes()[:6000])
    text = root / "b" / "text.mp4"
    text.write_text("no video\n" * 99)
    single = root / "one.mp4"
    write_mp4(single, [np.zeros((48, 48, 3), np.uint8)], 25)
    place(good, root / ".hidden" / "x.avi")
    place(good, root / "._x.avi")
    (root / "notes.txt").write_text("no video")

    done, skipped, failed = extract_flow(root, tmp_path / "flow", workers=1, width=24)
    assert (done, skipped) == ([first, last], [])
    assert set(failed) == {cut, text, single}
    assert all(str(video) in message for video, message in failed.items())
    assert "two frames" in failed[single]
    assert files(tmp_path / "flow") == ["a/good.avi.mkv", "good.AVI.mkv"]
    assert read_flow(tmp_path / "flow" / "good.AVI.mkv").shape == (5, 2, 24, 24)

    again = extract_flow(root, tmp_path / "flow", workers=1, width=24)
    assert again[:2] == ([], [first, last])
    os.utime(first)  # a newer video
    os.utime(tmp_path / "flow" / "a" / "good.avi.mkv", (1e9, 1e9))
    assert extract_flow(root, tmp_path / "flow", workers=1, width=24)[:2] == ([first], [last])
    assert extract_flow(root, tmp_path / "flow", workers=1, width=20).done == [first, last]


def test_folders_that_will_not_do(made, tmp_path):
    root, out = made
    for wrong in (root, root / "flow", root.parent):
        with pytest.raises(OSError, match="apart"):
            extract_flow(root, wrong)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract_flow(tmp_path / "nowhere")
    for numbers in ({"workers": 0}, {"width": 0}):
        with pytest.raises(ValueError, match=">= 1"):
            extract_flow(root, **numbers)
    assert not os.listdir(tmp_path)
    assert len(files(out)) == 3


def test_a_stopped_extraction_leaves_nothing_half_done(made, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        yield np.zeros((2, 48, 48), np.float32)
        assert len(files(tmp_path)) == 1  # it has begun to write
        raise KeyboardInterrupt

    monkeypatch.setattr(extract, "iter_flow", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract_flow(made[0], tmp_path / "flow", workers=1)
    assert files(tmp_path) == []


def test_two_processes_write_the_same_bytes_and_nothing_half_done_when_stopped(made, tmp_path):
    rng = np.random.default_rng(0)
    short = [
        place(video, tmp_path / "set" / f"a-{video.parent.name}.avi")
        for video in (made[0] / name for name in find_videos(made[0]))
    ]
    for name, frames in (("y.mp4", 40), ("z.mp4", 90)):  # the last takes long, so that the signal comes before its end
        write_mp4(tmp_path / "set" / name, rng.integers(0, 255, (frames, 96, 96, 3), dtype=np.uint8), 10)
    code = """
        if __name__ == "__main__":
            import signal, sys
            from repflow.data.extract import extract_flow
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                extract_flow("set", workers=2)
            except KeyboardInterrupt:
                sys.exit(77)
    """
    (tmp_path / "run.py").write_text(dedent(code))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "run.py"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: glob(f"{tmp_path}/set-flow/.*/z*.mkv"), process)  # it has begun to write the last
        others = psutil.Process(process.pid).children(recursive=True)
        assert len(others) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 77
        assert not psutil.wait_procs(others, timeout=PATIENCE)[1]
    finally:
        process.kill()
    flow = {video: flow_file(video, tmp_path / "set", tmp_path / "set-flow") for video in short}
    others = {file.name: len(read_flow(file)) for file in set((tmp_path / "set-flow").iterdir()) - set(flow.values())}
    assert others.items() <= {"y.mp4.mkv": 39, "z.mp4.mkv": 89}.items()  # whole, or not there
    for file, alone in zip(flow.values(), sorted(made[1].rglob("*.mkv")), strict=True):
        assert file.read_bytes() == alone.read_bytes()


def test_processes_end_with_their_parent(tmp_path):
    code = """
        import os, time
        from repflow.processes import end_with_parent, fresh_processes

        def work():
            end_with_parent()
            with open("number", "w") as file:
                file.write(str(os.getpid()))
            time.sleep(600)

        if __name__ == "__main__":
            process = fresh_processes().Process(target=work)
            process.start()
            process.join()
    """
    (tmp_path / "run.py").write_text(dedent(code))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "run.py"], cwd=tmp_path, env=environment)
    try:
        wait_for(lambda: (tmp_path / "number").is_file() and (tmp_path / "number").stat().st_size, process)
        worker = psutil.Process(int((tmp_path / "number").read_text()))
    finally:
        process.kill()
        process.wait()
    assert not psutil.wait_procs([worker], timeout=PATIENCE)[1]


def test_a_rate_is_what_it_stands_for():
    assert [exact_rate(30000 / 1001), exact_rate(25.0), exact_rate(12.5)] == [Fraction(30000, 1001), 25, 12.5]
    assert exact_rate(np.float32(29.97003)) == exact_rate(Fraction(30000, 1001)) == Fraction(30000, 1001)


def test_a_rate_may_be_numpy_s(tmp_path):
    for fps in (np.float32(25), np.int64(25), Fraction(25)):
        write_mp4(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8), fps)
        assert frame_rate(tmp_path / "a.mp4") == 25


def test_a_video_without_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a\.avi.*expected pictures to write, got none"):
        write_video(tmp_path / "a.avi", [], "mpeg4", 25)
    assert os.listdir(tmp_path) == []


def test_flo_files_are_middlebury_s(tmp_path):
    flow = np.arange(12, dtype=np.float64).reshape(2, 2, 3) - 4.5
    write_flo(tmp_path / "a.flo", flow)
    pixels = [value for y in range(2) for x in range(3) for value in flow[:, y, x]]
    assert (tmp_path / "a.flo").read_bytes() == b"PIEH" + struct.pack("<2i12f", 3, 2, *pixels)
    read = read_flo(tmp_path / "a.flo")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, flow)
    assert os.listdir(tmp_path) == ["a.flo"]
    with pytest.raises(ValueError, match=r"\(2, H, W\)"):
        write_flo(tmp_path / "b.flo", flow[None])


def test_opencv_reads_and_writes_the_same_flo_files(tmp_path):
    cv2 = pytest.importorskip("cv2")
    flow = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    write_flo(tmp_path / "ours.flo", flow)
    np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / "ours.flo")).transpose(2, 0, 1), flow)
    cv2.writeOpticalFlow(str(tmp_path / "theirs.flo"), np.ascontiguousarray(flow.transpose(1, 2, 0)))
    np.testing.assert_array_equal(read_flo(tmp_path / "theirs.flo"), flow)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PIEH",
        b"PIEH" + bytes(8),  # no pixels
        b"HEIP" + struct.pack("<2i2f", 1, 1, 0, 0),
        b"PIEH" + struct.pack("<2i1f", 1, 1, 0),  # cut short
        b"PIEH" + struct.pack("<2i2f", -1, -1, 0, 0),
    ],
)
def test_a_bad_flo_file_is_named(data, tmp_path):
    (tmp_path / "bad.flo").write_bytes(data)
    with pytest.raises(OSError, match=r"bad\.flo.*expected a \.flo file"):
        read_flo(tmp_path / "bad.flo")


def test_the_first_flow_of_a_video_as_flo(made, tmp_path):
    video = made[0] / "right" / "clip.avi"
    for frames in (None, 2, 4):
        write_flow_flo(video, tmp_path / "f.flo", start=1, frames=frames, stride=2, width=None)
        frame = torch.from_numpy(grey(read_clip(video)))
        np.testing.assert_allclose(read_flo(tmp_path / "f.flo"), tvl1(frame[1], frame[3]), atol=1e-3)
    assert os.listdir(tmp_path) == ["f.flo"]


def test_flow_of_a_video_as_mp4(made, tmp_path):
    video = made[0] / "right" / "clip.avi"
    write_flow_mp4(video, tmp_path / "f.mp4", start=1, frames=4, stride=1, width=31)
    assert probe(tmp_path / "f.mp4") == (62, 32, 25.0, 3)  # even sides
    flow = video_flow(video, tmp_path / "flow.npy", start=1, frames=4, width=31)
    shown = read_clip(tmp_path / "f.mp4").astype(int)
    frames = [figures.narrowed(frame, 31).astype(int) for frame in islice(read_clip(video), 1, 4)]
    assert np.abs(shown[:, :31, :31] - frames).mean() < 12
    assert (shown[:, 8:24, 34:58, 0] > shown[:, 8:24, 34:58, 1]).mean() > 0.8  # right is red
    assert len(flow) == 3
    data = (tmp_path / "f.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before it has all
    assert sorted(os.listdir(tmp_path)) == ["f.mp4", "flow.npy"]


@pytest.mark.parametrize(("codecs", "name"), [({"libx264"}, "h264"), ({"mpeg4"}, "mpeg4")])
def test_mp4_is_written_whole_or_not_at_all_by_either_encoder(codecs, name, tmp_path, monkeypatch):
    if not codecs <= av.codecs_available:
        pytest.skip(f"FFmpeg has no {name} encoder here")
    monkeypatch.setattr(av, "codecs_available", codecs)
    colours = np.full((3, 33, 21, 3), (200, 40, 90), np.uint8)
    write_mp4(tmp_path / "a.mp4", colours, 30000 / 1001)
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.pix_fmt) == (name, "yuv420p")
        assert stream.average_rate == Fraction(30000, 1001)
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.shape == (3, 34, 22, 3)
    assert np.abs(clip.astype(int) - colours[0, 0, 0]).max() < 8

    def broken():
        yield colours[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_mp4(tmp_path / "b.mp4", broken(), 10)
    assert os.listdir(tmp_path) == ["a.mp4"]
