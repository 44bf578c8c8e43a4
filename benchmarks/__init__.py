"""Benchmarks: each module prints one table and keeps its last result in ``benchmarks/results``."""
