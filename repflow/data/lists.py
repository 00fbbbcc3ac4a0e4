"""What the readers of listed videos share: text files, class names, the quarantine, and what became of each video."""

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from urllib.parse import unquote_to_bytes

ENDINGS = (".avi", ".mp4", ".mkv", ".webm")  # of data sets; and of whatever else is a video:
VIDEO_ENDINGS = (*ENDINGS, ".mov", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")
_log = logging.getLogger(__name__)


class Listed:
    """A data set's videos, as its lists name them and as its folder has them.

    root: the folder; classes: class names, a label being an index into them; samples: (path, label); expected: how many
    videos the lists name; missing: those of them that are not in the folder; quarantined: those that quarantine.txt
    names, by their path under the root. Each expected video is in just one of samples, missing and quarantined.
    """

    root: Path
    classes: list[str]
    samples: list[tuple[Path, int]]
    expected: int
    missing: list[str]
    quarantined: list[str]

    def __len__(self) -> int:
        return len(self.samples)

    def _take(self, root: Path, listed: Iterable[tuple[str, os.DirEntry[str] | None, int]]) -> None:
        """Sorts videos, given as (name, file if there is one, label), into samples, missing and quarantined."""
        self.root, self.samples, self.missing, self.quarantined = root, [], [], []
        unusable = read_quarantine(root)
        for name, entry, label in listed:
            if entry is None:
                self.missing.append(name)
            elif (path := _path_inside(root, entry)) in unusable:
                self.quarantined.append(path.relative_to(root).as_posix())
            else:
                self.samples.append((path, label))
        self.expected = len(self.samples) + len(self.missing) + len(self.quarantined)


def read_text(path: Path) -> str:
    """A list's text, with any line ends. Raises ValueError for UTF-16, which some editors save."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{str(path)!r}, line 1: expected UTF-8 text, got UTF-16; save the file as UTF-8")
    # surrogateescape: a name in any encoding still meets its file; utf-8-sig: editors leave a byte-order mark
    return content.decode("utf-8-sig", errors="surrogateescape")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not empty, without the blanks around it."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line := line.strip():
            yield number, line


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(where it stands, the fields of `columns`) of each row. Raises ValueError for what is no such table."""
    rows = csv.DictReader(StringIO(read_text(path), newline=""), strict=True)
    try:
        if lost := [name for name in columns if name not in (rows.fieldnames or ())]:
            raise ValueError(f"{str(path)!r}, line 1: expected the columns {', '.join(columns)}, no {', '.join(lost)}")
        for row in rows:
            where = f"{str(path)!r}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: expected {len(rows.fieldnames)} fields, got another number; mend the line")
            yield where, [row[name].strip() for name in columns]
    except csv.Error as error:
        line = rows.reader.line_num
        raise ValueError(f"{str(path)!r}, line {line}: expected CSV text, {error}; mend the line") from None


def read_json(path: Path) -> dict[str, object]:
    """A JSON object. Raises ValueError for anything else, and for a key that occurs twice."""
    try:
        content = json.loads(read_text(path), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r}: expected JSON text: {error}; mend the file") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r}: expected a JSON object, got {type(content).__name__}; give another file")
    return content


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key!r} occurs {count} times")
    return dict(pairs)


def read_classes(path: Path) -> list[str]:
    """Class names, one a line, in the file's order. Raises ValueError for a name that occurs twice."""
    names: list[str] = []
    for number, name in read_lines(path):
        if name in names:
            raise ValueError(f"{str(path)!r}, line {number}: expected each class once, got {name!r} again; remove it")
        names.append(name)
    return names


def official_classes(name: str) -> list[str]:
    """The class names of "hmdb51" or "kinetics400", in their official order."""
    file, here = f"{name}_classes.txt", Path(__file__).parent
    places = (here / file, here.parents[1] / "data" / file)  # wheel, checkout
    return read_classes(next(filter(Path.is_file, places), places[-1]))


def read_quarantine(root: Path) -> set[Path]:
    """The videos named in quarantine.txt under `root`; none where there is no such file.

    One path a line, relative to `root`, with slashes, as `quoted` writes it; empty lines and those that begin
    with # mean nothing. Raises ValueError for a path that leaves the root.
    """
    file = root / "quarantine.txt"
    if not file.is_file():
        return set()
    paths = set()
    for number, line in read_lines(file):
        if line.startswith("#"):  # only at the start: HMDB51 has names with a # in them
            continue
        path = PurePosixPath(unquoted(line))
        if path.is_absolute() or ".." in path.parts or "\\" in line or "\0" in str(path):
            raise ValueError(
                f"{str(file)!r}, line {number}: expected a path relative to the data set's folder, with slashes, "
                f"got {line!r}; mend the line"
            )
        paths.add(root / path)
    return paths


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, by name; nothing where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _path_inside(root: Path, entry: os.DirEntry[str]) -> Path:
    path = Path(entry.path)
    # A folder may be a link to anywhere: whoever made it meant it. A single video's link has to stay inside.
    if entry.is_symlink():
        target = path.resolve()
        if not any(target.is_relative_to(folder.resolve()) for folder in (root, path.parent)):
            raise ValueError(
                f"{str(path)!r}: expected a video under {str(root)!r}, got a link to {str(target)!r} outside; "
                "copy the video, or link the whole folder"
            )
    return path


def find_videos(root: Path) -> Iterator[str]:
    """The paths of all videos, relative to `root`, without hidden ones.

    Each folder is visited once, however many links lead to it.
    """
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, onerror=_tell, followlinks=True):
        paths = {name: os.path.join(folder, name) for name in folders if not name.startswith(".")}
        folders.clear()
        for name in sorted(paths, key=lambda name: (os.path.islink(paths[name]), name)):  # a folder before links to it
            if (real := os.path.realpath(paths[name])) not in seen:
                seen.add(real)
                folders.append(name)
        for name in sorted(files):
            if name.lower().endswith(VIDEO_ENDINGS) and not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


def _tell(error: OSError) -> None:
    _log.warning("%r cannot be listed (%s): what is in it is left out", error.filename, error.strerror)


def quoted(path: str) -> str:
    """A path on one printable line: %XX for bytes not printable, "%", backslashes, and a first "#" or space."""
    plain = [c.isprintable() and c not in "%\\" and (i > 0 or c not in "# ") for i, c in enumerate(path)]
    pairs = zip(path, plain, strict=True)
    return "".join(c if keep else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c, keep in pairs)


def unquoted(text: str) -> str:
    """The path that `quoted` wrote; a "%" without two hexadecimal digits stands for itself."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))
