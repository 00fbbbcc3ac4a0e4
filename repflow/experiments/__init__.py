"""Notebooks as experiments: typed parameters, `repflow run`, what a notebook reports, and the pages made of it."""

from repflow.benchmark import environment
from repflow.experiments.parameters import Job, Parameter, UsageError, find_notebooks, plan, read_parameters
from repflow.experiments.reporting import report
from repflow.experiments.runner import run

__all__ = [
    "Job",
    "Parameter",
    "UsageError",
    "environment",
    "find_notebooks",
    "plan",
    "read_parameters",
    "report",
    "run",
]
