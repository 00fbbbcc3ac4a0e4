"""The README's tables, written from the files in results/, and our accuracies there from a finished sweep.

repflow sweep notebooks/sweeps/table.toml --profile small --out runs/table
python tools/readme_tables.py runs/table/table.csv      (in the checkout)
python tools/readme_tables.py                           (only writes the README's tables anew)
"""

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from markers import write_marked

from repflow.data.synthetic import CLASSES
from repflow.figures import bars
from repflow.files import Row, markdown_table, read_csv
from repflow.lab.bench import scaling, systems
from repflow.models.systems import SYSTEMS
from repflow.records import read_timings

MEASURES = {"top1": "top-1 of 12", "basic": "basic eight", "pairs": "faster or slower"}


def means(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, np.ndarray]]:
    """Of each system (by the paper's name for it) and measure: all the seeds' values, in percent."""
    return {
        system.paper or name: {
            measure: np.array([float(row[measure]) for row in rows if row["system"] == name]) for measure in MEASURES
        }
        for name, system in SYSTEMS.items()
        if any(row["system"] == name for row in rows)
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The README's table: mean over seeds and its 95 % interval, by Student's distribution of so few."""
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    backbones = ", ".join(f"`{name}`" for name in dict.fromkeys(row["backbone"] for row in rows))
    cells = {
        name: {MEASURES[key]: interval(values) for key, values in measured.items()}
        for name, measured in means(rows).items()
    }
    note = (
        f"Mean and 95 % interval over seeds {', '.join(seeds)}; {first['steps']} steps; "
        f"backbones {backbones}; for training {first['train_clips']} clips a class, for testing "
        f"{len(CLASSES) * int(first['test_clips'])} clips; "
        f"{first['cpu']}, {first['cpus']} cores, PyTorch {first['torch']}. "
        "Chance is 8.3, 8.3 and 50; one flow layer on single frames can reach 83.3 at most."
    )
    return "\n".join([_table("%", list(MEASURES.values()), cells), "", note, ""])


def real_video(rows: Sequence[Mapping[str, str]], timed: Sequence[Mapping[str, str]]) -> str:
    """The README's table of real video: mean over folds and seeds with its 95 % interval, what a system has more than
    pictures alone in the same fold and seed, and from the other file its time."""

    def values(system: str, measure: str) -> np.ndarray:
        runs = {(row["fold"], row["seed"]): float(row[measure]) for row in rows if row["system"] == system}
        return np.array([value for _, value in sorted(runs.items())])

    times = {row["system"]: float(row["step_ms"]) for row in timed}
    cells = {}
    for name in dict.fromkeys(row["system"] for row in rows):
        plain = f"rgb_{name.rpartition('_')[2]}"
        cells[SYSTEMS[name].paper or f"`{name}`"] = {
            "top-1 of 5": interval(values(name, "top1")),
            "three body actions": interval(values(name, "actions")),
            "top-1 above RGB": interval(values(name, "top1") - values(plain, "top1")) if name != plain else "–",
            "ms per training step": f"{times[name]:.0f}",
        }
    first = rows[0]
    runs = {(row["fold"], row["seed"]) for row in rows}
    note = (
        f"Five classes of UCF101, three of them movements of the whole body. Mean and 95 % interval over the "
        f"{len(runs)} runs of {len({fold for fold, _ in runs})} official folds and {len({seed for _, seed in runs})} "
        f"seeds; the column above RGB compares runs of the same fold and seed. {first['steps']} steps from scratch, "
        f"backbones `tiny_2d` and `tiny_2plus1d`, {first['frames']} frames at stride {first['stride']}, "
        f"{first['crop']} px; {first['views']} clips a test video; the settings were chosen on training videos only. "
        f"Chance is 20. Times: {first['batch']} clips a step, the flow of two streams read from its files; each system "
        f"by itself on {timed[0]['cpu']}, {timed[0]['cpus']} cores, PyTorch {timed[0]['torch']}."
    )
    columns = list(next(iter(cells.values())))
    return "\n".join([_table("%", columns, cells), "", note, ""])


def interval(values: np.ndarray) -> str:
    """The mean of the values, and half of its 95 % interval where there are several."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    half = _student(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.1f} ± {half:.1f}"


def _student(degrees: int) -> float:
    """The 97.5 % point of the t distribution; the density of the angle a, t = √degrees tan a, is a power of cos a."""
    edges = np.linspace(0, math.pi / 2, 100_001)
    below = np.append(0, np.cumsum(np.cos((edges[:-1] + edges[1:]) / 2) ** (degrees - 1)))
    return math.sqrt(degrees) * math.tan(np.interp(0.95 * below[-1], below, edges))


def solver_times(rows: Sequence[dict[str, str]]) -> str:
    """The README's table of the engines' times, from what `repflow bench solver` wrote."""
    names = {"function": "`representation_flow`", "layer": "the whole layer"}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = f"{float(row['median_ms']):.1f} ms"
        if row["engine"] not in ("reference", "official"):
            cell += f" ({float(row['speedup_reference']):.0f} ×)"
        cells.setdefault(f"{names[row['part']]}, {row['pass']}", {})[row["engine"]] = cell
    first = rows[0]
    note = (
        f"Medians of {first['repeats']}: {first['channels']} channels, {first['pairs']} pairs, {first['size']} × "
        f"{first['size']}, {first['iterations']} iterations; official: the layer released in June 2019. On "
        f"{_machine(first)}."
    )
    return "\n".join([note, "", _table("", list(dict.fromkeys(row["engine"] for row in rows)), cells), ""])


def tvl1_times(rows: Sequence[dict[str, str]]) -> str:
    """The README's table of optical flow's time and error, from what `repflow bench tvl1` wrote."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        pair = f"{row['pair']}, {row['width']} × {row['height']}"
        if not row["note"]:
            cell = f"{float(row['median_s']):.3f} s, {float(row['error_px']):.3f} px"
            cells.setdefault(row["method"], {})[pair] = cell
    first = rows[0]
    pairs = list(dict.fromkeys(pair for by_pair in cells.values() for pair in by_pair))
    note = f"Optical flow: time, median of {first['repeats']}, and mean end-point error. On {_machine(first)}."
    return "\n".join([note, "", _table("", pairs, cells), ""])


def runtime(rows: Sequence[Row]) -> str:
    """The README's tables of what a clip costs in every system, from what `repflow bench systems` wrote: by stage,
    beside the paper's, and the ratios."""
    programs = systems.programs(rows)
    tables = {program: {line["paper"]: line for line in systems.table(rows, program)} for program in programs}
    times = {(row["stage"], row["by"]): row for row in rows}
    by_system = {}
    for name, line in tables[programs[0]].items():
        cells = {"decode": _ms(line["decode_ms"])}
        cells |= {f"TV-L1, {program}": _ms(tables[program][name]["tvl1_ms"]) for program in programs}
        cells |= {"flow inside the network": _ms(line["flow_inside_ms"]), "rest of it": _ms(line["network_ms"])}
        cells["total"] = " / ".join(dict.fromkeys(_ms(tables[program][name]["total_ms"]) for program in programs))
        step, best = (times.get((stage, line["system"])) for stage in ("training step", "forward, best batch"))
        if step:
            cells["training step"] = _ms(1000 * step["median_s"] / step["batch"])
        if best:
            cells["best batch"] = f"{best['clips_per_s']:.3g} clips/s at {best['batch']:.0f}"
        if step and step["peak_mib"] is not None:
            peaks = (times["forward", line["system"]]["peak_mib"], step["peak_mib"])
            cells["peak MiB"] = " / ".join(f"{peak:.0f}" for peak in peaks)
        bold = "**" if line["system"] in systems.TABLE else ""
        by_system[f"{bold}{name}{bold}"] = cells | {"paper": _ms(line["paper_ms"])}
    by_ratio: dict[str, dict[str, str]] = {}
    for program in programs:
        for row in systems.ratios(rows, program):
            cells = by_ratio.setdefault(row["ratio"], {"paper": f"{row['paper']:.3g}"})
            cells[f"TV-L1, {program}"] = f"{row['here']:.3g}"
    first = rows[0]
    network = times["forward", "rgb_2plus1d"]
    spread = max(row["iqr_s"] / row["median_s"] for row in rows if row["stage"] in ("forward", "training step"))
    note = (
        f"Milliseconds of a clip of {first['frames']} frames of {first['size']} × {first['size']}, medians of "
        f"{first['repeats']}, networks at batch {network['batch']:.0f} on {_machine(first)}. "
        f"Networks' interquartile ranges are up to {100 * spread:.0f} % of medians: smaller differences say nothing. "
        f"Total: with TV-L1 by {' / '.join(programs)}. "
        "The paper's: a Titan X, clips of a length and size that are not known; bold: the authors' six."
    )
    columns = list(dict.fromkeys(column for cells in by_system.values() for column in cells))
    ratios = ["paper", *(f"TV-L1, {program}" for program in programs)]
    tables = [_table("ms per clip", columns, by_system), "", _table("(2+1)D", ratios, by_ratio)]
    return "\n".join([note, "", *tables, ""])


def powers(rows: Sequence[Row]) -> str:
    """The README's table of the powers that the layer's time and memory grow with, from `repflow bench scaling`."""
    axes = {"pairs": "frames", "size": "side", "channels": "channels", "iterations": "iterations", "clips": "batch"}
    cells: dict[str, dict[str, str]] = {}
    for row in scaling.exponents(rows):
        cells.setdefault(row["engine"], {})[axes[row["axis"]]] = f"{row['time']:.2f}, {row['memory']:.2f}"
    first = rows[0]
    note = (
        "The flow layer, forward and backward: the powers that its time, and the memory kept for the backward pass, "
        f"grow with, around {first['channels']} channels, {first['pairs']} pairs, {first['size']} × {first['size']}, "
        f"{first['iterations']} iterations; on {_machine(first)}. `reference` is the unrolled layer in PyTorch, "
        "`official` the layer released in June 2019."
    )
    return "\n".join([note, "", _table("time, memory", list(axes.values()), cells), ""])


def _ms(value: float) -> str:
    return "–" if value == 0 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _machine(row: Row) -> str:
    """What a file of timings says about its machine, versions, commit and day."""
    cpu = f"{row['cpu']}, {row['threads']} threads"
    gpu = f"{row['gpu']}, driver {row['driver']}, beside {cpu}"
    versions = {"PyTorch": "torch", "OpenCV": "cv2", "Numba": "numba"} | ({"Triton": "triton"} if row["gpu"] else {})
    named = [f"{name} {row[column]}" for name, column in versions.items() if row.get(column)]
    commit, _, changed = row["commit"].partition("-")
    made = f"commit {commit[:9] or 'unknown'}{' with changes' if changed else ''}, {row['date'][:10]}"
    return ", ".join([gpu if row["device"] == "cuda" else cpu, *named, made])


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, str]]) -> str:
    """A Markdown table, a dash where a row has nothing for a column."""
    lines = [[name, *(row.get(column, "–") for column in columns)] for name, row in rows.items()]
    return markdown_table([corner, *columns], lines)


def sections(results: Path) -> dict[str, str]:
    """What the README says between the markers of each name, from the CSV files."""

    def texts(name: str, write: Callable[[list[Row]], str], numbers: Collection[str] = ()) -> list[str]:
        return [write(read_timings(file, numbers)) for file in sorted(results.glob(f"{name}_*.csv"))]

    runs = texts("systems", runtime, systems.NUMBERS) + texts("scaling", powers, scaling.NUMBERS)
    return {
        "results on real video": real_video(
            *(read_csv(results / "sweeps" / f"{name}.csv") for name in ("real_video", "real_video_time"))
        ),
        "results on SyntheticMotion": table(read_csv(results / "synthetic_motion.csv")),
        "timings": "\n".join(texts("solver", solver_times) + texts("tvl1", tvl1_times)),
        "runtime": "\n".join(runs),
    }


def draw(file: Path) -> None:
    """The figure beside a file of accuracies."""
    groups = {
        name: {MEASURES[key]: float(values.mean()) for key, values in measured.items()}
        for name, measured in means(read_csv(file)).items()
    }
    figure = bars(groups, "accuracy on test clips (%)", {"chance among 12": 100 / 12, "chance of two": 50})
    figure.savefig(file.with_suffix(".png"), dpi=100)


def main(sweeps: Sequence[str]) -> None:
    """Write the tables of README.md and results/README.md, and synthetic_motion.csv from a sweep, if named."""
    root = Path(__file__).parents[1]
    for sweep in sweeps:
        file = root / "results" / "synthetic_motion.csv"
        file.write_text(Path(sweep).read_text(encoding="utf-8"), encoding="utf-8")
        draw(file)
    tables = sections(root / "results")
    write_marked(root / "README.md", {"results on real video": tables.pop("results on real video")})
    write_marked(root / "results" / "README.md", tables)


if __name__ == "__main__":
    main(sys.argv[1:])
