"""Adapters whose configuration would cost time, memory or the truth if it were believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.corpus import Case, Place
from wvmonitor.errors import (
    AdapterError,
    BaseMismatchError,
    KeyMismatchError,
    MalformedFileError,
    ShapeMismatchError,
    UnjudgedPartError,
    UnsupportedAdapterError,
)

REDOS = "(((.*)*)*)*" + "(model|m.*l|.*)*" * 3 + "!"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def config(**fields: Any) -> Callable[[Place], Path]:
    """The sound adapter with these fields in its configuration."""
    return lambda place: place.adapter_with(config=fields)


def config_text(change: Callable[[str], str]) -> Callable[[Place], Path]:
    """The sound adapter with another text for a configuration."""

    def build(place: Place) -> Path:
        said = (place.adapter / "adapter_config.json").read_text()
        return place.adapter_with(config=change(said))

    return build


def without_b(place: Place) -> Path:
    return place.adapter_changed(lambda t: t.pop(B))


def other_shape(place: Place) -> Path:
    """Made for a model that is twice as wide."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key, tensor in tensors.items():
            tensors[key] = tensor.repeat((2, 1) if "lora_B" in key else (1, 2))

    return place.adapter_changed(change)


def other_weights(place: Place) -> Path:
    """An adapter that calls another model of the same shapes its base."""
    from wvmonitor.testing import tiny_base

    other = tiny_base(place.folder / "other", seed=9)
    return place.adapter_with(config={"base_model_name_or_path": str(other)})


def merged_kind(kind: str, **fields: Any) -> Callable[[Place], Path]:
    """An adapter of a kind that PEFT itself must compute, with one tensor in it."""

    def build(place: Place) -> Path:
        folder = place.adapter_changed(
            lambda t: (
                t.clear()
                or t.update(
                    {
                        "base_model.model.model.layers.0.self_attn.q_proj.hada_w1_a": torch.ones(
                            16, 2
                        )
                    }
                )
            )
        )
        said = {"peft_type": kind, "target_modules": ["q_proj"], **fields}
        said["base_model_name_or_path"] = str(place.base)
        (folder / "adapter_config.json").write_text(json.dumps(said))
        return folder

    return build  # fmt: skip


def bare_blocks(**fields: Any) -> Callable[[Place], Path]:
    """A checkpoint whose names only its model class can explain, with this configuration."""

    def build(place: Place) -> Path:
        from wvmonitor.files.safetensors import write_safetensors

        said = {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_embd": 8,
            "n_head": 2,
        }
        said |= fields
        folder = place.checkpoint_with()
        (folder / "config.json").write_text(json.dumps(said))
        write_safetensors(folder / "model.safetensors", {"h.0.ln_1.weight": torch.ones(8)})
        return folder

    return build


def nested_layers(place: Place) -> Path:
    """A configuration inside a configuration, of a hundred million layers."""
    text = {"model_type": "qwen3", "num_hidden_layers": 100_000_000, "hidden_size": 16}
    return place.checkpoint_with({"text_config": text, "model_type": "gemma3",
                                  "architectures": ["Gemma3ForConditionalGeneration"]})  # fmt: skip


def many_experts(place: Place) -> Path:
    """A configuration of a hundred million experts, each of which is a module to make."""
    return bare_blocks(
        model_type="switch_transformers",
        architectures=["SwitchTransformersForConditionalGeneration"],
        num_layers=1,
        num_decoder_layers=1,
        num_experts=100_000_000,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )(place)


def renamed(module: str) -> Callable[[Place], Path]:
    """The sound adapter with one module's factors under another module's name."""

    def build(place: Place) -> Path:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            for key in [k for k in tensors if "layers.0.self_attn.q_proj" in k]:
                tensors[key.replace("self_attn.q_proj", module)] = tensors.pop(key)

        return place.adapter_changed(change)

    return build


def convolved(place: Place) -> Path:
    """Factors with a kernel's dimensions, for a layer that has none."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key] = tensors[key][..., None, None]

    return place.adapter_changed(change)


def of_mlx(scale: float = 1.0, rank: int = 2, width: int | None = None) -> Callable[[Place], Path]:
    """An adapter as mlx-lm saves it, with one module."""

    def build(place: Place) -> Path:
        from wvmonitor.files.safetensors import write_safetensors

        folder = place.folder / "mlx"
        folder.mkdir()
        size = place.tensors(place.base / "model.safetensors")[
            "model.layers.0.self_attn.q_proj.weight"
        ].shape[1]
        module = "model.layers.0.self_attn.q_proj"
        tensors = {
            f"{module}.lora_a": torch.ones(width or size, rank),
            f"{module}.lora_b": torch.ones(rank, size),
        }
        write_safetensors(folder / "adapters.safetensors", tensors)
        said = {
            "fine_tune_type": "lora",
            "lora_parameters": {"rank": rank, "scale": scale},
            "base_model_name_or_path": str(place.base),
        }
        (folder / "adapter_config.json").write_text(json.dumps(said))
        return folder

    return build


CASES = (
    Case("ReDoS in target_modules", "adapters", config(target_modules=REDOS), AdapterError),
    Case("factors of a module that target_modules does not name", "adapters",
         config(target_modules=["k_proj"]), AdapterError),
    Case("ReDoS in exclude_modules", "adapters", config(exclude_modules=REDOS), None),
    Case("ReDoS in rank_pattern", "adapters", config(rank_pattern={REDOS: 4}), None),
    Case("ReDoS in alpha_pattern", "adapters", config(alpha_pattern={REDOS: 4}), None),
    Case("a pattern of back-references", "adapters",
         config(rank_pattern={r"(.*)\1(.*)\2!": 4}), UnsupportedAdapterError),
    Case("a pattern of repeats inside repeats", "adapters",
         config(rank_pattern={"((((a{0,99}){0,99}){0,99}){0,99}){0,99}.*b": 4}),
         UnsupportedAdapterError),
    Case("20,000 patterns", "adapters",
         config(rank_pattern={f"x{i}.*": 4 for i in range(20_000)}), UnsupportedAdapterError),
    Case("20,000 names among the patterns", "adapters",
         config(rank_pattern={f"x{i}": 4 for i in range(20_000)}), None),
    Case("alpha NaN", "adapters", config(lora_alpha=float("nan")), MalformedFileError),
    Case("alpha infinite", "adapters", config(lora_alpha=float("inf")), MalformedFileError),
    Case("alpha 1e38", "adapters", config(lora_alpha=1e38), AdapterError),
    Case("alpha of 4,000 digits", "adapters", config(lora_alpha=10**4000), AdapterError),
    Case("alpha for one module 1e38", "adapters", config(alpha_pattern={"q_proj": 1e38}),
         AdapterError),
    Case("rank 0", "adapters", config(r=0), AdapterError),
    Case("rank that the factors do not have", "adapters", config(r=2**19), AdapterError),
    Case("rsLoRA flipped", "adapters", config(use_rslora=True), None),
    Case("rsLoRA that is no flag", "adapters", config(use_rslora="no"), AdapterError),
    Case("DoRA without magnitudes", "adapters", config(use_dora=True), AdapterError),
    Case("lora_B missing", "adapters", without_b, AdapterError),
    Case("factors of a wider base", "adapters", other_shape, ShapeMismatchError),
    Case("a base of other weights", "adapters", other_weights, BaseMismatchError),
    Case("a base that is a device", "adapters", config(base_model_name_or_path="/dev/zero"), None),
    Case("a base on the Hub", "adapters", config(base_model_name_or_path="someone/model"), None),
    Case("a base behind a URL", "adapters",
         config(base_model_name_or_path="http://127.0.0.1:9/model"), None),
    Case("a kind that adds tokens", "adapters", config(peft_type="PROMPT_TUNING"),
         UnsupportedAdapterError),
    Case("a field of tomorrow", "adapters", config(use_tomorrow={"gamma": 3}),
         UnsupportedAdapterError),
    Case("a kind that is a list", "adapters", config(peft_type=["LORA"]), AdapterError),
    Case("a key given twice", "adapters",
         config_text(lambda t: t.rstrip()[:-1] + ', "r": 3}'), MalformedFileError),
    Case("a configuration 100,000 deep", "adapters",
         config_text(lambda _: '{"peft_type":' + "[" * 100_000 + "]" * 100_000 + "}"),
         MalformedFileError),
    Case("a configuration of 11 MB", "adapters",
         config_text(lambda t: t + " " * 11_000_000), MalformedFileError),
    Case("an empty configuration", "adapters", config_text(lambda _: ""), MalformedFileError),
    Case("a library to import", "adapters",
         config(auto_mapping={"base_model_class": "M", "parent_library": "antigravity"}),
         UnjudgedPartError, strict=True),
    Case("a library that is no name", "adapters",
         config(auto_mapping={"parent_library": [["antigravity"]]}), UnjudgedPartError,
         strict=True),
    Case("an expert of number 10^12", "adapters", renamed(
        "mlp.experts.gate_up_projs.999999999999"), AdapterError),
    Case("factors of a convolution on a linear layer", "adapters", convolved, AdapterError),
    Case("an adapter of mlx-lm of scale 1e38", "adapters", of_mlx(scale=1e38), AdapterError),
    Case("an adapter of mlx-lm of rank 0", "adapters", of_mlx(rank=0), AdapterError),
    Case("an adapter of mlx-lm for another base", "adapters", of_mlx(width=7), ShapeMismatchError),
    Case("a LoHa of rank 100,000,000", "adapters", merged_kind("LOHA", r=100_000_000),
         AdapterError),
    Case("ReDoS in a LoHa's target_modules", "adapters",
         merged_kind("LOHA", r=2, target_modules=REDOS), AdapterError),
    Case("a VeRA of rank 100,000,000", "adapters", merged_kind("VERA", r=100_000_000),
         AdapterError),
    Case("a checkpoint of 100,000,000 layers", "adapters", bare_blocks(n_layer=100_000_000),
         MalformedFileError),
    Case("a checkpoint of 100,000,000 layers inside", "adapters", nested_layers,
         MalformedFileError),
    Case("a checkpoint of 100,000,000 experts", "adapters", many_experts, MalformedFileError),
    Case("a checkpoint of a vocabulary of 10^30", "adapters", bare_blocks(vocab_size=10**30),
         MalformedFileError),
    Case("a checkpoint whose class is no model", "adapters",
         bare_blocks(architectures=["TrainingArguments"]), KeyMismatchError),
    Case("a checkpoint of a class that is a path", "adapters",
         bare_blocks(architectures=["../../evil.Model"]), KeyMismatchError),
)  # fmt: skip
