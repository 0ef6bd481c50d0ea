"""What a case of the hostile corpus is, and all of them by family.

Nothing here is a binary: every file is made when its case is run, so that a reader sees what is
hostile about it. Payloads are harmless: what would run code leaves a file behind, and the harness
sees that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from wvmonitor.files.header import DTYPES
from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors

Family = Literal["headers", "bodies", "names", "directories", "pickles", "adapters"]
CODE_OF = {dtype: code for code, dtype in DTYPES.items()}
GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
BODY = bytes(16)


@dataclass(frozen=True)
class Place:
    """Where a case is built, and the sound files that it may start from.

    Attributes:
        folder: its own, empty.
        adapter: a sound adapter.
        checkpoint: a sound whole checkpoint.
        base: the base model of both.
    """

    folder: Path
    adapter: Path
    checkpoint: Path
    base: Path

    def adapter_with(
        self,
        weights: bytes | None = None,
        *,
        config: Mapping[str, Any] | str | None = None,
        name: str = "adapter",
    ) -> Path:
        """A copy of the sound adapter with other bytes for weights, or another configuration."""
        folder = Path(shutil.copytree(self.adapter, self.folder / name))
        if weights is not None:
            (folder / "adapter_model.safetensors").write_bytes(weights)
        if config is not None:
            said = json.loads((folder / "adapter_config.json").read_text())
            text = config if isinstance(config, str) else json.dumps(said | dict(config))
            (folder / "adapter_config.json").write_text(text)
        return folder

    def adapter_changed(self, change: Callable[[dict[str, Tensor]], None], **config: Any) -> Path:
        """A copy of the sound adapter whose tensors `change` has had its way with."""
        folder = self.adapter_with(config=config)
        tensors = self.tensors(self.adapter / "adapter_model.safetensors")
        change(tensors)
        write_safetensors(folder / "adapter_model.safetensors", tensors)
        return folder

    def checkpoint_with(self, config: Mapping[str, Any] | None = None) -> Path:
        """A copy of the sound checkpoint, with fields of config.json replaced."""
        folder = Path(shutil.copytree(self.checkpoint, self.folder / "checkpoint"))
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(said | dict(config or {})))
        return folder

    def sharded(self, weight_map: Mapping[str, str] | None = None) -> Path:
        """The sound checkpoint in two shards with an index, whose map may say something else."""
        folder = self.checkpoint_with()
        tensors = self.tensors(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        mapped: dict[str, str] = {}
        for number in (1, 2):
            shard = f"model-{number:05d}-of-00002.safetensors"
            names = sorted(tensors)[number - 1 :: 2]
            write_safetensors(folder / shard, {n: tensors[n] for n in names})
            mapped |= dict.fromkeys(names, shard)
        self.index(folder, mapped if weight_map is None else {**mapped, **weight_map})
        return folder

    @staticmethod
    def index(folder: Path, weight_map: object) -> None:
        """Write the index of a sharded checkpoint."""
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)

    @staticmethod
    def tensors(file: Path) -> dict[str, Tensor]:
        """Every tensor of a sound file."""
        with SafetensorsFile(file) as opened:
            return {name: opened.read(name) for name in opened.tensors}


@dataclass(frozen=True)
class Case:
    """One thing that a stranger might send.

    Attributes:
        name: of the case.
        family: what is hostile about it.
        build: makes it in its place, and gives the path to scan.
        expected: the class of the error that must come; None where it must be judged as if the
            hostile part were not there.
        strict: whether it is scanned with --strict.
    """

    name: str
    family: Family
    build: Callable[[Place], Path]
    expected: type[Exception] | None
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def packed(header: bytes, body: bytes = BODY, length: int | None = None) -> bytes:
    """A safetensors file of these bytes, with a header length that may be a lie."""
    said = len(header) if length is None else length
    return said.to_bytes(8, "little") + header + body


def described(header: Mapping[str, Any], body: bytes = BODY) -> bytes:
    """A safetensors file whose header is this JSON."""
    return packed(json.dumps(header).encode(), body)


def all_cases() -> Sequence[Case]:
    """Every case of every family."""
    from tests.hostile import adapters, bodies, directories, headers, names, pickles

    found = [
        case
        for family in (headers, bodies, names, directories, pickles, adapters)
        for case in family.CASES
    ]
    assert len({str(case) for case in found}) == len(found)
    return found
