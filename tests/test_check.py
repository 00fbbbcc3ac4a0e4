import csv
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from conftest import PATIENCE, wait_for

from repflow.data import check as module
from repflow.data.check import Row, Status, check, expectations
from repflow.data.lists import find_videos, quoted, read_quarantine, unquoted
from repflow.video import VideoInfo

NOISE = np.random.default_rng(0).bytes(2_000)


def write_video(path, length=6, size=(32, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with av.open(os.fspath(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 1
        for shift in range(length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, shift, 1), format="rgb24")))
        container.mux(stream.encode())
    return path


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def statuses(report):
    return {row.path: row.status for row in report.rows}


def quarantine(folder):
    first, *lines = (folder / "quarantine.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("#")
    return [unquoted(line) for line in lines]


# What stands for a decoder. These are sent to other processes, so they are functions of this module.


def logged(log, path):
    """Notes that a file was looked at."""
    with open(log, "a") as file:
        file.write(f"{os.path.basename(path)}\n")
    return module.inspect(path)


def by_name(path):
    """Does what the file's name says."""
    match Path(path).stem:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "memory":
            raise MemoryError("of 8 EiB")
        case "bug":
            raise RuntimeError("two\nlines \udce9")
    return VideoInfo(320, 240, 25.0, 10)


def in_process(path):
    """Tells the process by its number."""
    time.sleep(0.01)
    return VideoInfo(320, 240, 25.0, os.getpid())


# Verdicts


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Good and bad videos; nothing changes them."""
    root = tmp_path_factory.mktemp("videos")
    for name in ("wave/a.avi", "wave/deep/B.AVI", "clap/50%#é.avi", "clap/two\nlines.avi"):
        write_video(root / name)
    damage(write_video(root / "bad" / "cut.avi"), lambda data: data[: len(data) * 6 // 10])
    damage(write_video(root / "bad" / "middle.avi", 30), lambda data: data[:9_000] + NOISE + data[11_000:])
    (root / "bad" / "empty.mp4").touch()
    (root / "bad" / "text.mkv").write_text("This is no video.")
    (root / "bad" / "gone.avi").symlink_to("nowhere.avi")
    write_video(root / "bad" / "one.avi", 1)
    write_video(root / "odd" / "strip.avi", size=(160, 24))
    for name in ("wave/._a.avi", ".trash/a.avi", "wave/readme.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no video")
    return root


@pytest.fixture(scope="module")
def before(videos):
    return {path: path.stat(follow_symlinks=False).st_mtime_ns for path in videos.rglob("*") if not path.is_dir()}


def test_each_video_has_a_verdict(videos, before, tmp_path):
    out = tmp_path / "made" / "anew"
    report = check(videos, out=out)
    assert statuses(report) == {
        "bad/cut.avi": Status.CORRUPT,
        "bad/empty.mp4": Status.CORRUPT,
        "bad/gone.avi": Status.UNREADABLE,
        "bad/middle.avi": Status.CORRUPT,
        "bad/one.avi": Status.TOO_SHORT,
        "bad/text.mkv": Status.CORRUPT,
        "clap/50%#é.avi": Status.OK,
        "clap/two\nlines.avi": Status.OK,
        "odd/strip.avi": Status.OK,
        "wave/a.avi": Status.OK,
        "wave/deep/B.AVI": Status.OK,
    }
    (row,) = (row for row in report.rows if row.path == "wave/a.avi")
    stat = (videos / "wave" / "a.avi").stat()
    assert row == Row("wave/a.avi", Status.OK, 32, 24, 25.0, 6, stat.st_size, stat.st_mtime_ns, "")
    assert report.counts == {"ok": 5, "corrupt": 4, "unreadable": 1, "too short": 1}
    assert quarantine(out) == [row.path for row in report.bad]
    assert before == {path: path.stat(follow_symlinks=False).st_mtime_ns for path in before}


def test_the_report_reads_well(videos, tmp_path):
    text = check(videos, out=tmp_path).text()
    assert "\nok              5\n" in text
    assert "\ntimed out       0\n" in text
    assert "bad/one.avi: too short: 1 frames, expected at least 2" in text
    assert "bad/text.mkv: corrupt: expected a readable video" in text
    assert "\n32×24: 5 videos\n160×24: 1 videos\n" in text
    assert "odd/strip.avi: note: odd size, 160×24" in text
    assert text.endswith("bad: 6 videos\nclap: 2 videos\nodd: 1 videos\nwave: 1 videos\nwave/deep: 1 videos")


def test_the_number_of_workers_changes_nothing(videos, tmp_path):
    texts = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        text = check(videos, out=out, workers=workers).text()
        texts.append((text, *(path.read_bytes() for path in sorted(out.iterdir()))))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3


@pytest.mark.parametrize("name", [None, "a.txt", ".a.avi", "._b.mp4", "avi"])
def test_nothing_to_check_is_an_error(tmp_path, name):
    if name:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"expected videos \(.avi .mp4 .*found none"):
        check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] * bool(name)


def test_a_link_to_nothing_says_what_to_do(videos, tmp_path):
    report = check(videos / "bad", out=tmp_path)
    (row,) = (row for row in report.rows if row.path == "gone.avi")
    assert (row.status, row.message) == (Status.UNREADABLE, "a link to nothing: fetch its content")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_tried_again(tmp_path):
    path = write_video(tmp_path / "locked.avi")
    path.chmod(0)
    assert statuses(check(tmp_path)) == {"locked.avi": Status.UNREADABLE}
    path.chmod(0o600)
    assert statuses(check(tmp_path)) == {"locked.avi": Status.OK}


def test_links_are_followed_once(tmp_path):
    root = tmp_path / "root"
    write_video(tmp_path / "elsewhere" / "a.avi")
    write_video(root / "wave" / "b.avi")
    (root / "run").symlink_to(tmp_path / "elsewhere")
    (root / "run again").symlink_to(tmp_path / "elsewhere")
    (root / "also wave").symlink_to("wave")
    (root / "wave" / "loop").symlink_to(root)
    assert sorted(statuses(check(root))) == ["run/a.avi", "wave/b.avi"]


@pytest.mark.parametrize(
    "name",
    ["a.avi", "100%.avi", "%41.avi", "#1/a.avi", " a/ b.avi", "a\nb\r\\.avi", "é\u2028\xa0.avi", "caf\udce9.avi"],
)
def test_names_survive(tmp_path, name):
    line = quoted(name)
    assert line.isprintable()
    assert line[0] not in "# "
    assert unquoted(line) == name
    try:
        write_video(tmp_path / "made.avi").rename(tmp_path / os.path.basename(name))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert statuses(check(tmp_path, shortest=100)) == {os.path.basename(name): Status.TOO_SHORT}
    assert read_quarantine(tmp_path) == {tmp_path / os.path.basename(name)}  # what the loaders leave out
    assert quarantine(tmp_path) == [os.path.basename(name)]
    assert statuses(check(tmp_path)) == {os.path.basename(name): Status.OK}


# Processes


def test_a_file_that_ends_its_process_is_a_result(tmp_path):
    for name in ("bug", "exit", "good", "hang", "killed", "memory", "segfault", "the other"):
        (tmp_path / f"{name}.avi").touch()
    report = check(tmp_path, workers=2, seconds=3, inspect=by_name)
    assert {row.path.removesuffix(".avi"): (row.status, row.message) for row in report.rows} == {
        "bug": (Status.CRASHED, "RuntimeError: two lines \udce9"),
        "exit": (Status.CRASHED, "its process ended with exit code 3; leave it out"),
        "good": (Status.OK, ""),
        "hang": (Status.TIMED_OUT, "took longer than 3 s; leave it out or allow more"),
        "killed": (Status.CRASHED, "its process ended with signal 9 (Killed), as for want of memory; leave it out"),
        "memory": (Status.CRASHED, "MemoryError: of 8 EiB"),
        "segfault": (Status.CRASHED, "its process ended with signal 11 (Segmentation fault); leave it out"),
        "the other": (Status.OK, ""),
    }
    assert len(quarantine(tmp_path)) == 6


def test_workers_are_reused_and_end(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.avi").touch()
    workers = {row.frames for row in check(tmp_path, workers=2, inspect=in_process).rows}
    assert 1 <= len(workers) <= 2
    assert not any(map(psutil.pid_exists, workers))


SCRIPT = """
import os, sys, time
from repflow.data.check import check
from repflow.video import VideoInfo

def inspect(path):
    if "hang" in path:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    return VideoInfo(320, 240, 25.0, 10)

if __name__ == "__main__":
    try:
        check(sys.argv[1], workers=2, seconds=300, inspect=inspect)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def children(process):
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_ctrl_c_keeps_what_was_found_and_leaves_no_process(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b", "hang 1", "hang 2", "z"):
        (root / f"{name}.avi").touch()
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for(lambda: all((root / f"hang {i}.avi").stat().st_size for i in (1, 2)), process)
        started = children(process)
        assert len(started) >= 4  # two workers, the server they are forked from, Python's tracker
        os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    psutil.wait_procs([psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=PATIENCE)
    assert not any(map(psutil.pid_exists, started))
    assert sorted(path.name for path in root.iterdir() if path.suffix != ".avi") == ["check.csv", "quarantine.txt"]
    (tmp_path / "log").touch()
    report = check(root, inspect=partial(logged, tmp_path / "log"))
    assert statuses(report)["a.avi"] == statuses(report)["b.avi"] == Status.OK
    assert (tmp_path / "log").read_text() == "hang 1.avi\nhang 2.avi\nz.avi\n"


# What was found before


def test_what_was_decoded_is_not_decoded_again(tmp_path):
    root, log = tmp_path / "root", tmp_path / "log"
    for name in "abc":
        write_video(root / f"{name}.avi")
    damage(root / "b.avi", lambda data: data[:1000])
    first = check(root, inspect=partial(logged, log))
    assert log.read_text() == "a.avi\nb.avi\nc.avi\n"
    assert check(root, inspect=partial(logged, log)) == first
    assert log.read_text() == "a.avi\nb.avi\nc.avi\n"
    write_video(root / "b.avi", 7)
    (root / "c.avi").unlink()
    write_video(root / "d.avi")
    again = check(root, inspect=partial(logged, log))
    assert log.read_text() == "a.avi\nb.avi\nc.avi\nb.avi\nd.avi\n"
    assert statuses(again) == dict.fromkeys(("a.avi", "b.avi", "d.avi"), Status.OK)
    assert statuses(check(root, shortest=7))["a.avi"] == Status.TOO_SHORT
    with (root / "check.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["too short", "ok", "too short"]
    assert quarantine(root) == ["a.avi", "d.avi"]


def test_what_may_have_been_the_machine_is_tried_again(tmp_path):
    write_video(tmp_path / "segfault.avi")
    assert statuses(check(tmp_path, inspect=by_name)) == {"segfault.avi": Status.CRASHED}
    assert statuses(check(tmp_path)) == {"segfault.avi": Status.OK}


@pytest.mark.parametrize("text", ["", "mine\n", ",".join(Row._fields) + "\na.avi,fine,1,1,1,1,1,1,\n", "\xff"])
def test_another_check_csv_is_not_overwritten(tmp_path, text):
    (tmp_path / "a.avi").touch()
    (tmp_path / "check.csv").write_text(text, encoding="latin-1")
    with pytest.raises(OSError, match=r"check.csv.*an earlier check wrote.*delete"):
        check(tmp_path)
    assert (tmp_path / "check.csv").read_text(encoding="latin-1") == text


def test_a_list_made_by_hand_is_not_overwritten(tmp_path):
    (tmp_path / "a.avi").touch()
    (tmp_path / "quarantine.txt").write_text("wave/a.avi\n")
    with pytest.raises(OSError, match=r"quarantine.txt.*found another; move it"):
        check(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.avi", "quarantine.txt"]


def test_impossible_requests_are_named(tmp_path):
    log = tmp_path / "log"
    root = write_video(tmp_path / "root" / "a.avi").parent
    for options in ({"workers": 0}, {"seconds": 0}, {"shortest": -1}):
        with pytest.raises(ValueError, match="must be above 0"):
            check(root, **options)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*expected a folder with videos"):
        check(tmp_path / "nowhere")
    for out in (root / "a.avi", Path("/proc")):
        with pytest.raises(OSError, match="expected a writable folder"):
            check(root, out=out, inspect=partial(logged, log))
    assert not log.exists()
    assert [path.name for path in root.iterdir()] == ["a.avi"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    root = write_video(tmp_path / "root" / "a.avi").parent
    root.chmod(0o500)
    with pytest.raises(OSError, match="expected a writable folder, got 'Permission denied'"):
        check(root)
    assert statuses(check(root, out=tmp_path)) == {"a.avi": Status.OK}


# Expectations


@pytest.fixture
def layout(tmp_path):
    """Two classes of three videos, two folds; one video is missing and one in no list."""
    for name in ("wave", "clap"):
        (tmp_path / name).mkdir()
        for fold, tags in ((1, "120"), (2, "201")):
            lines = [f"{video}.avi {tag} \n" for video, tag in zip("abc", tags, strict=True)]
            (tmp_path / f"{name}_test_split{fold}.txt").write_text("".join(lines))
        for video in "abc":
            (tmp_path / name / f"{video}.avi").touch()
    (tmp_path / "wave" / "b.avi").rename(tmp_path / "wave" / "d.avi")
    return tmp_path


def test_split_files_are_compared_with_what_is_there(layout):
    assert expectations(layout, find_videos(layout)) == [
        "fold 1: 2 train, 2 test (HMDB51 has 3570 and 1530)",
        "fold 2: 2 train, 2 test (HMDB51 has 3570 and 1530)",
        "listed but missing: 1: wave/b.avi",
        "there but not listed: 1: wave/d.avi",
    ]
    assert check(layout, inspect=by_name).text().endswith("there but not listed: 1: wave/d.avi")


def test_the_whole_of_hmdb51_is_known(tmp_path):
    splits = tmp_path / "testTrainMulti_7030_splits"
    splits.mkdir()
    for i in range(51):
        lines = [f"{n}.avi {1 if n < 70 else 2 if n < 100 else 0} \n" for n in range(101)]
        (splits / f"class{i}_test_split3.txt").write_text("".join(lines))
    first, missing, unlisted = expectations(tmp_path, [])
    assert first == "fold 3: 3570 train, 1530 test (as in HMDB51)"
    assert missing.startswith("listed but missing: 5151: class0/0.avi, ")
    assert missing.endswith(", ...")
    assert unlisted == "there but not listed: 0"


def test_a_bad_split_file_does_not_cost_the_report(layout):
    (layout / "wave_test_split1.txt").write_text("a.avi\n")
    assert "wave_test_split1.txt', line 1: expected 'name.avi tag'" in check(layout, inspect=by_name).text()
