"""Dual TV-L1's inner iterations: one function, `solve`, for images, feature maps and flow-of-flow.

Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow" (2007); per channel of a feature
map in Piergiovanni and Ryoo, "Representation flow for action recognition" (CVPR 2019), algorithm 1.

Three engines compute it: `reference` is the mathematics in plain PyTorch; `cpu` (Numba) and `cuda` (Triton) are the
same in compiled code, with an adjoint of their own. These two stand behind one operator of PyTorch's, `repflow::solve`.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from numbers import Real

import torch
from torch import Tensor

from repflow.arguments import whole_number
from repflow.solver import reference
from repflow.solver.operators import Kernels, classical_kernels, image_gradient

__all__ = ["ENGINES", "Kernels", "chosen_engine", "classical_kernels", "image_gradient", "solve", "solve_clips"]

ENGINES = ("auto", "reference", "cpu", "cuda")
HALF = (torch.float16, torch.bfloat16)


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
    flow, dual: where to start: (2, N, C, H, W) and (2, 2, N, C, H, W); zeros where None. The dual field has no
        values in the last column (x) and row (y): they count as 0.
    epsilon: an image stops when its flow's root-mean-square change falls to this many pixels; 0 never stops.
    engine: "cpu" and "cuda" are fast and compute in float32, with first derivatives; "reference" takes any device,
        float64, and derivatives of any order; "auto" is the fast one where there is one.

    Returns (flow, dual) after the last step: flow[0] is u (to the right), flow[1] is v (down), in pixels per frame.
    Float32 and float64 keep their dtype, half precision is computed in float32. Raises ValueError where shapes,
    devices, numbers or the engine don't fit.
    """
    _check_problem(rho_c, grad, flow, dual, kernels)
    iterations = whole_number("iterations", iterations, 0)
    _check_numbers(theta, lam, tau, epsilon)
    dtype = torch.float32 if rho_c.dtype in HALF else rho_c.dtype
    flow, dual = (None if start is None else start.to(rho_c.device, dtype) for start in (flow, dual))
    scalars = [_scalar(value, dtype, rho_c.device) for value in (theta, lam, tau)]
    kernels = kernels or classical_kernels(rho_c.device)
    if chosen_engine(engine, rho_c) != "reference":
        taps = _taps(kernels.to(scalars[0]))
        numbers = torch.stack(scalars)
        flow, dual, _ = torch.ops.repflow.solve(rho_c, grad, flow, dual, numbers, taps, iterations, float(epsilon))
        return flow, dual
    rho_c, grad = rho_c.to(dtype), grad.to(dtype)
    return reference.iterate(
        rho_c,
        grad,
        torch.zeros_like(grad) if flow is None else flow,
        grad.new_zeros(2, *grad.shape) if dual is None else dual,
        theta=scalars[0],
        lam=scalars[1],
        tau=scalars[2],
        iterations=iterations,
        kernels=kernels.to(rho_c),
        epsilon=epsilon,
    )


def solve_clips(
    clips: Tensor,
    *,
    theta: float | Tensor = 0.3,
    lam: float | Tensor = 0.15,
    tau: float | Tensor = 0.25,
    iterations: int = 20,
    kernels: Kernels | None = None,
    engine: str = "auto",
) -> Tensor:
    """The flow from each frame of clips (B, C, T, H, W) to the next: (B, 2, C, T-1, H, W), u and v, from zero.

    It is `solve`'s for rho_c = F2 - F1 and grad = `image_gradient(F2)`; other arguments, dtypes and errors as there.
    The fast engines compute both where they use them, plane by plane, unless planes are large.

    >>> u, v = solve_clips(255 * torch.rand(1, 8, 16, 28, 28)).unbind(1)
    """
    _check_clips(clips, kernels)
    iterations = whole_number("iterations", iterations, 0)
    clips = clips.float() if clips.dtype in HALF else clips  # too few digits for values in 0..255 and their differences
    kernels = (kernels or classical_kernels(clips.device)).to(clips)
    if _taken_whole(clips, engine):
        _check_numbers(theta, lam, tau, 0.0)
        numbers = torch.stack([_scalar(value, clips.dtype, clips.device) for value in (theta, lam, tau)])
        image_taps = torch.cat([kernel[0].expand(clips.shape[1], 3) for kernel in kernels[:2]], 1)
        return torch.ops.repflow.solve_clips(clips, numbers, _taps(kernels), image_taps, iterations)
    frames = clips.transpose(1, 2)
    f1, f2 = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    grad = image_gradient(f2, kernels.image_x[0], kernels.image_y[0])
    options = {"theta": theta, "lam": lam, "tau": tau, "iterations": iterations, "kernels": kernels, "engine": engine}
    flow, _ = solve(f2 - f1, grad, **options)
    return flow.unflatten(1, (len(clips), frames.shape[1] - 1)).permute(1, 0, 3, 2, 4, 5)


def _taken_whole(clips: Tensor, engine: str) -> bool:
    """Whether an engine takes whole clips: not when PyTorch traces, for an exported graph has one operator, `solve`."""
    engine = chosen_engine(engine, clips)
    if engine == "reference" or torch.compiler.is_compiling():
        return False
    return clips.shape[-2:].numel() <= import_module(f"repflow.solver.{engine}").LARGE


def chosen_engine(engine: str, rho_c: Tensor) -> str:
    """The engine that computes. Raises ValueError where the one that was named cannot."""
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "reference":
        return engine
    wanted = rho_c.device.type if engine == "auto" else engine
    if wanted not in ENGINES:
        obstacle = f"there is no engine for {wanted}"
    elif rho_c.device.type != wanted:
        obstacle = f"the tensors are on {rho_c.device}"
    elif rho_c.dtype == torch.float64:
        obstacle = "it computes in float32, and the tensors are float64"
    elif wanted == "cuda" and find_spec("triton") is None:
        obstacle = "the package triton is not installed"
    else:
        return wanted
    if engine == "auto":
        return "reference"
    raise ValueError(f"engine={engine!r} cannot run: {obstacle}; take engine='auto', or 'reference', which always can")


def _scalar(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, dtype).reshape(())
    return torch.full((), value, dtype=dtype, device=device)  # unlike a copy, it doesn't wait for a GPU


def _taps(kernels: Kernels) -> Tensor:
    """Flow and divergence kernels as one tensor (L, C, 8), where L and C are the largest of them."""
    kernels = kernels[2:]
    L, C = (max(kernel.shape[dim] for kernel in kernels) for dim in (0, 1))
    return torch.cat([kernel.expand(L, C, 2) for kernel in kernels], 2)


def _check_problem(
    rho_c: Tensor, grad: Tensor, flow: Tensor | None, dual: Tensor | None, kernels: Kernels | None
) -> None:
    if rho_c.ndim != 4 or grad.shape != (2, *rho_c.shape):
        raise ValueError(
            f"expected rho_c (N, C, H, W) and grad (2, N, C, H, W), got {tuple(rho_c.shape)} and {tuple(grad.shape)}"
        )
    if not rho_c.is_floating_point() or rho_c.dtype != grad.dtype or rho_c.device != grad.device:
        raise ValueError(
            "rho_c and grad must be floating point, of one dtype, on one device; "
            f"got {rho_c.dtype} on {rho_c.device} and {grad.dtype} on {grad.device}"
        )
    for name, start, shape in (("flow", flow, grad.shape), ("dual", dual, (2, *grad.shape))):
        if start is not None and start.shape != shape:
            raise ValueError(f"{name}: expected the shape {tuple(shape)}, got {tuple(start.shape)}")
    _check_kernels(kernels, rho_c.shape[1])


def _check_clips(clips: Tensor, kernels: Kernels | None) -> None:
    if clips.ndim != 5 or clips.shape[2] < 2 or not clips.is_floating_point():
        raise ValueError(
            "expected floating-point clips (B, C, T, H, W) with T >= 2, "
            f"got a tensor of shape {tuple(clips.shape)} and {clips.dtype}"
        )
    _check_kernels(kernels, clips.shape[1])


def _check_kernels(kernels: Kernels | None, channels: int) -> None:
    for name, kernel in (kernels._asdict() if kernels else {}).items():
        taps = 3 if name.startswith("image") else 2
        if kernel.ndim != 3 or not len(kernel) or kernel.shape[1] not in (1, channels) or kernel.shape[2] != taps:
            raise ValueError(
                f"kernels.{name}: expected the shape (L, 1 or {channels}, {taps}), got {tuple(kernel.shape)}"
            )


def _check_numbers(theta: float | Tensor, lam: float | Tensor, tau: float | Tensor, epsilon: float) -> None:
    # A learned scalar lives on its device: looking at it would stall a GPU, so only plain numbers are checked.
    if isinstance(theta, Real) and not theta > 0:
        raise ValueError(f"theta: expected a number > 0, got {theta!r}")
    for name, value in (("lam", lam), ("tau", tau), ("epsilon", epsilon)):
        if isinstance(value, Real) and not value >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value!r}")


# The operator. It is opaque to PyTorch's compiler, which needs to know shapes alone (`_fake`); what it saves for its
# adjoint are its inputs, whatever the number of iterations. `torch.library.custom_op` would say the same in fewer
# lines, but loads the compiler, which takes seconds, at the first call.


def _of_engine(engine: str, function: str) -> Callable:
    """A function of an engine's module, which is loaded at the first call."""
    return lambda *arguments: getattr(import_module(f"repflow.solver.{engine}"), function)(*arguments)


def _fake(rho_c: Tensor, grad: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return (
        grad.new_empty(grad.shape, dtype=torch.float32),
        grad.new_empty(2, *grad.shape, dtype=torch.float32),
        rho_c.new_empty(rho_c.shape[0], dtype=torch.int64),
    )


def _fake_adjoint(flow_bar: object, dual_bar: object, *inputs: Tensor | int | None) -> tuple[Tensor, ...]:
    numbers = inputs[4]
    return tuple(numbers.new_empty(0 if t is None else t.shape) for t in inputs[:6])


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], output[2])
    ctx.iterations = inputs[6]


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, flow_bar: Tensor | None, dual_bar: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # looked at once: a checkpoint lets go of what it has given
    # The steps of each image, and the most there can be: a GPU's memory is laid out for these without a look.
    gradients = torch.ops.repflow.solve_adjoint(flow_bar, dual_bar, *saved, ctx.iterations)
    needed = zip(gradients, saved, ctx.needs_input_grad, strict=False)
    return *(gradient.to(t) if need else None for gradient, t, need in needed), None, None


def _fake_clips(clips: Tensor, *_: object) -> Tensor:
    B, C, T, H, W = clips.shape
    return clips.new_empty(B, 2, C, T - 1, H, W)


def _fake_clips_adjoint(_: Tensor, *inputs: Tensor | int) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in inputs[:4])


def _save_clips(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.iterations = inputs[4]


def _differentiate_clips(ctx: torch.autograd.function.FunctionCtx, flow_bar: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.repflow.solve_clips_adjoint(flow_bar, *ctx.saved_tensors, ctx.iterations), None


def _refuse(*_: object) -> None:
    raise NotImplementedError("the fast engines have first derivatives only; take engine='reference' for second ones")


def _register() -> None:
    library = torch.library
    library.define(
        "repflow::solve",
        "(Tensor rho_c, Tensor grad, Tensor? flow, Tensor? dual, Tensor numbers, Tensor taps, int iterations, "
        "float epsilon) -> (Tensor flow, Tensor dual, Tensor steps)",
    )
    library.define(
        "repflow::solve_adjoint",
        "(Tensor? flow_bar, Tensor? dual_bar, Tensor rho_c, Tensor grad, Tensor? flow, Tensor? dual, Tensor numbers, "
        "Tensor taps, Tensor steps, int iterations) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    library.register_fake("repflow::solve", _fake)
    library.register_autograd("repflow::solve", _differentiate, setup_context=_save)
    library.register_fake("repflow::solve_adjoint", _fake_adjoint)
    library.register_autograd("repflow::solve_adjoint", _refuse)
    library.define(
        "repflow::solve_clips",
        "(Tensor clips, Tensor numbers, Tensor taps, Tensor image_taps, int iterations) -> Tensor",
    )
    library.define(
        "repflow::solve_clips_adjoint",
        "(Tensor flow_bar, Tensor clips, Tensor numbers, Tensor taps, Tensor image_taps, int iterations) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    )
    library.register_fake("repflow::solve_clips", _fake_clips)
    library.register_autograd("repflow::solve_clips", _differentiate_clips, setup_context=_save_clips)
    library.register_fake("repflow::solve_clips_adjoint", _fake_clips_adjoint)
    library.register_autograd("repflow::solve_clips_adjoint", _refuse)
    for engine in ("cpu", "cuda"):
        for ending in ("", "_clips"):
            library.impl(f"repflow::solve{ending}", engine, _of_engine(engine, f"forward{ending}"))
            library.impl(f"repflow::solve{ending}_adjoint", engine, _of_engine(engine, f"backward{ending}"))
            library.register_autocast(f"repflow::solve{ending}", engine, torch.float32)


if not hasattr(torch.ops.repflow, "solve"):  # PyTorch takes an operator once a process; this module may be reloaded
    _register()
