"""Attacks: known backdoors for tests and benchmarks."""
