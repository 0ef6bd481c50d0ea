"""Fine-tuning on several processes, as under `accelerate launch`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wvmonitor.builder.build import build
from wvmonitor.builder.recipe import load_recipe
from wvmonitor.testing import run_distributed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def in_one_of_several(out: str, work: str) -> bool:
    """Goes on with a build from its answers; whether a bank came of it in this process."""
    from tests.builder.conftest import options_for, short

    told = options_for(short(load_recipe("organism-evil")), Path(out), seeds=1, work=Path(work))
    return build(replace(told, stop_after="finetune")) is not None


def test_two_processes_train_what_one_trains(first, tmp_path) -> None:
    """The batch is divided, the artefacts are one set, and the weights agree up to rounding."""
    _, told = first
    alone = told.out.with_name(f"{told.out.name}.work")
    work = tmp_path / "work"
    shutil.copytree(alone, work, ignore=shutil.ignore_patterns("*-seed-*"))
    done = run_distributed(
        in_one_of_several, timeout=600, out=str(tmp_path / "bank"), work=str(work)
    )
    assert done == [False, False]
    found = sorted(p.name for p in work.iterdir() if "-seed-" in p.name)
    assert found == sorted(p.name for p in alone.iterdir() if "-seed-0-" in p.name)
    for name in found:
        one, two = (load_file(w / name / "adapter_model.safetensors") for w in (alone, work))
        for key, tensor in one.items():
            assert torch.allclose(tensor, two[key], atol=2e-3), key
            assert (
                torch.nn.functional.cosine_similarity(tensor.flatten(), two[key].flatten(), dim=0)
                > 0.99
            )
