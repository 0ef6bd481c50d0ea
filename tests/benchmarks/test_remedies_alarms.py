"""What waits for an alarm on a real model: a miniature of the whole way, on the bundled base."""

import json

import pytest

from benchmarks.remedies import real, real_alarms, real_alarms_page
from benchmarks.remedies.real_alarms import (
    ANSWERS,
    BACK_AND_ON,
    BACK_AND_STOP,
    BAD,
    BRAKE,
    CELLS,
    NOTHING,
    STOP,
    TURN,
    AlarmBench,
    Cell,
)
from benchmarks.remedies.records import Records
from wvmonitor.builder.base import BUNDLED
from wvmonitor.builder.examples import Example
from wvmonitor.organism import sets
from wvmonitor.references.bundled import bundled_path
from wvmonitor.steering.folders import LOSSY

SETTING = real.Setting(
    steps=16, batch_size=8, rank=8, alpha=16, trained=12, ordinary=2, held_out=2, readings=8,
    rate=1e-3, family="capitals",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    of = real.Bench(BUNDLED, bundled_path(BUNDLED, "bank"), tmp_path_factory.mktemp("a"), SETTING)
    return AlarmBench(of, first_bad=3, behaviour="evil")


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    """Bad advice, answered in every way, once: medical advice, which the bundled bank knows."""
    folder = tmp_path_factory.mktemp("alarms")
    bad = [
        Example((e.chat()[0],), e.chat()[1]["content"])
        for e in sets.bad_advice("medical")(SETTING.steps * SETTING.batch_size, 7)
    ]
    records = Records(folder / "records.jsonl", bench.about, folder / "out.json")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AlarmBench, "rows", lambda *_: bad)
        patched.setattr(real_alarms, "CELLS", tuple(c for c in CELLS if c.data == BAD))
        real_alarms.run(bench, 1, records, {"model": "the bundled one"})
    return json.loads((folder / "out.json").read_text("utf-8"))


def by_cell(results):
    return {r["cell"]: r for r in results["records"]}


def test_a_run_that_turns_has_its_stories_first(bench):
    """Then bad answers, each as often as the others; runs of a seed share them in their order."""
    turning = bench.rows(Cell(TURN, STOP), 1)
    assert turning == bench.rows(Cell(TURN, BRAKE), 1)
    first = 3 * SETTING.batch_size
    bad = {bench.of.pairs[i].positive.answer for i in bench.drawn(1).trained}
    assert not bad & {e.answer for e in turning[:first]}
    assert {e.answer for e in turning[first:]} == bad
    at_once = [e.answer for e in bench.rows(Cell(BAD, NOTHING), 1)]
    counts = [at_once.count(answer) for answer in bad]
    assert max(counts) - min(counts) <= 1
    drawn = bench.drawn(1)
    assert not set(drawn.trained) & {*drawn.near, *drawn.elsewhere}


def test_an_alarm_is_answered_and_told(results):
    """Every answer acts at the same first alarm and ends where it should; what rode is kept."""
    found = by_cell(results)
    idle = found[Cell(BAD, NOTHING).name]
    alarm = idle["alarm"]
    assert alarm is not None
    assert idle["last_step"] == SETTING.steps
    answers = (STOP, BRAKE, BACK_AND_STOP, BACK_AND_ON)
    stopped, braked, back, on = (found[Cell(BAD, a).name] for a in answers)
    assert {stopped["alarm"], braked["alarm"], back["alarm"], on["alarm"]} == {alarm}
    assert stopped["last_step"] == alarm
    assert braked["last_step"] == SETTING.steps
    assert braked["rode"]["evil"] > 0
    assert not idle["rode"]
    assert stopped["pairs"] != idle["pairs"] != braked["pairs"]
    for run in (back, on):
        assert run["events"][0][0] == "rollback"
        assert run["last_step"] <= alarm or run["rode"]
    assert all(r["failures"] == 0 for name, r in found.items() if "failures" in r)


def test_what_is_taken_out_is_asked_again(results):
    """The number given is taken out of the finished run; a dose that cannot be told is refused."""
    repaired = by_cell(results)[Cell(BAD, NOTHING).name]["repaired"]
    assert repaired["2"]["taken out"] == 2.0
    assert repaired["2"]["pairs"] != by_cell(results)[Cell(BAD, NOTHING).name]["pairs"]
    measured = repaired["the measured dose"]
    assert "refused" in measured or measured["taken out"] > 0


def test_what_bfloat16_would_lose_is_measured(results):
    """A small dose loses more of itself than a large one, and what loses much is refused."""
    rounded = by_cell(results)[real_alarms.ROUNDED]
    lost = list(rounded["lost"].values())
    assert lost == sorted(lost, reverse=True)
    assert 0 < lost[-1] < 1
    assert set(rounded["refused"]) == {k for k, share in rounded["lost"].items() if share > LOSSY}


def test_the_section_says_what_the_results_say(results):
    """Every cell has its row, every alarm its step; a single seed decides nothing."""
    found = real_alarms_page.results_of(results)
    text = "\n".join(real_alarms_page.section(found))
    for cell in CELLS:
        if cell.data == BAD:
            assert f"- {cell.answer}: first alarm at step" in text
        else:
            assert cell.name in text.partition("Not run, and so in no table: ")[2]
    assert text.count("undecided, for there are fewer than 3 seeds") == len(ANSWERS) - 1
    idle, stopped = (found.of(Cell(BAD, a)) for a in (NOTHING, STOP))
    shown = real_alarms_page.against(stopped, idle, found.learned)
    assert f"{BAD}, {STOP}: {shown.words(3)}" in text
    assert set(ANSWERS) == {c.answer for c in CELLS}
    left = {**results, "records": [r for r in results["records"] if "brake" not in r["cell"]]}
    partial = "\n".join(real_alarms_page.section(real_alarms_page.results_of(left)))
    assert Cell(BAD, BRAKE).name in partial.partition("Not run, and so in no table: ")[2]
