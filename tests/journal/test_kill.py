"""kill −9 at random moments."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wvmonitor.detection.verdict import RunContext
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import read_journal

WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location('c', sys.argv[2])
c = importlib.util.module_from_spec(spec)
spec.loader.exec_module(c)
from wvmonitor.detection.verdict import RunContext
from wvmonitor.journal.alerts import AlertPolicy
from wvmonitor.journal.journal import Journal

journal = Journal.open(sys.argv[1], run='r', alerts=AlertPolicy(targets=('t',), resolve_after=1))
resume = int(sys.argv[3])
print('attempt', journal.begin_attempt(RunContext(), 'b', resume_step=resume), flush=True)
step = resume
while True:
    for _ in range(1 + step % 3):
        step += 1
        journal.record(c.entry(step, 'warn' if step % 4 < 2 else 'ok'))
    journal.flush()
    print(step, flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_kill_nine_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    """After kill −9 every acknowledged reading and its alerts are there, once, in a sound file."""
    rng = random.Random(seed)
    resume = 0
    conftest = Path(__file__).with_name("conftest.py")
    for attempt in range(1, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, conftest, str(resume)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"attempt {attempt}\n"
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()

        rows = read_journal(tmp_path).trajectory("r")
        steps = [row.step for row in rows]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= max([resume, *acknowledged])
        with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            (scores,) = raw.execute("SELECT count(*) FROM scores").fetchone()
            (verdicts,) = raw.execute("SELECT count(*) FROM verdicts").fetchone()
            assert (scores, verdicts) == (2 * len(steps), len(steps))
            (alerts, keys) = raw.execute(
                "SELECT count(*), count(DISTINCT key) FROM deliveries"
            ).fetchone()
        changes = sum((s % 4 < 2) != ((s - 1) % 4 < 2) if s > 1 else s % 4 < 2 for s in steps)
        assert alerts == keys == changes
        resume = len(steps)


def test_a_report_can_be_made_of_a_run_killed_while_it_wrote(
    tmp_path: Path, make_entry: Callable[..., Any]
) -> None:
    """A reader that meets a half-written transaction rolls it back and reads what came before."""
    journal = Journal.open(tmp_path, run="r")
    journal.begin_attempt(RunContext(), "b")
    journal.record(make_entry(1))
    journal.close()
    half = """
import os, signal, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute('PRAGMA cache_size=1')
c.execute('BEGIN')
c.execute("UPDATE readings SET step = 2, arrays = zeroblob(5000000)")
c.execute("UPDATE meta SET value = '2'")
c.execute('PRAGMA cache_spill=1')
c.execute('CREATE TABLE junk AS SELECT zeroblob(3000000)')
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "wvmonitor.db"
    size = path.stat().st_size
    subprocess.run([sys.executable, "-c", half, path], check=False)
    assert path.stat().st_size > size
    assert path.with_name("wvmonitor.db-journal").stat().st_size > 0
    reader = read_journal(tmp_path)
    (row,) = reader.trajectory("r")
    assert row.step == 1
    assert reader.reading(row).step == 1
    assert path.stat().st_size == size
