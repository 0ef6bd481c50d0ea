"""What a notifier must be able to do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from wvmonitor.journal.alerts import Alert


class Notifier(Protocol):
    """Tells someone about an alert. Called by the outbox's worker, never on the training thread."""

    @property
    def forgetful(self) -> bool:
        """Whether the receiver forgets what is not repeated, so that open alerts must be."""

    def send(self, alert: Alert, timeout: float) -> None:
        """Deliver `alert` within `timeout` seconds in all, possibly not for the first time.

        Raises:
            DeliveryError: it did not arrive; `retryable` says whether to try again.
        """


@runtime_checkable
class Attending(Protocol):
    """A notifier that must see something on the training thread before it can deliver."""

    def attend(self) -> None:
        """Called on the training thread at each reading; returns at once."""
