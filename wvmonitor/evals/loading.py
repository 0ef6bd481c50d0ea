"""The model to evaluate, from a folder or the Hub: a base, a fine-tune, or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from wvmonitor.builder.base import quiet
from wvmonitor.errors import InputError, UnsafeFileError
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources.identity import base_digest
from wvmonitor.sources.live_base import digest_of_model
from wvmonitor.steering.edit import base_of, is_adapter
from wvmonitor.vectors.devices import on_device


def load(
    where: str, base: str | None = None, *, device: str | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model in evaluation mode and its tokenizer; weights from safetensors only.

    Args:
        where: a folder or a name on the Hub; the folder may hold a PEFT adapter.
        base: what an adapter was made from, where its own configuration is not to be followed.
        device: as torch names it; the first GPU where there is one.

    Raises:
        InputError: an adapter that does not say what it was made from, nothing to load, or no such
            device.
        UnsafeFileError: an adapter whose weights are pickled.
    """
    adapter = is_adapter(where)
    if adapter and not (Path(where) / "adapter_model.safetensors").is_file():
        raise UnsafeFileError(
            f"{where} holds no adapter_model.safetensors: save the adapter again as safetensors"
        )
    under = base_of(where, base) if adapter else where
    own = (Path(where) / "tokenizer_config.json").is_file()
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                under, dtype="auto", use_safetensors=True
            )
            tokenizer = AutoTokenizer.from_pretrained(where if own or not adapter else under)
    except (OSError, ValueError) as error:
        raise InputError(f"{under} cannot be loaded as a causal language model: {error}") from error
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, where)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return on_device(model, chosen).eval(), tokenizer


def check_base(bank: ReferenceBank, model: Any, where: str, base: str | None) -> None:
    """Refuse to steer a model by references that were made for another one.

    Raises:
        BaseMismatchError: the bank's base is another; a fine-tune's base has to be named.
    """
    named = base is not None and not is_adapter(where)
    bank.relation_to(base_digest(base) if named and base is not None else digest_of_model(model))
