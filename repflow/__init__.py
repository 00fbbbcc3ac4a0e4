"""Representation Flow for Action Recognition: understand it, run it, measure it."""

import importlib
import os
from types import ModuleType

# Before PyTorch is loaded: GNU OpenMP's threads otherwise spin so long while they wait that two processes which share
# their cores each train 140 times slower; with this it is 3 times, and as fast as before on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    for _package in ("torch", "av"):
        importlib.import_module(_package)
except (ImportError, OSError) as error:
    raise ImportError(
        f"repflow needs PyTorch and PyAV, and {_package} cannot be imported ({error}); mend them with: python -m pip "
        "install uv && python -m uv pip install --reinstall --torch-backend auto torch torchvision av"
    ) from error

from repflow import official, video
from repflow._version import __version__
from repflow.layers import FlowOfFlow, RepresentationFlow, representation_flow
from repflow.models import build_model, list_models
from repflow.tvl1 import tvl1
from repflow.tvnet import TVNet

__all__ = [
    "FlowOfFlow",
    "RepresentationFlow",
    "TVNet",
    "__version__",
    "build_model",
    "data",
    "list_models",
    "official",
    "representation_flow",
    "tvl1",
    "video",
]


def __getattr__(name: str) -> ModuleType:
    """Load `repflow.data` when it is asked for: it needs torchvision, which takes seconds."""
    if name == "data":
        return importlib.import_module(".data", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
