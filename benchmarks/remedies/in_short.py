"""The first lines of docs/remedies.md: what its tables say."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.remedies import gate
from benchmarks.remedies.cells import BACK_AND_STOP, BRAKE, CELLS, NOTHING, STOP, Cell
from benchmarks.remedies.gate_page import percent
from benchmarks.remedies.intervals import Count, rate
from benchmarks.remedies.real_model import RealModel
from benchmarks.remedies.tables import Record, Results, less

_DOSED = "1.5 × evil"
_LONG = "three times as long"


def short(results: Results, screened: Sequence[Record], real: RealModel) -> list[str]:
    """What the tables say, in a few lines; nothing of what has not been run."""
    said = []

    def harm(group: str, treatment: str, what: str, *, repaired: bool = False) -> str | None:
        runs = results.of(_cell(group, treatment)).values()
        found = [r["repaired"] if repaired else r for r in runs]
        return rate([r[what] for r in found]).words() if found else None

    def differs(what: str, cell: Cell, other: Cell, digits: int = 2) -> str | None:
        found = less(results.of(cell), results.of(other), what)
        return found.words(digits) if found else None

    def line(text: str, *figures: str | None) -> None:
        if None not in figures:
            said.append("- " + text.format(*figures))

    line(
        "**Inoculated from the start** at 1.5 × evil, harm elsewhere is {} where it is {} with "
        "nothing done, and in the trained domain {} where it is {}.",
        harm("dose", _DOSED, "elsewhere"),
        harm("dose", NOTHING, "elsewhere"),
        harm("dose", _DOSED, "trained"),
        harm("dose", NOTHING, "trained"),
    )
    half, none = _cell("dose", "0.5 × evil"), _cell("dose", NOTHING)
    line(
        "**Half a dose** (0.5 × evil): harm in the trained domain differs by {} from that with "
        "nothing done, harm elsewhere by {}, the loss on good answers by {}.",
        *(differs(what, half, none) for what in ("trained", "elsewhere", "loss")),
    )
    long, usual = _cell(_LONG, _DOSED), _cell("dose", _DOSED)
    line(
        "**Three times as long** under 1.5 × evil, harm in the trained domain is {}, which differs "
        "by {} from the shorter run's; elsewhere it is {}, which differs by {}.",
        harm(_LONG, _DOSED, "trained"),
        differs("trained", long, usual),
        harm(_LONG, _DOSED, "elsewhere"),
        differs("elsewhere", long, usual),
    )
    line(
        "**A run that turns harmful half way** ends with {} in the trained domain if nothing is "
        "done; stopped at its alarm it has {}, gone back and stopped {}, braked {}, with its dose "
        "taken out at the end {}.",
        harm("turning", NOTHING, "trained"),
        harm("turning", STOP, "trained"),
        harm("turning", BACK_AND_STOP, "trained"),
        harm("turning", BRAKE, "trained"),
        harm("turning", NOTHING, "trained", repaired=True),
    )
    line(
        "**A dose taken out of a finished run** leaves {} elsewhere, and {} in the trained domain.",
        harm("dose", NOTHING, "elsewhere", repaired=True),
        harm("dose", NOTHING, "trained", repaired=True),
    )
    for task in dict.fromkeys(c.task for c in CELLS if c.group == "benign"):
        line(
            f"**A harmless run inoculated by mistake** ({task}, 1.5 × evil): the loss on rows of "
            "its own kind differs by {} from that with nothing done.",
            differs(
                "loss", _cell("benign", _DOSED, task), _cell("benign", NOTHING, task), digits=3
            ),
        )
    clean, little = ([r for r in screened if r["share"] == share] for share in gate.SHARES[:2])
    if screened:
        said.append(
            "- **Screened data**, each with the right reference named: of the bad rows the gate "
            f"finds {_by_kind(screened)}; it flags {rate([r['lost'] for r in clean]).words(3)} of "
            "the good ones; it fails "
            f"{sum(not r['passed'] for r in clean)} of {len(clean)} clean sets, and lets "
            f"{sum(r['passed'] for r in little)} of {len(little)} pass that are "
            f"{percent(gate.SHARES[1])} bad."
        )
    return ["## In short", "", *said, *real.short(), ""]


def _by_kind(screened: Sequence[Record]) -> str:
    """The share of bad rows found, kind by kind: their mean would be that of no kind."""
    found: dict[str, list[Count]] = {}
    for r in screened:
        if r["share"]:
            found.setdefault(r["kind"], []).append(r["found"])
    return ", ".join(f"{rate(counts).words()} ({kind})" for kind, counts in found.items())


def _cell(group: str, treatment: str, task: str | None = None) -> Cell:
    return next(
        c for c in CELLS if (c.group, c.treatment) == (group, treatment) and task in (None, c.task)
    )
