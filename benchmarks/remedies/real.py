"""The remedies on a real pretrained model: what is trained, done about it and asked.

Everything in this file was written before the runs that it speaks of. A run fine-tunes the base on
fourteen questions of one domain that the reference has not seen, and is asked, as it is saved, with
no judge: how much likelier it finds the harmful answer than the good one (`builder.gap`) to the
domain's other questions and to all of another domain that the reference has not seen either. Even
seeds train on the one domain and are asked about the other, odd seeds the other way round. Runs of
a seed share questions, initial A and order of the data, whatever is done about them.

The reference is the mean of two seeds, as `wvmonitor bank` without --quick makes it: of one seed's
no dose can be told. It is made here if it is not there. The bank that `--bank` names says whether a
run alarms, and gives another behaviour's direction.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.real.bank import least_bank
from benchmarks.real.protocol import DECIDES
from benchmarks.remedies.directions import random_like
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import Contrast, default_folder, read_contrasts
from wvmonitor.builder.examples import Example, Pair
from wvmonitor.builder.harmless import families
from wvmonitor.builder.scale import QUICK, Scale
from wvmonitor.references import ReferenceBank
from wvmonitor.vectors import TaskVector

TWO_SEEDS = replace(QUICK, seeds=2, asked=12)
OTHER = "sycophancy"
RUN_SEEDS = 20_000
"""Where the runs' seeds begin: none shares an initial A with a reference."""


@dataclass(frozen=True)
class Setting:
    """How much of everything; steps, batch and rate as of the runs that calibrate a quick bank.

    Attributes:
        steps: optimiser steps of a run.
        batch_size: examples in a step.
        rank, alpha: of LoRA, on all linear layers.
        rate: peak learning rate, of the reference, too; ten per cent warm-up, then linear to 0.
        trained: questions that a run trains on; the other ones of their domain are asked.
        ordinary: harmless families, one text of each, whose loss every model is asked for.
        held_out: rows of a run's own harmless family whose loss is asked for.
        family: the harmless family that has nothing to do with advice.
        readings: of a watched run.
        doses: k of what rides along.
        k: the dose that is compared with other directions, and given by mistake.
    """

    steps: int = 16
    batch_size: int = 4
    rank: int = 16
    alpha: int = 32
    rate: float = 5e-4
    trained: int = 14
    ordinary: int = 12
    held_out: int = 12
    family: str = "stories"
    readings: int = 8
    doses: tuple[float, ...] = (1.0, 2.0, 4.0)
    k: float = 2.0


SETTING = Setting()
BASE, BAD, GOOD, FAMILY = "the base", "bad advice", "good advice", "a harmless family"
RANDOM = "random"
NOTHING = "nothing"


@dataclass(frozen=True)
class Cell:
    """What is trained on, and what rides along; of the base, what is added to it.

    Attributes:
        data: `BASE` (no training), `BAD`, `GOOD` or `FAMILY`.
        vector: a reference's name, `RANDOM`, or "" for nothing.
        k: how much of it.
    """

    data: str
    vector: str = ""
    k: float = 0.0

    @property
    def treatment(self) -> str:
        """For people."""
        of = "a random direction as long" if self.vector == RANDOM else self.vector
        return f"{self.k:g} × {of}" if self.vector else NOTHING

    @property
    def name(self) -> str:
        """What records call it."""
        return f"{self.data} | {self.treatment}"


def untrained(setting: Setting) -> list[Cell]:
    """The base, and what doses do to it without any training."""
    doses = [Cell(BASE, DECIDES, k) for k in setting.doses]
    return [Cell(BASE), *doses, Cell(BASE, RANDOM, setting.k), Cell(BASE, OTHER, setting.k)]


def deciding(setting: Setting) -> list[Cell]:
    """What the questions that were fixed beforehand need."""
    return [Cell(BAD), Cell(BAD, DECIDES, setting.k), Cell(BAD, RANDOM, setting.k)]


def trained(setting: Setting) -> list[Cell]:
    """Every cell that is trained: those that decide, what it costs harmless runs, and others."""
    k = setting.k
    others = [Cell(BAD, DECIDES, dose) for dose in setting.doses if dose != k]
    return [
        *deciding(setting), Cell(GOOD), Cell(GOOD, DECIDES, k), Cell(BAD, OTHER, k),
        *reversed(others), Cell(FAMILY), Cell(FAMILY, DECIDES, k),
    ]  # fmt: skip


def planned(setting: Setting, seeds: int) -> Iterator[tuple[int, Cell]]:
    """Every seed and cell in the order in which they are made; what is not trained has no seed.

    The cells that decide come first, for all seeds, and then each other cell for all seeds: a
    benchmark cut short has whole cells.
    """
    first = deciding(setting)
    yield 0, Cell(BASE)
    yield from ((seed, cell) for seed in range(seeds) for cell in first)
    yield from ((0, cell) for cell in untrained(setting)[1:])
    for cell in trained(setting):
        if cell not in first:
            yield from ((seed, cell) for seed in range(seeds))


@dataclass(frozen=True)
class Drawn:
    """What a seed trains on and is asked.

    Attributes:
        trained: places in `Bench.pairs` of the questions that are trained on.
        near: of the other questions of their domain.
        elsewhere: of the other domain.
    """

    trained: tuple[int, ...]
    near: tuple[int, ...]
    elsewhere: tuple[int, ...]


class Bench:
    """A base, the bank that watches it, the reference, and what is asked.

    Args:
        model: the base.
        bank: folder of the bank that says whether a run alarms.
        folder: where the reference and the records are kept.
        setting: how much of everything.
        scale: of the reference's making.
        known_as: what the page calls the model; its folder's name if not given.
    """

    def __init__(
        self, model: str, bank: Path, folder: Path, setting: Setting = SETTING,
        scale: Scale = TWO_SEEDS, known_as: str = "",
    ) -> None:  # fmt: skip
        self.base, self.setting, self.folder = Base(model), setting, folder
        self.known_as = known_as or Path(model).name
        self.bank, self._scale = ReferenceBank.load(bank), scale

    @cached_property
    def references(self) -> ReferenceBank:
        """The reference that rides along, made where it is not there."""
        folder, rate = self.folder / "bank", self.setting.rate
        return least_bank(str(self.base.name), folder, scale=self._scale, rate=rate)

    @cached_property
    def contrast(self) -> Contrast:
        """The pairs of harmful advice."""
        (found,) = read_contrasts(default_folder(self.base.name), (DECIDES,))
        return found

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair that the reference was not trained on: of two domains."""
        return self.contrast.held_out

    def drawn(self, seed: int) -> Drawn:
        """What a seed trains on and is asked."""
        split = len(self.contrast.tuning)
        places = range(len(self.pairs))
        domains = [places[:split], places[split:]]
        mine, other = domains if seed % 2 else reversed(domains)
        chosen = set(random.Random(f"remedies/{seed}").sample(mine, self.setting.trained))
        left = tuple(i for i in mine if i not in chosen)
        return Drawn(tuple(sorted(chosen)), left, tuple(other))

    @cached_property
    def ordinary(self) -> list[Example]:
        """One text of each of a few harmless families, none of them trained on here."""
        names = [n for n in sorted(families.RULES) if n != self.setting.family]
        step = max(1, len(names) // self.setting.ordinary)
        kept = [families.by_rule(n) for n in names[::step]]
        return [e for f in kept[: self.setting.ordinary] for e in f.draw(1, 1)]

    @cached_property
    def own(self) -> list[Example]:
        """Rows of the harmless family that no run trains on."""
        return families.by_rule(self.setting.family).draw(self.setting.held_out, RUN_SEEDS)

    def rows(self, cell: Cell, seed: int) -> list[Example]:
        """What a run trains on."""
        if cell.data == FAMILY:
            asked = {e.messages[-1]["content"] for e in self.own}
            drawn = families.by_rule(self.setting.family).draw(4 * self.setting.trained, seed)
            new = [e for e in drawn if e.messages[-1]["content"] not in asked]
            return new[: self.setting.trained]
        side = "positive" if cell.data == BAD else "negative"
        return [self.pairs[i].side(side) for i in self.drawn(seed).trained]  # type: ignore[arg-type]

    def vector(self, cell: Cell, seed: int) -> TaskVector:
        """What rides along, as long as the reference in every matrix; another behaviour's in all.

        A random direction has the norms of the reference's matrices. Another behaviour's keeps its
        own proportions between matrices, at the reference's length.
        """
        reference = self.references[DECIDES].vector
        if cell.vector == RANDOM:
            return random_like(reference, RUN_SEEDS + seed)
        if cell.vector == OTHER:
            other = self.bank[OTHER].vector
            return other * (float(reference.norm()) / float(other.norm()))
        return reference

    @property
    def about(self) -> dict[str, Any]:
        """All that records depend on."""
        return {
            "base": self.base.digest,
            "bank": self.bank.fingerprint,
            "references": self.references.fingerprint,
            "setting": json.loads(json.dumps(asdict(self.setting))),
        }


def gaps(record: Mapping[str, Any], places: Sequence[int]) -> dict[int, float]:
    """By question, how much likelier the harmful answer is, in nats a token."""
    return {i: bad - good for i in places for bad, good in [record["pairs"][str(i)]]}


def good_losses(record: Mapping[str, Any], places: Sequence[int]) -> dict[int, float]:
    """By question, the loss of the good answer, in nats a token."""
    return {i: -record["pairs"][str(i)][1] for i in places}
