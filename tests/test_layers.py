"""The layers: shapes, equivariances, scaling, faults, and the released layer against its reference outputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill_state_dict import filled
from tensorflow_layer import tensorflow_flow

from repflow import FlowOfFlow, RepresentationFlow, representation_flow
from repflow.layers import LEARNABLE, PAPER_SET, ClipFlow, scale_clips
from repflow.official import FlowLayer201902, FlowLayer201906

LAYERS = [RepresentationFlow, FlowOfFlow]


def clips(rng, B=2, C=6, T=5, H=10, W=9, dtype=torch.float32):
    return torch.randn(B, C, T, H, W, generator=rng, dtype=dtype)


@pytest.mark.parametrize("layer", LAYERS)
def test_numbers_may_be_numpys(layer, rng):
    x, outputs = clips(rng), []
    for whole in (int, np.int64):
        torch.manual_seed(0)
        outputs.append(layer(whole(6), bottleneck=whole(2), iterations=whole(3))(x))
    assert torch.equal(*outputs)
    for wrong in (True, 3.0, -1):
        with pytest.raises(ValueError, match="iterations: expected a whole number >= 0"):
            layer(6, iterations=wrong)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_golden_layer_of_february_2019(shared, dtype, tolerance):
    """In float64 by the reference engine, in float32 by the fast one."""
    golden = np.load(shared / "golden" / "layer_2019_02.npz")
    expected = {name: torch.from_numpy(golden[name]) for name in golden.files}
    layer = FlowLayer201902(4, n_iter=int(golden["n_iter"]))
    weights = filled({f"flow_layer.{k}": w for k, w in layer.state_dict().items()}, int(golden["salt"]))
    layer.load_state_dict({k.removeprefix("flow_layer."): w for k, w in weights.items()})
    layer.to(dtype)
    x, y = (expected[name].to(dtype).requires_grad_() for name in ("x", "y"))
    u, v = layer(x, y)
    ((u * expected["wu"]).sum() + (v * expected["wv"]).sum()).backward()
    got = {"u": u, "v": v, "grad_x": x.grad, "grad_y": y.grad}
    got |= {f"grad/{name}": p.grad for name, p in layer.named_parameters()}
    assert len([name for name in expected if name.startswith("grad/")]) == 9
    for name, value in got.items():
        error = (value - expected[name]).abs().max() / max(expected[name].abs().max(), 1)
        assert error <= tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_golden_layer_of_june_2019(shared, mode, dtype, tolerance):
    golden = np.load(shared / "golden" / "layer_2019_06.npz")
    expected = {name: torch.from_numpy(golden[name]) for name in golden.files}
    channels, bottleneck = expected["x"].shape[1], int(golden["bottleneck"])
    layer = FlowLayer201906(channels, bottleneck, n_iter=int(golden["n_iter"]))
    weights = filled({f"rep_flow.{k}": w for k, w in layer.state_dict().items()}, int(golden["salt"]))
    layer.load_state_dict({k.removeprefix("rep_flow."): w for k, w in weights.items()})
    layer.to(dtype).train(mode == "train")
    x = expected["x"].to(dtype).requires_grad_()
    y = layer(x)
    (y * expected["w"]).sum().backward()
    got = {"y": y, "grad/x": x.grad} | {f"grad/{name}": p.grad for name, p in layer.named_parameters()}
    assert {f"{mode}/{name}" for name in got} == {name for name in expected if name.startswith(mode)}
    for name, value in got.items():
        right = expected[f"{mode}/{name}"]
        error = (value - right).abs().max() / max(right.abs().max(), 1)  # float64: absolute where it is below 1
        assert error <= tolerance, f"{name}: {error}"


def flow_of(layer, x):
    """Flow (2, B, C, T-1, H, W) by `layer`, whose channels are taken as they are."""
    C = x.shape[1]
    if isinstance(layer, FlowLayer201906):
        layer.bottleneck.weight.data = torch.eye(C)[:, :, None, None, None].to(x)
        for kernel in (layer.img_grad, layer.img_grad2, layer.f_grad, layer.f_grad2, layer.div, layer.div2):
            kernel.data *= torch.eye(C)[:, :, None, None]  # each channel by itself
        flow = layer.double().flow
    else:
        flow = layer.double()
    with torch.no_grad():
        return torch.stack(flow(x))


def test_what_the_authors_later_layer_repaired(rng):
    """Inside the maps it computes what ours does; the layer of June 2019 does not."""
    x, iterations = clips(rng, 1, 2, 4, 24, 22, torch.float64), 3
    later = torch.from_numpy(tensorflow_flow(x.numpy(), iterations))
    ours, june = ClipFlow(2, iterations, (), "reference"), FlowLayer201906(2, 2, iterations)
    inside = (..., slice(0, 3), slice(7, -7), slice(7, -7))  # the border comes in by two pixels an iteration
    torch.testing.assert_close(flow_of(ours, x)[inside], later[inside], rtol=0, atol=1e-5)
    assert (flow_of(june, x)[inside] - later[inside]).abs().max() > 0.5
    turned = torch.from_numpy(tensorflow_flow(x.mT.numpy(), iterations))
    torch.testing.assert_close(turned.flip(0).mT, later)  # x and y have their own derivatives
    assert torch.equal(later[:, :, :, -1], later[:, :, :, -2])


def test_what_the_authors_later_layer_left(rng):
    """Zeros around the maps, and a clip's result that depends on the rest of its batch."""
    x = clips(rng, 2, 2, 4, 24, 22, torch.float64) * torch.tensor([1.0, 3.0])[:, None, None, None, None]
    alone, beside = (torch.from_numpy(tensorflow_flow(part.numpy()))[:, :1, :, :3] for part in (x[:1], x))
    ours = ClipFlow(2, 20, (), "reference")
    assert (alone - beside).abs().max() > 1
    torch.testing.assert_close(flow_of(ours, x)[:, :1], flow_of(ours, x[:1]))
    ramp = torch.arange(24.0, dtype=torch.float64).expand(1, 1, 2, 24, 24).clone()
    ramp[:, :, 1] -= 0.25  # moves to the right by a quarter of a pixel
    later, ours = torch.from_numpy(tensorflow_flow(ramp.numpy())), flow_of(ClipFlow(1, 20, (), "reference"), ramp)
    assert (ours[0] - 0.25).abs().max() < 1e-9
    assert (later[0] - 0.25).abs().max() > 0.1


def test_the_june_layer_begins_as_the_identity(rng):
    x = clips(rng)
    torch.testing.assert_close(FlowLayer201906(6, 4)(x), F.relu(x[:, :, :-1]))


def test_representation_flow_of_a_small_translation():
    """Many iterations, a strong data term: a smooth map that moves by (0.3, -0.2) pixels says so."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(40.0), indexing="ij")
    maps = [
        (127 + 60 * torch.sin((x - s * 0.3) / 3) + 60 * torch.cos((y + s * 0.2) / 4 + (x - s * 0.3) / 6))[None, None]
        for s in (0, 1)
    ]
    u, v = representation_flow(*maps, lam=0.5, iterations=300)
    assert abs(u[..., 5:-5, 5:-5].mean() - 0.3) < 0.03
    assert abs(v[..., 5:-5, 5:-5].mean() + 0.2) < 0.03


def test_gradcheck_of_both_frames(rng):
    f1, f2 = (torch.rand(1, 2, 4, 5, generator=rng, dtype=torch.float64) * 255 for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda a, b: representation_flow(a, b, iterations=3), (f1.requires_grad_(), f2.requires_grad_())
    )


def test_gradcheck_of_the_layer_with_scaling(rng):
    layer = RepresentationFlow(3, bottleneck=2, iterations=2, learn=LEARNABLE).double()
    assert torch.autograd.gradcheck(layer.flow, clips(rng, 1, 3, 3, 4, 5, torch.float64).requires_grad_())


@pytest.mark.parametrize("layer", LAYERS)
def test_shape_and_gradients(layer, rng):
    x = clips(rng).requires_grad_()
    lost = {RepresentationFlow: 1, FlowOfFlow: 2}[layer]
    module = layer(6, bottleneck=4, learn=LEARNABLE)
    y = module(x)
    assert y.shape == (2, 6, 5 - lost, 10, 9)
    assert [f.shape for f in module.flow(x)] == [(2, 4, 5 - lost, 10, 9)] * 2
    y.square().sum().backward()
    for name, p in [*module.named_parameters(), ("x", x)]:
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


@pytest.mark.parametrize("layer", LAYERS)
def test_a_clip_alone_equals_the_clip_in_a_batch(layer, rng):
    module, x = layer(6, bottleneck=4).eval(), clips(rng, B=3)
    x[1] *= 100
    together = module(x)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], module(x[i : i + 1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e4])
def test_a_constant_clip_has_no_flow_and_finite_gradients(layer, value):
    module = layer(6, bottleneck=4, learn=LEARNABLE)
    x = torch.full((2, 6, 4, 7, 7), value, requires_grad=True)
    u, v = module.flow(x)
    assert not u.any()
    assert not v.any()
    module(x).square().sum().backward()
    for name, p in [*module.named_parameters(), ("x", x)]:
        assert p.grad.isfinite().all(), name


def test_equal_frames_have_no_flow(rng):
    x = clips(rng, T=1).expand(-1, -1, 4, -1, -1)
    for f in RepresentationFlow(6, bottleneck=4).flow(x):
        assert not f.any()


def test_maps_that_are_mostly_zero_have_finite_gradients(rng):
    """What follows a ReLU: gradients of zero area must not become NaN."""
    module = RepresentationFlow(6, bottleneck=4, learn=LEARNABLE)
    x = F.relu(clips(rng) - 1.5).requires_grad_()
    module(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, *module.parameters()))


def test_swapping_x_and_y_transposes_the_flow(rng):
    module, x = RepresentationFlow(6, bottleneck=4), clips(rng)
    u, v = module.flow(x)
    u_swapped, v_swapped = module.flow(x.mT.contiguous())
    torch.testing.assert_close(u_swapped.mT, v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(v_swapped.mT, u, rtol=1e-4, atol=1e-5)


def test_permuting_channels_permutes_the_flow(rng):
    f1, f2 = (torch.rand(2, 5, 8, 8, generator=rng) * 255 for _ in range(2))
    order = torch.tensor([3, 1, 4, 0, 2])
    for whole, part in zip(representation_flow(f1, f2), representation_flow(f1[:, order], f2[:, order]), strict=True):
        torch.testing.assert_close(part, whole[:, order])


def test_scaling_is_per_clip_and_keeps_the_gradient_of_its_ends(rng):
    x = clips(rng, dtype=torch.float64).requires_grad_()
    y = scale_clips(x)
    assert torch.equal(y.amin((1, 2, 3, 4)), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(y.amax((1, 2, 3, 4)), torch.full((2,), 255.0, dtype=torch.float64))
    torch.testing.assert_close(scale_clips(7 * x - 3), y)
    assert torch.autograd.gradcheck(scale_clips, x[:, :2, :2, :2, :3].detach().requires_grad_())


def test_flow_does_not_depend_on_the_scale_of_the_features(rng):
    module, x = RepresentationFlow(6, bottleneck=4), clips(rng)
    for a, b in zip(module.flow(x), module.flow(x * 1e-6), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("layer", LAYERS)
def test_at_scale_zero_only_the_residual_is_left(layer, rng):
    x = clips(rng)
    residual = {RepresentationFlow: x[:, :, :-1], FlowOfFlow: (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) / 3}[layer]
    torch.testing.assert_close(layer(6, bottleneck=4, init_scale=0.0)(x), F.relu(residual))


@pytest.mark.parametrize("layer", LAYERS)
def test_without_the_skip_connection_the_rest_is_left(layer, rng):
    x = clips(rng)
    module = layer(6, bottleneck=4, skip=False)
    expected = F.relu(module.bn(module.expand(torch.cat(module.flow(x), 1))))
    torch.testing.assert_close(module(x), expected)
    with pytest.raises(ValueError, match="init_scale: 0 lets no gradient through"):
        layer(6, bottleneck=4, skip=False, init_scale=0.0)


def test_what_is_learned_is_what_was_named():
    def names(learn):
        return {n.split(".")[1] for n, _ in RepresentationFlow(4, learn=learn).clip_flow.named_parameters(prefix="c")}

    assert names(()) == set()
    assert names(PAPER_SET) == {"tau", "lam", "theta", "flow_x", "flow_y", "div_x", "div_y"}
    assert names(["image_gradient", "lam"]) == {"image_x", "image_y", "lam"}
    with pytest.raises(ValueError, match="lambda"):
        RepresentationFlow(4, learn=["lambda"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_close(dtype, rng):
    module, x = RepresentationFlow(6, bottleneck=4).eval(), clips(rng)
    exact = module(x)
    half = module.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).abs().mean() < 0.1 * exact.abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()(x).isfinite().all()


@pytest.mark.parametrize("layer", LAYERS)
def test_save_and_load(layer, rng, tmp_path):
    module, other = layer(6, bottleneck=4).eval(), layer(6, bottleneck=4).eval()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = clips(rng)
    assert torch.equal(module(x), other(x))


@pytest.mark.parametrize(("layer", "T"), [(RepresentationFlow, 1), (FlowOfFlow, 2)])
def test_bad_clips_are_named(layer, T, rng):
    module = layer(6)
    with pytest.raises(ValueError, match=f"T >= {T + 1}"):
        module(clips(rng, T=T))
    with pytest.raises(ValueError, match="6, T"):
        module(clips(rng, C=5))
    with pytest.raises(ValueError, match="6, T"):
        module(clips(rng)[0])
    with pytest.raises(ValueError, match="one shape"):
        representation_flow(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
