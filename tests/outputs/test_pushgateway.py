"""Pushing to gateways that work, refuse, hang, or are not there."""
# ruff: noqa: S106  tokens of tests

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from wvmonitor.outputs import pushgateway
from wvmonitor.outputs.exporter import Observation
from wvmonitor.outputs.prometheus import PrometheusExporter
from wvmonitor.outputs.pushgateway import PushTarget

Make = Callable[..., Observation]


class Gateway:
    """Keeps what it is sent; answers 202, or what it is told to."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None, bytes]] = []
        self.status = 202
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = self.headers.get("Authorization")
                gateway.requests.append((self.command, self.path, token, body))
                self.send_response(gateway.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_DELETE = do_PUT  # noqa: N815  the name http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway on loopback."""
    gateway = Gateway()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def target(url: str, **values: Any) -> PushTarget:
    return PushTarget(**{"url": url, "interval": 0.05, "delete_after": 0.1, **values})


def test_readings_are_pushed_and_deleted_at_the_end(
    gateway: Gateway, make_observation: Make
) -> None:
    """The last reading is pushed before the run's group is deleted, under job and run."""
    exporter = PrometheusExporter(port=None, push=target(gateway.url, token="t"))
    exporter.export(make_observation(step=1, run="r"))
    until(lambda: gateway.requests)
    exporter.export(make_observation(step=2, run="r"))
    exporter.close()
    assert b'wvmonitor_global_step{run="r"} 2.0' in gateway.requests[-1][3]
    until(lambda: gateway.requests[-1][0] == "DELETE")
    assert {r[1] for r in gateway.requests} == {"/metrics/job/wvmonitor/run/r"}
    assert {r[2] for r in gateway.requests} == {"Bearer t"}


def test_pushes_are_no_more_frequent_than_asked(gateway: Gateway, make_observation: Make) -> None:
    """A thousand readings within an interval are one or two pushes."""
    exporter = PrometheusExporter(port=None, push=target(gateway.url, interval=5.0))
    for step in range(1000):
        exporter.export(make_observation(step=step))
    time.sleep(0.3)
    assert len(gateway.requests) <= 2
    exporter.close()


def test_a_group_is_kept_where_that_is_asked(gateway: Gateway, make_observation: Make) -> None:
    """Without deletion the last values stay at the gateway."""
    exporter = PrometheusExporter(port=None, push=target(gateway.url, delete_after=None))
    exporter.export(make_observation())
    exporter.close()
    time.sleep(0.3)
    assert {r[0] for r in gateway.requests} == {"PUT"}


@pytest.mark.parametrize("kind", ["refused", "hanging", "failing"])
def test_a_gateway_that_is_no_use_never_delays_training(
    gateway: Gateway,
    make_observation: Make,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the gateway does costs training nothing, its end a moment, and it is said once."""
    monkeypatch.setattr(pushgateway, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(pushgateway, "SEND_SECONDS", 1.0)
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    if kind == "hanging":
        silent.listen(8)
    gateway.status = 500
    url = gateway.url if kind == "failing" else f"http://127.0.0.1:{silent.getsockname()[1]}"
    exporter = PrometheusExporter(port=None, push=target(url))
    observations = [make_observation(step=step) for step in range(50)]
    with caplog.at_level(logging.WARNING):
        start = time.perf_counter()
        for observation in observations:
            exporter.export(observation)
        assert time.perf_counter() - start < 0.5
        until(lambda: b'wvmonitor_errors_total{where="pushgateway"}' in exporter.page())
        start = time.perf_counter()
        exporter.close()
        assert time.perf_counter() - start < 1.5
    assert sum("metrics not pushed" in r.message for r in caplog.records) == 1
    silent.close()


def test_a_gateway_that_comes_back_gets_the_latest(
    gateway: Gateway, make_observation: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """After an outage the next reading is pushed, and the log says so."""
    gateway.status = 503
    exporter = PrometheusExporter(port=None, push=target(gateway.url))
    exporter.export(make_observation(step=1))
    until(lambda: gateway.requests)
    gateway.status = 202
    with caplog.at_level(logging.WARNING):
        exporter.export(make_observation(step=7))
        until(lambda: "pushed again" in caplog.text)
    assert b"wvmonitor_global_step{" in gateway.requests[-1][3]
    exporter.close()
