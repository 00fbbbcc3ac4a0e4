"""A run's folder: config.json, metrics.csv, log.txt, best.pt and checkpoints/, whole at every moment."""

import fcntl
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from repflow.data import Clips
from repflow.files import read_csv, write_whole
from repflow.records import circumstances
from repflow.training.checkpoint import read_checkpoint

KEPT = 2  # newest checkpoints
_log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A training cannot begin or go on. The message gives the reason, what is safe, and what to do."""


class RunFolder:
    """The folder of one run. Only the process with `writes` writes; the others read.

    config: what decides about the run. Raises ValueError with the differences if the folder holds another run,
    TrainingError if another process is training there, and OSError if it cannot be written.
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
            for unfinished in (*self.path.glob("*.unfinished"), *self.checkpoints.glob("*.unfinished")):
                unfinished.unlink()  # a killed process was writing it
            if not file.exists() or self._is_unused():
                made = circumstances("lightning_fabric", "numba", "triton", "av")
                write_whole(file, json.dumps({"run": self.config, "made": made}, indent=2).encode())
        self._compare(json.loads(file.read_text(encoding="utf-8"))["run"])

    def _is_unused(self) -> bool:
        """Whether the folder's run ended without a row of metrics or a checkpoint."""
        metrics = self.path / "metrics.csv"
        rows = read_csv(metrics) if metrics.exists() else []
        return not rows and not any(self.checkpoints.iterdir())

    def _lock(self) -> None:
        """Keep a second process out until this one ends, in whatever way."""
        self._locked = (self.path / "lock").open("w")
        try:
            fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock: no worker inherits it
        except BlockingIOError:
            told = "another process is training there; wait for it, or name another folder"
            raise TrainingError(f"{self.path}: {told}") from None

    def _compare(self, config: Mapping[str, Any]) -> None:
        # A setting that is newer than the folder does not differ where it is off.
        old, new = _flat(config), _flat(self.config)
        differences = [
            f"{key}: {old.get(key, 'nothing')} there, {new.get(key, 'nothing')} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and (key in old or new[key])
        ]
        if differences:
            raise ValueError(
                f"{self.path}: holds a run of another configuration ({'; '.join(differences)}); name another folder, "
                "or ask for what is there"
            )

    def newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None. Damaged ones are kept under another name."""
        for file in sorted(self.checkpoints.glob("step-*.pt"), reverse=True):
            try:
                return read_checkpoint(file)
            except ValueError as error:
                _log.warning("passed over: %s", error)
                if self.writes:
                    file.rename(f"{file}.unreadable")
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and remove all but the two newest."""
        self._write(self.checkpoints / f"step-{state['step']:09}.pt", state)
        for old in sorted(self.checkpoints.glob("step-*.pt"))[:-KEPT]:
            old.unlink()

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Write best.pt."""
        self._write(self.path / "best.pt", state)

    def _write(self, file: Path, state: Mapping[str, Any]) -> None:
        content = io.BytesIO()
        torch.save(dict(state), content)  # not into the file: PyTorch would hide why that cannot be written
        with self.telling(file.name), content.getbuffer() as view:  # left in a traceback, it kills Python 3.12.1
            write_whole(file, view)

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """While the file `name` is written: add to an OSError what is safe, and what to do."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{name} cannot be written in {self.path} ({error.strerror}); {self.safe()}. Make room there, see to "
                "the permissions, and run the same again: it goes on from there. Or name another folder"
            ) from error

    def safe(self) -> str:
        """Which checkpoint is safe, as part of a sentence."""
        newest = max(self.checkpoints.glob("step-*.pt"), default=None)
        return f"the newest good checkpoint is {newest}" if newest else "there is no checkpoint yet"


def describe_clips(clips: Clips) -> dict[str, Any]:
    """The part of a run's config for its clips: the videos in their order, as a digest, and how clips are cut."""
    digest = hashlib.sha256()
    for path, label in clips.samples:
        place = os.path.relpath(path, clips.root) if clips.root else os.path.basename(path)
        digest.update(f"{place} {label}\n".encode(errors="surrogateescape"))
    names = "frames", "stride", "resize", "halved", "crop", "area", "flip", "jitter", "augment", "inverted", "seed"
    settings = {name: getattr(clips, name) for name in names}
    flow = clips.flow if clips.flow in (None, "tvl1") else "given"
    return {"videos": len(clips), "digest": digest.hexdigest()[:16], "flow": flow} | settings


def seconds_of(checkpoint: str | os.PathLike[str]) -> float:
    """The seconds of all steps and validations of a checkpoint's run; after a stop, of those that were kept.

    Raises FileNotFoundError if metrics.csv is not in the checkpoint's folder or the one above.

        >>> minutes = seconds_of("runs/motion/best.pt") / 60
    """
    files = [folder / "metrics.csv" for folder in Path(checkpoint).absolute().parents[:2]]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{checkpoint}: expected its run's metrics.csv in {files[0].parent}; leave it there")
    total, last = 0.0, 0
    for row in read_csv(file):
        steps = 1 if row["val_loss"] else int(row["step"]) - last  # a validation's own, or the mean of the steps
        total += steps * float(row["seconds"])
        last = int(row["step"])
    return total


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else sorted(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
