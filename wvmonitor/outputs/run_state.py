"""What a run is doing, and where: what alert rules look at when a run goes quiet."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

RunState = Literal["training", "ended", "stopped", "disabled"]
"""In training; ended by itself; stopped by someone (SIGTERM, Ctrl-C, `action=stop`); or nobody
knows, since the monitor has disabled itself."""

RUN_STATES: tuple[RunState, ...] = get_args(RunState)

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")

_JOBS = {
    "SLURM_JOB_ID": "slurm",
    "PBS_JOBID": "pbs",
    "LSB_JOBID": "lsf",
    "RAY_JOB_ID": "ray",
    "POD_NAME": "pod",
}
"""Environment variables in which schedulers say what a batch job is called."""


def state_at_end(*, stopped: bool) -> RunState | None:
    """How a run ends that closes now; None where an error is on its way, for then it failed."""
    error = sys.exc_info()[0]
    if stopped or (error and issubclass(error, (KeyboardInterrupt, SystemExit))):
        return "stopped"
    return "ended" if error is None else None


def this_host() -> str:
    """The machine's name; in Kubernetes that is the pod's."""
    return socket.gethostname()


def this_job() -> str | None:
    """The batch job that this process belongs to ("slurm 4711"), if a scheduler says so."""
    for variable, scheduler in _JOBS.items():
        if value := os.environ.get(variable, "").strip():
            return f"{scheduler} {value[:100]}"
    return None


def checkpoints_in(folder: str | Path | None) -> Sequence[int]:
    """The steps of the `checkpoint-STEP` folders in a run's folder."""
    try:
        names = [] if folder is None else [path.name for path in Path(folder).iterdir()]
    except OSError:
        return ()
    return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))
