"""UCF101's folders and official lists.

Soomro et al., "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", CRCV-TR-12-01.
"""

import re
from pathlib import Path

from repflow.data.lists import Classes, Listed, PathLike, finder, folders_in, read_lines, stem

SPLITS = "ucfTrainTestlist"
_COUNTS = {"train": (9537, 9586, 9624), "test": (3783, 3734, 3696)}  # of all 101 classes, by fold
_GROUP = re.compile(r"_(g\d+)_c\d+$", re.IGNORECASE)


class UCF101(Listed):
    """One subset of one fold: the videos <class>/<name>.avi under `root` or `root`/UCF-101, as the lists name them.

    The lists classInd.txt ("1 ApplyEyeMakeup"), trainlist0<fold>.txt ("class/name.avi 1") and testlist0<fold>.txt
    ("class/name.avi") lie in `root`, in `root`/ucfTrainTestlist, or in the folder `lists`. Where name.avi is not there,
    a video of the same stem is taken, by the order of `lists.ENDINGS`. Case means nothing: the class HandstandPushups
    has files v_HandStandPushups_…, and copies of its folder are spelled both ways.

    classes: in the order of classInd.txt, or those in the argument `classes`: names in their order (a set is sorted) or
    a text file with one a line; samples: by class, then in the order of the list; groups: of each sample its class and
    the group in its name, such as "Lunges g08": clips of one group were cut from one video. expected, missing and
    quarantined as in Listed. `quarantine` is a file, or the folder that `data check` wrote into, in place of
    `root`/quarantine.txt.

    Raises FileNotFoundError for a missing root or list, for missing videos unless `missing_ok`, and where no video is
    left; ValueError for a bad line, an unknown class, or a list without a video of these classes. Warns where the lists
    of all 101 classes do not name the official number of videos.

        >>> test = UCF101("data/ucf101", fold=1, subset="test", classes=["Lunges", "JumpingJack"])
    """

    def __init__(
        self,
        root: PathLike,
        fold: int = 1,
        subset: str = "train",
        classes: Classes = None,
        *,
        lists: PathLike | None = None,
        missing_ok: bool = False,
        quarantine: PathLike | None = None,
    ) -> None:
        if fold not in (1, 2, 3):
            raise ValueError(f"fold: expected 1, 2 or 3, got {fold!r}")
        root = self._open(root, subset, _COUNTS)
        folder = _find_lists(root, lists)
        known = _read_classes(folder / "classInd.txt")
        self._choose(classes, known)
        listed = _read_list(folder / f"{subset}list0{fold}.txt", known, with_labels=subset == "train")
        videos = root / "UCF-101" if (root / "UCF-101").is_dir() else root
        folders = {entry.name.casefold(): entry for entry in folders_in(videos)}
        found = []
        with finder(root) as videos_in:
            for label, name in enumerate(self.classes):
                entries = videos_in(folders.get(name.casefold(), videos / name))
                files = {key.casefold(): entry for key, entry in entries.items()}
                found += [(f"{name}/{video}", files.get(stem(video).casefold()), label) for video in listed[name]]
        remedy = None if missing_ok else "unpack the official archive here, or ask for the classes that are here"
        self._take(subset, found, quarantine, remedy)
        names = ((self.classes[label], _GROUP.search(path.stem)) for path, label in self.samples)
        self.groups = [f"{name} {group[1].lower()}" if group else name for name, group in names]
        if self.classes == known and len(known) == 101:
            self._expect_official(_COUNTS[subset][fold - 1], f"the list of fold {fold}, {subset}, of {str(folder)!r}")


def _find_lists(root: Path, lists: PathLike | None) -> Path:
    folders = [Path(lists)] if lists else [root, root / SPLITS]
    for folder in folders:
        if (folder / "classInd.txt").is_file():
            return folder
    places = " or ".join(repr(str(folder)) for folder in folders)
    raise FileNotFoundError(f"expected the official lists, classInd.txt and others, in {places}; unpack them there")


def _read_classes(path: Path) -> list[str]:
    """Class names of lines "1 ApplyEyeMakeup", numbered from 1 in their order."""
    names: list[str] = []
    for where, line in read_lines(path, "lines '1 ApplyEyeMakeup'"):
        number, _, name = line.partition(" ")
        if number != str(len(names) + 1) or not name.isalnum() or name in names:
            raise ValueError(
                f"{where}: expected {len(names) + 1} and another class, got {line!r}; get the official file"
            )
        names.append(name)
    return names


def _read_list(path: Path, classes: list[str], *, with_labels: bool) -> dict[str, list[str]]:
    """File names by class, of lines "class/name.avi", in the training lists with the class's number behind them."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r}: expected a list of videos, found none; unpack the official lists")
    videos: dict[str, list[str]] = {name: [] for name in classes}
    seen = set()
    for where, line in read_lines(path):
        place, _, label = line.partition(" ") if with_labels else (line, "", "")
        name, _, video = place.partition("/")
        number = str(classes.index(name) + 1) if name in videos else None
        if not video or {"/", "\\", "\0"} & set(video) or number is None or (with_labels and label != number):
            form = "class/name.avi and the class's number in classInd.txt" if with_labels else "class/name.avi"
            raise ValueError(f"{where}: expected {form}, got {line!r}; get the official file")
        if place.casefold() in seen:
            raise ValueError(f"{where}: expected each video once, got {place!r} again; remove it")
        seen.add(place.casefold())
        videos[name].append(video)
    return videos
