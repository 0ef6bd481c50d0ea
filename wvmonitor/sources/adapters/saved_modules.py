"""What adapters store whole: `modules_to_save`, biases, embeddings and retrained token rows.

These are weights, not changes: their update is the difference from the base.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wvmonitor.errors import AdapterError, KeyMismatchError, UnsupportedAdapterError
from wvmonitor.files.storage import shown
from wvmonitor.sources.adapters.folder import AdapterFolder, InitialState
from wvmonitor.sources.folder import ModelFolder, compare_shapes
from wvmonitor.sources.names import is_task_head, is_transposed, new_head_note, parameter_name
from wvmonitor.vectors import DenseUpdate, LowRankUpdate, Update
from wvmonitor.vectors import update as updates
from wvmonitor.vectors.task_vector import Part

# A head that a language model itself has: without its base, nothing says how it changed.
_LOGITS = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.")
TOKENS = ".token_adapter.trainable_tokens_delta"


def whole_parts(
    folder: AdapterFolder, keys: Iterable[str], initial: InitialState | None
) -> Iterator[Part]:
    """The parts of everything that is stored whole, each parameter once.

    Raises:
        AdapterError, KeyMismatchError, ShapeMismatchError: as `saved_part` and `tokens_part` say.
    """
    own = [key for key in keys if not wrapper_copy(folder, key)]
    by_name = {parameter_name(key): key for key in own}
    for key in own:
        if tied_copy(folder, key, by_name):
            continue
        part = (tokens_part if key.endswith(TOKENS) else saved_part)(folder, key, initial)
        if part is not None:
            yield part


def saved_part(folder: AdapterFolder, key: str, initial: InitialState | None) -> Part | None:
    """The part of a tensor that is stored whole.

    The key is without PEFT's prefix; the adapter's state at step 0 comes before the base if it
    holds the key.

    Returns:
        None for what is below a LoRA layer (`….base_layer.weight`) where it is as it was at the
        start, or no base is at hand: PEFT stores it with adapted embeddings, and does not train it
        (but for biases, where the configuration trains them).

    Raises:
        AdapterError: the base is needed.
        KeyMismatchError: neither the base nor the initial state holds the parameter.
        ShapeMismatchError: the base's shape differs, and not by a resized vocabulary.
    """
    name = parameter_name(key).replace(".token_adapter.", ".")
    full = f"{shown(name)} of {folder.where}"
    below = ".base_layer." in key
    untrained = key.endswith(".weight") or folder.config.get("bias") in (None, "none")
    if below and folder.base is None and untrained:
        folder.warnings.append(f"{full} is stored with the adapter and was taken to be the base's")
        return None
    # a start recorded live has the parameter's own name
    at_start = next((k for k in (key, name) if initial is not None and k in initial), None)
    if initial is not None and at_start is not None:
        shape: tuple[int, ...] = tuple(initial.read(at_start).shape)
        source = None
        if below and _unchanged(folder, key, initial.read(at_start)):
            return None
    else:
        in_base = folder.base is not None and folder.base.stored(name) is not None
        if is_task_head(name) and not in_base and not _LOGITS.search(name):
            folder.warnings.append(new_head_note([name], folder.where))
            return None
        source = folder.needed_base(f"it stores {shown(name)} whole, not as a change")
        stored = source.stored(name)
        if stored is None:
            raise KeyMismatchError(
                f"{full} is not in the base {source.where}, so where it started is not known: "
                "give the adapter's state at step 0 as initial"
            )
        shape = source.shape(stored)
        if below:
            if _unchanged(folder, key, source.read(stored)):
                return None
            name = stored  # an adapted head that is tied is the embedding
    if ".token_adapter." in key:
        raise AdapterError(
            f"{full} is trained as a whole and by trainable_token_indices at once, of which PEFT "
            "saves only a part: train it one way or the other"
        )
    folder.warnings += compare_shapes(name, shape, folder.shape(key), folder.where)
    conv1d = source is not None and source.is_conv1d(name)
    transposed = is_transposed(name, shape, conv1d=conv1d)

    def produce() -> Update:
        if initial is not None and at_start is not None:
            before = initial.read(at_start)
        else:
            before = _base_tensor(source, name)
        return DenseUpdate(difference(folder.read(key), before), transposed)

    return Part(name, shape, produce)


def tokens_part(folder: AdapterFolder, key: str, initial: InitialState | None) -> Part:
    """The part of `trainable_token_indices`: rows of an embedding, stored as they are now.

    Raises:
        AdapterError: the indices are missing or do not fit the rows, or the base is needed.
    """
    module = key.removesuffix(TOKENS)
    name = parameter_name(f"{module}.weight")
    base = folder.needed_base(f"it stores rows of {shown(name)}, not their changes")
    stored = base.stored(name)
    if stored is None:
        raise KeyMismatchError(
            f"{shown(name)} of {folder.where} is not in the base {base.where}: check that this is "
            "the model that training started from"
        )
    shape = base.shape(stored)
    indices = _indices(folder, module)
    rows = folder.shape(key)
    if len(shape) != 2 or rows != (len(indices), shape[1]):
        raise AdapterError(
            f"{shown(key)} of {folder.where} has shape {rows} for {len(indices)} token indices "
            f"and an embedding of shape {shape}: re-save the adapter"
        )
    inside = [i for i, index in enumerate(indices) if index < shape[0]]
    if len(inside) < len(indices):
        folder.warnings.append(
            f"{len(indices) - len(inside)} retrained tokens of {name} are beyond the base's "
            f"{shape[0]}: compared on the tokens they share"
        )

    def produce() -> Update:
        now = folder.read(key)[inside].to(torch.float32)
        if initial is not None and key in initial:
            before = initial.read(key)[inside].to(torch.float32)
        else:
            read = [base.row(stored, indices[i]) for i in inside]
            before = torch.stack(read).to(torch.float32) if read else torch.zeros_like(now)
        return rows_update(now - before, [indices[i] for i in inside], shape, name)

    return Part(name, shape, produce)


def rows_update(
    change: Tensor, indices: Sequence[int], shape: Sequence[int], name: str
) -> LowRankUpdate:
    """The update that changes some rows of a 2-D parameter: a selection times the change.

    `change` is (rows changed, columns), `indices` says which rows they are, and `shape` is the
    parameter's.
    """
    selection = torch.zeros(shape[0], len(indices), dtype=change.dtype, device=change.device)
    selection[list(indices), range(len(indices))] = 1
    return LowRankUpdate(selection, change, is_transposed(name, shape, conv1d=False))


def _indices(folder: AdapterFolder, module: str) -> list[int]:
    indices: Any = folder.config.get("trainable_token_indices")
    if isinstance(indices, dict):
        matching = [v for k, v in indices.items() if module == k or module.endswith(f".{k}")]
        indices = matching[0] if len(matching) == 1 else None
    usable = isinstance(indices, list) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices
    )
    if not usable or len(set(indices)) != len(indices):
        raise AdapterError(
            f"trainable_token_indices must list the distinct rows of {shown(module)} "
            f"({folder.config_where}): re-save the adapter"
        )
    return list(indices)


def _base_tensor(base: ModelFolder | None, name: str) -> Tensor:
    assert base is not None  # noqa: S101  the part was made from the initial state otherwise
    return base.read(base.stored(name) or name)


def _unchanged(folder: AdapterFolder, key: str, before: Tensor) -> bool:
    return folder.shape(key) == tuple(before.shape) and _equal(folder.read(key), before)


def _equal(now: Tensor, before: Tensor) -> bool:
    return bool(now.to(torch.float64).equal(before.to(torch.float64)))


def tied_copy(folder: AdapterFolder, key: str, saved: Mapping[str, str]) -> bool:
    """Whether a tensor stored whole is the head, saved a second time with its embedding.

    The key is that of a weight or of retrained rows, without PEFT's prefix; `saved` holds name ->
    key of everything stored whole.
    """
    if folder.base is None:
        return False
    if key.endswith(TOKENS):
        owner = folder.base.shared_with(f"{key.removesuffix(TOKENS)}.weight")
        owner = owner and owner.removesuffix(".weight") + TOKENS
    else:
        owner = folder.base.shared_with(parameter_name(key))
    if owner is None or owner not in saved or folder.shape(key) != folder.shape(saved[owner]):
        return False
    return _equal(folder.read(key), folder.read(saved[owner]))


def wrapper_copy(folder: AdapterFolder, key: str) -> bool:
    """Whether a tensor is stored under its own name too: `bias="all"` adds what wrappers hold."""
    plain = key.replace(".original_module.", ".").replace(".modules_to_save.", ".")
    return plain != key and folder.has(plain)


def difference(now: Tensor, before: Tensor) -> Tensor:
    """`now` − `before` on the rows that both have, in float32, or in float64 where either is."""
    dtype = torch.float64 if torch.float64 in (now.dtype, before.dtype) else torch.float32
    before = before.to(device=now.device, dtype=dtype)
    if now.shape == before.shape:
        return now.to(dtype) - before
    common = min(now.shape[0], before.shape[0])
    delta = torch.zeros_like(before)
    torch.sub(now[:common].to(dtype), before[:common], out=delta[:common])
    return delta


def stored_once(parts: Sequence[Part], stored: Container[str]) -> list[Part]:
    """The parts, of parameters that are stored whole only the last one, which says so.

    Producing it raises where the part before it, the adapter's own, changes the parameter too: the
    two changes do not add up.

    `parts` are the adapter's, then those of what is stored whole, whose names `stored` holds.
    """
    first = {part.name: part for part in reversed(parts)}
    last = {part.name: part for part in parts}

    def produce(name: str) -> Update:
        if first[name] is not last[name]:
            adapted = first[name].produce()
            if float(updates.inner(adapted, adapted)) > 0:
                raise UnsupportedAdapterError(
                    f"{shown(name)} is changed by the adapter and trained as a whole as well, so "
                    "that its change cannot be told: train it one way or the other"
                )
        return last[name].produce()

    alone = [Part(n, last[n].shape, partial(produce, n)) for n in last if n in stored]
    return [part for part in parts if part.name not in stored] + alone
