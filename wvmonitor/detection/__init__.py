"""Detection: from a reading to scores, and from scores to a verdict (design, section 5).

Read `scores.py` (what is measured), `calibration.py` (what benign runs score), `verdict.py` (what
is said about it), and `judge.py`, which the rest of the package calls. Numbers only: nothing here
imports torch, and scipy only where it is used.
"""

from wvmonitor.detection.calibration import Calibration, calibrate
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judge import Judge
from wvmonitor.detection.judgement import (
    BehaviourState,
    Judgement,
    JudgeState,
    State,
    Statistics,
    Verdict,
)
from wvmonitor.detection.scores import ReferenceScores, Scores, score

__all__ = [
    "BehaviourState",
    "Calibration",
    "Judge",
    "JudgeState",
    "Judgement",
    "ReferenceScores",
    "RunContext",
    "Scores",
    "State",
    "Statistics",
    "Verdict",
    "calibrate",
    "score",
]
