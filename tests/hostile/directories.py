"""Folders whose files contradict each other, lead elsewhere, or are no files."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from tests.hostile.corpus import Case, Place
from wvmonitor.errors import (
    MalformedFileError,
    MissingPathError,
    UnjudgedPartError,
    UnsafeFileError,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def index_names(shard: str) -> Callable[[Place], Path]:
    """A sharded checkpoint whose index puts one tensor into this file."""
    return lambda place: place.sharded({WEIGHT: shard})


def index_is(text: str) -> Callable[[Place], Path]:
    """A sharded checkpoint whose index is this text."""

    def build(place: Place) -> Path:
        folder = place.sharded()
        (folder / "model.safetensors.index.json").write_text(text)
        return folder

    return build


def shards(harm: Callable[[Path], None]) -> Callable[[Place], Path]:
    """A sharded checkpoint after `harm`."""

    def build(place: Place) -> Path:
        folder = place.sharded()
        harm(folder)
        return folder

    return build


def weights_are(make: Callable[[Place, Path], None]) -> Callable[[Place], Path]:
    """The sound adapter with something else under the name of its weights."""

    def build(place: Place) -> Path:
        folder = place.adapter_with()
        file = folder / "adapter_model.safetensors"
        file.unlink()
        make(place, file)
        return folder

    return build


def doubled(folder: Path) -> None:
    """The second shard holds a tensor of the first one, too."""
    from wvmonitor.files.safetensors import write_safetensors

    both = Place.tensors(folder / SECOND) | Place.tensors(folder / FIRST)
    write_safetensors(folder / SECOND, both)


def half(folder: Path) -> None:
    """The second shard ends in its middle."""
    os.truncate(folder / SECOND, (folder / SECOND).stat().st_size // 2)


def both(place: Place) -> Path:
    """Shards, and a single file beside them."""
    folder = place.sharded()
    shutil.copy(place.checkpoint / "model.safetensors", folder)
    return folder


def stray(place: Place, file: Path) -> None:
    """A link to sound weights outside of the folder."""
    file.symlink_to(place.adapter / "adapter_model.safetensors")


def loop(_: Place, file: Path) -> None:
    other = file.with_name("other")
    file.symlink_to(other)
    other.symlink_to(file)


def listening(_: Place, file: Path) -> None:
    """A socket in the file system; paths of sockets are short, so it is made where it lies."""
    here = Path.cwd()
    os.chdir(file.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    finally:
        os.chdir(here)


def beside(name: str, make: Callable[[Path], None]) -> Callable[[Place], Path]:
    """The sound adapter as a run's checkpoint, with something else beside its weights."""

    def build(place: Place) -> Path:
        folder = place.adapter_with(name="checkpoint-2")
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        return folder

    return build


def stray_checkpoint(place: Place) -> Path:
    """A run of one checkpoint, which is a link out of the run."""
    run = place.folder / "run"
    run.mkdir()
    (run / "checkpoint-2").symlink_to(place.adapter)
    return run


def deep_index(place: Place) -> Path:
    return index_is('{"weight_map":' + "[" * 100_000)(place)


def many_shards(place: Place) -> Path:
    """An index that spreads as many tensors over as many files, of which none is there."""
    folder = place.sharded()
    (folder / FIRST).unlink()
    (folder / SECOND).unlink()
    names = {f"w{i}": f"model-{i:07d}-of-1000000.safetensors" for i in range(200_000)}
    Place.index(folder, names)
    return folder


def fifo(path: Path) -> None:
    os.mkfifo(path)


def deep(file: Path) -> None:
    """A file that is nothing, some folders down."""
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")


def many_folders(place: Place) -> Path:
    """The sound adapter above more folders than anyone needs."""
    folder = place.adapter_with()
    for number in range(20_000):
        (folder / f"x{number}").mkdir()
    return folder


CASES = (
    Case("index with ../", "directories", index_names("../../outside.safetensors"),
         UnsafeFileError),
    Case("index with an absolute path", "directories", index_names("/etc/passwd.safetensors"),
         UnsafeFileError),
    Case("index with a path of Windows", "directories", index_names("..\\x.safetensors"),
         UnsafeFileError),
    Case("index with a URL", "directories", index_names("http://127.0.0.1:9/x.safetensors"),
         UnsafeFileError),
    Case("index with NUL", "directories", index_names("a\0.safetensors"), UnsafeFileError),
    Case("index with a number", "directories", index_is('{"weight_map": {"w": 3}}'),
         MalformedFileError),
    Case("index that is a list", "directories", index_is('{"weight_map": ["w"]}'),
         MalformedFileError),
    Case("index 100,000 deep", "directories", deep_index, MalformedFileError),
    Case("index with a key twice", "directories",
         index_is(f'{{"weight_map": {{"w": "{FIRST}", "w": "{SECOND}"}}}}'), MalformedFileError),
    Case("index of 200,000 files", "directories", many_shards, MissingPathError),
    Case("missing shard", "directories", shards(lambda f: (f / SECOND).unlink()),
         MissingPathError),
    Case("missing index", "directories",
         shards(lambda f: (f / "model.safetensors.index.json").unlink()), MissingPathError),
    Case("truncated shard", "directories", shards(half), MalformedFileError),
    Case("a tensor in two shards", "directories", shards(doubled), MalformedFileError),
    Case("shards of another save", "directories",
         shards(lambda f: shutil.copy(f / FIRST, f / "model-00003-of-00003.safetensors")),
         MalformedFileError),
    Case("single and sharded", "directories", both, MalformedFileError),
    Case("a shard that is a link out of the folder", "directories",
         shards(lambda f: (shutil.move(f / SECOND, f.parent / SECOND),
                           (f / SECOND).symlink_to(f.parent / SECOND))),
         UnsafeFileError),
    Case("a link out of the folder", "directories", weights_are(stray), UnsafeFileError),
    Case("a link to a device", "directories",
         weights_are(lambda _, f: f.symlink_to("/dev/zero")), UnsafeFileError),
    Case("a loop of links", "directories", weights_are(loop), UnsafeFileError),
    Case("a broken link", "directories",
         weights_are(lambda _, f: f.symlink_to(f.parent / "gone")), MissingPathError),
    Case("a FIFO", "directories", weights_are(lambda _, f: fifo(f)), UnsafeFileError),
    Case("a socket", "directories", weights_are(listening), UnsafeFileError),
    Case("a folder for weights", "directories", weights_are(lambda _, f: f.mkdir()),
         UnsafeFileError),
    Case("a device itself", "directories", lambda _: Path("/dev/zero"), UnsafeFileError),
    Case("a FIFO for adapter_config.json", "directories", beside("adapter_config.json", fifo),
         UnsafeFileError),
    Case("a FIFO for trainer_state.json", "directories", beside("trainer_state.json", fifo), None),
    Case("a trainer_state.json 100,000 deep", "directories",
         beside("trainer_state.json", lambda f: f.write_text('{"a":' + "[" * 100_000)), None),
    Case("a trainer_state.json of numbers that are none", "directories",
         beside("trainer_state.json", lambda f: f.write_text(json.dumps(
             {"global_step": "x", "max_steps": -1, "log_history": [{"learning_rate": "1"}, 3]}))),
         None),
    Case("a checkpoint that is a link out of its run", "directories", stray_checkpoint,
         UnsafeFileError),
    Case("a second adapter beside it", "directories",
         beside("evil.safetensors", lambda f: f.write_bytes(b"")), UnjudgedPartError, strict=True),
    Case("a pickle that trains with it", "directories",
         beside("non_lora_trainables.bin", lambda f: f.write_bytes(b"cos\nsystem\n.")),
         UnjudgedPartError, strict=True),
    Case("a neighbour whose name drives a terminal", "directories",
         beside("\x1b[2J\u202e.gguf", lambda f: f.write_bytes(b"")), UnjudgedPartError,
         strict=True),
    Case("weights three folders down", "directories", beside("a/b/c/model.safetensors", deep),
         UnjudgedPartError, strict=True),
    Case("20,000 folders below", "directories", many_folders, None),
    Case("a folder that is a link to its parent", "directories",
         beside("again", lambda f: f.symlink_to(f.parent)), None),
    Case("code in modules.json", "directories",
         beside("modules.json", lambda f: f.write_text('[{"type": "antigravity.X"}]')),
         UnjudgedPartError, strict=True),
    Case("a modules.json 100,000 deep", "directories",
         beside("modules.json", lambda f: f.write_text("[" * 100_000)), UnjudgedPartError,
         strict=True),
    Case("a tokenizer_config.json that is a FIFO", "directories",
         beside("tokenizer_config.json", fifo), UnjudgedPartError, strict=True),
    Case("code in auto_map", "directories",
         beside("tokenizer_config.json",
                lambda f: f.write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')),
         UnjudgedPartError, strict=True),
)  # fmt: skip
