"""HMDB51's folder and split-file layout.

Kuehne et al., "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from repflow.data.lists import Classes, Listed, PathLike, Video, finder, official_classes, read_lines, stem

TAGS = {"train": 1, "test": 2, "unused": 0}
_COUNTS = {"train": 3570, "test": 1530}  # of all 51 classes, in each of the three folds


class HMDB51(Listed):
    """One subset of one fold: the videos <class>/<name>.avi under `root`, as the split files list them.

    The split files <class>_test_split<fold>.txt lie in `root` or in `root`/testTrainMulti_7030_splits. Their lines are
    "name.avi tag" with tag 1 for train, 2 for test and 0 for unused. Any set in this layout will do. Where name.avi is
    not there, a video of the same stem is taken, by the order of `lists.ENDINGS`. Folders and videos may be links.

    With `split_file`, that one list decides, and fold and subset say nothing. Its lines are "video class"; names may
    have an ending or none and rgb_ in front, and the videos lie in `root`/<class> or all together in `root`.

    classes: sorted class names, or those in the argument `classes`: names in their order (a set is sorted) or a text
    file with one a line; samples: by class, then in the order of the split file; expected, missing and quarantined as
    in Listed. `quarantine` is a file, or the folder that `data check` wrote into, in place of `root`/quarantine.txt.

    Raises FileNotFoundError for a missing root or split file, for missing videos unless `missing_ok`, and where no
    video is left; ValueError for a bad line, an unknown class, or a list that is empty, or one without a video for
    training or testing where that is asked for. Warns where the split files of all 51 classes do not name the official
    number of videos.
    """

    def __init__(
        self,
        root: PathLike,
        fold: int = 1,
        subset: str = "train",
        classes: Classes = None,
        *,
        split_file: PathLike | None = None,
        missing_ok: bool = False,
        quarantine: PathLike | None = None,
    ) -> None:
        root = self._open(root, subset, TAGS)
        if split_file:
            videos = _read_list(Path(split_file))
            self._choose(classes, sorted(videos))
            listed = _find_listed(root, {name: videos[name] for name in self.classes})
        else:
            splits = find_splits(root, fold)
            self._choose(classes, sorted(splits))
            listed = find_files(root, {name: _of_subset(splits[name], subset) for name in self.classes})
        remedy = None if missing_ok else "unpack every class's archive into a folder of its name"
        self._take(subset, listed, quarantine, remedy)
        if not split_file and subset in _COUNTS and self.classes == official_classes("hmdb51"):
            self._expect_official(_COUNTS[subset], f"the split files of fold {fold}, {subset}")


def find_splits(root: Path, fold: int) -> dict[str, Path]:
    """Split file by class. Raises FileNotFoundError where there is none."""
    folders, ending = (root, root / "testTrainMulti_7030_splits"), f"_test_split{fold}.txt"
    # [!.]: a class named ".." would leave the root, and "._wave" is what macOS puts beside "wave"
    splits = {file.name.removesuffix(ending): file for folder in folders for file in folder.glob(f"[!.]*{ending}")}
    if not splits:
        raise FileNotFoundError(f"{str(root)!r}: no *{ending} there or in {folders[1].name}; unpack the split files")
    return splits


def find_files(root: Path, videos: Mapping[str, Iterable[str]]) -> Iterator[Video]:
    """The files of the videos that are listed by class; `videos` has their file names."""
    with finder(root) as videos_in:
        for label, (name, listed) in enumerate(videos.items()):
            files = videos_in(root / name)
            for video in listed:
                yield f"{name}/{video}", files.get(stem(video)), label


def _read_list(path: Path) -> dict[str, list[str]]:
    """Stems of the videos by class, of a list with lines "video class"."""
    videos: dict[str, list[str]] = {}
    for name, label in _read_pairs(path, official_classes("hmdb51"), "video class", "a class of HMDB51").items():
        videos.setdefault(label, []).append(stem(name))
    return videos


def _find_listed(root: Path, videos: dict[str, list[str]]) -> Iterator[Video]:
    with finder(root) as videos_in:
        flat = videos_in(root)
        for label, (name, stems) in enumerate(videos.items()):
            files = flat | videos_in(root / name)
            for video in stems:
                plain = video.removeprefix("rgb_")
                yield f"{name}/{video}", files.get(plain) or files.get(f"rgb_{plain}"), label


def _of_subset(path: Path, subset: str) -> list[str]:
    tags = read_split(path)
    videos = [name for name, tag in tags.items() if tag == TAGS[subset]]
    if not videos and subset != "unused":
        raise ValueError(
            f"{str(path)!r}: expected videos with tag {TAGS[subset]} ({subset}), got none in {len(tags)} lines; get "
            "the official file, or ask for other classes"
        )
    return videos


def read_split(path: Path) -> dict[str, int]:
    """Tag by video, each stem once. A line may be repeated, not contradicted; ValueError for a bad line or none."""
    pairs = _read_pairs(path, ("0", "1", "2"), "name.avi tag", "tag 1 (train), 2 (test) or 0 (unused)")
    return {name: int(tag) for name, tag in pairs.items()}


def _read_pairs(path: Path, values: Collection[str], form: str, kind: str) -> dict[str, str]:
    """The value by the video's name, of lines "name value"; of names with the same stem, only the first is kept."""
    pairs: dict[str, str] = {}
    names: dict[str, str] = {}
    for where, line in read_lines(path, f"lines {form!r}"):
        name, value = ["", *line.rsplit(maxsplit=1)][-2:]
        if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name) or value not in values:
            raise ValueError(f"{where}: expected {form!r} with a plain file name and {kind}, got {line!r}; mend it")
        name = names.setdefault(stem(name), name)
        if pairs.setdefault(name, value) != value:
            raise ValueError(
                f"{where}: expected one {form.split()[1]} a video, got {value} for {name!r}, which had {pairs[name]} "
                "above; remove one of the lines"
            )
    return pairs
