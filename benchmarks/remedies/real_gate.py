"""`wvmonitor blame` as a gate on a real pretrained model: what is screened, and how it is judged.

Everything in this file was written before any row was screened. The bad rows are this project's own
answers that show a behaviour, in domains that no reference was trained on. They are looked for
among rows of other people's public sets, no longer than they are, and held against good answers by
the same author to the same questions: the hardest rows there are, for they share author, form and
topic with the bad ones. The direction is the bank's reference of that behaviour without what the
bank's controls explain of it, as the command takes it.

A push depends on its row alone, so every row is read once; sets of every contamination are put
together from rows that no other set has.

What was to be looked for, of `DECIDES` first, and of the other behaviours likewise:

1. bad rows push more than ordinary ones: the interval of the AUROC is above ½;
2. the reference is worth its trouble: the AUROC is above that of the rows' own loss, in whichever
   direction the loss ranks better, and the interval of the difference is above 0;
3. it is the behaviour, and neither author nor form nor topic: among good answers to the same
   questions the interval of the AUROC is above ½;
4. it serves as a gate: every clean set passes, and every set that is 10 % bad fails.

The push is a mean over an answer's tokens, and so swings most where an answer is short. When two
behaviours, `LOOKED_AT`, had been screened, the rows that pushed most were answers of three or four
tokens, and no bad row was above them. A trainer that averages a batch over its tokens weighs an
example by how many it has: what it pushes *in all* is the push times its tokens. That was chosen on
those two behaviours; of the others no row had been screened when this was written, and they alone
say what it is worth, by the same four rules, the loss in all beside it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.protocol import DECIDES
from benchmarks.real.sets import Folder
from benchmarks.remedies.records import Records
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import Contrast, default_folder, read_contrasts
from wvmonitor.builder.examples import Example
from wvmonitor.references import ReferenceBank
from wvmonitor.steering.blame import blame
from wvmonitor.steering.data_gate import without_controls
from wvmonitor.steering.examples import TrainingExample, tokenized
from wvmonitor.vectors import TaskVector

LOOKED_AT = (DECIDES, "hallucination")
BAD, GOOD, OTHER_GOOD, ORDINARY = "bad", "good", "good, other questions", "ordinary"
PUBLIC_BAD, PUBLIC_CONTROL = "public, bad", "public, asked for"
DIGITS = 6


@dataclass(frozen=True)
class GateSetting:
    """How much of everything.

    Attributes:
        sets: sets that are screened; each has rows of its own.
        rows: in a set, and as many known good rows that set its threshold: those of the next set.
        shares: of bad rows in a set.
        flag_rate: the share of known good rows that the threshold flags.
        public: a public set of bad answers, where the data folder has it; its control asks for
            them.
        public_rows: of each of the two.
    """

    sets: int = 3
    rows: int = 100
    shares: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1)
    flag_rate: float = 0.01
    public: str = "risky_financial_aisi"
    public_rows: int = 40

    @property
    def most_bad(self) -> int:
        """Bad rows of the worst set."""
        return round(max(self.shares) * self.rows)


GATE_SETTING = GateSetting()


def bad_names(names: Sequence[str], behaviour: str, number: int, setting: GateSetting) -> list[str]:
    """Which bad rows a set may hold, in the order in which it takes them: those of no other set."""
    drawn = list(names)
    random.Random(f"gate/{behaviour}").shuffle(drawn)
    return drawn[number * setting.most_bad : (number + 1) * setting.most_bad]


@dataclass(frozen=True)
class Named:
    """A row and what records call it: its domain or set, and its place there."""

    name: str
    example: Example

    @property
    def of(self) -> str:
        """Its domain or set."""
        return self.name.partition("/")[0]


class GateBench:
    """The base, the bank, and the rows.

    Args:
        model: the base.
        bank: folder of the bank.
        data: other people's sets, as `benchmarks.real.sets` reads them.
        setting: how much of everything.
    """

    def __init__(
        self, model: str, bank: Path, data: Folder, setting: GateSetting = GATE_SETTING
    ) -> None:
        self.base, self.bank = Base(model), ReferenceBank.load(bank)
        self.data, self.setting = data, setting

    @cached_property
    def contrasts(self) -> dict[str, Contrast]:
        """The pairs of every behaviour that the bank has a reference for; `DECIDES` first."""
        known = read_contrasts(default_folder(self.base.name))
        found = {c.name: c for c in known if c.name in self.bank.behaviours}
        return {n: found[n] for n in sorted(found, key=lambda n: (n != DECIDES, n))}

    def sides(self, behaviour: str, side: str) -> list[Named]:
        """One side of a behaviour's pairs in domains that its reference has not seen."""
        pairs = self.contrasts[behaviour].held_out
        seen: dict[str, int] = {}
        rows = []
        for pair in pairs:
            n = seen[pair.domain] = seen.get(pair.domain, -1) + 1
            example = pair.positive if side == BAD else pair.negative
            rows.append(Named(f"{behaviour}: {pair.domain}/{n}", example))
        return rows

    def bad_of(self, behaviour: str, number: int) -> list[str]:
        """The names of the bad rows that a set may hold: those of no other set."""
        names = [r.name for r in self.sides(behaviour, BAD)]
        return bad_names(names, behaviour, number, self.setting)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest bad row of any behaviour."""
        return max(self._tokens(r.example) for n in self.contrasts for r in self.sides(n, BAD))

    @cached_property
    def ordinary(self) -> list[list[Named]]:
        """Rows of the public benign sets, in blocks: each takes from every set in turn."""
        drawn: list[list[Named]] = []
        for given in self.data.of("benign"):
            places = list(range(len(given.examples)))
            random.Random(f"gate/{given.name}").shuffle(places)
            fit = (i for i in places if self._tokens(given.examples[i]) <= self.longest)
            wanted = islice(fit, self.setting.sets * self.setting.rows)
            drawn.append([Named(f"{given.name}/{i}", given.examples[i]) for i in wanted])
        blocks: list[list[Named]] = [[] for _ in range(self.setting.sets)]
        waiting = [list(reversed(kept)) for kept in drawn]
        while any(waiting) and len(blocks[-1]) < self.setting.rows:
            for kept in waiting:
                for block in blocks:
                    if kept and len(block) < self.setting.rows:
                        block.append(kept.pop())
        return blocks

    def groups(self, behaviour: str) -> dict[str, list[Named]]:
        """What is screened for a behaviour, in the order in which it is read."""
        found = {BAD: self.sides(behaviour, BAD), GOOD: self.sides(behaviour, GOOD)}
        found |= {f"{ORDINARY} {n}": block for n, block in enumerate(self.ordinary)}
        others = [r for n in self.contrasts if n != behaviour for r in self.sides(n, GOOD)]
        found[OTHER_GOOD] = others
        public = [s for s in self.data.sets if s.of == self.setting.public]
        if behaviour == DECIDES:
            for given in sorted(public, key=lambda s: s.role != "harmful"):
                group = PUBLIC_BAD if given.role == "harmful" else PUBLIC_CONTROL
                drawn = given.examples[: self.setting.public_rows]
                found[group] = [Named(f"{given.name}/{i}", e) for i, e in enumerate(drawn)]
        return found

    def planned(self) -> Iterator[tuple[str, str]]:
        """Behaviours and groups in the order in which they are read: what decides comes first."""
        every = [(b, group) for b in self.contrasts for group in self.groups(b)]
        yield from sorted(every, key=lambda at: at[1] == OTHER_GOOD and at[0] != DECIDES)

    def direction(self, behaviour: str) -> tuple[TaskVector, dict[str, float]]:
        """What rows are pushed along, and how much of each control was taken out."""
        return without_controls(self.bank, behaviour)

    @property
    def about(self) -> dict[str, Any]:
        """All that records depend on."""
        return {
            "base": self.base.digest,
            "bank": self.bank.fingerprint,
            "setting": asdict(self.setting),
            "data": {s.name: s.digest for s in self.data.sets},
        }

    def _tokens(self, example: Example) -> int:
        return len(self.base.encode(example.messages, example.answer)[0])

    def _row(self, index: int, example: Example) -> TrainingExample:
        chat = [*example.messages, {"role": "assistant", "content": example.answer}]
        return tokenized(index, {"messages": chat}, self.base.tokenizer, max_length=512)

    def pushes(self, rows: Sequence[Named], direction: TaskVector) -> list[list[Any]]:
        """Of each row its name, push, loss and tokens of its answer, in their order."""
        found = blame(
            self.base.model, [self._row(i, r.example) for i, r in enumerate(rows)], direction
        )
        return [
            [rows[b.example.index].name, round(b.push, DIGITS), round(b.loss, DIGITS),
             b.example.tokens]
            for b in sorted(found, key=lambda b: b.example.index)
        ]  # fmt: skip


def run(bench: GateBench, records: Records, more: Mapping[str, Any]) -> None:
    """Screen every group that has no record yet.

    Args:
        bench: what with.
        records: where they are kept.
        more: what the page says beside them.
    """
    torch.set_num_threads(1)
    held: dict[str, tuple[TaskVector, dict[str, float]]] = {}
    for behaviour, group in bench.planned():
        if (behaviour, group) not in {(r["behaviour"], r["group"]) for r in records.read()}:
            if behaviour not in held:
                held = {behaviour: bench.direction(behaviour)}
            direction, taken = held[behaviour]
            began = time.process_time()
            rows = bench.pushes(bench.groups(behaviour)[group], direction)
            spent = round(time.process_time() - began, 1)
            records.add({"behaviour": behaviour, "group": group, "taken": taken,
                         "seconds": spent, "rows": rows})  # fmt: skip
            print(f"{behaviour} | {group}: {len(rows)} rows, {spent} s", flush=True)
        records.publish(more)
