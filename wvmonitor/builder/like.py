"""The settings of the run that is to be watched, so that a calibration covers it.

Read from a YAML file with the names of `TrainingArguments` and PEFT's `LoraConfig` (TRL's and
Axolotl's names for the latter are known too), or from the folder of a run: its adapter's
configuration, and its journal where it was watched.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wvmonitor.errors import BuildError, MalformedFileError, MissingPathError
from wvmonitor.files.documents import read_json
from wvmonitor.journal.reader import JournalReader
from wvmonitor.journal.schema import FILE_NAME
from wvmonitor.scan.targets import find_targets
from wvmonitor.steering.edit import ADAPTER_CONFIG

_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio",
    "weight_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "neftune_noise_alpha", "per_device_train_batch_size",
)  # fmt: skip
_ADAPTER = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "bias",
    "layers_to_transform", "rank_pattern", "alpha_pattern",
)  # fmt: skip
SET_APART = ("warmup_steps", "warmup_ratio", "per_device_train_batch_size")
"""Arguments that depend on a run's length, or on its batch."""
_WORDS = ("lr_scheduler_type", "optim", "target_modules", "bias")
_NOT_TAKEN = (
    "modules_to_save", "exclude_modules", "target_parameters", "trainable_token_indices",
    "layer_replication", "init_lora_weights",
)  # fmt: skip
"""What else an adapter's configuration may say of how it was trained."""
_KINDS = ("method", "adapter", "peft_type", "use_peft")
"""Who says whether an adapter is trained: a journal, Axolotl, PEFT, TRL."""
_ALIASES = {
    "lora_r": "r",
    "rank": "r",
    "alpha": "lora_alpha",
    "lora_target_modules": "target_modules",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "peft_layers_to_transform": "layers_to_transform",
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
        method: "full", or a form of LoRA.
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

    @property
    def micro_batch(self) -> int | None:
        """Examples at once on a device."""
        micro = self.arguments.get("per_device_train_batch_size")
        return None if micro is None else int(micro)

    def warmup(self, steps: int) -> int:
        """Warm-up of a run of so many steps, in the share that it has of the user's run.

        A tenth where nothing is said, and at most where the user's steps are not known.
        """
        told, ratio = (self.arguments.get(f"warmup_{of}") for of in ("steps", "ratio"))
        usual = max(1, math.ceil(0.1 * steps))
        if told and told >= 1:  # below 1 it is a share, as transformers has it
            return min(int(told), usual) if not self.steps else math.ceil(told / self.steps * steps)
        share: float | None = told or ratio
        if share is None:
            return usual if told is None else 0
        return math.ceil(share * steps)


def read_like(path: Path) -> Like:
    """The settings of a run's folder or of a YAML file.

    Raises:
        MissingPathError: neither is there.
        MalformedFileError: the file is no mapping of settings, or a number in it is none.
        BuildError: it names an adapter of another kind than LoRA, or LoRA in unknown words.
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
    return _like(_flat(document), f"--like {path}")


def _of_run(folder: Path) -> Like:
    facts: dict[str, Any] = {}
    configs = sorted(folder.rglob(ADAPTER_CONFIG), key=lambda p: p.stat().st_mtime)
    if configs:
        config = read_json(configs[-1])
        facts |= {k: config[k] for k in _ADAPTER if config.get(k) not in (None, {}, [])}
        facts |= {k: config[k] for k in _NOT_TAKEN if config.get(k) not in (None, {}, [], True)}
        facts["peft_type"] = config.get("peft_type")
    journals = sorted(folder.rglob(FILE_NAME))
    attempts = JournalReader(journals[-1]).attempts() if journals else ()
    if not configs and not attempts and not any(t.run for t in find_targets([str(folder)])):
        raise MissingPathError(
            f"--like {folder} holds no run ({ADAPTER_CONFIG}, {FILE_NAME} or checkpoint-*)"
        )
    method = "lora" if configs else "full"
    if attempts:
        context = attempts[-1].context
        known: dict[str, Any] = {
            "learning_rate": context.learning_rate,
            "lr_scheduler_type": context.schedule,
            "weight_decay": context.weight_decay,
            "optim": context.optimizer,
            "max_steps": context.planned_steps,
        }
        method = context.method or method
        if not configs and method != "full":
            known |= {
                "peft_type": method,
                "r": context.rank,
                "target_modules": list(context.target_modules or ()),
                "use_dora": True if method == "dora" else None,
            }
        facts |= {k: v for k, v in known.items() if v not in (None, [])}
    return _like(facts | {"method": method}, f"--like {folder}")


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    """Settings of nested sections beside the others; the inner name counts, where it has a value.

    What is left to another tool ("auto", as DeepSpeed has it) has none.
    """
    flat: dict[str, Any] = {}
    for key, value in document.items():
        whole = str(key).endswith(("_pattern", "scheduler_kwargs"))
        nested = isinstance(value, dict) and not whole
        found = _flat(value) if nested else {str(key): value}
        flat |= {k: v for k, v in found.items() if v not in (None, "", [], "auto")}
    return flat


def _like(facts: dict[str, Any], where: str) -> Like:
    named = {_ALIASES.get(k, k): v for k, v in facts.items() if v is not None}
    numbers = {*_ARGUMENTS, *_ADAPTER, "gradient_accumulation_steps", "batch_size", "max_length",
               "max_steps"}.difference(_WORDS)  # fmt: skip
    named |= {k: _number(v, f"{where}: {k}") for k, v in named.items()
              if k in numbers and isinstance(v, str)}  # fmt: skip
    adapter = {k: named.pop(k) for k in _ADAPTER if k in named}
    adapter |= _targets(adapter.get("target_modules"))
    kinds = {k: named.pop(k) for k in _KINDS if k in named}
    method = _method(kinds, adapter, where)
    if method == "full":
        adapter = {}
        if "use_peft" not in kinds and (others := sorted(k for k in named if "lora" in k.lower())):
            raise BuildError(
                f"{where} names {', '.join(others)}, which says nothing here: a LoRA run is told "
                "by lora_r, lora_alpha and lora_target_modules, a full fine-tune by use_peft: false"
            )
    arguments = {k: named.pop(k) for k in _ARGUMENTS if k in named}
    if arguments.get("optim") in _OPTIMISERS:
        arguments["optim"] = _OPTIMISERS[arguments["optim"]]
    micro = arguments.get("per_device_train_batch_size")
    batch = named.pop("batch_size", None)
    if micro is not None:
        batch = int(micro) * int(named.pop("gradient_accumulation_steps", 1))
    length, steps = named.pop("max_length", None), named.pop("max_steps", None)
    return Like(
        arguments=arguments,
        adapter=adapter,
        method=method,
        batch_size=None if batch is None else int(batch),
        max_length=None if length is None else int(length),
        steps=int(steps) if steps is not None and int(steps) > 0 else None,
        unread=tuple(sorted(named)),
    )


def _number(text: str, what: str) -> float:
    """The number that YAML read as text, as it does with 1e-4."""
    try:
        value = float(text)
    except ValueError:
        raise MalformedFileError(f"{what} is {text!r}: write the number that the run has") from None
    return int(value) if value.is_integer() else value


def _targets(modules: Any) -> dict[str, Any]:
    """The target modules as PEFT takes them: one name alone, or in a list of one, is no pattern."""
    if isinstance(modules, list) and len(modules) == 1:
        (modules,) = modules
    if isinstance(modules, str) and modules != "all-linear" and re.fullmatch(r"[\w.]+", modules):
        modules = [modules]
    return {} if modules is None else {"target_modules": modules}


def _method(kinds: dict[str, Any], adapter: dict[str, Any], where: str) -> str:
    """How a run is trained: "full", or in the words of whoever says it, LoRA of some form."""
    method = str(kinds.get("method", "lora" if adapter else "full"))
    for key in ("adapter", "peft_type"):
        if key in kinds and str(kinds[key]).lower() not in ("lora", "qlora", "dora"):
            raise BuildError(
                f"{where} trains a {kinds[key]} adapter: harmless runs can be trained with LoRA or "
                "in full, and a calibration from those says nothing of it; leave --like out"
            )
        method = "lora" if key in kinds and method == "full" else method
    if "use_peft" in kinds:
        return "lora" if kinds["use_peft"] else "full"
    return method
