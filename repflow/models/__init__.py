"""The systems that can be built by name: a backbone, and what it is told about motion."""

from repflow.models.cost import list_models
from repflow.models.streams import inputs_of
from repflow.models.systems import build_model

__all__ = ["build_model", "inputs_of", "list_models"]
