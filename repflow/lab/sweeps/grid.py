"""Sweep files: which values of which parameters, checked whole before anything starts.

    question: How many iterations does the layer need?
    hypothesis: Few are enough.
    notebook: "04"                       or  study: module:function
    metrics: [accuracy.repflow_2d.top1]  or  commands: [repflow train ... {system} --out {out}, repflow evaluate ...]
    chance: {top1: 8.3}                  of those metrics that are accuracies in percent
    fixed: {steps: 100}
    grid: {iterations: [1, 5, 20]}       or a list of such grids, whose points are joined
    seeds: [0, 1, 2]                     values of the parameter `seed`
    profiles: {paper: {...}}             entries that take the place of those above

A study is a function of plain keywords with defaults that returns {metric: number}; where its module has a function
`check` of the same keywords, this is asked first. Commands are lines of `repflow`, run one after the other for each
point, with each {name} a parameter; they write their metrics to {out}/metrics.json.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from repflow.lab.jobs import find_notebooks
from repflow.lab.parameters import PROFILES, Parameter, UsageError, read_parameters, unknown

ENTRIES = (
    "question",
    "hypothesis",
    "notebook",
    "study",
    "commands",
    "metrics",
    "chance",
    "fixed",
    "grid",
    "seeds",
    "profiles",
)
KINDS = ("notebook", "study", "commands")
_REPFLOW = [sys.executable, "-P", "-m", "repflow"]
_POINT = Path(__file__).with_name("point.py")
_WHAT = {"notebook": str, "study": str, "commands": list}

Values = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    name: of its folder, readable, with a hash of what it does. values: of all parameters. commands: what runs, one
    after the other, with {out} for the folder. metrics: the pattern of the file with the results, in the folder.
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
    """What a sweep varies: its parameters by name, what runs with given values, and where the results lie then."""

    parameters: Mapping[str, Parameter]
    commands: Callable[[Values], list[list[str]]]
    metrics: str = "metrics.json"
    check: Callable[..., object] = field(default=lambda **_: None)


def read_sweep(path: Path, profile: str = "tiny", overrides: Mapping[str, str] | None = None) -> Sweep:
    """Read and check a sweep file; `overrides` are texts for parameters that it fixes.

    Raises UsageError for anything that cannot run as it is written: an unknown name, a value of another type or one
    that the study refuses, two points that are the same, no points.
    """
    try:
        entries = _entries(path, profile)
        kind = _kind(entries)
        subject = _SUBJECTS[kind](entries[kind])
        points = _points(subject, entries, overrides or {})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    axes = _axes(entries)
    named = [(_name([*axes, "seed"], values, str(entries[kind])), values) for values in points]
    return Sweep(
        path.stem,
        entries.get("question", path.stem),
        entries.get("hypothesis", ""),
        entries.get("metrics", []),
        entries.get("chance", {}),
        axes,
        [Point(name, values, subject.commands(values), subject.metrics) for name, values in named],
    )


def _entries(path: Path, profile: str) -> dict[str, Any]:
    """The file's entries, with the profile's in the place of its own."""
    try:
        file = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot be read: {error}") from None
    file = _mapping("the file", file)
    profiles = _mapping("profiles", file.pop("profiles", {}))
    if profile not in (*profiles, PROFILES[0]):
        raise UsageError(f"it has no profile {profile!r}; there are: {', '.join(profiles) or 'none'}")
    chosen = _mapping(f"profiles, {profile}", profiles.get(profile, {}))
    if any(kind in chosen for kind in KINDS):
        file = {name: value for name, value in file.items() if name not in KINDS}
    entries = file | chosen
    for found, known in ((entries, ENTRIES), (profiles, PROFILES)):
        if unknown := [name for name in found if name not in known]:
            raise UsageError(f"expected the entries {', '.join(known)}, found {unknown[0]!r}")
    for name in ("question", "hypothesis"):
        if not isinstance(entries.get(name, ""), str):
            raise UsageError(f"{name}: expected text, found {entries[name]!r}")
    if not all(isinstance(name, str) for name in _list("metrics", entries.get("metrics", []))):
        raise UsageError(f"metrics: expected names, found {entries['metrics']!r}")
    chance = _mapping("chance", entries.get("chance", {}))
    if wrong := [name for name, value in chance.items() if type(value) not in (int, float) or not 0 <= value <= 100]:
        raise UsageError(f"chance, {wrong[0]}: expected a number of percent, found {chance[wrong[0]]!r}")
    return entries


def _kind(entries: Mapping[str, Any]) -> str:
    kinds = [kind for kind in KINDS if kind in entries]
    if len(kinds) != 1:
        raise UsageError(f"expected one of {', '.join(KINDS)}, found {', '.join(kinds) or 'none'}")
    if not isinstance(entries[kinds[0]], _WHAT[kinds[0]]) or not entries[kinds[0]]:
        wanted = 'text such as notebook: "04"' if kinds[0] != "commands" else "a list of lines"
        raise UsageError(f"{kinds[0]}: expected {wanted}, found {entries[kinds[0]]!r}")
    return kinds[0]


def _points(subject: _Subject, entries: Mapping[str, Any], overrides: Mapping[str, str]) -> list[Values]:
    """The values of all parameters at every point, in the file's order."""
    parameters = subject.parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    fixed = _mapping("fixed", entries.get("fixed", {}))
    varied = dict.fromkeys(itertools.chain(*_grids(entries)))
    for name in (*fixed, *varied, *overrides):
        if name not in parameters:
            raise UsageError(f"{unknown('parameter', name, parameters)} there are: {', '.join(parameters)}")
        if name in varied and (name in fixed or name in overrides):
            raise UsageError(f"{name} is both fixed and in the grid; leave one out")
    fixed = {name: parameters[name].check(value) for name, value in fixed.items()}
    fixed |= {name: parameters[name].parse(text) for name, text in overrides.items()}
    found: list[Values] = []
    for chosen in _product(entries):
        values = defaults | fixed | {name: parameters[name].check(value) for name, value in chosen.items()}
        if values in found:
            raise UsageError(f"two points are the same: {_words(chosen)}")
        found.append(values)
        if needed := [name for name, value in values.items() if value is inspect.Parameter.empty]:
            raise UsageError(f"expected values of {', '.join(needed)} in fixed or grid")
        try:
            subject.check(**values)
        except ValueError as error:
            raise UsageError(f"the point {_words(chosen)}: {error}") from None
    return found


def _grids(entries: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """The grids with the seeds as an axis of each. Raises UsageError where one of them or of its lists is empty."""
    grid = entries.get("grid")
    grids = [_mapping("grid", part) for part in (grid if isinstance(grid, list) else [grid])]
    if not all(grids) or not grids:
        raise UsageError(f"grid: expected names with lists of values, found {grid!r}")
    seeds = {"seed": entries["seeds"]} if "seeds" in entries else {}
    if seeds and any("seed" in part for part in grids):
        raise UsageError("seed is both in the grid and in seeds; leave one out")
    for name, values in itertools.chain(seeds.items(), *(part.items() for part in grids)):
        if not _list(f"grid, {name}", values):
            raise UsageError(f"grid, {name}: expected a list of one value or more, found []")
    return [part | seeds for part in grids]


def _axes(entries: Mapping[str, Any]) -> list[str]:
    """The names in the grid in their order, without the seed."""
    return [name for name in dict.fromkeys(itertools.chain(*_grids(entries))) if name != "seed"]


def _product(entries: Mapping[str, Any]) -> list[Values]:
    return [
        dict(zip(grid, values, strict=True)) for grid in _grids(entries) for values in itertools.product(*grid.values())
    ]


def _notebook(name: str) -> _Subject:
    (path,) = find_notebooks([name])
    parameters = read_parameters(path)

    def commands(values: Values) -> list[list[str]]:
        changed = [(key, value) for key, value in values.items() if value != parameters[key].default]
        options = [word for key, value in changed for word in ("-p", key, _text(value))]
        return [[*_REPFLOW, "run", str(path), *options, "--out", "{out}/runs"]]

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

    return _Subject(_keywords(study), commands, check=getattr(imported, "check", lambda **_: None))


def _commands(lines: list[str]) -> _Subject:
    words = [shlex.split(str(line)) for line in lines]
    if any(line[:1] != ["repflow"] for line in words):
        raise UsageError(f"commands: expected lines that begin with `repflow`, found {lines!r}")
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(" ".join(map(str, lines))) if name is not None}
    except ValueError as error:
        raise UsageError(f"commands: {error}") from None
    if wrong := [name for name in names if not name.isidentifier()]:
        raise UsageError(f"commands: expected names in braces, found {wrong[0]!r}")

    def commands(values: Values) -> list[list[str]]:
        filled = {name: _text(value) for name, value in values.items()} | {"out": "{out}"}
        return [[*_REPFLOW, *(word.format(**filled) for word in line[1:])] for line in words]

    return _Subject(
        {name: Parameter(name, object, default=inspect.Parameter.empty) for name in sorted(names - {"out"})}, commands
    )


_SUBJECTS: dict[str, Callable[[Any], _Subject]] = {"notebook": _notebook, "study": _study, "commands": _commands}


def _keywords(study: Callable[..., object]) -> dict[str, Parameter]:
    """A function's parameters as those of a notebook's cell."""
    entries = inspect.signature(study).parameters.items()
    return {name: Parameter.typed(name, entry.annotation, default=entry.default) for name, entry in entries}


def _name(axes: list[str], values: Values, subject: str) -> str:
    """A folder's name: what varies, and a hash of the subject and all values."""
    whole = json.dumps([subject, values], sort_keys=True)
    varied = "_".join(f"{name}={_text(values[name])}" for name in axes if values.get(name) is not None)
    return f"{re.sub(r'[^A-Za-z0-9_.=+-]+', '-', varied)[:80]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _text(value: object) -> str:
    """A value as a command line has it, see `Parameter.parse`."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(values: Values) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items())


def _mapping(what: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UsageError(f"{what}: expected lines `name: value`, found {value!r}")
    return dict(value)


def _list(what: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{what}: expected a list [a, b], found {value!r}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML without its traps: what it would take for something else than it looks like raises UsageError."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UsageError(f"line {node.start_mark.line + 1}: {twice[0]} is there twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        """Refuse 1e-3, which is text, 010, which is 8, 1:30, which is 90, and no, which is false."""
        kind, text = node.tag.rpartition(":")[2], node.value
        plain = {"int": "0|[-+]?[1-9][0-9]*", "float": r"[-+]?[0-9]*\.[0-9]*(e[-+][0-9]+)?", "bool": "true|false"}
        if kind in plain and not re.fullmatch(plain[kind], text, re.IGNORECASE):
            raise UsageError(
                f"line {node.start_mark.line + 1}: YAML takes {text} for {_PLAIN[kind]} of its own notation; write "
                f'numbers as 8 or 0.5, choices as true or false, and put text in quotes: "{text}"'
            )
        if kind == "str" and node.style is None and re.fullmatch(r"[-+]?[0-9][0-9_.]*(e[-+]?[0-9]+)?", text, re.I):
            raise UsageError(
                f"line {node.start_mark.line + 1}: YAML takes {text} for text; write a number with a point and a sign "
                f'(1.0e-3), or text in quotes: "{text}"'
            )
        return super().construct_scalar(node)


_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false"}
