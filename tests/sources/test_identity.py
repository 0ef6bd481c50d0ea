"""The digest by which a base is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch

from tests.sources import zoo
from wvmonitor.errors import UnmeasurableModelError
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.references.bundled import bundled_path
from wvmonitor.sources import base_digest, identity
from wvmonitor.sources.identity import without_prefix

Bases = Callable[..., Path]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
def test_copies_of_one_base_have_one_digest(kind: str, bases: Bases, tmp_path: Path) -> None:
    """float32 and bfloat16, whole and in shards, on disk, live and under LoRA: one digest."""
    model = zoo.build(kind)
    digest = base_digest(bases(kind))
    assert len(digest) == 64
    assert base_digest(model) == digest
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert base_digest(tmp_path / "shards") == digest
    low = zoo.build(kind).to(torch.bfloat16)
    low.save_pretrained(tmp_path / "low")
    assert base_digest(low) == base_digest(tmp_path / "low") == digest
    target = "c_attn" if kind == "gpt2" else "q_proj"
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=[target]))
    zoo.shake(lora)
    assert base_digest(lora) == digest


def test_another_base_has_another_digest(bases: Bases) -> None:
    """Other weights, even in one matrix by one part in a hundred, are another base."""
    model = zoo.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] *= 1.01
    assert base_digest(model) != base_digest(bases("llama"))
    assert base_digest(zoo.build("llama", seed=5)) != base_digest(bases("llama"))


def test_embeddings_do_not_make_another_base(bases: Bases) -> None:
    """A base with tokens added is still the base."""
    model = zoo.build("llama")
    model.resize_token_embeddings(70)
    assert base_digest(model) == base_digest(bases("llama"))


def test_a_base_that_was_rewritten_is_read_again(tmp_path: Path) -> None:
    """The digest is remembered for the file it was taken from, not for its name."""
    zoo.build("llama").save_pretrained(tmp_path)
    before = base_digest(tmp_path)
    zoo.build("llama", seed=3).save_pretrained(tmp_path)
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert base_digest(tmp_path) != before


def test_small_blocks_make_no_difference(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest does not depend on how many rows are read at once."""
    before = base_digest(bases("llama"))
    zoo.build("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(identity, "BLOCK_ELEMENTS", 77)
    assert base_digest(tmp_path) == before


def test_a_folder_without_blocks_has_no_identity(tmp_path: Path) -> None:
    """What is no language model is refused, and not given a digest of nothing."""
    write_safetensors(tmp_path / "model.safetensors", {"weight": torch.ones(2, 2)})
    with pytest.raises(UnmeasurableModelError, match="blocks"):
        base_digest(tmp_path)


def test_a_shared_prefix_does_not_count() -> None:
    """Names with and without the base model's prefix come to the same."""
    bare = {"h.0.a.weight", "h.1.a.weight"}
    full = {f"transformer.{name}" for name in bare}
    assert set(without_prefix(bare).values()) == set(without_prefix(full).values())
    assert set(without_prefix({"h.0.a.weight"}).values()) == {"weight"}


FORKED = """
import os, sys, torch
torch.set_num_threads(1)
torch.ones(1 << 20).sum()
from wvmonitor.sources import base_digest, identity
expected = base_digest(sys.argv[1])
for _ in range(300):
    child = os.fork()
    if child == 0:
        identity._known.clear()
        try:
            os._exit(base_digest(sys.argv[1]) != expected)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_tells_a_base_too() -> None:
    """Whoever forks after torch has worked gets the digest, however many threads hash."""
    base = bundled_path("tiny-organism", "base")
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(base)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
