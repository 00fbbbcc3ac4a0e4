"""The flow that a trained model computes inside."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from repflow.layers import ClipFlow
from repflow.official import FlowLayer201902, FlowLayer201906

# Of each kind of flow layer: its flow (2, channels, T', H', W'), from the layer, its inputs and what its forward pass
# returns, all for one clip.
FLOWS: dict[type[nn.Module], Callable[..., Tensor]] = {
    ClipFlow: lambda _layer, _inputs, flow: torch.stack(flow)[:, 0],
    FlowLayer201902: lambda _layer, _inputs, flow: torch.stack(flow).transpose(1, 2),  # frames come first
    FlowLayer201906: lambda layer, inputs, _maps: torch.stack(layer.flow(*inputs))[:, 0],
}


def has_flow_layer(model: nn.Module) -> bool:
    """Whether `learned_flows` finds a flow in `model`."""
    return any(isinstance(module, tuple(FLOWS)) for module in model.modules())


def learned_flows(model: nn.Module, clip: Tensor) -> list[np.ndarray]:
    """The flow (2, channels, T', H', W') in px/frame of each flow layer in `model`, in the order in which they run.

    clip: (C, T, H, W), as the model takes it, without its batch axis. Flow-of-flow gives two. The layers released in
    2019 count, too. Raises ValueError for a model without a flow layer.
    """
    found: list[np.ndarray] = []

    def keep(layer: nn.Module, *passed: object) -> None:
        flow_of = next(flow_of for kind, flow_of in FLOWS.items() if isinstance(layer, kind))
        found.append(flow_of(layer, *passed).cpu().numpy())

    handles = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, tuple(FLOWS))]
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
