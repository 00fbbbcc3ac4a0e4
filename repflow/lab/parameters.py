"""Typed text: a notebook's parameters, a sweep's values and `train --set NAME=VALUE` are read by the same functions.

The one code cell tagged `parameters` of a notebook holds lines such as `steps: int = 250  # >= 1: optimiser steps`. The
type is int, float, bool, str, Literal["a", "b"], or one of these `| None`; the default is a literal of that type. The
comment may begin with the bounds of a number, `>= 1: ` or `> 0, <= 1: `. The cell is read with `ast`, never evaluated,
and every value from elsewhere is checked against it before anything starts.
"""

import ast
import difflib
import io
import math
import operator
import re
import tokenize
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

PROFILES = ("tiny", "small", "paper")
_PLAIN = {"int": int, "float": float, "bool": bool, "str": str}
_EXPECTED = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    object: "text, a finite number, true or false",
    Collection: "names with commas between them",
}
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_NUMBERS = (int, float, int | None, float | None)


class UsageError(ValueError):
    """A request that cannot be met; the message says what to change. Nothing has been started or written."""


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Make a ValueError within a UsageError, the place before its message."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{place}{error}") from None


@dataclass(frozen=True)
class Parameter:
    """A name with a type, for values that come as text or from a file.

    kind: int, float, bool, str, tuple[...], Collection[str], or object for any plain value. choices: the texts of a
    Literal. optional: None is allowed. bounds: pairs such as (">=", 1.0).

        >>> Parameter.typed("steps", int | None, bounds=((">=", 1.0),)).parse("20")
        20
    """

    name: str
    kind: Any
    choices: tuple[str, ...] = ()
    optional: bool = False
    help: str = ""
    default: Any = None
    bounds: tuple[tuple[str, float], ...] = ()

    @classmethod
    def typed(cls, name: str, hint: Any, **details: Any) -> Self:
        """Return the parameter of a type hint; raise UsageError for a type that no text can stand for."""
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        kind = next((kind for kind in kinds if kind is not NoneType), None)
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        if kind not in (*_PLAIN.values(), object) and not choices and get_origin(kind) not in (tuple, Collection):
            raise UsageError(f"{name}: the type must be {', '.join(_PLAIN)} or Literal[texts], not {hint}")
        return cls(name, str if choices else kind, choices, NoneType in kinds, **details)

    @property
    def expected(self) -> str:
        """Which values the parameter takes, in words."""
        if self.choices:
            words = f"one of {', '.join(self.choices)}"
        elif get_origin(self.kind) is tuple:
            words = f"{len(get_args(self.kind))} values with commas between them"
        else:
            words = _EXPECTED[get_origin(self.kind) or self.kind]
        words += "".join(f" {sign} {bound:g}" for sign, bound in self.bounds)
        return f"{words} or none" if self.optional else words

    def check(self, value: object) -> Any:
        """Return `value`, a whole number as float where a float is expected; raise UsageError if it does not fit."""
        if value is None and self.optional:
            return None
        if self.kind is float and type(value) is int:
            value = float(value)
        fits = _fits(value, self.kind) and (not self.choices or value in self.choices)
        if not fits or not all(_COMPARE[sign](value, bound) for sign, bound in self.bounds):
            label = f"{self.name} ({self.help})" if self.help else self.name
            raise UsageError(f"{label} takes {self.expected}, not {value!r}")
        return value

    def parse(self, text: str) -> Any:
        """Return the value that `text` from a command line stands for; raise UsageError if it has another type."""
        return None if self.optional and text == "none" else self.check(_value(text, self.kind))


def _value(text: str, kind: Any) -> Any:
    """Return the value of type `kind` in `text`, or `text` itself, which `_fits` then refuses."""
    parts, kinds = text.split(","), get_args(kind)
    if get_origin(kind) is Collection:
        return [part for part in parts if part]
    if get_origin(kind) is tuple and len(parts) == len(kinds):
        return tuple(map(_value, parts, kinds))
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind is float or (kind is int and re.fullmatch("[+-]?[0-9]+", text)):
        with suppress(ValueError):
            return kind(text)
    return text


def _fits(value: object, kind: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind is object:
        return isinstance(value, bool | int | float | str)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(map(_fits, value, get_args(kind)))
    return isinstance(value, list) if get_origin(kind) is Collection else type(value) is kind


def unknown(noun: str, name: object, known: Collection[str]) -> str:
    """Return the start of an error message about a name that is not in `known`, with the closest name that is."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"no {noun} {name!r}, did you mean {close[0]!r}?" if close else f"no {noun} {name!r};"


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
    with naming(f"{notebook.stem}, parameters cell, "):
        return _read_cell(tagged[0].source)


def _read_cell(source: str) -> dict[str, Parameter]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise UsageError(f"line {error.lineno}: {error.msg}") from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    parameters: dict[str, Parameter] = {}
    for statement in statements:
        with naming(f"line {statement.lineno}: "):
            parameter = _read_line(statement, comments.get(statement.end_lineno, ""))
            if parameter.name in parameters:
                raise UsageError(f"{parameter.name} is there twice")
        parameters[parameter.name] = parameter
    return parameters


def _read_line(statement: ast.stmt, comment: str) -> Parameter:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            hint = _hint(annotation)
            bounds, text = _bounds(comment) if hint in _NUMBERS else ((), comment)
            parameter = Parameter.typed(name, hint, help=text, bounds=bounds)
            try:
                default = ast.literal_eval(value)
            except (ValueError, TypeError):
                raise UsageError(f"the default of {name} must be a literal, not {ast.unparse(value)}") from None
            return replace(parameter, default=parameter.check(default))
    raise UsageError(f"expected `name: type = default  # help`, found {ast.unparse(statement)}")


def _bounds(comment: str) -> tuple[tuple[tuple[str, float], ...], str]:
    """Return the bounds at the start of a comment, and the rest of the comment."""
    match = re.match(r"(?P<bounds>[<>][^:]*): *(?P<help>.*)", comment)
    if not match:
        return (), comment
    pairs = [part.partition(" ")[::2] for part in re.split(", *", match["bounds"])]
    with suppress(ValueError):
        if all(sign in _COMPARE for sign, _ in pairs):
            return tuple((sign, float(number)) for sign, number in pairs), match["help"]
    raise UsageError(f"expected bounds such as `>= 1: ` or `> 0, <= 1: ` before the help, found {comment!r}")


def _hint(node: ast.expr) -> Any:
    """Return the type hint that an annotation's syntax tree stands for."""
    match node:
        case ast.Name(id=name) if name in _PLAIN:
            return _PLAIN[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=ast.Constant(value=None)):
            return _hint(left) | None
        case ast.Subscript(value=ast.Name(id="Literal"), slice=items):
            texts = [node.value for node in ast.walk(items) if isinstance(node, ast.Constant)]
            if texts and all(isinstance(text, str) for text in texts):
                return Literal[tuple(texts)]
    raise UsageError(
        f"the type must be {', '.join(_PLAIN)}, Literal[texts] or one of these | None, not {ast.unparse(node)}"
    )
