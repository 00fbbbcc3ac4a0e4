"""Results on SyntheticMotion: from the metrics of executed notebooks to a CSV, a figure and a table in the README.

python -m repflow.experiments.collect runs/2026-01-31_14-05-09 ...      (in the checkout; folders of `repflow run 04`)
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repflow.benchmark import read_csv
from repflow.experiments.parameters import UsageError
from repflow.figures import bars
from repflow.models import list_models

NOTEBOOK = "04_training_hmdb_kinetics"
MEASURES = {"top1": "top-1 of 12", "basic": "basic eight", "pairs": "faster or slower"}
SETTINGS = ("seed", "steps", "train_clips", "batch", "iterations")
MACHINE = ("cpu", "cpus", "gpu", "python", "torch", "repflow", "commit")
BEGIN, END = "<!-- results on SyntheticMotion -->\n", "<!-- end -->\n"


def rows_of(runs: Sequence[Path]) -> list[dict[str, object]]:
    """One row for each model of each run. Raises UsageError for a folder without that notebook's finished metrics."""
    rows = []
    for run in runs:
        path = run / f"{NOTEBOOK}.metrics.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"error": "no such file"}
        if record["error"] or record["parameters"]["hmdb51"]:
            raise UsageError(f"{path}: expected metrics of a finished run on SyntheticMotion ({record['error']})")
        for model, accuracy in record["metrics"]["accuracy"].items():
            rows.append(
                {"model": model}
                | {name: record["parameters"][name] for name in SETTINGS}
                | {"test_clips": record["metrics"]["test_clips"]}
                | {name: round(accuracy[name], 2) for name in MEASURES}
                | {"seconds": round(record["metrics"]["seconds"][model], 1), "started": record["started"]}
                | {name: record["environment"][name] for name in MACHINE}
            )
    return rows


def means(rows: Sequence[dict[str, str]]) -> dict[str, dict[str, np.ndarray]]:
    """Of each model (by the paper's name for it) and measure: all the seeds' values, in percent."""
    return {
        model["paper"]: {
            measure: np.array([float(row[measure]) for row in rows if row["model"] == model["name"]])
            for measure in MEASURES
        }
        for model in list_models()
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """The README's table: mean over seeds, and the smallest and largest of them."""
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    head = ["network", *(f"{text} (%)" for text in MEASURES.values())]
    body = [
        [name, *(f"{v.mean():.1f} ({v.min():.1f} to {v.max():.1f})" for v in measured.values())]
        for name, measured in means(rows).items()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
    note = (
        f"Mean (and range) over seeds {', '.join(seeds)}; {first['steps']} steps; for training {first['train_clips']} "
        f"clips a class, for testing {first['test_clips']} clips; {first['cpu']}, {first['cpus']} cores, "
        f"PyTorch {first['torch']}. Chance is 8.3, 8.3 and 50."
    )
    return "\n".join([*lines, "", note, ""])


def main(runs: Sequence[str]) -> None:
    """Write results/synthetic_motion.csv and .png from run folders, and the README's table from the CSV."""
    root = Path(__file__).parents[2]
    rows = rows_of([Path(run) for run in runs])
    file = root / "results" / "synthetic_motion.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    written = read_csv(file)
    groups = {
        name: {MEASURES[key]: float(values.mean()) for key, values in measured.items()}
        for name, measured in means(written).items()
    }
    figure = bars(groups, "accuracy on test clips (%)", {"chance among 12": 100 / 12, "chance of two": 50})
    figure.savefig(file.with_suffix(".png"), dpi=100)
    readme = root / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(before + BEGIN + table(written) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
