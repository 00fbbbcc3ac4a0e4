"""What a run reports while it goes on: rows of metrics.csv, a progress bar, and times."""

import csv
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

from tqdm.auto import tqdm

from repflow.files import write_whole
from repflow.training.folder import RunFolder
from repflow.training.surroundings import peak_mib

COLUMNS = "step", "epoch", "loss", "rate", "seconds", "waiting", "peak_mib", "val_loss", "val_top1"
_LINE = re.compile(r"^(\d+),.*\n", re.MULTILINE)
_log = logging.getLogger(__name__)


class Metrics:
    """metrics.csv: a row is written, whole, as soon as it is known.

    Opening removes the rows after `step`, a torn line included: the run computes them again, and they are the same.
    """

    def __init__(self, folder: RunFolder, step: int) -> None:
        self._folder, path = folder, folder.path / "metrics.csv"
        with self._folder.telling("metrics.csv"):
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            kept = [line[0] for line in _LINE.finditer(text) if int(line[1]) <= step]
            write_whole(path, "".join([",".join(COLUMNS) + "\n", *kept]).encode())
            self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def add(self, row: dict[str, Any]) -> None:
        with self._folder.telling("metrics.csv"):
            self._writer.writerow(row)
            self._file.flush()

    def sync(self) -> None:
        """Return when all rows are on the disk, so that no checkpoint is ahead of them."""
        with self._folder.telling("metrics.csv"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # a row that could not be written has raised already
            self._file.close()


class Stopwatch:
    """The seconds of the steps since the last row of metrics, and of the whole run; validations are not counted."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self.all_seconds, self.all_waited = 0.0, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        begin = perf_counter()
        yield
        self.seconds += perf_counter() - begin

    def waiting_for(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, and count the time until each arrives as waiting."""
        begin = perf_counter()
        for item in items:
            self.waited += perf_counter() - begin
            yield item
            begin = perf_counter()

    def lap(self) -> dict[str, float]:
        """Mean seconds a step, and the share of the time spent waiting; starts anew."""
        row = {"seconds": round(self.seconds / self.steps, 4), "waiting": round(self.waited / self.seconds, 4)}
        self.all_seconds += self.seconds
        self.all_waited += self.waited
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        return row


class Record:
    """The first process's metrics.csv and progress bar; in the other processes nothing is written or shown."""

    def __init__(self, folder: RunFolder | None, step: int, steps: int, per_epoch: int, is_first: bool) -> None:
        self.watch, self._per_epoch = Stopwatch(), per_epoch
        self._metrics = Metrics(folder, step) if folder and is_first else None
        options = {} if is_first else {"disable": True}  # not always: TQDM_DISABLE would be overruled
        self._bar = tqdm(total=steps, initial=step, desc="training", unit="step", leave=False, **options)

    def advance(self) -> None:
        """Count a step."""
        self.watch.steps += 1
        self._bar.update()

    def add_steps(self, step: int, loss: float, rate: float) -> None:
        """Write the row of the steps since the last such row, up to `step`."""
        row = {"loss": loss, "rate": rate} | self.watch.lap() | {"peak_mib": peak_mib()}
        self._bar.set_postfix(loss=f"{loss:.3f}", waiting=f"{row['waiting']:.0%}", MiB=row["peak_mib"])
        self._add(step, row)

    def add_validation(self, step: int, seconds: float, loss: float, top1: float) -> None:
        self._add(step, {"seconds": round(seconds, 4), "val_loss": loss, "val_top1": top1})
        _log.info("step %d: validation loss %.4f, top-1 %.2f %%", step, loss, top1)

    def _add(self, step: int, row: dict[str, float]) -> None:
        if self._metrics:
            self._metrics.add({"step": step, "epoch": (step - 1) // self._per_epoch} | row)

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        if self._metrics:
            self._metrics.sync()

    def summarise(self) -> None:
        waiting = self.watch.all_waited / self.watch.all_seconds
        _log.info("%.0f %% of the time spent waiting for data; peak memory %d MiB", 100 * waiting, peak_mib())

    def close(self) -> None:
        self._bar.close()
        if self._metrics:
            self._metrics.close()
