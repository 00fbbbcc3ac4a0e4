"""Representation Flow for Action Recognition: understand it, run it, measure it."""

import os

# Before PyTorch is loaded: GNU OpenMP's threads otherwise spin so long while they wait that two processes which share
# their cores each train 140 times slower; with this it is 3 times, and as fast as before on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from . import official
from .layers import FlowOfFlow, RepresentationFlow, representation_flow
from .tvl1 import tvl1

__all__ = ["FlowOfFlow", "RepresentationFlow", "official", "representation_flow", "tvl1"]
__version__ = "0.1.0"
