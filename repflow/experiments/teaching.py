"""What the notebooks share: figures shown with words, and answers told right from wrong."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Answer = TypeVar("Answer")


def show(figure: "Figure", alt: str) -> None:
    """Show a figure in a notebook's output, with words for those who cannot see it, and close it."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)  # else the inline backend shows it again


def check(answer: Answer | None, holds: Callable[[Answer], object]) -> None:
    """Tell in a notebook's output whether `holds(answer)` is true; None is no answer yet.

    An answer that `holds` cannot take, since it is of another kind than was asked for, is "not right yet", too.
    """
    from IPython.display import display

    try:
        verdict = "not answered yet" if answer is None else "right" if holds(answer) else "not right yet"
    except Exception as problem:
        verdict = f"not right yet ({type(problem).__name__}: {problem})"
    display({"text/plain": verdict}, raw=True)
