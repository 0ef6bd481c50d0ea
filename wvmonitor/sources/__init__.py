"""Where task vectors come from: adapter folders, checkpoints, live models.

Each is imported when it is first used; transformers and PEFT only where a live model or a merge
needs them.
"""

from typing import TYPE_CHECKING

from torch import nn

from wvmonitor import lazily
from wvmonitor.files.storage import Location

if TYPE_CHECKING:
    from wvmonitor.sources.adapters import read_adapter
    from wvmonitor.sources.checkpoint import read_checkpoints
    from wvmonitor.sources.live_model import LiveModel, read_model

_HOMES = {
    "LiveModel": "live_model",
    "read_adapter": "adapters",
    "read_checkpoints": "checkpoint",
    "read_model": "live_model",
}

__all__ = ["LiveModel", "base_digest", "read_adapter", "read_checkpoints", "read_model"]

__getattr__ = lazily(__name__, _HOMES)


def base_digest(path_or_model: Location | nn.Module) -> str:
    """The digest of a base model, as 64 hexadecimal digits.

    Args:
        path_or_model: a folder or file of unquantised weights, or a live model whose base weights
            are still its own (under LoRA they always are; before the first step of a full
            fine-tune).

    Raises:
        InputError: the weights cannot be read, are quantised, or hold no transformer block.
    """
    if isinstance(path_or_model, nn.Module):
        from wvmonitor.sources.live_base import digest_of_model

        return digest_of_model(path_or_model)
    from wvmonitor.sources import identity

    return identity.base_digest(path_or_model)
