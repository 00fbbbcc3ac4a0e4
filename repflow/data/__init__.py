"""Data sets: lists of videos with labels, and the clips drawn from them."""

from repflow.data.clips import Clips
from repflow.data.hmdb51 import HMDB51
from repflow.data.synthetic import SyntheticMotion

__all__ = ["HMDB51", "Clips", "SyntheticMotion"]
