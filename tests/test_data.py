import json
import shutil
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from repflow.data import HMDB51, Clips, SyntheticMotion, synthetic
from repflow.data.synthetic import BASIC, CLASSES, PAIRS, motion, render
from repflow.video import VideoError, probe, read_clip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "motion"
    SyntheticMotion.make(root, train=5, test=3, unused=1, size=40, frames=9)
    return root


# The layout


def test_the_set_reads_as_hmdb51(made):
    for subset, count in (("train", 5), ("test", 3), ("unused", 1)):
        data = HMDB51(made, fold=1, subset=subset)
        assert data.classes == sorted(CLASSES)
        assert len(data) == 12 * count
        assert [label for _, label in data.samples] == sorted(list(range(12)) * count)
        assert all(path.parent.name == data.classes[label] for path, label in data.samples)
        assert data.samples == SyntheticMotion(made, subset).samples
    assert probe(data.samples[0][0]) == (40, 40, 25.0, 9)


def test_classes_keep_their_order(made):
    data = SyntheticMotion(made, classes=["up", "down", "left"])
    assert data.classes == ["up", "down", "left"]
    assert [path.parent.name for path, label in data.samples if label == 0] == ["up"] * 5


@pytest.fixture
def small(tmp_path):
    """Two classes of three empty videos, two folds, the split files in their usual folder."""
    splits = tmp_path / "testTrainMulti_7030_splits"
    splits.mkdir()
    for name in ("wave", "brush_hair"):
        (tmp_path / name).mkdir()
        for video in "abc":
            (tmp_path / name / f"{video} #1&(2).avi").touch()
        for fold, tags in ((1, "120"), (2, "201")):
            lines = [f"{video} #1&(2).avi {tag} \n" for video, tag in zip("abc", tags, strict=True)]
            (splits / f"{name}_test_split{fold}.txt").write_text("".join(lines))
    return tmp_path


def names(data):
    return [(path.parent.name, path.name[0], label) for path, label in data.samples]


def test_folds_and_subsets(small):
    assert names(HMDB51(small)) == [("brush_hair", "a", 0), ("wave", "a", 1)]
    assert names(HMDB51(small, fold=1, subset="test")) == [("brush_hair", "b", 0), ("wave", "b", 1)]
    assert names(HMDB51(small, fold=2, subset="test")) == [("brush_hair", "a", 0), ("wave", "a", 1)]
    assert names(HMDB51(small, fold=2)) == [("brush_hair", "c", 0), ("wave", "c", 1)]
    assert names(HMDB51(small, fold=2, subset="unused")) == [("brush_hair", "b", 0), ("wave", "b", 1)]


def rewrite(small, data):
    file = small / "testTrainMulti_7030_splits" / "wave_test_split1.txt"
    file.write_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"a #1&(2).avi 1\r\nb #1&(2).avi 2\r\n",
        b"\xef\xbb\xbfa #1&(2).avi 1 \n\n   \nb #1&(2).avi 2   \t",
        b"  a #1&(2).avi\t1\n",
    ],
)
def test_harmless_oddities_of_split_files(small, data):
    rewrite(small, data)
    assert names(HMDB51(small)) == [("brush_hair", "a", 0), ("wave", "a", 1)]


def test_file_names_in_any_encoding(small):
    name = b"caf\xe9.avi".decode(errors="surrogateescape")
    try:
        (small / "wave" / name).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    rewrite(small, b"caf\xe9.avi 1\n")
    assert HMDB51(small).samples[-1] == (small / "wave" / name, 1)


def test_split_files_of_no_class_are_passed_over(small):
    for name in ("..", "._wave", ""):
        (small / f"{name}_test_split1.txt").write_bytes(b"\0\1 junk")
    assert HMDB51(small).classes == ["brush_hair", "wave"]


@pytest.mark.parametrize(
    "line",
    [
        b"a.avi",
        b"a.avi 3",
        b"a.avi one",
        b"a.avi -1",
        b"1",
        b"../x.avi 1",
        b"/x.avi 1",
        b"d/x.avi 1",
        b".. 1",
        b"d\\x 1",
        b"x\0 1",
    ],
)
def test_bad_lines_are_named(small, line):
    rewrite(small, b"a #1&(2).avi 1\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"wave_test_split1.txt', line 2: expected 'name.avi tag'"):
        HMDB51(small)


def test_what_is_missing_is_named(small):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HMDB51(small / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no \*_test_split3.txt there or in testTrainMulti"):
        HMDB51(small, fold=3)
    with pytest.raises(ValueError, match="one of train, test, unused, got 'val'"):
        HMDB51(small, subset="val")
    shutil.rmtree(small / "wave")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 listed videos are missing.*wave"):
        HMDB51(small)


# Clips


def test_a_test_clip_is_the_centre(made):
    data = SyntheticMotion(made, "test")
    clip, label = Clips(data, frames=3, stride=2, train=False, crop=32)[7]
    path, truth = data.samples[7]
    wanted = read_clip(path)[2:7:2, 4:36, 4:36]
    assert label == truth
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    np.testing.assert_allclose(clip.permute(1, 2, 3, 0), wanted / 127.5 - 1, atol=1e-6)


def test_a_training_clip_depends_on_seed_epoch_and_index_alone(made):
    clips = Clips(SyntheticMotion(made), frames=4, train=True, crop=32)
    first = [clip for clip, _ in clips]
    again = Clips(SyntheticMotion(made), frames=4, train=True, crop=32)
    assert all(again[i][0].equal(first[i]) for i in reversed(range(len(clips))))
    clips.set_epoch(1)
    assert sum(clip.equal(old) for (clip, _), old in zip(clips, first, strict=True)) < 5
    other = Clips(SyntheticMotion(made), frames=4, train=True, crop=32, seed=1)
    assert sum(clip.equal(old) for (clip, _), old in zip(other, first, strict=True)) < 5


def test_training_reaches_every_start_and_crop(made):
    clips = Clips(SyntheticMotion(made), frames=8, train=True, crop=39)
    video = torch.from_numpy(read_clip(clips.samples[0][0])).permute(3, 0, 1, 2) * (2 / 255) - 1
    seen = set()
    for epoch in range(80):
        clips.set_epoch(epoch)
        clip, _ = clips[0]
        seen |= {
            (t, y, x)
            for t in (0, 1)
            for y in (0, 1)
            for x in (0, 1)
            if torch.allclose(clip, video[:, t : t + 8, y : y + 39, x : x + 39])
        }
    assert len(seen) == 8


def test_short_videos_repeat(made):
    data = SyntheticMotion(made)
    clip, _ = Clips(data, frames=8, stride=3, train=True)[0]
    wanted = read_clip(data.samples[0][0])[[0, 3, 6, 0, 3, 6, 0, 3]]
    np.testing.assert_allclose(clip.permute(1, 2, 3, 0), wanted / 127.5 - 1, atol=1e-6)


def test_resize_sets_the_shorter_side(made):
    clips = Clips(SyntheticMotion(made), frames=2, train=False, resize=20)
    assert clips[0][0].shape == (3, 2, 20, 20)
    assert clips[0][0].abs().max() <= 1


def test_the_number_of_workers_changes_nothing(made):
    def batches(workers):
        clips = Clips(SyntheticMotion(made), frames=4, train=True, crop=32)
        loader = DataLoader(clips, 7, num_workers=workers, persistent_workers=workers > 0)
        for epoch in range(2):
            clips.set_epoch(epoch)
            yield from loader

    for (clip, label), (expected, truth) in zip(batches(2), batches(0), strict=True):
        assert clip.equal(expected)
        assert label.equal(truth)


def test_clips_say_what_is_wrong(made, small):
    data = SyntheticMotion(made)
    with pytest.raises(ValueError, match="frames=0"):
        Clips(data, frames=0, train=True)
    with pytest.raises(ValueError, match=r"clockwise_train_0000.avi.*at least 64×64, got 40×40"):
        Clips(data, frames=2, train=True, crop=64)[0]
    with pytest.raises(VideoError, match="a #1"):
        Clips(HMDB51(small), frames=2, train=True)[0]


# The synthetic set


def test_making_is_deterministic_and_a_clip_does_not_depend_on_the_others(made, tmp_path):
    SyntheticMotion.make(tmp_path / "fewer", train=2, test=1, unused=1, size=40)
    SyntheticMotion.make(tmp_path / "other", train=2, test=1, unused=1, size=40, seed=1)
    for subset in ("train", "test", "unused"):
        for path, _ in SyntheticMotion(tmp_path / "fewer", subset).samples:
            name = path.relative_to(tmp_path / "fewer")
            assert path.read_bytes() == (made / name).read_bytes()
            assert path.read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_no_clip_occurs_twice(made):
    videos = [
        path.read_bytes() for subset in ("train", "test", "unused") for path, _ in HMDB51(made, 1, subset).samples
    ]
    assert len(set(videos)) == 12 * 9


def test_a_set_that_is_there_is_kept_and_nothing_else_is_touched(made, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    SyntheticMotion.make(made, train=5, test=3, unused=1, size=40, frames=9)
    with pytest.raises(FileExistsError, match=r"motion.*'seed': 1.*choose another"):
        SyntheticMotion.make(made, train=5, test=3, unused=1, size=40, frames=9, seed=1)
    assert before == {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="found other files"):
        SyntheticMotion.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert json.loads((made / "recipe.json").read_text())["train"] == 5


def test_impossible_requests_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"frames must be at least 3.*got 2"):
        SyntheticMotion.make(tmp_path / "motion", frames=2)
    with pytest.raises(ValueError, match=r"one of left, right, .*got 'rigth'"):
        render("rigth", np.random.default_rng(0))


def test_two_processes_may_make_the_same_set(tmp_path, monkeypatch):
    """The other one finishes while this one writes."""
    numbers = {"train": 1, "test": 1, "unused": 0, "size": 16, "frames": 3}

    def write_late(*arguments, **options):
        monkeypatch.undo()
        SyntheticMotion.make(tmp_path / "motion", **numbers)
        synthetic.write_video(*arguments, **options)

    monkeypatch.setattr(synthetic, "write_video", write_late)
    SyntheticMotion.make(tmp_path / "motion", **numbers)
    assert len(SyntheticMotion(tmp_path / "motion")) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["motion"]


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_video", stop)
    with pytest.raises(KeyboardInterrupt):
        SyntheticMotion.make(tmp_path / "motion")
    assert list(tmp_path.iterdir()) == []


def estimated_motion(clip):
    """Least-squares (right, down, clockwise, growing) of OpenCV's flow for each pair of frames: (T - 1, 4)."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    size = clip.shape[1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    one, none = np.ones_like(x), np.zeros_like(x)
    fields = np.array([[one, none], [none, one], [-y, x], [x, y]])[..., 8:-8, 8:-8].reshape(4, -1).T
    steps = []
    for first, second in pairwise(grey):
        flow = cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 2, 11, 5, 7, 1.5, 0)[8:-8, 8:-8]
        steps.append(np.linalg.lstsq(fields, flow.transpose(2, 0, 1).reshape(-1), rcond=None)[0])
    return np.array(steps)


@pytest.mark.parametrize("name", CLASSES)
def test_the_motion_is_what_it_says(name):
    """The median over clips of the estimated steps, against the true ones, in px/frame (turn and growth at 18 px)."""
    unit = np.array([1, 1, 18, 18])
    steps = [estimated_motion(render(name, np.random.default_rng(i), size=64, speed=1.2)) for i in range(16)]
    np.testing.assert_allclose(np.median(steps, 0) * unit, np.diff(motion(name, 1.2, 64), axis=0) * unit, atol=0.15)


def test_the_files_show_their_class(made):
    """Each decoded clip's estimated motion points where its class says, and its speed changes as it says."""
    right = 0
    samples = SyntheticMotion(made).samples
    classes = sorted(CLASSES)
    for path, label in samples:
        steps = estimated_motion(read_clip(path)) * (1, 1, 15, 15)
        mean, change = steps.mean(0), np.abs(steps[4:]).sum(0) - np.abs(steps[:4]).sum(0)
        scores = {}
        for name in BASIC:
            scores[name] = mean @ motion(name, 1.0, 40)[-1] / 8
        guess = max(scores, key=scores.get)
        change = change @ np.abs(motion(guess, 1.0, 40)[-1]) / 8
        if guess in ("left", "right") and abs(change) > 3:
            guess += "-accelerating" if change > 0 else "-decelerating"
        right += guess == classes[label]
    assert right / len(samples) > 0.9


@pytest.mark.parametrize(("accelerating", "decelerating"), PAIRS)
def test_a_pair_has_the_same_speeds_in_opposite_order(accelerating, decelerating):
    forth, back = (np.diff(motion(name, 2.0, frames=9)[:, 0]) for name in (accelerating, decelerating))
    np.testing.assert_allclose(forth, back[::-1])
    np.testing.assert_allclose(np.abs(forth), 2 * (1 + 0.9 * np.linspace(-1, 1, 8)))
    assert forth.mean() == pytest.approx(np.diff(motion(accelerating.split("-")[0], 2.0)[:, 0]).mean())


def test_speeds_are_alike_in_all_classes():
    """Mean length of the steps over a frame's pixels: the `speed` asked for, whatever moves."""
    y, x = np.mgrid[:48, :48] - 23.5
    for name in BASIC:
        right, down, turn, growth = motion(name, 0.5, 48, frames=2)[1]
        scale = np.exp(growth)
        to_x = scale * (np.cos(turn) * x - np.sin(turn) * y) + right
        to_y = scale * (np.sin(turn) * x + np.cos(turn) * y) + down
        assert np.hypot(to_x - x, to_y - y).mean() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("name", "shift"), [("right", (1, 0)), ("up", (0, -1))])
def test_a_moving_object_covers_a_third_of_a_still_frame(name, shift):
    clip = render(name, np.random.default_rng(2), size=64, frames=7, speed=1.0, moving="object").astype(int)
    for before, after in pairwise(clip):
        still = (after == before).all(-1)
        moved = np.abs(after - np.roll(before, shift, (1, 0))).max(-1) <= 1  # round the frame's edges, too
        assert 0.33 < moved.mean() < 0.40  # a disc of radius 1/3: 0.349
        assert (still | moved).mean() > 0.94  # the rest: its rim


@pytest.mark.parametrize("name", ["clockwise", "zoom-out"])
def test_an_object_that_turns_or_grows_stays_in_its_place(name):
    clip = render(name, np.random.default_rng(2), size=64, frames=7, speed=2.0, moving="object").astype(int)
    changed = (np.abs(clip - clip[0]).max(-1) > 0).any(0)
    assert 0.33 < changed.mean() < 0.39
    speed = np.hypot(*motion(name, 2.0, 64, 7, "object")[-1, 2:]) * 64 / 3 * 2 / 3 / 6
    assert speed == pytest.approx(2.0)  # mean over a disc: two thirds of its radius
