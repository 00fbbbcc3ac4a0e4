"""Pages that open with the network off: executed notebooks, with their equations as MathML."""

import html
import itertools
import logging
import re
from collections.abc import Collection
from pathlib import Path
from xml.etree import ElementTree

import jinja2
from latex2mathml.converter import Converter
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

log = logging.getLogger(__name__)

# What latex2mathml does not lay out, and what stands in for it: `align` would number its lines, each time from 1.
_STAND_INS = {
    r"\\(begin|end)\{(align|aligned|eqnarray)\*?\}": r"\\\1{align*}",
    r"\\(begin|end)\{(gather|gathered)\*?\}": r"\\\1{displaylines}",
    r"\\(begin|end)\{equation\*?\}": "",
    r"\\mathrm\{(\w)\}": r"{\\mathrm \1}",  # with braces around it, a single letter comes out italic
    r"\\tag\{": r"\\qquad\\tag{",
    r"\\arg\s*\\(min|max)": r"\\arg\1",
}
_UNKNOWN = re.compile(r"\\|<mi>&amp;|<mo />|linebreak=")  # commands and columns that the converter lets through

_RELATIONS = ("=", "←", "≈", "≤", "≥")

_NOTEBOOK = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
  main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
  main pre { white-space: pre-wrap !important; word-break: normal !important; overflow-wrap: anywhere; }
  main td code { overflow-wrap: anywhere; }
  main h2 { line-height: 1.25 !important; }
  math { font-size: 1.12em; }
  .equation { display: block; margin: 1em 0; text-align: center; overflow-x: auto; line-height: 2.4; }
  @media (max-width: 500px) {
    .equation { font-size: .77em; }
    .jp-RenderedHTMLCommon table { display: block; overflow-x: auto; }
  }
  [mathvariant^="bold"] { font-weight: bold; }
  [mathvariant="bold"], [mathvariant="normal"] { text-transform: none; }
  mtd[columnalign="left"] { text-align: left; }
  mtd[columnalign="right"] { text-align: right; padding-right: 0; }
  mtd[columnalign="right"] + mtd[columnalign="left"] { padding-left: 0; }
  nav.site { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .6rem 1rem; font: 1rem system-ui, sans-serif; }
  nav.site a { color: #0072b2; text-decoration: underline; }
</style>
{%- endblock -%}
{%- block body_header -%}{{ super() }}{{ resources.metadata.navigation }}{%- endblock -%}
{%- block body_footer -%}{{ resources.metadata.navigation }}{{ super() }}{%- endblock -%}
{%- block data_png -%}
{%- set alt = output | get_metadata('alt', 'image/png') or 'Figure made by the cell above' -%}
{{ super() | replace('<img ', '<img alt="' ~ alt | e ~ '" ') }}
{%- endblock -%}
{%- block data_latex -%}
<div class="jp-RenderedHTMLCommon">{{ output.data['text/latex'] | markdown2html }}</div>
{%- endblock -%}
"""


def notebook_page(
    notebook: NotebookNode, title: str, folder: Path, navigation: str = "", pages: Collection[str] = ()
) -> str:
    """Return an executed notebook as one HTML file that loads nothing; images beside it are looked for in `folder`.

    navigation: HTML for its head and foot. pages: names of the notebooks that have a page beside this one. Links to
    these go to their pages; the text of a link to any other file stays without the link.
    """
    exporter = HTMLExporter(
        raw_template=_NOTEBOOK,
        filters={"markdown2html": _markdown},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    about = {"name": title, "path": str(folder), "navigation": navigation, "pages": pages}
    page, _ = exporter.from_notebook_node(notebook, {"metadata": about})
    return page


def heading(notebook: NotebookNode) -> str | None:
    """Return a notebook's first heading, without its marks."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^#+ +(.+)$", text, re.MULTILINE)
    return found and re.sub(r"[`*$]", "", found[1]).strip()


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML, `display` being "inline" or "block"; what cannot be converted, as it was written."""
    standard = latex
    for pattern, stand_in in _STAND_INS.items():
        standard = re.sub(pattern, stand_in, standard)
    try:
        tree = Converter(display=display).convert_to_element(standard)
    except Exception as error:  # it raises whatever its parser stumbles over
        problem = repr(error)
    else:
        _set(tree)
        markup = ElementTree.tostring(tree, encoding="unicode")
        if not _UNKNOWN.search(markup):
            return markup if display == "inline" else _wrapping(tree)
        problem = "it holds what latex2mathml does not know"
    log.warning("a formula stays LaTeX on its page, %s: %s", problem, latex.strip())
    return f"<code>{html.escape(latex)}</code>"


def _wrapping(tree: ElementTree.Element) -> str:
    """Return a displayed formula in pieces between which a narrow page breaks the line, as no browser does in one.

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


def _set(tree: ElementTree.Element) -> None:
    """Give a formula the spaces of TeX, and plain characters where the converter writes references."""
    for element in tree.iter():
        element.text = html.unescape(element.text or "")
        if element.text in ("|", "‖", "/"):
            element.attrib.update(lspace="0", rspace="0")
    for row in tree.iter():
        for before, sign in itertools.pairwise(row):
            if before.tag == sign.tag == "mo" and sign.text in ("+", "−") and before.text not in tuple(")]|‖"):
                sign.set("form", "prefix")


class _Renderer(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML in place of text for a script to find, and links that hold."""

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
    about = context["resources"]["metadata"]
    renderer = _Renderer(escape=False, attachments=attachments, embed_images=True, path=about["path"])
    renderer.pages = about["pages"]
    return MarkdownWithMath(renderer=renderer).render(source)
