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
        cases = [(value, engine) for value in values for engine in (*engines(problem.device), "official")]
        tasks = {case: task_of(replace(problem, **{axis: case[0]}), "layer", case[1], PASSES[1]) for case in cases}
        saved = {case: _saved_mib(task) for case, task in tasks.items()}
        fitting = {case: task for case, task in tasks.items() if saved[case] is not None}
        times = {case: 1000 * seconds for case, seconds in time_in_turn(fitting, repeats).items()}
        for case in cases:
            row: Row = {"axis": axis, "value": case[0], "engine": case[1]} | statistics(times.get(case), "ms")
            rows.append(row | {"saved_mib": saved[case], "note": "" if case in fitting else "out of memory"})
    return rows


def exponents(rows: Sequence[Row]) -> list[Row]:
    """The powers with which time and saved memory grow along each axis, for each engine: slopes of straight lines
    through the logarithms, fitted by least squares."""
    timed = [row for row in rows if row["median_ms"] is not None]
    powers = []
    for axis, engine in dict.fromkeys((row["axis"], row["engine"]) for row in timed):
        points = [row for row in timed if (row["axis"], row["engine"]) == (axis, engine)]
        if len(points) > 1:
            time, memory = (_slope(points, name) for name in ("median_ms", "saved_mib"))
            powers.append({"axis": axis, "engine": engine, "time": time, "memory": memory})
    return powers


def _slope(points: Sequence[Row], name: str) -> float:
    x, y = (np.log([point[column] for point in points]) for column in ("value", name))
    return round(float(np.polyfit(x, y, 1)[0]), 4) + 0.0  # no -0.0


def _saved_mib(task: Callable[[], object]) -> float | None:
    """MiB that are kept for the backward pass; None where the GPU's memory is too small."""
    try:
        return saved_bytes(task) / 2**20
    except torch.OutOfMemoryError:
        return None
