"""SARIF 2.1.0: what code hosts and security dashboards read of a scan."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from tests.scan.conftest import Scanner
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.scan.sarif import write_sarif
from wvmonitor.scan.writers import write_file

TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
# Of the published schema (sarif-schema-2.1.0.json), the properties that a scan's log has; those it
# has not are forbidden here as most objects' unknown ones are there.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool"],
                "additionalProperties": False,
                "properties": {
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "invocations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["executionSuccessful"],
                            "additionalProperties": False,
                            "properties": {
                                "executionSuccessful": {"type": "boolean"},
                                "exitCode": {"type": "integer"},
                            },
                        },
                    },
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "additionalProperties": False,
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {"type": "string"},
                                    "version": {"type": "string"},
                                    "informationUri": {"type": "string", "format": "uri"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "additionalProperties": False,
                                            "properties": {
                                                "id": {"type": "string"},
                                                "name": {"type": "string"},
                                                "shortDescription": TEXT,
                                                "defaultConfiguration": {
                                                    "type": "object",
                                                    "additionalProperties": False,
                                                    "properties": {
                                                        "level": {
                                                            "enum": [
                                                                *("none", "note"),
                                                                *("warning", "error"),
                                                            ]
                                                        }
                                                    },
                                                },
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message"],
                            "additionalProperties": False,
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "kind": {
                                    "enum": [
                                        *("notApplicable", "pass", "fail", "review", "open"),
                                        "informational",
                                    ]
                                },
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": TEXT,
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "properties": {
                                            "physicalLocation": {
                                                "type": "object",
                                                "properties": {
                                                    "artifactLocation": {
                                                        "type": "object",
                                                        "properties": {
                                                            "uri": {
                                                                "type": "string",
                                                                "format": "uri-reference",
                                                            }
                                                        },
                                                    }
                                                },
                                            }
                                        },
                                    },
                                },
                                "partialFingerprints": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string"},
                                },
                                "properties": {"type": "object"},
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def results(scanned: Scanner) -> list[CheckpointResult]:
    """A good adapter of a strange name, a run that turns bad, and a path that is not there."""
    return scanned("a b#c?%20é\x1b", "missing", beside="other.safetensors")


def log_of(results: list[CheckpointResult], fail_on: Any = "alarm") -> dict[str, Any]:
    """The log that is written of results."""
    out = io.StringIO()
    write_sarif(results, out, fail_on)
    return json.loads(out.getvalue())  # type: ignore[no-any-return]


def test_a_scan_s_log_is_sarif(results: list[CheckpointResult]) -> None:
    """Every property is one that the format has, with a value that it allows."""
    log = log_of(results)
    jsonschema.validate(log, SCHEMA)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert (result["kind"] == "fail") == (result["level"] != "none")  # section 3.27.10
        assert "\x1b" not in json.dumps(result)
        assert not any(c in result["message"]["text"] for c in "\n\x1b")
    prints = [r["partialFingerprints"]["wvmonitor/v1"] for r in run["results"]]
    assert len(set(prints)) == len(prints)


def test_alarms_errors_and_notices_fail_and_what_is_ok_passes(
    results: list[CheckpointResult],
) -> None:
    """An alarm is an error, a neighbour a warning, a missing path not judged; ok is a pass."""
    (run,) = log_of(results)["runs"]
    found = [(r["ruleId"], r["kind"], r["level"]) for r in run["results"]]
    assert found.count(("drift/evil", "fail", "error")) == 3
    assert found.count(("drift/evil", "pass", "none")) == 3
    assert found.count(("unjudged-weights", "fail", "warning")) == 1
    assert found.count(("not-judged", "fail", "error")) == 1
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 1}]
    (clean,) = log_of(results[1:2])["runs"]
    assert {r["kind"] for r in clean["results"]} == {"pass"}
    assert clean["invocations"] == [{"executionSuccessful": True, "exitCode": 0}]


def test_an_unknown_verdict_is_seen(results: list[CheckpointResult]) -> None:
    """What could not be judged is a finding that dashboards show, never a pass."""
    first = results[0]
    unknown = {n: replace(r, verdict="unknown") for n, r in first.references.items()}  # type: ignore[arg-type]
    (run,) = log_of([replace(first, references=unknown, notices=())])["runs"]
    assert {(r["ruleId"], r["kind"], r["level"]) for r in run["results"]} == {
        ("not-judged", "fail", "warning")
    }
    assert run["invocations"] == [{"executionSuccessful": False, "exitCode": 2}]


def test_paths_are_uris(results: list[CheckpointResult]) -> None:
    """A strange folder's name is escaped, and unescaped is the path again; URLs stay URLs."""
    (run,) = log_of(results)["runs"]
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    split = urlsplit(uri)
    assert (split.scheme, split.query, split.fragment) == ("file", "", "")
    assert unquote(split.path) == results[0].path
    for path, expected in (
        ("hf://team/repo@abc", "hf://team/repo@abc"),
        ("https://h:8080/m.safetensors?X-Amz-Signature=S", "https://h:8080/m.safetensors"),
        ("s3://bucket/run@2024/adapter", "s3://bucket/run@2024/adapter"),
        ("s3://key:secret@bucket/a b", "s3://bucket/a%20b"),
        ("runs/a b", "runs/a%20b"),
    ):
        (moved,) = log_of([replace(results[1], path=path)])["runs"]
        place = moved["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place["uri"] == expected


def test_a_file_of_that_ending_is_sarif(results: list[CheckpointResult], tmp_path: Path) -> None:
    """--output scan.sarif writes it."""
    write_file(results, str(tmp_path / "scan.sarif"), "alarm")
    assert json.loads((tmp_path / "scan.sarif").read_text()) == log_of(results)
