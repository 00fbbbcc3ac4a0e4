"""The package's reference: signatures and docstrings of its public names, read from its source by griffe."""

import html
import re
from pathlib import Path
from typing import Any

import griffe
from markupsafe import Markup

_PARTS = "data", "video", "official", "training", "evaluation", "classify"
MODULES = ("repflow", *(f"repflow.{part}" for part in _PARTS))


def read_modules() -> list[dict[str, Any]]:
    """Return MODULES with their public parts: what `__all__` names, or else the documented functions and classes."""
    package = griffe.load("repflow", search_paths=[Path(__file__).parents[2]], resolve_aliases=True)
    modules = ((name, package[name.partition(".")[2]] if "." in name else package) for name in MODULES)
    return [{"name": name, "doc": _doc(module), "parts": _parts(module)} for name, module in modules]


def places(modules: list[dict[str, Any]]) -> dict[str, str]:
    """Return where each name stands on the page: under the first module that offers it."""
    return {
        part["name"]: f"{module['name']}.{part['name']}" for module in reversed(modules) for part in module["parts"]
    }


def marked(doc: str, places: dict[str, str]) -> Markup:
    """Return a docstring as HTML, with `code` and $VARIABLES as such, linked where the name has a place."""

    def code(match: re.Match[str]) -> str:
        text = match[1] or match[0]
        name = re.sub(r"^repflow\.|\(.*", "", html.unescape(text)).rpartition(".")[2]
        return f'<a href="#{places[name]}"><code>{text}</code></a>' if name in places else f"<code>{text}</code>"

    return Markup(re.sub(r"`([^`]+)`|\$[A-Z_]+", code, html.escape(doc, quote=False)))


def _parts(owner: griffe.Object) -> list[dict[str, Any]]:
    """Return the public functions and classes of a module, or the documented methods and properties of a class."""
    own = [name for name, part in owner.members.items() if name[0] != "_" and not part.is_alias and part.has_docstring]
    parts = []
    for name in getattr(owner, "exports", None) or own:
        part = owner.members[name]
        if part.is_module and name in part.members:  # a function hides the module of its name
            part = part.members[name]
        part = part.final_target if part.is_alias else part
        if part.is_class or part.is_function or (owner.is_class and "property" in part.labels):
            methods = _parts(part) if part.is_class else []
            parts.append({"name": name, "doc": _doc(part), "signature": _signature(name, part), "parts": methods})
    return parts


def _doc(part: griffe.Object) -> str:
    return part.docstring.value if part.docstring else ""


def _signature(name: str, part: griffe.Object) -> str:
    """Return how a function is called, or a class is made: by its `__init__`, or by its fields where it has none."""
    if part.is_attribute:
        return ""
    if part.is_function or "__init__" in part.members:
        return part.signature().removeprefix(name)
    fields = [field for field in part.members.values() if field.is_attribute and field.annotation]
    listed = ", ".join(f"{f.name}: {f.annotation}" + (f" = {f.value}" if f.value else "") for f in fields)
    return f"({listed})" if listed else ""
