"""Folders and lists that people bring, Something-Something V2, the larger Kinetics. The videos are empty files."""

import json
import re
from collections import Counter

import pytest

from repflow.cli import build_parser, main
from repflow.cli.datasets import KINDS, check_dataset, open_dataset
from repflow.data import Clips, Kinetics, SomethingSomething, SyntheticMotion, VideoFolder, VideoList
from repflow.data.lists import official_classes

LABELS = {"Holding something": "1", "Pushing something from left to right": "0", "Moving away": "2"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def put(root, *names, text=""):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / names[0]


def names(data):
    return [path.relative_to(data.root).as_posix() for path, _ in data.samples]


def pairs(data):
    return [(name, data.classes[label]) for name, (_, label) in zip(names(data), data.samples, strict=True)]


def both(root, **options):
    return VideoFolder(root, "train", **options), VideoFolder(root, "test", **options)


# Folders


@pytest.mark.parametrize("tested", ["test", "val", "validation"])
def test_folders_of_subsets(root, tested):
    put(
        root, "train/wave/b.mp4", "train/wave/deep/er/a.avi", "train/jump/c.webm", "notes/none.txt", "train/empty/x.txt"
    )
    put(root, f"{tested}/wave/d.mp4", f"{tested}/.hidden/e.mp4")
    train, test = both(root)
    assert train.classes == test.classes == ["jump", "wave"]
    found = [("train/jump/c.webm", "jump"), ("train/wave/b.mp4", "wave"), ("train/wave/deep/er/a.avi", "wave")]
    assert pairs(train) == found
    assert pairs(test) == [(f"{tested}/wave/d.mp4", "wave")]
    assert pairs(VideoFolder(root, classes=["wave", "jump"]))[0] == ("train/wave/b.mp4", "wave")
    assert VideoFolder(root, classes=["wave", "jump"]).classes == ["wave", "jump"]


def test_val_is_left_alone_where_there_is_a_test_folder(root):
    put(root, "train/wave/a.mp4", "val/wave/b.mp4", "test/wave/c.mp4")
    assert [names(data) for data in both(root)] == [["train/wave/a.mp4"], ["test/wave/c.mp4"]]


def test_a_class_may_be_called_as_a_subset(root):
    put(root, *(f"{name}/{i}.mp4" for name in ("train", "car") for i in range(4)))
    train, test = both(root)
    assert train.classes == ["car", "train"]
    assert Counter(label for _, label in train.samples + test.samples) == {0: 4, 1: 4}


def test_class_folders_are_divided_by_the_stated_rule(root):
    sizes = {"a": 10, "b": 20, "c": 2}
    put(root, *(f"{name}/{i}.mp4" for name, size in sizes.items() for i in range(size)))
    train, test = both(root)
    assert not set(names(train)) & set(names(test))
    assert set(names(train) + names(test)) == {f"{name}/{i}.mp4" for name, size in sizes.items() for i in range(size)}
    assert Counter(name[0] for name in names(test)) == {"a": 3, "b": 6, "c": 1}
    assert names(VideoFolder(root, "test")) == names(test)
    assert names(VideoFolder(root, "test", seed=1)) != names(test)
    assert Counter(name[0] for name in names(VideoFolder(root, "test", share=0.5))) == {"a": 5, "b": 10, "c": 1}
    # Neither the classes that are asked for, nor the quarantine, nor an ending moves a video.
    chosen = VideoFolder(root, "test", classes={"b"})
    assert names(chosen) == [name for name in names(test) if name[0] == "b"]
    bad = names(test)[0]
    put(root, "quarantine.txt", text=f"{bad}\n")
    train, quarantined = both(root)
    assert (quarantined.quarantined, names(quarantined)) == ([bad], names(test)[1:])
    (root / bad).rename((root / bad).with_suffix(".avi"))
    put(root, "quarantine.txt")
    assert len(VideoFolder(root, "test")) == len(test)
    put(root, "b/new.mp4")
    assert len(set(names(test)[1:]) - set(names(VideoFolder(root, "test")))) <= 1


def test_clips_of_one_source_stay_together(root):
    put(
        root, *(f"{name}/v_{name}_g{g:02}_c{c:02}.avi" for name in ("run", "walk") for g in range(10) for c in range(g))
    )
    for pattern in (r"_g\d+", r"_g(\d+)_c", r"v_\w+_g\d+"):
        train, test = both(root, group=pattern)
        sources = [{re.search(r"g\d+", name)[0] for name in names(data)} for data in (train, test)]
        if pattern != r"v_\w+_g\d+":  # whose sources are of one class
            assert not sources[0] & sources[1]
        assert not set(train.groups) & set(test.groups)
        assert len(names(train) + names(test)) == len(set(names(train) + names(test))) == 90
        for name in ("run", "walk"):
            assert abs(sum(sample.startswith(name) for sample in names(test)) - 0.3 * 45) <= 9 / 2
    assert train.groups[0] == re.search(pattern, names(train)[0])[0]
    assert len(train.groups) == len(train)
    assert VideoFolder(put(root, "../given/train/a/x_g1.mp4").parents[2], group=r"g\d").groups == ["g1"]
    with pytest.warns(UserWarning, match=r"90 names look like it, first 'v_run_g01_c00.avi'.* give a group"):
        assert VideoFolder(root).groups is None


def test_a_class_of_one_source_is_for_training_and_named(root):
    put(root, "a/x_1.mp4", "a/x_2.mp4", "b/x_3.mp4", "b/y_1.mp4", "b/z_1.mp4")
    with pytest.warns(UserWarning, match=r"1 classes have videos of one source only, none for testing: \['a'\]"):
        train, test = both(root, group="^[xyz]")
    assert {"a/x_1.mp4", "a/x_2.mp4", "b/x_3.mp4"} <= set(names(train))
    assert len(test) == 1


def test_a_video_in_no_class_folder_is_named(root):
    put(root, "train/a/x.mp4", "train/lost.mp4")
    with pytest.warns(UserWarning, match=r"1 videos in no class folder are left out, first \['lost.mp4'\]"):
        assert names(VideoFolder(root)) == ["train/a/x.mp4"]


# Lists

FILES = ("a b.mp4", "deep/c,d.AVI", "e.webm", "f.mkv")


@pytest.mark.parametrize(
    "text",
    [
        "a b.mp4 high jump\ndeep/c,d.AVI wave\ne.webm high jump\n",
        "\ufeffa b.mp4,high jump\r\n\r\n./deep/c,d.AVI, wave\r\ne.webm ,high jump",
        "a b.mp4\thigh jump\ndeep/c,d.AVI\twave\ne\thigh jump\n",
        '\ufeffvideo,label\r\na b.mp4,high jump\r\n"deep/c,d.AVI", wave\r\ne.webm,high jump\r\n',
        '"label","x","video"\nhigh jump,1,a b.mp4\nwave,2,"deep/c,d.avi"\nhigh jump,3,e.mp4\n',
    ],
)
def test_a_list_in_any_form(root, text):
    put(root, *FILES)
    data = VideoList(root, lists=put(root.parent, "list.csv", text=text))
    assert pairs(data) == [("a b.mp4", "high jump"), ("deep/c,d.AVI", "wave"), ("e.webm", "high jump")]
    assert (data.classes, data.expected, data.missing) == (["high jump", "wave"], 3, [])


def test_numbers_are_lines_of_the_classes(root):
    put(root, *FILES)
    file = put(root.parent, "list.txt", text="a b 1\ne.webm 0\nf.mkv jump\n")
    classes = put(root.parent, "classes.txt", text="wave\njump\nfall\n")
    data = VideoList(root, lists=file, classes=classes)
    assert data.classes == ["wave", "jump", "fall"]
    assert pairs(data) == [("a b.mp4", "jump"), ("e.webm", "wave"), ("f.mkv", "jump")]
    assert pairs(VideoList(root, lists=put(root.parent, "l.txt", text="e.webm 0"), classes=["1", "0"])) == [
        ("e.webm", "0")
    ]


def test_subsets_by_column_by_file_and_by_neither(root):
    put(root, *FILES)
    table = put(
        root.parent, "l.csv", text="video,label,split\na b.mp4,x,train\ne.webm,x,validation\nf.mkv,y,training\n"
    )
    assert pairs(VideoList(root, lists=table)) == [("a b.mp4", "x"), ("f.mkv", "y")]
    assert pairs(VideoList(root, "test", lists=table)) == [("e.webm", "x")]
    assert VideoList(root, "test", lists=table).classes == ["x", "y"]
    put(root, "train.txt", text="e.webm y\nf.mkv x\n")
    put(root, "testing.csv", text="video,label\na b.mp4,y\n")
    assert VideoList(root, "test").classes == ["x", "y"]
    assert (names(VideoList(root)), names(VideoList(root, "test"))) == (["e.webm", "f.mkv"], ["a b.mp4"])
    assert names(VideoList(root, "test", lists=root / "train.txt")) == ["e.webm", "f.mkv"]


def test_missing_and_quarantined_videos_of_a_list(root):
    put(root, *FILES)
    put(root, "quarantine.txt", text="e.webm\n")
    file = put(root.parent, "list.txt", text="f.mkv x\ne.webm x\ngone/g.mp4 x\nh.mp4 y\n")
    with pytest.warns(UserWarning, match=r"list.txt', line 3: 'gone/g.mp4' is not in .*; missing are 2 of 4"):
        data = VideoList(root, lists=file)
    assert (names(data), data.quarantined, data.missing) == (["f.mkv"], ["e.webm"], ["gone/g.mp4", "h.mp4"])
    assert (data.expected, data.classes) == (4, ["x", "y"])


# Something-Something V2


def annotate(root, pattern="something-something-v2-{}.json", **changed):
    content = {
        "labels": LABELS,
        "train": [
            {"id": "7", "label": "holding a pen", "template": "Holding [something]", "placeholders": ["a pen"]},
            {"id": "10", "template": "Pushing [something] from left to right"},
            {"id": "9", "template": "Holding [something]"},
        ],
        "validation": [{"id": "3", "template": "Moving away"}],
    }
    for name, value in (content | changed).items():
        put(root, pattern.format(name), text=value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("pattern", ["something-something-v2-{}.json", "labels/{}.json", "{}.json"])
@pytest.mark.parametrize("folder", ["20bn-something-something-v2/", ""])
def test_the_official_json_files(root, pattern, folder):
    annotate(root, pattern)
    put(root, f"{folder}7.webm", f"{folder}10.mp4", f"{folder}3.webm", f"{folder}8.webm")
    data = SomethingSomething(root)
    assert data.classes == ["Pushing something from left to right", "Holding something", "Moving away"]
    assert pairs(data) == [(f"{folder}7.webm", data.classes[1]), (f"{folder}10.mp4", data.classes[0])]
    assert (data.expected, data.missing) == (3, ["9"])
    assert pairs(SomethingSomething(root, "val")) == [(f"{folder}3.webm", "Moving away")]
    chosen = SomethingSomething(root, classes=["Moving away", "Holding something"])
    assert (pairs(chosen), chosen.samples[0][1]) == ([(f"{folder}7.webm", "Holding something")], 1)
    put(root, "quarantine.txt", text=f"{folder}7.webm\n")
    assert SomethingSomething(root).quarantined == [f"{folder}7.webm"]
    with pytest.raises(ValueError, match="SomethingSomething tells left from right"):
        Clips(data, 2, train=True, flip=True)


# Kinetics-600 and -700


@pytest.mark.parametrize(
    ("edition", "new", "unknown"), [(600, "tasting wine", "arresting"), (700, "arresting", "bull fighting")]
)
def test_the_larger_kinetics(root, edition, new, unknown):
    classes = official_classes(f"kinetics{edition}")
    assert (len(classes), len(set(classes)), sorted(classes)) == (edition, edition, classes)
    head = "label,youtube_id,time_start,time_end,split\n"
    file = put(root.parent, "list.csv", text=f"{head}{new},abcdefghijk,1,11,train\nyoga,lmnopqrstuv,2,12,train\n")
    put(root, f"train/{new}/abcdefghijk_000001_000011.mp4")
    for data in (Kinetics(root, edition=edition), Kinetics(root, csv=file, edition=edition)):
        assert (data.classes, pairs(data)[0][1]) == (classes, new)
    assert data.missing == ["lmnopqrstuv_000002_000012"]
    with pytest.raises(ValueError, match=f"line 2: expected a class of Kinetics-{edition}, got '{unknown}'"):
        Kinetics(root, csv=put(root.parent, "l.csv", text=f"{head}{unknown},abcdefghijk,1,11,train\n"), edition=edition)
    with pytest.raises(ValueError, match="edition must be one of 400, 600, 700, got 500"):
        Kinetics(root, edition=500)


# What is bad is named, and nothing is written


def refused(root, error, message, opened):
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(error, match=message):
        opened()
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("e.webm x\nf.mkv\n", "line 2: expected 'path label', got 'f.mkv'"),
        ("e.webm x\nf.mkv,\n", "line 2: expected 'path label', got 'f.mkv,'"),
        ("e.webm x\n./e.webm y\n", r"line 2: 'e.webm' was listed before, .*line 1"),
        ("e.webm x\ne.mp4 x\n", r"line 2: 'e.mp4' was listed before, .*line 1"),
        ("../videos/e.webm x\n", "line 1: expected a path relative to .*got '../videos/e.webm'"),
        ("/etc/e.webm x\n", "line 1: expected a path relative to"),
        ("e.webm x\ndeep\\f.mkv x\n", "line 2: expected a path relative to the data set's folder, with slashes"),
        ("e.webm x\nf\0.mkv x\n", "line 2: expected a path relative to"),
        ("\n\ne.webm 3\n", "line 3: expected names of classes, got the number '3'; give the file"),
        ("\r\n \n", "line 1: expected lines 'path label', got none"),
        ("video,label\ne.webm,x\nf.mkv,x,y\n", "line 3: expected 2 fields"),
        ("video,label\ne.webm,\n", "line 2: expected a label, got none"),
        ("video,class\ne.webm,x\n", "line 1: expected the columns video, label, no label"),
        ("path,label\ne.webm,x\n", "line 1: expected the columns video, label, no video"),
        ("video,label,split\ne.webm,x,dev\n", "line 2: expected one of the splits train, .*got 'dev'"),
        ('video,label\n"e.webm"x,x\n', "line 2: expected CSV text"),
    ],
)
def test_a_bad_line_of_a_list(root, text, message):
    put(root, *FILES)
    file = put(root.parent, "list.csv", text=text)
    refused(root, ValueError, f"list.csv', {message}", lambda: VideoList(root, lists=file))


@pytest.mark.parametrize(
    ("lists", "classes", "message"),
    [
        (
            {"train.txt": "e.webm x\n", "test.txt": "f.mkv y\n"},
            None,
            "test.txt', line 1: expected a class, one of x, .*got 'y'",
        ),
        (
            {"train.txt": "e.webm x\n", "test.txt": "e.webm x\n"},
            None,
            "'e.webm' was listed before, .*train.txt', line 1",
        ),
        (
            {"train.txt": "e.webm x\n", "train.csv": "f.mkv x\n"},
            None,
            "one list a subset, got .'train.txt', 'train.csv'",
        ),
        (
            {"test.txt": "e.webm x\nf.mkv z\n"},
            ["x", "y"],
            "test.txt', line 2: expected a class, one of x, y, .*got 'z'",
        ),
        (
            {"test.txt": "e.webm 1\nf.mkv 2\n"},
            ["x", "y"],
            "test.txt', line 2: expected a class, .*or its number, got '2'",
        ),
    ],
)
def test_lists_that_do_not_go_together(root, lists, classes, message):
    put(root, *FILES)
    for name, text in lists.items():
        put(root, name, text=text)
    refused(root, ValueError, message, lambda: VideoList(root, "test", classes))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": '{"a": "0",\n "b"}'}, "labels.json', line 2: expected JSON"),
        ({"labels": {"a": "0", "b": "2"}}, "labels.json': expected names with the numbers from 0 on"),
        ({"labels": ["a"]}, "labels.json': expected names with the numbers from 0 on"),
        ({"train": "[" * 100_000}, "train.json', line 1: expected JSON"),
        ({"train": {}}, "train.json': expected a list of videos"),
        ({"train": [{"id": "7"}]}, "train.json', entry 1: expected a template of labels.json, got 'None'"),
        ({"train": [{"id": "../7", "template": "Moving away"}]}, "train.json', entry 1: expected an id of digits"),
        ({"train": [{"id": "7", "template": "Moving away"}] * 2}, "entry 2: the id 7 was listed before"),
        ({"train": ["7"]}, "entry 1: expected an id of digits"),
    ],
)
def test_bad_annotations(root, changed, message):
    annotate(root, **changed)
    put(root, "7.webm")
    refused(root, ValueError, message, lambda: SomethingSomething(root))


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["a/x.mp4", "a/y.mp4"], {"group": "("}, r"group: expected a regular expression, got '\('"),
        (
            ["a/x.mp4", "a/y_g1.mp4"],
            {"group": r"_g\d"},
            r"'a/x.mp4': expected the source by the group '_g\\\\d', found",
        ),
        (["a/x.mp4", "a/y.mp4"], {"group": "z*"}, "expected the source by the group"),
        (["train/a/x.mp4", "test/b/y.mp4"], {}, r"expected training videos of each class, got none of \['b'\]"),
        (["a/x.mp4", "a/y.mp4"], {"share": 1.0}, "share of test videos: expected a number between 0 and 1, got 1.0"),
        (["a/x.mp4", "a/y.mp4"], {"classes": ["b"]}, "classes: expected some of a, got 'b'"),
    ],
)
def test_a_bad_folder(root, files, options, message):
    put(root, *files)
    refused(root, ValueError, message, lambda: VideoFolder(root, "test", **options))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_not_there_is_named(root):
    for kind in (VideoFolder, VideoList, SomethingSomething):
        refused(root, FileNotFoundError, "nowhere", lambda kind=kind: kind(root / "nowhere"))
        refused(root, ValueError, "subset must be one of train, .*got 'dev'", lambda kind=kind: kind(root, "dev"))
    refused(root, FileNotFoundError, "expected a list, or a folder with train.txt", lambda: VideoList(root))
    refused(root, FileNotFoundError, "expected something-something-v2-labels.json", lambda: SomethingSomething(root))
    refused(root, FileNotFoundError, "expected videos", lambda: VideoFolder(root))
    put(root, "a/x.mp4")
    refused(root, FileNotFoundError, "expected videos of subset test, got none", lambda: VideoFolder(root, "test"))
    lists = put(root.parent, "list.txt", text="gone.mp4 x\n")
    refused(root, FileNotFoundError, "1 are missing", lambda: VideoList(root, lists=lists))


# The commands


def opened(*arguments, subset="train"):
    arguments = build_parser().parse_args(
        ["train", "--model", "rgb_2d", "--out", "run", "--data", *map(str, arguments)]
    )
    check_dataset(arguments)
    return open_dataset(arguments, subset)


def test_the_commands_open_every_set(root):
    put(root, "a/x_1.mp4", "a/y_1.mp4", "a/z_1.mp4")
    data = opened("folder", root, "--group", "^[xyz]", subset="test")
    assert (len(data), data.groups) == (1, [data.samples[0][0].name[0]])
    lists, classes = root.parent / "lists", put(root.parent, "classes.txt", text="z\na\n")
    put(lists, "train.txt", text="a/x_1.mp4 0\n")
    data = opened("list", root, "--list", lists, "--classes", classes)
    assert (data.classes, pairs(data)) == (["z", "a"], [("a/x_1.mp4", "z")])
    annotate(root)
    put(root, "3.webm", "val/arresting/a.mp4")
    assert pairs(opened("ssv2", root, subset="test")) == [("3.webm", "Moving away")]
    assert pairs(opened("kinetics700", root, subset="test")) == [("val/arresting/a.mp4", "arresting")]
    with pytest.raises(ValueError, match=r"named as classes of Kinetics-600, got .*arresting"):
        opened("kinetics600", root, subset="test")


@pytest.mark.parametrize(
    ("kind", "option"), [("ssv2", "list"), ("list", "group"), ("synthetic", "list"), ("hmdb51", "group")]
)
def test_an_option_of_another_set_is_refused(root, capsys, kind, option):
    command = ["train", "--data", kind, str(root), "--model", "rgb_2d", "--out", str(root / "run"), f"--{option}", "x"]
    assert main(command) == 2
    assert f"--{option}: it belongs to " in (message := capsys.readouterr().err)
    assert all(name in message for name, entry in KINDS.items() if option in entry.given)
    assert not (root / "run").exists()


def test_a_folder_is_checked_trained_on_and_evaluated(root, capsys):
    SyntheticMotion.make(root / "set", train=4, test=0, unused=0, size=32, frames=5)
    videos, out = str(root / "set"), str(root / "run")
    put(root, "set/left/broken_0005.avi", text="no video")
    for split_file in (root / "set").glob("*_test_split1.txt"):
        split_file.unlink()
    assert main(["data", "check", videos, "--workers", "1"]) == 1
    assert "left: 5 videos" in capsys.readouterr().out
    data = ["--data", "folder", videos, "--group", r"\d+"]
    settings = ["backbone=tiny_2d", "steps=1", "batch=4", "frames=5", "crop=24"]
    assert main(["train", *data, "--model", "rgb_2d", "--preset", "motion", "--out", out, "--set", *settings]) == 0
    train, test = both(root / "set", group=r"\d+")
    assert len(train) + len(test) == 48
    assert f"{train.expected} videos of 12 classes" in capsys.readouterr().out
    evaluation = ["evaluate", "--checkpoint", f"{out}/best.pt", "--clips", "1"]
    assert main([*evaluation, *data, "--out", f"{out}/test"]) == 0
    measured = json.loads((root / "run" / "test" / "metrics.json").read_text())
    assert (measured["evaluated"], measured["expected"]) == (len(test), test.expected)
    assert main([*evaluation, *data[:-2]]) == 2
    assert r"was trained with --group '\d+'" in capsys.readouterr().err
    assert main([*evaluation, *data, "--ours", str(root / "ours.csv")]) == 2
    assert "--ours: the table of results has no column for folder" in capsys.readouterr().err
    assert not (root / "ours.csv").exists()
