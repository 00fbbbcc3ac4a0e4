"""What Lightning trains: a loss, an optimiser whose rates go by parameter names, a schedule."""

import logging
import math
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from repflow.models import inputs_of
from repflow.training.recipe import Recipe

# The flow layers' own parameters, kernels and scalars: of ClipFlow and TVNet, and of the layers released in 2019.
FLOW_PARAMETERS = re.compile(r"(?:^|\.)(?:tau|lam|theta|(?:image|flow|div)_[xy]|(?:img|f)_grad2?|div2?|[tla])$")


class Classification(L.LightningModule):
    """Cross-entropy of a model on (clips, labels), or on ((clips, flow), labels). steps: of the whole schedule."""

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self.model, self.recipe, self.steps = model, recipe, steps
        self.losses: list[Tensor] = []  # of the parts of the steps since they were read last

    def training_step(self, batch: tuple[Tensor | list[Tensor], Tensor]) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(
            self.model(*inputs_of(self.model, inputs)), labels, label_smoothing=self.recipe.label_smoothing
        )
        self.losses.append(loss.detach())  # read later: reading now would stall a GPU
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        recipe, groups = self.recipe, parameter_groups(self.model, self.recipe)
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        # The plateau's loss comes from the validation, which steps that schedule itself.
        if recipe.schedule == "plateau":
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        if self.recipe.schedule == "cycle":
            return OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=self.steps)
        warmup = min(round(self.recipe.warmup * self.steps), self.steps - 1)
        return LambdaLR(optimizer, partial(_cosine, steps=self.steps, warmup=warmup))


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """The parameters for an optimiser: all but the flow layers' own, and these, each with its learning rate.

    A parameter's name decides, never its value. A group without parameters is left out.
    """
    named = list(model.named_parameters())
    factors = {False: 1.0, True: recipe.flow_rate}
    groups = [
        {
            "params": [p for name, p in named if bool(FLOW_PARAMETERS.search(name)) == is_flow],
            "lr": recipe.scaled_rate * factor,
        }
        for is_flow, factor in factors.items()
    ]
    return [group for group in groups if group["params"]]


def _cosine(step: int, steps: int, warmup: int) -> float:
    """The rate's share at a step, counted from 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within, Lightning says little, and random states may be set; afterwards all is as it was."""
    # It tells of every device that is not used, and that workers might be faster: they are not, for small files.
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level, states = logger.level, (random.getstate(), np.random.get_state())
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        for message in (".*does not have many workers", ".*treespec, LeafSpec"):
            warnings.filterwarnings("ignore", message)
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)
            random.setstate(states[0])
            np.random.set_state(states[1])


def quiet_trainer(**options: object) -> L.Trainer:
    """Lightning's trainer without its own files."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return L.Trainer(**quiet, **options)
