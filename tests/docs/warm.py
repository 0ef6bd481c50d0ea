"""A `wvmonitor` command that starts at once: a warm process forks for each call.

The pages' shell blocks call the command some thirty times, and most of each call would be imports.

    python warm.py serve SOCKET     imports everything once, then forks for every call
    python warm.py call SOCKET …    what the `wvmonitor` on the PATH does: hands over its terminal
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys


def serve(address: str) -> None:
    """Listen until the process is ended."""
    import peft
    import torch
    import transformers

    import wvmonitor
    from wvmonitor.cli import app

    assert peft
    assert transformers
    for module in pkgutil.walk_packages(wvmonitor.__path__, "wvmonitor."):
        if not module.name.startswith("wvmonitor.integrations."):  # those of frameworks
            importlib.import_module(module.name)
    torch.set_num_threads(1)
    gc.freeze()  # or each collection in a copy copies the heap
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection, app)
        connection.close()


def _answer(connection: socket.socket, app: object) -> None:
    message, descriptors, _, _ = socket.recv_fds(connection, 1_000_000, 3)
    call = json.loads(message)
    child = os.fork()
    if child == 0:
        for target, given in enumerate(descriptors):
            os.dup2(given, target)
        os.chdir(call["cwd"])
        os.environ.update(call["environ"])
        sys.argv = ["wvmonitor", *call["arguments"]]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        code = 1
        try:
            app.main()  # type: ignore[attr-defined]
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def call(address: str, arguments: list[str]) -> int:
    """Run one command in the warm process; its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    given = {"arguments": arguments, "cwd": os.getcwd(), "environ": dict(os.environ)}  # noqa: PTH109
    socket.send_fds(connection, [json.dumps(given).encode()], [0, 1, 2])
    return int(connection.recv(64) or b"1")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(call(sys.argv[2], sys.argv[3:]))
