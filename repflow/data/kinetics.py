"""Kinetics-400 as people have it: official CSV lists, class folders, or the list of the 2019 release.

Kay et al., "The Kinetics Human Action Video Dataset", arXiv:1705.06950.
"""

import os
import re
from collections.abc import Collection, Iterator, Set
from pathlib import Path

from repflow.data.lists import ENDINGS, Listed, official_classes, read_classes, read_csv, read_json, scan

_SUBSETS = {"train": ("train", "training"), "val": ("val", "validate", "validation"), "test": ("test", "testing")}
_NAME = re.compile(
    r"(?:rgb_)?([\w-]{11})_(\d{1,6})_(\d{1,6})", re.ASCII
)  # an id's length tells "rgb_" from an id so begun

Clip = tuple[str, int, int]  # YouTube id, start and end in s
Row = tuple[str, str, str, str]  # where it stands, the clip's name, label, split


class Kinetics(Listed):
    """One subset of Kinetics-400: "train", "val" or "test".

    With `csv`, the list decides. It is an official CSV file, with the columns label, youtube_id, time_start, time_end
    and split; or, where its name ends in .json, an object {"rgb_<id>_<start>_<end>": {"subset": ..., "label": ...}}
    with the keys of the 2019 release, whose values are a guess. The videos may lie in `root`/<subset>/<label>,
    `root`/<subset>, `root`/<label> or `root`, the first of these winning, and be named <id>_<start>_<end>, padded with
    zeros or not, with or without rgb_ in front, as .avi, .mp4, .mkv or .webm. Many are missing from most copies: they
    are only listed in `missing`, as in the official names, <id>_000010_000020.

    Without `csv`, every video in `root`/<subset>/<label> counts (`root` may be the subset's folder itself). Labels may
    have underscores for spaces, in lists and folders.

    classes: those in the argument `classes`, names in their order (a set is sorted) or a text file with one a line;
    without it all 400, in the order of torchvision's weights. Videos of others are left out. Raises FileNotFoundError
    where there is no such folder or list, or no video at all in it; ValueError for a bad list or an unknown class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        subset: str = "train",
        csv: str | os.PathLike[str] | None = None,
        classes: Collection[str] | str | os.PathLike[str] | None = None,
    ) -> None:
        if subset not in _SUBSETS:
            raise ValueError(f"subset must be one of {', '.join(_SUBSETS)}, got {subset!r}")
        root, official = Path(root), official_classes("kinetics400")
        if not root.is_dir():
            raise FileNotFoundError(f"{str(root)!r}: expected the data set's folder, found none; check the path")
        self.classes = _choose(classes, official)
        labels = dict.fromkeys(official) | {name: label for label, name in enumerate(self.classes)}
        if csv is None:
            listed = list(_by_folder(root, subset, labels))
        else:
            wanted, files = _by_list(Path(csv), subset, labels), _index(root, subset, labels)
            listed = [("{}_{:06}_{:06}".format(*clip), files.get(clip), label) for clip, label in wanted.items()]
        self._take(root, listed)
        if len(self.missing) == self.expected:
            raise FileNotFoundError(
                f"{str(root)!r}: expected videos of subset {subset}, got none ({self.expected} are listed); give the "
                "folder that holds them, their class folders or the subset's folder"
            )


def _choose(classes: Collection[str] | str | os.PathLike[str] | None, official: list[str]) -> list[str]:
    if classes is None:
        return official
    if isinstance(classes, str | os.PathLike):
        classes = read_classes(Path(classes))
    chosen = [_spaced(name) for name in (sorted(classes) if isinstance(classes, Set) else classes)]
    if unknown := sorted(set(chosen) - set(official)):
        raise ValueError(f"classes: expected names of Kinetics-400, got {', '.join(map(repr, unknown))}; mend them")
    return list(dict.fromkeys(chosen))


def _spaced(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _by_folder(
    root: Path, subset: str, labels: dict[str, int | None]
) -> Iterator[tuple[str, os.DirEntry[str] | None, int]]:
    folders = [root / name for name in _SUBSETS[subset] if (root / name).is_dir()]
    if not folders and root.absolute().name in _SUBSETS[subset]:
        folders = [root]
    found = [entry for folder in folders for entry in scan(folder) if entry.is_dir() and entry.name[0] != "."]
    if unknown := [entry.path for entry in found if _spaced(entry.name) not in labels]:
        raise ValueError(f"expected folders named as classes of Kinetics-400, got {unknown[:3]}; move them elsewhere")
    chosen = [(label, entry) for entry in found if (label := labels[_spaced(entry.name)]) is not None]
    for label, folder in sorted(chosen, key=lambda pair: pair[0]):
        for entry in scan(Path(folder.path)):
            if entry.name.endswith(ENDINGS) and entry.is_file():
                yield entry.path, entry, label


def _index(root: Path, subset: str, labels: dict[str, int | None]) -> dict[Clip, os.DirEntry[str]]:
    """Every clip's file. Each folder is read once: asking for every name in turn would take hours over a network."""
    files: dict[Clip, os.DirEntry[str]] = {}
    for place in (*(root / name for name in _SUBSETS[subset]), root):
        entries = scan(place)
        inner = [e for e in entries if e.is_dir() and _spaced(e.name) in labels]
        for entry in (*(file for folder in inner for file in scan(Path(folder.path))), *entries):
            stem, ending = os.path.splitext(entry.name)
            if ending in ENDINGS and (clip := _clip(stem)) and entry.is_file():
                files.setdefault(clip, entry)
    return files


def _clip(name: str) -> Clip | None:
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def _by_list(path: Path, subset: str, labels: dict[str, int | None]) -> dict[Clip, int]:
    """Label by clip, in the list's order. A clip may be listed twice, not with two labels."""
    wanted: dict[Clip, int | None] = {}
    known = {name: key for key, names in _SUBSETS.items() for name in names}
    for where, name, label, split in (_json_rows if path.suffix == ".json" else _csv_rows)(path):
        clip, label = _clip(name), _spaced(label)
        if clip is None:
            raise ValueError(f"{where}: expected an id of 11 letters, digits, - and _, and whole seconds, got {name!r}")
        if label not in labels:
            raise ValueError(f"{where}: expected a class of Kinetics-400, got {label!r}; mend or remove it")
        if split not in known:
            raise ValueError(f"{where}: expected one of the splits {', '.join(known)}, got {split!r}; mend it")
        if known[split] == subset and wanted.setdefault(clip, labels[label]) != labels[label]:
            raise ValueError(f"{where}: {name!r} was listed above with another label than {label!r}; remove one")
    return {clip: label for clip, label in wanted.items() if label is not None}


def _csv_rows(path: Path) -> Iterator[Row]:
    for where, (label, *name, split) in read_csv(path, ("label", "youtube_id", "time_start", "time_end", "split")):
        yield where, "_".join(name), label, split


def _json_rows(path: Path) -> Iterator[Row]:
    for key, value in read_json(path).items():
        match value:
            case {"subset": str(split), "label": str(label)}:
                yield f"{str(path)!r}, {key!r}", key.removesuffix(".mp4"), label, split
            case _:
                raise ValueError(f'{str(path)!r}, {key!r}: expected {{"subset": ..., "label": ...}}, got {value!r}')
