"""LoRA on `target_parameters`: parameters that are no module's weight, such as fused experts.

PEFT stacks the factors of E experts: `lora_A.weight` (E·R, in), `lora_B.weight` (out, R·E) with
the expert running fastest, and nests one wrapper a parameter, so that `experts.lora_A` belongs to
the parameter wrapped last and `experts.base_layer.lora_A` to the one before it
(peft/tuners/lora/layer.py, `ParamWrapper`). Which that is, only the model's class can say.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from wvmonitor.errors import AdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.config import LoraSettings
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.adapters.initialised import RECORD_IT, minus
from wvmonitor.sources.adapters.parts import Part
from wvmonitor.sources.names import unwrapped
from wvmonitor.vectors import LowRankUpdate, Update


def expert_factors(
    a: Tensor, b: Tensor, scale: float, experts: int, *, inputs_first: bool
) -> LowRankUpdate:
    """The update of a 3-D parameter from PEFT's stacked factors.

    Args:
        a: (experts·rank, in).
        b: (out, rank·experts).
        scale: as PEFT resolves it.
        experts: how many.
        inputs_first: whether the parameter is (experts, in, out) and not (experts, out, in).
    """
    from wvmonitor.sources.adapters.lora import factors

    a_ERI = a.detach().reshape(experts, -1, a.shape[-1])  # noqa: N806  a legend of dimensions
    b_EOR = b.detach().reshape(b.shape[0], -1, experts).permute(2, 0, 1)  # noqa: N806
    return factors(a_ERI, b_EOR, scale, transposed=inputs_first)


def fused_parts(
    folder: AdapterFolder,
    settings: LoraSettings,
    modules: Mapping[str, Mapping[str, str]],
    initial: InitialState | None,
) -> dict[str, Part]:
    """The parts of an adapter that stand for parameters, by the path of their keys.

    Args:
        folder: the adapter.
        settings: its configuration.
        modules: role -> key, by path.
        initial: the adapter's state at step 0.

    Raises:
        AdapterError: the base is needed, or keys and parameters do not fit.
    """
    base = folder.needed_base("target_parameters names parameters that only the base can place")
    parts: dict[str, Part] = {}
    for path, module in base.meta_model.named_modules():
        targeted = [
            name
            for name, _ in module.named_parameters(recurse=False)
            if any(
                f"{path}.{name}" == target or f"{path}.{name}".endswith(f".{target}")
                for target in settings.parameters
            )
        ]
        for depth, name in enumerate(reversed(targeted)):
            keys_path = path + ".base_layer" * depth
            if keys_path not in modules:
                raise AdapterError(
                    f"{folder.where} has no factors for {shown(f'{path}.{name}')}, which its "
                    "target_parameters name: re-save the adapter"
                )
            parts[keys_path] = _part(
                folder, settings, module, f"{path}.{name}", modules[keys_path], initial
            )
    loose = sorted(p for p in modules if ".base_layer" in p and p not in parts)
    if loose:
        raise AdapterError(
            f"{folder.where} has factors at {shown(loose[0])} that belong to no parameter of its "
            "target_parameters: re-save the adapter"
        )
    return parts


def _part(
    folder: AdapterFolder,
    settings: LoraSettings,
    module: nn.Module,
    name: str,
    keys: Mapping[str, str],
    initial: InitialState | None,
) -> Part:
    from wvmonitor.sources.adapters.lora import factors

    shape = tuple(module.get_parameter(name.rpartition(".")[2]).shape)
    rank, scale = settings.rank_of(name), settings.scale_of(name)
    a_shape, b_shape = folder.shape(keys["A"]), folder.shape(keys["B"])
    experts = shape[0] if len(shape) == 3 else 1
    inputs_first = len(shape) == 3 and bool(getattr(module, "is_transposed", False))
    outputs, inputs = (shape[-1], shape[-2]) if inputs_first else (shape[-2], shape[-1])
    if a_shape != (rank * experts, inputs) or b_shape != (outputs, rank * experts):
        raise AdapterError(
            f"{shown(keys['A'])} {a_shape} and {shown(keys['B'])} {b_shape} of {folder.where} are "
            f"no factors of rank {rank} for {shown(name)} of shape {shape}: give the base that the "
            "adapter was trained on"
        )
    if settings.start in ("pissa", "olora") and initial is None:
        raise AdapterError(
            f"{settings.where} starts target_parameters elsewhere than at zero: {RECORD_IT}"
        )

    def made(a: Tensor, b: Tensor) -> Update:
        if len(shape) == 2:
            return factors(a, b, scale, transposed=False)
        return expert_factors(a, b, scale, experts, inputs_first=inputs_first)

    def produce() -> Update:
        now = made(folder.read(keys["A"]), folder.read(keys["B"]))
        if initial is None:
            return now
        # a start recorded live names the parameter where PEFT's keys count wrappers
        live = {role: f"{unwrapped(name)}.lora_{role}.weight" for role in ("A", "B")}
        held = live if live["A"] in initial else keys
        if held["A"] not in initial and settings.start == "base":
            return now
        return minus(now, made(initial.read(held["A"]), initial.read(held["B"])))

    return Part(unwrapped(name), shape, produce)
