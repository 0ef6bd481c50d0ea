"""TRL's own training scripts (`trl sft …`), and any other launcher, with the monitor attached.

TRL's trainers need no integration of their own: `WVMonitorCallback.attach(trainer, ...)` serves
them. This is for whoever starts them from the command line and never holds the trainer.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from transformers import Trainer

from wvmonitor.errors import SettingsError
from wvmonitor.integrations.transformers import WVMonitorCallback
from wvmonitor.live.settings import MonitorSettings

SCRIPTS = ("sft", "dpo", "grpo", "kto", "reward", "rloo")


@contextmanager
def every_trainer_watched(settings: MonitorSettings) -> Iterator[list[WVMonitorCallback]]:
    """Attach the monitor to each `transformers.Trainer` that starts to train in here.

    A trainer that has a `WVMonitorCallback` already is left alone.

    Yields:
        The callbacks, as they are attached.
    """
    attached: list[WVMonitorCallback] = []
    original = Trainer.train

    def train(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        present = trainer.callback_handler.callbacks
        if not any(isinstance(c, WVMonitorCallback) for c in present):
            watch = WVMonitorCallback.attach(trainer, settings=settings)
            attached.append(watch)
            # not `trainer.train`: what a trainer of one's own does before this is done already
            return watch.heard(trainer, partial(original, trainer))(*args, **kwargs)
        return original(trainer, *args, **kwargs)

    with patch.object(Trainer, "train", train):
        yield attached


def run_script(name: str, arguments: Sequence[str], settings: MonitorSettings) -> None:
    """Run one of TRL's scripts in this process, watched.

    Raises:
        SettingsError: TRL has no such script, or is not installed, or an argument is meant for
            the monitor and is none of its own.
    """
    if name not in SCRIPTS:
        raise SettingsError(f"TRL has no script {name!r} to watch: there are {', '.join(SCRIPTS)}")
    if find_spec("trl") is None:
        raise SettingsError("TRL is not installed: pip install trl")
    if ours := [a for a in arguments if a.startswith("--wv-")]:
        raise SettingsError(
            f"{ours[0]} is no option of the monitor: there are --wv-references BANK and "
            "--wv-settings FILE; everything else is a key of that file"
        )
    with every_trainer_watched(settings), patch.object(sys, "argv", [f"trl {name}", *arguments]):
        runpy.run_module(f"trl.scripts.{name}", run_name="__main__", alter_sys=False)
