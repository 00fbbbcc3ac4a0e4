"""Train the small networks that come with the package, and write results/weights: `python tools/weights.py`.

Each file is a checkpoint of `repflow train` as safetensors, with the run's configuration in the file's metadata;
README.md beside them is their card. The generated clips go to a temporary folder; ten minutes on two cores.
"""

import json
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from repflow.data import Clips, SyntheticMotion
from repflow.files import markdown_table
from repflow.official.checkpoints import SHIPPED
from repflow.records import environment, results_folder
from repflow.training import Recipe, motion_accuracy, predict, read_checkpoint, train

SYSTEMS = {
    "repflow_2d": "tiny_2d",
    "flow_of_flow_2d": "tiny_2d",
    "repflow_2plus1d": "tiny_2plus1d",
    "flow_of_flow_2plus1d": "tiny_2plus1d",
}
MADE = {"train": 120, "test": 40, "seed": 0}  # clips a class
RECIPE = Recipe(steps=600, seed=0)
FRAMES = 9
CARD = """# Weights that come with the package

Small networks from scratch, trained on SyntheticMotion: twelve classes of generated video that are told by motion
alone. By name instead of a path they serve as a checkpoint:

```python
from repflow.training import open_checkpoint

model, clips, config, classes = open_checkpoint("flow_of_flow_2d")
```

    repflow flow my.mp4 --out seen.gif --checkpoint flow_of_flow_2d
    repflow classify my.mp4 --checkpoint flow_of_flow_2d

They know no people, no scenes and no sizes but 48 × 48 pixels; on your videos they show what a flow layer sees, and the
classes say how the picture moves. `--init-from NAME` starts a training from them.

{table}

Recipe: {steps} steps of {batch} clips, rate {rate:g}, one cycle, seed {seed}; {clips} clips a class to train on,
{test} others to test on, {frames} frames of 48 × 48. Made by `python tools/weights.py` with PyTorch {torch},
repflow {repflow} at commit {commit:.9}. Licence: MIT, as the package. Each file holds its run's
whole configuration as metadata.
"""


def ship(system: str, backbone: str, folder: Path, out: Path) -> dict[str, float]:
    """Train a system, write its file to `out`, and return its accuracies on test clips in percent."""
    training, test = (SyntheticMotion(folder / "set", subset) for subset in ("train", "test"))
    clips = Clips(training, FRAMES, train=True, seed=RECIPE.seed)
    trained = train(system, clips, len(test.classes), RECIPE, folder=folder / system, backbone=backbone)
    scores = predict(trained.model, Clips(test, FRAMES, train=False))
    accuracy = motion_accuracy(scores, [label for _, label in test.samples], test.classes)
    state = read_checkpoint(max((folder / system / "checkpoints").glob("step-*.pt")))
    state["config"]["about"] |= {"set": "synthetic", "accuracy": accuracy, **environment()}
    record = {name: state[name] for name in ("step", "config", "best")}
    weights = {name: value.contiguous() for name, value in state["model"].items()}
    save_file(weights, out / f"{system}.safetensors", {SHIPPED: json.dumps(record)})
    (out / f"{system}.safetensors").chmod(0o644)  # safetensors lets its owner alone read it
    return accuracy


def main() -> None:
    """Write all files and the card."""
    out = results_folder() / "weights"
    out.mkdir(exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SyntheticMotion.make(folder / "set", **MADE)
        for system, backbone in SYSTEMS.items():
            accuracy = ship(system, backbone, folder, out)
            size = (out / f"{system}.safetensors").stat().st_size / 1e3
            percent = [f"{value:.1f}" for value in accuracy.values()]
            rows.append([f"`{system}`", f"`{backbone}`", *percent, f"{size:.0f} KB"])
    table = markdown_table(["name", "backbone", *(f"{name}, %" for name in accuracy), "size"], rows)
    facts = {"clips": MADE["train"], "test": MADE["test"], "frames": FRAMES} | environment()
    card = CARD.format(table=table, steps=RECIPE.steps, batch=RECIPE.batch, rate=RECIPE.rate, seed=RECIPE.seed, **facts)
    (out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
