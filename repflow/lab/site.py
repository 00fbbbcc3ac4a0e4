"""A run as one static site that opens with the network off: its notebooks' pages, an index and a reference.

Equations become MathML while a page is made. The pages' HTML and CSS are in the folder `templates`.
"""

import html
import itertools
import logging
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import nbformat
from latex2mathml.converter import Converter
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from repflow.lab import reference
from repflow.lab.jobs import OWN_PAGES, Job
from repflow.lab.notebook import METRICS, summary

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).with_name("templates")
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True)
TEMPLATES.filters |= {"summary": summary, "marked": reference.marked}

# What latex2mathml does not lay out, and what replaces it: `align` would number its lines, each time from 1.
_REPLACEMENTS = {
    r"\\(begin|end)\{(align|aligned|eqnarray)\*?\}": r"\\\1{align*}",
    r"\\(begin|end)\{(gather|gathered)\*?\}": r"\\\1{displaylines}",
    r"\\(begin|end)\{equation\*?\}": "",
    r"\\mathrm\{(\w)\}": r"{\\mathrm \1}",  # with braces around it, a single letter comes out italic
    r"\\tag\{": r"\\qquad\\tag{",
    r"\\arg\s*\\(min|max)": r"\\arg\1",
}
_UNKNOWN = re.compile(r"\\|<mi>&amp;|<mo />|linebreak=")  # commands and columns that the converter lets through
_RELATIONS = ("=", "←", "≈", "≤", "≥")


def write_site(folder: Path, name: str, profile: str, jobs: Sequence[Job], records: Sequence[dict[str, Any]]) -> bool:
    """Write the pages of a run into `folder`, where its executed notebooks lie: index.html leads to all others.

    records: the metrics of the jobs that were run, in their order; the index names the others. Returns whether every
    page could be made; a page that could not be made says why, as the log does.
    """
    titles = {record["notebook"]: record["title"] for record in records}
    names = list(titles)
    made = []
    for job, previous, current, following in zip(jobs, [None, *names], names, [*names[1:], None], strict=False):
        links = {name: f"{arrow} {titles[name]}" for name, arrow in ((previous, "←"), (following, "→")) if name}
        page = partial(_executed_page, folder, job, titles, OWN_PAGES | links)
        made.append(_write(folder / f"{current}.html", titles[current], page))
    title = f"repflow run {name}"
    made.append(_write(folder / "api.html", f"{OWN_PAGES['api']}, {title}", lambda: _api_page(title)))
    facts = {"profile": profile, "records": records, "figures": {path.stem for path in folder.glob("*.png")}}
    facts["missing"] = [job.notebook.stem for job in jobs[len(records) :]]
    index = partial(_page, "index.html.j2", title, **facts)
    return all([*made, _write(folder / "index.html", title, index)])


def _write(file: Path, title: str, make: Callable[[], str]) -> bool:
    """Write a page, or what went wrong with it, so that the other pages are made and no link leads nowhere."""
    try:
        text, made = make(), True
    except Exception as error:  # a notebook may hold anything, and its converters raise anything
        problem = f"this page could not be made: {type(error).__name__}: {error}"
        _log.error("%s: %s", file.name, problem)
        text, made = _page("base.html.j2", title, problem=problem), False
    file.write_text(text, encoding="utf-8")
    return made


def _page(template: str, title: str, **values: object) -> str:
    return TEMPLATES.get_template(template).render(title=title, links=OWN_PAGES, **values)


def _api_page(title: str) -> str:
    modules = reference.read_modules()
    return _page("api.html.j2", f"{OWN_PAGES['api']}, {title}", modules=modules, places=reference.places(modules))


def _executed_page(folder: Path, job: Job, titles: Mapping[str, str], links: Mapping[str, str]) -> str:
    name = job.notebook.stem
    executed = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    return notebook_page(executed, titles[name], job.notebook.parent, links, titles)


def notebook_page(
    notebook: NotebookNode, title: str, folder: Path, links: Mapping[str, str] = {}, pages: Collection[str] = ()
) -> str:
    """Return an executed notebook as one HTML file that loads nothing; images beside it are looked for in `folder`.

    links: the titles of the pages that its head and foot lead to, by their names. pages: names of the notebooks that
    have a page beside this one. Links to these go to their pages; the text of a link to any other file stays without
    the link.
    """
    font = b64encode((_FOLDER / "STIXTwoMath.woff2").read_bytes()).decode()
    metadata = {"name": title, "path": str(folder), "links": links, "pages": pages}
    metadata |= {"font": font, "metrics": METRICS}
    page, _ = _exporter().from_notebook_node(notebook, {"metadata": metadata})
    sections = re.findall(r'<h2 id="(.+?)">(.+?)<a class="anchor-link"', page)
    contents = "".join(f'<li><a href="#{place}">{text}</a></li>' for place, text in sections)
    return page.replace("<!-- contents -->", contents, 1)


@cache
def _exporter() -> HTMLExporter:
    """One for all pages: each would compile its templates anew."""
    return HTMLExporter(
        raw_template=(_FOLDER / "notebook.html.j2").read_text(encoding="utf-8"),
        filters={"markdown2html": _markdown},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )


def heading(notebook: NotebookNode) -> str | None:
    """Return a notebook's first heading, without its marks; None where it has none."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    match = re.search(r"^#+ +(.+)$", text, re.MULTILINE)
    return re.sub(r"[`*$]", "", match[1]).strip() if match else None


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML, or as it was written where it cannot be converted. display: "inline" or "block"."""
    standard = latex
    for pattern, replacement in _REPLACEMENTS.items():
        standard = re.sub(pattern, replacement, standard)
    try:
        tree = Converter(display=display).convert_to_element(standard)
    except Exception as error:  # its parser raises anything
        problem = repr(error)
    else:
        _set_spaces(tree)
        markup = ElementTree.tostring(tree, encoding="unicode")
        if not _UNKNOWN.search(markup):
            return markup if display == "inline" else _wrapping(tree)
        problem = "it holds what latex2mathml does not know"
    _log.warning("a formula stays LaTeX on its page, %s: %s", problem, latex.strip())
    return f"<code>{html.escape(latex)}</code>"


def _wrapping(tree: ElementTree.Element) -> str:
    """Return a displayed formula in pieces: a narrow page breaks the line between two, never inside one.

    Pieces begin at relations and end at wide spaces.
    """
    pieces: list[list[ElementTree.Element]] = [[]]
    for element in tree[0]:
        wide = element.tag == "mspace" and element.get("width") == "2em"
        if pieces[-1] and (wide or (element.tag == "mo" and element.text in _RELATIONS)):
            pieces.append([])
        if wide:
            element.set("width", "1em")
        pieces[-1].append(element)
    markup = []
    for piece in pieces:
        math = ElementTree.Element("math", tree.attrib | {"display": "inline", "displaystyle": "true"})
        ElementTree.SubElement(math, "mrow").extend(piece)
        markup.append(ElementTree.tostring(math, encoding="unicode"))
    return f'<span class="equation">{"<wbr>".join(markup)}</span>'


def _set_spaces(tree: ElementTree.Element) -> None:
    """Give a formula the spaces of TeX, and plain characters where the converter writes references."""
    for element in tree.iter():
        element.text = html.unescape(element.text or "")
        if element.text in ("|", "‖", "/"):
            element.attrib.update(lspace="0", rspace="0")
    for row in tree.iter():
        for previous, sign in itertools.pairwise(row):
            if previous.tag == sign.tag == "mo" and sign.text in ("+", "−") and previous.text not in tuple(")]|‖"):
                sign.set("form", "prefix")


class _Renderer(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML instead of text for a script, and links that hold."""

    pages: Collection[str] = ()

    def link(self, text: str, url: str, title: str | None = None) -> str:
        name, _, place = url.partition(".ipynb")
        if name in self.pages:
            url = f"{name}.html{place}"
        elif not re.match(r"#|https?:|mailto:", url):
            return text
        return super().link(text, url, title)

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


@jinja2.pass_context
def _markdown(context: jinja2.runtime.Context, source: str) -> str:
    attachments = context.get("cell", {}).get("attachments", {})
    metadata = context["resources"]["metadata"]
    renderer = _Renderer(escape=False, attachments=attachments, embed_images=True, path=metadata["path"])
    renderer.pages = metadata["pages"]
    return MarkdownWithMath(renderer=renderer).render(source)
