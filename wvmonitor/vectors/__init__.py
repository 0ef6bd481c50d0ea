"""The algebra of weight vectors: torch only, no files, no Hugging Face."""

from wvmonitor.vectors.task_vector import Origin, TaskVector
from wvmonitor.vectors.update import DenseUpdate, LowRankUpdate, StreamedUpdate, Update

__all__ = ["DenseUpdate", "LowRankUpdate", "Origin", "StreamedUpdate", "TaskVector", "Update"]
