"""Weights of the 2019 releases in the forms that people have them; nothing that a file holds is run."""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from filecmp import cmpfiles
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from repflow._version import __version__
from repflow.arguments import whole_number
from repflow.files import beside
from repflow.official.models import HMDBFlowOfFlow, KineticsModel
from repflow.records import results_folder

# Each network's class, and the weight of its classifier, whose first size is the number of classes.
MODELS = {"kinetics": (KineticsModel, "classify.weight"), "hmdb_flow_of_flow": (HMDBFlowOfFlow, "fc.weight")}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
COUNTERS = ("n_averaged", "steps")  # beside an average of weights: AveragedModel's, MMEngine's
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, a LightningModule's attributes
SHIPPED = "repflow"  # the entry of a safetensors file's metadata that makes it a checkpoint of `repflow train`
WEIGHTS, RECORD = "model.safetensors", "model.json"  # the two files of a folder by `convert`


class CheckpointError(ValueError):
    """A file that cannot be read, or without weights for the model. The message names the file and the reason."""


def load(path: str | Path, model: str | None = "kinetics", key: str | None = None) -> nn.Module:
    """A released network with the weights in `path`: float32, on the CPU, in eval mode.

    path: a file by torch.save, of any year, that holds a state dict, or a dictionary with one under a name among
        `WRAPPERS`; its keys may begin with the `PREFIXES`. Or a .safetensors file, or a folder by `convert`.
    model: "kinetics" or "hmdb_flow_of_flow"; None takes the one whose classifier the file has. The classifier's shape
        gives the number of classes, and its blocks tell whether "hmdb_flow_of_flow" has 34 layers or 50. The solver's
        iterations are in no file: they are the release's for that network, or those in the record of a folder.
    key: the state dict's name in the file if it is another one, such as "state_dict_ema".

    Raises CheckpointError if the file cannot be read, or if its weights do not fit or are not finite; ValueError for
    another model.

        >>> network = load("kinetics.pt")
        >>> network(torch.rand(1, 3, 16, 112, 112)).shape
        torch.Size([1, 400])
    """
    if model not in (*MODELS, None):
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {model!r}")
    return build(read(path), path, model, key)


def build(content: Any, path: str | Path, model: str | None = None, key: str | None = None) -> nn.Module:
    """The network that `load` returns, from the `content` that `read` returned for `path`."""
    path, options = Path(path), {}
    with _naming(f"{path}, model {model!r}" if model else str(path)):
        state = _state_dict(content, key)
        model = model or _model_name(state)
        if path.is_dir():
            options["iterations"] = _iterations(path / RECORD, model)
        network_class, classifier = MODELS[model]
        weight = state.get(classifier)
        if weight is not None and weight.ndim and weight.numel():
            options["num_classes"] = len(weight)
        if network_class is HMDBFlowOfFlow:
            options["layers"] = 50 if "layer1.0.conv3.weight" in state else 34
        with torch.device("meta"):  # without values: they come from the file
            network = network_class(**options)
        network.load_state_dict(_fitted(state, network.state_dict()), assign=True)
    return network.eval()


def kind_of(path: str | Path) -> str:
    """The released network whose weights `path` has: "kinetics" or "hmdb_flow_of_flow".

    Raises CheckpointError for other weights, such as those of `repflow train`, and for files that cannot be read.
    """
    content = read(path)
    with _naming(str(path)):
        return _model_name(_state_dict(content, None))


def convert(path: str | Path, model: str, out: str | Path) -> None:
    """Rewrite a file that `load` reads as the folder `out`, of model.safetensors and the record model.json.

    The record has the model's name, its classes and iterations, the source's name and SHA-256, and this package's
    version. `out` appears whole or not at all; if it has the same content already, it stays. Raises CheckpointError as
    `load` does, and FileExistsError if `out` is something else.

        >>> convert("kinetics.pt", "kinetics", "weights/kinetics")
        >>> network = load("weights/kinetics")
    """
    path, out = Path(path), Path(out)
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a file to convert, got a folder")
    network = load(path, model)
    state = network.state_dict()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = {
        "model": model,
        "num_classes": len(state[MODELS[model][1]]),
        "iterations": next(layer.n_iter for layer in network.modules() if hasattr(layer, "n_iter")),
        "source": path.name,
        "sha256": digest,
        "repflow": __version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with beside(out) as folder:
        whole = folder / "whole"
        whole.mkdir()
        save_file(state, whole / WEIGHTS)
        (whole / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (whole / WEIGHTS).chmod((whole / RECORD).stat().st_mode)  # safetensors lets its owner alone read it
        if not out.exists():
            whole.rename(out)
        elif len(cmpfiles(whole, out, [WEIGHTS, RECORD], shallow=False)[0]) < 2:
            raise FileExistsError(f"{out}: exists and holds something else; remove it, or take another name")


def read(path: str | Path) -> Any:
    """The content of a file of weights, or of a folder by `convert`, with its tensors on the CPU.

    Weights that come with the package are read by their name, see `locate`. Raises CheckpointError for a file that is
    damaged, or that holds more than tensors and plain Python values.
    """
    path = locate(path)
    file = path / WEIGHTS if path.is_dir() else path
    with _naming(str(path)):
        if path.is_dir() and not (path / RECORD).exists():
            raise CheckpointError(f"a folder, but not one by `convert`: it has no {RECORD}")
        if not file.is_file():
            raise CheckpointError("expected a file of weights; there is none")
        with _damage_named():
            damaged_part = _damaged_part(file)
        if damaged_part:
            raise CheckpointError(f"damaged: the check sum of {damaged_part} in it is wrong; fetch it again")
        with _damage_named():
            with file.open("rb") as stream:
                is_safetensors = file.suffix == ".safetensors" or stream.read(9)[8:] == b"{"
            if not is_safetensors:
                return torch.load(file, map_location="cpu", weights_only=True)
            with safe_open(file, "pt") as tensors:
                record = (tensors.metadata() or {}).get(SHIPPED)
            return json.loads(record) | {"model": load_file(file)} if record else load_file(file)


def locate(path: str | Path) -> Path:
    """The path itself, or, where nothing lies there, the file of this name in results/weights, which come along.

    >>> locate("flow_of_flow_2d").name
    'flow_of_flow_2d.safetensors'
    """
    named = results_folder() / "weights" / f"{path}.safetensors"
    return named if not Path(path).exists() and named.is_file() else Path(path)


def of_training(content: Any) -> bool:
    """Whether the content that `read` returned is a checkpoint of `repflow train`."""
    return isinstance(content, Mapping) and "model" in content and "recipe" in (content.get("config") or ())


def _damaged_part(file: Path) -> str | None:
    """The first part of an archive by torch.save whose check sum is wrong, which PyTorch does not look at, or None."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        return archive.testzip()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Begin the message of a CheckpointError with `name`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error.__cause__


@contextmanager
def _damage_named() -> Iterator[None]:
    """Raise CheckpointError for every exception: the readers of damaged files raise any."""
    try:
        yield
    except Exception as error:
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0][:200]
        if found := re.match(r"Unsupported (?:global: GLOBAL|class) (\S+)", reason):
            raise CheckpointError(
                f"holds more than tensors, the Python object {found[1]}; such objects can run code, so nothing was "
                "loaded. If it is a whole model or a training state from a source you trust, open it where it was made "
                "and save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
            ) from error
        raise CheckpointError(f"damaged, or not a file of weights ({type(error).__name__}: {reason})") from error


def _model_name(state: Mapping[str, Tensor]) -> str:
    classifiers = {classifier: name for name, (_, classifier) in MODELS.items()}
    if found := classifiers.keys() & state.keys():
        return classifiers[min(found)]
    raise CheckpointError(
        f"expected weights of a released network, which have {' or '.join(classifiers)}; got {len(state)} others, such "
        f"as {next(iter(state))}"
    )


def _iterations(file: Path, model: str) -> int:
    """The solver's iterations in the record that `convert` wrote."""
    with _damage_named():
        record = json.loads(file.read_text(encoding="utf-8"))
        recorded, iterations = record["model"], whole_number("iterations", record["iterations"], 1)
    if recorded != model:
        raise CheckpointError(f"expected weights of {model!r}, got those of {recorded!r}")
    return iterations


def _state_dict(content: Any, key: str | None) -> dict[str, Tensor]:
    """The dictionary of tensors in a file's content, without the prefixes that all of its keys have."""
    if of_training(content):
        raise CheckpointError(
            "this is a checkpoint of `repflow train`, not of the 2019 release; `repflow evaluate` and "
            "repflow.training.open_checkpoint take it as it is"
        )
    if isinstance(content, Mapping):
        content = _unwrapped(content, key)
    if not isinstance(content, Mapping) or not content:
        kind = "an empty one" if isinstance(content, Mapping) else f"an object of type {type(content).__name__}"
        raise CheckpointError(f"expected a dictionary of tensors, got {kind}")
    state = {str(name): value for name, value in content.items() if name not in COUNTERS}
    _refuse({"no tensors": [name for name, value in state.items() if not isinstance(value, Tensor)]})
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _unwrapped(content: Mapping[str, Any], key: str | None) -> Any:
    """The weights under `key`, or under one of WRAPPERS, or `content` itself if it has no weights inside."""
    dictionaries = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    with_weights = [name for name, value in dictionaries.items() if value and all(map(torch.is_tensor, value.values()))]
    wrapper = next((name for name in WRAPPERS if name in dictionaries), None)
    if key in with_weights or (wrapper and not key):
        return content[key or wrapper]
    if not key and not with_weights:
        return content
    expected = repr(key) if key else " or ".join(map(repr, WRAPPERS))
    names = f"weights under {', '.join(map(repr, with_weights))}" if with_weights else "none under a name"
    raise CheckpointError(
        f"expected weights under {expected}; the file has {names}. Name them: key=NAME in `load`, --key NAME in "
        "`repflow evaluate`"
    )


def _fitted(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors in the expected types. Raises CheckpointError for other names, shapes or values."""
    counters = (name for name in expected if name.endswith("num_batches_tracked"))
    state = dict.fromkeys(counters, torch.tensor(0)) | state  # PyTorch 0.4.0 did not count batches
    kinds = [(name, _kind(state[name]), _kind(like)) for name, like in expected.items() if name in state]
    _refuse(
        {
            "missing": [name for name in expected if name not in state],
            "unexpected": [name for name in state if name not in expected],
            "of another kind": [f"{name} {kind} instead of {like}" for name, kind, like in kinds if kind != like],
        }
    )
    options = {"copy": True, "memory_format": torch.contiguous_format}
    copies = {name: state[name].detach().to(like.dtype, **options) for name, like in expected.items()}
    _refuse({"NaN or infinite as float32": [name for name, value in copies.items() if not value.isfinite().all()]})
    return copies


def _kind(tensor: Tensor) -> str:
    """Its shape and its type, without the precision of a floating-point type."""
    if tensor.layout != torch.strided:
        return f"{tuple(tensor.shape)} {tensor.layout}"
    return f"{tuple(tensor.shape)} {'floating-point' if tensor.is_floating_point() else tensor.dtype}"


def _refuse(faults: Mapping[str, list[str]]) -> None:
    """Raise CheckpointError if there are faulty tensors: how many have each fault, and the names of the first ten."""
    found = {fault: names for fault, names in faults.items() if names}
    messages = [f"{len(n)} {fault}: {', '.join(n[:10])}{', ...' if len(n) > 10 else ''}" for fault, n in found.items()]
    if messages:
        raise CheckpointError(f"the weights do not fit; {'; '.join(messages)}")
