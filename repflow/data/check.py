"""Checking a folder of videos: a bad file may kill or hang the process that decodes it, and the check goes on.

check.csv holds what was found, one row for each video. quarantine.txt lists the paths of the videos that are not ok. In
both files a path is relative to the folder, and written by `quoted`.
"""

import csv
import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from repflow.data.hmdb51 import TAGS, find_files, find_splits, read_split
from repflow.data.lists import CHECKED, QUARANTINE, find_videos, is_file, quoted, read_csv, relative, stamp, unquoted
from repflow.files import beside, text_table
from repflow.processes import fresh_processes
from repflow.video import VideoInfo, frame_rate, iter_frames

log = logging.getLogger(__name__)

_HEAD = "# Videos that `repflow data check` found bad: paths relative to the folder it checked, %XX for odd bytes.\n"
_NOTHING = VideoInfo(0, 0, 0.0, 0)
_SAVE_EVERY = 5.0  # seconds


class Status(StrEnum):
    """What became of a video. All but OK are bad."""

    OK = "ok"
    CORRUPT = "corrupt"  # FFmpeg or this package refused it
    TOO_SHORT = "too short"
    CRASHED = "crashed"  # its process died, or failed with an error that says nothing about videos
    TIMED_OUT = "timed out"
    UNREADABLE = "unreadable"  # not there any more, or not readable by you


_SETTLED = (Status.OK, Status.CORRUPT, Status.TOO_SHORT)  # the others are the machine's doing as much as the file's


class Row(NamedTuple):
    """What is known of one video. Bad ones may have 0 for what is not known; an ok one's message is a note."""

    path: str
    status: Status
    width: int
    height: int
    fps: float
    frames: int
    bytes: int
    mtime_ns: int
    message: str


Inspect = Callable[[str], VideoInfo]
Outcome = tuple[Status, VideoInfo, str]


@dataclass(frozen=True)
class Report:
    """The rows of check.csv, sorted by path, and lines on how many videos there are and should be."""

    rows: Sequence[Row]
    expectations: Sequence[str]

    @property
    def counts(self) -> Counter[Status]:
        """How many videos have each status."""
        return Counter(row.status for row in self.rows)

    @property
    def bad(self) -> list[Row]:
        """The rows that are not ok."""
        return [row for row in self.rows if row.status != Status.OK]

    def text(self) -> str:
        """The report to read: counts, each bad video with its message, sizes, notes, expectations."""
        table = [{"status": status, "count": self.counts[status]} for status in Status]
        sizes = Counter(f"{row.width}×{row.height}" for row in self.rows if row.frames)
        notes = [row for row in self.rows if row.status == Status.OK and row.message]
        parts = [
            [text_table(table)],
            [f"{quoted(row.path)}: {row.status}: {row.message}" for row in self.bad],
            [f"{size}: {count} videos" for size, count in sizes.most_common()],
            [f"{quoted(row.path)}: note: {row.message}" for row in notes],
            self.expectations,
        ]
        return "\n\n".join("\n".join(part) for part in parts if part)


def inspect(path: str) -> VideoInfo:
    """Size, rate and length of a video, each of whose frames was decoded to RGB. Raises VideoError."""
    (height, width, _), frames = Counter(frame.shape for frame in iter_frames(path)).popitem()  # all are of one size
    return VideoInfo(width, height, frame_rate(path), frames)


def check(
    root: str | os.PathLike[str],
    *,
    workers: int = 1,
    seconds: float = 30.0,
    shortest: int = 2,
    out: str | os.PathLike[str] | None = None,
    inspect: Inspect = inspect,
) -> Report:
    """Decode every video under `root` in `workers` processes, and write check.csv and quarantine.txt into `out`.

    `out` is a folder, which is made if it does not exist; by default it is `root`. A video is bad if it cannot be
    decoded, has fewer than `shortest` frames, kills its process or takes it longer than `seconds`. What check.csv tells
    of a video with the same size and time of change is kept, except for crashed, timed out and unreadable ones; delete
    it to begin anew. The files are whole at any time, and a stopped check goes on where it was. No video is changed.
    `inspect` must be picklable.

    Raises ValueError for numbers that are not positive and OSError, before anything is decoded, if `root` is no folder
    or has no video, or `out` cannot be written or holds files of these names that no check wrote. After ctrl-C the
    files hold what was found and KeyboardInterrupt is raised.

        check("data/hmdb51", workers=8).bad  # rows of the bad videos
    """
    if min(workers, seconds, shortest) <= 0:
        raise ValueError(f"workers, seconds and shortest must be above 0, got {workers}, {seconds} and {shortest}")
    root = Path(root).absolute()
    out = root if out is None else Path(out)
    if not root.is_dir():
        raise FileNotFoundError(f"{str(root)!r}: expected a folder with videos, found none; check the path")
    stamps = {path: stamp(root / path) for path in find_videos(root)}
    rows = {row.path: _judged(row, shortest) for row in _known(out / CHECKED, stamps)}
    listed = out / QUARANTINE
    if listed.is_file() and not listed.read_bytes().startswith(_HEAD.encode()):  # ours would take its place
        raise OSError(f"{str(listed)!r}: expected a list that a check wrote, found another; move it elsewhere")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _save(out, rows)
    except OSError as error:
        raise OSError(f"{str(out)!r}: expected a writable folder, got {error.strerror!r}; name another") from error
    todo = [path for path in stamps if path not in rows]
    bad, saved = 0, time.monotonic()
    try:
        outcomes = _outcomes(root, todo, workers, seconds, inspect)
        with closing(outcomes), tqdm(outcomes, total=len(todo), desc="checking", unit="video", leave=False) as bar:
            for path, (status, info, message) in bar:
                rows[path] = _judged(Row(path, status, *info, *stamps[path], message), shortest)
                bad += rows[path].status != Status.OK
                bar.set_postfix(bad=bad, refresh=False)
                if time.monotonic() - saved > _SAVE_EVERY:
                    _save(out, rows)
                    saved = time.monotonic()
    finally:
        _save(out, rows)
    return Report([rows[path] for path in sorted(rows)], expectations(root, stamps))


def expectations(root: str | os.PathLike[str], videos: Collection[str]) -> list[str]:
    """Lines that compare the videos under `root` with HMDB51's split files there; without these, counts by folder."""
    root = Path(root)
    lines, missing, unlisted = [], set(), set(videos)
    for fold in (1, 2, 3):
        try:
            tags = {name: read_split(file) for name, file in find_splits(root, fold).items()}
            listed = list(find_files(root, tags))
        except FileNotFoundError:  # no split files of this fold
            continue
        except (OSError, ValueError) as error:  # no reason to lose the rest of the report
            return [str(error)]
        missing.update(name for name, entry, _ in listed if entry is None or not is_file(entry))
        unlisted.difference_update(relative(entry, root) for _, entry, _ in listed if entry)
        counts = Counter(tag for split in tags.values() for tag in split.values())
        train, test = counts[TAGS["train"]], counts[TAGS["test"]]
        verdict = "as in HMDB51" if (train, test) == (3570, 1530) else "HMDB51 has 3570 and 1530"
        lines.append(f"fold {fold}: {train} train, {test} test ({verdict})")
    if not lines:
        return [f"{quoted(name)}: {n} videos" for name, n in sorted(Counter(map(os.path.dirname, videos)).items())]
    return [*lines, f"listed but missing: {_some(missing)}", f"there but not listed: {_some(unlisted)}"]


def _some(paths: Collection[str]) -> str:
    """How many paths there are, and the first ten."""
    names = [quoted(path) for path in sorted(paths)[:10]] + ["..."] * (len(paths) > 10)
    return f"{len(paths)}: {', '.join(names)}" if paths else "0"


def _judged(row: Row, shortest: int) -> Row:
    """The row with the verdict on its length and size; `shortest` may differ from that of an earlier check."""
    if row.status not in (Status.OK, Status.TOO_SHORT):
        return row
    if row.frames < shortest:
        return row._replace(status=Status.TOO_SHORT, message=f"{row.frames} frames, expected at least {shortest}")
    short, long = sorted((row.width, row.height))
    odd = short < 16 or long > 4 * short
    return row._replace(status=Status.OK, message=f"odd size, {row.width}×{row.height}" if odd else "")


def _known(file: Path, stamps: Mapping[str, tuple[int, int]]) -> Iterator[Row]:
    """The rows of an earlier check.csv about files that have not changed since."""
    if not file.is_file():
        return
    try:
        for _, (path, status, width, height, fps, frames, size, mtime_ns, message) in read_csv(file, Row._fields):
            numbers = int(width), int(height), float(fps), int(frames), int(size), int(mtime_ns)
            row = Row(unquoted(path), Status(status), *numbers, message)
            if row.status in _SETTLED and stamps.get(row.path) == (row.bytes, row.mtime_ns):
                yield row
    except ValueError as error:
        raise OSError(f"{str(file)!r}: expected what an earlier check wrote, found {error}; delete the file") from error


def _save(out: Path, rows: Mapping[str, Row]) -> None:
    ordered = [rows[path]._replace(path=quoted(path)) for path in sorted(rows)]
    with beside(out / CHECKED) as folder:
        # Messages may quote undecodable bytes; paths have none left.
        with (folder / CHECKED).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(ordered)
        bad = [f"{row.path}\n" for row in ordered if row.status != Status.OK]
        (folder / QUARANTINE).write_text(_HEAD + "".join(bad), encoding="utf-8")
        for name in (CHECKED, QUARANTINE):
            (folder / name).replace(out / name)


# Processes. Pebble's pool was tried in their place, and left: while it stops one process it holds up the others, whose
# videos then count as timed out on a busy machine, and a process that ends with code 0 is taken for one that hangs.


class _Worker:
    """A process that inspects one video after another until it dies of one."""

    def __init__(self, context: BaseContext, inspect: Inspect, seconds: float) -> None:
        self.seconds = seconds
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, inspect, seconds), daemon=True)
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome:
        """What became of the video that was sent; waits for it."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
        code = self.process.exitcode or 0
        if code == -signal.SIGALRM:
            return Status.TIMED_OUT, _NOTHING, f"took longer than {self.seconds:g} s; leave it out or allow more"
        cause = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        hint = ", as for want of memory" if code == -signal.SIGKILL else ""
        return Status.CRASHED, _NOTHING, f"its process ended with {cause}{hint}; leave it out"

    def end(self) -> None:
        """End the process at once, whatever it does."""
        self.process.kill()
        self.process.join()


def _outcomes(
    root: Path, paths: Collection[str], workers: int, seconds: float, inspect: Inspect
) -> Iterator[tuple[str, Outcome]]:
    """What becomes of each video, as soon as it is known. No process is left when this is closed."""
    context = fresh_processes("__main__", __name__)
    waiting = deque(paths)
    busy: dict[Connection, tuple[_Worker, str]] = {}

    def begin(worker: _Worker) -> None:
        path = waiting.popleft()
        busy[worker.pipe] = worker, path
        with suppress(BrokenPipeError):  # it has died; outcome() tells
            worker.pipe.send(os.path.join(root, path))

    try:
        for _ in range(min(workers, len(paths))):
            begin(_Worker(context, inspect, seconds))
        while busy:
            for pipe in wait(busy):
                worker, path = busy.pop(pipe)
                outcome = worker.outcome()
                if not waiting:
                    worker.end()
                else:
                    begin(worker if worker.process.exitcode is None else _Worker(context, inspect, seconds))
                yield path, outcome
    finally:
        for worker, _ in busy.values():
            worker.end()


def _work(pipe: Connection, inspect: Inspect, seconds: float) -> None:
    """Answer each path that comes through the pipe with its outcome, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills, whatever the decoder is at, and even if the parent is gone
    with suppress(OSError):  # where memory runs out, Linux is to end this process rather than its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            path = pipe.recv()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            outcome = _inspected(path, inspect)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(outcome)


def _inspected(path: str, inspect: Inspect) -> Outcome:
    try:
        return Status.OK, inspect(path), ""
    except OSError as error:  # VideoError is one
        if not os.path.exists(path) and os.path.islink(path):
            return Status.UNREADABLE, _NOTHING, "a link to nothing: fetch its content"
        status = Status.CORRUPT if os.access(path, os.R_OK) else Status.UNREADABLE
        return status, _NOTHING, " ".join(str(error).removeprefix(f"{path!r}: ").split())
    except Exception as error:
        return Status.CRASHED, _NOTHING, " ".join(f"{type(error).__name__}: {error}".split())
