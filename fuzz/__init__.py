"""Fuzzing: random files against every reader, guided by coverage; `python -m fuzz` runs all."""
