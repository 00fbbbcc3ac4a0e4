import contextlib
import io
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import jinja2
import nbformat
import numpy as np
import psutil
import pytest
from bs4 import BeautifulSoup
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from repflow.cli import main
from repflow.lab import environment, report, site
from repflow.lab.jobs import plan, read_profile
from repflow.lab.parameters import UsageError, read_parameters
from repflow.lab.runner import execute, run, tidy
from repflow.lab.site import heading, mathml, notebook_page
from repflow.records import results_folder

PROJECT = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
PARAMETERS = """\
# sizes
video: str | None = None  # a video of your own
steps: int = 250  # optimiser steps, a = b

rate: float = 1
amp: bool = False
model: Literal["a", "b"] = "a"
"""


def write_notebook(folder, name, parameters, *cells):
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    path = folder / f"{name}.ipynb"
    first = [new_markdown_cell(f"# About {name}"), new_code_cell("from typing import Literal")]
    nbformat.write(new_notebook(cells=[*first, tagged, *map(new_code_cell, cells)]), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path, "01_first", PARAMETERS)


def test_parameters_are_read_with_type_default_and_help(notebook):
    found = read_parameters(notebook)
    assert [(p.name, p.kind, p.default) for p in found.values()] == [
        ("video", str, None),
        ("steps", int, 250),
        ("rate", float, 1.0),
        ("amp", bool, False),
        ("model", str, "a"),
    ]
    assert type(found["rate"].default) is float
    assert found["steps"].help == "optimiser steps, a = b"
    assert found["model"].choices == ("a", "b")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("steps = 3", "expected `name: type = default"),
        ("steps: int", "expected `name: type = default"),
        ("import os", "expected `name: type = default"),
        ("x.y: int = 3", "expected `name: type = default"),
        ("steps: int = True", "steps takes a whole number, not True"),
        ("steps: int = 3.0", "steps takes a whole number, not 3.0"),
        ("steps: int = None", "steps takes a whole number, not None"),
        ("amp: bool = 1", "amp takes true or false, not 1"),
        ("rate: float = '1'", "rate takes a finite number, not '1'"),
        ("rate: float = 1e999", "rate takes a finite number, not inf"),
        ("name: str | None = 3", "name takes text or none, not 3"),
        ("model: Literal['a', 'b'] = 'c'", "model takes one of a, b, not 'c'"),
        ("model: Literal[1, 2] = 1", "the type must be"),
        ("model: Literal[a] = 'a'", "the type must be"),
        ("sizes: list = []", "the type must be"),
        ("sizes: int | str = 3", "the type must be"),
        ("steps: int = 2 * 3", "must be a literal"),
        ("steps: int = len('abc')", "must be a literal"),
        ("steps: int = __import__('os').getpid()", "must be a literal"),
        ("steps: int = = 3", "invalid syntax"),
        ("first: int = 4", "first is there twice"),
        ("steps: int = 0  # >= 1: of the optimiser", "steps (of the optimiser) takes a whole number >= 1, not 0"),
        ("steps: int = 1  # >= one: of the optimiser", "expected bounds such as"),
        ("steps: int = 1  # >1: of the optimiser", "expected bounds such as"),
    ],
)
def test_a_bad_line_of_the_parameters_cell_is_named(tmp_path, line, reason):
    path = write_notebook(tmp_path, "01_first", f"first: int = 1\n{line}\n")
    with pytest.raises(UsageError, match=f"^01_first, parameters cell, line 2: .*{re.escape(reason)}"):
        read_parameters(path)


@pytest.mark.parametrize("tagged", [0, 2])
def test_a_notebook_has_exactly_one_parameters_cell(tmp_path, tagged):
    cells = [new_code_cell("a: int = 1", metadata={"tags": ["parameters"]}) for _ in range(tagged)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "x.ipynb")
    with pytest.raises(UsageError, match=f"expected one code cell tagged 'parameters', found {tagged}"):
        read_parameters(tmp_path / "x.ipynb")


@pytest.mark.parametrize("text", ["", "[]", "not json"])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(UsageError, match="is not a notebook"):
        plan([str(tmp_path / "x.ipynb")])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("amp", "false", False),
        ("amp", "true", True),
        ("rate", "1e-3", 0.001),
        ("rate", "-2", -2.0),
        ("steps", "010", 10),
        ("steps", "-3", -3),
        ("video", "none", None),
        ("video", "true", "true"),
        ("model", "b", "b"),
    ],
)
def test_a_value_from_the_command_line_has_the_parameters_type(notebook, name, text, value):
    (job,) = plan([str(notebook)], [(name, text)])
    assert (job.values[name], type(job.values[name])) == (value, type(value))
    assert job.changed == ({} if job.values[name] == read_parameters(notebook)[name].default else {name: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("amp", "False"),
        ("amp", "0"),
        ("steps", "1e3"),
        ("steps", "3.0"),
        ("steps", "1_000"),
        ("steps", "none"),
        ("steps", ""),
        ("rate", "nan"),
        ("rate", "-inf"),
        ("rate", "fast"),
        ("model", "c"),
    ],
)
def test_a_value_of_another_type_is_refused(notebook, name, text):
    with pytest.raises(UsageError, match=rf"^01_first: {name} .*takes .*, not '?{text}'?$"):
        plan([str(notebook)], [(name, text)])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("rate", "0", "a finite number > 0 <= 1, not 0.0"),
        ("rate", "1.01", "a finite number > 0 <= 1, not 1.01"),
        ("seed", "-1", "a whole number >= 0 or none, not -1"),
    ],
)
def test_a_value_out_of_its_bounds_is_refused(tmp_path, name, text, reason):
    lines = "rate: float = 1  # > 0, <= 1: of learning\nseed: int | None = None  # >= 0: of it\nname: str = ''  # <3: s"
    path = write_notebook(tmp_path, "01_first", lines)
    assert plan([str(path)], [("rate", "1e-9"), ("seed", "0")])[0].values == {"rate": 1e-9, "seed": 0, "name": ""}
    assert plan([str(path)], [("seed", "none")])[0].changed == {}
    with pytest.raises(UsageError, match=re.escape(reason)):
        plan([str(path)], [(name, text)])


# What no notebook can take, of what people give first.
IMPOSSIBLE = {"lam": "-1", "tau": "0", "theta": "-0.3", "frame": "-1", "fold": "4", "rate": "0", "seed": "-1"}


@pytest.mark.parametrize("path", PROJECT, ids=lambda path: path.stem)
def test_the_project_s_notebooks_refuse_numbers_that_cannot_be(path):
    for name, parameter in read_parameters(path).items():
        if parameter.kind in (int, float):
            with pytest.raises(UsageError, match=f"{name} .* takes .* (>|>=) "):
                plan([str(path)], [(name, IMPOSSIBLE.get(name, "0"))])


@pytest.mark.parametrize("name", ["index", "api", "Index"])
def test_a_notebook_cannot_take_the_place_of_the_run_s_own_pages(tmp_path, name):
    with pytest.raises(UsageError, match=f"{name}.html is the run's own page"):
        plan([str(write_notebook(tmp_path, name, "steps: int = 1"))])


def test_two_notebooks_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    first = write_notebook(tmp_path, "wave", "steps: int = 1")
    for again in ("wave", "Wave"):
        second = write_notebook(tmp_path / "other", again, "steps: int = 1")
        with pytest.raises(UsageError, match="wave is named twice"):
            plan([str(first), str(second)])


def test_a_value_goes_to_the_notebooks_that_have_the_parameter(tmp_path):
    first = write_notebook(tmp_path, "01_first", "steps: int = 1\nrate: float = 1.0")
    second = write_notebook(tmp_path, "02_second", "steps: float = 1.0")
    names = [str(first), str(second)]
    jobs = plan(names, [("steps", "3"), ("rate", "2")])
    assert [job.changed for job in jobs] == [{"steps": 3, "rate": 2.0}, {"steps": 3.0}]
    with pytest.raises(UsageError, match=r"^01_first: steps takes a whole number, not '1\.5'"):
        plan(names, [("steps", "1.5")])
    with pytest.raises(UsageError, match=r"no parameter 'rates', did you mean 'rate'.*01_first has steps, rate"):
        plan(names, [("rates", "2")])
    with pytest.raises(UsageError, match="named twice"):
        plan([str(first), str(first)])


def test_a_profile_is_checked_like_the_command_line_which_overrides_it(notebook):
    names, table = [str(notebook)], notebook.with_name("profiles.toml")
    with pytest.raises(UsageError, match=r"the profile 'small' should be in .*profiles.toml"):
        plan(names, profile="small")
    table.write_text("[small.01_first]\nsteps = 1000\nrate = 2\n")
    assert plan(names, profile="small")[0].changed == {"steps": 1000, "rate": 2.0}
    assert plan(names, [("steps", "5")], "small")[0].values["steps"] == 5
    assert plan(names)[0].changed == plan(names, profile="paper")[0].changed == {}
    for line, reason in [
        ("steps = true", "steps .*takes a whole"),
        ("step = 1", "did you mean 'steps'"),
        ("=", "TOML|Inv"),
    ]:
        table.write_text(f"[small.01_first]\n{line}\n")
        with pytest.raises(UsageError, match=reason):
            plan(names, profile="small")


@pytest.fixture
def shown(monkeypatch):
    """What report() displays: (bundle, metadata) of each output."""
    outputs = []
    show = lambda bundle, raw, metadata=None: outputs.append((bundle, metadata))  # noqa: E731
    monkeypatch.setattr("IPython.display.display", show)
    return outputs


def test_report_converts_array_scalars_and_shows_one_line(shown):
    report("Error", value=np.float32(0.5), unit="px", frames=np.arange(2), names={"a": (True, "b")})
    ((bundle, _),) = shown
    record = bundle["application/vnd.repflow.metrics+json"]
    assert record == {
        "headline": {"text": "Error", "value": 0.5, "unit": "px"},
        "metrics": {"frames": [0, 1], "names": {"a": [True, "b"]}},
    }
    assert json.loads(json.dumps(record)) == record
    assert bundle["text/plain"] == "Error: 0.5 px"


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"value": float("nan")}, ValueError, "report, headline, value: expected a finite number, got nan"),
        (
            {"value": 1, "loss": [1.0, np.inf]},
            ValueError,
            "report, metrics, loss, 1: expected a finite number, got inf",
        ),
        ({"value": 1, "loss": None}, TypeError, "report, metrics, loss: expected numbers.*got NoneType"),
        ({"value": "1"}, TypeError, "report, headline, value: expected a number, got '1'"),
    ],
)
def test_report_refuses_what_is_no_result(shown, entries, error, message):
    with pytest.raises(error, match=message):
        report("Error", **entries)
    assert not shown


def test_environment_names_versions_and_machine():
    facts = environment()
    assert set(facts) == {"python", "torch", "repflow", "commit", "cpu", "cpus", "gpu", "platform"}
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]


MARKDOWN = r"""# The *energy*

Inline $a < b$, code `$x$`, a price of \$5.

$$E = \int |\nabla u| \tag{1}$$

\begin{align}
v &= u \\
u &= v + \theta \operatorname{div} p
\end{align}

| step | $\tau$ |
|---|---|

```python
price = "$5 and $6"
```
"""
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntSlider()"}


def test_a_page_holds_its_equations_and_loads_nothing(tmp_path, caplog):
    text = new_output("stream", text="costs $5 and $6")
    picture = new_output("display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": "a <flow>"}})
    latex = new_output("display_data", {"text/latex": r"$\frac{a}{b}$"})
    cells = [new_markdown_cell(MARKDOWN), new_code_cell("1", outputs=[text, picture, latex])]
    page = BeautifulSoup(notebook_page(new_notebook(cells=cells), "The energy", tmp_path), "html.parser")
    loaded = page.select("script, link, img, iframe, source")
    assert [tag["alt"] for tag in loaded] == ["a <flow>"]
    assert loaded[0]["src"].startswith("data:")
    assert not re.search(r"@import|url\(['\"]?http", "".join(tag.text for tag in page.select("style")))
    assert page.title.text == "The energy"
    assert len(page.select("math")) == 7
    assert [len(equation.select("math")) for equation in page.select(".equation")] == [3, 1]
    assert page.select_one(".equation").text == "E=∫|∇u|(1)"
    assert len(page.select(".equation mtr")) == 2
    assert page.select_one("math").text == "a<b"
    assert page.text.count("$") == 7  # those of the text, its code and the output
    assert not caplog.records


def test_a_formula_has_the_spaces_of_tex():
    formula = BeautifulSoup(mathml(r"\operatorname{clip}(-\rho, +a) - \mathrm{d}|x|/2", "inline"), "html.parser")
    assert [(sign.text, sign.get("form")) for sign in formula.select("mo") if sign.text in ("−", "+")] == [
        ("−", "prefix"),
        ("+", "prefix"),
        ("−", None),
    ]
    assert [sign["lspace"] for sign in formula.select("mo") if sign.text in ("|", "/")] == ["0"] * 3
    assert formula.find("mi", string="d")["mathvariant"] == "normal"


@pytest.mark.parametrize("latex", [r"\nosuch x", r"\frac", r"\operatorname*{arg\,min} x", r"a & b \\ c"])
def test_a_formula_that_cannot_be_converted_stays_readable(latex, caplog):
    assert BeautifulSoup(mathml(latex, "inline"), "html.parser").code.text == latex
    assert latex in caplog.text


def test_a_notebook_stopped_while_it_was_written_falls_back_to_its_source(tmp_path, notebook):
    target = tmp_path / "target.ipynb"
    target.write_text('{"cells": [')
    assert heading(tidy(target, notebook)) == "About 01_first"
    assert nbformat.read(target, as_version=4).cells[2].source == PARAMETERS


def test_widgets_are_dropped_and_all_else_stays(tmp_path, notebook):
    plain = new_output("display_data", {"text/plain": "x"})
    live = new_output("display_data", {**WIDGET, "text/html": "<p>x</p>"})
    cell = new_code_cell("1", outputs=[new_output("display_data", WIDGET), plain, live], metadata={"papermill": {}})
    target = tmp_path / "target.ipynb"
    nbformat.write(new_notebook(cells=[cell], metadata={"widgets": {}, "papermill": {}}), target)
    tidied = tidy(target, notebook)
    page = {"text/plain": "IntSlider()", "text/html": "<p>x</p>"}
    assert tidied.cells[0].outputs == [plain, new_output("display_data", page)]
    assert (tidied.metadata, tidied.cells[0].metadata) == ({}, {})
    assert nbformat.read(target, as_version=4) == tidied


def test_only_a_kernel_that_did_not_start_is_started_again(monkeypatch):
    errors = [RuntimeError("Kernel died before replying to kernel_info"), None]
    calls = []
    kernel = MagicMock(provisioner=None)

    def once(*arguments, **_):
        calls.append(arguments)
        if error := errors.pop(0):
            raise error

    monkeypatch.setattr("papermill.execute_notebook", once)
    monkeypatch.setattr("jupyter_client.manager.KernelManager", lambda **_: kernel)
    assert execute(Path("a.ipynb"), Path("{b}.ipynb"), {"steps": 1}) is None
    assert calls == [("a.ipynb", "{{b}}.ipynb", {"steps": 1})] * 2
    errors[:] = [DeadKernelError("Kernel died"), None]
    assert execute(Path("a.ipynb"), Path("b.ipynb"), {}) == "DeadKernelError: Kernel died"
    assert len(calls) == 3


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_a_folder_that_cannot_be_written_stops_the_run_at_once(tmp_path, notebook, where):
    (tmp_path / "file").touch()
    out = tmp_path / ("file" if where == "a file" else "file/runs")
    with pytest.raises(OSError, match=r"no results can be written to .*file"):
        run(plan([str(notebook)]), out, "tiny")


GOOD = """
import subprocess
from matplotlib.figure import Figure
from repflow.lab import report
child = subprocess.Popen(["sleep", "600"])
figure = Figure(figsize=(2, 1))
report("Steps", value=steps, unit="steps", figure=figure, child=child.pid, seen=[video, amp, rate])
"""
TRICKY = """a'b"\\n{c} é $d"""


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One run of a failing and a good notebook: (exit code, folder of the run, records by notebook)."""
    folder = tmp_path_factory.mktemp("a {run}")
    bad = write_notebook(folder, "01_bad", "steps: int = 1", "before = 1", "raise ValueError('<no> good')", "after = 1")
    good = write_notebook(folder, "02_good", PARAMETERS, GOOD)
    values = ["-p", "video", TRICKY, "-p", "amp", "false", "-p", "rate", "1e-3", "-p", "steps", "7"]
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        code = main(["run", str(bad), str(good), *values, "--out", str(folder / "runs")])
    out = Path(stdout.getvalue().splitlines()[-1]).parent
    return code, out, {path.stem[:-8]: json.loads(path.read_text()) for path in out.glob("*.metrics.json")}


def test_a_failed_notebook_leaves_the_others_and_its_traceback(results):
    code, out, records = results
    assert code == 1
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", out.name)
    files = [f"{name}.{kind}" for name in ("01_bad", "02_good") for kind in ("html", "ipynb", "metrics.json")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "02_good.png", "index.html", "api.html"])
    assert (records["01_bad"]["error"], records["02_good"]["error"]) == ("ValueError: <no> good (In [5])", None)
    assert records["01_bad"]["headline"] is None
    cells = nbformat.read(out / "01_bad.ipynb", as_version=4).cells
    assert [output.ename for cell in cells for output in cell.get("outputs", [])] == ["ValueError"]
    assert "Traceback" in (out / "01_bad.html").read_text()


def test_the_values_reach_the_notebook_as_they_are(results):
    _, out, records = results
    record = records["02_good"]
    assert record["parameters"] == {"video": TRICKY, "steps": 7, "rate": 0.001, "amp": False, "model": "a"}
    assert record["changed"] == ["video", "steps", "rate"]
    assert record["headline"] == {"text": "Steps", "value": 7, "unit": "steps"}
    assert record["metrics"]["seen"] == [TRICKY, False, 0.001]
    assert record["environment"] == environment()
    assert (record["title"], record["profile"]) == ("About 02_good", "tiny")
    assert (out / "02_good.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_notebook_started_ends_with_it(results):
    assert not alive(results[2]["02_good"]["metrics"]["child"])


@pytest.mark.parametrize("broken", ["index", "all pages"])
def test_what_was_computed_is_kept_where_pages_cannot_be_made(tmp_path, notebook, monkeypatch, caplog, broken):
    def stumble(*_):
        raise OSError("no space left")

    if broken == "index":
        broken_index = jinja2.DictLoader({"index.html.j2": "{{ nothing.at_all }}"})
        monkeypatch.setattr(site.TEMPLATES, "loader", jinja2.ChoiceLoader([broken_index, site.TEMPLATES.loader]))
    else:
        monkeypatch.setattr(site, "write_site", stumble)
    out = tmp_path / "runs"
    with nullcontext() if broken == "index" else pytest.raises(OSError, match="no space left"):
        index, good = run(plan([str(notebook)]), out, "tiny")
        assert not good
        assert "UndefinedError" in index.read_text()
    (folder,) = out.iterdir()
    assert folder.name[0] != "."
    assert {"01_first.ipynb", "01_first.metrics.json"} <= {path.name for path in folder.iterdir()}
    assert f"{folder}: not all pages could be made" in caplog.text


def test_a_run_does_not_need_the_project_s_results(tmp_path, notebook, monkeypatch):
    monkeypatch.setattr("repflow.records.__file__", str(tmp_path / "repflow" / "records.py"))  # beside which it looks
    assert not results_folder().exists()
    assert run(plan([str(notebook)]), tmp_path / "runs", "tiny")[1]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("x = 3\nassert x < 2", "AssertionError: assert x < 2 (In [3])"),
        ("import json\n\ndef f():\n    raise KeyError\n\nf()", "KeyError: raise KeyError (In [3])"),
        ("raise ValueError('lam: expected > 0')", "ValueError: lam: expected > 0 (In [3])"),
    ],
)
def test_the_reason_of_a_failure_is_its_message_or_its_line(tmp_path, cell, reason):
    path = write_notebook(tmp_path, "a", "steps: int = 1", cell)
    assert execute(path, tmp_path / "target.ipynb", {}) == reason


def test_the_index_shows_every_notebook_and_loads_nothing(results):
    page = BeautifulSoup((results[1] / "index.html").read_text(), "html.parser")
    bad, good = page.select("article")
    assert "ValueError: <no> good" in bad.text
    assert (bad["class"], good.get("class")) == (["failed"], None)
    assert (good.h2.text, good.img["alt"]) == ("About 02_good", "Steps: 7 steps")
    assert [code.text.split(" = ")[0] for code in good.select("code")] == ["video", "steps", "rate"]
    targets = [tag.get("href") or tag["src"] for tag in page.select("[href], [src]")]
    assert all((results[1] / target.partition("#")[0]).is_file() for target in targets)


@pytest.mark.parametrize("path", PROJECT, ids=lambda path: path.stem)
def test_a_notebook_of_the_project_keeps_the_rules(path, caplog):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    read_parameters(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert path.stat().st_size <= 60 * 1024
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 40
    assert not re.search(r"""["'`(](/\w+/|[A-Z]:\\)""", "\n".join(cell.source for cell in notebook.cells))
    assert heading(notebook)
    notebook_page(notebook, "", path.parent)
    assert not caplog.records  # every formula can be converted


@pytest.mark.parametrize("profile", ["small", "paper"])
def test_the_profiles_of_the_project_fit_its_notebooks(profile):
    folder = Path(__file__).parents[1] / "notebooks"
    names = [path.stem for path in PROJECT]
    assert set(read_profile(folder, profile)) <= set(names)
    for name in names:
        plan([name], profile=profile)
