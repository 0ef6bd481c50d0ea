"""A gate for training data: what pushes towards a behaviour more than harmless data does.

A push along w holds what w has of style, language and the like: an example in the style of the
bad ones is ranked with them. So what the bank's controls explain of w is taken out of it first,
w⊥ = w − Σ a_i·c_i with a = (K + λI)⁻¹·k_w over unit controls c_i; a push is linear in its
direction, so this takes the controls' pushes out of w's, at no further pass. λ is that of the
`residual` score, chosen by leaving one control out.

The threshold is a quantile of harmless examples' pushes, by rank: of n harmless rows the
r = ⌈(n + 1)(1 − p)⌉-th. A row that is exchangeable with them is above it with probability at most
p, and of m such rows Beta-binomially(m; n + 1 − r, r) many.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wvmonitor.detection.formulas import choose_ridge
from wvmonitor.errors import InputError
from wvmonitor.files.atomic import replacing, write_all
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.steering.blame import Blamed
from wvmonitor.vectors.task_vector import TaskVector

CONFIDENCE = 0.99
"""A set fails with more flagged rows than 99 of 100 harmless sets of its size would have."""


def without_controls(bank: ReferenceBank, name: str) -> tuple[TaskVector, dict[str, float]]:
    """A reference without what the bank's controls explain of it, over the blocks (Frobenius).

    A control is freed from the other controls.

    Returns:
        w⊥, and how much of each control was taken out: a_i/‖c_i‖, in units of the control.

    Raises:
        UnknownReferenceError: the bank does not hold it.
    """
    reference, gram = bank[name], bank.gram
    total = gram.total("frobenius")
    names, controls = (
        list(gram.references),
        [
            i
            for i, kind in enumerate(gram.kinds)
            if kind == "control" and gram.references[i] != name and total[i, i] > 0
        ],
    )
    if not controls:
        return reference.vector, {}
    target, ridge = names.index(name), choose_ridge(gram, "frobenius")
    norms = np.sqrt(np.diagonal(total)[controls])
    k = total[np.ix_(controls, controls)] / np.outer(norms, norms)
    k_w = total[controls, target] / norms
    shares = np.linalg.solve(k + ridge * np.eye(len(controls)), k_w) / norms
    vector, taken = reference.vector, {}
    for i, share in zip(controls, shares, strict=True):
        taken[names[i]] = float(share)
        vector = vector - bank[names[i]].vector * float(share)
    return vector, taken


@dataclass(frozen=True)
class Threshold:
    """The push above which a row is flagged.

    Attributes:
        push: nats, counted as the pushes are.
        harmless: how many harmless rows it rests on.
        rate: the share of harmless rows that it flags at most.
    """

    push: float
    harmless: int
    rate: float

    def most(self, rows: int) -> int:
        """The most flagged rows that a harmless set of so many has, 99 times in 100."""
        from scipy.stats import betabinom  # heavy, and needed here alone

        rank = _rank(self.harmless, self.rate)
        return int(betabinom(rows, self.harmless + 1 - rank, rank).ppf(CONFIDENCE))


def threshold_of(harmless: Sequence[Blamed], rate: float) -> Threshold:
    """The threshold that flags a share of harmless rows.

    Args:
        harmless: rows of the kind that is expected, known to be harmless; not those that are
            screened.
        rate: the share, in (0, 1).

    Raises:
        InputError: as `check_enough` says.
    """
    pushes = sorted(b.push for b in harmless if b.error is None)
    check_enough(len(pushes), rate)
    return Threshold(pushes[_rank(len(pushes), rate) - 1], len(pushes), rate)


def check_enough(harmless: int, rate: float) -> None:
    """See that so many harmless rows can set the threshold of a share.

    Raises:
        InputError: the rate is none, or they are too few for it.
    """
    if not 0 < rate < 1:
        raise InputError(f"the share of harmless rows to flag must lie in (0, 1), got {rate}")
    if _rank(harmless, rate) > harmless:
        needed = math.ceil(1 / rate) - 1
        raise InputError(
            f"{harmless} harmless examples are too few to flag {rate:.3g} of them: {needed} are "
            "needed, or a larger share"
        )


def _rank(count: int, rate: float) -> int:
    return math.ceil((count + 1) * (1 - rate) - 1e-9)


@dataclass(frozen=True)
class Screened:
    """What a threshold says of a set.

    Attributes:
        flagged: the rows above it, those that push most first.
        most: as many as a harmless set may have.
        rows: how many were judged.
        threshold: that they were held against.
    """

    flagged: tuple[Blamed, ...]
    most: int
    rows: int
    threshold: Threshold

    def words(self) -> str:
        """The outcome as a sentence."""
        text = (
            f"{len(self.flagged)} of {self.rows} are flagged: they push by more than "
            f"{self.threshold.push:.3g}, as {self.threshold.rate:.3g} of {self.threshold.harmless} "
            f"harmless examples do; a harmless set of this size has at most {self.most} "
            f"({CONFIDENCE:.0%})"
        )
        return f"{text}." if self.passed else f"{text}: this set does not pass."

    @property
    def passed(self) -> bool:
        """Whether a harmless set may well have as many."""
        return len(self.flagged) <= self.most


def screened(ranked: Sequence[Blamed], threshold: Threshold) -> Screened:
    """Hold a ranked set against a threshold."""
    judged = [b for b in ranked if b.error is None]
    flagged = tuple(b for b in judged if b.push > threshold.push)
    return Screened(flagged, threshold.most(len(judged)), len(judged), threshold)


def amount(text: str, rows: int, flagged: int | None) -> int:
    """How many rows "5%", "50" or "flagged" are.

    Raises:
        InputError: it is none of these, or "flagged" without a threshold.
    """
    if text == "flagged":
        if flagged is None:
            raise InputError("--drop flagged needs a threshold: give --harmless FILE")
        return flagged
    try:
        value = float(text.removesuffix("%"))
        count = math.ceil(rows * value / 100 - 1e-9) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        count = -1
    if not 0 <= count <= rows:
        raise InputError(
            f"{text!r} is no number of rows: give a share as in 5%, a count up to {rows}, or "
            "flagged"
        )
    return count


def split(data: Path, dropped: Collection[int], kept_file: Path, dropped_file: Path) -> None:
    """Write a set's lines, byte for byte, to two files; each appears whole or not at all.

    `dropped` are places of lines, from 0, blank ones not counted.
    """
    with data.open("rb") as file:
        lines = [line for line in file if line.strip()]
    for path, wanted in ((dropped_file, True), (kept_file, False)):
        chosen = (_ended(s) for i, s in enumerate(lines) if (i in dropped) == wanted)
        with replacing(path) as descriptor:
            write_all(descriptor, b"".join(chosen))


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"
