"""Bodies that do not hold what their header says, or that hold what is no weight."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.hostile.corpus import GOOD, Case, Place, described, packed
from wvmonitor.errors import (
    AdapterError,
    InputError,
    MalformedFileError,
    NonFiniteError,
    QuantizedWeightsError,
)

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def weights(header: dict[str, Any], size: int = 16) -> Callable[[Place], Path]:
    """An adapter whose weights have this header and a body of so many zeros."""
    return lambda place: place.adapter_with(described(header, bytes(size)))


def one(**fields: Any) -> Callable[[Place], Path]:
    """An adapter of one tensor whose entry differs from a sound one in these fields."""
    return weights({"w": {**GOOD, **fields}})


def factor(change: Callable[[Tensor], Tensor]) -> Callable[[Place], Path]:
    """The sound adapter with one factor replaced."""
    return lambda place: place.adapter_changed(lambda t: t.update({A: change(t[A])}))


def zip_behind(place: Place) -> Path:
    """Bytes behind the last tensor: an archive for whoever looks for one at the end."""
    sound = (place.adapter / "adapter_model.safetensors").read_bytes()
    return place.adapter_with(sound + b"PK\x05\x06" + bytes(18))


def cut(place: Place) -> Path:
    """A file that is still being written."""
    return place.adapter_with((place.adapter / "adapter_model.safetensors").read_bytes()[:-1])


def sparse_terabyte(place: Place) -> Path:
    """One tensor of 1 TiB that takes no room on disk."""
    size = 2**40
    head = json.dumps({A: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    folder = place.adapter_with(packed(head, b""))
    os.truncate(folder / "adapter_model.safetensors", 8 + len(head) + size)
    return folder


def sparse_factors(place: Place) -> Path:
    """Two factors of 1 TiB together that fit each other and the configuration's rank."""
    size = 2**36
    head_a = "base_model.model.lm_head.lora_A.weight"  # which no reference covers
    entries = {
        head_a: {"dtype": "F64", "shape": [2, size // 2], "data_offsets": [0, 8 * size]},
        head_a.replace("lora_A", "lora_B"): {
            "dtype": "F64",
            "shape": [size // 2, 2],
            "data_offsets": [8 * size, 16 * size],
        },
    }
    head = json.dumps(entries).encode()
    named = {"base_model_name_or_path": "gone", "target_modules": ["lm_head"]}
    folder = place.adapter_with(packed(head, b""), config=named)
    os.truncate(folder / "adapter_model.safetensors", 8 + len(head) + 16 * size)
    return folder


def checkpoint_of(value: float) -> Callable[[Place], Path]:
    """The sound checkpoint with one weight replaced."""

    def build(place: Place) -> Path:
        from wvmonitor.files.safetensors import write_safetensors

        folder = place.checkpoint_with()
        tensors = place.tensors(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
        write_safetensors(folder / "model.safetensors", tensors)
        return folder

    return build


TWO = {"v": {**GOOD, "data_offsets": [0, 16]}}
CASES = (
    Case("overlap", "bodies", weights({**TWO, "w": {**GOOD, "data_offsets": [12, 28]}}, 28),
         MalformedFileError),
    Case("the same bytes twice", "bodies", weights({**TWO, "w": GOOD}), MalformedFileError),
    Case("hole", "bodies", weights({**TWO, "w": {**GOOD, "data_offsets": [20, 36]}}, 36),
         MalformedFileError),
    Case("hole in front", "bodies", weights({"w": {**GOOD, "data_offsets": [4, 20]}}, 20),
         MalformedFileError),
    Case("trailing ZIP", "bodies", zip_behind, MalformedFileError),
    Case("cut by a byte", "bodies", cut, MalformedFileError),
    Case("shape overflow", "bodies", one(shape=[2**62, 2**62]), MalformedFileError),
    Case("shape that wraps around to right", "bodies", one(shape=[2**62 + 4]), MalformedFileError),
    Case("overflow behind a zero", "bodies",
         one(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), MalformedFileError),
    Case("negative dimensions", "bodies", one(shape=[-2, -2]), MalformedFileError),
    Case("rank 10,000", "bodies", one(shape=[1] * 10_000), MalformedFileError),
    Case("unknown dtype", "bodies", one(dtype="F128"), MalformedFileError),
    Case("dtype that is code", "bodies", one(dtype="__import__('os')"), MalformedFileError),
    Case("elements of half a byte (F4)", "bodies", one(dtype="F4", shape=[32]),
         QuantizedWeightsError),
    Case("NaN", "bodies", factor(lambda a: a.index_fill(1, torch.tensor([0]), float("nan"))),
         NonFiniteError),
    Case("infinity", "bodies", factor(lambda a: a.index_fill(1, torch.tensor([0]), float("inf"))),
         NonFiniteError),
    Case("NaN of eight bits", "bodies",
         factor(lambda a: torch.full(a.shape, float("nan")).to(torch.float8_e4m3fn)),
         NonFiniteError),
    Case("NaN in a whole checkpoint", "bodies", checkpoint_of(float("nan")), NonFiniteError),
    Case("infinity in a whole checkpoint", "bodies", checkpoint_of(float("-inf")), NonFiniteError),
    Case("factors whose product overflows", "bodies", factor(lambda a: torch.full_like(a, 3e38)),
         NonFiniteError),
    Case("complex factors", "bodies", factor(lambda a: a.to(torch.complex64)), AdapterError),
    Case("integers for a factor", "bodies", factor(lambda a: a.to(torch.int8)), AdapterError),
    Case("booleans that are neither", "bodies",
         lambda place: place.adapter_with(
             described({A: {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}}, b"\2\3\4\5")),
         AdapterError),
    Case("1 TiB, sparse", "bodies", sparse_terabyte, AdapterError),
    Case("factors of 1 TiB, sparse", "bodies", sparse_factors, InputError),
)  # fmt: skip
