"""What accounts of verdicts say of a bank: its behaviours, and what doses of them did."""

from __future__ import annotations

from wvmonitor.detection.explanation import Background
from wvmonitor.references.bank import ReferenceBank


def background_of(bank: ReferenceBank, base: object | None = None) -> Background:
    """What the cards say, and how a command line names the bank and the base.

    Args:
        bank: the references.
        base: the base model's folder, if it is known.
    """
    return Background(
        behaviours={r.name: r.card.behaviour for r in bank},
        curves={r.name: r.card.dose_curve for r in bank},
        base=bank.base.id if base is None else str(base),
        bank="BANK" if bank.folder is None else str(bank.folder),
    )
