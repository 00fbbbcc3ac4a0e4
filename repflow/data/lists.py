"""What the readers of listed videos share: text files, class names, the quarantine, and what became of each video."""

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from repflow.arguments import warn
from repflow.records import shipped

# What `repflow.video` reads, in any case. Of files of one stem in one folder the one whose ending comes first counts.
ENDINGS = (
    *(".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".3gp", ".3g2"),
    *(".flv", ".wmv", ".asf", ".ogv", ".mxf", ".rm", ".dv", ".gif"),
)
QUARANTINE, CHECKED = "quarantine.txt", "check.csv"
# The subsets, and what folders and lists call them.
SUBSETS = {"train": ("train", "training"), "val": ("val", "validate", "validation"), "test": ("test", "testing")}
SUBSET_OF = {name: subset for subset, names in SUBSETS.items() for name in names}
_log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]
Classes = Collection[str] | PathLike | None  # names, or a text file of them
Video = tuple[str, os.DirEntry[str] | None, int]  # its name, its file if there is one, its label


class Checked(NamedTuple):
    """What `data check` found of a video: its frames, when the file had this size in bytes and time of change."""

    frames: int
    bytes: int
    mtime_ns: int


def stamp(path: PathLike) -> tuple[int, int]:
    """A file's size in bytes and time of change: when they change, it has; 0 and 0 where they cannot be known."""
    try:
        stat = os.stat(path)
    except OSError:  # reading it will tell why
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


class Listed:
    """A data set's videos, as its lists name them and as its folder has them.

    root: the folder; classes: class names; samples: (path, label), label an index into classes; expected: how many
    videos the lists name; missing: those of them that are not in the folder, or are links to nothing; quarantined:
    those that the quarantine names, by their path under the root; checked: what the check.csv beside the quarantine
    tells of the samples; groups: of each sample what it was cut from, where the data set knows it: clips of one group
    look alike, so `repflow.training.split` keeps them together. Each expected video is in just one of samples, missing
    and quarantined. A video may be a link to anywhere: a list cannot leave the root, but its owner may.
    A data set's class calls `_open`, `_choose` and `_take`, in this order.
    """

    root: Path
    classes: list[str]
    samples: list[tuple[Path, int]]
    expected: int
    missing: list[str]
    quarantined: list[str]
    checked: dict[Path, Checked]
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def _open(self, root: PathLike, subset: str, subsets: Collection[str]) -> Path:
        """Sets and returns `root`. FileNotFoundError where there is no such folder, ValueError for another subset."""
        if subset not in subsets:
            raise ValueError(f"subset must be one of {', '.join(subsets)}, got {subset!r}")
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{str(root)!r}: expected the data set's folder, found none; check the path")
        return self.root

    def _choose(self, classes: Classes, known: Collection[str], tidy: Callable[[str], str] = str) -> dict[str, int]:
        """Sets `classes`: `known` for None, the lines of a text file, or names, each once; a set is sorted.

        Returns the label of each. Raises ValueError for a class that is not `known`.
        """
        if isinstance(classes, str | os.PathLike):
            classes = read_classes(Path(classes))
        elif classes is None or isinstance(classes, Set):
            classes = known if classes is None else sorted(classes)
        self.classes = list(dict.fromkeys(map(tidy, classes)))
        if unknown := ", ".join(repr(name) for name in sorted(self.classes) if name not in known):
            few = ", ".join(sorted(known)[:60])
            raise ValueError(f"classes: expected some of {few}, got {unknown}; mend the names")
        return {name: label for label, name in enumerate(self.classes)}

    def _take(
        self, subset: str, listed: Iterable[Video], quarantine: PathLike | None, remedy: str | None = None
    ) -> None:
        """Sorts videos into samples, missing and quarantined. Warns of links to nothing.

        Raises FileNotFoundError where no sample is left, and with a `remedy` for missing videos.
        """
        root, self.samples, self.missing, self.quarantined = self.root, [], [], []
        is_bad = quarantine_test(root, quarantine)
        dangling = []
        for name, entry, label in listed:
            if entry is None or not is_file(entry):
                self.missing.append(name)
                dangling += [name] if entry else []
            elif is_bad(path := Path(entry.path)):
                self.quarantined.append(path.relative_to(root).as_posix())
            else:
                self.samples.append((path, label))
        self.expected = len(self.samples) + len(self.missing) + len(self.quarantined)
        self.checked = read_checked(root, quarantine, [path for path, _ in self.samples])
        if dangling:
            warn(
                f"{str(root)!r}: {len(dangling)} videos count as missing, first {dangling[:3]}: links to nothing; "
                "fetch their content (git annex get, dvc pull)"
            )
        if remedy and self.missing:
            raise FileNotFoundError(
                f"{str(root)!r}: {len(self.missing)} of {self.expected} listed videos are missing, first "
                f"{self.missing[:3]}; {remedy}"
            )
        if not self.samples:
            raise FileNotFoundError(
                f"{str(root)!r}: expected videos of subset {subset}, got none ({self.expected} are listed); "
                f"{len(self.missing)} are missing and {len(self.quarantined)} quarantined: give the folder that holds "
                "the videos, their class folders or the subset's folder"
            )

    def _expect_official(self, count: int, what: str) -> None:
        if self.expected != count:
            warn(
                f"{str(self.root)!r}: expected {count} videos in {what}, got {self.expected}; results will not compare "
                "with others'; unpack the official lists again"
            )


def read_text(path: Path) -> str:
    """A list's text, its line ends made "\\n"."""
    # surrogateescape: a name in any encoding still meets its file; utf-8-sig: editors leave a byte-order mark
    return path.read_text("utf-8-sig", errors="surrogateescape")


def read_lines(path: Path, form: str | None = None) -> list[tuple[str, str]]:
    """(where it stands, text) of each line that is not empty, without the blanks around it.

    Raises ValueError where there is none, if `form` tells what is expected.
    """
    lines = enumerate(map(str.strip, read_text(path).split("\n")), start=1)
    told = [(f"{str(path)!r}, line {number}", line) for number, line in lines if line]
    if form and not told:
        raise ValueError(f"{str(path)!r}, line 1: expected {form}, got none; get or write it again")
    return told


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError for one that is damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{str(path)!r}, line {line}: expected JSON text, {error}; get the file again") from None


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(where it stands, the fields of `columns`) of each row. Raises ValueError for what is no such table."""
    rows = csv.DictReader(StringIO(read_text(path), newline=""), strict=True)
    try:
        lost = [name for name in columns if name not in (rows.fieldnames or ())]
        if lost:
            raise ValueError(f"{str(path)!r}, line 1: expected the columns {', '.join(columns)}, no {', '.join(lost)}")
        for row in rows:
            where = f"{str(path)!r}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(rows.fieldnames)} fields, got another number; mend the line")
            yield where, [row[name].strip() for name in columns]
    except csv.Error as error:
        line = rows.reader.line_num
        raise ValueError(f"{str(path)!r}, line {line}: expected CSV text, {error}; mend the line") from None


def read_classes(path: Path) -> list[str]:
    """Class names, one a line, in the file's order. Raises ValueError for none, and for one that occurs twice."""
    names: list[str] = []
    for where, name in read_lines(path, "class names, one a line"):
        if name in names:
            raise ValueError(f"{where}: expected each class once, got {name!r} again; remove it")
        names.append(name)
    return names


def official_classes(name: str) -> list[str]:
    """The class names of "hmdb51", "kinetics400", "kinetics600" or "kinetics700", in their official order."""
    return read_classes(shipped("data") / f"{name}_classes.txt")


def read_quarantine(root: Path, quarantine: PathLike | None = None) -> set[Path]:
    """The videos that a quarantine names, as paths under `root`.

    `quarantine` is a file, or the folder that `check` wrote quarantine.txt into. It is read in place of
    `root`/quarantine.txt, which is read where there is one if no other is given.

    One path a line, relative to `root`, with slashes, as `quoted` writes it; empty lines and those that begin
    with # mean nothing. Raises ValueError for a path that leaves the root, and FileNotFoundError where a given
    quarantine is not there. Warns where not one of its videos is under `root`.
    """
    file = root / QUARANTINE if quarantine is None else Path(quarantine)
    if file.is_dir():
        file /= QUARANTINE
    if not file.is_file():
        if quarantine is None:
            return set()
        raise FileNotFoundError(f"{str(file)!r}: expected a quarantine by data check, found none; check the path")
    # A # at the start only: HMDB51 has names with one in them.
    paths = {root / inside(where, line, unquoted) for where, line in read_lines(file) if not line.startswith("#")}
    if paths and not any(map(os.path.lexists, paths)):
        warn(
            f"{str(file)!r}: not one of its {len(paths)} videos is under {str(root)!r}, so it leaves out nothing; its "
            "paths are relative to the folder that was checked: give that folder, or delete the list"
        )
    return paths


def inside(where: str, text: str, decode: Callable[[str], str] = str) -> PurePosixPath:
    """The path that a list names. Raises ValueError for one that is not relative to the root, or leaves it."""
    path = PurePosixPath(decode(text))
    if not path.name or path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in str(path):
        raise ValueError(
            f"{where}: expected a path relative to the data set's folder, with slashes, got {text!r}; mend it"
        )
    return path


def quarantine_test(root: Path, quarantine: PathLike | None) -> Callable[[Path], bool]:
    """A function that tells whether a video under `root` is in the quarantine, by whichever linked folder it came."""
    place = _places()
    unusable = set(map(place, read_quarantine(root, quarantine)))
    return lambda path: bool(unusable) and place(path) in unusable


def _places() -> Callable[[Path], tuple[str, str]]:
    """A function that gives the same for a video by whichever linked folder it came; a link to it has its own name."""
    folder = cache(os.path.realpath)
    return lambda path: (folder(path.parent), path.name)


def read_checked(root: Path, quarantine: PathLike | None, videos: Iterable[Path]) -> dict[Path, Checked]:
    """What the check.csv beside the quarantine tells of these videos, where there is one and they were decoded.

    Paths are understood as in the quarantine. Whether a file has changed since is for `stamp` to tell, once the
    video is used. A check.csv that cannot be understood is left alone, which the log tells.
    """
    beside = root if quarantine is None else Path(quarantine)
    file = (beside if beside.is_dir() else beside.parent) / CHECKED
    if not file.is_file():
        return {}
    place, records = _places(), {}
    try:
        for _, (name, status, *numbers) in read_csv(file, ("path", "status", "frames", "bytes", "mtime_ns")):
            if status in ("ok", "too short"):
                records[place(root / unquoted(name))] = Checked(*map(int, numbers))
    except (OSError, ValueError) as error:
        _log.warning("the lengths of videos are counted anew: %s", error)
        return {}
    return {path: records[place(path)] for path in videos if place(path) in records}


def scan(folder: PathLike) -> list[os.DirEntry[str]]:
    """What lies in `folder`, by name; nothing where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def folders_in(folder: PathLike) -> list[os.DirEntry[str]]:
    """The folders in `folder`, by name, without hidden ones."""
    return [entry for entry in scan(folder) if is_folder(entry) and not entry.name.startswith(".")]


@contextmanager
def finder(root: Path, *, tell_others: bool = False) -> Iterator[Callable[[PathLike], dict[str, os.DirEntry[str]]]]:
    """A function that finds the videos in a folder (`videos_of`).

    At the end the log tells which copies were left out, and with `tell_others` also which files are no videos.
    """
    left_out: list[os.DirEntry[str]] = []
    yield lambda folder: videos_of(scan(folder), left_out)
    _tell(root, left_out, tell_others)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Also of a link to one; only links cost a question to the file system, and they may lead nowhere or round."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Also of a link to one, not of a link to nothing."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def stem(name: str) -> str:
    """A video's file name without its ending; any other name as it is."""
    base, ending = os.path.splitext(name)
    return base if ending.lower() in ENDINGS else name


def videos_of(entries: Iterable[os.DirEntry[str]], left_out: list[os.DirEntry[str]]) -> dict[str, os.DirEntry[str]]:
    """The videos among what lies in one folder, by stem, in the order of the entries: the rule for all data sets.

    A video has one of ENDINGS, in any case, is no folder and not hidden. Of several of one stem, links to nothing come
    last, then the order of ENDINGS decides. The files that are no video, and not hidden, are added to `left_out`.
    """
    videos: dict[str, os.DirEntry[str]] = {}
    for entry in entries:
        if entry.name.startswith(".") or is_folder(entry):
            continue
        name = stem(entry.name)
        if name == entry.name:
            left_out.append(entry)
        elif (other := videos.setdefault(name, entry)) is not entry:
            videos[name], second = sorted((other, entry), key=_preference)
            left_out.append(second)
    return videos


def _preference(entry: os.DirEntry[str]) -> tuple[bool, int, str]:
    return not is_file(entry), ENDINGS.index(os.path.splitext(entry.name)[1].lower()), entry.name


def _tell(root: Path, left_out: Iterable[os.DirEntry[str]], tell_others: bool) -> None:
    """Say in the log which copies `videos_of` left out, and how many files of which endings that are no videos."""
    if copies := [relative(entry, root) for entry in left_out if stem(entry.name) != entry.name]:
        _log.warning(
            "%r: %d files left out, first %s: others of the same name come first, in the order %s",
            str(root), len(copies), copies[:3], " ".join(ENDINGS),
        )  # fmt: skip
    others = {entry.name for entry in left_out if stem(entry.name) == entry.name} - {QUARANTINE, CHECKED}
    if tell_others and others:
        endings = Counter(os.path.splitext(name)[1] or "without an ending" for name in others)
        counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
        _log.info("%r: left out, being no videos by their endings: %s", str(root), counts)


def find_videos(root: Path) -> list[str]:
    """The paths of all videos that `video_files` finds, relative to `root`, sorted."""
    return [relative(entry, root) for entry in video_files(root)]


def relative(entry: os.DirEntry[str], root: Path) -> str:
    """The path of a file under `root`, with slashes."""
    return Path(entry.path).relative_to(root).as_posix()


def video_files(root: Path) -> list[os.DirEntry[str]]:
    """All videos under `root` by the rule of `videos_of`, sorted by path; the log tells of other files.

    Each folder is visited once, however many links lead to it, hidden ones not at all. Raises FileNotFoundError where
    there is no video.
    """
    seen, folders = {os.path.realpath(root)}, [root]
    videos: list[os.DirEntry[str]] = []
    left_out: list[os.DirEntry[str]] = []
    while folders:
        try:
            entries = scan(folders.pop())
        except OSError as error:
            _log.warning("%r cannot be listed (%s): what is in it is left out", error.filename, error.strerror)
            continue
        inner = [entry for entry in entries if is_folder(entry) and not entry.name.startswith(".")]
        for entry in sorted(inner, key=os.DirEntry.is_symlink):  # a folder before links to it
            real = os.path.realpath(entry.path)
            if real not in seen:
                seen.add(real)
                folders.append(Path(entry.path))
        videos += videos_of(entries, left_out).values()
    _tell(root, left_out, tell_others=True)
    if not videos:
        raise FileNotFoundError(
            f"{str(root)!r}: expected videos ({' '.join(ENDINGS)}) in it or in its folders, found none among "
            f"{len(left_out)} files; check the path"
        )
    return sorted(videos, key=lambda entry: relative(entry, root))


def quoted(path: str) -> str:
    """A path as one line of plain ASCII: %XX for every other byte, and for blanks, "%", "#" and backslashes."""
    return quote(os.fsencode(path), safe="/!$&'()*+,:;<=>?@[]^`{|}~")


def unquoted(text: str) -> str:
    """The path that `quoted` wrote; a "%" without two hexadecimal digits stands for itself."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))
