"""The networks of the 2019 releases against their reference outputs; their weights, whole, damaged and hostile."""

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import torch
from fill_state_dict import filled
from safetensors.torch import save_file
from torch import nn

from repflow import __version__
from repflow.cli import main
from repflow.data.lists import official_classes
from repflow.official import CheckpointError, HMDBFlowOfFlow, KineticsModel, checkpoints, convert, kind_of, load, models
from repflow.training import open_checkpoint, released

RESNET34 = partial(HMDBFlowOfFlow, layers=34)
NAMES = {"kinetics_model": KineticsModel, "hmdb_flow_of_flow": HMDBFlowOfFlow, "hmdb_flow_of_flow_34": RESNET34}
ALL = pytest.mark.parametrize("build", NAMES.values(), ids=NAMES)


@pytest.fixture
def narrow(monkeypatch):
    """The same wiring and names with few channels, so that files are small."""
    monkeypatch.setattr(models, "FILTERS", (4, 4, 4, 4))


@cache
def narrow_state():
    return filled(KineticsModel(7).state_dict())


@pytest.fixture
def state(narrow):
    return {name: value.clone() for name, value in narrow_state().items()}


def clips(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32))


def network(build, *arguments):
    built = build(*arguments)
    built.load_state_dict(filled(built.state_dict()))
    return built


# The networks.


@pytest.mark.parametrize("name", NAMES)
def test_golden_networks(shared, name):
    golden = np.load(shared / "golden" / f"{name}_logits.npz")
    released = json.loads((shared / "golden" / f"{name}_keys.json").read_text())
    built = NAMES[name]().eval()
    assert {key: list(value.shape) for key, value in built.state_dict().items()} == released
    built.load_state_dict(filled(built.state_dict(), int(golden["salt"])))
    x = clips(*golden["shape"], seed=int(golden["input_seed"]))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
        with torch.no_grad():
            scores = built.to(dtype)(x.to(dtype))
        assert scores.dtype == dtype
        torch.testing.assert_close(scores.double(), torch.from_numpy(golden["logits"]), rtol=0, atol=tolerance)


@ALL
@pytest.mark.parametrize("shape", [(2, 3, 15, 15, 17), (1, 3, 16, 112, 112), (1, 3, 16, 128, 171), (1, 3, 64, 64, 48)])
def test_clips_of_many_sizes(build, shape, narrow):
    built = network(build, 5).eval()
    with torch.no_grad():
        scores = built(clips(*shape))
    assert scores.shape == (shape[0], 5)
    assert scores.isfinite().all()


@ALL
@pytest.mark.parametrize("shape", [(3, 16, 32, 32), (1, 4, 16, 32, 32), (0, 3, 16, 32, 32), (1, 3, 8, 112, 112)])
def test_other_shapes_are_refused(build, shape, narrow):
    with pytest.raises(ValueError, match=r"expected clips \(B, 3, T, H, W\) .* T >= 1[15]"):
        build()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("build", "frames", "side"), [(KineticsModel, 11, 15), (HMDBFlowOfFlow, 15, 9), (RESNET34, 15, 9)]
)
def test_the_smallest_clips_are_seen(build, frames, side, narrow):
    built = network(build).eval()
    one, other = (built(clips(1, 3, frames, side, side, seed=seed)) for seed in (0, 1))
    assert (one - other).abs().max() > 1e-3
    for smaller in ((frames - 1, side, side), (frames, side - 1, side), (frames, side, side - 1)):
        with pytest.raises(ValueError, match=f"T >= {frames}, H and W >= {side}"):
            built(clips(1, 3, *smaller))
    with pytest.raises(ValueError, match="floating-point"):
        built(torch.zeros(1, 3, 11, 32, 32, dtype=torch.uint8))


def test_same_padding_is_the_least_and_comes_behind():
    for size, kernel, stride in product(range(1, 12), range(1, 8), range(1, 4)):
        line = models.SamePad((kernel, 1, 1), (stride, 1, 1))(torch.ones(1, 1, size, 1, 1)).flatten()
        places = -(-size // stride)
        assert len(line.unfold(0, kernel, stride)) == places
        if len(line) > size:
            assert len(line) == (places - 1) * stride + kernel
        front, behind = line.tolist().index(1), line.flip(0).tolist().index(1)
        assert behind - front in (0, 1)
        assert line.sum() == size


@ALL
def test_gradients_in_training(build, narrow):
    torch.manual_seed(0)  # of the dropout, which may leave nothing of four channels
    built, x = network(build, 5).train(), clips(2, 3, 16, 32, 32).requires_grad_()
    built(x).square().sum().backward()
    for name, p in [*built.named_parameters(), ("x", x)]:
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


@ALL
def test_iterations_are_those_of_every_flow_layer(build, narrow):
    built, x = network(build, 5, 10).eval(), clips(1, 3, 16, 32, 32)
    before = built(x)
    for layer in (module for module in built.modules() if hasattr(module, "n_iter")):
        assert layer.n_iter == 10
        layer.n_iter = 1
        after = built(x)
        assert (after - before).abs().max() > 1e-4
        before = after
    assert {module.n_iter for module in build(5, 3).modules() if hasattr(module, "n_iter")} == {3}


def test_the_number_of_layers_is_34_or_50():
    with pytest.raises(ValueError, match="layers: expected one of 34, 50, got 18"):
        HMDBFlowOfFlow(layers=18)


@ALL
def test_compiles_whole(build, narrow):
    built, x = network(build, 5).eval(), clips(1, 3, 15, 16, 16)
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), built(x))


# Weights as people have them.


def zipped(content, path):
    torch.save(content, path)


def before_2020(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRAPPINGS = {
    "bare": lambda s: s,
    "ordered": OrderedDict,
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "checkpoint": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}},
    "model": lambda s: {"model": s},
    "model_state_dict": lambda s: {"loss": 0.5, "model_state_dict": s},
    "net": lambda s: {"net": s},
    "parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}},
    "parallel, compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "uncounted": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "transposed": lambda s: {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in s.items()},
    "double": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("save", [zipped, before_2020])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_loads_the_same(wrapping, save, state, tmp_path):
    save(WRAPPINGS[wrapping](state), tmp_path / "weights.pt")
    built = load(tmp_path / "weights.pt")
    with (tmp_path / "weights.pt").open("r+b") as file:
        file.write(bytes(os.path.getsize(file.name)))  # the weights do not live in the file
    assert isinstance(built, KineticsModel)
    assert not any(module.training for module in built.modules())
    assert all(p.requires_grad for p in built.parameters())
    assert built.state_dict().keys() == state.keys()
    for name, value in built.state_dict().items():
        assert value.dtype == state[name].dtype, name
        assert value.is_contiguous(), name
        assert torch.equal(value, state[name]), name


def test_loads_the_flow_of_flow_network_and_it_computes(narrow, tmp_path):
    original = network(HMDBFlowOfFlow, 6).eval()
    before_2020(original.state_dict(), tmp_path / "weights.pt")
    built, x = load(str(tmp_path / "weights.pt"), model="hmdb_flow_of_flow"), clips(1, 3, 16, 32, 32)
    assert torch.equal(built(x), original(x))


def test_the_hmdb51_file_in_the_form_of_its_release(shared, tmp_path):
    """34 layers, saved on a GPU in several processes' form by PyTorch 0.4; only names and shapes tell what it is."""
    golden, path = np.load(shared / "golden" / "hmdb_flow_of_flow_34_logits.npz"), tmp_path / "hmdb.pt"
    state = filled(RESNET34().state_dict(), int(golden["salt"]))
    before_2020({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    here, there = (b"X" + struct.pack("<I", len(place)) + place for place in (b"cpu", b"cuda:0"))
    assert here in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(here, there))
    model, cut, _, classes = open_checkpoint(path)
    assert cut == {"frames": 32, "stride": 2, "resize": 240, "halved": True, "crop": 112, "inverted": True}
    assert sorted(classes) == official_classes("hmdb51") != classes
    with torch.no_grad():
        scores = model(clips(*golden["shape"], seed=int(golden["input_seed"])))
    torch.testing.assert_close(scores.double(), torch.from_numpy(golden["logits"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("layers", "iterations"), [(34, 20), (50, 10)])
def test_34_layers_are_told_from_50(layers, iterations, narrow, tmp_path):
    """Also of half precision, and in a folder by `convert`, which may be given any name."""
    path, x = tmp_path / "layers50.pt", clips(1, 3, 17, 32, 32, seed=layers)
    original = network(HMDBFlowOfFlow, 51, None, layers).half()
    before_2020({f"module.{name}": value for name, value in original.state_dict().items()}, path)
    convert(path, kind_of(path), tmp_path / "layers34")
    for place in (path, tmp_path / "layers34"):
        checkpoint = open_checkpoint(place)
        assert {module.n_iter for module in checkpoint.model.modules() if hasattr(module, "n_iter")} == {iterations}
        assert torch.equal(checkpoint.model(x), original.float().eval()(x))
        assert (checkpoint.classes is None) == (layers == 50)
    mixed = original.state_dict() | {"fc.weight": network(HMDBFlowOfFlow, 51, None, 84 - layers).fc.weight}
    zipped(mixed, path)
    with pytest.raises(CheckpointError, match=r"1 of another kind: fc\.weight \(51, "):
        load(path, None)


def test_the_kinetics_network_is_fed_as_in_its_demonstration_or_its_training(narrow, tmp_path):
    path = tmp_path / "kinetics.pt"
    zipped(KineticsModel().state_dict(), path)
    as_shown, as_trained = open_checkpoint(path), open_checkpoint(path, feed="training")
    assert as_shown.clips == {"frames": 79, "stride": 1, "resize": 256, "crop": 224, "inverted": False}
    assert as_trained.clips == {"frames": 16, "stride": 2, "resize": 128, "crop": 112, "inverted": True}
    assert as_shown.classes == as_trained.classes == official_classes("kinetics400")
    with pytest.raises(ValueError, match="feed: expected one of demonstration, training, got 'upright'"):
        open_checkpoint(path, feed="upright")
    with pytest.raises(ValueError, match="this one is HMDB51's; leave out 'training'"):
        released(RESNET34(), "training")
    assert released(RESNET34(50)).classes is None


def test_a_released_checkpoint_is_opened_once(state, tmp_path, monkeypatch):
    zipped(state, tmp_path / "weights.pt")
    opened, read = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: opened.append(file) or read(file, **options))
    checkpoint = open_checkpoint(tmp_path / "weights.pt")
    assert opened == [tmp_path / "weights.pt"]
    assert torch.equal(checkpoint.model.stem.weight, state["stem.weight"])
    assert (checkpoint.config, checkpoint.classes) == (None, None)


def test_half_precision_becomes_float32(state, tmp_path):
    zipped({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "weights.pt")
    for name, value in load(tmp_path / "weights.pt").state_dict().items():
        assert torch.equal(value, state[name].half().to(state[name].dtype)), name


def test_safetensors_by_others(state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").rename(tmp_path / "weights.bin")
    assert torch.equal(load(tmp_path / "weights.bin").stem.weight, state["stem.weight"])


# Weights that do not fit.


def changed(state, **values):
    return state | {key.replace("__", "."): value for key, value in values.items()}


def test_missing_unexpected_and_misshapen_weights_are_named(state, tmp_path):
    path = tmp_path / "weights.pt"
    wrong = changed(
        state, bn1__bias=torch.zeros(5), extra=torch.zeros(1), rep_flow__t=torch.zeros(1, dtype=torch.int64)
    )
    del wrong["rep_flow.a"], wrong["bn1.weight"]
    zipped(wrong, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "2 missing: bn1.weight, rep_flow.a;" in message
    assert "1 unexpected: extra;" in message
    assert "bn1.bias (5,) floating-point instead of (4,) floating-point" in message
    assert "rep_flow.t (1,) torch.int64 instead of (1,) floating-point" in message


def test_long_lists_are_shortened(state, tmp_path):
    zipped(state, tmp_path / "weights.pt")
    with pytest.raises(
        CheckpointError, match=r"model 'hmdb_flow_of_flow'.* \d\d\d missing.*\.\.\.; \d\d\d unexpected"
    ) as caught:
        load(tmp_path / "weights.pt", model="hmdb_flow_of_flow")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_named(value, state, tmp_path):
    state["res4.blocks.2.layers.5.weight"] = state["res4.blocks.2.layers.5.weight"].double()
    state["res4.blocks.2.layers.5.weight"][0, 0, 0, 0, 0] = value
    zipped(state, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"NaN or infinite.*: res4\.blocks\.2\.layers\.5\.weight$"):
        load(tmp_path / "weights.pt")


def test_an_average_of_weights_is_taken_where_it_is_asked_for(state, tmp_path):
    path = tmp_path / "weights.pt"
    average = {f"module.{name}": value for name, value in state.items()} | {"n_averaged": torch.tensor(3)}
    zipped({"epoch": 3, "state_dict_ema": average, "optimizer": {"state": {}}}, path)
    with pytest.raises(CheckpointError, match=r"has weights under 'state_dict_ema'\. Name them: key=NAME"):
        load(path)
    with pytest.raises(CheckpointError, match=r"expected weights under 'ema'; the file has .*'state_dict_ema'"):
        load(path, key="ema")
    built = load(path, None, key="state_dict_ema").state_dict()
    assert all(torch.equal(built[name], state[name]) for name in state)


def test_a_checkpoint_of_this_package_is_called_so(state, tmp_path, capsys):
    path = tmp_path / "best.pt"
    zipped({"step": 1, "config": {"recipe": {}}, "model": state, "best": None}, path)
    for read in (load, kind_of):
        with pytest.raises(CheckpointError, match=r"best\.pt.*this is a checkpoint of `repflow train`"):
            read(path)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    assert "this is a checkpoint of `repflow train`" in capsys.readouterr().err


def test_the_model_is_one_of_two(tmp_path):
    with pytest.raises(ValueError, match="kinetics, hmdb_flow_of_flow"):
        load(tmp_path / "weights.pt", model="resnet")


@pytest.mark.parametrize("weight", [torch.zeros(()), torch.zeros(0, 16, 1, 1, 1), torch.zeros(2**62, 0)])
def test_a_classifier_of_no_classes(weight, state, tmp_path):
    zipped(changed(state, classify__weight=weight), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"classify\.weight \("):
        load(tmp_path / "weights.pt")


# Files that hold something else, or lie.


class Hostile:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


def newer_protocol(content, path):
    torch.save(content, path, pickle_protocol=4)


@pytest.mark.parametrize("save", [zipped, before_2020, pickled, newer_protocol])
def test_a_pickle_that_runs_code_does_not_run(save, state, tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Hostile(marker)))
    marker.rmdir()  # so it does run, where it is let
    for content in (
        Hostile(marker),
        {"state_dict": state, "note": Hostile(marker)},
        changed(state, extra=Hostile(marker)),
    ):
        save(content, tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match=r"weights\.pt"):
            load(tmp_path / "weights.pt")
        with pytest.raises(CheckpointError):
            convert(tmp_path / "weights.pt", "kinetics", tmp_path / "out")
    assert not marker.exists()
    assert os.listdir(tmp_path) == ["weights.pt"]


@pytest.mark.parametrize("save", [zipped, before_2020])
def test_a_whole_model_is_refused_with_advice(save, narrow, tmp_path):
    for content in (KineticsModel(), {"model": nn.Linear(2, 2)}):
        save(content, tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match=r"(KineticsModel|Linear).*torch\.save\(model\.state_dict\(\)"):
            load(tmp_path / "weights.pt")


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", b"\x80\x02}." + bytes(10**6))


def cut(save, share):
    def write(path):
        save({"a": torch.zeros(9999)}, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


def sparse(path):
    zipped({"classify.weight": torch.eye(3).to_sparse()}, path)


def circle(path):
    content = {}
    content["model"] = content
    zipped(content, path)


NO_WEIGHTS = {
    "missing": (lambda path: None, "there is none"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "pipe": (os.mkfifo, "there is none"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or not"),
    "text": (lambda path: path.write_text("import os\n" * 9), "damaged, or not"),
    "list": (lambda path: zipped([torch.zeros(1)], path), "an object of type list"),
    "tensor": (lambda path: before_2020(torch.zeros(1), path), "an object of type Tensor"),
    "empty dictionary": (lambda path: zipped({"state_dict": {}}, path), "an empty one"),
    "numbers": (lambda path: zipped({"epoch": 3, "w": torch.zeros(1)}, path), "no tensors: epoch"),
    "numbered": (lambda path: zipped({0: torch.zeros(1)}, path), "unexpected: 0"),
    "numpy": (lambda path: zipped({"w": np.zeros(2)}, path), r"numpy"),
    "arrays": (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "damaged, or not"),
    "newer pickle": (lambda path: newer_protocol({"w": torch.zeros(1)}, path), "damaged, or not"),
    "compressed": (compressed, "weights"),
    "zip cut": (cut(zipped, 0.8), "damaged"),
    "old file cut": (cut(before_2020, 0.5), "damaged"),
    "old pickle cut": (cut(before_2020, 0.002), "damaged"),
    "safetensors cut": (cut(save_file, 0.5), "damaged"),
    "header of 10 GB": (lambda path: path.write_bytes(struct.pack("<Q", 10**10) + b"{}"), "header"),
    "sparse": (sparse, "sparse"),
    "circle": (circle, "no tensors: model"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_holds_no_weights_is_refused(kind, narrow, tmp_path):
    path = tmp_path / "weights.pt"
    write, reason = NO_WEIGHTS[kind]
    write(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("save", [zipped, before_2020, save_file])
def test_damage_raises_nothing_else(save, state, tmp_path):
    path, chance = tmp_path / "weights", np.random.RandomState(0)
    save(state, path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        for place in chance.randint(0, chance.choice([200, 20_000, len(whole)]), 3):
            content[place] = chance.randint(256)
        path.write_bytes(content)
        try:
            load(path)
        except CheckpointError:
            refused += 1
    assert refused > 10


# Conversion.


def test_a_flipped_bit_is_found(state, tmp_path):
    torch.save(state, tmp_path / "whole.pt")
    content = bytearray((tmp_path / "whole.pt").read_bytes())
    content[content.index(state["stem.weight"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    load(tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="damaged: the check sum"):
        load(tmp_path / "flipped.pt")


@pytest.fixture
def source(state, tmp_path):
    before_2020({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "released.pt")
    return tmp_path / "released.pt"


def test_conversion_and_back(source, state, tmp_path):
    out = tmp_path / "new" / "kinetics"
    convert(source, "kinetics", out)
    assert json.loads((out / "model.json").read_text()) == {
        "model": "kinetics",
        "num_classes": 7,
        "iterations": 10,
        "source": "released.pt",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "repflow": __version__,
    }
    for path in (out, out / "model.safetensors"):
        built = load(path).state_dict()
        assert built.keys() == state.keys()
        assert all(torch.equal(built[name], state[name]) for name in state)
    assert os.listdir(out.parent) == ["kinetics"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1


def test_conversion_overwrites_nothing(source, state, tmp_path):
    out = tmp_path / "out"
    convert(source, "kinetics", out)
    first = (out / "model.safetensors").stat()
    convert(source, "kinetics", out)
    assert (out / "model.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    before_2020(changed(state, rep_flow__t=torch.ones(1)), source)
    for other in (out, source):
        content = (out / "model.json").read_bytes(), source.read_bytes()
        with pytest.raises(FileExistsError, match=other.name):
            convert(source, "kinetics", other)
        assert ((out / "model.json").read_bytes(), source.read_bytes()) == content
    assert sorted(os.listdir(tmp_path)) == ["out", "released.pt"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(fault, source, tmp_path, monkeypatch):
    def half(tensors, path):
        path.write_bytes(b"half")
        raise fault

    monkeypatch.setattr(checkpoints, "save_file", half)
    with pytest.raises(fault):
        convert(source, "kinetics", tmp_path / "out")
    assert os.listdir(tmp_path) == ["released.pt"]


def test_a_folder_by_convert_says_what_it_is(source, tmp_path):
    out = tmp_path / "out"
    convert(source, "kinetics", out)
    record = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(record | {"iterations": 3}))
    assert load(out).rep_flow.n_iter == 3
    with pytest.raises(CheckpointError, match=r"'hmdb_flow_of_flow'.*'kinetics'"):
        load(out, "hmdb_flow_of_flow")
    with pytest.raises(CheckpointError, match="folder"):
        convert(out, "kinetics", tmp_path / "other")
    for text in (
        b"",
        b"[]",
        b"{}",
        b"[" * 10**5,
        b"\xff",
        json.dumps(record | {"iterations": "many"}).encode(),
        json.dumps(record | {"iterations": 0}).encode(),
    ):
        (out / "model.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=str(out)):
            load(out)
