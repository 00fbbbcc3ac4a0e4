"""The package's reference as HTML, from its source: signatures and docstrings as they are written, nothing imported."""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

import repflow

MODULES = ("repflow", "repflow.data", "repflow.video", "repflow.official", "repflow.training", "repflow.evaluation")

_ROOT = Path(repflow.__file__).parents[1]
_Definition = ast.FunctionDef | ast.ClassDef


def reference() -> str:
    """Return the public functions and classes of MODULES, each once, under the first module that offers it."""
    entries = {module: dict(_public(module)) for module in MODULES}
    home = {name: f"{module}.{name}" for module, found in reversed(entries.items()) for name in found}
    parts = ["<header><h1>Reference</h1></header>", "<main>", "<ul>"]
    for module, found in entries.items():
        links = ", ".join(f'<a href="#{module}.{name}">{name}</a>' for name in found)
        parts.append(f'<li><a href="#{module}"><code>{module}</code></a>: {links}</li>')
    parts.append("</ul>")
    for module, found in entries.items():
        parts += [f'<h2 id="{module}">{module}</h2>', _doc(_parse(module), home)]
        parts += [_entry(f"{module}.{name}", node, home) for name, node in found.items()]
    return "\n".join([*parts, "</main>"])


def _public(module: str) -> Iterator[tuple[str, _Definition]]:
    """What `__all__` names; where there is none, functions and classes with a docstring and no leading underscore."""
    tree = _parse(module)
    names = [n.name for n in tree.body if isinstance(n, _Definition) and n.name[0] != "_" and ast.get_docstring(n)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    for name in names:
        if found := _definition(tree, name):
            yield name, found


def _definition(tree: ast.Module, name: str) -> _Definition | None:
    """A function or class, here or in the module it is imported from; None for anything else."""
    for node in tree.body:
        if isinstance(node, _Definition) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            is_module = _file(f"{node.module}.{name}")
            return None if is_module else _definition(_parse(node.module), name)
    return None


def _parse(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path | None:
    """The source of a module, None where there is none of that name in this package."""
    path = _ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _entry(name: str, node: _Definition, home: dict[str, str]) -> str:
    """A function, or a class with its documented methods."""
    short = name.rpartition(".")[2]
    parts = [f'<h3 id="{name}"><code>{name}</code></h3>', _signature(short, node), _doc(node, home)]
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_" and ast.get_docstring(n)]
        for method in methods:
            parts.append(f"<section>{_signature(method.name, method)}{_doc(method, home)}</section>")
    return "\n".join(parts)


def _signature(name: str, node: _Definition) -> str:
    """How a function is called, or a class is made: by its `__init__`, or by its fields where it has none."""
    if isinstance(node, ast.FunctionDef):
        call = node
    else:
        call = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if call:
        is_property = "property" in map(ast.unparse, call.decorator_list)
        arguments = "" if is_property else f"({re.sub(r'^self(, )?', '', ast.unparse(call.args))})"
        returned = f" → {ast.unparse(call.returns)}" if call is node and call.returns else ""
    else:
        fields = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
        arguments, returned = f"({', '.join(fields)})" if fields else "", ""
    return f'<p class="signature"><b>{name}</b>{html.escape(arguments + returned)}</p>'


def _doc(node: ast.Module | _Definition, home: dict[str, str]) -> str:
    """A docstring as it stands, with `code` and $VARIABLES as such, linked where it is an entry."""

    def code(found: re.Match[str]) -> str:
        text = found[1] or found[0]
        name = re.sub(r"^repflow\.|\(.*", "", html.unescape(text)).rpartition(".")[2]
        return f'<a href="#{home[name]}"><code>{text}</code></a>' if name in home else f"<code>{text}</code>"

    text = html.escape(ast.get_docstring(node) or "", quote=False)
    text = re.sub(r"`([^`]+)`|\$[A-Z_]+", code, text)
    return f'<div class="doc">{text}</div>'
