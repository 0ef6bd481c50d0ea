"""Chat and mail through the real apprise: here its ntfy service, on loopback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import Alert
from wvmonitor.journal.outbox import DeliveryError
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.chat import ChatNotifier

Make = Callable[..., Alert]


def test_an_alert_arrives_as_a_short_message(receiver: Any, make_alert: Make) -> None:
    """Run, reference and step in the title, the verdict's sentence in the body."""
    notifier = ChatNotifier(f"ntfy://127.0.0.1:{receiver.port}/alerts")
    notifier.send(make_alert(), timeout=5)
    ((_, _, body),) = receiver.received
    sent = json.loads(body)
    assert sent["title"] == "alarm: evil in r at step 40"
    assert sent["message"].splitlines()[:2] == ["score 0.2 above 0.1", "score: 0.2"]


def test_the_end_of_an_episode_says_so(make_alert: Make) -> None:
    """Nobody should take a resolved alert for a new one."""
    assert make_alert(status="resolved", step=None).title == "evil in r: over"


def test_a_refusal_is_tried_again(receiver: Any, make_alert: Make) -> None:
    """Apprise says only that it failed, so every failure may pass."""
    receiver.answers = [500]
    notifier = ChatNotifier(f"ntfy://127.0.0.1:{receiver.port}/alerts")
    with pytest.raises(DeliveryError) as refused:
        notifier.send(make_alert(), timeout=2)
    assert refused.value.retryable


def test_a_hanging_service_does_not_hold_the_worker(receiver: Any, make_alert: Make) -> None:
    """The time limit reaches apprise's sockets."""
    receiver.answers = ["hang"]
    notifier = ChatNotifier(f"ntfy://127.0.0.1:{receiver.port}/alerts")
    with pytest.raises(DeliveryError):
        notifier.send(make_alert(), timeout=1)


def test_a_url_that_apprise_does_not_know_is_refused_before_training() -> None:
    """Only the scheme is repeated: the rest is a secret."""
    with pytest.raises(SettingsError, match="nosuch") as refused:
        MonitorSettings(notifiers=[{"kind": "chat", "url": "nosuch://t0ken"}]).build_notifiers()
    assert "t0ken" not in str(refused.value)
    with pytest.raises(SettingsError, match="it has no scheme") as refused:
        MonitorSettings(notifiers=[{"kind": "chat", "url": "xoxb-t0ken"}]).build_notifiers()
    assert "t0ken" not in str(refused.value)


def test_without_apprise_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional dependency says how to get it."""
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(SettingsError, match=r"wvmonitor\[apprise\]"):
        ChatNotifier("ntfy://127.0.0.1/alerts")


def test_the_url_is_never_shown(receiver: Any) -> None:
    """It carries the service's token."""
    url = "ntfy://t0ken@127.0.0.1:1/alerts"
    settings = MonitorSettings(notifiers=[{"kind": "chat", "url": url}])
    shown = repr(settings.build_notifiers()) + settings.redacted_json() + repr(settings)
    assert "t0ken" not in shown
