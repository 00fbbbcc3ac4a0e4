"""No interrupt is lost."""

import signal
import time

import pytest

from repflow.cli import flow, main
from repflow.interrupts import lasting_interrupts, one_interrupt


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


def test_one_interrupt_is_raised_again_where_it_was_swallowed_and_no_other():
    with lasting_interrupts(), one_interrupt():
        Swallows(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
        signal.raise_signal(signal.SIGTERM)  # cleaning up goes on
        time.sleep(0.2)
