"""Where a live model holds the parameters of its base, under whatever wraps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from wvmonitor.sources.names import parameter_name

# Methods of PEFT whose layers compute base(x) + more: moving the base's weight moves the whole by
# as much. The others (OFT, IA3, …) multiply it.
_ADDITIVE = frozenset(
    ("adalora", "fourierft", "loha", "lokr", "lora", "randlora", "shira", "vblora", "vera")
)


@dataclass(frozen=True)
class Holder:
    """A module that holds a parameter of the base.

    Attributes:
        module: its owner.
        attribute: the parameter's name in it: "weight", "bias".
        refused: why adding to the base's weight would not add as much to the adapted one, or "".
    """

    module: nn.Module
    attribute: str
    refused: str = ""

    @property
    def parameter(self) -> Tensor:
        """The parameter itself."""
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None  # noqa: S101  `holders` lists none that are
        return parameter


def holders(base: nn.Module) -> dict[str, list[Holder]]:
    """Every module that holds a parameter, by the base model's name for it, aliases included.

    A name has several where PEFT keeps an original and trained copies (`modules_to_save`).
    """
    modules = dict(base.named_modules(remove_duplicate=False))
    layers = {path: module for path, module in modules.items() if _is_peft(module)}
    by_name: dict[str, list[Holder]] = {}
    for path, module in modules.items():
        for attribute, parameter in module._parameters.items():
            raw = f"{path}.{attribute}" if path else attribute
            name, refused = (None, "") if parameter is None else _base_name(raw, layers)
            if name is not None:
                by_name.setdefault(name, []).append(Holder(module, attribute, refused))
    return by_name


def without_wrappers(model: nn.Module) -> nn.Module:
    """The base model inside torch.compile, DataParallel and PEFT wrappers."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner: object = model._modules.get("_orig_mod")
        if isinstance(model, parallel):
            inner = model.module
        elif _is_peft(model):
            unwrap = getattr(model, "get_base_model", None)
            inner = unwrap() if callable(unwrap) else None
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _is_peft(module: nn.Module) -> bool:
    # Looks at the module's own class alone, so that PEFT need not be imported.
    return any(kind.__module__.startswith("peft.") for kind in type(module).__mro__)


def _base_name(raw: str, layers: Mapping[str, nn.Module]) -> tuple[str | None, str]:
    """What the base model calls a parameter, None for one of an adapter; why it cannot be moved."""
    parts = raw.split(".")
    kept: list[str] = []
    reason = ""
    at = 0
    while at < len(parts):
        layer = layers.get(".".join(parts[:at])) if at else None
        part = parts[at]
        if layer is not None and hasattr(layer, "original_module"):
            if part == "modules_to_save":
                at += 2  # and the adapter's name
                continue
            if part in ("original_module", "token_adapter"):
                at += 1
                continue
            return None, ""
        if layer is not None and hasattr(layer, "base_layer"):
            if part != "base_layer":
                return None, ""
            reason = reason or _not_additive(layer)
        kept.append(part)
        at += 1
    return parameter_name(".".join(kept)), reason


def _not_additive(layer: nn.Module) -> str:
    """Why moving a base layer's weight would not move the adapted weight by as much, or ''."""
    homes = [k.__module__.split(".") for k in type(layer).__mro__]
    tuners = [home[2] for home in homes if home[:2] == ["peft", "tuners"] and len(home) > 2]
    method = tuners[0] if tuners else type(layer).__name__
    magnitudes = getattr(layer, "lora_magnitude_vector", None)
    if magnitudes is not None and len(magnitudes):
        return "DoRA rescales it"
    return "" if method in _ADDITIVE else f"the adapter ({method}) does not simply add to it"
