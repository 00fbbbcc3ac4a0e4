"""The static site of a run: its links and the reference, without a browser."""

import importlib
import inspect
import shutil
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from repflow.lab import reference
from repflow.lab import site as site_module
from repflow.lab.jobs import plan
from repflow.lab.reference import MODULES
from repflow.lab.site import heading, notebook_page, write_site
from repflow.records import environment

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]


def make_site(folder, jobs, done, whole=True):
    """The site of a run whose first `done` notebooks were, so to say, executed."""
    folder.mkdir()
    for job in jobs[:done]:
        shutil.copy(job.notebook, folder)
        (folder / f"{job.notebook.stem}.metrics.json").write_text("{}")
    records = [
        {
            "notebook": job.notebook.stem,
            "title": heading(nbformat.read(job.notebook, as_version=4)),
            "seconds": 1.0,
            "error": None,
            "parameters": job.values,
            "changed": [],
            "headline": {"text": "Steps", "value": 7, "unit": "steps"},
            "environment": environment(),
        }
        for job in jobs[:done]
    ]
    assert write_site(folder, "2026", "tiny", jobs, records) is whole
    return folder


def pages_of(folder):
    return {path.stem: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in folder.glob("*.html")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return make_site(tmp_path_factory.mktemp("site") / "run", plan([]), len(NOTEBOOKS))


@pytest.fixture(scope="module")
def pages(site):
    return pages_of(site)


def test_every_link_leads_to_a_page_and_every_anchor_to_a_place(site, pages):
    assert set(pages) == {*NOTEBOOKS, "index", "api"}
    ids = {name: {tag["id"] for tag in page.select("[id]")} for name, page in pages.items()}
    followed = 0
    for name, page in pages.items():
        for link in page.select("a[href]"):
            target, _, place = link["href"].partition("#")
            if target.startswith("http"):
                continue
            assert not target or (site / target).is_file(), (name, link)
            if place:
                assert place in ids[target.removesuffix(".html") or name], (name, link)
            followed += 1
    assert followed > 100


def test_a_notebook_s_contents_are_its_sections(pages):
    for name in NOTEBOOKS:
        sections = [(f"#{tag['id']}", tag.get_text().rstrip("¶")) for tag in pages[name].select("h2")]
        assert [(link["href"], link.get_text()) for link in pages[name].select(".contents a")] == sections
        assert len(sections) > 3


def test_a_figure_bears_its_words_and_its_code_is_folded(tmp_path):
    words = 'A curve "rises" & x < 1\nand its table'
    picture = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": words}})
    cells = [new_markdown_cell("# A"), new_code_cell("compute()"), new_code_cell("draw()", outputs=[picture])]
    cells[2].metadata["jupyter"] = {"source_hidden": True}
    page = BeautifulSoup(notebook_page(new_notebook(cells=cells), "A", tmp_path), "html.parser")
    caption = page.select_one("figure > figcaption")
    assert (page.select_one("figure img")["alt"], caption.text, caption["aria-hidden"]) == (
        words,
        words.splitlines()[0],
        "true",
    )
    assert [code.text.strip() for code in page.select("details.folded:not([open]) pre")] == ["draw()"]
    assert [code.text.strip() for code in page.select("pre")] == ["compute()", "draw()"]


def test_code_stays_text(tmp_path):
    code = 'print("</pre><script>a & b</script>")  # <b>&lt;'
    for folded in ({}, {"jupyter": {"source_hidden": True}}):
        notebook = new_notebook(cells=[new_code_cell(code, metadata=folded)])
        page = BeautifulSoup(notebook_page(notebook, "page", tmp_path), "html.parser")
        assert page.select_one(".jp-InputArea-editor pre").get_text().strip() == code


def test_a_notebook_leads_to_the_one_before_and_the_one_behind(pages):
    for before, here, behind in zip([None, *NOTEBOOKS], NOTEBOOKS, [*NOTEBOOKS[1:], None], strict=False):
        head, foot = pages[here].select("nav.site")
        links = [link["href"] for link in head.select("a")]
        assert links == ["index.html", "api.html", *(f"{n}.html" for n in (before, behind) if n)]
        assert head == foot
    text = "02_representation_flow_layer.html"
    assert pages["01_tvl1_from_scratch"].select(f'.jp-MarkdownCell a[href="{text}"]')


def test_a_stopped_run_links_only_to_what_is_there(tmp_path):
    pages = pages_of(make_site(tmp_path / "run", plan(["01", "02", "03"]), 1))
    assert set(pages) == {NOTEBOOKS[0], "index", "api"}
    assert f"Not run: {NOTEBOOKS[1]}, {NOTEBOOKS[2]}" in pages["index"].text
    links = [link["href"] for link in pages[NOTEBOOKS[0]].select("a[href]")]
    assert not [link for link in links if NOTEBOOKS[1] in link]
    assert "02" in pages[NOTEBOOKS[0]].select(".jp-MarkdownCell")[-1].text  # the link's text stays


def test_links_of_a_notebook_hold_wherever_it_leads(tmp_path):
    text = "[a](b.ipynb#Place) [c](../data/README.md) [d](https://example.org/) [e](#Here) [f](none.ipynb)\n\n# Here"
    for name in ("a", "b"):
        parameters = nbformat.v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]})
        nbformat.write(new_notebook(cells=[new_markdown_cell(text), parameters]), tmp_path / f"{name} &.ipynb")
    jobs = plan([str(tmp_path / "a &.ipynb"), str(tmp_path / "b &.ipynb")])
    page = pages_of(make_site(tmp_path / "run", jobs, 2))["a &"]
    cell = page.select_one(".jp-MarkdownCell")
    assert [link["href"] for link in cell.select("p a")] == ["https://example.org/", "#Here"]
    assert cell.p.text == "a c d e f"
    assert page.select_one("nav.site a:last-child")["href"] == "b%20%26.html"


def test_a_page_that_cannot_be_made_says_why_and_costs_no_other(tmp_path, monkeypatch, caplog):
    convert = site_module.notebook_page

    def stumble(notebook, title, *rest):
        if title == heading(nbformat.read(plan(["02"])[0].notebook, as_version=4)):
            raise KeyError("<output_type>")
        return convert(notebook, title, *rest)

    monkeypatch.setattr(site_module, "notebook_page", stumble)
    monkeypatch.setattr(reference, "read_modules", lambda: 1 / 0)
    pages = pages_of(make_site(tmp_path / "run", plan(["01", "02", "03"]), 3, whole=False))
    assert set(pages) == {*NOTEBOOKS[:3], "index", "api"}
    reason = "this page could not be made: KeyError: '<output_type>'"
    assert reason in pages[NOTEBOOKS[1]].text
    assert "ZeroDivisionError" in pages["api"].text
    assert len(pages["index"].select("article")) == 3
    assert all(pages[name].select_one("math") for name in (NOTEBOOKS[0], NOTEBOOKS[2]))
    assert f"{NOTEBOOKS[1]}.html: {reason}" in caplog.text


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_public_name_as_it_is_called(pages, module):
    page, found = pages["api"], importlib.import_module(module)
    names = getattr(found, "__all__", None) or [
        name
        for name, thing in vars(found).items()
        if name[0] != "_" and inspect.getmodule(thing) is found and callable(thing) and thing.__doc__
    ]
    shown = {tag["id"] for tag in page.select("h3") if tag["id"].rpartition(".")[0] == module}
    things = {name: getattr(found, name) for name in names}
    assert shown == {
        f"{module}.{name}" for name, thing in things.items() if inspect.isroutine(thing) or inspect.isclass(thing)
    }
    for name in shown:
        entry, thing = page.find(id=name), things[name.rpartition(".")[2]]
        signature, doc = entry.find_next_sibling("p"), entry.find_next_sibling("div")
        assert inspect.cleandoc(thing.__doc__).replace("`", "") == doc.text
        if not (inspect.isclass(thing) and issubclass(thing, Exception)):
            for parameter in inspect.signature(thing).parameters:
                assert f"{parameter}:" in signature.text or f"{parameter}=" in signature.text, (name, parameter)
