"""What is known of a run when it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


RUN_ID_LENGTH = 200


def run_id(text: str) -> str:
    """The text, if it can be a run's id: it is a label in metrics, a name in logs and on pages.

    Raises:
        ValueError: it is empty, long, or holds what cannot be shown as it is.
    """
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("must be printable text without spaces around it")
    if len(text) > RUN_ID_LENGTH:
        raise ValueError(f"must have at most {RUN_ID_LENGTH} characters")
    return text


def known_id(text: str | None, origin: str) -> str | None:
    """A run's id or name from outside, or None, with a warning, where it cannot be one.

    Args:
        text: what was found.
        origin: where, for the warning.
    """
    if text is None:
        return None
    try:
        return run_id(text)
    except ValueError as error:
        logger.warning("the run's name in %s %s: it gets another one", origin, error)
        return None


@dataclass(frozen=True)
class Run:
    """What a framework knows of the run it is about to start; None means not known.

    Attributes:
        folder: the run's output folder; the journal goes into `folder/wvmonitor` by default.
        name: the run's name, for people.
        planned_steps: planned number of optimiser steps.
        resume_step: the step it goes on from; 0 for a start from the beginning.
        optimizer: the optimiser's name.
        learning_rate: the peak learning rate.
        run_id: id of the run that it resumes, where a checkpoint names it.
    """

    folder: Path | None = None
    name: str | None = None
    planned_steps: int | None = None
    resume_step: int = 0
    optimizer: str | None = None
    learning_rate: float | None = None
    run_id: str | None = None
