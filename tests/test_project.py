"""The project's own files agree with each other."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import map as package_map
import pytest
import yaml
from markers import marked
from readme_tables import sections

from repflow.cli import build_parser, main
from repflow.data.synthetic import SyntheticMotion
from repflow.files import read_csv
from repflow.lab.jobs import find_notebooks
from repflow.records import paper_table

ROOT = Path(__file__).parents[1]
README, RESULTS = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "results" / "README.md"))


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_conda_and_pip_install_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert f"python{project['requires-python']}" in conda
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", *pip["pip"])[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    # Nothing but what pip does not bring: no package may be asked for in two versions.
    assert {re.split("[<>=]", name)[0] for name in conda} == {"python", "pip", "ffmpeg"}


def test_every_dependency_is_locked_and_says_who_needs_it():
    text = (ROOT / "pyproject.toml").read_text()
    lock = (ROOT / "requirements.lock").read_text()
    versions = (ROOT / "ci" / "versions").read_text()
    lines = re.findall(r'^  "([a-zA-Z0-9-]+)>=[\d.]+[,!=\d.]*",(.*)$', text, re.MULTILINE)
    assert len(lines) > 15
    for name, comment in lines:
        assert comment.strip().startswith("#"), name
        # torchcodec belongs to PyTorch's build, and no test needs it.
        locked = re.search(rf"^{name}==", lock, re.MULTILINE) or f"{name.upper()}=" in versions
        assert locked or name == "torchcodec", name


def test_the_version_is_one():
    from repflow import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_module_imports_a_private_name():
    for path in [*(ROOT / "repflow").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("repflow"):
                assert not [alias.name for alias in node.names if re.match("_[a-z]", alias.name)], path


def test_the_picture_in_contributing_is_current():
    """`python tools/map.py` writes it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert marked(text, "map")[1] == package_map.picture()


def test_no_file_names_a_package_index_or_a_place_on_a_machine():
    hosts = ["pypi" + ".org", "python" + "hosted", "download.py" + "torch", "/home" + "/", "/ro" + "ot/"]
    for path in tracked():
        if path.suffix not in (".png", ".gif", ".npz", ".safetensors", ".woff2"):
            text = path.read_text(encoding="utf-8")
            assert not [host for host in hosts if host in text], path


def test_results_show_the_paper_s_numbers():
    shown = {}
    for line in RESULTS.splitlines():
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and "±" in cells[4]:
            shown[cells[0]] = [cell.replace("–", "") for cell in cells[1:5]]
    columns = ("kinetics400", "hmdb51", "hmdb51_kinetics")
    assert shown == {
        name: [*(row[c] for c in columns), f"{row['milliseconds']} ± {row['spread']}"]
        for name, row in paper_table().items()
    }


def test_the_tables_show_our_measured_numbers():
    assert len({row["seed"] for row in read_csv(ROOT / "results" / "synthetic_motion.csv")}) >= 3
    for name, content in sections(ROOT / "results").items():
        assert marked(README if name == "results on real video" else RESULTS, name)[1] == content


def test_paper_table_is_the_paper_s():
    rows = paper_table()
    assert len(rows) == 19
    assert sum(row["readme"] == "yes" for row in rows.values()) == 6
    assert 13.8 < float(rows["(2+1)D Two-Stream"]["milliseconds"]) / 622 < 13.9


def test_links_in_the_readme_lead_somewhere():
    for page in (ROOT / name for name in ("README.md", "FAQ.md", "results/README.md", "docs/training.md")):
        links = re.findall(r"\]\((?!https:)([^)#]+)\)", page.read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_code_in_the_readme_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    names = {}
    exec(compile(code, "README", "exec"), names)  # noqa: S102 (our own text)
    assert names["out"].shape == (2, 64, 7, 28, 28)
    assert names["flow"].shape == (2, 240, 320)
    assert names["scores"].shape == (1, 51)
    assert len(names["systems"]) > 15


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks, on a video of our own and as small as they go."""
    folder = tmp_path_factory.mktemp("notebooks")
    SyntheticMotion.make(folder / "set", train=1, test=0, unused=0, size=64, frames=4)
    video = next((folder / "set" / "right").glob("*.avi"))
    values = {
        "video": video, "iterations": 4, "train_clips": 4, "test_clips": 4, "steps": 2, "repeats": 1, "side": 64,
        "frames": 6, "data": folder / "data", "channels": 4, "devices": 2,
    }  # fmt: skip
    arguments = [part for name, value in values.items() for part in ("-p", name, str(value))]
    code = main(["run", "--out", str(folder / "runs"), *arguments])
    return code, next((folder / "runs").iterdir())


def test_every_notebook_runs_with_other_parameters(executed):
    code, run = executed
    assert code == 0
    assert (run / "index.html").is_file()
    for notebook in find_notebooks():
        assert {path.suffix for path in run.glob(f"{notebook.stem}*")} == {".ipynb", ".html", ".json", ".png"}


def test_the_tests_that_the_table_of_differences_names_are_there():
    table = (ROOT / "notebooks" / "02_representation_flow_layer.ipynb").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table))
    defined = {
        name for file in ROOT.glob("tests/test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert len(named) > 10
    assert named <= defined


@pytest.mark.parametrize("name", ["ci", "gpu"])
def test_workflows_only_call_scripts_and_may_only_read(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    workflow = {"on" if key is True else key: value for key, value in yaml.safe_load(text).items()}  # YAML 1.1's on
    jsonschema.validate(workflow, json.loads((ROOT / "tests" / "workflow.schema.json").read_text()))
    for job in workflow["jobs"].values():
        scripts = [step["run"].split()[0] for step in job["steps"] if "run" in step]
        assert scripts
        assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    if name == "gpu":  # a machine of ours: no stranger's code on it
        assert "pull_request" not in workflow["on"]
        assert workflow["on"]["push"]["branches"] == ["main"]


def test_a_development_container_calls_the_same_set_up():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    known = {"name", "image", "hostRequirements", "postCreateCommand", "forwardPorts", "customizations"}
    assert set(container) <= known  # keys of the format; an unknown one would be ignored without a word
    assert container["postCreateCommand"] == "ci/setup"
    assert os.access(ROOT / container["postCreateCommand"], os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert container["image"].rpartition(":")[2] in workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"] == "${containerWorkspaceFolder}/.venv/bin/python"


def test_gpu_checks_say_that_they_are_skipped(tmp_path):
    """On this machine with any GPU hidden."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    command = [ROOT / "ci" / "gpu", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ci/gpu: SKIPPED: PyTorch finds no GPU here\n")
    assert not (tmp_path / "out").exists()


def test_gpu_checks_run_every_part_and_tell_which_failed(tmp_path):
    """By a program that stands for a Python with a GPU: it notes what it is asked to do, and fails at the notebooks."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >>"$0.log"\ncase "$*" in *"repflow run"*) exit 3 ;; esac\n')
    python.chmod(0o755)
    command, environment = [ROOT / "ci" / "gpu", tmp_path / "out"], {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "ci/gpu: failed: notebooks\n")
    asked = [line.split() for line in (tmp_path / "python.log").read_text().splitlines()]
    parts = [words[2:] for words in asked if words[:2] == ["-m", "repflow"]]
    for words in parts:
        build_parser().parse_args(words)
    assert {" ".join(words[:2]) for words in parts} >= {
        f"bench {name}" for name in ("solver", "tvl1", "systems", "scaling")
    }
    assert {"doctor", "run"} <= {words[0] for words in parts}
    (tests,) = [words for words in asked if words[:2] == ["-m", "pytest"]]
    assert "tests/test_solver_cuda.py" in tests
    assert "-m gpu" in " ".join(tests)
