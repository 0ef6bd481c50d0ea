"""Which files hold weights, by their names alone: those that are read, and those beside them."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from wvmonitor.files.storage import Location, is_url, local_path, remote_files, shown

SAFETENSORS = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".distcp")
_DCP_METADATA = ".metadata"
# The pickles that transformers, PEFT and Meta's own code load as a model's weights.
_PICKLED_MODEL = re.compile(
    r"(?:(?:pytorch_|adapter_)?model(?:_fsdp)?|consolidated)\b.*\.(?:bin|pt|pth|ckpt)",
    re.IGNORECASE,
)
# Weights in forms of other programs: llama.cpp, TensorFlow, Flax, MLX, ONNX, Rust.
_FOREIGN = (".gguf", ".ggml", ".h5", ".msgpack", ".npz", ".onnx", ".onnx_data", ".ot", ".pt2")
# What trainers keep beside the weights; to name one of these as the weights would mislead.
_NOT_WEIGHTS = re.compile(
    r"(?:training_args|optimizer|scheduler|scaler|rng_state|random_states|sampler|dl_state_dict"
    r"|optim_).*"
)
# The state of a sharded engine, from which it resumes, and which nothing else loads.
_ENGINE_STATE = re.compile(r".*(?:_model_states|_optim_states)\.pt|.*\.distcp|\.metadata")
_MOST_FOLDERS = 500
_DEPTH = 3


def is_pickle(name: str) -> bool:
    """Whether a file is a pickle, by its name."""
    return name == _DCP_METADATA or name.lower().endswith(_PICKLES)


def pickled_models(entries: Iterable[str]) -> list[str]:
    """Those of a folder's entries that are a model's or an adapter's weights as a pickle."""
    return sorted(entry for entry in entries if _PICKLED_MODEL.fullmatch(entry))


def pickled_weights(entries: Iterable[str]) -> list[str]:
    """Those of a folder's entries that are pickles, and not what trainers keep of their own."""
    return sorted(e for e in entries if is_pickle(e) and not _NOT_WEIGHTS.fullmatch(e))


def holds_weights(entries: Iterable[str]) -> bool:
    """Whether a folder with these entries holds weights that are read, or refused as a pickle."""
    names = list(entries)
    safe = any(e.endswith((SAFETENSORS, f"{SAFETENSORS}.index.json")) for e in names)
    return safe or bool(pickled_models(names))


def neighbours(entries: Iterable[str], stem: str) -> list[str]:
    """Entries of a folder that hold weights beside those that are read, sorted.

    A second adapter, a pickle of the same run (`non_lora_trainables.bin`), embeddings that were
    trained beside it (`new_embeddings.safetensors`), another program's copy (`model.gguf`); what
    trainers keep to resume (optimiser, scheduler, random state, shards of an engine's state) is
    not among them.

    Args:
        entries: of the folder.
        stem: of what is read: "model", or "adapter_model" for PEFT adapters.
    """
    own = re.compile(
        rf"{re.escape(stem)}(?:-\d+-of-\d+)?{re.escape(SAFETENSORS)}(?:\.index\.json)?"
    )
    return sorted(
        e
        for e in entries
        if (e.endswith(SAFETENSORS) or is_pickle(e) or e.lower().endswith(_FOREIGN))
        and not own.fullmatch(e)
        and not _NOT_WEIGHTS.fullmatch(e)
        and not _ENGINE_STATE.fullmatch(e)
    )


def weights_below(path: Location, unseen: list[str] | None = None) -> list[str]:
    """Folders below this one that hold weights, as paths in it, sorted; hidden ones are left out.

    Of a local folder three levels are looked at, and at most 500 folders; links are not followed.

    `unseen` takes up why not all of it was looked at.
    """
    unseen = [] if unseen is None else unseen
    if is_url(path):
        inside = _remote_folders(str(path), unseen)
    else:
        inside = _local_folders(local_path(path), unseen)
    return sorted(
        where for where, entries in inside if holds_weights(entries) or neighbours(entries, "model")
    )


def _local_folders(root: Path, unseen: list[str]) -> Iterator[tuple[str, list[str]]]:
    waiting = deque([(root, 0)])
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError as error:
            unseen.append(f"{shown(folder)} cannot be listed ({shown(error)})")
            continue
        if depth:
            yield folder.relative_to(root).as_posix(), [e.name for e in entries]
        inside = [e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != "."]
        if depth < _DEPTH:
            waiting.extend((folder / n, depth + 1) for n in sorted(inside))
        elif inside:
            unseen.append(f"{shown(folder)} holds further folders")
    if waiting:
        unseen.append(f"there are more than {_MOST_FOLDERS} folders")


def _remote_folders(url: str, unseen: list[str]) -> Iterator[tuple[str, list[str]]]:
    try:
        files, root = remote_files(url)
        paths = files.find(root)
    except Exception as error:  # noqa: BLE001  each backend has kinds of its own
        unseen.append(f"its folders cannot be listed ({shown(error)})")
        return
    folders: dict[str, list[str]] = {}
    for file in paths:
        inside = str(file).removeprefix(root.rstrip("/")).lstrip("/")
        folder, _, name = inside.rpartition("/")
        if folder and not any(part[0] == "." for part in folder.split("/")):
            folders.setdefault(folder, []).append(name)
    yield from folders.items()
