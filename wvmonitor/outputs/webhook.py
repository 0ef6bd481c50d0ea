"""Alerts as signed JSON to any receiver, in the form of the Standard Webhooks specification.

https://www.standardwebhooks.com: `webhook-id` (the idempotency key: the same when an alert is sent
again), `webhook-timestamp` (seconds since 1970) and `webhook-signature` ("v1," and the base64 of
the HMAC-SHA256 of `id.timestamp.body`). Libraries that verify it exist in most languages; here it
is `verify_signature`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from wvmonitor.errors import SettingsError
from wvmonitor.journal import codec
from wvmonitor.journal.alerts import Alert
from wvmonitor.outputs.http import SendPolicy, check_url, request


@dataclass(frozen=True)
class WebhookNotifier:
    """POSTs `{"type": "wvmonitor.alert", "schema_version": 1, "data": {...the alert}}`.

    Attributes:
        secret: the key that signs; "whsec_" and base64, or any text.
        forgetful: a webhook's receiver remembers, so nothing is repeated.
    """

    url: str = field(repr=False)
    secret: str = field(repr=False)
    policy: SendPolicy = field(default_factory=SendPolicy)
    forgetful: bool = False

    def __post_init__(self) -> None:
        check_url(self.url, self.policy)
        _key(self.secret)

    def send(self, alert: Alert, timeout: float) -> None:
        """Deliver one alert."""
        content = {"type": "wvmonitor.alert", "schema_version": 1, "data": codec.plain(alert)}
        body = json.dumps(content).encode()
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": alert.key,
            "webhook-timestamp": stamp,
            "webhook-signature": signature(self.secret, alert.key, stamp, body),
        }
        request("POST", self.url, body, headers, self.policy, timeout)


def signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """The `webhook-signature` of one message."""
    content = b".".join((message_id.encode(), timestamp.encode(), body))
    digest = hmac.new(_key(secret), content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def verify_signature(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance: float = 300.0
) -> bool:
    """Whether a received message was signed with `secret` at most `tolerance` seconds ago.

    Header names are compared without regard to case.
    """
    by_name = {name.lower(): value for name, value in headers.items()}
    stamp = by_name.get("webhook-timestamp", "")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        return False
    if abs(time.time() - int(stamp)) > tolerance:
        return False
    expected = signature(secret, by_name.get("webhook-id", ""), stamp, body).encode()
    given = by_name.get("webhook-signature", "").encode().split(b" ")
    return any(hmac.compare_digest(expected, one) for one in given)


def _key(secret: str) -> bytes:
    """The bytes that sign."""
    if not secret.startswith("whsec_"):
        if not secret:
            raise SettingsError("a webhook's secret must not be empty: generate one")
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise SettingsError("a webhook's secret that begins with whsec_ must be base64") from None
