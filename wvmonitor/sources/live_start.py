"""Where the training of a live model began, and whether its adapters began at their base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, KeyMismatchError, UnmeasurableModelError
from wvmonitor.files.storage import Location, shown
from wvmonitor.sources import identity
from wvmonitor.sources.adapters import config as lora_config
from wvmonitor.sources.adapters.config import as_compared
from wvmonitor.sources.adapters.kinds import MERGED_VARIANTS, RECORD_IT
from wvmonitor.sources.adapters.lora_module import ComputedStart
from wvmonitor.sources.adapters.merged import MOVED_AT_START, starts_at_base
from wvmonitor.sources.adapters.saved_modules import difference
from wvmonitor.sources.distributed import from_first, full_shape, owns, whole
from wvmonitor.sources.folder import ModelFolder
from wvmonitor.sources.live_adapter import Adapted, adapter_state, is_recorded
from wvmonitor.sources.live_base import digest_since
from wvmonitor.sources.live_parts import NO_STARTS, Starts, parts_of
from wvmonitor.sources.live_shared import collecting
from wvmonitor.sources.names import is_task_head, is_transposed
from wvmonitor.vectors import DenseUpdate, Update
from wvmonitor.vectors import update as updates
from wvmonitor.vectors.task_vector import Part


def moved_at_start(
    entry: Adapted, config: Mapping[str, Any], known: dict[tuple[str, type], bool]
) -> bool:
    """Whether a new adapter of this configuration is not the base itself.

    `known` holds the answers so far, by adapter and class of the adapted layer, and is added to.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(entry.module, BaseTunerLayer):
        return False
    layer: Any = entry.module.get_base_layer()
    for adapter in entry.adapters:
        settings = config.get(adapter)
        if settings is None:
            continue
        key = (adapter, type(layer))
        if key not in known:
            variant = any(getattr(settings, field, None) for field in MERGED_VARIANTS)
            if settings.peft_type.value == "LORA" and not variant:
                known[key] = not lora_config.starts_at_base(settings.init_lora_weights)
            else:
                known[key] = not starts_at_base(settings, layer, entry.path)
        if known[key]:
            return True
    return False


def computed_start(adapter: str, config: Mapping[str, Any]) -> ComputedStart | None:
    """How PEFT computes an adapter's start from the base's weights, or None where it does not."""
    settings = config.get(adapter)
    if settings is None or settings.peft_type.value != "LORA" or settings.use_dora:
        return None
    start = as_compared(settings.init_lora_weights)
    if start == "pissa":
        return "pissa"
    return "olora" if start == "olora" else None


def moves_base(entry: Adapted, config: Mapping[str, Any]) -> bool:
    """Whether making the adapter has changed the base's weights in memory (PiSSA and its kin)."""
    settings = [config[a] for a in entry.adapters if config.get(a) is not None]
    return any(
        getattr(s, "kasa_config", None)
        or (
            s.peft_type.value == "LORA"
            and s.init_lora_weights
            and not lora_config.starts_at_base(s.init_lora_weights)
        )
        for s in settings
    )


def check_at_base(entry: Adapted, config: Mapping[str, Any], folder: ModelFolder) -> None:
    """See that a module's adapters hold just what making them took off the base's weight.

    `folder` is the base's. Adapters that take nothing off are left alone.

    Raises:
        UnmeasurableModelError: they were trained before, or the base in memory is another one.
    """
    starts = [getattr(config.get(a), "init_lora_weights", None) for a in entry.adapters]
    if not any(map(lora_config.taken_off, starts)):
        return
    adapted, weight = parts_of(entry, {}, {}, NO_STARTS)[0], entry.module.get_base_layer().weight
    if tuple(weight.shape) != adapted.shape:  # packed by quantisation
        return
    held = folder.read(folder.stored(adapted.name) or adapted.name).float()
    now = (weight.detach() + updates.to_dense(adapted.produce())).to("cpu", torch.float32)
    rows = min(len(held), len(now))  # of a resized vocabulary
    off = (now[:rows] - held[:rows]).norm()
    resolution = max(torch.finfo(p.dtype).eps for p in entry.module.parameters())
    if off > max(resolution, MOVED_AT_START) * held.norm():
        raise UnmeasurableModelError(
            f"{shown(entry.path)} and its adapter are not {folder.where} together: the adapter was "
            "trained before, or something was merged into the base, which would not be counted. "
            "Measure what is saved with `wvmonitor scan`, or begin a new adapter that takes "
            "nothing off the base (init_lora_weights=True)"
        )


class LiveStart:
    """Where the training of a live model began, as far as the base and what was recorded tell.

    Attributes:
        recorded: tensors of the start: adapters' own by `state_key`, others by parameter name.
        by_base: adapters whose start the base's folder tells.
    """

    def __init__(
        self,
        folder: ModelFolder | None,
        config: Mapping[str, Any],
        adapted: Sequence[Adapted],
        *,
        in_memory: bool,
        sharded: bool,
    ) -> None:
        """Nothing is recorded yet."""
        self.folder, self.in_memory = folder, in_memory
        self.recorded: dict[str, Tensor] = {}
        self._config, self._adapted, self._sharded = config, tuple(adapted), sharded
        self.by_base = self._starts_by_base()

    def record(self, direct: Mapping[str, Tensor]) -> None:
        """Keep what the base alone does not tell: adapters that began elsewhere, θ_0 in memory."""
        known: dict[tuple[str, type], bool] = {}
        for module in self._adapted:
            with self._whole(module):
                if moved_at_start(module, self._config, known):
                    if not self._sharded and self.folder is not None:
                        check_at_base(module, self._config, self.folder)
                    self.recorded.update(adapter_state(module))
        self.keep(
            direct if self.in_memory else {n: p for n, p in direct.items() if self.is_new_head(n)}
        )

    def restore(self, recorded: Mapping[str, Tensor]) -> None:
        """Take what was recorded when the run began.

        Raises:
            UnmeasurableModelError: an adapter's start is neither its base, nor recorded, nor told
                by the base; saying what is missing.
        """
        self.recorded = dict(recorded)
        known: dict[tuple[str, type], bool] = {}
        for entry in self._adapted:
            if is_recorded(entry, self.recorded):
                continue
            with self._whole(entry):
                moved = moved_at_start(entry, self._config, known)
            if not moved or all(a in self.by_base.of for a in entry.adapters):
                continue
            by_base = all(computed_start(a, self._config) for a in entry.adapters)
            raise UnmeasurableModelError(
                f"where the adapter of {shown(entry.path)} started cannot be told from its weights "
                "now"
                + (", but from its base: give base, or " if by_base else ", nor from its base: ")
                + RECORD_IT
            )

    def keep(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy parameters as they are now to host memory; over all processes, each once."""
        for name, parameter in parameters.items():
            now = whole(parameter) if self._sharded else parameter.detach()
            if not self._sharded or owns(name):
                self.recorded[name] = now.to(parameter.dtype).to("cpu", copy=True)

    def is_new_head(self, name: str) -> bool:
        """Whether a parameter is of a head that the base's folder has not."""
        return self.folder is not None and is_task_head(name) and self.folder.stored(name) is None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape in which a parameter began; None where that is not known.

        Raises:
            KeyMismatchError: the base lacks it, and it is no new head.
        """
        if name in self.recorded:
            return tuple(self.recorded[name].shape)
        if self.folder is None or self.is_new_head(name):
            return None
        stored = self.folder.stored(name)
        if stored is None:
            raise KeyMismatchError(
                f"{shown(name)} is trained but is not in {self.folder.where}: give the "
                "base it was made from, or keep_base='memory' before the first step"
            )
        return self.folder.shape(stored)

    def change(
        self,
        name: str,
        parameter: Tensor,
        current: Callable[[], Tensor],
        *,
        in_files: bool,
        conv1d: bool,
    ) -> Part:
        """The change of a parameter that is trained itself.

        Args:
            name: the parameter's.
            parameter: of the model.
            current: gives its value now.
            in_files: whether its start is in the base's files, wherever that of others is kept.
            conv1d: whether it belongs to a Conv1D.
        """
        in_memory = name in self.recorded or (self.in_memory and not in_files)
        source = None if in_memory else self.folder
        stored = name if source is None else source.stored(name) or name
        if source is not None:
            shape = source.shape(stored)
        else:  # of a sharded start in memory, each process holds its own share only
            shape = tuple(
                self.recorded[name].shape if name in self.recorded else full_shape(parameter)
            )
        by_column = conv1d and len(shape) == 2

        def produce() -> Update:
            # θ_0 as the run held it: files of another precision were rounded when it began
            start = self.recorded[name] if source is None else source.read(stored)
            delta = difference(current(), start.to(parameter.dtype))
            return DenseUpdate(delta, is_transposed(name, shape, conv1d=by_column))

        return Part(name, shape, produce)

    def base_digest(
        self, root: nn.Module, base: Location | None, hashes: identity.TensorHashes | None = None
    ) -> tuple[str | None, list[str]]:
        """The digest of θ_0, or None and why it cannot be told."""
        if base is not None:
            digest = partial(identity.base_digest, base, hashes)
            return (from_first(digest) if self._sharded else digest()), []
        if self.moves_base:
            return None, [
                "the adapter's start changed the base's weights in memory: give the base's folder "
                "to tell which base it is"
            ]
        try:
            return digest_since(root, {} if self._sharded else self.recorded), []
        except InputError as error:
            return None, [f"which base this is cannot be told: {error}"]

    @property
    def moves_base(self) -> bool:
        """Whether making the adapters has changed the base's weights in memory."""
        return any(moves_base(module, self._config) for module in self._adapted)

    def _whole(self, entry: Adapted) -> AbstractContextManager[None]:
        """A wrapped module's tensors are whole in here; a collective where they are sharded."""
        return collecting(entry)() if self._sharded else nullcontext()

    def _starts_by_base(self) -> Starts:
        """The adapters whose start the base's folder tells."""
        folder = self.folder
        if folder is None:
            return NO_STARTS
        every = {adapter for entry in self._adapted for adapter in entry.adapters}
        of = {a: start for a in every if (start := computed_start(a, self._config)) is not None}

        def weight(name: str) -> Tensor:
            return folder.read(folder.stored(name) or name)

        return Starts(of, weight)
