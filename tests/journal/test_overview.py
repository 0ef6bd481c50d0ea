"""The last word on a run: the worst that it has earned, and what came after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.judgement import Judgement, JudgeState
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import judge
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.overview import summaries
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.trainer_log import log_values


def course(cosines: list[float], make_entry: Callable[..., Any]) -> list[Judgement]:
    """A run judged by the published rule, reading by reading."""
    state, passed = JudgeState(), []
    for index, cosine in enumerate(cosines):
        step = 10 * (index + 1)
        values = {"frobenius": {"cosine": cosine, "margin": 0.1}}
        scores = Scores(
            {"evil": ReferenceScores("evil", "behaviour", values)},
            norm=1.0,
            coverage={"frobenius": 1.0},
            step=step,
        )
        verdicts, state = judge(scores, RunContext(), None, state)
        passed.append(Judgement(make_entry(step).reading, scores, verdicts, state))
    return passed


@pytest.mark.parametrize(
    ("cosines", "worst", "step", "code"),
    [
        ([0.01, 0.2, 0.3, 0.01], "warn", 30, 1.0),
        ([0.01, 0.02, 0.01], "ok", 10, 0.0),
        ([0.01, 0.2, 0.01], "ok", 10, 0.0),
    ],
    ids=["rose and fell", "never rose", "was above the rule only once"],
)
def test_the_last_word_is_the_worst_that_a_run_has_earned(
    cosines: list[float],
    worst: str,
    step: int,
    code: float,
    tmp_path: Path,
    make_entry: Callable[..., Any],
) -> None:
    """`runs`, metrics and a tracker's summary say ok only of a run that never rose, and say when
    it did and how far.
    """
    passed = course(cosines, make_entry)
    journal = Journal.open(tmp_path, run="r")
    journal.begin_attempt(RunContext(), "b")
    for judgement in passed:
        journal.record(judgement)
    journal.close()
    (summary,) = summaries(tmp_path)
    evil = summary.references["evil"]
    assert (summary.verdict, evil.worst, evil.worst_step, evil.state) == (worst, worst, step, "ok")
    assert evil.worst_score == cosines[step // 10 - 1]
    said = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert said.startswith(worst)
    assert (f"evil was at {worst} from step {step} on" in said) == (worst != "ok")
    page, last = PrometheusExporter(port=None), Observation("r", passed[-1], 0.01, 1.0)
    page.export(last)
    series = f'wvmonitor_worst_verdict{{reference="evil",run="r",verdict="{worst}"}} 1.0'
    assert series in page.page().decode()
    assert log_values(last)["wv/evil/worst"] == code
