"""Weights by name, from torchvision, or from a file."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_weights(weights: str | os.PathLike[str], named: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict that `weights` means: a name among `named`'s, which are torchvision's entries, or a file.

    A named one is torchvision's file in PyTorch's cache (`torch.hub.get_dir()`), downloaded where it is not there yet.
    Raises ValueError for another name or a file that holds no state dict, FileNotFoundError for a file that is not
    there, and OSError where the download fails, which says what to put where.
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
    return _read(file)


def _from_torchvision(entry: str) -> dict[str, Tensor]:
    from torchvision.models import get_weight  # takes seconds

    url = get_weight(entry).url
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), file.stem.rsplit("-", 1)[1])
        except OSError as error:
            raise OSError(
                f"{file.name} cannot be downloaded ({error}). It is torchvision's {entry}: fetch {url} "
                f"where there is a network, and put it into {file.parent}"
            ) from error
    return _read(file)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, "cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: cannot be read as PyTorch weights ({error}); fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file}: expected a state dict, names to tensors; save `model.state_dict()`")
    return state
