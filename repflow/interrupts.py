"""Interrupts: ctrl-C and SIGTERM stop what runs, once, and none is lost."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Timer, main_thread

_lost = Event()  # set while an interrupt that was swallowed waits to be raised again


@contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Within, a KeyboardInterrupt that is swallowed on its way is raised again, a moment later.

    Python only reports an exception that leaves a destructor or a callback from C. Numba calls such ones while it
    loads compiled functions, so one signal in a few hundred would leave a command running to its end.
    """
    before = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _lost.set()
            Timer(0.05, signal.pthread_kill, [main_thread().ident, signal.SIGINT]).start()
        else:
            before(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Make the first ctrl-C, SIGTERM or SIGHUP a KeyboardInterrupt and ignore the next: cleaning up goes on."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if not stopped or _lost.is_set():
            stopped = True
            _lost.clear()
            raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # what nohup ignores stays ignored
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
