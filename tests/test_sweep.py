import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import psutil
import pytest
import torch
from conftest import PATIENCE, wait_for
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

from repflow.cli import build_parser
from repflow.cli import sweep as command
from repflow.data import SyntheticMotion
from repflow.files import read_csv
from repflow.lab.parameters import UsageError
from repflow.lab.sweeps import answers, between
from repflow.lab.sweeps import study as questions
from repflow.lab.sweeps.figure import draw, rows_of, summary, write_outcome
from repflow.lab.sweeps.grid import Point, Sweep, read_sweep
from repflow.lab.sweeps.run import Processes, execute, read_result, run_sweep, slurm
from repflow.layers import ClipFlow
from repflow.records import results_folder

SHIPPED = sorted((Path(__file__).parents[1] / "notebooks" / "sweeps").glob("*.toml"))
# Measured in their small profile:
REAL = {"real_video", "real_video_few", "real_video_shuffled", "real_video_time", "convergence", "depth", "between"}
CONTROLS = {"scaling", "frame_shuffle", "moving_objects"} | REAL  # not asked with the paper's commands
STUDY = """
import os, subprocess, time
from pathlib import Path


def study(*, x: int = 0, rate: float = 1.0, name: str | None = None, seed: int = 0, trace: str = ""):
    with Path(trace).open("a") as file:
        file.write(f"{x} {seed}\\n")
    if name == "child":
        subprocess.Popen(["sleep", "600"])
        time.sleep(600)
    if name == "slow" and x == 2 and not Path(trace + ".go").exists():
        time.sleep(600)
    if name == "bad" and x == 1:
        raise ValueError("no such luck")
    if name == "once" and x == 1 and Path(trace).read_text().count("1 0") < 2:
        raise ValueError("not yet")
    if name == "nan":
        return {"top1": float("nan")}
    return {"top1": 10.0 * x + seed, "more": {"pairs": 50}, "x": x + 1, "note": "text"}


def check(*, x, **_):
    if x == 13:
        raise ValueError("x: not 13")
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a sweep of the cheap study above and reads it."""
    (tmp_path / "cheap.py").write_text(STUDY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.modules.pop("cheap", None)

    def write(text, subject='study = "cheap:study"', **options):
        trace = f"fixed = {{trace = '{tmp_path / 'trace'}'}}\n" if "fixed" not in text and "study" in subject else ""
        path = tmp_path / "asks.toml"
        path.write_text(f"{subject}\n{trace}{text}\n")
        return read_sweep(path, **options)

    return write


def fixed(tmp_path, name):
    return f"fixed = {{name = '{name}', trace = '{tmp_path / 'trace'}'}}\n"


def traced(tmp_path):
    path = tmp_path / "trace"
    return path.read_text().splitlines() if path.exists() else []


def test_a_grid_is_the_product_of_its_lists_with_defaults_and_fixed_values(write):
    sweep = write('fixed = {rate = 2}\ngrid = {x = [1, 2], name = ["a", "none"]}\nseeds = [3, 4]')
    chosen = [(p.values["x"], p.values["name"], p.values["seed"]) for p in sweep.points]
    assert chosen == [(x, name, seed) for x in (1, 2) for name in ("a", None) for seed in (3, 4)]
    assert {(type(p.values["rate"]), p.values["rate"], p.values["trace"]) for p in sweep.points} == {(float, 2.0, "")}
    assert sweep.axes == ["x", "name"]
    names = [point.name for point in sweep.points]
    assert len(set(names)) == len(names)
    assert re.fullmatch("x=1_name=a_seed=3-[0-9a-f]{8}", names[0])


def test_several_grids_are_joined(write):
    sweep = write("grid = [{x = [1]}, {x = [2, 3], rate = [0.5]}]")
    assert [(p.values["x"], p.values["rate"]) for p in sweep.points] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_a_points_folder_depends_on_all_its_values_and_on_nothing_else(write):
    one, other = (write(f"fixed = {{rate = {rate}}}\ngrid = {{x = [1, 2]}}") for rate in (1, 2))
    again = write("fixed = {rate = 1.0}\ngrid = {x = [2]}")
    assert one.points[1].name == again.points[0].name != other.points[1].name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("grid = {y = [1]}", "no parameter 'y'"),
        ("grid = {nam = ['a']}", "did you mean 'name'"),
        ("fixed = {rates = 1}\ngrid = {x = [1]}", "did you mean 'rate'"),
        ("grid = {x = [1, 'two']}", "x takes a whole number, not 'two'"),
        ("grid = {x = [1.5]}", "x takes a whole number, not 1.5"),
        ("grid = {x = [true]}", "x takes a whole number, not True"),
        ("grid = {x = ['none']}", "x takes a whole number, not 'none'"),
        ("grid = {x = [[1]]}", r"x takes a whole number, not \[1\]"),
        ("grid = {rate = [nan]}", "rate takes a finite number, not nan"),
        ("grid = {name = [2026-01-31]}", "name takes text or none, not datetime.date"),
        ("grid = {x = [1]}\nseeds = ['a']", "seed takes a whole number, not 'a'"),
        ("grid = {x = [1, 2, 1]}", "two points are the same: x 1"),
        ("grid = {rate = [1, 1.0]}", "two points are the same: rate 1.0"),
        ("fixed = {seed = 1}\ngrid = {x = [1]}\nseeds = [1]", "seed is both fixed and"),
        ("fixed = {x = 1}\ngrid = {x = [1]}", "x is both fixed and in the grid"),
        ("grid = {seed = [1]}\nseeds = [1]", "seed is both in the grid and in seeds"),
        ("grid = {x = []}", r"grid, x: expected a list \[a, b\] of one value or more"),
        ("grid = {x = 1}", r"grid, x: expected a list \[a, b\] .*found 1"),
        ("grid = {}", "grid: expected names with lists"),
        ("grid = []", "grid: expected names with lists"),
        ("grid = 3", "grid: expected names with lists"),
        ("seeds = [1]", "grid: expected names with lists"),
        ("grid = {x = [1]}\nseeds = []", "grid, seed: expected a list .* of one value or more"),
        ("grid = {x = [12, 13]}", "the point x 13: x: not 13"),
        ("grid = {x = [1]}\nhypotesis = 'a'", "no entry 'hypotesis', did you mean 'hypothesis'"),
        ("grid = {x = [1]}\nhypothesis = 3", "hypothesis: expected text"),
        ("grid = {x = [1]}\nmetrics = 'top1'", "metrics: expected a list"),
        ("grid = {x = [1]}\nmetrics = [1]", "metrics: expected a list"),
        ("grid = {x = [1]}\n[profiles.huge]", "found 'huge'"),
        ("grid = {x = [1]}\nnotebook = '04'", "expected one of notebook, study, commands, found notebook, study"),
        ("grid = {x = [1], x = [2]}", "cannot be read"),
        ("grid = {x = [1]", "cannot be read"),
    ],
)
def test_a_grid_that_cannot_run_as_written_is_refused_whole(write, tmp_path, text, reason):
    with pytest.raises(UsageError, match=f"(?s)asks.toml: .*{reason}"):
        write(text)
    assert not traced(tmp_path)


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("study = 'cheap:nothing'", "expected module:function"),
        ("study = 'no_such_module:study'", "PYTHONPATH"),
        ("study = 3", "study: expected text"),
        ("notebook = 4", 'notebook: expected text such as notebook = "04"'),
        ("notebook = '44'", "no notebook '44'"),
        ("commands = 'repflow run {x}'", "commands: expected a list"),
        ("commands = ['rm -rf {x}']", "begin with `repflow`"),
        ("commands = ['repflow run {x']", "commands: "),
        ("commands = ['repflow run {x.y}']", "expected names in braces, found 'x.y'"),
        ("commands = ['repflow run {x} {y}']", "expected values of y"),
    ],
)
def test_what_a_sweep_varies_must_be_there(write, subject, reason):
    with pytest.raises(UsageError, match=reason):
        write("grid = {x = [1]}", subject)


def test_a_sweep_of_another_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"asks.yaml: expected a .toml file"):
        read_sweep(tmp_path / "asks.yaml")


def test_a_profile_takes_the_place_of_entries_and_of_the_subject(write):
    text = """grid = {x = [1]}
[profiles]
small = {grid = {x = [7, 8]}}
paper = {commands = ['repflow flow {y}'], fixed = {}, grid = {y = ["a b"]}}"""
    assert [p.values["x"] for p in write(text).points] == [1]
    assert [p.values["x"] for p in write(text, profile="small").points] == [7, 8]
    (point,) = write(text, profile="paper").points
    assert point.commands[0] == ["repflow", "flow", "a b"]  # one word, whatever is in it
    with pytest.raises(UsageError, match="no profile 'paper'; there are: none"):
        write("grid = {x = [1]}", profile="paper")


def test_a_fixed_value_may_come_from_the_command_line(write):
    (point,) = write("grid = {x = [1]}", overrides={"rate": "1e-3"}).points
    assert point.values["rate"] == 0.001
    for name, text, reason in (("x", "3", "x is both"), ("rate", "fast", "rate takes"), ("rat", "1", "did you mean")):
        with pytest.raises(UsageError, match=reason):
            write("grid = {x = [1]}", overrides={name: text})


RUN = """
import sys
from pathlib import Path
from repflow.lab.sweeps.grid import read_sweep
from repflow.lab.sweeps.run import Processes, run_sweep
run_sweep(read_sweep(Path(sys.argv[1])), Path(sys.argv[2]), Processes(1))
"""


def test_a_sweep_that_was_stopped_goes_on_and_finished_points_stay(write, tmp_path):
    sweep = write(fixed(tmp_path, "slow") + "grid = {x = [0, 1, 2, 3]}\nmetrics = ['top1']")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "asks.toml"), str(out)], stderr=subprocess.PIPE
    )
    wait_for(lambda: traced(tmp_path)[-1:] == ["2 0"], process)
    process.send_signal(signal.SIGTERM)
    assert b"KeyboardInterrupt" in process.communicate(timeout=PATIENCE)[1]
    assert [read_result(out, point) is not None for point in sweep.points] == [True, True, False, False]
    before = [(out / point.name / "result.json").stat().st_mtime_ns for point in sweep.points[:2]]
    (tmp_path / "trace.go").touch()
    assert run_sweep(sweep, out, Processes(2)) == {}
    assert sorted(traced(tmp_path)) == ["0 0", "1 0", "2 0", "2 0", "3 0"]
    assert [(out / point.name / "result.json").stat().st_mtime_ns for point in sweep.points[:2]] == before
    assert [read_result(out, point)["metrics"]["top1"] for point in sweep.points] == [0, 10, 20, 30]
    assert not list(out.rglob(".*"))


def test_a_result_that_is_cut_or_of_other_values_does_not_count(write, tmp_path):
    sweep = write("grid = {x = [1]}")
    (point,) = sweep.points
    out = tmp_path / "out"
    assert run_sweep(sweep, out, Processes(1)) == {}
    file = out / point.name / "result.json"
    whole = file.read_text()
    for text in (whole[: len(whole) // 2], json.dumps(json.loads(whole) | {"parameters": {}})):
        file.write_text(text)
        assert read_result(out, point) is None
    run_sweep(sweep, out, Processes(1))
    assert json.loads(file.read_text())["parameters"] == point.values
    assert traced(tmp_path) == ["1 0"] * 2


DRIVER = """
import sys
from repflow.cli import main
sys.exit(main(["sweep", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process(write, tmp_path, number):
    write(fixed(tmp_path, "child") + "grid = {x = [0, 1, 2]}")
    words = [sys.executable, "-c", DRIVER, tmp_path / "asks.toml", "--out", tmp_path / "out", "--jobs", "2"]
    environ = {**os.environ, "MARK": str(tmp_path)}
    process = subprocess.Popen(list(map(str, words)), env=environ, stderr=subprocess.PIPE)
    wait_for(lambda: len(marked(tmp_path)) >= 5, process)  # itself, two points, their children
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert b"0 of 3 points are done" in said
    assert not marked(tmp_path)


def marked(mark):
    """Processes that were started with this mark, zombies apart."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        if (process.info["environ"] or {}).get("MARK") == str(mark) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def sweep_command(*words):
    arguments = build_parser().parse_args(["sweep", *map(str, words)])
    return arguments.command(arguments)


def test_a_failing_point_is_tried_once_more_and_listed(write, tmp_path, capsys):
    write(fixed(tmp_path, "bad") + "grid = {x = [0, 1, 2]}\nmetrics = ['top1']")
    out = tmp_path / "out"
    assert sweep_command(tmp_path / "asks.toml", "--out", out) == 1
    assert sorted(traced(tmp_path)) == ["0 0", "1 0", "1 0", "2 0"]
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert "x=1_" in line
    assert "ValueError: no such luck (code 1" in line
    log = Path(line.split(": ")[1]).read_text()
    assert log.count("ValueError: no such luck") == 2
    assert [row["x"] for row in read_csv(out / "asks.csv")] == ["0", "2"]


def test_a_point_that_fails_once_is_no_failure(write, tmp_path):
    sweep = write(fixed(tmp_path, "once") + "grid = {x = [1]}")
    assert run_sweep(sweep, tmp_path / "out", Processes(1)) == {}
    assert read_result(tmp_path / "out", sweep.points[0])["metrics"]["top1"] == 10


def test_a_result_that_is_no_number_fails(write, tmp_path):
    sweep = write(fixed(tmp_path, "nan") + "grid = {x = [1]}")
    assert list(run_sweep(sweep, tmp_path / "out", Processes(1)).values()) == ["expected finite numbers, got top1 nan"]


def test_a_folder_that_cannot_be_written_stops_the_sweep_at_once(write, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"no results can be written to .*file"):
        run_sweep(write("grid = {x = [1]}"), tmp_path / "file", Processes(1))
    assert not traced(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of two axes and two seeds whose points nobody ran: (sweep, its folder)."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "cheap.py").write_text(STUDY)
    text = "question = 'Why?'\nhypothesis = 'Because.'\nstudy = 'cheap:study'\nmetrics = ['top1']\n"
    (folder / "asks.toml").write_text(text + "grid = {x = [1, 4], name = ['a', 'b']}\nseeds = [0, 2]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        sys.modules.pop("cheap", None)
        sweep = read_sweep(folder / "asks.toml")
    for point in sweep.points:
        values = point.values
        top1 = 10 * values["x"] + values["seed"] + 100 * (values["name"] == "b")
        record = {"parameters": values, "metrics": {"top1": top1, "x": 5}, "seconds": 1.5, "started": "2026-01-31"}
        (folder / "out" / point.name).mkdir(parents=True)
        text = json.dumps(record | {"environment": {"torch": "2", "commit": "abc"}})
        (folder / "out" / point.name / "result.json").write_text(text)
    return sweep, folder / "out"


def test_the_table_has_a_row_a_point(finished):
    sweep, out = finished
    write_outcome(sweep, out)
    rows = read_csv(out / "asks.csv")
    assert len(rows) == 8
    assert rows[3] | {"measured_x": "5", "seconds": "1.5", "torch": "2", "commit": "abc"} == rows[3]
    assert [(row["x"], row["name"], row["seed"], row["top1"]) for row in rows[3:5]] == [
        ("1", "b", "2", "112"),
        ("4", "a", "0", "40"),
    ]


def test_the_summary_is_the_mean_and_the_range_over_seeds(finished):
    table = summary(finished[0], rows_of(*finished))
    assert [list(line.values()) for line in table] == [
        ["1", "a", "11.0 (10.0 to 12.0)"],
        ["1", "b", "111.0 (110.0 to 112.0)"],
        ["4", "a", "41.0 (40.0 to 42.0)"],
        ["4", "b", "141.0 (140.0 to 142.0)"],
    ]


def test_the_figure_draws_mean_and_range_against_the_first_axis(finished, tmp_path):
    sweep, out = finished
    figure = draw(sweep, rows_of(sweep, out))
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "top1")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["name a", "name b"]
    lines = [bar.lines[0] for bar in axes.containers]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 4], [1, 4]]
    assert [line.get_ydata().tolist() for line in lines] == [[11, 41], [111, 141]]
    ends = [segment[:, 1].tolist() for bar in axes.containers for segment in bar.lines[2][0].get_segments()]
    assert ends == [[10, 12], [40, 42], [110, 112], [140, 142]]
    assert "Because." in figure.get_suptitle()
    write_outcome(sweep, out)
    assert (out / "asks.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_nothing_has_is_named(finished):
    sweep, out = finished
    with pytest.raises(UsageError, match=r"no point has 'top5'; there are: top1, x"):
        rows_of(dataclasses.replace(sweep, metrics=["top5"]), out)


NOTEBOOK = """
from repflow.lab import report
report("Twice", value=2 * steps, unit="", accuracy={"rgb": {"top1": 3.0 * steps}}, curve=[1, 2])
"""


def test_a_notebook_is_swept_with_its_own_parameters(tmp_path, write):
    tagged = new_code_cell("steps: int = 1  # of it\namp: bool = False\nnote: str | None = 'a'",
                           metadata={"tags": ["parameters"]})  # fmt: skip
    path = tmp_path / "01_small.ipynb"
    nbformat.write(new_notebook(cells=[tagged, new_code_cell(NOTEBOOK)]), path)
    subject = f"notebook = '{path}'"
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        write("grid = {step = [1]}", subject)
    with pytest.raises(UsageError, match=r"steps \(of it\) takes a whole number, not 'a'"):
        write("grid = {steps = ['a']}", subject)
    with pytest.raises(UsageError, match="no parameter 'seed'"):
        write("grid = {steps = [1]}\nseeds = [0]", subject)
    sweep = write("fixed = {amp = true, note = 'none'}\ngrid = {steps = [7]}\nmetrics = ['accuracy.rgb.top1']", subject)
    assert run_sweep(sweep, tmp_path / "out", Processes(1)) == {}
    record = read_result(tmp_path / "out", sweep.points[0])
    assert record["metrics"] == {"accuracy.rgb.top1": 21.0, "headline.value": 14}
    (file,) = (tmp_path / "out").glob("*/runs/*/01_small.metrics.json")
    assert json.loads(file.read_text())["parameters"] == {"steps": 7, "amp": True, "note": None}


def test_commands_run_one_after_the_other_in_the_points_folder(tmp_path, write):
    lines = "commands = ['repflow data make {out}/set --train 1 --test 0 --size {size} --frames 3 --seed {seed}']"
    sweep = write("grid = {size = [16]}\nseeds = [0]", lines)
    (point,), folder = sweep.points, tmp_path / "out" / sweep.points[0].name
    with pytest.raises(RuntimeError, match=re.escape(f"results in {folder}/metrics.json, found no such file")):
        execute(point, folder, call=lambda *_, **__: 0)
    (folder / "metrics.json").write_text('{"top1": 3.5, "checkpoint": "x"}')
    assert run_sweep(sweep, tmp_path / "out", Processes(1)) == {}
    assert len(SyntheticMotion(folder / "set").samples) == 12
    assert read_result(tmp_path / "out", point)["metrics"] == {"top1": 3.5}


def test_command_lines_that_the_program_does_not_know_are_refused_at_once(tmp_path, write):
    write("grid = {size = [16, 'x']}", "commands = ['repflow data make {out}/set --size {size}']")
    with pytest.raises(UsageError, match=r"repflow data make .*--size x: .*invalid int value: 'x'"):
        sweep_command(tmp_path / "asks.toml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_points_and_starts_nothing(tmp_path, write, capsys):
    sweep = write("grid = {x = [1, 2]}")
    assert sweep_command(tmp_path / "asks.toml", "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(point.name in said for point in sweep.points)
    assert not traced(tmp_path)


@pytest.mark.parametrize(("words", "reason"), [(["--jobs", "0"], "--jobs"), (["--slurm", "time"], "NAME=VALUE")])
def test_options_that_cannot_be_are_refused(tmp_path, write, words, reason):
    write("grid = {x = [1]}")
    with pytest.raises(UsageError, match=reason):
        sweep_command(tmp_path / "asks.toml", *words)


# Writes the process's GPU and threads; ends when both points of the test have begun.
DEVICE = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
numbers = {name: int(os.environ[name]) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
(folder / "metrics.json").write_text(json.dumps(numbers))
while len(list(folder.parent.glob("*/metrics.json"))) < 2:
    time.sleep(0.05)
"""


def test_gpus_are_given_out_one_by_one_and_cores_shared(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 2)
        patch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
        patch.delenv("OMP_NUM_THREADS", raising=False)
        processes = Processes()
    points = [Point(name, {}, [[sys.executable, "-c", DEVICE, "{out}"]], "metrics.json") for name in "ab"]
    assert run_sweep(Sweep("asks", "", "", [], {}, [], points), tmp_path, processes) == {}
    numbers = [read_result(tmp_path, point)["metrics"] for point in points]
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in numbers) == [3, 5]
    assert {each["OMP_NUM_THREADS"] for each in numbers} == {max(1, os.cpu_count() // 2)}


def test_slurm_without_submitit_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"--slurm needs submitit: pip install .*slurm"):
        slurm(tmp_path, {})


class Cluster:
    """Does at once what submitit would send to a cluster; its first job is lost."""

    def __init__(self, folder, cluster):
        assert cluster == "slurm"
        self.folder, self.options, self.jobs = folder, {}, []

    def update_parameters(self, **options):
        if "no_such" in options:
            raise NameError("no_such")
        self.options |= options

    def submit(self, function, *arguments):
        job = Future()
        try:
            if not self.jobs:
                raise OSError("node failed")
            job.set_result(function(*arguments))
        except Exception as error:
            job.set_exception(error)
        self.jobs.append(job)
        return job


def test_slurm_gets_every_point_with_its_options_and_a_lost_job_again(monkeypatch, tmp_path, write):
    made = []
    submitit = SimpleNamespace(AutoExecutor=lambda *where, **how: made.append(Cluster(*where, **how)) or made[-1])
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    sweep = write("grid = {x = [1, 2]}\nmetrics = ['top1']")
    out = tmp_path / "out"
    options = ["--slurm", "timeout_min=60", "slurm_partition=gpu"]
    assert sweep_command(tmp_path / "asks.toml", "--out", out, *options) == 0
    (cluster,) = made
    assert (cluster.folder, cluster.options) == (out / "slurm", {"timeout_min": 60, "slurm_partition": "gpu"})
    assert len(cluster.jobs) == 3
    assert [row["top1"] for row in rows_of(sweep, out)] == [10, 20]
    with pytest.raises(UsageError, match="--slurm: no_such"):
        slurm(out, {"no_such": 1})


def test_jobs_that_wait_on_the_cluster_are_cancelled(tmp_path, write):
    jobs = []

    class Stopped:
        def submit(self, *_):
            if jobs:
                raise KeyboardInterrupt
            jobs.append(Future())
            return jobs[0]

    with pytest.raises(KeyboardInterrupt):
        run_sweep(write("grid = {x = [1, 2]}"), tmp_path / "out", Stopped())
    assert jobs[0].cancelled()


def test_questions_are_there():
    wanted = {
        "table",
        "where",
        "what_to_learn",
        "iterations",
        "fusion",
        "depth",
        "flow_of_3d",
        "other_motion",
        "init_scale",
    }
    assert {path.stem for path in SHIPPED} == wanted | CONTROLS


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_question_of_the_project_can_be_asked(path):
    sweep = read_sweep(path)
    assert 2 <= len(sweep.points) <= 12
    assert sweep.question.endswith("?")
    assert sweep.hypothesis
    assert sweep.metrics
    if path.stem not in CONTROLS:
        paper = read_sweep(path, "paper")
        assert len(paper.points) >= 6
        command.check_commands(paper, build_parser().parse_args)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("flow_after=9", "flow_after: expected 0 to 4"),
        ("flow_aftr=1", "did you mean 'flow_after'"),
        ("learn=mu", "learn: expected names among"),
        ("iterations=x", "--set iterations: expected a whole number"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_before_the_first_training(tmp_path, write, setting, reason):
    line = f"repflow train --data hmdb51 {{data}} --model repflow_2plus1d --set {setting} --out {{out}}"
    write("grid = {data = ['somewhere']}", f"commands = ['{line}']")
    with pytest.raises(UsageError, match=reason):
        sweep_command(tmp_path / "asks.toml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


TINY = {"train_clips": 4, "test_clips": 2, "steps": 2, "batch": 4}
DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(questions.synthetic_motion).parameters.items()
}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"system": "repflow"}, "model: expected one of"),
        ({"backbone": "tiny"}, "backbone: expected one of"),
        ({"flow_after": 4}, "flow_after: expected 0 to 3"),
        ({"learn": "tau,mu"}, "learn: expected names among"),
        ({"flow_layers": 2}, "takes the options"),
        ({"system": "flow_of_flow_2d", "flow_layers": 1, "conv_between": False}, "conv_between"),
        ({"system": "flow_2d"}, "flow: tvl1"),
        ({"system": "flow_2d", "flow": "given"}, "flow: tvl1"),
        ({"steps": 0}, "steps: expected a whole number >= 1"),
        ({"iterations": 0}, "iterations: expected a whole number >= 1"),
        ({"train_clips": 1, "batch": 13}, "batch: expected at most the 12 clips"),
        ({"noise": -1.0}, "noise >= 0"),
        ({"rgb_share": 1.0}, "rgb_share"),
        ({"system": "rgb_i3d", "backbone": "i3d", "rgb_share": 0.5}, "rgb_share: expected a system that ends in"),
    ],
)
def test_what_the_study_cannot_do_is_refused_before_it_trains(values, reason):
    with pytest.raises(ValueError, match=reason):
        questions.check(**DEFAULTS | values)


def test_the_study_measures_the_three_accuracies(tmp_path):
    values = TINY | {"scaling": "batch", "learn": "", "rgb_share": 0.3, "noise": 5.0, "pictures": "differences"}
    questions.check(**DEFAULTS | values)
    found = questions.synthetic_motion(**values, data=str(tmp_path))
    assert found.keys() == {"top1", "basic", "pairs"}
    assert all(0 <= value <= 100 for value in found.values())
    assert questions.synthetic_motion(**values, data=str(tmp_path)) == found


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "set"
    SyntheticMotion.make(root, train=2, test=0, unused=0, size=16, frames=5)
    return lambda **options: questions.Altered(
        SyntheticMotion(root),
        5,
        **{"train": True, "seed": 3, "pictures": "frames", "order": "kept", "noise": 0.0} | options,
    )


def test_shuffled_clips_have_the_same_frames_in_another_order(clips):
    plain, shuffled = clips(), clips(order="shuffled")
    orders = []
    for i in range(6):
        frames, other = (c[i][0].transpose(0, 1) for c in (plain, shuffled))
        orders.append([next(j for j in range(5) if torch.equal(frames[j], frame)) for frame in other])
        assert sorted(orders[-1]) == list(range(5))
    assert len({tuple(order) for order in orders}) > 3
    assert torch.equal(shuffled[0][0], clips(order="shuffled")[0][0])
    shuffled.set_epoch(1)
    assert any(not torch.equal(clips(order="shuffled")[i][0], shuffled[i][0]) for i in range(4))


def test_differences_and_noise_are_of_the_size_they_say(clips):
    plain = clips()[1][0]
    torch.testing.assert_close(clips(pictures="differences")[1][0], (plain[:, 1:] - plain[:, :-1]) / 2)
    noise = (clips(noise=20.0)[1][0] - plain) * 127.5
    np.testing.assert_allclose([float(noise.mean()), float(noise.std())], [0, 20], atol=1.0)


def test_scaled_by_the_batch_a_clips_flow_depends_on_its_mates(rng):
    layer, batch_layer = (ClipFlow(2, 3, (), "reference", scaling) for scaling in ("clip", "batch"))
    x = torch.rand(2, 2, 3, 6, 6, generator=rng)
    x[1] *= 4
    alone = torch.stack(layer(x[:1]))
    whole = torch.stack(batch_layer(x))
    # one clip of the same values is one batch of them: the pairs within each clip have the same flow
    joined = x.transpose(0, 1).reshape(1, 2, 6, 6, 6)
    by_hand = torch.stack(layer(joined)).reshape(2, 2, 5, 6, 6)
    torch.testing.assert_close(whole[:, 0], by_hand[:, :, :2])
    torch.testing.assert_close(whole[:, 1], by_hand[:, :, 3:])
    assert not torch.allclose(whole[:, 0], alone[:, 0], atol=1e-3)
    torch.testing.assert_close(torch.stack(layer(x))[:, 0], alone[:, 0])
    with pytest.raises(ValueError, match="scaling: expected one of clip, batch; got 'frame'"):
        ClipFlow(2, 3, (), "reference", "frame")


def test_every_question_has_its_answer_in_the_results():
    names = {path.stem for path in (results_folder() / "sweeps").glob("*.csv")}
    assert names | {"table"} == {path.stem for path in SHIPPED}  # the table's: results/synthetic_motion.csv
    for name in names:
        sweep, rows = answers.measured(name, "small" if name in REAL else "tiny")
        assert len(rows) == len(sweep.points) > 1
        assert all(row[metric] >= 0 for row in rows for metric in sweep.metrics)
        assert all(row[metric] <= 100 for row in rows for metric in sweep.chance)


def test_a_table_of_other_points_is_not_an_answer(tmp_path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    text = (results_folder() / "sweeps" / "iterations.csv").read_text().replace(",20,", ",30,")
    (tmp_path / "sweeps" / "iterations.csv").write_text(text)
    monkeypatch.setattr(answers, "results_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="holds other points"):
        answers.measured("iterations")
    with pytest.warns(match="holds other points"):
        answers.show_answer("iterations")


def test_an_accuracy_is_drawn_from_0_to_100_above_chance():
    sweep, rows = answers.measured("where")
    figure = draw(sweep, rows)
    assert [panel.get_ylim() for panel in figure.axes] == [(0, 103)] * 2
    assert [panel.lines[-1].get_ydata()[0] for panel in figure.axes] == [8.3, 50]
    assert [panel.get_ylabel() for panel in figure.axes] == ["basic (%)", "pairs (%)"]


@pytest.mark.parametrize("chance", ["8.3", "{basic = 'high'}", "{basic = 120}"])
def test_chance_is_a_number_of_percent(tmp_path, chance):
    text = next(path for path in SHIPPED if path.stem == "where").read_text()
    file = tmp_path / "asks.toml"
    file.write_text(text.replace("chance = {basic = 8.3, pairs = 50}", f"chance = {chance}"))
    with pytest.raises(UsageError, match="chance"):
        read_sweep(file)


def is_as_expected(found):
    """The paper's claims on SyntheticMotion, of {system: accuracies}; within four standard errors of 240 clips."""
    rgb, one, two = (found[f"{name}_2d"] for name in ("rgb", "repflow", "flow_of_flow"))
    assert abs(rgb["top1"] - 100 / 12) < 7.2
    assert one["basic"] > 92  # 83.3 % of all, with the pairs at chance
    assert abs(one["pairs"] - 50) < 22.4
    assert two["top1"] > 90
    assert two["pairs"] > 95


def test_the_table_in_the_results_is_as_expected():
    rows = read_csv(results_folder() / "synthetic_motion.csv")
    mean = {
        system: {
            m: np.mean([float(row[m]) for row in rows if row["system"] == system]) for m in ("top1", "basic", "pairs")
        }
        for system in {row["system"] for row in rows}
    }
    is_as_expected(mean)
    assert mean["repflow_2plus1d"]["top1"] > mean["rgb_2plus1d"]["top1"]


@pytest.mark.slow
def test_the_table_is_as_expected_with_another_seed(tmp_path):
    values = {"steps": 300, "seed": 5, "data": str(tmp_path)}
    is_as_expected(
        {
            name: questions.synthetic_motion(system=name, **values)
            for name in ("rgb_2d", "repflow_2d", "flow_of_flow_2d")
        }
    )


@pytest.mark.slow
def test_flow_helps_a_network_over_time_that_has_few_clips(tmp_path):
    values = {"backbone": "tiny_2plus1d", "train_clips": 5, "steps": 120, "seed": 5, "data": str(tmp_path)}
    plain, layered = (questions.synthetic_motion(system=f"{name}_2plus1d", **values) for name in ("rgb", "repflow"))
    assert layered["basic"] > plain["basic"] + 30


def test_folds_repeat_an_experiment_as_seeds_do():
    sweep, rows = answers.measured("real_video_few", "small")
    lines = summary(sweep, rows)
    assert [list(line) for line in lines] == [["system", "train_clips", *sweep.metrics]] * 15
    runs = [row["top1"] for row in rows if (row["system"], row["train_clips"]) == ("rgb_2d", 5)]
    assert len(runs) == 3
    mean = f"{np.mean(runs):.1f} ({min(runs):.1f} to {max(runs):.1f})"
    (line,) = (line for line in lines if (line["system"], line["train_clips"]) == ("rgb_2d", "5"))
    assert line["top1"] == mean


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory):
    """The folder in which the first of them makes the clips for all."""
    return str(tmp_path_factory.mktemp("few"))


@pytest.mark.parametrize(
    ("kind", "frozen", "learned"),
    [
        ("conv", [], ["reduce", "conv", "reduce2", "expand"]),
        ("1x1", [], ["reduce", "reduce2", "expand"]),
        ("conv frozen", ["conv", "reduce2"], ["reduce", "expand"]),
        ("1x1 frozen", ["reduce2"], ["reduce", "expand"]),
        ("bare", ["reduce2"], ["reduce", "expand"]),
        ("both flows", ["layer.reduce2"], ["layer.reduce", "expand"]),
    ],
)
def test_between_two_flows_stands_what_is_said(few_clips, kind, frozen, learned):
    few = {"train_clips": 4, "test_clips": 1, "steps": 2, "iterations": 2, "data": few_clips}
    setting = between.Setting(between=kind, padding="circular", **few)
    training, test = setting.make_clips()
    torch.manual_seed(setting.seed)
    fresh, network = setting.build().flow, between.trained(setting, training)
    for names, same in ((frozen, True), (learned, False)):
        for name in names:
            weights = (layer.get_submodule(name).weight for layer in (fresh, network.flow))
            assert torch.equal(*weights) == same, name
    assert {part.padding_mode for part in network.modules() if isinstance(part, nn.Conv3d)} == {"circular"}
    if kind in ("bare", "both flows"):
        weight = network.flow.get_submodule(frozen[0]).weight
        maps = torch.rand(1, 16, 2, 3, 3)
        torch.testing.assert_close(nn.functional.conv3d(maps, weight), maps[:, :8])
    found = between.accuracies(network, test)
    assert all(found[name] in (0, 25, 50, 75, 100) for name in ("direction", "pairs"))
