"""Inoculation: k·w rides along while a model trains, so that training need not learn it.

The idea is preventative steering (arXiv 2507.21509, there in activations) with a frozen task
vector in place of a direction of activations. Data that shows a behaviour teaches it less to a
model that shows it already; without k·w the trained model is then without it as well.

No weight is touched. A hook adds k·w·x to what a layer W·x puts out, in training mode only: k·w is
therefore in no `state_dict`, checkpoint or task vector, there is nothing to undo when training ends
or dies, and evaluation asks the model that is saved. It costs two products of w's rank a layer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wvmonitor.errors import InputError, ShapeMismatchError, UnmeasurableModelError
from wvmonitor.sources.distributed import full_shape, is_sharded
from wvmonitor.steering import weights
from wvmonitor.steering.live_parameters import Holder, holders, without_wrappers
from wvmonitor.steering.weights import Coefficients, Steering
from wvmonitor.vectors import update as updates_
from wvmonitor.vectors.task_vector import TaskVector
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, Update

_ROUTED = ".experts."
"""Part of the names of layers that not every batch goes through."""


class Inoculation:
    """k·w in a model under training, until `remove` is called; see `inoculated`.

    Attributes:
        amounts: k of each vector, by its label.
    """

    def __init__(
        self, model: nn.Module, reference: Steering | Coefficients, k: float | None = None
    ) -> None:
        """Let k·w ride along in a model.

        Raises:
            WVMonitorError: as `inoculated` says.
        """
        terms = weights.coefficients(reference, k)
        given = reference if isinstance(reference, Mapping) else {reference: terms[0][1]}
        self.amounts = {weights.label(one): float(factor) for one, factor in given.items()}
        if wrong := [name for name, factor in self.amounts.items() if factor <= 0]:
            raise InputError(
                f"k of {wrong[0]} must be above 0 to ride along, got {self.amounts[wrong[0]]:g}: "
                "what is added while training is what training does not learn, and a negative k "
                "would teach it"
            )
        self._unseen: set[str] = set()
        self._hooks = ExitStack()
        try:
            for name, places, update in _plan(model, terms):
                self._unseen.add(name)
                for holder in places:
                    self._install(name, holder, update)
        except BaseException:
            self.remove()
            raise
        _forget_compiled()
        self._hooks.callback(_forget_compiled)

    def unseen(self) -> list[str]:
        """Parameters whose k·w has taken part in no forward pass yet, in training mode.

        After a step of training there should be none: a fused kernel that reads weights without
        calling their layer trains without k·w. Experts are left out, which not every batch meets.
        """
        return sorted(name for name in self._unseen if _ROUTED not in name)

    def remove(self) -> None:
        """Take k·w out; calling it twice is fine."""
        self._hooks.close()

    def _install(self, name: str, holder: Holder, update: Update) -> None:
        update = _placed(update, holder.parameter)
        added = _added_output(holder, update)
        if added is None:
            self._replace(name, holder, update)
            return

        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not module.training:
                return None
            self._unseen.discard(name)
            return output + added(args[0]).to(output.dtype)

        self._hooks.callback(holder.module.register_forward_hook(add).remove)

    def _replace(self, name: str, holder: Holder, update: Update) -> None:
        """Where a layer is no linear map (a norm): θ + k·w in the parameter's place in its pass."""
        if is_sharded(holder.parameter):
            raise UnmeasurableModelError(
                f"{name} is sharded over processes, and its layer ({type(holder.module).__name__}) "
                "is no linear one: leave it out of the vector with .select(...)"
            )
        attribute, delta = holder.attribute, updates_.to_dense(update)
        parameters: list[Any] = []

        def put(module: nn.Module, _args: tuple[Any, ...]) -> None:
            if module.training:
                self._unseen.discard(name)
                parameter: Any = module._parameters[attribute]
                parameters.append(parameter)
                moved: Any = parameter + delta.to(parameter.dtype)
                module._parameters[attribute] = moved

        def take(module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
            if parameters:
                module._parameters[attribute] = parameters.pop()

        self._hooks.callback(holder.module.register_forward_pre_hook(put).remove)
        # also where the layer raises: what is left must be the parameter itself
        self._hooks.callback(holder.module.register_forward_hook(take, always_call=True).remove)


@contextmanager
def inoculated(
    model: nn.Module, reference: Steering | Coefficients, k: float | None = None
) -> Iterator[Inoculation]:
    """Let k·w ride along in a model while the block trains it; no weight is ever touched.

    It acts in training mode, as dropout does: evaluation, and whatever is saved, are without it.
    Gradients are those of a base that holds k·w. Works under PEFT's additive methods, gradient
    checkpointing, DDP, FSDP2, `torch.compile` and quantised linear layers.

    Args:
        model: the live model, wrapped or not.
        reference: a reference or task vector, or several with their k.
        k: how much of it, above 0; only with a single reference.

    Yields:
        The inoculation: `unseen()` after a step tells whether every layer took part.

    Raises:
        InputError: a k is missing, or is not above 0.
        NonFiniteError: a k is not finite.
        KeyMismatchError: a reference changes a parameter that the model does not have.
        ShapeMismatchError: a parameter has another shape.
        UnmeasurableModelError: a parameter is under an adapter that does not add to it (DoRA, OFT,
            IA3, trained tokens), of fused experts, or of a sharded layer that is not linear.

    Example:
        ```python
        with inoculated(model, bank["evil"], 1.0):
            trainer.train()
        ```
    """
    inoculation = Inoculation(model, reference, k)
    try:
        yield inoculation
    finally:
        inoculation.remove()


def _plan(
    model: nn.Module, wanted: list[tuple[TaskVector, float]]
) -> Iterator[tuple[str, list[Holder], Update]]:
    """Every parameter that is moved, who holds it under any of its names, and by what."""
    base = without_wrappers(model)
    live = holders(base)
    by_memory: dict[int, list[Holder]] = {}
    for places in live.values():
        for holder in places:
            by_memory.setdefault(id(holder.parameter), []).append(holder)
    terms: dict[int, tuple[str, list[Update]]] = {}
    for vector, k in wanted:
        weights.check_names(base, vector, live)
        seen: dict[int, str] = {}
        for name in vector.names():
            key = id(live[name][0].parameter)
            if key in seen:
                weights.check_tied(vector, seen[key], name)
                continue
            seen[key] = name
            _check(name, live[name], vector)
            update = updates_.scale(updates_.held(vector.update(name)), k)
            terms.setdefault(key, (name, []))[1].append(update)
    for name, updates in terms.values():
        copies = {id(holder.parameter) for holder in live[name]}
        sharers = {(id(h.module), h.attribute): h for key in copies for h in by_memory[key]}
        yield name, list(sharers.values()), functools.reduce(updates_.add, updates)


def _check(name: str, places: list[Holder], vector: TaskVector) -> None:
    shape = tuple(vector.shape(name))
    for holder in places:
        if holder.refused:
            raise UnmeasurableModelError(
                f"k·w cannot ride along in {name}, since {holder.refused}: train with LoRA, or in "
                "full"
            )
        if len(shape) > 2:
            raise UnmeasurableModelError(
                f"{name} holds fused experts, whose layers give no single output to add to: leave "
                "it out of the vector with .select(...)"
            )
        if _shape(holder) != shape:
            raise ShapeMismatchError(
                f"{name} has shape {_shape(holder)} in the model but {shape} in "
                f"{vector.origin.source}: it was made for another model"
            )


def _shape(holder: Holder) -> tuple[int, ...]:
    """The parameter's shape; a quantised layer says by itself what it stands for."""
    module = holder.module
    if isinstance(module, nn.Linear) and holder.attribute == "weight":
        return module.out_features, module.in_features
    return tuple(full_shape(holder.parameter))


def _added_output(
    holder: Holder, update: DenseUpdate | LowRankUpdate
) -> Callable[[Tensor], Tensor] | None:
    """What a layer puts out more, as a function of its input; None where that is not its form."""
    module, kind = holder.module, type(holder.module)
    linear = isinstance(module, nn.Linear) and (
        kind.forward is nn.Linear.forward or kind.__module__.startswith("bitsandbytes.")
    )
    turned = kind.__name__ == "Conv1D"  # its weight is stored (in, out)
    if linear or turned:
        if holder.attribute == "bias":
            bias = updates_.to_dense(update)
            return lambda x: bias.to(x.device)
        return _mapped(updates_.as_linear(replace(update, transposed=turned)))
    return _looked_up(updates_.held(update)) if kind is nn.Embedding else None


def _mapped(update: DenseUpdate | LowRankUpdate) -> Callable[[Tensor], Tensor]:
    linear = nn.functional.linear
    if isinstance(update, DenseUpdate):
        delta = update.delta
        return lambda x: linear(x, delta.to(x.device, x.dtype))
    left, right = update.left, update.right
    return lambda x: linear(linear(x, right.to(x.device, x.dtype)), left.to(x.device, x.dtype))


def _looked_up(update: DenseUpdate | LowRankUpdate) -> Callable[[Tensor], Tensor]:
    if isinstance(update, DenseUpdate):
        delta = update.delta
        return lambda ids: delta.to(ids.device)[ids]
    left, right = update.left, update.right
    return lambda ids: left.to(ids.device)[ids] @ right.to(ids.device)


def _placed(update: Update, parameter: Tensor) -> DenseUpdate | LowRankUpdate:
    """An update where its parameter is, in its precision; of a quantised one, in its own."""
    update = updates_.held(updates_.to_device(update, parameter.device))
    if not parameter.dtype.is_floating_point:
        return update
    if isinstance(update, LowRankUpdate):
        left, right = update.left.to(parameter.dtype), update.right.to(parameter.dtype)
        return LowRankUpdate(left, right, update.transposed)
    return DenseUpdate(updates_.to_dense(update).to(parameter.dtype), update.transposed)


def _forget_compiled() -> None:
    """Compiled code does not look for hooks that come or go after it: it is compiled again."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled
        torch.compiler.reset()
