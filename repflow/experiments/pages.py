"""Pages that open with the network off: executed notebooks with their equations as MathML, and a run's index."""

import html
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
from latex2mathml.converter import Converter
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from repflow.experiments.reporting import summary

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

_NOTEBOOK = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
  main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
  math[display="block"] { margin: 1em 0; }
  [mathvariant^="bold"] { font-weight: bold; }
  [mathvariant="bold"], [mathvariant="normal"] { text-transform: none; }
  mtd[columnalign="left"] { text-align: left; }
  mtd[columnalign="right"] { text-align: right; padding-right: 0; }
  mtd[columnalign="right"] + mtd[columnalign="left"] { padding-left: 0; }
</style>
{%- endblock -%}
{%- block data_png -%}
{%- set alt = output | get_metadata('alt', 'image/png') or 'Figure made by the cell above' -%}
{{ super() | replace('<img ', '<img alt="' ~ alt | e ~ '" ') }}
{%- endblock -%}
{%- block data_latex -%}
<div class="jp-RenderedHTMLCommon">{{ output.data['text/latex'] | markdown2html }}</div>
{%- endblock -%}
"""


def notebook_page(notebook: NotebookNode, title: str, folder: Path) -> str:
    """Return an executed notebook as one HTML file that loads nothing; images beside it are looked for in `folder`."""
    exporter = HTMLExporter(
        raw_template=_NOTEBOOK,
        filters={"markdown2html": _markdown},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title, "path": str(folder)}})
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
            return markup
        problem = "it holds what latex2mathml does not know"
    log.warning("a formula stays LaTeX on its page, %s: %s", problem, latex.strip())
    return f"<code>{html.escape(latex)}</code>"


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
    """Markdown to HTML, with formulas as MathML in place of text for a script to find."""

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


@jinja2.pass_context
def _markdown(context: jinja2.runtime.Context, source: str) -> str:
    attachments = context.get("cell", {}).get("attachments", {})
    folder = context["resources"]["metadata"]["path"]
    renderer = _Renderer(escape=False, attachments=attachments, embed_images=True, path=folder)
    return MarkdownWithMath(renderer=renderer).render(source)


_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>repflow run {{ name }}</title>
<style>
  :root { color-scheme: light dark; --blue: light-dark(#0072b2, #56b4e9); --red: light-dark(#b34700, #e69f00); }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
  h1 { margin: 0; font-size: 1.6rem; }
  h2 { margin: 0; font-size: 1.1rem; line-height: 1.3; }
  header { margin-bottom: 1.5rem; }
  p { margin: .3rem 0; overflow-wrap: anywhere; }
  .quiet { opacity: .75; font-size: .9rem; }
  .cards { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
  article { border: 1px solid #8886; border-radius: .6rem; padding: 1rem; display: flex; flex-direction: column; }
  article.failed { border: 2px solid var(--red); }
  .failed strong { color: var(--red); }
  .number { font-size: 1.15rem; font-weight: 600; }
  img { width: 100%; height: 13rem; object-fit: contain; background: #fff; border-radius: .3rem; margin: .6rem 0; }
  nav { margin-top: auto; padding-top: .6rem; display: flex; gap: 1rem; }
  a { color: var(--blue); }
</style>
</head>
<body>
<header>
<h1>repflow run {{ name }}</h1>
<p>Profile {{ profile }}, {{ records | length }} notebook{{ "" if records | length == 1 else "s" }}
in {{ "%.0f" | format(records | sum("seconds")) }} s</p>
{%- if records %}{% set at = records[0].environment %}
<p class="quiet">{{ at.cpu }} × {{ at.cpus }}, {{ at.gpu or "no GPU" }}; {{ at.platform }}; Python {{ at.python }},
PyTorch {{ at.torch }}, repflow {{ at.repflow }}{% if at.commit %} at {{ at.commit[:12] }}
{%- if at.commit.endswith("-dirty") %} with changes{% endif %}{% endif %}</p>
{%- endif %}
{%- if missing %}
<p class="failed"><strong>Stopped.</strong> Not run: {{ missing | join(", ") }}</p>
{%- endif %}
</header>
<main class="cards">
{%- for record in records %}{% set file = record.notebook | urlencode %}
<article{% if record.error %} class="failed"{% endif %}>
<h2>{{ record.title }}</h2>
<p class="quiet">{{ record.notebook }}, {{ record.seconds }} s</p>
{%- if record.error %}
<p><strong>✗ Failed.</strong> {{ record.error }}</p>
{%- endif %}
{%- if record.notebook in figures %}
<a href="{{ file }}.html"><img src="{{ file }}.png" alt="{{ record.headline | summary }}"></a>
{%- endif %}
{%- if record.headline %}
<p class="number">{{ record.headline | summary }}</p>
{%- endif %}
{%- if record.changed %}
<p class="quiet">{% for name in record.changed %}<code>{{ name }} = {{ record.parameters[name] | pprint }}</code>
{%- if not loop.last %}, {% endif %}{% endfor %}</p>
{%- endif %}
<nav><a href="{{ file }}.html{{ "#papermill-error-cell" if record.error }}">Page</a>
<a href="{{ file }}.ipynb">Notebook</a> <a href="{{ file }}.metrics.json">Metrics</a></nav>
</article>
{%- endfor %}
</main>
</body>
</html>
"""


def write_index(
    folder: Path, name: str, profile: str, records: Sequence[dict[str, Any]], missing: Sequence[str]
) -> None:
    """Write `folder`/index.html: one card per metrics record, and the names of the notebooks that were not run."""
    environment = jinja2.Environment(autoescape=True)
    environment.filters["summary"] = summary
    figures = {path.stem for path in folder.glob("*.png")}
    page = environment.from_string(_INDEX).render(
        name=name, profile=profile, records=records, missing=missing, figures=figures
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
