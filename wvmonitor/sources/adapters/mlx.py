"""Adapters of mlx-lm: its own keys, orientation and scale; the change is LoRA's or DoRA's.

`lora_a` is (in, R) and `lora_b` (R, out) of a weight (out, in), of an embedding (tokens, R) and
(R, dim); `scale` multiplies their product as it is (mlx_lm/tuner/lora.py, dora.py). Names are those
of the model's Hugging Face folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from wvmonitor.errors import AdapterError, KeyMismatchError, UnsupportedAdapterError
from wvmonitor.files.checkpoint_files import CheckpointFiles, open_checkpoint
from wvmonitor.files.storage import Location, shown
from wvmonitor.sources import identity
from wvmonitor.sources.adapters.lora_module import Layout, LoraModule
from wvmonitor.sources.folder import ModelFolder, check_finite, compare_shapes
from wvmonitor.sources.names import is_transposed, parameter_name, step_of
from wvmonitor.vectors import Origin, TaskVector, Update
from wvmonitor.vectors.task_vector import Part

_KEY = re.compile(r"(.+)\.(lora_a|lora_b|m)")
_LARGEST_SCALE = 1e6
_FUSE_IT = "fuse it (`mlx_lm.fuse`) and give the whole model that comes out"


def read_mlx(path: Location, config: Mapping[str, Any], base: Location | None) -> TaskVector:
    """The task vector of an adapter that mlx-lm trained.

    Args:
        path: its folder, with adapters.safetensors.
        config: its adapter_config.json.
        base: folder of the base model, unquantised. Needed for DoRA, and checked where given.

    Raises:
        AdapterError: configuration and tensors contradict each other, or the base is needed.
        UnsupportedAdapterError: a fine-tune of whole weights, of experts, or of a kind not known.
        KeyMismatchError: the base has not the parameter that a tensor changes.
        ShapeMismatchError: factors do not fit the base.
    """
    files = open_checkpoint(path, stem="adapters")
    kind, scale = _kind(config, files.where), _scale(config, files.where)
    folder = None if base is None else identity.open_base(base)
    if kind == "dora" and folder is None:
        raise AdapterError(
            f"{files.where} is a DoRA adapter of mlx-lm, whose change depends on the weights it "
            "started from: give the unquantised base (--base at the command line)"
        )
    modules = _modules(files, dora=kind == "dora")
    name = config.get("model")
    origin = Origin(
        source=files.where,
        base_digest=None if base is None else identity.base_digest(base),
        base_name=name if isinstance(name, str) else None,
        method=kind,
        rank=max(files.info(keys["lora_a"]).shape[-1] for keys in modules.values()),
        step=step_of(path),
        warnings=(),
    )
    return TaskVector.of_parts(
        [_part(files, m, k, scale, folder) for m, k in modules.items()], origin
    )


def _kind(config: Mapping[str, Any], where: str) -> str:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UnsupportedAdapterError(
            f"{where} is of mlx-lm, and holds no factors (fine_tune_type {shown(kind, 60)}): "
            f"{_FUSE_IT}"
        )
    return str(kind)


def _scale(config: Mapping[str, Any], where: str) -> float:
    settings = config.get("lora_parameters")
    parameters: Mapping[str, Any] = settings if isinstance(settings, Mapping) else {}
    value = parameters.get("scale")
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST_SCALE:
        raise AdapterError(
            f"lora_parameters.scale must be a number up to {_LARGEST_SCALE:g}, got "
            f"{shown(value, 60)} (adapter_config.json of {where}): {_FUSE_IT}"
        )
    alpha, rank = parameters.get("alpha"), parameters.get("rank")
    if alpha is not None and alpha != rank:
        raise AdapterError(
            f"lora_parameters of {where} has alpha {shown(alpha, 60)} beside scale, and versions "
            f"of mlx-lm differ in whether it counts: with the one that trained it, {_FUSE_IT}"
        )
    return float(value)


def _modules(files: CheckpointFiles, *, dora: bool) -> dict[str, dict[str, str]]:
    """The keys of each adapted module, by role.

    Raises:
        AdapterError: a key is not one of mlx-lm's, or a module lacks one.
        UnsupportedAdapterError: factors of a layer's experts together.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in files.names():
        matched = _KEY.fullmatch(key)
        if matched is None:
            raise AdapterError(
                f"the key {shown(key)} of {files.where} is none of mlx-lm's LoRA: {_FUSE_IT}"
            )
        if len(files.info(key).shape) > 2:
            raise UnsupportedAdapterError(
                f"{shown(key)} of {files.where} adapts all experts of a layer, whose names in "
                f"mlx-lm are its own: {_FUSE_IT}"
            )
        modules.setdefault(matched[1], {})[matched[2]] = key
    expected = {"lora_a", "lora_b", *(("m",) if dora else ())}
    for module, keys in modules.items():
        if keys.keys() != expected:
            raise AdapterError(
                f"{shown(module)} of {files.where} has {', '.join(sorted(keys))} where a "
                f"{'DoRA' if dora else 'LoRA'} has {', '.join(sorted(expected))}: save it again"
            )
    if not modules:
        raise AdapterError(f"{files.where} holds no tensor, so what was trained is not in it")
    return modules


def _part(
    files: CheckpointFiles,
    module: str,
    keys: Mapping[str, str],
    scale: float,
    base: ModelFolder | None,
) -> Part:
    name = parameter_name(f"{module}.weight")
    first, second = (tuple(files.info(keys[role]).shape) for role in ("lora_a", "lora_b"))
    if len(first) != 2 or len(second) != 2 or first[1] != second[0] or first[1] == 0:
        raise AdapterError(
            f"{shown(keys['lora_a'])} {first} and {shown(keys['lora_b'])} {second} of "
            f"{files.where} are no factors of one matrix: save the adapter again"
        )
    embedding = is_transposed(name, (first[0], second[1]), conv1d=False)
    if embedding and "m" in keys:
        raise UnsupportedAdapterError(
            f"{shown(keys['m'])} of {files.where} is the DoRA of an embedding, which mlx-lm "
            f"defines by rows: {_FUSE_IT}"
        )
    shape = (first[0], second[1]) if embedding else (second[1], first[0])
    held = name
    if base is not None:
        stored = base.stored(name)
        if stored is None:
            raise KeyMismatchError(
                f"{files.where} changes {shown(name)}, which the base {base.where} does not have: "
                "check that this is the model that the adapter was trained on"
            )
        held = stored
        if compare_shapes(held, base.shape(held), shape, files.where):
            raise AdapterError(f"{shown(name)} of {files.where} has another vocabulary: {_FUSE_IT}")
    # PEFT's A is (R, in) and its B (out, R), for a weight that is stored as its layout says
    layout = Layout(shape, outputs_last=embedding, transposed=embedding)

    def read(role: str) -> Tensor:
        return check_finite(files.read(keys[role]), keys[role], files.where)

    def produce() -> Update:
        magnitude = read("m") if "m" in keys else None
        a, b = read("lora_a").mT, read("lora_b").mT
        return LoraModule(held, a, b, scale, layout, magnitude).delta(_weight(base, held))

    return Part(held, shape, produce)


def _weight(base: ModelFolder | None, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        return torch.empty(0) if base is None else base.read(name)

    return read
