"""Pickles: named and refused where they are the weights, never opened wherever they are."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.hostile.corpus import Case, Place
from wvmonitor.errors import MalformedFileError, UnsafeFileError


class Payload:
    """What runs a harmless command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._mark = folder / "the-payload-ran"

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, (f"touch '{self._mark}'",)


def running(folder: Path) -> bytes:
    """A pickle whose payload leaves a file behind."""
    return pickle.dumps({"weight": Payload(folder)})


def saved(value: object) -> bytes:
    """What torch.save makes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def deflated() -> bytes:
    """A torch archive whose storage is 64 MB of zeros in 64 kB."""
    source = zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(16_000_000)})))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return buffer.getvalue()


def adapter_file(name: str, make: Callable[[Path], bytes]) -> Callable[[Place], Path]:
    """The sound adapter with a pickle in place of its weights."""

    def build(place: Place) -> Path:
        folder = place.adapter_with()
        (folder / "adapter_model.safetensors").unlink()
        (folder / name).write_bytes(make(place.folder))
        return folder

    return build


def disguised(make: Callable[[Path], bytes]) -> Callable[[Place], Path]:
    """The sound adapter with a pickle under the name of safetensors."""
    return lambda place: place.adapter_with(make(place.folder))


def beside(*names: str) -> Callable[[Place], Path]:
    """A sound adapter with pickles that run code beside it, as trainers leave them."""

    def build(place: Place) -> Path:
        folder = place.adapter_with(name="checkpoint-2")
        for name in names:
            (folder / name).write_bytes(running(place.folder))
        return folder

    return build


def distributed(place: Place) -> Path:
    """A torch.distributed.checkpoint folder whose metadata runs code."""
    folder = place.folder / "sharded_state"
    folder.mkdir()
    (folder / ".metadata").write_bytes(running(place.folder))
    (folder / "__0_0.distcp").write_bytes(running(place.folder))
    return folder


def sharded_pickles(place: Place) -> Path:
    """A checkpoint of pickled shards with their index."""
    folder = place.checkpoint_with()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "a.bin"}}')
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(running(place.folder))
    return folder


def indexed(place: Place) -> Path:
    """A safetensors index that names a pickle."""
    folder = place.sharded({"model.norm.weight": "pytorch_model.bin"})
    (folder / "pytorch_model.bin").write_bytes(running(place.folder))
    return folder


def lone(name: str) -> Callable[[Place], Path]:
    """A pickle, given by its own path."""

    def build(place: Place) -> Path:
        path = place.folder / name
        path.write_bytes(running(place.folder))
        return path

    return build


def remote_code(place: Place) -> Path:
    """A checkpoint that brings its own modelling code, which must not be imported."""
    folder = place.checkpoint_with(
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    )
    mark = place.folder / "the-payload-ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    return folder


def cache_like(place: Place) -> Path:
    """The sound adapter with a folder of byte code beside it."""
    folder = place.adapter_with()
    (folder / "__pycache__").mkdir()
    shutil.copy(Path(__file__), folder / "sitecustomize.py")
    return folder


MARKS = b"\x80\x04" + b"(" * 5_000_000
LAUGHS = b"\x80\x02]q\x00" + b"".join(
    b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e" for i in range(60)
) + b"."  # fmt: skip
CASES = (
    Case("a payload for adapter_model.bin", "pickles",
         adapter_file("adapter_model.bin", running), UnsafeFileError),
    Case("a payload in capitals", "pickles", adapter_file("ADAPTER_MODEL.BIN", running),
         UnsafeFileError),
    Case("a payload under the name of safetensors", "pickles", disguised(running),
         MalformedFileError),
    Case("five million marks", "pickles", adapter_file("adapter_model.pt", lambda _: MARKS),
         UnsafeFileError),
    Case("a billion laughs", "pickles", adapter_file("adapter_model.pkl", lambda _: LAUGHS),
         UnsafeFileError),
    Case("a billion laughs under the name of safetensors", "pickles", disguised(lambda _: LAUGHS),
         MalformedFileError),
    Case("deflated storage", "pickles", adapter_file("adapter_model.bin", lambda _: deflated()),
         UnsafeFileError),
    Case("deflated storage under the name of safetensors", "pickles",
         disguised(lambda _: deflated()), MalformedFileError),
    Case("a tensor expanded to a terabyte", "pickles",
         adapter_file("adapter_model.pth", lambda _: saved({"w": torch.zeros(1).expand(2**40)})),
         UnsafeFileError),
    Case("a truncated archive", "pickles",
         adapter_file("adapter_model.ckpt", lambda _: saved({"w": torch.zeros(99)})[:500]),
         UnsafeFileError),
    Case("metadata of a distributed checkpoint", "pickles", distributed, UnsafeFileError),
    Case("pickled shards", "pickles", sharded_pickles, UnsafeFileError),
    Case("an index that names a pickle", "pickles", indexed, UnsafeFileError),
    *(Case(f"a lone {name}", "pickles", lone(name), UnsafeFileError)
      for name in ("model.pt", "consolidated.00.pth", "model.ckpt", ".metadata")),
    Case("payloads beside sound weights", "pickles",
         beside("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"), None),
    Case("modelling code in the folder", "pickles", remote_code, None),
    Case("code beside sound weights", "pickles", cache_like, None),
)  # fmt: skip
