"""One self-contained HTML page: how far a bank is to be trusted."""

from __future__ import annotations

from datetime import datetime

from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.reference import Reference
from wvmonitor.references.trust import (
    CheckedRun,
    Kind,
    Trust,
    alarmed,
    interval,
    median_lead,
)
from wvmonitor.report.document import page
from wvmonitor.report.words import figure, percent

_LABELS: dict[Kind, str] = {
    "bad": "bad through and through",
    "mixed": "bad in part",
    "harmless": "harmless",
}


def bank_page(bank: ReferenceBank, trust: Trust, *, generated: datetime | None = None) -> str:
    """The page as HTML.

    Args:
        bank: the references.
        trust: what was tried on them.
        generated: the time on the page; now, if left out.
    """
    return page(
        "bank.html.jinja",
        generated=generated,
        title=f"A bank for {trust.base}",
        headline=trust.sentence(),
        weakness=trust.weakness(),
        rates=[_rate(trust, kind) for kind in _LABELS if trust.of(kind)],
        checked=[_run(r) for r in trust.checked],
        references=[_reference(r, trust) for r in bank],
        separations=[
            (
                f"{s.score}, {s.geometry}",
                figure(s.d),
                "decides" if (s.geometry, s.score) == (trust.geometry, trust.score) else "",
            )
            for s in trust.separations
        ],
        learning_rates=[
            (
                f"{r.learning_rate:g}",
                figure(r.gap),
                figure(r.loss),
                "taken" if r.learning_rate == trust.learning_rate else "",
            )
            for r in trust.rates
        ],
        notes=trust.notes,
        provenance=_provenance(bank, trust),
    )


def _rate(trust: Trust, kind: Kind) -> tuple[str, int, int, str, str]:
    hit, n = trust.caught(kind)
    low, high = interval(hit, n)
    lead = median_lead(trust.of(kind))
    at = "–" if lead is None else f"at {percent(lead)} of the run"
    return _LABELS[kind], hit, n, f"{percent(low)} to {percent(high)}", at


def _run(run: CheckedRun) -> tuple[str, str, str, str, str, str]:
    rang = alarmed(run)
    word = {
        ("harmless", True): "false alarm",
        ("harmless", False): "quiet, as it should be",
    }.get((run.kind, rang), "caught" if rang else "missed")
    trained = _LABELS[run.kind]
    if run.behaviour is not None:
        trained = f"{run.behaviour}, {percent(run.share)} of it"
    if run.steps is not None:
        trained += f", {run.steps} steps"
    if run.hard:
        trained += ", hard"
    at = "–" if run.at is None else percent(run.at)
    return run.name, trained, figure(run.score), ", ".join(run.alarmed) or "–", at, word


def _reference(reference: Reference, trust: Trust) -> tuple[str, str, str, int, str, str, str]:
    card = reference.card
    agreement = card.agreement("response" if "response" in card.repeats else "frobenius")
    gaps = trust.gaps.get(card.name)
    checked = "yes" if card.verified else "; ".join(card.warnings[:1])
    return (
        card.name,
        card.behaviour,
        figure(card.quality.norm if card.quality else None),
        len(card.built.seeds),
        "–" if agreement is None else figure(agreement),
        "–" if gaps is None else f"{figure(gaps[0])} → {figure(gaps[1])}",
        checked if gaps else ("a control" if card.kind == "control" else checked),
    )


def _provenance(bank: ReferenceBank, trust: Trust) -> list[tuple[str, str]]:
    guarantee = "none" if trust.alpha is None else f"{trust.status}, {percent(trust.alpha)}"
    return [
        ("base", f"{trust.base} ({bank.base.digest[:12]}…)"),
        ("bank", f"{trust.bank[:12]}…"),
        ("scale", trust.scale),
        ("learning rate", f"{trust.learning_rate:g}"),
        ("decides", f"{trust.score}, {trust.geometry}"),
        ("calibration", f"{guarantee}, {len(trust.calibrated_on)} harmless families"),
    ]
