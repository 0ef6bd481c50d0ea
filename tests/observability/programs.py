"""What tests with the real Debian programs share: finding, waiting, receiving."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("prometheus", "promtool", "amtool", "prometheus-alertmanager", "prometheus-pushgateway")
EXAMPLES = Path(__file__).parents[2] / "examples" / "observability"


def require(*programs: str) -> None:
    """Skip where a program is missing, and say how to get it."""
    missing = [p for p in programs if shutil.which(p) is None]
    if missing:
        pytest.skip(f"real part: {', '.join(missing)} not installed (`make programs`)")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get_json(url: str) -> Any:
    """What an HTTP API answers."""
    with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  loopback
        return json.load(reply)


def wait_for(found: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first truthy answer, or a failure that shows the last one."""
    end = time.monotonic() + seconds
    answer: Any = None
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            answer = found()
            if answer:
                return answer
        time.sleep(0.1)
    raise AssertionError(f"nothing came within {seconds} s; the last answer was {answer!r}")


class Receiver:
    """A webhook receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.messages.append(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/alerts"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """Every alert received that has these labels."""
        return [
            alert
            for message in list(self.messages)
            for alert in message["alerts"]
            if labels.items() <= alert["labels"].items()
        ]
