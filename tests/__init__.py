"""Tests of shearfx. A package, so that tests and benchmarks can share `tests.zoo`."""
