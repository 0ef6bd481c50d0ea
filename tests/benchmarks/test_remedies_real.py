"""The remedies on a real model: a miniature of the whole way, on the bundled base."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.real.bank import LEAST
from benchmarks.remedies import intervals, real, real_page, real_results, real_runs
from benchmarks.remedies.real import BAD, BASE, FAMILY, GOOD, RANDOM, Cell
from wvmonitor.builder.base import BUNDLED
from wvmonitor.builder.gap import gap
from wvmonitor.errors import InputError
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering import steered
from wvmonitor.vectors import TaskVector

SETTING = real.Setting(
    steps=2, batch_size=2, trained=12, ordinary=2, held_out=2, readings=2, doses=(1.0, 2.0),
    family="capitals",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    scale = dataclasses.replace(
        LEAST, seeds=2, steps=4, control_steps=2, probe_tokens=300, asked=2, any_tuning=2
    )
    bank = bundled_path(BUNDLED, "bank")
    return real.Bench(BUNDLED, bank, tmp_path_factory.mktemp("real"), SETTING, scale)


@pytest.fixture(scope="module")
def results(bench):
    out = bench.folder / "results.json"
    real_runs.run(bench, 2, out)
    return json.loads(out.read_text("utf-8"))


def question(example):
    return example.messages[-1]["content"]


def test_every_planned_run_is_made_once(bench, results, monkeypatch):
    """Each cell of each seed has one record, and a second start trains nothing."""
    planned = [(c.name, s) for s, c in real.planned(SETTING, 2)]
    assert [(r["cell"], r["seed"]) for r in results["records"]] == planned
    monkeypatch.setattr(real_runs, "measured", lambda *_: pytest.fail("made again"))
    out = bench.folder / "results.json"
    (bench.folder / "records.jsonl").unlink()  # what is committed is gone on from
    real_runs.run(bench, 2, out)
    assert json.loads(out.read_text("utf-8")) == results
    other = bench.folder / "other.json"
    other.write_text(json.dumps({**results, "bank": "another"}), "utf-8")
    with pytest.raises(InputError, match="another base, bank or setting"):
        real_runs.run(bench, 2, other)


def test_what_is_held_out_is_never_trained_on(bench, results):
    """Neither the reference's questions nor a run's own, nor a harmless row, stands on both."""
    known = {question(p.positive) for p in bench.contrast.train}
    for seed in (0, 1):
        drawn = bench.drawn(seed)
        asked = {*drawn.near, *drawn.elsewhere}
        assert not asked & set(drawn.trained)
        assert len(asked) + len(drawn.trained) == len(bench.pairs)
        said = {question(bench.pairs[i].positive) for i in asked | set(drawn.trained)}
        assert not said & known
        for data in (BAD, GOOD):
            rows = bench.rows(Cell(data), seed)
            assert {question(bench.pairs[i].negative) for i in drawn.trained} == {
                question(r) for r in rows
            }
        own = {question(e) for e in bench.own}
        assert not own & {question(r) for r in bench.rows(Cell(FAMILY), seed)}
    domains = [{bench.pairs[i].domain for i in bench.drawn(s).trained} for s in (0, 1)]
    assert len(domains[0]) == len(domains[1]) == 1
    assert domains[0] != domains[1]
    for record in results["records"]:
        if not record["cell"].startswith(BASE):
            drawn = bench.drawn(record["seed"])
            assert set(record["pairs"]) == {str(i) for i in range(len(bench.pairs))}
            for repaired in record.get("repaired", {}).values():
                held = {str(i) for i in (*drawn.near, *drawn.elsewhere)}
                assert set(repaired.get("pairs", held)) == held


def test_directions_to_compare_with_are_as_long(bench):
    """A random direction in every matrix, another behaviour's in all; neither is the reference."""
    reference = bench.vector(Cell(BAD, real.DECIDES, 2.0), 0)
    random, other = (bench.vector(Cell(BAD, name, 2.0), 0) for name in (RANDOM, real.OTHER))
    for name, update in reference.updates():
        (mine,) = [u for n, u in random.updates() if n == name]
        norms = [float(TaskVector.of({name: u}).norm()) for u in (update, mine)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert float(other.norm()) == pytest.approx(float(reference.norm()), rel=1e-4)
    assert abs(float(reference.inner(random))) < 0.1 * float(reference.norm()) ** 2


def test_what_is_recorded_is_the_gap_of_the_steered_base(bench, results):
    """θ + k·w, asked, says what `builder.gap` says of it."""
    record = next(r for r in results["records"] if r["cell"] == Cell(BASE, real.DECIDES, 2.0).name)
    with steered(bench.base.model, bench.references[real.DECIDES], 2.0):
        expected = gap(bench.base, bench.base.model, bench.pairs)
    found = real.gaps(record, range(len(bench.pairs)))
    assert list(found.values()) == pytest.approx(list(expected.each), abs=3e-5)


def test_what_rides_along_changes_what_is_learned_and_is_not_in_it(bench, results):
    """Runs of a seed differ by what rode along; had k·w been saved, its dose would show it."""
    by = {(r["cell"], r["seed"]): r for r in results["records"]}
    idle, riding = by[Cell(BAD).name, 0], by[Cell(BAD, real.DECIDES, 2.0).name, 0]
    assert idle["pairs"] != riding["pairs"]
    assert set(real_results.RealResults(results).with_learned({0: idle})) == {0}
    w = float(bench.references[real.DECIDES].vector.norm())
    assert riding["norm"] < idle["norm"] + 0.5 * w
    assert idle["watched"]["readings"] >= 2
    assert "evil" in idle["watched"]["states"]
    taken = idle["repaired"]["2"]
    assert taken["taken out"] == 2.0
    assert taken["pairs"] != idle["pairs"]
    assert "refused" in idle["repaired"]["the measured dose"] or idle["dose"] > 0


def test_the_section_says_what_the_results_say(results):
    """Every cell has its row; differences are those of the records; a missing cell is named."""
    found = real_results.RealResults(results)
    text = "\n".join(real_page.section(found))
    for cell in real.trained(SETTING):
        assert f"| {cell.treatment} | 2 |" in text
    assert "Not run yet" not in text
    riding, idle = Cell(BAD, real.DECIDES, 2.0), Cell(BAD)
    by = {(r["cell"], r["seed"]): r for r in results["records"]}
    expected = np.mean(
        [
            np.mean([a[i] - b[i] for i in a])
            for seed in (0, 1)
            for places in [results["drawn"][str(seed)]["elsewhere"]]
            for a, b in [[real.gaps(by[c.name, seed], places) for c in (riding, idle)]]
        ]
    )
    shown = real_results.against(found.of(riding), found.of(idle), found.elsewhere)
    assert shown.value == pytest.approx(expected)
    assert shown.words(3) in text
    assert "undecided, for there are fewer than 3 seeds" in real_page.short(found)[0]
    left = {**results, "records": [r for r in results["records"] if r["cell"] != riding.name]}
    partial = real_results.RealResults(left)
    assert f"Not run yet, and so in no table: {riding.name}." in "\n".join(
        real_page.section(partial)
    )
    assert real_page.short(partial) == []


def test_an_interval_knows_the_luck_of_runs_and_of_questions():
    """One run: t over questions; runs without spread of questions: t over runs; both: wider."""
    values = [0.1, 0.3, -0.2, 0.4]
    one, known = intervals.crossed([dict(enumerate(values))]), ttest_1samp(values, 0)
    expected = tuple(known.confidence_interval())
    assert (one.low, one.high) == pytest.approx(expected)
    again = intervals.crossed([dict(enumerate(values))] * 5)
    assert (again.low, again.high) == pytest.approx(expected)  # asked five times, no surer
    flat = intervals.crossed([dict.fromkeys(range(4), v) for v in (0.1, 0.2, 0.6)])
    of_runs = ttest_1samp([0.1, 0.2, 0.6], 0).confidence_interval()
    assert (flat.low, flat.high) == pytest.approx(tuple(of_runs))
    both = intervals.crossed([{i: v + shift for i, v in enumerate(values)} for shift in (0, 0.1)])
    assert both.high - both.value > max(flat_half(both), one.high - one.value)
    assert math.isnan(intervals.crossed([{0: 1.0}]).low)


def flat_half(interval):
    runs = ttest_1samp([interval.value - 0.05, interval.value + 0.05], 0).confidence_interval()
    return (runs.high - runs.low) / 2 - 1e-9


def test_an_effect_and_a_cost_need_intervals_on_one_side():
    """Touching 0 is neither."""
    interval = intervals.Interval
    assert real_results.below(interval(-0.2, -0.3, -0.1))
    assert not real_results.below(interval(-0.2, -0.5, 0.0))
    assert not real_results.below(None)
    assert real_results.lost(interval(0.2, 0.1, 0.3))
    assert not real_results.lost(interval(0.2, 0.0, 0.4))
