"""Benchmarks: each module is a command that writes a table with its conditions under results/."""
