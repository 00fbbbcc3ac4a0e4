"""Notebooks as experiments: typed parameters, `repflow run`, what a notebook shows and reports, and its pages."""

from repflow.lab.jobs import Job, find_notebooks, plan
from repflow.lab.notebook import check, report, show
from repflow.lab.parameters import Parameter, UsageError, read_parameters
from repflow.lab.runner import run
from repflow.records import environment

__all__ = [
    "Job",
    "Parameter",
    "UsageError",
    "check",
    "environment",
    "find_notebooks",
    "plan",
    "read_parameters",
    "report",
    "run",
    "show",
]
