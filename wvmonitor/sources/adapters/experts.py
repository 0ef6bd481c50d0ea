"""LoRA of single experts, where the base holds all experts of a layer as one parameter.

Transformers 4 and Unsloth have a module for each expert; transformers 5 one parameter for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from wvmonitor.errors import AdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.lora_keys import Keys, Run, factors
from wvmonitor.sources.adapters.lora_module import LoraModule
from wvmonitor.sources.conversion import Fused, converted, fuse
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.sources.names import parameter_name
from wvmonitor.vectors import DenseUpdate, Update
from wvmonitor.vectors import update as updates
from wvmonitor.vectors.task_vector import Part

_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
# Unsloth's gpt-oss: a list of layers for each of the two fused parameters.
_LISTED_EXPERT = re.compile(r"^(.+\.experts\.)(gate_up_proj|down_proj)s\.(\d+)$")


def is_single_expert(path: str) -> bool:
    """Whether a module is that of one expert, by its path."""
    return bool(_ONE_EXPERT.search(f"{path}.") or is_listed_expert(path))


def is_listed_expert(path: str) -> bool:
    """Whether a module is that of one expert of gpt-oss, as Unsloth names it."""
    return _LISTED_EXPERT.match(path) is not None


def expert_parts(run: Run, modules: Mapping[str, Keys]) -> list[Part]:
    """The parts of adapters on single experts that the base holds fused, as it fuses weights.

    Fusing (stacking, concatenating, transposing) is linear: the fused parameter's change is the
    fused changes of its parts.

    Raises:
        AdapterError: an expert or one of its halves is not adapted, the base is needed, or the
            start is not the base.
    """
    listed = {p: m for p, m in modules.items() if _LISTED_EXPERT.match(p)}
    if listed:
        why = "it adapts experts one by one (as Unsloth names them), which the base holds fused"
        base = run.folder.needed_base(why)
        _refuse_more(run, listed)
        return _listed_parts(run, listed, base)
    single = {f"{p}.weight": m for p, m in modules.items() if _ONE_EXPERT.search(f"{p}.")}
    own_base = run.folder.base
    if not single or own_base is None or all(own_base.stored(parameter_name(n)) for n in single):
        return []
    _refuse_more(run, single)
    base = own_base

    def part(fused: Fused) -> Part:
        shape = tuple(base.meta_model.get_parameter(fused.name).shape)

        def delta(key: str) -> Tensor:
            made = LoraModule(key, *factors(run, single[key]))
            return updates.to_dense(made.product())

        def produce() -> Update:
            made = fuse(fused, delta, base.meta_model, run.folder.where)
            return DenseUpdate(made, base.is_transposed(parameter_name(fused.name)))

        return Part(parameter_name(fused.name), shape, produce)

    sources = converted(single, base.meta_model, run.folder.where)
    plain = [source for source in sources.values() if not isinstance(source, Fused)]
    if plain:
        raise AdapterError(
            f"{run.folder.where} adapts {shown(plain[0])} beside experts that the base holds "
            "fused: check that this is the model that the adapter was trained on"
        )
    return [part(source) for source in sources.values() if isinstance(source, Fused)]


def _refuse_more(run: Run, modules: Mapping[str, Keys]) -> None:
    """Refuse what has no fused form: magnitudes, starts, biases."""
    biases = sorted(m.of["bias"] for m in modules.values() if "bias" in m.of)
    if biases:
        raise AdapterError(
            f"{run.folder.where} has a bias for a single expert ({shown(biases[0])}), which the "
            "base holds fused: merge it with the version of PEFT it was made with"
        )
    if run.settings.dora or run.settings.start != "base" or run.initial is not None:
        raise AdapterError(
            f"{run.folder.where} adapts single experts by DoRA or from a start of its own, which "
            "the base holds fused: merge it with the version of PEFT it was made with"
        )


def _listed_parts(run: Run, listed: Mapping[str, Keys], base: ModelFolder) -> list[Part]:
    """The parts of `experts.gate_up_projs.N`: expert N of `experts.gate_up_proj`, transposed.

    Unsloth makes each layer of the parameter's N-th (in, out) matrix, its columns as they are
    (unsloth_zoo, temporary_patches/gpt_oss.py).
    """
    experts: dict[str, dict[int, Keys]] = {}
    for path, module in listed.items():
        matched = _LISTED_EXPERT.match(path)
        assert matched is not None  # noqa: S101  what was listed
        name = parameter_name(matched[1] + matched[2])
        if base.config.get("model_type") != "gpt_oss" or base.stored(name) is None:
            raise AdapterError(
                f"{run.folder.where} adapts {shown(path)}, an expert as Unsloth's gpt-oss has it, "
                f"and {base.where} is no gpt-oss that holds {shown(name)}: check that this is the "
                "model that the adapter was trained on"
            )
        experts.setdefault(name, {})[int(matched[3])] = module

    def part(name: str, of: Mapping[int, Keys]) -> Part:
        shape = tuple(base.shape(name))
        for number, module in of.items():
            inputs = run.folder.shape(module.of["A"])[-1]
            outputs = run.folder.shape(module.of["B"])[0]
            if number >= shape[0] or (inputs, outputs) != shape[1:]:
                raise AdapterError(
                    f"{shown(module.path)} of {run.folder.where} maps {inputs} to {outputs}, and "
                    f"{shown(name)} of the base has shape {shape}: check that this is the model "
                    "that the adapter was trained on"
                )

        def produce() -> Update:
            made = torch.zeros(shape)
            for number, module in of.items():
                product = LoraModule(module.path, *factors(run, module)).product()
                made[number] = updates.to_dense(product).mT
            return DenseUpdate(made)

        return Part(name, shape, produce)

    return [part(name, of) for name, of in experts.items()]
