import os
from pathlib import Path

import pytest
import torch

OUTSIDE = Path(os.environ.get("REPFLOW_TEST_DATA", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
    """Outside data: reference outputs, Middlebury pairs, real videos."""
    if not OUTSIDE.is_dir():
        pytest.skip(f"no outside data at {OUTSIDE}; set REPFLOW_TEST_DATA")
    return OUTSIDE


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)
