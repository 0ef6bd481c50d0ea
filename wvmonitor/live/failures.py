"""How the monitor handles its own failures: training must not die of its monitor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeVar

from wvmonitor.errors import MonitorFailedError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Failures:
    """Catches, counts and logs what fails; disables the monitor after several readings in a row.

    What fails beside a reading (a journal, an exporter, a checkpoint's sidecar) is counted and
    said, but never a reason to stop watching.
    """

    def __init__(
        self,
        *,
        policy: Literal["continue", "stop"],
        disable_after: int,
        count: Callable[[str], None],
    ) -> None:
        """Nothing has failed yet.

        After `disable_after` readings that fail in a row the monitor disables itself; `count` is
        told where each failure happened.
        """
        self.total = 0
        self.last = ""
        self._policy = policy
        self._disable_after = disable_after
        self._count = count
        self._in_a_row = 0

    @property
    def too_many(self) -> bool:
        """Whether too many readings in a row have failed."""
        return self._in_a_row >= self._disable_after

    def end_row(self) -> None:
        """A reading went well, or a new attempt begins."""
        self._in_a_row = 0

    def guarded(
        self, where: str, work: Callable[[], T], otherwise: T, *, reading: bool = False
    ) -> T:
        """What `work` gives, or `otherwise` where it fails.

        `where` is for the log and the metrics; `reading` says whether a failure costs a reading.

        Raises:
            MonitorFailedError: only with the policy "stop".
        """
        try:
            return work()
        except (KeyboardInterrupt, SystemExit, GeneratorExit, MonitorFailedError):
            raise  # meant for training itself
        except BaseException as error:  # noqa: BLE001  a panic in a library of Rust is no Exception
            self._add(where, error, reading=reading)
            return otherwise

    def _add(self, where: str, error: BaseException, *, reading: bool) -> None:
        """Count a failure and say it loudly; raise only with the policy "stop"."""
        self.total += 1
        self._in_a_row += reading
        self._count(where)
        self.last = f"{where}: {error}"
        message = f"wvmonitor failed at its {where}: {type(error).__name__}: {error}"
        logger.error(message, exc_info=error)
        if self._policy == "stop":
            raise MonitorFailedError(
                f"{message}; training stops because on_monitor_failure='stop'"
            ) from error
        if reading and self.too_many:
            logger.error(
                "wvmonitor gives up after %d failures: this run is NOT being watched any more",
                self._in_a_row,
            )
