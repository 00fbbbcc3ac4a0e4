"""SyntheticMotion's hard promise: no single frame of its files says anything about the class.

A network that looks at one frame learns its training frames by heart and is then asked about new clips. To stay at
chance proves nothing if the network cannot learn, so the same procedure must catch a set that does leak: the same
frames, black where a generator that moves a finite picture has nothing to show.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repflow.data import SyntheticMotion
from repflow.data.synthetic import motion
from repflow.video import read_clip

SEED = 0
TRAIN, TEST = 100, 200  # clips a class: 2,400 held out, so chance has a standard error of 0.56 points
SIZE, FRAMES = 32, 7  # enough for a network to learn frames by heart, and for what moves to uncover a border
CHANCE = 1 / 12


@pytest.fixture(scope="module", params=["frame", "object"])
def made(tmp_path_factory, request):
    """(decoded clips, labels, classes) of the training clips, then of the test clips."""
    root = tmp_path_factory.mktemp("data") / "motion"
    options = {"size": SIZE, "frames": FRAMES, "seed": SEED, "moving": request.param}
    SyntheticMotion.make(root, train=TRAIN, test=TEST, unused=0, **options)
    subsets = [SyntheticMotion(root, subset) for subset in ("train", "test")]
    samples = subsets[0].samples + subsets[1].samples
    return (
        np.stack([read_clip(path) for path, _ in samples]),
        np.array([label for _, label in samples]),
        subsets[0].classes,
    )


def top1_of_one_frame(frames, labels, epochs=8):
    """Top-1 on the training frames and on the held-out frames, of a network trained on (N, H, W, 3) single frames."""
    torch.manual_seed(SEED)
    x, y = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(labels)
    seen, new = slice(0, 12 * TRAIN), slice(12 * TRAIN, None)
    widths = (3, 16, 32, 64)
    stages = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Conv2d(before, after, 5, 2, 2), nn.BatchNorm2d(after), nn.ReLU())
    ]
    net = nn.Sequential(*stages, nn.Flatten(), nn.LazyLinear(12))
    net(x[:2])
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(12 * TRAIN).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(part).argmax(1) for part in x.split(400)]) == y
    return right[seen].float().mean().item(), right[new].float().mean().item()


@pytest.mark.parametrize("time", ["first", "last", "random"])
def test_one_frame_tells_nothing(made, time):
    clips, labels, _ = made
    n, frames = clips.shape[:2]
    index = {"first": 0, "last": frames - 1, "random": np.random.default_rng(SEED).integers(frames, size=n)}[time]
    seen, new = top1_of_one_frame(clips[np.arange(n), index], labels)
    assert seen >= 0.9
    assert abs(new - CHANCE) < 0.03


def test_uncovered_borders_would_be_found(made):
    clips, labels, classes = made
    rng = np.random.default_rng(SEED)
    last = clips[:, -1].copy()
    size = last.shape[1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    for frame, label in zip(last, labels, strict=True):
        right, down, turn, growth = motion(classes[label], rng.uniform(1, 2.5), size, clips.shape[1])[-1]
        x0 = np.exp(-growth) * (
            np.cos(turn) * (x - right) + np.sin(turn) * (y - down)
        )  # where it was in the first frame
        y0 = np.exp(-growth) * (np.cos(turn) * (y - down) - np.sin(turn) * (x - right))
        frame[np.maximum(np.abs(x0), np.abs(y0)) > size / 2] = 0
    seen, new = top1_of_one_frame(last, labels)
    assert seen >= 0.9
    assert new > 4 * CHANCE
