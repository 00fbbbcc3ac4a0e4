"""Evaluation: predictions of every test video, what they are worth, and their fusion."""

import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from repflow.data.clips import Clips, Inputs, Views
from repflow.data.lists import Listed
from repflow.data.synthetic import BASIC, PAIRS
from repflow.files import write_csv, write_whole
from repflow.models import inputs_of
from repflow.video import VideoError

RESAMPLES = 2000  # of the bootstrap
Results = list[tuple[Tensor, Tensor]]  # indices and scores, batch by batch
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What a model says of every test video, in the data set's order.

    videos: names; labels: (N,) integers, indices into `classes`; probabilities: (N, classes) float32, NaN in the rows
    of videos that could not be read; expected: how many videos the lists name, those that are not here included.
    """

    videos: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    classes: list[str]
    expected: int

    def __post_init__(self) -> None:
        shape = len(self.videos), len(self.classes)
        if self.probabilities.shape != shape or self.labels.shape != shape[:1] or self.expected < len(self.videos):
            raise ValueError(
                f"expected {shape[0]} labels, probabilities of shape {shape} and at least {shape[0]} expected videos, "
                f"got {self.labels.shape}, {self.probabilities.shape} and {self.expected}"
            )
        if shape[0] and not 0 <= self.labels.min() <= self.labels.max() < shape[1]:
            raise ValueError(f"labels: expected 0 to {shape[1] - 1}, got {self.labels.min()} to {self.labels.max()}")

    @property
    def evaluated(self) -> np.ndarray:
        """Which videos have a prediction, (N,) of bool."""
        return np.isfinite(self.probabilities).all(1)

    def hits(self, k: int) -> np.ndarray:
        """Of every evaluated video, whether its class is among the k most probable ones; see `hits`."""
        there = self.evaluated
        return hits(self.probabilities[there], self.labels[there], k)

    def taken_for(self) -> np.ndarray:
        """Of every evaluated video, the most probable class; where its own shares that place, another one."""
        there = self.evaluated
        labels, rivals = self.labels[there], self.probabilities[there]
        rivals[np.arange(len(labels)), labels] = -np.inf
        return np.where(self.hits(1), labels, rivals.argmax(1))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file, whole or not at all."""
        names = {"videos": np.array(self.videos, np.str_), "classes": np.array(self.classes, np.str_)}
        content = io.BytesIO()
        np.savez_compressed(content, **(vars(self) | names))
        write_whole(Path(path), content.getbuffer())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Predictions":
        """What `save` wrote. Raises OSError for a file that is missing or holds something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                videos, classes = (file[name].tolist() for name in ("videos", "classes"))
                return cls(videos, file["labels"], file["probabilities"], classes, int(file["expected"]))
        except FileNotFoundError:
            raise
        except Exception as error:  # NumPy's readers raise nearly anything
            raise OSError(f"{os.fspath(path)!r}: expected predictions by `repflow evaluate`, got {error}") from error


def hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Whether each label is among the k best of its row of scores (N, classes), (N,) of bool.

    A tie counts against the label: a model that gives all classes the same score knows nothing.
    """
    own = np.take_along_axis(scores, labels[:, None], 1)
    return (scores >= own).sum(1) <= k


def check_classes(first: Sequence[str], second: Sequence[str], whose: str) -> None:
    """Raise ValueError, which shows both, where two lists of class names are not the same in the same order."""
    first, second = list(first), list(second)
    if first == second:
        return
    label = [*(a == b for a, b in zip(first, second, strict=False)), False].index(False)
    shown = " and ".join(f"{len(names)}, from label {label} on {names[label : label + 5]}" for names in (first, second))
    raise ValueError(f"{whose}: expected the same classes in the same order, got {shown}")


def evaluate(model: nn.Module, clips: Clips, source: Listed, batch: int = 32, workers: int = 0) -> Predictions:
    """Predictions of `model` for every video of `source`, a data set whose `clips` (usually `Views`) these are.

    Probabilities are the softmax, averaged over a video's views. Nothing replaces a video that cannot be read.
    """
    scores = predict(model, clips, batch, workers)
    if not isinstance(clips, Views):
        scores = torch.from_numpy(scores).softmax(-1).numpy()
    if scores.shape[1] != len(source.classes):
        raise ValueError(f"the model tells {scores.shape[1]} classes, the data set has {len(source.classes)}")
    names = [Path(path).relative_to(source.root).as_posix() for path, _ in source.samples]
    labels = np.array([label for _, label in source.samples], np.int64)
    return Predictions(names, labels, scores, list(source.classes), source.expected)


def predict(model: nn.Module, clips: Clips, batch: int = 32, workers: int = 0) -> np.ndarray:
    """Scores (videos, num_classes), float32, in the data set's order: of `Clips` as the model has them, of `Views` the
    mean of their softmax. Nothing replaces a video that cannot be read: its scores are NaN.

    The model is set to eval mode and runs on a GPU where there is one. `batch`: clips at once, a video's views too. In
    a process group (torchrun, SLURM) every process takes its share of the videos, each video once, and all get all
    scores; where one fails, all raise. Raises VideoError where no video can be read, or where one ends the process that
    reads it; ValueError for scores that are not finite, or clips of several sizes.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    results, failure = [], None
    try:
        results = _share(model, clips, batch, workers, rank, world)
    except Exception as error:  # raised when the others know of it: they would wait for this process's results
        if world == 1:
            raise
        failure = error
    results = _gathered(results, failure, world)
    if not results:
        raise VideoError(f"none of {len(clips)} videos can be read; check them")
    indices, values = (torch.cat(part) for part in zip(*results, strict=True))
    scores = torch.full((len(clips), values.shape[1]), torch.nan)
    scores[indices] = values
    return scores.numpy()


def _share(model: nn.Module, clips: Clips, batch: int, workers: int, rank: int, world: int) -> Results:
    """Indices and scores of this process's part of the videos."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    readable, size, own = _Readable(clips), max(1, batch // clips.views), range(rank, len(clips), world)
    loader = DataLoader(readable, size, sampler=own, num_workers=workers, collate_fn=readable.collate)
    model.to(device).eval()
    results = []
    try:
        with torch.inference_mode():
            for item in tqdm(loader, desc="predicting", leave=False, disable=rank > 0):
                if item is not None:
                    indices, inputs = item
                    results.append((indices, _scores(model, inputs, batch, device).float().cpu()))
    except (RuntimeError, EOFError, ConnectionError) as error:
        name_the_video(error, clips)
        raise
    for indices, scores in results:
        if not scores.isfinite().all():
            bad = clips.samples[int(indices[~scores.isfinite().all(1)][0])][0]
            raise ValueError(f"the model's scores for {os.fspath(bad)!r} are not finite; its weights are not usable")
    return results


def fuse(parts: Sequence[Predictions], weights: Sequence[float]) -> Predictions:
    """Late fusion: the weighted mean of several models' probabilities for the same videos.

    See Simonyan and Zisserman, "Two-stream convolutional networks" (NIPS 2014). A video that one of them has no
    prediction for has none. Raises ValueError for other videos, labels or classes in one of them, or weights that are
    not positive numbers, one for each.
    """
    if len(weights) != len(parts) or not parts or not all(0 < weight < np.inf for weight in weights):
        raise ValueError(f"weights: expected {len(parts)} numbers > 0, got {list(weights)}")
    first = parts[0]
    for part in parts[1:]:
        check_classes(first.classes, part.classes, "predictions to fuse")
        if part.videos != first.videos or (part.labels != first.labels).any():
            raise ValueError("expected predictions for the same videos, labels and classes in the same order")
    shares = np.asarray(weights, np.float32) / sum(weights)
    total = sum(share * part.probabilities for share, part in zip(shares, parts, strict=True))
    return Predictions(first.videos, first.labels, total, first.classes, first.expected)


def measures(predictions: Predictions, seed: int = 0) -> dict[str, float | int]:
    """top1 and top5 in percent of the evaluated videos, with 95 % intervals (_low, _high), evaluated and expected.

    The intervals are percentiles of a bootstrap over videos: what other test videos of the same kind would give, not
    other training runs.
    """
    evaluated = int(predictions.evaluated.sum())
    rng = np.random.default_rng(seed)
    found: dict[str, float | int] = {}
    for k in (1, 5):
        hits = predictions.hits(k)
        # of so many draws with replacement, hits are binomial: no need to draw videos one by one
        again = rng.binomial(evaluated, hits.mean(), RESAMPLES) / evaluated if evaluated else np.array([np.nan])
        low, high = np.percentile(100 * again, [2.5, 97.5])
        top = 100 * float(hits.mean()) if evaluated else np.nan
        found |= {f"top{k}": top, f"top{k}_low": float(low), f"top{k}_high": float(high)}
    return found | {"evaluated": evaluated, "expected": predictions.expected}


def motion_accuracy(scores: np.ndarray, labels: Sequence[int], classes: Sequence[str]) -> dict[str, float]:
    """Accuracies on SyntheticMotion in percent, from scores (clips, classes); a tie counts as wrong.

    top1: all twelve classes. basic: the same twelve-way decision, on clips of the eight classes of constant speed.
    pairs: on accelerating and decelerating clips, the two-way decision between a motion and the same one backwards in
    time; chance is 50. A measure without clips of its classes is left out. Clips without scores (NaN) do not count.

        >>> motion_accuracy(np.eye(2), [0, 1], ["down", "up"])
        {'top1': 100.0, 'basic': 100.0}
    """
    scored = np.isfinite(scores).all(1)
    scores, labels = scores[scored], np.asarray(labels)[scored]
    right = hits(scores, labels)
    names = np.asarray(classes)[labels]
    rivals = {a: classes.index(b) for pair in PAIRS for a, b in (pair, pair[::-1]) if b in classes}
    paired = np.flatnonzero(np.isin(names, list(rivals)))
    beats_rival = scores[paired, labels[paired]] > scores[paired, [rivals[name] for name in names[paired]]]
    measured = {"top1": right, "basic": right[np.isin(names, BASIC)], "pairs": beats_rival}
    return {name: 100 * float(right.mean()) for name, right in measured.items() if len(right)}


def confusion(predictions: Predictions) -> np.ndarray:
    """How often a video of class i was taken for class j: (classes, classes) of int. A tie is taken for another."""
    there = predictions.evaluated
    counts = np.zeros((len(predictions.classes),) * 2, int)
    np.add.at(counts, (predictions.labels[there], predictions.taken_for()), 1)
    return counts


def per_class(predictions: Predictions) -> list[dict[str, str | int | float | None]]:
    """A row a class: its videos, top-1 in percent of them, and what it is taken for most often else."""
    names, counts, rows = predictions.classes, confusion(predictions), []
    right, videos = counts.diagonal().tolist(), counts.sum(1).tolist()
    others = counts - np.diag(right)
    for name, own, total, rivals in zip(names, right, videos, others, strict=True):
        times = int(rivals.max())
        taken_for = {"taken_for": names[rivals.argmax()] if times else "", "times": times}
        rows.append({"class": name, "videos": total, "top1": 100 * own / total if total else None} | taken_for)
    return rows


def folds(parts: Sequence[Predictions]) -> dict[str, float | int]:
    """The mean of several folds' measures; counts are summed.

    Raises ValueError for other classes in one of them, and for the same videos in two.
    """
    for part in parts:
        check_classes(parts[0].classes, part.classes, "folds")
    for (i, part), (j, other) in combinations(enumerate(parts, 1), 2):
        if set(part.videos) == set(other.videos):
            raise ValueError(
                f"folds: expected other videos in each, got the same {len(part.videos)} in number {i} and {j}; give "
                "each fold once, or weights to fuse several models' predictions"
            )
    each = [measures(part) for part in parts]
    mean = {f"top{k}": float(np.mean([fold[f"top{k}"] for fold in each])) for k in (1, 5)}
    return mean | {name: sum(fold[name] for fold in each) for name in ("evaluated", "expected")} | {"folds": len(each)}


def write_evaluation(predictions: Predictions, folder: Path, facts: dict[str, object]) -> dict[str, float | int]:
    """Write predictions.npz, classes.csv, confusion.csv and metrics.json (with `facts`) to `folder`.

    Returns what `measures` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, names = measures(predictions), predictions.classes
    predictions.save(folder / "predictions.npz")
    write_csv(folder / "classes.csv", per_class(predictions))
    lines = zip(names, confusion(predictions).tolist(), strict=True)
    write_csv(folder / "confusion.csv", [{"true": name} | dict(zip(names, line, strict=True)) for name, line in lines])
    write_metrics(folder, found | facts)
    return found


def write_metrics(folder: Path, found: dict[str, object]) -> None:
    """Write metrics.json to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "metrics.json", f"{json.dumps(found, indent=2, default=str)}\n".encode())


def name_the_video(error: Exception, clips: Clips) -> None:
    """Raise VideoError where the DataLoader's error tells of a worker that died: with what it was reading."""
    if names := clips.being_read(error):
        read = " or ".join(map(repr, names))
        raise VideoError(f"the process that read {read} died; leave the file out, or read it by itself") from error


class _Readable(Dataset[tuple[int, Inputs] | None]):
    """Test clips beside their indices; None for a video that cannot be read, which the log names."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[int, Inputs] | None:
        try:
            return index, self.clips[index][0]
        except VideoError as error:
            _log.warning("not evaluated: %s", error)
            return None

    def collate(self, items: list[tuple[int, Inputs] | None]) -> list | None:
        there = [item for item in items if item is not None]
        check_sizes(self.clips, there)
        return default_collate(there) if there else None


def check_sizes(clips: Clips, items: Iterable[tuple[int, Inputs]]) -> None:
    """Raise ValueError where clips of a batch, given by index, differ in height or width."""
    sizes: dict[tuple[int, ...], int] = {}
    for index, inputs in items:
        clip = inputs if isinstance(inputs, Tensor) else inputs[0]
        sizes.setdefault(tuple(clip.shape[-2:]), index)
    if len(sizes) > 1:
        (first, i), (other, j) = list(sizes.items())[:2]
        raise ValueError(
            f"clips of a batch must have one size, but {os.fspath(clips.samples[i][0])!r} gives {first[0]}×{first[1]} "
            f"and {os.fspath(clips.samples[j][0])!r} {other[0]}×{other[1]} (height × width); take a crop (train: --set "
            "crop=PX, evaluate: --crop PX), or a batch of 1"
        )


def _scores(model: nn.Module, inputs: Tensor | list[Tensor], batch: int, device: torch.device) -> Tensor:
    """Scores of a batch of clips; of several views the mean of their softmax."""
    parts = inputs_of(model, inputs)
    if parts[0].ndim == 5:
        return model(*(part.to(device) for part in parts))
    chunks = zip(*(views.flatten(0, 1).split(batch) for views in parts), strict=True)
    scores = torch.cat([model(*(part.to(device) for part in chunk)).softmax(-1) for chunk in chunks])
    return scores.unflatten(0, parts[0].shape[:2]).mean(1)


def _gathered(results: Results, failure: Exception | None, world: int) -> Results:
    """Every process's results, in every process. Raises this process's failure, or ValueError with another's."""
    if world == 1:
        return results
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, (results, failure and f"{type(failure).__name__}: {failure}"))
    if failure:
        raise failure
    for rank, (_, told) in enumerate(everyone):
        if told:
            raise ValueError(f"process {rank} of {world} failed: {told}")
    return [result for part, _ in everyone for result in part]
