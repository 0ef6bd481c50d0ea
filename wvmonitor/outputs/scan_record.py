"""What a scan says of one checkpoint: plain frozen records, made from a judgement and read back.

These records are the public contract of `wvmonitor scan --format json` (docs/schemas/
scan.schema.json is made from them): fields may be added, none is renamed or removed. Numbers are
finite or None, so that every record is valid JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from wvmonitor.detection.explanation import in_full
from wvmonitor.detection.judgement import CalibrationStatus, Judgement, State, Verdict, named
from wvmonitor.detection.scores import ReferenceScores, ScoreName, Scores
from wvmonitor.errors import FormatVersionError, MalformedFileError
from wvmonitor.reading import Component, Geometry

SCHEMA_VERSION: Literal[1] = 1
ScanScore = Literal["cosine", "residual", "margin"]
SCAN_SCORES: tuple[ScanScore, ...] = ("cosine", "residual", "margin")

Values = Mapping[Geometry, Mapping[ScanScore, float | None]]


@dataclass(frozen=True)
class ReferenceResult:
    """What a checkpoint's weights say about one behaviour.

    Attributes:
        scores: by geometry; null where a score does not exist or is not finite.
        dose: the steering coefficient k for which k·w explains the change, if known.
        score: the deciding score, if there is one.
        threshold: what the deciding score is held against, if there is one.
        calibration: what the threshold rests on.
        verdict: ok, warn, alarm, warming (too little has changed to judge) or unknown.
        reason: one sentence for people.
        account: of a warning or an alarm, what it means and what to do, one sentence each.
        geometry: of the deciding score, if there is one.
        score_name: which score decides, if one does.
        acknowledged: whether somebody has silenced the behaviour in this run.
    """

    scores: Values
    dose: float | None
    score: float | None
    threshold: float | None
    calibration: CalibrationStatus
    verdict: State
    reason: str
    account: Sequence[str] = ()
    geometry: Geometry | None = None
    score_name: ScoreName | None = None
    acknowledged: bool = False

    @property
    def words(self) -> str:
        """Reason and account as one text."""
        return in_full(self.reason, self.account)


_SHARED = {f.name for f in fields(ReferenceResult)} & {f.name for f in fields(Verdict)}


def _shared(told: Verdict | ReferenceResult) -> dict[str, Any]:
    """What a verdict and its record call by one name; numbers finite or None."""
    values = {name: getattr(told, name) for name in _SHARED}
    return {n: finite(v) if isinstance(v, float) else v for n, v in values.items()}


@dataclass(frozen=True)
class ControlResult:
    """How alike a checkpoint's weights are to a control; controls carry no verdict.

    Attributes:
        scores: by geometry; null where a score does not exist or is not finite.
        dose: the steering coefficient k for which k·w explains the change, if known.
    """

    scores: Values
    dose: float | None


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint could not be judged.

    Attributes:
        type: the error's class, one of those in `wvmonitor.errors` for anything foreseen.
        message: what was wrong, where, and what to do, in one line.
    """

    type: str
    message: str


NoticeKind = Literal["unjudged-weights", "foreign-code"]


@dataclass(frozen=True)
class Notice:
    """Something at a checkpoint's path of which its verdict does not speak.

    Attributes:
        kind: weights that were not judged, or code that loading the folder would import.
        message: which, where, and what to do, in one line.
    """

    kind: NoticeKind
    message: str


@dataclass(frozen=True)
class CheckpointResult:
    """What the scan found out about one checkpoint.

    Attributes:
        path: as it was given, or found in a folder that was given.
        step: optimiser step, if known.
        norm: ‖τ‖ over every parameter (Frobenius, in units of the weights).
        coverage: the share of ‖τ‖² that lies where the scores look, in [0, 1].
        verdict: the worst of the references' verdicts; unknown where there is an error.
        references: by name, the behaviours of the bank.
        error: null, or why nothing could be said.
        controls: by name, the controls of the bank.
        component_shares: the share of ‖τ‖² in each part of the model.
        warnings: what a reader of the numbers must know.
        run: the output folder whose trajectory the checkpoint belongs to, if it does.
        progress: the fraction of the run's planned steps in [0, 1], if known.
        method: how the weights were trained ("lora", "full", …), if known.
        rank: the adapter's largest rank, if it is one.
        bank: fingerprint of the references measured against.
        saved_at: when the checkpoint was saved (Unix seconds, by its file's time), if known.
        base: digest of the model that the change was taken from, if known.
        base_name: what the references call their base.
        notices: what lies there and was not judged; where nothing may be (`--strict`), it is the
            error, too.
    """

    path: str
    step: int | None
    norm: float | None
    coverage: float | None
    verdict: State
    references: Mapping[str, ReferenceResult]
    error: Failure | None
    controls: Mapping[str, ControlResult] = field(default_factory=dict)
    component_shares: Mapping[Component, float | None] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    run: str | None = None
    progress: float | None = None
    method: str | None = None
    rank: int | None = None
    bank: str | None = None
    saved_at: float | None = None
    base: str | None = None
    base_name: str | None = None
    notices: Sequence[Notice] = ()

    def strictly(self) -> CheckpointResult:
        """The same where nothing at its path may be left unjudged: that is an error, then."""
        if not self.notices or self.error is not None:
            return self
        notices = "; ".join(notice.message for notice in self.notices)
        error = Failure("UnjudgedPartError", f"{notices} (nothing may be left unjudged: --strict)")
        return replace(self, error=error, verdict=max(self.verdict, State.UNKNOWN))


def record_of(judgement: Judgement, path: str, warnings: Sequence[str] = ()) -> CheckpointResult:
    """The record of a judgement; whoever knows more of the checkpoint replaces what is left out."""
    scores = judgement.scores
    references: dict[str, ReferenceResult] = {}
    controls: dict[str, ControlResult] = {}
    for name, reference in scores.references.items():
        values, dose = _values(reference, scores), finite(reference.dose)
        if name in judgement.verdicts:
            verdict = judgement.verdicts[name]
            references[name] = ReferenceResult(
                scores=values, dose=dose, verdict=verdict.state, **_shared(verdict)
            )
        elif reference.kind == "control":
            controls[name] = ControlResult(values, dose)
    return CheckpointResult(
        path=path,
        step=scores.step,
        norm=finite(scores.norm),
        coverage=finite(scores.coverage.get("frobenius")),
        verdict=judgement.overall,
        references=references,
        error=None,
        controls=controls,
        component_shares={c: finite(s) for c, s in judgement.component_shares.items()},
        warnings=tuple(dict.fromkeys((*warnings, *scores.warnings))),
        progress=finite(scores.progress),
        bank=scores.bank,
    )


def judgement_of(record: CheckpointResult) -> Judgement:
    """The judgement that a record was made from, as far as it tells."""
    verdicts = {
        name: Verdict(
            reference=name,
            state=result.verdict,
            step=record.step,
            **_shared(result) | {"account": tuple(result.account)},
        )
        for name, result in record.references.items()
    }
    every: dict[str, ReferenceResult | ControlResult] = {**record.references, **record.controls}
    return named(
        Judgement(
            reading=None,
            scores=Scores(
                references={
                    name: ReferenceScores(
                        reference=name,
                        kind="behaviour" if name in verdicts else "control",
                        values={
                            g: {n: v for n, v in values.items() if v is not None}
                            for g, values in result.scores.items()
                        },
                        dose=result.dose,
                    )
                    for name, result in every.items()
                },
                norm=math.nan if record.norm is None else record.norm,
                coverage={} if record.coverage is None else {"frobenius": record.coverage},
                step=record.step,
                progress=record.progress,
                warnings=tuple(record.warnings),
                components=(),
                bank=record.bank or "",
            ),
            verdicts=verdicts,
            component_shares={c: s for c, s in record.component_shares.items() if s is not None},
        )
    )


class _Document(BaseModel):
    """What is read of a scan's document; what a later version has added is left out."""

    # most scans read no document: its validator is built when one is
    model_config = ConfigDict(extra="ignore", defer_build=True)

    schema_version: Literal[1]
    checkpoints: list[CheckpointResult]


def read_records(document: Any, source: str) -> list[CheckpointResult]:
    """The records in the document of a scan.

    Raises:
        MalformedFileError: it is not the JSON of a scan.
        FormatVersionError: a newer version of wvmonitor wrote it.
    """
    version = document.get("schema_version") if isinstance(document, Mapping) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise FormatVersionError(
            f"{source} has scan format {version}, this wvmonitor reads up to {SCHEMA_VERSION}: "
            "upgrade wvmonitor"
        )
    try:
        return _Document.model_validate(document).checkpoints
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "the document"
        raise MalformedFileError(
            f"{source} is not the JSON of a scan ({where}: {first['msg']}): make it again with "
            "`wvmonitor scan --format json`"
        ) from None


def failed(
    path: str,
    error: Failure,
    *,
    run: str | None = None,
    step: int | None = None,
    notices: Sequence[Notice] = (),
) -> CheckpointResult:
    """The result for a checkpoint that could not be judged."""
    return CheckpointResult(
        path=path,
        step=step,
        norm=None,
        coverage=None,
        verdict=State.UNKNOWN,
        references={},
        error=error,
        run=run,
        notices=tuple(notices),
    )


def failure_of(error: BaseException) -> Failure:
    """An exception as a record: its class and its message, on one line."""
    return Failure(type(error).__name__, " ".join(str(error).split()) or "no further explanation")


def finite(value: float | None) -> float | None:
    """A Python float, or None where it is missing, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def _values(reference: ReferenceScores, scores: Scores) -> Values:
    return {
        geometry: {n: finite(reference.values.get(geometry, {}).get(n)) for n in SCAN_SCORES}
        for geometry in scores.coverage
    }
