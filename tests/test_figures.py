"""Flow colours, GIF files, and the flow of whole videos."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PATIENCE, wait_for
from PIL import Image

from repflow import tvl1
from repflow.cli import main
from repflow.data import SyntheticMotion
from repflow.data.flow import narrowed
from repflow.figures import bars, clip_strip, flow_panel, flow_scale, flow_to_rgb, flow_wheel, write_gif
from repflow.tvl1 import grey
from repflow.video import read_clip


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


def test_a_stopped_flow_command_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    write_gif(tmp_path / "long.gif", rng.integers(0, 255, (60, 200, 200, 3), dtype=np.uint8), fps=10)
    command = [sys.executable, "-m", "repflow", "flow", "long.gif", "--out", "f.npz"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(os.listdir(tmp_path)) > 1, process)  # it has begun to write
        process.terminate()
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
    assert os.listdir(tmp_path) == ["long.gif"]


def test_wide_frames_are_narrowed_in_proportion():
    frame = np.zeros((90, 160, 3), np.uint8)
    assert narrowed(frame, 32).shape == (18, 32, 3)
    assert narrowed(frame, 200) is frame
    assert narrowed(frame, None) is frame
