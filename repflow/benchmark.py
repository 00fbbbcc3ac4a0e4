"""The former name of `repflow.lab.bench`, kept for one release."""

import sys

from repflow.lab.bench import flow, scaling, solver, systems, video
from repflow.lab.bench.timing import statistics, time_in_turn
from repflow.records import circumstances, environment, paper_table, read_timings

__all__ = ["circumstances", "environment", "paper_table", "read_timings", "statistics", "time_in_turn"]
sys.modules |= {f"{__name__}.{m.__name__.rpartition('.')[2]}": m for m in (flow, scaling, solver, systems, video)}
