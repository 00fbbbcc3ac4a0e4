"""Representation Flow for Action Recognition: understand it, run it, measure it."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from repflow._version import __version__

if TYPE_CHECKING:
    from repflow import data, official, video
    from repflow.layers import FlowOfFlow, RepresentationFlow, representation_flow
    from repflow.models import build_model, list_models
    from repflow.tvl1 import tvl1
    from repflow.tvnet import TVNet

# GNU OpenMP reads this when PyTorch is loaded. Its threads otherwise spin so long while they wait that processes which
# share cores stop each other: measured on two busy cores, a small training step took 24 ms instead of 368, and 40 ms
# instead of 870 in two processes at once. On an idle machine it changes nothing. The package's own import is the only
# place that comes before PyTorch in the command, in its worker processes and in a notebook.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = [
    "FlowOfFlow", "RepresentationFlow", "TVNet", "__version__", "build_model", "data", "list_models",
    "official", "representation_flow", "tvl1", "video",
]  # fmt: skip
_HOMES = {"TVNet": "tvnet", "tvl1": "tvl1"}  # the module of each name that is not one itself
_HOMES |= dict.fromkeys(("FlowOfFlow", "RepresentationFlow", "representation_flow"), "layers")
_HOMES |= dict.fromkeys(("build_model", "list_models"), "models")


def __getattr__(name: str) -> object:
    """Import a public name's module, or any module of the package, when it is first used: PyTorch takes seconds."""
    home = f"{__name__}.{_HOMES.get(name, name)}"
    if name.startswith("_") or not find_spec(home):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(home)
    except (ImportError, OSError) as error:  # OSError: of a library that PyTorch loads
        raise ImportError(
            f"{home} needs a package that cannot be imported ({error}); `python -m repflow doctor` tells what mends it"
        ) from error
    return getattr(module, name) if name in _HOMES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Whoever imports the module `repflow.tvl1` sets it as an attribute here, where users expect its function."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value.tvl1 if name == "tvl1" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
