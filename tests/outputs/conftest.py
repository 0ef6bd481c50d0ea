"""An observation with everything in it, receivers on loopback, and an alert to send them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from wvmonitor.detection.judgement import Judgement
from wvmonitor.detection.scores import ReferenceScores, Scores
from wvmonitor.detection.verdict import State, Verdict
from wvmonitor.journal.alerts import Alert
from wvmonitor.outputs.exporter import Observation
from wvmonitor.reading import Products, Reading


def build(
    step: int = 40, cosine: float = 0.2, state: str = "warn", run: str = "r1", layers: int = 2
) -> Observation:
    """One observation of a model with two parameters a layer."""
    size = 2 * layers + 1
    reading = Reading(
        references=("evil", "language"),
        parameters=(
            *(f"model.layers.{i // 2}.mlp.{'up' if i % 2 else 'down'}" for i in range(2 * layers)),
            "lm_head.weight",
        ),
        components=(*["blocks"] * (2 * layers), "head"),
        geometries={
            "frobenius": Products(
                products=np.arange(2.0 * size).reshape(size, 2),
                squared_norms=np.full(size, 4.0),
                covered=np.array([True] * (2 * layers) + [False]),
            )
        },
        bank="f" * 64,
        step=step,
        progress=0.25,
    )
    scores = Scores(
        references={
            "evil": ReferenceScores(
                "evil",
                "behaviour",
                {
                    "frobenius": {"cosine": cosine, "residual": 0.1},
                    "response": {"cosine": float(np.float64(0.6))},
                },
                dose=0.4,
            ),
            "language": ReferenceScores(
                "language", "control", {"frobenius": {"cosine": float("nan")}}
            ),
        },
        norm=reading.norm(),
        coverage={"frobenius": 0.8, "response": 0.7},
        step=step,
        progress=0.25,
    )
    verdict = Verdict(
        "evil", State(state), "above", cosine, 0.15, "calibrated", step,
        geometry="frobenius", score_name="cosine",
    )  # fmt: skip
    judgement = Judgement(
        reading, scores, {"evil": verdict}, component_shares=reading.component_shares()
    )
    return Observation(run, judgement, 0.02, 1_700_000_000.5)


@pytest.fixture
def make_observation() -> Callable[..., Any]:
    """Builds an observation."""
    return build


class Receiver:
    """A real HTTP server that answers as told and keeps what it got."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[Any] = []  # statuses, or "hang", "trickle", "huge", "drop"; then 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((self.path, dict(self.headers.items()), body))
                answer = receiver.answers.pop(0) if receiver.answers else 200
                with contextlib.suppress(OSError):
                    receiver.answer(self, answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @staticmethod
    def answer(handler: BaseHTTPRequestHandler, answer: Any) -> None:
        if answer == "drop":
            handler.connection.close()
        elif answer == "hang":
            time.sleep(5)
        elif answer == "trickle":
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"z" * 100:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.05)
        elif answer == "huge":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            for _ in range(200):
                handler.wfile.write(b"x" * 100_000)
        else:
            handler.send_response(answer)
            if answer == 302:
                handler.send_header("Location", "/elsewhere")
            handler.send_header("Content-Length", "0")
            handler.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that takes everything unless told otherwise."""
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def make_alert() -> Callable[..., Alert]:
    """Builds an alert."""

    def build(**values: Any) -> Alert:
        return Alert(**{
            "key": "k" * 32, "run": "r", "reference": "evil", "status": "firing",
            "severity": "alarm", "replaces": None, "reason": "score 0.2 above 0.1", "score": 0.2,
            "threshold": 0.1, "calibration": "calibrated", "step": 40, "since": 1_700_000_000.0,
            "time": 1_700_000_100.0, **values,
        })  # fmt: skip

    return build
