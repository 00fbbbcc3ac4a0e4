"""UCF101's official lists in miniature and whole, its groups, and what trains on them."""

import itertools
import shutil
import warnings

import numpy as np
import pytest
import torch

from repflow.data import HMDB51, UCF101, Clips, SyntheticMotion, Views
from repflow.lab.sweeps import convergence, real_video
from repflow.lab.sweeps.real_video import chosen
from repflow.training import split

CLASSES = "1 Archery\n2 HandstandPushups\n3 Lunges\n"
TRAIN = {
    "Archery": ["v_Archery_g02_c01", "v_Archery_g02_c02", "v_Archery_g03_c01"],
    "HandstandPushups": ["v_HandStandPushups_g02_c01", "v_HandStandPushups_g04_c01"],
    "Lunges": ["v_Lunges_g02_c01", "v_Lunges_g02_c02", "v_Lunges_g03_c01", "v_Lunges_g03_c02"],
}


@pytest.fixture
def root(tmp_path):
    """Three classes; a folder and a file are spelled otherwise than in the lists."""
    lists = tmp_path / "ucf" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_bytes(CLASSES.replace("\n", "\r\n").encode())
    lines = [f"{name}/{video}.avi {i}" for i, (name, videos) in enumerate(TRAIN.items(), 1) for video in videos]
    (lists / "trainlist01.txt").write_text("\n".join(lines))
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\nLunges/v_Lunges_g01_c01.avi\n")
    for name, videos in TRAIN.items():
        folder = tmp_path / "ucf" / name.replace("HandstandP", "HandStandP")
        folder.mkdir()
        for video in [*videos, f"v_{name}_g01_c01"]:
            (folder / f"{video}.avi").touch()
    (tmp_path / "ucf" / "Lunges" / "v_Lunges_g03_c01.avi").rename(tmp_path / "ucf" / "Lunges" / "V_Lunges_G03_C01.MP4")
    return tmp_path / "ucf"


def test_names_groups_and_labels(root):
    data = UCF101(root)
    assert data.classes == ["Archery", "HandstandPushups", "Lunges"]
    assert [path.name for path, label in data.samples if label == 1] == [f"{v}.avi" for v in TRAIN["HandstandPushups"]]
    assert [group for group, (_, label) in zip(data.groups, data.samples, strict=True) if label == 2] == [
        *["Lunges g02"] * 2, *["Lunges g03"] * 2,
    ]  # fmt: skip
    assert [path.name for path, _ in UCF101(root, subset="test").samples] == [
        "v_Archery_g01_c01.avi", "v_Lunges_g01_c01.avi",
    ]  # fmt: skip


def test_classes_in_the_order_asked_for(root):
    data = UCF101(root, classes=["Lunges", "Archery"])
    assert data.classes == ["Lunges", "Archery"]
    assert [label for _, label in data.samples] == [0] * 4 + [1] * 3
    (root / "ask.txt").write_text("Lunges\nArchery\n")
    assert UCF101(root, classes=root / "ask.txt").samples == data.samples


def test_the_archive_s_own_folder_and_lists_elsewhere(root, tmp_path):
    inner = root / "UCF-101"
    inner.mkdir()
    for name in ("Archery", "HandStandPushups", "Lunges"):
        (root / name).rename(inner / name)
    (root / "ucfTrainTestlist").rename(tmp_path / "lists")
    with pytest.raises(FileNotFoundError, match="expected the official lists"):
        UCF101(root)
    assert len(UCF101(root, lists=tmp_path / "lists")) == 9


def test_missing_videos_are_an_error_or_a_list(root):
    (root / "Archery" / "v_Archery_g02_c02.avi").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 9 listed videos are missing, first \['Archery/v_Archery_g02"):
        UCF101(root)
    data = UCF101(root, missing_ok=True)
    assert data.missing == ["Archery/v_Archery_g02_c02.avi"]
    assert len(data.groups) == len(data.samples) == 8


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("trainlist01", "Archery/v_Archery_g05_c01.avi", "line 10: expected class/name.avi and the class's number"),
        ("trainlist01", "Archery/v_Archery_g05_c01.avi 2", "line 10: expected class/name.avi and the class's number"),
        ("trainlist01", "Archery/../v_Archery_g05_c01.avi 1", "line 10: expected class/name.avi"),
        ("trainlist01", "Archer/v_Archery_g05_c01.avi 1", "line 10: expected class/name.avi"),
        ("trainlist01", "Lunges/V_Lunges_g02_c01.avi 3", "line 10: expected each video once"),
        ("testlist01", "v_Archery_g05_c01.avi", "line 10: expected class/name.avi"),
        ("classInd", "4 Lunges", "line 10: expected 4 and another class"),
        ("classInd", "5 Bowling", "line 10: expected 4 and another class"),
    ],
)
def test_a_bad_line_is_named(root, file, line, message):
    path = root / "ucfTrainTestlist" / f"{file}.txt"
    path.write_text(path.read_text().rstrip() + "\n" * (10 - len(path.read_text().split("\n"))) + "\n" + line)
    text = path.read_text().split("\n")
    number = text.index(line) + 1
    with pytest.raises(ValueError, match=message.replace("line 10", f"line {number}")):
        UCF101(root, subset="test" if file == "testlist01" else "train")


def test_an_empty_list_gives_nothing_to_train_on(root):
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"expected videos of subset train, got none \(0 are listed\)"):
        UCF101(root)


def test_whole_groups_are_held_out(root):
    data = UCF101(root)
    group = dict(zip([path for path, _ in data.samples], data.groups, strict=True))
    for seed in range(5):
        training, validation = split(data, 0.3, seed)
        apart = [{group[path] for path, _ in part.samples} for part in (training, validation)]
        assert not apart[0] & apart[1]
        assert {label for _, label in training.samples} == {label for _, label in validation.samples} == {0, 1, 2}
        assert sorted(training.samples + validation.samples) == sorted(data.samples)


def test_some_videos_of_each_class(root):
    samples = UCF101(root).samples
    drawn = chosen(samples, 2, seed=3)
    assert [label for _, label in drawn] == [0, 0, 1, 1, 2, 2]
    assert set(drawn) <= set(samples)
    assert drawn == chosen(samples, 2, seed=3)
    assert any(chosen(samples, 2, seed=seed) != drawn for seed in range(5))
    assert chosen(samples, 0, seed=3) == samples


def test_the_official_lists(shared, tmp_path):
    """Soomro et al. count 13,320 videos; HMDB51 has 70 training and 30 test videos of each of 51 classes."""
    lists = shared / "splits" / "ucf101"
    for line in {
        *(lists / "trainlist01.txt").read_text().split("\n"),
        *(lists / "testlist01.txt").read_text().split("\n"),
    }:
        if line.strip():
            file = tmp_path / "ucf" / line.split()[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    with warnings.catch_warnings(action="error"):
        sizes = [
            [len(UCF101(tmp_path / "ucf", fold, subset, lists=lists)) for fold in (1, 2, 3)]
            for subset in ("train", "test")
        ]
    assert sizes == [[9537, 9586, 9624], [3783, 3734, 3696]]
    splits = shared / "splits" / "hmdb51"
    (tmp_path / "hmdb").mkdir()
    (tmp_path / "hmdb" / "testTrainMulti_7030_splits").symlink_to(splits)
    for file in splits.glob("*_test_split1.txt"):
        folder = tmp_path / "hmdb" / file.name.removesuffix("_test_split1.txt")
        folder.mkdir()
        for line in file.read_text().split("\n"):
            if line.strip():
                (folder / line.rsplit(maxsplit=1)[0]).touch()
    with warnings.catch_warnings(action="error"):
        sizes = [[len(HMDB51(tmp_path / "hmdb", fold, subset)) for fold in (1, 2, 3)] for subset in ("train", "test")]
    assert sizes == [[3570] * 3, [1530] * 3]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five classes of UCF101, each with a test video and three training videos of three groups, all generated."""
    folder = tmp_path_factory.mktemp("five")
    SyntheticMotion.make(folder / "made", train=1, test=0, unused=0, size=40, frames=9)
    videos = itertools.cycle(sorted((folder / "made").glob("*/*.avi")))
    lists = folder / "ucf101" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(real_video.CLASSES, 1)))
    lines = {"trainlist01": "", "testlist01": ""}
    for label, name in enumerate(real_video.CLASSES, 1):
        (folder / "ucf101" / name).mkdir()
        for group in (1, 2, 3, 4):
            place = f"{name}/v_{name}_g0{group}_c01.avi"
            shutil.copy(next(videos), folder / "ucf101" / place)
            lines["testlist01" if group == 1 else "trainlist01"] += f"{place}\n" if group == 1 else f"{place} {label}\n"
    for name, text in lines.items():
        (lists / f"{name}.txt").write_text(text)
    return folder / "ucf101"


def test_the_study_of_real_video(five):
    """It trains on what it says, and its measures are shares of the test videos."""
    tiny = {"data": str(five), "steps": 10, "batch": 4, "frames": 3, "stride": 2, "resize": 36, "crop": 32, "views": 2}
    found = real_video.real_video(system="repflow_2d", iterations=2, **tiny)
    assert found["clips"] == 15
    assert found["top1"] * 5 / 100 in {0, 1, 2, 3, 4, 5}
    assert round(found["actions"] * 3 / 100, 6) in {0, 1, 2, 3}
    assert [f"loss_{tenth}" for tenth in range(10, 101, 10)] == [name for name in found if name.startswith("loss_")]
    assert found["loss_10"] == pytest.approx(np.log(5), rel=0.5)
    assert found["step_ms"] > 0
    fewer = real_video.real_video(system="difference_2d", train_clips=2, order="shuffled", **tiny)
    assert fewer["clips"] == 10
    assert real_video.real_video(system="rgb_2d", held_out=True, **tiny)["clips"] == 10


def test_the_steps_to_an_accuracy(five, monkeypatch):
    """The first test reaches 0 percent, none reaches more than 100."""
    monkeypatch.setattr(convergence, "LEVELS", (0, 101))
    found = convergence.convergence(video="real", steps=4, every=2, skip=False, data=str(five))
    assert (found["steps_to_0"], found["steps_to_101"]) == (2, 6)
    assert found["top1"] * 5 / 100 in {0, 1, 2, 3, 4, 5}


def test_shuffled_clips_hold_the_same_frames(five):
    test = UCF101(five, subset="test")
    for kind, shuffled, options in (
        (Clips, real_video.Shuffled, {"train": True}),
        (Views, real_video.ShuffledViews, {"clips": 2}),
    ):
        plain, mixed = (a(test, 7, **options)[0][0] for a in (kind, shuffled))
        frames = [[frame.numpy().tobytes() for frame in clip.unbind(-3)] for clip in (plain, mixed)]
        assert sorted(frames[0]) == sorted(frames[1])
        assert frames[0] != frames[1]
        assert torch.equal(mixed, shuffled(test, 7, **options)[0][0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"system": "two_stream_2d"}, "expected extracted flow in .*ucf101-flow"),
        ({"system": "repflow_3d"}, "model: expected one of"),
        ({"views": 0}, "views: expected a whole number >= 1, got 0"),
        ({"system": "rgb_2d", "iterations": 3}, "rgb_2d takes the options"),
    ],
)
def test_a_setting_that_cannot_run_is_told_before(five, setting, message):
    values = vars(real_video.Setting(**({"data": str(five)} | setting)))
    with pytest.raises(ValueError, match=message):
        real_video.check(**values)
