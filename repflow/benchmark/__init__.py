"""Timing, and the machine that did it; the paper's table to hold times against."""

import ctypes
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Collection, Hashable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from repflow import __version__
from repflow.files import Row, read_csv, results_folder

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # in glibc's malloc.h
Key = TypeVar("Key", bound=Hashable)


def time_in_turn(tasks: Mapping[Key, Callable[[], object]], repeats: int = 5, seed: int = 0) -> dict[Key, np.ndarray]:
    """Seconds of each task, (repeats,) float64, synchronised with the GPU where there is one.

    Every task runs once uncounted, then `repeats` rounds run all of them in random order, so that a machine that slows
    down slows all alike. Compare medians and ratios of one call; single times of a shared machine mean little.
    """
    _keep_freed_memory()
    order = random.Random(seed)
    seconds: dict[Key, list[float]] = {name: [] for name in tasks}
    for task in tqdm(tasks.values(), desc="warming up", leave=False):
        _seconds(task)
    for _ in tqdm(range(repeats), desc="timing", leave=False):
        for name in order.sample(list(tasks), len(tasks)):
            seconds[name].append(_seconds(tasks[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def paper_table() -> dict[str, dict[str, str]]:
    """The paper's final table by method, as results/paper.csv has it: texts, empty where the paper has no figure."""
    return {row["method"]: row for row in read_csv(results_folder() / "paper.csv")}


def environment() -> dict[str, Any]:
    """Return what a result file says about where it was made: versions, commit, processor, GPU, platform."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "repflow": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


def circumstances(*modules: str) -> Row:
    """What a timing's file says beside its numbers: `environment`, the GPU's driver, threads, time, and the versions of
    the named modules that have been loaded."""
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    machine = {"driver": driver(), "threads": torch.get_num_threads()}
    return environment() | machine | versions | {"date": now}


def driver() -> str | None:
    """The version of NVIDIA's driver, None where no GPU answers."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def statistics(times: np.ndarray, unit: str) -> Row:
    """Median, interquartile range and minimum, as columns named after the unit."""
    low, median, high = np.percentile(times, [25, 50, 75])
    return {f"median_{unit}": median, f"iqr_{unit}": high - low, f"min_{unit}": times.min()}


def read_timings(path: Path, numbers: Collection[str]) -> list[Row]:
    """The rows of a file of timings: the named columns as float, None where one is empty; all others as text."""
    return [
        {name: text if name not in numbers else float(text) if text else None for name, text in row.items()}
        for row in read_csv(path)
    ]


def _keep_freed_memory() -> None:
    """Let this process keep what memory it frees, as PyTorch does on a GPU, where the C library is glibc.

    Else large tensors are fetched anew, page by page: half of a network's time, or much less of it, by what the process
    did before.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _seconds(task: Callable[[], object]) -> float:
    _synchronise()
    start = perf_counter()
    task()
    _synchronise()
    return perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _commit() -> str | None:
    """Return the checkout's commit, with `-dirty` after it when files differ; None where there is no checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of somebody else's
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # only Linux has it
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
