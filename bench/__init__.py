"""Benchmarks: each module prints a table that anyone can reproduce; results stand in docs/benchmarks.md."""
