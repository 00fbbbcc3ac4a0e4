"""The paper's table and ours: results that are added to a file, and the comparison of the two."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from repflow.files import Row, append_csv, markdown_table
from repflow.lab.parameters import UsageError
from repflow.models.systems import SYSTEMS
from repflow.records import environment, paper_table

# The paper's columns, by their names in results/paper.csv, and how the table here calls them.
DATA_SETS = {"kinetics400": "Kinetics-400", "hmdb51": "HMDB51", "hmdb51_kinetics": "HMDB51 + Kinetics"}
OURS = "synthetic_motion"  # a data set that the paper does not have
NOT_RUN = "not run"
MEASURES = {"top1": "top1", "top5": "top5", "ci_low": "top1_low", "ci_high": "top1_high"}  # ours: evaluation's
COUNTS = ("evaluated", "expected")
PROTOCOL = ("backbone", "clips", "crops")


def add_result(
    file: Path,
    measures: Mapping[str, float],
    *,
    system: str,
    backbone: str,
    data_set: str,
    fold: int | None,
    clips: int,
    crops: int,
    seed: int,
    seconds: float,
) -> None:
    """Append a row to our table, made where there is none; several processes may do so at once.

    measures: what `repflow.evaluation.measures` returns; the interval is that of top-1. system: its name in SYSTEMS.
    data_set: a column of the paper's table ("hmdb51_kinetics": HMDB51 after pre-training on Kinetics), or
    "synthetic_motion". fold: of HMDB51, else None. seconds: that training and testing took. Machine, versions and
    commit are added here. Raises UsageError for an unknown system, backbone, data set or fold, and a table of
    other columns.
    """
    _check_known("system", system, SYSTEMS)
    _check_known("backbone", backbone, SYSTEMS[system].backbones)
    _check_known("data_set", data_set, (*DATA_SETS, OURS))
    folds = (1, 2, 3) if data_set.startswith("hmdb51") else (None,)
    if fold not in folds:
        raise UsageError(f"fold: expected {' or '.join(map(str, folds))} on {data_set}, got {fold!r}")
    row: Row = {"system": system, "backbone": backbone, "data_set": data_set, "fold": fold}
    row |= {"clips": clips, "crops": crops, "seed": seed}
    row |= {ours: float(measures[theirs]) for ours, theirs in MEASURES.items()}
    row |= {name: int(measures[name]) for name in COUNTS} | {"seconds": float(seconds)}
    row |= environment() | {"date": datetime.now().astimezone().isoformat(timespec="seconds")}
    try:
        append_csv(file, row)
    except ValueError as error:
        raise UsageError(error) from None


def _check_known(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def compare(ours: Sequence[Mapping[str, str]], paper: Mapping[str, Mapping[str, str]] | None = None) -> list[Row]:
    """A row for each figure of the paper and each protocol of ours: paper, ours and delta in points of top-1.

    Ours is the mean over folds of the mean over seeds; of a repeated run the last row counts. Results of ours that the
    paper does not have come last.
    """
    paper = paper_table() if paper is None else paper
    table: list[Row] = []
    by_method = {system.paper: name for name, system in SYSTEMS.items() if system.paper}
    for method, figures in paper.items():
        for data_set in DATA_SETS:
            if figures[data_set]:
                protocols = _protocols(ours, by_method.get(method), data_set) or [[]]
                table += [_line(method, data_set, float(figures[data_set]), runs) for runs in protocols]
    for name, system in SYSTEMS.items():
        for data_set in (*DATA_SETS, OURS):
            if data_set == OURS or not paper.get(system.paper or "", {}).get(data_set):
                protocols = _protocols(ours, name, data_set)
                table += [_line(system.paper or name, data_set, None, runs) for runs in protocols]
    return table


def markdown(table: Sequence[Row]) -> str:
    """The table of `compare` as aligned Markdown."""
    head = [name.replace("_", " ") for name in table[0]]
    return markdown_table(head, [[_cell(value) for value in row.values()] for row in table], aligned=True)


def _protocols(ours: Sequence[Mapping[str, str]], system: str | None, data_set: str) -> list[list[Mapping[str, str]]]:
    """Our runs of a system on a data set, those of one protocol together, the last of each fold and seed."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], Mapping[str, str]]] = {}
    for row in ours:
        if (row["system"], row["data_set"]) == (system, data_set):
            groups.setdefault(tuple(row[name] for name in PROTOCOL), {})[row["fold"], row["seed"]] = row
    return [list(runs.values()) for runs in groups.values()]


def _line(method: str, data_set: str, paper: float | None, runs: Sequence[Mapping[str, str]]) -> Row:
    line: Row = {"method": method, "data_set": DATA_SETS.get(data_set, "SyntheticMotion"), "paper": paper}
    if not runs:
        return line | {"ours": NOT_RUN, "delta": None, "interval": None, "runs": None}
    folds = sorted({run["fold"] for run in runs})
    top1 = mean(mean(float(run["top1"]) for run in runs if run["fold"] == fold) for fold in folds)
    delta = None if paper is None else top1 - paper
    interval = f"{float(runs[0]['ci_low']):.1f} to {float(runs[0]['ci_high']):.1f}" if len(runs) == 1 else None
    return line | {"ours": top1, "delta": delta, "interval": interval, "runs": _protocol(runs, folds)}


def _protocol(runs: Sequence[Mapping[str, str]], folds: Sequence[str]) -> str:
    """In words: how ours was measured, so that nobody takes a delta for more than it is."""
    first, seeds = runs[0], len({run["seed"] for run in runs})
    evaluated, expected = (sum(int(run[name]) for run in runs) for name in COUNTS)
    fold = "" if folds == [""] else f", {'fold' if len(folds) == 1 else 'folds'} {', '.join(folds)} of 3"
    measured = f"{first['backbone']}, {first['clips']} × {first['crops']} views{fold}"
    return f"{measured}, {seeds} seed{'' if seeds == 1 else 's'}; evaluated {evaluated} of {expected}"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
