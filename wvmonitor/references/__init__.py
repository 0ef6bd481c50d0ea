"""References and banks of them, in memory and on disk."""

from wvmonitor.references.bank import ReferenceBank
from wvmonitor.references.card import BaseIdentity, Card, Construction, DosePoint, Quality
from wvmonitor.references.reference import Reference, contrast, mean_reference

__all__ = [
    "BaseIdentity",
    "Card",
    "Construction",
    "DosePoint",
    "Quality",
    "Reference",
    "ReferenceBank",
    "contrast",
    "mean_reference",
]
