"""Detection: from a reading to scores, and from scores to a verdict (design, section 5).

Read `scores.py` (what is measured), `calibration.py` (what benign runs score), `verdict.py` (what
is said about it). Numbers only: nothing here imports torch, and scipy only where it is used.
"""
