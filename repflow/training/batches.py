"""Which clips make up which step: a function of (seed, step) alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from repflow.data import Clips
from repflow.data.clips import Inputs, Samples
from repflow.data.lists import Checked
from repflow.evaluation import check_sizes
from repflow.training.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """Some of a data set's videos."""

    root: PathLike[str]
    samples: list[tuple[PathLike[str], int]]
    directed: bool
    classes: list[str] | None = None
    checked: Mapping[PathLike[str], Checked] = field(default_factory=dict)


def split(source: Samples, share: float, seed: int) -> tuple[Part, Part]:
    """The videos of `source` in two parts, for training and for validation, of each class the same `share`.

    At least one video of a class with two or more is in either part. Which they are depends on the order of `samples`,
    share and seed alone. They are drawn video by video: HMDB51's clips of one film may be in both parts, so accuracy on
    the second part is higher than on the test fold, whose films are others. It ranks checkpoints; it is no result.
    """
    labels = np.array([label for _, label in source.samples])
    held_out: set[int] = set()
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        count = min(max(round(share * len(of_class)), 1), len(of_class) - 1)
        held_out |= set(np.random.default_rng((seed, label)).permutation(of_class)[:count].tolist())
    parts: tuple[list, list] = ([], [])
    for i, sample in enumerate(source.samples):
        parts[i in held_out].append(sample)
    rest = getattr(source, "directed", False), getattr(source, "classes", None), getattr(source, "checked", {})
    return Part(source.root, parts[0], *rest), Part(source.root, parts[1], *rest)


class StepBatches(Sampler[list[tuple[int, int]]]):
    """What each part of each step trains on, as (epoch, index) pairs, from step `first` to the last.

    An epoch goes once through the clips, in an order by (seed, epoch); clips that don't fill a batch are left out. A
    step's batch is cut into `accumulate` × `processes` equal parts, and this process gets those of its `rank`: together
    the processes see what one alone would see. Raises ValueError for a batch that is larger than all clips, or cannot
    be cut so.
    """

    def __init__(self, clips: int, recipe: Recipe, first: int = 0, rank: int = 0, processes: int = 1) -> None:
        if clips < recipe.batch:
            raise ValueError(f"batch: expected at most the {clips} clips there are, got {recipe.batch}")
        if recipe.batch % (recipe.accumulate * processes):
            raise ValueError(
                f"batch: expected a multiple of accumulate × processes = {recipe.accumulate} × {processes}, got "
                f"{recipe.batch}"
            )
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
        """A batch, which PyTorch's loader asks for as such."""
        items = [self[key] for key in keys]
        check_sizes(self.clips, [(index, inputs) for (_, index), (inputs, _) in zip(keys, items, strict=True)])
        return items


class TrainingClips(L.LightningDataModule):
    """Batches of clips for training from step `first` on; each process gets its parts of them."""

    def __init__(self, clips: Clips, recipe: Recipe, first: int) -> None:
        super().__init__()
        self.clips, self.recipe, self.first = clips, recipe, first

    def train_dataloader(self) -> DataLoader:
        place = self.trainer.global_rank, self.trainer.world_size
        batches = StepBatches(len(self.clips), self.recipe, self.first, *place)
        options = {"num_workers": self.recipe.workers, "pin_memory": torch.cuda.is_available()}
        return DataLoader(EpochClips(self.clips), batch_sampler=batches, **options)
