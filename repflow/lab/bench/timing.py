"""Timing: tasks in turn, what is said of their times, and the memory that they take."""

import ctypes
import random
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from repflow.files import Row

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in glibc's malloc.h
Key = TypeVar("Key", bound=Hashable)


def time_in_turn(tasks: Mapping[Key, Callable[[], object]], repeats: int = 5, seed: int = 0) -> dict[Key, np.ndarray]:
    """Seconds of each task, (repeats,) float64, synchronised with the GPU where there is one.

    Every task runs once uncounted, then `repeats` rounds run all of them in random order, so that a machine that slows
    down slows all alike. Compare medians and ratios of one call; single times of a shared machine mean little.

    From then on this process keeps what memory it frees, as PyTorch does on a GPU, where the C library is glibc. Else
    large tensors are fetched anew, page by page: half of a network's time, or much less of it, by what the process did
    before.

    >>> time_in_turn({"sum": lambda: sum(range(1000))}, repeats=2)["sum"].shape
    (2,)
    """
    map_blocks_from(1 << 30)
    order = random.Random(seed)
    seconds: dict[Key, list[float]] = {name: [] for name in tasks}
    for task in tqdm(tasks.values(), desc="warming up", leave=False):
        _seconds(task)
    for _ in tqdm(range(repeats), desc="timing", leave=False):
        for name in order.sample(list(tasks), len(tasks)):
            seconds[name].append(_seconds(tasks[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def statistics(times: np.ndarray | None, unit: str) -> Row:
    """Median, interquartile range and minimum, as columns named after the unit; None in each without times."""
    names = f"median_{unit}", f"iqr_{unit}", f"min_{unit}"
    if times is None:
        return dict.fromkeys(names)
    low, median, high = np.percentile(times, [25, 50, 75])
    return dict(zip(names, (median, high - low, times.min()), strict=True))


def gpu_peak(task: Callable[[], object]) -> int:
    """Bytes of the GPU's memory that a task takes at most, beyond what was taken before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    task()
    return torch.cuda.max_memory_allocated() - before


def fits_memory(task: Callable[[], object]) -> bool:
    """Run a task; False if the GPU's memory is too small for it."""
    try:
        task()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def map_blocks_from(size: int) -> None:
    """Let glibc's malloc give blocks of `size` bytes or more back to the system once they are freed, and no others.

    Nothing happens where the C library is another one.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library, another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _seconds(task: Callable[[], object]) -> float:
    _synchronise()
    start = perf_counter()
    task()
    _synchronise()
    return perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
