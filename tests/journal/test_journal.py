"""The durable record of a run."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wvmonitor.detection.verdict import RunContext
from wvmonitor.errors import JournalError
from wvmonitor.journal import journal as journal_module
from wvmonitor.journal import lock as lock_module
from wvmonitor.journal import writes
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.overview import summaries
from wvmonitor.journal.reader import read_journal
from wvmonitor.journal.tools import acknowledge
from wvmonitor.report.findings import judge
from wvmonitor.report.inputs import from_journal

Entry = Callable[..., tuple[Any, ...]]
CONTEXT = RunContext(method="lora", rank=8, optimizer="adamw", learning_rate=1e-4)


def begun(path: Path, run: str | None = "r", resume_step: int = 0) -> Journal:
    """A journal of run `run` whose attempt has begun."""
    journal = Journal.open(path, run=run)
    journal.begin_attempt(CONTEXT, "bank", '{"every_n_steps": 10}', resume_step=resume_step)
    return journal


def same(left: Any, right: Any) -> None:
    """Bit for bit, NaN included."""
    for name in ("products", "squared_norms", "covered", "lagged"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)


def test_what_is_recorded_comes_back_to_the_last_bit(tmp_path: Path, make_entry: Entry) -> None:
    """A reading, its scores, verdicts and judge state come back exactly, NaN and infinity too."""
    journal = begun(tmp_path)
    judgement = make_entry(10, "warn", float("inf"))
    reading, scores = judgement.reading, judgement.scores
    assert reading is not None
    journal.record(judgement, 123.5, 0.01)
    (row,) = journal.trajectory()
    assert (row.run, row.attempt, row.step, row.wall_time, row.measure_seconds) == (
        "r", 1, 10, 123.5, 0.01,
    )  # fmt: skip
    assert row.judgement.verdicts == judgement.verdicts
    assert row.judge_state == judgement.state
    assert repr(row.scores) == repr(scores)
    back = journal.reading(row)
    same(back.geometries["frobenius"], reading.geometries["frobenius"])
    assert (back.references, back.components, back.warnings, back.progress, back.base_digest) == (
        reading.references, reading.components, reading.warnings, reading.progress, None,
    )  # fmt: skip
    journal.close()
    (attempt,) = read_journal(tmp_path).attempts("r")
    assert (attempt.context, attempt.bank) == (CONTEXT, "bank")
    assert json.loads(attempt.settings) == {"every_n_steps": 10}


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path, make_entry: Entry) -> None:
    """After a resume each step counts once, and readings past the checkpoint no longer count."""
    for resume_step, steps in ((0, range(0, 101, 10)), (60, (60, 65, 80)), (40, (45, 50))):
        journal = begun(tmp_path, resume_step=resume_step)
        for step in steps:
            journal.record(make_entry(step, seed=resume_step))
        journal.close()
    rows = read_journal(tmp_path).trajectory("r")
    assert [(row.attempt, row.step) for row in rows] == [
        (1, 0), (1, 10), (1, 20), (1, 30), (1, 40), (3, 45), (3, 50),
    ]  # fmt: skip
    with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
        assert raw.execute("SELECT count(*) FROM readings").fetchone() == (16,)


def test_a_reading_at_the_checkpoint_itself_counts_once(tmp_path: Path, make_entry: Entry) -> None:
    """A step measured before and after a resume counts as the resumed run measured it."""
    for resume_step, seed in ((0, 0), (20, 7)):
        journal = begun(tmp_path, resume_step=resume_step)
        for step in (10, 20):
            if step >= resume_step:
                journal.record(make_entry(step, seed=seed))
        journal.close()
    reader = read_journal(tmp_path)
    rows = reader.trajectory("r")
    assert [(row.attempt, row.step) for row in rows] == [(1, 10), (2, 20)]
    wanted = make_entry(20, seed=7).reading
    same(reader.reading(rows[1]).geometries["frobenius"], wanted.geometries["frobenius"])


def test_the_judge_goes_on_from_the_checkpoint(tmp_path: Path, make_entry: Entry) -> None:
    """A run resumed at a step gets the judge state of the last reading up to that step."""
    journal = begun(tmp_path)
    assert journal.latest_judge_state() is None
    for step in (10, 20, 30):
        journal.record(make_entry(step))
    latest = journal.latest_judge_state()
    at_25 = journal.latest_judge_state("r", 25)
    assert latest is not None
    assert at_25 is not None
    assert [s.of("evil").running_maximum for s in (latest, at_25)] == [30.0, 20.0]
    assert at_25.alarmed == {"evil"}
    assert journal.latest_judge_state("r", 5) is None
    journal.close()


def test_recording_a_step_twice_keeps_the_first(tmp_path: Path, make_entry: Entry) -> None:
    """The same step handed over twice is one row."""
    journal = begun(tmp_path)
    journal.record(make_entry(10, cosine=0.1))
    journal.record(make_entry(10, cosine=0.9))
    (row,) = journal.trajectory()
    assert row.scores.references["evil"].values["frobenius"]["cosine"] == 0.1
    journal.close()


def test_an_unnamed_run_is_continued_only_by_a_resume(tmp_path: Path) -> None:
    """Without a run id, resuming goes on with the latest run, and starting over is a new run."""
    names = []
    for resume_step in (0, 50, 0):
        journal = begun(tmp_path, run=None, resume_step=resume_step)
        names.append((journal.run, journal.attempt))
        journal.close()
    assert names[0][0] == names[1][0] != names[2][0]
    assert [attempt for _, attempt in names] == [1, 2, 1]


def test_stop_is_remembered_until_it_is_cleared(tmp_path: Path) -> None:
    """A stopped run stays stopped when it is resumed, until someone clears it."""
    journal = begun(tmp_path)
    assert journal.stop_latched() is None
    journal.latch_stop("evil at step 40")
    journal.close()
    journal = begun(tmp_path, resume_step=40)
    assert journal.stop_latched() == "evil at step 40"
    journal.clear_stop("looked at it")
    assert journal.stop_latched() is None
    journal.note("goes on")
    assert [e.kind for e in read_journal(tmp_path).events("r")] == ["stop", "stop-cleared", "note"]
    journal.close()


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    """Two runs cannot write one journal: the second is told who holds it, and what to do."""
    journal = begun(tmp_path)
    with pytest.raises(JournalError, match=r"another monitor of this process .*journal_dir"):
        Journal.open(tmp_path)
    journal.close()
    code = (
        "import sys; from wvmonitor.journal.journal import Journal;"
        "Journal.open(sys.argv[1], run='r'); print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        said = rf"written by process {other.pid} on host .*journal_dir.*end that process"
        with pytest.raises(JournalError, match=said):
            Journal.open(tmp_path)
        other.communicate("\n")
    begun(tmp_path).close()


def test_a_lock_left_by_a_killed_writer_is_no_obstacle(tmp_path: Path) -> None:
    """After kill −9 the next start of the run writes on."""
    code = (
        "import os, signal, sys; from wvmonitor.journal.journal import Journal;"
        "Journal.open(sys.argv[1], run='r'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    assert json.loads((tmp_path / "wvmonitor.db.lock").read_text())["pid"] != os.getpid()
    begun(tmp_path).close()


def test_reports_read_while_the_run_writes(tmp_path: Path, make_entry: Entry) -> None:
    """A report sees every flushed reading while the run is alive, and does not stop it."""
    journal = begun(tmp_path)
    for step in range(5):
        journal.record(make_entry(step))
        journal.flush()
        assert len(read_journal(tmp_path).trajectory("r")) == step + 1
    journal.close()


def test_a_newer_journal_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A journal of a newer version is refused, and the way out is named."""
    begun(tmp_path).close()
    with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
        raw.execute("UPDATE meta SET value='99'")
    for opening in (Journal.open, read_journal):
        with pytest.raises(JournalError, match=r"newer wvmonitor .*pip install -U"):
            opening(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"not a database at all" * 100, "damaged or no database.*move it away"),
        (None, "not a journal"),
    ],
)
def test_a_file_that_is_no_journal_is_left_alone(
    tmp_path: Path, content: bytes | None, match: str
) -> None:
    """A file of something else is refused and not changed."""
    path = tmp_path / "wvmonitor.db"
    if content is None:
        with sqlite3.connect(path) as raw:
            raw.execute("CREATE TABLE other (x)")
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=match):
        Journal.open(tmp_path)
    assert path.read_bytes() == before


def test_a_missing_journal_is_named(tmp_path: Path) -> None:
    """Reading where there is no journal says so and creates nothing."""
    with pytest.raises(JournalError, match=r"no journal at .*wvmonitor.db"):
        read_journal(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("obstacle", ["unwritable folder", "no locks"])
def test_a_bad_folder_falls_back_to_local_disk(
    tmp_path: Path,
    obstacle: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make_entry: Entry,
) -> None:
    """A folder that can't be written or locked gives way to a local one, which the log names."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wanted = tmp_path / "a file" / "run"
    if obstacle == "unwritable folder":
        (tmp_path / "a file").write_text("in the way")
    else:
        real = lock_module._lock
        calls = iter((True, False))

        def without_locks(descriptor: int) -> None:
            if next(calls):
                raise OSError(37, "No locks available")
            real(descriptor)

        monkeypatch.setattr(lock_module, "_lock", without_locks)
    with caplog.at_level(logging.WARNING):
        journal = begun(wanted)
    journal.record(make_entry(1))
    assert len(journal.trajectory()) == 1
    journal.close()
    assert tmp_path / f"wvmonitor-{os.getuid()}" in journal.path.parents
    assert str(journal.path) in caplog.text
    assert journal.fallback is not None
    assert str(wanted) in journal.fallback


def test_a_full_disk_loses_nothing(
    tmp_path: Path, make_entry: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    """While the disk is full training goes on; once there is room, every reading is written."""
    journal = begun(tmp_path)
    pages = journal.execute(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    journal.execute(lambda c: c.execute(f"PRAGMA max_page_count={pages + 1}").fetchone())
    start = time.perf_counter()
    for step in range(200):
        journal.record(make_entry(step))
    assert time.perf_counter() - start < 10.0  # to wait for the disk 200 times takes far longer
    with pytest.raises(JournalError, match="entries wait in memory"):
        journal.flush(timeout=0.2)
    assert "cannot be written (database or disk is full)" in caplog.text
    journal._claim.connection.execute("PRAGMA max_page_count=100000")
    journal.flush()
    assert [row.step for row in journal.trajectory()] == list(range(200))
    journal.close()


def test_closing_on_a_full_disk_says_what_is_missing(tmp_path: Path, make_entry: Entry) -> None:
    """A reading that could not be written before the end is named, not swallowed."""
    journal = begun(tmp_path)
    pages = journal.execute(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    journal.execute(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchone())
    for step in range(30):
        journal.record(make_entry(step))
    with pytest.raises(JournalError, match=r"lacks the reading of step \d+ .*full.* more"):
        journal.close(timeout=0.3)
    begun(tmp_path).close()


def test_a_full_queue_raises_rather_than_forgets(
    tmp_path: Path,
    make_entry: Entry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A disk that never answers holds training up briefly, then it is told; nothing is dropped."""
    monkeypatch.setattr(journal_module, "QUEUE_SIZE", 4)
    monkeypatch.setattr(journal_module, "PATIENCE_SECONDS", 0.1)
    journal = begun(tmp_path)
    gate = threading.Event()
    stuck = threading.Thread(target=lambda: journal.execute(lambda _: gate.wait(10)))
    stuck.start()
    time.sleep(0.05)
    for step in range(4):
        journal.record(make_entry(step))
    for _ in range(2):
        with pytest.raises(JournalError, match=r"takes no more readings .*not recorded"):
            journal.record(make_entry(4))
    assert caplog.text.count("the disk is slow") == 1
    gate.set()
    stuck.join()
    assert [row.step for row in journal.trajectory()] == list(range(4))
    journal.close()


def test_one_bad_entry_does_not_hold_up_the_others(tmp_path: Path, make_entry: Entry) -> None:
    """A reading that cannot be encoded is named by flush; those around it are kept."""
    journal = begun(tmp_path)
    journal.record(make_entry(1))
    journal.record(replace(make_entry(2), scores="no scores"))
    journal.record(make_entry(3))
    with pytest.raises(JournalError, match="lacks the reading of step 2"):
        journal.flush()
    assert [row.step for row in journal.trajectory()] == [1, 3]
    journal.close()


def test_misuse_is_told(tmp_path: Path, make_entry: Entry) -> None:
    """A reading without a step or an attempt, or after closing, is refused in words."""
    journal = Journal.open(tmp_path, run="r")
    with pytest.raises(JournalError, match="before begin_attempt"):
        journal.record(make_entry(1))
    journal.begin_attempt(CONTEXT, "bank")
    with pytest.raises(JournalError, match="without a step"):
        journal.record(make_entry(None))
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="has been closed"):
        journal.record(make_entry(1))


def test_a_forgotten_close_loses_nothing(tmp_path: Path) -> None:
    """A script that ends without closing has its readings written all the same."""
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('c', sys.argv[2])\n"
        "c = importlib.util.module_from_spec(spec); spec.loader.exec_module(c)\n"
        "from wvmonitor.journal.journal import Journal\n"
        "from wvmonitor.detection.verdict import RunContext\n"
        "j = Journal.open(sys.argv[1], run='r'); j.begin_attempt(RunContext(), 'b')\n"
        "[j.record(c.entry(s)) for s in range(50)]\n"
    )
    conftest = Path(__file__).with_name("conftest.py")
    subprocess.run([sys.executable, "-c", code, tmp_path, conftest], check=True)
    assert len(read_journal(tmp_path).trajectory("r")) == 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*")
def test_forked_workers_cannot_harm_the_journal(tmp_path: Path, make_entry: Entry) -> None:
    """Data-loader workers forked mid-write are refused, and their end disturbs nothing."""
    journal = begun(tmp_path)
    children = []
    for step in range(40):
        journal.record(make_entry(step))
        if step % 4 == 0:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    journal.record(make_entry(999))
                except JournalError as error:
                    code = 0 if "forked" in str(error) else 2
                journal.close()
                del journal
                os._exit(code)
            children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 10
    assert [row.step for row in journal.trajectory()] == list(range(40))
    with pytest.raises(JournalError, match="is being written by another monitor of this process"):
        Journal.open(tmp_path)
    journal.close()


def test_recording_costs_training_microseconds(tmp_path: Path, make_entry: Entry) -> None:
    """Handing a reading over takes well under a millisecond of the training thread."""
    journal = begun(tmp_path)
    entries = [make_entry(step) for step in range(300)]
    times = []
    for item in entries:
        start = time.thread_time()
        journal.record(item)
        times.append(time.thread_time() - start)
    assert np.median(times) < 1e-3
    journal.close()


@pytest.mark.parametrize(
    "cell",
    ["layouts SET layout", "readings SET detail", "readings SET scores", "readings SET arrays"],
)
@pytest.mark.parametrize("value", ["98", "[]", "null", '{"$float":"inf"}', ""])
def test_a_foreign_value_in_a_cell_is_an_error_in_words(
    tmp_path: Path, make_entry: Entry, cell: str, value: str
) -> None:
    """JSON of another kind, or none, where a record should be is damage, and no error of Python."""
    journal = begun(tmp_path)
    journal.record(make_entry(1))
    journal.close()
    reader = read_journal(tmp_path)
    (row,) = reader.trajectory("r")
    with sqlite3.connect(reader.path) as raw:
        raw.execute(f"UPDATE {cell} = ?", (value,))
    raw.close()
    with pytest.raises(JournalError, match="damaged"):
        [reader.reading(r) for r in (row, *reader.trajectory("r"))]


def test_a_complaint_that_is_no_text_is_an_error_in_words(tmp_path: Path) -> None:
    """SQLite quotes a damaged schema; bytes in it that are no UTF-8 surprise nobody, and a journal
    that is damaged so while it is written says what it lacks.
    """
    journal = begun(tmp_path)
    with sqlite3.connect(journal.path) as raw:
        raw.execute("PRAGMA writable_schema=ON")
        raw.execute("UPDATE sqlite_master SET name = CAST(x'ff6d' AS TEXT), sql = 'CREATE nothing'")
        raw.execute("PRAGMA schema_version=99")
    raw.close()
    with pytest.raises(JournalError, match="malformed"):
        journal.note("a note")
    journal.close()
    for opening in (Journal.open, read_journal):
        with pytest.raises(JournalError, match="malformed"):
            opening(tmp_path)


def test_acknowledging_works_beside_a_live_run(tmp_path: Path) -> None:
    """Someone can silence a finding while the run trains, and the reason is kept."""
    journal = begun(tmp_path)
    acknowledge(tmp_path, "r", "evil", "role-play data")
    assert read_journal(tmp_path).acknowledged("r") == {"evil": "role-play data"}
    with pytest.raises(JournalError, match="no run 'q': it holds r"):
        acknowledge(tmp_path, "q", "evil", "")
    journal.close()


def test_a_run_that_was_given_up_is_no_clean_result(tmp_path: Path, make_entry: Entry) -> None:
    """`runs` and the report say unknown, and why, until another attempt is watched."""
    journal = begun(tmp_path)
    journal.record(make_entry(10, "ok"))
    journal.give_up("not watched since step 20")
    journal.flush()
    (summary,), (view,) = summaries(tmp_path), from_journal(tmp_path)
    assert (summary.verdict, summary.references["evil"].state) == ("unknown", "unknown")
    outcome = judge(view)
    assert (outcome.state, outcome.reason) == ("unknown", "not watched since step 20")
    acknowledge(tmp_path, "r", "evil", "known")
    (summary,) = summaries(tmp_path)
    assert summary.verdict == "unknown"
    journal.begin_attempt(CONTEXT, "bank", resume_step=10)
    (summary,), (view,) = summaries(tmp_path), from_journal(tmp_path)
    assert (summary.references["evil"].state, judge(view).state) == ("ok", "ok")
    journal.close()


@pytest.mark.parametrize("hours", [-5, 5], ids=["back", "forward"])
def test_a_clock_that_is_set_hides_no_end_of_watching(
    tmp_path: Path, make_entry: Entry, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A machine's clock is often set while a job runs: who gave up has given up, and who watches
    again does.
    """
    now = time.time()
    journal = begun(tmp_path)
    journal.record(make_entry(10, "ok"))
    journal.flush()
    monkeypatch.setattr(time, "time", lambda: now + 3600 * hours)
    journal.give_up("not watched since step 20")
    journal.flush()
    assert read_journal(tmp_path).unwatched("r") == "not watched since step 20"
    monkeypatch.setattr(time, "time", lambda: now + 3600 * (hours - 24))
    journal.begin_attempt(CONTEXT, "bank", resume_step=10)
    assert read_journal(tmp_path).unwatched("r") is None
    journal.close()


def test_an_acknowledgement_is_found_among_other_events(tmp_path: Path) -> None:
    """Notes about a behaviour silence nothing, and of two reasons given the later one counts."""
    journal = begun(tmp_path)
    journal.note("seen", reference="evil")
    for run, reference, why in (
        ("r", "sycophancy", "first"),
        ("r", "sycophancy", "second"),
        ("other", "evil", "not of this run"),
    ):
        journal.execute(lambda c, e=(run, 1.0, "ack", reference, why): writes.event(c, *e))  # type: ignore[misc]
    journal.note("seen again", reference="sycophancy")
    assert read_journal(tmp_path).acknowledged("r") == {"sycophancy": "second"}
    assert journal.acknowledged() == {"sycophancy"}
    journal.close()


def test_damage_inside_a_row_is_told(tmp_path: Path, make_entry: Entry) -> None:
    """A damaged blob or record is an error that names file and step, not a wrong number."""
    journal = begun(tmp_path)
    journal.record(make_entry(7))
    journal.close()
    reader = read_journal(tmp_path)
    (row,) = reader.trajectory("r")
    with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
        raw.execute("UPDATE readings SET arrays = substr(arrays, 1, 100)")
    with pytest.raises(
        JournalError, match=r"wvmonitor.db' \(run 'r', step 7\) holds damaged arrays"
    ):
        reader.reading(row)
    with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
        raw.execute("UPDATE readings SET scores = '{'")
    with pytest.raises(JournalError, match="holds a damaged record"):
        reader.trajectory("r")


def test_a_file_destroyed_while_it_is_written_is_said_at_once(
    tmp_path: Path, make_entry: Entry, caplog: pytest.LogCaptureFixture
) -> None:
    """A journal that something else wrote over loses its readings loudly, and never hangs."""
    journal = begun(tmp_path)
    journal.flush()
    journal.path.write_bytes(b"something else entirely" * 1000)
    journal.record(make_entry(1))
    with pytest.raises(JournalError, match="lacks the reading of step 1"):
        journal.close(timeout=20)
    assert "the reading of step 1 is not in" in caplog.text


def test_the_outline_of_a_long_run_keeps_what_tells(tmp_path: Path, make_entry: Entry) -> None:
    """Of a run too long to be decoded whole, the ends, extremes and changed verdicts are kept, each
    as the whole trajectory has it; what an earlier attempt measured past the resume is not.
    """
    journal = begun(tmp_path)
    for step in range(140):
        journal.record(make_entry(step, "alarm" if step > 120 else "ok", cosine=0.9))
    journal.close()
    journal = begun(tmp_path, resume_step=100)
    telling = {110: ("warn", 0.05), 111: ("warn", 0.05), 130: ("ok", 0.2), 131: ("ok", -0.2)}
    for step in range(101, 160):
        journal.record(make_entry(step, *telling.get(step, ("ok", 0.01 + step * 1e-5))))
    journal.close()
    reader = read_journal(tmp_path)
    whole = {row.step: row for row in reader.trajectory("r")}
    outline = reader.outline("r", most=50, spans=8)
    steps = [row.step for row in outline.rows]
    assert outline.readings == len(whole) == 160
    assert {0, 159, 110, 112, 130, 131} <= set(steps)
    assert steps == sorted(steps)
    assert len(steps) < 40
    assert [repr(row) for row in outline.rows] == [repr(whole[step]) for step in steps]
    assert [r.step for r in reader.outline("r").rows] == list(whole)


def test_several_questions_have_one_answer(tmp_path: Path, make_entry: Entry) -> None:
    """A reader at one time gives the state of the file from its first question to its last."""
    journal = begun(tmp_path)
    journal.record(make_entry(1))
    journal.flush()
    with read_journal(tmp_path).at_once() as reader:
        assert [row.step for row in reader.trajectory("r")] == [1]
        assert reader.runs() == ("r",)
        late = reader.latest("r")
        assert late is not None
        assert late.step == 1
    journal.record(make_entry(2))
    journal.flush()
    assert [row.step for row in journal.trajectory()] == [1, 2]
    journal.close()
