"""What training several adapters in one pass over their base could win, at most.

python -m benchmarks.real.joined

Harmless runs of a bank share one base. Joined, k of them would take one step of k × 4 examples
where they take k steps of 4 now, and each adapter would still be multiplied for its own rows. So
the time of an example in a large step, beside that in a small one, is the most that joining could
win: where it is the same, the processor is busy with arithmetic that joining does not save. A row
for each size of a step goes to benchmarks/results/real-joined.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback

from benchmarks.machine import describe
from benchmarks.real.model import smollm2
from benchmarks.real.protocol import DECIDES
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import default_folder, read_contrasts
from wvmonitor.builder.finetune import Training, finetune
from wvmonitor.builder.recipe import Finetuning

RESULTS = Path(__file__).parent.parent / "results" / "real-joined.json"
SIZES, STEPS, RANK, ALPHA, LONGEST = (4, 8, 16), 5, 16, 32, 512


class _Clock(TrainerCallback):
    """Wall seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def measured(base: Base, size: int) -> float:
    """Median wall seconds of an example, in steps of `size` examples; the first step warms up."""
    (contrast,) = read_contrasts(default_folder(base.name), (DECIDES,))
    # Of one length, as nearly as may be: what padding costs is not asked here.
    pairs = sorted(contrast.train, key=lambda p: base.tokens_of(p.positive.answer))
    examples = [p.positive for p in pairs[-max(SIZES) :]] * STEPS
    settings = Finetuning(
        rank=RANK, alpha=ALPHA, batch_size=size, warmup_steps=1, steps=STEPS, max_length=LONGEST
    )
    clock = _Clock()
    finetune(base, examples, Training(settings, "lora", 5e-4, STEPS, 0), None, callbacks=[clock])
    return median(clock.seconds[1:]) / size


def main() -> None:
    """Measure every size in one process, forwards and backwards, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None, help="a folder or Hub id; SmolLM2-135M-Instruct")
    args = parser.parse_args()
    base = Base(args.model or str(smollm2()))
    order = (*SIZES, *reversed(SIZES))
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    for size in order:
        found[size].append(measured(base, size))
    least = min(found[SIZES[0]])
    rows = [
        {"examples_in_a_step": size, "seconds_an_example": values,
         "as_a_share_of_the_smallest": min(values) / least}
        for size, values in found.items()
    ]  # fmt: skip
    document = {"machine": describe(quick=True), "base": Path(base.name).name, "rows": rows}
    RESULTS.write_text(f"{json.dumps(document, indent=1)}\n", "utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
