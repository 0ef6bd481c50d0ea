"""Ten thousand readings of one run: memory must not grow with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.report import Figure, at_most
from wvmonitor.live.monitor import Monitor, Run
from wvmonitor.testing import planted_bank, tiny_base

READINGS = 10_000
MEGABYTES_PER_THOUSAND = 1.0


def run(folder: Path, scale: float = 1.0) -> list[Figure]:
    """Observe a model that changes a little each time, with journal and metrics.

    Args:
        folder: for the run.
        scale: how much of the full length.
    """
    count = max(int(READINGS * scale), 40)
    base = tiny_base(folder / "base")
    torch.manual_seed(1)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    factors = [p for n, p in model.named_parameters() if "lora_B" in n]
    monitor = Monitor(
        planted_bank(base, probe=True),
        every_n_steps=1,
        max_overhead=1,
        journal_dir=folder / "journal",
        prometheus={"enabled": True, "port": 0},
    )
    monitor.start(model, Run(planned_steps=count))
    memory: list[tuple[int, float, float]] = []
    for step in range(1, count + 1):
        with torch.no_grad():
            for factor in factors:
                factor.add_(torch.randn_like(factor), alpha=1e-4)
        monitor.observe(model, step, force=True)
        if step % max(count // 100, 1) == 0:
            assert monitor.journal is not None
            monitor.journal.flush()
            memory.append((step, resident_megabytes(), private_megabytes()))
    assert monitor.failures == 0
    monitor.close()
    steady = np.array([m for m in memory if m[0] > count / 5])  # the beginning fills caches
    return [
        at_most(
            f"{what} over {count} readings",
            float(np.polyfit(steady[:, 0] / 1000, steady[:, column], 1)[0]),
            MEGABYTES_PER_THOUSAND,
            "MB per 1,000",
            first=steady[0][column],
            last=steady[-1][column],
        )
        for column, what in ((1, "resident memory"), (2, "memory of its own"))
    ]


def resident_megabytes() -> float:
    """This process's resident memory, mapped files (its libraries) included."""
    return _pages()[1] * 4096 / 1e6


def private_megabytes() -> float:
    """The part that holds no file: the system cannot take it back while memory is short."""
    _, resident, shared, *_ = _pages()
    return (resident - shared) * 4096 / 1e6


def _pages() -> list[int]:
    return [int(count) for count in Path("/proc/self/statm").read_text().split()]
