"""TVNet: its authors' published flow, a plain NumPy version of their program, learning, faults."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call

from repflow.tvnet import TVNet, _grey


def texture(H, W, shift=(0.0, 0.0), seed=0):
    """A smooth random colour picture (3, H, W), whole numbers in 0..255, seen `shift` = (u, v) pixels further on."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W].astype(float)
    x, y = x - shift[0], y - shift[1]
    picture = np.full((3, H, W), 127.0)
    for a, b in rng.uniform(-0.09, 0.09, (24, 2)):
        picture += 10 * rng.normal(size=(3, 1, 1)) * np.sin(2 * np.pi * (a * x + b * y + rng.random()))
    return np.round(picture.clip(0, 255))


def pair(H=29, W=33, shift=(0.8, -0.6), seeds=(0,), dtype=torch.float32):
    """Two frames (B, 3, H, W) of textures that move."""
    frames = (np.stack([texture(H, W, s, seed) for seed in seeds]) for s in ((0, 0), shift))
    return tuple(torch.from_numpy(f).to(dtype) for f in frames)


def grads(module, *frames):
    module.zero_grad()
    out = module(*frames)
    out.square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters()}


# The authors' program in NumPy, pixel positions and loops written out: shares nothing with the package.

WEIGHTS = np.array(
    [
        [0.000874, 0.006976, 0.01386, 0.006976, 0.000874],
        [0.006976, 0.0557, 0.110656, 0.0557, 0.006976],
        [0.01386, 0.110656, 0.219833, 0.110656, 0.01386],
        [0.006976, 0.0557, 0.110656, 0.0557, 0.006976],
        [0.000874, 0.006976, 0.01386, 0.006976, 0.000874],
    ]
)


def numpy_grey(rgb):
    red, green, blue = (channel.astype(int) for channel in rgb)
    return ((114 * blue + 587 * green + 299 * red) // 1000).astype(float)


def numpy_smooth(image):
    H, W = image.shape
    padded = np.pad(image, 2)
    return np.array([[(WEIGHTS * padded[y : y + 5, x : x + 5]).sum() for x in range(W)] for y in range(H)])


def numpy_resize(image, h, w):
    """Bilinear, corners aligned: interpolate along rows, then along columns."""
    H, W = image.shape
    across = np.linspace(0, W - 1, w) if w > 1 else [0]
    down = np.linspace(0, H - 1, h) if h > 1 else [0]
    rows = np.array([np.interp(across, np.arange(W), row) for row in image])
    return np.array([np.interp(down, np.arange(H), column) for column in rows.T]).T


def numpy_centred(image):
    """Gradient along x."""
    d = np.empty_like(image)
    d[:, 1:-1] = (image[:, 2:] - image[:, :-2]) / 2
    d[:, 0], d[:, -1] = (image[:, 1] - image[:, 0]) / 2, (image[:, -1] - image[:, -2]) / 2
    return d


def numpy_sample(image, u, v):
    H, W = image.shape
    out = np.empty_like(image)
    for row in range(H):
        for column in range(W):
            x = column + u[row, column] * (W - 1) / W
            y = row + v[row, column] * (H - 1) / H
            x0, x1 = np.clip(int(np.floor(x)), 0, W - 2), np.clip(int(np.floor(x)) + 1, 0, W - 1)
            y0, y1 = np.clip(int(np.floor(y)), 0, H - 2), np.clip(int(np.floor(y)) + 1, 0, H - 1)
            top = (x1 - x) * image[y0, x0] + (x - x0) * image[y0, x1]
            bottom = (x1 - x) * image[y1, x0] + (x - x0) * image[y1, x1]
            out[row, column] = (y1 - y) * top + (y - y0) * bottom
    return out


def numpy_forward(f):
    """Difference along x to the next pixel, 0 at the last."""
    return np.concatenate([np.diff(f), np.zeros((len(f), 1))], 1)


def numpy_backward(p):
    """Difference along x to the pixel before; nothing before the first, and the last does not count."""
    inner = p[:, :-1]
    nothing = np.zeros((len(p), 1))
    return np.concatenate([inner, nothing], 1) - np.concatenate([nothing, inner], 1)


def numpy_tvnet(frame1, frame2, scales, warps, iterations, tau=0.25, lam=0.15, theta=0.3):
    grey1, grey2 = numpy_grey(frame1), numpy_grey(frame2)
    low, high = min(grey1.min(), grey2.min()), max(grey1.max(), grey2.max())
    full1, full2 = (numpy_smooth((g - low) / (high - low) * 255) for g in (grey1, grey2))
    H, W = full1.shape
    scales = min(scales, max(int(1 + np.log2(np.sqrt(H**2 + W**2) / 4)), 1))
    for s in range(scales - 1, -1, -1):
        h, w = int(H * 0.5**s + 0.5), int(W * 0.5**s + 0.5)
        first, second = numpy_resize(full1, h, w), numpy_resize(full2, h, w)
        if s == scales - 1:
            u, v = np.zeros((2, h, w))
        else:
            u, v = numpy_resize(u, h, w) / 0.5, numpy_resize(v, h, w) / 0.5
        second_x, second_y = numpy_centred(second), numpy_centred(second.T).T
        p = np.zeros((2, 2, h, w))  # [component][direction]
        for _ in range(warps):
            warped, gx, gy = (numpy_sample(image, u, v) for image in (second, second_x, second_y))
            rho_c = warped - gx * u - gy * v - first
            squared = gx**2 + gy**2 + 1e-12
            for _ in range(iterations):
                rho = rho_c + gx * u + gy * v + 1e-12
                bound = lam * theta * squared
                shift = np.where(rho < -bound, lam * theta, np.where(rho > bound, -lam * theta, -rho / squared))
                new = []
                for component, start, g in ((0, u, gx), (1, v, gy)):
                    px, py = p[component]
                    f = start + shift * g + theta * (numpy_backward(px) + numpy_backward(py.T).T)
                    fx, fy = numpy_forward(f), numpy_forward(f.T).T
                    length = 1 + tau / theta * np.sqrt(fx**2 + fy**2 + 1e-12)
                    p[component] = (px + tau / theta * fx) / length, (py + tau / theta * fy) / length
                    new.append(f)
                u, v = new
    return np.stack([u, v])


@pytest.fixture
def published(shared):
    """The frames (1, 3, H, W) and the flow (2, H, W) that TVNet's authors publish."""
    folder = shared / "golden" / "tvnet"
    images = [np.array(Image.open(folder / f"frame_{i}.png").convert("RGB")) for i in (1, 2)]
    flow = np.load(folder / "flow_scales1_warps1_iterations50.npz")["flow"].transpose(2, 0, 1)
    return [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images], flow


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int16, torch.int64])
def test_the_flow_that_the_authors_published(published, dtype):
    frames, expected = published
    difference = np.abs(TVNet()(*(f.to(dtype) for f in frames))[0].numpy() - expected)
    assert difference.mean() <= 1e-4
    assert difference.max() <= 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "scales", "warps", "iterations"),
    [
        ((23, 31), 1, 1, 50),
        ((23, 31), 1, 4, 9),
        ((37, 25), 2, 1, 12),
        ((33, 30), 3, 2, 8),
        ((29, 41), 5, 5, 6),
        ((9, 7), 5, 2, 5),  # a diagonal for two levels
        ((3, 2), 3, 2, 5),  # for none: one
    ],
)
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_equals_the_program_written_in_numpy(kind, size, scales, warps, iterations):
    frames = pair(*size, shift=(1.7, -2.4), dtype=torch.float64)
    if kind == "noise":
        frames = np.random.default_rng(1).integers(0, 256, (2, 1, 3, *size))
        frames = torch.from_numpy(frames).double().unbind()
    expected = numpy_tvnet(*(f[0].numpy() for f in frames), scales, warps, iterations)
    flow = TVNet(scales=scales, warps=warps, iterations=iterations)(*frames)
    assert flow.dtype == torch.float64
    difference = (flow[0] - torch.from_numpy(expected)).abs()
    # What points out of the image at the left jumps to 0, so rounding can show at single pixels.
    assert difference.mean() <= 1e-8


@torch.no_grad()
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_single_precision_through_all_scales_and_warps(published, engine):
    (frame1, frame2), _ = published
    options = {"scales": 5, "warps": 5, "iterations": 30}
    exact = TVNet(**options)(frame1.double(), frame2.double())
    assert (TVNet(**options, engine=engine)(frame1, frame2) - exact).abs().mean() <= 1e-4


def test_engines_agree_in_value_and_gradient():
    frames = pair()
    fast, slow = (TVNet(warps=2, iterations=7, size=(29, 33), engine=engine) for engine in ("cpu", "reference"))
    with torch.no_grad():
        fast.initial_flow.uniform_(0.2, 0.4)
    slow.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast(*frames), slow(*frames), rtol=1e-4, atol=1e-4)
    expected = grads(slow, *frames)
    for name, grad in grads(fast, *frames).items():
        error = (grad - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 1e-3, name


def test_gradcheck_of_all_parameters(rng):
    """Away from whole pixels, where bilinear interpolation has a kink."""
    module = TVNet(scales=2, warps=2, iterations=3, size=(7, 9), engine="reference").double()
    values = {
        name: (p.detach() + torch.rand(p.shape, generator=rng, dtype=p.dtype) * 0.3 + 0.1).requires_grad_()
        for name, p in module.named_parameters()
    }
    assert values["initial_flow"].shape == (2, 4, 5)
    frames = pair(7, 9, dtype=torch.float64)

    def flow(*parameters):
        return functional_call(module, dict(zip(values, parameters, strict=True)), frames)

    assert torch.autograd.gradcheck(flow, tuple(values.values()))


@pytest.mark.parametrize("frames", ["moving", "equal", "constant", "zero"])
@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_gradients_are_finite(frames, engine):
    frame1, frame2 = {
        "moving": pair(),
        "equal": (pair()[0],) * 2,
        "constant": (torch.full((1, 3, 29, 33), 93.0),) * 2,
        "zero": (torch.zeros(1, 3, 29, 33),) * 2,
    }[frames]
    module = TVNet(scales=2, warps=2, iterations=10, size=(29, 33), engine=engine)
    module.loss(frame1, frame2, module(frame1, frame2)).backward()
    for name, p in module.named_parameters():
        assert p.grad.isfinite().all(), name
        assert bool(p.grad.any()) >= (frames == "moving"), name


@torch.no_grad()
def test_where_nothing_moves_there_is_no_flow():
    for value in (0.0, 93.0, 255.0):
        frame = torch.full((2, 3, 20, 24), value)
        assert not TVNet(scales=3, warps=2)(frame, frame).any()
    frame, _ = pair()
    assert TVNet(scales=3, warps=2)(frame, frame).abs().max() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0), (3.0, -2.0)])
def test_known_translation_and_its_signs(shift):
    flow = TVNet(scales=3, warps=3)(*pair(64, 72, shift))[0].numpy()
    np.testing.assert_allclose(np.median(flow[:, 10:-10, 10:-10], axis=(1, 2)), shift, atol=0.05)


@torch.no_grad()
def test_a_pair_alone_equals_the_pair_in_a_batch():
    first, second = pair(40, 48, seeds=(0, 1, 2))
    first[1] *= 0.3
    second[1] *= 0.3
    module = TVNet(scales=3, warps=2)
    together = module(first, second)
    for i in range(3):
        assert torch.equal(together[i], module(first[i : i + 1], second[i : i + 1])[0])


@torch.no_grad()
def test_the_flow_does_not_depend_on_contrast():
    """Each pair is scaled to 0..255, both frames by the same factor: a brighter frame 2 is not made like frame 1."""
    first, second = (f[:, :1].div(5).round().expand(-1, 3, -1, -1) for f in pair())
    flow = TVNet()(first, second)
    torch.testing.assert_close(TVNet()(3 * first, 3 * second), flow, rtol=0, atol=1e-3)
    assert (TVNet()(first, 3 * second) - flow).abs().mean() > 0.1


def test_grey_levels_are_exact_and_pass_gradients_through(rng):
    colours = torch.randint(0, 256, (100_000, 3, 1, 1), generator=rng)
    colours[:256] = torch.arange(256)[:, None, None, None]
    red, green, blue = colours.unbind(1)
    exact = (114 * blue + 587 * green + 299 * red) // 1000
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(_grey(colours.to(dtype))[:, 0], exact.to(dtype))
    frame = colours[:1].float().requires_grad_()
    _grey(frame).sum().backward()
    torch.testing.assert_close(frame.grad.flatten(), torch.tensor([0.299, 0.587, 0.114]))


def test_loss_of_known_flows():
    """A flow that explains frame 2 leaves only its own variation, one that does not costs the frames' difference."""
    frame, _ = pair(20, 24)
    module = TVNet(lam=0.2)
    zero = torch.zeros(1, 2, 20, 24)
    assert module.loss(frame, frame, zero) == 0
    ramp = zero.clone()
    ramp[:, 0] = 0.1 * torch.arange(24)
    ramp[:, 1] = 0.3 * torch.arange(20)[:, None]
    flat = torch.full_like(frame, 50.0)
    expected = 0.1 * 23 / 24 + 0.3 * 19 / 20
    assert module.loss(flat, flat, ramp).item() == pytest.approx(expected, rel=1e-5)
    moved = pair(20, 24, shift=(2.0, 0.0))
    greys = [numpy_grey(f[0].numpy()) for f in moved]
    low, high = min(g.min() for g in greys), max(g.max() for g in greys)
    first, second = (numpy_smooth((g - low) / (high - low) * 255) for g in greys)
    still = module.loss(*moved, zero).item()
    assert still == pytest.approx(0.2 * np.abs(second - first).mean(), rel=1e-5)
    right = zero.clone()
    right[:, 0] = 2
    assert module.loss(*moved, right).item() < 0.5 * still


def test_a_few_steps_of_training_lower_the_loss():
    frames = pair(seeds=(0, 1))
    module = TVNet(iterations=10, size=(29, 33))
    optimiser = torch.optim.Adam(module.parameters(), 0.03)
    losses = []
    for _ in range(16):
        loss = module.loss(*frames, module(*frames))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert (module.flow_x[0] != module.flow_x[-1]).any()  # every iteration goes its own way
    assert module.initial_flow.any()


def test_what_is_learned():
    def shapes(**options):
        return {name: tuple(p.shape) for name, p in TVNet(**options).named_parameters()}

    kernels = dict.fromkeys(("flow_x", "flow_y", "div_x", "div_y"), (50, 1, 2))
    assert shapes() == kernels
    assert shapes(scales=3, warps=5) == kernels
    assert shapes(scales=3, size=(50, 38)) == kernels | {"initial_flow": (2, 13, 10)}


@torch.no_grad()
def test_the_flow_starts_from_what_was_learned():
    """Almost no iterations, no data term: doubled at each level on its way down."""
    frame, _ = pair(32, 32)
    module = TVNet(scales=3, iterations=1, lam=0.0, size=(32, 32))
    module.initial_flow[0], module.initial_flow[1] = 0.25, -0.5
    flow = module(frame, frame)
    torch.testing.assert_close(flow.mean((0, 2, 3)), torch.tensor([1.0, -2.0]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    frames = pair()
    exact = TVNet(scales=2)(*frames)
    half = TVNet(scales=2).to(dtype)(*(f.to(dtype) for f in frames))
    assert half.dtype == dtype
    torch.testing.assert_close(half, exact.to(dtype), rtol=0, atol=0)
    with torch.autocast("cpu", dtype):
        assert torch.equal(TVNet(scales=2)(*frames), exact)


def test_compiles_as_one_graph():
    module = TVNet(scales=2, warps=2, iterations=4, size=(29, 33))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    frames = pair()
    torch.testing.assert_close(compiled(*frames), module(*frames), rtol=1e-3, atol=1e-3)
    expected = grads(module, *frames)
    for name, grad in grads(compiled, *frames).items():
        torch.testing.assert_close(grad, expected[name.removeprefix("_orig_mod.")], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_save_and_load(rng, tmp_path):
    module, other = (TVNet(iterations=5, size=(29, 33)) for _ in range(2))
    for p in module.parameters():
        p.add_(torch.rand(p.shape, generator=rng) * 0.1)
    frames = pair()
    assert not torch.equal(module(*frames), other(*frames))
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(module(*frames), other(*frames))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (100, 2), (3, 60)])
def test_any_size_and_batch(size):
    module = TVNet(scales=5, warps=2, iterations=4)
    for B in (0, 2):
        frames = torch.rand(2, B, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
        flow = module(*frames)
        assert flow.shape == (B, 2, *size)
        assert flow.isfinite().all()


@torch.no_grad()
def test_nan_stays_in_its_pair():
    first, second = pair(seeds=(0, 1))
    alone = TVNet(warps=2)(first[1:], second[1:])
    first[0, 0, 3, 4] = torch.nan
    flow = TVNet(warps=2)(first, second)
    assert flow[0].isnan().all()
    assert torch.equal(flow[1:], alone)


@torch.no_grad()
def test_warns_where_the_frames_look_like_0_to_1():
    first, second = pair()
    with pytest.warns(UserWarning, match="0..1") as seen:
        TVNet()(first / 255, second / 255)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TVNet()(first, second)
        TVNet()(torch.zeros_like(first), torch.zeros_like(first))
        TVNet()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 8, 9), (1, 3, 8, 8)), r"\(1, 3, 8, 9\).*\(1, 3, 8, 8\)"),
        (((1, 1, 8, 8),) * 2, "RGB"),
        (((3, 8, 8),) * 2, "B, 3, H, W"),
        (((1, 3, 0, 8),) * 2, "B, 3, H, W"),
    ],
)
def test_bad_frames_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        TVNet()(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match=message):
        TVNet().loss(*(torch.zeros(shape) for shape in shapes), torch.zeros(1, 2, 8, 8))


def test_other_faults_are_named():
    frame = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="type"):
        TVNet()(frame, frame.double())
    with pytest.raises(ValueError, match="complex64"):
        TVNet()(frame + 0j, frame + 0j)
    with pytest.raises(ValueError, match=r"\(16, 16\).*\(8, 8\)"):
        TVNet(size=(16, 16))(frame, frame)
    with pytest.raises(ValueError, match=r"flow.*\(1, 2, 8, 8\).*\(1, 2, 4, 4\)"):
        TVNet().loss(frame, frame, torch.zeros(1, 2, 4, 4))
    for option in ({"scales": 0}, {"warps": 1.5}, {"iterations": 0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            TVNet(**option)
    for option in ({"theta": 0.0}, {"lam": -1.0}, {"engine": "fast"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            TVNet(**option)(frame, frame)
