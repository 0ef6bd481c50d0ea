"""Metrics for Prometheus: served on a port, or written to a file for node_exporter.

Nothing is registered in prometheus_client's global registry. A scrape renders the latest readings
in a thread of its own: training pays for none of it but the turns of Python's lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from wvmonitor.errors import WVMonitorError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.metrics import Metrics, OneRun
from wvmonitor.outputs.pushgateway import Pusher, PushTarget
from wvmonitor.outputs.run_state import RunState
from wvmonitor.outputs.server import Access, Serving, serve

logger = logging.getLogger(__name__)


class PrometheusExporter:
    """The latest reading of each run as Prometheus metrics.

    Attributes:
        port: the port that is listened on, which may not be the one asked for; None where metrics
            are not served.
        linger: most seconds that the page stays after `close` for one more scrape.
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
        discovery: Path | None = None,
    ) -> None:
        """Serve on `host` and `port` (None: not at all; 0: any free port).

        `textfile` is rewritten whole at each reading and each error. `layers` is for how many
        layers of each behaviour series are made, those with the largest values first. `access` says
        who may scrape; `push` where the metrics of the run are sent as well. `expected` are the
        references whose drift is wanted, so that rules can leave them out. After `close` the page
        stays for one more scrape, at most `linger` seconds, where somebody scrapes. `discovery` is
        the folder by whose files Prometheus finds what it is to scrape.
        """
        self._textfile = textfile
        self._push = push
        self.linger = linger
        self._pushers: dict[str, Pusher] = {}
        self._metrics = Metrics(layers, expected)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._metrics)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._server: Serving | None = None
        self._closing: Serving | None = None
        if port is not None:
            self._server = serve(self._registry, host, port, access)
        if self._server is not None and discovery is not None:
            self._server.announce(discovery, tls=access is not None and bool(access.certificate))
        self.port = None if self._server is None else self._server.port

    def export(self, observation: Observation) -> None:
        """Show one observation in place of the run's last."""
        self._metrics.add(observation)
        self._write()
        self._push_run(observation.run)

    def show_states(self, state: RunState, run: str | None = None) -> None:
        """Show what a run (or every one) is doing; until told otherwise it is in training.

        Disabled it stays, however it ends, for nobody has watched it to its end.
        """
        for known in [run] if run else list(self._metrics.latest):
            if self._metrics.states.get(known) != "disabled":
                self._metrics.states[known] = state
                self._push_run(known)
        self._write()

    def show_way_back(self, observation: Observation, checkpoints: Sequence[int]) -> None:
        """Show what a run could go back to: call it before `export`."""
        last_ok = observation.judgement.state.last_ok
        self._metrics.way_back[observation.run] = (last_ok, tuple(checkpoints))

    def _push_run(self, run: str) -> None:
        """Push a run's metrics under its own name, for a gateway allows no other label `run`."""
        if self._push is None:
            return
        if run not in self._pushers:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(OneRun(self._metrics, run))
            self._pushers[run] = Pusher(
                self._push, registry, run, on_error=lambda: self.error("pushgateway")
            )
        self._pushers[run].push()

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
        for known in (self._metrics.latest, self._metrics.states, self._metrics.way_back):
            known.pop(run, None)
        if pusher := self._pushers.pop(run, None):
            pusher.close()

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
        except (OSError, WVMonitorError) as error:
            self.error("textfile")
            logger.warning("metrics not written to '%s': %s", self._textfile, error)

    def write_textfile(self, path: Path) -> None:
        """Write the metrics to `path` in one step, so that no reader meets half a file."""
        with replacing(path) as descriptor:
            write_all(descriptor, self.page())

    def close(self) -> None:
        """Stop serving. A textfile stays, so that the run's last values can still be read."""
        server, self._server, self.port = self._server, None, None
        if server is not None:
            server.close(self.linger)  # at once, or after one more scrape
            self._closing = server
        for pusher in self._pushers.values():
            pusher.close(wait=0.0)  # all at once
        for pusher in self._pushers.values():
            pusher.close()
            if not pusher.works:
                break  # a gateway that does not answer one run answers none

    def wait_closed(self, timeout: float) -> None:
        """Wait until the last values were scraped, or deleted from the gateway."""
        end = time.monotonic() + timeout
        for part in (self._closing, *self._pushers.values()):
            if part is not None:
                part.wait_closed(max(end - time.monotonic(), 0.0))
