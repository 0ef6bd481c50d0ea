"""What training is asked to do after a reading: nothing, save, stop, inoculate, or go back."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from wvmonitor.detection.judgement import Verdict
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.outputs.exporter import Observation

logger = logging.getLogger(__name__)

Action = Literal["none", "save", "stop", "inoculate", "rollback"]
"""What a framework is asked to do after a reading."""


@dataclass(frozen=True)
class Decision:
    """What is to be done after a reading.

    Attributes:
        action: what the framework is asked for.
        reason: why, where it is news.
        behaviours: those that it is about, where they are news.
    """

    action: Action = "none"
    reason: str | None = None
    behaviours: tuple[str, ...] = ()


class Actions:
    """Decides on each observation of one attempt; remembers which behaviours it has acted on."""

    def __init__(self, settings: MonitorSettings, *, calibrated: bool) -> None:
        self._settings = settings
        self._calibrated = calibrated
        self._acted_on: set[str] = set()
        self.decision = Decision()

    def after(self, observation: Observation, riding: Collection[str] = ()) -> Decision:
        """What to do; behaviours that are expected in this run, or acknowledged, ask for nothing.

        `riding`: the behaviours that the run is inoculated against already.
        """
        self.decision = self._decided(observation, riding)
        return self.decision

    def _decided(self, observation: Observation, riding: Collection[str]) -> Decision:
        quiet = {*self._settings.expected, *observation.acknowledged}
        reached = [v for v in observation.verdicts if v.reference not in quiet and self._reaches(v)]
        news = [v for v in reached if v.reference not in self._acted_on]
        self._acted_on.update(v.reference for v in news)
        names = tuple(v.reference for v in news)
        reason = news[0].reason if news else None
        if self._remedy is not None:
            return self._remedied(names, reason, riding)
        action = self._settings.action
        if not reached or action == "log" or (action == "save" and not news):
            return Decision()
        return Decision(action, reached[0].reason if news else None, names)

    @property
    def _remedy(self) -> Literal["inoculate", "rollback"] | None:
        on_alarm = self._settings.on_alarm
        return on_alarm if on_alarm in ("inoculate", "rollback") else None

    def _remedied(
        self, names: tuple[str, ...], reason: str | None, riding: Collection[str]
    ) -> Decision:
        """A remedy helps once: what alarms although k·w rides along is not braked by more of it."""
        if not names or self._remedy is None:
            return Decision()
        fresh = tuple(name for name in names if name not in riding)
        if fresh:
            return Decision(self._remedy, reason, fresh)
        logger.warning("%s alarms although the run is inoculated against it", names[0])
        if self._remedy == "inoculate":
            return Decision("save", reason, names)
        return Decision("stop", f"alarmed although inoculated against it: {reason}", names)

    def _reaches(self, verdict: Verdict) -> bool:
        # an uncalibrated monitor never says more than warn: told to act all the same, warn it is
        lowered = not self._calibrated and self._settings.allow_uncalibrated_stop
        calibrated_level = "alarm" if self._remedy else self._settings.action_level
        level = "warn" if lowered else calibrated_level
        return verdict.state == "alarm" or verdict.state == level
