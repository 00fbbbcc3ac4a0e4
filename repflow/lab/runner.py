"""Executing notebooks: a process for each, results in a folder that appears complete, nothing left running."""

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repflow.lab.jobs import Job
from repflow.lab.notebook import reported, summary
from repflow.records import environment

if TYPE_CHECKING:
    from nbformat import NotebookNode

log = logging.getLogger(__name__)

_STOPPED = "KeyboardInterrupt: stopped before the end"
TOKEN = "REPFLOW_RUN"  # in the environment of every process that a notebook starts, whatever session it moves to
_WORKER = Path(__file__).with_name("worker.py")
_WIDGET = "application/vnd.jupyter.widget-view+json"


def run(jobs: Sequence[Job], out: Path, profile: str) -> tuple[Path, bool]:
    """Execute notebooks and return the path of the run's index page and whether all went well.

    `out`/<time>/ receives each notebook's executed copy, metrics and headline figure, and the pages of `write_site`. A
    notebook that fails keeps what it did, and the others still run; a page that cannot be made costs no other. After
    ctrl-C, SIGTERM or SIGHUP the folder holds what there is and KeyboardInterrupt is raised. Raises OSError, before
    anything starts, if `out` cannot be written.
    """
    from repflow.lab.site import write_site

    final, folder = _new_folder(out)
    whole = False
    token = uuid.uuid4().hex
    records: list[dict[str, Any]] = []
    with one_interrupt():
        try:
            facts = {"profile": profile, "environment": environment()}
            for job in jobs:
                records.append(_run_one(job, folder, facts, token))
                _tell(records[-1], final)
                if records[-1]["error"] == _STOPPED:
                    raise KeyboardInterrupt
        finally:
            end_all(token)  # a signal may have come in the middle of this very call
            try:
                whole = write_site(folder, final.name, profile, jobs, records)
            finally:  # whatever became of the pages: what was computed gets its name
                folder.rename(final)
                if not whole:
                    log.error("%s: not all pages could be made; the executed notebooks and metrics are there", final)
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


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Make the first ctrl-C, SIGTERM or SIGHUP a KeyboardInterrupt and ignore the next: cleaning up goes on."""

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # what nohup ignores stays ignored
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_one(job: Job, folder: Path, facts: dict[str, Any], token: str) -> dict[str, Any]:
    """Execute a notebook, write its files into `folder` and return its metrics record."""
    from repflow.lab.pages import heading

    name = job.notebook.stem
    started, clock = datetime.now().astimezone(), time.perf_counter()
    error = _execute(job, folder / f"{name}.ipynb", token)
    seconds = round(time.perf_counter() - clock, 1)
    notebook = _tidy(folder / f"{name}.ipynb", job.notebook)
    found, figure = reported(notebook)
    record = {
        "notebook": name,
        "title": heading(notebook) or name,
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "error": error,
        "parameters": job.values,
        "changed": list(job.changed),
        "headline": found.get("headline"),
        "metrics": found.get("metrics", {}),
        **facts,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.metrics.json").write_text(text + "\n", encoding="utf-8")
    if figure:
        (folder / f"{name}.png").write_bytes(figure)
    return record


def _tell(record: dict[str, Any], final: Path) -> None:
    name, seconds, error = record["notebook"], record["seconds"], record["error"]
    if error:
        log.error("%s  %.1f s  failed: %s\n  see %s", name, seconds, error, final / f"{name}.html")
    else:
        log.info("%s  %.1f s  %s", name, seconds, summary(record["headline"]) if record["headline"] else "")


def _execute(job: Job, target: Path, token: str) -> str | None:
    """Run a notebook in a process of its own; return what went wrong in one line, None if nothing did."""
    outcome = target.with_suffix(".error")
    # -P: a file run by its path would put its folder, our package, where its imports are looked for.
    command = [sys.executable, "-P", *map(str, (_WORKER, job.notebook, target, outcome)), json.dumps(job.changed)]
    # The debugger's warning about frozen modules is for people who debug.
    variables = {**os.environ, TOKEN: token, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    try:
        # A session of its own: ctrl-C in the terminal comes to us alone. Its stdout is our stderr, 2: the last line on
        # our stdout is the run's.
        worker = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
        if outcome.exists():
            return outcome.read_text(encoding="utf-8")
        return f"its process ended with code {worker.returncode}" if worker.returncode else None
    except KeyboardInterrupt:
        return _STOPPED
    finally:
        end_all(token)
        outcome.unlink(missing_ok=True)


def end_all(token: str) -> None:
    """Kill what still runs for a notebook; Jupyter gives its kernel a session where our signals to a group end."""
    import psutil

    for _ in range(10):  # again, for what was started meanwhile
        running = psutil.process_iter(["environ"])
        ours = [process for process in running if (process.info["environ"] or {}).get(TOKEN) == token]
        if not ours:
            return
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=1)


def _tidy(target: Path, source: Path) -> "NotebookNode":
    """Rewrite an executed notebook without papermill's records and the widgets, whose state ended with the kernel."""
    import nbformat

    try:
        notebook = nbformat.read(target, as_version=4)
    except (OSError, ValueError):  # stopped before, or while, it was written
        notebook = nbformat.read(source, as_version=4)
    notebook.metadata.pop("widgets", None)
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
        if "outputs" in part:
            part.outputs = [output for output in part.outputs if _WIDGET not in output.get("data", {})]
    nbformat.write(notebook, target)
    return notebook
