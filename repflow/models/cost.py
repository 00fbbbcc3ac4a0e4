"""What each system costs: parameters and multiply-adds, counted without computing anything."""

from typing import Any

import torch

from repflow.models.systems import SYSTEMS, build_model

CLASSES, FRAMES, SIDE = 400, 32, 224  # Kinetics-400; one clip
# Multiplications, divisions and roots of a step of the solver, for a pixel of a channel: residual 2, threshold 2, its
# step 2, divergence 8, descent 2, gradient 8, dual step 4, squares and roots of its norms 4 and 2, their step 2,
# division 4.
SOLVER_STEP = 40
COSTS = {  # what `count` says of each system, which takes a second each: parameters, multiply-adds
    "rgb_2d": (24_327_632, 130_814_574_592),
    "difference_2d": (24_327_632, 126_726_619_136),
    "flow_2d": (24_324_496, 125_507_141_632),
    "two_stream_2d": (48_652_128, 256_321_716_224),
    "tvnet_2d": (48_652_528, 259_432_628_224),
    "off_rgb_2d": (29_563_232, 146_256_612_544),
    "off_2d": (88_686_560, 428_383_989_696),
    "repflow_2d": (24_378_067, 130_369_798_144),
    "flow_of_flow_2d": (24_679_382, 135_783_170_048),
    "rgb_2plus1d": (29_078_096, 54_225_534_976),
    "flow_2plus1d": (29_056_144, 49_819_680_768),
    "two_stream_2plus1d": (58_134_240, 104_045_215_744),
    "repflow_2plus1d": (29_128_531, 51_654_901_760),
    "flow_of_flow_2plus1d": (29_429_846, 50_202_591_232),
    "flow_of_flow_nonlocal_2plus1d": (29_955_158, 55_501_176_832),
    "rgb_i3d": (12_697_264, 55_576_367_104),
    "flow_i3d": (12_675_312, 51_170_512_896),
    "two_stream_i3d": (25_372_576, 106_746_880_000),
    "rgb_s3d": (8_320_048, 35_957_952_512),
    "flow_s3d": (8_316_912, 34_620_461_056),
    "two_stream_s3d": (16_636_960, 70_578_413_568),
    "rgb_nonlocal": (59_102_416, 62_889_459_712),
    "rgb_r2plus1d_18": (31_505_325, 324_151_828_480),
}


def list_models() -> list[dict[str, Any]]:
    """One entry a system: name, paper, inputs, parameters and multiply_adds.

    paper is its row of the paper's table, None where it has none; inputs are what its model is called with, of "clip"
    and "flow", in that order. Parameters and multiply-adds are those of its own backbone and options with 400 classes,
    for a clip of 32 frames of 224x224 pixels. TVNet counts; TV-L1, whose flow is given, does not.
    """
    return [
        {"name": name, "paper": system.paper, "inputs": system.inputs}
        | dict(zip(("parameters", "multiply_adds"), COSTS[name], strict=True))
        for name, system in SYSTEMS.items()
    ]


def count(name: str) -> tuple[int, int]:
    """Parameters and multiply-adds of a system, as `list_models` tells them."""
    # PyTorch's counter loads its compiler, which takes seconds.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():  # tensors without values
        model = build_model(name, CLASSES).eval()
        shapes = {"clip": (1, 3, FRAMES, SIDE, SIDE), "flow": (1, 2, FRAMES - 1, SIDE, SIDE)}
        inputs = [torch.empty(shapes[kind]) for kind in SYSTEMS[name].inputs]
        ours = {torch.ops.repflow.solve: _solver_flops, torch.ops.repflow.solve_clips: _clips_flops}
        counter = FlopCounterMode(display=False, custom_mapping=ours)
        # Attention as plain products, the only form that the counter knows on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def _solver_flops(rho_c: torch.Size, *rest: object, out_shape: object = None, **_: object) -> int:
    return 2 * SOLVER_STEP * rho_c.numel() * rest[5]


def _clips_flops(_clips: torch.Size, *rest: object, out_shape: torch.Size, **_: object) -> int:
    return SOLVER_STEP * out_shape.numel() * rest[3]  # u and v are one step
