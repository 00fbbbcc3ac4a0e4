"""The clips of each step: a function of (seed, step) alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from repflow.data import Clips
from repflow.data.clips import Inputs, Samples
from repflow.data.lists import Checked
from repflow.evaluation import check_sizes
from repflow.training.recipe import Recipe

Batch = tuple[Tensor | list[Tensor], Tensor]  # clips (N, 3, T, H, W) or [clips, flow], and labels (N,)


@dataclass(frozen=True)
class Part:
    """Some of a data set's videos."""

    root: PathLike[str]
    samples: list[tuple[PathLike[str], int]]
    directed: bool
    classes: list[str] | None = None
    checked: Mapping[PathLike[str], Checked] = field(default_factory=dict)


def split(source: Samples, share: float, seed: int) -> tuple[Part, Part]:
    """Divide the videos of `source` into a part for training and one, with `share` of each class, for validation.

    Each part has at least one video of a class with two or more. The order of `samples`, share and seed alone decide.
    Where the source knows `groups`, clips of one source that look alike, whole groups are held out, at least one of a
    class and not all, until they have `share` of its videos. Else videos are drawn one by one: HMDB51's clips of one
    film may be in both parts, so accuracy on the second part is higher than on the test fold, which has other films. It
    ranks checkpoints; it is no result.

        >>> training, validation = split(SyntheticMotion("motion"), 0.1, seed=0)
    """
    labels = np.array([label for _, label in source.samples])
    known = getattr(source, "groups", None)
    groups = np.arange(len(labels)) if known is None else np.array(known)
    held_out: set[int] = set()
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        wanted, count = max(round(share * len(of_class)), 1), 0
        order = np.random.default_rng((seed, label)).permutation(np.unique(groups[of_class]))
        for group in order[:-1]:  # one is left for training
            if count >= wanted:
                break
            members = of_class[groups[of_class] == group]
            held_out |= set(members.tolist())
            count += len(members)
    parts: tuple[list, list] = ([], [])
    for i, sample in enumerate(source.samples):
        parts[i in held_out].append(sample)
    rest = getattr(source, "directed", False), getattr(source, "classes", None), getattr(source, "checked", {})
    return Part(source.root, parts[0], *rest), Part(source.root, parts[1], *rest)


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The clips of each part of each step, as (epoch, index) pairs, from step `first` to the last.

    An epoch goes once through the clips, in an order by (seed, epoch); the last clips that do not fill a batch are left
    out. A step's batch is cut into `accumulate` × `processes` equal parts, and this process gets those of its `rank`:
    together the processes see what one alone would see. Raises ValueError for a batch that is larger than all clips,
    or that cannot be cut into such parts.
    """

    def __init__(self, clips: int, recipe: Recipe, first: int = 0, rank: int = 0, processes: int = 1) -> None:
        if clips < recipe.batch:
            raise ValueError(f"batch: expected at most the {clips} clips there are, got {recipe.batch}")
        if recipe.batch % (recipe.accumulate * processes):
            parts = f"{recipe.accumulate} × {processes}"
            raise ValueError(f"batch: expected a multiple of accumulate × processes = {parts}, got {recipe.batch}")
        if recipe.mix and recipe.batch == recipe.accumulate * processes:
            raise ValueError(f"mix: expected parts of two clips or more, got {recipe.batch} of one; raise the batch")
        self.clips, self.recipe, self.first, self.rank, self.processes = clips, recipe, first, rank, processes
        self.per_epoch = clips // recipe.batch
        self.steps = recipe.steps or recipe.epochs * self.per_epoch

    def __len__(self) -> int:
        return (self.steps - self.first) * self.recipe.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = None
        for step in range(self.first, self.steps):
            epoch, place = divmod(step, self.per_epoch)
            if order is None or place == 0:
                order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self.clips)
            batch = order[place * self.recipe.batch :][: self.recipe.batch]
            for part in np.split(batch, self.recipe.accumulate * self.processes)[self.rank :: self.processes]:
                yield [(epoch, index) for index in part.tolist()]


class EpochClips(Dataset[tuple[Inputs, int]]):
    """Training clips by (epoch, index): a worker that reads ahead draws from the epoch that the batch belongs to."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __getitem__(self, key: tuple[int, int]) -> tuple[Inputs, int]:
        return self.clips.draw(*key)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Inputs, int]]:
        """The items of a batch; PyTorch's loader calls this method if there is one."""
        items = [self[key] for key in keys]
        check_sizes(self.clips, [(index, inputs) for (_, index), (inputs, _) in zip(keys, items, strict=True)])
        return items


def load_batches(clips: Clips, batches: StepBatches, workers: int) -> DataLoader[Batch]:
    """The batches as tensors, read by `workers` processes, or by this one for 0."""
    pins = torch.cuda.is_available()
    return DataLoader(EpochClips(clips), batch_sampler=batches, num_workers=workers, pin_memory=pins)
