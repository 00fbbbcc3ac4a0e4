"""`repflow doctor`."""

import argparse
import importlib
import os
import platform
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from repflow import __version__

if TYPE_CHECKING:
    from torch import Tensor

Line = tuple[str, str, str]  # OK, none or BAD; what it is about; what was found, and the command that mends it

# Both at once: a PyTorch and a torchvision of different builds fail at the import.
TORCH = "python -m pip install uv && python -m uv pip install --reinstall --torch-backend auto torch torchvision"
ENGINE = {
    "reference": TORCH,
    "cpu": "python -m pip install --force-reinstall numba",
    "cuda": "python -m pip install --force-reinstall triton",
}
MODULES = {
    "pyyaml": "yaml", "pillow": "PIL", "scikit-image": "skimage", "opencv-contrib-python-headless": "cv2",
}  # fmt: skip
LEAST_DISK = 1  # GB


def add(parser: argparse.ArgumentParser) -> None:
    """`repflow doctor` has no arguments."""
    parser.set_defaults(command=run)


def run(_: argparse.Namespace) -> int:
    """Tell what works here: versions, engines, decoders, GPU, disk, cache folders. A line begins with OK; none, where
    something optional is missing; or BAD, and then says what mends it. Nothing in it names the user or the machine."""
    parts = (_versions, _engines, _decoders, _gpu, _disk, _numba_cache, _weights_cache, _triton_cache)
    states = set()
    for state, name, found in (line for part in parts for line in _surviving(part)):
        states.add(state)
        sys.stdout.write(f"{state:4}  {name:30}  {_anonymous(found)}\n")
        sys.stdout.flush()  # what comes next may hang or crash, and then this tells where
    return 1 if "BAD" in states else 0


def _surviving(part: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """What a part finds; where it fails itself, its last line says so, and the next part has its turn."""
    try:
        yield from part()
    except Exception as error:  # whatever a broken package raises
        name = part.__name__.strip("_").replace("_", " ")
        yield "BAD", name, f"{_reason(error)}; mend the packages that are BAD above, and run this again"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _anonymous(text: str) -> str:
    """The text with ~ for any home folder, and without the names of the user and the machine."""
    home = os.path.expanduser("~")
    for folder in (home, os.path.realpath(home)):
        if len(folder) > 1:
            text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    text = re.sub(r"/(home|Users)/[^/\s'\"]+", "~", text)
    for place, name, shown in ((r"(?<=[/\\])", os.path.basename(home), "USER"), (r"\b", platform.node(), "HOST")):
        if name:
            text = re.sub(rf"{place}{re.escape(name)}(?![\w-])", shown, text)
    return text


def _versions() -> Iterator[Line]:
    yield "OK", "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "OK", "repflow", __version__
    for name, (least, extra) in _requirements().items():
        state, found = _package(name, least)
        yield "none" if extra and state == "BAD" else state, name, found


def _requirements() -> dict[str, tuple[str, str]]:
    """Least version and extra ("" for what is always needed) of every package; the tests' own are left out."""
    file = Path(__file__).parents[2] / "pyproject.toml"
    if file.is_file():  # a checkout, whose installed metadata may be old, or not there
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        needs = project["dependencies"] + [f"{need}; extra == '{extra}'" for extra, needs in extras for need in needs]
    else:
        needs = metadata.requires("repflow") or []
    matches = (re.match(r"([\w-]+)>=([\d.]+)(?:.*extra == ['\"](\w+))?", need) for need in needs)
    return {match[1]: (match[2], match[3] or "") for match in matches if match and match[3] != "test"}


def _package(name: str, least: str) -> tuple[str, str]:
    mend = TORCH if name in ("torch", "torchvision") else f"python -m pip install '{name}>={least}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "BAD", f"not installed; {mend}"
    if _digits(version) < _digits(least):
        return "BAD", f"{version}, expected {least} or newer; {mend}"
    try:
        importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # ImportError, OSError of a library, or what the package itself raises
        mend = TORCH if mend == TORCH else f"python -m pip install --force-reinstall --no-deps {name}=={version}"
        return "BAD", f"{version} cannot be imported ({_reason(error)}); {mend}"
    return "OK", version


def _digits(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def _engines() -> Iterator[Line]:
    import torch

    from repflow.solver import ENGINES

    for engine in ENGINES[1:]:  # the first is "auto"
        if engine == "cuda" and not torch.cuda.is_available():
            state, found = "none", "PyTorch finds no GPU here; see GPU below"
        elif engine == "cuda" and find_spec("triton") is None:
            state, found = "none", "python -m pip install triton"
        else:
            state, found = _engine(engine)
        yield state, f"engine {engine}", found


def _engine(engine: str) -> tuple[str, str]:
    import torch

    try:
        times = [time.perf_counter()]
        for _ in range(2):
            found = _solution(engine)
            times.append(time.perf_counter())
        if not torch.allclose(found, _solution("reference"), rtol=1e-3, atol=1e-4):
            raise ArithmeticError("it computes something else than the reference")
    except Exception as error:  # from compilers and drivers, too
        return "BAD", f"{_reason(error)}; {ENGINE[engine]}; until then take engine='reference'"
    return "OK", f"{1000 * (times[2] - times[1]):.1f} ms; first call {times[1] - times[0]:.1f} s"


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
        if name == "pyav" and not works:  # the one that everything needs
            yield "BAD", f"decoder {name}", f"{found}; python -m pip install --force-reinstall --no-deps av"
        else:
            yield "OK" if works else "none", f"decoder {name}", found


def _gpu() -> Iterator[Line]:
    import torch

    from repflow import records

    driver = records.driver()
    if torch.cuda.is_available():
        for device in map(torch.cuda.get_device_properties, range(torch.cuda.device_count())):
            memory = f"{device.total_memory / 2**30:.0f} GiB"
            yield "OK", "GPU", f"{device.name}, {memory}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    elif driver is None:
        yield (
            "none",
            "GPU",
            f"no driver of NVIDIA's answers; all runs on the CPU (PyTorch's CUDA: {torch.version.cuda})",
        )
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        yield "none", "GPU", f"driver {driver}, but hidden; unset CUDA_VISIBLE_DEVICES"
    elif torch.version.cuda is None:
        yield "none", "GPU", f"driver {driver}, but a PyTorch for CPUs alone; {TORCH}"
    else:
        yield "BAD", "GPU", f"PyTorch for CUDA {torch.version.cuda} cannot use driver {driver}; renew it, or {TORCH}"


def _disk() -> Iterator[Line]:
    from repflow.data import default_folder

    for name, folder, mend in (
        ("runs", Path("runs"), "repflow run --out FOLDER puts them elsewhere"),
        ("data", default_folder(), "export REPFLOW_DATA=FOLDER"),
    ):
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        found = f"{folder.absolute()}, {free:.0f} GB free"
        good = _writable(folder) and free >= LEAST_DISK
        short = "cannot be written" if not _writable(folder) else f"less than {LEAST_DISK} GB"
        yield "OK" if good else "BAD", f"disk for {name}", found if good else f"{found}: {short}; {mend}"


def _numba_cache() -> Iterator[Line]:
    from repflow.solver import cpu

    folder = cpu._advance.stats.cache_path  # None where Numba found no folder that it can write
    yield _cache("Numba", Path(folder) if folder else None, "NUMBA_CACHE_DIR")


def _weights_cache() -> Iterator[Line]:
    import torch

    yield _cache("torch.hub", Path(torch.hub.get_dir(), "checkpoints"), "TORCH_HOME")


def _triton_cache() -> Iterator[Line]:
    import torch

    if torch.cuda.is_available():
        chosen = os.environ.get("TRITON_CACHE_DIR")
        yield _cache("Triton", Path(chosen) if chosen else Path.home() / ".triton" / "cache", "TRITON_CACHE_DIR")


def _cache(name: str, folder: Path | None, variable: str) -> Line:
    if folder and _writable(folder):
        return "OK", f"cache of {name}", str(folder)
    return "BAD", f"cache of {name}", f"{folder or 'no folder'} cannot be written; export {variable}=FOLDER"


def _writable(folder: Path) -> bool:
    place = _existing(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _existing(folder: Path) -> Path:
    """The folder, or of those above it the first that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
