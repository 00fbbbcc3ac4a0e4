"""Clips drawn from videos, as training and testing take them."""

import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from repflow.video import probe, read_clip


class Samples(Protocol):
    """What a data set has to offer: HMDB51 and whatever follows its layout."""

    samples: list[tuple[os.PathLike[str], int]]


class Clips(Dataset[tuple[Tensor, int]]):
    """One clip a video: (clip, label), clip float32 (3, T, H, W) RGB in [-1, 1].

    T = `frames`, taken every `stride`-th; a shorter video repeats cyclically, as with lintel. `resize` scales the
    shorter side to so many pixels, then `crop` cuts out a square of so many. In training, start and crop are random and
    depend on (seed, epoch, index) alone, so the number of workers changes nothing; in testing both are centred. Nothing
    is flipped: a mirrored motion may be another class.

    Raises VideoError for an unreadable video, ValueError for frames < 1, stride < 1 or a crop larger than the frame.
    """

    def __init__(
        self,
        source: Samples,
        frames: int,
        stride: int = 1,
        *,
        train: bool,
        resize: int | None = None,
        crop: int | None = None,
        seed: int = 0,
    ) -> None:
        if frames < 1 or stride < 1:
            raise ValueError(f"frames and stride must be at least 1, got frames={frames}, stride={stride}")
        self.samples = source.samples
        self.frames, self.stride, self.train = frames, stride, train
        self.resize, self.crop, self.seed = resize, crop, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared: persistent workers see it change
        self._lengths: dict[int, int] = {}  # counting costs a decoding: once a video and worker

    def set_epoch(self, epoch: int) -> None:
        """Call before every epoch of training, for other starts and crops than in the last."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        clip = torch.from_numpy(self._read(index, rng)).permute(0, 3, 1, 2)
        if self.resize:
            clip = transforms.resize(clip, [self.resize], antialias=True)
        if self.crop:
            clip = self._cut(clip, rng, path)
        # The 2019 release scales to 1 - 2x/255, the negative; its weights need that, ours do not.
        return (clip.float() * (2 / 255) - 1).transpose(0, 1).contiguous(), label

    def _place(self, room: int, rng: np.random.Generator) -> int:
        return int(rng.integers(room + 1)) if self.train else room // 2

    def _read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        path, _ = self.samples[index]
        if index not in self._lengths:
            self._lengths[index] = probe(path).frames
        room = self._lengths[index] - (self.frames - 1) * self.stride - 1
        if room < 0:
            wanted = np.arange(self.frames) * self.stride
            return read_clip(path).take(wanted, axis=0, mode="wrap")
        return read_clip(path, self._place(room, rng), self.frames, self.stride)

    def _cut(self, clip: Tensor, rng: np.random.Generator, path: os.PathLike[str]) -> Tensor:
        top, left = (size - self.crop for size in clip.shape[-2:])
        if min(top, left) < 0:
            raise ValueError(
                f"{os.fspath(path)!r}: expected frames of at least {self.crop}×{self.crop}, got "
                f"{clip.shape[-2]}×{clip.shape[-1]} (height × width); give a smaller crop or a larger resize"
            )
        return transforms.crop(clip, self._place(top, rng), self._place(left, rng), self.crop, self.crop)
