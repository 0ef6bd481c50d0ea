"""The settings of the run that is to be watched, so that a calibration covers it.

Read from a YAML file with the names of `TrainingArguments` and PEFT's `LoraConfig` (TRL's and
Axolotl's names for the latter are known too), or from the folder of a run: its adapter's
configuration, and its journal where it was watched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wvmonitor.errors import MalformedFileError, MissingPathError
from wvmonitor.files.documents import read_json
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.schema import FILE_NAME
from wvmonitor.scan.targets import find_targets
from wvmonitor.steering.edit import ADAPTER_CONFIG

_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "optim",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha",
)  # fmt: skip
_ADAPTER = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "bias",
    "layers_to_transform", "rank_pattern", "alpha_pattern",
)  # fmt: skip
_ALIASES = {
    "lora_r": "r",
    "rank": "r",
    "alpha": "lora_alpha",
    "lora_target_modules": "target_modules",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "micro_batch_size": "per_device_train_batch_size",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
}
_OPTIMISERS = {"adamw": "adamw_torch"}


@dataclass(frozen=True)
class Like:
    """What another run's settings say; empty where they do not.

    Attributes:
        arguments: of `TrainingArguments`.
        adapter: of `LoraConfig`.
        method: "lora", or "full".
        batch_size: examples in an optimiser step.
        max_length: tokens of an example.
        steps: how long the run will be.
        unread: settings that were found and are not taken over, in words.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    method: str = "lora"
    batch_size: int | None = None
    max_length: int | None = None
    steps: int | None = None
    unread: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float | None:
        """Its peak learning rate."""
        rate = self.arguments.get("learning_rate")
        return None if rate is None else float(rate)


def read_like(path: Path) -> Like:
    """The settings of a run's folder or of a YAML file.

    Raises:
        MissingPathError: neither is there.
        MalformedFileError: the file is no mapping of settings.
    """
    if path.is_dir():
        return _of_run(path)
    if not path.is_file():
        raise MissingPathError(f"--like {path}: give the folder of a run, or a YAML of settings")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MalformedFileError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise MalformedFileError(f"{path} holds no settings: give them as `name: value`")
    return _like(_flat(document))


def _of_run(folder: Path) -> Like:
    facts: dict[str, Any] = {}
    configs = sorted(folder.rglob(ADAPTER_CONFIG), key=lambda p: p.stat().st_mtime)
    if configs:
        config = read_json(configs[-1])
        facts |= {k: config[k] for k in _ADAPTER if config.get(k) not in (None, {}, [])}
    journals = sorted(folder.rglob(FILE_NAME))
    if not configs and not journals and not any(t.run for t in find_targets([str(folder)])):
        raise MissingPathError(
            f"--like {folder} holds no run ({ADAPTER_CONFIG}, {FILE_NAME} or checkpoint-*)"
        )
    method = "lora" if configs else "full"
    if journals:
        context = JournalReader(journals[-1]).attempts()[-1].context
        known = {
            "learning_rate": context.learning_rate,
            "optim": context.optimizer,
            "max_steps": context.planned_steps,
        }
        facts |= {k: v for k, v in known.items() if v is not None}
        method = context.method or method
    return _like(facts | {"method": method})


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    """Settings of nested sections beside the others; the inner name counts."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        nested = isinstance(value, dict) and not key.endswith("_pattern")
        flat |= _flat(value) if nested else {key: value}
    return flat


def _like(facts: dict[str, Any]) -> Like:
    named = {_ALIASES.get(k, k): v for k, v in facts.items() if v is not None}
    adapter = {k: named.pop(k) for k in _ADAPTER if k in named}
    arguments = {k: named.pop(k) for k in _ARGUMENTS if k in named}
    if arguments.get("optim") in _OPTIMISERS:
        arguments["optim"] = _OPTIMISERS[arguments["optim"]]
    for key in ("learning_rate", "weight_decay", "warmup_ratio", "adam_epsilon"):
        if isinstance(arguments.get(key), str):
            arguments[key] = float(arguments[key])  # YAML reads 1e-4 as text
    micro = named.pop("per_device_train_batch_size", None)
    batch = named.pop("batch_size", None)
    if micro is not None:
        batch = int(micro) * int(named.pop("gradient_accumulation_steps", 1))
    length, steps = named.pop("max_length", None), named.pop("max_steps", None)
    method = str(named.pop("method", "lora" if adapter else "full"))
    return Like(
        arguments=arguments,
        adapter=adapter,
        method=method,
        batch_size=None if batch is None else int(batch),
        max_length=None if length is None else int(length),
        steps=int(steps) if steps is not None and int(steps) > 0 else None,
        unread=tuple(sorted(map(str, named))),
    )
