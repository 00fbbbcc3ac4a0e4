"""Executing notebooks: a kernel for each, results in a folder that appears complete, nothing left running.

papermill executes them in this process; only the kernel is a process of its own, in a process group of its own.
"""

import asyncio
import itertools
import json
import logging
import os
import re
import signal
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repflow.interrupts import one_interrupt
from repflow.lab.jobs import Job
from repflow.lab.notebook import reported, summary
from repflow.records import environment

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager
    from nbformat import NotebookNode

_log = logging.getLogger(__name__)

_STOPPED = "KeyboardInterrupt: stopped before the end"
_WIDGET = "application/vnd.jupyter.widget-view+json"


def run(jobs: Sequence[Job], out: Path, profile: str) -> tuple[Path, bool]:
    """Execute notebooks and return the path of the run's index page and whether all went well.

    `out`/<time>/ receives each notebook's executed copy, metrics and headline figure, and the pages of `write_site`. A
    notebook that fails keeps what it did, and the others still run; a page that cannot be made costs no other. After
    ctrl-C, SIGTERM or SIGHUP the folder holds what there is and KeyboardInterrupt is raised. Raises OSError, before
    anything starts, if `out` cannot be written.

        >>> index, good = run(plan(["01"]), Path("runs"), "tiny")
    """
    from repflow.lab.site import write_site

    final, folder = _new_folder(out)
    whole = False
    records: list[dict[str, Any]] = []
    with one_interrupt():
        try:
            facts = {"profile": profile, "environment": environment()}
            for job in jobs:
                records.append(_run_one(job, folder, facts))
                _log_outcome(records[-1], final)
                if records[-1]["error"] == _STOPPED:
                    raise KeyboardInterrupt
        finally:
            try:
                whole = write_site(folder, final.name, profile, jobs, records)
            finally:  # whatever became of the pages, the results get their name
                folder.rename(final)
                if not whole:
                    _log.error("%s: not all pages could be made; the executed notebooks and metrics are there", final)
    return final / "index.html", whole and not any(record["error"] for record in records)


def _new_folder(out: Path) -> tuple[Path, Path]:
    """Return the path that the results will have, and the hidden folder beside it, just made, where they grow."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            final = out / (stamp if number == 1 else f"{stamp}-{number}")
            folder = out / f".{final.name}"
            with suppress(FileExistsError):
                folder.mkdir()
                if not final.exists():
                    return final, folder
                folder.rmdir()
    except OSError as error:
        raise OSError(f"no results can be written to {out} ({error.strerror}); name another folder") from None


def _run_one(job: Job, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Execute a notebook, write its files into `folder` and return its metrics record."""
    from repflow.lab.site import heading

    name = job.notebook.stem
    target = folder / f"{name}.ipynb"
    started, clock = datetime.now().astimezone(), time.perf_counter()
    error = execute(job.notebook, target, job.changed)
    seconds = round(time.perf_counter() - clock, 1)
    notebook = tidy(target, job.notebook)
    result, figure = reported(notebook)
    record = {
        "notebook": name,
        "title": heading(notebook) or name,
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "error": error,
        "parameters": job.values,
        "changed": list(job.changed),
        "headline": result.get("headline"),
        "metrics": result.get("metrics", {}),
        **facts,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.metrics.json").write_text(text + "\n", encoding="utf-8")
    if figure:
        (folder / f"{name}.png").write_bytes(figure)
    return record


def _log_outcome(record: dict[str, Any], final: Path) -> None:
    name, seconds, error = record["notebook"], record["seconds"], record["error"]
    if error:
        _log.error("%s  %.1f s  failed: %s\n  see %s", name, seconds, error, final / f"{name}.html")
    else:
        _log.info("%s  %.1f s  %s", name, seconds, summary(record["headline"]) if record["headline"] else "")


def execute(source: Path, target: Path, parameters: dict[str, Any]) -> str | None:
    """Execute the notebook `source` into `target`; return in one line what went wrong, None if nothing did.

    Its kernel and the kernel's process group have ended afterwards. A kernel that does not start is started once more:
    kernels that start together can race for their ports.
    """
    import papermill

    # papermill's own inspection of the parameters cell warns of Literal types; ours has checked them.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    # papermill takes braces in a path for placeholders.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, target)]
    options = {
        "kernel_name": "python3",
        "language": "python",  # a notebook without metadata does not name it
        "progress_bar": {"desc": source.stem, "leave": False, "disable": None},  # None: only on a terminal
    }
    for last_try in (False, True):
        try:
            with _kernel() as kernel:
                papermill.execute_notebook(*paths, parameters, km=kernel, **options)
            return None
        except KeyboardInterrupt:
            return _STOPPED
        except papermill.PapermillExecutionError as error:
            problem = f"{error.ename}: {error.evalue or _failing_line(error.traceback)} (In [{error.exec_count}])"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if type(error) is RuntimeError and not last_try:  # nbclient's, from a kernel that did not start
                continue
        return textwrap.shorten(problem, 400)
    raise AssertionError("the second try returns")


@contextmanager
def _kernel() -> "Iterator[KernelManager]":
    """Start a Python kernel, and kill it afterwards with all that it started in its process group."""
    from jupyter_client.manager import KernelManager

    # NumPy's products are small here: its threads would wait for each other longer than they compute. (PyTorch's are
    # others.) The debugger's warning about frozen modules is for people who debug.
    variables = {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    # The kernel warns of its unencrypted sockets, which never leave this machine.
    arguments = ["--IPKernelApp.log_level=CRITICAL", "--HistoryManager.hist_file=:memory:"]
    kernel = KernelManager(kernel_name="python3", client_class="jupyter_client.asynchronous.AsyncKernelClient")
    try:
        # Its stdout is our stderr, 2: the last line on our stdout is the run's.
        kernel.start_kernel(extra_arguments=arguments, env=variables, stdout=2)
        client = kernel.client()
        kernel.client = lambda: client  # nbclient would make one, and leave it open
        try:
            yield kernel
        finally:
            client.stop_channels()
    finally:
        if kernel.provisioner and kernel.provisioner.pgid:
            with suppress(ProcessLookupError):
                os.killpg(kernel.provisioner.pgid, signal.SIGKILL)
        _end_tasks()
        kernel.shutdown_kernel(now=True)


def _end_tasks() -> None:
    """End the tasks that nbclient leaves waiting after an interrupt; asyncio would write tracebacks of them."""
    from jupyter_core.utils import ensure_event_loop

    loop = ensure_event_loop()
    tasks = [] if loop.is_running() else asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=5))
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()


def _failing_line(traceback: list[str]) -> str:
    """Return the line of code that an IPython traceback points at: the reason, for an error without a message."""
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(traceback))
    return ["", *re.findall(r"(?m)^-+> *\d+ +(.*)$", text)][-1]


def tidy(target: Path, source: Path) -> "NotebookNode":
    """Rewrite an executed notebook without papermill's records and the widgets, whose state ended with the kernel.

    Of a widget that lives on a page, too, its HTML stays.
    """
    import nbformat

    try:
        notebook = nbformat.read(target, as_version=4)
    except (OSError, ValueError):  # stopped before, or while, it was written
        notebook = nbformat.read(source, as_version=4)
    notebook.metadata.pop("widgets", None)
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
        if "outputs" in part:
            part.outputs = [o for o in part.outputs if _WIDGET not in o.get("data", {}) or "text/html" in o.data]
            for output in part.outputs:
                output.get("data", {}).pop(_WIDGET, None)
    nbformat.write(notebook, target)
    return notebook
