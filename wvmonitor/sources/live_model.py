"""The task vector of a model in memory, at any time during its training.

Under PEFT the wrapped base is θ_0 and the adapters' factors are read where they are. Under full
fine-tuning θ_0 must come from elsewhere: streamed from the base's files, or kept in host memory.
On resume, the weights at hand are never taken for θ_0: give the base, or the recorded start.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, KeyMismatchError, UnmeasurableModelError
from wvmonitor.files.storage import Location, shown
from wvmonitor.reading import Reading
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.sources import identity
from wvmonitor.sources.distributed import (
    any_sharded,
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
    counted_twice,
    is_state_key,
    merged_error,
    method_and_rank,
)
from wvmonitor.sources.live_base import (
    base_name,
    base_parameters,
    check_readable,
    trained_outside,
    unwrapped_model,
)
from wvmonitor.sources.live_frozen import FrozenWeights
from wvmonitor.sources.live_parts import parts_of
from wvmonitor.sources.live_shared import Collected, by_name, collecting
from wvmonitor.sources.live_start import LiveStart
from wvmonitor.sources.names import new_head_note, parameter_name
from wvmonitor.vectors import Origin, TaskVector
from wvmonitor.vectors.task_vector import Part

KeepBase = Literal["auto", "files", "memory"]
_MERGED = "+merged"
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
        self._seen: weakref.ref[nn.Module] | None = weakref.ref(model)
        self._config = config
        hashes = None if base is None else identity.hashes_to_make(base)  # before it is opened
        folder = None if base is None else identity.open_base(base)
        self._base_name = str(base) if base is not None else _name_of(self._root)
        if keep_base == "files" and folder is None:
            raise InputError("keep_base='files' needs the folder of the base: give base")
        # walked once: with adapters, a small model takes as long to walk as to read
        modules, named = list(self._root.named_modules()), list(self._root.named_parameters())
        check_readable(named)
        self._parameters = [parameter for _, parameter in named]
        self.sharded = any_sharded(self._parameters)
        self._conv1d = {
            parameter_name(f"{path}.weight")
            for path, module in modules
            if type(module).__name__ == "Conv1D"
        }
        self._owners = {id(p): base_name(n) for n, p in named}
        self._adapted = list(adapted_modules(modules)) if config else []
        self._own = list(base_parameters(self._root, named, modules).items())
        self._trained: dict[str, Tensor] = {}
        self._unrecorded: dict[str, Tensor] = {}
        self._heads_without_start: set[str] = set()
        self._directs: int | None = None  # how many were checked; None before the first time
        self._warned_of_precision = False
        self._parts: list[Part] | None = None
        self._collected: list[Collected] | None = None
        self.method, self.rank = method_and_rank(self._adapted, config)
        kinds = sorted({entry.path.rsplit(".", maxsplit=1)[-1] for entry in self._adapted})
        self.target_modules = tuple(kinds) or None
        self._start = LiveStart(
            folder,
            config,
            self._adapted,
            in_memory=keep_base == "memory" or folder is None,
            sharded=self.sharded,
        )
        if initial is None:
            self._start.record(self._direct())
        else:
            self._start.restore(initial)
        self._warnings = self._check_direct(self._direct())
        self._frozen = FrozenWeights(
            self._own,
            self._direct,
            None if self._start.moves_base else folder,
            []
            if self.sharded
            else [getattr(e.module, "base_layer", e.module) for e in self._adapted],
            None if self.sharded else hashes,
        )
        self._note_frozen()
        outside = trained_outside(model, self._owners)
        if outside:
            self._warnings.append(
                f"{len(outside)} trained parameters are outside of the language model and not in "
                f"the change ({shown(outside[0])}): a head of the trainer's own"
            )
        self.base_digest, unknown = self._start.base_digest(self._root, base, hashes)
        self._warnings += unknown

    def initial_state(self) -> dict[str, Tensor]:
        """What was recorded of the start: empty where the base alone tells it.

        Save it with the run (it is small, unless a full fine-tune keeps θ_0 in memory) and give it
        back as `initial` on resume; for adapters it is also what `read_adapter` takes as initial.
        """
        return dict(self._start.recorded)

    @property
    def starts_elsewhere(self) -> bool:
        """Whether adapters began away from the base, so that only a record tells where."""
        return any(is_state_key(name) for name in self._start.recorded)

    def require(self, model: nn.Module) -> None:
        """See that a model, in whatever wrapper, is the one that this reads.

        Raises:
            UnmeasurableModelError: it is another one.
        """
        if self._seen is None or self._seen() is not model:
            if unwrapped_model(model)[0] is not self._root:
                raise UnmeasurableModelError(
                    "this is another model than the one that `start` was given, and that one would "
                    "be read: call `start(model)` for this one"
                )
            self._seen = weakref.ref(model)

    @property
    def starts_at_hand(self) -> bool:
        """Whether only the weights as they were when this was made tell where training started."""
        return any(not self._start.is_new_head(name) for name in self._start.recorded)

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
        if self._start.in_memory:
            known = set(self._trained)
            later = {n: p for n, p in self._direct().items() if n not in known}
            self._start.keep(later)

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
            self._parts = [part for entry in self._counted() for part in self._parts_of(entry)]
        direct = {**self._frozen.unlike, **self._checked_direct()}
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
                    parts = self._parts_of(entry)
                self._collected += [(part, collect) for part in parts]
        collected = self._collected + [
            self._shared_direct(n, p)
            for n, p in {**self._frozen.unlike, **self._checked_direct()}.items()
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

    def _parts_of(self, entry: Adapted) -> list[Part]:
        return parts_of(entry, self._start.recorded, self._owners, self._start.by_base)

    def _direct_part(self, name: str, parameter: Tensor, current: Callable[[], Tensor]) -> Part:
        in_files, conv1d = name in self._frozen.unlike, name in self._conv1d
        return self._start.change(name, parameter, current, in_files=in_files, conv1d=conv1d)

    def _look_at_adapters(self) -> None:
        """Notice adapters that were switched since, and refuse merged ones."""
        if any(a.adapters != tuple(a.module.active_adapters) for a in self._adapted):
            self._adapted = list(adapted_modules(self._root.named_modules()))
            self._parts = self._collected = None
        for entry in self._adapted:
            if getattr(entry.module, "merged_adapters", None):
                raise merged_error(entry.path)
        if self._frozen.look():
            self._note_frozen()

    def _note_frozen(self) -> None:
        """Say what is known of frozen weights that are not the base's."""
        self._warnings += [note for note in self._frozen.notes if note not in self._warnings]
        if self._frozen.unlike and self._adapted and not self.method.endswith(_MERGED):
            self.method += _MERGED

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
            unmeasurable=self._frozen.unmeasurable,
        )

    def _direct(self) -> dict[str, Tensor]:
        """Parameters that are trained themselves, or ever were, by name; tied ones once."""
        for name, parameter in self._own:
            if parameter.requires_grad:
                self._trained[name] = parameter
        return self._trained

    def _check_direct(self, direct: Mapping[str, Tensor]) -> list[str]:
        warnings: list[str] = []
        for name, parameter in direct.items():
            if self.sharded and self._start.in_memory and not owns(name):
                continue
            shape = self._start.shape(name)
            if shape is not None:
                warnings += compare_shapes(name, shape, full_shape(parameter), "the live model")
            elif self._start.is_new_head(name):
                warnings.append(new_head_note([name], "the live model"))
                self._heads_without_start.add(name)
            else:
                warnings += self._left_out(name, parameter)
        low = [
            p.dtype
            for p in self._parameters
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


def _name_of(root: nn.Module) -> str | None:
    name = getattr(root, "name_or_path", None)
    return name if isinstance(name, str) and name else None
