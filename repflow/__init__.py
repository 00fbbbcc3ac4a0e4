"""Representation Flow for Action Recognition: understand it, run it, measure it."""

__version__ = "0.1.0"
