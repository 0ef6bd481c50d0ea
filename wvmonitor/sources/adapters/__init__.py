"""Adapter folders: which loader reads which kind. A kind that is in neither table is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from wvmonitor.errors import AdapterError, UnsupportedAdapterError
from wvmonitor.files.storage import Location, shown
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.adapters.lora import read_lora
from wvmonitor.sources.adapters.merged import read_merged
from wvmonitor.vectors import TaskVector

Loader = Callable[[AdapterFolder, InitialState | None], TaskVector]

# PEFT type (peft.PeftType) -> loader
LOADERS: Mapping[str, Loader] = {
    "LORA": read_lora,
    "ADALORA": read_merged,
    "ADAMSS": read_merged,
    "BEFT": read_merged,
    "BOFT": read_merged,
    "C3A": read_merged,
    "DEFT": read_merged,
    "DELORA": read_merged,
    "FOURIERFT": read_merged,
    "FROD": read_merged,
    "GLORA": read_merged,
    "GRALORA": read_merged,
    "HIRA": read_merged,
    "HRA": read_merged,
    "IA3": read_merged,
    "LN_TUNING": read_merged,
    "LOHA": read_merged,
    "LOKR": read_merged,
    "MISS": read_merged,
    "OFT": read_merged,
    "OSF": read_merged,
    "PEANUT": read_merged,
    "PSOFT": read_merged,
    "PVERA": read_merged,
    "RANDLORA": read_merged,
    "ROAD": read_merged,
    "SHIRA": read_merged,
    "SUPERTUNING": read_merged,
    "TINYLORA": read_merged,
    "TRAINABLE_TOKENS": read_merged,
    "UNILORA": read_merged,
    "VBLORA": read_merged,
    "VERA": read_merged,
    "WAVEFT": read_merged,
}

_PROMPTS = "it adds virtual tokens and changes no weight"
_INPUTS = "what it does depends on the input, so that no merged weight exists"

# PEFT type -> why it has no task vector
REFUSED: Mapping[str, str] = {
    "PROMPT_TUNING": _PROMPTS,
    "MULTITASK_PROMPT_TUNING": _PROMPTS,
    "P_TUNING": _PROMPTS,
    "PREFIX_TUNING": "it adds keys and values to attention and changes no weight",
    "CPT": _PROMPTS,
    "CARTRIDGE": "it adds keys and values to attention and changes no weight",
    "ADAPTION_PROMPT": "it adds gated attention to learned prompts and changes no weight",
    "LILY": _INPUTS,
    "POLY": _INPUTS,
    "XLORA": _INPUTS,
    "SHADOW": "it runs a second network beside the model and changes no weight",
}


def read_adapter(
    path: Location,
    base: Location | None = None,
    initial: Location | Mapping[str, Tensor] | None = None,
) -> TaskVector:
    """The task vector of a PEFT adapter folder.

    Args:
        path: the folder that `save_pretrained` wrote.
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
    return LOADERS[folder.kind](folder, state)
