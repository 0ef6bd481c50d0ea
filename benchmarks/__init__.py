"""Benchmarks: what watching costs, side by side with the plain way, on the machine at hand.

Each is a script (`python -m benchmarks.NAME [--quick] [--json FILE]`) that prints a table and
writes JSON. They are no timed tests: `--quick` proves that they run and that both ways of computing
a number agree, and times nothing worth quoting.
"""
