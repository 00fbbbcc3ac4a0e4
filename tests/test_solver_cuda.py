"""The GPU engine against the readable one: on a GPU where there is one, and everywhere under Triton's interpreter.

`test_under_the_interpreter` runs this file's cases again in a process whose kernels are interpreted, on the CPU. The
interpreter takes what the compiler may refuse, so `test_compiles_for_a_gpu` compiles them; that needs no GPU either.
"""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_engines import (
    assert_clips_equal_the_reference,
    assert_close_gradients,
    assert_equals_the_reference,
    check_checkpoints,
    gradients,
    grads_of,
    layer_and_clip,
    leaves,
    random_inputs,
    run,
)

triton = pytest.importorskip("triton", reason="the GPU engine needs the package triton")

from repflow.solver import cuda, solve, solve_clips  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
TAPS = [[[-1.0, 1.0] * 4]]

if INTERPRETED:  # the operator then takes this engine on the CPU, too
    operators = torch.library.Library("repflow", "IMPL")
    operators.impl("solve", cuda.forward, "CPU", allow_override=True)
    operators.impl("solve_adjoint", cuda.backward, "CPU", allow_override=True)
    operators.impl("solve_clips", cuda.forward_clips, "CPU", allow_override=True)
    operators.impl("solve_clips_adjoint", cuda.backward_clips, "CPU", allow_override=True)


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")(test))


def on_gpu_or_interpreted(test):
    ready = DEVICE == "cuda" or INTERPRETED
    return pytest.mark.gpu(pytest.mark.skipif(not ready, reason="no CUDA device, but see the interpreter's run")(test))


@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", __file__, "-m", "gpu", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@on_gpu_or_interpreted
@pytest.mark.parametrize(
    ("shape", "iterations", "made"),
    [
        ((1, 1, 1, 1), 5, {}),
        ((1, 2, 1, 7), 5, {"start": True}),
        ((1, 2, 9, 1), 1, {"layers": 5}),
        ((2, 3, 5, 8), 0, {"start": True}),
        ((2, 2, 5, 8), 5, {"layers": 3, "learned_channels": False}),
        ((2, 2, 9, 6), 4, {"layers": 4, "start": True}),
        ((1, 1, 8, 17), 3, {}),  # several warps
    ],
)
def test_equals_the_reference(shape, iterations, made):
    assert_equals_the_reference(random_inputs(1, *shape, **made), DEVICE, iterations=iterations)


@on_gpu_or_interpreted
def test_more_planes_than_programs(monkeypatch):
    """Each of two programs takes one plane after the other, and its tape anew."""
    monkeypatch.setattr(cuda, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(cuda, "WARPS", 2)
    assert_equals_the_reference(random_inputs(1, 3, 1, 3, 2, start=True), DEVICE, iterations=2)


@on_gpu_or_interpreted
@pytest.mark.parametrize(
    ("B", "C", "T", "H", "W", "iterations", "each"),
    [
        (1, 1, 2, 1, 1, 5, False),
        (1, 2, 3, 1, 7, 5, True),
        (2, 1, 2, 9, 1, 1, False),
        (2, 2, 3, 5, 8, 0, True),
        (1, 2, 4, 2, 3, 2, True),
        (2, 2, 2, 5, 4, 3, False),
        (1, 1, 3, 8, 17, 2, True),  # several warps
    ],
)
def test_whole_clips_equal_the_reference(B, C, T, H, W, iterations, each):
    assert_clips_equal_the_reference(DEVICE, B, C, T, H, W, iterations, each, seed=B + H)


@on_gpu_or_interpreted
def test_operator_of_clips_keeps_pytorch_rules():
    clips = (255 * torch.rand(1, 2, 3, 2, 3, device=DEVICE)).requires_grad_()
    numbers = torch.tensor([0.3, 0.15, 0.25], requires_grad=True, device=DEVICE)
    taps, image_taps = (torch.randn(*shape, requires_grad=True, device=DEVICE) for shape in ((1, 2, 8), (2, 6)))
    torch.library.opcheck(torch.ops.repflow.solve_clips.default, (clips, numbers, taps, image_taps, 1))


@on_gpu_or_interpreted
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize(("channels", "shape"), [(1, (9, 26)), (2, (20, 3))])
def test_tiles_meet_without_a_seam(monkeypatch, channels, shape, iterations):
    monkeypatch.setattr(cuda, "LARGE", 16)
    monkeypatch.setattr(cuda, "TILE", (12, 16))
    monkeypatch.setattr(cuda, "TILE_ITERATIONS", 2)
    inputs = random_inputs(2, 1, channels, *shape, layers=2, start=True)
    assert_equals_the_reference(inputs, DEVICE, iterations=iterations)


@on_gpu_or_interpreted
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("large", [16, 4096])
def test_each_image_stops_by_itself(monkeypatch, channels, large):
    monkeypatch.setattr(cuda, "LARGE", large)
    monkeypatch.setattr(cuda, "TILE", (12, 16))
    inputs = random_inputs(6, 3, channels, 10, 5)
    with torch.no_grad():
        inputs["rho_c"] *= torch.tensor([1e-3, 0.05, 1.0])[:, None, None, None]
    assert_equals_the_reference(inputs, DEVICE, iterations=3, epsilon=0.1)
    inputs = leaves(inputs, DEVICE)
    numbers, taps = torch.tensor([0.3, 0.15, 0.25], device=DEVICE), torch.tensor(TAPS, device=DEVICE)
    steps = torch.ops.repflow.solve(inputs["rho_c"], inputs["grad"], None, None, numbers, taps, 3, 0.1)[2]
    assert steps.tolist() == [1, 2, 3]


@on_gpu_or_interpreted
def test_checkpoints_give_the_same_gradients():
    check_checkpoints(DEVICE, every=3 if INTERPRETED else 1)  # the interpreter is slow


@on_gpu_or_interpreted
def test_starts_by_themselves():
    """A flow without a dual field, and the other way round; the loss sees one of them."""
    made = random_inputs(3, 1, 2, 4, 5, start=True)
    for left_out, seen in (("dual", 0), ("flow", 1)):
        given = {name: value for name, value in made.items() if name != left_out}
        inputs = leaves(given, DEVICE)
        ours, theirs = run(inputs, DEVICE, iterations=2)[seen].cpu(), run(given, "reference", iterations=2)[seen]
        assert_close_gradients(gradients(inputs, [ours]), gradients(given, [theirs]))


@on_gpu_or_interpreted
def test_views_and_half_precision():
    inputs = leaves(random_inputs(2, 2, 2, 4, 5), DEVICE)
    rho_c, grad = inputs["rho_c"].detach(), inputs["grad"].detach()
    views = rho_c.mT.contiguous().mT, grad.transpose(1, 2).contiguous().transpose(1, 2)
    flow, dual = solve(rho_c, grad, iterations=2, engine=DEVICE)
    assert torch.equal(solve(*views, iterations=2, engine=DEVICE)[0], flow)
    for dtype in (torch.bfloat16, torch.float16):
        half = [t.to(dtype).requires_grad_() for t in (rho_c[:1], grad[:, :1])]
        flow, dual = solve(*half, iterations=2, engine=DEVICE)
        assert flow.dtype == dual.dtype == torch.float32
        single = [t.detach().float().requires_grad_() for t in half]
        expected = solve(*single, iterations=2, engine=DEVICE)[0]
        assert torch.equal(flow, expected)
        ours, theirs = torch.autograd.grad(flow.sum(), half), torch.autograd.grad(expected.sum(), single)
        for our, their in zip(ours, theirs, strict=True):
            assert torch.equal(our, their.to(dtype))


@on_gpu_or_interpreted
def test_nan_stays_where_it_can_be_seen():
    rho_c, grad = torch.zeros(1, 2, 6, 6, device=DEVICE), torch.ones(2, 1, 2, 6, 6, device=DEVICE)
    rho_c[0, 0, 3, 3] = float("nan")
    flow, _ = solve(rho_c, grad, iterations=3, engine=DEVICE)
    assert flow[:, 0, 0, 3, 3].isnan().all()
    assert flow[:, 0, 1].isfinite().all()
    once, _ = solve(rho_c, grad, iterations=3, engine=DEVICE, epsilon=0.1)  # its change is no number: it stops
    assert torch.equal(once.isnan(), solve(rho_c, grad, iterations=1, engine=DEVICE)[0].isnan())


@on_gpu_or_interpreted
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_planes(shape):
    rho_c = torch.zeros(shape, requires_grad=True, device=DEVICE)
    grad, flow = torch.zeros(2, *shape, device=DEVICE), torch.zeros(2, *shape, device=DEVICE, requires_grad=True)
    out, _ = solve(rho_c, grad, flow=flow, engine=DEVICE)
    assert out.shape == (2, *shape)
    out.sum().backward()
    assert rho_c.grad.shape == shape
    assert flow.grad.shape == out.shape


@on_gpu_or_interpreted
@pytest.mark.parametrize("start", [False, True])
def test_operator_keeps_pytorch_rules(start):
    inputs = leaves(random_inputs(0, 2, 2, 3, 4, start=start), DEVICE)
    numbers = torch.tensor([0.3, 0.15, 0.25], requires_grad=True, device=DEVICE)
    taps = torch.randn(1, 2, 8, requires_grad=True, device=DEVICE)
    arguments = inputs["rho_c"], inputs["grad"], inputs.get("flow"), inputs.get("dual"), numbers, taps, 2, 0.0
    torch.library.opcheck(torch.ops.repflow.solve.default, arguments)


@on_gpu
@pytest.mark.parametrize("side", [(7, 7), (14, 14), (28, 28), (45, 45), (56, 56), (64, 64), (112, 112), (300, 401)])
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_equals_the_reference_at_full_size(side, epsilon):
    inputs = random_inputs(4, 2, 3, *side, layers=20, start=True)
    assert_equals_the_reference(inputs, DEVICE, iterations=20, epsilon=epsilon)


@on_gpu
@pytest.mark.parametrize("side", [7, 14, 28, 56, 64])
def test_whole_clips_at_full_size(side):
    assert_clips_equal_the_reference(DEVICE, 2, 3, 4, side, side, 20, True, seed=side)


@on_gpu
def test_more_planes_than_a_gpu_has_programs():
    assert_equals_the_reference(random_inputs(6, 700, 12, 3, 4), DEVICE, iterations=5)
    assert_equals_the_reference(random_inputs(6, 90, 3, 56, 56), DEVICE, iterations=5)


@on_gpu
def test_the_same_bits_again():
    inputs = leaves(random_inputs(7, 8, 4, 56, 56, start=True), DEVICE)
    once, again = (run(inputs, DEVICE, iterations=12) for _ in range(2))
    assert all(map(torch.equal, once, again))
    once, again = (torch.autograd.grad(sum(out.sum() for out in outs), list(inputs.values())) for outs in (once, again))
    assert all(map(torch.equal, once, again))
    clips = (255 * torch.rand(4, 8, 9, 56, 56, device=DEVICE)).requires_grad_()
    once, again = (torch.autograd.grad(solve_clips(clips, iterations=12).sum(), clips)[0] for _ in range(2))
    assert torch.equal(once, again)


@on_gpu
@pytest.mark.parametrize("side", [28, 112])
@pytest.mark.parametrize(("channels", "epsilon"), [(3, 0.0), (3, 0.05), (1, 0.05)])
def test_the_gpu_is_never_waited_for(side, channels, epsilon):
    inputs = leaves(random_inputs(8, 2, channels, side, side), DEVICE)
    options = {"iterations": 10, "epsilon": epsilon, "engine": "cuda"}
    problem = {name: inputs[name] for name in ("rho_c", "grad", "theta", "lam", "tau")}
    solve(**problem, **options)[0].sum().backward()  # compiles
    clips = (255 * torch.rand(2, channels, 3, side, side, device=DEVICE)).requires_grad_()
    solve_clips(clips, iterations=10).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve(**problem, **options)[0].sum().backward()
        solve_clips(clips, iterations=10).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_compiles_as_one_graph():
    layer, clip = (thing.to(DEVICE) for thing in layer_and_clip())
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(clip), layer(clip), rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(grads_of(compiled, clip), grads_of(layer, clip), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@on_gpu
def test_autocast_computes_the_flow_in_single():
    layer, clip = (thing.to(DEVICE) for thing in layer_and_clip())
    problem = torch.rand(1, 1, 4, 4, device=DEVICE), torch.rand(2, 1, 1, 4, 4, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(clip)
        flow, _ = solve(*(t.bfloat16() for t in problem))
    assert flow.dtype == torch.float32
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    torch.testing.assert_close(out.float(), layer(clip), rtol=0.1, atol=0.5)


# Compiled for a GPU that needs not be there.


class Compiled:
    """Stands for a kernel: compiles it for the arguments of each launch."""

    def __init__(self, kernel):
        self.kernel, self.made = kernel, {}

    def __getitem__(self, grid):
        return partial(self.compile, grid)

    def compile(self, grid, *arguments, **options):
        compiled = self.kernel.warmup(*arguments, grid=grid, **options)
        self.made[compiled.hash] = compiled


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("dtype", "side", "start", "epsilon"),
    [(torch.float32, 7, False, 0.0), (torch.bfloat16, 40, False, 0.0), (torch.bfloat16, 65, True, 0.1)],
)
def test_compiles_for_a_gpu(monkeypatch, tmp_path, dtype, side, start, epsilon):
    hopper = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    driver = SimpleNamespace(
        get_current_device=lambda: -1,  # no real one, whose kernels these would become
        get_current_stream=lambda _: 0,
        get_current_target=lambda: hopper,
    )
    kernels = Compiled(cuda._advance), Compiled(cuda._retreat)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cuda, "_advance", kernels[0])
    monkeypatch.setattr(cuda, "_retreat", kernels[1])
    inputs = {name: value.detach() for name, value in random_inputs(0, 1, 1, side, side, start=start).items()}
    problem = inputs["rho_c"].to(dtype), inputs["grad"].to(dtype), inputs.get("flow"), inputs.get("dual")
    problem += torch.tensor([0.3, 0.15, 0.25]), torch.tensor(TAPS)
    flow, dual, steps = cuda.forward(*problem, 2, epsilon)
    cuda.backward(flow, dual, *problem, steps, 2)
    if side**2 <= cuda.LARGE:
        clips = torch.rand(1, 2, 3, side, side), *problem[4:], torch.rand(2, 6)
        cuda.backward_clips(cuda.forward_clips(*clips, 2), *clips, 2)
    for kernel in kernels:
        assert kernel.made
        for compiled in kernel.made.values():
            assert compiled.asm["cubin"]
            assert compiled.metadata.shared <= 48 * 1024
