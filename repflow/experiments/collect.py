"""The README's tables, written from the files in results/, and our accuracies there from executed notebooks.

python -m repflow.experiments.collect runs/2026-01-31_14-05-09 ...      (in the checkout; folders of `repflow run 04`)
python -m repflow.experiments.collect                                   (only writes the README's tables anew)
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from repflow.experiments.parameters import UsageError
from repflow.figures import bars
from repflow.files import read_csv, write_csv
from repflow.models.systems import SYSTEMS

NOTEBOOK = "04_training_hmdb_kinetics"
MEASURES = {"top1": "top-1 of 12", "basic": "basic eight", "pairs": "faster or slower"}
SETTINGS = ("seed", "steps", "train_clips", "batch", "iterations")
MACHINE = ("cpu", "cpus", "gpu", "python", "torch", "repflow", "commit")


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
        system.paper or name: {
            measure: np.array([float(row[measure]) for row in rows if row["model"] == name]) for measure in MEASURES
        }
        for name, system in SYSTEMS.items()
        if any(row["model"] == name for row in rows)
    }


def table(rows: Sequence[dict[str, str]]) -> str:
    """The README's table: mean over seeds, and the smallest and largest of them."""
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    cells = {
        name: {MEASURES[key]: f"{v.mean():.1f} ({v.min():.1f} to {v.max():.1f})" for key, v in measured.items()}
        for name, measured in means(rows).items()
    }
    lines = _lines("%", list(MEASURES.values()), cells)
    note = (
        f"Mean (and range) over seeds {', '.join(seeds)}; {first['steps']} steps; for training {first['train_clips']} "
        f"clips a class, for testing {first['test_clips']} clips; {first['cpu']}, {first['cpus']} cores, "
        f"PyTorch {first['torch']}. Chance is 8.3, 8.3 and 50."
    )
    return "\n".join([*lines, "", note, ""])


def timings(solver: Sequence[dict[str, str]], tvl1: Sequence[dict[str, str]]) -> str:
    """The README's two tables of times, from what `repflow bench solver` and `repflow bench tvl1` wrote."""
    names = {"function": "`representation_flow`", "layer": "the whole layer"}
    by_part: dict[str, dict[str, str]] = {}
    for row in solver:
        cell = f"{float(row['median_ms']):.1f} ms"
        if row["engine"] not in ("reference", "official"):
            cell += f" ({float(row['speedup_reference']):.0f} ×)"
        by_part.setdefault(f"{names[row['part']]}, {row['pass']}", {})[row["engine"]] = cell
    pairs = list(dict.fromkeys(row["pair"] for row in tvl1))
    by_method: dict[str, dict[str, str]] = {}
    for row in tvl1:
        by_method.setdefault(row["method"], {})[row["pair"]] = (
            f"{float(row['median_s']):.3f} s, {float(row['error_px']):.3f} px"
        )
    engines = list(dict.fromkeys(row["engine"] for row in solver))
    first = solver[0]
    note = (
        f"Medians of one run each, on {first['cpu']}, {first['threads']} cores, PyTorch {first['torch']}: "
        f"{first['channels']} channels, {first['pairs']} pairs, {first['size']} × {first['size']}, "
        f"{first['iterations']} iterations; official: the layer released in June 2019. "
        "Below, seconds and mean end-point error on two Middlebury pairs."
    )
    return "\n".join([note, "", *_lines("", engines, by_part), "", *_lines("TV-L1", pairs, by_method), ""])


def _lines(corner: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A Markdown table, a dash where a row has nothing for a column."""
    cells = [[corner, *columns], ["---"] * (1 + len(columns))]
    cells += [[name, *(row.get(column, "–") for column in columns)] for name, row in rows.items()]
    return [f"| {' | '.join(line)} |" for line in cells]


def sections(results: Path) -> dict[str, str]:
    """What the README says between the markers of each name, from the CSV files."""
    read = {name: read_csv(results / f"{name}.csv") for name in ("synthetic_motion", "solver_cpu", "tvl1_cpu")}
    return {
        "results on SyntheticMotion": table(read["synthetic_motion"]),
        "timings": timings(read["solver_cpu"], read["tvl1_cpu"]),
    }


def marked(text: str, name: str) -> tuple[str, str, str]:
    """A text before, between and behind the markers of this name."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    between, end, behind = rest.partition(f"<!-- end of {name} -->\n")
    return before + begin, between, end + behind


def write_accuracies(runs: Sequence[Path], file: Path) -> None:
    """Write `file` (CSV), and the figure beside it, from run folders."""
    write_csv(file, rows_of(runs))
    groups = {
        name: {MEASURES[key]: float(values.mean()) for key, values in measured.items()}
        for name, measured in means(read_csv(file)).items()
    }
    figure = bars(groups, "accuracy on test clips (%)", {"chance among 12": 100 / 12, "chance of two": 50})
    figure.savefig(file.with_suffix(".png"), dpi=100)


def main(runs: Sequence[str]) -> None:
    """Write results/synthetic_motion.csv and .png from run folders, if any, and the README's tables."""
    root = Path(__file__).parents[2]
    if runs:
        write_accuracies([Path(run) for run in runs], root / "results" / "synthetic_motion.csv")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, content in sections(root / "results").items():
        before, _, behind = marked(text, name)
        text = before + content + behind
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
