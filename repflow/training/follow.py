"""A training as a process of its own, followed by its metrics: for notebooks."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from repflow.files import read_csv
from repflow.training.folder import TrainingError

_INTERVAL = 0.5  # seconds


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
