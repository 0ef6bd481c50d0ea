"""Everything that was measured on the real model: its sections of the page, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.remedies import (
    real_alarms_page,
    real_cleaned_page,
    real_gate_page,
    real_page,
)
from benchmarks.remedies.real_gate_results import GateResults
from benchmarks.remedies.real_results import RealResults


@dataclass(frozen=True)
class RealModel:
    """The committed results; None of what was not run.

    Attributes:
        runs: what rides along, costs, and is taken out.
        alarms: what waits for an alarm.
        gate: data screened.
        cleaned: trained on what is left.
    """

    runs: RealResults | None = None
    alarms: RealResults | None = None
    gate: GateResults | None = None
    cleaned: RealResults | None = None

    @classmethod
    def read(cls, runs: Path, alarms: Path, gate: Path, cleaned: Path) -> RealModel:
        """From the files of results, where they are there."""
        held = [json.loads(p.read_text("utf-8")) if p.is_file() else None
                for p in (runs, alarms, gate, cleaned)]  # fmt: skip
        found: list[Mapping[str, Any] | None] = [h if h and h["records"] else None for h in held]
        of_runs = RealResults(found[0]) if found[0] else None
        return cls(
            of_runs if of_runs and of_runs.begun else None,
            real_alarms_page.results_of(found[1]) if found[1] else None,
            GateResults(found[2]) if found[2] else None,
            real_cleaned_page.results_of(found[3]) if found[3] else None,
        )

    def sections(self) -> list[str]:
        """The sections of the page."""
        text = real_page.section(self.runs) if self.runs else []
        text += real_alarms_page.section(self.alarms) if self.alarms else []
        text += real_gate_page.section(self.gate) if self.gate else []
        return text + (real_cleaned_page.section(self.cleaned) if self.cleaned else [])

    def short(self) -> list[str]:
        """The lines of "In short"."""
        said = real_page.short(self.runs) if self.runs else []
        said += real_alarms_page.short(self.alarms) if self.alarms else []
        said += real_gate_page.short(self.gate) if self.gate else []
        return said + (real_cleaned_page.short(self.cleaned) if self.cleaned else [])

    def limits(self) -> str:
        """What the tables leave open about real models, for the list at the page's end."""
        return real_page.limits(self.runs)
