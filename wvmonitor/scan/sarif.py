"""A scan as SARIF 2.1.0, which code hosts and security dashboards read.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html: every behaviour is a rule
(section 3.49), every verdict a result (3.27). What is ok passes, and what is warming where a later
checkpoint was judged is open; only what fails has a level (3.27.10).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, TextIO
from urllib.parse import quote

from wvmonitor._version import __version__
from wvmonitor.files.storage import is_url
from wvmonitor.outputs.scan_record import CheckpointResult
from wvmonitor.scan.results import FailOn, exit_code, reaches, unjudged
from wvmonitor.scan.text import visible

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_HOME = "https://arxiv.org/abs/2511.05408"
_RULES: Mapping[str, tuple[str, str]] = {
    "not-judged": (
        "NotJudged",
        "A checkpoint could not be judged, so that nothing says it is clean.",
    ),
    "unjudged-weights": (
        "UnjudgedWeights",
        "Weights lie beside what was judged: nothing is said of them.",
    ),
    "foreign-code": (
        "ForeignCode",
        "Loading the folder would import or run code that is not its libraries' own.",
    ),
}


def write_sarif(results: Iterable[CheckpointResult], out: TextIO, fail_on: FailOn) -> None:
    """One SARIF log with one run, when the scan is through."""
    collected = list(results)
    pending = {id(result) for result in unjudged(collected)}
    behaviours = dict.fromkeys(name for r in collected for name in r.references)
    rules = [*map(_drift_rule, behaviours), *(_rule(k, *texts) for k, texts in _RULES.items())]
    places = {rule["id"]: index for index, rule in enumerate(rules)}
    findings = [
        {**result, "ruleIndex": places[result["ruleId"]]}
        for checkpoint in collected
        for result in _results(checkpoint, fail_on, pending=id(checkpoint) in pending)
    ]
    code = exit_code(collected, fail_on)
    driver = {
        "name": "wvmonitor",
        "version": __version__,
        "informationUri": _HOME,
        "rules": rules,
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": code != 2, "exitCode": code}],
        "results": findings,
        "columnKind": "unicodeCodePoints",
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    out.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _drift_rule(behaviour: str) -> dict[str, Any]:
    name = visible(behaviour)
    text = f"The weights have moved towards {name} further than harmless fine-tunes do."
    return _rule(_drift(behaviour), "Drift", text)


def _rule(name: str, title: str, text: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": title,
        "shortDescription": {"text": text},
        "defaultConfiguration": {"level": "warning"},
    }


def _drift(behaviour: str) -> str:
    return f"drift/{visible(behaviour)}"


def _results(
    checkpoint: CheckpointResult, fail_on: FailOn, *, pending: bool
) -> Iterator[dict[str, Any]]:
    if checkpoint.error is not None:
        text = f"{checkpoint.error.type}: {checkpoint.error.message}"
        yield _result(checkpoint, "not-judged", "fail", "error", text)
    elif not checkpoint.references:
        yield _result(checkpoint, "not-judged", "fail", "error", "no behaviour to judge by")
    for notice in checkpoint.notices if checkpoint.error is None else ():
        yield _result(checkpoint, notice.kind, "fail", "warning", notice.message)
    for name, reference in checkpoint.references.items():
        text = f"{name}: {reference.verdict}: {reference.words}"
        rule = _drift(name)
        if reference.verdict in ("unknown", "warming"):
            kind, level = ("fail", "warning") if pending else ("open", "none")
            rule = "not-judged" if pending else rule
        elif reference.verdict == "ok":
            kind, level = "pass", "none"
        else:
            kind = "fail"
            level = "error" if reaches(reference.verdict, fail_on) else "warning"
        numbers = {"score": reference.score, "threshold": reference.threshold}
        more = {"verdict": reference.verdict, "calibration": reference.calibration, **numbers}
        yield _result(checkpoint, rule, kind, level, text, name, more)


def _result(
    checkpoint: CheckpointResult,
    rule: str,
    kind: str,
    level: str,
    text: str,
    behaviour: str = "",
    properties: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    where = _uri(checkpoint.path)
    same = hashlib.sha256(f"{checkpoint.path}\0{rule}\0{behaviour}".encode(errors="replace"))
    step = {} if checkpoint.step is None else {"step": checkpoint.step}
    return {
        "ruleId": rule,
        "kind": kind,
        "level": level,
        "message": {"text": visible(text)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": where}}}],
        "partialFingerprints": {"wvmonitor/v1": same.hexdigest()},
        "properties": {**step, **(properties or {})},
    }


def _uri(path: str) -> str:
    """A path or URL as a URI reference (RFC 3986); credentials in a URL are left out."""
    if is_url(path):
        scheme, _, rest = path.partition("://")
        host, slash, inside = rest.partition("/")
        if scheme != "hf":
            host = host.rpartition("@")[2]
        if scheme in ("http", "https"):
            inside = inside.partition("?")[0]
        return f"{scheme}://{quote(host + slash + inside, safe='/@:')}"
    escaped = quote(path.encode(errors="surrogateescape"), safe="/")
    return f"file://{escaped}" if PurePath(path).is_absolute() else escaped or "."
