"""kill −9 at random moments of real work; `python -m tests.kill.battery --points 200`.

At each point the work runs in a fork, is killed, looked at, and taken to its end by another fork.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from tests.hostile.harness import Workshop
from tests.kill.jobs import Build, Job, Scan, Tell, Training

PATIENCE_SECONDS = 300.0
MORE = 5
"""So many points beyond its share a job gets where none met it at work."""


@dataclass(frozen=True)
class Moment:
    """When work is killed: so many seconds after it has told so many things."""

    told: int
    seconds: float


def forked(work: Callable[[Tell], None], moment: Moment | None) -> tuple[int, list[str]]:
    """Run `work` in a fork, killed at a moment if one is given; its status and what it told."""
    reading, writing = os.pipe()
    gc.freeze()  # or each collection in the copy, and a Trainer asks for two, copies the heap
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.close(reading)
            work(lambda word: os.write(writing, f"{word}\n".encode()) and None)
            code = 0
        except BaseException:  # noqa: BLE001  nothing may run on in the copy
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    said = bytearray()
    end = time.monotonic() + PATIENCE_SECONDS
    chosen = False
    while True:
        if moment is not None and not chosen and said.count(b"\n") >= moment.told:
            end, chosen = time.monotonic() + moment.seconds, True
        left = max(end - time.monotonic(), 0.0)
        if not select.select([reading], [], [], left)[0]:
            os.kill(pid, signal.SIGKILL)
            end = time.monotonic() + PATIENCE_SECONDS
        more = os.read(reading, 4096)
        if not more:
            break
        said += more
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said.decode().split("\n")[:-1]


def receiver(heard: Path) -> tuple[int, str]:
    """A process that takes every alert and notes its key: its id and its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    heard.touch()
    pid = os.fork()
    if pid == 0:

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with heard.open("a") as file:
                    file.write(self.headers["webhook-id"] + "\n")
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server.RequestHandlerClass = Handler
        server.serve_forever()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    server.server_close()
    return pid, url


def point(job: Job, folder: Path, moment: Moment) -> tuple[bool, list[str]]:
    """Kill the work at a moment, look, take it to its end, look; whether it was killed."""
    folder.mkdir()
    status, told = forked(lambda tell: job.work(folder, tell), moment)
    killed = status == -signal.SIGKILL
    problems = [] if killed or status == 0 else [f"it ended by itself with {status}"]
    problems += job.problems(folder, told, whole=False)
    status, more = forked(lambda tell: job.work(folder, tell), None)
    if status:
        return killed, [*problems, f"it could not be taken to its end ({status})"]
    problems += job.problems(folder, more, whole=True)
    shutil.rmtree(folder)
    return killed, problems


def run(folder: Path, points: int, seed: int, only: str | None = None) -> int:
    """Every job (or only one) at its share of the points; prints what became of them."""
    rng = random.Random(seed)
    workshop = Workshop(folder)
    pid, url = receiver(folder / "heard")
    try:
        jobs: dict[str, tuple[Any, int]] = {
            "training": (Training(workshop, url, folder / "heard"), points - 2 * (points // 4)),
            "scan": (Scan(workshop), points // 4),
            "build": (Build(), points // 4),
        }
        failed = False
        for name, (job, share) in jobs.items():
            if only not in (None, name):
                continue
            (folder / "alone").mkdir()
            job.alone(folder / "alone")
            shutil.rmtree(folder / "alone")
            (gap, count), kills, problems = _undisturbed(job, folder / "whole"), 0, []
            for number in itertools.count():
                # a job that has ended by itself each time was not tested: a few points more
                if number >= share and (kills or number >= share + MORE):
                    break
                moment = Moment(rng.randrange(count), rng.uniform(0.0, gap))
                killed, found = point(job, folder / f"{name}-{number}", moment)
                kills += killed
                problems += [f"{name}, killed at {moment}: {text}" for text in found]
            print(*problems, sep="\n", end="\n" if problems else "", flush=True)
            print(
                f"{name}: {number} points, {kills} killed in the middle, {len(problems)} problems",
                flush=True,
            )
            failed |= bool(problems) or not kills
        return int(failed)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _undisturbed(job: Job, folder: Path) -> tuple[float, int]:
    """Seconds between two things that the undisturbed work tells, and how many it tells."""
    folder.mkdir()
    begun = time.monotonic()
    status, told = forked(lambda tell: job.work(folder, tell), None)
    gap = (time.monotonic() - begun) / len(told)
    found = list(job.problems(folder, told, whole=True)) if status == 0 else []
    assert (status, found) == (0, [])
    shutil.rmtree(folder)
    return gap, len(told)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["training", "scan", "build"], help="one kind of work")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # a pool of threads does not survive the forks
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), arguments.points, arguments.seed, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
