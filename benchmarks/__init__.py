"""Benchmarks: every stage beside a physical limit and the usual way, in one run. `python -m benchmarks` runs them."""
