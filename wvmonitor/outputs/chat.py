"""Alerts to Slack, mail and a hundred other services, through apprise (the `apprise` extra).

What a service is called and how it is reached is apprise's own: https://appriseit.com/services/.
Its URLs carry tokens, so they are secrets here. Unlike the other notifiers, apprise follows its
services' own rules about redirects and addresses, and chat has no idempotency key: an alert whose
answer was lost may be seen twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.outbox import DeliveryError


@dataclass(frozen=True)
class ChatNotifier:
    """Sends each alert as a short message.

    Attributes:
        forgetful: people remember, so nothing is repeated.

    Raises:
        SettingsError: apprise is not installed, or does not understand the URL.
    """

    url: str = field(repr=False)
    forgetful: bool = False

    def __post_init__(self) -> None:
        self._service()

    def send(self, alert: Alert, timeout: float) -> None:
        """Deliver one alert."""
        service = self._service()
        service.socket_connect_timeout = service.socket_read_timeout = timeout / 2
        kind = "success" if alert.status == "resolved" else _KINDS[alert.severity]
        try:
            arrived = service.notify(title=alert.title, body=body(alert), notify_type=kind)
        except Exception as error:  # noqa: BLE001  a service's plugin may raise what it likes
            raise DeliveryError(f"apprise: {type(error).__name__}", retryable=True) from None
        if not arrived:
            raise DeliveryError(f"{service.service_name} did not take the message", retryable=True)

    def _service(self) -> Any:
        try:
            from apprise import Apprise
        except ModuleNotFoundError:
            raise SettingsError(
                "alerts to chat and mail need apprise: pip install 'wvmonitor[apprise]'"
            ) from None
        service = Apprise.instantiate(self.url, suppress_exceptions=True)
        if service is None:
            scheme, marked, _ = self.url.partition("://")  # without the mark it may be a bare token
            what = (
                f"its scheme is {scheme[:20]!r}" if marked else "it has no scheme, as in slack://…"
            )
            raise SettingsError(
                f"apprise does not understand a notifier's url ({what}): see "
                "https://appriseit.com/services/"
            )
        return service


_KINDS = {"info": "info", "warn": "warning", "alarm": "failure"}


def body(alert: Alert) -> str:
    """What is to be said, then what is known, a line each."""
    return "\n".join(
        [alert.words, *(f"{name.replace('_', ' ')}: {text}" for name, text in alert.facts.items())]
    )
