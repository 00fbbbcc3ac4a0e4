"""The table of systems: which flow layer goes where in which backbone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from repflow.layers import FlowOfFlow, RepresentationFlow
from repflow.models.backbones import Backbone, tiny_2d


@dataclass(frozen=True)
class System:
    """One row of the table: the paper's name for it, and the flow layer between two stages, if any."""

    paper: str
    flow_layer: Callable[..., nn.Module] | None


SYSTEMS = {
    "rgb_2d": System("2D RGB", None),
    "repflow_2d": System("2D + Rep-Flow", RepresentationFlow),
    "flow_of_flow_2d": System("2D + flow-conv-flow", FlowOfFlow),
}


class Recogniser(nn.Module):
    """Stages, a flow layer after one of them, and a classifier of every frame whose scores are averaged over time.

    (B, 3, T, H, W) in [-1, 1] -> (B, num_classes) scores.
    """

    def __init__(self, backbone: Backbone, flow: nn.Module | None, flow_after: int, num_classes: int) -> None:
        super().__init__()
        self.below, self.above = (
            nn.Sequential(*part) for part in (backbone.stages[:flow_after], backbone.stages[flow_after:])
        )
        self.flow = flow
        self.classify = nn.Linear(backbone.widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.below(x)
        if self.flow is not None:
            x = self.flow(x)
        x = self.above(x)
        return self.classify(x.mean((3, 4)).transpose(1, 2)).mean(1)


def build_model(
    name: str, num_classes: int, *, flow_after: int = 2, bottleneck: int = 8, iterations: int = 10
) -> Recogniser:
    """A system of `list_models()` with fresh weights.

    flow_after: how many stages stand before the flow layer (the paper's best place: after the third residual block).
    bottleneck, iterations: the flow layer's channels and steps; see `RepresentationFlow`. Ignored without one.
    Raises ValueError for an unknown name or place.
    """
    if name not in SYSTEMS:
        raise ValueError(f"model: expected one of {', '.join(SYSTEMS)}, got {name!r}")
    backbone = tiny_2d()
    last = len(backbone.stages)
    if flow_after not in range(1, last + 1):
        raise ValueError(f"flow_after: expected 1 to {last}, the stages of this backbone, got {flow_after!r}")
    layer = SYSTEMS[name].flow_layer
    flow = layer and layer(backbone.widths[flow_after - 1], bottleneck=bottleneck, iterations=iterations)
    return Recogniser(backbone, flow, flow_after, num_classes)


def list_models() -> list[dict[str, str | int]]:
    """One entry a system: name, row of the paper's table, parameters (for 12 classes)."""
    return [
        {
            "name": name,
            "paper": system.paper,
            "parameters": sum(p.numel() for p in build_model(name, 12).parameters()),
        }
        for name, system in SYSTEMS.items()
    ]
