"""Flow colours, GIF files, and the flow of whole videos."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from repflow import tvl1
from repflow.cli import main
from repflow.data import SyntheticMotion
from repflow.data import flow as flow_module
from repflow.data.flow import narrowed
from repflow.figures import (
    bars,
    clip_strip,
    curves,
    draw_labels,
    flow_panel,
    flow_scale,
    flow_to_rgb,
    flow_wheel,
    write_flow_gif,
    write_flow_mp4,
    write_gif,
    write_mp4,
)
from repflow.tvl1 import grey
from repflow.video import frame_rate, read_clip


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    root = tmp_path_factory.mktemp("video") / "set"
    SyntheticMotion.make(root, train=1, test=0, unused=0, size=40, frames=5)
    return next((root / "right").glob("*.avi"))


def test_no_motion_is_white_and_directions_have_their_own_hue():
    flow = np.zeros((2, 1, 5), np.float32)
    flow[0, 0, 1:3] = 2, -2
    flow[1, 0, 3:] = 2, -2
    still, right, left, down, up = flow_to_rgb(flow, 2.0)[0].tolist()
    assert still == [255, 255, 255]
    assert right == [255, 0, 0]
    assert left == [0, 255, 255]
    assert len({tuple(c) for c in (right, left, down, up)}) == 4
    half = flow_to_rgb(flow / 2, 2.0)[0, 1]
    assert half[0] == 255
    assert 120 < half[1] < 136


def test_a_few_wrong_arrows_do_not_set_the_scale():
    flow = np.zeros((2, 20, 30))
    assert flow_scale(flow) == 0.1  # never 0: colours divide by it
    flow[0], flow[1] = 3, -4
    flow[0, 0, :5] = 1000
    assert flow_scale(flow) == pytest.approx(5)


def test_single_bars_need_no_legend():
    groups = {"a": {"x": 1.0}, "b": {"x": 2.0}}
    assert not bars(groups, "y").legends
    assert [text.get_text() for text in bars(groups, "y", {"line": 1.5}).legends[0].get_texts()] == ["line", "x"]


def test_the_wheel_is_a_disc_of_all_directions():
    wheel = flow_wheel(51)
    assert wheel[0, 0, 3] == 0
    assert wheel[25, 25].tolist()[3] == 255
    assert wheel[25, 45, 0] > wheel[25, 5, 0]  # right is red, left is not


@pytest.mark.parametrize("size", [(240, 320), (40, 320), (12, 8)])
def test_labels_leave_the_upper_half_and_their_bars_are_as_long_as_they_are_likely(size):
    picture = np.full((*size, 3), 200, np.uint8)
    drawn = draw_labels(picture, [("a name of very many letters, " * 9, 0.75), ("b", 0.25), ("c", 0.0)]).astype(int)
    assert drawn.shape == picture.shape
    assert (picture == 200).all()
    np.testing.assert_array_equal(drawn[: size[0] // 2], 200)
    if size[0] > 100:  # the first line's upper edge, where no letters are
        edge = drawn[(drawn[:, 0] < 200).any(1).argmax()]
        assert (edge[:, 2] > edge[:, 0] + 20).mean() == pytest.approx(0.75, abs=0.02)
    dark = draw_labels(picture, [("", 0.0)]).astype(int)
    assert (dark[-1, size[1] // 2] < 120).all()


def test_a_panel_tells_what_warping_explains():
    frame = np.random.default_rng(0).uniform(0, 255, (30, 40)).astype(np.float32)
    moved = np.roll(frame, 3, 1)
    flow = np.stack([np.full((30, 40), 3.0), np.zeros((30, 40))])
    titles = [ax.get_title() for ax in flow_panel(frame, moved, flow, "t").axes]
    before, after = (float(t.rsplit(" ", 1)[1]) for t in titles if t.startswith("difference"))
    assert after < before / 5


def test_a_strip_shows_every_frame_once():
    figure = clip_strip({"a": np.zeros((5, 4, 4, 3), np.uint8), "b": np.ones((5, 4, 4, 3), np.uint8)}, every=2)
    assert [len(ax.images) for ax in figure.axes] == [1] * 6


def test_gif_is_written_whole_or_not_at_all(tmp_path):
    pictures = [np.full((8, 9, 3), v, np.uint8) for v in (0, 100, 200)]
    write_gif(tmp_path / "a.gif", pictures, fps=10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (9, 8), 100)

    def broken():
        yield pictures[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_gif(tmp_path / "b.gif", broken(), fps=10)
    assert os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.parametrize(
    ("fps", "told"), [(10, 10), (24, 24), (25, 25), (30, 30), (30000 / 1001, 29.97), (60, 50), (1 / 3600, 0.1)]
)
def test_a_gif_plays_at_the_rate_it_was_given(tmp_path, fps, told):
    write_gif(tmp_path / "a.gif", (np.full((4, 5, 3), v, np.uint8) for v in range(0, 240, 4)), fps)
    with Image.open(tmp_path / "a.gif") as gif:
        delays = [gif.seek(number) or gif.info["duration"] for number in range(gif.n_frames)]
    assert len(delays) == 60
    assert max(delays) - min(delays) <= 10
    assert 60_000 / sum(delays) == pytest.approx(told, rel=0.003)


@pytest.mark.parametrize("fps", [25.0, 30000 / 1001, 0.5, 1 / 3600])
def test_an_mp4_keeps_its_rate(tmp_path, fps):
    write_mp4(tmp_path / "a.mp4", (np.full((16, 16, 3), 10 * v, np.uint8) for v in range(4)), fps)
    assert frame_rate(tmp_path / "a.mp4") == pytest.approx(fps)


@pytest.mark.parametrize("size", [(1280, 8), (2, 64), (640, 2)])
@pytest.mark.parametrize("write", [write_flow_gif, write_flow_mp4])
def test_flow_of_narrow_and_flat_videos(tmp_path, caplog, size, write):
    caplog.set_level("INFO")
    W, H = size
    noise = np.random.default_rng(0).integers(0, 255, (3, H, W, 3), dtype=np.uint8)
    write_gif(tmp_path / "v.gif", noise, fps=10)
    write(tmp_path / "v.gif", tmp_path / "f.mp4", start=0, frames=None, stride=1)
    W, H = (min(W, 320), max(1, round(H * min(W, 320) / W)))
    assert read_clip(tmp_path / "f.mp4").shape == (2, H + (write is write_flow_mp4 and H % 2), 2 * W, 3)
    assert f"px/frame in frames of {W} x {H} px" in caplog.text


def test_flow_of_a_video_as_numbers(video, tmp_path):
    assert main(["flow", str(video), "--out", str(tmp_path / "f.npz")]) == 0
    with np.load(tmp_path / "f.npz") as file:
        flow, fps = file["flow"], file["fps"]
    frames = torch.from_numpy(grey(read_clip(video)))
    assert flow.shape == (4, 2, 40, 40)
    assert fps == 25
    np.testing.assert_allclose(flow, tvl1(frames[:-1], frames[1:]), atol=1e-3)
    assert np.median(flow[:, 0]) > 0.8  # the class is "right"
    assert os.listdir(tmp_path) == ["f.npz"]


def test_flow_of_a_video_as_gif(video, tmp_path):
    arguments = ["--start", "1", "--frames", "3", "--width", "20"]
    assert main(["flow", str(video), "--out", str(tmp_path / "f.gif"), *arguments]) == 0
    with Image.open(tmp_path / "f.gif") as gif:
        assert (gif.n_frames, gif.size) == (2, (40, 20))
    assert os.listdir(tmp_path) == ["f.gif"]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["missing.mp4", "--out", "f.gif"], 1, "missing.mp4"),
        (["text.mp4", "--out", "f.npz"], 1, "text.mp4"),
        (["cut.avi", "--out", "f.gif"], 1, "cut.avi"),
        (["good.avi", "--out", "f.bmp"], 2, "f.bmp"),
        (["good.avi", "--out", "nowhere/f.gif"], 1, "nowhere"),
        (["good.avi", "--out", "."], 2, "."),
        (["good.avi", "--out", "f.gif", "--start", "4"], 1, "start=4"),
        (["good.avi", "--out", "f.gif", "--start", "-1"], 2, "--start"),
        (["good.avi", "--out", "f.gif", "--stride", "0"], 2, "--stride"),
        (["good.avi", "--out", "f.gif", "--width", "0"], 2, "--width"),
    ],
)
def test_bad_flow_commands_say_what_is_wrong_and_leave_nothing(
    arguments, code, named, video, tmp_path, monkeypatch, capsys
):
    (tmp_path / "good.avi").write_bytes(video.read_bytes())
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[:6000])
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    monkeypatch.chdir(tmp_path)
    assert main(["flow", *arguments]) == code
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("repflow: ")
    assert named in error
    assert sorted(os.listdir()) == ["cut.avi", "good.avi", "text.mp4"]


def test_a_stopped_flow_command_leaves_nothing(video, tmp_path, monkeypatch):
    """By a real signal in the middle of the writing. Flow comes in two parts: the first pair's, and all others'."""
    before, asked = signal.getsignal(signal.SIGTERM), []

    def stopped(*frames):
        asked.append(frames)
        if len(asked) == 2:
            assert os.listdir(tmp_path)  # it has begun to write
            signal.raise_signal(signal.SIGTERM)
        return tvl1(*frames)

    monkeypatch.setattr(flow_module, "tvl1", stopped)
    try:
        assert main(["flow", str(video), "--out", str(tmp_path / "f.npz")]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(asked) == 2
    assert os.listdir(tmp_path) == []


def test_wide_frames_are_narrowed_in_proportion():
    frame = np.zeros((90, 160, 3), np.uint8)
    assert narrowed(frame, 32).shape == (18, 32, 3)
    assert narrowed(frame, 200) is frame
    assert narrowed(frame, None) is frame


def test_more_series_than_colours_are_all_drawn():
    series = {f"system {k}": [1.0, 0.5] for k in range(9)}
    assert len(curves(series, "x", "y").axes[0].lines) == 9
