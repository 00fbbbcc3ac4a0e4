"""Grids of experiments: files that say them, their execution, the study, tables and figures."""
