"""Files that appear whole or not at all, and tables as files and text."""

import csv
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # a line of a table: text, number, or None where there is nothing to say


@contextmanager
def beside(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden folder for what is not finished, gone afterwards.

    It lies on the file system of `target`, so that what is finished can be renamed to it in one step.
    """
    target = Path(target).absolute()
    # The name is known before the folder is there: `tempfile` would leave one behind where a signal comes in between.
    folder = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(file: Path, content: bytes | memoryview) -> None:
    """Write a file so that it has either its old content or all of the new, at any moment and after a power cut.

    The unfinished one lies in the same folder: renaming is a single step within one file system alone.
    """
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)  # on a full disk it takes the room that is needed
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def results_folder() -> Path:
    """The folder with the paper's table, and ours: the installed package's, or the checkout's."""
    package = Path(__file__).parent
    folders = (package / "results", package.parent / "results")
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file with column names in its first line, as texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same columns, whole or not at all; floats with six digits, nothing for None."""
    with beside(path) as folder:
        whole = folder / path.name
        with whole.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows)
        whole.replace(path)


def text_table(rows: Sequence[Row]) -> str:
    """Rows of the same columns as aligned lines: texts to the left, numbers (four digits) to the right."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if isinstance(value, str) else ">" for value in rows[0].values()]
    columns = list(zip(sides, widths, strict=True))
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(line, columns, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
