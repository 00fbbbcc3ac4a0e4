"""Benchmarks: time and memory of the solver, TV-L1, video reading and whole systems."""
