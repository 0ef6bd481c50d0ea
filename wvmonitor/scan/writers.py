"""The scan for machines: each format is a function from results to a text stream.

A writer consumes the results as they come. What a format cannot hold (control characters in XML,
line breaks in annotations) is made visible, never passed on.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any, TextIO
from xml.etree import ElementTree

from wvmonitor.errors import SettingsError
from wvmonitor.files.atomic import write_text
from wvmonitor.outputs.scan_record import (
    SCAN_SCORES,
    CheckpointResult,
    ControlResult,
    ReferenceResult,
)
from wvmonitor.scan.results import FailOn, exit_code, reaches, unjudged
from wvmonitor.scan.schema import document
from wvmonitor.scan.table import summary, write_table
from wvmonitor.scan.text import cell, visible

_Labels = tuple[tuple[str, str], ...]
Writer = Callable[[Iterable[CheckpointResult], TextIO, FailOn], None]

COLUMNS = (
    "path",
    "run",
    "step",
    "progress",
    "norm",
    "coverage",
    "kind",
    "reference",
    "verdict",
    "score",
    "threshold",
    "calibration",
    "dose",
    *(f"{geometry}_{name}" for geometry in ("frobenius", "response") for name in SCAN_SCORES),
    "reason",
    "error_type",
    "error_message",
)


def write_json(results: Iterable[CheckpointResult], out: TextIO, _fail_on: FailOn) -> None:
    """One JSON document, when the scan is through."""
    # ASCII: names that are no Unicode, or hide escapes, stay harmless wherever it is shown.
    out.write(json.dumps(document(list(results)), indent=1, allow_nan=False) + "\n")


def write_jsonl(results: Iterable[CheckpointResult], out: TextIO, _fail_on: FailOn) -> None:
    """A line of JSON for each checkpoint, as soon as it is judged."""
    for result in results:
        out.write(json.dumps(asdict(result), allow_nan=False) + "\n")
        out.flush()


def write_csv(results: Iterable[CheckpointResult], out: TextIO, _fail_on: FailOn) -> None:
    """A row for each checkpoint and reference, controls included."""
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerows({k: cell(v) for k, v in row.items()} for row in rows(result))
        out.flush()


def rows(result: CheckpointResult) -> Iterator[dict[str, Any]]:
    """A result as flat rows with the names of `COLUMNS`: one for each reference, at least one."""
    blank: dict[str, Any] = dict.fromkeys(COLUMNS)
    blank |= {k: getattr(result, k) for k in ("path", "run", "step", "progress", "norm")}
    blank |= {"coverage": result.coverage, "verdict": result.verdict}
    if result.error is not None:
        blank |= {"error_type": result.error.type, "error_message": result.error.message}
    if not result.references and not result.controls:
        yield blank
    for name, reference in result.references.items():
        own = ("verdict", "score", "threshold", "calibration", "dose", "reason")
        values = {k: getattr(reference, k) for k in own}
        yield blank | values | {"kind": "behaviour", "reference": name} | _flat(reference.scores)
    for name, control in result.controls.items():
        values = {"verdict": None, "dose": control.dose}
        yield blank | values | {"kind": "control", "reference": name} | _flat(control.scores)


def write_junit(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    """JUnit XML: a test for each checkpoint and behaviour; errors where nothing was judged."""
    collected = list(results)
    open_ = {id(r) for r in unjudged(collected)}
    suite = ElementTree.Element("testsuite", name="wvmonitor scan")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for result in collected:
        for name, mark, message in _tests(result, fail_on, pending=id(result) in open_):
            counts["tests"] += 1
            case = ElementTree.SubElement(
                suite, "testcase", classname=visible(result.path), name=visible(name)
            )
            if mark:
                counts[{"failure": "failures", "error": "errors"}.get(mark, mark)] += 1
                ElementTree.SubElement(case, mark, message=visible(message))
    suite.attrib.update({k: str(v) for k, v in counts.items()})
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    out.write(ElementTree.tostring(suite, encoding="unicode") + "\n")


def _tests(
    result: CheckpointResult, fail_on: FailOn, *, pending: bool
) -> Iterator[tuple[str, str | None, str]]:
    if result.error is not None:
        yield "readable", "error", f"{result.error.type}: {result.error.message}"
    elif not result.references:
        yield "judged", "error", "no behaviour to judge by"
    for notice in result.notices if result.error is None else ():
        yield notice.kind, "skipped", notice.message
    for name, reference in result.references.items():
        mark: str | None = None
        if reaches(reference.verdict, fail_on):
            mark = "failure"
        elif reference.verdict in ("unknown", "warming"):
            mark = "error" if pending else "skipped"
        yield name, mark, f"{reference.verdict}: {reference.words}"


def write_github(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    """Workflow commands that GitHub shows as annotations of the run."""
    collected = []
    for result in results:
        collected.append(result)
        if result.error is not None:
            message = f"{result.path}: {result.error.message}"
            out.write(_annotation("error", result.error.type, message))
        for notice in result.notices if result.error is None else ():
            out.write(_annotation("warning", notice.kind, f"{result.path}: {notice.message}"))
        for name, reference in result.references.items():
            if reference.verdict != "ok":
                failing = reaches(reference.verdict, fail_on) or reference.verdict == "unknown"
                level = "error" if failing else "warning"
                message = f"{result.path}: {reference.reason}"
                out.write(_annotation(level, f"{name}: {reference.verdict}", message))
    level = "notice" if exit_code(collected, fail_on) == 0 else "error"
    out.write(_annotation(level, "wvmonitor scan", summary(collected, fail_on)))


def _annotation(level: str, title: str, message: str) -> str:
    # https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts: % , : are data
    data = visible(message).replace("%", "%25")
    name = visible(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{data}\n"


def write_openmetrics(results: Iterable[CheckpointResult], out: TextIO, _fail_on: FailOn) -> None:
    """OpenMetrics text with timestamps, for `promtool tsdb create-blocks-from openmetrics`.

    A trajectory is one series over the times its checkpoints were saved.
    """
    # By family, by series (the states of one state set together), by time: as the format wants it.
    families: dict[str, dict[_Labels, dict[float, dict[_Labels, float]]]] = {}
    for result in results:
        saved = time.time() if result.saved_at is None else result.saved_at
        for name, labels, value in _samples(result):
            series = tuple((k, v) for k, v in labels.items() if k != name)
            points = families.setdefault(name, {}).setdefault(series, {})
            points.setdefault(saved, {})[tuple(labels.items())] = value
    for name, groups in families.items():
        out.write(f"# TYPE {name} {'stateset' if name == 'wvmonitor_verdict' else 'gauge'}\n")
        for points in groups.values():
            for saved, samples in sorted(points.items()):
                for key, value in samples.items():
                    text = ",".join(f'{k}="{_label(v)}"' for k, v in key)
                    out.write(f"{name}{{{text}}} {value!r} {saved:.3f}\n")
    out.write("# EOF\n")


def _samples(result: CheckpointResult) -> Iterator[tuple[str, dict[str, str], float]]:
    run = {"run": visible(result.run or result.path)}
    for name, number in (
        ("wvmonitor_task_vector_norm", result.norm),
        ("wvmonitor_coverage_ratio", result.coverage),
        ("wvmonitor_progress_ratio", result.progress),
        ("wvmonitor_global_step", result.step),
    ):
        if number is not None:
            yield name, run, float(number)
    for component, share in result.component_shares.items():
        if share is not None:
            yield "wvmonitor_component_share", run | {"component": component}, share
    items: dict[str, ReferenceResult | ControlResult] = {**result.controls, **result.references}
    for name, item in items.items():
        which = run | {"reference": visible(name)}
        kind = "behaviour" if isinstance(item, ReferenceResult) else "control"
        for geometry, values in item.scores.items():
            for score, value in values.items():
                if value is not None:
                    labels = {"kind": kind, "geometry": geometry, "score": score}
                    yield "wvmonitor_score", which | labels, value
        if item.dose is not None:
            yield "wvmonitor_dose", which, item.dose
    for name, reference in result.references.items():
        which = run | {"reference": visible(name)}
        if reference.threshold is not None:
            yield "wvmonitor_threshold", which, reference.threshold
        for state in ("ok", "warn", "alarm", "warming", "unknown"):
            # In a state set, the label of the state bears the family's own name.
            labels = which | {"wvmonitor_verdict": state}
            yield "wvmonitor_verdict", labels, float(reference.verdict == state)


def _write_sarif(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    from wvmonitor.scan.sarif import write_sarif

    write_sarif(results, out, fail_on)


def _write_card(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    from wvmonitor.scan.model_card import write_card

    write_card(results, out, fail_on)


WRITERS: Mapping[str, Writer] = {
    "table": write_table,
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "junit": write_junit,
    "github": write_github,
    "sarif": _write_sarif,
    "card": _write_card,
    "openmetrics": write_openmetrics,
}


UNORDERED = frozenset({"jsonl"})
"""Formats that take results as they finish; the others take them in the order of the targets."""

SUFFIXES: Mapping[str, str] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".xml": "junit",
    ".sarif": "sarif",
    ".md": "card",
    ".om": "openmetrics",
    ".parquet": "parquet",
}
"""What a file is to hold, by the end of its name."""


def format_of(path: str) -> str:
    """What is to be written into a file, by its name's ending.

    Raises:
        SettingsError: no format has that ending.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise SettingsError(
            f"{visible(path)} must end in one of {', '.join(SUFFIXES)}, which decides what is "
            "written into it"
        )
    return SUFFIXES[suffix]


def write_file(results: Sequence[CheckpointResult], path: str, fail_on: FailOn) -> None:
    """Write a file in the format that its name's ending asks for, whole or not at all.

    Raises:
        SettingsError: no format has that ending, or its package is not installed.
        MissingPathError: the file's folder does not exist.
    """
    kind = format_of(path)
    if kind == "parquet":
        write_parquet(results, path)
        return
    text = io.StringIO()
    WRITERS[kind](results, text, fail_on)
    whole = text.getvalue()
    if kind == "card":
        from wvmonitor.scan.model_card import within_card

        whole = within_card(path, whole)
    write_text(path, whole)


def write_parquet(results: Sequence[CheckpointResult], path: str) -> None:
    """The rows of the CSV as a Parquet file; needs pyarrow (`pip install wvmonitor[parquet]`)."""
    try:
        # By name: pyarrow has no type stubs.
        pa = importlib.import_module("pyarrow")
        pq = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise SettingsError(
            f"Parquet needs pyarrow, which is not installed ({error}): pip install pyarrow, or "
            "choose --format csv"
        ) from error
    texts = {"path", "run", "kind", "reference", "verdict", "calibration", "reason"}
    texts |= {"error_type", "error_message"}
    kinds = {c: pa.string() if c in texts else pa.float64() for c in COLUMNS}
    kinds["step"] = pa.int64()
    flat = [row for result in results for row in rows(result)]
    flat = [{k: visible(v) if isinstance(v, str) else v for k, v in row.items()} for row in flat]
    pq.write_table(pa.Table.from_pylist(flat, schema=pa.schema(list(kinds.items()))), path)


def deliver(
    results: Iterable[CheckpointResult],
    writer: Writer,
    out: TextIO,
    problems: TextIO,
    fail_on: FailOn,
) -> tuple[list[CheckpointResult], int]:
    """Write results as they come, and each error on a line of its own.

    Results that share one error record are said once.

    Returns:
        The results, and the exit code they amount to.
    """
    collected: list[CheckpointResult] = []
    reported: set[int] = set()

    def passing() -> Iterator[CheckpointResult]:
        for result in results:
            collected.append(result)
            if result.error is not None and id(result.error) not in reported:
                reported.add(id(result.error))
                line = f"{result.path}: {result.error.type}: {result.error.message}"
                print(f"wvmonitor: {visible(line)}", file=problems, flush=True)
            yield result

    writer(passing(), out, fail_on)
    return collected, exit_code(collected, fail_on)


def _flat(scores: Mapping[Any, Mapping[Any, float | None]]) -> dict[str, float | None]:
    return {f"{g}_{n}": value for g, values in scores.items() for n, value in values.items()}


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
