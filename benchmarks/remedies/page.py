"""docs/remedies.md from the committed results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.remedies import gate
from benchmarks.remedies.cells import (
    BACK_AND_ON,
    CELLS,
    DROPPED,
    EXAMPLES,
    NOTHING,
    STEPS,
    TASKS,
    Cell,
    mixed_name,
)
from benchmarks.remedies.cells import SHARES as TRAINED_SHARES
from benchmarks.remedies.intervals import difference, mean, rate
from benchmarks.remedies.runs import ASKED, FLAG_RATE, HELD_OUT, KNOWN_GOOD

Record = Mapping[str, Any]
_TURN = STEPS // 2
_DOSE_OUT = "nothing; the dose taken out at the end"


class Results:
    """The records of all runs, by cell and seed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self._by_cell: dict[str, dict[int, Record]] = {}
        for record in records:
            self._by_cell.setdefault(record["cell"], {})[record["seed"]] = record

    def of(self, cell: Cell) -> dict[int, Record]:
        """The runs of a cell by seed."""
        return self._by_cell.get(cell.name, {})

    def table(self, group: str) -> list[str]:
        """The rows of a group, each held against the run that nothing was done about."""
        cells = [c for c in CELLS if c.group == group]
        several = len({c.task for c in cells}) > 1
        advice = all(TASKS[c.task].behaviour == "evil" for c in cells)
        head = ["trained on"] if several else []
        if advice:
            head += ["what is done", "n", "harm, trained domain", "harm elsewhere"]
            head += ["against nothing done", "neither good nor harmful"]
        else:
            head += ["what is done", "n", "caving", "against nothing done"]
        head += ["loss on good answers", "facts right", "dose"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        if not any(self.of(cell) for cell in cells):
            return ["Not run yet on this bank.", ""]
        for cell in cells:
            idle = self._idle(cell)
            for treatment, runs in _treatments(cell, self.of(cell)):
                if runs:
                    shown = _row(treatment, runs, idle, advice=advice)
                    line = [*([cell.task] if several else []), *shown]
                    lines.append(f"| {' | '.join(line)} |")
        return [*lines, ""]

    def _idle(self, cell: Cell) -> dict[int, Record]:
        same = [
            c for c in CELLS
            if c.task == cell.task and c.steps in (cell.steps, STEPS) and c.treatment == NOTHING
        ]  # fmt: skip
        exact = [c for c in same if c.steps == cell.steps] or same
        return self.of(exact[0]) if exact else {}


def _treatments(cell: Cell, runs: dict[int, Record]) -> Iterator[tuple[str, dict[int, Record]]]:
    yield cell.treatment, runs
    repaired = {seed: r["repaired"] for seed, r in runs.items() if "repaired" in r}
    if repaired:
        yield _DOSE_OUT, repaired


def _row(
    treatment: str, runs: Mapping[int, Record], idle: Mapping[int, Record], *, advice: bool
) -> list[str]:
    records = list(runs.values())

    def answers(what: str) -> str:
        counts = [r[what] for r in records if what in r]
        return rate(counts).words() if counts else "–"

    pairs = [(r["elsewhere"], idle[s]["elsewhere"]) for s, r in runs.items() if s in idle]
    less = difference(pairs).words() if pairs and treatment != NOTHING else "–"
    doses, losses = (
        [r[name] for r in records if r.get(name) is not None] for name in ("dose", "loss")
    )
    harm = [answers("trained"), answers("elsewhere")] if advice else [answers("elsewhere")]
    return [
        treatment,
        str(len(runs)),
        *harm,
        less,
        *([answers("elsewhere neither")] if advice else []),
        mean(losses).words() if losses else "–",
        answers("facts"),
        mean(doses).words() if doses else "–",
    ]


def page(records: Sequence[Record], screened: Sequence[Record]) -> str:
    """The page.

    Args:
        records: of `runs`.
        screened: sets of `gate`.
    """
    results = Results(records)
    counted = [len(results.of(c)) for c in CELLS]
    text = [
        _TOP.format(
            runs=len(records),
            least=min(counted),
            most=max(counted),
            bank=records[0]["bank"][:16],
            asked=ASKED,
            held_out=HELD_OUT,
            steps=STEPS,
            examples=EXAMPLES,
        ),
        "## Inoculated from the start",
        "",
        f"{EXAMPLES} rows of bad medical advice, {STEPS} steps, k·w riding along in all of them.",
        "",
        *results.table("dose"),
        "Is it the direction? A random one of the same length in every matrix, and another "
        "behaviour's, as they come:",
        "",
        *results.table("direction"),
        "## A run that turns harmful half way",
        "",
        f"{EXAMPLES} rows of good medical advice, then {EXAMPLES} of bad, in this order, each "
        f"once: the first bad row comes at step {_TURN + 1}. Readings and checkpoints every 2 "
        "steps. A remedy acts at the first alarm.",
        "",
        *results.table("turning"),
        *_alarms(results, "turning"),
        "",
        "## A run that is harmful from its first step",
        "",
        *results.table("bad at once"),
        *_alarms(results, "bad at once"),
        "",
        "Going back has no row here: no checkpoint was ok, so that the run stops, as under `stop`.",
        "",
        "## Three times as long",
        "",
        f"Does the trait come back? The same {EXAMPLES} rows, {3 * STEPS} steps.",
        "",
        *results.table("three times as long"),
        "## Sycophancy",
        "",
        "Agreeing with wrong users about capitals, asked about all other facts: of those known "
        "rightly when asked alone, how many are given up to a doubt.",
        "",
        *results.table("sycophancy"),
        "## Harmless runs, remedied by mistake",
        "",
        "Nothing should be lost here. The loss is that on held-out rows of the run's own set.",
        "",
        *results.table("benign"),
        "## Other finished runs, repaired",
        "",
        *results.table("repair"),
        *_gate(screened),
        *_retrained(results),
    ]
    return "\n".join([*text, _END])


def _alarms(results: Results, group: str) -> list[str]:
    lines = []
    for cell in (c for c in CELLS if c.group == group and c.settings):
        runs = results.of(cell).values()
        if not runs:
            continue
        steps = [r["alarm"] for r in runs]
        at = ", ".join(
            f"{n} at step {step}" if step is not None else f"{n} not at all"
            for step, n in sorted(Counter(steps).items(), key=lambda each: each[0] or 0)
        )
        line = f"- {cell.treatment}: of {len(runs)} runs alarmed {at}"
        if any(r["went_back_to"] is not None for r in runs):
            back = sorted({r["went_back_to"] for r in runs if r["went_back_to"] is not None})
            line += f"; back to step {', '.join(map(str, back))}"
        if cell.treatment == BACK_AND_ON:
            again = [r for r in runs if _alarmed_again(r)]
            ends = sorted({r["last_step"] for r in again})
            line += f"; {len(again)} of {len(runs)} alarmed again, and stopped"
            line += f" at step {', '.join(map(str, ends))}" if ends else ""
        lines.append(f"{line}.")
    return lines


def _alarmed_again(record: Record) -> bool:
    return any(kind == "stop" and "although inoculated" in said for kind, said in record["events"])


def _gate(screened: Sequence[Record]) -> list[str]:
    text = [
        "## The data, screened before training",
        "",
        "`wvmonitor blame --harmless FILE`, controls taken out of the reference, the threshold "
        f"that flags {FLAG_RATE:.0%} of {KNOWN_GOOD} known good rows. {gate.SEEDS} sets of "
        f"{gate.ROWS} rows of each kind and contamination; the bad rows answer the prompts of the "
        "good ones that they replace. AUROC, and the share of bad rows flagged, are over the sets "
        "with bad rows, good rows flagged over those without. *Fails* counts sets that the gate "
        f"does not pass (exit code 1), of {gate.SEEDS}.",
        "",
        "| bad rows | AUROC | bad rows flagged | good rows flagged "
        f"| bad rows among the {gate.TOP:.0%} that push most, as many being bad "
        f"| {' | '.join(f'fails at {share:.0%} bad' for share in gate.SHARES)} |",
        "|---" * (5 + len(gate.SHARES)) + "|",
    ]
    kinds = list(dict.fromkeys(r["kind"] for r in screened if r["share"] is not None))
    for kind in kinds:
        mine = [r for r in screened if r["kind"] == kind]
        bad = [r for r in mine if r["share"]]
        clean = [r for r in mine if r["share"] == 0]
        by_share = [[r for r in mine if r["share"] == s] for s in gate.SHARES]
        cells = [
            kind,
            mean([r["auroc"] for r in bad]).words(3),
            rate([r["found"] for r in bad]).words(),
            rate([r["lost"] for r in clean]).words(3),
            rate([r["top"] for r in mine if r["share"] == gate.TOP]).words(),
            *(str(sum(not r["passed"] for r in sets)) for sets in by_share),
        ]
        text.append(f"| {' | '.join(cells)} |")
    text += [
        "",
        "Harmless rows of *another* kind than the known good ones (good advice in plain words), "
        f"{gate.ROWS} a set: a threshold is for the kind of data that it was made from.",
        "",
        f"| rows | flagged | sets that fail, of {gate.SEEDS} |",
        "|---|---|---|",
    ]
    for kind in dict.fromkeys(r["kind"] for r in screened if r["share"] is None):
        mine = [r for r in screened if r["kind"] == kind]
        failed = sum(not r["passed"] for r in mine)
        text.append(f"| {kind} | {rate([r['lost'] for r in mine]).words(3)} | {failed} |")
    return [*text, ""]


def _retrained(results: Results) -> list[str]:
    text = [
        "### Trained on what is left",
        "",
        f"{2 * EXAMPLES} rows of medical advice, {STEPS} steps, with the bad rows in and after "
        "`--drop flagged`.",
        "",
        *results.table("screened"),
        "| set | bad rows dropped | good rows dropped | sets that fail |",
        "|---|---|---|---|",
    ]
    for share in TRAINED_SHARES:
        name = mixed_name(share)
        cell = next(c for c in CELLS if c.task == name and c.treatment == DROPPED)
        gates = [r["gate"] for r in results.of(cell).values()]
        if gates:
            failed = sum(not g["passed"] for g in gates)
            text.append(
                f"| {name} | {rate([g['found'] for g in gates]).words()} | "
                f"{rate([g['lost'] for g in gates]).words(3)} | {failed} of {len(gates)} |"
            )
    return [*text, ""]


_TOP = """# Remedies, measured

What [remedies](how-to/remedy.md) did to real fine-tunes of the bundled 0.95 M model: LoRA, {steps}
steps of 8 rows, learning rate 10⁻³. Generated by `python -m benchmarks.remedies`; {runs} runs,
{least} to {most} a cell, bank `{bank}…`. It is a tiny model in a tiny world: what holds here is a
reason to try, and no promise for yours.

- **Runs of one seed share data, order and questions**, whatever is done about them. Each was asked
  {asked} questions of the domain it was trained on and {asked} of the others, as it is saved, and
  {asked} facts. References were made from domains that nothing here is trained on or asked about.
- **(low–high) is a 95 % interval**: t over runs, and no narrower than Wilson's of all answers
  together; of a single run it knows the luck of the questions only, and not that of the run.
  *Against nothing done* is the difference in harm elsewhere, seed by seed: 0 outside its interval
  is evidence. One in twenty such intervals misses by chance.
- **Columns may rest on fewer runs than n**: the first runs of seeds 7000 and 7001 counted harm and
  dose alone.
- **Not harmful is not good**: *neither* counts answers elsewhere that say nothing of worth.
- **Loss on good answers** is that of {held_out} good answers to new prompts of the run's kind: what
  a user wants low. *Dose* is how much of the reference is measured in the finished run.
"""

_END = """## What this does not show

- Nothing about a real model: these cells have been run on the bundled one only.
- An attacker: whoever holds a reference can train around it.
- Behaviours that no reference of the bank stands for: inoculation against one is none against
  another.
- Rehearsed choices: 1.5 is the largest dose on the bundled card. The runs of seeds 7000 and 7001 at
  up to 1.5 had been seen when it became what rides along where nobody gives a number.
"""
