"""Every exercise of the notebooks tells a right answer from wrong ones, and waits for one that is not given yet."""

import ast
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from repflow.lab import check, exercises, show
from repflow.lab.jobs import find_notebooks

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = find_notebooks()  # the solutions are none of these


def scaled(x, dims=(1, 2, 3, 4), guarded=True, constant=0.0):
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    span = torch.where(high > low, high - low, 1.0) if guarded else high - low
    return torch.where(high > low, 255 * (x - low) / span, constant * x) if guarded else 255 * (x - low) / span


def stepped(w, p, theta, tau, dual):
    u = w + theta * np.diff(np.pad(p, 1))
    return u, dual(p, tau / theta * np.diff(u))


def backward(d):
    inner = np.append(d[:-1], 0)
    return np.insert(inner[:-1], 0, 0) - inner


def undone(step, undo, state, bar, n, behind=0):
    """A segment that begins anew for each iteration, and may take the state `behind` it for the one before."""
    for k in range(n - 1, -1, -1):
        before = state
        for _ in range(k + behind):
            before = step(before)
        bar = undo(before, bar)
    return bar


# Of each exercise typical wrong answers, in the notebooks' order.
WRONG = {
    "squares_for_the_data": (
        lambda rho, g2, lam, theta: -lam * theta * rho,
        lambda rho, g2, lam, theta: -rho / g2,
        lambda rho, g2, lam, theta: -lam * theta * abs(rho) / (1 + lam * theta * g2),
        lambda rho, g2, lam, theta: lam * theta * np.clip(-rho / (1 + lam * theta * g2), -2, 2),
        lambda rho, g2, lam, theta: np.nan,
    ),
    "torus_divergence": (
        lambda px, py: np.roll(px, -1, 1) - px + np.roll(py, -1, 0) - py,
        lambda px, py: np.roll(px, 1, 1) - px + np.roll(py, 1, 0) - py,
        lambda px, py: px - np.roll(px, 1, 0) + py - np.roll(py, 1, 1),
    ),
    "dual_step": (
        lambda *a: stepped(*a, lambda p, slope: p + slope - abs(slope) * p),
        lambda *a: stepped(*a, lambda p, slope: (p + slope) / np.maximum(1, abs(p + slope))),
        lambda w, p, theta, tau: (w, p),
        lambda w, p, theta, tau: stepped(w, -p, theta, tau, lambda p, slope: (slope - p) / (1 + abs(slope))),
    ),
    "another_camera": (0.15 * 4095 / 255, 0.15, 0.15 / 255, 0.15 / 16, 0.0093),
    "pyramid_levels": (5, 20, 4.3, -6),
    "reach": (1, 8, 89, 10**12),
    "who_learns": (0.3, 0.0, -0.15),
    "negative_film": ("opposite", "another"),
    "scaling": (
        lambda x: scaled(x, (0, 1, 2, 3, 4)),
        lambda x: scaled(x, (2, 3, 4)),
        lambda x: scaled(x, guarded=False).nan_to_num(),
        lambda x: scaled(x, constant=1.0),
        lambda x: scaled(x.detach()) + 0 * x,
    ),
    "learned_iteration": (
        lambda flow, p, rho_c, grad, learned: (flow, p),
        lambda flow, p, rho_c, grad, learned: (flow + grad, p),
    ),
    "acceleration_detector": (
        np.mean,
        lambda speeds: speeds[-1] - speeds[0],
        lambda speeds: np.square(speeds).mean() - 1.7,
        lambda speeds: abs(speeds[-1]) - 0.5,
        lambda speeds: 0.5 - abs(speeds[0]),
    ),
    "mean_square": (1.0, 1.27, 1.81),
    "sixteen_classes": (83.3, 50.0, 0.75),
    "second_flow": (
        lambda d, g: d[0].mean(),
        lambda d, g: d[0].sign().mean(),
        lambda d, g: d.square().sum(0).mean(),
        lambda d, g: g.square().sum(0).mean(),
    ),
    "clips_needed": (1111, 278, 1112.5),
    "mirrored_classes": ({"up", "down"}, {"left", "right"}, {"up", "down", "clockwise"}),
    "mirrored_ceiling": (83.3, 100 * 5 / 12, 50.0),
    "most_confused": (
        lambda counts: np.unravel_index((counts * (1 - np.eye(5))).argmax(), (5, 5)),
        lambda counts: np.diag(counts).argsort()[:2],
        lambda counts: (0, 1),
        lambda counts: (0, 0),
    ),
    "break_even": (8546 / 524, (8546 - 225) / (524 - 225), 100, 108, 110.9),
    "speed_model": (
        lambda decode, flow, network, layer: (decode + flow + 2 * network) / (decode + network + layer),
        lambda decode, flow, network, layer: (decode + flow) / max(decode, network + layer),
        lambda decode, flow, network, layer: max(decode, network + layer) / max(decode + flow, 2 * network),
    ),
    "power_law": (
        lambda x, t: np.polyfit(x, t, 1)[0],
        lambda x, t: np.log(t[-1] / t[0]) / np.log(x[-1] / x[0]),
        lambda x, t: np.mean(np.log(t) / np.log(x)),
    ),
    "cached_plane": (115, 361, 57, 113),
    "remembering_nothing": (5050, 100, 10000),
    "segment": (
        undone,
        lambda *a: undone(*a, behind=1),
        lambda step, undo, state, bar, n: undo(state, bar),
    ),
    "transposed_gradient": (
        lambda d: np.append(np.diff(d), 0),
        lambda d: -backward(d),
        lambda d: -np.diff(d, prepend=0),
    ),
}
WHOLE = {"pyramid_levels": 6, "reach": 9, "clips_needed": 1112, "cached_plane": 114, "remembering_nothing": 4950}


def code(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def places(cells):
    return [i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: a list of (thing, metadata), the text of one that is given as data."""
    calls = []

    def display(thing, raw=False, metadata=None):
        calls.append((thing["text/plain"] if raw else thing, metadata))

    monkeypatch.setattr("IPython.display.display", display)
    return calls


@pytest.fixture(scope="module")
def solutions():
    """What notebooks/solutions.ipynb hands to its checks, by the checks' names."""
    first, *others = code(FOLDER / "solutions.ipynb")
    names, answers = {}, {}
    exec(first, names)  # noqa: S102 (our own text)
    names["check"] = lambda answer, holds: answers.update({holds.__name__: answer})
    for source in others:
        exec(source, names)  # noqa: S102
    return answers


def test_every_exercise_waits_for_an_answer_and_has_a_solution(solutions):
    asked = []
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        for i in places(cells):
            asked += re.findall(r"\Aanswer = None  # .+\ncheck\(answer, exercises\.(\w+)\)\Z", cells[i].source)
        assert any("](solutions.ipynb)" in cell.source for cell in cells[: places(cells)[0]])
    assert asked == list(WRONG) == list(solutions)
    cells = nbformat.read(FOLDER / "solutions.ipynb", as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", WRONG)
def test_a_check_tells_right_from_wrong(name, solutions, shown):
    wrong = (*WRONG[name], "nonsense", object())
    for answer in (None, solutions[name], *wrong):
        check(answer, getattr(exercises, name))
    first, second, *others = [text for text, _ in shown]
    assert (first, second) == ("not answered yet", "right")
    assert [text[:13] for text in others] == ["not right yet"] * len(wrong), others


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_may_be_a_float(name):
    holds = getattr(exercises, name)
    assert holds(WHOLE[name])
    assert holds(float(WHOLE[name]))
    with pytest.raises(ValueError, match="expected a whole number, got"):
        holds(WHOLE[name] + 0.5)


@pytest.mark.parametrize("part", ["theta", "lam", "tau", "flow_x", "flow_y", "div_x", "div_y"])
def test_a_learned_iteration_uses_and_teaches_every_part(part, solutions):
    def without(flow, p, rho_c, grad, learned):
        return solutions["learned_iteration"](flow, p, rho_c, grad, learned | {part: learned[part] + 0.1})

    assert not exercises.learned_iteration(without)


def test_other_right_answers_are_accepted():
    assert exercises.negative_film("Same")
    assert exercises.mirrored_classes(["zoom-out", "zoom-in", "up", "down"])
    assert exercises.break_even(109)
    assert exercises.second_flow(lambda d, g: (d * g).sum(0).mean())
    assert exercises.acceleration_detector(lambda speeds: (np.square(speeds) * np.arange(-3.5, 4)).sum())


def test_an_answer_of_another_kind_is_not_right_and_says_why(shown):
    check("four", lambda n: n + 1 == 5)
    assert shown == [('not right yet (TypeError: can only concatenate str (not "int") to str)', None)]


def test_a_figure_is_shown_once_and_with_words(shown):
    figure, _ = plt.subplots()
    show(figure, "A curve that <rises>")
    assert shown == [(figure, {"image/png": {"alt": "A curve that <rises>"}})]
    assert not plt.fignum_exists(figure.number)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_and_ends_as_all_do(path):
    cells = nbformat.read(path, as_version=4).cells
    opening = cells[0].source
    for phrase in ("*Afterwards you can*", "*You need*", "*It takes*", "| `tiny` |", "| `small` |", "| `paper` |"):
        assert phrase in opening
    found = places(cells)
    assert 3 <= len(found) <= 5
    assert all("<details><summary>Hint</summary>" in cells[i - 1].source for i in found)
    assert any("## Reading" in cell.source for cell in cells[found[-1] :])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_figure_is_shown_without_words(path):
    sources = code(path)
    shown = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [ast.unparse(node.func) for node in shown]
    assert "plt.show" not in names
    assert names.count("display") == sum("def show(" in source for source in sources)  # `show` takes the words
    texts = [node.args[1] for node in shown if ast.unparse(node.func) == "show"]
    assert texts
    assert all(not isinstance(text, ast.Constant) or len(text.value) > 20 for text in texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_only_drawing_is_folded(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert np.median([len(cell.source.splitlines()) for cell in cells]) <= 8
    folded = {cell.source: cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in cells}
    for source, hidden in folded.items():
        drawing = "plt.subplots" in source or "<img" in source
        assert not hidden or drawing, source
