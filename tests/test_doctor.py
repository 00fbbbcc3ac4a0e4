import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE

import repflow
from repflow import records
from repflow.cli import doctor, main


def lines_of(part):
    return {name: (state, found) for state, name, found in doctor._surviving(part)}


@pytest.fixture
def only(monkeypatch):
    """The doctor with nothing to look at but these packages."""

    def choose(**needs):
        monkeypatch.setattr(doctor, "_requirements", lambda: needs)

    return choose


def test_each_part_has_its_line_and_nothing_is_bad_here(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[:4].strip() for line in lines} <= {"OK", "none"}
    named = {line[6:36].strip(): line[:4].strip() for line in lines}
    assert {"python", "repflow", "torch", "torchvision", "numba", "av", "lightning-fabric", "jupyterlab"} <= set(named)
    assert {"GPU", "disk for runs", "disk for data", "cache of Numba", "cache of torch.hub"} <= set(named)
    found = {engine: named[f"engine {engine}"] for engine in ("reference", "cpu", "cuda")}
    assert found == {"reference": "OK", "cpu": "OK", "cuda": "OK" if torch.cuda.is_available() else "none"}
    assert [line[6:36].split()[1] for line in lines if "decoder " in line[:36]] == ["pyav", "lintel", "torchcodec"]
    assert named["decoder pyav"] == "OK"


def test_every_dependency_is_looked_at_and_the_tests_own_are_not():
    needs = doctor._requirements()
    assert needs["torch"][1] == ""
    assert needs["submitit"][1] == "slurm"
    assert not {"pytest", "hypothesis", "playwright"} & set(needs)
    assert all(doctor._digits(least) for least, _ in needs.values())


def test_an_installed_package_knows_what_it_needs(monkeypatch, tmp_path):
    """Without a checkout around it, from its metadata."""
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "repflow" / "cli" / "doctor.py"))
    needs = ["torch>=2.11", 'submitit>=1.5; extra == "slurm"', 'pytest>=8; extra == "test"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    assert doctor._requirements() == {"torch": ("2.11", ""), "submitit": ("1.5", "slurm")}


def test_what_is_missing_is_bad_or_none(only):
    only(**{"no-such-thing": ("1.2", ""), "no-such-extra": ("3", "bench")})
    lines = lines_of(doctor._versions)
    assert lines["no-such-thing"] == ("BAD", "not installed; python -m pip install 'no-such-thing>=1.2'")
    assert lines["no-such-extra"] == ("none", "not installed; python -m pip install 'no-such-extra>=3'")


def test_a_version_that_is_too_old(only):
    only(tqdm=("1000.0", ""), psutil=("6", ""))
    lines = lines_of(doctor._versions)
    assert lines["tqdm"][0] == "BAD"
    assert "expected 1000.0 or newer; python -m pip install 'tqdm>=1000.0'" in lines["tqdm"][1]
    assert lines["psutil"][0] == "OK"


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cu130", "3.0"])
def test_versions_are_compared_as_numbers(version):
    assert doctor._digits("2.9") < doctor._digits("2.11") <= doctor._digits(version)


def test_a_broken_import_stops_nothing_else(only, monkeypatch, capsys):
    """A torchvision that PyTorch's build doesn't fit to: what comes after it has its lines all the same."""
    only(torchvision=("0.1", ""), tqdm=("4", ""))
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("BAD") and "torchvision" in line[:30]]
    assert len(bad) == 1
    assert "python -m uv pip install --reinstall --torch-backend auto torch torchvision" in bad[0]
    for name in ("tqdm", "engine reference", "engine cpu", "decoder pyav", "cache of Numba"):
        assert any(line.startswith(f"OK    {name}") for line in lines), name


def test_a_part_that_fails_says_so_and_the_others_go_on(monkeypatch, capsys):
    def _gpu():
        yield "OK", "GPU", "first"
        raise OSError("the driver\nhas gone")

    def _disk():
        yield "OK", "disk for runs", "room"

    monkeypatch.setattr(doctor, "_gpu", _gpu)
    monkeypatch.setattr(doctor, "_disk", _disk)
    for name in ("_versions", "_engines", "_decoders"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    assert main(["doctor"]) == 1
    first, failed, room, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == ["OK", "GPU", "first"]
    assert failed.startswith("BAD   gpu")
    assert "OSError: the driver; mend" in failed
    assert room.startswith("OK    disk for runs")


@pytest.mark.parametrize("broken", ["raises", "computes something else"])
def test_a_broken_engine_is_bad_and_the_others_are_not(monkeypatch, broken):
    from repflow.solver import cpu

    forward = cpu.forward

    def wrong(*arguments):
        if broken == "raises":
            raise RuntimeError("LLVM has no such target")
        flow, dual, steps = forward(*arguments)
        return flow + 1, dual, steps

    monkeypatch.setattr(cpu, "forward", wrong)
    lines = lines_of(doctor._engines)
    state, found = lines["engine cpu"]
    assert state == "BAD"
    assert ("LLVM has no such target" if broken == "raises" else "else than the reference") in found
    assert "python -m pip install --force-reinstall numba; until then take engine='reference'" in found
    assert lines["engine reference"][0] == "OK"


@pytest.fixture
def sealed(tmp_path):
    """A place that nobody can write, root neither: below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "below"


def test_caches_that_cannot_be_written(sealed, monkeypatch):
    from repflow.solver import cpu

    monkeypatch.setenv("TORCH_HOME", str(sealed))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(sealed))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu, "_advance", SimpleNamespace(stats=SimpleNamespace(cache_path=None)))
    lines = {}
    for part in (doctor._numba_cache, doctor._weights_cache, doctor._triton_cache):
        lines |= lines_of(part)
    assert {name: state for name, (state, _) in lines.items()} == dict.fromkeys(
        ("cache of Numba", "cache of torch.hub", "cache of Triton"), "BAD"
    )
    assert lines["cache of Numba"][1] == "no folder cannot be written; export NUMBA_CACHE_DIR=FOLDER"
    assert lines["cache of torch.hub"][1].endswith("export TORCH_HOME=FOLDER")
    assert lines["cache of Triton"][1].endswith("export TRITON_CACHE_DIR=FOLDER")


def test_caches_that_do_not_exist_yet_are_fine_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "new" / "torch"))
    assert lines_of(doctor._weights_cache)["cache of torch.hub"][0] == "OK"
    assert list(tmp_path.iterdir()) == []


def test_folders_for_results_and_data(sealed, tmp_path, monkeypatch):
    monkeypatch.setenv("REPFLOW_DATA", str(sealed))
    monkeypatch.chdir(tmp_path)
    lines = lines_of(doctor._disk)
    assert lines["disk for runs"][0] == "OK"
    assert lines["disk for data"][0] == "BAD"
    assert "cannot be written; export REPFLOW_DATA=FOLDER" in lines["disk for data"][1]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=5e8))
    state, found = lines_of(doctor._disk)["disk for runs"]
    assert state == "BAD"
    assert "less than 1 GB; repflow run --out FOLDER" in found


@pytest.mark.parametrize(
    ("driver", "build", "hidden", "state", "said"),
    [
        (None, "13.0", False, "none", "all runs on the CPU"),
        ("580.1", "13.0", True, "none", "unset CUDA_VISIBLE_DEVICES"),
        ("580.1", None, False, "none", "--torch-backend auto"),
        ("470.1", "13.0", False, "BAD", "cannot use driver 470.1"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, driver, build, hidden, state, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(records, "driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ((found_state, found),) = lines_of(doctor._gpu).values()
    assert found_state == state
    assert said in found


def test_a_gpu_has_name_memory_and_driver(monkeypatch):
    device = SimpleNamespace(name="A GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    monkeypatch.setattr(records, "driver", lambda: "580.1")
    assert lines_of(doctor._gpu) == {"GPU": ("OK", f"A GPU, 24 GiB, driver 580.1, CUDA {torch.version.cuda}")}


def test_the_report_names_neither_home_nor_user_nor_machine(only, monkeypatch, tmp_path, capsys):
    home = tmp_path / "people" / "jdoe"
    home.mkdir(parents=True)
    elsewhere = tmp_path / "scratch" / "jdoe" / "sets"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setenv("REPFLOW_DATA", str(elsewhere))
    monkeypatch.setattr(platform, "node", lambda: "box17")
    monkeypatch.setattr(doctor, "_engines", lambda: iter(()))
    only()

    def _decoders():
        yield "none", "decoder pyav", f"box17: {os.sep}home{os.sep}ann{os.sep}lib.so, {home}"

    monkeypatch.setattr(doctor, "_decoders", _decoders)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "HOST: ~/lib.so, ~\n" in out
    assert f"~{os.sep}torch{os.sep}hub" in out
    assert f"scratch{os.sep}USER{os.sep}sets" in out
    assert not any(secret in out for secret in ("/jdoe", "/ann", "box17"))


def test_a_home_that_is_the_root_changes_no_path(monkeypatch):
    monkeypatch.setenv("HOME", os.sep)
    assert doctor._anonymous("/usr/lib/x") == "/usr/lib/x"


def test_this_machines_names_are_in_no_line(capsys):
    main(["doctor"])
    out = capsys.readouterr().out
    assert str(Path.home()) + os.sep not in out
    assert platform.node() not in out
    assert repflow.__version__ in out


@pytest.mark.parametrize("broken", ["torch", "av"])
def test_what_mends_a_broken_pytorch_or_pyav_is_said(tmp_path, broken):
    (tmp_path / broken).mkdir()
    (tmp_path / broken / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    done = subprocess.run(
        [sys.executable, "-m", "repflow", "doctor"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "libcudart" in last
    assert "uv pip install --reinstall --torch-backend auto torch torchvision av" in last
