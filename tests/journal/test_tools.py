"""Looking after journals, from the command line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from wvmonitor.cli.app import app
from wvmonitor.detection.verdict import RunContext
from wvmonitor.journal.alerts import AlertPolicy
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.snapshots import Snapshot, write_snapshot
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import DenseUpdate

Entry = Callable[..., tuple[Any, ...]]


def run_command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def journal_folder(tmp_path: Path, make_entry: Entry) -> Path:
    """Two runs: "old" of last year, "new" resumed at step 20 and stopped; one alert waits."""
    folder = tmp_path / "runs" / "a"
    long_ago = time.time() - 400 * 86_400
    policy = AlertPolicy(targets=("webhook",))
    for run, wall_time in (("old", long_ago), ("new", None)):
        journal = Journal.open(folder, run=run, alerts=policy if run == "new" else None)
        journal.begin_attempt(RunContext(), "f" * 64)
        for step in (10, 20, 30):
            journal.record(make_entry(step), wall_time=wall_time)
        journal.close()
    with sqlite3.connect(folder / "wvmonitor.db") as connection:
        connection.execute("UPDATE attempts SET started = ? WHERE run = 'old'", (long_ago,))
    connection.close()
    journal = Journal.open(folder, run="new", alerts=policy)
    journal.begin_attempt(RunContext(), "f" * 64, resume_step=20)
    journal.record(make_entry(30, "alarm", 0.4))
    journal.latch_stop("evil is above")
    journal.close()
    return folder


def test_a_whole_journal_verifies(journal_folder: Path) -> None:
    """`journal verify` reads everything and says how much there is."""
    done = run_command("journal", "verify", journal_folder, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["runs"], found["readings"], found["pending"]) == (2, 6, 1)
    assert found["problems"] == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("UPDATE readings SET arrays = x'00' WHERE run = 'new' AND step = 10", "damaged arrays"),
        ("UPDATE verdicts SET record = '{' WHERE run = 'old'", "damaged record"),
        ("DELETE FROM layouts", "have no layout"),
        ("DELETE FROM readings WHERE run = 'old' AND step = 10", "belong to no reading"),
        ("UPDATE deliveries SET alert = '{}'", "damaged Alert (key"),
    ],
)
def test_damage_is_found_and_named(journal_folder: Path, harm: str, words: str) -> None:
    """A record that cannot be read back is a problem in words, and exit code 2."""
    with sqlite3.connect(journal_folder / "wvmonitor.db") as connection:
        connection.execute(harm)
    connection.close()
    done = run_command("journal", "verify", journal_folder)
    assert done.exit_code == 2
    assert words in done.stdout


def test_a_truncated_file_never_verifies(journal_folder: Path) -> None:
    """A journal that lost its second half is never called whole."""
    file = journal_folder / "wvmonitor.db"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    done = run_command("journal", "verify", file)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_journal_without_its_last_bytes_never_verifies(journal_folder: Path) -> None:
    """Also a few bytes that SQLite would take for zeros are missed."""
    file = journal_folder / "wvmonitor.db"
    file.write_bytes(file.read_bytes()[:-4])
    done = run_command("journal", "verify", file)
    assert done.exit_code == 2
    assert "lacks its last 4 bytes" in done.stdout


def test_a_newer_journal_is_refused_with_the_way_out(journal_folder: Path) -> None:
    """A journal of a later version is not misread: one line says what to do."""
    with sqlite3.connect(journal_folder / "wvmonitor.db") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    for command in ("verify", "export", "clear-stop"):
        done = run_command("journal", command, journal_folder)
        assert done.exit_code == 2
        assert "pip install -U wvmonitor" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_export_is_strict_json_with_everything_in_it(journal_folder: Path, tmp_path: Path) -> None:
    """`journal export` gives every kind of record, each line valid JSON by itself."""
    out = tmp_path / "all.jsonl"
    assert run_command("journal", "export", journal_folder, "-o", out).exit_code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in out.read_text().splitlines()]
    assert [r["type"] for r in rows[:2]] == ["journal", "attempt"]
    steps = [
        (r["attempt"], r["step"]) for r in rows if r["type"] == "reading" and r["run"] == "new"
    ]
    assert steps == [(1, 10), (1, 20), (2, 30)]
    (delivery,) = [r for r in rows if r["type"] == "delivery"]
    assert delivery["alert"]["reference"] == "evil"
    assert [r["kind"] for r in rows if r["type"] == "event"] == ["stop"]
    only = run_command("journal", "export", journal_folder, "--run", "old").stdout
    assert '"new"' not in only


def test_pruning_spares_what_is_still_needed(journal_folder: Path) -> None:
    """Old runs go; a stopped run stays and says why; a trial changes nothing."""
    trial = run_command(
        "journal",
        "prune",
        journal_folder,
        "--older-than",
        90,
        "--run",
        "new",
        "--dry-run",
        "--json",
    )
    told = json.loads(trial.stdout)
    assert told["runs"] == ["old"]
    assert told["readings"] == 3
    assert "clear-stop" in told["kept"]["new"]
    assert JournalReader(journal_folder).runs() == ("old", "new")
    assert run_command("journal", "prune", journal_folder, "--older-than", 90).exit_code == 0
    reader = JournalReader(journal_folder)
    assert reader.runs() == ("new",)
    before = repr(reader.trajectory("new"))  # nan is not equal to itself
    run_command("journal", "prune", journal_folder, "--superseded")
    assert repr(reader.trajectory("new")) == before
    with sqlite3.connect(reader.path) as connection:
        assert connection.execute("SELECT count(*) FROM readings").fetchone() == (3,)
    connection.close()
    assert (
        json.loads(run_command("journal", "verify", journal_folder, "--json").stdout)["problems"]
        == []
    )


def snapshot(run: str, attempt: int, step: int) -> Snapshot:
    """A snapshot as the flight recorder writes it."""
    return Snapshot(run, attempt, step, TaskVector.of({"a.weight": DenseUpdate(torch.ones(2, 2))}))


def test_pruning_takes_the_snapshots_of_what_goes(journal_folder: Path) -> None:
    """The flight recorder's files of a run, or of superseded readings, go with it; others stay."""
    file = journal_folder / "wvmonitor.db"
    gone = write_snapshot(snapshot("old", 1, 10), file)
    left = gone.with_name(".wvmonitor-0123456789abcdef.tmp")
    left.write_bytes(b"killed while writing")
    superseded, kept = (write_snapshot(snapshot("new", n, 30), file) for n in (1, 2))
    size = sum(p.stat().st_size for p in (gone, left, superseded))
    prune = ("journal", "prune", journal_folder, "--older-than", 90, "--superseded", "--json")
    told = json.loads(run_command(*prune, "--dry-run").stdout)
    assert (told["snapshots"], told["snapshot_bytes"]) == (3, size)
    assert all(p.exists() for p in (gone, left, superseded, kept))
    told = json.loads(run_command(*prune).stdout)
    assert (told["snapshots"], told["snapshot_bytes"]) == (3, size)
    assert [p for p in (journal_folder / "wvmonitor.snapshots").rglob("*") if p.is_file()] == [kept]
    assert not gone.parent.exists()
    assert json.loads(run_command(*prune).stdout)["snapshots"] == 0


def test_snapshots_that_cannot_be_deleted_keep_their_readings(
    journal_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of snapshots that cannot be written is an error in words; no row is gone."""
    write_snapshot(snapshot("old", 1, 10), journal_folder / "wvmonitor.db")

    def refuse(path: Path, **_: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    done = run_command("journal", "prune", journal_folder, "--run", "old")
    assert done.exit_code == 2
    assert "snapshot" in done.stderr
    assert "Permission denied" in done.stderr
    assert JournalReader(journal_folder).runs() == ("old", "new")


def test_a_journal_that_is_being_written_is_not_pruned(journal_folder: Path) -> None:
    """Pruning beside a live run is refused, naming who writes."""
    journal = Journal.open(journal_folder, run="new")
    done = run_command("journal", "prune", journal_folder, "--run", "old")
    journal.close()
    assert done.exit_code == 2
    assert "is being written by another monitor of this process" in done.stderr


def test_pruning_nothing_in_particular_is_wrong_usage(journal_folder: Path) -> None:
    """`prune` without a choice throws nothing away."""
    assert run_command("journal", "prune", journal_folder).exit_code == 4


def test_a_stop_is_lifted_once(journal_folder: Path) -> None:
    """`journal clear-stop` lets the run go on, keeps the reason, and then has nothing to lift."""
    done = run_command("journal", "clear-stop", journal_folder, "--why", "wanted")
    assert (done.exit_code, done.stdout) == (0, "new may go on\n")
    reader = JournalReader(journal_folder)
    assert reader.stop_latched("new") is None
    assert reader.events("new")[-1].detail == "wanted"
    assert run_command("journal", "clear-stop", journal_folder).exit_code == 2


def test_an_acknowledgement_is_for_a_verdict_that_exists(journal_folder: Path) -> None:
    """`ack` keeps who was silenced and why, and refuses a name the run has no verdict on."""
    where = ("--journal", journal_folder)
    wrong = run_command("ack", "new", "--reference", "evli", "--why", "x", *where)
    assert wrong.exit_code == 2
    assert "it has evil" in wrong.stderr
    assert run_command("ack", "nwe", "--reference", "evil", "--why", "x", *where).exit_code == 2
    assert run_command("ack", "new", "--reference", "evil", "--why", " ", *where).exit_code == 2
    assert run_command("ack", "new", "--reference", "evil", "--why", "known", *where).exit_code == 0
    assert JournalReader(journal_folder).acknowledged("new") == {"evil": "known"}


def test_runs_stand_side_by_side(journal_folder: Path) -> None:
    """`runs` shows the last word of every run below a folder; an unreadable journal is exit 2."""
    top = journal_folder.parent
    done = run_command("runs", top, "--json")
    assert done.exit_code == 0
    runs = {r["run"]: r for r in json.loads(done.stdout)["runs"]}
    assert (runs["new"]["verdict"], runs["old"]["verdict"]) == ("alarm", "ok")
    assert (runs["new"]["step"], runs["new"]["attempts"], runs["new"]["pending"]) == (30, 2, 1)
    assert runs["new"]["references"]["evil"]["score"] == 0.4
    plain = run_command("runs", top).stdout.splitlines()
    assert plain[1].startswith("alarm   new  step 30")
    assert "stopped: evil is above" in plain[1]
    run_command("ack", "new", "--reference", "evil", "--why", "known", "--journal", journal_folder)
    acked = json.loads(run_command("runs", top, "--json").stdout)["runs"][1]
    assert acked["verdict"] == "ok"
    (top / "b").mkdir()
    (top / "b" / "wvmonitor.db").write_bytes(b"no database at all" * 100)
    broken = run_command("runs", top)
    assert broken.exit_code == 2
    assert "cannot be read" in broken.stdout


def test_a_folder_without_journals_says_so(tmp_path: Path) -> None:
    """Where there is nothing to show, that is an error and not an empty table."""
    done = run_command("runs", tmp_path)
    assert done.exit_code == 2
    assert "no journal at or below" in done.stderr
    assert "does not exist" in run_command("runs", tmp_path / "nowhere").stderr


def test_names_cannot_drive_the_terminal(tmp_path: Path, make_entry: Entry) -> None:
    """A run's name with escape codes is shown, not obeyed."""
    journal = Journal.open(tmp_path, run="\x1b[31mred")
    journal.begin_attempt(RunContext(), "f" * 64)
    journal.record(make_entry(1))
    journal.close()
    for arguments in (("runs", tmp_path), ("journal", "verify", tmp_path)):
        assert "\x1b" not in run_command(*arguments).output


def test_a_run_on_another_disk_is_found(journal_folder: Path, tmp_path: Path) -> None:
    """A run's folder that is a link is a run, once, whatever else leads to it; circles end."""
    away = tmp_path / "away"
    shutil.move(journal_folder, away / "run")
    journal_folder.symlink_to(away / "run")
    top = journal_folder.parent
    (top / "latest").symlink_to(journal_folder)
    (away / "run" / "up").symlink_to(top)
    found = json.loads(run_command("runs", top, "--json").stdout)["runs"]
    assert sorted(r["run"] for r in found) == ["new", "old"]
    page = run_command("report", top, "-o", tmp_path / "page.html")
    assert page.stdout.endswith(": 2 runs\n")


def test_a_folder_that_cannot_be_looked_into_is_no_clean_result(
    journal_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be runs in it: `runs` shows the others and is exit 2, a report is refused."""
    top = journal_folder.parent
    closed = top / "of a colleague"
    closed.mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    done = run_command("runs", top)
    assert done.exit_code == 2
    assert "alarm   new" in done.stdout
    assert "of a colleague' cannot be looked into: Permission denied" in done.stdout
    refused = run_command("report", top, "-o", "-")
    assert refused.exit_code == 2
    assert "cannot be looked into" in refused.stderr
