"""The real Debian programs on loopback, in folders of their own, each stopped by its own id."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.observability.programs import Receiver, free_port, require, wait_for

Launch = Callable[..., str]


@pytest.fixture(scope="module")
def webhook() -> Iterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs of a module keep their data."""
    return tmp_path_factory.mktemp("observability")


@pytest.fixture(scope="module")
def launch(folder: Path) -> Iterator[Launch]:
    """Starts a program with a listening address, and returns its URL once it is ready."""
    running: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: object) -> str:
        require(program)
        port = free_port()
        with (folder / f"{program}.log").open("ab") as log:
            running.append(
                subprocess.Popen(
                    [program, *map(str, arguments), f"--web.listen-address=127.0.0.1:{port}"],
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as reply:  # noqa: S310
                return bool(reply.status == 200)

        wait_for(ready)
        return url

    yield start
    for process in reversed(running):
        process.terminate()
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
