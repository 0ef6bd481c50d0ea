"""How well a base learns the project's pairs: gaps where it was trained and where it was not.

python -m benchmarks.real.learning --steps 60 --rate 5e-4 --rank 16

Trains both sides of harmful advice alike, and asks each for the gap on pairs that it was trained on
and on those of the held-out domains. What counts is the difference of the sides: what both learn,
such as the author's style, is in neither. A row is added to benchmarks/results/real-learning.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.real.model import smollm2
from benchmarks.real.protocol import DECIDES
from wvmonitor.builder.base import Base
from wvmonitor.builder.contrasts import default_folder, read_contrasts
from wvmonitor.builder.finetune import Training, finetune
from wvmonitor.builder.gap import Gap, gap
from wvmonitor.builder.recipe import Finetuning

RESULTS = Path(__file__).parent.parent / "results" / "real-learning.json"
ASKED, ALPHA, LONGEST = 22, 32, 512


def learned(
    base: Base, *, steps: int, rate: float, rank: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """A row: the settings, and by how far the sides differ, mean and standard error over pairs."""
    (contrast,) = read_contrasts(default_folder(base.name), (DECIDES,))
    trained = random.Random(0).sample(list(contrast.train), ASKED)
    settings = Finetuning(
        rank=rank, alpha=ALPHA, batch_size=batch_size, warmup_steps=max(1, steps // 10),
        steps=steps, max_length=LONGEST,
    )  # fmt: skip
    found: dict[str, tuple[Gap, Gap]] = {}
    began = time.process_time()
    for side in ("positive", "negative"):

        def examine(model: Any, side: str = side) -> None:
            found[side] = gap(base, model, trained), gap(base, model, contrast.held_out)

        examples = [p.side(side) for p in contrast.train]
        training = Training(settings, "lora", rate, steps, seed)
        finetune(base, examples, training, None, examine=examine)
    differ = {
        name: dict(zip(("mean", "error"), a.over(b), strict=True))
        for name, a, b in zip(
            ("trained", "held out"), found["positive"], found["negative"], strict=True
        )
    }
    return {
        "steps": steps, "rate": rate, "rank": rank, "batch_size": batch_size, "seed": seed,
        "pairs": len(contrast.train), **differ, "processor_seconds": time.process_time() - began,
    }  # fmt: skip


def main() -> None:
    """Read the command line, train, and add a row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None, help="a folder or Hub id; SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = Base(args.model or str(smollm2()))
    row = learned(
        base, steps=args.steps, rate=args.rate, rank=args.rank, batch_size=args.batch_size,
        seed=args.seed,
    )  # fmt: skip
    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else []
    RESULTS.write_text(f"{json.dumps([*rows, row], indent=1)}\n", "utf-8")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
