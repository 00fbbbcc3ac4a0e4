import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE, wait_for
from nbformat.v4 import new_code_cell, new_notebook, writes

import repflow
from repflow.cli import main
from repflow.data import HMDB51

REPFLOW = [sys.executable, "-m", "repflow"]


def write_notebook(path, parameters, *cells):
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(writes(new_notebook(cells=[tagged, *map(new_code_cell, cells)])))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "repflow: no notebook 'no_such'"),
        (["-p", "stesp", "3", "NOTEBOOK"], "repflow: no parameter 'stesp', did you mean 'steps'?"),
        (["NOTEBOOK", "-p", "steps", "many"], "steps (of the optimiser) takes a whole number, not 'many'"),
        (["NOTEBOOK", "--profile", "small"], "profiles.toml"),
    ],
)
def test_wrong_usage_is_one_line_and_starts_nothing(tmp_path, capsys, arguments, message):
    notebook = write_notebook(tmp_path / "a.ipynb", "steps: int = 3  # of the optimiser")
    arguments = [notebook if argument == "NOTEBOOK" else argument for argument in arguments]
    assert main(["run", *arguments, "--out", str(tmp_path / "runs")]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert message in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.ipynb"]


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run", "-p", "steps"], ["run", "--profile", "huge"]])
def test_the_parser_refuses_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: repflow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["evaluate", "--bogus"], "evaluate"),
        (["data", "check", "ROOT", "--bogus"], "data check"),
        (["bench", "solver", "--bogus", "3"], "bench solver"),
        (["data", "--bogus", "check", "ROOT"], "data"),
    ],
)
def test_unknown_options_show_the_usage_of_their_command(arguments, command, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"usage: repflow {command} [-h]")
    assert f"repflow {command}: error: unrecognized arguments: --bogus" in error


@pytest.mark.parametrize("option", ["--channels", "--layer"])
def test_options_of_the_flow_inside_a_model_need_one(option, tmp_path, capsys):
    assert main(["flow", "a.avi", "--out", str(tmp_path / "a.gif"), option, "0"]) == 2
    assert f"{option}: is of the flow inside a trained model; name it: --checkpoint" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"repflow {repflow.__version__}\n"


def test_an_unwritable_folder_is_one_line(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "a.ipynb", "steps: int = 3")
    assert main(["run", notebook, "--out", notebook]) == 1
    assert capsys.readouterr().err.startswith(f"repflow: no results can be written to {notebook}")


# Runs commands that end at once, and prints what they have loaded.
QUICK = """
import contextlib, os, sys
from repflow.cli import main
for line in ("--help", "--version", "fly", "train --help", "data check . --bogus", "train --model a --out b --data c d",
             "evaluate", "evaluate --checkpoint a --data c d", "flow a.avi --out a.txt",
             "flow a.avi --out a.gif --layer 0",
             "bench tvl1 --repeats 0", "data make . --train 0", "sweep a.toml --jobs 0"):
    with contextlib.suppress(SystemExit), open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            code = main(line.split())
        assert code == 2, line
print(*sys.modules)
"""


def test_help_and_wrong_usage_load_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "repflow.cli.train" in loaded
    assert not {"torch", "numpy", "av", "papermill", "nbconvert", "nbformat", "IPython", "matplotlib"} & loaded


def test_a_package_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "repflow.official", None)
    assert main(["convert", "a.pt", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("repflow: import of repflow.official halted")
    assert error.endswith("`repflow doctor` tells what mends it\n")


def test_the_doctor_is_named_once(tmp_path):
    (tmp_path / "safetensors.py").write_text("raise ImportError('broken')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "repflow", "train", "--data", "folder", ".", "--model", "rgb_2d", "--out", "o"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "repflow: broken; `repflow doctor` tells what mends it\n"


# Each line in a process of its own, forked before the package is imported, which leaves `f`.
ORDERS = """
import repflow; f = repflow.tvl1
from repflow import tvl1 as f
import repflow.tvl1; f = repflow.tvl1
import repflow.tvl1 as f
from repflow.tvl1 import pyramid; import repflow; f = repflow.tvl1
import repflow.tvl1; from repflow import tvl1 as f
import repflow.data; f = repflow.tvl1
import repflow; repflow.video; import repflow.figures; f = repflow.tvl1
from repflow import *; f = tvl1; assert callable(build_model) and data.Clips and video.probe and official.load
import importlib as i, repflow; repflow.tvl1; i.reload(repflow); f = repflow.tvl1
import importlib as i, sys, repflow.tvl1; i.reload(repflow); i.reload(sys.modules["repflow.tvl1"]); f = repflow.tvl1
""".strip().splitlines()
IN_ORDER = """
import os, sys, torch, av
import matplotlib.pyplot, numpy, PIL.Image, safetensors.torch, tqdm.auto  # what else takes long, once for all children
assert not [name for name in sys.modules if name.startswith("repflow")]
for line in sys.stdin:
    if not (child := os.fork()):
        try:
            exec(line)
            assert type(f).__name__ == "function" and f.__qualname__ == "tvl1"
            assert "tvl1" in dir(sys.modules["repflow"])
        except BaseException as error:
            print(line.strip(), repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print("done")
"""


def test_tvl1_is_the_function_in_every_order_of_imports():
    done = subprocess.run([sys.executable, "-c", IN_ORDER], input="\n".join(ORDERS), capture_output=True, text=True)
    assert done.stdout.splitlines() == ["done"], done.stderr


def test_an_unknown_name_of_the_package_is_none():
    for name in ("no_such_name", "_no_such_name"):
        with pytest.raises(AttributeError, match=f"module 'repflow' has no attribute '{name}'"):
            getattr(repflow, name)
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        from repflow import no_such_name  # noqa: F401


def test_an_installed_package_finds_its_own_notebooks(tmp_path):
    """A wheel carries the notebooks inside the package; a folder `notebooks` beside it is someone else's."""
    package = tmp_path / "site" / "repflow"
    shutil.copytree(Path(repflow.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    write_notebook(package / "notebooks" / "01_inside.ipynb", "steps: int = 3")
    write_notebook(package.parent / "notebooks" / "02_outside.ipynb", "steps: int = 3")
    variables = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [*REPFLOW, "run", "no_such"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there are: 01_inside;" in done.stderr


WAIT = """
import json, os, subprocess, time
children = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
with open(pids + ".new", "w") as file:
    json.dump([os.getpid(), os.getppid(), *[child.pid for child in children]], file)
os.rename(pids + ".new", pids)
time.sleep(600)
"""


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# SIGTERM as the first is like these: see test_interrupts.py.
@pytest.mark.parametrize(("number", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP)])
def test_a_signal_ends_all_processes_and_keeps_what_there_is(tmp_path, number, second):
    waiting = write_notebook(tmp_path / "01_wait.ipynb", "pids: str = ''", "print('begun')", WAIT)
    never = write_notebook(tmp_path / "02_never.ipynb", "steps: int = 3")
    pids = tmp_path / "pids"
    command = [*REPFLOW, "run", waiting, never, "-p", "pids", str(pids), "--out", str(tmp_path / "runs")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(pids.exists, process)
        started = json.loads(pids.read_text())
        assert all(map(alive, started))
        process.send_signal(number)
        wait_for(lambda: not alive(started[0]), process)  # the first has come, and is at work
        process.send_signal(second)  # an impatient second one must not break the cleaning up
        stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert not any(map(alive, started))
    assert "Traceback" not in stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert not out.name.startswith(".")
    names = ["01_wait.html", "01_wait.ipynb", "01_wait.metrics.json", "api.html", "index.html"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "begun" in (out / "01_wait.html").read_text()
    assert "Not run: 02_never" in (out / "index.html").read_text()


def test_a_data_set_is_made_checked_and_its_flow_extracted(tmp_path, capsys):
    root = tmp_path / "set"
    assert main(["data", "make", str(root), "--train", "1", "--test", "1", "--size", "32", "--frames", "4"]) == 0
    assert main(["data", "check", str(root), "--workers", "1"]) == 0
    assert "ok" in capsys.readouterr().out
    bad = root / "left" / "left_test_0000.avi"
    bad.write_bytes(b"no video")
    assert main(["data", "check", str(root), "--workers", "1"]) == 1
    assert "left/left_test_0000.avi" in capsys.readouterr().out
    data = HMDB51(root, subset="test")
    assert (len(data), data.expected, data.quarantined) == (11, 12, ["left/left_test_0000.avi"])
    (root / "quarantine.txt").rename(tmp_path / "quarantine.txt")
    for name in (tmp_path, tmp_path / "quarantine.txt"):
        assert main(["data", "extract-flow", str(root), "--workers", "1", "--quarantine", str(name)]) == 0
    assert not (tmp_path / "set-flow" / "left" / "left_test_0000.avi.mkv").exists()
    assert main(["data", "check", str(root), "--workers", "1", "--out", str(tmp_path)]) == 1
    assert f"--quarantine {tmp_path}" in capsys.readouterr().out
    assert main(["data", "extract-flow", str(root), "--workers", "1"]) == 1
    assert "left_test_0000.avi" in capsys.readouterr().out
    videos, flows = (sorted(folder.rglob(ending)) for folder, ending in ((root, "*.avi"), (tmp_path, "*.avi.mkv")))
    assert len(flows) == len(videos) - 1


@pytest.mark.parametrize(
    "arguments",
    [["check", "ROOT", "--workers", "0"], ["extract-flow", "ROOT", "--width", "0"], ["make", "ROOT", "--frames", "2"]],
)
def test_wrong_numbers_for_data_are_one_line(tmp_path, capsys, arguments):
    assert main(["data", *(str(tmp_path) if argument == "ROOT" else argument for argument in arguments)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_is_not_there(tmp_path, capsys):
    for what in ("check", "extract-flow", "unpack"):
        assert main(["data", what, str(tmp_path / "nowhere")]) == 1
        assert "nowhere" in capsys.readouterr().err
