"""Metrics pushed to a Prometheus Pushgateway, for jobs that nothing can scrape.

One worker thread pushes the whole page of a run under the grouping key (job, run), so that a run
which is resumed replaces what it pushed before. Training only wakes the worker: a gateway that
hangs, refuses or is not there costs it nothing. Some seconds after the run's end its group is
deleted, or Prometheus would go on collecting the last values for ever.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, delete_from_gateway, push_to_gateway

from wvmonitor.outputs.http import SendPolicy, request

logger = logging.getLogger(__name__)

SEND_SECONDS = 10.0
LONGEST_WAIT = 60.0
CLOSE_SECONDS = 3.0
"""The longest that the end of training waits for the last push."""

ANYWHERE = SendPolicy(allow_http=True, allow_private=("0.0.0.0/0", "::/0"))
"""A gateway stands in one's own network; the settings see that a token only goes over https."""


@dataclass(frozen=True)
class PushTarget:
    """Where to push, and how often.

    Attributes:
        interval: least seconds between two pushes.
        delete_after: seconds after the end at which the group is deleted; None never does.
    """

    url: str
    job: str = "wvmonitor"
    token: str | None = field(default=None, repr=False)
    interval: float = 5.0
    delete_after: float | None = 20.0


class Pusher:
    """Pushes a registry under one grouping key whenever it is woken, from a thread of its own."""

    def __init__(
        self,
        target: PushTarget,
        registry: CollectorRegistry,
        run: str,
        on_error: Callable[[], None],
    ) -> None:
        self._target = target
        self._registry = registry
        self._with: dict[str, Any] = {
            "grouping_key": {"run": run},
            "timeout": SEND_SECONDS,
            "handler": self._handler,
        }
        self._on_error = on_error
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._sent = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._work, name="wvmonitor-push", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def push(self) -> None:
        """Ask for a push soon; returns at once."""
        self._wake.set()

    def close(self, wait: float | None = None) -> None:
        """Ask for the last push, wait a moment for it, and leave the deletion for later."""
        self._closing.set()
        self._wake.set()
        self._sent.wait(CLOSE_SECONDS if wait is None else wait)

    @property
    def works(self) -> bool:
        """Whether the last push arrived."""
        return self._sent.is_set() and self._failures == 0

    def wait_closed(self, timeout: float) -> None:
        """Wait until the group is deleted, once `close` was called."""
        if self._failures == 0:
            self._thread.join(timeout)

    def _at_exit(self) -> None:
        """Let the last values be scraped before the group is deleted with the process."""
        if not self._closing.is_set():
            self.close()
        self.wait_closed((self._target.delete_after or 0.0) + CLOSE_SECONDS)

    def _work(self) -> None:
        """The worker: push when woken, not more often than asked; at the end push and delete."""
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            if self._closing.is_set():
                break
            self._push()
            self._closing.wait(self._pause())
        self._push()
        self._sent.set()
        if self._target.delete_after is not None and self._failures == 0:
            time.sleep(self._target.delete_after)
            self._guarded(self._delete)
        atexit.unregister(self._at_exit)

    def _pause(self) -> float:
        """Seconds until the next push may be: longer while the gateway fails."""
        return float(min(self._target.interval * 2.0**self._failures, LONGEST_WAIT))

    def _push(self) -> None:
        place = (self._target.url, self._target.job)
        self._guarded(lambda: push_to_gateway(*place, self._registry, **self._with))

    def _delete(self) -> None:
        delete_from_gateway(self._target.url, self._target.job, **self._with)

    def _handler(
        self,
        url: str,
        method: str,
        timeout: float | None,
        headers: Sequence[tuple[str, str]],
        data: bytes,
    ) -> Callable[[], None]:
        token = self._target.token
        given = {**dict(headers), **({"Authorization": f"Bearer {token}"} if token else {})}
        return lambda: request(method, url, data, given, ANYWHERE, timeout or SEND_SECONDS)

    def _guarded(self, send: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            send()
        except Exception as error:  # noqa: BLE001  whatever a gateway does, training goes on
            self._on_error()
            if self._failures == 0:
                logger.warning(
                    "metrics not pushed to %s after %.1f s: %s; tried again with the next readings",
                    urlsplit(self._target.url).hostname,
                    time.monotonic() - began,
                    error,
                )
            self._failures = min(self._failures + 1, 16)
        else:
            if self._failures:
                logger.warning("metrics are pushed again")
            self._failures = 0
