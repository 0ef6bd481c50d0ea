"""What kind of run a calibration covers, and whether a given run is of that kind."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel

from wvmonitor.detection.benign import AS_KEPT
from wvmonitor.detection.context import RunContext

SLACK = 1.1
"""How far beyond the calibrated number of steps, of readings, or progress a run may go: one last
reading at the end of a run, or a last incomplete epoch, is not another kind of run."""

NORM_SLACK = 0.5
"""Below this share of the smallest calibrated ‖τ‖ at the same progress, a run is warming."""


class Support(BaseModel):
    """What the benign runs had in common; ranges are (least, largest).

    Attributes:
        methods: each training method with the range of its ranks, None where it has none.
        optimizers: names; empty where no run said.
        learning_rates: peak learning rates; None where no run said.
        planned_steps: None where no run said.
        readings: judged readings in a run.
        horizon: the largest progress that was read.
        smallest_norm, largest_norm: ‖τ‖ over the benign runs at each point of the progress grid.
        objectives, schedules: of the loss and of the learning rate; empty where no run said.
        target_modules: the sets of modules that adapters changed; empty where no run said.
        weight_decays: None where no run said.
        reach: how many times as long as the shortest benign run a run may be, and still be judged.
    """

    model_config = AS_KEPT

    methods: dict[str, tuple[int, int] | None]
    optimizers: tuple[str, ...]
    learning_rates: tuple[float, float] | None
    planned_steps: tuple[int, int] | None
    readings: tuple[int, int]
    horizon: float
    smallest_norm: tuple[float, ...]
    largest_norm: tuple[float, ...]
    objectives: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    target_modules: tuple[tuple[str, ...], ...] = ()
    weight_decays: tuple[float, float] | None = None
    reach: float = 1.0

    @property
    def most_readings(self) -> int:
        """The number of readings up to which the guarantee holds."""
        return math.ceil(self.readings[1] * self.reach * SLACK)

    @property
    def most_steps(self) -> float | None:
        """The planned steps up to which it holds."""
        if self.planned_steps is None:
            return None
        least, most = self.planned_steps
        return SLACK * max(most if self.reach == 1 else least, least * self.reach)

    def objections(self, context: RunContext, progress: float | None, readings: int) -> list[str]:
        """Why a run is not of the calibrated kind, in words; empty if it is.

        Args:
            context: the run.
            progress: fraction of the planned steps at this reading.
            readings: judged readings of this run so far, this one included.
        """
        objections = self.kind_objections(context)
        if progress is None:
            if not context.lone:
                objections.append(
                    "how far the run has come is not known: give the planned number of steps"
                )
        elif not 0 <= progress <= 1 + 1e-9:
            objections.append(
                f"the run is at {progress:.3g} of its planned steps, beyond their end"
            )
        elif progress > self.horizon * self.reach * SLACK:
            objections.append(f"no benign run was read beyond {self.horizon:.0%} of its steps")
        steps, most = context.planned_steps, self.most_steps
        if steps is not None and most is not None and steps > most:
            objections.append(
                f"{steps} planned steps are more than the calibration covers ({most:.0f}): "
                "calibrate with longer runs"
            )
        planned = max(context.readings_planned or 0, readings)
        if not context.lone and planned > self.most_readings:
            objections.append(
                f"{planned} readings are more than the band covers ({self.most_readings}): read "
                "less often, or calibrate at this density"
            )
        return objections

    def kind_objections(self, context: RunContext) -> list[str]:
        """The same without what depends on the run's length: how it is trained, and what of it."""
        objections = [*self._of_method(context)]
        if context.optimizer is None:
            if self.optimizers and not context.lone:
                objections.append(
                    f"the optimiser is not known (calibrated: {_names(self.optimizers)})"
                )
        elif self.optimizers and context.optimizer.lower() not in self.optimizers:
            objections.append(
                f"the optimiser {context.optimizer} is not among the calibrated ones "
                f"({_names(self.optimizers)})"
            )
        for what, value, known in self._named(context):
            if value is not None and known and value not in known:
                objections.append(
                    f"the {what} {value} is not among the calibrated ones ({_names(known)})"
                )
        return objections

    def _named(self, context: RunContext) -> list[tuple[str, str | None, tuple[str, ...]]]:
        """Of each further setting: what it is, the run's, and the benign runs'."""
        modules = context.target_modules
        return [
            ("objective", context.objective, self.objectives),
            ("learning-rate schedule", context.schedule, self.schedules),
            (
                "set of target modules",
                None if modules is None else " + ".join(modules),
                tuple(" + ".join(m) for m in self.target_modules),
            ),
        ]

    def caveats(
        self, context: RunContext, norm: float, progress: float | None, grid: tuple[float, ...]
    ) -> list[str]:
        """What is unlike the benign runs, or not known, without making the verdict unknown."""
        caveats = [
            f"{what} {value:.3g} is outside the calibrated {_span(*known)}"
            for what, value, known in (
                ("learning rate", context.learning_rate, self.learning_rates),
                ("weight decay", context.weight_decay, self.weight_decays),
            )
            if value is not None and known is not None and not _within(value, known)
        ]
        if context.optimizer is None and self.optimizers:
            caveats.append(f"the optimiser is not known, taken to be {_names(self.optimizers)}")
        caveats += [
            f"the {what} is not known, taken to be {_names(known)}"
            for what, value, known in self._named(context)
            if value is None and known
        ]
        if context.inoculated:
            caveats.append(
                f"the run is inoculated ({', '.join(context.inoculated)}), as no benign run was: "
                "its scores for that come out lower"
            )
        steps = context.planned_steps
        if steps is not None and self.planned_steps and steps * SLACK < self.planned_steps[0]:
            caveats.append(
                f"{steps} planned steps are fewer than any benign run had "
                f"({self.planned_steps[0]}): scores of shorter runs are noisier"
            )
        # Further on than the benign runs came, ‖τ‖ may have grown as far again.
        most_norm = self.reach * (
            max(self.largest_norm)
            if progress is None
            else float(np.interp(progress, grid, self.largest_norm))
        )
        if norm > most_norm:
            caveats.append(
                f"the weights have moved further ({norm:.3g}) than in any benign run by then "
                f"({most_norm:.3g})"
            )
        return caveats

    def least_norm(self, progress: float | None, grid: tuple[float, ...]) -> float:
        """‖τ‖ below which a run is warming; at unknown progress the smallest over the grid."""
        if progress is None:
            return NORM_SLACK * min(self.smallest_norm)
        return NORM_SLACK * float(np.interp(progress, grid, self.smallest_norm))

    def _of_method(self, context: RunContext) -> list[str]:
        if context.method is None:
            return [f"the training method is not known (calibrated: {_names(self.methods)})"]
        if context.method not in self.methods:
            return [
                f"the method {context.method} is not among the calibrated ones "
                f"({_names(self.methods)})"
            ]
        ranks = self.methods[context.method]
        if ranks is None:
            return []
        if context.rank is None:
            return [f"the rank is not known (calibrated: {_span(*ranks)})"]
        if not ranks[0] <= context.rank <= ranks[1]:
            return [f"rank {context.rank} is outside the calibrated {_span(*ranks)}"]
        return []


def _names(names: tuple[str, ...] | dict[str, tuple[int, int] | None]) -> str:
    return ", ".join(sorted(names))


def _within(value: float, span: tuple[float, float]) -> bool:
    """Whether it lies in the span, but for rounding."""
    return span[0] * (1 - 1e-6) <= value <= span[1] * (1 + 1e-6)


def _span(least: float, most: float) -> str:
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
