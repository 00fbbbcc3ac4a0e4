"""Every exercise of the notebooks tells a right answer from wrong ones, and waits for one that is not given yet."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch

from repflow.lab import check, show

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def scaled(x, dims=(1, 2, 3, 4), guarded=True):
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    span = torch.where(high > low, high - low, 1.0) if guarded else high - low
    return 255 * (x - low) / span


def backward(d):
    inner = np.append(d[:-1], 0)
    return np.insert(inner[:-1], 0, 0) - inner


# Of each notebook's exercises in order: the reference answer, and typical wrong ones.
ANSWERS = {
    "01": [
        (-0.09, (-0.045, 0.09, -1.5)),
        (
            lambda rho, g2, lam, theta: -lam * theta * rho / (1 + lam * theta * g2),
            (lambda rho, g2, lam, theta: -lam * theta * rho, lambda rho, g2, lam, theta: -rho / g2),
        ),
        (
            lambda px, py: px - np.roll(px, 1, 1) + py - np.roll(py, 1, 0),
            (
                lambda px, py: np.roll(px, -1, 1) - px + np.roll(py, -1, 0) - py,
                lambda px, py: np.roll(px, 1, 1) - px + np.roll(py, 1, 0) - py,
                lambda px, py: px - np.roll(px, 1, 0) + py - np.roll(py, 1, 1),
            ),
        ),
        (0.15 * 255 / 4095, (0.15 * 4095 / 255, 0.15, 0.15 / 255)),
        (6, (5, 20, 4.3)),
    ],
    "02": [
        (9, (1, 8, 89)),
        (-0.3, (0.3, 0.0, -0.15)),
        ("same", ("opposite", "another")),
        (
            scaled,
            (
                lambda x: scaled(x, (0, 1, 2, 3, 4)),
                lambda x: scaled(x, (2, 3, 4)),
                lambda x: scaled(x, guarded=False).nan_to_num(),
            ),
        ),
        (50435, (50432, 49411, 50627)),
    ],
    "03": [
        (
            lambda speeds: np.sum(np.square(speeds) * np.arange(-3.5, 4)),
            (np.mean, lambda speeds: speeds[-1] - speeds[0], lambda speeds: np.square(speeds).mean() - 1.7),
        ),
        (1 + 0.81 * np.square(np.linspace(-1, 1, 8)).mean(), (1.0, 1.27, 1.81)),
        (75.0, (83.3, 50.0, 0.75)),
        (6, (4, 5, 7)),
    ],
    "04": [
        (1112, (1111, 278, 1112.5)),
        ({"up", "down", "zoom-in", "zoom-out"}, ({"up", "down"}, {"left", "right"}, {"up", "down", "clockwise"})),
        (100 * 7 / 12, (83.3, 100 * 5 / 12, 50.0)),
        (150 * 16 / 720, (150 / 720, 150 * 16 / 60, 3)),
    ],
    "05": [
        ((8546 - 450) / (524 - 450), (8546 / 524, (8546 - 225) / (524 - 225), 100)),
        (16, (8, 6, 2)),
        (5, (6, 10, 1)),
        (
            lambda x, t: np.polyfit(np.log(x), np.log(t), 1)[0],
            (
                lambda x, t: np.polyfit(x, t, 1)[0],
                lambda x, t: np.log(t[-1] / t[0]) / np.log(x[-1] / x[0]),
                lambda x, t: np.mean(np.log(t) / np.log(x)),
            ),
        ),
    ],
    "06": [
        (114, (115, 361, 57)),
        (4950, (5050, 100, 10000)),
        (2.84, (100, 140.8, 0.142)),
        (backward, (lambda d: np.append(np.diff(d), 0), lambda d: -backward(d), lambda d: -np.diff(d, prepend=0))),
    ],
}
CASES = [(name, i) for name, answers in ANSWERS.items() for i in range(len(answers))]


def cells_of(name):
    path = next(path for path in NOTEBOOKS if path.name.startswith(name))
    return nbformat.read(path, as_version=4).cells


def exercises(cells):
    return [i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]


@pytest.fixture(scope="module")
def names():
    """Of each notebook what it defines before its exercises: parameters, imports, functions and classes."""
    found = {}
    for name in ANSWERS:
        found[name] = {}
        for cell in cells_of(name):
            if cell.cell_type == "code" and "exercise" not in cell.metadata.get("tags", []):
                kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.AnnAssign)
                body = [node for node in ast.parse(cell.source).body if isinstance(node, kinds)]
                exec(compile(ast.Module(body, []), name, "exec"), found[name])  # noqa: S102 (our own text)
    return found


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: a list of (thing, metadata), the text of one that is given as data."""
    calls = []

    def display(thing, raw=False, metadata=None):
        calls.append((thing["text/plain"] if raw else thing, metadata))

    monkeypatch.setattr("IPython.display.display", display)
    return calls


def verdict(cell, names, shown, capsys, given):
    """What the cell tells if `given` stands in place of None."""
    assert cell.source.count("answer = None") == 1
    source = cell.source.replace("answer = None", "answer = given")
    exec(compile(source, "exercise", "exec"), dict(names) | {"given": given})  # noqa: S102 (our own text)
    return capsys.readouterr().out.strip() or shown[-1][0]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_check_tells_right_from_wrong(name, index, names, shown, capsys):
    cells = cells_of(name)
    cell = cells[exercises(cells)[index]]
    right, wrong = ANSWERS[name][index]
    assert verdict(cell, names[name], shown, capsys, None) == "not answered yet"
    assert verdict(cell, names[name], shown, capsys, right) == "right"
    assert len(wrong) >= 2
    for answer in (*wrong, "nonsense", object()):
        assert verdict(cell, names[name], shown, capsys, answer).startswith("not right yet"), answer


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
    places = exercises(cells)
    assert 3 <= len(places) <= 5
    assert len(places) == len(ANSWERS[path.name[:2]])
    assert all("<details><summary>Hint</summary>" in cells[i - 1].source for i in places)
    assert any("## Reading" in cell.source for cell in cells[places[-1] :])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_figure_is_shown_without_words(path):
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [node for source in code for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [ast.unparse(node.func) for node in shown]
    assert "plt.show" not in names
    assert names.count("display") == sum("def show(" in source for source in code)  # `show` takes the words
    texts = [node.args[1] for node in shown if ast.unparse(node.func) == "show"]
    assert texts
    assert all(not isinstance(text, ast.Constant) or len(text.value) > 20 for text in texts)
