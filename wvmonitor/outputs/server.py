"""The HTTP server that Prometheus scrapes: prometheus_client's, with a token, TLS and a farewell.

What is ours: the first free port, a bearer token, a TLS handshake that keeps nobody else waiting,
and staying for one last scrape, so that Prometheus learns how a run ended.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hmac
import logging
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from wvmonitor.errors import WVMonitorError
from wvmonitor.outputs.discovery import announce

logger = logging.getLogger(__name__)

PORTS_TRIED = 50
SCRAPED_LATELY_SECONDS = 180.0
"""Whoever has scraped within this time is expected to come once more."""


@dataclass(frozen=True)
class Access:
    """Who may scrape, and how.

    Attributes:
        token: the bearer token that a scraper must give, if it must.
        certificate: file with the certificate (chain) in PEM, to serve over TLS.
        key: file with its private key, where that is not in the same file.
        client_ca: file with the CA whose certificates clients must show, if they must.
    """

    token: str | None = field(default=None, repr=False)
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """TLS as a server speaks it; None for plain HTTP.

        Raises:
            ValueError: a file cannot be read, or certificate and key do not belong together.
        """
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(f"'{p}'" for p in (self.certificate, self.key, self.client_ca) if p)
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ValueError(f"no TLS with {files}: {why}") from None
        return context


def _no_password() -> str:
    """OpenSSL would ask at the terminal, and a training job would wait for ever."""
    raise ValueError("the key is protected by a passphrase: give one without")


class _Handler(WSGIRequestHandler):
    timeout = 60.0  # a scraper that says nothing does not keep its thread

    def log_message(self, *_: object) -> None:
        """Scrapes are not worth a line each."""


class _Server(ThreadingWSGIServer):
    request_queue_size = 128  # the default of 5 loses scrapers that come together
    tls: ssl.SSLContext | None = None

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called, as http.server does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """The next connection; its TLS handshake is left to its own thread, so that none waits."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of scrapers that hang up, or do not speak TLS."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class Serving:
    """Metrics being served, until closed; get one from `serve`."""

    def __init__(self, server: _Server, registry: CollectorRegistry, token: str | None) -> None:
        self.host, self.port = str(server.server_address[0]), int(server.server_address[1])
        self._server = server
        self._token = token
        self._metrics = make_wsgi_app(registry)
        self._last_scrape = -SCRAPED_LATELY_SECONDS
        self._scraped = threading.Event()
        self._farewell: threading.Thread | None = None
        self._announced: Path | None = None
        server.set_app(self._answer)
        threading.Thread(target=server.serve_forever, name="wvmonitor-metrics", daemon=True).start()

    def announce(self, folder: Path, *, tls: bool) -> None:
        """Let Prometheus find this server by a file in `folder`, for as long as it serves."""
        try:
            self._announced = announce(folder, self.host, self.port, tls=tls)
        except (OSError, WVMonitorError) as error:
            logger.warning("Prometheus will not find these metrics by '%s': %s", folder, error)
        atexit.register(self._withdraw)

    def _withdraw(self) -> None:
        path, self._announced = self._announced, None
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    def close(self, linger: float = 0.0) -> None:
        """Stop serving; where somebody scrapes, after the next scrape or `linger` seconds.

        Returns at once: only the process's end waits.
        """
        self._scraped.clear()
        expected = time.monotonic() - self._last_scrape < SCRAPED_LATELY_SECONDS
        if not (expected and linger):
            self._stop()
            return
        self._farewell = threading.Thread(target=self._wait, args=(linger,), daemon=True)
        self._farewell.start()
        atexit.register(self._farewell.join)

    def wait_closed(self, timeout: float) -> None:
        """Wait until serving has stopped, once `close` was called."""
        if self._farewell is not None:
            self._farewell.join(timeout)

    def _wait(self, linger: float) -> None:
        if self._scraped.wait(linger):
            time.sleep(0.1)  # the reply is on its way
        self._stop()

    def _stop(self) -> None:
        self._withdraw()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """One request: the metrics, to whoever may have them."""

        def refuse(status: str, words: bytes, *headers: tuple[str, str]) -> list[bytes]:
            start(status, [("Content-Type", "text/plain"), *headers])
            return [words]

        if not self._allowed(request):
            return refuse(
                "401 Unauthorized", b"a bearer token is needed\n", ("WWW-Authenticate", "Bearer")
            )
        if request["PATH_INFO"] not in ("/", "/metrics"):
            return refuse("404 Not Found", b"metrics are at /metrics\n")
        if request["REQUEST_METHOD"] == "HEAD":  # the headers of a GET
            head: list[Any] = []
            page = self._metrics({**request, "REQUEST_METHOD": "GET"}, lambda *h: head.extend(h))
            status, headers = head
            start(status, [*headers, ("Content-Length", str(sum(map(len, page))))])
            return [b""]
        reply: Iterable[bytes] = self._metrics(request, start)
        if request["REQUEST_METHOD"] == "GET":
            self._last_scrape = time.monotonic()
            self._scraped.set()
        return reply

    def _allowed(self, request: dict[str, Any]) -> bool:
        if self._token is None:
            return True
        given = request.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")  # as it was read
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())


def serve(
    registry: CollectorRegistry, host: str, port: int, access: Access | None = None
) -> Serving | None:
    """Serve a registry on the first free port from `port` on (0: any).

    Returns:
        What serves, or None, with a warning, where no port can be had.
    """
    access = access or Access()
    tls = access.context()
    server = _listen(host, port)
    if server is None:
        return None
    server.tls = tls
    serving = Serving(server, registry, access.token)
    log = logger.warning if port not in (0, serving.port) else logger.info
    log("metrics are served on %s://%s:%d/metrics", "https" if tls else "http", host, serving.port)
    return serving


def _listen(host: str, port: int) -> _Server | None:
    kind = _Server6 if ":" in host else _Server
    last = min(port + PORTS_TRIED, 65536) if port else 1
    for candidate in range(port, last):
        try:
            server: _Server = kind((host, candidate), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            logger.warning("metrics are not served on %s:%d: %s", host, candidate, error)
            return None
        return server
    logger.warning("metrics are not served: ports %d to %d are taken", port, last - 1)
    return None
