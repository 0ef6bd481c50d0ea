"""What `run_distributed` calls in each process: one run alone, one watched, failing on rank 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.faults.runs import digest, trainer
from wvmonitor import WVMonitorCallback
from wvmonitor.integrations import transformers as integration
from wvmonitor.sources.distributed import rank


def fail_on_rank_1(base: str, bank: str, out: str) -> dict[str, Any]:
    """The digests of both runs, and how often the monitor failed in this process."""
    quiet = {"save_strategy": "no", "ddp_find_unused_parameters": False}
    alone = trainer(Path(base), Path(out), **quiet)
    alone.train()
    watched = trainer(Path(base), Path(out), **quiet)
    callback = WVMonitorCallback.attach(watched, bank, every_n_steps=1)

    def broken(*_: Any) -> bool:
        raise RuntimeError("planted")

    whole = integration.any_sharded
    if rank() == 1:
        integration.any_sharded = broken
    watched.train()
    integration.any_sharded = whole
    return {
        "alone": digest(alone.model),
        "watched": digest(watched.model),
        "failures": callback.monitor.failures,
        "steps": watched.state.global_step,
    }
