"""Where a number comes from: the results that were measured, the machine, the versions and the commit."""

import os
import platform
import subprocess
import sys
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from repflow._version import __version__
from repflow.files import Row, read_csv


def checkout() -> Path | None:
    """The folder of the checkout that the package lies in, with pyproject.toml; None where a wheel was installed."""
    root = Path(__file__).parents[1]
    return root if (root / "pyproject.toml").is_file() else None


def shipped(name: str) -> Path:
    """The checkout's folder of this name, or the copy of it that a wheel has inside the package."""
    return (checkout() or Path(__file__).parent) / name


def results_folder() -> Path:
    """The folder with the paper's table and ours."""
    return shipped("results")


def paper_table() -> dict[str, dict[str, str]]:
    """The paper's final table by method, as results/paper.csv has it: texts, empty where the paper has no figure."""
    return {row["method"]: row for row in read_csv(results_folder() / "paper.csv")}


def environment() -> dict[str, Any]:
    """Return what a result file says about where it was made: versions, commit, processor, GPU, platform."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "repflow": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


def circumstances(*modules: str) -> Row:
    """What a timing's file says beside its numbers: `environment`, the GPU's driver, threads, time, and the versions of
    the named modules that have been loaded."""
    import torch

    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    machine = {"driver": driver(), "threads": torch.get_num_threads()}
    return environment() | machine | versions | {"date": now}


def driver() -> str | None:
    """The version of NVIDIA's driver, None where no GPU answers."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.strip() else None


def read_timings(path: Path, numbers: Collection[str]) -> list[Row]:
    """The rows of a file of timings: the named columns as float, None where one is empty; all others as text."""
    return [
        {name: text if name not in numbers else float(text) if text else None for name, text in row.items()}
        for row in read_csv(path)
    ]


def _commit() -> str | None:
    """Return the checkout's commit, with `-dirty` after it when files differ; None where there is no checkout."""
    root = checkout()
    if root is None or not (root / ".git").exists():  # a copy of the files inside somebody else's checkout
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of somebody else's
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # only Linux has it
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
