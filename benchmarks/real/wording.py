"""How figures are written on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def what_decides(rows: Sequence[Found]) -> str:
    """The first row of a table, in words."""
    return str(rows[0]["detector"]).removeprefix("ours, ")


def metric(found: Found | None) -> str:
    """A figure with its interval."""
    if not found or found.get("value") is None:
        return "–"
    low, high = found["ci95"]
    return f"{found['value']:.3f} ({number(low)}–{number(high)})"


def signed(found: Found | None) -> str:
    """A difference with its interval."""
    if not found:
        return "–"
    if found["ci95"] is None:
        return f"{found['value']:+.3f} (too few families)"
    low, high = found["ci95"]
    return f"{found['value']:+.3f} ({low:+.3f} to {high:+.3f})"


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def bold(name: str) -> str:
    """The name, in bold where it is what decides."""
    return f"**{name}**" if name.startswith("ours, the") else name


def states(found: Found) -> str:
    """How often each state was seen."""
    return counted(found["states"]) or "none"


def counted(found: Mapping[str, int]) -> str:
    """Counts with their names."""
    return ", ".join(f"{n} {name}" for name, n in found.items())


def listed(found: Mapping[str, str]) -> str:
    """Names with their reasons."""
    return "; ".join(f"{name}: {why}" for name, why in found.items())
