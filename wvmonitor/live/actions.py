"""What training is asked to do after a reading: nothing, save a checkpoint, or stop."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Literal

from wvmonitor.detection.explanation import in_full
from wvmonitor.detection.verdict import Verdict
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Observation

logger = logging.getLogger(__name__)

Action = Literal["none", "save", "stop"]
"""What a framework is asked to do after a reading."""


def log_raised(
    observation: Observation, before: Mapping[str, Verdict], quiet: Collection[str]
) -> None:
    """Log each warning and alarm that was not there at the reading before, with its account.

    Args:
        observation: of this reading.
        before: the verdicts of the reading before.
        quiet: behaviours that are expected or acknowledged.
    """
    for verdict in observation.verdicts:
        was = before.get(verdict.reference)
        risen = verdict.account and (was is None or was.state != verdict.state)
        if risen and verdict.reference not in quiet:
            words = in_full(verdict.reason, verdict.account)
            logger.warning(
                "%s: %s at step %s: %s", verdict.state, verdict.reference, verdict.step, words
            )


class Actions:
    """Decides on each observation of one attempt; remembers which behaviours it has acted on."""

    def __init__(self, settings: MonitorSettings, *, calibrated: bool) -> None:
        self._settings = settings
        self._calibrated = calibrated
        self._acted_on: set[str] = set()

    def after(self, observation: Observation) -> tuple[Action, str | None]:
        """The action, and the reason where it is news.

        Behaviours that are expected in this run, or acknowledged, ask for nothing.
        """
        quiet = {*self._settings.expected, *observation.acknowledged}
        reached = [v for v in observation.verdicts if v.reference not in quiet and self._reaches(v)]
        news = {v.reference for v in reached} - self._acted_on
        self._acted_on |= news
        if not reached or self._settings.action == "log":
            return "none", None
        if self._settings.action == "save" and not news:
            return "none", None
        return self._settings.action, reached[0].reason if news else None

    def _reaches(self, verdict: Verdict) -> bool:
        # an uncalibrated monitor never says more than warn: told to stop all the same, warn it is
        lowered = not self._calibrated and self._settings.allow_uncalibrated_stop
        level = "warn" if lowered else self._settings.action_level
        return verdict.state == "alarm" or verdict.state == level
