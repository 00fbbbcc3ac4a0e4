"""Clips drawn from videos, as training and testing take them."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import active_children
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from repflow.data.cache import cached_frames
from repflow.data.flow import flow_at, resize, resize_frame
from repflow.data.lists import Checked, stamp
from repflow.tvl1 import LARGEST
from repflow.video import VideoError
from repflow.video.reading import choose_frames, measure

# How the 2019 release samples: every second frame, crops of 112 pixels, values turned upside down.
PRESETS = {"2019": {"frames": 16, "stride": 2, "crop": 112, "inverted": True}}
MOST_BAD = 0.01  # of the videos; a run with more would train on another data set than it says
WORKERS = 1024  # the most workers of a DataLoader whose videos can be named
LAST_MOMENTS = 10.0  # seconds that a dying process may need to end
_log = logging.getLogger(__name__)

Inputs = Tensor | tuple[Tensor, Tensor]  # a clip, or a clip and its flow


class Samples(Protocol):
    """What a data set has to offer: HMDB51, Kinetics, SyntheticMotion.

    `checked`, where a source has it, saves counting frames: what `data check` found of each path. `parts`, where it has
    them, are ranges of frames, one for each sample: clips come from these frames alone, as from a video of its own.
    """

    root: os.PathLike[str]
    samples: list[tuple[os.PathLike[str], int]]


class Window(NamedTuple):
    """What is cut out of frames, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False


class Clips(Dataset[tuple[Inputs, int]]):
    """One clip of each video: (clip, label), clip float32 (3, T, H, W) RGB in [-1, 1].

    T is `frames`; every `stride`-th frame of the video is used. A shorter video repeats cyclically, as with lintel.
    `resize` is the length of the shorter side in pixels; `halved` then takes every second pixel of every second row, as
    the 2019 release does with HMDB51; then `crop` is the side of the square that is cut out. With
    `area`, a training crop is a random share between area[0] and area[1] of the frame instead, with sides as 3:4 to
    4:3, scaled to `crop`. `flip` mirrors half of the training clips; a data set that tells left from right (`directed`)
    refuses it. `inverted` gives 1 - 2x/255, as the 2019 release's weights need.

    `jitter` has the strengths of brightness, contrast, saturation (shares, from 0) and hue (0 to 0.5 of the circle), by
    which the colours of a training clip change at random. `augment` is RandAugment (Cubuk et al., NeurIPS 2020): how
    many operations, and their magnitude from 0 to 30. All frames of a clip change by the same draw, after the crop. The
    flow stays as it was; since some of RandAugment's operations move pixels, it is refused together with flow.

    With `flow`, items are ((clip, flow), label). `flow` is the folder that `extract_flow` wrote, or "tvl1" to compute
    flow while reading. The flow is float32 (2, T, H, W), from each frame of the clip to the video's next frame; it is
    resized, cut and mirrored as the clip is, in pixels of that size, divided by 20 and clipped to [-1, 1].

    With `cache`, a folder, each video is decoded once, whole, and its reduced frames are kept there, see
    `cached_frames`: the same clips, read in a small part of the time.

    In training, start, crop, mirroring and colours are random. They depend on (seed, epoch, index) alone, so the number
    of workers changes nothing. In testing start and crop are centred.

    In training, an unreadable video is named in the log and replaced by another one; VideoError lists the unreadable
    videos once they are more than 1 %. In testing nothing is replaced: VideoError. Raises ValueError for settings that
    do not fit together, or a crop larger than the frame.

        clips = Clips(HMDB51("data/hmdb51"), frames=16, stride=2, train=True, resize=128, crop=112)
        clip, label = clips[0]  # (3, 16, 112, 112)
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
        halved: bool = False,
        crop: int | None = None,
        area: tuple[float, float] | None = None,
        flip: bool = False,
        jitter: tuple[float, float, float, float] | None = None,
        augment: tuple[int, int] | None = None,
        inverted: bool = False,
        flow: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        if frames < 1 or stride < 1:
            raise ValueError(f"frames and stride must be at least 1, got frames={frames}, stride={stride}")
        if area is not None and not (crop and 0 < area[0] <= area[1] <= 1):
            raise ValueError(f"area: expected shares 0 < a <= b <= 1 and a crop, got {area} and crop={crop}")
        if flip and getattr(source, "directed", False):
            raise ValueError(f"flip: {type(source).__name__} tells left from right; set flip=false")
        if jitter is not None and not (min(jitter) >= 0 and jitter[3] <= 0.5):
            raise ValueError(f"jitter: expected four strengths >= 0, the last (hue) at most 0.5, got {jitter}")
        if augment is not None and not (augment[0] >= 1 and 0 <= augment[1] <= 30):
            raise ValueError(f"augment: expected one operation or more, and a magnitude from 0 to 30, got {augment}")
        if augment is not None and flow is not None:
            raise ValueError("augment: it moves a clip's pixels, and the flow would not follow; take jitter instead")
        self.samples, self.root = source.samples, getattr(source, "root", None)
        self.classes: list[str] | None = getattr(source, "classes", None)
        if flow not in (None, "tvl1") and (self.root is None or not os.path.isdir(flow)):
            raise ValueError(
                f"flow: expected 'tvl1' or the folder with the flow of the videos under {self.root}, got {flow!r}; "
                "extract it first: repflow data extract-flow ROOT"
            )
        self.flow, self.cache = flow, cache
        self.frames, self.stride, self.train = frames, stride, train
        self.resize, self.halved, self.crop, self.area, self.flip = resize, halved, crop, area, flip
        self.jitter, self.augment = jitter, augment
        self._change = _changes(jitter, augment) if train and (jitter or augment) else None
        self.inverted, self.seed = inverted, seed
        checked = getattr(source, "checked", {})
        self._checked: list[Checked | None] = [checked.get(path) for path, _ in self.samples]
        parts = getattr(source, "parts", None) or [None] * len(self.samples)
        self._starts = [0 if part is None else part.start for part in parts]
        lengths = [-1 if part is None else len(part) for part in parts]
        # Shared with workers, also with ones that live on: the epoch, numbers of frames (-1 where not yet known, since
        # counting may cost a decoding), which videos are bad, and what each worker reads now.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._lengths = torch.tensor(lengths, dtype=torch.int64).share_memory_()
        self._bad = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()
        self._in_work = torch.full((WORKERS, 2), -1, dtype=torch.int64).share_memory_()  # process, index

    def set_epoch(self, epoch: int) -> None:
        """Call before every epoch of training, for other starts and crops than in the last."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        return self.draw(int(self._epoch), index)

    def draw(self, epoch: int, index: int) -> tuple[Inputs, int]:
        """The clip that `self[index]` is in this epoch."""
        rng = np.random.default_rng((self.seed, epoch, index))
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
        """The videos that workers were reading when they died, of which this error of the DataLoader tells.

        A worker's connections close before the system calls it dead: it is waited for.
        """
        if not isinstance(error, (EOFError, ConnectionError)) and "DataLoader worker" not in str(error):
            return []
        until = time.monotonic() + LAST_MOMENTS
        names: list[str] = []
        while not names and time.monotonic() < until:
            with suppress(RuntimeError):  # PyTorch's signal handler tells of the same death
                time.sleep(0.01)
                alive = {child.pid for child in active_children()}
                reading = {process: index for process, index in self._in_work.tolist() if index >= 0}
                names = [os.fspath(self.samples[reading[process]][0]) for process in reading.keys() - alive]
        return names

    def _note(self, index: int) -> None:
        if (worker := get_worker_info()) is not None:
            self._in_work[worker.id] = torch.tensor([os.getpid(), index])

    def _count(self, index: int, error: VideoError) -> None:
        if not self._bad[index]:
            self._bad[index] = True
            _log.warning("skipped: %s", error)
        if len(self.bad) > MOST_BAD * len(self.samples):
            raise VideoError(
                f"{len(self.bad)} of {len(self.samples)} videos cannot be read, more than {MOST_BAD:.0%}: "
                f"{', '.join(map(repr, self.bad))}; the last: {error}"
            ) from error

    def _clip(self, index: int, rng: np.random.Generator) -> Inputs:
        numbers, clips = self._read(index, rng)
        flow = None if self.flow is None else self._read_flow(index, numbers, clips.shape[-2:])
        views, flows = [], []
        for i, clip in enumerate(clips):
            windows = self._windows(clip, index, rng)
            views += [self._values(clip, window, rng) for window in windows]
            if flow is not None:
                flows += [self._flow_values(flow[i], window) for window in windows]
        return self._joined(views) if self.flow is None else (self._joined(views), self._joined(flows))

    def _joined(self, views: list[Tensor]) -> Tensor:
        return views[0]

    def _windows(self, clip: Tensor, index: int, rng: np.random.Generator) -> list[Window]:
        H, W = clip.shape[-2:]
        if self.area and self.train:
            window = self._random_area(H, W, rng)
        elif self.crop:
            top, left = self._free(clip, index)
            window = Window(self._place(top, rng), self._place(left, rng), self.crop, self.crop)
        else:
            window = Window(0, 0, H, W)
        return [window._replace(mirrored=self.flip and self.train and rng.random() < 0.5)]

    def _place(self, room: int, rng: np.random.Generator) -> int:
        return int(rng.integers(room + 1)) if self.train else room // 2

    def _first_frames(self, room: int, rng: np.random.Generator) -> list[int]:
        """Where the clips begin, which may be up to `room` frames after the video's first one."""
        return [self._place(room, rng)]

    def _numbers(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Numbers of each clip's frames in its video or part, (clips, T); a short one repeats from its first frame on.

        The last frame of a video has no flow.
        """
        length -= self.flow is not None
        room = length - (self.frames - 1) * self.stride - 1
        starts = np.array(self._first_frames(max(room, 0), rng))
        numbers = starts[:, None] + np.arange(0, self.frames * self.stride, self.stride)
        return numbers if room >= 0 else numbers % max(length, 1)

    def _read(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
        """`_numbers` of the sample's clips and their frames, uint8 (clips, T, 3, H, W), resized, then halved.

        No frame is decoded twice, however much the clips share, up to the limit of `measure`.
        """
        path, first, length, held = self.samples[index][0], self._starts[index], int(self._lengths[index]), []
        video = None if self.cache is None else cached_frames(path, self.resize, self.cache)
        checked = self._checked[index]
        if length < 0 and checked and stamp(path) == (checked.bytes, checked.mtime_ns):
            length = checked.frames
        if length < 0:
            length, held = measure(path) if video is None else (len(video), [])
        self._lengths[index] = length
        numbers = self._numbers(length, rng)
        wanted, places = np.unique(first + numbers, return_inverse=True)
        if video is None:
            pictures = choose_frames(path, wanted, held)
            pixels = np.stack([resize_frame(p, (self.resize,)) if self.resize else p for p in pictures])
        else:
            pixels = video[wanted]
        frames = torch.from_numpy(pixels[places.reshape(numbers.shape)]).movedim(-1, -3)
        return numbers, frames[..., ::2, ::2] if self.halved else frames

    def _read_flow(self, index: int, numbers: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Flow at the clips' frames, float32 (clips, T, 2, H, W), in pixels of the clips' size."""
        wanted, places = np.unique(self._starts[index] + numbers, return_inverse=True)
        folders = (None, None) if self.flow == "tvl1" else (self.flow, self.root)
        found = flow_at(self.samples[index][0], wanted.tolist(), *folders)
        return torch.stack([resize_flow(torch.from_numpy(flow), size) for flow in found])[places.reshape(numbers.shape)]

    def _free(self, clip: Tensor, index: int) -> tuple[int, int]:
        """By how many pixels the crop may be moved, down and to the right."""
        top, left = (size - self.crop for size in clip.shape[-2:])
        if min(top, left) < 0:
            raise ValueError(
                f"{os.fspath(self.samples[index][0])!r}: expected frames of at least {self.crop}×{self.crop}, got "
                f"{clip.shape[-2]}×{clip.shape[-1]} (height × width); give a smaller crop or a larger resize"
            )
        return top, left

    def _random_area(self, H: int, W: int, rng: np.random.Generator) -> Window:
        """A random share of the frame, as in Inception's training; what does not fit is cut to the frame."""
        pixels, ratio = H * W * rng.uniform(*self.area), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
        h, w = min(H, max(1, round((pixels / ratio) ** 0.5))), min(W, max(1, round((pixels * ratio) ** 0.5)))
        top, left = (int(rng.integers(room + 1)) for room in (H - h, W - w))
        return Window(top, left, h, w)

    def _cut(self, frames: Tensor, window: Window) -> Tensor:
        top, left, height, width, mirrored = window
        frames = frames[..., top : top + height, left : left + width]
        return frames.flip(-1) if mirrored else frames

    def _values(self, clip: Tensor, window: Window, rng: np.random.Generator) -> Tensor:
        clip = self._cut(clip, window)
        if self.crop:
            clip = resize(clip, (self.crop, self.crop))
        if self._change:
            with torch.random.fork_rng([]):  # torchvision draws from PyTorch's generator
                torch.default_generator.manual_seed(int(rng.integers(2**63)))
                clip = self._change(clip)
        values = clip.float() * (2 / 255) - 1
        return (-values if self.inverted else values).transpose(0, 1).contiguous()

    def _flow_values(self, flow: Tensor, window: Window) -> Tensor:
        flow = self._cut(flow, window)
        if window.mirrored:
            flow = flow * torch.tensor([-1.0, 1.0])[:, None, None]
        if self.crop:
            flow = resize_flow(flow, (self.crop, self.crop))
        return (flow / LARGEST).clamp(-1, 1).transpose(0, 1).contiguous()


def _changes(jitter: tuple[float, ...] | None, augment: tuple[int, int] | None) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2  # takes seconds

    chosen = (v2.ColorJitter, jitter), (v2.RandAugment, augment)
    return v2.Compose([kind(*numbers) for kind, numbers in chosen if numbers])


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow (..., 2, H, W) in pixels, resized to (..., 2, *size) in pixels of the new size."""
    H, W = flow.shape[-2:]
    if tuple(size) == (H, W):
        return flow
    ratio = torch.tensor([size[1] / W, size[0] / H])[:, None, None]
    return resize(flow, size) * ratio


class Views(Clips):
    """Several views of each video, for testing: (views, label), views float32 (clips * crops, 3, T, H, W).

    The starts of `clips` clips are spaced uniformly from the video's first frame to the last possible one; a single one
    lies in the middle. Each clip gives `crops` crops: 1 in the centre, or 3 along the longer side. Scores are averaged
    over a video's views. The other arguments are those of `Clips`; nothing is random. Raises as `Clips` does.

        views = Views(HMDB51("data/hmdb51", subset="test"), frames=16, clips=10, crops=3, resize=128, crop=112)
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
        halved: bool = False,
        crop: int | None = None,
        inverted: bool = False,
        flow: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        options = {"resize": resize, "halved": halved, "crop": crop, "inverted": inverted, "flow": flow, "cache": cache}
        super().__init__(source, frames, stride, train=False, **options)
        if clips < 1 or crops not in (1, 3) or (crops == 3 and not crop):
            raise ValueError(f"expected clips >= 1, crops 1 or 3, and a crop for 3; got {clips}, {crops}, crop={crop}")
        self.clips, self.crops, self.views = clips, crops, clips * crops

    def _joined(self, views: list[Tensor]) -> Tensor:
        return torch.stack(views)

    def _first_frames(self, room: int, rng: np.random.Generator) -> list[int]:
        starts = np.linspace(0, room, self.clips) if self.clips > 1 else np.array([room // 2])
        return starts.round().astype(int).tolist()

    def _windows(self, clip: Tensor, index: int, rng: np.random.Generator) -> list[Window]:
        if self.crops == 1:
            return super()._windows(clip, index, rng)
        top, left = self._free(clip, index)
        places = [
            (int(top * share), left // 2) if top > left else (top // 2, int(left * share)) for share in (0, 0.5, 1)
        ]
        return [Window(*place, self.crop, self.crop) for place in places]
