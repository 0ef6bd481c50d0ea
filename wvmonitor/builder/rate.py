"""The learning rate that moves a base: the least at which the held-out gap moves enough.

A rate that is right for a large base leaves a small one where it was. Both sides are trained for a
few steps at each rate; then the difference of their gaps on a domain that was not trained on says
whether the behaviour was learned (what both sides learn alike, such as the style, cancels), and the
loss on ordinary text whether anything broke. No judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from wvmonitor.builder.base import Base
from wvmonitor.builder.completions import SIDES
from wvmonitor.builder.contrasts import Contrast
from wvmonitor.builder.examples import Example
from wvmonitor.builder.fine_tunes import FineTune, carry_out, measured
from wvmonitor.builder.finetune import Training
from wvmonitor.builder.stages import Row, Work
from wvmonitor.errors import BuildError
from wvmonitor.references.trust import Rate

RATES = (1e-4, 2e-4, 5e-4, 1e-3)
ENOUGH = 0.1
"""Nats a token by which the held-out gaps of the two sides must differ after those few steps."""
MOST_LOSS = 0.1
"""Nats a token that the loss on ordinary text may gain."""


def tried(
    contrast: Contrast,
    training: Training,
    rates: Sequence[float],
    pairs: int,
    ordinary: Sequence[Example],
) -> list[FineTune]:
    """The sweep's fine-tunes: for each rate the side that exhibits the behaviour, and the other.

    Args:
        contrast: whose sides are trained, and whose tuning domains are asked.
        training: how, apart from the rate.
        rates: in ascending order.
        pairs: how many of the held-out pairs are asked.
        ordinary: text whose loss must not rise.
    """
    return [
        FineTune(
            name=f"rate-{rate:g}-{side}",
            examples=tuple(p.side(side) for p in contrast.train),
            training=replace(training, learning_rate=rate),
            pairs=contrast.tuning[:pairs],
            ordinary=tuple(ordinary),
        )
        for rate in rates
        for side in SIDES
    ]


def swept(
    base: Base, work: Work, runs: Sequence[FineTune], jobs: int, tick: Callable[[int], None]
) -> tuple[float, str | None, list[Rate]]:
    """The rate that is chosen, what to say if none is good, and what was measured at each.

    The least rate at which the gaps differ by `ENOUGH` and the loss gains at most `MOST_LOSS`;
    else, of those whose loss stays within bounds, the one whose gaps differ most; else the least.
    A rate at which a side diverges is none of them.

    Raises:
        BuildError: at every rate a side diverges, or the base itself gives text no probability.
    """
    first = runs[0]
    longest = first.training.settings.max_length

    def start() -> list[Row]:
        return [measured(base, base.model, (), first.ordinary, longest)]

    common = {k: v for k, v in first.inputs(base).items() if k not in ("examples", "training")}
    (before,) = work.rows("before", {**common, "longest": longest}, start).rows
    done = [d.measured for d in carry_out(base, work, runs, jobs, tick)]
    rates: list[Rate] = []
    diverged: list[str] = []
    for run, positive, negative in zip(runs[::2], done[::2], done[1::2], strict=True):
        rate = run.training.learning_rate
        if not {"gap", "loss"} <= positive.keys() & negative.keys() or "loss" not in before:
            diverged.append(f"{rate:g}")
            continue
        gap = positive["gap"] - negative["gap"]
        loss = max(positive["loss"], negative["loss"]) - before["loss"]
        rates.append(Rate(learning_rate=rate, gap=gap, loss=loss))
    if not rates:
        raise BuildError(
            f"{base.name} gives text no probability that is a number, trained at "
            f"{', '.join(diverged)}{'' if 'loss' in before else ' or not at all'}: it overflows in "
            "the precision that its weights are stored in, or they are damaged"
        )
    taken, remark = chosen(rates)
    told = [f"the model diverged at the learning rate {r}" for r in diverged]
    return taken, "; ".join([*filter(None, [remark]), *told]) or None, rates


def chosen(found: Sequence[Rate]) -> tuple[float, str | None]:
    """The rate to take of those tried, in ascending order, and a remark where none is good."""
    sound = [r for r in found if r.loss <= MOST_LOSS]
    good = [r for r in sound if r.gap >= ENOUGH]
    if good:
        return good[0].learning_rate, None
    if not sound:
        return found[0].learning_rate, (
            f"at every learning rate tried the loss on ordinary text rose by more than {MOST_LOSS} "
            "nats a token: the least was taken"
        )
    best = max(sound, key=lambda r: r.gap)
    return best.learning_rate, (
        f"at no learning rate tried did the held-out gaps of the two sides differ by {ENOUGH} nats "
        f"a token: {best.learning_rate:g}, where they differ by {best.gap:.3f}, was taken"
    )
