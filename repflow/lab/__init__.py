"""The workshop: running notebooks, their pages, sweeps and benchmarks. Of it, a notebook calls what is here."""

from repflow.lab.notebook import check, report, show
from repflow.records import environment

__all__ = ["check", "environment", "report", "show"]
