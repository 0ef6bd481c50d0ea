"""How transformers loads files whose tensors are not the model's parameters one to one.

A checkpoint may lack the base model's prefix (GPT-2 on the Hub), use names of an older version, or
hold experts one by one that transformers 5 fuses into 3-D parameters. Which, only the model's class
can say; so the model is built on the meta device, and transformers' own rules are applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wvmonitor.errors import KeyMismatchError, MalformedFileError, ShapeMismatchError
from wvmonitor.files.storage import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Fields by which configurations say how many layers there are, at any depth.
_LAYER_COUNTS = re.compile(
    r"(?:n|num)_(?:hidden_|encoder_|decoder_)?layers?|(?:encoder|decoder)_layers|depth"
)
_MODULES_PER_TENSOR = 10
_FEWEST_MODULES = 1000


@dataclass(frozen=True)
class Fused:
    """A live parameter that files hold in parts.

    Attributes:
        name: the parameter, as the model's class calls it.
        converter: the transformers `WeightConverter` that makes it.
        parts: (name in the files, the converter's pattern it matched), in file order.
    """

    name: str
    converter: Any
    parts: tuple[tuple[str, str], ...]


def build_meta_model(config: Mapping[str, Any], held: int, where: str) -> PreTrainedModel:
    """The model that transformers would build of a configuration, on the meta device.

    `held` is how many tensors the folder holds: a model of many more parts is not built.

    Raises:
        MalformedFileError: the configuration makes no model, or one far larger than the files.
        KeyMismatchError: transformers has no such class.
    """
    import transformers

    for field, layers in _layer_counts(config):
        if layers > held:
            raise MalformedFileError(
                f"config.json of {where} claims {layers} layers ({field}), more than it "
                "holds tensors: fetch the folder again"
            )
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else "none named"
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise KeyMismatchError(
            f"the tensors of {where} are stored in a form that only its model class can "
            f"name, and transformers has no class {shown(name)}: save the model with "
            "save_pretrained of a class transformers knows"
        )
    try:
        # from the JSON that was read here, so that nothing in the folder is executed
        made = transformers.AutoConfig.for_model(**config)
        with torch.device("meta"), _at_most(_FEWEST_MODULES + _MODULES_PER_TENSOR * held):
            return kind(made)
    except Exception as error:
        raise MalformedFileError(
            f"transformers cannot build {shown(name)} from config.json of {where} "
            f"({shown(error)}): use the version it was saved with"
        ) from error


def converted(keys: Iterable[str], model: PreTrainedModel, where: str) -> dict[str, str | Fused]:
    """The parameters of a model, with the tensors that transformers loads them from.

    Raises:
        KeyMismatchError: a tensor is no parameter of the model, or two are one.
    """
    if find_spec("transformers.conversion_mapping") is None:
        return _prefixed(keys, model, where)
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    live = dict(model.state_dict())
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    gathered: dict[str, list[tuple[str, str | None]]] = {}
    unread = [re.compile(p) for p in model._keys_to_ignore_on_load_unexpected or ()]
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, live)
        gathered.setdefault(name, []).append((key, pattern))
    sources: dict[str, str | Fused] = {}
    for name, parts in gathered.items():
        if name not in live:
            if any(pattern.search(name) for pattern in unread):
                continue  # transformers leaves it out (a head that guesses several tokens ahead)
            raise _unknown(parts[0][0], model, where)
        fused = tuple((key, pattern) for key, pattern in parts if pattern is not None)
        if fused:
            sources[name] = Fused(name, by_pattern[fused[0][1]], fused)
        elif len(parts) == 1:
            sources[name] = parts[0][0]
        else:
            raise KeyMismatchError(
                f"{where} holds {shown(parts[0][0])} and {shown(parts[1][0])}, which are "
                f"both the parameter {shown(name)}: remove one of the two"
            )
    return sources


def fuse(
    fused: Fused,
    read: Callable[[str], Tensor],
    model: PreTrainedModel,
    where: str,
) -> Tensor:
    """A parameter made of its parts, as transformers makes it.

    Raises:
        ShapeMismatchError, KeyMismatchError: the parts do not make the parameter.
    """
    name = fused.name
    converter = fused.converter.copy(
        list(fused.converter._original_source_patterns),
        list(fused.converter._original_target_patterns),
        operations=fused.converter.operations,
    )
    for key, pattern in fused.parts:
        converter.add_tensor(name, key, pattern, read(key))
    try:
        made = converter.convert(name, model=model, config=model.config)
    except (RuntimeError, ValueError) as error:
        raise ShapeMismatchError(
            f"the {len(fused.parts)} parts of {shown(name)} in {where} do not fit together"
            f" ({shown(error)}): one is missing or of another model; fetch them again"
        ) from error
    if name not in made:
        raise KeyMismatchError(
            f"the parts of {shown(name)} in {where} do not make one tensor with the "
            "installed transformers: use the version it was saved with"
        )
    tensor: Tensor = made[name][0] if isinstance(made[name], list) else made[name]
    expected = tuple(model.get_parameter(name).shape)
    if tuple(tensor.shape) != expected:
        raise ShapeMismatchError(
            f"the parts of {shown(name)} in {where} make a tensor of shape "
            f"{tuple(tensor.shape)}, its config says {expected}: fetch them again"
        )
    return tensor


def _prefixed(keys: Iterable[str], model: PreTrainedModel, where: str) -> dict[str, str | Fused]:
    """Names by which transformers 4 loads tensors: the stored ones, but for a bare prefix."""
    live, prefix = model.state_dict(), f"{model.base_model_prefix}."
    sources: dict[str, str | Fused] = {}
    for key in keys:
        name = next((n for n in (key, prefix + key, key.removeprefix(prefix)) if n in live), "")
        if not name:
            raise _unknown(key, model, where)
        sources[name] = key
    return sources


def _unknown(key: str, model: PreTrainedModel, where: str) -> KeyMismatchError:
    return KeyMismatchError(
        f"{where} holds {shown(key)}, which {type(model).__name__} of the "
        "installed transformers does not have: use the version it was saved with"
    )


def _layer_counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every number of layers that a configuration names, those of its parts included."""
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _layer_counts(value)
        elif isinstance(value, int) and _LAYER_COUNTS.fullmatch(field):
            yield field, value


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """End the building of a model that would have more modules than its files could fill.

    Which fields of a configuration make modules is each architecture's own affair, so the modules
    are counted.
    """
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > modules:
            raise ValueError(f"it describes more than {modules} modules")

    handle = torch.nn.modules.module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
