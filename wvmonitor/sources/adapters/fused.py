"""LoRA on `target_parameters`: parameters that are no module's weight, such as fused experts.

PEFT nests one wrapper a parameter, so that `experts.lora_A` belongs to the parameter wrapped last
and `experts.base_layer.lora_A` to the one before it (peft/tuners/lora/layer.py, `ParamWrapper`).
Which that is, only the model's class can say.
"""

from __future__ import annotations

from collections.abc import Container

from wvmonitor.errors import AdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.config import LoraSettings
from wvmonitor.sources.adapters.folder import AdapterFolder
from wvmonitor.sources.adapters.lora_module import Layout
from wvmonitor.sources.names import is_transposed, parameter_name


def target_parameters(
    folder: AdapterFolder, settings: LoraSettings, paths: Container[str]
) -> dict[str, tuple[str, Layout]]:
    """The parameters that an adapter's keys stand for, with their layout, by the path of the keys.

    Raises:
        AdapterError: the base is needed, or a parameter has no factors.
    """
    base = folder.needed_base("target_parameters names parameters that only the base can place")
    placed: dict[str, tuple[str, Layout]] = {}
    for path, module in base.meta_model.named_modules():
        targeted = [
            (f"{path}.{name}", parameter)
            for name, parameter in module.named_parameters(recurse=False)
            if any(f".{path}.{name}".endswith(f".{target}") for target in settings.parameters)
        ]
        for depth, (name, parameter) in enumerate(reversed(targeted)):
            keys_path = path + ".base_layer" * depth
            if keys_path not in paths:
                raise AdapterError(
                    f"{folder.where} has no factors for {shown(name)}, which its "
                    "target_parameters name: re-save the adapter"
                )
            shape = tuple(parameter.shape)
            outputs_last = len(shape) == 3 and bool(getattr(module, "is_transposed", False))
            # of stacked experts nothing asks which way round they are stored, as of whole files
            transposed = is_transposed(name, shape, conv1d=False)
            placed[keys_path] = (parameter_name(name), Layout(shape, outputs_last, transposed))
    return placed
