"""Running sweeps: a folder a point, finished points skipped, failed ones retried, nothing left running."""

import json
import math
import os
import re
import shlex
import subprocess
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from repflow.files import Row, beside, write_csv, write_whole
from repflow.lab.parameters import UsageError
from repflow.lab.runner import TOKEN, end_all, one_interrupt
from repflow.lab.sweeps.grid import Point, Sweep
from repflow.records import environment

RESULT = "result.json"
TRIES = 2
_GRACE = 20.0  # seconds for a stopped process to clean up behind it

Call = Callable[..., int]  # as subprocess.call


class Job(Protocol):
    """What becomes of a point: a future, or submitit's job."""

    def done(self) -> bool: ...

    def exception(self) -> BaseException | None: ...


class Workers(Protocol):
    """Where points run."""

    def submit(self, point: Point, folder: Path) -> Job: ...

    def stop(self) -> None: ...


def run_sweep(sweep: Sweep, out: Path, workers: Workers) -> dict[str, str]:
    """Run the points that `out` has no result of, each in a folder of its name; return why points failed, by name.

    A point that fails is tried once more. After ctrl-C, SIGTERM or SIGHUP nothing is left running and KeyboardInterrupt
    is raised; a later call goes on with what is missing. Raises OSError, before anything starts, if `out` cannot be
    written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with beside(out / "sweep"):
            pass
    except OSError as error:
        raise OSError(f"no results can be written to {out} ({error.strerror}); name another folder") from None
    missing = [point for point in sweep.points if read_result(out, point) is None]
    done, failed = len(sweep.points) - len(missing), {}
    with one_interrupt(), tqdm(total=len(sweep.points), initial=done, desc=sweep.name, unit="point") as bar:
        try:
            running = [(workers.submit(point, out / point.name), point, 1) for point in missing]
            while running:
                time.sleep(0.2)
                ended = [entry for entry in running if entry[0].done()]
                running = [entry for entry in running if entry not in ended]
                for job, point, tries in ended:
                    error = job.exception()
                    if error is not None and tries < TRIES:
                        running.append((workers.submit(point, out / point.name), point, tries + 1))
                        continue
                    if error is not None:
                        failed[point.name] = textwrap.shorten(str(error), 400)
                    bar.update()
        finally:
            workers.stop()
    return failed


def execute(point: Point, folder: Path, call: Call = subprocess.call) -> None:
    """Run a point's commands; what they say goes to log.txt in its folder, and then the result to result.json, whole.

    Raises RuntimeError for a command that fails, a result that is missing, or a number in it that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, clock = datetime.now().astimezone(), time.perf_counter()
    with (folder / "log.txt").open("ab") as log:
        for command in point.commands:
            words = [word.replace("{out}", str(folder)) for word in command]
            if code := call(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT):
                raise RuntimeError(f"{_last_line(folder)} (code {code} of {shlex.join(words[1:])})")
    record = {
        "parameters": point.values,
        "metrics": _metrics(folder, point.metrics),
        "seconds": round(time.perf_counter() - clock, 1),
        "started": started.isoformat(timespec="seconds"),
        "environment": environment(),
    }
    write_whole(folder / RESULT, f"{json.dumps(record, indent=2)}\n".encode())


def read_result(out: Path, point: Point) -> dict[str, Any] | None:
    """The record of a finished point, or None."""
    try:
        record = json.loads((out / point.name / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record["parameters"] == point.values else None


class Processes:
    """Points as processes of this machine: `jobs` at a time, one on each GPU in turn, or sharing the CPU's cores."""

    def __init__(self, jobs: int | None = None) -> None:
        devices = _devices()
        jobs = jobs or max(1, len(devices))
        self._free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for device in islice(cycle(devices or [None]), jobs):
            self._free.put({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        # As many threads in all as there are cores, unless somebody has chosen; and no bars in the logs.
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        self._shared = {"TQDM_DISABLE": "1", **threads}
        self._token = uuid.uuid4().hex
        self._threads = ThreadPoolExecutor(jobs)
        self._lock, self._stopped, self._running = threading.Lock(), False, set[subprocess.Popen[bytes]]()

    def submit(self, point: Point, folder: Path) -> Future[None]:
        return self._threads.submit(self._execute, point, folder)

    def stop(self) -> None:
        """End what runs: it is asked to, and killed where it does not within 20 seconds, with all that it started."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        until = time.monotonic() + _GRACE
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        end_all(self._token)
        self._threads.shutdown()

    def _execute(self, point: Point, folder: Path) -> None:
        variables = self._free.get()

        def call(words: list[str], **options: Any) -> int:
            with self._lock:
                if self._stopped:
                    raise RuntimeError("stopped")
                # A session of its own: ctrl-C in the terminal comes to us alone.
                environ = {**self._shared, **os.environ, **variables, TOKEN: self._token}
                process = subprocess.Popen(words, env=environ, start_new_session=True, **options)
                self._running.add(process)
            try:
                return process.wait()
            finally:
                self._running.discard(process)

        try:
            execute(point, folder, call)
        finally:
            self._free.put(variables)


class Slurm:
    """Points as jobs of a SLURM cluster, through submitit; the folder must be one that all machines share."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError("--slurm needs submitit: pip install -e '.[slurm]'") from None
        try:
            self._executor = submitit.AutoExecutor(folder, cluster="slurm")  # without it: all points at once, here
            self._executor.update_parameters(**options)
        except (RuntimeError, NameError, TypeError, ValueError) as error:  # no SLURM here, or options that it lacks
            raise UsageError(f"--slurm: {error}") from None
        self._jobs: list[Any] = []

    def submit(self, point: Point, folder: Path) -> Job:
        self._jobs.append(self._executor.submit(execute, point, folder.absolute()))
        return self._jobs[-1]

    def stop(self) -> None:
        """Cancel what waits or runs."""
        for job in self._jobs:
            if not job.done():
                job.cancel()


def rows_of(sweep: Sweep, out: Path) -> list[Row]:
    """A row a finished point: parameters, metrics (None where it has no such one), seconds, machine, versions, commit.

    A metric with a parameter's name gets `measured_` before it. Raises UsageError for a metric that the sweep asks for
    and no point has.
    """
    found = [(point, record) for point in sweep.points if (record := read_result(out, point)) is not None]
    names = list(dict.fromkeys(name for _, record in found for name in record["metrics"]))
    if found and (unknown := [name for name in sweep.metrics if name not in names]):
        raise UsageError(f"metrics: no point has {unknown[0]!r}; there are: {', '.join(names) or 'none'}")
    parameters = dict.fromkeys(name for point, _ in found for name in point.values)
    return [
        {name: point.values.get(name) for name in parameters}
        | {f"measured_{name}" if name in parameters else name: record["metrics"].get(name) for name in names}
        | {name: record[name] for name in ("seconds", "started")}
        | record["environment"]
        for point, record in found
    ]


def summary(sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """A row for each combination of what varies: the mean of every metric over seeds, and smallest to largest."""
    table = []
    for chosen in _combinations(rows, sweep.axes):
        line: Row = dict(zip(sweep.axes, map(_label, chosen), strict=True))
        for metric in sweep.metrics:
            values = _values(rows, dict(zip(sweep.axes, chosen, strict=True)), metric)
            line[metric] = f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})" if len(values) else "–"
        table.append(line)
    return table


def draw(sweep: Sweep, rows: Sequence[Row]) -> Figure:
    """Each metric against the first axis: mean over seeds, with a bar from the smallest to the largest.

    A line for each combination of the other axes; accuracies from 0 to 100 % with a dashed line at chance. Question
    and hypothesis stand above.
    """
    from repflow.figures import COLOURS  # reads and writes video, which a sweep need not

    first, *others = sweep.axes
    places = list(dict.fromkeys(row[first] for row in rows))
    numbers = all(type(place) in (int, float) for place in places)
    figure = Figure(figsize=(4.2 * len(sweep.metrics) + 1.2, 3.9), layout="constrained")
    panels = figure.subplots(1, len(sweep.metrics), squeeze=False)[0]
    for panel, metric in zip(panels, sweep.metrics, strict=True):
        combinations = _combinations(rows, others)
        for k, (chosen, colour) in enumerate(zip(combinations, cycle(COLOURS), strict=False)):
            which = dict(zip(others, chosen, strict=True))
            each = [(i, _values(rows, which | {first: place}, metric)) for i, place in enumerate(places)]
            each = [(i, values) for i, values in each if len(values)]
            beside_each_other = 0.08 * (k - (len(combinations) - 1) / 2)
            x = [places[i] if numbers else i + beside_each_other for i, _ in each]
            y = np.array([values.mean() for _, values in each])
            reach = [y - [v.min() for _, v in each], [v.max() for _, v in each] - y]
            label = ", ".join(f"{name} {_label(value)}" for name, value in which.items() if value is not None)
            panel.errorbar(x, y, reach, fmt="o-" if numbers else "o", capsize=3, color=colour, label=label)
        if numbers:
            panel.set_xticks(places)
        else:
            words = [textwrap.fill(_label(place).replace(",", ", "), 16) for place in places]
            panel.set_xticks(range(len(places)), words)
            panel.set_xlim(-0.5, len(places) - 0.5)
        panel.set(xlabel=first, ylabel=metric)
        if metric in sweep.chance:
            panel.axhline(sweep.chance[metric], color="grey", linestyle="--", label="chance")
            panel.set(ylabel=f"{metric} (%)", ylim=(0, 103))
        panel.grid(alpha=0.3)
    if others or sweep.chance:
        panels[0].legend(fontsize="small")
    said = (sweep.question, f"Hypothesis: {sweep.hypothesis}")
    figure.suptitle("\n".join(textwrap.fill(text, 60 * len(panels)) for text in said), fontsize="small")
    return figure


def write_outcome(sweep: Sweep, out: Path) -> list[Row]:
    """Write the finished points' table and figure, `out`/<sweep>.csv and .png, and return `rows_of` them."""
    rows = rows_of(sweep, out)
    if rows:
        write_csv(out / f"{sweep.name}.csv", rows)
    if rows and sweep.metrics:
        with beside(out / f"{sweep.name}.png") as hidden:
            draw(sweep, rows).savefig(hidden / "whole.png", dpi=100)
            (hidden / "whole.png").replace(out / f"{sweep.name}.png")
    return rows


def _devices() -> list[str]:
    """The GPUs that processes may be given, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in chosen.split(",")][:count] if chosen else [str(i) for i in range(count)]


def _metrics(folder: Path, pattern: str) -> dict[str, float]:
    """All numbers of the newest file that fits, entries of entries as `accuracy.top1`."""
    paths = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise RuntimeError(f"expected the point's results in {folder / pattern}, found no such file")
    found = json.loads(paths[-1].read_text(encoding="utf-8"))
    numbers = _flat(found["metrics"] | {"headline": found["headline"]} if "headline" in found else found)
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


def _combinations(rows: Sequence[Row], names: Collection[str]) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def _values(rows: Sequence[Row], chosen: dict[str, Any], metric: str) -> np.ndarray:
    """The metric in all rows with these values: of every seed, for a combination of all axes."""
    column = metric if f"measured_{metric}" not in rows[0] else f"measured_{metric}"
    fitting = (row for row in rows if all(row[name] == value for name, value in chosen.items()))
    return np.array([row[column] for row in fitting if row[column] is not None], float)


def _label(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else str(value) or "none"
