"""Where task vectors come from: adapter folders, checkpoints, live models.

Transformers and PEFT are imported only where a live model or a merge needs them.
"""

from wvmonitor.sources.adapters import read_adapter
from wvmonitor.sources.checkpoint import read_checkpoints
from wvmonitor.sources.identity import base_digest
from wvmonitor.sources.live_model import LiveModel, read_model

__all__ = ["LiveModel", "base_digest", "read_adapter", "read_checkpoints", "read_model"]
