"""How a flow layer's time and memory grow with the size of what it is given."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from tqdm.auto import tqdm

from repflow.files import Row
from repflow.lab.bench.solver import PASSES, Problem, engines, saved_bytes, task_of
from repflow.lab.bench.timing import statistics, time_in_turn

# What is varied, and how many times the problem's own value it takes; `size` is the side, so pixels grow by the square.
AXES = {
    "pairs": (0.5, 1, 2, 4),
    "size": (0.25, 0.5, 1, 2),
    "channels": (0.5, 1, 2),
    "iterations": (0.5, 1, 2, 4),
    "clips": (1, 2, 4),
}
NUMBERS = "value", "median_ms", "iqr_ms", "min_ms", "saved_mib"  # of a row; all else there is text


def time_scaling(problem: Problem, repeats: int = 3) -> list[Row]:
    """Forward + backward of the layer by each engine, and of the official layer of June 2019, around a problem.

    A row for each axis, value and engine: the axis, its value, the milliseconds (median, interquartile range, minimum),
    and the MiB that are kept for the backward pass. What does not fit into memory has a note instead.
    """
    rows: list[Row] = []
    for axis, factors in tqdm(AXES.items(), desc="axes", leave=False):
        values = [max(1, round(factor * getattr(problem, axis))) for factor in factors]
        tasks: dict[tuple[int, str], Callable[[], None]] = {}
        kept: dict[tuple[int, str], int | None] = {}
        for value in values:
            for engine in (*engines(problem.device), "official"):
                task = task_of(replace(problem, **{axis: value}), "layer", engine, PASSES[1])
                try:
                    kept[value, engine] = saved_bytes(task)
                    tasks[value, engine] = task
                except torch.OutOfMemoryError:
                    kept[value, engine] = None
        seconds = time_in_turn(tasks, repeats)
        for (value, engine), saved in kept.items():
            row: Row = {"axis": axis, "value": value, "engine": engine}
            if saved is None:
                empty = dict.fromkeys((*statistics(np.zeros(1), "ms"), "saved_mib"))
                rows.append(row | empty | {"note": "out of memory"})
            else:
                times = statistics(1000 * seconds[value, engine], "ms")
                rows.append(row | times | {"saved_mib": saved / 2**20, "note": ""})
    return rows


def exponents(rows: Sequence[Row]) -> list[Row]:
    """The power of each axis that time and kept memory grow with, by each engine: slopes of straight lines through the
    logarithms, fitted by least squares."""
    found = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        for engine in dict.fromkeys(row["engine"] for row in rows):
            points = [r for r in rows if (r["axis"], r["engine"]) == (axis, engine) and r["median_ms"] is not None]
            if len(points) < 2:
                continue
            x = np.log([point["value"] for point in points])
            row: Row = {"axis": axis, "engine": engine}
            for power, name in (("time", "median_ms"), ("memory", "saved_mib")):
                slope = np.polyfit(x, np.log([point[name] for point in points]), 1)[0]
                row[power] = round(float(slope), 4) + 0.0  # no -0.0
            found.append(row)
    return found
