"""HMDB51's layout in miniature: the reader, the quarantine, and the official archives."""

import os
import shutil
import struct
import sys
import warnings
import zlib

import pytest

from repflow.data import Clips
from repflow.data.hmdb51 import HMDB51
from repflow.data.lists import find_videos, official_classes, read_quarantine
from repflow.data.unpack import unpack_hmdb51

SPLITS = "testTrainMulti_7030_splits"
TOOLS = ("bsdtar", "unar", "unrar", "7zz", "7z")


@pytest.fixture
def root(tmp_path):
    """Two classes; training: 2 + 1 videos, testing: 1 + 1, all empty."""
    lists = {"wave": "a.avi 1\nb #1&(2).avi 1\nc.avi 2\nd.avi 0\n", "brush_hair": "a.avi 2\n#b.avi 1\n"}
    (tmp_path / "set" / SPLITS).mkdir(parents=True)
    for name, text in lists.items():
        (tmp_path / "set" / name).mkdir()
        for line in text.splitlines():
            (tmp_path / "set" / name / line[:-2]).touch()
        (tmp_path / "set" / SPLITS / f"{name}_test_split1.txt").write_text(text)
    return tmp_path / "set"


def names(data):
    return [(f"{path.parent.name}/{path.name}", label) for path, label in data.samples]


def test_real_videos_become_clips(root, shared):
    shutil.copy(shared / "videos" / "test.avi", root / "brush_hair" / "#b.avi")
    (root / "wave" / "a.avi").unlink()
    shutil.copy(shared / "videos" / "test.mp4", root / "wave" / "a.mp4")
    clips = Clips(HMDB51(root), frames=2, train=False, resize=32, crop=32)
    assert [(clips[i][0].shape, clips[i][1]) for i in (0, 1)] == [((3, 2, 32, 32), 0), ((3, 2, 32, 32), 1)]


def test_the_official_classes():
    classes = official_classes("hmdb51")
    assert len(classes) == 51
    assert classes == sorted(set(classes))
    assert (classes[0], classes[-1]) == ("brush_hair", "wave")


def test_missing_videos_are_an_error_or_a_list(root):
    for name in ("wave/a.avi", "brush_hair/#b.avi"):
        (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 listed videos are missing, first \['brush_hair/#b.avi', 'wav"):
        HMDB51(root)
    data = HMDB51(root, missing_ok=True)
    assert (data.missing, data.expected, data.quarantined) == (["brush_hair/#b.avi", "wave/a.avi"], 3, [])
    assert names(data) == [("wave/b #1&(2).avi", 1)]
    assert (HMDB51(root, subset="test").missing, HMDB51(root, subset="test").expected) == ([], 2)


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
def test_a_copy_in_another_container_stands_in(root, ending):
    (root / "wave" / "a.avi").rename(root / "wave" / f"a{ending}")
    (root / "wave" / f"b #1&(2){ending}").touch()
    assert names(HMDB51(root))[1:] == [(f"wave/a{ending}", 1), ("wave/b #1&(2).avi", 1)]


def test_quarantined_videos_are_left_out(root):
    (root / "wave" / "a.avi").rename(root / "wave" / "a.mp4")
    text = "# unreadable\r\n\r\n wave/a.mp4 \r\nbrush_hair/a.avi\nwave/#not there\n"
    (root / "quarantine.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = HMDB51(root)
    assert (data.quarantined, data.missing, data.expected) == (["wave/a.mp4"], [], 3)
    assert names(data) == [("brush_hair/#b.avi", 0), ("wave/b #1&(2).avi", 1)]
    assert read_quarantine(root) == {root / name for name in ("wave/a.mp4", "brush_hair/a.avi", "wave/#not there")}
    assert HMDB51(root, subset="test").quarantined == ["brush_hair/a.avi"]
    assert read_quarantine(root / "wave") == set()


@pytest.mark.parametrize("line", ["../other/a.avi", "/a.avi", "wave\\a.avi", "wave/../../a.avi", "wave/a\0.avi"])
def test_a_quarantine_stays_inside(root, line):
    (root / "quarantine.txt").write_text(f"# one\n\n{line}\n")
    with pytest.raises(ValueError, match=r"quarantine.txt', line 3: expected a path relative"):
        HMDB51(root)


def test_repeated_lines_count_once_and_contradictions_do_not_pass(root):
    split = root / SPLITS / "wave_test_split1.txt"
    split.write_text("a.avi 1\nc.avi 2\n\na.avi 1\n")
    assert names(HMDB51(root, classes=["wave", "wave"])) == [("wave/a.avi", 0)]
    assert HMDB51(root, classes=["wave", "wave"]).classes == ["wave"]
    split.write_text("a.avi 1\nc.avi 2\n\na.avi 2\n")
    with pytest.raises(ValueError, match=r"line 4: expected one tag a video, got 2 for 'a.avi', which had 1"):
        HMDB51(root)


def test_utf_16_is_an_error(root):
    (root / SPLITS / "wave_test_split1.txt").write_text("a.avi 1\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"line 1: expected 'name.avi tag'"):
        HMDB51(root)


def test_links_may_lead_anywhere_but_to_nothing(root, tmp_path):
    """As in git-annex and DVC, where every video is a link, and content may not be fetched yet."""
    (tmp_path / "out").mkdir()
    (root / "wave").rename(tmp_path / "out" / "wave")
    (root / "wave").symlink_to(tmp_path / "out" / "wave")
    before = names(HMDB51(root))
    assert len(before) == 3
    (root / "wave" / "a.avi").rename(tmp_path / "out" / "other")
    (root / "wave" / "a.avi").symlink_to(tmp_path / "out" / "other")
    assert names(HMDB51(root)) == before
    (tmp_path / "out" / "other").unlink()
    with pytest.warns(UserWarning, match=r"first \['wave/a.avi'\]: links to nothing; fetch their content"):
        assert HMDB51(root, missing_ok=True).missing == ["wave/a.avi"]
    (root / "wave" / "a.MKV").touch()  # a copy that is there comes before a link to nothing
    assert names(HMDB51(root))[1] == ("wave/a.MKV", 1)


def test_a_quarantine_may_lie_elsewhere(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "quarantine.txt").write_text("brush_hair/#b.avi\n")
    (elsewhere / "quarantine.txt").write_text("wave/a.avi\n")
    for given in (elsewhere, str(elsewhere / "quarantine.txt")):
        assert HMDB51(root, quarantine=given).quarantined == ["wave/a.avi"]  # in place of the root's own
    with pytest.raises(FileNotFoundError, match=r"root.txt': expected a quarantine"):
        HMDB51(root, quarantine=tmp_path / "root.txt")
    (elsewhere / "quarantine.txt").write_text("set/wave/a.avi\n")  # checked from the folder above
    with pytest.warns(UserWarning, match="not one of its 1 videos is under"):
        assert len(HMDB51(root, quarantine=elsewhere)) == 3
    (elsewhere / "quarantine.txt").write_text("wave/a.avi\nwave/b #1&(2).avi\n%23b.avi\nbrush_hair/#b.avi\n")
    with pytest.raises(FileNotFoundError, match=r"expected videos of subset train, got none .* 3 quarantined"):
        HMDB51(root, quarantine=elsewhere)


def test_a_quarantine_knows_a_video_by_whichever_link_it_came(root):
    """data check visits a folder once, and may have come there by another name."""
    (root / "wave").rename(root / "real")
    (root / "wave").symlink_to("real")
    assert "real/a.avi" in find_videos(root)
    assert "wave/a.avi" not in find_videos(root)
    (root / "quarantine.txt").write_text("real/a.avi\n")
    assert HMDB51(root).quarantined == ["wave/a.avi"]
    (root.parent / "link").symlink_to(root)
    assert HMDB51(f"{root.parent}/link/").quarantined == ["wave/a.avi"]


def test_classes_keep_their_order(root, tmp_path):
    assert HMDB51(root).classes == ["brush_hair", "wave"]
    (tmp_path / "classes.txt").write_bytes(b"wave\rbrush_hair\r")
    for classes in (["wave", "brush_hair", "wave"], tmp_path / "classes.txt"):
        data = HMDB51(root, classes=classes)
        assert data.classes == ["wave", "brush_hair"]
        assert names(data) == [("wave/a.avi", 0), ("wave/b #1&(2).avi", 0), ("brush_hair/#b.avi", 1)]
    assert HMDB51(root, classes={"wave", "brush_hair"}).classes == ["brush_hair", "wave"]


@pytest.mark.parametrize("text", ["", "\r\r", "a.avi 0\r\n", "a.avi 2\n"])
def test_a_split_file_without_what_is_asked_for_is_an_error(root, tmp_path, text):
    (root / SPLITS / "wave_test_split1.txt").write_bytes(text.encode())
    with pytest.raises(ValueError, match=r"wave_test_split1.txt'.*expected .*got none"):
        HMDB51(root)
    (tmp_path / "list.txt").touch()
    with pytest.raises(ValueError, match=r"list.txt', line 1: expected lines 'video class', got none"):
        HMDB51(root, split_file=tmp_path / "list.txt")


def test_old_macs_line_ends(root):
    (root / SPLITS / "wave_test_split1.txt").write_bytes(b"a.avi 1\rc.avi 2\r")
    assert names(HMDB51(root, classes=["wave"])) == [("wave/a.avi", 0)]


def test_copies_are_one_video(root):
    """Also where the list names both: a video must not be in training and testing."""
    (root / "wave" / "a.WebM").touch()
    assert len(HMDB51(root)) == 3
    (root / SPLITS / "wave_test_split1.txt").write_text("a.avi 1\na.webm 2\n")
    with pytest.raises(ValueError, match=r"line 2: expected one tag a video"):
        HMDB51(root)


def test_other_counts_than_the_official_ones_are_told(tmp_path):
    for name in official_classes("hmdb51"):
        lines = [f"{i}.avi {1 if i < 70 else 2 if i < 100 else 0}\n" for i in range(110)]
        (tmp_path / f"{name}_test_split2.txt").write_text("".join(lines))
    (tmp_path / "turn").mkdir()
    for video in (1, 70, 100):
        (tmp_path / "turn" / f"{video}.avi").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert HMDB51(tmp_path, 2, missing_ok=True).expected == 3570
        assert HMDB51(tmp_path, 2, "test", missing_ok=True).expected == 1530
        assert HMDB51(tmp_path, 2, "unused", missing_ok=True).expected == 510
        (tmp_path / "wave_test_split2.txt").write_text("1.avi 1\n")
        assert HMDB51(tmp_path, 2, classes=["wave", "turn"], missing_ok=True).expected == 71
        assert HMDB51(tmp_path, 2, "unused", missing_ok=True).expected == 500
    with pytest.warns(UserWarning, match="expected 3570 videos in the split files of fold 2, train, got 3501") as seen:
        HMDB51(tmp_path, 2, missing_ok=True)
    assert seen[0].filename == __file__


# The archives


def rar(files, link=None):
    """A RAR 2.9 archive, nothing compressed; `link`: the name of a symbolic link in it."""

    def block(kind, flags, body, data=b""):
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head + data

    entries = [(name, data, 0o100644) for name, data in files.items()]
    if link:
        entries.append((link, b"elsewhere", 0o120777))
    content = b"Rar!\x1a\x07\0" + block(0x73, 0, bytes(6))
    for name, data, mode in entries:
        name, size = name.replace("/", "\\").encode(), len(data)
        head = struct.pack("<IIBIIBBHI", size, size, 3, zlib.crc32(data), 1 << 21, 20, 0x30, len(name), mode)
        content += block(0x74, 0x8000, head + name, data)
    return content + block(0x7B, 0x4000, b"")


# Stands in for a program: unpacks what is stored. The files' content may ask for failures.
STAND_IN = """#!{python}
import os, pathlib, sys
import rarfile
name = os.path.basename(sys.argv[0])
if b"not by " + name.encode() in pathlib.Path(sys.argv[-1]).read_bytes():
    sys.exit(name + " cannot")
rarfile.RarFile(sys.argv[-1]).extractall()
for path in list(pathlib.Path().rglob("*")):
    if path.is_file() and path.read_bytes() == b"link after all":
        path.unlink()
        path.symlink_to("/")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts programs of these names, and no others, into the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(*names):
        for name in names:
            (folder / name).write_text(STAND_IN.format(python=sys.executable))
            (folder / name).chmod(0o755)

    return add


@pytest.fixture
def official(tmp_path):
    """The official archives in miniature: nothing is compressed."""
    root = tmp_path / "hmdb"
    root.mkdir()
    inner = {f"{name}.rar": rar({f"{name}/#1 (2).avi": name.encode()}) for name in ("jump", "wave")}
    (root / "hmdb51_org.rar").write_bytes(rar(inner))
    splits = {f"{SPLITS}/{name}_test_split1.txt": b"#1 (2).avi 1" for name in ("jump", "wave")}
    (root / "test_train_splits.rar").write_bytes(rar(splits))
    return root


@pytest.mark.parametrize("tool", TOOLS)
def test_official_archives_unpack_with_any_program(official, stand_in, tool):
    stand_in(tool)
    assert unpack_hmdb51(official) == [SPLITS, "jump", "wave"]
    assert names(HMDB51(official)) == [("jump/#1 (2).avi", 0), ("wave/#1 (2).avi", 1)]
    assert (official / "wave" / "#1 (2).avi").read_text() == "wave"
    kept = {"hmdb51_org.rar", "test_train_splits.rar", SPLITS, "jump", "wave"}
    assert set(os.listdir(official)) == kept


def test_what_is_there_is_never_touched(official, stand_in):
    stand_in("bsdtar")
    (official / "wave").mkdir()
    (official / "wave" / "mine").write_text("precious")
    (official / "run.rar").write_bytes(rar({"wave/other.avi": b"x", "walk/other.avi": b"x"}))
    assert unpack_hmdb51(official) == ["walk", SPLITS, "jump"]
    assert [path.name for path in (official / "wave").iterdir()] == ["mine"]
    (official / "jump.rar").write_text("never read, since its folder is there")
    assert unpack_hmdb51(official) == []


@pytest.mark.parametrize(
    ("files", "link"),
    [({name: b"x"}, None) for name in ("../evil", "/evil", "wave/../../evil", "..\\evil", "C:\\evil")]
    + [({"wave/a.avi": b"x"}, "wave/evil"), ({"wave/evil": b"link after all"}, None)],
)
def test_archives_that_lead_out_are_refused(tmp_path, stand_in, files, link):
    stand_in("unrar")
    (tmp_path / "hmdb").mkdir()
    (tmp_path / "hmdb" / "wave.rar").write_bytes(rar(files, link=link))
    with pytest.raises(ValueError, match=r"wave.rar': expected plain files under .*evil"):
        unpack_hmdb51(tmp_path / "hmdb")
    assert os.listdir(tmp_path / "hmdb") == ["wave.rar"]


def test_another_program_is_tried(official, stand_in):
    stand_in("unrar", "unar")
    (official / "run.rar").write_bytes(rar({"run/a.avi": b"not by unar"}))
    assert "run" in unpack_hmdb51(official)
    (official / "turn.rar").write_bytes(rar({"turn/a.avi": b"not by unar, not by unrar"}))
    with pytest.raises(
        OSError, match=r"turn.rar': no program .*unar said: unar cannot; unrar said: unrar cannot.*apt-get install"
    ):
        unpack_hmdb51(official)


@pytest.mark.parametrize("change", [lambda data: data[:-40], lambda data: b"no archive", lambda data: data[:40]])
def test_damaged_archives_are_named(official, stand_in, change):
    stand_in("unar")
    (official / "run.rar").write_bytes(change(rar({"run/a.avi": b"x" * 99})))
    with pytest.raises(OSError, match=r"run.rar': (expected a .rar file|no program)"):
        unpack_hmdb51(official)
    assert "run" not in os.listdir(official)


def test_unpacking_says_what_it_needs(official, stand_in, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bsdtar, unar, unrar, 7zz, 7z .* apt-get install libarchive-tools"):
        unpack_hmdb51(official)
    with pytest.raises(FileNotFoundError, match=r"bin': expected HMDB51's .rar files"):
        unpack_hmdb51(tmp_path / "bin")
    stand_in("7zz")
    (official / "run.rar").write_bytes(rar({"loose.avi": b"x"}))
    with pytest.raises(ValueError, match=r"run.rar': expected folders in it, got the files \['loose.avi'\]"):
        unpack_hmdb51(official)


@pytest.mark.parametrize("tool", TOOLS)
def test_real_programs_unpack_real_archives(tool, tmp_path, monkeypatch):
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"no {tool} here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / tool).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    root = tmp_path / "hmdb"
    root.mkdir()
    inner = rar({"wave/a #1&(2).avi": b"1", "wave/b.avi": b"2" * 99})
    (root / "hmdb51_org.rar").write_bytes(rar({"wave.rar": inner}))
    try:
        assert unpack_hmdb51(root) == ["wave"]
    except OSError as error:
        assert tool[:2] == "7z"
        pytest.skip(f"{tool} was built without RAR: {error}")
    assert (root / "wave" / "a #1&(2).avi").read_bytes() == b"1"
    assert (root / "wave" / "b.avi").read_bytes() == b"2" * 99


def test_one_list_of_videos_and_classes(root, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes(
        b"\xef\xbb\xbfb #1&(2).avi wave\r\n\r\nrgb_x.mp4 brush_hair\r\na wave\r\na wave\r\ngone.avi wave"
    )
    (root / "x.mp4").touch()
    data = HMDB51(root, split_file=listed, missing_ok=True)
    assert data.classes == ["brush_hair", "wave"]
    assert names(data) == [("set/x.mp4", 0), ("wave/b #1&(2).avi", 1), ("wave/a.avi", 1)]
    assert data.missing == ["wave/gone"]
    assert names(HMDB51(root, split_file=listed, classes=["brush_hair"])) == [("set/x.mp4", 0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a.avi wave", "expected 'video class'"),
        ("/etc/a.avi wave", "expected 'video class'"),
        ("a.avi", "expected 'video class'"),
        ("a.avi waving", "a class of HMDB51"),
        ("b.avi brush_hair", "expected one class a video"),
    ],
)
def test_bad_lines_of_such_a_list_are_named(root, tmp_path, line, message):
    listed = tmp_path / "list.txt"
    listed.write_text(f"b wave\n{line}\n")
    with pytest.raises(ValueError, match=f"list.txt', line 2: .*{message}"):
        HMDB51(root, split_file=listed)
