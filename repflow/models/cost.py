"""What each system costs: parameters and multiply-adds, counted without computing anything."""

from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from repflow.models.systems import SYSTEMS, build_model

CLASSES, FRAMES, SIDE = 400, 32, 224  # Kinetics-400; one clip
# Multiplications, divisions and roots of a step of the solver, for a pixel of a channel: residual 2, threshold 2, its
# step 2, divergence 8, descent 2, gradient 8, dual step 4, squares and roots of its norms 4 and 2, their step 2,
# division 4.
SOLVER_STEP = 40


def list_models() -> list[dict[str, Any]]:
    """One entry a system: name, paper, inputs, parameters and multiply_adds.

    paper is its row of the paper's table, None where it has none; inputs are what its model is called with, of "clip"
    and "flow", in that order. Parameters and multiply-adds are those of its own backbone and options with 400 classes,
    for a clip of 32 frames of 224x224 pixels. TVNet counts; TV-L1, whose flow is given, does not.
    """
    entries = []
    for name, system in SYSTEMS.items():
        parameters, multiply_adds = _cost(name)
        entries.append(
            {
                "name": name,
                "paper": system.paper,
                "inputs": system.inputs,
                "parameters": parameters,
                "multiply_adds": multiply_adds,
            }
        )
    return entries


@cache
def _cost(name: str) -> tuple[int, int]:
    with FakeTensorMode():  # tensors without values
        model = build_model(name, CLASSES).eval()
        shapes = {"clip": (1, 3, FRAMES, SIDE, SIDE), "flow": (1, 2, FRAMES - 1, SIDE, SIDE)}
        inputs = [torch.empty(shapes[kind]) for kind in SYSTEMS[name].inputs]
        # Attention as plain products, the only form that the counter knows on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


@register_flop_formula(torch.ops.repflow.solve)
def _(rho_c: torch.Size, *rest: object, out_shape: object = None, **_: object) -> int:
    return 2 * SOLVER_STEP * rho_c.numel() * rest[5]
