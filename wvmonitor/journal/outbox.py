"""Deliveries: every alert in the journal reaches its notifier at least once, or it is said why not.

Alerts are written in the same transaction as the verdict they follow from (`writes.reading`), so
that none is lost between the two. One worker thread sends them, in order for each target, and notes
the outcome in the journal. If the process dies in between, the alert is sent again after the next
start, with the same key. Training never waits for any of this.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from wvmonitor.errors import JournalError
from wvmonitor.journal import codec
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.journal import Journal
from wvmonitor.journal.schema import connect

logger = logging.getLogger(__name__)

Send = Callable[[Alert, float], None]
"""Deliver an alert within so many seconds, or raise `DeliveryError`."""


class DeliveryError(Exception):
    """A notifier could not deliver. Users meet it in the log and in the journal only.

    Attributes:
        retryable: whether the same delivery may succeed later (timeouts, 5xx), or never will.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class DeliveryLimits:
    """How long to try.

    Attributes:
        send_seconds: total time for one try, from name look-up to the last byte of the reply.
        give_up_seconds: age at which an alert that could not be delivered is given up.
        first_wait_seconds: pause after the first failure; it doubles each time.
        longest_wait_seconds: the most that pause grows to.
    """

    send_seconds: float = 10.0
    give_up_seconds: float = 86_400.0
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 300.0


@dataclass(frozen=True)
class _Delivery:
    id: int
    target: str
    attempts: int
    created: float
    next_at: float
    alert: Alert


class Outbox:
    """Sends what the journal's transactions put into `deliveries`. Close it before the journal."""

    def __init__(
        self,
        journal: Journal,
        senders: Mapping[str, Send],
        *,
        limits: DeliveryLimits | None = None,
        on_pending: Callable[[int], None] | None = None,
    ) -> None:
        self._journal = journal
        self._senders = dict(senders)
        self._limits = limits or DeliveryLimits()
        self._on_pending = on_pending
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        journal.on_commit = self._wake.set
        self._thread = threading.Thread(target=self._work, name="wvmonitor-outbox", daemon=True)
        self._thread.start()

    def pending(self) -> int:
        """How many deliveries still wait, of this run and earlier ones in this journal."""
        with closing(connect(self._journal.path, query_only=True)) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM deliveries WHERE status = 'pending'"
            ).fetchone()
        return int(count)

    def close(self, timeout: float = 5.0) -> None:
        """Try what waits once more, for at most `timeout` seconds; the rest stays for next time."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout + 1.0)
        self._journal.on_commit = None

    def _work(self) -> None:
        """The worker thread: send what is due, then sleep until something is."""
        while True:
            self._wake.clear()
            last = self._closing.is_set()
            try:
                pause = self._pass(everything=last)
            except (sqlite3.Error, JournalError) as error:
                logger.warning("deliveries wait: %s", error)
                pause = 5.0
            except Exception:  # a worker that dies would silence every later alert
                logger.exception("a delivery failed in a way nobody foresaw")
                pause = 60.0
            if last:
                return
            if not self._closing.is_set():
                self._wake.wait(pause)

    def _pass(self, *, everything: bool) -> float:
        """Send every head of a target's queue that is due; returns seconds until the next is."""
        tried: set[str] = set()
        while True:
            now = time.time()
            heads = [d for d in self._heads() if d.target not in tried]
            due = [d for d in heads if everything or self._due(d, now)]
            if not due or time.monotonic() >= self._deadline:
                break
            for delivery in due:
                if not self._try(delivery):
                    tried.add(delivery.target)
        if self._on_pending is not None:
            self._on_pending(self.pending())
        waits = [d.next_at - time.time() for d in self._heads()]
        return min(max(min(waits, default=60.0), 0.02), 60.0)

    def _due(self, delivery: _Delivery, now: float) -> bool:
        """Whether its pause is over; one longer than any means that the clock was set back."""
        left = delivery.next_at - now
        return left <= 0 or left > 2 * self._limits.longest_wait_seconds

    def _heads(self) -> list[_Delivery]:
        """The oldest waiting delivery of each target: alerts keep their order."""
        with closing(connect(self._journal.path, query_only=True)) as connection:
            rows = connection.execute(
                "SELECT min(id), target, attempts, created, next_at, alert FROM deliveries "
                "WHERE status = 'pending' GROUP BY target"
            ).fetchall()
        where = str(self._journal.path)
        return [
            _Delivery(i, target, attempts, created, next_at, codec.read(Alert, text, where))
            for i, target, attempts, created, next_at, text in rows
            if target in self._senders
        ]

    def _try(self, delivery: _Delivery) -> bool:
        """Send once and keep the outcome; True if the target's queue can move on."""
        limits = self._limits
        seconds = max(min(limits.send_seconds, self._deadline - time.monotonic()), 0.1)
        status, message = "sent", None
        try:
            self._senders[delivery.target](delivery.alert, seconds)
        except DeliveryError as error:
            status, message = ("pending" if error.retryable else "refused"), str(error)
        except Exception as error:  # noqa: BLE001  # a notifier's bug must not stop the others
            status, message = "pending", f"{type(error).__name__} in notifier {delivery.target!r}"
        now = time.time()
        if status == "pending" and now - delivery.created > limits.give_up_seconds:
            status = "expired"
        attempts = delivery.attempts + 1
        next_at = now + self._pause(attempts)
        if message is not None:
            logger.warning(
                "alert on %r not delivered to %r (try %d, %s): %s",
                delivery.alert.reference,
                delivery.target,
                attempts,
                "tried again later" if status == "pending" else status,
                message,
            )
        self._journal.execute(
            lambda connection: (
                connection.execute(
                    "UPDATE deliveries SET status = ?, attempts = ?, next_at = ?, done = ?, "
                    "last_error = ? WHERE id = ?",
                    (
                        status,
                        attempts,
                        next_at,
                        None if status == "pending" else now,
                        message,
                        delivery.id,
                    ),
                )
                and None
            )
        )
        return status != "pending"

    def _pause(self, attempts: int) -> float:
        """Seconds until the next try: exponential, with jitter, so that senders do not gang up."""
        first, longest = self._limits.first_wait_seconds, self._limits.longest_wait_seconds
        return min(first * (2.0 ** min(attempts - 1, 60) + random.random()), longest)  # noqa: S311
