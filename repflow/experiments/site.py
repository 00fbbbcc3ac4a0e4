"""A run as one static site: its notebooks' pages, an index, the tables in results/ and a reference of the package."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
from markupsafe import Markup

from repflow.benchmark import paper_table
from repflow.experiments import sweep as sweeps
from repflow.experiments.answers import asked, measured
from repflow.experiments.collect import sections
from repflow.experiments.pages import markdown, notebook_page
from repflow.experiments.parameters import Job
from repflow.experiments.reference import reference
from repflow.experiments.reporting import summary
from repflow.files import results_folder
from repflow.models.systems import SYSTEMS

_FIXED = {"index": "Run", "results": "Results", "api": "Reference"}

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

_RESULTS = """
<header><h1>Results</h1></header>
<main>
{%- for title, table in tables.items() %}
<h2>{{ title[0] | upper }}{{ title[1:] }}</h2>
<div class="wide">{{ table }}</div>
{%- endfor %}
<h2>The paper's questions, on SyntheticMotion</h2>
<p>In percent: means over seeds, smallest to largest.</p>
{%- for sweep, rows in questions %}
<h3>{{ sweep.question }}</h3>
<p>Hypothesis: {{ sweep.hypothesis }}</p>
<div class="wide"><table>
<thead><tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in rows %}
<tr>{% for cell in row.values() %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endfor %}
<h2>The paper's table</h2>
<div class="wide"><table>
<thead><tr>{% for name in columns.values() %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in paper %}
<tr>{% for name in columns %}<td>{{ row[name] or "–" }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
<h2>Figures</h2>
{%- for name, picture in figures.items() %}
<figure><img src="data:image/png;base64,{{ picture }}" alt="Figure of the table {{ name }}">
<figcaption>{{ name }}</figcaption></figure>
{%- endfor %}
</main>
"""

_COLUMNS = {
    "method": "method",
    "kinetics400": "Kinetics-400 (top-1, %)",
    "hmdb51": "HMDB51 (top-1, %)",
    "hmdb51_kinetics": "HMDB51, after Kinetics (top-1, %)",
    "ms": "ms per clip (Titan X)",
    "here": "here",
}
_TEMPLATES = jinja2.Environment(autoescape=True)
_TEMPLATES.filters["summary"] = summary


def write_site(folder: Path, name: str, profile: str, jobs: Sequence[Job], records: Sequence[dict[str, Any]]) -> None:
    """Write the pages of a run into `folder`, where its executed notebooks lie: index.html leads to all others.

    records: the metrics of the jobs that were run, in their order; the index names the others.
    """
    titles = {record["notebook"]: record["title"] for record in records}
    names = list(titles)
    for job, before, here, behind in zip(jobs, [None, *names], names, [*names[1:], None], strict=False):
        notebook = nbformat.read(folder / f"{here}.ipynb", as_version=4)
        links = _FIXED | {name: f"{arrow} {titles[name]}" for name, arrow in ((before, "←"), (behind, "→")) if name}
        page = notebook_page(notebook, titles[here], job.notebook.parent, _navigation(links), titles)
        (folder / f"{here}.html").write_text(page, encoding="utf-8")
    results = results_folder()
    here = {system.paper: name for name, system in SYSTEMS.items()}
    contents = {
        "index": _render(
            _INDEX,
            title=f"repflow run {name}",
            profile=profile,
            records=records,
            missing=[job.notebook.stem for job in jobs[len(records) :]],
            figures={path.stem for path in folder.glob("*.png")},
        ),
        "results": _render(
            _RESULTS,
            tables={title: Markup(markdown(text)) for title, text in sections(results).items()},
            questions=[(sweep, sweeps.summary(sweep, rows)) for sweep, rows in map(measured, asked())],
            paper=[row | {"ms": _milliseconds(row), "here": here.get(row["method"])} for row in paper_table().values()],
            columns=_COLUMNS,
            figures={path.stem: base64.b64encode(path.read_bytes()).decode() for path in results.glob("*.png")},
        ),
        "api": Markup(reference()),
    }
    for page, content in contents.items():
        title = f"repflow run {name}" if page == "index" else f"{_FIXED[page]}, repflow run {name}"
        text = _render(_BASE, title=title, navigation=Markup(_navigation(_FIXED)), content=content)
        (folder / f"{page}.html").write_text(text, encoding="utf-8")


def _render(template: str, **values: object) -> Markup:
    return Markup(_TEMPLATES.from_string(template).render(**values))


def _navigation(links: dict[str, str]) -> str:
    shown = [f'<a href="{quote(name)}.html">{html.escape(text)}</a>' for name, text in links.items()]
    return f'<nav class="site">{" ".join(shown)}</nav>'


def _milliseconds(row: dict[str, str]) -> str:
    return f"{row['milliseconds']} ± {row['spread']}" if row["milliseconds"] else ""
