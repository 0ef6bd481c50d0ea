"""How far a whole bank is to be trusted: what was tried on it when it was made (`trust.json`).

Beside the bank, not in its manifest, as a calibration is: it is bound to one fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wvmonitor.errors import AlteredBankError, FormatVersionError, MalformedFileError
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.references.store import TRUST_FILE

FORMAT_VERSION = 1
ENOUGH = 0.5
"""A bank that catches a smaller share of held-out bad runs says so wherever it is used."""
Kind = Literal["bad", "mixed", "harmless"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CheckedRun(_Frozen):
    """One run of the power check."""

    name: str
    kind: Kind = Field(description="all bad, bad in part, or harmless")
    behaviour: str | None = Field(description="what its bad part shows")
    share: float = Field(description="share of bad examples, 0 to 1")
    steps: int | None = Field(default=None, description="optimiser steps")
    hard: bool = Field(default=False, description="harmless, in the voice or on the topic of harm")
    alarmed: tuple[str, ...] = Field(description="the references that alarmed")
    warned: tuple[str, ...] = Field(default=(), description="the references that warned at most")
    at: float | None = Field(description="progress at the first alarm, 0 to 1")
    score: float | None = Field(
        description="the deciding score at the end: its behaviour's, or the largest"
    )


class Rate(_Frozen):
    """One learning rate that was tried."""

    learning_rate: float
    gap: float = Field(description="difference of the sides' held-out gaps, nats a token")
    loss: float = Field(description="what the loss on ordinary text gained, nats a token")


class Separation(_Frozen):
    """How far one score told bad development runs, of a domain of their own, from harmless ones."""

    geometry: str
    score: str
    d: float = Field(description="mean over behaviours of (bad − mean harmless) / spread harmless")


class Trust(_Frozen):
    """What is known of a bank beside its references' cards."""

    format_version: int = FORMAT_VERSION
    bank: str = Field(description="fingerprint")
    base: str
    scale: str = Field(description="how much was done: full, half, quick, …")
    learning_rate: float
    rates: tuple[Rate, ...] = ()
    gaps: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="by behaviour, the held-out gap of θ and of θ + w, nats a token",
    )
    separations: tuple[Separation, ...] = ()
    geometry: str
    score: str
    status: str = Field(description="what the calibration is: provisional, calibrated, none")
    alpha: float | None
    calibrated_on: tuple[str, ...] = ()
    checked: tuple[CheckedRun, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float | None = Field(default=None, description="wall-clock time of what was made anew")

    def of(self, kind: Kind) -> tuple[CheckedRun, ...]:
        """The checked runs of one kind."""
        return tuple(r for r in self.checked if r.kind == kind)

    def caught(self, kind: Kind) -> tuple[int, int]:
        """How many runs of a kind alarmed, and how many there are.

        A bad run counts where its own behaviour alarmed; a harmless one where any did.
        """
        runs = self.of(kind)
        return sum(alarmed(r) for r in runs), len(runs)

    def sentence(self) -> str:
        """The power check in one sentence."""
        hit, n = self.caught("bad")
        lead = median_lead(self.of("bad"))
        when = "" if lead is None else f" (median: {lead:.0%} of the run)"
        part, mixed = self.caught("mixed")
        shares = sorted({r.share for r in self.of("mixed")})
        listed = " or ".join(f"{share:.0%}" for share in shares)
        inside = f", {part} of {mixed} with {listed} bad answers" if mixed else ""
        false, harmless = self.caught("harmless")
        return f"{hit} of {n} held-out bad runs alarm{when}{inside}; {false} of {harmless} harmless"

    def weakness(self) -> str | None:
        """What must be said wherever the bank is used, or None."""
        hit, n = self.caught("bad")
        if not n:
            return "this bank has no power check: nobody knows what it catches"
        if hit < ENOUGH * n:
            return (
                f"this bank caught {hit} of {n} held-out bad runs when it was made: its silence "
                "proves little; build it with more (`wvmonitor bank` without --quick)"
            )
        return None


def alarmed(run: CheckedRun) -> bool:
    """Whether a run raised the alarm that it is about."""
    return bool(run.alarmed) if run.kind == "harmless" else run.behaviour in run.alarmed


def interval(hit: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a rate; (0, 1) of nothing."""
    from scipy.stats import binomtest  # heavy

    if not n:
        return 0.0, 1.0
    interval_of_rate = binomtest(hit, n).proportion_ci(method="wilson")
    return float(interval_of_rate.low), float(interval_of_rate.high)


def median_lead(runs: Sequence[CheckedRun]) -> float | None:
    """Median progress at the first alarm of those that alarmed; None where none did."""
    at = sorted(r.at for r in runs if r.at is not None and alarmed(r))
    return at[len(at) // 2] if at else None


def save_trust(trust: Trust, folder: Path, *, mode: int = 0o644) -> None:
    """Write it beside the bank."""
    write_json(folder / TRUST_FILE, trust.model_dump(mode="json"), mode=mode)


def load_trust(folder: Path, fingerprint: str) -> Trust | None:
    """What is known of a bank; None where it came without.

    Raises:
        AlteredBankError: it is of another bank.
        FormatVersionError: a newer version wrote it.
        MalformedFileError: it breaks its format.
    """
    path = folder / TRUST_FILE
    if not path.is_file():
        return None
    document: dict[str, Any] = read_json(path)
    version = document.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FormatVersionError(f"{path} has format {version!r}: upgrade wvmonitor")
    try:
        trust = Trust.model_validate(document)
    except ValidationError as error:
        raise MalformedFileError(f"{path}: {error.errors()[0]['msg']}") from None
    if trust.bank != fingerprint:
        raise AlteredBankError(
            f"{path} speaks of another bank ({trust.bank[:12]}…, this one is {fingerprint[:12]}…): "
            "remove it, or build the bank again"
        )
    return trust
