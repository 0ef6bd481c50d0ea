"""Files in and out: the one room that opens weights and strict JSON documents.

- `safetensors`: one weight file, read tensor by tensor or in ranges of rows; the atomic writer.
- `checkpoint_files`: a model or adapter folder, sharded or not, as one set of tensors.
- `documents`: JSON with nothing left to interpretation (no torch is imported for it).
- `header`, `storage`, `digests`, `atomic`: what those stand on.
"""

from typing import TYPE_CHECKING

from wvmonitor import lazily

if TYPE_CHECKING:
    from wvmonitor.files.checkpoint_files import CheckpointFiles, open_checkpoint
    from wvmonitor.files.documents import read_json, write_json
    from wvmonitor.files.safetensors import SafetensorsFile, write_safetensors

_HOMES = {
    "CheckpointFiles": "checkpoint_files",
    "SafetensorsFile": "safetensors",
    "open_checkpoint": "checkpoint_files",
    "read_json": "documents",
    "write_json": "documents",
    "write_safetensors": "safetensors",
}

__all__ = [
    "CheckpointFiles",
    "SafetensorsFile",
    "open_checkpoint",
    "read_json",
    "write_json",
    "write_safetensors",
]

__getattr__ = lazily(__name__, _HOMES)
