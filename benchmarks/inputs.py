"""Adapters, banks and checkpoints of given shapes with random weights, as files and in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from wvmonitor.files.safetensors import PlannedTensor, write_safetensors
from wvmonitor.reading import Gram
from wvmonitor.references import BaseIdentity, Card, Construction, Reference, ReferenceBank, store
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Origin, TaskVector, Update

DIGEST = hashlib.sha256(b"benchmarks").hexdigest()
Linears = Mapping[str, tuple[int, int]]


def factors(
    linears: Linears, rank: int, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Update]:
    """A random low-rank update of each linear layer."""
    generator = torch.Generator(device).manual_seed(seed)
    return {
        name: LowRankUpdate(
            torch.randn(o, rank, generator=generator, device=device) * 0.02,
            torch.randn(rank, i, generator=generator, device=device) * 0.02,
        )
        for name, (o, i) in linears.items()
    }


def vector(linears: Linears, rank: int, seed: int) -> TaskVector:
    """A random low-rank task vector in memory."""
    origin = Origin("memory", base_digest=DIGEST, method="lora", rank=rank)
    return TaskVector.of(factors(linears, rank, seed), origin)


def reference(name: str, updates: Mapping[str, Update]) -> Reference:
    """A reference that holds given updates."""
    card = Card(
        name=name,
        behaviour="none: random numbers",
        base=BaseIdentity(id="random", digest=DIGEST),
        built=Construction(recipe="benchmarks"),
    )
    return Reference(card, TaskVector.of(updates, Origin(name, base_digest=DIGEST)))


def write_bank(
    folder: Path, linears: Linears, references: int, rank: int, seed: int = 1000
) -> Path:
    """A bank's folder, written one reference at a time, with a placeholder for its Gram matrix.

    No score is looked at here, and the true Gram matrix of large references takes minutes.
    """
    names = [f"reference-{i}" for i in range(references)]
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        reference(name, factors(linears, rank, seed + index)).save(folder / name)
    gram = _placeholder(names, list(linears))
    store.save_gram(folder / store.GRAM_FILE, gram, 0o644)
    store.write_manifest(folder, mode=0o644)
    return folder


def write_adapter(
    folder: Path,
    linears: Linears,
    rank: int,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    alpha: float | None = None,
) -> Path:
    """A PEFT LoRA folder, as `save_pretrained` lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, update in factors(linears, rank, seed).items():
        assert isinstance(update, LowRankUpdate)
        path = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{path}.lora_A.weight"] = update.right.to(dtype)
        tensors[f"{path}.lora_B.weight"] = update.left.to(dtype)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "random/base",
        "r": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "target_modules": sorted({n.split(".")[-2] for n in linears}),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, tuple[int, ...]],
    seed: int,
    *,
    moved: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """A dense checkpoint: the random base of seed 0, moved by noise of its own seed."""
    folder.mkdir(parents=True, exist_ok=True)

    def make(index: int, shape: tuple[int, ...]) -> torch.Tensor:
        made = torch.randn(shape, generator=torch.Generator().manual_seed(index)) * 0.02
        if moved:
            noise = torch.Generator().manual_seed(1_000_003 * seed + index)
            made += torch.randn(shape, generator=noise) * moved
        return made.to(dtype)

    plans = {
        name: PlannedTensor(dtype, shape, lambda i=i, s=shape: make(i, s))  # type: ignore[misc]
        for i, (name, shape) in enumerate(tensors.items())
    }
    write_safetensors(folder / "model.safetensors", plans)
    config = {"model_type": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bank_of(references: Iterable[Reference]) -> ReferenceBank:
    """A bank in memory, with a placeholder for its Gram matrix."""
    held = list(references)
    return ReferenceBank(held, gram=_placeholder([r.name for r in held], held[0].vector.names()))


def _placeholder(names: list[str], parameters: list[str]) -> Gram:
    """A Gram matrix as if the references were of length 1 and had nothing in common."""
    tables = np.zeros((len(parameters), 1, 1)) + np.eye(len(names))
    return Gram(
        references=tuple(names),
        kinds=("behaviour",) * len(names),
        parameters=tuple(parameters),
        components=("blocks",) * len(parameters),
        products={"frobenius": tables},
        shared={"frobenius": np.full(len(names), np.nan)},
    )


def dense(update: Update) -> torch.Tensor:
    """An update as a float64 matrix: what an independent formula is computed from."""
    if isinstance(update, DenseUpdate):
        return update.delta.double()
    return update.left.double() @ update.right.double()
