"""HMDB51's folder and split-file layout.

Kuehne et al., "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

TAGS = {"train": 1, "test": 2, "unused": 0}


class HMDB51:
    """One subset of one fold: the videos <class>/<name>.avi under `root`, as the split files list them.

    The split files <class>_test_split<fold>.txt lie in `root` or in `root`/testTrainMulti_7030_splits. Their lines are
    "name.avi tag" with tag 1 for train, 2 for test and 0 for unused. Any set in this layout will do.

    classes: sorted class names (only those named in the argument `classes`, where given), a label being an index into
    them; samples: (path, label), by class, then in the order of the split file. Raises FileNotFoundError for a missing
    root, split file or video, ValueError for a bad line or an unknown class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        fold: int = 1,
        subset: str = "train",
        classes: Collection[str] | None = None,
    ) -> None:
        if subset not in TAGS:
            raise ValueError(f"subset must be one of {', '.join(TAGS)}, got {subset!r}")
        root, ending = Path(root), f"_test_split{fold}.txt"
        if not root.is_dir():
            raise FileNotFoundError(f"{str(root)!r}: expected the data set's folder, found none; check the path")
        folders = (root, root / "testTrainMulti_7030_splits")
        # [!.]: a class named ".." would leave the root, and "._wave" is what macOS puts beside "wave"
        splits = {file.name.removesuffix(ending): file for folder in folders for file in folder.glob(f"[!.]*{ending}")}
        if not splits:
            raise FileNotFoundError(
                f"{str(root)!r}: no *{ending} there or in {folders[1].name}; unpack the split files"
            )
        if unknown := sorted(set(classes or ()) - set(splits)):
            raise ValueError(f"{str(root)!r}: no class {', '.join(unknown)}; there are {', '.join(sorted(splits))}")
        self.classes: list[str] = sorted(splits if classes is None else classes)
        self.samples: list[tuple[Path, int]] = [
            (root / name / video, label)
            for label, name in enumerate(self.classes)
            for video, tag in _read_split(splits[name])
            if tag == TAGS[subset]
        ]
        missing = [str(path) for path, _ in self.samples if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{str(root)!r}: {len(missing)} of {len(self.samples)} listed videos are missing, first "
                f"{missing[:3]}; unpack every class's archive into a folder of its name"
            )

    def __len__(self) -> int:
        return len(self.samples)


def _read_split(path: Path) -> Iterator[tuple[str, int]]:
    # surrogateescape: a name in any encoding still meets its file; utf-8-sig: editors leave a byte-order mark
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match line.strip().rsplit(maxsplit=1):
            case [name, ("0" | "1" | "2") as tag] if not {"/", "\\", "\0"} & set(name) and name not in (".", ".."):
                yield name, int(tag)
            case _:
                raise ValueError(
                    f"{str(path)!r}, line {number}: expected 'name.avi tag' with a plain file name and "
                    f"tag 1 (train), 2 (test) or 0 (unused), got {line.strip()!r}; mend the line"
                )
