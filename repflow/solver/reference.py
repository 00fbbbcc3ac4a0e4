"""The inner iterations of dual TV-L1 in plain PyTorch: the readable oracle, for any device, dtype and autograd."""

import torch
from torch import Tensor

from repflow.solver.operators import Kernels

# Keeps |grad F|^2 and the square root away from zero, where their gradients are infinite. The 2019 code's value.
TINY = 1e-12


def iterate(
    rho_c: Tensor,
    grad: Tensor,
    flow: Tensor,
    dual: Tensor,
    *,
    theta: Tensor,
    lam: Tensor,
    tau: Tensor,
    iterations: int,
    kernels: Kernels,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Run `solve`'s iterations; the same arguments, all checked and present. Returns new (flow, dual).

    rho_c is (N, C, H, W); grad and flow are (2, N, C, H, W); dual is (2, 2, N, C, H, W), first axis the direction
    of the derivative, second axis u or v.
    """
    dual = dual.clone()
    dual[0, ..., -1:], dual[1, ..., -1:, :] = 0, 0  # outside the field, as in `backward_difference`
    slope = grad.square().sum(0) + TINY  # |grad F2|^2; the paper's box prints |F2|^2 here, a misprint
    step = tau / theta
    running = torch.ones(rho_c.shape[0], dtype=torch.bool, device=rho_c.device)
    for k in map(kernels.at, range(iterations)):
        # Data term: the three-branch threshold of the paper in one expression.
        rho = rho_c + (grad * flow).sum(0)
        bound = lam * theta
        w = flow + torch.clamp(-rho / slope, -bound, bound) * grad
        # Smoothness term, through the dual field: u = w + theta div p.
        new = w + theta * k.divergence(dual)
        # Dual ascent. u and v each have their own |grad|, as in every implementation.
        d = k.gradient(new)
        new_dual = (dual + step * d) / (1 + step * (d.square().sum(0) + TINY).sqrt())
        if epsilon == 0:
            flow, dual = new, new_dual
            continue
        # Each image stops by itself, so that a batch gives what its images give alone.
        keep = running[:, None, None, None]
        change = (new - flow).square().mean((2, 3, 4)).sum(0)
        flow, dual = torch.where(keep, new, flow), torch.where(keep, new_dual, dual)
        running = running & (change > epsilon**2)
        if not running.any():
            break
    return flow, dual
