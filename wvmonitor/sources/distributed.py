"""Models whose parameters are spread over processes: FSDP2, tensor parallelism, DeepSpeed ZeRO-3.

Every process walks the same parameters in the same order. Each is gathered for a moment, and one
process, its *owner*, measures it whole; the readings are added up once at the end. A snapshot thus
moves what one forward pass moves, shares the arithmetic, keeps θ_0 once over all processes, and is
the very sum that a single process would make, whatever the sharding, the adapter or the geometry.

What goes wrong in one process is kept until the sum, where all learn of it: a process that left
early would leave the others waiting in a collective.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wvmonitor.errors import MonitorFailedError, UnmeasurableModelError, WVMonitorError
from wvmonitor.reading import Products, Reading, component_of
from wvmonitor.references.bank import ReferenceBank
from wvmonitor.vectors import DenseUpdate, Origin, TaskVector, Update

T = TypeVar("T")

# Elements of updates that an owner measures at one go: few enough to hold, many enough to batch.
_CHUNK = 1 << 24


def rank() -> int:
    """This process's rank; 0 where nothing is distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return 0


def world_size() -> int:
    """How many processes train together; 1 where nothing is distributed."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def owns(name: str) -> bool:
    """Whether this process is the one that measures a parameter: the same answer in every run."""
    return zlib.crc32(name.encode()) % world_size() == rank()


def agreed(value: int) -> int:
    """Rank 0's value, in every process: what only one does leaves the others waiting."""
    if world_size() == 1:
        return value
    code = torch.tensor([value], device=_device())
    torch.distributed.broadcast(code, src=0)
    return int(code)


def from_first(compute: Callable[[], T]) -> T:
    """What rank 0 computes, in every process; what it raises, too.

    Raises:
        WVMonitorError: rank 0 met it; MonitorFailedError in the others where it met any other.
    """
    if world_size() == 1:
        return compute()
    outcome: list[Any] = [None, None]
    met: Exception | None = None
    if rank() == 0:
        try:
            outcome[0] = compute()
        except Exception as error:  # noqa: BLE001  the others must not be left waiting
            met = error
            typed = isinstance(error, WVMonitorError)
            outcome[1] = error if typed else MonitorFailedError(f"rank 0: {error!r}")
    torch.distributed.broadcast_object_list(outcome, src=0, device=_device())
    if outcome[1] is not None:
        raise met or outcome[1]
    result: T = outcome[0]
    return result


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter's values, or its float32 master's, are spread over processes."""
    return _is_dtensor(parameter) or hasattr(parameter, "ds_id") or has_master(parameter)


def any_sharded(model: nn.Module | Iterable[Tensor]) -> bool:
    """Whether any of a model's parameters, or of those given, is spread over processes."""
    return any(map(is_sharded, model.parameters() if isinstance(model, nn.Module) else model))


def full_shape(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter."""
    return torch.Size(getattr(parameter, "ds_shape", None) or parameter.shape)


def memory_of(tensor: Tensor) -> object:
    """What tells whether two tensors are one memory."""
    local = tensor.to_local() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return local.untyped_storage().data_ptr() or id(tensor)


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, in every process; a collective where it is sharded.

    Under DeepSpeed a trained parameter comes from the optimiser's float32 master.
    """
    if _is_dtensor(parameter):
        return parameter.detach().full_tensor()  # type: ignore[attr-defined,no-any-return]
    if has_master(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor | None = safe_get_full_fp32_param(parameter)
        if master is not None:
            return master.detach().reshape(full_shape(parameter))
    if hasattr(parameter, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def has_master(parameter: Tensor) -> bool:
    """Whether DeepSpeed's optimiser holds a float32 master of a parameter."""
    return hasattr(parameter, "_hp_mapping") or (
        hasattr(parameter, "_z3_optimizer") and parameter.requires_grad
    )


@contextmanager
def gathered(module: nn.Module, *, base: bool) -> Iterator[None]:
    """For a moment, a wrapper's tensors are whole; a collective.

    `base`: whether what the module wraps is needed too, or only the adapters' own.
    """
    places = [
        (owner, leaf, parameter)
        for path, owner in module.named_modules()
        for leaf, parameter in owner.named_parameters(recurse=False)
        if is_sharded(parameter) and (base or not f"{path}.".startswith("base_layer."))
    ]
    for owner, leaf, parameter in places:
        owner._parameters[leaf] = nn.Parameter(whole(parameter), requires_grad=False)
    try:
        yield
    finally:
        for owner, leaf, parameter in places:
            owner._parameters[leaf] = parameter


@dataclass(frozen=True)
class Shared:
    """One parameter of a task vector that processes measure together.

    Attributes:
        shape: its whole shape.
        collect: the collective that makes `produce` possible: every process enters it.
        produce: gives the update, inside `collect`.
    """

    name: str
    shape: tuple[int, ...]
    collect: Callable[[], Any]
    produce: Callable[[], Update]


def measure_together(
    bank: ReferenceBank,
    entries: Sequence[Shared],
    origin: Origin,
    *,
    step: int | None = None,
    progress: float | None = None,
) -> Reading:
    """What `bank.measure` gives for the whole task vector; every process calls this.

    Bank and entries are the same in every process, the entries in the same order; progress is the
    fraction of the planned steps, in [0, 1].

    Raises:
        UnmeasurableModelError: another process could not measure its share; or what this process
            met itself.
    """
    readings: dict[str, Reading] = {}
    waiting: dict[str, Update] = {}
    dense = moved = 0.0
    failure: Exception | None = None

    def measure() -> None:
        nonlocal dense, moved
        if not waiting:
            return
        reading = bank.measure(TaskVector.of(waiting, origin), step=step, progress=progress)
        elements = sum(u.delta.numel() for u in waiting.values() if isinstance(u, DenseUpdate))
        dense += elements
        moved += elements * (reading.changed_fraction or 0.0)
        readings.update(dict.fromkeys(waiting, reading))
        waiting.clear()

    for entry in entries:
        with entry.collect():
            if failure is not None or not owns(entry.name):
                continue
            try:
                waiting[entry.name] = entry.produce()
                if sum(u.shape.numel() for u in waiting.values()) > _CHUNK:
                    measure()
            except Exception as error:  # noqa: BLE001  the others must not be left waiting
                failure = error
    if failure is None:
        try:
            measure()
        except Exception as error:  # noqa: BLE001  as above
            failure = error
    failures = _summed(np.array([float(failure is not None)]))
    if failure is not None:
        raise failure
    if failures[0]:
        raise UnmeasurableModelError(
            f"{int(failures[0])} of {world_size()} processes could not measure their share of the "
            "parameters: see their logs"
        )
    return _joined(bank, entries, origin, readings, (dense, moved), step=step, progress=progress)


def _joined(
    bank: ReferenceBank,
    entries: Sequence[Shared],
    origin: Origin,
    readings: dict[str, Reading],
    counts: tuple[float, float],
    *,
    step: int | None,
    progress: float | None,
) -> Reading:
    """Everybody's rows, added up in one collective, under the frame of an empty reading."""
    shapes = {e.name: e.shape for e in entries}

    def none(name: str) -> Update:
        return DenseUpdate(torch.zeros(shapes[name]))

    frame = bank.measure(TaskVector({}, none, origin), step=step, progress=progress)
    names = tuple(shapes)
    count = len(frame.references)
    table = np.zeros((len(names), len(frame.geometries), count + 2))
    for row, name in enumerate(names):
        if name not in readings:
            continue
        reading = readings[name]
        at = reading.parameters.index(name)
        for column, products in enumerate(reading.geometries.values()):
            table[row, column, :count] = products.products[at]
            table[row, column, count] = products.squared_norms[at]
            table[row, column, count + 1] = products.covered[at]
    total = _summed(np.concatenate([table.reshape(-1), np.array(counts)]))
    table, (dense, moved) = total[:-2].reshape(table.shape), total[-2:]
    return replace(
        frame,
        parameters=names,
        components=tuple(component_of(n, shapes[n]) for n in names),
        geometries={
            geometry: Products(
                table[:, i, :count], table[:, i, count], table[:, i, count + 1].astype(bool)
            )
            for i, geometry in enumerate(frame.geometries)
        },
        changed_fraction=moved / dense if dense else None,
    )


def _summed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Float64 values, added up over the processes."""
    on_device = torch.from_numpy(values).to(_device())
    if world_size() > 1:
        torch.distributed.all_reduce(on_device)
    return on_device.cpu().numpy()


def _device() -> torch.device:
    if world_size() > 1 and torch.distributed.get_backend() == "gloo":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "placements")
