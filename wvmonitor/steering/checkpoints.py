"""θ + k·w on disk: an edited copy of a model folder, written one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from wvmonitor.errors import (
    InputError,
    KeyMismatchError,
    QuantizedWeightsError,
    ShapeMismatchError,
    UnmeasurableModelError,
)
from wvmonitor.files.atomic import replacing, write_all, write_text
from wvmonitor.files.documents import read_json, write_json
from wvmonitor.files.safetensors import PlannedTensor, SafetensorsFile, write_safetensors
from wvmonitor.files.storage import open_storage, read_bytes
from wvmonitor.sources.folder import ModelFolder, opened
from wvmonitor.steering import weights
from wvmonitor.steering.folders import SteeredFolder, Tally, model_card, publishing
from wvmonitor.steering.weights import Coefficients
from wvmonitor.vectors import functional
from wvmonitor.vectors.task_vector import TaskVector

# Of what lies beside the weights, texts and configuration are copied; states of a trainer, other
# copies of the weights, and adapters (which transformers would load on top) are not.
_COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".md", ""})
_LEFT_OUT = ("trainer_state", "training_args", "adapter_", "README", "wvmonitor")
_CONFIG = "config.json"
_README = "README.md"
_TEMPLATES = "additional_chat_templates"
"""A model's further chat templates, as transformers 5 saves them."""


def steer_checkpoint(
    model_dir: str | Path,
    references: Coefficients,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    most_lost: float = math.inf,
) -> SteeredFolder:
    """Write a copy of a model folder whose weights are θ + Σ k·w.

    Shard by shard and tensor by tensor, so that memory is bounded by the largest tensor; sums in
    float32, rounded to the dtype each tensor has. Configuration and tokenizer come along, and a
    README.md says what was done. The folder appears under its name only when it is complete.

    Args:
        model_dir: the model to edit: the references' base, or a fine-tune of it.
        references: how much of each to add; negative takes it out.
        out: a folder that does not exist yet, or is empty; not inside `model_dir`.
        dtype: what tensors in bfloat16 and float16 are written in; None keeps each one's own.
        most_lost: the largest share of ‖k·w‖ that may be rounded away.

    Raises:
        LossyEditError: more would be; nothing is written then.
        InputError: `out` is taken, or lies inside `model_dir`.
        KeyMismatchError: a reference changes a parameter that the model does not have.
        ShapeMismatchError: a parameter has another shape.
        NonFiniteError: k, or a sum, is not finite.
        QuantizedWeightsError: the model is quantised.
        UnmeasurableModelError: the files hold a parameter in parts (fused experts).
    """
    terms = weights.coefficients(references)
    source, target = Path(model_dir), Path(out)
    if source.is_file():
        raise InputError(f"{source} is a file: give the model's folder, with its config.json")
    tally = Tally(most=most_lost, form="float32" if dtype == torch.float32 else "model")
    with opened(source) as folder:
        moves, repeats = _stored_moves(folder, terms)
        with publishing(target, source) as work:
            for file in folder.files.files:
                if file.endswith(".safetensors"):
                    _write_shard(
                        folder,
                        file,
                        moves,
                        work,
                        lambda n: Tally() if n in repeats else tally,
                        dtype,
                    )
                elif dtype is None:
                    _copy(source, file, work)
                else:
                    _copy_index(source, file, work, folder, dtype)
            tally.check()
            _copy_companions(source, work, {*folder.files.files, _CONFIG})
            done = tally.folder(target, tuple(n for n in moves if n not in repeats))
            write_text(work / _README, model_card(source, references, done))
            # Last: without its configuration, a folder that was cut short does not load.
            if (source / _CONFIG).exists():
                _copy(source, _CONFIG, work)
                if dtype is not None:
                    _say_dtype(work / _CONFIG, dtype)
    return done


def _stored_moves(
    folder: ModelFolder, terms: list[tuple[TaskVector, float]]
) -> tuple[dict[str, list[tuple[TaskVector, str, float]]], set[str]]:
    """What to add to each tensor of the files, by the files' names; which are second copies."""
    twins = _tied_copies(folder)
    moves: dict[str, list[tuple[TaskVector, str, float]]] = {}
    repeats: set[str] = set()
    for vector, k in terms:
        seen: dict[str, str] = {}
        for name in vector.names():
            live = folder.stored(name)
            if live is None:
                raise KeyMismatchError(
                    f"{vector.origin.source} changes {name}, which {folder.where} does not have: "
                    "it was made for another architecture"
                )
            copies = twins.get(live, (live,))
            if copies[0] in seen:
                weights.check_tied(vector, seen[copies[0]], name)
                continue
            seen[copies[0]] = name
            for copy in copies:
                key = _checked_key(folder, copy, vector.shape(name), vector.origin.source)
                moves.setdefault(key, []).append((vector, name, k))
                if copy != copies[0]:
                    repeats.add(key)
    return moves, repeats


def _tied_copies(folder: ModelFolder) -> dict[str, tuple[str, ...]]:
    """The names under which some writers store one tied tensor twice, each with all of them."""
    groups: dict[str, tuple[str, ...]] = {}
    for name in folder.names():
        owner = folder.shared_with(name)
        if owner is not None:
            groups[owner] = (*groups.get(owner, (owner,)), name)
    return {name: group for group in groups.values() for name in group}


def _checked_key(folder: ModelFolder, name: str, shape: torch.Size, source: str) -> str:
    """What the files call a parameter that can be moved as it is stored."""
    if folder.shape(name) != tuple(shape):
        raise ShapeMismatchError(
            f"{name} has shape {folder.shape(name)} in {folder.where} but {tuple(shape)} in "
            f"{source}: it was made for another model"
        )
    if folder.dtype(name) not in weights.FLOATS:
        raise QuantizedWeightsError(
            f"{name} of {folder.where} is {folder.dtype(name)}: steering needs the unquantised "
            "weights"
        )
    key = folder.key(name)
    if key is None:
        raise UnmeasurableModelError(
            f"the files of {folder.where} hold {name} in another form than the live model: load "
            "it with transformers, use `steered`, and save it with save_pretrained"
        )
    return key


def _write_shard(
    folder: ModelFolder,
    file: str,
    moves: Mapping[str, weights.Terms],
    work: Path,
    tally: Callable[[str], Tally],
    dtype: torch.dtype | None,
) -> None:
    def maker(key: str) -> Callable[[], Tensor]:
        def make() -> Tensor:
            theta = folder.files.read(key)
            wanted = _stored_as(theta.dtype, dtype)
            return _edited(theta.to(wanted), moves.get(key), key, tally(key))

        return make

    with SafetensorsFile(Path(folder.path) / file) as shard:
        plans = {
            k: PlannedTensor(_stored_as(i.dtype, dtype), i.shape, maker(k))
            for k, i in shard.tensors.items()
        }
        write_safetensors(work / file, plans, {"format": "pt", **shard.metadata})


def _edited(theta: Tensor, terms: weights.Terms | None, name: str, tally: Tally) -> Tensor:
    """θ moved, in its own memory."""
    for block, delta, new in weights.moved_by_blocks(theta, terms or (), name):
        dtype = functional.working_dtype(theta, delta)
        tally.asked += _square(delta)
        tally.missed += _square(new.to(dtype) - block.to(dtype) - delta)
        block.copy_(new)
    if terms:
        tally.end_tensor()
    return theta


def _stored_as(own: torch.dtype, asked_for: torch.dtype | None) -> torch.dtype:
    low = own in (torch.bfloat16, torch.float16)
    return asked_for if asked_for is not None and low else own


def _say_dtype(config: Path, dtype: torch.dtype) -> None:
    """Let a configuration name the dtype that its weights have: loading rounds to it."""
    document = read_json(config)
    key = "torch_dtype" if "torch_dtype" in document else "dtype"
    write_json(config, {**document, key: str(dtype).removeprefix("torch.")})


def _copy_index(
    source: Path, file: str, work: Path, folder: ModelFolder, dtype: torch.dtype
) -> None:
    """An index says how many bytes its shards hold."""
    index = read_json(source / file)
    total = 0
    for name in folder.files.names():
        info = folder.files.info(name)
        total += math.prod(info.shape) * _stored_as(info.dtype, dtype).itemsize
    metadata = {**(index.get("metadata") or {}), "total_size": total}
    write_json(work / file, {**index, "metadata": metadata})


def _square(tensor: Tensor) -> float:
    flat = tensor.reshape(-1)
    return float(torch.dot(flat, flat))


def _copy_companions(source: Path, work: Path, done: set[str]) -> None:
    for path in sorted(source.iterdir()):
        companion = path.suffix in _COPIED and not path.name.endswith(".index.json")
        if path.name in done or path.name.startswith((".", *_LEFT_OUT)) or not companion:
            continue
        if path.is_file():
            _copy(source, path.name, work)
    templates = source / _TEMPLATES
    for template in () if templates.is_symlink() else sorted(templates.glob("*.jinja")):
        (work / _TEMPLATES).mkdir(exist_ok=True)
        _copy(source, f"{_TEMPLATES}/{template.name}", work)
    if (source / _README).is_file():
        _copy(source, _README, work, "README.original.md")


def _copy(source: Path, name: str, work: Path, new_name: str | None = None) -> None:
    # Through `files`, which refuses links out of the folder.
    with (
        closing(open_storage(source / name, source)) as storage,
        replacing(work / (new_name or name)) as descriptor,
    ):
        write_all(descriptor, memoryview(read_bytes(storage, 0, storage.size)))
