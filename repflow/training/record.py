"""What a run reports while it goes on: rows of metrics.csv, a progress bar and times; and who follows it."""

import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from repflow.files import read_csv, write_whole
from repflow.training.batches import StepBatches
from repflow.training.folder import RunFolder, TrainingError
from repflow.training.surroundings import peak_mib

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = "step", "epoch", "loss", "rate", "seconds", "waiting", "peak_mib", "val_loss", "val_top1"
_INTERVAL = 0.5  # seconds
_LINE = re.compile(r"^(\d+),.*\n", re.MULTILINE)


class Record:
    """A run's metrics.csv, progress bar and stopwatch. Without `is_first` nothing is written or shown.

    Opening removes the rows after the step to go on from, a torn line included: the run computes them again. Raises
    TrainingError for a recipe with `tensorboard` where that package is missing.
    """

    def __init__(self, folder: RunFolder | None, batches: StepBatches, is_first: bool) -> None:
        self._folder, self._per_epoch = folder, batches.per_epoch
        writes = folder and is_first
        self._board = _open_board(folder, batches.first) if writes and batches.recipe.tensorboard else None
        self._file = _open(folder, batches.first) if writes else None
        options = {"desc": "training", "unit": "step", "leave": False}
        if not is_first:
            options["disable"] = True  # disable=False would overrule TQDM_DISABLE
        self._bar = tqdm(total=batches.steps, initial=batches.first, **options)
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0  # since the last row; without validations

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside as that of steps."""
        begin = perf_counter()
        yield
        self._seconds += perf_counter() - begin

    def waiting_for(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items; the time until each arrives counts as waiting."""
        begin = perf_counter()
        for item in items:
            self._waited += perf_counter() - begin
            yield item
            begin = perf_counter()

    def advance(self) -> None:
        """Count a step."""
        self._steps += 1
        self._bar.update()

    def add_steps(self, step: int, loss: float, rate: float) -> None:
        """Write the row of the steps up to `step`: their mean loss, the learning rate, times and memory."""
        share, memory = self._waited / self._seconds, peak_mib()
        self._bar.set_postfix(loss=f"{loss:.3f}", waiting=f"{share:.0%}", MiB=memory)
        times = {"seconds": round(self._seconds / self._steps, 4), "waiting": round(share, 4), "peak_mib": memory}
        self._add(step, {"loss": loss, "rate": rate} | times)
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def add_validation(self, step: int, seconds: float, loss: float, top1: float) -> None:
        """Write the row of a validation, top1 in percent."""
        self._add(step, {"seconds": round(seconds, 4), "val_loss": loss, "val_top1": top1})

    def _add(self, step: int, row: dict[str, float]) -> None:
        row = {"epoch": (step - 1) // self._per_epoch} | row
        if self._file:
            with self._folder.telling("metrics.csv"):
                csv.DictWriter(self._file, COLUMNS, lineterminator="\n").writerow({"step": step} | row)
                self._file.flush()
        if self._board:
            group = "validation" if "val_loss" in row else "steps"  # both have seconds
            for name, value in row.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def sync(self) -> None:
        """Return when all rows are on the disk, so that no checkpoint is ahead of them."""
        if self._file:
            with self._folder.telling("metrics.csv"):
                os.fsync(self._file.fileno())
        if self._board:
            self._board.flush()

    def close(self) -> None:
        self._bar.close()
        if self._board:
            self._board.close()
        if self._file:
            with suppress(OSError):  # a row that could not be written has raised already
                self._file.close()


def follow(*arguments: str) -> Iterator[dict[str, str]]:
    """Start `repflow train` with these arguments, --out among them; yield the rows of its metrics.csv as they come.

    For several devices, since a notebook's kernel cannot be one of the processes. Leaving the loop stops the training
    as ctrl-C does; the same call goes on with it. Raises TrainingError with the last line of a process that fails.

        >>> for row in follow("--data", "synthetic", "motion", "--model", "rgb_2d", "--out", "runs/a"):
        ...     loss = row["loss"]
    """
    metrics = Path(arguments[arguments.index("--out") + 1]) / "metrics.csv"
    command = [sys.executable, "-P", "-m", "repflow", "train", *arguments]
    with tempfile.TemporaryFile() as output:
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=quiet)
        try:
            shown, ended = 0, False
            while not ended:
                time.sleep(_INTERVAL)
                ended = process.poll() is not None  # before the file is read, so that its last rows are seen
                with suppress(FileNotFoundError):
                    rows = read_csv(metrics)
                    yield from rows[shown:]
                    shown = len(rows)
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise TrainingError(lines[-1] if lines else f"repflow train ended with code {process.returncode}")


def _open(folder: RunFolder, step: int) -> TextIOWrapper:
    path = folder.path / "metrics.csv"
    with folder.telling("metrics.csv"):
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = [line[0] for line in _LINE.finditer(text) if int(line[1]) <= step]
        write_whole(path, "".join([",".join(COLUMNS) + "\n", *kept]).encode())
        return path.open("a", encoding="utf-8", newline="")


def _open_board(folder: RunFolder, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds
    except ImportError as error:
        mend = "pip install 'repflow[tensorboard]', or drop this setting"
        raise TrainingError(f"tensorboard: cannot be imported ({error}): {mend}") from error
    return SummaryWriter(folder.path, purge_step=step + 1)
