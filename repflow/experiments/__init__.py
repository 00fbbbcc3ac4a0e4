"""Notebooks as experiments: typed parameters, `repflow run`, what a notebook shows and reports, and its pages."""

from repflow.experiments.parameters import Job, Parameter, UsageError, find_notebooks, plan, read_parameters
from repflow.experiments.reporting import report
from repflow.experiments.runner import run
from repflow.experiments.teaching import check, show
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
