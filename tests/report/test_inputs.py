"""From a journal or a scan to a page, also at the command line."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.report import samples
from wvmonitor.cli.app import app
from wvmonitor.detection.verdict import RunContext
from wvmonitor.errors import (
    FormatVersionError,
    JournalError,
    MalformedFileError,
    MissingPathError,
    UnknownReferenceError,
)
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.tools import acknowledge
from wvmonitor.reading import Products, Reading
from wvmonitor.report.findings import judge
from wvmonitor.report.inputs import from_journal, from_scan, read_runs
from wvmonitor.report.page import render
from wvmonitor.report.view import heat_map

PARAMETERS = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
    "model.layers.2.self_attn.q_proj.weight",
    "model.embed_tokens.weight",
)


def reading(step: int) -> Reading:
    """Arrays by which layer 10 carries half of evil, and layer 2 points away from it."""
    products = Products(
        products=np.array([[4.0, 0, 0], [3.0, 0, 0], [-1.0, 0, 0], [9.0, 0, 0]]),
        squared_norms=np.ones(4),
        covered=np.array([True, True, True, False]),
    )
    return Reading(
        references=samples.REFERENCES,
        parameters=PARAMETERS,
        components=("blocks", "blocks", "blocks", "embeddings"),
        geometries={"frobenius": products, "response": products},
        bank="9f2c" * 16,
        step=step,
    )


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of one run that drifts towards evil, with a checkpoint beside it."""
    folder = tmp_path / "run"
    with closing(Journal.open(folder, run="medical")) as writer:
        writer.begin_attempt(
            RunContext(
                method="lora", rank=8, optimizer="adamw", learning_rate=2e-4, planned_steps=60
            ),
            "9f2c" * 16,
            json.dumps({"expected": ["roleplay"]}),
        )
        for kept in samples.demo()[2].rows:
            if kept.step is not None:
                writer.record(
                    replace(kept, reading=reading(kept.step)),
                    wall_time=1000.0 + kept.step,
                    measure_seconds=0.0032,
                )
        writer.note("learning rate lowered")
    acknowledge(folder, "medical", "evil", "red-team run")
    (folder / "checkpoint-20").mkdir()
    (folder / "checkpoint-900").mkdir()
    return folder


def scan_document() -> dict[str, Any]:
    """The JSON of a scan: a run of two checkpoints, a lone adapter, and a broken one."""

    def found(verdict: str, score: float | None) -> dict[str, Any]:
        values = {"cosine": 0.1, "residual": score, "margin": None}
        return {
            "scores": {"frobenius": values, "response": {**values, "residual": score}},
            "dose": 0.4, "score": score, "threshold": 0.2, "calibration": "calibrated",
            "verdict": verdict, "reason": f"the residual is {score}",
        }  # fmt: skip

    def checkpoint(path: str, **more: Any) -> dict[str, Any]:
        return {
            "path": path, "step": None, "norm": 1.5, "coverage": 0.97, "verdict": "ok",
            "references": {"evil": found("ok", 0.05)}, "error": None, **more,
        }  # fmt: skip

    return {
        "schema_version": 1,
        "checkpoints": [
            checkpoint(
                "out/checkpoint-20", step=20, run="out", progress=0.5, verdict="alarm",
                references={"evil": found("alarm", 0.4)}, bank="ab" * 32, a_later_field=1,
            ),
            checkpoint("out/checkpoint-10", step=10, run="out", progress=0.25),
            checkpoint(
                "adapters/fine",
                controls={"language": {"scores": {"response": {"cosine": 0.3}}, "dose": None}},
            ),
            checkpoint(
                "adapters/cut", verdict="unknown", references={}, norm=None, coverage=None,
                error={"type": "MalformedFileError", "message": "the header is cut short"},
            ),
        ],
    }  # fmt: skip


def test_a_journal_becomes_a_page(journal: Path) -> None:
    """A journal alone yields a run's verdict, curves, layers, checkpoints, acknowledgements."""
    (view,) = from_journal(journal)
    outcome = judge(view)
    assert (outcome.state, outcome.deciding) == ("alarm", ("response", "residual"))
    assert (view.name, view.planned_steps, list(view.checkpoints)) == ("medical", 60, [20])
    assert [e.kind for e in view.events] == ["note", "ack"]
    assert outcome.findings[0].acknowledged == "red-team run"
    page = render([view], title="medical")
    for words in (
        "Drifts towards evil since step 14 of 60.", "red-team run", "lora, rank 8",
        "adamw, peak learning rate 0.0002", "roleplay", "3.2 ms (median)",
        "Mostly layer 0 (67 %); by kind of module, mlp.up_proj (117 %).",
    ):  # fmt: skip
        assert words in page, words


def test_a_long_run_is_shown_by_its_telling_readings(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of a run too long to be looked at whole says so, and says the same of the run."""
    (whole,) = from_journal(journal)
    short = partialmethod(JournalReader.outline, most=5, spans=4)
    monkeypatch.setattr(JournalReader, "outline", short)
    (view,) = from_journal(journal)
    assert len(view.rows) < view.total == len(whole.rows)
    assert (judge(view).state, judge(view).claim) == (judge(whole).state, judge(whole).claim)
    page = render([view], title="medical")
    assert f"{view.total}, of which this page looks at {len(view.rows)}" in page


def test_heat_map_shares_add_up() -> None:
    """The heat map gives each part's share of the inner product; layers stand in natural order."""
    heat = heat_map(reading(8), "evil", "frobenius")
    assert heat is not None
    assert heat.layers == ("0", "2", "10")
    assert heat.modules == ("mlp.up_proj", "self_attn.q_proj")
    np.testing.assert_allclose(
        heat.shares, [[4 / 6, math.nan], [math.nan, -1 / 6], [3 / 6, math.nan]]
    )
    assert heat_map(reading(8), "language", "frobenius") is None
    with pytest.raises(UnknownReferenceError, match="no reference 'kind'"):
        heat_map(reading(8), "kind")


def test_a_run_that_the_journal_lacks_is_an_error(journal: Path) -> None:
    """Asking for a run that is not there names those that are."""
    with pytest.raises(JournalError, match=r"no run 'other'.*medical"):
        from_journal(journal, runs=["other"])


def test_a_scan_becomes_runs() -> None:
    """Checkpoints of one run become its trajectory by step; an unreadable one is unknown."""
    run, fine, cut = from_scan(json.dumps(scan_document()))
    assert [(r.name, judge(r).state) for r in (run, fine, cut)] == [
        ("out", "alarm"), ("adapters/fine", "ok"), ("adapters/cut", "unknown"),
    ]  # fmt: skip
    assert [row.step for row in run.rows] == [10, 20]
    assert run.planned_steps == 40
    assert judge(fine).findings[-1].kind == "control"
    page = render([run, fine, cut])
    assert "the header is cut short (MalformedFileError)" in page
    assert "Drifts towards evil since step 20 of 40." in page


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("nonsense", MalformedFileError, "neither a journal nor JSON"),
        ("[" * 100_000, MalformedFileError, "neither a journal nor JSON"),
        ("[]", MalformedFileError, "not the JSON of a scan"),
        ('{"schema_version": 2, "checkpoints": []}', FormatVersionError, "upgrade wvmonitor"),
        ('{"schema_version": 1}', MalformedFileError, "checkpoints: Field required"),
        (
            '{"schema_version": 1, "checkpoints": [{"path": 3}]}',
            MalformedFileError,
            "checkpoints.0",
        ),
    ],
)
def test_what_is_no_scan_is_refused(text: str, error: type[Exception], match: str) -> None:
    """A file that is no scan, or a newer one, is refused in one sentence."""
    with pytest.raises(error, match=match):
        from_scan(text)


def test_sources_are_told_apart(journal: Path, tmp_path: Path) -> None:
    """Journals, folders of journals and scans are recognised by what they hold."""
    scan = tmp_path / "scan.txt"
    scan.write_text(json.dumps(scan_document()))
    for source in (journal, journal / "wvmonitor.db", tmp_path):
        assert [v.name for v in read_runs(source)] == ["medical"]
    assert len(read_runs(scan)) == 3
    with pytest.raises(MissingPathError, match="holds no journal"):
        read_runs(journal / "checkpoint-20")
    with pytest.raises(MissingPathError, match="cannot be read"):
        read_runs(tmp_path / "absent")


def test_command(journal: Path, tmp_path: Path) -> None:
    """`wvmonitor report` writes the page, from several sources, and names it."""
    scan, out = tmp_path / "scan.json", tmp_path / "page.html"
    scan.write_text(json.dumps(scan_document()))
    result = CliRunner().invoke(app, ["report", str(journal), str(scan), "-o", str(out)])
    assert (result.exit_code, result.output) == (0, f"{out}: 4 runs\n")
    assert "2 of 4 runs drift" in out.read_text(encoding="utf-8")
    piped = CliRunner().invoke(
        app, ["report", "-", "-o", "-", "--title", "Piped"], input=scan.read_text()
    )
    assert piped.stdout.startswith("<!doctype html>")
    assert '<h1 id="title"><bdi>Piped</bdi></h1>' in piped.stdout


def test_every_journal_below_a_folder_is_in_the_page(journal: Path, tmp_path: Path) -> None:
    """A second journal beside a run's own, trials and sweeps of sweeps: `report` leaves out none of
    what `runs` shows; `--run` takes a run from whichever journal holds it.
    """
    for place in ("wvmonitor-2", "run-0", "sweep/lr/3"):
        with closing(Journal.open(journal / place, run=place)) as other:
            other.begin_attempt(RunContext(planned_steps=40), "9f2c" * 16)
    assert [v.name for v in read_runs(journal)] == ["run-0", "sweep/lr/3", "wvmonitor-2", "medical"]
    out = tmp_path / "page.html"
    for where in ([journal], [journal / "wvmonitor.db", journal / "sweep" / "lr" / "3"]):
        arguments = ["report", *map(str, where), "--run", "sweep/lr/3", "-o", str(out)]
        assert CliRunner().invoke(app, arguments).output == f"{out}: 1 run\n"
    wrong = CliRunner().invoke(app, ["report", str(journal), "--run", "absent", "-o", str(out)])
    assert wrong.exit_code == 2
    assert "none of 4 journals has 'absent': they hold ['medical'," in wrong.stderr


def test_command_errors_are_one_line(journal: Path, tmp_path: Path) -> None:
    """A missing journal, a newer one, or a folder that is not there end in one line and exit 2."""
    newer = tmp_path / "newer"
    newer.mkdir()
    with sqlite3.connect(newer / "wvmonitor.db") as connection:
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        connection.execute("INSERT INTO meta VALUES ('schema_version', '99')")
    for arguments, words in (
        ([str(tmp_path / "absent")], "cannot be read"),
        ([str(newer)], "newer wvmonitor"),
        ([str(journal), "-o", str(tmp_path / "no" / "page.html")], "does not exist"),
        ([str(journal), "--run", "other"], "holds no run 'other'"),
    ):
        result = CliRunner().invoke(app, ["report", *arguments])
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
