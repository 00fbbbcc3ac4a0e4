"""How soon a network with a flow layer reaches an accuracy, with and without the layer's skip connection."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from repflow.data import Clips
from repflow.files import read_csv
from repflow.lab.sweeps import real_video, study
from repflow.layers import RepresentationFlow

LEVELS = 40, 60  # top-1 in percent


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training of a tiny `repflow_2d`, tested again and again on its way.

    video: "generated", SyntheticMotion as in `study`, or "real", five classes of UCF101 as in `real_video`.
    skip, init_scale: see `RepresentationFlow`. steps: of the optimiser. every: so many steps there is a test.
    fold: of UCF101's official lists. data: its folder; None: ucf101 where repflow keeps data.
    """

    video: Literal["generated", "real"] = "generated"
    skip: bool = True
    init_scale: float = 1.0
    steps: int = 300
    every: int = 20
    fold: int = 1
    seed: int = 0
    data: str | None = None

    def make_clips(self) -> tuple[Clips, Clips]:
        """Clips to train on and to test on, one of each video."""
        if self.video == "generated":
            generated = study.Setting(seed=self.seed)
            training, test = generated.make_clips()
            options = {"frames": generated.frames}
        else:
            real = real_video.Setting(system="repflow_2d", fold=self.fold, seed=self.seed, data=self.data)
            (training, test), options = real.videos(), real.clip_options()
        seeded = {"seed": self.seed, **options}
        return Clips(training, train=True, flip=self.video == "real", **seeded), Clips(test, train=False, **seeded)


def convergence(**values: Any) -> dict[str, float]:
    """Train and return the steps after which top-1 on test clips first reached each of LEVELS, and the last top-1.

    A level that was never reached counts as steps + every. The keywords and their defaults are the fields of `Setting`.

        >>> convergence(skip=False)["steps_to_60"]
    """
    from repflow.training import Recipe, train

    setting = Setting(**values)
    training, test = setting.make_clips()
    batch = min(16, len(training))
    recipe = Recipe(setting.steps, batch=batch, reference_batch=batch, validate_every=setting.every, seed=setting.seed)
    options = {"backbone": "tiny_2d", "skip": setting.skip, "init_scale": setting.init_scale}
    with TemporaryDirectory() as folder:
        train("repflow_2d", training, len(test.classes), recipe, folder=folder, validation=test, **options)
        rows = [row for row in read_csv(Path(folder) / "metrics.csv") if row["val_top1"]]
    reached = {int(row["step"]): float(row["val_top1"]) for row in rows}

    def steps_to(level: int) -> int:
        return min((step for step, top1 in reached.items() if top1 >= level), default=setting.steps + setting.every)

    return {f"steps_to_{level}": steps_to(level) for level in LEVELS} | {"top1": reached[setting.steps]}


convergence.__signature__ = inspect.signature(Setting)


def check(**values: Any) -> None:
    """Raise ValueError for what `convergence` cannot do; nothing is trained."""
    study.check_least(values, steps=1, every=1)
    RepresentationFlow(1, skip=values["skip"], init_scale=values["init_scale"])
