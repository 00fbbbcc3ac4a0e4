"""Representation Flow for Action Recognition: understand it, run it, measure it."""

import os

# GNU OpenMP reads this when PyTorch is loaded. Its threads otherwise spin so long while they wait that processes which
# share cores stop each other: measured on two busy cores, a small training step took 24 ms instead of 368, and 40 ms
# instead of 870 in two processes at once. On an idle machine it changes nothing. The package's own import is the only
# place that comes before PyTorch in the command, in its worker processes and in a notebook.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    import av  # noqa: F401
    import torch  # noqa: F401
except (ImportError, OSError) as error:
    raise ImportError(
        f"repflow needs PyTorch and PyAV, and one of them cannot be imported ({error}); mend them with: python -m pip "
        "install uv && python -m uv pip install --reinstall --torch-backend auto torch torchvision av"
    ) from error

from repflow import data, official, video
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
