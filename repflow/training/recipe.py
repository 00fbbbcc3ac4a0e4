"""How a system is trained: one typed set of numbers, with presets by name."""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from repflow.data import Clips
from repflow.data.clips import Samples

PRESETS: dict[str, dict[str, Any]] = {
    # The defaults: for clips of 48x48 pixels and nine frames, a minute on two cores.
    "motion": {"steps": 200},
    # The 2019 release's settings with two changes: its scheduler watched the test split, ours a part of the training
    # fold; and its pixels were inverted, which makes no difference to fresh weights, and which others do not expect.
    "2019": {
        "epochs": 60, "batch": 24, "optimizer": "sgd", "rate": 0.01, "reference_batch": 24, "flow_rate": 0.01,
        "weight_decay": 1e-6, "schedule": "plateau", "clip_norm": None, "dropout": 0.5,
        "frames": 16, "stride": 2, "crop": 112,
    },
    "modern": {
        "epochs": 60, "batch": 64, "rate": 1e-3, "reference_batch": 64, "flow_rate": 0.1, "weight_decay": 0.05,
        "schedule": "cosine", "warmup": 0.05, "label_smoothing": 0.1, "dropout": 0.5,
        "precision": "bf16-mixed", "channels_last": True, "compile": True,
        "frames": 16, "stride": 2, "resize": 128, "crop": 112, "area": (0.25, 1.0), "flip": True,
    },
}  # fmt: skip
_ABOVE_0 = ("steps", "epochs", "batch", "accumulate", "rate", "reference_batch", "clip_norm", "patience",
            "frames", "stride", "validate_every", "save_every", "log_every")  # fmt: skip
_FROM_0 = "flow_rate", "weight_decay", "freeze", "workers", "seed"
_SHARES = "momentum", "warmup", "label_smoothing", "dropout", "validation"


@dataclass(frozen=True)
class Recipe:
    """The settings of a training, without its data and its model. The defaults suit SyntheticMotion.

    Length: either steps of the optimiser, or epochs.
    Batches: batch: clips a step, over all devices; accumulate: parts that a device computes one after another.
    Optimiser: optimizer: AdamW, or SGD with momentum; rate: learning rate of a batch of reference_batch clips, and
        proportional to the batch (Goyal et al. 2017); flow_rate: the rate of the flow layers' own parameters, relative
        to the rest; weight_decay; clip_norm: the gradient's longest norm, None for any (the solver's gradients are
        heavy-tailed).
    Schedule: "cycle": one cycle of the rate (Smith and Topin 2019); "cosine": down to 0, after a linear rise over the
        share `warmup` of the steps; "plateau": a tenth after `patience` validations without a lower loss.
    Frozen: freeze: so many stages, the first of every stream, keep their weights and statistics; freeze_norms: all
        batch norms keep theirs. Flow layers learn in any case.
    Regularisation: label_smoothing; dropout: `build_model`'s; mix: the alphas of MixUp (Zhang et al. 2018) and CutMix
        (Yun et al. 2019), 0 to leave one out; of two, each part of a batch draws one.
    Speed: precision: by its name in Lightning; channels_last: memory format; compile: by `torch.compile`.
    Clips: frames, stride, resize, crop, area, flip, jitter and augment: see `repflow.data.Clips`.
    Validation: validation: its share of the training videos; validate_every: steps, None for an epoch.
    Run folder: save_every, log_every: steps; tensorboard: whether TensorBoard gets the numbers of metrics.csv, too.
    workers: processes that read videos, 0 for none; they change the time alone. seed: of everything random.

    Raises ValueError that names the setting and the values it may have.

        >>> Recipe(steps=400, batch=32).scaled_rate
        0.006
    """

    steps: int | None = None
    epochs: int | None = None
    batch: int = 16
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float = 3e-3
    reference_batch: int = 16
    flow_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    clip_norm: float | None = 5.0
    schedule: Literal["cycle", "cosine", "plateau"] = "cycle"
    warmup: float = 0.0
    patience: int = 7
    freeze: int = 0
    freeze_norms: bool = False
    label_smoothing: float = 0.0
    dropout: float = 0.0
    mix: tuple[float, float] | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    compile: bool = False
    frames: int = 9
    stride: int = 1
    resize: int | None = None
    crop: int | None = None
    area: tuple[float, float] | None = None
    flip: bool = False
    jitter: tuple[float, float, float, float] | None = None
    augment: tuple[int, int] | None = None
    validation: float = 0.1
    validate_every: int | None = None
    save_every: int = 500
    log_every: int = 10
    tensorboard: bool = False
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"expected either steps or epochs, got steps={self.steps} and epochs={self.epochs}")
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal:
                fits, expected = value in get_args(hint), f"one of {', '.join(get_args(hint))}"
            elif name in _ABOVE_0:
                fits, expected = value is None or value > 0, "a number > 0"
            elif name in _FROM_0:
                fits, expected = value >= 0, "a number >= 0"
            else:
                fits, expected = name not in _SHARES or 0 <= value < 1, "a number from 0 to below 1"
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {value!r}")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: expected a divisor of the batch of {self.batch}, got {self.accumulate}")
        if self.mix and not min(self.mix) >= 0 < max(self.mix):
            raise ValueError(f"mix: expected alphas >= 0 of MixUp and CutMix, one of them > 0, got {self.mix}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The recipe of a name in PRESETS, with `changes`; a length in steps replaces one in epochs, and vice versa.

        Raises ValueError for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        lengths = {} if not {"steps", "epochs"} & set(changes) else {"steps": None, "epochs": None}
        return cls(**(PRESETS[name] | lengths | changes))

    @property
    def scaled_rate(self) -> float:
        """The learning rate of the optimiser: `rate`, scaled to the batch."""
        return self.rate * self.batch / self.reference_batch

    def clips(self, source: Samples, *, train: bool, flow: str | None = None, cache: str | None = None) -> Clips:
        """Clips of the videos of `source`, as this recipe samples them."""
        shape = {"resize": self.resize, "crop": self.crop, "flow": flow, "cache": cache, "seed": self.seed}
        names = ("area", "flip", "jitter", "augment") if train else ()
        random = {name: getattr(self, name) for name in names}
        return Clips(source, self.frames, self.stride, train=train, **shape, **random)
