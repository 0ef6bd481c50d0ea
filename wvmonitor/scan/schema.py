"""The JSON document of a scan, and its JSON Schema.

`python -m wvmonitor.scan.schema` prints the schema; docs/schemas/scan.schema.json is its output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from inspect import getdoc
from typing import Any, Literal

from wvmonitor.outputs.scan_record import (
    SCHEMA_VERSION,
    CheckpointResult,
    ControlResult,
    Failure,
    Notice,
    ReferenceResult,
)
from wvmonitor.scan.trajectory import BehaviourTrend, Trajectory, trajectories

_RECORDS = (
    CheckpointResult,
    ReferenceResult,
    ControlResult,
    Failure,
    Notice,
    Trajectory,
    BehaviourTrend,
)


@dataclass(frozen=True)
class ScanDocument:
    """What `wvmonitor scan --format json` writes.

    Attributes:
        schema_version: raised when a field is renamed or removed; fields may be added at any time.
        checkpoints: in the order of the scan's targets.
        trajectories: the runs among them, each as a whole.
    """

    schema_version: Literal[1]
    checkpoints: list[CheckpointResult]
    trajectories: list[Trajectory]


def document(results: Sequence[CheckpointResult]) -> dict[str, Any]:
    """The scan as one JSON-ready document."""
    return asdict(ScanDocument(SCHEMA_VERSION, list(results), trajectories(results)))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the document, described by the records' own docstrings."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(ScanDocument).json_schema(mode="serialization")
    states = schema["$defs"].pop("State")["enum"]
    for record in (ScanDocument, *_RECORDS):
        part = schema if record is ScanDocument else schema["$defs"][record.__name__]
        summary, described = _documentation(record)
        part["description"] = summary
        # Everything is always written; defaults are a convenience of the Python records.
        part["required"] = [f.name for f in fields(record)]
        for name, field in part["properties"].items():
            if field.get("$ref") == "#/$defs/State":
                part["properties"][name] = {"enum": states, "type": "string"}
        for name, text in described.items():
            part["properties"][name]["description"] = text
            part["properties"][name].pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "wvmonitor scan",
        **{k: v for k, v in schema.items() if k != "title"},
    }


def _documentation(record: type) -> tuple[str, dict[str, str]]:
    """A record's summary and its attributes' descriptions, from its docstring."""
    summary, _, attributes = (getdoc(record) or "").partition("Attributes:")
    fields_described = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", attributes, re.MULTILINE)
    return " ".join(summary.split()), {
        name: " ".join(text.split()) for name, text in fields_described
    }


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
