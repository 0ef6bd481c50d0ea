"""The metrics of the monitor, as families of Prometheus: docs/reference/metrics.md lists them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from wvmonitor._version import __version__
from wvmonitor.detection.judgement import State, Verdict
from wvmonitor.outputs.exporter import Observation, layer_projections
from wvmonitor.outputs.run_state import RUN_STATES, RunState, this_host, this_job

SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics(Collector):
    """What the page is made of. Written by the training thread, read by scrapes."""

    def __init__(self, layers: int, expected: Collection[str] = ()) -> None:
        self.latest: dict[str, Observation] = {}
        self.states: dict[str, RunState] = {}
        self.way_back: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {}
        self.longest: dict[str, float] = {}
        self.errors: Counter[str] = Counter()
        self.pending = 0
        self._layers = layers
        self._expected = frozenset(expected)
        self._readings = 0
        self._seconds = 0.0
        self._counts = [0] * (len(SECONDS_BUCKETS) + 1)

    def add(self, observation: Observation) -> None:
        """Count one observation, and keep it as the latest of its run."""
        run = observation.run
        known, self.latest[run] = self.latest.get(run), observation
        if known is not None and known.scores is observation.scores:
            return  # the same reading, of which less is known now: see `unwatched`
        if known is not None:
            self.states.pop(run, None)  # it goes on
            between = observation.wall_time - known.wall_time
            self.longest[run] = max(self.longest.get(run, 0.0), between)
        self._readings += 1
        seconds = observation.measure_seconds
        if math.isfinite(seconds):
            self._seconds += seconds
            self._counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry is ours alone, so no name can clash."""
        yield from ()

    def collect(self, only: str | None = None) -> Iterator[Metric]:
        """Every metric family, in the design's order; of one run only, if one is named."""
        latest = {r: o for r, o in dict(self.latest).items() if only in (None, r)}
        yield from _scores(latest)
        yield from _verdicts(latest, self._expected)
        yield from _run(latest)
        yield from self._states(latest)
        if self._layers:
            yield _layers(latest, self._layers)
        yield from self._health()

    def _states(self, latest: dict[str, Observation]) -> Iterator[Metric]:
        """How each run ended, and what it could go back to."""
        state = _gauge("run_state", "1 for what the run is doing, 0 for the others.", "state")
        info = InfoMetricFamily("wvmonitor_run", "Where the run is.", labels=("run",))
        interval = _gauge(
            "reading_interval_seconds", "The longest time between two readings of the run so far."
        )
        ok = _gauge("last_ok_step", "Step of the last reading that was ok.", "reference")
        checkpoint = _gauge(
            "checkpoint_step",
            "Step of the newest checkpoint on disk from when the run was ok.",
            "reference",
        )
        for run in latest:
            now = self.states.get(run, "training")
            for one in RUN_STATES:
                state.add_metric((run, one), float(one == now))
            info.add_metric((run,), {"host": this_host(), "batch_job": this_job() or ""})
            if run in self.longest:
                interval.add_metric((run,), self.longest[run])
            last_ok, checkpoints = self.way_back.get(run, ({}, ()))
            for reference, step in last_ok.items():
                ok.add_metric((run, reference), step)
                before = [saved for saved in checkpoints if saved <= step]
                if before:
                    checkpoint.add_metric((run, reference), max(before))
        yield from (state, info, interval, ok, checkpoint)

    def _health(self) -> Iterator[Metric]:
        readings = CounterMetricFamily("wvmonitor_readings", "Readings made by this process.")
        readings.add_metric((), self._readings)
        yield readings
        total, buckets = 0, []
        for bound, count in zip((*SECONDS_BUCKETS, math.inf), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == math.inf else repr(bound), float(total)))
        seconds = HistogramMetricFamily(
            "wvmonitor_measure_duration_seconds", "Time that measuring and judging took."
        )
        seconds.add_metric((), buckets, self._seconds)
        yield seconds
        errors = CounterMetricFamily(
            "wvmonitor_errors", "Errors of the monitor itself.", labels=("where",)
        )
        for where, count in sorted(dict(self.errors).items()):
            errors.add_metric((where,), count)
        yield errors
        yield GaugeMetricFamily("wvmonitor_outbox_pending", "Deliveries that wait.", self.pending)
        yield InfoMetricFamily("wvmonitor_build", "This version.", {"version": __version__})


class OneRun(Collector):
    """The part of the page that is about one run."""

    def __init__(self, metrics: Metrics, run: str) -> None:
        self._metrics, self._run = metrics, run

    def describe(self) -> Iterator[Metric]:
        """Nothing, as of the whole page."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Every metric family, of this run."""
        return self._metrics.collect(self._run)


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    """A family of one series for each run, or for each of the further labels of each."""
    return GaugeMetricFamily(f"wvmonitor_{name}", documentation, labels=("run", *labels))


def _scores(latest: dict[str, Observation]) -> Iterator[Metric]:
    score = _gauge(
        "score", "A score of the run against a reference.", "reference", "kind", "geometry", "score"
    )
    dose = _gauge("dose", "Steering coefficient that explains the drift.", "reference")
    for run, observation in latest.items():
        for name, reference in observation.scores.references.items():
            for geometry, values in reference.values.items():
                for key, value in values.items():
                    score.add_metric((run, name, reference.kind, geometry, key), value)
            if reference.dose is not None:
                dose.add_metric((run, name), reference.dose)
    yield score
    yield dose


def _verdicts(latest: dict[str, Observation], may_drift: frozenset[str]) -> Iterator[Metric]:
    decides = _gauge(
        "deciding_score",
        "The score that the verdict rests on, whichever geometry and score that is.",
        "reference",
    )
    threshold = _gauge(
        "threshold",
        "What the deciding score is held against at this progress.",
        "reference",
        "score",
    )
    states = _gauge(
        "verdict", "1 for the verdict on a reference, 0 for the others.", "reference", "verdict"
    )
    expected = _gauge(
        "expected",
        "1 where drift towards a reference is wanted or acknowledged, so that nobody is alarmed.",
        "reference",
    )
    worst = _gauge(
        "worst_verdict",
        "1 for the worst verdict that the run has earned on a reference, 0 for the others.",
        "reference",
        "verdict",
    )
    for run, observation in latest.items():
        quiet = may_drift | observation.acknowledged
        for verdict in observation.verdicts:
            expected.add_metric((run, verdict.reference), float(verdict.reference in quiet))
            if verdict.score is not None:
                decides.add_metric((run, verdict.reference), verdict.score)
            if verdict.threshold is not None:
                which = (run, verdict.reference, _deciding(verdict))
                threshold.add_metric(which, verdict.threshold)
            for state in State:
                states.add_metric((run, verdict.reference, state), float(state == verdict.state))
            earned = observation.judgement.state.of(verdict.reference).worst
            for state in State if earned is not None else ():
                value = float(earned is not None and state == earned.state)
                worst.add_metric((run, verdict.reference, state), value)
    yield from (decides, threshold, states, expected, worst)


def _deciding(verdict: Verdict) -> str:
    """The score that a threshold is of; the published rule's may change from reading to reading."""
    uncalibrated = verdict.calibration == "uncalibrated"
    return "deciding" if uncalibrated or verdict.score_name is None else verdict.score_name


def _run(latest: dict[str, Observation]) -> Iterator[Metric]:
    norm = _gauge("task_vector_norm", "Norm of what the run has done to the weights.")
    coverage = _gauge("coverage_ratio", "Share of the squared norm that scores look at.")
    share = _gauge(
        "component_share", "Share of the squared norm by part of the model.", "component"
    )
    progress = _gauge("progress_ratio", "Share of the planned steps that is done.")
    step = _gauge("global_step", "Optimiser step of the last reading.")
    stamp = _gauge("last_reading_timestamp_seconds", "When the last reading was made.")
    for run, observation in latest.items():
        scores = observation.scores
        norm.add_metric((run,), scores.norm)
        if "frobenius" in scores.coverage:
            coverage.add_metric((run,), scores.coverage["frobenius"])
        for component, value in observation.judgement.component_shares.items():
            share.add_metric((run, component), value)
        if scores.progress is not None:
            progress.add_metric((run,), scores.progress)
        if scores.step is not None:
            step.add_metric((run,), scores.step)
        stamp.add_metric((run,), observation.wall_time)
    yield from (norm, coverage, share, progress, step, stamp)


def _layers(latest: dict[str, Observation], most: int) -> Metric:
    projection = _gauge(
        "layer_projection",
        "How far the run went along a behaviour in one layer, in units of the weights.",
        "reference",
        "layer",
    )
    for run, observation in latest.items():
        for name, values in layer_projections(observation.reading).items():
            known = observation.scores.references.get(name)
            if known is not None and known.kind == "behaviour":
                largest = sorted(values, key=lambda layer: -abs(values[layer]))[:most]
                for layer in largest:
                    projection.add_metric((run, name, layer), values[layer])
    return projection
