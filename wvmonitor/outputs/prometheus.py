"""Metrics for Prometheus: served on a port, or written to a file for node_exporter.

Nothing is registered in prometheus_client's global registry. A scrape renders the latest readings
in a thread of its own: training pays for none of it but the turns of Python's lock.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from wvmonitor._version import __version__
from wvmonitor.outputs.exporter import STATES, Observation, layer_projections
from wvmonitor.outputs.pushgateway import Pusher, PushTarget
from wvmonitor.outputs.server import Access, Serving, serve

logger = logging.getLogger(__name__)

SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class PrometheusExporter:
    """The latest reading of each run as Prometheus metrics.

    Attributes:
        port: the port that is listened on, which may not be the one asked for; None where metrics
            are not served.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = 9108,
        textfile: Path | None = None,
        layers: int = 0,
        access: Access | None = None,
        push: PushTarget | None = None,
        expected: Collection[str] = (),
        linger: float = 0.0,
    ) -> None:
        """Serve on `host` and `port` (None: not at all; 0: any free port).

        `textfile` is rewritten whole at each reading and each error. `layers` is for how many
        layers of each behaviour series are made, those with the largest values first. `access` says
        who may scrape; `push` where the metrics of the run are sent as well. `expected` are the
        references whose drift is wanted, so that rules can leave them out. After `close` the page
        stays for one more scrape, at most `linger` seconds, where somebody scrapes.
        """
        self._textfile = textfile
        self._push = push
        self._linger = linger
        self._pusher: Pusher | None = None
        self._metrics = _Metrics(layers, expected)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._metrics)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._server: Serving | None = None
        if port is not None:
            self._server = serve(self._registry, host, port, access)
        self.port = None if self._server is None else self._server.port

    def export(self, observation: Observation) -> None:
        """Show one observation in place of the run's last."""
        self._metrics.add(observation)
        self._write()
        if self._push is not None:
            if self._pusher is None:
                self._pusher = Pusher(
                    self._push,
                    self._registry,
                    observation.run,
                    on_error=lambda: self.error("pushgateway"),
                )
            self._pusher.push()

    def error(self, where: str) -> None:
        """Count an error of the monitor, by the part of it where it happened."""
        with self._lock:
            self._metrics.errors[where] += 1
        if where != "textfile":
            self._write()  # a monitor that only fails exports nothing, and must not look idle

    def set_outbox_pending(self, count: int) -> None:
        """Show how many deliveries wait; see `Outbox(on_pending=...)`."""
        self._metrics.pending = count

    def forget(self, run: str) -> None:
        """Take the series of a run that is over off the page."""
        self._metrics.latest.pop(run, None)

    def page(self) -> bytes:
        """The metrics in Prometheus's text format, as a scrape gets them."""
        return generate_latest(self._registry)

    def _write(self) -> None:
        """Write the textfile, if there is to be one; it matters to nothing else if that fails."""
        if self._textfile is None:
            return
        try:
            with self._writing:
                self.write_textfile(self._textfile)
        except OSError as error:
            self.error("textfile")
            logger.warning("metrics not written to '%s': %s", self._textfile, error)

    def write_textfile(self, path: Path) -> None:
        """Write the metrics to `path` in one step, so that no reader meets half a file."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        partial.write_bytes(self.page())
        partial.replace(path)

    def close(self) -> None:
        """Stop serving. A textfile stays, so that the run's last values can still be read."""
        server, self._server, self.port = self._server, None, None
        if server is not None:
            server.close(self._linger)
        if self._pusher is not None:
            self._pusher.close()


class _Metrics(Collector):
    """What the page is made of. Written by the training thread, read by scrapes."""

    def __init__(self, layers: int, expected: Collection[str] = ()) -> None:
        self.latest: dict[str, Observation] = {}
        self.errors: Counter[str] = Counter()
        self.pending = 0
        self._layers = layers
        self._expected = frozenset(expected)
        self._readings = 0
        self._seconds = 0.0
        self._counts = [0] * (len(SECONDS_BUCKETS) + 1)

    def add(self, observation: Observation) -> None:
        """Count one observation, and keep it as the latest of its run."""
        known, self.latest[observation.run] = self.latest.get(observation.run), observation
        if known is not None and known.reading is observation.reading:
            return  # the same reading, of which less is known now: see `unwatched`
        self._readings += 1
        seconds = observation.measure_seconds
        if math.isfinite(seconds):
            self._seconds += seconds
            self._counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry is ours alone, so no name can clash."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Every metric family, in the design's order."""
        latest = dict(self.latest)
        yield from _scores(latest)
        yield from _verdicts(latest, self._expected)
        yield from _run(latest)
        if self._layers:
            yield _layers(latest, self._layers)
        yield from self._health()

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


def _scores(latest: dict[str, Observation]) -> Iterator[Metric]:
    score = GaugeMetricFamily(
        "wvmonitor_score",
        "A score of the run against a reference.",
        labels=("run", "reference", "kind", "geometry", "score"),
    )
    dose = GaugeMetricFamily(
        "wvmonitor_dose",
        "Steering coefficient that explains the drift.",
        labels=("run", "reference"),
    )
    for run, observation in latest.items():
        for name, reference in observation.scores.references.items():
            for geometry, values in reference.values.items():
                for key, value in values.items():
                    score.add_metric((run, name, reference.kind, geometry, key), value)
            if reference.dose is not None:
                dose.add_metric((run, name), reference.dose)
    yield score
    yield dose


def _verdicts(latest: dict[str, Observation], wanted: frozenset[str]) -> Iterator[Metric]:
    decides = GaugeMetricFamily(
        "wvmonitor_deciding_score",
        "The score that the verdict rests on, whichever geometry and score that is.",
        labels=("run", "reference"),
    )
    threshold = GaugeMetricFamily(
        "wvmonitor_threshold",
        "What the deciding score is held against at this progress.",
        labels=("run", "reference", "score"),
    )
    states = GaugeMetricFamily(
        "wvmonitor_verdict",
        "1 for the verdict on a reference, 0 for the others.",
        labels=("run", "reference", "verdict"),
    )
    expected = GaugeMetricFamily(
        "wvmonitor_expected",
        "1 where drift towards a reference is wanted or acknowledged, so that nobody is alarmed.",
        labels=("run", "reference"),
    )
    for run, observation in latest.items():
        score = observation.deciding[1] if observation.deciding else "deciding"
        quiet = wanted | observation.acknowledged
        for verdict in observation.verdicts:
            expected.add_metric((run, verdict.reference), float(verdict.reference in quiet))
            if verdict.score is not None:
                decides.add_metric((run, verdict.reference), verdict.score)
            if verdict.threshold is not None:
                threshold.add_metric((run, verdict.reference, score), verdict.threshold)
            for state in STATES:
                states.add_metric((run, verdict.reference, state), float(state == verdict.state))
    yield from (decides, threshold, states, expected)


def _run(latest: dict[str, Observation]) -> Iterator[Metric]:
    def gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"wvmonitor_{name}", documentation, labels=("run", *labels))

    norm = gauge("task_vector_norm", "Norm of what the run has done to the weights.")
    coverage = gauge("coverage_ratio", "Share of the squared norm that scores look at.")
    share = gauge("component_share", "Share of the squared norm by part of the model.", "component")
    progress = gauge("progress_ratio", "Share of the planned steps that is done.")
    step = gauge("global_step", "Optimiser step of the last reading.")
    stamp = gauge("last_reading_timestamp_seconds", "When the last reading was made.")
    for run, observation in latest.items():
        scores = observation.scores
        norm.add_metric((run,), scores.norm)
        if "frobenius" in scores.coverage:
            coverage.add_metric((run,), scores.coverage["frobenius"])
        for component, value in observation.reading.component_shares().items():
            share.add_metric((run, component), value)
        if scores.progress is not None:
            progress.add_metric((run,), scores.progress)
        if scores.step is not None:
            step.add_metric((run,), scores.step)
        stamp.add_metric((run,), observation.wall_time)
    yield from (norm, coverage, share, progress, step, stamp)


def _layers(latest: dict[str, Observation], most: int) -> Metric:
    projection = GaugeMetricFamily(
        "wvmonitor_layer_projection",
        "How far the run went along a behaviour in one layer, in units of the weights.",
        labels=("run", "reference", "layer"),
    )
    for run, observation in latest.items():
        for name, values in layer_projections(observation.reading).items():
            known = observation.scores.references.get(name)
            if known is not None and known.kind == "behaviour":
                largest = sorted(values, key=lambda layer: -abs(values[layer]))[:most]
                for layer in largest:
                    projection.add_metric((run, name, layer), values[layer])
    return projection
