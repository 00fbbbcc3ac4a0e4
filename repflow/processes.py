"""Processes that inherit nothing of this one's threads."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from threading import Thread


def fresh_processes(*modules: str) -> BaseContext:
    """A context of `multiprocessing` whose processes are forks of one that has loaded `modules` and computed nothing.

    They are as good as new ones, and seconds quicker to start. A fork of this process may wait for ever: it inherits
    locks and pools, as FFmpeg's, but not the threads that serve them. ctrl-C does not reach them; it is for the caller
    alone to act on. One process is forked by all callers: it has loaded the modules of the first.
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
    """Call in a process that another one started: it ends when that one does, however that came about."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)  # nobody is left to wait for

    Thread(target=wait, daemon=True).start()
