"""The bundled tiny model's world: its data, its training and its behaviour, all made here.

Only `behaviour` and `train` need torch and transformers; they are imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wvmonitor.organism.train import Finetuned, file_digests, finetune, load_base, train_base

__all__ = ["Finetuned", "file_digests", "finetune", "load_base", "train_base"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wvmonitor.organism import train

    return getattr(train, name)
