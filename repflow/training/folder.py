"""A run's folder: config.json, metrics.csv, log.txt, best.pt and checkpoints/, so that no moment can spoil it."""

import csv
import fcntl
import io
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from repflow.files import Row, read_csv, write_whole
from repflow.models import build_model
from repflow.records import circumstances

COLUMNS = "step", "epoch", "loss", "rate", "seconds", "waiting", "peak_mib", "val_loss", "val_top1"
KEPT = 2  # newest checkpoints
_LINE = re.compile(r"^(\d+),.*\n", re.MULTILINE)
_CLASSIFIER = re.compile(r"(?:^|\.)classify\.")
_PARTS = {"step", "config", "model", "optimizer", "schedule", "precision", "losses", "best"}
_log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A training cannot begin or go on. The message says why, what is safe, and what to do."""


class RunFolder:
    """The folder of one run. `writes` is true in the one process that writes; others only read.

    config: what the run is. Where the folder holds another run's, ValueError lists the differences. Raises OSError for
    a folder that cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.config = json.loads(json.dumps(config, default=_plain))  # as it will be read
        self.checkpoints = self.path / "checkpoints"
        if writes:
            self._open()

    def _open(self) -> None:
        file = self.path / "config.json"
        with self.telling("config.json"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock()
            for torn in (*self.path.glob("*.unfinished"), *self.checkpoints.glob("*.unfinished")):
                torn.unlink()  # what a killed process was writing
            if not file.exists() or self._is_unused():
                made = circumstances("lightning", "numba", "triton", "av")
                write_whole(file, json.dumps({"run": self.config, "made": made}, indent=2).encode())
        self._compare(json.loads(file.read_text(encoding="utf-8"))["run"])

    def _is_unused(self) -> bool:
        """Whether the run that the folder was made for ended before anything came of it."""
        metrics = self.path / "metrics.csv"
        rows = read_csv(metrics) if metrics.exists() else []
        return not rows and not any(self.checkpoints.iterdir())

    def _lock(self) -> None:
        """Keep a second process out until this one ends, in whatever way."""
        self._locked = (self.path / "lock").open("w")
        try:
            fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock: no worker inherits it
        except BlockingIOError:
            raise TrainingError(
                f"{self.path}: another process is training there; wait for it, or name another folder"
            ) from None

    def _compare(self, there: Mapping[str, Any]) -> None:
        old, new = _flat(there), _flat(self.config)
        differences = [
            f"{key}: {old.get(key, 'nothing')} there, {new.get(key, 'nothing')} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if differences:
            raise ValueError(
                f"{self.path}: holds a run of another configuration ({'; '.join(differences)}); name another folder, "
                "or ask for what is there"
            )

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, None where there is none. Others are kept under another name."""
        for file in sorted(self.checkpoints.glob("step-*.pt"), reverse=True):
            try:
                return read_checkpoint(file)
            except ValueError as error:
                _log.warning("passed over: %s", error)
                if self.writes:
                    file.rename(f"{file}.unreadable")
        return None

    def save(self, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint; the two newest are kept."""
        file = self.checkpoints / f"step-{state['step']:09}.pt"
        self._write(file, state)
        for old in sorted(self.checkpoints.glob("step-*.pt"))[:-KEPT]:
            old.unlink()
        return file

    def save_best(self, state: Mapping[str, Any]) -> None:
        self._write(self.path / "best.pt", state)

    def _write(self, file: Path, state: Mapping[str, Any]) -> None:
        content = io.BytesIO()
        torch.save(dict(state), content)  # not into the file: PyTorch would hide why that cannot be written
        with self.telling(file.name), content.getbuffer() as view:  # left in a traceback, it kills Python 3.12.1
            write_whole(file, view)

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """While something is written: an OSError tells what is not lost, and the way out."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{what} cannot be written in {self.path} ({error.strerror}); {self.safe()}. Make room there, see to "
                "the permissions, and run the same again: it goes on from there. Or name another folder"
            ) from error

    def safe(self) -> str:
        """What is not lost, in words."""
        good = max(self.checkpoints.glob("step-*.pt"), default=None)
        return f"the newest good checkpoint is {good}" if good else "there is no checkpoint yet"


class Metrics:
    """metrics.csv: a row is written, whole, as soon as it is known.

    Opening cuts off what was written after `step`, a torn line included: it will be computed again, and be the same.
    """

    def __init__(self, folder: Path, step: int) -> None:
        file = folder / "metrics.csv"
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        kept = [line[0] for line in _LINE.finditer(text) if int(line[1]) <= step]
        write_whole(file, "".join([",".join(COLUMNS) + "\n", *kept]).encode())
        self._file = file.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")

    def add(self, row: Row) -> None:
        self._writer.writerow(row)
        self._file.flush()

    def sync(self) -> None:
        """Return when all rows are on the disk, so that no checkpoint is ahead of them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # a row that could not be written has been told of
            self._file.close()


def seconds_of(checkpoint: str | os.PathLike[str]) -> float:
    """The seconds that the steps and validations of a checkpoint's run took; after a stop, of what was kept.

    Raises FileNotFoundError for a checkpoint that does not lie in its run's folder, beside metrics.csv.
    """
    files = [folder / "metrics.csv" for folder in Path(checkpoint).absolute().parents[:2]]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{checkpoint}: expected its run's metrics.csv in {files[0].parent}; leave it where it was"
        )
    total, last = 0.0, 0
    for row in read_csv(file):
        steps = 1 if row["val_loss"] else int(row["step"]) - last  # a validation's own, or the mean of the steps
        total += steps * float(row["seconds"])
        last = int(row["step"])
    return total


def read_checkpoint(file: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of this package, on the CPU.

    step: steps done; config: the run's, as in config.json; model, optimizer, schedule and precision: their state dicts
    (best.pt has the model's alone); losses: of each step, float64; best: step, loss and top1 of the best validation.
    Raises FileNotFoundError, and ValueError for a file that is no such checkpoint.
    """
    try:
        state = torch.load(file, "cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: expected a checkpoint, found no file; check the path") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: cannot be read as a checkpoint ({error}); take another one") from error
    if not isinstance(state, dict) or not {"step", "config", "model"} <= set(state) <= _PARTS:
        raise ValueError(f"{file}: expected a checkpoint of `repflow train`, got something else; take another file")
    return state


def load_model(file: str | os.PathLike[str]) -> torch.nn.Module:
    """The model of a checkpoint, on the CPU, in eval mode. Raises as `read_checkpoint`."""
    return model_of(read_checkpoint(file))


def model_of(state: Mapping[str, Any]) -> torch.nn.Module:
    """The model of a checkpoint that was read."""
    config = state["config"]
    options = {name: value for name, value in config["options"].items() if name != "weights"}  # they are replaced
    model = build_model(config["model"], config["num_classes"], **options)
    model.load_state_dict(state["model"])
    return model.eval()


def load_weights(model: torch.nn.Module, file: str | os.PathLike[str]) -> None:
    """Take over everything but the classifier from a checkpoint. Raises ValueError for one of another model."""
    model.load_state_dict(model.state_dict() | body_for(model, file))


def body_for(model: torch.nn.Module, file: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Everything but the classifier from a checkpoint that fits the model. Raises ValueError for one of another."""
    state = read_checkpoint(file)
    own = model.state_dict()
    there, here = ({k: v for k, v in part.items() if not _CLASSIFIER.search(k)} for part in (state["model"], own))
    mismatches = [
        f"{key} {tuple(there[key].shape) if key in there else 'missing'} there, "
        f"{tuple(here[key].shape) if key in here else 'missing'} here"
        for key in sorted(there.keys() | here.keys())
        if key not in there or key not in here or there[key].shape != here[key].shape
    ]
    if mismatches:
        raise ValueError(
            f"{file}: is of {state['config']['model']} with {state['config']['options'] or 'no options'}, which does "
            f"not fit this model: {'; '.join(mismatches)}. Take that model with those options, or another checkpoint"
        )
    return there


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else sorted(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
