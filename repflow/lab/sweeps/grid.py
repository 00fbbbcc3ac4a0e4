"""Sweep files: which values of which parameters, checked whole before anything starts.

    question = "How many iterations does the layer need?"
    hypothesis = "Few are enough."
    study = "module:function"            or  notebook = "04"  or  commands = ["repflow train ... {system} --out {out}"]
    metrics = ["top1", "pairs"]
    chance = {top1 = 8.3}                of the metrics that are accuracies in percent
    fixed = {steps = 100}
    grid = {iterations = [1, 5, 20]}     or a list of such grids, whose points are joined
    seeds = [0, 1, 2]                    values of the parameter `seed`
    [profiles.paper]                     entries that replace those above

A study is a function of plain keywords with defaults that returns {metric: number}; if its module has a function
`check` of the same keywords, that is called first for every point. Commands are lines of `repflow`, run one after the
other for each point, with each {name} a parameter; they write their metrics to {out}/metrics.json. The text "none"
stands for None where a parameter can be None.
"""

import hashlib
import importlib
import inspect
import itertools
import json
import re
import shlex
import string
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repflow.lab.jobs import find_notebooks
from repflow.lab.parameters import PROFILES, Parameter, UsageError, naming, read_parameters, unknown

KINDS = ("notebook", "study", "commands")
_POINT = Path(__file__).with_name("point.py")
_REQUIRED = inspect.Parameter.empty
# Of each entry the type, in words, too.
_ENTRIES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "question": (str, "text"),
    "hypothesis": (str, "text"),
    "notebook": (str, 'text such as notebook = "04"'),
    "study": (str, 'text such as study = "module:function"'),
    "commands": (list, "a list of lines"),
    "metrics": (list, "a list of names"),
    "chance": (dict, "a table {name = percent}"),
    "fixed": (dict, "a table {name = value}"),
    "grid": ((dict, list), "names with lists of values"),
    "seeds": (list, "a list [0, 1]"),
}

Values = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    name: of its folder, readable, with a hash of what it does. values: of all parameters. commands: what runs, one
    after the other, with {out} for the folder; the first word is `repflow` or a program. metrics: the pattern of the
    file with the results, in the folder.
    """

    name: str
    values: Values
    commands: list[list[str]]
    metrics: str


@dataclass(frozen=True)
class Sweep:
    """All points of a sweep, and what it asks.

    chance: of each metric that is an accuracy in percent, what guessing reaches. axes: the parameters that vary, the
    first one first, without `seed`.
    """

    name: str
    question: str
    hypothesis: str
    metrics: list[str]
    chance: dict[str, float]
    axes: list[str]
    points: list[Point]


@dataclass(frozen=True)
class _Subject:
    """What a sweep varies: parameters by name, the commands for given values, and the file with the results."""

    parameters: Mapping[str, Parameter]
    commands: Callable[[Values], list[list[str]]]
    metrics: str = "metrics.json"
    check: Callable[..., object] = field(default=lambda **_: None)


def read_sweep(path: Path, profile: str = "tiny", overrides: Mapping[str, str] | None = None) -> Sweep:
    """Read and check a sweep file; `overrides` are texts for parameters that it fixes.

    Raises UsageError for anything that cannot run as it is written: an unknown name, a value of another type or one
    that the study refuses, two points that are the same, no points.

        >>> len(read_sweep(Path("notebooks/sweeps/where.toml")).points)
        8
    """
    with naming(f"{path}: "):
        entries = _entries(path, profile)
        kind = next(kind for kind in KINDS if kind in entries)
        subject = _SUBJECTS[kind](entries[kind])
        grids = _grids(entries)
        points = _points(subject, entries.get("fixed", {}), grids, overrides or {})
    axes = [name for name in dict.fromkeys(itertools.chain(*grids)) if name != "seed"]
    named = [(_name([*axes, "seed"], values, str(entries[kind])), values) for values in points]
    return Sweep(
        path.stem,
        " ".join(entries.get("question", path.stem).split()),
        " ".join(entries.get("hypothesis", "").split()),
        entries.get("metrics", []),
        entries.get("chance", {}),
        axes,
        [Point(name, values, subject.commands(values), subject.metrics) for name, values in named],
    )


def _entries(path: Path, profile: str) -> dict[str, Any]:
    """Return the file's entries, some of them replaced by the profile's."""
    if path.suffix != ".toml":
        raise UsageError("expected a .toml file, such as notebooks/sweeps/where.toml")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot be read: {error}") from None
    profiles = entries.pop("profiles", {})
    if wrong := [name for name in profiles if name not in PROFILES]:
        raise UsageError(f"profiles: expected {', '.join(PROFILES)}, found {wrong[0]!r}")
    if profile not in (*profiles, PROFILES[0]):
        raise UsageError(f"it has no profile {profile!r}; there are: {', '.join(profiles) or 'none'}")
    chosen = profiles.get(profile, {})
    if any(kind in chosen for kind in KINDS):
        entries = {name: value for name, value in entries.items() if name not in KINDS}
    entries |= chosen
    for name, value in entries.items():
        if name not in _ENTRIES:
            raise UsageError(f"{unknown('entry', name, _ENTRIES)} there are: {', '.join(_ENTRIES)}")
        kind, words = _ENTRIES[name]
        is_texts = name not in ("commands", "metrics") or all(isinstance(part, str) for part in value)
        if not isinstance(value, kind) or not is_texts:
            raise UsageError(f"{name}: expected {words}, found {value!r}")
    for name, value in entries.get("chance", {}).items():
        if type(value) not in (int, float) or not 0 <= value <= 100:
            raise UsageError(f"chance, {name}: expected a number of percent, found {value!r}")
    kinds = [kind for kind in KINDS if entries.get(kind)]
    if len(kinds) != 1:
        raise UsageError(f"expected one of {', '.join(KINDS)}, found {', '.join(kinds) or 'none'}")
    return entries


def _grids(entries: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """Return the grids with the seeds as an axis of each. Raises UsageError for an empty grid or list."""
    grid = entries.get("grid")
    grids = grid if isinstance(grid, list) else [grid]
    if not grids or not all(isinstance(part, dict) and part for part in grids):
        raise UsageError(f"grid: expected names with lists of values, found {grid!r}")
    seeds = {"seed": entries["seeds"]} if "seeds" in entries else {}
    if seeds and any("seed" in part for part in grids):
        raise UsageError("seed is both in the grid and in seeds; leave one out")
    for name, values in itertools.chain(seeds.items(), *(part.items() for part in grids)):
        if not isinstance(values, list) or not values:
            raise UsageError(f"grid, {name}: expected a list [a, b] of one value or more, found {values!r}")
    return [part | seeds for part in grids]


def _points(
    subject: _Subject, fixed: Values, grids: list[dict[str, list[Any]]], overrides: Mapping[str, str]
) -> list[Values]:
    """Return the values of all parameters at every point, in the file's order."""
    parameters = subject.parameters
    varied = dict.fromkeys(itertools.chain(*grids))
    for name in (*fixed, *varied, *overrides):
        if name not in parameters:
            raise UsageError(f"{unknown('parameter', name, parameters)} there are: {', '.join(parameters)}")
        if name in varied and (name in fixed or name in overrides):
            raise UsageError(f"{name} is both fixed and in the grid; leave one out")
    common = {name: parameter.default for name, parameter in parameters.items()}
    common |= {name: _checked(parameters[name], value) for name, value in fixed.items()}
    common |= {name: parameters[name].parse(text) for name, text in overrides.items()}
    points: list[Values] = []
    for grid in grids:
        for combination in itertools.product(*grid.values()):
            chosen = {name: _checked(parameters[name], value) for name, value in zip(grid, combination, strict=True)}
            point = common | chosen
            label = ", ".join(f"{name} {_text(value)}" for name, value in chosen.items())
            if point in points:
                raise UsageError(f"two points are the same: {label}")
            if needed := [name for name, value in point.items() if value is _REQUIRED]:
                raise UsageError(f"expected values of {', '.join(needed)} in fixed or grid")
            with naming(f"the point {label}: "):
                subject.check(**point)
            points.append(point)
    return points


def _checked(parameter: Parameter, value: object) -> Any:
    return parameter.check(None if parameter.optional and value == "none" else value)


def _notebook(name: str) -> _Subject:
    (path,) = find_notebooks([name])
    parameters = read_parameters(path)

    def commands(values: Values) -> list[list[str]]:
        changed = [(key, value) for key, value in values.items() if value != parameters[key].default]
        options = [word for key, value in changed for word in ("-p", key, _text(value))]
        return [["repflow", "run", str(path), *options, "--out", "{out}/runs"]]

    return _Subject(parameters, commands, f"runs/*/{path.stem}.metrics.json")


def _study(name: str) -> _Subject:
    module, _, function = name.partition(":")
    try:
        imported = importlib.import_module(module)
        study = getattr(imported, function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"study: expected module:function, with the module's folder on PYTHONPATH, found {name!r} ({error})"
        ) from None

    def commands(values: Values) -> list[list[str]]:
        return [[sys.executable, "-P", str(_POINT), name, json.dumps(values), "{out}/metrics.json"]]

    keywords = inspect.signature(study).parameters.items()
    parameters = {name: Parameter.typed(name, entry.annotation, default=entry.default) for name, entry in keywords}
    return _Subject(parameters, commands, check=getattr(imported, "check", lambda **_: None))


def _commands(lines: list[str]) -> _Subject:
    with naming("commands: "):
        words = [shlex.split(line) for line in lines]
        names = {name for _, name, _, _ in string.Formatter().parse(" ".join(lines)) if name is not None}
    if any(line[:1] != ["repflow"] for line in words):
        raise UsageError(f"commands: expected lines that begin with `repflow`, found {lines!r}")
    if wrong := [name for name in names if not name.isidentifier()]:
        raise UsageError(f"commands: expected names in braces, found {wrong[0]!r}")

    def commands(values: Values) -> list[list[str]]:
        texts = {name: _text(value) for name, value in values.items()} | {"out": "{out}"}
        return [[word.format(**texts) for word in line] for line in words]

    return _Subject({name: Parameter(name, object, default=_REQUIRED) for name in sorted(names - {"out"})}, commands)


_SUBJECTS: dict[str, Callable[[Any], _Subject]] = {"notebook": _notebook, "study": _study, "commands": _commands}


def _name(axes: list[str], values: Values, subject: str) -> str:
    """Return a folder's name: what varies, and a hash of the subject and all values."""
    whole = json.dumps([subject, values], sort_keys=True)
    varied = "_".join(f"{name}={_text(values[name])}" for name in axes if values.get(name) is not None)
    return f"{re.sub(r'[^A-Za-z0-9_.=+-]+', '-', varied)[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _text(value: object) -> str:
    """Return a value as a command line has it, see `Parameter.parse`."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
