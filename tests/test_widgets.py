"""The explorers, without a browser: what a slider changes, what is told, what goes wrong visibly."""

import io
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ipywidgets import HTML, Image
from PIL import Image as Picture

from repflow import FlowOfFlow, RepresentationFlow, build_model, tvl1
from repflow.data.synthetic import render
from repflow.figures import write_mp4
from repflow.models.learned import learned_flows
from repflow.widgets import (
    MADE,
    channel_explorer,
    channel_figure,
    made_pair,
    tvl1_explorer,
    tvl1_figure,
)


def parts(panel):
    """The controls by description, the message and the picture of an explorer."""
    found, waiting = [], [panel]
    while waiting:
        widget = waiting.pop()
        found.append(widget)
        waiting += getattr(widget, "children", ())
    controls = {widget.description: widget for widget in found if getattr(widget, "description", "")}
    (message,) = (widget for widget in found if isinstance(widget, HTML))
    (picture,) = (widget for widget in found if isinstance(widget, Image))
    return SimpleNamespace(**controls, controls=controls, message=message, picture=picture)


def pixels(png):
    return np.asarray(Picture.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def pair():
    return made_pair("turn", 64)


@pytest.fixture(scope="module")
def clip():
    frames = render("right-accelerating", np.random.default_rng(0), 48, 9, speed=2.0)
    return torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("name", MADE)
def test_the_flow_of_a_made_pair_is_known(name):
    frame1, frame2, true = made_pair(name)
    assert frame1.shape == frame2.shape == true.shape[1:] == (256, 256)
    found = tvl1(frame1, frame2).numpy()
    assert np.hypot(*(found - true)).mean() < 0.1 < 1 < np.hypot(*true).mean()


@pytest.mark.parametrize(
    ("name", "value"), [("lam", 0.01), ("theta", 1.0), ("tau", 0.05), ("iterations", 1), ("warps", 1), ("scales", 1)]
)
def test_each_slider_makes_the_figure_that_a_page_shows(pair, name, value):
    explorer = parts(tvl1_explorer(*pair))
    before = explorer.picture.value
    explorer.controls[name].value = value
    file = io.BytesIO()
    tvl1_figure(*pair, **{name: value}).savefig(file, format="png")
    drawn, page = pixels(explorer.picture.value), pixels(file.getvalue())
    below = 30  # the title tells the time that it took
    assert (drawn[below:] != pixels(before)[below:]).any()
    assert np.abs(drawn - page)[below:].mean() < 0.5
    assert not explorer.message.value


def test_the_figure_tells_error_and_energy(pair):
    figure = tvl1_figure(*pair, lam=0.05)
    error = np.hypot(*(tvl1(*pair[:2], lam=0.05).numpy() - pair.true)).mean()
    assert f"mean end-point error {error:.3f} px" in figure.get_suptitle()
    falls, reached = figure.axes[3].lines
    steps, energies = falls.get_data()
    assert list(steps) == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, 30)
    assert energies[-1] < energies[0]
    assert 0 < reached.get_ydata()[0] < 100
    assert "error" not in tvl1_figure(*pair[:2]).get_suptitle()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_frames_of_any_dtype_show_the_same(pair, dtype):
    whole = [np.round(frame) for frame in pair[:2]]
    figure = tvl1_figure(*(frame.astype(dtype) for frame in whole), iterations=5)
    mean = np.abs(whole[1] - whole[0]).mean()
    assert f"mean {mean:.2f}, warped" in figure.axes[2].get_title()
    shown = figure.axes[2].images[0].get_array()
    assert np.array_equal(shown, tvl1_figure(*whole, iterations=5).axes[2].images[0].get_array())


@pytest.mark.parametrize("parameters", [{"lam": 0.01}, {"lam": 3.0, "theta": 1.0}, {"iterations": 300, "warps": 1}])
def test_the_axes_of_the_energy_follow_it(pair, parameters):
    energy = tvl1_figure(*pair, **parameters).axes[3]
    steps, falling = energy.lines[0].get_data()
    shown = [*falling, energy.lines[1].get_ydata()[0]]
    (left, right), (low, high) = energy.get_xlim(), energy.get_ylim()
    assert left < min(steps) <= max(steps) < right
    assert low < min(shown) <= max(shown) < high
    assert max(shown) - min(shown) > (high - low) / 3 or high - low < 4


def test_equal_and_uniform_frames_are_shown(pair):
    for frame in (pair.frame1, np.full((40, 60), 9.0)):
        explorer = parts(tvl1_explorer(frame, frame))
        explorer.lam.value = 1.0
        assert not explorer.message.value


def test_an_own_video_by_path_and_by_upload(pair, tmp_path):
    frames = render("left", np.random.default_rng(1), 64, 5, speed=2.0)
    write_mp4(tmp_path / "own.mp4", frames, 25)
    explorer = parts(tvl1_explorer(*pair))
    explorer.pair.value = "your own video"
    assert "choose a video with “upload”, or type the path of one" in explorer.message.value
    explorer.video.value = str(tmp_path / "own.mp4")
    assert not explorer.message.value
    by_path = explorer.picture.value
    explorer.frame.value = 3
    assert explorer.picture.value != by_path
    explorer.frame.value = 4
    assert "own.mp4" in explorer.message.value  # it has five frames: 4 has no next
    explorer.lam.value = 0.3
    assert not explorer.message.value
    explorer.video.value, explorer.frame.value = "", 0
    explorer.lam.value = 0.15
    content = memoryview((tmp_path / "own.mp4").read_bytes())
    about = {"name": "own.mp4", "type": "video/mp4", "size": len(content), "last_modified": datetime.now(UTC)}
    explorer.upload.value = ({**about, "content": content},)
    below = 30
    assert not explorer.message.value
    assert (pixels(explorer.picture.value)[below:] == pixels(by_path)[below:]).all()


def test_an_error_is_shown_and_the_next_slider_goes_on(pair, monkeypatch):
    explorer = parts(tvl1_explorer(*pair))
    before = explorer.picture.value

    def fail(*_, **__):
        raise ValueError("lam: <too> small")

    with monkeypatch.context() as patched:
        patched.setattr("repflow.widgets.tvl1", fail)
        explorer.lam.value = 0.01
    assert "lam: &lt;too&gt; small" in explorer.message.value
    assert explorer.picture.value == before
    explorer.lam.value = 0.02
    assert not explorer.message.value
    assert explorer.picture.value != before


def test_explorers_wait_until_a_slider_is_let_go_and_fit_narrow_pages(pair, clip):
    model = build_model("repflow_2d", num_classes=4, backbone="tiny_2d")
    for panel in (tvl1_explorer(*pair), channel_explorer(model, clip)):
        found = parts(panel)
        sliders = [c for c in found.controls.values() if "Slider" in type(c).__name__]
        assert sliders
        assert not any(slider.continuous_update for slider in sliders)
        assert found.picture.layout.height == "auto"
        drawn = pixels(found.picture.value).shape
        # The browser knows the proportions before the picture comes, so that nothing jumps.
        assert int(found.picture.width) * drawn[0] == int(found.picture.height) * drawn[1]
        rows = [box for box in panel.children if type(box).__name__ == "HBox"]
        assert all("wrap" in row.layout.flex_flow for row in rows)


@pytest.mark.slow  # of itself it is quick, but others must not use the machine meanwhile
def test_learned_flows_are_those_of_the_layers(clip, rng):
    x = torch.randn(6, 5, 12, 14, generator=rng)
    for layer in (RepresentationFlow(6, bottleneck=4), FlowOfFlow(6, bottleneck=4)):
        flows = learned_flows(layer, x)
        expected = torch.cat(layer.eval().flow(x[None])).detach().numpy()
        np.testing.assert_allclose(flows[-1], expected, atol=1e-5)
        assert [flow.shape[:2] for flow in flows] == [(2, 4)] * len(flows)
    model = build_model("flow_of_flow_2d", num_classes=4, backbone="tiny_2d", flow_layers=3).train()
    assert [flow.shape[2] for flow in learned_flows(model, clip)] == [8, 7, 6]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="found none"):
        learned_flows(torch.nn.Linear(2, 2), clip)


def test_channel_time_and_layer_change_the_figure(clip):
    torch.manual_seed(0)
    model = build_model("flow_of_flow_2d", num_classes=4, backbone="tiny_2d")
    explorer = parts(channel_explorer(model, clip))
    explorer.time.value = 7
    seen = [explorer.picture.value]
    for name, value in (("channel", 2), ("time", 3), ("layer", 1)):
        explorer.controls[name].value = value
        seen.append(explorer.picture.value)
    assert len(set(seen)) == 4
    assert not explorer.message.value
    assert (explorer.time.max, explorer.channel.max) == (6, 7)  # the second flow has one map less
    file = io.BytesIO()
    channel_figure(model, clip, layer=1, channel=2, time=3).savefig(file, format="png")
    assert np.abs(pixels(file.getvalue()) - pixels(seen[-1])).mean() < 1  # of 14 or more between any two of those seen


def test_maps_of_any_number_of_channels_are_shown(rng):
    maps = torch.randn(5, 4, 12, 20, generator=rng)
    layer = RepresentationFlow(5, bottleneck=3)
    figure = channel_figure(layer, maps, channel=2, time=2)
    assert figure.axes[0].get_title() == "channel 2 of 3, over frame 2"
    frame = figure.axes[0].images[0].get_array()
    assert frame.shape == (12, 20, 3)
    assert (frame.min(), frame.max()) != (0, 0)
    whole = (100 * maps).round().clamp(0, 255)
    for dtype in (torch.uint8, torch.int64, torch.float64):
        for ours, theirs in zip(learned_flows(layer, whole.to(dtype)), learned_flows(layer, whole), strict=True):
            assert np.array_equal(ours, theirs)
