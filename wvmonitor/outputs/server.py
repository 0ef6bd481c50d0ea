"""The HTTP server that Prometheus scrapes: one page, who may have it, and over TLS if asked.

It runs as a small process of its own (`serving.py` starts this file as a script, so it needs the
standard library only): answering takes several turns of Python's global lock, and a training loop
that is busy in Python gives them out at 5 ms each, which 50 scrapes a second do not survive.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import ssl
import struct
import sys
import threading
import weakref
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LENGTH = struct.Struct("!Q")
BACKLOG = 128  # the default of 5 makes p99 a whole second at 50 scrapes a second


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


class MetricsServer(ThreadingHTTPServer):
    """Serves `page` at /metrics on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, access: Access) -> None:
        address: Any = listening.getsockname()
        super().__init__(address, _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_address = address
        self.page = b""
        self.token = access.token
        self._tls = access.context()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; a TLS handshake is left to its own thread, so none waits for it."""
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._open.add(connection)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of scrapers that hang up, or do not speak TLS."""

    def close(self) -> None:
        """Stop serving, also on connections that a scraper keeps open for the next time."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    timeout = 60.0
    protocol_version = "HTTP/1.1"
    server_version = "wvmonitor"
    sys_version = ""
    wbufsize = -1  # headers and page in one packet
    server: MetricsServer

    def do_GET(self) -> None:
        if not self._allowed():
            self._answer(401, b"a bearer token is needed\n", ("WWW-Authenticate", "Bearer"))
        elif self.path.split("?")[0] in ("/", "/metrics"):
            self._answer(200, self.server.page)
        else:
            self._answer(404, b"metrics are at /metrics\n")

    def _allowed(self) -> bool:
        if self.server.token is None:
            return True
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")  # as it was read
        return hmac.compare_digest(given, f"Bearer {self.server.token}".encode())

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Scrapes are not worth a line each."""


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next message: eight bytes of length, then as many bytes; None when the sender is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def main() -> None:
    """Serve on the socket that was handed over, until standard input ends: the job's own end."""
    access = Access(**json.loads(read_frame(sys.stdin.buffer) or b"{}"))
    server = MetricsServer(socket.socket(fileno=int(sys.argv[1])), access)
    server.page = read_frame(sys.stdin.buffer) or b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.buffer.write(b"1")  # each page is acknowledged, so that a flush can wait for it
    sys.stdout.buffer.flush()
    while (page := read_frame(sys.stdin.buffer)) is not None:
        server.page = page
        sys.stdout.buffer.write(b"1")
        sys.stdout.buffer.flush()
    os._exit(0)  # scrapers that are connected do not keep it


if __name__ == "__main__":
    main()
