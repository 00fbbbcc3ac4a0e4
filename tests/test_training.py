"""Models and training: shapes, accuracies, determinism, and what each network can and cannot see."""

import numpy as np
import pytest
import torch

from repflow.data import Clips, SyntheticMotion
from repflow.models import build_model
from repflow.training import Recipe, motion_accuracy, predict, train

TINY = {"backbone": "tiny_2d"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "small"
    SyntheticMotion.make(root, train=2, test=1, unused=0, size=32, frames=6)
    return root


def test_the_same_seed_gives_the_same_weights(small):
    def run(seed):
        clips = Clips(SyntheticMotion(small), frames=4, train=True, seed=seed)
        return train("repflow_2d", clips, 12, Recipe(steps=4, batch=8, seed=seed), iterations=2, bottleneck=2, **TINY)

    first, again, other = run(0), run(0), run(1)
    assert first.losses == again.losses
    weights = [trained.model.state_dict() for trained in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[2].values(), strict=True))
    assert len(first.losses) == 4
    assert np.isfinite(first.losses).all()


def test_an_interrupt_stays_an_interrupt(small, monkeypatch):
    """Lightning turns ctrl-C into an exit, which would end the kernel of a notebook."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("repflow.training.Classification.training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("rgb_2d", Clips(SyntheticMotion(small), 4, train=True), 12, Recipe(steps=2, batch=8), **TINY)


def test_predictions_are_the_model_s_in_the_order_of_the_clips(small):
    model, clips = build_model("rgb_2d", 12, **TINY).eval(), Clips(SyntheticMotion(small, "test"), 6, train=False)
    scores = predict(model, clips, batch=5)
    with torch.no_grad():
        expected = torch.cat([model(clip[None]) for clip, _ in clips])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_accuracies_by_hand():
    classes = ["down", "right-accelerating", "right-decelerating", "up"]
    scores = np.array([[5, 0, 0, 1], [5, 0, 0, 1], [9, 2, 1, 0], [0, 1, 3, 0], [0, 2, 1, 0]])
    accuracy = motion_accuracy(scores, [0, 3, 1, 2, 2], classes)
    assert accuracy == pytest.approx({"top1": 40, "basic": 50, "pairs": 200 / 3})
    assert set(motion_accuracy(scores[:2, ::3], [0, 1], ["down", "up"])) == {"top1", "basic"}


@pytest.mark.parametrize("wrong", ["steps", "batch", "rate", "clip_norm"])
def test_bad_recipes_are_named(wrong, small):
    with pytest.raises(ValueError, match=wrong):
        Recipe(**({"steps": 5} | {wrong: 0}))
    with pytest.raises(ValueError, match="24 clips"):
        train("rgb_2d", Clips(SyntheticMotion(small), 4, train=True), 12, Recipe(steps=1, batch=25), **TINY)


def test_what_each_network_sees(tmp_path):
    """Single frames: nothing. One flow layer: velocity. Flow of flow: acceleration."""
    SyntheticMotion.make(tmp_path / "set", train=60, test=40, unused=0, seed=7)
    training, test = (SyntheticMotion(tmp_path / "set", subset) for subset in ("train", "test"))
    labels = [label for _, label in test.samples]

    def accuracy(name):
        trained = train(name, Clips(training, 9, train=True, seed=7), 12, Recipe(steps=200, seed=7), **TINY)
        return motion_accuracy(predict(trained.model, Clips(test, 9, train=False)), labels, test.classes)

    assert accuracy("rgb_2d")["top1"] < 20
    one_layer = accuracy("repflow_2d")
    assert one_layer["basic"] > 90
    assert 35 < one_layer["pairs"] < 65
    assert accuracy("flow_of_flow_2d")["pairs"] > 85
