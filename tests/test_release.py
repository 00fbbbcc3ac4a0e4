"""What is handed out: the wheel, the licences, and the commands that the texts show."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name

import av
import numpy as np
import pytest
import torch
import yaml
from api import FILE, lines
from licences import licence, locked, pytorch_build, table
from markers import marked

from repflow.cli import build_parser, main
from repflow.cli import train as train_command
from repflow.data import SyntheticMotion
from repflow.evaluation import Predictions
from repflow.lab.jobs import find_notebooks, plan
from repflow.models import build_model

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
VERSIONS = (ROOT / "ci" / "versions").read_text(encoding="utf-8")
LICENCES = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")


def test_public_names_and_signatures_are_those_that_were_written_down():
    """Where a change is meant: `python tools/api.py`, and a line in CHANGELOG.md."""
    assert FILE.read_text(encoding="utf-8").splitlines() == list(lines())


def test_the_names_that_replace_those_of_the_release_before_are_there():
    """A name of a former module that is kept for one release is the new one."""
    text = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    seen, kept = 0, []
    for row in re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE):
        old, new = (re.findall(r"`([\w./]+)`", cell) for cell in row)
        assert [name for name in new if "/" in name and not (ROOT / name).is_file()] == []
        found = [resolve_name(name) for name in new if name.startswith("repflow.")]
        seen += len(found)
        if old and old[0].rpartition(".")[0] in ("repflow.experiments", "repflow.benchmark"):
            former = resolve_name(old[0].rpartition(".")[0])
            names = [name.rpartition(".")[2] for name in old]
            kept += [name for name, now in zip(names, found, strict=True) if getattr(former, name) is now]
    assert seen > 40
    assert {"check", "plan", "Parameter", "run", "answers", "statistics", "paper_table"} <= set(kept)


# The wheel


@pytest.fixture(scope="module")
def uv():
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip("no uv here; ci/setup installs it")


@pytest.fixture(scope="module")
def wheel(uv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([uv, "build", "--wheel", "--out-dir", folder, ROOT], capture_output=True, text=True)
    if done.returncode and re.search("failed to (fetch|resolve)|no solution", done.stderr, re.IGNORECASE):
        pytest.skip(f"no wheel can be built without the network: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_what_the_package_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    read = [path.relative_to(ROOT) for path in (ROOT / "notebooks").rglob("*.toml")]
    read += [path.relative_to(ROOT) for path in find_notebooks()]
    assert {f"repflow/{path.as_posix()}" for path in read} <= names
    assert {"repflow/notebooks/profiles.toml", "repflow/results/paper.csv", "repflow/playground.js"} <= names
    assert {f"repflow/lab/templates/STIXTwoMath{end}" for end in (".woff2", "_OFL.txt")} <= names
    assert {
        f"repflow/data/{name}_classes.txt" for name in ("kinetics400", "kinetics600", "kinetics700", "hmdb51")
    } <= names
    assert {
        f"repflow/{path.relative_to(ROOT / 'repflow').as_posix()}" for path in ROOT.glob("repflow/**/*.py")
    } <= names
    assert [name for name in names if re.search(r"__pycache__|checkpoints/|tests/|\.pyc", name)] == []


@pytest.fixture(scope="module")
def installed(uv, wheel, tmp_path_factory):
    """Runs Python on the wheel's package, unpacked by itself, in a folder that is not the checkout."""
    home, empty = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("empty")
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", home, wheel], check=True)
    # Its solver is the checkout's: where it is of the same age, Numba takes the code that it compiled for that one.
    here, there = (folder / "repflow" / "solver" for folder in (ROOT, home))
    shutil.copystat(here / "cpu.py", there / "cpu.py")
    (there / "__pycache__").mkdir(exist_ok=True)
    for code in (here / "__pycache__").glob("cpu.*.nb?"):
        shutil.copy(code, there / "__pycache__")
    SyntheticMotion.make(empty / "set", train=1, test=0, unused=0, size=32, frames=4)
    shutil.copy(next((empty / "set" / "left").glob("*.avi")), empty / "video.avi")

    def run(*arguments):
        command = [sys.executable, "-P", *arguments]
        variables = {**os.environ, "PYTHONPATH": str(home), "REPFLOW_DATA": str(empty / "data")}
        return subprocess.run(command, cwd=empty, env=variables, capture_output=True, text=True)

    found = run("-c", "from importlib.util import find_spec; print(find_spec('repflow').origin)")
    assert Path(found.stdout.strip()).is_relative_to(home)
    return run, empty


def test_the_wheel_s_doctor(installed):
    run, _ = installed
    done = run("-m", "repflow", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK    engine cpu" in done.stdout
    assert "OK    torch " in done.stdout  # from the wheel's own metadata


def test_the_wheel_s_flow_of_a_video(installed):
    run, folder = installed
    done = run("-m", "repflow", "flow", "video.avi", "--out", "flow.gif")
    assert (done.returncode, done.stdout) == (0, "flow.gif\n"), done.stderr
    assert (folder / "flow.gif").read_bytes()[:4] == b"GIF8"


@pytest.mark.slow
def test_the_wheel_s_notebook_runs(installed):
    run, folder = installed
    done = run("-m", "repflow", "run", "01")
    assert done.returncode == 0, done.stderr
    page = folder / done.stdout.strip()
    assert page.is_file()
    assert (page.parent / "01_tvl1_from_scratch.html").is_file()
    assert (page.parent / "api.html").is_file()


# The licences


def rows(name):
    return dict(re.findall(r"^\| ([\w.-]+) \| (.+) \|$", marked(LICENCES, name)[1], re.MULTILINE))


def test_every_locked_package_has_its_licence():
    names = locked(LOCK)
    assert len(names) > 100
    assert [name for name in rows("locked packages") if name not in ("package", "---")] == names


def test_the_licences_are_those_that_the_packages_name():
    """But for those that each Python, or an environment without the lock, gets in another version."""
    installed = {re.sub(r"[-_.]+", "-", found.name).lower(): found.version for found in metadata.distributions()}
    pins = dict.fromkeys(locked(LOCK), ())
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE):
        pins[name] += (version,)
    same = [name for name, versions in pins.items() if versions == (installed.get(name),)]
    if len(same) < len(pins) / 2:
        pytest.skip("other versions than the locked ones")
    listed = rows("locked packages")
    assert {name: licence(name) for name in same} == {name: listed[name] for name in same}
    with pytest.raises(ValueError, match=r"no-such-thing is not installed; run ci/setup"):
        licence("no-such-thing")


def test_licences_of_pytorch_s_build():
    listed, here = rows("PyTorch's build"), pytorch_build()
    assert {"torch", "torchvision", "nvidia-cudnn-cu13"} <= set(listed)
    assert sum("proprietary" in text.lower() for text in listed.values()) > 10
    if "nvidia-cudnn-cu13" not in here or f"TORCH={torch.__version__.partition('+')[0]}\n" not in VERSIONS:
        pytest.skip("another PyTorch than the one that ci/setup takes by itself")
    assert marked(LICENCES, "PyTorch's build")[1] == table(here)


def test_what_asks_for_more_than_a_notice_is_told_of():
    copyleft = {name for part in ("locked packages", "PyTorch's build") for name, text in rows(part).items()
                if re.search("GPL|MPL|EPL|CDDL", text)}  # fmt: skip
    told = LICENCES.partition("## All locked packages")[0]
    assert copyleft >= {"certifi", "tqdm"}
    assert [name for name in copyleft if not re.search(rf"\b{name}\b", told)] == []


def test_pyav_s_wheel_holds_what_the_page_says():
    bundled = [path.name for path in Path(av.__file__).parents[1].glob("av.libs/*")]
    if not bundled:
        pytest.skip("PyAV brings no libraries of its own here")
    assert {"libx264", "libx265"} <= av.codecs_available
    assert [any(name.startswith(codec) for name in bundled) for codec in ("libx264", "libx265")] == [True, True]
    assert metadata.metadata("av")["License-Expression"] == rows("locked packages")["av"] == "BSD-3-Clause"


# The texts


def test_the_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for row in (
        "a system",
        "a backbone",
        "an engine",
        "a data set",
        "a notebook",
        "a sweep",
        "a command",
        "a benchmark",
    ):
        assert f"| {row}" in text
    named = re.findall(r"`((?:repflow|tests|notebooks|ci|data|results|docs)/[\w./]*)[`:]", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == ["notebooks/NN_name.ipynb"]


def test_this_work_and_the_paper_can_be_cited():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", citation["version"])  # semver.org
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    (paper,) = citation["references"]
    assert (paper["title"], paper["year"]) == ("Representation Flow for Action Recognition", 2019)
    assert [author["family-names"] for author in paper["authors"]] == ["Piergiovanni", "Ryoo"]


def texts():
    for pattern in ("*.md", "data/*.md", "docs/*.md", "results/**/*.md"):
        for path in ROOT.glob(pattern):
            yield path.read_text(encoding="utf-8")
    for path in find_notebooks():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


COMMAND = re.compile(r"\s*(?:\$ )?(?:srun |.* -m )?(?:\S*/)?repflow (.+)")


def shown():
    """The lines after `repflow` that stand in code blocks, and those between backticks."""
    blocks, inline = {}, {}
    for text in texts():
        prose, fenced = [], False
        for line in text.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced and not line.startswith("    "):
                prose.append(line)
            elif match := COMMAND.match(line):
                blocks[match[1]] = None
        for code in re.findall(r"`([^`\n]+)`", "\n".join(prose)):
            if match := COMMAND.match(code):
                inline[match[1]] = None
    return list(blocks), list(inline)


BLOCKS, INLINE = shown()
# Of those between backticks, some are names of commands, or leave out what varies.
WHOLE = [line for line in INLINE if re.search(r" (-|\d|[A-Z]+$)|[/.]", line) and "..." not in line]
NAMES = [line for line in INLINE if line not in WHOLE]

# What makes a command small enough to be run here. `run` is planned: names and types are checked, nothing starts.
TINY = {
    "flow": "--frames 3 --width 32",
    "data make": "--train 1 --test 0 --size 16 --frames 3",
    "data check": "--workers 1",
    "data extract-flow": "--workers 1",
    "train": "--workers 0 --set backbone=tiny_2d steps=1 batch=2 frames=5 crop=24 iterations=2",
    "evaluate": "",
    "classify": "",
    "sweep": "--dry-run",
    "compare": "",
    "doctor": "",
    "bench solver": "--channels 2 --pairs 2 --size 8 --iterations 2 --repeats 1",
    "bench scaling": "--channels 2 --pairs 2 --size 8 --iterations 2 --repeats 1",
    "bench tvl1": "--repeats 1",
    "bench video": "--clips 1 --repeats 1",
    "bench systems": "--profile tiny --repeats 1",
}
# A line that trains or evaluates on a data set, or takes the authors' weights, says so itself, and is only parsed.
NEEDS = re.compile(r"hmdb51|kinetics|official\.pt|\bGPU", re.IGNORECASE)
NEEDING = ("train", "evaluate", "classify", "convert", "data unpack")


# A text's way from a folder of videos to the labels of a new one: these belong together.
OWN = [line for line in BLOCKS if re.search(r"my_videos|runs/mine", line) and not line.startswith("run ")]


def words_of(line):
    words = shlex.split(line, comments=True)
    return words, " ".join(words[: 2 if words[0] in ("data", "bench") else 1])


def test_the_texts_show_commands():
    assert len(BLOCKS) > 15
    assert len(WHOLE) > 3
    shown = {words_of(line)[1] for line in BLOCKS + WHOLE}
    assert {"run", "flow", "data check", "train", "evaluate", "sweep", "compare", "doctor"} <= shown


def shown_as(line):
    return " ".join(words_of(line)[0])


@pytest.mark.parametrize("line", BLOCKS + WHOLE, ids=shown_as)
def test_a_command_in_the_texts_is_accepted(line):
    words, _ = words_of(line)
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            build_parser().parse_args(words)
    else:
        assert callable(build_parser().parse_args(words).command)


@pytest.mark.parametrize("line", NAMES)
def test_a_name_of_a_command_in_the_texts_is_one(line):
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([word for word in line.split() if word != "..."] + ["--help"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with stand-ins for the files that the texts name."""
    folder = tmp_path_factory.mktemp("world")
    videos = folder / "data" / "hmdb51"
    SyntheticMotion.make(videos, train=2, test=0, unused=0, size=32, frames=6)
    shutil.copy(next((videos / "left").glob("*.avi")), folder / "my.mp4")
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    shutil.copytree(ROOT / "results", folder / "results")  # which commands write to
    training = f"train --data synthetic {videos} --model repflow_2d --out {folder}/runs/repflow".split()
    settings = ["backbone=tiny_2d", "steps=1", "batch=4", "frames=5", "crop=24", "iterations=2"]
    assert main([*training, "--set", *settings]) == 0
    return folder


@pytest.fixture
def inside(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("REPFLOW_DATA", str(world / "data"))
    said = Predictions(["a.avi"], np.array([0]), np.array([[0.7, 0.3]], np.float32), ["x", "y"], 1)
    for name in ("rgb.npz", "flow.npz"):  # the second is also what a command writes
        said.save(world / name)


def run_tiny(words, key):
    if key == "run":
        arguments = build_parser().parse_args(words)
        assert all(Path(value).is_file() for name, value in arguments.parameters if name == "video")
        assert plan(arguments.notebooks, arguments.parameters, arguments.profile)
    else:
        assert main([*words, *TINY[key].split()]) == 0


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=shown_as(line), marks=pytest.mark.slow if line.startswith("bench ") else ())
        for line in BLOCKS + WHOLE
        if "--help" not in line and line not in OWN
    ],
)
def test_a_command_in_the_texts_runs_in_tiny_form_or_says_what_it_needs(line):
    words, key = words_of(line)
    if not (key in NEEDING and NEEDS.search(line)):
        run_tiny(words, key)
    elif key == "train":
        arguments = build_parser().parse_args(words)
        recipe, options = train_command.settings_of(arguments)
        assert recipe.batch > 0
        with torch.device("meta"):
            build_model(arguments.model, 51, **options)


@pytest.mark.usefixtures("inside")
def test_from_own_videos_to_labels(world, capsys):
    """The commands of the text, one after the other, on three classes of four videos."""
    for path in sorted((world / "data" / "hmdb51").glob("[du]*/*.avi"))[:6]:
        folder = world / "data" / "my_videos" / path.parent.name
        for copy in range(2):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{path.stem}_{copy}.avi")
    assert [words_of(line)[1] for line in OWN] == ["data check", "train", "evaluate", "classify"]
    for line in OWN:
        capsys.readouterr()
        words, key = words_of(line)
        assert main([*words, *TINY[key].replace("backbone=tiny_2d", "").split()]) == 0
    classes = {path.name for path in (world / "data" / "my_videos").iterdir() if path.is_dir()}
    said = capsys.readouterr().out
    assert said.startswith("my.mp4")
    assert all(name in said for name in classes)
    measured = json.loads((world / "runs" / "mine" / "test" / "metrics.json").read_text())
    assert measured["evaluated"] == measured["expected"] > 0


def test_tools_that_the_texts_run_are_there():
    named = {name for text in texts() for name in re.findall(r"python (tools/\w+\.py)", text)}
    assert len(named) >= 4
    for name in named:
        assert 'if __name__ == "__main__":' in (ROOT / name).read_text(encoding="utf-8"), name
