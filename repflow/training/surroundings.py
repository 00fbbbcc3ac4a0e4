"""The process around a training: random states, log.txt, memory, and errors that say what to do."""

import logging
import random
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from repflow.data import Clips
from repflow.evaluation import name_the_video
from repflow.training.folder import RunFolder, TrainingError
from repflow.training.recipe import Recipe


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch, those of the GPUs included."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_step(*numbers: int) -> None:
    """Seed all generators by (seed, step, part, process), so that a checkpoint need not keep their states."""
    seed_all(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the caller's random states and logger levels as they were; inside, Lightning logs warnings only."""
    logger = logging.getLogger("lightning_fabric")
    level, python_state, numpy_state = logger.level, random.getstate(), np.random.get_state()
    logger.setLevel(logging.WARNING)
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def logged(folder: RunFolder | None, is_first: bool) -> Iterator[None]:
    """Copy the package's log to the run's log.txt. Only the first of several processes logs more than warnings."""
    logger, handler = logging.getLogger("repflow"), logging.NullHandler()
    level = logger.level
    if folder and is_first:
        handler = logging.FileHandler(folder.path / "log.txt", encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if folder or not is_first:
        logger.setLevel(logging.INFO if is_first else logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextmanager
def explained(clips: Clips, recipe: Recipe, processes: int) -> Iterator[None]:
    """Raise VideoError that names the video that killed a worker, and TrainingError for too little memory."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        name_the_video(error, clips)
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
            size = f"{clips.crop}×{clips.crop}" if clips.crop else "whole frames"
            part = recipe.batch // (recipe.accumulate * processes)
            raise TrainingError(
                f"out of memory with {part} clips at once of {clips.frames} frames, {size} ({error}). Cut the batch of "
                f"{recipe.batch} into more parts (accumulate={2 * recipe.accumulate}), take precision bf16-mixed, more "
                "devices, fewer frames or a smaller crop, in a new folder"
            ) from error
        raise


def peak_mib() -> int:
    """The most memory used so far in MiB: of the GPU, or of this process where there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
