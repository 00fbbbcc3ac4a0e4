"""Kinetics-400's lists and folders in miniature."""

import json
import os
import shutil

import pytest
from torchvision.models.video import R2Plus1D_18_Weights

from repflow.cli import main
from repflow.data import Clips
from repflow.data.kinetics import Kinetics
from repflow.data.lists import find_videos, official_classes

HEAD = "label,youtube_id,time_start,time_end,split,is_cc\n"
CSV = HEAD + (
    "yoga,-abc_DEF-12,10,20,train,0\n"
    '"massaging person\'s head",rgb_abcdefg,7,17,train,0\n'
    "hurling (sport),__________0,100,110,train,1\n"
    "air drumming,vvvvvvvvvv0,0,10,validate,0\n"
    "air drumming,tttttttttt0,0,10,test,0\n"
)
YOGA = "-abc_DEF-12_000010_000020"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "k400").mkdir()
    return tmp_path / "k400"


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def written(root, text, name="list.csv"):
    (root.parent / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root.parent / name


def pairs(data, root):
    return [(path.relative_to(root).as_posix(), data.classes[label]) for path, label in data.samples]


def test_classes_are_those_of_the_weights(root):
    put(root, "train/yoga/a.mp4")
    categories = R2Plus1D_18_Weights.KINETICS400_V1.meta["categories"]
    assert official_classes("kinetics400") == categories
    assert Kinetics(root).classes == categories
    assert Kinetics(root).samples == [(root / "train/yoga/a.mp4", categories.index("yoga"))]


@pytest.mark.parametrize("folder", ["train/{}/", "train/", "{}/", "", "training/{}/"])
@pytest.mark.parametrize("name", ["{}_{:06}_{:06}", "{}_{}_{}", "rgb_{}_{}_{}"])
@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_listed_videos_are_found_in_every_layout(root, folder, name, ending):
    where = [folder.format(label) for label in ("yoga", "massaging_person's_head", "hurling (sport)")]
    clips = (("-abc_DEF-12", 10, 20), ("rgb_abcdefg", 7, 17), ("__________0", 100, 110))
    files = [place + name.format(*clip) + ending for place, clip in zip(where, clips, strict=True)]
    put(root, *files, "notes.txt", "train/yoga/other.mp4")
    data = Kinetics(root, csv=written(root, CSV))
    assert pairs(data, root) == list(zip(files, ("yoga", "massaging person's head", "hurling (sport)"), strict=True))
    assert (data.expected, data.missing, data.quarantined) == (3, [], [])
    assert len(data) == 3


def test_real_videos_become_clips(root, shared):
    (root / "train" / "yoga").mkdir(parents=True)
    shutil.copy(shared / "videos" / "skeleton.mp4", root / "train" / "yoga" / f"{YOGA}.mp4")
    clips = Clips(Kinetics(root, csv=written(root, CSV), classes=["zumba", "yoga"]), 2, train=False, resize=32, crop=32)
    assert [(clip.shape, label) for clip, label in (clips[i] for i in range(len(clips)))] == [((3, 2, 32, 32), 1)]


def test_the_place_that_comes_first_wins(root):
    csv = written(root, CSV)
    copies = [f"train/yoga/{YOGA}.mp4", f"train/{YOGA}.avi", f"yoga/{YOGA}.mkv", f"{YOGA}.webm"]
    put(root, *copies)
    for copy in copies:
        assert pairs(Kinetics(root, csv=csv), root) == [(copy, "yoga")]
        (root / copy).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected videos of subset train, got none \(3 are listed\)"):
        Kinetics(root, csv=csv)


def test_subsets_missing_and_quarantine_are_exact(root):
    csv = written(root, CSV)
    put(root, f"train/yoga/{YOGA}.mp4", "validate/air drumming/vvvvvvvvvv0_0_10.mp4", "rgb_abcdefg_7_17.mp4")
    (root / "quarantine.txt").write_text("rgb_abcdefg_7_17.mp4\nvalidate/air drumming/other.mp4\n")
    data = Kinetics(root, csv=csv)
    assert data.missing == ["__________0_000100_000110"]
    assert data.quarantined == ["rgb_abcdefg_7_17.mp4"]
    assert (data.expected, pairs(data, root)) == (3, [(f"train/yoga/{YOGA}.mp4", "yoga")])
    assert pairs(Kinetics(root, "val", csv), root) == [("validate/air drumming/vvvvvvvvvv0_0_10.mp4", "air drumming")]
    with pytest.raises(FileNotFoundError, match="subset test"):
        Kinetics(root, "test", csv)


def test_folders_do_without_a_list(root, monkeypatch):
    put(root, "val/zumba/b.mkv", "val/air_drumming/z.mp4", "val/air drumming/a.mp4", "val/zumba/notes.txt", "val/x.mp4")
    put(root, "train/yoga/a.mp4", "val/.hidden/a.mp4")
    found = [
        ("val/air drumming/a.mp4", "air drumming"),
        ("val/air_drumming/z.mp4", "air drumming"),
        ("val/zumba/b.mkv", "zumba"),
    ]
    data = Kinetics(root, "val")
    assert (pairs(data, root), data.expected, data.missing) == (found, 3, [])
    assert Kinetics(root / "val", "val").samples == data.samples
    monkeypatch.chdir(root / "val")
    assert len(Kinetics(".", "val")) == 3
    (root / "quarantine.txt").write_text("val/zumba/b.mkv\n")
    assert Kinetics(root, "val").quarantined == ["val/zumba/b.mkv"]
    assert Kinetics(root, "val").expected == 3
    # The videos of one subset are never taken for another's.
    with pytest.raises(FileNotFoundError, match="expected videos of subset test, got none"):
        Kinetics(root, "test")
    with pytest.raises(FileNotFoundError, match="expected videos of subset test, got none"):
        Kinetics(root / "val", "test")
    assert Kinetics(root.rename(root.with_name("val")), "val").expected == 3
    (root.parent / "val").rename(root)
    put(root, "val/zumbaa/b.mkv")
    with pytest.raises(ValueError, match=r"named as classes of Kinetics-400, got .*val/zumbaa"):
        Kinetics(root, "val")


def test_a_subset_of_the_classes(root):
    csv = written(root, CSV)
    put(root, f"{YOGA}.mp4", "__________0_100_110.mp4", "train/zumba/a.mp4", "train/yoga/b.mp4")
    mini = written(root, "\ufeffyoga\r\n\r\nmassaging_person's_head\r\nair drumming\r\n", "mini.txt")
    data = Kinetics(root, csv=csv, classes=mini)
    assert data.classes == ["yoga", "massaging person's head", "air drumming"]
    assert (data.samples, data.missing) == ([(root / f"{YOGA}.mp4", 0)], ["rgb_abcdefg_000007_000017"])
    assert data.expected == 2
    assert Kinetics(root, csv=csv, classes=str(mini)).samples == data.samples
    assert Kinetics(root, classes=["zumba", "yoga"]).classes == ["zumba", "yoga"]
    chosen = ["dining", "drawing", "juggling balls", "yoga", "zumba"]
    assert Kinetics(root, classes=set(chosen)).classes == chosen
    assert Kinetics(root, classes=["zumba"]).samples == [(root / "train/zumba/a.mp4", 0)]
    with pytest.raises(ValueError, match=r"classes: expected some of abseiling, .*, got 'yogaa'"):
        Kinetics(root, classes=["yogaa", "yoga"])
    with pytest.raises(ValueError, match=r"mini.txt', line 3: expected each class once, got 'yoga' again"):
        Kinetics(root, classes=written(root, "yoga\n\nyoga\n", "mini.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("yogaa,vvvvvvvvvv0,0,10,train,0", "a class of Kinetics-400, got 'yogaa'"),
        ("yoga,vvvvvvvvvv0,0,10,holdout,0", "one of the splits train, training, .*got 'holdout'"),
        ("yoga,../../../vv,0,10,train,0", "an id of 11 letters"),
        ("yoga,/etc/passwd,0,10,train,0", "an id of 11 letters"),
        ("yoga,vvvv\\vvvvv0,0,10,train,0", "an id of 11 letters"),
        ("yoga,vvvvv\0vvvv0,0,10,train,0", "an id of 11 letters"),
        ("yoga,vvvvévvvvv0,0,10,train,0", "an id of 11 letters"),
        ("yoga,vvvvvvvvvv0,0.5,10,train,0", "whole seconds"),
        ("yoga,vvvvvvvvvv0,,10,train,0", "whole seconds"),
        (f"yoga,vvvvvvvvvv0,{'9' * 5000},10,train,0", "whole seconds"),
        ("yoga,vvvvvvvvvv0,0", "expected 6 fields"),
        ("yoga,vvvvvvvvvv0,0,10,train,0,1,2", "expected 6 fields"),
        ('yoga,"vvvvvvvvvv0"x,0,10,train,0', "expected CSV text"),
        ("zumba,-abc_DEF-12,10,20,train,0", "listed above with another label than 'zumba'"),
    ],
)
def test_bad_lines_are_named(root, line, message):
    put(root, f"{YOGA}.mp4")
    text = HEAD + "\nyoga,-abc_DEF-12,10,20,train,0\n" + line + "\nyoga,vvvvvvvvvv0,0,10,train,0\n"
    with pytest.raises(ValueError, match=f"list.csv', line 4: .*{message}"):
        Kinetics(root, csv=written(root, text))


@pytest.mark.parametrize(
    "text",
    [
        ("\ufeff" + CSV.replace("\n", "\r\n")).encode(),
        CSV.replace("\n", "\r"),
        CSV.replace("\n", "\n\n") + "yoga , -abc_DEF-12,000010,20,train ,0\n",
        CSV.replace(",is_cc", "").replace(",0\n", "\n").replace(",1\n", "\n"),
        "time_end,label,split,time_start,youtube_id\n20,yoga,train,10,-abc_DEF-12\n",
    ],
)
def test_harmless_oddities_of_csv_files(root, text):
    put(root, f"{YOGA}.mp4")
    assert pairs(Kinetics(root, csv=written(root, text)), root) == [(f"{YOGA}.mp4", "yoga")]


def test_what_is_missing_is_named(root):
    put(root, f"{YOGA}.mp4")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Kinetics(root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none.csv"):
        Kinetics(root, csv=root / "none.csv")
    with pytest.raises(ValueError, match="one of train, val, test, got 'validation'"):
        Kinetics(root, "validation")
    for text in ("", "label,youtube_id,time_start,time_end\nyoga,vvvvvvvvvv0,0,10\n"):
        with pytest.raises(ValueError, match=r"line 1: expected the columns label, .*, no .*split"):
            Kinetics(root, csv=written(root, text))
    with pytest.raises(ValueError, match=r"line 1: expected the columns label"):
        Kinetics(root, csv=written(root, CSV.encode("utf-16")))


def test_links_may_lead_anywhere_but_to_nothing(root):
    csv = written(root, CSV)
    put(root.parent, f"out/{YOGA}.mp4", "out/b.mkv")
    (root / "train").mkdir()
    (root / "train" / "yoga").symlink_to(root.parent / "out")
    (root / "train" / "yoga_").symlink_to("yoga")  # the same class, and the same folder
    assert pairs(Kinetics(root, csv=csv), root) == [(f"train/yoga/{YOGA}.mp4", "yoga")]
    assert len(Kinetics(root)) == 2
    for name in ("yoga", "yoga_"):
        (root / "train" / name).unlink()
    put(root, "train/yoga/a.mp4")
    for name, target in (("c.mp4", root.parent / "out" / "b.mkv"), ("d.mp4", "nothing"), ("e.mp4", "e.mp4")):
        (root / "train" / "yoga" / name).symlink_to(target)
    with pytest.warns(
        UserWarning, match=r"2 videos count as missing, first \['train/yoga/d.mp4'.* fetch their content"
    ):
        data = Kinetics(root)
    assert [path.name for path, _ in data.samples] == ["a.mp4", "c.mp4"]
    assert (data.missing, data.expected) == (["train/yoga/d.mp4", "train/yoga/e.mp4"], 4)


def test_by_folder_and_by_list_agree_on_what_a_video_is(root, caplog):
    """As does what is checked: any case, no hidden files, one file a stem."""
    names = [f"{YOGA}.webm", f"{YOGA}.MP4", "__________0_100_110.Mov", f"._{YOGA}.avi", "notes.xyz"]
    put(root, *(f"train/yoga/{name}" for name in names))
    lines = "yoga,-abc_DEF-12,10,20,train,0\nyoga,__________0,100,110,train,0\n"
    chosen = {f"train/yoga/{names[1]}", f"train/yoga/{names[2]}"}
    for found in (Kinetics(root), Kinetics(root, csv=written(root, HEAD + lines))):
        assert {name for name, _ in pairs(found, root)} == chosen
    assert set(find_videos(root)) == chosen
    assert caplog.text.count(f"1 files left out, first ['train/yoga/{YOGA}.webm']") == 3
    caplog.set_level("INFO")
    find_videos(root)
    assert "no videos by their endings: 1 .xyz" in caplog.text


def test_json_lists_count_as_their_second_file_says(root):
    """In whatever order that one numbers the classes, and with quotes around names that have a blank in them."""
    numbers = written(root, json.dumps({'"hurling (sport)"': 0, "yoga": 7, "massaging person's head": 3}), "names.json")
    named = {
        f"rgb_{YOGA.replace('_0000', '_')}.mp4": 7,
        "rgb___________0_100_110.mp4": 0,
        "rgb_rgb_abcdefg_7_17.mp4": 3,
    }
    put(root, *list(named)[:2])
    data = Kinetics(root, "val", written(root, json.dumps(named), "val.json"), numbers=numbers)
    assert pairs(data, root) == list(zip(named, ("yoga", "hurling (sport)"), strict=False))
    assert data.classes == official_classes("kinetics400")
    assert data.missing == ["rgb_abcdefg_000007_000017"]
    assert Kinetics(root, "val", root.parent / "val.json", ["yoga"], numbers=numbers).expected == 1


@pytest.mark.parametrize(
    ("clips", "names", "message"),
    [
        ('{"rgb_-abc_DEF-12_10_20.mp4": 8}', '{"yoga": 7}', r"'rgb_-abc_DEF-12_10_20.mp4': number 8 is not in .*names"),
        ('{"-abc_DEF-12_10_20.mp4": 7}', '{"yogaa": 7}', "expected a class of Kinetics-400, got 'yogaa'"),
        ('{"../../../etc_10_20.mp4": 7}', '{"yoga": 7}', "an id of 11 letters"),
        ('{"-abc_DEF-12_10_20.mp4": 7}', '{"yoga": 7, "zumba": 7}', "one class a number, 7 has 'yoga', 'zumba'"),
        ('{"-abc_DEF-12_10_20.mp4": true}', '{"yoga": 7}', r'list.json.*expected JSON {"name": number'),
        ('["-abc_DEF-12_10_20.mp4"]', '{"yoga": 7}', r'list.json.*expected JSON {"name": number'),
        (CSV, '{"yoga": 7}', "list.json.*expected JSON text"),
        ("[" * 10**5, '{"yoga": 7}', "list.json.*expected JSON text"),
        ('{"-abc_DEF-12_10_20.mp4": 7}', "yoga", "names.json.*expected JSON text"),
    ],
)
def test_bad_json_lists_are_named(root, clips, names, message):
    put(root, f"{YOGA}.mp4")
    with pytest.raises(ValueError, match=message):
        Kinetics(root, csv=written(root, clips, "list.json"), numbers=written(root, names, "names.json"))


def test_numbers_belong_to_json_lists(root, capsys):
    for csv, numbers in (("val.json", None), (None, "names.json"), ("a.csv", "names.json")):
        with pytest.raises(ValueError, match="numbers: expected with a JSON list, to name its numbers; got"):
            Kinetics(root, csv=csv, numbers=numbers)
    given = ["evaluate", "--checkpoint", "a.pt", "--data", "hmdb51", str(root), "--numbers", "names.json"]
    assert main(given) == 2
    assert "--numbers: it belongs to kinetics, not to hmdb51" in capsys.readouterr().err


@pytest.mark.parametrize("text", [HEAD, HEAD + "yoga,-abc_DEF-12,1,2,val,0"])
def test_a_list_without_a_clip_of_the_subset_is_an_error(root, text):
    put(root, f"{YOGA}.mp4")
    with pytest.raises(ValueError, match=r"list.csv': expected clips of subset train .*got none"):
        Kinetics(root, csv=written(root, text))
    with pytest.raises(ValueError, match=r"mini.txt', line 1: expected class names, one a line, got none"):
        Kinetics(root, classes=written(root, "\r\n", "mini.txt"))


def test_folders_are_read_once(root, monkeypatch):
    """However long the list: over a network, a question for every name takes hours."""
    lines = [f"yoga,{i:011},0,10,train,0\n" for i in range(3000)]
    put(root, "train/yoga/00000000000_0_10.mp4")
    asked = []
    for name in ("scandir", "stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **k: asked.append(a) or real(*a, **k))
    data = Kinetics(root, csv=written(root, HEAD + "".join(lines)))
    assert (len(data), len(data.missing)) == (1, 2999)
    assert 0 < len(asked) < 50
