"""The judge: a reading in, a judgement out. Nothing else scores, passes verdicts or explains them.

Live runs, scans, the sidecar, rescoring and benchmarks differ in where their readings come from;
what is thought of a reading is decided here, so that the same weights get the same verdict
whichever way they come in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from wvmonitor.detection.calibration import Calibration
from wvmonitor.detection.context import RunContext
from wvmonitor.detection.explanation import Background, explained
from wvmonitor.detection.judgement import Judgement, JudgeState, State, Statistics
from wvmonitor.detection.scores import Scores, resolve_ridge, score
from wvmonitor.detection.verdict import judge
from wvmonitor.errors import SettingsError, UnknownReferenceError
from wvmonitor.reading import GEOMETRIES, Component, Geometry, Gram, Reading, layer_shares


class References(Protocol):
    """What a judge must know of a bank."""

    @property
    def gram(self) -> Gram:
        """The inner products among its references."""

    @property
    def fingerprint(self) -> str:
        """Its fingerprint."""

    @property
    def behaviours(self) -> Sequence[str]:
        """The references on which verdicts are passed."""

    def relation_to(self, base_digest: str | None) -> Literal["same", "relative", "unknown"]:
        """Whether a base is the references' own; raises `BaseMismatchError` where it is another."""

    def background(self, base: object | None = None) -> Background:
        """What explanations say of the references, and of the base."""


class Origin(Protocol):
    """What weights say of how they came about: a task vector's origin, or a live model."""

    @property
    def method(self) -> str | None:
        """How they were trained."""

    @property
    def rank(self) -> int | None:
        """The adapter's largest rank."""

    @property
    def base_digest(self) -> str | None:
        """Digest of the base that they started from."""


@dataclass(frozen=True)
class Judge:
    """Judges readings by one bank, and one calibration or none; get one from `Judge.of`.

    Example:
        judge = Judge.of(bank, Calibration.load("calibration.json"))
        context = judge.context(tau.origin, RunContext(lone=True))
        judgement = judge(bank.measure(tau), context, JudgeState())
        judgement.verdicts["evil"].state

    Attributes:
        gram: the inner products among the references.
        calibration: None judges by the published rules, which warn at most.
        components: the parts of the model that scores sum over.
        ridge: λ of the residual score, by geometry.
        behaviours: the references on which verdicts are passed.
        background: what explanations say of the references.
        relation_to: whether a base, by its digest, is the references' own.
        strict_coverage: whether verdicts must cover the whole change (`RunContext`).
    """

    gram: Gram
    calibration: Calibration | None
    components: tuple[Component, ...]
    ridge: Mapping[Geometry, float]
    behaviours: frozenset[str]
    background: Background
    relation_to: Callable[[str | None], Literal["same", "relative", "unknown"]]
    strict_coverage: bool = False

    @classmethod
    def of(
        cls,
        bank: References,
        calibration: Calibration | None = None,
        *,
        components: tuple[Component, ...] | None = None,
        behaviours: Sequence[str] | None = None,
        expected: Sequence[str] = (),
        base: object | None = None,
        strict_coverage: bool = False,
    ) -> Judge:
        """A judge by this bank; everything that does not go together is said here.

        Args:
            bank: the references.
            calibration: of this bank; None judges by the published rules.
            components: the parts of the model to score; None means the calibration's, or the
                blocks where there is none.
            behaviours: the references to pass verdicts on; None means every behaviour of the bank.
            expected: references whose drift is wanted in these runs.
            base: the base model, as a command line names it.
            strict_coverage: whether verdicts must cover the whole change, embeddings and head
                included, rather than of the parts that scores look at.

        Raises:
            CalibrationError: the calibration belongs to another bank.
            SettingsError: the calibration is for other components.
            UnknownReferenceError: one of `behaviours` or `expected` is not in the bank.
        """
        if calibration is not None:
            calibration.require_bank(bank.fingerprint)
            if components not in (None, calibration.components):
                raise SettingsError(
                    f"the calibration is for scores over {', '.join(calibration.components)}, the "
                    f"settings ask for {', '.join(components or ())}: calibrate again, or leave "
                    "components as they were"
                )
            components = calibration.components
        components = components or ("blocks",)
        _require(expected, bank.gram.references, "reference")
        _require(behaviours or (), bank.behaviours, "behaviour")
        fixed = {} if calibration is None else {calibration.geometry: calibration.ridge}
        return cls(
            gram=bank.gram,
            calibration=calibration,
            components=components,
            ridge={
                g: fixed.get(g) or resolve_ridge(None, bank.gram, g, components)
                for g in GEOMETRIES
                if g in bank.gram.products
            },
            behaviours=frozenset(bank.behaviours if behaviours is None else behaviours),
            background=bank.background(base),
            relation_to=bank.relation_to,
            strict_coverage=strict_coverage,
        )

    def of_base(self, base: object | None) -> Judge:
        """The same judge, whose explanations name this base."""
        known = base is not None
        return replace(self, background=replace(self.background, base=str(base))) if known else self

    def context(self, origin: Origin, run: RunContext) -> RunContext:
        """What verdicts depend on beside the scores: what the run says, completed by its weights.

        A run whose optimiser is not known (files do not say) is held against a calibration's band
        reading by reading, as a single checkpoint is; the verdict's reason says so.

        Raises:
            BaseMismatchError: the weights started from another base than the references'.
        """
        return replace(
            run,
            method=origin.method,
            rank=origin.rank,
            base=self.relation_to(origin.base_digest),
            lone=run.lone or (self.calibration is not None and run.optimizer is None),
            strict_coverage=self.strict_coverage,
        )

    def statistics(self, reading: Reading, earlier: Reading | None = None) -> Statistics:
        """All that a verdict needs of a reading.

        Args:
            reading: the measurement, against the judge's own bank.
            earlier: the reading of the snapshot that `Products.lagged` refers to.

        Raises:
            UnknownReferenceError: the reading holds other references than the bank.
        """
        known = {g: value for g, value in self.ridge.items() if g in reading.geometries}
        return Statistics(
            scores=score(
                reading, self.gram, earlier=earlier, components=self.components, ridge=known
            ),
            component_shares=reading.component_shares(),
            layers=layer_shares(reading, self.components),
        )

    def __call__(
        self,
        reading: Reading | Statistics,
        context: RunContext,
        state: JudgeState,
        *,
        earlier: Reading | None = None,
        acknowledged: Collection[str] = (),
        last: bool = False,
    ) -> Judgement:
        """Judge one reading.

        Args:
            reading: the measurement, or what `statistics` gave of it.
            context: of the run.
            state: as the judgement on the run's previous reading has it.
            earlier: as in `statistics`.
            acknowledged: behaviours that somebody has silenced in this run.
            last: whether no other reading of this run will follow.

        Raises:
            UnknownReferenceError: the reading holds other references than the bank.
            CalibrationError: it was measured against another bank than the calibration's.
        """
        statistics = (
            reading if isinstance(reading, Statistics) else self.statistics(reading, earlier)
        )
        verdicts, state = judge(
            statistics.scores, context, self.calibration, state, acknowledged, last=last
        )
        verdicts = {
            n: explained(v, statistics.scores, state, self.background, layers=statistics.layers)
            if v.state >= State.WARN
            else v
            for n, v in verdicts.items()
            if n in self.behaviours
        }
        return Judgement(
            reading=reading if isinstance(reading, Reading) else None,
            scores=statistics.scores,
            verdicts=verdicts,
            state=state,
            component_shares=statistics.component_shares,
            layers=statistics.layers,
        )


def judgements(
    course: Sequence[Scores], context: RunContext, calibration: Calibration | None
) -> Iterator[Judgement]:
    """The judgements on a run whose scores are known already, reading by reading.

    Args:
        course: its scores, in the order of steps; the last ones are the run's last.
        context: of the run.
        calibration: None judges by the published rules.

    Raises:
        CalibrationError: the calibration belongs to another bank than the scores.
    """
    state = JudgeState()
    for index, scores in enumerate(course, 1):
        verdicts, state = judge(scores, context, calibration, state, last=index == len(course))
        yield Judgement(None, scores, verdicts, state)


def _require(names: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise UnknownReferenceError(
                f"no {what} {name!r} in this bank; it holds {', '.join(known)}"
            )
