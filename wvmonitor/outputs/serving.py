"""The training job's side of the metrics server: a socket, a small process, and a thread.

The thread renders the page when something has changed and hands it to the process; a scrape never
reaches the training job. The process ends with the job, whatever ends that: its standard input
ends then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict

from wvmonitor.outputs import server
from wvmonitor.outputs.server import BACKLOG, LENGTH, Access, MetricsServer

logger = logging.getLogger(__name__)

PORTS_TRIED = 50
STARTS = 3
"""A server process that dies (of memory, mostly) is started again, so many times in all."""

CLOSE_SECONDS = 3.0


def listen(host: str, port: int) -> socket.socket | None:
    """A socket on the first free port from `port` on; None, with a warning, if there is none."""
    last = min(port + PORTS_TRIED, 65536) if port else 1
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, last):
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, candidate))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                continue
            logger.warning("metrics are not served on %s:%d: %s", host, candidate, error)
            return None
        return listening
    logger.warning("metrics are not served: ports %d to %d are taken", port, last - 1)
    return None


class Serving:
    """A page being served, until closed; get one from `serve`.

    Attributes:
        port: the port that is listened on.
    """

    def __init__(
        self, listening: socket.socket, access: Access, render: Callable[[], bytes]
    ) -> None:
        self.port = int(listening.getsockname()[1])
        self._listening = listening
        self._access = access
        self._render = render
        self._turn = threading.Condition()
        self._wanted = 1
        self._shown = 0
        self._closing = False
        self._starts = 0
        self._inside: MetricsServer | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, name="wvmonitor-metrics", daemon=True)
        self._thread.start()

    def changed(self) -> int:
        """The page has changed: show the new one soon. Returns its number, at once."""
        with self._turn:
            self._wanted += 1
            self._turn.notify_all()
            return self._wanted

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until scrapes see the page as it was when this was called; whether they do."""
        number = self.changed()
        with self._turn:
            return self._turn.wait_for(lambda: self._shown >= number, timeout)

    def close(self) -> None:
        """Stop serving."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        self._thread.join(CLOSE_SECONDS)
        with contextlib.suppress(OSError):  # a forked data-loader worker may hold it, too
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _work(self) -> None:
        """Show the page whenever it has changed."""
        try:
            while True:
                with self._turn:
                    self._turn.wait_for(lambda: self._closing or self._wanted > self._shown)
                    number = self._wanted
                if self._closing:
                    return
                self._show(self._render())
                with self._turn:
                    self._shown = number
                    self._turn.notify_all()
        except Exception:  # training must not die of it, nor miss it
            logger.exception("metrics are not served any more")
        finally:
            self._stop()

    def _show(self, page: bytes) -> None:
        """Hand the page to the process, which is started if it does not run."""
        while self._inside is None:
            if self._process is None and not self._start():
                self._inside = MetricsServer(self._listening.dup(), self._access)
                threading.Thread(target=self._inside.serve_forever, daemon=True).start()
                break
            try:
                self._send(page)
            except OSError:
                logger.warning("the process that serves metrics has died: another one is started")
                self._stop()
            else:
                return
        self._inside.page = page

    def _start(self) -> bool:
        """Start the server process; False where that cannot be (then threads of ours serve)."""
        self._starts += 1
        if os.name != "posix" or not sys.executable or self._starts > STARTS:
            return False
        descriptor = self._listening.fileno()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # a file of ours
                [sys.executable, "-I", "-S", server.__file__, str(descriptor)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                start_new_session=True,  # Ctrl-C is the training job's to handle
            )
            self._write(json.dumps(asdict(self._access)).encode())
        except OSError as error:
            logger.warning("metrics are served by a thread of the job itself (%s)", error)
            self._stop()
            return False
        return True

    def _send(self, page: bytes) -> None:
        self._write(page)
        assert self._process is not None  # noqa: S101  `_show` sees to it
        assert self._process.stdout is not None  # noqa: S101
        if not self._process.stdout.read(1):
            raise BrokenPipeError

    def _write(self, frame: bytes) -> None:
        assert self._process is not None  # noqa: S101  `_show` sees to it
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(LENGTH.pack(len(frame)) + frame)
        self._process.stdin.flush()

    def _stop(self) -> None:
        """End the process, or the threads, that serve."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._inside is not None and self._closing:
            self._inside.close()


def serve(
    render: Callable[[], bytes], host: str, port: int, access: Access | None = None
) -> Serving | None:
    """Serve what `render` returns; None, with a warning, where no port can be had."""
    listening = listen(host, port)
    if listening is None:
        return None
    access = access or Access()
    serving = Serving(listening, access, render)
    log = logger.warning if port not in (0, serving.port) else logger.info
    scheme = "https" if access.certificate else "http"
    log("metrics are served on %s://%s:%d/metrics", scheme, host, serving.port)
    return serving
