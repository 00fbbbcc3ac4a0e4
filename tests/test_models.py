"""The table of systems: gradients, compiling, torchvision's weights, inflation, options, costs."""

import csv
import math
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from scipy import ndimage
from torch import nn
from torchvision.models import get_model_builder, get_weight

from repflow import FlowOfFlow, tvl1
from repflow.models import build_model, list_models
from repflow.models.backbones import BACKBONES, NonLocal, build_backbone
from repflow.models.cost import COSTS, count
from repflow.models.streams import OFFUnit, TVL1Flow
from repflow.models.systems import SYSTEMS

OF_CLIPS = [name for name, system in SYSTEMS.items() if system.inputs == ("clip",)]


def build(name, num_classes=7, **options):
    """The system with the smallest backbone of its kind."""
    small = [backbone for backbone in SYSTEMS[name].backbones if "18" in backbone or backbone == "tiny_nonlocal"]
    return build_model(name, num_classes, backbone=small[0] if small else None, **options)


def inputs(name, rng=None, B=1, T=12, H=48, W=48):
    """What the system is called with: pictures, and flow between them, in [-1, 1]."""
    shapes = {"clip": (B, 3, T, H, W), "flow": (B, 2, T - 1, H, W)}
    return [torch.rand(shapes[kind], generator=rng) * 2 - 1 for kind in SYSTEMS[name].inputs]


def trained(net, rng):
    """The network with the statistics, scales and shifts of one that was trained, in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for value, low, high in (("running_mean", -0.2, 0.2), ("running_var", 0.5, 1.5), ("weight", 0.5, 1.5)):
                getattr(module, value).data.uniform_(low, high, generator=rng)
            module.bias.data.uniform_(-0.2, 0.2, generator=rng)
    return net.eval()


def pictured(clip, name):
    """The clip as torchvision's transforms give it to the network of these weights."""
    transform = get_weight(name).transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (transform.mean, transform.std))
    return ((clip + 1) / 2 - mean) / std


@pytest.mark.parametrize("name", SYSTEMS)
def test_all_of_a_system_learns(name, rng):
    model = build_model(name, 7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
    scores = model(*inputs(name, rng, B=2, T=9, H=40, W=40))
    assert scores.shape == (2, 7)
    F.cross_entropy(scores, torch.tensor([1, 4])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_saved_it_gives_the_same(name, rng, tmp_path):
    model, other = build(name).eval(), build(name).eval()
    given = inputs(name, rng)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.equal(other(*given), model(*given))


# One of each kind, and each network once: the others differ from these in the channels of their first convolution, or
# are two of them.
@pytest.mark.parametrize(
    "name",
    [
        *("repflow_2d", "flow_of_flow_nonlocal_2plus1d", "tvnet_2d", "off_rgb_2d"),
        *("rgb_i3d", "rgb_s3d", "rgb_r2plus1d_18"),
    ],
)
@torch.no_grad()
def test_compiled_it_gives_the_same(name, rng):
    model = (build_model(name, 7, backbone="tiny_2d") if name in ("tvnet_2d", "off_rgb_2d") else build(name)).eval()
    given = inputs(name, rng)
    expected = model(*given)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["repflow_2d", "flow_of_flow_2d", "two_stream_2d", "tvnet_2d", "off_2d"])
def test_compiled_it_has_the_same_gradients(name, rng):
    model = build_model(name, 7, backbone="tiny_2d")
    given = inputs(name, rng, B=2, T=5, H=24, W=24)
    model(*given).square().sum().backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(*given).square().sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[key], rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repflow_2d", "flow_of_flow_2d"])
def test_inductor_gives_the_same(name, rng):
    model = build_model(name, 7, backbone="tiny_2d").eval()
    clip = inputs(name, rng, T=5, H=24, W=24)[0]
    for part, x in ((model, clip), (model.flow, torch.randn(1, 24, 5, 8, 8, generator=rng))):
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(part, fullgraph=True)(x), part(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_sizes_and_lengths_that_people_use(name):
    with torch.device("meta"), torch.no_grad():
        model = build_model(name, 7).eval()
        needs_more = name.startswith("flow_of_flow") and name.endswith("2plus1d")
        for T, H, W in ((8, 112, 112), (64, 128, 171), (9, 171, 128)):
            if T == 8 and needs_more:
                with pytest.raises(ValueError, match="T >= 9"):
                    model(*inputs(name, T=T, H=H, W=W))
            else:
                assert model(*inputs(name, T=T, H=H, W=W)).shape == (1, 7)


@pytest.mark.parametrize("name", ["repflow_2d", "flow_of_flow_nonlocal_2plus1d", "two_stream_s3d"])
@torch.no_grad()
def test_clips_of_any_shape(name, rng):
    model = build(name).eval()
    for T, H, W in ((9, 128, 171), (16, 112, 112)):
        assert model(*inputs(name, rng, T=T, H=H, W=W)).isfinite().all()


@pytest.mark.parametrize("name", OF_CLIPS)
@torch.no_grad()
def test_the_least_clip_is_enough_and_less_is_refused(name, rng):
    model = build(name).eval()
    stream = model.rgb if name == "tvnet_2d" else model
    T, side = stream.least_frames + (name == "tvnet_2d"), stream.least_side
    assert model(torch.rand(1, 3, T, side, side, generator=rng)).isfinite().all()
    assert model(torch.rand(1, 3, T, 40, 40, generator=rng)).isfinite().all()
    for shape in ((1, 3, T - 1, 64, 64), (1, 3, T, side - 1, 64), (1, 4, T, 64, 64), (3, T, 64, 64)):
        with pytest.raises(ValueError, match=f"T >= {T}, H and W >= {side}|T, H, W"):
            model(torch.rand(shape))


@pytest.mark.parametrize(
    ("name", "options", "T"),
    [
        ("repflow_2d", {}, 2),
        ("repflow_2d", {"flow_after": 0}, 2),
        ("flow_of_flow_2d", {"flow_layers": 3}, 4),
        ("repflow_2plus1d", {}, 5),
        ("repflow_2plus1d", {"flow_after": 4}, 5),
        ("repflow_2plus1d", {"flow_after": 0}, 2),
        ("flow_of_flow_nonlocal_2plus1d", {}, 9),
        ("flow_of_flow_2plus1d", {"flow_layers": 3, "conv_between": False}, 13),
    ],
)
@torch.no_grad()
def test_flow_layers_anywhere_and_the_frames_they_need(name, options, T):
    with torch.device("meta"):
        model = build(name, **options).eval()
        assert model(torch.rand(1, 3, T, 32, 32)).shape == (1, 7)
        with pytest.raises(ValueError, match=f"T >= {T}"):
            model(torch.rand(1, 3, T - 1, 32, 32))


@pytest.mark.parametrize(("network", "size"), [("s3d", 224), ("r2plus1d_18", 112)])
@torch.no_grad()
def test_torchvision_s_video_networks_give_their_logits(network, size, rng, tmp_path):
    net = trained(get_model_builder(network)(num_classes=9), rng)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    model = build_model(f"rgb_{network}", 9, weights=tmp_path / "weights.pth").eval()
    clip = torch.rand(1, 3, 16, size, size, generator=rng) * 2 - 1
    expected = net(pictured(clip, BACKBONES[network].weights["kinetics400"]))
    torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_torchvision_s_resnet_on_every_frame(rng, tmp_path):
    net = trained(torchvision.models.resnet50(num_classes=9), rng)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    model = build_model("rgb_2d", 9, weights=tmp_path / "weights.pth").eval()
    clip = torch.rand(2, 3, 3, 64, 50, generator=rng) * 2 - 1
    frames = pictured(clip, "ResNet50_Weights.IMAGENET1K_V1").transpose(1, 2)
    expected = net(frames.flatten(0, 1)).unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(model(clip), expected, rtol=1e-4, atol=1e-5)
    other = build_model("rgb_2d", 5, weights=tmp_path / "weights.pth")
    assert torch.equal(other.stages[3][0][0].conv1.weight, net.layer4[0].conv1.weight)
    assert other.classify.out_features == 5


@pytest.mark.parametrize(
    ("backbone", "frames"),
    [("resnet18_2plus1d", 64), ("resnet50_2plus1d", 96), ("resnet50_nonlocal", 144), ("i3d", 128)],
)
@torch.no_grad()
def test_an_inflated_network_sees_of_a_still_clip_what_it_saw_of_the_picture(backbone, frames, rng, tmp_path):
    """In the middle of the clip, further from its ends than the network sees."""
    options = {"aux_logits": True, "init_weights": False} if backbone == "i3d" else {}  # as torchvision's file has it
    network = BACKBONES[backbone].network
    net = trained(get_model_builder(network)(**options), rng)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    stages = nn.Sequential(*build_backbone(backbone, weights=tmp_path / "weights.pth").stages).eval().double()
    parts = dict(net.double().named_children())
    until = [name for name in parts if name not in ("avgpool", "dropout", "fc", "aux1", "aux2")]
    picture = torch.rand(1, 3, 40, 33, generator=rng, dtype=torch.float64)
    of_picture = nn.Sequential(*(parts[name] for name in until))(picture)
    of_clip = stages(picture[:, :, None].expand(-1, -1, frames, -1, -1))
    error = of_clip[:, :, of_clip.shape[2] // 2] - of_picture
    assert error.abs().max() < 1e-5 * of_picture.abs().max()  # weights divided in float32


def test_what_weights_expect_of_their_input_is_what_torchvision_says():
    for name, source in BACKBONES.items():
        for entry in source.weights.values():
            transform = get_weight(entry).transforms()
            if name == "i3d":  # torchvision's GoogLeNet undoes the transform before its first layer
                x = torch.rand(1, 3, 4, 4)
                mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
                undo = torchvision.models.googlenet(aux_logits=False, init_weights=False, transform_input=True)
                torch.testing.assert_close(undo._transform_input((x - mean) / std), 2 * x - 1)
                assert source.normal == ((0.5,) * 3,) * 2
            else:
                assert source.normal == (tuple(transform.mean), tuple(transform.std))


def test_fresh_networks_take_the_clip_as_it_is(rng):
    model, seen = build("rgb_2d"), []
    model.stages[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    clip = inputs("rgb_2d", rng, T=2)[0]
    model(clip)
    assert torch.equal(seen[0], clip)


@pytest.mark.parametrize("name", ["flow_2d", "flow_2plus1d", "flow_i3d", "flow_s3d"])
@torch.no_grad()
def test_flow_networks_take_the_mean_of_the_first_layer_over_rgb(name, rng, tmp_path):
    """So of flow whose components are alike, they see what the pictures' network sees of such a grey."""
    network = BACKBONES[SYSTEMS[name].backbones[-1] if "i3d" in name or "s3d" in name else f"resnet18_{name[5:]}"]
    net = get_model_builder(network.network)(**network.options)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    flow, pictures = (build(n, weights=tmp_path / "weights.pth") for n in (name, name.replace("flow", "rgb")))
    first = [next(m for m in x.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)) for x in (flow, pictures)]
    x = torch.rand(1, 1, *(9,) * (first[0].weight.ndim - 2), generator=rng)
    grey = [conv(x.repeat_interleave(conv.in_channels, 1)) / conv.in_channels for conv in first]
    torch.testing.assert_close(*grey)
    assert flow.mean.flatten().tolist() == [0.5, 0.5]
    torch.testing.assert_close(flow.std.flatten(), pictures.std.mean().expand(2))


@torch.no_grad()
def test_named_weights_come_from_pytorch_s_cache(monkeypatch, tmp_path, rng):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    net = trained(get_model_builder("resnet18")(), rng)
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / Path(get_weight("ResNet18_Weights.IMAGENET1K_V1").url).name
    torch.save(net.state_dict(), file)
    model = build_model("repflow_2d", 1000, backbone="resnet18_2d", weights="imagenet")
    assert torch.equal(model.classify.weight, net.fc.weight)
    assert not model.flow.bn.weight.any()  # begins as the network that it enters
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read"):
        build_model("rgb_2d", 5, backbone="resnet18_2d", weights="imagenet")


def test_weights_that_cannot_be_downloaded_say_what_to_put_where(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(OSError, match=r"resnet50-\w+\.pth.*ResNet50_Weights\.IMAGENET1K_V1") as caught:
        build_model("rgb_2plus1d", 5, weights="imagenet")
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_bad_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="'kinetics400', None, a file"):
        build_model("rgb_s3d", 5, weights="imagenet")
    with pytest.raises(ValueError, match="none for tiny_2d"):
        build_model("rgb_2d", 5, backbone="tiny_2d", weights="imagenet")
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.pth"):
        build_model("rgb_2d", 5, weights=tmp_path / "nowhere.pth")
    file = tmp_path / "weights.pth"
    for content, problem in (
        (torchvision.models.resnet18().state_dict(), "torchvision's resnet50"),
        ({"model": {}}, "expected a state dict"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=problem):
            build_model("rgb_2d", 5, weights=file)
    torch.save(nn.Linear(1, 1), file)  # a pickled object, which could run code
    with pytest.raises(ValueError, match="cannot be read"):
        build_model("rgb_2d", 5, weights=file)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("repflow_3d", {}, "flow_of_flow_nonlocal_2plus1d"),
        ("rgb_2d", {"bottleneck": 8}, "takes the options backbone, weights, dropout; got bottleneck"),
        ("repflow_2d", {"flow_layers": 2}, "learn, init_scale, scaling, skip; got flow_layers"),
        ("two_stream_i3d", {"iterations": 5, "learn": ()}, "flow, fusion; got iterations, learn"),
        ("tvnet_2d", {"flow": "tvl1"}, "iterations, fusion; got flow"),
        ("rgb_2d", {"colour": 1}, "got colour"),
        ("rgb_i3d", {"backbone": "s3d"}, "expected one of i3d for rgb_i3d, got 's3d'"),
        ("repflow_2d", {"flow_after": 5}, "0 to 4"),
        ("repflow_2d", {"backbone": "tiny_2d", "flow_after": -1}, "0 to 3"),
        ("flow_2d", {"flow": "farneback"}, "'given' or 'tvl1'"),
        ("two_stream_2d", {"fusion": 1.0}, "between 0 and 1"),
        ("flow_of_flow_2d", {"flow_layers": 4}, "1, 2 or 3"),
        ("flow_of_flow_2d", {"flow_layers": 1, "conv_between": False}, "two or more"),
        ("repflow_2d", {"learn": ["lambda"]}, "lambda"),
    ],
)
def test_bad_options_are_named(name, options, problem):
    with torch.device("meta"), pytest.raises(ValueError, match=problem):
        build_model(name, 5, **options)


@torch.no_grad()
def test_flow_of_flow_of_flow_is_what_it_says(rng):
    layer = trained(FlowOfFlow(6, depth=3, bottleneck=4, iterations=5), rng)
    x = torch.randn(2, 6, 5, 9, 8, generator=rng)
    first = layer.conv(torch.cat(layer.clip_flow(layer.reduce(x)), 1))
    second = layer.conv2(torch.cat(layer.clip_flow2(layer.reduce2(first)), 1))
    third = layer.clip_flow3(layer.reduce3(second))
    for expected, flow in zip(third, layer.flow(x), strict=True):
        torch.testing.assert_close(flow, expected)
        assert flow.shape == (2, 4, 2, 9, 8)


@pytest.mark.parametrize(("depth", "between"), [(2, False), (3, False), (3, True)])
def test_flows_of_flow_learn_and_at_scale_zero_leave_the_average(depth, between, rng):
    x = torch.randn(2, 6, 6, 9, 8, generator=rng)
    layer = FlowOfFlow(6, depth=depth, conv_between=between, bottleneck=4, iterations=5)
    assert sum(name.startswith("conv") for name, _ in layer.named_children()) == (depth - 1 if between else 0)
    layer(x).square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in layer.parameters())
    nn.init.zeros_(layer.bn.weight)
    average = sum(x[:, :, t : 6 - depth + t] for t in range(depth + 1)) / (depth + 1)
    torch.testing.assert_close(layer(x), F.relu(average))


@torch.no_grad()
def test_the_non_local_block_begins_as_the_identity_and_is_a_softmax_of_products(rng):
    block, x = NonLocal(6).eval(), torch.randn(2, 6, 3, 5, 4, generator=rng)
    assert torch.equal(block(x), x)
    trained(block, rng)
    query, key, value = block.theta(x), block.pool(block.phi(x)), block.pool(block.g(x))
    assert key.shape == (2, 3, 3, 3, 2)
    weights = torch.einsum("bcthw,bcsij->bthwsij", query, key).flatten(4).softmax(4)
    seen = torch.einsum("bthwn,bcn->bcthw", weights, value.flatten(2))
    torch.testing.assert_close(block(x), x + block.bn(block.expand(seen)))


@pytest.mark.parametrize("name", ["two_stream_2d", "flow_2d"])
@torch.no_grad()
def test_flow_inside_is_the_flow_that_is_given(name, rng):
    given, inside = (build_model(name, 7, backbone="tiny_2d", flow=flow).eval() for flow in ("given", "tvl1"))
    inside.load_state_dict(given.state_dict())
    levels = F.interpolate(torch.rand(2, 9, 8, 8, generator=rng), (33, 40), mode="bicubic").clamp(0, 1).mul(255).round()
    levels = levels.unflatten(1, (3, 3))  # (B, 3, T, H, W)
    grey = (levels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(1)
    flow = torch.stack([tvl1(grey[:, t], grey[:, t + 1]) for t in range(2)], 2).clamp(-20, 20) / 20
    clip = levels / 127.5 - 1
    assert flow.abs().max() > 0.1
    both = [clip, flow] if name == "two_stream_2d" else [flow]
    torch.testing.assert_close(inside(clip), given(*both), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_flow_of_fast_motion_is_clipped():
    clip = torch.full((1, 3, 2, 64, 64), -1.0)
    for t, left in enumerate((4, 34)):
        clip[..., t, 16:48, left : left + 24] = 1
    flow = TVL1Flow()(clip)
    assert flow.shape == (1, 2, 1, 64, 64)
    assert flow.abs().max() <= 1


@torch.no_grad()
def test_late_fusion_is_the_weighted_mean_of_probabilities(rng):
    model = build_model("two_stream_2d", 7, backbone="tiny_2d", fusion=0.6).eval()
    clip, flow = inputs("two_stream_2d", rng, B=2)
    fused = model(clip, flow).softmax(1)
    torch.testing.assert_close(fused, 0.4 * model.rgb(clip).softmax(1) + 0.6 * model.flow(flow).softmax(1))
    torch.testing.assert_close(model(clip, flow).exp(), fused)
    with pytest.raises(ValueError, match="flow='tvl1'"):
        model(clip)
    with pytest.raises(ValueError, match="flow='given'"):
        build_model("two_stream_2d", 7, backbone="tiny_2d", flow="tvl1")(clip, flow)


@torch.no_grad()
def test_a_flow_layer_at_scale_zero_enters_a_network_without_changing_it(rng):
    """Whose weights keep their names, wherever the layer stands."""
    plain = build_model("rgb_2d", 7, backbone="tiny_2d").eval()
    clip = inputs("rgb_2d", rng, T=1)[0].expand(-1, -1, 6, -1, -1)
    for name, options in (("repflow_2d", {}), ("repflow_2d", {"flow_after": 1}), ("flow_of_flow_2d", {})):
        model = build_model(name, 7, backbone="tiny_2d", init_scale=0.0, **options).eval()
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
        assert unexpected == []
        assert {key.split(".")[0] for key in missing} == {"flow"}
        torch.testing.assert_close(model(clip), plain(clip))


@torch.no_grad()
def test_an_off_unit_is_sobel_s_gradients_and_the_difference_to_the_next_frame(rng):
    unit, maps = OFFUnit(5, gradients=2, differences=3), torch.randn(2, 5, 4, 6, 7, generator=rng)
    out = unit(maps)
    assert out.shape == (2, 7, 3, 6, 7)
    space = torch.einsum("gc,bcthw->bgthw", unit.reduce_space.weight[..., 0, 0, 0], maps).numpy()[:, :, :-1]
    for first, axis in enumerate((1, 0)):  # x, then y
        planes = [ndimage.sobel(plane, axis, mode="constant") for plane in space.reshape(-1, 6, 7)]
        torch.testing.assert_close(out[:, first:4:2].reshape(-1, 6, 7), torch.from_numpy(np.stack(planes)))
    time = torch.einsum("gc,bcthw->bgthw", unit.reduce_time.weight[..., 0, 0, 0], maps).clamp(min=0)
    torch.testing.assert_close(out[:, 4:], time[:, :, 1:] - time[:, :, :-1])


@pytest.mark.parametrize("name", ["off_rgb_2d", "off_2d", "rgb_nonlocal"])
def test_the_order_of_frames_can_be_learned(name, rng):
    """Of a clip and the same one backwards; the mean over frames that are seen alone is the same of both."""
    forwards = inputs("rgb_2d", rng, T=6)[0]
    given = [torch.cat([forwards, forwards.flip(2)])]
    if "flow" in SYSTEMS[name].inputs:
        given.append(torch.zeros(2, 2, 5, 48, 48))
    plain = build_model("rgb_2d", 2, backbone="tiny_2d")(given[0])
    torch.testing.assert_close(plain[0], plain[1])
    model, labels = build_model(name, 2, backbone=SYSTEMS[name].backbones[-1]), torch.tensor([0, 1])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(*given), labels).backward()
        optimizer.step()
    assert torch.equal(model.eval()(*given).argmax(1), labels)


@torch.no_grad()
def test_off_and_its_stream_have_the_mean_of_their_scores(rng):
    plain = build_model("rgb_2d", 7, backbone="tiny_2d").eval()
    model = build_model("off_rgb_2d", 7, backbone="tiny_2d").eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    for parameter in model.classify_motion.parameters():
        nn.init.zeros_(parameter)
    clip = inputs("rgb_2d", rng, B=2)[0]
    torch.testing.assert_close(model(clip), plain(clip) / 2)
    three = build_model("off_2d", 7, backbone="tiny_2d").eval()
    clip, flow = inputs("off_2d", rng, B=2)
    streams = three.rgb.rgb(clip), three.rgb.flow(clip), three.flow(flow)
    torch.testing.assert_close(three(clip, flow).exp(), sum(scores.softmax(1) for scores in streams) / 3)


def test_five_non_local_blocks_see_the_maps_of_their_paper_s_table():
    seen = []
    with torch.device("meta"), torch.no_grad():
        model = build_model("rgb_nonlocal", 400).eval()
        for module in model.modules():
            if isinstance(module, NonLocal):
                module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        model(torch.empty(1, 3, 32, 224, 224))
    assert seen == [(1, 512, 4, 28, 28)] * 2 + [(1, 1024, 4, 14, 14)] * 3


def test_the_parameters_of_the_inflated_resnet50_are_those_that_others_publish():
    """In millions: PyTorchVideo's I3D, and MMAction2's with five non-local blocks."""
    with torch.device("meta"):
        model = build_model("rgb_nonlocal", 400, backbone="resnet50_nonlocal")
    blocks = [module for module in model.modules() if isinstance(module, NonLocal)]
    both, added = (sum(p.numel() for part in parts for p in part.parameters()) / 1e6 for parts in ([model], blocks))
    assert (round(both, 1), round(both - added, 2)) == (35.4, 28.04)


def test_dropout_is_for_training(rng):
    model, clip = build_model("rgb_2d", 7, backbone="tiny_2d", dropout=0.9), inputs("rgb_2d", rng, B=2)[0]
    assert not torch.equal(model(clip), model(clip))
    model.eval()
    assert torch.equal(model(clip), model(clip))


def test_the_table_of_systems():
    table = {entry["name"]: entry for entry in list_models()}
    assert list(table) == list(SYSTEMS) == list(COSTS)
    with (Path(__file__).parents[1] / "results" / "paper.csv").open() as file:
        rows = [row["method"] for row in csv.DictReader(file)]
    papers = [entry["paper"] for entry in table.values() if entry["paper"]]
    assert sorted(papers, key=rows.index) == rows
    assert table["two_stream_i3d"]["inputs"] == ("clip", "flow")


@pytest.mark.parametrize(
    ("name", "entry", "frames", "pixels", "width"),
    [
        ("rgb_2d", "ResNet50_Weights.IMAGENET1K_V1", 1, 224**2, 2048),
        ("rgb_s3d", "S3D_Weights.KINETICS400_V1", 16, 224**2, 1024),
        ("rgb_r2plus1d_18", "R2Plus1D_18_Weights.KINETICS400_V1", 16, 112**2, 512),
    ],
)
def test_costs_are_those_that_torchvision_publishes(name, entry, frames, pixels, width):
    """Scaled to our clip of 32 frames of 224x224; parameters but for the classifier's."""
    table, meta = {row["name"]: row for row in list_models()}, get_weight(entry).meta
    clips = 32 / frames * 224**2 / pixels
    assert table[name]["multiply_adds"] == pytest.approx(meta["_ops"] * 1e9 * clips, rel=5e-3)
    without_head = meta["num_params"] - (width + 1) * len(meta["categories"])
    assert table[name]["parameters"] - (width + 1) * 400 == without_head


# Each takes a second or more: by default one of each kind that the two tests around do not check from outside.
QUICK = "flow_of_flow_nonlocal_2plus1d", "tvnet_2d", "two_stream_i3d", "off_2d"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SYSTEMS])
def test_stored_costs_are_what_is_counted(name):
    assert count(name) == COSTS[name]


def test_the_cost_of_a_flow_layer():
    """Counted by hand: what the layer adds, and the one frame in 32 that the stages after it do without."""
    cost = {entry["name"]: entry["multiply_adds"] for entry in list_models()}
    places = 28 * 28
    convolutions = places * (32 * 512 * 32 + 31 * 64 * 512)
    solver = places * 31 * 32 * 20 * 40
    with torch.device("meta"):
        model = build_model("rgb_2d", 400)
        above = [m for stage in model.stages[2:] for m in stage.modules() if isinstance(m, nn.Conv2d)]
        sizes = []
        for conv in above:
            conv.register_forward_hook(lambda m, _, y: sizes.append(y[0].numel() * math.prod(m.weight.shape[1:])))
        model(torch.empty(1, 3, 1, 224, 224))
    head = 2048 * 400
    assert cost["repflow_2d"] - cost["rgb_2d"] == convolutions + solver - sum(sizes) - head


def test_the_tiny_networks_differ_in_time_alone(rng):
    clip = torch.randn(2, 3, 5, 48, 48, generator=rng)
    plain, temporal = (build_model(f"rgb_{kind}", 12, backbone=f"tiny_{kind}").eval() for kind in ("2d", "2plus1d"))
    shuffled = clip[:, :, [2, 0, 4, 1, 3]]
    torch.testing.assert_close(plain(clip), plain(shuffled))
    temporal.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(temporal(clip), plain(clip))  # 3x1x1 begin as the identity
    for name, parameter in temporal.named_parameters():
        if ".time." in name:
            torch.nn.init.normal_(parameter, generator=rng)
    assert (temporal(clip) - temporal(shuffled)).abs().max() > 1e-3
