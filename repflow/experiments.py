"""The former name of `repflow.lab`, kept for one release."""

import sys

from repflow.lab import *  # noqa: F403
from repflow.lab.sweeps import answers, study

sys.modules |= {f"{__name__}.answers": answers, f"{__name__}.questions": study}
