"""Benchmarks: what a constraint costs, as a ratio to the same step without it."""
