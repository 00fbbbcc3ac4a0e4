"""Timing, and the paper's table to hold it against."""

import csv
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm.auto import tqdm


def time_in_turn(tasks: Mapping[str, Callable[[], object]], repeats: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Seconds of each task, (repeats,) float64, synchronised with the GPU where there is one.

    Every task runs once uncounted, then `repeats` rounds run all of them in random order, so that a machine that slows
    down slows all alike. Compare medians and ratios of one call; single times of a shared machine mean little.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tqdm(tasks.values(), desc="warming up", leave=False):
        _seconds(task)
    for _ in tqdm(range(repeats), desc="timing", leave=False):
        for name in order.sample(list(tasks), len(tasks)):
            seconds[name].append(_seconds(tasks[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def paper_table() -> dict[str, dict[str, str]]:
    """The paper's final table by method, as results/paper.csv has it: texts, empty where the paper has no figure."""
    package = Path(__file__).parent
    places = (package / "results" / "paper.csv", package.parent / "results" / "paper.csv")  # wheel, checkout
    return {row["method"]: row for row in read_csv(next(place for place in places if place.is_file()))}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file with column names in its first line, as texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _seconds(task: Callable[[], object]) -> float:
    _synchronise()
    start = perf_counter()
    task()
    _synchronise()
    return perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
