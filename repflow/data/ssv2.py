"""Something-Something V2's official files.

Goyal et al., "The 'Something Something' Video Database for Learning and Evaluating Visual Common Sense", ICCV 2017.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from repflow.data.lists import Classes, Listed, PathLike, finder, read_json

_NAME = "something-something-v2"
_FILES = {"train": "train", "val": "validation"}


class SomethingSomething(Listed):
    """One subset of Something-Something V2, "train" or "val"; the labels of its test videos are not public.

    The files something-something-v2-labels.json, -train.json and -validation.json, or those of the later release,
    labels.json and so on, lie in `root` or `root`/labels. The videos <id>.webm lie in `root` or
    `root`/20bn-something-something-v2, and may have another of `lists.ENDINGS`. Classes tell left from right
    (`directed`), so clips are not mirrored.

    classes: the 174 templates without brackets, in the order of their numbers in labels.json, or those in the argument
    `classes`: names in their order (a set is sorted) or a text file with one a line. Videos of others are left out. The
    rest is as in `Listed`. Raises FileNotFoundError for a missing root or file, and where no video is left; ValueError,
    with file and entry, for what is not as in the official files, an id that occurs twice, or an unknown class.

        data = SomethingSomething("data/ssv2", "val")
        data.classes[0]  # "Approaching something with your camera"
    """

    directed = True  # a mirrored clip may have another class

    def __init__(
        self, root: PathLike, subset: str = "train", classes: Classes = None, *, quarantine: PathLike | None = None
    ) -> None:
        root = self._open(root, subset, _FILES)
        known = _classes(*_read(root, "labels"))
        labels = dict.fromkeys(known) | self._choose(classes, known)
        with finder(root) as videos_in:
            files = videos_in(root) | videos_in(root / f"20bn-{_NAME}")
        wanted = ((video, labels[name]) for video, name in _videos(*_read(root, _FILES[subset]), known))
        listed = ((video, files.get(video), label) for video, label in wanted if label is not None)
        self._take(subset, listed, quarantine)


def _read(root: Path, name: str) -> tuple[Path, Any]:
    """One of the official files, and what it holds."""
    places = [folder / f"{prefix}{name}.json" for folder in (root, root / "labels") for prefix in (f"{_NAME}-", "")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{str(root)!r}: expected {places[0].name} or {places[1].name} there or in labels/")
    return file, read_json(file)


def _classes(file: Path, numbers: Any) -> list[str]:
    """The names in labels.json, in the order of their numbers."""
    if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
        raise ValueError(
            f'{str(file)!r}: expected names with the numbers from 0 on, each once, as {{"Holding something": "0"}}; '
            "get the official file again"
        )
    return sorted(numbers, key=lambda name: int(numbers[name]))


def _videos(file: Path, entries: Any, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Id and class of each video."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{str(file)!r}: expected a list of videos, got {str(entries)[:80]!r}; get the official file")
    known, seen = set(known), set()
    for number, entry in enumerate(entries, start=1):
        where = f"{str(file)!r}, entry {number}"
        video, template = (str(entry.get(key)) for key in ("id", "template")) if isinstance(entry, dict) else ("", "")
        name = template.replace("[", "").replace("]", "")
        if not (video.isascii() and video.isdecimal()):
            raise ValueError(f"{where}: expected an id of digits and a template, got {str(entry)[:80]}; mend it")
        if name not in known:
            raise ValueError(f"{where}: expected a template of labels.json, got {template!r}; mend or remove the entry")
        if video in seen:
            raise ValueError(f"{where}: the id {video} was listed before; remove one of the entries")
        seen.add(video)
        yield video, name
