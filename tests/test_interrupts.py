"""No interrupt is lost."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import forkserver

import pytest

from repflow.cli import flow, main
from repflow.interrupts import lasting_interrupts, one_interrupt
from repflow.processes import fresh_processes


class Swallows:
    """A signal comes while its destructor runs, out of which no exception gets."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)
        self.number = None


@pytest.fixture(autouse=True)
def handler():
    """The handler of SIGTERM, as it was before the command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_destructor_swallows_still_stops_the_command(monkeypatch, number):
    swallowed = []

    def run(arguments):
        del arguments
        Swallows(number)
        swallowed.append(number)
        time.sleep(30)
        return 0

    monkeypatch.setattr(flow, "run", run)
    assert main(["flow", "a.mp4", "--out", "a.gif"]) == 130
    assert swallowed  # it went on after the signal


SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_interrupt_of_any_kind_stops_and_all_that_follow_are_ignored(first):
    before = [signal.getsignal(number) for number in SIGNALS]
    with one_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(first)
        for number in SIGNALS:
            signal.raise_signal(number)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_one_interrupt_is_raised_again_where_it_was_swallowed_and_no_other():
    with lasting_interrupts(), one_interrupt():
        Swallows(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
        signal.raise_signal(signal.SIGTERM)  # cleaning up goes on
        time.sleep(0.2)


def test_ctrl_c_while_the_first_process_starts_is_not_lost(monkeypatch):
    monkeypatch.setattr(forkserver, "ensure_running", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fresh_processes()
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):  # nor does it stay blocked
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_does_not_reach_fresh_processes(tmp_path):
    """In a Python of its own: here others may have started the process that is forked."""
    script = """
        import os, signal, time
        from repflow.processes import fresh_processes

        def interrupt_itself():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

        if __name__ == "__main__":
            process = fresh_processes().Process(target=interrupt_itself)
            process.start()
            process.join()
            raise SystemExit(process.exitcode)
    """
    (tmp_path / "own.py").write_text(textwrap.dedent(script), encoding="utf-8")
    assert subprocess.run([sys.executable, tmp_path / "own.py"], check=False).returncode == 0


def test_fresh_processes_start_without_a_wait(tmp_path):
    """Or one asked for would miss the locks of a caller that ctrl-C has ended meanwhile, and say so at length."""
    (tmp_path / "heavy.py").write_text("import time\ntime.sleep(1)\nopen('loaded', 'x')\n", encoding="utf-8")
    script = """
        import os
        from repflow.processes import fresh_processes

        if __name__ == "__main__":
            fresh_processes("heavy")
            raise SystemExit(not os.path.exists("loaded"))
    """
    (tmp_path / "own.py").write_text(textwrap.dedent(script), encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, tmp_path / "own.py"]
    assert subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, check=False).returncode == 0
