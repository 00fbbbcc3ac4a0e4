"""What a network says of any video: equal to `evaluate`, named rightly, window by window, and as a film."""

import json
import os

import numpy as np
import pytest
import torch

from repflow import build_model, official
from repflow.classify import Answer, class_names, classify, write_labelled
from repflow.cli import main
from repflow.data import SyntheticMotion
from repflow.evaluation import Predictions
from repflow.files import read_csv
from repflow.training import open_checkpoint, released
from repflow.video import VideoError, probe, read_clip
from repflow.video.write import write_video

CLASSES = ["sit", "stand up", "wave"]
H, W, FRAMES = 32, 40, 12


def save(path, system, classes=CLASSES, likely=None, **cut):
    """A checkpoint as `train` writes it, fresh; with `likely` it says this class of everything."""
    torch.manual_seed(0)
    options = {"backbone": "tiny_2d"}
    model = build_model(system, len(classes), **options)
    if likely is not None:
        torch.nn.init.zeros_(model.classify.weight)
        model.classify.bias.data = 3.0 * torch.tensor([name == likely for name in classes])
    trained_on = {"frames": 4, "stride": 1, "resize": None, "crop": None, "inverted": False, "flow": None} | cut
    config = {"model": system, "options": options, "num_classes": len(classes), "recipe": {}, "training": trained_on}
    about = {"about": {"classes": classes}}
    torch.save({"step": 0, "config": config | about, "model": model.state_dict(), "best": None}, path)
    return str(path)


def film(path, frames):
    """Write frames at 10 a second, without loss."""
    write_video(path, frames, "ffv1", 10, pixels="bgr0")
    return path


@pytest.fixture(scope="module")
def pictures():
    """Still noise, of which from frame 6 on the upper half moves to the right, a pixel a frame."""
    noise = np.random.default_rng(0).integers(0, 256, (H // 4, W // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    shifts = np.maximum(np.arange(FRAMES) - 5, 0)
    return np.stack([np.concatenate([np.roll(noise[: H // 2], n, 1), noise[H // 2 :]]) for n in shifts])


@pytest.fixture(scope="module")
def video(pictures, tmp_path_factory):
    return film(tmp_path_factory.mktemp("video") / "v.mkv", pictures)


@pytest.mark.parametrize("system", ["rgb_2d", "two_stream_2d"])
def test_it_says_what_evaluate_says(system, tmp_path):
    root, found = tmp_path / "set", tmp_path / "found.json"
    SyntheticMotion.make(root, train=0, test=1, unused=0, size=32, frames=12)
    source = SyntheticMotion(root, "test", ["left", "up"])
    cut = {"frames": 2, "stride": 2, "resize": 28, "crop": 20, "inverted": True}
    checkpoint = save(tmp_path / "a.pt", system, source.classes, **cut)
    command = ["evaluate", "--checkpoint", checkpoint, "--data", "synthetic", str(root), "--out", str(tmp_path)]
    assert main([*command, "--flow", "tvl1"] if system == "two_stream_2d" else command) == 0
    part = Predictions.load(tmp_path / "predictions.npz")
    video = str(source.samples[1][0])
    assert main(["classify", video, "--checkpoint", checkpoint, "--out", str(found)]) == 0
    said = {row["label"]: row["probability"] for row in json.loads(found.read_text())}
    assert said == pytest.approx(dict(zip(part.classes, part.probabilities[1].tolist(), strict=True)), rel=1e-5)


def test_labels_are_named_and_in_order(video, tmp_path, capsys):
    checkpoint = save(tmp_path / "a.pt", "rgb_2d", likely="wave")
    assert main(["classify", str(video), "--checkpoint", checkpoint, "--top", "2"]) == 0
    likely = 100 * np.exp(3) / (np.exp(3) + 2)
    assert capsys.readouterr().out == f"{video}  wave {likely:.1f} %, sit {(100 - likely) / 2:.1f} %\n"


def test_no_order_of_classes_is_assumed(video, tmp_path, capsys):
    unknown = released(official.HMDBFlowOfFlow(3))
    assert class_names(unknown) == ["class 0", "class 1", "class 2"]
    assert class_names(unknown, CLASSES) == CLASSES
    with pytest.raises(ValueError, match="expected 3 names, the network tells so many classes; got 2"):
        class_names(unknown, CLASSES[:2])
    (tmp_path / "names").write_text("\n".join(reversed(CLASSES)))
    checkpoint = save(tmp_path / "a.pt", "rgb_2d")
    assert main(["classify", str(video), "--checkpoint", checkpoint, "--classes", str(tmp_path / "names")]) == 1
    assert "same classes in the same order" in capsys.readouterr().err


@pytest.mark.parametrize(("system", "stride"), [("rgb_2d", 4), ("two_stream_2d", 3)])  # clips of five frames
def test_a_window_is_taken_as_a_video_of_its_own(system, stride, pictures, video, tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "a.pt", system, frames=2, stride=stride))
    whole, first, second = classify(checkpoint, video, window=5, top=3)
    assert [answer[:2] for answer in (whole, first, second)] == [(0, 1.2), (0, 0.5), (0.5, 1.2)]
    for answer, part in ((first, pictures[:5]), (second, pictures[6:11])):  # the middle of the longer one
        (alone,) = classify(checkpoint, film(tmp_path / "part.mkv", part), top=3)
        assert dict(answer.labels) == pytest.approx(dict(alone.labels), rel=1e-5)
    assert dict(whole.labels) != pytest.approx(dict(second.labels), rel=1e-5)
    with pytest.raises(ValueError, match=r"v.mkv', window: expected at least 5 frames, a clip's, got 4"):
        classify(checkpoint, video, window=4)


@pytest.mark.parametrize("window", ["0.5", "5f"])
def test_a_window_is_a_line(window, video, tmp_path, capsys):
    checkpoint = save(tmp_path / "a.pt", "rgb_2d", likely="sit")
    assert main(["classify", str(video), "--checkpoint", checkpoint, "--top", "1", "--window", window]) == 0
    share = 100 * np.exp(3) / (np.exp(3) + 2)
    assert capsys.readouterr().out == (
        f"{video}  sit {share:.1f} %\n  0.0–0.5 s  sit {share:.1f} %\n  0.5–1.2 s  sit {share:.1f} %\n"
    )


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_film_shows_labels_and_flow_in_step(name, pictures, video, tmp_path):
    checkpoint, out = save(tmp_path / "a.pt", "repflow_2d"), tmp_path / name
    assert main(["classify", str(video), "--checkpoint", checkpoint, "--window", "6f", "--out", str(out)]) == 0
    times = np.arange(FRAMES) if name == "a.mp4" else np.r_[0, 5:FRAMES]  # of equal pictures a GIF keeps one
    info = probe(out)
    assert (info.width, info.height, info.frames) == (2 * 8 * W, 8 * H, len(times))
    upper, lower = np.split(read_clip(out).astype(int), 2, 1)
    given = pictures[times, : H // 2].repeat(8, 1).repeat(8, 2)
    for frame, expected in zip(upper[:, :, : 8 * W], given, strict=True):
        assert np.abs(frame - expected).mean() < 16  # a GIF has few colours, an MP4 fewer places for them
    assert lower[:, -8:, : 4 * W].mean() < lower[:, : 2 * H, : 4 * W].mean() - 40  # the labels' dark ground
    saturation = np.ptp(upper[:, :, 8 * W :], -1).mean((1, 2))
    assert saturation[times < 5].max() < 3  # nothing moves until frame 5 turns into frame 6
    assert saturation[times >= 5].min() > 10


def test_a_film_of_a_network_without_flow(video, tmp_path):
    checkpoint, out = save(tmp_path / "a.pt", "rgb_2d"), tmp_path / "a.mp4"
    assert main(["classify", str(video), "--checkpoint", checkpoint, "--out", str(out)]) == 0
    assert probe(out) == (8 * W, 8 * H, 10, FRAMES)


def test_a_film_is_written_whole_or_not_at_all(video, tmp_path):
    (tmp_path / "cut.mkv").write_bytes(video.read_bytes()[:-3000])
    checkpoint = open_checkpoint(save(tmp_path / "a.pt", "rgb_2d"))
    with pytest.raises(VideoError, match=r"cut\.mkv"):
        write_labelled(tmp_path / "a.mp4", tmp_path / "cut.mkv", [Answer(0, 1.2, [("sit", 1.0)])], checkpoint)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "cut.mkv"]


def test_a_bad_video_is_named_and_the_others_go_on(video, tmp_path, capsys, caplog):
    (tmp_path / "text.avi").write_text("this is no video\n" * 50)
    bad, out = [str(tmp_path / name) for name in ("text.avi", "none.mp4")], tmp_path / "rows.csv"
    checkpoint = save(tmp_path / "a.pt", "rgb_2d")
    command = ["classify", bad[0], str(video), bad[1], "--checkpoint", checkpoint, "--top", "1", "--out", str(out)]
    assert main(command) == 1
    assert capsys.readouterr().out.count("\n") == 1
    named = [record.message for record in caplog.records if record.message.startswith("not classified: ")]
    assert [name in message for name, message in zip(bad, named, strict=True)] == [True, True]
    (row,) = read_csv(out)
    assert (row["video"], row["start"], row["end"], row["rank"]) == (str(video), "0", "1.2", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0"], "--top: expected a whole number >= 1"),
        (["--window", "two"], "--window two: expected seconds"),
        (["--window", "0"], "--window 0: expected seconds"),
        (["--window", "1.5f"], "--window 1.5f: expected seconds"),
        (["--out", "a.avi"], "--out a.avi: expected a name that ends in .mp4 or .gif or .csv or .json"),
        (["w.mkv", "--out", "a.mp4"], "--out a.mp4: shows one video, got 2"),
        (["--out", "v.gif"], "--out v.gif: is the video itself"),
        (["--out", "nowhere/a.csv"], "nowhere/a.csv cannot be written"),
        ([], "none.pt: expected a file of weights"),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "v.gif").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert main(["classify", "v.gif", *arguments, "--checkpoint", "none.pt"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert os.listdir() == ["v.gif"]
