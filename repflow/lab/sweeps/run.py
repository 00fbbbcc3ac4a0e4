"""Running sweeps: a folder a point, finished points skipped, failed ones retried, nothing left running.

Hydra, submitit's local executor, Ray Tune, Optuna, joblib and Snakemake were compared: none of them checks a typed grid
before the first point, resumes, retries, ends all children and shares the GPUs.
"""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from tqdm.auto import tqdm

from repflow.files import beside, write_whole
from repflow.interrupts import one_interrupt
from repflow.lab.parameters import UsageError
from repflow.lab.sweeps.grid import Point, Sweep
from repflow.records import environment

TRIES = 2
_RESULT = "result.json"
_GRACE = 20.0  # seconds for a stopped process to clean up
_REPFLOW = [sys.executable, "-P", "-m", "repflow"]


class Executor(Protocol):
    """What runs points: `Processes`, or submitit's executor. Its jobs have the methods of a future."""

    def submit(self, function: Callable[..., None], point: Point, folder: Path) -> "Future[None]": ...


def run_sweep(sweep: Sweep, out: Path, executor: Executor) -> dict[str, str]:
    """Run the points that `out` has no result of, each in a folder of its name; return why points failed, by name.

    A point that fails is tried once more. After ctrl-C, SIGTERM or SIGHUP nothing is left running and KeyboardInterrupt
    is raised; a later call goes on with what is missing. Raises OSError, before anything starts, if `out` cannot be
    written.

        >>> run_sweep(read_sweep(Path("notebooks/sweeps/where.toml")), Path("runs/where"), Processes(jobs=2))
        {}
    """
    _check_folder(out)

    def submit(point: Point) -> "Future[None]":
        return executor.submit(execute, point, (out / point.name).absolute())

    missing = [point for point in sweep.points if read_result(out, point) is None]
    done, failed = len(sweep.points) - len(missing), {}
    running: list[tuple[Future[None], Point, int]] = []
    with one_interrupt(), tqdm(total=len(sweep.points), initial=done, desc=sweep.name, unit="point") as bar:
        try:
            for point in missing:
                running.append((submit(point), point, 1))
            while running:
                time.sleep(0.2)
                ended = [entry for entry in running if entry[0].done()]
                running = [entry for entry in running if entry not in ended]
                for job, point, tries in ended:
                    error = job.exception()
                    if error is not None and tries < TRIES:
                        running.append((submit(point), point, tries + 1))
                        continue
                    if error is not None:
                        failed[point.name] = textwrap.shorten(str(error), 400)
                    bar.update()
        finally:
            for job, _, _ in running:
                job.cancel()
            if isinstance(executor, Processes):
                executor.stop()
    return failed


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with beside(out / "sweep"):
            pass
    except OSError as error:
        raise OSError(f"no results can be written to {out} ({error.strerror}); name another folder") from None


def execute(point: Point, folder: Path, call: Callable[..., int] = subprocess.call) -> None:
    """Run a point's commands; their output goes to log.txt in its folder, then the result to result.json, whole.

    Raises RuntimeError for a command that fails, a result that is missing, or a number in it that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, clock = datetime.now().astimezone(), time.perf_counter()
    with (folder / "log.txt").open("ab") as log:
        for command in point.commands:
            words = [word.replace("{out}", str(folder)) for word in command]
            words = [*_REPFLOW, *words[1:]] if words[0] == "repflow" else words
            if code := call(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT):
                raise RuntimeError(f"{_last_line(folder)} (code {code} of {shlex.join(words[1:])})")
    record = {
        "parameters": point.values,
        "metrics": _metrics(folder, point.metrics),
        "seconds": round(time.perf_counter() - clock, 1),
        "started": started.isoformat(timespec="seconds"),
        "environment": environment(),
    }
    write_whole(folder / _RESULT, f"{json.dumps(record, indent=2)}\n".encode())


def read_result(out: Path, point: Point) -> dict[str, Any] | None:
    """Return the record of a finished point, or None."""
    try:
        record = json.loads((out / point.name / _RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record["parameters"] == point.values else None


class Processes(ThreadPoolExecutor):
    """Points as processes of this machine: `jobs` at a time, one on each GPU in turn, or sharing the CPU's cores."""

    def __init__(self, jobs: int | None = None) -> None:
        devices = _devices()
        jobs = jobs or max(1, len(devices))
        super().__init__(jobs)
        # As many threads in all as there are cores, unless the environment says otherwise; no bars in the logs.
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        self._free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for device in islice(cycle(devices or [None]), jobs):
            chosen = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
            self._free.put({"TQDM_DISABLE": "1", **threads, **os.environ, **chosen})
        self._lock, self._stopped, self._running = threading.Lock(), False, set[subprocess.Popen[bytes]]()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        return super().submit(function, *arguments, call=self._call, **options)

    def stop(self) -> None:
        """Ask what runs to end, wait 20 seconds at most, and kill the rest with its process groups."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        self.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        until = time.monotonic() + _GRACE
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            _kill_group(process)
        self.shutdown()

    def _call(self, words: list[str], **options: Any) -> int:
        variables = self._free.get()
        with self._lock:
            if self._stopped:
                raise RuntimeError("stopped")
            # A session of its own: ctrl-C in the terminal reaches only this process.
            process = subprocess.Popen(words, env=variables, start_new_session=True, **options)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            _kill_group(process)  # its children that are still there
            self._running.discard(process)
            self._free.put(variables)


def slurm(folder: Path, options: dict[str, Any]) -> Executor:
    """Return submitit's executor of points as SLURM jobs; all machines must share the folder.

    Raises UsageError without submitit or SLURM, and for options that submitit does not know.
    """
    try:
        import submitit
    except ImportError:
        raise UsageError("--slurm needs submitit: pip install -e '.[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm")  # else submitit may run all points at once, here
        executor.update_parameters(**options)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UsageError(f"--slurm: {error}") from None
    return executor


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _devices() -> list[str]:
    """Return the GPUs that processes may be given, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in chosen.split(",")][:count] if chosen else [str(i) for i in range(count)]


def _metrics(folder: Path, pattern: str) -> dict[str, float]:
    """Return all numbers of the newest file that fits, entries of entries as `accuracy.top1`."""
    paths = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise RuntimeError(f"expected the point's results in {folder / pattern}, found no such file")
    result = json.loads(paths[-1].read_text(encoding="utf-8"))
    numbers = _flat(result["metrics"] | {"headline": result["headline"]} if "headline" in result else result)
    if bad := [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]:
        raise RuntimeError(f"expected finite numbers, got {', '.join(bad)}")
    return numbers


def _flat(entries: object, prefix: str = "") -> dict[str, float]:
    if isinstance(entries, dict):
        parts = (_flat(entry, f"{prefix}.{name}" if prefix else name) for name, entry in entries.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: entries} if type(entries) in (int, float) else {}


def _last_line(folder: Path) -> str:
    lines = re.split(r"[\r\n]+", (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip())
    return lines[-1] or "it said nothing"
