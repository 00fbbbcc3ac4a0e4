"""What a notebook calls: `show` for its figures, `check` for answers to its exercises, `report` for its result."""

import base64
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

METRICS = "application/vnd.repflow.metrics+json"  # marks the outputs of `report`
Answer = TypeVar("Answer")


def report(headline: str, *, value: float, unit: str = "", figure: "Figure | None" = None, **metrics: object) -> None:
    """Show a notebook's result in its output, where `repflow run` finds it; the last call of a notebook counts.

    headline: what `value` is, in words. value: a finite number, in `unit`. figure: shown above the headline and closed.
    metrics: finite numbers, texts, booleans, or lists, dicts, arrays and tensors of these. Raises ValueError for a
    number that is not finite and TypeError for anything else; both name the entry.

        >>> report("End-point error", value=0.41, unit="px", iterations=30)
        **End-point error: 0.41 px**
    """
    from IPython.display import display

    record = {"headline": {"text": headline, "value": value, "unit": unit}, "metrics": metrics}
    record = _plain("report", record)
    if not isinstance(record["headline"]["value"], int | float):
        raise TypeError(f"report, headline, value: expected a number, got {value!r}")
    line = summary(record["headline"])
    if figure is not None:
        # An output of its own: in one bundle a page would show the text or the picture, not both.
        metadata = {"image/png": {"alt": line}, METRICS: "figure"}
        display({"image/png": _png(figure), "text/plain": line}, raw=True, metadata=metadata)
    display({METRICS: record, "text/markdown": f"**{line}**", "text/plain": line}, raw=True)


def reported(notebook: "NotebookNode") -> tuple[dict[str, Any], bytes | None]:
    """Return what an executed notebook reported ({} if it did not) and the headline figure as PNG (None without)."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    records = [output.data[METRICS] for output in outputs if METRICS in output.data]
    figures = [output.data["image/png"] for output in outputs if METRICS in output.metadata]
    return records[-1] if records else {}, base64.b64decode(figures[-1]) if figures else None


def summary(headline: dict[str, Any]) -> str:
    """Return a headline in one line, its number with four digits, or with thousands set apart."""
    value = headline["value"]
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{headline['text']}: {digits} {headline['unit']}".rstrip()


def _plain(name: str, value: Any) -> Any:
    """Return `value` as JSON can hold it."""
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's scalars and arrays
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(f"{name}, {key}", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}, {index}", entry) for index, entry in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}; report what was measured or leave it out")
    if not isinstance(value, bool | int | float | str):
        raise TypeError(f"{name}: expected numbers, texts, booleans, lists or dicts, got {type(value).__name__}")
    return value


def _png(figure: "Figure") -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)  # else the inline backend shows it again
    return base64.b64encode(buffer.getvalue()).decode()


def show(figure: "Figure", alt: str) -> None:
    """Show a figure in a notebook's output, and close it; `alt` describes it for readers who cannot see it.

    >>> show(figure, "The flow of a turning disc: longer arrows farther from its centre")
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)  # else the inline backend shows it again


def check(answer: Answer | None, holds: Callable[[Answer], object]) -> None:
    """Show in a notebook's output whether `holds(answer)` is true. None counts as "not answered yet".

    If `holds` raises an error, the answer is "not right yet", followed by the error.

        >>> check(4, lambda answer: answer == 2 + 2)
        right
    """
    from IPython.display import display

    try:
        verdict = "not answered yet" if answer is None else "right" if holds(answer) else "not right yet"
    except Exception as problem:
        verdict = f"not right yet ({type(problem).__name__}: {problem})"
    display({"text/plain": verdict}, raw=True)
