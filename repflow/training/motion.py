"""Accuracies on SyntheticMotion."""

from collections.abc import Sequence

import numpy as np

from repflow.data.synthetic import BASIC, PAIRS
from repflow.evaluation import hits


def motion_accuracy(scores: np.ndarray, labels: Sequence[int], classes: Sequence[str]) -> dict[str, float]:
    """Accuracies on SyntheticMotion in percent, from scores (clips, classes); a tie counts as wrong.

    top1: all twelve classes. basic: the same twelve-way decision, on clips of the eight classes of constant speed.
    pairs: on accelerating and decelerating clips, the two-way decision between a motion and the same one backwards in
    time; chance is 50. Left out where `classes` holds no such class. Clips without scores (NaN) do not count.
    """
    there = np.isfinite(scores).all(1)
    scores, labels = scores[there], np.asarray(labels)[there]
    right = hits(scores, labels)
    names = np.asarray(classes)[labels]
    rival = {a: classes.index(b) for pair in PAIRS for a, b in (pair, pair[::-1]) if b in classes}
    paired = np.flatnonzero(np.isin(names, list(rival)))
    ahead = scores[paired, labels[paired]] > scores[paired, [rival[name] for name in names[paired]]]
    found = {"top1": right, "basic": right[np.isin(names, BASIC)], "pairs": ahead}
    return {key: 100 * float(hit.mean()) for key, hit in found.items() if len(hit)}
