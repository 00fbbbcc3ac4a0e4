"""Which notebooks to run, and with which values.

The one code cell tagged `parameters` of a notebook holds lines such as `steps: int = 250  # >= 1: optimiser steps`. The
type is int, float, bool, str, Literal["a", "b"], or one of these `| None`; the default is a literal of that type. The
comment may begin with the bounds of a number, `>= 1: ` or `> 0, <= 1: `. The cell is read with `ast`, never evaluated,
and every value from elsewhere is checked against it before anything starts.
"""

import ast
import difflib
import io
import itertools
import math
import operator
import re
import tokenize
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROFILES = ("tiny", "small", "paper")
_KINDS = {"int": int, "float": float, "bool": bool, "str": str}
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
# The pages that a run makes of its own, by name.
OWN_PAGES = {"index": "Run", "api": "Reference"}
_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
_PACKAGE = Path(__file__).parents[1]


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what to change. Nothing has been started or written."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell.

    `choices` is empty unless its type is a Literal; `optional` allows None; `bounds` are pairs such as (">=", 1.0).
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    optional: bool
    help: str
    default: Any = None
    bounds: tuple[tuple[str, float], ...] = ()

    def check(self, value: object) -> Any:
        """Return `value`, a whole number as float where a float is expected; raise UsageError if it cannot be."""
        if value is None and self.optional:
            return None
        if self.kind is float and type(value) is int:
            value = float(value)
        fits = type(value) is self.kind and (self.kind is not float or math.isfinite(value))
        fits = fits and (not self.choices or value in self.choices)
        if not (fits and all(_COMPARE[sign](value, bound) for sign, bound in self.bounds)):
            expected = "one of " + ", ".join(self.choices) if self.choices else _WORDS[self.kind]
            expected += "".join(f" {sign} {bound:g}" for sign, bound in self.bounds)
            what = f"{self.name} ({self.help})" if self.help else self.name
            raise UsageError(f"{what} takes {expected}{' or none' * self.optional}, not {value!r}")
        return value

    def parse(self, text: str) -> Any:
        """Return the value that `text` from a command line stands for; raise UsageError if it is of another type."""
        value: object = text
        if self.optional and text == "none":
            value = None
        elif self.kind is bool:
            value = {"true": True, "false": False}.get(text, text)
        elif self.kind is float or (self.kind is int and re.fullmatch("[+-]?[0-9]+", text)):
            with suppress(ValueError):  # what is still text afterwards, check() refuses
                value = self.kind(text)
        return self.check(value)


@dataclass(frozen=True)
class Job:
    """A notebook with the values of all its parameters, and those among them that are not the notebook's defaults."""

    notebook: Path
    values: dict[str, Any]
    changed: dict[str, Any]


def find_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """Return the project's notebooks in order, or those named: by number, name, or the path of an .ipynb file.

    The project's are in the installed package or beside it in the checkout. Raises UsageError for an unknown name.
    """
    folders = (_PACKAGE / "notebooks", _PACKAGE.parent / "notebooks")
    known = next((found for folder in folders if (found := sorted(folder.glob("*.ipynb")))), [])
    chosen = []
    for name in names:
        path = Path(name)
        matches = [k for k in known if name == k.stem or name.zfill(2) == k.stem.split("_")[0]]
        if path.suffix == ".ipynb" and path.is_file():
            matches = [path.resolve()]
        if not matches:
            there = ", ".join(k.stem for k in known) or "none here"
            raise UsageError(f"no notebook {name!r}; there are: {there}; or give the path of an .ipynb file")
        chosen += matches
    names = [path.stem.casefold() for path in chosen]  # folded, for disks on which A and a are one file
    for path, name in zip(chosen, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"{path.stem} is named twice; results are kept by name, so give each name once")
        if name in OWN_PAGES:
            raise UsageError(f"{path}: {path.stem}.html is the run's own page; give the notebook another name")
    if not (chosen or known):
        raise UsageError(f"no notebooks in {folders[1]}; give the path of an .ipynb file")
    return chosen or known


def plan(names: Sequence[str], overrides: Sequence[tuple[str, str]] = (), profile: str = "tiny") -> list[Job]:
    """Return what to run: each notebook's defaults, then the profile's values, then `overrides` (name, text).

    An override goes to every notebook that has a parameter of that name. Raises UsageError, before anything starts, for
    an unknown notebook or parameter and for a value of another type.
    """
    notebooks = {path: read_parameters(path) for path in find_notebooks(names)}
    for name, _ in overrides:
        if not any(name in parameters for parameters in notebooks.values()):
            raise UsageError(_unknown(name, notebooks))
    return [_job(path, parameters, overrides, profile) for path, parameters in notebooks.items()]


def _job(path: Path, parameters: Mapping[str, Parameter], overrides: Sequence[tuple[str, str]], profile: str) -> Job:
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    values = dict(defaults)
    try:
        for name, value in read_profile(path.parent, profile).get(path.stem, {}).items():
            if name not in parameters:
                raise UsageError(f"profile {profile}: {_unknown(name, {path: parameters})}")
            values[name] = parameters[name].check(value)
        for name, text in overrides:
            if name in parameters:
                values[name] = parameters[name].parse(text)
    except UsageError as error:
        raise UsageError(f"{path.stem}: {error}") from None
    return Job(path, values, {name: value for name, value in values.items() if value != defaults[name]})


def _unknown(name: str, notebooks: Mapping[Path, Mapping[str, Parameter]]) -> str:
    close = difflib.get_close_matches(name, itertools.chain(*notebooks.values()), n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    there = "; ".join(f"{path.stem} has {', '.join(names) or 'none'}" for path, names in notebooks.items())
    return f"no parameter {name!r}{hint} {there}"


def read_profile(folder: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Return a profile's values by notebook and name, from `folder`/profiles.toml; tiny has none, it is the defaults.

    Raises UsageError if the file is missing or is no TOML.
    """
    if profile == "tiny":
        return {}
    path = folder / "profiles.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get(profile, {})
    except (FileNotFoundError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the profile {profile!r} should be in {path}: {error}") from None


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Return a notebook's parameters by name; raise UsageError if its parameters cell breaks the rules above."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{notebook} is not a notebook: {error}") from None
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise UsageError(f"{notebook.stem}: expected one code cell tagged 'parameters', found {len(tagged)}")
    try:
        return _read_cell(tagged[0].source)
    except UsageError as error:
        raise UsageError(f"{notebook.stem}, parameters cell, {error}") from None


def _read_cell(source: str) -> dict[str, Parameter]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise UsageError(f"line {error.lineno}: {error.msg}") from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for statement in statements:
        try:
            parameter = _parameter(statement, comments.get(statement.end_lineno, ""))
            if parameter.name in found:
                raise UsageError(f"{parameter.name} is there twice")
        except UsageError as error:
            raise UsageError(f"line {statement.lineno}: {error}") from None
        found[parameter.name] = parameter
    return found


def _parameter(statement: ast.stmt, comment: str) -> Parameter:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            kind, choices, optional = _annotation(annotation)
            bounds, comment = _bounds(comment) if kind in (int, float) else ((), comment)
            parameter = Parameter(name, kind, choices, optional, comment, bounds=bounds)
            try:
                default = ast.literal_eval(value)
            except (ValueError, TypeError):
                raise UsageError(f"the default of {name} must be a literal, not {ast.unparse(value)}") from None
            return replace(parameter, default=parameter.check(default))
    raise UsageError(f"expected `name: type = default  # help`, found {ast.unparse(statement)}")


def _bounds(comment: str) -> tuple[tuple[tuple[str, float], ...], str]:
    """Return the bounds that a comment begins with, and the rest of it."""
    found = re.match(r"(?P<bounds>[<>][^:]*): *(?P<help>.*)", comment)
    if not found:
        return (), comment
    parts = [part.partition(" ") for part in re.split(", *", found["bounds"])]
    try:
        bounds = tuple((sign, float(number)) for sign, _, number in parts)
        if all(sign in _COMPARE for sign, _ in bounds):
            return bounds, found["help"]
    except ValueError:
        pass
    raise UsageError(f"expected bounds such as `>= 1: ` or `> 0, <= 1: ` before the help, found {comment!r}")


def _annotation(node: ast.expr) -> tuple[type, tuple[str, ...], bool]:
    match node:
        case ast.Name(id=name) if name in _KINDS:
            return _KINDS[name], (), False
        case ast.BinOp(left=left, op=ast.BitOr(), right=ast.Constant(value=None)):
            kind, choices, _ = _annotation(left)
            return kind, choices, True
        case ast.Subscript(value=ast.Name(id="Literal"), slice=items):
            with suppress(ValueError, TypeError):
                choices = ast.literal_eval(items)
                choices = choices if isinstance(choices, tuple) else (choices,)
                if choices and all(isinstance(choice, str) for choice in choices):
                    return str, choices, False
    known = ", ".join(_KINDS)
    raise UsageError(f"the type must be {known}, Literal[texts] or one of these | None, not {ast.unparse(node)}")
