"""Offline: checkpoints on disk to verdicts, cosines between checkpoints, and a first look."""
