"""docs/remedies.md from the committed results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.remedies.cells import (
    BACK_AND_ON,
    CELLS,
    DROPPED,
    EXAMPLES,
    STEPS,
    mixed_name,
)
from benchmarks.remedies.cells import SHARES as TRAINED_SHARES
from benchmarks.remedies.gate_page import tables as gate_tables
from benchmarks.remedies.in_short import short
from benchmarks.remedies.intervals import rate, span
from benchmarks.remedies.real_model import RealModel
from benchmarks.remedies.runs import ASKED, HELD_OUT
from benchmarks.remedies.tables import Record, Results
from wvmonitor.steering.edit import AGREE, ALIKE, disagree

_TURN = STEPS // 2
_REPAIRED = ("dose", "turning", "three times as long", "repair")


def page(
    records: Sequence[Record], screened: Sequence[Record], real: RealModel | None = None
) -> str:
    """The page.

    Args:
        records: of `runs`.
        screened: sets of `gate`.
        real: what was measured on a real model.
    """
    real = real or RealModel()
    results = Results(records)
    counted = [len(results.of(c)) for c in CELLS]
    text = [
        _TOP.format(
            runs=len(records),
            a_cell=span(counted),
            fewer=_fewer(records),
            bank=records[0]["bank"][:16],
            asked=ASKED,
            held_out=HELD_OUT,
            steps=STEPS,
            examples=EXAMPLES,
        ),
        *short(results, screened, real),
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
        "What is lost here is the price of a false alarm. The loss is that on held-out rows of the "
        "run's own set.",
        "",
        *results.table("benign"),
        "## Other finished runs, repaired",
        "",
        *results.table("repair"),
        "A run on cruel wishes has no loss: training saw every prompt of their kind.",
        "",
        *_warnings(results),
        *gate_tables(screened),
        *_retrained(results),
    ]
    missing = [cell.name.replace(" | ", ", ") for cell in CELLS if not results.of(cell)]
    if missing:
        text += ["Not run yet, and so in no table: " + "; ".join(missing) + ".", ""]
    return "\n".join([*text, *real.sections(), _END.format(real=real.limits())])


def _fewer(records: Sequence[Record]) -> str:
    """A line of the page where a column rests on fewer runs than its row has."""
    without = sum("loss" not in r or "facts" not in r for r in records)
    if not without:
        return ""
    said = "- **Columns may rest on fewer runs than n**: {} runs counted harm and dose alone.\n"
    return said.format(without)


def _warnings(results: Results) -> list[str]:
    """What `steer --remove` would have said of the runs that were repaired, by their task."""
    lines = []
    for cell in CELLS:
        runs = list(results.of(cell).values()) if cell.repaired else []
        if cell.group not in _REPAIRED or not runs:
            continue
        residuals = [r["residual"] for r in runs]
        warned = sum(r["residual"] < ALIKE or disagree(r["doses"]) for r in runs)
        before, after = (rate([r["trained"] for r in side]).words() for side in (
            runs, [r["repaired"] for r in runs]
        ))  # fmt: skip
        longer = f", {cell.steps} steps" if cell.steps != STEPS else ""
        lines.append(
            f"- {cell.task}{longer}: warned of {warned} of {len(runs)} (residuals "
            f"{min(residuals):.2f} to {max(residuals):.2f}); harm in the trained domain {after} "
            f"after, {before} before."
        )
    if not lines:
        return []
    return [
        f"`steer --remove` warns where the residual is below {ALIKE:g}, or where the doses of the "
        f"two geometries differ by more than a factor of {AGREE:g}. Of the runs on harmful data "
        "above whose dose was taken out:",
        "",
        *lines,
        "",
        "So it says at most whether the harm has the reference's shape, and not how much of it "
        "stays in the domain that was trained.",
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
{a_cell} a cell, bank `{bank}…`. It is a tiny model in a tiny world: what holds here is a
reason to try, and no promise for yours.

- **Runs of one seed share data, order and questions**, whatever is done about them. Each was asked
  {asked} questions of the domain it was trained on and {asked} of the others, as it is saved, and
  {asked} facts. References were made from domains that nothing here is trained on or asked about.
- **(low–high) is a 95 % interval**: t over runs, and no narrower than Wilson's of all answers
  together; of a single run it knows the luck of the questions only, and not that of the run.
  Loss and dose have one from three runs on.
  *Against nothing done* is the difference of the column before it, seed by seed: 0 outside its
  interval is evidence. There are hundreds of them, and one in twenty misses by chance: no interval
  here is corrected for that.
{fewer}- **Not harmful is not good**: *neither* counts answers elsewhere that say nothing of worth.
- **Loss on good answers** is that of {held_out} good answers to new prompts of the run's kind: what
  a user wants low. *Dose* is how much of the reference is measured in the finished run.
"""

_END = """## What this does not show

{real}
- An attacker: whoever holds a reference can train around it.
- Behaviours that no reference of the bank stands for: inoculation against one is none against
  another.
- Rehearsed choices: 1.5 is the largest dose on the bundled card. The runs of seeds 7000 and 7001 at
  up to 1.5 had been seen when it became what rides along where nobody gives a number.
"""
