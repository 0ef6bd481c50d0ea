"""Adapter folders: which loader reads which kind; a kind in no table of `kinds` is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from wvmonitor.errors import AdapterError, UnsupportedAdapterError
from wvmonitor.files.storage import Location, shown
from wvmonitor.sources.adapters.config import lora_settings
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState, adapter_config
from wvmonitor.sources.adapters.kinds import MERGED, MERGED_VARIANTS, REFUSED
from wvmonitor.sources.adapters.lora import read_lora
from wvmonitor.vectors import TaskVector

__all__ = ["LOADERS", "REFUSED", "read_adapter"]

Loader = Callable[[AdapterFolder, InitialState | None], TaskVector]


def _merged(folder: AdapterFolder, initial: InitialState | None) -> TaskVector:
    from wvmonitor.sources.adapters.merged import read_merged

    return read_merged(folder, initial)


LOADERS: Mapping[str, Loader] = {"LORA": read_lora, **dict.fromkeys(MERGED, _merged)}


def read_adapter(
    path: Location,
    base: Location | None = None,
    initial: Location | Mapping[str, Tensor] | None = None,
) -> TaskVector:
    """The task vector of a PEFT adapter folder.

    Args:
        path: the folder that PEFT's `save_pretrained`, or mlx-lm, wrote.
        base: folder of the base model. Needed where the change depends on the base's weights
            (DoRA, modules stored whole, fused experts, everything that is not LoRA) and checked
            against the adapter wherever it is given. Without it, a local folder named in the
            adapter's configuration is used.
        initial: the adapter's state when training started, where that was not zero: a folder
            saved at step 0, or `LiveModel.initial_state()`.

    Raises:
        MissingPathError, UnsafeFileError, MalformedFileError: a file cannot be read.
        UnsupportedAdapterError: a kind of adapter without a task vector, or not known.
        AdapterError: configuration and tensors contradict each other, there are none, or base or
            initial are needed.
        KeyMismatchError: a tensor belongs to nothing.
        ShapeMismatchError: a tensor does not fit the base.
        NonFiniteError: when an update is produced, if a tensor holds NaN or infinity.
    """
    config = adapter_config(path)
    if "peft_type" not in config and config.keys() & {"fine_tune_type", "lora_parameters"}:
        from wvmonitor.sources.adapters.mlx import read_mlx

        return read_mlx(path, config, base)
    folder = AdapterFolder(path, base)
    if folder.kind in REFUSED:
        raise UnsupportedAdapterError(
            f"{folder.where} is a {folder.kind} adapter: {REFUSED[folder.kind]}, so it has no task "
            "vector; leave it out of the scan"
        )
    if folder.kind not in LOADERS:
        raise UnsupportedAdapterError(
            f"{folder.config_where} names the kind {shown(folder.kind, 60)}, which this version "
            "does not know: upgrade wvmonitor"
        )
    if not folder.files.names():
        raise AdapterError(
            f"{folder.where} holds no tensor, so what was trained is not in it: gather the "
            "adapter's weights before saving it (ZeRO-3, FSDP), or re-save it with PEFT"
        )
    state = None if initial is None else InitialState(initial)
    if folder.kind == "LORA" and _only_peft_computes(folder):
        lora_settings(folder.config, folder.config_where)  # refuses what has no task vector
        return _merged(folder, state)
    return LOADERS[folder.kind](folder, state)


def _only_peft_computes(folder: AdapterFolder) -> bool:
    """Whether a LoRA is of a variant, or on layers (convolutions), that PEFT itself must merge."""
    if any(folder.config.get(field) for field in MERGED_VARIANTS):
        return True
    factors = (key for key in folder.files.names() if key.endswith(".lora_A.weight"))
    return any(len(folder.files.info(key).shape) > 2 for key in factors)
