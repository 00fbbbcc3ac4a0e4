"""Weights by name, from torchvision, or from a file."""

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor


def read_weights(weights: str | os.PathLike[str], named: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict for `weights`: a name among `named`'s, which are torchvision's entries, or a file.

    A named one is torchvision's file in PyTorch's cache (`torch.hub.get_dir()`), downloaded if it is not there yet.
    Raises ValueError for another name or a file without a state dict, FileNotFoundError for a missing file, and OSError
    if the download fails, with the address and the folder for a download by hand.

        >>> state = read_weights("imagenet", {"imagenet": "ResNet18_Weights.IMAGENET1K_V1"})
        >>> state["conv1.weight"].shape
        torch.Size([64, 3, 7, 7])
    """
    if weights in named:
        return _from_torchvision(named[weights])
    if weights in ("imagenet", "kinetics400"):
        known = ", ".join([*map(repr, named), "None", "a file"])
        raise ValueError(f"weights: expected one of {known} for this backbone, got {weights!r}")
    file = Path(weights)
    if not file.is_file():
        raise FileNotFoundError(
            f"weights: expected 'imagenet', 'kinetics400' or a file; there is no file {str(file)!r}"
        )
    with _damage_named(file):
        state = torch.load(file, "cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: expected a state dict, names to tensors; save `model.state_dict()`")
    return state


def _from_torchvision(entry: str) -> dict[str, Tensor]:
    from torchvision.models import get_weight  # takes seconds

    source = get_weight(entry)
    file = Path(torch.hub.get_dir(), "checkpoints", source.url.rsplit("/", 1)[1])
    try:
        with _damage_named(file), redirect_stdout(sys.stderr):  # it reports a download on stdout, which is for results
            return source.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:
        raise OSError(
            f"{file.name} cannot be downloaded ({error}). It is torchvision's {entry}: fetch {source.url} "
            f"where there is a network, and put it into {file.parent}"
        ) from error


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: cannot be read as PyTorch weights ({error}); fetch it again") from error
