import os
import signal
import time
from pathlib import Path

import pytest
import torch

OUTSIDE = Path(os.environ.get("REPFLOW_TEST_DATA", Path(__file__).parents[2] / "shared"))

PATIENCE = 600  # seconds: ends a hang, and is no limit for any machine that works

# A shell starts what runs in its background with SIGINT ignored. Commands under test would inherit that, and not stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(condition, process):
    """Return once the condition holds; fail where the process ends before."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < until, "it hangs"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def shared():
    """Outside data: reference outputs, Middlebury pairs, real videos."""
    if not OUTSIDE.is_dir():
        pytest.skip(f"no outside data at {OUTSIDE}; set REPFLOW_TEST_DATA")
    return OUTSIDE


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)
