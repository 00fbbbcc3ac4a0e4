"""Weights of the 2019 releases as people have them, read without running anything that a file may hold."""

import hashlib
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from filecmp import cmpfiles
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from repflow._version import __version__
from repflow.files import beside
from repflow.official.models import HMDBFlowOfFlow, KineticsModel

# The networks, and whose shape tells the number of classes.
MODELS = {"kinetics": (KineticsModel, "classify.weight"), "hmdb_flow_of_flow": (HMDBFlowOfFlow, "fc.weight")}
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
COUNTERS = ("n_averaged", "steps")  # beside an average of weights: AveragedModel's, MMEngine's
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel, torch.compile, a LightningModule's attributes
WEIGHTS, RECORD = "model.safetensors", "model.json"  # the two files of a folder by `convert`

# How files by torch.save begin, since 2020 and before.
_ZIP, _LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5  # magic number, version, system, the object, names of the storages that follow
# All that a dictionary of tensors needs. PyTorch allows more, such as bytearray(10**11), which takes that much memory.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch(\.cuda)? \w+Storage|torch (Size|device)|torch\.nn\.parameter Parameter"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)


class CheckpointError(ValueError):
    """A file without weights for the model, or one that cannot be read safely. The message names it and says why."""


def load(path: str | Path, model: str | None = "kinetics", key: str | None = None) -> nn.Module:
    """A released network with the weights in `path`: float32, on the CPU, in eval mode.

    path: a file by torch.save, of any year, which holds a state dict, or a dictionary with one under a name among
        `WRAPPERS`; its keys may begin with the `PREFIXES`. Or a .safetensors file, or a folder by `convert`.
    model: "kinetics" or "hmdb_flow_of_flow", or None for the one that the weights are of. The classifier's shape tells
        the number of classes.
    key: the name that the state dict has in the file, where it is another one, such as "state_dict_ema".

    Nothing in a file is run. Raises CheckpointError where it cannot be read, or its weights do not fit or are not
    finite; ValueError for another model.
    """
    if model not in (*MODELS, None):
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {model!r}")
    path, options = Path(path), {}
    with _naming(f"{path}, model {model!r}" if model else str(path)):
        state = _tensors(path, key)
        model = model or _released(state)
        if path.is_dir():
            options["iterations"] = _iterations(path / RECORD, model)
        build, classifier = MODELS[model]
        weight = state.get(classifier)
        if weight is not None and weight.ndim and weight.numel():
            options["num_classes"] = len(weight)
        with torch.device("meta"):  # shapes alone: the weights come from the file
            network = build(**options)
        network.load_state_dict(_fitted(state, network.state_dict()), assign=True)
    return network.eval()


def kind_of(path: str | Path) -> str:
    """Which of the released networks the weights in `path` are of: "kinetics" or "hmdb_flow_of_flow".

    Raises CheckpointError where they are of neither, such as those of `repflow train`, or cannot be read.
    """
    with _naming(str(path)):
        return _released(_tensors(Path(path)))


def _released(state: Mapping[str, Tensor]) -> str:
    for name, (_, classifier) in MODELS.items():
        if classifier in state:
            return name
    raise CheckpointError(
        f"expected weights of a released network, which have {' or '.join(c for _, c in MODELS.values())}; got "
        f"{len(state)} others, such as {next(iter(state))}"
    )


def convert(path: str | Path, model: str, out: str | Path) -> None:
    """Rewrite a file that `load` reads as the folder `out`: model.safetensors, and model.json, which says what it is.

    The record has the model's name, its classes and iterations, the source's name and SHA-256, and this package's
    version. `out` appears whole or not at all. Where it is already there, the same, nothing happens. Raises
    CheckpointError as `load` does, and FileExistsError where `out` is something else.
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


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Whatever is wrong, the message begins with what it is about."""
    try:
        yield
    except CheckpointError as fault:
        raise CheckpointError(f"{what}: {fault}") from fault.__cause__


def _iterations(file: Path, model: str) -> int:
    """The solver's iterations by the record that `convert` wrote."""
    try:
        with file.open(encoding="utf-8") as text:
            record = json.loads(text.read(10_000))
        found, iterations = record["model"], record["iterations"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise CheckpointError(f"{RECORD} is not a record by `convert`: {fault!r}") from fault
    if found != model or type(iterations) is not int or iterations < 1:
        raise CheckpointError(f"expected {model!r} and its iterations, got {found!r} and {iterations!r}")
    return iterations


def read(path: str | Path) -> Any:
    """What a file of weights, or a folder by `convert`, holds; of a file that does not only hold tensors, plain Python
    values and containers of both: CheckpointError."""
    with _naming(str(path)), _reading():
        return _content(_file(Path(path)))


def of_training(content: Any) -> bool:
    """Whether what `read` gave is a checkpoint of `repflow train`."""
    return isinstance(content, Mapping) and "model" in content and "recipe" in (content.get("config") or ())


def _file(path: Path) -> Path:
    """Where the weights are. Raises CheckpointError where they are not."""
    if path.is_dir() and not (path / RECORD).exists():
        raise CheckpointError(f"a folder, but not one by `convert`: it has no {RECORD}")
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError("expected a file of weights; there is none")
    return path


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as fault:  # a damaged file makes its reader raise anything
        reason = str(fault).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0][:200]
        raise CheckpointError(f"damaged, or not a file of weights ({type(fault).__name__}: {reason})") from fault


def _tensors(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, out of its wrapping, with no tensor larger than the file."""
    path = _file(path)
    with _reading():
        state = _unwrapped(_content(path), key)
    size = path.stat().st_size
    _refuse({"larger than the file": [name for name, t in state.items() if t.numel() * t.element_size() > size]})
    return state


def _content(path: Path) -> Any:
    """What a file holds, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
        if start == _LEGACY:
            file.seek(0)
            _refuse_objects(file, _LEGACY_PICKLES)
    if start == _LEGACY:
        return torch.load(path, map_location="cpu", weights_only=True)
    if start.startswith(_ZIP):
        _check_archive(path)
        # Mapped: what the file claims to hold takes no memory, and lies within it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return load_file(path)
    if not start:
        raise CheckpointError("the file is empty")
    raise CheckpointError(f"expected a file by torch.save or safetensors, got one that begins with {start[:8]!r}")


def _check_archive(path: Path) -> None:
    """Refuse a zip file that is compressed or damaged, or whose pickles hold more than tensors."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # inside it may be of any size
            raise CheckpointError("a compressed zip file, which torch.save never writes")
        if damaged := archive.testzip():  # PyTorch does not look at the check sums
            raise CheckpointError(f"damaged: the check sum of {damaged} is wrong; get the file again")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):
                with archive.open(entry) as file:
                    _refuse_objects(file, 1)


def _refuse_objects(file: BinaryIO, pickles: int) -> None:
    """Look through pickles, one after the other, without loading them, for whatever is not a tensor."""
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "PROTO" and argument != 2:
                raise CheckpointError(f"pickle protocol {argument}: save it anew by torch.save's own, which is 2")
            if operation.name == "GLOBAL" and not _HARMLESS.fullmatch(argument):
                raise CheckpointError(
                    f"holds more than tensors, the Python object {argument.replace(' ', '.')}; such objects can run "
                    "code, so nothing was loaded. If it is a whole model or a training state from a source you trust, "
                    "open it where it was made and save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
                )


def _unwrapped(content: Any, key: str | None) -> dict[str, Tensor]:
    """The dictionary of tensors in what was read, without the prefixes that all of its keys have."""
    if of_training(content):
        raise CheckpointError(
            "this is a checkpoint of `repflow train`, not of the 2019 release; `repflow evaluate` and "
            "repflow.training.open_checkpoint take it as it is"
        )
    if isinstance(content, Mapping):
        content = _chosen(content, key)
    if not isinstance(content, Mapping) or not content:
        got = "an empty one" if isinstance(content, Mapping) else f"an object of type {type(content).__name__}"
        raise CheckpointError(f"expected a dictionary of tensors, got {got}")
    state = {name: value for name, value in content.items() if name not in COUNTERS}
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError("expected a dictionary of tensors by name, found keys that are no names")
    _refuse({"that are no tensors": [name for name, value in state.items() if not isinstance(value, Tensor)]})
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _chosen(content: Mapping[str, Any], key: str | None) -> Any:
    """The weights under `key`, or under one of WRAPPERS, or the dictionary itself where it has none inside."""
    inside = [name for name, value in content.items() if isinstance(value, Mapping) and _of_tensors(value)]
    usual = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    if key in inside or (usual and not key):
        return content[key or usual]
    if not key and not inside:
        return content
    raise CheckpointError(
        f"expected weights under {repr(key) if key else ' or '.join(map(repr, WRAPPERS))}; the file has "
        f"{'weights under ' + ', '.join(map(repr, inside)) if inside else 'none under a name'}. Name them: key=NAME in "
        "`load`, --key NAME in `repflow evaluate`"
    )


def _of_tensors(values: Mapping[Any, Any]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values.values())


def _fitted(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors in the types that are expected. Raises CheckpointError for names, shapes or values."""
    counters = (name for name in expected if name.endswith("num_batches_tracked"))
    state = dict.fromkeys(counters, torch.tensor(0)) | state  # PyTorch 0.4.0 did not count batches
    pairs = [(name, _kind(state[name]), _kind(like)) for name, like in expected.items() if name in state]
    _refuse(
        {
            "missing": [name for name in expected if name not in state],
            "unexpected": [name for name in state if name not in expected],
            "of another kind": [f"{name} {got} instead of {want}" for name, got, want in pairs if got != want],
        }
    )
    copies = {
        name: state[name].detach().to(like.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, like in expected.items()
    }
    _refuse({"NaN or infinite as float32": [name for name, value in copies.items() if not value.isfinite().all()]})
    return copies


def _kind(tensor: Tensor) -> str:
    """Its shape, and its type, where all floating-point types are one."""
    return f"{tuple(tensor.shape)} {'floating-point' if tensor.is_floating_point() else tensor.dtype}"


def _refuse(faults: Mapping[str, list[str]]) -> None:
    """Raise CheckpointError where a fault has tensors: what is wrong with which, the first ten of them."""
    if any(faults.values()):
        raise CheckpointError(
            "the weights do not fit; "
            + "; ".join(
                f"{len(names)} {fault}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
                for fault, names in faults.items()
                if names
            )
        )
