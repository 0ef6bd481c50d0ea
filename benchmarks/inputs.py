"""Adapters, banks and checkpoints of given shapes with random weights, as files and in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import math
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


@functools.cache
def _pool(device: torch.device | str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(1 << 22, generator=generator, device=device)


def noise(
    shape: tuple[int, ...], seed: int, size: float, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Gaussian numbers cut out of one pool at a place that depends on the seed, `size` large.

    To draw every number anew would take longer than what is measured.
    """
    pool, count = _pool(device), math.prod(shape)
    start = seed * 1_000_003 % max(1, len(pool) - count)
    if start + count > len(pool):
        pool = pool.repeat(-(-(start + count) // len(pool)))
    return pool[start : start + count].reshape(shape) * size


def factor(
    shape: tuple[int, int], rank: int, seed: int, device: torch.device | str = "cpu"
) -> LowRankUpdate:
    """A random low-rank update of one linear layer."""
    return LowRankUpdate(
        noise((shape[0], rank), 2 * seed, 0.02, device),
        noise((rank, shape[1]), 2 * seed + 1, 0.02, device),
    )


def factors(
    linears: Linears,
    rank: int,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    digest: str = DIGEST,
) -> TaskVector:
    """A random low-rank update of each linear layer, made whenever it is asked for."""
    number = {name: index for index, name in enumerate(linears)}

    def produce(name: str) -> Update:
        return factor(linears[name], rank, 100_003 * seed + number[name], device)

    return TaskVector(linears, produce, Origin("noise", base_digest=digest, method="lora"))


def reference(name: str, vector: TaskVector, digest: str = DIGEST) -> Reference:
    """A reference of a given vector, for the base of that digest."""
    card = Card(
        name=name,
        behaviour="none: random numbers",
        base=BaseIdentity(id="random", digest=digest),
        built=Construction(recipe="benchmarks"),
    )
    return Reference(card, vector)


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
    base: str = "random/base",
) -> Path:
    """A PEFT LoRA folder, as `save_pretrained` lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, update in factors(linears, rank, seed).updates():
        assert isinstance(update, LowRankUpdate)
        path = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{path}.lora_A.weight"] = update.right.to(dtype)
        tensors[f"{path}.lora_B.weight"] = update.left.to(dtype)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
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
        made = noise(shape, index, 0.02)
        if moved:
            made += noise(shape, 1009 * seed + index, moved)
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
