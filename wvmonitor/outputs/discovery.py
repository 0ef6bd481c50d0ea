"""Files by which Prometheus finds the monitors of a machine, whatever ports they have (file_sd)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

from wvmonitor.files.atomic import write_text
from wvmonitor.outputs.run_state import this_host

_PID = "__meta_wvmonitor_pid"
"""A label that Prometheus drops: by it the next monitor clears away what kill −9 has left."""

ANSWER_SECONDS = 1.0
"""So long a monitor that may be dead has to take a connection."""


def announce(folder: Path, host: str, port: int, *, tls: bool) -> Path:
    """Write the file of a monitor that is served, and clear away those of dead ones.

    The folder is the one that `file_sd_configs` names, made if it is not there. Where `host` is
    every address, the machine's name is given.

    Returns:
        The file, which is to be removed at the end.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    address = this_host() if host in ("0.0.0.0", "::") else host  # noqa: S104  a comparison
    labels = {_PID: str(os.getpid()), **({"__scheme__": "https"} if tls else {})}
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    path = folder / f"wvmonitor-{this_host()}-{port}.json"
    write_text(path, json.dumps([{"targets": [target], "labels": labels}]), 0o644)
    return path


def _clear(folder: Path) -> None:
    for path in folder.glob(f"wvmonitor-{this_host()}-*.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            (found,) = json.loads(path.read_text())
            if not _alive(int(found["labels"][_PID])) and not _answers(found["targets"][0]):
                path.unlink()


def _answers(target: str) -> bool:
    """Whether somebody serves there: a container of this host's name has numbers of its own."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
