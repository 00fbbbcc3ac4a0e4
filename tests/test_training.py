"""Training: recipes, batches, rates by name, determinism, and what each network can and cannot see."""

import argparse
import csv
import logging
import math
import os
import random
import re
import signal
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from repflow.cli import main
from repflow.cli import train as command
from repflow.data import Clips, SyntheticMotion
from repflow.data.synthetic import CLASSES, render
from repflow.lab.parameters import UsageError
from repflow.layers import ClipFlow
from repflow.models import build_model
from repflow.models.systems import SYSTEMS
from repflow.official import FlowLayer201902, FlowLayer201906, HMDBFlowOfFlow, KineticsModel
from repflow.records import results_folder
from repflow.training import (
    PRESETS,
    Recipe,
    TrainingError,
    follow,
    motion_accuracy,
    open_checkpoint,
    parameter_groups,
    predict,
    split,
    train,
)
from repflow.training.batches import EpochClips, StepBatches
from repflow.training.folder import RunFolder
from repflow.training.learner import Learner
from repflow.tvnet import TVNet

TINY = {"backbone": "tiny_2d"}
SMALL = TINY | {"iterations": 2, "bottleneck": 2}
FLOW_MODULES = ClipFlow, TVNet, FlowLayer201902, FlowLayer201906


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "small"
    SyntheticMotion.make(root, train=2, test=1, unused=0, size=32, frames=6)
    return root


def clips_of(root, **options):
    return Clips(SyntheticMotion(root), 4, train=True, **options)


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="PyTorch needs another compiler there")
def test_compiling_without_a_compiler_is_refused_before_anything_starts(small, tmp_path, monkeypatch):
    """As in a slim container."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"found no no-such-compiler; .* --set compile=false"):
        train(
            "repflow_2d",
            clips_of(small),
            12,
            Recipe(steps=1, compile=True),
            folder=tmp_path / "run",
            backbone="tiny_2d",
        )
    assert not (tmp_path / "run").exists()


def same_weights(first, second):
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_same_seed_gives_the_same_weights(small):
    """With any number of workers, also over epoch boundaries, where one that reads ahead is in the next epoch."""

    def run(seed, workers):
        recipe = Recipe(steps=8, batch=8, seed=seed, workers=workers, dropout=0.5)
        return train("repflow_2d", clips_of(small, seed=seed), 12, recipe, **SMALL)

    first, *others = (run(0, workers) for workers in (0, 1, 2))
    assert len(first.losses) == 8
    assert np.isfinite(first.losses).all()
    for other in others:
        assert first.losses == other.losses
        assert same_weights(first, other)
    assert not same_weights(first, run(1, 0))


def test_an_interrupt_stays_an_interrupt(small, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("torch.nn.functional.cross_entropy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("rgb_2d", clips_of(small), 12, Recipe(steps=2, batch=8), **TINY)
    assert signal.getsignal(signal.SIGINT) is handler  # the next ctrl-C counts, too


def test_predictions_are_the_model_s_in_the_order_of_the_clips(small):
    model, clips = build_model("rgb_2d", 12, **TINY).eval(), Clips(SyntheticMotion(small, "test"), 6, train=False)
    scores = predict(model, clips, batch=5)
    with torch.no_grad():
        expected = torch.cat([model(clip[None]) for clip, _ in clips])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("flow_2d", {}), ("two_stream_2d", {}), ("flow_2d", {"flow": "tvl1"})])
def test_networks_of_flow_get_what_they_take(name, options, small):
    clips = clips_of(small, flow=None if options else "tvl1")
    trained = train(name, clips, 12, Recipe(steps=2, batch=2), **TINY, **options)
    begun = build_model(name, 12, **TINY, **options).state_dict()
    assert np.isfinite(trained.losses).all()
    changed = [key for key, value in trained.model.state_dict().items() if not torch.equal(value, begun[key])]
    assert any("classify" in key for key in changed)


def test_accuracies_by_hand():
    classes = ["down", "right-accelerating", "right-decelerating", "up"]
    scores = np.array([[5, 0, 0, 1], [5, 0, 0, 1], [9, 2, 1, 0], [0, 1, 3, 0], [0, 2, 1, 0]])
    accuracy = motion_accuracy(scores, [0, 3, 1, 2, 2], classes)
    assert accuracy == pytest.approx({"top1": 40, "basic": 50, "pairs": 200 / 3})
    assert set(motion_accuracy(scores[:2, ::3], [0, 1], ["down", "up"])) == {"top1", "basic"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("batch", 0), ("rate", -1.0), ("rate", math.nan), ("clip_norm", 0.0), ("accumulate", 3),
     ("optimizer", "adam"), ("schedule", "step"), ("precision", "16"), ("dropout", 1.0), ("epochs", 2),
     ("freeze", -1), ("mix", (0.0, 0.0)), ("mix", (-1.0, 1.0))],
)  # fmt: skip
def test_bad_recipes_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Recipe(**{"steps": 5} | {name: value})


def test_training_that_cannot_begin_says_why(small):
    with pytest.raises(ValueError, match="24 clips"):
        train("rgb_2d", clips_of(small), 12, Recipe(steps=1, batch=25), **TINY)
    with pytest.raises(ValueError, match="flow_2d needs optical flow"):
        train("flow_2d", clips_of(small), 12, Recipe(steps=1), **TINY)
    with pytest.raises(ValueError, match="plateau needs clips for validation"):
        train("rgb_2d", clips_of(small), 12, Recipe(steps=1, schedule="plateau"), **TINY)
    with pytest.raises(ValueError, match=r"freeze: expected at most the 3 stages .* got 4"):
        train("rgb_2d", clips_of(small), 12, Recipe(steps=1, freeze=4), **TINY)
    with pytest.raises(ValueError, match="mix: expected parts of two clips or more"):
        train("rgb_2d", clips_of(small), 12, Recipe(steps=1, batch=4, accumulate=4, mix=(1, 0)), **TINY)


@pytest.mark.parametrize("name", ["repflow_2d", "two_stream_2d"])
@pytest.mark.parametrize("settings", [{"freeze": 2}, {"freeze_norms": True}])
def test_frozen_parts_stay_as_they_were(name, settings, small, monkeypatch):
    """To the bit, with weight decay, and also after a validation, which sets the modes of all modules."""
    flow = np.random.default_rng(0).normal(size=(4, 2, 32, 32)).astype(np.float32)
    monkeypatch.setattr("repflow.data.clips.flow_at", lambda *_: flow)
    recipe = Recipe(steps=3, batch=4, validate_every=1, weight_decay=0.5, rate=0.1, **settings)
    options = SMALL if name == "repflow_2d" else TINY
    clips = (Clips(SyntheticMotion(small), 4, train=kind, flow=None if "rep" in name else "tvl1") for kind in (1, 0))
    trained = train(name, next(clips), 12, recipe, validation=next(clips), **options)
    torch.manual_seed(recipe.seed)
    begun = build_model(name, 12, **options)
    norms = {name for name, module in begun.named_modules() if isinstance(module, nn.BatchNorm3d)}
    ended = trained.model.state_dict()
    for key, value in begun.state_dict().items():
        frozen = re.search(r"stages\.[01]\.", key) if "freeze" in settings else key.rpartition(".")[0] in norms
        if frozen or key.endswith("weight"):
            assert torch.equal(ended[key], value) == bool(frozen), key


class Seen(nn.Module):
    """A model that keeps what it saw."""

    inputs = "clip", "flow"

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(6))

    def forward(self, clip, flow):
        self.seen = clip, flow
        return self.scores.expand(len(clip), 6)


@pytest.mark.parametrize(("mix", "cuts"), [((0.4, 0), False), ((0, 1), True)])
def test_clip_flow_and_label_are_mixed_alike(mix, cuts, monkeypatch):
    """Clip i has the value i everywhere, its flow 10 + i, its class is i: each tells who was mixed, and how much."""
    targets, cross_entropy = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        "torch.nn.functional.cross_entropy", lambda x, y, **options: targets.append(y) or cross_entropy(x, y, **options)
    )
    numbers = torch.arange(6.0)
    clip = numbers.view(6, 1, 1, 1, 1).expand(6, 3, 2, 16, 16)
    learner = Learner(Fabric(accelerator="cpu"), Seen(), 6, Recipe(steps=9, batch=12, accumulate=2, mix=mix), 9)
    for step in range(8):
        learner.take_step(step, [([clip, clip[:, :2] + 10], numbers.long())] * 2)
        seen, flow = learner.model.seen
        torch.testing.assert_close(flow, seen[:, :2] + 10)
        assert torch.equal(seen[:, :1, :1].expand_as(seen), seen)  # all frames alike
        assert type(seen) is torch.Tensor
        torch.testing.assert_close(targets[-1] @ numbers, seen.mean((1, 2, 3, 4)))
        assert bool((seen == clip).flatten(1).any(1).all()) == cuts  # a box leaves some pixels as they were
    torch.testing.assert_close(torch.stack(targets).sum(-1), torch.ones(16, 6))
    assert len({tuple(target[0].tolist()) for target in targets}) > 8  # each part of each step draws anew


def test_the_2019_preset():
    """The released settings."""
    recipe = Recipe.preset("2019")
    assert (recipe.optimizer, recipe.rate, recipe.momentum, recipe.weight_decay) == ("sgd", 0.01, 0.9, 1e-6)
    assert (recipe.schedule, recipe.patience, recipe.flow_rate) == ("plateau", 7, 0.01)
    assert (recipe.epochs, recipe.batch, recipe.frames, recipe.stride, recipe.crop) == (60, 24, 16, 2, 112)
    assert (recipe.scaled_rate, recipe.clip_norm, recipe.precision) == (0.01, None, "32-true")


def test_presets_can_be_changed():
    assert all(Recipe.preset(name) for name in PRESETS)
    assert Recipe.preset("2019", batch=48).scaled_rate == pytest.approx(0.02)
    changed = Recipe.preset("2019", steps=7)
    assert (changed.steps, changed.epochs) == (7, None)
    with pytest.raises(ValueError, match="motion, 2019, modern"):
        Recipe.preset("2020")


@pytest.mark.parametrize("name", [*SYSTEMS, "kinetics", "hmdb"])
def test_flow_parameters_are_found_by_name(name):
    """Those, and only those, that belong to the flow modules themselves."""
    with torch.device("meta"):
        official = {"kinetics": KineticsModel, "hmdb": HMDBFlowOfFlow}
        model = official[name]() if name in official else build_model(name, 51)
    groups = parameter_groups(model, Recipe(steps=1, rate=0.1, flow_rate=0.01))
    of_flow = {id(p) for m in model.modules() if isinstance(m, FLOW_MODULES) for p in m.parameters(recurse=False)}
    assert bool(of_flow) == any(part in name for part in ("repflow", "flow_of", "tvnet", "kinetics", "hmdb"))
    assert len(groups) == 1 + bool(of_flow)
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in model.parameters()} - of_flow
    assert groups[0]["lr"] == pytest.approx(0.1)
    if of_flow:
        assert {id(p) for p in groups[1]["params"]} == of_flow
        assert groups[1]["lr"] == pytest.approx(0.001)


def test_an_epoch_takes_each_clip_once_and_each_in_its_order():
    recipe = Recipe(epochs=3, batch=8, seed=2)
    batches = list(StepBatches(30, recipe))
    assert len(batches) == len(StepBatches(30, recipe)) == 9
    epochs = [[key for batch in batches[i : i + 3] for key in batch] for i in (0, 3, 6)]
    for number, keys in enumerate(epochs):
        assert {epoch for epoch, _ in keys} == {number}
        assert len({index for _, index in keys}) == 24
    assert [index for _, index in epochs[0]] != [index for _, index in epochs[1]]


@pytest.mark.parametrize("first", [0, 2, 3, 7])
@pytest.mark.parametrize(("accumulate", "processes"), [(1, 2), (2, 1), (2, 2)])
def test_processes_see_together_what_one_sees_from_any_step(first, accumulate, processes):
    whole = list(StepBatches(30, Recipe(epochs=3, batch=8)))
    recipe = Recipe(epochs=3, batch=8, accumulate=accumulate)
    parts = [list(StepBatches(30, recipe, first, rank, processes)) for rank in range(processes)]
    for step, batch in enumerate(whole[first:]):
        seen = [key for part in parts for micro in part[step * accumulate : (step + 1) * accumulate] for key in micro]
        assert sorted(seen) == sorted(batch)
    assert {len(micro) for part in parts for micro in part} == {8 // accumulate // processes}
    with pytest.raises(ValueError, match="multiple of accumulate × processes = 1 × 3"):
        StepBatches(30, Recipe(epochs=3, batch=8), 0, 0, 3)


def test_clips_of_an_epoch_do_not_depend_on_what_was_read_before(small):
    clips = clips_of(small, crop=20)
    dataset = EpochClips(clips)
    first = dataset[0, 5][0]
    other = dataset[1, 5][0]
    assert torch.equal(dataset[0, 5][0], first)
    assert not torch.equal(first, other)
    clips.set_epoch(1)
    assert torch.equal(clips[5][0], other)


def test_the_validation_part_is_drawn_class_by_class(tmp_path):
    samples = [(tmp_path / str(i), label) for i, label in enumerate([0] * 20 + [1] * 7 + [2] * 2 + [3])]
    source = SimpleNamespace(root=tmp_path, samples=samples)
    training, validation = split(source, 0.25, seed=1)
    assert sorted(training.samples + validation.samples) == sorted(samples)
    assert np.bincount([label for _, label in validation.samples], minlength=4).tolist() == [5, 2, 1, 0]
    assert split(source, 0.25, seed=1) == (training, validation)
    assert split(source, 0.25, seed=2) != (training, validation)


def rates(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["rate"]) for row in csv.DictReader(file) if row["rate"]]


def test_cosine_after_a_warm_up(small, tmp_path):
    """Also the other parts of the modern preset that a CPU can run."""
    recipe = Recipe(steps=10, batch=8, schedule="cosine", warmup=0.2, rate=0.4, optimizer="sgd", log_every=1,
                    label_smoothing=0.1, precision="bf16-mixed", channels_last=True)  # fmt: skip
    trained = train("repflow_2d", clips_of(small), 12, recipe, folder=tmp_path / "run", **SMALL)
    expected = [1 / 3, 2 / 3, *((1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]
    assert rates(tmp_path / "run") == pytest.approx([0.2 * share for share in expected])
    assert np.isfinite(trained.losses).all()
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}


def test_a_warm_up_over_all_steps(small, tmp_path):
    recipe = Recipe(steps=4, batch=8, schedule="cosine", warmup=0.9, rate=0.4, reference_batch=8, log_every=1)
    train("rgb_2d", clips_of(small), 12, recipe, folder=tmp_path / "run", **TINY)
    assert rates(tmp_path / "run") == pytest.approx([0.1, 0.2, 0.3, 0.4])


def surroundings():
    """What a training must not change."""
    logger = logging.getLogger("lightning_fabric")
    seeds = {name: value for name, value in os.environ.items() if name.startswith("PL_")}
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), seeds, \
        warnings.filters.copy(), logger.level  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_leaves_the_caller_s_states_alone(fails, small):
    recipe = Recipe(steps=2, batch=8, seed=4)
    before = surroundings()
    if fails:
        with pytest.raises(ValueError, match="model: expected one of"):
            train("rgb_5d", clips_of(small), 12, recipe)
    else:
        train("rgb_2d", clips_of(small), 12, recipe, **TINY)
    assert surroundings() == before


def test_a_plateau_lowers_the_rate(small, tmp_path, monkeypatch):
    """Patience 1: the second validation in turn that is no better than the best one lowers it."""
    monkeypatch.setattr("repflow.training.loop.predict", lambda *_: np.zeros((12, 12), np.float32))
    recipe = Recipe(steps=7, batch=8, schedule="plateau", patience=1, rate=0.1, reference_batch=8, optimizer="sgd",
                    log_every=1, validate_every=1)  # fmt: skip
    validation = Clips(SyntheticMotion(small, "test"), 4, train=False)
    trained = train("rgb_2d", clips_of(small), 12, recipe, folder=tmp_path / "run", validation=validation, **TINY)
    assert rates(tmp_path / "run") == pytest.approx([0.1] * 3 + [0.01] * 2 + [0.001] * 2)
    assert trained.best == pytest.approx({"step": 1, "loss": math.log(12), "top1": 0})  # ties: the first


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add(parser)
    return parser.parse_args(["--model", "repflow_2d", *map(str, words)])


def test_the_command_trains_and_goes_on(small, tmp_path, capsys):
    words = ["--data", "synthetic", small, "--out", tmp_path / "run", "--seed", 3, "--set", "steps=4", "batch=8",
             "frames=4", "validation=0.5", "backbone=tiny_2d", "iterations=2", "bottleneck=2", "learn=tau,lam",
             "batch=4"]  # fmt: skip
    assert command.run(arguments(*words)) == 0
    first = capsys.readouterr().out.splitlines()
    counts = "12 for training, 12 for validation, 0 missing, 0 quarantined"
    assert first[0] == f"24 videos of 12 classes, test videos apart: {counts}"
    assert first[2].startswith("best validation: top-1 ")
    assert first[3] == str(tmp_path / "run")
    assert command.run(arguments(*words, "--workers", 1)) == 0
    assert capsys.readouterr().out.splitlines() == first
    assert "learning rate 0.003 of batch 16, for a batch of 4: 0.00075" in (tmp_path / "run/log.txt").read_text()


def test_the_batch_fits_small_data_unless_it_was_asked_for(small, tmp_path, caplog):
    """A configuration that failed before its first step does not hold the folder."""
    words = ["--data", "synthetic", small, "--out", tmp_path / "run", "--set", "steps=1", "frames=4",
             "backbone=tiny_2d", "iterations=2", "validation=0.5"]  # fmt: skip
    with pytest.raises(ValueError, match="batch: expected at most the 12 clips there are, got 15"):
        command.run(arguments(*words, "batch=15"))
    assert not (tmp_path / "run").exists()
    with caplog.at_level("INFO"):
        assert command.run(arguments(*words)) == 0
    assert "batch: 12 instead of 16, for 12 training videos" in [record.message for record in caplog.records]


def test_an_evaluation_opens_its_checkpoint_once(small, tmp_path, monkeypatch):
    train("rgb_2d", clips_of(small), 12, Recipe(steps=1, batch=8), folder=tmp_path / "run", **TINY)
    opened, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, *_, **options: opened.append(file) or load(file, **options))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000001.pt"
    words = ["--data", "synthetic", str(small), "--clips", "1", "--ours", str(tmp_path / "ours.csv")]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *words]) == 0
    assert opened == [checkpoint]


@pytest.mark.parametrize(
    ("trained", "asked", "told"),
    [("_c[0-9]", None, "add --group '_c[0-9]' here"), (None, "_c[0-9]", "without --group"), ("_c", "_c", "")],
)
def test_an_evaluation_has_the_groups_of_its_training(small, tmp_path, capsys, trained, asked, told):
    about = {"set": "folder", "fold": 1} | ({"group": trained} if trained else {})
    train("rgb_2d", clips_of(small), 12, Recipe(steps=1, batch=8), folder=tmp_path / "run", about=about, **TINY)
    words = ["--checkpoint", str(tmp_path / "run/checkpoints/step-000000001.pt"), "--data", "folder", str(tmp_path)]
    assert main(["evaluate", *words, *(["--group", asked] if asked else [])]) == (2 if told else 1)
    said = capsys.readouterr().err
    assert told in said if told else "--group" not in said


def test_a_run_that_never_began_does_not_hold_its_folder(small, tmp_path):
    RunFolder(tmp_path / "run", {"model": "of before"})
    train("rgb_2d", clips_of(small), 12, Recipe(steps=1, batch=8), folder=tmp_path / "run", **TINY)
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        train("rgb_2d", clips_of(small), 12, Recipe(steps=2, batch=8), folder=tmp_path / "run", **TINY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["--model", "rgb_5d"], "rgb_5d"), (["--set", "frmes=3"], "did you mean 'frames'"),
     (["--init-from", "no.pt"], "no.pt: expected a checkpoint"),
     (["--devices", "0"], "--devices: expected a whole number >= 1")],
)  # fmt: skip
def test_what_takes_no_time_is_checked_before_the_data(wrong, message, tmp_path):
    words = ["--data", "synthetic", tmp_path / "nowhere", "--out", tmp_path / "run", *wrong]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        command.run(arguments(*words))


@pytest.mark.parametrize(
    ("text", "value"),
    [("flip=false", False), ("flip=true", True), ("crop=none", None), ("crop=20", 20), ("rate=1e-3", 1e-3),
     ("area=0.5,1", (0.5, 1.0)), ("schedule=cosine", "cosine"), ("jitter=0.4,0.4,0.4,0.1", (0.4, 0.4, 0.4, 0.1)),
     ("augment=2,9", (2, 9)), ("mix=0.8,1", (0.8, 1.0)), ("freeze=2", 2), ("freeze_norms=true", True)],
)  # fmt: skip
def test_settings_are_typed(text, value):
    recipe, options = command.settings_of(arguments("--out", "x", "--data", "hmdb51", "y", "--set", text))
    assert getattr(recipe, text.partition("=")[0]) == value
    assert not options
    assert recipe.optimizer == "adamw"


@pytest.mark.parametrize(
    ("text", "message"),
    [("flip=no", "true or false, got 'no'"), ("steps=1e3", "a whole number or none"), ("rate=x", "a finite number"),
     ("schedule=step", "cycle, cosine, plateau"), ("area=1", "2 values"), ("bottlenek=3", "did you mean 'bottleneck'"),
     ("flip", "true or false, got ''")],
)  # fmt: skip
def test_wrong_settings_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        command.settings_of(arguments("--out", "x", "--data", "hmdb51", "y", "--set", text))


def test_model_options_are_told_from_the_recipe():
    words = ["--out", "x", "--data", "synthetic", "y", "--set", "conv_between=false", "learn=tau,theta", "weights=none",
             "flow_after=1", "dropout=0.5"]  # fmt: skip
    recipe, options = command.settings_of(arguments(*words))
    assert options == {"conv_between": False, "learn": ["tau", "theta"], "weights": None, "flow_after": 1}
    assert recipe == Recipe.preset("motion", dropout=0.5)


@pytest.mark.parametrize(
    ("name", "basic", "pairs"),
    [
        ("repflow_2d", (90, 100), (35, 65)),
        pytest.param("flow_of_flow_2d", (75, 100), (85, 100), marks=pytest.mark.slow),  # basic: 82 to 92 over seeds
        pytest.param("rgb_2d", (0, 25), (35, 65), marks=pytest.mark.slow),
    ],
)
def test_what_each_network_sees(name, basic, pairs, tmp_path):
    """Single frames: nothing. One flow layer: velocity. Flow of flow: acceleration."""
    # Velocity needs less than acceleration, and than a network that is to have had its chance.
    clips, size, frames, steps = (30, 32, 7, 120) if name == "repflow_2d" else (60, 48, 9, 200)
    SyntheticMotion.make(tmp_path / "set", train=clips, test=40, unused=0, size=size, frames=frames, seed=7)
    training, test = (SyntheticMotion(tmp_path / "set", subset) for subset in ("train", "test"))
    trained = train(name, Clips(training, frames, train=True, seed=7), 12, Recipe(steps=steps, seed=7), **TINY)
    scores = predict(trained.model, Clips(test, frames, train=False))
    accuracy = motion_accuracy(scores, [label for _, label in test.samples], test.classes)
    for (low, high), measured in ((basic, accuracy["basic"]), (pairs, accuracy["pairs"])):
        assert low <= measured <= high
    if name == "rgb_2d":
        assert abs(accuracy["top1"] - 100 / 12) < 5  # four standard errors of 480 clips


def test_a_training_is_followed_as_it_runs(tmp_path):
    SyntheticMotion.make(tmp_path / "set", train=2, test=1, unused=0, size=32, frames=6)
    words = ["--data", "synthetic", str(tmp_path / "set"), "--model", "rgb_2d", "--out", str(tmp_path / "run")]
    settings = ["backbone=tiny_2d", "steps=400", "batch=4", "log_every=1", "save_every=5", "validation=0"]
    rows = []
    for row in follow(*words, "--set", *settings):
        rows.append(row)
        if len(rows) == 12:
            break  # ends the process, too
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))


def test_a_training_that_fails_says_why(tmp_path):
    words = ["--data", "synthetic", str(tmp_path / "nothing"), "--model", "rgb_2d", "--out", str(tmp_path / "run")]
    with pytest.raises(TrainingError, match="nothing"):
        list(follow(*words))


def test_weights_that_come_along_are_read_by_name():
    """Each file is a checkpoint whose network gives the accuracy that its card states, on clips it has not seen."""
    names = sorted(file.stem for file in (results_folder() / "weights").glob("*.safetensors"))
    assert "flow_of_flow_2d" in names
    for name in names:
        model, cut, config, classes = open_checkpoint(name)
        assert classes == sorted(CLASSES)
        assert config["model"] == name
        assert cut["frames"] == 9
        rng = np.random.default_rng(1)
        clips = np.stack([render(motion, rng) for motion in classes for _ in range(2)])
        pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3) * (2 / 255) - 1
        with torch.inference_mode():
            right = model(pixels).argmax(1) == torch.arange(len(classes)).repeat_interleave(2)
        assert 100 * right.float().mean() > config["about"]["accuracy"]["top1"] - 25
    assert sum(file.stat().st_size for file in (results_folder() / "weights").iterdir()) < 2e6


def test_a_training_begins_with_weights_that_come_along(small):
    recipe = Recipe(steps=1, batch=4, rate=1e-9, weight_decay=0.0)
    begun = train("repflow_2d", clips_of(small), 12, recipe, init_from="repflow_2d", **TINY).model
    shipped = dict(open_checkpoint("repflow_2d").model.named_parameters())
    for name, value in begun.named_parameters():
        if not name.startswith("classify"):
            torch.testing.assert_close(value, shipped[name])
