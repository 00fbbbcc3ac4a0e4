"""Files that appear whole or not at all, and tables as files and text."""

import csv
import errno
import fcntl
import io
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


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file with column names in its first line, as texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table, whole or not at all; floats with six digits, nothing for None.

    The first row names the columns. Raises ValueError for a row with other columns; their order does not matter.

    >>> write_csv(Path("times.csv"), [{"engine": "cpu", "ms": 1.5}, {"engine": "cuda", "ms": None}])
    """
    text = _csv(_columns(rows), rows, head=True)
    with beside(path) as folder:
        whole = folder / path.name
        whole.write_text(text, encoding="utf-8", newline="")
        whole.replace(path)


def append_csv(path: Path, row: Row) -> None:
    """Add a row to a table, made where there is none, as `write_csv` would write it.

    Processes that do so at once take turns. Raises ValueError for a table of other columns, which stays as it is.
    """
    with path.open("ab+", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.seek(0)
        earlier = file.read()
        text = earlier.decode()
        columns = next(csv.reader(text.splitlines()), [])
        if columns and columns != list(row):
            raise ValueError(f"{path}: expected the columns {', '.join(row)}, found {', '.join(columns)}")
        torn = text and not text.endswith("\n")
        new = (("\n" if torn else "") + _csv(list(row), [row], head=not columns)).encode()
        if file.write(new) < len(new):  # a full disk takes a part
            file.truncate(len(earlier))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def text_table(rows: Sequence[Row]) -> str:
    """A table as aligned lines: columns with a text in them to the left, numbers (four digits) to the right.

    Raises ValueError for rows of different columns, as `write_csv` does.

    >>> text_table([{"engine": "cpu", "ms": 1.23456}])
    'engine     ms\\ncpu     1.235'
    """
    columns = [_aligned(name, [row[name] for row in rows]) for name in _columns(rows)]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]], aligned: bool = False) -> str:
    """A Markdown table of texts, with as many cells in each line as in the head.

    aligned: pad the cells, for readers of the source.
    """
    table = [head, *lines]
    if aligned:
        table = list(zip(*(_aligned(head, cells) for head, *cells in zip(*table, strict=True)), strict=True))
    rule = ["-" * len(cell) if aligned else "---" for cell in table[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [table[0], rule, *table[1:]])


def _columns(rows: Sequence[Row]) -> list[str]:
    """The columns of a table, by its first row."""
    columns = list(rows[0])
    for row in rows:
        if differing := sorted(row.keys() ^ columns):
            raise ValueError(f"expected rows with the columns {', '.join(columns)}, got a row that differs in "
                             f"{', '.join(differing)}; give all rows the same columns")  # fmt: skip
    return columns


def _csv(columns: list[str], rows: Sequence[Row], head: bool) -> str:
    """Rows as the text of a CSV file, floats with six digits, behind the names of the columns where `head`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if head:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def _aligned(name: str, values: Sequence[object]) -> list[str]:
    """A column's name and values as texts of one width."""
    cells = [name, *map(_cell, values)]
    width = max(map(len, cells))
    side = "<" if any(isinstance(value, str) for value in values) else ">"
    return [f"{cell:{side}{width}}" for cell in cells]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
