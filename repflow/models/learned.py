"""The flow that a trained model computes inside."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from repflow.layers import ClipFlow
from repflow.official import FlowLayer201902, FlowLayer201906

Flow = tuple[Tensor, Tensor]
LAYERS = ClipFlow, FlowLayer201902, FlowLayer201906


def has_flow_layer(model: nn.Module) -> bool:
    """Whether `learned_flows` finds a flow in `model`."""
    return any(isinstance(module, LAYERS) for module in model.modules())


def learned_flows(model: nn.Module, clip: Tensor) -> list[np.ndarray]:
    """The flow (2, channels, T', H', W') in px/frame of each flow layer in `model`, in the order in which they run.

    clip: (C, T, H, W), as the model takes it, without its batch axis. Flow-of-flow gives two. The layers released in
    2019 count, too. Raises ValueError for a model without a flow layer.
    """
    found: list[np.ndarray] = []

    def keep(flow: Flow, frames_first: bool = False) -> None:
        u_v = torch.stack(flow)
        found.append((u_v.transpose(1, 2) if frames_first else u_v[:, 0]).cpu().numpy())

    # What a layer's forward pass has to tell: its flow, or what it computes it from.
    hooks: dict[type[nn.Module], Callable[..., None]] = {
        ClipFlow: lambda _layer, _inputs, flow: keep(flow),
        FlowLayer201902: lambda _layer, _inputs, flow: keep(flow, frames_first=True),
        FlowLayer201906: lambda layer, inputs, _maps: keep(layer.flow(*inputs)),
    }
    handles = [
        module.register_forward_hook(hook)
        for module in model.modules()
        for kind, hook in hooks.items()
        if isinstance(module, kind)
    ]
    if not handles:
        raise ValueError("expected a model with a flow layer in it, such as repflow_2d, found none")
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(clip[None].to(next(model.parameters())))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found
