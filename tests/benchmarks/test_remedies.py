"""The page of remedies: its intervals, what it is held against, and the committed results."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from benchmarks.remedies import cells, intervals, runs
from benchmarks.remedies.__main__ import PAGE, committed_page
from benchmarks.remedies.tables import Results
from wvmonitor.organism.behaviour import wilson
from wvmonitor.references import ReferenceBank


def test_the_page_shows_the_committed_results() -> None:
    """docs/remedies.md is what the generator makes of the committed figures."""
    assert committed_page() == PAGE.read_text("utf-8")


def test_a_rate_is_a_t_interval_over_runs_and_never_surer_than_its_answers() -> None:
    """Runs that differ: scipy's t interval; runs that agree: Wilson's of all answers; in [0, 1]."""
    counts = [(30, 100), (50, 100), (70, 100)]
    expected = ttest_1samp([0.3, 0.5, 0.7], 0).confidence_interval()
    found = intervals.rate(counts)
    assert (found.low, found.high) == pytest.approx((max(expected.low, 0), min(expected.high, 1)))
    alike = intervals.rate([(2, 100)] * 5)
    pooled = wilson(10, 500)
    assert (alike.value, alike.low, alike.high) == pytest.approx((0.02, pooled.low, pooled.high))
    alone = intervals.rate([(2, 100)])
    assert (alone.low, alone.high) == pytest.approx((wilson(2, 100).low, wilson(2, 100).high))
    assert intervals.rate([(95, 100), (100, 100)]).high == 1
    three, both = intervals.mean([1.0, 2.0, 3.0]), ttest_1samp([1.0, 2.0, 3.0], 0)
    assert (three.low, three.high) == pytest.approx(tuple(both.confidence_interval()))
    assert intervals.mean([0.27, 0.27]).words() == "0.27"


def test_a_difference_is_paired_by_seed() -> None:
    """What seeds share is no part of its interval; that of the questions is."""
    first = [(20, 100), (45, 100), (70, 100), (30, 100)]
    second = [(60, 100), (80, 100), (95, 100), (75, 100)]
    found = intervals.difference(list(zip(first, second, strict=True)))
    gaps = ttest_rel([a / 100 for a, _ in first], [b / 100 for b, _ in second])
    expected = gaps.confidence_interval()
    assert found.value == pytest.approx(-0.3625)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    alike = intervals.difference([((10, 100), (30, 100))] * 3)
    p, q = 31 / 302, 91 / 302
    luck = 1.959964 * math.sqrt(p * (1 - p) / 300 + q * (1 - q) / 300)
    assert alike.high - alike.value == pytest.approx(luck)
    assert intervals.Interval(-0.2, -0.3, -0.1).words() == "−0.20 (−0.30 to −0.10)"
    assert intervals.Interval(0.2, 0.1, 0.3).words() == "0.20 (0.10–0.30)"


def record(cell: cells.Cell, seed: int, harmful: int) -> dict[str, Any]:
    counts = {"trained": [harmful, 100], "elsewhere": [harmful, 100], "elsewhere neither": [0, 100]}
    return {"cell": cell.name, "seed": seed, "loss": 1.0, "facts": [9, 10], "dose": 1.0, **counts}


def test_each_treatment_is_held_against_the_untreated_run_of_its_seed_and_length() -> None:
    """Three times as long is held against three times as long, not against the shorter run."""
    of = {(c.group, c.treatment): c for c in cells.CELLS}
    short = of["dose", cells.NOTHING]
    long = [of["three times as long", t] for t in (cells.NOTHING, "1.5 × evil")]
    rows = [record(short, seed, 10) for seed in range(3)]
    rows += [record(long[0], seed, 90) for seed in range(3)]
    rows += [record(long[1], seed, 40) for seed in range(3)]
    table = Results(rows).table("three times as long")
    (line,) = [row for row in table if row.startswith("| 1.5 × evil |")]
    assert "| −0.50 (" in line


def test_a_screened_run_trains_without_the_bad_rows() -> None:
    """What `blame` flags is what trains no more, and the record counts bad and good rows right."""
    task = cells.TASKS[cells.mixed_name(0.1)]
    rows = task.rows(task.examples, 5)
    kept, done = runs._without_flagged(rows, task, 5, ReferenceBank.load(runs.BANK))
    good = task.useful(len(rows), 5)
    bad = [row for row, other in zip(rows, good, strict=True) if row != other]
    assert len(bad) == 48 == done["found"][1]
    assert len(kept) == len(rows) - done["found"][0] - done["lost"][0]
    assert np.mean([row in bad for row in kept]) < 0.02


def test_a_run_that_turns_takes_the_good_rows_first() -> None:
    """Half of its rows are the good set's, and the other half the bad one's on later prompts."""
    task = cells.TASKS["good, then bad medical advice"]
    rows, good = task.rows(40, 3), task.useful(40, 3)
    assert rows[:20] == good[:20]
    assert all(a != b and a.prompt == b.prompt for a, b in zip(rows[20:], good[20:], strict=True))
