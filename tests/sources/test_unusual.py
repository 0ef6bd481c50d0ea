"""Unusual but sound adapters and folders: exactly what PEFT merges, or refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest

from tests.sources import zoo
from wvmonitor.errors import AdapterError, MalformedFileError
from wvmonitor.files.checkpoint_files import open_checkpoint
from wvmonitor.files.safetensors import write_safetensors
from wvmonitor.sources import read_adapter

Bases = Callable[..., Path]

# For the table of docs/what-is-measured.md: kind, where it comes from, read or refused, the test.
MEASURED = [
    (
        "adapters joined by `add_weighted_adapter` (linear, cat, svd)",
        "PEFT",
        "read",
        "test_joined_adapters_are_what_peft_merges",
    ),
    (
        "DoRA with rank and alpha patterns by regular expression, rsLoRA, retrained tokens",
        "PEFT",
        "read",
        "test_options_together_are_what_peft_merges",
    ),
    (
        "fields of another version of PEFT",
        "PEFT",
        "read where they say nothing, else refused by name",
        "test_a_field_of_another_version_that_says_nothing_means_nothing",
    ),
    (
        "a snapshot of the Hub's cache (links into `blobs/`), adapters in shards, extra metadata",
        "`hf download`, other tools",
        "read",
        "test_where_and_how_an_adapter_is_kept_changes_nothing",
    ),
    (
        "a configuration with Windows' line ends, or a byte order mark",
        "editors",
        "read; the mark is refused by name",
        "test_a_configuration_from_an_editor",
    ),
]


def saved(folder: Path, config: Any, **options: Any) -> zoo.Weights:
    """An adapter that moved, and what it changes by PEFT's merge in float64."""
    model = zoo.build("llama", **options)
    before = zoo.weights_of(model)
    lora = peft.get_peft_model(model, config)
    zoo.shake(lora)
    lora.save_pretrained(folder, save_embedding_layers=False)
    return zoo.change(zoo.merged(lora), before)


@pytest.mark.parametrize("how", ["linear", "cat", "svd"])
def test_joined_adapters_are_what_peft_merges(how: str, bases: Bases, tmp_path: Path) -> None:
    """Two adapters in one, as PEFT joins and saves them under a rank of their own."""
    model = zoo.build("llama")
    before = zoo.weights_of(model)
    first = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4, lora_alpha=16)
    lora: Any = peft.get_peft_model(model, first, adapter_name="one")
    lora.add_adapter("two", peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=4))
    for seed, name in enumerate(("one", "two")):
        lora.set_adapter(name)
        zoo.shake(lora, seed=seed)
    lora.add_weighted_adapter(["one", "two"], [0.7, 0.4], "both", combination_type=how)
    lora.set_adapter("both")
    lora.save_pretrained(tmp_path, selected_adapters=["both"])
    tau = read_adapter(tmp_path / "both", bases("llama"))
    zoo.assert_equal_change(tau, zoo.change(zoo.merged(lora), before))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "rank_pattern": {r"layers\.\d+\.self_attn\.q_proj": 2}},
        {"use_rslora": True, "alpha_pattern": {r"^model\.layers\.1\..*down_proj": 32}},
        {"use_dora": True, "use_rslora": True, "trainable_token_indices": {"embed_tokens": [5, 2]}},
        {"modules_to_save": ["lm_head"], "trainable_token_indices": [1, 63]},
        {"layers_to_transform": [1], "bias": "all"},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj", "lm_head"]},
    ],
    ids=lambda options: "+".join(options),
)
def test_options_together_are_what_peft_merges(
    options: dict[str, Any], bases: Bases, tmp_path: Path
) -> None:
    """What each option does, they do together."""
    config = peft.LoraConfig(**{"target_modules": ["q_proj", "down_proj"], "r": 4, **options})
    oracle = saved(tmp_path, config)
    zoo.assert_equal_change(read_adapter(tmp_path, bases("llama")), oracle)


def edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the configuration of a saved adapter."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_a_field_of_another_version_that_says_nothing_means_nothing(
    kind: str, bases: Bases, tmp_path: Path
) -> None:
    """A field this PEFT has not, false or empty, is ignored; one that is set is refused by name."""
    made: Any = peft.LoraConfig if kind == "lora" else peft.LoHaConfig
    oracle = saved(tmp_path, made(target_modules=["q_proj"], r=4))
    edited(tmp_path, lambda c: c.update(use_tomorrow=False, tomorrow_config=None, more={}))
    zoo.assert_equal_change(read_adapter(tmp_path, bases("llama")), oracle)
    edited(tmp_path, lambda c: c.update(use_tomorrow=True))
    with pytest.raises(AdapterError, match="use_tomorrow"):
        read_adapter(tmp_path, bases("llama"))


@pytest.mark.parametrize("way", ["snapshot", "shards", "metadata"])
def test_where_and_how_an_adapter_is_kept_changes_nothing(
    way: str, bases: Bases, tmp_path: Path
) -> None:
    """The same tensors behind links of the Hub's cache, in shards, or with notes of others."""
    folder = tmp_path / "adapter"
    oracle = saved(folder, peft.LoraConfig(target_modules=["q_proj"], r=4))
    with open_checkpoint(folder, stem="adapter_model") as files:
        tensors = {name: files.read(name) for name in files.names()}
    if way == "snapshot":
        repository = tmp_path / "models--team--adapter"
        folder, real = repository / "snapshots" / "abc", folder
        folder.mkdir(parents=True)
        (repository / "blobs").mkdir()
        for number, file in enumerate(sorted(real.iterdir())):
            blob = repository / "blobs" / f"{number:040x}"
            file.rename(blob)
            (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    elif way == "shards":
        (folder / "adapter_model.safetensors").unlink()
        names = sorted(tensors)
        shards = [f"adapter_model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
        where = {name: shards[i % 2] for i, name in enumerate(names)}
        for shard in shards:
            write_safetensors(folder / shard, {n: tensors[n] for n in names if where[n] == shard})
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    else:
        notes = {"format": "pt", "unsloth": "1", "note": "\x1b[2Jé"}
        write_safetensors(folder / "adapter_model.safetensors", tensors, notes)
    zoo.assert_equal_change(read_adapter(folder, bases("llama")), oracle)


def test_a_configuration_from_an_editor(bases: Bases, tmp_path: Path) -> None:
    """Windows' line ends are JSON; a byte order mark is none, and is called that."""
    oracle = saved(tmp_path, peft.LoraConfig(target_modules=["q_proj"], r=4))
    file = tmp_path / "adapter_config.json"
    text = file.read_text().replace("\n", "\r\n").encode()
    file.write_bytes(text)
    zoo.assert_equal_change(read_adapter(tmp_path, bases("llama")), oracle)
    file.write_bytes(b"\xef\xbb\xbf" + text)
    with pytest.raises(MalformedFileError, match=r"adapter_config.*byte order mark.*plain UTF-8"):
        read_adapter(tmp_path, bases("llama"))
