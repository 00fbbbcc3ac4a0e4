"""The tables of docs/licences.md, from the metadata of what is installed: `python tools/licences.py`.

It runs in the checkout after ci/setup, and again after ci/lock.
"""

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from readme_tables import marked

from repflow.files import markdown_table

# From the licence files inside the packages: these are not installed on every system, or their metadata are silent.
BY_HAND = {
    "appnope": "BSD-2-Clause",  # macOS alone
    "colorama": "BSD-3-Clause",  # Windows alone
    "cuda-toolkit": "no files: it only names NVIDIA's packages",
    "overrides": "Apache-2.0",  # Python 3.11 alone
    "pywinpty": "MIT",  # Windows alone
}


def locked(lock: str) -> list[str]:
    """The packages that a requirements file pins, each once."""
    return list(dict.fromkeys(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)))


def pytorch_build() -> list[str]:
    """PyTorch, torchvision and what the installed build of PyTorch brings: what ci/lock leaves out of the lock."""
    names = {re.sub(r"[-_.]+", "-", found.name).lower() for found in metadata.distributions()}
    return sorted(name for name in names if re.fullmatch(r"torch|torchvision|triton|setuptools|(nvidia|cuda)-.+", name))


def licence(package: str) -> str:
    """A package's licence as its metadata say it: an SPDX expression, a short text, or else the classifiers.

    Raises ValueError where they don't, and BY_HAND has no word on it either.
    """
    if package in BY_HAND:
        return BY_HAND[package]
    try:
        found = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed; run ci/setup, or read its licence file for BY_HAND") from None
    text = (found.get("License") or "").strip()
    short = text if "\n" not in text and len(text) <= 40 and text != "UNKNOWN" else ""  # some put all of it here
    classifiers = [line.split(" :: ")[-1] for line in found.get_all("Classifier", []) if line.startswith("License ::")]
    if not (said := found.get("License-Expression") or short or ", ".join(classifiers)):
        raise ValueError(f"{package}: its metadata name no licence; read its licence file for BY_HAND")
    return said


def table(packages: Iterable[str]) -> str:
    """The lines of Markdown between the markers."""
    return markdown_table(["package", "licence"], [[package, licence(package)] for package in packages]) + "\n"


def main(root: Path) -> None:
    """Write both tables anew; the one of PyTorch's build stays as it is where the build here has no CUDA."""
    file = root / "docs" / "licences.md"
    text = file.read_text(encoding="utf-8")
    tables = {"locked packages": locked((root / "requirements.lock").read_text(encoding="utf-8"))}
    if any(name.startswith("nvidia-") for name in pytorch_build()):
        tables["PyTorch's build"] = pytorch_build()
    for name, packages in tables.items():
        before, _, behind = marked(text, name)
        text = before + table(packages) + behind
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parents[1])
