"""What the monitor does to the model itself: inoculation, from the start or from an alarm on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from wvmonitor.errors import MonitorFailedError
from wvmonitor.live.settings import MonitorSettings
from wvmonitor.live.validation import inoculating_dose, inoculation_of
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.steering.inoculation import Inoculation
from wvmonitor.steering.live_parameters import without_wrappers
from wvmonitor.steering.taking_out import take_out

logger = logging.getLogger(__name__)

_riding: WeakKeyDictionary[Any, Remedies] = WeakKeyDictionary()
"""Whose k·w is in a model: an error may have kept its callback from taking it out."""

WHOLE = 1.0
"""How much of a reference a brake adds where its card does not say: the whole contrast."""


ROUNDING = 0.01
"""What is lost of an edit below this share is rounding, and not worth a word."""


class Remedies:
    """The inoculation of one run; every process of it has the same.

    Attributes:
        amounts: k of each reference that rides along, or will once the run begins.
        pending: what more is to ride along once training begins again.
        unchecked: whether nobody has seen yet that every layer takes part, since k·w was put in
            or another monitor took it out.
    """

    def __init__(self, settings: MonitorSettings, bank: ReferenceBank) -> None:
        """Settle how much rides along from the start.

        Raises:
            WVMonitorError: a reference, or how much of it, is not known.
        """
        self._wanted = inoculation_of(settings, bank)
        self.amounts = dict(self._wanted)
        self.pending: dict[str, float] = {}
        self._brakes = settings.on_alarm == "inoculate"
        self._bank = bank
        self._active: Inoculation | None = None
        self._model: Any = None
        self._displaced = False
        self.unchecked = False

    def begin(self, model: Any, before: Mapping[str, float] | None = None) -> None:
        """Let k·w ride along in a model that is about to train; again where it does already.

        Args:
            model: the model, as it is trained.
            before: what rode along when the checkpoint was saved that training goes on from; what
                the settings say wins.

        Raises:
            WVMonitorError: the references cannot ride along in this model.
        """
        if self._model is model:
            return
        self.end()
        self._displaced = False
        if resumed := {n: k for n, k in (before or {}).items() if n not in self._wanted}:
            logger.warning(
                "the checkpoint was trained with %s riding along: so it goes on", words(resumed)
            )
        self.amounts = {**resumed, **self._wanted, **self.pending}
        self.pending = {}
        if self._brakes:  # what cannot ride along is an error now, and not at the alarm
            names = [n for n in self._bank.behaviours if n not in self.amounts]
            Inoculation(model, {self._bank[name]: WHOLE for name in names}).remove()
        self._install(model)

    def _install(self, model: Any) -> None:
        base = without_wrappers(model)
        other = _riding.get(base)
        if other is not None and other is not self:
            other.displace()
        if self.amounts:
            _riding[base] = self
            self._active = Inoculation(
                model, {self._bank[name]: k for name, k in self.amounts.items()}
            )
            self.unchecked = True
            logger.info("%s rides along in memory; no checkpoint holds it", words(self.amounts))
        self._model = model  # only now: what failed is tried again

    def check(self) -> None:
        """See, once after a step, that every layer took part.

        Raises:
            MonitorFailedError: some did not: training would go on unprotected there.
        """
        if not self.unchecked:
            return
        self.unchecked = False
        if self._displaced:
            raise MonitorFailedError(
                "another monitor that began on this model took the inoculation out: ask for it in "
                "the one that begins last, or use one monitor"
            )
        if self._active is None:
            return
        if unseen := self._active.unseen():
            self.end()
            raise MonitorFailedError(
                f"{len(unseen)} parameters train without the inoculation that was asked for "
                f"({', '.join(unseen[:3])}, …): their layers are in evaluation mode (call "
                "model.train() before training), or a fused kernel reads their weights past them"
            )

    def brake(self, model: Any, doses: Mapping[str, float | None]) -> dict[str, str]:
        """Take the doses so far out of what is trained, and let k·w ride along from now on.

        Called in every process, between two steps; `doses` are by behaviour, where known.

        Returns:
            By behaviour, what was done, for people.

        Raises:
            WVMonitorError: the references cannot ride along in this model.
        """
        done = {}
        amounts = self.after_alarm(doses)
        for name, dose in doses.items():
            text = f"braked: {amounts[name]:g} × {name} rides along"
            if dose is None:
                text += "; the dose so far cannot be told, and is not taken out"
            if dose is not None and dose > 0:
                left = take_out(model, self._bank[name].vector, dose)
                text += f", and the dose so far ({dose:.2g}) is taken out"
                text += f" ({left:.0%} of it is beyond what is trained)" if left > ROUNDING else ""
            done[name] = text
        self.amounts = {**self.amounts, **amounts}
        self.end()
        self._install(model)
        return done

    def after_alarm(self, names: Collection[str]) -> dict[str, float]:
        """How much of each reference is to ride along from an alarm on."""
        doses = {name: inoculating_dose(self._bank[name].card) for name in names}
        return {name: WHOLE if k is None else k for name, k in doses.items()}

    def displace(self) -> None:
        """Take k·w out for another monitor's run; a run that still goes on finds out at `check`."""
        if self._active is not None:
            self._displaced = self.unchecked = True
        self.end()

    def end(self) -> None:
        """Take k·w out of the model; what was trained is as it is saved."""
        if self._active is not None:
            self._active.remove()
        self._active = self._model = None


def words(amounts: Mapping[str, float]) -> str:
    """What rides along, for people: "1 × evil"."""
    return " + ".join(f"{k:g} × {name}" for name, k in amounts.items())
