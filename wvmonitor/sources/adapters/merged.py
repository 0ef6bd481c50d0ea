"""Adapters through what PEFT itself computes: merged weight − base weight, one module at a time.

Every kind that PEFT can merge is read this way, in float64: multiplicative kinds (OFT, BOFT, HRA,
IA3) lose their small changes in float32. The base is held in memory once, which the streamed kinds
do not need; nothing of the configuration that PEFT would evaluate as a regular expression reaches
it (`_explicit`).
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wvmonitor.errors import AdapterError, KeyMismatchError, UnsupportedAdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters import patterns, saved_modules
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.adapters.kinds import RECORD_IT
from wvmonitor.sources.adapters.targets import check_chosen
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.sources.names import parameter_name
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector, Update
from wvmonitor.vectors.task_vector import Part

if TYPE_CHECKING:
    from peft import PeftModel

_PREFIX = "base_model.model."
# Relative change of a weight by an adapter that was just made: rounding is below, a start is above.
MOVED_AT_START = 1e-4
# Fields by which PEFT chooses modules; they are replaced by the modules that the file has.
_CHOOSERS = (
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("trainable_token_indices", "target_parameters"),
)
# Beyond this, no number in a configuration is a size unless a tensor has it, ...
_LARGEST_UNSEEN_SIZE = 1024
# ... except for those that are no sizes at all.
_NO_SIZES = re.compile(r"seed|prng_key|alpha|step|warmup|interval|deltaT|tinit|tfinal")


def merged_weights(
    module: nn.Module, adapters: Sequence[str], replaced: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The parameters of a tuner layer's base layer with adapters merged into them, in float64.

    Args:
        module: a PEFT `BaseTunerLayer`; a copy of it is merged, it stays as it is.
        adapters: the names of the adapters, in the order in which PEFT merges them.
        replaced: the adapter's tensors to use in place of the present ones, by name.

    Raises:
        UnsupportedAdapterError: PEFT cannot merge this layer.
    """
    layer: Any = module
    for name, parameter in layer.get_base_layer().named_parameters():
        if not parameter.dtype.is_floating_point:
            raise UnsupportedAdapterError(
                f"{type(module).__name__} on a quantised layer ({name} is {parameter.dtype}) "
                "cannot be merged exactly: train this kind of adapter on an unquantised base"
            )
    with torch.no_grad():
        double: Any = copy.deepcopy(module).to(torch.float64).eval()
        own = {**dict(double.named_parameters()), **dict(double.named_buffers())}
        for name, tensor in (replaced or {}).items():
            own[name].copy_(tensor)
        try:
            double.merge(safe_merge=False, adapter_names=list(adapters))
        except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
            raise UnsupportedAdapterError(
                f"PEFT cannot merge {type(module).__module__}.{type(module).__name__} "
                f"({error}), so it has no task vector"
            ) from error
        return {name: p.detach() for name, p in double.get_base_layer().named_parameters()}


def tuner_layers(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """The outermost PEFT layers of a model, with their paths."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: tuple[str, ...] = ()
    for path, module in root.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside = (*inside[-1:], path)
            yield path, module


def read_merged(folder: AdapterFolder, initial: InitialState | None) -> TaskVector:
    """The task vector of any adapter folder that PEFT can merge.

    Raises:
        AdapterError: the base is needed, the tensors do not fit the configuration, or the adapter
            did not start at zero and no initial state was given.
        KeyMismatchError: a key belongs to nothing.
        UnsupportedAdapterError: PEFT cannot build or merge this adapter.
    """
    base = folder.needed_base(f"{folder.kind} changes weights in a way that depends on them")
    adapter_keys, whole_keys = _divided(folder, base)
    targets = sorted(set(adapter_keys.values()) - {""}) or _chosen(folder, base)
    if folder.kind != "TRAINABLE_TOKENS":
        owners = (owner for owner in adapter_keys.values() if owner)
        check_chosen(folder.config, dict.fromkeys(owners), folder.where, folder.config_where)
    else:
        targets = [t for t in targets if base.shared_with(parameter_name(f"{t}.weight")) is None]
    tensors = {key: folder.files.read(key) for key in adapter_keys}
    model = _built(folder, base, targets)
    # a head tied to retrained tokens only follows them
    every = tuner_layers(model.base_model.model)
    layers = {path: layer for path, layer in every if not getattr(layer, "tied_adapter", None)}
    if initial is None:
        _check_start(folder, base, model, layers)
    else:
        started = _built(folder, base, targets)
        _load(folder, started, {key: initial.read(key.removeprefix(_PREFIX)) for key in tensors})
        at_start = dict(tuner_layers(started.base_model.model))
    _load(folder, model, tensors)

    def part(path: str, name: str) -> Part:
        full = _held(base, parameter_name(f"{path}.{name}"))

        def produce() -> Update:
            now = merged_weights(layers[path], ["default"])[name]
            if initial is None:
                before = base.read(full).to(torch.float64)
            else:
                before = merged_weights(at_start[path], ["default"])[name]
            return DenseUpdate((now - before).to(torch.float32), base.is_transposed(full))

        return Part(full, tuple(base.shape(full)), produce)

    parts = [
        part(path, name)
        for path, layer in layers.items()
        for name, _ in layer.get_base_layer().named_parameters()
    ]
    parts += saved_modules.whole_parts(
        folder, [key.removeprefix(_PREFIX) for key in whole_keys], initial
    )
    origin = Origin(
        source=folder.where,
        base_digest=folder.base_digest,
        base_name=folder.base_name,
        method="dora" if folder.config.get("use_dora") else folder.kind.lower(),
        rank=_rank(folder),
        step=folder.step,
        warnings=tuple(folder.warnings),
        unmeasurable=folder.unmeasurable,
    )
    stored = {parameter_name(key) for key in whole_keys}
    return TaskVector.of_parts(saved_modules.stored_once(parts, stored), origin)


def _rank(folder: AdapterFolder) -> int | None:
    rank = folder.config.get("init_r" if folder.kind == "ADALORA" else "r")
    return rank if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0 else None


def _held(base: ModelFolder, name: str) -> str:
    stored = base.stored(name)
    if stored is None:
        raise KeyMismatchError(
            f"the base {base.where} has no {shown(name)}: check that this is the model that the "
            "adapter was trained on"
        )
    return stored


def _chosen(folder: AdapterFolder, base: ModelFolder) -> list[str]:
    """The modules that the configuration chooses, for kinds whose file names none (Uni-LoRA).

    Raises:
        AdapterError: it chooses in a way that is not understood.
    """
    listed = folder.config.get("target_modules")
    further = [f for f in _CHOOSERS[:3] if folder.config.get(f) not in (None, [], "")]
    if further or not isinstance(listed, list) or not all(isinstance(t, str) for t in listed):
        raise AdapterError(
            f"the {folder.kind} adapter of {folder.where} names no modules in its file, and "
            f"{further[0] if further else 'target_modules'} of its configuration is no list of "
            "names: re-save it with target_modules as a list"
        )

    def named(path: str, names: Iterable[str]) -> bool:
        return any(path == name or path.endswith(f".{name}") for name in names)

    saved = folder.config.get("modules_to_save") or ()
    paths = (path for path, _ in base.meta_model.named_modules())
    return [path for path in paths if named(path, listed) and not named(path, saved)]


def _divided(folder: AdapterFolder, base: ModelFolder) -> tuple[dict[str, str], list[str]]:
    """Keys of the adapter with the module each belongs to, and keys of what is stored whole.

    A tensor that several modules share belongs to "".
    """
    modules = {path for path, _ in base.meta_model.named_modules() if path}
    named = base.meta_model.named_parameters(remove_duplicate=False)
    parameters = {parameter_name(n) for n, _ in named}
    adapter: dict[str, str] = {}
    whole: list[str] = []
    for key in folder.files.names():
        short = key.removeprefix(_PREFIX)
        if key.startswith(_PREFIX) and (
            parameter_name(short) in parameters
            or short.endswith(saved_modules.TOKENS)
            or saved_modules.wrapper_copy(folder, short)
        ):
            whole.append(key)
            continue
        parts = short.split(".")
        owners = [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
        owner = next((o for o in owners if o in modules), "")
        if not owner and not key.startswith("base_model."):
            raise KeyMismatchError(
                f"the key {shown(key)} of {folder.where} belongs to no module of the base "
                f"{base.where}: check that this is the model that the adapter was trained on"
            )
        adapter[key] = owner
    return adapter, whole


def _built(folder: AdapterFolder, base: ModelFolder, targets: list[str]) -> PeftModel:
    """The base in float32 with a new adapter of the folder's configuration."""
    import peft

    _check_sizes(folder)
    shell: Any = copy.deepcopy(base.meta_model)
    model = shell.to(torch.float32).to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(base.read(_held(base, parameter_name(name))))
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(folder.kind)]
    known = {field.name for field in dataclasses.fields(config_class)}
    explicit = _explicit(folder, targets)
    # what another version of PEFT has, and does not use here, means nothing
    explicit = {name: value for name, value in explicit.items() if value or name in known}
    try:
        config = config_class(**explicit)
        with _own_randomness():
            return peft.get_peft_model(model, config)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise AdapterError(
            f"PEFT cannot make the {folder.kind} adapter of {folder.config_where} on "
            f"{base.where} ({error}): check that they belong together, or upgrade PEFT"
        ) from error


def _check_sizes(folder: AdapterFolder) -> None:
    """Refuse sizes that no tensor of the adapter has, before PEFT allocates them.

    Raises:
        AdapterError: naming the field.
    """
    dimensions = [n for key in folder.files.names() for n in folder.files.info(key).shape]
    largest = max([_LARGEST_UNSEEN_SIZE, *dimensions])
    for field, value in folder.config.items():
        table = value if isinstance(value, Mapping) else {field: value}
        for size in table.values():
            if isinstance(size, int) and size > largest and not _NO_SIZES.search(field):
                raise AdapterError(
                    f"{field} of {folder.config_where} is {shown(size, 60)}, and no tensor of the "
                    "adapter is as large: re-save the adapter with its configuration"
                )


def _explicit(folder: AdapterFolder, targets: list[str]) -> dict[str, Any]:
    """The configuration with every pattern replaced by the module names it stands for."""
    config = dict(folder.config)
    where = folder.config_where
    for field in _CHOOSERS:
        if field in config:
            config[field] = None
    for field in ("peft_type", "auto_mapping", "peft_version"):
        config.pop(field, None)
    config["target_modules"] = targets
    config["inference_mode"] = False
    if isinstance(config.get("bias"), str):
        config["bias"] = "none"  # trained biases are stored whole, and read as such
    feed_forward = config.get("feedforward_modules")
    if feed_forward:
        keys = [feed_forward] if isinstance(feed_forward, str) else list(feed_forward)
        entries = patterns.Patterns(keys, where)
        config["feedforward_modules"] = [t for t in targets if entries.first(t) is not None]
    for field, table in config.items():
        if field.endswith("_pattern") and isinstance(table, dict) and folder.kind != "ADALORA":
            entries = patterns.Patterns(table, where)
            entry_of = {t: entries.first(t) for t in targets}
            config[field] = {re.escape(t): table[k] for t, k in entry_of.items() if k is not None}
    return config


def starts_at_base(config: Any, layer: nn.Module, path: str) -> bool:
    """Whether a new adapter of this configuration leaves a layer's weights as they are.

    Told by making one on a copy of the layer and merging it: no table of kinds and options could
    be complete.

    The layer is a base layer that it adapts, with the base's weights; some configurations choose by
    its path in the model.
    """
    import peft

    probe = copy.deepcopy(config)
    for field in _CHOOSERS:
        if hasattr(probe, field):
            setattr(probe, field, None)
    for field, value in vars(probe).items():
        if field.endswith("_pattern") and isinstance(value, dict):
            setattr(probe, field, {})
    probe.target_modules = [path]
    probe.task_type = None
    if getattr(probe, "feedforward_modules", None) is not None:
        probe.feedforward_modules = []
    # on the CPU, whose random numbers are put back: training must not notice
    own = copy.deepcopy(layer).to("cpu", torch.float32)
    before = {name: p.detach().clone() for name, p in own.named_parameters()}
    inner: nn.Module = own
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(name, inner)
        inner = outer
    with _own_randomness():
        model = peft.get_peft_model(inner, probe)
    adapted = dict(tuner_layers(model.base_model.model))[path]
    after = merged_weights(adapted, ["default"])
    return all(
        float((after[name] - value).norm()) <= MOVED_AT_START * float(value.norm())
        for name, value in before.items()
    )


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Random numbers that the training around does not notice."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _check_start(
    folder: AdapterFolder, base: ModelFolder, model: PeftModel, layers: Mapping[str, Any]
) -> None:
    """Refuse a kind or configuration that does not start at the base's weights.

    Raises:
        AdapterError: naming the kind.
    """
    one_of_each = {type(layer): (path, layer) for path, layer in layers.items()}
    for path, layer in one_of_each.values():
        own = copy.deepcopy(layer.get_base_layer())  # may have been changed by the adapter's making
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.copy_(base.read(_held(base, parameter_name(f"{path}.{name}"))))
        if not starts_at_base(model.peft_config["default"], own, path):
            raise AdapterError(
                f"the {folder.kind} adapter of {folder.where} did not start at the base's "
                f"weights, so its change since then is not in the file: {RECORD_IT}"
            )


def _load(folder: AdapterFolder, model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    import peft

    expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    lacking = sorted(expected.keys() - tensors.keys())
    strange = sorted(tensors.keys() - expected.keys())
    if lacking or strange:
        which = f"lacks {shown(lacking[0])}" if lacking else f"has {shown(strange[0])}, unknown"
        raise AdapterError(
            f"{folder.where} {which} to the {folder.kind} adapter that its configuration "
            "describes: re-save the adapter"
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise AdapterError(
                f"{shown(key)} of {folder.where} has shape {tuple(tensor.shape)}, its "
                f"configuration says {tuple(expected[key].shape)}: re-save the adapter"
            )
    result = peft.set_peft_model_state_dict(model, dict(tensors))
    if result.unexpected_keys:
        raise AdapterError(
            f"PEFT has no place for {shown(result.unexpected_keys[0])} of {folder.where}: upgrade "
            "PEFT, or re-save the adapter"
        )
