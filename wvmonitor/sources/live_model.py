"""The task vector of a model in memory, at any time during its training.

Under PEFT the wrapped base is θ_0 and the adapters' factors are read where they are. Under full
fine-tuning θ_0 must come from elsewhere: streamed from the base's files, or kept in host memory.
On resume, the weights at hand are never taken for θ_0: give the base, or the recorded start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, KeyMismatchError, UnmeasurableModelError
from wvmonitor.files.storage import Location, shown
from wvmonitor.reading import Reading
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources import identity
from wvmonitor.sources.adapters.kinds import RECORD_IT
from wvmonitor.sources.distributed import (
    any_sharded,
    from_first,
    full_shape,
    has_master,
    measure_together,
    owns,
    whole,
)
from wvmonitor.sources.folder import compare_shapes
from wvmonitor.sources.live_adapter import (
    Adapted,
    adapted_modules,
    adapter_state,
    counted_twice,
    is_recorded,
    is_state_key,
    merged_error,
)
from wvmonitor.sources.live_base import (
    base_name,
    base_parameters,
    check_readable,
    digest_since,
    trained_outside,
    unwrapped_model,
)
from wvmonitor.sources.live_frozen import unlike_base
from wvmonitor.sources.live_parts import NO_STARTS, Starts, difference, parts_of
from wvmonitor.sources.live_shared import Collected, by_name, collecting
from wvmonitor.sources.live_start import computed_start, moved_at_start, moves_base
from wvmonitor.sources.names import is_task_head, is_transposed, new_head_note, parameter_name
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector, Update
from wvmonitor.vectors.task_vector import Part

KeepBase = Literal["auto", "files", "memory"]
_LOW_PRECISION = (torch.bfloat16, torch.float16)


class LiveModel:
    """A model under training whose task vector can be taken again and again.

    Make it when training starts: what it cannot get elsewhere, it records then.

    Attributes:
        method: "full", or the kind of adapter; "lora+merged" where the base in memory is not the
            named one, and the difference counts.
        rank: largest rank of its adapters; None where they have none.
        target_modules: the kinds of modules that its adapters change, in alphabetical order; None
            without adapters.
        base_digest: digest of θ_0, or None where it cannot be told (a quantised or changed base
            whose folder was not given).
        sharded: whether parameters, or their float32 masters, are spread over processes: then
            everything here is called in every process, and `measure` takes the place of
            `task_vector`.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Location | None = None,
        keep_base: KeepBase = "auto",
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Look at a model at the start of its training, or restore a recorded start.

        Args:
            model: a transformers model, a PEFT model, or either wrapped by DDP or torch.compile.
            base: folder of θ_0. On resume of a full fine-tune this or `initial` is needed.
            keep_base: where θ_0 of parameters that are trained directly comes from: "files"
                streams it from `base` at each reading, "memory" keeps a copy in host memory,
                "auto" is "files" where a base is given and "memory" where not.
            initial: what `initial_state` gave at step 0 of this run.

        Raises:
            UnmeasurableModelError: parameters are flattened by FSDP1 or on the meta device, or
                adapters are merged.
            UnsupportedAdapterError: an adapter without a task vector.
            KeyMismatchError: the base lacks a trained parameter.
        """
        self._root, config = unwrapped_model(model)
        self._config = config
        self._folder = None if base is None else identity.open_base(base)
        self._base_name = str(base) if base is not None else _name_of(self._root)
        if keep_base == "files" and self._folder is None:
            raise InputError("keep_base='files' needs the folder of the base: give base")
        self._in_memory = keep_base == "memory" or self._folder is None
        check_readable(self._root)
        self.sharded = any_sharded(self._root)
        self._conv1d = {
            parameter_name(f"{path}.weight")
            for path, module in self._root.named_modules()
            if type(module).__name__ == "Conv1D"
        }
        self._owners = {id(p): base_name(n) for n, p in self._root.named_parameters()}
        self._adapted = list(adapted_modules(self._root)) if config else []
        self._own = list(base_parameters(self._root).items())
        self._trained: dict[str, Tensor] = {}
        self._unrecorded: dict[str, Tensor] = {}
        self._heads_without_start: set[str] = set()
        self._directs: int | None = None  # how many were checked; None before the first time
        self._warned_of_precision = False
        self._parts: list[Part] | None = None
        self._collected: list[Collected] | None = None
        self.method, self.rank = _method(self._adapted, config)
        kinds = sorted({entry.path.rsplit(".", maxsplit=1)[-1] for entry in self._adapted})
        self.target_modules = tuple(kinds) or None
        self._starts = self._starts_by_base()
        self._initial = dict(initial) if initial is not None else self._recorded()
        if initial is not None:
            self._check_started()
        self._warnings = self._check_direct(self._direct())
        self._unlike = self._merged_before()
        outside = trained_outside(model, self._root)
        if outside:
            self._warnings.append(
                f"{len(outside)} trained parameters are outside of the language model and not in "
                f"the change ({shown(outside[0])}): a head of the trainer's own"
            )
        self.base_digest = self._digest(base)

    def initial_state(self) -> dict[str, Tensor]:
        """What was recorded of the start: empty where the base alone tells it.

        Save it with the run (it is small, unless a full fine-tune keeps θ_0 in memory) and give it
        back as `initial` on resume; for adapters it is also what `read_adapter` takes as initial.
        """
        return dict(self._initial)

    @property
    def starts_elsewhere(self) -> bool:
        """Whether adapters began away from the base, so that only a record tells where."""
        return any(is_state_key(name) for name in self._initial)

    @property
    def incomplete(self) -> bool:
        """Whether parameters are trained whose start nobody recorded: they are left out."""
        return bool(self._unrecorded)

    def unknown(self) -> list[str]:
        """Names of trained parameters that came after this was made: adapters added since, say."""
        return [
            parameter_name(name)
            for name, parameter in self._root.named_parameters()
            if parameter.requires_grad and id(parameter) not in self._owners
        ]

    def notice(self) -> None:
        """Record parameters that are unfrozen since. Call before each step of the optimiser.

        It costs a look at each parameter's flag. Without it, and without the base's folder, what is
        unfrozen later is left out of τ, and said.
        """
        if self._in_memory:
            known = set(self._trained)
            later = {n: p for n, p in self._direct().items() if n not in known}
            self._initial.update(self._held(later))

    def task_vector(self, step: int | None = None) -> TaskVector:
        """τ = θ_now − θ_0, lazily: updates are computed from the weights when they are asked for.

        Call `held()` on it to keep what it is now.

        Args:
            step: the optimiser step, for the origin.

        Raises:
            UnmeasurableModelError: adapters are merged.
            UnsupportedAdapterError: an adapter without a task vector is active.
        """
        if self.sharded:
            raise UnmeasurableModelError(
                "the model's parameters are spread over processes: call `LiveModel.measure` in "
                "every one of them"
            )
        self._look_at_adapters()
        if self._parts is None:
            self._parts = [
                part
                for entry in self._counted()
                for part in parts_of(entry, self._initial, self._owners, self._starts)
            ]
        direct = {**self._unlike, **self._checked_direct()}
        parts = self._parts + [self._direct_part(n, p, p.detach) for n, p in direct.items()]
        return TaskVector.of_parts(parts, self._origin(step))

    def measure(
        self,
        bank: ReferenceBank,
        step: int | None = None,
        *,
        progress: float | None = None,
    ) -> Reading:
        """Measure the model as it is now; in every process, where it is sharded.

        Every process gets the reading of the whole model; warnings are those of its own share.

        Args:
            bank: the references.
            step: the optimiser step.
            progress: fraction of the planned steps, in [0, 1].

        Raises:
            WVMonitorError: as `task_vector` and `ReferenceBank.measure` say.
        """
        if not self.sharded:
            return bank.measure(self.task_vector(step), progress=progress)
        self._look_at_adapters()
        if self._collected is None:
            self._collected = []
            for entry in self._counted():
                collect = collecting(entry)
                with collect():
                    parts = parts_of(entry, self._initial, self._owners, self._starts)
                self._collected += [(part, collect) for part in parts]
        collected = self._collected + [
            self._shared_direct(n, p) for n, p in {**self._unlike, **self._checked_direct()}.items()
        ]
        return measure_together(
            bank, by_name(collected), self._origin(step), step=step, progress=progress
        )

    def _shared_direct(self, name: str, parameter: Tensor) -> Collected:
        now: list[Tensor] = []

        @contextmanager
        def collect() -> Iterator[None]:
            now.append(whole(parameter))
            try:
                yield
            finally:
                now.clear()

        return self._direct_part(name, parameter, lambda: now[0]), collect

    def _look_at_adapters(self) -> None:
        """Notice adapters that were switched since, and refuse merged ones."""
        if any(a.adapters != tuple(a.module.active_adapters) for a in self._adapted):
            self._adapted = list(adapted_modules(self._root))
            self._parts = self._collected = None
        for entry in self._adapted:
            if getattr(entry.module, "merged_adapters", None):
                raise merged_error(entry.path)

    def _counted(self) -> list[Adapted]:
        """The adapted modules, those that share another one's factors left out."""
        copies = counted_twice(self._adapted)
        return [entry for entry in self._adapted if entry.path not in copies]

    def _checked_direct(self) -> dict[str, Tensor]:
        later = self.unknown()
        if later:
            raise UnmeasurableModelError(
                f"{shown(later[0])} is trained, and was made after the monitor looked at the "
                f"model ({len(later)} such): add adapters before training begins"
            )
        direct = self._direct()
        if len(direct) != self._directs:
            self._warnings += self._check_direct(direct)
        return {
            name: parameter
            for name, parameter in direct.items()
            if name not in self._unrecorded and name not in self._heads_without_start
        }

    def _origin(self, step: int | None) -> Origin:
        return Origin(
            source="the live model",
            base_digest=self.base_digest,
            base_name=self._base_name,
            method=self.method,
            rank=self.rank,
            step=step,
            warnings=tuple(self._warnings),
        )

    # The start

    def _recorded(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        known: dict[tuple[str, type], bool] = {}
        for module in self._adapted:
            with collecting(module)():
                if moved_at_start(module, self._config, known):
                    state.update(adapter_state(module))
        direct = self._direct()
        if not self._in_memory:
            direct = {n: p for n, p in direct.items() if self._is_new_head(n)}
        state.update(self._held(direct))
        return state

    def _held(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters as they are now, in host memory; over all processes, each once."""
        state = {}
        for name, parameter in parameters.items():
            now = whole(parameter) if self.sharded else parameter.detach()
            if not self.sharded or owns(name):
                state[name] = now.to(parameter.dtype).to("cpu", copy=True)
        return state

    def _starts_by_base(self) -> Starts:
        """The adapters whose start the base's folder tells."""
        folder = self._folder
        if folder is None:
            return NO_STARTS
        every = {adapter for entry in self._adapted for adapter in entry.adapters}
        of = {a: start for a in every if (start := computed_start(a, self._config)) is not None}

        def weight(name: str) -> Tensor:
            return folder.read(folder.stored(name) or name)

        return Starts(of, weight)

    def _check_started(self) -> None:
        """Refuse adapters whose start is neither their base, nor recorded, nor told by the base.

        Raises:
            UnmeasurableModelError: saying what is missing.
        """
        known: dict[tuple[str, type], bool] = {}
        for entry in self._adapted:
            if is_recorded(entry, self._initial):
                continue
            with collecting(entry)():
                moved = moved_at_start(entry, self._config, known)
            if not moved or all(a in self._starts.of for a in entry.adapters):
                continue
            by_base = all(computed_start(a, self._config) for a in entry.adapters)
            raise UnmeasurableModelError(
                f"where the adapter of {shown(entry.path)} started cannot be told from its weights "
                "now"
                + (", but from its base: give base, or " if by_base else ", nor from its base: ")
                + RECORD_IT
            )

    def _is_new_head(self, name: str) -> bool:
        """Whether a parameter is of a head that the base's folder has not."""
        return self._folder is not None and is_task_head(name) and self._folder.stored(name) is None

    def _direct(self) -> dict[str, Tensor]:
        """Parameters that are trained themselves, or ever were, by name; tied ones once."""
        for name, parameter in self._own:
            if parameter.requires_grad:
                self._trained[name] = parameter
        return self._trained

    def _check_direct(self, direct: Mapping[str, Tensor]) -> list[str]:
        warnings: list[str] = []
        for name, parameter in direct.items():
            if self.sharded and self._in_memory and not owns(name):
                continue
            if name in self._initial:
                shape: tuple[int, ...] = tuple(self._initial[name].shape)
            elif self._folder is not None:
                held = self._folder.stored(name)
                if held is None and self._is_new_head(name):
                    warnings.append(new_head_note([name], "the live model"))
                    self._heads_without_start.add(name)
                    continue
                if held is None:
                    raise KeyMismatchError(
                        f"{shown(name)} is trained but is not in {self._folder.where}: give the "
                        "base it was made from, or keep_base='memory' before the first step"
                    )
                shape = self._folder.shape(held)
            else:
                warnings += self._left_out(name, parameter)
                continue
            warnings += compare_shapes(name, shape, full_shape(parameter), "the live model")
        low = [
            p.dtype
            for p in self._root.parameters()
            if p.requires_grad and p.dtype in _LOW_PRECISION and not has_master(p)
        ]
        if low and not self._warned_of_precision:
            self._warned_of_precision = True
            warnings.append(
                f"{len(low)} trained parameters are {low[0]} and no float32 masters are seen: "
                "steps below that resolution are lost as they are made"
            )
        self._directs = len(direct)  # only now: what was refused is refused again
        return warnings

    def _left_out(self, name: str, parameter: Tensor) -> list[str]:
        """Note, once, a trained parameter whose start is not known."""
        if self._directs is None:
            raise KeyMismatchError(
                f"{shown(name)} is trained, but the recorded start of the run lacks it: restore "
                "the state that was recorded at step 0 of this run, or give base=FOLDER of the base"
            )
        if name in self._unrecorded:
            return []
        self._unrecorded[name] = parameter
        return [
            f"{shown(name)} is trained since, and nobody recorded where it started: it is left "
            "out; give base=FOLDER of the base model"
        ]

    def _direct_part(self, name: str, parameter: Tensor, current: Callable[[], Tensor]) -> Part:
        """The change of a parameter that is trained itself; `current` gives its value now."""
        kept = name in self._initial or (self._in_memory and name not in self._unlike)
        source = None if kept else self._folder
        held = name if source is None else source.stored(name) or name
        if source is not None:
            shape = source.shape(held)
        else:  # of a sharded start in memory, each process holds its own share only
            shape = tuple(
                self._initial[name].shape if name in self._initial else full_shape(parameter)
            )
        conv1d = name in self._conv1d and len(shape) == 2

        def produce() -> Update:
            # θ_0 as the run held it: files of another precision were rounded when it began
            start = self._initial[name] if source is None else source.read(held)
            before, now = start.to(parameter.dtype), current()
            if before.shape == now.shape:
                delta = difference(now, before)
            else:
                common = min(before.shape[0], now.shape[0])
                delta = torch.zeros(before.shape, device=now.device)
                delta[:common] = difference(now[:common], before[:common])
            return DenseUpdate(delta, is_transposed(name, shape, conv1d=conv1d))

        return Part(name, shape, produce)

    def _merged_before(self) -> dict[str, Tensor]:
        """Frozen weights that are not the named base's; adapters that move the base say how."""
        if self._folder is None or any(moves_base(m, self._config) for m in self._adapted):
            return {}
        unlike = unlike_base(self._own, self._direct(), self._folder)
        if unlike:
            self._warnings.append(
                f"{len(unlike)} weights of the model in memory are not those of "
                f"{self._folder.where} ({shown(next(iter(unlike)))}, …): what was trained into "
                "them before counts as well"
            )
            if self._adapted:
                self.method = f"{self.method}+merged"
        return unlike

    # Identity

    def _digest(self, base: Location | None) -> str | None:
        if base is not None:
            return (
                from_first(lambda: identity.base_digest(base))
                if self.sharded
                else (identity.base_digest(base))
            )
        if any(moves_base(module, self._config) for module in self._adapted):
            self._warnings.append(
                "the adapter's start changed the base's weights in memory: give the base's folder "
                "to tell which base it is"
            )
            return None
        try:
            return digest_since(self._root, {} if self.sharded else self._initial)
        except InputError as error:
            self._warnings.append(f"which base this is cannot be told: {error}")
            return None


def read_model(model: nn.Module, base: Location | None = None) -> TaskVector:
    """The task vector of a live model as it is now.

    Args:
        model: as for `LiveModel`.
        base: folder of θ_0. Needed for a fully fine-tuned model: nothing in memory says where it
            started. A PEFT model has its base inside.

    Raises:
        UnmeasurableModelError: the start is not known, or as `LiveModel` says.
        InputError: as `LiveModel` says.
    """
    try:
        return LiveModel(model, base, initial={}).task_vector()
    except KeyMismatchError as error:
        if base is not None:
            raise
        raise UnmeasurableModelError(
            "where this model started cannot be told from its weights now: give base, or make a "
            "LiveModel before the first step"
        ) from error


def _method(adapted: Iterable[Adapted], config: Mapping[str, Any]) -> tuple[str, int | None]:
    kinds: list[str] = []
    ranks: list[int] = []
    for entry in adapted:
        for adapter in entry.adapters:
            settings = config.get(adapter)
            if settings is None:
                continue
            kind = "dora" if getattr(settings, "use_dora", False) else settings.peft_type.value
            kinds.append(kind.lower())
            own = getattr(entry.module, "r", None)
            rank = own.get(adapter) if isinstance(own, dict) else None
            ranks += [rank] if isinstance(rank, int) else []
    return ("+".join(dict.fromkeys(kinds)) or "full"), max(ranks, default=None)


def _name_of(root: nn.Module) -> str | None:
    name = getattr(root, "name_or_path", None)
    return name if isinstance(name, str) and name else None
