"""What `repflow doctor` reports, and of what."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import pytest
import torch
from conftest import PATIENCE

import repflow
from repflow import records, video
from repflow.cli import doctor, main
from repflow.solver import cpu


def report(capsys, code):
    """The state and the text of each line by its name; the exit code must be this one."""
    assert main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    return {line[6:36].strip(): (line[:4].strip(), line[38:]) for line in lines}


@pytest.fixture
def only(monkeypatch, tmp_path):
    """The doctor in a checkout that needs these packages, and those as the extra `more`."""

    def choose(*needs, more=()):
        lists = f"dependencies = {list(needs)}\noptional-dependencies = {{more = {list(more)}, test = ['pytest>=8']}}\n"
        (tmp_path / "pyproject.toml").write_text(f"[project]\n{lists}")
        monkeypatch.setattr(records, "checkout", lambda: tmp_path)

    return choose


def test_each_part_has_its_line_and_nothing_is_bad_here(capsys):
    lines = report(capsys, 0)
    assert {state for state, _ in lines.values()} <= {"OK", "none"}
    assert {"python", "repflow", "torch", "torchvision", "numba", "av", "lightning-fabric", "jupyterlab"} <= set(lines)
    assert {"GPU", "disk for runs", "disk for data", "cache of Numba", "cache of torch.hub", "submitit"} <= set(lines)
    assert not {"pytest", "hypothesis", "playwright"} & set(lines)
    engines = [lines[f"engine {name}"][0] for name in ("reference", "cpu", "cuda")]
    assert engines == ["OK", "OK", "OK" if torch.cuda.is_available() else "none"]
    assert lines["decoder pyav"][0] == "OK"
    assert repflow.__version__ in lines["repflow"]


def test_an_installed_package_knows_what_it_needs(monkeypatch, capsys):
    """Without a checkout around it, from its metadata."""
    monkeypatch.setattr(records, "checkout", lambda: None)
    needs = ["torch>=2.11", 'submitit>=1.5; extra == "slurm"', 'pytest>=8; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    lines = report(capsys, 0)
    assert {"torch", "submitit"} <= set(lines)
    assert not {"pytest", "numba"} & set(lines)


def test_packages_that_are_missing_or_too_old(only, capsys):
    only("no-such-thing>=1.2", "tqdm>=1000.0", "torch>=2.9", more=["no-such-extra>=3"])
    lines = report(capsys, 1)
    assert lines["no-such-thing"] == ("BAD", "not installed; python -m pip install 'no-such-thing>=1.2'")
    assert lines["no-such-extra"] == ("none", "not installed; python -m pip install 'no-such-extra>=3'")
    assert lines["tqdm"][0] == "BAD"
    assert "expected >=1000.0; python -m pip install 'tqdm>=1000.0'" in lines["tqdm"][1]
    assert lines["torch"][0] == "OK"  # 2.10 and later come after 2.9


def test_a_broken_import_stops_nothing_else(only, monkeypatch, capsys):
    """A torchvision that PyTorch's build doesn't fit to: what comes after it has its lines all the same."""
    only("torchvision>=0.1", "tqdm>=4")
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    lines = report(capsys, 1)
    assert lines["torchvision"][0] == "BAD"
    assert "python -m uv pip install --reinstall --torch-backend auto torch torchvision" in lines["torchvision"][1]
    for name in ("tqdm", "engine reference", "engine cpu", "decoder pyav", "cache of Numba"):
        assert lines[name][0] == "OK", name


def test_a_part_that_fails_says_so_and_the_others_go_on(only, monkeypatch, capsys):
    def gone():
        raise OSError("the driver\nhas gone")

    only()
    monkeypatch.setattr(records, "driver", gone)
    lines = report(capsys, 1)
    assert lines["gpu"][0] == "BAD"
    assert lines["gpu"][1].startswith("OSError: the driver; mend")
    assert lines["disk for runs"][0] == "OK"


@pytest.mark.parametrize("broken", ["raises", "computes something else"])
def test_a_broken_engine_is_bad_and_the_others_are_not(only, monkeypatch, capsys, broken):
    forward = cpu.forward

    def wrong(*arguments):
        if broken == "raises":
            raise RuntimeError("LLVM has no such target")
        flow, dual, steps = forward(*arguments)
        return flow + 1, dual, steps

    only()
    monkeypatch.setattr(cpu, "forward", wrong)
    lines = report(capsys, 1)
    state, found = lines["engine cpu"]
    assert state == "BAD"
    assert ("LLVM has no such target" if broken == "raises" else "else than the reference") in found
    assert "python -m pip install --force-reinstall numba; until then take engine='reference'" in found
    assert lines["engine reference"][0] == "OK"


@pytest.fixture
def sealed(tmp_path):
    """A place that nobody can write, root neither: below a file."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "below")


@pytest.mark.parametrize("value", ["sealed", "new"])
def test_folders_of_caches_and_data(only, sealed, value, tmp_path, monkeypatch, capsys):
    """One that does not exist yet is fine, and not made."""
    only()
    folder = sealed if value == "sealed" else str(tmp_path / "new" / "torch")
    monkeypatch.setattr(numba.config, "CACHE_DIR", folder)
    for variable in ("TORCH_HOME", "REPFLOW_DATA"):
        monkeypatch.setenv(variable, folder)
    lines = report(capsys, value == "sealed")
    for name, variable in (
        ("cache of Numba", "NUMBA_CACHE_DIR"), ("cache of torch.hub", "TORCH_HOME"), ("disk for data", "REPFLOW_DATA"),
    ):  # fmt: skip
        state, found = lines[name]
        if value == "sealed":
            assert (state, found) == ("BAD", f"cannot be written; export {variable}=FOLDER")
        else:
            assert state == "OK"
    assert not (tmp_path / "new").exists()


def test_a_full_disk(only, monkeypatch, capsys):
    only()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=5e8))
    state, found = report(capsys, 1)["disk for runs"]
    assert state == "BAD"
    assert "less than 1 GB free; repflow run --out FOLDER" in found


@pytest.mark.parametrize(
    ("driver", "build", "hidden", "state", "said"),
    [
        (None, "13.0", False, "none", "all runs on the CPU"),
        ("580.1", "13.0", True, "none", "unset CUDA_VISIBLE_DEVICES"),
        ("580.1", None, False, "none", "--torch-backend auto"),
        ("470.1", "13.0", False, "BAD", "cannot use driver 470.1"),
    ],
)
def test_why_there_is_no_gpu(only, monkeypatch, capsys, driver, build, hidden, state, said):
    only()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(records, "driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found_state, found = report(capsys, state == "BAD")["GPU"]
    assert found_state == state
    assert said in found


def test_the_report_shows_no_path(only, monkeypatch, capsys):
    only()
    found = f"'{Path.home() / 'lib.so'}': cannot open (see {os.sep}home{os.sep}ann), C:{os.sep}Users{os.sep}ann; 3 GB"
    monkeypatch.setattr(video, "decoders", lambda: [("pyav", True, found)])
    assert report(capsys, 0)["decoder pyav"] == ("OK", "'PATH': cannot open (see PATH), PATH; 3 GB")


def test_this_machines_names_are_in_no_line(capsys):
    main(["doctor"])
    out = capsys.readouterr().out
    assert str(Path.home()) not in out
    assert platform.node() not in out


def test_what_mends_a_broken_pytorch_and_pyav_is_said(tmp_path):
    """By the doctor, who names all the rest, too; and whoever uses the package with one of them is sent there."""
    mended = {
        "torch": "uv pip install --reinstall --torch-backend auto torch",
        "av": "--force-reinstall --no-deps av==",
    }

    def broken(name):
        (tmp_path / name / name).mkdir(parents=True)
        text = f"raise OSError('libcudart.so.13 of {name}: cannot open shared object file')"
        (tmp_path / name / name / "__init__.py").write_text(text)
        return str(tmp_path / name)

    def run(folders, *arguments):
        path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
        command, variables = [sys.executable, *arguments], os.environ | {"PYTHONPATH": path}
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE)

    folders = [broken(name) for name in mended]
    done = run(folders, "-m", "repflow", "doctor")
    lines = {line[6:36].strip(): (line[:4].strip(), line[38:]) for line in done.stdout.splitlines()}
    assert (done.returncode, done.stderr) == (1, "")
    for name, said in mended.items():
        state, found = lines[name]
        assert state == "BAD"
        assert f"libcudart.so.13 of {name}" in found
        assert said in found
    assert {lines[name][0] for name in ("python", "tqdm", "jinja2")} == {"OK"}
    for name, folder in zip(mended, folders, strict=True):
        last = run([folder], "-c", "import repflow; repflow.data").stderr.strip().splitlines()[-1]
        needs = f"ImportError: repflow.data needs a package that cannot be imported (libcudart.so.13 of {name}"
        assert last.startswith(needs)
        assert last.endswith("`python -m repflow doctor` tells what mends it")
