"""Data sets: lists of videos with labels, and the clips drawn from them."""

import os
from pathlib import Path

from repflow.data.clips import PRESETS, Clips, Views
from repflow.data.hmdb51 import HMDB51
from repflow.data.kinetics import Kinetics
from repflow.data.own import VideoFolder, VideoList
from repflow.data.ssv2 import SomethingSomething
from repflow.data.synthetic import SyntheticMotion
from repflow.data.ucf101 import UCF101
from repflow.records import checkout

__all__ = [
    "HMDB51",
    "PRESETS",
    "UCF101",
    "Clips",
    "Kinetics",
    "SomethingSomething",
    "SyntheticMotion",
    "VideoFolder",
    "VideoList",
    "Views",
    "default_folder",
]


def default_folder() -> Path:
    """Where data sets lie unless said otherwise: $REPFLOW_DATA, or the checkout's data/, or ~/.cache/repflow."""
    if chosen := os.environ.get("REPFLOW_DATA"):
        return Path(chosen)
    root = checkout()
    return root / "data" if root else Path.home() / ".cache" / "repflow"
