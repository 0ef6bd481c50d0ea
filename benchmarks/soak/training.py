"""A training run that is scraped every second, and one whose alerts nobody answers."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, at_least, at_most
from tests.observability.programs import free_port
from tests.observability.training import Until, drifting_run, scraper, told
from wvmonitor.testing import planted_bank, tiny_base

SCRAPE_SECONDS = 1_800.0
SCRAPES_PER_SECOND = 1
P99_SECONDS = 0.05
BLACK_HOLE_SECONDS = 3_600.0
TURNS = 20
LEAST_SECONDS = 4.0
PAUSE_SECONDS = 0.05
"""Between two steps: a run that waits for its processor would measure the other programs."""

STEPS = 100_000_000


def scrapes(folder: Path, scale: float = 1.0) -> list[Figure]:
    """Scrape a run for half an hour; it is trained all the while.

    Args:
        folder: for the run.
        scale: how much of the full length.
    """
    base, bank = prepared(folder)
    port, seconds = free_port(), max(SCRAPE_SECONDS * scale, 2.0)
    run, _ = drifting_run(
        base,
        bank,
        folder / "run",
        steps=STEPS,
        drift_from=STEPS,
        every_n_steps=5,
        prometheus={"enabled": True, "port": port},
    )
    load = scraper(port, SCRAPES_PER_SECOND, seconds)
    run.add_callback(Until(load))
    run.train()
    found = told(load)
    return [
        at_most(f"scrapes that failed, of {found['scrapes']:.0f}", found["errors"], 0, "scrapes"),
        at_most("a scrape, p99", found["p99"], P99_SECONDS, "s", **found),
        at_least("steps trained meanwhile", run.state.global_step, 1, "steps"),
    ]


def black_hole(folder: Path, scale: float = 1.0) -> list[Figure]:
    """Train for an hour with a receiver that takes connections and never answers.

    The same run without a receiver stands beside it: twenty turns of each, one after the other, so
    that whatever else the machine does meets both. Its turns are a quarter as long.

    Args:
        folder: for the runs.
        scale: how much of the full length.
    """
    base, bank = prepared(folder)
    turns = max(round(TURNS * scale), 1)
    turn = max(BLACK_HOLE_SECONDS * scale / turns, LEAST_SECONDS)
    wall: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        for number in range(2 * turns):
            with_hole = bool(number % 2)
            hook = [{"kind": "webhook", "url": url, "secret": "s"}] if with_hole else []
            seconds = turn if with_hole else max(turn / 4, LEAST_SECONDS)
            clock = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", f"import time; time.sleep({seconds})"]
            )
            run, _ = drifting_run(
                base,
                bank,
                folder / f"run-{number}",
                steps=STEPS,
                drift_from=1,
                every_n_steps=5,
                notifiers=hook,
            )
            until = Until(clock, pause=PAUSE_SECONDS)
            run.add_callback(until)
            run.train()
            wall[with_hole] += until.step_seconds[5:]
            cpu[with_hole] += until.step_cpu_seconds[5:]
    return [
        at_most(
            "step p99 with a black-holed receiver ÷ without",
            _p99(wall[True]) / _p99(wall[False]),
            1.05,
            "×",
            **_course(wall),
        ),
        at_most(
            "the same, of the processor",
            _p99(cpu[True]) / _p99(cpu[False]),
            1.05,
            "×",
            **_course(cpu),
        ),
    ]


def _p99(seconds: list[float]) -> float:
    return float(np.quantile(seconds, 0.99))


def _course(seconds: dict[bool, list[float]]) -> dict[str, float]:
    """Steps of either kind, and how long they took."""
    return {
        f"{name}_{what}": float(of(seconds[kind]))
        for kind, name in ((False, "plain"), (True, "holed"))
        for what, of in (("steps", len), ("median", np.median), ("p99", _p99), ("worst", max))
    }


def prepared(folder: Path) -> tuple[Path, Path]:
    """A base and a bank for it."""
    base = tiny_base(folder / "base")
    planted_bank(base, probe=True).save(folder / "bank")
    return base, folder / "bank"
