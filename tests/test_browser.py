"""What readers see, in a real browser: site and playground with the network off, and the notebooks in JupyterLab."""

import io
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
from functools import cache
from importlib.resources import files
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import torch
from conftest import PATIENCE
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from test_site import make_site

from repflow import tvl1
from repflow.data.pairs import moving_pair
from repflow.lab.jobs import plan
from repflow.lab.runner import tidy
from repflow.lab.site import notebook_page
from repflow.playground import Playground
from repflow.solver import classical_kernels, solve
from repflow.spline import CubicSpline

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright; install the extra `test`")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# Enough for every cell and figure, not for good accuracies.
SMALL = {
    "01_tvl1_from_scratch": {"width": 96, "iterations": 40},
    "02_representation_flow_layer": {"size": 32, "channels": 4, "iterations": 10, "steps": 4},
    "03_flow_of_flow": {"train_clips": 4, "test_clips": 4, "steps": 3, "iterations": 4},
}
TOKEN = "a-token-for-the-tests"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium; install it (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        # Root has no sandbox; the camera is a made one, for which nobody is asked.
        args = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=program, args=args)
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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site of a run that came to its sixth notebook."""
    return make_site(tmp_path_factory.mktemp("site") / "run", plan([]), 6)


def test_the_site_opens_with_the_network_off(browser, site):
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


WIDTHS = 1280, 800, 390


def test_no_text_is_cut_off_at_the_edge(browser, site):
    """Long lines of code wrap, and so do equations, with a font for mathematics (STIX, DejaVu) or with any other."""
    page = browser.new_page()
    for file in sorted(site.glob("*.html")):
        page.goto(file.as_uri())
        for font in ("math", "DejaVu Sans, sans-serif"):
            page.add_style_tag(content=f"math, math * {{ font-family: {font} !important }}")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate(CUT) == [], (file.stem, font, width)
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_look_at_the_edges_finds_what_is_cut(browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    wide = '<div style="width: 2000px">wide</div>'
    for cut in (wide, f'<div style="overflow: hidden">{wide}</div>', f'<pre style="overflow: auto">{wide}</pre>'):
        page.set_content(f"<main>{cut}</main>")
        assert page.evaluate(CUT)
    page.set_content(f'<main><p>narrow</p><table style="display: block; overflow-x: auto"><td>{wide}</table></main>')
    assert page.evaluate(CUT) == []
    page.close()


def shown(context, folder, *cells):
    """A page with these cells, in a browser."""
    page, file = context.new_page(), folder / "page.html"
    file.write_text(notebook_page(new_notebook(cells=list(cells)), "page", folder), encoding="utf-8")
    page.goto(file.as_uri())
    return page


def test_formulas_bring_their_font(browser, tmp_path):
    """Network off. STIX Two Math's digits are 0.495 em wide, and its underbraces grow with what they embrace."""
    context = browser.new_context(offline=True)
    page = shown(context, tmp_path, new_markdown_cell(r"$$\underbrace{8888888888888888}_{n}$$"))
    assert page.evaluate("document.fonts.ready.then(all => [...all].map(font => [font.family, font.status]))") == [
        ["STIX Two Math", "loaded"]
    ]
    digits = """() => (document.querySelector('mn').getBoundingClientRect().width
      / parseFloat(getComputedStyle(document.querySelector('math')).fontSize))"""

    def braced():
        """The share of the digits' width that has ink of the brace below it."""
        picture = Image.open(io.BytesIO(page.locator("munder munder").screenshot())).convert("L")
        return (np.asarray(picture)[-picture.height // 4 :].min(0) < 128).mean()

    assert page.evaluate(digits) == pytest.approx(16 * 0.495, abs=0.05)
    assert braced() > 0.9
    page.add_style_tag(content="math { font-family: monospace !important }")
    assert page.evaluate(digits) > 16 * 0.55
    assert braced() < 0.5
    context.close()


# The texts of a page that stand out too little from what is behind them (WCAG 2: a contrast of 4.5).
PALE = r"""
() => {
  const numbers = colour => (colour.match(/[\d.]+/g) || []).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
  const ground = tag => {
    if (!tag) return [255, 255, 255];
    const outside = tag.parentElement || tag.getRootNode().host;
    return over(numbers(getComputedStyle(tag).backgroundColor), ground(outside));
  };
  const shine = colour => colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0);
  const roots = [document.body, ...[...document.querySelectorAll('*')].map(tag => tag.shadowRoot).filter(root => root)];
  return roots.flatMap(root => [...root.querySelectorAll('*')]).filter(tag => {
    const words = [...tag.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!words || !tag.getClientRects().length || tag.matches('style, script')) return false;
    const behind = ground(tag), [low, high] = [shine(behind), shine(over(numbers(getComputedStyle(tag).color), behind))]
      .sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05) < 4.5;
  }).map(tag => `${tag.localName}.${tag.className}: ${tag.textContent.trim().slice(0, 40)}`);
}
"""


def test_all_words_are_readable_in_both_schemes(browser, tmp_path):
    context = browser.new_context(offline=True)
    data, _ = Playground()._repr_mimebundle_()
    played = new_code_cell("1 + 2.5 in Playground()  # live", outputs=[new_output("execute_result", data)])
    words = new_markdown_cell("# A\n## B\n[link](#A), `code` and $x$\n\n| a | b |\n|---|---|\n| c | d |\n| e | f |")
    page = shown(context, tmp_path, words, played)
    for scheme, ground in {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}.items():
        page.emulate_media(color_scheme=scheme)
        page.reload()
        page.locator(".told").get_by_text("Pixel 64, 48; result.").wait_for()
        assert page.evaluate(PALE) == [], scheme
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        page.add_style_tag(content="p { color: #777 !important }")
        assert page.evaluate(PALE), scheme
    context.close()


# The longest line, in characters, of the paragraphs and entries of lists that hold nothing but text.
LONGEST = r"""
() => {
  const lines = {}, range = document.createRange();
  for (const [i, tag] of [...document.querySelectorAll('.jp-MarkdownOutput :is(p, li)')].entries())
    for (let k = 0; !tag.children.length && k < tag.textContent.length; k++) {
      range.setStart(tag.firstChild, k);
      range.setEnd(tag.firstChild, k + 1);
      const line = `${i}: ${range.getBoundingClientRect().top}`;
      lines[line] = (lines[line] || 0) + 1;
    }
  return Math.max(...Object.values(lines));
}
"""


def test_lines_are_no_longer_than_in_a_book(browser, site):
    page, longest = browser.new_page(), []
    for file in sorted(site.glob("[0-9]*.html")):
        page.goto(file.as_uri())
        longest.append(page.evaluate(LONGEST))
    assert 60 < max(longest) <= 75, longest
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


# The playground


@pytest.fixture(scope="module")
def playground_page(tmp_path_factory):
    """The address of the exported page of a notebook that shows a playground of so many layers."""

    @cache
    def export(layers):
        folder = tmp_path_factory.mktemp("playground")
        data, _ = Playground(layers=layers)._repr_mimebundle_()
        cell = new_code_cell("Playground()", outputs=[new_output("execute_result", data)])
        executed, page = folder / "executed.ipynb", folder / "page.html"
        nbformat.write(new_notebook(cells=[cell]), executed)
        page.write_text(notebook_page(tidy(executed, executed), "playground", folder), encoding="utf-8")
        return page.as_uri()

    return export


@pytest.fixture
def played(browser, playground_page):
    """Opens an exported playground with the network off; whatever goes wrong on its page fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 1200})
    context.set_default_timeout(1000 * PATIENCE)
    page, problems = watched(context)

    def start(layers):
        page.goto(playground_page(layers))
        page.locator(".told").get_by_text("Pixel 64, 48; result.").wait_for()
        return page

    yield start
    context.close()
    assert not problems


def script(page):
    """Make the playground's script known to a page as `play`."""
    source = files("repflow").joinpath("playground.js").read_text(encoding="utf-8")
    load = "import(URL.createObjectURL(new Blob([source], {type: 'text/javascript'})))"
    page.evaluate(f"async source => {{ window.play = await {load} }}", source)


def told(page, expected):
    """The numbers of a playground's pixel once its line begins so: u, v, w, ρ, energy, and p of u and of v."""
    line = page.locator(".told", has_text=re.compile(f"^Pixel {re.escape(expected)}"))
    line.wait_for()
    return [float(number.replace("−", "-")) for number in re.findall(r"−?\d+\.\d\d", line.inner_text())]


def point(page, x, y):
    box = page.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 128, box["y"] + (y + 0.5) * box["height"] / 96)


def settled(page, start):
    """The pixel's u and v once a dragged disc has come to rest."""
    flow, until = None, time.monotonic() + PATIENCE
    while flow != (flow := told(page, start)[:2]) and time.monotonic() < until:
        page.wait_for_timeout(1000)
    return flow


@pytest.mark.parametrize(
    ("kind", "size", "options"),
    [
        ("right", (96, 128), {"tau": 0.25, "lam": 0.15, "theta": 0.3, "warps": 5, "iterations": 30, "median": 3}),
        ("clockwise", (61, 47), {"tau": 0.2, "lam": 0.05, "theta": 0.5, "warps": 3, "iterations": 50, "median": 1}),
        ("zoom-in", (33, 90), {"tau": 0.12, "lam": 0.4, "theta": 0.2, "warps": 4, "iterations": 17, "median": 3}),
    ],
)
def test_the_playground_computes_what_tvl1_does(browser, kind, size, options):
    height, width = size
    frames = [np.float32(frame[:height, :width]) for frame in moving_pair(kind, 1.5, 128, 0)[:2]]
    page = browser.new_page()
    script(page)
    found = page.evaluate(
        """([first, second, width, height, options]) => {
          const {states} = play.tvl1(Float32Array.from(first), Float32Array.from(second), width, height, options);
          return [...states.at(-1).slice(0, 2 * width * height)];
        }""",
        [*(f.ravel().tolist() for f in frames), width, height, {**options, "median": options["median"] == 3}],
    )
    page.close()
    expected = tvl1(*frames, scales=1, epsilon=0, **options).numpy()
    assert np.abs(expected).max() > 1
    assert np.abs(np.reshape(found, expected.shape) - expected).max() < 1e-3


def test_the_playground_tells_what_the_solver_does_at_a_pixel(played):
    page = played(1)
    script(page)
    first, second = (torch.tensor(page.evaluate(f"[...play.made('moves', {t})]")).view(1, 1, 96, 128) for t in (0, 1))
    grad = sum(CubicSpline(frame).warp(torch.zeros(2, 1, 1, 96, 128))[1] for frame in (first, second)) / 2
    flow, dual = solve(second - first, grad, iterations=30)
    point(page, 50, 40)
    page.get_by_role("slider", name="shown").press("ArrowLeft")  # the result is smoothed by the median filter
    numbers = told(page, "50, 40; warp 1, iteration 30.")
    here = (..., 0, 0, 40, 50)
    rho = (second - first)[0, 0, 40, 50] + (grad * flow).sum(0)[here[1:]]
    step = torch.clamp(-rho / grad[here].square().sum(), -0.15 * 0.3, 0.15 * 0.3)
    slope = classical_kernels().at(0).gradient(flow)[here]  # [x or y, u or v]
    energy = slope.norm(dim=0).sum() + 0.15 * rho.abs()
    expected = [*flow[here], *(flow[here] + step * grad[here]), rho, energy, *dual[here].T.flatten()]
    assert numbers == pytest.approx([float(x) for x in expected], abs=0.006)


def test_the_playground_s_disc_is_dragged_and_its_pixels_are_pointed_at(played):
    page = played(1)
    page.get_by_role("radio", name="drag the disc").check()
    point(page, 103, 48)
    assert abs(told(page, "103, 48; result.")[0]) < 0.5  # beside the disc
    point(page, 64, 48)
    page.mouse.down()
    point(page, 88, 48)
    page.mouse.up()
    point(page, 103, 48)
    u, v = settled(page, "103, 48; result.")
    assert u > 1 > abs(v)
    page.locator(".views").focus()
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("ArrowLeft")
    u, v = settled(page, "102, 48; result.")
    assert v > 1 > abs(u)


def test_the_playground_s_second_flow_tells_moving_from_growing(played):
    page = played(2)
    means = {}
    for name in ("a disc moves", "the flow grows in place", "the flow shrinks in place"):
        before = page.locator(".status").inner_text()
        page.get_by_role("radio", name=name).check()
        if means:
            page.locator(".status").filter(has_not_text=before).wait_for()
        line = page.locator(".status").inner_text().partition("mean:")[2]
        means[name] = [float(number.replace("−", "-")) for number in re.findall(r"−?\d+\.\d\d", line)]
    (right, still), (_, growing), (_, shrinking) = means.values()
    assert right > 0.2 > abs(still)
    assert growing > 0.2 > -0.2 > shrinking


def test_the_playground_plays_the_camera_until_its_reader_goes_through_the_iterations(played):
    page = played(1)
    stop = "navigator.mediaDevices.getUserMedia = ask => open(ask).then(s => (window.track = s.getTracks()[0], s))"
    page.evaluate(f"() => {{ const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices); {stop} }}")
    seen = "document.querySelector('[id^=playground]').shadowRoot.querySelectorAll('canvas')[1].toDataURL()"
    made = page.evaluate(seen)
    page.get_by_role("radio", name="the camera").check()
    page.wait_for_function(f"made => {seen} !== made", arg=made)
    first = page.evaluate(seen)
    page.wait_for_function(f"first => {seen} !== first", arg=first)  # it plays
    page.get_by_role("slider", name="shown").press("ArrowLeft")
    told(page, "64, 48; warp 1, iteration 30.")
    held = page.evaluate(seen)
    page.wait_for_timeout(500)
    assert page.evaluate(seen) == held
    page.get_by_role("slider", name="shown").press("ArrowRight")
    page.wait_for_function(f"held => {seen} !== held", arg=held)
    assert page.evaluate("track.readyState") == "live"
    page.get_by_role("radio", name="a disc moves").check()
    page.wait_for_function(f"made => {seen} === made", arg=made)
    assert page.evaluate("track.readyState") == "ended"


def test_the_playground_says_why_there_is_no_camera(played):
    page = played(1)
    none = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('No camera found.'))"
    page.evaluate(f"() => {{ {none} }}")
    page.get_by_role("radio", name="the camera").check()
    page.locator(".told").get_by_text("No camera found. Choose other frames.").wait_for()
    page.get_by_role("radio", name="drag the disc").check()
    told(page, "64, 48; result.")


@pytest.mark.parametrize("layers", [1, 2])
def test_the_playground_fits_its_page(played, layers):
    page = played(layers)
    wide = "tag => tag.getBoundingClientRect().right > innerWidth && !tag.closest('svg *')"
    inside = "[...document.querySelector('[id^=playground]').shadowRoot.querySelectorAll('section *')]"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(CUT) == []
        assert page.evaluate(f"{inside}.filter({wide}).map(tag => tag.outerHTML)") == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


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
