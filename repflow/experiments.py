"""The former name of `repflow.lab`, kept for one release."""

import sys

from repflow.lab import check, environment, report, show
from repflow.lab.jobs import Job, find_notebooks, plan
from repflow.lab.parameters import Parameter, UsageError, read_parameters
from repflow.lab.runner import run
from repflow.lab.sweeps import answers, study

__all__ = ["Job", "Parameter", "UsageError", "check", "environment", "find_notebooks", "plan"]
__all__ += ["read_parameters", "report", "run", "show"]
sys.modules |= {f"{__name__}.answers": answers, f"{__name__}.questions": study}
