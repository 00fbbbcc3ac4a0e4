"""Representation Flow for Action Recognition: understand it, run it, measure it."""

from . import official
from .layers import FlowOfFlow, RepresentationFlow, representation_flow
from .tvl1 import tvl1

__all__ = ["FlowOfFlow", "RepresentationFlow", "official", "representation_flow", "tvl1"]
__version__ = "0.1.0"
