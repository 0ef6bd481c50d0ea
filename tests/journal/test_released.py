"""Journals of every released version, as they were written then."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wvmonitor.detection.judgement import BehaviourState
from wvmonitor.detection.verdict import RunContext
from wvmonitor.errors import JournalError
from wvmonitor.journal import codec
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import read_journal
from wvmonitor.journal.schema import SCHEMA_VERSION
from wvmonitor.journal.tools import export, verify
from wvmonitor.reading import Products, Reading

RELEASED = Path(__file__).with_name("released")


def test_every_schema_has_a_journal_to_try() -> None:
    """A new schema comes with a dump of the last one, and with the way from it."""
    expected = [f"schema-{version}.sql" for version in range(1, SCHEMA_VERSION + 1)]
    assert sorted(path.name for path in RELEASED.iterdir()) == expected


@pytest.mark.parametrize("dump", sorted(RELEASED.iterdir()), ids=lambda path: path.stem)
def test_a_journal_of_a_released_version_is_read_and_continued(
    dump: Path, tmp_path: Path, make_entry: Callable[..., tuple[Any, ...]]
) -> None:
    """Everything in it comes back, its alerts still wait, its stop still holds, its run goes on."""
    with sqlite3.connect(tmp_path / "wvmonitor.db") as raw:
        raw.executescript(dump.read_text())
    raw.close()
    assert verify(tmp_path).problems == ()
    reader = read_journal(tmp_path)
    rows = reader.trajectory("released")
    assert [(row.attempt, row.step) for row in rows] == [(1, 0), (1, 1), (2, 2), (2, 3), (2, 4)]
    assert reader.reading(rows[0]).references == ("evil", "language")
    assert reader.stop_latched("released") == "evil is above"
    assert reader.pending("released") == 1
    assert {json.loads(line)["type"] for line in export(tmp_path)} == {
        "journal", "attempt", "reading", "event", "delivery",
    }  # fmt: skip
    journal = Journal.open(tmp_path, run="released")
    assert journal.begin_attempt(RunContext(), "b" * 64, resume_step=3) == 3
    journal.record(make_entry(4, seed=1))
    journal.close()
    assert [row.attempt for row in reader.trajectory("released")] == [1, 1, 2, 2, 3]
    assert verify(tmp_path).problems == ()


def test_what_a_judge_carried_on_in_a_released_version_is_read_and_written_alike() -> None:
    """A state without what later versions added is read, and comes back as it was written."""
    kept = {
        "running_maximum": {"evil": 2.5}, "consecutive": {"evil": 1, "flattery": 0},
        "alarmed": ["evil"], "readings": 3, "last_ok": {"flattery": 10},
        "recent": {"evil": [[10, 0.1], [20, 0.3]]}, "windows": 1,
    }  # fmt: skip
    state = codec.load_state(json.dumps(kept), "here")
    assert (state.readings, state.windows, state.alarmed) == (3, 1, {"evil"})
    assert state.of("evil") == BehaviourState(
        running_maximum=2.5, consecutive=1, alarmed=True, recent=((10, 0.1), (20, 0.3))
    )
    assert state.of("flattery") == BehaviourState(consecutive=0, last_ok=10)
    written = json.loads(codec.dump_state(state))
    assert {k: written[k] for k in kept} == kept
    assert not any(written[k] for k in written.keys() - kept)
    with pytest.raises(JournalError, match="damaged"):
        codec.load_state('{"running_maximum": 3}', "here")


def test_a_change_that_cannot_be_measured_is_still_so_when_it_is_read_back() -> None:
    """A journal's reading of a merge into a rounded base calibrates and clears nothing later."""
    values = Products(np.zeros((1, 1)), np.ones(1), np.ones(1, dtype=bool))
    reading = Reading(("r",), ("p",), ("blocks",), {"frobenius": values}, "b", unmeasurable="why")
    _, layout, detail, arrays = codec.pack_reading(reading)
    assert codec.unpack_reading(layout, detail, arrays, "here").unmeasurable == "why"
    older = json.dumps({k: v for k, v in json.loads(detail).items() if k != "unmeasurable"})
    assert codec.unpack_reading(layout, older, arrays, "here").unmeasurable is None
