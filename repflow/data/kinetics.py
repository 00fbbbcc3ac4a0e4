"""Kinetics-400, -600 and -700 as people have them: official CSV lists, JSON lists of the 2019 release, class folders.

Kay et al., "The Kinetics Human Action Video Dataset", arXiv:1705.06950; Carreira et al., "A Short Note about
Kinetics-600", arXiv:1808.01340, and "A Short Note on the Kinetics-700 Human Action Dataset", arXiv:1907.06987.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from repflow.data.lists import (
    SUBSET_OF,
    SUBSETS,
    Classes,
    Listed,
    PathLike,
    Video,
    finder,
    folders_in,
    official_classes,
    read_csv,
    read_json,
    relative,
    stem,
)

# Ids have 11 characters, so an id that starts with rgb_ is not confused with the prefix.
_NAME = re.compile(r"(?:rgb_)?([\w-]{11})_(\d{1,6})_(\d{1,6})", re.ASCII)
_COLUMNS = "label", "youtube_id", "time_start", "time_end", "split"

Clip = tuple[str, int, int]  # YouTube id, start and end in s
Row = tuple[str, str, str, str]  # of a list: where it stands, the class, the clip's name, the split


class Kinetics(Listed):
    """One subset of Kinetics: "train", "val" or "test". `edition` is the number of its classes, 400, 600 or 700.

    With `csv`, the list decides: an official CSV file, with the columns label, youtube_id, time_start, time_end and
    split. The videos may lie in `root`/<subset>/<label>, `root`/<subset>, `root`/<label> or `root`, the first of these
    winning, and be named <id>_<start>_<end>, padded with zeros or not, with or without rgb_ in front, with any of
    `lists.ENDINGS`. Many are missing from most copies: they are only listed in `missing`, by their official names,
    <id>_000010_000020.

    With `numbers`, a JSON file {"yoga": 341}, `csv` is a JSON list as the 2019 release has them, of this subset's clips
    and their numbers: {"rgb_<id>_<start>_<end>.mp4": 341}. The names may be in quotes of their own.

    Without `csv`, every video in `root`/<subset>/<label> counts (`root` may be the subset's folder itself). Labels may
    have underscores for spaces, in lists and folders.

    classes: those in the argument `classes`, names in their order (a set is sorted) or a text file with one a line;
    without it all of the edition, in alphabetical order, as torchvision's weights for 400 have them. Videos of others
    are left out. `quarantine` is a file, or the folder that `data check` wrote into, in place of `root`/quarantine.txt.
    Raises FileNotFoundError where there is no such folder or list, or no video is left; ValueError for a bad list, one
    without a clip of the subset in these classes, or an unknown class.
    """

    def __init__(
        self,
        root: PathLike,
        subset: str = "train",
        csv: PathLike | None = None,
        classes: Classes = None,
        *,
        edition: int = 400,
        numbers: PathLike | None = None,
        quarantine: PathLike | None = None,
    ) -> None:
        if edition not in (400, 600, 700):
            raise ValueError(f"edition must be one of 400, 600, 700, got {edition!r}")
        if (numbers is not None) != (csv is not None and Path(csv).suffix.lower() == ".json"):
            raise ValueError(f"numbers: expected with a JSON list, to name its numbers; got {numbers} with list {csv}")
        root, official = self._open(root, subset, SUBSETS), official_classes(f"kinetics{edition}")
        labels = dict.fromkeys(official) | self._choose(classes, official, _spaced)
        kind = f"Kinetics-{edition}"
        if csv is None:
            listed = _by_folder(root, subset, labels, kind)
        else:
            rows = _rows(Path(csv)) if numbers is None else _json_rows(Path(csv), Path(numbers), subset)
            wanted, files = _by_list(Path(csv), rows, subset, labels, kind), _index(root, subset, labels)
            listed = [("{}_{:06}_{:06}".format(*clip), files.get(clip), label) for clip, label in wanted.items()]
        self._take(subset, listed, quarantine)


def _spaced(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _by_folder(root: Path, subset: str, labels: dict[str, int | None], kind: str) -> Iterator[Video]:
    folders = [root / name for name in SUBSETS[subset] if (root / name).is_dir()]
    if not folders and root.absolute().name in SUBSETS[subset]:
        folders = [root]
    inner = [entry for folder in folders for entry in folders_in(folder)]
    unknown = [entry.path for entry in inner if _spaced(entry.name) not in labels]
    if unknown:
        raise ValueError(f"expected folders named as classes of {kind}, got {unknown[:3]}; move them elsewhere")
    unique = {os.path.realpath(entry.path): entry for entry in reversed(inner)}  # each once, whatever links to it
    labelled = [(labels[_spaced(entry.name)], entry) for entry in reversed(unique.values())]
    chosen = [(label, entry) for label, entry in labelled if label is not None]
    with finder(root, tell_others=True) as videos_in:
        for label, folder in sorted(chosen, key=lambda pair: pair[0]):
            for entry in videos_in(folder).values():
                yield relative(entry, root), entry, label


def _index(root: Path, subset: str, labels: dict[str, int | None]) -> dict[Clip, os.DirEntry[str]]:
    """Every clip's file. Whole folders are read: asking for every name in turn would take hours over a network."""
    files: dict[Clip, os.DirEntry[str]] = {}
    with finder(root) as videos_in:
        for place in (*(root / name for name in SUBSETS[subset]), root):
            inner = [entry for entry in folders_in(place) if _spaced(entry.name) in labels]
            for folder in (*inner, place):
                for name, entry in videos_in(folder).items():
                    if clip := _clip(name):
                        files.setdefault(clip, entry)
    return files


def _clip(name: str) -> Clip | None:
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def _rows(path: Path) -> Iterator[Row]:
    for where, (label, *place, split) in read_csv(path, _COLUMNS):
        yield where, _spaced(label), "_".join(place), split


def _json_rows(path: Path, numbers: Path, subset: str) -> Iterator[Row]:
    names: dict[int, str] = {}
    for name, number in _read_numbers(numbers).items():
        name = _spaced(name.strip('"'))
        if names.setdefault(number, name) != name:
            raise ValueError(f"{str(numbers)!r}: expected one class a number, {number} has {names[number]!r}, {name!r}")
    for file, number in _read_numbers(path).items():
        where = f"{str(path)!r}, {file!r}"
        if number not in names:
            raise ValueError(f"{where}: number {number} is not in {str(numbers)!r}; give the file of this list's names")
        yield where, names[number], stem(file), subset


def _read_numbers(path: Path) -> dict[str, int]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise ValueError(f'{str(path)!r}: expected JSON {{"name": number, ...}}, got something else; get another file')
    return content


def _by_list(path: Path, rows: Iterable[Row], subset: str, labels: dict[str, int | None], kind: str) -> dict[Clip, int]:
    """Label by clip, in the list's order. A clip may be listed twice, not with two labels."""
    wanted: dict[Clip, int | None] = {}
    for where, label, name, split in rows:
        clip = _clip(name)
        if clip is None:
            raise ValueError(f"{where}: expected an id of 11 letters, digits, - and _, and whole seconds, got {name!r}")
        if label not in labels:
            raise ValueError(f"{where}: expected a class of {kind}, got {label!r}; mend or remove it")
        if split not in SUBSET_OF:
            raise ValueError(f"{where}: expected one of the splits {', '.join(SUBSET_OF)}, got {split!r}; mend it")
        if SUBSET_OF[split] == subset and wanted.setdefault(clip, labels[label]) != labels[label]:
            raise ValueError(f"{where}: {name!r} was listed above with another label than {label!r}; remove one")
    chosen = {clip: label for clip, label in wanted.items() if label is not None}
    if not chosen:
        raise ValueError(
            f"{str(path)!r}: expected clips of subset {subset} in the classes asked for, got none; {len(wanted)} are "
            "listed in others; give another list, subset or classes"
        )
    return chosen
