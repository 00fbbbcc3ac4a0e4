"""The 2019 PyTorch releases today: their layers, their networks, and their weights."""

from repflow.official.checkpoints import CheckpointError, build, convert, kind_of, load, locate, of_training, read
from repflow.official.layers import FlowLayer201902, FlowLayer201906
from repflow.official.models import HMDB_CLASSES, HMDBFlowOfFlow, KineticsModel

__all__ = [
    "HMDB_CLASSES", "CheckpointError", "FlowLayer201902", "FlowLayer201906", "HMDBFlowOfFlow", "KineticsModel",
    "build", "convert", "kind_of", "load", "locate", "of_training", "read",
]  # fmt: skip
