"""Processes that inherit nothing of this one's threads."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from threading import Thread


def fresh_processes(*modules: str) -> BaseContext:
    """A context of `multiprocessing` whose processes are forks of one that has loaded `modules` and computed nothing.

    Such a process is as good as a new one, and starts seconds sooner. A fork of the calling process could wait for
    ever: it inherits locks and pools, such as FFmpeg's, but not the threads that serve them. ctrl-C does not reach
    these processes: only the caller acts on it. All callers share the process that is forked, which has loaded the
    modules of the first caller.

        process = fresh_processes("repflow.video").Process(target=work)
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def end_with_parent() -> None:
    """End the process that calls this as soon as its parent has ended, even if the parent was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)  # nobody is left to wait for

    Thread(target=wait, daemon=True).start()
