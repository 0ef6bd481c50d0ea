"""What a verdict means, in words that logs, alerts, scans and reports share.

`judge` says which score passed which threshold. Of what it raises, an explanation adds what a
person asks next: where the score is heading, what such a dose did to the base, which layers carry
it, what to go back to, and what to run.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median
from typing import Literal, Protocol

from wvmonitor.detection.judgement import JudgeState, State, Verdict
from wvmonitor.detection.scores import Scores
from wvmonitor.reading import LayerShares

BANDED = ("calibrated", "provisional")
"""Statuses whose threshold is an alarm's."""

MOST_LAYERS = 3
"""More layers than these are not named one by one."""

Trend = Literal["rising", "falling", "flat", "unknown"]

FLAT = 0.1
"""Change of the deciding score over all the readings, as a share of its threshold, below which its
trend is called flat: scores of one geometry are tenfold those of another."""

LEVEL = 0.02
"""The same change, of the score itself, where there is no threshold."""


class DosePoint(Protocol):
    """Measured behaviour of the base steered by k·w: a rate with its 95 % interval."""

    @property
    def k(self) -> float:
        """The dose."""

    @property
    def rate(self) -> float:
        """The share of answers that showed the behaviour."""

    @property
    def low(self) -> float:
        """Lower end of the rate's interval."""

    @property
    def high(self) -> float:
        """Upper end of the rate's interval."""


@dataclass(frozen=True)
class Background:
    """What explanations need to know beside a run's numbers.

    Attributes:
        behaviours: by reference, what a model that moves along it does.
        curves: by reference, what doses of it did to the base, where that was measured.
        base: the base model, as a command line names it.
        bank: the references, as a command line names them.
    """

    behaviours: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[DosePoint]] = field(default_factory=dict)
    base: str = "BASE"
    bank: str = "BANK"


def explained(
    verdict: Verdict,
    scores: Scores,
    state: JudgeState,
    background: Background,
    *,
    layers: LayerShares | None = None,
) -> Verdict:
    """A warning or an alarm with its explanation: what it means and what to do.

    Args:
        verdict: as `judge` passed it.
        scores: of the same reading.
        state: as `judge` gave it for the next reading.
        background: of the bank and the base.
        layers: which layers carry the inner products, if that is known.
    """
    name = verdict.reference
    sentences = [
        _heading(verdict, state.of(name).recent),
        _dose(name, scores.references[name].dose, background),
        _carried(verdict, layers),
        _back(state.of(name).last_ok, scores.step),
        _command(name, background.base, background.bank),
    ]
    return replace(verdict, account=tuple(s for s in sentences if s))


def in_full(reason: str, account: Sequence[str]) -> str:
    """A verdict's reason and its explanation as one text."""
    ended = reason if reason.endswith((".", "!", "?")) or not account else f"{reason}."
    return " ".join([ended, *account])


def to_do(account: Sequence[str]) -> tuple[str, ...]:
    """The sentences of an explanation that say what to do: what to go back to, and what to run."""
    return tuple(s for s in account if s.startswith((_COMMAND, *_BACK)))


def for_elsewhere(account: Sequence[str], reference: str, bank: str) -> tuple[str, ...]:
    """An explanation for readers on another machine: it does not say where files lie on this one.

    Args:
        account: the explanation, as `explained` gave it.
        reference: the behaviour it is about.
        bank: the bank's fingerprint.
    """
    command = f"{_command(reference, 'BASE', 'BANK')} BANK is the bank {bank[:16]}… of this run."
    return tuple(command if s.startswith(_COMMAND) else s for s in account)


_COMMAND = "Next: `wvmonitor blame "
_BACK = ("No earlier reading is known to be ok", "The last reading that was ok")


def _command(name: str, base: str, bank: str) -> str:
    """What to run."""
    return (
        f"{_COMMAND}DATA.jsonl --model {shlex.quote(base)} --reference {shlex.quote(name)} "
        f"--references {shlex.quote(bank)}` ranks the training examples by how much they push "
        "towards it."
    )


def _heading(verdict: Verdict, recent: Sequence[tuple[int, float]]) -> str:
    """Where the score is heading and, of a warning, how long until it would be an alarm."""
    word = trend(recent, verdict.threshold)
    if word == "unknown":
        return ""
    (first, was), (_, now) = recent[0], recent[-1]
    course = f"over its last {len(recent)} readings, from {was:.3g} at step {first} to {now:.3g}"
    if word == "flat":
        return f"The score has stayed level {course}."
    text = f"The score has been {word} {course}"
    pace, limit = slope(recent), verdict.threshold
    if verdict.state != State.WARN or verdict.calibration not in BANDED or pace is None:
        return f"{text}."
    if word == "falling" or limit is None or limit <= now:
        return f"{text}."
    steps = math.ceil((limit - now) / pace)
    return f"{text}; at that pace it reaches the alarm's threshold in about {steps} steps."


def trend(points: Sequence[tuple[int, float]], threshold: float | None = None) -> Trend:
    """The word for (step, score) pairs in the order of their steps; unknown for fewer than two.

    Args:
        points: (step, deciding score).
        threshold: what the last of them is held against, if there is one.
    """
    per_step = slope(points)
    if per_step is None:
        return "unknown"
    change = per_step * (points[-1][0] - points[0][0])
    if abs(change) < (FLAT * threshold if threshold and threshold > 0 else LEVEL):
        return "flat"
    return "rising" if change > 0 else "falling"


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Median of the slopes between all pairs (Theil–Sen), per step; None without two steps."""
    slopes = [(v - u) / (t - s) for (s, u), (t, v) in combinations(points, 2) if t != s]
    return median(slopes) if slopes else None


def _dose(name: str, dose: float | None, background: Background) -> str:
    """The dose, and what the card's curve says that such a dose did."""
    if dose is None or not math.isfinite(dose):
        return ""
    text = f"The weights have moved as if {dose:.2g} × {name} had been added to the base"
    does = background.behaviours.get(name)
    text += f" ({does})" if does else ""
    curve = sorted(background.curves.get(name, ()), key=lambda p: p.k)
    if not curve:
        return f"{text}; what such a dose does was not measured."
    nearest = min(curve, key=lambda p: abs(p.k - dose))
    beyond = "" if curve[0].k <= dose <= curve[-1].k else ", the nearest dose that was measured"
    return (
        f"{text}: at {nearest.k:.2g}{beyond}, the base did so in {_percent(nearest.rate)} of "
        f"held-out questions (95 % interval {_percent(nearest.low)} to {_percent(nearest.high)})."
    )


def _carried(verdict: Verdict, layers: LayerShares | None) -> str:
    """The layers that carry it, until half of it or three of them."""
    geometries = layers.get(verdict.reference, {}) if layers else {}
    decides = verdict.geometry
    geometry = decides if decides in geometries else next(iter(geometries), None)
    if geometry is None:
        return ""
    shares = geometries[geometry]
    chosen: list[str] = []
    carried = 0.0
    for layer, share in sorted(shares.items(), key=lambda item: -item[1])[:MOST_LAYERS]:
        chosen.append(layer)
        carried += share
        if carried >= 0.5:
            break
    which = chosen[0] if len(chosen) == 1 else f"{', '.join(chosen[:-1])} and {chosen[-1]}"
    layer_word, verb = ("Layer", "carries") if len(chosen) == 1 else ("Layers", "carry")
    return (
        f"{layer_word} {which} of {len(shares)} {verb} {_percent(carried)} of the {geometry} "
        "product with it."
    )


def _back(last_ok: int | None, step: int | None) -> str:
    """What to go back to."""
    if step is None:
        return ""
    if last_ok is None:
        return f"{_BACK[0]}: go back to the base."
    return f"{_BACK[1]} is at step {last_ok}: go back to a checkpoint of that step or before."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
