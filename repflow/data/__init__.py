"""Data sets: lists of videos with labels, and the clips drawn from them."""

import os
from pathlib import Path

from repflow.data.clips import PRESETS, Clips, Views
from repflow.data.hmdb51 import HMDB51
from repflow.data.kinetics import Kinetics
from repflow.data.synthetic import SyntheticMotion

__all__ = ["HMDB51", "PRESETS", "Clips", "Kinetics", "SyntheticMotion", "Views", "default_folder"]


def default_folder() -> Path:
    """Where data sets lie unless said otherwise: $REPFLOW_DATA, or the checkout's data/, or ~/.cache/repflow."""
    if chosen := os.environ.get("REPFLOW_DATA"):
        return Path(chosen)
    checkout = Path(__file__).parents[2]
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path.home() / ".cache" / "repflow"
