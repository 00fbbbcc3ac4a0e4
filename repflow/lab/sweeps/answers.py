"""The sweeps in notebooks/sweeps with their measurements in results/sweeps: a question, a hypothesis, a table.

repflow sweep notebooks/sweeps/where.toml && cp runs/where_tiny/where.csv results/sweeps      (in the checkout)
"""

import warnings

from repflow.files import Row, read_csv, text_table
from repflow.lab.jobs import find_notebooks
from repflow.lab.notebook import show
from repflow.lab.sweeps.figure import draw, summary
from repflow.lab.sweeps.grid import Sweep, read_sweep
from repflow.records import results_folder


def measured(name: str, profile: str = "tiny") -> tuple[Sweep, list[Row]]:
    """Return a shipped sweep, and a row for each of its points: the values of all parameters and metrics.

    Raises ValueError if the table in results/sweeps has other points: the sweep was changed, and has to run again.

        >>> sweep, rows = measured("where")
    """
    sweep = read_sweep(find_notebooks()[0].parent / "sweeps" / f"{name}.toml", profile)
    lines = read_csv(results_folder() / "sweeps" / f"{name}.csv")
    names = [*sweep.axes, "seed"]
    points = [[_written(point.values[axis]) for axis in names] for point in sweep.points]
    measured_points = [[line.get(axis) for axis in names] for line in lines]
    if measured_points != points or not set(sweep.metrics) <= set(lines[0]):
        raise ValueError(
            f"results/sweeps/{name}.csv holds other points than notebooks/sweeps/{name}.toml: run it again"
        )
    return sweep, [
        point.values | {metric: float(line[metric]) for metric in sweep.metrics}
        for point, line in zip(sweep.points, lines, strict=True)
    ]


def show_answer(name: str, profile: str = "tiny") -> None:
    """Show the figure of a shipped sweep in a notebook's output; its text is the question and the numbers.

    If the sweep was changed since it ran, or has no table, this warns instead of raising: the notebook can go on.

        >>> show_answer("where")
    """
    try:
        sweep, rows = measured(name, profile)
    except (ValueError, OSError) as error:
        warnings.warn(str(error), stacklevel=2)
        return
    show(draw(sweep, rows), f"{sweep.question}\n{text_table(summary(sweep, rows))}")


def _written(value: object) -> str:
    """Return a parameter's value as a CSV file has it."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
