"""The tables of docs/licences.md, from the metadata of what is installed: `python tools/licences.py`.

It runs in the checkout after ci/setup, and again after ci/lock. pip-licenses leaves out, without a word, what is not
installed here, such as packages for other systems.
"""

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from markers import write_marked

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
    names = {re.sub(r"[-_.]+", "-", package.name).lower() for package in metadata.distributions()}
    return sorted(name for name in names if re.fullmatch(r"torch|torchvision|triton|setuptools|(nvidia|cuda)-.+", name))


def licence(package: str) -> str:
    """A package's licence as its metadata say it: an SPDX expression, a short text, or else the classifiers.

    Raises ValueError where they don't, and BY_HAND has no word on it either.
    """
    if package in BY_HAND:
        return BY_HAND[package]
    try:
        facts = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed; run ci/setup, or read its licence file for BY_HAND") from None
    text = (facts.get("License") or "").strip()
    short = text if "\n" not in text and len(text) <= 40 and text != "UNKNOWN" else ""  # some put the whole text here
    classifiers = [line.split(" :: ")[-1] for line in facts.get_all("Classifier", []) if line.startswith("License ::")]
    name = facts.get("License-Expression") or short or ", ".join(classifiers)
    if not name:
        raise ValueError(f"{package}: its metadata name no licence; read its licence file for BY_HAND")
    return name


def table(packages: Iterable[str]) -> str:
    """The lines of Markdown between the markers."""
    return markdown_table(["package", "licence"], [[package, licence(package)] for package in packages]) + "\n"


def main(root: Path) -> None:
    """Write both tables anew; the one of PyTorch's build stays as it is where the build here has no CUDA."""
    tables = {"locked packages": table(locked((root / "requirements.lock").read_text(encoding="utf-8")))}
    if any(name.startswith("nvidia-") for name in pytorch_build()):
        tables["PyTorch's build"] = table(pytorch_build())
    write_marked(root / "docs" / "licences.md", tables)


if __name__ == "__main__":
    main(Path(__file__).parents[1])
