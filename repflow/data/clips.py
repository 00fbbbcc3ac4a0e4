"""Clips drawn from videos, as training and testing take them."""

import logging
import os
import re
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms.v2 import functional as transforms

from repflow.video import VideoError, probe, read_clip

# How the 2019 release samples: every second frame, crops of 112 pixels, values turned upside down.
PRESETS = {"2019": {"frames": 16, "stride": 2, "crop": 112, "inverted": True}}
MOST_BAD = 0.01  # of the videos; a run with more would train on another data set than it says
WORKERS = 1024  # more than anyone has
_log = logging.getLogger(__name__)


class Samples(Protocol):
    """What a data set has to offer: HMDB51, Kinetics, SyntheticMotion."""

    samples: list[tuple[os.PathLike[str], int]]


class Clips(Dataset[tuple[Tensor, int]]):
    """One clip a video: (clip, label), clip float32 (3, T, H, W) RGB in [-1, 1].

    T = `frames`, taken every `stride`-th; a shorter video repeats cyclically, as with lintel. `resize` scales the
    shorter side to so many pixels, then `crop` cuts out a square of so many. With `area`, a training crop is a random
    share between area[0] and area[1] of the frame instead, with sides as 3:4 to 4:3, scaled to `crop`. `flip` mirrors
    every second training clip; a data set that tells left from right (`directed`) refuses it. `inverted` gives
    1 - 2x/255, as the 2019 release's weights need. In training all of these are random and depend on (seed, epoch,
    index) alone, so the number of workers changes nothing; in testing start and crop are centred.

    In training an unreadable video is named in the log and another one taken in its place, until more than 1 % of the
    videos are: then VideoError lists them. In testing nothing is replaced: VideoError. Raises ValueError for settings
    that don't fit, or a crop larger than the frame.
    """

    views = 1  # clips of a video

    def __init__(
        self,
        source: Samples,
        frames: int,
        stride: int = 1,
        *,
        train: bool,
        resize: int | None = None,
        crop: int | None = None,
        area: tuple[float, float] | None = None,
        flip: bool = False,
        inverted: bool = False,
        seed: int = 0,
    ) -> None:
        if frames < 1 or stride < 1:
            raise ValueError(f"frames and stride must be at least 1, got frames={frames}, stride={stride}")
        if area is not None and not (crop and 0 < area[0] <= area[1] <= 1):
            raise ValueError(f"area: expected shares 0 < a <= b <= 1 and a crop, got {area} and crop={crop}")
        if flip and getattr(source, "directed", False):
            raise ValueError(f"flip: {type(source).__name__} tells left from right; a mirrored clip has another class")
        self.samples = source.samples
        self.frames, self.stride, self.train = frames, stride, train
        self.resize, self.crop, self.area, self.flip = resize, crop, area, flip
        self.inverted, self.seed = inverted, seed
        self._lengths: dict[int, int] = {}  # counting may cost a decoding: once a video and worker
        # Shared with workers, also with ones that live on: the epoch, which videos are bad, and what each reads now.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()
        self._reading = torch.full((WORKERS, 2), -1, dtype=torch.int64).share_memory_()  # process, index

    def set_epoch(self, epoch: int) -> None:
        """Call before every epoch of training, for other starts and crops than in the last."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        while True:
            self._note(index)
            try:
                clip = self._clip(index, rng)
                break
            except VideoError as error:
                if not self.train:
                    raise
                self._count(index, error)
                index = int(rng.integers(len(self.samples)))
            finally:
                self._note(-1)
        return clip, self.samples[index][1]

    @property
    def bad(self) -> list[str]:
        """The videos that could not be read in training so far."""
        return [os.fspath(self.samples[i][0]) for i in self._bad.nonzero().flatten().tolist()]

    def being_read(self, error: BaseException) -> list[str]:
        """What the workers that an error of the DataLoader tells of were reading when they died."""
        processes = {int(number) for number in re.findall(r"\d+", str(error)) if "DataLoader worker" in str(error)}
        return [
            os.fspath(self.samples[index][0])
            for process, index in self._reading.tolist()
            if process in processes and index >= 0
        ]

    def _note(self, index: int) -> None:
        if (worker := get_worker_info()) is not None:
            self._reading[worker.id] = torch.tensor([os.getpid(), index])

    def _count(self, index: int, error: VideoError) -> None:
        if not self._bad[index]:
            self._bad[index] = True
            _log.warning("skipped: %s", error)
        if len(self.bad) > MOST_BAD * len(self.samples):
            raise VideoError(
                f"{len(self.bad)} of {len(self.samples)} videos cannot be read, more than {MOST_BAD:.0%}: "
                f"{', '.join(map(repr, self.bad))}; the last: {error}"
            ) from error

    def _clip(self, index: int, rng: np.random.Generator) -> Tensor:
        path, _ = self.samples[index]
        room = self._room(index)
        clip = self._read(index, self._place(room, rng) if room >= 0 else 0)
        if self.area and self.train:
            clip = self._cut_area(clip, rng)
        elif self.crop:
            top, left = self._free(clip, path)
            clip = transforms.crop(clip, self._place(top, rng), self._place(left, rng), self.crop, self.crop)
        if self.flip and self.train and rng.random() < 0.5:
            clip = transforms.horizontal_flip(clip)
        return self._values(clip)

    def _place(self, room: int, rng: np.random.Generator) -> int:
        return int(rng.integers(room + 1)) if self.train else room // 2

    def _room(self, index: int) -> int:
        """By how many frames a clip may begin later than the video; negative where the video is too short."""
        if index not in self._lengths:
            self._lengths[index] = probe(self.samples[index][0]).frames
        return self._lengths[index] - (self.frames - 1) * self.stride - 1

    def _read(self, index: int, start: int) -> Tensor:
        """Frames as uint8 (T, 3, H, W), resized."""
        path, _ = self.samples[index]
        if self._room(index) < 0:
            pixels = read_clip(path).take(np.arange(self.frames) * self.stride, axis=0, mode="wrap")
        else:
            pixels = read_clip(path, start, self.frames, self.stride)
        clip = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return transforms.resize(clip, [self.resize], antialias=True) if self.resize else clip

    def _free(self, clip: Tensor, path: os.PathLike[str]) -> tuple[int, int]:
        """By how many pixels the crop may be moved, down and to the right."""
        top, left = (size - self.crop for size in clip.shape[-2:])
        if min(top, left) < 0:
            raise ValueError(
                f"{os.fspath(path)!r}: expected frames of at least {self.crop}×{self.crop}, got "
                f"{clip.shape[-2]}×{clip.shape[-1]} (height × width); give a smaller crop or a larger resize"
            )
        return top, left

    def _cut_area(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """A random share of the frame, as in Inception's training; what does not fit is cut to the frame."""
        H, W = clip.shape[-2:]
        pixels, ratio = H * W * rng.uniform(*self.area), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
        h, w = min(H, max(1, round((pixels / ratio) ** 0.5))), min(W, max(1, round((pixels * ratio) ** 0.5)))
        top, left = (int(rng.integers(room + 1)) for room in (H - h, W - w))
        return transforms.resized_crop(clip, top, left, h, w, [self.crop, self.crop], antialias=True)

    def _values(self, clip: Tensor) -> Tensor:
        values = clip.float() * (2 / 255) - 1
        return (-values if self.inverted else values).transpose(0, 1).contiguous()


class Views(Clips):
    """Several views a video, for testing: (views, label), views float32 (clips * crops, 3, T, H, W).

    `clips` clips are spaced uniformly from the video's first frame to its last (one lies in the middle), and each gives
    `crops` crops: 1 in the centre, or 3 along the longer side. Scores are averaged over a video's views. The other
    arguments are those of `Clips`; nothing is random.
    """

    def __init__(
        self,
        source: Samples,
        frames: int,
        stride: int = 1,
        *,
        clips: int = 10,
        crops: int = 1,
        resize: int | None = None,
        crop: int | None = None,
        inverted: bool = False,
    ) -> None:
        super().__init__(source, frames, stride, train=False, resize=resize, crop=crop, inverted=inverted)
        if clips < 1 or crops not in (1, 3) or (crops == 3 and not crop):
            raise ValueError(f"expected clips >= 1, crops 1 or 3, and a crop for 3; got {clips}, {crops}, crop={crop}")
        self.clips, self.crops, self.views = clips, crops, clips * crops

    def _clip(self, index: int, rng: np.random.Generator) -> Tensor:
        room = max(self._room(index), 0)
        starts = np.linspace(0, room, self.clips) if self.clips > 1 else np.array([room // 2])
        views = []
        for start in starts.round().astype(int).tolist():
            clip = self._read(index, start)
            if not self.crop:
                views.append(self._values(clip))
                continue
            top, left = self._free(clip, self.samples[index][0])
            for share in (0.5,) if self.crops == 1 else (0, 0.5, 1):
                y, x = (int(top * share), left // 2) if top > left else (top // 2, int(left * share))
                views.append(self._values(transforms.crop(clip, y, x, self.crop, self.crop)))
        return torch.stack(views)
