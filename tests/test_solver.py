"""The solver's reference engine: operators, gradients, symmetries, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repflow.solver import Kernels, classical_kernels, image_gradient, solve
from repflow.solver.operators import X, Y, backward_difference, forward_difference


def random_problem(rng, N=2, C=3, H=6, W=7, dtype=torch.float64):
    rho_c = torch.randn(N, C, H, W, generator=rng, dtype=dtype) * 20
    grad = torch.randn(2, N, C, H, W, generator=rng, dtype=dtype) * 10
    return rho_c, grad


def perturbed_kernels(rng, layers=1, channels=3):
    return Kernels(
        *(
            k.double().repeat(layers, channels, 1)
            + 0.1 * torch.randn(layers, channels, k.shape[-1], generator=rng, dtype=torch.float64)
            for k in classical_kernels()
        )
    )


def test_three_iterations_by_hand(rng):
    """One row of pixels, written out index by index with the paper's three branches."""
    theta, lam, tau, W = 0.3, 0.15, 0.25, 5
    rho_c, grad = random_problem(rng, 1, 1, 1, W)
    f, g = rho_c.flatten().tolist(), grad[0].flatten().tolist()
    u, p = [0.0] * W, [0.0] * W
    for _ in range(3):
        v = []
        for i in range(W):
            rho = f[i] + g[i] * u[i]
            if rho < -lam * theta * g[i] ** 2:
                v.append(u[i] + lam * theta * g[i])
            elif rho > lam * theta * g[i] ** 2:
                v.append(u[i] - lam * theta * g[i])
            else:
                v.append(u[i] - rho / g[i])
        div = [p[0], *(p[i] - p[i - 1] for i in range(1, W - 1)), -p[W - 2]]
        u = [v[i] + theta * div[i] for i in range(W)]
        step = [(u[i + 1] - u[i] if i < W - 1 else 0.0) for i in range(W)]
        p = [(p[i] + tau / theta * step[i]) / (1 + tau / theta * abs(step[i])) for i in range(W)]
    grad = torch.stack([grad[0], torch.zeros_like(grad[0])])
    flow, dual = solve(rho_c, grad, theta=theta, lam=lam, tau=tau, iterations=3)
    torch.testing.assert_close(flow[0].flatten(), torch.tensor(u, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(dual[0, 0].flatten(), torch.tensor(p, dtype=torch.float64), rtol=0, atol=1e-6)
    assert not flow[1].any()


@pytest.mark.parametrize("dim", [X, Y])
@given(H=st.integers(1, 9), W=st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_divergence_is_the_negative_adjoint_of_the_gradient(dim, H, W):
    rng = torch.Generator().manual_seed(H * 10 + W)
    f, p = torch.randn(2, 1, 2, H, W, generator=rng, dtype=torch.float64)
    kernel = classical_kernels().flow_x[0].double()
    forward = (forward_difference(f, kernel, dim) * p).sum()
    adjoint = (f * -backward_difference(p, kernel, dim)).sum()
    torch.testing.assert_close(forward, adjoint, rtol=0, atol=1e-12)


def test_image_gradient_of_a_plane_is_its_slope_everywhere():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    k = classical_kernels()
    grad = image_gradient((3 * x - 2 * y)[None, None], k.image_x[0], k.image_y[0])
    torch.testing.assert_close(grad[0], torch.full_like(grad[0], 3.0))
    torch.testing.assert_close(grad[1], torch.full_like(grad[1], -2.0))


def test_gradcheck_of_every_input_kernel_and_scalar(rng):
    """Perturbed values keep away from the threshold's kinks, where no derivative exists."""
    rho_c, grad = random_problem(rng, 1, 2, 4, 5)
    flow, dual = (
        torch.randn(2, 1, 2, 4, 5, generator=rng).double(),
        torch.rand(2, 2, 1, 2, 4, 5, generator=rng).double(),
    )
    scalars = [torch.tensor(s, dtype=torch.float64) for s in (0.3, 0.15, 0.25)]
    kernels = perturbed_kernels(rng, layers=3, channels=2)[2:]

    def run(rho_c, grad, flow, dual, theta, lam, tau, *kernels):
        kernels = Kernels(*classical_kernels()[:2], *kernels)
        out = solve(rho_c, grad, theta=theta, lam=lam, tau=tau, iterations=3, kernels=kernels, flow=flow, dual=dual)
        return tuple(out)

    inputs = [t.requires_grad_() for t in (rho_c, grad, flow, dual, *scalars, *kernels)]
    assert torch.autograd.gradcheck(run, inputs)


def test_kernels_per_iteration_are_used_in_turn(rng):
    rho_c, grad = random_problem(rng)
    kernels = perturbed_kernels(rng, layers=4)
    whole = solve(rho_c, grad, iterations=4, kernels=kernels)
    flow, dual = None, None
    for i in range(4):
        each = Kernels(*(k[i : i + 1] for k in kernels))
        flow, dual = solve(rho_c, grad, iterations=1, kernels=each, flow=flow, dual=dual)
    torch.testing.assert_close(whole, (flow, dual))


def test_swapping_x_and_y_transposes_the_flow(rng):
    rho_c, grad = random_problem(rng)
    flow, _ = solve(rho_c, grad)
    swapped, _ = solve(rho_c.mT.contiguous(), grad.flip(0).mT.contiguous())
    torch.testing.assert_close(swapped.flip(0).mT, flow)


def test_planes_do_not_see_each_other(rng):
    rho_c, grad = random_problem(rng)
    order = torch.tensor([2, 0, 1])
    flow, _ = solve(rho_c, grad, epsilon=0.02)
    permuted, _ = solve(rho_c[:, order], grad[:, :, order], epsilon=0.02)
    torch.testing.assert_close(permuted, flow[:, :, order])
    alone, _ = solve(rho_c[1:], grad[:, 1:], epsilon=0.02)
    assert torch.equal(alone, flow[:, 1:])


def test_each_image_stops_by_itself(rng):
    """One that stops at once must not stop another, nor go on because the other does."""
    rho_c, grad = random_problem(rng, dtype=torch.float32)
    rho_c[0] *= 1e-4  # hardly moves
    loose, exact = solve(rho_c, grad, epsilon=0.01)[0], solve(rho_c, grad)[0]
    assert torch.equal(loose[:, 0], solve(rho_c, grad, iterations=1)[0][:, 0])
    assert (loose[:, 1] - exact[:, 1]).abs().max() < (solve(rho_c, grad, iterations=1)[0] - exact)[:, 1].abs().max()


def test_float32_agrees_with_float64(rng):
    rho_c, grad = random_problem(rng)
    single, _ = solve(rho_c.float(), grad.float())
    double, _ = solve(rho_c, grad)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_half_precision_is_computed_in_single(rng):
    rho_c, grad = random_problem(rng, dtype=torch.float32)
    half = rho_c.bfloat16(), grad.bfloat16()
    assert torch.equal(solve(*half)[0], solve(half[0].float(), half[1].float())[0])


def test_no_motion_is_no_flow_and_has_finite_gradients():
    rho_c = torch.zeros(1, 2, 5, 5, requires_grad=True)
    grad = torch.zeros(2, 1, 2, 5, 5, requires_grad=True)
    scalars = {n: torch.tensor(v, requires_grad=True) for n, v in (("theta", 0.3), ("lam", 0.15), ("tau", 0.25))}
    flow, _ = solve(rho_c, grad, **scalars)
    assert not flow.any()
    flow.sum().backward()
    for tensor in (rho_c, grad, *scalars.values()):
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"theta": 0.0}, "theta"),
        ({"theta": -0.3}, "theta"),
        ({"theta": float("nan")}, "theta"),
        ({"tau": -0.1}, "tau"),
        ({"lam": -1}, "lam"),
        ({"iterations": -1}, "iterations"),
        ({"iterations": 2.0}, "iterations"),
        ({"engine": "gpu"}, "engine"),
        ({"rho_c": torch.zeros(1, 3, 4)}, "rho_c"),
        ({"rho_c": torch.zeros(1, 3, 4, 6)}, "rho_c"),
        ({"rho_c": torch.zeros(1, 3, 4, 5, dtype=torch.int64)}, "floating"),
        ({"grad": torch.zeros(2, 1, 3, 4, 5, dtype=torch.float64)}, "dtype"),
    ],
)
def test_bad_input_is_named(change, named):
    arguments = {"rho_c": torch.zeros(1, 3, 4, 5), "grad": torch.zeros(2, 1, 3, 4, 5)} | change
    with pytest.raises(ValueError, match=named):
        solve(**arguments)


def test_zero_iterations_and_empty_batches(rng):
    rho_c, grad = random_problem(rng)
    assert not solve(rho_c, grad, iterations=0)[0].any()
    assert solve(rho_c[:0], grad[:, :0])[0].shape == (2, 0, 3, 6, 7)
