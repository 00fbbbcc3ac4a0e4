"""What a sweep measured: its rows, a summary over seeds and folds, and a figure."""

import textwrap
from collections.abc import Collection, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repflow.files import Row, beside, write_csv
from repflow.lab.parameters import UsageError
from repflow.lab.sweeps.grid import Sweep
from repflow.lab.sweeps.run import read_result


def rows_of(sweep: Sweep, out: Path) -> list[Row]:
    """Return a row per finished point: parameters, metrics (None if missing), seconds, machine, versions, commit.

    A metric with a parameter's name gets `measured_` before it. Raises UsageError for a metric that the sweep asks for
    and no point has.
    """
    finished = [(point, record) for point in sweep.points if (record := read_result(out, point)) is not None]
    names = list(dict.fromkeys(name for _, record in finished for name in record["metrics"]))
    if finished and (missing := [name for name in sweep.metrics if name not in names]):
        raise UsageError(f"metrics: no point has {missing[0]!r}; there are: {', '.join(names) or 'none'}")
    parameters = dict.fromkeys(name for point, _ in finished for name in point.values)
    return [
        {name: point.values.get(name) for name in parameters}
        | {f"measured_{name}" if name in parameters else name: record["metrics"].get(name) for name in names}
        | {name: record[name] for name in ("seconds", "started")}
        | record["environment"]
        for point, record in finished
    ]


def summary(sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """Return a row per combination of what varies: the mean of every metric over runs, and smallest to largest."""
    table = []
    for chosen in _combinations(rows, _compared(sweep)):
        line: Row = {axis: _label(value) for axis, value in chosen.items()}
        for metric in sweep.metrics:
            values = _values(rows, chosen, metric)
            line[metric] = f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})" if len(values) else "–"
        table.append(line)
    return table


def draw(sweep: Sweep, rows: Sequence[Row]) -> Figure:
    """Draw each metric against the first axis: mean over runs, with a bar from the smallest to the largest.

    Runs are of all seeds, and of all official folds of a data set. A line for each combination of the other axes;
    accuracies from 0 to 100 % with a dashed line at chance. Question and hypothesis stand above.
    """
    figure = Figure(figsize=(4.2 * len(sweep.metrics) + 1.2, 3.9), layout="constrained")
    panels = figure.subplots(1, len(sweep.metrics), squeeze=False)[0]
    for panel, metric in zip(panels, sweep.metrics, strict=True):
        _draw_metric(panel, sweep, rows, metric)
    if _compared(sweep)[1:] or sweep.chance:
        panels[0].legend(fontsize="small")
    texts = (sweep.question, f"Hypothesis: {sweep.hypothesis}")
    figure.suptitle("\n".join(textwrap.fill(text, 60 * len(panels)) for text in texts), fontsize="small")
    return figure


def _draw_metric(panel: Axes, sweep: Sweep, rows: Sequence[Row], metric: str) -> None:
    from repflow.figures import COLOURS  # reads and writes video, which a sweep need not

    first, *others = _compared(sweep)
    places = list(dict.fromkeys(row[first] for row in rows))
    numeric = all(type(place) in (int, float) for place in places)
    lines = _combinations(rows, others)
    for k, (chosen, colour) in enumerate(zip(lines, cycle(COLOURS), strict=False)):
        measured = [(i, _values(rows, chosen | {first: place}, metric)) for i, place in enumerate(places)]
        measured = [(i, values) for i, values in measured if len(values)]
        shift = 0.08 * (k - (len(lines) - 1) / 2)  # else points of equal height hide each other
        x = [places[i] if numeric else i + shift for i, _ in measured]
        y = np.array([values.mean() for _, values in measured])
        reach = [y - [v.min() for _, v in measured], [v.max() for _, v in measured] - y]
        label = ", ".join(f"{name} {_label(value)}" for name, value in chosen.items() if value is not None)
        panel.errorbar(x, y, reach, fmt="o-" if numeric else "o", capsize=3, color=colour, label=label)
    if numeric:
        panel.set_xticks(places)
    else:
        names = [textwrap.fill(_label(p).replace(",", ", "), 16 if len(places) < 6 else 40) for p in places]
        panel.set_xticks(range(len(places)), names)
        if len(places) >= 6:  # no room beside each other
            panel.tick_params("x", rotation=90)
        panel.set_xlim(-0.5, len(places) - 0.5)
    panel.set(xlabel=first, ylabel=metric)
    if metric in sweep.chance:
        panel.axhline(sweep.chance[metric], color="grey", linestyle="--", label="chance")
        panel.set(ylabel=f"{metric} (%)", ylim=(0, 103))
    panel.grid(alpha=0.3)


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


def _compared(sweep: Sweep) -> list[str]:
    """The axes whose values are held against each other; folds repeat an experiment, as seeds do."""
    return [axis for axis in sweep.axes if axis != "fold"] or sweep.axes


def _combinations(rows: Sequence[Row], names: Collection[str]) -> list[dict[str, Any]]:
    values = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    return [dict(zip(names, combination, strict=True)) for combination in values]


def _values(rows: Sequence[Row], chosen: dict[str, Any], metric: str) -> np.ndarray:
    """Return the metric in all rows with these values: of every seed and fold, for a combination of all other axes."""
    column = metric if f"measured_{metric}" not in rows[0] else f"measured_{metric}"
    fitting = (row for row in rows if all(row[name] == value for name, value in chosen.items()))
    return np.array([row[column] for row in fitting if row[column] is not None], float)


def _label(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else str(value) or "none"
