"""`repflow doctor`."""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from repflow import __version__, records

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from torch import Tensor

Line = tuple[str, str, str]  # OK, none or BAD; what it is about; what was found, and the command that mends it

# Both at once: a PyTorch and a torchvision of different builds fail at the import.
TORCH = "python -m pip install uv && python -m uv pip install --reinstall --torch-backend auto torch torchvision"
REINSTALL = "python -m pip install --force-reinstall"
ENGINE = {"reference": TORCH, "cpu": f"{REINSTALL} numba", "cuda": f"{REINSTALL} triton"}
MODULES = {"griffelib": "griffe", "pillow": "PIL", "scikit-image": "skimage", "opencv-contrib-python-headless": "cv2"}
_PATH = re.compile(r"[^\s'\"(]*[/\\][^\s'\"():;,]*")


def add(_: argparse.ArgumentParser) -> None:
    """`repflow doctor` has no arguments."""


def run(_: argparse.Namespace) -> int:
    """Tell what works here: versions, engines, decoders, GPU, disk, cache folders. A line begins with OK; none, where
    something optional is missing; or BAD, and then says what mends it. No path is shown, and so no user's name."""
    parts = (_versions, _engines, _decoders, _gpu, _disk, _caches)
    states = set()
    for state, name, found in (line for part in parts for line in _surviving(part)):
        states.add(state)
        sys.stdout.write(f"{state:4}  {name:30}  {_PATH.sub('PATH', found)}\n")
        sys.stdout.flush()  # the next part may hang or crash, and then the last line tells where
    return 1 if "BAD" in states else 0


def _surviving(part: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a part; where it fails itself, its last line says so, and the next part has its turn."""
    try:
        yield from part()
    except Exception as error:  # whatever a broken package raises
        yield "BAD", part.__name__.strip("_"), f"{_reason(error)}; mend the packages that are BAD, and run this again"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _versions() -> Iterator[Line]:
    yield "OK", "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "OK", "repflow", __version__
    for requirement in _requirements():
        state, found = _package(requirement.name, requirement.specifier)
        optional = requirement.marker is not None  # of an extra
        yield "none" if optional and state == "BAD" else state, requirement.name, found


def _requirements() -> "list[Requirement]":
    """What the package needs, and then its extras, which have markers; without the tests' own."""
    from packaging.requirements import Requirement

    if root := records.checkout():  # its installed metadata may be old, or missing
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        needs = project["dependencies"] + [f"{need}; extra == '{extra}'" for extra, needs in extras for need in needs]
    else:
        needs = metadata.requires("repflow") or []
    kept = [r for r in map(Requirement, needs) if r.marker is None or not r.marker.evaluate({"extra": "test"})]
    return list({requirement.name: requirement for requirement in kept}.values())


def _package(name: str, specifier: "SpecifierSet") -> tuple[str, str]:
    mend = TORCH if name in ("torch", "torchvision") else f"python -m pip install '{name}{specifier}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "BAD", f"not installed; {mend}"
    if not specifier.contains(version, prereleases=True):
        return "BAD", f"{version}, expected {specifier}; {mend}"
    try:
        importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # ImportError, OSError of a library, or what the package itself raises
        mend = TORCH if mend == TORCH else f"{REINSTALL} --no-deps {name}=={version}"
        return "BAD", f"{version} cannot be imported ({_reason(error)}); {mend}"
    return "OK", version


def _engines() -> Iterator[Line]:
    from repflow.solver import ENGINES

    for engine in ENGINES[1:]:  # the first is "auto"
        state, found = _engine(engine)
        yield state, f"engine {engine}", found


def _engine(engine: str) -> tuple[str, str]:
    import torch

    if engine == "cuda" and not torch.cuda.is_available():
        return "none", "PyTorch finds no GPU here; see GPU below"
    if engine == "cuda" and importlib.util.find_spec("triton") is None:
        return "none", "python -m pip install triton"
    start = time.perf_counter()
    try:
        solution = _solution(engine)
        seconds = time.perf_counter() - start
        if not torch.allclose(solution, _solution("reference"), rtol=1e-3, atol=1e-4):
            raise ArithmeticError("it computes something else than the reference")
    except Exception as error:  # from compilers and drivers, too
        return "BAD", f"{_reason(error)}; {ENGINE[engine]}; until then take engine='reference'"
    return "OK", f"first call {seconds:.1f} s"


def _solution(engine: str) -> "Tensor":
    """A tiny problem's flow, and the gradient of its sum of squares."""
    import torch

    from repflow.solver import solve

    numbers = torch.arange(128.0, device="cuda" if engine == "cuda" else "cpu")
    rho_c = numbers[:64].sin().reshape(1, 1, 8, 8).requires_grad_()
    flow, _ = solve(rho_c, numbers.cos().reshape(2, 1, 1, 8, 8), engine=engine)
    (slope,) = torch.autograd.grad(flow.square().sum(), rho_c)
    return torch.cat([flow.detach().flatten(), slope.flatten()]).cpu()


def _decoders() -> Iterator[Line]:
    from repflow.video import decoders

    for name, works, found in decoders():
        state = "OK" if works else "BAD" if name == "pyav" else "none"  # everything needs that one
        mend = f"; {REINSTALL} --no-deps av" if state == "BAD" else ""
        yield state, f"decoder {name}", found + mend


def _gpu() -> Iterator[Line]:
    import torch

    driver, cuda = records.driver(), torch.version.cuda
    if torch.cuda.is_available():
        for device in map(torch.cuda.get_device_properties, range(torch.cuda.device_count())):
            memory = f"{device.total_memory / 2**30:.0f} GiB"
            yield "OK", "GPU", f"{device.name}, {memory}, driver {driver or 'unknown'}, CUDA {cuda}"
    elif driver is None:
        yield "none", "GPU", f"no driver of NVIDIA's answers; all runs on the CPU (PyTorch's CUDA: {cuda})"
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        yield "none", "GPU", f"driver {driver}, but hidden; unset CUDA_VISIBLE_DEVICES"
    elif cuda is None:
        yield "none", "GPU", f"driver {driver}, but a PyTorch for CPUs alone; {TORCH}"
    else:
        yield "BAD", "GPU", f"PyTorch for CUDA {cuda} cannot use driver {driver}; renew it, or {TORCH}"


def _disk() -> Iterator[Line]:
    from repflow.data import default_folder

    for name, folder, mend in (
        ("runs", Path("runs"), "repflow run --out FOLDER puts them elsewhere"),
        ("data", default_folder(), "export REPFLOW_DATA=FOLDER"),
    ):
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        problem = "cannot be written" if not _writable(folder) else "less than 1 GB free"
        good = _writable(folder) and free >= 1
        yield "OK" if good else "BAD", f"disk for {name}", f"{free:.0f} GB free" if good else f"{problem}; {mend}"


def _caches() -> Iterator[Line]:
    import numba
    import torch

    home, solver = Path.home(), Path(__file__).parents[1] / "solver"
    caches = [  # folders of which the first that can be written is taken
        ("Numba", "NUMBA_CACHE_DIR", [numba.config.CACHE_DIR] if numba.config.CACHE_DIR else [solver, home]),
        ("torch.hub", "TORCH_HOME", [torch.hub.get_dir()]),
        ("Triton", "TRITON_CACHE_DIR", [os.environ.get("TRITON_CACHE_DIR") or home / ".triton"]),
    ]
    for name, variable, folders in caches if torch.cuda.is_available() else caches[:2]:
        good = any(_writable(Path(folder)) for folder in folders)
        found = "can be written" if good else f"cannot be written; export {variable}=FOLDER"
        yield "OK" if good else "BAD", f"cache of {name}", found


def _writable(folder: Path) -> bool:
    return _existing(folder).is_dir() and os.access(_existing(folder), os.W_OK | os.X_OK)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
