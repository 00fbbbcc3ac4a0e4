"""A model that learns: one step from the parts of a batch, with its optimiser, schedule and precision."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from repflow.models import inputs_of
from repflow.models.streams import Stream
from repflow.training.batches import Batch
from repflow.training.recipe import Recipe
from repflow.training.surroundings import seed_step

# The flow layers' own parameters, kernels and scalars: of ClipFlow and TVNet, and of the layers released in 2019.
FLOW_PARAMETERS = re.compile(r"(?:^|\.)(?:tau|lam|theta|(?:image|flow|div)_[xy]|(?:img|f)_grad2?|div2?|[tla])$")
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


class Learner:
    """A model on its device with its optimiser, schedule and precision, and the `losses` of its steps so far.

    steps: of the whole run, for the schedule; state: a checkpoint to go on from, whose weights `model` already has.
    Raises ValueError for a recipe that freezes more stages than a stream has.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        num_classes: int,
        recipe: Recipe,
        steps: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if recipe.channels_last:
            _channels_last(model)
        if recipe.compile:
            model.compile()
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # PyTorch has none for CPUs
        self.fabric, self.recipe, self.model = fabric, recipe, fabric.to_device(model)
        self.frozen = _frozen(model, recipe)
        for part in self.frozen:
            part.requires_grad_(False)  # without a gradient the optimiser leaves it alone, weight decay included
        self.train()
        self.mix = _mix(recipe.mix, num_classes) if recipe.mix else None
        # Not by fabric.setup: in mixed precision its wrapper rounds the clips before the network has scaled them.
        self.network = fabric.strategy.setup_module(self.model)
        self.optimizer = _optimizer(model, recipe)
        self.schedule = _schedule(self.optimizer, recipe, steps)
        self.losses: list[float] = []
        self._part_losses: list[Tensor] = []  # that were not read yet: reading each would stall a GPU
        if state:
            self.losses = state["losses"].tolist()
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            fabric.strategy.precision.load_state_dict(state["precision"])

    def train(self) -> None:
        """Set the model to training, all but its frozen parts."""
        self.model.train()
        for part in self.frozen:
            part.eval()

    def take_step(self, step: int, parts: Iterable[Batch]) -> None:
        """Train on the parts of a step's batch; steps count from 0."""
        self.optimizer.zero_grad()
        for part, batch in enumerate(parts):
            inputs, labels = self.fabric.to_device(batch)
            seed_step(self.recipe.seed, step, part, self.fabric.global_rank)
            inputs = inputs_of(self.model, inputs)
            if self.mix:
                inputs, labels = self.mix(inputs, labels)
            is_last = part == self.recipe.accumulate - 1
            # Several processes average their gradients once a step, after the last part.
            with nullcontext() if is_last or self.fabric.world_size == 1 else self.network.no_sync():
                with self.fabric.autocast():
                    scores = self.network(*inputs)
                    loss = F.cross_entropy(scores, labels, label_smoothing=self.recipe.label_smoothing)
                self.fabric.backward(loss / self.recipe.accumulate)
            self._part_losses.append(loss.detach())
        if self.recipe.clip_norm:
            limit = self.recipe.clip_norm
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        self.fabric.strategy.optimizer_step(self.optimizer)
        if self.recipe.schedule != "plateau":
            self.schedule.step()

    def read_losses(self) -> list[float]:
        """Add the losses since the last call to `losses`, and return them: means over the parts and all processes."""
        losses = torch.stack(self._part_losses).float().unflatten(0, (-1, self.recipe.accumulate)).mean(1)
        self._part_losses.clear()
        new = self.fabric.all_reduce(losses, reduce_op="mean").tolist()
        self.losses += new
        return new

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """The parameters for an optimiser in two groups, the flow layers' own last, each with its learning rate.

    A parameter's name decides. A group without parameters is left out.

        >>> groups = parameter_groups(build_model("repflow_2d", 12), Recipe(steps=1, rate=0.1, flow_rate=0.01))
        >>> [group["lr"] for group in groups]
        [0.1, 0.001]
    """
    others, flow = [], []
    for name, parameter in model.named_parameters():
        (flow if FLOW_PARAMETERS.search(name) else others).append(parameter)
    groups = (others, recipe.scaled_rate), (flow, recipe.scaled_rate * recipe.flow_rate)
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def _frozen(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """The parts of `model` that `recipe` does not train."""
    streams = [module for module in model.modules() if isinstance(module, Stream)]
    most = min((len(stream.stages) for stream in streams), default=0)
    if recipe.freeze > most:
        raise ValueError(f"freeze: expected at most the {most} stages of the model's backbone, got {recipe.freeze}")
    stages = [stage for stream in streams for stage in stream.stages[: recipe.freeze]]
    return stages + [module for module in model.modules() if recipe.freeze_norms and isinstance(module, NORMS)]


def _mix(alphas: tuple[float, float], num_classes: int) -> Callable[[list[Tensor], Tensor], tuple]:
    """A function that mixes each clip of a batch with another one, and their flow and labels in the same way.

    The labels (N,) become shares of the classes, (N, num_classes).
    """
    from torchvision.transforms import v2  # takes seconds
    from torchvision.tv_tensors import Video

    kinds = zip((v2.MixUp, v2.CutMix), alphas, strict=True)
    choice = v2.RandomChoice([kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha])

    def mix(inputs: list[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
        inputs, labels = choice([Video(x) for x in inputs], labels)
        return [x.as_subclass(Tensor) for x in inputs], labels

    return mix


def _optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _schedule(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """The schedule over all `steps` of a run. A plateau's is stepped with the loss of each validation."""
    if recipe.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, patience=recipe.patience)
    if recipe.schedule == "cycle":
        return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps)
    warmup = min(round(recipe.warmup * steps), steps - 1)
    return LambdaLR(optimizer, partial(_cosine, steps=steps, warmup=warmup))


def _cosine(step: int, steps: int, warmup: int) -> float:
    """The factor of the rate at a step, counted from 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _channels_last(model: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
