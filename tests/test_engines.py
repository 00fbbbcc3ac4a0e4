"""The compiled engines against the readable one: values, gradients, and what PyTorch expects of an operator."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.data import DataLoader, Dataset

import repflow
from repflow.solver import Kernels, classical_kernels, cpu, image_gradient, solve, solve_clips

NAMES = ("rho_c", "grad", "flow", "dual", "theta", "lam", "tau", "flow_x", "flow_y", "div_x", "div_y")


def random_inputs(seed, N, C, H, W, layers=1, start=False, learned_channels=True):
    """All that `solve` can be given, as leaves that want gradients; float32."""
    rng = torch.Generator().manual_seed(seed)
    frames = torch.rand(2, N, C, H, W, generator=rng) * 255
    classical = classical_kernels()
    values = {
        "rho_c": frames[1] - frames[0],
        "grad": image_gradient(frames[1], classical.image_x[0], classical.image_y[0]),
        "theta": torch.tensor(0.3),
        "lam": torch.tensor(0.15),
        "tau": torch.tensor(0.25),
    }
    if start:
        values["flow"] = torch.randn(2, N, C, H, W, generator=rng)
        values["dual"] = torch.rand(2, 2, N, C, H, W, generator=rng) - 0.5
    for name in Kernels._fields[2:]:
        shape = layers, C if learned_channels else 1, 2
        values[name] = getattr(classical, name) + 0.1 * torch.randn(shape, generator=rng)
    return {name: value.requires_grad_() for name, value in values.items()}


def run(inputs, engine, **options):
    kernels = Kernels(*classical_kernels()[:2], *(inputs[name] for name in Kernels._fields[2:]))
    arguments = {name: inputs[name] for name in NAMES[:7] if name in inputs}
    return solve(**arguments, kernels=kernels, engine=engine, **options)


def leaves(inputs, device="cpu", dtype=torch.float32):
    return {name: value.detach().to(device, dtype).requires_grad_() for name, value in inputs.items()}


def gradients(inputs, outputs, seed=0):
    rng = torch.Generator().manual_seed(seed)
    loss = sum((out * torch.randn(out.shape, generator=rng)).sum() for out in outputs)
    wanted = [leaf for leaf in inputs.values() if leaf.numel()]
    return dict(zip(inputs, torch.autograd.grad(loss, wanted), strict=False))


def assert_close_gradients(ours, theirs):
    """In the norm, but for what rounding decides at the threshold's kinks: a few pixels, and their sums a little.

    The sums' terms cancel: their rounding is that of the largest of them.
    """
    fields = "rho_c", "grad", "flow", "dual", "clips"
    largest = max((float(theirs[name].norm()) for name in theirs if name not in fields), default=0.0)
    for name in theirs:
        error = (ours[name].cpu().double() - theirs[name].double()).abs().flatten().sort().values
        own = theirs[name].double().norm()
        limit = 1e-4 * own + 1e-12 if name in fields else 1e-3 * own + 5e-4 * largest
        few = (len(error) + 180) // 200  # one from 20 pixels on
        assert error[: len(error) - few].norm() <= limit, name


def assert_equals_the_reference(inputs, engine, **options):
    """The reference in float64, so that errors are ours."""
    device = "cuda" if engine == "cuda" else "cpu"
    inputs, exact = leaves(inputs, device), leaves(inputs, "cpu", torch.float64)
    ours = [out.cpu() for out in run(inputs, engine, **options)]
    theirs = [out.float() for out in run(exact, "reference", **options)]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    if options["iterations"]:
        assert_close_gradients(gradients(inputs, ours), gradients(exact, theirs))


shapes = {"N": st.integers(1, 3), "C": st.integers(1, 3), "H": st.integers(1, 70), "W": st.integers(1, 70)}


@given(**shapes, iterations=st.sampled_from([0, 1, 5, 20]), seed=st.integers(0, 999), start=st.booleans())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_cpu_equals_the_reference(N, C, H, W, iterations, seed, start):
    inputs = random_inputs(seed, N, C, H, W, layers=max(iterations, 1) if seed % 2 else 1, start=start)
    assert_equals_the_reference(inputs, "cpu", iterations=iterations)


@given(
    B=st.integers(1, 2), C=st.integers(1, 3), T=st.integers(2, 4), H=st.integers(1, 40), W=st.integers(1, 40),
    iterations=st.sampled_from([0, 1, 9]), each=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(deadline=None, max_examples=40, derandomize=True)
def test_whole_clips_equal_the_reference(B, C, T, H, W, iterations, each, seed):
    assert_clips_equal_the_reference("cpu", B, C, T, H, W, iterations, each, seed)


def assert_clips_equal_the_reference(engine, B, C, T, H, W, iterations, each, seed):
    """With a kernel for each channel, or one for all; those of the image learned, too."""
    rng = torch.Generator().manual_seed(seed)
    values = {"clips": torch.rand(B, C, T, H, W, generator=rng) * 255}
    values |= {"theta": torch.tensor(0.3), "lam": torch.tensor(0.15), "tau": torch.tensor(0.25)}
    for name, kernel in classical_kernels()._asdict().items():
        shape = 1, C if each else 1, kernel.shape[-1]
        values[name] = kernel + 0.1 * torch.randn(shape, generator=rng)

    def run(inputs, engine):
        kernels = Kernels(*(inputs[name] for name in Kernels._fields))
        numbers = {name: inputs[name] for name in ("theta", "lam", "tau")}
        return solve_clips(inputs["clips"], **numbers, kernels=kernels, iterations=iterations, engine=engine)

    inputs, exact = leaves(values, engine), leaves(values, dtype=torch.float64)
    ours, theirs = run(inputs, engine).cpu(), run(exact, "reference")
    assert ours.shape == (B, 2, C, T - 1, H, W)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-4)
    if iterations > 1 and min(H, W) > 1:  # else tau or an image kernel is unused
        assert_close_gradients(gradients(inputs, [ours]), gradients(exact, [theirs.float()]))


def test_large_planes_of_clips_are_solved_in_tiles(monkeypatch):
    clips = torch.rand(1, 2, 3, 20, 18, generator=torch.Generator().manual_seed(0)) * 255
    whole = solve_clips(clips, iterations=7)
    monkeypatch.setattr(cpu, "LARGE", 16)
    torch.testing.assert_close(solve_clips(clips, iterations=7), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 6, 9, 10, 20, 37])
@pytest.mark.parametrize("shape", [(2, 2, 6, 5), (1, 1, 150, 200)])
def test_adjoint_recomputes_every_segment(shape, iterations):
    """Lengths that divide evenly and ones that don't, with a kernel for each iteration: of small planes all states are
    kept, of the large one too few."""
    _, _, H, W = shape
    assert (cpu.segments.py_func(iterations, H * W)[1] > 1) == (H * W > 1000 and iterations > 2)
    inputs = random_inputs(iterations, *shape, layers=iterations, start=True)
    ours, theirs = (gradients(inputs, run(inputs, engine, iterations=iterations)) for engine in ("cpu", "reference"))
    for name in NAMES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * float(theirs[name].abs().max()))


def test_states_fit_the_cache_or_are_fewer_than_twice_the_root():
    for iterations in range(1, 500):
        for size in (64, 900, 4000, 40_000):
            length, number = cpu.segments.py_func(iterations, size)
            assert length * number >= iterations
            assert 24 * size * length <= cpu.KEPT or number + length - 1 < 2 * iterations**0.5


def test_what_is_saved_does_not_grow_with_iterations():
    def saved(engine, iterations):
        inputs, kept = random_inputs(0, 2, 3, 8, 9), {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            run(inputs, engine, iterations=iterations)
        return sum(t.untyped_storage().nbytes() for t in kept.values())

    assert saved("cpu", 10) == saved("cpu", 20) == saved("cpu", 100)
    assert saved("cpu", 100) < saved("reference", 10) < saved("reference", 20)


@pytest.mark.parametrize("shape", [(40, 33), (9, 70), (70, 9), (17, 17)])
@pytest.mark.parametrize("epsilon", [0.0, 0.03])
def test_tiles_meet_without_a_seam(monkeypatch, shape, epsilon):
    monkeypatch.setattr(cpu, "LARGE", 16)
    monkeypatch.setattr(cpu, "TILE", (5, 7))
    monkeypatch.setattr(cpu, "TILE_ITERATIONS", 3)
    inputs = random_inputs(1, 2, 2, *shape, layers=11, start=True)
    ours, theirs = (run(inputs, engine, iterations=11, epsilon=epsilon) for engine in ("cpu", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_stops_where_the_reference_stops_it(channels):
    rng = torch.Generator().manual_seed(3)
    rho_c = torch.randn(6, channels, 12, 10, generator=rng) * torch.logspace(-2, 1.5, 6)[:, None, None, None]
    grad = torch.randn(2, 6, channels, 12, 10, generator=rng) * 10
    ours = torch.ops.repflow.solve(
        rho_c, grad, None, None, torch.tensor([0.3, 0.15, 0.25]), torch.tensor([[[-1.0, 1.0] * 4]]), 30, 0.01
    )
    theirs = solve(rho_c, grad, iterations=30, epsilon=0.01, engine="reference")
    torch.testing.assert_close(ours[:2], theirs, rtol=0, atol=1e-4)
    steps = ours[2].tolist()
    assert len(set(steps)) > 2  # or nothing was tested
    for image, count in enumerate(steps):
        alone = rho_c[image : image + 1], grad[:, image : image + 1]
        exact = solve(*alone, iterations=count, engine="reference")[0]
        torch.testing.assert_close(theirs[0][:, image : image + 1], exact, rtol=0, atol=1e-6)


def test_gradients_of_an_image_that_stopped():
    inputs = random_inputs(5, 3, 1, 8, 8)
    with torch.no_grad():
        inputs["rho_c"] *= torch.tensor([1e-3, 0.05, 1.0])[:, None, None, None]
    ours, theirs = (gradients(inputs, run(inputs, e, iterations=25, epsilon=0.02)) for e in ("cpu", "reference"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * float(theirs[name].abs().max()))


def test_views_and_half_precision():
    inputs = random_inputs(2, 2, 3, 8, 9)
    rho_c, grad = inputs["rho_c"].detach(), inputs["grad"].detach()
    views = rho_c.mT.contiguous().mT, grad.transpose(1, 2).contiguous().transpose(1, 2)
    assert not views[0].is_contiguous()
    leaves = [view.requires_grad_() for view in views]
    flow, _ = solve(*leaves, engine="cpu")
    assert torch.equal(flow, solve(rho_c, grad, engine="cpu")[0])
    for ours, theirs in zip(
        torch.autograd.grad(flow.sum(), leaves),
        torch.autograd.grad(solve(*leaves, engine="reference")[0].sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    half = rho_c.bfloat16().requires_grad_(), grad.bfloat16()
    flow, dual = solve(*half, engine="cpu")
    assert flow.dtype == dual.dtype == torch.float32
    assert torch.equal(flow, solve(half[0].float(), half[1].float(), engine="cpu")[0])
    assert torch.autograd.grad(flow.sum(), half[0])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_nan_stays_where_it_can_be_seen(engine):
    rho_c, grad = torch.zeros(1, 2, 6, 6), torch.ones(2, 1, 2, 6, 6)
    rho_c[0, 0, 3, 3] = float("nan")
    flow, _ = solve(rho_c, grad, iterations=3, engine=engine)
    assert flow[:, 0, 0, 3, 3].isnan().all()
    assert flow[:, 0, 1].isfinite().all()  # the other plane knows nothing of it


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_planes(shape):
    rho_c = torch.zeros(shape, requires_grad=True)
    flow, _ = solve(rho_c, torch.zeros(2, *shape), engine="cpu")
    assert flow.shape == (2, *shape)
    flow.sum().backward()
    assert rho_c.grad.shape == shape


@pytest.mark.parametrize(
    "second",
    [
        torch.zeros(1, 2, 4, 6),
        torch.zeros(1, 2, 4, 5, dtype=torch.float64),
        torch.zeros(1, 2, 4, 5, device="meta"),
        torch.zeros(1, 2, 4, 5, dtype=torch.uint8),
    ],
)
def test_maps_that_do_not_match(second):
    with pytest.raises(ValueError, match="of one shape, floating-point type and device"):
        repflow.representation_flow(torch.zeros(1, 2, 4, 5), second)
    with pytest.raises(ValueError, match="of one shape, floating-point type and device"):
        repflow.representation_flow(*[torch.zeros(1, 2, 4, 5, dtype=torch.int64)] * 2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 0, 4), (1, 2, 4, 0), (0, 2, 4, 4)])
def test_maps_without_room_have_no_flow(shape):
    u, v = repflow.representation_flow(torch.ones(shape), torch.ones(shape) * 2)
    assert u.shape == v.shape == shape
    assert not u.any()
    assert not v.any()


def test_a_forced_engine_says_why_it_cannot_run():
    rho_c, grad = torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"engine='cuda' cannot run: the tensors are on cpu"):
        solve(rho_c, grad, engine="cuda")
    with pytest.raises(ValueError, match="float64"):
        solve(rho_c.double(), grad.double(), engine="cpu")
    assert solve(rho_c.double(), grad.double(), engine="auto")[0].dtype == torch.float64


def test_second_derivatives_are_refused_not_wrong():
    rho_c = torch.randn(1, 1, 4, 4, requires_grad=True)
    flow, _ = solve(rho_c, torch.randn(2, 1, 1, 4, 4), engine="cpu")
    (first,) = torch.autograd.grad(flow.sum(), rho_c, create_graph=True)
    with pytest.raises(NotImplementedError, match="engine='reference'"):
        torch.autograd.grad(first.sum(), rho_c)


@pytest.mark.parametrize("start", [False, True])
def test_operator_keeps_pytorch_rules(start):
    inputs = random_inputs(0, 2, 2, 5, 4, start=start)
    numbers = torch.tensor([0.3, 0.15, 0.25], requires_grad=True)
    taps = torch.randn(1, 2, 8, requires_grad=True)
    arguments = inputs["rho_c"], inputs["grad"], inputs.get("flow"), inputs.get("dual"), numbers, taps, 3, 0.0
    torch.library.opcheck(torch.ops.repflow.solve.default, arguments)


def test_operator_of_clips_keeps_pytorch_rules():
    clips = (255 * torch.rand(2, 3, 4, 6, 5)).requires_grad_()
    numbers = torch.tensor([0.3, 0.15, 0.25], requires_grad=True)
    taps, image_taps = (torch.randn(*shape, requires_grad=True) for shape in ((1, 3, 8), (3, 6)))
    torch.library.opcheck(torch.ops.repflow.solve_clips.default, (clips, numbers, taps, image_taps, 3))


@pytest.mark.parametrize("clips", [torch.rand(2, 3, 4, 5), torch.rand(1, 2, 1, 4, 4), torch.ones(1, 2, 3, 4, 4).int()])
def test_clips_that_have_no_flow_are_refused(clips):
    with pytest.raises(ValueError, match="T >= 2"):
        solve_clips(clips)


def layer_and_clip():
    torch.manual_seed(0)
    return repflow.RepresentationFlow(6, bottleneck=3, iterations=4), torch.randn(2, 6, 4, 7, 8)


def test_compiles_as_one_graph():
    layer, clip = layer_and_clip()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(clip), layer(clip))
    for ours, theirs in zip(grads_of(compiled, clip), grads_of(layer, clip), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # traced, the gradient is PyTorch's


def test_autocast_computes_the_flow_in_single():
    layer, clip = layer_and_clip()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(clip)
        direct, _ = torch.ops.repflow.solve(
            torch.rand(1, 1, 4, 4).bfloat16(), torch.rand(2, 1, 1, 4, 4).bfloat16(), None, None,
            torch.tensor([0.3, 0.15, 0.25]), torch.tensor([[[-1.0, 1.0] * 4]]), 3, 0.0,
        )[:2]  # fmt: skip
    assert direct.dtype == torch.float32
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    torch.testing.assert_close(out.float(), layer(clip), rtol=0.1, atol=0.5)


def test_distributed_data_parallel_trains_it(tmp_path):
    layer, clip = layer_and_clip()
    plain = {name: g for (name, _), g in zip(layer.named_parameters(), grads_of(layer, clip), strict=True)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(layer)
        parallel(clip).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])


def grads_of(layer, clip):
    return torch.autograd.grad(layer(clip).square().sum(), list(layer.parameters()))


def backward(loss, wanted, **options):
    """`torch.autograd.grad` for reentrant checkpoints, which refuse it."""
    for leaf in wanted:
        leaf.grad = None
    loss.backward(**options)
    return [leaf.grad for leaf in wanted]


def check_checkpoints(engine, every=1):
    """Thrown away and computed again, in whatever way PyTorch offers: the same gradients, those of the input too."""
    torch.manual_seed(0)
    device = "cuda" if engine == "cuda" else "cpu"
    clip, frames = torch.randn(1, 4, 3, 6, 7, device=device), torch.rand(2, 1, 3, 9, 8, device=device) * 255
    size = {"iterations": 2, "engine": engine}  # little, for Triton's interpreter
    made = leaves(random_inputs(0, 1, 1, 5, 6, start=True), device)

    def solved(rho_c, grad):
        return torch.cat([out.flatten() for out in run({**made, "rho_c": rho_c, "grad": grad}, engine, iterations=2)])

    layer = repflow.RepresentationFlow(4, bottleneck=1, **size)
    for module, inputs in (
        (layer, [clip[:, :, :2]]),
        (repflow.FlowOfFlow(4, bottleneck=1, **size), [clip]),
        (repflow.TVNet(size=(9, 8), **size), list(frames)),
        (solved, [made["rho_c"], made["grad"]]),
    )[::every]:
        wanted = [x.detach().clone().requires_grad_() for x in inputs]
        wanted += [made["theta"], made["flow"], made["div_x"]] if module is solved else module.to(device).parameters()

        again = partial(checkpoint, module, use_reentrant=False)
        only_solve = partial(create_selective_checkpoint_contexts, [torch.ops.repflow.solve.default])
        ways = {
            "not reentrant": again,  # the first of all, since TVNet looks at its first frames
            "not at all": module,
            "reentrant": partial(checkpoint, module, use_reentrant=True),
            "nested": partial(checkpoint, again, use_reentrant=False),
            "selective": partial(again, context_fn=only_solve),
        }
        expected = None
        for name, way in ways.items():
            once = name in ("reentrant", "selective")  # PyTorch itself refuses a second time
            loss = way(*wanted[: len(inputs)]).square().sum()
            found = backward(loss, wanted, retain_graph=not once)
            expected = expected or found
            torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")
            if not once:
                torch.testing.assert_close(backward(loss, wanted), found)


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_checkpoints_give_the_same_gradients(engine):
    check_checkpoints(engine)


RELOAD = """
import importlib, pkgutil, sys
import torch, repflow
from repflow import RepresentationFlow, tvl1
from test_engines import grads_of, layer_and_clip

layer, clip = layer_and_clip()
expected = layer(clip), grads_of(layer, clip)
for module in pkgutil.walk_packages(repflow.__path__, "repflow."):
    if not module.name.endswith("__main__"):
        importlib.reload(importlib.import_module(module.name))
importlib.reload(repflow)
reloaded, _ = layer_and_clip()
assert type(reloaded) is not type(layer)
for way in (layer, reloaded, torch.compile(reloaded, fullgraph=True, backend="aot_eager")):
    torch.testing.assert_close((way(clip), grads_of(way, clip)), expected, rtol=1e-4, atol=1e-4)
"""


def test_every_module_can_be_reloaded():
    """As `%autoreload` does; what was made before a reload goes on, and what is made after it computes the same."""
    run_beside_the_tests(RELOAD)


def run_beside_the_tests(code, **variables):
    """A program that can import this file; it must end well."""
    environment, folder = os.environ | variables, Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Processes and threads.


def answer(seed=0):
    inputs = random_inputs(seed, 4, 3, 20, 20)
    return run(inputs, "cpu", iterations=10)[0].detach()


class Solved(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return answer(index)


def test_four_threads_at_once():
    expected = [answer(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, wanted in zip(pool.map(answer, range(4)), expected, strict=True):
                assert torch.equal(got, wanted)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_started_after_use(method):
    expected = torch.stack([answer(index) for index in range(4)])
    loader = DataLoader(Solved(), batch_size=4, num_workers=1, multiprocessing_context=method, timeout=PATIENCE)
    assert torch.equal(next(iter(loader)), expected)


def test_a_fork_that_keeps_its_threads():
    """Not a DataLoader's worker: PyTorch's thread count is as in the parent."""
    expected = answer()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        answer()  # starts the parent's threads
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=lambda: sender.send(answer().numpy()))
        child.start()
        assert receiver.poll(60), "the forked process hangs"
        assert torch.equal(torch.from_numpy(receiver.recv()), expected)
        child.join(10)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)


def test_an_unwritable_cache_folder():
    run_beside_the_tests(
        "import test_engines as t; assert t.answer().isfinite().all()", NUMBA_CACHE_DIR="/dev/null/cache"
    )
