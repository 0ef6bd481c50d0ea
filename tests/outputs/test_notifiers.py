"""What receivers get, and where alerts never go."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wvmonitor.errors import SettingsError
from wvmonitor.journal.alerts import Alert, Whereabouts, event, located
from wvmonitor.journal.outbox import DeliveryError
from wvmonitor.outputs import http as http_module
from wvmonitor.outputs.alertmanager import AlertmanagerNotifier
from wvmonitor.outputs.http import SendPolicy, request
from wvmonitor.outputs.webhook import WebhookNotifier, verify_signature

Make = Callable[..., Alert]


def failure(url: str, timeout: float = 5.0, policy: SendPolicy | None = None) -> DeliveryError:
    """The error with which one POST fails."""
    with pytest.raises(DeliveryError) as caught:
        request("POST", url, b"{}", {}, policy or SendPolicy(), timeout)
    return caught.value


def test_alertmanager_gets_a_valid_alert(receiver: Any, make_alert: Make) -> None:
    """Alertmanager is sent what its API v2 takes: labels, annotations, times and the token."""
    notifier = AlertmanagerNotifier(receiver.url + "/", "t0ken", {"team": "safety"})
    notifier.send(make_alert(), 5.0)
    ((path, headers, body),) = receiver.received
    assert path == "/api/v2/alerts"
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == [{
        "labels": {
            "alertname": "WVMonitorDrift", "run": "r", "reference": "evil",
            "severity": "critical", "team": "safety",
        },
        "annotations": {
            "summary": "Run r drifts towards evil", "description": "score 0.2 above 0.1",
            "calibration": "calibrated", "score": "0.2", "threshold": "0.1", "step": "40",
            "go_back_to": "the base: no earlier reading is known to be ok",
        },
        "startsAt": "2023-11-14T22:13:20+00:00",
        "endsAt": "2023-11-15T22:15:00+00:00",
    }]  # fmt: skip


def test_a_page_says_all_that_is_asked(receiver: Any, make_alert: Make) -> None:
    """How bad, how far, where, what to go back to and what to read are in one page."""
    where = Whereabouts(
        host="gpu-7",
        job="slurm 4711",
        runbooks="https://docs.example.org/alerts/",
        dashboard="https://grafana.example.org/d/wvmonitor?orgId=1",
        checkpoints=lambda run: (20, 40),
    )
    alert = located(make_alert(run="a/b"), where, planned_steps=60, dose=0.42, last_ok_step=30)
    AlertmanagerNotifier(receiver.url).send(alert, 5.0)
    found = json.loads(receiver.received[0][2])[0]["annotations"]
    assert {key: found[key] for key in alert.facts} == {
        "score": "0.2",
        "threshold": "0.1",
        "step": "40",
        "planned_steps": "60",
        "dose": "as if 0.42 × evil had been added to the base",
        "go_back_to": "checkpoint-20",
        "host": "gpu-7",
        "job": "slurm 4711",
        "runbook_url": "https://docs.example.org/alerts/WVMonitorDrift/",
        "dashboard_url": "https://grafana.example.org/d/wvmonitor?orgId=1"
        "&var-run=a%2Fb&var-reference=evil",
    }


@pytest.mark.parametrize(
    ("kind", "name", "title"),
    [
        ("unjudged", "WVMonitorUnjudged", "info: r cannot be judged for evil"),
        ("disabled", "WVMonitorDisabled", "info: r is not watched any more"),
        ("journal lost", "WVMonitorJournalLost", "info: r has lost its journal"),
    ],
)
def test_events_are_alerts_of_their_own(receiver: Any, kind: Any, name: str, title: str) -> None:
    """What is no drift has its own name, and the lowest severity."""
    told = event(kind, "r", "why", 1.0, reference="evil" if kind == "unjudged" else "")
    AlertmanagerNotifier(receiver.url).send(told, 5.0)
    (alert,) = json.loads(receiver.received[0][2])
    assert alert["labels"]["alertname"] == name
    assert alert["labels"]["severity"] == "info"
    assert alert["annotations"]["summary"] == title
    assert alert["annotations"]["description"] == "why"


def test_alertmanager_alerts_resolve(receiver: Any, make_alert: Make) -> None:
    """When an episode is over, the same labels come again with an end."""
    notifier = AlertmanagerNotifier(receiver.url)
    notifier.send(make_alert(), 5.0)
    notifier.send(make_alert(status="resolved"), 5.0)
    (fired,), (resolved,) = (json.loads(body) for _, _, body in receiver.received)
    assert fired["labels"] == resolved["labels"]
    assert resolved["endsAt"] == "2023-11-14T22:15:00+00:00"
    assert resolved["startsAt"] == fired["startsAt"]


def test_a_warning_that_becomes_an_alarm_ends_the_warning(receiver: Any, make_alert: Make) -> None:
    """When a warning rises to an alarm, one request fires the alarm and resolves the warning."""
    AlertmanagerNotifier(receiver.url).send(make_alert(replaces="warn"), 5.0)
    alerts = json.loads(receiver.received[0][2])
    ends = {alert["labels"]["severity"]: alert["endsAt"] for alert in alerts}
    assert ends == {"critical": "2023-11-15T22:15:00+00:00", "warning": "2023-11-14T22:15:00+00:00"}


@pytest.mark.parametrize(
    "secret", ["plain text", "whsec_" + base64.b64encode(b"0123456789abcdef").decode()]
)
def test_webhooks_are_signed(receiver: Any, make_alert: Make, secret: str) -> None:
    """A webhook carries its idempotency key and a signature by the standard's formula."""
    WebhookNotifier(receiver.url + "/hook?x=1", secret).send(make_alert(score=float("nan")), 5.0)
    ((path, headers, body),) = receiver.received
    assert path == "/hook?x=1"
    content = json.loads(body, parse_constant=pytest.fail)
    assert (content["type"], content["data"]["reference"]) == ("wvmonitor.alert", "evil")
    assert headers["webhook-id"] == "k" * 32
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    assert verify_signature(secret, headers, body)
    assert verify_signature(secret, {k.title(): v for k, v in headers.items()}, body)


def test_forged_and_replayed_webhooks_do_not_verify(receiver: Any, make_alert: Make) -> None:
    """A changed body, another secret, an old message or a missing header does not verify."""
    WebhookNotifier(receiver.url, "secret").send(make_alert(), 5.0)
    ((_, headers, body),) = receiver.received
    assert not verify_signature("secret", headers, body + b" ")
    assert not verify_signature("other", headers, body)
    old = {**headers, "webhook-timestamp": str(int(time.time()) - 600)}
    assert not verify_signature("secret", old, body)
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        assert not verify_signature("secret", {**headers, name: ""}, body)


def test_a_bad_secret_is_refused_at_once() -> None:
    """An empty or malformed signing key is an error when the notifier is made."""
    for secret, match in (("", "must not be empty"), ("whsec_???", "must be base64")):
        with pytest.raises(SettingsError, match=match):
            WebhookNotifier("https://h.example", secret)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_passing_troubles_are_tried_again(receiver: Any, status: int) -> None:
    """Overload and server errors may pass, so the delivery is to be tried again."""
    receiver.answers = [status]
    error = failure(receiver.url)
    assert error.retryable
    assert str(error) == f"{receiver.url}/… answered {status}"


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 410, 422])
def test_refusals_are_final_and_redirects_are_not_followed(receiver: Any, status: int) -> None:
    """A receiver that says no is not asked again, and a redirect leads nowhere."""
    receiver.answers = [status]
    assert not failure(receiver.url).retryable
    assert len(receiver.received) == 1


@pytest.mark.parametrize("answer", ["hang", "trickle"])
def test_the_deadline_is_for_the_whole_exchange(receiver: Any, answer: str) -> None:
    """A receiver that never answers, or a byte at a time, is left when the time is up."""
    receiver.answers = [answer]
    start = time.monotonic()
    error = failure(receiver.url, timeout=0.4)
    assert error.retryable
    assert "no complete answer within 0.4 s" in str(error)
    assert time.monotonic() - start < 1.0


def test_a_huge_reply_is_not_read(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much a receiver answers, only a little is read."""
    receiver.answers = ["huge"]
    start = time.monotonic()
    request("POST", receiver.url, b"{}", {}, SendPolicy(), 5.0)
    assert time.monotonic() - start < 1.0


def test_nobody_there_is_tried_again(receiver: Any) -> None:
    """A dropped connection, a closed port and an unknown name are all passing troubles."""
    receiver.answers = ["drop"]
    assert failure(receiver.url).retryable
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = failure(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert error.retryable
    assert "refused" in str(error)


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "169.254.169.254", "127.0.0.1", "fd00::1", "224.0.0.1"]
)
def test_a_name_that_leads_inside_is_not_followed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public name that resolves to a private address is refused before anything is sent."""

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = failure("https://innocent.example/hook")
    assert not error.retryable
    assert f"private address {address}" in str(error)


def test_an_allowed_private_host_is_reached(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private address that is allowed by name or by network is sent to."""

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", receiver.port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for allowed in ("inside.example", "127.0.0.0/8"):
        policy = SendPolicy(allow_http=True, allow_private=(allowed,))
        request("POST", "http://inside.example/", b"{}", {}, policy, 5.0)
    assert len(receiver.received) == 2
    assert receiver.received[0][1]["Host"] == "inside.example"


def test_https_must_prove_itself(receiver: Any) -> None:
    """A server that speaks no TLS, or has no trusted certificate, is sent nothing."""
    error = failure(receiver.url.replace("http:", "https:"))
    assert error.retryable
    assert receiver.received == []


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="real part: no openssl, which makes the certificate"
)
def test_https_arrives_where_the_certificate_is_trusted(
    receiver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS alerts arrive only where the certificate is trusted and bears the host's name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    error = failure(f"https://localhost:{receiver.port}/")
    assert "certificate is not trusted" in str(error)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    request("POST", f"https://localhost:{receiver.port}/", b"{}", {}, SendPolicy(), 5.0)
    assert "certificate is not trusted" in str(failure(f"https://127.0.0.1:{receiver.port}/"))
    assert len(receiver.received) == 1
    receiver.answers = ["trickle"]
    start = time.monotonic()
    error = failure(f"https://localhost:{receiver.port}/", timeout=0.5)
    assert "no complete answer" in str(error)
    assert time.monotonic() - start < 1.5


def test_proxies_from_the_environment_are_not_used(
    receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alerts go to the receiver itself, whatever proxy the environment names."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    request("POST", receiver.url, b"{}", {}, SendPolicy(), 5.0)
    assert len(receiver.received) == 1


def test_a_token_that_cannot_be_sent_is_not_shown(receiver: Any, make_alert: Make) -> None:
    """A line break in a token is named as the cause, for good, and the token is not."""
    with pytest.raises(DeliveryError, match="Authorization cannot be sent") as caught:
        AlertmanagerNotifier(receiver.url, "hunter22\n").send(make_alert(), 5.0)
    assert not caught.value.retryable
    assert "hunter22" not in str(caught.value)
    assert receiver.received == []


def test_no_error_holds_a_secret(receiver: Any, make_alert: Make) -> None:
    """Neither the path of a URL nor a token shows in any delivery error or repr."""
    receiver.answers = [500, "drop", 302]
    notifier = AlertmanagerNotifier(receiver.url + "/T0KEN", "hunter22")
    for _ in range(3):
        with pytest.raises(DeliveryError) as caught:
            notifier.send(make_alert(), 5.0)
        assert "T0KEN" not in str(caught.value)
        assert "hunter22" not in str(caught.value)
    assert "hunter22" not in repr(notifier)
    assert "T0KEN" not in repr(notifier)
    assert http_module.redacted("http://[bad") == "(a malformed URL)"
