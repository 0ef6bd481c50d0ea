"""The formats that other programs read."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from typer.testing import CliRunner

from tests.scan.conftest import Scanner
from wvmonitor.cli.app import app
from wvmonitor.errors import SettingsError
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.scan.schema import ScanDocument, document, json_schema
from wvmonitor.scan.writers import WRITERS, format_of, write_file

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "scan.schema.json"


@pytest.fixture(scope="module")
def results(scanned: Scanner) -> list[CheckpointResult]:
    """A good adapter, a run that turns bad, and two paths that are not there."""
    return scanned('a,"b"\n=c\x1b%:&<d>', "=missing\x00", "missing")


def written(name: str, results: list[CheckpointResult], fail_on: str = "alarm") -> str:
    """What a writer makes of results."""
    out = io.StringIO()
    WRITERS[name](results, out, fail_on)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_no_format_passes_control_characters_on(name: str, results: list[CheckpointResult]) -> None:
    """Whatever a checkpoint is called, no escape reaches whoever reads the output."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", written(name, results))


def test_json_follows_its_published_schema(results: list[CheckpointResult]) -> None:
    """docs/schemas/scan.schema.json is the schema of what a scan writes."""
    assert json.loads(SCHEMA.read_text()) == json_schema()
    written_document = json.loads(written("json", results))
    TypeAdapter(ScanDocument).validate_python(written_document)
    assert written_document == json.loads(json.dumps(document(results)))


def test_the_schema_describes_every_field() -> None:
    """Each field of the JSON document is explained in its schema."""
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["description"]
        for name, field in part["properties"].items():
            assert field["description"], name


def test_the_schema_is_printed_by_a_command() -> None:
    """`python -m wvmonitor.scan.schema` makes the published schema again."""
    command = [sys.executable, "-m", "wvmonitor.scan.schema"]
    made = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert made == SCHEMA.read_text()


def test_jsonl_is_a_document_a_line(results: list[CheckpointResult]) -> None:
    """Each line of the JSONL stream is one checkpoint of the JSON document."""
    lines = [json.loads(line) for line in written("jsonl", results).splitlines()]
    assert lines == json.loads(written("json", results))["checkpoints"]


def test_csv_has_a_row_for_each_reference(results: list[CheckpointResult]) -> None:
    """The CSV holds every score, and no cell that a spreadsheet would run."""
    rows = list(csv.DictReader(io.StringIO(written("csv", results))))
    assert len(rows) == 3 * 6 + 2
    for row in rows:
        assert not any(str(cell).startswith(("=", "+", "@")) for cell in row.values())
    bad = next(r for r in rows if r["step"] == "10" and r["reference"] == "evil")
    evil = results[5].references["evil"]
    assert float(bad["frobenius_cosine"]) == evil.scores["frobenius"]["cosine"]
    assert bad["verdict"] == "alarm"
    assert rows[-1]["error_type"] == "MissingPathError"


def test_junit_counts_failures_and_errors(results: list[CheckpointResult]) -> None:
    """CI systems see alarms as failed tests, and what was not judged as errors."""
    suite = ElementTree.fromstring(written("junit", results))  # noqa: S314  our own
    assert suite.attrib["tests"] == str(2 * 6 + 2)
    assert suite.attrib["failures"] == "3"
    assert suite.attrib["errors"] == "2"
    assert len(suite.findall("testcase/failure")) == 3


def test_github_annotations_are_one_line_each(results: list[CheckpointResult]) -> None:
    """GitHub shows an annotation for each alarm and error, whatever the names hold."""
    lines = written("github", results).splitlines()
    assert all(re.match(r"::(error|warning|notice) title=[^:]*::", line) for line in lines)
    assert sum("title=evil%3A alarm" in line for line in lines) == 3
    assert "%25" in written("github", [replace(results[0], error=results[-1].error)])


def test_openmetrics_are_parsed_by_prometheus(results: list[CheckpointResult]) -> None:
    """A trajectory becomes series over the times its checkpoints were saved."""
    text = written("openmetrics", results)
    assert text.endswith("# EOF\n")
    families = {f.name: f for f in text_string_to_metric_families(text)}
    run = results[1].run
    scores = [
        s.value
        for s in families["wvmonitor_score"].samples
        if s.labels["run"] == run
        and (s.labels["reference"], s.labels["geometry"]) == ("evil", "frobenius")
        and s.labels["score"] == "cosine"
    ]
    expected = [r.references["evil"].scores["frobenius"]["cosine"] for r in results[1:6]]
    assert scores == pytest.approx(expected)


def test_parquet_holds_the_rows_of_the_csv(results: list[CheckpointResult], tmp_path: Path) -> None:
    """The Parquet file has the columns and rows of the CSV, with numbers as numbers."""
    parquet = pytest.importorskip("pyarrow.parquet")
    write_file(results, str(tmp_path / "scan.parquet"), "alarm")
    table = parquet.read_table(tmp_path / "scan.parquet").to_pylist()
    assert len(table) == 3 * 6 + 2
    evil = results[5].references["evil"]
    row = next(r for r in table if r["step"] == 10 and r["reference"] == "evil")
    assert row["frobenius_cosine"] == evil.scores["frobenius"]["cosine"]


def test_parquet_without_pyarrow_says_what_to_install(
    results: list[CheckpointResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pyarrow a Parquet output is refused with the way out, and nothing is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingsError, match="pip install pyarrow"):
        write_file(results, str(tmp_path / "scan.parquet"), "alarm")
    assert not list(tmp_path.iterdir())


def test_the_ending_decides_what_a_file_holds() -> None:
    """An output's format follows from its name, and an unknown ending is refused."""
    assert format_of("out/Scan.XML") == "junit"
    with pytest.raises(SettingsError, match=r"\.json, \.jsonl"):
        format_of("scan.docx")


@pytest.fixture
def command(tiny_bank_folder: Path) -> Callable[..., int]:
    """Runs `wvmonitor scan` and gives the exit code."""

    def invoke(*arguments: str | Path) -> int:
        bank = ["--references", str(tiny_bank_folder)]
        return CliRunner().invoke(app, ["scan", *map(str, arguments), *bank]).exit_code

    return invoke


def test_several_outputs_at_once(
    command: Callable[..., int], good_adapter: Path, tmp_path: Path
) -> None:
    """One scan can write any number of files beside what it prints."""
    names = [tmp_path / n for n in ("s.json", "s.jsonl", "s.csv", "s.xml", "s.om")]
    outputs = [a for n in names for a in ("--output", n)]
    assert command(good_adapter, *outputs) == 0
    assert all(n.stat().st_size for n in names)
    assert json.loads(names[0].read_text())["schema_version"] == 1


def test_an_output_of_unknown_format_is_wrong_usage(
    command: Callable[..., int], good_adapter: Path, tmp_path: Path
) -> None:
    """A file name that says no format is refused before anything is scanned."""
    assert command(good_adapter, "--output", tmp_path / "scan.docx") == 4


def test_an_output_that_cannot_be_written_is_said_before_the_scan(
    command: Callable[..., int], good_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nobody waits for an archive to be scanned to learn that there is no folder for the result."""
    assert command(good_adapter, "--output", tmp_path / "nowhere" / "scan.json") == 2
    assert capsys.readouterr().out == ""
