"""HMDB51's folder and split-file layout.

Kuehne et al., "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from repflow.arguments import warn
from repflow.data.lists import ENDINGS, Listed, official_classes, read_lines, scan

TAGS = {"train": 1, "test": 2, "unused": 0}
_COUNTS = {"train": 3570, "test": 1530}  # of all 51 classes, in each of the three folds


class HMDB51(Listed):
    """One subset of one fold: the videos <class>/<name>.avi under `root`, as the split files list them.

    The split files <class>_test_split<fold>.txt lie in `root` or in `root`/testTrainMulti_7030_splits. Their lines are
    "name.avi tag" with tag 1 for train, 2 for test and 0 for unused. Any set in this layout will do. Where name.avi is
    not there, a copy of the same stem that ends in .mp4, .mkv or .webm is taken. Class folders may be links.

    With `split_file`, that one list decides, and fold and subset say nothing: lines "video class", as lists of the 2019
    release's kind have them (what those look like is a guess, so much is taken: names with or without an ending or
    rgb_ in front, videos in `root`/<class> or all together in `root`).

    classes: sorted class names (only those named in the argument `classes`, where given); samples: by class, then in
    the order of the split file; expected, missing and quarantined as in Listed. Raises FileNotFoundError for a missing
    root or split file, and for missing videos unless `missing_ok`; ValueError for a bad line, an unknown class or a
    video that is a link out of the root. Warns where the split files of all 51 classes do not name the official number
    of videos.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        fold: int = 1,
        subset: str = "train",
        classes: Collection[str] | None = None,
        *,
        split_file: str | os.PathLike[str] | None = None,
        missing_ok: bool = False,
    ) -> None:
        if subset not in TAGS:
            raise ValueError(f"subset must be one of {', '.join(TAGS)}, got {subset!r}")
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{str(root)!r}: expected the data set's folder, found none; check the path")
        splits = _read_list(Path(split_file)) if split_file else _find_splits(root, fold)
        if unknown := sorted(set(classes or ()) - set(splits)):
            raise ValueError(f"{str(root)!r}: no class {', '.join(unknown)}; there are {', '.join(sorted(splits))}")
        self.classes = sorted(splits if classes is None else set(classes))
        chosen = {name: splits[name] for name in self.classes}
        self._take(root, _find_listed(root, chosen) if split_file else _find_videos(root, chosen, TAGS[subset]))
        if self.missing and not missing_ok:
            raise FileNotFoundError(
                f"{str(root)!r}: {len(self.missing)} of {self.expected} listed videos are missing, first "
                f"{self.missing[:3]}; unpack every class's archive into a folder of its name"
            )
        count = _COUNTS.get(subset, self.expected)
        if (
            len(self.classes) == 51
            and not split_file
            and self.expected != count
            and self.classes == official_classes("hmdb51")
        ):
            warn(
                f"{str(root)!r}: expected {count} videos in the split files of fold {fold}, {subset}, got "
                f"{self.expected}; results will not compare with others'; unpack the official split files again"
            )


def _find_splits(root: Path, fold: int) -> dict[str, Path]:
    """Split file by class."""
    folders, ending = (root, root / "testTrainMulti_7030_splits"), f"_test_split{fold}.txt"
    # [!.]: a class named ".." would leave the root, and "._wave" is what macOS puts beside "wave"
    splits = {file.name.removesuffix(ending): file for folder in folders for file in folder.glob(f"[!.]*{ending}")}
    if not splits:
        raise FileNotFoundError(f"{str(root)!r}: no *{ending} there or in {folders[1].name}; unpack the split files")
    return splits


def _find_videos(root: Path, splits: dict[str, Path], tag: int) -> Iterator[tuple[str, os.DirEntry[str] | None, int]]:
    for label, (name, split) in enumerate(splits.items()):
        files = {entry.name: entry for entry in scan(root / name) if entry.is_file()}
        for video, found in _read_split(split).items():
            if found == tag:
                copies = (video, *(Path(video).stem + ending for ending in ENDINGS))
                yield f"{name}/{video}", next((files[copy] for copy in copies if copy in files), None), label


def _read_list(path: Path) -> dict[str, list[str]]:
    """Stems of the videos by class, of a list with lines "video class"."""
    videos: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    known = official_classes("hmdb51")
    for number, line in read_lines(path):
        match line.rsplit(maxsplit=1):
            case [video, name] if not {"/", "\\", "\0"} & set(video) and name in known:
                stem = Path(video).stem if video.endswith(ENDINGS) else video
                if labels.setdefault(stem, name) != name:
                    raise ValueError(
                        f"{str(path)!r}, line {number}: expected one class a video, got {name!r} for {stem!r}, which "
                        f"had {labels[stem]!r} above; remove one of the lines"
                    )
                if stem not in videos.setdefault(name, []):
                    videos[name].append(stem)
            case _:
                raise ValueError(
                    f"{str(path)!r}, line {number}: expected 'video class' with a plain file name and a class of "
                    f"HMDB51, got {line!r}; mend the line"
                )
    return videos


def _find_listed(root: Path, videos: dict[str, list[str]]) -> Iterator[tuple[str, os.DirEntry[str] | None, int]]:
    flat = {entry.name: entry for entry in scan(root) if entry.is_file()}
    for label, (name, stems) in enumerate(videos.items()):
        files = flat | {entry.name: entry for entry in scan(root / name) if entry.is_file()}
        for stem in stems:
            copies = (f"{prefix}{stem.removeprefix('rgb_')}{ending}" for ending in ENDINGS for prefix in ("", "rgb_"))
            yield f"{name}/{stem}", next((files[copy] for copy in copies if copy in files), None), label


def _read_split(path: Path) -> dict[str, int]:
    """Tag by video. A line may be repeated, not contradicted."""
    tags: dict[str, int] = {}
    for number, line in read_lines(path):
        match line.rsplit(maxsplit=1):
            case [name, ("0" | "1" | "2") as tag] if not {"/", "\\", "\0"} & set(name) and name not in (".", ".."):
                if tags.setdefault(name, int(tag)) != int(tag):
                    raise ValueError(
                        f"{str(path)!r}, line {number}: expected one tag a video, got {tag} for {name!r}, which had "
                        f"{tags[name]} above; remove one of the lines"
                    )
            case _:
                raise ValueError(
                    f"{str(path)!r}, line {number}: expected 'name.avi tag' with a plain file name and "
                    f"tag 1 (train), 2 (test) or 0 (unused), got {line!r}; mend the line"
                )
    return tags
