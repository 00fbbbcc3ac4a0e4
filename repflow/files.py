"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def beside(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden folder for what is not finished, gone afterwards.

    It lies on the file system of `target`, so that what is finished can be renamed to it in one step.
    """
    target = Path(target).absolute()
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        yield Path(folder)
