"""Dual TV-L1's inner iterations: one function, `solve`, for images, feature maps and flow-of-flow.

Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow" (2007); per channel of a feature
map in Piergiovanni and Ryoo, "Representation flow for action recognition" (CVPR 2019), algorithm 1.
"""

from numbers import Real

import torch
from torch import Tensor

from repflow.solver import reference
from repflow.solver.operators import Kernels, classical_kernels, image_gradient

__all__ = ["Kernels", "classical_kernels", "image_gradient", "solve"]

ENGINES = ("auto", "reference")


def solve(
    rho_c: Tensor,
    grad: Tensor,
    *,
    theta: float | Tensor = 0.3,
    lam: float | Tensor = 0.15,
    tau: float | Tensor = 0.25,
    iterations: int = 20,
    kernels: Kernels | None = None,
    flow: Tensor | None = None,
    dual: Tensor | None = None,
    epsilon: float = 0.0,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Minimise  TV(u) + TV(v) + lam |rho_c + grad . (u, v)|  by `iterations` steps, plane by plane.

    rho_c: (N, C, H, W), the constant part of the linearised brightness difference: F2 - F1, or where frame 2 was
        warped by a flow u0,  F2(x + u0) - grad . u0 - F1.
    grad: (2, N, C, H, W), the gradient (d/dx, d/dy) of frame 2, in the same grey levels per pixel.
    theta, lam, tau: coupling, data weight and dual step; numbers, or tensors of one element that may be learned.
        A larger lam follows the data more, a larger theta smooths faster; tau/theta is the dual step's length.
    kernels: difference kernels (`operators`); the classical ones where None. The image kernels are not used here.
    flow, dual: where to start: (2, N, C, H, W) and (2, 2, N, C, H, W); zeros where None.
    epsilon: an image stops when its flow's root-mean-square change falls to this many pixels; 0 never stops.

    Returns (flow, dual) after the last step: flow[0] is u (to the right), flow[1] is v (down), in pixels per frame.
    Float32 and float64 keep their dtype, half precision is computed in float32. Raises ValueError where shapes,
    devices, numbers or the engine don't fit.
    """
    _check_problem(rho_c, grad, engine)
    _check_numbers(theta, lam, tau, iterations, epsilon)
    if rho_c.dtype in (torch.float16, torch.bfloat16):
        rho_c, grad = rho_c.float(), grad.float()
    theta, lam, tau = (torch.as_tensor(s, dtype=rho_c.dtype, device=rho_c.device) for s in (theta, lam, tau))
    return reference.iterate(
        rho_c,
        grad,
        torch.zeros_like(grad) if flow is None else flow.to(rho_c),
        grad.new_zeros(2, *grad.shape) if dual is None else dual.to(rho_c),
        theta=theta,
        lam=lam,
        tau=tau,
        iterations=iterations,
        kernels=(kernels or classical_kernels()).to(rho_c),
        epsilon=epsilon,
    )


def _check_problem(rho_c: Tensor, grad: Tensor, engine: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if rho_c.ndim != 4 or grad.shape != (2, *rho_c.shape):
        raise ValueError(
            f"expected rho_c (N, C, H, W) and grad (2, N, C, H, W), got {tuple(rho_c.shape)} and {tuple(grad.shape)}"
        )
    if not rho_c.is_floating_point() or rho_c.dtype != grad.dtype or rho_c.device != grad.device:
        raise ValueError(
            "rho_c and grad must be floating point, of one dtype, on one device; "
            f"got {rho_c.dtype} on {rho_c.device} and {grad.dtype} on {grad.device}"
        )


def _check_numbers(
    theta: float | Tensor, lam: float | Tensor, tau: float | Tensor, iterations: int, epsilon: float
) -> None:
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations: expected a whole number >= 0, got {iterations!r}")
    # A learned scalar lives on its device: looking at it would stall a GPU, so only plain numbers are checked.
    if isinstance(theta, Real) and not theta > 0:
        raise ValueError(f"theta: expected a number > 0, got {theta!r}")
    for name, value in (("lam", lam), ("tau", tau), ("epsilon", epsilon)):
        if isinstance(value, Real) and not value >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value!r}")
