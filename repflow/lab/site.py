"""A run as one static site: its notebooks' pages, an index and a reference of the package."""

import html
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from markupsafe import Markup

from repflow.lab.jobs import OWN_PAGES, Job
from repflow.lab.notebook import summary
from repflow.lab.pages import notebook_page
from repflow.lab.reference import reference

log = logging.getLogger(__name__)

_BASE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --blue: light-dark(#0072b2, #56b4e9); --red: light-dark(#b34700, #e69f00); }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1.5rem; }
  h1 { margin: 0; font-size: 1.6rem; }
  h2 { margin: 2rem 0 0; font-size: 1.3rem; line-height: 1.3; }
  h3 { margin: 1.6rem 0 .3rem; font-size: 1.05rem; }
  header { margin-bottom: 1.5rem; }
  p { margin: .3rem 0; overflow-wrap: anywhere; }
  a { color: var(--blue); }
  nav.site { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-bottom: 1.2rem; }
  .quiet { opacity: .75; font-size: .9rem; }
  .cards { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
  article { border: 1px solid #8886; border-radius: .6rem; padding: 1rem; display: flex; flex-direction: column; }
  article h2 { margin: 0; font-size: 1.1rem; }
  article.failed { border: 2px solid var(--red); }
  .failed strong { color: var(--red); }
  .number { font-size: 1.15rem; font-weight: 600; }
  article img { width: 100%; height: 13rem; object-fit: contain; background: #fff; margin: .6rem 0; }
  article nav { margin-top: auto; padding-top: .6rem; display: flex; gap: 1rem; }
  figure { margin: 1rem 0; }
  figure img { max-width: 100%; background: #fff; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; margin: .6rem 0; font-size: .95rem; }
  th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; }
  td + td, th + th { text-align: right; }
  section { margin-left: 1.2rem; }
  code, .signature { font-family: ui-monospace, monospace; font-size: .9em; }
  .signature { padding-left: 2em; text-indent: -2em; overflow-wrap: anywhere; }
  .doc { white-space: pre-wrap; margin-left: 2em; }
</style>
</head>
<body>
{{ navigation }}
{{ content }}
</body>
</html>
"""

_INDEX = """
<header>
<h1>{{ title }}</h1>
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
"""

_TEMPLATES = jinja2.Environment(autoescape=True)
_TEMPLATES.filters["summary"] = summary


def write_site(folder: Path, name: str, profile: str, jobs: Sequence[Job], records: Sequence[dict[str, Any]]) -> bool:
    """Write the pages of a run into `folder`, where its executed notebooks lie: index.html leads to all others.

    records: the metrics of the jobs that were run, in their order; the index names the others. Returns whether every
    page could be made; one that could not says so and why, as the log does.
    """
    titles = {record["notebook"]: record["title"] for record in records}
    names = list(titles)

    def notebook(job: Job, links: dict[str, str]) -> str:
        here = job.notebook.stem
        executed = nbformat.read(folder / f"{here}.ipynb", as_version=4)
        return notebook_page(executed, titles[here], job.notebook.parent, _navigation(links), titles)

    def own(page: str, content: Callable[[], str]) -> bool:
        title = f"repflow run {name}" if page == "index" else f"{OWN_PAGES[page]}, repflow run {name}"
        return _write(folder / f"{page}.html", title, lambda: _page(title, content()))

    made = []
    for job, before, here, behind in zip(jobs, [None, *names], names, [*names[1:], None], strict=False):
        links = OWN_PAGES | {name: f"{arrow} {titles[name]}" for name, arrow in ((before, "←"), (behind, "→")) if name}
        made.append(_write(folder / f"{here}.html", titles[here], partial(notebook, job, links)))
    index = partial(
        _render,
        _INDEX,
        title=f"repflow run {name}",
        profile=profile,
        records=records,
        missing=[job.notebook.stem for job in jobs[len(records) :]],
        figures={path.stem for path in folder.glob("*.png")},
    )
    return all([*made, own("api", reference), own("index", index)])


def _write(file: Path, title: str, make: Callable[[], str]) -> bool:
    """Write a page, or what went wrong with it, so that it costs no other page and no link leads nowhere."""
    try:
        text, made = make(), True
    except Exception as error:  # a notebook may hold anything, and what converts it raises whatever it stumbles over
        problem = f"this page could not be made: {type(error).__name__}: {error}"
        log.error("%s: %s", file.name, problem)
        text, made = _page(title, html.escape(problem)), False
    file.write_text(text, encoding="utf-8")
    return made


def _page(title: str, content: str) -> str:
    return _render(_BASE, title=title, navigation=Markup(_navigation(OWN_PAGES)), content=Markup(content))


def _render(template: str, **values: object) -> Markup:
    return Markup(_TEMPLATES.from_string(template).render(**values))


def _navigation(links: dict[str, str]) -> str:
    shown = [f'<a href="{quote(name)}.html">{html.escape(text)}</a>' for name, text in links.items()]
    return f'<nav class="site">{" ".join(shown)}</nav>'
