"""What readers see: the site with the network off, and the notebooks in JupyterLab, in a real browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import PATIENCE
from test_site import make_site

from repflow.lab.jobs import plan

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright; install the extra `test`")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Enough for every cell and figure, not for good accuracies.
SMALL = {
    "01_tvl1_from_scratch": {"width": 96, "iterations": 40},
    "02_representation_flow_layer": {"steps": 10},
    "03_flow_of_flow": {"train_clips": 16, "test_clips": 12, "steps": 12},
}
TOKEN = "a-token-for-the-tests"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium; install it (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root has no sandbox
        yield browser
        browser.close()


def watched(context):
    """A new page, and the list that fills with what goes wrong on it."""
    page, problems = context.new_page(), []

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # which the page itself gave up
            problems.append(f"failed: {request.url} {request.failure}")

    page.on("console", lambda said: problems.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("requestfailed", failed)
    return page, problems


CRAWL = r"""
async pages => {
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const inside = walk.currentNode.parentElement;
    if (/[$]|\\[a-zA-Z]+[{ ]/.test(walk.currentNode.data) && !inside.closest('code, pre, style, script'))
      found.push('raw formula: ' + walk.currentNode.data.trim().slice(0, 60));
  }
  for (const image of document.images) {
    await image.decode().catch(() => found.push('image: ' + image.src.slice(0, 60)));
    if (!image.alt) found.push('no alternative text: ' + image.src.slice(0, 60));
  }
  const here = document.querySelectorAll('[id]');
  if (new Set([...here].map(tag => tag.id)).size < here.length) found.push('an id is there twice');
  const links = [...document.querySelectorAll('a[href]')].map(a => a.href).filter(url => url.startsWith('file:'));
  return [found, links];
}
"""


def crawl(browser, index):
    """Open the pages that the index leads to, network off: (how many pages and links, what is wrong)."""
    context = browser.new_context(offline=True)
    page, problems = watched(context)
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url))
    waiting, seen, links = [index.as_uri()], set(), set()
    while waiting:
        url = waiting.pop()
        seen.add(url)
        page.goto(url)
        found, targets = page.evaluate(CRAWL)
        problems += [f"{url}: {problem}" for problem in found]
        links |= set(targets)
        pages = {target.partition("#")[0] for target in targets}
        waiting += [target for target in pages if target.endswith(".html") and target not in {*seen, *waiting}]
    for link in sorted(links):
        place, _, anchor = link.partition("#")
        if not Path(urllib.request.url2pathname(place.removeprefix("file://"))).is_file():
            problems.append(f"no such file: {link}")
        elif anchor:
            page.goto(link)
            if not page.evaluate("document.querySelector(':target') !== null"):
                problems.append(f"no such place: {link}")
    context.close()
    return len(seen), len(links), problems


def test_the_site_opens_with_the_network_off(browser, tmp_path):
    site = make_site(tmp_path / "run", plan([]), 6)
    pages, links, problems = crawl(browser, site / "index.html")
    assert not problems
    assert pages == 8
    assert links > 100


# What is wider than its box or reaches over the page's edge. In a box of their own may scroll: a table, and an equation
# by less than half its width.
CUT = r"""
() => {
  const found = [];
  for (const tag of document.querySelectorAll('body *')) {
    const box = tag.getBoundingClientRect();
    const inner = tag.parentElement.closest('table, math, svg, .equation');
    if (inner && getComputedStyle(inner).overflowX !== 'visible' || tag.parentElement.closest('math, svg')) continue;
    if (!box.width || tag.closest('style, script')) continue;
    const scrolls = getComputedStyle(tag).overflowX === 'auto' && tag.matches('table, .equation');
    const allowed = scrolls ? (tag.matches('table') ? Infinity : 1.5 * tag.clientWidth) : tag.clientWidth + 1;
    const inline = getComputedStyle(tag).display === 'inline' || tag.matches('thead, tbody, tr');
    if (box.right > innerWidth + 1 || !inline && tag.clientWidth && tag.scrollWidth > allowed)
      found.push(`${tag.tagName}: ${tag.textContent.trim().slice(0, 60)}`);
  }
  return found;
}
"""


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_no_text_is_cut_off_at_the_edge(browser, tmp_path, width):
    """Long lines of code wrap, and so do equations, with a font for mathematics (STIX, DejaVu) or with any other."""
    site = make_site(tmp_path / "run", plan([]), 6)
    page = browser.new_page(viewport={"width": width, "height": 900})
    for file in sorted(site.glob("*.html")):
        for font in ("math", "DejaVu Sans, sans-serif"):
            page.goto(file.as_uri())
            page.add_style_tag(content=f"math, math * {{ font-family: {font} !important }}")
            assert page.evaluate(CUT) == [], (file.stem, font)
    page.close()


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_the_look_at_the_edges_finds_what_is_cut(browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    wide = '<div style="width: 2000px">wide</div>'
    for cut in (wide, f'<div style="overflow: hidden">{wide}</div>', f'<pre style="overflow: auto">{wide}</pre>'):
        page.set_content(f"<main>{cut}</main>")
        assert page.evaluate(CUT)
    page.set_content(f'<main><p>narrow</p><table style="display: block; overflow-x: auto"><td>{wide}</table></main>')
    assert page.evaluate(CUT) == []
    page.close()


def test_the_check_of_the_site_finds_what_is_wrong(browser, tmp_path):
    wrong = {
        "raw formula": "<p>the $x$</p>",
        "image": '<img src="none.png" alt="none">',
        "no alternative text": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACADs=">',
        "no such file": '<a href="none.html.txt">a</a>',
        "no such place": '<a href="index.html#none">b</a>',
        "http": '<script src="http://example.org/a.js"></script>',
        "script": "<script>none()</script>",
    }
    (tmp_path / "index.html").write_text("<title>wrong</title>" + "".join(wrong.values()))
    _, _, problems = crawl(browser, tmp_path / "index.html")
    assert not [name for name in wrong if not any(name in problem for problem in problems)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on copies of the notebooks, with small parameters. It ends with all its kernels."""
    root = tmp_path_factory.mktemp("lab")
    (root / "notebooks").mkdir()
    for name, values in SMALL.items():
        text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        for parameter, value in values.items():
            text, found = re.subn(rf'(?m)^(    "{parameter}: int = )\d+', rf"\g<1>{value}", text)
            assert found == 1
        (root / "notebooks" / f"{name}.ipynb").write_text(text, encoding="utf-8")
    (root / "config" / "labconfig").mkdir(parents=True)
    news = {"@jupyterlab/apputils-extension:announcements": True}  # would ask the network for news
    (root / "config" / "labconfig" / "page_config.json").write_text(json.dumps({"disabledExtensions": news}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    places = {f"JUPYTER_{name}_DIR": str(root / folder) for name, folder in folders.items()}
    places |= {f"JUPYTERLAB_{name}_DIR": str(root / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    places |= {"IPYTHONDIR": str(root / "ipython"), "REPFLOW_DATA": str(root / "sets")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--notebook-dir={root / 'notebooks'}"],
            env={**os.environ, **places},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{address}/api?token={TOKEN}"):
                break
            time.sleep(0.3)
        else:
            pytest.fail(f"JupyterLab did not start:\n{(root / 'log').read_text()}")
        yield address
    finally:
        started = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
        for process in [*started, server]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        server.wait()


# Runs all cells; returns the errors, and which cells hold a widget.
RUN_ALL = """
async () => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await jupyterapp.commands.execute('notebook:run-all-cells');
  const cells = panel.content.model.sharedModel.cells.map(cell => cell.toJSON().outputs || []);
  return {
    errors: cells.flat().filter(output => output.output_type === 'error').map(output => output.evalue),
    widgets: [...cells.keys()].filter(i => cells[i].some(o => o.data?.['application/vnd.jupyter.widget-view+json'])),
    ran: panel.content.widgets.filter(w => w.model.type === 'code').map(w => w.model.executionCount !== null),
  };
}
"""


def explorer(page, cells):
    """The output with the last explorer of a notebook: its cell must be near the view to be there at all."""
    found = page.locator(".jp-OutputArea-output:has(img.widget-image)").last
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:  # what is drawn on the way moves the cell out of sight again
        for cell in reversed(cells):
            page.evaluate("i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')", cell)
            with suppress(sync_api.TimeoutError):
                found.locator("img").wait_for(timeout=2000)
                return found
    pytest.fail("no explorer in this notebook")


def until_new(page, output, act):
    """Do something to an explorer: seconds until another figure is shown."""
    image = output.locator("img.widget-image")
    before = [image.element_handle(), image.get_attribute("src")]
    start = time.perf_counter()
    act()
    page.wait_for_function("([i, src]) => i.src !== src && i.complete && i.naturalWidth", arg=before)
    return time.perf_counter() - start


def drag(page, output, number, pixels):
    """Drag a slider by so many pixels: seconds from letting it go to the new figure."""
    handle = output.locator(".noUi-handle").nth(number)
    handle.hover()  # scrolls, and waits until the notebook stands still
    box = handle.bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + pixels, box["y"] + box["height"] / 2, steps=5)
    return until_new(page, output, page.mouse.up)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_in_jupyterlab(browser, lab, name, tmp_path, record_property):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(1000 * PATIENCE)
    page, problems = watched(context)
    # A workspace of its own: else it opens what the last one had open, too.
    page.goto(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")
    page.wait_for_function(
        "name => window.jupyterapp?.shell.currentWidget?.context?.path === name", arg=f"{name}.ipynb"
    )
    outcome = page.evaluate(RUN_ALL)
    assert not outcome["errors"]
    assert all(outcome["ran"])
    page.screenshot(path=tmp_path / f"{name}_run.png")
    output = explorer(page, outcome["widgets"])
    output.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / f"{name}_before.png")
    if name.startswith("01"):
        until_new(page, output, lambda: output.locator("select").select_option("turn"))  # 256 × 256, 30 iterations
    times = [drag(page, output, 0, pixels) for pixels in (40, 30, -50, 25)]
    page.screenshot(path=tmp_path / f"{name}_after.png")
    record_property("seconds from a slider to its figure", times)
    assert not problems
    context.close()
