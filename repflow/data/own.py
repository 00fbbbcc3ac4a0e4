"""Videos of your own: in folders named as their classes, or with lists that say the class of each."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from repflow.arguments import warn
from repflow.data.lists import (
    ENDINGS,
    SUBSET_OF,
    Classes,
    Listed,
    PathLike,
    Video,
    finder,
    folders_in,
    inside,
    is_file,
    read_classes,
    read_csv,
    read_lines,
    relative,
    stem,
    video_files,
)

Labelled = list[tuple[str, os.DirEntry[str]]]  # class, video
_LOOKS_GROUPED = re.compile(r"_g\d+_c\d+$")
_ENDINGS = "|".join(re.escape(ending[1:]) for ending in ENDINGS)
_LINE = re.compile(rf"(.+\.(?:{_ENDINGS}))[\s,]+([^\s,].*)", re.IGNORECASE)


class VideoFolder(Listed):
    """One subset, "train" or "test", of videos at any depth in `root`/train/<class> and `root`/test/<class>.

    `root`/val is tested on where there is no test folder, and not used elsewhere. Where there is no such folder either,
    the videos lie in `root`/<class>, and are divided here: of each class, `share` of the videos (at least one, not all)
    are test videos. All videos in `root`, their names without endings and `seed` decide, not `classes` or the
    quarantine: the subsets have no video in common, and a new video moves few others.

    `group` is a regular expression; what it finds in a file's name (its first group in parentheses, if it has one) says
    the source, such as the film that a clip was cut from. Clips of one source are never divided: in an order drawn by
    `seed`, a source is taken for testing where one of its classes has no test video yet, or half of its clips are still
    wanted there, unless it holds the last training videos of a class. `groups` has the source of each sample.

    classes: the sorted names of the folders with training videos, or those in `classes`, in their order. The rest is
    as in `Listed`. Raises FileNotFoundError for a missing root or no video; ValueError for a class with test videos
    only, an unknown class, a bad `group`, and a name in which it finds nothing. Warns where names look like parts of a
    source (_g01_c02) and no group is given, and of classes without test videos.

        data = VideoFolder("my_videos", "test", group=r"_g(\\d+)")
        data.classes, data.samples[0]  # ["jump", "wave"], (Path("my_videos/jump/v_g03_c01.mp4"), 0)
    """

    def __init__(
        self,
        root: PathLike,
        subset: str = "train",
        classes: Classes = None,
        *,
        group: str | None = None,
        share: float = 0.3,
        seed: int = 0,
        quarantine: PathLike | None = None,
    ) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share of test videos: expected a number between 0 and 1, got {share}")
        root, source = self._open(root, subset, ("train", "test")), _source_of(group)
        parts = {key: _labelled(folder) for key, folder in _subset_folders(root).items()}
        parts = parts or _divided(root, _labelled(root), source, share, seed)
        chosen = _of_subset(parts, subset)
        known = sorted({name for name, _ in _of_subset(parts, "train") or chosen})
        if unknown := sorted({name for name, _ in chosen} - set(known)):
            raise ValueError(f"{str(root)!r}: expected training videos of each class, got none of {unknown}; add some")
        labels = self._choose(classes, known)
        videos = [(relative(entry, root), entry, labels[name]) for name, entry in chosen if name in labels]
        self._take(subset, sorted(videos, key=lambda video: video[2]), quarantine)
        if group is not None:
            self.groups = [source(path.relative_to(root).as_posix()) for path, _ in self.samples]


def _of_subset(parts: dict[str, list[Any]], subset: str) -> list[Any]:
    """The videos of "train" or "test": "val" is tested on where there is no "test", and not used elsewhere."""
    return parts.get(subset) or (parts.get("val", []) if subset == "test" else [])


def _subset_folders(root: Path) -> dict[str, Path]:
    """The folders train, val and test; a class may have such a name, but then has videos in it, and no folders."""
    return {key: root / name for name, key in SUBSET_OF.items() if folders_in(root / name)}


def _labelled(folder: Path) -> Labelled:
    videos = [(relative(entry, folder), entry) for entry in video_files(folder)]
    if stray := [name for name, _ in videos if "/" not in name]:
        warn(f"{str(folder)!r}: {len(stray)} videos in no class folder are left out, first {stray[:3]}; move them")
    return [(name.split("/")[0], entry) for name, entry in videos if "/" in name]


def _source_of(group: str | None) -> Callable[[str], str]:
    """A function that tells a video's source from its path; without a group every video is its own."""
    if group is None:
        return stem
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"group: expected a regular expression, got {group!r}: {error}; mend it") from None

    def source(path: str) -> str:
        found = pattern.search(PurePosixPath(path).name)
        if not (found and (name := found[1 if pattern.groups else 0])):
            raise ValueError(f"{path!r}: expected the source by the group {group!r}, found none; mend the group")
        return name

    return source


def _divided(
    root: Path, videos: Labelled, source: Callable[[str], str], share: float, seed: int
) -> dict[str, Labelled]:
    if source is stem and (grouped := [entry.name for _, entry in videos if _LOOKS_GROUPED.search(stem(entry.name))]):
        warn(
            f"{str(root)!r}: clips of one source may be in training and in testing, {len(grouped)} names look like it, "
            f"first {grouped[0]!r}; results would be too good: give a group (--group '_g[0-9]+')"
        )
    sources: dict[str, Labelled] = {}
    for name, entry in videos:
        sources.setdefault(source(relative(entry, root)), []).append((name, entry))
    sizes = Counter(name for name, _ in videos)
    goal = Counter({name: max(1, round(share * size)) for name, size in sizes.items()})
    parts: dict[str, Labelled] = {"train": [], "test": []}
    tested: Counter[str] = Counter()
    for key in sorted(sources, key=lambda key: sha256(f"{seed} {key}".encode(errors="surrogateescape")).digest()):
        counts = Counter(name for name, _ in sources[key])
        useful = (counts & (goal - tested)).total()
        wanted = 2 * useful >= counts.total() or not all(tested[name] for name in counts)
        spared = all(tested[name] + count < sizes[name] for name, count in counts.items())
        if wanted and spared:
            tested += counts
        parts["test" if wanted and spared else "train"] += sources[key]
    if lacking := sorted(set(sizes) - set(tested)):
        warn(f"{str(root)!r}: {len(lacking)} classes have videos of one source only, none for testing: {lacking[:3]}")
    return {key: sorted(part, key=lambda pair: pair[1].path) for key, part in parts.items()}


class VideoList(Listed):
    """One subset, "train" or "test", of the videos under `root` that lists name, each with its class.

    `lists` is a folder with train and test lists, train.txt or train.csv and so on, by default `root`; or a file: a CSV
    file whose column split tells the subsets, or a list without one, which is then the subset asked for. A list "val"
    is tested on where there is no "test".

    A list has lines "path label", with a blank, tab or comma between: the label is what follows the video's ending, or
    for names without one the last word. Or it is a CSV file with a header that has the columns video and label, in any
    order. Paths are relative to `root`; where the file is not there, one of the same stem is taken. Labels are names,
    or numbers from 0 on, which need `classes`.

    classes: the sorted names in the training list, or `classes`, names in their order (a set is sorted) or a text file
    with one a line. These are all: a video of another class is an error. The rest is as in `Listed`.

    Raises FileNotFoundError for a missing root or list, and where no video is left. ValueError tells file and line of
    what is no such line, a video that is listed twice, a path that leaves the root, an unknown label, a number without
    `classes`. Warns of missing videos, with file and line.

        data = VideoList("my_videos", "test", lists="my_lists")  # my_lists/train.txt, my_lists/test.txt
        data.classes, data.samples[0]  # ["jump", "wave"], (Path("my_videos/a.mp4"), 1)
    """

    def __init__(
        self,
        root: PathLike,
        subset: str = "train",
        classes: Classes = None,
        *,
        lists: PathLike | None = None,
        quarantine: PathLike | None = None,
    ) -> None:
        root = self._open(root, subset, ("train", "test"))
        parts = _read_parts(Path(lists or root), subset)
        chosen = _of_subset(parts, subset)
        if isinstance(classes, str | os.PathLike):
            classes = read_classes(Path(classes))
        known = classes or {row.label for row in _of_subset(parts, "train") or chosen}
        labels = self._choose(known, known)
        if classes is None and all(map(str.isdecimal, labels)) and chosen:
            raise ValueError(
                f"{chosen[0].where}: expected names of classes, got the number {chosen[0].label!r}; give the file with "
                "the names, one a line, from number 0 on: --classes FILE, classes="
            )
        if classes is not None:
            labels = labels | {str(label): label for label in labels.values() if str(label) not in labels}
        self._take(subset, _found(root, chosen, labels), quarantine)


class _Row(NamedTuple):
    """A line of a list: where it stands, the subset, the video's path, its label."""

    where: str
    subset: str
    video: PurePosixPath
    label: str


def _read_parts(place: Path, subset: str) -> dict[str, list[_Row]]:
    """The lines of all lists, by subset; `subset` is that of a file that does not tell it."""
    files = [(subset, place)]
    if place.is_dir():
        names = ((key, f"{name}{ending}") for name, key in SUBSET_OF.items() for ending in (".txt", ".csv"))
        files = [(key, place / name) for key, name in names if (place / name).is_file()]
        if len({key for key, _ in files}) < len(files):
            raise ValueError(f"{str(place)!r}: expected one list a subset, got {[f.name for _, f in files]}; give one")
    if not files or not files[0][1].is_file():
        raise FileNotFoundError(
            f"{str(place)!r}: expected a list, or a folder with train.txt and test.txt (or .csv), found none; check "
            "the path, or give another: --list, lists="
        )
    parts: dict[str, list[_Row]] = {}
    seen: dict[str, str] = {}
    for key, file in files:
        for row in _rows(file, key):
            if (first := seen.setdefault(stem(str(row.video)), row.where)) != row.where:
                raise ValueError(f"{row.where}: {str(row.video)!r} was listed before, {first}; remove one of the lines")
            parts.setdefault(row.subset, []).append(row)
    return parts


def _rows(file: Path, subset: str) -> Iterator[_Row]:
    lines = read_lines(file, "lines 'path label'")
    columns = [column.strip(' "') for column in lines[0][1].split(",")]
    if {"video", "label", "class"} & set(columns):
        split = ["split"] if "split" in columns else []
        for where, (video, label, *given) in read_csv(file, ["video", "label", *split]):
            for name in given:
                if (subset := SUBSET_OF.get(name)) is None:
                    raise ValueError(
                        f"{where}: expected one of the splits {', '.join(SUBSET_OF)}, got {name!r}; mend it"
                    )
            if not label:
                raise ValueError(f"{where}: expected a label, got none; mend the line")
            yield _Row(where, subset, inside(where, video), label)
        return
    for where, line in lines:
        video, label = _parsed(line)
        if not (video and label):
            raise ValueError(f"{where}: expected 'path label', got {line!r}; mend the line")
        yield _Row(where, subset, inside(where, video), label)


def _parsed(line: str) -> tuple[str, str]:
    """Path and label of a line."""
    if match := _LINE.fullmatch(line):
        return match[1], match[2]
    if "\t" in line:
        video, _, label = line.rpartition("\t")
    else:
        label = line.replace(",", " ").split(" ")[-1]
        video = line.removesuffix(label)
    return video.rstrip(" \t,"), label


def _found(root: Path, rows: list[_Row], labels: dict[str, int]) -> Iterator[Video]:
    missing: list[_Row] = []
    with finder(root) as videos_in:
        files = cache(lambda folder: videos_in(root / folder))
        for row in rows:
            if row.label not in labels:
                few = ", ".join(list(labels)[:20])
                raise ValueError(
                    f"{row.where}: expected a class, one of {few}, or its number, got {row.label!r}; mend the line, or "
                    "add the class to the training list or the file of classes"
                )
            entry = files(row.video.parent).get(stem(row.video.name))
            if entry is None or not is_file(entry):
                missing.append(row)
            yield str(row.video), entry, labels[row.label]
    if missing:
        warn(
            f"{missing[0].where}: {str(missing[0].video)!r} is not in {str(root)!r}; missing are {len(missing)} of "
            f"{len(rows)} listed videos; paths are relative to that folder"
        )
