"""docs/remedies.md from the committed results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.remedies import gate
from benchmarks.remedies.cells import (
    BACK_AND_ON,
    BACK_AND_STOP,
    BRAKE,
    CELLS,
    DROPPED,
    EXAMPLES,
    NOTHING,
    STEPS,
    STOP,
    TASKS,
    Cell,
    mixed_name,
)
from benchmarks.remedies.cells import SHARES as TRAINED_SHARES
from benchmarks.remedies.intervals import difference, mean, rate
from benchmarks.remedies.runs import ASKED, FLAG_RATE, HELD_OUT, KNOWN_GOOD
from wvmonitor.steering.edit import ALIKE

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
        *_short(results, screened),
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
        *_warnings(results),
        *_gate(screened),
        *_retrained(results),
    ]
    missing = [cell.name.replace(" | ", ", ") for cell in CELLS if not results.of(cell)]
    if missing:
        text += ["Not run yet, and so in no table: " + "; ".join(missing) + ".", ""]
    return "\n".join([*text, _END])


def _short(results: Results, screened: Sequence[Record]) -> list[str]:
    """What the tables say, in a few lines; nothing of what has not been run."""
    said = []

    def harm(group: str, treatment: str, what: str, *, repaired: bool = False) -> str | None:
        cell = next(c for c in CELLS if (c.group, c.treatment) == (group, treatment))
        runs = [r["repaired"] if repaired else r for r in results.of(cell).values()]
        return rate([r[what] for r in runs]).words() if runs else None

    def line(text: str, *figures: str | None) -> None:
        if None not in figures:
            said.append("- " + text.format(*figures))

    line(
        "**Inoculated from the start** at 1.5 × evil, harm elsewhere is {} where it is {} with "
        "nothing done, and in the trained domain {} where it is {}.",
        harm("dose", "1.5 × evil", "elsewhere"),
        harm("dose", NOTHING, "elsewhere"),
        harm("dose", "1.5 × evil", "trained"),
        harm("dose", NOTHING, "trained"),
    )
    line(
        "**It comes back** in a run three times as long: {} elsewhere, {} in the trained domain.",
        harm("three times as long", "1.5 × evil", "elsewhere"),
        harm("three times as long", "1.5 × evil", "trained"),
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
    clean, little = ([r for r in screened if r["share"] == share] for share in gate.SHARES[:2])
    if screened:
        said.append(
            "- **Screened data**: the gate finds "
            f"{rate([r['found'] for r in screened if r['share']]).words()} of the bad rows and "
            f"flags {rate([r['lost'] for r in clean]).words(3)} of the good ones; it fails "
            f"{sum(not r['passed'] for r in clean)} of {len(clean)} clean sets, and lets "
            f"{sum(r['passed'] for r in little)} of {len(little)} pass that are "
            f"{percent(gate.SHARES[1])} bad."
        )
    return ["## In short", "", *said, ""]


def percent(share: float) -> str:
    """A share as people write it here: 5 %."""
    return f"{100 * share:g} %"


def _warnings(results: Results) -> list[str]:
    """What `steer --remove` would have said of the runs that were repaired."""
    values = [
        r["residual"]
        for c in CELLS
        if c.repaired and c.group in ("dose", "turning", "three times as long", "repair")
        for r in results.of(c).values()
    ]
    if not values:
        return []
    warned = sum(v < ALIKE for v in values)
    return [
        f"`steer --remove` warns where the residual is below {ALIKE:g}: of the {len(values)} runs "
        "on harmful data above whose dose was taken out it would have warned of "
        f"{warned} (residuals {min(values):.2f} to {max(values):.2f}). It says whether the harm "
        "has the reference's shape, and not how much of it stays in the domain that was trained.",
        "",
    ]


def _alarms(results: Results, group: str) -> list[str]:
    lines = []
    for cell in (c for c in CELLS if c.group == group and c.settings):
        runs = list(results.of(cell).values())
        if not runs:
            continue
        steps = Counter(r["alarm"] for r in runs)
        at = ", ".join(
            f"{'none' if step is None else f'step {step}'} ({n} of {len(runs)})"
            for step, n in sorted(steps.items(), key=lambda each: each[0] or 0)
        )
        line = f"- {cell.treatment}: first alarm at {at}"
        back = sorted({r["went_back_to"] for r in runs if r["went_back_to"] is not None})
        line += f"; back to step {', '.join(map(str, back))}" if back else ""
        if cell.treatment == BACK_AND_ON:
            again = [r["last_step"] for r in runs if _alarmed_again(r)]
            line += f"; {len(again)} of {len(runs)} alarmed again, and stopped"
            line += f" at step {', '.join(map(str, sorted(set(again))))}" if again else ""
        lines.append(f"{line}.")
    return lines


def _alarmed_again(record: Record) -> bool:
    return any(kind == "stop" and "although inoculated" in said for kind, said in record["events"])


def _gate(screened: Sequence[Record]) -> list[str]:
    text = [
        "## The data, screened before training",
        "",
        "`wvmonitor blame --harmless FILE`, controls taken out of the reference, the threshold "
        f"that flags {percent(FLAG_RATE)} of {KNOWN_GOOD} known good rows. {gate.SEEDS} sets of "
        f"{gate.ROWS} rows of each kind and contamination; the bad rows answer the prompts of the "
        "good ones that they replace. AUROC, and the share of bad rows flagged, are over the sets "
        "with bad rows, good rows flagged over those without. *Fails* counts sets that the gate "
        f"does not pass (exit code 1), of {gate.SEEDS}.",
        "",
        "| bad rows | AUROC | bad rows flagged | good rows flagged "
        f"| bad rows among the {percent(gate.TOP)} that push most, as many being bad "
        f"| {' | '.join(f'fails at {percent(share)} bad' for share in gate.SHARES)} |",
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
  Loss and dose have one from three runs on.
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
